"""What people see of the scheduler state: a task in a listing; counts and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from jug_notebook.model import (
    BEAT,
    NO_ROOM,
    FunctionView,
    Scope,
    Snapshot,
    State,
    TaskView,
    WorkerId,
    WorkerInfo,
    WorkerView,
)
from jug_notebook.render.format import plural, shortage
from jug_notebook.scheduler.records import FINISHED, KEPT, REUSED, STATES, TaskRecord
from jug_notebook.scheduler.state import SchedulerState

LATELY = 60.0  #: seconds for which a dead worker is still listed
SUPERVISOR_DIED = "its supervisor died"


def task_view(scheduler: SchedulerState, task: TaskRecord) -> TaskView:
    outcome = scheduler.outcome(task.key)
    if outcome is None:
        waits = scheduler.limits.waits_for(task)
        return TaskView(
            task.key, task.queue.name, STATES[task.state], worker=scheduler.leases.holder(task), waits_for=waits
        )
    verdict, _, worker = outcome
    source = "" if task.reused_from is None else verdict.key
    return TaskView(
        task.key, task.queue.name, STATES[task.state], worker, verdict.started, verdict.duration, verdict.attempt,
        source=source, kept=task.state == FINISHED and not task.wanted,
    )  # fmt: skip


def snapshot(
    scheduler: SchedulerState,
    processes: Sequence[tuple[WorkerInfo, bool, float]],
    scope: Scope,
    store: str,
    now: float,
    notes: Iterable[str] = (),
) -> Snapshot:
    """Return counts and workers, from `Store.processes`, the store's URL for people, and notes to be added."""
    functions = _functions(scheduler, scope, {info.id for info, alive, _ in processes if not alive})
    died = {info.id: age for info, alive, age in processes if not alive and info.kind == "supervisor" and info.size}
    current = [(_up_to_date(scheduler, info, now - age), alive, age) for info, alive, age in processes]
    current = [(_noted(info, alive, age, died), alive, age) for info, alive, age in current]
    workers = (WorkerView(*one) for one in current if one[0].kind == "worker" and (one[1] or one[2] < LATELY))
    lacking = [info for info, alive, _ in current if alive and info.note.startswith(NO_ROOM)]
    noted = [f"{info.where}: {info.note}" for info, alive, _ in current if alive and info.note and info not in lacking]
    if lacking:
        who = f"{len(lacking)} workers wait" if len(lacking) > 1 else "1 worker waits"
        noted.append(f"{who} for room on {store}: free some space, and they go on by themselves")
        noted += [f"{info.task_name} {info.task[:8]} {info.note}" for info in lacking if info.task and "(" in info.note]
    scope_text = "whole store" if scope.notebook is None else "this notebook"
    lines = tuple(dict.fromkeys((*notes, *noted)))
    short = _shortage(scheduler, scope, processes)
    return Snapshot(store, now, scope_text, functions, tuple(workers), (), lines, starting(current), (), short)


def _noted(info: WorkerInfo, alive: bool, age: float, died: Mapping[WorkerId, float]) -> WorkerInfo:
    """Return the info with a note, if the worker ended with a supervisor that ``died`` so many seconds ago."""
    if alive or info.note or age > died.get(info.supervisor, -BEAT) + BEAT:
        return info
    return msgspec.structs.replace(info, note=SUPERVISOR_DIED)


def _functions(scheduler: SchedulerState, scope: Scope, dead: Container[WorkerId]) -> tuple[FunctionView, ...]:
    """Return the functions with their tasks by state.

    A worker runs one task at a time: what it has claimed ahead, and what a dead one holds, counts as ready.
    """
    reused, kept = scheduler.counts.apart(REUSED, scope), scheduler.counts.apart(KEPT, scope)
    leases = scheduler.leases
    runs = [leases.task_of(worker) for worker in leases.workers() if worker not in dead]
    running = Counter(task.queue.name for task in runs if task is not None)
    found, limits = [], scheduler.limits.views()
    for name, (counts, mean) in scheduler.counts.by_function(scope).items():
        by_state = {state: count for state, count in zip(STATES, counts, strict=True) if count}
        ahead = by_state.get(State.RUNNING, 0) - running[name]
        if ahead > 0 and scheduler.tasks:  # else only the counts are known
            by_state[State.READY] = by_state.get(State.READY, 0) + ahead
            by_state[State.RUNNING] -= ahead
        if by_state or name in kept:
            view = FunctionView(
                name, by_state, mean, reused.get(name, 0), kept.get(name, 0), limits=limits.get(name, ())
            )
            found.append(view)
    return tuple(found)


def _shortage(scheduler: SchedulerState, scope: Scope, processes: Sequence[tuple[WorkerInfo, bool, float]]) -> str:
    """Return what ready tasks wait for that no host has free: "3 tasks wait for a GPU: 4 of 4 in use on 1 host"."""
    crews = [(info.host, info.resources) for info, alive, _ in processes if alive and info.resources]
    waiting: Counter[str] = Counter()
    for queue, count in scheduler.counts.ready_with_resources(scope).items():
        short = scheduler.limits.note(queue) if queue.limits else ""
        if short := short or (shortage(queue.of_host, crews) if crews else ""):
            waiting[short] += count
    return " · ".join(f"{plural(count)} wait{'s' * (count == 1)} for {short}" for short, count in waiting.items())


def _up_to_date(scheduler: SchedulerState, info: WorkerInfo, heartbeat: float) -> WorkerInfo:
    """Return the info with what the events know better: a heartbeat is up to a second old.

    No event tells when a worker began what it runs now: after its last heartbeat, and after its last run had ended.
    """
    done = max(info.done, scheduler.settled_by.get(info.id, 0))
    task = scheduler.leases.task_of(info.id)
    nothing_yet: dict[str, Any] = {"done": done, "progress": (0, 0), "checkpoint": (0.0, 0)}
    if task is None:
        return msgspec.structs.replace(info, task="", task_name="", since=0.0, **nothing_yet)
    reported = scheduler.tasks.peek(info.task)
    if reported is not None and scheduler.leases.holder(reported) == info.id:
        return msgspec.structs.replace(info, done=done)
    since = max(heartbeat, scheduler.ended_by.get(info.id, 0.0))
    return msgspec.structs.replace(info, task=task.key, task_name=task.queue.name, since=since, **nothing_yet)


def starting(processes: Sequence[tuple[WorkerInfo, bool, float]]) -> int:
    """Return how many workers the live supervisors are to run that have not started yet."""
    wanted = {info.id: info.size for info, alive, _ in processes if alive and info.kind == "supervisor"}
    for info, alive, _ in processes:
        if alive and info.kind == "worker" and info.supervisor in wanted:
            wanted[info.supervisor] -= 1
    return sum(max(0, missing) for missing in wanted.values())
