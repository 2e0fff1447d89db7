"""Tasks and tasklets as a notebook has them in its variables: they stand for a value, and never hold one."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jug_notebook import frames, render
from jug_notebook.errors import BadTask, FormerDefinition, JugError, TaskNotValue, clean
from jug_notebook.model import UNLOADED, Key, Reference, State
from jug_notebook.render.format import near
from jug_notebook.task import context as context
from jug_notebook.task.context import FunctionVersion, Problem, SessionProtocol

Call = tuple[tuple[str, ...], tuple[Any, ...]]  #: names and values of a call's parameters

SHORT = 8  #: hex digits of a key that people see


class _Briefly(threading.local):
    on = False


BRIEFLY = _Briefly()  #: ``BRIEFLY.on``: the repr of a task is its call alone


@contextmanager
def briefly() -> Iterator[None]:
    """Within, the repr of a task is its call alone, and no store is read: for the short repr of arguments."""
    before, BRIEFLY.on = BRIEFLY.on, True
    try:
        yield
    finally:
        BRIEFLY.on = before


#: what other libraries, and Jug, call it
_INSTEAD = dict.fromkeys(("get", "compute", "gather"), "use .result()") | {
    "run": "a worker runs it: %jug_execute -n 4, then .result()"
}


class Handle:
    """What tasks and tasklets have in common: they stand for a value, and refuse to be used as one."""

    __slots__ = ("__weakref__",)

    @property
    def task(self) -> Task:
        """The task that has the value, or of whose value this is a part."""
        raise NotImplementedError

    @property
    def key(self) -> Key:
        """Forty hex digits: the same code and arguments have the same key everywhere."""
        return self.task.key

    @property
    def name(self) -> str:
        """The function's name."""
        return self.task.name

    @property
    def state(self) -> State:
        """The task's state now."""
        task = self.task
        return task._session.results.states([task.key])[0]

    def take(self, value: Any) -> Any:
        """Return this part of the task's value."""
        raise NotImplementedError

    def done(self) -> bool:
        """Return whether the task has finished or failed, so that waiting longer changes nothing."""
        return self.state.settled

    def value(self, mmap: bool = False) -> Any:
        """Return the value without waiting. Raises NotReady, naming the state, and TaskFailed.

        ``mmap``: large arrays are read-only views of the store's files, at no cost whatever their size. Their bytes
        were hashed when they were written, or are when first mapped, and not again while the file is unchanged on this
        machine, so damage to the disk isn't noticed. Without it, all bytes are hashed each time.
        """
        task = self.task
        task._warn_if_former()
        return self.take(task._session.results.collect([task.key], wait=False, mmap=mmap)[0])

    def result(
        self, timeout: float | None = None, on_error: str = "raise", *, wait_for_workers: float | None = None
    ) -> Any:
        """Wait for the value while workers live, and return it.

        Raises TaskFailed with the remote traceback, TaskCancelled, WaitTimeout after ``timeout`` seconds,
        WaitInterrupted on Ctrl-C (the task continues), and NoWorkers at once where no workers are running, or, with
        ``wait_for_workers``, where none has come within so many seconds: a queue may start them late.
        With ``on_error="skip"`` a task without a value returns None, with ``"return"`` its error.
        """
        context.check_on_error(on_error)
        task, strict = self.task, on_error == "raise"
        task._warn_if_former()
        [found] = task._session.results.collect(
            [task.key], wait=True, timeout=timeout, strict=strict, wait_for_workers=wait_for_workers
        )
        if isinstance(found, Problem):
            return found.error if on_error == "return" else None
        return self.take(found)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait; return what the task raised (a TaskFailed where that can't be pickled), None if it finished."""
        task = self.task
        problem = task._session.results.collect([task.key], wait=True, timeout=timeout, strict=False)[0]
        if not isinstance(problem, Problem):
            return None
        return problem.error.__cause__ or problem.error

    @property
    def arguments(self) -> dict[str, Any]:
        """The call's parameters by name: numbers, short texts and the like as they are, what is larger as text.

        Of tasks that were found in the store: {"call": all of them as one text}.
        """
        names, values = self._parameters()
        return dict(zip(names, values, strict=True))

    def _parameters(self) -> Call:
        task = self.task
        return getattr(self, "_call", None) or task._call or (("call",), (task._args_repr,))

    def log(self) -> str:
        """Return what the task printed, and the traceback if it failed."""
        return self.task._session.log(self.task)

    def outputs(self) -> tuple[tuple[str, Any], ...]:
        """Return what the task printed, ("stdout", text), and displayed, ("display", forms by MIME type), in order."""
        return self.task._session.results.outputs(self.task.key)

    def retry(self) -> int:
        """Retry it if it failed, or what failed among the tasks it needs. Return how many tasks are retried."""
        return self.task._session.retry(self.task)

    def invalidate(self) -> int:
        """Discard its value as wrong: it and what depends on it will be recomputed. Return how many results were
        invalidated."""
        return self.task._session.invalidate(self.task)

    def cancel(self) -> int:
        """Cancel it: it won't start; if it is running, it runs to its end. Return how many were cancelled."""
        return self.task._session.cancel(self.task)

    def why(self) -> Any:
        """Return whether it is stored, and if not, how it differs from the nearest that is. Shows as text and HTML."""
        return self.task._session.why(self.task)

    def dependencies(self) -> list[Any]:
        """Return the tasks whose values this one needs, as a `TaskList`."""
        return self.task._session.needs(self.task.key)

    def provenance(self) -> dict[str, Any]:
        """Return where the value comes from: code, arguments, needs, who ran it where and when. Data fit for JSON.

        If another run's result is used for this task, ``reused from`` names it; ``accepted by`` names who accepted it.
        """
        return self.task._session.results.provenance(self.task.key)

    def __await__(self) -> Generator[Any, None, Any]:
        task = self.task
        yield from task._session.results.settled(task.key).__await__()
        return self.result()

    def __getitem__(self, index: Any) -> Tasklet:
        return Tasklet._of(self, ("item", index))

    def __iter__(self) -> Iterator[Tasklet]:
        nout = self._nout()
        if nout is None:
            raise self._is_a_task("; to unpack it give its function nout=, or use iteratetask(task, n)")
        return (self[i] for i in range(nout))

    def __len__(self) -> int:
        nout = self._nout()
        if nout is None:
            raise self._is_a_task()
        return nout

    def _nout(self) -> int | None:
        return None

    def _is_a_task(self, more: str = "") -> TaskNotValue:
        return TaskNotValue(f"{self._short()} is a task; use .result(){more}")

    def _short(self) -> str:
        raise NotImplementedError

    def _listed(self) -> str:
        """The call, as a list of tasks shows it."""
        return self._short()

    def __getattr__(self, name: str) -> NoReturn:
        if name == "_condition":  # concurrent.futures.wait and as_completed read it first
            raise AttributeError(
                f"{self._short()} is a task, not a concurrent.futures.Future; use jn.wait(tasks), "
                "jn.as_completed(tasks), or make futures: jn.Executor().submit(f, x)"
            )
        if name.startswith("_"):
            raise AttributeError(name)
        instead = _INSTEAD.get(name) or f"use .result().{name}{near(name, dir(type(self)))}"
        raise AttributeError(f"{self._short()} is a task and has no {name!r}; {instead}")

    def __format__(self, spec: str) -> str:
        if spec:
            raise self._is_a_task()
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            raise self._is_a_task()
        return self.__jug_reference__() == other.__jug_reference__()

    def __hash__(self) -> int:
        return hash(self.key)

    def __copy__(self) -> Handle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        return self

    def __reduce__(self) -> NoReturn:
        raise BadTask(f"{self._short()} is a task of this session and can't be pickled; pickle its .result()")

    def __jug_reference__(self) -> Reference:
        raise NotImplementedError


def _refuse(self: Handle, *_: Any, **__: Any) -> NoReturn:
    raise self._is_a_task()


_UNARY = (
    "bool", "int", "float", "complex", "index", "array", "contains", "call", "lt", "le", "gt", "ge", "neg", "pos",
    "abs", "invert", "round", "trunc", "floor", "ceil", "enter", "exit", "setitem", "delitem", "reversed",
)  # fmt: skip
_BINARY = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor",
    "or",
)  # fmt: skip
for _name in (*_UNARY, *_BINARY, *(f"r{_name}" for _name in _BINARY)):
    setattr(Handle, f"__{_name}__", _refuse)


def not_of_a_function(function: Any, attribute: str) -> AttributeError:
    """Return the error for an attribute that a task function hasn't; its tasks may have it."""
    name = function.__dict__.get("name", "")
    if name and not attribute.startswith("_") and hasattr(Handle, attribute):
        text = f"{name} is a task function and has no {attribute!r}; call it first: {name}(…).{attribute}"
        return AttributeError(text)
    return AttributeError(f"{type(function).__name__!r} object has no attribute {attribute!r}")


class Task(Handle):
    """One call, which a worker runs: ``Task(f, *args, **kwargs)`` for any callable, or a call of a task function.

    Lambdas, partials, bound methods, classes and builtins are allowed. Raises Unhashable where an argument can't be
    hashed reliably, Unstorable where it can't be pickled.
    """

    __slots__ = ("_args_repr", "_call", "_key", "_needs", "_session", "_version")

    _session: SessionProtocol
    _version: FunctionVersion
    _key: Key
    _needs: tuple[Key, ...]
    _args_repr: str
    _call: Call | None

    def __new__(cls, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        task: Task = context.make_task(*unwrapped(function, args, kwargs))
        return task

    @property
    def task(self) -> Task:
        return self

    @property
    def key(self) -> Key:
        return self._key

    @property
    def name(self) -> str:
        return self._version.name

    def take(self, value: Any) -> Any:
        return value

    def stream(self) -> Iterator[Any]:
        """Yield what a generator function yields, from its first value on, while the task runs and when it has ended.

        Each value comes once, within a fraction of a second, as it was when it was sent. After a kill, the next attempt
        starts from the beginning, and the stream continues from the same place in it. At its end, it raises what
        `result` raises. Raises BadTask if the value is not a list.
        """
        return self._session.results.stream(self.key)

    def _nout(self) -> int | None:
        return self._version.nout

    def _short(self) -> str:
        return clean(f"{self._version.name}({self._args_repr})")

    def _listed(self) -> str:
        return render.call(self.name, self._args_repr)

    def _is_a_task(self, more: str = "") -> TaskNotValue:
        function = self._version.function
        name = function.__name__ if function is not None and function.defines else ""
        return super()._is_a_task((f", or call {name}.run(…) for the plain function" if name else "") + more)

    def _warn_if_former(self) -> None:
        if self._session.submissions.former(self._version):
            frames.warn(
                f"{self._short()} was made by a previous definition of {self.name}; call it again for the new one",
                FormerDefinition,
            )
        elif what := self._session.submissions.outdated(self._version, self._needs):
            frames.warn(
                f"{self._short()} was made before {what} changed; make it again for the new value",
                FormerDefinition,
            )

    def __repr__(self) -> str:
        if BRIEFLY.on:
            return self._short()
        parts = [f"Task {self._short()}"]
        try:
            view = self._session.results.views([self._key])[0]
            state = view.state.value if view.source else render.state_label(view)
            parts += [state if view.name else "not in the store", self._key[:SHORT]]
            if view.source:
                parts.append(f"reused from {view.source[:SHORT]}")
            parts += [text for text in (view.summary, view.error) if text]
            if view.state is not State.FINISHED and self._needs:
                parts.append(f"needs {render.states_text(self._session.results.states(self._needs))}")
            if self._session.submissions.former(self._version):
                parts.append("of a previous definition")
        except (JugError, OSError) as error:  # the repr of a task never raises
            parts += [self._key[:SHORT], f"{type(error).__name__}: {error}"]
        return clean(f"<{' · '.join(parts)}>")

    def _repr_html_(self) -> str:
        notes = ["of a previous definition"] if self._session.submissions.former(self._version) else []
        try:
            by_state = zip(self._session.results.states(self._needs), self._needs, strict=True)
            keys = [key for _, key in sorted(by_state, key=lambda pair: render.need_order(pair[0]))]
            view, *needs = self._session.results.views([self._key, *keys[: render.NEEDS]])
        except (JugError, OSError):  # the repr of a task never raises
            return render.preformatted(repr(self))
        if not view.name:  # the store doesn't know it
            return render.preformatted(repr(self))
        notes += [f"reused from {view.source[:SHORT]}"] if view.source else []
        return render.task_html(view, needs, len(self._needs), notes)

    def __jug_reference__(self) -> Reference:
        current = context.current
        if self._session is not current and current is not None and self._session.identity != current.identity:
            raise BadTask(
                f"{self._short()} belongs to {self._session.display_url}, but {current.display_url} is in use; "
                "pass its .result(), or make it again here"
            )
        return Reference(self._key)


_allocate = object.__new__


def handle(
    session: SessionProtocol,
    version: FunctionVersion,
    key: Key,
    needs: tuple[Key, ...],
    args_repr: str,
    call: Call | None = None,
) -> Task:
    """Return the `Task` for a call that the session has, or is about to get."""
    task = _allocate(Task)
    task._session = session
    task._version = version
    task._key = key
    task._needs = needs
    task._args_repr = args_repr
    task._call = call
    return task


class Tasklet(Handle):
    """Part of a task's value, ``t[0]`` or ``t[2:5]``, or a function of it, ``Tasklet(t, f)``. Never stored."""

    __slots__ = ("_call", "base", "steps")

    base: Task
    _call: Call | None  #: of a call in a chunk
    steps: tuple[tuple[str, Any], ...]

    def __init__(self, base: Handle, function: Callable[[Any], Any]) -> None:
        if not isinstance(base, Handle) or isinstance(base, NoLoad):
            raise BadTask(f"a tasklet is made from a task, not from {type(base).__name__}")
        self.base, self._call = base.task, None
        self.steps = (*(base.steps if isinstance(base, Tasklet) else ()), ("call", function))

    @classmethod
    def _of(cls, handle: Handle, step: tuple[str, Any]) -> Tasklet:
        tasklet = _allocate(Tasklet)
        tasklet.base, tasklet._call = handle.task, None
        tasklet.steps = (*handle.steps, step) if isinstance(handle, Tasklet) else (step,)
        return tasklet

    @property
    def task(self) -> Task:
        return self.base

    def take(self, value: Any) -> Any:
        for kind, step in self.steps:
            value = value[step] if kind == "item" else step(value)
        return value

    def _short(self) -> str:
        text = self.base._short()
        for kind, step in self.steps:
            if kind == "item":
                text += f"[{_slice(step) if isinstance(step, slice) else repr(step)}]"
            else:
                text = f"{getattr(step, '__name__', step)}({text})"
        return text

    def __repr__(self) -> str:
        if BRIEFLY.on:
            return self._short()
        try:
            return f"<Tasklet {self._short()} · {self.state.value} · of {self.base.key[:SHORT]}>"
        except (JugError, OSError) as error:
            return f"<Tasklet {self._short()} · {type(error).__name__}: {error}>"

    def _repr_html_(self) -> str:
        return render.preformatted(repr(self))

    def __jug_reference__(self) -> Reference:
        return Reference(self.base.__jug_reference__().key, self.steps)


class NoLoad(Handle):
    """A task as an argument that is not loaded: the function gets the task itself, once it is done.

    ``jn.value(t)`` inside the function loads its value; ``t.key``, ``t.name`` and ``t.provenance()`` don't. Inside a
    task, where calls are plain, ``NoLoad(x)`` is ``x``.
    """

    __slots__ = ("base",)

    base: Handle

    def __new__(cls, base: Any) -> Any:
        if isinstance(base, NoLoad) or (context.in_task.on and not isinstance(base, Handle)):
            return base
        if not isinstance(base, Handle):
            raise BadTask(f"NoLoad takes a task that is not to be loaded, not {type(base).__name__}")
        return unloaded(base)

    @property
    def task(self) -> Task:
        return self.base.task

    @property
    def t(self) -> Handle:
        """What Jug called `base` before."""
        return self.base

    def take(self, value: Any) -> Any:
        return self.base.take(value)

    def __getitem__(self, index: Any) -> NoReturn:
        raise BadTask(f"{self._short()} is not loaded, so it has no parts; take NoLoad(task[{index!r}]), or its value")

    def _short(self) -> str:
        return f"NoLoad({self.base._short()})"

    def __repr__(self) -> str:
        return self._short() if BRIEFLY.on else f"<NoLoad {self.base!r}>"

    def __jug_reference__(self) -> Reference:
        reference = self.base.__jug_reference__()
        return Reference(reference.key, (*reference.steps, UNLOADED))


def unloaded(base: Handle, steps: tuple[tuple[str, Any], ...] = ()) -> NoLoad:
    """Return a task that is not loaded, or the part of it that the steps take."""
    for step in steps:
        base = Tasklet._of(base, step)
    made = _allocate(NoLoad)
    made.base = base
    return made


def _slice(step: slice) -> str:
    parts = ["" if part is None else repr(part) for part in (step.start, step.stop, step.step)]
    return ":".join(parts if parts[2] else parts[:2])


def unwrapped(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function of a partial or a bound method, with what it carries as arguments like others."""
    while True:
        if type(function) is functools.partial:
            args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
            function = function.func
        elif isinstance(function, types.MethodType) and not isinstance(function.__self__, type):
            args = (function.__self__, *args)
            function = function.__func__
        elif type(function) is types.BuiltinMethodType and not isinstance(
            function.__self__, type | types.ModuleType | None
        ):  # "abc".upper
            args = (function.__self__, *args)
            function = getattr(type(function.__self__), function.__name__)
        else:
            return function, args, kwargs
