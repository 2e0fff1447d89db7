"""The connection to a Redis server: pipelines of commands, reconnecting, and repeating writes that the server lost.

Steps that must be atomic are scripts, files in ``lua/``; their first lines say what they take and return. When a
connection breaks while commands may have run, they are run again, so each is safe to run twice.
"""

from __future__ import annotations

import functools
import os
import secrets
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeAlias
from urllib.parse import unquote

from jug_notebook.clock import Clock
from jug_notebook.errors import StoreError, StoreGone, Unreachable
from jug_notebook.store.redis.wire import Place, Refusal, Wire

FORMAT = "2"
PATIENCE = 30.0  #: seconds to wait for an unreachable server
BRIEF = 1.0  #: the same, after waiting for it has failed once
LOADING = 600.0  #: seconds to wait for a server that is loading its data from disk
PAUSE, LONGEST = 0.02, 0.5  #: seconds before the second attempt to reach it, and at most
KEPT = 10.0  #: seconds for which writes are remembered, in case the server loses them
KEPT_BYTES = 64 << 20
NOTHING = b"0-0"  #: before the first entry of the log


@functools.cache
def _script(name: str) -> str:
    """Return a script's text."""
    return (resources.files("jug_notebook.store.redis") / "lua" / f"{name}.lua").read_text()


Command: TypeAlias = tuple[Any, ...]
_FOR_NOW = ("BUSY ", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "ERR max number of clients")


class Connection:
    """The commands of one project to its server. Several threads may use it at once."""

    def __init__(self, place: Place, clock: Clock, make: bool = True) -> None:
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
        self._remembered: deque[tuple[float, int, Command]] = deque()
        self._remembered_bytes = 0
        self._lock = threading.RLock()
        self._unverified = False  # a new connection: the server may have restarted or lost data
        self._verifier: threading.Thread | None = None  # the thread that is checking that
        self._run_id = ""  # of the server's process; empty where it doesn't tell
        self._unreachable = False  # waiting for it has failed
        self.id = ""  #: of the store; empty where there is none and ``make`` is false
        if make or self.command("EXISTS", self.key("id")):
            self._open()

    def _open(self) -> None:
        """Find the store, or make it. A server that can't be reached now is not waited for."""
        found, info = self.pipeline([self.script("open", secrets.token_hex(16), FORMAT), ("INFO", "everything")])
        described = _described(info)
        id, format = (part.decode() for part in found)
        if format != FORMAT:
            older = format.isdigit() and int(format) < int(FORMAT)
            way = "give another project, as in ?project=NAME" if older else "pip install -U jug-notebook"
            raise StoreError(
                f"{self.display_url} has format {format}, made by {'an earlier' if older else 'a newer'} jug_notebook; "
                f"this one reads format {FORMAT}: {way}"
            )
        self.id = id
        self._run_id = described.get("run_id", "")
        self.notes = _notes(described, self.display_url)
        self._unverified = False

    # -- running commands ----------------------------------------------------------------------------------------------

    def command(self, *command: Any) -> Any:
        """Run a command. Raises StoreError where the server can't be reached in time."""
        return self.pipeline([command])[0]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script."""
        return self.pipeline([self.script(script, *arguments)])[0]

    def script(self, name: str, *arguments: Any) -> Command:
        """Return the command that runs a script. They are so short that the server need not remember them."""
        return ("EVAL", _script(name), 1, self._prefix, *arguments)

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

        A server that was never reached is not waited for; one that could not be reached the last time, only briefly.
        """
        patience = 0.0 if not self.id else BRIEF if self._unreachable else PATIENCE
        began, pause = 0.0, PAUSE
        while True:
            try:
                reply = send()
                self._unreachable = False
                return reply
            except OSError as error:
                self._disconnect()
                if "CERTIFICATE_VERIFY_FAILED" in str(error) or "WRONG_VERSION_NUMBER" in str(error):
                    patience = 0.0
                limit, problem = patience, f"can't be reached: {_one_line(error)}"
            except Refusal as error:
                text = _one_line(error)
                if text.startswith("GONE"):
                    raise self._gone(text[5:]) from None
                if text.startswith("LOADING"):
                    limit, problem = max(patience, LOADING), f"is still loading its data: {text}"
                elif text.startswith(_FOR_NOW):
                    limit, problem = patience, f"refuses commands for now: {text}"
                else:
                    raise self._refused(text) from None
                self._disconnect()
            now = self._clock.monotonic()
            began = began or now
            if now - began >= limit:
                self._unreachable = True
                raise Unreachable(f"the server of {self.display_url} {problem}; start it again, or give another store")
            self._clock.sleep(pause)
            pause = min(LONGEST, 2 * pause)

    def _disconnect(self) -> None:
        """Close all idle connections."""
        free, self._free = self._free, []
        waiting, self._waiting = self._waiting, []
        for wire in (*free, *waiting):
            wire.close()

    def _refused(self, text: str) -> StoreError:
        if "maxmemory" in text:
            return StoreError(
                f"the server of {self.display_url} is full: raise its maxmemory, or run %jug_cleanup ({text})"
            )
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
        size = 200 + sum(len(part) for part in command if isinstance(part, bytes))
        now = self._clock.monotonic()
        with self._lock:
            self._remembered.append((now, size, command))
            self._remembered_bytes += size
            while self._remembered and (self._remembered[0][0] < now - KEPT or self._remembered_bytes > KEPT_BYTES):
                self._remembered_bytes -= self._remembered.popleft()[1]

    def _verify_server(self) -> None:
        """After reconnecting, check that the server has lost nothing; if it has, repeat the remembered writes.

        A server that crashed or was replaced by its replica has lost the end of what it had, never parts in between.
        """
        with self._lock:
            if not self._unverified:
                return
            self._verifier = threading.current_thread()
            try:
                while self._lost_something():
                    self.losses += 1
                    self.seen = NOTHING
                    self._send([self.script("open", self.id, FORMAT), *(command for _, _, command in self._remembered)])
                self._unverified = False
            finally:
                self._verifier = None

    def _lost_something(self) -> bool:
        """Return True if the server has restarted since the last time, and not with all that was seen of the log."""
        log = self.key("log")
        id, seen, info = self._send(
            [("GET", self.key("id")), ("XRANGE", log, self.seen, self.seen, "COUNT", 1), ("INFO", "server")]
        )
        before, self._run_id = self._run_id, _described(info).get("run_id", "")
        same = bool(before) and before == self._run_id
        if (id or b"").decode() != self.id and (id or same):
            self._unverified = False
            raise self._gone((id or b"").decode())
        return not id or not (same or seen or self.seen == NOTHING)

    def check(self) -> None:
        """Raise StoreGone if the project was deleted, or has been made again since."""
        found = (self.command("GET", self.key("id")) or b"").decode()
        if found != self.id:
            raise self._gone(found)

    def _gone(self, found: str) -> StoreGone:
        """Return what to raise where there is another id, or none, in place of the store's."""
        problem = f"there is another store now at {self.display_url}" if found else f"{self.display_url} was deleted"
        return StoreGone(f"{problem}; connect again: %jug_store URL")

    def close(self) -> None:
        self._disconnect()


def number_of(entry: bytes) -> tuple[int, int]:
    """Return the id of an entry as numbers, in the order of the log."""
    milliseconds, _, more = entry.partition(b"-")
    return int(milliseconds), int(more)


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
