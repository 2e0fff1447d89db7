"""`Executor`: a ``concurrent.futures.Executor`` whose calls are stored tasks.

What takes an executor, or the ``map`` of a pool, gets results that are kept: a second run takes them from the store.
`dispatch` sends the calls and resolves the futures; `joblib_backend` is the same for ``joblib.Parallel``.
"""

from __future__ import annotations

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
from jug_notebook.errors import BadNumber, KeyAdvice, Unhashable
from jug_notebook.futures.dispatch import Dispatcher, Future, Prepared, interpreter_ends
from jug_notebook.keys import digest
from jug_notebook.keys.advice import warn_once
from jug_notebook.session import Session, current
from jug_notebook.task import TaskFunction
from jug_notebook.task.context import FunctionVersion, PendingTask, in_task
from jug_notebook.task.handles import handle, unwrapped

T = TypeVar("T")

MOST_FUNCTIONS = 1000  #: functions that an executor remembers
_STEADY = (list, tuple, range)  #: iterating over them runs no code of the user's


class Executor(futures.Executor):
    """Runs calls as stored tasks of the session in use, in workers that it starts where none is running.

    >>> with jn.Executor(4) as ex:
    ...     squares = list(ex.map(square, range(100)))

    A call whose result is stored takes it from there; a call that failed is tried again. The function counts as it is
    when ``submit`` or ``map`` is called, with all that it reads, and so do the arguments. Equal calls of one executor
    are tasks of their own, in order: a function that draws random numbers gives as many samples as it is called, and
    the next run gets the same ones. In a notebook they are counted from the start of each cell.

    ``max_workers``: how many to have on each host (default: those that are running, else one per core).
    ``cache=False``: each call runs, and its result is not found again; so it is, after a warning, for what can't be
    hashed. ``options`` are those of `jug_notebook.execute`: ``hosts``, ``on``, ``slurm``, ``memory_limit`` … Inside a
    task, calls run there and then.
    """

    def __init__(self, max_workers: int | None = None, *, cache: bool = True, **options: Any) -> None:
        if max_workers is not None:
            max_workers = system.whole_number("max_workers", max_workers, "workers", least=-1)
            if max_workers < 1:
                raise BadNumber(f"max_workers must be greater than 0, not {max_workers}")
        if options.keys() & {"initializer", "initargs", "mp_context"}:
            raise TypeError(
                "jn.Executor runs no initializer: workers are shared, and start without one; pass what it would set up "
                "as an argument, or make it in the function"
            )
        self._cache = cache
        self._shut = False
        self._functions: dict[int, TaskFunction] = {}
        self._calls: Counter[bytes] = Counter()  #: how often each was made
        self._counting = threading.Lock()
        self._run = -1  #: the run of a cell in which they were made
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

        Why a call can't be a task (it can't be pickled, say) is the future's exception. Raises RuntimeError after
        `shutdown`.
        """
        self._check_open()
        if in_task.on:
            return _run_here(fn, args, kwargs)
        plain, args, kwargs = _called(fn, args, kwargs)
        return self._submit(lambda: self._prepared(self._function(plain), args, kwargs))

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
        submit = self._mapping(fn, chunksize, all(type(each) in _STEADY for each in iterables))
        calls: Iterator[Any] = zip(*iterables, strict=False)
        if chunksize > 1:
            calls = iter(lambda calls=calls: list(islice(calls, chunksize)), [])  # type: ignore[misc]
        with digest.remembering() as memory:
            memory.complete = buffersize is not None or any(type(each) not in _STEADY for each in iterables)
            waiting = deque(map(submit, islice(calls, buffersize)))
        found = _results(waiting, (submit(call) for call in calls) if buffersize else iter(()), end)
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
            future.set_running_or_notify_cancel()
            future.set_exception(error)
        else:
            future.task = handle(self._session, prepared.call[0], prepared.call[1], prepared.call[3], prepared.call[5])
            self._dispatcher.add(future, prepared)
        return future

    def _mapping(self, fn: Callable[..., Any], chunksize: int, steady: bool) -> Callable[[Any], Future[Any]]:
        """Return what submits one call of a `map`, or a chunk of them."""
        if in_task.on:
            if chunksize > 1:
                return lambda part: _run_here(lambda: [fn(*call) for call in part], (), {})
            return lambda call: _run_here(fn, call, {})
        plain, first, kwargs = _called(fn, (), {})
        session, found = self._session, self._function(plain)
        put: Put = codec.put_once(session.submissions.put) if steady else session.submissions.put
        sent = tuple(codec.share(value, session.submissions.put) for value in first)
        pinned: list[FunctionVersion | None] = [self._version(found)]

        def submit(call: tuple[Any, ...]) -> Future[Any]:
            return self._submit(lambda: self._prepared(found, (*first, *call), kwargs, pinned[0], put, (*sent, *call)))

        def submit_chunk(part: list[tuple[Any, ...]]) -> Future[Any]:
            calls = [(*first, *call) for call in part]
            return self._submit(lambda: self._prepared(found.in_chunks(), (calls, kwargs), {}))

        return submit_chunk if chunksize > 1 else submit

    # -- tasks

    def _function(self, function: Callable[..., Any]) -> TaskFunction:
        if isinstance(function, TaskFunction):
            return function
        found = self._functions.get(id(function))
        if found is None:
            if len(self._functions) >= MOST_FUNCTIONS:
                self._functions.clear()
            found = self._functions[id(function)] = TaskFunction(function)
        return found

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
                return Prepared(self._numbered(call), folder, once=False)
        if version is None:
            blind = TaskFunction(function.__jug_function__, version="once", name=function.name)
            version = session.submissions.version_now(blind)
        return Prepared(function.pending_once(session, version, args, kwargs), folder, once=True)

    def _warn(self, function: TaskFunction, error: Unhashable) -> None:
        if self._cache:
            text = f"{function.name} runs once for each call, and no later run finds its results: {error}"
            warn_once(("executor", function.name), KeyAdvice, text)

    def _numbered(self, call: PendingTask) -> PendingTask:
        """Return the call under a key that tells it from equal ones before it."""
        version, key, form, needs, payload, args_repr, arguments = call
        run, name = self._session.submissions.runs, bytes.fromhex(key)
        with self._counting:
            if run != self._run:
                self._run = run
                self._calls.clear()
            count = self._calls[name]
            self._calls[name] += 1
        return call if not count else (
            version, _again(name, count).hex(), _again(form, count), needs, payload, args_repr, _again(arguments, count)
        )  # fmt: skip


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
            future = waiting.popleft()
            try:
                yield future.result(None if end is None else end - time.monotonic())
            finally:
                future.cancel()
                del future
            waiting.extend(islice(later, 1))
    finally:
        for left in waiting:
            left.cancel()
