"""What people look at: plain data at one instant, for tables, widgets and messages."""

from __future__ import annotations

import enum
import functools

from msgspec import Struct

from jug_notebook.model.tasks import Key, Run, State, Why, WorkerId, WorkerInfo


class TaskView(Struct, frozen=True):
    """One task in a listing. ``shown``, ``summary``, ``error`` are empty until a session opened the sealed bytes."""

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
    source: Key = ""  #: where the value was taken over: whose run it is
    user: str = ""  #: who made it


class FunctionView(Struct, frozen=True):
    """One function: how many of its tasks stand where. ``mean`` is seconds a finished task, None before the first."""

    name: str
    counts: dict[State, int]
    mean: float | None = None
    reused: int = 0  #: how many of the finished ones did not run, but took over an equal run's value


class WorkerView(Struct, frozen=True):
    """One worker, supervisor or session. ``beat_age`` is seconds since its last beat was seen to change."""

    info: WorkerInfo
    alive: bool
    beat_age: float


class FailureView(Struct, frozen=True):
    """One failure, opened for people. ``output`` is the tail of what the task printed."""

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


class Like(Struct, frozen=True):
    """A failure like another that is told of whole."""

    key: Key
    args_repr: str
    error: str


class FailureKind(Struct, frozen=True):
    """Failures of one function whose errors are alike but for numbers, addresses and quoted words."""

    about: str  #: what their errors have in common
    newest: FailureView  #: the one told of
    keys: tuple[Key, ...]  #: of all of them, the newest first
    others: tuple[Like, ...] = ()  #: the next few


class RunView(Struct, frozen=True):
    """One attempt that ended, opened for people: who ran what, where, when. ``said`` is its value or error in short."""

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
    fate: str = ""  #: of one that doesn't count: "tried again", "dropped"


class Graph(Struct, frozen=True):
    """Which functions need which: tasks and needs counted by function. It may have loops and circles."""

    functions: tuple[FunctionView, ...] = ()
    edges: tuple[tuple[str, str, int], ...] = ()  #: (function, a function whose values it needs, how many needs)
    store: str = ""
    scope: str = ""


class Invalidation(Struct, frozen=True):
    """Who made a task's outcome count for nothing, and when (seconds since the epoch)."""

    from_round: int
    at: float
    user: str
    why: Why


class Cause(enum.Enum):
    """What kind of thing keeps a task from being stored, or makes it another task than one that is."""

    ARGUMENT = "argument"  #: another argument
    CODE = "code"  #: a function, helper, global, default … changed
    NEW = "new"  #: nothing of that function is stored
    NEED = "need"  #: needs a task that isn't stored
    FAILED = "failed"
    INVALIDATED = "invalidated"  #: by somebody, or because its stored value was lost
    PYTHON = "python"  #: made by another Python than this
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  #: it can't be told


class Reason(Struct, frozen=True):
    """One reason. ``line`` says it all: "argument `n`: 3 → 4"; ``subject`` is what it is about: "argument `n`"."""

    cause: Cause
    subject: str
    line: str
    before: str = ""
    after: str = ""
    diff: str = ""  #: of source: lines that begin with "+", "-" or " "
    of: str = ""  #: the function it holds for, where that isn't the task's own but one that it needs
    at: float = 0.0  #: seconds since the epoch, where it has a time


class Explanation(Struct, frozen=True):
    """Whether a task is stored, and what makes it differ from the nearest one that is."""

    key: Key
    name: str
    args_repr: str
    state: State
    reasons: tuple[Reason, ...] = ()
    nearest: Key = ""  #: the stored task that it was compared with
    nearest_args: str = ""
    run: Run | None = None  #: of one that is stored
    source: Key = ""  #: of one that is stored and did not run: the task whose run stands for it

    @property
    def stored(self) -> bool:
        return self.state is State.FINISHED


class Snapshot(Struct, frozen=True, dict=True):
    """The picture at one instant: counts by function and state, who works, what failed."""

    store: str  #: URL, password masked
    at: float  #: seconds since the epoch
    scope: str  #: "this notebook" or "whole store"
    functions: tuple[FunctionView, ...] = ()
    workers: tuple[WorkerView, ...] = ()  #: workers only, alive or lately dead
    failures: tuple[FailureView, ...] = ()  #: the latest few
    notes: tuple[str, ...] = ()  #: one line each, for people
    starting: int = 0  #: workers on their way
    kinds: tuple[FailureKind, ...] = ()  #: what failed by kinds, as far as it has been read

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
        """How many of the finished tasks took over their value."""
        return sum(function.reused for function in self.functions)

    @property
    def total(self) -> int:
        """All tasks that anybody still wants."""
        return sum(count for state, count in self.counts.items() if state is not State.CANCELLED)

    @property
    def eta(self) -> float | None:
        """Seconds until all that can run has run: open tasks by mean time, over the live workers; None: unknown."""
        alive = sum(view.alive for view in self.workers)
        work = 0.0
        for function in self.functions:
            left = sum(function.counts.get(s, 0) for s in (State.WAITING, State.READY, State.RUNNING))
            if left and function.mean is None:
                return None
            work += left * (function.mean or 0.0)
        return work / alive if alive else None
