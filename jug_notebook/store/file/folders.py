"""Files and folders of a store, which other processes, and maybe other users, look at while this one writes."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from jug_notebook.errors import StoreError
from jug_notebook.store import atomic


def share_like(folder: Path, *names: Path) -> None:
    """Open files and folders to the group, whatever the umask is, if ``folder`` (the store or one in it) is open."""
    if folder.stat().st_mode & 0o020:
        for name in names:
            with suppress(PermissionError):  # another user's, who has done so
                name.chmod(0o2770 if name.is_dir() else 0o660)


def replace(path: Path, *pieces: bytes | memoryview, durable: bool = False, mode: int = 0o600) -> None:
    """Write a file as a whole. Raises StoreError where that can't be done."""
    try:
        atomic.replace(path, *pieces, durable=durable, mode=mode)
    except OSError as error:
        raise StoreError(f"can't write to {path.parent}: {error.strerror}") from error


def listed(folder: Path) -> list[str]:
    """Return the names in a folder except hidden ones; none if there is no such folder."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def length(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def remove_older(folder: Path, than: float, keep: Collection[str] = ()) -> None:
    """Remove files last changed before a time (of the file server, seconds since the epoch), except those to keep."""
    for name in listed(folder):
        with suppress(FileNotFoundError):
            if name not in keep and (folder / name).stat().st_mtime < than:
                (folder / name).unlink()


def server_time(folder: Path) -> float:
    """Return the file server's time. Hosts' clocks may differ from it, and all times of files are the server's."""
    path = atomic.hidden(folder)
    path.touch()
    try:
        return path.stat().st_mtime
    finally:
        path.unlink()
