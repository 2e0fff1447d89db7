"""Blobs in a folder: files of large bytes, each named by the blake3 hash of its content, as ``ab/cd…``.

A large blob is hashed while it is written. It is read by several threads into memory of the reader's own and hashed
there, so what is returned is what was verified, whatever happens to the file. A *map* of a blob is a view of the file
itself: that it was verified is remembered (`Proofs`) as long as the file isn't touched.

Blobs that nothing refers to are swept into a ``trash`` folder first. There they are removed after a day, unless
somebody reads or writes one before that: then it comes back.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import struct
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from jug_notebook import system
from jug_notebook.errors import StoreError, ValueLost
from jug_notebook.model import Address
from jug_notebook.store.atomic import hidden, publish
from jug_notebook.store.file.folders import listed, remove_older

LARGE = 1 << 20  #: bytes from which blobs are hashed while written, may be mapped, and have proofs that are kept
STRIDE = 1 << 24  #: bytes written or read in one go
READERS = 4  #: threads that read one blob, at most
RECORDS = 1 << 16  #: proofs after which the file that keeps them begins anew
TRASH_KEPT = 86_400.0  #: seconds for which swept blobs stay in the trash
_SYNC_FILE_RANGE_WRITE = 2


class Missing(ValueLost):
    """There is no blob of that name."""


class Blobs:
    """The blobs of a store's folder. ``store`` names the store to people."""

    def __init__(self, folder: Path, store: str, proofs: Proofs, mode: int = 0o600) -> None:
        self.mode = mode  #: of its files; if a group may read them, it may write to the folders
        self._folder = folder
        self._store = store
        self.trash = folder.parent / "trash"
        self._proofs = proofs

    def path(self, address: Address) -> Path:
        return self._folder / address[:2] / address[2:]

    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Keep bytes, once. Return their address. Durable on return."""
        pieces = [memoryview(part).cast("B") for part in parts]
        size = sum(piece.nbytes for piece in pieces)
        if size < LARGE:
            address = _hashed(pieces)
            if not self._known(address, size):
                self._publish(address, _NewFile(self._folder, self.mode), pieces)
            return address
        hashed = system.known(pieces)
        if hashed is not None and self._known(hashed.hex(), size):
            return hashed.hex()
        new = _NewFile(self._folder, self.mode)
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
        """Return True if it is there already; then touch it, so that it isn't swept."""
        path = self.path(address)
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            return False
        if stat.st_size != size:
            return False
        proven = size >= LARGE and self._proofs.holds(address, stat)
        try:
            with suppress(PermissionError):  # another user's
                os.utime(path)
            if proven:
                self._proofs.add(address, os.stat(path))
        except FileNotFoundError:  # swept at this moment
            return False
        return True

    def _publish(self, address: Address, new: _NewFile, pieces: Iterable[memoryview]) -> None:
        path = self.path(address)
        new.write(pieces)
        new.publish(path)
        with suppress(FileNotFoundError):  # swept at this moment; a reader takes it out of the trash
            stat = os.stat(path)
            if stat.st_size >= LARGE:
                self._proofs.add(address, stat)

    def get(self, address: Address) -> memoryview:
        """Return the verified bytes. If the view isn't read-only, it is the caller's own. Raises ValueLost."""
        return self._read(self._get, address)

    def map(self, address: Address) -> memoryview:
        """Return a view, of the file itself if it is large: what is written to it is the caller's. Raises ValueLost.

        It is hashed unless this user wrote or hashed it on this machine and the file hasn't been touched since.
        """
        return self._read(self._map, address)

    def _read(self, read: Callable[[Address], memoryview], address: Address) -> memoryview:
        """Read a blob, which is first taken out of the trash if a sweep has put it there."""
        path, swept = self.path(address), self.trash / address
        while True:
            try:
                return read(address)
            except Missing as missing:
                try:
                    os.utime(swept)
                    path.parent.mkdir(exist_ok=True)
                    os.rename(swept, path)
                except FileNotFoundError:
                    if not (path.exists() or swept.exists()):  # else a sweep is moving it, there or back
                        raise missing from None

    def _get(self, address: Address) -> memoryview:
        fd = self._open(address)
        try:
            stat = os.fstat(fd)
            size = stat.st_size
            if size >= LARGE:
                data, threads = _read_parallel(fd, size), int(blake3.AUTO)
            else:
                with open(fd, "rb", buffering=0, closefd=False) as file:
                    data, threads = memoryview(file.readall()), 1
            if blake3(data, max_threads=threads).hexdigest(length=20) != address:
                raise ValueLost(f"blob {address[:12]} in {self._store} is damaged")
        finally:
            os.close(fd)
        if size >= LARGE:
            self._proofs.add(address, stat)
        return data

    def _map(self, address: Address) -> memoryview:
        fd = self._open(address)
        try:
            stat = os.fstat(fd)
            if stat.st_size < LARGE:
                return self._get(address).toreadonly()
            memory = system.private_map(fd)
        finally:
            os.close(fd)
        data = memoryview(memory)
        if not self._proofs.holds(address, stat):
            if _hashed([data]) != address:
                raise ValueLost(f"blob {address[:12]} in {self._store} is damaged")
            self._proofs.add(address, stat)
        system.MEMORY.adopt(memory, address)
        return data

    def _open(self, address: Address) -> int:
        try:
            return os.open(self.path(address), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Missing(f"blob {address[:12]} is missing in {self._store}") from None

    def sweep(self, keep: Collection[Address], now: float, before: float, dry_run: bool) -> tuple[int, int]:
        """Move blobs last touched before a time into the trash, except those to keep, and empty it of old ones.

        Return how many and their bytes. Times are the file server's.
        """
        self.trash.mkdir(exist_ok=True, mode=0o700)
        blobs = size = 0
        for part in map(self._folder.joinpath, listed(self._folder)):
            for entry in os.scandir(part):
                address = part.name + entry.name
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # another sweep was first
                    continue
                if address in keep or entry.name.startswith(".") or stat.st_mtime > before:
                    continue
                if dry_run or self._throw_away(Path(entry.path), address, before):
                    blobs += 1
                    size += stat.st_size
        if not dry_run:
            remove_older(self.trash, now - TRASH_KEPT)
        return blobs, size

    def _throw_away(self, path: Path, address: Address, before: float) -> bool:
        """Move a blob into the trash, unless it was put again meanwhile, which touches the file wherever it is."""
        swept = self.trash / address
        try:
            if path.stat().st_mtime > before:
                return False
            os.rename(path, swept)
            if swept.stat().st_mtime > before:
                os.rename(swept, path)
                return False
            os.utime(swept)
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

    def __init__(self, folder: Path, mode: int) -> None:
        self._path = hidden(folder)
        self._mode = mode
        self._fd = -1
        self._written = 0

    def write(self, pieces: Iterable[memoryview], stop: Callable[[], bool] = lambda: False) -> None:
        """Append bytes, until ``stop`` returns True. The disk writes while the rest of a large file follows."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
                os.fchmod(self._fd, self._mode)  # whatever the umask is
            for piece in pieces:
                at = 0
                while at < piece.nbytes and not stop():
                    written = os.write(self._fd, piece[at : at + STRIDE])
                    at += written
                    if written >= LARGE:
                        _start_writing(self._fd, self._written, written)
                    self._written += written
        except OSError as error:
            self.drop()
            raise StoreError(f"can't write to {self._path.parent}: {error.strerror}") from error

    def publish(self, path: Path) -> None:
        """Give it its name, durably."""
        try:
            os.fsync(self._fd)
            path.parent.mkdir(exist_ok=True)
            if self._mode & 0o060 and path.parent.stat().st_uid == os.getuid():
                os.chmod(path.parent, 0o2770)
            publish(self._path, path)
            os.close(self._fd)
            self._fd = -1
        except OSError as error:
            self.drop()
            raise StoreError(f"can't write to {path.parent}: {error.strerror}") from error

    def drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._path.unlink(missing_ok=True)


def _hashed(pieces: list[memoryview]) -> Address:
    return system.hashed(pieces).hex()


def _read_parallel(fd: int, size: int) -> memoryview:
    """Read a whole file by several threads: most of the time is copying from the system's cache."""
    data = system.private(size)
    share = -(-size // min(READERS, system.cores()))
    share += -share % mmap.PAGESIZE
    failed: list[OSError] = []

    def read(start: int) -> None:
        at, end = start, min(size, start + share)
        try:
            while at < end:
                got = os.preadv(fd, [data[at : min(end, at + STRIDE)]], at)
                if not got:
                    raise OSError(errno.EIO, "shorter than it was")
                at += got
        except OSError as error:
            failed.append(error)

    helpers = [threading.Thread(target=read, args=(start,), name="jug-read") for start in range(share, size, share)]
    for helper in helpers:
        helper.start()
    read(0)
    for helper in helpers:
        helper.join()
    if failed:
        raise ValueLost(f"a blob can't be read: {failed[0].strerror}") from failed[0]
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
