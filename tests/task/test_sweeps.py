"""Lists of tasks as data: parameters, frames, labelled arrays, whatever the tasks have come to."""

from __future__ import annotations

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
