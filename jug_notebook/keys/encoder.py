"""The encoder that writes values in their canonical form.

The rules of the form are in `digest`, the register of the functions that write each type in `register`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, TypeAlias

from blake3 import blake3

from jug_notebook import system
from jug_notebook.errors import Unhashable
from jug_notebook.keys.register import (
    BODIES,
    LIMIT,
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
    short,
)
from jug_notebook.keys.rows import columns, elsewhere
from jug_notebook.model import Key

HEAVY = 16 * 1024  #: a part that took more bytes than this to hash is remembered while its digest is made
KEPT = 256  #: how many heavy parts are remembered from one call of a `.map` to the next
_attribute = ".{}".format
FAR = 1 << 62  #: above any number of an object

#: by id of the owner of a buffer: the owner, its size, and the hash of all its bytes in memory order
Hashed: TypeAlias = dict[int, tuple[Any, int, bytes]]


class Part:
    """The form of a heavy part, and the mutable objects that were met first inside it: ``kept[start:stop]``."""

    __slots__ = ("_ids", "form", "kept", "start", "stop", "tied", "value")

    def __init__(self, value: Any, form: bytes, kept: list[Any], start: int, tied: bool) -> None:
        self.value, self.form, self.kept, self.start, self.stop = value, form, kept, start, len(kept)
        self.tied = tied  #: do numbers stand in its form, which hold only if its objects are numbered as they were?
        self._ids: frozenset[int] | None = None

    @property
    def ids(self) -> frozenset[int]:
        if self._ids is None:
            self._ids = frozenset(map(id, self.kept[self.start : self.stop]))
        return self._ids


class Memory:
    """What is remembered from one digest to the next: heavy parts by id (kept alive), and the forms of classes."""

    __slots__ = ("classes", "complete", "parts")

    def __init__(self) -> None:
        self.complete = False  #: True: what is met from now on may change, and is remembered within one digest only
        self.parts: dict[int, Part] = {}
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


def _hashed(chunks: Iterable[Any]) -> bytes:
    digest = system.hasher(THREADS)
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest(SIZE)


class Exhausted(Exception):
    """More work was to be done again than a `Budget` allows."""


class Budget:
    """How much work may be done again in one call: what functions read is walked anew from each, for it may lead back.

    What is met first is free, however large. It is a count, so the same objects are refused on any machine: of some
    10 µs each, a second in all.
    """

    def __init__(self) -> None:
        self.left = 100_000
        self._met: dict[int, Any] = {}

    def spend(self, value: Any, work: int) -> None:
        """Do this work for a value, if it was met before. Raises Exhausted."""
        if id(value) not in self._met:
            self._met[id(value)] = value
            return
        self.left -= work
        if self.left < 0:
            raise Exhausted(
                "leads to objects and functions that refer to each other in too many ways to be hashed reliably. Pass "
                "the parts that count, give the class of the objects a __jug_hash__ method, or wrap them in NoHash if "
                "they don't affect the result."
            )


class Mutable(Exception):
    """A mutable object was met where only values were expected."""


class Encoder:
    """Writes the canonical form of values to ``out``. Writers call `add` for parts, and `tag`, `text` and `data`."""

    __slots__ = (
        *("_above", "_again", "depth", "_fed", "_index", "_later", "leap", "_loops", "_lowest", "_parts"),
        *(
            "_pure",
            "_remembers",
            "_seen",
            "budget",
            "classes",
            "code",
            "hashed",
            "in_rows",
            "kept",
            "memory",
            "met",
            "out",
        ),
        *("order", "roots", "slots", "slow"),
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
        given = memory or _memory.get()
        self._remembers = given is not None
        self.memory = memory = given or Memory()
        self._parts, self.classes = memory.parts, memory.classes
        if given is not None:
            if memory.complete:
                self._parts, self.classes = dict(memory.parts), dict(memory.classes)
            if len(self._parts) > KEPT:
                self._parts.clear()
        self.code: dict[int, tuple[Any, bytes]] = {}  #: what functions contribute, by id
        self.kept: list[Any] = []  #: the mutable objects met so far, in the order of their first visit: their numbers
        self._seen: set[int] = set()  #: their ids
        self._index: dict[int, int] = {}  #: their numbers, as far as they were needed
        self._later: list[Part] = []  #: parts whose objects follow in ``kept``
        #: forms of immutable parts that only refer to objects met before
        self._again: dict[int, tuple[Any, bytes]] = {}
        self._lowest = FAR  #: the lowest number that was referred to in what is being written
        self._above: dict[int, int] = {}  #: ids of the other values that are being written, and how many are above
        # how many levels fit on one thread's stack: each takes a few calls, and the caller uses part of it already
        self.leap = max(20, sys.getrecursionlimit() // 10)
        self.depth = self._fed = self._loops = 0
        self._pure = False  #: do mutable objects raise?
        self.slow = False  #: are all items written one by one? Then a refusal knows where it is
        self.in_rows = 0
        self.roots: Sequence[tuple[str, Any]] = ()  #: all that is to be written, with labels: it orders objects in sets
        self.order: Any = None  #: that order, once it is needed
        self.budget: Budget | None = None  #: for functions inside values

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
            self.part(part, path)

    def part(self, value: Any, path: str = "") -> None:
        """Write a part of a library's type, often made for the occasion: where it is met besides doesn't count."""
        body = BODIES[type(value)]
        if body is None:
            WRITERS[type(value)](self, value, path)
        else:
            self.nested(value, path, body)

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
                self.out += blake3(view).digest(SIZE) if size <= THREADS else system.hashed([view])
            else:
                self.out += view

    def stream(
        self, size: int, chunks: Iterable[Any], owner: Any, place: tuple[int, int] | None, form: object = None
    ) -> None:
        """Write, like `data`, bytes that come in pieces. ``owner``: the object whose memory they are.

        ``place``: where they are in memory, if it is worth it to look there next time whether they changed; ``form``:
        in what order they come, unless that is the memory's.
        """
        if size <= LIMIT:
            return self.data(b"".join(bytes(chunk) for chunk in chunks))
        known = None if self.hashed is None or owner is None else self.hashed.get(id(owner))
        if known is not None and known[0] is owner and known[1] == size:
            hashed = known[2]
        else:
            make = functools.partial(_hashed, chunks)
            hashed = make() if place is None else system.MEMORY.hash(*place, make, form)
        self._fed += size
        self.out += b"B" + count(size) + hashed
        return None

    def refuse(self, value: Any, path: str = "", reason: str = "", verdict: str = "") -> NoReturn:
        """Raise that ``value`` can't be hashed reliably; a ``verdict`` follows "is a socket, which"."""
        raise Refused(described(value), path, reason, "", verdict)

    def refuse_because(self, refusal: Unhashable, path: str = "") -> NoReturn:
        """Raise that this can't be hashed because of a part of it, which was refused elsewhere."""
        raise Refused("", path, "", str(refusal)) from refusal.__cause__

    # -- values with parts

    def shared(self, value: Any, path: str, body: Writer) -> None:
        """Write a mutable value through ``body``; where it is met again, a reference to where it was met first."""
        if self._pure:
            raise Mutable
        if self._later:
            self._settle()
        me = id(value)
        if me in self._seen:
            self._refer(me)
            return
        if self._parts and (part := self._parts.get(me)) is not None and self._reused(part, value):
            return
        self._seen.add(me)
        kept = self.kept
        kept.append(value)
        self._write(value, path, body, me, len(kept) - 1)

    def nested(self, value: Any, path: str, body: Writer) -> None:
        """Write an immutable value with parts, or one made for the occasion, through ``body``.

        That one is met twice doesn't count. It may contain itself, occur often, be long, or lie deep.
        """
        me = id(value)
        if self._parts and (part := self._parts.get(me)) is not None and self._reused(part, value):
            return
        if self._again and (again := self._again.get(me)) is not None and again[0] is value:
            self.out += again[1]
            return
        above = self._above
        level = above.get(me)
        if level is not None:
            self._loops += 1
            self.out += b"^" + short(len(above) - level)
            return
        above[me] = len(above)
        if self._later:
            self._settle()
        self._write(value, path, body, me, len(self.kept))
        del above[me]

    def _write(self, value: Any, path: str, body: Writer, me: int, number: int) -> None:
        """Write a value; objects from ``number`` on are met first inside it."""
        out = self.out
        start, met, fed, loops, lowest = len(out), len(self.met), self._fed, self._loops, self._lowest
        self._lowest = FAR
        depth = self.depth = self.depth + 1
        if depth % self.leap:
            body(self, value, path)
        else:
            elsewhere(body, self, value, path)
        self.depth = depth - 1
        inner = self._lowest
        if lowest < inner:
            self._lowest = lowest
        size = len(out) - start
        self._fed += size
        if size > LIMIT:
            self.seal(start)
        # a part with a reference to a task must be walked again to find it, and a loop looks otherwise from elsewhere
        if self._fed - fed > HEAVY and self._loops == loops and len(self.met) == met:
            if self._later:
                self._settle()
            if inner < number:
                if len(self.kept) == number:
                    self._again[me] = (value, bytes(out[start:]))
            elif self._remembers or len(self.kept) == number:
                self._parts[me] = Part(value, bytes(out[start:]), self.kept, number, inner != FAR)

    def fresh(self, values: list[Any] | tuple[Any, ...]) -> bool:
        """Number mutable values if none of them was met before, nor is twice among them; return whether."""
        if self._pure:
            raise Mutable
        if self._later:
            self._settle()
        seen, ids = self._seen, list(map(id, values))
        if not seen.isdisjoint(ids):
            return False
        before = len(seen)
        seen.update(ids)
        if len(seen) != before + len(ids):
            seen.difference_update(ids)
            return False
        self.kept += values
        return True

    def _refer(self, me: int) -> None:
        """Write that this is the object met as number so and so."""
        index, kept = self._index, self.kept
        for number in range(len(index), len(kept)):
            index[id(kept[number])] = number
        number = index[me]
        self.out += b"@" + short(number)
        if number < self._lowest:
            self._lowest = number

    def _reused(self, part: Part, value: Any) -> bool:
        """Write a part as it was written before, if that holds here; return whether."""
        if part.value is not value:
            return False
        if part.start != part.stop:
            if self._pure:
                raise Mutable
            if self._later:
                self._settle()
            if (part.tied and part.start != len(self.kept)) or not self._seen.isdisjoint(part.ids):
                return False
            self._later.append(part)
        self.out += part.form
        return True

    def objects(self) -> list[Any]:
        """Return the mutable objects met so far, in the order of their first visit."""
        self._settle()
        return self.kept

    def _settle(self) -> None:
        """Number the objects of parts that were reused."""
        for part in self._later:
            self._seen |= part.ids
            self.kept += part.kept[part.start : part.stop]
        self._later.clear()

    def apart(self, value: Any) -> tuple[bytes, list[Key]] | None:
        """Return the form of a value and the references in it, unwritten; None if there is a mutable object in it."""
        before = len(self.out), len(self.met), self.depth, self._fed, self._pure, len(self._above)
        start, met, depth, fed, pure, above = before
        self._pure = True
        try:
            WRITERS[type(value)](self, value, "")
            return bytes(self.out[start:]), self.met[met:]
        except Mutable:
            self.depth, self._fed = depth, fed
            while len(self._above) > above:
                self._above.popitem()
            return None
        finally:
            self._pure = pure
            del self.out[start:], self.met[met:]

    def seal(self, start: int, tail: bytes = b"") -> None:
        """Replace all from ``start`` on, and ``tail``, which would have followed, by their hash."""
        out = self.out
        size = len(out) - start + len(tail)
        with memoryview(out) as view, view[start:] as part:
            hasher = system.hasher(size).update(part) if size > THREADS else blake3(part)
        hasher.update(tail)
        self._fed += len(tail)
        del out[start:]
        out += b"#"
        out += hasher.digest(SIZE)

    def attributes(self, held: dict[str, Any], path: str = "") -> None:
        """Write named values in the order of the names."""
        names = sorted(held)
        columns(self, names, [held[name] for name in names], _attribute, path)

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


class Counting(Encoder):
    """An encoder of what a function inside a value reads: it keeps to a budget."""

    __slots__ = ()

    def _write(self, value: Any, path: str, body: Writer, me: int, number: int) -> None:
        kind = type(value)
        size = len(value) >> 7 if kind in _SIZED else value.nbytes >> 15 if kind.__module__ == "numpy" else 0
        assert self.budget is not None
        self.budget.spend(value, 1 + size)
        super()._write(value, path, body, me, number)

    def fresh(self, values: list[Any] | tuple[Any, ...]) -> bool:
        assert self.budget is not None
        self.budget.spend(values[0], len(values) >> 3)
        return super().fresh(values)


_SIZED = frozenset({list, tuple, dict, set, frozenset})
