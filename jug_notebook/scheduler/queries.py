"""Questions about many tasks: counts, kept up to date with each event, and pure functions that look at all records."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

from jug_notebook.model import OPEN_STATES, Key, Origin, Resources, Rest, Scope, Span, State, Target, Verdict
from jug_notebook.scheduler.records import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    KEPT,
    READY,
    REUSED,
    RUNNING,
    STATES,
    UNKNOWN,
    WAITING,
    Attempt,
    FunctionQueue,
    Outcome,
    TaskRecord,
    is_wanted,
    own_outcome,
    requests_of,
)
from jug_notebook.scheduler.table import TaskTable

LATEST = 1e11  #: seconds since the epoch; a store may hold any number


def listing(
    tasks: Iterable[TaskRecord], scope: Scope = Scope(), target: Target | None = None, state: State | None = None
) -> Iterator[TaskRecord]:
    """Yield the submitted ones of ``tasks`` that belong to scope, target and state."""
    code = None if state is None else STATES.index(state)
    for task in tasks:
        if (
            task.state != UNKNOWN
            and (code is None or task.state == code)
            and (scope.notebook is None or scope.notebook in task.notebooks)
            and (target is None or _is_meant(task, target))
        ):
            yield task


def _is_meant(task: TaskRecord, target: Target) -> bool:
    """Return True if a target means this task, and not only because another one needs it."""
    if not target.names and not target.keys:
        return not _is_excluded(task, target)
    return (task.key in target.keys or task.queue.name in target.names) and not _is_excluded(task, target)


def is_narrow(target: Target) -> bool:
    """Return True if it takes more than a look at its function to know whether a target means a task."""
    return bool(target.names or target.keys or target.not_keys)


def _is_excluded(task: TaskRecord, target: Target) -> bool:
    return task.queue.name in target.not_names or task.key in target.not_keys


def latest_failed(failed: Mapping[TaskRecord, float], scope: Scope, limit: int) -> list[TaskRecord]:
    """Return the failed tasks of a scope, the latest first; ``failed`` has the time of each. ``limit`` 0 means all."""
    found = [
        (ended, task.key, task)
        for task, ended in failed.items()
        if scope.notebook is None or scope.notebook in task.notebooks
    ]
    latest = heapq.nlargest(limit, found) if limit else sorted(found, reverse=True)
    return [task for _, _, task in latest]


def blocking_task(task: TaskRecord | None) -> Key | None:
    """Return the failed task that, through any chain of needs, blocks this one; None if it isn't blocked."""
    while task is not None and task.state == BLOCKED:
        task = next((need for need in task.needs if need.state in (FAILED, BLOCKED)), None)
    return task.key if task is not None and task.state == FAILED else None


def keys_of_target(tasks: Iterable[TaskRecord], target: Target) -> set[Key]:
    """Return the keys that a target means, with everything they need that isn't excluded."""
    below = [task for task in tasks if _is_meant(task, target)]
    found: set[Key] = set()
    excludes = target.not_names or target.not_keys
    while below:
        task = below.pop()
        if task.key not in found and not (excludes and _is_excluded(task, target)):
            found.add(task.key)
            below.extend(task.needs)
    return found


def outstanding(tasks: TaskTable, keys: Iterable[Key]) -> list[Key]:
    """Return these tasks, and what those that wait need, through any chain of waiting tasks."""
    found = dict.fromkeys(keys)
    below = [task for key in found if (task := tasks.peek(key)) is not None]
    while below:
        task = below.pop()
        if task.state == WAITING:
            new = [need for need in task.needs if need.key not in found]
            found.update((need.key, None) for need in new)
            below.extend(new)
    return list(found)


def rest(tasks: Iterable[TaskRecord], since: float) -> Rest:
    """Return what ended after ``since``, and what is left, of these tasks."""
    mark = done = blocked = left = 0
    failed: list[Key] = []
    began, ended = LATEST, 0.0
    for task in tasks:
        if task.state in (FINISHED, FAILED):
            name = b"%b %d %d" % (task.key.encode(), task.round, task.state)
            mark ^= int.from_bytes(blake2b(name, digest_size=16).digest(), "little")
            outcome = own_outcome(task) if task.reused_from is None else None
            if outcome is None:
                continue
            run = outcome[0]
            ended = max(ended, run.started + run.duration)
            if run.started + run.duration > since:
                began = min(began, run.started)
                done += task.state == FINISHED
                failed += [task.key] if task.state == FAILED else []
        elif task.state == BLOCKED:
            blocked += 1
        else:
            left += is_open(task)
    return Rest(f"{mark:032x}", done, tuple(failed), blocked, left, began if done or failed else 0.0, ended)


def longest_chain(tasks: Iterable[TaskRecord], seconds: Mapping[str, float]) -> float:
    """Return how long the longest chain of open tasks takes that ends with one of ``tasks``: each needs the one before.

    ``seconds``: of a task, by function.
    """
    ends: dict[Key, float] = {}
    for last in tasks:
        stack = [last] if is_open(last) else []
        while stack:
            task = stack.pop()
            needs = [need for need in task.needs if is_open(need)]
            if task.key in ends:  # seen before, and then its needs were put above it
                ends[task.key] = seconds.get(task.queue.name, 0.0) + max((ends[n.key] for n in needs), default=0.0)
            else:
                ends[task.key] = 0.0
                stack += [task, *(need for need in needs if need.key not in ends)]
    return max(ends.values(), default=0.0)


def is_open(task: TaskRecord) -> bool:
    """Return True if it is waiting, ready or running."""
    return task.state != UNKNOWN and STATES[task.state] in OPEN_STATES


def requested(tasks: Iterable[TaskRecord], origin: Origin) -> list[Key]:
    """Return what exactly this origin (user, notebook and cell) wants now."""
    return [task.key for task in tasks if task.requests and is_wanted(requests_of(task.requests, origin))]


def without_request(tasks: TaskTable, keys: Sequence[Key], origin: Origin) -> list[Key]:
    """Return those of ``keys`` that this origin doesn't want yet."""
    return [
        key for key in keys if (task := tasks.peek(key)) is None or not is_wanted(requests_of(task.requests, origin))
    ]


def origins(tasks: Iterable[TaskRecord]) -> list[Origin]:
    """Return every origin that wants something now."""
    found: dict[Origin, None] = {}
    for requests in {task.requests for task in tasks}:
        for origin, _, wanted in requests:
            if wanted and is_wanted(requests_of(requests, origin)):
                found[origin] = None
    return list(found)


def edges(tasks: Iterable[TaskRecord], scope: Scope = Scope()) -> dict[tuple[str, str], int]:
    """Return the number of needs by (function, needed function), as first seen. Cancelled tasks are left out."""
    found: dict[tuple[str, str], int] = {}
    for task in tasks:
        wanted = task.needs and task.counted_as not in (CANCELLED, KEPT)
        if wanted and (scope.notebook is None or scope.notebook in task.notebooks):
            name = task.queue.name
            for need in task.needs:
                if need.state != UNKNOWN:
                    pair = (name, need.queue.name)
                    found[pair] = found.get(pair, 0) + 1
    return found


def spans(runs: Iterable[tuple[TaskRecord, Outcome]]) -> list[Span]:
    """Return when and where these attempts ran, by start."""
    found = [
        Span(
            verdict.key,
            task.queue.name,
            worker,
            verdict.started,
            verdict.duration,
            verdict.attempt,
            STATES[FINISHED if verdict.digest else FAILED],
            verdict.died,
            verdict.attempt > 1 and _follows_a_death(task, verdict),
        )
        for task, (verdict, _, worker) in runs
        if 0 <= verdict.started < LATEST and 0 <= verdict.duration < LATEST
    ]
    return sorted(found, key=lambda span: span.started)


def _follows_a_death(task: TaskRecord, verdict: Verdict) -> bool:
    """Return True if the attempt before it ended with its worker, or with its host, which left it open."""
    others: list[Verdict | Attempt] = [other for other, _, _ in task.outcomes if other.died]
    others += [other for other in task.attempts or () if other.worker and not other.released]
    return any(
        other.attempt == verdict.attempt - 1 and other.round == verdict.round and other.inputs == verdict.inputs
        for other in others
    )


def critical_path(task: TaskRecord | None) -> list[Key]:
    """Return what decided when this task ended, first to last: before each, that of its needs whose value came last."""
    path: list[Key] = []
    while task is not None:
        path.append(task.key)
        task = max((need for need in task.needs if need.value_digest), key=_ended, default=None)
    return path[::-1]


def _ended(task: TaskRecord) -> float:
    outcome = task.reused_from or own_outcome(task)
    return outcome[0].started + outcome[0].duration if outcome else 0.0


# -- counts ------------------------------------------------------------------------------------------------------------


CountRow: TypeAlias = tuple[str, int, str, Resources, int, float, tuple[str, ...], list[int]]
"""Function, priority, python, resources; its runs and seconds; notebooks; tasks by state."""


class TaskCounts:
    """A row of numbers, one for each state, `REUSED` and `KEPT`, for each function and set of notebooks."""

    def __init__(self, queues: Mapping[Any, FunctionQueue]) -> None:
        self._queues = queues
        self._rows: dict[tuple[FunctionQueue, tuple[str, ...]], list[int]] = {}
        self.limited: dict[FunctionQueue, list[list[int]]] = {}  #: the rows of functions with limits

    def count(self, task: TaskRecord) -> None:
        """Count a task in the row where it belongs now."""
        if task.counted_in is not None:
            task.counted_in[task.counted_as] -= 1
        pair = (task.queue, task.notebooks)
        row = self._rows.get(pair)
        if row is None:
            row = self._add(task.queue, task.notebooks, [0] * (KEPT + 1))
        task.counted_in = row
        task.counted_as = task.state
        if task.state == FINISHED and (not task.wanted or task.reused_from is not None):
            task.counted_as = REUSED if task.wanted else KEPT
        row[task.counted_as] += 1

    def rows(self) -> list[CountRow]:
        """Return all there is to counts, by function as first seen: `restore` makes the same counts of it."""
        numbers = {queue: number for number, queue in enumerate(self._queues.values())}
        found = sorted(self._rows.items(), key=lambda item: numbers[item[0][0]])
        return [(q.name, q.priority, q.python, q.resources, q.done, q.spent, books, row) for (q, books), row in found]

    def restore(self, queue: FunctionQueue, row: CountRow) -> None:
        """Add a row of `rows`; ``queue`` is that of its function."""
        queue.done, queue.spent = row[4:6]
        self._add(queue, row[6], row[7])

    def _add(self, queue: FunctionQueue, notebooks: tuple[str, ...], row: list[int]) -> list[int]:
        self._rows[queue, notebooks] = row
        if queue.limits:
            self.limited.setdefault(queue, []).append(row)
        return row

    def by_function(self, scope: Scope = Scope()) -> dict[str, tuple[list[int], float | None]]:
        """Return, by function as first seen, the tasks by state (indexes of `STATES`) and the mean seconds.

        Finished tasks that are not requested any more count in none of these states.
        """
        counts: dict[str, list[int]] = {queue.name: [0] * len(STATES) for queue in self._queues.values()}
        for (queue, notebooks), row in self._rows.items():
            if scope.notebook is None or scope.notebook in notebooks:
                counts[queue.name] = [a + b for a, b in zip(counts[queue.name], row[:REUSED], strict=True)]
                counts[queue.name][FINISHED] += row[REUSED]
        done = dict.fromkeys(counts, 0)
        spent = dict.fromkeys(counts, 0.0)
        for queue in self._queues.values():
            done[queue.name] += queue.done
            spent[queue.name] += queue.spent
        return {name: (states, spent[name] / done[name] if done[name] else None) for name, states in counts.items()}

    def apart(self, column: int, scope: Scope = Scope()) -> dict[str, int]:
        """Return, by function, how many finished tasks reuse another's run (`REUSED`), or aren't requested (`KEPT`)."""
        counts: dict[str, int] = {}
        for (queue, notebooks), row in self._rows.items():
            if row[column] and (scope.notebook is None or scope.notebook in notebooks):
                counts[queue.name] = counts.get(queue.name, 0) + row[column]
        return counts

    def ready_with_resources(self, scope: Scope = Scope()) -> dict[FunctionQueue, int]:
        """Return, by queue, how many tasks are ready that need resources or have limits."""
        found: dict[FunctionQueue, int] = {}
        for (queue, notebooks), row in self._rows.items():
            if queue.resources and row[READY] and (scope.notebook is None or scope.notebook in notebooks):
                found[queue] = found.get(queue, 0) + row[READY]
        return found

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
