"""Sends the calls of an executor to the store, and resolves its futures: one thread for each executor."""

from __future__ import annotations

import atexit
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from concurrent.futures._base import PENDING
from contextlib import suppress
from itertools import groupby
from typing import Any, ClassVar, NamedTuple, TypeVar

from jug_notebook.clock import CLOCK
from jug_notebook.errors import JugError, NotReady, NoWorkers, TaskCancelled
from jug_notebook.model import Key, State
from jug_notebook.session import Session
from jug_notebook.session.results import PATIENCE, WorkerCheck
from jug_notebook.system import batched
from jug_notebook.task.context import PendingTask, Problem
from jug_notebook.task.handles import Task

T = TypeVar("T")

_NOT_FOR_EXECUTORS = ("workers", "wait", "dry_run", "here", "namespace")
ENDING = 2.0  #: seconds that workers get to end
WINDOW = 1000  #: open tasks that are looked at together


class Future(futures.Future[T]):
    """A ``concurrent.futures.Future`` of a task."""

    task: Task | None = None  #: None where the call could not become one
    dispatcher: Dispatcher | None = None

    def cancel(self) -> bool:
        """Cancel the call: False where it runs already, or has run."""
        was_done = self.done()
        cancelled = super().cancel()
        if cancelled and not was_done and self.dispatcher is not None:
            self.dispatcher.wake()
        return cancelled


class Prepared(NamedTuple):
    """A call with its key, and the folder that it runs in. ``once``: nobody finds its result."""

    call: PendingTask
    folder: str
    once: bool


class Dispatcher:
    """Sends calls in batches, starts workers once there is something to run, and resolves futures as tasks end."""

    def __init__(self, session: Session, workers: int | None, options: Mapping[str, Any]) -> None:
        known = inspect.signature(session.execute).parameters
        if unknown := [name for name in options if name not in known or name in _NOT_FOR_EXECUTORS]:
            raise TypeError(f"jn.Executor has no option {unknown[0]!r}; it takes those of jug_notebook.execute")
        self._session = session
        self._store = session.access.store
        self._workers = workers
        self._options = dict(options)
        self._lock = threading.Lock()
        self._new: list[tuple[Future[Any], Prepared]] = []
        self._open: dict[Key, list[Future[Any]]] = {}
        self._once: set[Key] = set()
        self._stored: set[Key] = set()  #: those whose results were there before
        self._thread: threading.Thread | None = None
        self._crew: _SharedCrew | None = None
        self._settled = False  #: has a task ended since workers were there?
        self._closing = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        weakref.finalize(self, _close_pipe, self._read, self._write).atexit = False

    # -- called by any thread

    def add(self, future: Future[Any], prepared: Prepared) -> None:
        """Take in a call."""
        future.dispatcher = self
        with self._lock:
            if self._closing or interpreter_ends():
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._new.append((future, prepared))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="jug-executor", daemon=True)
                self._thread.start()
                _RUNNING.add(self)
        self.wake()

    def wake(self) -> None:
        """Have the thread look at what is new or cancelled."""
        with suppress(BlockingIOError):
            os.write(self._write, b"x")

    def close(self, cancel: bool = False, wait: bool = False) -> None:
        """End once all futures are resolved; ``cancel`` those that don't run yet; ``wait`` for that."""
        with self._lock:
            self._closing = True
            left = [future for future, _ in self._new]
            left += [future for futures_of in self._open.values() for future in futures_of]
        if cancel:
            for future in left:
                future.cancel()
        self.wake()
        if wait and self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # -- the thread

    def _work(self) -> None:
        background = self._session.submissions.background
        background.add(threading.get_ident())
        check = self._session.results.worker_check()
        seen = -1
        try:
            while True:
                try:
                    seen = self._store.watch(seen, PATIENCE if seen >= 0 else 0.0, self._read)
                    self._drain()
                    self._send()
                    self._withdraw()
                    self._resolve()
                    if self._open and self._crew is not None:
                        self._check(check)
                except Exception as error:  # whatever it is, nobody waits for ever
                    self._fail(error)
                with self._lock:
                    if self._closing and not self._open and not self._new:
                        return
        finally:
            self._end()
            background.discard(threading.get_ident())

    def _check(self, check: WorkerCheck) -> None:
        """Raise NoWorkers; start new ones where they ended before they did anything: they were about to."""
        try:
            check(lambda: len(self._open), lambda: False)
        except NoWorkers:
            if self._settled or self._crew is None:
                raise
            self._settled = True
            self._crew.leave()
            self._crew = _SharedCrew.join(self._session, self._workers, self._options)

    def _end(self) -> None:
        _RUNNING.discard(self)
        if self._crew is not None:
            with suppress(JugError, OSError):
                self._crew.leave()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._read, 1 << 16)

    def _send(self) -> None:
        """Submit what is new; what failed before is tried again."""
        with self._lock:
            new, self._new = self._new, []
            calls = []
            for future, prepared in new:
                if future.cancelled():
                    future.set_running_or_notify_cancel()
                    continue
                key = prepared.call[1]
                self._open.setdefault(key, []).append(future)
                if prepared.once:
                    self._once.add(key)
                calls.append(prepared)
        if not calls:
            return
        keys = [prepared.call[1] for prepared in calls]
        before = self._store.states(keys)
        for folder, some in groupby(calls, lambda prepared: prepared.folder):
            self._session.submissions.send([prepared.call for prepared in some], folder)
        self._stored.update(key for key, state in zip(keys, before, strict=True) if state is State.FINISHED)
        failed = [key for key, state in zip(keys, before, strict=True) if state in (State.FAILED, State.BLOCKED)]
        if failed:
            self._session.retry(self._tasks(failed))
        if self._crew is None and any(state is not State.FINISHED for state in before):
            self._crew = _SharedCrew.join(self._session, self._workers, self._options)

    def _tasks(self, keys: Iterable[Key]) -> list[Task]:
        found = (future.task for key in keys for future in self._open.get(key, ())[:1])
        return [task for task in found if task is not None]

    def _withdraw(self) -> None:
        """Withdraw the requests for tasks all of whose futures are cancelled."""
        gone = []
        with self._lock:
            for key, waiting in list(self._open.items()):
                if not any(future.cancelled() for future in waiting):
                    continue
                for future in waiting:
                    if future.cancelled():
                        future.set_running_or_notify_cancel()
                self._open[key] = left = [future for future in waiting if not future.cancelled()]
                if not left:
                    del self._open[key]
                    gone.append(key)
        if gone:
            self._store.request(gone, self._session.access.origin(), False)

    def _resolve(self) -> None:
        """Set the results of what has ended, and note what runs."""
        for keys in batched(list(self._open), WINDOW):
            ended = []
            for key, state in zip(keys, self._store.states(keys), strict=True):
                if state is State.RUNNING:
                    for future in self._open[key]:
                        if future._state == PENDING:
                            future.set_running_or_notify_cancel()
                elif state is None or state.settled:
                    ended.append(key)
            if ended:
                self._print(ended)
                values = self._session.results.collect(ended, wait=False, strict=False)
                for key, value in zip(ended, values, strict=True):
                    self._settle(key, value)

    def _print(self, keys: Sequence[Key]) -> None:
        """Print what the tasks printed that ran now."""
        ran = [key for key in keys if key not in self._stored]
        for outcome in self._session.access.signed.outcomes(ran):
            for stream, text in outcome.run.output if outcome is not None else ():
                print(text, end="", file=sys.stderr if stream == "stderr" else sys.stdout, flush=True)

    def _settle(self, key: Key, value: Any) -> None:
        if isinstance(value, Problem) and isinstance(value.error, NotReady):
            return
        with self._lock:
            waiting = self._open.pop(key, [])
        self._settled = self._settled or key not in self._stored
        self._stored.discard(key)
        if key in self._once:
            self._once.discard(key)
            self._store.request([key], self._session.access.origin(), False)
        for future in waiting:
            _set(future, value)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            waiting = [future for futures_of in self._open.values() for future in futures_of]
            waiting += [future for future, _ in self._new]
            self._open, self._new = {}, []
        for future in waiting:
            _set(future, Problem(error))  # type: ignore[arg-type]


def _set(future: Future[Any], value: Any) -> None:
    """Resolve a future, unless it was cancelled."""
    future.dispatcher = None
    if future._state == PENDING and not future.set_running_or_notify_cancel():
        return
    if future.done():
        return
    if not isinstance(value, Problem):
        future.set_result(value)
        return
    error = value.error
    if isinstance(error, TaskCancelled):
        future.set_exception(futures.CancelledError(str(error)))
        return
    cause = error.__cause__
    if cause is None:
        future.set_exception(error)
        return
    error.__cause__, cause.__cause__ = (
        None,
        error,
    )  # what is raised is the task's own exception, because it failed there
    future.set_exception(cause)


def _close_pipe(*ends: int) -> None:
    for end in ends:
        os.close(end)


class _SharedCrew:
    """Workers that executors started, and that end with the last of these, unless somebody else asked for them."""

    _shared: ClassVar[weakref.WeakKeyDictionary[Session, dict[str, _SharedCrew]]] = weakref.WeakKeyDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, session: Session, crew: Any, ours: bool) -> None:
        self._session = weakref.ref(session)
        self._crew = crew
        self._ours = ours
        self._users = 0

    @classmethod
    def join(cls, session: Session, workers: int | None, options: Mapping[str, Any]) -> _SharedCrew:
        """Start workers where there are none, or more are wanted."""
        there = bool(session.results.workers() or session.access.starting())
        if there and workers is None and not options:
            return cls(session, None, ours=False)
        crew = session.execute(workers, **options)
        with cls._lock:
            known = cls._shared.setdefault(session, {})
            shared = known.setdefault(crew.name, cls(session, crew, ours=not there))
            shared._users += 1
            if shared._crew is not crew:
                session.workers.crews.remove(crew)
        return shared

    def leave(self) -> None:
        """End the workers if this was the last that used them."""
        session = self._session()
        if self._crew is None or session is None:
            return
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._shared.get(session, {}).pop(self._crew.name, None)
        crews = session.workers.crews
        others = [crew for crew in crews if crew is not self._crew and crew.name == self._crew.name]
        if self._ours and not others:
            self._crew.stop()
            until = CLOCK.monotonic() + ENDING
            while self._crew.supervisors and CLOCK.monotonic() < until:  # who starts some now must not find these
                session.access.store.watch(-1, 0.0)
                CLOCK.sleep(0.01)
        crews[:] = [crew for crew in crews if crew is not self._crew]


_RUNNING: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
_ending = threading.Event()


def interpreter_ends() -> bool:
    """Return whether this process is about to end: no call is taken in any more."""
    return _ending.is_set()


@atexit.register
def _end_all() -> None:
    """Resolve open futures first, as other executors do."""
    _ending.set()
    for dispatcher in list(_RUNNING):
        dispatcher.close(wait=True)
