"""How a worker's death becomes a message, and when one is ended: decisions, apart from acting on them.

`classify_exit` and `death_outcome` say what a worker's end means, `overstepped` which limit a task is over, `backoff`
when a task is retried.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from jug_notebook.clock import Clock
from jug_notebook.model import POISON, Failed, Run, Verdict, WorkerInfo
from jug_notebook.worker.status import Running

BACKOFF = 0.25  #: seconds before the first retry; doubles each time
LIMIT_REACHED = 64  #: exit status of a worker whose tasks or whose time are used up
TASK_FAILED = 65  #: exit status of a worker that was not to go on after a failure


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
    clock: Clock,
) -> tuple[Verdict, Failed]:
    """Return how a task is settled in which a worker died with this wait status, after printing ``output``."""
    kind, text, final, died = death_outcome(running, termination, cause_of_death(status))
    lease, duration = running.lease, clock.monotonic() - running.since
    run = Run(
        worker.id, worker.host, worker.pid, worker.user, worker.python, running.started, duration, 0.0,
        lease.attempt, output,
    )  # fmt: skip
    where = f"worker {worker.id} on {worker.host}, pid {worker.pid}"
    report = f"{running.name} had run for {duration:.3g} s in {where}: {text}.\n"
    retry_at = 0.0 if final or died else clock.now() + backoff(running.failures)
    verdict = Verdict(
        lease.key, lease.round, lease.inputs, lease.attempt, b"", running.started, duration, final, died, retry_at
    )
    return verdict, Failed(lease.key, lease.round, lease.inputs, kind, text, report, run)


def first_of_crew(crew: str, me: WorkerInfo, processes: Iterable[tuple[WorkerInfo, bool, float]]) -> WorkerInfo:
    """Return, of all live supervisors of one crew, the one that stays: the oldest."""
    rivals = [info for info, alive, _ in processes if alive and info.kind == "supervisor" and info.crew == crew]
    return min([*rivals, me], key=lambda info: (info.started, info.id))
