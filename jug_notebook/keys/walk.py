"""The walk through a function's code: all that it reads, unit by unit.

A *walk* starts at a function and follows what it reads: helpers, globals, closures, defaults, decorators, classes. Each
thing met on the way is a *unit*; its own digest covers what it says itself, and its edges what it uses. The digest of
the whole covers all units in the order of their first visit, so recursion needs no special rule. Nothing is evaluated.
"""

from __future__ import annotations

import ast
import builtins
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any

from blake3 import blake3

from jug_notebook.errors import BadTask, Opaque, Unhashable, Unseeded
from jug_notebook.keys import advice as hints
from jug_notebook.keys import digest as canon
from jug_notebook.keys import modules, syntax
from jug_notebook.keys.callables import (
    ABSENT,
    COMPOSITE,
    HELD_WHOLE,
    LITERATE,
    SCALARS,
    added,
    annotation,
    attributes,
    by_name,
    composite,
    defaults,
    dispatches,
    generated,
    identity,
    is_ours,
    kind_of_alias,
    name_of,
    plain,
    registered_with,
    travels,
)
from jug_notebook.render.values import brief

# -- what counts as what -----------------------------------------------------------------------------------------------

SHOWN = 300  #: characters of a value that are kept to compare it with another
COUNT = ""  #: pinned under this name: how many attributes there are
_DYNAMIC = frozenset({"eval", "exec", "globals", "__import__"})

#: attributes of a class that say where it lies or that Python derives from the others
_DERIVED = frozenset(
    {
        *(
            "__module__",
            "__qualname__",
            "__doc__",
            "__dict__",
            "__weakref__",
            "__firstlineno__",
            "__parameters__",
            "__slotnames__",
        ),
        *("__static_attributes__", "__annotations__", "__dataclass_fields__", "__dataclass_params__"),
        *("_abc_impl", "__abstractmethods__", "__annotate_func__", "__annotations_cache__"),
        *("_member_names_", "_member_map_", "_value2member_map_", "_member_type_", "_generate_next_value_"),
        *("_unhashable_values_", "_hashable_values_", "_value_repr_", "_use_args_", "_use_default_factory_"),
        *("__new_member__", "_new_member_", "_inverted_", "_flag_mask_", "_singles_mask_", "_all_bits_"),
        *("_unhashable_values_map_", "__protocol_attrs__", "__callable_proto_members_only__"),
        *("__non_callable_proto_members__", "__mutable_keys__", "__readonly_keys__", "__closed__", "__extra_items__"),
        *("__init_subclass__", "__subclasshook__"),
    }
)
_PARAMETERS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")  #: of a dataclass
_ALWAYS = frozenset({"__init_subclass__", "__subclasshook__"})


def hashed(*items: bytes | str) -> bytes:
    whole = blake3()
    for item in items:
        data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
        whole.update(b"%d:" % len(data))
        whole.update(data)
    return whole.digest(canon.SIZE)


def _warn_once(about: tuple[object, ...], text: str) -> None:
    hints.say_once(about, Opaque, text)


# -- the walk ----------------------------------------------------------------------------------------------------------


class _Unit:
    """A thing met on a walk: what it says itself, and what it uses."""

    __slots__ = ("edges", "label", "own", "subject")

    def __init__(self, label: str, subject: Any) -> None:
        self.label = label
        self.subject = subject
        self.own: list[bytes | str] = []
        self.edges: list[tuple[str, bytes]] = []


#: the walks under way: a value met on one may hold functions, which start their own. Deep values go on in a thread of
#: their own, which takes the context along.
under_way: ContextVar[tuple[Walk, ...]] = ContextVar("under_way", default=())


class Walk:
    """Follows what a function reads. ``blind``: only to learn which modules must travel."""

    def __init__(self, project: Path | None, ignored: frozenset[str], *, blind: bool = False) -> None:
        self.project = project
        self.ignored = ignored
        self.blind = blind
        self.index: dict[object, int] = {}
        self.units: list[_Unit] = []
        self.parts: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.roots: dict[str, None] = {}
        self.pins: list[tuple[Any, str, Any]] | None = []  #: (holder, name, thing found there); None: can't be pinned
        self.chances: list[tuple[str, hints.Chance]] = []  #: what functions do with random numbers
        self._done = 0  #: so many units are described
        self._whole: set[str] = set()
        self._loose: set[int] = set()  #: units that travel as the objects they are, not as a module's text
        self.by_value = True  #: does what is looked at now?
        self._looks: frozenset[str] = frozenset()  #: what the functions met look at in others, beside what they do
        self._inside: list[_Unit] = []  #: units of the walks through values that were met

    def run(self, roots: Iterable[tuple[str, Any]]) -> bytes:
        """Walk from each of ``roots``, labelled values; the digest of all that was found."""
        token = under_way.set((*under_way.get(), self))
        try:
            with canon.remembering():  # apart from what others remember: inside a walk, a class may be "that one"
                found = self._run(roots)
        finally:
            under_way.reset(token)
        if not self.blind:
            for text in hints.told_of_chance(iter(self.chances)):
                hints.say_once(text, Unseeded, text)
        return found

    def _run(self, roots: Iterable[tuple[str, Any]]) -> bytes:
        whole = [hashed(label, self.edge(value, label, label)) for label, value in roots]
        self._follow(whole)
        while self._looks:  # what is looked at may lead to more
            before = len(self.units)
            seen = self._looked_at()
            if len(self.units) == before:
                self._part(" and ".join(sorted(self._looks)), seen.hex())
                whole.append(seen)
                break
            self._follow(whole)
        return hashed(canon.SCHEME, "code", *whole)

    def _follow(self, whole: list[bytes]) -> None:
        """Describe the units that were not described yet, and those that are met by that."""
        while self._done < len(self.units):
            unit = self.units[self._done]
            self.by_value = self._done in self._loose
            self._done += 1
            self._describe(unit)
            own = hashed(*unit.own)
            label = self._part(unit.label, own.hex())
            if type(unit.subject) is FunctionType and not self.blind:
                self.texts[label] = syntax.written(
                    unit.subject.__code__, functools.partial(is_ours, unit.subject.__globals__)
                )
            whole.append(hashed(own, *(item for edge in unit.edges for item in edge)))

    def _looked_at(self) -> bytes:
        """Some function reads docstrings, annotations or the order of attributes: of which things, who could tell?"""
        found: list[bytes | str] = []
        for unit in (*self.units, *self._inside):
            thing = unit.subject
            if "docstrings" in self._looks and isinstance(thing, FunctionType | type):
                self._pin(thing, "__doc__", thing.__doc__)
                found.append(repr(thing.__doc__))
            if "annotations" in self._looks and isinstance(thing, FunctionType):
                self.pins = None
                notes = thing.__annotations__.items()
                found += (item for name, note in notes for item in (name, self._note(note, name, thing.__globals__)))
            if "order" in self._looks and isinstance(thing, type):
                self.pins = None
                # what Python derives may come later: with the first pickling of an instance, say
                found += (name for name in thing.__dict__ if name not in _DERIVED)
        return hashed(*found)

    def met(self, inner: Walk) -> None:
        """A value was met that holds functions or classes of its own."""
        self.roots.update(inner.roots)
        self._inside += inner.units + inner._inside

    # edges: what one thing says of another that it uses

    def edge(self, value: Any, label: str, path: str) -> bytes:
        """How a thing that is used counts: as a unit of this walk, by name, or by value."""
        value = plain(value)
        kind = type(value)
        if kind in SCALARS:
            found: bytes = canon.digest(value, path)
            short = value.bit_length() < 130 if kind is int else kind not in (str, bytes) or len(value) <= 40
            text = repr(value) if short else ""
            part = self._part(label, text if 0 < len(text) <= 40 else found.hex())
            if not short or len(text) > 40:
                self.texts[part] = brief(value, SHOWN)
            return b"v" + found
        if kind is FunctionType:
            return self._function(value, label)
        if isinstance(value, type):
            return self._class(value, label)
        if issubclass(kind, ModuleType):
            return self._module(value, label)
        named = by_name(value)
        if named is not None:
            self._part(label, named)
            return hashed("name", named)
        if composite(kind) is not None:
            return self._unit(value, label)
        if kind in LITERATE:
            return self._note(value, path)
        self.pins = None
        if self.blind:
            return b""
        found = canon.digest(value, path)
        self.texts[self._part(label, found.hex())] = brief(value, SHOWN, 4)
        return b"v" + found

    def _note(self, note: Any, path: str, space: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        """An annotation, or what is written like one: its text and the classes in it. Names in it are ``space``'s."""
        if isinstance(note, str):
            return hashed("text", note, *self._names_in(note, path, space))
        if isinstance(note, type) and kind_of_alias(note) is None:
            return self.edge(note, f"class {note.__qualname__}", path)
        if type(note) is FunctionType:
            return self.edge(note, f"helper {note.__name__}", path)
        inside = kind_of_alias(note)
        if inside is not None:
            name, parts = inside
            return hashed("alias", name, *(self._note(part, path, space) for part in parts))
        if isinstance(note, list | tuple):  # the arguments of a Callable
            return hashed("list", *(self._note(part, path, space) for part in note))
        if type(note).__module__ == "typing":
            return hashed("typing", repr(note), *self._names_in(getattr(note, "__forward_arg__", ""), path, space))
        try:
            return hashed("value", canon.digest(note, path))
        except Unhashable:
            return hashed("some", name_of(type(note)))

    def _names_in(self, text: str, path: str, space: Mapping[str, Any]) -> Iterator[bytes]:
        """The classes that a text names which somebody may evaluate later."""
        try:
            tree = ast.parse(text, mode="eval")
        except SyntaxError:
            return
        for name in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
            value = space.get(name, ABSENT)
            if isinstance(value, type) or kind_of_alias(value) is not None:
                self._pin(space, name, value)
                yield self._note(value, path)

    def _unit(self, value: Any, label: str) -> bytes:
        me = identity(value)
        at = self.index.get(me)
        if at is None:
            at = self.index[me] = len(self.units)
            self.units.append(_Unit(label, value))
            if self.by_value and (not isinstance(value, FunctionType | type) or travels(value)):
                self._loose.add(at)
        elif not self.by_value and at >= self._done:
            self._loose.discard(at)
        return b"u%d" % at

    def _function(self, function: FunctionType, label: str) -> bytes:
        if travels(function):
            return self._unit(function, label)
        home = function.__module__
        if modules.of_project(home, self.project):
            self._need(home)
            _current(home)
            return self._unit(function, label)
        return hashed("name", name_of(function))

    def _class(self, cls: type, label: str) -> bytes:
        home = getattr(cls, "__module__", None) or ""
        if home == "builtins":
            return hashed("name", name_of(cls))
        if not travels(cls):
            if not modules.of_project(home, self.project):
                return hashed("name", name_of(cls))
            self._need(home)
            _current(home)
        return self._unit(cls, f"class {cls.__qualname__}")

    def _module(self, module: ModuleType, label: str) -> bytes:
        name = module.__name__
        if modules.of_project(name, self.project):
            return self._whole_module(name)
        return hashed("module", name)

    def _need(self, name: str) -> None:
        self.roots[modules.root_of(name)] = None

    def _whole_module(self, name: str) -> bytes:
        """A project module that is used in ways we don't follow: all of its text counts, and what it imports."""
        self._need(name)
        path = modules.source_path(name)
        if path is None or not path.endswith(".py"):
            return hashed("module", name)
        self.pins = None
        text = syntax.text_of(path) or Path(path).read_text(encoding="utf-8")
        if name not in self._whole:
            self._whole.add(name)
            package = name if os.path.basename(path) == "__init__.py" else name.rpartition(".")[0]
            found = blake3(syntax.canonical(ast.parse(text))).digest(canon.SIZE)
            self._part(f"module {name}", found.hex())
            inside = [
                self._whole_module(other)
                for other in sorted(modules.imported(text, package))
                if modules.of_project(other, self.project) and modules.source_path(other) is not None
            ]
            return hashed("module", name, found, *inside)
        return hashed("module", name)

    def _part(self, label: str, text: str) -> str:
        """Keep a part; answers under which label, since two things may be called alike."""
        name, number = label, 2
        while self.parts.setdefault(name, text) != text:
            name, number = f"{label} ({number})", number + 1
        return name

    def _pin(self, holder: Any, name: str, thing: Any) -> None:
        if self.pins is not None:
            self.pins.append((holder, name, thing))

    # units: what each kind of thing says itself

    def _describe(self, unit: _Unit) -> None:
        subject = unit.subject
        if type(subject) is FunctionType:
            self._describe_function(unit, subject)
        elif isinstance(subject, type):
            self._describe_class(unit, subject)
        else:
            unit.own.append(type(subject).__qualname__)
            if hasattr(subject, "keywords"):  # a partial's may change in place
                self.pins = None
            kind = type(subject)
            base = composite(kind)
            assert base is not None, "nothing else becomes a unit"
            fields = COMPOSITE[base](subject)
            if kind is not base:
                self.pins = None
                fields += [("class", kind)]
            if kind is not base or base not in HELD_WHOLE:
                beside = list(added(subject))
                if beside:
                    self.pins = None
                fields += beside
            for name, value in fields:
                self._pin(subject, name, value)
                unit.edges.append((name, self.edge(value, f"{name} of {_bare(unit.label)}", f"{name} of {unit.label}")))

    def _describe_function(self, unit: _Unit, function: FunctionType) -> None:
        if dispatches(function):
            self._describe_dispatch(unit, function)
            return
        code, space = function.__code__, function.__globals__
        root = unit is self.units[0]
        of = "" if root else f" of {_bare(unit.label)}"
        whose = f"{_bare(unit.label)}()"
        self._pin(function, "__code__", code)
        self._pin(function, "__name__", function.__name__)
        self._pin(function, "__defaults__", function.__defaults__)
        self._pin(function, "__kwdefaults__", function.__kwdefaults__)
        self._pin(function, COUNT, len(function.__dict__))
        for name, value in function.__dict__.items():
            self._pin(function.__dict__, name, value)
        if not syntax.of_library(code.co_filename):
            self._looks |= syntax.reads(code).looks
        form = syntax.form(code, functools.partial(is_ours, space))
        unit.own.append("function")
        if not root:  # what runs is named by its task; others may be asked for their names
            unit.own.append(function.__name__)
        home = function.__module__ or ""
        as_text = not self.by_value and not syntax.of_library(code.co_filename)
        if as_text and modules.of_project(home, self.project) and syntax.edited(code):
            raise BadTask(_edited(home, code.co_filename))
        if form.digest and not syntax.of_library(code.co_filename):
            unit.own.append(form.digest)
        elif syntax.of_library(code.co_filename):  # a library's wrapper around something of the notebook
            unit.own.append(f"{space.get('__name__')}.{code.co_qualname}")
        else:
            if not form.stale and not self.blind:
                _warn_once(
                    ("source", code),
                    f"{whose} has no source that can be read, so its key follows its byte code, which differs between "
                    f"versions of Python. Give it version='1' to name it yourself.",
                )
            unit.own.append(syntax.compiled(code))
        self._values(unit, "default", defaults(function), of, whose)
        self._values(unit, "closure", self._cells(function), of, whose)
        self._values(unit, "attribute", sorted(attributes(function).items()), of, whose)
        wrapped = function.__dict__.get("__wrapped__", ABSENT)
        if wrapped is not ABSENT:
            unit.edges.append(("wrapped", self.edge(wrapped, f"function {_bare(unit.label)}", f"function in {whose}")))
        if syntax.of_library(code.co_filename):
            return  # what a library reads is its own affair
        if not self.blind:
            self._hint(code, form.uses, space, whose)
        if form.decorators or "annotations" in syntax.reads(code).looks:
            for name, note in function.__annotations__.items():
                unit.edges.append((f"annotation {name}", self._note(note, f"annotation of {name!r} in {whose}", space)))
        self._globals(unit, code, space, "" if root else str(space.get("__name__", "")), whose)
        self._decorators(unit, form.decorators, space)
        self._imports(unit, code, space)

    def _describe_dispatch(self, unit: _Unit, function: Any) -> None:
        """``functools.singledispatch``: the functions for each class. What it remembers for speed doesn't count."""
        self.pins = None
        unit.own.append("singledispatch")
        for kind, each in sorted(function.registry.items(), key=lambda pair: name_of(pair[0])):
            of = f"{kind.__name__} of {_bare(unit.label)}"
            unit.edges.append(("class", self.edge(kind, f"class {of}", unit.label)))
            unit.edges.append(("for it", self.edge(each, f"helper {of}", f"{unit.label}, for {kind.__name__}")))

    def _hint(self, code: CodeType, uses: hints.Uses, space: dict[str, Any], whose: str) -> None:
        self.chances.append((whose, hints.chance(uses, space)))
        for name in sorted(uses.computed):
            if name in space and not name.startswith("import"):
                continue  # a function of the notebook's own, that happens to be called so
            _warn_once(
                ("computed", code, name),
                f"{whose} looks up something by a computed name, with {name}(), so it can't be seen from its code. "
                f"Name what it may be with @jn.task(depends=[…]).",
            )

    def _cells(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                self.pins = None
                continue  # not set yet: the function that is being defined
            self._pin(cell, "cell_contents", value)
            yield name, value

    def _values(self, unit: _Unit, kind: str, values: Iterable[tuple[str, Any]], of: str, whose: str) -> None:
        for name, value in values:
            if name in self.ignored:
                self._overlook(value)
                continue
            label = f"{kind} {name}{of}"
            if type(plain(value)) is FunctionType and kind != "attribute":
                label = f"helper {name}{of}"
            path = f"{kind} {name!r} of {whose}"
            unit.edges.append((f"{kind} {name}", self._edge_or_advice(value, label, path, name)))

    def _edge_or_advice(self, value: Any, label: str, path: str, name: str) -> bytes:
        try:
            return self.edge(value, label, path)
        except Unhashable as refusal:
            advice = f" If it doesn't matter for the result: @jn.task(ignore_globals=[{name!r}])"
            if "ignore_globals" in str(refusal):
                raise
            raise Unhashable(f"{refusal}{advice}") from refusal.__cause__

    def _overlook(self, value: Any) -> None:
        """What doesn't count still has to travel."""
        aside = Walk(self.project, self.ignored, blind=True)
        aside.run([("ignored", value)])
        self.roots.update(aside.roots)
        self.pins = None

    def _globals(self, unit: _Unit, code: CodeType, space: dict[str, Any], prefix: str, whose: str) -> None:
        reads = syntax.reads(code)
        for name in reads.writes:
            _warn_once(
                ("writes", code, name),
                f"{whose} writes the global {name!r}: a worker does that in its own copy, which is lost. "
                f"Return the value instead.",
            )
        shown = f"{prefix}." if prefix and prefix not in modules.scripts else ""
        for name in (*reads.names, *reads.maybe):
            value = space.get(name, ABSENT)
            if value is ABSENT and name in reads.maybe:
                self._pin(space, name, value)
                continue
            if value is ABSENT:
                self._builtin(unit, name, code, space, whose)
                continue
            self._pin(space, name, value)
            if name in self.ignored or f"{shown}{name}" in self.ignored:
                self._overlook(value)
                continue
            if isinstance(value, ModuleType):
                unit.edges.append((name, self._chains(value, name, reads.chains[name], whose)))
                continue
            if shown and not self.by_value and modules.of_project(prefix, self.project):
                _as_written(prefix, name, value)
            path = f"global {name!r} read by {whose}"
            edge = self._edge_or_advice(value, _label(value, shown + name), path, name)
            unit.edges.append((name, edge))
            if shown and not self.by_value and self._is_ours(prefix):
                self._watch(prefix, name, value, edge)

    def _is_ours(self, module: str) -> bool:
        return modules.of_project(module, self.project)

    def _watch(self, module: str, name: str, value: Any, edge: bytes) -> None:
        """What a module computed, workers compute anew. Say so where it was changed here since it was first used."""
        if edge[:1] != b"v" or self.blind or not self._is_ours(module) or not modules.changed(module, name, edge):
            return
        shown = f"{module}.{name}"
        _warn_once(
            ("changed", module, name, edge),
            f"{shown} was changed here since it was first used, and workers get what the text of {module} makes. Hand "
            f"it over as an argument, or reload {module}. If it doesn't matter for the result, as a cache doesn't: "
            f"@jn.task(ignore_globals=[{shown!r}])",
        )

    def _builtin(self, unit: _Unit, name: str, code: CodeType, space: dict[str, Any], whose: str) -> None:
        self._pin(space, name, ABSENT)
        if hasattr(builtins, name):
            if name in _DYNAMIC and not self.blind:
                _warn_once(
                    ("dynamic", code, name),
                    f"{whose} uses {name}(), so what it reads can't be seen from its code. "
                    f"Name it with @jn.task(depends=[…]).",
                )
            unit.edges.append((name, hashed("name", f"builtins.{name}")))
        else:
            unit.edges.append((name, hashed("undefined name", name)))
            self._part(f"undefined name {name}", "undefined")

    def _chains(self, module: ModuleType, name: str, chains: Iterable[tuple[str, ...]], whose: str) -> bytes:
        """What is taken from a module: of the project, each thing that is used; of any other, its name."""
        if not modules.of_project(module.__name__, self.project):
            return hashed("module", module.__name__)
        self._need(module.__name__)
        found: list[bytes | str] = []
        for chain in chains:
            at: Any = module
            holder = module
            steps = [name]
            for step in chain:
                if type(at) is not ModuleType:
                    break
                holder, at = at, at.__dict__.get(step, ABSENT)
                self._pin(holder.__dict__, step, at)
                steps.append(step)
                if self._is_ours(holder.__name__) and ".".join(steps) not in self.ignored:
                    _current(holder.__name__)
                    _as_written(holder.__name__, step, at)
            shown = ".".join(steps)
            if at is ABSENT and "__getattr__" in holder.__dict__ and self._is_ours(holder.__name__):
                found += (shown, self._whole_module(holder.__name__))
            elif at is ABSENT:
                self._part(f"undefined name {shown}", "undefined")
                found.append(f"undefined name {shown}")
            elif shown in self.ignored:
                self._overlook(at)
            else:
                path = f"global {shown!r} read by {whose}"
                before, self.by_value = self.by_value, False  # workers have it from the module's text
                edge = self._edge_or_advice(at, _label(at, shown), path, shown)
                self.by_value = before
                found += (".".join(chain), edge)
                if chain and at is holder.__dict__.get(chain[-1], ABSENT):
                    self._watch(holder.__name__, chain[-1], at, edge)
        return hashed("module", *found)

    def _decorators(self, unit: _Unit, chains: Iterable[tuple[str, ...]], space: dict[str, Any]) -> None:
        """Decorators were applied when the function was made; their code counts where we can see it."""
        for chain in chains:
            at = space.get(chain[0], ABSENT)
            self._pin(space, chain[0], at)
            for step in chain[1:]:
                at = at.__dict__.get(step, ABSENT) if isinstance(at, ModuleType) else ABSENT
            at = plain(at)
            if type(at) is FunctionType or isinstance(at, type):
                name = ".".join(chain)
                unit.edges.append((f"decorator {name}", self.edge(at, f"decorator {name}", f"decorator {name!r}")))

    def _imports(self, unit: _Unit, code: CodeType, space: dict[str, Any]) -> None:
        """Imports inside the function: of project modules, all of their text."""
        package = space.get("__package__") or str(space.get("__name__", "")).rpartition(".")[0]
        for module, level, taken in syntax.reads(code).imports:
            names = {module} if not taken and not level else modules.from_names(module, level, taken, package)
            for name in sorted(names):
                if modules.of_project(name, self.project) and modules.source_path(name) is not None:
                    unit.edges.append((f"import {name}", self._whole_module(name)))

    def _describe_class(self, unit: _Unit, cls: type) -> None:
        unit.own += ("class", cls.__name__)
        self._pin(cls, COUNT, len(cls.__dict__))
        self._pin(cls, "__bases__", cls.__bases__)
        where = f"class {cls.__qualname__}"
        meta = type(cls)
        unit.edges.append(("metaclass", self.edge(meta, f"class {meta.__qualname__}", where)))
        for base in cls.__bases__:
            unit.edges.append(("base", self.edge(base, f"class {base.__qualname__}", where)))
        dataclass = "__dataclass_params__" in cls.__dict__
        content = dict(cls.__dict__)
        space = getattr(sys.modules.get(cls.__module__), "__dict__", {})
        for name, note in content.get("__annotations__", {}).items():
            unit.own += (name, annotation(note))
            unit.edges.append((name, self._note(note, f"annotation of {name!r} in {where}", space)))
        for base in content.pop("__orig_bases__", ()):
            unit.own.append(annotation(base))
            unit.edges.append(("as written", self._note(base, where)))
        if registered := registered_with(cls):
            self.pins = None
            for other in registered:
                unit.edges.append(("registered", self.edge(other, f"class {other.__qualname__}", where)))
        if dataclass:
            unit.own.append(repr([getattr(content["__dataclass_params__"], name) for name in _PARAMETERS]))
            for name, field in content["__dataclass_fields__"].items():
                unit.own += (name, repr((field.init, field.repr, field.hash, field.compare, field.kw_only)))
                content.setdefault(f"default of {name}", field.default)
                content.setdefault(f"factory of {name}", field.default_factory)
                if field.metadata:
                    content.setdefault(f"metadata of {name}", dict(field.metadata))
        members = content.get("_member_map_")
        if members is not None:
            for name, member in members.items():
                content.pop(name, None)
                unit.own.append(name)
                content[f"member {name}"] = member._value_
                self._pin(member, COUNT, len(member.__dict__))
                for held, what in member.__dict__.items():
                    self._pin(member.__dict__, held, what)
                    if not held.startswith("_"):
                        content[f"{held} of member {name}"] = what
        ours = not self.by_value and modules.of_project(cls.__module__, self.project)
        slots = content.get("__slots__", ())
        hidden = {slots} if isinstance(slots, str) else set(slots)
        for name in sorted(content):
            value = content[name]
            if name in cls.__dict__:
                self._pin(cls, name, value)
            if name in _DERIVED and not (name in _ALWAYS and type(value) is classmethod):
                continue
            if name in hidden or name in self.ignored or f"{cls.__name__}.{name}" in self.ignored:
                continue
            if type(value).__module__ == "dataclasses" and not isinstance(value, type):
                continue  # MISSING and its like
            if generated(cls, value):
                continue
            if ours and name in cls.__dict__:
                _as_written(cls.__module__, name, value, cls.__qualname__)
            unit.edges.append((name, self._class_value(cls, name, value)))

    def _class_value(self, cls: type, name: str, value: Any) -> bytes:
        path = f"class {cls.__qualname__}, attribute {name!r}"
        label = f"{cls.__qualname__}.{name}"
        if type(value) is FunctionType:
            return self._unit(value, f"method {label}")
        return self._edge_or_advice(value, label, path, f"{cls.__name__}.{name}")


def _edited(module: str, file: str) -> str:
    return (
        f"{file} was edited after {module} was imported. Reload it "
        f"(importlib.reload({module}), or %autoreload), so that workers run what you see."
    )


def _current(module: str) -> None:
    """Workers get a module's text. Raises BadTask where that is no longer what was imported."""
    if modules.edited(module):
        raise BadTask(_edited(module, modules.source_path(module) or module))


def _as_written(module: str, name: str, value: Any, cls: str = "") -> None:
    """The same of a value, function or class, which may also have been set from outside."""
    value = plain(value)
    shown = f"{module}.{cls}.{name}" if cls else f"{module}.{name}"
    home = value.__module__ if isinstance(value, FunctionType | type) else None
    if home == "__main__":
        raise BadTask(
            f"{shown} was set to {value.__qualname__} of the notebook, and workers get what the text of {module} "
            f"makes. Reload it (importlib.reload({module})), and hand over {value.__qualname__} as an argument."
        )
    origin = None if cls else modules.source(module, name)
    if origin is not None and _left_behind(value, *origin):
        source, there = origin
        raise BadTask(
            f"{shown} is what {source}.{there} was before {source} was reloaded, and workers get what it is now. "
            f"Reload {module} as well (importlib.reload({module}))."
        )
    if type(value) not in SCALARS and type(value) not in (dict, list, set, tuple):
        return
    for text in modules.written(module, name, cls):
        if _alike(value, text):
            continue
        raise BadTask(
            f"{shown} is {brief(value, 60)} here, but the text of {module} says {brief(text, 60)}, and that is what "
            f"workers get. Reload it (importlib.reload({module}), or %autoreload), or hand over the value as an "
            f"argument."
        )


def _alike(value: Any, text: Any) -> bool:
    if type(value) in SCALARS or type(text) in SCALARS:
        return type(text) is type(value) and repr(text) == repr(value)
    try:
        return canon.digest(value) == canon.digest(text)
    except Unhashable:
        return True  # that will be said in better words


def _left_behind(value: Any, source: str, name: str) -> bool:
    """Is a value that was taken from a module no longer what its text makes?"""
    texts = modules.written(source, name)
    if texts:
        return not _alike(value, texts[0])
    now = plain(sys.modules[source].__dict__[name])
    if now is value or not (isinstance(now, FunctionType | type) or modules.reloaded(source)):
        return False
    return getattr(now, "__module__", None) not in modules.scripts and not _alike_apart(value, now)


def _alike_apart(value: Any, other: Any) -> bool:
    """The same of anything, whatever is being walked."""
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


def _bare(label: str) -> str:
    return label.partition(" ")[2] or label


def _label(value: Any, name: str) -> str:
    value = plain(value)
    if type(value) is FunctionType:
        return f"helper {name}"
    return f"class {value.__qualname__}" if isinstance(value, type) else f"global {name}"
