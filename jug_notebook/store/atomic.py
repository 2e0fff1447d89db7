"""Writes files that readers see whole or not at all, even when writer or host stops in the middle.

A file is written under a hidden name (one that begins with a dot) and then renamed or linked to its own. What is
*durable* is synced as well: it outlives a crash of the host.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hidden(folder: Path) -> Path:
    """Return a new hidden name in a folder."""
    return folder / f".{os.urandom(8).hex()}"


def write_hidden(folder: Path, *pieces: bytes | memoryview, durable: bool = False, mode: int | None = 0o600) -> Path:
    """Write a new file under a hidden name. Return its path. Raises OSError, and leaves no file then.

    ``mode`` None means the usual mode of the user's files.
    """
    path = hidden(folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(path, flags, 0o666 if mode is None else mode), "wb", buffering=0) as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)  # whatever the umask is
            for piece in pieces:
                rest = memoryview(piece).cast("B")
                while rest.nbytes:
                    rest = rest[file.write(rest) :]
            if durable:
                os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def publish(written: Path, path: Path, durable: bool = True) -> None:
    """Rename a hidden file to its own name, over a file that may be there. Raises OSError, and removes it then."""
    try:
        os.rename(written, path)
    except OSError:
        written.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def replace(path: Path, *pieces: bytes | memoryview, durable: bool = False, mode: int | None = 0o600) -> None:
    """Write a file, over one that may be there. Raises OSError."""
    publish(write_hidden(path.parent, *pieces, durable=durable, mode=mode), path, durable)


def create(path: Path, data: bytes) -> bool:
    """Write a file durably unless there is one already. Return False if there is. Raises OSError.

    Where the file system refuses hard links, a file that appears at the same moment is replaced.
    """
    written = write_hidden(path.parent, data, durable=True)
    try:
        os.link(written, path)
    except FileExistsError:
        return False
    except OSError:
        publish(written, path)
        return True
    finally:
        written.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True
