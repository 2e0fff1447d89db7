"""The signature on stored bytes: nothing is decoded or shown that wasn't written by someone with the store's key."""

from __future__ import annotations

import functools
from hmac import compare_digest

from blake3 import blake3

from jug_notebook.errors import SignatureError
from jug_notebook.model import Key


class Seal:
    """Signs what goes into a store, and checks what comes out of it, with the store's secret key."""

    def __init__(self, secret: bytes, store: str) -> None:
        self._keyed = blake3(store.encode(), key=secret).update(b"%d" % len(store.encode()))

    def _tag(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes | memoryview) -> bytes:
        before, after = _frame(kind, len(key), round, len(inputs))
        tag: bytes = self._keyed.copy().update(b"".join((before, key.encode(), after, inputs))).update(data).digest()
        return tag

    def seal(self, kind: str, key: Key, round: int, inputs: bytes, data: bytes) -> bytes:
        """Return ``data`` behind a 32-byte tag that binds it to this store, kind, task, round and inputs."""
        return self._tag(kind, key, round, inputs, data) + data

    def open(self, kind: str, key: Key, round: int, inputs: bytes, body: bytes | memoryview) -> memoryview:
        """Return the data of a sealed body. Raises SignatureError where its tag is wrong."""
        view = memoryview(body)
        data = view[32:]
        if not compare_digest(view[:32], self._tag(kind, key, round, inputs, data)):
            raise SignatureError(
                f"the {kind} of task {key[:12]} in the store is not opened: it is damaged, or wasn't written by "
                f"someone who has the store's key. If the store comes from elsewhere, import its key: "
                f"jug-notebook key import"
            )
        return data


@functools.lru_cache
def _frame(kind: str, key_size: int, round: int, inputs_size: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the key in what a tag covers: each part with its length."""
    before, after = f"{len(kind)}:{kind}{key_size}:".encode(), f"{round}:{inputs_size}:".encode()
    return b"%d:%b" % (len(before) + key_size + len(after), before), after
