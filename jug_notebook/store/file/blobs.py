"""Blobs in a folder: files of large bytes, each named by the blake3 hash of its content, as ``ab/cd…``.

A large blob is hashed while it is written. It is read by several threads into memory of the reader's own and hashed
there, so what is returned is what was verified, whatever happens to the file. A *map* of a blob is a view of the file
itself: that it was verified is remembered (`Proofs`) as long as the file isn't touched.

Blobs that nothing refers to are swept into a ``trash`` folder first. There they are removed after a day, unless
somebody reads or writes one before that: then it comes back. Who finds a blob damaged moves it there under another
name, so that the next write brings it back.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import re
import stat
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from jug_notebook import system
from jug_notebook.errors import StoreError, ValueLost
from jug_notebook.model import Address
from jug_notebook.render.format import size as size_in_words
from jug_notebook.store import Condition
from jug_notebook.store.atomic import Folder, ForeignFile, hidden
from jug_notebook.store.file.folders import remove_older

LARGE = 1 << 20  #: bytes from which blobs are hashed while written, may be mapped, and have proofs that are kept
STRIDE = 1 << 24  #: bytes written or read in one go
READERS = 4  #: threads that read one blob, at most
RECORDS = 1 << 16  #: proofs after which the file that keeps them begins anew
TRASH_KEPT = 86_400.0  #: seconds for which swept blobs stay in the trash
UNFINISHED = 3_600.0  #: seconds after which a file that is being written belongs to nobody any more
TRIES = 100  #: looks for a blob that sweeps move back and forth
_SYNC_FILE_RANGE_WRITE = 2


_ADDRESS = re.compile(r"[0-9a-f]{40}")


class Missing(ValueLost):
    """There is no blob of that name."""


class Damaged(ValueLost):
    """What has that name isn't what the name says."""


class Blobs:
    """The blobs of a store's folder. ``store`` names the store to people."""

    def __init__(self, root: Folder, store: str, proofs: Proofs) -> None:
        self._root = root
        self._folder, self.trash = root / "blobs", root / "trash"
        self._store = store
        self._proofs = proofs

    def _part(self, address: Address) -> Folder:
        """Return the folder of a blob, to be closed after use."""
        return Folder(address[:2], self._folder)

    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Keep bytes, once. Return their address. Durable on return."""
        pieces = [memoryview(part).cast("B") for part in parts]
        size = sum(piece.nbytes for piece in pieces)
        if size < LARGE:
            address = _hashed(pieces)
            if not self._known(address, size):
                self._publish(address, _NewFile(self._folder, size), pieces)
            return address
        hashed = system.known(pieces)
        if hashed is not None and self._known(hashed.hex(), size):
            return hashed.hex()
        new = _NewFile(self._folder, size)
        found: list[tuple[Address, bool]] = []
        hasher = threading.Thread(target=lambda: found.append(self._look_up(pieces, size)), name="jug-hash")
        hasher.start()
        try:
            new.write(pieces, stop=lambda: bool(found and found[0][1]))
        finally:
            hasher.join()
        address, known = found[0] if found else self._look_up(pieces, size)  # again, to raise its error here
        if known:
            new.drop()
        else:
            self._publish(address, new, ())
        return address

    def _look_up(self, pieces: list[memoryview], size: int) -> tuple[Address, bool]:
        address = _hashed(pieces)
        return address, self._known(address, size)

    def _known(self, address: Address, size: int) -> bool:
        """Return True if it is there already, and whole; then touch it, so that it isn't swept."""
        try:
            with self._part(address) as part:
                name = address[2:]
                found = part.stat(name)
                if not stat.S_ISREG(found.st_mode):
                    self._set_aside(address, None)
                    return False
                if found.st_size != size or not self._is_whole(part, address, found):
                    return False
                with suppress(PermissionError):  # another user's
                    part.touch(name)
                if size >= LARGE:
                    self._proofs.add(address, part.stat(name))
        except FileNotFoundError:  # never there, or swept at this moment
            return False
        except ForeignFile:
            self._set_aside(address, None)
            return False
        return True

    def _is_whole(self, part: Folder, address: Address, found: os.stat_result) -> bool:
        """Return whether a file is what its name says. Large ones are hashed unless a proof holds."""
        if found.st_size >= LARGE and self._proofs.holds(address, found):
            return True
        fd = part.open(address[2:])
        try:
            found = os.fstat(fd)
            if _hashed_file(fd) == address:
                return True
        finally:
            os.close(fd)
        self._set_aside(address, found)
        return False

    def _set_aside(self, address: Address, damaged: os.stat_result | None) -> str:
        """Move what was found damaged into the trash, or (None) what isn't a file; not what has replaced it since.

        Return why that can't be done; empty where it isn't there any more.
        """
        name, aside = address[2:], f"{address}.{os.urandom(4).hex()}"
        try:
            with self._part(address) as part:
                if damaged is None and stat.S_ISREG(part.stat(name).st_mode):
                    damaged = part.stat(name)
                part.rename(name, aside, self.trash)
                if damaged is not None and not os.path.samestat(self.trash.stat(aside), damaged):
                    self.trash.rename(aside, name, part)
        except ForeignFile:
            with suppress(OSError):
                self._folder.rename(address[:2], aside, self.trash)
        except FileNotFoundError:  # another process was first
            return ""
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _publish(self, address: Address, new: _NewFile, pieces: Iterable[memoryview]) -> None:
        new.write(pieces)
        found = new.publish(address)
        if found.st_size >= LARGE:
            self._proofs.add(address, found)

    def get(self, address: Address) -> memoryview:
        """Return the verified bytes. If the view isn't read-only, it is the caller's own. Raises ValueLost."""
        return self._read(self._get, address)

    def map(self, address: Address) -> memoryview:
        """Return a view, of the file itself if it is large: what is written to it is the caller's. Raises ValueLost.

        It is hashed unless this user wrote or hashed it on this machine and the file hasn't been touched since.
        """
        return self._read(self._map, address)

    def _read(self, read: Callable[[Address, int], memoryview], address: Address) -> memoryview:
        """Read a blob, which is first taken out of the trash if a sweep has put it there. One that is damaged goes."""
        if not _ADDRESS.fullmatch(address):
            raise ValueLost(f"{address!a} in {self._store} is no blob")
        for _ in range(TRIES):
            try:
                fd = self._open(address)
            except Missing:
                if self._restore(address):
                    continue
                raise
            try:
                return read(address, fd)
            except Damaged as damaged:
                if refused := self._set_aside(address, os.fstat(fd)):
                    raise Damaged(f"{damaged}, and can't be moved to {self.trash.path}: {refused}") from None
                raise
            finally:
                os.close(fd)
        raise Missing(f"blob {address[:12]} is missing in {self._store}")

    def addresses(self) -> Iterator[Address]:
        """Yield the addresses of all blobs."""
        for first in self._parts():
            with Folder(first, self._folder) as part:
                names = part.names()
            yield from (first + name for name in names if _ADDRESS.fullmatch(first + name))

    def inspect(self, address: Address, repair: bool = False) -> Condition:
        """Read a blob, wherever it is; return its condition. ``repair``: move it into the trash if it is damaged."""
        found: os.stat_result | None = None
        try:
            fd = self._open_anywhere(address)
            try:
                found = os.fstat(fd)
                self._check_size(address, found, mapped=True)
                if _hashed_file(fd) == address:
                    return Condition("", found.st_size)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return Condition("missing")
        except (Damaged, ForeignFile):
            pass
        except OSError as error:
            return Condition(f"can't be read: {error.strerror}", refused="read it again when the disk works again")
        size = found.st_size if found is not None else 0
        if not repair:
            return Condition("damaged", size)
        refused = self._set_aside(address, found)
        if refused:
            return Condition("damaged", size, refused=f"can't be moved to trash/: {refused}")
        return Condition("damaged", size, "moved to trash/")

    def _open_anywhere(self, address: Address) -> int:
        """Return a descriptor of a blob, which may be in the trash, from where a reader takes it back."""
        try:
            with self._part(address) as part:
                return part.open(address[2:])
        except FileNotFoundError:
            return self.trash.open(address)

    def _restore(self, address: Address) -> bool:
        """Take a blob out of the trash. Return whether it may be there now: a sweep may be moving it, there or back."""
        try:
            self.trash.touch(address)
            with self._folder.make(address[:2]) as part:
                self.trash.rename(address, address[2:], part)
            return True
        except FileNotFoundError:
            return self._exists(address)

    def _exists(self, address: Address) -> bool:
        for folder, name in ((self._part(address), address[2:]), (self.trash, address)):
            with suppress(FileNotFoundError):
                folder.stat(name)
                return True
        return False

    def _get(self, address: Address, fd: int) -> memoryview:
        found = os.fstat(fd)
        size = found.st_size
        self._check_size(address, found)
        if size >= LARGE:
            data, hasher = _read_parallel(fd, size), system.hasher(size)
        else:
            with open(fd, "rb", buffering=0, closefd=False) as file:
                data, hasher = memoryview(file.readall()), blake3()
        if hasher.update(data).hexdigest(length=20) != address:
            raise Damaged(f"blob {address[:12]} in {self._store} is damaged")
        if size >= LARGE:
            self._proofs.add(address, found)
        return data

    def _map(self, address: Address, fd: int) -> memoryview:
        found = os.fstat(fd)
        if found.st_size < LARGE:
            return self._get(address, fd).toreadonly()
        self._check_size(address, found, mapped=True)
        memory = system.private_map(fd)
        data = memoryview(memory)
        if not self._proofs.holds(address, found):
            if _hashed([data]) != address:
                raise Damaged(f"blob {address[:12]} in {self._store} is damaged")
            self._proofs.add(address, found)
        system.MEMORY.adopt(memory, address)
        return data

    def _check_size(self, address: Address, found: os.stat_result, mapped: bool = False) -> None:
        """Raise ValueLost where a file is larger than the memory, and Damaged if most of that is holes, not data."""
        size, memory = found.st_size, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        if size > memory:
            if found.st_blocks * 512 < size // 2:
                raise Damaged(f"blob {address[:12]} in {self._store} is damaged")
            if not mapped:
                raise ValueLost(f"blob {address[:12]} in {self._store} ({size:,} bytes) is larger than the memory here")

    def _open(self, address: Address) -> int:
        try:
            with self._part(address) as part:
                return part.open(address[2:])
        except FileNotFoundError:
            raise Missing(f"blob {address[:12]} is missing in {self._store}") from None
        except ForeignFile as error:
            self._set_aside(address, None)
            raise Damaged(f"blob {address[:12]} in {self._store} is damaged: {error.strerror}") from None

    def sweep(self, keep: Collection[Address], now: float, before: float, dry_run: bool) -> tuple[int, int]:
        """Move blobs last touched before a time into the trash, except those to keep, and empty it of old ones.

        Return how many and their bytes. Times are the file server's.
        """
        self._root.make("trash").close()
        blobs = size = 0
        for first in self._parts():
            with Folder(first, self._folder) as part:
                for name in part.names():
                    address = first + name
                    try:
                        found = part.stat(name)
                    except FileNotFoundError:  # another sweep was first
                        continue
                    if address in keep or found.st_mtime > before:
                        continue
                    if dry_run or self._throw_away(part, name, address, before):
                        blobs += 1
                        size += found.st_size
        if not dry_run:
            remove_older(self.trash, now - TRASH_KEPT)
            for folder in (self._folder, self._root / "scratch"):
                remove_older(folder, now - UNFINISHED, hidden=True)
        return blobs, size

    def _parts(self) -> list[str]:
        return [name for name in self._folder.names() if stat.S_ISDIR(self._folder.stat(name).st_mode)]

    def _throw_away(self, part: Folder, name: str, address: Address, before: float) -> bool:
        """Move a blob into the trash, unless it was put again meanwhile, which touches the file wherever it is."""
        try:
            if part.stat(name).st_mtime > before:
                return False
            part.rename(name, address, self.trash)
            if self.trash.stat(address).st_mtime > before:
                self.trash.rename(address, name, part)
                return False
            self.trash.touch(address)
        except FileNotFoundError:  # another sweep was first
            return False
        return True


class Proofs:
    """Which files were verified, and not touched since: same inode, size and times.

    Kept in the user's cache folder, not in the store, where others might write. Without it, blobs are hashed again.
    """

    _record = struct.Struct("<20sQQQQQ")

    def __init__(self, store_id: str) -> None:
        self._name = f"{store_id}.{system.machine()}"
        self._known: set[bytes] = set()
        self._read = False

    def holds(self, address: Address, stat: os.stat_result) -> bool:
        record = self._of(address, stat)
        if record not in self._known and not self._read:
            self._read = True
            self._recall()
        return record in self._known

    def add(self, address: Address, stat: os.stat_result) -> None:
        record = self._of(address, stat)
        if record in self._known:
            return
        self._known.add(record)
        with suppress(OSError):  # a cache: without one, blobs are hashed again
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size >= RECORDS * self._record.size:
                    os.ftruncate(fd, 0)
                os.write(fd, record)
            finally:
                os.close(fd)

    def _recall(self) -> None:
        try:
            with open(self._path(), "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o022 or os.fstat(file.fileno()).st_uid != os.geteuid():
                    return  # others may have written it
                data = file.read()
        except OSError:
            return
        whole = len(data) - len(data) % self._record.size
        self._known.update(data[at : at + self._record.size] for at in range(0, whole, self._record.size))

    def _path(self) -> Path:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "jug_notebook" / "proofs" / self._name

    def _of(self, address: Address, stat: os.stat_result) -> bytes:
        return self._record.pack(
            bytes.fromhex(address), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        )


class _NewFile:
    """A file under a hidden name, until it is published."""

    def __init__(self, folder: Folder, size: int) -> None:
        self._folder = folder
        self._size = size
        self._name = hidden()
        self._fd = -1
        self._written = 0

    def write(self, pieces: Iterable[memoryview], stop: Callable[[], bool] = lambda: False) -> None:
        """Append bytes, until ``stop`` returns True. The disk writes while the rest of a large file follows."""
        try:
            if self._fd < 0:
                self._fd = self._folder.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            for piece in pieces:
                at = 0
                while at < piece.nbytes and not stop():
                    written = os.write(self._fd, piece[at : at + STRIDE])
                    at += written
                    if written >= LARGE:
                        _start_writing(self._fd, self._written, written)
                    self._written += written
        except OSError as error:
            raise self._failed(error) from error

    def publish(self, address: Address) -> os.stat_result:
        """Give it its name, durably. Return what is known of the file."""
        try:
            os.fsync(self._fd)
            with self._folder.make(address[:2]) as part:
                self._folder.publish(self._name, address[2:], to=part)
            found = os.fstat(self._fd)
            fd, self._fd = self._fd, -1
            os.close(fd)
        except OSError as error:
            raise self._failed(error) from error
        return found

    def _failed(self, error: OSError) -> StoreError:
        """Remove it. Return what to raise. A cause for want of room tells how much there is."""
        with suppress(OSError):
            self.drop()
        if error.errno == errno.ENOSPC:
            disk = os.statvfs(self._folder.fd)
            free, total = (size_in_words(count * disk.f_frsize) for count in (disk.f_bavail, disk.f_blocks))
            error.strerror = f"{error.strerror} ({size_in_words(self._size)} needed, {free} of {total} free)"
        return StoreError(f"can't write to {self._folder.path}: {error.strerror}")

    def drop(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self._folder.unlink(self._name)


def _hashed(pieces: list[memoryview]) -> Address:
    return system.hashed(pieces).hex()


def _hashed_file(fd: int) -> Address:
    """Return the address of what is in a file, read from its beginning in bounded memory."""
    hasher, at = system.hasher(os.fstat(fd).st_size), 0
    while data := os.pread(fd, STRIDE, at):
        hasher.update(data)
        at += len(data)
    return hasher.hexdigest(length=20)


def _read_parallel(fd: int, size: int) -> memoryview:
    """Read a whole file by several threads: most of the time is copying from the system's cache."""
    data = system.private(size)
    share = -(-size // min(READERS, system.cores()))
    share += -share % mmap.PAGESIZE
    failed: list[OSError | ValueLost] = []

    def read(start: int) -> None:
        at, end = start, min(size, start + share)
        try:
            while at < end:
                got = os.preadv(fd, [data[at : min(end, at + STRIDE)]], at)
                if not got:
                    raise ValueLost("a blob is shorter than it was")
                at += got
        except (OSError, ValueLost) as error:
            failed.append(error)

    helpers = [threading.Thread(target=read, args=(start,), name="jug-read") for start in range(share, size, share)]
    for helper in helpers:
        helper.start()
    read(0)
    for helper in helpers:
        helper.join()
    if failed:
        raise failed[0]
    return data


@functools.cache
def _sync_file_range() -> Callable[..., int] | None:
    """Return Linux's call to start writing to the disk without waiting for it, as `fsync` does; None elsewhere."""
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call: Callable[..., int] = found
    return call


def _start_writing(fd: int, offset: int, size: int) -> None:
    start = _sync_file_range()
    if start is not None:
        start(fd, offset, size, _SYNC_FILE_RANGE_WRITE)
