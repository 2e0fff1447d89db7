"""Starting workers: what a launcher is asked for, and the crew it gives back. Each launcher is one file here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from html import escape

from jug_notebook import render, system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import LaunchError
from jug_notebook.model import Order, Scale, Stop, WorkerInfo
from jug_notebook.store import Store
from jug_notebook.worker.supervisor import wake

STARTING = 20.0  #: seconds after which a process that has not registered is no longer waited for


def tell(store: Store, supervisors: Sequence[WorkerInfo], order: Order) -> None:
    """Order, so that supervisors of this host act at once."""
    store.order([info.id for info in supervisors], order)
    for info in supervisors:
        wake(info)


def living(store: Store, name: str) -> list[WorkerInfo]:
    """The live supervisors of a crew of that name."""
    return [info for info, alive, _ in store.processes() if alive and info.kind == "supervisor" and info.crew == name]


class WorkerGroup:
    """One place where a crew has workers: a host, an executor. ``name`` is what supervisors there carry as crew.

    This one has nothing on its way: its supervisors were there already.
    """

    failure = ""  #: why nothing comes of it, in a line
    said = ""  #: what came of it, in a line
    begins_once = True  #: where workers have been seen, none is on its way any more

    def __init__(self, store: Store, name: str, place: str = "", size: int = 0, clock: Clock = CLOCK) -> None:
        self.store = store
        self.name = name
        self.place = place or system.host()  #: what whoever asked for it calls it
        self.size = size  #: workers asked for when it was started; 0: not known yet
        self.clock = clock
        self.over = threading.Event()  #: it is known what came of it
        self._since = clock.monotonic()

    def holds(self, supervisor: WorkerInfo) -> bool:
        """Is that one of this post?"""
        return supervisor.crew == self.name

    def coming(self, supervisors: Sequence[WorkerInfo], workers: Sequence[WorkerInfo]) -> bool:
        """Are workers on their way? ``supervisors`` and ``workers`` are those of this post that live.

        Where nothing came of it, `failure` says why from now on.
        """
        return bool(supervisors) and not workers and not self._late and any(info.size > 0 for info in supervisors)

    @property
    def _late(self) -> bool:
        return self.clock.monotonic() - self._since > STARTING

    def scale(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        """Have so many workers here; surplus ones end after their current task."""
        self._since = self.clock.monotonic()
        tell(self.store, supervisors, Scale(size))

    def stop(self, now: bool, supervisors: Sequence[WorkerInfo]) -> None:
        """End the workers here, those too that are still on their way."""
        tell(self.store, supervisors, Stop(now))


class Crew:
    """The workers that one request for workers is about, on one host or several. They live on without it."""

    def __init__(self, store: Store, posts: Sequence[WorkerGroup] = (), clock: Clock = CLOCK, plan: str = "") -> None:
        self.plan = plan  #: what workers would do, where they were only asked about
        self.store = store
        self.posts = tuple(posts)
        self._begun = False  # have workers been seen in each place?
        self._clock = clock
        self._told = False

    @property
    def name(self) -> str:
        """Names the request: equal ones are about the same workers."""
        return " ".join(post.name for post in self.posts)

    @property
    def size(self) -> int:
        """Workers asked for when it was started."""
        return sum(post.size for post in self.posts)

    # -- looking

    @property
    def supervisors(self) -> list[WorkerInfo]:
        """Those that serve this crew now: mostly one a host, for a moment perhaps two."""
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
        return [post.failure for post, *_ in self._looked_after() if post.failure]

    def told(self, patience: float) -> list[str]:
        """What came of it, a line for each place; of those that don't know within ``patience`` seconds, that.

        What failed has been said with this: `starting` doesn't raise it.
        """
        until = self._clock.monotonic() + patience
        lines = []
        for post in self.posts:
            post.over.wait(max(0.0, until - self._clock.monotonic()))
            waits = "" if post.over.is_set() else f"{post.place}: no answer yet; the status will tell"
            lines.append(post.failure or waits or post.said)
        self._told = self._told or all(post.failure for post in self.posts)
        return [line for line in lines if line]

    @property
    def coming(self) -> bool:
        """Are workers on their way?"""
        return any(coming for *_, coming in self._looked_after())

    @property
    def starting(self) -> bool:
        """The same. Raises LaunchError, once, saying why, where none could be started anywhere."""
        looked = self._looked_after()
        if any(coming for *_, coming in looked):
            return True
        failures = [post.failure for post, *_ in looked if post.failure]
        if failures and len(failures) == len(looked) and not self._told:
            self._told = True
            raise LaunchError("\n".join(failures))
        return False

    def _looked_after(self) -> list[tuple[WorkerGroup, bool]]:
        if self._begun:
            return [(post, False) for post in self.posts]
        crew = self._crew()
        self._begun = all(workers and post.begins_once for post, _, workers in crew)
        return [(post, post.coming(supervisors, workers)) for post, supervisors, workers in crew]

    def _crew(self) -> list[tuple[WorkerGroup, list[WorkerInfo], list[WorkerInfo]]]:
        alive = [info for info, alive, _ in self.store.processes() if alive]
        found = []
        for post in self.posts:
            supervisors = [info for info in alive if info.kind == "supervisor" and post.holds(info)]
            ids = {info.id for info in supervisors}
            found.append((post, supervisors, [i for i in alive if i.kind == "worker" and i.supervisor in ids]))
        return found

    # -- acting

    def scale(self, size: int) -> None:
        """Have so many workers on each host, or so many in all on an executor; surplus ones end after their task."""
        self._begun = False
        for post, supervisors, _ in self._crew():
            post.scale(size, supervisors)

    def stop(self, now: bool = False) -> None:
        """End the workers after their current tasks, or at once, giving those back."""
        for post, supervisors, _ in self._crew():
            post.stop(now, supervisors)

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
        if self.plan:
            return f"<pre>{escape(self.plan)}</pre>"
        return render.html(self.store.snapshot())

    def __repr__(self) -> str:
        if self.plan:
            return self.plan
        looked = [(*one, one[0].coming(one[1], one[2])) for one in self._crew()]
        count = sum(len(workers) for _, _, workers, _ in looked)
        hosts = sorted({info.where for *_, workers, _ in looked for info in workers}) or [p.place for p in self.posts]
        state = ", starting" if any(coming for *_, coming in looked) else ""
        wrong = "".join(f"; {post.failure.partition(': ')[0]} failed" for post in self.posts if post.failure)
        there = f" on {', '.join(hosts)}" if hosts else ""
        return f"<Crew of {render.plural(count, 'worker')}{there}{state}{wrong}>"


__all__ = ["Crew", "WorkerGroup", "living", "tell"]
