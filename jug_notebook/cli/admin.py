"""Commands about what a store keeps: count, cleanup, copy, pack."""

from __future__ import annotations

import argparse
import sys

from jug_notebook.cli import Arguments, Command, existing, meant, seconds, store_of


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
    print(f"{store.shown} takes {size(saved)} less" if saved else f"{store.shown} is as small as it gets")
    store.close()
    return 0


COMMANDS = {
    "count": Command("how many tasks there are, by function", _add_url, _count),
    "cleanup": Command("forget what nobody wants any more, with all that only it had stored", _add_cleanup, _cleanup),
    "copy": Command("copy all of a store into another, of any kind", _add_copy, _copy),
    "pack": Command("put what a store keeps into less space, while others go on working", _add_url, _pack),
}
