"""Task counts by function and state, and the notebooks that tasks belong to, kept up to date with each event."""

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
    UNKNOWN,
    FunctionQueue,
    TaskRecord,
)


class TaskCounts:
    """A row of numbers, one for each state, for each function and set of notebooks."""

    def __init__(self) -> None:
        self._rows: dict[tuple[FunctionQueue, tuple[str, ...]], list[int]] = {}

    def count(self, task: TaskRecord) -> None:
        """Count a task in the row where it belongs now."""
        if task.counted_in is not None:
            task.counted_in[task.counted_as] -= 1
        pair = (task.queue, task.notebooks)
        row = self._rows.get(pair)
        if row is None:
            row = self._rows[pair] = [0] * (len(STATES) + 1)
        task.counted_in = row
        task.counted_as = task.state
        if task.state == FINISHED and (not task.wanted or task.reused_from is not None):
            task.counted_as = REUSED if task.wanted else CANCELLED
        row[task.counted_as] += 1

    def by_function(self, queues: Iterable[FunctionQueue], scope: Scope) -> dict[str, tuple[list[int], float | None]]:
        """Return, by function as first seen, the tasks by state (indexes of `STATES`) and the mean seconds."""
        counts: dict[str, list[int]] = {queue.name: [0] * len(STATES) for queue in queues}
        for (queue, notebooks), row in self._rows.items():
            if scope.notebook is None or scope.notebook in notebooks:
                counts[queue.name] = [a + b for a, b in zip(counts[queue.name], row[:REUSED], strict=True)]
                counts[queue.name][FINISHED] += row[REUSED]
        done = dict.fromkeys(counts, 0)
        spent = dict.fromkeys(counts, 0.0)
        for queue in queues:
            done[queue.name] += queue.done
            spent[queue.name] += queue.spent
        return {
            name: (states, spent[name] / done[name] if done[name] else None)
            for name, states in counts.items()
            if any(states)
        }

    def reused(self, scope: Scope) -> dict[str, int]:
        """Return, by function, how many of the finished tasks reuse another task's run."""
        counts: dict[str, int] = {}
        for (queue, notebooks), row in self._rows.items():
            if row[REUSED] and (scope.notebook is None or scope.notebook in notebooks):
                counts[queue.name] = counts.get(queue.name, 0) + row[REUSED]
        return counts

    def none_open(self, python: str) -> bool:
        """Return True if nothing is running, nor ready for a worker of this ``python``."""
        return not any(
            row[RUNNING] or (row[READY] and (not python or queue.python == python))
            for (queue, _), row in self._rows.items()
        )

    def foreign(self, python: str) -> dict[str, int]:
        """Return the number of ready tasks that a worker of this ``python`` must leave alone, by their python."""
        found: dict[str, int] = {}
        for (queue, _), row in self._rows.items():
            if row[READY] and queue.python != python:
                found[queue.python] = found.get(queue.python, 0) + row[READY]
        return found


class Notebooks:
    """Which notebooks tasks belong to: those that requested them, or something that needs them."""

    def __init__(self, counts: TaskCounts) -> None:
        self._counts = counts
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # one tuple for all tasks with equal notebooks

    def shared(self, notebooks: tuple[str, ...]) -> tuple[str, ...]:
        return self._shared.setdefault(notebooks, notebooks)

    def add(self, task: TaskRecord, notebooks: tuple[str, ...]) -> None:
        """Add a task, and everything it needs, to these notebooks."""
        below = [task]
        while below:
            task = below.pop()
            if not set(notebooks) <= set(task.notebooks):
                self._move(task, tuple(sorted({*task.notebooks, *notebooks})))
                below.extend(task.needs)

    def recompute(self, below: list[TaskRecord]) -> None:
        """Work out anew the notebooks of these tasks, and of what they need."""
        while below:
            task = below.pop()
            notebooks = {origin.notebook for origin, _, _ in task.requests}
            now = tuple(sorted(notebooks.union(*(above.notebooks for above in task.dependents))))
            if now != task.notebooks:
                self._move(task, now)
                below.extend(task.needs)

    def _move(self, task: TaskRecord, notebooks: tuple[str, ...]) -> None:
        task.notebooks = self.shared(notebooks)
        if task.state != UNKNOWN:
            self._counts.count(task)
