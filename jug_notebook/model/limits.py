"""Limits of a store: how many tasks that name one may run at a time, ``db:4``, or begin in a time, ``api:60/min``.

They travel with the `Resources` of a task, as amounts whose names have a colon, which no resource of a host has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from jug_notebook.model.tasks import Resources

MARGIN = 0.1  #: seconds by which periods are longer: a task begins at most that long after the time that is recorded
MOST = 10_000  #: of a limit's number: each has a slot
PERIODS = {1: "s", 60: "min", 3600: "h", 86400: "day"}  #: seconds, and what they are called
_SECONDS = {
    **{name: seconds for seconds, name in PERIODS.items()},
    "sec": 1, "second": 1, "m": 60, "minute": 60, "hr": 3600, "hour": 3600, "d": 86400,
}  # fmt: skip
_LIMIT = re.compile(r"([A-Za-z_][\w.-]*):(\d{1,9})(?:/([a-z]+))?", re.ASCII)
_ADVICE = "give a number of tasks at a time, as db:4, or a rate, as api:60/min"


class Limit(NamedTuple):
    """At most ``number`` tasks that name it run at a time or, with a ``period`` in seconds, begin within one."""

    name: str
    number: int
    period: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.number}" + (f"/{PERIODS[self.period]}" if self.period else "")


def parse_limits(given: Any, error: type[Exception] = ValueError) -> tuple[Limit, ...]:
    """Return limits, sorted: of "db:4", "db:4,api:60/min", or several such. Raises ``error``."""
    words = given.split(",") if isinstance(given, str) else given
    if not isinstance(words, Iterable):
        raise error(f"limit={given!r:.60}: {_ADVICE}")
    found: dict[tuple[str, int], Limit] = {}
    for word in words:
        written = word if isinstance(word, str) else str(word) if isinstance(word, Limit) else ""
        match = _LIMIT.fullmatch(written.strip())
        period = _SECONDS.get(match[3], -1) if match and match[3] else 0
        if match is None or period < 0 or int(match[2]) < 1:
            raise error(f"limit={word!r:.60}: {_ADVICE}{' (per s, min, h or day)' if period < 0 else ''}")
        limit = Limit(match[1], int(match[2]), period)
        if limit.number > MOST:
            raise error(f"limit={word!r:.60}: {MOST:,} at most; give a rate for a shorter time, as api:60/s")
        if found.setdefault((limit.name, period), limit) != limit:
            raise error(f"limit {limit.name!r} has two numbers: {found[limit.name, period]} and {limit}")
    return tuple(sorted(found.values()))


def with_limits(resources: Resources, limits: Iterable[Limit]) -> Resources:
    """Return what a run needs of its host, and limits, as they travel together: see `limits_of` and `of_host`."""
    amounts = [(f"{limit.name}:{limit.period or ''}", float(limit.number)) for limit in limits]
    return tuple(sorted([*resources, *amounts]))


def limits_of(resources: Resources) -> tuple[Limit, ...]:
    """Return the limits that travel with resources."""
    parted = [(*name.partition(":"), amount) for name, amount in resources]
    return tuple(Limit(name, int(amount), int(period or 0)) for name, colon, period, amount in parted if colon)


def of_host(resources: Resources) -> Resources:
    """Return the resources without the limits that travel with them."""
    return tuple([one for one in resources if ":" not in one[0]])
