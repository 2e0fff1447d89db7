"""Snapshots, listings and failures as HTML.

No script, and no stylesheet unless `CLASSES` is asked for: only inline styles, which notebook sanitisers let pass, and
colours taken from the page (transparency over whatever is there), so it looks right on light and dark. All that came
from a task is escaped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from jug_notebook.model import FailureKind, FailureView, SimilarFailure, Snapshot, State
from jug_notebook.render import summary
from jug_notebook.render.format import (
    EXCERPT,
    ago,
    clean,
    duration,
    elide,
    elide_middle,
    escape,
    excerpt,
    moment,
    number,
    plural,
    size,
)
from jug_notebook.render.summary import NOTEBOOK, STATE_STYLES, Hints, attempt_text, call

ROWS = 12  #: of functions and of workers in a saved picture, which is sent whole
STORIES = 4  #: kinds of failures that open to details; the others are a line

_FAINT = "opacity:.65"
_LINE = "1px solid rgba(128,128,128,.28)"
_CELL = "padding:3px 10px 3px 0"
_RAIL = (
    "height:8px;font-size:0;line-height:0;white-space:nowrap;overflow:hidden;border-radius:3px;"
    "background:rgba(128,128,128,.2);width:110px;margin-right:6px"
)
_FONT = "font-family=\"system-ui,-apple-system,'Segoe UI',Roboto,sans-serif\""
_ALONE = (
    "<style>:root{color:#1f2328;background:#fff}"
    "@media(prefers-color-scheme:dark){:root{color:#e6edf3;background:#0d1117}}</style>"
)
_PRE = (
    "margin:4px 0 8px;padding:8px 10px;overflow:auto;max-height:320px;white-space:pre;font-size:12px;line-height:1.45;"
    "background:rgba(128,128,128,.12);color:inherit;border-radius:4px"
)


class Styles(NamedTuple):
    """How what a table repeats in each row is drawn: as attributes, and as the beginning of a style."""

    cell: str
    left: str  #: a cell whose text stands left
    row: str
    bar: str
    share: str  #: of a bar
    zero: str


INLINE = Styles(
    f' style="{_CELL}"',
    f' style="{_CELL};text-align:left"',
    f' style="background:none;border-top:{_LINE};text-align:right"',
    f' style="{_RAIL}"',
    "display:inline-block;height:8px;",
    '<span style="opacity:.35">·</span>',
)  #: stands alone: for saved notebooks, and front ends that drop stylesheets
CLASSES = Styles("", ' class="l"', "", ' class="b"', "", "<i>·</i>")  #: a third of the bytes, by `STYLESHEET`
STYLESHEET = f""".jug-panel td {{{_CELL}; text-align: right}}
.jug-panel td.l {{text-align: left}}
.jug-panel td i {{opacity: .35; font-style: normal}}
.jug-panel tbody tr {{border-top: {_LINE}}}
.jug-panel .b {{{_RAIL}}}
.jug-panel .b span {{display: inline-block; height: 8px}}
"""  #: what `CLASSES` mean, within an element of the class ``jug-panel``


def _span(style: str, inner: str) -> str:
    return f'<span style="{style}">{inner}</span>'


def bar(counts: Mapping[State, int], height: int, cells: int, least: int) -> str:
    """One stacked bar; see `shares`. Each part's title is its state and number."""
    parts = "".join(
        f'<span title="{state.value} {number(counts[state])}" style="display:inline-block;height:{height}px;'
        f'width:{width * 100 / cells:g}%;background:{STATE_STYLES[state].colour}"></span>'
        for state, width in summary.shares(counts, cells, least)
    )
    look = f"height:{height}px;font-size:0;line-height:0;white-space:nowrap;overflow:hidden;border-radius:3px"
    return f'<div style="{look};background:rgba(128,128,128,.2)">{parts}</div>'


def small_bar(counts: Mapping[State, int], styles: Styles = INLINE) -> str:
    """A bar in a table, without titles: the numbers stand beside it."""
    parts = "".join(
        f'<span style="{styles.share}width:{width:g}%;background:{STATE_STYLES[state].colour}"></span>'
        for state, width in summary.shares(counts, 100, 4)
    )
    return f"<div{styles.bar}>{parts}</div>"


def faint(inner: str) -> str:
    return _span(_FAINT, inner)


def strong(text: str, wrong: bool) -> str:
    """Escaped; bold where it reports something ``wrong``."""
    return f"<b>{escape(text)}</b>" if wrong else escape(text)


def code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def and_more(count: int, how: str, which: str = "more") -> str:
    """A line for what a table leaves out, and ``how`` to see it; nothing where that is nothing."""
    line = f"and {number(count)} {which}: {escape(how)}"
    return f'<div style="{_FAINT};margin-top:2px">{line}</div>' if count > 0 else ""


def legend(counts: Mapping[State, int]) -> str:
    """The states that there are, with their colours and counts."""
    return " ".join(
        _span(
            "display:inline-block;margin-right:12px",
            f"{swatch(state)}{state.value} <b>{number(counts[state])}</b>",
        )
        for state in STATE_STYLES
        if counts.get(state) and state is not State.CANCELLED
    )


def unbroken(text: str) -> str:
    """Escaped, on one line."""
    return escape(text).replace(" ", "\u00a0")


def state_html(state: State, label: str = "") -> str:
    """A state with its colour, on one line."""
    return _span("white-space:nowrap", f"{swatch(state)}{label or state.value}")


def swatch(state: State) -> str:
    return _span(
        f"display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px;background:{STATE_STYLES[state].colour}",
        "",
    )


def table_html(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = (), styles: Styles = INLINE
) -> str:
    """A table; cells are HTML. Columns whose heads are in ``right`` are aligned to the right."""
    head = "".join(
        f'<th style="{_CELL};text-align:{"right" if name in right else "left"};{_FAINT};font-weight:normal">'
        f"{unbroken(name)}</th>"
        for name in heads
    )
    sides = [styles.cell if name in right else styles.left for name in heads]
    body = "".join(
        f"<tr{styles.row}>{''.join(f'<td{s}>{cell}</td>' for s, cell in zip(sides, row, strict=True))}</tr>"
        for row in rows
    )
    return (
        '<table style="border-collapse:collapse;margin:0;font-size:inherit;table-layout:auto;white-space:nowrap">'
        f'<thead style="border:none"><tr style="background:none">{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def block(inner: str) -> str:
    """The frame of a display, which scrolls sideways instead of breaking lines."""
    return f'<div style="font-size:13px;line-height:1.5;overflow-x:auto;max-width:960px;padding:2px 0">{inner}</div>'


def _title(text: str) -> str:
    return f'<div style="margin:12px 0 2px;font-weight:bold">{text}</div>'


def html(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """Return a snapshot as HTML. Its parts are separate functions, too, for displays that renew them one by one."""
    parts = [
        head_html(snapshot),
        functions_html(snapshot, ROWS, hints=hints),
        failures_html(snapshot, hints),
        workers_html(snapshot, ROWS, hints=hints),
        advice_html(snapshot, hints),
    ]
    return block("".join(parts))


def page(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """Return a snapshot as an HTML document, light or dark as the browser is."""
    return page_of(f"{summary.percent(snapshot)} · {snapshot.store}", html(snapshot, hints))


def page_of(title: str, body: str) -> str:
    """Return an HTML document, light or dark as the browser is."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title></head>"
        f'<body style="margin:24px;font-family:system-ui,sans-serif">{body}</body></html>\n'
    )


def svg_element(width: float, height: float, inner: str, alone: bool) -> str:
    """Return a picture. ``alone``: as a file of its own, which has no page around it to take its colours from."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:none" role="img" fill="currentColor" {_FONT}>'
        f"{_ALONE if alone else ''}{inner}</svg>\n"
    )


def head_html(snapshot: Snapshot) -> str:
    """Return how much is done and how long it will take: the bar by state, with its legend."""
    counts = snapshot.counts
    where = f"{escape(snapshot.store)} · {escape(snapshot.scope)} · as of {moment(snapshot.at)}"
    lines = "".join(f'<div style="margin-top:4px">⚠ {escape(note)}</div>' for note in snapshot.notes)
    short = f'<div style="{_FAINT};margin-top:2px">{escape(snapshot.shortage)}</div>' if snapshot.shortage else ""
    beside = faint(text) if (text := summary.beside_tasks(snapshot)) else ""
    notes = short + lines
    if not snapshot.total:
        line = escape(summary.without_tasks(snapshot))
        return f'<div style="{_FAINT}">{where}</div><div>{line} {beside}</div>{notes}'
    big = _span("font-size:20px;font-weight:bold;margin-right:6px", summary.percent(snapshot))
    done = summary.finished(snapshot)
    return (
        f'<div style="{_FAINT}">{where}</div>'
        f"<div>{big} {done} · <b>{summary.eta_text(snapshot)}</b></div>"
        f'<div style="margin:4px 0 6px">{bar(counts, 16, 1000, 6)}</div><div>{legend(counts)} {beside}</div>{notes}'
    )


def functions_html(
    snapshot: Snapshot, limit: int = summary.FUNCTIONS, styles: Styles = INLINE, hints: Hints = NOTEBOOK
) -> str:
    """Return a table with a row per function."""
    if not snapshot.total:
        return ""
    states = summary.visible_states(snapshot.counts)
    kept, rest = summary.cut_functions(summary.current(snapshot), limit)

    measured = any(function.memory.largest for function in kept)

    def row(name: str, counts: Mapping[State, int], mean: str, left: str, memory: str = "") -> list[str]:
        cells = [_number(counts.get(state, 0), state) or styles.zero for state in states]
        return [name, small_bar(counts, styles), *cells, mean, left, *([memory] if measured else [])]

    rows = []
    for function in kept:
        whole = f' title="{escape(function.name)}"' if len(function.name) > 20 else ""
        name = f"<b{whole}>{escape(elide_middle(function.name, 40))}</b>"
        mean = "" if function.mean is None else unbroken(duration(function.mean))
        left, memory = unbroken(summary.time_left(snapshot, function)), summary.memory_text(function)
        memory = memory and f'<span title="{escape(summary.memory_details(function))}">{unbroken(memory)}</span>'
        rows.append(row(name, function.counts, mean, left, memory))
    if rest:
        more = _span(_FAINT, f"and {number(len(rest))} more: {escape(hints.more.format('functions'))}")
        rows.append(row(more, summary.total_counts(f.counts for f in rest), "", ""))
    numbers = [*(state.value for state in states), "mean time", "time left", *(["memory"] if measured else [])]
    return f'<div style="margin-top:10px">{table_html(["function", "", *numbers], rows, numbers, styles)}</div>'


def _number(count: int, state: State) -> str:
    wrong = state in (State.FAILED, State.BLOCKED)
    return "" if not count else f"<b>{number(count)}</b>" if wrong else number(count)


def workers_html(
    snapshot: Snapshot,
    limit: int = summary.WORKERS,
    styles: Styles = INLINE,
    hints: Hints = NOTEBOOK,
    title: str = "",
) -> str:
    """Return a table of workers and what they do, below a title: their number, where none is given."""
    if not summary.visible_workers(snapshot.workers):
        return ""
    kept, rest = summary.cut_workers(snapshot.workers, limit)
    notes = any(view.info.note for view in kept)
    several = len({view.info.user for view in snapshot.workers}) > 1
    rows = []
    for view in kept:
        info = view.info
        busy = view.alive and info.task
        doing = (
            f"<b>{escape(elide_middle(info.task_name, 40))}</b>\u00a0{_span(_FAINT, info.task[:8])}"
            if info.task
            else _span(_FAINT, "idle")
        )
        progress = summary.progress_text(info, snapshot.at) if view.alive else ""
        doing += f" {unbroken(progress)}" if progress else ""
        row = [
            unbroken(elide(summary.host_label(info, several), 32)),
            str(info.pid),
            doing if view.alive else "ended" + (f",\u00a0last\u00a0seen\u00a0in\u00a0{doing}" if info.task else ""),
            unbroken(duration(snapshot.at - info.since)) if busy and info.since else "",
            unbroken(size(info.memory)) if info.memory else "",
            number(info.done),
            unbroken(ago(view.beat_age)),
        ]
        rows.append([*row, escape(elide(info.note, 60))] if notes else row)
    heads = ["host", "pid", "task", "running for", "memory", "done", "last seen", *([""] if notes else [])]
    busy_rest = number(sum(bool(view.info.task) for view in rest))
    more = and_more(len(rest), hints.more.format("workers"), f"more, {busy_rest} busy")
    title = title or summary.worker_count_text(snapshot)
    return _title(escape(title)) + table_html(heads, rows, summary.NUMBERS, styles) + more


def all_workers_html(snapshot: Snapshot) -> str:
    """Return a table of all live workers, and one of those that ended lately."""
    alive, ended = summary.apart(snapshot)
    first = workers_html(alive, len(alive.workers)) or _title(escape(summary.worker_count_text(alive)))
    return first + workers_html(ended, len(ended.workers), title=f"{len(ended.workers)} ended recently")


def failures_html(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """Return the failures, similar ones together; each line opens."""
    count = snapshot.counts[State.FAILED]
    if not count:
        return ""
    kept = summary.kinds(snapshot)[: summary.FAILURES]
    parts = [_title(plural(count, "failure"))]
    for place, kind in enumerate(kept):
        first = kind.newest
        when = f"{escape(first.host)}, {ago(snapshot.at - first.started - first.duration)}" if first.host else ""
        parts.append(_details(first, when, kind, limit=1_500) if place < STORIES else _rest(first, when, kind))
    left = count - sum(len(kind.keys) for kind in kept)
    return "".join([*parts, and_more(left, hints.failed) if kept else ""])


def _summary(view: FailureView, when: str, kind: FailureKind | None) -> str:
    more = f" · {plural(len(kind.keys) - 1, 'similar failure')}" if kind is not None and len(kind.keys) > 1 else ""
    return (
        f"{_span(f'color:{STATE_STYLES[State.FAILED].colour};font-weight:bold', '×')} "
        f"{escape(call(view.name, view.args_repr, 60))} <b>{escape(elide(view.error, 90))}</b>{more}"
        f" {_span(f'{_FAINT};margin-left:4px', when)}"
    )


def _details(
    view: FailureView, when: str, kind: FailureKind | None = None, opened: bool = False, limit: int = EXCERPT
) -> str:
    story = story_html(view, kind.others[:5] if kind else (), len(kind.keys) if kind else 1, limit)
    return (
        f'<details{" open" if opened else ""} style="margin:0;padding:3px 0;border-top:{_LINE}">'
        f'<summary style="cursor:pointer">{_summary(view, when, kind)}</summary>'
        f'<div style="padding:6px 0 2px 18px">{story}</div></details>'
    )


def _rest(view: FailureView, when: str, kind: FailureKind) -> str:
    """A kind of failure that has a line without details."""
    place = summary.where_raised(clean(view.traceback))
    at = " " + _span(f"{_FAINT};margin-left:4px", f"<code>{escape(elide(place, 100))}</code>") if place else ""
    return f'<div style="padding:3px 0 3px 14px;border-top:{_LINE}">{_summary(view, when, kind)}{at}</div>'


def story_html(view: FailureView, similar: Sequence[SimilarFailure] = (), count: int = 1, limit: int = 3_000) -> str:
    """Return the details of a failure: where, with which arguments, why, what it printed.

    ``count``: how many there are of its kind, including this one; ``similar`` are some of the others.
    """
    place = summary.where_raised(clean(view.traceback))
    ran = (
        f"{escape(view.host)}, pid {view.pid}{attempt_text(view.attempt, view.attempts, ', ')}, "
        f"started {moment(view.started)}, ran {duration(view.duration)}"
    )
    facts = [
        ("at", f"<code>{escape(elide(place, 160))}</code>" if place else ""),
        ("arguments", f"<code>{escape(view.args_repr)}</code>" if view.args_repr else ""),
        ("where", ran if view.host else ""),
        ("key", f"<code>{escape(view.key)}</code>"),
    ]
    rows = "".join(
        f"<div>{_span(f'display:inline-block;width:80px;{_FAINT}', head)} {inner}</div>"
        for head, inner in facts
        if inner
    )
    traceback = (
        f'<pre style="{_PRE}">{escape(excerpt(clean(view.traceback), limit)).rstrip()}</pre>' if view.traceback else ""
    )
    printed = ""
    if view.output:
        pre = f'<pre style="{_PRE}">{escape(excerpt(clean(view.output), limit)).rstrip()}</pre>'
        printed = f'<div style="{_FAINT}">what it printed</div>{pre}'
    return f"{rows}{traceback}{printed}{_similar_html(view, similar, count)}"


def _similar_html(view: FailureView, similar: Sequence[SimilarFailure], count: int) -> str:
    """Similar failures, with their error where it differs."""
    if not similar:
        return ""
    lines = [
        f"<code>{escape(one.key[:8])}</code> {escape(call(view.name, one.args_repr, 60))}"
        + ("" if one.error == view.error else f" {_span(_FAINT, escape(elide(one.error, 80)))}")
        for one in similar
    ]
    left = count - 1 - len(similar)
    lines += [_span(_FAINT, f"and {number(left)} more: {NOTEBOOK.failed}")] if left > 0 else []
    head = f'<div style="{_FAINT}">{plural(count - 1, "similar failure")}</div>'
    return head + f'<div style="margin:2px 0 6px">{"<br>".join(lines)}</div>'


def advice_html(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """Return what can be done now, with what to type."""
    advice = summary.advise(snapshot, hints)
    if not advice:
        return ""
    hints_html = " ".join(
        _span("display:inline-block;margin-right:14px", f"{_span(_FAINT, what)} <code>{escape(how)}</code>")
        for what, how in advice
    )
    return f'<div style="margin-top:12px;padding-top:6px;border-top:{_LINE}">{hints_html}</div>'


def failure_html(view: FailureView) -> str:
    """Return one failure with all its details."""
    return block(_details(view, escape(view.host), opened=True))
