"""A store in a Redis server."""

from __future__ import annotations

from jug_notebook.compat.jugdir import Jugdir


def redis_store(url: str) -> Jugdir:
    return Jugdir(url)
