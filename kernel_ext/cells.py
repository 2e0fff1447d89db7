"""What a ``%%jugtask`` cell becomes: task functions, or with a name one task with the cell's outputs as tasklets."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import Parameter, Signature
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from IPython.core.error import UsageError

import jug_notebook as jn
from jug_notebook.code import cell_function, cell_names

_SHOW = "show_last"
RUNNER = "kernel_ext.runner:run"
DEFINITIONS = "imports, def, class and assignments"

_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef)
_MAY_STAND = (*_DEFINES, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass)
_OPENS_A_SCOPE = (*_DEFINES, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Cell:
    """A cell under the magic: ``text`` begins with a comment for each line above it, so that line numbers are right."""

    text: str
    filename: str
    tree: ast.Module
    python: str = ""  #: the same with magics and commands as the Python that they stand for

    def line(self, number: int) -> str:
        return self.text.splitlines()[number - 1].strip()


@dataclass
class Record:
    """What is remembered of a cell task between its runs: its keys, and what it has overwritten."""

    keys: set[str] = field(default_factory=set)
    before: dict[str, Any] = field(default_factory=dict)  #: names it has bound: what they were before its first run
    unset: set[str] = field(default_factory=set)  #: names that it may read first, and that weren't there then


@dataclass(frozen=True)
class CellTask:
    """A cell as one task."""

    task: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# -- from text to syntax -----------------------------------------------------------------------------------------------


def read(shell: Any, body: str, typed: str | None) -> Cell:
    """Parse a cell's body; ``typed`` is the whole cell where it is known. A syntax error shows as IPython shows it."""
    text = "".join(f"# {line}\n" for line in _above(body, typed)) + body
    prompt = len(shell.history_manager.input_hist_raw) - 1  # what the cell's In[…] says; the counter is ahead of it
    filename = shell.compile.cache(text, prompt, raw_code=typed or text)
    transformed = shell.transform_cell(text)
    try:
        tree = shell.compile.ast_parse(transformed, filename)
        compile(transformed, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        raise _shown_as(error, shell.SyntaxTB.structured_traceback(type(error), error, [])) from None
    return Cell(text, filename, tree, transformed)


def _above(body: str, typed: str | None) -> list[str]:
    """The lines of the cell above ``body``: the magic's, and those of magics stacked on it."""
    whole, end = (typed or "").rstrip(), body.rstrip()
    return whole[: len(whole) - len(end)].splitlines() if end and whole.endswith(end) else ["%%jugtask"]


def _shown_as(error: SyntaxError, lines: list[str]) -> Exception:
    """The same by name and text. A SyntaxError out of a magic would be shown with all the way through IPython."""
    kind = type(type(error).__name__, (Exception,), {"_render_traceback_": lambda self: lines})
    shown: Exception = kind(str(error))
    return shown


def _only_python(cell: Cell, where: Iterable[ast.AST]) -> None:
    """Functions of a cell are called by workers, who have no IPython: refuse magics and shell commands in them."""
    for top in where:
        for node in ast.walk(top):
            if isinstance(node, ast.Name) and node.id == "get_ipython":
                raise UsageError(
                    f"line {node.lineno}: `{cell.line(node.lineno)}` needs IPython, which workers don't have; "
                    "it can be in a cell task: %%jugtask NAME"
                )


# -- a cell of definitions ---------------------------------------------------------------------------------------------


def define(shell: Any, cell: Cell, **options: Any) -> list[Any]:
    """Run a cell of definitions; its public functions become task functions, which are answered."""
    _only_definitions(cell)
    _only_python(cell, (node for top in cell.tree.body for node in ast.walk(top) if isinstance(node, _OPENS_A_SCOPE)))
    space, made = shell.user_ns, {}
    tree = shell.transform_ast(cell.tree)
    for node in tree.body:
        _execute(shell, cell, [node])
        if isinstance(node, _DEFINES) and not node.name.startswith("_"):
            # At once, so that what follows in the cell finds a task function, as under a decorator.
            if not hasattr(space[node.name], "__jug_function__"):
                space[node.name] = jn.task(**options)(space[node.name])
            made[node.name] = space[node.name]
    return list(made.values())


def _only_definitions(cell: Cell) -> None:
    for node in cell.tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, _MAY_STAND) and not is_text:
            raise UsageError(
                f"line {node.lineno}: `{cell.line(node.lineno)}` does something, so the cell needs a name "
                f"to be a task: %%jugtask NAME (without a name it may hold {DEFINITIONS})"
            )
        if not isinstance(node, _OPENS_A_SCOPE) and _awaits(node):
            raise UsageError(f"line {node.lineno}: `{cell.line(node.lineno)}`: await can't be in a %%jugtask cell")


def _awaits(top: ast.AST) -> bool:
    """Does it await by itself, and not only in a function inside?"""
    if isinstance(top, ast.Await | ast.AsyncFor | ast.AsyncWith):
        return True
    if isinstance(top, ast.comprehension) and top.is_async:
        return True
    return any(_awaits(inner) for inner in ast.iter_child_nodes(top) if not isinstance(inner, _OPENS_A_SCOPE))


def _execute(shell: Any, cell: Cell, statements: list[ast.stmt]) -> None:
    code = shell.compile(ast.Module(statements, []), cell.filename, "exec")
    try:
        exec(code, shell.user_global_ns, shell.user_ns)
    except BaseException as error:  # the user's code: whatever it raises goes on, shown from the cell's line on
        _show_from_the_cell(shell, cell, error)
        raise


def _show_from_the_cell(shell: Any, cell: Cell, error: BaseException) -> None:
    """Leave the way through the magic out of the traceback that IPython shows."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename != cell.filename:
        at = at.tb_next
    if at is None or hasattr(error, "_render_traceback_") or isinstance(error, SyntaxError):
        return
    start = at

    def render() -> list[str]:
        lines: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, start, tb_offset=0)
        return lines

    try:
        error._render_traceback_ = render  # type: ignore[attr-defined]
    except AttributeError:  # an exception with slots: it is shown at full length
        return


# -- a cell as one task ------------------------------------------------------------------------------------------------


def make_task(
    shell: Any, cell: Cell, name: str, record: Record, ins: Sequence[str] = (), outs: Sequence[str] = (), **options: Any
) -> CellTask:
    """Make the cell a task, bind ``name`` to it and each output's name to its tasklet.

    Raises UsageError for what a cell task can't hold, with the line; JugError for inputs that can't be named or stored.
    """
    _check_name(name)
    cell = _timed_in_the_open(cell)
    _nothing_hidden(cell)
    names = cell_names(cell.python)
    outputs = tuple(dict.fromkeys([*(one for one in names.assigns if not one.startswith("_")), *outs]))
    if name in outputs:
        raise UsageError(f"the cell sets {name!r} itself, so its task needs another name, say {name}_task")
    space: dict[str, Any] = shell.user_ns
    _import_here(shell, cell)
    present = _present(space, [*names.reads, *ins, *outputs], record, names.reads, name)
    for one in ins:
        if one not in present:
            raise UsageError(f"-i {one}: there is no {one!r}" + near(one, space))
    _check_reads(cell, names.reads - {*names.assigns, *names.imports}, present, space)
    inputs = tuple(sorted(one for one in {*names.reads, *ins, *outs} if _is_input(one, present, names.assigns, ins)))
    inputs = tuple(one for one in inputs if one not in names.imports)
    function = cell_function(
        name, cell.python, cell.filename, inputs, outputs, space, prelude=_prelude(cell), show=_shows(cell)
    )
    function.jug_cell = (outputs, tuple(outs))  # type: ignore[attr-defined]
    maker: Any = jn.task
    aside = set(inputs).intersection(options.get("ignore_globals", ()))  # what a cell reads of data, it is handed
    made = maker(name=name, runner=RUNNER, ignore=sorted(aside), **options)(function)
    task = made(**{one: present[one] for one in inputs})
    _remember(record, task.key, {one: present[one] for one in outputs if one in present}, outputs, names.reads)
    space[name] = task
    for one in outputs:
        space[one] = task[one]
    return CellTask(task, inputs, outputs)


_SETS_NAMES = {"time", "prun", "run", "pylab", "store", "rerun", "edit", "reset", "reset_selective", "xdel"}
_TIME = re.compile(r"^([ \t]*)get_ipython\(\)\.run_line_magic\('time', ('.*'|\".*\")\)$", re.MULTILINE)


def _timed_in_the_open(cell: Cell) -> Cell:
    """``%time x = f()`` sets x: so what is timed is written out. How long the task took is kept in any case."""

    def written_out(found: re.Match[str]) -> str:
        said = ast.literal_eval(found[2])
        try:
            sets = any(isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) for node in ast.walk(parse(said)))
        except SyntaxError:
            return found[0]
        return found[1] + said if sets else found[0]

    parse = ast.parse
    python = _TIME.sub(written_out, cell.python)
    return cell if python == cell.python else replace(cell, python=python, tree=parse(python, cell.filename))


def _nothing_hidden(cell: Cell) -> None:
    """Refuse what sets names of the cell without saying which: other lines would go on with what they were before."""
    for node in ast.walk(cell.tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="run_line_magic"), args=[ast.Constant(magic), ast.Constant(str(said))]
            ):
                hidden = magic in _SETS_NAMES and (magic != "time" or "=" in said.replace("==", ""))
            case ast.Call(func=ast.Name(id="exec"), args=[_], keywords=[]) | ast.Call(func=ast.Name(id="globals")):
                hidden = True
            case _:
                continue
        if hidden:
            raise UsageError(
                f"line {node.lineno}: `{cell.line(node.lineno)}` may set names without saying which, so it can't be in "
                "a cell task: write them out, or leave the cell without %%jugtask"
            )


def _prelude(cell: Cell) -> str:
    """What a worker must import for the cell: a shell for magics and commands, a way to show the last expression."""
    wanted = [_SHOW] if _shows(cell) else []
    if any(isinstance(node, ast.Name) and node.id == "get_ipython" for node in ast.walk(cell.tree)):
        wanted.append("get_ipython")
    return f"from kernel_ext.runner import {', '.join(wanted)}" if wanted else ""


def _shows(cell: Cell) -> str:
    """As in any cell, the value of the last expression is shown, unless a semicolon ends it."""
    body = cell.tree.body
    if not body or not isinstance(body[-1], ast.Expr):
        return ""
    return "" if cell.text.rstrip().endswith(";") else _SHOW


def make_script(
    shell: Any, script: str, name: str, record: Record, ins: Sequence[str] = (), **options: Any
) -> CellTask:
    """Make a bash script the task ``name``: its inputs are environment variables, its standard output is the value."""
    from kernel_ext.runner import bash

    _check_name(name)
    space: dict[str, Any] = shell.user_ns
    for one in ins:
        if one not in space:
            raise UsageError(f"-i {one}: there is no {one!r}" + near(one, space))
    run: Any = partial(bash, script.strip("\n"))
    run.__signature__ = Signature([Parameter(one, Parameter.KEYWORD_ONLY) for one in sorted(ins)])
    made: Any = jn.task(name=name, **options)
    function = made(run)
    del run.__signature__  # it was for binding alone, and doesn't travel
    task = function(**{one: space[one] for one in sorted(ins)})
    record.keys.add(task.key)
    space[name] = task
    return CellTask(task, tuple(sorted(ins)), ())


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{name!r} can't be the name of a task: it must be a Python name, as in %%jugtask clean")


def _import_here(shell: Any, cell: Cell) -> None:
    """What the cell imports is there for later cells too."""
    for node in cell.tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            _execute(shell, cell, [node])


def _present(
    space: Mapping[str, Any], names: Iterable[str], record: Record, reads: Iterable[str], cell: str
) -> dict[str, Any]:
    """What names stand for; one that is bound to the cell's own output, for what it was before the first run."""
    present = {}
    for name in dict.fromkeys(names):
        if name not in space:
            continue
        value = space[name]
        if isinstance(value, jn.Task | jn.Tasklet) and value.key in record.keys:
            if name in record.before:
                value = record.before[name]
            elif name in record.unset:
                continue
            elif name in reads:
                raise UsageError(
                    f"the cell reads {name!r}, which is its own output, and what {name!r} was before isn't known. "
                    f"Run the cell that makes {name!r} first, or give the output of {cell!r} another name"
                )
            else:
                continue
        present[name] = value
    return present


def _remember(record: Record, key: str, now: Mapping[str, Any], outputs: Iterable[str], reads: Iterable[str]) -> None:
    record.keys.add(key)
    for name in outputs:
        if name in now:
            record.before[name] = now[name]
        elif name in reads:
            record.unset.add(name)


def _check_reads(cell: Cell, reads: Iterable[str], present: Mapping[str, Any], space: Iterable[str]) -> None:
    """A name that is nowhere is better told now than by a worker."""
    missing = sorted(name for name in reads if name not in present and not hasattr(builtins, name))
    if missing:
        name = missing[0]
        lines = [n.lineno for n in ast.walk(cell.tree) if isinstance(n, ast.Name) and n.id == name]
        raise UsageError(f"line {min(lines, default=1)}: there is no {name!r}" + near(name, space))


def _is_input(name: str, present: Mapping[str, Any], assigned: Sequence[str], asked: Sequence[str]) -> bool:
    """Data are inputs; functions, classes and modules go with the code, unless the cell binds their name anew."""
    if name not in present:
        return False
    code = isinstance(present[name], FunctionType | BuiltinFunctionType | type | ModuleType)
    return name in assigned or name in asked or not (code or hasattr(type(present[name]), "examine"))


def near(word: str, known: Iterable[str]) -> str:
    """"; did you mean …?", or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, [name for name in known if not name.startswith("_")], n=1)
    return f"; did you mean {close[0]}?" if close else ""
