"""Functions that make tasks, as tasks of their own: once the last is done, the others need not be made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

from jug_notebook import codec
from jug_notebook.errors import BadTask
from jug_notebook.keys import digest
from jug_notebook.model import State
from jug_notebook.task import context as context
from jug_notebook.task.context import PendingTask, in_task, running
from jug_notebook.task.function import Around, TaskFunction, is_axis
from jug_notebook.task.handles import Task, briefly, handle
from jug_notebook.task.lists import TaskList
from jug_notebook.task.patterns import IDENTITY, as_it_is
from jug_notebook.task.values import value


def CompoundTask(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """A task whose function makes tasks and answers the last of them: its value is that one's value.

    Where it is stored, ``f`` is not called and none of its tasks is made; else ``f`` is called here and now, and what
    it answers (a task, or whatever holds tasks) is what this task needs. Code and arguments of ``f`` name it.
    """
    function = f if isinstance(f, CompoundFunction) else CompoundFunction(f)
    return function(*args, **kwargs)


def CompoundTaskGenerator(f: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """A decorator: each call of the function is a `CompoundTask`. Takes ``version``, ``name``, ``nout``, ``depends`` …
    as `task` does.
    """
    if f is None:
        return lambda function: CompoundFunction(function, definition=True, **options)
    return CompoundFunction(f, definition=True, **options)


class CompoundFunction(TaskFunction):
    """A function whose calls are compound tasks."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        if isinstance(function, TaskFunction):
            options = {**function._options(), **options}
        super().__init__(function, **options)
        self._collapsed = Around(as_it_is, [self], name=self.name, nout=self.nout)
        self._collapsed.defines = self.defines

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if in_task.on:
            return self.__jug_function__(*args, **kwargs)
        session = context.current or context.current_session()
        version = session.function_version(self._collapsed)
        arguments = self._bound(args, kwargs)
        named = [pair for pair in arguments if pair[0] not in self.ignore]
        key, _, _, call = digest.name_call(version.code, version.name, named)
        with briefly():
            shown = self._shown(arguments)
        pending_task: PendingTask
        kept = session.kept(key)
        if kept is not None:
            pending_task = version, key, kept.form, kept.needs, kept.arguments, kept.args_repr, kept.call
        else:
            made = self.__jug_function__(*args, **kwargs)
            # what runs is `identity`, on what the function made: so it counts for values, whatever it is called
            _, form, needs, _ = digest.name_call(session.function_version(IDENTITY).code, IDENTITY.name, [("x", made)])
            if key in needs:
                raise BadTask(f"{self.name}({shown}) answers itself; a compound task answers another one")
            pending_task = version, key, form, needs, codec.dump_call((made,), {}, needs, session.put), shown, call
        session.add((pending_task,))
        task: Task = handle(session, version, key, pending_task[3], shown)
        return task

    def map(self, *iterables: Iterable[Any], chunksize: int = 1, **constants: Any) -> TaskList:
        """A compound task for each item: ``f.map(xs)``, ``f.map(xs, ys)``; stops with the shortest."""
        if not iterables:
            raise BadTask(f"{self.name}.map() needs something to go over")
        return self.starmap(zip(*iterables, strict=False), chunksize, **constants)

    def starmap(self, iterable: Iterable[Iterable[Any]], chunksize: int = 1, **constants: Any) -> TaskList:
        """A compound task for each tuple of arguments."""
        if chunksize != 1:
            raise BadTask(f"{self.name} makes tasks, so its calls can't be chunked; let the tasks that it makes be")
        return self._listed(self(*args, **constants) for args in iterable)

    def grid(self, **axes: Any) -> TaskList:
        """A compound task for each combination, as `TaskFunction.grid`."""
        choices = [list(axis) if is_axis(axis) else [axis] for axis in axes.values()]
        return self._listed(self(**dict(zip(axes, point, strict=True))) for point in product(*choices))

    @staticmethod
    def _listed(tasks: Iterable[Any]) -> TaskList:
        return list(tasks) if in_task.on else TaskList(tasks)  # type: ignore[return-value]


def CachedFunction(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """The value of ``f(*args, **kwargs)`` itself, not a task: from the store, else computed here and now, and stored.

    For what is needed to go on, such as the list of inputs. Tasks among the arguments, and what they need, are run here
    too. Raises TaskFailed with what ``f`` raised.
    """
    if in_task.on:
        return (f.run if isinstance(f, TaskFunction) else f)(*args, **kwargs)
    task = Task(f, *args, **kwargs)
    if context.current_session().read_only and task.state is not State.FINISHED:  # the store gets nothing
        given, named = value([list(args), kwargs])
        with running():
            return f(*given, **named)
    state = task.state
    if state is not State.FINISHED:
        if state.settled:  # it failed before
            task.retry()
        context.current_session().run_here(task)
    return task.result()
