"""Starting workers: what a launcher is asked for, and the crew it gives back. Each launcher is one file here."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO

from blake3 import blake3

from jug_notebook import process, render
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import LaunchError
from jug_notebook.model import Order, Scale, Stop, Target, WorkerId, WorkerInfo
from jug_notebook.store import Store
from jug_notebook.supervisor import nudge

STARTING = 20.0  #: seconds after which a process that has not registered is no longer waited for
TAIL = 2000  #: bytes of a failed start's output that people are shown


@dataclass(frozen=True)
class CrewOptions:
    """What is asked of a launcher. ``size`` is the total to have on the host with otherwise equal options."""

    size: int
    idle_timeout: float = 600
    max_tasks: int | None = None
    max_time: float | None = None
    memory_limit: int | None = None
    target: Target | None = None
    python: str | None = None
    tied_to: WorkerId = ""

    @property
    def suffix(self) -> str:
        """Empty for what most people ask for; else it tells crews apart that must not be one."""
        if replace(self, size=0) == CrewOptions(size=0):
            return ""
        target = self.target and (sorted(self.target.names), sorted(self.target.keys))
        told = (
            self.idle_timeout, self.max_tasks, self.max_time, self.memory_limit, target, self.python, self.tied_to
        )  # fmt: skip
        return "-" + blake3(repr(told).encode()).hexdigest(length=4)


def arguments(options: CrewOptions) -> list[str]:
    """The options as ``jug-notebook worker`` takes them."""
    words = ["-n", str(options.size), "--idle-timeout", str(options.idle_timeout)]
    if options.max_tasks is not None:
        words += ["--max-tasks", str(options.max_tasks)]
    if options.max_time is not None:
        words += ["--max-time", str(options.max_time)]
    if options.memory_limit is not None:
        words += ["--memory-limit", str(options.memory_limit)]
    if options.tied_to:
        words += ["--tied-to", options.tied_to]
    if options.target is not None:
        for name in sorted(options.target.names | options.target.keys):
            words += ["--target", name]
    return words


def tell(store: Store, supervisors: Sequence[WorkerInfo], order: Order) -> None:
    """Order, so that supervisors of this host act at once."""
    store.order([info.id for info in supervisors], order)
    for info in supervisors:
        nudge(info)


class Crew:
    """The workers that one request for workers is about. They live on without it."""

    def __init__(
        self,
        store: Store,
        name: str,
        started: subprocess.Popen[bytes] | None = None,
        size: int = 0,
        log: IO[bytes] | None = None,
        clock: Clock = CLOCK,
    ) -> None:
        self.store = store
        self.name = name
        self.size = size  #: workers asked for when it was started
        self._started = started
        self._log = log
        self._clock = clock
        self._since = clock.monotonic()
        self._begun = False  # has a worker of it been seen?

    # -- looking

    @property
    def supervisors(self) -> list[WorkerInfo]:
        """Those that serve this crew now: mostly one, for a moment perhaps two."""
        return self._crew()[0]

    @property
    def workers(self) -> list[WorkerInfo]:
        """The live ones."""
        return self._crew()[1]

    def alive(self) -> int:
        """How many workers are alive."""
        return len(self.workers)

    @property
    def starting(self) -> bool:
        """Are workers on their way? Raises LaunchError, saying why, where they could not be started."""
        late = self._clock.monotonic() - self._since > STARTING
        if self._begun or (late and self._started is None):
            return False
        supervisors, workers = self._crew()
        self._begun = bool(workers)
        if supervisors:
            self._done_starting()
            return not workers and not late and any(info.size > 0 for info in supervisors)
        if self._started is None:
            return False
        status = self._started.poll()
        if status is None:
            return not late
        said = self._said()
        self._done_starting()
        if status != 0:
            raise LaunchError(f"the workers' process ended with status {status} before any began. It said:\n{said}")
        return False

    def _crew(self) -> tuple[list[WorkerInfo], list[WorkerInfo]]:
        alive = [info for info, alive, _ in self.store.processes() if alive]
        supervisors = [info for info in alive if info.kind == "supervisor" and info.crew == self.name]
        ids = {info.id for info in supervisors}
        return supervisors, [info for info in alive if info.kind == "worker" and info.supervisor in ids]

    def _said(self) -> str:
        if self._log is None:
            return "nothing"
        self._log.seek(max(0, self._log.seek(0, 2) - TAIL))
        return self._log.read().decode(errors="replace").strip() or "nothing"

    def _done_starting(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._started is not None and self._started.poll() is not None:
            self._started = None

    # -- acting

    def scale(self, size: int) -> None:
        """Have so many workers; surplus ones end after their current task."""
        self._tell(Scale(size))

    def stop(self, now: bool = False) -> None:
        """End the workers after their current tasks, or at once, giving those back."""
        if not self._tell(Stop(now)) and self._started is not None and self._started.poll() is None:
            self._started.terminate()  # it has not even begun

    def _tell(self, order: Order) -> bool:
        supervisors = self.supervisors
        tell(self.store, supervisors, order)
        return bool(supervisors)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is nothing left to do, or no worker to do it; answer whether nothing is left."""
        until = None if timeout is None else self._clock.monotonic() + timeout
        seen = -1
        while not (idle := self.store.idle()):
            left = 0.25 if until is None else min(0.25, until - self._clock.monotonic())
            if left <= 0 or not (self.alive() or self.starting):
                return self.store.idle()
            seen = self.store.watch(seen, left)
        return idle

    def _repr_html_(self) -> str:
        return render.html(self.store.snapshot())

    def __repr__(self) -> str:
        workers = self.workers
        hosts = ", ".join(sorted({info.host for info in workers})) or process.host()
        state = ", starting" if not workers and self._started is not None and self._started.poll() is None else ""
        return f"<Crew of {len(workers)} worker{'' if len(workers) == 1 else 's'} on {hosts}{state}>"


__all__ = ["Crew", "CrewOptions", "arguments", "tell"]
