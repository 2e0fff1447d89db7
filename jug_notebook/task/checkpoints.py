"""Checkpoints inside a task: what it saves is there for its next attempt, on any host, if its worker, supervisor or
host dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from jug_notebook.clock import CLOCK
from jug_notebook.errors import BadTask
from jug_notebook.system import not_negative
from jug_notebook.task import context


class Keeper(Protocol):
    """Keeps the checkpoints of one attempt at a task."""

    def save(self, name: str, value: Any) -> bool:
        """Begin to write a value once the one before is written. Return False where that takes too long."""

    def load(self, name: str) -> Any:
        """Return the value saved last, by this attempt or one before. Raises KeyError where there is none."""

    def flush(self) -> None:
        """Wait until what was saved is written."""


class TaskKeeper(Keeper, Protocol):
    """Keeps, beside that, what the task yields."""

    def collector(self) -> Collector:
        """Return what takes the values that a generator yields, and sends them to whoever reads along."""
        ...


class Collector(Protocol):
    """The list of what a generator yields, sent on while it grows."""

    values: list[Any]

    def append(self, value: Any) -> None: ...

    def __enter__(self) -> Collector: ...

    def __exit__(self, *_: object) -> None: ...


class _InMemory:
    """Outside a task: kept as long as the checkpoint itself."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def save(self, name: str, value: Any) -> bool:
        self._values[name] = value
        return True

    def load(self, name: str) -> Any:
        return self._values[name]

    def flush(self) -> None:
        """Nothing is written."""


class Checkpoint:
    """A task's checkpoint: see `checkpoint`."""

    def __init__(self, keeper: Keeper, name: str) -> None:
        self._keeper, self._name = keeper, name
        self._every = 0.0
        self._saved: float | None = None

    def load(self, default: Any = None) -> Any:
        """Return what was saved last, by this attempt at the task or an earlier one; ``default`` if nothing was."""
        try:
            return self._keeper.load(self._name)
        except KeyError:
            return default

    def save(self, value: Any, every: float | None = None) -> bool:
        """Save a value in place of the one before; with ``every``, at most once in that many seconds.

        The value is copied on the spot and written beside the task, durably: when the next one is saved, this one is
        safe, so a kill costs at most one interval. Return whether it was saved: not if it was too early, or the store
        is away. Raises Unstorable for what can't be pickled.
        """
        every, now = self._every if every is None else not_negative("every", every), CLOCK.monotonic()
        if self._saved is not None and now - self._saved < every:
            return False
        saved = self._keeper.save(self._name, value)
        self._saved = now if saved else self._saved
        return saved

    def every(self, seconds: float) -> Checkpoint:
        """Let `save` save at most once in this many seconds. Return this checkpoint."""
        self._every = not_negative("every", seconds)
        return self

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.flush()


def checkpoint(name: str = "") -> Checkpoint:
    """Return the checkpoint of the running task, for a ``with`` statement; ``name`` distinguishes several in one task.

    >>> @jn.task
    ... def train(epochs):
    ...     with jn.checkpoint() as c:
    ...         epoch, model = c.load((0, Model()))
    ...         for epoch in range(epoch, epochs):
    ...             model.fit()
    ...             c.save((epoch + 1, model), every=60)
    ...     return model

    If the worker, its supervisor or its host dies, the next attempt at the task, on any host, loads what was saved
    last. It belongs to the task, its round and its inputs: a task that was invalidated, or has other inputs, starts
    from the beginning. The checkpoint is removed when the task has finished, or failed for good. Outside a task, as in
    a plain call, it is kept in memory.
    """
    if not isinstance(name, str):
        raise BadTask(f"checkpoint({name!r:.60}): give a name, or nothing; values are saved by .save(value)")
    return Checkpoint(keeper() or _InMemory(), name)


def keeper() -> TaskKeeper | None:
    """Return what keeps the checkpoints of the task that this code belongs to; None outside of tasks."""
    opened = None if context.left_behind() else _opener.open
    return None if opened is None else opened()


class Opener(Protocol):
    """Returns what keeps the checkpoints of the task that runs; None where none does."""

    def __call__(self) -> TaskKeeper | None: ...


class _Opener(threading.local):
    open: Opener | None = None


_opener = _Opener()


@contextmanager
def checkpoints_by(opener: Opener) -> Iterator[None]:
    """Within, tasks that this thread runs have their checkpoints kept by what ``opener`` returns."""
    before, _opener.open = _opener.open, opener
    try:
        yield
    finally:
        _opener.open = before


def always_checkpoints_by(opener: Opener) -> None:
    """This process is a worker: the same, in any of its task's threads."""
    _Opener.open = staticmethod(opener)
