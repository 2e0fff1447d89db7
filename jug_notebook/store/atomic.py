"""Folders that others may write to, and files in them that readers see whole or not at all.

Whoever may write to a folder may put anything there: links to files elsewhere, pipes that block who opens them. So a
`Folder` is held by a descriptor, and what is in it is reached from there by its name alone: no link is followed, and
what isn't a regular file of its owners is refused with `ForeignFile`. Everything that is opened in a store's folder is
opened here. Links above a folder, on the way to it, are the business of whoever gave its path.

A file is written under a hidden name (one that begins with a dot) and then renamed or linked to its own, so writer or
host may stop in the middle. What is *durable* is synced as well: it outlives a crash of the host.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import weakref
from pathlib import Path

from jug_notebook.clock import Clock

USUAL = 0o666  #: the mode of files of which the umask decides who may read them
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # without O_NONBLOCK, opening a pipe would wait for its writer
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
_REFUSED = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.ENOTDIR)  # by open, where it isn't a file


class ForeignFile(OSError):
    """What has that name in a folder isn't a file of the folder's owners, or not one of a sensible size."""


class Folder:
    """A folder, held by a descriptor from its first use until `close`. Its methods raise OSError, and ForeignFile.

    ``mode`` is that of the files made in it and below it: 0o600, or 0o660 where its group shares it.
    """

    _fd = -1  # of the class, for `close` comes even if an interrupt leaves no time to set anything
    _folders: weakref.WeakValueDictionary[str, Folder] | None = None

    def __init__(self, place: Path | str, parent: Folder | None = None) -> None:
        """``place``: the path of the folder, or its name in its parent."""
        self._name = str(place)
        self._parent = parent
        self._mode = 0o600
        self._stat: os.stat_result | None = None
        self._lock: threading.RLock = parent._lock if parent is not None else threading.RLock()

    @property
    def _root(self) -> Folder:
        return self if self._parent is None else self._parent._root

    @property
    def name(self) -> str:
        """The name in the parent folder."""
        return self._name

    @property
    def parent(self) -> Folder:
        assert self._parent is not None
        return self._parent

    def __str__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Folder) and (self._name, self._parent) == (other._name, other._parent)
        )

    def __hash__(self) -> int:
        return hash(self._name)

    @property
    def path(self) -> Path:
        return Path(self._name) if self._parent is None else self._parent.path / self._name

    @property
    def mode(self) -> int:
        return self._root._mode

    @mode.setter
    def mode(self, mode: int) -> None:
        self._root._mode = mode

    @property
    def fd(self) -> int:
        """The descriptor. Raises ForeignFile where the name in the parent folder is no folder."""
        if self._fd < 0:
            with self._lock:
                if self._fd < 0:
                    self._fd = self._open()
        return self._fd

    def _open(self) -> int:
        if self._parent is None:
            return os.open(self._name, _FOLDER)
        parent = self._parent.fd
        try:
            return os.open(self._name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            if error.errno in _REFUSED:
                raise self._parent._foreign(self._name, "folder") from None
            raise

    def __truediv__(self, name: str) -> Folder:
        """Return what has a name in this folder: another one, or a file. Nothing is opened."""
        if self._folders is None:
            self._folders = weakref.WeakValueDictionary()
        folder = self._folders.get(name)
        return folder if folder is not None else self._folders.setdefault(name, Folder(name, self))

    def make(self, name: str) -> Folder:
        """Make a folder in this one, if there is none. Return it, to be closed by the caller."""
        folder = Folder(name, self)
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
        except FileExistsError:
            return folder
        if self.mode & 0o060:
            os.fchmod(folder.fd, 0o2770)
        return folder

    def close(self) -> None:
        """Let go of it, and of the folders in it. They are opened again when needed."""
        for folder in list((self._folders or {}).values()):
            folder.close()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # so that an interrupt leaves no number of a file that isn't ours
            os.close(fd)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:  # whoever held it may be dropped without being closed
        self.close()

    def moved(self) -> bool:
        """Return whether another folder, or none, is now at the path of this one."""
        try:
            return not os.path.samestat(os.stat(self._name), self._found())
        except OSError:
            return True

    def _found(self) -> os.stat_result:
        """Return what was known of the folder when it was opened."""
        if self._stat is None:
            self._stat = os.fstat(self.fd)
        return self._stat

    def renew(self) -> None:
        """Hold what has the name now, and so for the folders in it."""
        if self._fd >= 0:
            now = self._open()
            os.dup2(now, self._fd, inheritable=False)  # others may be using that number
            os.close(now)
            self._stat = None
        for folder in list((self._folders or {}).values()):
            try:
                folder.renew()
            except FileNotFoundError:
                continue

    # -- files ---------------------------------------------------------------------------------------------------------

    def open(self, name: str, flags: int = os.O_RDONLY, mode: int | None = None) -> int:
        """Return a descriptor of a file. One that is made here gets the mode, whatever the umask is.

        A file of several names isn't opened for writing: the others may be anywhere.
        """
        mode, folder = self.mode if mode is None else mode, self.fd
        try:
            fd = os.open(_checked(name), flags | _SAFELY, mode, dir_fd=folder)
        except BlockingIOError:  # another machine has it on loan from this one's NFS server, and is asked to return it
            if not stat.S_ISREG(self.stat(name).st_mode):
                raise
            fd = os.open(name, (flags | _SAFELY) & ~os.O_NONBLOCK, mode, dir_fd=folder)
        except OSError as error:
            if error.errno in _REFUSED:
                raise self._foreign(name) from None
            raise
        try:
            found = os.fstat(fd)
            writes = flags & (os.O_WRONLY | os.O_RDWR)
            if not self._is_ours(found) or (writes and found.st_nlink > 1):
                raise self._foreign(name)
            if flags & os.O_CREAT and mode != USUAL and found.st_size == 0 and stat.S_IMODE(found.st_mode) != mode:
                os.fchmod(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_ours(self, found: os.stat_result) -> bool:
        holder = self._root._found()
        return stat.S_ISREG(found.st_mode) and (
            found.st_uid in (os.geteuid(), holder.st_uid, 0)
            or (bool(holder.st_mode & 0o020) and found.st_gid == holder.st_gid)
        )

    def _foreign(self, name: str, wanted: str = "file") -> ForeignFile:
        """Return the error that says what has that name."""
        try:
            found = self.stat(name)
            kind = _KINDS.get(stat.S_IFMT(found.st_mode)) or (
                "a file with another name elsewhere" if found.st_nlink > 1 else "another user's file"
            )
        except OSError:
            kind = "something else"
        return ForeignFile(errno.ELOOP, f"{str(self.path / name)!a} is {kind}, no {wanted} of ours; remove it")

    def read(self, name: str, most: int = 1 << 20) -> bytes:
        """Return a file's content. One of more than ``most`` bytes is refused."""
        return self.read_with_time(name, most)[0]

    def read_with_time(self, name: str, most: int = 1 << 20) -> tuple[bytes, float]:
        """Return a file's content, and when it was written (file server's clock, seconds since the epoch)."""
        fd = self.open(name)
        try:
            found = os.fstat(fd)
            if found.st_size > most:
                size = f"{found.st_size:,} bytes"
                raise ForeignFile(errno.EFBIG, f"{str(self.path / name)!a} has {size}, too many; remove it")
            return os.read(fd, found.st_size + 1), found.st_mtime
        finally:
            os.close(fd)

    def tail(self, name: str, most: int) -> bytes:
        """Return the end of a file, at most so many bytes."""
        fd = self.open(name)
        try:
            return os.pread(fd, most, max(0, os.fstat(fd).st_size - most))
        finally:
            os.close(fd)

    def write(self, name: str, data: bytes) -> None:
        """Write over the beginning of a file in place, in one call. What else has its name is removed first."""
        fd = self._open_own(name, os.O_WRONLY)
        try:
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)

    def append(self, name: str, data: bytes) -> None:
        """Append to a file, which is made if it's new. What else has its name is removed first."""
        fd = self._open_own(name, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def _open_own(self, name: str, flags: int) -> int:
        try:
            return self.open(name, flags | os.O_CREAT)
        except ForeignFile:
            self.unlink(name)
            return self.open(name, flags | os.O_CREAT)

    def write_hidden(self, *pieces: bytes | memoryview, durable: bool = False, mode: int | None = None) -> str:
        """Write a new file under a hidden name. Return the name. Where that fails, no file is left."""
        name = hidden()
        fd = self.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with open(fd, "wb", buffering=0) as file:
                for piece in pieces:
                    rest = memoryview(piece).cast("B")
                    while rest.nbytes:
                        rest = rest[file.write(rest) :]
                if durable:
                    os.fsync(file.fileno())
        except OSError:
            self.unlink(name)
            raise
        return name

    def publish(self, written: str, name: str, durable: bool = True, to: Folder | None = None) -> None:
        """Rename a hidden file to its own name, in this folder or another. Where that fails, it is removed."""
        try:
            self.rename(written, name, to)
        except OSError:
            self.unlink(written)
            raise
        if durable:
            (to or self).sync()

    def replace(self, name: str, *pieces: bytes | memoryview, durable: bool = False, mode: int | None = None) -> None:
        """Write a file, over one that may be there."""
        self.publish(self.write_hidden(*pieces, durable=durable, mode=mode), name, durable)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file durably unless there is one already. Return False if there is.

        Where the file system refuses hard links, a file that appears at the same moment is replaced.
        """
        written = self.write_hidden(data, durable=True)
        try:
            self.link(written, name)
        except FileExistsError:
            return False
        except OSError:
            self.publish(written, name)
            return True
        finally:
            self.unlink(written)
        self.sync()
        return True

    def stat(self, name: str = "") -> os.stat_result:
        """Return what is known of a name in it, or of its own: of a link itself, not of where it leads."""
        if not name:
            return self.parent.stat(self._name)
        return os.stat(_checked(name), dir_fd=self.fd, follow_symlinks=False)

    def touch(self, name: str, time: float | None = None) -> None:
        """Set the time of a file, to now by default."""
        times = None if time is None else (time, time)
        os.utime(_checked(name), times, dir_fd=self.fd, follow_symlinks=False)

    def link(self, name: str, other: str, to: Folder | None = None) -> None:
        """Give a file another name, in this folder or another."""
        os.link(_checked(name), _checked(other), src_dir_fd=self.fd, dst_dir_fd=(to or self).fd, follow_symlinks=False)

    def rename(self, name: str, other: str, to: Folder | None = None) -> None:
        """Rename a file, over one that may be there, in this folder or into another."""
        os.rename(_checked(name), _checked(other), src_dir_fd=self.fd, dst_dir_fd=(to or self).fd)

    def unlink(self, name: str) -> None:
        """Remove a file, or a link, if it's there."""
        try:
            os.unlink(_checked(name), dir_fd=self.fd)
        except FileNotFoundError:
            return

    def names(self, most: int | None = None, hidden: bool = False) -> list[str]:
        """Return the names in it, at most so many; ``hidden``: those that begin with a dot, instead of the others."""
        fd = os.open(".", _FOLDER, dir_fd=self.fd)  # the position in a listing belongs to the descriptor
        try:
            with os.scandir(fd) as entries:
                names = (entry.name for entry in entries if entry.name.startswith(".") == hidden)
                return list(itertools.islice(names, most))
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Make the names in it durable."""
        os.fsync(self.fd)

    def server_time(self) -> float:
        """Return the file server's time. Hosts' clocks may differ from it, and all times of files are the server's."""
        name = hidden()
        fd = self.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            self.unlink(name)

    def time(self, clock: Clock) -> float:
        """Return the same or, where nothing can be written, this host's time."""
        try:
            return self.server_time()
        except OSError:
            return clock.now()


def _checked(name: str) -> str:
    if "/" in name or "\0" in name:
        raise ForeignFile(errno.EINVAL, f"{name!a} is not a file name")
    return name


def hidden() -> str:
    """Return a new hidden name."""
    return f".{os.urandom(8).hex()}"


# -- files of which the user gives the path ----------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    with Folder(folder) as held:
        held.sync()


def replace(path: Path, *pieces: bytes | memoryview, durable: bool = False, mode: int = 0o600) -> None:
    """Write a file, over one that may be there. Raises OSError."""
    with Folder(path.parent) as folder:
        folder.replace(path.name, *pieces, durable=durable, mode=mode)


def create(path: Path, data: bytes) -> bool:
    """Write a file durably unless there is one already. Return False if there is. Raises OSError."""
    with Folder(path.parent) as folder:
        return folder.create(path.name, data)


def data_from(fd: int, at: int, size: int) -> int:
    """Return where an open file of that size has data next: it may have holes, as large as one likes."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:  # ENXIO: nothing but holes from here on; else the system can't tell
        return size if error.errno == errno.ENXIO else at
