"""A notebook's tasks as a script: the cells that make them, with all that these read, as plain Python."""

from __future__ import annotations

import ast
import builtins
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jug_notebook.model import Key

_BUILTIN = frozenset(dir(builtins))


@dataclass
class Cell:
    """A cell as it was typed last. ``maker``: it makes tasks that are wanted."""

    text: str
    label: str = ""
    maker: bool = False
    python: str = ""  #: as plain Python
    defines: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)  #: in place
    reads: set[str] = field(default_factory=set)
    problem: str = ""  #: why it can't be plain Python


def script(cells: Sequence[Cell], store: str) -> tuple[str, list[Cell]]:
    """The text of a script that makes what the ``maker`` cells make, and the makers that can't be in it."""
    for cell in cells:
        _look(cell)
    wanted = _with_needs(cells)
    parts = [_HEAD, f'if __name__ == "__main__":\n    {store}']
    for number in sorted(wanted):
        cell = cells[number]
        parts.append((f"# {cell.label}\n" if cell.label else "") + cell.python.strip("\n"))
    left_out = [cell for cell in cells if cell.maker and cell.problem]
    return "\n\n".join(parts) + "\n", left_out


_HEAD = '''"""Tasks of a notebook: run it with python, or with jug-notebook execute."""

import jug_notebook as jn'''


# -- looking at a cell -------------------------------------------------------------------------------------------------


def _look(cell: Cell) -> None:
    text, options = cell.text, None
    if text.lstrip().startswith("%%"):
        first, _, text = text.lstrip().partition("\n")
        words = shlex.split(first)
        if words[0] != "%%jugtask":
            cell.problem = f"{words[0]} can't be in a script"
            return
        options = _options(words[1:])
        if options is None:
            cell.problem = "a cell that is one task can't be in a script"
            return
    lines = [_plain(line) for line in text.splitlines()]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        cell.problem = "it is no plain Python"
        return
    if options is not None:
        lines = _decorated(lines, tree, options)
    cell.python = "\n".join(lines)
    _names(cell, tree)


def _plain(line: str) -> str:
    """What IPython alone understands becomes a comment."""
    bare = line.lstrip()
    if bare.startswith(("%", "!", "?")) or bare.rstrip().endswith("?"):
        return f"{line[: len(line) - len(bare)]}pass  # {bare}" if line != bare else f"# {bare}"
    return line


def _options(words: list[str]) -> list[str] | None:
    """What a ``%%jugtask`` line asks for, as arguments of the decorator; None where the cell is one task."""
    known: dict[str, Callable[[str], str]] = {"--version": repr, "--retries": str, "--timeout": str}
    found: list[str] = []
    ignored: list[str] = []
    waiting = iter(words)
    for word in waiting:
        option, _, value = word.partition("=")
        if option == "--ignore-global":
            ignored.append(value or next(waiting, ""))
        elif option in known:
            found.append(f"{option[2:]}={known[option](value or next(waiting, ''))}")
        else:
            return None
    return [*found, *([f"ignore_globals={ignored!r}"] if ignored else [])]


def _decorated(lines: list[str], tree: ast.Module, options: list[str]) -> list[str]:
    """The public functions of a cell become task functions, as ``%%jugtask`` makes them."""
    decorator = f"@jn.task({', '.join(options)})" if options else "@jn.task"
    found = list(lines)
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.insert(first - 1, decorator)
    return found


def _names(cell: Cell, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (cell.reads if isinstance(node.ctx, ast.Load) else cell.defines).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            cell.defines.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            cell.defines.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            cell.changes.update(_root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            cell.changes.update(_root(node.value.func))
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            cell.reads.add(node.target.id)
    cell.reads -= _BUILTIN - cell.defines


def _root(node: ast.expr) -> set[str]:
    """``a`` of ``a.b[c]``; nothing for a plain name, which is called and not changed."""
    at = node
    while isinstance(at, ast.Attribute | ast.Subscript):
        at = at.value
    return {at.id} if isinstance(at, ast.Name) and at is not node else set()


def _with_needs(cells: Sequence[Cell]) -> set[int]:
    """The makers, with the cells that define or change what they read, over and over."""
    wanted: set[int] = set()
    open_cells = [number for number, cell in enumerate(cells) if cell.maker and not cell.problem]
    while open_cells:
        number = open_cells.pop()
        if number in wanted:
            continue
        wanted.add(number)
        for name in cells[number].reads | (cells[number].changes - cells[number].defines):
            open_cells += _definers(cells, name, number)
    return wanted


def _definers(cells: Sequence[Cell], name: str, before: int) -> list[int]:
    """The last cell before that defines a name, and those after it that change its value; else the next that does."""
    changers: list[int] = []
    for number in range(before - 1, -1, -1):
        if cells[number].problem:
            continue
        if name in cells[number].defines:
            return [number, *changers]
        if name in cells[number].changes:
            changers.append(number)
    if name in cells[before].defines:
        return []
    return [number for number in range(before + 1, len(cells)) if name in cells[number].defines][:1]


# -- looking at the script ---------------------------------------------------------------------------------------------

_KEYS = """
import argparse, json, sys
from jug_notebook.compat import commands
from jug_notebook.compat.jug.task import alltasks
given = argparse.Namespace(jugfile=sys.argv[1], jugdir=sys.argv[2], user_args=[])
out, sys.stdout = sys.stdout, sys.stderr
with commands.loaded(commands.settled("status", given), looking=True):
    json.dump([task.key for task in alltasks], out)
"""


def keys_of(path: Path, url: str) -> tuple[set[Key], str]:
    """The tasks that a script makes, found out in another process; and why it fails, if it does. Hands in nothing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", _KEYS, path.name, url.replace("%", "%%")]
    ran = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        return set(), lines[-1] if lines else f"exit status {ran.returncode}"
    return set(json.loads(ran.stdout)), ""


def told(path: str, wanted: Collection[Key], found: Collection[Key], left_out: Sequence[Cell], failure: str) -> str:
    """What there is to say of a script that was written."""
    if failure:
        return f"{path} was written, but does not run: {failure}"
    same = len(set(wanted) & set(found))
    lines = [f"{path} makes {same:,} of this notebook's {len(wanted):,} tasks, under the same keys"]
    lines += [f"  left out: {cell.label or 'a cell'}: {cell.problem}" for cell in left_out]
    return "\n".join(lines)
