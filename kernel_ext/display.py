"""How results and status appear under a cell: as text and HTML together, or as text that is the same in every run.

First what is shown of a store and its tasks; then the output of tasks, shown again or recorded; then the formatters,
by which IPython shows tasks, collections of tasks and crews of workers.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jug_notebook import render
from jug_notebook.errors import clean
from jug_notebook.model import FunctionProfile, RunView, Snapshot, State, TaskView, Timeline
from jug_notebook.render.format import escape, plural
from jug_notebook.session import Session
from jug_notebook.task.handles import Handle
from jug_notebook.task.sweeps import SweepPlot
from jug_notebook.task.values import TaskList
from jug_notebook.worker import displays


def wanted(chosen: str) -> str:
    """Return how to show things: "text" (the same in every run: no times, no hosts), "html", "widget", "": as fits."""
    return chosen or os.environ.get("JUG_NOTEBOOK_DISPLAY", "")


def widgets_work() -> bool:
    """Is ipywidgets installed? Whether the front end draws widgets can't be asked, so it gets HTML, too."""
    return importlib.util.find_spec("ipywidgets") is not None


def show(bundle: Mapping[str, Any], *, display_id: bool = False) -> Any:
    """Show text and HTML as one output. With ``display_id``, return the handle by which it can be redrawn."""
    import IPython.display

    display: Any = IPython.display.display
    return display(bundle, raw=True, display_id=True) if display_id else display(bundle, raw=True)


def show_either(result: Any, text: str | None) -> None:
    """Print the text; without one, show the result as text and HTML."""
    if text is not None:
        print(text)
    else:
        show({"text/plain": repr(result), "text/html": result._repr_html_()})


def label(url: str, folder: Path, steady: bool) -> str:
    """Return what a store's URL is called: "file store ./jugdata"; with ``steady``, without an absolute path."""
    kind, _, rest = url.partition(":")
    if kind != "file":
        return f"{kind} store" if kind == "memory" else url
    path = Path(rest)
    if not path.is_absolute() or path.is_relative_to(folder):
        return f"file store ./{path if not path.is_absolute() else path.relative_to(folder)}"
    return f"file store …/{path.name}" if steady else f"file store {path}"


def tally(counts: Mapping[State, int]) -> str:
    """Return "97 finished, 2 failed", in the order of the states; cancelled ones are left out."""
    states = (state for state in State if state is not State.CANCELLED)
    return ", ".join(f"{counts[state]} {state.value}" for state in states if counts.get(state))


def outcome_text(counts: Mapping[State, int]) -> str:
    """Return how a wait ended: "all 99 finished", "97 finished, 2 failed; %jug_status shows why"."""
    ended: dict[State, int] = {state: counts[state] for state in State if counts.get(state)}
    ended.pop(State.CANCELLED, None)
    total = sum(ended.values())
    if not total:
        return "nothing to wait for"
    if State.FAILED in ended or State.BLOCKED in ended:
        return f"{tally(ended)}; %jug_status shows why"
    return f"all {total} finished" if total > 1 else "finished"


# -- text that is the same in every run --------------------------------------------------------------------------------


def steady_status(snapshot: Snapshot) -> str:
    """Return a status without times, hosts and anything else that differs between runs."""
    kept = render.beside_tasks(snapshot)
    none = "no tasks now" if kept else "no tasks yet"
    lines = [f"{render.plural(snapshot.total)}: {tally(snapshot.counts)}" if snapshot.total else none]
    rows = sorted((function for function in snapshot.functions if function.current), key=lambda row: row.name)
    width = max((len(function.name) for function in rows), default=0)
    lines += [f"  {row.name:<{width}}  {tally(row.counts)}" for row in rows]
    lines += [f"  {kept}"] if kept else []
    lines += [
        f"  {name} failed: {error}"
        for name, error in sorted({(failure.name, failure.error) for failure in snapshot.failures})
    ]
    return clean("\n".join(lines))


def steady_tasks(views: Sequence[TaskView], total: int) -> str:
    """Return a listing of tasks without keys and times."""
    lines = []
    for view in views:
        result = view.error or view.summary
        state = view.state.value if view.source else render.state_label(view)
        lines.append(f"{view.name}({view.args_repr})  {state}" + (f"  {result}" if result else ""))
    if total > len(lines):
        lines.append(f"and {total - len(lines)} more: %jug_tasks --limit 0")
    return clean("\n".join(lines)) or "no tasks"


def steady_log(tasks: Sequence[tuple[TaskView, Sequence[tuple[str, Any]]]]) -> str:
    """Return what tasks printed, without times, hosts and tracebacks."""
    lines = []
    for view, output in tasks:
        lines.append(f"── {view.name}({view.args_repr}) · {view.state.value}")
        lines += [part for part in (render.outputs_text(output).rstrip("\n"), view.error) if part]
    return clean("\n".join(lines), colours=True) or "nothing was run yet"


def steady_history(runs: Sequence[RunView], total: int) -> str:
    """Return runs in the order of their text, without keys, times and hosts."""
    lines = sorted(f"{run.name}({run.args_repr})  {run.state_text}  {run.message}".rstrip() for run in runs)
    if total > len(lines):
        lines.append(f"and {total - len(lines)} before: jn.history(limit=0)")
    return clean("\n".join(lines)) or "nothing was run yet"


def steady_timeline(timeline: Timeline) -> str:
    """Return how often each function ran, without times, workers and hosts."""
    runs = Counter((span.name, "died" if span.died else span.state.value) for span in timeline.spans)
    return clean("\n".join(f"{name}  {plural(runs[name, state], 'run')} {state}" for name, state in sorted(runs))) or (
        "nothing was run yet"
    )


def steady_profile(profiles: Sequence[FunctionProfile]) -> str:
    """Return how often each function ran, in the order of their names, without what that took."""
    lines = [f"{profile.name}  {plural(profile.runs, 'run')}" for profile in profiles]
    return clean("\n".join(sorted(lines))) or "nothing was run yet"


# -- the output of tasks -----------------------------------------------------------------------------------------------


def play(outputs: Sequence[tuple[str, Any]]) -> None:
    """Print and display the output of a task, in order."""
    for kind, piece in outputs:
        if kind == "display":
            sys.stdout.flush()
            show({form: _sendable(form, data) for form, data in piece.items()})
        else:
            stream = sys.stderr if kind == "stderr" else sys.stdout
            print(clean(piece, colours=True), end="", file=stream, flush=True)


def _sendable(form: str, data: Any) -> Any:
    """Return the data of a MIME type as the Jupyter protocol sends it."""
    if form.startswith("image/") and not form.endswith("svg+xml"):
        return render.base64_of(form, data)
    data = data.decode(errors="replace") if isinstance(data, bytes) else data
    return clean(data, colours=True) if form == "text/plain" and isinstance(data, str) else data  # a console prints it


def record(shell: Any) -> Callable[[], None]:
    """Keep, from now on, what tasks that run in this kernel display. Return the function that undoes this.

    What runs in the main thread (``--here``, ``--now``) is shown as well. Workers that are threads (``memory:``) show
    nothing: it would appear under the cell that runs at that moment, and their `clear_output` would clear that.
    """
    publisher = shell.display_pub
    publish, clear = publisher.publish, publisher.clear_output

    def unseen() -> bool:
        return threading.current_thread() is not threading.main_thread()

    def both(data: dict[str, Any], metadata: Any = None, *args: Any, **more: Any) -> None:
        recorded, name = displays.current(), (more.get("transient") or {}).get("display_id", "")
        if recorded is not None and more.get("update"):
            recorded.update(data, metadata, name)
        elif recorded is not None:
            recorded.add(data, metadata, name)
        if recorded is None or not unseen():
            publish(data, metadata, *args, **more)

    def cleared(wait: bool = False) -> None:
        recorded = displays.current()
        if recorded is not None:
            recorded.clear(wait)
        if recorded is None or not unseen():
            clear(wait)

    publisher.publish, publisher.clear_output = both, cleared

    def remove() -> None:
        del publisher.publish, publisher.clear_output

    return remove


class WaitLine:
    """How far a wait is, as an output of the running cell that is redrawn."""

    _handle: Any = None

    def show(self, line: str) -> None:
        forms = {"text/plain": clean(line), "text/html": f'<span style="opacity:.65">{escape(line)}</span>'}
        if self._handle is None:
            self._handle = show(forms, display_id=True)
        else:
            self._handle.update(forms, raw=True)

    def end(self, line: str) -> None:
        self.show(line)


def replay(session: Session, task: Any, steady: bool) -> None:
    """Print that a task has ended before, and where (unless ``steady``), and show its output again.

    The end of the cell tells of one that failed, and of the way out.
    """
    [view] = session.results.views([task.key])
    here = view.started + view.duration > session.results.opened
    source = "already computed" if here else "from the store"
    if not view.error:
        print(source if steady else f"{source}: {session.queries.origin(task.key).removeprefix('computed ')}")
    play(session.results.outputs(task.key))
    if view.error and steady:
        print(clean(f"{view.name} failed: {view.error}"))


def promise(session: Session, task: Any) -> Callable[[], bool]:
    """Reserve a place under the cell for the task's output.

    Return a function that fills it once the task has ended, and returns True when there is nothing more to wait for.
    """
    waiting = clean(f"{task.name} has not finished; its output will appear here")
    grey = f'<span style="opacity:.65">{escape(waiting)}</span>'
    handle = show({"text/plain": waiting, "text/html": grey}, display_id=True)

    def fill() -> bool:
        if session.closed:
            return True
        [state] = session.results.states([task.key])
        if state is State.CANCELLED:
            return True
        if state not in (State.FINISHED, State.FAILED):
            return False
        [view] = session.results.views([task.key])
        title = f"{view.name} failed: {view.error}" if view.error else session.queries.origin(task.key, dated=False)
        handle.update(_titled(title, session.results.outputs(task.key)), raw=True)
        return True

    return fill


def _titled(title: str, pieces: Sequence[tuple[str, Any]]) -> dict[str, str]:
    head = render.outputs_html([("stdout", title)]) if title else ""
    return {
        "text/plain": "\n".join(filter(None, (clean(title), render.outputs_text(pieces).rstrip("\n")))),
        "text/html": f'<div style="opacity:.65">{head}</div>{render.outputs_html(pieces)}',
    }


# -- formatters --------------------------------------------------------------------------------------------------------

FEW = 4  #: a plain list or dict of up to this many tasks shows each of them
SAMPLE = 20  #: items checked first: these tell nearly all collections without tasks
COLLECTIONS = (list, tuple, dict)
CREW = ("jug_notebook.launch", "Crew")


def tasks_only(collection: Any) -> TaskList | None:
    """Return its tasks; None where it holds anything else, or only a few."""
    if type(collection) is TaskList:
        return collection
    items: Iterable[Any] = collection.values() if isinstance(collection, dict) else collection
    if len(collection) <= FEW or not all(isinstance(item, Handle) for item in islice(items, SAMPLE)):
        return None
    return TaskList(items) if all(isinstance(item, Handle) for item in items) else None


def add_formatters(
    shell: Any, steady: Callable[[], bool], show_crew: Callable[[Any], None], show_plot: Callable[[Any], None]
) -> Callable[[], None]:
    """Format tasks, collections of tasks, crews and plots, from now on. Return the function that undoes this.

    While ``steady()`` is true, they are shown as text without times.
    """
    formatters = shell.display_formatter.formatters
    plain, html = formatters["text/plain"], formatters["text/html"]
    before = {kind: plain.type_printers.get(kind) for kind in COLLECTIONS}

    def as_html(collection: Any) -> str | None:
        tasks = None if steady() else tasks_only(collection)
        return None if tasks is None else tasks.as_html(_labels(collection))

    for kind in COLLECTIONS:
        plain.for_type(kind, _printer(kind, before[kind], steady))
        html.for_type(kind, as_html)
    plain.for_type(TaskList, _printer(TaskList, None, steady))
    html.for_type(TaskList, as_html)
    html.for_type(Handle, lambda handle: None if steady() else handle._repr_html_())
    crews = shell.display_formatter.ipython_display_formatter
    crews.for_type_by_name(*CREW, show_crew)
    crews.for_type(SweepPlot, show_plot)

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
        crews.pop(SweepPlot, None)

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
