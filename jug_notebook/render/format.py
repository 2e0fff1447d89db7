"""Numbers, durations, sizes and what tasks wrote, made fit to be read: short, clean, escaped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime

EXCERPT = 6_000  #: characters of a traceback or an output; the middle of longer ones is left out


def duration(seconds: float) -> str:
    """Return seconds in two units at most: "40 µs", "0.4 ms", "12 ms", "3.2 s", "1 min 20 s", "2 h 5 min"."""
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
    return _amount(text, units, "a length of time; give seconds, or as in 90s, 10min, 2h, 30d")


def parse_size(text: str) -> int:
    """Return bytes: of "4096", "500MB", "2G" (powers of ten) or "2GiB" (of two). Raises ValueError."""
    units: dict[str, float] = {"": 1, "b": 1}
    for power, prefix in enumerate("kmgt", 1):
        units |= {prefix: 1000**power, f"{prefix}b": 1000**power, f"{prefix}ib": 1024**power}
    return int(_amount(text, units, "a size; give bytes, or as in 500MB, 2G, 2GiB"))


def _amount(text: str, units: Mapping[str, float], expected: str) -> float:
    written = re.fullmatch(r"(.*?)\s*([A-Za-z]*)", text.strip())
    try:
        amount = float(written[1]) * units[written[2].lower()] if written else -1.0
    except (ValueError, KeyError):
        amount = -1.0
    if not 0 <= amount < float("inf"):
        raise ValueError(f"{text!r} is not {expected}")
    return amount


def number(count: int) -> str:
    return f"{count:,}"


def plural(count: int, noun: str = "task") -> str:
    """ "1 task", "1,000 tasks"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def moment(at: float) -> str:
    """Return a time (seconds since the epoch) as local date and time."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = {code: None for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys((0x7F, *range(0x80, 0xA0)))
_BIDI = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))  # could make a line read as another
_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def clean(written: str) -> str:
    """Return what a task wrote without colours and control characters; of redrawn lines, their last state."""
    written = _ESCAPES.sub("", written).replace("\r\n", "\n")
    if "\r" in written:
        written = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in written.split("\n"))
    return written.translate(_CONTROLS).translate(_BIDI)


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
    """Return one line of at most ``width`` characters."""
    line = " ".join(clean(line).split())
    return line if len(line) <= width else line[: width - 1] + "…"


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
