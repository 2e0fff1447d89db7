"""What the commands do for a jugfile: Jug's tables, options and exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jug_notebook import render
from jug_notebook.compat import configuration, graph, jugdir, loading, shell
from jug_notebook.compat.configuration import Options
from jug_notebook.compat.execute import Execution
from jug_notebook.compat.jug.task import Task, alltasks, done
from jug_notebook.compat.jug.utils import Matcher, prepare_matcher_from_options, print_task_summary_table
from jug_notebook.compat.loading import BARRIER
from jug_notebook.errors import JugError
from jug_notebook.model import Key, State
from jug_notebook.session import Session

FAILURES = 20  #: an execution ends with the tracebacks of so many failures


# -- loading -----------------------------------------------------------------------------------------------------------


@contextmanager
def loaded(options: Any, read_only: bool) -> Iterator[dict[str, Any]]:
    """Load a script; within, its tasks can be asked. With ``read_only`` they are named and not handed in."""
    with serving(options, read_only):
        yield loading.load(options.jugfile, "propagate" if options.pdb else "exit")


@contextmanager
def serving(options: Any, read_only: bool, connect: Callable[[str], Session] | None = None) -> Iterator[None]:
    """Within, scripts can be loaded: ``sys.argv``, the store and what they import are theirs."""
    if not os.path.isfile(options.jugfile):
        print(f"jug-notebook: no jugfile at {options.jugfile!r}", file=sys.stderr)
        sys.exit(1)
    arguments = list(options.user_args)
    owner = "" if connect else os.path.abspath(options.jugfile)  # else the notebook begins and ends the cell
    purpose = jugdir.Purpose(owner, " ".join(arguments), Path.cwd(), read_only, connect=connect)
    before = sys.argv[:]
    if options.debug:
        os.environ[jugdir.CHECK] = "1"
    with loading.serving(purpose):
        sys.argv[:] = [options.jugfile, *arguments]
        try:
            Task.store = jugdir.Jugdir(options.jugdir)
            yield
        finally:
            sys.argv[:] = before


def settled(name: str, given: argparse.Namespace, more: dict[str, Any] | None = None) -> Any:
    """The options of a command, all of them set."""
    options = Options()
    options.update(configuration.settle(vars(given), more or {}))
    options.update({"subcommand": name, "print_out": print, "argv": None})
    return options


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
    """Return the state of each task, one of `COLUMNS`. A task that is not handed in yet has the one it would have."""
    keys = [task.key for task in alltasks]
    states = _known(keys)

    def column(task: Any) -> State:
        state: State | None = states[task.key]
        if state is not None and state in COLUMNS:
            return state
        if state is State.BLOCKED:
            return State.WAITING
        needs = [need.key for need in task.dependencies()]
        found = states | _known([need for need in needs if need not in states])
        return State.READY if all(found[need] is State.FINISHED for need in needs) else State.WAITING

    return [column(task) for task in alltasks]


def _known(keys: list[Key]) -> dict[Key, Any]:
    """Return the state of each task in the store, None where it doesn't know the task."""
    return dict(zip(keys, Task.store.session.queries.states(keys), strict=True)) if keys else {}


def _finished(space: dict[str, Any]) -> bool:
    return BARRIER not in space and done(alltasks)


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
        return 0 if _finished(space) else 1


def _count(options: Any) -> int:
    with loaded(options, read_only=True):
        print_task_summary_table(options, [("Count", Counter(task.name for task in alltasks))])
    return 0


def _sleep_until(options: Any) -> int:
    with serving(options, read_only=False):
        while True:
            del alltasks[:]
            space = loading.load(options.jugfile)
            keys = list(dict.fromkeys(task.key for task in alltasks))
            seen = -1
            while states := set(_known(keys).values()) - {State.FINISHED}:
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
        execution = Execution(options.jugfile, options, matches, options.execute_workers)
        status = execution.run()
        failed = execution.failures()
        for key in failed[:FAILURES]:
            for failure in Task.store.session.queries.status_of([key]).snapshot.failures:
                print(render.failure_text(failure), end="\n\n", file=sys.stderr)
        if len(failed) > FAILURES:
            print(f"and {len(failed) - FAILURES} more failures", file=sys.stderr)
        return status


def _matcher(name: str | None, pattern: str | None) -> Matcher | None:
    try:
        return prepare_matcher_from_options(name, pattern)
    except ValueError as wrong:
        raise JugError(str(wrong)) from wrong


def _rerun(options: Any) -> list[str]:
    """The command line of an execution like this one, in one process."""
    words = ["execute", "--part", "--jugdir", options.jugdir.replace("%", "%%")]
    for name in ("name", "pattern"):
        if (value := getattr(options, f"execute_{name}")) is not None:
            words += [f"--{name}", value]
    words += ["--wait-cycle-time", str(options.execute_wait_cycle_time)]
    words += ["--nr-wait-cycles", str(options.execute_nr_wait_cycles)]
    for flag in ("keep_going", "no_check_environment"):
        words += [f"--{flag.replace('_', '-')}"] * bool(getattr(options, f"execute_{flag}"))
    words += ["--keep-failed"]  # they are tried again by the one that started these
    words += ["--debug"] * bool(options.debug)
    return [*words, options.jugfile, *(["--", *options.user_args] if options.user_args else [])]


def _invalidate(options: Any) -> int:
    matches = _matcher(options.invalid_name, options.invalid_pattern)
    if matches is None:
        raise JugError("name the tasks: --name FUNCTION, or --pattern TEXT; '/.*/' means all")
    with loaded(options, read_only=True):
        hit = {task.key for task in alltasks if matches(task.name)}
        below = set(hit)
        for task in alltasks:  # what a task needs comes before it
            if any(need.key in below for need in task.dependencies()):
                below.add(task.key)
        if not below:
            options.print_out("No results invalidated.")
            return 0
        states = _known(list(below))
        lost = Counter(task.name for task in alltasks if states.get(task.key) is State.FINISHED)
        Task.store.remove_many(sorted(hit))
        Task.store.retry_failed(hit)
        if not lost:
            options.print_out("Tasks invalidated, but no results removed")
        else:
            print_task_summary_table(options, [("Invalidated", lost)])
    return 0


def _cleanup(options: Any) -> int:
    with loaded(options, read_only=False) as space:
        if options.cleanup_locks_only or options.cleanup_failed_only:
            what = "failure locks" if options.cleanup_failed_only else "locks"
            options.print_out(f"Removed {Task.store.retry_failed()} {what}")
            return 0
        if BARRIER in space:
            print("nothing is removed: the script stopped at a barrier, and its tasks beyond aren't known; execute it")
            return 1
        options.print_out(f"Removed {Task.store.cleanup(alltasks)} objects")
        if not options.cleanup_keep_locks:
            options.print_out(f"Removed {Task.store.retry_failed()} locks")
    return 0


def _graph(options: Any) -> int:
    with loaded(options, read_only=True):
        return graph.draw(alltasks, _states(), options)


def _shell(options: Any) -> int:
    with loaded(options, read_only=False) as space:
        return shell.shell(space, options.jugfile)


def _import_jugdata(options: Any) -> int:
    from jug_notebook.compat.import_jugdata import take_over

    if not options.user_args:
        raise JugError("name the jugdir to import from: import-jugdata JUGFILE JUGDIR")
    source, *options.__dict__["user_args"] = options.user_args
    if not options.jugdir_given:
        options.update({"jugdir": f"{source.rstrip('/')}.jn"})
    with serving(options, read_only=False):
        return take_over(options.jugfile, source, options)


def submitted(options: Any) -> str:
    """Hand in a script's tasks; return the URL of its store."""
    with loaded(options, read_only=False):
        _ = Task.store.session
        return str(Task.store.url)


def store_of(jugfile: str) -> str:
    """Return the URL of the store that a script uses."""
    options = settled("status", argparse.Namespace(jugfile=jugfile, jugdir=None, user_args=[]))
    with loaded(options, read_only=True):
        return str(Task.store.url)


#: what each command does for a jugfile; all get the `settled` options and return the exit status
ACTIONS: dict[str, Callable[[Any], int]] = {
    "execute": _execute,
    "status": _status,
    "check": _check,
    "count": _count,
    "invalidate": _invalidate,
    "cleanup": _cleanup,
    "graph": _graph,
    "shell": _shell,
    "sleep-until": _sleep_until,
    "import-jugdata": _import_jugdata,
}
