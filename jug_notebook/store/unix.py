"""``unix:///run/redis.sock?project=NAME``: a store in a Redis server of this host, through its socket."""

from __future__ import annotations

from jug_notebook.clock import Clock
from jug_notebook.store.redis import RedisStore


def open(rest: str, clock: Clock) -> RedisStore:
    """As ``redis://``."""
    return RedisStore("unix", rest, clock)
