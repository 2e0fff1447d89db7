"""Small things to build with: unpacking, constants as tasks, and arguments named otherwise than by their value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jug_notebook.errors import BadTask
from jug_notebook.task.context import in_task
from jug_notebook.task.function import TaskFunction
from jug_notebook.task.handles import Handle, Tasklet
from jug_notebook.task.values import tasks_in


def iteratetask(base: Handle, n: int) -> list[Tasklet]:
    """The ``n`` parts of a task's value: ``a, b = iteratetask(t, 2)``."""
    if not isinstance(base, Handle):
        raise BadTask(f"iteratetask takes a task apart, not {type(base).__name__}")
    _number(n, "iteratetask", 0)
    return [base[i] for i in range(n)]


def return_tuple(n: int) -> Callable[[Callable[..., Any]], TaskFunction]:
    """A decorator for functions, or task functions, that return ``n`` values: ``a, b = f(x)`` are two tasklets.

    As ``@task(nout=n)``; besides, a task that returns another number of values fails. Raises BadTask.
    """
    _number(n, "return_tuple", 1)

    def decorate(function: Callable[..., Any]) -> TaskFunction:
        made = function if isinstance(function, TaskFunction) else TaskFunction(function)
        options = {**made._options(), "nout": n}
        try:
            made.__jug_function__.jug_tuple = n  # type: ignore[attr-defined]  # it counts in the key, and travels
        except AttributeError:  # a builtin takes no attributes
            return TaskFunction(made, definition=True, **options)
        return TaskFunction(made, definition=True, **{**options, "runner": f"{__name__}:counted"})

    return decorate


def counted(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """How a worker calls a function of `return_tuple`."""
    values = function(*args, **kwargs)
    try:
        count = len(values)
    except TypeError:
        raise TypeError(f"it returned a {type(values).__name__}, not {function.jug_tuple} values") from None
    if count != function.jug_tuple:
        raise ValueError(f"it returned {count} values, not {function.jug_tuple}")
    return values


def _number(n: Any, name: str, least: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < least:
        raise BadTask(f"{name} takes a number of values, {least} or more, not {n!r:.40}")


def as_it_is(x: Any) -> Any:
    """What tasks run that only hand on what they are given."""
    return x


IDENTITY = TaskFunction(as_it_is, name="identity", version="1")


def identity(x: Any) -> Any:
    """A task with the value ``x``: large data is stored and named once, however many tasks use it."""
    return x if in_task.on else IDENTITY(x)


class NoHash:
    """An argument that doesn't matter for the result: the function gets ``x``, the key does not see it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        _no_tasks(value, "NoHash")
        self.value = value

    def __jug_hash__(self) -> bytes:
        return b""

    def __reduce__(self) -> tuple[Any, ...]:
        return as_it_is, (self.value,)  # it arrives as the value itself

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
        return as_it_is, (self.value,)

    def __repr__(self) -> str:
        return f"CustomHash({self.value!r})"


def _no_tasks(value: Any, name: str) -> None:
    if tasks_in(value):
        raise BadTask(f"{name} can't hold a task: whether it is done would not be seen; pass the task itself")
