"""Who ran what when: lanes, breaks, where the time went, what the end waited for; drawn small however many ran."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jug_notebook.model import Span, State, Timeline
from jug_notebook.render.format import parse_moment
from jug_notebook.render.timeline import (
    EXACT,
    WIDTH,
    Axis,
    Figure,
    lanes,
    shares,
    stretches,
    summary_lines,
    timeline_html,
    timeline_svg,
    timeline_text,
)

AT = 1_795_000_000.0
EVIL = "<script>alert('x')</script>\"\x1b[31m"


def span(
    worker: str,
    begin: float,
    length: float,
    name: str = "fit",
    key: str = "",
    state: State = State.FINISHED,
    **more: int,
) -> Span:
    return Span(key or f"{name}{begin}", name, f"{worker}-4120-abcdef", AT + begin, length, 1, state, **more)


def timeline(*spans: Span, critical: tuple[str, ...] = ()) -> Timeline:
    return Timeline(tuple(sorted(spans, key=lambda one: one.started)), critical, "file:store", "this notebook")


def test_workers_that_follow_one_another_share_a_lane_and_two_at_once_do_not() -> None:
    one, two, three = (
        [Span("k", "fit", f"a-{pid}-0", AT + at, 2.0, 1, State.FINISHED)] for pid, at in ((1, 0.0), (2, 1.0), (3, 2.5))
    )
    found = lanes([*one, *two, *three])
    assert [[run.worker for run in lane.spans] for lane in found] == [["a-1-0", "a-3-0"], ["a-2-0"]]
    assert {lane.host for lane in found} == {"a"}


def test_what_passed_over_a_week_end_is_a_break_and_a_short_wait_is_not() -> None:
    spans = [span("a", 0, 10), span("a", 11, 10), span("a", 200_000, 10)]
    assert stretches(spans) == [(AT, AT + 21), (AT + 200_000, AT + 200_010)]
    axis = Axis(stretches(spans), 100.0, 1.0)
    assert axis.place(AT) == 0
    assert axis.place(AT + 200_010) == pytest.approx(100)
    assert len(axis.breaks) == 1


def test_where_the_time_went_adds_up() -> None:
    spans = [span("a", 0, 10), span("a", 10.05, 4.95), span("b", 0, 5), span("b", 9, 3)]
    part = shares(lanes(spans), stretches(spans))
    assert part.busy == pytest.approx(22.95)
    assert part.between == pytest.approx(0.05)
    assert part.idle == pytest.approx(4 + 3)  # one waits between its tasks, and at the end
    assert part.total == pytest.approx(2 * 15)


def test_the_summary_names_failures_deaths_and_the_critical_path() -> None:
    picture = timeline(
        span("a", 0, 4, "load", "k1"),
        span("b", 0, 1, "load", "k2", State.FAILED),
        span("b", 2, 1, "load", "k3", State.FAILED, died=True),
        span("b", 4, 1, "load", "k3", taken_over=True),
        span("a", 5, 5, "fit", "k4"),
        critical=("k1", "k4"),
    )
    first, second, third = summary_lines(Figure(picture))
    assert first.startswith("5 runs of 2 functions by 2 workers at a time on 2 hosts, ")
    assert second.endswith("1 worker died · 1 attempt taken over · 1 failed")
    assert third == "critical path: 2 tasks, 10 s, of which 1.0 s between them: load → fit"
    svg = timeline_svg(picture)
    assert "the worker died" in svg
    assert "taken over from a worker that died" in svg
    assert "critical path" in svg
    text = timeline_text(picture)
    assert "X" in text.splitlines()[5]
    assert "!" in text.splitlines()[5]


def test_the_critical_path_has_attempts_that_were_lost_on_it() -> None:
    picture = timeline(
        span("a", 0, 4, "load", "k1"),
        span("b", 2, 1, "fit", "k2", State.FAILED),  # of a round before, when nobody waited for it
        span("a", 5, 2, "fit", "k2", State.FAILED, died=True),
        span("b", 8, 3, "fit", "k2", taken_over=True),
        critical=("k1", "k2"),
    )
    assert [one.started - AT for one in Figure(picture).critical] == [0, 5, 8]
    path = summary_lines(Figure(picture))[2]
    assert path == "critical path: 2 tasks, 11 s, of which 2.0 s between them and 2.0 s in 1 lost attempt: load → fit"


def test_a_hundred_thousand_runs_take_less_than_a_megabyte() -> None:
    spans = [
        span(f"host{lane % 9}", 3 * turn + lane / 100, 2.9, f"f{(lane + turn) % 30}", f"{lane:04x}{turn:04x}")
        for lane in range(100)
        for turn in range(1_000)
    ]
    picture = timeline(*spans)
    svg = timeline_svg(picture, alone=True)
    assert len(spans) > EXACT
    assert len(svg) < 1_000_000
    ElementTree.fromstring(svg)
    rights = [
        float(x) + float(width) for x, width in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    ]
    assert max(rights) < 130 + WIDTH + 25
    assert max(map(len, timeline_text(picture).splitlines()[4:])) < 140


def test_where_too_many_failed_to_be_marked_the_marks_are_from_all_of_the_time_and_deaths_are_among_them() -> None:
    spans = [span("a", 2 * at, 1, key=str(at), state=State.FAILED) for at in range(2_000)]
    spans.append(span("b", 3_999, 1, state=State.FAILED, died=True))
    svg = timeline_svg(timeline(*spans), alone=True)
    assert svg.count("the worker died") == 1
    marks = [float(x) for x in re.findall(r'd="M([\d.]+) [\d.]+v[\d.]+"', svg)]
    assert 200 <= len(marks) <= 400
    assert min(marks) < 130 + WIDTH / 100
    assert max(marks) > 130 + WIDTH * 0.99


def test_nothing_has_run_yet() -> None:
    assert timeline_text(Timeline()) == "no task has run yet"
    ElementTree.fromstring(timeline_svg(Timeline()))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", EVIL]),
            st.floats(0, 1e9) | st.floats(0, 1),
            st.floats(0, 1e6) | st.just(0.0),
            st.sampled_from([State.FINISHED, State.FAILED, State.RUNNING]),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_every_timeline_is_well_formed(rows: list[tuple[str, float, float, State, bool]]) -> None:
    spans = [
        span(host, begin, length, EVIL, str(number), state, died=died, taken_over=died)
        for number, (host, begin, length, state, died) in enumerate(rows)
    ]
    picture = timeline(*spans, critical=tuple(one.key for one in spans))
    html = timeline_html(picture)
    ElementTree.fromstring(html)
    assert "<script" not in html
    assert "\x1b" not in timeline_text(picture) + html


def test_moments_are_dates_or_lengths_of_time_ago() -> None:
    assert parse_moment("2h", AT) == AT - 7200
    assert parse_moment("2026-10-31", AT) == time.mktime((2026, 10, 31, 0, 0, 0, 0, 0, -1))
    assert parse_moment("2026-10-31 14:00", AT) - parse_moment("2026-10-31", AT) == 14 * 3600
    with pytest.raises(ValueError, match="'soon' is not a time; give a date"):
        parse_moment("soon", AT)
