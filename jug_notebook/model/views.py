"""What people see: plain data at one instant, for tables, widgets and messages."""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from jug_notebook.model.limits import MARGIN
from jug_notebook.model.tasks import OPEN_STATES, Key, Run, State, Why, WorkerId, WorkerInfo


class TaskView(Struct, frozen=True):
    """One task in a listing. ``args_repr``, ``summary``, ``error`` and ``user`` are sealed: empty until opened."""

    key: Key
    name: str
    state: State
    worker: WorkerId = ""
    started: float = 0.0
    duration: float = 0.0
    attempt: int = 0
    args_repr: str = ""
    summary: str = ""
    error: str = ""
    source: Key = ""  #: where the value was reused: the task that ran
    user: str = ""  #: who made it
    kept: bool = False  #: finished, and requested no more: of an earlier version
    waits_for: str = ""  #: of a ready one: the limit that is used up, "db (4 of 4 in use)"


class Spread(Struct, frozen=True):
    """What runs of a function took of something: on average, 95 % of them at most, and the largest."""

    mean: float = 0.0
    p95: float = 0.0
    largest: float = 0.0


class LimitView(Struct, frozen=True):
    """A limit of a function that has open tasks, as it is now.

    ``number`` holds for all functions that name it: the smallest of those ``given``. ``period``: seconds of a rate,
    else 0. ``used``: how many tasks have a token of it, or began with one in the last period. ``waits``: of a rate, the
    seconds until each of these may be had again, sorted.
    """

    name: str
    number: int
    period: int
    given: int  #: by this function
    used: int = 0
    waits: tuple[float, ...] = ()

    def begins(self, count: int) -> float:
        """Return the seconds until so many tasks may have begun: of a rate."""
        rounds, rest = divmod(count - 1, self.number)
        rest -= self.number - len(self.waits)
        return rounds * (self.period + MARGIN) + (self.waits[rest] if rest >= 0 else 0.0)


class Load(NamedTuple):
    """What is left to run of a function: tasks to begin, ``each`` of so many seconds, and seconds of running ones."""

    queued: int
    each: float
    running: Sequence[float] = ()
    limits: Sequence[LimitView] = ()

    @property
    def work(self) -> float:
        """Seconds of work in all."""
        return self.queued * self.each + sum(self.running)


def seconds_to_run(loads: Sequence[Load], workers: int) -> float:
    """Return the estimated seconds until all these have run: shared by the workers, and no faster than limits allow."""
    times = [sum(load.work for load in loads) / max(1, workers)]
    limited: dict[tuple[str, int], list[tuple[LimitView, Load]]] = {}
    for load in loads:
        times += [*load.running, load.each if load.queued else 0.0]
        for limit in load.limits:
            limited.setdefault((limit.name, limit.period), []).append((limit, load))
    for (_, period), sharing in limited.items():
        limit = sharing[0][0]
        if not period:
            times.append(sum(load.work for _, load in sharing) / limit.number)
        elif queued := sum(load.queued for _, load in sharing):
            times.append(limit.begins(queued) + max(load.each for _, load in sharing if load.queued))
    return max(times)


class FunctionView(Struct, frozen=True):
    """One function and its tasks by state. ``mean`` is seconds per finished task, None before the first."""

    name: str
    counts: dict[State, int]
    mean: float | None = None
    reused: int = 0  #: finished tasks that did not run, but reused an equal run's value
    kept: int = 0  #: further finished tasks that are requested no more: of earlier versions
    memory: Spread = Spread()  #: bytes that its latest runs took at most; zeros where none was measured
    limits: tuple[LimitView, ...] = ()  #: while it has open tasks

    @property
    def size(self) -> int:
        """Number of tasks in all, those of earlier versions too."""
        return sum(self.counts.values()) + self.kept

    @property
    def current(self) -> int:
        """Number of tasks that are requested now."""
        return sum(count for state, count in self.counts.items() if state is not State.CANCELLED)

    @property
    def open(self) -> int:
        """Number of tasks that are waiting, ready or running."""
        return sum(self.counts.get(state, 0) for state in OPEN_STATES)


class WorkerView(Struct, frozen=True):
    """One worker, supervisor or session. ``beat_age`` is seconds since its last heartbeat."""

    info: WorkerInfo
    alive: bool
    beat_age: float


class FailureView(Struct, frozen=True):
    """One failure, opened for people. ``output`` is the tail of what the task printed.

    ``attempts``: how many the task has by its retries; those that ended with their worker come on top.
    """

    key: Key
    name: str
    args_repr: str
    error: str
    traceback: str
    host: str
    pid: int
    started: float
    duration: float
    output: str = ""
    attempt: int = 1
    attempts: int = 1


class SimilarFailure(Struct, frozen=True):
    """A failure similar to one that is shown in full."""

    key: Key
    args_repr: str
    error: str


class FailureKind(Struct, frozen=True):
    """Failures of one function whose errors differ only in numbers, addresses and quoted words."""

    about: str  #: what their errors have in common
    newest: FailureView  #: shown in full
    keys: tuple[Key, ...]  #: of all of them, newest first
    others: tuple[SimilarFailure, ...] = ()  #: the next few


class RunView(Struct, frozen=True):
    """One attempt that ended: who ran what, where and when. ``message`` is its value or error in short."""

    key: Key
    name: str
    state: State
    args_repr: str = ""
    user: str = ""
    host: str = ""
    pid: int = 0
    started: float = 0.0
    duration: float = 0.0
    message: str = ""
    superseded: str = ""  #: where it no longer counts: "tried again" or "dropped"

    @property
    def state_text(self) -> str:
        """Its state, and why it no longer counts: "finished, dropped"."""
        return ", ".join(filter(None, (self.state.value, self.superseded)))


class FunctionProfile(Struct, frozen=True):
    """What the runs of one function took. Seconds and bytes; memory and bytes of those alone that were measured."""

    name: str
    runs: int
    duration: Spread
    cpu: Spread
    memory: Spread  #: at most resident at a time, with the libraries that the worker had loaded
    read: Spread
    written: Spread
    largest: Key = ""  #: the task that took most memory; of tasks that were not measured, most time
    args_repr: str = ""  #: its arguments
    killed: int = 0  #: runs that were ended for their memory
    waited: float = 0.0  #: seconds for a core, on average

    @property
    def undelayed(self) -> float:
        """The share of their time that these runs would have taken with a core for each."""
        return 1 - self.waited / self.duration.mean if self.duration.mean else 1.0


class Rest(Struct, frozen=True):
    """What has ended since a moment, and what is left. Times are seconds since the epoch; 0 where nothing ended."""

    id: str  #: equal wherever the same tasks have ended the same way, since whichever moment
    done: int = 0
    failed: tuple[Key, ...] = ()
    blocked: int = 0  #: by failed tasks
    left: int = 0  #: tasks that are waiting, ready or running
    began: float = 0.0  #: when the first of these runs began,
    ended: float = 0.0  #: and when the last run of all ended


class Span(Struct, frozen=True):
    """When an attempt ran, and where. ``started`` is seconds since the epoch, ``duration`` seconds."""

    key: Key
    name: str  #: of the function
    worker: WorkerId
    started: float
    duration: float
    attempt: int
    state: State  #: finished, failed or running
    died: bool = False  #: its worker died in it
    taken_over: bool = False  #: the attempt before it ended with its worker, or with its host

    @property
    def ended(self) -> float:
        return self.started + self.duration

    @property
    def host(self) -> str:
        """The host of its worker."""
        return self.worker.rsplit("-", 2)[0]


class Timeline(Struct, frozen=True):
    """Who ran what when: attempts by start, and the last part of them by which the end was decided."""

    spans: tuple[Span, ...] = ()
    critical: tuple[Key, ...] = ()  #: each of these tasks needs the one before it, whose value came last of its needs
    store: str = ""
    scope: str = ""


class Graph(Struct, frozen=True):
    """Which functions need which, with tasks and needs counted by function. It may have cycles."""

    functions: tuple[FunctionView, ...] = ()
    edges: tuple[tuple[str, str, int], ...] = ()  #: (function, a function whose values it needs, how many needs)
    store: str = ""
    scope: str = ""


class Invalidation(Struct, frozen=True):
    """Who invalidated a task's outcome, when (seconds since the epoch), and why."""

    from_round: int
    at: float
    user: str
    why: Why


class Cause(enum.Enum):
    """The kind of reason why a task has no stored value, or differs from a stored task."""

    ARGUMENT = "argument"  #: another argument
    CODE = "code"  #: a function, helper, global, default … changed
    NEW = "new"  #: nothing of that function is stored
    NEED = "need"  #: needs a task that isn't stored
    FAILED = "failed"
    INVALIDATED = "invalidated"  #: by a user, or because its stored value was lost
    PYTHON = "python"  #: made by another Python version
    ENVIRONMENT = "environment"  #: it is stored, and was computed with other packages or on another system
    RESOURCES = "resources"  #: what it needs isn't free
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  #: not known


class Reason(Struct, frozen=True):
    """One reason. ``line`` is the full text, "argument `n`: 3 → 4"; ``subject`` what it is about, "argument `n`"."""

    cause: Cause
    subject: str
    line: str
    before: str = ""
    after: str = ""
    diff: str = ""  #: of source: lines beginning with "+", "-" or " "
    of: str = ""  #: the function concerned, where that isn't the task's own
    at: float = 0.0  #: seconds since the epoch, or 0


class Explanation(Struct, frozen=True):
    """Whether a task is stored and, if not, how it differs from the nearest task that is."""

    key: Key
    name: str
    args_repr: str
    state: State
    reasons: tuple[Reason, ...] = ()
    nearest: Key = ""  #: the stored task that it was compared with
    nearest_args: str = ""
    run: Run | None = None  #: of one that is stored
    source: Key = ""  #: where the value was reused: the task that ran

    @property
    def stored(self) -> bool:
        return self.state is State.FINISHED


class Snapshot(Struct, frozen=True, dict=True):
    """A store at one instant: counts by function and state, workers, failures."""

    store: str  #: URL, password masked
    at: float  #: seconds since the epoch
    scope: str  #: "this notebook" or "whole store"
    functions: tuple[FunctionView, ...] = ()
    workers: tuple[WorkerView, ...] = ()  #: no supervisors or sessions; alive, or recently dead
    failures: tuple[FailureView, ...] = ()  #: the latest few
    notes: tuple[str, ...] = ()  #: one line each, for people
    starting: int = 0  #: workers being started
    kinds: tuple[FailureKind, ...] = ()  #: failures grouped by error, as far as they have been read
    shortage: str = ""  #: what ready tasks wait for, "3 tasks wait for a GPU: 4 of 4 in use on 1 host"

    @functools.cached_property
    def counts(self) -> dict[State, int]:
        """Tasks by state, over all functions."""
        total = dict.fromkeys(State, 0)
        for function in self.functions:
            for state, count in function.counts.items():
                total[state] += count
        return total

    @property
    def reused(self) -> int:
        """How many of the finished tasks reused their value."""
        return sum(function.reused for function in self.functions)

    @property
    def kept(self) -> int:
        """Number of further finished tasks that are requested no more: of earlier versions."""
        return sum(function.kept for function in self.functions)

    @property
    def total(self) -> int:
        """Number of tasks that are requested now."""
        return sum(function.current for function in self.functions)

    @property
    def eta(self) -> float | None:
        """Estimated seconds until all open tasks have run on the live workers; None where that is unknown."""
        open_functions = [function for function in self.functions if function.open]
        if not self.alive or any(function.mean is None for function in open_functions):
            return None
        return self.time_left(open_functions)

    @property
    def alive(self) -> int:
        """Number of live workers."""
        return sum(view.alive for view in self.workers)

    def time_left(self, functions: Sequence[FunctionView]) -> float:
        """Return the estimated seconds until these are done if all live workers run them, within their limits.

        A running task that has taken longer than the mean of its function is estimated by the time that it has taken.
        Of a function that wasn't timed yet, only the rates of its limits count.
        """
        return seconds_to_run([self._load(function) for function in functions if function.open], self.alive)

    def _load(self, function: FunctionView) -> Load:
        if function.mean is None:
            return Load(function.open - function.counts.get(State.RUNNING, 0), 0.0, (), function.limits)
        mean, ran = function.mean, function.counts.get(State.FINISHED, 0) - function.reused
        elapsed = [
            self.at - view.info.since
            for view in self.workers
            if view.alive and view.info.task and view.info.task_name == function.name and view.info.since
        ][: function.open]
        left = [mean - past if past <= mean else min(past, 2 * (past - mean)) for past in elapsed]
        expected = (ran * mean + sum(elapsed) + sum(left)) / (ran + len(left)) if ran + len(left) > 0 else mean
        return Load(function.open - len(left), expected, left, function.limits)
