"""What it costs to measure each task's memory, processor time and bytes, as a share of what its worker does anyway.

That is a few hundred nanoseconds for a short task, far less than the same task takes more or less from one time to the
next. So it is timed by itself there, and set against the processor time of a task in a worker. Of longer tasks, one
worker measures `BLOCK` and leaves as many unmeasured, in turn, and notes its own processor time of each block: both
sides share a process, a machine and a moment.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import Row, url

SHORT, LONGER = 20_000, 800  #: tasks
BLOCK = 8
EACH = 0.025  #: seconds of a longer task: those of less than 20 ms are short
CALLS = 20_000
WORKER = """
import os, sys, time
from jug_notebook.worker import WorkerOptions, execution, supervisor, usage

BLOCK = int(sys.argv[3])


class InTurn:
    def __init__(self, alone):
        self.sides, self.count, self.since = (usage.Meter(False), usage.Meter(alone)), 0, 0
        self.notes = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def begin(self, long):
        if self.count % BLOCK == 0:
            now = time.process_time_ns()
            if self.since:
                os.write(self.notes, b"%d\\n" % (now - self.since))
            self.side = self.sides[self.count // BLOCK % 2]
            self.since = time.process_time_ns()
        self.count += 1
        self.side.begin(long)

    def end(self, duration):
        return self.side.end(duration)


execution.Meter = InTurn
supervisor.supervise(sys.argv[1], WorkerOptions(size=1, keep_attached=False))
"""


def _blocks(folder: Path, seconds: float, count: int) -> list[float]:
    """Processor seconds that a task takes a worker, for each block: of those unmeasured and measured in turn."""
    import jug_notebook as jn

    @jn.task(version="1")
    def wait(number: int) -> int:
        if seconds:
            time.sleep(seconds)
        return number

    notes, session = folder / "notes", jn.connect(url(folder))
    session.results.wait_for_workers = 60.0
    command = [sys.executable, "-c", WORKER, session.access.store.url, str(notes), str(BLOCK)]
    workers = subprocess.Popen(command, env=os.environ)
    try:
        wait.map(range(count + 1)).wait()
    finally:
        workers.terminate()
        workers.wait()
        session.close()
    first = 2 * (100 // BLOCK)  # blocks in which all of it was new to the worker
    return [int(line) / BLOCK / 1e9 for line in notes.read_text().split()][first:]


def _calls(meter: Any) -> float:
    """Processor seconds of what a meter is asked to do for a short task, at the least."""
    begin, end, least = meter.begin, meter.end, float("inf")
    for _ in range(20):
        since = time.process_time()
        for _ in range(CALLS):
            begin(False)
            end(0.0)
        least = min(least, time.process_time() - since)
    return least / CALLS


def short_cost(folder: Path, scale: float = 1.0) -> tuple[float, float]:
    """Processor seconds that measuring takes of a no-op task, and that the whole of it takes its worker."""
    from jug_notebook.worker.usage import Meter

    return _calls(Meter(True)), statistics.median(_blocks(folder, 0.0, int(SHORT * scale)))


def longer_costs(folder: Path, scale: float = 1.0) -> list[float]:
    """Processor seconds that measuring takes of a longer task, of each pair of blocks."""
    blocks = _blocks(folder, EACH, int(LONGER * max(scale, 0.5)))
    return [measured - without for without, measured in zip(blocks[::2], blocks[1::2], strict=False)]


def short(folder: Path, scale: float) -> float:
    cost, task = short_cost(folder, scale)
    return 100 * cost / task


def longer(folder: Path, scale: float) -> float:
    return 100 * statistics.median(longer_costs(folder, scale)) / EACH


ROWS = (
    Row("measuring no-op tasks, of their worker's processor time", "%", "less", "short", goal="≤ 1"),
    Row("measuring tasks of 25 ms, of their time", "%", "less", "longer", goal="≤ 1"),
)

if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        cost, task = short_cost(Path(one))
        share = 100 * cost / task
        print(f"no-op: {1e6 * task:.1f} µs each, of which measuring takes {1e6 * cost:.2f} µs: {share:.2f} %")
        costs = longer_costs(Path(other))
    low, middle, high = (1e6 * cost for cost in statistics.quantiles(costs, n=4))
    share = middle / 1e4 / EACH
    print(f"25 ms: measuring takes {middle:.0f} µs ({low:.0f} to {high:.0f}, {len(costs)} pairs): {share:.2f} %")
