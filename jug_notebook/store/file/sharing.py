"""Sharing a store with a group of users: one key for all of them, kept in the store itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from jug_notebook.errors import StoreError
from jug_notebook.store import Store, keyring


def join(store: Store, shared: str, secret: Callable[[], bytes]) -> None:
    """Share the user's own store with its group, or take the key of a store that a colleague shares. Raises StoreError.

    This is mutual trust, as a message says once: each member can run code as every other member who uses the store.
    """
    if shared != "group":
        raise StoreError(f"shared={shared!r} means nothing; give shared='group', or leave it out")
    file: Any = store
    if not hasattr(store, "share"):
        raise StoreError(
            f"{store.display_url} has no group; share it by its key: jug-notebook key export, jug-notebook key import"
        )
    new = not file.shared
    if new:
        file.share(secret())
    key = file.shared_key()
    known = _known(store)
    if keyring.put(store.id, key) != key:
        raise StoreError(f"{keyring.folder()} has another key of store {store.id[:8]}; move that file away first")
    if new or not known:
        print(
            f"jug_notebook: {store.display_url} is shared with group {file.group}. Its members can run code as you, "
            "and you as them",
            file=sys.stderr,
        )


def advice(store: Store) -> str:
    """Return what to do about a missing key if the store is shared; else an empty string."""
    if not getattr(store, "shared", ""):
        return ""
    file: Any = store
    return (
        f"{store.display_url} is shared with group {file.group}. Its members could run code as you, and you as them. "
        f"If that is fine: jn.connect({store.url.partition(':')[2]!r}, shared='group'), or in a shell: "
        f"jug-notebook key import < {file.folder}/key"
    )


def _known(store: Store) -> bool:
    try:
        keyring.secret(store.id)
    except StoreError:
        return False
    return True


__all__ = ["advice", "join"]
