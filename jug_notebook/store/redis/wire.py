"""Where a Redis server is, and one connection to it: commands out, replies in, in the protocol RESP 2."""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from jug_notebook.errors import StoreError
from jug_notebook.store import HIDDEN

CONNECTING = 10.0  #: seconds within which a server must accept a connection
TIMEOUT = 60.0  #: seconds within which it must reply
BUFFER = 1 << 18
LONGEST_LINE = 1 << 16  #: bytes of a reply's line
LARGEST, MOST, DEEPEST = 1 << 29, 1 << 24, 8  #: bytes of a string in a reply (the server's own limit), items, levels
PIECE = 1 << 24  #: bytes of a string that are read at once: what is declared need not come

_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_OPTIONS = ("username", "password", "db", *_FILES, "ssl_cert_reqs", "ssl_check_hostname")


class Place(NamedTuple):
    """Where a store is: a server and a project in it."""

    url: str  #: with everything in it, absolute
    display_url: str  #: for people, without a password
    project: str
    host: str  #: empty where it is reached through a socket
    port: int
    socket: str  #: the path of that socket
    options: dict[str, str]  #: username, password, db, those of TLS
    tls: bool

    @property
    def where(self) -> str:
        """Return the host and port, or the path of the socket."""
        return self.socket or f"{self.host}:{self.port}"


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
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise StoreError(f"{display_url} can't be used: there is no option {min(unknown)!r}; use {', '.join(_OPTIONS)}")
    url = (
        f"{scheme}://{parts.netloc}{parts.path}?{urlencode({**options, 'project': project}, quote_via=quote, safe='/')}"
    )
    for name, value in (("username", parts.username), ("password", parts.password), ("db", database)):
        if value:
            options[name] = unquote(value)
    host, path = ("", unquote(parts.path)) if scheme == "unix" else (parts.hostname or "localhost", "")
    return Place(url, display_url, project, host, port or 6379, path, options, scheme == "rediss")


_EXAMPLE = (
    "give host, port and database, as in redis://localhost:6379/0?project=study",
    "give the path of a socket, as in unix:///run/redis.sock?project=study",
)


_NUMBER = re.compile(rb".-?[0-9]{1,19}\r\n")
LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1")
_warned: set[str] = set()  #: hosts of which a warning has told


def warn_of_plain_text(place: Place) -> None:
    """Warn, once for each host, that what goes to a server on another host can be read and changed on the way."""
    if place.tls or place.socket or LOOPBACK.fullmatch(place.host) or place.host in _warned:
        return
    _warned.add(place.host)
    text = f"the connection to {place.where} is not encrypted: use rediss:// or an ssh tunnel"
    warnings.warn(text, stacklevel=2)


class Refusal(Exception):
    """An error that the server replied."""


class Wire:
    """One connection to a server. Raises OSError where it breaks, and Refusal where the server takes no such user."""

    def __init__(self, place: Place) -> None:
        warn_of_plain_text(place)
        if place.socket:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(CONNECTING)
            self._socket.connect(place.socket)
        else:
            self._socket = socket.create_connection((place.host, place.port), CONNECTING)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if place.tls:
            self._socket = _encrypted(self._socket, place)
        self._socket.settimeout(TIMEOUT)
        self._file = self._socket.makefile("rb", BUFFER)
        password, database = place.options.get("password"), place.options.get("db")
        begin: list[tuple[Any, ...]] = []
        if password:
            user = place.options.get("username")
            begin.append(("AUTH", user, password) if user else ("AUTH", password))
        if database:
            begin.append(("SELECT", database))
        try:
            self.send(begin)
            for _ in begin:
                if isinstance(reply := self.receive(), Refusal):
                    raise reply
        except BaseException:
            self.close()
            raise

    def send(self, commands: Iterable[Sequence[Any]]) -> None:
        """Send commands, whose parts are bytes, text or numbers."""
        parts: list[bytes | memoryview] = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            for part in command:
                data = part if isinstance(part, bytes | memoryview) else str(part).encode()
                parts += (b"$%d\r\n" % len(data), data, b"\r\n")
        if parts:
            self._socket.sendall(b"".join(parts))

    def receive(self) -> Any:
        """Return the next reply: bytes, a number, None, a list of those, or a Refusal."""
        return self._reply(DEEPEST)

    def _reply(self, levels: int) -> Any:
        line = self._file.readline(LONGEST_LINE)
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return self._bytes(self._number(line, LARGEST))
        if kind == b"*" and levels:
            count = self._number(line, MOST)
            return None if count < 0 else [self._reply(levels - 1) for _ in range(count)]
        if kind == b":":
            return self._number(line, 1 << 63)
        if kind == b"+":
            return rest
        if kind == b"-":
            return Refusal(rest.decode(errors="replace"))
        raise ConnectionError(
            f"{line[:50]!r} is not a Redis server's reply" if line else "the server closed the connection"
        )

    def _number(self, line: bytes, most: int) -> int:
        if _NUMBER.fullmatch(line) and abs(number := int(line[1:])) <= most:
            return number
        raise ConnectionError(f"{line[:50]!r} is not a Redis server's reply")

    def _bytes(self, size: int) -> bytes | None:
        if size < 0:
            return None
        data: bytes = self._file.read(min(size, PIECE))
        if len(data) < size:
            parts, held = [data], len(data)
            while held < size and parts[-1]:
                parts.append(self._file.read(min(size - held, PIECE)))
                held += len(parts[-1])
            data = b"".join(parts)
        if len(data) < size or len(self._file.read(2)) < 2:
            raise ConnectionError("the server closed the connection")
        return data

    def fileno(self) -> int:
        """Return a descriptor for select; nothing of a reply may have been read so far."""
        return self._socket.fileno()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _encrypted(plain: socket.socket, place: Place) -> socket.socket:
    import ssl

    options = place.options
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    if (
        options.get("ssl_cert_reqs", "required") == "none"
        or options.get("ssl_check_hostname", "true").lower() == "false"
    ):
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required") == "none":
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    try:
        return context.wrap_socket(plain, server_hostname=place.host)
    except OSError as error:
        if not isinstance(error, TimeoutError | ConnectionError) and "WRONG_VERSION_NUMBER" not in str(error):
            raise
        text = f"it doesn't seem to speak TLS: use redis://, or its port for TLS ({error})"
        raise ConnectionError(text) from error
