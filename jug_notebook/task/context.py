"""The desk: what tasks ask of their session, and whether this thread is inside a task.

A handle is light: it knows its key and its desk. What is slow, is remembered or talks to a store lies behind
`SessionProtocol`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from jug_notebook.errors import BadTask, JugError
from jug_notebook.keys import advice
from jug_notebook.model import Address, Key, Payload, Spec, State, TaskView

PendingTask: TypeAlias = "tuple[FunctionVersion, Key, bytes, tuple[Key, ...], Payload, str, bytes]"
"""A task on its way into a store: edition, key, form, needs, arguments, these in short, and their digest."""


class FunctionVersion:
    """A task function with its code as it was at one moment: what all tasks made then have in common."""

    __slots__ = ("__weakref__", "code", "function", "name", "nout", "parts", "priority", "template")

    def __init__(
        self,
        name: str,
        function: Any,
        code: str,
        template: bytes,
        priority: int = 0,
        nout: int | None = None,
        parts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.function = function  #: its TaskFunction; None for tasks that were found in the store
        self.code = code
        self.template = template
        self.priority = priority
        self.nout = nout
        self.parts = parts  #: what the code digest is made of


@dataclass(frozen=True)
class Problem:
    """Stands where a value should be."""

    error: JugError


class SessionProtocol(Protocol):
    """What tasks ask of their session."""

    @property
    def identity(self) -> str:
        """Which store it is: tasks of one store go together."""
        ...

    @property
    def display_url(self) -> str:
        """The store's URL for people."""
        ...

    @property
    def read_only(self) -> bool:
        """Are tasks only named, and none handed in?"""
        ...

    @property
    def folder(self) -> Path:
        """Where tasks run: the notebook's folder."""
        ...

    def function_version(self, function: Any) -> FunctionVersion:
        """The function's code, pinned until the cell ends."""
        ...

    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Keep a large part of an argument."""
        ...

    def add(self, pending_tasks: Sequence[PendingTask]) -> None:
        """Take in tasks; they reach the store soon, and before anything is read from it."""
        ...

    def kept(self, key: Key) -> Spec | None:
        """What a finished task was handed in with; None where it isn't finished."""
        ...

    def run_here(self, target: Any) -> int:
        """Run tasks, and what they need, in this process; answers how many ran."""
        ...

    def states(self, keys: Sequence[Key]) -> list[State]: ...

    def views(self, keys: Sequence[Key]) -> list[TaskView]:
        """Each task as people see it, with what its value is."""
        ...

    def collect(
        self, keys: Sequence[Key], *, wait: bool, timeout: float | None = None, strict: bool = True, mmap: bool = False
    ) -> list[Any]:
        """Values in order; where there is none, the error is raised, or (not ``strict``) a `Problem` stands there."""
        ...

    def settle(self, keys: Sequence[Key], timeout: float | None = None, first: bool = False) -> bool:
        """Wait until all tasks (or the first of them) are settled; False where the time was over before."""
        ...

    async def settled(self, key: Key) -> None:
        """The same without blocking the loop."""
        ...

    def needs(self, key: Key) -> list[Any]:
        """The tasks whose values a task needs, as a `TaskList`."""
        ...

    def outputs(self, key: Key) -> tuple[tuple[str, Any], ...]:
        """What the task printed and displayed, in order."""
        ...

    def provenance(self, key: Key) -> dict[str, Any]:
        """Where a task's value comes from: who ran it, where and when; whose run it is, and who accepted that."""
        ...

    def former(self, version: FunctionVersion) -> bool:
        """Is the function's code another one by now?"""
        ...

    def retry(self, target: Any = None) -> int: ...

    def invalidate(self, target: Any) -> int: ...

    def cancel(self, target: Any) -> int: ...

    def log(self, target: Any = None) -> str: ...

    def why(self, target: Any) -> Any: ...

    def status_of(self, keys: Sequence[Key]) -> Any: ...


current: SessionProtocol | None = None  #: where tasks made now go
_find: Callable[[], SessionProtocol] | None = None
_make: Callable[..., Any] | None = None


def set_current(session: SessionProtocol | None) -> None:
    """Tasks made from now on go to this desk; with None, to the one that is found on first need."""
    global current
    current = session


def on_first_need(find: Callable[[], SessionProtocol]) -> None:
    """How to find a desk when a task is made and nobody sits at one."""
    global _find
    _find = find


def make_task(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a task of any callable. Set by `task.function`, which stands above the classes of tasks."""
    if _make is None:
        raise BadTask("tasks are made by jug_notebook.task; import it first")
    return _make(function, args, kwargs)


def make_tasks_by(make: Callable[..., Any]) -> None:
    """How `make_task` makes them."""
    global _make
    _make = make


def current_session() -> SessionProtocol:
    """The desk in use. Raises BadTask where there is none and none can be found."""
    if current is not None:
        return current
    if _find is None:
        raise BadTask("no store is in use; call jug_notebook.connect() first")
    session = _find()
    set_current(session)
    return session


class _InTask(threading.local):
    on = False


in_task = _InTask()  #: ``in_task.on`` is true while this thread runs a task
advice.silent_where(lambda: in_task.on)


@contextmanager
def running() -> Iterator[None]:
    """Within, calls of task functions are plain calls. Workers run tasks in it."""
    before, in_task.on = in_task.on, True
    try:
        yield
    finally:
        in_task.on = before


def always_in_task() -> None:
    """This process is a worker: in all its threads, calls of task functions are plain calls."""
    _InTask.on = True
