"""Blobs in a Redis server, and what tasks leave there until they end.

Large ones are in chunks, so that neither side ever holds several copies. A blob expires after a day unless a task or an
outcome is written that may name it, so the blobs of a worker that died before it settled disappear by themselves.
Chunks are written first and the blob's own key last: where that is, all is.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from uuid import uuid4

from jug_notebook import system
from jug_notebook.errors import StoreError, ValueLost
from jug_notebook.model import Address
from jug_notebook.store import Condition, addresses_in
from jug_notebook.store.redis.connection import Connection, understood
from jug_notebook.store.scratch import Record

CHUNK = 16 << 20  #: bytes of a chunk
AT_ONCE = 1 << 16  #: a blob up to this size is sent without asking first whether the server has it
TEMPORARY = 86_400  #: seconds after which a blob that nothing names expires
_COUNT = re.compile(rb"\+([0-9]{1,8})")  #: what stands in place of a blob in chunks


class Blobs:
    """The blobs of one store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._new: dict[str, None] = {}

    def unnamed(self) -> list[str]:
        """Return the addresses of blobs that nothing written so far names."""
        return list(self._new)

    def named(self, addresses: Iterable[Address]) -> None:
        """Note that these were written with something that may name them: they no longer expire."""
        for address in addresses:
            self._new.pop(address, None)

    def mentioned(self, bodies: Iterable[bytes], tasks: Container[str]) -> None:
        """Note the blobs that bodies name which are about to be written: another process may have stored them.

        A worker stores blobs itself, and its supervisor writes what names them. Keys of ``tasks`` look like addresses.
        """
        found = (address for body in bodies for address in addresses_in(body))
        self._new.update((address, None) for address in found if address not in tasks)

    @understood
    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Store a blob. Return its address."""
        pieces = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        size = sum(piece.nbytes for piece in pieces)
        address = system.hashed(pieces).hex()
        chunks = self._connection.run("put", address, size, TEMPORARY) if size > AT_ONCE else -1
        if chunks < 0:
            chunks = self._write(address, size, pieces)
        self._new[address] = None
        return address

    def _write(self, address: Address, size: int, pieces: list[memoryview]) -> int:
        if size <= CHUNK:
            command = self._connection.script("put", address, size, TEMPORARY, b"".join([b"=", *pieces]))
            chunks: int = self._connection.command(*command)
            if size <= AT_ONCE:
                self._connection.remember(command)
            return chunks
        count = 0
        for chunk in _chunks(pieces):
            self._write_chunk(self._connection.key(f"c:{address}:{count}"), chunk)
            count += 1
        self._connection.run("put", address, size, TEMPORARY, b"+%d" % count)
        return count

    def _write_chunk(self, name: str, chunk: bytes | memoryview) -> None:
        """Write it, over an existing one too, but keep that one's expiry: it may have become permanent meanwhile."""
        while not self._connection.command("SET", name, chunk, "NX", "EX", TEMPORARY):
            if self._connection.command("SET", name, chunk, "XX", "KEEPTTL"):
                return

    @understood
    def get(self, address: Address) -> memoryview:
        """Return the bytes of a blob. Raises ValueLost."""
        found: bytes | None = self._connection.command("GET", self._connection.key(f"v:{address}"))
        if found is None:
            raise ValueLost(f"blob {address[:12]} is missing in {self._connection.display_url}")
        if gathered := _COUNT.fullmatch(found):
            return self._gathered(address, int(gathered[1]))
        data = memoryview(found)[1:]
        if system.hasher(data.nbytes).update(data).hexdigest(length=20) != address:
            raise self._damaged(address)
        return data

    @understood
    def size(self, address: Address) -> int:
        """Return its bytes; 0 where it is unknown."""
        return int(self._connection.command("HGET", self._connection.key("sizes"), address) or 0)

    @understood
    def map(self, address: Address) -> memoryview:
        """Return a read-only view of its bytes, aligned."""
        view = self.get(address)
        return (system.copied(view) if view.readonly else view).toreadonly()  # the bytes behind a tag are not aligned

    def _gathered(self, address: Address, count: int) -> memoryview:
        size = self.size(address)
        data = memoryview(mmap.mmap(-1, max(size, 1)))
        hasher = system.hasher(size)
        at = 0
        for i in range(count):
            chunk: bytes | None = self._connection.command("GET", self._connection.key(f"c:{address}:{i}"))
            if chunk is None or at + len(chunk) > size:
                raise self._damaged(address)
            data[at : at + len(chunk)] = chunk
            hasher.update(chunk)
            at += len(chunk)
        if at != size or hasher.hexdigest(length=20) != address:
            raise self._damaged(address)
        return data

    @understood
    def addresses(self) -> Iterator[Address]:
        """Yield the addresses of all blobs that were written or used; some may have expired since."""
        found = self._connection.command("ZRANGE", self._connection.key("blobs"), 0, -1)
        return (raw.decode(errors="replace") for raw in found)

    @understood
    def inspect(self, address: Address, repair: bool = False) -> Condition:
        """Read a blob, a chunk at a time; return its condition. ``repair``: remove it if it is damaged."""
        key, command = self._connection.key, self._connection.command
        found: bytes | None = command("GET", key(f"v:{address}"))
        if found is None:
            return Condition("missing")
        gathered = _COUNT.fullmatch(found)
        numbers = range(int(gathered[1])) if gathered else ()
        hasher, size = system.hasher(self.size(address)), 0
        for chunk in (command("GET", key(f"c:{address}:{i}")) for i in numbers) if gathered else (found[1:],):
            if chunk is None:
                break
            hasher.update(chunk)
            size += len(chunk)
        if hasher.hexdigest(length=20) == address:
            return Condition("", size)
        if not repair:
            return Condition("damaged", size)
        self._damaged(address)
        return Condition("damaged", size, "removed")

    def _damaged(self, address: Address) -> ValueLost:
        """Delete the blob, so that it is stored again when the value is recomputed, and return the error."""
        self._connection.command("DEL", self._connection.key(f"v:{address}"))
        return ValueLost(f"blob {address[:12]} in {self._connection.display_url} is damaged")

    @understood
    def sweep(self, keep: Collection[Address], older_than: float, dry_run: bool) -> tuple[int, int]:
        """Remove the other blobs not written or used within these seconds. Return how many, and their bytes."""
        seconds, fraction = self._connection.command("TIME")
        before = int(seconds) + int(fraction) / 1e6 - older_than
        found = self._connection.command("ZRANGEBYSCORE", self._connection.key("blobs"), "-inf", before)
        spared = frozenset(keep)
        old = [address for raw in found if (address := raw.decode(errors="replace")) not in spared]
        blobs = size = 0
        for part in system.batched(old):
            count, freed = self._connection.run("drop", before, int(dry_run), *part)
            blobs, size = blobs + count, size + freed
        return blobs, size


def _chunks(pieces: list[memoryview]) -> Iterator[bytes | memoryview]:
    """Yield all bytes in chunks of equal size but the last; copied only where a chunk spans several pieces."""
    rest: list[memoryview] = []
    held = 0
    for piece in pieces:
        while piece.nbytes:
            part, piece = piece[: CHUNK - held], piece[CHUNK - held :]
            rest.append(part)
            held += part.nbytes
            if held == CHUNK:
                yield rest[0] if len(rest) == 1 else b"".join(rest)
                rest, held = [], 0
    if rest:
        yield rest[0] if len(rest) == 1 else b"".join(rest)


class RedisScratch:
    """Records in a server: a list of pieces each, a large one in chunks; a hash has their sizes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, name: str, piece: bytes | memoryview) -> None:
        key, aside = self._connection.key, self._connection.key(f"s:{uuid4().hex}")
        try:
            for chunk in _chunks([memoryview(piece)]):
                self._connection.command("RPUSH", aside, chunk)
            named = ("HSET", key("scratch"), name, len(piece))
            self._connection.pipeline([("EXPIRE", aside, TEMPORARY), named])
            self._connection.pipeline([("PERSIST", aside), ("RENAME", aside, key(f"s:{name}"))])
        except BaseException:
            with suppress(StoreError), self._connection.impatiently():
                self._connection.command("UNLINK", aside)
            raise

    def append(self, name: str, piece: bytes | memoryview) -> None:
        key = self._connection.key
        self._connection.pipeline([("HINCRBY", key("scratch"), name, len(piece)), ("RPUSH", key(f"s:{name}"), piece)])

    @understood
    def read(self, name: str, position: int = 0) -> tuple[Sequence[bytes | memoryview], int]:
        pieces: list[bytes] = self._connection.command("LRANGE", self._connection.key(f"s:{name}"), position, -1)
        return pieces, position + len(pieces)

    @understood
    def records(self, prefix: str = "") -> list[Record]:
        found = self._connection.command("HGETALL", self._connection.key("scratch"))
        named = zip((name.decode(errors="replace") for name in found[::2]), found[1::2], strict=True)
        return [Record(name, int(size)) for name, size in named if name.startswith(prefix)]

    def drop(self, names: Iterable[str]) -> None:
        key = self._connection.key
        for part in system.batched(list(names)):
            self._connection.pipeline(
                [("UNLINK", *(key(f"s:{name}") for name in part)), ("HDEL", key("scratch"), *part)]
            )
