"""Snapshots, listings and failures for a page.

No script and no style sheet, only inline styles that notebook sanitisers let pass, and colours taken from the page
(transparency over whatever is there), so it looks right on light and dark. All that came from a task is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jug_notebook.model import FailureView, RunView, Snapshot, State, TaskView
from jug_notebook.render.gist import (
    FAILURES,
    LOOKS,
    NOTEBOOK,
    TASKS,
    Hints,
    added,
    advise,
    alike,
    call,
    crowd,
    cut_functions,
    cut_workers,
    far,
    finished,
    in_sight,
    living,
    lodging,
    outlook,
    percent,
    shares,
    states_shown,
    time_left,
    where_raised,
)
from jug_notebook.render.words import (
    EXCERPT,
    ago,
    clean,
    duration,
    elide,
    escape,
    excerpt,
    moment,
    number,
    plural,
    size,
)

_FAINT = "opacity:.65"
_LINE = "1px solid rgba(128,128,128,.28)"
_CELL = "padding:3px 10px 3px 0"
_PRE = (
    "margin:4px 0 8px;padding:8px 10px;overflow:auto;max-height:320px;white-space:pre;font-size:12px;line-height:1.45;"
    "background:rgba(128,128,128,.12);color:inherit;border-radius:4px"
)


def _span(style: str, inner: str) -> str:
    return f'<span style="{style}">{inner}</span>'


def _bar(counts: Mapping[State, int], height: int, cells: int, least: int) -> str:
    """One stacked bar; see `shares`."""
    parts = [
        f'<span title="{state.value} {number(counts[state])}" style="display:inline-block;height:{height}px;'
        f'width:{width * 100 / cells:g}%;background:{LOOKS[state].colour}"></span>'
        for state, width in shares(counts, cells, least)
    ]
    return (
        f'<div style="height:{height}px;font-size:0;line-height:0;white-space:nowrap;overflow:hidden;border-radius:3px;'
        f'background:rgba(128,128,128,.2)">{"".join(parts)}</div>'
    )


def _solid(said: str) -> str:
    """Escaped, and not to be broken over lines."""
    return escape(said).replace(" ", "\u00a0")


def _swatch(state: State) -> str:
    return _span(
        f"display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px;background:{LOOKS[state].colour}",
        "",
    )


def _table(heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """Heads with whether their column stands left; cells are HTML."""

    def cell(tag: str, inner: str, left: bool) -> str:
        faint = f";{_FAINT};font-weight:normal" if tag == "th" else ""
        return f'<{tag} style="{_CELL};text-align:{"left" if left else "right"}{faint}">{inner}</{tag}>'

    head = "".join(cell("th", inner, left) for inner, left in heads)
    body = "".join(
        f'<tr style="background:none;border-top:{_LINE}">'
        + "".join(cell("td", inner, left) for inner, (_, left) in zip(row, heads, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        '<table style="border-collapse:collapse;margin:0;font-size:inherit;table-layout:auto;white-space:nowrap">'
        f'<thead style="border:none"><tr style="background:none">{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def _block(inner: str) -> str:
    """What a display stands in: it scrolls sideways rather than breaking its rows."""
    return f'<div style="font-size:13px;line-height:1.5;overflow-x:auto;max-width:960px;padding:2px 0">{inner}</div>'


def _title(said: str) -> str:
    return f'<div style="margin:12px 0 2px;font-weight:bold">{said}</div>'


def html(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """The whole picture for a page. Its parts are there one by one too, for a display that renews them apart."""
    parts = [
        head_html(snapshot),
        functions_html(snapshot),
        failures_html(snapshot),
        workers_html(snapshot),
        advice_html(snapshot, hints),
    ]
    return _block("".join(parts))


def page(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """A document of its own, light or dark as the reader's browser is."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>{percent(snapshot)} · {escape(snapshot.store)}</title></head>"
        f'<body style="margin:24px;font-family:system-ui,sans-serif">{html(snapshot, hints)}</body></html>\n'
    )


def head_html(snapshot: Snapshot) -> str:
    """How far and how long still: the bar by state, with its legend."""
    counts = snapshot.counts
    where = f"{escape(snapshot.store)} · {escape(snapshot.scope)} · as of {moment(snapshot.at)}"
    notes = "".join(f'<div style="margin-top:4px">⚠ {escape(note)}</div>' for note in snapshot.notes)
    if not snapshot.total:
        return f'<div style="{_FAINT}">{where}</div><div>no task yet · {escape(crowd(snapshot.workers))}</div>{notes}'
    big = _span("font-size:20px;font-weight:bold;margin-right:10px", percent(snapshot))
    done = finished(snapshot)
    legend = "".join(
        _span("display:inline-block;margin-right:16px", f"{_swatch(state)}{state.value} <b>{number(counts[state])}</b>")
        for state in LOOKS
        if counts[state]
    )
    return (
        f'<div style="{_FAINT}">{where}</div>'
        f"<div>{big}{done} · <b>{outlook(snapshot)}</b></div>"
        f'<div style="margin:4px 0 6px">{_bar(counts, 16, 1000, 6)}</div><div>{legend}</div>{notes}'
    )


def functions_html(snapshot: Snapshot) -> str:
    """A row per function."""
    if not snapshot.functions:
        return ""
    states, alive = states_shown(snapshot.counts), living(snapshot)
    shown, rest = cut_functions(snapshot.functions)

    def row(name: str, counts: Mapping[State, int], mean: str, left: str) -> list[str]:
        cells = [_number(counts.get(state, 0), state) for state in states]
        return [name, f'<div style="width:110px;margin-right:6px">{_bar(counts, 8, 100, 4)}</div>', *cells, mean, left]

    rows = []
    for function in shown:
        left = time_left(function, alive)
        name = f'<b title="{escape(function.name)}">{escape(elide(function.name, 40))}</b>'
        mean = "" if function.mean is None else _solid(duration(function.mean))
        rows.append(row(name, function.counts, mean, "" if left is None else _solid(duration(left))))
    if rest:
        rows.append(row(_span(_FAINT, f"and {number(len(rest))} more"), added(rest), "", ""))
    heads = [
        ("function", True),
        ("", True),
        *((state.value, False) for state in states),
        ("mean\u00a0time", False),
        ("time\u00a0left", False),
    ]
    return f'<div style="margin-top:10px">{_table(heads, rows)}</div>'


def _number(count: int, state: State) -> str:
    if not count:
        return _span("opacity:.35", "·")
    wrong = state in (State.FAILED, State.BLOCKED)
    return f"<b>{number(count)}</b>" if wrong else number(count)


def workers_html(snapshot: Snapshot) -> str:
    """Which worker does what."""
    if not in_sight(snapshot.workers):
        return ""
    shown, rest = cut_workers(snapshot.workers)
    notes = any(view.info.note for view in shown)
    several = len({view.info.user for view in snapshot.workers}) > 1
    rows = []
    for view in shown:
        info = view.info
        busy = view.alive and info.task
        doing = (
            f"<b>{escape(elide(info.task_name, 40))}</b>\u00a0{_span(_FAINT, info.task[:8])}"
            if info.task
            else _span(_FAINT, "idle")
        )
        doing += _span("margin-left:6px", far(info)) if view.alive and far(info) else ""
        row = [
            _solid(elide(lodging(info, several), 32)),
            str(info.pid),
            doing if view.alive else "ended" + (f",\u00a0last\u00a0seen\u00a0in\u00a0{doing}" if info.task else ""),
            _solid(duration(snapshot.at - info.since)) if busy and info.since else "",
            _solid(size(info.memory)) if info.memory else "",
            number(info.done),
            _solid(ago(view.beat_age)),
        ]
        rows.append([*row, escape(elide(info.note, 60))] if notes else row)
    heads = [
        ("host", True),
        ("pid", False),
        ("task", True),
        ("for", False),
        ("memory", False),
        ("done", False),
        ("last\u00a0beat", False),
    ]
    more = ""
    if rest:
        working = sum(bool(view.info.task) for view in rest)
        more = f'<div style="{_FAINT};margin-top:2px">and {number(len(rest))} more, {number(working)} busy</div>'
    return _title(escape(crowd(snapshot.workers))) + _table([*heads, ("", True)] if notes else heads, rows) + more


def failures_html(snapshot: Snapshot) -> str:
    """What failed, equal failures together; each line opens."""
    count = snapshot.counts[State.FAILED]
    if not count:
        return ""
    groups = alike(snapshot.failures)
    parts = [_title(plural(count, "failure"))]
    for group in groups[:FAILURES]:
        first = group[0]
        when = f"{escape(first.host)}, {ago(snapshot.at - first.started - first.duration)}"
        parts.append(_details(first, when, group[1:]))
    left = count - sum(len(group) for group in groups[:FAILURES])
    if left > 0 and groups:
        parts.append(f'<div style="{_FAINT}">and {number(left)} more</div>')
    return "".join(parts)


def _details(
    view: FailureView, when: str, like: Sequence[FailureView] = (), opened: bool = False, limit: int = 3_000
) -> str:
    more = _span(f"{_FAINT};margin-left:8px", f"and {number(len(like))} more like it") if like else ""
    line = (
        f"{_span(f'color:{LOOKS[State.FAILED].colour};font-weight:bold', '×')} "
        f"{escape(elide(call(view.name, view.shown), 60))} <b>{escape(elide(view.error, 90))}</b>"
        f"{_span(f'{_FAINT};margin-left:8px', when)}{more}"
    )
    return (
        f'<details{" open" if opened else ""} style="margin:0;padding:3px 0;border-top:{_LINE}">'
        f'<summary style="cursor:pointer">{line}</summary>'
        f'<div style="padding:6px 0 2px 18px">{story_html(view, like, limit)}</div></details>'
    )


def story_html(view: FailureView, like: Sequence[FailureView] = (), limit: int = 3_000) -> str:
    """What there is to say about a failure below its line: where, with what, why, what it printed."""
    place = where_raised(clean(view.traceback))
    facts = [
        ("at", f"<code>{escape(elide(place, 160))}</code>" if place else ""),
        ("arguments", f"<code>{escape(view.shown)}</code>" if view.shown else ""),
        (
            "where",
            f"{escape(view.host)}, pid {view.pid}, started {moment(view.started)}, ran {duration(view.duration)}",
        ),
        ("key", f"<code>{escape(view.key)}</code>"),
        ("like it", ", ".join(f"<code>{view.key[:8]}</code>" for view in like[:20]) + (" …" if len(like) > 20 else "")),
    ]
    rows = "".join(
        f"<div>{_span(f'display:inline-block;width:80px;{_FAINT}', head)}{inner}</div>"
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
    return f"{rows}{traceback}{printed}"


def advice_html(snapshot: Snapshot, hints: Hints = NOTEBOOK) -> str:
    """What can be done now."""
    advice = advise(snapshot, hints)
    if not advice:
        return ""
    said = "".join(
        _span("display:inline-block;margin-right:18px", f"{_span(_FAINT, what)} <code>{escape(how)}</code>")
        for what, how in advice
    )
    return f'<div style="margin-top:12px;padding-top:6px;border-top:{_LINE}">{said}</div>'


def tasks_html(views: Sequence[TaskView], total: int) -> str:
    """A listing: one task a row, in the order given; ``total`` is how many there are, shown or not."""
    if not views:
        return _block(_span(_FAINT, "no tasks"))
    several = len({view.user for view in views}) > 1
    rows = [
        [
            f"<code>{escape(view.key[:8])}</code>",
            f"{_swatch(view.state)}{'reused' if view.source else view.state.value}",
            escape(elide(call(view.name, view.shown), 72)),
            _solid(duration(view.duration)) if view.duration else "",
            f"<b>{escape(elide(view.error, 80))}</b>" if view.error else escape(elide(view.summary, 80)),
            *([_solid(elide(view.user, 20))] if several else []),
        ]
        for view in views[:TASKS]
    ]
    heads = [("key", True), ("state", True), ("task", True), ("time", False), ("result", True)]
    heads += [("made by", True)] if several else []
    more = (
        f'<div style="{_FAINT};margin-top:2px">and {number(total - len(rows))} more</div>' if total > len(rows) else ""
    )
    return _block(_table(heads, rows) + more)


def failure_html(view: FailureView) -> str:
    """One failure, whole and open."""
    return _block(_details(view, escape(view.host), opened=True, limit=EXCERPT))


def history_html(runs: Sequence[RunView], total: int) -> str:
    """Who ran what when: one run a row, in the order given; ``total`` is how many there are, shown or not."""
    if not runs:
        return _block(_span(_FAINT, "nothing was run yet"))
    rows = [
        [
            _solid(moment(run.started)),
            _solid(duration(run.duration)),
            _solid(elide(run.user, 24)),
            _solid(elide(run.host, 32)),
            f"{_swatch(run.state)}{run.state.value}",
            escape(elide(call(run.name, run.shown), 60)),
            escape(elide(run.said, 60)),
            f"<code>{escape(run.key[:8])}</code>",
        ]
        for run in runs[:TASKS]
    ]
    heads = [
        ("started", True),
        ("took", False),
        ("user", True),
        ("host", True),
        ("state", True),
        ("task", True),
        ("result", True),
        ("key", True),
    ]
    left = total - len(rows)
    more = f'<div style="{_FAINT};margin-top:2px">and {number(left)} before</div>' if left > 0 else ""
    return _block(_table(heads, rows) + more)
