"""How many tasks stand where: by function, and by the notebooks that they belong to. Costs nothing to ask."""

from __future__ import annotations

from collections.abc import Iterable

from jug_notebook.model import Scope
from jug_notebook.scheduler.records import (
    CANCELLED,
    FINISHED,
    READY,
    REUSED,
    RUNNING,
    STATES,
    FunctionQueue,
    TaskRecord,
)


class Tallies:
    """A row of numbers, by state, for each function and set of notebooks."""

    def __init__(self) -> None:
        self._rows: dict[tuple[FunctionQueue, tuple[str, ...]], list[int]] = {}

    def count(self, task: TaskRecord) -> None:
        """Count a task where it belongs by now."""
        if task.tally is not None:
            task.tally[task.tallied] -= 1
        pair = (task.kind, task.notebooks)
        tally = self._rows.get(pair)
        if tally is None:
            tally = self._rows[pair] = [0] * (len(STATES) + 1)
        task.tally = tally
        task.tallied = task.state
        if task.state == FINISHED and (not task.wanted or task.reused_from is not None):
            task.tallied = REUSED if task.wanted else CANCELLED
        tally[task.tallied] += 1

    def by_function(self, kinds: Iterable[FunctionQueue], scope: Scope) -> dict[str, tuple[list[int], float | None]]:
        """By function, in the order they were first seen: tasks by state (indexes of `STATES`) and mean seconds."""
        counts: dict[str, list[int]] = {kind.name: [0] * len(STATES) for kind in kinds}
        for (kind, notebooks), tally in self._rows.items():
            if scope.notebook is None or scope.notebook in notebooks:
                counts[kind.name] = [a + b for a, b in zip(counts[kind.name], tally[:REUSED], strict=True)]
                counts[kind.name][FINISHED] += tally[REUSED]
        done = dict.fromkeys(counts, 0)
        spent = dict.fromkeys(counts, 0.0)
        for kind in kinds:
            done[kind.name] += kind.done
            spent[kind.name] += kind.spent
        return {
            name: (states, spent[name] / done[name] if done[name] else None)
            for name, states in counts.items()
            if any(states)
        }

    def reused(self, scope: Scope) -> dict[str, int]:
        """By function: how many of the finished tasks took over their value."""
        counts: dict[str, int] = {}
        for (kind, notebooks), tally in self._rows.items():
            if tally[REUSED] and (scope.notebook is None or scope.notebook in notebooks):
                counts[kind.name] = counts.get(kind.name, 0) + tally[REUSED]
        return counts

    def none_open(self, python: str) -> bool:
        """Is nothing ready or running that a worker of this ``python`` could run or wait for?"""
        return not any(
            tally[RUNNING] or (tally[READY] and (not python or kind.python == python))
            for (kind, _), tally in self._rows.items()
        )

    def foreign(self, python: str) -> dict[str, int]:
        """Ready tasks that a worker of this ``python`` must leave alone, by the python they want."""
        found: dict[str, int] = {}
        for (kind, _), tally in self._rows.items():
            if tally[READY] and kind.python != python:
                found[kind.python] = found.get(kind.python, 0) + tally[READY]
        return found
