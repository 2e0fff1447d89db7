"""What people see: far along, how long still, which function fails and why, who does what, how to stop."""

from __future__ import annotations

import pickle
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jug_notebook import render
from jug_notebook.model import (
    FailureView,
    FunctionView,
    Graph,
    LimitView,
    Snapshot,
    State,
    TaskView,
    WorkerInfo,
    WorkerView,
)
from jug_notebook.render.display import Status
from jug_notebook.render.format import (
    brief,
    clean,
    columns,
    describe_arguments,
    elide,
    elide_call,
    elide_middle,
    escape,
    excerpt,
)
from jug_notebook.render.graph import ALIKE, GAP, HEIGHT, drawing, layout
from jug_notebook.render.graph import FUNCTIONS as BOXES
from jug_notebook.render.html import ROWS
from jug_notebook.render.summary import FUNCTIONS, WORKERS, shares

AT = 1_795_000_000.0
EVIL = "<script>alert('x')</script>\" onmouseover=\"y\x1b[31m"
TRACEBACK = """Traceback (most recent call last):
  File "/home/ann/fit.py", line 4, in fit
    return normalise(table[key])
  File "/home/ann/fit.py", line 9, in normalise
    return value / norm
ZeroDivisionError: division by zero
"""


def function(name: str = "fit", mean: float | None = 2.0, **counts: int) -> FunctionView:
    return FunctionView(name, {State(state): count for state, count in (counts or {"ready": 1}).items()}, mean)


def worker(pid: int = 4120, *, host: str = "node3", alive: bool = True, task: str = "", note: str = "") -> WorkerView:
    info = WorkerInfo(
        id=f"{host}-{pid}-abcdef",
        kind="worker",
        user="ann",
        host=host,
        pid=pid,
        born=1,
        python="3.11",
        started=AT - 900,
        task="ab" * 20 if task else "",
        task_name=task,
        since=AT - 12 if task else 0.0,
        done=30,
        memory=210_000_000,
        note=note,
    )
    return WorkerView(info, alive, 0.4 if alive else 42.0)


def failure(number: int = 1, *, error: str = "ZeroDivisionError: division by zero", name: str = "fit") -> FailureView:
    return FailureView(
        key=f"{number:08x}" + "0" * 32,
        name=name,
        args_repr=f"n={number}",
        error=error,
        traceback=TRACEBACK,
        host="node3",
        pid=4120,
        started=AT - 43.2,
        duration=3.2,
        output="reading table\n",
    )


def snapshot(*functions: FunctionView, **more: object) -> Snapshot:
    return Snapshot("jugdata", AT, "this notebook", functions, **more)  # type: ignore[arg-type]


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers tags, attributes and text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00004, "40 µs"),
        (0.0004, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.9999, "1.0 s"),
        (3.21, "3.2 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (80, "1 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (-3, "0 ms"),
    ],
)
def test_a_length_of_time_has_two_units_at_most(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (96, "96 B"),
        (999, "999 B"),
        (1200, "1.2 kB"),
        (340e6, "340 MB"),
        (999_600, "1.0 MB"),
        (5e15, "5,000 TB"),
    ],
)
def test_a_size_is_short(count: float, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "just now"), (12.7, "12 s ago"), (200, "3 min ago"), (7300, "2 h ago"), (2e5, "2 d ago")],
)
def test_how_long_ago_has_one_unit(seconds: float, text: str) -> None:
    assert render.ago(seconds) == text


@given(st.dictionaries(st.sampled_from(State), st.integers(0, 10**6)), st.sampled_from([(40, 1), (100, 4), (1000, 6)]))
def test_the_bar_is_always_full_and_shows_every_state_there_is(counts: dict[State, int], bar: tuple[int, int]) -> None:
    cells, least = bar
    cut = dict(shares(counts, cells, least))
    assert set(cut) == {state for state, count in counts.items() if count and state is not State.CANCELLED}
    assert sum(cut.values()) in (cells, 0)
    assert all(width >= least for width in cut.values())


def test_the_text_says_how_far_and_how_long_still() -> None:
    text = render.text(snapshot(function(finished=60, ready=40), workers=(worker(task="fit"), worker(4121))))
    assert "60 %" in text
    assert "60 of 100 finished · about 52 s left" in text
    assert "2 workers, 1 busy" in text
    assert re.search(r"node3 +4120 +fit abababab +12 s +210 MB +30 +just now", text)


def test_the_time_left_counts_what_running_tasks_have_taken_where_that_is_more_than_the_mean() -> None:
    fast = snapshot(function(mean=0.0024, finished=10, running=2), workers=(worker(task="fit"), worker(7, task="fit")))
    assert fast.eta == pytest.approx(12, rel=0.01)  # both have run for 12 s
    for text in (render.text(fast), Page(render.html(fast)).text):
        assert "about 12 s left" in text
        assert " ms left" not in text
    nearly = snapshot(function(mean=15.0, finished=10, running=1), workers=(worker(task="fit"), worker(7)))
    assert "about 3.0 s left" in render.short(nearly)
    alone = snapshot(function(mean=8.0, finished=10, ready=1), workers=(worker(), worker(7), worker(8), worker(9)))
    assert "about 8.0 s left" in render.short(alone)  # four workers don't share one task
    quick = snapshot(function(mean=0.001, finished=10, ready=5), workers=(worker(),))
    assert "less than 1 s left" in render.text(quick)
    assert re.search(r"^fit .* < 1 s$", render.text(quick), re.M)


def test_the_time_left_keeps_to_limits_that_functions_share_however_many_workers_there_are() -> None:
    crew = tuple(map(worker, range(8)))

    def left(*functions: FunctionView) -> float | None:
        return snapshot(*functions, workers=crew).eta

    def limited(view: FunctionView, *limits: LimitView) -> FunctionView:
        return replace(view, limits=limits)

    f, g = function("f", 1.0, ready=600), function("g", 2.0, ready=100)
    assert left(f, g) == pytest.approx(800 / 8)
    rate = LimitView("api", 60, 60, 60)
    assert left(limited(f, rate)) == pytest.approx(9 * 60 + 1, rel=0.01), "the first sixty begin at once"
    used = replace(rate, used=60, waits=tuple(30 + i / 60 for i in range(60)))
    assert left(limited(f, used)) == pytest.approx(9 * 60 + 30 + 1 + 1, rel=0.01)
    assert left(limited(function("f", 1.0, ready=1), used)) == pytest.approx(30 + 1, rel=0.01)
    assert left(limited(function("f", 1.0, ready=30), replace(used, waits=used.waits[30:]))) == pytest.approx(30 / 8)
    pair = LimitView("db", 2, 0, 2)
    assert left(limited(f, pair), g) == pytest.approx(300)
    assert left(limited(f, pair), limited(g, pair)) == pytest.approx(400), "they share it"
    assert left(limited(f, pair, rate)) == pytest.approx(9 * 60 + 1, rel=0.01), "the stricter one decides"
    new = snapshot(limited(function("new", None, ready=600), rate), workers=crew)
    assert new.eta is None
    assert new.time_left(new.functions) == pytest.approx(9 * 60, rel=0.01), "a rate is known before any run"


def test_a_state_has_a_column_only_where_there_are_tasks_in_it() -> None:
    def columns_of(**counts: int) -> list[str]:
        lines = render.text(snapshot(function(**counts))).splitlines()
        return next(line for line in lines if line.startswith("function")).split()[1:-4]

    assert columns_of(finished=3) == ["finished"]
    assert columns_of(finished=3, ready=1) == ["finished", "running", "ready"]
    assert columns_of(waiting=2, failed=1, running=1) == ["finished", "running", "ready", "waiting", "failed"]


def test_what_is_left_out_is_counted_with_how_to_see_it() -> None:
    functions = [function(f"f{i}", ready=1) for i in range(30)]
    workers = [worker(pid) for pid in range(30)]
    kinds = [failure(1, name=f"g{i}") for i in range(12)]
    picture = snapshot(*functions, function("g", failed=12), workers=tuple(workers), failures=tuple(kinds))
    for text in (render.text(picture), Page(render.html(picture)).text):
        for how in ("jn.status().functions", "jn.status().workers", "%jug_tasks --state failed"):
            assert re.search(r"and \d+ more(, 0 busy)?: " + re.escape(how), text), how
    assert "more: jug-notebook status --json" in render.text(picture, render.SHELL)
    view = TaskView("ab" * 20, "fit", State.FINISHED, summary="int 25")
    items = [render.Item("[0]", "fit(n=3)", view)]
    for text in (render.list_text([], items, 5), Page(render.list_html([], items, 5)).text):
        assert "and 4 more: %jug_tasks VARIABLE --limit 0" in text
    assert "and 4 more: limit=0 (--limit 0) lists all" in render.tasks_text([view], 5)


def test_the_column_of_values_is_named_for_what_is_in_it() -> None:
    fine = TaskView("ab" * 20, "fit", State.FINISHED, summary="int 25")
    failed = TaskView("cd" * 20, "fit", State.FAILED, error="KeyError: 'x'")
    for views, head in (([fine], "value"), ([failed], "error"), ([fine, failed], "value or error")):
        items = [render.Item("", "fit()", view) for view in views]
        for text in (render.tasks_text(views, 2), render.list_text([], items, 2), render.list_text([], items, 2, True)):
            assert any(line.endswith(f"  {head}") for line in text.splitlines())


def test_a_box_of_the_graph_counts_the_same_way_whether_or_not_all_is_done() -> None:
    picture = render.svg(
        graph(("fit", "load", 12), more=(function("load", finished=12), function("fit", finished=5, ready=7)))
    )
    assert ">12 of 12<" in picture
    assert ">5 of 12<" in picture


def test_a_hundred_per_cent_means_all() -> None:
    assert " 99 %" in render.text(snapshot(function(finished=9_999, failed=1)))
    assert "100 %" in render.text(snapshot(function(finished=10_000)))


def test_the_columns_of_a_table_stand_below_each_other() -> None:
    picture = snapshot(
        function("fit", finished=1_000), function("数える", finished=7), function("summarise", finished=22)
    )
    head, *rows = [
        line for line in render.text(picture).splitlines() if re.match("function|fit|数える|summarise", line)
    ]
    ends = {columns(row[: re.search(r"[\d,]+", row).end()]) for row in rows}  # type: ignore[union-attr]
    assert ends == {head.index("finished") + len("finished")}


def test_what_nobody_can_know_yet_is_not_guessed() -> None:
    untimed = function("new", None, waiting=5)
    assert "time left not known yet" in render.short(snapshot(untimed, workers=(worker(),)))
    assert "more than 40 s left" in render.short(snapshot(untimed, function(ready=20), workers=(worker(),)))
    assert "time left not known yet" in render.short(snapshot(untimed, function(ready=2), workers=(worker(),)))


def test_with_work_and_no_worker_it_says_how_to_start_some() -> None:
    picture = snapshot(function(ready=5))
    assert "no workers running" in render.short(picture)
    assert "%jug_execute -n 4" in render.text(picture)
    assert "%jug_execute -n 4" in render.html(picture)
    assert "jug-notebook worker" in render.text(picture, render.SHELL)
    assert "%" not in render.text(picture, render.SHELL).replace("0 %", "")


def test_advice_is_given_only_where_it_makes_sense() -> None:
    done = render.text(snapshot(function(finished=5)))
    assert "all done" in done
    assert "%jug" not in done
    assert "%jug_stop" in render.text(snapshot(function(finished=5), workers=(worker(),)))
    assert "%jug_retry" in render.text(snapshot(function(failed=5)))
    assert "stopped: 5 failed, 2 blocked by them" in render.text(snapshot(function(failed=5, blocked=2)))


def test_a_worker_that_ended_says_what_it_was_last_seen_in_and_why() -> None:
    picture = snapshot(function(ready=1), workers=(worker(alive=False, task="fit", note="killed by SIGKILL"),))
    text = render.text(picture)
    assert re.search(r"node3 +4120 +ended, last seen in fit abababab .*42 s ago +killed by SIGKILL", text)
    assert "no workers, 1 ended recently" in text
    assert "killed by SIGKILL" in render.html(picture)


LONG = "read_the_monthly_means_of_a_station_from_its_file"


def test_what_is_too_long_keeps_both_ends_of_its_name_and_its_first_arguments() -> None:
    call = f"{LONG}(path=file('data/station_17.csv'), column='temperature')"
    assert elide_call(call, 200) == call
    assert elide_call(call, 72) == "read_the_monthly…_its_file(path=file('data/station_17.csv'), …)"
    assert (
        elide_call("fit(x=3, y=[1, 2, 3], mode='a long mode that never ends')[0]", 40) == "fit(x=3, y=[1, 2, 3], …)[0]"
    )
    nested = "season(means=read(path=file('data/station_17.csv'), column='temperature'), month=3)"
    assert elide_call(nested, 76) == "season(means=read(path=file('data/station_17.…'), column='temperature'), …)"
    assert elide_middle(LONG, 40) == "read_the_monthly_means…_from_its_file"
    assert all(len(elide_call(call, width)) <= width for width in range(24, 130))
    assert all(len(elide_middle("x" * 60, width)) == width for width in range(2, 60))


def test_a_line_that_is_too_long_ends_between_two_words_and_cuts_no_number() -> None:
    assert elide("ValueError: not a number in row 1234567 of the file", 37) == "ValueError: not a number in row…"
    assert elide("x" * 50, 20) == "x" * 19 + "…"


def test_a_path_among_arguments_is_short_and_keeps_its_end() -> None:
    folder = PurePosixPath("/home/ann/studies/2024/a/very/long/name/of/a/folder/of/mine/station_17.csv")
    assert describe_arguments([("path", PurePosixPath("data/x.csv"))]) == "path='data/x.csv'"
    assert describe_arguments([("path", folder)]).endswith("station_17.csv'")


def test_a_page_without_styles_has_spaces_between_its_parts() -> None:
    text = Page(render.html(snapshot(function(ready=25), workers=(worker(),)))).text
    assert "0 % 0 of 25 finished" in text
    assert "stop after the current task %jug_stop stop at once %jug_stop --now" in text
    two = Page(render.html(snapshot(function(finished=3, ready=2)))).text
    assert "finished 3 ready 2" in two


def test_a_failure_tells_which_call_why_where_and_what_it_printed() -> None:
    text = render.failure_text(failure(3))
    for part in (
        "fit(n=3)",
        "ZeroDivisionError: division by zero",
        "node3",
        "4120",
        "ran 3.2 s",
        "line 9",
        "reading table",
    ):
        assert part in text
        assert part in Page(render.failure_html(failure(3))).text


def test_the_picture_names_the_line_that_failed() -> None:
    text = render.text(snapshot(function(failed=1), failures=(failure(),)))
    assert "fit.py, line 9, in normalise: return value / norm" in text
    assert "on node3, 40 s ago, after 3.2 s" in text


def test_a_cells_line_is_named_as_the_notebook_names_it() -> None:
    cell = failure()
    traceback = "Traceback (most recent call last):\n  Cell In[3], line 2, in fit\n    x = table[k]\nKeyError: 'k'"
    picture = snapshot(
        function(failed=1), failures=(FailureView(cell.key, "fit", "", "KeyError: 'k'", traceback, "a", 1, AT, 0.1),)
    )
    assert "Cell In[3], line 2, in fit: x = table[k]" in render.text(picture)


@pytest.mark.parametrize(
    ("library", "line"),
    [
        ("/opt/env/lib/python3.12/site-packages/pandas/core/frame.py", "Cell In[3], line 7, in clean: t = table[k]"),
        ("/usr/lib/python3.11/json/decoder.py", "Cell In[3], line 7, in clean: t = table[k]"),
        ("<frozen importlib._bootstrap>", "Cell In[3], line 7, in clean: t = table[k]"),
        ("/home/ann/study/fit.py", "fit.py, line 662, in get: raise KeyError(key)"),
    ],
)
def test_a_failures_place_is_the_users_own_line_not_a_librarys(library: str, line: str) -> None:
    traceback = (
        "Traceback (most recent call last):\n  Cell In[3], line 7, in clean\n    t = table[k]\n        ~~^^^\n"
        f"  File \"{library}\", line 662, in get\n    raise KeyError(key)\nKeyError: 'k'\n"
    )
    assert render.summary.where_raised(traceback) == line


def test_failures_alike_but_for_numbers_are_told_once() -> None:
    rows = [failure(i, error=f"ValueError: bad row {i}") for i in range(930, 0, -1)]
    picture = snapshot(function(failed=1_000), failures=(*rows, failure(999, error="KeyError: 'x'")))
    for text in (render.text(picture), Page(render.html(picture)).text):
        assert "ValueError: bad row 930 · 929 similar failures" in text
        assert text.count("· 929 similar failures") == 1
        assert "000003a1" in text
        assert "bad row 1\n" not in text
        assert "KeyError: 'x'" in text
        assert "and 69 more" in text


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("ValueError: bad row 17", "ValueError: bad row -4.5e3", True),
        ("ValueError: no 'ann'", "ValueError: no 'bob'", True),
        ("KeyError: 'temperature'", "KeyError: 'density'", False),
        ("AttributeError: 'A' object has no attribute 'x'", "AttributeError: 'A' object has no attribute 'y'", False),
        ("KeyError: 'run-12'", "KeyError: 'run-7'", True),
        ("<Pool at 0x7f3a> is closed", "<Pool at 0x11> is closed", True),
        ("OSError: /tmp/run-12/part.csv", "OSError: /tmp/run-7/part.csv", True),
        ("no blob 3f2a91c0b7", "no blob deadbeef01", True),
        ("shape (3, 4) is wrong", "shape (3, 4, 5) is wrong", True),
        ("can't read it, don't know why", "can't open it, don't know why", False),
        ("KeyError: 'x'", "IndexError: 'x'", False),
        ("ValueError: bad row 17", "ValueError: bad column 17", False),
        ("added to the end", "faced at the end", False),
    ],
)
def test_numbers_addresses_and_quoted_words_tell_no_failures_apart_but_missing_names_do(
    one: str, other: str, alike: bool
) -> None:
    assert (render.pattern(one) == render.pattern(other)) is alike


def test_alike_failures_of_two_functions_are_two_kinds() -> None:
    kinds = render.failure_kinds([failure(1), failure(2, name="load"), failure(3)])
    assert [(kind.newest.name, len(kind.keys)) for kind in kinds] == [("fit", 2), ("load", 1)]


def test_a_thousand_kinds_of_failure_are_cut_and_counted() -> None:
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyzabcd"]
    failures = tuple(failure(i, error=f"ValueError: no {word}") for i, word in enumerate(words))
    page = render.html(snapshot(function(failed=1_000), failures=failures))
    assert "and 990 more" in page
    assert len(page) < 40_000


def test_of_two_hundred_functions_those_with_something_going_on_are_shown() -> None:
    functions = [function(f"f{i:03d}", finished=3) for i in range(200)]
    functions[150] = function("f150", failed=1)
    functions[160] = function("f160", running=1)
    functions[170] = function("f170", ready=1)
    for text in (render.text(snapshot(*functions)), Page(render.html(snapshot(*functions))).text):
        assert all(name in text for name in ("f000", "f150", "f160", "f170"))
        assert re.search(f"and ({200 - FUNCTIONS}|{200 - ROWS}) more", text)
        assert text.index("f150") < text.index("f160") < text.index("f170")


def test_of_many_workers_the_busy_and_those_lost_in_a_task_are_shown() -> None:
    workers = [worker(i) for i in range(100, 164)]
    workers[60] = worker(160, task="fit")
    workers[61] = worker(161, alive=False, task="fit")
    workers[62] = worker(162, alive=False)
    text = render.text(snapshot(function(ready=1), workers=tuple(workers)))
    assert re.search("160 +fit", text)
    assert re.search("161 +ended, last seen in fit", text)
    assert "162" not in text
    assert f"and {63 - WORKERS} more, 0 busy" in text


def test_nothing_a_task_says_becomes_markup() -> None:
    view = FailureView("a" * 40, EVIL, EVIL, EVIL, EVIL, EVIL, 1, AT, 1.0, EVIL)
    info = worker(task=EVIL, host=EVIL, note=EVIL)
    picture = Snapshot(EVIL, AT, EVIL, (function(EVIL, failed=1, ready=1),), (info,), (view,), (EVIL,))
    listing = [
        TaskView("a" * 40, EVIL, State.FAILED, args_repr=EVIL, error=EVIL),
        TaskView("b" * 40, EVIL, State.FINISHED, summary=EVIL),
    ]
    for html in (render.html(picture), render.page(picture), render.failure_html(view), render.tasks_html(listing, 2)):
        page = Page(html)
        assert "script" not in page.tags
        assert page.attributes <= {"style", "title", "open", "lang", "charset", "name", "content"}
        assert "<script>alert('x')" in page.text
        assert "\x1b" not in html


def test_the_html_has_no_style_sheet_and_takes_its_colours_from_the_page() -> None:
    html = render.html(snapshot(function(finished=1, failed=1), workers=(worker(),), failures=(failure(),)))
    page = Page(html)
    assert not {"style", "script", "link", "img"} & set(page.tags)
    colours = {state.colour for state in render.summary.STATE_STYLES.values()}
    assert set(re.findall(r"#[0-9a-f]{6}", html)) <= colours
    assert not re.search(r"(?<!-)color:(black|white|#[0-9a-f]{3}\b)", html)


@pytest.mark.parametrize("background", [0xFFFFFF, 0x111111])
def test_states_stand_out_on_light_and_dark(background: int) -> None:
    def luminance(colour: int) -> float:
        parts = [(colour >> shift & 255) / 255 for shift in (16, 8, 0)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for look in render.summary.STATE_STYLES.values():
        pair = sorted((luminance(int(look.colour[1:], 16)), luminance(background)))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 2.2, look


def test_a_listing_shows_results_and_errors_and_says_how_many_more() -> None:
    views = [
        TaskView("ab" * 20, "fit", State.FINISHED, duration=1.3, args_repr="n=3", summary="int 25"),
        TaskView("cd" * 20, "fit", State.FAILED, duration=0.5, args_repr="n=4", error="KeyError: 'x'"),
    ]
    for text in (render.tasks_text(views, 932), Page(render.tasks_html(views, 932)).text):
        assert all(part in text for part in ("abababab", "fit", "3", "int 25", "KeyError: 'x'", "and 930 more"))
    assert render.tasks_text([], 0) == "no tasks"


def test_what_is_cancelled_or_of_an_earlier_version_is_named_so_and_counts_in_no_total() -> None:
    views = [
        TaskView("ab" * 20, "fit", State.CANCELLED, args_repr="n=3"),
        TaskView("cd" * 20, "fit", State.FINISHED, args_repr="n=4", summary="int 25", kept=True),
    ]
    for text in (render.tasks_text(views, 2), Page(render.tasks_html(views, 2)).text):
        assert re.search(r"cancelled.*fit.*3.*earlier version.*fit.*4", text, re.S)
    former = FunctionView("former", {}, 1.0, kept=200)
    picture = snapshot(replace(function(finished=5, cancelled=3), kept=42), former)
    for text in (render.text(picture), Page(render.html(picture)).text):
        assert "5 of 5 finished" in text
        assert "+242 earlier versions kept · 3 cancelled" in text
        assert len(re.findall("cancelled|earlier", text)) == 2, "in one place, with no column"
        assert "former" not in text
    assert "no tasks now · no workers" in render.short(snapshot(former))


def test_workers_that_start_are_not_called_missing() -> None:
    picture = snapshot(starting=2)
    for text in (render.text(picture), render.short(picture), Page(render.html(picture)).text):
        assert "no tasks yet · 2 workers starting" in text
    assert "1 worker, 0 busy, 1 starting" in render.short(snapshot(workers=(worker(),), starting=1))


def test_an_empty_store_has_something_to_say() -> None:
    empty = snapshot()
    assert "no tasks yet" in render.text(empty)
    assert "no tasks yet" in Page(render.html(empty)).text
    assert render.short(empty) == "jugdata: no tasks yet · no workers"


def test_the_same_snapshot_always_looks_the_same() -> None:
    one = snapshot(function(ready=1), workers=(worker(1), worker(2, host="a")))
    other = snapshot(function(ready=1), workers=(worker(2, host="a"), worker(1)))
    assert render.text(one) == render.text(other)
    assert render.html(one) == render.html(other)


def test_plain_data_has_all_states_and_null_for_what_is_not_known() -> None:
    data = render.plain(snapshot(function("fit", None, ready=2), workers=(worker(),), failures=(failure(),)))
    assert set(data["counts"]) == {state.value for state in State}
    assert (data["total"], data["done"], data["eta"]) == (2, False, None)
    assert data["workers"][0]["task"] is None
    assert data["failures"][0]["arguments"] == "n=1"


def test_colours_control_characters_and_redrawn_lines_are_cleaned_away() -> None:
    assert clean("\x1b[1;31mred\x1b[0m \x1b]0;title\x07a\x00b\n10%\r90%\r\nend") == "red ␛]0;title␇a␀b\n90%\nend"
    assert clean("safe\u202etxt.exe") == "safe\\u202etxt.exe"


@given(st.text(max_size=200))
def test_escaped_text_reads_as_it_was(written: str) -> None:
    assert not set("<>\"'") & set(escape(written))
    page = Page(f"<p>{escape(written)}</p>")
    assert page.text == clean(written)


def test_of_long_texts_the_end_is_kept_and_the_cut_is_told() -> None:
    cut = excerpt("a" * 10_000 + "KeyError", limit=1_000)
    assert cut.endswith("KeyError")
    assert "characters left out" in cut
    assert elide("two\nlines " + "x" * 100, 20) == "two lines xxxxxxxxx…"


# -- graphs ------------------------------------------------------------------------------------------------------------


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
    assert len(drawn.boxes) <= BOXES
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


def test_a_graph_is_as_wide_as_what_its_colours_mean() -> None:
    counts = dict.fromkeys((state for state in State if state is not State.CANCELLED), 1000)
    picture = ElementTree.fromstring(render.svg(Graph((FunctionView("f", counts, None),))))
    meanings = [text for text in picture.iter() if text.tag.endswith("text") and text.get("y") == "34"]
    assert len(meanings) == len(counts)
    assert float(meanings[-1].get("x")) + 6 * len("".join(meanings[-1].itertext())) < float(picture.get("width"))


def test_a_graph_of_nothing_says_so():
    assert render.graph_text(Graph()) == "no tasks yet"
    assert "no tasks yet" in render.graph_html(Graph())


def test_the_parts_of_a_status_show_as_tables_with_ended_workers_apart() -> None:
    workers = (worker(task="fit"), worker(4121, alive=False, task="fit", note="killed by SIGKILL"))
    picture = snapshot(function(finished=3, failed=1), workers=workers, failures=(failure(),))
    status = Status(picture)
    assert status.workers == workers
    assert repr(status.workers).splitlines()[0] == "1 worker, 1 busy"
    assert re.search(r"\n\n1 ended recently\nhost.*\n.*4121.*killed by SIGKILL", repr(status.workers))
    assert Page(status.workers._repr_html_() or "").text.count("running for") == 2
    assert status.functions[0].name == "fit"
    assert repr(status.functions).startswith("function  finished  failed")
    assert "ZeroDivisionError" in repr(status.failures)
    assert "ZeroDivisionError" in Page(status.failures._repr_html_() or "").text
    nothing = Status(snapshot())
    assert [repr(part) for part in (nothing.workers, nothing.functions, nothing.failures)] == [
        "no workers", "no tasks", "no failures",
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(status.workers)) == workers


def test_a_container_in_short_holds_whole_items_and_is_not_cut_in_the_middle() -> None:
    assert brief(["temperature", "density", "pressure", "velocity"]) == "['temperature', 'density', …]"
    assert brief({"temperature": "density", "pressure": 1, "velocity": 2}) == "{'temperature': 'density', …}"
    assert brief(["temperature", "density", "wind"]) == "['temperature', 'density', 'wind']"
    assert brief(["a name that is longer than there is room", "density"]) == "['a name that is… is room', …]"
