"""Looking ahead: what workers would run, if there were some. Starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from jug_notebook.model import FunctionView, Key, Scope, State, Target, TaskView, WorkerId
from jug_notebook.render import duration
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader


class Plan(msgspec.Struct, frozen=True):
    """What would run: by function, with ``workers`` of which so many would be ``started``."""

    functions: tuple[FunctionView, ...]
    workers: int
    started: int

    @property
    def to_run(self) -> int:
        """Tasks that would run, or run now."""
        return sum(view.open for view in self.functions)

    @property
    def stored(self) -> int:
        """Tasks whose values are there."""
        return sum(view.counts.get(State.FINISHED, 0) for view in self.functions)

    @property
    def seconds(self) -> float | None:
        """How long it would take; None where a function has not been timed."""
        if any(view.open and view.mean is None for view in self.functions):
            return None
        return sum(view.open * (view.mean or 0.0) for view in self.functions) / max(1, self.workers)

    def text(self, timed: bool = True, who: bool = True) -> str:
        """For people; without times it is the same in every run. ``who``: also how many workers would do it."""
        if not self.functions:
            return "no tasks yet: nothing would run" + (", no worker would be started" if who else "")
        left_out = sum(view.counts.get(s, 0) for view in self.functions for s in (State.FAILED, State.BLOCKED))
        lines = [f"{self.to_run:,} to run, {self.stored:,} stored" + (f", {left_out:,} failed" if left_out else "")]
        width = max(len(view.name) for view in self.functions)
        for view in self.functions:
            parts = [f"{view.open:,} to run"] if view.open else []
            for state, word in ((State.FINISHED, "stored"), (State.FAILED, "failed"), (State.BLOCKED, "blocked")):
                if view.counts.get(state):
                    parts.append(f"{view.counts[state]:,} {word}")
            if timed and view.open:
                parts.append("not timed yet" if view.mean is None else f"{duration(view.mean)} each")
            if parts:
                lines.append(f"  {view.name:<{width}}  {', '.join(parts)}")
        if who:
            lines.append(self._when() if timed else self._who())
        return "\n".join(lines)

    def _who(self) -> str:
        if not self.started:
            return f"{_workers(self.workers)} would do it, all there already; nothing was started"
        there = self.workers - self.started
        more = f", beside the {there} there" if there else ""
        return f"{_workers(self.started)} would be started{more}; nothing was started"

    def _when(self) -> str:
        seconds = self.seconds
        if not self.to_run:
            return self._who()
        took = "nobody knows how long: not all functions are timed" if seconds is None else f"about {duration(seconds)}"
        return f"{self._who()}\n{took}, with {_workers(self.workers)}"

    def __repr__(self) -> str:
        return self.text()


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count:,} workers"


def tasks_of(target: Target, scope: Scope, store: Store, signed: SignedReader) -> list[TaskView]:
    """The tasks that a target means, with all that they need."""
    row: Sequence[Key] = [view.key for view in store.tasks(scope, target)]
    found = dict.fromkeys(row)
    while row:
        needs: Iterable[Key] = (need for spec in signed.specs(row) if spec is not None for need in spec.needs)
        row = [need for need in dict.fromkeys(needs) if need not in found]
        found.update(dict.fromkeys(row))
    return [view for view in store.tasks(target=Target(keys=frozenset(found))) if view.key in found]


def graph_of(
    target: Target, scope: Scope, store: Store, signed: SignedReader
) -> tuple[tuple[FunctionView, ...], tuple[tuple[str, str, int], ...]]:
    """(functions, edges between them) of the tasks that a target means, with all that they need."""
    means = {view.name: view.mean for view in store.snapshot().functions}
    tasks = tasks_of(target, scope, store, signed)
    names = {task.key: task.name for task in tasks}
    rows: dict[str, dict[State, int]] = {}
    edges: dict[tuple[str, str], int] = {}
    for task, spec in zip(tasks, signed.specs([task.key for task in tasks]), strict=True):
        counts = rows.setdefault(task.name, {})
        counts[task.state] = counts.get(task.state, 0) + 1
        for need in () if spec is None else spec.needs:
            if need in names:
                pair = task.name, names[need]
                edges[pair] = edges.get(pair, 0) + 1
    functions = tuple(FunctionView(name, counts, means.get(name)) for name, counts in rows.items())
    return functions, tuple((name, need, count) for (name, need), count in edges.items())


def plan(
    size: int, target: Target | None, scope: Scope, store: Store, signed: SignedReader, tied_to: WorkerId = ""
) -> Plan:
    """What ``size`` workers with that target would run, and how many of them are there already."""
    from jug_notebook.launch import local
    from jug_notebook.worker import WorkerOptions

    functions = store.snapshot(scope).functions if target is None else graph_of(target, scope, store, signed)[0]
    had = local.there(store, WorkerOptions(size=size, target=target, tied_to=tied_to))
    return Plan(functions, max(size, had), max(0, size - had))
