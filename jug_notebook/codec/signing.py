"""Signatures: every stored byte that is decoded or shown proves that somebody with the store's key wrote it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from hmac import compare_digest
from typing import NoReturn

import msgspec
from blake3 import blake3

from jug_notebook.errors import SignatureError
from jug_notebook.model import Acceptance, Key, Spec


class Seal:
    """Signs what goes into a store and checks what comes out: only bytes of someone who has its key are decoded."""

    def __init__(self, secret: bytes, store: str) -> None:
        self._keyed = blake3(store.encode(), key=secret).update(b"%d" % len(store.encode()))

    def _tag(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes | memoryview) -> bytes:
        before, after = _frame(kind, len(key), round, len(inputs))
        tag: bytes = self._keyed.copy().update(b"".join((before, key.encode(), after, inputs))).update(data).digest()
        return tag

    def seal(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes) -> bytes:
        """``data`` with the tag that binds it to this store, task, round and inputs in front."""
        return self._tag(kind, key, round, inputs, data) + data

    def open(self, kind: str, key: Key, round: int, inputs: bytes, body: bytes | memoryview) -> memoryview:
        """The sealed data, once its tag has been found right."""
        view = memoryview(body)
        data = view[32:]
        if not compare_digest(view[:32], self._tag(kind, key, round, inputs, data)):
            raise SignatureError(
                f"the {kind} of task {key[:12]} in the store wasn't written by someone who has the store's key (or it "
                f"was damaged), so it isn't opened. If the store comes from elsewhere, import its key: "
                f"jug-notebook key import"
            )
        return data


@functools.lru_cache
def _frame(kind: str, key_size: int, round: int, inputs_size: int) -> tuple[bytes, bytes]:
    """What stands before and after a key where it is told what a tag is about: each part with its length."""
    before, after = f"{len(kind)}:{kind}{key_size}:".encode(), f"{round}:{inputs_size}:".encode()
    return b"%d:%b" % (len(before) + key_size + len(after), before), after


_SPEC = msgspec.msgpack.Decoder(Spec)
_ACCEPTANCE = msgspec.msgpack.Decoder(Acceptance)
_KIND = "acceptance"


def prove(seal: Seal, key: Key, source: Key, round: int, inputs: bytes, digest: bytes, proof: Sequence[bytes]) -> None:
    """Raises SignatureError where ``source``'s run (its round, inputs, value) must not stand for the task ``key``."""
    if len(proof) == 2:
        specs = (_open_spec(seal, key, proof[0]), _open_spec(seal, source, proof[1]))
        if specs[0].form == specs[1].form:
            return
    elif len(proof) == 1:
        said = open_acceptance(seal, key, proof[0])
        if (said.source, said.source_round, said.inputs, said.digest) == (source, round, inputs, digest):
            return
    _refuse(key, source)


def seal_acceptance(seal: Seal, said: Acceptance) -> bytes:
    """An acceptance, signed."""
    return seal.seal(_KIND, said.key, said.round, said.inputs, msgspec.msgpack.encode(said))


def open_acceptance(seal: Seal, key: Key, body: bytes) -> Acceptance:
    """An acceptance from its sealed bytes. Raises SignatureError."""
    try:
        said = _ACCEPTANCE.decode(memoryview(body)[32:])  # unproven; says what the signature must cover
    except msgspec.MsgspecError:
        raise SignatureError(f"what the store gives as an acceptance for task {key[:12]} is none") from None
    seal.open(_KIND, key, said.round, said.inputs, body)
    return said


def _open_spec(seal: Seal, key: Key, body: bytes) -> Spec:
    return _SPEC.decode(seal.open("spec", key, 0, b"", body))


def _refuse(key: Key, source: Key) -> NoReturn:
    raise SignatureError(
        f"the store gives the result of task {source[:12]} for task {key[:12]}, and nobody who has the store's key "
        f"said that it may, so it isn't opened"
    )
