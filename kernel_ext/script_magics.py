"""%jug_import brings the tasks of a jugfile into the notebook; %jug_export writes the notebook's tasks as a script."""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class

from jug_notebook.errors import BadTask
from jug_notebook.keys.cell_names import cell_names
from jug_notebook.model import Key, State
from jug_notebook.render.format import near, plural
from jug_notebook.session import Session, key_check, switch
from jug_notebook.task import cell as celltask
from kernel_ext.frontend import cell_name
from kernel_ext.magics import JugMagics
from kernel_ext.options import line_magic, option, options, read, sign

if TYPE_CHECKING:
    from jug_notebook.compat.loading import Imported


@magics_class
class ScriptMagics(Magics):
    """Import from and export to scripts. Keeps the cells that were run, as they were typed last."""

    shell: Any

    def __init__(self, shell: Any, main: JugMagics) -> None:
        super().__init__(shell)
        self.main = main
        main.cells_again = self.cells_again
        #: the session and the tasks of each imported script, by its path and arguments
        self._imported: dict[tuple[str, ...], tuple[Session, frozenset[Key]]] = {}
        self.cells: dict[str, tuple[int, str]] = {}  #: the number of the latest run and the text, by name
        history = getattr(getattr(shell, "history_manager", None), "input_hist_raw", ())
        for number, typed in enumerate(history):
            if typed.strip():
                self.note(cell_name(None, typed)[0], typed, number)

    def note(self, name: str, typed: str, number: int) -> None:
        """A cell is about to run. It keeps the place of its first run."""
        self.cells[name] = (number, typed)

    @line_magic
    @options()
    @option("jugfile", help="the script")
    @option("arguments", nargs="*", help="arguments of the script: its sys.argv[1:]")
    @option("--jugdir", metavar="URL", help="its store (default: the one that the script or Jug's settings name)")
    def jug_import(self, line: str) -> None:
        """Bring the tasks of a Jug script into the notebook, with their stored results.

        %jug_import jugfile.py                  the notebook has its names and uses its store from now on
        %jug_import jugfile.py --jugdir other   with another store

        Where the script stops at a barrier, run its tasks, and import it again.
        """
        from jug_notebook.compat.loading import import_jugfile  # loaded only when needed

        asked = read(self.jug_import, line)
        script = asked.jugfile
        if not Path(script).is_file():
            beside = (path.name for path in Path(script).parent.glob("*.py"))
            raise UsageError(f"{sign(self.jug_import)}: no script at {script!r}{near(Path(script).name, beside)}")
        # a store whose name comes from the script's is no slip
        connect = self.main.connect if asked.jugdir else partial(self.main.connect, how=switch)
        imported = import_jugfile(script, asked.jugdir, asked.arguments, connect)
        self.shell.user_ns.update(imported.names)
        names = ", ".join(imported.names) or "no names"
        states = [task.state for task in imported.tasks]
        done = sum(state is State.FINISHED for state in states)
        print(f"{script}: {len(states):,} tasks, {done:,} of them stored in {imported.session.display_url}; {names}")
        if imported.barrier:
            run = (
                "%jug_wait until they have run"
                if imported.session.results.workers()
                else "run these tasks, %jug_execute"
            )
            print(f"it stopped at a barrier; {run}, then import it again")
        self._supersede((os.path.abspath(script), *asked.arguments), imported)

    def _supersede(self, call: tuple[str, ...], imported: Imported) -> None:
        """Cancel what an earlier import of the same script requested and this one, unless it stopped, doesn't."""
        session, now = imported.session, {task.key for task in imported.tasks}
        before, keys = self._imported.get(call, (session, frozenset()))
        if imported.barrier or before is not session:
            now |= keys
        elif cancelled := session.submissions.withdraw(list(keys - now), session.access.origin()):
            print(f"cancelled {plural(cancelled, 'pending task')} of the previous version")
        self._imported[call] = session, frozenset(now)

    @line_magic
    @options()
    @option("file", help="the script to write")
    def jug_export(self, line: str) -> None:
        """Write the notebook's tasks as a script: the cells that make them, and what these read.

        %jug_export pipeline.py

        Run it with python, or with jug-notebook execute: the keys are the same, so stored results are found. Prints how
        many of the tasks the script makes, and which cells can't be in a script.
        """
        path = Path(read(self.jug_export, line).file)
        if path.suffix != ".py":
            raise UsageError(f"{sign(self.jug_export)} FILE: a script's name ends in .py, not {str(path)!r}")
        session = self.main.session
        wanted = session.queries.requested()
        makers = set(wanted.values())
        cells = [cell for name, cell in self._cells(makers).items() if name != self.main.cell]
        text, lacks = script(cells, _connection(session, path), self._reader)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as refused:
            raise UsageError(f"{sign(self.jug_export)}: can't write {path}: {refused.strerror}") from refused
        found, failure = keys_of(path.absolute(), session.url_with_password())
        print(report(str(path), wanted, found, lacks, failure))

    def cells_again(self) -> tuple[list[key_check.Cell], str]:
        """Return the running cell after those that it depends on, as plain Python; or none, and why it can't be."""
        cells = self._cells({self.main.cell})
        mine = cells.get(self.main.cell)
        chosen = with_needs(list(cells.values()), self._reader)
        if mine is None or mine.problem:
            return [], key_check.UNKNOWN if mine is None else f"{mine.label}: {mine.problem}"
        chosen.sort(key=lambda cell: cell is mine)
        return [key_check.Cell(cell.label, cell.python) for cell in chosen], ""

    def _cells(self, makers: Collection[str]) -> dict[str, Cell]:
        return {name: Cell(typed, f"In[{at}]", name in makers) for name, (at, typed) in self.cells.items()}

    @property
    def _reader(self) -> Reader:
        ours = self.shell.user_ns.get("jn") is sys.modules["jug_notebook"]
        return Reader(self.shell.transform_cell, self._asked, frozenset({"jn"} if ours else ()))

    def _asked(self, line: str) -> argparse.Namespace | None:
        """Return the options of a ``%%jugtask`` line; None where they are wrong, so that the cell never ran."""
        try:
            return read(self.main.jugtask, line)
        except UsageError:
            return None


def _connection(session: Session, script: Path) -> str:
    """Return the statement by which the script connects to the store, without a password."""
    url = session.url_with_password()
    if url.startswith("file:"):
        folder = Path(url.removeprefix("file:"))
        return f"jn.connect({os.path.relpath(folder, script.absolute().parent)!r})"
    if url == session.display_url or url.startswith("memory:"):
        return f"jn.connect({url!r})"
    return "jn.connect()  # the store has a password: set JUG_STORE"


# -- from a notebook's cells to a script: those that make its tasks and those these depend on --------------------------


_BUILTIN = frozenset(dir(builtins))

#: Cell magics that don't change what the cell sets.
_NEUTRAL = ("%%time", "%%capture")


@dataclass
class Cell:
    """A cell as it was typed last. ``maker``: it makes tasks that the notebook requests."""

    text: str
    label: str = ""
    maker: bool = False
    python: str = ""  #: as plain Python
    defines: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)  #: in place
    reads: set[str] = field(default_factory=set)
    problem: str = ""  #: why it can't be plain Python
    lost: str = ""  #: the part that isn't in the script although the cell's tasks are


@dataclass(frozen=True)
class Reader:
    """How the notebook reads its cells."""

    plain: Callable[[str], str]  #: magics and commands as the Python that IPython makes of them
    asked: Callable[[str], argparse.Namespace | None]  #: the options of ``%%jugtask``; None where it doesn't know them
    given: frozenset[str] = frozenset()  #: names that a script has from its first lines


def script(cells: Sequence[Cell], store: str, reader: Reader) -> tuple[str, list[str]]:
    """Return the text of a script that makes what the ``maker`` cells make, and a line for each thing it lacks."""
    parts = [_HEAD, f'if __name__ == "__main__":\n    {store}']
    parts += [
        (f"# {cell.label}\n" if cell.label else "") + cell.python.strip("\n") for cell in with_needs(cells, reader)
    ]
    lacks = [f"left out: {cell.label or 'a cell'}: {cell.problem}" for cell in cells if cell.maker and cell.problem]
    lacks += [f"{cell.label or 'a cell'}: {cell.lost}" for cell in cells if cell.maker and cell.lost]
    return "\n\n".join(parts) + "\n", lacks


_HEAD = '''"""Tasks of a notebook: run it with python, or with jug-notebook execute."""

import jug_notebook as jn'''


# -- reading a cell -------------------------------------------------------------------------------------------------


def _look(cell: Cell, reader: Reader) -> None:
    text, asked = cell.text.lstrip(), None
    while text.startswith("%%") and asked is None:
        first, _, text = text.partition("\n")
        magic, _, line = first.partition(" ")
        if magic == "%%jugtask":
            asked = reader.asked(line)
        if asked is None and magic not in _NEUTRAL:
            cell.problem = f"{magic} can't be in a script"
            return
    try:
        if asked is None or asked.name is None:
            _plain_cell(cell, reader.plain(text), asked)
        elif asked.bash:
            _bash_task(cell, text, asked)
        else:
            _one_task(cell, reader.plain(text), asked)
    except (SyntaxError, BadTask) as error:
        cell.problem = "it is not plain Python" if isinstance(error, SyntaxError) else str(error)
    if asked is not None and asked.now:
        cell.lost = "--now is not in the script; its task is, and runs with the others"


# a cell that stays as it is, except for magics


def _plain_cell(cell: Cell, source: str, asked: argparse.Namespace | None) -> None:
    source = celltask.timed_in_the_open(source)
    tree = ast.parse(source)
    compile(tree, "<cell>", "exec", dont_inherit=True)  # finds what parsing accepts, such as top-level await
    lines = source.splitlines()
    on_line = Counter(line for node in tree.body for line in {node.lineno, node.end_lineno})
    shows = [node for node in tree.body if _only_shows(node) and on_line[node.lineno] == on_line[node.end_lineno] == 1]
    edits = [(node.lineno - 1, node.end_lineno, _commented(lines, node)) for node in _magics(tree)]
    kept = {node: _made_by(node) for node in shows}
    edits += [
        (node.lineno - 1, node.end_lineno, ast.unparse(made) if made else f"# {' '.join(ast.unparse(node).split())}")
        for node, made in kept.items()
    ]
    tree.body = [found for node in tree.body if (found := kept.get(node, node))]
    aside = {id(inner) for node in _magics(tree) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "get_ipython" and id(node) not in aside:
            cell.problem = f"line {node.lineno} needs IPython"
            return
    if asked is not None:
        decorator = f"@jn.task({options})" if (options := _options(asked)) else "@jn.task"
        edits += [(place, place, decorator) for place in _public_functions(tree)]
    for start, end, line in sorted(edits, reverse=True):
        lines[start:end] = [line]
    cell.python = "\n".join(lines)
    _names(cell, tree)


#: A script makes tasks. Statements that wait for them, run them or show them are the notebook's.
_WAITING = frozenset({"result", "wait", "exception", "log", "outputs", "status", "provenance", "why"})
_SHOWING = _WAITING | {"execute", "stop", "barrier", "graph", "history", "tasks", "verify"}


def _magics(tree: ast.Module) -> list[ast.Expr]:
    """Return the statements that were magics or commands, and whose values are not used."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and _typed(node.value)]


def _only_shows(node: ast.stmt) -> bool:
    """``task.result()``, ``jn.status()``: a statement of its own, whose value was only shown."""
    match node:
        case ast.Expr(ast.Call(func=ast.Attribute(value=ast.Name(id="jn"), attr=verb))):
            return verb in _SHOWING
        case ast.Expr(ast.Call(func=ast.Attribute(attr=verb))):
            return verb in _WAITING
        case _:
            return False


def _made_by(node: ast.stmt) -> ast.stmt | None:
    """Return what a script has of ``f(1).result()``: the call that makes the task; nothing of ``task.result()``."""
    match node:
        case ast.Expr(ast.Call(func=ast.Attribute(value=ast.Call() as made))):
            return ast.Expr(made)
        case _:
            return None


def _typed(node: ast.expr) -> str:
    """Return what was typed for ``get_ipython().system("ls")``; "" for other expressions."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=verb),
            args=[ast.Constant(str(first)), *rest],
        ):
            words = [one.value for one in rest if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            sign = "%" if verb == "run_line_magic" else "!"
            return " ".join(f"{sign}{first} {' '.join(words)}".split())
        case _:
            return ""


def _commented(lines: list[str], node: ast.Expr) -> str:
    indent = lines[node.lineno - 1][: node.col_offset]
    return f"{indent}pass  # {_typed(node.value)}" if indent else f"# {_typed(node.value)}"


def _public_functions(tree: ast.Module) -> list[int]:
    """Return the lines where the functions begin that ``%%jugtask`` makes task functions."""
    return [
        min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]


def _options(asked: argparse.Namespace) -> str:
    """Return the options of a ``%%jugtask`` line as arguments in Python."""
    found = {
        "version": asked.version,
        "retries": asked.retries or None,
        "timeout": asked.timeout,
        "ignore_globals": asked.ignore_global or None,
        "env": asked.env or None,
        "secret_env": asked.secret_env or None,
        "resources": asked.resources or None,
        "limit": asked.limit or None,
        "pin": asked.pin or None,
    }
    return ", ".join(f"{name}={value!r}" for name, value in found.items() if value is not None)


def _names(cell: Cell, tree: ast.Module) -> None:
    stars = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    names = cell_names(ast.unparse(ast.Module([node for node in tree.body if node not in stars], [])))
    cell.defines = {*names.assigns, *names.imports, *(name for node in stars for name in _exported(node.module or ""))}
    cell.reads = set(names.reads - (_BUILTIN - cell.defines))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            cell.changes.update(_root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            cell.changes.update(_root(node.value.func))


def _exported(module: str) -> list[str]:
    """Return the names that ``from module import *`` imports; the notebook has imported the module already."""
    held = vars(sys.modules[module]) if module in sys.modules else {}
    return list(held.get("__all__") or [name for name in held if not name.startswith("_")])


# a cell that is one task


def _one_task(cell: Cell, source: str, asked: argparse.Namespace) -> None:
    body = celltask.read(asked.name, source, asked.outputs)
    imports = [
        ast.unparse(node)
        for node in ast.parse(body.source).body
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"
    ]
    bound = [f"{', '.join(body.outputs)} = {', '.join(f'{asked.name}[{one!r}]' for one in body.outputs)}"]
    made = _call(asked, body.source, inputs=asked.inputs, outputs=asked.outputs)
    cell.python = "\n".join([*imports, made, *(bound if body.outputs else [])])
    cell.defines = {asked.name, *body.outputs, *body.names.imports}
    cell.reads = {*body.names.reads, *asked.inputs, *asked.outputs} - (_BUILTIN - cell.defines)


def _bash_task(cell: Cell, text: str, asked: argparse.Namespace) -> None:
    cell.python = _call(asked, text, inputs=asked.inputs, bash=True)
    cell.defines, cell.reads = {asked.name}, set(asked.inputs)


def _call(asked: argparse.Namespace, source: str, **more: object) -> str:
    options = [f"{name}={value!r}" for name, value in more.items() if value]
    arguments = ", ".join(filter(None, ["globals()", *options, _options(asked)]))
    return f"{asked.name} = jn.cell_task({asked.name!r}, {_literal(source)}, {arguments})"


def _literal(source: str) -> str:
    """Return a literal of text with several lines, in triple quotes where possible."""
    text = source.strip("\n")
    for quotes in ('"""', "'''"):
        if quotes not in text:
            return f"{'r' if chr(92) in text else ''}{quotes}\n{text}\n{quotes}"
    return repr(text)


def _root(node: ast.expr) -> set[str]:
    """Return ``a`` of ``a.b[c]``; nothing for a plain name, which is called and not changed."""
    at = node
    while isinstance(at, ast.Attribute | ast.Subscript):
        at = at.value
    return {at.id} if isinstance(at, ast.Name) and at is not node else set()


def with_needs(cells: Sequence[Cell], reader: Reader) -> list[Cell]:
    """Read the cells; return the makers and those that define or change what they read, transitively, in order."""
    for cell in cells:
        _look(cell, reader)
    wanted: set[int] = set()
    open_cells = [number for number, cell in enumerate(cells) if cell.maker and not cell.problem]
    while open_cells:
        number = open_cells.pop()
        if number in wanted:
            continue
        wanted.add(number)
        for name in (cells[number].reads | (cells[number].changes - cells[number].defines)) - reader.given:
            open_cells += _definers(cells, name, number)
    return [cells[number] for number in sorted(wanted)]


def _definers(cells: Sequence[Cell], name: str, before: int) -> list[int]:
    """Return the last cell before that defines a name, and those after it that change it; else the next definer."""
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


# -- checking the script ---------------------------------------------------------------------------------------------

_KEYS = """
import argparse, json, sys
from jug_notebook.compat import loading
from jug_notebook.compat.jug.task import alltasks
given = argparse.Namespace(jugfile=sys.argv[1], jugdir=sys.argv[2], user_args=[])
out, sys.stdout = sys.stdout, sys.stderr
with loading.loaded(loading.settled("status", given), read_only=True):
    json.dump([task.key for task in alltasks], out)
"""


def keys_of(path: Path, url: str) -> tuple[set[Key], str]:
    """Return the keys of the tasks that a script makes, or why it fails. Runs it in a process; submits nothing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", _KEYS, path.name, url.replace("%", "%%")]
    ran = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        return set(), lines[-1] if lines else f"exit status {ran.returncode}"
    return set(json.loads(ran.stdout)), ""


def report(path: str, wanted: Collection[Key], found: Collection[Key], lacks: Sequence[str], failure: str) -> str:
    """Return the message about a script that was written: how many tasks it makes, and what it lacks."""
    if failure:
        return f"{path} was written, but does not run: {failure}"
    same = len(set(wanted) & set(found))
    lines = [f"{path} makes {same:,} of this notebook's {len(wanted):,} tasks, under the same keys"]
    lines += [f"  {lack}" for lack in lacks]
    return "\n".join(lines)
