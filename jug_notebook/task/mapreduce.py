"""Many small calls in few tasks, and lists reduced to one value: ``jn.mapreduce.reduce(add, xs)``.

Mappers and reducers are any functions: task functions, lambdas, builtins. A *step* says how many calls one task makes;
choose it so that a task takes long enough to be worth storing. It is part of the keys.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterable
from typing import Any

from jug_notebook.errors import BadTask, TaskNotValue
from jug_notebook.system import batched, whole_number
from jug_notebook.task.context import in_task
from jug_notebook.task.function import Around, TaskFunction
from jug_notebook.task.handles import Handle
from jug_notebook.task.patterns import identity
from jug_notebook.task.values import TaskList


def map(mapper: Callable[[Any], Any], sequence: Iterable[Any], map_step: int = 4) -> TaskList:
    """``[mapper(x) for x in sequence]``, ``map_step`` calls per task. Return a task or tasklet for each item.

    The same as ``mapper.map(sequence, chunksize=map_step)``. Raises BadTask.
    """
    made: TaskList = _function(mapper, "mapper").map(_items(sequence), chunksize=_step(map_step, "map_step"))
    return made


def currymap(mapper: Callable[..., Any], sequence: Iterable[Iterable[Any]], map_step: int = 4) -> TaskList:
    """``[mapper(*args) for args in sequence]``, ``map_step`` calls per task. Raises BadTask."""
    return _function(mapper, "mapper").starmap(_items(sequence), chunksize=_step(map_step, "map_step"))


def reduce(reducer: Callable[[Any, Any], Any], inputs: Iterable[Any], reduce_step: int = 8) -> Any:
    """Return one task with the value ``functools.reduce(reducer, inputs)``; ``inputs`` are values or tasks.

    A tree of tasks: each reduces ``reduce_step`` values to one, in order, so ``reducer`` must be associative. With no
    inputs it is ``identity([])``. Raises BadTask.
    """
    return _tree(None, reducer, inputs, reduce_step, reduce_step)


def mapreduce(
    reducer: Callable[[Any, Any], Any],
    mapper: Callable[[Any], Any] | None,
    inputs: Iterable[Any],
    map_step: int = 4,
    reduce_step: int = 8,
) -> Any:
    """Return one task with the value ``functools.reduce(reducer, map(mapper, inputs))``.

    The first tasks map ``map_step`` inputs and reduce what comes out, the rest is a tree as `reduce` makes it. Without
    a mapper, inputs are reduced as they are. Raises BadTask.
    """
    return _tree(mapper, reducer, inputs, map_step, reduce_step)


class MapReduce:
    """What each of the tasks runs: map some inputs, then reduce them to one value."""

    def __init__(self, reducer: Callable[[Any, Any], Any], mapper: Callable[[Any], Any] | None = None) -> None:
        self.reducer = reducer
        self.mapper = mapper

    def __call__(self, inputs: list[Any]) -> Any:
        return functools.reduce(self.reducer, inputs if self.mapper is None else builtins.map(self.mapper, inputs))


def _tree(mapper: Any, reducer: Any, inputs: Iterable[Any], map_step: int, reduce_step: int) -> Any:
    bring = _function(reducer, "reducer")
    first = None if mapper is None else _function(mapper, "mapper")
    items = _items(inputs)
    map_step, reduce_step = _step(map_step, "map_step"), _step(reduce_step, "reduce_step")
    if reduce_step < 2:
        raise BadTask("reduce_step=1 would never end; a task must reduce at least 2 values to one")
    if not items:
        return identity([])
    if in_task.on:
        return MapReduce(bring.run, None if first is None else first.run)(items)
    down = Around(MapReduce(bring.__jug_function__), [bring], name=f"reduce.{_short(bring)}", **attempt_options(bring))
    if first is None:
        level = [down(list(part)) for part in batched(items, reduce_step)]
    else:
        both = Around(
            MapReduce(bring.__jug_function__, first.__jug_function__),
            [first, bring],
            name=f"mapreduce.{_short(first)}.{_short(bring)}",
            **attempt_options(first),
        )
        level = [both(list(part)) for part in batched(items, map_step)]
    while len(level) > 1:
        level = [down(list(part)) for part in batched(level, reduce_step)]
    return level[0]


def _function(function: Any, role: str) -> TaskFunction:
    if isinstance(function, TaskFunction):
        return function
    if not callable(function) or isinstance(function, Handle):
        raise BadTask(f"the {role} is a function, not {function!r:.60}")
    return TaskFunction(function)


def _short(function: TaskFunction) -> str:
    return function.name.rpartition(".")[2]


def attempt_options(function: TaskFunction) -> dict[str, Any]:
    """Return the options that say how its tasks are run, and concern no result."""
    return {name: getattr(function, name) for name in ("retries", "timeout", "priority", "resources", "limit")}


def _items(sequence: Any) -> list[Any]:
    try:
        return list(sequence)
    except TaskNotValue:
        raise BadTask(
            "the number of values is known only when the task has run; iterate over jn.result(task) instead"
        ) from None
    except TypeError:
        raise BadTask(f"mapreduce iterates over a list, not over {type(sequence).__name__} {sequence!r:.60}") from None


def _step(step: Any, name: str) -> int:
    return whole_number(name, step, "calls", error=BadTask)
