"""Event logs in files: append-only, and each has one writer, so none is ever locked.

A log is a sequence of frames, one for each event: magic, length of the head, length of the bodies, CRC-32 of both; then
the head (msgpack of a `Frame`), then the bodies end to end. A frame counts as a whole or not at all: a torn tail, left
by a crash, is ignored. A closing frame says that the writer is done, so that the log need not be read again.
"""

from __future__ import annotations

import os
import struct
import threading
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Union

import msgspec
from msgspec import Struct

from jug_notebook import system
from jug_notebook.errors import StoreError, ValueLost
from jug_notebook.model import Claimed, Event, Released
from jug_notebook.scheduler.records import Place
from jug_notebook.store.atomic import Folder, ForeignFile

MAGIC = b"jn1\n"
HEADER = struct.Struct("<4sIII")
CHUNK = 1 << 22  #: bytes read at once
OPEN_LOGS = 32  #: logs from which closed ones are shut after reading: a process may have few files open
SPREAD = 1 << 20  #: bytes between bodies that are rather read as well than each body alone
SILENCE = 86_400.0  #: seconds without an event after which another machine's writer counts as ended


class Closed(Struct, frozen=True, array_like=True, tag="closed"):
    """The writer is done."""


class Sealed(Struct, frozen=True, array_like=True, tag="sealed"):
    """The first frame of a sealed log: the logs it replaces, and how many bytes of each."""

    replaces: dict[str, int]


class Frame(Struct, frozen=True, array_like=True):
    """An event and the sizes of its bodies."""

    event: Union[Event, Closed, Sealed]
    sizes: list[int] = []


class Vanished(ValueLost):
    """A log was moved or removed."""


#: a place: number of the log (28 bits), offset in bytes (40), size in bytes (28)
_OFFSET, _SIZE = 40, 28
_LARGEST = 1 << _SIZE
_logs: list[weakref.ref[Log]] = []


def log_of(place: Place) -> Log:
    """Return the log in which a body is."""
    log = _logs[place >> _OFFSET + _SIZE]()
    assert log is not None, "a log lives as long as there are places in it"
    return log


def offset_of(place: Place) -> int:
    return place >> _SIZE & (1 << _OFFSET) - 1


def size_of(place: Place) -> int:
    return place & _LARGEST - 1


def read_bodies(places: Sequence[Place]) -> list[bytes]:
    """Return the bodies at these places; neighbours in a log are read at once. Raises ValueLost."""
    if len(places) < 16:
        return [log_of(place).read(offset_of(place), size_of(place)) for place in places]
    found: list[bytes] = [b""] * len(places)
    by_log: dict[Log, list[int]] = {}
    for index, place in enumerate(places):
        by_log.setdefault(log_of(place), []).append(index)
    for log, indexes in by_log.items():
        spans = [(offset_of(places[i]), size_of(places[i])) for i in indexes]
        start = min(offset for offset, _ in spans)
        end = max(offset + size for offset, size in spans)
        if end - start <= 2 * sum(size for _, size in spans) + SPREAD:
            data = log.read(start, end - start)
            for i, (offset, size) in zip(indexes, spans, strict=True):
                found[i] = data[offset - start : offset - start + size]
        else:
            for i, (offset, size) in zip(indexes, spans, strict=True):
                found[i] = log.read(offset, size)
        if log.closed and len(by_log) > OPEN_LOGS:
            log.shut()
    return found


def is_local(name: str) -> bool:
    """Return True if the log of that name is written on this machine."""
    return name.startswith(system.machine() + ".")


def writer_has_ended(path: Folder, now: float) -> bool:
    """Return True if nothing more will be appended to a log. ``now`` is the file server's time."""
    words = path.name.split(".", 1)[-1].split("-")
    pid = int(words[-2]) if len(words) > 2 and words[-2].isdigit() else 0
    if is_local(path.name) and pid:
        return system.born(pid) is None
    try:
        return now - path.stat().st_mtime > SILENCE
    except FileNotFoundError:
        return False


def _name_foreign(path: Folder, error: OSError) -> None:
    """Say, once, that what stands in place of a log isn't read."""
    if isinstance(error, ForeignFile) and path.name not in _named:
        _named.add(path.name)
        warnings.warn(f"skipped a log: {error.strerror}", stacklevel=2)


_named: set[str] = set()

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


class Log:
    """A log as its readers see it, read up to ``offset``. If ``closed``, nothing more will be appended."""

    def __init__(self, path: Folder, local: bool) -> None:
        self.path = path
        self.local = local  #: written on this machine: an open file shows at once what is appended
        self.offset = 0
        self.closed = False
        self.vanished = False  #: True if it was not there at the last `poll`
        self._fd = -1
        self._number = len(_logs) << _OFFSET + _SIZE
        _logs.append(weakref.ref(self))

    def poll(self) -> Iterator[tuple[Event, list[Place]]]:
        """Yield the events appended since the last call; none if the log has vanished."""
        if not self.local:
            self.shut()  # over NFS, only opening asks the server
        want = CHUNK
        while True:
            try:
                data = os.pread(self._open(), want, self.offset)
            except (FileNotFoundError, ForeignFile) as error:
                _name_foreign(self.path, error)
                self.vanished = True
                return
            self.vanished = False
            position, start = 0, self.offset
            while (end := _frame_end(data, position)) is not None and end <= len(data):
                frame = _frame(data, position, end)
                position = end
                if frame is None:
                    continue
                if isinstance(frame.event, Closed):
                    self.closed = True
                elif not isinstance(frame.event, Sealed):
                    yield frame.event, self._places(frame.sizes, start + end)
            self.offset += position
            if position:
                want = CHUNK
                if len(data) < CHUNK:
                    return
            elif end is not None and len(data) == want:
                want = end  # one frame larger than what was read
            else:
                return

    def _places(self, sizes: Sequence[int], end: int) -> list[Place]:
        at = self._number | end - sum(sizes) << _SIZE
        places = []
        for size in sizes:
            places.append(at | size)
            at += size << _SIZE
        return places

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file. Raises ValueLost if they are no longer there."""
        try:
            data = os.pread(self._open(), size, offset)
        except (FileNotFoundError, ForeignFile) as error:
            _name_foreign(self.path, error)
            raise Vanished(f"{self.path.name} is no longer there") from None
        except OSError as error:
            raise ValueLost(f"{self.path.name} can't be read: {error.strerror}") from error
        if len(data) != size:
            raise ValueLost(f"{self.path.name} is shorter than it was")
        return data

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = self.path.parent.open(self.path.name)
        return self._fd

    def shut(self) -> None:
        """Close the file. It is opened again when needed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


TRAILER = struct.Struct("<4sQQ")
HEAD = struct.Struct("<II")  #: before each head: its length and CRC-32


class SealedLog(Log):
    """A log that replaces others, written once: bodies end to end, then all heads, then the offset of the heads.

    So a reader needs the heads alone. ``replaces``: the names of the logs, and how many bytes of each are in it.
    """

    def __init__(self, path: Folder) -> None:
        super().__init__(path, local=True)
        try:
            end = os.fstat(self._open()).st_size - TRAILER.size
        except (FileNotFoundError, ForeignFile) as error:
            _name_foreign(path, error)
            raise Vanished(f"{path.name} is no longer there") from None
        magic, self._heads, self._heads_end = TRAILER.unpack(self.read(end, TRAILER.size)) if end >= 0 else (b"", 0, 0)
        if magic != MAGIC or self._heads_end != end:
            raise StoreError(f"{path} is damaged; restore it from a copy, or remove it: its tasks will run again")
        event = next(self._frames()).event
        self.replaces = dict(event.replaces) if isinstance(event, Sealed) else {}
        self.shut()

    def _frames(self) -> Iterator[Frame]:
        at = self._heads
        data, start = b"", at
        while at < self._heads_end:
            if at + HEAD.size > start + len(data):
                start, data = at, self.read(at, min(CHUNK, self._heads_end - at))
            size, checksum = HEAD.unpack_from(data, at - start)
            at += HEAD.size
            if at + size > start + len(data):
                start, data = at, self.read(at, max(size, min(CHUNK, self._heads_end - at)))
            head = memoryview(data)[at - start : at - start + size]
            at += size
            if zlib.crc32(head) != checksum:
                raise StoreError(f"{self.path} is damaged; restore it from a copy, or remove it and run again")
            yield _decode(head)

    def poll(self) -> Iterator[tuple[Event, list[Place]]]:
        """Yield all events, once."""
        if self.closed:
            return
        end = 0
        for frame in self._frames():
            end += sum(frame.sizes)
            if not isinstance(frame.event, Closed | Sealed):
                yield frame.event, self._places(frame.sizes, end)
        self.skip()

    def skip(self) -> None:
        """Don't read it: its events are known."""
        self.offset = self._heads_end + TRAILER.size
        self.closed = True


def _frame_end(data: bytes, start: int) -> int | None:
    """Return the end of the frame that begins at ``start``, maybe beyond ``data``; None if none begins there."""
    if len(data) - start < HEADER.size:
        return None
    magic, head, bodies, _ = HEADER.unpack_from(data, start)
    return start + HEADER.size + int(head) + int(bodies) if magic == MAGIC else None


def _frame(data: bytes, start: int, end: int) -> Frame | None:
    """Return a frame; None if it is damaged, which doesn't affect the next one."""
    _, head, _, checksum = HEADER.unpack_from(data, start)
    start += HEADER.size
    view = memoryview(data)[start:end]
    return _decode(view[:head]) if zlib.crc32(view) == checksum else None


class Writer:
    """The one writer of a log. Others see at once what it appends; `sync` makes that outlive a crash of the host."""

    def __init__(self, folder: Folder, name: str, check: Callable[[], None]) -> None:
        self._folder = folder
        self._check = check  # raises StoreGone if the folder has become another store's
        self._name = name
        self._turn = 0
        self._fd = -1
        self._size = 0
        self._postponed = b""  # frames to be written with the next one
        self._unsynced: list[bytes] = []
        self._synced = 0  #: number of frames that were taken off that list
        self.syncing = False  #: is a thread in `sync_beside`?
        self._former: list[Log] = []
        self.log = Log(folder / f"{name}.log", local=True)

    @property
    def unsynced(self) -> bool:
        """True where something that matters has been written since the last `sync`."""
        return bool(self._unsynced)

    def append(self, event: Event | Closed, bodies: Sequence[bytes] = ()) -> list[Place]:
        """Return the places of the bodies. Raises StoreError if the disk is full; nothing of the event is kept then.

        That tasks were claimed is written with the next event, or by `flush`: each write wakes all readers.
        """
        sizes = [len(body) for body in bodies]
        if sizes and max(sizes) >= _LARGEST:
            raise StoreError(f"a task's record of {max(sizes):,} bytes is too large for {self._folder}")
        head = encode(Frame(event, sizes))
        content = b"".join((head, *bodies))
        frame = HEADER.pack(MAGIC, len(head), len(content) - len(head), zlib.crc32(content)) + content
        if isinstance(event, Claimed):
            self._postponed += frame
            return []
        self._write(frame)
        if not isinstance(event, Released):
            self._unsynced.append(frame)
        return self.log._places(sizes, self._size)

    @property
    def postponed(self) -> bool:
        """True where `flush` has something to write."""
        return bool(self._postponed)

    def flush(self) -> None:
        """Write what was postponed. On a full disk it is dropped: nothing depends on it."""
        if self._postponed:
            with suppress(StoreError):
                self._write(b"")
            self._postponed = b""

    def _write(self, frame: bytes) -> None:
        if self._fd < 0:
            self._begin()
        frame = self._postponed + frame
        try:
            written = os.write(self._fd, frame)
            while written < len(frame):
                written += os.write(self._fd, frame[written:])
        except OSError as error:
            with suppress(OSError):  # the descriptor itself may be invalid
                os.ftruncate(self._fd, self._size)  # a torn frame would hide those after it
            raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._size += len(frame)
        self._postponed = b""

    def _begin(self) -> None:
        self._check()
        path = self._path()
        self._turn += 1
        try:
            self._fd = self._folder.open(path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        except OSError as error:
            raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._size = 0
        self._former.append(self.log)  # its places remain valid
        self.log = Log(path, local=True)
        self._folder.sync()

    def _path(self) -> Folder:
        """Return the path of the next log."""
        return self._folder / (f"{self._name}.log" if not self._turn else f"{self._name}.{self._turn}.log")

    def start_anew(self) -> None:
        """Go on in another log, for it isn't known how much of the last event is in this one. Raises StoreError."""
        self._postponed = b""  # maybe written: nothing depends on it
        self.sync()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._former.append(self.log)
        self.log = Log(self._path(), local=True)

    def sync_beside(self, lock: threading.RLock) -> None:
        """Make everything appended durable, while others who hold the lock append more."""
        with lock:
            last = self._synced + len(self._unsynced)
            fd, path = os.dup(self._fd) if self._fd >= 0 else -1, self.log.path
        synced = _sync(fd, path)
        if fd >= 0:
            os.close(fd)
        with lock:
            self.syncing = False
            if synced:
                self._drop(last - self._synced)
            else:
                self.sync()

    def _drop(self, count: int) -> None:
        if count > 0:  # else others have synced meanwhile
            del self._unsynced[:count]
            self._synced += count

    def sync(self) -> None:
        """Make everything appended durable: in a new log, if this one has vanished or can't be synced."""
        self.flush()
        if not self._unsynced:
            return
        if not _sync(self._fd, self.log.path):
            if self._fd >= 0:  # else no new log could be begun the last time
                os.close(self._fd)
            self._fd = -1
            for frame in self._unsynced:
                self._write(frame)
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._drop(len(self._unsynced))

    def close(self) -> None:
        """Append the closing frame."""
        try:
            if self._fd >= 0:
                self.append(Closed())
                self.sync()
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self.log.shut()


def _sync(fd: int, path: Folder) -> bool:
    """Make an open file durable. Return False if it has vanished, or can't be synced."""
    try:
        os.fdatasync(fd)
        return path.stat().st_ino == os.fstat(fd).st_ino
    except (OSError, ValueError):  # ValueError: no file is open, for none could be begun
        return False
