"""Tasks and runs as text and HTML: one task, a list counted, a listing, a history, and why tasks aren't stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import structs

from jug_notebook.model import Cause, Explanation, Reason, RunView, State, TaskView
from jug_notebook.render.format import (
    arguments_by_name,
    clean,
    duration,
    elide,
    elide_call,
    elide_middle,
    escape,
    moment,
    number,
    plural,
)
from jug_notebook.render.html import (
    and_more,
    bar,
    block,
    code,
    faint,
    legend,
    small_bar,
    state_html,
    strong,
    swatch,
    table_html,
    unbroken,
)  # fmt: skip
from jug_notebook.render.summary import STATE_STYLES, call, shares, state_label, total_counts
from jug_notebook.render.text import table

_ALL = "limit=0 (--limit 0) lists all"  #: how to see what is left out of a listing,
_BESIDE = "%jug_tasks FUNCTION lists them too"  #: those of earlier versions,
_HISTORY = "jn.history(limit=0)"  #: of a history,
_LIST = "%jug_tasks VARIABLE --limit 0"  #: and of a list
LISTED = 8  #: tasks of a list that are shown one by one
ROWS = 12  #: functions of a list that are counted one by one
PARAMETERS = 6  #: of a function, each with a column of its own in a listing
NEEDS = 5  #: needs of a task that are shown


class Item(NamedTuple):
    """A task or tasklet of a list: its index or name, the call, the task. ``whole``: is its value the task's value?"""

    label: str
    call: str
    view: TaskView
    whole: bool = True

    def row(self, call_width: int, value_width: int) -> list[str]:
        """Return label, state, call, time and value as text, cut to the widths."""
        view = self.view
        value = view.error or (view.summary if self.whole else "")
        cells = [elide(self.label, 24), state_label(view), elide_call(self.call, call_width)]
        return [*cells, _time(view.duration), elide(value, value_width)]


def _value_head(rows: Iterable[Item | TaskView]) -> str:
    """Return the head of the column in which a failed task has its error."""
    failed = {bool((row.view if isinstance(row, Item) else row).error) for row in rows}
    return "value or error" if len(failed) > 1 else "error" if True in failed else "value"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else ""


def preformatted(text: str) -> str:
    """Return plain text as HTML."""
    return f'<pre style="margin:0;background:none">{escape(text)}</pre>'


def states_text(states: Iterable[State]) -> str:
    """Return "a ready task", or "3 tasks: 1 running, 2 ready"."""
    counts = Counter(states)
    if counts.total() == 1:
        return f"a {next(iter(counts)).value} task"
    return f"{counts.total():,} tasks: {_tally(counts)}"


def _tally(counts: Mapping[State, int]) -> str:
    return ", ".join(f"{number(counts[state])} {state.value}" for state in STATE_STYLES if counts.get(state))


# -- a list and a task that a notebook holds ---------------------------------------------------------------------------


def list_text(
    rows: Sequence[tuple[str, Mapping[State, int]]], items: Sequence[Item], count: int, steady: bool = False
) -> str:
    """Return a list of ``count`` tasks as text: ``rows`` are counts by function, ``items`` the first few tasks.

    With ``steady``, without what differs from run to run.
    """
    counts = total_counts(counts for _, counts in rows)
    bar = "".join(STATE_STYLES[state].glyph * width for state, width in shares(counts, 24))
    lines = [f"{bar}  {plural(count, 'task')}: {_tally(counts)}"]
    if len(rows) > 1:
        lines += [f"  {elide_middle(name, 40)}: {_tally(counts)}" for name, counts in rows[:ROWS]]
        lines += [f"  and {number(len(rows) - ROWS)} more functions: %jug_status"] if len(rows) > ROWS else []
    if items:
        cells = [["", "state", "task", "time", _value_head(items)], *(item.row(48, 60) for item in items)]
        heads, *cells = [row[:3] + row[4:] for row in cells] if steady else cells
        lines += table(heads, cells, ("time",))
    if count > len(items):
        lines.append(f"and {number(count - len(items))} more: {_LIST}")
    return clean("\n".join(lines))


def list_html(rows: Sequence[tuple[str, Mapping[State, int]]], items: Sequence[Item], count: int) -> str:
    """Return the same as HTML."""
    counts = total_counts(counts for _, counts in rows)
    head = (
        f'<div><b style="margin-right:10px">{plural(count, "task")}</b> {legend(counts)}</div>'
        f'<div style="margin:4px 0 6px;max-width:480px">{bar(counts, 8, 480, 4)}</div>'
    )
    if len(rows) > 1:
        lines = [
            [f"<b>{escape(elide_middle(name, 40))}</b>", small_bar(each), _tally(each)] for name, each in rows[:ROWS]
        ]
        lines += [[faint(f"and {number(len(rows) - ROWS)} more: %jug_status"), "", ""]] if len(rows) > ROWS else []
        head += table_html(["function", "", ""], lines)
    cells = []
    for item in items:
        label, state, call_, time, value = item.row(72, 80)
        cells.append([faint(escape(label)), state_html(item.view.state, state), escape(call_), unbroken(time)])
        cells[-1].append(strong(value, bool(item.view.error)))
    heads = ["", "state", "task", "time", _value_head(item.view for item in items)]
    return block(head + (table_html(heads, cells, ("time",)) if cells else "") + and_more(count - len(items), _LIST))


def need_order(state: State) -> int:
    """Return where a need of a task stands: what has failed comes first, then what can't run because of that."""
    order = (State.FAILED, State.BLOCKED, State.CANCELLED, State.RUNNING)
    return order.index(state) if state in order else len(order)


def task_html(view: TaskView, needs: Sequence[TaskView], count: int, notes: Sequence[str] = ()) -> str:
    """Return one task as HTML; ``needs`` are the first few of the ``count`` tasks that it needs."""
    took = f" in {duration(view.duration)}" if view.duration else ""
    value = strong(elide(view.error or view.summary, 120), bool(view.error))
    parts = [f"{swatch(view.state)}{state_label(view)}{took}", value, faint(f"key {code(view.key[:8])}")]
    parts += [faint(escape(note)) for note in notes]
    lines = [
        f"<b>{escape(call(view.name, view.args_repr, 120))}</b>",
        " · ".join(part for part in parts if part),
    ]
    if count:
        named = " · ".join(
            f"{state_html(need.state, escape(call(need.name, need.args_repr, 48)))} {faint(state_label(need))}"
            for need in needs
        )
        more = f" · and {number(count - len(needs))} more: %jug_graph" if count > len(needs) else ""
        lines.append(f"{faint('needs')} {named}{more}")
    return block("".join(f"<div>{line}</div>" for line in lines))


# -- listings: one task or run a line, in the order given; ``total`` is how many there are, shown or not ---------------


def _task_table(views: Sequence[TaskView], call_width: int, value_width: int) -> tuple[list[str], list[list[str]]]:
    several = len({view.user for view in views}) > 1
    names, calls = _calls(views, call_width)
    rows = [
        [
            view.key[:8],
            state_label(view),
            *cells,
            _time(view.duration),
            elide(view.error or view.summary or (view.waits_for and f"waits for {view.waits_for}"), value_width),
            *([elide(view.user, 16)] if several else []),
        ]
        for view, cells in zip(views, calls, strict=True)
    ]
    return ["key", "state", "task", *names, "time", _value_head(views), *(["made by"] if several else [])], rows


def _calls(views: Sequence[TaskView], width: int) -> tuple[list[str], list[list[str]]]:
    """Return the parameters that have a column of their own, and of each task its call, or its name and values.

    They do in a list of calls of one function that all have the same few parameters.
    """
    calls = [arguments_by_name(view.args_repr) for view in views]
    names = list(calls[0] or ()) if calls else []
    alike = len(views) > 1 and len({view.name for view in views}) == 1
    if alike and 0 < len(names) <= PARAMETERS and all(one is not None and list(one) == names for one in calls):
        values = [[elide(value, max(16, width // len(names))) for value in (one or {}).values()] for one in calls]
        return names, [[elide(view.name, width), *cells] for view, cells in zip(views, values, strict=True)]
    return [], [[call(view.name, view.args_repr, width)] for view in views]


def tasks_text(views: Sequence[TaskView], total: int, beside: str = "") -> str:
    """Return a listing of tasks as text; ``beside`` tells what is not listed."""
    more = [f"{beside}: {_BESIDE}"] if beside else []
    if not views:
        return "\n".join(["no tasks", *more])
    heads, rows = _task_table(views, 48, 48)
    lines = table(heads, rows, ("time",))
    lines += [f"and {number(total - len(rows))} more: {_ALL}"] if total > len(rows) else []
    return clean("\n".join([*lines, *more]))


def tasks_html(views: Sequence[TaskView], total: int, beside: str = "") -> str:
    """Return the same as HTML."""
    more = f"<div>{faint(escape(f'{beside}: {_BESIDE}'))}</div>" if beside else ""
    if not views:
        return block(faint("no tasks") + more)
    heads, rows = _task_table(views, 72, 80)
    several = "made by" in heads
    cells = []
    for view, (key, state, *called) in zip(views, rows, strict=False):
        *called, time, value, user = called if several else [*called, ""]
        row = [code(key), state_html(view.state, state), *map(escape, called), unbroken(time)]
        cells.append([*row, strong(value, bool(view.error)), *([unbroken(user)] if several else [])])
    return block(table_html(heads, cells, ("time",)) + and_more(total - len(rows), _ALL) + more)


_RUN_HEADS = ("started", "took", "user", "host", "state", "task", "value or error", "key")


def _run_rows(runs: Sequence[RunView], width: int) -> list[list[str]]:
    return [
        [
            moment(run.started),
            duration(run.duration),
            elide(run.user, 16),
            elide(run.host, 24),
            clean(run.state_text),
            call(run.name, run.args_repr, width),
            elide(run.message, width),
            run.key[:8],
        ]
        for run in runs
    ]


def history_text(runs: Sequence[RunView], total: int) -> str:
    """Return who ran what and when, as text: one attempt a line."""
    if not runs:
        return "nothing was run yet"
    rows = _run_rows(runs, 40)
    lines = table(_RUN_HEADS, rows, ("took",))
    lines += [f"and {number(total - len(rows))} before: {_HISTORY}"] if total > len(rows) else []
    return clean("\n".join(lines))


def history_html(runs: Sequence[RunView], total: int) -> str:
    """Return the same as HTML."""
    if not runs:
        return block(faint("nothing was run yet"))
    rows = [
        [*map(unbroken, row[:4]), state_html(run.state, escape(row[4])), *map(escape, row[5:7]), code(row[7])]
        for run, row in zip(runs, _run_rows(runs, 60), strict=False)
    ]
    return block(table_html(_RUN_HEADS, rows, ("took",)) + and_more(total - len(rows), _HISTORY, "before"))


# -- why tasks are not stored ------------------------------------------------------------------------------------------


REASONS = 12  #: reasons that are shown
_ADDED, _REMOVED = "rgba(46,160,67,.22)", "rgba(248,81,73,.22)"


def why_text(explanations: Sequence[Explanation], total: int, times: bool = True) -> str:
    """Return whether tasks are stored, and if not, why; without ``times``, without what differs from run to run."""
    lines = [_head(explanations, total, times)]
    compared = _compared(explanations)
    if compared:
        lines.append(f"{compared}:")
    kept, rest = _cut(_reasons(explanations))
    for count, reason in kept:
        lines.append(f"  {_line(count, reason, times)}")
        lines += [f"      {line}" for line in reason.diff.splitlines()]
    if rest:
        lines.append(f"  and {plural(rest, 'more reason')}")
    return clean("\n".join(lines))


def why_html(explanations: Sequence[Explanation], total: int) -> str:
    """Return the same as HTML."""
    parts = [f"<div><b>{escape(_head(explanations, total, True))}</b></div>"]
    compared = _compared(explanations)
    if compared:
        parts.append(f"<div>{faint(escape(compared))}:</div>")
    kept, rest = _cut(_reasons(explanations))
    for count, reason in kept:
        parts.append(f'<div style="margin:3px 0 0 14px">{_coded(_line(count, reason, True))}</div>{_diff(reason.diff)}')
    if rest:
        parts.append(f'<div style="margin:3px 0 0 14px">{faint("and " + plural(rest, "more reason"))}</div>')
    return block("".join(parts))


def _head(explanations: Sequence[Explanation], total: int, times: bool) -> str:
    if len(explanations) != 1:
        names = ", ".join(dict.fromkeys(one.name for one in explanations if one.name))
        stored = sum(one.stored for one in explanations)
        count = f"{plural(len(explanations), 'task')}" + (f" of {elide(names, 80)}" if names else "")
        more = f" (the first of {number(total)})" if total > len(explanations) else ""
        missing = len(explanations) - stored
        result = f"{number(stored)} stored, {number(missing)} not" if missing else "all stored"
        return f"{count}{more}: {result}" if explanations else "no tasks"
    [one] = explanations
    what = call(one.name, one.args_repr, 120) if one.name else f"task {one.key[:8]}"
    if not one.stored:
        state = "" if one.state in (State.FAILED, State.CANCELLED) else f": it is {one.state.value}"
        return f"{what} is not stored{state}"
    facts = ""
    if times and one.run is not None:
        run = one.run
        who, host = elide(run.user, 32), elide(run.host, 64)
        facts = f", computed {moment(run.started)} by {who} on {host} in {duration(run.duration)}"
    reused = f", reused from {one.source[:8]}" if one.source else ""
    return f"{what} is stored{reused}{facts}"


def _compared(explanations: Sequence[Explanation]) -> str:
    if len(explanations) != 1 or not explanations[0].nearest:
        return ""
    [one] = explanations
    nearest = call(one.name, one.nearest_args, 120)
    if one.source:
        return f"differences from {nearest}, whose value it reuses" if one.reasons else ""
    if one.stored:
        return "compared with an earlier value of this call, which is no longer used"
    if all(reason.cause is not Cause.ARGUMENT for reason in one.reasons):
        return "compared with the stored value of this call"
    return f"compared with {nearest}, the most similar stored call"


def _reasons(explanations: Sequence[Explanation]) -> list[tuple[int, Reason]]:
    if len(explanations) == 1:
        return [(1, reason) for reason in explanations[0].reasons]
    return [
        (count, reason) for count, reason in _counted((one.name, one.reasons) for one in explanations if one.reasons)
    ]


def _counted(reasons: Iterable[tuple[str, Sequence[Reason]]]) -> list[tuple[int, Reason]]:
    """Count the reasons of many tasks, given as (function's name, reasons): the most frequent first.

    Arguments that differ from task to task are one reason, with an example.
    """
    groups: dict[tuple[Any, ...], list[Reason]] = {}
    names = set()
    for name, every in reasons:
        names.add(name)
        met = set()
        for reason in every:
            apart = "" if reason.cause in (Cause.ARGUMENT, Cause.NEED) else (reason.line, reason.diff)
            group = (name, reason.cause, reason.of, reason.subject, apart)
            if group not in met:
                met.add(group)
                groups.setdefault(group, []).append(reason)
    found = []
    for (name, *_), every in groups.items():
        reason, line = every[0], every[0].line
        if any(other.line != line for other in every):
            line = f"{reason.subject}, such as {line.removeprefix(reason.subject).lstrip(': ')}"
        if len(names) > 1:
            line = f"{name}: {line}"
        found.append((len(every), structs.replace(reason, line=line)))
    found.sort(key=lambda pair: -pair[0])
    return found


def _cut(reasons: list[tuple[int, Reason]]) -> tuple[list[tuple[int, Reason]], int]:
    return reasons[:REASONS], max(0, len(reasons) - REASONS)


def _line(count: int, reason: Reason, times: bool) -> str:
    line = f"in `{reason.of}`, which it needs: {reason.line}" if reason.of else reason.line
    if times and reason.at:
        line += f" ({moment(reason.at)})"
    line = " ".join(clean(line).split())
    return f"{number(count)} × {line}" if count > 1 else line


def _coded(line: str) -> str:
    """`Names` as code."""
    parts = escape(line).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 and i < len(parts) - 1 else part for i, part in enumerate(parts))


def _diff(diff: str) -> str:
    if not diff:
        return ""
    lines = []
    for line in clean(diff).splitlines():
        colour = {"+": _ADDED, "-": _REMOVED}.get(line[:1], "transparent")
        lines.append(f'<span style="display:block;padding:0 8px;background:{colour}">{escape(line) or " "}</span>')
    return (
        '<pre style="margin:3px 0 6px 28px;padding:4px 0;overflow:auto;max-height:320px;font-size:12px;line-height:1.4;'
        f'background:rgba(128,128,128,.12);color:inherit;border-radius:4px">{"".join(lines)}</pre>'
    )
