"""Questions about many task records at once. Pure functions; each looks at all the records it is given."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jug_notebook.model import Key, Origin, Scope, State, Target
from jug_notebook.scheduler.records import (
    BLOCKED,
    CANCELLED,
    FAILED,
    STATES,
    UNKNOWN,
    TaskRecord,
    is_wanted,
    requests_of,
)


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
            and (target is None or task.key in target.keys or task.queue.name in target.names)
        ):
            yield task


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
    """Return the keys that a target means, with everything they need."""
    below = [task for task in tasks if task.key in target.keys or task.queue.name in target.names]
    found: set[Key] = set()
    while below:
        task = below.pop()
        if task.key not in found:
            found.add(task.key)
            below.extend(task.needs)
    return found


def requested(tasks: Iterable[TaskRecord], origin: Origin) -> list[Key]:
    """Return what exactly this origin (user, notebook and cell) wants now."""
    return [task.key for task in tasks if task.requests and is_wanted(requests_of(task.requests, origin))]


def without_request(tasks: Mapping[Key, TaskRecord], keys: Sequence[Key], origin: Origin) -> list[Key]:
    """Return those of ``keys`` that this origin doesn't want yet."""
    return [
        key for key in keys if (task := tasks.get(key)) is None or not is_wanted(requests_of(task.requests, origin))
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
        wanted = task.needs and task.counted_as != CANCELLED
        if wanted and (scope.notebook is None or scope.notebook in task.notebooks):
            name = task.queue.name
            for need in task.needs:
                if need.state != UNKNOWN:
                    pair = (name, need.queue.name)
                    found[pair] = found.get(pair, 0) + 1
    return found
