"""Numbers, durations, sizes and what tasks wrote, made fit to be read: short, clean, escaped."""

from __future__ import annotations

import re
import unicodedata
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
