"""The worker's loop: claim, run, settle, until nothing is left or somebody says stop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, TypeVar

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.codec import Seal
from jug_notebook.model import (
    Claim,
    Settlement,
    Target,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.store import Store
from jug_notebook.task import context
from jug_notebook.worker import displays as displays
from jug_notebook.worker import execution
from jug_notebook.worker.capture import Listener, NoCapture
from jug_notebook.worker.displays import DisplayBuffer
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.slot import SharedStatus

BATCH = 512  #: tasks in one claim; the store gives fewer, about 20 ms of work
PATIENCE = 0.05  #: seconds for which the rest of a batch waits behind a task that takes longer than was expected
WAIT = 1.0  #: seconds of waiting for work in one go


def work(
    store: Store,
    seal: Seal,
    me: WorkerInfo,
    slot: SharedStatus,
    *,
    clock: Clock = CLOCK,
    target: Target | None = None,
    max_tasks: int | None = None,
    deadline: float | None = None,
    until_idle: bool = False,
    stop: Callable[[], bool] | None = None,
    listener: Listener | None = None,
    book: DisplayBuffer | None = None,
    in_process: bool = False,
    wait: float = WAIT,
    folders: Sequence[tuple[str, str]] = (),
    each: Callable[[TaskRunner, Claim], Settlement | None] = TaskRunner.attempt,
) -> int:
    """Run tasks until told to stop; answer how many.

    ``stop`` is asked between tasks and after at most ``wait`` seconds without any. ``deadline`` is on the monotonic
    clock: no task begins after it, nor one that by those before it would not end in time. Tasks whose folder is below
    the first of a pair of ``folders`` run below the second. ``until_idle`` ends when nothing is ready or running that
    this worker could run or wait for. ``listener`` keeps what tasks print; without one it goes where it goes. Displays
    go into ``book``. A ``guest`` works in somebody else's process: it leaves the folder and the warnings as they are,
    and Ctrl-C ends the loop, giving the task back.
    ``each`` makes one attempt: see `TaskRunner.attempt`.
    """
    listener = listener or NoCapture()
    book = book or DisplayBuffer(listener)
    runner = TaskRunner(store, seal, me, slot, clock, listener, in_process, book, folders)
    stop = stop or _never
    prefetch = Prefetch(store, me.id, runner.patiently)
    count = 0
    monotonic = clock.monotonic
    attached = ExitStack()
    attached.enter_context(displays.opened(book))
    attached.enter_context(context.progress_to(slot.tell))

    def over() -> bool:
        return (
            stop()
            or (max_tasks is not None and count >= max_tasks)
            or (deadline is not None and monotonic() >= deadline)
        )

    try:
        while not over():
            limit = 1 if runner.met_a_long_one else BATCH
            if max_tasks is not None:
                limit = min(limit, max_tasks - count)
            claims: list[Claim] = []
            if done := prefetch.take_done():
                claims = runner.patiently(partial(store.claim, me.id, limit, 0.0, done, target, me.python))
            if not claims:
                patience = _patience(wait, deadline, until_idle, clock)
                slot.waits(True)
                claims = runner.patiently(partial(store.claim, me.id, limit, patience, (), target, me.python))
                slot.waits(False)
            if not claims and until_idle and store.idle(target, me.python):
                break
            settled_at = monotonic()
            prefetch.fill(claims)
            while not over() and (claim := prefetch.next()) is not None:
                if deadline is not None and monotonic() + runner.pace(claim.name) > deadline:
                    store.release([claim.lease])
                    return count
                if prefetch.done and (not runner.is_short(claim.name) or monotonic() - settled_at > execution.HURRY):
                    prefetch.settle()
                    settled_at = monotonic()
                settlement = each(runner, claim)
                if settlement is not None:
                    prefetch.done.append(settlement)
                    count += 1
    finally:
        attached.close()
        slot.waits(False)
        prefetch.clear()
    return count


class FailureWatcher:
    """Makes attempts as ``each`` does, and knows whether one has failed for good."""

    def __init__(self, each: Callable[[TaskRunner, Claim], Settlement | None] = TaskRunner.attempt) -> None:
        self.failed = False
        self._each = each

    def __call__(self, runner: TaskRunner, claim: Claim) -> Settlement | None:
        settlement = self._each(runner, claim)
        if settlement is not None and settlement.verdict.final and not settlement.verdict.finished:
            self.failed = True
        return settlement


class Prefetch:
    """What a worker has claimed and not begun, and what it has done and not handed in.

    A task that takes longer than those before it must not hold up the rest: a thread looks at the tray now and then,
    and if the same task is still running gives back what waits behind it and hands in what was done before it.
    """

    def __init__(self, store: Store, worker: WorkerId, patiently: Callable[[Callable[[], Any]], Any]) -> None:
        self._patiently = patiently
        self.done: deque[Settlement] = deque()
        self._store = store
        self._worker = worker
        self._claims: deque[Claim] = deque()
        self._begun = 0
        self._filled = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def fill(self, claims: Sequence[Claim]) -> None:
        self._claims.extend(claims)
        if len(claims) > 1:
            self._filled.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._relieve, name="jug-relief", daemon=True)
                self._thread.start()

    def next(self) -> Claim | None:
        """The claim to use now."""
        self._begun += 1
        try:
            return self._claims.popleft()
        except IndexError:  # all are used, or were given back
            return None

    def take_done(self) -> list[Settlement]:
        return _emptied(self.done)

    def settle(self) -> None:
        """Hand in what is done."""
        if done := self.take_done():
            self._patiently(partial(self._store.claim, self._worker, 0, 0.0, done))

    def give_back(self) -> None:
        if claims := _emptied(self._claims):
            self._store.release([claim.lease for claim in claims])

    def clear(self) -> None:
        """The worker ends."""
        self._ended = True
        self._filled.set()
        self.settle()
        self.give_back()
        if self._thread is not None:
            self._thread.join()

    def _relieve(self) -> None:
        pause = threading.Event()
        while not self._ended:
            self._filled.wait()
            seen = self._begun
            pause.wait(PATIENCE)
            if not self._claims and not self.done:
                self._filled.clear()
                if self._claims:  # filled in between
                    self._filled.set()
            elif seen == self._begun and not self._ended:
                self.give_back()
                self.settle()


T = TypeVar("T")


def _emptied(things: deque[T]) -> list[T]:
    """All of them, taken out one by one, so that two threads may do so at once."""
    taken = []
    with suppress(IndexError):
        while True:
            taken.append(things.popleft())
    return taken


def _never() -> bool:
    return False


def _patience(wait: float, deadline: float | None, until_idle: bool, clock: Clock) -> float:
    if until_idle:
        wait = min(wait, 0.05)
    return wait if deadline is None else max(0.0, min(wait, deadline - clock.monotonic()))
