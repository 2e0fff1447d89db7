"""``rediss://…``: a store in a Redis server, over TLS. Certificates are options of the URL: ``&ssl_ca_certs=FILE``."""

from __future__ import annotations

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.store.redis import RedisStore
from jug_notebook.store.redis.connection import Link, place


def open(rest: str, clock: Clock) -> RedisStore:
    """As ``redis://``."""
    return RedisStore("rediss", rest, clock)


def exists(rest: str) -> bool:
    """Is that project there?"""
    return bool(Link(place("rediss", rest), CLOCK, make=False).id)


def absolute(rest: str) -> str:
    """With the project, and whole paths."""
    return place("rediss", rest).url
