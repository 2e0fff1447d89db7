"""What runs beside a notebook for its jobs of Slurm: each job's worker, and the scaler that adds and ends jobs.

``python -m jug_notebook.launch.slurm_jobs job|scale FILE``, where the file holds the `Plan` of the request.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import JugError, LaunchError, StoreError
from jug_notebook.launch.remote import supervise_job
from jug_notebook.launch.slurm import FAILED, TOO_LONG, Plan, SlurmGroup, cancel, read_plan, run, submit
from jug_notebook.model import BEAT, Order, Snapshot, State, Stop, WorkerInfo
from jug_notebook.render import duration
from jug_notebook.store import Store, open_store
from jug_notebook.worker.crew import living

MARGIN = 5.0  #: seconds before the end of a job by which tasks must have ended
GOAL = 30.0  #: seconds in which as many workers as the scaler wants would run what is ready
UNTIMED = 1.0  #: seconds that a task of a function is expected to take before one has ended
MAX_PENDING = 100  #: jobs that the scaler has in the queue at a time
LINGER = 600.0  #: seconds for which a scaler stays with nothing to do and no session
SURPLUS = 10.0  #: seconds for which pending jobs must be too many before some are cancelled
RETRY, MAX_RETRY = 5.0, 300.0  #: seconds until a refusing queue is asked again; doubles each time


# -- as many as there is work for --------------------------------------------------------------------------------------


def wanted(snapshot: Snapshot, ready: Mapping[str, int], busy: int, most: int, longest: float) -> int:
    """Return how many jobs there should be: those at work, and as many as would run what is ready within `GOAL`.

    ``ready``: tasks by function; ``busy``: workers at work; ``longest``: seconds that a task may take (0: any).
    """
    work, count = 0.0, 0
    for name, number in ready.items():
        seconds = expected(snapshot, name)
        if not longest or seconds <= longest:
            work += number * seconds
            count += number
    return min(most, busy + min(count, math.ceil(work / GOAL)))


def expected(snapshot: Snapshot, name: str) -> float:
    """Return the seconds that a task of a function is expected to take: their mean, or as long as one runs already."""
    mean = next((view.mean for view in snapshot.functions if view.name == name), None)
    if mean is not None:
        return mean
    began = [v.info.since for v in snapshot.workers if v.alive and v.info.task_name == name and v.info.since]
    return max([UNTIMED, *(snapshot.at - since for since in began)])


def too_long(snapshot: Snapshot, ready: Mapping[str, int], longest: float) -> str:
    """Return which tasks no job can run before its end, in a line; "" where there is none."""
    for name, number in ready.items():
        if number and longest and (seconds := expected(snapshot, name)) > longest:
            return f"{TOO_LONG} {name}(), which takes about {duration(seconds)}: give a longer --walltime"
    return ""


class Scaler:
    """Adds and ends the jobs of a request until it is told to stop, or nothing is left to do and no session open."""

    def __init__(self, store: Store, group: SlurmGroup, clock: Clock = CLOCK) -> None:
        self.store, self.group, self.clock = store, group, clock
        self.most = group.plan.settings.up_to
        self.me = system.me("supervisor", clock, crew=group.name, place="Slurm")
        self.note = ""
        self._idle_timeout = group.plan.request.options.idle_timeout
        self._beat = 0
        self._retry, self._retry_at = RETRY, 0.0
        self._idle: dict[str, float] = {}  # since when a job's worker has had nothing to do
        self._surplus_since: float | None = None
        self._settled, self._bad = -1, 0  # tasks settled, and jobs that ended badly, when jobs were last submitted
        self._useful_since = clock.monotonic()

    def run(self) -> int:
        """Return the exit status."""
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        try:
            orders = self._renew(self.me)
            while not ended.is_set():
                for order in orders:
                    if isinstance(order, Stop):
                        self.group.stop(order.now, self._supervisors())
                        return 0
                    self.most = max(self.most, order.size) if order.at_least else order.size
                if self._is_second():
                    return 0
                if self._step(self.clock.monotonic()):
                    ended.wait(BEAT)
                    orders = self._renew(self.me)
                elif not (orders := self._renew(msgspec.structs.replace(self.me, crew=""))):  # see `worker.crew`
                    return 0
            self.group.stop(False, self._supervisors())
            return 0
        finally:
            with suppress(StoreError, OSError):
                self.store.leave([self.me.id])
                self.store.close()

    def _renew(self, me: WorkerInfo) -> list[Order]:
        self._beat += 1
        return self.store.renew([msgspec.structs.replace(me, beat=self._beat, note=self.note)])

    def _is_second(self) -> bool:
        """Was another scaler of the same request here first?"""
        rivals = [info for info in living(self.store, self.group.name) if system.running(info)]
        return min([*rivals, self.me], key=lambda info: (info.started, info.id)).id != self.me.id

    def _supervisors(self) -> list[WorkerInfo]:
        alive = [info for info, alive, _ in self.store.processes() if alive and info.kind == "supervisor"]
        return [info for info in alive if self.group.holds(info) and info.id != self.me.id]

    def _step(self, now: float) -> bool:
        """Compare the jobs with the work once; False once neither is left."""
        if self.group.queue.peek() is None or self.group.queue.failure:
            return True
        supervisors, snapshot = self.group.staying(self._supervisors()), self.store.snapshot()
        coming = [job for job in self.group.queue.jobs or () if not job.ended]
        idle = self._idle_ones(supervisors, now)
        ready, longest = self._ready(), self._longest()
        want = wanted(snapshot, ready, len(supervisors) - len(idle), self.most, longest)
        if self.note.startswith(TOO_LONG) or not coming:
            self.note = too_long(snapshot, ready, longest) or ("" if self.note.startswith(TOO_LONG) else self.note)
        unregistered = self.group.unregistered(supervisors)
        if want > len(coming):
            self._surplus_since = None
            self._grow(min(want - len(coming), MAX_PENDING - len(unregistered)), snapshot, now)
        elif want < len(coming) and unregistered:
            self._surplus_since = now if self._surplus_since is None else self._surplus_since
            if now - self._surplus_since >= SURPLUS:
                cancel(job.id for job in unregistered[::-1][: len(coming) - want])
                self._surplus_since = None
                with suppress(LaunchError):
                    self.group.queue.look()
        if leaving := [info for info, since in idle if now - since >= self._idle_timeout]:
            self.group.dismiss(leaving)
        if coming or not self._is_over():
            self._useful_since = now
        return now - self._useful_since < LINGER

    def _ready(self) -> Counter[str]:
        """Return the number of ready tasks for these workers, by function, without those that limits hold up."""
        request = self.group.plan.request
        target = request.options.target
        if self.store.idle(target, request.python):
            return Counter()
        if target is not None:
            found = Counter(view.name for view in self.store.tasks(target=target, state=State.READY))
        else:
            functions = self.store.snapshot().functions
            found = Counter({view.name: view.counts.get(State.READY, 0) for view in functions})
        return found - Counter(self.store.beyond_limits())

    def _longest(self) -> float:
        seconds = self.group.plan.settings.seconds
        return max(1.0, math.ceil(seconds / 60) * 60 - MARGIN) if seconds else 0.0

    def _idle_ones(self, supervisors: Sequence[WorkerInfo], now: float) -> list[tuple[WorkerInfo, float]]:
        """Return the jobs whose workers have nothing to do, each with since when."""
        alive = [info for info, alive, _ in self.store.processes() if alive and info.kind == "worker"]
        done = {info.supervisor: (info.task, info.done) for info in alive}
        found = []
        for info in supervisors:
            task, count = done.get(info.id, ("", 0))
            mark = f"{info.id} {count}"
            if task:
                self._idle.pop(mark, None)
            else:
                found.append((info, self._idle.setdefault(mark, now)))
        return found

    def _grow(self, count: int, snapshot: Snapshot, now: float) -> None:
        if count <= 0 or now < self._retry_at:
            return
        settled = sum(snapshot.counts[state] for state in (State.FINISHED, State.FAILED))
        bad = [job for job in self.group.queue.jobs or () if job.state in FAILED]
        if settled > self._settled:
            self._retry = RETRY
        elif len(bad) > self._bad:
            self._back_off(
                f"Slurm job {bad[-1].id} ended with {bad[-1].state}, and no task was finished meanwhile", now
            )
            self._bad = len(bad)
            return
        try:
            submit(self.group.plan, self.group.file, count)
            self._settled, self._bad, self.note = settled, len(bad), ""
            self.group.queue.look()
        except LaunchError as error:
            self._back_off(str(error).partition(";")[0], now)

    def _back_off(self, why: str, now: float) -> None:
        """Submit no jobs for a while, each time for longer."""
        self._retry_at = now + self._retry
        self.note = f"{why}; next try in {duration(self._retry)}"
        self._retry = min(MAX_RETRY, 2 * self._retry)

    def _is_over(self) -> bool:
        request = self.group.plan.request
        sessions = any(alive and info.kind == "session" for info, alive, _ in self.store.processes())
        return not sessions and self.store.idle(request.options.target, request.python)


# -- what runs elsewhere -----------------------------------------------------------------------------------------------


def _job_id(environ: Mapping[str, str]) -> str:
    return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"


def time_left(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds until Slurm ends the job that this process is; None where it never does, or doesn't tell."""
    known = system.job_time_left(CLOCK.now(), environ)
    if known is not None:
        return known
    with suppress(LaunchError, ValueError):
        left = run("squeue", "-h", "-j", _job_id(environ), "-o", "%L").strip()  # SLURM_JOB_ID may be the whole array's
        days, _, clock = left.rpartition("-")
        seconds = 0
        for part in clock.split(":"):
            seconds = seconds * 60 + int(part)
        return int(days or 0) * 86400.0 + seconds
    return None


def _job(plan: Plan, file: Path) -> int:
    """Be the worker of one job. Its log goes where it has nothing to report."""
    job = _job_id(os.environ)
    options, left = plan.request.options, time_left()
    if left is not None:
        left = max(1.0, left - MARGIN)
        options = msgspec.structs.replace(options, max_time=min(left, options.max_time or left))
    request = msgspec.structs.replace(plan.request, crew=f"{plan.name}#{job}", place=f"Slurm {job}", options=options)
    status = supervise_job(request)
    log = file.parent / f"{job}.log"
    with suppress(OSError):
        if status == 0 and log.stat().st_size == 0:
            log.unlink()
    return status


def main(what: str, name: str) -> int:
    """Be a job or the scaler of the request in a file; return the exit status."""
    file = Path(name)
    try:
        plan = read_plan(file)
        if what == "job":
            return _job(plan, file)
        store = open_store(plan.request.url, known=plan.request.store)
        if store.id != plan.request.store:
            raise StoreError(f"there is another store now at {store.display_url}; start the jobs again")
        return Scaler(store, SlurmGroup(store, plan, file, CLOCK)).run()
    except (JugError, OSError, msgspec.MsgspecError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
