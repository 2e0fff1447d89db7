"""All tasks of a scheduler state by key: those in use as records, most others packed into rows.

A task that needs nothing and that nothing needs is packed once it has a value of its own, or when it is ready and many
are before it. A row says all there is to know of it in a quarter of the space; what changes the task has its record
made again.
All rows are in one array, and found by a hash table of their numbers. So they take no more memory than their bytes, and
what records leave free is free for others.
"""

from __future__ import annotations

from array import array
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
_PREFIX, _HASHED = Struct("=I").unpack_from, 4  # of a key: its hash; that many bytes
_NUMBER = 8  # bytes of a location that are the number in the order of submission
_ENTRY = _NUMBER + _DIGEST  # bytes, of a backlog: number and key
_CHUNK = 128 * _ENTRY  #: bytes of a backlog that are taken at once
_COUNTERS = 1 << 32  # higher ones don't fit into a row
_NO_KIND = 255 << 24  # from which on the kind is that of a row that is free
_PART = 1024 * _WIDTH  # bytes of rows that are gone through together


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
        self._rows = bytearray(b"\xff" * _WIDTH)  # row 0 is none
        self._free: list[int] = []  # rows that can be used again
        self._index = array("I", bytes(4 * 1024))  # the number of each key's row, or 0, at its hash or behind it
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
        if task is None and (found := self._find(key)):
            task = self._record(self._row(found))
        return task

    def outcome(self, key: Key) -> Outcome | None:
        """Return the outcome of a packed task; None if it isn't one."""
        record = self._row(found)[-1] if (found := self._find(key)) else b""
        return unpacked(key, record) if record else None

    def outcomes(self, keys: Iterable[Key]) -> list[Outcome | None]:
        """Return the outcomes that count now, by key; None where there is none."""
        found: list[Outcome | None] = []
        rows, unpack = self._rows, _ROW.unpack_from
        for key, task, number in self._each(keys):
            if number:
                record = unpack(rows, number * _WIDTH)[-1]
                found.append(unpacked(key, record) if record else None)
            else:
                found.append(None if task is None else derived_outcome(task))
        return found

    def specs(self, keys: Iterable[Key]) -> list[Place | None]:
        """Return where the sealed specs of tasks are; None for what was never submitted."""
        found: list[Place | None] = []
        for _, task, number in self._each(keys):
            if task is not None:
                found.append(None if task.state == UNKNOWN else task.spec)
            else:
                found.append(int.from_bytes(self._row(number)[0][_NUMBER:], "big") if number else None)
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
            rows += [row for row in self._all() if row[2] in codes]
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

    def _each(self, keys: Iterable[Key]) -> Iterator[tuple[Key, TaskRecord | None, int]]:
        """Yield each key with its live task, or with the number of its row, 0 if it has none.

        Many keys take less time than as many calls of `_find`.
        """
        live, index, begins, mask = self.live.get, self._index, self._rows.startswith, len(self._index) - 1
        prefix, width, start = _PREFIX, _WIDTH, _KEY
        for key in keys:
            task, number = live(key), 0
            if task is None and (raw := _raw(key)) is not None:
                at = prefix(raw)[0] & mask
                while (number := index[at]) and not begins(raw, number * width + start):
                    at = at + 1 & mask
            yield key, task, number

    def __contains__(self, key: object) -> bool:
        return key in self.live or (isinstance(key, str) and self._find(key) > 0)

    def state(self, key: Key) -> State | None:
        """Return the state of a packed task; None if it isn't one."""
        return STATES[self._kinds[self._row(found)[2]][1]] if (found := self._find(key)) else None

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
        rows = self._all() if len(raw) < _HASHED else self._near(raw)
        keys = (row[1].hex() for row in rows if row[1].startswith(raw))
        return found + [key for key in keys if key.startswith(beginning)]

    def _find(self, key: Key) -> int:
        """Return the number of a packed task's row; 0 if it isn't one."""
        if not self._packed or (raw := _raw(key)) is None:
            return 0
        number: int = self._index[self._search(raw)]
        return number

    def _search(self, raw: bytes) -> int:
        """Return where the index has the row with that key, or nothing and room for it."""
        index, rows, mask = self._index, self._rows, len(self._index) - 1
        at: int = _PREFIX(raw)[0] & mask
        while (number := index[at]) and not rows.startswith(raw, number * _WIDTH + _KEY):
            at = at + 1 & mask
        return at

    def _all(self) -> Iterator[tuple[Any, ...]]:
        """Yield all rows, from copies of parts: an array that is looked into can't grow."""
        for at in range(0, len(self._rows), _PART):
            for row in _ROW.iter_unpack(self._rows[at : at + _PART]):
                if row[2] < _NO_KIND:
                    yield row

    def _near(self, raw: bytes) -> Iterator[tuple[Any, ...]]:
        """Yield the rows among which are all whose keys begin so: with as much as is hashed, or more."""
        index, mask = self._index, len(self._index) - 1
        at = _PREFIX(raw)[0] & mask
        while number := index[at]:
            yield self._row(number)
            at = at + 1 & mask

    def _row(self, number: int) -> tuple[Any, ...]:
        row: tuple[Any, ...] = _ROW.unpack_from(self._rows, number * _WIDTH)
        return row

    # -- packing -------------------------------------------------------------------------------------------------------

    def pack(self, bound: Container[TaskRecord]) -> None:
        """Pack those of `ended` that can be, but what is ``bound``: its record is referred to elsewhere.

        To be called when each task's state follows from all that is known.
        """
        ended, live, rows, free = self.ended, self.live, self._rows, self._free
        self.ended = []
        self._most = max(self._most, len(live))
        self._make_room(self._packed + len(ended))
        index, mask = self._index, len(self._index) - 1
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
            at = _PREFIX(raw)[0] & mask
            while index[at]:
                at = at + 1 & mask
            index[at] = number = free.pop() if free else len(rows) // _WIDTH
            rows[number * _WIDTH : (number + 1) * _WIDTH] = data
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

    def _make_room(self, count: int) -> None:
        """Let the index have room for so many rows: twice as much, so that a search is short."""
        size, numbers = len(self._index), self._index
        while size < 2 * count:
            size *= 2
        if size > len(numbers):
            self._index, mask = array("I", bytes(4 * size)), size - 1
            index, rows = self._index, self._rows
            for number in filter(None, numbers):
                at = _PREFIX(rows, number * _WIDTH + _KEY)[0] & mask
                while index[at]:
                    at = at + 1 & mask
                index[at] = number

    # -- unpacking -----------------------------------------------------------------------------------------------------

    def _unpack(self, key: Key) -> TaskRecord | None:
        """Return the record of a packed task, which is no longer packed, until the next time."""
        if not self._packed or (raw := _raw(key)) is None:
            return None
        at = self._search(raw)
        return self._take_out(at) if self._index[at] else None

    def _take_out(self, at: int) -> TaskRecord:
        """Return the record of the row that the index has there, which is free then."""
        index, rows, mask = self._index, self._rows, len(self._index) - 1
        number = index[at]
        start = number * _WIDTH
        task = self._record(_ROW.unpack_from(rows, start))
        self._free.append(number)
        rows[start + 2 * _KEY] = 255  # of no kind
        hole = at
        while number := index[at := at + 1 & mask]:  # what would not be found behind the hole moves into it
            if at - _PREFIX(rows, number * _WIDTH + _KEY)[0] & mask >= at - hole & mask:
                index[hole], hole = number, at
        index[hole] = 0
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
        search, index, rows = self._search, self._index, self._rows
        for at in range(0, len(chunk), _ENTRY):
            found = search(chunk[at + _NUMBER : at + _ENTRY])
            number = index[found]
            if number and rows.startswith(chunk[at : at + _NUMBER], number * _WIDTH):
                self._take_out(found)

    def _record(self, row: tuple[Any, ...]) -> TaskRecord:
        location, key, code, counter, since, record = row
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
        rows = sorted(table._all(), key=itemgetter(0))
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
