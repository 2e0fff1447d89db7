"""Commands that run tasks: worker, execute."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jug_notebook.cli import (
    Arguments,
    Command,
    UsageError,
    count,
    existing,
    is_there,
    picture_of,
    seconds,
    size,
    url_of,
    verdict,
)

if TYPE_CHECKING:
    from jug_notebook.model import Target

STOP_FILE = "__jug_please_stop_running.txt"  #: in the folder where workers are started: they end


def _add_limits(parser: argparse.ArgumentParser, idle: float) -> None:
    parser.add_argument(
        "-n", dest="size", type=count, metavar="N", default=os.cpu_count() or 1, help="workers (default: one per core)"
    )
    parser.add_argument(
        "--target", action="append", metavar="T", help="only tasks of this function, this key, or these /regex/"
    )
    parser.add_argument("--max-tasks", type=count, metavar="N", help="each worker ends after so many tasks")
    parser.add_argument(
        "--max-time",
        type=seconds,
        metavar="TIME",
        help="start no task after this time, nor one that would not end by then: 600, 90s, 10min, 2h",
    )
    parser.add_argument(
        "--no-keep-going", dest="keep_going", action="store_false", help="start no new tasks once one has failed"
    )
    parser.add_argument("--memory-limit", type=size, metavar="SIZE", help="end a task that takes more: 500MB, 2G, 2GiB")
    parser.add_argument(
        "--idle-timeout",
        type=seconds,
        metavar="TIME",
        default=idle,
        help="end after so long with nothing to do and no notebook attached (default: %(default)g s)",
    )


def _add_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store; made if it's new")
    _add_limits(parser, idle=600.0)
    parser.add_argument(
        "--crew", default="", metavar="NAME", help="the crew it belongs to; one supervisor serves one crew"
    )
    parser.add_argument("--detached", action="store_true", help="go on without a terminal, in a session of its own")
    parser.add_argument("--tied-to", default="", metavar="ID", help="end when this process is gone")
    parser.add_argument(
        "--remote-dir",
        dest="folders",
        action="append",
        default=[],
        type=folders,
        metavar="HERE=THERE",
        help="tasks of notebooks below HERE run below THERE, where this host has the same; repeatable",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = ENVIRONMENT


ENVIRONMENT = f"""\
environment, where an option isn't given: JUG_MAX_TASKS; JUG_MAX_HOURS, JUG_MAX_MINUTES, JUG_MAX_SECONDS (added up);
JUG_EXIT_IF_FILE_EXISTS, a file: when it is there, workers end after their current tasks, as with {STOP_FILE}

signals: SIGUSR1, SIGUSR2 (the notice of a batch system), Ctrl-C: end after the current tasks; SIGTERM: at once, giving
these back. Neither counts as a failure of a task."""


def folders(written: str) -> tuple[str, str]:
    before, _, after = written.partition("=")
    if not (before.startswith("/") and after.startswith("/")):
        raise argparse.ArgumentTypeError(f"{written!r} is not HERE=THERE, two absolute paths")
    return before, after


def heed_environment(arguments: Arguments, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Fill in the limits that Jug's variables set and no option does; answer the stop files."""
    if arguments.max_tasks is None and (told := _number(environ, "JUG_MAX_TASKS")) is not None:
        arguments.max_tasks = told
    if arguments.max_time is None:
        units = {"JUG_MAX_HOURS": 3600, "JUG_MAX_MINUTES": 60, "JUG_MAX_SECONDS": 1}
        told_times = [(_number(environ, name) or 0) * unit for name, unit in units.items()]
        if any(told_times):
            arguments.max_time = float(sum(told_times))
    files = [STOP_FILE, environ.get("JUG_EXIT_IF_FILE_EXISTS", "")]
    return [Path(file).absolute() for file in files if file]


def _number(environ: Mapping[str, str], name: str) -> int | None:
    written = environ.get(name, "")
    if not written:
        return None
    if not written.isdecimal():
        raise UsageError(f"the environment says {name}={written}, which is no whole number")
    return int(written)


def _worker(arguments: Arguments) -> int:
    make_if_new(url_of(arguments, arguments.url))
    return _supervise(arguments, url_of(arguments, arguments.url), arguments.crew, arguments.detached)


def make_if_new(url: str) -> None:
    """A store is made with its key; workers refuse one whose key they don't have."""
    from jug_notebook.store import open_store
    from jug_notebook.store.signed import secret_of

    if not is_there(url):
        store = open_store(url)
        secret_of(store, make=True)
        store.close()


def _supervise(arguments: Arguments, url: str, crew: str = "", detached: bool = False) -> int:
    from jug_notebook.worker import WorkerOptions, options_in
    from jug_notebook.worker.supervisor import supervise

    stop_files = heed_environment(arguments)
    given = options_in(arguments) | {"target": target_of(arguments.target, url)}
    options = WorkerOptions(**given | {"folders": tuple(given.get("folders", ()))})
    return supervise(url, options, crew=crew, detached=detached, stop_files=stop_files)


def target_of(wanted: list[str] | None, url: str) -> Target | None:
    """Functions by name or /regex/, tasks by key. A regex means the functions that the store knows by now."""
    if not wanted:
        return None
    import re

    from jug_notebook.model import Target
    from jug_notebook.store import open_store

    names, keys = set[str](), set[str]()
    for word in wanted:
        if len(word) > 2 and word[0] == word[-1] == "/":
            try:
                pattern = re.compile(word[1:-1])
            except re.error as wrong:
                raise UsageError(f"--target {word}: {wrong}") from wrong
            store = open_store(existing(url))
            names |= {function.name for function in store.snapshot().functions if pattern.search(function.name)}
            store.close()
        elif re.fullmatch("[0-9a-f]{40}", word):
            keys.add(word)
        else:
            names.add(word)
    if not names and not keys:
        raise UsageError(f"no function of the store matches {' or '.join(wanted)}")
    return Target(frozenset(names), frozenset(keys))


def _add_execute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="FILE|URL", nargs="?", help="a notebook to run without a browser, or a store to work for"
    )
    _add_limits(parser, idle=0.0)
    parser.set_defaults(size=None)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--inplace", action="store_true", help="write the outputs into the notebook")
    where.add_argument("--output", metavar="F", type=Path, help="write the notebook with its outputs to F")


def _execute(arguments: Arguments) -> int:
    what = url_of(arguments, arguments.what)
    if what.endswith(".ipynb"):
        return _execute_notebook(Path(what), arguments)
    if arguments.inplace or arguments.output:
        raise UsageError(f"--inplace and --output are about notebooks, and {what!r} is none")
    if Path(what).is_file():
        raise UsageError(
            f"{what!r} is neither a notebook (.ipynb) nor a store; run a script with python, and work for its store"
        )
    existing(what)
    arguments.size = arguments.size or os.cpu_count() or 1
    status = _supervise(arguments, what)
    if status:
        return status
    from jug_notebook import render

    picture = picture_of(what)
    print(render.short(picture))
    return verdict(picture)


def _execute_notebook(notebook: Path, arguments: Arguments) -> int:
    if not notebook.is_file():
        raise UsageError(f"no notebook at {str(notebook)!r}")
    if arguments.size:
        raise UsageError("-n is about stores; a notebook starts its own workers, with %jug_execute -n N")
    output = notebook if arguments.inplace else arguments.output
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"no folder {str(output.parent)!r} to write {output.name} to")
    from jug_notebook.cli.notebook import execute

    if arguments.jugdir:
        from jug_notebook.store import absolute

        # a relative folder means ours here, and the notebook's there
        os.environ["JUG_STORE"] = absolute(arguments.jugdir)
    return 0 if execute(notebook, output, say=say) else 1


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


COMMANDS = {
    "worker": Command("run workers for a store", _add_worker, _worker),
    "execute": Command(
        "run a notebook without a browser, or work for a store until nothing is left", _add_execute, _execute
    ),
}
