"""What a worker's end means for the task it ran, and which end it deserves: facts in, an answer out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from jug_notebook.model import POISON, WorkerInfo
from jug_notebook.worker.slot import Running


@dataclass(frozen=True)
class Termination:
    """Why a supervisor ends a worker, and which of its tasks that is about."""

    turn: int
    kind: str
    text: str
    kill_at: float  #: when asking is over; on the monotonic clock


def overstepped(running: Running | None, memory: int, limit: int | None, now: float) -> tuple[str, str] | None:
    """Which limit a task is over, as (kind of failure, what to say); None where it's within all."""
    if running is None:
        return None
    if running.timeout is not None and now - running.since >= running.timeout:
        return "timeout", f"timed out after {running.timeout:g} s"
    if limit is not None and memory > limit:
        return "memory", f"took {memory / 1e6:,.0f} MB of memory, more than the limit of {limit / 1e6:,.0f} MB"
    return None


def cause_of_death(status: int) -> str:
    """What people call a wait status: "killed by SIGKILL, probably out of memory"."""
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
    """What a worker's death in a task means for it: (kind, what to say, final, counts as a death)."""
    if termination is not None:
        return (
            termination.kind,
            termination.text,
            termination.kind == "memory" or running.failures >= running.retries,
            False,
        )
    if running.deaths + 1 >= POISON:
        return "poison", f"{running.deaths + 1} workers died in it; the last was {cause}", True, True
    return "died", cause, False, True


def first_of_crew(crew: str, me: WorkerInfo, processes: Iterable[tuple[WorkerInfo, bool, float]]) -> WorkerInfo:
    """Of all live supervisors of one crew the one that stays."""
    rivals = [info for info, alive, _ in processes if alive and info.kind == "supervisor" and info.crew == crew]
    return min([*rivals, me], key=lambda info: (info.started, info.id))
