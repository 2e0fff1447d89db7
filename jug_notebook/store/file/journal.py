"""Append-only logs with one writer each, so nobody ever locks one.

A log is a row of frames: magic, length of the head, length of the bodies, CRC-32 of both; then the head (msgpack of a
`Frame`), then the bodies end to end. A frame appears whole or not at all: a torn tail, left by a crash, is ignored.
A closing frame says that the writer is done, so the log need not be looked at again.
"""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Union

import msgspec
from msgspec import Struct

from jug_notebook.errors import StoreError, ValueLost
from jug_notebook.model import Claimed, Event, Released
from jug_notebook.scheduler.packing import Place
from jug_notebook.store.file.atomic import sync_folder

MAGIC = b"jn1\n"
HEADER = struct.Struct("<4sIII")
CHUNK = 1 << 22  #: bytes read at once


class Closed(Struct, frozen=True, array_like=True, tag="closed"):
    """The writer is done."""


class Sealed(Struct, frozen=True, array_like=True, tag="sealed"):
    """Begins a sealed log: which logs it stands for, and how much of each."""

    replaces: dict[str, int]


class Frame(Struct, frozen=True, array_like=True):
    """One fact, and the sizes of its bodies."""

    event: Union[Event, Closed, Sealed]
    sizes: list[int] = []


class Vanished(ValueLost):
    """A log is no longer where it was."""


#: a place: which log (28 bits), from which byte on (40), how many (28)
_OFFSET, _SIZE = 40, 28
_LARGEST = 1 << _SIZE
_logs: list[weakref.ref[Log]] = []


def log_of(place: Place) -> Log:
    """The log in which a body is."""
    log = _logs[place >> _OFFSET + _SIZE]()
    assert log is not None, "whoever keeps a place keeps its log"
    return log


def offset_of(place: Place) -> int:
    return place >> _SIZE & (1 << _OFFSET) - 1


def size_of(place: Place) -> int:
    return place & _LARGEST - 1


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


class Log:
    """A log as its readers see it. ``offset`` is the end of what was read; ``closed``: nothing more will come."""

    def __init__(self, path: Path, local: bool) -> None:
        self.path = path
        self.local = local  #: written on this machine: an open file shows at once what is appended
        self.offset = 0
        self.closed = False
        self.vanished = False  #: it was not where it should be when it was last looked at
        self._fd = -1
        self._number = len(_logs) << _OFFSET + _SIZE
        _logs.append(weakref.ref(self))

    def poll(self) -> Iterator[tuple[Event, list[Place]]]:
        """What was appended since the last call. A log that has vanished has no news."""
        if not self.local:
            self.shut()  # over NFS, opening is what asks the server
        want = CHUNK
        while True:
            try:
                data = os.pread(self._open(), want, self.offset)
            except FileNotFoundError:
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
        """Raises ValueLost where the bytes are no longer there."""
        try:
            data = os.pread(self._open(), size, offset)
        except FileNotFoundError:
            raise Vanished(f"{self.path.name} is no longer there") from None
        except OSError as error:
            raise ValueLost(f"{self.path.name} can't be read: {error.strerror}") from error
        if len(data) != size:
            raise ValueLost(f"{self.path.name} is shorter than it was")
        return data

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def shut(self) -> None:
        """Close the file; it is opened again when needed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def size(self) -> int:
        """How long the file is now; 0 where it is gone."""
        try:
            return os.fstat(self._open()).st_size
        except FileNotFoundError:
            return 0


TRAILER = struct.Struct("<4sQQ")
HEAD = struct.Struct("<II")  #: before each head: its length and CRC-32


class SealedLog(Log):
    """A log that stands for others, written once: bodies end to end, then all heads, then where those begin.

    So who folds it reads the heads alone. ``replaces``: the names of those others, and how much of each is in it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, local=True)
        try:
            end = os.fstat(self._open()).st_size - TRAILER.size
        except FileNotFoundError:
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
        """All of it, once."""
        if self.closed:
            return
        end = 0
        for frame in self._frames():
            end += sum(frame.sizes)
            if not isinstance(frame.event, Closed | Sealed):
                yield frame.event, self._places(frame.sizes, end)
        self.pass_over()

    def pass_over(self) -> None:
        """All that it says is known."""
        self.offset = self.size()
        self.closed = True


def _frame_end(data: bytes, start: int) -> int | None:
    """Where the frame that begins at ``start`` ends (maybe beyond ``data``); None where none begins."""
    if len(data) - start < HEADER.size:
        return None
    magic, head, bodies, _ = HEADER.unpack_from(data, start)
    return start + HEADER.size + int(head) + int(bodies) if magic == MAGIC else None


def _frame(data: bytes, start: int, end: int) -> Frame | None:
    """None for a damaged frame: what follows it is still good."""
    _, head, _, checksum = HEADER.unpack_from(data, start)
    start += HEADER.size
    view = memoryview(data)[start:end]
    return _decode(view[:head]) if zlib.crc32(view) == checksum else None


class Writer:
    """The one writer of a log. Appends at once, so others see it; `sync` makes it outlive a crash of the host."""

    def __init__(self, folder: Path, name: str, mode: int = 0o600) -> None:
        self.mode = mode  #: of the files that it makes
        self._folder = folder
        self._name = name
        self._turn = 0
        self._fd = -1
        self._size = 0
        self._unsynced: list[bytes] = []
        self._former: list[Log] = []
        self.log = Log(folder / f"{name}.log", local=True)

    @property
    def unsynced(self) -> bool:
        """True where something that matters has been written since the last `sync`."""
        return bool(self._unsynced)

    def append(self, event: Event | Closed, bodies: Sequence[bytes] = ()) -> list[Place]:
        """Raises StoreError where the disk is full; nothing of the fact is left behind then."""
        sizes = [len(body) for body in bodies]
        if sizes and max(sizes) >= _LARGEST:
            raise StoreError(f"a task's record of {max(sizes):,} bytes is too large for {self._folder}")
        head = encode(Frame(event, sizes))
        content = b"".join((head, *bodies))
        frame = HEADER.pack(MAGIC, len(head), len(content) - len(head), zlib.crc32(content)) + content
        self._write(frame)
        if not isinstance(event, (Claimed, Released)):
            self._unsynced.append(frame)
        return self.log._places(sizes, self._size)

    def _write(self, frame: bytes) -> None:
        if self._fd < 0:
            self._begin()
        try:
            written = os.write(self._fd, frame)
            while written < len(frame):
                written += os.write(self._fd, frame[written:])
        except OSError as error:
            with suppress(OSError):  # the descriptor itself may be gone
                os.ftruncate(self._fd, self._size)  # a torn frame in the middle would hide what comes after it
            raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._size += len(frame)

    def _begin(self) -> None:
        path = self._folder / (f"{self._name}.log" if not self._turn else f"{self._name}.{self._turn}.log")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, self.mode)
            if self.mode != 0o600:
                os.fchmod(self._fd, self.mode)  # whatever the umask takes away
        except OSError as error:
            raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._size = 0
        self._turn += 1
        self._former.append(self.log)  # places in it go on meaning something
        self.log = Log(path, local=True)
        sync_folder(self._folder)

    def sync(self) -> None:
        """Make all that was appended durable. A log that can't be, or that vanished, is written again elsewhere."""
        if not self._unsynced:
            return
        try:
            os.fdatasync(self._fd)
            lost = os.stat(self.log.path).st_ino != os.fstat(self._fd).st_ino
        except OSError:
            lost = True
        if lost:
            if self._fd >= 0:  # or it could not be begun elsewhere the last time
                os.close(self._fd)
            self._fd = -1
            for frame in self._unsynced:
                self._write(frame)
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._unsynced.clear()

    def close(self) -> None:
        """Say that nothing more will come."""
        if self._fd >= 0:
            self.append(Closed())
            self.sync()
            os.close(self._fd)
            self._fd = -1
        self.log.shut()
