"""The ready queue: what may be run next, best first."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Set

from jug_notebook.model import Key, Lease
from jug_notebook.scheduler.records import READY, FunctionQueue, Offer, TaskRecord, current, retry_at_of

BUDGET = 0.02  #: seconds of expected work that one claim may take
STALE = 1000  #: so many in a queue that are no longer ready are nothing to care about
LONGEST = 60.0  #: seconds between two attempts; whoever said later has a clock that is ahead


class ReadyQueue:
    """A queue of each function, oldest first, and beside them those that are not to be tried before a time."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, int, str], FunctionQueue] = {}
        self._delayed: list[tuple[float, int, TaskRecord]] = []

    def kind(self, name: str, priority: int, python: str) -> FunctionQueue:
        """The function of that name, for these; a new one where it was not met yet."""
        found = self.kinds.get((name, priority, python))
        if found is None:
            found = self.kinds[name, priority, python] = FunctionQueue(name, priority, python)
        return found

    def put(self, task: TaskRecord) -> None:
        """A task has become ready."""
        task.queued = True
        if task.records and (retry_at := retry_at_of(task)):
            heapq.heappush(self._delayed, (retry_at, task.seq, task))
        else:
            heapq.heappush(task.kind.queue, (task.seq, task))

    def take(self, limit: int, now: float, allowed: Set[Key] | None, python: str) -> list[Offer]:
        """Up to ``limit`` tasks (``allowed``: of these), best first, at most `BUDGET` seconds of expected work."""
        while self._delayed and not now < self._delayed[0][0] <= now + LONGEST:
            _, seq, task = heapq.heappop(self._delayed)
            heapq.heappush(task.kind.queue, (seq, task))
        heads = [
            (-kind.priority, head[0], kind)
            for kind in self.kinds.values()
            if (not python or kind.python == python) and (head := self._head(kind, now)) is not None
        ]
        heads.sort(key=lambda h: h[:2])
        offers: list[Offer] = []
        passed: list[TaskRecord] = []
        given: dict[FunctionQueue, int] = {}
        budget = BUDGET
        while heads and len(offers) < limit:
            priority, _, kind = heads[0]
            mean = kind.mean
            if offers and (mean is None or mean > budget or given.get(kind, 0) >= kind.done):
                break  # few that were short don't promise that many will be
            task = heapq.heappop(kind.queue)[1]
            task.queued = False
            if allowed is None or task.key in allowed:
                offers.append(self._offer(task))
                given[kind] = given.get(kind, 0) + 1
                budget -= BUDGET if mean is None else mean
            else:
                passed.append(task)
            head = self._head(kind, now)
            if head is None:
                heads.pop(0)
            else:
                heads[0] = (priority, head[0], kind)
                if len(heads) > 1 and heads[0][:2] > heads[1][:2]:
                    heads.sort(key=lambda h: h[:2])
        for task in passed:
            self.put(task)
        return offers

    def back(self, task: TaskRecord) -> None:
        """A task that was offered and not claimed: it stays in the queue if it is still ready."""
        if task.state == READY and not task.queued:
            self.put(task)

    @staticmethod
    def leaves(task: TaskRecord) -> bool:
        """One that lies in a queue is no longer ready. True where that queue should be freshened by now."""
        kind = task.kind
        kind.stale += 1
        return kind.stale > STALE and 2 * kind.stale > len(kind.queue)

    @staticmethod
    def freshen(kinds: Iterable[FunctionQueue]) -> None:
        """Those that are no longer ready fall out of queues where they are many; few do so when they are met."""
        for kind in kinds:
            ready = []
            for head in kind.queue:
                if head[1].state == READY:
                    ready.append(head)
                else:
                    head[1].queued = False
            heapq.heapify(ready)
            kind.queue = ready
            kind.stale = 0

    def _head(self, kind: FunctionQueue, now: float) -> tuple[int, TaskRecord] | None:
        """The oldest task of the queue that may run now; those that are no longer ready fall out here."""
        queue = kind.queue
        while queue:
            seq, task = queue[0]
            delayed = task.records and now < retry_at_of(task) <= now + LONGEST
            if task.state == READY and not delayed:
                return queue[0]
            heapq.heappop(queue)
            if delayed:
                heapq.heappush(self._delayed, (retry_at_of(task), seq, task))
            else:
                task.queued = False
        return None

    @staticmethod
    def _offer(task: TaskRecord) -> Offer:
        assert task.inputs is not None
        top = failures = deaths = 0
        for verdict in current(task):
            top = max(top, verdict.attempt)
            deaths += verdict.died
            failures += not verdict.died
        for attempt in task.attempts or ():
            if attempt.round == task.round and attempt.inputs == task.inputs:
                top = max(top, attempt.attempt)
        return Offer(task, Lease(task.key, task.round, task.inputs, top + 1), failures, deaths)

    def stands(self, offer: Offer) -> bool:
        """Is it still what would be offered? Asked of one that was taken off the queue."""
        return offer.task.state == READY and self._offer(offer.task) == offer

    def next_retry(self) -> float | None:
        """When the first delayed task may be tried again, seconds since the epoch."""
        return self._delayed[0][0] if self._delayed else None
