"""How things are shown: once as plain text and HTML together, or as text that is the same in every run."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jug_notebook import render
from jug_notebook.model import RunView, Snapshot, State, TaskView
from jug_notebook.session import Session
from jug_notebook.task.handles import Handle
from jug_notebook.task.values import TaskList
from jug_notebook.worker import displays

Bundle = dict[str, Any]


def wanted(chosen: str) -> str:
    """How things are to be shown: text (the same in every run: no times, no hosts), html, widget; "": as fits."""
    return chosen or os.environ.get("JUG_NOTEBOOK_DISPLAY", "")


def widgets_work() -> bool:
    """Are there widgets in this kernel's Python? Whether the front end draws them can't be asked: it gets HTML too."""
    return importlib.util.find_spec("ipywidgets") is not None


def show(bundle: Mapping[str, Any], *, display_id: bool = False) -> Any:
    """Show a picture as text and HTML in one; with ``display_id`` answers the handle by which it can be redrawn."""
    import IPython.display

    display: Any = IPython.display.display
    return display(bundle, raw=True, display_id=True) if display_id else display(bundle, raw=True)


def label(shown: str, folder: Path, steady: bool) -> str:
    """A store's URL as people read it: "file store ./jugdata"; where it must be ``steady``, without the way there."""
    kind, _, rest = shown.partition(":")
    if kind != "file":
        return f"{kind} store" if kind == "memory" else shown
    path = Path(rest)
    if not path.is_absolute() or path.is_relative_to(folder):
        return f"file store ./{path if not path.is_absolute() else path.relative_to(folder)}"
    return f"file store …/{path.name}" if steady else f"file store {path}"


def tally(counts: dict[State, int]) -> str:
    """ "97 finished, 2 failed", in the order of the states."""
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts.get(state))


def steady_status(snapshot: Snapshot) -> str:
    """A snapshot without anything that differs from run to run."""
    lines = [f"{snapshot.total} tasks: {tally(snapshot.counts)}" if snapshot.total else "no tasks yet"]
    rows = sorted(snapshot.functions, key=lambda function: function.name)
    width = max((len(function.name) for function in rows), default=0)
    lines += [f"  {row.name:<{width}}  {tally(row.counts)}" for row in rows if any(row.counts.values())]
    lines += [
        f"  {name} failed: {error}"
        for name, error in sorted({(failure.name, failure.error) for failure in snapshot.failures})
    ]
    return "\n".join(lines)


def steady_tasks(views: Sequence[TaskView], total: int) -> str:
    """A listing without keys and times."""
    lines = []
    for view in views:
        said = view.error or view.summary
        lines.append(f"{view.name}({view.args_repr})  {view.state.value}" + (f"  {said}" if said else ""))
    if total > len(lines):
        lines.append(f"and {total - len(lines)} more")
    return "\n".join(lines) or "no tasks"


def steady_log(tasks: Sequence[tuple[TaskView, Sequence[tuple[str, Any]]]]) -> str:
    """What tasks printed, without times, hosts and tracebacks."""
    lines = []
    for view, output in tasks:
        lines.append(f"── {view.name}({view.args_repr}) · {view.state.value}")
        lines += [part for part in (render.outputs_text(output).rstrip("\n"), view.error) if part]
    return "\n".join(lines) or "nothing was run yet"


def steady_history(runs: Sequence[RunView], total: int) -> str:
    """Runs without keys, times and hosts, by name."""
    lines = sorted(
        f"{run.name}({run.args_repr})  {run.state.value}{', ' * bool(run.fate)}{run.fate}  {run.message}".rstrip()
        for run in runs
    )
    if total > len(lines):
        lines.append(f"and {total - len(lines)} before")
    return "\n".join(lines) or "nothing was run yet"


def play(pieces: Sequence[tuple[str, Any]]) -> None:
    """Print and display what a task did, in order."""
    for kind, piece in pieces:
        if kind == "display":
            sys.stdout.flush()
            show({form: _sendable(form, data) for form, data in piece.items()})
        else:
            stream = sys.stderr if kind == "stderr" else sys.stdout
            print(piece, end="", file=stream, flush=True)


def _sendable(form: str, data: Any) -> Any:
    if form.startswith("image/") and not form.endswith("svg+xml"):
        return render.base64_of(form, data)
    return data.decode(errors="replace") if isinstance(data, bytes) else data


def record(shell: Any) -> Callable[[], None]:
    """From now on, what a task displays that runs in this kernel is kept with it; answers how to take that back.

    What runs in the main thread (``--here``, ``--now``) is shown as well. Workers that are threads (``memory:``) show
    nothing: it would land under whatever cell runs then, and their `clear_output` would clear that.
    """
    publisher = shell.display_pub
    publish, clear = publisher.publish, publisher.clear_output

    def unseen() -> bool:
        return threading.current_thread() is not threading.main_thread()

    def both(data: dict[str, Any], metadata: Any = None, *args: Any, **more: Any) -> None:
        book, name = displays.current(), (more.get("transient") or {}).get("display_id", "")
        if book is not None and more.get("update"):
            book.update(data, metadata, name)
        elif book is not None:
            book.add(data, metadata, name)
        if book is None or not unseen():
            publish(data, metadata, *args, **more)

    def cleared(wait: bool = False) -> None:
        book = displays.current()
        if book is not None:
            book.clear(wait)
        if book is None or not unseen():
            clear(wait)

    publisher.publish, publisher.clear_output = both, cleared

    def remove() -> None:
        del publisher.publish, publisher.clear_output

    return remove


def replay(session: Session, task: Any, steady: bool) -> None:
    """A task that has ended already: where it comes from (not where that must be ``steady``), and all it showed."""
    print("from the store" if steady else f"from the store: {session.queries.origin(task.key)}")
    play(session.results.outputs(task.key))
    [view] = session.results.views([task.key])
    if view.error:
        print(f"{view.name} failed: {view.error}")


def promise(session: Session, task: Any) -> Callable[[], bool]:
    """Keep a place under the cell. The errand that is answered fills it once the task has ended."""
    waiting = f"{task.name} has not finished; what it shows will be here"
    handle = show({"text/plain": waiting, "text/html": f'<span style="opacity:.65">{waiting}</span>'}, display_id=True)

    def fulfil() -> bool:
        if session.closed:
            return True
        [state] = session.results.states([task.key])
        if state is State.CANCELLED:
            return True
        if state not in (State.FINISHED, State.FAILED):
            return False
        pieces = session.results.outputs(task.key)
        [view] = session.results.views([task.key])
        said = f"{view.name} failed: {view.error}" if view.error else session.queries.origin(task.key, dated=False)
        handle.update(_together(said, pieces), raw=True)
        return True

    return fulfil


def _together(said: str, pieces: Sequence[tuple[str, Any]]) -> dict[str, str]:
    head = render.outputs_html([("stdout", said)]) if said else ""
    return {
        "text/plain": "\n".join(filter(None, (said, render.outputs_text(pieces).rstrip("\n")))),
        "text/html": f'<div style="opacity:.65">{head}</div>{render.outputs_html(pieces)}',
    }


FEW = 4  #: so many tasks in a plain list or dict still show one by one
GLANCE = 20  #: items looked at first: most collections hold no task, and are told by these
KINDS = (list, tuple, dict)
CREW = ("jug_notebook.launch", "Crew")


def tasks_only(collection: Any) -> TaskList | None:
    """Its tasks, where it holds some and nothing else."""
    if type(collection) is TaskList:
        return collection
    items: Iterable[Any] = collection.values() if isinstance(collection, dict) else collection
    if len(collection) <= FEW or not all(isinstance(item, Handle) for item in islice(items, GLANCE)):
        return None
    return TaskList(items) if all(isinstance(item, Handle) for item in items) else None


def add_formatters(shell: Any, steady: Callable[[], bool], show_crew: Callable[[Any], None]) -> Callable[[], None]:
    """From now on tasks and crews show so; answers how to take that back.

    Where what is shown must be ``steady``, it is text without times.
    """
    formatters = shell.display_formatter.formatters
    plain, html = formatters["text/plain"], formatters["text/html"]
    before = {kind: plain.type_printers.get(kind) for kind in KINDS}

    def page(collection: Any) -> str | None:
        tasks = None if steady() else tasks_only(collection)
        return None if tasks is None else tasks.as_html(_labels(collection))

    for kind in KINDS:
        plain.for_type(kind, _printer(kind, before[kind], steady))
        html.for_type(kind, page)
    plain.for_type(TaskList, _printer(TaskList, None, steady))
    html.for_type(TaskList, page)
    html.for_type(Handle, lambda handle: None if steady() else handle._repr_html_())
    crews = shell.display_formatter.ipython_display_formatter
    crews.for_type_by_name(*CREW, show_crew)

    def remove() -> None:
        for kind, printer in before.items():
            html.pop(kind, None)
            if printer is None:
                plain.pop(kind, None)
            else:
                plain.for_type(kind, printer)
        plain.pop(TaskList, None)
        html.pop(TaskList, None)
        html.pop(Handle, None)
        crews.pop(".".join(CREW), None)

    return remove


def _labels(collection: Any) -> Iterable[Any] | None:
    return collection if isinstance(collection, dict) else None


def _printer(kind: type, before: Any, steady: Callable[[], bool]) -> Callable[[Any, Any, bool], None]:
    def show(collection: Any, printer: Any, cycle: bool) -> None:
        tasks = None if cycle else tasks_only(collection)
        if tasks is not None:
            lines = tasks.as_text(_labels(collection), steady()).splitlines()
            for number, line in enumerate(lines):
                if number:
                    printer.break_()
                printer.text(line)
        elif before is not None:
            before(collection, printer, cycle)
        else:
            printer.text(repr(collection))

    return show
