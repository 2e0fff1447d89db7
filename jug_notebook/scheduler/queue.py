"""The ready queue: which task to run next."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence, Set
from itertools import islice

from jug_notebook.model import Fits, Key, Lease, Resources, Target, WorkerId
from jug_notebook.scheduler.limits import Limits
from jug_notebook.scheduler.records import (
    READY,
    UNKNOWN,
    WAITING,
    FunctionQueue,
    Offer,
    TaskRecord,
    current,
    retry_time,
)
from jug_notebook.scheduler.reuse import Reuse
from jug_notebook.scheduler.table import TaskTable, first_of

BUDGET = 0.02  #: seconds of expected work that one claim may take
LONG, SHORT = 5_000, 2_000  #: ready tasks of a function from which on others are packed; below which they come back
STALE = 1000  #: entries of a queue that may be out of date before it is cleaned
LONGEST = 60.0  #: seconds between two attempts at most; a later time comes from a clock that is ahead


class ReadyQueue:
    """One queue per function, oldest task first, and one of the tasks to be retried later."""

    def __init__(self, reported: Set[WorkerId], tasks: TaskTable) -> None:
        """``reported``: workers whose supervisors reported their end, and in which task they died."""
        self._reported = reported
        self._tasks = tasks
        self.later: list[TaskRecord] = []  #: those that needn't be in a heap yet: they are to be packed
        self.limits: Limits
        self.queues: dict[tuple[str, int, str, Resources], FunctionQueue] = {}
        self._delayed: list[tuple[float, int, TaskRecord]] = []

    def of_function(self, name: str, priority: int, python: str, resources: Resources = ()) -> FunctionQueue:
        """Return the queue of a function with this priority, python and resources, a new one if there is none."""
        found = self.queues.get((name, priority, python, resources))
        if found is None:
            found = FunctionQueue(name, priority, python, resources)
            self.queues[name, priority, python, resources] = found
        return found

    def put(self, task: TaskRecord, again: bool = False) -> None:
        """Add a task that has become ready, or was offered in vain (``again``): that one must be there at once."""
        task.queued = True
        if task.records and (retry_at := retry_time(task)):
            heapq.heappush(self._delayed, (retry_at, task.seq, task))
            return
        queue = task.queue
        many = not again and (queue.backlog or len(queue.heap) >= LONG)
        if many and task.seq > queue.newest and not (task.records or task.needs):
            self.later.append(task)
        else:
            heapq.heappush(queue.heap, (task.seq, task))

    def keep_later(self) -> None:
        """Put those of `later` that were packed into the backlogs of their queues, the others into the heaps."""
        later, self.later = self.later, []
        for task in later:
            if task.state == READY:
                heapq.heappush(task.queue.heap, (task.seq, task))
            elif task.state != UNKNOWN:
                task.queued = False

    def unpack_all(self) -> None:
        """Put all that is in backlogs into heaps."""
        for queue in self.queues.values():
            while queue.backlog:
                self._tasks.unpack_ready(queue)

    def move(self, task: TaskRecord, queue: FunctionQueue, seq: int) -> None:
        """Move a task to another queue, with its finished runs and a new number: its former entries are void."""
        for verdict, _, _ in task.outcomes:
            for one, sign in ((task.queue, -1), (queue, 1)) if verdict.digest else ():
                one.done += sign
                one.spent += sign * verdict.duration
        if task.queued:
            self.no_longer_ready(task)
        task.queued, task.queue = False, queue
        task.locate(seq, task.spec)

    def take(
        self,
        limit: int,
        now: float,
        allowed: Set[Key] | None,
        python: str,
        skip: int = 0,
        excluded: Set[str] = frozenset(),
        fits: Fits | None = None,
    ) -> list[Offer]:
        """Take up to ``limit`` tasks (of ``allowed``, None for all), best first: high priority, then oldest.

        Return at most `BUDGET` seconds of expected work, and one task of a function that was not timed yet; all need
        the same resources. ``skip`` passes over about as many of the first ones, where the same function has more.
        Functions that are ``excluded``, and tasks whose resources don't fit, are left alone.
        """
        while self._delayed and not now < self._delayed[0][0] <= now + LONGEST:
            _, seq, task = heapq.heappop(self._delayed)
            if seq == task.seq:  # else of a submission that was forgotten
                heapq.heappush(task.queue.heap, (seq, task))
        heads = self._heads(now, python, excluded, fits)
        if skip and heads and (offers := self._further_back(heads[0][2], skip, limit, allowed)):
            return offers
        offers = []
        passed: list[TaskRecord] = []
        given: dict[FunctionQueue, int] = {}
        budget = BUDGET
        while heads and len(offers) < limit:
            priority, _, queue = heads[0]
            mean = queue.mean
            if offers and (mean is None or mean > budget or given.get(queue, 0) >= queue.done):
                break  # a few short runs don't promise that many will be short
            if offers and (queue.resources != offers[0].task.queue.resources or offers[-1].deaths or queue.limits):
                break  # what may have killed its worker is tried alone, and what is limited has tokens of its own
            task = heapq.heappop(queue.heap)[1]
            task.queued = False
            if allowed is None or task.key in allowed:
                offer = self._offer(task)
                if offers and offer.deaths:
                    passed.append(task)
                    break
                offers.append(offer)
                given[queue] = given.get(queue, 0) + 1
                budget -= BUDGET if mean is None else mean
            else:
                passed.append(task)
            head = self._head(queue, now)
            if head is None:
                heads.pop(0)
            else:
                heads[0] = (priority, head[0], queue)
                if len(heads) > 1 and heads[0][:2] > heads[1][:2]:
                    heads.sort(key=lambda h: h[:2])
        for task in passed:
            self.put(task, again=True)
        return offers

    def _further_back(self, queue: FunctionQueue, skip: int, limit: int, allowed: Set[Key] | None) -> list[Offer]:
        """Return what `take` may take of a queue, but the first ``skip`` entries of the heap: these stay in it."""
        mean = queue.mean
        most = min(limit, queue.done, int(BUDGET / mean)) if mean else 1
        found: list[Offer] = []
        for seq, task in islice(queue.heap, skip, None):
            untried = task.state == READY and not (task.records or task.attempts)
            if untried and seq == task.seq and (allowed is None or task.key in allowed):
                found.append(self._offer(task))
                if len(found) >= most or queue.limits:
                    break
        return found

    def _heads(
        self, now: float, python: str, excluded: Set[str], fits: Fits | None
    ) -> list[tuple[int, int, FunctionQueue]]:
        """Return what `take` may take first of each queue: negative priority, number of the task, queue. Best first.

        ``fits`` is asked in this order.
        """
        heads = [
            (-queue.priority, head[0], queue)
            for queue in self.queues.values()
            if (not python or queue.python == python)
            and queue.name not in excluded
            and (head := self._head(queue, now)) is not None
        ]
        heads.sort(key=lambda h: h[:2])
        if not any(head[2].resources for head in heads):
            return heads
        return [head for head in heads if self._may_run(head[2], fits)]

    def _may_run(self, queue: FunctionQueue, fits: Fits | None) -> bool:
        """Return True if tasks of a queue have tokens of their limits, and fit. What has no token is kept no room."""
        if queue.limits and not self.limits.tokens_for(queue):
            return False
        return fits is None or not queue.of_host or fits(queue.of_host)

    def back(self, task: TaskRecord) -> None:
        """Put back a task that was offered and not claimed, if it is still ready."""
        if task.state == READY and not task.queued:
            self.put(task, again=True)

    @staticmethod
    def no_longer_ready(task: TaskRecord) -> bool:
        """Note that a queued task is no longer ready. Return True if its queue should be cleaned."""
        queue = task.queue
        queue.stale += 1
        return queue.stale > STALE and 2 * queue.stale > len(queue.heap)

    def clean(self, queues: Iterable[FunctionQueue]) -> None:
        """Remove the tasks that are no longer ready. Where there are few, `take` does so as it meets them."""
        for queue in queues:
            ready = []
            for seq, task in queue.heap:
                if seq != task.seq:  # of a submission that was forgotten
                    continue
                if task.state == READY:
                    ready.append((seq, task))
                else:
                    task.queued = False
            heapq.heapify(ready)
            queue.heap = ready
            queue.stale = 0
            while queue.backlog and not self._tasks.has_ready(queue.backlog[0]):
                queue.backlog.popleft()

    def _head(self, queue: FunctionQueue, now: float) -> tuple[int, TaskRecord] | None:
        """Return the oldest entry that may run now, dropping those before it."""
        heap, backlog = queue.heap, queue.backlog
        while backlog and (len(heap) < SHORT or heap[0][0] > first_of(backlog)):
            self._tasks.unpack_ready(queue)
        while heap:
            seq, task = heap[0]
            if seq != task.seq:  # of a submission that was forgotten
                heapq.heappop(heap)
                continue
            delayed = task.records and now < retry_time(task) <= now + LONGEST
            if task.state == READY and not delayed:
                return heap[0]
            heapq.heappop(heap)
            if delayed:
                heapq.heappush(self._delayed, (retry_time(task), seq, task))
            else:
                task.queued = False
        return None

    def _offer(self, task: TaskRecord) -> Offer:
        assert task.inputs is not None
        top = failures = deaths = 0
        for verdict in current(task):
            top = max(top, verdict.attempt)
            deaths += verdict.died
            failures += not verdict.died
        for attempt in task.attempts or ():
            if attempt.round == task.round and attempt.inputs == task.inputs:
                top = max(top, attempt.attempt)
                known = bool(attempt.worker) and not attempt.released  # a claim that no event tells of may be forged
                deaths += known and attempt.worker not in self._reported  # with its supervisor
        offer = Offer(task, Lease(task.key, task.round, task.inputs, top + 1), failures, deaths, (task,))
        return offer._replace(tokens=self.limits.tokens_for(task.queue)) if task.queue.limits else offer

    def is_valid(self, offer: Offer) -> bool:
        """Return True if a task that was taken off the queue, or a token, would still be offered like this."""
        if not offer.tasks:
            return self.limits.is_valid(offer.lease)
        if offer.task.state == UNKNOWN:  # a name of `store.once`; a task that was forgotten is in a later round
            return offer.task.round == offer.lease.round and not offer.task.records
        return offer.task.state == READY and self._offer(offer.task).lease == offer.lease

    def next_retry(self) -> float | None:
        """Return when the first delayed task may be retried, in seconds since the epoch; None if there is none."""
        return self._delayed[0][0] if self._delayed else None


def with_followers(
    offers: Sequence[Offer], limit: int, python: str, target: Target | None, reuse: Reuse
) -> list[Offer]:
    """Return the offers with followers, as far as ``limit`` and the budget of one claim allow: see `ReadyQueue.take`.

    They are short tasks that were never tried, each the only one that needs the one before it: no other worker could
    have begun it earlier. And none may reuse a run once its need has a value.
    """
    if not any(len(offer.task.dependents) == 1 for offer in offers):
        return list(offers)
    room, budget = limit - len(offers), BUDGET
    excluded = target.not_names if target else frozenset()
    given: dict[FunctionQueue, int] = {}
    for offer in offers:
        queue = offer.task.queue
        given[queue] = given.get(queue, 0) + 1
        budget -= queue.mean or 0.0
        if queue.resources or offer.deaths or queue.mean is None:
            return list(offers)
    found = []
    for offer in offers:
        followers: list[TaskRecord] = []
        task = offer.task
        while room > len(followers) and len(task.dependents) == 1:
            need, task = task, task.dependents[0]
            queue = task.queue
            mean = queue.mean
            if (
                (mean is None or mean > budget or given.get(queue, 0) >= queue.done)
                or (task.state != WAITING or task.missing != 1 or task.records or task.attempts)
                or (queue.resources or queue.name in excluded or (python and queue.python != python))
                or reuse.may_serve(task, need)
            ):
                break
            followers.append(task)
            given[queue] = given.get(queue, 0) + 1
            budget -= mean
        room -= len(followers)
        found.append(offer._replace(tasks=(offer.task, *followers)) if followers else offer)
    return found
