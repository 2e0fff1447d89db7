"""What Jug's scripts use beside tasks: constants as tasks, files, shell commands, tables, task selection."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any

from jug_notebook.compat.jug.task import CachedFunction, NoLoad, Task, TaskGenerator, Tasklet, hash_one, outline, value
from jug_notebook.compat.jugdir import fsync_dir, run_metadata
from jug_notebook.store.signed import UPSTREAM
from jug_notebook.task import external
from jug_notebook.task.context import in_task
from jug_notebook.task.handles import Handle
from jug_notebook.task.patterns import identity as constant
from jug_notebook.task.values import tasks_in


def identity(x: Any) -> Any:
    """Return a task with the value ``x``: a large argument is hashed and stored once."""
    if in_task.on or isinstance(x, Task | Tasklet):
        return x
    return Task.around("identity", identity, (x,), {}, lambda: constant(x))


class _Argument:
    """An argument that is not hashed by its value; the function gets ``obj``."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def __jug_value__(self) -> Any:
        return value(self.obj)

    def __jug_dependencies__(self) -> Sequence[Any]:
        return tasks_in(self.obj)


class CustomHash(_Argument):
    """An argument whose hash is ``hash_function(obj)``, bytes or a string."""

    def __init__(self, obj: Any, hash_function: Callable[[Any], bytes | str]) -> None:
        super().__init__(obj)
        self.hash_function = hash_function

    def __jug_hash__(self) -> bytes | str:
        return self.hash_function(self.obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return CustomHash, (self.obj, _no_hash)  # a worker needs no hash


class NoHash(_Argument):
    """An argument that doesn't matter for the result. Tasks in it do: the task must wait for them."""

    def __jug_hash__(self) -> bytes:
        return b"nohash"


def _no_hash(_: Any) -> bytes:
    return b""


def hash_with_mtime_size(path: Any) -> bytes:
    """Return a hash of a file's path, modification time and size."""
    about = os.stat(path)
    return hash_one((os.fspath(path), about.st_mtime_ns, about.st_size))


def timed_path(path: Any) -> CustomHash:
    """Return an argument that changes when the file is touched or changes its size; the function gets the path."""
    os.stat(path)  # raises at once if there is no file
    return CustomHash(path, hash_with_mtime_size)


@TaskGenerator
def jug_execute(args: Any, check_exit: bool = True, run_after: Any = None, return_value: Any = None) -> Any:
    """Run a shell command as a task. ``run_after``: what must be done before; ``return_value``: the task's value."""
    words = args if isinstance(args, str) else [str(value(word)) for word in args]
    status = subprocess.call(words)
    if check_exit and status != 0:
        raise SystemError(f"the command {args!r} ended with exit status {status}")
    return return_value


def sync_move(src: Any, dst: Any) -> None:
    """Rename a file durably: the folder is on the disk when this returns."""
    os.rename(src, dst)
    fsync_dir(dst)


def glob_sort(pat: str) -> list[str]:
    """Return the files that match, sorted."""
    from glob import glob

    return sorted(glob(pat))


def cached_glob(pat: str) -> list[str]:
    """Return the files that matched at the first call, sorted. To look again, invalidate ``glob_sort``."""
    found: list[str] = CachedFunction(glob_sort, pat)
    return found


# -- results and tables written out ------------------------------------------------------------------------------------


class _Origin:
    """What a value was computed from, for a task that writes it down: its ``provenance()`` is as `describe`."""

    def __init__(self, result: Any, tasks: Sequence[Any] = ()) -> None:
        self.result, self.tasks = result, tasks

    def __jug_hash__(self) -> bytes:
        return b"origin"

    def __jug_dependencies__(self) -> Sequence[Any]:
        return self.tasks

    def __reduce__(self) -> tuple[Any, ...]:
        whole, tasks = outline(self.result, _plain, most=UPSTREAM, deep=100)
        for task, found, _ in tasks:
            found["meta"] = task.key  # `provenance` puts the run there
        return _Origin, ((whole, [found for _, found, _ in tasks]), self.tasks)

    def provenance(self) -> Any:
        whole, tasks = self.result
        runs: dict[str, Any] = {}
        for task in self.tasks:
            info = task.provenance()
            runs |= {one["key"]: run_metadata(one.get("run")) for one in (info, *info["upstream"].values())}
        for found in tasks:
            if (meta := runs.get(found.pop("meta"))) is not None:
                found["meta"] = meta
        return whole

    def __repr__(self) -> str:
        return f"origin of {self.result!r}"


def _plain(x: Any) -> Any:
    return x if type(x) in (str, int, float, bool, type(None)) else f"{x!r:.200}"


def write_task_out(result: Any, oname: Any, metadata_fname: Any = None, metadata_format: str = "yaml") -> Any:
    """Return a task that writes the value of ``result`` to a file: an array as ``numpy.save`` does, else pickled.

    ``result`` is a task, or anything else, such as a list of tasks. ``metadata_fname`` is a file for what the value was
    computed from, as `describe` returns it, as YAML or JSON.
    """
    form = metadata_format if metadata_fname is not None else None
    held = NoLoad(result) if isinstance(result, Handle) else result

    def make() -> Any:
        tasks = [NoLoad(one) for one in tasks_in(result)]
        return external.written(_Origin(result, tasks), result, oname, metadata_fname, form)

    if in_task.on:
        return make()
    arguments = (result, held, oname, metadata_fname, metadata_format)
    return Task.around("jug.io._do_write_task_out", _do_write_task_out, arguments, {}, make)


def _do_write_task_out(value: Any, result: Any, *files: Any) -> Any:
    return write_task_out(value, *files)


def write_metadata(result: Any, metadata_fname: Any, metadata_format: str = "yaml") -> Any:
    """Return a task that writes what the value of ``result`` was computed from."""
    return write_task_out(result, None, metadata_fname, metadata_format)


def print_task_summary_table(options: Any, groups: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    """Print a row per task name, a column per group ``(title, {name: count})``; ``options.short``: a line per group."""
    write = options.print_out
    if options.short:
        for title, counts in groups:
            write(f"{title}:  {sum(counts.values())} tasks")
        write(f"** Total: {sum(sum(counts.values()) for _, counts in groups)} tasks.")
        return
    width = get_terminal_size((80, 25)).columns - 12 * len(groups) - 2
    width = width if width > 8 else 12

    def row(cells: Sequence[Any], name: str) -> str:
        return "".join(f"{cell!s:>12}" for cell in cells) + f"  {name:<{width}}"

    rule = 12 * len(groups) + 2 + width
    write(row([title for title, _ in groups], "Task name"))
    write("-" * rule)
    for name in sorted({name for _, counts in groups for name in counts}):
        first, *rest = textwrap.wrap(name, width=width - 4) or [""]
        write(row([counts.get(name, 0) for _, counts in groups], first))
        for more in rest:
            write(row([""] * len(groups), f"    {more}"))
    write("." * rule)
    write(row([sum(counts.values()) for _, counts in groups], "Total"))
    write()


# -- which tasks are meant ---------------------------------------------------------------------------------------------

Matcher = Callable[[str], Any]


def prepare_task_matcher(pattern: str) -> Matcher:
    """Return a matcher of names that contain the text or ``/regex/``. Raises ValueError for an empty pattern."""
    if pattern in ("", "//"):
        raise ValueError(f"an empty pattern ({pattern!r}) would match every task; to mean all, write '/.*/'")
    if len(pattern) > 2 and pattern[0] == pattern[-1] == "/":
        return re.compile(pattern[1:-1]).search
    return re.compile(re.escape(pattern)).search


def prepare_name_matcher(name: str) -> Matcher:
    """Return a matcher of ``module.function``, or its end after any dot; ``*`` and ``?`` are wildcards."""
    whole = re.compile(fnmatch.translate(name))

    def matches(task_name: str) -> bool:
        steps = task_name.split(".")
        return any(whole.match(".".join(steps[start:])) for start in range(len(steps)))

    return matches


def prepare_matcher_from_options(name: str | None = None, pattern: str | None = None) -> Matcher | None:
    """Return a matcher of all that is given; None if nothing is. Raises ValueError."""
    if name is not None and pattern is not None:
        print("jug: a name and a pattern are given; only tasks that match both are meant", file=sys.stderr)
    matchers = [prepare_name_matcher(name)] if name is not None else []
    if pattern is not None:
        matchers.append(prepare_task_matcher(pattern))
    return (lambda task_name: all(matches(task_name) for matches in matchers)) if matchers else None


def add_task_selection_options(parser: Any, name_dest: str, pattern_dest: str, required: bool, what: str) -> None:
    """Add ``--name`` and ``--pattern`` to the options of a sub-command, as those of ``execute``."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--name", dest=name_dest, metavar="NAME", help=f"{what} of this name: f, module.f, f*")
    group.add_argument(
        "--pattern", dest=pattern_dest, metavar="TEXT", type=_pattern, help=f"{what} with this in the name, or /regex/"
    )
    group.add_argument("--target", "--invalid", dest=name_dest, metavar="NAME", help="the same as --name")


def _pattern(text: str) -> str:
    try:
        prepare_task_matcher(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from wrong
    return text
