"""Small things to build with: unpacking, constants as tasks, and arguments named otherwise than by their value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jug_notebook.errors import BadTask
from jug_notebook.task import TaskFunction, task
from jug_notebook.task.desk import in_task
from jug_notebook.task.handles import Handle, Tasklet
from jug_notebook.task.values import tasks_in


def iteratetask(base: Handle, n: int) -> list[Tasklet]:
    """The ``n`` parts of a task's value: ``a, b = iteratetask(t, 2)``."""
    if not isinstance(base, Handle):
        raise BadTask(f"iteratetask takes a task apart, not {type(base).__name__}")
    return [base[i] for i in range(n)]


def return_tuple(n: int) -> Callable[[Callable[..., Any]], TaskFunction]:
    """A decorator for functions that return ``n`` values: Jug's name for ``@task(nout=n)``."""
    return task(nout=n)


def _same(x: Any) -> Any:
    return x


_identity = TaskFunction(_same, name="identity", version="1")


def identity(x: Any) -> Any:
    """A task with the value ``x``: large data is stored and named once, however many tasks use it."""
    return x if in_task.on else _identity(x)


class NoHash:
    """An argument that doesn't matter for the result: the function gets ``x``, the key does not see it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        _no_tasks(value, "NoHash")
        self.value = value

    def __jug_hash__(self) -> bytes:
        return b""

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.value,)  # it arrives as the value itself

    def __repr__(self) -> str:
        return f"NoHash({self.value!r})"


class CustomHash:
    """An argument named by ``name(x)``, a string or bytes, instead of by its value; the function gets ``x``."""

    __slots__ = ("name", "value")

    def __init__(self, value: Any, name: Callable[[Any], str | bytes]) -> None:
        _no_tasks(value, "CustomHash")
        self.value = value
        self.name = name

    def __jug_hash__(self) -> str | bytes:
        named = self.name(self.value)
        if not isinstance(named, str | bytes):
            raise BadTask(f"CustomHash needs a function that returns str or bytes, not {type(named).__name__}")
        return named

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.value,)

    def __repr__(self) -> str:
        return f"CustomHash({self.value!r})"


def _no_tasks(value: Any, name: str) -> None:
    if tasks_in(value):
        raise BadTask(f"{name} can't hold a task: whether it is done would not be seen; pass the task itself")
