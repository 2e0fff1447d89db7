"""How things are shown: once as plain text and HTML together, or as text that is the same in every run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jug_notebook import render
from jug_notebook.model import RunView, Snapshot, State, TaskView

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


def plural(count: int, noun: str = "task") -> str:
    """"1 task", "1 000 tasks"."""
    return f"{count:,} {noun}".replace(",", " ") + ("" if count == 1 else "s")


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
    """"97 finished, 2 failed", in the order of the states."""
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts.get(state))


def steady_status(snapshot: Snapshot) -> str:
    """A snapshot without anything that differs from run to run."""
    lines = [f"{snapshot.total} tasks: {tally(snapshot.counts)}" if snapshot.total else "no task yet"]
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
        lines.append(f"{view.name}({view.shown})  {view.state.value}" + (f"  {said}" if said else ""))
    if total > len(lines):
        lines.append(f"and {total - len(lines)} more")
    return "\n".join(lines) or "no tasks"


def steady_log(tasks: Sequence[tuple[TaskView, Sequence[tuple[str, Any]]]]) -> str:
    """What tasks printed, without times, hosts and tracebacks."""
    lines = []
    for view, output in tasks:
        lines.append(f"── {view.name}({view.shown}) · {view.state.value}")
        lines += [part for part in (render.shown_text(output).rstrip("\n"), view.error) if part]
    return "\n".join(lines) or "nothing was run yet"


def steady_history(runs: Sequence[RunView], total: int) -> str:
    """Runs without keys, times and hosts, by name."""
    lines = sorted(
        f"{run.name}({run.shown})  {run.state.value}{', ' * bool(run.fate)}{run.fate}  {run.said}".rstrip()
        for run in runs
    )
    if total > len(lines):
        lines.append(f"and {total - len(lines)} before")
    return "\n".join(lines) or "nothing was run yet"
