"""Jug's tasks, as its scripts make and use them, on top of our tasks.

A `Task` here is a handle, so our tasks and Jug's can be mixed. What differs is what Jug's scripts rely on: ``t.result``
is a property, a task is true and equals only itself, and `alltasks` lists all tasks.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from typing import Any

from jug_notebook.compat import jugdir
from jug_notebook.compat.jugdir import RUNNER, Jugdir
from jug_notebook.errors import JugError, TaskFailed
from jug_notebook.keys.digest import digest
from jug_notebook.model import Reference, State
from jug_notebook.task import TaskFunction, handles
from jug_notebook.task import context as context
from jug_notebook.task.context import in_task, running
from jug_notebook.task.handles import BRIEFLY, Handle, briefly
from jug_notebook.task.values import tasks_in
from jug_notebook.task.values import value as values

alltasks: list[Task] = []  #: those that the script has made so far
on_made: Callable[[Task], None] | None = None  #: called with each new task
deferred = False  #: are keys computed when they are needed? Else when a task is made
_functions: dict[int, tuple[Any, TaskFunction]] = {}


def function_of(f: Any) -> TaskFunction:
    """Return the task function of a function: one for all its tasks, so that its code is hashed once."""
    if isinstance(f, TaskGenerator):
        f = f.f
    if isinstance(f, TaskFunction):
        return f
    known = _functions.get(id(f))
    if known is None or known[0] is not f:
        known = _functions[id(f)] = (f, TaskFunction(f, runner=RUNNER))
    return known[1]


_HOME = __name__.removesuffix(".task")


def name_of(f: Any) -> str:
    """Return the name of a function's tasks in tables: module and function."""
    module = str(getattr(f, "__module__", None))
    if module.startswith(_HOME):
        module = "jug" + module.removeprefix(_HOME)
    return f"{module}.{getattr(f, '__name__', type(f).__name__)}"


def forget_functions() -> None:
    """Forget all functions: a script that is loaded again defines new ones."""
    _functions.clear()


class TaskletMixin(Handle):
    """A task or a part of one: indexing it makes a `Tasklet`."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        return Tasklet(self, _getitem(index))

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(
            f"{self._short()} is a task, so its length is known only when it has run. Use iteratetask(task, n) if you "
            "know the length, else bvalue(task)"
        )

    def __getattr__(self, name: str) -> Any:
        if isinstance(getattr(type(self), name, None), property):
            return object.__getattribute__(self, name)  # raises again the AttributeError that the property raised
        return super().__getattr__(name)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def can_load(self) -> bool:
        """Return whether the value is stored."""
        return self.state is State.FINISHED


class Task(TaskletMixin):
    """A call that is made once: ``Task(f, *args, **kwargs)``. ``f`` is any callable, even a lambda."""

    store: Any = Jugdir("jugdata")
    name: str = ""  #: module and function

    def __new__(cls, f: Any, *args: Any, **kwargs: Any) -> Any:
        if in_task.on:  # a call inside a task is the plain call
            return (f.__jug_function__ if isinstance(f, TaskFunction | TaskGenerator) else f)(*args, **kwargs)
        return object.__new__(cls)

    def __init__(self, f: Any, *args: Any, **kwargs: Any) -> None:
        while isinstance(f, functools.partial):
            f, args, kwargs = f.func, f.args + args, {**f.keywords, **kwargs}
        plain = f.__jug_function__ if isinstance(f, TaskFunction | TaskGenerator) else f
        self._begin(name_of(plain), plain, args, kwargs, lambda: handles.Task(function_of(f), *args, **kwargs))

    @classmethod
    def around(
        cls, name: str, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], make: Callable[[], handles.Task]
    ) -> Task:
        """Return a task that ``make`` makes; the rest is what scripts find as its attributes."""
        task: Task = object.__new__(cls)
        task._begin(name, f, args, kwargs, make)
        return task

    def _begin(
        self, name: str, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any], make: Callable[[], handles.Task]
    ) -> None:
        self.f, self.args, self.kwargs = f, args, kwargs
        self.name = name
        self._make = make
        self._made: tuple[Any, handles.Task] | None = None
        if not deferred:
            _ = self.task
        alltasks.append(self)
        if on_made is not None:
            on_made(self)

    # -- as a handle ---------------------------------------------------------------------------------------------------

    @property
    def task(self) -> handles.Task:
        """Our task, in the store that is in use."""
        store = Task.store
        made = self._made
        if made is None or made[0] is not store:
            if context.current is not store.session:
                context.set_current(store.session)
            made = self._made = (store, self._make())
        return made[1]

    def take(self, value: Any) -> Any:
        return value

    def _short(self) -> str:
        return f"Task: {self.name}()"

    def __str__(self) -> str:
        return self._short()

    def __repr__(self) -> str:
        """Return the call; tasks among its arguments appear as their functions' names, for chains may be long."""
        if BRIEFLY.on:
            return f"{self.name}(…)"
        with briefly():
            return f"Task({self.name}, args={self.args}, kwargs={self.kwargs})"

    def __jug_reference__(self) -> Reference:
        return self.task.__jug_reference__()

    # -- values --------------------------------------------------------------------------------------------------------

    @property
    def result(self) -> Any:
        """The value. Raises NotReady if there is none yet, TaskFailed."""
        if not self.is_loaded():
            self.load()
        return self._result

    def value(self, mmap: bool = False) -> Any:
        return self.result

    def load(self) -> None:
        """Load the value, even if it is loaded already. Raises RuntimeError from what unpickling it raised."""
        try:
            self._result = Handle.value(self)
        except JugError:
            raise
        except Exception as error:  # an AttributeError would make `result` look like a name that there isn't
            raise RuntimeError(f"the value of {self.name}, task {self.key}, can't be loaded: {error!r}") from error

    def is_loaded(self) -> bool:
        return "_result" in self.__dict__

    def unload(self) -> None:
        self.__dict__.pop("_result", None)

    def unload_recursive(self) -> None:
        for task in (self, *recursive_dependencies(self)):
            task.unload()

    # -- running -------------------------------------------------------------------------------------------------------

    def can_run(self) -> bool:
        """Return whether all its dependencies have values."""
        return all(dep.can_load() for dep in self.dependencies())

    def can_load(self, store: Any = None) -> bool:
        return bool((store or Task.store).can_load(self.hash()))

    def run(self, force: Any = None, save: bool = True, debug_mode: bool = False) -> Any:
        """Make the call now, in this process; ``save`` its value. Raises what the call raises."""
        assert self.can_run(), f"{self} can't run: a task that it depends on has no value yet"
        if jugdir.purpose.read_only and callable(self.f):  # the task is not in the store
            arguments, named = value([list(self.args), self.kwargs])
            with running():
                self._result = self.f(*arguments, **named)
            return self._result
        store, key = Task.store, self.key
        store.session.submissions.flush()
        claim = store.claims.pop(key, None)
        if save and claim is None and not store.can_load(key):
            if store.state(key) is State.FAILED:
                store.retry_failed([key])
            claim = store.hand.claim(key)
        if claim is None or not save:
            self._result = store.session.reruns.rerun(key)
            return self._result
        store.hand.run(claim)
        try:
            self.load()
        except TaskFailed as failed:
            raise failed.__cause__ or failed from None
        return self._result

    def invalidate(self) -> int:
        """Invalidate the value and what depends on it. Return how many values of this task there were: 0 or 1."""
        self.unload()
        return int(Task.store.remove(self.hash()))

    def dependencies(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the tasks in the arguments."""
        for handle in tasks_in([self.args, self.kwargs]):
            while isinstance(handle, Tasklet | handles.NoLoad):
                handle = handle.base
            if isinstance(handle, Task):
                yield handle

    # -- names and locks -----------------------------------------------------------------------------------------------

    def hash(self) -> bytes:
        """Return the key as bytes."""
        return self.key.encode()

    __jug_hash__ = hash

    def _lock(self) -> Any:
        Task.store.session.submissions.flush()
        return Task.store.getlock(self.hash())

    def lock(self) -> bool:
        """Claim the task for this process. Return False if it is claimed already or can't run."""
        return bool(self._lock().get())

    def unlock(self) -> None:
        self._lock().release()

    def is_locked(self) -> bool:
        """Return whether it runs or has failed."""
        return bool(self._lock().is_locked())

    def fail(self) -> bool:
        """Mark it as failed, if this process has locked it. Return whether it is failed."""
        return bool(self._lock().fail())

    def is_failed(self) -> bool:
        return bool(self._lock().is_failed())


class _getitem:
    """The function that takes an item or a slice of a value."""

    __slots__ = ("slice",)

    def __init__(self, slice: Any) -> None:
        self.slice = slice

    def __call__(self, whole: Any) -> Any:
        return whole[value(self.slice)]

    def __repr__(self) -> str:
        return f"jug.task._getitem({self.slice})"


class Tasklet(TaskletMixin):
    """Part of a task's value, or a function of it. Never stored."""

    def __init__(self, base: Any, f: Any) -> None:
        if not isinstance(base, Handle) or isinstance(base, handles.NoLoad):
            raise TypeError(f"a tasklet is made from a task, not from {type(base).__name__}")
        self.base, self.f = base, f

    @property
    def task(self) -> handles.Task:
        return self.base.task

    @property
    def steps(self) -> tuple[tuple[str, Any], ...]:
        """The steps from the task's value to this one."""
        step = ("item", self.f.slice) if type(self.f) is _getitem else ("call", self.f)
        return (*getattr(self.base, "steps", ()), step)

    def take(self, value: Any) -> Any:
        return self.f(self.base.take(value))

    def value(self, mmap: bool = False) -> Any:
        return self.__jug_value__()

    def __jug_value__(self) -> Any:
        return self.f(value(self.base))

    def unload(self) -> None:
        self.base.unload()

    def unload_recursive(self) -> None:
        self.base.unload_recursive()

    def dependencies(self) -> Iterator[Any]:  # type: ignore[override]
        yield self.base

    __jug_dependencies__ = dependencies

    def can_load(self) -> bool:
        return bool(self.base.can_load())

    def _short(self) -> str:
        return f"Tasklet({self.base!r}, {self.f!r})"

    def __repr__(self) -> str:
        with briefly():
            return self._short()

    def __jug_reference__(self) -> Reference:
        return Reference(self.base.__jug_reference__().key, self.steps)


class NoLoad(handles.NoLoad, Tasklet):
    """A task as an argument that is not loaded: the function gets it, and loads it with ``value(t.base)``."""

    def __new__(cls, base: Any) -> Any:
        if in_task.on or not isinstance(base, Handle) or isinstance(base, handles.NoLoad):
            return handles.NoLoad(base)
        return object.__new__(cls)

    def __init__(self, base: Any) -> None:
        if base is not self:  # NoLoad(NoLoad(t)) is NoLoad(t)
            self.base, self.f = base, "NoLoad"

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(f"{self._short()} is not loaded, so it has no parts: take NoLoad(task[{index!r}])")

    def __jug_value__(self) -> Any:
        return self


# -- walks over the graph ----------------------------------------------------------------------------------------------


def topological_sort(tasks: list[Any]) -> None:
    """Sort in place, so that no task depends on a later one."""
    graph: dict[Any, list[Any]] = {}
    left = tasks[:]
    while left:
        if (task := left.pop()) not in graph:
            graph[task] = list(task.dependencies())
            left += graph[task]
    wanted = set(tasks)
    tasks[:] = [task for task in TopologicalSorter(graph).static_order() if task in wanted]


def recursive_dependencies(t: Any, max_level: int | None = -1) -> Iterator[Any]:
    """Yield what a task depends on, each once, down to ``max_level`` (-1 or None: all levels)."""
    level, row = 0, list(t.dependencies())
    seen: set[int] = set()
    while row and (max_level is None or max_level < 0 or level < max_level):
        level += 1
        following: list[Any] = []
        for dep in row:
            if id(dep) not in seen:
                seen.add(id(dep))
                yield dep
                following.extend(dep.dependencies())
        row = following


# -- values ------------------------------------------------------------------------------------------------------------


def value(elem: Any) -> Any:
    """Return ``elem`` with all tasks in it, at any depth, replaced by values. Raises NotReady, TaskFailed."""
    if isinstance(elem, handles.NoLoad):
        return elem
    if isinstance(elem, Task):
        return elem.value()
    if not any(isinstance(handle, handles.NoLoad) for handle in tasks_in(elem)):
        return values(elem)  # loads all at once
    if type(elem) in (list, tuple, set, frozenset):
        return type(elem)(map(value, elem))
    if type(elem) is dict:
        return {key: value(item) for key, item in elem.items()}
    return elem.__jug_value__() if hasattr(elem, "__jug_value__") else elem


def CachedFunction(f: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the value of ``f(*args, **kwargs)``: from the store, else computed now, in this process, and stored."""
    task = Task(f, *args, **kwargs)
    if in_task.on:
        return task
    if not task.can_load():
        if not task.can_run():
            raise ValueError(f"CachedFunction: {task} depends on a task that has not run")
        return task.run()
    return task.value()


class TaskGenerator:
    """A decorator: calls of the function make tasks; inside a running task they are plain calls."""

    _jug_is_task_generator = True

    def __init__(self, f: Callable[..., Any]) -> None:
        self.f: Any = f.__jug_function__ if isinstance(f, TaskFunction | TaskGenerator) else f
        functools.update_wrapper(self, self.f, updated=())
        self.__dict__.pop("__wrapped__", None)

    @property
    def __jug_function__(self) -> Any:
        return self.f

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Task(self.f, *args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"TaskGenerator({self.f!r})"


class iteratetask:
    """The first ``n`` parts of a task's value: ``a, b = iteratetask(t, 2)``."""

    def __init__(self, base: Any, n: int) -> None:
        self.base, self.n = base, n

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return self.base[i]

    def __len__(self) -> int:
        return self.n


def _get_check(values: Any, i: int, n: int) -> Any:
    if len(values) != n:
        raise ValueError(f"expected {n} values, got {len(values)}")
    return values[i]


def return_tuple(n: int) -> Callable[[Any], Any]:
    """Return a decorator for a task generator whose function returns ``n`` values: its calls return ``n`` tasklets."""

    def wrap(f: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = f(*args, **kwargs)
            if in_task.on:
                return made
            return tuple(Tasklet(made, functools.partial(_get_check, i=i, n=n)) for i in range(n))

        if hasattr(type(f), "__jug_function__"):
            wrapped.__jug_function__ = f.__jug_function__  # type: ignore[attr-defined]
        return wrapped

    return wrap


def describe(t: Any) -> Any:
    """Return what was computed from what, as nested dicts and lists, with what the store knows about each run."""
    whole, tasks = outline(t, lambda leaf: leaf)
    for task, found, _ in tasks:
        if isinstance(task, Task) and (meta := Task.store.metadata(task)) is not None:
            found["meta"] = meta
    return whole


def outline(
    t: Any, leaf: Callable[[Any], Any], most: float = math.inf, deep: float = math.inf
) -> tuple[Any, list[tuple[Any, dict[str, Any], int]]]:
    """Return what `describe` returns, without "meta" and with ``leaf(x)`` for what is no task; and its tasks.

    These come with their dicts in it and their levels. Arguments beyond ``most`` tasks, the nearest first, or below
    ``deep`` levels are an ellipsis.
    """
    tasks: list[tuple[Any, dict[str, Any], int]] = []

    def part(x: Any, level: int) -> Any:
        if isinstance(x, handles.Task | Task):
            tasks.append((x, found := {"name": x.name}, level))
            return found
        if isinstance(x, Handle):
            operation = repr(x.f) if isinstance(x, Tasklet) else repr(x)
            return {"name": "tasklet", "operation": operation, "base": part(getattr(x, "base", x.task), level)}
        if isinstance(x, list | tuple):
            return (list if isinstance(x, list) else tuple)(part(item, level) for item in x)
        if isinstance(x, dict):
            return {leaf(key): part(item, level) for key, item in x.items()}
        return leaf(x)

    whole = part(t, 0)
    for number, (task, found, level) in enumerate(tasks):  # which grows
        args, kwargs = (task.args, task.kwargs) if isinstance(task, Task) else ((), {})
        if (args or kwargs) and (number >= most or level >= deep):
            args, kwargs = ("…",), {}
        if args:
            found["args"] = [part(arg, level + 1) for arg in args]
        if kwargs:
            found["kwargs"] = {name: part(arg, level + 1) for name, arg in kwargs.items()}
    return whole, tasks


# -- barriers ----------------------------------------------------------------------------------------------------------


class BarrierError(Exception):
    """A task that the script waits for has no value yet."""


def barrier() -> None:
    """Wait for all tasks made so far. Raises BarrierError, which ends the loading of the script."""
    if not done(alltasks):
        raise BarrierError


def bvalue(t: Any) -> Any:
    """Return the value. Raises BarrierError if it isn't there yet."""
    if not done(needed(t)):
        raise BarrierError
    return value(t)


def done(tasks: list[Any]) -> bool:
    """Return whether all of these tasks have values."""
    return all(state is State.FINISHED for state in Task.store.states(one.key for one in tasks).values())


def needed(x: Any) -> list[Handle]:
    """Return the tasks whose values `value` needs for ``x``."""
    return [handle for handle in tasks_in(x) if not isinstance(handle, handles.NoLoad)]


# -- names of values ---------------------------------------------------------------------------------------------------


def new_hash_object() -> Any:
    return hashlib.sha1()


def hash_update(M: Any, elems: Iterable[tuple[Any, Any]]) -> Any:
    """Add ``(name, value)`` pairs to a hash and return it."""
    for pair in elems:
        M.update(digest(tuple(pair)))
    return M


def hash_one(obj: Any) -> bytes:
    """Return the hash of a value, 40 hex digits."""
    return digest(obj).hex().encode()
