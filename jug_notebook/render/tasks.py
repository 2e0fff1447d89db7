"""Tasks as a notebook holds them: one, with what it needs; many, counted, with the first few of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jug_notebook.model import State, TaskView
from jug_notebook.render.format import duration, elide, escape, number, plural
from jug_notebook.render.html import bar, block, faint, small_bar, state_html, swatch, table_html, unbroken
from jug_notebook.render.summary import STATE_STYLES, call, shares, total_counts
from jug_notebook.render.text import table

LISTED = 8  #: so many of a list are shown one by one
ROWS = 12  #: and so many functions
NEEDS = 5  #: and so many needs of a task
SUMMARY = 60


class Item(NamedTuple):
    """One of a list: how it is got at, the call, how it stands. ``whole``: is the task's value its own?"""

    label: str
    call: str
    view: TaskView
    whole: bool = True


def preformatted(text: str) -> str:
    """A line of text as a page shows it."""
    return f'<pre style="margin:0;background:none">{escape(text)}</pre>'


def _said(item: Item) -> str:
    return item.view.error or (item.view.summary if item.whole else "")


def states_text(states: Iterable[State]) -> str:
    """ "a ready task", "3 tasks: 1 running, 2 ready"."""
    counts = Counter(states)
    if counts.total() == 1:
        return f"a {next(iter(counts)).value} task"
    return f"{counts.total():,} tasks: {_tally(counts)}"


def _tally(counts: Mapping[State, int]) -> str:
    return ", ".join(f"{number(counts[state])} {state.value}" for state in STATE_STYLES if counts.get(state))


def list_text(
    rows: Sequence[tuple[str, Mapping[State, int]]], items: Sequence[Item], count: int, steady: bool = False
) -> str:
    """``rows`` are counts by function; ``count`` is how many there are, of which ``items`` are the first few.

    With ``steady``, without what differs from run to run.
    """
    counts = total_counts(counts for _, counts in rows)
    cut = "".join(STATE_STYLES[state].glyph * width for state, width in shares(counts, 24))
    lines = [f"{cut}  {plural(count, 'task')}: {_tally(counts)}"]
    if len(rows) > 1:
        lines += [f"  {elide(name, 40)}: {_tally(counts)}" for name, counts in rows[:ROWS]]
        lines += [f"  and {number(len(rows) - ROWS)} more functions"] if len(rows) > ROWS else []
    cells = [
        [
            elide(item.label, 16),
            item.view.state.value,
            elide(item.call, 48),
            "" if steady or not item.view.duration else duration(item.view.duration),
            elide(_said(item), SUMMARY),
        ]
        for item in items
    ]
    if cells:
        heads = ["", "state", "task", "" if steady else "time", "value"]
        if steady:
            heads, cells = [*heads[:3], heads[4]], [[*row[:3], row[4]] for row in cells]
        lines += table(heads, cells, left=(0, 1, 2, 3 if steady else 4))
    if count > len(items):
        lines.append(f"and {number(count - len(items))} more")
    return "\n".join(lines)


def list_html(rows: Sequence[tuple[str, Mapping[State, int]]], items: Sequence[Item], count: int) -> str:
    """The same for a page."""
    counts = total_counts(counts for _, counts in rows)
    legend = "".join(
        f'<span style="display:inline-block;margin-right:14px">{swatch(state)}{state.value} <b>{number(counts[state])}'
        "</b></span>"
        for state in STATE_STYLES
        if counts.get(state)
    )
    head = (
        f'<div><b style="margin-right:14px">{plural(count, "task")}</b>{legend}</div>'
        f'<div style="margin:4px 0 6px;max-width:480px">{bar(counts, 8, 480, 4)}</div>'
    )
    if len(rows) > 1:
        lines = [[f"<b>{escape(elide(name, 40))}</b>", small_bar(each), _tally(each)] for name, each in rows[:ROWS]]
        lines += [[faint(f"and {number(len(rows) - ROWS)} more"), "", ""]] if len(rows) > ROWS else []
        head += table_html(["function", "", ""], lines)
    cells = [
        [
            faint(escape(elide(item.label, 24))),
            state_html(item.view.state),
            escape(elide(item.call, 72)),
            unbroken(duration(item.view.duration)) if item.view.duration else "",
            f"<b>{escape(elide(_said(item), 80))}</b>" if item.view.error else escape(elide(_said(item), 80)),
        ]
        for item in items
    ]
    heads = ["", "state", "task", "time", "value"]
    more = f"<div>{faint(f'and {number(count - len(items))} more')}</div>" if count > len(items) else ""
    return block(head + (table_html(heads, cells, ("time",)) if cells else "") + more)


def task_html(view: TaskView, needs: Sequence[TaskView], count: int, notes: Sequence[str] = ()) -> str:
    """One task; ``needs`` are the first few of the ``count`` tasks that it needs."""
    took = f" in {duration(view.duration)}" if view.duration else ""
    said = f"<b>{escape(elide(view.error, 120))}</b>" if view.error else escape(elide(view.summary, 120))
    parts = [f"{swatch(view.state)}{view.state.value}{took}", said, faint(f"key <code>{escape(view.key[:8])}</code>")]
    parts += [faint(escape(note)) for note in notes]
    lines = [
        f"<b>{escape(elide(call(view.name, view.args_repr), 120))}</b>",
        " · ".join(part for part in parts if part),
    ]
    if count:
        named = " · ".join(
            f"{state_html(need.state, escape(elide(call(need.name, need.args_repr), 48)))} {faint(need.state.value)}"
            for need in needs
        )
        more = f" · and {number(count - len(needs))} more" if count > len(needs) else ""
        lines.append(f"{faint('needs')} {named}{more}")
    return block("".join(f"<div>{line}</div>" for line in lines))
