"""Names of values. Ours: equal values have equal names in every process, and different ones different names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from jug_notebook.keys.digest import digest

__all__ = ["hash_one", "hash_update", "new_hash_object"]


def new_hash_object() -> Any:
    return hashlib.sha1()


def hash_update(M: Any, elems: Iterable[tuple[Any, Any]]) -> Any:
    """Take in ``(name, value)`` pairs."""
    for pair in elems:
        M.update(digest(tuple(pair)))
    return M


def hash_one(obj: Any) -> bytes:
    """The name of a value, 40 hex digits."""
    return digest(obj).hex().encode()
