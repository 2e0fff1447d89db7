"""The keys that sign what is in stores: one file per store in the user's config folder, readable by the user alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jug_notebook.errors import StoreError
from jug_notebook.store.atomic import create

SIZE = 32  #: bytes of a key
_STORE = re.compile(r"[0-9A-Za-z_-]{1,100}")

_here: dict[str, bytes] = {}  # keys of stores that live in this process, and those already read


def folder() -> Path:
    """Return the folder of the keys: ``$XDG_CONFIG_HOME/jug_notebook/keys``, or the same in ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "jug_notebook" / "keys"


def secret(store_id: str, make: bool = False, lasting: bool = True) -> bytes:
    """Return the key of a store. With ``make``, make a missing one; without ``lasting``, keep it in this process only.

    Raises StoreError where there is none, or where other users could read it.
    """
    known = _here.get(store_id)
    if known is None and lasting:
        known = _read(store_id)
    if known is None:
        if not make:
            raise StoreError(
                f"the key of store {store_id[:12]} is not in {folder()}, so its tasks can't be trusted or signed; "
                "copy the file of that name from the account that made the store, or use a new store"
            )
        return put(store_id, os.urandom(SIZE), lasting)
    _here[store_id] = known
    return known


def put(store_id: str, value: bytes, lasting: bool = True) -> bytes:
    """Keep a key, unless the store has one already. Return the one it has. Raises StoreError."""
    if len(value) != SIZE:
        raise StoreError(f"a store's key has {SIZE} bytes, not {len(value)}")
    if lasting:
        value = _write(store_id, value)
    return _here.setdefault(store_id, value)


def _path(store_id: str) -> Path:
    if not _STORE.fullmatch(store_id):
        raise StoreError(f"{store_id[:40]!r} is not the id of a store")
    return folder() / store_id


def _read(store_id: str) -> bytes | None:
    path = _path(store_id)
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            value = file.read(SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the key of store {store_id[:12]} can't be read: {error}") from error
    if mode & 0o077:
        raise StoreError(f"{path} can be read or written by other users; if none of them did, run: chmod 600 {path}")
    if len(value) != SIZE:
        raise StoreError(f"{path} is not a key of {SIZE} bytes; copy it again from where the store was made")
    return value


def _write(store_id: str, value: bytes) -> bytes:
    """Write the key, unless another process has written one first. Return the one that is kept."""
    path = _path(store_id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not create(path, value):
            value = _read(store_id) or value
    except OSError as error:
        raise StoreError(
            f"the store's key can't be kept in {path.parent}: {error}; set XDG_CONFIG_HOME to a folder you may write to"
        ) from error
    return value
