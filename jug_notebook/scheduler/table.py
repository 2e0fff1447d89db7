"""All tasks of a scheduler state by key: those in use as records, most others packed into rows.

A task that needs nothing and that nothing needs is packed once it has a value of its own, or when it is ready and many
are before it. A row says all there is to know of it in a quarter of the space; what changes the task has its record
made again.
Rows are kept in buckets, by the first bytes of their keys, in which a key is searched.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from heapq import heappush, merge
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, TypeVar, overload

from jug_notebook.model import NO_INPUTS, Key, Origin, State, Verdict
from jug_notebook.scheduler.records import (
    FINISHED,
    NO_NUMBER,
    READY,
    STATES,
    UNKNOWN,
    FunctionQueue,
    Outcome,
    Place,
    TaskRecord,
    derived_outcome,
    round_of,
    unpacked,
)

T = TypeVar("T")

_ROW = Struct(">20s20sIII63p")  # location, key, kind, two counters, outcome
_WIDTH, _KEY, _DIGEST, _LONGEST = _ROW.size, 20, 20, 62  # bytes: of a row, before its key, of that, of an outcome
_PREFIX = Struct("=I").unpack_from  # of a key, which decides about its bucket
_NUMBER = 8  # bytes of a location that are the number in the order of submission
_ENTRY = _NUMBER + _DIGEST  # bytes, of a backlog: number and key
_CHUNK = 128 * _ENTRY  #: bytes of a backlog that are taken at once
_COUNTERS = 1 << 32  # higher ones don't fit into a row
_FULL = 8  # rows in a bucket, on average, before there are more buckets


class Kind(NamedTuple):
    """What many finished tasks have in common."""

    queue: FunctionQueue
    origin: Origin | None  #: who alone requested it, with a counter that the row has; else ``requests`` says it
    requests: tuple[tuple[Origin, int, bool], ...]
    notebooks: tuple[str, ...]
    marks: tuple[int, int]
    counted_as: int  #: which says also whether it is ready or finished
    wanted: bool


class TaskTable(Mapping[Key, TaskRecord]):
    """Tasks by key. What is asked for by key is the record itself; `values` are to be read only."""

    def __init__(self) -> None:
        self.live: dict[Key, TaskRecord] = {}  #: those that are not packed
        self.ended: list[TaskRecord] = []  #: those of them that may be packed
        self._most = 0  # that were live since the dictionary was made
        self._buckets = [bytearray() for _ in range(512)]
        self._packed = 0
        self._kinds: list[tuple[Kind, int, list[int] | None]] = []  # with the state, and the row of counts
        self._numbers: dict[Kind, int] = {}
        self._shared: dict[int, tuple[tuple[Origin, int, bool], ...]] = {}  # by kind: the requests made last

    # -- looking up ----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> TaskRecord:
        task = self.live.get(key) or self._unpack(key)
        if task is None:
            raise KeyError(key)
        return task

    @overload
    def get(self, key: Key, /) -> TaskRecord | None: ...
    @overload
    def get(self, key: Key, default: TaskRecord | T, /) -> TaskRecord | T: ...
    def get(self, key: Key, default: Any = None, /) -> Any:
        """Return a task's record, made again if it was packed."""
        return self.live.get(key) or self._unpack(key) or default

    def peek(self, key: Key) -> TaskRecord | None:
        """Return a task's record to be read only: a packed task remains packed."""
        task = self.live.get(key)
        if task is None and (found := self._find(key)) is not None:
            bucket, at = found
            task = self._record(bytes(bucket[at : at + _WIDTH]))
        return task

    def outcome(self, key: Key) -> Outcome | None:
        """Return the outcome of a packed task; None if it isn't one."""
        found = self._find(key)
        record = b"" if found is None else _ROW.unpack_from(*found)[-1]
        return unpacked(key, record) if record else None

    def outcomes(self, keys: Iterable[Key]) -> list[Outcome | None]:
        """Return the outcomes that count now, by key; None where there is none."""
        found: list[Outcome | None] = []
        for key, task, bucket, at in self._each(keys):
            record = _ROW.unpack_from(bucket, at)[-1] if task is None and at >= 0 else b""
            found.append(derived_outcome(task) if task is not None else unpacked(key, record) if record else None)
        return found

    def specs(self, keys: Iterable[Key]) -> list[Place | None]:
        """Return where the sealed specs of tasks are; None for what was never submitted."""
        found: list[Place | None] = []
        for _, task, bucket, at in self._each(keys):
            if task is not None:
                found.append(None if task.state == UNKNOWN else task.spec)
            else:
                found.append(int.from_bytes(bucket[at + _NUMBER : at + _KEY], "big") if at >= 0 else None)
        return found

    def calls(self, name: str) -> list[tuple[Key, State, Verdict | None]]:
        """Return the tasks of one function in the order of their submission, each with the verdict that counts now."""
        codes = {code: STATES[state] for code, (kind, state, _) in enumerate(self._kinds) if kind.queue.name == name}
        rows: list[tuple[Any, ...]] = [
            (task.location.to_bytes(_KEY, "big"), task)
            for task in self.live.values()
            if task.queue.name == name and task.state != UNKNOWN
        ]
        if codes:
            rows += [row for bucket in self._buckets for row in _ROW.iter_unpack(bucket) if row[2] in codes]
        rows.sort(key=itemgetter(0))
        found: list[tuple[Key, State, Verdict | None]] = []
        for row in rows:
            if len(row) == 2:
                task, outcome = row[1], derived_outcome(row[1])
                found.append((task.key, STATES[task.state], outcome and outcome[0]))
            else:
                key, record = row[1].hex(), row[-1]
                found.append((key, codes[row[2]], unpacked(key, record)[0] if record else None))
        return found

    def _each(self, keys: Iterable[Key]) -> Iterator[tuple[Key, TaskRecord | None, bytearray, int]]:
        """Yield each key with its live task, or with the bucket and start of its row, less than 0 if it has none.

        Many keys take less time than as many calls of `_find`.
        """
        live, buckets, mask, none = self.live.get, self._buckets, len(self._buckets) - 1, bytearray()
        for key in keys:
            task = live(key)
            if task is not None or (raw := _raw(key)) is None:
                yield key, task, none, -1
                continue
            bucket = buckets[_PREFIX(raw)[0] & mask]
            at = bucket.find(raw)
            while at >= 0 and at % _WIDTH != _KEY:
                at = bucket.find(raw, at + 1)
            yield key, None, bucket, at - _KEY

    def __contains__(self, key: object) -> bool:
        return key in self.live or (isinstance(key, str) and self._find(key) is not None)

    def state(self, key: Key) -> State | None:
        """Return the state of a packed task; None if it isn't one."""
        found = self._find(key)
        return None if found is None else STATES[self._kinds[_ROW.unpack_from(*found)[2]][1]]

    def __len__(self) -> int:
        return len(self.live) + self._packed

    def __iter__(self) -> Iterator[Key]:
        return (task.key for task in self.values())

    def values(self) -> Collection[TaskRecord]:  # type: ignore[override]
        """Return all tasks in the order of their submission, to be read only."""
        return _Values(self) if self._packed else self.live.values()

    def starting(self, beginning: str) -> list[Key]:
        """Return the keys that begin with these hex digits; packed tasks remain packed."""
        found = [key for key in self.live if key.startswith(beginning)]
        try:
            raw = bytes.fromhex(beginning[: len(beginning) // 2 * 2])
        except ValueError:
            return found
        buckets = self._buckets if len(raw) < 4 else [self._buckets[_PREFIX(raw)[0] & len(self._buckets) - 1]]
        for bucket in buckets:
            at = bucket.find(raw)
            while at >= 0:
                if at % _WIDTH == _KEY and (key := bucket[at : at + _DIGEST].hex()).startswith(beginning):
                    found.append(key)
                at = bucket.find(raw, at + 1)
        return found

    def _find(self, key: Key) -> tuple[bytearray, int] | None:
        """Return the bucket of a packed task, and where its row begins."""
        if not self._packed or len(key) != 2 * _DIGEST:
            return None
        try:
            raw = bytes.fromhex(key)
        except ValueError:
            return None
        bucket, at = self._search(raw)
        return None if at < 0 or raw.hex() != key else (bucket, at)

    def _search(self, raw: bytes) -> tuple[bytearray, int]:
        """Return a bucket, and where in it the row with that key begins; less than 0 if there is none."""
        bucket = self._buckets[_PREFIX(raw)[0] & len(self._buckets) - 1]
        at = bucket.find(raw)
        while at >= 0 and at % _WIDTH != _KEY:
            at = bucket.find(raw, at + 1)
        return bucket, at - _KEY

    # -- packing -------------------------------------------------------------------------------------------------------

    def pack(self, bound: Container[TaskRecord]) -> None:
        """Pack those of `ended` that can be, but what is ``bound``: its record is referred to elsewhere.

        To be called when each task's state follows from all that is known.
        """
        ended, live, number = self.ended, self.live, len(self._buckets)
        self.ended = []
        self._most = max(self._most, len(live))
        while self._packed + len(ended) > _FULL * number:  # who reads a store packs many at once
            number *= 4
        if number > len(self._buckets):
            self._spread(number)
        buckets, mask = self._buckets, len(self._buckets) - 1
        row, last, code, packed = _ROW.pack, None, 0, 0
        for task in ended:
            record, requests, key = task.records, task.requests, task.key
            if (
                (task.state != FINISHED and (task.state != READY or task.round or task.seq <= task.queue.newest))
                or record != task.value_digest
                or (task.needs or task.dependents or task.attempts or task.wanted_dependents)
                or task.reused_from is not None
                or len(record) > _LONGEST
                or live.get(key) is not task
                or (bound and task in bound)
                or (raw := _raw(key)) is None
            ):
                continue
            counter = requests[0][1] if len(requests) == 1 else 0
            if counter >= _COUNTERS or task.since >= _COUNTERS:
                continue
            common = task.queue, requests, task.notebooks, task.marks, task.counted_as, task.wanted
            if common != last:
                last, code = common, self._number(task)
            data = row(task.location.to_bytes(_KEY, "big"), raw, code, counter, task.since, record)
            buckets[_PREFIX(raw)[0] & mask] += data
            packed += 1
            if task.state == READY:
                _add(task.queue, data[:_NUMBER] + raw)
            del live[key]
            # who still has the record finds nothing to do with it, nor does a queue, for its number is another, and no
            # offer of it is valid: it is of no round
            task.state, task.round, task.requests, task.wanted, task.counted_in = UNKNOWN, -1, (), False, None
            task.location &= NO_NUMBER
        self._packed += packed
        if self._most > 4 * len(live) + 1000:  # a dictionary doesn't shrink
            self.live, self._most = dict(live), len(live)

    def _number(self, task: TaskRecord) -> int:
        """Return the number of a task's kind."""
        requests, origin = task.requests, None
        if len(requests) == 1 and requests[0][2]:
            origin, requests = requests[0][0], ()
        kind = Kind(task.queue, origin, requests, task.notebooks, task.marks, task.counted_as, task.wanted)
        number = self._numbers.setdefault(kind, len(self._kinds))
        if number == len(self._kinds):
            self._kinds.append((kind, task.state, task.counted_in))
        return number

    def _spread(self, number: int) -> None:
        former, self._buckets = self._buckets, [bytearray() for _ in range(number)]
        for bucket in former:
            for at in range(0, len(bucket), _WIDTH):
                self._buckets[_PREFIX(bucket, at + _KEY)[0] & number - 1] += bucket[at : at + _WIDTH]

    # -- unpacking -----------------------------------------------------------------------------------------------------

    def _unpack(self, key: Key) -> TaskRecord | None:
        """Return the record of a packed task, which is no longer packed, until the next time."""
        found = self._find(key)
        return None if found is None else self._take_out(*found)

    def _take_out(self, bucket: bytearray, at: int) -> TaskRecord:
        task = self._record(bytes(bucket[at : at + _WIDTH]))
        del bucket[at : at + _WIDTH]
        self._packed -= 1
        self.live[task.key] = task
        if task.state == READY:
            task.queued = True
            heappush(task.queue.heap, (task.seq, task))
        else:
            self.ended.append(task)
        return task

    def has_ready(self, chunk: bytes) -> bool:
        """Return whether any task in a chunk of a backlog is packed and ready."""
        starts = range(_NUMBER, len(chunk), _ENTRY)
        return any(self.state(chunk[at : at + _DIGEST].hex()) is State.READY for at in starts)

    def unpack_ready(self, queue: FunctionQueue) -> None:
        """Put the first chunk of a backlog into the heap; what became of a task meanwhile is known elsewhere."""
        chunk = queue.backlog.popleft()
        for at in range(0, len(chunk), _ENTRY):
            bucket, start = self._search(chunk[at + _NUMBER : at + _ENTRY])
            if start >= 0 and bucket.startswith(chunk[at : at + _NUMBER], start):
                self._take_out(bucket, start)

    def _record(self, row: bytes) -> TaskRecord:
        location, key, code, counter, since, record = _ROW.unpack(row)
        kind, state, counted_in = self._kinds[code]
        requests = kind.requests
        if kind.origin is not None:
            requests = self._shared.get(code, ())
            if not requests or requests[0][1] != counter:
                requests = self._shared[code] = ((kind.origin, counter, True),)
        return TaskRecord(
            key.hex(), state, kind.queue, (), (), b"", since, int.from_bytes(location, "big"), round_of(record),
            NO_INPUTS, 0, 0, record, record, None, kind.marks, None, requests, 0, kind.wanted, False, kind.notebooks,
            counted_in, kind.counted_as,
        )  # fmt: skip


class _Values(Collection[TaskRecord]):
    """The tasks of a table as it is when they are asked for."""

    def __init__(self, table: TaskTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, task: object) -> bool:
        return any(task is one for one in self._table.live.values())

    def __iter__(self) -> Iterator[TaskRecord]:
        table = self._table
        rows = [bytes(bucket[at : at + _WIDTH]) for bucket in table._buckets for at in range(0, len(bucket), _WIDTH)]
        rows.sort()
        return merge(sorted(table.live.values(), key=by_number), map(table._record, rows), key=by_number)


def by_number(task: TaskRecord) -> int:
    """Return a task's number in the order of submission."""
    return task.seq


def _add(queue: FunctionQueue, data: bytes) -> None:
    """Add a number and a key to a backlog."""
    queue.newest = int.from_bytes(data[:_NUMBER], "big")
    if queue.backlog and len(queue.backlog[-1]) < _CHUNK:
        queue.backlog[-1] += data
    else:
        queue.backlog.append(data)


def first_of(backlog: Sequence[bytes]) -> int:
    """Return the lowest number in a backlog."""
    return int.from_bytes(backlog[0][:_NUMBER], "big")


def _raw(key: Key) -> bytes | None:
    """Return a key of 40 hexadecimal digits as 20 bytes; None for any other."""
    try:
        raw = bytes.fromhex(key)
    except ValueError:
        return None
    return raw if len(raw) == 20 and raw.hex() == key else None
