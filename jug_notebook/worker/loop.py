"""The worker's loop: claim, run, settle, until nothing is left or it is told to stop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import WaitInterrupted
from jug_notebook.model import NEXT, Claim, Settlement, Target, WorkerInfo
from jug_notebook.store import Store
from jug_notebook.store.sealing import Seal
from jug_notebook.task import checkpoints, context
from jug_notebook.worker import displays, execution
from jug_notebook.worker.capture import Capture, Listener, NoCapture, ThreadCapture, restore_streams
from jug_notebook.worker.displays import DisplayBuffer
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.status import SharedStatus

BATCH = 512  #: tasks in one claim; the store gives fewer, about 20 ms of work
PATIENCE = 0.05  #: seconds for which the rest of a batch waits behind a task that takes longer than expected
WAIT = 1.0  #: seconds of waiting for work in one go


def work(
    store: Store,
    seal: Seal,
    me: WorkerInfo,
    status: SharedStatus,
    *,
    clock: Clock = CLOCK,
    target: Target | None = None,
    max_tasks: int | None = None,
    deadline: float | None = None,
    until_idle: bool = False,
    stop: Callable[[], bool] | None = None,
    listener: Listener | None = None,
    buffer: DisplayBuffer | None = None,
    in_process: bool = False,
    wait: float = WAIT,
    folders: Sequence[tuple[str, str]] = (),
    each: Callable[[TaskRunner, Claim], Settlement | None] = TaskRunner.attempt,
) -> int:
    """Run tasks until ``stop``, which is asked between tasks and every ``wait`` seconds; return how many ran.

    No task starts after ``deadline`` (monotonic clock), nor one that would not end by then, judged by earlier ones.
    ``until_idle`` ends when nothing is ready or running that this worker could run or wait for. ``folders`` are pairs:
    tasks of folders below the first run below the second. ``listener`` and ``buffer`` keep output and displays. With
    ``in_process``, folder and warnings stay as they are, and Ctrl-C ends the loop. ``each`` is `TaskRunner.attempt`.
    """
    listener = listener or NoCapture()
    buffer = buffer or DisplayBuffer(listener)
    runner = TaskRunner(store, seal, me, status, clock, listener, in_process, buffer, folders)
    prefetch = Prefetch(store, me, status, target, runner, clock)
    count, monotonic = 0, clock.monotonic

    def over() -> bool:
        return (
            (stop is not None and stop())
            or (max_tasks is not None and count >= max_tasks)
            or (deadline is not None and monotonic() >= deadline)
        )

    keeping = checkpoints.checkpoints_by(runner.leftovers.attempt)
    if isinstance(listener, Capture):  # a process of its own
        checkpoints.always_checkpoints_by(runner.leftovers.attempt)
    with prefetch, displays.opened(buffer), context.progress_to(status.report), keeping:
        while not over():
            limit = 1 if runner.met_a_long_one else BATCH
            if max_tasks is not None:
                limit = min(limit, max_tasks - count)
            claimed = prefetch.claim(limit, _patience(wait, deadline, until_idle, clock))
            if not claimed and until_idle and store.idle(target, me.python):
                break
            while not over() and (claim := prefetch.next()) is not None:
                if deadline is not None and monotonic() + (runner.pace(claim.name) or claim.expected) > deadline:
                    prefetch.release([claim])
                    return count
                settlement = each(runner, claim)
                if settlement is not None:
                    prefetch.done.append(settlement)
                    count += 1
    return count


def work_in_process(
    store: Store,
    seal: Seal,
    clock: Clock,
    in_process: list[Callable[[], WorkerInfo]],
    target: Target | None,
    max_tasks: int | None,
    max_time: float | None,
    stop: Callable[[], bool] | None = None,
    each: Callable[[TaskRunner, Claim], Settlement | None] = TaskRunner.attempt,
) -> int:
    """Run tasks in this process, where a debugger and Ctrl-C reach them, until none is left; return how many ran.

    Meanwhile ``in_process`` has a function that returns this worker's info, for the caller's heartbeats. Raises
    WaitInterrupted on Ctrl-C.
    """
    status = SharedStatus()
    me = system.me("worker", clock)
    info = partial(status.heartbeat, me)
    store.renew([me])
    in_process.append(info)
    deadline = None if max_time is None else clock.monotonic() + max_time
    try:
        return work(
            store, seal, me, status, clock=clock, target=target, max_tasks=max_tasks, deadline=deadline,
            until_idle=True, stop=stop, each=each, listener=ThreadCapture(echo=True), in_process=True,
        )  # fmt: skip
    except KeyboardInterrupt:
        ran = f"{status.done} task{'s' * (status.done != 1)}"
        raise WaitInterrupted(f"interrupted: {ran} ran; the one that was running was requeued") from None
    finally:
        try:
            _end_in_process(store, me, in_process, info)
        except KeyboardInterrupt:  # it must have left, or its claims hold as long as this process lives
            _end_in_process(store, me, in_process, info)
            raise


def _end_in_process(
    store: Store, me: WorkerInfo, in_process: list[Callable[[], WorkerInfo]], info: Callable[[], WorkerInfo]
) -> None:
    restore_streams()
    store.leave([me.id])
    if info in in_process:
        in_process.remove(info)


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


@dataclass(eq=False)
class Prefetch:
    """What a worker has claimed and not started, and what it has done and not settled.

    A task that takes longer than those before it must not hold up the rest: a thread looks now and then, and if the
    same task is still running gives back what waits behind it and settles what was done before it.
    """

    _store: Store
    _me: WorkerInfo
    _status: SharedStatus
    _target: Target | None
    _runner: TaskRunner
    _clock: Clock
    done: deque[Settlement] = field(default_factory=deque)
    _claims: deque[Claim] = field(default_factory=deque)
    _started: int = 0
    _settled_at: float = 0.0
    _filled: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False
    _thread: threading.Thread | None = None

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        """The worker ends: settle what is done, and give back the rest."""
        self._status.waits(False)
        self._ended = True
        self._filled.set()
        self.settle()
        self.give_back()
        if self._thread is not None:
            self._thread.join()

    def claim(self, limit: int, wait: float) -> bool:
        """Settle what is done and claim up to ``limit`` tasks, waiting up to ``wait`` seconds; are there any?"""
        claims: list[Claim] = []
        if done := _emptied(self.done):
            claims = self._claim(limit, 0.0, done)
        if not claims:
            self._status.waits(True)
            claims = self._claim(limit, wait, [])
            self._status.waits(False)
        self.fill(claims)
        return bool(claims)

    def _claim(self, limit: int, wait: float, done: list[Settlement]) -> list[Claim]:
        act = partial(self._store.claim, self._me.id, limit, wait, done, self._target, self._me.python, chains=True)
        claims = self._runner.patiently(act)
        self._runner.leftovers.sweep()
        return claims

    def fill(self, claims: Sequence[Claim]) -> None:
        self._claims.extend(claims)
        self._settled_at = self._clock.monotonic()
        if len(claims) > 1:
            self._filled.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._relieve, name="jug-relief", daemon=True)
                self._thread.start()

    def next(self) -> Claim | None:
        """Return the claim to run now; None where all are used, or were given back.

        What is done is settled first, unless the task to run is known to be short.
        """
        self._started += 1
        while True:
            try:
                claim = self._claims.popleft()
            except IndexError:
                return None
            late = self._clock.monotonic() - self._settled_at > execution.HURRY or not self._runner.is_short(claim.name)
            if claim.lease.inputs == NEXT and (late or not self.done):
                continue  # what it needs is settled before, so that it may be another worker's
            if late and self.done:
                self.settle()
                self._settled_at = self._clock.monotonic()
            return claim

    def settle(self) -> None:
        """Settle what is done."""
        if done := _emptied(self.done):
            begun = self._runner.begun
            self._runner.patiently(partial(self._store.claim, self._me.id, 0, 0.0, done, begun=begun))
            self._runner.leftovers.sweep()

    def give_back(self) -> None:
        self.release(_emptied(self._claims))

    def release(self, claims: Sequence[Claim]) -> None:
        """Release those of the claims that are claimed."""
        if leases := [claim.lease for claim in claims if claim.lease.inputs != NEXT]:
            self._runner.patiently(partial(self._store.release, leases))

    def _relieve(self) -> None:
        pause = threading.Event()
        while not self._ended:
            self._filled.wait()
            seen = self._started
            pause.wait(PATIENCE)
            if not self._claims and not self.done:
                self._filled.clear()
                if self._claims:  # filled in between
                    self._filled.set()
            elif seen == self._started and not self._ended:
                self.give_back()
                self.settle()


T = TypeVar("T")


def _emptied(things: deque[T]) -> list[T]:
    """Return all of them, taken out one by one, so that two threads may do so at once."""
    taken = []
    with suppress(IndexError):
        while True:
            taken.append(things.popleft())
    return taken


def _patience(wait: float, deadline: float | None, until_idle: bool, clock: Clock) -> float:
    if until_idle:
        wait = min(wait, 0.05)
    return wait if deadline is None else max(0.0, min(wait, deadline - clock.monotonic()))
