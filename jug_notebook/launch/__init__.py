"""Starting workers on this host, on others over ssh, or on an executor: each launcher is a file here.

A launcher gets `WorkerOptions` and returns a `Crew`, which has a `WorkerGroup` for each host or executor.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from html import escape

from jug_notebook import render, system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import LaunchError
from jug_notebook.model import Scale, Stop, WorkerId, WorkerInfo
from jug_notebook.store import Store
from jug_notebook.system import waiting_time
from jug_notebook.worker import number_of_workers
from jug_notebook.worker.crew import send_order

STARTING = 20.0  #: seconds after which a process that has not registered is no longer waited for


class WorkerGroup:
    """One place where a crew has workers: a host, an executor. ``name`` is the crew of its supervisors.

    This one starts nothing: its supervisors were running already.
    """

    failure = ""  #: why no worker could be started, in a line
    message = ""  #: what was started, in a line
    stopped = ""  #: what the last `stop` did besides, in a line
    coming: int | None = None  #: workers that are starting, where that is known better than from ``size``
    notes: tuple[str, ...] = ()  #: what is to be known of workers that are starting, a line each
    begins_once = True  #: once workers have been seen, none is starting
    engaged: tuple[WorkerId, int] = ("", 0)  #: a supervisor that was running already, and its heartbeat at our order

    def __init__(self, store: Store, name: str, place: str = "", size: int = 0, clock: Clock = CLOCK) -> None:
        self.store = store
        self.name = name
        self.place = place or system.host()  #: its name in the request
        self.size = size  #: workers asked for when it was started; 0: not known yet
        self.clock = clock
        self.over = threading.Event()  #: set once starting has succeeded or failed
        self._since = clock.monotonic()

    def holds(self, supervisor: WorkerInfo) -> bool:
        """Does a supervisor belong to this group?"""
        return supervisor.crew == self.name

    def is_starting(self, supervisors: Sequence[WorkerInfo], workers: Sequence[WorkerInfo]) -> bool:
        """Are workers starting? ``supervisors`` and ``workers`` are the live ones of this group.

        Where none could be started, `failure` says why from now on.
        """
        if workers or not supervisors or self._late:
            return False
        return not self.has_obeyed(supervisors) or any(info.size > 0 for info in supervisors)

    def has_obeyed(self, supervisors: Sequence[WorkerInfo]) -> bool:
        """Is what is known of these supervisors, and of their workers, from after our order?"""
        name, beat = self.engaged
        return self._late or not any(
            info.id == name and (info.size == 0 or info.beat <= beat + 1) for info in supervisors
        )

    @property
    def _late(self) -> bool:
        return self.clock.monotonic() - self._since > STARTING

    def scale(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        """Have ``size`` workers here; surplus ones end after their current task."""
        self._since = self.clock.monotonic()
        self.engaged = next(((info.id, info.beat) for info in supervisors), ("", 0))
        send_order(self.store, supervisors, Scale(size))

    def stop(self, now: bool, supervisors: Sequence[WorkerInfo]) -> None:
        """End the workers here, also those that are still starting."""
        self.engaged = ("", 0)
        send_order(self.store, supervisors, Stop(now))

    def abandon(self, supervisors: Sequence[WorkerInfo]) -> None:
        """End what is starting here, where another group of this name gives the live ``supervisors`` their orders."""


class Crew:
    """The workers that one request started or found, on one host or several. They live on without this object."""

    def __init__(self, store: Store, groups: Sequence[WorkerGroup] = (), clock: Clock = CLOCK, plan: str = "") -> None:
        self.plan = plan  #: for a dry run: what workers would do
        self.store = store
        self.groups = tuple(groups)
        self._begun = False  # have workers been seen in each place?
        self._clock = clock
        self._reported = False

    @property
    def name(self) -> str:
        """Names the request: equal ones are about the same workers."""
        return " ".join(group.name for group in self.groups)

    @property
    def size(self) -> int:
        """Workers asked for when it was started."""
        return sum(group.size for group in self.groups)

    # -- looking

    @property
    def supervisors(self) -> list[WorkerInfo]:
        """The live supervisors of this crew: mostly one per host, for a moment perhaps two."""
        return [info for _, supervisors, _ in self._crew() for info in supervisors]

    @property
    def workers(self) -> list[WorkerInfo]:
        """The live ones."""
        return [info for _, _, workers in self._crew() for info in workers]

    def alive(self) -> int:
        """How many workers are alive."""
        return len(self.workers)

    @property
    def failures(self) -> list[str]:
        """A line for each place where no worker could be started: which, why, and the way out."""
        return [group.failure for group, *_ in self._looked_after() if group.failure]

    def messages(self, patience: float) -> list[str]:
        """Return what was started, a line for each place, waiting up to ``patience`` seconds for them.

        `starting` doesn't raise a failure that was returned here.
        """
        until = self._clock.monotonic() + patience
        lines = []
        for group in self.groups:
            group.over.wait(max(0.0, until - self._clock.monotonic()))
            waits = (
                "" if group.over.is_set() else f"{group.place}: no answer yet; %jug_status will show what becomes of it"
            )
            lines.append(group.failure or waits or group.message)
        self._reported = self._reported or all(group.failure for group in self.groups)
        return [line for line in lines if line]

    @property
    def is_starting(self) -> bool:
        """Are workers starting?"""
        return self.count_starting() > 0

    def count_starting(self) -> int:
        """Return how many workers are starting, as far as that is known."""
        starting = [group for group, is_starting in self._looked_after() if is_starting]
        return sum(max(1, group.size if group.coming is None else group.coming) for group in starting)

    @property
    def notes(self) -> list[str]:
        """Return what is to be known of workers that are starting, a line each, as of the last look."""
        return [note for group in self.groups for note in group.notes]

    @property
    def starting(self) -> bool:
        """Are workers starting? Raises LaunchError, once, saying why, if none could be started anywhere."""
        looked = self._looked_after()
        if any(is_starting for *_, is_starting in looked):
            return True
        failures = [group.failure for group, *_ in looked if group.failure]
        if failures and len(failures) == len(looked) and not self._reported:
            self._reported = True
            raise LaunchError("\n".join(failures))
        return False

    def _looked_after(self) -> list[tuple[WorkerGroup, bool]]:
        if self._begun:
            return [(group, False) for group in self.groups]
        crew = self._crew()
        self._begun = all(
            workers and group.begins_once and group.has_obeyed(supervisors) for group, supervisors, workers in crew
        )
        return [(group, group.is_starting(supervisors, workers)) for group, supervisors, workers in crew]

    def _crew(self) -> list[tuple[WorkerGroup, list[WorkerInfo], list[WorkerInfo]]]:
        alive = [info for info, alive, _ in self.store.processes() if alive]
        found = []
        for group in self.groups:
            supervisors = [info for info in alive if info.kind == "supervisor" and group.holds(info)]
            ids = {info.id for info in supervisors}
            found.append((group, supervisors, [i for i in alive if i.kind == "worker" and i.supervisor in ids]))
        return found

    # -- acting

    def scale(self, size: int) -> None:
        """Have ``size`` workers on each host, or in all on an executor; surplus ones end after their task.

        Raises LaunchError for anything but a whole number of 1 or more.
        """
        size = number_of_workers("size", size, instead="; .stop() ends them all")
        self._begun = False
        for group, supervisors, _ in self._crew():
            group.scale(size, supervisors)

    def stop(self, now: bool = False) -> None:
        """End the workers after their current tasks, or at once, giving those back."""
        for group, supervisors, _ in self._crew():
            group.stop(now, supervisors)

    def abandon(self) -> None:
        """End the workers that are starting, where `stop` of another crew of this name ends the others."""
        for group, supervisors, _ in self._crew():
            group.abandon(supervisors)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is nothing left to do, or no worker to do it; return whether nothing is left."""
        timeout = waiting_time(timeout)
        until = None if timeout is None else self._clock.monotonic() + timeout
        seen = -1
        while not (idle := self.store.idle()):
            left = 0.25 if until is None else min(0.25, until - self._clock.monotonic())
            if left <= 0 or not (self.alive() or self.starting):
                return self.store.idle()
            seen = self.store.watch(seen, left)
        return idle

    def _repr_html_(self) -> str:
        if self.plan:
            return f"<pre>{escape(self.plan)}</pre>"
        return render.html(self.store.snapshot())

    def __repr__(self) -> str:
        if self.plan:
            return self.plan
        looked = [(*one, one[0].is_starting(one[1], one[2])) for one in self._crew()]
        count = sum(len(workers) for _, _, workers, _ in looked)
        hosts = sorted({info.where for *_, workers, _ in looked for info in workers}) or [p.place for p in self.groups]
        state = ", starting" if any(is_starting for *_, is_starting in looked) else ""
        wrong = "".join(f"; {group.failure.partition(': ')[0]} failed" for group in self.groups if group.failure)
        there = f" on {', '.join(hosts)}" if hosts else ""
        return f"<Crew of {render.plural(count, 'worker')}{there}{state}{wrong}>"
