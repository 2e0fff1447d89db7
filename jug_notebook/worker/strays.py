"""Processes that outlive the task that started them, as daemons do: they are named, and end with their worker.

What a task leaves in its worker's process group ends with that group. Here it is about those that have left the group
(`setsid`). On Linux the supervisor is their "subreaper": whose parent has ended becomes a child of the supervisor, so
none escapes. Elsewhere nothing is known of them, and they run on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from jug_notebook import system
from jug_notebook.model import WorkerId

WORKER = "JUG_WORKER"  #: the environment variable by which the processes of a worker's tasks are known
forked: set[int] = set()  #: children of this process that it has forked itself
GRACE = 0.5  #: seconds from asking a process to end to killing it
_SET_CHILD_SUBREAPER = 36


def names(pids: Iterable[int]) -> str:
    """Return processes as "345 (sleep), 346 (python)"."""
    found = []
    for pid in sorted(pids):
        with suppress(OSError):
            found.append(f"{pid} ({Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()})")
    return ", ".join(found)


def left_by_task(before: Collection[int], now: Collection[int], known: set[int]) -> set[int]:
    """Return, in a worker, the processes outside its group that run and that its last task has started.

    ``before`` and ``now`` are the worker's children. ``known`` keeps, from call to call, those of them whose parent has
    ended, which are the supervisor's children.
    """
    own = os.getpgid(0)
    left = {pid for pid in now if pid not in before and _group(pid) not in (None, own)}
    me = os.environ.get(WORKER, "")
    orphans = {pid for pid in system.children(os.getppid()) if me and pid != os.getpid() and _worker_of(pid) == me}
    left |= orphans - known
    known.clear()
    known |= orphans
    return left


class Strays:
    """What the tasks of a supervisor's workers have left behind. Made in the process that is to adopt them."""

    def __init__(self) -> None:
        self.kill_at: dict[int, float] = {}  #: those that were asked to end, and when asking is over
        self._others = frozenset(system.children(os.getpid()))
        self._workers: dict[int, WorkerId] = {}  # by pid; empty where it isn't known
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def look(self, now: float, workers: Collection[WorkerId], ended: WorkerId = "") -> Mapping[WorkerId, str]:
        """End those whose worker has ended. Return, by worker, the names of those that are asked to end now.

        ``workers`` live. What doesn't tell whose it is, is left by the one that has ``ended`` just now.
        """
        self._adopt(ended)
        orphaned: dict[WorkerId, list[int]] = {}
        for pid, worker in self._workers.items():
            if pid in self.kill_at:
                if now >= self.kill_at[pid]:
                    _signal(pid, signal.SIGKILL)
            elif worker and worker not in workers:
                orphaned.setdefault(worker, []).append(pid)
        lines = {worker: names(pids) for worker, pids in orphaned.items()}
        for pids in orphaned.values():
            self._ask(pids, now)
        return lines

    def end_all(self, now: float) -> str:
        """End all that are left, and wait for that. Return the names of those that weren't asked to end before."""
        self._adopt("")
        rest = [pid for pid in self._workers if pid not in self.kill_at]
        line = names(rest)
        self._ask(rest, now)
        until = time.monotonic() + GRACE
        while self._workers:
            if time.monotonic() >= until:
                for pid in self._workers:
                    _signal(pid, signal.SIGKILL)
            time.sleep(0.005)
            self._adopt("")
        return line

    def _ask(self, pids: Iterable[int], now: float) -> None:
        for pid in pids:
            self.kill_at[pid] = now + GRACE
            _signal(pid, signal.SIGTERM)

    def _adopt(self, ended: WorkerId) -> None:
        """Take in whose parent has ended, and release those that have ended themselves."""
        children = system.children(os.getpid())
        forked.intersection_update(children)
        for pid in children:
            if pid in forked or pid in self._others:
                continue
            if system.born(pid) is None:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                self._workers.pop(pid, None)
                self.kill_at.pop(pid, None)
            elif pid not in self._workers:
                self._workers[pid] = _worker_of(pid) or ended


def _group(pid: int) -> int | None:
    """Return the process group of a process that runs; None where it has ended."""
    with suppress(ProcessLookupError):
        return os.getpgid(pid) if system.born(pid) is not None else None
    return None


def _worker_of(pid: int) -> WorkerId:
    """Return the worker in whose task a process was started; empty where that isn't known: it has run no program."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if line.startswith(f"{WORKER}=".encode()):
                return os.fsdecode(line.partition(b"=")[2])
    return ""


def _signal(pid: int, number: int) -> None:
    """Send a signal to a child that has left our session, with its group; or else to it alone."""
    with suppress(ProcessLookupError, PermissionError):
        if os.getsid(pid) != os.getsid(0):
            os.killpg(os.getpgid(pid), number)
        else:
            os.kill(pid, number)
