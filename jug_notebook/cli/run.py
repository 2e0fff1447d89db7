"""Commands that run tasks: ``worker`` and ``execute``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jug_notebook import system
from jug_notebook.cli import (
    Arguments,
    Notebook,
    Parser,
    UsageError,
    existing,
    flag,
    for_jugfile,
    positive,
    register,
    resources,
    seconds,
    size,
)
from jug_notebook.cli.inspect import picture_of, verdict
from jug_notebook.cli.jugfiles import add_selection
from jug_notebook.clock import CLOCK
from jug_notebook.compat.hooks import STOP_FILE, limits_in
from jug_notebook.render.format import duration

if TYPE_CHECKING:
    from jug_notebook.model import Target
    from jug_notebook.worker import WorkerOptions


def _add_limits(parser: Parser, idle: float) -> None:
    def limit(option: str, type: Callable[[str], object], metavar: str, help: str) -> None:
        action = "append" if option == "--env" else "store"
        parser.stores_only.add(parser.add_argument(option, action=action, type=type, metavar=metavar, help=help).dest)

    parser.add_argument("-n", dest="size", type=positive, metavar="N", help="number of workers (default: one per core)")
    parser.add_argument(
        "--target", action="append", metavar="T", help="only tasks of this function, with this key, or matching /regex/"
    )
    parser.add_argument("--not-target", action="append", metavar="T", help="all tasks except these; as --target")
    limit(
        "--gpus",
        str,
        "IDS",
        "GPUs that tasks may use: 0,1 or none (default: all). With --slurm: how many each job gets",
    )
    limit(
        "--resources",
        resources,
        "NAME=N,…",
        "other things that tasks may need, and how much there is: license=2,mem=16G",
    )
    limit("--env", str, "K=V", "an environment variable for workers; repeatable")
    limit("--max-tasks", positive, "N", "each worker ends after N tasks")
    late = "start no task after this time, nor one that would still be running then: 600, 90s, 10min, 2h"
    limit("--max-time", seconds, "TIME", late)
    limit("--memory-limit", size, "SIZE", "end a task that takes more: 500MB, 2G, 2GiB")
    away = f"end after this time with nothing to do (default: {idle:g} s)"
    limit("--idle-timeout", seconds, "TIME", away)
    limit("--patience", seconds, "TIME", "wait this long for the store's server when it is away (default: 10min)")
    parser.add_argument("--notify", action="append", default=[], metavar="T", help=NOTIFY)
    parser.stores_only.add("notify")
    flag(parser, "--no-keep-going", "keep_going", "start no new tasks once one has failed", const=False)
    parser.stores_only.add("keep_going")
    parser.set_defaults(idle=idle)


NOTIFY = (
    "send a line there when all is done, or nothing can go on: a shell command, a URL, desktop; repeatable. "
    "To keep a token out of sight: env:NAME, @FILE"
)


def _add_worker(parser: Parser) -> None:
    _add_limits(parser, idle=600.0)
    parser.add_argument("--crew", default="", metavar="NAME", help="the crew it belongs to; each has one supervisor")
    parser.add_argument("--detached", action="store_true", help="run without a terminal, in a session of its own")
    flag(parser, "--keep-attached", "keep_attached", "don't end while a notebook is open")
    parser.add_argument("--tied-to", default="", metavar="ID", help="end when this process is gone")
    parser.add_argument(
        "--remote-dir",
        dest="folders",
        action="append",
        default=[],
        type=folders,
        metavar="HERE=THERE",
        help="tasks of notebooks below HERE run below THERE, where this host has the same files; repeatable",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = ENVIRONMENT


ENVIRONMENT = f"""\
environment, where an option isn't given: JUG_MAX_TASKS; JUG_MAX_HOURS, JUG_MAX_MINUTES, JUG_MAX_SECONDS (added up);
JUG_EXIT_IF_FILE_EXISTS, a file: when it is there, workers end after their current tasks, as with {STOP_FILE}

signals: SIGUSR1, SIGUSR2 (the notice of a batch system), Ctrl-C: end after the current tasks; SIGTERM: at once, and
these tasks become ready again. Neither counts as a failure of a task."""


def folders(written: str) -> tuple[str, str]:
    """Parse HERE=THERE, two absolute paths."""
    before, _, after = written.partition("=")
    if not (before.startswith("/") and after.startswith("/")):
        raise argparse.ArgumentTypeError(f"{written!r} is not HERE=THERE, two absolute paths")
    return before, after


def heed_environment(arguments: Arguments, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Set the limits of Jug's environment variables where no option does. Return the stop files."""
    tasks, length, file = limits_in(environ)
    if arguments.max_tasks is None:
        arguments.max_tasks = tasks
    if arguments.max_time is None:
        arguments.max_time = float(length) or None
    return [Path(file).absolute() for file in (STOP_FILE, file) if file]


@register("worker", "run workers for a store", "[STORE]", _add_worker)
def _worker(arguments: Arguments) -> int:
    make_if_new(arguments.of.url)
    return _supervise(arguments, arguments.of.url, arguments.crew, arguments.detached)


def make_if_new(url: str) -> None:
    """Make a store with its key if there is none: workers refuse a store whose key they don't have."""
    from jug_notebook.store import exists, open_store
    from jug_notebook.store.signed import secret_of

    if not exists(url):
        store = open_store(url)
        secret_of(store, make=True)
        print(f"made a new store: {store.display_url}", file=sys.stderr)
        store.close()


def _supervise(arguments: Arguments, url: str, crew: str = "", detached: bool = False) -> int:
    from jug_notebook.worker.supervisor import supervise

    stop_files = heed_environment(arguments)
    options = _options(arguments, url, size=system.cores(), idle_timeout=arguments.idle)
    _ask_to_notify(arguments, url)
    return supervise(url, options, crew=crew, detached=detached, stop_files=stop_files)


def _ask_to_notify(arguments: Arguments, url: str) -> None:
    """Have what comes of a store's tasks reported where ``--notify`` says. Raises LaunchError."""
    if arguments.notify:
        from jug_notebook.store import open_store
        from jug_notebook.worker import notices, notifier

        targets = notices.targets_in(arguments.notify)
        with closing(open_store(url)) as store:
            notifier.ask(store, targets)


def _options(arguments: Arguments, url: str, **defaults: Any) -> WorkerOptions:
    """Return what is asked of workers, with these defaults. Raises UsageError, LaunchError."""
    from jug_notebook.worker import WorkerOptions, options_in

    given = {name: value for name, value in options_in(arguments).items() if value is not None}
    if getattr(arguments, "slurm", None):
        given.pop("gpus", None)  # how many its jobs get: each finds its own
    target = target_of(arguments.target, url, arguments.not_target)
    given = {"keep_attached": False, **defaults, **given, "target": target}
    return WorkerOptions(**given | {"folders": tuple(given.get("folders", ()))})


def target_of(wanted: list[str] | None, url: str, unwanted: list[str] | None = None) -> Target | None:
    """Return the tasks that words name: functions by name or /regex/, which is matched now, and keys. None: all."""
    from jug_notebook.model import Target

    if not wanted and not unwanted:
        return None
    return Target(*_named(wanted or [], "--target", url), *_named(unwanted or [], "--not-target", url))


def _named(wanted: list[str], option: str, url: str) -> tuple[frozenset[str], frozenset[str]]:
    import re

    from jug_notebook.store import open_store

    names, keys = set[str](), set[str]()
    for word in wanted:
        if len(word) > 2 and word[0] == word[-1] == "/":
            try:
                pattern = re.compile(word[1:-1])
            except re.error as wrong:
                raise UsageError(f"{option} {word}: {wrong}") from wrong
            store = open_store(existing(url))
            names |= {function.name for function in store.snapshot().functions if pattern.search(function.name)}
            store.close()
        elif re.fullmatch("[0-9a-f]{40}", word):
            keys.add(word)
        else:
            names.add(word)
    if wanted and not names and not keys:
        raise UsageError(f"no function of the store matches {' or '.join(wanted)}")
    return frozenset(names), frozenset(keys)


def _add_execute(parser: Parser) -> None:
    _add_limits(parser, idle=0.0)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--inplace", action="store_true", help="write the outputs into the notebook")
    where.add_argument("--output", metavar="F", type=Path, help="write the notebook with its outputs to F")
    parser.stores_only |= {"inplace", "output"}
    _add_slurm(parser)
    jug = parser.for_jugfiles()
    add_selection(parser, "execute", "run only tasks")
    jug.add_argument(
        "--wait-cycle-time", type=float, dest="execute_wait_cycle_time", metavar="SECONDS",
        help="times --nr-wait-cycles: how long to wait for others when nothing can be run (default: 12)",
    )  # fmt: skip
    jug.add_argument(
        "--nr-wait-cycles", type=int, dest="execute_nr_wait_cycles", metavar="N", help="see above (default: 150)"
    )
    flag(jug, "--keep-going", "execute_keep_going", "go on with the rest after an error")
    flag(jug, "--keep-failed", "execute_keep_failed", "do not try again what failed before")
    flag(jug, "--no-check-environment", "execute_no_check_environment", "ignore JUG_MAX_TASKS … and the stop file")
    flag(jug, "--part", "execute_part", argparse.SUPPRESS)


def _add_slurm(parser: Parser) -> None:
    """Add the options by which workers are jobs of Slurm; `_slurm` reads them."""
    slurm = parser.add_argument_group("as jobs of Slurm")
    flag(slurm, "--slurm", "slurm", "run the workers as jobs of Slurm, one worker each: -n of them, in one array")
    for option, metavar, help in (
        ("--walltime", "T", "of each job: 30min, 2h, 1d (default: the partition's)"),
        ("--mem", "M", "memory of each job: 4G"),
        ("--partition", "P", "the partition of the jobs"),
    ):
        slurm.add_argument(option, metavar=metavar, help=help)
    slurm.add_argument(
        "--slurm-option", dest="options", action="append", default=[], metavar="O",
        help="a further option of sbatch: constraint=avx; repeatable",
    )  # fmt: skip
    slurm.add_argument(
        "--up-to", type=positive, metavar="N", help="run as many jobs as there is work for, up to this number"
    )
    parser.stores_only |= {"slurm", "walltime", "mem", "partition", "options", "up_to"}


def _slurm(arguments: Arguments, options: WorkerOptions, url: str) -> None:
    """Have jobs of Slurm run a store's tasks, and wait until nothing is left. Raises LaunchError."""
    from jug_notebook.launch import slurm
    from jug_notebook.store import open_store

    given = {name: getattr(arguments, name) for name in slurm.Settings.__struct_fields__ if getattr(arguments, name)}
    store = open_store(url)
    _ask_to_notify(arguments, url)
    crew = slurm.launch(store, options, given)
    print(*crew.messages(0.0), sep="\n", file=sys.stderr)
    try:
        crew.wait()
    except KeyboardInterrupt:
        crew.stop()
        raise
    finally:
        store.close()


def _execute_jugfile(arguments: Arguments) -> int:
    arguments.execute_workers = arguments.size
    if arguments.target:
        arguments.execute_name = arguments.target[-1]
    return for_jugfile("execute")(arguments)


@register(
    "execute",
    "run a notebook without a browser, a jugfile's tasks, or a store's until nothing is left",
    "[STORE|NOTEBOOK]",
    _add_execute,
    jugfile=_execute_jugfile,
)
def _execute(arguments: Arguments) -> int:
    if isinstance(arguments.of, Notebook):
        return _execute_notebook(arguments.of.path, arguments)
    url = arguments.of.url
    if arguments.inplace or arguments.output:
        raise UsageError(f"--inplace and --output are about notebooks, and {url!r} is none")
    if Path(url).is_file():
        raise UsageError(f"{url!r} is neither a notebook (.ipynb) nor a jugfile (.py) nor a store")
    existing(url)
    if arguments.slurm:
        _slurm(arguments, _options(arguments, url, size=0), url)
    elif status := _supervise(arguments, url):
        return status
    from jug_notebook import render

    picture = picture_of(arguments.of)
    print(render.short(picture))
    return verdict(picture)


def _execute_notebook(notebook: Path, arguments: Arguments) -> int:
    if not notebook.is_file():
        raise UsageError(f"no notebook at {str(notebook)!r}")
    if arguments.size:
        raise UsageError("-n is for stores; a notebook starts its own workers, with %jug_execute -n N")
    output = notebook if arguments.inplace else arguments.output
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"no folder {str(output.parent)!r} to write {output.name} to")
    from jug_notebook.cli.notebook import execute

    if arguments.jugdir:
        from jug_notebook.store import absolute

        # the kernel starts in another folder, so a relative path is made absolute
        os.environ["JUG_STORE"] = absolute(arguments.jugdir)
    from jug_notebook.worker import notices

    targets = notices.targets_in(arguments.notify)
    began, good = CLOCK.monotonic(), False
    try:
        good = execute(notebook, output, notify=partial(print, file=sys.stderr, flush=True))
    finally:
        took = duration(CLOCK.monotonic() - began)
        text = f"jug_notebook: {'all cells ran' if good else 'stopped at a cell'}, {took} — {notebook.absolute()}"
        for line in notices.send_all(targets, str(notebook.absolute()), text):
            print(line, file=sys.stderr)
    return 0 if good else 1
