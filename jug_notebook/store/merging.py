"""What compaction keeps of an event log: the events that the scheduler state still uses, in few and large ones.

It keeps submitted tasks, the latest request of each origin, outcomes that count or may be reused, open claims,
invalidations, acceptances and the latest tokens of limits. It drops what the state has dropped: superseded requests,
outcomes of earlier rounds, claims that have an outcome, and all events about a task before it was forgotten. So what is
kept, when applied, gives the same state as the whole log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from jug_notebook.model import (
    Accepted,
    Claimed,
    Event,
    Forgotten,
    Invalidated,
    Key,
    Lease,
    Released,
    Request,
    Requested,
    Settled,
    Submitted,
    WorkerId,
    WorkerLost,
)
from jug_notebook.scheduler.state import SchedulerState, without_forgotten

ROWS = 1000  #: tasks in one event, at most


class Merger:
    """Takes the events of one log after the other, and appends those that count.

    ``alone`` means that there are no other logs, so that it need not be kept which tasks were forgotten.
    """

    def __init__(self, scheduler: SchedulerState, append: Callable[[Event, Sequence[Any]], None], alone: bool) -> None:
        self._scheduler = scheduler
        self._append = append
        self._alone = alone
        self._seen: dict[Key, int] = {}  # bits for the parts of a task that were taken: events may come twice
        self._others: set[bytes] = set()
        self._rows: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        self._lost: dict[WorkerId, bool] = {}  #: whether their end was only found
        self._claimers: set[WorkerId] = set()

    def take(self, event: Event, bodies: Sequence[Any]) -> None:
        if type(event) is Submitted:
            self._submitted(event, bodies)
        elif type(event) is Requested:
            self._requested(event)
        elif type(event) is Settled:
            self._settled(event, bodies)
        elif isinstance(event, Claimed | Released):
            worker = event.worker if isinstance(event, Claimed) else None
            for lease in event.leases:
                if self._is_open(lease, worker):
                    self._put((type(event), worker), (lease,))
                    self._claimers.add(worker or "")
        elif type(event) is WorkerLost:
            self._lost[event.worker] = event.found and self._lost.get(event.worker, True)
        elif isinstance(event, Forgotten | Invalidated | Accepted):
            self._once(event, bodies)

    def _submitted(self, event: Submitted, bodies: Sequence[Any]) -> None:
        function = (event.name, event.priority, event.python, event.resources)
        for key, needs, form, body in zip(event.keys, event.needs, event.forms, bodies, strict=True):
            void = self._scheduler.forgotten.get(key)
            task = self._scheduler.tasks.peek(key)
            if task is None or task.state < 0 or (void is not None and event.counter <= void[0]):
                continue
            if (task.queue.priority, task.queue.resources) != (event.priority, event.resources):
                continue  # a later one counts
            if self._first(key, 0):
                counts = void is not None or key in self._scheduler.resubmitted
                self._put((Submitted, *function, event.counter if counts else 0), (key, needs, form, body))

    def _requested(self, event: Requested) -> None:
        wanted = (event.request.origin, event.request.counter, event.request.wanted)
        for key in event.keys:
            task = self._scheduler.tasks.peek(key)
            for index, request in enumerate(task.requests if task is not None else ()):
                if request == wanted and self._first(key, 1 + 3 * index):
                    self._put((Requested, *wanted), (key,))

    def _settled(self, event: Settled, bodies: Sequence[Any]) -> None:
        for verdict, body in zip(event.verdicts, bodies, strict=True):
            task = self._scheduler.tasks.peek(verdict.key)
            for index, (known, _, by) in enumerate(task.outcomes if task is not None else ()):
                if known == verdict and by == event.worker and self._first(verdict.key, 2 + 3 * index):
                    self._put((Settled, event.worker), (verdict, body))

    def _once(self, event: Forgotten | Invalidated | Accepted, bodies: Sequence[Any]) -> None:
        """Append an event that stays as it is, but for tasks that were forgotten since."""
        encoded = msgspec.msgpack.encode(event)
        if encoded in self._others:
            return
        self._others.add(encoded)
        left, kept = without_forgotten(event, bodies, self._scheduler.forgotten)
        if left.keys and not (isinstance(left, Forgotten) and self._alone):
            self._append(left, kept)

    def _first(self, key: Key, what: int) -> bool:
        seen = self._seen.get(key, 0)
        self._seen[key] = seen | 1 << what
        return not seen >> what & 1

    def finish(self) -> None:
        for name, rows in self._rows.items():
            self._write(name, rows)
        self._rows.clear()
        for event in self._scheduler.limits.events():
            self._append(event, ())
            if isinstance(event, Claimed) and event.leases:
                self._claimers.add(event.worker)
        for worker in sorted(self._lost.keys() & self._claimers):
            self._append(WorkerLost(worker, self._lost[worker]), ())

    # -- counting ------------------------------------------------------------------------------------------------------

    def _is_open(self, lease: Lease, worker: WorkerId | None) -> bool:
        """Return True if an attempt has no outcome and is held by ``worker``, or was released if that is None."""
        task = self._scheduler.tasks.peek(lease.key)
        return task is not None and any(
            (one.round, one.inputs, one.attempt) == (lease.round, lease.inputs, lease.attempt)
            and (one.released if worker is None else one.worker == worker)
            for one in task.attempts or ()
        )

    # -- writing -------------------------------------------------------------------------------------------------------

    def _put(self, name: tuple[Any, ...], row: tuple[Any, ...]) -> None:
        rows = self._rows.setdefault(name, [])
        rows.append(row)
        if len(rows) >= ROWS:
            self._write(name, rows)
            del self._rows[name]

    def _write(self, name: tuple[Any, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        kind, *shared = name
        columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
        if kind is Submitted:
            function, priority, python, resources, counter = shared
            keys, needs, forms, bodies = columns
            self._append(Submitted(function, priority, python, keys, needs, forms, counter, resources), bodies)
        elif kind is Requested:
            origin, counter, wanted = shared
            self._append(Requested(Request(origin, counter, wanted), columns[0]), ())
        elif kind is Settled:
            self._append(Settled(shared[0], columns[0]), columns[1])
        elif kind is Claimed:
            self._append(Claimed(shared[0], columns[0]), ())
        else:
            self._append(Released(columns[0]), ())
