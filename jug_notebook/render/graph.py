"""The graph by function: who needs whose values, how often, and how far each is. As SVG, and as an indented list.

Needs stand left of what needs them. `layout` does the geometry, in three steps: functions go into columns, columns are
put in an order with few crossings, and each is moved to where what it is joined with is. No colours but those of the
states; all else is the reader's own text colour, so it fits light and dark.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import log10
from typing import NamedTuple

from jug_notebook.model import FunctionView, Graph, State
from jug_notebook.render.format import clean, columns, duration, elide_middle, escape, number, plural
from jug_notebook.render.html import svg_element
from jug_notebook.render.summary import STATE_STYLES, cut_functions, shares, total_counts

FUNCTIONS = 160  #: so many functions are drawn,
ALIKE = 8  #: and of those that are joined with the same ones, so many
LINES = 200  #: of the indented list
LABELLED = 80  #: with more edges than these, numbers are in their tooltips alone

HEIGHT = 44  #: of a function's box
GAP = 16  #: between two boxes of a column
LANE = 10  #: the room for an edge that passes a column
BETWEEN = 72  #: from column to column
MARGIN = 12
HEAD = 46  #: above the drawing
LETTER = 7.4  #: width of an average letter of a name,
SMALL = 5.9  #: and of what stands below it
LONGEST = 30  #: letters of a name
SWEEPS = 12
TIP = 6.0  #: length of an arrow's head

Edge = tuple[str, str]


# -- what is drawn -----------------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A function, or several that are joined with the same ones and stand for themselves no more."""

    title: str
    view: FunctionView
    folded: tuple[str, ...] = ()


class Drawing(NamedTuple):
    boxes: dict[str, Box]
    edges: dict[Edge, int]  #: by (need, what needs it)
    left_out: tuple[str, ...]  #: functions for which there was no room


def drawing(graph: Graph) -> Drawing:
    """What of a graph is drawn: of many functions that are joined with the same ones a few, those that are busy."""
    views = {view.name: view for view in graph.functions if _size(view)}
    joined = [(need, name, count) for name, need, count in graph.edges if name in views and need in views]
    places: dict[str, str] = {}
    boxes: dict[str, Box] = {}
    for group in _alike(views, joined):
        kept, rest = cut_functions(group, ALIKE) if len(group) > ALIKE + 1 else (group, [])
        boxes.update({view.name: Box(view.name, view) for view in kept})
        if rest:
            name = f"\0{rest[0].name}"  # no function is called so
            folded = FunctionView(name, total_counts(f.counts for f in rest), None)
            boxes[name] = Box(f"and {number(len(rest))} more", folded, tuple(view.name for view in rest))
            places.update({view.name: name for view in rest})
    kept, left = cut_functions([box.view for box in boxes.values()], FUNCTIONS)
    names = {view.name for view in kept}
    edges: dict[Edge, int] = {}
    for need, name, count in joined:
        pair = places.get(need, need), places.get(name, name)
        if pair[0] in names and pair[1] in names:
            edges[pair] = edges.get(pair, 0) + count
    left_out = tuple(name for view in left for name in (boxes[view.name].folded or (view.name,)))
    return Drawing({view.name: boxes[view.name] for view in kept}, edges, left_out)


def _alike(views: Mapping[str, FunctionView], edges: Sequence[tuple[str, str, int]]) -> list[list[FunctionView]]:
    """Functions grouped where they have the same needs and the same dependents."""
    needs: dict[str, set[str]] = {name: set() for name in views}
    above: dict[str, set[str]] = {name: set() for name in views}
    for need, name, _ in edges:
        needs[name].add(need)
        above[need].add(name)
    groups: dict[tuple[frozenset[str], frozenset[str]], list[FunctionView]] = {}
    for name, view in views.items():
        groups.setdefault((frozenset(needs[name]), frozenset(above[name])), []).append(view)
    return list(groups.values())


def _size(view: FunctionView) -> int:
    return sum(count for state, count in view.counts.items() if state is not State.CANCELLED)


# -- where it is drawn -------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    x: float
    y: float
    width: float


class Layout(NamedTuple):
    places: dict[str, Place]  #: of boxes: left, top, width
    paths: dict[Edge, list[tuple[float, float]]]  #: points from left to right; those between are in other columns
    turned: frozenset[Edge]  #: edges that close a circle; they run from right to left
    width: float
    height: float


def layout(widths: Mapping[str, float], edges: Iterable[Edge]) -> Layout:
    """Where each box, of such a width, stands and each edge runs."""
    given = [edge for edge in edges if edge[0] != edge[1]]
    turned = _circles(list(widths), given)
    forward = list(dict.fromkeys((b, a) if (a, b) in turned else (a, b) for a, b in given))
    tied = {name for edge in forward for name in edge}
    column = _columns([name for name in widths if name in tied], forward)
    rows, chains = _lanes(column, forward)
    links = [link for chain in chains.values() for link in pairwise(chain)]
    rows = _untangled(rows, links)
    middles = _heights(rows, links)
    places: dict[str, Place] = {}
    points: dict[str, tuple[float, float, float]] = {}
    x = float(MARGIN)
    for row in rows:
        width = max((widths[name] for name in row if name in widths), default=0.0)
        for name in row:
            points[name] = (x, x + width, middles[name])
            if name in widths:
                places[name] = Place(x, middles[name] - HEIGHT / 2, width)
        x += width + BETWEEN
    right = x - BETWEEN if rows else float(MARGIN)
    bottom = max((place.y + HEIGHT for place in places.values()), default=0.0)
    bottom = max([bottom, *(middles[name] + LANE / 2 for name in middles)])
    right, bottom = _alone([name for name in widths if name not in tied], widths, places, right, bottom)
    paths: dict[Edge, list[tuple[float, float]]] = {}
    for a, b in given:
        chain = chains[(b, a) if (a, b) in turned else (a, b)]
        path = [(points[chain[0]][1], points[chain[0]][2])]
        for name in chain[1:-1]:
            left, to, y = points[name]
            path += [(left, y), (to, y)]
        paths[(a, b)] = [*path, (points[chain[-1]][0], points[chain[-1]][2])]
    return Layout(places, paths, turned, right + MARGIN, bottom + MARGIN)


def _circles(names: Sequence[str], edges: Sequence[Edge]) -> frozenset[Edge]:
    """Edges that must be turned for nothing to go in circles."""
    above: dict[str, list[str]] = {name: [] for name in names}
    entered = dict.fromkeys(names, 0)
    for a, b in edges:
        above[a].append(b)
        entered[b] += 1
    turned: set[Edge] = set()
    done: dict[str, bool] = {}  # False: on the way that is being walked
    for start in sorted(names, key=lambda name: entered[name] > 0):
        if start in done:
            continue
        done[start] = False
        way = [(start, iter(above[start]))]
        while way:
            name, rest = way[-1]
            for following in rest:
                if following not in done:
                    done[following] = False
                    way.append((following, iter(above[following])))
                    break
                if not done[following]:
                    turned.add((name, following))
            else:
                done[name] = True
                way.pop()
    return frozenset(turned)


def _columns(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The longest way to each; then what nothing needs stays, and what has no needs goes next to what needs it."""
    needs: dict[str, list[str]] = {name: [] for name in names}
    above: dict[str, list[str]] = {name: [] for name in names}
    for a, b in edges:
        needs[b].append(a)
        above[a].append(b)
    missing = {name: len(needs[name]) for name in names}
    column = dict.fromkeys(names, 0)
    ready = [name for name in names if not missing[name]]
    for name in ready:
        for following in above[name]:
            column[following] = max(column[following], column[name] + 1)
            missing[following] -= 1
            if not missing[following]:
                ready.append(following)
    for name in names:
        if not needs[name]:
            column[name] = min(column[following] for following in above[name]) - 1
    return column


def _lanes(column: Mapping[str, int], edges: Sequence[Edge]) -> tuple[list[list[str]], dict[Edge, list[str]]]:
    """The columns, with a place kept for each edge that passes one; and for each edge the places it goes through."""
    rows: list[list[str]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for name, number_ in column.items():
        rows[number_].append(name)
    chains: dict[Edge, list[str]] = {}
    for a, b in edges:
        chain = [a]
        for number_ in range(column[a] + 1, column[b]):
            lane = f"\0\0{a}\0{b}\0{number_}"
            rows[number_].append(lane)
            chain.append(lane)
        chains[(a, b)] = [*chain, b]
    return rows, chains


def _neighbours(links: Sequence[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    left: dict[str, list[str]] = {}
    right: dict[str, list[str]] = {}
    for a, b in links:
        left.setdefault(b, []).append(a)
        right.setdefault(a, []).append(b)
    return left, right


def _untangled(rows: list[list[str]], links: Sequence[Edge]) -> list[list[str]]:
    """Each column in an order with few crossings: to and fro, by where what it is joined with stands on average."""
    left, right = _neighbours(links)
    best, fewest = rows, _crossings(rows, right)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        rows = [list(row) for row in rows]
        forth = sweep % 2 == 0
        for index in range(1, len(rows)) if forth else range(len(rows) - 2, -1, -1):
            beside = {name: place for place, name in enumerate(rows[index - 1 if forth else index + 1])}
            joined = left if forth else right

            def mean(
                item: tuple[int, str], joined: dict[str, list[str]] = joined, beside: dict[str, int] = beside
            ) -> float:
                found = [beside[name] for name in joined.get(item[1], ()) if name in beside]
                return sum(found) / len(found) if found else float(item[0])

            rows[index] = [name for _, name in sorted(enumerate(rows[index]), key=mean)]
        crossings = _crossings(rows, right)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _crossings(rows: Sequence[Sequence[str]], right: Mapping[str, Sequence[str]]) -> int:
    """Return how many pairs of edges cross: the inversions of their right ends."""
    total = 0
    for row, following in pairwise(rows):
        place = {name: index for index, name in enumerate(following)}
        ends = [end for name in row for end in sorted(place[other] for other in right.get(name, ()))]
        seen: list[int] = []
        for end in ends:
            at = bisect_right(seen, end)
            total += len(seen) - at
            seen.insert(at, end)
    return total


def _heights(rows: Sequence[Sequence[str]], links: Sequence[Edge]) -> dict[str, float]:
    """The middle of each place: as near as may be to what it is joined with, in the order and with room between."""
    left, right = _neighbours(links)
    tall = {name: LANE if name.startswith("\0\0") else HEIGHT + GAP for row in rows for name in row}
    middles: dict[str, float] = {}
    for row in rows:
        y = -sum(tall[name] for name in row) / 2
        for name in row:
            middles[name] = y + tall[name] / 2
            y += tall[name]
    for sweep in range(SWEEPS):
        forth = sweep % 2 == 0
        last = sweep >= SWEEPS - 2
        for row in rows if forth else reversed(rows):
            wanted = []
            for name in row:
                before, after = left.get(name, []), right.get(name, [])
                sides = before + after if last else before if forth else after
                wanted.append(sum(middles[other] for other in sides) / len(sides) if sides else middles[name])
            middles.update(zip(row, _apart(wanted, [tall[name] for name in row]), strict=True))
    top = min((middles[name] - tall[name] / 2 for name in middles), default=0.0)
    return {name: y - top + MARGIN + HEAD - GAP / 2 for name, y in middles.items()}


def _apart(wanted: Sequence[float], tall: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (least squares) that keep the order and don't overlap."""
    offsets, offset = [], 0.0
    for height in tall:
        offsets.append(offset + height / 2)
        offset += height
    pools: list[tuple[float, int]] = []  # mean, how many: neighbours that want to overlap move as one
    for want, start in zip(wanted, offsets, strict=True):
        mean, count = want - start, 1
        while pools and pools[-1][0] > mean:
            before, several = pools.pop()
            mean, count = (before * several + mean * count) / (several + count), several + count
        pools.append((mean, count))
    shifts = [mean for mean, count in pools for _ in range(count)]
    return [shift + start for shift, start in zip(shifts, offsets, strict=True)]


def _alone(
    names: Sequence[str], widths: Mapping[str, float], places: dict[str, Place], right: float, bottom: float
) -> tuple[float, float]:
    """Functions that are joined with none stand below the others, in rows."""
    if not names:
        return right, bottom
    width = max(widths[name] for name in names)
    across = max(1, min(len(names), int(max(right, 900.0) // (width + GAP))))
    top = bottom + 2 * GAP if places else float(MARGIN + HEAD)
    for index, name in enumerate(names):
        places[name] = Place(MARGIN + index % across * (width + GAP), top + index // across * (HEIGHT + GAP), width)
    rows = (len(names) + across - 1) // across
    return max(right, MARGIN + across * (width + GAP) - GAP), top + rows * (HEIGHT + GAP) - GAP


# -- drawing it --------------------------------------------------------------------------------------------------------


def svg(graph: Graph, alone: bool = False) -> str:
    """The picture. ``alone``: as a file of its own, which has no page around it to take its colours from."""
    drawn = drawing(graph)
    spread = layout({name: _width(box) for name, box in drawn.boxes.items()}, drawn.edges)
    head, across = _head(graph)
    width = max(spread.width, across, 420.0)
    height = spread.height + (18 if drawn.left_out else 0)
    parts = [*head]
    labels: list[str] = []
    for edge, count in drawn.edges.items():
        if edge[0] == edge[1]:
            parts.append(_loop(drawn.boxes[edge[0]], spread.places[edge[0]], count))
        else:
            line, label = _edge(drawn, spread, edge, count, len(drawn.edges) <= LABELLED)
            parts.append(line)
            labels.append(label)
    parts += [_box(box, spread.places[name]) for name, box in drawn.boxes.items()]
    parts += labels
    if drawn.left_out:
        more = f"and {plural(len(drawn.left_out), 'function')} more"
        parts.append(
            f'<text x="{MARGIN}" y="{height - 10:.1f}" font-size="12" opacity=".65">{more}'
            f"<title>{escape(', '.join(drawn.left_out[:200]))}</title></text>"
        )
    return svg_element(width, height, "".join(parts), alone)


def graph_html(graph: Graph) -> str:
    """For a page: the picture in its own size; it scrolls where it is larger than the page."""
    return f'<div style="max-height:640px;overflow:auto;padding:2px 0">{svg(graph)}</div>'


def _head(graph: Graph) -> tuple[list[str], float]:
    """Return what this is a graph of, and what the colours mean, and how wide that is."""
    counts = total_counts(f.counts for f in graph.functions)
    about = " · ".join(part for part in (escape(graph.store), escape(graph.scope), _about(graph)) if part)
    parts = [f"<title>{escape(_about(graph))}</title>"]
    parts.append(f'<text x="{MARGIN}" y="15" font-size="12" opacity=".65">{about}</text>')
    x = float(MARGIN)
    for state in STATE_STYLES:
        if counts.get(state) and state is not State.CANCELLED:
            label = f"{state.value} {number(counts[state])}"
            parts.append(
                f'<rect x="{x:.1f}" y="25" width="10" height="10" rx="2" fill="{STATE_STYLES[state].colour}"/>'
            )
            parts.append(
                f'<text x="{x + 15:.1f}" y="34" font-size="12">{state.value} '
                f'<tspan font-weight="bold">{number(counts[state])}</tspan></text>'
            )
            x += 15 + len(label) * 6.6 + 18
    return parts, max(x, MARGIN + len(about) * 6.6)


def _about(graph: Graph) -> str:
    views = [view for view in graph.functions if _size(view)]
    if not views:
        return "no tasks yet"
    return f"{plural(len(views), 'function')}, {plural(sum(map(_size, views)), 'task')}"


def _width(box: Box) -> float:
    below = sum(map(len, _progress(box.view)))
    return max(116.0, min(columns(box.title), LONGEST) * LETTER + 22, below * SMALL + 22)


def _box(box: Box, place: Place) -> str:
    counts = box.view.counts
    wrong = counts.get(State.FAILED, 0)
    edge = STATE_STYLES[State.FAILED].colour if wrong else "rgba(128,128,128,.5)"
    dashed = ' stroke-dasharray="4 3"' if box.folded else ""
    x, y, width = place.x, place.y, place.width
    inner = width - 20
    bar, at = [], x + 10
    for state, cells in shares(counts, 1000, 30):
        part = cells * inner / 1000
        bar.append(
            f'<rect x="{at:.1f}" y="{y + 33:.1f}" width="{part:.1f}" height="5" fill="{STATE_STYLES[state].colour}"/>'
        )
        at += part
    done, failed = _progress(box.view)
    if failed:
        failed = (
            f'<tspan font-weight="bold" fill-opacity="1" fill="{STATE_STYLES[State.FAILED].colour}">{failed}</tspan>'
        )
    weight = "normal" if box.folded else "600"
    title = escape(elide_middle(box.title, LONGEST))
    return (
        f"<g><title>{escape(_tooltip(box))}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT}" rx="6" fill="rgba(128,128,128,.1)" '
        f'stroke="{edge}"{dashed}/>'
        f'<text x="{x + 10:.1f}" y="{y + 15.5:.1f}" font-size="12" font-weight="{weight}">{title}</text>'
        f'<text x="{x + 10:.1f}" y="{y + 28:.1f}" font-size="10.5" fill-opacity=".7">{done}{failed}</text>'
        f"{''.join(bar)}</g>"
    )


def _progress(view: FunctionView) -> tuple[str, str]:
    """How far it is, and what is wrong."""
    counts, total = view.counts, _size(view)
    done, wrong, running = (counts.get(s, 0) for s in (State.FINISHED, State.FAILED, State.RUNNING))
    done_text = f"{number(done)} of {number(total)}"
    if wrong:
        return f"{done_text} · ", f"{number(wrong)} failed"
    return done_text + (f" · {number(running)} running" if running else ""), ""


def _tooltip(box: Box) -> str:
    """Return the text that appears when the pointer rests on a box."""
    lines = [", ".join(box.folded[:60]) if box.folded else box.title, _counted(box.view)]
    if box.view.mean is not None:
        lines.append(f"{duration(box.view.mean)} each")
    return "\n".join(lines)


def _counted(view: FunctionView) -> str:
    states = [state for state in STATE_STYLES if view.counts.get(state) and state is not State.CANCELLED]
    return f"{plural(_size(view), 'task')}: " + ", ".join(f"{number(view.counts[s])} {s.value}" for s in states)


def _stroke(count: int) -> float:
    return 1.1 + 0.55 * log10(count)


def _edge(drawn: Drawing, spread: Layout, edge: Edge, count: int, labelled: bool) -> tuple[str, str]:
    """(the line with its arrow, its number)."""
    turned = edge in spread.turned
    down, tip = (9.0, -TIP) if turned else (0.0, TIP)
    points = [(x, y + down) for x, y in spread.paths[edge]]
    head = points[0] if turned else points[-1]
    points[0 if turned else -1] = (head[0] - tip, head[1])
    x, y = points[0]
    line = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in points[1:]:
        half = (x + to_x) / 2
        flat = abs(to_y - y) < 0.5
        bend = "L" if flat else f"C{half:.1f} {y:.1f} {half:.1f} {to_y:.1f} "
        line.append(f"{bend}{to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    title = escape(f"{drawn.boxes[edge[1]].title} needs {drawn.boxes[edge[0]].title}, {number(count)} times")
    dashed = ' stroke-dasharray="5 3"' if turned else ""
    shape = (
        f'<g opacity=".5"><title>{title}</title><path d="{"".join(line)}" fill="none" stroke="currentColor" '
        f'stroke-width="{_stroke(count):.1f}"{dashed}/>{_arrow(*head, tip)}</g>'
    )
    if not labelled or count == 1:
        return shape, ""
    crowded = sum(other[0] == edge[0] != other[1] for other in drawn.edges) > 1
    below = 13.0 if turned else -5.0
    if crowded:  # where it arrives there is more room
        return shape, _label(points[-1][0] - 3, points[-1][1] + below, "end", count)
    return shape, _label(points[0][0] + 5, points[0][1] + below, "start", count)


def _label(x: float, y: float, anchor: str, count: int) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} font-size="10" opacity=".8">×\u202f{number(count)}</text>'


def _arrow(x: float, y: float, tip: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}l{-tip:.1f} -3.6v7.2z" stroke="none"/>'


def _loop(box: Box, place: Place, count: int) -> str:
    """A function that needs values of its own stands under a small bow."""
    x, y = place.x + place.width - 34, place.y
    title = escape(f"{box.title} needs values of its own, {number(count)} times")
    return (
        f'<g opacity=".5"><title>{title}</title><path d="M{x:.1f} {y:.1f}c0 -15 22 -15 22 -5" fill="none" '
        f'stroke="currentColor" stroke-width="{_stroke(count):.1f}"/>'
        f'<path d="M{x + 22:.1f} {y:.1f}l-3.6 -6h7.2z" stroke="none"/></g>'
        f"{_label(x - 5, y - 4, 'end', count)}"
    )


# -- as text ----------------------------------------------------------------------------------------------------------


def graph_text(graph: Graph) -> str:
    """An indented list: what nothing needs, and under each what it needs; what was listed before is only named."""
    views = {view.name: view for view in graph.functions if _size(view)}
    needs: dict[str, list[tuple[str, int]]] = {name: [] for name in views}
    needed: set[str] = set()
    for name, need, count in graph.edges:
        if name in views and need in views:
            needs[name].append((need, count))
            if name != need:
                needed.add(need)
    lines = [_about(graph)]
    listed: set[str] = set()
    for start in [*(name for name in views if name not in needed), *views]:
        if start not in listed:
            _list_needs(start, views, needs, listed, lines)
    if len(lines) > LINES:
        lines[LINES:] = [f"and {plural(len(lines) - LINES, 'line')} more"]
    return clean("\n".join(lines))


def _list_needs(
    start: str,
    views: Mapping[str, FunctionView],
    needs: Mapping[str, Sequence[tuple[str, int]]],
    listed: set[str],
    lines: list[str],
) -> None:
    below = [(start, 0, 0)]
    while below:
        name, depth, count = below.pop()
        times = f"{number(count)} × " if count else ""
        indent = "  " * depth
        own = next((count for need, count in needs[name] if need == name), 0)
        loop = f", needs itself {number(own)} times" if own else ""
        if name in listed:
            lines.append(f"{indent}{times}{elide_middle(name, 60)} (above)")
            continue
        listed.add(name)
        lines.append(f"{indent}{times}{elide_middle(name, 60)} · {_counted(views[name])}{loop}")
        below += [(need, depth + 1, count) for need, count in reversed(needs[name]) if need != name]


__all__ = ["graph_html", "graph_text", "svg"]
