"""The commands for jugfiles: what they are asked for, and what they do."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jug_notebook.compat import configuration

if TYPE_CHECKING:
    from jug_notebook.session import Session


class Script(NamedTuple):
    """A command for jugfiles."""

    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Any], int]


# -- what may be said --------------------------------------------------------------------------------------------------


def _flag(parser: Any, option: str, dest: str, help: str) -> None:
    parser.add_argument(option, action="store_const", const=True, dest=dest, help=help)


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command for jugfiles takes. ``--jugdir`` is there already."""
    parser.add_argument("jugfile", nargs="?", metavar="JUGFILE", help="the script (default: jugfile.py)")
    parser.add_argument("user_args", nargs="*", metavar="ARGS", help="arguments for the script, in its sys.argv")
    parser.add_argument("--verbose", metavar="LEVEL", help="how much to tell: info, debug")
    _flag(parser, "--short", "short", "say it in a line")
    _flag(parser, "--pdb", "pdb", "start a debugger where an error happens")
    _flag(parser, "--debug", "debug", "check that tasks do not change their arguments")
    _flag(parser, "--aggressive-unload", "aggressive_unload", "of no effect: values are never kept longer than needed")
    _flag(parser, "--will-cite", "will_cite", "of no effect: nobody asks to be cited")


def _selection(parser: Any, name: str, pattern: str, required: bool, what: str) -> None:
    from jug_notebook.compat.jug.utils import add_task_selection_options  # only for who selects

    add_task_selection_options(parser, name, pattern, required, what)


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _add_execute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", type=_workers, dest="execute_workers", metavar="N", help="in so many workers (default: in this process)"
    )
    _selection(parser, "execute_name", "execute_pattern", False, "run only tasks")
    parser.add_argument(
        "--wait-cycle-time", type=float, dest="execute_wait_cycle_time", metavar="SECONDS",
        help="times --nr-wait-cycles: how long to wait for others while nothing moves (default: 12)",
    )  # fmt: skip
    parser.add_argument("--nr-wait-cycles", type=int, dest="execute_nr_wait_cycles", metavar="N", help="(default: 150)")
    _flag(parser, "--keep-going", "execute_keep_going", "go on with the rest after an error")
    _flag(parser, "--keep-failed", "execute_keep_failed", "leave alone what failed before")
    _flag(
        parser, "--no-check-environment", "execute_no_check_environment", "ignore JUG_MAX_TASKS … and the stop file"
    )  # fmt: skip
    parser.add_argument("--part", action="store_const", const=True, dest="execute_part", help=argparse.SUPPRESS)


def _add_status(parser: argparse.ArgumentParser) -> None:
    _flag(parser, "--cache", "status_cache", "of no effect: it is quick, and never out of date")
    parser.add_argument("--cache-file", dest="status_cache_file", metavar="F", help="of no effect but with --clear")
    _flag(parser, "--clear", "status_cache_clear", "with --cache: remove the cache that Jug left")


def _add_invalidate(parser: argparse.ArgumentParser) -> None:
    _selection(parser, "invalid_name", "invalid_pattern", True, "tasks")


def _add_cleanup(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    _flag(group, "--locks-only", "cleanup_locks_only", "only open what failed; what a dead worker ran is open anyway")
    _flag(group, "--failed-only", "cleanup_failed_only", "only open what failed")
    _flag(group, "--keep-locks", "cleanup_keep_locks", "leave failures as they are")


def _add_graph(parser: argparse.ArgumentParser) -> None:
    _flag(parser, "--no-status", "graph_no_status", "names only")
    parser.add_argument("--file-format", dest="graph_format", metavar="FORMAT", help="as dot knows them (default: png)")


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    return


# -- loading -----------------------------------------------------------------------------------------------------------


@contextmanager
def loaded(options: Any, read_only: bool) -> Iterator[dict[str, Any]]:
    """A script, loaded; within, its tasks can be asked. Only to look, or to hand them in."""
    from jug_notebook.compat import loading

    with serving(options, read_only):
        yield loading.load(options.jugfile, "propagate" if options.pdb else "exit")


@contextmanager
def serving(options: Any, read_only: bool, connect: Callable[[str], Session] | None = None) -> Iterator[None]:
    """Within, scripts can be loaded: ``sys.argv``, the store and what they import are theirs."""
    from jug_notebook.compat import jugdir, loading
    from jug_notebook.compat.jug.task import Task

    script = Path(options.jugfile)
    if not script.is_file():
        print(f"jug-notebook: no jugfile at {options.jugfile!r}", file=sys.stderr)
        sys.exit(1)
    arguments = list(options.user_args)
    owner = "" if connect else os.path.abspath(script)  # a notebook's cell is not the script's to begin and end
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
    from jug_notebook.compat.configuration import Options

    options = Options()
    options.update(configuration.settle(vars(given), more or {}))
    options.update({"subcommand": name, "print_out": print, "argv": None})
    return options


# -- looking -----------------------------------------------------------------------------------------------------------

COLUMNS = ("Failed", "Waiting", "Ready", "Complete", "Active")


def stand(alltasks: list[Any]) -> list[str]:
    """Where each task stands, by Jug's words. What nobody has handed in yet follows from what it needs."""
    from jug_notebook.compat.jug.task import Task
    from jug_notebook.model import State

    words = {State.FINISHED: "Complete", State.FAILED: "Failed", State.RUNNING: "Active", State.READY: "Ready"}
    keys = [task.key for task in alltasks]
    states = dict(zip(keys, Task.store.session.queries.states(keys), strict=True)) if keys else {}

    def word(task: Any) -> str:
        state = states[task.key]
        if state in words:
            return words[state]
        if state is None or state is State.CANCELLED:
            needs = [need.key for need in task.dependencies()]
            missing = [need for need in needs if need not in states]
            more = dict(zip(missing, Task.store.session.queries.states(missing), strict=True)) if missing else {}
            there = all((states | more)[need] is State.FINISHED for need in needs) if needs else True
            return "Ready" if there else "Waiting"
        return "Waiting"

    return [word(task) for task in alltasks]


def _counted() -> dict[str, Counter[str]]:
    from jug_notebook.compat.jug.task import alltasks

    counts: dict[str, Counter[str]] = {column: Counter() for column in COLUMNS}
    for task, word in zip(alltasks, stand(alltasks), strict=True):
        counts[word][task.name] += 1
    return counts


def _status(options: Any) -> int:
    if options.status_cache and options.status_cache_clear:
        Path(options.status_cache_file).unlink(missing_ok=True)
        return 0
    with loaded(options, read_only=True) as space:
        counts = _counted()
        totals = {column: sum(count.values()) for column, count in counts.items()}
        over = not any(totals[column] for column in COLUMNS if column != "Complete")
        if options.short:
            options.print_out(_in_a_line(totals, over))
        else:
            from jug_notebook.compat.jug.utils import print_task_summary_table

            print_task_summary_table(options, list(counts.items()))
        return 0 if over and not _stopped(space) else 1


def _in_a_line(totals: dict[str, int], over: bool) -> str:
    if over:
        return f"All tasks complete ({totals['Complete']} tasks)."
    active = f"({totals['Active']} active)." if totals["Active"] else "(none active)."
    waiting = totals["Waiting"] + totals["Ready"]
    return f"{waiting} tasks waiting to be run, {totals['Failed']} failed, {totals['Complete']} complete, {active}"


def _stopped(space: dict[str, Any]) -> bool:
    from jug_notebook.compat.loading import BARRIER

    return BARRIER in space


def _check(options: Any) -> int:
    from jug_notebook.compat.jug import task
    from jug_notebook.compat.jug.task import done

    with loaded(options, read_only=True) as space:
        return 0 if done(task.alltasks) and not _stopped(space) else 1


def _count(options: Any) -> int:
    from jug_notebook.compat.jug.task import alltasks
    from jug_notebook.compat.jug.utils import print_task_summary_table

    with loaded(options, read_only=True):
        print_task_summary_table(options, [("Count", Counter(task.name for task in alltasks))])
    return 0


def _sleep_until(options: Any) -> int:
    from jug_notebook.compat import loading
    from jug_notebook.compat.jug import task
    from jug_notebook.compat.jug.task import Task
    from jug_notebook.model import State

    with serving(options, read_only=False):
        while True:
            del task.alltasks[:]
            space = loading.load(options.jugfile)
            keys = list(dict.fromkeys(one.key for one in task.alltasks))
            seen = -1
            while keys and (states := Task.store.session.queries.states(keys)):
                if all(state is State.FINISHED for state in states):
                    break
                if any(state is State.FAILED for state in states) and not any(
                    state in (State.READY, State.RUNNING) for state in states
                ):
                    print("jug-notebook: a task has failed; see jug-notebook status", file=sys.stderr)
                    return 1
                seen = Task.store.session.queries.watch(seen, 1.0)
            if not _stopped(space):
                return 0


# -- acting ------------------------------------------------------------------------------------------------------------


def _execute(options: Any) -> int:
    from jug_notebook.compat.execute import Execution
    from jug_notebook.compat.jug.utils import prepare_matcher_from_options

    matches = prepare_matcher_from_options(options.execute_name, options.execute_pattern)
    options.update({"again": _rerun(options)})
    with serving(options, read_only=False):
        execution = Execution(options.jugfile, options, matches, options.execute_workers)
        status = execution.run()
        _tell_failures(execution.failures())
        return status


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


def _tell_failures(keys: list[str]) -> None:
    from jug_notebook import render
    from jug_notebook.compat.jug.task import Task

    shown = keys[:20]
    for key in shown if keys else ():
        failures = Task.store.session.status_of([key]).snapshot.failures
        for failure in failures:
            print(render.failure_text(failure), end="\n\n", file=sys.stderr)
    if len(keys) > len(shown):
        print(f"and {len(keys) - len(shown)} more failures", file=sys.stderr)


def _invalidate(options: Any) -> int:
    from jug_notebook.compat.jug.task import Task, alltasks
    from jug_notebook.compat.jug.utils import prepare_matcher_from_options, print_task_summary_table
    from jug_notebook.model import State

    matches = prepare_matcher_from_options(options.invalid_name, options.invalid_pattern)
    with loaded(options, read_only=True):
        hit = {task.key for task in alltasks if matches is None or matches(task.name)}
        below = set(hit)
        for task in alltasks:  # what a task needs comes before it
            if any(need.key in below for need in task.dependencies()):
                below.add(task.key)
        if not below:
            options.print_out("No results invalidated.")
            return 0
        keys = list(below)
        states = dict(zip(keys, Task.store.session.queries.states(keys), strict=True))
        lost = Counter(task.name for task in alltasks if states.get(task.key) is State.FINISHED)
        Task.store.remove_many(sorted(hit))
        Task.store.retry_failed(hit)
        if not lost:
            options.print_out("Tasks invalidated, but no results removed")
        else:
            print_task_summary_table(options, [("Invalidated", lost)])
    return 0


def _cleanup(options: Any) -> int:
    from jug_notebook.compat.jug.task import Task, alltasks

    with loaded(options, read_only=False) as space:
        if options.cleanup_locks_only or options.cleanup_failed_only:
            what = "failure locks" if options.cleanup_failed_only else "locks"
            options.print_out(f"Removed {Task.store.retry_failed()} {what}")
            return 0
        if _stopped(space):
            print("nothing is removed: the script stopped at a barrier, and what lies beyond can't be told; execute it")
            return 1
        options.print_out(f"Removed {Task.store.cleanup(alltasks)} objects")
        if not options.cleanup_keep_locks:
            options.print_out(f"Removed {Task.store.retry_failed()} locks")
    return 0


def _graph(options: Any) -> int:
    from jug_notebook.compat.graph import draw

    with loaded(options, read_only=True):
        from jug_notebook.compat.jug.task import alltasks

        return draw(alltasks, stand(alltasks), options)


def _shell(options: Any) -> int:
    from jug_notebook.compat.shell import shell

    with loaded(options, read_only=False) as space:
        return shell(space, options.jugfile)


def _pack(options: Any) -> int:
    from jug_notebook.compat.jug.task import Task
    from jug_notebook.render import size

    with loaded(options, read_only=False):
        shown, saved = Task.store.session.display_url, Task.store.session.access.store.compact()
        options.print_out(f"{shown} takes {size(saved)} less" if saved else f"{shown} is as small as it gets")
    return 0


def users_command(command: Any) -> Script:
    """A sub-command that a user has written."""
    from jug_notebook.compat.jug.subcommands import help_of

    def run(options: Any) -> int:
        with loaded(options, read_only=False) as space:
            from jug_notebook.compat.jug.task import Task

            return int(command(options=options, store=Task.store, jugspace=space) or 0)

    return Script(help_of(command), command.parse, run)


def as_store(jugfile: str, jugdir: str | None) -> str:
    """The store that a script uses: for commands that are about stores."""
    from jug_notebook.compat.jug.task import Task

    options = settled("status", argparse.Namespace(jugfile=jugfile, jugdir=jugdir, user_args=[]))
    with loaded(options, read_only=True):
        return str(Task.store.url)


# -- without a script --------------------------------------------------------------------------------------------------

PRIMES = """\
from time import sleep

from jug import TaskGenerator


@TaskGenerator
def is_prime(n):
    sleep(0.1)
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


@TaskGenerator
def count(found):
    return sum(found)


@TaskGenerator
def write(n):
    with open("output.txt", "w") as out:
        out.write(f"there are {n} primes up to 100\\n")


write(count([is_prime(n) for n in range(1, 101)]))
"""


def _demo(options: Any) -> int:
    folder = Path("jug-demo")
    options.print_out(
        f"A script, {folder}/primes.py, to try things with:\n\n"
        f"    cd {folder}\n"
        "    jug-notebook status primes.py\n"
        "    jug-notebook execute primes.py -n 4\n"
        "    jug-notebook status primes.py\n\n"
        "The result is then in output.txt. Run execute again, or several at the same time: nothing is computed twice."
    )
    if folder.exists():
        options.print_out(f"{folder} is there already")
        return 0
    folder.mkdir()
    (folder / "primes.py").write_text(PRIMES)
    return 0


SELF_TEST = """\
from jug import TaskGenerator, barrier, value
from jug.mapreduce import reduce

@TaskGenerator
def double(x):
    return 2 * x

@TaskGenerator
def add(x, y):
    return x + y

doubled = [double(x) for x in range(20)]
barrier()
total = reduce(add, [double(x) for x in value(doubled)])
"""


def _test(options: Any) -> int:
    """Run a small script with a barrier, in workers, and look at what came out."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a worker may still be leaving
        before = os.getcwd()
        os.chdir(folder)
        try:
            Path("selftest.py").write_text(SELF_TEST)
            given = argparse.Namespace(jugfile="selftest.py", jugdir="jugdata", user_args=[], execute_workers=2)
            status = _execute(settled("execute", given))
            with loaded(settled("status", given), read_only=True) as space:
                found = space["total"].value()
        finally:
            os.chdir(before)
    right = status == 0 and found == 4 * sum(range(20))
    options.print_out("all is well" if right else f"something is wrong: exit status {status}, value {found!r}")
    return 0 if right else 1


def _install_skills(options: Any) -> int:
    from jug_notebook.compat.skill import install

    if not options.install_skills_output:
        print("jug-notebook: say where to: install-skills --output DIR", file=sys.stderr)
        return 2
    try:
        target = install(Path(options.install_skills_output), bool(options.install_skills_force))
    except OSError as refused:
        print(f"jug-notebook: {refused.strerror}: {refused.filename}", file=sys.stderr)
        return 1
    options.print_out(f"Installed in {target}")
    return 0


def _add_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", dest="install_skills_output", metavar="DIR", help="where to")
    _flag(parser, "--force", "install_skills_force", "also over what is there")


def _import_jugdata(options: Any) -> int:
    from jug_notebook.compat.import_jugdata import take_over

    if not options.user_args:
        print("jug-notebook: say from where: import-jugdata JUGFILE JUGDIR", file=sys.stderr)
        return 2
    source, *options.__dict__["user_args"] = options.user_args
    if not options.jugdir_given:
        options.update({"jugdir": f"{source.rstrip('/')}.jn"})
    with serving(options, read_only=False):
        return take_over(options.jugfile, source, options)


#: answered for jugfiles, beside what the same commands do for stores
SCRIPTS = {
    "execute": Script("run the tasks of a jugfile", _add_execute, _execute),
    "status": Script("how many tasks stand where", _add_status, _status),
    "check": Script("exit status 0 if all is done, 1 if not", _add_nothing, _check),
    "count": Script("how many tasks there are of each function", _add_nothing, _count),
    "invalidate": Script("compute tasks again, and all made from them", _add_invalidate, _invalidate),
    "cleanup": Script("forget results that the jugfile no longer makes", _add_cleanup, _cleanup),
    "graph": Script("draw which tasks need which", _add_graph, _graph),
    "shell": Script("look at a jugfile's tasks in a shell", _add_nothing, _shell),
    "pack": Script("put small results together", _add_nothing, _pack),
    "sleep-until": Script("wait until all tasks of a jugfile are done", _add_nothing, _sleep_until),
    "import-jugdata": Script("take over the results that Jug itself has stored", _add_nothing, _import_jugdata),
}
#: need no script
ALONE = {
    "demo": Script("write a small jugfile to try things with", _add_nothing, _demo),
    "test-jug": Script("run a small jugfile, to see that all is well", _add_nothing, _test),
    "install-skills": Script("write down how to use jugfiles, for programs to read", _add_install, _install_skills),
}
