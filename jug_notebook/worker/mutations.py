"""What calls leave behind in the function that was called: changed defaults, globals, closures, class attributes.

A worker keeps the functions that it loaded. The next task must find them as its key says, not as the last left them.
"""

from __future__ import annotations

import dis
import enum
import functools
import io
import pickle
import types
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, TypeAlias

from blake3 import blake3

from jug_notebook import system
from jug_notebook.keys import callables, syntax
from jug_notebook.keys import digest as canon
from jug_notebook.keys.register import instance_dict

LONG = 1000  #: longer lists and tables are not searched for functions

Place: TypeAlias = dict[str, Any]  #: what something holds, by name

_WRAPPERS = (staticmethod, classmethod, property, functools.cached_property, callables.CACHED)
_HELD: dict[Any, tuple[str, ...]] = {  #: what wrappers hold, by their type
    property: ("fget", "fset", "fdel"),
    callables.CACHED: ("__wrapped__",),
    staticmethod | classmethod: ("__func__",),
    types.MethodType: ("__func__", "__self__"),
    functools.partial: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
}
_CODE = (FunctionType, type, types.ModuleType, types.BuiltinFunctionType, types.MethodWrapperType, *_WRAPPERS)
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)
_PLAIN: frozenset[type] = frozenset({int, float, bool, str, bytes, complex, type(None), type(Ellipsis), range})
_FIRM: tuple[type, ...] = (*_PLAIN, enum.Enum, *_CODE, *_SLOTS)

_BINDING = frozenset({"STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL"})
_BINDING_CELLS = frozenset({"STORE_DEREF", "DELETE_DEREF"})
_BINDING_BY_NAME = frozenset({"setattr", "delattr", "__setattr__", "__dict__", "vars", "globals", "exec", "eval"})


class Traces:
    """Tells whether a loaded function is still as it was."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        met = list(_all_in(function))
        binding = any(isinstance(one, FunctionType) and _is_binding(one.__code__) for one, _ in met)
        self._firm = not binding and all(_is_firm(what) for _, place in met for what in place.values())
        self._before = None if self._firm else self._pickled()
        self._named = None if self._before is None else self._digest()

    def none(self) -> bool:
        """Did calls leave none? Where that is unknown, they did."""
        if self._firm:
            return True
        now = self._pickled()
        if now is None or now == self._before:
            return now is not None
        if self._named is None or self._named != self._digest():
            return False
        self._before = now  # it is worth the same: an object keeps what it has computed
        return True

    def _pickled(self) -> bytes | None:
        """What is there, in a form that holds in this process: it is quick to make."""
        file, large = io.BytesIO(), list[pickle.PickleBuffer]()
        try:
            _Form(file, 5, buffer_callback=large.append).dump([place for _, place in _all_in(self._function)])
            whole = blake3(file.getvalue())
            for buffer in large:
                with buffer.raw() as raw:
                    whole.update(system.hashed([raw]))
            return whole.digest()
        except Exception:  # it can't be pickled, or says so in its own way
            return None

    def _digest(self) -> bytes | None:
        places = [place for _, place in _all_in(self._function)]
        digested = [
            {name: _what_runs(what) if isinstance(what, _CODE + _SLOTS) else what for name, what in place.items()}
            for place in places
        ]
        try:
            return canon.digest(digested)
        except Exception:  # it can't be named, or a library's own type raises what it likes
            return None


class _Form(pickle.Pickler):
    """Pickles what is held; code is only distinguished from other code."""

    def reducer_override(self, value: Any) -> Any:
        if value is str or not isinstance(value, _CODE + _SLOTS):
            return NotImplemented
        return str, (_what_runs(value),)


def _all_in(function: Any) -> Iterator[tuple[Any, Place]]:
    """All that a function leads to, and what it holds: only what came with it, nothing of modules."""
    seen: dict[int, Any] = {}
    todo = [function]
    while todo:
        one = todo.pop()
        if type(one) in _PLAIN or id(one) in seen or isinstance(one, enum.Enum):
            continue
        seen[id(one)] = one
        place = _place(one)
        yield one, place
        todo += place.values()
        if not isinstance(one, _CODE):
            todo.append(type(one))
            if isinstance(one, dict | list | tuple) and len(one) <= LONG:
                inside = one.values() if isinstance(one, dict) else one
                if not _PLAIN.issuperset(map(type, inside)):
                    todo += inside


def _place(one: Any) -> Place:
    if isinstance(one, FunctionType):
        own = callables.travels(one) and not syntax.of_library(one.__code__.co_filename)
        return _of_function(one) if own else {}
    if isinstance(one, type):
        return _of_class(one) if callables.travels(one) else {}
    for kinds, names in _HELD.items():
        if isinstance(one, kinds):
            return {name: getattr(one, name) for name in names}
    return {} if isinstance(one, _CODE) else {name: what for name, what in instance_dict(one).items() if callable(what)}


def _of_function(function: FunctionType) -> Place:
    space = function.__globals__
    found = {f"global {name}": space[name] for name in callables.global_names(function.__code__) if name in space}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[f"cell {name}"] = cell.cell_contents
        except ValueError:  # not set
            continue
    found |= {f"default {number}": what for number, what in enumerate(function.__defaults__ or ())}
    found |= {f"default {name}": what for name, what in (function.__kwdefaults__ or {}).items()}
    return found | {f"attribute {name}": what for name, what in function.__dict__.items()}


def _of_class(cls: type) -> Place:
    hidden = ("__", "_") if issubclass(cls, enum.Enum | tuple) else ("__", "_abc_")
    return {name: what for name, what in cls.__dict__.items() if not name.startswith(hidden)}


def _what_runs(code: Any) -> str:
    """A class that was filled again has other functions that do the same."""
    for inner in ("__func__", "__wrapped__", "fget", "func"):
        if isinstance(code, _WRAPPERS) and hasattr(code, inner):
            code = getattr(code, inner)
    return f"code {hash(code.__code__)}" if isinstance(code, FunctionType) else f"{id(code)}"


def _is_firm(value: Any) -> bool:
    kind = type(value)
    return kind in _PLAIN or (all(map(_is_firm, value)) if kind in (tuple, frozenset) else isinstance(value, _FIRM))


@functools.lru_cache(1000)
def _is_binding(code: CodeType) -> bool:
    """May it bind something anew that outlives its call?"""
    for one in syntax.nested(code):
        if not _BINDING_BY_NAME.isdisjoint(one.co_names):
            return True
        before = ""
        for step in dis.get_instructions(one):
            if step.opname == "STORE_ATTR" and before == "self":
                continue  # of an object, which is looked at where it is
            if step.opname in _BINDING or (step.opname in _BINDING_CELLS and step.argval in one.co_freevars):
                return True
            before = step.argval if "LOAD_FAST" in step.opname else ""  # newer Pythons load two at a time
            before = before[-1] if isinstance(before, tuple) else before
    return False
