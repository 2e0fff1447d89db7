"""What it costs to measure each task's memory, processor time and bytes: the same tasks with that and without."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from harness import Row, url

SHORT, LONGER = 20_000, 300  #: tasks
WORKER = """
import sys
from jug_notebook.worker import WorkerOptions, execution, supervisor, usage
if sys.argv[2] == "off":
    execution.Meter = lambda alone: usage.Meter(False)
supervisor.supervise(sys.argv[1], WorkerOptions(size=1, keep_attached=False))
"""


def _rate(folder: Path, metered: str, seconds: float, count: int) -> float:
    """Tasks per second of one worker."""
    import jug_notebook as jn

    @jn.task(version="1")
    def wait(number: int) -> int:
        if seconds:
            time.sleep(seconds)
        return number

    session = jn.connect(url(folder))
    session.results.wait_for_workers = 60.0
    workers = subprocess.Popen([sys.executable, "-c", WORKER, session.access.store.url, metered], env=os.environ)
    try:
        jn.wait(wait.map(range(-2, 0)))  # it is up
        began = time.perf_counter()
        jn.wait(wait.map(range(count)))
        return count / (time.perf_counter() - began)
    finally:
        workers.terminate()
        workers.wait()
        session.close()


def short(folder: Path, scale: float) -> float:
    return _rate(folder, "on", 0.0, int(SHORT * scale))


def short_unmetered(folder: Path, scale: float) -> float:
    return _rate(folder, "off", 0.0, int(SHORT * scale))


def longer(folder: Path, scale: float) -> float:
    return _rate(folder, "on", 0.01, int(LONGER * scale))


def longer_unmetered(folder: Path, scale: float) -> float:
    return _rate(folder, "off", 0.01, int(LONGER * scale))


ROWS = (
    Row("no-op tasks of one worker, measured", "/s", "more", "short", (("unmeasured", "short_unmetered"),), "≥ 0.99"),
    Row("tasks of 10 ms, measured", "/s", "more", "longer", (("unmeasured", "longer_unmetered"),), "≥ 0.99"),
)
