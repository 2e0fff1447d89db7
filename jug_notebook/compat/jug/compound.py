"""Tasks that are made of tasks, and count as one once they are done."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jug_notebook.compat.jug.task import Task, TaskGenerator, name_of
from jug_notebook.task.compound import CompoundTask as compound
from jug_notebook.task.context import in_task

__all__ = ["CompoundTask", "CompoundTaskGenerator"]


def CompoundTask(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The task that ``f`` answers. Where its value is stored, ``f`` is not called."""
    plain = f.f if isinstance(f, TaskGenerator) else f
    if in_task.on:
        return plain(*args, **kwargs)
    task = Compound.around(_TO_BE, plain, args, kwargs, lambda: compound(plain, *args, **kwargs))
    if task.can_load():
        task.name = name_of(plain)
    return task


class Compound(Task):
    """Needs what its function answered, until its value is stored: then, as in Jug, what it was called with."""

    inner: Sequence[Task] = ()  #: is told once the script is loaded

    def dependencies(self) -> Iterator[Any]:  # type: ignore[override]
        return iter(self.inner) if self.name == _TO_BE else super().dependencies()


_TO_BE = "jug.compound.compound_task_execute"  #: what a task is called that is yet to be put together


def CompoundTaskGenerator(f: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: each call of the function is a `CompoundTask`."""

    @functools.wraps(f)
    def generator(*args: Any, **kwargs: Any) -> Any:
        return CompoundTask(f, *args, **kwargs)

    generator.f = f  # type: ignore[attr-defined]
    generator.__jug_function__ = f  # type: ignore[attr-defined]
    return generator
