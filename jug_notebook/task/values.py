"""Values of what holds tasks, and waiting for them: `value`, `bvalue`, `wait`, `as_completed`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import JugError, WaitTimeout
from jug_notebook.model import Key
from jug_notebook.task.context import Problem, SessionProtocol
from jug_notebook.task.handles import Handle, Task


class Waited(NamedTuple):
    """What `wait` answers, as ``concurrent.futures.wait`` does."""

    done: set[Any]
    not_done: set[Any]


class _Skipped:
    pass


_SKIPPED = _Skipped()


def value(x: Any, on_error: str = "raise") -> Any:
    """The value of ``x``, where lists, tuples, dicts and sets may hold tasks anywhere in them. Does not wait.

    What has a method ``__jug_value__`` is asked for its value. Inside a task, loads what it was given as `NoLoad`.
    Raises NotReady, which names the state, and TaskFailed. With ``on_error="skip"`` what has no value is left out, with
    ``"return"`` the error stands in its place.
    """
    return _load(x, on_error, wait=False, timeout=None)


def bvalue(x: Any, timeout: float | None = None, on_error: str = "raise") -> Any:
    """As `value`, but waits while workers live. Raises what `Task.result` raises: NoWorkers, TaskFailed …"""
    return _load(x, on_error, wait=True, timeout=timeout)


def wait(x: Any, timeout: float | None = None) -> Waited:
    """Wait until all tasks in ``x`` have finished or failed; answers the sets (done, not_done).

    A failed task raises nothing; ``timeout=0`` just looks. Raises NoWorkers, WaitInterrupted.
    """
    handles = tasks_in(x)
    if timeout is None or timeout > 0:
        with suppress(WaitTimeout):  # the answer says so
            settle(handles, timeout)
    states = _states(handles)
    done = {handle for handle in handles if states[handle.key]}
    return Waited(done, set(handles) - done)


def as_completed(tasks: Any, timeout: float | None = None, clock: Clock = CLOCK) -> Iterator[Any]:
    """Each task as soon as it has finished or failed. Raises WaitTimeout, WaitInterrupted, NoWorkers."""
    left = list(dict.fromkeys(tasks_in(tasks)))
    until = None if timeout is None else clock.monotonic() + timeout
    while left:
        states = _states(left)
        done = [handle for handle in left if states[handle.key]]
        yield from done
        left = [handle for handle in left if not states[handle.key]]
        if left and not done:
            for session, keys in _by_desk(left):
                remaining = None if until is None else max(0.0, until - clock.monotonic())
                if not session.settle(keys, remaining, first=True):
                    raise WaitTimeout(f"{len(left)} tasks are not done after {timeout:g} s; they go on")


def settle(x: Any, timeout: float | None = None, clock: Clock = CLOCK) -> None:
    """Wait until all tasks in ``x`` are settled. Raises WaitTimeout, WaitInterrupted, NoWorkers."""
    until = None if timeout is None else clock.monotonic() + timeout
    for session, keys in _by_desk(tasks_in(x)):
        remaining = None if until is None else max(0.0, until - clock.monotonic())
        if not session.settle(keys, remaining):
            raise WaitTimeout(f"not all of {len(keys)} tasks are done after {timeout:g} s; they go on")


def tasks_in(x: Any) -> list[Handle]:
    """The tasks and tasklets in ``x``, at any depth, in order."""
    found: list[Handle] = []
    _gather(x, found)
    return found


def _gather(x: Any, found: list[Handle]) -> None:
    if isinstance(x, Handle):
        found.append(x)
    elif isinstance(x, list | tuple | set | frozenset):
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


def _by_desk(handles: list[Handle]) -> list[tuple[SessionProtocol, list[Key]]]:
    groups: dict[int, tuple[SessionProtocol, dict[Key, None]]] = {}
    before: SessionProtocol | None = None
    keys: dict[Key, None] = {}
    for handle in handles:
        task = handle if type(handle) is Task else handle.task
        if task._session is not before:
            before, keys = groups.setdefault(id(task._session), (task._session, {}))
        keys[task._key] = None
    return [(session, list(keys)) for session, keys in groups.values()]


def _states(handles: list[Handle]) -> dict[Key, bool]:
    return {
        key: state.settled
        for session, keys in _by_desk(handles)
        for key, state in zip(keys, session.states(keys), strict=True)
    }


def _load(x: Any, on_error: str, wait: bool, timeout: float | None) -> Any:
    if on_error not in ("raise", "skip", "return"):
        raise ValueError(f"on_error is 'raise', 'skip' or 'return', not {on_error!r}")
    handles = tasks_in(x)
    tasks = [handle if type(handle) is Task else handle.task for handle in handles]
    for task in {task._version: task for task in tasks}.values():
        task._warn_if_former()
    loaded: dict[Key, Any] = {}
    until = None if timeout is None else CLOCK.monotonic() + timeout
    for session, keys in _by_desk(handles):
        left = None if until is None else max(0.0, until - CLOCK.monotonic())
        values = session.collect(keys, wait=wait, timeout=left, strict=on_error == "raise")
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


__all__ = ["Waited", "as_completed", "bvalue", "settle", "tasks_in", "value", "wait"]
