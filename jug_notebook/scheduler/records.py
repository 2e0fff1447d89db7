"""What the scheduler state keeps of each task and each function, and what follows from one task record alone.

An outcome is packed into few bytes, for there is one for each task, and there may be millions: a fixed head, the inputs
(unless the task needs nothing) and the digest of the value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple, TypeAlias

from jug_notebook.model import (
    NO_INPUTS,
    Key,
    Lease,
    Limit,
    Origin,
    Resources,
    State,
    Verdict,
    WorkerId,
    limits_of,
    of_host,
)

Place: TypeAlias = int
"""Where a store keeps a body (sealed bytes): a number less than 2^96 that only that store understands."""

Outcome: TypeAlias = tuple[Verdict, Place, WorkerId]
"""A verdict, the place of its body, the worker it came from."""

_HEAD = Struct("<BIIIdd12s")  # flags, worker, round, attempt, started, duration, place
_ROUND, _ATTEMPT = Struct("<I"), Struct("<II")
_TIME = Struct("<d")
_FINAL, _DIED, _NEEDS, _RETRY = 1, 2, 4, 8
_FIXED = _HEAD.size
_FIRST = _ROUND.pack(0)
_SIZES = {0: _FIXED, _NEEDS: _FIXED + 20, _RETRY: _FIXED + 8, _NEEDS | _RETRY: _FIXED + 28}  # up to the digest

_workers: list[WorkerId] = []
_numbers: dict[WorkerId, int] = {}


def packed(verdict: Verdict, place: Place, worker: WorkerId) -> bytes:
    """Return the record of an outcome."""
    number = _numbers.get(worker)
    if number is None:
        number = _numbers[worker] = len(_workers)
        _workers.append(worker)
    flags, rest = verdict.final | verdict.died << 1, verdict.digest
    if verdict.retry_at:
        flags |= _RETRY
        rest = _TIME.pack(verdict.retry_at) + rest
    if verdict.inputs != NO_INPUTS:
        flags |= _NEEDS
        rest = verdict.inputs + rest
    head = _HEAD.pack(
        flags, number, verdict.round, verdict.attempt, verdict.started, verdict.duration, place.to_bytes(12, "little")
    )
    return head + rest


def unpacked(key: Key, record: bytes) -> Outcome:
    """Return the outcome that a record of this task holds."""
    flags, number, round, attempt, started, duration, place = _HEAD.unpack_from(record)
    if flags == _FINAL:  # most are: it has a value, and needs nothing
        verdict = Verdict(key, round, NO_INPUTS, attempt, record[_FIXED:], started, duration)
        return verdict, int.from_bytes(place, "little"), _workers[number]
    at, inputs, retry_at = _FIXED, NO_INPUTS, 0.0
    if flags & _NEEDS:
        at += len(NO_INPUTS)
        inputs = record[_FIXED:at]
    if flags & _RETRY:
        (retry_at,) = _TIME.unpack_from(record, at)
        at += _TIME.size
    verdict = Verdict(
        key, round, inputs, attempt, record[at:], started, duration, bool(flags & _FINAL), bool(flags & _DIED), retry_at
    )
    return verdict, int.from_bytes(place, "little"), _workers[number]


def is_current(record: bytes, round: int, inputs: bytes) -> bool:
    """Return True if it is final, of this round and on these inputs."""
    flags = record[0]
    if not flags & _FINAL or record[5:9] != (_FIRST if round == 0 else _ROUND.pack(round)):
        return False
    return record[_FIXED : _FIXED + 20] == inputs if flags & _NEEDS else inputs == NO_INPUTS


def is_outcome_of(record: bytes, lease: Lease) -> bool:
    """Return True if it is the outcome of this attempt."""
    round, attempt = _ATTEMPT.unpack_from(record, 5)
    if attempt != lease.attempt or round != lease.round:
        return False
    return lease.inputs == (record[_FIXED : _FIXED + 20] if record[0] & _NEEDS else NO_INPUTS)


def round_of(record: bytes) -> int:
    """Return the round that it is of."""
    return int.from_bytes(record[5:9], "little")


def has_value(record: bytes) -> bool:
    """Return True if it has a value, not an error."""
    return len(record) > _SIZES[record[0] & (_NEEDS | _RETRY)]


def digest_of(record: bytes) -> bytes:
    """Return the digest of the value; empty for a failure."""
    return record[_SIZES[record[0] & (_NEEDS | _RETRY)] :]


def value_only(digest: bytes) -> bytes:
    """Return a record that holds nothing but the digest of a value."""
    return b"\0" * _FIXED + digest


# -- records -----------------------------------------------------------------------------------------------------------

STATES = list(State)
WAITING, READY, RUNNING, FINISHED, FAILED, BLOCKED, CANCELLED = range(7)  # states as indexes: enums hash slowly
UNKNOWN = -1  # mentioned by an event, not yet submitted
REUSED = len(STATES)  # in counts alone: finished, by another task's run;
KEPT = REUSED + 1  # finished, and no longer requested: of an earlier version

_PLACE = 96  # bits of a place
NO_NUMBER = _SPEC = (1 << _PLACE) - 1  #: of a location, all but the number


@dataclass(slots=True, eq=False)
class FunctionQueue:
    """What tasks of one function have in common. ``heap`` holds its ready tasks as (seq, task), oldest first.

    Where there are many, ``backlog`` holds the later ones, which are packed, in chunks of their numbers and keys.
    """

    name: str
    priority: int
    python: str
    resources: Resources = ()
    heap: list[tuple[int, TaskRecord]] = field(default_factory=list)
    backlog: deque[bytes] = field(default_factory=deque)
    newest: int = 0  #: the highest number that ever was in it
    stale: int = 0  #: how many in the heap are no longer ready
    done: int = 0  #: finished runs
    spent: float = 0.0  #: seconds in them
    limits: tuple[Limit, ...] = field(init=False)
    of_host: Resources = field(init=False)  #: ``resources`` without the limits

    def __post_init__(self) -> None:
        self.limits, self.of_host = limits_of(self.resources), of_host(self.resources)

    @property
    def mean(self) -> float | None:
        """The mean duration of a finished run, in seconds; None before the first."""
        return self.spent / self.done if self.done else None


NO_QUEUE = FunctionQueue("", 0, "")


@dataclass(slots=True, eq=False)
class TaskRecord:
    """One task, in little space. ``records`` are its packed outcomes: one alone, or a tuple of several.

    ``value_digest`` is the packed record of the value that it has now, empty if it has none.
    """

    key: Key
    state: int = UNKNOWN
    queue: FunctionQueue = NO_QUEUE
    needs: tuple[TaskRecord, ...] = ()
    dependents: list[TaskRecord] | tuple[()] = ()
    form: bytes = b""
    since: int = 0  #: the highest counter of its submissions
    location: int = 0  #: seq and spec in one number
    round: int = 0
    inputs: bytes | None = None  #: digest of the needs' values; None while one is missing
    missing: int = 0  #: needs without a value
    blocking: int = 0  #: needs that failed or are blocked
    value_digest: bytes = b""
    records: bytes | tuple[bytes, ...] = b""
    reused_from: Outcome | None = None  #: the other task's run that gives it its value
    marks: tuple[int, int] = (-1, -1)
    attempts: list[Attempt] | None = None  #: the open ones
    requests: tuple[tuple[Origin, int, bool], ...] = ()  #: origin, counter, wanted
    wanted_dependents: int = 0
    wanted: bool = False
    queued: bool = False
    notebooks: tuple[str, ...] = ()
    counted_in: list[int] | None = None  #: a row of `TaskCounts`
    counted_as: int = 0  #: the column in it

    def __lt__(self, other: TaskRecord) -> bool:
        return False  # a heap compares two records of one task, of which the former is no longer in use

    @property
    def seq(self) -> int:
        """Its number in the order of submission."""
        return self.location >> _PLACE

    @property
    def spec(self) -> Place:
        """Where its sealed spec is."""
        return self.location & _SPEC

    def locate(self, seq: int, spec: Place) -> None:
        """Set `seq` and `spec`."""
        self.location = seq << _PLACE | spec

    @property
    def direct(self) -> int:
        """The last round that the user invalidated; -1 if there is none."""
        return self.marks[0]

    @property
    def lost(self) -> int:
        """The last round whose value was lost; -1 if there is none."""
        return self.marks[1]

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        records = self.records
        if isinstance(records, bytes):
            return (unpacked(self.key, records),) if records else ()
        return tuple([unpacked(self.key, record) for record in records])

    @outcomes.setter
    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        records = tuple([packed(*outcome) for outcome in outcomes])
        self.records = records if len(records) > 1 else records[0] if records else b""

    def add_outcome(self, verdict: Verdict, place: Place, worker: WorkerId) -> None:
        """Keep one more outcome."""
        record, records = packed(verdict, place, worker), self.records
        self.records = (*(records if isinstance(records, tuple) else (records,)), record) if records else record


@dataclass(slots=True, eq=False)
class Attempt:
    """An open attempt: claimed or released, without a verdict so far."""

    round: int
    inputs: bytes
    attempt: int
    worker: WorkerId = ""
    released: bool = False
    owner: WorkerId = ""  #: who has it by the store's claims, while no event says so


class Offer(NamedTuple):
    """A ready task, the lease that a claim of it would be, and how often it failed and how often its worker died.

    ``tasks``: the task and those that follow it; each of these needs the one before, and nothing else that isn't there.
    ``tokens`` of limits are to be claimed with it. An offer that is a token has no ``tasks``.
    """

    task: TaskRecord
    lease: Lease
    failures: int
    deaths: int
    tasks: tuple[TaskRecord, ...]
    tokens: tuple[Lease, ...] = ()


def parted(offers: Iterable[Offer]) -> tuple[list[Lease], list[Lease]]:
    """Return the leases of those that are tokens of limits, and of those that are tasks."""
    tokens: list[Lease] = []
    leases: list[Lease] = []
    for offer in offers:
        (leases if offer.tasks else tokens).append(offer.lease)
    return tokens, leases


def retry_time(task: TaskRecord) -> float:
    """Return when it may be retried, in seconds since the epoch; 0 if at once."""
    return max((verdict.retry_at for verdict in current(task)), default=0.0)


def current(task: TaskRecord) -> Iterator[Verdict]:
    """Yield the verdicts of the task's round on its current inputs."""
    for verdict, _, _ in task.outcomes:
        if verdict.round == task.round and verdict.inputs == task.inputs:
            yield verdict


def own_outcome(task: TaskRecord) -> Outcome | None:
    """Return its own final outcome of this round on its current inputs: finished before failed, then the latest."""
    record = b"" if task.inputs is None else own_record(task, task.inputs)
    return unpacked(task.key, record) if record else None


def derived_outcome(task: TaskRecord) -> Outcome | None:
    """Return the outcome that counts, of a task that has been derived since it changed."""
    if task.reused_from is not None or not task.value_digest:
        return None if task.inputs is None else task.reused_from or own_outcome(task)
    return unpacked(task.key, task.value_digest)


def own_record(task: TaskRecord, inputs: bytes) -> bytes:
    """Return `own_outcome` packed, on these inputs; empty if there is none."""
    records = task.records
    if isinstance(records, bytes):
        return records if records and is_current(records, task.round, inputs) else b""
    best = None
    for record in records:
        if is_current(record, task.round, inputs):
            verdict, _, worker = unpacked(task.key, record)
            weight = (bool(verdict.digest), verdict.attempt, verdict.digest, worker)
            if best is None or weight > best[0]:
                best = (weight, record)
    return b"" if best is None else best[1]


def withdraws(request: tuple[Origin, int, bool], origin: Origin) -> bool:
    """Return True if this request withdraws the one of ``origin``: without a cell it speaks for the whole notebook."""
    by, _, wanted = request
    return not wanted and not by.cell and by.notebook == origin.notebook and by.user == origin.user


def requests_of(requests: tuple[tuple[Origin, int, bool], ...], origin: Origin) -> tuple[tuple[Origin, int, bool], ...]:
    """Return the requests that decide whether this origin wants the task."""
    return tuple(request for request in requests if request[0] == origin or withdraws(request, origin))


def is_wanted(requests: tuple[tuple[Origin, int, bool], ...]) -> bool:
    """Return True if a request wants the task that no later one withdraws."""
    if not requests:
        return False
    return any(
        wanted and not any(withdraws(other, origin) and other[1] > counter for other in requests)
        for origin, counter, wanted in requests
    )
