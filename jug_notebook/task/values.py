"""Many tasks at once: `TaskList`, which a `.map` returns, and the values of whatever holds tasks, at any depth."""

from __future__ import annotations

import array
import io
import operator
from collections import Counter, deque
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MappingView,
    Sequence,
    ValuesView,
)
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, NoReturn, overload

from jug_notebook import render, system
from jug_notebook.clock import CLOCK
from jug_notebook.errors import BadTask, JugError, NoSuchTask, WaitTimeout, clean
from jug_notebook.keys import digest
from jug_notebook.model import Key, State, TaskView
from jug_notebook.render.format import near
from jug_notebook.system import waiting_time
from jug_notebook.task import context as context
from jug_notebook.task import sweeps
from jug_notebook.task.context import Problem, SessionProtocol
from jug_notebook.task.handles import BRIEFLY, Handle, Task


class Waited(NamedTuple):
    """What `wait` returns, as ``concurrent.futures.wait`` does."""

    done: set[Any]
    not_done: set[Any]


_SKIPPED: Any = object()

#: iterables that hold no tasks, or are values as a whole
_WHOLE = (Handle, Mapping, str, bytes, bytearray, memoryview, range, array.array, io.IOBase, type)
_WHOLE_BY = ("__array__", "shape", "__jug_value__", "__jug_dependencies__", "__jug_reference__")
_FLAT = frozenset({Task, int, float, bool, str, bytes, type(None)})  #: there is nothing to look for in them


def value(x: Any, on_error: str = "raise") -> Any:
    """Return the value of ``x``, where lists, tuples, dicts and sets may hold tasks anywhere in them. Does not wait.

    Any other iterable of tasks is read once, and its value is a list. What holds no tasks, like a string or an array,
    is returned as it is; an object with a method ``__jug_value__`` is asked for its value. Inside a task, this loads
    what was passed as `NoLoad`. Raises NotReady, which names the state, and TaskFailed; with ``on_error="skip"`` what
    has no value is left out, with ``"return"`` the error stands in its place.
    """
    return _load(x, on_error, wait=False, timeout=None)


def result(
    x: Any, timeout: float | None = None, on_error: str = "raise", *, wait_for_workers: float | None = None
) -> Any:
    """Wait for the tasks in ``x`` while workers live, and return its value, as `value` does.

    Raises what `Task.result` raises: NoWorkers, TaskFailed, WaitTimeout after ``timeout`` seconds …
    """
    return _load(x, on_error, wait=True, timeout=timeout, wait_for_workers=wait_for_workers)


def bvalue(x: Any, timeout: float | None = None, on_error: str = "raise") -> Any:
    """Return `result` of ``x``; this is its name in Jug."""
    return result(x, timeout, on_error)


def wait(x: Any, timeout: float | None = None) -> Waited:
    """Wait until all tasks in ``x``, any iterable, have finished or failed; return the sets (done, not_done).

    A failed task raises nothing; ``timeout=0`` just looks. Raises NoWorkers, WaitInterrupted.
    """
    handles, timeout = _given(x), waiting_time(timeout)
    if timeout is None or timeout > 0:
        with suppress(WaitTimeout):  # what is returned says so
            settle(handles, timeout)
    states = _states(handles)
    done = {handle for handle in handles if states[handle.key].settled}
    return Waited(done, set(handles) - done)


def as_completed(tasks: Any, timeout: float | None = None) -> Iterator[Any]:
    """Yield each task of an iterable as soon as it has finished or failed.

    Raises WaitTimeout, WaitInterrupted, NoWorkers.
    """
    left, timeout = list(dict.fromkeys(_given(tasks))), waiting_time(timeout)
    until = None if timeout is None else CLOCK.monotonic() + timeout
    while left:
        states = _states(left)
        done = [handle for handle in left if states[handle.key].settled]
        yield from done
        left = [handle for handle in left if not states[handle.key].settled]
        if left and not done:
            for session, keys in _keys_by_session(left):
                remaining = None if until is None else max(0.0, until - CLOCK.monotonic())
                if not session.results.settle(keys, remaining, first=True):
                    raise WaitTimeout(f"{len(left)} tasks are not done after {timeout:g} s; they continue")


def settle(x: Any, timeout: float | None = None) -> None:
    """Wait until all tasks in ``x`` are settled. Raises WaitTimeout, WaitInterrupted, NoWorkers."""
    timeout = waiting_time(timeout)
    until = None if timeout is None else CLOCK.monotonic() + timeout
    for session, keys in _keys_by_session(tasks_in(x)):
        remaining = None if until is None else max(0.0, until - CLOCK.monotonic())
        if not session.results.settle(keys, remaining):
            raise WaitTimeout(f"not all of {len(keys)} tasks are done after {timeout:g} s; they continue")


def _given(x: Any) -> list[Handle]:
    """Return the tasks in ``x``. Raises NoSuchTask for what holds none, and is no list or dict that might."""
    items = listed(x)
    found = tasks_in(items)
    if not found and not isinstance(items, list | tuple | set | frozenset | dict):
        raise NoSuchTask(f"{type(x).__name__} {x!r:.60} holds no task")
    return found


def listed(x: Any) -> Any:
    """Return a list of what an iterable with tasks in it yields, such as ``d.values()`` or a generator.

    Containers, whose type is kept, get such lists in place of iterators, views and deques, at any depth. Everything
    else is returned as it is.
    """
    if isinstance(x, list | tuple | set | frozenset | dict) or not _is_open(x, Iterable):
        return _inside(x)
    items = [_inside(item) for item in x]
    return items if _is_open(x, _READ_ONCE) or tasks_in(items) else x


_READ_ONCE = (Iterator, MappingView, deque)


def _is_open(x: Any, kinds: Any) -> bool:
    """Is it an iterable of these kinds that may hold tasks?"""
    return isinstance(x, kinds) and not isinstance(x, _WHOLE) and not any(hasattr(type(x), name) for name in _WHOLE_BY)


def _inside(x: Any) -> Any:
    if isinstance(x, dict):
        listed_ones = {key: _inside(item) for key, item in x.items()}
        return x if all(listed_ones[key] is item for key, item in x.items()) else listed_ones
    if isinstance(x, list | tuple):
        if _FLAT.issuperset(map(type, x)):
            return x
        items = [_inside(item) for item in x]
        if all(map(operator.is_, items, x)):
            return x
        if isinstance(x, list):
            return items
        return type(x)(*items) if hasattr(x, "_fields") else tuple(items)
    return [_inside(item) for item in x] if _is_open(x, _READ_ONCE) else x


def tasks_in(x: Any) -> list[Handle]:
    """The tasks and tasklets in ``x``, at any depth, in order. Iterators are left unread."""
    found: list[Handle] = []
    _gather(x, found)
    return found


def _gather(x: Any, found: list[Handle]) -> None:
    if isinstance(x, Handle):
        found.append(x)
    elif isinstance(x, list | tuple | set | frozenset | deque | KeysView | ValuesView | ItemsView):
        for item in x:
            if type(item) is Task:  # as in most lists: they may be long
                found.append(item)
            else:
                _gather(item, found)
    elif isinstance(x, dict):
        for key, item in x.items():
            _gather(key, found)
            _gather(item, found)
    elif hasattr(type(x), "__jug_dependencies__"):
        _gather(list(x.__jug_dependencies__()), found)


def _by_session(handles: Iterable[Handle]) -> list[tuple[SessionProtocol, list[Task]]]:
    """The tasks by session, each task once."""
    groups: dict[int, tuple[SessionProtocol, dict[Key, Task]]] = {}
    before: SessionProtocol | None = None
    tasks: dict[Key, Task] = {}
    for handle in handles:
        task = handle if type(handle) is Task else handle.task
        if task._session is not before:
            before, tasks = groups.setdefault(id(task._session), (task._session, {}))
        tasks[task._key] = task
    return [(session, list(tasks.values())) for session, tasks in groups.values()]


def _keys_by_session(handles: Iterable[Handle]) -> list[tuple[SessionProtocol, list[Key]]]:
    return [(session, [task._key for task in tasks]) for session, tasks in _by_session(handles)]


FIRST_AHEAD = 16  #: tasks of a map without end that are submitted first
TAKEN = 256  #: results of it that are taken at once


def _table(tasks: Sequence[Task]) -> tuple[list[State], list[Any], dict[int, tuple[str, str]]]:
    """Return states, values and errors of tasks as they are now, whatever their sessions: see `Results.table`."""
    if len({id(task._session) for task in tasks}) == 1:
        return tasks[0]._session.results.table([task._key for task in tasks])
    found = [task._session.results.table([task._key]) for task in tasks]
    errors = {number: errors[0] for number, (_, _, errors) in enumerate(found) if errors}
    return [states[0] for states, _, _ in found], [values[0] for _, values, _ in found], errors


def _states(handles: Iterable[Handle]) -> dict[Key, State]:
    return {
        key: state
        for session, keys in _keys_by_session(handles)
        for key, state in zip(keys, session.results.states(keys), strict=True)
    }


def _load(x: Any, on_error: str, wait: bool, timeout: float | None, wait_for_workers: float | None = None) -> Any:
    context.check_on_error(on_error)
    x, timeout = listed(x), waiting_time(timeout)
    handles = tasks_in(x)
    tasks = [handle if type(handle) is Task else handle.task for handle in handles]
    for task in {task._version: task for task in tasks}.values():
        task._warn_if_former()
    loaded: dict[Key, Any] = {}
    until = None if timeout is None else CLOCK.monotonic() + timeout
    for session, keys in _keys_by_session(handles):
        left = None if until is None else max(0.0, until - CLOCK.monotonic())
        values = session.results.collect(
            keys, wait=wait, timeout=left, strict=on_error == "raise", wait_for_workers=wait_for_workers
        )
        loaded.update(zip(keys, values, strict=True))
    filled = _fill(x, loaded, on_error)
    return None if filled is _SKIPPED else filled


def _fill(x: Any, loaded: dict[Key, Any], on_error: str) -> Any:
    if isinstance(x, Handle):
        found = loaded[x._key if type(x) is Task else x.key]
        if isinstance(found, Problem):
            return _SKIPPED if on_error == "skip" else found.error
        return found if type(x) is Task else x.take(found)
    if isinstance(x, list | tuple | set | frozenset):
        sure = on_error == "raise"  # then all that was loaded is values
        items = [loaded[item._key] if sure and type(item) is Task else _fill(item, loaded, on_error) for item in x]
        if hasattr(x, "_fields"):  # a named tuple has a place for each
            make: Any = type(x)
            return make(*(None if item is _SKIPPED else item for item in items))
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(x, kind))
        return kind(item for item in items if item is not _SKIPPED)
    if isinstance(x, dict):
        pairs = [(_fill(key, loaded, on_error), _fill(item, loaded, on_error)) for key, item in x.items()]
        return {key: item for key, item in pairs if key is not _SKIPPED and item is not _SKIPPED}
    if hasattr(type(x), "__jug_value__"):
        try:
            return x.__jug_value__()
        except JugError as error:
            if on_error == "raise":
                raise
            return _SKIPPED if on_error == "skip" else error
    return x


class LazyResults:
    """The results of ``f.map(items, ahead=1000)``, in the order of the items, reading that many items ahead.

    Iterate over it, or call ``next``: each waits for one result. What a task raised is raised (TaskFailed);
    the next ``next`` goes on after it. So it does after an interrupt; if that, or an error, came while items were read,
    BadTask is raised in place of those. ``close()`` cancels what was made ahead and hasn't started.
    """

    def __init__(self, make: Callable[[int], TaskList], ahead: int) -> None:
        self._make = make
        self._ahead = ahead
        self._more = True
        self._broken = False  #: were items read of which no tasks were made?
        self._waiting: deque[Handle] = deque()
        self._ready: deque[Any] = deque()  #: values, or problems, of those before

    def __iter__(self) -> LazyResults:
        return self

    def __next__(self) -> Any:
        if not self._ready:
            self._fill()
            if not self._waiting and self._broken:
                raise BadTask(
                    "the map broke off while it read items ahead, so its next results are unknown: call it again "
                    "(what was computed is stored)"
                )
            if not self._waiting:
                raise StopIteration
            self._collect()
        value = self._ready[0]
        try:
            if isinstance(value, Problem):
                raise value.error
            return value
        finally:
            del self._ready[0]  # at the very end: what an interrupt keeps from being returned comes next time

    def _fill(self) -> None:
        """Make tasks until enough are ahead: few at first, so that workers can begin."""
        size = FIRST_AHEAD if not self._waiting else max(1, self._ahead // 4)
        while self._more and not self._broken and len(self._waiting) + size <= max(self._ahead, size):
            self._broken = True
            made = self._make(min(size, self._ahead))
            self._more, self._waiting, self._broken = len(made) > 0, self._waiting + deque(made), False
            for task in made[:1]:
                task.task._session.results.states(())  # all are submitted now
            size = max(1, self._ahead // 4)

    def _collect(self) -> None:
        """Wait for the next one, and take those after it that have ended by now."""
        first = self._waiting[0].task
        results = first._session.results
        results.settle([first._key])
        some = list(islice(self._waiting, TAKEN))
        ended = 1
        for state in results.states([handle.key for handle in some[1:]]):
            if not state.settled:
                break
            ended += 1
        values = results.collect([handle.key for handle in some[:ended]], wait=True, strict=False)
        ready = [
            value if isinstance(value, Problem) else handle.take(value)
            for handle, value in zip(some[:ended], values, strict=True)
        ]
        self._ready, self._waiting = deque(ready), deque(islice(self._waiting, ended, None))  # or neither

    def close(self) -> int:
        """Read no more items, and cancel what was made ahead and hasn't started. Return how many were cancelled."""
        self._more = self._broken = False
        cancelled = TaskList(self._waiting).cancel()
        self._waiting = deque()
        return cancelled

    def __repr__(self) -> str:
        return f"<results of a map, {len(self._waiting)} tasks ahead>"


class TaskList(list[Any]):
    """A list of tasks, as ``.map`` returns it. Shows as counts and the first few, however long it is."""

    def result(
        self, timeout: float | None = None, on_error: str = "raise", *, wait_for_workers: float | None = None
    ) -> list[Any]:
        """The values, waiting for them. ``on_error`` as in `value`; the rest, and errors, as in `Task.result`."""
        values: list[Any] = _load(list(self), on_error, wait=True, timeout=timeout, wait_for_workers=wait_for_workers)
        return values

    def wait(self, timeout: float | None = None) -> TaskList:
        """Wait until all have finished or failed. Raises WaitTimeout, WaitInterrupted, NoWorkers; no TaskFailed."""
        settle(self, timeout)
        return self

    @property
    def done(self) -> TaskList:
        """The tasks that have finished or failed."""
        return self._where(lambda state: state.settled)

    @property
    def failed(self) -> TaskList:
        """The tasks that have failed, or need a failed task."""
        return self._where(lambda state: state in (State.FAILED, State.BLOCKED))

    def cancel(self) -> int:
        """Cancel those that have not started. Return how many."""
        return sum(session.cancel(tasks) for session, tasks in self._by_session())

    def retry(self) -> int:
        """Retry the failed ones, and what failed among the tasks they need. Return how many tasks are retried."""
        return sum(session.retry(tasks) for session, tasks in self._by_session())

    @property
    def arguments(self) -> list[dict[str, Any]]:
        """The parameters of each call: see `Handle.arguments`."""
        return [handle.arguments for handle in self._handles()]

    def sel(self, **parameters: Any) -> TaskList:
        """Return the tasks with these parameters: ``ts.sel(a=3, b=[1, 2], c=slice(0, 10), d=lambda d: d > 0)``.

        A slice counts both of its ends. Raises NoSuchTask where no task has a parameter of that name.
        """
        handles = self._handles()
        numbers = sweeps.chosen([handle._parameters() for handle in handles], parameters)
        return TaskList(handles[number] for number in numbers)

    def to_frame(self, on_error: str = "return") -> Any:
        """Return a pandas.DataFrame of parameters, states and what results there are now. See `sweeps.frame`.

        Its index is the tasks' numbers in the list. ``on_error="skip"`` leaves out those that have no value,
        ``"raise"`` raises the first failure.
        """
        return sweeps.frame(self._data(on_error))

    def to_xarray(self, on_error: str = "return") -> Any:
        """Return an xarray.Dataset over the parameters that vary, as it is now. See `sweeps.dataset`, `to_frame`."""
        return sweeps.dataset(self._data(on_error))

    def plot(self, x: str = "", y: str = "result", by: str = "") -> sweeps.SweepPlot:
        """Return a plot (matplotlib) of results over a parameter; in a notebook it follows the tasks while they run.

        ``x`` is a parameter (default: the first that varies), ``y`` a column of `to_frame` with numbers, ``by`` the
        parameter that has a line for each of its values (default: the other one that varies, if there is exactly one).
        ``.figure`` of the plot is a matplotlib Figure of the results that there are then. Raises BadTask where there is
        no such parameter, or the results have no such part.
        """
        found = sweeps.SweepPlot(self._data, x, y, by, self._handles()[:1])
        found.figure  # noqa: B018  raises where x or y is wrong
        return found

    def _data(self, on_error: str = "return", warn: bool = True) -> sweeps.Sweep:
        """Return the list as it is now. With ``on_error="skip"``, only what has a value."""
        context.check_on_error(on_error)
        handles = self._handles()
        with system.uncollected():
            tasks = [handle if type(handle) is Task else handle.task for handle in handles]
            for task in {task._version: task for task in tasks}.values() if warn else ():
                task._warn_if_former()
            calls = [task._call or task._parameters() if task is handle else handle._parameters()
                     for task, handle in zip(tasks, handles, strict=True)]  # fmt: skip
            functions = [task._version.name for task in tasks]
            sweep = sweeps.Sweep(range(len(tasks)), functions, calls, *_table(tasks))
        for number, handle in enumerate(handles):
            if type(handle) is not Task and sweep.states[number] is State.FINISHED and number not in sweep.errors:
                try:
                    sweep.values[number] = handle.take(sweep.values[number])
                except Exception as error:  # whatever the user's own types raise
                    sweep.values[number] = None
                    sweep.errors[number] = "part", f"{handle._short()}: {type(error).__name__}: {error}"
        if on_error == "raise" and sweep.errors:
            handles[min(sweep.errors)].result(timeout=0)
        return sweep.finished() if on_error == "skip" else sweep

    def status(self) -> Any:
        """Return the same picture as `jug_notebook.status`, of these tasks alone."""
        for session, tasks in self._by_session():
            return session.status_of([task.key for task in tasks])
        return context.current_session().status_of([])

    def why(self) -> Any:
        """Return why those that aren't stored aren't, counted: "12 × helper `norm` changed"."""
        for session, tasks in self._by_session():
            return session.why(tasks)
        return context.current_session().why([])

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        more = near(name, dir(type(self)))
        raise AttributeError(f"a list of tasks has no {name!r}; use .result() for the list of their values{more}")

    def _handles(self) -> list[Handle]:
        return [handle for handle in self if isinstance(handle, Handle)]

    def _by_session(self) -> list[tuple[SessionProtocol, list[Task]]]:
        return _by_session(self._handles())

    def _where(self, wanted: Callable[[State], bool]) -> TaskList:
        handles = self._handles()
        states = _states(handles)
        return TaskList(handle for handle in handles if wanted(states[handle.key]))

    @overload  # type: ignore[override]
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> TaskList: ...
    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return TaskList(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> TaskList:
        return TaskList([*self, *other])

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # in arguments it is a list like any other

    def _rows(self) -> list[tuple[str, Counter[State]]]:
        """Counts by function and state; each tasklet counts, so that a chunk's calls are counted as calls."""
        rows: dict[str, Counter[State]] = {}
        handles = self._handles()
        states = _states(handles)
        for handle in handles:
            rows.setdefault(handle.name, Counter())[states[handle.key]] += 1
        return list(rows.items())

    def __jug_brief__(self) -> str:
        names = dict.fromkeys(handle.name for handle in self._handles())
        return clean(f"{len(self)} tasks of {', '.join(names)}") if names else f"TaskList of {len(self)}"

    def __repr__(self) -> str:
        if BRIEFLY.on:
            return self.__jug_brief__()
        try:
            rows = self._rows()
        except (JugError, OSError) as error:
            return f"<{len(self)} tasks · {type(error).__name__}: {error}>"
        if not rows:
            return f"<TaskList of {len(self)}>"
        lines = [
            f"{sum(counts.values())} of {name}: "
            + ", ".join(f"{counts[state]} {state.value}" for state in State if state in counts)
            for name, counts in rows
        ]
        return clean(f"<{len(self)} tasks · {' · '.join(lines)}>")

    def _items(self, labels: Iterable[Any] | None) -> list[render.Item]:
        """Return the first few, one by one."""
        few = self._handles()[: render.LISTED]
        views: dict[Key, TaskView] = {}
        for session, tasks in _by_session(few):
            keys = [task._key for task in tasks]
            views.update(zip(keys, session.results.views(keys), strict=True))
        names = map(repr, labels) if labels is not None else (f"[{number}]" for number in range(len(few)))
        return [
            render.Item(name, item._listed(), views[item.key], isinstance(item, Task))
            for name, item in zip(names, few, strict=False)
        ]

    def as_text(self, labels: Iterable[Any] | None = None, steady: bool = False) -> str:
        """Return counts by state and the first few, with ``labels`` instead of numbers. ``steady``: without times."""
        try:
            count = len(self._handles())
            return render.list_text(self._rows(), self._items(labels), count, steady) if count else repr(self)
        except (JugError, OSError):
            return repr(self)

    def as_html(self, labels: Iterable[Any] | None = None) -> str:
        """Return the same as HTML."""
        try:
            count = len(self._handles())
            if count:
                return render.list_html(self._rows(), self._items(labels), count)
        except (JugError, OSError):  # a list can always be shown
            pass
        return render.preformatted(repr(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("TaskList(...)" if cycle else self.as_text())

    def _repr_html_(self) -> str:
        return self.as_html()


@digest.writer_for("jug_notebook.TaskList")
def _digest_task_list(encoder: Any, value: Any, path: str) -> None:
    encoder.add(list(value), path)


# -- the calls of a map or a grid --------------------------------------------------------------------------------------


def check_list(given: Any, call: str) -> None:
    """Raise BadTask for what has no items, and for a data frame: iterating over it gives the names of its columns."""
    if hasattr(given, "columns") and len(getattr(given, "shape", ())) == 2:
        raise BadTask(
            f"{call}(): a {type(given).__name__} would be a task for the name of each column; "
            "pass df['column'], df.to_dict('records'), or [df] for one task with all of it"
        )
    if not _has_items(given):
        kind, name = f"{type(given).__name__} {given!r:.60}", call.rpartition(".")[0]
        raise BadTask(f"{call}() takes a list or the like, not {kind}; for one task, call {name}(…)")


def _has_items(given: Any) -> bool:
    return (isinstance(given, Iterable) or hasattr(given, "__getitem__")) and getattr(given, "shape", None) != ()


def as_arguments(item: Any) -> tuple[Any, ...]:
    """Return an item of a ``.starmap`` as the arguments of one call. Raises BadTask."""
    if isinstance(item, str | bytes | dict) or not _has_items(item):
        kind = f"{type(item).__name__} {item!r:.60}"
        raise BadTask(f"starmap() takes a tuple of arguments for each call, not {kind}; .map(…) takes one for each")
    return tuple(item)
