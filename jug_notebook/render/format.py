"""Numbers, durations, sizes, values and what tasks wrote, made fit to be read: short, clean, escaped."""

from __future__ import annotations

import io
import re
import types
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from numbers import Real
from pathlib import PurePath
from typing import Any

from jug_notebook.errors import clean as clean

EXCERPT = 6_000  #: characters of a traceback or an output; the middle of longer ones is left out


_AGES = 1e12  #: seconds; no time is as long, but a store may hold any number


def duration(seconds: float) -> str:
    """Return seconds in two units at most: "40 µs", "0.4 ms", "12 ms", "3.2 s", "1 min 20 s", "2 h 5 min"."""
    if not seconds < _AGES:
        return "unknown time"
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        milli = seconds * 1000
        if 0 < milli < 0.0995:
            return f"{milli * 1000:.0f} µs"
        return f"{milli:.0f} ms" if milli >= 9.95 or milli == 0 else f"{milli:.1f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size_, small, small_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size_:
            rest = whole % size_ // small_size
            return f"{whole // size_} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def ago(seconds: float) -> str:
    """Return seconds in one unit, roughly: "just now", "12 s ago", "3 min ago"."""
    if seconds < 1:
        return "just now"
    if not seconds < _AGES:
        return "unknown time ago"
    for unit, size_ in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size_:
            return f"{int(seconds // size_)} {unit} ago"
    return f"{int(seconds)} s ago"


def size(count: float) -> str:
    """Return bytes in powers of ten: "96 B", "1.2 kB", "340 MB"."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            return f"{count:.1f} {unit}" if count < 9.95 else f"{count:,.0f} {unit}"
    raise AssertionError("unreachable")


def parse_duration(text: str) -> float:
    """Return seconds: of "90", "90s", "10min", "2h", "30d". Raises ValueError."""
    units = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
    return _amount(text, units, "a length of time; give seconds, or a value like 90s, 10min, 2h, 30d")


def parse_moment(text: str, now: float) -> float:
    """Return seconds since the epoch: of "2026-10-31", "2026-10-31 14:00" (local time), or "2h", that long before now.

    Raises ValueError.
    """
    with suppress(ValueError):
        return datetime.fromisoformat(text.strip()).timestamp()
    with suppress(ValueError):
        return now - parse_duration(text)
    raise ValueError(f"{text!r} is not a time; give a date as 2026-10-31 or '2026-10-31 14:00', or 2h for 2 hours ago")


def parse_size(text: str) -> int:
    """Return bytes: of "4096", "500MB", "2G" (powers of ten) or "2GiB" (of two). Raises ValueError."""
    units: dict[str, float] = {"": 1, "b": 1}
    for power, prefix in enumerate("kmgt", 1):
        units |= {prefix: 1000**power, f"{prefix}b": 1000**power, f"{prefix}ib": 1024**power}
    return int(_amount(text, units, "a size; give bytes, or a value like 500MB, 2G, 2GiB"))


def _amount(text: str, units: Mapping[str, float], expected: str) -> float:
    written = re.fullmatch(r"(.*?)\s*([A-Za-z]*)", text.strip())
    try:
        amount = float(written[1]) * units[written[2].lower()] if written else -1.0
    except (ValueError, KeyError):
        amount = -1.0
    if not 0 <= amount < float("inf"):
        raise ValueError(f"{text!r} is not {expected}")
    return amount


GPU, MEMORY = "gpu", "mem"  #: resources that mean something to workers
_RESOURCE = re.compile(r"[A-Za-z_][\w.-]*")
_CALLED = {"gpus": GPU, "memory": MEMORY}


def parse_resources(given: Any, error: type[Exception] = ValueError) -> tuple[tuple[str, float], ...]:
    """Return amounts by name, sorted: of "gpu=1,mem=8G", {"gpu": 0.5, "mem": "8G"} or pairs. Raises ``error``."""
    if isinstance(given, tuple):
        given = dict(given)
    if isinstance(given, str):
        words = [word.strip() for word in given.split(",") if word.strip()]
        if wrong := next((word for word in words if "=" not in word), None):
            raise error(f"{wrong!r} is not a resource; give names and amounts, as in gpu=1,mem=8G")
        given = {name.strip(): amount.strip() for name, _, amount in (word.partition("=") for word in words)}
    if not isinstance(given, Mapping):
        raise error(f'resources={given!r:.60}: give names and amounts, as in {{"gpu": 1, "mem": "8G"}}')
    found = {}
    for name, amount in given.items():
        if not isinstance(name, str) or not _RESOURCE.fullmatch(name):
            raise error(f"resource {name!r:.60}: a name is letters, digits and _, as in license=2")
        if name.lower() in _CALLED:
            raise error(f"resource {name!r} is called {_CALLED[name.lower()]!r}")
        found[name] = _resource(name, amount, error)
    return tuple(sorted(found.items()))


def _resource(name: str, given: Any, error: type[Exception]) -> float:
    written, amount = f"{name}={given!r:.60}", -1.0
    if isinstance(given, str):
        with suppress(ValueError):
            amount = float(given) if name == GPU or _is_number(given) else parse_size(given)
    elif isinstance(given, Real) and not isinstance(given, bool):
        amount = float(given)
    if not 0 < amount < float("inf"):
        raise error(f"{written}: give a number of more than 0, or a size as in mem=8G")
    if name == GPU and amount > 1 and amount != int(amount):
        raise error(f"{written}: give a whole number of GPUs, or a share of one, as 0.5")
    return amount


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def amount_of(name: str, amount: float) -> str:
    """Return "a GPU", "2 GPUs", "0.5 of a GPU", "8.0 GB of memory", "2 license"."""
    if name == MEMORY:
        return f"{size(amount)} of memory"
    if name != GPU:
        return f"{amount:g} {name}"
    return "a GPU" if amount == 1 else f"{amount:g} of a GPU" if amount < 1 else f"{amount:g} GPUs"


def shortage(
    resources: Sequence[tuple[str, float]], crews: Sequence[tuple[str, Sequence[tuple[str, float, float]]]]
) -> str:
    """Return what a task that needs these waits for, "a GPU: 4 of 4 in use on 2 hosts"; empty if a host has it free.

    ``crews``: for each, its host, and by name how much there is and how much of it is in use, by other crews, too.
    """
    have = [{name: (total, used) for name, total, used in amounts} for _, amounts in crews]
    if not resources or any(
        all(amount <= one.get(name, (0.0, 0.0))[0] - one.get(name, (0.0, 0.0))[1] for name, amount in resources)
        for one in have
    ):
        return ""
    for name, amount in resources:
        of_host: dict[str, tuple[float, float]] = {}  # crews of one host have the same
        for (host, _), one in zip(crews, have, strict=True):
            of_host[host] = max(of_host.get(host, (0.0, 0.0)), one.get(name, (0.0, 0.0)))
        if any(name in one and amount <= one[name][0] - one[name][1] for one in have):
            continue
        there = [one for one in of_host.values() if one[0] > 0]
        if not there:
            way = "--gpus 0,1" if name == GPU else f"--resources {name}={'8G' if name == MEMORY else f'{amount:g}'}"
            return f"{amount_of(name, amount)}: no worker's host has any; start workers with {way}"
        unit = size if name == MEMORY else "{:g}".format
        total, used = (sum(column) for column in zip(*there, strict=True))
        text = f"{amount_of(name, amount)}: {unit(used)} of {unit(total)} in use on {plural(len(there), 'host')}"
        largest = max(total for total, _ in there)
        return f"{text}; none has {unit(amount)}" if amount > largest else text
    return f"{' and '.join(amount_of(*one) for one in resources)} on one host"


def number(count: int) -> str:
    return f"{count:,}"


def plural(count: int, noun: str = "task") -> str:
    """ "1 task", "1,000 tasks"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def moment(at: float) -> str:
    """Return a time (seconds since the epoch) as local date and time."""
    try:
        return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a store may hold any number
        return "unknown time"


_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def escape(written: str) -> str:
    """Return text for HTML, also for an attribute."""
    return clean(written).translate(_MARKUP)


def excerpt(written: str, limit: int = EXCERPT) -> str:
    """Return beginning and end, of which the end is longer: mostly it says why something failed."""
    if len(written) <= limit:
        return written
    head, tail = written[: limit // 4], written[-(limit - limit // 4) :]
    return f"{head}\n… {number(len(written) - len(head) - len(tail))} characters left out …\n{tail}"


def elide(line: str, width: int) -> str:
    """Return one line of at most ``width`` characters; a longer one ends between two words, if one ends near."""
    line = " ".join(clean(line).split())
    if len(line) <= width:
        return line
    end = line.rfind(" ", width * 2 // 3, width)
    return line[: end if end > 0 else width - 1].rstrip(" ,;:·") + "…"


def elide_middle(text: str, width: int) -> str:
    """Return one line of at most ``width`` characters: of a longer name or path both ends, which tell it from others.

    They begin and end between two words of the name where that is near.
    """
    text = " ".join(clean(text).split())
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 5
    head = text[: width - 1 - tail]
    start, end = _EDGE.search(text[len(text) - tail :]), _EDGE.search(head[::-1])
    if end is not None and 0 < end.start() <= NEAR:
        head = head[: -end.start()]
    if start is not None and 0 < start.start() <= min(NEAR, tail // 3):
        tail -= start.start()
    return f"{head.rstrip('_ ')}…{text[len(text) - tail :] if tail > 0 else ''}"


_EDGE = re.compile(r"[^0-9A-Za-z]")
NEAR = 6  #: characters


def elide_call(text: str, width: int) -> str:
    """Return a call, "fit(n=3, mode='fast')", in ``width`` characters: function and first arguments stay readable."""
    text = " ".join(clean(text).split())
    found = None if len(text) <= width else _CALL.fullmatch(text)
    if found is None:
        return elide_middle(text, width)
    name, inside, after = found.groups()
    room = max(12, width - 2 - len(after))
    name = elide_middle(name, max(room // 2, room - len(inside)))
    return f"{name}({_elided_arguments(inside, room - len(name))}){after}"


_CALL = re.compile(r"([^()]+)\((.*)\)([^()]*)")
_ARGUMENT = re.compile(r", (?=\w+=)")  #: where the next one begins


def _arguments(text: str) -> list[str]:
    """Return the arguments of a call, as text, apart."""
    parts, at = [], 0
    for found in _ARGUMENT.finditer(text):
        part = text[at : found.start()]
        if part.count("(") <= part.count(")"):  # else it is within an argument that is a call
            parts.append(part)
            at = found.end()
    return [*parts, text[at:]]


def _elided_arguments(text: str, width: int) -> str:
    """Return the first few arguments of a call, and "…" for the others; of a long one both ends."""
    if len(text) <= width:
        return text
    first, *others = _arguments(text)
    shorter = elide_middle(first, width - (3 if others else 0))
    for other in others:
        if len(shorter) + len(other) + 5 > width:
            break
        shorter += f", {other}"
    return f"{shorter}, …" if others else shorter


def elide_columns(line: str, width: int) -> str:
    """Return a line cut to ``width`` columns of a terminal, with its spaces."""
    if columns(line) <= width:
        return line
    left = width - 1
    kept = []
    for character in line:
        left -= columns(character)
        if left < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


def columns(written: str) -> int:
    """Return how many columns it takes in a terminal."""
    if written.isascii():
        return len(written)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in written)


def fitted(text: str, columns: int, rows: int) -> str:
    """Return as much of a picture as can be redrawn in a terminal of that size: no line wraps, none scrolls away."""
    lines = [elide_columns(line, columns) for line in text.splitlines()]
    if len(lines) >= rows:
        kept = max(1, rows - 2)
        lines = [*lines[:kept], elide_columns(f"… {len(lines) - kept} more lines: make the window taller", columns)]
    return "\n".join(lines)


def redrawn(before: str, text: str, width: int) -> str:
    """Return what draws ``text`` over ``before`` in a terminal, which may have become narrower meanwhile.

    Line by line: a screen that is cleared goes into the scrollback.
    """
    up = sum(max(1, -(-columns(line) // width)) for line in before.splitlines())
    return (f"\r\x1b[{up}A" if up else "") + "".join(f"{line}\x1b[K\n" for line in text.splitlines()) + "\x1b[J"


# -- values in a line: these never raise and are fast, whatever a value's own repr does --------------------------------


WIDTH = 80
LINE = 120
_MANY = 100


def brief(value: Any, width: int = 40, depth: int = 2) -> str:
    """Return a repr of at most ``width`` characters."""
    try:
        text = _brief(value, width, depth)
        return elide_call(text, width) if hasattr(type(value), "__jug_reference__") else elide_middle(text, width)
    except Exception:  # a repr of the user's may do anything
        return f"<{type(value).__name__}>"


def _brief(value: Any, width: int, depth: int) -> str:
    kind = type(value)
    if kind is str or kind is bytes:
        return repr(value if len(value) <= 2 * width else value[:width] + value[-width:])
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
    room = width - len(f"{left}, …{right}")
    for item in value:
        space = room if not parts or type(item) in _BRACKETS else width  # what holds items can be shortened
        text = _within(item, space, depth)
        if kind is dict:
            text += ": " + _within(value[item], max(room - len(text) - 2, 12), depth)
        if parts and (len(text) > room or len(parts) >= 8):  # whole items, and the first in any case
            parts.append("…")
            break
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
        return elide(_summary(value), WIDTH)
    except Exception:  # a property or length of the user's may do anything
        return elide_middle(type(value).__name__, WIDTH)


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
        text = f"{label}={brief(str(value) if isinstance(value, PurePath) else value, 60)}"
        parts.append(text)
        room -= len(text) + 2
        if room < 0:
            break
    return _elided_arguments(" ".join(", ".join(parts).split()), LINE)


def arguments_by_name(text: str) -> dict[str, str] | None:
    """Return the arguments in a text that `describe_arguments` has made, by name; None where some were left out."""
    found: dict[str, str] = {}
    depth, quote, start = 0, "", 0
    pieces: list[str] = []
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[at - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "," and not depth:
            pieces.append(text[start:at])
            start = at + 2
    for piece in [*pieces, text[start:]]:
        name, equals, value = piece.partition("=")
        if not equals or not name.isidentifier():
            return None
        found[name] = value
    return None if quote or depth else found


#: modules of what means something in one process only
_LIVE = frozenset({"_thread", "threading", "multiprocessing", "queue", "_queue", "asyncio", "_asyncio", "concurrent"})


def advice(value: Any) -> str:
    """Return what to do instead of storing this value."""
    kind = type(value)
    if isinstance(value, types.GeneratorType | types.AsyncGeneratorType):
        return "make it a list: list(…)"
    if isinstance(value, types.CoroutineType):
        return "await it and store what comes out"
    if isinstance(value, io.IOBase):
        return "pass its path, and open it inside the task"
    if kind.__module__.partition(".")[0] in _LIVE:
        return "make it inside the task: it means nothing in another process"
    if kind.__module__ in ("socket", "_socket", "sqlite3", "ssl"):
        return "open it inside the task: it means nothing in another process"
    return "store its parts, or give its class __reduce__"


def near(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?", or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, [name for name in known if not name.startswith("_")], n=1)
    return f"; did you mean {close[0]}?" if close else ""
