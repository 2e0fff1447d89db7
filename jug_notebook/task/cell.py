"""A cell as one task: its source is the body of a function, and the names it reads from outside are the arguments.

``%%jugtask NAME`` makes it from a cell, `cell_task` from the same source in a script, with the same key.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import linecache
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from jug_notebook.errors import BadTask
from jug_notebook.keys.cell_names import CellNames, cell_function, cell_names
from jug_notebook.render.format import near
from jug_notebook.task.external import bash as run_bash
from jug_notebook.task.function import task
from jug_notebook.task.handles import Task

RUNNER = "jug_notebook.worker.cell_runner:run"
_SHOW = "show_last"


def cell_task(
    name: str,
    source: str,
    namespace: dict[str, Any],
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    bash: bool = False,
    version: str | None = None,
    retries: int = 0,
    timeout: float | None = None,
    ignore_globals: Sequence[str] = (),
    env: Sequence[str] = (),
    secret_env: Sequence[str] = (),
    pin: Sequence[str] = (),
    resources: Mapping[str, float | str] = {},
    limit: str | Sequence[str] = (),
) -> Task:
    """Return the task that a cell ``%%jugtask NAME`` makes of its source: ``%jug_export`` writes such calls.

    What the source reads from outside is looked up in ``namespace``, usually ``globals()``; ``task["x"]`` is the ``x``
    that it sets. ``inputs`` and ``outputs`` name what can't be seen in it; with ``bash`` it is a bash script, whose
    output is the value. Magics and ``!commands`` are in it as the Python that IPython translates them to. Raises
    BadTask.
    """
    for kind, given in (("name", name), ("source", source)):
        if not isinstance(given, str):
            raise BadTask(f"cell_task: {kind}={given!r:.60} is not a string")
    inputs, outputs, ignore_globals = (
        [names] if isinstance(names, str) else names for names in (inputs, outputs, ignore_globals)
    )
    options: dict[str, Any] = {
        "version": version,
        "retries": retries,
        "timeout": timeout,
        "ignore_globals": tuple(ignore_globals),
    }
    options |= {
        "env": tuple(env),
        "secret_env": tuple(secret_env),
        "resources": resources,
        "pin": tuple(pin),
        "limit": limit,
    }
    if bash:
        return of_script(name, source, namespace, inputs, **options)
    body = read(name, source, outputs)
    wanted = (*body.names.reads, *inputs, *body.outputs)
    present = {one: namespace[one] for one in wanted if one in namespace}
    filename = f"<cell {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    made: Task = make(body, namespace, present, inputs, filename, **options).task
    return made


@dataclass(frozen=True)
class Body:
    """What is known of a cell before its task is made."""

    name: str
    source: str  #: plain Python
    names: CellNames
    outputs: tuple[str, ...]
    declared: tuple[str, ...]  #: those that must be there in the end


@dataclass(frozen=True)
class CellTask:
    """A cell as one task."""

    task: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read(name: str, source: str, outputs: Sequence[str] = (), typed: str = "") -> Body:
    """Analyse a cell; ``typed`` is what the user wrote, where ``source`` has Python in the place of magics.

    Raises BadTask for what a cell task can't contain, with the line.
    """
    _check_name(name)
    source = timed_in_the_open(source)
    _check_hidden_names(source, typed or source)
    names = cell_names(source)
    every = tuple(dict.fromkeys([*(one for one in names.assigns if not one.startswith("_")), *outputs]))
    if name in every:
        function = f"; for a function as a task: %%jugtask --only {name}" if name in names.defines else ""
        raise BadTask(f"the cell sets {name!r} itself, so its task needs another name, say {name}_task{function}")
    return Body(name, source, names, every, tuple(outputs))


def make(
    body: Body,
    namespace: dict[str, Any],
    present: Mapping[str, Any],
    inputs: Sequence[str],
    filename: str,
    **options: Any,
) -> CellTask:
    """Return the task. ``present`` has the values of names that the cell may use; ``inputs`` were asked for.

    Raises BadTask for a name that isn't defined, JugError for inputs that can't be hashed or stored.
    """
    names = body.names
    _check_inputs(inputs, present, namespace)
    _check_reads(body.source, names.reads - {*names.assigns, *names.imports}, present, namespace)
    taken = {one for one in {*names.reads, *inputs, *body.declared} if _is_input(one, present, names.assigns, inputs)}
    taken -= names.imports
    slots = tuple(sorted(taken))
    function = cell_function(
        body.name, body.source, filename, slots, body.outputs, namespace,
        prelude=_prelude(body.source), show=_shows(body.source),
    )  # fmt: skip
    function.jug_cell = (body.outputs, body.declared)  # type: ignore[attr-defined]
    maker: Any = task
    aside = taken.intersection(options.get("ignore_globals", ()))  # data that a cell reads are arguments
    made = maker(name=body.name, runner=RUNNER, ignore=sorted(aside), **options)(function)
    return CellTask(made(**{one: present[one] for one in slots}), slots, body.outputs)


def of_script(name: str, script: str, namespace: Mapping[str, Any], inputs: Sequence[str] = (), **options: Any) -> Task:
    """Return a bash script as the task ``name``: inputs are environment variables, stdout is the value."""
    _check_name(name)
    _check_inputs(inputs, namespace, namespace)
    run: Any = partial(run_bash, script.strip("\n"))
    run.__signature__ = Signature([Parameter(one, Parameter.KEYWORD_ONLY) for one in sorted(inputs)])
    maker: Any = task(name=name, **options)
    function = maker(run)
    del run.__signature__  # it was for binding alone, and can't be pickled
    made: Task = function(**{one: namespace[one] for one in sorted(inputs)})
    return made


_TIME = re.compile(r"^([ \t]*)get_ipython\(\)\.run_line_magic\('time', ('.*'|\".*\")\)$", re.MULTILINE)


def timed_in_the_open(source: str) -> str:
    """Return the source with the code of ``%time x = f()``, which sets x, written out. Tasks are timed in any case."""

    def written_out(found: re.Match[str]) -> str:
        statement = ast.literal_eval(found[2])
        try:
            sets = any(
                isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                for node in ast.walk(ast.parse(statement))
            )
        except SyntaxError:
            return found[0]
        return found[1] + statement if sets else found[0]

    return _TIME.sub(written_out, source)


def _check_inputs(inputs: Iterable[str], present: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in inputs:
        if name not in present:
            raise BadTask(f"-i {name}: there is no {name!r}" + near(name, known))


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise BadTask(f"{name!r} can't be the name of a task: it must be a Python name, as in %%jugtask clean")


_SETS_NAMES = {"time", "prun", "run", "pylab", "store", "rerun", "edit", "reset", "reset_selective", "xdel"}


def _check_hidden_names(source: str, typed: str) -> None:
    """Refuse code that sets names without showing which: other lines would use their former values."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="run_line_magic"), args=[ast.Constant(magic), ast.Constant(str(rest))]
            ):
                hidden = magic in _SETS_NAMES and (magic != "time" or "=" in rest.replace("==", ""))
            case ast.Call(func=ast.Name(id="exec"), args=[_], keywords=[]) | ast.Call(func=ast.Name(id="globals")):
                hidden = True
            case _:
                continue
        if hidden:
            line = typed.splitlines()[node.lineno - 1].strip()
            raise BadTask(
                f"line {node.lineno}: `{line}` may set names without showing which, so it can't be in a cell task: "
                "write them out, or leave the cell without %%jugtask"
            )


def _prelude(source: str) -> str:
    """Return the import that the cell needs in a worker: a shell for magics, a function to show its last expression."""
    wanted = [_SHOW] if _shows(source) else []
    if any(isinstance(node, ast.Name) and node.id == "get_ipython" for node in ast.walk(ast.parse(source))):
        wanted.append("get_ipython")
    return f"from jug_notebook.worker.cell_runner import {', '.join(wanted)}" if wanted else ""


def _shows(source: str) -> str:
    """Return the function that shows the last expression's value; none where a semicolon ends it, as in any cell."""
    body = ast.parse(source).body
    if not body or not isinstance(body[-1], ast.Expr):
        return ""
    return "" if source.rstrip().endswith(";") else _SHOW


def _check_reads(source: str, reads: Iterable[str], present: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises BadTask for a name that isn't defined: better now than in a worker."""
    missing = sorted(name for name in reads if name not in present and not hasattr(builtins, name))
    if missing:
        name = missing[0]
        lines = [n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and n.id == name]
        raise BadTask(f"line {min(lines, default=1)}: there is no {name!r}" + near(name, known))


def _is_input(name: str, present: Mapping[str, Any], assigned: Sequence[str], asked: Sequence[str]) -> bool:
    """Data are inputs; functions, classes and modules belong to the code, unless the cell rebinds their name."""
    if name not in present:
        return False
    code = isinstance(present[name], FunctionType | BuiltinFunctionType | type | ModuleType)
    return name in assigned or name in asked or not (code or hasattr(type(present[name]), "examine"))
