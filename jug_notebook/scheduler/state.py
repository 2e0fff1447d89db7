"""The scheduler state: applies events, and derives from them each task's state, the ready queue and the counts.

Pure: no disk, no network, no clock of its own. The rules of this file:

* The state depends on the *set* of events applied, not on their order or repetition. So nothing here compares arrival
  times, and an event about an unknown task is kept in the task's record until the task itself is submitted.
* What a task's state is, is derived in one place (`_derive`). Events only change what it is derived from.
* A change reaches the tasks that depend on it through a worklist, never by recursion: chains of tasks may be long.

A task that has no value of its own may reuse another task's run: see `reuse`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence, Set
from hashlib import sha1
from itertools import compress
from typing import TypeVar

import msgspec

from jug_notebook.model import (
    NO_INPUTS,
    Accepted,
    Claimed,
    Event,
    Fits,
    Forgotten,
    Invalidated,
    Key,
    Released,
    Requested,
    Scope,
    Settled,
    Started,
    State,
    Submitted,
    Target,
    Verdict,
    Why,
    WorkerId,
    WorkerLost,
)
from jug_notebook.scheduler.attempts import History, Leases
from jug_notebook.scheduler.limits import Limits
from jug_notebook.scheduler.queries import CountRow, Notebooks, TaskCounts, is_narrow, keys_of_target, listing
from jug_notebook.scheduler.queue import ReadyQueue
from jug_notebook.scheduler.records import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    KEPT,
    NO_QUEUE,
    READY,
    REUSED,
    RUNNING,
    STATES,
    UNKNOWN,
    WAITING,
    FunctionQueue,
    Offer,
    Outcome,
    Place,
    TaskRecord,
    derived_outcome,
    digest_of,
    has_value,
    is_wanted,
    own_outcome,
    own_record,
    value_only,
)
from jug_notebook.scheduler.reuse import Reuse, may_be_reused
from jug_notebook.scheduler.table import TaskTable, by_number

TOGETHER = 2000  #: finished tasks that are packed at once
_ALL = Target()
_FAILING = frozenset((FAILED, BLOCKED))

E = TypeVar("E", bound=Event)
_ORDER: dict[type, int] = {Requested: 0, Submitted: 1, Claimed: 3}  # of events applied together; 2 for all others


class SchedulerState:
    """All tasks of a store, as the events applied so far have it. ``version`` rises with each event."""

    def __init__(self) -> None:
        self.tasks = TaskTable()
        self.version = 0
        self.counter = 0  #: the highest counter of any request, or of submissions that differ in priority or resources
        self.leases = Leases()
        self.queue = ReadyQueue(self.leases.reported, self.tasks)
        self.history = History()
        self.settled_by: dict[WorkerId, int] = {}  #: number of outcomes by worker
        self.ended_by: dict[WorkerId, float] = {}  #: when each worker's latest run ended, seconds since the epoch
        self.resubmitted: set[Key] = set()  #: tasks of which two submissions differ in priority or resources
        self.forgotten: dict[Key, tuple[int, int]] = {}  #: counter and round up to which events about a task are void
        self.moved: dict[Place, Place] | None = None  #: filled with the new places of bodies, unless it is None
        self.counts = TaskCounts(self.queue.queues)
        self.limits = self.queue.limits = Limits(self.tasks, self.leases, self.counts)
        self._notebooks = Notebooks(self.counts)
        self.failed: dict[TaskRecord, float] = {}  #: and when each did, seconds since the epoch
        self._work: deque[TaskRecord] = deque()
        self._sequence = 0
        self.reuse = Reuse(self.tasks, self._work.extend)

    @classmethod
    def counted(cls, rows: Sequence[CountRow]) -> SchedulerState:
        """Return a state that knows only how many tasks there are, from another's ``counts.rows()``."""
        state = cls()
        for row in rows:
            state.counts.restore(state.queue.of_function(*row[:4]), row)
        return state

    # -- applying events -----------------------------------------------------------------------------------------------

    def apply(self, event: Event, bodies: Sequence[Place] = ()) -> None:
        """Apply one event. ``bodies`` are the places of the sealed bytes, one for each task in it."""
        self._take(event, bodies)
        self._flow()

    def apply_all(self, events: Sequence[tuple[Event, Sequence[Place]]], more: bool = False) -> None:
        """Apply many events at once, so that each task is derived only once: with ``more`` to come, not yet.

        Requests come first, so that tasks are counted where they belong; claims last, for most have an outcome then.
        """
        for event, _ in events:
            if type(event) is Submitted:
                for key in event.keys:  # `tasks` lists them in the order in which they were submitted
                    self._record(key)
        for event, bodies in sorted(events, key=lambda pair: _ORDER.get(type(pair[0]), 2)):
            self._take(event, bodies)
        if more:
            return
        if len(self._work) > len(events):
            once = dict.fromkeys(self._work)
            self._work.clear()
            self._work.extend(once)
        self._flow()

    def _take(self, event: Event, bodies: Sequence[Place]) -> None:
        self.version += 1
        if self.forgotten:
            event, bodies = without_forgotten(event, bodies, self.forgotten)
        if type(event) is Settled:
            worker = event.worker
            count = sum([self._settled(one, body, worker) for one, body in zip(event.verdicts, bodies, strict=True)])
            self.settled_by[worker] = self.settled_by.get(worker, 0) + count
            ended = [self.ended_by.get(worker, 0.0), *[one.started + one.duration for one in event.verdicts]]
            self.ended_by[worker] = max(ended)
        elif type(event) is Claimed:
            if event.tokens:
                self.limits.claimed(event)
            for lease in event.leases:
                task = self._record(lease.key)
                if self.leases.claimed(task, lease, event.worker):
                    self._work.append(task)
                if lease.round > task.round:
                    self.history.begin_round(task, lease.round)
        elif type(event) is Submitted:
            self._submitted(event, bodies)
        elif type(event) is Requested:
            self._requested(event)
        elif type(event) is Invalidated:
            self._invalidated(event)
        elif type(event) is Accepted:
            self.counter = max(self.counter, event.counter)
            self._work.extend(map(self._record, event.keys))
            self.reuse.accept(event, bodies)
        elif type(event) is Released:
            for lease in event.leases:
                task = self._record(lease.key)
                self.leases.released(task, lease)
                self._work.append(task)
        elif type(event) is WorkerLost:
            self._work.extend(self.leases.worker_lost(event.worker, event.found))
        elif type(event) is Started:
            self.limits.started(event)
        elif type(event) is Forgotten:
            self.counter = max(self.counter, event.counter)
            self._forget(event)

    def observe(self, tasks: Collection[TaskRecord]) -> None:
        """Derive tasks of which the ``leases`` changed by what this process observes, which is no event for all."""
        if tasks:
            self.version += 1
            self._work.extend(tasks)
            self._flow()

    def _record(self, key: Key) -> TaskRecord:
        task = self.tasks.get(key)
        if task is None:
            task = self.tasks.live[key] = TaskRecord(key)
            if key in self.forgotten:
                task.round = self.forgotten[key][1] + 1
        return task

    def _submitted(self, event: Submitted, bodies: Sequence[Place]) -> None:
        queue = self.queue.of_function(event.name, event.priority, event.python, event.resources)
        tasks, counter = self.tasks.live, event.counter
        for key, needs, form, body in zip(event.keys, event.needs, event.forms, bodies, strict=True):
            task = tasks.get(key) or self._record(key)
            known = task.state != UNKNOWN
            if known and task.queue is not queue and not _resubmitted(self, task, queue, counter):
                continue
            task.since = counter if counter > task.since else task.since
            if known:
                if self.moved is not None:
                    self.moved[task.spec] = body
                task.locate(task.seq, body)
                continue
            task.queue = queue
            task.form = form if needs else b""  # a task without needs reuses no run of an equal form
            self._sequence += 1
            task.locate(self._sequence, body)
            task.state = CANCELLED
            if needs:
                task.needs = tuple(map(self._record, needs))
            for need in task.needs:
                if isinstance(need.dependents, list):
                    need.dependents.append(task)
                else:
                    need.dependents = [task]
                task.missing += not need.value_digest
                task.blocking += need.state in (FAILED, BLOCKED)
                self._notebooks.add(need, task.notebooks)
                if task.wanted:
                    need.wanted_dependents += 1
                    self._work.append(need)
            if needs:
                _update_inputs(task)
            else:
                task.inputs = NO_INPUTS
            for verdict, _, _ in task.outcomes if task.records else ():
                if verdict.digest:
                    self._finished(task, verdict)
            if task.direct >= 0:
                self.reuse.submitted(task)
            self.counts.count(task)
            self._work.append(task)

    def _requested(self, event: Requested) -> None:
        origin, counter, wanted = event.request.origin, event.request.counter, event.request.wanted
        self.counter = max(self.counter, counter)
        alone = ((origin, counter, wanted),)  # one tuple, shared by all tasks
        notebooks = self._notebooks.shared((origin.notebook,))
        tasks = self.tasks.live
        for key in event.keys:
            task = tasks.get(key) or self._record(key)
            if not task.requests:
                task.requests = alone
            else:
                for request in task.requests:
                    if request[0] == origin:
                        if (counter, wanted) > request[1:]:
                            task.requests = (*(other for other in task.requests if other is not request), *alone)
                        break
                else:
                    task.requests += alone
            if not task.notebooks and task.state == UNKNOWN:
                task.notebooks = notebooks
            elif task.notebooks is not notebooks:
                self._notebooks.add(task, notebooks)
            self._work.append(task)

    def _settled(self, verdict: Verdict, body: Place, worker: WorkerId) -> bool:
        """Keep an outcome. Return False if it was known, or is of an earlier round and of no use to others."""
        task = self.tasks.live.get(verdict.key) or self._record(verdict.key)
        if task.records:
            for known in task.outcomes:
                if known[0] == verdict and known[2] == worker:
                    self._move(task, known, body)
                    return False
        if task.attempts is not None:
            self.leases.settled(task, verdict)
        if verdict.round < task.round and not may_be_reused(verdict):
            self.history.add(verdict, body, worker)
            return False
        task.add_outcome(verdict, body, worker)
        if verdict.digest and task.state != UNKNOWN:
            self._finished(task, verdict)
        if self.reuse.accepts:
            self.reuse.settled(task)
        if verdict.round > task.round:
            self.history.begin_round(task, verdict.round)
        self._work.append(task)
        return True

    def _finished(self, task: TaskRecord, verdict: Verdict) -> None:
        """Count a finished run of a submitted task, and offer it for reuse."""
        task.queue.done += 1
        task.queue.spent += verdict.duration
        if verdict.inputs != NO_INPUTS:
            self.reuse.ran(task, verdict)

    def _move(self, task: TaskRecord, known: Outcome, body: Place) -> None:
        """A known outcome was read from another place: its body is there from now on."""
        if self.moved is not None:
            self.moved[known[1]] = body
        moved = (known[0], body, known[2])
        task.outcomes = [moved if outcome == known else outcome for outcome in task.outcomes]
        if task.value_digest:
            self._work.append(task)
        self.reuse.moved(task, known[0])

    def _invalidated(self, event: Invalidated) -> None:
        for index, (key, from_round) in enumerate(zip(event.keys, event.from_rounds, strict=True)):
            task = self._record(key)
            if event.why is Why.DIRECT:
                task.marks = (max(task.direct, from_round), task.lost)
            elif event.why is Why.LOST:
                task.marks = (task.direct, max(task.lost, from_round))
            if from_round + 1 > task.round:
                self.history.begin_round(task, from_round + 1)
            self._work.append(task)
            inputs = event.inputs[index] if index < len(event.inputs) else b""
            self.reuse.invalidated(task, event.why, inputs, known=task.state != UNKNOWN)
            self.history.invalidated(key, from_round, event)

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def _forget(self, event: Forgotten) -> None:
        going: dict[TaskRecord, None] = {}
        stays: list[TaskRecord] = []
        for key, round in zip(event.keys, event.rounds, strict=True):
            before = self.forgotten.get(key, (-1, -1))
            counter, round = self.forgotten[key] = max(before[0], event.counter), max(before[1], round)
            if (task := self.tasks.get(key)) is None:
                continue
            goes = task.state != UNKNOWN and task.since <= counter
            self.history.forget(key, round)
            self.reuse.forget(task, counter, round, goes)
            self.leases.forget(task, round)
            for verdict, _, _ in task.outcomes:
                if (goes or verdict.round <= round) and verdict.digest and task.state != UNKNOWN:
                    task.queue.done -= 1
                    task.queue.spent -= verdict.duration
            task.outcomes = [outcome for outcome in task.outcomes if outcome[0].round > round]
            task.requests = tuple(request for request in task.requests if request[1] > counter)
            task.round = max(task.round, round + 1)
            task.marks = (task.direct if task.direct > round else -1, task.lost if task.lost > round else -1)
            if goes:
                going[task] = None
            else:
                self._work.append(task)
                stays.append(task)
        needs = {need for task in going for need in task.needs}
        _unsubmit(self, going.keys(), needs)
        self._notebooks.recompute([*stays, *going, *needs])
        for task in going:
            if not (task.dependents or task.requests or task.records or task.attempts):
                del self.tasks.live[task.key]

    # -- deriving ------------------------------------------------------------------------------------------------------

    def _flow(self) -> None:
        """Derive the tasks on the worklist, and those that their changes reach, until none is left."""
        work = self._work
        stale: set[FunctionQueue] = set()
        while work:
            task = work.popleft()
            requests = task.requests
            wanted = task.wanted_dependents > 0 or (requests[0][2] if len(requests) == 1 else is_wanted(requests))
            if wanted != task.wanted:  # so is what it needs
                task.wanted = wanted
                for need in task.needs:
                    need.wanted_dependents += 1 if wanted else -1
                    work.append(need)
            if task.state == UNKNOWN:
                continue
            state, value_digest = self._derive(task)
            if value_digest != task.value_digest:
                gained, lost = value_digest and not task.value_digest, task.value_digest and not value_digest
                task.value_digest = value_digest
                for above in task.dependents:
                    above.missing += 1 if lost else -1 if gained else 0
                    _update_inputs(above)
                    work.append(above)
            if state != task.state:
                if task.state == FAILED:
                    del self.failed[task]
                elif state == FAILED:
                    outcome = own_outcome(task)
                    self.failed[task] = 0.0 if outcome is None else outcome[0].started + outcome[0].duration
                if task.state == READY and task.queued and self.queue.no_longer_ready(task):
                    stale.add(task.queue)
                before, task.state = task.state, state
                if task.dependents and (before in _FAILING) != (state in _FAILING):
                    for above in task.dependents:
                        above.blocking += 1 if state in _FAILING else -1
                        work.append(above)
            if state == READY and not task.queued:
                self.queue.put(task)
            elif state == FINISHED and not (task.needs or task.dependents):
                self.tasks.ended.append(task)
            counted_as = state
            if state == FINISHED and (not task.wanted or task.reused_from is not None):
                counted_as = REUSED if task.wanted else KEPT
            if counted_as != task.counted_as and task.counted_in is not None:
                task.counted_in[task.counted_as] -= 1
                task.counted_in[counted_as] += 1
                task.counted_as = counted_as
        self.queue.clean(stale)
        if self.queue.later or len(self.tasks.ended) >= TOGETHER:
            self.tasks.ended += sorted(self.queue.later, key=by_number)
            self.tasks.pack(self.reuse.dropped)
            self.queue.keep_later()

    def _derive(self, task: TaskRecord) -> tuple[int, bytes]:
        """Return a task's state and the record of its value: the one place where these are decided."""
        inputs = task.inputs
        task.reused_from = None
        if inputs is not None:
            record = own_record(task, inputs)
            if record and has_value(record):
                return FINISHED, record
            if not record and self.leases.holder(task):
                return RUNNING, b""
            if task.needs or self.reuse.accepts:
                task.reused_from = self.reuse.run_for(task)
                if task.reused_from is not None:
                    return FINISHED, value_only(task.reused_from[0].digest)
            if record and task.wanted:
                return FAILED, b""
        if not task.wanted:
            return CANCELLED, b""
        if task.blocking:
            return BLOCKED, b""
        return (WAITING, b"") if inputs is None else (READY, b"")

    # -- the ready queue -----------------------------------------------------------------------------------------------

    def ready(
        self, limit: int, now: float, target: Target | None = None, python: str = "", skip: int = 0,
        fits: Fits | None = None,
    ) -> list[Offer]:  # fmt: skip
        """Take ready tasks off the queue as `ReadyQueue.take` does. Each must then be claimed, or put back there."""
        target = target or _ALL
        allowed = self._open_tasks(target) if is_narrow(target) else None
        return self.queue.take(limit, now, allowed, python, skip, target.not_names, fits)

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        """Return True if no task is ready or running that a worker of this ``python`` could run or wait for."""
        if target is None:
            return self.counts.none_open(python)
        return not any(self.tasks.live[key].state in (READY, RUNNING) for key in self._open_tasks(target))

    def _open_tasks(self, target: Target) -> set[Key]:
        """Return the keys that a target means, but those of finished tasks that need nothing."""
        self.queue.unpack_all()
        return keys_of_target(self.tasks.live.values(), target)

    # -- queries -------------------------------------------------------------------------------------------------------

    def state(self, key: Key) -> State | None:
        """Return the state of a task; None if it was never submitted."""
        task = self.tasks.live.get(key)
        if task is None:
            return self.tasks.state(key)
        return None if task.state == UNKNOWN else STATES[task.state]

    def outcome(self, key: Key) -> Outcome | None:
        """Return the outcome that counts now. A task that reuses another's run has the other's verdict."""
        task = self.tasks.live.get(key)
        return self.tasks.outcome(key) if task is None else derived_outcome(task)

    def runs(self, scope: Scope = Scope(), target: Target | None = None) -> Iterator[tuple[TaskRecord, Outcome]]:
        """Yield all attempts that ended, those of earlier rounds too."""
        for task in listing(self.tasks.values(), scope, target):
            for outcome in (*task.outcomes, *self.history.past(task.key)):
                yield task, outcome


def _resubmitted(state: SchedulerState, task: TaskRecord, queue: FunctionQueue, counter: int) -> bool:
    """Of submissions with another priority or other resources, the last counts. Return True if it is this one."""
    before, now = (task.queue.priority, task.queue.resources), (queue.priority, queue.resources)
    if before == now:
        return True
    state.resubmitted.add(task.key)
    state.counter = max(state.counter, counter, task.since)  # so that the next one comes after both
    if (counter, now) < (task.since, before):
        return False
    state._sequence += 1
    state.queue.move(task, queue, state._sequence)
    state.counts.count(task)
    state._work.append(task)
    return True


def _unsubmit(state: SchedulerState, going: Set[TaskRecord], needs: Set[TaskRecord]) -> None:
    """Make these tasks, which need ``needs``, unknown: as if they had never been submitted."""
    for need in needs:
        need.dependents = [above for above in need.dependents if above not in going]
    for task in going:
        state.failed.pop(task, None)
        blocked = task.state in (FAILED, BLOCKED)
        if task.counted_in is not None:
            task.counted_in[task.counted_as] -= 1
        for need in task.needs:
            need.wanted_dependents -= task.wanted
            state._work.append(need)
        for above in task.dependents:
            above.missing += bool(task.value_digest)
            above.blocking -= blocked
            _update_inputs(above)
            state._work.append(above)
        task.state, task.queue, task.queued = UNKNOWN, NO_QUEUE, False
        task.needs, task.form, task.location, task.inputs = (), b"", 0, None
        task.value_digest, task.reused_from = b"", None
        task.since = task.missing = task.blocking = 0
        task.counted_in, task.counted_as = None, 0
        state._work.append(task)


def _update_inputs(task: TaskRecord) -> None:
    """Compute the digest of the needs' values."""
    if task.missing:
        task.inputs = None
    elif task.needs:
        task.inputs = sha1(b"".join([digest_of(need.value_digest) for need in task.needs])).digest()
    else:
        task.inputs = NO_INPUTS


def without_forgotten(
    event: E, bodies: Sequence[Place], forgotten: dict[Key, tuple[int, int]]
) -> tuple[E, Sequence[Place]]:
    """Return what is left of an event, and of its bodies, without the tasks that were forgotten after it."""
    if isinstance(event, WorkerLost | Forgotten | Started):
        return event, bodies
    keep: list[bool]
    if isinstance(event, Submitted | Requested | Accepted):
        counter = event.request.counter if isinstance(event, Requested) else event.counter
        keep = [key not in forgotten or counter > forgotten[key][0] for key in event.keys]
    elif isinstance(event, Invalidated):
        rows = zip(event.keys, event.from_rounds, strict=True)
        keep = [key not in forgotten or round > forgotten[key][1] for key, round in rows]
    else:
        leases = event.verdicts if isinstance(event, Settled) else event.leases
        keep = [one.key not in forgotten or one.round > forgotten[one.key][1] for one in leases]
    if all(keep):
        return event, bodies
    columns = {name: getattr(event, name) for name in event.__struct_fields__ if name != "tokens"}
    kept = {name: list(compress(column, keep)) for name, column in columns.items() if isinstance(column, list)}
    return msgspec.structs.replace(event, **kept), list(compress(bodies, keep))
