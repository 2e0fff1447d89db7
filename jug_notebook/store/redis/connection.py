"""The connection to a Redis server: runs scripts by name, reconnects, and repeats writes that the server lost.

Every verb of the store is one Lua script, a file in ``lua/``; its first lines say what it takes and returns. When a
connection breaks while a script may have run, the script is run again, so each is safe to run twice.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from jug_notebook.clock import Clock
from jug_notebook.errors import StoreError, StoreGone, Unreachable
from jug_notebook.store import HIDDEN

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

FORMAT = "1"
PATIENCE = 30.0  #: seconds to wait for an unreachable server
BRIEF = 1.0  #: the same, after waiting for it has failed once
LOADING = 600.0  #: seconds to wait for a server that is loading its data from disk
PAUSE, LONGEST = 0.02, 0.5  #: seconds before the second attempt to reach it, and at most
TIMEOUT = 60.0  #: seconds within which it must reply
KEPT = 10.0  #: seconds for which writes are remembered, in case the server loses them
KEPT_BYTES = 64 << 20

_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


class Place(NamedTuple):
    """Where a store is: a server and a project in it."""

    url: str  #: with everything in it, absolute
    display_url: str  #: for people, without a password
    server: str  #: the URL as redis-py takes it
    project: str


def place(scheme: str, rest: str) -> Place:
    """Read a URL. Raises StoreError where it names no store."""
    try:
        parts = urlsplit(f"{scheme}:{rest}")
        port = parts.port
    except ValueError:
        raise StoreError(f"a URL of kind {scheme}:// can't be read: {_EXAMPLE[scheme == 'unix']}") from None
    if not (parts.path.strip("/") if scheme == "unix" else rest.startswith("//")):
        raise StoreError(f"'{scheme}:{rest[:2]}…' names no server: {_EXAMPLE[scheme == 'unix']}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    project = options.pop("project", "jug")
    if not project or not all(c.isalnum() or c in "._-" for c in project) or len(project) > 100:
        raise StoreError(f"{project[:100]!r} can't name a project; use letters, digits and ._- as in ?project=study")
    for name in _FILES:
        if name in options:
            options[name] = os.path.abspath(os.path.expanduser(options[name]))
    user = parts.username or options.get("username", "")
    secret = parts.password is not None or "password" in options
    named = f"{user}{f':{HIDDEN}' if secret else ''}@" if user or secret else ""
    database = options.get("db", "" if scheme == "unix" else parts.path.strip("/"))
    if scheme == "unix":
        display_url = (
            f"unix://{named}{parts.path}?{urlencode({'db': database}) + '&' if database else ''}project={project}"
        )
    else:
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
        path = f"{f':{port}' if port else ''}{f'/{database}' if database else ''}"
        display_url = f"{scheme}://{named}{host}{path}?project={project}"
    if database and not database.isdigit():
        raise StoreError(f"{display_url}: {database!r} is not a database number; give one, as in redis://host:6379/0")
    server = f"{scheme}://{parts.netloc}{parts.path}"
    url = f"{server}?{urlencode({**options, 'project': project}, quote_via=quote, safe='/')}"
    if options:
        server += f"?{urlencode(options, quote_via=quote, safe='/')}"
    return Place(url, display_url, server, project)


_EXAMPLE = (
    "give host, port and database, as in redis://localhost:6379/0?project=study",
    "give the path of a socket, as in unix:///run/redis.sock?project=study",
)


_CONSTANTS = re.compile(
    r"^local ([A-Z_]+(?:, [A-Z_]+)*) = ((?:'[^']*'|-?[\d.]+)(?:, -?[\d.]+)*) *(?:--.*)?$", re.MULTILINE
)
_WORD = re.compile(r"'[^'\n]*'|--.*|\b[A-Z_]{2,}\b")


@functools.cache
def _script(name: str) -> tuple[bytes, str]:
    """Return a script's text, behind the files that it builds on, and the SHA-1 by which the server knows it."""
    folder = resources.files("jug_notebook.store.redis") / "lua"
    text = (folder / f"{name}.lua").read_text()
    first, _, _ = text.partition("\n")
    before = first.removeprefix("-- after: ").split() if first.startswith("-- after: ") else []
    whole = "\n".join([*((folder / f"{part}.lua").read_text() for part in before), text])
    constants: dict[str, str] = {}
    for names, values in _CONSTANTS.findall(whole):
        constants.update(zip(names.split(", "), values.split(", "), strict=True))
    whole = _WORD.sub(lambda word: constants.get(word[0], word[0]), _CONSTANTS.sub("", whole))
    return whole.encode(), sha1(whole.encode()).hexdigest()


class _Write(NamedTuple):
    """A write that the server has confirmed."""

    at: float
    size: int
    script: str
    arguments: tuple[Any, ...]


class Connection:
    """Runs the scripts of one project on its server. Several threads may use it at once."""

    def __init__(self, place: Place, clock: Clock, make: bool = True) -> None:
        self.place = place
        self.display_url = place.display_url
        self.notes: tuple[str, ...] = ()
        self.version = 0  #: the highest version of the store that was seen
        self.replays = 0  #: how often remembered writes were repeated
        self._clock = clock
        self._prefix = f"jug:{{{place.project}}}:"
        self._pool = self._make_pool()
        self._free: list[Any] = []
        self._pid = os.getpid()
        self._remembered: deque[_Write] = deque()
        self._remembered_bytes = 0
        self._lock = threading.RLock()
        self._unverified = False  # a new connection: the server may have restarted or lost data
        self._verifier: threading.Thread | None = None  # the thread that is checking that
        self._run_id = ""
        self._unreachable = False  # waiting for it has failed
        self.id = ""  #: of the store; empty where there is none and ``make`` is false
        if make or self.command("EXISTS", self.key("id")):
            self._open()

    def _make_pool(self) -> ConnectionPool:
        try:
            import redis
        except ImportError:
            raise StoreError(f"{self.display_url} needs redis-py: pip install 'jug-notebook[redis]'") from None
        try:
            return redis.ConnectionPool.from_url(
                self.place.server, socket_timeout=TIMEOUT, socket_connect_timeout=10.0, protocol=2
            )
        except (ValueError, TypeError) as error:
            raise StoreError(f"{self.display_url} can't be used: {error}") from None

    def _open(self) -> None:
        """Find the store, or make it. A server that can't be reached now is not waited for."""
        self._retry(self._identify_server)
        found = self._retry(functools.partial(self._evaluate, "open", (secrets.token_hex(16), FORMAT)))
        id, format, version = (part.decode() for part in found)
        if not format.isdigit() or int(format) > int(FORMAT):
            raise StoreError(
                f"{self.display_url} has format {format}, made by a newer jug_notebook; this one reads "
                f"format {FORMAT}: pip install -U jug-notebook"
            )
        self.id, self.version = id, int(version)
        self._unverified = False

    # -- running scripts -----------------------------------------------------------------------------------------------

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script, reconnecting as needed. Raises StoreError where the server can't be reached in time."""
        return self._retry(functools.partial(self._evaluate, script, arguments))

    def write(self, script: str, *arguments: Any) -> Any:
        """Run a script that returns (version, more to do, …), then do all that remains to be done after it."""
        reply = self.run(script, *arguments)
        self.version = max(self.version, reply[0])
        more = reply[1]
        while more:
            _, more = self.run("flow")
        return reply

    def read(self, script: str, *arguments: Any) -> Any:
        """Run a script that reads; again, where earlier changes had not been fully applied."""
        while (reply := self.write(script, *arguments))[1]:
            pass
        return reply

    def command(self, *command: Any) -> Any:
        """Run a plain command."""
        return self._retry(functools.partial(self._send, command))

    def key(self, name: str) -> str:
        """Return the full name of a key of this project."""
        return self._prefix + name

    def wait(self, waiter: str, timeout: float) -> None:
        """Sleep until woken."""
        self.command("BLPOP", self.key(f"w:{waiter}"), f"{max(timeout, 0.001):.3f}")

    def _evaluate(self, script: str, arguments: Sequence[Any]) -> Any:
        from redis.exceptions import NoScriptError

        text, name = _script(script)
        try:
            return self._send(("EVALSHA", name, 1, self._prefix, *arguments))
        except NoScriptError:
            return self._send(("EVAL", text, 1, self._prefix, *arguments))

    def _send(self, command: Sequence[Any]) -> Any:
        connection = self._take()
        try:
            connection.send_command(*command)
            reply = connection.read_response()
        except BaseException as error:
            from redis.exceptions import ResponseError

            if isinstance(error, ResponseError):
                self._free.append(connection)  # the server replied: the connection is fine
            else:
                connection.disconnect()
            raise
        self._free.append(connection)
        return reply

    def _take(self) -> Any:
        if self._pid != os.getpid():  # connections of the process that this one was forked from
            self._pid, self._free = os.getpid(), []
        if self._unverified and self.id and self._verifier is not threading.current_thread():
            self._verify_server()
        try:
            return self._free.pop()
        except IndexError:
            pass
        try:
            connection = self._pool.make_connection()
        except TypeError as error:  # only now are the URL's options used
            raise StoreError(f"{self.display_url} can't be used: {error}") from None
        connection.connect()  # type: ignore[no-untyped-call]
        if self._verifier is threading.current_thread():
            return connection
        self._free.append(connection)
        self._unverified = True
        return self._take()

    # -- reaching the server -------------------------------------------------------------------------------------------

    def _retry(self, send: Any) -> Any:
        """Send until there is a reply. Raises StoreError that says what is wrong.

        A server that was never reached is not waited for; one that could not be reached the last time, only briefly.
        """
        import redis.exceptions as wrong

        patience = 0.0 if not self.id else BRIEF if self._unreachable else PATIENCE
        began, pause = 0.0, PAUSE
        while True:
            try:
                reply = send()
                self._unreachable = False
                return reply
            except (wrong.AuthenticationError, wrong.AuthorizationError, wrong.NoPermissionError) as error:
                raise self._refused(error) from None
            except wrong.BusyLoadingError as error:
                self._disconnect()
                limit, problem = max(patience, LOADING), f"is still loading its data: {error}"
            except (wrong.ConnectionError, wrong.TimeoutError, wrong.ReadOnlyError, OSError) as error:
                self._disconnect()
                if "CERTIFICATE_VERIFY_FAILED" in str(error) or "WRONG_VERSION_NUMBER" in str(error):
                    patience = 0.0
                limit, problem = patience, f"can't be reached: {_one_line(error)}"
            except wrong.ResponseError as error:
                text = _one_line(error)
                if text.startswith("GONE"):
                    raise self._gone(text[5:]) from None
                if text.startswith(("BUSY ", "TRYAGAIN", "MASTERDOWN")):
                    self._disconnect()
                    limit, problem = patience, f"refuses commands for now: {text}"
                else:
                    raise self._refused(error) from None
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
        for connection in free:
            connection.disconnect()

    def _refused(self, error: Exception) -> StoreError:
        from redis.exceptions import NoPermissionError

        text = _one_line(error)
        if "maxmemory" in text:
            return StoreError(
                f"the server of {self.display_url} is full: raise its maxmemory, or run %jug_cleanup ({text})"
            )
        if isinstance(error, NoPermissionError) or "no permissions" in text:
            return StoreError(
                f"the server of {self.display_url} refuses: {text}; the user's ACL must allow ~{self._prefix}* "
                "+@read +@write +@scripting +@connection +time +info"
            )
        if "AUTH" in text.upper() or "WRONGPASS" in text or "password" in text:
            return StoreError(f"the server of {self.display_url} doesn't know this user or password: {text}")
        return StoreError(f"the server of {self.display_url} refuses: {text}")

    # -- a server that lost data ---------------------------------------------------------------------------------------

    def remember(self, script: str, *arguments: Any) -> None:
        """Remember a write for a while, to repeat it if the server loses it in a crash."""
        size = 200 + sum(len(a) for a in arguments if isinstance(a, bytes))
        now = self._clock.monotonic()
        with self._lock:
            self._remembered.append(_Write(now, size, script, arguments))
            self._remembered_bytes += size
            while self._remembered and (self._remembered[0].at < now - KEPT or self._remembered_bytes > KEPT_BYTES):
                self._remembered_bytes -= self._remembered.popleft().size

    def _verify_server(self) -> None:
        """After reconnecting, check that the server has lost nothing; if it has, repeat the remembered writes."""
        with self._lock:
            if not self._unverified:
                return
            self._verifier = threading.current_thread()
            try:
                replayed = False
                while True:
                    before, seen = self._run_id, self.version
                    known = self._identify_server()
                    version = int(self._send(("GET", self.key("ver"))) or 0)
                    if (before == self._run_id and version >= seen) or (replayed and not known):
                        break
                    self._replay(version)  # and check again: it may have restarted meanwhile
                    replayed = True
                self._unverified = False
            finally:
                self._verifier = None

    def _replay(self, version: int) -> None:
        self.replays += 1
        self.version = version
        id, _, _ = self._evaluate("open", (self.id, FORMAT))
        if id.decode() != self.id:
            raise self._gone(id.decode())
        for written in list(self._remembered):
            (self.run if written.script == "put" else self.write)(written.script, *written.arguments)

    def check(self) -> None:
        """Raise StoreGone if the project was deleted, or has been made again since."""
        found = (self.command("GET", self.key("id")) or b"").decode()
        if found != self.id:
            raise self._gone(found)

    def _gone(self, found: str) -> StoreGone:
        """Return what to raise where there is another id, or none, in place of the store's."""
        problem = f"there is another store now at {self.display_url}" if found else f"{self.display_url} was deleted"
        return StoreGone(f"{problem}; connect again: %jug_store URL")

    def _identify_server(self) -> bool:
        """Note the server's run id, and settings that can lose data. Return False where INFO is not allowed."""
        from redis.exceptions import NoPermissionError

        try:
            reply = self._send(("INFO", "everything"))
        except NoPermissionError:
            self._run_id = secrets.token_hex(8)  # unknown: treat it as another server
            return False
        lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
        info = {name: value for name, _, value in lines}
        self._run_id = info.get("run_id", "") or info.get("server_run_id", "")
        notes = []
        if info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy", "noeviction") != "noeviction":
            notes.append(
                f"the server of {self.display_url} drops data when it is full "
                f"({info['maxmemory_policy']}); set maxmemory-policy noeviction"
            )
        if info.get("aof_enabled") == "0":
            notes.append(
                f"the server of {self.display_url} keeps no append-only file, so a crash loses what was stored since "
                "its last snapshot; set appendonly yes"
            )
        self.notes = tuple(notes)
        return True

    def close(self) -> None:
        self._disconnect()


_waiters = itertools.count()


def new_waiter() -> str:
    """Return a new name under which to wait and be woken."""
    return f"{os.getpid()}-{secrets.token_hex(4)}-{next(_waiters)}"


def packed(value: Any) -> bytes:
    """Return a value as a script's ``unpacked`` reads it."""
    return msgspec.msgpack.encode(value)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return unquote(text)[:300] or type(error).__name__
