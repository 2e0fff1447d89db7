"""Commands about what a store keeps: count, cleanup, copy, pack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import IO

from jug_notebook.cli import Arguments, Command, UsageError, existing, meant, seconds, store_of, url_of


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")


def _count(arguments: Arguments) -> int:
    store = store_of(arguments, arguments.url)
    functions = store.snapshot().functions
    store.close()
    rows = [(function.name, f"{sum(function.counts.values()):,}") for function in functions]
    rows.append(("total", f"{sum(sum(function.counts.values()) for function in functions):,}"))
    names, numbers = max(len(name) for name, _ in rows), max(len(number) for _, number in rows)
    for name, number in rows:
        print(f"{name:<{names}}  {number:>{numbers}}")
    return 0


def _add_cleanup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="only these: a function's name, a task's key or its beginning, or /regex/ on function names",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--older-than",
        type=seconds,
        metavar="TIME",
        help="only what was made and run before: 90s, 10min, 2h, 30d (default: all tasks, and blobs of an hour ago)",
    )


def _cleanup(arguments: Arguments) -> int:
    from jug_notebook.clock import CLOCK
    from jug_notebook.session.cleanup import clean

    store = store_of(arguments)
    among = None if arguments.target is None else set(meant(store, arguments.target))
    print(clean(store, CLOCK.now(), among, arguments.older_than, dry=arguments.dry_run))
    store.close()
    return 0


def _add_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help="a store: a folder, or its URL")
    parser.add_argument("to", metavar="TO", help="another; made if it's new")


def _copy(arguments: Arguments) -> int:
    from jug_notebook.session.copy import copy

    def tell(done: int, total: int) -> None:
        print(f"\r{done:,} of {total:,} tasks", end="\n" if done == total else "", file=sys.stderr, flush=True)

    print(copy(existing(arguments.source), arguments.to, tell if sys.stderr.isatty() else None))
    return 0


def _pack(arguments: Arguments) -> int:
    from jug_notebook.render import size

    store = store_of(arguments, arguments.url)
    saved = store.compact()
    print(f"{store.display_url} takes {size(saved)} less" if saved else f"{store.display_url} is as small as it gets")
    store.close()
    return 0


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("export", "import"), help="export: to the output; import: from the input")


def _key(arguments: Arguments) -> int:
    """The secret goes through pipes only: an argument would stand in the process list and the shell's history."""
    return _export_key(arguments, sys.stdout) if arguments.action == "export" else _import_key(sys.stdin)


def _export_key(arguments: Arguments, to: IO[str]) -> int:
    from jug_notebook.store import keyring

    store = store_of(arguments)
    print(store.id, keyring.secret(store.id).hex(), file=to)
    store.close()
    if to.isatty():
        print("jug-notebook: whoever has this line can run code as you; keep it to yourself", file=sys.stderr)
    return 0


def _import_key(source: IO[str]) -> int:
    from jug_notebook.store import keyring

    words = source.readline().split()
    try:
        store_id, secret = words[0], bytes.fromhex(words[1])
    except (IndexError, ValueError):
        secret = b""
    if len(words) != 2 or len(secret) != 32:
        raise UsageError("this is no key; pipe in the line that `jug-notebook key export` prints on the other machine")
    if keyring.put(store_id, secret) != secret:
        raise UsageError(f"there is another key of store {store_id} in {keyring.folder()}; move that file away first")
    print(f"key of store {store_id} kept")
    return 0


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")
    parser.add_argument(
        "--host", action="append", default=[], metavar="H", help="a host to look at, over ssh; repeatable"
    )
    parser.add_argument("--hosts-file", metavar="F", help="the hosts in a file, one a line")
    parser.add_argument("--python", metavar="P", help="the Python to run there")
    parser.add_argument("--setup", metavar="CMD", default="", help="shell commands to run there first")
    parser.add_argument(
        "--remote-dir", metavar="HERE=THERE", help="where a folder of this host is there; THERE: where the store's is"
    )


def _doctor(arguments: Arguments) -> int:
    """Starts nothing. Exit status 0 where workers could start on all hosts, else 1."""
    from jug_notebook.clock import CLOCK
    from jug_notebook.launch import preflight, remote, start
    from jug_notebook.store import open_store, split
    from jug_notebook.worker import WorkerOptions

    store = open_store(existing(url_of(arguments, arguments.url)))
    scheme, rest = split(store.url)
    folder = Path(rest).parent if scheme == "file" else Path.cwd()
    words: list[str | Path] = [word for written in arguments.host for word in written.split(",") if word]
    if arguments.hosts_file:
        words.append(Path(arguments.hosts_file))
    if not words and (arguments.python or arguments.setup or arguments.remote_dir):
        raise UsageError("--python, --setup and --remote-dir are for other hosts: name one with --host")
    reports = [remote.look(store)]
    if words and not reports[0].failure:
        folders = start.folders_of(arguments.remote_dir, folder)
        options = WorkerOptions(0, python=arguments.python, setup=arguments.setup, folders=folders)
        reports += start.look(store, folder, options, start.read_hosts(words, Path.cwd()), CLOCK)
    store.close()
    print(preflight.table(reports))
    return 1 if any(report.failure for report in reports) else 0


COMMANDS = {
    "count": Command("how many tasks there are, by function", _add_url, _count),
    "cleanup": Command("delete unreferenced tasks and their data", _add_cleanup, _cleanup),
    "copy": Command("copy all of a store into another, of any kind", _add_copy, _copy),
    "pack": Command("compact the store, while others go on working", _add_url, _pack),
    "key": Command("bring the key of a store to another machine", _add_key, _key),
    "doctor": Command("can workers start, here and on other hosts? what stands in the way?", _add_doctor, _doctor),
}
