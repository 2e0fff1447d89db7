"""Files as arguments, hashed by their content, or by size and time; the function gets the path."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import PurePath
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import BadTask, FileChanged, OnlyAPath
from jug_notebook.keys import advice
from jug_notebook.keys.register import instance_dict
from jug_notebook.task.context import in_task

PathLike: TypeAlias = "str | os.PathLike[str]"

SETTLED = 0.05  #: seconds after its last change from which on a further change must show in a file's times,
COARSE = 2.1  #: where these are whole seconds
KEPT = 10_000  #: files whose digests are remembered
TRIES = 100  #: values without a path, after which an argument is no longer checked
PARTS = 200  #: parts of a value that are looked at,
FEW = 8  #: and possible paths among them that are looked up

_Mark: TypeAlias = tuple[int, int, int]
_known: dict[tuple[int, int], tuple[_Mark, bytes]] = {}  #: (device, inode) -> size and times, digest


def content(path: PathLike, clock: Clock = CLOCK) -> bytes:
    """Return the digest of a file's content (20 bytes). Read again only when its size, times or inode change."""
    place = os.fspath(path)
    for _ in range(3):
        about = os.stat(place)
        mark, now = _mark(about), clock.now()
        known = _known.get((about.st_dev, about.st_ino))
        if known is not None and known[0] == mark:
            return known[1]
        try:
            digest: bytes = system.hasher(about.st_size).update_mmap(place).digest(20)
        except IsADirectoryError:
            raise BadTask(f"{place} is a folder; pass its files, as jn.file(p) for each") from None
        if _mark(os.stat(place)) == mark:
            coarse = about.st_mtime_ns % 1_000_000_000 == 0
            if now - max(about.st_mtime, about.st_ctime) > (COARSE if coarse else SETTLED):
                if len(_known) >= KEPT:
                    _known.clear()
                _known[about.st_dev, about.st_ino] = mark, digest
            return digest
    raise BadTask(f"{place} changes while it is read, so it can't be hashed; wait until it is written")


def _mark(about: os.stat_result) -> _Mark:
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


class File:
    """A file as an argument, hashed by its content wherever it is; the function gets the path as it was given."""

    __slots__ = ("path",)

    def __init__(self, path: PathLike) -> None:
        if isinstance(path, File):
            path = path.path
        if not isinstance(os.fspath(path), str):
            raise BadTask(f"a file is given by its path, a str or Path, not {type(path).__name__}")
        os.stat(path)  # raises at once where there is none
        self.path: PathLike = path

    def __jug_hash__(self) -> bytes:
        return content(self.path)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.path, content(self.path))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.path == self.path

    def __hash__(self) -> int:
        return hash((type(self), self.path))

    def __repr__(self) -> str:
        return f"file({os.fspath(self.path)!r})"


class TimedPath(File):
    """A path, hashed with the file's size and time of change; the function gets the path."""

    __slots__ = ()

    def __jug_hash__(self) -> bytes:
        about = os.stat(self.path)
        return f"{about.st_size} {about.st_mtime_ns} {os.fspath(self.path)}".encode("utf-8", "surrogateescape")

    def __reduce__(self) -> tuple[Any, ...]:
        return as_it_is, (self.path,)

    def __repr__(self) -> str:
        return f"timed_path({os.fspath(self.path)!r})"


def as_it_is(value: Any) -> Any:
    """Return what it is given: for what arrives as a plain value."""
    return value


def _arrived(path: Any, digest: bytes) -> Any:
    """Return the path. In a task, the content must still be the one in the key."""
    if in_task.on and content(path) != digest:
        raise FileChanged(f"{os.fspath(path)} was changed after the task was made; make it again: re-run its cell")
    return path


def file(path: PathLike) -> File:
    """Return a file as an argument: its content counts, not its name: ``count_words(jn.file("data.txt"))``.

    It is read again only when its size, times or inode change. The function gets ``path`` as it is given here. Raises
    FileNotFoundError where there is none, BadTask for a folder.
    """
    return File(path)


def timed_path(path: PathLike) -> TimedPath:
    """Return a path whose key also covers the file's size and modification time: for files too large to hash."""
    return TimedPath(path)


_NAMED = re.compile(r"""(\b(?:file|timed_path)\()?(?:'([^'…]+)'|"([^"…]+)")""")


def changed_files(args_repr: str, folder: str, made: float, started: float) -> tuple[list[str], list[str]]:
    """Return the files in a call's arguments, as text, that have been written since, by times since the epoch.

    First those of `file` and `timed_path` written after the task was ``made``, then those of paths that are only paths
    written after it ``started``.
    """
    content: list[str] = []
    only_paths: list[str] = []
    for counts, single, double in _NAMED.findall(args_repr):
        path = single or double
        with suppress(OSError, ValueError):
            if (counts or _looks_like_one(path)) and os.path.isfile(found := os.path.join(folder, path)):
                since, changed = (made, content) if counts else (started, only_paths)
                if os.stat(found).st_mtime > since:
                    changed.append(path)
    return content, only_paths


# -- paths that are only paths -----------------------------------------------------------------------------------------


class PathAdvice:
    """Warns once per argument of a function that it is the path of a file, whose content isn't part of the key."""

    __slots__ = ("_left", "_name")

    def __init__(self, function: str) -> None:
        self._name = function
        self._left: dict[str, int] = {}

    def look(self, arguments: Sequence[tuple[str, Any]]) -> None:
        """Check the arguments of a call. Costs almost nothing where no string looks like a path."""
        for label, value in arguments:
            kind = type(value)
            if kind in _NO_PATH or (kind is str and not _looks_like_one(value)):
                continue
            left = self._left.get(label, TRIES)
            if left:
                found = any(self._is_file(label, step, path) for step, path in _paths(value))
                self._left[label] = 0 if found else left - 1

    def _is_file(self, label: str, step: str, value: Any) -> bool:
        try:
            if not os.path.isfile(value):
                return False
        except ValueError:  # a string that no path can be
            return False
        written = repr(os.fspath(value))
        advice.warn_once(
            ("path", self._name, label),
            OnlyAPath,
            f"{self._name}(): argument {label!r}{step} is the path of a file, but the key covers only the path, not "
            f"the file's content. Pass jn.file({written if len(written) < 80 else 'path'}) so that changes count.",
        )
        return True


_NO_PATH = frozenset({int, float, bool, complex, bytes, type(None), File, TimedPath})


def _looks_like_one(text: str) -> bool:
    return len(text) <= 1000 and ("." in text or "/" in text or os.sep in text)


def _paths(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what may be a path in a value, (where, path): at most `FEW` of them, among the first `PARTS` parts."""
    waiting: deque[tuple[str, Any]] = deque([("", value)])
    found = 0
    for _ in range(PARTS):
        if not waiting or found == FEW:
            return
        step, part = waiting.popleft()
        kind = type(part)
        if isinstance(part, PurePath) or (kind is str and _looks_like_one(part)):
            found += 1
            yield step, part
        elif kind is not str and kind not in _NO_PATH and len(waiting) < PARTS:
            waiting.extend(islice(_parts_of(kind, part, step), PARTS))


def _parts_of(kind: type, value: Any, step: str) -> Iterator[tuple[str, Any]]:
    """Yield the items of a container, or the attributes of an object that isn't hashed in a way of its own."""
    if issubclass(kind, dict):
        yield from ((f"{step}[{key!r:.40}]", item) for key, item in value.items())
    elif issubclass(kind, list | tuple | set | frozenset | deque):
        yield from ((f"{step}[{number}]", item) for number, item in enumerate(value))
    elif not any(hasattr(kind, name) for name in ("__jug_hash__", "__jug_reference__")) and not issubclass(
        kind, type | ModuleType | FunctionType
    ):
        slots = getattr(kind, "__slots__", ())
        held = {name: getattr(value, name, None) for name in ([slots] if isinstance(slots, str) else slots)}
        yield from ((f"{step}.{name}", item) for name, item in {**held, **instance_dict(value)}.items())
