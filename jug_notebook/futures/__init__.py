"""`Executor`: a ``concurrent.futures.Executor`` whose calls are stored tasks.

What takes an executor, or the ``map`` of a pool, gets results that are kept: a second run takes them from the store.
`dispatch` sends the calls and resolves the futures; `joblib_backend` is the same for ``joblib.Parallel``.
"""

from __future__ import annotations

import importlib
import threading
import time
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from itertools import islice
from typing import Any, TypeVar

from blake3 import blake3

from jug_notebook import codec, system
from jug_notebook.codec.pickling import Put
from jug_notebook.errors import BadNumber, BadTask, JugError, KeyAdvice, Unhashable
from jug_notebook.futures.dispatch import Dispatcher, Future, Prepared, interpreter_ends
from jug_notebook.keys import digest
from jug_notebook.keys.advice import warn_once
from jug_notebook.model import Limit, parse_limits
from jug_notebook.session import Session, current
from jug_notebook.task import TaskFunction
from jug_notebook.task.context import FunctionVersion, PendingTask, in_task
from jug_notebook.task.function import Arguments, Around, pending_once
from jug_notebook.task.handles import handle, unwrapped
from jug_notebook.task.mapreduce import attempt_options
from jug_notebook.worker.import_hooks import adapt

T = TypeVar("T")

MOST_FUNCTIONS = 100  #: functions that an executor remembers


class Executor(futures.Executor):
    """Runs calls as stored tasks of the session in use, in workers that it starts if none is running.

    >>> with jn.Executor(4) as ex:
    ...     squares = list(ex.map(square, range(100)))

    A call whose result is stored takes it from there; a call that failed is tried again. The function counts as it is
    when ``submit`` or ``map`` is called, with all that it reads, and so do the arguments. Equal calls of one executor
    are separate tasks, in order: a function that draws random numbers gives a new sample for each call, and the next
    run gets the same samples. In a notebook they are counted from the start of each cell.

    ``max_workers``: how many to have on each host (default: those that are running, else one per core).
    ``initializer(*initargs)`` is called before a function's first call in each worker, and is a part of the key.
    ``cache=False``: each call runs, and its result is not found again; the same happens, after a warning, to calls that
    can't be hashed. ``limit="db:4"``, ``limit="api:60/min"``: a limit on all calls, as in `jug_notebook.task`, in
    addition to the limits that a task function has itself. ``options`` are those of `jug_notebook.execute`: ``hosts``,
    ``on``, ``slurm``, ``memory_limit`` … Inside a task, calls run there and then.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        cache: bool = True,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        limit: str | Iterable[str | Limit] = (),
        **options: Any,
    ) -> None:
        if max_workers is not None:
            max_workers = system.whole_number("max_workers", max_workers, "workers", least=-1)
            if max_workers < 1:
                raise BadNumber(f"max_workers must be greater than 0, not {max_workers}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r:.60}")
        self._cache = cache
        self._limit = parse_limits(limit, BadTask)
        self._initializer = initializer, initargs
        self._shut = False
        self._functions: dict[tuple[object, ...], TaskFunction] = {}
        self._numbering = Numbering()
        if in_task.on:  # calls run in the task
            self._max_workers = 1
            return
        self._session: Session = current()
        self._dispatcher = Dispatcher(self._session, max_workers, options)
        self._max_workers = max_workers or self._session.results.workers() or system.cores()
        self._finalizer = weakref.finalize(self, self._dispatcher.close)
        self._finalizer.atexit = False  # `Dispatcher` waits for what is open

    # -- calls

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Return the `Future` of ``fn(*args, **kwargs)``; its ``task`` is the task.

        If a call can't be a task (because it can't be pickled, say), the future's exception says why. Raises
        RuntimeError after `shutdown`.
        """
        self._check_open()
        if in_task.on:
            return _run_here(fn, args, kwargs)
        try:
            found, args, kwargs = self.function(fn, args, kwargs)
        except JugError as error:
            return _failed(error)
        return self.submit_task(found, args, kwargs, self._numbering)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over the results, in order; the calls are submitted now, or ``buffersize`` ahead.

        With ``chunksize=100`` a hundred calls are one task. Raises TimeoutError ``timeout`` seconds from now.
        """
        self._check_open()
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize}")
        if buffersize is not None and system.whole_number("buffersize", buffersize, "calls", least=-1) < 1:
            raise ValueError(f"buffersize must be None or > 0, not {buffersize}")
        end = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        steady = buffersize is None and all(map(_is_steady, iterables))
        submit, parts = self._mapping(fn, calls, chunksize, steady)
        with digest.remembering() as memory:
            memory.complete = not steady
            waiting = deque(map(submit, islice(parts, buffersize)))
        found = _results(waiting, map(submit, parts), end)
        return (value for part in found for value in part) if chunksize > 1 else found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; ``wait`` for those that are open, or cancel those that have not started.

        Workers that this executor started end after that, unless somebody else uses them.
        """
        self._shut = True
        self._functions.clear()
        if hasattr(self, "_dispatcher"):
            self._dispatcher.close(cancel_futures, wait)

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown; make another jn.Executor")
        if interpreter_ends():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _submit(self, prepare: Callable[[], Prepared]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            prepared = prepare()
        except Exception as error:  # hashing and pickling run the user's own code
            return _failed(error)
        future.task = handle(self._session, prepared.call[0], prepared.call[1], prepared.call[3], prepared.call[5])
        self._dispatcher.add(future, prepared)
        return future

    def _mapping(
        self, fn: Callable[..., Any], calls: Iterator[Any], chunksize: int, steady: bool
    ) -> tuple[Callable[[Any], Future[Any]], Iterator[Any]]:
        """Return what submits one call of a `map`, or a chunk of them, and these."""
        if in_task.on:
            if chunksize == 1:
                return lambda call: _run_here(fn, call, {}), calls
            parts = iter(lambda: list(islice(calls, chunksize)), [])
            return lambda part: _run_here(lambda: [fn(*call) for call in part], (), {}), parts
        session = self._session
        found, first, kwargs = self.function(fn, (), {})
        put: Put = codec.put_once(session.submissions.put) if steady else session.submissions.put
        sent = tuple(codec.share(value, session.submissions.put) for value in first) if steady else first
        pinned = self._version(found)

        def submit(call: tuple[Any, ...]) -> Future[Any]:
            return self._submit(
                lambda: self._prepared(found, (*first, *call), kwargs, self._numbering, pinned, put, (*sent, *call))
            )

        def submit_chunk(part: list[tuple[Any, ...]]) -> Future[Any]:
            return self.submit_task(found.in_chunks(), (part, kwargs), {}, self._numbering)

        if chunksize == 1:
            return submit, calls
        whole = ((*first, *call) for call in calls)
        return submit_chunk, iter(lambda: found.take_part(whole, chunksize, kwargs, steady), [])

    # -- tasks

    def function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        of: tuple[object, ...] = (),
        make: Callable[[Callable[..., Any]], TaskFunction] | None = None,
    ) -> tuple[TaskFunction, tuple[Any, ...], dict[str, Any]]:
        """Return a call's function as one whose calls are tasks, and its arguments. Raises BadTask.

        The state of an object that is called is an argument like others. ``make`` makes the function, once for each
        function and ``of``.
        """
        plain, args, kwargs = _called(fn, args, kwargs)
        if isinstance(plain, TaskFunction) and set(self._limit) <= set(plain.limit):
            return plain, args, kwargs
        name = plain if isinstance(plain, TaskFunction) else id(plain), *of
        found = self._functions.get(name)
        if found is None:
            if len(self._functions) >= MOST_FUNCTIONS:
                self._functions.clear()
            if isinstance(plain, TaskFunction):
                found = TaskFunction(plain, **plain.options())
            else:
                found = TaskFunction(plain) if make is None else make(plain)
            found.limit = parse_limits((*found.limit, *self._limit), BadTask)
            initializer, initargs = self._initializer
            if initializer is not None and not isinstance(plain, TaskFunction):
                found = _InitializedFunction(found, initializer, initargs)
            self._functions[name] = found
        return found, args, kwargs

    def submit_task(
        self, function: TaskFunction, args: tuple[Any, ...], kwargs: dict[str, Any], numbering: Numbering
    ) -> Future[Any]:
        """Return the future of a call of a task function; ``numbering`` tells it from equal ones."""
        return self._submit(lambda: self._prepared(function, args, kwargs, numbering))

    def _version(self, function: TaskFunction) -> FunctionVersion | None:
        """Return the function as it is now; None where its code can't be hashed."""
        try:
            return self._session.submissions.version_now(function)
        except Unhashable as error:
            self._warn(function, error)
            return None

    def _prepared(
        self,
        function: TaskFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        numbering: Numbering,
        version: FunctionVersion | None = None,
        put: Put | None = None,
        sent: tuple[Any, ...] | None = None,
    ) -> Prepared:
        """Return a call as a task with a key: of its own where the call can't be hashed, or nothing is cached."""
        session = self._session
        folder, version = session.submissions.folder(), version or self._version(function)
        if version is not None and self._cache:
            try:
                call = function.pending(session, version, args, kwargs, put, sent)
            except Unhashable as error:
                self._warn(function, error)
            else:
                return Prepared(numbering(call, session.submissions.runs), folder, once=False)
        if version is None:
            options = attempt_options(function)
            blind = TaskFunction(function.__jug_function__, version="once", name=function.name, **options)
            version = session.submissions.version_now(blind)
        return Prepared(pending_once(function, session, version, args, kwargs), folder, once=True)

    def _warn(self, function: TaskFunction, error: Unhashable) -> None:
        if self._cache:
            text = f"{function.name} runs once for each call, and no later run finds its results: {error}"
            warn_once(("executor", function.name), KeyAdvice, text)


class Numbering:
    """Tells equal calls from each other: the second one of a run is a task of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[bytes] = Counter()  #: how often each was made
        self._run = -1  #: the run of a cell in which they were made

    def __call__(self, call: PendingTask, run: int) -> PendingTask:
        """Return the call under a key that tells it from equal ones before it in this run."""
        version, key, form, needs, payload, args_repr, arguments = call
        name = bytes.fromhex(key)
        with self._lock:
            if run != self._run:
                self._run = run
                self._calls.clear()
            count = self._calls[name]
            self._calls[name] += 1
        if not count:
            return call
        key = _again(name, count).hex()
        return version, key, _again(form, count), needs, payload, args_repr, _again(arguments, count)


def _again(name: bytes, count: int) -> bytes:
    return blake3(b"again %d " % count + name).digest(digest.SIZE)


def _called(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function that a call comes to; the state of an object that is called is an argument like others."""
    if not isinstance(fn, TaskFunction):
        fn, args, kwargs = unwrapped(fn, args, kwargs)
        method = vars(type(fn)).get("__call__")
        if isinstance(method, types.FunctionType) and not isinstance(fn, TaskFunction):
            return method, (fn, *args), kwargs
    return fn, args, kwargs


def _is_steady(iterable: Any) -> bool:
    """Return whether iterating over it runs no code of the user's."""
    kind = type(iterable)
    return kind in (list, tuple, range) or (kind.__module__, kind.__name__) == ("numpy", "ndarray")


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    future.set_exception(error)
    return future


def _run_here(fn: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    try:
        future.set_result(fn(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
        if not isinstance(error, Exception):
            raise
    return future


def _results(waiting: deque[Future[T]], later: Iterator[Future[T]], end: float | None) -> Iterator[T]:
    """Yield results in order, keeping no reference to them; cancel what is left when it ends early."""
    try:
        while waiting:
            yield _taken(waiting.popleft(), None if end is None else end - time.monotonic())
            waiting.extend(islice(later, 1))
    finally:
        for left in waiting:
            left.cancel()


def _taken(future: Future[T], timeout: float | None) -> T:
    try:
        return future.result(timeout)
    finally:
        future.cancel()
        del future


class _Initialized:
    """A function that calls another before its first call in each process."""

    def __init__(
        self, function: Callable[..., Any], initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> None:
        self.function = function
        self.initializer: Callable[..., Any] | None = initializer
        self.initargs = initargs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.initializer is not None:
            self.initializer(*self.initargs)
            self.initializer = None
        return self.function(*args, **kwargs)


class _InitializedFunction(Around):
    """A function whose key covers an initializer and its arguments, too."""

    def __init__(self, function: TaskFunction, initializer: Callable[..., Any], initargs: tuple[Any, ...]) -> None:
        call = _Initialized(function.__jug_function__, initializer, initargs)
        before = TaskFunction(initializer, depends=initargs)
        super().__init__(call, [function, before], **{**function.options(), "ignore": ()})
        self._function = function
        self.ignore = function.ignore

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        return self._function._bound(args, kwargs)


def _register(joblib: Any) -> None:
    """Let ``joblib.parallel_config("jug_notebook")`` find its backend."""
    joblib.EXTERNAL_BACKENDS["jug_notebook"] = lambda: importlib.import_module("jug_notebook.futures.joblib_backend")


adapt({"joblib.parallel": _register})
