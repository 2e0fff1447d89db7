"""The digest of a value: equal for equal values in any process. What can't be hashed reliably is refused.

A value is written in a canonical form and hashed once. The rules of the form:

- every container starts with a tag and its length, so no two values run into each other; a class is part of the form
  of its instances, so ``1``, ``True``, ``1.0`` and ``numpy.int64(1)`` are four things;
- a plain scalar is written as ``marshal`` (version 2) writes it, and a sequence of nothing but plain scalars as one
  run of MessagePack, at C speed. The tags ``. F N T g i l u`` are marshal's; no form of ours starts with one of them;
- a part that is longer than `LIMIT` is replaced by its hash. Whether it is depends on the value alone, so a part that
  is met twice may be hashed once, and a structure that shares its parts a million times over stays small;
- mutable objects (lists, dicts, sets, arrays, instances …) are numbered as they are met first, within one call; where
  one is met again, its number is written. So it counts that one object is in two places, and cycles come to an end.
  The order is that of the form (names sorted, sets as in `unordered`), so it is the same in each process. That equal
  immutables are one object doesn't count, nor which parts of a library's types are, nor whether arrays share memory;
- the arguments of a call are one pickle, and so is a function with all that it reads: sharing counts within each of
  the two, not between them, for a worker gets them apart.

Nothing is remembered from one call to the next, for an object may be changed in between: but for functions, whose parts
are pinned (see `code`), and for the hashes of large buffers, where the system knows whether one was written to
(`system.KnownMemory`). Within one ``.map``, what the calls share is taken not to change (`remembering`).

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
from jug_notebook.keys.encoder import Budget, Counting, Encoder, Hashed, Memory, remembering
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
    from jug_notebook.keys import arrays  # noqa: F401


register_later(_load_arrays)

__all__ = [
    "SCHEME",
    "SIZE",
    "Encoder",
    "Hashed",
    "Naming",
    "Sharing",
    "digest",
    "name_call",
    "remembering",
    "writer_for",
]


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


class Sharing:
    """Which mutable objects values have in common that are hashed one by one."""

    def __init__(self) -> None:
        self.links: list[bytes] = []  #: number of an object, and the number that it had in an earlier value
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []

    def add(self, met: list[Any]) -> None:
        """Note the objects of a value, in the order in which they were met first."""
        start, numbers, ids = len(self._kept), self._numbers, list(map(id, met))
        self._kept += met
        if numbers.keys().isdisjoint(ids):
            numbers.update(zip(ids, range(start, len(self._kept)), strict=True))
            return
        for number, me in enumerate(ids, start):
            first = numbers.setdefault(me, number)
            if first != number:
                self.links.append(b"%d %d" % (number, first))


def digest(
    value: Any,
    path: str = "value",
    hashed: Hashed | None = None,
    sharing: Sharing | None = None,
    budget: Budget | None = None,
) -> bytes:
    """Return the digest of a value: 20 bytes. Raises `Unhashable`, whose message says where in ``path`` the problem is.

    ``hashed``: hashes of buffers in it, made a moment ago. ``sharing``: is told of the mutable objects in it.
    ``budget``: for work that is done again; if that is more, Exhausted is raised.
    """
    if type(value) in PLAIN and value == value and (type(value) is not str or len(value) < THREADS):
        plain: bytes = blake3(_VALUE + dumps(value, 2)).digest(SIZE)
        return plain
    out = bytearray(_VALUE)
    encoder = Encoder(out, hashed=hashed) if budget is None else Counting(out, hashed=hashed)
    encoder.roots, encoder.budget = ((path, value),), budget
    try:
        encoder.add(value)
    except Refused as refused:
        raise refused.unhashable(path) from None
    except RecursionError:
        raise _tangled(path) from None
    if sharing is not None:
        sharing.add(encoder.objects())
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
    encoder.roots = arguments
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
    encoder.roots = arguments
    encoder.out += short(len(arguments))
    for label, value in arguments:
        encoder.out += _label(label)
        encoder.add(value)
    return fingerprint(encoder.out), needs, _arguments(encoder.out, len(head))
