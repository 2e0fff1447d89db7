"""Event logs in files: append-only, and each has one writer, so none is ever locked.

A log is a sequence of frames, one for each event. A frame is a header, the length of the head, the head (msgpack of a
`Frame`), and the bodies end to end. It is numbered, names the MAC of the frame before, and carries its own (see
`sealing`) and a checksum, for those who don't have the store's key. A frame counts as a whole or not at all: a torn
tail, left by a crash, is ignored. Where bytes are damaged or forged, reading goes on at the next frame that holds, and
what is missing is reported. A closing frame says that the writer is done, so that the log need not be read again.
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
from typing import TypeAlias, Union

import msgspec
from msgspec import Struct

from jug_notebook.clock import CLOCK
from jug_notebook.errors import StoreError, ValueLost
from jug_notebook.model import UNREADABLE, Claimed, Event, Released, body_count
from jug_notebook.scheduler.records import Place
from jug_notebook.store.atomic import Folder, ForeignFile, data_from
from jug_notebook.store.sealing import FIRST, MAC, EventSeal

MAGIC = b"jn2\n"
HEADER = struct.Struct(f"<4sIIQ{MAC}s{MAC}s")  #: magic, CRC-32 of all that follows, size, number, MAC before, MAC
_COVERED = struct.Struct(f"<IQ{MAC}s{MAC}s")  #: of the header, by the checksum
_SIZED = struct.Struct("<I")
_CRC_FROM = HEADER.size - _COVERED.size
LARGEST_FRAME = 1 << 30  #: bytes
CHUNK = 1 << 22  #: bytes read at once
OPEN_LOGS = 32  #: logs from which closed ones are shut after reading: a process may have few files open
SPREAD = 1 << 20  #: bytes between bodies that are rather read as well than each body alone
SEARCHED = 1 << 28  #: bytes that are checked at most while the next whole frame is searched for, at once
SETTLING = 2.0  #: seconds after which what another machine wrote is as it will remain


class Closed(Struct, frozen=True, array_like=True, tag="closed"):
    """The writer is done, and had read so many bytes of other logs."""

    read: dict[str, int] = {}


class Sealed(Struct, frozen=True, array_like=True, tag="sealed"):
    """The first and the last frame of a sealed log: the logs it replaces, and how many bytes of each.

    ``before``: `mark` of all that these replaced in turn.
    """

    replaces: dict[str, int]
    before: bytes = b""


class Again(Struct, frozen=True, array_like=True, tag="again"):
    """Second copies of earlier frames of a sealed log: the number of each, and its head. Their bodies follow."""

    frames: list[tuple[int, bytes]]


class Frame(Struct, frozen=True, array_like=True):
    """An event and the sizes of its bodies."""

    event: Union[Event, Closed, Sealed, Again]
    sizes: list[int] = []


NOT_EVENTS = (Closed, Sealed, Again)


class Vanished(ValueLost):
    """A log was moved or removed, or its end was cut off."""


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
    by_log: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        by_log.setdefault(place >> _OFFSET + _SIZE, []).append(index)
    for indexes in by_log.values():
        log = log_of(places[indexes[0]])
        own = [places[i] for i in indexes]
        start, end = offset_of(min(own)), offset_of(max(own)) + size_of(max(own))
        if end - start <= 2 * sum([place & _LARGEST - 1 for place in own]) + SPREAD:
            data, offsets, sizes = log.read(start, end - start), (1 << _OFFSET) - 1, _LARGEST - 1
            for i, place in zip(indexes, own, strict=True):
                found[i] = data[(at := (place >> _SIZE & offsets) - start) : at + (place & sizes)]
        else:
            for i, place in zip(indexes, own, strict=True):
                found[i] = log.read(offset_of(place), size_of(place))
        if log.closed and len(by_log) > OPEN_LOGS:
            log.shut()
    return found


def _name_foreign(path: Folder, error: OSError) -> None:
    """Say, once, that what stands in place of a log isn't read."""
    if isinstance(error, ForeignFile) and path.name not in _named:
        _named.add(path.name)
        warnings.warn(f"skipped a log: {error.strerror}", stacklevel=2)


_named: set[str] = set()

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def _read_head(head: bytes | memoryview) -> Frame | None:
    """Return a frame from its head; None where that makes no sense, though its writer has the key."""
    try:
        found = _decode(head)
    except UNREADABLE:
        return None
    count = len(found.sizes) if isinstance(found.event, Again) else body_count(found.event)
    return found if len(found.sizes) == count and min(found.sizes, default=0) >= 0 else None


def content_of(frame: Frame, bodies: Sequence[bytes]) -> bytes:
    """Return what a frame holds. Raises StoreError where that is too large."""
    head = encode(frame)
    content = b"".join((_SIZED.pack(len(head)), head, *bodies))
    if len(content) > LARGEST_FRAME:
        raise StoreError(f"an event of {len(content):,} bytes is too large for a store in files")
    return content


Report: TypeAlias = Callable[[Folder, str], None]


class Chain:
    """The frames of one log, in order: makes them, and checks those that are read. Without a seal, by checksum only."""

    def __init__(self, name: str, seal: EventSeal | None) -> None:
        self.number = 0  #: of the next frame
        self.mac = FIRST  #: of the last one
        self._name = name.encode()
        self._seal = seal

    def frame(self, content: bytes) -> bytes:
        """Return the next frame, and go on after it."""
        assert self._seal is not None, "without the store's key, nothing can be written"
        mac = self._seal.frame(self._name, self.number, self.mac, content)
        covered = _COVERED.pack(len(content), self.number, self.mac, mac)
        self.number, self.mac = self.number + 1, mac
        return b"".join((MAGIC, _SIZED.pack(zlib.crc32(content, zlib.crc32(covered))), covered, content))

    def advance(self, number: int, previous: bytes, mac: bytes) -> str:
        """Go on after a frame that holds. Return what is wrong about its place, in words; "" if nothing is."""
        expected, last = self.number, self.mac
        if number < expected:
            return f"its frame {number} comes twice or out of order"
        self.number, self.mac = number + 1, mac
        if number == expected + 1:
            return f"its frame {expected} can't be read or is missing"
        if number > expected:
            return f"its frames {expected} to {number - 1} can't be read or are missing"
        return "" if previous == last else f"its frame {number} doesn't follow the one before"

    def open(self, frame: memoryview) -> tuple[Frame, int, bytes, bytes] | None:
        """Return a whole frame, decoded, with its number, the MAC before, and its own; None if it fails."""
        _, checksum, _, number, previous, mac = HEADER.unpack_from(frame)
        content = frame[HEADER.size :]
        if self._seal is not None:
            if not self._seal.is_frame(mac, self._name, number, previous, content):
                return None
        elif zlib.crc32(content, zlib.crc32(frame[_CRC_FROM : HEADER.size])) != checksum:
            return None
        end = _SIZED.size + int.from_bytes(content[: _SIZED.size], "little")
        found = _read_head(content[_SIZED.size : end])
        if found is None or end + sum(found.sizes) != len(content):
            return None
        return found, number, previous, mac

    def copy(self) -> Chain:
        """Return a chain that is as far as this one."""
        other = Chain.__new__(Chain)  # at each look: `copy.copy` would take ten times as long
        other.number, other.mac, other._name, other._seal = self.number, self.mac, self._name, self._seal
        return other


def _ignore(path: Folder, what: str) -> None:
    """Report nothing."""


class Log:
    """A log as its readers see it, read up to ``offset``. If ``closed``, nothing more will be appended.

    What is wrong with it is passed to ``report``, with its path.
    """

    def __init__(self, path: Folder, local: bool, seal: EventSeal | None = None, report: Report = _ignore) -> None:
        self.path = path
        self.local = local  #: written on this machine: an open file shows at once what is appended
        self.offset = 0
        self.closed = False
        self.vanished = False  #: True if it was not there at the last `poll`
        self.damaged = False  #: True if something was wrong with it
        self.read_by_writer: dict[str, int] = {}  #: bytes of other logs, known once it is closed
        self._seal = seal
        self._report = report
        self._chain = Chain(path.name, seal)
        self._skipped = ""  # what was skipped last, until it is known whether frames are missing there
        self.suspect = -1, 0.0  #: an offset where no frame holds, and since when
        self._searched = 0  # up to where no whole frame was found after it
        self._fd = -1
        self._number = len(_logs) << _OFFSET + _SIZE
        _logs.append(weakref.ref(self))

    def poll(self) -> Iterator[tuple[Event, list[Place]]]:
        """Yield the events appended since the last call; none if the log has vanished."""
        if not self.local:
            self.shut()  # over NFS, only opening asks the server
        try:
            self._open()
        except (FileNotFoundError, ForeignFile) as error:
            _name_foreign(self.path, error)
            self.vanished = True
            return
        self.vanished = False
        for frame, _, end in self._frames():
            if isinstance(frame.event, Closed):
                self.closed, self.read_by_writer = True, frame.event.read
            elif not isinstance(frame.event, NOT_EVENTS):
                yield frame.event, self._places(frame.sizes, end)

    def _frames(self) -> Iterator[tuple[Frame, int, int]]:
        """Yield the frames from ``offset`` on, each with its number and where it ends."""
        want = CHUNK
        while True:
            data = memoryview(os.pread(self._fd, want, self.offset))
            if not data and self._was_cut():
                continue
            position, start = 0, self.offset
            chain = self._chain.copy()  # whoever takes the frames may be interrupted, and then they are read again
            while (end := frame_end(data, position)) and end <= len(data):
                opened = chain.open(data[position:end])
                if opened is None:
                    break
                frame, number, previous, mac = opened
                if wrong := chain.advance(number, previous, mac) or self._skipped:
                    self.fault(wrong)
                    self._skipped = ""
                position = end
                yield frame, number, start + end
            self.offset, self._chain = start + position, chain
            if position:
                want = CHUNK
                if position == len(data) < CHUNK:
                    return
            elif end > len(data) == want and self.offset + end <= os.fstat(self._fd).st_size:
                want = end  # one frame larger than what was read
            elif len(data) < HEADER.size or not self._skip_damaged(data):
                return

    def _skip_damaged(self, data: memoryview) -> bool:
        """Go on after what is no frame to one that is. Return False if there is none yet."""
        at, size = self.offset, os.fstat(self._fd).st_size
        end = frame_end(data, 0)
        found = self._search(at + 1, size)
        torn = found is None and end > len(data)  # being written, or left so by a crash
        if torn or not (self.local or self.closed or self._is_settled(at)):
            return False
        self.offset = found if found is not None else at + end if end else size
        self._skipped = f"{self.offset - at:,} bytes at {at:,} are not a record of its writer's"
        if found is None:
            self.fault(self._skipped)
        return True

    def _is_settled(self, at: int) -> bool:
        """Return True unless what another machine writes may still be on its way to the file server."""
        now = CLOCK.monotonic()
        if self.suspect[0] != at:
            self.suspect = at, now
        return now - self.suspect[1] > SETTLING or abs(CLOCK.now() - os.fstat(self._fd).st_mtime) > 30 * SETTLING

    def _search(self, start: int, size: int) -> int | None:
        """Return where the next whole frame begins, from ``start`` on. What was searched before is left out."""
        at = max(start, self._searched)
        left, unfinished = SEARCHED, size  # where something begins that may become a frame
        while (at := data_from(self._fd, at, size)) + HEADER.size <= size and left > 0:
            data = memoryview(os.pread(self._fd, CHUNK, at))
            whole = bytes(data)
            position = whole.find(MAGIC)
            while 0 <= position <= len(data) - HEADER.size and left > 0:
                end = frame_end(data, position)
                left -= HEADER.size
                if end > size - at:
                    unfinished = min(unfinished, at + position)
                elif 0 < end <= position + left:
                    left -= end - position
                    frame = data[position:end] if end <= len(data) else self._piece(at + position, end - position)
                    if self._chain.open(frame) is not None:
                        return at + position
                position = whole.find(MAGIC, position + 1)
            at += max(1, len(data) - HEADER.size + 1)
        self._searched = max(start, min(at, unfinished, size - HEADER.size + 1))
        return None

    def _piece(self, offset: int, size: int) -> memoryview:
        return memoryview(os.pread(self._fd, size, offset).ljust(HEADER.size, b"\0"))

    def _was_cut(self) -> bool:
        """Return True, and start again from the beginning, if the file is shorter than what was read of it."""
        if not self.offset or os.fstat(self._fd).st_size >= self.offset:
            return False
        self.fault("it is shorter than it was: its end was cut off")
        self.offset, self._searched, self._chain = 0, 0, Chain(self.path.name, self._seal)
        return True

    def fault(self, what: str) -> None:
        """Report that something is wrong with it."""
        self.damaged = True
        self._report(self.path, what)

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
        if len(data) != size:
            raise Vanished(f"{self.path.name} is shorter than it was")
        return data

    def _open(self) -> int:
        if self._fd < 0:
            self._fd = self.path.parent.open(self.path.name)
        return self._fd

    def shut(self) -> None:
        """Close the file. It is opened again when needed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class SealedLog(Log):
    """A log that replaces others, written once. It begins and ends with their names, and says twice what matters most.

    ``replaces``: the names of the logs, and how many bytes of each are in it.
    """

    def __init__(self, path: Folder, seal: EventSeal | None = None, report: Report = _ignore) -> None:
        super().__init__(path, True, seal, report)
        try:
            self._size = os.fstat(self._open()).st_size
        except (FileNotFoundError, ForeignFile) as error:
            _name_foreign(path, error)
            raise Vanished(f"{path.name} is no longer there") from None
        self.replaces: dict[str, int] = {}
        self.before = b""
        unreported, self._report = self._report, _ignore
        for frame, _, _ in self._frames():
            if isinstance(frame.event, Sealed):
                self.replaces, self.before = dict(frame.event.replaces), frame.event.before
                break
        self._report, self.damaged = unreported, False

    def poll(self) -> Iterator[tuple[Event, list[Place]]]:
        """Yield all events, once. Raises Vanished."""
        if self.closed:
            return
        try:
            self._open()
        except (FileNotFoundError, ForeignFile) as error:
            _name_foreign(self.path, error)
            raise Vanished(f"{self.path.name} is no longer there") from None
        self.offset, self._searched, self._chain = 0, 0, Chain(self.path.name, self._seal)
        seen: set[int] = set()
        for frame, number, end in self._frames():
            seen.add(number)
            if isinstance(frame.event, Closed):
                self.closed = True
            elif isinstance(frame.event, Again):
                at = end - sum(frame.sizes)
                for copied, head in frame.event.frames:
                    if (again := _read_head(head)) is None:
                        break
                    at += sum(again.sizes)
                    if copied not in seen and not isinstance(again.event, NOT_EVENTS):
                        yield again.event, self._places(again.sizes, at)
            elif not isinstance(frame.event, Sealed):
                yield frame.event, self._places(frame.sizes, end)
        if not self.closed and not self.damaged:
            self.fault("its end is missing")
        self.skip()

    def skip(self) -> None:
        """Don't read it: its events are known."""
        self.offset = self._size
        self.closed = True


def frame_end(data: memoryview, start: int) -> int:
    """Return the end of the frame that begins at ``start``, maybe beyond ``data``; 0 if none begins there."""
    if len(data) - start < HEADER.size:
        return 0
    magic, _, size, *_ = HEADER.unpack_from(data, start)
    return start + HEADER.size + int(size) if magic == MAGIC and size <= LARGEST_FRAME else 0


class Writer:
    """The one writer of a log. Others see at once what it appends; `sync` makes that outlive a crash of the host."""

    def __init__(self, folder: Folder, name: str, check: Callable[[], None], seal: EventSeal | None) -> None:
        self._folder = folder
        self._check = check  # raises StoreGone if the folder has become another store's
        self._name = name
        self._turn = 0
        self._fd = -1
        self._size = 0
        self._postponed: list[bytes] = []  # contents of frames to be written with the next one
        self._seal = seal
        self._chain = Chain("", seal)
        self._unsynced: list[bytes] = []  # contents of frames
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
        content = content_of(Frame(event, sizes), bodies)
        if isinstance(event, Claimed) and not event.tokens:  # for these, others must know what they belong to
            self._postponed.append(content)
            return []
        self._write(content)
        if not isinstance(event, Released):
            self._unsynced.append(content)
        return self.log._places(sizes, self._size)

    @property
    def postponed(self) -> bool:
        """True where `flush` has something to write."""
        return bool(self._postponed)

    def flush(self) -> None:
        """Write what was postponed. On a full disk it is dropped: nothing depends on it."""
        if self._postponed:
            with suppress(StoreError):
                self._write()
            self._postponed.clear()

    def _write(self, *contents: bytes) -> None:
        if self._fd < 0:
            self._begin()
        chain = self._chain.copy()
        frame = b"".join([chain.frame(content) for content in (*self._postponed, *contents)])
        try:
            written = os.write(self._fd, frame)
            while written < len(frame):
                written += os.write(self._fd, frame[written:])
        except OSError as error:
            with suppress(OSError):  # the descriptor itself may be invalid
                os.ftruncate(self._fd, self._size)  # a torn frame would hide those after it
            raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._size += len(frame)
        self._postponed.clear()
        self._chain = chain

    def _begin(self) -> None:
        self._check()
        path = self._path()
        self._turn += 1
        try:
            self._fd = self._folder.open(path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
            self._folder.sync()
        except OSError as error:
            self._shut()
            raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._size = 0
        self._chain = Chain(path.name, self._seal)
        self._former.append(self.log)  # its places remain valid
        self.log = Log(path, local=True)

    def _path(self) -> Folder:
        """Return the path of the next log."""
        return self._folder / (f"{self._name}.log" if not self._turn else f"{self._name}.{self._turn}.log")

    def start_anew(self) -> None:
        """Go on in another log, for it isn't known how much of the last event is in this one. Raises StoreError."""
        self._postponed.clear()  # maybe written: nothing depends on it
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
            self._shut()
            for content in self._unsynced:
                self._write(content)
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise StoreError(f"can't write to {self._folder}: {error.strerror}") from error
        self._drop(len(self._unsynced))

    def close(self, read: dict[str, int]) -> dict[str, int]:
        """Append the closing frame, which says how many bytes of other logs were read. Return this log's, if any."""
        try:
            if self._fd < 0:
                return {}
            self.append(Closed(read))
            self.sync()
            return {self.log.path.name: self._size}
        finally:
            self._shut()
            self.log.shut()

    def _shut(self) -> None:
        if self._fd >= 0:  # else no log could be begun
            fd, self._fd = self._fd, -1
            os.close(fd)


def _sync(fd: int, path: Folder) -> bool:
    """Make an open file durable. Return False if it has vanished, or can't be synced."""
    try:
        os.fdatasync(fd)
        return path.stat().st_ino == os.fstat(fd).st_ino
    except (OSError, ValueError):  # ValueError: no file is open, for none could be begun
        return False
