"""Stores in folders. Whoever holds a lock is looked after by the store, so keeping it alive needs nothing more."""

from __future__ import annotations

import os

from jug_notebook.compat.jugdir import Jugdir

__all__ = ["file_keepalive_store", "file_store", "fsync_dir"]


def file_store(dname: str, compress_numpy: bool = False) -> Jugdir:
    return Jugdir(dname)


file_keepalive_store = file_store


def fsync_dir(fname: str) -> None:
    """Put on the disk what the folder of a file says."""
    folder = os.open(os.path.dirname(os.path.abspath(fname)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
