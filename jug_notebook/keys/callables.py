"""What kind of thing a callable is for a code digest: does it travel, does it count by name, what is it made of?

These are pure questions about functions, classes, methods and the like; nothing is evaluated or called.
"""

from __future__ import annotations

import abc
import ast
import collections
import dataclasses
import functools
import gc
import importlib
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from jug_notebook.errors import Unhashable
from jug_notebook.keys import advice, libraries, modules, syntax

if TYPE_CHECKING:
    import inspect

ABSENT = object()
#: the type of what ``functools.cache`` and ``lru_cache`` return
CACHED = type(functools.lru_cache(len))
SCALARS = frozenset({int, float, bool, str, bytes, complex, type(None), type(Ellipsis)})

#: attributes of a class in which a version of Python keeps annotations, or what makes them when they are first read
OF_ANNOTATIONS = frozenset(
    {
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__classdictcell__", "__conditional_annotations__"),
    }
)

#: attributes of a class that say where it is defined, or that Python derives from the others
DERIVED = frozenset(
    {
        *libraries.DERIVED,
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__parameters__"),
        *("__slotnames__", "__init_subclass__", "__subclasshook__"),
        *("__static_attributes__", "__dataclass_fields__", "__dataclass_params__"),
        *("_abc_impl", "__abstractmethods__", *OF_ANNOTATIONS),
        *("_member_names_", "_member_map_", "_value2member_map_", "_member_type_", "_generate_next_value_"),
        *("_unhashable_values_", "_hashable_values_", "_value_repr_", "_use_args_", "_use_default_factory_"),
        *("__new_member__", "_new_member_", "_inverted_", "_flag_mask_", "_singles_mask_", "_all_bits_"),
        *("_unhashable_values_map_", "__protocol_attrs__", "__callable_proto_members_only__"),
        *("__non_callable_proto_members__", "__mutable_keys__", "__readonly_keys__", "__closed__", "__extra_items__"),
    }
)


def plain(value: Any) -> Any:
    """Return the plain function of a task function; anything else as it is."""
    for _ in range(100):
        kind = type(value)
        if kind is FunctionType or kind is type or kind in SCALARS:
            break
        found = _static(value, "__jug_function__")
        if found is ABSENT or found is None:
            break
        value = found
    return value


def _static(value: Any, name: str) -> Any:
    """Return an attribute of ours without calling a ``__getattr__``."""
    kind = type(value)
    if any(name in base.__dict__ for base in kind.__mro__):
        return getattr(value, name, ABSENT)
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return ABSENT
    return own.get(name, ABSENT) if type(own) is dict and kind is not ModuleType else ABSENT


def travels(value: Any) -> bool:
    """Return True for functions and classes that a worker can't import: they travel by value."""
    name: str = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or ""
    home = getattr(value, "__module__", None)
    if home is None or home in modules.scripts:
        return True
    module = sys.modules.get(home)
    if module is None:
        return True
    found: Any = module
    for step in name.split("."):
        found = getattr(found, step, None)
        if found is None:
            return True
    return found is not value


def global_names(code: CodeType) -> tuple[str, ...]:
    """Return the global names that a code object, with all that is nested in it, reads or writes."""
    reads = syntax.reads(code)
    if not reads.writes and not reads.maybe:
        return reads.names
    return tuple(sorted({*reads.names, *reads.maybe, *reads.writes}))


def source_of(function: Callable[..., Any]) -> tuple[str, str] | None:
    """Return the file name in a function's code and the whole text of that file or cell; None if there is none."""
    code = getattr(plain(function), "__code__", None)
    if not isinstance(code, CodeType):
        return None
    text = syntax.text_of(code.co_filename)
    return (code.co_filename, text) if text else None


def form_of(function: FunctionType) -> bytes:
    """Return the digest of a function's own source, which travels with the function; empty if there is none."""
    return syntax.form(function.__code__, functools.partial(is_ours, function.__globals__)).digest


def name_of(value: Any) -> str:
    """Return the dotted name of a thing, the same in each process."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", repr(type(value)))
    return f"{public_home(value, str(name))}.{name}"


def public_home(value: Any, name: str) -> str:
    """Return the outermost module that has a thing: where inside a package it is defined may change."""
    home = getattr(value, "__module__", None) or ""
    if not isinstance(home, str) or "." not in home:
        return str(home)
    steps = home.split(".")
    for length in range(1, len(steps)):
        outer = ".".join(steps[:length])
        if getattr(sys.modules.get(outer), "__dict__", {}).get(name) is value:
            return outer
    return home


def annotations_of(thing: FunctionType | type) -> Mapping[str, Any]:
    """Return the annotations of a function, or a class's own; as texts where names in them are not defined (yet)."""
    if isinstance(thing, type) and OF_ANNOTATIONS.isdisjoint(thing.__dict__):
        return {}
    try:
        return thing.__annotations__
    except Exception:  # from Python 3.14 on they are evaluated now, and may refer to what only a type checker imports
        library = importlib.import_module("annotationlib")
        texts: Mapping[str, Any] = library.get_annotations(thing, format=library.Format.STRING)
        return texts


def with_annotations(function: FunctionType) -> FunctionType:
    """Return a function whose annotations can be read: itself, or a copy that has them as texts."""
    try:
        _ = function.__annotations__
    except Exception:  # from Python 3.14 on they are evaluated now
        notes = annotations_of(function)
    else:
        return function
    copied = FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        setattr(copied, name, getattr(function, name))
    copied.__dict__.update(function.__dict__)
    copied.__annotations__ = dict(notes)
    return copied


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function. Names in its annotations need not be defined. Raises as `inspect` does."""
    import inspect  # slow, and not needed in workers

    if sys.version_info < (3, 14):
        return inspect.signature(function)
    return inspect.signature(function, annotation_format=importlib.import_module("annotationlib").Format.FORWARDREF)


def annotation(note: Any) -> str:
    """Return an annotation as text that is the same in each process."""
    if isinstance(note, str | typing.ForwardRef):
        return note if isinstance(note, str) else note.__forward_arg__
    inside = kind_of_alias(note)
    if inside is not None:
        return f"{inside[0]}[{', '.join(map(annotation, inside[1]))}]"
    if isinstance(note, type):
        return f"{note.__module__}.{note.__qualname__}"
    return repr(note) if type(note) in SCALARS or type(note).__module__ == "typing" else name_of(type(note))


def kind_of_alias(note: Any) -> tuple[str, tuple[Any, ...]] | None:
    """Return the kind and parts of ``list[int]``, ``int | None`` and the like; None for anything else."""
    kind = type(note)
    if kind.__module__ not in ("types", "typing", "collections.abc") or not hasattr(note, "__args__"):
        return None
    origin = getattr(note, "__origin__", None)
    if origin is typing.Union or isinstance(note, types.UnionType):
        return "Union ", note.__args__
    parts = (*((origin,) if isinstance(origin, type) else ()), *note.__args__, *getattr(note, "__metadata__", ()))
    return f"{kind.__name__} {origin if not isinstance(origin, type) else ''}", parts


def registered_with(cls: type) -> list[type]:
    """Return the classes registered with an abstract base class, sorted by name."""
    if "_abc_impl" not in cls.__dict__:
        return []
    found = [other for ref in abc._get_dump(cls)[0] if (other := ref()) is not None]  # type: ignore[attr-defined]
    return sorted(found, key=name_of)


def generated(cls: type, method: Any) -> bool:
    """Return True for methods that dataclass, enum, namedtuple or attrs made from what counts anyway."""
    if isinstance(method, staticmethod | classmethod):
        method = method.__func__
    if type(method) is _FIELD:
        return True
    if type(method) is not FunctionType:
        return False
    inner = method.__dict__.get("__wrapped__", method)  # __repr__ comes with a guard against recursion
    if type(inner) is not FunctionType:
        return False
    if inner.__name__ == "__hash__" and inner.__code__.co_filename.startswith("<attrs generated"):
        return True  # a different number in each process is written in it
    if inner.__code__.co_filename == "<string>":  # so is what a user's own exec() makes
        made = "__dataclass_params__" in cls.__dict__ or (issubclass(cls, tuple) and "_fields" in cls.__dict__)
        return made and inner.__name__ in _GENERATED
    return inner.__code__.co_filename in _MAKERS


_FIELD = type(collections.namedtuple("_FIELD", "x").x)  # type: ignore[attr-defined]
_GENERATED = frozenset(
    {
        *("__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__setattr__"),
        *("__delattr__", "__replace__", "__new__", "__create_fn__"),
    }
)
_MAKERS = frozenset(maker.__code__.co_filename for maker in (dataclasses.field, collections.namedtuple, typing.cast))


def defaults(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the defaults of a function's arguments, (name, value)."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    yield from zip(names[len(names) - len(defaults) :], defaults, strict=False)
    yield from sorted((function.__kwdefaults__ or {}).items())


def attributes(function: FunctionType) -> dict[str, Any]:
    """Return the attributes of a function that users set."""
    return {name: value for name, value in function.__dict__.items() if not name.startswith("__")}


def is_ours(space: Mapping[str, Any], decorator: ast.expr) -> bool:
    """Return True for our own decorators: they say how a task runs, not what it computes. Evaluates nothing."""
    head, *steps = advice.dotted(decorator.func if isinstance(decorator, ast.Call) else decorator) or ("",)
    at: Any = space.get(head)
    for step in steps:
        at = at.__dict__.get(step) if isinstance(at, ModuleType) else None
    return modules.root_of(getattr(at, "__module__", None) or "") in ("jug_notebook", "kernel_ext")


DESCRIPTORS = frozenset(
    {
        *(types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType),
        *(types.GetSetDescriptorType, types.MemberDescriptorType),
    }
)


def by_name(value: Any) -> str | None:
    """Return the name of a thing that is made in C; None for anything else."""
    kind = type(value)
    if kind in (types.BuiltinFunctionType, types.MethodWrapperType):
        owner = value.__self__
        if owner is None or isinstance(owner, ModuleType):
            return f"{getattr(owner, '__name__', value.__module__)}.{value.__qualname__}"
        return f"{name_of(owner)}.{value.__name__}" if isinstance(owner, type) else None
    if kind in DESCRIPTORS:
        return f"{name_of(value.__objclass__)}.{value.__name__}"
    return ufunc_name(value) if is_ufunc(kind) else None


def is_ufunc(kind: type) -> bool:
    return kind.__name__ == "ufunc" and kind.__module__ == "numpy"


def ufunc_name(value: Any) -> str | None:
    """Return the dotted name of a numpy ufunc (several packages may have one of a name); None if no module has it."""
    known = _ufuncs.get(id(value))
    if known is None and (home := _home_of(value)) is not None:
        known = _ufuncs[id(value)] = (value, f"{home}.{value.__name__}")
    return known[1] if known is not None else None


_ufuncs: dict[int, tuple[Any, str]] = {}


def _home_of(value: Any) -> str | None:
    name: str = value.__name__
    for home, module in [
        ("numpy", sys.modules.get("numpy")),
        *sys.modules.items(),
    ]:  # the module that made it was imported first
        if home not in modules.scripts and getattr(module, "__dict__", {}).get(name) is value:
            steps = home.split(".")
            outer = (".".join(steps[:length]) for length in range(1, len(steps)))
            return next((o for o in outer if getattr(sys.modules.get(o), "__dict__", {}).get(name) is value), home)
    return None


def ufunc_fields(value: Any) -> list[tuple[str, Any]]:
    """Return what ``numpy.frompyfunc`` made a function from. Raises Unhashable if that can't be seen."""
    inside = [one for one in gc.get_referents(value) if callable(one)]
    if len(inside) != 1:
        raise Unhashable(
            f"{value!r} isn't a function of a module, and what it calls can't be seen. Pass the function that it was "
            f"made from."
        )
    return [("function", inside[0]), ("arguments", value.nin), ("results", value.nout), ("identity", value.identity)]


def identity(value: Any) -> object:
    """Return what identifies a thing: a bound method is made again at each access."""
    kind = type(value)
    if kind is types.MethodType:
        return id(value.__func__), id(value.__self__)
    if kind is types.BuiltinFunctionType or kind is types.MethodWrapperType:
        return value.__name__, id(value.__self__)
    return id(value)


def dispatches(function: FunctionType) -> bool:
    """Return True if a function was made by ``functools.singledispatch``."""
    return "registry" in function.__dict__ and function.__code__ is _DISPATCH


_DISPATCH = functools.singledispatch(plain).__code__  # type: ignore[attr-defined]


def _fields_of(*names: str) -> Callable[[Any], list[tuple[str, Any]]]:
    return lambda value: [(name, getattr(value, name, None)) for name in names]


def _partial_fields(value: Any) -> list[tuple[str, Any]]:
    return [
        ("func", value.func),
        *((f"argument {number}", item) for number, item in enumerate(value.args)),
        *((f"argument {name}", item) for name, item in sorted(value.keywords.items())),
        *sorted(vars(value).items()),
    ]


#: things that are made of others, and how to take them apart
COMPOSITE: dict[type, Callable[[Any], list[tuple[str, Any]]]] = {
    types.MethodType: _fields_of("__func__", "__self__"),
    types.BuiltinFunctionType: _fields_of("__name__", "__self__"),  # "abc".join
    types.MethodWrapperType: _fields_of("__name__", "__self__"),
    functools.partial: _partial_fields,
    functools.partialmethod: _partial_fields,
    functools.cached_property: _fields_of("func"),
    functools.singledispatchmethod: _fields_of("func", "dispatcher"),
    CACHED: _fields_of("__wrapped__"),
    property: _fields_of("fget", "fset", "fdel"),
    staticmethod: _fields_of("__func__"),
    classmethod: _fields_of("__func__"),
}


def composite(kind: type) -> type | None:
    """Return the kind of composite thing that this is, or is derived from; None if it isn't one."""
    if is_ufunc(kind):
        COMPOSITE.setdefault(kind, ufunc_fields)
    if (found := libraries.composite(kind)) is not None:
        COMPOSITE.setdefault(*found)
    return next((base for base in kind.__mro__ if base in COMPOSITE), None)


#: those whose parts include all of their ``__dict__``
PARTS_IN_DICT = frozenset({functools.partial, functools.partialmethod})


def added(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that users added to a composite thing, not those of Python itself."""
    for name, item in sorted(getattr(value, "__dict__", {}).items()):
        if not name.startswith("__") and name not in ("func", "attrname", "lock", "dispatcher", "cache_parameters"):
            yield name, item


#: types of annotations whose text is all there is to them
LITERATE: frozenset[type] = frozenset(
    {types.GenericAlias, types.UnionType, *map(type, (typing.Union[int, str], typing.Callable[[], int], typing.Any))}
)
