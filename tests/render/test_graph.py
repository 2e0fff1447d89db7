"""The graph by function: nothing overlaps, circles end, what came from tasks stays text, many stay readable."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jug_notebook import render
from jug_notebook.model import FunctionView, Graph, State
from jug_notebook.render.graph import ALIKE, FUNCTIONS, GAP, HEIGHT, drawing, layout

EVIL = "<script>alert('x')</script>\" onload=\"y\x1b[31m"


def function(name: str, mean: float | None = 2.0, **counts: int) -> FunctionView:
    return FunctionView(name, {State(state): count for state, count in (counts or {"ready": 1}).items()}, mean)


def graph(*edges: tuple[str, str, int], more: tuple[FunctionView, ...] = ()) -> Graph:
    known = {view.name for view in more}
    names = dict.fromkeys(name for edge in edges for name in edge[:2] if name not in known)
    return Graph((*map(function, names), *more), edges, "jugdata", "this notebook")


names = st.sampled_from([f"f{i}" for i in range(9)])
graphs = st.lists(st.tuples(names, names), max_size=25, unique=True)


@given(graphs)
def test_boxes_never_overlap_and_edges_end_at_their_boxes(edges):
    widths = dict.fromkeys((name for edge in edges for name in edge), 120.0)
    spread = layout(widths, edges)
    assert set(spread.places) == set(widths)
    places = list(spread.places.values())
    for i, one in enumerate(places):
        assert one.x >= 0
        assert one.y >= 0
        assert one.x + one.width <= spread.width
        assert one.y + HEIGHT <= spread.height
        for other in places[i + 1 :]:
            apart = one.x + one.width <= other.x or other.x + other.width <= one.x
            assert apart or abs(one.y - other.y) >= HEIGHT + GAP - 1e-6
    for (need, name), path in spread.paths.items():
        first, last = (name, need) if (need, name) in spread.turned else (need, name)
        assert path[0] == (spread.places[first].x + 120.0, spread.places[first].y + HEIGHT / 2)
        assert path[-1] == (spread.places[last].x, spread.places[last].y + HEIGHT / 2)


@given(graphs)
def test_needs_stand_left_of_what_needs_them_but_where_that_would_go_in_circles(edges):
    widths = dict.fromkeys((name for edge in edges for name in edge), 120.0)
    spread = layout(widths, edges)
    for need, name in spread.paths:
        left_of = spread.places[need].x < spread.places[name].x
        assert left_of != ((need, name) in spread.turned)


@given(graphs)
def test_every_graph_is_well_formed_and_told_in_full(edges):
    picture = graph(*((a, b, 1 + len(a + b)) for a, b in edges))
    ElementTree.fromstring(render.svg(picture, alone=True))
    ElementTree.fromstring(render.graph_html(picture))
    text = render.graph_text(picture)
    assert all(name in text for edge in edges for name in edge)


def test_a_tree_is_drawn_without_crossings():
    edges = [("a", "b"), ("c", "d"), ("b", "e"), ("d", "e")]
    spread = layout(dict.fromkeys("cabde", 120.0), edges)
    above = spread.places["a"].y < spread.places["c"].y
    assert (spread.places["b"].y < spread.places["d"].y) == above


def test_what_came_from_tasks_stays_text():
    picture = graph((EVIL, "load", 3), more=(function(EVIL, failed=2),))
    drawn = render.svg(picture)
    root = ElementTree.fromstring(drawn)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "g", "path", "rect", "text", "tspan", "title"}
    assert "\x1b" not in drawn
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    assert "href" not in drawn


@pytest.mark.parametrize("shape", ["unlike", "alike", "alone"])
def test_hundreds_of_functions_stay_readable_and_small(shape):
    views = tuple(function(f"step_{i}", finished=3, **({"failed": 1} if i == 250 else {})) for i in range(300))
    edges = {
        "unlike": tuple((f"step_{i}", f"step_{i // 2}", 5) for i in range(1, 300)),
        "alike": tuple(("step_0", f"step_{i}", 5) for i in range(1, 300)),
        "alone": (),
    }[shape]
    picture = Graph(views, edges)
    drawn = drawing(picture)
    assert len(drawn.boxes) <= FUNCTIONS
    assert "step_250" in drawn.boxes  # it has failed, so it is seen
    assert len(drawn.boxes) > ALIKE
    html = render.graph_html(picture)
    assert "more" in html
    assert len(html) < 200_000
    drawn_names = {name for box in drawn.boxes.values() for name in (box.folded or (box.title,))} | set(drawn.left_out)
    assert drawn_names == {view.name for view in views}


def test_a_function_that_needs_itself_and_one_that_goes_in_circles_are_told_once():
    picture = graph(("walk", "walk", 99), ("ping", "pong", 5), ("pong", "ping", 4))
    assert render.graph_text(picture).splitlines() == [
        "3 functions, 3 tasks",
        "walk · 1 task: 1 ready, needs itself 99 times",
        "ping · 1 task: 1 ready",
        "  5 × pong · 1 task: 1 ready",
        "    4 × ping (above)",
    ]


def test_what_nobody_wants_any_more_is_not_drawn():
    picture = graph(("total", "load", 3), more=(function("load", cancelled=3),))
    assert render.graph_text(picture) == "1 function, 1 task\ntotal · 1 task: 1 ready"
    assert ">load<" not in render.svg(picture)


def test_a_graph_of_nothing_says_so():
    assert render.graph_text(Graph()) == "no tasks yet"
    assert "no tasks yet" in render.graph_html(Graph())
