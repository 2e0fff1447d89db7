"""Building blocks that Jug has, too: unpacking, constants as tasks, arguments hashed another way, compound tasks.

A compound task is a call of a function that makes tasks: once the last of these is done, none of them is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jug_notebook import codec
from jug_notebook.errors import BadTask
from jug_notebook.keys import digest
from jug_notebook.model import State
from jug_notebook.system import whole_number
from jug_notebook.task import context as context
from jug_notebook.task.binding import in_folder
from jug_notebook.task.context import PendingTask, in_task, running
from jug_notebook.task.files import as_it_is
from jug_notebook.task.function import Arguments, Around, TaskFunction
from jug_notebook.task.handles import Handle, Task, Tasklet, briefly, handle
from jug_notebook.task.values import TaskList, tasks_in, value


def iteratetask(base: Handle, n: int) -> list[Tasklet]:
    """Return the ``n`` parts of a task's value: ``a, b = iteratetask(t, 2)``."""
    if not isinstance(base, Handle):
        raise BadTask(f"iteratetask takes a task apart, not {type(base).__name__}")
    n = whole_number("n", n, "values that iteratetask takes", least=0, error=BadTask)
    return [base[i] for i in range(n)]


def return_tuple(n: int) -> Callable[[Callable[..., Any]], TaskFunction]:
    """A decorator for functions, or task functions, that return ``n`` values: ``a, b = f(x)`` are two tasklets.

    As ``@task(nout=n)``; in addition, a task that returns another number of values fails. Raises BadTask.
    """
    n = whole_number("n", n, "values that return_tuple takes", error=BadTask)

    def decorate(function: Callable[..., Any]) -> TaskFunction:
        made = function if isinstance(function, TaskFunction) else TaskFunction(function)
        options = {**made.options(), "nout": n}
        try:
            made.__jug_function__.jug_tuple = n  # type: ignore[attr-defined]  # it is part of the key, and is pickled with it
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


IDENTITY = TaskFunction(as_it_is, name="identity", version="1")


def identity(x: Any) -> Any:
    """A task with the value ``x``: large data is stored and named once, however many tasks use it."""
    return x if in_task.on else IDENTITY(x)


class NoHash:
    """An argument that doesn't matter for the result: the function gets ``x``, but the key does not cover it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        if tasks_in(value):
            raise BadTask(f"{type(self).__name__} can't hold a task: nothing would wait for it; pass the task itself")
        self.value = value

    def __jug_hash__(self) -> str | bytes:
        return b""

    def __reduce__(self) -> tuple[Any, ...]:
        return as_it_is, (self.value,)  # it arrives as the value itself

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class CustomHash(NoHash):
    """An argument hashed by ``name(x)``, a string or bytes, instead of its value; the function gets ``x``."""

    __slots__ = ("name",)

    def __init__(self, value: Any, name: Callable[[Any], str | bytes]) -> None:
        super().__init__(value)
        self.name = name

    def __jug_hash__(self) -> str | bytes:
        named = self.name(self.value)
        if not isinstance(named, str | bytes):
            raise BadTask(f"CustomHash needs a function that returns str or bytes, not {type(named).__name__}")
        return named


class unordered(dict[Any, Any]):
    """A dict whose order doesn't count: ``count(jn.unordered({word: 1 for word in words}))``, where ``words`` is a set.

    The order of any other dict is part of the key, since a function that iterates sees it. The function gets a plain
    dict, in the order of the first such call, so it must not depend on the order. Dicts within are as they are.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # it arrives as a plain dict

    def __repr__(self) -> str:
        return f"unordered({super().__repr__()})"


# -- compound tasks ----------------------------------------------------------------------------------------------------


def CompoundTask(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Return a task whose function makes tasks and returns the last of them: its value is that one's value.

    If it is stored, ``f`` is not called and none of its tasks is made; otherwise ``f`` is called here and now, and what
    it returns (a task, or anything that holds tasks) is what this task needs. Its key covers the code and the arguments
    of ``f``.
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
            options = {**function.options(), **options}
        super().__init__(function, **options)
        self._collapsed = Around(as_it_is, [self], name=self.name, nout=self.nout)
        self._collapsed.defines = self.defines

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if in_task.on:
            return self.__jug_function__(*args, **kwargs)
        session = context.current or context.current_session()
        version = session.submissions.function_version(self._collapsed)
        arguments = self._bound(args, kwargs)
        named = in_folder(self._named(arguments), session.submissions.away())
        key, _, _, call = digest.name_call(version.code, version.name, named)
        with briefly():
            args_repr = self._args_repr(arguments)
        pending_task: PendingTask
        spec = session.results.kept(key)
        if spec is not None:
            pending_task = version, key, spec.form, spec.needs, spec.arguments, spec.args_repr, spec.call
        else:
            made = self.__jug_function__(*args, **kwargs)
            # what runs is `identity`, on what the function made: so it counts for values, whatever it is called
            _, form, needs, _ = digest.name_call(
                session.submissions.function_version(IDENTITY).code, IDENTITY.name, [("x", made)]
            )
            if key in needs:
                raise BadTask(f"{self.name}({args_repr}) returns itself; a compound task returns another task")
            payload = codec.dump_call((made,), {}, needs, session.submissions.put)
            pending_task = version, key, form, needs, payload, args_repr, call
        session.submissions.add((pending_task,))
        task: Task = handle(session, version, key, pending_task[3], args_repr)
        return task

    def _made(
        self,
        calls: Iterable[tuple[Arguments, tuple[Any, ...], dict[str, Any]]],
        constants: Mapping[str, Any],
        steady: bool = True,
    ) -> TaskList:
        return TaskList(self(*args, **kwargs) for _, args, kwargs in calls)

    def _in_chunks(self, *_: Any) -> TaskList:
        raise BadTask(f"{self.name} makes tasks, so its calls can't be chunked; chunk the tasks that it makes")


def CachedFunction(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Return the value of ``f(*args, **kwargs)``, not a task: from the store, or computed here and now, and stored.

    For what the next lines need, such as the list of inputs. Tasks among the arguments, and what they need, run here
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
