"""Files and folders that others look at, too: what appears appears whole, and who shares them may touch it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from jug_notebook.errors import StoreError


def share_like(folder: Path, *names: Path) -> None:
    """Open files and folders to the group, whatever the umask says, if ``folder`` is: the store's, or one in it."""
    if folder.stat().st_mode & 0o020:
        for name in names:
            with suppress(PermissionError):  # a colleague's, who has done so
                name.chmod(0o2770 if name.is_dir() else 0o660)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def appear(path: Path, *pieces: bytes | memoryview, durable: bool = False, mode: int = 0o600) -> None:
    """Write aside, then appear: a reader sees all of a file or none."""
    aside = path.parent / f".{os.urandom(8).hex()}"
    try:
        with aside.open("wb", buffering=0) as file:
            os.chmod(file.fileno(), mode)
            for piece in pieces:
                rest = memoryview(piece).cast("B")
                while rest.nbytes:
                    rest = rest[file.write(rest) :]
            if durable:
                os.fsync(file.fileno())
        os.rename(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StoreError(f"can't write to {path.parent}: {error.strerror}") from error
    if durable:
        sync_folder(path.parent)


def listed(folder: Path) -> list[str]:
    """The names in a folder that are no asides; none where there is no such folder yet."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
