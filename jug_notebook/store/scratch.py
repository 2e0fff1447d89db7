"""What tasks leave in a store until they end: checkpoints for their next attempt, and streams of what generators yield.

A record is a list of pieces of bytes. Its name begins with its task's key and a dot: see `name_of`. Pieces are sealed
by whoever writes them, and checked by whoever reads them; a store only keeps them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeAlias

from jug_notebook.errors import ValueLost
from jug_notebook.model import Address, Key, Lease, WorkerId

Piece: TypeAlias = bytes | memoryview
STREAM = "stream"  #: names what a generator has yielded so far


class Record(NamedTuple):
    """A record's name, and its size in bytes."""

    name: str
    size: int


class Scratch(Protocol):
    """The records of a store. Safe to use from several threads, and from each process that has the store open."""

    def put(self, name: str, piece: Piece) -> None:
        """Replace a record by this one piece, in one step. Durable on return."""

    def append(self, name: str, piece: Piece) -> None:
        """Append a piece to a record, which is made if it's new. Not made durable."""

    def read(self, name: str, position: int = 0) -> tuple[Sequence[Piece], int]:
        """Return the pieces of a record from a position on, and the position behind them.

        A position is 0 or what an earlier call returned. Nothing is there of a record that there isn't.
        """
        ...

    def records(self, prefix: str = "") -> list[Record]:
        """Return the records whose names begin so."""
        ...

    def drop(self, names: Iterable[str]) -> None:
        """Remove records, those that exist."""


def name_of(lease: Lease, what: str) -> str:
    """Return the name of a record of a task in one round, on one set of inputs."""
    return f"{lease.key}.{lease.round}.{lease.inputs.hex()}.{what}"


def stream_of(lease: Lease) -> str:
    """Return the name of the record of what an attempt has yielded so far."""
    return name_of(lease, f"{lease.attempt}.{STREAM}")


def latest_stream(scratch: Scratch, key: Key) -> Lease | None:
    """Return the latest attempt at a task that has yielded anything; None where there is none."""
    found = []
    for record in scratch.records(f"{key}."):
        parts = record.name.split(".")
        if len(parts) == 5 and parts[4] == STREAM and parts[1].isdigit() and parts[3].isdigit():
            with suppress(ValueError):
                found.append(Lease(key, int(parts[1]), bytes.fromhex(parts[2]), int(parts[3])))
    return max(found, key=lambda lease: (lease.round, lease.attempt), default=None)


class MemoryScratch:
    """Records in the memory of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, list[Piece]] = {}

    def put(self, name: str, piece: Piece) -> None:
        self._records[name] = [piece]

    def append(self, name: str, piece: Piece) -> None:
        self._records.setdefault(name, []).append(piece)

    def read(self, name: str, position: int = 0) -> tuple[Sequence[Piece], int]:
        pieces = self._records.get(name, [])[position:]
        return pieces, position + len(pieces)

    def records(self, prefix: str = "") -> list[Record]:
        held = list(self._records.items())
        return [Record(name, sum(map(len, pieces))) for name, pieces in held if name.startswith(prefix)]

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._records.pop(name, None)


class _Keeper(Protocol):
    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address: ...
    def get_blob(self, address: Address, mapped: bool = False) -> memoryview: ...
    def notice(self, process: WorkerId, text: str) -> None: ...
    def log(self, process: WorkerId) -> str: ...


class BlobScratch:
    """Records in a store that keeps blobs and logs, and no records: pieces are blobs, a log for each task lists them.

    Dropped pieces are removed by the next cleanup, as all blobs that nothing refers to. So are those of a task that
    runs for longer than cleanups spare such blobs.
    """

    def __init__(self, store: _Keeper) -> None:
        self._store = store

    def put(self, name: str, piece: Piece) -> None:
        self._note(name, "=", self._store.put_blob([piece]))

    def append(self, name: str, piece: Piece) -> None:
        self._note(name, "+", self._store.put_blob([piece]))

    def _note(self, name: str, act: str, address: Address = "") -> None:
        self._store.notice(_log_of(name), f"{act} {name} {address}\n")

    def _listed(self, key: Key) -> dict[str, list[Address]]:
        found: dict[str, list[Address]] = {}
        for act, name, *address in map(str.split, self._store.log(_log_of(key)).splitlines()):
            if act == "-":
                found.pop(name, None)
            else:
                found[name] = (found.get(name, []) if act == "+" else []) + address
        return found

    def read(self, name: str, position: int = 0) -> tuple[Sequence[Piece], int]:
        addresses = self._listed(name).get(name, [])[position:]
        try:
            return [self._store.get_blob(address) for address in addresses], position + len(addresses)
        except ValueLost:
            return [], position

    def records(self, prefix: str = "") -> list[Record]:
        """Return the records of one task, without their sizes; a prefix of several tasks has none."""
        return [Record(name, 0) for name in self._listed(prefix) if name.startswith(prefix)] if "." in prefix else []

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._note(name, "-")


def _log_of(name: str) -> str:
    return f"scratch-{name.partition('.')[0]}"
