"""Short descriptions of values. They never raise and are fast, whatever a value's own repr does."""

from __future__ import annotations

import io
import types
from collections.abc import Sequence
from typing import Any

from jug_notebook.render.format import number, size

WIDTH = 80
LINE = 120
_MANY = 100


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def brief(value: Any, width: int = 40, depth: int = 2) -> str:
    """Return a repr of at most ``width`` characters."""
    try:
        return _cut(_brief(value, width, depth), width)
    except Exception:  # a repr of the user's may do anything
        return f"<{type(value).__name__}>"


def _brief(value: Any, width: int, depth: int) -> str:
    kind = type(value)
    if kind is str or kind is bytes:
        return repr(value) if len(value) <= width else repr(value[:width])
    if kind is int:
        return repr(value) if value.bit_length() < 400 else f"int of {number(value.bit_length())} bits"
    if kind in (list, tuple, set, frozenset, dict):
        return _container(value, width, depth)
    if kind in (float, bool, complex, type(None)):
        return repr(value)
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return value.__qualname__
    if isinstance(value, types.ModuleType):
        return value.__name__
    if hasattr(kind, "__jug_reference__"):
        return repr(value)
    if hasattr(kind, "__jug_brief__"):
        text: str = value.__jug_brief__()
        return text
    measured = _measured(value)
    if measured:
        return f"<{measured}>"
    if kind.__dict__.get("__repr__", kind.__repr__) == object.__repr__ or not _light(value):
        return f"<{kind.__name__}>"
    return repr(value)


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


def _container(value: Any, width: int, depth: int) -> str:
    kind: type = type(value)
    left, right = _BRACKETS[kind]
    if not value:
        return f"{kind.__name__}()" if kind in (set, frozenset) else left + right
    if depth == 0:
        return f"{left}…{right}"
    parts: list[str] = []
    room = width
    for item in value:
        if room <= 0 or len(parts) >= 8:
            parts.append("…")
            break
        text = _within(item, room, depth)
        if kind is dict:
            text += ": " + _within(value[item], room, depth)
        parts.append(text)
        room -= len(text) + 2
    inside = ", ".join(parts) + ("," if kind is tuple and len(value) == 1 else "")
    return left + inside + right


def _within(value: Any, room: int, depth: int) -> str:
    return brief(value, max(room, 8), depth - 1)


def _light(value: Any) -> bool:
    """Is its repr fast? Not if it holds many items."""
    held = getattr(value, "__dict__", None)
    parts = list(held.values()) if isinstance(held, dict) else [value]
    if isinstance(value, list | tuple | dict | set | frozenset | str | bytes | bytearray):
        parts.append(value)
    return len(parts) <= _MANY and all(not hasattr(type(part), "__len__") or len(part) <= _MANY for part in parts)


def _measured(value: Any) -> str:
    """Return type, shape and size of an array or table; nothing for anything else."""
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    if root == "pandas" and kind.__name__ == "DataFrame":
        columns = ", ".join(str(name) for name in value.columns[:20])
        return f"DataFrame {number(len(value))} rows × {len(value.columns)} columns: {columns}"
    if root == "pandas" and kind.__name__ == "Series":
        return f"Series {value.dtype} of {number(len(value))}"
    if root in ("numpy", "torch", "jax", "cupy") and hasattr(value, "dtype") and len(value.shape):
        return f"{kind.__name__} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}, {size(value.nbytes)}"
    if hasattr(value, "shape") and hasattr(value, "columns"):
        return f"{kind.__name__} {value.shape}"
    return ""


def summarise(value: Any) -> str:
    """Describe a value in at most 80 characters: "ndarray float64 (3, 4), 96 B", "list of 99", "int 25"."""
    try:
        return _cut(_summary(value), WIDTH)
    except Exception:  # a property or length of the user's may do anything
        return _cut(type(value).__name__, WIDTH)


def _summary(value: Any) -> str:
    kind = type(value)
    if value is None:
        return "None"
    if kind in (bytes, bytearray):
        return f"{kind.__name__} {size(len(value))}"
    if kind is str and len(value) > 50:
        return f"str of {number(len(value))}: {value[:50]!r}"
    if kind is dict:
        keys = ", ".join(brief(key, 20) for key, _ in zip(value, range(6), strict=False))
        return f"dict of {number(len(value))}" + (f": {keys}" if keys else "")
    measured = _measured(value)
    if measured:
        return measured
    if isinstance(value, list | tuple | set | frozenset | dict):
        short = brief(value, 40) if len(value) <= 8 and hasattr(kind, "_fields") else ""
        return short or f"{kind.__name__} of {number(len(value))}"
    text = brief(value, WIDTH)
    return text if text.startswith((kind.__name__, "<")) else f"{kind.__name__} {text}"


def describe_arguments(arguments: Sequence[tuple[str, Any]]) -> str:
    """Return a call's arguments in at most 120 characters: "n=3, mode='fast'"."""
    parts: list[str] = []
    room = LINE
    for label, value in arguments:
        text = f"{label}={brief(value, 60)}"
        parts.append(text)
        room -= len(text) + 2
        if room < 0:
            break
    return _cut(", ".join(parts), LINE)


def advice(value: Any) -> str:
    """Return what to do instead of storing this value."""
    kind = type(value)
    if isinstance(value, types.GeneratorType | types.AsyncGeneratorType):
        return "make it a list: list(…)"
    if isinstance(value, types.CoroutineType):
        return "await it and store what comes out"
    if isinstance(value, io.IOBase):
        return "pass its path, and open it inside the task"
    if kind.__module__ in ("_thread", "threading", "multiprocessing.synchronize"):
        return "make it inside the task: it means nothing in another process"
    if kind.__module__ in ("socket", "_socket", "sqlite3", "ssl"):
        return "open it inside the task: it means nothing in another process"
    return "store its parts, or give its class __reduce__"
