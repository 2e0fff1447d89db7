"""``rediss://…``: a store in a Redis server, over TLS. The certificates are options of the URL: ``&ssl_ca_certs=FILE``."""

from __future__ import annotations

from jug_notebook.clock import Clock
from jug_notebook.store.redis import RedisStore


def open(rest: str, clock: Clock) -> RedisStore:
    """As ``redis://``."""
    return RedisStore("rediss", rest, clock)
