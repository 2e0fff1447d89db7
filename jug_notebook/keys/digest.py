"""The digest of a value: equal for equal values in any process. What can't be hashed reliably is refused.

A value is written in a canonical form and hashed once. The rules of the form:

- every container starts with a tag and its length, so no two values run into each other; a class is part of the form
  of its instances, so ``1``, ``True``, ``1.0`` and ``numpy.int64(1)`` are four things;
- a plain scalar is written as ``marshal`` (version 2) writes it, and a sequence of nothing but plain scalars as one
  run of MessagePack, at C speed. The tags ``. F N T g i l u`` are marshal's; no form of ours starts with one of them;
- a part that is longer than `LIMIT` is replaced by its hash. Whether it is depends on the value alone, so a part that
  is met twice may be hashed once, and a structure that shares its parts a million times over stays small;
- sharing doesn't count. A part that contains itself is written as "the one N levels up".

Each type has a *writer* (`writer_for`), found by dotted name along the bases of a type, so no package is imported for
it. To make a new type hashable, add one to `objects` or `arrays`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from blake3 import blake3

from jug_notebook.errors import Unhashable
from jug_notebook.keys import objects  # noqa: F401  (registers its writers)
from jug_notebook.keys.encoder import Encoder, Hashed, Memory, remembering
from jug_notebook.keys.register import (
    PLAIN,
    SCHEME,
    SIZE,
    THREADS,
    WRITERS,
    Refused,
    dumps,
    fingerprint,
    register_later,
    short,
    writer_for,
)
from jug_notebook.model import Key


def _load_arrays() -> None:
    from jug_notebook.keys import arrays, resources  # noqa: F401


register_later(_load_arrays)

__all__ = ["SCHEME", "SIZE", "Encoder", "Hashed", "Naming", "digest", "name_call", "remembering", "writer_for"]


class Naming(NamedTuple):
    """The names of a call. ``needs`` are the keys of the tasks in its arguments, in slot order, each once.

    ``form`` and ``call`` have slot numbers in place of these keys; ``call`` names the arguments alone, without the
    code: it finds the result that earlier code had for the same call.
    """

    key: Key
    form: bytes
    needs: tuple[Key, ...]
    call: bytes


_VALUE = SCHEME + b"value"


def digest(value: Any, path: str = "value", hashed: Hashed | None = None) -> bytes:
    """Return the digest of a value: 20 bytes. Raises `Unhashable`, whose message says where in ``path`` the problem is.

    ``hashed``: hashes of buffers in it, made a moment ago.
    """
    if type(value) in PLAIN and value == value and (type(value) is not str or len(value) < THREADS):
        plain: bytes = blake3(_VALUE + dumps(value, 2)).digest(SIZE)
        return plain
    out = bytearray(_VALUE)
    try:
        Encoder(out, hashed=hashed).add(value)
    except Refused as refused:
        raise refused.unhashable(path) from None
    except RecursionError:
        raise _tangled(path) from None
    return fingerprint(out)


def _tangled(path: str) -> Unhashable:
    """Return the error for objects, classes and functions that lead to each other too often for any stack."""
    return Unhashable(
        f"{path} holds objects nested too deeply to be hashed reliably. Pass its parts, give its class a __jug_hash__ "
        "method, or wrap it in NoHash if it doesn't affect the result."
    )


@functools.lru_cache(4096)
def _head(code: str, name: str) -> bytes:
    return SCHEME + b"call" + dumps(str(name), 2) + dumps(str(code), 2)


@functools.lru_cache(4096)
def _label(label: str) -> bytes:
    return dumps(str(label), 2)


def name_call(code: str, name: str, arguments: Sequence[tuple[str, Any]]) -> Naming:
    """Return the names of a call, by its code, its name and its bound arguments, which may hold references to tasks.

    The key covers the keys of the needs; the form has their slot numbers instead. Raises `Unhashable`.
    """
    head = _head(code, name)
    plain = [short(len(arguments))]
    for label, value in arguments:
        if type(value) not in PLAIN or value != value:
            break
        plain += _label(label), dumps(value, 2)
    else:
        call = b"".join(plain)
        if len(call) <= THREADS:  # most calls are like this
            form = blake3(head + call).digest(SIZE)
            return Naming(form.hex(), form, (), blake3(call).digest(SIZE))
    out = bytearray(head)
    out += plain[0]
    encoder = Encoder(out)
    for label, value in arguments:
        out += _label(label)
        try:
            WRITERS[type(value)](encoder, value, "")
        except Refused as refused:
            raise refused.unhashable(f"argument {label!r}") from None
        except RecursionError:
            raise _tangled(f"argument {label!r}") from None
    form = fingerprint(out)
    key = form.hex()
    if not encoder.met:
        return Naming(key, form, (), _arguments(out, len(head)))
    needs = tuple(dict.fromkeys(encoder.met))
    return Naming(key, *_slotted(head, arguments, needs, encoder.memory))


def _arguments(out: bytearray, start: int) -> bytes:
    """Return the digest of what follows the head."""
    return fingerprint(memoryview(out)[start:])


def _slotted(
    head: bytes, arguments: Sequence[tuple[str, Any]], needs: tuple[Key, ...], memory: Memory
) -> tuple[bytes, tuple[Key, ...], bytes]:
    """Return the same with slot numbers for needs: a second pass."""
    encoder = Encoder(bytearray(head), memory, {key: slot for slot, key in enumerate(needs)})
    encoder.out += short(len(arguments))
    for label, value in arguments:
        encoder.out += _label(label)
        encoder.add(value)
    return fingerprint(encoder.out), needs, _arguments(encoder.out, len(head))
