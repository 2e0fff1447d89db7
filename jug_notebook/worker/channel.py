"""How workers use the store: what a worker asks for, its supervisor does.

A supervisor is the only process of its crew on a host that reads a store's events, claims tasks and writes what became
of them. Its workers have a `StoreClient`: they read and write blobs themselves, every other verb of `Store` is a call
over a socket, which the supervisor's `StoreServer` carries out. A call for tasks that finds none waits in the server.

A message is a length (4 bytes) and msgpack, typed by the annotations of `Store`.
"""

from __future__ import annotations

import fcntl
import functools
import inspect
import os
import selectors
import shutil
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

import msgspec
from msgspec import Raw, Struct

from jug_notebook import errors, system
from jug_notebook.clock import Clock
from jug_notebook.errors import JugError, StoreError, StoreGone
from jug_notebook.model import AWAY, Address, Claim, Fits, Lease, Settlement, Target, WorkerId
from jug_notebook.store import Store, atomic, may_pass, reason_of
from jug_notebook.worker.resources import Reservations

CACHE = 8 << 30  #: bytes of blobs that a host keeps in files
WORTH_A_FILE = 1 << 20  #: bytes from which on a blob is kept there
SHORTLY = 0.002  #: seconds in which a worker that got a short task is likely to come back
RETRY = 0.1  #: seconds between two looks for tasks whose time for another attempt may have come
REPLACED = 2.0  #: seconds within which a worker that was replaced has surely been
CHUNK = 1 << 18

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode


class Call(Struct, frozen=True, array_like=True):
    """A verb of the store, and its arguments."""

    verb: str
    arguments: Raw


class Reply(Struct, frozen=True, array_like=True):
    """What a call returned, or the exception that it raised: its class, message, and the system's error number."""

    value: Raw
    error: tuple[str, str, int] | None = None


class _Types(NamedTuple):
    arguments: msgspec.msgpack.Decoder[tuple[Any, ...]]
    result: msgspec.msgpack.Decoder[Any]


@functools.cache
def _types(verb: str) -> _Types:
    hints = get_type_hints(getattr(Store, verb))
    for name in ("fits", "look"):  # of `claim`: what there is for a worker only its supervisor knows
        hints.pop(name, None)
    result = hints.pop("return")
    return _Types(msgspec.msgpack.Decoder(tuple[tuple(hints.values())]), msgspec.msgpack.Decoder(result))  # type: ignore[misc]


_call = msgspec.msgpack.Decoder(Call).decode
_reply = msgspec.msgpack.Decoder(Reply).decode
_NONE = Raw(_encode(None))


def framed(message: Any) -> bytes:
    """Return a message as it is sent."""
    data = _encode(message)
    return _LENGTH.pack(len(data)) + data


def take_frames(received: bytearray) -> list[bytes]:
    """Remove the whole messages from what was received, and return them."""
    found, at = [], 0
    while len(received) - at >= _LENGTH.size:
        end = at + _LENGTH.size + int(_LENGTH.unpack_from(received, at)[0])
        if end > len(received):
            break
        found.append(bytes(received[at + _LENGTH.size : end]))
        at = end
    del received[:at]
    return found


# -- the worker's end --------------------------------------------------------------------------------------------------


class StoreClient:
    """The store as a worker sees it. Safe to use from several threads: one call at a time."""

    def __init__(self, blobs: Store, line: socket.socket, cache: BlobCache | None = None) -> None:
        self._blobs = blobs
        self._line = line
        self._received = bytearray()
        self._lock = threading.Lock()
        self.id, self.url, self.display_url = blobs.id, blobs.url, blobs.display_url
        self.bodies_apart = blobs.bodies_apart
        self.put_blob: Callable[[Iterable[bytes | memoryview]], Address] = blobs.put_blob
        self._cache = cache
        self.scratch = blobs.scratch

    def get_blob(self, address: Address, mapped: bool = False) -> memoryview:
        if mapped and self._cache is not None:
            return self._cache.map(address)
        return self._blobs.get_blob(address, mapped)

    def claim(
        self,
        worker: WorkerId,
        limit: int,
        wait: float,
        settled: Sequence[Settlement] = (),
        target: Target | None = None,
        python: str = "",
        chains: bool = False,
        begun: Lease | None = None,
    ) -> list[Claim]:
        claims: list[Claim] = self._ask("claim", (worker, limit, wait, settled, target, python, chains, begun))
        return claims

    def release(self, leases: Sequence[Lease]) -> None:
        self._ask("release", (leases,))

    def close(self) -> None:
        self._line.close()
        self._blobs.close()

    def __getattr__(self, verb: str) -> Any:
        if verb.startswith("_") or not hasattr(Store, verb):
            raise AttributeError(verb)
        signature = inspect.signature(getattr(Store, verb))

        def remote(*args: Any, **named: Any) -> Any:
            bound = signature.bind(self, *args, **named)
            bound.apply_defaults()
            return self._ask(verb, bound.args[1:])

        return remote

    def _ask(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            try:
                self._line.sendall(framed((verb, arguments)))
                while not (frames := take_frames(self._received)):
                    data = self._line.recv(CHUNK)
                    if not data:
                        raise StoreGone("this worker's supervisor has ended")
                    self._received += data
            except OSError as error:
                raise StoreGone(f"this worker's supervisor can't be reached: {error.strerror}") from error
        reply = _reply(frames[0])
        if reply.error is not None:
            raise _restored(*reply.error)
        return _types(verb).result.decode(reply.value)


def connected(blobs: Store, line: socket.socket, folder: Path | None = None) -> Store:
    """Return the store for a worker, whose supervisor is at the other end of ``line``. ``blobs``: its own access.

    A ``folder`` of this host keeps the large blobs that come over the network, for all workers of the supervisor.
    """
    cache = None if folder is None or blobs.maps else BlobCache(folder, functools.partial(blobs.get_blob, mapped=True))
    return cast(Store, StoreClient(blobs, line, cache))


class BlobCache:
    """Large blobs that came over the network, in files that all workers of a supervisor map: each comes once."""

    def __init__(self, folder: Path, fetch: Callable[[Address], memoryview]) -> None:
        self._folder = folder
        self._fetch = fetch

    def map(self, address: Address) -> memoryview:
        """Return the bytes, fetched and verified by the first who asks; the others wait for it. Raises ValueLost."""
        path = self._folder / address
        with suppress(FileNotFoundError):
            return _mapped(path)
        with (self._folder / f".{address}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                return _mapped(path)
            data = self._fetch(address)
            if data.nbytes < WORTH_A_FILE:
                return data
            try:
                self._make_room(data.nbytes)
                atomic.replace(path, data)
            except OSError:  # there is no room
                return data
        return _mapped(path)

    def _make_room(self, size: int) -> None:
        """Remove those that were fetched first; who has mapped one keeps it."""
        held = sorted(
            (path for path in self._folder.iterdir() if path.name[0] != "."), key=lambda path: path.stat().st_mtime
        )
        total = sum(path.stat().st_size for path in held)
        while held and total + size > min(CACHE, shutil.disk_usage(self._folder).free // 2 + total):
            total -= held[0].stat().st_size
            held.pop(0).unlink()


def _mapped(path: Path) -> memoryview:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return memoryview(system.private_map(fd))
    finally:
        os.close(fd)


def _restored(kind: str, message: str, number: int) -> BaseException:
    error = getattr(errors, kind)(message)
    if number:
        error.__cause__ = OSError(number, os.strerror(number))
    return cast(BaseException, error)


# -- the supervisor's end ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Connection:
    """A worker's line, with what came in and what is to go out."""

    line: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    until: float = 0.0  #: while its call for tasks waits: until when
    request: tuple[Any, ...] = ()  #: that call's arguments
    fits: Fits = field(init=False)


class StoreServer:
    """Carries out the calls of one supervisor's workers, in its thread: `wait` does so while there is nothing else."""

    def __init__(self, store: Store, clock: Clock, reservations: Reservations | None = None) -> None:
        self._store = store
        self.reservations = reservations or Reservations({})
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}  #: by descriptor
        self._waiting: deque[_Connection] = deque()  #: for tasks
        self._seen = -1  #: version of the store when tasks were last looked for
        self._looked = 0.0
        self._replaced = 0.0  #: until when a new worker may come in the place of one that was outworn
        self._shared = 0.0  #: when what is free was last shared with other supervisors
        self.note = ""  #: why the store can't be used for now, in a line
        self._fresh = False  #: was a claim just carried out, with a look at the store?
        self._unwritten = False  #: may the store not have written yet what workers got?
        self._outworn: list[int] = []  #: descriptors of idle workers in whose place new ones would get tasks

    def info(self, note: str) -> dict[str, Any]:
        """Return what a supervisor's heartbeat tells of it. Its ``note`` gives way to what workers wait for now."""
        return {"note": self.note or note, "resources": self.reservations.usage()}

    def listen(self, descriptor: int) -> None:
        """Have `wait` return when this descriptor is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def ignore(self, descriptor: int) -> None:
        """Undo `listen`."""
        self._selector.unregister(descriptor)

    def connect(self) -> tuple[socket.socket, int]:
        """Return the worker's end of a new connection, and the descriptor of ours."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._connections[ours.fileno()] = connection = _Connection(ours)
        connection.fits = functools.partial(self.reservations.fits, ours.fileno())
        self._selector.register(ours, selectors.EVENT_READ)
        return theirs, ours.fileno()

    @property
    def descriptors(self) -> list[int]:
        """What a forked process must close."""
        own = self._selector.get_map() is not None  # else it is closed
        return [*([self._selector.fileno()] if own else ()), *self._connections]

    def disconnect(self, descriptor: int) -> None:
        """Carry out what a worker that has ended still asked for, but claim nothing for it: others get what it held."""
        connection = self._connections.pop(descriptor, None)
        if connection is None:  # it was disconnected when its end could not be reported
            return
        if connection in self._waiting:
            self._waiting.remove(connection)
        with suppress(KeyError):  # it was, when the line ended
            self._selector.unregister(connection.line)
        with suppress(OSError):
            while data := connection.line.recv(CHUNK):
                connection.received += data
        for frame in take_frames(connection.received):
            call = _call(frame)
            if call.verb != "claim":
                self._result(call)
            elif (request := _types("claim").arguments.decode(call.arguments))[3]:
                with suppress(StoreError):
                    self._store.claim(request[0], 0, 0.0, request[3])
        connection.line.close()
        if self.reservations.forget(descriptor) and self._waiting:
            with self._patience():
                self._hand_out()

    def close(self) -> None:
        self._waiting.clear()
        for descriptor in list(self._connections):
            self.disconnect(descriptor)
        self._selector.close()

    def wait(self, timeout: float) -> list[int]:
        """Carry out calls until a descriptor of `listen` is readable or ``timeout`` seconds are over; return those.

        Return also when there are workers to be replaced: see `take_outworn`.

        A store that is away or full for now is waited for. Raises StoreGone.
        """
        until = self._clock.monotonic() + timeout
        while True:
            left = max(0.0, until - self._clock.monotonic())
            events = self._selector.select(min(left, SHORTLY)) if self._fresh or self._unwritten else []
            self._fresh = False
            if self._waiting and not events:
                with self._patience():
                    pause = RETRY if self._store.pause is None else min(RETRY, max(SHORTLY, self._store.pause))
                    if pause < RETRY:
                        left = max(0.0, min(left, self._looked + pause - self._clock.monotonic()))
                    before, self._seen = self._seen, self._store.watch(self._seen, left, self._selector.fileno())
                    if self._seen != before or self._clock.monotonic() - self._looked >= pause:
                        self._hand_out()
                    left = 0.0
                self._fresh = False
            elif self._unwritten and not events:  # all are busy for longer: now others learn what they got
                with self._patience():
                    self._store.watch(self._seen, 0.0)
                    self._unwritten = False
            ready = self._carry_out(events or self._selector.select(left))
            if self._waiting and self._fresh:  # what others settled may have made tasks ready
                with self._patience():
                    self._hand_out()
            if ready or self._outworn or self._clock.monotonic() >= until:
                return ready

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Leave it for later where the store is away for now: the workers wait for it."""
        try:
            yield
        except StoreError as error:
            if not may_pass(error):
                raise
            self._seen, self.note = -1, f"{AWAY}: {reason_of(error)}"
        else:
            self.note = ""

    def _carry_out(self, events: Sequence[tuple[selectors.SelectorKey, int]]) -> list[int]:
        """Carry out what workers ask for; return the other descriptors that are readable."""
        ready = []
        for key, event in events:
            connection = self._connections.get(key.fd)
            if connection is None:
                ready.append(key.fd)
                continue
            if event & selectors.EVENT_WRITE:
                self._send(connection)
            if event & selectors.EVENT_READ:
                self._receive(connection)
        return ready

    def take_outworn(self) -> list[int]:
        """Return the descriptors of idle workers that should end: new ones could run tasks that these can't."""
        found, self._outworn = self._outworn, []
        return found

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.line.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # it has ended, and is reaped soon
            with suppress(KeyError):
                self._selector.unregister(connection.line)
            return
        connection.received += data
        for frame in take_frames(connection.received):
            self._serve(connection, _call(frame))

    def _serve(self, connection: _Connection, call: Call) -> None:
        if call.verb != "claim":
            self._send(connection, framed(self._result(call)))
            return
        request = _types("claim").arguments.decode(call.arguments)
        worker, limit, wait, settled, target, python, chains, begun = request
        if limit > 0:  # it has run all it had
            self.reservations.release(connection.line.fileno())
            if not self.reservations.bound(connection.line.fileno()):
                self._replaced = 0.0
        try:
            reply = self._claimed(connection, worker, limit, settled, target, python, chains, begun)
        except JugError as error:
            passes = isinstance(error, StoreError) and may_pass(error)
            if passes:
                self.note = f"{AWAY}: {reason_of(cast(StoreError, error))}"
            reply = framed(_failed(error)) if settled or wait <= 0 or not passes else _NO_CLAIMS
        if wait > 0 and reply is _NO_CLAIMS:
            connection.until = self._clock.monotonic() + wait
            connection.request = worker, limit, (), target, python, chains, None
            self._waiting.append(connection)
        else:
            self._send(connection, reply)

    def _claimed(
        self, connection: _Connection, worker: WorkerId, limit: int, settled: Sequence[Settlement],
        target: Target | None, python: str, chains: bool, begun: Lease | None,
    ) -> bytes:  # fmt: skip
        look, now = not self._fresh, self._clock.monotonic()
        if limit > 0 and now >= self._replaced and self.reservations.makes_room(connection.line.fileno()):
            limit = 0
        elif limit > 0:
            self.reservations.look(now)
        claims = self._store.claim(worker, limit, 0.0, settled, target, python, chains, begun, connection.fits, look)
        self._fresh = True
        self._unwritten = self._unwritten or bool(claims)
        if claims and claims[0].resources:
            devices = self.reservations.reserve(connection.line.fileno(), claims[0].resources)
            claims = [msgspec.structs.replace(claim, resources=(), devices=devices) for claim in claims]
        return framed(Reply(Raw(_encode(claims)))) if claims else _NO_CLAIMS

    def _hand_out(self) -> None:
        """Claim for the workers that wait, longest first, until no task is left that fits one of them."""
        now = self._looked = self._clock.monotonic()
        refused = self.reservations.refused
        self.reservations.forget_refused()
        tried = set()  # workers that have used the same devices get the same tasks
        for connection in list(self._waiting):
            devices = self.reservations.bound(connection.line.fileno())
            if devices in tried:
                continue
            try:
                reply = self._claimed(connection, *connection.request)
            except JugError as error:
                if isinstance(error, StoreError) and may_pass(error):
                    raise
                reply = framed(_failed(error))
            if reply is not _NO_CLAIMS:
                self._waiting.remove(connection)
                self._send(connection, reply)
            elif refused:
                tried.add(devices)
            else:
                break
        if now - self._shared >= RETRY:
            self.share()
        if refused:
            self._wear_out(tried)
        for connection in [one for one in self._waiting if now >= one.until]:
            self._waiting.remove(connection)
            self._send(connection, _NO_CLAIMS)
        self._seen = self._store.version

    def share(self) -> None:
        """Let other supervisors of this host have what is free here; idle workers with contexts on it end for that."""
        self._shared = self._clock.monotonic()
        if not self._waiting:
            self.reservations.forget_refused()
        idle = self.reservations.share()
        for connection in [one for one in self._waiting if one.line.fileno() in idle]:
            self._waiting.remove(connection)
            self._outworn.append(connection.line.fileno())

    def _wear_out(self, tried: Set[tuple[str, ...]]) -> None:
        """If a task would fit a new worker, have the one replaced that has waited longest and used other devices."""
        refused = list(self.reservations.refused)
        self.reservations.refused.clear()
        if (
            self._looked < self._replaced
            or () in tried
            or not any(self.reservations.fits(-1, resources) for resources in refused)
        ):
            return
        worn = next((one for one in self._waiting if self.reservations.bound(one.line.fileno())), None)
        if worn is not None:
            self._waiting.remove(worn)
            self._outworn.append(worn.line.fileno())
            self._replaced = self._looked + REPLACED

    def _result(self, call: Call) -> Reply:
        try:
            arguments = _types(call.verb).arguments.decode(call.arguments)
            return Reply(Raw(_encode(getattr(self._store, call.verb)(*arguments))))
        except JugError as error:
            return _failed(error)

    def _send(self, connection: _Connection, data: bytes = b"") -> None:
        """Send without waiting: a worker that is stopped holds up nobody else."""
        waited = bool(connection.unsent)
        connection.unsent += data
        try:
            while connection.unsent:
                del connection.unsent[: connection.line.send(connection.unsent)]
        except BlockingIOError:
            self._selector.modify(connection.line, selectors.EVENT_READ | selectors.EVENT_WRITE)
            return
        except OSError:  # it has ended
            connection.unsent.clear()
        if waited:
            self._selector.modify(connection.line, selectors.EVENT_READ)


_NO_CLAIMS = framed(Reply(Raw(_encode([]))))


def _failed(error: JugError) -> Reply:
    if isinstance(error, StoreGone) and not may_pass(error):
        raise error
    cause = error.__cause__
    return Reply(_NONE, (type(error).__name__, str(error), (cause.errno or 0) if isinstance(cause, OSError) else 0))
