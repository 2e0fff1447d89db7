"""The connection to a Redis server: pipelines of commands, reconnecting, and repeating writes that the server lost.

Steps that must be atomic are scripts, files in ``lua/``; their first lines say what they take and return. When a
connection breaks while commands may have run, they are run again, so each is safe to run twice.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import random
import re
import secrets
import select
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar
from urllib.parse import unquote

import msgspec

from jug_notebook.clock import Clock
from jug_notebook.errors import JugError, StoreError, StoreGone, Unreachable
from jug_notebook.model import BEAT
from jug_notebook.render.format import duration
from jug_notebook.store import PATIENCE, Store, keyring
from jug_notebook.store.redis.wire import Place, Refusal, Wire

FORMAT = "4"
RETURNING = 3.0  #: seconds after a restart in which no task is claimed: first, all tell again what the server lost
LOADING = 600.0  #: seconds to wait at least for a server that is loading its data from disk
PAUSE, LONGEST = 0.02, 1.0  #: seconds before the second attempt to reach it, and at most
REPORTED = 3.0  #: seconds after which waiting for it is reported
KEPT = 10.0  #: seconds for which writes are remembered, in case a server with an append-only file loses them
KEPT_BYTES = 7 << 20  #: of what is remembered, at most; of a server without such a file, nothing else limits it
COMPRESSED = range(2_000, 1_000_000)  #: bytes of a write that is remembered compressed: larger ones hold blobs
OVERHEAD = 160  #: bytes that each takes besides
NOTHING = b"0-0"  #: before the first entry of the log


_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(list[Any]).decode


@functools.cache
def _script(name: str) -> str:
    """Return a script's text."""
    return (resources.files("jug_notebook.store.redis") / "lua" / f"{name}.lua").read_text()


Command: TypeAlias = tuple[Any, ...]
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
_FOR_NOW = ("BUSY ", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "ERR max number of clients")


def understood(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Have a method that reads replies raise StoreError where they make no sense: a server may say anything."""

    @functools.wraps(method)
    def checked(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
            if isinstance(error, JugError):
                raise
            text = f"the server's reply makes no sense ({type(error).__name__}: {_one_line(error)[:100]})"
            raise StoreError(f"{text}; is it a Redis server, and is its data undamaged?") from error

    return checked


class Waiting:
    """How long to wait for a server that is away, and who is told so: see `Store`, which is one."""

    patience: float = PATIENCE
    notify: Callable[[str], None] | None = None


class Outage:
    """A time in which a server can't be used. The pauses between attempts grow, and differ between processes."""

    def __init__(self, began: float) -> None:
        self.began = self.next_try = began
        self.problem = ""
        self.limit = 0.0  #: seconds after which waiting is of no use
        self.reported = False
        self._pause = PAUSE

    @property
    def loading(self) -> bool:
        """Return whether the server is there and reads its data from disk."""
        return "LOADING" in self.problem

    def failed(self, now: float, problem: str, limit: float) -> None:
        """Note an attempt that has failed."""
        self.problem, self.limit = problem, limit
        self.next_try = now + self._pause * random.uniform(0.5, 1.0)
        self._pause = min(LONGEST, 2 * self._pause)


class Connection:
    """The commands of one project to its server. Several threads may use it at once."""

    def __init__(self, place: Place, clock: Clock, make: bool = True, waiting: Store | Waiting | None = None) -> None:
        self.place = place
        self.display_url = place.display_url
        self.notes: tuple[str, ...] = ()
        self.seen = NOTHING  #: the latest entry of the log that was read or written
        self.losses = 0  #: how often the server turned out to have lost something
        self._clock = clock
        self._prefix = f"jug:{{{place.project}}}:"
        self._free: list[Wire] = []
        self._waiting: list[Wire] = []  # each has a command on its way that waits for the log to grow
        self._pid = os.getpid()
        self._remembered: deque[tuple[float, str, bytes, bool]] = deque()  # when, script, arguments, compressed?
        self._remembered_bytes = 0
        self._lock = threading.RLock()
        self._unverified = False  # a new connection: the server may have restarted or lost data
        self._verifier: threading.Thread | None = None  # the thread that is checking that
        self._run_id = ""  # of the server's process; empty where it doesn't tell
        self._waiting_as = waiting or Waiting()
        self._outage: Outage | None = None
        self._back_at = -math.inf  # on the monotonic clock: when the server was last seen to have been restarted
        self._own = threading.local()  # the patience of a thread that must not wait
        self._forgetful = False  # the server keeps no append-only file, so a crash may lose more than a second
        self.id = ""  #: of the store; empty where there is none and ``make`` is false
        if make or self.command("EXISTS", self.key("id")):
            self._open()

    @understood
    def _open(self) -> None:
        """Find the store, or make it. A server that can't be reached now is not waited for."""
        *found, info = self.pipeline([("GET", self.key("id")), ("GET", self.key("format")), ("INFO", "everything")])
        described = _described(info)
        if found[0] is None:
            fresh = secrets.token_hex(16)
            keyring.secret(fresh, make=True)  # before the store can be seen
            found = self.run("open", fresh, FORMAT)
            if found[0] != fresh.encode():
                keyring.forget(fresh)  # another process was first
        id, format = ((part or b"").decode(errors="replace") for part in found)
        if format != FORMAT:
            older = format.isdigit() and int(format) < int(FORMAT)
            way = "give another project, as in ?project=NAME" if older else "pip install -U jug-notebook"
            maker = f"made by {'an earlier' if older else 'a newer'} jug_notebook"
            raise StoreError(
                f"{self.display_url} has format {format!a:.20}, {maker}; this one reads format {FORMAT}: {way}"
            )
        self.id = id
        self._run_id = described.get("run_id", "")
        self.notes = _notes(described, self.display_url)
        self._forgetful = described.get("aof_enabled") == "0"
        self._unverified = False

    # -- running commands ----------------------------------------------------------------------------------------------

    def command(self, *command: Any) -> Any:
        """Run a command. Raises StoreError where the server can't be reached in time."""
        return self.pipeline([command])[0]

    def time(self) -> float:
        """Return the server's time, in seconds since the epoch."""
        seconds, micros = self.command("TIME")
        return int(seconds) + int(micros) / 1e6

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script."""
        return self.pipeline([self.script(script, *arguments)])[0]

    def script(self, name: str, *arguments: Any) -> Command:
        """Return the command that runs a script. They are so short that the server need not remember them."""
        return ("EVAL", _script(name), 1, self._prefix, *arguments)

    def though_full(self, *command: Any) -> Command:
        """Return the command that runs a small one even if the server is full."""
        return self.script("full", *command)

    def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip, and again, all of them, where the connection breaks meanwhile.

        Raises StoreError for the first that the server refuses (of INFO, the error is returned).
        """
        return self._retry(functools.partial(self._send, commands))

    def key(self, name: str) -> str:
        """Return the full name of a key of this project."""
        return self._prefix + name

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        wire = self._take()
        try:
            wire.send(commands)
            replies = [wire.receive() for _ in commands]
        except BaseException:
            wire.close()
            raise
        self._free.append(wire)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Refusal) and command[0] != "INFO":
                raise reply
        return replies

    def _take(self) -> Wire:
        self._drop_inherited()
        if self._unverified and self.id and self._verifier is not threading.current_thread():
            self._verify_server()
        try:
            return self._free.pop()
        except IndexError:
            pass
        wire = Wire(self.place)
        if self._verifier is threading.current_thread():
            return wire
        self._free.append(wire)
        self._unverified = True
        return self._take()

    def _drop_inherited(self) -> None:
        """Leave alone the connections of the process that this one was forked from."""
        if self._pid != os.getpid():
            self._pid, self._free, self._waiting = os.getpid(), [], []

    def wait(self, last: bytes, timeout: float, descriptor: int = -1) -> bool:
        """Wait until the log has an entry after ``last``, or something breaks, at most ``timeout`` seconds.

        Return True where a descriptor was given that became readable.
        """
        self._drop_inherited()
        command = ("XREAD", "COUNT", 1, "BLOCK", 0, "STREAMS", self.key("log"), last)
        try:
            wire = self._waiting.pop()
        except IndexError:
            wire = self._retry(lambda: [self._sent(command)])[0]
        poll = select.poll()
        for readable in (wire.fileno(), descriptor):
            if readable >= 0:
                poll.register(readable, select.POLLIN)
        until = self._clock.monotonic() + timeout
        try:
            while True:
                found = [each for each, _ in poll.poll(max(0.0, until - self._clock.monotonic()) * 1000)]
                if wire.fileno() in found:
                    reply = wire.receive()  # maybe to what an earlier call waited for
                    known = not isinstance(reply, Refusal) and number_of(reply[0][1][0][0]) <= number_of(last)
                    wire.send([command])
                    if not known:
                        break
                elif descriptor in found or self._clock.monotonic() >= until:
                    break
        except OSError:
            wire.close()
            return False
        self._waiting.append(wire)
        return descriptor in found

    def _sent(self, command: Command) -> Wire:
        wire = self._take()
        wire.send([command])
        return wire

    # -- reaching the server -------------------------------------------------------------------------------------------

    def _retry(self, send: Callable[[], list[Any]]) -> list[Any]:
        """Send until there is a reply. Raises StoreError that says what is wrong.

        A server that is away is waited for until ``patience`` seconds after it was first missed; one that was never
        reached is not. Between attempts no other is made, by whichever thread: who doesn't wait gets the error at once.
        """
        tried = False
        while True:
            outage = self._outage
            if outage is None or self._clock.monotonic() >= outage.next_try:
                tried = True
                try:
                    reply = send()
                except (OSError, Refusal) as error:
                    outage = self._note_outage(error)
                else:
                    self._outage = None
                    return reply
            now = self._clock.monotonic()
            patience = getattr(self._own, "patience", self._waiting_as.patience)
            if patience and outage.loading:
                patience = max(patience, LOADING)
            limit = min(outage.limit, patience) if self.id else outage.limit
            if now - outage.began >= limit and (tried or limit <= 0):
                text = f"the server of {self.display_url} {outage.problem}; start it again, or give another store"
                raise Unreachable(text)
            if now - outage.began >= REPORTED and not outage.reported and (notify := self._waiting_as.notify):
                outage.reported = True
                notify(self.away)
            self._clock.sleep(max(0.0, outage.next_try - now))

    def _note_outage(self, error: OSError | Refusal) -> Outage:
        """Return the outage that an error belongs to. Raises StoreError for one that doesn't pass."""
        text, limit = _one_line(error), math.inf if self.id else 0.0
        if isinstance(error, OSError):
            problem = f"can't be reached: {text}"
            if "CERTIFICATE_VERIFY_FAILED" in text or "WRONG_VERSION_NUMBER" in text:
                limit = 0.0
        elif text.startswith("GONE"):
            raise self._gone(text[5:]) from None
        elif text.startswith("LOADING"):
            limit, problem = max(limit, LOADING), f"is still loading its data: {text}"
        elif text.startswith(_FOR_NOW):
            problem = f"refuses commands for now: {text}"
        else:
            refused = self._refused(text)
            raise refused from refused.__cause__
        self._disconnect()
        now = self._clock.monotonic()
        outage = self._outage = self._outage or Outage(now)
        outage.failed(now, problem, limit)
        return outage

    @contextmanager
    def impatiently(self) -> Iterator[None]:
        """Within, this thread doesn't wait for a server that is away."""
        self._own.patience = 0.0
        try:
            yield
        finally:
            del self._own.patience

    @property
    def away(self) -> str:
        """Return for how long the server has been away and will be waited for; empty where it isn't."""
        outage = self._outage
        if outage is None:
            return ""
        age, patience = self._clock.monotonic() - outage.began, duration(self._waiting_as.patience)
        return f"the server at {self.place.where} is away for {age:.0f} s; waiting up to {patience}"

    def _disconnect(self) -> None:
        """Close all idle connections."""
        free, self._free = self._free, []
        waiting, self._waiting = self._waiting, []
        for wire in (*free, *waiting):
            wire.close()

    def _refused(self, text: str) -> StoreError:
        if "maxmemory" in text:
            full = StoreError(
                f"the server of {self.display_url} is full: raise its maxmemory, or run %jug_cleanup ({text})"
            )
            full.__cause__ = OSError(errno.ENOSPC, text)  # it passes, as with a disk that is full
            return full
        if text.startswith("NOPERM") or "no permissions" in text:
            return StoreError(
                f"the server of {self.display_url} refuses: {text}; the user's ACL must allow ~{self._prefix}* "
                "+@read +@write +@scripting +@connection +time +info"
            )
        if "AUTH" in text.upper() or "WRONGPASS" in text or "password" in text:
            return StoreError(f"the server of {self.display_url} doesn't know this user or password: {text}")
        return StoreError(f"the server of {self.display_url} refuses: {text}")

    # -- a server that lost data ---------------------------------------------------------------------------------------

    def remember(self, command: Command) -> None:
        """Remember a write for a while, to repeat it if the server loses it in a crash."""
        _, script, _, _, *arguments = command
        packed = _encode(arguments)
        compressed = len(packed) in COMPRESSED
        # where it isn't, a copy, without the spare space that an encoder leaves
        packed = zlib.compress(packed, 1) if compressed else bytes(memoryview(packed))
        now = self._clock.monotonic()
        with self._lock:
            self._remembered.append((now, script, packed, compressed))
            self._remembered_bytes += len(packed) + OVERHEAD
            while self._remembered and (
                (self._remembered[0][0] < now - KEPT and not self._forgetful) or self._remembered_bytes > KEPT_BYTES
            ):
                self._remembered_bytes -= len(self._remembered.popleft()[2]) + OVERHEAD

    @understood
    def _verify_server(self) -> None:
        """After reconnecting, check that the server was not restarted; if it was, repeat the remembered writes.

        A server that crashed or was replaced by its replica has lost the end of what it had, never parts in between.
        """
        with self._lock:
            if not self._unverified:
                return
            self._verifier = threading.current_thread()
            try:
                id, seen, info = self._send(
                    [("GET", self.key("id")), ("XRANGE", self.key("log"), self.seen, self.seen), ("INFO", "server")]
                )
                run_id = _described(info).get("run_id", "")
                same = bool(run_id) and run_id == self._run_id
                if (id or b"").decode(errors="replace") != self.id and (id or same):
                    self._unverified = False
                    raise self._gone((id or b"").decode(errors="replace"))
                lost = not id or not (seen or self.seen == NOTHING)
                if not same and (lost or run_id):
                    self._restore(lost)
                self._run_id = run_id  # not before: should that break off, it is done again
                self._unverified = False
            finally:
                self._verifier = None

    def _restore(self, lost: bool) -> None:
        """Repeat the remembered writes, in a server that was restarted."""
        if lost:
            self.losses += 1
            self.seen = NOTHING
        remembered = [
            ("EVAL", script, 1, self._prefix, *_decode(zlib.decompress(packed) if compressed else packed))
            for _, script, packed, compressed in self._remembered
        ]
        returned = "SET", self.key("returned"), 1, "PX", int(RETURNING * 1000)  # all others may do so first
        self._send([self.script("open", self.id, FORMAT), returned, *remembered])
        self._back_at = self._clock.monotonic()

    @property
    def is_back(self) -> bool:
        """Return whether the server was restarted a moment ago, so that it may not have heard of all that live."""
        return self._clock.monotonic() < self._back_at + RETURNING + BEAT

    @understood
    def check(self) -> None:
        """Raise StoreGone if the project was deleted, or has been made again since."""
        found = (self.command("GET", self.key("id")) or b"").decode(errors="replace")
        if found != self.id:
            raise self._gone(found)

    def _gone(self, found: str) -> StoreGone:
        """Return what to raise where there is another id, or none, in place of the store's."""
        problem = f"there is another store now at {self.display_url}" if found else f"{self.display_url} was deleted"
        return StoreGone(f"{problem}; connect again: %jug_store URL")

    def close(self) -> None:
        self._disconnect()


def number_of(entry: bytes) -> tuple[int, int]:
    """Return the id of an entry as numbers, in the order of the log; that of `NOTHING` if it isn't one."""
    milliseconds, _, more = entry.partition(b"-") if type(entry) is bytes else (b"", b"", b"")
    return (
        (int(milliseconds), int(more)) if _DIGITS.fullmatch(milliseconds + more) and milliseconds and more else (0, 0)
    )


_DIGITS = re.compile(rb"[0-9]{1,40}")


def _described(info: bytes | Refusal) -> dict[str, str]:
    """Return what a server says of itself; nothing where this user may not ask."""
    lines = [] if isinstance(info, Refusal) else info.decode(errors="replace").splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _notes(info: Mapping[str, str], display_url: str) -> tuple[str, ...]:
    """Return, from the server's own description, which of its settings can lose data."""
    notes = []
    if info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy", "noeviction") != "noeviction":
        notes.append(
            f"the server of {display_url} drops data when it is full "
            f"({info['maxmemory_policy']}); set maxmemory-policy noeviction"
        )
    if info.get("aof_enabled") == "0":
        notes.append(
            f"the server of {display_url} keeps no append-only file, so a crash loses what was stored since "
            "its last snapshot; set appendonly yes"
        )
    return tuple(notes)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return unquote(text)[:300] or type(error).__name__
