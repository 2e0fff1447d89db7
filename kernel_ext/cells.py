"""Turns a ``%%jugtask`` cell into task functions, or with a name into one task, with a tasklet for each output."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from IPython.core.error import UsageError

from jug_notebook import render
from jug_notebook.errors import BadTask, clean
from jug_notebook.model import State
from jug_notebook.session import Session
from jug_notebook.task import cell as celltask
from jug_notebook.task import task
from jug_notebook.task.cell import CellTask
from jug_notebook.task.context import PendingTask
from jug_notebook.task.handles import Task, Tasklet
from jug_notebook.task.values import TaskList
from kernel_ext.display import show, widgets_work

DEFINITIONS = "imports, def, class and assignments"

_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef)
_MAY_STAND = (*_DEFINES, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass)
_OPENS_A_SCOPE = (*_DEFINES, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Cell:
    """A cell below the magic. ``text`` begins with a comment for each line above it, so that line numbers are right."""

    text: str
    filename: str
    tree: ast.Module
    python: str = ""  #: the same as plain Python: magics and commands replaced by the calls they stand for

    def line(self, number: int) -> str:
        return self.text.splitlines()[number - 1].strip()


@dataclass
class Record:
    """What is kept of a cell task between runs of its cell: its keys, and the values that it has overwritten."""

    keys: set[str] = field(default_factory=set)
    before: dict[str, Any] = field(default_factory=dict)  #: values of the names that it sets, before its first run
    unset: set[str] = field(default_factory=set)  #: names that it reads and sets, and that weren't defined before


# -- from text to syntax -----------------------------------------------------------------------------------------------


def read(shell: Any, body: str, typed: str | None) -> Cell:
    """Parse a cell's body; ``typed`` is the whole cell where it is known. A syntax error shows as IPython shows it."""
    first = body.split(maxsplit=1)[0] if body.strip() else ""
    if first.startswith("%%"):
        raise UsageError(f"%%jugtask: {first} can't be inside the task; put {first} above the %%jugtask line")
    text = "".join(f"# {line}\n" for line in _above(body, typed)) + body
    prompt = len(shell.history_manager.input_hist_raw) - 1  # what the cell's In[…] says; the counter is ahead of it
    filename = shell.compile.cache(text, prompt, raw_code=typed or text)
    transformed = shell.transform_cell(text)
    try:
        tree = shell.compile.ast_parse(transformed, filename)
        compile(transformed, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        raise _as_plain_exception(error, shell.SyntaxTB.structured_traceback(type(error), error, [])) from None
    return Cell(text, filename, tree, transformed)


def _above(body: str, typed: str | None) -> list[str]:
    """The lines of the cell above ``body``: the magic's, and those of magics stacked on it."""
    whole, end = (typed or "").rstrip(), body.rstrip()
    return whole[: len(whole) - len(end)].splitlines() if end and whole.endswith(end) else ["%%jugtask"]


def _as_plain_exception(error: SyntaxError, lines: list[str]) -> Exception:
    """Return an exception of the same name and text: IPython would show a SyntaxError with its own frames."""
    kind = type(type(error).__name__, (Exception,), {"_render_traceback_": lambda self: lines})
    plain: Exception = kind(str(error))
    return plain


def _only_python(cell: Cell, where: Iterable[ast.AST]) -> None:
    """Refuse magics and shell commands in functions: workers, which call them, have no IPython."""
    for top in where:
        for node in ast.walk(top):
            if isinstance(node, ast.Name) and node.id == "get_ipython":
                raise UsageError(
                    f"line {node.lineno}: `{cell.line(node.lineno)}` needs IPython, which workers don't have; "
                    "it can be in a cell task: %%jugtask NAME"
                )


# -- a cell of definitions ---------------------------------------------------------------------------------------------


def define(shell: Any, cell: Cell, only: Sequence[str] = (), **options: Any) -> tuple[list[Any], list[str]]:
    """Run a cell of definitions. Its public functions, or ``only`` these, become task functions.

    Return them, and the names of functions that stay plain.
    """
    functions = list(dict.fromkeys(node.name for node in cell.tree.body if isinstance(node, _DEFINES)))
    if unknown := [name for name in only if name not in functions]:
        raise UsageError(f"%%jugtask --only {unknown[0]}: the cell defines {', '.join(functions) or 'no function'}")
    tasks = set(only) or {name for name in functions if not name.startswith("_")}
    _only_definitions(cell)
    _only_python(cell, (node for top in cell.tree.body for node in ast.walk(top) if isinstance(node, _OPENS_A_SCOPE)))
    space, made = shell.user_ns, {}
    tree = shell.transform_ast(cell.tree)
    for node in tree.body:
        _execute(shell, cell, [node])
        if isinstance(node, _DEFINES) and node.name in tasks:
            # At once, so that what follows in the cell finds a task function, as under a decorator.
            if not hasattr(space[node.name], "__jug_function__"):
                space[node.name] = task(**options)(space[node.name])
            made[node.name] = space[node.name]
    return list(made.values()), [name for name in functions if not hasattr(space[name], "__jug_function__")]


def _only_definitions(cell: Cell) -> None:
    for node in cell.tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, _MAY_STAND) and not is_text:
            raise UsageError(
                f"line {node.lineno}: `{cell.line(node.lineno)}` does something, so the cell needs a name "
                f"to be a task: %%jugtask NAME (without a name it may hold {DEFINITIONS})"
            )
        if _awaits(node):
            raise UsageError(f"line {node.lineno}: `{cell.line(node.lineno)}`: await can't be in a %%jugtask cell")


_AWAITS = (ast.Await, ast.AsyncFor, ast.AsyncWith)


def _awaits(top: ast.AST) -> bool:
    """Return whether it awaits, other than in a function inside."""
    if isinstance(top, _AWAITS) or (isinstance(top, ast.comprehension) and top.is_async):
        return True
    return not isinstance(top, _OPENS_A_SCOPE) and any(map(_awaits, ast.iter_child_nodes(top)))


def _execute(shell: Any, cell: Cell, statements: list[ast.stmt]) -> None:
    code = shell.compile(ast.Module(statements, []), cell.filename, "exec")
    try:
        exec(code, shell.user_global_ns, shell.user_ns)
    except BaseException as error:  # the user's code: its traceback starts at the cell's line
        _show_from_the_cell(shell, cell, error)
        raise


def _show_from_the_cell(shell: Any, cell: Cell, error: BaseException) -> None:
    """Leave the magic's own frames out of the traceback that IPython shows."""
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
    with _one_line_errors():
        body = celltask.read(name, cell.python, outs, cell.text)
    reads = body.names.reads
    space: dict[str, Any] = shell.user_ns
    _import_here(shell, cell)
    present = _present(space, [*reads, *ins, *body.outputs], record, reads, name)
    with _one_line_errors():
        made = celltask.make(body, space, present, ins, cell.filename, **options)
    _remember(record, made.task.key, {one: present[one] for one in made.outputs if one in present}, made.outputs, reads)
    space[name] = made.task
    for one in made.outputs:
        space[one] = made.task[one]
    return made


@contextmanager
def held(session: Session, holds: bool) -> Iterator[list[PendingTask]]:
    """Within, tasks are made and not submitted, if it ``holds``. Yield the list that gets them."""
    found: list[PendingTask] = []
    session.submissions.held = found if holds else None
    try:
        yield found
    finally:
        session.submissions.held = None


def asks(session: Session, name: str, task: Task, waiting: list[PendingTask], confirmed: Callable[[], object]) -> bool:
    """Show what a cell task would run and how long, with a button that lets it. Return False where nothing is to ask.

    That is where the task is stored or under way, or nothing was held.
    """
    session.unconfirmed.pop(name, None)
    if not waiting:
        return False
    [state] = session.results.states([task.key])
    if state is not State.CANCELLED:
        session.submissions.add(waiting)
        return False
    session.unconfirmed[name] = waiting, session.submissions.folder(), confirmed
    needs = waiting[0][3]
    views = session.queries.glance(True).functions
    mean = next((view.mean for view in views if view.name == name), None)
    lines = [f"{name} would run: {'not timed yet' if mean is None else 'about ' + render.duration(mean)}"]
    if needs:
        plan = session.workers.plan(target=TaskList(one for key in needs for one in session.resolve(key, all=True)))
        lines += ["with what it needs:", *plan.text(who=False).splitlines()]
    lines.append(f"it waits for a click on Run, or jn.confirm({name!r})")
    print(clean("\n".join(lines)))
    if widgets_work():
        from kernel_ext.widgets import run_button

        show(run_button(lambda: name in session.unconfirmed and session.confirm(name)))
    return True


def make_script(
    shell: Any, script: str, name: str, record: Record, ins: Sequence[str] = (), **options: Any
) -> CellTask:
    """Make a bash script the task ``name``."""
    with _one_line_errors():
        task = celltask.of_script(name, script, shell.user_ns, ins, **options)
    record.keys.add(task.key)
    shell.user_ns[name] = task
    return CellTask(task, tuple(sorted(ins)), ())


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Report what is wrong with a cell in one line, like wrong options of its magic."""
    try:
        yield
    except BadTask as bad:
        raise UsageError(str(bad)) from None


def _import_here(shell: Any, cell: Cell) -> None:
    """Run the imports of the cell in the notebook, too, for later cells."""
    for node in cell.tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            _execute(shell, cell, [node])


def _present(
    space: Mapping[str, Any], names: Iterable[str], record: Record, reads: Iterable[str], cell: str
) -> dict[str, Any]:
    """Return the values of names. For one that holds the cell's own output: its value before the first run."""
    present = {}
    for name in dict.fromkeys(names):
        if name not in space:
            continue
        value = space[name]
        if isinstance(value, Task | Tasklet) and value.key in record.keys:
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
