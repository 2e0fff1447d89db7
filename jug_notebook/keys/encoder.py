"""The encoder that writes values in their canonical form.

The rules of the form are in `digest`, the register of the functions that write each type in `register`.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, NoReturn, TypeAlias

from blake3 import blake3

from jug_notebook.errors import Unhashable
from jug_notebook.keys.register import (
    LIMIT,
    PLAIN,
    SIZE,
    THREADS,
    WRITERS,
    Refused,
    Writer,
    count,
    described,
    dumps,
    find_registered,
    named,
    pack,
    short,
)
from jug_notebook.model import Key

HEAVY = 16 * 1024  #: a part that took more bytes than this to hash is remembered while its digest is made
KEPT = 256  #: how many heavy parts are remembered from one call of a `.map` to the next
TANGLED = 1_000_000  #: visits after which we start to look whether the same things are visited over and over

#: by id of the owner of a buffer: the owner, its size, and the hash of all its bytes in memory order
Hashed: TypeAlias = dict[int, tuple[Any, int, bytes]]


class Memory:
    """What is remembered from one digest to the next: heavy parts by id (kept alive), and the forms of classes."""

    __slots__ = ("classes", "complete", "parts")

    def __init__(self) -> None:
        self.complete = False  #: True: what is met from now on may change, and is remembered within one digest only
        self.parts: dict[int, tuple[Any, bytes]] = {}
        self.classes: dict[type, bytes] = {}


_memory: ContextVar[Memory | None] = ContextVar("_memory", default=None)
_open_classes: ContextVar[frozenset[type]] = ContextVar("_open_classes", default=frozenset())


@contextmanager
def remembering() -> Iterator[Memory]:
    """Within this block, hash each heavy argument only once: for the many calls of one ``.map``.

    The arguments must not change meanwhile. Set ``complete`` before what may change: that is hashed each time.
    """
    memory = Memory()
    token = _memory.set(memory)
    try:
        yield memory
    finally:
        _memory.reset(token)


class Encoder:
    """Writes the canonical form of values to ``out``. Writers call `add` for parts, and `tag`, `text` and `data`."""

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
        self.slots = slots  #: number of each needed task, to be written instead of its key
        self.memory = memory or _memory.get() or Memory()
        self._parts = dict(self.memory.parts) if self.memory.complete else self.memory.parts
        self.classes = dict(self.memory.classes) if self.memory.complete else self.memory.classes
        self._above: dict[int, int] = {}  #: ids of what is being written, outermost first, and their levels
        # how many levels fit on one thread's stack: each takes a few calls, and the caller uses part of it already
        self._leap = max(20, sys.getrecursionlimit() // 10)
        self._fed = self._loops = self._visits = 0
        self._seen: set[int] = set()
        if len(self._parts) > KEPT:
            self._parts.clear()

    def add(self, value: Any, path: str = "") -> None:
        """Write a value. ``path`` is where it is in what the caller was given, for messages."""
        WRITERS[type(value)](self, value, path)

    def tag(self, name: str, following: int = 0) -> None:
        """Write the tag of a type: its name, and how many parts follow."""
        data = name.encode()
        self.out += b"X" + short(len(data)) + data + count(following)

    def tagged(self, name: str, parts: Sequence[Any], path: str = "") -> None:
        """Write a tag and its parts."""
        self.tag(name, len(parts))
        for part in parts:
            WRITERS[type(part)](self, part, path)

    def text(self, text: str) -> None:
        """Write a string."""
        self.out += dumps(str(text), 2)

    def data(self, buffer: Any) -> None:
        """Write the bytes of a buffer, or their hash if there are many."""
        with memoryview(buffer) as whole, whole.cast("B") as view:
            size = len(view)
            self.out += b"B" + count(size)
            if size > LIMIT:
                self._fed += size
                self.out += blake3(view, max_threads=blake3.AUTO if size > THREADS else 1).digest(SIZE)
            else:
                self.out += view

    def stream(self, size: int, chunks: Iterable[Any], owner: Any = None) -> None:
        """Write, like `data`, bytes that come in pieces. ``owner``: the object whose memory they are."""
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

    def refuse(self, value: Any, path: str = "", reason: str = "", verdict: str = "") -> NoReturn:
        """Raise that ``value`` can't be hashed reliably; a ``verdict`` follows "is a socket, which"."""
        raise Refused(described(value), path, reason, "", verdict)

    def refuse_because(self, refusal: Unhashable, path: str = "") -> NoReturn:
        """Raise that this can't be hashed because of a part of it, which was refused elsewhere."""
        raise Refused("", path, "", str(refusal)) from refusal.__cause__

    def nested(self, value: Any, path: str, body: Writer, outer: bool = False) -> None:
        """Write a value with parts through ``body``: it may contain itself, occur often, be long, or lie deep.

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
        """Replace all from ``start`` on, and ``tail``, which would have followed, by their hash."""
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
        """Write named values in the order of the names."""
        names = sorted(held)
        columns(self, names, [held[name] for name in names], ".{}".format, path)

    def apart(self, value: Any, path: str = "") -> tuple[bytes, list[Key]]:
        """Return the form of a value and the keys of references in it, unwritten: for items without an order."""
        start, met = len(self.out), len(self.met)
        WRITERS[type(value)](self, value, path)
        piece, keys = bytes(self.out[start:]), self.met[met:]
        del self.out[start:], self.met[met:]
        return piece, keys

    def class_part(self, kind: type, path: str = "") -> None:
        """Write a class as part of its instances: by the writer of `type` if there is one, else by name."""
        piece = self.classes.get(kind)
        if piece is None:
            piece = self._class_piece(kind, path)
        self.out += piece

    def _class_piece(self, kind: type, path: str) -> bytes:
        open_classes = _open_classes.get()
        found = find_registered(type)
        if found is None or kind in open_classes:
            # a class whose body leads to its own instances: inside itself its name is enough
            return named(b"c", kind.__module__, kind.__qualname__)
        token = _open_classes.set(open_classes | {kind})
        above, self._above = self._above, {}  # a class's form doesn't depend on where it was met
        start, met = len(self.out), len(self.met)
        try:
            found.writer(self, kind, path)
        finally:
            self._above = above
            _open_classes.reset(token)
        piece = bytes(self.out[start:])
        del self.out[start:]
        if not open_classes and len(self.met) == met:
            self.classes[kind] = piece
        return piece


def _elsewhere(body: Writer, encoder: Encoder, value: Any, path: str) -> None:
    """Write a deep value on the fresh stack of another thread, and wait for it."""
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


# -- many at once ------------------------------------------------------------------------------------------------------

LONG = 4096  #: above this number of bytes, a run is sealed without copying it


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


def parts(encoder: Encoder, items: list[Any] | tuple[Any, ...], path: str, start: int | None = None) -> None:
    """Write the items of a sequence, one after the other.

    ``start``: where the form begins whose last part these items are; it may be sealed at once.
    """
    if not items:
        return
    if _run(encoder, items, start):
        return
    index = 0
    try:
        for index, item in enumerate(items):  # noqa: B007  (the handler below uses it)
            WRITERS[type(item)](encoder, item, "")
    except Refused as refused:
        refused.at(f"{path}[{index}]")
        raise


def _run(encoder: Encoder, items: list[Any] | tuple[Any, ...], start: int | None) -> bool:
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


def columns(
    encoder: Encoder,
    keys: list[str],
    items: list[Any],
    step: Callable[[str], str],
    path: str,
    start: int | None = None,
) -> None:
    """Write the keys of a mapping, then its items. ``start`` as for `parts`."""
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
            WRITERS[type(item)](encoder, item, "")
    except Refused as refused:
        refused.at(path + step(keys[index]))
        raise
