"""Attempts at tasks: who holds the open ones (leases), and what became of those of earlier rounds (history)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Set
from typing import Any

from jug_notebook.model import Invalidated, Invalidation, Key, Lease, Verdict, Why, WorkerId
from jug_notebook.scheduler.records import Attempt, Outcome, Place, TaskRecord, current, is_outcome_of
from jug_notebook.scheduler.reuse import may_be_reused


class Leases:
    """The open attempts by worker, and which workers are lost or presumed dead."""

    def __init__(self) -> None:
        self._tasks: dict[WorkerId, set[TaskRecord]] = {}
        self.reported: set[WorkerId] = set()  #: workers whose end was reported by their supervisors
        self._lost: set[WorkerId] = set()
        self._presumed_dead: set[WorkerId] = set()
        self._found: deque[tuple[float, TaskRecord, Lease]] = deque()

    def claimed(self, task: TaskRecord, lease: Lease, worker: WorkerId) -> bool:
        """Record a claim. Return False if the outcome of that attempt is known already."""
        if _has_outcome(task, lease):
            return False
        attempt = _attempt(task, lease)
        if attempt.owner:
            self._disown(task, attempt)
        attempt.worker = max(attempt.worker, worker)  # stores grant an attempt once; else no order of events may decide
        if worker not in self._lost:
            self._tasks.setdefault(worker, set()).add(task)
        return True

    def found(self, task: TaskRecord, lease: Lease, owner: WorkerId, now: float) -> list[TaskRecord]:
        """Record who has an attempt by the store's claims, which anyone may have written: see `doubt`."""
        if _has_outcome(task, lease):
            return []
        attempt = _attempt(task, lease)
        if not (attempt.worker or attempt.owner or attempt.released):
            attempt.owner = owner
            self._found.append((now, task, lease))
            self._tasks.setdefault(owner, set()).add(task)
        return [task]

    def doubt(self, before: float) -> list[TaskRecord]:
        """Free the attempts found before that time of which no event has told since. Return their tasks."""
        freed = []
        while self._found and self._found[0][0] < before:
            _, task, lease = self._found.popleft()
            for attempt in task.attempts or ():
                if attempt.owner and _is_of(attempt, lease):
                    self._disown(task, attempt)
                    freed.append(task)
        return freed

    def _disown(self, task: TaskRecord, attempt: Attempt) -> None:
        owner, attempt.owner = attempt.owner, ""
        self._let_go(task, owner)

    def _let_go(self, task: TaskRecord, worker: WorkerId) -> None:
        """Note that an attempt of this worker's at the task is over, maybe its last one."""
        tasks = self._tasks.get(worker)
        if tasks is not None and not any(worker in (other.worker, other.owner) for other in task.attempts or ()):
            tasks.discard(task)

    def released(self, task: TaskRecord, lease: Lease) -> None:
        """The worker gave the claim back."""
        _attempt(task, lease).released = True

    def settled(self, task: TaskRecord, verdict: Lease | Verdict) -> None:
        """Close the attempt that this verdict is about."""
        attempts = task.attempts or []
        for attempt in attempts:
            if _is_of(attempt, verdict):
                attempts.remove(attempt)
                self._let_go(task, attempt.worker or attempt.owner)
                break
        task.attempts = attempts or None

    def forget(self, task: TaskRecord, round: int) -> None:
        """Drop a task's attempts up to ``round``."""
        for attempt in task.attempts or ():
            if attempt.round <= round and (tasks := self._tasks.get(attempt.worker or attempt.owner)) is not None:
                tasks.discard(task)
        task.attempts = [attempt for attempt in task.attempts or () if attempt.round > round] or None

    def worker_lost(self, worker: WorkerId, found: bool = False) -> Set[TaskRecord]:
        """A worker has ended for good. Return the tasks it held. ``found``: that wasn't reported by its supervisor."""
        self._lost.add(worker)
        if not found:
            self.reported.add(worker)
        return self._tasks.pop(worker, set())

    def presume(self, worker: WorkerId, dead: bool) -> Set[TaskRecord]:
        """Treat a worker as dead, or as alive again. Return the tasks it holds, if that is a change."""
        if dead == (worker in self._presumed_dead):
            return set()
        (self._presumed_dead.add if dead else self._presumed_dead.discard)(worker)
        return self._tasks.get(worker, set())

    def lives(self, worker: WorkerId) -> bool:
        """Return whether a worker is neither lost nor presumed dead; of an empty name, False."""
        return bool(worker) and worker not in self._lost and worker not in self._presumed_dead

    def all_presumed_dead(self, workers: Set[WorkerId]) -> bool:
        return workers <= self._presumed_dead

    def holder(self, task: TaskRecord) -> WorkerId:
        """Return who holds the latest attempt at this round and these inputs; empty if no live worker does."""
        if task.attempts is None:
            return ""
        latest: Attempt | None = None
        for attempt in task.attempts:
            if (
                attempt.round == task.round
                and attempt.inputs == task.inputs
                and (latest is None or attempt.attempt > latest.attempt)
            ):
                latest = attempt
        if latest is None or latest.released:
            return ""
        worker = latest.worker or latest.owner
        if worker in self._lost or worker in self._presumed_dead:
            return ""
        if not task.records:
            return worker
        settled = max((verdict.attempt for verdict in current(task)), default=0)
        return "" if settled > latest.attempt else worker

    def worker_of(self, task: TaskRecord | None, lease: Lease) -> WorkerId:
        """Return who has this attempt, dead or alive; empty if it is over or was given back, or its worker is lost."""
        for attempt in (task.attempts if task is not None else None) or ():
            if _is_of(attempt, lease):
                worker = attempt.worker or attempt.owner
                return "" if attempt.released or worker in self._lost else worker
        return ""

    def is_held(self, task: TaskRecord | None, lease: Lease) -> bool:
        """Return True if a live worker has this attempt."""
        worker = self.worker_of(task, lease)
        return bool(worker) and worker not in self._presumed_dead

    def workers(self) -> list[WorkerId]:
        """Return the workers with open attempts."""
        return [worker for worker, tasks in self._tasks.items() if tasks]

    def task_of(self, worker: WorkerId) -> TaskRecord | None:
        """Return the task that a worker runs, or the first of those it will run next."""
        tasks = [task for task in self._tasks.get(worker, ()) if task.state >= 0 and self.holder(task) == worker]
        return min(tasks, key=lambda task: task.seq, default=None)


def _attempt(task: TaskRecord, lease: Lease) -> Attempt:
    """Return the open attempt of that lease, a new one if there is none."""
    if task.attempts is None:
        task.attempts = []
    for attempt in task.attempts:
        if _is_of(attempt, lease):
            return attempt
    task.attempts.append(Attempt(lease.round, lease.inputs, lease.attempt))
    return task.attempts[-1]


def _has_outcome(task: TaskRecord, lease: Lease) -> bool:
    records = task.records
    if isinstance(records, bytes):
        return bool(records) and is_outcome_of(records, lease)
    return any(is_outcome_of(record, lease) for record in records)


def _is_of(attempt: Attempt, lease: Lease | Verdict) -> bool:
    return attempt.attempt == lease.attempt and attempt.round == lease.round and attempt.inputs == lease.inputs


class History:
    """Outcomes of earlier rounds that can't be reused, and who began the current rounds."""

    def __init__(self) -> None:
        self._past: dict[Key, dict[tuple[Verdict, WorkerId], Place]] = {}
        self._invalidations: dict[Key, tuple[int, float, str, str]] = {}  # from round, at, user, why

    def add(self, verdict: Verdict, place: Place, worker: WorkerId) -> None:
        self._past.setdefault(verdict.key, {})[verdict, worker] = place

    def begin_round(self, task: TaskRecord, round: int) -> None:
        """Begin a later round of a task: its outcomes so far move here, except those that others may reuse."""
        task.round = round
        outcomes = task.outcomes
        kept = [o for o in outcomes if o[0].round >= round or may_be_reused(o[0])]
        if len(kept) < len(outcomes):
            past = self._past.setdefault(task.key, {})
            past.update({(verdict, worker): place for verdict, place, worker in outcomes if verdict.round < round})
            for verdict, _, worker in kept:
                past.pop((verdict, worker), None)
        task.outcomes = kept

    def invalidated(self, key: Key, from_round: int, event: Invalidated) -> None:
        """Keep the invalidation of the latest round."""
        row = (from_round, event.at, event.user, event.why.value)
        self._invalidations[key] = max(self._invalidations.get(key, row), row)

    def forget(self, key: Key, round: int) -> None:
        """Forget what is known of the rounds up to this one: a later one may have been learnt of before."""
        if key in self._invalidations and self._invalidations[key][0] <= round:
            del self._invalidations[key]
        past = self._past.pop(key, {})
        if later := {run: place for run, place in past.items() if run[0].round > round}:
            self._past[key] = later

    def known(self) -> Set[Key]:
        """Return the tasks of which earlier rounds are known."""
        return self._past.keys() | self._invalidations.keys()

    def past(self, key: Key) -> Iterator[Outcome]:
        for (verdict, worker), place in self._past.get(key, {}).items():
            yield verdict, place, worker

    def drop_past(self) -> bool:
        """Drop the outcomes of earlier rounds. Return False if there were none."""
        found = bool(self._past)
        self._past.clear()
        return found

    def invalidation(self, task: TaskRecord) -> Invalidation | None:
        """Return who began the round that the task is in; None if it is in its first."""
        row: Any = self._invalidations.get(task.key)
        if row is None or row[0] + 1 != task.round:
            return None
        return Invalidation(row[0], row[1], row[2], Why(row[3]))
