"""What a supervisor sees of a worker's current task, through shared memory, and what it makes of the worker's end.

Decisions, apart from acting on them: `classify_exit` and `death_outcome` return what a worker's end means,
`overstepped` which limit a task is over, `backoff` when a task is retried.
"""

from __future__ import annotations

import enum
import mmap
import os
import signal
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import msgspec

from jug_notebook.clock import Clock
from jug_notebook.model import POISON, Claim, Failed, Lease, Run, TaskTemplate, Verdict, WorkerInfo

BACKOFF = 0.25  #: seconds before the first retry; doubles each time
LIMIT_REACHED = 64  #: exit status of a worker whose tasks or whose time are used up
TASK_FAILED = 65  #: exit status of a worker that was not to go on after a failure


class Running(NamedTuple):
    """What a worker was running when it was looked at."""

    turn: int  #: counts the tasks that this worker began
    lease: Lease
    name: str
    started: float  #: seconds since the epoch
    since: float  #: the same on the monotonic clock, which all processes of a host share
    timeout: float | None
    failures: int
    retries: int
    deaths: int
    progress: tuple[int, int] = (0, 0)  #: done, and of how many, as the task itself tells


class SharedStatus:
    """One page that a worker and its supervisor share: written and read without a system call."""

    _record = Struct("<QQdddIIIIII40s20s255s")
    _count = Struct("<Q")
    _progress = Struct("<QQQ")
    _noted = Struct("<255s")
    _saved = Struct("<QdQ")
    _RUNNING, _STOP, _WAITING, _DONE, _PROGRESS, _RECORD, _NOTE, _SAVED = 0, 1, 2, 8, 16, 40, 1024, 1280

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._turn = 0
        self._done = 0

    # the worker writes

    def begin(self, claim: Claim, template: TaskTemplate, started: float, since: float) -> None:
        """From here on, a death of the worker is a death in this task."""
        lease = claim.lease
        self._turn += 1
        name = claim.name.encode()[:255]
        timeout = -1.0 if template.timeout is None else template.timeout
        self._record.pack_into(
            self._page, self._RECORD, self._turn, len(name), started, since, timeout, claim.failures, template.retries,
            claim.deaths, lease.round, lease.attempt, len(lease.key), lease.key.encode(), lease.inputs, name,
        )  # fmt: skip
        self._page[self._RUNNING] = 1

    def end(self, settled: bool = True) -> None:
        self._page[self._RUNNING] = 0
        self._done += settled
        self._count.pack_into(self._page, self._DONE, self._done)

    def report(self, done: int, total: int) -> None:
        """Report the progress of the current task."""
        self._progress.pack_into(self._page, self._PROGRESS, self._turn, done, total)

    def saved(self, at: float, size: int) -> None:
        """Report that the current task has saved a checkpoint: when, in seconds since the epoch, and its bytes."""
        self._saved.pack_into(self._page, self._SAVED, self._turn, at, size)

    def waits(self, waiting: bool) -> None:
        """A worker that waits for tasks may be killed: it has nothing to lose."""
        self._page[self._WAITING] = waiting

    def note(self, text: str) -> None:
        """Report what the worker waits for, in a line for people; empty: for nothing."""
        self._noted.pack_into(self._page, self._NOTE, text.encode())

    @property
    def stopping(self) -> bool:
        return bool(self._page[self._STOP])

    # the supervisor reads

    def stop(self) -> None:
        """Tell the worker to end after its current task."""
        self._page[self._STOP] = 1

    @property
    def done(self) -> int:
        count: int = self._count.unpack_from(self._page, self._DONE)[0]
        return count

    @property
    def waiting(self) -> bool:
        return bool(self._page[self._WAITING])

    def read(self) -> Running | None:
        """What the worker runs now. Two equal looks in a row mean that neither saw half a change."""
        size = self._RECORD + self._record.size
        page = self._page[:size]
        while page != (again := self._page[:size]):
            page = again
        if not page[self._RUNNING]:
            return None
        (turn, name_size, started, since, timeout, failures, retries, deaths, round, attempt, key_size,
         key, inputs, name) = self._record.unpack_from(page, self._RECORD)  # fmt: skip
        lease = Lease(key[:key_size].decode(), round, inputs, attempt)
        label = name[:name_size].decode(errors="ignore")
        limit = None if timeout < 0 else timeout
        reported, done, total = self._progress.unpack_from(page, self._PROGRESS)
        progress = (done, total) if reported == turn else (0, 0)
        return Running(turn, lease, label, started, since, limit, failures, retries, deaths, progress)

    def heartbeat(self, info: WorkerInfo, **more: object) -> WorkerInfo:
        """Return what the store is to know of this worker now. ``more`` are further fields."""
        running = self.read()
        if running is not None:
            more |= {"task": running.lease.key, "task_name": running.name, "since": running.started}
            more["progress"] = running.progress
            turn, at, size = self._saved.unpack_from(self._page, self._SAVED)
            if turn == running.turn:
                more["checkpoint"] = at, size
        if self._page[self._NOTE]:
            more["note"] = self._noted.unpack_from(self._page, self._NOTE)[0].rstrip(b"\0").decode(errors="ignore")
        return msgspec.structs.replace(info, done=self.done, **more)

    def close(self) -> None:
        self._page.close()


# -- what a worker's end means -----------------------------------------------------------------------------------------


class Exit(enum.Enum):
    """What the end of a worker means for its supervisor."""

    LIMIT_REACHED = "used up its tasks or time"
    TASK_FAILED = "a task failed and it was not to go on"
    CRASHED = "died outside of any task"
    ENDED = "ended as it should, or in a task"


def classify_exit(status: int, running: Running | None, asked: bool) -> Exit:
    """Return what a wait status means. ``asked``: we ended this worker ourselves."""
    code = os.waitstatus_to_exitcode(status)
    if running is not None or code == 0:
        return Exit.ENDED
    if code == LIMIT_REACHED:
        return Exit.LIMIT_REACHED
    if code == TASK_FAILED:
        return Exit.TASK_FAILED
    return Exit.ENDED if asked else Exit.CRASHED


def backoff(failures: int) -> float:
    """Return the seconds before a task with this many failures is tried again."""
    return float(min(60.0, BACKOFF * 2**failures))


@dataclass(frozen=True)
class Termination:
    """Why a supervisor ends a worker, and which of its tasks that is about."""

    turn: int  #: see `Running`; -1: about none
    kind: str
    text: str
    kill_at: float  #: when asking is over; on the monotonic clock


def overstepped(running: Running | None, memory: int, limit: int | None, now: float) -> tuple[str, str] | None:
    """Return the limit that a task is over, as (kind of failure, message); None where it's within all."""
    if running is None:
        return None
    if running.timeout is not None and now - running.since >= running.timeout:
        return "timeout", f"timed out after {running.timeout:g} s"
    if limit is not None and memory > limit:
        return "memory", f"took {memory / 1e6:,.0f} MB of memory, more than the limit of {limit / 1e6:,.0f} MB"
    return None


def cause_of_death(status: int) -> str:
    """Return a wait status in words: "killed by SIGKILL, probably out of memory"."""
    if not os.WIFSIGNALED(status):
        return f"exited with status {os.waitstatus_to_exitcode(status)} (os._exit)"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        name = f"signal {number}"
    meaning = {
        "SIGKILL": ", probably out of memory",
        "SIGSEGV": ", a fault in compiled code",
        "SIGBUS": ", a fault in compiled code or a file that was cut short",
        "SIGABRT": ", compiled code gave up",
        "SIGILL": ", compiled for another processor",
        "SIGFPE": ", a fault in compiled code",
    }.get(name, "")
    return f"killed by {name}{meaning}"


def death_outcome(running: Running, termination: Termination | None, cause: str) -> tuple[str, str, bool, bool]:
    """Return what a worker's death in a task means for it: (kind, message, final, counts as a death)."""
    if termination is not None:
        final = termination.kind == "memory" or running.failures >= running.retries
        return termination.kind, termination.text, final, False
    if running.deaths + 1 >= POISON:
        return "poison", f"{running.deaths + 1} workers died in it; the last was {cause}", True, True
    return "died", cause, False, True


def settled_death(
    running: Running,
    worker: WorkerInfo,
    termination: Termination | None,
    status: int,
    output: tuple[tuple[str, str], ...],
    peak: int,
    clock: Clock,
) -> tuple[Verdict, Failed]:
    """Return how a task is settled in which a worker died with this wait status, after printing ``output``.

    ``peak``: bytes of memory that the worker had at most.
    """
    kind, text, final, died = death_outcome(running, termination, cause_of_death(status))
    lease, duration = running.lease, clock.monotonic() - running.since
    run = Run(
        worker.id, worker.host, worker.pid, worker.user, worker.python, running.started, duration, 0.0,
        lease.attempt, output, peak=peak,
    )  # fmt: skip
    where = f"worker {worker.id} on {worker.host}, pid {worker.pid}"
    report = f"{running.name} had run for {duration:.3g} s in {where}: {text}.\n"
    retry_at = 0.0 if final or died else clock.now() + backoff(running.failures)
    verdict = Verdict(
        lease.key, lease.round, lease.inputs, lease.attempt, b"", running.started, duration, final, died, retry_at
    )
    return verdict, Failed(lease.key, lease.round, lease.inputs, kind, text, report, run)


def lost_with_supervisors(claim: Claim, worker: WorkerInfo, clock: Clock) -> tuple[Verdict, Failed] | None:
    """Return how a task is settled that isn't tried again, for workers died in it, and their supervisors with them.

    Return None where it is to be tried.
    """
    if claim.deaths < POISON:
        return None
    lease, now = claim.lease, clock.now()
    text = f"{claim.deaths} workers died in it, the last with its supervisor: was its host out of memory?"
    run = Run(worker.id, worker.host, worker.pid, worker.user, worker.python, now, 0.0, 0.0, lease.attempt)
    verdict = Verdict(lease.key, lease.round, lease.inputs, lease.attempt, b"", now, 0.0, True)
    return verdict, Failed(lease.key, lease.round, lease.inputs, "poison", text, f"{claim.name}: {text}\n", run)
