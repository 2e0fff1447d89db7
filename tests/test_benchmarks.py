"""The table of benchmarks: what it makes of figures, and of sides that have none. No time is asserted."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(HERE))

import harness  # noqa: E402
import table  # noqa: E402


def figures(better: str, *rounds: dict[str, float]) -> harness.Figures:
    row = harness.Row("a thing", "s", better, "f", (("peer", "g"), ("other", "h")), "≤ 1 s")
    return harness.Figures(row, "family", list(rounds))


def test_a_ratio_is_the_median_of_rounds_and_above_one_where_ours_is_better() -> None:
    times = figures("less", {"ours": 1.0, "peer": 2.0}, {"ours": 2.0, "peer": 6.0}, {"ours": 3.0, "peer": 30.0})
    assert times.ratio("peer") == 3
    rates = figures("more", {"ours": 10.0, "peer": 5.0})
    assert rates.ratio("peer") == 2
    assert rates.ratio("other") is None


def test_a_row_names_the_best_peer_first_and_who_has_no_figure() -> None:
    one = figures("less", {"ours": 0.5, "peer": 2.0, "other": 1.0})
    line = harness.markdown([one]).splitlines()[-1]
    assert line.startswith("| a thing | 500 ms | other 1 s | **2 x** | peer 2 s (4 x)")
    one.missing["other"], one.rounds = "not installed", [{"ours": 0.5, "peer": 2.0}]
    assert "other: not installed" in harness.markdown([one])
    one.missing["ours"] = "there is no store on redis"
    assert "skipped: there is no store on redis" in harness.markdown([one])


def test_a_side_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(harness.Missing, match=r"AttributeError.*no_such_side"):
        harness.one_figure("reading", "no_such_side", 1.0, tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", table.FAMILIES)
def test_every_side_that_a_row_names_is_there(family: str) -> None:
    module = importlib.import_module(family)
    for row in module.ROWS:
        assert row.better in ("more", "less")
        for function in (row.ours, *(function for _, function in row.peers)):
            assert callable(getattr(module, function)), f"{row.what}: {function}"


def test_a_row_is_measured_and_written_as_table_and_as_data(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "table.py"), "--quick", "--store", "file", "--only", "all of it"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, timeout=100, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert "| a call f(3, 'a'), all of it |" in (tmp_path / "table.md").read_text()
    import json

    report = json.loads((tmp_path / "table.json").read_text())
    [row] = report["rows"]
    assert row["median"]["ours"] > 0
    assert report["versions"]["python"]
