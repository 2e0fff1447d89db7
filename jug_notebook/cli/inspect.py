"""Commands that look: status, check, log, graph, why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jug_notebook.cli import (
    Arguments,
    Command,
    UsageError,
    add_target,
    existing,
    meant,
    opener_of,
    picture_of,
    store_of,
    url_of,
    verdict,
    write,
)

FAILURES = 100  #: so many of the latest are told one by one
LOGS = 20  #: so many tasks are shown in one log


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")
    from jug_notebook import render

    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--short", action="store_true", help="one line")
    shape.add_argument("--json", action="store_true", help="for programs; the fields are told below")
    shape.add_argument("--html", metavar="F", help="write a page to F ('-': to the output)")
    shape.add_argument("--watch", action="store_true", help="draw it anew as things change, until Ctrl-C")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "--json: " + (render.plain.__doc__ or "").replace("\n    ", "\n")


def _status(arguments: Arguments) -> int:
    if arguments.watch:
        from jug_notebook.cli.watch import watch

        return watch(url_of(arguments, arguments.url), sys.stdout)
    from jug_notebook import render

    picture = picture_of(url_of(arguments, arguments.url), failures=0 if arguments.short else FAILURES)
    if arguments.short:
        print(render.short(picture))
    elif arguments.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(render.plain(picture)), indent=2).decode())
    elif arguments.html == "-":
        sys.stdout.write(render.page(picture, render.SHELL))
    elif arguments.html:
        write(Path(arguments.html), render.page(picture, render.SHELL))
    else:
        print(render.text(picture, render.SHELL))
    return verdict(picture)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")


def _check(arguments: Arguments) -> int:
    from jug_notebook import render

    picture = picture_of(url_of(arguments, arguments.url))
    print(render.short(picture))
    return verdict(picture)


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="a function's name, a task's key or its beginning, or /regex/ on function names",
    )
    parser.add_argument("--history", action="store_true", help="who ran what when: the latest attempts that ended")


def _log(arguments: Arguments) -> int:
    if arguments.history:
        return _history(arguments)
    if arguments.target is None:
        raise UsageError("say which task: jug-notebook log TARGET, or jug-notebook log --history")
    from jug_notebook import render
    from jug_notebook.model import Failed
    from jug_notebook.store.signed import failure

    store = store_of(arguments)
    signed = opener_of(store)
    keys = meant(store, arguments.target)
    for key in keys[-LOGS:]:
        [view], [outcome] = signed.views([key]), signed.outcomes([key])
        if isinstance(outcome, Failed):
            print(render.failure_text(failure(outcome, view.name, view.args_repr)), end="\n\n")
        else:
            said = render.outputs_text(signed.pieces(outcome.run)).rstrip("\n") if outcome else ""
            print(
                f"{view.state.value}: {view.name}({view.args_repr}) · key {key}",
                *([said] if said else []),
                "",
                sep="\n",
            )
    if len(keys) > LOGS:
        print(f"and {len(keys) - LOGS:,} more before these")
    store.close()
    return 0


def _history(arguments: Arguments) -> int:
    from jug_notebook import render
    from jug_notebook.model import Scope
    from jug_notebook.store.provenance import history

    if arguments.target is not None:
        raise UsageError("--history tells of all tasks; leave TARGET out")
    store = store_of(arguments)
    print(render.history_text(*history(opener_of(store), Scope(), render.TASKS)))
    store.close()
    return 0


def _add_graph(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")
    parser.add_argument("--svg", metavar="F", help="draw it into F ('-': to the output)")


def _graph(arguments: Arguments) -> int:
    from jug_notebook import render
    from jug_notebook.model import Graph
    from jug_notebook.store import open_store

    store = open_store(existing(url_of(arguments, arguments.url)))
    picture = store.snapshot()
    graph = Graph(picture.functions, tuple(store.edges()), picture.store, picture.scope)
    store.close()
    if arguments.svg == "-":
        sys.stdout.write(render.svg(graph, alone=True))
    elif arguments.svg:
        write(Path(arguments.svg), render.svg(graph, alone=True))
    else:
        print(render.graph_text(graph))
    return 0


def _add_why(parser: argparse.ArgumentParser) -> None:
    add_target(parser)


def _why(arguments: Arguments) -> int:
    from jug_notebook import render
    from jug_notebook.model import Scope
    from jug_notebook.session.why import WhyQuery

    store = store_of(arguments)
    keys = meant(store, arguments.target)
    explanations = WhyQuery(store, opener_of(store), Scope()).explain(keys)
    print(render.why_text(explanations, len(keys)))
    store.close()
    return 0 if all(one.stored for one in explanations) else 1


COMMANDS = {
    "status": Command("how far, how long still, what failed, who works", _add_status, _status),
    "check": Command("exit status 0 if all is done, 1 if not; one line says why", _add_check, _check),
    "log": Command("what a task printed, and why it failed; --history: who ran what when", _add_log, _log),
    "graph": Command("which functions need which, and how far each is", _add_graph, _graph),
    "why": Command("why a task isn't stored: what changed since the nearest that is", _add_why, _why),
}
