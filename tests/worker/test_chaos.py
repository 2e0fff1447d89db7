"""Faults at random, for a short while; ``make test-chaos`` runs it for long."""

from __future__ import annotations

import pytest

from tests import chaos


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "redis"])
def test_whatever_dies_or_is_damaged_no_finished_work_is_lost_and_no_value_is_wrong(kind: str) -> None:
    report = chaos.run(kind, seed=20, seconds=15)
    assert report.good, report
    assert report.tasks > 300, report
    assert len(report.faults) > 4, report
