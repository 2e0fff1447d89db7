"""The digest of a function's code, with all that it reads.

`examine` is the way in. It starts a `Walk`, which finds a function's helpers, globals and classes; the middle of this
file says what each of these contributes to the digest, and its end how values that hold code are hashed.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple

from jug_notebook.errors import BadTask, Opaque, ReadsEnvironment, Unhashable
from jug_notebook.keys import advice, libraries, modules, syntax
from jug_notebook.keys.callables import (
    ABSENT,
    COMPOSITE,
    DERIVED,
    DESCRIPTORS,
    PARTS_IN_DICT,
    added,
    annotation,
    annotations_of,
    attributes,
    by_name,
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
from jug_notebook.keys.encoder import Budget, Exhausted
from jug_notebook.keys.walk import COUNT, Unit, Walk, check_text, check_value, edited_message, hashed, under_way


class Code(NamedTuple):
    """The digest of a function's code, and what it is made of."""

    digest: str  #: 40 hex digits
    parts: dict[str, str]  #: "helper norm", "global ALPHA", "default n" -> digest, or the repr of a short value
    modules: frozenset[str]  #: top-level names of the project's modules that must travel along
    texts: Mapping[str, str] = MappingProxyType({})  #: of the other parts: their source, or value in brief
    environment: Mapping[str, str | None] = MappingProxyType({})  #: variables that are handed along; None: not set
    secrets: tuple[str, ...] = ()  #: names of variables that a worker takes from its own environment
    pins: Mapping[str, str] = MappingProxyType({})  #: packages and the versions that it must run with


# -- examining a function ----------------------------------------------------------------------------------------------

_pinned: dict[tuple[Any, ...], tuple[list[tuple[Any, str, Any]], Code, Any]] = {}


def _holds(pins: list[tuple[Any, str, Any]]) -> bool:
    """Return True if each thing is still where it was found."""
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
    environment: Iterable[str] = (),
    secrets: Iterable[str] = (),
    budget: Budget | None = None,
) -> Code:
    """Return the digest of a function's code and its parts. Modules below the folder ``project`` are followed.

    ``version`` replaces the code in the digest; ``ignore_globals`` don't count; ``depends`` count as well, and so do
    the values of the variables in ``environment``, which are handed along; of ``secrets`` only the names are.
    Raises Unhashable for a value that can't be hashed reliably, BadTask for a module that workers would have otherwise.
    """
    global _home
    if project is not None:
        _home = project
    function = plain(function)
    ignored, extra = frozenset(ignore_globals), tuple(depends)
    variables, secret = tuple(sorted(environment)), tuple(sorted(secrets))
    memo = (id(function), version, ignored, project, variables, secret)
    if not extra:
        known = _pinned.get(memo)
        if known is not None and known[2] is function and _holds(known[0]):
            return _with_environment(known[1], variables, secret)
    label = f"function {getattr(function, '__name__', type(function).__name__)}"
    things = [(label, function), *((f"depends {number}", thing) for number, thing in enumerate(extra))]
    walk = Walk(_describe, project, ignored, blind=version is not None)
    walk.budget, walk.inner = budget, budget or walk.inner
    walk.environment = frozenset(variables + secret)
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
    return _with_environment(code, variables, secret)


def _with_environment(code: Code, variables: Collection[str], secrets: tuple[str, ...]) -> Code:
    """Return the code with environment variables as they are now."""
    if not variables and not secrets:
        return code
    values = {name: os.environ.get(name) for name in variables}
    parts = {f"environment {name}": "not set" if value is None else repr(value) for name, value in values.items()}
    digest = hashed(code.digest, *(text for part in parts.items() for text in part)).hex() if values else code.digest
    return code._replace(digest=digest, parts={**code.parts, **parts}, environment=values, secrets=secrets)


def class_digest(cls: type, budget: Budget | None = None) -> str:
    """Return the digest of a class: of bases, methods, annotations and values; of its name if it can be imported."""
    return _adopted.get(cls) or examine(cls, project=_home, budget=budget).digest


_adopted: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def adopt_class(cls: type, digest: str) -> None:
    """Set the digest of ``cls``, a class that was built here from a definition made elsewhere."""
    _adopted[cls] = digest


def home() -> Path | None:
    """Return the project that functions were last examined for: values with code of its modules belong to it too."""
    return _home


_home: Path | None = None


# -- what each kind of thing contributes -------------------------------------------------------------------------------

_DYNAMIC = frozenset({"eval", "exec", "globals", "__import__"})
_PARAMETERS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")  #: of a dataclass
_ALWAYS = frozenset({"__init_subclass__", "__subclasshook__"})


def _warn_once(about: tuple[str, CodeType, *tuple[str, ...]], text: str) -> None:
    advice.warn_once(about, Opaque, text, about[1])


def _describe(walk: Walk, unit: Unit) -> None:
    """Add to a unit what its subject contributes."""
    subject = unit.subject
    if type(subject) is FunctionType:
        if dispatches(subject):
            _describe_dispatch(walk, unit, subject)
        else:
            _describe_function(walk, unit, subject)
    elif isinstance(subject, type):
        _describe_class(walk, unit, subject)
    else:
        _describe_composite(walk, unit, subject)


def _describe_composite(walk: Walk, unit: Unit, subject: Any) -> None:
    """Describe what is made of others: methods, partials, properties and the like."""
    kind: Any = type(subject)
    base = composite(kind)
    assert base is not None, "nothing else becomes a unit"
    unit.own.append(kind.__qualname__)
    fields = COMPOSITE[base](subject)
    others = [("class", kind)] if kind is not base else []
    if libraries.composite(kind) is None and (kind is not base or base not in PARTS_IN_DICT):
        others += added(subject)
    if others or hasattr(subject, "keywords"):  # a partial's may change in place
        walk.pins = None
    for name, value in [*fields, *others]:
        walk.pin(subject, name, value)
        unit.edges.append((name, walk.edge(value, f"{name} of {_bare(unit.label)}", f"{name} of {unit.label}")))


def _describe_function(walk: Walk, unit: Unit, function: FunctionType) -> None:
    """Describe a function: its source, its defaults, closure and attributes, and the globals that it reads."""
    code, space = function.__code__, function.__globals__
    of_library = syntax.of_library(code.co_filename)
    root = unit is walk.units[0]
    of = "" if root else f" of {_bare(unit.label)}"
    owner = f"{_bare(unit.label)}()"
    for name in ("__code__", "__name__", "__defaults__", "__kwdefaults__"):
        walk.pin(function, name, getattr(function, name))
    walk.pin(function, COUNT, len(function.__dict__))
    for name, value in function.__dict__.items():
        walk.pin(function.__dict__, name, value)
    if not of_library:
        walk.inspects |= syntax.reads(code).inspects
    form = syntax.form(code, functools.partial(is_ours, space))
    unit.own.append("function")
    if not root:  # the task has the name of the function that it runs; code may read the names of others
        unit.own.append(function.__name__)
    home = function.__module__ or ""
    if not of_library and not walk.by_value and walk.follows(home) and syntax.edited(code):
        raise BadTask(edited_message(home, code.co_filename))
    if of_library:  # a library's wrapper around something from the notebook
        unit.own.append(f"{space.get('__name__')}.{code.co_qualname}")
    elif form.digest:
        unit.own.append(form.digest)
    else:
        if not form.stale and not walk.blind:
            _warn_once(
                ("source", code),
                f"{owner} has no source, so its key depends on its bytecode, which differs between "
                f"versions of Python. Give it a version of its own: @jn.task(version='1').",
            )
        unit.own.append(syntax.compiled(code))
    _values(walk, unit, "default", defaults(function), of, owner)
    _values(walk, unit, "closure", _cells(walk, function), of, owner)
    _values(walk, unit, "attribute", sorted(attributes(function).items()), of, owner)
    wrapped = function.__dict__.get("__wrapped__", ABSENT)
    if wrapped is not ABSENT:
        unit.edges.append(("wrapped", walk.edge(wrapped, f"function {_bare(unit.label)}", f"function in {owner}")))
    if of_library:
        return  # what a library reads counts by the library's name
    if not walk.blind:
        _hint(walk, code, form.uses, space, owner)
    if form.decorators or "annotations" in syntax.reads(code).inspects:
        for name, note in annotations_of(function).items():
            unit.edges.append((f"annotation {name}", walk.note(note, f"annotation of {name!r} in {owner}", space)))
    _globals(walk, unit, code, space, "" if root else str(space.get("__name__", "")), owner)
    _decorators(walk, unit, form.decorators, space)
    _imports(walk, unit, code, space)


def _describe_dispatch(walk: Walk, unit: Unit, function: Any) -> None:
    """Describe ``functools.singledispatch``: the function for each class; its cache doesn't count."""
    walk.pins = None
    unit.own.append("singledispatch")
    for kind, each in sorted(function.registry.items(), key=lambda pair: name_of(pair[0])):
        of = f"{kind.__name__} of {_bare(unit.label)}"
        unit.edges.append(("class", walk.edge(kind, f"class {of}", unit.label)))
        unit.edges.append(("for it", walk.edge(each, f"helper {of}", f"{unit.label}, for {kind.__name__}")))


def _hint(walk: Walk, code: CodeType, uses: advice.Uses, space: dict[str, Any], owner: str) -> None:
    """Note how a function draws random numbers; warn about globals that it changes and names that it computes."""
    reads = syntax.reads(code)
    for name, what in advice.changed(uses, reads.names, reads.writes, space):
        _warn_once(("writes", code, name), f"{owner} {what}")
    walk.chances.append((code, owner, advice.chance(uses, space)))
    for name in sorted(advice.environment(uses, space) - walk.environment - set(advice.DEVICES)):
        advice.warn_once(
            ("environment", code, name),
            ReadsEnvironment,
            f"{owner} reads the environment variable {name!r}, but its value isn't part of the key, and a worker has "
            f"its own. Pass it along: @jn.task(env=[{name!r}]), %%jugtask --env {name}; for what must not be "
            f"stored, secret_env or --secret-env.",
            code,
        )
    for name in sorted(uses.computed):
        if name in space and not name.startswith("import"):
            continue  # the notebook's own function of this name
        _warn_once(
            ("computed", code, name),
            f"{owner} looks something up by a computed name, with {name}(), so its key can't cover what is found. "
            f"List what it may be: @jn.task(depends=[…]).",
        )


def _cells(walk: Walk, function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the variables in the closure of a function, (name, value)."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            walk.pins = None
            continue  # not set yet: the function that is being defined
        walk.pin(cell, "cell_contents", value)
        yield name, value


def _values(walk: Walk, unit: Unit, kind: str, values: Iterable[tuple[str, Any]], of: str, owner: str) -> None:
    """Add values that belong to a function, (name, value): defaults, closure or attributes."""
    for name, value in values:
        if name in walk.ignored:
            walk.overlook(value)
            continue
        label = f"{kind} {name}{of}"
        if type(plain(value)) is FunctionType and kind != "attribute":
            label = f"helper {name}{of}"
        path = f"{kind} {name!r} of {owner}"
        unit.edges.append((f"{kind} {name}", walk.edge_or_advice(value, label, path, name)))


def _globals(walk: Walk, unit: Unit, code: CodeType, space: dict[str, Any], prefix: str, owner: str) -> None:
    """Add the globals that a function reads. ``prefix``: its module, empty for the function that runs."""
    reads = syntax.reads(code)
    qualifier = f"{prefix}." if prefix and prefix not in modules.scripts else ""
    for name in (*reads.names, *reads.maybe):
        value = space.get(name, ABSENT)
        if value is ABSENT and name in reads.maybe:
            walk.pin(space, name, value)
            continue
        if value is ABSENT:
            _builtin(walk, unit, name, code, space, owner)
            continue
        walk.pin(space, name, value)
        if name in walk.ignored or f"{qualifier}{name}" in walk.ignored:
            walk.overlook(value)
            continue
        if isinstance(value, ModuleType):
            unit.edges.append((name, _chains(walk, value, name, reads.chains[name], owner)))
            continue
        if qualifier and not walk.by_value and walk.follows(prefix):
            check_value(prefix, name, value)
        path = f"global {name!r} read by {owner}"
        edge = walk.edge_or_advice(value, _label(value, qualifier + name), path, name)
        unit.edges.append((name, edge))
        if qualifier and not walk.by_value and walk.follows(prefix):
            _watch(walk, prefix, name, value, edge)


def _watch(walk: Walk, module: str, name: str, value: Any, edge: bytes) -> None:
    """Warn if a value that a module computed has changed here since it was first used: workers compute it anew."""
    if edge[:1] != b"v" or walk.blind or not walk.follows(module) or not modules.changed(module, name, edge):
        return
    full_name = f"{module}.{name}"
    advice.warn_once(
        ("changed", module, name, edge),
        Opaque,
        f"{full_name} has changed in this process since it was first used, but workers get what the source of {module} "
        f"makes. Pass it as an argument, or reload {module}. If it doesn't affect the result, like a cache: "
        f"@jn.task(ignore_globals=[{full_name!r}])",
    )


def _builtin(walk: Walk, unit: Unit, name: str, code: CodeType, space: dict[str, Any], owner: str) -> None:
    """Add a name that isn't among the globals: a builtin, or undefined."""
    walk.pin(space, name, ABSENT)
    if hasattr(builtins, name):
        if name in _DYNAMIC and not walk.blind:
            _warn_once(
                ("dynamic", code, name),
                f"{owner} uses {name}(), so its key can't cover what that reads. List it: @jn.task(depends=[…]).",
            )
        unit.edges.append((name, hashed("name", f"builtins.{name}")))
    else:
        unit.edges.append((name, hashed("undefined name", name)))
        walk.part(f"undefined name {name}", "undefined")


def _chains(walk: Walk, module: ModuleType, name: str, chains: Iterable[tuple[str, ...]], owner: str) -> bytes:
    """Return what is used of a module: each thing if the module is the project's, else the module's name."""
    if not walk.follows(module.__name__):
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
            if walk.follows(holder.__name__) and ".".join(steps) not in walk.ignored:
                check_text(holder.__name__)
                check_value(holder.__name__, step, at)
        full = ".".join(steps)
        if at is ABSENT and "__getattr__" in holder.__dict__ and walk.follows(holder.__name__):
            found += (full, walk.whole_module(holder.__name__))
        elif at is ABSENT:
            walk.part(f"undefined name {full}", "undefined")
            found.append(f"undefined name {full}")
        elif full in walk.ignored:
            walk.overlook(at)
        else:
            path = f"global {full!r} read by {owner}"
            before, walk.by_value = walk.by_value, False  # workers have it from the module's text
            edge = walk.edge_or_advice(at, _label(at, full), path, full)
            walk.by_value = before
            found += (".".join(chain), edge)
            if chain and at is holder.__dict__.get(chain[-1], ABSENT):
                _watch(walk, holder.__name__, chain[-1], at, edge)
    return hashed("module", *found)


def _decorators(walk: Walk, unit: Unit, chains: Iterable[tuple[str, ...]], space: dict[str, Any]) -> None:
    """Add decorators: they were applied when the function was made; their code counts where it can be found."""
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
    """Add imports inside the function: all of the source of project modules."""
    package = space.get("__package__") or str(space.get("__name__", "")).rpartition(".")[0]
    for module, level, taken in syntax.reads(code).imports:
        names = {module} if not taken and not level else modules.from_names(module, level, taken, package)
        for name in sorted(names):
            if walk.follows(name) and modules.source_path(name) is not None:
                unit.edges.append((f"import {name}", walk.whole_module(name)))


def _describe_class(walk: Walk, unit: Unit, cls: type) -> None:
    """Describe a class: its bases, annotations, methods and values, but not what Python derives from these."""
    unit.own += ("class", cls.__name__)
    notes = annotations_of(cls)  # reading them may add attributes to the class
    walk.pin(cls, COUNT, len(cls.__dict__))
    walk.pin(cls, "__bases__", cls.__bases__)
    where = f"class {cls.__qualname__}"
    meta = type(cls)
    unit.edges.append(("metaclass", walk.edge(meta, f"class {meta.__qualname__}", where)))
    for base in cls.__bases__:
        unit.edges.append(("base", walk.edge(base, f"class {base.__qualname__}", where)))
    content = dict(cls.__dict__)
    space = getattr(sys.modules.get(cls.__module__), "__dict__", {})
    for name, note in notes.items():
        unit.own += (name, annotation(note))
        unit.edges.append((name, walk.note(note, f"annotation of {name!r} in {where}", space)))
    for base in content.pop("__orig_bases__", ()):
        unit.own.append(annotation(base))
        unit.edges.append(("as written", walk.note(base, where)))
    if registered := registered_with(cls):
        walk.pins = None
        for other in registered:
            unit.edges.append(("registered", walk.edge(other, f"class {other.__qualname__}", where)))
    if "__dataclass_params__" in content:
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
    ours = not walk.by_value and walk.follows(cls.__module__)
    slots = content.get("__slots__", ())
    hidden = libraries.derived_names(cls).union([slots] if isinstance(slots, str) else slots)
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


# -- how values that hold code are written------------------------------------------------------------------------------


def _of_code(encoder: Encoder, value: Any) -> bytes:
    """Return what a function or class inside a value contributes. One that is being walked counts as "that one"."""
    value = plain(value)
    me, walks = identity(value), under_way.get()
    for distance, walk in enumerate(reversed(walks)):
        at = walk.index.get(me)
        if at is not None:
            walks[0].backs += 1
            return b"back %d %d" % (distance, at)
    if not walks:
        if encoder.budget is None:
            encoder.budget = Budget()
        if isinstance(value, type):
            return bytes.fromhex(class_digest(value, encoder.budget))
        found = bytes.fromhex(examine(value, project=_home, budget=encoder.budget).digest)
        return found if type(value) is not FunctionType else hashed(value.__name__, found)
    first, outer = walks[0], walks[-1]
    known = first.forms.get(id(value))
    if known is not None and known[0] is value:
        outer.met(known[2])
        return known[1]
    walk, backs = Walk(_describe, outer.project, outer.ignored), first.backs
    walk.by_value, walk.budget = outer.by_value, first.inner
    first.inner.spend(value, WALK)
    found = walk.run([("value", value)])
    outer.met(walk)
    if type(value) is FunctionType:
        found = hashed(value.__name__, found)
    if first.backs == backs:
        first.forms[id(value)] = (value, found, walk)
    return found


WALK = 50  #: work to walk a function again, of that in a `Budget`


def _entry(encoder: Encoder, value: Any, path: str) -> None:
    known = encoder.code.get(id(value))
    if known is None or known[0] is not value:
        try:
            known = encoder.code[id(value)] = (value, _of_code(encoder, value))
        except Unhashable as refusal:
            encoder.refuse_because(refusal, path)
        except Exhausted as exhausted:
            if under_way.get():
                raise
            encoder.refuse_because(Unhashable(f"{name_of(value)} {exhausted}"), path)
    encoder.tag("code", 1)
    encoder.data(known[1])


def _made_of(encoder: Encoder, value: Any, path: str) -> None:
    """Write a method of an object, or a partial: the object and the arguments are parts of the call like any other."""
    name = by_name(value)
    if name is not None or type(value) not in _OF_VALUES:
        _entry(encoder, value, path)
        return
    encoder.tag(f"made of {type(value).__qualname__}")
    for part in _OF_VALUES[type(value)]:
        encoder.add(getattr(value, part), path)
    encoder.attributes(dict(vars(value)) if type(value) is functools.partial else {}, path)


#: what is made of a function and of values
_OF_VALUES: dict[type, tuple[str, ...]] = {
    MethodType: ("__func__", "__self__"),
    BuiltinFunctionType: ("__name__", "__self__"),
    MethodWrapperType: ("__name__", "__self__"),
    functools.partial: ("func", "args", "keywords"),
}

for _kind in _OF_VALUES:
    writer_for(f"{_kind.__module__}.{_kind.__qualname__}", attributes=False, nested=True)(_made_of)
for _kind in (type, FunctionType, ModuleType, *(COMPOSITE.keys() - _OF_VALUES.keys()), *DESCRIPTORS):
    writer_for(f"{_kind.__module__}.{_kind.__qualname__}", attributes=False)(_entry)
for _dotted in ("numpy.ufunc", "jug_notebook.task.function.TaskFunction", *libraries.COMPOSITE):
    writer_for(_dotted, attributes=False)(_entry)
