"""Commands that look and change nothing: status, log, graph, timeline, profile, why and others."""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from jug_notebook.cli import (
    PACE,
    TICK,
    Arguments,
    Parser,
    Store,
    UsageError,
    View,
    flag,
    on_session,
    register,
    session_of,
    tasks_meant,
)
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.render.format import elide
from jug_notebook.store import atomic

if TYPE_CHECKING:
    from jug_notebook.model import Snapshot
    from jug_notebook.session import Session


def picture_of(of: Store, failures: bool = False) -> Snapshot:
    """Return the status of a store now, for a process that ends soon."""
    gc.disable()  # most of what is read is needed to the end; looking for garbage costs a sixth of the time
    view = View(of)
    picture = view.picture(failures)
    view.close()
    return picture


def verdict(picture: Snapshot) -> int:
    """Return the exit status: 0 if all tasks are finished, else 1."""
    from jug_notebook.model import State

    return 0 if picture.counts[State.FINISHED] == picture.total else 1


def _add_status(parser: Parser) -> None:
    from jug_notebook import render

    shape = parser.add_mutually_exclusive_group()
    flag(shape, "--short", "short", "one line only")
    shape.add_argument("--json", action="store_true", help="for programs; the fields are described below")
    shape.add_argument("--html", metavar="F", help="write a page to F ('-': standard output)")
    shape.add_argument("--watch", action="store_true", help="redraw it as things change, until Ctrl-C")
    parser.stores_only |= {"json", "html", "watch"}
    cache = parser.for_jugfiles()
    flag(cache, "--cache", "status_cache", "no effect: the status is quick, and never out of date")
    cache.add_argument("--cache-file", dest="status_cache_file", metavar="F", help="no effect except with --clear")
    flag(cache, "--clear", "status_cache_clear", "with --cache: remove the cache that Jug left")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    fields = (
        (render.plain.__doc__ or "").partition("\n\n")[2].replace("\n    ", "\n").replace("``", "").replace("::", ":")
    )
    parser.epilog = "Fields of --json:\n\n" + fields.strip()


@register("status", "progress, time left, failures and workers", "[STORE]", _add_status, jugfile=True)
def _status(arguments: Arguments) -> int:
    if arguments.watch:
        return watch(arguments.of, sys.stdout)
    from jug_notebook import render

    picture = picture_of(arguments.of, failures=not arguments.short)
    if arguments.short:
        print(render.short(picture))
    elif arguments.json:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(render.plain(picture)), indent=2).decode()
        print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))
    elif arguments.html:
        _put(arguments.html, render.page(picture, render.SHELL))
    else:
        print(render.text(picture, render.SHELL))
    return verdict(picture)


def _put(file: str, text: str) -> None:
    """Write a file as a whole, so that a browser never sees half of it; "-" is the output. Raises UsageError."""
    try:
        sys.stdout.write(text) if file == "-" else atomic.replace(Path(file), text.encode(), mode=atomic.USUAL)
    except OSError as refused:
        raise UsageError(f"can't write {file!r}: {refused.strerror}") from refused


@register("check", "exit status 0 if all is done, 1 if not; a line says why", "[STORE]", jugfile=True)
def _check(arguments: Arguments) -> int:
    from jug_notebook import render

    picture = picture_of(arguments.of)
    print(render.short(picture))
    return verdict(picture)


@register("count", "how many tasks there are, by function", "[STORE]", jugfile=True)
def _count(arguments: Arguments) -> int:
    totals = [(elide(view.name, 120), view.current) for view in picture_of(arguments.of).functions]
    rows = [*totals, ("total", sum(number for _, number in totals))]
    names, numbers = max(len(name) for name, _ in rows), max(len(f"{number:,}") for _, number in rows)
    for name, number in rows:
        print(f"{name:<{names}}  {number:>{numbers},}")
    return 0


def _add_log(parser: Parser) -> None:
    parser.add_argument("--history", action="store_true", help="who ran what and when: the latest attempts that ended")


@register(
    "log", "what a task printed, and why it failed; --history: who ran what and when", "[STORE] [TARGET]", _add_log
)
def _log(arguments: Arguments) -> int:
    if arguments.history and arguments.target is not None:
        raise UsageError("--history is about all tasks; leave TARGET out")
    if not arguments.history and arguments.target is None:
        raise UsageError("name the tasks: jug-notebook log TARGET, or jug-notebook log --history")
    with closing(session_of(arguments.of)) as session:
        queries = session.queries
        all_tasks = arguments.of.notebook is None
        print(queries.history(all_tasks) if arguments.history else queries.log(tasks_meant(session, arguments)))
    return 0


def _add_graph(parser: Parser) -> None:
    parser.add_argument("--svg", metavar="F", help="write the drawing to F ('-': standard output)")
    parser.stores_only |= {"svg"}
    jug = parser.for_jugfiles()
    flag(jug, "--no-status", "graph_no_status", "names only")
    jug.add_argument("--file-format", dest="graph_format", metavar="FORMAT", help="one that dot knows (default: png)")


@register("graph", "which functions need which, and the progress of each", "[STORE]", _add_graph, jugfile=True)
@on_session
def _graph(session: Session, arguments: Arguments) -> int:
    from jug_notebook import render

    graph = session.queries.graph(all=arguments.of.notebook is None).graph
    if arguments.svg:
        _put(arguments.svg, render.svg(graph, alone=True))
    else:
        print(render.graph_text(graph))
    return 0


def _add_timeline(parser: Parser) -> None:
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--html", metavar="F", help="write a page to F ('-': standard output)")
    shape.add_argument("--svg", metavar="F", help="write the drawing to F ('-': standard output)")
    when = "a date (2026-10-31, '2026-10-31 14:00'), or 2h for 2 hours ago"
    parser.add_argument("--since", metavar="T", default=0.0, help=f"what ran after that: {when}")
    parser.add_argument("--until", metavar="T", default=float("inf"), help="only what began before that")


@register("timeline", "who ran what and when, and where the time went", "[STORE]", _add_timeline)
@on_session
def _timeline(session: Session, arguments: Arguments) -> int:
    from jug_notebook.render.html import page_of
    from jug_notebook.render.timeline import timeline_html

    gc.disable()
    try:
        found = session.queries.timeline(arguments.of.notebook is None, arguments.since, arguments.until)
    except ValueError as wrong:
        raise UsageError(str(wrong)) from None
    if arguments.html:
        _put(arguments.html, page_of(f"timeline · {found.timeline.store}", timeline_html(found.timeline)))
    elif arguments.svg:
        _put(arguments.svg, found.svg())
    else:
        print(found)
    return 0


@register("profile", "what runs took, by function: time, processor time, memory, bytes read and written", "[STORE]")
@on_session
def _profile(session: Session, arguments: Arguments) -> int:
    print(session.queries.profile(all=arguments.of.notebook is None))
    return 0


@register("why", "why a task isn't stored: what changed since the nearest one that is", "[STORE] TARGET")
@on_session
def _why(session: Session, arguments: Arguments) -> int:
    why = session.queries.why(tasks_meant(session, arguments))
    print(why)
    return 0 if why.stored else 1


@register("sleep-until", "wait until nothing is left to do", "[STORE]", jugfile=True)
def _sleep_until(arguments: Arguments) -> int:
    """Wait until nothing is left to do in a store. Return 0 where all its tasks have values then."""
    from jug_notebook.model import OPEN_STATES, State

    view = View(arguments.of)
    while True:
        counts = view.picture(failures=False).counts
        if not any(counts[state] for state in OPEN_STATES):
            break
        view.changed(1.0)
    view.close()
    return 1 if counts[State.FAILED] or counts[State.BLOCKED] else 0


def _add_webstatus(parser: Parser) -> None:
    parser.add_argument("--port", type=int, dest="webstatus_port", metavar="N", help="the port (default: any free one)")
    parser.add_argument(
        "--host", "--ip", dest="webstatus_ip", metavar="HOST", help="address to serve at (default: this machine alone)"
    )


def _webstatus_of_jugfile(arguments: Arguments) -> int:
    """Submit the tasks first, so that the page shows all of them."""
    from jug_notebook.cli.webstatus import serve
    from jug_notebook.compat import loading
    from jug_notebook.compat.jug.task import Task

    options = loading.settled("webstatus", arguments)
    with loading.loaded(options, read_only=False):
        Task.store.session.submissions.flush()
        url = str(Task.store.url)
    return serve(Store(url), options.webstatus_ip, options.webstatus_port)


@register(
    "webstatus",
    "the status as a web page that follows the store",
    "[STORE]",
    _add_webstatus,
    jugfile=_webstatus_of_jugfile,
)
def _webstatus(arguments: Arguments) -> int:
    from jug_notebook.cli.webstatus import serve

    return serve(arguments.of, arguments.webstatus_ip or "127.0.0.1", arguments.webstatus_port or 0)


def watch(of: Store, out: TextIO, clock: Clock = CLOCK) -> int:
    """Display the status until Ctrl-C; the last one stays. Without a terminal, print a line for each change."""
    from jug_notebook import render

    view, picture, before = View(of), None, ""
    try:
        while True:
            picture = view.picture()
            if out.isatty():
                columns, rows = shutil.get_terminal_size()
                text = render.fitted(render.text(picture, render.SHELL), columns, rows)
                out.write(render.redrawn(before, text, columns))
            elif (text := render.short(picture)) != before:
                out.write(f"{text}\n")
            out.flush()
            before = text
            clock.sleep(PACE)
            view.changed(TICK - PACE)
    except KeyboardInterrupt:
        return 1 if picture is None else verdict(picture)
    finally:
        view.close()
