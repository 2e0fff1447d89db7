"""A cache of bounded size."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """Keeps the items used last: at most ``places`` of them, with at most ``weight`` in all."""

    def __init__(self, places: int, weight: int = 1 << 62) -> None:
        self._places = places
        self._weight = weight
        self._things: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._heavy = 0

    def get(self, name: K) -> V | None:
        found = self._things.get(name)
        if found is None:
            return None
        self._things.move_to_end(name)
        return found[0]

    def drop(self, name: K) -> None:
        _, weight = self._things.pop(name, (None, 0))
        self._heavy -= weight

    def put(self, name: K, thing: V, weight: int = 0) -> None:
        if weight > self._weight or name in self._things:
            return
        self._things[name] = (thing, weight)
        self._heavy += weight
        while len(self._things) > self._places or self._heavy > self._weight:
            _, (_, gone) = self._things.popitem(last=False)
            self._heavy -= gone
