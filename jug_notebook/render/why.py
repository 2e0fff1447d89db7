"""Why tasks are not stored, as text and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import structs

from jug_notebook.model import Cause, Explanation, Reason, State
from jug_notebook.render.format import clean, duration, elide, escape, moment, number, plural
from jug_notebook.render.html import block, faint

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
        lines += [f"      {line}" for line in clean(reason.diff).splitlines()]
    if rest:
        lines.append(f"  and {plural(rest, 'more reason')}")
    return "\n".join(lines)


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
    call = f"{one.name}({one.args_repr})" if one.name else f"task {one.key[:8]}"
    if not one.stored:
        state = "" if one.state in (State.FAILED, State.CANCELLED) else f": it is {one.state.value}"
        return f"{elide(call, 120)} is not stored{state}"
    facts = ""
    if times and one.run is not None:
        run = one.run
        facts = f", computed {moment(run.started)} by {run.user} on {run.host} in {duration(run.duration)}"
    reused = f", reused from {one.source[:8]}" if one.source else ""
    return f"{elide(call, 120)} is stored{reused}{facts}"


def _compared(explanations: Sequence[Explanation]) -> str:
    if len(explanations) != 1 or not explanations[0].nearest:
        return ""
    [one] = explanations
    if one.source:
        return (
            elide(f"differences from {one.name}({one.nearest_args}), whose value it reuses", 160) if one.reasons else ""
        )
    if one.stored:
        return "compared with an earlier value of this call, which is no longer used"
    if all(reason.cause is not Cause.ARGUMENT for reason in one.reasons):
        return "compared with the stored value of this call"
    return elide(f"compared with {one.name}({one.nearest_args}), the most similar stored call", 160)


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
