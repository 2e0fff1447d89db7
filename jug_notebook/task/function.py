"""``@task``: a function's calls become tasks. Calls are bound to the signature, given a key, and encoded."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, overload
from uuid import uuid4

from jug_notebook import codec, system
from jug_notebook.codec.pickling import Put
from jug_notebook.errors import BadTask
from jug_notebook.keys import digest
from jug_notebook.keys.callables import signature
from jug_notebook.keys.code import Code, examine
from jug_notebook.keys.packages import pinned
from jug_notebook.model import Limit, Resources, parse_limits
from jug_notebook.render.format import describe_arguments, parse_resources
from jug_notebook.system import positive_number, whole_number
from jug_notebook.task import context as context
from jug_notebook.task.binding import (
    FOR_JOBLIB,
    Chunk,
    bound_by,
    default_value,
    in_folder,
    is_wrapper,
    listed_option,
    misfit,
    name_of,
    shared_constants,
)
from jug_notebook.task.context import FunctionVersion, PendingTask, SessionProtocol, in_task
from jug_notebook.task.files import PathAdvice
from jug_notebook.task.handles import Tasklet, briefly, handle, not_of_a_function
from jug_notebook.task.sweeps import call_of, grid_points, zipped
from jug_notebook.task.values import LazyResults, TaskList, as_arguments, check_list, tasks_in

Arguments: TypeAlias = list[tuple[str, Any]]

definitions: weakref.WeakValueDictionary[str, TaskFunction] = weakref.WeakValueDictionary()
"""The latest definition of each function, by name: tasks of an earlier one warn that they are."""

_OPTIONS = (
    "version", "name", "nout", "retries", "timeout", "ignore", "ignore_globals", "depends", "priority", "runner",
    "env", "secret_env", "resources", "limit", "pin",
)  # fmt: skip

_LONG = 10**15
_BY_NAME = "(by name)"  #: a wrapper may treat what it is passed by name differently

MOST_PRIORITY = 1 << 31
BATCH = 1000  #: tasks of one `.map` that are submitted together
_NO_SIGNATURE = inspect.Signature()
_PLAIN = inspect.Parameter.POSITIONAL_OR_KEYWORD
_STEADY = (list, tuple, range)  #: iterating over them runs no code of the user's


class TaskFunction:
    """A function whose calls are tasks: ``f(x)`` makes a `Task`; ``f.run(x)``, and inside a task ``f(x)``, call now."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        version: str | None = None,
        name: str | None = None,
        nout: int | None = None,
        retries: int = 0,
        timeout: float | None = None,
        ignore: Iterable[str] = (),
        ignore_globals: Iterable[str] = (),
        depends: Iterable[Any] = (),
        priority: int = 0,
        env: Iterable[str] = (),
        secret_env: Iterable[str] = (),
        resources: Mapping[str, float | str] | Resources = (),
        limit: str | Iterable[str | Limit] = (),
        pin: Iterable[str] = (),
        runner: str = "",
        definition: bool = False,
    ) -> None:
        self.__jug_function__: Callable[..., Any]
        if isinstance(function, TaskFunction):
            function = function.__jug_function__
        if not callable(function):
            raise BadTask(f"a task is made from a function, not from {type(function).__name__} {function!r:.60}")
        functools.update_wrapper(self, function, updated=())
        self.__jug_function__ = function
        if name is not None and not isinstance(name, str):
            raise BadTask(f"name={name!r:.60}: a task function's name is a string")
        self.name = name or name_of(function)
        self.version = version
        self.nout = nout
        self.retries = retries
        self.timeout = timeout
        self.ignore = frozenset(listed_option("ignore", ignore))
        self.ignore_globals = listed_option("ignore_globals", ignore_globals)
        self.depends = listed_option("depends", depends)
        self.priority = priority
        self.env = listed_option("env", env)
        self.secret_env = listed_option("secret_env", secret_env)
        self.resources = parse_resources(resources, BadTask)
        self.limit = parse_limits(limit, BadTask)
        self.pin = listed_option("pin", pin)
        self.runner = runner
        self._bind(function)
        _check_options(self)
        self._path_advice = PathAdvice(self.name)
        self._chunked: _ChunkFunction | None = None
        #: does it have a name, so that another function of that name is its next definition?
        self.defines = definition and (name is not None or "<" not in getattr(function, "__qualname__", "<"))
        if self.defines:
            definitions[self.name] = self

    # -- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if in_task.on:
            return self.__jug_function__(*args, **kwargs)
        if sys._getframe(1).f_globals.get("__name__") == "joblib.parallel":
            raise BadTask(FOR_JOBLIB.format(getattr(self, "__name__", self.name)))
        session = context.current or context.current_session()
        version, away = session.submissions.function_version(self), session.submissions.away()
        task = self._pending(session, version, bound := self._bound(args, kwargs), args, kwargs, away)
        session.submissions.add((task,))
        return handle(session, version, task[1], task[3], task[5], call_of(bound))

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function, now and here."""
        return self.__jug_function__(*args, **kwargs)

    def map(self, *iterables: Iterable[Any], chunksize: int = 1, ahead: int = 0, **constants: Any) -> Any:
        """Return a task for each item, up to the end of the shortest: ``f.map(xs)``, ``f.map(xs, ys, mode="fast")``.

        With ``chunksize=100`` a hundred calls are one task, with another key; the list has a tasklet for each call.
        With ``ahead=1000`` the items may be without end: return a `LazyResults`, which reads a thousand items ahead.
        """
        if not iterables:
            raise BadTask(f"{self.name}.map() needs something to iterate over")
        for each in iterables:
            check_list(each, f"{self.name}.map")
        steady = all(type(each) in _STEADY for each in iterables)
        calls = zip(*iterables, strict=False)
        if ahead and not in_task.on:
            ahead = whole_number("ahead", ahead, "items read before their results are taken", error=BadTask)
            return LazyResults(lambda count: self._many(islice(calls, count), chunksize, constants, steady), ahead)
        return self._many(calls, chunksize, constants, steady)

    def starmap(self, iterable: Iterable[Iterable[Any]], chunksize: int = 1, **constants: Any) -> TaskList:
        """Return a task for each tuple of arguments. ``chunksize`` as in `map`."""
        steady = isinstance(iterable, list | tuple) and all(type(each) in _STEADY for each in (iterable, *iterable))
        check_list(iterable, f"{self.name}.starmap")
        return self._many(map(as_arguments, iterable), chunksize, constants, steady)

    def grid(self, *unnamed: Any, **axes: Any) -> TaskList:
        """Return a task for each combination: ``f.grid(a=[1, 2], b=range(3), mode="fast")``, the last axis fastest.

        ``where=lambda a, b: a < b`` makes only those calls for which it holds; it gets the parameters that it names.
        Lists, tuples, ranges and other iterables are axes; strings, dicts, sets, tasks and the rest are constants.
        A list that is one value goes inside another: ``cfg=[[1, 2]]``. So does a table; a table or an array of several
        dimensions as an axis raises BadTask, as do more than a million calls.
        """
        where = axes.pop("where", None) if "where" not in (self._signature or _NO_SIGNATURE).parameters else None
        return self._at(*grid_points(self.name, unnamed, axes, where))

    def zip(self, *unnamed: Any, **columns: Any) -> TaskList:
        """Return a task for each place in lists of equal length: ``f.zip(a=[1, 2], b=[3, 4], mode="fast")``.

        What is a list and what a constant, as in `grid`. Raises BadTask where lengths differ.
        """
        return self._at(*zipped(self.name, unnamed, columns))

    def _at(self, names: Sequence[str], points: Iterable[tuple[Any, ...]], constants: dict[str, Any]) -> TaskList:
        if in_task.on:
            return [self.run(**dict(zip(names, p, strict=True)), **constants) for p in points]  # type: ignore[return-value]
        calls = ({**dict(zip(names, point, strict=True)), **constants} for point in points)
        return self._made(((self._bound((), call), (), call) for call in calls), constants)

    def history_frame(self, values: bool = False) -> Any:
        """Return a pandas.DataFrame of all stored calls, by whatever code: see `StoredCalls.history_frame`."""
        return (context.current or context.current_session()).history_frame(self, values)

    def pending(
        self,
        session: SessionProtocol,
        version: FunctionVersion,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        put: Put | None = None,
        sent: tuple[Any, ...] | None = None,
    ) -> PendingTask:
        """Return a call of one version with its key and its arguments encoded, not submitted yet.

        ``sent``: what is stored for ``args``, where stand-ins were made for some of them.
        """
        arguments = self._bound(args, kwargs)
        return self._pending(
            session, version, arguments, args if sent is None else sent, kwargs, session.submissions.away(), put
        )

    def in_chunks(self) -> TaskFunction:
        """Return the function of many calls in one task: ``f.in_chunks()([(1,), (2,)], {})`` is a list of values."""
        if self._chunked is None:
            self._chunked = _ChunkFunction(self)
        return self._chunked

    # -- what a session asks

    def examine(self, project: Path) -> Code:
        """Return the code part of the keys as of now. Raises Unhashable, naming what can't be hashed reliably."""
        now = [id(one) for one in bound_by(self.__jug_function__)]
        if now != [id(one) for one in self._depends_on]:
            self._bind(self.__jug_function__)  # reloaded in place, or given other defaults
        code = examine(
            self.__jug_function__,
            version=self.version,
            ignore_globals=self.ignore_globals,
            depends=self.depends,
            project=project,
            environment=self.env,
            secrets=self.secret_env,
        )
        return pinned(code, self.pin)

    @property
    def hidden(self) -> bool:
        """Is more code sent with it than its code digest covers?"""
        return self.version is not None or bool(self.ignore_globals)

    # -- binding

    def _bind(self, function: Callable[..., Any]) -> None:
        """Look at the signature. ``_names`` is empty where arguments need the slow way."""
        self._depends_on = bound_by(function)
        self._wrapper = is_wrapper(function)
        self._names: tuple[str, ...] = ()
        self._defaults: Mapping[str, Any] = {}
        self._tasks_by_default: dict[str, Any] = {}
        self._signature: inspect.Signature | None = None
        try:
            self._signature = signature(function)
        except (ValueError, TypeError):  # many builtins have none
            return
        parameters = self._signature.parameters.values()
        self._tasks_by_default = {p.name: p.default for p in parameters if tasks_in(p.default)}
        if not self._wrapper and all(parameter.kind is _PLAIN for parameter in parameters):
            self._names = tuple(parameter.name for parameter in parameters)
            self._defaults = {p.name: default_value(p.default) for p in parameters if p.default is not p.empty}

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Return every parameter with its value, in the signature's order: the same however the call is written."""
        names = self._names
        if names:
            given = len(args)
            if given == len(names) and not kwargs:
                return list(zip(names, args, strict=True))
            if given <= len(names):
                bound = list(zip(names, args, strict=False))
                used = 0
                for name in names[given:]:
                    if name in kwargs:
                        used += 1
                        bound.append((name, kwargs[name]))
                    elif name in self._defaults:
                        bound.append((name, self._defaults[name]))
                    else:
                        break
                if len(bound) == len(names) and used == len(kwargs):
                    return bound
        if self._signature is None:
            return [("args", args), ("kwargs", dict(kwargs))]
        if self._wrapper:
            return self._given(args, kwargs)
        return list(self._slow(args, kwargs).arguments.items())

    def _counting(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the bound arguments that are part of the key."""
        return self._named(self._bound(args, kwargs))

    def _named(self, arguments: Arguments) -> Arguments:
        """Return the arguments that are part of the key."""
        return [pair for pair in arguments if pair[0] not in self.ignore] if self.ignore else arguments

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Return what a wrapper is passed: only it knows which defaults count, and what it does with the rest."""
        assert self._signature is not None
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError:  # it may take more than what it wraps, or less
            return [("args", args), ("kwargs", dict(kwargs))]
        given = [*bound.items(), *((n, task) for n, task in self._tasks_by_default.items() if n not in bound)]
        return [*given, (_BY_NAME, tuple(sorted(kwargs)))] if kwargs else given

    def _slow(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        assert self._signature is not None
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise misfit(self.name, self._signature, error) from None
        given = set(bound.arguments)
        bound.apply_defaults()
        bound.arguments = {n: x if n in given else default_value(x) for n, x in bound.arguments.items()}
        return bound

    def _pending(
        self,
        session: SessionProtocol,
        version: FunctionVersion,
        arguments: Arguments,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        away: str,
        put: Put | None = None,
    ) -> PendingTask:
        """Return a call with its key and its arguments encoded, both at once: later changes affect neither."""
        named = self._named(arguments) if self.ignore else arguments
        key, form, needs, call = digest.name_call(version.code, version.name, in_folder(named, away) if away else named)
        self._look_for_paths(named)
        if self._tasks_by_default:  # the value of a task that is a default is sent with the call
            given = self._signature.bind(*args, **kwargs).arguments if self._signature else {}
            kwargs = {**kwargs, **{n: task for n, task in self._tasks_by_default.items() if n not in given}}
        payload = codec.dump_call(args, kwargs, needs, put or session.submissions.put)
        if not needs:
            return version, key, form, needs, payload, self._args_repr(arguments), call
        with briefly():
            return version, key, form, needs, payload, self._args_repr(arguments), call

    def _look_for_paths(self, arguments: Arguments) -> None:
        self._path_advice.look(arguments)

    def _args_repr(self, arguments: Arguments) -> str:
        if self._wrapper:
            arguments = [pair for pair in arguments if pair[0] != _BY_NAME]
        if len(arguments) > 3:
            return describe_arguments(arguments)
        for _, value in arguments:
            kind = type(value)
            if not ((kind is int and -_LONG < value < _LONG) or kind is float or (kind is str and len(value) < 20)):
                return describe_arguments(arguments)
        return ", ".join([f"{label}={value!r}" for label, value in arguments])  # the same, for most calls

    def _many(
        self, calls: Iterable[tuple[Any, ...]], chunksize: int, constants: dict[str, Any], steady: bool
    ) -> TaskList:
        chunksize = whole_number("chunksize", chunksize, "calls", error=BadTask)
        if in_task.on:
            return [self.run(*args, **constants) for args in calls]  # type: ignore[return-value]
        if chunksize > 1:
            return self._in_chunks(calls, chunksize, constants, steady)
        plain = self._quick(constants)
        if plain is None:
            return self._made(((self._bound(args, constants), args, constants) for args in calls), constants, steady)
        names, tail = plain
        given = len(names)

        def bound(args: tuple[Any, ...]) -> Arguments:
            return [*zip(names, args, strict=True), *tail] if len(args) == given else self._bound(args, constants)

        return self._made(((bound(args), args, constants) for args in calls), constants, steady)

    def _quick(self, constants: Mapping[str, Any]) -> tuple[tuple[str, ...], Arguments] | None:
        """Return the names of a ``.map``'s positional arguments, and what follows them; None where calls may differ."""
        names = self._names
        given = next((i for i, name in enumerate(names) if name in constants or name in self._defaults), len(names))
        rest = {**self._defaults, **constants}
        if not names or not set(constants) <= set(names[given:]) or any(name not in rest for name in names[given:]):
            return None
        return names[:given], [(name, rest[name]) for name in names[given:]]

    def _made(
        self,
        calls: Iterable[tuple[Arguments, tuple[Any, ...], dict[str, Any]]],
        constants: Mapping[str, Any],
        steady: bool = True,
    ) -> TaskList:
        """Return a task for each call, submitted in batches. Large ``constants`` are hashed and stored once.

        So is what else the calls share if they are ``steady``: if no code of the user's runs between them.
        """
        session = context.current or context.current_session()
        version = session.submissions.function_version(self)
        tasks = TaskList()
        waiting = iter(calls)
        put = codec.put_once(session.submissions.put) if steady else session.submissions.put
        with digest.remembering() as memory:
            shared = shared_constants(self.ignore, constants, session)
            memory.complete = not steady
            while True:
                pending_tasks: list[PendingTask] = []
                away = session.submissions.away()
                with system.uncollected():
                    for arguments, args, kwargs in islice(waiting, BATCH):
                        sent = {**kwargs, **shared} if shared else kwargs
                        task = self._pending(session, version, arguments, args, sent, away, put)
                        pending_tasks.append(task)
                        tasks.append(handle(session, version, task[1], task[3], task[5], call_of(arguments)))
                    if not pending_tasks:
                        return tasks
                    session.submissions.add(pending_tasks)

    def _in_chunks(
        self, calls: Iterable[tuple[Any, ...]], chunksize: int, constants: dict[str, Any], steady: bool
    ) -> TaskList:
        chunked = self.in_chunks()
        handles: list[Tasklet] = []
        coming = iter(calls)
        with digest.remembering() as memory:
            memory.complete = not steady
            while part := self.take_part(coming, chunksize, constants, steady):
                chunk = chunked(part, constants)
                for number, call in enumerate(part):
                    handles.append(chunk[number])
                    handles[-1]._call = call_of(self._bound(call, constants))
        return TaskList(handles)

    def take_part(
        self, coming: Iterator[tuple[Any, ...]], size: int, constants: dict[str, Any], steady: bool
    ) -> list[tuple[Any, ...]]:
        """Return the calls of the next chunk. Raises BadTask where one was changed before the chunk was complete."""
        part: list[tuple[Any, ...]] = []
        digests: list[bytes] = []
        for args in islice(coming, size):
            part.append(args)
            if not steady:
                digests.append(digest.digest(self._counting(args, constants)))
        for args, before in zip(part, digests, strict=False):
            if digest.digest(self._counting(args, constants)) != before:
                raise BadTask(
                    f"an argument of {self.name} was changed in place before its chunk was complete, as by a "
                    f"generator that fills the same buffer again and again: let it yield copies, or leave chunksize out"
                )
        return part

    # -- special methods

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __getattr__(self, name: str) -> NoReturn:
        raise not_of_a_function(self, name)

    def __repr__(self) -> str:
        return f"<task function {self.name}{self._signature or '(…)'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(TaskFunction, **self.options()), (self.__jug_function__,)

    def options(self) -> dict[str, Any]:
        """Return the options of `task` that it was made with."""
        return {name: getattr(self, name) for name in _OPTIONS}


def _check_options(made: TaskFunction) -> None:
    """Refuse options that make no sense. Raises BadTask."""
    names = set(made._signature.parameters) if made._signature else set(made.ignore)
    unknown = sorted(made.ignore - names)
    if unknown:
        raise BadTask(f"ignore={unknown[0]!r}: {made.name} has no such argument; it has {', '.join(sorted(names))}")
    if made.version is not None and not isinstance(made.version, str):
        raise BadTask(f"version={made.version!r} of {made.name}: a tag is a string, version={str(made.version)!r}")
    check = functools.partial(whole_number, error=BadTask, instead=f" (task function {made.name})")
    if made.nout is not None:
        made.nout = check("nout", made.nout, "values that it unpacks into")
    made.retries = check("retries", made.retries, "further attempts", least=0)
    made.priority = check("priority", made.priority, "", least=-MOST_PRIORITY, most=MOST_PRIORITY)
    if made.timeout is not None:
        made.timeout = positive_number("timeout", made.timeout, error=BadTask)


def pending_once(
    function: TaskFunction,
    session: SessionProtocol,
    version: FunctionVersion,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> PendingTask:
    """Return a call under a key of its own, which no other call gets, whatever its arguments are."""
    arguments = function._bound(args, kwargs)
    key, form, _, call = digest.name_call(version.code, version.name, [("(once)", uuid4().bytes)])
    needs = tuple(dict.fromkeys(found.key for found in tasks_in((args, kwargs))))
    payload = codec.dump_call(args, kwargs, needs, session.submissions.put)
    with briefly():
        return version, key, form, needs, payload, function._args_repr(arguments), call


class Around(TaskFunction):
    """A task function around others: its key covers the code of ``functions`` instead of its own."""

    def __init__(self, call: Callable[..., Any], functions: Sequence[TaskFunction], **options: Any) -> None:
        super().__init__(call, **options)
        self._functions = functions

    def examine(self, project: Path) -> Code:
        codes = [function.examine(project) for function in self._functions]
        if len(codes) == 1:
            return codes[0]
        parts: dict[str, str] = {}
        texts: dict[str, str] = {}
        for number, code in enumerate(codes, 1):
            for label, part in code.parts.items():
                label = label if parts.get(label, part) == part else f"{label} ({number})"
                parts[label] = part
                if text := code.texts.get(label):
                    texts[label] = text
        whole = digest.digest([code.digest for code in codes]).hex()
        environment = {name: value for code in codes for name, value in code.environment.items()}
        secrets = tuple(sorted({name for code in codes for name in code.secrets}))
        modules = frozenset().union(*(code.modules for code in codes))
        pins = {name: version for code in codes for name, version in code.pins.items()}
        return Code(whole, parts, modules, texts, environment, secrets, pins)

    @property
    def hidden(self) -> bool:
        return any(function.hidden for function in self._functions)


class _ChunkFunction(Around):
    """The chunks of a function: their name and code digest are the function's."""

    def __init__(self, function: TaskFunction) -> None:
        options = {**function.options(), "nout": None, "ignore": ()}
        super().__init__(Chunk(function.__jug_function__), [function], **options)
        self._whole = function
        self.defines = function.defines

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        calls, constants = args
        return [("*calls", [self._whole._counting(call, constants) for call in calls])]

    def _args_repr(self, arguments: Arguments) -> str:
        calls = arguments[0][1]
        return f"{len(calls)} calls, first {describe_arguments(calls[0])}"


@overload
def task(function: Callable[..., Any], /) -> TaskFunction: ...
@overload
def task(
    *,
    version: str | None = None,
    name: str | None = None,
    nout: int | None = None,
    retries: int = 0,
    timeout: float | None = None,
    ignore: Iterable[str] = (),
    ignore_globals: Iterable[str] = (),
    depends: Iterable[Any] = (),
    priority: int = 0,
    env: Iterable[str] = (),
    secret_env: Iterable[str] = (),
    resources: Mapping[str, float | str] = {},
    limit: str | Iterable[str] = (),
    pin: Iterable[str] = (),
) -> Callable[[Callable[..., Any]], TaskFunction]: ...
def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function's calls into tasks: ``@task``, or ``@task(retries=2)``.

    ``version`` replaces the code part of the key by a tag, ``name`` the qualified name; ``nout`` is the number of
    tasklets that a task unpacks into; ``retries`` are further attempts after an exception, ``timeout`` is in seconds;
    ``ignore`` names arguments that don't matter for the result, ``ignore_globals`` globals; ``depends`` lists what the
    code needs without showing it; higher ``priority`` goes first. ``env`` names environment variables that the code
    reads: their values as of the call are part of the key, and set where it runs. Those in ``secret_env`` are neither
    stored nor part of the key: each worker takes them from its own environment, which is the notebook's for workers
    that it starts on its machine; a task whose worker has none fails. What the task itself prints or returns is kept.
    ``resources`` are what a host must have free for a run, {"gpu": 1, "mem": "8G", "license": 2}: see the workers'
    options of the same names. A task gets GPUs of its own, or with 0.5 half of one. They are not part of the key.
    ``limit="db:4"``: at most 4 tasks that name ``db`` run at a time, on all hosts that work on the store together;
    ``limit="api:60/min"``: at most 60 that name ``api`` begin within a minute (or per s, h, day); ``("db:4",
    "api:60/min")`` means both. If one name has two numbers, the smaller one holds. Stored results don't count, and the
    limit is not part of the key. ``pin=("scikit-learn",)`` makes the installed versions of packages, or of "python", a
    part of the key: after an upgrade tasks run again, and a worker that has another version fails them instead of
    running them.

    Raises BadTask for what can't be a task, and for options that make no sense.
    """
    if function is not None:
        return TaskFunction(function, definition=True, **options)
    unknown = set(options) - set(inspect.signature(TaskFunction).parameters)
    if unknown:
        raise BadTask(f"@task has no option {min(unknown)!r}")

    return functools.partial(TaskFunction, definition=True, **options)


TaskGenerator = task  #: Jug's name for `task`


def _task_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    made = function if isinstance(function, TaskFunction) else TaskFunction(function)
    return made(*args, **kwargs)


context.make_tasks_by(_task_of)
