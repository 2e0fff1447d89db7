"""Damage to what a store holds, done behind its back: bits that flip, and ends that are cut off."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from jug_notebook.model import Address
from jug_notebook.store import Store
from jug_notebook.store.redis import RedisStore

Change: TypeAlias = Callable[[bytes], bytes]
Piece: TypeAlias = Callable[[Change], None]


def flipped(data: bytes, chance: random.Random | None = None) -> bytes:
    """One bit is another: in the middle, or anywhere."""
    changed = bytearray(data)
    if changed:
        at = chance.randrange(len(changed)) if chance else len(changed) // 2
        changed[at] ^= 1 << (chance.randrange(8) if chance else 0)
    return bytes(changed)


def cut(data: bytes, chance: random.Random | None = None) -> bytes:
    """Its end is missing."""
    return data[: chance.randrange(len(data)) if chance and data else len(data) // 2]


def emptied(data: bytes) -> bytes:
    """Nothing is left of it."""
    return b""


def blob(store: Store, address: Address) -> Piece:
    """Return what damages a blob: a file, or a value in a server."""
    if isinstance(store, RedisStore):
        return _value(store, f"v:{address}")
    return file(Path(store.url.partition(":")[2], "blobs", address[:2], address[2:]))


def remove(store: Store, address: Address) -> None:
    """Remove a blob."""
    if isinstance(store, RedisStore):
        store._connection.command("DEL", store._connection.key(f"v:{address}"))
    else:
        Path(store.url.partition(":")[2], "blobs", address[:2], address[2:]).unlink()


def pieces(store: Store) -> Iterator[tuple[str, Piece]]:
    """Yield all pieces of a store that can be damaged, each with its kind."""
    if isinstance(store, RedisStore):
        yield from _in_server(store)
        return
    folder = Path(store.url.partition(":")[2])
    for kind, pattern in (
        ("blob", "blobs/*/*"), ("log", "log/*.log"), ("sealed log", "sealed/*.sealed"), ("sealed log", "sealing/*.log"),
        ("claim", "claims/*"), ("heartbeat", "workers/*"), ("order", "orders/*"),
    ):  # fmt: skip
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                yield kind, file(path)


def _in_server(store: RedisStore) -> Iterator[tuple[str, Piece]]:
    connection = store._connection
    command: Any = connection.command
    for name in sorted(command("KEYS", connection.key("[vc]:*"))):
        yield "blob", _value(store, name.decode().removeprefix(connection.key("")))
    for kind, table in (("body", "bodies"), ("claim", "claims"), ("heartbeat", "info")):
        for field in sorted(command("HKEYS", connection.key(table))):
            yield kind, _field(store, table, field)
    snapshot = command("HGET", connection.key("snapshot"), "name")
    for number in range(command("LLEN", connection.key(snapshot.decode())) if snapshot else 0):
        yield "snapshot", _element(store, snapshot.decode(), number)


def file(path: Path) -> Piece:
    """Return what damages a file, in place, as a disk does: others may have it open."""

    def damage(change: Change) -> None:
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR)
            with open(fd, "r+b", buffering=0) as opened:
                data = opened.read()
                after = change(data)
                for at, (old, new) in enumerate(zip(data, after, strict=False)):
                    if old != new:
                        os.pwrite(fd, bytes([new]), at)
                if len(after) < len(data):
                    os.ftruncate(fd, len(after))

    return damage


def _value(store: RedisStore, name: str) -> Piece:
    connection = store._connection

    def damage(change: Change) -> None:
        data: Any = connection.command("GET", connection.key(name))
        if data is not None:
            connection.command("SET", connection.key(name), change(data), "KEEPTTL")

    return damage


def _field(store: RedisStore, table: str, field: bytes) -> Piece:
    connection = store._connection

    def damage(change: Change) -> None:
        data: Any = connection.command("HGET", connection.key(table), field)
        if data is not None:
            connection.command("HSET", connection.key(table), field, change(data))

    return damage


def _element(store: RedisStore, name: str, number: int) -> Piece:
    connection = store._connection

    def damage(change: Change) -> None:
        data: Any = connection.command("LINDEX", connection.key(name), number)
        if data is not None:
            connection.command("LSET", connection.key(name), number, change(data))

    return damage
