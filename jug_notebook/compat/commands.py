"""What the commands do for a jugfile, with Jug's tables, options and exit statuses; and the commands that users write.

These are classes derived from `SubCommand`, in ``~/.config/jug/jug_user_commands.py``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from abc import ABCMeta, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from jug_notebook import render
from jug_notebook.compat import replacing_jug
from jug_notebook.compat.execute import Execution
from jug_notebook.compat.jug.task import Task, alltasks, done
from jug_notebook.compat.jug.utils import Matcher, prepare_matcher_from_options, print_task_summary_table
from jug_notebook.compat.loading import BARRIER, load, loaded, serving, settled
from jug_notebook.errors import JugError
from jug_notebook.model import FunctionView, Graph, Key, State

FAILURES = 20  #: an execution prints the tracebacks of at most this many kinds of failures

# -- looking -----------------------------------------------------------------------------------------------------------

#: Jug's columns, in its order
COLUMNS = {
    State.FAILED: "Failed",
    State.WAITING: "Waiting",
    State.READY: "Ready",
    State.FINISHED: "Complete",
    State.RUNNING: "Active",
}


def _states() -> list[State]:
    """Return the state of each task, one of `COLUMNS`. A task not submitted yet: what it would be."""
    states: dict[Key, State | None] = Task.store.states(task.key for task in alltasks)

    def column(task: Any) -> State:
        state = states[task.key]
        if state is not None and state in COLUMNS:
            return state
        if state is State.BLOCKED:
            return State.WAITING
        needs = [need.key for need in task.dependencies()]
        found = states | Task.store.states(need for need in needs if need not in states)
        return State.READY if all(found[need] is State.FINISHED for need in needs) else State.WAITING

    return [column(task) for task in alltasks]


def _status(options: Any) -> int:
    if options.status_cache and options.status_cache_clear:
        Path(options.status_cache_file).unlink(missing_ok=True)
        return 0
    with loaded(options, read_only=True) as space:
        counts: dict[State, Counter[str]] = {state: Counter() for state in COLUMNS}
        for task, state in zip(alltasks, _states(), strict=True):
            counts[state][task.name] += 1
        totals = {COLUMNS[state]: count.total() for state, count in counts.items()}
        over = totals["Complete"] == len(alltasks)
        if options.short:
            options.print_out(_in_a_line(totals, over))
        else:
            print_task_summary_table(options, [(COLUMNS[state], count) for state, count in counts.items()])
        return 0 if over and BARRIER not in space else 1


def _in_a_line(totals: dict[str, int], over: bool) -> str:
    if over:
        return f"All tasks complete ({totals['Complete']} tasks)."
    active = f"({totals['Active']} active)." if totals["Active"] else "(none active)."
    waiting = totals["Waiting"] + totals["Ready"]
    return f"{waiting} tasks waiting to be run, {totals['Failed']} failed, {totals['Complete']} complete, {active}"


def _check(options: Any) -> int:
    with loaded(options, read_only=True) as space:
        return 0 if BARRIER not in space and done(alltasks) else 1


def _count(options: Any) -> int:
    with loaded(options, read_only=True):
        print_task_summary_table(options, [("Count", Counter(task.name for task in alltasks))])
    return 0


def _sleep_until(options: Any) -> int:
    with serving(options, read_only=False):
        while True:
            del alltasks[:]
            space = load(options.jugfile)
            seen = -1
            while states := set(Task.store.states(task.key for task in alltasks).values()) - {State.FINISHED}:
                if State.FAILED in states and not {State.READY, State.RUNNING} & states:
                    print("jug-notebook: a task has failed; see jug-notebook status", file=sys.stderr)
                    return 1
                seen = Task.store.session.queries.watch(seen, 1.0)
            if BARRIER not in space:
                return 0


# -- acting ------------------------------------------------------------------------------------------------------------


def _execute(options: Any) -> int:
    matches = _matcher(options.execute_name, options.execute_pattern)
    options.update({"again": _rerun(options)})
    with serving(options, read_only=False):
        execution = Execution(options, matches)
        status = execution.run()
        if execution.failed:
            kinds = render.kinds(Task.store.session.queries.status_of(list(execution.failed)).snapshot)
            for kind in kinds[:FAILURES]:
                similar = len(kind.keys) - 1
                more = f"and {render.plural(similar, 'similar failure')}\n\n" if similar else ""
                print(render.failure_text(kind.newest), more, sep="\n\n", end="", file=sys.stderr)
            if (left := sum(len(kind.keys) for kind in kinds[FAILURES:])) > 0:
                print(f"and {render.plural(left, 'more failure')}", file=sys.stderr)
        return status


def _matcher(name: str | None, pattern: str | None) -> Matcher | None:
    try:
        return prepare_matcher_from_options(name, pattern)
    except ValueError as wrong:
        raise JugError(str(wrong)) from wrong


def _rerun(options: Any) -> list[str]:
    """Return the command line of an execution like this one, in one process."""
    words = ["execute", "--part", "--jugdir", options.jugdir.replace("%", "%%")]
    for name in ("name", "pattern"):
        if (value := getattr(options, f"execute_{name}")) is not None:
            words += [f"--{name}", value]
    words += ["--wait-cycle-time", str(options.execute_wait_cycle_time)]
    words += ["--nr-wait-cycles", str(options.execute_nr_wait_cycles)]
    for flag in ("keep_going", "no_check_environment"):
        words += [f"--{flag.replace('_', '-')}"] * bool(getattr(options, f"execute_{flag}"))
    words += ["--keep-failed"]  # the execution that starts these tries them again
    words += ["--debug"] * bool(options.debug)
    return [*words, options.jugfile, *(["--", *options.user_args] if options.user_args else [])]


def _invalidate(options: Any) -> int:
    matches = _matcher(options.invalid_name, options.invalid_pattern)
    if matches is None:
        raise JugError("name the tasks: --name FUNCTION, or --pattern TEXT; '/.*/' means all")
    with loaded(options, read_only=True):
        hit = {task.key for task in alltasks if matches(task.name)}
        below = set(hit)
        for task in alltasks:  # dependencies come first
            if any(need.key in below for need in task.dependencies()):
                below.add(task.key)
        if not below:
            options.print_out("No results invalidated.")
            return 0
        states = Task.store.states(below)
        lost = Counter(task.name for task in alltasks if states.get(task.key) is State.FINISHED)
        Task.store.remove_many(sorted(hit))
        Task.store.retry_failed(hit)
        if lost:
            print_task_summary_table(options, [("Invalidated", lost)])
        else:
            options.print_out("Tasks invalidated, but no results removed")
    return 0


def _cleanup(options: Any) -> int:
    with loaded(options, read_only=False) as space:
        if options.cleanup_locks_only or options.cleanup_failed_only:
            what = "failure locks" if options.cleanup_failed_only else "locks"
            options.print_out(f"Removed {Task.store.retry_failed()} {what}")
            return 0
        if BARRIER in space:
            print("nothing is removed: the script stopped at a barrier, so later tasks are unknown; execute it first")
            return 1
        options.print_out(f"Removed {Task.store.cleanup(alltasks)} objects")
        if not options.cleanup_keep_locks:
            options.print_out(f"Removed {Task.store.retry_failed()} locks")
    return 0


def _import_jugdata(options: Any) -> int:
    from jug_notebook.compat.import_jugdata import import_values

    if not options.user_args:
        raise JugError("name the jugdir to import from: import-jugdata JUGFILE JUGDIR")
    source, *options.__dict__["user_args"] = options.user_args
    if not options.jugdir_given:
        options.update({"jugdir": f"{source.rstrip('/')}.jn"})
    with serving(options, read_only=False):
        return import_values(options.jugfile, source, options, trust=options.trust is True)


# -- the graph of a jugfile's functions --------------------------------------------------------------------------------

_COLORS = {
    State.FAILED: ("F", "#c0392b"),
    State.WAITING: ("W", "#7f8c8d"),
    State.READY: ("R", "#d68910"),
    State.RUNNING: ("A", "#2e6da4"),
    State.FINISHED: ("C", "#2e8b57"),
}


def _graph(options: Any) -> int:
    """Write ``<jugfile>.dot`` and what dot makes of it; where graphviz is not installed, ``<jugfile>.svg``."""
    counts: dict[str, Counter[State]] = {}
    edges: Counter[tuple[str, str]] = Counter()
    with loaded(options, read_only=True):
        for task, state in zip(alltasks, _states(), strict=True):
            counts.setdefault(task.name, Counter())[state] += 1
            edges.update((task.name, need.name) for need in task.dependencies())
    stem, form = Path(options.jugfile).with_suffix(""), options.graph_format
    dot = stem.with_suffix(".dot")
    dot.write_text(_dot(counts, edges, bool(options.graph_no_status)), encoding="utf-8")
    try:
        subprocess.run(["dot", str(dot), f"-T{form}", "-o", f"{stem}.{form}"], check=True)
    except FileNotFoundError:
        functions = tuple(FunctionView(name, dict(count)) for name, count in counts.items())
        graph = Graph(functions, tuple((name, need, n) for (name, need), n in edges.items()), str(stem), "this jugfile")
        stem.with_suffix(".svg").write_text(render.svg(graph, alone=True), encoding="utf-8")
        print(f"graphviz is not installed; the picture is {stem}.svg, the graph {dot}", file=sys.stderr)
    except subprocess.CalledProcessError as failed:
        print(f"dot ended with exit status {failed.returncode}; the graph is {dot}", file=sys.stderr)
    return 0


def _dot(counts: dict[str, Counter[State]], edges: Counter[tuple[str, str]], plain: bool) -> str:
    lines = ["digraph {"]
    for name, count in counts.items():
        cells = "".join(
            f"<td><font color='{color}'><b>{count[state]}{letter}</b></font></td>"
            for state, (letter, color) in _COLORS.items()
        )
        table = (
            f"<table cellpadding='0' cellborder='0' border='0'><tr><td colspan='5'>{escape(name)}</td></tr>"
            f"<tr>{cells}</tr></table>"
        )
        lines.append(f"  {_quoted(name)}" + (f" [label=<{table}>]" * (not plain)))
    lines += [f"  {_quoted(need)} -> {_quoted(name)}" for name, need in edges]
    return "\n".join([*lines, "}"]) + "\n"


_quoted = partial(json.dumps, ensure_ascii=False)


# -- for other commands ------------------------------------------------------------------------------------------------


def store_of(jugfile: str) -> str:
    """Return the URL of the store that a script uses."""
    options = settled("status", argparse.Namespace(jugfile=jugfile, jugdir=None, user_args=[]))
    with loaded(options, read_only=True):
        return str(Task.store.url)


#: what each command does for a jugfile: a function of the `settled` options that returns the exit status
ACTIONS: dict[str, Callable[[Any], int]] = {
    "execute": _execute,
    "status": _status,
    "check": _check,
    "count": _count,
    "invalidate": _invalidate,
    "cleanup": _cleanup,
    "graph": _graph,
    "sleep-until": _sleep_until,
    "import-jugdata": _import_jugdata,
}


# -- users' commands --------------------------------------------------------------------------------------------------

FOLDER = "~/.config/jug"
MODULE = "jug_user_commands"


class SubCommandError(Exception):
    """A sub-command is not written as it should be."""


class NoSuchCommandError(Exception):
    """There is no such sub-command."""


class SubCommand(metaclass=ABCMeta):
    """A sub-command; the help lists it with the first line of its docstring."""

    def __init__(self) -> None:
        cmdapi.register(self)

    @property
    @abstractmethod
    def name(self) -> str:
        """The command's name."""

    def parse(self, parser: Any) -> None:
        """Add options to an ``argparse`` parser; with ``store_const``, so that jugrc files can set them."""
        return

    def parse_defaults(self) -> dict[str, Any] | None:
        """Return the defaults of the options."""
        return None

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command with ``options``, ``store`` and ``jugspace``. Return the exit status, or None for 0."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class _Commands:
    """The users' sub-commands."""

    def __init__(self) -> None:
        self._commands: dict[str, SubCommand] = {}

    def register(self, command: SubCommand) -> None:
        self._commands[command.name] = command

    def get(self, name: str) -> SubCommand:
        try:
            return self._commands[name]
        except KeyError:
            raise NoSuchCommandError(f"no sub-command {name!r}") from None

    def load(self) -> dict[str, SubCommand]:
        """Import the user's file, if there is one; return all commands by name."""
        folder = Path(FOLDER).expanduser()
        if (folder / f"{MODULE}.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            with replacing_jug():
                importlib.import_module(MODULE)
        return dict(self._commands)


cmdapi = _Commands()


def help_of(command: SubCommand) -> str:
    """Return the line for the help. Raises SubCommandError if there is none."""
    lines = (type(command).__doc__ or "").strip().splitlines()
    if not lines:
        raise SubCommandError(f"sub-command {command.name!r} has no docstring; its first line is its help")
    return lines[0]
