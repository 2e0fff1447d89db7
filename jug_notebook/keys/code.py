"""Functions, classes and modules -> digests, and the parts they are made of.

How that is done is told in `walk`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

from jug_notebook.errors import Opaque, Unhashable
from jug_notebook.keys import digest as canon
from jug_notebook.keys import modules
from jug_notebook.keys.callables import (
    ABSENT,
    CACHED,
    COMPOSITE,
    DESCRIPTORS,
    dispatches,
    form_of,
    global_names,
    identity,
    is_ufunc,
    plain,
    source_of,
    travels,
    ufunc_fields,
    ufunc_name,
)
from jug_notebook.keys.cell_names import CellNames, cell_function, cell_names
from jug_notebook.keys.modules import notice
from jug_notebook.keys.walk import COUNT, Walk, hashed, under_way

__all__ = [
    "CACHED",
    "CellNames",
    "Code",
    "Opaque",
    "bundle",
    "cell_function",
    "cell_names",
    "class_digest",
    "dispatches",
    "examine",
    "form_of",
    "global_names",
    "home",
    "is_ufunc",
    "notice",
    "plain",
    "source_of",
    "travels",
    "ufunc_fields",
    "ufunc_name",
]

bundle = modules.bundle


class Code(NamedTuple):
    """What a function's code comes to."""

    digest: str  #: 40 hex digits
    parts: dict[str, str]  #: "helper norm", "global ALPHA", "default n" -> digest, or the value where it is short
    modules: frozenset[str]  #: top-level names of the project's modules that must travel along
    texts: Mapping[str, str] = MappingProxyType({})  #: of parts that are no plain value: their text, or value in short


# -- the doors ---------------------------------------------------------------------------------------------------------

_pinned: dict[tuple[Any, ...], tuple[list[tuple[Any, str, Any]], Code, Any]] = {}


def _holds(pins: list[tuple[Any, str, Any]]) -> bool:
    """Is each thing still where it was found?"""
    for holder, name, thing in pins:
        if name == COUNT:
            if len(holder.__dict__) != thing:
                return False
        elif type(holder) is dict:
            if holder.get(name, ABSENT) is not thing:
                return False
        elif isinstance(holder, type) and name != "__bases__":
            if holder.__dict__.get(name, ABSENT) is not thing:
                return False
        elif getattr(holder, name, ABSENT) is not thing:
            return False
    return True


def examine(
    function: Callable[..., Any],
    *,
    version: str | None = None,
    ignore_globals: Iterable[str] = (),
    depends: Iterable[Any] = (),
    project: Path | None = None,
) -> Code:
    """What a function's code comes to. ``project``: modules below that folder belong to it and are followed.

    ``version`` stands for the code instead of what it says; ``ignore_globals`` don't count; ``depends`` count as well.
    """
    global _home
    if project is not None:
        _home = project
    function = plain(function)
    ignored, extra = frozenset(ignore_globals), tuple(depends)
    memo = (id(function), version, ignored, project)
    if not extra:
        known = _pinned.get(memo)
        if known is not None and known[2] is function and _holds(known[0]):
            return known[1]
    label = f"function {getattr(function, '__name__', type(function).__name__)}"
    things = [(label, function), *((f"depends {number}", thing) for number, thing in enumerate(extra))]
    walk = Walk(project, ignored, blind=version is not None)
    found = walk.run(things)
    parts = walk.parts
    if version is not None:
        found, parts = hashed(canon.SCHEME, "version", version), {"version": repr(version)}
        walk.texts.clear()
    carried = modules.closed_over(tuple(walk.roots), project) if walk.roots else frozenset[str]()
    code = Code(found.hex(), parts, carried, walk.texts)
    # A bundle is read from the disk, so only what needs none is remembered.
    if walk.pins is not None and not carried and not extra:
        if len(_pinned) > 5_000:
            _pinned.clear()
        _pinned[memo] = (walk.pins, code, function)
    return code


def class_digest(cls: type) -> str:
    """What a class comes to: its bases, methods, annotations and values; for one that can be imported, its name."""
    return _adopted.get(cls) or examine(cls, project=_home).digest


_adopted: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def adopt_class(cls: type, digest: str) -> None:
    """From now on ``digest`` is that of ``cls``, which came from elsewhere and was built here."""
    _adopted[cls] = digest


def home() -> Path | None:
    """The project that functions were last examined for: values that hold things of its modules belong to it too."""
    return _home


_home: Path | None = None


# -- entries for values that hold code ---------------------------------------------------------------------------------


def _of_code(value: Any) -> bytes:
    """A function or class inside a value. One that is being walked already counts as "that one"."""
    value = plain(value)
    me, walks = identity(value), under_way.get()
    for distance, walk in enumerate(reversed(walks)):
        at = walk.index.get(me)
        if at is not None:
            return b"back %d %d" % (distance, at)
    if not walks:
        if isinstance(value, type):
            return bytes.fromhex(class_digest(value))
        found = bytes.fromhex(examine(value, project=_home).digest)
        return found if type(value) is not FunctionType else hashed(value.__name__, found)
    outer = walks[-1]
    walk = Walk(outer.project, outer.ignored)
    walk.by_value = outer.by_value
    found = walk.run([("value", value)])
    outer.met(walk)
    return found if type(value) is not FunctionType else hashed(value.__name__, found)


def _entry(encoder: canon.Encoder, value: Any, path: str) -> None:
    encoder.tag("code", 1)
    try:
        encoder.data(_of_code(value))
    except Unhashable as refusal:
        encoder.refuse_because(refusal, path)


for _kind in (type, FunctionType, ModuleType, *COMPOSITE, *DESCRIPTORS):
    canon.writer_for(f"{_kind.__module__}.{_kind.__qualname__}", attributes=False)(_entry)
for _dotted in ("numpy.ufunc", "jug_notebook.task.function.TaskFunction"):
    canon.writer_for(_dotted, attributes=False)(_entry)
