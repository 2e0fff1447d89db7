"""The canonical form of values: the encoder that writes it, and the register of how each type is written.

The rules of the form are told in `digest`.
"""

from __future__ import annotations

import functools
import marshal
import math
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import NoneType
from typing import Any, NamedTuple, NoReturn, TypeAlias

import msgspec
from blake3 import blake3

from jug_notebook.errors import Unhashable
from jug_notebook.model import UNLOADED, Key, Reference

SCHEME = b"jn2"  #: version of the canonical form, inside every digest
SIZE = 20  #: bytes of a digest

LIMIT = 256  #: a part whose form is longer is replaced by its hash
HEAVY = 16 * 1024  #: a part that took more bytes than this to hash is remembered while its digest is made
THREADS = 1 << 20  #: from so many bytes on, hashing takes more than one core
KEPT = 256  #: so many heavy parts are remembered from one call of a `.map` to the next
TANGLED = 1_000_000  #: visits after which we start to look whether the same things are visited over and over

Entry: TypeAlias = Callable[["Encoder", Any, str], None]

#: by the id of what owns a buffer: that, its size, and the hash of all its bytes as they lie
Hashed: TypeAlias = dict[int, tuple[Any, int, bytes]]

dumps = marshal.dumps
pack = msgspec.msgpack.Encoder().encode
NAN = struct.pack("<d", math.nan)
count = struct.Struct("<Q").pack
short = struct.Struct("<I").pack

_CHOICES = (
    "can't be named for certain, so no key can promise its result{reason}. Pass its path or its parts, give its class "
    "a method __jug_hash__, or wrap it in NoHash if it doesn't matter for the result."
)


class Refused(Exception):
    """A part of a value can't be named. Collects the way to it, from the inside out."""

    def __init__(self, kind: str, step: str, reason: str, told: str = "") -> None:
        super().__init__(kind)
        self.kind, self.reason, self.steps = kind, reason, [step]
        self.told = told  #: all there is to say already, but for where it is

    def at(self, step: str) -> None:
        self.steps.append(step)

    def unhashable(self, path: str) -> Unhashable:
        way = "".join(reversed(self.steps))
        if len(way) > 200:
            way = f"{way[:90]} … {way[-90:]}"
        if self.told:
            return Unhashable(f"{path}{way}: {self.told}")
        reason = f" ({self.reason})" if self.reason else ""
        return Unhashable(f"{path}{way} is {self.kind}, which " + _CHOICES.format(reason=reason))


def fingerprint(data: Any) -> bytes:
    """The hash of the bytes of a buffer."""
    with memoryview(data) as whole, whole.cast("B") as view:
        return blake3(view, max_threads=blake3.AUTO if len(view) > THREADS else 1).digest(SIZE)


# -- entries: how a type is written ------------------------------------------------------------------------------------


class _Registered(NamedTuple):
    entry: Entry
    attributes: bool  #: of subclasses, write what else the instance holds


class _Entries(dict[type, Entry]):
    """The entry of each type met so far."""

    def __missing__(self, kind: type) -> Entry:
        entry = self[kind] = _find(kind)
        return entry


ENTRIES = _Entries()
_registry: dict[str, _Registered] = {}
_builtin: dict[type, Entry] = {}
_later: list[Callable[[], None]] = []

#: what stands for code is written by its own entry whatever its exact type (a metaclass is no subclass to tell apart)
_CODE = frozenset(f"builtins.{name}" for name in ("type", "function", "method", "builtin_function_or_method", "module"))


def register(dotted: str, *, attributes: bool = True) -> Callable[[Entry], Entry]:
    """Decorate the entry of the type ``dotted``, and of its subclasses unless they have their own.

    The name is ``module.qualname``, or ``root.qualname`` where the module in between is the package's own business.
    A subclass is kept apart by its class, and, with ``attributes``, what its instances hold in ``__dict__`` is added.
    """

    def add(entry: Entry) -> Entry:
        _registry[dotted] = _Registered(entry, attributes)
        ENTRIES.clear()
        ENTRIES.update(_builtin)
        return entry

    return add


def register_later(load: Callable[[], None]) -> None:
    """Call ``load``, which registers entries, once a type is met that no entry so far is for."""
    _later.append(load)


def exactly(*kinds: type) -> Callable[[Entry], Entry]:
    def add(entry: Entry) -> Entry:
        for kind in kinds:
            ENTRIES[kind] = _builtin[kind] = entry
        return entry

    return add


def _registered(kind: type) -> _Registered | None:
    module, name = kind.__module__, kind.__qualname__
    if not isinstance(module, str):
        return None
    return _registry.get(f"{module}.{name}") or _registry.get(f"{module.partition('.')[0]}.{name}")


def _find(kind: type) -> Entry:
    while _later:
        _later.pop()()
    if issubclass(kind, type):
        return _builtin[type]
    if hasattr(kind, "__jug_reference__"):
        return _reference
    if hasattr(kind, "__jug_hash__"):
        return own_hash
    entry = _entry_of(kind)
    return functools.partial(_dependent, entry) if hasattr(kind, "__jug_dependencies__") else entry


def _entry_of(kind: type) -> Entry:
    """What is registered for a type, or for the nearest of its bases."""
    for base in kind.__mro__[:-1]:
        found = _registered(base)
        if found is None:
            continue
        if base is kind or f"{base.__module__}.{base.__qualname__}" in _CODE:
            return found.entry
        return functools.partial(_derived, found.entry, found.attributes)
    fields = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return _registry["collections.namedtuple" if fields else "builtins.object"].entry


def has_entry(kind: type) -> bool:
    """True for types that aren't just any object."""
    return ENTRIES[kind] is not _registry["builtins.object"].entry


def _derived(entry: Entry, attributes: bool, encoder: Encoder, value: Any, path: str) -> None:
    """An instance of a subclass: its class, what the base says of it, what else it holds."""
    if hasattr(type(value), "__jug_hash__"):  # given after the type was first met
        return own_hash(encoder, value, path)

    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.out += b"C"
        encoder.class_part(type(value), path)
        entry(encoder, value, path)
        encoder.attributes(held(value) if attributes else {}, path)

    encoder.nested(value, path, body, outer=True)
    return None


# -- the encoder -------------------------------------------------------------------------------------------------------


class Memory:
    """What is remembered from one digest to the next: heavy parts by id (kept alive), and class parts."""

    __slots__ = ("classes", "complete", "parts")

    def __init__(self) -> None:
        self.complete = False  #: what is met from now on may change, and is remembered within one digest only
        self.parts: dict[int, tuple[Any, bytes]] = {}
        self.classes: dict[type, bytes] = {}


_memory: ContextVar[Memory | None] = ContextVar("_memory", default=None)
_open_classes: ContextVar[frozenset[type]] = ContextVar("_open_classes", default=frozenset())


@contextmanager
def remembering() -> Iterator[Memory]:
    """Within this block, arguments that are heavy to hash are hashed once: for the many calls of one ``.map``.

    Nobody may change them meanwhile. Set ``complete`` where what comes next may change: it is looked at each time.
    """
    memory = Memory()
    token = _memory.set(memory)
    try:
        yield memory
    finally:
        _memory.reset(token)


class Encoder:
    """Writes the canonical form of values to ``out``. Entries call `add` for the parts, `tag` and `text` beside."""

    __slots__ = (
        *("_above", "_fed", "_leap", "_loops", "_parts", "_seen", "_visits"),
        *("classes", "hashed", "memory", "met", "out", "slots"),
    )

    def __init__(
        self,
        out: bytearray,
        memory: Memory | None = None,
        slots: dict[Key, int] | None = None,
        hashed: Hashed | None = None,
    ) -> None:
        self.out = out
        self.hashed = hashed
        self.met: list[Key] = []  #: keys of references, as they were met
        self.slots = slots  #: number of each need: write that instead of its key
        self.memory = memory or _memory.get() or Memory()
        self._parts = dict(self.memory.parts) if self.memory.complete else self.memory.parts
        self.classes = dict(self.memory.classes) if self.memory.complete else self.memory.classes
        self._above: dict[int, int] = {}  #: ids of what is being written, outermost first, and their levels
        # so many levels go on one thread's stack: a level takes a few calls, and the caller has a stack already
        self._leap = max(20, sys.getrecursionlimit() // 10)
        self._fed = self._loops = self._visits = 0
        self._seen: set[int] = set()
        if len(self._parts) > KEPT:
            self._parts.clear()

    def add(self, value: Any, path: str = "") -> None:
        """Write a value. ``path`` says, for messages, where it is in what the caller was given."""
        ENTRIES[type(value)](self, value, path)

    def tag(self, name: str, following: int = 0) -> None:
        """Start something of one's own: its name, and how many parts follow."""
        data = name.encode()
        self.out += b"X" + short(len(data)) + data + count(following)

    def tagged(self, name: str, parts: Sequence[Any], path: str = "") -> None:
        """Write a tag and its parts."""
        self.tag(name, len(parts))
        for part in parts:
            ENTRIES[type(part)](self, part, path)

    def text(self, text: str) -> None:
        """Write a string."""
        self.out += dumps(str(text), 2)

    def data(self, buffer: Any) -> None:
        """Write the bytes of a buffer, or where they are many, their hash."""
        with memoryview(buffer) as whole, whole.cast("B") as view:
            size = len(view)
            self.out += b"B" + count(size)
            if size > LIMIT:
                self._fed += size
                self.out += blake3(view, max_threads=blake3.AUTO if size > THREADS else 1).digest(SIZE)
            else:
                self.out += view

    def stream(self, size: int, chunks: Iterable[Any], owner: Any = None) -> None:
        """As `data`, for bytes that come in pieces; all those of ``owner``, as they lie, where one is named."""
        if size <= LIMIT:
            return self.data(b"".join(bytes(chunk) for chunk in chunks))
        known = None if self.hashed is None or owner is None else self.hashed.get(id(owner))
        if known is not None and known[0] is owner and known[1] == size:
            hashed = known[2]
        else:
            digest = blake3(max_threads=blake3.AUTO)
            for chunk in chunks:
                digest.update(chunk)
            hashed = digest.digest(SIZE)
        self._fed += size
        self.out += b"B" + count(size) + hashed
        return None

    def refuse(self, value: Any, path: str = "", reason: str = "") -> NoReturn:
        """Say that this can't be named."""
        raise Refused(_described(value), path, reason)

    def refuse_because(self, refusal: Unhashable, path: str = "") -> NoReturn:
        """Say that this can't be named because of something in it, which was refused elsewhere."""
        raise Refused("", path, "", str(refusal)) from refusal.__cause__

    def nested(self, value: Any, path: str, body: Entry, outer: bool = False) -> None:
        """Write, through ``body``, something with parts: it may contain itself, be met often, be long, lie deep.

        ``outer`` where ``body`` leads to another `nested` of the same value.
        """
        me = ~id(value) if outer else id(value)
        above = self._above
        level = above.get(me)
        if level is not None:
            self._loops += 1
            self.out += b"^" + short(len(above) - level)
            return
        known = self._parts.get(me)
        if known is not None and known[0] is value:
            self.out += known[1]
            return
        self._visits += 1
        if self._visits > TANGLED and self._loops:
            self._seen.add(me)
            if self._visits - TANGLED > 20 * len(self._seen) + TANGLED:
                self.refuse(value, path, "its parts refer to each other in too many ways")
        depth = above[me] = len(above)
        out = self.out
        start, met, fed, loops = len(out), len(self.met), self._fed, self._loops
        try:
            if depth and not depth % self._leap:
                _elsewhere(body, self, value, path)
            else:
                body(self, value, path)
        finally:
            del above[me]
        size = len(out) - start
        self._fed += size
        if size > LIMIT:
            self.seal(start)
        # a part with a reference must be walked again to find it, and one with a loop looks otherwise from elsewhere
        if self._fed - fed > HEAVY and self._loops == loops and len(self.met) == met:
            self._parts[me] = (value, bytes(out[start:]))

    def seal(self, start: int, tail: bytes = b"") -> None:
        """Put the hash of all from ``start`` on, and of what would have followed, in its place."""
        out = self.out
        size = len(out) - start + len(tail)
        with memoryview(out) as view, view[start:] as part:
            hasher = blake3(part, max_threads=blake3.AUTO if size > THREADS else 1)
        hasher.update(tail)
        self._fed += len(tail)
        del out[start:]
        out += b"#"
        out += hasher.digest(SIZE)

    def attributes(self, held: dict[str, Any], path: str = "") -> None:
        """Write what an object holds by name, in the order of the names."""
        names = sorted(held)
        columns(self, names, [held[name] for name in names], ".{}".format, path)

    def apart(self, value: Any, path: str = "") -> tuple[bytes, list[Key]]:
        """The form of a value and the references in it, not yet written: for what has no order of its own."""
        start, met = len(self.out), len(self.met)
        ENTRIES[type(value)](self, value, path)
        piece, keys = bytes(self.out[start:]), self.met[met:]
        del self.out[start:], self.met[met:]
        return piece, keys

    def class_part(self, kind: type, path: str = "") -> None:
        """Write what a class is to its instances: as the entry of `type` says, else by name."""
        piece = self.classes.get(kind)
        if piece is None:
            piece = self._class_piece(kind, path)
        self.out += piece

    def _class_piece(self, kind: type, path: str) -> bytes:
        open_classes = _open_classes.get()
        found = _registry.get("builtins.type")
        if found is None or kind in open_classes:
            # a class whose body leads to its own instances: inside itself its name will do
            return named(b"c", kind.__module__, kind.__qualname__)
        token = _open_classes.set(open_classes | {kind})
        above, self._above = self._above, {}  # what a class is doesn't hang on where it was met
        start, met = len(self.out), len(self.met)
        try:
            found.entry(self, kind, path)
        finally:
            self._above = above
            _open_classes.reset(token)
        piece = bytes(self.out[start:])
        del self.out[start:]
        if not open_classes and len(self.met) == met:
            self.classes[kind] = piece
        return piece


def _elsewhere(body: Entry, encoder: Encoder, value: Any, path: str) -> None:
    """Go on with a deep value on the fresh stack of another thread, and wait for it."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            body(encoder, value, path)
        except BaseException as error:  # raised again below, where the caller is
            failure.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure.pop()


def held(value: Any) -> dict[str, Any]:
    """What an instance holds in its ``__dict__``."""
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else {}


@functools.lru_cache(1024)
def cached_names(kind: type) -> frozenset[str]:
    """Names in the ``__dict__`` of instances that only save work: they come and go without changing the value."""
    return frozenset(
        name
        for base in kind.__mro__
        for name, what in vars(base).items()
        if isinstance(what, functools.cached_property)
    )


def named(tag: bytes, module: str, name: str) -> bytes:
    return tag + dumps(str(module), 2) + dumps(str(name), 2)


def _described(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def step(key: Any) -> str:
    shown = repr(key) if type(key) in PLAIN or type(key) is bytes else f"<{type(key).__qualname__}>"
    return f"[{shown if len(shown) <= 60 else shown[:57] + '…'}]"


# -- what names itself -------------------------------------------------------------------------------------------------


def own_hash(encoder: Encoder, value: Any, path: str) -> None:
    answer = value.__jug_hash__()
    if not isinstance(answer, str | bytes):
        encoder.refuse(value, path, f"its __jug_hash__ answers {_described(answer)}, not a str or bytes")
    encoder.out += b"J"
    encoder.text(type(value).__qualname__)
    encoder.add(str(answer) if isinstance(answer, str) else bytes(answer), path)
    if hasattr(type(value), "__jug_dependencies__"):
        _needed(encoder, value, path)


def _dependent(entry: Entry, encoder: Encoder, value: Any, path: str) -> None:
    """Something that tells itself which tasks its value hangs on."""
    if hasattr(type(value), "__jug_hash__"):  # given after the type was first met
        return own_hash(encoder, value, path)
    entry(encoder, value, path)
    return _needed(encoder, value, path)


def _needed(encoder: Encoder, value: Any, path: str) -> None:
    found: list[Any] = []
    _gather(encoder, value, value.__jug_dependencies__(), path, found)
    encoder.tagged("needs", found, path)


def _gather(encoder: Encoder, value: Any, told: Any, path: str, found: list[Any]) -> None:
    """The tasks in what ``__jug_dependencies__`` answers. What else is in it says nothing, as in Jug."""
    try:
        items = list(told.values() if isinstance(told, dict) else told)
    except TypeError:
        encoder.refuse(value, path, f"its __jug_dependencies__ answers {_described(told)}, not a list of tasks")
    for item in items:
        if hasattr(type(item), "__jug_reference__"):
            found.append(item)
        elif hasattr(type(item), "__jug_dependencies__"):
            _gather(encoder, item, item.__jug_dependencies__(), path, found)
        elif isinstance(item, list | tuple | set | frozenset | dict):
            _gather(encoder, value, item, path, found)


def _reference(encoder: Encoder, value: Any, path: str) -> None:
    reference: Reference = value.__jug_reference__()
    encoder.met.append(reference.key)
    if encoder.slots is None:
        encoder.out += b"R"
        encoder.text(reference.key)
    else:
        encoder.out += b"r" + short(encoder.slots[reference.key])
        if reference.steps and reference.steps[-1] == UNLOADED:  # the function may look at the task, not only its value
            encoder.text(reference.key)
    encoder.out += count(len(reference.steps))
    for kind, what in reference.steps:
        encoder.text(kind)
        encoder.add(what, path)


# -- many at once ------------------------------------------------------------------------------------------------------

PLAIN = frozenset({int, float, bool, NoneType, str})  #: what a run of scalars may hold
LONG = 4096  #: bytes of a run that are worth not copying


def scalars(items: list[Any] | tuple[Any, ...]) -> bytes | None:
    """The form of a run of plain scalars, at C speed; None where there is anything else among them.

    MessagePack keeps int, float, bool, None and str apart, and writes each in one way only. It writes members of enums
    as their values, and much else as strings, so the types are proved first: by a look at each.
    """
    first = type(items[0])
    if first not in PLAIN:
        return None
    if list(map(type, items)).count(first) == len(items):  # nothing tells all types in less time
        hazy = first is float and (total := sum(items)) != total
    else:
        kinds = set(map(type, items))
        if not kinds <= PLAIN:
            return None
        hazy = float in kinds
    return written([item if item == item else math.nan for item in items] if hazy else items)


def written(items: list[Any] | tuple[Any, ...]) -> bytes | None:
    """The form of a run of plain scalars. None where one has no place in MessagePack: 64 bits, half a character."""
    try:
        return pack(items)
    except (OverflowError, ValueError):
        return None


def parts(encoder: Encoder, items: list[Any] | tuple[Any, ...], path: str, start: int | None = None) -> None:
    """Write the items of a sequence, one after the other.

    ``start`` is where the form begins that these items end, if they do: it may be sealed at once.
    """
    if not items:
        return
    if _run(encoder, items, start):
        return
    index = 0
    try:
        for index, item in enumerate(items):  # noqa: B007  (which it was is told where one is refused)
            ENTRIES[type(item)](encoder, item, "")
    except Refused as refused:
        refused.at(f"{path}[{index}]")
        raise


def _run(encoder: Encoder, items: list[Any] | tuple[Any, ...], start: int | None) -> bool:
    """Write the items as a run, if they are one. Its tag is no item's, so a run is never taken for its items."""
    bulk = scalars(items)
    if bulk is None:
        return False
    encoder.out += b"P"
    if start is not None and len(bulk) > LONG:
        encoder.seal(start, bulk)
    else:
        encoder.out += bulk
    return True


def columns(
    encoder: Encoder,
    keys: list[str],
    items: list[Any],
    step: Callable[[str], str],
    path: str,
    start: int | None = None,
) -> None:
    """The keys of a mapping, then its items. ``start`` as for `parts`."""
    encoder.out += b"D" + count(len(keys))
    if not keys:
        return
    bulk = written(keys)
    if bulk is None:
        parts(encoder, keys, "")
    else:
        encoder.out += b"P"
        encoder.out += bulk
    if _run(encoder, items, start):
        return
    index = 0
    try:
        for index, item in enumerate(items):  # noqa: B007
            ENTRIES[type(item)](encoder, item, "")
    except Refused as refused:
        refused.at(path + step(keys[index]))
        raise
