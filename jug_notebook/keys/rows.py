"""Many values at once: runs of scalars, and rows that are alike, written at C speed.

A sequence of scalars is one run of MessagePack. A sequence of lists, tuples or dicts with the same names is written
column by column, each of which is a sequence again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from contextvars import copy_context
from itertools import chain
from operator import countOf
from typing import Any

from jug_notebook.keys.register import PLAIN, WRITERS, Refused, Writer, count, pack

LONG = 4096  #: above this number of bytes, a run is sealed without copying it
FEW = 4  #: fewer items are written one by one
MANY = 1_000_000  #: so are rows that hold more items than this, together
_item = "[{}]".format
_ROWS: dict[type, bytes] = {list: b"W", tuple: b"w", dict: b"V"}  #: tags of rows


def elsewhere(body: Writer, encoder: Any, value: Any, path: str) -> None:
    """Write a deep value on the fresh stack of another thread, and wait for it."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            body(encoder, value, path)
        except BaseException as error:  # raised again below, where the caller is
            failure.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system allows no more threads
        raise RecursionError from None
    thread.join()
    if failure:
        raise failure.pop()


def scalars(items: list[Any] | tuple[Any, ...]) -> bytes | None:
    """Return the form of a run of plain scalars, made at C speed; None if there is anything else among them.

    MessagePack keeps int, float, bool, None and str apart, and writes each in one way only. It writes members of enums
    as their values, and much else as strings, so the types are proved first: by a look at each.
    """
    first = type(items[0])
    if first not in PLAIN:
        return None
    if list(map(type, items)).count(first) == len(items):  # the fastest way to check all types
        hazy = first is float and (total := sum(items)) != total
    else:
        kinds = set(map(type, items))
        if not kinds <= PLAIN:
            return None
        hazy = float in kinds
    return written([item if item == item else math.nan for item in items] if hazy else items)


def written(items: list[Any] | tuple[Any, ...]) -> bytes | None:
    """Return the form of a run of plain scalars; None if MessagePack can't hold one: over 64 bits, lone surrogates."""
    try:
        return pack(items)
    except (OverflowError, ValueError):
        return None


def parts(encoder: Any, items: list[Any] | tuple[Any, ...], path: str, start: int | None = None) -> None:
    """Write the items of a sequence, one after the other.

    ``start``: where the form begins whose last part these items are; it may be sealed at once.
    """
    if items and not _run(encoder, items, start) and not _rows(encoder, items, path, _item):
        _each(encoder, items, path, _item)


def columns(
    encoder: Any,
    keys: list[Any],
    items: list[Any],
    step: Callable[[Any], str],
    path: str,
    start: int | None = None,
) -> None:
    """Write the keys of a mapping, then its items. ``start`` as for `parts`."""
    encoder.out += b"D" + count(len(keys))
    if not keys:
        return
    _keys(encoder, keys)
    if not _run(encoder, items, start) and not _rows(encoder, items, path, step, keys):
        _each(encoder, items, path, step, keys)


def _keys(encoder: Any, keys: list[Any]) -> None:
    bulk = written(keys)
    if bulk is None:
        _each(encoder, keys, "", _item)
    else:
        encoder.out += b"P"
        encoder.out += bulk


def _each(
    encoder: Any,
    items: list[Any] | tuple[Any, ...],
    path: str,
    step: Callable[[Any], str],
    keys: list[Any] | None = None,
) -> None:
    """Write items one by one. ``step(key)`` shows the step to one: of ``keys``, else by its number."""
    index = 0
    try:
        for index, item in enumerate(items):  # noqa: B007  (the handler below uses it)
            WRITERS[type(item)](encoder, item, "")
    except Refused as refused:
        refused.at(path + step(keys[index] if keys else index))
        raise


def _run(encoder: Any, items: list[Any] | tuple[Any, ...], start: int | None) -> bool:
    """Write the items as a run, if they are one, and return whether. Its tag is no item's, so forms never clash."""
    bulk = scalars(items)
    if bulk is None:
        return False
    encoder.out += b"P"
    if start is not None and len(bulk) > LONG:
        encoder.seal(start, bulk)
    else:
        encoder.out += bulk
    return True


def _rows(
    encoder: Any,
    items: list[Any] | tuple[Any, ...],
    path: str,
    step: Callable[[Any], str],
    keys: list[Any] | None = None,
) -> bool:
    """Write items that are alike column by column, at C speed, and return whether they are.

    They are all lists, all tuples, or all dicts with the same names in one order; no list or dict was met before.
    """
    kind = type(items[0])
    if kind not in _ROWS or len(items) < FEW or encoder.slow:
        return False
    if countOf(map(type, items), kind) != len(items):
        return False
    lengths = list(map(len, items))
    total = sum(lengths)
    if not total or total > MANY:
        return False
    even = lengths.count(lengths[0]) == len(lengths)
    found: Iterable[Any] = ()
    names: list[str] = []
    if kind is dict:
        names, every = list(items[0]), list(chain.from_iterable(items))
        if not even or every != names * len(items) or countOf(map(type, every), str) != total:
            return False
        flat = list(chain.from_iterable(map(dict.values, items)))
        found = [flat[number :: len(names)] for number in range(len(names))]
    else:
        found = (list(chain.from_iterable(items)),)
    if kind is not tuple and not encoder.fresh(items):
        return False
    encoder.out += _ROWS[kind] + count(len(items)) + (count(lengths[0]) if even else b"~" + pack(lengths))
    if names:
        _keys(encoder, names)
    encoder.in_rows += 1
    try:
        depth = encoder.depth = encoder.depth + 1
        if depth % encoder.leap:
            _columns(encoder, found, "")
        else:
            elsewhere(_columns, encoder, found, "")
        encoder.depth = depth - 1
    except Refused:
        if encoder.in_rows == 1:
            patient = type(encoder)(bytearray(), encoder.memory, encoder.slots)
            patient.slow = True
            _each(patient, items, path, step, keys)
        raise
    finally:
        encoder.in_rows -= 1
    return True


def _columns(encoder: Any, found: Iterable[Any], path: str) -> None:
    for column in found:
        parts(encoder, column, "")
