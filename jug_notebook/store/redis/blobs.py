"""Blobs in a Redis server: large ones in chunks, so that neither side ever holds several copies.

What is written goes after a day, unless a task or an outcome is handed in that may name it: so what a worker wrote that
died before it settled goes by itself. Chunks come first and the blob's own key last: who sees that sees all of it.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterable, Iterator

from blake3 import blake3

from jug_notebook import system
from jug_notebook.errors import ValueLost
from jug_notebook.model import Address
from jug_notebook.store.redis.connection import Link

CHUNK = 16 << 20  #: bytes of a chunk
AT_ONCE = 1 << 16  #: a blob up to this size is sent without asking first whether it is there
TEMPORARY = 86_400  #: seconds for which a blob is kept that nothing names yet


class Chunks:
    """The part of a store that keeps blobs."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._new: dict[str, None] = {}  # names of keys that nothing has been handed in for

    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        pieces = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        size = sum(piece.nbytes for piece in pieces)
        hasher = blake3(max_threads=blake3.AUTO)
        for piece in pieces:
            hasher.update(piece)
        address = hasher.hexdigest(length=20)
        chunks = self._link.run("put", address, size, TEMPORARY) if size > AT_ONCE else -1
        if chunks < 0:
            chunks = self._write(address, size, pieces)
        self._new.update(dict.fromkeys([f"v:{address}", *(f"c:{address}:{i}" for i in range(chunks))]))
        return address

    def _write(self, address: Address, size: int, pieces: list[memoryview]) -> int:
        if size <= CHUNK:
            content = b"".join([b"=", *pieces])
            chunks: int = self._link.run("put", address, size, TEMPORARY, content)
            if size <= AT_ONCE:
                self._link.tell("put", address, size, TEMPORARY, content)
            return chunks
        count = 0
        for chunk in _chunks(pieces):
            self._write_chunk(self._link.key(f"c:{address}:{count}"), chunk)
            count += 1
        self._link.run("put", address, size, TEMPORARY, b"+%d" % count)
        return count

    def _write_chunk(self, name: str, chunk: bytes | memoryview) -> None:
        """Over what is there, too; but what another has kept meanwhile doesn't become temporary by that."""
        while not self._link.do("SET", name, chunk, "NX", "EX", TEMPORARY):
            if self._link.do("SET", name, chunk, "XX", "KEEPTTL"):
                return

    def get_blob(self, address: Address) -> memoryview:
        found: bytes | None = self._link.do("GET", self._link.key(f"v:{address}"))
        if found is None:
            raise ValueLost(f"blob {address[:12]} is missing in {self._link.display_url}")
        if found.startswith(b"+"):
            return self._gathered(address, int(found[1:]))
        data = memoryview(found)[1:]
        if blake3(data, max_threads=blake3.AUTO).hexdigest(length=20) != address:
            raise self._damaged(address)
        return data

    def map_blob(self, address: Address) -> memoryview:
        view = self.get_blob(address)
        return (system.copied(view) if view.readonly else view).toreadonly()  # what came behind a tag isn't aligned

    def _gathered(self, address: Address, count: int) -> memoryview:
        size = int(self._link.do("HGET", self._link.key("sizes"), address) or 0)
        data = memoryview(mmap.mmap(-1, max(size, 1)))
        hasher = blake3(max_threads=blake3.AUTO)
        at = 0
        for i in range(count):
            chunk: bytes | None = self._link.do("GET", self._link.key(f"c:{address}:{i}"))
            if chunk is None or at + len(chunk) > size:
                raise self._damaged(address)
            data[at : at + len(chunk)] = chunk
            hasher.update(chunk)
            at += len(chunk)
        if at != size or hasher.hexdigest(length=20) != address:
            raise self._damaged(address)
        return data

    def _damaged(self, address: Address) -> ValueLost:
        """It is no use any more: who computes it again is to find nothing there."""
        self._link.do("DEL", self._link.key(f"v:{address}"))
        return ValueLost(f"blob {address[:12]} in {self._link.display_url} is damaged")

    def _unkept(self) -> list[str]:
        """Keys of blobs that what is handed in now may name."""
        return list(self._new)

    def _kept(self, names: Collection[str]) -> None:
        for name in names:
            self._new.pop(name, None)

    def _now(self) -> float:
        """By the server's clock."""
        seconds, fraction = self._link.do("TIME")
        return int(seconds) + int(fraction) / 1e6

    def _drop_blobs(self, keep: Collection[Address], before: float, dry_run: bool) -> tuple[int, int]:
        """Remove those not written or touched since; answers how many, and their bytes."""
        found = self._link.do("ZRANGEBYSCORE", self._link.key("blobs"), "-inf", before)
        spared = frozenset(keep)
        old = [address for raw in found if (address := raw.decode()) not in spared]
        blobs = size = 0
        for start in range(0, len(old), 1000):
            count, freed = self._link.run("drop", before, int(dry_run), *old[start : start + 1000])
            blobs, size = blobs + count, size + freed
        return blobs, size


def _chunks(pieces: list[memoryview]) -> Iterator[bytes | memoryview]:
    """All bytes in pieces of one size, but the last; nothing is copied where a piece has a chunk's bytes in a row."""
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
