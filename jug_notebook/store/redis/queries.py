"""What a store in a Redis server can be asked: tasks, outcomes, counts, listings. Nothing here changes the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from jug_notebook.clock import Clock
from jug_notebook.model import (
    NO_INPUTS,
    Attempt,
    CurrentOutcome,
    FunctionView,
    Invalidation,
    Key,
    Lease,
    Origin,
    Scope,
    Snapshot,
    State,
    Target,
    TaskView,
    Verdict,
    Why,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.store.event_log import picture
from jug_notebook.store.redis.connection import Connection, packed
from jug_notebook.system import batched

BATCH = 500  #: tasks, with what they need, in one script
PAGE = 100  #: attempts that ended, with their outcomes, in one reply
STATES = list(State)
REUSED = len(STATES)

_verdict = msgspec.msgpack.Decoder(Verdict)


class Queries:
    """The verbs of a store that only read."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    def requested(self, origin: Origin) -> list[Key]:
        return [key.decode() for key in self._connection.read("requested", packed(origin))[2]]

    def origins(self) -> list[Origin]:
        return [Origin(*(part.decode() for part in row)) for row in self._connection.read("origins")[2]]

    def _by_key(self, what: str, keys: Sequence[Key]) -> Iterator[Any]:
        """Yield what ``by_key.lua`` returns for each key."""
        for part in batched(keys, BATCH):
            yield from self._connection.read("by_key", what, packed(part))[2]

    def states(self, keys: Sequence[Key]) -> list[State | None]:
        found: list[int] = []
        for part in batched(keys, BATCH):
            found += self._connection.read("states", packed(part))[2]
        return [STATES[state] if state >= 0 else None for state in found]

    def specs(self, keys: Sequence[Key]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for part in batched(keys, BATCH):
            found += self._connection.command("HMGET", self._connection.key("s"), *part)
        return found

    def outcomes(self, keys: Sequence[Key]) -> list[CurrentOutcome | None]:
        found: list[CurrentOutcome | None] = []
        for part in batched(keys, 1000):
            _, _, bodies, reused_from, more = self._connection.read("outcomes", packed(part))
            proofs = {index: tuple(more[number] for number in numbers) for index, *numbers in reused_from}
            found += [
                None if body is None else _current(body, proofs.get(index, ())) for index, body in enumerate(bodies)
            ]
        return found

    def blocking_tasks(self, keys: Sequence[Key]) -> list[Key | None]:
        found: list[Key | None] = []
        for key in keys:
            blocking, on = key, 1
            while on:
                _, _, raw, on = self._connection.read("blocking_task", blocking)
                blocking = raw.decode()
            found.append(blocking or None)
        return found

    def runs(self, scope: Scope = Scope(), limit: int = 0) -> tuple[list[Attempt], int]:
        found: dict[bytes, Attempt] = {}
        total = start = 0
        while start >= 0 and not (limit and len(found) >= limit):
            size = min(PAGE, limit - len(found)) if limit else PAGE
            _, _, total, bodies, rows, start = self._connection.read("runs", packed((_label_of(scope), start, size)))
            for row, counts in rows:
                if bodies[row] is not None:  # an attempt that moved between two pages counts once
                    held = _current(bodies[row], ())
                    found.setdefault(bodies[row], Attempt(held.verdict, held.body, bool(counts)))
            if len(found) >= total:
                break
        return list(found.values()), total

    def keys_named(self, name: str, scope: Scope = Scope()) -> list[Key]:
        return [view.key for _, view in sorted(self._listed(scope, frozenset([name])), key=_by_number)]

    def edges(self, scope: Scope = Scope()) -> list[tuple[str, str, int]]:
        kinds = self._kinds()
        counts: dict[tuple[str, str], int] = {}
        firsts: dict[tuple[str, str], int] = {}
        for number, (name, _, _) in enumerate(kinds, 1):
            on = -1
            while True:
                _, _, rows, on = self._connection.read("edges", packed((number, on, _label_of(scope))))
                for needed, first, count in rows:
                    pair = (name, kinds[needed - 1][0])
                    counts[pair] = counts.get(pair, 0) + count
                    firsts[pair] = min(firsts.get(pair, first), first)
                if on < 0:
                    break
        return [(*pair, counts[pair]) for pair in sorted(counts, key=firsts.__getitem__)]

    def tasks(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None, limit: int = 0
    ) -> list[TaskView]:
        if state is State.FAILED and target is None:
            return self._failed(scope, limit)
        found = dict[Key, tuple[int, TaskView]]()
        if target is None or target.names:
            for number, view in self._listed(scope, None if target is None else target.names, state):
                found[view.key] = (number, view)
        for number, view in self._viewed(list(target.keys) if target else [], scope, state):
            found[view.key] = (number, view)
        views = [view for _, view in sorted(found.values(), key=_by_number)]
        if state is State.FAILED:
            views.sort(key=_ended, reverse=True)
        return views[:limit] if limit else views

    def _failed(self, scope: Scope, limit: int) -> list[TaskView]:
        keys: list[Key] = []
        start, more = 0, 1
        while more and not (limit and len(keys) >= limit):
            _, _, part, more = self._connection.read("failed", packed((_label_of(scope), start, BATCH)))
            start += BATCH
            keys += (key.decode() for key in part)
        views = [view for _, view in self._viewed(keys[:limit] if limit else keys, scope, State.FAILED)]
        return sorted(views, key=_ended, reverse=True)

    def _listed(
        self, scope: Scope, names: Collection[str] | None, state: State | None = None
    ) -> Iterator[tuple[int, TaskView]]:
        """Yield tasks of these functions, with their numbers."""
        kinds = self._kinds()
        wanted = -1 if state is None else STATES.index(state)
        for number, (name, _, _) in enumerate(kinds, 1):
            on = -1
            while names is None or name in names:
                _, _, rows, on = self._connection.read("views", packed((False, number, on, _label_of(scope), wanted)))
                yield from (_view(row, kinds) for row in rows)
                if on < 0:
                    break

    def _viewed(self, keys: Sequence[Key], scope: Scope, state: State | None) -> Iterator[tuple[int, TaskView]]:
        wanted = -1 if state is None else STATES.index(state)
        for part in batched(keys, BATCH):
            rows = self._connection.read("views", packed((part, 0, 0, _label_of(scope), wanted)))[2]
            kinds = self._kinds() if rows else []
            yield from (_view(row, kinds) for row in rows)

    def _kinds(self) -> list[tuple[str, int, str]]:
        return self._tallies("")[0]

    def _tallies(
        self, label: str, asked: Sequence[tuple[WorkerId, Key]] = ()
    ) -> tuple[list[tuple[str, int, str]], list[tuple[int, State | None, int]], dict[str, float], list[Any]]:
        """Return functions; (function, state or None for reused, count); run statistics; and what workers do."""
        _, _, kinds, stats, counts, busy = self._connection.read("tallies", label, packed(asked))
        return (
            [(name.decode(), priority, python.decode()) for name, priority, python in kinds],
            [(kind, None if state == REUSED else STATES[state], count) for kind, state, count in counts],
            {name.decode(): float(number) for name, number in zip(stats[::2], stats[1::2], strict=True)},
            busy,
        )

    def current_inputs(self, keys: Sequence[Key]) -> list[Lease | None]:
        rows = zip(keys, self._by_key("inputs", keys), strict=True)
        return [Lease(key, row[0], inputs_from(row[1]), 0) if row else None for key, row in rows]

    def invalidations(self, keys: Sequence[Key]) -> list[Invalidation | None]:
        return [
            Invalidation(row[0], float(row[1]), row[2].decode(), Why(row[3].decode())) if row else None
            for row in self._by_key("invalidation", keys)
        ]

    def acceptances(self, keys: Sequence[Key]) -> list[bytes | None]:
        return [row[0] if row else None for row in self._by_key("acceptance", keys)]

    def foreign(self, python: str) -> dict[str, int]:
        kinds, counts, _, _ = self._tallies("")
        found = Counter[str]()
        for kind, state, count in counts:
            if state is State.READY and kinds[kind - 1][2] != python:
                found[kinds[kind - 1][2]] += count
        return dict(found)

    def _snapshot(self, scope: Scope, processes: Sequence[tuple[WorkerInfo, bool, float]]) -> Snapshot:
        asked = [(info.id, info.task) for info, _, _ in processes]
        kinds, counted, stats, busy = self._tallies(_label_of(scope), asked)
        now = self._clock.now()
        processes = [
            (_up_to_date(info, row, now - age), alive, age)
            for (info, alive, age), row in zip(processes, busy, strict=True)
        ]
        counts: dict[str, Counter[State]] = {name: Counter() for name, _, _ in kinds}
        reused, done, spent = Counter[str](), dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0)
        for kind, state, count in counted:
            name = kinds[kind - 1][0]
            reused[name] += count if state is None else 0
            counts[name][state or State.FINISHED] += count
        for number, (name, _, _) in enumerate(kinds, 1):
            done[name] += stats.get(f"{number}:done", 0.0)
            spent[name] += stats.get(f"{number}:spent", 0.0)
        functions = []
        for name, by_state in counts.items():
            if by_state:
                mean = spent[name] / done[name] if done[name] else None
                in_order = {state: by_state[state] for state in STATES if state in by_state}
                functions.append(FunctionView(name, in_order, mean, reused[name]))
        connection = self._connection
        return picture(connection.display_url, now, scope, functions, processes, connection.notes)


def inputs_text(inputs: bytes) -> str:
    """Return inputs as scripts write them."""
    return "-" if inputs == NO_INPUTS else inputs.hex()


def inputs_from(text: bytes) -> bytes:
    """Return inputs from what a script wrote."""
    return NO_INPUTS if text == b"-" else bytes.fromhex(text.decode())


def _current(body: bytes, proof: tuple[bytes, ...]) -> CurrentOutcome:
    size = 2 + int.from_bytes(body[:2], "big")
    return CurrentOutcome(_verdict.decode(body[2:size]), body[size:], proof)


def without_verdict(body: bytes) -> bytes:
    """Return a stored outcome without the verdict in front of it."""
    return body[2 + int.from_bytes(body[:2], "big") :]


def _view(row: Sequence[Any], kinds: Sequence[tuple[str, int, str]]) -> tuple[int, TaskView]:
    key, kind, number, state, worker, started, duration, attempt, whose = row
    return number, TaskView(
        key.decode(), kinds[kind - 1][0], STATES[state], worker.decode(), float(started), float(duration), attempt,
        source=whose.decode(),
    )  # fmt: skip


def _up_to_date(info: WorkerInfo, row: Sequence[Any], beat: float) -> WorkerInfo:
    """Return the info with what the server knows better than a heartbeat that is up to a second old.

    When its present task began is not known exactly: after its last ``beat``, and after its last run had ended.
    """
    done, task, name, differs, ended = row
    done = max(info.done, done)
    if not differs:
        return msgspec.structs.replace(info, done=done)
    since = max(beat, float(ended)) if task else 0.0
    return msgspec.structs.replace(
        info, done=done, task=task.decode(), task_name=name.decode(), since=since, progress=(0, 0)
    )


def _label_of(scope: Scope) -> str:
    return "" if scope.notebook is None else f"n:{scope.notebook}"


def _by_number(item: tuple[int, TaskView]) -> int:
    return item[0]


def _ended(view: TaskView) -> float:
    return view.started + view.duration
