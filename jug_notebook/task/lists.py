"""Lists of tasks: what a `.map` returns, shown as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

from jug_notebook import render
from jug_notebook.errors import JugError
from jug_notebook.keys import digest
from jug_notebook.model import Key, State, TaskView
from jug_notebook.task import context as context
from jug_notebook.task.context import SessionProtocol
from jug_notebook.task.handles import Handle, Task, in_brief
from jug_notebook.task.values import bvalue, settle


class TaskList(list[Any]):
    """A list of tasks, as ``.map`` gives it. Shows as counts and the first few, however long it is."""

    def result(self, timeout: float | None = None, on_error: str = "raise") -> list[Any]:
        """The values, waiting for them. ``on_error`` as in `value`; raises what `Task.result` raises."""
        values: list[Any] = bvalue(list(self), timeout=timeout, on_error=on_error)
        return values

    def wait(self, timeout: float | None = None) -> TaskList:
        """Wait until all have finished or failed. Raises WaitTimeout, WaitInterrupted, NoWorkers; no TaskFailed."""
        settle(self, timeout)
        return self

    @property
    def done(self) -> TaskList:
        """Those that have finished or failed."""
        return self._where(lambda state: state.settled)

    @property
    def failed(self) -> TaskList:
        """Those that have failed, or need a failed task."""
        return self._where(lambda state: state in (State.FAILED, State.BLOCKED))

    def cancel(self) -> int:
        """Take back those that have not started. Answers how many."""
        return sum(at.cancel(tasks) for at, tasks in self._by_desk())

    def retry(self) -> int:
        """Try the failed ones again, and what failed among their needs. Answers how many tasks are tried again."""
        return sum(at.retry(tasks) for at, tasks in self._by_desk())

    def status(self) -> Any:
        """The same picture as `jug_notebook.status`, of these tasks alone."""
        for at, tasks in self._by_desk():
            return at.status_of([task.key for task in tasks])
        return context.current_session().status_of([])

    def why(self) -> Any:
        """What keeps those that aren't stored from it, counted: "12 × helper `norm` changed"."""
        for at, tasks in self._by_desk():
            return at.why(tasks)
        return context.current_session().why([])

    def _by_desk(self) -> list[tuple[SessionProtocol, list[Task]]]:
        found: dict[int, tuple[SessionProtocol, dict[Key, Task]]] = {}
        for handle in self:
            if isinstance(handle, Handle):
                task = handle.task
                found.setdefault(id(task._session), (task._session, {}))[1][task._key] = task
        return [(session, list(tasks.values())) for session, tasks in found.values()]

    def _states(self) -> dict[Key, tuple[str, State]]:
        return {
            task._key: (task.name, state)
            for at, tasks in self._by_desk()
            for task, state in zip(tasks, at.states([task._key for task in tasks]), strict=True)
        }

    def _where(self, wanted: Callable[[State], bool]) -> TaskList:
        states = self._states()
        return TaskList(handle for handle in self if isinstance(handle, Handle) and wanted(states[handle.key][1]))

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

    def _rows(self) -> list[tuple[str, dict[State, int]]]:
        """Counts by function and state; each handle counts, so that a chunk's calls are counted as calls."""
        rows: dict[str, dict[State, int]] = {}
        states = self._states()
        for handle in self:
            if isinstance(handle, Handle):
                name, state = states[handle.key]
                counts = rows.setdefault(name, {})
                counts[state] = counts.get(state, 0) + 1
        return list(rows.items())

    def __jug_brief__(self) -> str:
        names = dict.fromkeys(handle.name for handle in self if isinstance(handle, Handle))
        return f"{len(self)} tasks of {', '.join(names)}" if names else f"TaskList of {len(self)}"

    def __repr__(self) -> str:
        if in_brief():
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
        return f"<{len(self)} tasks · {' · '.join(lines)}>"

    def _items(self, labels: Iterable[Any] | None) -> list[render.Item]:
        """The first few, one by one."""
        few = [item for item in self if isinstance(item, Handle)][: render.LISTED]
        views: dict[Key, TaskView] = {}
        for at, tasks in TaskList(few)._by_desk():
            keys = [task.key for task in tasks]
            views.update(zip(keys, at.views(keys), strict=True))
        names = map(repr, labels) if labels is not None else (f"[{number}]" for number in range(len(few)))
        return [
            render.Item(name, item._listed(), views[item.key], isinstance(item, Task))
            for name, item in zip(names, few, strict=False)
        ]

    def as_text(self, labels: Iterable[Any] | None = None, steady: bool = False) -> str:
        """Counts by state and the first few; ``labels`` in the place of numbers. ``steady``: without times."""
        try:
            count = sum(isinstance(item, Handle) for item in self)
            return render.list_text(self._rows(), self._items(labels), count, steady) if count else repr(self)
        except (JugError, OSError):
            return repr(self)

    def as_html(self, labels: Iterable[Any] | None = None) -> str:
        """The same for a page."""
        try:
            count = sum(isinstance(item, Handle) for item in self)
            if count:
                return render.list_html(self._rows(), self._items(labels), count)
        except (JugError, OSError):  # a handle can always be shown
            pass
        return render.as_it_is(repr(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("TaskList(...)" if cycle else self.as_text())

    def _repr_html_(self) -> str:
        return self.as_html()


@digest.register("jug_notebook.TaskList")
def _digest_task_list(encoder: Any, value: Any, path: str) -> None:
    encoder.add(list(value), path)
