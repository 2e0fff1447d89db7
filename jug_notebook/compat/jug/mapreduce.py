"""Tasks that group others: ``map`` and ``reduce``, many small calls in few tasks, and compound tasks.

As in Jug, each group of calls is a task that the script's tables count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jug_notebook.compat.jug.task import Task, TaskGenerator, function_of, name_of, value
from jug_notebook.compat.jug.utils import identity
from jug_notebook.system import batched
from jug_notebook.task import mapreduce as engine
from jug_notebook.task.context import in_task
from jug_notebook.task.patterns import CompoundTask as compound


def _plain(f: Any) -> Any:
    return f.f if isinstance(f, TaskGenerator) else f


def map(mapper: Any, sequence: Any, map_step: int = 4) -> Any:
    """Return ``[mapper(x) for x in sequence]`` as a list of tasks or tasklets, ``map_step`` calls per task."""
    return _mapped("map", mapper, sequence, [(item,) for item in sequence], map_step)


def currymap(mapper: Any, sequence: Any, map_step: int = 4) -> Any:
    """Return ``[mapper(*args) for args in sequence]`` as a list of tasks or tasklets, ``map_step`` calls per task."""
    return list(_mapped("map_curry", mapper, sequence, [tuple(args) for args in sequence], map_step))


def _mapped(kind: str, mapper: Any, sequence: Any, calls: list[tuple[Any, ...]], step: int) -> Any:
    mapper = _plain(mapper)
    if in_task.on:
        return [mapper(*args) for args in calls]
    if step == 1:
        return [Task(mapper, *args) for args in calls]

    name = f"jug.mapreduce._jug_{kind}"

    def block(part: Any, calls: Any) -> Task:
        size = len(calls)  # a block of one call is that call's task itself
        return Task.around(name, mapper, (mapper, part), {}, lambda: function_of(mapper).starmap(calls, size)[0].task)

    blocks = [block(*parts) for parts in zip(batched(sequence, step), batched(calls, step), strict=True)]
    return block_access(blocks, step, len(sequence))


def _items(block: Task, size: int) -> list[Any]:
    """Return a tasklet for each call of a block. A block of one call is that call's task itself."""
    return [block] if size == 1 else [block[i] for i in range(size)]


def reduce(reducer: Any, inputs: Any, reduce_step: int = 8) -> Any:
    """Return a task with the value ``functools.reduce(reducer, inputs)``: a tree of tasks of ``reduce_step`` values."""
    return mapreduce(reducer, None, inputs, reduce_step=reduce_step)


def mapreduce(reducer: Any, mapper: Any, inputs: Any, map_step: int = 4, reduce_step: int = 8) -> Any:
    """Return a task with the value ``functools.reduce(reducer, map(mapper, inputs))``; ``reducer`` is associative."""
    reducer, mapper = _plain(reducer), _plain(mapper)
    if in_task.on:
        return engine.mapreduce(reducer, mapper, inputs, map_step, reduce_step)
    if reduce_step < 2 or map_step < 1:
        raise ValueError("reduce_step must be at least 2, and map_step at least 1")
    if len(inputs) == 0:
        return identity([])
    level = [_down(reducer, (mapper,), part) for part in batched(inputs, map_step)]
    while len(level) > 1:
        level = [_down(reducer, (), part) for part in batched(level, reduce_step)]
    return level[0]


def _down(reducer: Any, mapper: tuple[Any, ...], part: Any) -> Task:
    """Return one task of the tree. ``mapper`` is empty above the first level, where it may be (None,)."""
    bring, first = function_of(reducer), None if mapper in ((), (None,)) else function_of(mapper[0])
    items = list(part)
    kind = "map_reduce" if mapper else "reduce"

    def make() -> Any:
        # with this step, all inputs make one task
        if first is None:
            return engine.reduce(bring, items, max(2, len(items)))
        return engine.mapreduce(bring, first, items, len(items))

    return Task.around(f"jug.mapreduce._jug_{kind}", reducer, (reducer, *mapper, part), {}, make)


class block_access:
    """A list of the values in blocks, which are tasks: its items are tasklets, its slices are lists of tasklets."""

    def __init__(self, blocks: list[Task], block_size: int, len: int) -> None:
        self.blocks, self.block_size, self.len = blocks, block_size, len

    def __getitem__(self, p: Any) -> Any:
        if isinstance(p, slice):
            return [self[i] for i in range(self.len)[p]]
        if not isinstance(p, int):
            raise TypeError(f"an index is an int or a slice, not {type(p).__name__}")
        at = range(self.len)[p]
        number = at // self.block_size
        return _items(self.blocks[number], self._size(number))[at % self.block_size]

    def _size(self, number: int) -> int:
        return min(self.block_size, self.len - number * self.block_size)

    def __len__(self) -> int:
        return self.len

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self.len))

    def can_load(self) -> bool:
        return all(block.can_load() for block in self.blocks)

    def __jug_dependencies__(self) -> list[Task]:
        return self.blocks

    def __jug_value__(self) -> list[Any]:
        found: list[Any] = []
        for number, block in enumerate(self.blocks):
            held = value(block)
            found += [held] if self._size(number) == 1 else held
        return found


# -- compound tasks ----------------------------------------------------------------------------------------------------


def CompoundTask(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the task that ``f`` returns. Where its value is stored, ``f`` is not called."""
    plain = _plain(f)
    if in_task.on:
        return plain(*args, **kwargs)
    task = Compound.around(_TO_BE, plain, args, kwargs, lambda: compound(plain, *args, **kwargs))
    if task.can_load():
        task.name = name_of(plain)
    return task


class Compound(Task):
    """Depends on what its function returned, or, once its value is stored, on its arguments, as in Jug."""

    inner: Sequence[Task] = ()  #: set once the script is loaded

    def dependencies(self) -> Iterator[Any]:  # type: ignore[override]
        return iter(self.inner) if self.name == _TO_BE else super().dependencies()


_TO_BE = "jug.compound.compound_task_execute"  #: the name of a compound task without a value


def CompoundTaskGenerator(f: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: each call of the function is a `CompoundTask`."""

    @functools.wraps(f)
    def generator(*args: Any, **kwargs: Any) -> Any:
        return CompoundTask(f, *args, **kwargs)

    generator.f = f  # type: ignore[attr-defined]
    generator.__jug_function__ = f  # type: ignore[attr-defined]
    return generator
