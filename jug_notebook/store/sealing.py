"""Seals: what is written to a store carries a keyed hash, so that who lacks the store's key can't forge or change it.

`Seal` covers what is stored about one task: specs, outcomes, acceptances. `EventSeal` covers what happened: the events
in a writer's log, each chained to the one before, and single records such as heartbeats and orders. Each has its own
key, derived from the store's secret, so no tag of one can stand for one of the other.

Each tag has two halves. The second is a hash keyed with the store's reading key; the first is a MAC of that hash, by a
key that only the store's secret gives. Who has the secret checks both halves; who has the reading key alone checks the
second, and can't make the first, so that nothing they write counts for anybody who has the secret.
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

HALF = 16  #: bytes of each half of a tag
TAG = 2 * HALF  #: bytes of the tag in front of sealed data
MAC = TAG  #: bytes of the MAC of a frame or record
ATTEMPT = 16  #: bytes of the MAC of an attempt
FIRST = bytes(MAC)  #: stands for the MAC of the frame before the first one of a log
COPIED = 4096  #: up to so many bytes, a copy costs less than a view
_LENGTHS = struct.Struct("<QQQQ")


def _keyed(secret: bytes, use: str, store_id: str) -> blake3:
    """Return a hash keyed for one use in one store."""
    key = blake3(secret, derive_key_context=f"jug_notebook 2026-11 {use}").digest()
    name = store_id.encode()
    return blake3(len(name).to_bytes(8, "little") + name, key=key)


class _Tags:
    """The tags of one use in one store. With ``read_only``, ``secret`` is the reading key, and makes none."""

    def __init__(self, secret: bytes, use: str, store_id: str, read_only: bool) -> None:
        self.keyed = _keyed(
            secret if read_only else keyring.reading_key(secret), use, store_id
        )  #: hashes what is covered
        key = b"" if read_only else _keyed(secret, f"{use}, signed", store_id).digest()
        self._sign = None if read_only else blake2s(key=key, digest_size=HALF)
        self._refusal = read_only and (keyring.read_only(store_id) or "a reading key signs nothing")

    def tag(self, hashed: bytes) -> bytes:
        """Return the tag of what has that hash. Raises StoreError where the key is read-only."""
        if self._sign is None:
            raise StoreError(str(self._refusal))
        signed = self._sign.copy()
        signed.update(hashed)
        return signed.digest() + hashed[:HALF]

    def fits(self, tag: bytes | memoryview, hashed: bytes) -> bool:
        """Return whether that is the tag of what has that hash, as far as the key can tell."""
        if self._sign is None:
            return len(tag) == TAG and compare_digest(tag[HALF:], hashed[:HALF])
        signed = self._sign.copy()  # as `tag` does: this is called most
        signed.update(hashed)
        return compare_digest(tag, signed.digest() + hashed[:HALF])


class Seal:
    """Signs what goes into a store, and checks what comes out of it, with the store's secret or its reading key."""

    def __init__(self, secret: bytes, store_id: str, read_only: bool = False) -> None:
        self._tags = _Tags(secret, "what is stored about a task", store_id, read_only)
        self._copy = self._tags.keyed.copy

    def _hash(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes | memoryview) -> bytes:
        before, after = _around(kind, len(key), round, len(inputs))
        if len(data) <= COPIED:
            return self._copy().update(b"".join((before, key.encode(), after, inputs, data))).digest()
        return self._copy().update(b"".join((before, key.encode(), after, inputs))).update(data).digest()

    def seal(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes) -> bytes:
        """Return ``data`` behind a 32-byte tag that binds it to this store, kind, task, round and inputs."""
        return self._tags.tag(self._hash(kind, key, round, inputs, data)) + data

    def open(self, kind: str, key: Key, round: int, inputs: bytes, body: bytes | memoryview) -> bytes | memoryview:
        """Return the data of a sealed body. Raises SignatureError where its tag is wrong."""
        if len(body) > COPIED:
            body = memoryview(body)
        data = body[TAG:]  # of what is small, a copy: cheaper than a view
        if not self._tags.fits(body[:TAG], self._hash(kind, key, round, inputs, data)):
            raise SignatureError(
                f"the {kind} of task {key[:12]} in the store is not opened: it is damaged, or wasn't written by "
                f"someone who has the store's key. If the store comes from elsewhere, import its key: "
                f"jug-notebook key import; jug-notebook doctor --verify names what is damaged, --repair moves it aside"
            )
        return data


@functools.lru_cache
def _around(kind: str, key_size: int, round: int, inputs_size: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the key in what a tag covers: each part with its length."""
    before, after = f"{len(kind)}:{kind}{key_size}:".encode(), f"{round}:{inputs_size}:".encode()
    return b"%d:%b" % (len(before) + key_size + len(after), before), after


class EventSeal:
    """Makes and checks the MACs of what happened in a store. With ``read_only``, ``secret`` is the reading key."""

    def __init__(self, secret: bytes, store_id: str, read_only: bool = False) -> None:
        self._frames = _Tags(secret, "events in a log", store_id, read_only)
        self._records = _Tags(secret, "records", store_id, read_only)
        self._attempts: bytes = b"" if read_only else _keyed(secret, "attempts", store_id).digest()
        self.read_only = keyring.read_only(store_id) if read_only else ""  #: why it makes no MAC, in a line

    def frame(self, log: bytes, number: int, previous: bytes, content: bytes | memoryview) -> bytes:
        """Return the MAC of a log's frame.

        ``log`` names the log, ``number`` counts its frames, ``previous`` is the MAC of the frame before (`FIRST` for
        the first one). So frames can't be changed, left out, repeated, put elsewhere or in another order.
        """
        return self._frames.tag(self._frame_hash(log, number, previous, content))

    def is_frame(self, mac: bytes, log: bytes, number: int, previous: bytes, content: bytes | memoryview) -> bool:
        """Return whether that is the MAC of this frame."""
        return self._frames.fits(mac, self._frame_hash(log, number, previous, content))

    def _frame_hash(self, log: bytes, number: int, previous: bytes, content: bytes | memoryview) -> bytes:
        head = _LENGTHS.pack(number, len(log), len(previous), len(content))
        if len(content) > COPIED:
            covered = self._frames.keyed.copy().update(b"".join((head, log, previous))).update(content)
        else:
            covered = self._frames.keyed.copy().update(b"".join((head, log, previous, content)))
        hashed: bytes = covered.digest()
        return hashed

    def record(self, kind: str, name: str, number: int, content: bytes | memoryview) -> bytes:
        """Return the MAC of a record of some kind (a heartbeat, an order) about ``name``; ``number`` counts them."""
        return self._records.tag(self._record_hash(kind, name, number, content))

    def is_record(self, mac: bytes, kind: str, name: str, number: int, content: bytes | memoryview) -> bool:
        """Return whether that is the MAC of this record."""
        return self._records.fits(mac, self._record_hash(kind, name, number, content))

    def _record_hash(self, kind: str, name: str, number: int, content: bytes | memoryview) -> bytes:
        words = kind.encode(), name.encode()
        head = _LENGTHS.pack(number, len(words[0]), len(words[1]), len(content))
        hashed: bytes = self._records.keyed.copy().update(b"".join((head, *words, content))).digest()
        return hashed

    def attempt(self, name: bytes) -> bytes:
        """Return the MAC of an attempt at a task. There is one for each run, so it is the hash that is fastest here."""
        if self.read_only:
            raise StoreError(self.read_only)
        return blake2s(name, key=self._attempts, digest_size=ATTEMPT).digest()


def with_mac(seal: EventSeal | None, kind: str, name: str, number: int, data: bytes) -> bytes:
    """Return a record behind its MAC; without a seal, behind zeros, which nobody who has the key takes for one."""
    return (bytes(MAC) if seal is None else seal.record(kind, name, number, data)) + data


def without_mac(seal: EventSeal | None, kind: str, name: str, number: int, raw: bytes) -> bytes | None:
    """Return what is behind a record's MAC, None if that is wrong. Without a seal, for looking, it is not checked."""
    data = raw[MAC:]
    return data if seal is None or seal.is_record(raw[:MAC], kind, name, number, data) else None


def event_seal(store_id: str) -> tuple[str, EventSeal | None]:
    """Return the seal of a store's events; where its key isn't known here, why not, and None."""
    try:
        read_only = bool(keyring.read_only(store_id))
        secret = keyring.read_secret(store_id) if read_only else keyring.secret(store_id)
        return "", EventSeal(secret, store_id, read_only)
    except StoreError as unknown:
        return str(unknown), None
