"""Folds facts into the picture: states, ready queue, counts. Pure: no IO, no time of its own.

House rules of this file:

* The picture depends on the *set* of facts folded, not on their order or repetition. So nothing here compares
  arrival times, and a fact about an unknown task waits on its card until the task's own fact comes.
* State is derived, in one place (`_derive`). Facts only change what it is derived from.
* What follows from a change flows along needs through a worklist, never by recursion: chains may be long.

A task that has no value of its own may take over another's: see `reuse`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence, Set
from hashlib import sha1
from itertools import compress
from typing import Any

import msgspec

from jug_notebook.model import (
    NO_INPUTS,
    Accepted,
    Claimed,
    Event,
    Forgotten,
    Invalidated,
    Invalidation,
    Key,
    Lease,
    Origin,
    Released,
    Request,
    Requested,
    Scope,
    Settled,
    State,
    Submitted,
    Target,
    Verdict,
    Why,
    WorkerId,
    WorkerLost,
)
from jug_notebook.scheduler.counts import Tallies
from jug_notebook.scheduler.packing import Outcome, Place, digest_of, has_value, is_of, of_digest
from jug_notebook.scheduler.queue import ReadyQueue
from jug_notebook.scheduler.records import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    NO_KIND,
    READY,
    REUSED,
    RUNNING,
    STATES,
    UNKNOWN,
    WAITING,
    Attempt,
    FunctionQueue,
    Offer,
    TaskRecord,
    current,
    heaviest,
    heaviest_record,
    is_bar,
    wished_by_any,
)
from jug_notebook.scheduler.reuse import Reuse, Standing, may_be_reused

_TURNS: dict[type, int] = {Requested: 0, Submitted: 1, Claimed: 3}  # of facts that come together


class SchedulerState:
    """All tasks of a store, as the facts folded so far have it. ``version`` rises with each fold."""

    def __init__(self) -> None:
        self.tasks: dict[Key, TaskRecord] = {}
        self.version = 0
        self.counter = 0  #: the highest counter of any wish
        self.queue = ReadyQueue()
        self._tallies = Tallies()
        self._notebooks: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._held: dict[WorkerId, set[TaskRecord]] = {}
        self.settled_by: dict[WorkerId, int] = {}  #: outcomes by worker
        self.ended_by: dict[WorkerId, float] = {}  #: when each worker's latest run ended, seconds since the epoch
        self._gone: set[WorkerId] = set()
        self._presumed: set[WorkerId] = set()
        self._failed: dict[TaskRecord, float] = {}  # and when that was
        self._work: deque[TaskRecord] = deque()
        self._sequence = 0
        self._invalidations: dict[Key, tuple[int, float, str, str]] = {}
        self._past: dict[Key, dict[tuple[Verdict, WorkerId], Any]] = {}  # runs that are not even sources any more
        self.forgotten: dict[Key, tuple[int, int]] = {}  #: counter and round up to which all is void
        self.moved: dict[Place, Place] | None = None  #: where bodies went whose facts came again, if anybody asks
        self._reuse = Reuse(self.tasks, self._work.extend)

    # -- folding -------------------------------------------------------------------------------------------------------

    def apply(self, event: Event, bodies: Sequence[Place] = ()) -> None:
        """Take in one fact. ``bodies`` says where the sealed bytes of each task of it are; it is kept, not read."""
        self._take(event, bodies)
        self._flow()

    def apply_all(self, said: Sequence[tuple[Event, Sequence[Place]]]) -> None:
        """Take in many at once: each task is derived once.

        Wishes first, so that tasks are counted where they belong, then tasks, so that what they came to finds them;
        claims last, for most have come to something.
        """
        for event, _ in said:
            if type(event) is Submitted:
                for key in event.keys:  # listed in the order in which they were submitted
                    self._card(key)
        for event, bodies in sorted(said, key=_turn):
            self._take(event, bodies)
        if len(self._work) > len(said):
            once = dict.fromkeys(self._work)
            self._work.clear()
            self._work.extend(once)
        self._flow()

    def _take(self, event: Event, bodies: Sequence[Place]) -> None:
        self.version += 1
        if self.forgotten:
            event, bodies = self._not_forgotten(event, bodies)
        if type(event) is Settled:
            for verdict, body in zip(event.verdicts, bodies, strict=True):
                self._settled(verdict, body, event.worker)
        elif type(event) is Claimed:
            for lease in event.leases:
                self._claimed(lease, event.worker)
        elif type(event) is Submitted:
            self._submitted(event, bodies)
        elif type(event) is Requested:
            self._wished(event)
        elif type(event) is Invalidated:
            for index, (key, from_round) in enumerate(zip(event.keys, event.from_rounds, strict=True)):
                inputs = event.inputs[index] if index < len(event.inputs) else b""
                self._invalidated(self._card(key), from_round, event.why, inputs)
                said = (from_round, event.at, event.user, event.why.value)
                self._invalidations[key] = max(self._invalidations.get(key, said), said)
        elif type(event) is Accepted:
            self.counter = max(self.counter, event.counter)
            self._work.extend(map(self._card, event.keys))
            self._reuse.accept(event, bodies)
        elif type(event) is Released:
            for lease in event.leases:
                task = self._card(lease.key)
                self._attempt(task, lease).over = True
                self._work.append(task)
        elif type(event) is WorkerLost:
            self._gone.add(event.worker)
            self._work.extend(self._held.pop(event.worker, ()))
        elif type(event) is Forgotten:
            self.counter = max(self.counter, event.counter)
            self._forget(event)

    def presume(self, worker: WorkerId, dead: bool) -> None:
        """Treat a worker's claims as void, or as valid again. An observation of this reader, not a fact for all."""
        if dead == (worker in self._presumed):
            return
        (self._presumed.add if dead else self._presumed.discard)(worker)
        self.version += 1
        self._work.extend(self._held.get(worker, ()))
        self._flow()

    def all_presumed(self, workers: Set[WorkerId]) -> bool:
        """Are all of these presumed dead already?"""
        return workers <= self._presumed

    def _card(self, key: Key) -> TaskRecord:
        task = self.tasks.get(key)
        if task is None:
            task = self.tasks[key] = TaskRecord(key)
            if key in self.forgotten:
                task.round = self.forgotten[key][1] + 1
        return task

    def _submitted(self, event: Submitted, bodies: Sequence[Place]) -> None:
        kind = self.queue.kind(event.name, event.priority, event.python)
        tasks, counter = self.tasks, event.counter
        for key, needs, form, body in zip(event.keys, event.needs, event.forms, bodies, strict=True):
            task = tasks.get(key) or self._card(key)
            if counter > task.since:
                task.since = counter
            if task.state != UNKNOWN:
                if self.moved is not None:
                    self.moved[task.spec] = body
                task.lies(task.seq, body)
                continue
            task.kind = kind
            task.form = form if needs else b""  # without needs, no other's run stands for it by its form
            self._sequence += 1
            task.lies(self._sequence, body)
            task.state = CANCELLED
            if needs:
                task.needs = tuple(map(self._card, needs))
            for need in task.needs:
                if isinstance(need.dependents, list):
                    need.dependents.append(task)
                else:
                    need.dependents = [task]
                task.missing += not need.value_digest
                task.blocking += need.state in (FAILED, BLOCKED)
                self._spread(need, task.notebooks)
                if task.wanted:
                    need.wanters += 1
                    self._work.append(need)
            if needs:
                self._weigh_inputs(task)
            else:
                task.inputs = NO_INPUTS
            for verdict, _, _ in task.outcomes if task.records else ():
                if verdict.digest:
                    kind.done += 1
                    kind.spent += verdict.duration
                    if verdict.inputs != NO_INPUTS:
                        self._reuse.ran(task, verdict)
            if task.direct >= 0:
                self._reuse.submitted(task)
            self._tallies.count(task)
            self._work.append(task)

    def _wished(self, event: Requested) -> None:
        origin, counter, wanted = event.request.origin, event.request.counter, event.request.wanted
        self.counter = max(self.counter, counter)
        alone = ((origin, counter, wanted),)  # shared by all
        notebooks: tuple[str, ...] = (origin.notebook,)
        notebooks = self._notebooks.setdefault(notebooks, notebooks)
        tasks = self.tasks
        for key in event.keys:
            task = tasks.get(key) or self._card(key)
            if not task.requests:
                task.requests = alone
            else:
                for request in task.requests:
                    if request[0] == origin:
                        if (counter, wanted) > request[1:]:
                            task.requests = (*(w for w in task.requests if w is not request), *alone)
                        break
                else:
                    task.requests += alone
            if not task.notebooks and task.state == UNKNOWN:
                task.notebooks = notebooks
            elif task.notebooks is not notebooks:
                self._spread(task, notebooks)
            self._work.append(task)

    def _spread(self, task: TaskRecord, notebooks: tuple[str, ...]) -> None:
        """Tasks belong to a notebook that ever wished them, and so do those they need."""
        below = [task]
        while below:
            task = below.pop()
            if not set(notebooks) <= set(task.notebooks):
                told = tuple(sorted({*task.notebooks, *notebooks}))
                task.notebooks = self._notebooks.setdefault(told, told)
                if task.state != UNKNOWN:
                    self._tallies.count(task)
                below.extend(task.needs)

    def _claimed(self, lease: Lease, worker: WorkerId) -> None:
        task = self.tasks.get(lease.key) or self._card(lease.key)
        records = task.records
        if isinstance(records, bytes):
            if records and is_of(records, lease):
                return
        elif any(is_of(one, lease) for one in records):
            return
        self._attempt(task, lease).worker = worker
        if worker not in self._gone:
            self._held.setdefault(worker, set()).add(task)
        self._work.append(task)

    def _attempt(self, task: TaskRecord, lease: Lease) -> Attempt:
        if task.attempts is None:
            task.attempts = []
        for attempt in task.attempts:
            if attempt.attempt == lease.attempt and attempt.round == lease.round and attempt.inputs == lease.inputs:
                return attempt
        task.attempts.append(Attempt(lease.round, lease.inputs, lease.attempt))
        return task.attempts[-1]

    def _settled(self, verdict: Verdict, body: Place, worker: WorkerId) -> None:
        task = self.tasks.get(verdict.key) or self._card(verdict.key)
        if task.records:
            for known in task.outcomes:
                if known[0] == verdict and known[2] == worker:
                    self._move(task, known, body)
                    return
        if task.attempts is not None:
            self._attempt_ended(task, verdict)
        ended = verdict.started + verdict.duration
        if ended > self.ended_by.get(worker, 0.0):
            self.ended_by[worker] = ended
        if verdict.round < task.round and not may_be_reused(verdict):
            self._past.setdefault(task.key, {})[verdict, worker] = body
            return
        task.came_to(verdict, body, worker)
        if verdict.digest and task.state != UNKNOWN:
            task.kind.done += 1
            task.kind.spent += verdict.duration
            if verdict.inputs != NO_INPUTS:
                self._reuse.ran(task, verdict)
        if self._reuse.accepts:
            self._reuse.settled(task)
        self.settled_by[worker] = self.settled_by.get(worker, 0) + 1
        if verdict.round > task.round:
            self._new_round(task, verdict.round)
        else:
            self._work.append(task)

    def _attempt_ended(self, task: TaskRecord, verdict: Verdict) -> None:
        attempts = task.attempts or []
        for attempt in attempts:
            if (
                attempt.attempt == verdict.attempt
                and attempt.round == verdict.round
                and attempt.inputs == verdict.inputs
            ):
                attempts.remove(attempt)
                held = self._held.get(attempt.worker)
                if held is not None and not any(other.worker == attempt.worker for other in attempts):
                    held.discard(task)
                break
        task.attempts = attempts or None

    def _move(self, task: TaskRecord, known: Outcome, body: Place) -> None:
        """A fact came again from elsewhere: its body is there from now on, and where it was it may go."""
        if self.moved is not None:
            self.moved[known[1]] = body
        here = (known[0], body, known[2])
        task.outcomes = [here if outcome == known else outcome for outcome in task.outcomes]
        if task.value_digest:
            self._work.append(task)
        self._reuse.moved(task, known[0])

    def _new_round(self, task: TaskRecord, round: int) -> None:
        if round > task.round:
            task.round = round
            outcomes = task.outcomes
            kept = [o for o in outcomes if o[0].round >= round or may_be_reused(o[0])]
            if len(kept) < len(outcomes):
                past = self._past.setdefault(task.key, {})
                past.update({(verdict, worker): body for verdict, body, worker in outcomes if verdict.round < round})
                for verdict, _, worker in kept:
                    past.pop((verdict, worker), None)
            task.outcomes = kept
        self._work.append(task)

    def _invalidated(self, task: TaskRecord, from_round: int, why: Why, inputs: bytes) -> None:
        if why is Why.DIRECT:
            task.marks = (max(task.direct, from_round), task.lost)
        elif why is Why.LOST:
            task.marks = (task.direct, max(task.lost, from_round))
        self._new_round(task, from_round + 1)
        self._reuse.invalidated(task, why, inputs, known=task.state != UNKNOWN)

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def _not_forgotten(self, event: Event, bodies: Sequence[Place]) -> tuple[Event, Sequence[Any]]:
        """What is left of a fact without what was said of tasks before they were forgotten."""
        if isinstance(event, WorkerLost | Forgotten):
            return event, bodies
        void = self.forgotten
        stays: list[bool]
        if isinstance(event, Submitted | Requested | Accepted):
            counter = event.request.counter if isinstance(event, Requested) else event.counter
            stays = [key not in void or counter > void[key][0] for key in event.keys]
        elif isinstance(event, Invalidated):
            rows = zip(event.keys, event.from_rounds, strict=True)
            stays = [key not in void or round > void[key][1] for key, round in rows]
        else:
            leases = event.verdicts if isinstance(event, Settled) else event.leases
            stays = [one.key not in void or one.round > void[one.key][1] for one in leases]
        if all(stays):
            return event, bodies
        return part_of(event, stays), list(compress(bodies, stays))

    def _forget(self, event: Forgotten) -> None:
        gone: list[TaskRecord] = []
        stays: list[TaskRecord] = []
        for key, round in zip(event.keys, event.rounds, strict=True):
            before = self.forgotten.get(key, (-1, -1))
            counter, round = self.forgotten[key] = max(before[0], event.counter), max(before[1], round)
            task = self.tasks.get(key)
            if task is None:
                continue
            self._invalidations.pop(key, None)
            self._past.pop(key, None)
            self._reuse.forget(task, counter, round)
            for attempt in task.attempts or ():
                if attempt.round <= round and (held := self._held.get(attempt.worker)) is not None:
                    held.discard(task)
            task.attempts = [one for one in task.attempts or () if one.round > round] or None
            for verdict, _, _ in task.outcomes:
                if verdict.round <= round and verdict.digest and task.state != UNKNOWN:
                    task.kind.done -= 1
                    task.kind.spent -= verdict.duration
            task.outcomes = [outcome for outcome in task.outcomes if outcome[0].round > round]
            task.requests = tuple(request for request in task.requests if request[1] > counter)
            task.round = max(task.round, round + 1)
            task.marks = (task.direct if task.direct > round else -1, task.lost if task.lost > round else -1)
            if task.state != UNKNOWN and task.since <= counter:
                gone.append(task)
            else:
                self._work.append(task)
                stays.append(task)
        self._withdraw(gone)
        self._gather(stays)
        for task in gone:
            if not (task.dependents or task.requests or task.records or task.attempts):
                del self.tasks[task.key]

    def _withdraw(self, gone: Sequence[TaskRecord]) -> None:
        """These cards are of tasks that nobody has submitted."""
        going, needs = set(gone), {need for task in gone for need in task.needs}
        for need in needs:
            need.dependents = [above for above in need.dependents if above not in going]
        for task in gone:
            self._failed.pop(task, None)
            blocked = task.state in (FAILED, BLOCKED)
            if task.tally is not None:
                task.tally[task.tallied] -= 1
            for need in task.needs:
                need.wanters -= task.wanted
                self._work.append(need)
            for above in task.dependents:
                above.missing += bool(task.value_digest)
                above.blocking -= blocked
                self._weigh_inputs(above)
                self._work.append(above)
            task.state, task.kind, task.tally, task.tallied = UNKNOWN, NO_KIND, None, 0
            task.needs, task.form, task.location, task.inputs, task.value_digest, task.reused_from = (
                (),
                b"",
                0,
                None,
                b"",
                None,
            )
            task.since = task.missing = task.blocking = 0
            task.queued = False
            self._work.append(task)
        self._gather([*gone, *needs])

    def _gather(self, below: list[TaskRecord]) -> None:
        """Tell again to which notebooks these tasks belong, and those they need."""
        while below:
            task = below.pop()
            notebooks = {origin.notebook for origin, _, _ in task.requests}
            told = tuple(sorted(notebooks.union(*(above.notebooks for above in task.dependents))))
            if told != task.notebooks:
                task.notebooks = self._notebooks.setdefault(told, told)
                if task.state != UNKNOWN:
                    self._tallies.count(task)
                below.extend(task.needs)

    # -- deriving ------------------------------------------------------------------------------------------------------

    def _flow(self) -> None:
        work = self._work
        stale: set[FunctionQueue] = set()
        while work:
            task = work.popleft()
            requests = task.requests
            wanted = task.wanters > 0 or (requests[0][2] if len(requests) == 1 else wished_by_any(requests))
            if wanted != task.wanted:  # it flows to what it needs
                task.wanted = wanted
                for need in task.needs:
                    need.wanters += 1 if wanted else -1
                    work.append(need)
            if task.state == UNKNOWN:
                continue
            state, value_digest = self._derive(task)
            if value_digest != task.value_digest:
                gained, lost = value_digest and not task.value_digest, task.value_digest and not value_digest
                task.value_digest = value_digest
                for above in task.dependents:
                    above.missing += 1 if lost else -1 if gained else 0
                    self._weigh_inputs(above)
                    work.append(above)
            if state != task.state:
                if task.state == FAILED:
                    del self._failed[task]
                elif state == FAILED:
                    held = heaviest(task)
                    self._failed[task] = 0.0 if held is None else held[0].started + held[0].duration
                if task.state == READY and task.queued and self.queue.leaves(task):
                    stale.add(task.kind)
                was, now = task.state in (FAILED, BLOCKED), state in (FAILED, BLOCKED)
                task.state = state
                if was != now:
                    for above in task.dependents:
                        above.blocking += 1 if now else -1
                        work.append(above)
            if state == READY and not task.queued:
                self.queue.put(task)
            tallied = state
            if state == FINISHED and (not task.wanted or task.reused_from is not None):
                tallied = REUSED if task.wanted else CANCELLED
            if tallied != task.tallied and task.tally is not None:
                task.tally[task.tallied] -= 1
                task.tally[tallied] += 1
                task.tallied = tallied
        self.queue.freshen(stale)

    def _derive(self, task: TaskRecord) -> tuple[int, bytes]:
        """The one place that says what state a task is in, and what value it has."""
        inputs = task.inputs
        task.reused_from = None
        if inputs is not None:
            held = heaviest_record(task, inputs)
            if held and has_value(held):
                return FINISHED, held
            if not held and self.runner(task):
                return RUNNING, b""
            if task.needs or self._reuse.accepts:
                task.reused_from = self._reuse.stands_for(task)
                if task.reused_from is not None:
                    return FINISHED, of_digest(task.reused_from[0].digest)
            if held and task.wanted:
                return FAILED, b""
        if not task.wanted:
            return CANCELLED, b""
        if task.blocking:
            return BLOCKED, b""
        return (WAITING, b"") if inputs is None else (READY, b"")

    def runner(self, task: TaskRecord) -> WorkerId:
        """Who holds the latest attempt at what the task is now; empty where nobody live does."""
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
        if latest is None or latest.over or latest.worker in self._gone or latest.worker in self._presumed:
            return ""
        if not task.records:
            return latest.worker
        settled = max((v.attempt for v in current(task)), default=0)
        return "" if settled > latest.attempt else latest.worker

    @staticmethod
    def _weigh_inputs(task: TaskRecord) -> None:
        if task.missing:
            task.inputs = None
        elif task.needs:
            task.inputs = sha1(b"".join([digest_of(need.value_digest) for need in task.needs])).digest()
        else:
            task.inputs = NO_INPUTS

    # -- the ready queue -----------------------------------------------------------------------------------------------

    def ready(self, limit: int, now: float, target: Target | None = None, python: str = "") -> list[Offer]:
        """Take up to ``limit`` ready tasks off the queue, best first.

        Each must then be claimed (fold `Claimed`) or given back (``queue.back``).
        """
        return self.queue.take(limit, now, self._allowed(target), python)

    def _allowed(self, target: Target | None) -> set[Key] | None:
        """The keys a target means, with all they need; None for all tasks."""
        if target is None:
            return None
        below = [task for task in self.tasks.values() if task.key in target.keys or task.kind.name in target.names]
        found: set[Key] = set()
        while below:
            task = below.pop()
            if task.key not in found:
                found.add(task.key)
                below.extend(task.needs)
        return found

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        """True where nothing is ready or running that a worker of this ``python`` could run or wait for."""
        if target is None:
            return self._tallies.none_open(python)
        allowed = self._allowed(target)
        return not any(c.state in (READY, RUNNING) for c in self.tasks.values() if allowed and c.key in allowed)

    def foreign(self, python: str) -> dict[str, int]:
        """Ready tasks that a worker of this ``python`` must leave alone, by the python they want."""
        return self._tallies.foreign(python)

    # -- looking -------------------------------------------------------------------------------------------------------

    def state(self, key: Key) -> State | None:
        """None for a task that was never submitted."""
        task = self.tasks.get(key)
        return None if task is None or task.state == UNKNOWN else STATES[task.state]

    def held(self, key: Key) -> Outcome | None:
        """The outcome that holds now: verdict, where its body is, whose it is. An alias has another task's verdict."""
        task = self.tasks.get(key)
        return None if task is None or task.inputs is None else task.reused_from or heaviest(task)

    def runs(self, scope: Scope = Scope()) -> Iterator[tuple[TaskRecord, Outcome]]:
        """All attempts that came to something, of former rounds too."""
        for task in self.listing(scope):
            for outcome in task.outcomes:
                yield task, outcome
            for (verdict, worker), body in self._past.get(task.key, {}).items():
                yield task, (verdict, body, worker)

    def running_of(self, worker: WorkerId) -> TaskRecord | None:
        """The task that a worker runs, or the first of those it will run next."""
        tasks = [task for task in self._held.get(worker, ()) if self.runner(task) == worker]
        return min(tasks, key=lambda task: task.seq, default=None)

    def invalidation(self, key: Key) -> Invalidation | None:
        """Who began the round that the task is in; None where it is in its first."""
        task, said = self.tasks.get(key), self._invalidations.get(key)
        if task is None or said is None or said[0] + 1 != task.round:
            return None
        return Invalidation(said[0], said[1], said[2], Why(said[3]))

    def holders(self) -> list[WorkerId]:
        """Workers with open attempts."""
        return [worker for worker, tasks in self._held.items() if tasks]

    def blocking_task(self, key: Key) -> Key | None:
        """The failed task that, through whatever chain of needs, blocks this one."""
        task = self.tasks.get(key)
        while task is not None and task.state == BLOCKED:
            task = next((need for need in task.needs if need.state in (FAILED, BLOCKED)), None)
        return task.key if task is not None and task.state == FAILED else None

    def requested(self, origin: Origin) -> list[Key]:
        """What this very origin wants now."""
        return [
            key
            for key, task in self.tasks.items()
            if task.requests and wished_by_any(tuple(w for w in task.requests if w[0] == origin or is_bar(w, origin)))
        ]

    def origins(self) -> list[Origin]:
        """Who wants something now."""
        found: dict[Origin, None] = {}
        for requests in {task.requests for task in self.tasks.values()}:
            for origin, _, wanted in requests:
                if wanted and wished_by_any(tuple(w for w in requests if w[0] == origin or is_bar(w, origin))):
                    found[origin] = None
        return list(found)

    def request(self, origin: Origin, wanted: bool) -> Request:
        """A wish that outweighs all seen so far."""
        return Request(origin, self.counter + 1, wanted)

    def needed_wishes(self, keys: Sequence[Key], origin: Origin) -> list[Key]:
        """Those of ``keys`` for which this origin's wish does not stand yet."""
        current_inputs = []
        for key in keys:
            task = self.tasks.get(key)
            if task is None or not wished_by_any(
                tuple(w for w in task.requests if w[0] == origin or is_bar(w, origin))
            ):
                current_inputs.append(key)
        return current_inputs

    def counts(self, scope: Scope = Scope()) -> dict[str, tuple[list[int], float | None]]:
        """By function, in the order they were first seen: tasks by state (indexes of `STATES`) and mean seconds."""
        return self._tallies.by_function(list(self.queue.kinds.values()), scope)

    def reused(self, scope: Scope = Scope()) -> dict[str, int]:
        """By function: how many of the finished tasks took over their value."""
        return self._tallies.reused(scope)

    def edges(self, scope: Scope = Scope()) -> dict[tuple[str, str], int]:
        """How many needs tasks of one function have of another's, by (function, needed function), as first seen.

        Tasks that nobody wants any more are left out, as they are in a picture.
        """
        found: dict[tuple[str, str], int] = {}
        for task in self.tasks.values():
            wanted = task.needs and task.tallied != CANCELLED
            if wanted and (scope.notebook is None or scope.notebook in task.notebooks):
                name = task.kind.name
                for need in task.needs:
                    if need.state != UNKNOWN:
                        pair = (name, need.kind.name)
                        found[pair] = found.get(pair, 0) + 1
        return found

    def acceptances(self) -> set[Place]:
        """Where the sealed acceptances are that may still count."""
        return self._reuse.places()

    def accepted(self, key: Key) -> Standing | None:
        """The acceptance that stands for what a task is now, whether or not it needs one."""
        return self._reuse.accepted(key)

    def listing(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None
    ) -> Iterator[TaskRecord]:
        """Submitted tasks in order of submission."""
        code = None if state is None else STATES.index(state)
        for task in self.tasks.values():
            if (
                task.state != UNKNOWN
                and (code is None or task.state == code)
                and (scope.notebook is None or scope.notebook in task.notebooks)
                and (target is None or task.key in target.keys or task.kind.name in target.names)
            ):
                yield task

    def drop_past(self) -> bool:
        """Know no more of attempts that are not even sources; False where there were none."""
        some = bool(self._past)
        self._past.clear()
        return some

    def failed(self, scope: Scope = Scope(), limit: int = 0) -> list[TaskRecord]:
        """The tasks that failed, the latest first. Costs what failed, not what there is."""
        tasks = [
            (ended, task)
            for task, ended in self._failed.items()
            if scope.notebook is None or scope.notebook in task.notebooks
        ]
        latest = heapq.nlargest(limit, tasks, key=_when) if limit else sorted(tasks, key=_when, reverse=True)
        return [task for _, task in latest]


def _turn(said: tuple[Event, Sequence[Place]]) -> int:
    return _TURNS.get(type(said[0]), 2)


def _when(failed: tuple[float, TaskRecord]) -> tuple[float, Key]:
    return failed[0], failed[1].key


def part_of(event: Event, stays: Sequence[bool]) -> Event:
    """A fact about some of its tasks alone."""
    columns = {}
    for name in event.__struct_fields__:
        column = getattr(event, name)
        if isinstance(column, list) and column:
            columns[name] = list(compress(column, stays))
    return msgspec.structs.replace(event, **columns)
