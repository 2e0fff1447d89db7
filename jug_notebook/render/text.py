"""Snapshots, listings and failures for a terminal, a log or a saved notebook."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from jug_notebook.model import FailureView, Snapshot, State
from jug_notebook.render import summary
from jug_notebook.render.format import (
    ago,
    clean,
    columns,
    duration,
    elide,
    elide_middle,
    excerpt,
    moment,
    number,
    plural,
    size,
)
from jug_notebook.render.summary import NOTEBOOK, STATE_STYLES, Hints, attempt_text, call

WIDTH = 100  #: columns of notes and of source lines


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """Return the lines of a table, two spaces between columns; those with heads in ``right`` are aligned right."""
    widths = [max(columns(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        cells = []
        for head, width, cell in zip(heads, widths, row, strict=True):
            gap = " " * (width - columns(cell))
            cells.append(gap + cell if head in right else cell + gap)
        lines.append("  ".join(cells).rstrip())
    return lines


def _count(count: int) -> str:
    return number(count) if count else "·"


def short(snapshot: Snapshot) -> str:
    """Return a snapshot in one line."""
    counts = snapshot.counts
    if not snapshot.total:
        return clean(f"{snapshot.store}: {summary.without_tasks(snapshot)}")
    parts = [f"{number(counts[State.FINISHED])} of {number(snapshot.total)} finished"]
    parts += [
        f"{number(counts[state])} {state.value}"
        for state in (State.RUNNING, State.READY, State.WAITING, State.FAILED, State.BLOCKED)
        if counts[state]
    ]
    parts += [summary.eta_text(snapshot), summary.worker_count_text(snapshot)]
    if any(note.startswith("unverified: ") for note in snapshot.notes):
        parts.append("unverified")
    return clean(" · ".join(parts))


def text(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """Return a whole snapshot for a terminal, a log or a saved notebook."""
    counts, at = snapshot.counts, snapshot.at
    lines = [f"{snapshot.store} · {snapshot.scope} · as of {moment(at)}", ""]
    if not snapshot.total:
        lines += [summary.without_tasks(snapshot)]
    else:
        bar = "".join(STATE_STYLES[state].glyph * width for state, width in summary.shares(counts, 40))
        done = summary.finished(snapshot)
        lines += [f"{summary.percent(snapshot):>5}  {bar}  {done} · {summary.eta_text(snapshot)}"]
        legend = [
            f"{look.glyph} {state.value} {number(counts[state])}"
            for state, look in STATE_STYLES.items()
            if counts[state] and state is not State.CANCELLED
        ]
        lines += ["       " + "   ".join(legend)]
    lines += [f"       {beside}"] if (beside := summary.beside_tasks(snapshot)) else []
    lines += [elide(snapshot.shortage, WIDTH)] if snapshot.shortage else []
    lines += [f"note: {elide(note, WIDTH)}" for note in snapshot.notes]
    if snapshot.total:
        lines += ["", *functions_text(snapshot, hints=hints)]
    if counts[State.FAILED]:
        lines += ["", *failures_text(snapshot, hints)]
    if summary.visible_workers(snapshot.workers):
        lines += ["", *workers_text(snapshot, hints)]
    if advice := summary.advise(snapshot, hints):
        lines += ["", *table(("", ""), advice)[1:]]
    return clean("\n".join(lines))


def functions_text(snapshot: Snapshot, limit: int = summary.FUNCTIONS, hints: Hints = NOTEBOOK) -> list[str]:
    """Return the lines of a table with a row per function."""
    states = summary.visible_states(snapshot.counts)
    kept, rest = summary.cut_functions(summary.current(snapshot), limit)
    measured = any(function.memory.largest for function in kept)
    rows = [
        [
            elide_middle(function.name, 40),
            *(_count(function.counts.get(state, 0)) for state in states),
            "" if function.mean is None else duration(function.mean),
            summary.time_left(snapshot, function),
            *([summary.memory_text(function)] if measured else []),
        ]
        for function in kept
    ]
    if rest:
        total = summary.total_counts(f.counts for f in rest)
        more = f"and {number(len(rest))} more: {hints.more.format('functions')}"
        rows.append([more, *(_count(total.get(state, 0)) for state in states), "", "", *([""] if measured else [])])
    numbers = [*(state.value for state in states), "mean time", "time left", *(["memory"] if measured else [])]
    return table(["function", *numbers], rows, numbers)


def all_workers_text(snapshot: Snapshot) -> str:
    """Return a table of all live workers, and one of those that ended lately."""
    alive, ended = summary.apart(snapshot)
    lines = workers_text(alive, limit=len(alive.workers)) if alive.workers else [summary.worker_count_text(alive)]
    if ended.workers:
        lines += ["", f"{len(ended.workers)} ended recently", *workers_text(ended, limit=len(ended.workers))[1:]]
    return "\n".join(lines)


def workers_text(snapshot: Snapshot, hints: Hints = NOTEBOOK, limit: int = summary.WORKERS) -> list[str]:
    """Return the lines of a table of workers."""
    kept, rest = summary.cut_workers(snapshot.workers, limit)
    several = len({view.info.user for view in snapshot.workers}) > 1
    rows = []
    for view in kept:
        info = view.info
        task = f"{elide_middle(info.task_name, 32)} {info.task[:8]}" if info.task else "idle"
        progress = summary.progress_text(info, snapshot.at)
        task += f" {progress}" if progress else ""
        rows.append(
            [
                elide(summary.host_label(info, several), 24),
                str(info.pid),
                task if view.alive else f"ended{', last seen in ' + task if info.task else ''}",
                duration(snapshot.at - info.since) if view.alive and info.task and info.since else "",
                size(info.memory) if info.memory else "",
                number(info.done),
                ago(view.beat_age),
                elide(info.note, 48),
            ]
        )
    lines = table(["host", "pid", "task", "running for", "memory", "done", "last seen", ""], rows, summary.NUMBERS)
    if rest:
        busy = number(sum(bool(view.info.task) for view in rest))
        lines.append(f"and {number(len(rest))} more, {busy} busy: {hints.more.format('workers')}")
    return [summary.worker_count_text(snapshot), *lines]


def failures_text(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> list[str]:
    """Return the lines that tell of failures, similar ones together."""
    count = snapshot.counts[State.FAILED]
    kept = summary.kinds(snapshot)[: summary.FAILURES]
    lines = [plural(count, "failure")]
    for kind in kept:
        first = kind.newest
        more = f" · {plural(len(kind.keys) - 1, 'similar failure')}" if len(kind.keys) > 1 else ""
        lines.append(f"× {call(first.name, first.args_repr, 48)}  {elide(first.error, 72)}{more}")
        if place := summary.where_raised(clean(first.traceback)):
            lines.append(f"    {elide(place, WIDTH)}")
        when = f"{ago(snapshot.at - first.started - first.duration)}, after {duration(first.duration)}"
        where = f"on {elide(first.host, 64)}, {when} · " if first.host else ""  # of a damaged record, that isn't known
        lines.append(f"    {where}key {first.key[:8]}")
        if kind.others:
            others = ", ".join(f"{like.key[:8]} ({elide(like.args_repr, 24)})" for like in kind.others[:3])
            lines.append(f"    similar: {others}{', …' if len(kind.keys) > 4 else ''}")
    left = count - sum(len(kind.keys) for kind in kept)
    if left > 0 and kept:
        lines.append(f"  and {number(left)} more: {hints.failed}")
    return lines


def failure_text(view: FailureView) -> str:
    """Return one failure with all its details."""
    lines = [f"× {call(view.name, view.args_repr, 120)} failed: {elide(view.error, 200)}"]
    if view.host:
        lines.append(
            f"  on {elide(view.host, 64)}, pid {view.pid}{attempt_text(view.attempt, view.attempts, ' · ')}"
            f" · started {moment(view.started)}, ran {duration(view.duration)}"
        )
    lines.append(f"  key {view.key}")
    if view.traceback:
        lines += ["", excerpt(view.traceback).rstrip()]
    if view.output:
        lines += ["", "what it printed:", *("  " + line for line in excerpt(view.output).rstrip().split("\n"))]
    return clean("\n".join(lines))
