"""The event log of a store in a Redis server: a stream of frames, and the bodies that belong to them in a hash.

    log        a stream; an entry holds frames (each an event, and the places of its bodies) under their writer's name;
               "o" wakes a supervisor that has orders, "m" tells that a snapshot replaces all up to an entry
    bodies     sealed specs and outcomes by place, which readers fetch as they need them
    claims     the open attempts, by `claim_name`, and the worker that has each
    snapshot   the name and length of a list of frames, and the last entry of the log that it replaces

Frames are sent in batches, with whatever else is to be sent, and each time what others have appended comes back. A
frame that is sent twice, because the connection broke, does no harm: applied twice, an event is the same as once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import Struct

from jug_notebook.errors import StoreError
from jug_notebook.model import Claimed, Event, Lease, Released, Settled, Verdict, WorkerId, WorkerLost
from jug_notebook.scheduler.records import Place
from jug_notebook.store.redis.connection import NOTHING, Command, Connection, number_of

PLACE = 12  #: bytes of a place: eight of its writer, then a number
ENTRIES = 200  #: of the log, read in one go
FRAMES = 32  #: of a snapshot, likewise
PART = 2000  #: bodies that are sent in one step
READING = 60  #: seconds for which a snapshot that was replaced can still be read


class Frame(Struct, frozen=True, array_like=True):
    """An event and the places of its bodies: the first of ``count`` consecutive ones, or each."""

    places: bytes
    count: int
    event: Event


class Appended(Struct, frozen=True):
    """A frame that was not sent so far."""

    frame: bytes
    first: Place
    bodies: Sequence[bytes]
    over: list[bytes]  #: names of claims that end with it


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def claim_name(lease: Lease | Verdict) -> bytes:
    """Return the name of an attempt."""
    return f"{lease.key}.{lease.round}.{lease.attempt}.".encode() + lease.inputs


def packed(places: Iterable[Place]) -> bytes:
    return b"".join([place.to_bytes(PLACE, "big") for place in places])


def places_in(data: bytes, count: int) -> Sequence[Place]:
    if len(data) == PLACE:
        first = int.from_bytes(data, "big")
        return range(first, first + count)
    return [int.from_bytes(data[at : at + PLACE], "big") for at in range(0, len(data), PLACE)]


class Log:
    """The log as one process writes and reads it. Not safe to use from several threads at once."""

    def __init__(self, connection: Connection) -> None:
        self.last = NOTHING  #: the latest entry that was read
        self.more = False  #: True where the last `exchange` didn't read to the end
        self.stale = (
            False  #: True where all must be read anew: the server has lost entries, or a snapshot replaces some
        )
        self.orders = 0  #: number of times that a supervisor had orders
        self.uncounted = False  #: True where something came since counts were left
        self._connection = connection
        self._losses = connection.losses
        self._name = connection.key("log")
        self._outbox: list[Appended] = []
        self._next = int.from_bytes(os.urandom(7), "big") << 32  # so much of a number that no other process has it
        self._writer = self._new_writer()

    @staticmethod
    def _new_writer() -> bytes:
        return os.urandom(6)

    # -- writing -------------------------------------------------------------------------------------------------------

    def append(self, event: Event, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        """Take an event on its way. Return the places of its bodies."""
        first, count = self._next, len(bodies)
        self._next += count
        over: list[bytes] = []
        if isinstance(event, Settled):
            over = list(map(claim_name, event.verdicts))
        elif isinstance(event, Released):
            over = list(map(claim_name, event.leases))
        frame = encode(Frame(packed([first]) if count else b"", count, event))
        self._outbox.append(Appended(frame, first, bodies, over))
        return range(first, first + count)

    def has(self, event: Event) -> bool:
        """Return whether an equal event is on its way."""
        return any(_decode(one.frame).event == event for one in self._outbox)

    @property
    def unsent(self) -> bool:
        """True where something is on its way."""
        return bool(self._outbox)

    def withdraw(self, count: int) -> None:
        """Forget the latest frames, which could not be sent. Should they have arrived nevertheless, they are read."""
        if count:
            del self._outbox[-count:]
        self._writer = self._new_writer()

    def claim_command(self, worker: WorkerId, leases: Sequence[Lease]) -> Command:
        """Return the command that claims attempts."""
        head = encode(Frame(b"", 0, Claimed(worker, [])))[:-1]
        rows = (part for lease in leases for part in (claim_name(lease), encode(lease)))
        return self._connection.script("claim", self._connection.id, self._writer, worker, head, *rows)

    def _appending(self, frames: Sequence[Appended], blobs: Sequence[str]) -> Command:
        bodies = [
            part
            for a in frames
            for at, body in enumerate(a.bodies, a.first)
            for part in (at.to_bytes(PLACE, "big"), body)
        ]
        over = [name for a in frames for name in a.over]
        return self._connection.script(
            "append", self._connection.id, self._writer, "" if bodies else 1, len(bodies), *bodies,
            len(frames), *(a.frame for a in frames),
            len(over), *over, len(blobs), *blobs,
        )  # fmt: skip

    def exchange(self, commands: Sequence[Command], blobs: Sequence[str]) -> tuple[list[object], list[Frame]]:
        """Send what was appended, then these commands. Return their replies, and frames that others have appended.

        ``blobs`` are keys of those that what was appended may name.
        """
        connection = self._connection
        outbox = list(self._outbox)
        appending = [self._appending(part, blobs) for part in _parted(outbox)]
        reading: list[Command] = [
            ("GET", connection.key("id")),
            ("XREAD", "COUNT", ENTRIES, "STREAMS", self._name, self.last),
        ]
        if self.last == NOTHING:
            reading.append(("HMGET", connection.key("snapshot"), "name", "upto", "frames"))
        replies = connection.pipeline([*appending, *commands, *reading])
        del self._outbox[: len(outbox)]
        for command in appending:
            connection.remember(command)
        id, entries, *snapshot = replies[len(appending) + len(commands) :]
        if id is None or id.decode() != connection.id:
            connection.check()
        asked = replies[len(appending) : len(appending) + len(commands)]
        if connection.losses != self._losses:
            self.stale = True
        if self.stale:
            return asked, []
        if snapshot and snapshot[0][0]:
            return asked, self._read_snapshot(*snapshot[0])
        return asked, self._read(entries[0][1] if entries else [])

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> list[Frame]:
        self.more = len(entries) == ENTRIES
        frames = []
        before = self.last
        for entry, fields in entries:
            writer = fields[0]
            if writer == b"o":
                self.orders += 1
            elif writer == b"m":
                if number_of(fields[1]) > number_of(before):
                    self.stale = True
                    return []
            else:
                for data in fields[1::2]:
                    self.uncounted = True
                    if writer != self._writer:
                        frames.append(self._frame(data))
            self.last = entry
        if entries:
            self._connection.seen = self.last
        return frames

    def _frame(self, data: bytes) -> Frame:
        try:
            return _decode(data)
        except msgspec.MsgspecError as error:
            raise StoreError(
                f"the log of {self._connection.display_url} can't be read ({error}): was it written by another version?"
            ) from error

    def _read_snapshot(self, name: bytes, upto: bytes, count: bytes) -> list[Frame]:
        frames: list[Frame] = []
        while True:
            command = ("LRANGE", self._connection.key(name.decode()), len(frames), len(frames) + FRAMES - 1)
            part = self._connection.command(*command)
            frames += map(self._frame, part)
            if len(part) < FRAMES:
                break
        if len(frames) != int(count):
            self.stale = True  # it was replaced by another long ago
            return []
        self.more = True
        self.last = self._connection.seen = upto
        return frames

    def ends_at(self, entry: bytes) -> bool:
        """Return True if after that entry nothing happened to tasks."""
        command = ("XREAD", "COUNT", 100, "STREAMS", self._name, entry)
        id, found = self._connection.pipeline([("GET", self._connection.key("id")), command])
        later = found[0][1] if found else []
        frames = [self._frame(data) for _, fields in later if len(fields[0]) > 1 for data in fields[1::2]]
        known = id == self._connection.id.encode() and len(later) < 100
        return known and all(type(frame.event) is WorkerLost for frame in frames)

    def read_anew(self) -> None:
        """Begin again from the start. What was appended must have been sent before."""
        self._losses = self._connection.losses
        self._writer = self._new_writer()
        self.last, self.stale = NOTHING, False

    def all_frames(self, upto: bytes) -> Iterator[tuple[Frame, int]]:
        """Yield all frames up to that entry, those of the snapshot first, with their bytes."""
        connection = self._connection
        name, covered = connection.command("HMGET", connection.key("snapshot"), "name", "upto")
        if name:
            at = 0
            while part := connection.command("LRANGE", connection.key(name.decode()), at, at + FRAMES - 1):
                at += len(part)
                yield from ((self._frame(data), len(data)) for data in part)
        start = covered or NOTHING
        while entries := connection.command("XRANGE", self._name, b"(" + start, upto, "COUNT", ENTRIES):
            start = entries[-1][0]
            for _, fields in entries:
                if len(fields[0]) > 1:
                    yield from ((self._frame(data), len(data)) for data in fields[1::2])


def _parted(frames: Sequence[Appended]) -> Iterator[Sequence[Appended]]:
    """Yield parts with a limited number of bodies."""
    part: list[Appended] = []
    held = 0
    for one in frames:
        if held and held + len(one.bodies) > PART:
            yield part
            part, held = [], 0
        part.append(one)
        held += len(one.bodies)
    if part:
        yield part
