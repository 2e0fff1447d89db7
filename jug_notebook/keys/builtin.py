"""Digests of Python's built-in types."""

from __future__ import annotations

import struct
from operator import countOf, itemgetter
from types import EllipsisType, NoneType
from typing import Any

from jug_notebook.keys.encoder import (
    NAN,
    Encoder,
    Entry,
    Refused,
    columns,
    count,
    dumps,
    exactly,
    parts,
    register,
    step,
)


@exactly(NoneType, bool, int, EllipsisType)
def _plain(encoder: Encoder, value: Any, path: str) -> None:
    encoder.out += dumps(value, 2)


@exactly(float)
def _float(encoder: Encoder, value: float, path: str) -> None:
    encoder.out += dumps(value, 2) if value == value else b"g" + NAN


@exactly(complex)
def _complex(encoder: Encoder, value: complex, path: str) -> None:
    encoder.out += b"y"
    for part in (value.real, value.imag):
        encoder.out += struct.pack("<d", part) if part == part else NAN


@exactly(str)
def _str(encoder: Encoder, value: str, path: str) -> None:
    try:
        encoder.out += dumps(value, 2)
    except ValueError:  # two gigabytes are too long for it
        encoder.out += b"U"
        encoder.data(value.encode("utf-8", "surrogatepass"))


@exactly(bytes)
def _bytes(encoder: Encoder, value: bytes, path: str) -> None:
    encoder.data(value)


def list_body(encoder: Encoder, value: list[Any], path: str) -> None:
    start = len(encoder.out)
    encoder.out += b"L" + count(len(value))
    parts(encoder, value, path, start)


def tuple_body(encoder: Encoder, value: tuple[Any, ...], path: str) -> None:
    start = len(encoder.out)
    encoder.out += b"(" + count(len(value))
    parts(encoder, value, path, start)


@exactly(list)
def _list(encoder: Encoder, value: list[Any], path: str) -> None:
    encoder.nested(value, path, list_body)


@exactly(tuple)
def _tuple(encoder: Encoder, value: tuple[Any, ...], path: str) -> None:
    encoder.nested(value, path, tuple_body)


def mapping_body(encoder: Encoder, value: Any, path: str) -> None:
    """A dict, whose order doesn't count."""
    if countOf(map(type, value), str) == len(value):
        keys = sorted(value)
        columns(encoder, keys, picked(value, keys), step, path, len(encoder.out))
        return
    rows = []
    for key, item in value.items():
        try:
            (name, wanted), (form, also) = encoder.apart(key), encoder.apart(item)
        except Refused as refused:
            refused.at(path + step(key))
            raise
        rows.append((name, form, wanted + also))
    rows.sort()
    encoder.out += b"d" + count(len(rows))
    for name, form, wanted in rows:
        encoder.out += name + form
        encoder.met += wanted


def picked(value: Any, keys: list[str]) -> list[Any]:
    """The items of a mapping in the order of ``keys``."""
    if len(keys) < 100 or type(value) is not dict:
        return [value[key] for key in keys]
    return list(itemgetter(*keys)(value))  # the same, at C speed


@exactly(dict)
def _dict(encoder: Encoder, value: dict[Any, Any], path: str) -> None:
    encoder.nested(value, path, mapping_body)


def _set_body(encoder: Encoder, value: Any, path: str) -> None:
    kinds = set(map(type, value))
    if kinds <= {str} or kinds <= {int}:
        parts(encoder, sorted(value), path)
        return
    try:
        rows = sorted(encoder.apart(item) for item in value)
    except Refused as refused:
        refused.at(f"{path}{{…}}")
        raise
    for form, wanted in rows:
        encoder.out += form
        encoder.met += wanted


def _either_set(tag: bytes) -> Entry:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.out += tag + count(len(value))
        _set_body(encoder, value, path)

    return lambda encoder, value, path: encoder.nested(value, path, body)


exactly(set)(register("builtins.set")(_either_set(b"S")))
exactly(frozenset)(register("builtins.frozenset")(_either_set(b"{")))


@exactly(type)
def _class(encoder: Encoder, value: type, path: str) -> None:
    """A class as a value. Where nobody registered an entry for classes, by name."""
    encoder.out += b"K"
    encoder.class_part(value, path)
