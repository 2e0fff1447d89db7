"""Functions, classes and modules -> digests, and the parts they are made of.

How that is done is told in `walk`.
"""

from __future__ import annotations

import builtins
import functools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

from jug_notebook.errors import BadTask, Opaque, Unhashable
from jug_notebook.keys import advice, modules, syntax
from jug_notebook.keys.callables import (
    ABSENT,
    COMPOSITE,
    DERIVED,
    DESCRIPTORS,
    HELD_WHOLE,
    added,
    annotation,
    attributes,
    composite,
    defaults,
    dispatches,
    generated,
    identity,
    is_ours,
    name_of,
    plain,
    registered_with,
)
from jug_notebook.keys.digest import SCHEME, Encoder, writer_for
from jug_notebook.keys.walk import COUNT, Unit, Walk, check_text, check_value, edited_message, hashed, under_way


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
    walk = Walk(_describe, project, ignored, blind=version is not None)
    found = walk.run(things)
    parts = walk.parts
    if version is not None:
        found, parts = hashed(SCHEME, "version", version), {"version": repr(version)}
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


# -- what each kind of thing contributes -------------------------------------------------------------------------------

_DYNAMIC = frozenset({"eval", "exec", "globals", "__import__"})
_PARAMETERS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")  #: of a dataclass
_ALWAYS = frozenset({"__init_subclass__", "__subclasshook__"})


def _warn_once(about: tuple[object, ...], text: str) -> None:
    advice.say_once(about, Opaque, text)


def _describe(walk: Walk, unit: Unit) -> None:
    subject = unit.subject
    if type(subject) is FunctionType:
        _describe_function(walk, unit, subject)
    elif isinstance(subject, type):
        _describe_class(walk, unit, subject)
    else:
        unit.own.append(type(subject).__qualname__)
        if hasattr(subject, "keywords"):  # a partial's may change in place
            walk.pins = None
        kind = type(subject)
        base = composite(kind)
        assert base is not None, "nothing else becomes a unit"
        fields = COMPOSITE[base](subject)
        if kind is not base:
            walk.pins = None
            fields += [("class", kind)]
        if kind is not base or base not in HELD_WHOLE:
            beside = list(added(subject))
            if beside:
                walk.pins = None
            fields += beside
        for name, value in fields:
            walk.pin(subject, name, value)
            unit.edges.append((name, walk.edge(value, f"{name} of {_bare(unit.label)}", f"{name} of {unit.label}")))


def _describe_function(walk: Walk, unit: Unit, function: FunctionType) -> None:
    if dispatches(function):
        _describe_dispatch(walk, unit, function)
        return
    code, space = function.__code__, function.__globals__
    root = unit is walk.units[0]
    of = "" if root else f" of {_bare(unit.label)}"
    whose = f"{_bare(unit.label)}()"
    walk.pin(function, "__code__", code)
    walk.pin(function, "__name__", function.__name__)
    walk.pin(function, "__defaults__", function.__defaults__)
    walk.pin(function, "__kwdefaults__", function.__kwdefaults__)
    walk.pin(function, COUNT, len(function.__dict__))
    for name, value in function.__dict__.items():
        walk.pin(function.__dict__, name, value)
    if not syntax.of_library(code.co_filename):
        walk.looks |= syntax.reads(code).looks
    form = syntax.form(code, functools.partial(is_ours, space))
    unit.own.append("function")
    if not root:  # what runs is named by its task; others may be asked for their names
        unit.own.append(function.__name__)
    home = function.__module__ or ""
    as_text = not walk.by_value and not syntax.of_library(code.co_filename)
    if as_text and modules.of_project(home, walk.project) and syntax.edited(code):
        raise BadTask(edited_message(home, code.co_filename))
    if form.digest and not syntax.of_library(code.co_filename):
        unit.own.append(form.digest)
    elif syntax.of_library(code.co_filename):  # a library's wrapper around something of the notebook
        unit.own.append(f"{space.get('__name__')}.{code.co_qualname}")
    else:
        if not form.stale and not walk.blind:
            _warn_once(
                ("source", code),
                f"{whose} has no source that can be read, so its key follows its byte code, which differs between "
                f"versions of Python. Give it version='1' to name it yourwalk.",
            )
        unit.own.append(syntax.compiled(code))
    _values(walk, unit, "default", defaults(function), of, whose)
    _values(walk, unit, "closure", _cells(walk, function), of, whose)
    _values(walk, unit, "attribute", sorted(attributes(function).items()), of, whose)
    wrapped = function.__dict__.get("__wrapped__", ABSENT)
    if wrapped is not ABSENT:
        unit.edges.append(("wrapped", walk.edge(wrapped, f"function {_bare(unit.label)}", f"function in {whose}")))
    if syntax.of_library(code.co_filename):
        return  # what a library reads is its own affair
    if not walk.blind:
        _hint(walk, code, form.uses, space, whose)
    if form.decorators or "annotations" in syntax.reads(code).looks:
        for name, note in function.__annotations__.items():
            unit.edges.append((f"annotation {name}", walk.note(note, f"annotation of {name!r} in {whose}", space)))
    _globals(walk, unit, code, space, "" if root else str(space.get("__name__", "")), whose)
    _decorators(walk, unit, form.decorators, space)
    _imports(walk, unit, code, space)


def _describe_dispatch(walk: Walk, unit: Unit, function: Any) -> None:
    """``functools.singledispatch``: the functions for each class. What it remembers for speed doesn't count."""
    walk.pins = None
    unit.own.append("singledispatch")
    for kind, each in sorted(function.registry.items(), key=lambda pair: name_of(pair[0])):
        of = f"{kind.__name__} of {_bare(unit.label)}"
        unit.edges.append(("class", walk.edge(kind, f"class {of}", unit.label)))
        unit.edges.append(("for it", walk.edge(each, f"helper {of}", f"{unit.label}, for {kind.__name__}")))


def _hint(walk: Walk, code: CodeType, uses: advice.Uses, space: dict[str, Any], whose: str) -> None:
    walk.chances.append((whose, advice.chance(uses, space)))
    for name in sorted(uses.computed):
        if name in space and not name.startswith("import"):
            continue  # a function of the notebook's own, that happens to be called so
        _warn_once(
            ("computed", code, name),
            f"{whose} looks up something by a computed name, with {name}(), so it can't be seen from its code. "
            f"Name what it may be with @jn.task(depends=[…]).",
        )


def _cells(walk: Walk, function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            walk.pins = None
            continue  # not set yet: the function that is being defined
        walk.pin(cell, "cell_contents", value)
        yield name, value


def _values(walk: Walk, unit: Unit, kind: str, values: Iterable[tuple[str, Any]], of: str, whose: str) -> None:
    for name, value in values:
        if name in walk.ignored:
            walk.overlook(value)
            continue
        label = f"{kind} {name}{of}"
        if type(plain(value)) is FunctionType and kind != "attribute":
            label = f"helper {name}{of}"
        path = f"{kind} {name!r} of {whose}"
        unit.edges.append((f"{kind} {name}", walk.edge_or_advice(value, label, path, name)))


def _globals(walk: Walk, unit: Unit, code: CodeType, space: dict[str, Any], prefix: str, whose: str) -> None:
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
            walk.pin(space, name, value)
            continue
        if value is ABSENT:
            _builtin(walk, unit, name, code, space, whose)
            continue
        walk.pin(space, name, value)
        if name in walk.ignored or f"{shown}{name}" in walk.ignored:
            walk.overlook(value)
            continue
        if isinstance(value, ModuleType):
            unit.edges.append((name, _chains(walk, value, name, reads.chains[name], whose)))
            continue
        if shown and not walk.by_value and modules.of_project(prefix, walk.project):
            check_value(prefix, name, value)
        path = f"global {name!r} read by {whose}"
        edge = walk.edge_or_advice(value, _label(value, shown + name), path, name)
        unit.edges.append((name, edge))
        if shown and not walk.by_value and walk._is_ours(prefix):
            _watch(walk, prefix, name, value, edge)


def _watch(walk: Walk, module: str, name: str, value: Any, edge: bytes) -> None:
    """What a module computed, workers compute anew. Say so where it was changed here since it was first used."""
    if edge[:1] != b"v" or walk.blind or not walk._is_ours(module) or not modules.changed(module, name, edge):
        return
    shown = f"{module}.{name}"
    _warn_once(
        ("changed", module, name, edge),
        f"{shown} was changed here since it was first used, and workers get what the text of {module} makes. Hand "
        f"it over as an argument, or reload {module}. If it doesn't matter for the result, as a cache doesn't: "
        f"@jn.task(ignore_globals=[{shown!r}])",
    )


def _builtin(walk: Walk, unit: Unit, name: str, code: CodeType, space: dict[str, Any], whose: str) -> None:
    walk.pin(space, name, ABSENT)
    if hasattr(builtins, name):
        if name in _DYNAMIC and not walk.blind:
            _warn_once(
                ("dynamic", code, name),
                f"{whose} uses {name}(), so what it reads can't be seen from its code. "
                f"Name it with @jn.task(depends=[…]).",
            )
        unit.edges.append((name, hashed("name", f"builtins.{name}")))
    else:
        unit.edges.append((name, hashed("undefined name", name)))
        walk.part(f"undefined name {name}", "undefined")


def _chains(walk: Walk, module: ModuleType, name: str, chains: Iterable[tuple[str, ...]], whose: str) -> bytes:
    """What is taken from a module: of the project, each thing that is used; of any other, its name."""
    if not modules.of_project(module.__name__, walk.project):
        return hashed("module", module.__name__)
    walk.need(module.__name__)
    found: list[bytes | str] = []
    for chain in chains:
        at: Any = module
        holder = module
        steps = [name]
        for step in chain:
            if type(at) is not ModuleType:
                break
            holder, at = at, at.__dict__.get(step, ABSENT)
            walk.pin(holder.__dict__, step, at)
            steps.append(step)
            if walk._is_ours(holder.__name__) and ".".join(steps) not in walk.ignored:
                check_text(holder.__name__)
                check_value(holder.__name__, step, at)
        shown = ".".join(steps)
        if at is ABSENT and "__getattr__" in holder.__dict__ and walk._is_ours(holder.__name__):
            found += (shown, walk.whole_module(holder.__name__))
        elif at is ABSENT:
            walk.part(f"undefined name {shown}", "undefined")
            found.append(f"undefined name {shown}")
        elif shown in walk.ignored:
            walk.overlook(at)
        else:
            path = f"global {shown!r} read by {whose}"
            before, walk.by_value = walk.by_value, False  # workers have it from the module's text
            edge = walk.edge_or_advice(at, _label(at, shown), path, shown)
            walk.by_value = before
            found += (".".join(chain), edge)
            if chain and at is holder.__dict__.get(chain[-1], ABSENT):
                _watch(walk, holder.__name__, chain[-1], at, edge)
    return hashed("module", *found)


def _decorators(walk: Walk, unit: Unit, chains: Iterable[tuple[str, ...]], space: dict[str, Any]) -> None:
    """Decorators were applied when the function was made; their code counts where we can see it."""
    for chain in chains:
        at = space.get(chain[0], ABSENT)
        walk.pin(space, chain[0], at)
        for step in chain[1:]:
            at = at.__dict__.get(step, ABSENT) if isinstance(at, ModuleType) else ABSENT
        at = plain(at)
        if type(at) is FunctionType or isinstance(at, type):
            name = ".".join(chain)
            unit.edges.append((f"decorator {name}", walk.edge(at, f"decorator {name}", f"decorator {name!r}")))


def _imports(walk: Walk, unit: Unit, code: CodeType, space: dict[str, Any]) -> None:
    """Imports inside the function: of project modules, all of their text."""
    package = space.get("__package__") or str(space.get("__name__", "")).rpartition(".")[0]
    for module, level, taken in syntax.reads(code).imports:
        names = {module} if not taken and not level else modules.from_names(module, level, taken, package)
        for name in sorted(names):
            if modules.of_project(name, walk.project) and modules.source_path(name) is not None:
                unit.edges.append((f"import {name}", walk.whole_module(name)))


def _describe_class(walk: Walk, unit: Unit, cls: type) -> None:
    unit.own += ("class", cls.__name__)
    walk.pin(cls, COUNT, len(cls.__dict__))
    walk.pin(cls, "__bases__", cls.__bases__)
    where = f"class {cls.__qualname__}"
    meta = type(cls)
    unit.edges.append(("metaclass", walk.edge(meta, f"class {meta.__qualname__}", where)))
    for base in cls.__bases__:
        unit.edges.append(("base", walk.edge(base, f"class {base.__qualname__}", where)))
    dataclass = "__dataclass_params__" in cls.__dict__
    content = dict(cls.__dict__)
    space = getattr(sys.modules.get(cls.__module__), "__dict__", {})
    for name, note in content.get("__annotations__", {}).items():
        unit.own += (name, annotation(note))
        unit.edges.append((name, walk.note(note, f"annotation of {name!r} in {where}", space)))
    for base in content.pop("__orig_bases__", ()):
        unit.own.append(annotation(base))
        unit.edges.append(("as written", walk.note(base, where)))
    if registered := registered_with(cls):
        walk.pins = None
        for other in registered:
            unit.edges.append(("registered", walk.edge(other, f"class {other.__qualname__}", where)))
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
            walk.pin(member, COUNT, len(member.__dict__))
            for held, what in member.__dict__.items():
                walk.pin(member.__dict__, held, what)
                if not held.startswith("_"):
                    content[f"{held} of member {name}"] = what
    ours = not walk.by_value and modules.of_project(cls.__module__, walk.project)
    slots = content.get("__slots__", ())
    hidden = {slots} if isinstance(slots, str) else set(slots)
    for name in sorted(content):
        value = content[name]
        if name in cls.__dict__:
            walk.pin(cls, name, value)
        if name in DERIVED and not (name in _ALWAYS and type(value) is classmethod):
            continue
        if name in hidden or name in walk.ignored or f"{cls.__name__}.{name}" in walk.ignored:
            continue
        if type(value).__module__ == "dataclasses" and not isinstance(value, type):
            continue  # MISSING and its like
        if generated(cls, value):
            continue
        if ours and name in cls.__dict__:
            check_value(cls.__module__, name, value, cls.__qualname__)
        unit.edges.append((name, _class_value(walk, cls, name, value)))


def _class_value(walk: Walk, cls: type, name: str, value: Any) -> bytes:
    path = f"class {cls.__qualname__}, attribute {name!r}"
    label = f"{cls.__qualname__}.{name}"
    if type(value) is FunctionType:
        return walk.unit(value, f"method {label}")
    return walk.edge_or_advice(value, label, path, f"{cls.__name__}.{name}")


def _bare(label: str) -> str:
    return label.partition(" ")[2] or label


def _label(value: Any, name: str) -> str:
    value = plain(value)
    if type(value) is FunctionType:
        return f"helper {name}"
    return f"class {value.__qualname__}" if isinstance(value, type) else f"global {name}"


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
    walk = Walk(_describe, outer.project, outer.ignored)
    walk.by_value = outer.by_value
    found = walk.run([("value", value)])
    outer.met(walk)
    return found if type(value) is not FunctionType else hashed(value.__name__, found)


def _entry(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("code", 1)
    try:
        encoder.data(_of_code(value))
    except Unhashable as refusal:
        encoder.refuse_because(refusal, path)


for _kind in (type, FunctionType, ModuleType, *COMPOSITE, *DESCRIPTORS):
    writer_for(f"{_kind.__module__}.{_kind.__qualname__}", attributes=False)(_entry)
for _dotted in ("numpy.ufunc", "jug_notebook.task.function.TaskFunction"):
    writer_for(_dotted, attributes=False)(_entry)
