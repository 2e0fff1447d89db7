"""Sets, and dicts whose order doesn't count: their members are put in an order that any process would put them in.

Members without mutable objects are put in the order of their forms. Where others hold objects, which are told apart by
what they hold and by what leads to them, the order comes from *colour refinement* of the graph of all objects of the
call: objects get a class by their own content, and classes are split by the classes of the neighbours until nothing
changes. Objects that are still in one class are mostly interchangeable; then one of them is made the first, and
refinement goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from blake3 import blake3

from jug_notebook.keys.encoder import Encoder, Mutable
from jug_notebook.keys.register import SIZE, WRITERS, Refused, Writer, step

Row = tuple[Any, ...]  #: an item of a set, or a key and its item

THOROUGH = 200_000  #: steps that may be spent on finding out which of several objects alike had better be the first


def members(encoder: Encoder, rows: list[Row], path: str) -> None:
    """Write members that have no order."""
    if isinstance(encoder, _Outline):
        encoder.group(rows)
        return
    pure: dict[bytes, list[tuple[Any, Row]]] = {}
    rest: list[Row] = []
    for row in rows:
        try:
            form = encoder.apart(row[0])
        except Refused as refused:
            refused.at(path + _step(row))
            raise
        if form is None:
            rest.append(row)
        else:
            pure.setdefault(form[0], []).append((form[1], row))
    for form_of_it in sorted(pure):
        alike = pure[form_of_it]
        if len(alike) > 1 and len(alike[0][1]) > 1:  # keys that are two NaNs, say: what they lead to orders them
            rest += [row for _, row in alike]
            continue
        for met, row in alike:
            encoder.out += form_of_it
            encoder.met += met
            _write(encoder, row[1:], path + _step(row))
    for row in _arranged(encoder, rest) if len(rest) > 1 else rest:
        _write(encoder, row, path + _step(row))


def _step(row: Row) -> str:
    return step(row[0]) if len(row) > 1 else "{…}"


def _write(encoder: Encoder, items: Row, path: str) -> None:
    try:
        for item in items:
            WRITERS[type(item)](encoder, item, "")
    except Refused as refused:
        refused.at(path)
        raise


def _arranged(encoder: Encoder, rows: list[Row]) -> list[Row]:
    if encoder.slow:
        return rows  # this encoder only looks for what was refused
    try:
        if encoder.order is None:
            encoder.order = _Order(encoder, [value for _, value in encoder.roots] or rows)
        order: _Order = encoder.order
        return order.arranged(rows)
    except Refused:
        return rows  # it will be refused once more, with its path


# -- what an object holds, without what the objects in it hold ---------------------------------------------------------


class Shape(NamedTuple):
    """What a value holds: its form with holes for objects, these objects in order, and members that have no order."""

    form: bytes
    holes: list[Any]
    groups: list[list[Shape]]


class _Outline(Encoder):
    """Writes one object, with holes for the mutable objects in it."""

    __slots__ = ("groups", "holes", "inside")

    def __init__(self, like: Encoder) -> None:
        super().__init__(bytearray(), slots=like.slots, hashed=like.hashed)
        self._parts, self.classes, self.code = {}, like.classes, like.code
        self.holes: list[Any] = []
        self.groups: list[list[Shape]] = []
        self.inside = False

    def shape(self, values: Iterable[Any], whole: bool) -> Shape:
        """Return the shape of values together; with ``whole``, of one mutable object, which is no hole itself."""
        out, holes, groups = self.out, self.holes, self.groups
        self.out, self.holes, self.groups, self.inside = bytearray(), [], [], not whole
        for value in values:
            WRITERS[type(value)](self, value, "")
        found = Shape(blake3(self.out).digest(SIZE), self.holes, self.groups)
        self.out, self.holes, self.groups, self.inside = out, holes, groups, True
        return found

    def shared(self, value: Any, path: str, body: Writer) -> None:
        if self._pure:
            raise Mutable
        if self.inside:
            self.out += b"@"
            self.holes.append(value)
            self._loops += 1  # nothing that holds it is remembered
        else:
            self.inside = True
            self._write(value, path, body, id(value), 0)

    def fresh(self, values: Sequence[Any]) -> bool:
        if self._pure:
            raise Mutable
        return False

    def group(self, rows: list[Row]) -> None:
        """Note members that have no order."""
        self.out += b"*"
        self._loops += 1
        self.groups.append([self.shape(row, whole=False) for row in rows])


# -- the order of objects ----------------------------------------------------------------------------------------------


class _Order:
    """The classes of all objects that ``roots`` lead to: equal in any process for equal structures."""

    def __init__(self, encoder: Encoder, roots: Sequence[Any]) -> None:
        self._outline = _Outline(encoder)
        self._number: dict[int, int] = {}
        self._kept: list[Any] = []
        self._shapes = [self._outline.shape(roots, whole=False)]
        self._above: list[list[tuple[tuple[int, ...], int]]] = [[]]  #: by object: where it is in which others
        self._below: list[list[int]] = []
        todo = 0
        while todo < len(self._shapes):
            self._below.append([])
            for label, value in _holes(self._shapes[todo]):
                at = self._number.get(id(value))
                if at is None:
                    at = self._number[id(value)] = len(self._shapes)
                    self._kept.append(value)
                    self._shapes.append(self._outline.shape((value,), whole=True))
                    self._above.append([])
                self._above[at].append((label, todo))
                self._below[todo].append(at)
            todo += 1
        forms: dict[bytes, list[int]] = {}
        for at, shape in enumerate(self._shapes):
            forms.setdefault(shape.form, []).append(at)
        self._members = {number: forms[form] for number, form in enumerate(sorted(forms))}
        self._class = [0] * len(self._shapes)
        for number, inside in self._members.items():
            for at in inside:
                self._class[at] = number
        self._refine(range(len(self._shapes)))

    def arranged(self, rows: list[Row]) -> list[Row]:
        """Return members in order."""
        pairs = [(self._outline.shape(row, whole=False), row) for row in rows]
        while True:
            keyed = sorted(((self._look(shape), place) for place, (shape, _) in enumerate(pairs)))
            pairs = [pairs[place] for _, place in keyed]
            tied = next((n for n in range(1, len(keyed)) if keyed[n][0] == keyed[n - 1][0]), 0)
            loose = 0
            while tied and not loose:
                loose = self._loose(pairs[tied][0])
                if not loose:  # all that these two lead to is told apart: they are the same
                    following = range(tied + 1, len(keyed))
                    tied = next((n for n in following if keyed[n][0] == keyed[n - 1][0]), 0)
            if not tied:
                return [row for _, row in pairs]
            self._tell_apart(self._class[loose])

    def _loose(self, shape: Shape) -> int:
        """Return an object in a shape that isn't told apart from others yet; 0 if there is none."""
        for _, value in _holes(shape):
            at = self._number.get(id(value), 0)
            if len(self._members[self._class[at]]) > 1:
                return at
        return 0

    def _tell_apart(self, number: int) -> None:
        """Make one of the objects of a class the first."""
        alike = self._members[number]
        before = self._state()
        if not self._first(alike[0]):  # nothing else depends on which it is: so for the others
            for at in self._members[number][1:]:
                self._move(at)
            return
        if len(alike) * len(self._shapes) > THOROUGH:
            return
        best = self._traced(before, alike[0])
        for at in alike[1:]:
            best = min(best, self._traced(before, at), key=lambda found: found[0])
        self._class, self._members = best[1]

    def _traced(self, before: Any, at: int) -> tuple[bytes, Any]:
        self._class, self._members = list(before[0]), {number: list(inside) for number, inside in before[1].items()}
        self._first(at)
        looks = sorted((self._class[one], self._seen_from(one)) for one in range(len(self._shapes)))
        return blake3(repr(looks).encode()).digest(SIZE), (self._class, self._members)

    def _state(self) -> tuple[list[int], dict[int, list[int]]]:
        return list(self._class), {number: list(inside) for number, inside in self._members.items()}

    def _first(self, at: int) -> bool:
        """Put an object in a class of its own, and return whether other classes split for that."""
        before = len(self._members) + 1
        self._move(at)
        self._refine({*self._below[at], *(above for _, above in self._above[at])})
        return len(self._members) > before

    def _move(self, at: int) -> None:
        self._members[self._class[at]] = [one for one in self._members[self._class[at]] if one != at]
        self._class[at] = len(self._members)
        self._members[self._class[at]] = [at]

    def _refine(self, changed: Iterable[int]) -> None:
        """Split classes whose objects see different neighbours, until there is none."""
        todo = set(changed)
        while todo:
            touched: dict[int, list[int]] = {}
            for at in todo:
                if len(self._members[self._class[at]]) > 1:
                    touched.setdefault(self._class[at], []).append(at)
            split: list[tuple[int, dict[Any, list[int]]]] = []
            for number in sorted(touched):
                looks: dict[Any, list[int]] = {}
                for at in touched[number]:
                    looks.setdefault(self._seen_from(at), []).append(at)
                if len(touched[number]) < len(self._members[number]):
                    still = set(self._members[number]).difference(touched[number])
                    looks.setdefault(self._seen_from(next(iter(still))), []).extend(still)
                if len(looks) > 1:
                    split.append((number, looks))
            todo = set()
            for number, looks in split:
                kept = min(looks, key=lambda look: (-len(looks[look]), look))
                self._members[number] = looks.pop(kept)
                for look in sorted(looks):
                    fresh = len(self._members)
                    self._members[fresh] = looks[look]
                    for at in looks[look]:
                        self._class[at] = fresh
                        todo.update(self._below[at])
                        todo.update(above for _, above in self._above[at])

    def _seen_from(self, at: int) -> Any:
        return self._look(self._shapes[at]), _in_order((label, self._class[one]) for label, one in self._above[at])

    def _look(self, shape: Shape) -> Any:
        """Return what a shape looks like, by the classes of the objects in it: hashable, and can be sorted."""
        number, classes = self._number, self._class
        holes = tuple([classes[number.get(id(value), 0)] for value in shape.holes])  # 0: made only just now
        return shape.form, holes, tuple(_in_order(map(self._look, group)) for group in shape.groups)


def _in_order(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(items))


def _holes(shape: Shape, label: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Yield the objects in a shape, each with where it is. Members of a group are in one place."""
    for number, value in enumerate(shape.holes):
        yield (*label, number), value
    for number, group in enumerate(shape.groups):
        for one in group:
            yield from _holes(one, (*label, ~number))
