"""How far a task is by its own account: `track` tells it, workers pass it on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import TypeAlias, TypeVar

Tell: TypeAlias = Callable[[int, int], None]
"""Takes what is done and of how many, 0 where that isn't known. Cheap: it may be called for every item."""

T = TypeVar("T")


class _Report(threading.local):
    tell: Tell | None = None


_report = _Report()


def track(items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """Go over items; inside a task, the status shows how many of ``total`` are done. Outside it only goes over them.

    >>> for path in track(paths):
    ...     read(path)

    ``total`` is asked of the items where it isn't given. Of loops inside each other the outermost counts.
    """
    with alone() as tell:
        if tell is None:
            yield from items
            return
        many = length_hint(items) if total is None else max(0, int(total))
        tell(0, many)
        for done, item in enumerate(items, 1):
            yield item
            tell(done, many)


@contextmanager
def alone() -> Iterator[Tell | None]:
    """Whom to tell, and nobody else within; None where nobody listens, or somebody tells already."""
    tell = _report.tell
    _report.tell = None
    try:
        yield tell
    finally:
        _report.tell = tell


@contextmanager
def told(tell: Tell) -> Iterator[None]:
    """Within, what this thread's loops tell goes there."""
    before = _report.tell
    _report.tell = tell
    try:
        yield
    finally:
        _report.tell = before


def always_told(tell: Tell) -> None:
    """This process is a worker: what loops in any of its threads tell goes there."""
    _Report.tell = staticmethod(tell)


def teller() -> Tell | None:
    """Whom to tell, if anybody."""
    return _report.tell
