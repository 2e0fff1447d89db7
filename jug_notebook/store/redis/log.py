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
from collections.abc import Iterator, Sequence

from msgspec import Struct

from jug_notebook.errors import StoreError
from jug_notebook.model import Claimed, Event, Key, Lease, Released, Settled, Verdict, WorkerId, WorkerLost
from jug_notebook.scheduler.records import Place
from jug_notebook.store.redis.connection import NOTHING, Command, Connection, number_of, understood
from jug_notebook.store.redis.frames import (
    CLAIMS,
    PLACE,
    WRITER,
    Chain,
    Covered,
    Frame,
    FrameReader,
    Read,
    claim_frame,
    encode,
    packed,
)
from jug_notebook.store.sealing import EventSeal, event_seal

ENTRIES = 200  #: of the log, read in one go
FRAMES = 32  #: of a snapshot, likewise
PART = 2000  #: bodies that are sent in one step
NAMES = 10_000  #: of attempts that are kept
RESTARTS = 3  #: readings of a snapshot that is not whole
ORDERS, TRIMMED = b"o", b"m"  #: names under which no frames stand
READING = 60  #: seconds for which a snapshot that was replaced can still be read


class Appended(Struct, frozen=True):
    """A frame that was not sent so far."""

    event: Event | Read
    writer: bytes
    frame: bytes
    first: Place
    bodies: Sequence[bytes]
    over: list[bytes]  #: names of claims that end with it


def claim_name(lease: Lease | Verdict, seal: EventSeal) -> bytes:
    """Return the name of an attempt, which ends with a MAC, so that nobody without the key can claim it ahead."""
    name = f"{lease.key}.{lease.round}.{lease.attempt}.".encode() + lease.inputs
    return name + seal.attempt(name)


class Log:
    """The log as one process writes and reads it. Not safe to use from several threads at once."""

    def __init__(self, connection: Connection) -> None:
        self.unverified, self.seal = event_seal(connection.id)
        self.reader = FrameReader(self.seal, connection.display_url)
        self.last = NOTHING  #: the latest entry that was read
        self.more = False  #: True where the last `exchange` didn't read to the end
        self.stale = (
            False  #: True where all must be read anew: the server has lost entries, or a snapshot replaces some
        )
        self.orders = 0  #: number of times that a supervisor had orders
        self.arrived: list[Frame] = []  #: what others have appended, to be applied
        self.uncounted = False  #: True where something came since counts were left
        self._connection = connection
        self._losses = connection.losses
        self._name = connection.key("log")
        self._outbox: list[Appended] = []
        self._names: dict[Key, tuple[Lease | Verdict, bytes]] = {}  # of attempts that were claimed and are not over
        self._next = int.from_bytes(os.urandom(7), "big") << 32  # so much of a number that no other process has it
        self._handled = NOTHING  # of the snapshots that were noticed, the last entry that one replaces
        self._restarts = 0  # in a row
        self._refused = b""  # the name of a snapshot that is not whole, to be read once only
        self._change_writer()

    def _change_writer(self) -> None:
        """Go on under another name, so that what was sent under the former one is read."""
        self._writer = os.urandom(WRITER)
        self._chain = None if self.seal is None else Chain(self._writer, self.seal)

    def chain_named(self, name: bytes) -> Chain:
        """Return a new chain of frames. Raises StoreError where the store's key isn't known."""
        self.require_key()
        assert self.seal is not None
        return Chain(name, self.seal)

    def require_key(self) -> None:
        """Raise StoreError unless the store's key is known, and signs. If it has become known, all is read anew."""
        if self._chain is None:
            self.unverified, self.seal = event_seal(self._connection.id)
            if self.seal is None:
                raise StoreError(self.unverified)
            self.stale = True
            self._change_writer()
        if self.seal is not None and self.seal.read_only:
            raise StoreError(self.seal.read_only)

    # -- writing -------------------------------------------------------------------------------------------------------

    def leave(self) -> dict[str, int]:
        """Append the last frame, if there are any: see `Read`. Return how far this writer will have come with it."""
        if self._chain is None or not self._chain.number:
            return {}
        reader = self.reader
        read = {name.hex(): at for name, (at, mac) in reader.chains.items() if reader.covered.get(name) != (at, mac)}
        self.append(Read(read))
        return {self._writer.hex(): self._chain.number}

    def append(self, event: Event | Read, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        """Take an event on its way. Return the places of its bodies."""
        first, count = self._next, len(bodies)
        self._next += count
        assert self._chain is not None, "without the store's key, nothing can be written"
        over: list[bytes] = []
        if isinstance(event, Settled):
            over = self.claim_names(event.verdicts)
        elif isinstance(event, Released):
            over = self.claim_names(event.leases)
        frame = self._chain.frame(Frame(packed([first]) if count else b"", count, event))
        self._outbox.append(Appended(event, self._writer, frame, first, bodies, over))
        return range(first, first + count)

    def has(self, event: Event) -> bool:
        """Return whether an equal event is on its way."""
        return any(one.event == event for one in self._outbox)

    @property
    def unsent(self) -> bool:
        """True where something is on its way."""
        return bool(self._outbox)

    def withdraw(self, count: int) -> None:
        """Forget the latest frames, which could not be sent. Should they have arrived nevertheless, they are read."""
        if count:
            del self._outbox[-count:]
        self._change_writer()

    def claim_names(self, leases: Sequence[Lease | Verdict]) -> list[bytes]:
        """Return the names of attempts. Raises StoreError where the store's key isn't known."""
        self.require_key()
        assert self.seal is not None
        names, found = self._names, []
        for lease in leases:
            known, name = names.pop(lease.key, (lease, b""))
            same = (known.round, known.attempt, known.inputs) == (lease.round, lease.attempt, lease.inputs)
            found.append(name if name and same else claim_name(lease, self.seal))
        return found

    def claim_command(
        self, worker: WorkerId, tokens: Sequence[Lease], leases: Sequence[Lease], again: Command = ()
    ) -> Command:
        """Return the command that claims tokens and attempts; if it wins all, it appends that to the log.

        ``again``: the command by which they were won, to be repeated if the server loses that.
        """
        assert self.seal is not None, "without the store's key, nothing can be claimed"
        names = self.claim_names([*tokens, *leases])
        if len(self._names) > NAMES:  # most were not won, or are not to be settled here
            self._names.clear()
        self._names.update({lease.key: (lease, name) for lease, name in zip(leases, names[len(tokens) :], strict=True)})
        if len(again) == 9 + len(names):
            return (*again[:8], 1, *names)
        frame = claim_frame(self._writer, Claimed(worker, list(leases), list(tokens)), self.seal)
        return self._connection.script(
            "claim", self._connection.id, CLAIMS + self._writer, worker, frame, int(bool(again)), *names
        )

    def _appending(self, frames: Sequence[Appended], blobs: Sequence[str]) -> Command:
        bodies = [
            part
            for a in frames
            for at, body in enumerate(a.bodies, a.first)
            for part in (at.to_bytes(PLACE, "big"), body)
        ]
        over = [name for a in frames for name in a.over]
        return self._connection.script(
            "append", self._connection.id, frames[0].writer, "" if bodies else 1, len(bodies), *bodies,
            len(frames), *(a.frame for a in frames),
            len(over), *over, len(blobs), *blobs,
        )  # fmt: skip

    @understood
    def exchange(self, commands: Sequence[Command], blobs: Sequence[str]) -> list[object]:
        """Send what was appended, then these commands. Return their replies; what others have appended has `arrived`.

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
            reading.append(("HGET", connection.key("snapshot"), "name"))
        replies = connection.pipeline([*appending, *commands, *reading])
        try:
            del self._outbox[: len(outbox)]
            for command in appending:
                connection.remember(command)
            id, entries, *snapshot = replies[len(appending) + len(commands) :]
            if id != connection.id.encode():
                connection.check()
            if connection.losses != self._losses:
                self.stale = True
            if self.stale:
                pass
            elif snapshot and snapshot[0] not in (None, self._refused):
                self._read_snapshot(snapshot[0])
            else:
                self._read(entries[0][1] if entries else [])
        except BaseException:  # an interrupt, for example: part of what came was taken in
            self.stale = True
            raise
        return replies[len(appending) : len(appending) + len(commands)]

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> None:
        self.more = len(entries) == ENTRIES
        before, own = self.last, (self._writer, CLAIMS + self._writer)
        for entry, fields in entries:
            writer = fields[0]
            if writer == ORDERS:
                self.orders += 1
            elif writer == TRIMMED:
                if number_of(fields[1]) > max(number_of(before), number_of(self._handled)):
                    self._handled = fields[1]
                    self.stale = True
                    return
            else:
                self.uncounted = True
                if writer not in own:
                    self.arrived += self.reader.entry(fields)
                elif writer == self._writer:
                    self.reader.follow(writer, fields[-1])
            self.last = entry
        if entries:
            self._connection.seen = self.last

    def _read_snapshot(self, name: bytes) -> None:
        frames = list(read_snapshot(self._connection, name, self.reader))
        ends = [frame.event for frame in (frames[0], frames[-1]) if isinstance(frame.event, Covered)] if frames else []
        self.more = True
        if len(ends) < 2 or len(frames) < 2:
            self._restarts += 1
            self.stale = self._restarts < RESTARTS  # it was replaced by another long ago
            if self.stale:
                return
            self._refused = name  # it is damaged: what holds of it counts
        self._restarts = 0
        self.reader.chains.pop(name, None)
        for covered in ends[-1:]:
            self.last = self._connection.seen = covered.upto
            self.reader.chains.update(covered.chains)
            self.reader.covered = covered.chains
        self.arrived += [frame for frame in frames if not isinstance(frame.event, Covered)]

    @understood
    def ends_at(self, entry: bytes) -> bool:
        """Return True if after that entry nothing happened to tasks."""
        command = ("XREAD", "COUNT", 100, "STREAMS", self._name, entry)
        id, found = self._connection.pipeline([("GET", self._connection.key("id")), command])
        later = found[0][1] if found else []
        reader = FrameReader(self.seal, self._connection.display_url)
        frames = [frame for _, fields in later if len(fields[0]) > 1 for frame in reader.entry(fields)]
        known = id == self._connection.id.encode() and len(later) < 100
        return known and all(type(frame.event) is WorkerLost for frame in frames)

    def read_anew(self) -> None:
        """Begin again from the start. What was appended must have been sent before."""
        self._losses = self._connection.losses
        self._change_writer()
        self.reader = FrameReader(self.seal, self._connection.display_url)
        self.last, self.stale, self.arrived = NOTHING, False, []

    def all_frames(self, upto: bytes) -> Iterator[tuple[Frame, int]]:
        """Yield all frames up to that entry, those of the snapshot first, with their bytes; then the chains there."""
        connection, start = self._connection, NOTHING
        reader = FrameReader(self.seal, connection.display_url)
        if name := connection.command("HGET", connection.key("snapshot"), "name"):
            for frame in read_snapshot(connection, name, reader):
                if isinstance(frame.event, Covered):
                    start = frame.event.upto
                    reader.chains |= frame.event.chains
                else:
                    yield frame, len(encode(frame))
            reader.chains.pop(name, None)
        while entries := connection.command("XRANGE", self._name, b"(" + start, upto, "COUNT", ENTRIES):
            start = entries[-1][0]
            for _, fields in entries:
                if len(fields[0]) > 1:
                    yield from ((frame, len(encode(frame))) for frame in reader.entry(fields))
        yield Frame(b"", 0, Covered(upto, reader.chains)), 0


def read_snapshot(connection: Connection, name: bytes, reader: FrameReader) -> Iterator[Frame]:
    """Yield the frames of a snapshot."""
    at = 0
    while part := connection.command("LRANGE", connection.key(name.decode(errors="replace")), at, at + FRAMES - 1):
        at += len(part)
        yield from reader.entry([field for data in part for field in (name, data)])


def _parted(frames: Sequence[Appended]) -> Iterator[Sequence[Appended]]:
    """Yield parts with a limited number of bodies."""
    part: list[Appended] = []
    held = 0
    for one in frames:
        if part and (one.writer != part[0].writer or (held and held + len(one.bodies) > PART)):
            yield part
            part, held = [], 0
        part.append(one)
        held += len(one.bodies)
    if part:
        yield part
