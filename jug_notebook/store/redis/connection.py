"""A line to a Redis server: scripts run by name, connections that come back, and facts told again that it lost.

Every verb is one Lua script, a file in ``lua/``; its first lines say what it takes and gives. A script that was perhaps
run when the connection broke is run again, so each is written to do no harm when it is run twice.
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
from jug_notebook.errors import StoreError, Unreachable
from jug_notebook.store import HIDDEN

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

FORMAT = "1"
PATIENCE = 30.0  #: seconds for which an unreachable server is waited for
BRIEF = 1.0  #: the same, once that was in vain
LOADING = 600.0  #: and one that reads its data from disk
PAUSE, LONGEST = 0.02, 0.5  #: seconds before the second attempt to reach it, and at most
TIMEOUT = 60.0  #: seconds within which it must answer
KEPT = 10.0  #: seconds for which what was told is kept, in case that the server loses it
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
        shown = f"unix://{named}{parts.path}?{urlencode({'db': database}) + '&' if database else ''}project={project}"
    else:
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
        path = f"{f':{port}' if port else ''}{f'/{database}' if database else ''}"
        shown = f"{scheme}://{named}{host}{path}?project={project}"
    if database and not database.isdigit():
        raise StoreError(f"{shown}: {database!r} is no number of a database; give one, as in redis://host:6379/0")
    server = f"{scheme}://{parts.netloc}{parts.path}"
    url = f"{server}?{urlencode({**options, 'project': project}, quote_via=quote, safe='/')}"
    if options:
        server += f"?{urlencode(options, quote_via=quote, safe='/')}"
    return Place(url, shown, server, project)


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
    """A script's text, with the parts that it comes after, and its name among the server's."""
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


class _Told(NamedTuple):
    """A fact that the server took in."""

    at: float
    size: int
    script: str
    arguments: tuple[Any, ...]


class Link:
    """Runs scripts of one project on its server. For several threads, each with a connection while it needs one."""

    def __init__(self, where: Place, clock: Clock, make: bool = True) -> None:
        self.where = where
        self.display_url = where.display_url
        self.notes: tuple[str, ...] = ()
        self.version = 0  #: the highest that was seen
        self.renewed = 0  #: how often the server was found to be another, or to have lost something
        self._clock = clock
        self._prefix = f"jug:{{{where.project}}}:"
        self._pool = self._connections()
        self._free: list[Any] = []
        self._pid = os.getpid()
        self._told: deque[_Told] = deque()
        self._told_bytes = 0
        self._lock = threading.RLock()
        self._unsure = False  # is it still the server that it was?
        self._sure: threading.Thread | None = None  # who is finding that out
        self._run_id = ""
        self._gone = False  # was it waited for in vain?
        self.id = ""  #: of the store; empty where there is none, and none was to be made
        if make or self.do("EXISTS", self.key("id")):
            self._open()

    def _connections(self) -> ConnectionPool:
        try:
            import redis
        except ImportError:
            raise StoreError(f"{self.display_url} needs redis-py: pip install 'jug-notebook[redis]'") from None
        try:
            return redis.ConnectionPool.from_url(
                self.where.server, socket_timeout=TIMEOUT, socket_connect_timeout=10.0, protocol=2
            )
        except (ValueError, TypeError) as error:
            raise StoreError(f"{self.display_url} can't be used: {error}") from None

    def _open(self) -> None:
        """Find the store, or make it. Whoever isn't there now is not waited for."""
        self._attempts(self._ask_about_server)
        found = self._attempts(functools.partial(self._evaluate, "open", (secrets.token_hex(16), FORMAT)))
        id, format, version = (part.decode() for part in found)
        if not format.isdigit() or int(format) > int(FORMAT):
            raise StoreError(
                f"{self.display_url} has format {format}, made by a newer jug_notebook; this one reads "
                f"format {FORMAT}: pip install -U jug-notebook"
            )
        self.id, self.version = id, int(version)
        self._unsure = False

    # -- asking ------------------------------------------------------------------------------------------------------

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script, whatever it takes to reach the server. Raises StoreError where that takes too long."""
        return self._attempts(functools.partial(self._evaluate, script, arguments))

    def change(self, script: str, *arguments: Any) -> Any:
        """Run a script that answers version and more to follow, and let all of that follow."""
        reply = self.run(script, *arguments)
        self._saw(reply)
        more = reply[1]
        while more:
            _, more = self.run("flow")
        return reply

    def ask(self, script: str, *arguments: Any) -> Any:
        """Run a script that looks; again, where it came before all had followed from what had changed."""
        while (reply := self.change(script, *arguments))[1]:
            pass
        return reply

    def do(self, *command: Any) -> Any:
        """A plain command; ``{}`` stands for what is before every key of the project."""
        return self._attempts(functools.partial(self._send, command))

    def key(self, name: str) -> str:
        """The server's name of a key of this project."""
        return self._prefix + name

    def wait(self, waiter: str, timeout: float) -> None:
        """Sleep until woken."""
        self.do("BLPOP", self.key(f"w:{waiter}"), f"{max(timeout, 0.001):.3f}")

    def _saw(self, reply: Sequence[Any]) -> None:
        if reply[0] > self.version:
            self.version = reply[0]

    def _evaluate(self, script: str, arguments: Sequence[Any]) -> Any:
        from redis.exceptions import NoScriptError

        text, name = _script(script)
        try:
            return self._send(("EVALSHA", name, 1, self._prefix, *arguments))
        except NoScriptError:
            return self._send(("EVAL", text, 1, self._prefix, *arguments))

    def _send(self, command: Sequence[Any]) -> Any:
        connection = self._connection()
        try:
            connection.send_command(*command)
            reply = connection.read_response()
        except BaseException as error:
            from redis.exceptions import ResponseError

            if isinstance(error, ResponseError):
                self._free.append(connection)  # it was answered: the line is fine
            else:
                connection.disconnect()
            raise
        self._free.append(connection)
        return reply

    def _connection(self) -> Any:
        if self._pid != os.getpid():  # of the process that we were forked from
            self._pid, self._free = os.getpid(), []
        if self._unsure and self.id and self._sure is not threading.current_thread():
            self._make_sure()
        try:
            return self._free.pop()
        except IndexError:
            pass
        try:
            connection = self._pool.make_connection()
        except TypeError as error:  # it is made only now, from the options in the URL
            raise StoreError(f"{self.display_url} can't be used: {error}") from None
        connection.connect()  # type: ignore[no-untyped-call]
        if self._sure is threading.current_thread():
            return connection
        self._free.append(connection)
        self._unsure = True
        return self._connection()

    # -- reaching it -------------------------------------------------------------------------------------------------

    def _attempts(self, send: Any) -> Any:
        """Send until it is answered. Raises StoreError that says what stands in the way.

        A server that was never reached is not waited for, and one that was waited for in vain not so long again.
        """
        import redis.exceptions as wrong

        patience = 0.0 if not self.id else BRIEF if self._gone else PATIENCE
        began, pause = 0.0, PAUSE
        while True:
            try:
                reply = send()
                self._gone = False
                return reply
            except (wrong.AuthenticationError, wrong.AuthorizationError, wrong.NoPermissionError) as error:
                raise self._refused(error) from None
            except wrong.BusyLoadingError as error:
                self._drop()
                limit, said = max(patience, LOADING), f"is still loading its data: {error}"
            except (wrong.ConnectionError, wrong.TimeoutError, wrong.ReadOnlyError, OSError) as error:
                self._drop()
                if "CERTIFICATE_VERIFY_FAILED" in str(error) or "WRONG_VERSION_NUMBER" in str(error):
                    patience = 0.0
                limit, said = patience, f"can't be reached: {_in_a_line(error)}"
            except wrong.ResponseError as error:
                text = _in_a_line(error)
                if text.startswith(("BUSY ", "TRYAGAIN", "MASTERDOWN")):
                    self._drop()
                    limit, said = patience, f"doesn't do what it is asked: {text}"
                else:
                    raise self._refused(error) from None
            now = self._clock.monotonic()
            began = began or now
            if now - began >= limit:
                self._gone = True
                raise Unreachable(f"the server of {self.display_url} {said}; start it again, or give another store")
            self._clock.sleep(pause)
            pause = min(LONGEST, 2 * pause)

    def _drop(self) -> None:
        """The connections that we have are to the server that was."""
        free, self._free = self._free, []
        for connection in free:
            connection.disconnect()

    def _refused(self, error: Exception) -> StoreError:
        from redis.exceptions import NoPermissionError

        text = _in_a_line(error)
        if "maxmemory" in text:
            return StoreError(
                f"the server of {self.display_url} is full: raise its maxmemory, or %jug_cleanup ({text})"
            )
        if isinstance(error, NoPermissionError) or "no permissions" in text:
            return StoreError(
                f"the server of {self.display_url} refuses: {text}; the user's ACL must allow ~{self._prefix}* "
                "+@read +@write +@scripting +@connection +time +info"
            )
        if "AUTH" in text.upper() or "WRONGPASS" in text or "password" in text:
            return StoreError(f"the server of {self.display_url} doesn't know this user or password: {text}")
        return StoreError(f"the server of {self.display_url} refuses: {text}")

    # -- a server that lost something ---------------------------------------------------------------------------------

    def tell(self, script: str, *arguments: Any) -> None:
        """Keep for a while what the server was told just now, so that it can be told again."""
        size = 200 + sum(len(a) for a in arguments if isinstance(a, bytes))
        now = self._clock.monotonic()
        with self._lock:
            self._told.append(_Told(now, size, script, arguments))
            self._told_bytes += size
            while self._told and (self._told[0].at < now - KEPT or self._told_bytes > KEPT_BYTES):
                self._told_bytes -= self._told.popleft().size

    def _make_sure(self) -> None:
        """There is a new connection: is it still the server, with all that it had been told? If not, tell it again."""
        with self._lock:
            if not self._unsure:
                return
            self._sure = threading.current_thread()
            try:
                told = False
                while True:
                    before, seen = self._run_id, self.version
                    known = self._ask_about_server()
                    version = int(self._send(("GET", self.key("ver"))) or 0)
                    if (before == self._run_id and version >= seen) or (told and not known):
                        break
                    self._tell_again(version)  # and look again: it may have gone once more meanwhile
                    told = True
                self._unsure = False
            finally:
                self._sure = None

    def _tell_again(self, version: int) -> None:
        self.renewed += 1
        self.version = version
        id, _, _ = self._evaluate("open", (self.id, FORMAT))
        if id.decode() != self.id:
            raise StoreError(f"there is another store now at {self.display_url}; connect again: %jug_store")
        for told in list(self._told):
            (self.run if told.script == "put" else self.change)(told.script, *told.arguments)

    def _ask_about_server(self) -> bool:
        """Who is it, and does it keep what it is given? False where we may not know."""
        from redis.exceptions import NoPermissionError

        try:
            reply = self._send(("INFO", "everything"))
        except NoPermissionError:
            self._run_id = secrets.token_hex(8)  # we may not ask, so we can't know: as if it were another
            return False
        lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
        said = {name: value for name, _, value in lines}
        self._run_id = said.get("run_id", "") or said.get("server_run_id", "")
        notes = []
        if said.get("maxmemory", "0") != "0" and said.get("maxmemory_policy", "noeviction") != "noeviction":
            notes.append(
                f"the server of {self.display_url} drops what it was given when it is full "
                f"({said['maxmemory_policy']}); set maxmemory-policy noeviction"
            )
        if said.get("aof_enabled") == "0":
            notes.append(
                f"the server of {self.display_url} keeps no append-only file, so a crash of it loses what was stored "
                "since its last snapshot; set appendonly yes"
            )
        self.notes = tuple(notes)
        return True

    def close(self) -> None:
        self._drop()


_waiters = itertools.count()


def new_waiter() -> str:
    """A name to be woken by."""
    return f"{os.getpid()}-{secrets.token_hex(4)}-{next(_waiters)}"


def packed(value: Any) -> bytes:
    """As a script's ``unpacked`` reads it."""
    return msgspec.msgpack.encode(value)


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return unquote(text)[:300] or type(error).__name__
