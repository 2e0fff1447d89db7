"""What runs took, by function: time, processor time, memory, bytes read and written. As text and HTML. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jug_notebook.model import Failed, FunctionProfile, Outcome, Spread
from jug_notebook.render.format import clean, duration, elide_call, escape, number, plural, size
from jug_notebook.render.html import block, faint, table_html, unbroken
from jug_notebook.render.text import table

_HEADS = ("function", "runs", "time", "95 %", "longest", "CPU", "memory", "95 %", "most", "read", "written", "largest")
_NUMBERS = _HEADS[1:-1]
UNKNOWN = "–"


def profile_of(name: str, outcomes: Sequence[Outcome]) -> FunctionProfile:
    """Return what these runs of a function took; there is one at least."""
    runs = [outcome.run for outcome in outcomes]
    measured = [run for run in runs if run.peak]
    largest = max(outcomes, key=lambda outcome: (outcome.run.peak, outcome.run.duration))
    return FunctionProfile(
        name,
        len(runs),
        _spread([run.duration for run in runs]),
        _spread([run.cpu for run in runs]),
        _spread([run.peak for run in measured]),
        _spread([run.read for run in measured]),
        _spread([run.written for run in measured]),
        largest.key,
        killed=sum(isinstance(outcome, Failed) and outcome.kind == "memory" for outcome in outcomes),
        waited=math.fsum(min(run.waited, run.duration) for run in runs) / len(runs),
    )


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread()
    ranked = sorted(values)
    return Spread(math.fsum(ranked) / len(ranked), ranked[max(0, math.ceil(0.95 * len(ranked)) - 1)], ranked[-1])


def _rows(profiles: Sequence[FunctionProfile], width: int) -> list[list[str]]:
    def bytes_of(count: float, of: Spread) -> str:
        return size(count) if of.largest else UNKNOWN

    return [
        [
            elide_call(one.name, width),
            number(one.runs),
            *map(duration, (one.duration.mean, one.duration.p95, one.duration.largest, one.cpu.mean)),
            *(bytes_of(count, one.memory) for count in (one.memory.mean, one.memory.p95, one.memory.largest)),
            bytes_of(one.read.mean, one.read),
            bytes_of(one.written.mean, one.written),
            elide_call(f"{one.name}({one.args_repr})", width) + (f", {one.killed} killed" if one.killed else ""),
        ]
        for one in profiles
    ]


def profile_text(profiles: Sequence[FunctionProfile], before: int) -> str:
    """Return a line for each function; ``before`` is how many earlier runs were left out."""
    if not profiles:
        return "nothing was run yet"
    lines = table(_HEADS, _rows(profiles, 32), _NUMBERS)
    lines += [f"{plural(before, 'earlier run')} left out"] if before else []
    return clean("\n".join(lines))


def profile_html(profiles: Sequence[FunctionProfile], before: int) -> str:
    """Return the same as HTML."""
    if not profiles:
        return block(faint("nothing was run yet"))
    rows = [[escape(row[0]), *map(unbroken, row[1:-1]), escape(row[-1])] for row in _rows(profiles, 48)]
    more = f"<div>{faint(plural(before, 'earlier run') + ' left out')}</div>" if before else ""
    return block(table_html(_HEADS, rows, _NUMBERS) + more)
