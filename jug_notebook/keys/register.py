"""Which function writes the values of a type in their canonical form, and what all these functions share.

The rules of the form are in `digest`. The functions themselves are in `objects` and `arrays`.
"""

from __future__ import annotations

import functools
import marshal
import math
import struct
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from jug_notebook import system
from jug_notebook.errors import Unhashable
from jug_notebook.keys.libraries import cache_names

SCHEME = b"jn3"  #: version of the canonical form, inside every digest
SIZE = 20  #: bytes of a digest

LIMIT = 256  #: a part whose form is longer is replaced by its hash
THREADS = 1 << 20  #: above this number of bytes, hashing uses more than one core
LONGEST = 500  #: characters of a message: of a longer one, the middle of the path goes

#: writes a value to an encoder (the first argument); the text says, for messages, where the value is
Writer: TypeAlias = Callable[[Any, Any, str], None]

PLAIN = frozenset({int, float, bool, NoneType, str})  #: what a run of scalars may hold

dumps = marshal.dumps
pack = msgspec.msgpack.Encoder().encode
NAN = struct.pack("<d", math.nan)
count = struct.Struct("<Q").pack
short = struct.Struct("<I").pack

_CHOICES = (
    "can't be hashed reliably{reason}. Pass its path or its parts, give its class a __jug_hash__ method, or wrap it in "
    "NoHash if it doesn't affect the result."
)


#: what to do about a part that no other process can have, and about such a thing itself
INSIDE = "make what holds it inside the task, or leave it out in its class's __getstate__"
ITSELF = "make it inside the task"


class Refused(Exception):
    """A part of a value can't be hashed reliably. Collects the path to it, from the inside out."""

    def __init__(self, kind: str, step: str, reason: str, message: str = "", verdict: str = "") -> None:
        super().__init__(kind)
        self.kind, self.reason, self.steps = kind, reason, [step]
        self.message = message  #: the whole message already, except for where the part is
        self.verdict = verdict  #: what follows "is a socket, which", in place of the usual choices

    def at(self, step: str) -> None:
        """Add the step that led here."""
        self.steps.append(step)

    def unhashable(self, path: str) -> Unhashable:
        """Return the error to raise for a refusal in the value at ``path``."""
        way = "".join(reversed(self.steps))
        if len(way) > 200:
            way = f"{way[:90]} … {way[-90:]}"
        reason = f" ({self.reason})" if self.reason else ""
        verdict = f"{self.verdict if way else self.verdict.replace(INSIDE, ITSELF)}." if self.verdict else ""
        if at := next((word for word in (" read by ", " of ") if word in path), ""):  # "global 'x'.lock, read by f()"
            thing, _, where = path.partition(at)
            path, way = f"{thing}{way}{at}{where}", ""
        verdict = verdict or _CHOICES.format(reason=reason)
        text = f"{path}{way}: {self.message}" if self.message else f"{path}{way} is {self.kind}, which {verdict}"
        return Unhashable(text if len(text) < LONGEST else f"{text[:120]} … {text[-LONGEST + 120 :]}")


def fingerprint(data: Any) -> bytes:
    """Return the hash (20 bytes) of the bytes of a buffer."""
    with memoryview(data) as whole, whole.cast("B") as view:
        return (system.hasher(len(view)).update(view) if len(view) > THREADS else blake3(view)).digest(SIZE)


def instance_dict(value: Any) -> dict[str, Any]:
    """Return the ``__dict__`` of an instance, empty if it has none."""
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else {}


def held_by(value: Any) -> dict[str, Any]:
    """Return what counts of the ``__dict__`` of an instance."""
    kind: Any = type(value)
    found, passing = instance_dict(value), cache_names(kind)
    return {name: what for name, what in found.items() if name not in passing} if found else found


def named(tag: bytes, module: str, name: str) -> bytes:
    """Return the form of something that counts by its name alone."""
    return tag + dumps(str(module), 2) + dumps(str(name), 2)


def described(value: Any) -> str:
    """Return the type of a value for messages, with its article: ``a numpy.ndarray``."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def step(key: Any) -> str:
    """Return how messages show the step to an item of a mapping: ``['key']``."""
    text = repr(key) if type(key) in PLAIN or type(key) is bytes else f"<{type(key).__qualname__}>"
    return f"[{text if len(text) <= 60 else text[:57] + '…'}]"


# -- the register: which function writes a type ------------------------------------------------------------------------


class _Registered(NamedTuple):
    writer: Writer
    body: Writer  #: the same for a value that was met already, as an instance of a subclass
    mutable: bool
    attributes: bool  #: for subclasses, also write what else the instance holds


class _Writers(dict[type, Writer]):
    """The writer of each type met so far."""

    def __missing__(self, kind: type) -> Writer:
        writer = self[kind] = _find(kind)
        return writer


class _Bodies(dict[type, Writer | None]):
    """For mutable types, what writes a value without regard to where it was met before; None for the others."""

    def __missing__(self, kind: type) -> Writer | None:
        found = find_registered(kind)
        return None if found is None or not found.mutable else self.setdefault(kind, found.body)


WRITERS = _Writers()
BODIES = _Bodies()
_registry: dict[str, _Registered] = {}
_exact: dict[type, Writer] = {}
_later: list[Callable[[], None]] = []

#: what stands for code is written by its own writer whatever its exact type (a metaclass is no subclass to tell apart)
_CODE = frozenset(f"builtins.{name}" for name in ("type", "function", "method", "builtin_function_or_method", "module"))


def writer_for(
    name: str, *, attributes: bool = True, nested: bool = False, mutable: bool = False
) -> Callable[[Writer], Writer]:
    """Decorate the function that writes values of the type ``name``, and of its subclasses unless they have their own.

    The name is ``module.qualname``, or ``root.qualname`` where the module in between is the package's own business, or
    that of one of the special methods. A subclass is told apart by its class, and, with ``attributes``, by what its
    instances hold in ``__dict__``. ``nested`` is for containers: they may be deep, or contain themselves. ``mutable``
    is for containers, too: where one of them is met twice, that counts.
    """

    def add(body: Writer) -> Writer:
        _registry[name] = _Registered(
            contained(body, mutable) if nested or mutable else body, body, mutable, attributes
        )
        WRITERS.clear()
        WRITERS.update(_exact)
        return body

    return add


def contained(body: Writer, mutable: bool) -> Writer:
    """Return the writer of a type of containers."""

    def shared(encoder: Any, value: Any, path: str) -> None:
        encoder.shared(value, path, body)

    def nested(encoder: Any, value: Any, path: str) -> None:
        encoder.nested(value, path, body)

    return shared if mutable else nested


def write_parts(
    names: str,
    tag: str,
    parts: Callable[[Any], Sequence[Any]],
    *,
    attributes: bool = True,
    nested: bool = False,
    mutable: bool = False,
) -> None:
    """Write values of these types (names as for `writer_for`, with spaces between) as ``tag`` and ``parts(value)``."""

    def writer(encoder: Any, value: Any, path: str) -> None:
        encoder.tagged(tag, parts(value), path)

    for name in names.split():
        writer_for(name, attributes=attributes, nested=nested, mutable=mutable)(writer)


def exact_writer(*kinds: type) -> Callable[[Writer], Writer]:
    """Decorate the function that writes values of exactly these types."""

    def add(writer: Writer) -> Writer:
        for kind in kinds:
            WRITERS[kind] = _exact[kind] = writer
        return writer

    return add


def register_later(load: Callable[[], None]) -> None:
    """Call ``load``, which registers writers, once a type is met that none so far is for."""
    _later.append(load)


def find_registered(kind: type) -> _Registered | None:
    """Return the entry of exactly this type, by its dotted name; None if it has none."""
    module, name = kind.__module__, kind.__qualname__
    if not isinstance(module, str):
        return None
    return _registry.get(f"{module}.{name}") or _registry.get(f"{module.partition('.')[0]}.{name}")


def _find(kind: type) -> Writer:
    while _later:
        _later.pop()()
    if issubclass(kind, type):
        return _exact[type]
    for method in ("__jug_reference__", "__jug_hash__"):
        if hasattr(kind, method):
            return _registry[method].writer
    writer = _writer_of(kind)
    return functools.partial(_with_needs, writer) if hasattr(kind, "__jug_dependencies__") else writer


def _writer_of(kind: type) -> Writer:
    """Return the writer of a type, or of the nearest of its bases that has one."""
    for base in kind.__mro__[:-1]:
        found = find_registered(base)
        if found is None:
            continue
        if base is kind or f"{base.__module__}.{base.__qualname__}" in _CODE:
            return found.writer
        return functools.partial(_derived, found)
    fields = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return _registry["collections.namedtuple" if fields else "builtins.object"].writer


def has_writer(kind: type) -> bool:
    """Return True for types that aren't written as just any object."""
    return WRITERS[kind] is not _registry["builtins.object"].writer


def own_hash(encoder: Any, value: Any, path: str) -> bool:
    """Write a value by its ``__jug_hash__``, if it has one: the method may have been added after the type was met."""
    if not hasattr(type(value), "__jug_hash__"):
        return False
    _registry["__jug_hash__"].writer(encoder, value, path)
    return True


def _derived(base: _Registered, encoder: Any, value: Any, path: str) -> None:
    """Write an instance of a subclass: its class, what the base's writer writes, what else it holds."""

    def body(encoder: Any, value: Any, path: str) -> None:
        encoder.out += b"C"
        try:
            encoder.class_part(type(value), path)
        except Refused:
            base.body(encoder, value, path)  # if it is refused for what it is, that is said
            raise
        base.body(encoder, value, path)
        encoder.attributes(held_by(value) if base.attributes else {}, path)

    if not own_hash(encoder, value, path):
        (encoder.shared if base.mutable else encoder.nested)(value, path, body)


def _with_needs(writer: Writer, encoder: Any, value: Any, path: str) -> None:
    """Write something that has ``__jug_dependencies__``: its value depends on these tasks."""
    if not own_hash(encoder, value, path):
        writer(encoder, value, path)
        _registry["__jug_dependencies__"].writer(encoder, value, path)
