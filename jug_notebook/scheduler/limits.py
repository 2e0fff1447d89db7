"""Limits: how many tasks of a store may run at a time that name one, or begin in a time. Pure.

A limit of N has N *slots*. A limited task is claimed together with a *token* of a slot of each of its limits: a lease
on the slot, claimed like one on a task, so that two workers never have the same. The token is used up once the attempt
at the task is over: settled, given back, or ended by the death of its worker. Then the slot has a next token. That of a
rate comes once the period has passed since the task began, by the clock of the store, for those of hosts may differ.

What several functions say of one name holds for all: of two numbers, the smaller, while tasks of both are open. Where
more run then, for they began before it did, none begins until fewer do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from itertools import islice

from jug_notebook.model import MARGIN, NO_INPUTS, Claimed, Key, Lease, Limit, LimitView, Started
from jug_notebook.scheduler.attempts import Leases
from jug_notebook.scheduler.queries import TaskCounts
from jug_notebook.scheduler.records import READY, RUNNING, WAITING, FunctionQueue, Offer, TaskRecord
from jug_notebook.scheduler.table import TaskTable

ASTRAY = 5.0  #: seconds in the future from which on a recorded time shows that the store's clock was put back


@dataclass(slots=True, eq=False)
class Slot:
    """A place of a limit that one task at a time has."""

    record: TaskRecord  #: of claims that no event tells of so far
    number: int = 0  #: of the last token that an event tells of
    leases: tuple[Lease, ...] = ()  #: what was claimed with that token
    begun: int = 0  #: of the last token with which a task began, where that is recorded
    started: float = 0.0  #: when it did, by the store's clock
    period: int = 0  #: of the limit


@dataclass(eq=False)
class Limits:
    """The slots of all limits, as the events applied so far have them.

    ``now`` returns the time by the store's clock. ``spread`` is a different number in each process that claims: so many
    slots further on it begins to look for a free one, so that few look at the same.
    """

    _tasks: TaskTable
    _leases: Leases
    _counts: TaskCounts
    now: Callable[[], float] = field(default=lambda: 0.0)
    spread: int = 0
    _slots: dict[Key, Slot] = field(default_factory=dict)
    _keys: dict[tuple[str, int], list[Key]] = field(default_factory=dict)

    # -- events --------------------------------------------------------------------------------------------------------

    def claimed(self, event: Claimed) -> None:
        """A task was claimed with these tokens; where there is no task, they are used up without one."""
        for token in event.tokens:
            slot = self._slot(token.key)
            self._leases.settled(slot.record, token)
            if token.attempt >= slot.number:
                before = slot.leases if token.attempt == slot.number else ()
                slot.number, slot.leases = token.attempt, (*before, *event.leases)

    def started(self, event: Started) -> None:
        """Note when a task began."""
        for token in event.tokens:
            slot = self._slot(token.key)
            slot.begun, slot.started = max(slot.begun, token.attempt), max(slot.started, event.at)

    def events(self) -> Iterator[Claimed | Started]:
        """Yield the events from which follows what is known of all slots."""
        for key, slot in self._slots.items():
            if slot.number:
                token, held = Lease(key, 0, NO_INPUTS, slot.number), False
                for lease in slot.leases:
                    if worker := self._leases.worker_of(self._tasks.live.get(lease.key), lease):
                        held = True
                        yield Claimed(worker, [lease], [token])
                if not held:
                    yield Claimed("", [], [token])
            if slot.begun:
                yield Started([Lease(key, 0, NO_INPUTS, slot.begun)], slot.started)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def tokens_for(self, queue: FunctionQueue) -> tuple[Lease, ...]:
        """Return a token of each limit of these tasks; none where one has no free slot."""
        found = []
        for limit in self.in_force(queue):
            now = self.now() if limit.period else 0.0
            keys, room = self._keys_of(limit), self._room(limit, now)
            for index in range(room):
                slot = self._slot(key := keys[(index + self.spread) % room])
                if self._due(slot, limit, now) <= now:
                    found.append(self._token(key, slot))
                    break
            else:
                return ()
        return tuple(found)

    def _room(self, limit: Limit, now: float) -> int:
        """Return how many slots, the first ones, tokens may be of: fewer than its number while others are used."""
        if (largest := self._largest(limit)) == limit.number:
            return limit.number
        used = [due > now for due in self._dues(limit, largest, now)]
        return limit.number - sum(used[limit.number :]) if sum(used) < limit.number else 0

    def _largest(self, limit: Limit) -> int:
        """Return the largest number that any function has of it."""
        same = (one.number for queue in self._counts.limited for one in queue.limits if one[::2] == limit[::2])
        return max(same, default=limit.number)

    def in_force(self, queue: FunctionQueue) -> list[Limit]:
        """Return all limits of the names that this function gives, each with the smallest number that any has."""
        names = {limit.name for limit in queue.limits}
        found: dict[tuple[str, int], Limit] = {}
        for limit in [*queue.limits, *(limit for limit, _ in self.open_limits())]:
            if limit.name in names:
                known = found.setdefault((limit.name, limit.period), limit)
                found[limit.name, limit.period] = min(known, limit)
        return sorted(found.values())

    def open_limits(self) -> Iterator[tuple[Limit, FunctionQueue]]:
        """Yield the limits of functions that have tasks that wait, are ready or run."""
        for queue, rows in self._counts.limited.items():
            if any(row[WAITING] or row[READY] or row[RUNNING] for row in rows):
                for limit in queue.limits:
                    yield limit, queue

    def offer(self, token: Lease) -> Offer:
        """Return the token as an offer, to be claimed."""
        return Offer(self._slot(token.key).record, token, 0, 0, ())

    def is_valid(self, token: Lease) -> bool:
        """Return True if that is still the next token of its slot, which is free."""
        slot = self._slot(token.key)
        return self._token(token.key, slot) == token and self._is_free(slot)

    def of_rates(self, tokens: Sequence[Lease]) -> tuple[Lease, ...]:
        """Return those of the tokens whose period begins when the task does."""
        return tuple([token for token in tokens if self._slot(token.key).period])

    def pause(self) -> float | None:
        """Return the seconds until ready tasks that wait for nothing but the time may begin; None if there are none."""
        waits = []
        for queue, rows in self._counts.limited.items():
            if any(row[READY] for row in rows) and (missing := self._missing(queue)) is not None:
                limit, wait, _ = missing
                waits += [wait] if limit.period and wait is not None else []
        return min(waits, default=None)

    def beyond(self) -> dict[str, int]:
        """Return, by function, how many ready tasks there are no tokens for now."""
        found: dict[str, int] = {}
        for queue, rows in self._counts.limited.items():
            room = min(sum(due <= now for due in dues[-limit.number :]) for limit, now, dues in self._all_dues(queue))
            if (left := sum(row[READY] for row in rows) - room) > 0:
                found[queue.name] = found.get(queue.name, 0) + left
        return found

    def note(self, queue: FunctionQueue) -> str:
        """Return what ready tasks of a function wait for, "db (4 of 4 in use)", "api (60/min, next in 12 s)"."""
        missing = self._missing(queue)
        if missing is None:
            return ""
        limit, wait, dues = missing
        by = "" if limit in queue.limits else next((of.name for one, of in self.open_limits() if one == limit), "")
        of = f", as {by} has it" if by else ""
        if limit.period:
            rate = str(limit).partition(":")[2]
            when = "all in use" if wait is None else f"next in {max(1, round(wait))} s"
            return f"{limit.name} ({rate}{of}: {when})"
        return f"{limit.name} ({sum(due > 0 for due in dues)} of {limit.number} in use{of})"

    def views(self) -> dict[str, tuple[LimitView, ...]]:
        """Return the limits of all functions that have open tasks."""
        found: dict[str, dict[tuple[str, int], LimitView]] = {}
        for queue in dict.fromkeys(queue for _, queue in self.open_limits()):
            given = {limit[::2]: limit.number for limit in queue.limits}
            for limit, now, dues in self._all_dues(queue):
                waits = [min(due - now, limit.period + MARGIN) for due in dues[-limit.number :] if due > now]
                name, number, period = limit
                view = LimitView(
                    name, number, period, given.get(limit[::2], 0), sum(due > now for due in dues),
                    tuple(waits if period else ()),
                )  # fmt: skip
                found.setdefault(queue.name, {})[limit[::2]] = view
        return {function: tuple(views.values()) for function, views in found.items()}

    def waits_for(self, task: TaskRecord | None) -> str:
        """Return `note` for a ready task; else an empty text."""
        return self.note(task.queue) if task is not None and task.state == READY and task.queue.limits else ""

    def _missing(self, queue: FunctionQueue) -> tuple[Limit, float | None, list[float]] | None:
        """Return the first limit that has no token now, the seconds until it has if the time decides, and `_dues`."""
        for limit, now, dues in self._all_dues(queue):
            if (first := dues[-limit.number]) > now:
                return limit, first - now if first < math.inf else None, dues
        return None

    def _all_dues(self, queue: FunctionQueue) -> Iterator[tuple[Limit, float, list[float]]]:
        """Yield the limits of a function, each with the time and, sorted, when its slots have tokens.

        Of a smaller number than the slots are, it is the last of these times that tell when so many fewer are used.
        """
        for limit in self.in_force(queue):
            now = self.now() if limit.period else 0.0
            yield limit, now, sorted(self._dues(limit, self._largest(limit), now))

    def _dues(self, limit: Limit, number: int, now: float) -> list[float]:
        """Return from when on each of so many slots has a token."""
        return [self._due(self._slot(key), limit, now) for key in self._keys_of(limit._replace(number=number))]

    # -- slots ---------------------------------------------------------------------------------------------------------

    def _keys_of(self, limit: Limit) -> Sequence[Key]:
        keys = self._keys.setdefault((limit.name, limit.period), [])
        for index in range(len(keys), limit.number):
            keys.append(sha1(f"{limit.name}:{limit.period}:{index}".encode()).hexdigest())
            self._slot(keys[-1]).period = limit.period
        return keys if len(keys) == limit.number else list(islice(keys, limit.number))

    def _slot(self, key: Key) -> Slot:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = Slot(TaskRecord(key, inputs=NO_INPUTS))
        return slot

    def is_over(self, key: Key, number: int) -> bool:
        """Return True if that was a token of a slot that an event tells of a later one of."""
        slot = self._slots.get(key)
        return slot is not None and number < slot.number

    @staticmethod
    def _token(key: Key, slot: Slot) -> Lease:
        found = max((one.attempt for one in slot.record.attempts or ()), default=0)
        return Lease(key, 0, NO_INPUTS, max(slot.number, found) + 1)

    def _is_free(self, slot: Slot) -> bool:
        """Return True if no live worker has a token of it or, of a rate, one with which no task began so far."""
        if slot.record.attempts and self._leases.holder(slot.record):
            return False
        if slot.begun >= slot.number:
            return True
        return not any(self._leases.is_held(self._tasks.live.get(lease.key), lease) for lease in slot.leases)

    def _due(self, slot: Slot, limit: Limit, now: float) -> float:
        """Return from when on a task may begin with its next token: never, as far as is known, while one has it."""
        if not self._is_free(slot):
            return math.inf
        if not limit.period or not slot.started:
            return 0.0
        if slot.started > now + ASTRAY:
            slot.started = now
        return slot.started + limit.period + MARGIN
