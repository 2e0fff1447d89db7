"""How a function's helpers are found: a walk through all that it reads, and the digest of what is met.

A *walk* starts at a function and follows what it reads: helpers, globals, closures, defaults, decorators, classes. Each
thing met on the way is a *unit*; its own digest covers its content (see `code`), its edges what it uses. The digest of
the whole covers all units in the order of their first visit, so recursion needs no special rule. Nothing is evaluated.

A function or class of the notebook, or of a module below the project's folder, becomes a unit, and so does what is made
of others (methods, partials); a thing of any other module counts by its name; any other value by its digest.
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any

from blake3 import blake3

from jug_notebook.errors import BadTask, Unhashable, Unseeded
from jug_notebook.keys import advice, modules, syntax
from jug_notebook.keys.callables import (
    ABSENT,
    DERIVED,
    LITERATE,
    SCALARS,
    annotations_of,
    by_name,
    composite,
    identity,
    is_ours,
    kind_of_alias,
    name_of,
    plain,
    travels,
)
from jug_notebook.keys.digest import SCHEME, SIZE, Sharing, digest, remembering
from jug_notebook.keys.encoder import Budget, Exhausted
from jug_notebook.render.format import brief

TEXT_LENGTH = 300  #: characters of a value that are kept for comparing it with another
_PYTHONS = frozenset({"builtins", "functools", "types", "numpy"})  #: modules of what is taken apart wherever it is from
COUNT = ""  #: under this name, the number of attributes is pinned


def hashed(*items: bytes | str) -> bytes:
    """Return the digest of a sequence of items, each with its length."""
    whole = blake3()
    for item in items:
        data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
        whole.update(b"%d:" % len(data))
        whole.update(data)
    return whole.digest(SIZE)


# -- the walk ----------------------------------------------------------------------------------------------------------


class Unit:
    """A thing met on a walk: its own content, and the digests of what it uses."""

    __slots__ = ("edges", "label", "own", "subject")

    def __init__(self, label: str, subject: Any) -> None:
        self.label = label
        self.subject = subject
        self.own: list[bytes | str] = []
        self.edges: list[tuple[str, bytes]] = []


#: the walks under way, outermost first: a value met on one may hold functions, which start their own. (A thread that
#: writes a deep value gets the context, too.)
under_way: ContextVar[tuple[Walk, ...]] = ContextVar("under_way", default=())


class Walk:
    """Follows what a function reads.

    ``describe`` adds to a unit what that kind of thing contributes. Modules below the folder ``project`` are followed,
    ``ignored`` names don't count. ``blind``: only learn which modules must travel.
    """

    def __init__(
        self,
        describe: Callable[[Walk, Unit], None],
        project: Path | None,
        ignored: frozenset[str] = frozenset(),
        *,
        blind: bool = False,
    ) -> None:
        self._describe = describe
        self.project = project
        self.ignored = ignored
        self.blind = blind
        self.index: dict[object, int] = {}
        self.units: list[Unit] = []
        self.parts: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.roots: dict[str, None] = {}
        self.pins: list[tuple[Any, str, Any]] | None = []  #: (holder, name, thing found there); None: can't be pinned
        self.chances: list[tuple[CodeType, str, advice.Chance]] = []  #: what functions do with random numbers
        self.environment: frozenset[str] = frozenset()  #: variables that are handed along
        self.sentinels: dict[int, str] = {}  #: by id of a bare object(): the label under which it was first met
        self._done = 0  #: how many units are described
        self._whole: set[str] = set()
        self._loose: set[int] = set()  #: units that travel as the objects they are, not as a module's text
        self.by_value = True  #: does the unit that is being described?
        self.inspects: frozenset[str] = (
            frozenset()
        )  #: what the functions met may inspect in others, besides calling them
        self._inside: list[Unit] = []  #: units of the walks through values that were met
        self._sharing = Sharing()  #: of the values that were met
        #: what functions inside values contribute wherever they are met, by id; of the outermost walk
        self.forms: dict[int, tuple[Any, bytes, Walk]] = {}
        self.backs = 0  #: how often such a function led back to one being walked
        self.budget: Budget | None = None  #: for values, if this walk started at one
        self.inner = Budget()  #: for walks that start at functions inside values

    def run(self, roots: Iterable[tuple[str, Any]]) -> bytes:
        """Walk from each of ``roots``, (label, value); return the digest of all that was found."""
        token = under_way.set((*under_way.get(), self))
        try:
            with remembering():  # apart from other memories: inside a walk, a class may count as "that one"
                found = self._run(roots)
        finally:
            under_way.reset(token)
        if not self.blind:
            for code, text in advice.seed_warnings(self.chances):
                advice.warn_once(text, Unseeded, text, code)
        return found

    def _run(self, roots: Iterable[tuple[str, Any]]) -> bytes:
        whole = [hashed(label, self.edge(value, label, label)) for label, value in roots]
        self._follow(whole)
        while self.inspects:  # what is inspected may lead to more
            before = len(self.units)
            seen = self._inspected()
            if len(self.units) == before:
                self.part(" and ".join(sorted(self.inspects)), seen.hex())
                whole.append(seen)
                break
            self._follow(whole)
        return hashed(SCHEME, "code", *whole, *self._sharing.links)

    def _follow(self, whole: list[bytes]) -> None:
        """Describe the units that aren't described yet, and those that this leads to."""
        while self._done < len(self.units):
            unit = self.units[self._done]
            self.by_value = self._done in self._loose
            self._done += 1
            self._describe(self, unit)
            own = hashed(*unit.own)
            label = self.part(unit.label, own.hex())
            if type(unit.subject) is FunctionType and not self.blind:
                self.texts[label] = syntax.written(
                    unit.subject.__code__, functools.partial(is_ours, unit.subject.__globals__)
                )
            whole.append(hashed(own, *(item for edge in unit.edges for item in edge)))

    def _inspected(self) -> bytes:
        """Return the digest of all docstrings, annotations or orders of attributes: some function may read any."""
        found: list[bytes | str] = []
        for unit in (*self.units, *self._inside):
            thing = unit.subject
            if "docstrings" in self.inspects and isinstance(thing, FunctionType | type):
                self.pin(thing, "__doc__", thing.__doc__)
                found.append(repr(thing.__doc__))
            if "annotations" in self.inspects and isinstance(thing, FunctionType):
                self.pins = None
                notes = annotations_of(thing).items()
                found += (item for name, note in notes for item in (name, self.note(note, name, thing.__globals__)))
            if "order" in self.inspects and isinstance(thing, type):
                self.pins = None
                # what Python derives may come later: with the first pickling of an instance, say
                found += (name for name in thing.__dict__ if name not in DERIVED)
        return hashed(*found)

    def met(self, inner: Walk) -> None:
        """Note the walk through a value that was met and holds functions or classes."""
        self.roots.update(inner.roots)
        self._inside += inner.units + inner._inside

    # edges: what one thing that uses another contributes for that

    def edge(self, value: Any, label: str, path: str) -> bytes:
        """Return what a thing that is used contributes: as a unit of this walk, by name, or by value."""
        value = plain(value)
        kind = type(value)
        if kind in SCALARS:
            found: bytes = digest(value, path)
            short = value.bit_length() < 130 if kind is int else kind not in (str, bytes) or len(value) <= 40
            text = repr(value) if short else ""
            part = self.part(label, text if 0 < len(text) <= 40 else found.hex())
            if not short or len(text) > 40:
                self.texts[part] = brief(value, TEXT_LENGTH)
            return b"v" + found
        if kind is FunctionType:
            return self._function(value, label)
        if kind is object:  # a sentinel: by the first name that holds it, since it may have several
            return hashed("sentinel", self.part(self.sentinels.setdefault(id(value), label), "object()"))
        if isinstance(value, type):
            return self._class(value, label)
        if issubclass(kind, ModuleType):
            return self._module(value, label)
        named = by_name(value)
        if named is not None:
            self.part(label, named)
            return hashed("name", named)
        base = composite(kind)
        if base is not None:
            if base.__module__ not in _PYTHONS and not travels(value) and not self.follows(value.__module__):
                return hashed("name", name_of(value))
            return self.unit(value, label)
        if kind in LITERATE:
            return self.note(value, path)
        self.pins = None
        if self.blind:
            return b""
        try:
            found = digest(value, path, sharing=self._sharing, budget=self.budget)
        except Exhausted as exhausted:
            if self.budget is not None:  # the call that it is for knows more
                raise
            raise Unhashable(f"{path} {exhausted}") from None
        self.texts[self.part(label, found.hex())] = brief(value, TEXT_LENGTH, 4)
        return b"v" + found

    def note(self, note: Any, path: str, space: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        """Return what an annotation contributes: its text and its classes. Names in it are looked up in ``space``."""
        if isinstance(note, str):
            return hashed("text", note, *self._names_in(note, path, space))
        if isinstance(note, type) and kind_of_alias(note) is None:
            return self.edge(note, f"class {note.__qualname__}", path)
        if type(note) is FunctionType:
            return self.edge(note, f"helper {note.__name__}", path)
        inside = kind_of_alias(note)
        if inside is not None:
            name, parts = inside
            return hashed("alias", name, *(self.note(part, path, space) for part in parts))
        if isinstance(note, list | tuple):  # the arguments of a Callable
            return hashed("list", *(self.note(part, path, space) for part in note))
        if isinstance(note, typing.ForwardRef):
            return hashed("typing", note.__forward_arg__, *self._names_in(note.__forward_arg__, path, space))
        if type(note).__module__ == "typing":
            return hashed("typing", repr(note))
        try:
            return hashed("value", digest(note, path))
        except Unhashable:
            return hashed("some", name_of(type(note)))

    def _names_in(self, text: str, path: str, space: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield what the classes contribute that are named in a text, which may be evaluated later."""
        try:
            tree = ast.parse(text, mode="eval")
        except SyntaxError:
            return
        for name in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
            value = space.get(name, ABSENT)
            self.pin(space, name, value)
            if isinstance(value, type) or kind_of_alias(value) is not None:
                yield self.note(value, path)

    def unit(self, value: Any, label: str) -> bytes:
        """Return the number of a thing that is a unit of this walk; it is added when it is first met."""
        me = identity(value)
        at = self.index.get(me)
        if at is None:
            at = self.index[me] = len(self.units)
            self.units.append(Unit(label, value))
            if self.by_value and (not isinstance(value, FunctionType | type) or travels(value)):
                self._loose.add(at)
        elif not self.by_value and at >= self._done:
            self._loose.discard(at)
        return b"u%d" % at

    def _function(self, function: FunctionType, label: str) -> bytes:
        if travels(function):
            return self.unit(function, label)
        home = function.__module__
        if self.follows(home):
            self.need(home)
            check_text(home)
            return self.unit(function, label)
        return hashed("name", name_of(function))

    def _class(self, cls: type, label: str) -> bytes:
        home = getattr(cls, "__module__", None) or ""
        if home == "builtins":
            return hashed("name", name_of(cls))
        if not travels(cls):
            if not self.follows(home):
                return hashed("name", name_of(cls))
            self.need(home)
            check_text(home)
        return self.unit(cls, f"class {cls.__qualname__}")

    def _module(self, module: ModuleType, label: str) -> bytes:
        name = module.__name__
        if self.follows(name):
            return self.whole_module(name)
        return hashed("module", name)

    def need(self, name: str) -> None:
        """Note that a module must travel along."""
        self.roots[modules.root_of(name)] = None

    def whole_module(self, name: str) -> bytes:
        """Return what a project module contributes that isn't used by attributes: its source and its imports."""
        self.need(name)
        path = modules.source_path(name)
        if path is None or not path.endswith(".py"):
            return hashed("module", name)
        self.pins = None
        text = syntax.text_of(path) or Path(path).read_text(encoding="utf-8")
        if name not in self._whole:
            self._whole.add(name)
            package = name if os.path.basename(path) == "__init__.py" else name.rpartition(".")[0]
            found = modules.text_digest(text)
            self.part(f"module {name}", found.hex())
            inside = [
                self.whole_module(other)
                for other in sorted(modules.imported(text, package))
                if self.follows(other) and modules.source_path(other) is not None
            ]
            return hashed("module", name, found, *inside)
        return hashed("module", name)

    def part(self, label: str, text: str) -> str:
        """Keep a part; return its label, with a number if another thing has that label."""
        name, number = label, 2
        while self.parts.setdefault(name, text) != text:
            name, number = f"{label} ({number})", number + 1
        return name

    def pin(self, holder: Any, name: str, thing: Any) -> None:
        """Note where a thing was found: if each is still there, the digest is still right."""
        if self.pins is not None:
            self.pins.append((holder, name, thing))

    # units: what each kind of thing says itself

    def edge_or_advice(self, value: Any, label: str, path: str, name: str) -> bytes:
        """As `edge`, but a refusal says how to leave ``name`` out of the key."""
        try:
            return self.edge(value, label, path)
        except Unhashable as refusal:
            ways = f"@jn.task(ignore_globals=[{name!r}]), %%jugtask --ignore-global {name}"
            hint = f" If it doesn't affect the result: {ways}"
            if "ignore_globals" in str(refusal) or "inside the task" in str(refusal):
                raise  # what can't be sent can't be ignored either
            raise Unhashable(f"{refusal}{hint}") from refusal.__cause__

    def overlook(self, value: Any) -> None:
        """Follow what doesn't count: it still has to travel."""
        aside = Walk(self._describe, self.project, self.ignored, blind=True)
        aside.run([("ignored", value)])
        self.roots.update(aside.roots)
        self.pins = None

    def follows(self, module: str) -> bool:
        """Return True for modules of the project: what they define counts by content, not by name."""
        return modules.of_project(module, self.project)


def edited_message(module: str, file: str) -> str:
    return (
        f"{file} was edited after {module} was imported. Reload it "
        f"(importlib.reload({module}), or %autoreload), so that workers run the same code as this process."
    )


def check_text(module: str) -> None:
    """Raise BadTask if the source of a module, which workers get, is no longer what was imported."""
    if modules.edited(module):
        raise BadTask(edited_message(module, modules.source_path(module) or module))


def check_value(module: str, name: str, value: Any, cls: str = "") -> None:
    """Raise BadTask if a thing in a module, or a class of it, isn't what the module's source makes it."""
    value = plain(value)
    full_name = f"{module}.{cls}.{name}" if cls else f"{module}.{name}"
    home = value.__module__ if isinstance(value, FunctionType | type) else None
    if home == "__main__":
        raise BadTask(
            f"{full_name} was set to {value.__qualname__} of the notebook, but workers get what the source of {module} "
            f"makes. Reload it (importlib.reload({module})), and pass {value.__qualname__} as an argument."
        )
    origin = None if cls else modules.source(module, name)
    if origin is not None and _left_behind(value, *origin):
        source, there = origin
        raise BadTask(
            f"{full_name} is {source}.{there} from before {source} was reloaded, but workers get the new one. "
            f"Reload {module} as well (importlib.reload({module}))."
        )
    if type(value) not in SCALARS and type(value) not in (dict, list, set, tuple):
        return
    for text in modules.written(module, name, cls):
        if _alike(value, text):
            continue
        raise BadTask(
            f"{full_name} is {brief(value, 60)} here, but {brief(text, 60)} in the source of {module}, which is what "
            f"workers get. Reload it (importlib.reload({module}), or %autoreload), or pass the value as an argument."
        )


def _alike(value: Any, text: Any) -> bool:
    if type(value) in SCALARS or type(text) in SCALARS:
        return type(text) is type(value) and repr(text) == repr(value)
    try:
        return digest(value) == digest(text)
    except Unhashable:
        return True  # another message will be clearer


def _left_behind(value: Any, source: str, name: str) -> bool:
    """Return True if a value that was imported from a module is no longer what the module's source makes."""
    texts = modules.written(source, name)
    if texts:
        return not _alike(value, texts[0])
    now = plain(sys.modules[source].__dict__[name])
    if now is value or not (isinstance(now, FunctionType | type) or modules.reloaded(source)):
        return False
    return getattr(now, "__module__", None) not in modules.scripts and not _alike_apart(value, now)


def _alike_apart(value: Any, other: Any) -> bool:
    """Return True if two things have the same digest, outside the walks under way."""
    pair = identity(value), identity(other)
    asked = _asked.get()
    if pair in asked:
        return True
    tokens = _asked.set(asked | {pair}), under_way.set(())
    try:
        return _alike(value, other)
    finally:
        under_way.reset(tokens[1])
        _asked.reset(tokens[0])


_asked: ContextVar[frozenset[tuple[object, object]]] = ContextVar("asked", default=frozenset())
