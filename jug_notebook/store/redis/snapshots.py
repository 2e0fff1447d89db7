"""Compaction of a store in a Redis server: a snapshot takes the place of the log so far."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from jug_notebook.model import Event
from jug_notebook.scheduler.records import Place
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.store.event_log import places_of
from jug_notebook.store.merging import Merger
from jug_notebook.store.redis.connection import NOTHING, Connection
from jug_notebook.store.redis.frames import PLACE, Covered, Frame, Read, packed, places_in
from jug_notebook.store.redis.log import READING, Log
from jug_notebook.store.sealing import ATTEMPT
from jug_notebook.system import batched

ABANDONED = 600  #: seconds after which a compaction counts as abandoned
TOGETHER = 1 << 22  #: bytes of frames that are sent at once


class Snapshot:
    """A list of frames that is being written. It vanishes by itself unless it takes the place of the log."""

    def __init__(self, connection: Connection, log: Log) -> None:
        self.name = f"snapshot:{secrets.token_hex(6)}"
        self._chain = log.chain_named(self.name.encode())
        self.frames = self.size = 0
        self.kept: set[Place] = set()
        self._connection = connection
        self._waiting: list[bytes] = []

    def append(self, event: Event, places: Sequence[Place]) -> None:
        self.kept.update(places)
        self._put(Frame(packed(places), len(places), event))

    def cover(self, covered: Covered) -> None:
        """Append its first or last frame."""
        self._put(Frame(b"", 0, covered))

    def _put(self, frame: Frame) -> None:
        self._waiting.append(self._chain.frame(frame))
        self.frames += 1
        self.size += len(self._waiting[-1])
        if sum(map(len, self._waiting)) > TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Send what is waiting."""
        if self._waiting:
            key = self._connection.key(self.name)
            full = self._connection.though_full("RPUSH", key, *self._waiting)
            self._connection.pipeline([full, ("EXPIRE", key, ABANDONED)])
            self._waiting.clear()


def compact(connection: Connection, log: Log, scheduler: SchedulerState, alone: bool) -> int:
    """Let a snapshot take the place of the log up to what was read of it. Return the bytes saved.

    ``scheduler`` is the state there; ``alone`` means that no other process may still write about what was forgotten.
    """
    key, upto = connection.key, log.last
    if upto == NOTHING or not connection.run("full", "SET", key("compacting"), 1, "NX", "EX", ABANDONED):
        return 0
    try:
        snapshot = Snapshot(connection, log)
        merger = Merger(scheduler, snapshot.append, alone)
        before, found = 0, set[Place]()
        covered = Covered(upto, {})
        snapshot.cover(covered)
        for frame, size in log.all_frames(upto):
            if isinstance(frame.event, Covered | Read):
                covered = frame.event if isinstance(frame.event, Covered) else covered
                continue
            before += size
            places = places_in(frame.places, frame.count)
            found.update(places)
            merger.take(frame.event, places)
        merger.finish()
        snapshot.cover(covered)
        snapshot.flush()
        connection.run("trim", connection.id, snapshot.name, upto, READING, snapshot.frames)
        used = snapshot.kept | scheduler.reuse.places()
        used.update(place for task in scheduler.tasks.values() for place in places_of(task))
        saved = _drop_bodies(connection, list(found - used))
        _drop_claims(connection, scheduler)
        return saved + max(0, before - snapshot.size)
    finally:
        connection.command("DEL", key("compacting"))


def _drop_bodies(connection: Connection, places: Sequence[Place]) -> int:
    """Drop bodies that no event names any more. Return their bytes."""
    name, size = connection.key("bodies"), 0
    for part in batched(places):
        fields = [place.to_bytes(PLACE, "big") for place in part]
        *sizes, _ = connection.pipeline([*(("HSTRLEN", name, field) for field in fields), ("HDEL", name, *fields)])
        size += sum(sizes)
    return size


def _drop_claims(connection: Connection, scheduler: SchedulerState) -> None:
    """Drop the names of attempts of earlier rounds, and of those before one that has an outcome."""
    over = [name for name in connection.command("HKEYS", connection.key("claims")) if _is_over(name, scheduler)]
    for part in batched(over):
        connection.command("HDEL", connection.key("claims"), *part)


def _is_over(name: bytes, scheduler: SchedulerState) -> bool:
    try:
        raw, round, attempt, inputs = name.split(b".", 3)
        key, *_ = raw.decode(), int(round), int(attempt)
        inputs = inputs[:-ATTEMPT]
    except ValueError:  # not a name of ours
        return True
    task = scheduler.tasks.peek(key)
    if task is None or int(round) < task.round or int(round) <= scheduler.forgotten.get(key, (0, -1))[1]:
        return key in scheduler.forgotten or task is not None or scheduler.limits.is_over(key, int(attempt))
    return any(
        (verdict.round, verdict.inputs) == (int(round), inputs) and verdict.attempt >= int(attempt)
        for verdict, _, _ in task.outcomes
    )
