"""Who ran what when: each worker's runs along an axis of time, as text and as SVG. Pure.

Stretches of time in which nothing ran for long are left out: a break stands in their place. Where runs are too many to
be drawn one by one, each place along the axis has the colour of the function that ran there longest.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from jug_notebook.model import Key, Span, State, Timeline
from jug_notebook.render.format import clean, duration, elide, elide_middle, escape, moment, number, plural
from jug_notebook.render.html import svg_element
from jug_notebook.render.summary import STATE_STYLES

BETWEEN = 0.1  #: seconds; a shorter time from one task of a worker to its next goes into storing and claiming
BREAK = 0.2  #: how much of the time in which tasks ran may pass without any, to be drawn all the same
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#999933")  #: of functions
OTHERS = "#888888"  #: of the functions that have none of their own
EXACT = 1_500  #: so many runs are drawn one by one
PLACES = 12_000  #: where there are more: so many are drawn in all,
ROWS = 300  #: in so many rows
MARKS = 400  #: failures, deaths and attempts taken over that are marked
WIDTH = 1_000.0  #: of the axis
GAP = 14.0  #: width of a break
LEFT, TOP, MARGIN = 130.0, 74.0, 12.0
COLUMNS = 100  #: of the axis in a terminal
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PATH = 6  #: functions that a critical path names

_STEPS = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10_800,
    21_600,
)
_DAY = 86_400


class Lane(NamedTuple):
    """One place on a host, and what ran there: by one worker after the other, never two at a time."""

    host: str
    spans: list[Span]


class Shares(NamedTuple):
    """Where the workers' time went, in seconds, while any task ran."""

    busy: float
    between: float
    idle: float

    @property
    def total(self) -> float:
        return self.busy + self.between + self.idle or 1.0


class Figure:
    """What is drawn of a timeline, found once."""

    def __init__(self, timeline: Timeline) -> None:
        self.spans = timeline.spans
        self.stretches = stretches(self.spans)
        self.lanes = lanes(self.spans)
        self.critical = critical(timeline, self.stretches[-1][0] if self.spans else 0.0)
        spent: dict[str, float] = {}
        for span in self.spans:
            spent[span.name] = spent.get(span.name, 0.0) + span.duration
        self.functions = dict(sorted(spent.items(), key=lambda pair: -pair[1]))  #: seconds that each ran, longest first


# -- what there is -----------------------------------------------------------------------------------------------------


def lanes(spans: Sequence[Span]) -> list[Lane]:
    """Return as few lanes as hold all workers, by host. A worker stays in its lane from its first task to its last."""
    workers: dict[str, list[Span]] = {}
    for span in spans:
        workers.setdefault(span.worker, []).append(span)
    found: dict[str, list[Lane]] = {}
    free: dict[str, list[tuple[float, int]]] = {}  # when each lane of a host is free
    for of_worker in workers.values():  # by their first task
        host = of_worker[0].host
        of_host, ends = found.setdefault(host, []), free.setdefault(host, [])
        if ends and ends[0][0] <= of_worker[0].started:
            index = heapq.heappop(ends)[1]
        else:
            index = len(of_host)
            of_host.append(Lane(host, []))
        of_host[index].spans.extend(of_worker)
        heapq.heappush(ends, (max(span.ended for span in of_worker), index))
    return [lane for host in sorted(found) for lane in found[host]]


def stretches(spans: Sequence[Span]) -> list[tuple[float, float]]:
    """Return the times, begin and end, in which tasks ran; what passed between two is too long to be drawn."""
    if not spans:
        return []
    busy: list[list[float]] = []
    for span in spans:
        if busy and span.started <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], span.ended)
        else:
            busy.append([span.started, span.ended])
    longest = max(BREAK * sum(end - begin for begin, end in busy), BETWEEN)
    merged = [busy[0]]
    for begin, end in busy[1:]:
        if begin - merged[-1][1] > longest:
            merged.append([begin, end])
        else:
            merged[-1][1] = end
    return [(begin, end) for begin, end in merged]


def shares(rows: Sequence[Lane], drawn: Sequence[tuple[float, float]]) -> Shares:
    """Return where the time of these lanes went, from a lane's first task in a stretch to that stretch's end."""
    busy = between = idle = 0.0
    begins = [begin for begin, _ in drawn]
    for lane in rows:
        last, stretch = 0.0, -1
        for span in lane.spans:
            at = bisect_right(begins, span.started) - 1
            if at != stretch:
                idle += max(0.0, drawn[stretch][1] - last) if stretch >= 0 else 0.0
                stretch, last = at, span.started
            gap = max(0.0, span.started - last)
            between, idle = (between + gap, idle) if gap <= BETWEEN else (between, idle + gap)
            busy += span.duration
            last = max(last, span.ended)
        idle += max(0.0, drawn[stretch][1] - last) if stretch >= 0 else 0.0
    return Shares(busy, between, idle)


def critical(timeline: Timeline, since: float = 0.0) -> list[Span]:
    """Return the runs of the critical path that began after ``since``: the attempts of each task, once it could run."""
    attempts: dict[Key, list[Span]] = {key: [] for key in timeline.critical}
    for span in timeline.spans:
        if span.key in attempts and span.started >= since:
            attempts[span.key].append(span)
    path: list[Span] = []
    for spans in attempts.values():
        before = path[-1].ended if path else 0.0
        path += [span for span in spans if span.started >= before] or spans[-1:]
    return path


def summary_lines(figure: Figure) -> list[str]:
    """Return in a few lines what ran where and when, where the time went, and what the end waited for."""
    spans, drawn, rows = figure.spans, figure.stretches, figure.lanes
    if not spans:
        return ["no task has run yet"]
    hosts = len({lane.host for lane in rows})
    workers = plural(len(rows), "worker") + " at a time" if len(rows) > 1 else "1 worker"
    began, ended = moment(drawn[0][0]), moment(drawn[-1][1])
    ended = ended.removeprefix(began[: began.find(" ") + 1])  # the date once, for it is a long line
    first = (
        f"{plural(len(spans), 'run')} of {plural(len(figure.functions), 'function')} by {workers} "
        f"on {plural(hosts, 'host')}, {began} to {ended}"
    )
    took = sum(end - begin for begin, end in drawn)
    first += f": {duration(took)}" + (f" in {plural(len(drawn), 'part')}" if len(drawn) > 1 else "")
    part = shares(rows, drawn)
    counts = Counter("died" if span.died else span.state.value for span in spans if span.state is not State.FINISHED)
    others = [
        f"{plural(counts['died'], 'worker')} died" if counts["died"] else "",
        f"{plural(over, 'attempt')} taken over" if (over := sum(span.taken_over for span in spans)) else "",
        *(f"{number(count)} {what}" for what, count in counts.items() if what != "died"),
    ]
    second = " · ".join(
        [
            f"running {part.busy / part.total:.0%}",
            f"idle {part.idle / part.total:.0%}",
            f"storing and claiming {part.between / part.total:.0%}",
            *filter(None, others),
        ]
    )
    return [first, second, *_path_line(figure.critical)]


def _path_line(path: Sequence[Span]) -> Iterator[str]:
    last = {span.key: span for span in path}
    if len(last) < 2:
        return
    took, running = path[-1].ended - path[0].started, sum(span.duration for span in path)
    earlier = [span for span in path if last[span.key] is not span]
    repeated = f" and {duration(sum(span.duration for span in earlier))} in {plural(len(earlier), 'lost attempt')}"
    names = list(dict.fromkeys(span.name for span in path))
    chain = " → ".join([*names[:PATH], "…"] if len(names) > PATH else names)
    yield (
        f"critical path: {plural(len(last))}, {duration(took)}, of which {duration(max(0.0, took - running))} "
        f"between them{repeated if earlier else ''}: {chain}"
    )


# -- the axis ----------------------------------------------------------------------------------------------------------


class Axis:
    """Where a time stands: stretches one beside the other, in proportion, with a break between two."""

    def __init__(self, drawn: Sequence[tuple[float, float]], width: float, gap: float) -> None:
        gap = min(gap, width / 4 / max(1, len(drawn) - 1))
        took = sum(end - begin for begin, end in drawn) or 1.0
        self.scale = (width - gap * (len(drawn) - 1)) / took  #: per second
        self._drawn = drawn
        self._begins = [begin for begin, _ in drawn]
        self._places: list[float] = []
        at = 0.0
        for begin, end in drawn:
            self._places.append(at)
            at += (end - begin) * self.scale + gap
        self.breaks = [place - gap / 2 for place in self._places[1:]]

    def place(self, at: float) -> float:
        """Return where a time stands that lies in a stretch."""
        index = max(0, bisect_right(self._begins, at) - 1)
        return self._places[index] + (at - self._begins[index]) * self.scale

    def ticks(self, apart: float) -> Iterator[tuple[float, str]]:
        """Yield places and labels, with at least ``apart`` between two: first when a stretch began, then even times."""
        step = next((step for step in _STEPS if step * self.scale >= apart), 0.0)
        if not step:
            step = _DAY * max(1.0, -(-apart // (_DAY * self.scale)))
        taken = -apart
        for (begin, end), place in zip(self._drawn, self._places, strict=True):
            if place - taken < apart:
                continue
            yield place, _clock(begin, _DAY)
            taken = place
            offset = datetime.fromtimestamp(begin).astimezone().utcoffset()
            shift = offset.total_seconds() if offset else 0.0
            at = ((begin + shift) // step + 1) * step - shift
            while at <= end:
                if self.place(at) - taken >= apart:
                    yield self.place(at), _clock(at, step)
                    taken = self.place(at)
                at += step


def _clock(at: float, step: float) -> str:
    when = datetime.fromtimestamp(at)
    if step >= _DAY:
        return when.strftime("%b %d %H:%M")
    if step >= 60:
        return when.strftime("%H:%M")
    return when.strftime("%H:%M:%S") + ("" if step >= 1 else f"{at % 1:.{1 if step >= 0.1 else 2}f}"[1:])


class Place(NamedTuple):
    """A piece of a row: from where to where, which function ran there longest, and how much of the time any did."""

    left: float
    right: float
    name: str
    share: float


def dense(rows: Sequence[Sequence[Lane]], axis: Axis, grain: float) -> Iterator[list[Place]]:
    """Yield the places of each row of lanes, ``grain`` wide; neighbours of one function that are alike are one."""
    for row in rows:
        cells: dict[int, dict[str, float]] = {}
        for lane in row:
            for span in lane.spans:
                left = axis.place(span.started) / grain
                right = left + span.duration * axis.scale / grain
                for cell in range(int(left), int(right) + 1):
                    spent = cells.setdefault(cell, {})
                    part = min(right, cell + 1) - max(left, cell)
                    spent[span.name] = spent.get(span.name, 0.0) + part
        places: list[Place] = []
        for cell in sorted(cells):
            spent = cells[cell]
            name = max(spent, key=spent.__getitem__)
            share = min(4, 1 + int(4 * sum(spent.values()) / len(row))) / 4
            if places and places[-1][1:] == (cell * grain, name, share):
                places[-1] = places[-1]._replace(right=(cell + 1) * grain)
            else:
                places.append(Place(cell * grain, (cell + 1) * grain, name, share))
        yield places


def _grouped(found: Sequence[Lane], limit: int) -> list[list[Lane]]:
    """Return rows of lanes, at most about ``limit``; lanes of one host go together where there are more."""
    together = -(-len(found) // limit)
    rows: list[list[Lane]] = []
    for lane in found:
        if rows and len(rows[-1]) < together and rows[-1][0].host == lane.host:
            rows[-1].append(lane)
        else:
            rows.append([lane])
    return rows


# -- text --------------------------------------------------------------------------------------------------------------


def timeline_text(timeline: Timeline, width: int = COLUMNS) -> str:
    """Return it for a terminal: a row of letters for each lane, one for each function."""
    figure = Figure(timeline)
    lines = summary_lines(figure)
    if not figure.spans:
        return lines[0]
    names = figure.functions
    letters = dict(zip(names, LETTERS, strict=False))
    axis = Axis(figure.stretches, width, 1)
    rows = _grouped(figure.lanes, 40)
    hosts = [elide_middle(row[0].host, 16) for row in rows]
    left = max(map(len, hosts))
    wrong = {
        (index, min(width - 1, int(axis.place(span.ended)))): "X" if span.died else "!"
        for index, row in enumerate(rows)
        for lane in row
        for span in lane.spans
        if span.state is State.FAILED
    }
    lines.append("")
    for index, (host, places) in enumerate(zip(hosts, dense(rows, axis, 1.0), strict=True)):
        cells = ["·"] * width
        for at in axis.breaks:
            cells[min(width - 1, int(at))] = "┊"
        for place in places:
            for cell in range(int(place.left), min(width, int(place.right))):
                cells[cell] = wrong.get((index, cell), letters.get(place.name, "*"))
        label = host if index == 0 or hosts[index - 1] != host else ""
        lines.append(f"{label:<{left}} {''.join(cells)}")
    ruler = [" "] * (width + 16)
    for at, label in axis.ticks(16):
        ruler[int(at) : int(at) + len(label)] = label
    lines.append(f"{'':<{left}} {''.join(ruler).rstrip()}")
    counts = Counter(span.name for span in figure.spans)
    for name, spent in names.items():
        if name in letters:
            lines.append(f"{letters[name]} {elide_middle(name, 40)}: {plural(counts[name], 'run')}, {duration(spent)}")
    if len(names) > len(letters):
        lines.append(f"* {plural(len(names) - len(letters), 'function')} more")
    if wrong:
        lines.append("! failed   X the worker died")
    return clean("\n".join(lines))


# -- SVG ---------------------------------------------------------------------------------------------------------------

_FAINT = 'font-size="11" opacity=".7"'


def timeline_svg(timeline: Timeline, alone: bool = False) -> str:
    """Return the picture, static. ``alone``: as a file of its own, with no page around it to take its colours from."""
    figure = Figure(timeline)
    heads = [
        f'<text x="{MARGIN}" y="{16 + 16 * index}" font-size="12">{escape(elide(line, 190))}</text>'
        for index, line in enumerate(summary_lines(figure))
    ]
    parts, height = _drawn(figure) if figure.spans else ([], 0.0)
    width, height = LEFT + WIDTH + 3 * MARGIN, TOP + height + MARGIN
    return svg_element(width, height, f"<title>Timeline</title>{''.join(heads)}{''.join(parts)}", alone)


def timeline_html(timeline: Timeline) -> str:
    """Return it for a page: the picture in its own size; it scrolls where it is larger than the page."""
    return f'<div style="max-height:720px;overflow:auto;padding:2px 0">{timeline_svg(timeline)}</div>'


def _drawn(figure: Figure) -> tuple[list[str], float]:
    """Return the parts of the picture below its head, and their height."""
    spans, names = figure.spans, figure.functions
    colours = dict(zip(names, COLOURS, strict=False))
    axis = Axis(figure.stretches, WIDTH, GAP)
    rows = _grouped(figure.lanes, ROWS)
    pitch = 18.0 if len(rows) <= 24 else 10.0 if len(rows) <= 80 else 5.0
    top = TOP + 18
    where = {id(span): top + (index + 0.5) * pitch for index, row in enumerate(rows) for ln in row for span in ln.spans}
    parts = [*_legend(names, colours), *_frame(rows, axis, top, pitch)]
    tall = pitch - (3 if pitch > 5 else 1)
    if len(spans) <= EXACT:
        parts += [_bar(span, axis, where[id(span)] - tall / 2, tall, colours) for span in spans]
    else:
        grain = max(1.0, WIDTH * len(rows) / PLACES)
        for index, places in enumerate(dense(rows, axis, grain)):
            y = top + index * pitch + (pitch - tall) / 2
            parts += [
                f'<rect x="{LEFT + place.left:.0f}" y="{y:.1f}" width="{place.right - place.left:.0f}" '
                f'height="{tall:.0f}" fill="{colours.get(place.name, OTHERS)}"'
                + (f' opacity="{place.share:g}"/>' if place.share < 1 else "/>")
                for place in places
            ]
    parts += _marks(figure, axis, where, tall)
    points = " ".join(
        f"{LEFT + axis.place(at):.1f},{where[id(span)]:.1f}"
        for span in figure.critical[-MARKS:]
        for at in (span.started, span.ended)
    )
    if points:
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.3" opacity=".75">'
            "<title>critical path</title></polyline>"
        )
    return parts, 18 + len(rows) * pitch + 22


def _legend(names: dict[str, float], colours: dict[str, str]) -> Iterator[str]:
    x = MARGIN
    entries = [(name, f"{elide_middle(name, 24)} {duration(names[name])}", colour) for name, colour in colours.items()]
    if len(names) > len(colours):
        entries.append(("", f"{plural(len(names) - len(colours), 'function')} more", OTHERS))
    for name, label, colour in entries:
        if x > LEFT + WIDTH - 100:
            break
        yield f'<rect x="{x:.0f}" y="{TOP - 14:.0f}" width="10" height="10" rx="2" fill="{colour}"/>'
        yield (
            f'<text x="{x + 15:.0f}" y="{TOP - 5:.0f}" font-size="12">{escape(label)}'
            f"<title>{escape(name)}</title></text>"
        )
        x += 15 + len(label) * 6.8 + 16


def _frame(rows: Sequence[Sequence[Lane]], axis: Axis, top: float, pitch: float) -> Iterator[str]:
    """Yield the hosts' names, the axis and the breaks."""
    bottom = top + len(rows) * pitch
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1][0].host != row[0].host:
            y = top + index * pitch
            count = sum(len(other) for other in rows if other[0].host == row[0].host)
            yield (
                f'<text x="{MARGIN}" y="{y + 12:.1f}" font-size="12">{escape(elide_middle(row[0].host, 17))}'
                f"<title>{escape(row[0].host)}: {plural(count, 'worker')}</title></text>"
                f'<path d="M{MARGIN} {y:.1f}H{LEFT + WIDTH:.0f}" stroke="currentColor" opacity=".25"/>'
            )
    yield f'<path d="M{LEFT} {bottom:.1f}h{WIDTH:.0f}" stroke="currentColor" opacity=".5"/>'
    for at, label in axis.ticks(90.0):
        yield f'<path d="M{LEFT + at:.1f} {top:.1f}V{bottom + 4:.1f}" stroke="currentColor" opacity=".15"/>'
        if at < WIDTH - 6.5 * len(label):  # it ends where the axis does, at most
            yield f'<text x="{LEFT + at:.1f}" y="{bottom + 16:.1f}" {_FAINT}>{label}</text>'
    for at in axis.breaks:
        yield (
            f'<path d="M{LEFT + at:.1f} {top:.1f}V{bottom:.1f}" stroke="currentColor" stroke-width="3" '
            'stroke-dasharray="1 3" opacity=".4"><title>nothing ran</title></path>'
        )


def _bar(span: Span, axis: Axis, y: float, tall: float, colours: dict[str, str]) -> str:
    left, right = axis.place(span.started), axis.place(span.ended)
    state = "its worker died" if span.died else span.state.value
    attempt = f", attempt {span.attempt}" if span.attempt > 1 else ""
    faint = "" if span.state is State.FINISHED else ' opacity=".5"'
    return (
        f'<rect x="{LEFT + left:.1f}" y="{y:.1f}" width="{max(right - left, 1.0):.1f}" height="{tall:.0f}" '
        f'fill="{colours.get(span.name, OTHERS)}"{faint}>'
        f"<title>{escape(span.name)} {span.key[:8]}: {state}{attempt}, {duration(span.duration)} "
        f"from {moment(span.started)}</title></rect>"
    )


def _some(spans: list[Span]) -> list[Span]:
    return spans[:: max(1, -(-len(spans) // MARKS))]


def _marks(figure: Figure, axis: Axis, where: dict[int, float], tall: float) -> Iterator[str]:
    """Yield a mark for each failure and death, at its end, and for each attempt that was taken over, at its start.

    Where there are too many, some from all of the time.
    """
    marked = _some([span for span in figure.spans if span.state is State.FAILED and not (span.died or span.taken_over)])
    marked += _some([span for span in figure.spans if span.died or span.taken_over])
    colour = STATE_STYLES[State.FAILED].colour
    half = min(4.0, tall / 2)
    for span in marked:
        y = where[id(span)]
        if span.taken_over:
            x = LEFT + axis.place(span.started)
            yield (
                f'<path d="M{x:.1f} {y - half:.1f}l{half:.1f} {half:.1f}l-{half:.1f} {half:.1f}z">'
                f"<title>{escape(span.name)}: taken over from a worker that died</title></path>"
            )
        if span.state is State.FAILED:
            x = LEFT + axis.place(span.ended)
            what = "the worker died" if span.died else "failed"
            d = f"{2 * half:.1f}"
            cross = f"M{x - half:.1f} {y - half:.1f}l{d} {d}m0 -{d}l-{d} {d}"
            drawn = cross if span.died else f"M{x:.1f} {y - half:.1f}v{d}"
            yield (
                f'<path d="{drawn}" stroke="{colour}" stroke-width="2" fill="none">'
                f"<title>{escape(span.name)}: {what}</title></path>"
            )
