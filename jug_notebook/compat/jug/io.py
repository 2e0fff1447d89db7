"""Results and tables written out; tasks that are passed unloaded."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jug_notebook.compat.jug.task import Task, TaskGenerator, Tasklet
from jug_notebook.task import external, handles
from jug_notebook.task.handles import NoLoad

__all__ = ["NoLoad", "TaskGenerator", "Tasklet", "print_task_summary_table", "write_metadata", "write_task_out"]


def write_task_out(result: Any, oname: Any, metadata_fname: Any = None, metadata_format: str = "yaml") -> Any:
    """A task that writes the value of ``result`` to a file: an array as ``numpy.save`` does, else pickled.

    ``metadata_fname`` gets where the value comes from, as YAML or JSON.
    """
    name = "jug.io._do_write_task_out"
    form = metadata_format if metadata_fname is not None else None

    def make() -> handles.Task:
        task: handles.Task = external.write_task_out(result, oname, metadata_fname, form)
        return task

    return Task.around(name, write_task_out, (result, NoLoad(result), oname, metadata_fname), {}, make)


def write_metadata(result: Any, metadata_fname: Any, metadata_format: str = "yaml") -> Any:
    """A task that writes where the value of ``result`` comes from."""
    return write_task_out(result, None, metadata_fname, metadata_format)


def print_task_summary_table(options: Any, groups: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    """A row per task name, a column per group ``(title, {name: count})``. With ``options.short`` a line per group."""
    say = options.print_out
    if options.short:
        for title, counts in groups:
            say(f"{title}:  {sum(counts.values())} tasks")
        say(f"** Total: {sum(sum(counts.values()) for _, counts in groups)} tasks.")
        return
    width = shutil.get_terminal_size((80, 25)).columns - 12 * len(groups) - 2
    width = width if width > 8 else 12

    def row(cells: Sequence[Any], name: str) -> str:
        return "".join(f"{cell!s:>12}" for cell in cells) + f"  {name:<{width}}"

    rule = 12 * len(groups) + 2 + width
    say(row([title for title, _ in groups], "Task name"))
    say("-" * rule)
    for name in sorted({name for _, counts in groups for name in counts}):
        first, *rest = textwrap.wrap(name, width=width - 4) or [""]
        say(row([counts.get(name, 0) for _, counts in groups], first))
        for more in rest:
            say(row([""] * len(groups), f"    {more}"))
    say("." * rule)
    say(row([sum(counts.values()) for _, counts in groups], "Total"))
    say()


def get_terminal_size() -> tuple[int, int]:
    """Columns and lines."""
    columns, lines = shutil.get_terminal_size((80, 25))
    return columns, lines
