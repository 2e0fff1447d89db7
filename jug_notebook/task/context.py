"""What tasks need to know of where they are: the session in use, which task this code belongs to, its progress.

A `Task` is light: it knows its key and its session. All that is slow, is remembered or talks to a store lies behind
`SessionProtocol`, which the session, above this package, fulfils.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, TypeVar

from jug_notebook.errors import BadTask, JugError
from jug_notebook.keys import advice
from jug_notebook.model import Address, Key, Payload, Resources, Spec, State, TaskView

PendingTask: TypeAlias = "tuple[FunctionVersion, Key, bytes, tuple[Key, ...], Payload, str, bytes]"
"""A task that no store has yet: function version, key, form, needs, arguments, their short repr, and their digest."""


class FunctionVersion:
    """A task function with its code as it was at one moment: what all tasks made then have in common."""

    __slots__ = ("__weakref__", "code", "function", "name", "nout", "parts", "priority", "resources", "template")

    def __init__(
        self,
        name: str,
        function: Any,
        code: str,
        template: bytes,
        priority: int = 0,
        nout: int | None = None,
        parts: Mapping[str, str] = MappingProxyType({}),
        resources: Resources = (),
    ) -> None:
        self.name = name
        self.function = function  #: its TaskFunction; None for tasks found in the store
        self.code = code
        self.template = template
        self.priority = priority
        self.nout = nout
        self.parts = parts  #: what the code digest is made of
        self.resources = resources


@dataclass(frozen=True)
class Problem:
    """Stands in the place of a value that there isn't."""

    error: JugError


class Submissions(Protocol):
    """Where tasks go that are made."""

    def function_version(self, function: Any) -> FunctionVersion:
        """Return the function with its code, pinned until the cell ends."""

    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Store a large part of an argument. Return its address."""

    def away(self) -> str:
        """Return the working folder as seen from the notebook's, "" for that itself: a part of keys."""
        ...

    def add(self, pending_tasks: Sequence[PendingTask]) -> None:
        """Take in tasks: they reach the store soon, and before anything is read from it."""

    def outdated(self, version: FunctionVersion, needs: Sequence[Key]) -> str:
        """Return what has changed since a task was made, in it or in what it needs; empty where nothing has."""
        ...

    def former(self, version: FunctionVersion) -> bool:
        """Was the function redefined since?"""


class Results(Protocol):
    """What became of tasks."""

    def kept(self, key: Key) -> Spec | None:
        """Return what a finished task was submitted with; None where it isn't finished."""

    def states(self, keys: Sequence[Key]) -> list[State]: ...

    def views(self, keys: Sequence[Key]) -> list[TaskView]:
        """Return each task as people see it, with a summary of its value or error."""

    def table(self, keys: Sequence[Key]) -> tuple[list[State], list[Any], dict[int, tuple[str, str]]]:
        """Return states, values and errors of tasks as they are now."""

    def collect(
        self,
        keys: Sequence[Key],
        *,
        wait: bool,
        timeout: float | None = None,
        strict: bool = True,
        mmap: bool = False,
        wait_for_workers: float | None = None,
    ) -> list[Any]:
        """Return values in order; where there is none, raise its error, or (not ``strict``) put a `Problem` there."""

    def settle(self, keys: Sequence[Key], timeout: float | None = None, first: bool = False) -> bool:
        """Wait until all tasks (or the first of them) are settled. Return False if ``timeout`` seconds were over."""

    async def settled(self, key: Key) -> None:
        """Wait until a task is settled, without blocking the loop."""

    def stream(self, key: Key) -> Iterator[Any]:
        """Yield what a generator task yields, while it runs."""
        ...

    def outputs(self, key: Key) -> tuple[tuple[str, Any], ...]:
        """Return what the task printed and displayed, in order."""

    def provenance(self, key: Key) -> dict[str, Any]:
        """Return who ran a task, where and when; whose run its value is, and who accepted that."""


class SessionProtocol(Protocol):
    """What tasks ask of their session."""

    identity: str  #: names the store: tasks of one store go together
    display_url: str  #: the store's URL for people
    read_only: bool  #: tasks are only named, and none is submitted
    folder: Path  #: the notebook's folder

    @property
    def submissions(self) -> Submissions: ...

    @property
    def results(self) -> Results: ...

    def run_here(self, target: Any) -> int:
        """Run tasks, and what they need, in this process. Return how many ran."""

    def needs(self, key: Key) -> list[Any]:
        """Return the tasks whose values a task needs, as a `TaskList`."""

    def retry(self, target: Any = None) -> int: ...

    def history_frame(self, function: Any, values: bool = False) -> Any:
        """Return all stored calls of a function as a pandas.DataFrame."""

    def invalidate(self, target: Any) -> int: ...

    def cancel(self, target: Any) -> int: ...

    def log(self, target: Any = None) -> str: ...

    def why(self, target: Any) -> Any: ...

    def status_of(self, keys: Sequence[Key]) -> Any: ...


current: SessionProtocol | None = None  #: the session that new tasks belong to
_connect: Callable[[], SessionProtocol] | None = None
_make: Callable[..., Any] | None = None


def set_current(session: SessionProtocol | None) -> None:
    """New tasks belong to this session from now on; with None, to the one that is found when first needed."""
    global current
    current = session


def on_first_need(connect: Callable[[], SessionProtocol]) -> None:
    """``connect`` is called for a session when a task is made and none is in use."""
    global _connect
    _connect = connect


def current_session() -> SessionProtocol:
    """Return the session in use. Raises BadTask where there is none and none can be found."""
    if current is not None:
        return current
    if _connect is None:
        raise BadTask("no store is in use; call jug_notebook.connect() first")
    session = _connect()
    set_current(session)
    return session


def make_task(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a task that calls ``function``, any callable: made by what `make_tasks_by` was given."""
    if _make is None:
        raise BadTask("tasks are made by jug_notebook.task; import it first")
    return _make(function, args, kwargs)


def make_tasks_by(make: Callable[..., Any]) -> None:
    """Let `make_task` call ``make(function, args, kwargs)``.

    `task.function` sets it: ``Task(f, ...)`` stands below it in the order of imports and needs it nevertheless.
    """
    global _make
    _make = make


class _InTask(threading.local):
    on = False


in_task = _InTask()  #: ``in_task.on`` is true while this thread runs a task: calls of task functions are plain then
advice.silence_where(lambda: in_task.on)


@contextmanager
def running() -> Iterator[None]:
    """Within, calls of task functions are plain calls: workers run tasks in it."""
    before, in_task.on = in_task.on, True
    try:
        yield
    finally:
        in_task.on = before


@contextmanager
def environment(values: Mapping[str, str | None], secrets: Iterable[str] = ()) -> Iterator[None]:
    """Within, these environment variables are set, or unset for None. Raises BadTask for a secret that isn't there."""
    missing = [name for name in secrets if name not in os.environ]
    if missing:
        raise BadTask(
            f"this worker has no environment variable {missing[0]!r}, which is in secret_env and so never stored: set "
            "it where workers are started, and start them anew"
        )
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def always_in_task() -> None:
    """This process is a worker: in all its threads, calls of task functions are plain calls."""
    _InTask.on = True


# -- which task code belongs to, in a worker ---------------------------------------------------------------------------

_turn: ContextVar[int] = ContextVar("jug_turn", default=0)  #: asyncio hands it on to what a loop runs later
_now: tuple[int, str] = (0, "")  #: counts the tasks that this process began, and names the last
_busy = False  #: it has not ended yet


def begin_turn(name: str) -> None:
    """From here on, this thread runs a task of the function ``name``."""
    global _now, _busy
    _now, _busy = (_now[0] + 1, name), True
    _turn.set(_now[0])


def end_turn() -> None:
    """The task has ended."""
    global _busy
    _busy = False


def task_name() -> str:
    """Return the name of the function whose task this worker process runs, or ran last; empty in other processes."""
    return _now[1]


def _current_turn() -> int:
    turn: int = _turn.get() or getattr(threading.current_thread(), "jug_turn", _now[0])
    return turn


def left_behind() -> bool:
    """Return whether a task runs, and this code, in a thread or a loop, was started by an earlier one."""
    return _busy and _current_turn() != _now[0]


def owned(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function such that, whichever thread calls it, it belongs to the task that runs now."""
    turn = _current_turn()

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        before = _turn.set(turn)
        try:
            return function(*args, **kwargs)
        finally:
            _turn.reset(before)

    return call


def follow_threads() -> None:
    """This process is a worker: a thread belongs to the task that started it, also when that has ended."""
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        thread.jug_turn = _current_turn()  # type: ignore[attr-defined]
        start(thread)

    threading.Thread.start = started  # type: ignore[assignment, method-assign]


# -- progress ----------------------------------------------------------------------------------------------------------

Report: TypeAlias = Callable[[int, int], None]
"""Takes how many items are done, and of how many, 0 where that isn't known. Cheap: may be called for every item."""

T = TypeVar("T")


class _Progress(threading.local):
    report: Report | None = None


_progress = _Progress()


def track(items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """Iterate over items; inside a task, the status shows how many of ``total`` are done. Outside it just iterates.

    >>> for path in track(paths):
    ...     read(path)

    ``total`` is by default the items' length, where they have one. Of nested loops the outermost counts.
    """
    with sole_reporter() as report:
        if report is None:
            yield from items
            return
        many = length_hint(items) if total is None else max(0, int(total))
        report(0, many)
        for done, item in enumerate(items, 1):
            yield item
            report(done, many)


@contextmanager
def sole_reporter() -> Iterator[Report | None]:
    """Give the function to report progress to, and nobody else within; None where there is none, or it is in use."""
    report = _progress.report
    _progress.report = None
    try:
        yield report
    finally:
        _progress.report = report


@contextmanager
def progress_to(report: Report) -> Iterator[None]:
    """Within, ``report`` is called with the progress of this thread's loops."""
    before = _progress.report
    _progress.report = report
    try:
        yield
    finally:
        _progress.report = before


def always_progress_to(report: Report) -> None:
    """This process is a worker: ``report`` is called with the progress of loops in any of its task's threads."""

    def reported(done: int, total: int) -> None:
        if not left_behind():
            report(done, total)

    _Progress.report = staticmethod(reported)


def progress_report() -> Report | None:
    """Return the function that takes this thread's progress; None where there is none."""
    return _progress.report


def check_on_error(on_error: str) -> None:
    """Raise ValueError unless it is one of the three words that say what becomes of failures."""
    if on_error not in ("raise", "skip", "return"):
        raise ValueError(f"on_error is 'raise', 'skip' or 'return', not {on_error!r}")
