"""Frames of a log in a Redis server, which is a courier and no judge: sealed by their writer, checked by every reader.

A frame is a number, the MAC of the frame before, its own MAC (see `sealing`), and msgpack of a `Frame`. The frames of
one writer are a chain under its random name. A frame that is sent again, because a connection broke or the server lost
it, is the same frame, and does no harm. One that fails is skipped; where some are missing, that is noted. What the
server can do unseen is to hold back the latest frames of a writer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Union

import msgspec
from msgspec import Struct

from jug_notebook.model import UNREADABLE, Claimed, Event, body_count
from jug_notebook.scheduler.records import Place
from jug_notebook.store.sealing import FIRST, MAC, EventSeal, with_mac, without_mac

PLACE = 12  #: bytes of a place: eight of its writer, then a number
WRITER = 6  #: bytes of a writer's name
CLAIMS = b"c"  #: before the name of a writer whose script has appended what it claimed
NOTED = 10  #: faults that are noted
FORGED = "that are damaged, or not written by someone with the store's key"
_HEAD = struct.Struct(f"<Q{MAC}s{MAC}s")


class Covered(Struct, frozen=True, array_like=True, tag="covered"):
    """The first and the last frame of a snapshot: the last entry of the log that it replaces, and the chains there.

    ``chains``: for each writer, the number of its next frame, and the MAC of its last one.
    """

    upto: bytes
    chains: dict[bytes, tuple[int, bytes]]


class Read(Struct, frozen=True, array_like=True, tag="read"):
    """The last frame of a writer: the number of the next frame of others, as far as it had read them."""

    chains: dict[str, int]


class Frame(Struct, frozen=True, array_like=True):
    """An event and the places of its bodies: the first of ``count`` consecutive ones, or each."""

    places: bytes
    count: int
    event: Union[Event, Covered, Read]


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def packed(places: Iterable[Place]) -> bytes:
    return b"".join([place.to_bytes(PLACE, "big") for place in places])


def places_in(data: bytes, count: int) -> Sequence[Place]:
    if len(data) == PLACE:
        first = int.from_bytes(data, "big")
        return range(first, first + count)
    return [int.from_bytes(data[at : at + PLACE], "big") for at in range(0, len(data), PLACE)]


class Chain:
    """The frames that one writer makes."""

    def __init__(self, name: bytes, seal: EventSeal) -> None:
        self.name = name
        self._seal = seal
        self.number = 0  #: of the next frame
        self._mac = FIRST

    def frame(self, frame: Frame) -> bytes:
        """Return the next frame, sealed."""
        content = encode(frame)
        mac = self._seal.frame(self.name, self.number, self._mac, content)
        whole = _HEAD.pack(self.number, self._mac, mac) + content
        self.number, self._mac = self.number + 1, mac
        return whole


def claim_frame(writer: bytes, claimed: Claimed, seal: EventSeal) -> bytes:
    """Return a frame outside of any chain, for the script that claims: it counts only if all of that was won."""
    content = encode(Frame(b"", 0, claimed))
    return with_mac(seal, "claim", writer.hex(), 0, content)


class FrameReader:
    """Opens the frames of all writers, and notes what is wrong. Without a seal, it checks only that they make sense."""

    def __init__(self, seal: EventSeal | None, display_url: str) -> None:
        self.seal = seal
        self.chains: dict[bytes, tuple[int, bytes]] = {}  #: see `Covered`
        self.covered: Mapping[bytes, tuple[int, bytes]] = {}  #: what of that a snapshot has
        self._url = display_url
        self.read_by_writers: dict[str, int] = {}  #: see `Read`
        self._missing: dict[bytes, list[range]] = {}
        self._faults: dict[str, int] = {}

    @property
    def notes(self) -> list[str]:
        """Return what is wrong, one line each."""
        missing = sum(part.stop - part.start for parts in self._missing.values() for part in parts)
        found = [f"skipped records {what} ({count:,})" for what, count in self._faults.items()]
        if missing:
            found.append(f"records of what was done are missing ({missing:,}): lost, or held back by the server")
        return [f"{self._url}: {line}" for line in found]

    def entry(self, fields: Sequence[bytes]) -> Iterator[Frame]:
        """Yield the frames in an entry of the log."""
        for writer, data in zip(fields[::2], fields[1::2], strict=False):
            if (frame := self.open(writer, data)) is not None:
                yield frame

    def open(self, writer: bytes, data: bytes) -> Frame | None:
        """Return a frame; None where it was read before, or isn't one of its writer's."""
        if len(writer) > WRITER and writer[:1] == CLAIMS:
            return self._claim(writer[1:], data)
        try:
            number, previous, mac = _HEAD.unpack_from(data)
        except struct.error:
            return self._refuse()
        content = data[_HEAD.size :]
        if self.seal is not None and not self.seal.is_frame(mac, writer, number, previous, content):
            return self._refuse()
        return self._decoded(content) if self._is_new(writer, number, previous, mac) else None

    def extent(self, name: str) -> int:
        """Return the number of the next frame of a writer; 0 where none of it was read."""
        try:
            return self.chains.get(bytes.fromhex(name), (0,))[0]
        except ValueError:
            return 0

    def follow(self, writer: bytes, data: bytes) -> None:
        """Go on after a frame of this process's own, which need not be opened."""
        number, _, mac = _HEAD.unpack_from(data)
        self.chains[writer] = number + 1, mac

    def _is_new(self, writer: bytes, number: int, previous: bytes, mac: bytes) -> bool:
        expected, last = self.chains.get(writer, (0, FIRST))
        if number >= expected:
            self.chains[writer] = number + 1, mac
            if number > expected:
                self._missing.setdefault(writer, []).append(range(expected, number))
            elif previous != last:
                self._count("before some that don't follow them")
            return True
        parts = self._missing.get(writer, [])
        for part in parts:
            if number in part:  # it comes late
                parts.remove(part)
                parts += [left for left in (range(part.start, number), range(number + 1, part.stop)) if left]
                return True
        return False

    def _claim(self, writer: bytes, data: bytes) -> Frame | None:
        content = without_mac(self.seal, "claim", writer.hex(), 0, data)
        if content is None:
            return self._refuse()
        frame = self._decoded(content)
        return frame if frame is None or type(frame.event) is Claimed else self._refuse()

    def _decoded(self, content: bytes) -> Frame | None:
        try:
            frame = _decode(content)
        except UNREADABLE:
            return self._refuse("that can't be read: another version's?")
        if type(frame.event) is Read:
            for name, number in frame.event.chains.items():
                self.read_by_writers[name] = max(number, self.read_by_writers.get(name, 0))
            return None
        return frame if _is_sound(frame) else self._refuse("that make no sense")

    def _refuse(self, what: str = FORGED) -> Frame | None:
        """Note a frame that doesn't count, and return None."""
        self._count(what)
        return None

    def _count(self, what: str) -> None:
        if what in self._faults or len(self._faults) < NOTED:
            self._faults[what] = self._faults.get(what, 0) + 1


def _is_sound(frame: Frame) -> bool:
    """Return True if the parts of a frame belong together."""
    count = frame.count
    whole = len(frame.places) == (PLACE if count and len(frame.places) == PLACE else PLACE * count)
    return count == body_count(frame.event) and whole
