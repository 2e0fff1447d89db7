"""Lists of tasks as data: parameters, frames, labelled arrays, whatever the tasks have come to."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from tests.crews import working
from tests.workbench import cell

np, pandas, xarray = (pytest.importorskip(name) for name in ("numpy", "pandas", "xarray"))


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()


def task(source: str, name: str = "f") -> Any:
    return jn.task(cell(source, name))


@pytest.fixture
def done(session: jn.Session) -> Any:
    f = task("def f(a, b=1, mode='fast'):\n    if a == 3: raise ValueError('no threes')\n    return 10 * a + b")
    tasks = f.grid(a=[1, 2, 3], b=[4, 5])
    with working(session):
        tasks.wait(20)
    return tasks


def test_a_grid_a_map_and_a_starmap_remember_their_parameters(session):
    f = task("def f(a, b=1, mode='fast'): return a")
    assert f.grid(a=[1, 2], b=[3]).arguments == [{"a": a, "b": 3, "mode": "fast"} for a in (1, 2)]
    assert f.map([1, 2], mode="slow")[1].arguments == {"a": 2, "b": 1, "mode": "slow"}
    assert f.starmap([(1, 2), (3, 4)], chunksize=2)[1].arguments == {"a": 3, "b": 4, "mode": "fast"}
    assert f(5).arguments == {"a": 5, "b": 1, "mode": "fast"}
    assert f(np.zeros(1000)).arguments["a"].startswith("<ndarray float64 (1000,)")


@pytest.mark.filterwarnings("ignore::jug_notebook.OnlyAPath")
@pytest.mark.parametrize("given", [Path, jn.file], ids=["path", "file"])
def test_files_are_parameters_by_their_paths(session, tmp_path, given):
    paths = [tmp_path / f"{name}.csv" for name in "ab"]
    for path in paths:
        path.write_text(path.stem)
    tasks = task("def f(path, n): return n").grid(path=map(given, paths), n=[1, 2])
    assert [one["path"] for one in tasks.arguments] == [paths[0], paths[0], paths[1], paths[1]]
    for wanted in (paths[1], str(paths[1]), jn.file(paths[1]), [paths[1]]):
        assert list(tasks.sel(path=wanted)) == list(tasks[2:])
    assert list(tasks.to_frame().path.unique()) == paths
    assert list(tasks.to_xarray().path.values) == paths


def test_a_call_that_takes_a_task_submits_nothing_yet(session):
    f = task("def f(a): return a")
    first = f(1)
    assert f(first).arguments == {"a": "f(a=1)"}
    assert f([first]).arguments == {"a": "[f(a=1)]"}
    assert session.access.store.states([first.key]) == [None]


def test_a_frame_is_right_while_tasks_wait_have_failed_and_are_done(session, done):
    frame = done.to_frame()
    assert list(frame.columns) == ["a", "b", "mode", "state", "result", "failure", "error"]
    assert list(frame["a"]) == [1, 1, 2, 2, 3, 3]
    assert list(frame["result"][:4]) == [14, 15, 24, 25]
    assert frame["result"][4:].isna().all()
    assert list(frame["state"]) == ["finished"] * 4 + ["failed"] * 2
    assert "no threes" in frame["error"][4]
    waiting = task("def g(a): return a", "g").grid(a=[7])
    merged = (done + waiting).to_frame()
    assert list(merged["function"].unique()) == ["f", "g"]
    assert merged["b"].isna().sum() == 1
    assert list(merged["state"])[-1] == "ready"


def test_results_with_parts_have_a_column_for_each(session):
    f = task("def f(x): return {'x': -x, 'square': x * x}")
    tasks = f.map([1, 2])
    with working(session):
        tasks.wait(20)
    frame = tasks.to_frame()
    assert list(frame.columns) == ["x", "state", "result.x", "square"]
    assert list(frame["square"]) == [1, 4]


def test_tasks_are_chosen_by_their_parameters(done):
    assert [one.arguments["b"] for one in done.sel(a=1)] == [4, 5]
    assert len(done.sel(a=[1, 2], b=4)) == 2
    assert len(done.sel(a=slice(2, 3))) == 4
    assert len(done.sel(a=lambda a: a % 2)) == 4
    assert done.sel(a=9) == []
    with pytest.raises(jn.NoSuchTask, match="no parameter 'c' in these tasks; they have a, b, mode"):
        done.sel(c=1)


SENSELESS = {
    "f.map(3)": "f.map() takes a list or the like, not int 3; for one task, call f(…)",
    "f.map([1], np.array(3))": "f.map() takes a list or the like, not ndarray array(3); for one task, call f(…)",
    "f.map(3, ahead=5)": "f.map() takes a list or the like, not int 3; for one task, call f(…)",
    "f.starmap(3)": "f.starmap() takes a list or the like, not int 3; for one task, call f(…)",
    "f.starmap([3])": "takes a tuple of arguments for each call, not int 3; .map(…) takes one for each",
    "f.grid([1, 2])": "f.grid() takes its lists by name: f.grid(a=[1, 2], b=[3, 4])",
    "f.zip([1], [2])": "f.zip() takes its lists by name: f.zip(a=[1, 2], b=[3, 4])",
    "f.grid(a=[1, 0], where=lambda a: 1 / a)": "f.grid(): where(a=0) raised ZeroDivisionError: division by zero",
    "f.grid(a=[1], where=lambda a: np.array([1, 2]))": "f.grid(): where(a=1) raised ValueError: The truth value",
    "f.grid(a=[1], where=bool)": "it isn't known what <class 'bool'> takes; write where=lambda a, b: …",
    "ts.sel(typo=1)": "no parameter 'typo' in these tasks; they have a, b",
    "ts.sel(a=slice(1, 3))": "sel(a=…) can't be decided for a='x' (TypeError: '<=' not supported",
    "ts.sel(a=lambda a: a > 1)": "give a function that takes any a, such as lambda a: isinstance(a, int) and a > 0",
    "ts.sel(a=np.zeros((2, 2)))": "sel(a=…) can't be decided for a=1 (ValueError: The truth value",
    "ts.sel(a=slice(0, 4, 2))": "slice(0, 4, 2) has a step, but a slice of parameters has only two ends; give a list",
    "ts.plot(x='typo')": "no parameter 'typo' in these tasks; they have a, b",
    "ts.plot(by='typo')": "no parameter 'typo' in these tasks; they have a, b",
    "f.map([True, 1, 2]).to_xarray()": "two tasks have equal parameters: .to_frame() shows them all",
}


@pytest.mark.parametrize("call", SENSELESS)
def test_what_makes_no_sense_is_refused_in_one_line_with_the_way_out(session, call):
    f = task("def f(a, b=1): return a")
    with pytest.raises(jn.JugError) as refusal:
        eval(call, {"f": f, "ts": f.map([1, "x", None]), "np": np})
    assert SENSELESS[call] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_parameters_of_any_kind_are_labels_of_an_array_and_of_a_plot(session):
    f = task("def f(a, b=1): return 1.5")
    mixed = f.grid(a=[1, "x", None, (1, 2)], b=[1, 2]).to_xarray()
    assert list(mixed["a"].values) == [1, "x", None, (1, 2)]
    pairs = f.map([(1, 2), (3, 4)]).to_xarray()
    assert pairs["state"].dims == ("a",)
    assert pairs["state"].sel(a=(3, 4)) == "ready"
    assert list(f.map([np.array(3), np.array(4)]).to_xarray()["a"].values) == [3, 4]
    pytest.importorskip("matplotlib")
    low, high = f.map([float("nan"), 1.0, float("inf"), 2.0]).plot().figure.axes[0].get_xlim()
    assert low < 1 < 2 < high < 3


def test_a_labelled_array_has_a_dimension_for_what_varies(done):
    found = done.to_xarray()
    assert found["result"].dims == ("a", "b")
    assert found["result"].sel(a=2, b=5) == 25
    assert np.isnan(found["result"].sel(a=3)).all()
    assert found["state"].sel(a=3, b=4) == "failed"
    assert found.attrs == {"mode": "fast"}
    with pytest.raises(jn.BadTask, match="two tasks have equal parameters"):
        (done + done).to_xarray()


def test_arrays_become_dimensions_and_points_off_a_grid_one_dimension(session):
    f = task("import numpy as np\ndef f(x, y): return np.arange(3.0) * x + y")
    grid, points = f.grid(x=[1, 2], y=[0, 1]), f.map([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    with working(session):
        (grid + points).wait(20)
    found = grid.to_xarray()["result"]
    assert found.shape == (2, 2, 3)
    np.testing.assert_array_equal(found.sel(x=2, y=1), [1, 3, 5])
    along = points.to_xarray()
    assert along["result"].dims == ("task", "result_0")
    assert list(along["y"].values) == [5, 4, 3, 2, 1]


@pytest.mark.slow
def test_a_large_frame_comes_quickly(session, store_url):
    if not store_url.startswith("memory:"):
        pytest.skip("tried on one store")
    tasks = task("def f(x): return x + 1").map(range(20_000))
    with working(session):
        tasks.wait(100)
    before = time.perf_counter()
    frame = tasks.to_frame()
    assert time.perf_counter() - before < 5  # the benchmark measures it
    assert list(frame["result"]) == list(range(1, 20_001))


RESULTS = """
import collections, dataclasses, numpy as np, pandas as pd
@dataclasses.dataclass
class Fit:
    slope: float
    error: str = 'none'
Point = collections.namedtuple('Point', 'x y')
def f(kind, n):
    if n == 3: raise ValueError('no threes')
    if kind == 'dataclass': return Fit(n / 2)
    if kind == 'dict': return {'slope': n, 'state': 'mine'}
    if kind == 'series': return pd.Series({'slope': n, 'r2': 0.5})
    if kind == 'tuple': return Point(n, -n)
    if kind == 'array': return np.arange(n)
    if kind == 'big': return 2**60 + n
    return n
"""


def test_results_of_every_kind_spread_to_columns_that_never_hide_ours(session):
    tasks = task(RESULTS).grid(kind=["dataclass", "dict", "series", "tuple", "plain"], n=[1, 2, 3])
    with working(session):
        tasks.wait(30)
    one = tasks.sel(kind="dataclass").to_frame()
    assert list(one.columns) == ["kind", "n", "state", "slope", "result.error", "failure", "error"]
    assert list(one["slope"][:2]) == [0.5, 1.0]
    assert list(one["result.error"][:2]) == ["none", "none"]
    assert list(one["failure"].dropna()) == ["raised"]
    assert one["error"][2] == "ValueError: no threes"
    two = tasks.sel(kind="dict").to_frame()
    assert list(two["state"]) == ["finished", "finished", "failed"]
    assert list(two["result.state"][:2]) == ["mine", "mine"]
    assert list(tasks.sel(kind="series").to_frame()["r2"][:2]) == [0.5, 0.5]
    assert list(tasks.sel(kind="tuple").to_frame()["y"][:2]) == [-1, -2]
    mixed = tasks.to_frame()
    assert list(mixed["slope"][[0, 3, 6]]) == [0.5, 1, 1]
    assert list(mixed["result"].dropna()) == [1, 2]  # of those without parts
    spread = tasks.sel(kind=["dataclass", "series"]).to_xarray()
    assert spread["slope"].sel(kind="series", n=2) == 2
    assert spread["error"].sel(kind="series", n=3) == "ValueError: no threes"


def test_nothing_loses_digits_or_shape_beside_what_is_missing(session):
    tasks = task(RESULTS).grid(kind=["big", "array"], n=[1, 2, 3])
    with working(session):
        tasks.wait(30)
    big = tasks.sel(kind="big")
    assert list(big.to_frame()["result"][:2]) == [2**60 + 1, 2**60 + 2]
    assert big.to_frame()["result"].isna()[2]
    found = big.to_xarray()["result"].values
    assert list(found[:2]) == [2**60 + 1, 2**60 + 2]
    whole = tasks.sel(kind="big", n=[1, 2]).to_xarray()["result"]
    assert whole.dtype == np.int64
    arrays = tasks.sel(kind="array").to_xarray()["result"]  # of unequal lengths: an array in each place
    assert arrays.dims == ("n",)
    np.testing.assert_array_equal(arrays.values[1], [0, 1])
    np.testing.assert_array_equal(tasks.sel(kind="array").to_frame()["result"][1], [0, 1])


def test_failures_left_out_never_shift_a_line(session, done):
    frame = done.to_frame(on_error="skip")
    assert list(frame.index) == [0, 1, 2, 3]
    assert list(frame["result"]) == list(10 * frame["a"] + frame["b"])
    part = done[1:5].to_frame(on_error="skip")
    assert list(part["result"]) == list(10 * part["a"] + part["b"]) == [15, 24, 25]
    assert list(done.to_xarray(on_error="skip")["a"]) == [1, 2]
    with pytest.raises(jn.TaskFailed, match="no threes"):
        done.to_frame(on_error="raise")
    with pytest.raises(ValueError, match="on_error is 'raise', 'skip' or 'return', not 'drop'"):
        done.to_frame(on_error="drop")


def test_unequal_grids_merge_and_what_waits_or_is_blocked_says_so(session):
    f = task("def f(a, b=1): return 10 * a + b")
    bad = task("def bad(): raise KeyError('x')", "bad")
    first, second = f.grid(a=[1, 2], b=[1]), f.grid(a=[2, 3], b=[2, 3])
    blocked = f.map([bad()])
    with working(session):
        (first + second).wait(20)
        blocked.wait(20)
    waiting = f.map([7])
    found = (first + second).to_xarray()["result"]
    assert found.dims == ("a", "b")
    assert found.shape == (3, 3)
    assert found.sel(a=2, b=1) == 21
    assert np.isnan(found.sel(a=1, b=3))
    assert np.isnan(found.sel(a=3, b=1))
    both = (first + task("def g(a, b): return 0", "g").grid(a=[3], b=[1])).to_xarray()  # of two functions
    assert list(both["function"].values.ravel()) == ["f", "f", "g"]
    frame = (blocked + waiting).to_frame()
    assert list(frame["state"]) == ["blocked", "ready"]
    assert frame["failure"][0] == "blocked"
    assert frame["error"][0] == "needs bad(), which failed: KeyError: 'x'"
    assert frame["error"].isna()[1]


def test_frames_of_nothing_and_of_parts(session):
    pair = jn.task(cell("def pair(a): return (a, -a)", "pair"), nout=2)
    tasks = pair.map([1, 2])
    with working(session):
        tasks.wait(20)
    parts = jn.TaskList([one[1] for one in tasks] + [tasks[0][5]])
    frame = parts.to_frame()
    assert list(frame["result"][:2]) == [-1, -2]
    assert frame["failure"][2] == "part"
    assert "IndexError" in frame["error"][2]
    assert len(jn.TaskList().to_frame()) == 0
    assert jn.TaskList().to_xarray().sizes == {"task": 0}


def test_a_grid_where_a_condition_holds_and_lists_side_by_side(session):
    f = task("def f(a, b=1, mode='fast'): return a")
    upper = f.grid(a=range(3), b=range(3), mode="slow", where=lambda a, b: a < b)
    assert [(one["a"], one["b"], one["mode"]) for one in upper.arguments] == [
        (0, 1, "slow"), (0, 2, "slow"), (1, 2, "slow"),
    ]  # fmt: skip
    assert len(f.grid(a=range(3), where=lambda **call: call["a"])) == 2
    with pytest.raises(jn.BadTask, match=r"where asks for 'c', and the grid has a, b"):
        f.grid(a=[1], b=[1], where=lambda c: c)
    with pytest.raises(jn.BadTask, match="where is a function of parameters"):
        f.grid(a=[1], where=True)
    g = task("def g(a, where=None): return (a, where)", "g")
    assert [one["where"] for one in g.grid(a=[1], where=["x", "y"]).arguments] == ["x", "y"]  # its own parameter
    pairs = f.zip(a=[1, 2], b=[3, 4], mode="slow")
    assert [list(one.values()) for one in pairs.arguments] == [[1, 3, "slow"], [2, 4, "slow"]]
    with pytest.raises(jn.BadTask, match=r"side by side, and they have unequal lengths \(a: 2, b: 3\)"):
        f.zip(a=[1, 2], b=[1, 2, 3])
    with pytest.raises(jn.BadTask, match="needs a list to go through"):
        f.zip(a=1)


def test_a_plot_has_the_whole_axis_from_the_start_and_a_line_for_each_value(session):
    pytest.importorskip("matplotlib")
    f = task("def f(a, b): return {'sum': a + b, 'name': 'x'}")
    tasks = f.grid(a=[1, 2, 9], b=[4, 5])
    plot = tasks.plot(x="a", y="sum")
    assert plot.figure.axes[0].get_xlim()[1] > 9
    assert "0 of 6 finished" in repr(plot)
    with working(session):
        tasks.wait(20)
    axes = plot.figure.axes[0]
    assert axes.get_title() == "f: 6 of 6 finished"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["b = 4", "b = 5"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[5, 6, 13], [6, 7, 14]]
    assert plot._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(jn.BadTask, match="no parameter 'c' in these tasks; they have a, b"):
        tasks.plot(x="c")
    with pytest.raises(jn.BadTask, match="these results have no 'result'; they have sum, name"):
        tasks.plot(x="a")
    with pytest.raises(jn.BadTask, match="'name' is str 'x', not a number"):
        tasks.plot(x="a", y="name")


def test_all_stored_calls_of_a_function_are_a_frame_by_whatever_code_and_notebook(session, store_url, tmp_path):
    other = jn.Session(session.url_with_password(), notebook=tmp_path / "other.ipynb")
    first = task("def f(a, b=2, mode='fast'): return 10 * a + b")
    with working(session):
        first.map([1, 2]).wait(20)
        jn.connect(session.url_with_password(), notebook=tmp_path / "other.ipynb")
        second = task("def f(a, b=2, mode='fast'):\n    if a == 9: raise KeyError(a)\n    return 10 * a - b")
        second.grid(a=[2, 9, 3], b=[2]).wait(20)
    waiting = second(np.zeros(100_000), b=7)
    frame = second.history_frame()
    assert list(frame.columns) == ["a", "b", "mode", "state", "started", "seconds", "edition", "current", "key"]
    assert list(frame["a"][:5]) == [1, 2, 2, 9, 3]
    assert frame["a"][5].startswith("<ndarray float64 (100000,)")
    assert list(frame["b"]) == [2, 2, 2, 2, 2, 7]
    assert list(frame["mode"].unique()) == ["fast"]
    assert list(frame["edition"]) == [1, 1, 2, 2, 2, 2]
    assert list(frame["current"]) == [False, False, True, True, True, True]
    assert list(frame["state"]) == ["finished"] * 3 + ["failed", "finished", "ready"]
    assert frame["started"].notna().sum() == 5
    assert (frame["seconds"][:5] >= 0).all()
    assert jn.resolve(frame["key"][0], all=True)[0].result() == 12
    assert list(first.history_frame(values=True)["result"][[0, 1, 2, 4]]) == [12, 22, 18, 28]
    assert waiting.key == frame["key"][5]
    with pytest.raises(jn.NoSuchTask, match="no call of nothing is in "):
        session.history_frame("nothing")
    with pytest.raises(jn.BadTask, match="give a task function or its name, not int 3"):
        jn.compare(3)
    other.close()


def test_what_was_invalidated_is_in_the_history_too(session):
    f = task("def f(a):\n    if a == 3: raise KeyError(a)\n    return 2 * a")
    with working(session):
        f.map([1, 2, 3]).wait(20)
        for _ in range(2):
            session.invalidate(f(2))
            f(2).result(timeout=20)
    session.invalidate(f(1))
    failed = f(3)
    failed.cancel()
    assert failed.state is jn.State.CANCELLED  # it has failed none the less
    frame = f.history_frame(values=True)
    assert list(zip(frame["a"], frame["state"], strict=True)) == [
        (1, "invalidated"), (1, "ready"), (2, "invalidated"), (2, "invalidated"), (2, "finished"), (3, "failed"),
    ]  # fmt: skip
    assert frame["started"].notna().sum() == 5
    assert list(frame["result"].notna()) == [False, False, False, False, True, False]
    assert frame["key"].nunique() == 3


def test_values_of_former_code_stand_beside_those_of_the_present_one(session):
    source = "import numpy as np\ndef f(a): return {{'sum': a + {}, 'kind': 'x', 'large': np.zeros(200_000) + {}}}"
    with working(session):
        task(source.format(1, 0)).map([1, 2, 3]).wait(20)
        task(source.format(5, 0)).map([2, 3]).wait(20)
        now = task(source.format(6, 0))
        now.map([2, 4]).wait(20)
        with pytest.raises(jn.NoSuchTask, match=r"no call of \S*g is in"):
            jn.compare(task("def g(a): return a", "g"))
        frame = jn.compare(now)
        assert list(frame["a"]) == [2]  # the one call of both
        assert list(frame["edition"]) == [2]
        assert list(frame["equal"]) == [False]
        f = task("def h(a): return a * 1.5", "h")
        f.map([1, 2]).wait(20)
        g = task("def h(a): return a * 1.5 + (a == 2)", "h")
        g.map([1, 2]).wait(20)
        small = jn.compare("h")
    assert list(small.columns) == ["a", "before", "now", "difference", "equal", "edition"]
    assert list(small["before"]) == [1.5, 3.0]
    assert list(small["difference"]) == [0.0, 1.0]
    assert list(small["equal"]) == [True, False]
    large = frame["before"][0]
    assert "load()" in repr(large)
    assert large.load()["sum"] == 7
    assert frame["now"][0].load()["sum"] == 8


LAZY = """
import asyncio
async def wait(x):
    await asyncio.sleep(0.001)
    if x < 0: raise ValueError('negative')
    return 2 * x
def count(n):
    for i in range(n): yield i * i
async def later(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield -i
def plain(n): return (i for i in range(n))
"""


def test_async_functions_and_generators_are_tasks_whose_values_are_what_they_come_to(session):
    space = {name: jn.task(cell(LAZY, name)) for name in ("wait", "count", "later", "plain")}
    tasks = [space["wait"](3), space["count"](4), space["later"](3)]
    chunk = space["wait"].map([1, 2, 3], chunksize=2)
    bad, unread = space["wait"](-1), space["plain"](2)
    with working(session):
        assert jn.result(tasks) == [6, [0, 1, 4, 9], [0, -1, -2]]
        assert chunk.result() == [2, 4, 6]
        with pytest.raises(jn.TaskFailed, match="negative"):
            bad.result()
        with pytest.raises(jn.TaskFailed, match="generator"):
            unread.result()
    assert list(space["count"].run(3)) == [0, 1, 4]
    session.run_here(space["wait"](7))
    assert space["wait"](7).result() == 14

    async def in_a_notebook():
        session.run_here(space["wait"](8))
        return space["wait"](8).result()

    assert asyncio.run(in_a_notebook()) == 16


def test_a_map_without_end_reads_only_so_many_items_ahead(session):
    read = []

    def items():
        for number in itertools.count():
            read.append(number)
            yield number

    f = task("def f(x, by=1):\n    if x == 5: raise ValueError('five')\n    return x * by")
    results = f.map(items(), ahead=40, by=3)
    assert not read
    with working(session):
        assert [next(results) for _ in range(5)] == [0, 3, 6, 9, 12]
        with pytest.raises(jn.TaskFailed, match="five"):
            next(results)
        assert next(results) == 18
        assert len(read) <= 7 + 40 + 10
        for _ in range(100):
            next(results)
        assert 107 <= len(read) <= 107 + 50
        assert list(f.map(range(3), ahead=2)) == [0, 1, 2]
        assert list(f.map([], ahead=2)) == []
        assert list(f.map(range(5), ahead=4, chunksize=3, by=2)) == [0, 2, 4, 6, 8]
    ahead = f.map(itertools.count(1000), ahead=20)
    with pytest.raises(jn.NoWorkers):
        next(ahead)
    assert ahead.close() == 16
    with pytest.raises(StopIteration):
        next(ahead)
    with pytest.raises(jn.BadTask, match="ahead=-1"):
        f.map([1], ahead=-1)


def test_a_map_whose_items_break_off_gives_what_was_read_before_and_never_ends_as_if_that_were_all(session):
    def items():
        yield from range(20)
        raise OSError("gone")

    f = task("def f(x): return x")
    results, found = f.map(items(), ahead=40), []
    with working(session):
        with pytest.raises(OSError, match="gone"):
            next(results)
        with pytest.raises(jn.BadTask, match="broke off while it read items ahead"):
            found.extend(iter(results.__next__, None))
    assert found == list(range(16)), "the first ones, which were read at once"
    with pytest.raises(jn.BadTask, match="broke off"):
        next(results)
