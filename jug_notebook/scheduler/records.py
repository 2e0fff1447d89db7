"""What a board keeps of each task: a card; and of each function. And what follows from one card alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jug_notebook.model import Key, Lease, Origin, State, Verdict, WorkerId
from jug_notebook.scheduler.packing import Outcome, Place, holds, opened, packed

STATES = list(State)
WAITING, READY, RUNNING, FINISHED, FAILED, BLOCKED, CANCELLED = range(7)  # states as indexes: enums hash slowly
UNKNOWN = -1  # mentioned by a fact, not yet submitted
REUSED = len(STATES)  # in tallies alone: finished, by another's run

NO_MARKS = (-1, -1)
_PLACE = 96  # bits of a place
_SPEC = (1 << _PLACE) - 1


class FunctionQueue:
    """What tasks of one function have in common, and how they fare. ``queue`` holds its ready tasks, oldest first."""

    __slots__ = ("done", "name", "priority", "python", "queue", "spent", "stale")

    def __init__(self, name: str, priority: int, python: str) -> None:
        self.name, self.priority, self.python = name, priority, python
        self.queue: list[tuple[int, TaskRecord]] = []
        self.stale = 0  # so many of the queue are no longer ready, or were offered
        self.done = 0
        self.spent = 0.0

    @property
    def mean(self) -> float | None:
        return self.spent / self.done if self.done else None


class TaskRecord:
    """One task, in little space. ``records`` are its outcomes, packed: one or more.

    ``worth`` is the record of the value that it has now, empty without.
    """

    __slots__ = (
        "attempts",
        "blocking",
        "dependents",
        "form",
        "inputs",
        "key",
        "kind",
        "location",
        "marks",
        "missing",
        "needs",
        "notebooks",
        "queued",
        "records",
        "requests",
        "reused_from",
        "round",
        "since",
        "state",
        "tallied",
        "tally",
        "value_digest",
        "wanted",
        "wanters",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.state = UNKNOWN
        self.kind: FunctionQueue = NO_KIND
        self.needs: tuple[TaskRecord, ...] = ()
        self.dependents: list[TaskRecord] | tuple[()] = ()
        self.form = b""
        self.since = 0  # the highest counter of its submissions
        self.location = 0  # turn and spec in one
        self.round = 0
        self.inputs: bytes | None = None
        self.missing = 0
        self.blocking = 0
        self.value_digest = b""
        self.records: bytes | tuple[bytes, ...] = b""
        self.reused_from: Outcome | None = None  # over from another run
        self.marks = NO_MARKS
        self.attempts: list[Attempt] | None = None
        self.requests: tuple[tuple[Origin, int, bool], ...] = ()
        self.wanters = 0
        self.wanted = False
        self.queued = False
        self.notebooks: tuple[str, ...] = ()
        self.tally: list[int] | None = None
        self.tallied = 0

    @property
    def seq(self) -> int:
        """Its turn among those submitted."""
        return self.location >> _PLACE

    @property
    def spec(self) -> Place:
        """Where its body is."""
        return self.location & _SPEC

    def lies(self, seq: int, place: Place) -> None:
        """Its turn is that, and there its body is."""
        self.location = seq << _PLACE | place

    @property
    def direct(self) -> int:
        """The last round that was invalidated directly."""
        return self.marks[0]

    @property
    def lost(self) -> int:
        """The last round whose value was lost."""
        return self.marks[1]

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        records = self.records
        if isinstance(records, bytes):
            return (opened(self.key, records),) if records else ()
        return tuple([opened(self.key, record) for record in records])

    @outcomes.setter
    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        records = tuple([packed(*outcome) for outcome in outcomes])
        self.records = records if len(records) > 1 else records[0] if records else b""

    def came_to(self, verdict: Verdict, place: Place, worker: WorkerId) -> None:
        """One more outcome."""
        record, records = packed(verdict, place, worker), self.records
        self.records = (*(records if isinstance(records, tuple) else (records,)), record) if records else record


class Attempt:
    """One claimed attempt; ``over`` once released. A verdict on it removes it."""

    __slots__ = ("attempt", "inputs", "over", "round", "worker")

    def __init__(self, round: int, inputs: bytes, attempt: int) -> None:
        self.round, self.inputs, self.attempt = round, inputs, attempt
        self.worker: WorkerId = ""
        self.over = False


class Offer(NamedTuple):
    """A ready task and the grant that a claim of it would be."""

    task: TaskRecord
    lease: Lease
    failures: int
    deaths: int


NO_KIND = FunctionQueue("", 0, "")


def retry_at_of(task: TaskRecord) -> float:
    """Before when it should not be tried again; 0 where there is no such time."""
    return max((verdict.retry_at for verdict in current(task)), default=0.0)


def current(task: TaskRecord) -> Iterator[Verdict]:
    """Verdicts on what the task is now: of its round, on its inputs."""
    for verdict, _, _ in task.outcomes:
        if verdict.round == task.round and verdict.inputs == task.inputs:
            yield verdict


def heaviest(task: TaskRecord) -> Outcome | None:
    """Its own final outcome that holds: of this round, on the inputs it has now; finished before failed, then later."""
    record = b"" if task.inputs is None else heaviest_record(task, task.inputs)
    return opened(task.key, record) if record else None


def heaviest_record(task: TaskRecord, inputs: bytes) -> bytes:
    records = task.records
    if isinstance(records, bytes):
        return records if records and holds(records, task.round, inputs) else b""
    best = None
    for record in records:
        if holds(record, task.round, inputs):
            verdict, _, worker = opened(task.key, record)
            weight = (bool(verdict.digest), verdict.attempt, verdict.digest, worker)
            if best is None or weight > best[0]:
                best = (weight, record)
    return b"" if best is None else best[1]


def is_bar(request: tuple[Origin, int, bool], origin: Origin) -> bool:
    """No longer wanting something without naming a cell speaks for all cells of the notebook."""
    by, _, wanted = request
    return not wanted and not by.cell and by.notebook == origin.notebook and by.user == origin.user


def wished_by_any(requests: tuple[tuple[Origin, int, bool], ...]) -> bool:
    if not requests:
        return False
    return any(
        wanted and not any(is_bar(other, origin) and other[1] > counter for other in requests)
        for origin, counter, wanted in requests
    )
