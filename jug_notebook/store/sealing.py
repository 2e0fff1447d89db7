"""Seals: what is written to a store carries a keyed hash, so that who lacks the store's key can't forge or change it.

`Seal` covers what is stored about one task: specs, outcomes, acceptances. `EventSeal` covers what happened: the events
in a writer's log, each chained to the one before, and single records such as heartbeats and orders. Each has its own
key, derived from the store's secret, so no tag of one can stand for one of the other.
"""

from __future__ import annotations

import functools
import struct
from hashlib import blake2s
from hmac import compare_digest

from blake3 import blake3

from jug_notebook.errors import SignatureError, StoreError
from jug_notebook.model import Key
from jug_notebook.store import keyring

TAG = 32  #: bytes of the tag in front of sealed data
MAC = 16  #: bytes of the MAC of a frame or record
FIRST = bytes(MAC)  #: stands for the MAC of the frame before the first one of a log
COPIED = 4096  #: up to so many bytes, a copy costs less than a view
_LENGTHS = struct.Struct("<QQQQ")


def _keyed(secret: bytes, use: str, store_id: str) -> blake3:
    """Return a hash keyed for one use in one store."""
    key = blake3(secret, derive_key_context=f"jug_notebook 2026-11 {use}").digest()
    name = store_id.encode()
    return blake3(len(name).to_bytes(8, "little") + name, key=key)


class Seal:
    """Signs what goes into a store, and checks what comes out of it, with the store's secret key."""

    def __init__(self, secret: bytes, store_id: str) -> None:
        self._keyed = _keyed(secret, "what is stored about a task", store_id)

    def _tag(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes | memoryview) -> bytes:
        before, after = _around(kind, len(key), round, len(inputs))
        tag = self._keyed.copy()
        if len(data) <= COPIED:
            tag.update(b"".join((before, key.encode(), after, inputs, data)))
        else:
            tag.update(b"".join((before, key.encode(), after, inputs))).update(data)
        return tag.digest()

    def seal(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes) -> bytes:
        """Return ``data`` behind a 32-byte tag that binds it to this store, kind, task, round and inputs."""
        return self._tag(kind, key, round, inputs, data) + data

    def open(self, kind: str, key: Key, round: int, inputs: bytes, body: bytes | memoryview) -> bytes | memoryview:
        """Return the data of a sealed body. Raises SignatureError where its tag is wrong."""
        if len(body) > COPIED:
            body = memoryview(body)
        data = body[TAG:]  # of what is small, a copy: cheaper than a view
        if not compare_digest(body[:TAG], self._tag(kind, key, round, inputs, data)):
            raise SignatureError(
                f"the {kind} of task {key[:12]} in the store is not opened: it is damaged, or wasn't written by "
                f"someone who has the store's key. If the store comes from elsewhere, import its key: "
                f"jug-notebook key import; jug-notebook doctor --verify tells what is damaged"
            )
        return data


@functools.lru_cache
def _around(kind: str, key_size: int, round: int, inputs_size: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the key in what a tag covers: each part with its length."""
    before, after = f"{len(kind)}:{kind}{key_size}:".encode(), f"{round}:{inputs_size}:".encode()
    return b"%d:%b" % (len(before) + key_size + len(after), before), after


class EventSeal:
    """Returns the MACs of what is said in a store: 16 bytes, which only who has the store's secret can make."""

    def __init__(self, secret: bytes, store_id: str) -> None:
        self._frames = _keyed(secret, "events in a log", store_id)
        self._records = _keyed(secret, "records", store_id)
        self._attempts: bytes = _keyed(secret, "attempts", store_id).digest()

    def frame(self, log: bytes, number: int, previous: bytes, content: bytes | memoryview) -> bytes:
        """Return the MAC of a log's frame.

        ``log`` names the log, ``number`` counts its frames, ``previous`` is the MAC of the frame before (`FIRST` for
        the first one). So frames can't be changed, left out, repeated, put elsewhere or in another order.
        """
        head = _LENGTHS.pack(number, len(log), len(previous), len(content))
        if len(content) > 4096:
            covered = self._frames.copy().update(b"".join((head, log, previous))).update(content)
        else:
            covered = self._frames.copy().update(b"".join((head, log, previous, content)))
        mac: bytes = covered.digest(MAC)
        return mac

    def record(self, kind: str, name: str, number: int, content: bytes | memoryview) -> bytes:
        """Return the MAC of a record of some kind (a heartbeat, an order) about ``name``; ``number`` counts them."""
        words = kind.encode(), name.encode()
        head = _LENGTHS.pack(number, len(words[0]), len(words[1]), len(content))
        mac: bytes = self._records.copy().update(b"".join((head, *words, content))).digest(MAC)
        return mac

    def attempt(self, name: bytes) -> bytes:
        """Return the MAC of an attempt at a task. There is one for each run, so it is the hash that is fastest here."""
        return blake2s(name, key=self._attempts, digest_size=MAC).digest()


def with_mac(seal: EventSeal | None, kind: str, name: str, number: int, data: bytes) -> bytes:
    """Return a record behind its MAC; without a seal, behind zeros, which nobody who has the key takes for one."""
    return (bytes(MAC) if seal is None else seal.record(kind, name, number, data)) + data


def without_mac(seal: EventSeal | None, kind: str, name: str, number: int, raw: bytes) -> bytes | None:
    """Return what is behind a record's MAC, None if that is wrong. Without a seal, for looking, it is not checked."""
    data = raw[MAC:]
    return data if seal is None or same(raw[:MAC], seal.record(kind, name, number, data)) else None


def same(one: bytes | memoryview, other: bytes | memoryview) -> bool:
    """Return whether two MACs are equal, in a time that doesn't depend on where they differ."""
    return compare_digest(one, other)


def event_seal(store_id: str) -> tuple[str, EventSeal | None]:
    """Return the seal of a store's events; where its key isn't known here, why not, and None."""
    try:
        return "", EventSeal(keyring.secret(store_id), store_id)
    except StoreError as unknown:
        return str(unknown), None
