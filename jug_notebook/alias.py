"""Outcomes that were taken over from another task's run: opened only with a proof that they may be.

A store says which run stands for a task, and stores know no keys. So whoever opens such an outcome is shown why it
may stand there, in sealed words: the specs of both tasks, which must have one form (the same code and arguments, with
values for needs), or the acceptance of somebody who has the store's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import msgspec

from jug_notebook.codec import Seal
from jug_notebook.errors import SignatureError
from jug_notebook.model import Acceptance, Key, Spec

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
        said = opened(seal, key, proof[0])
        if (said.source, said.source_round, said.inputs, said.digest) == (source, round, inputs, digest):
            return
    _refuse(key, source)


def sealed(seal: Seal, said: Acceptance) -> bytes:
    """An acceptance, signed."""
    return seal.seal(_KIND, said.key, said.round, said.inputs, msgspec.msgpack.encode(said))


def opened(seal: Seal, key: Key, body: bytes) -> Acceptance:
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
