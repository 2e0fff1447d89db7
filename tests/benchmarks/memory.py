"""Memory of processes through which large values, or many short tasks, pass: how much it grows with their number."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness import Row, crew_of, url

RESULTS, RESULT = 12, 100 * 1000 * 1000  #: number, and bytes of each
CALLS, ARGUMENT = 23, 20 * 1000 * 1000
FEW, MANY = 10_000, 100_000  #: short tasks


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def own(pid: int) -> float:
    """Return the memory of a process, in MB, that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def worker(folder: Path, scale: float) -> float:
    """RSS of a worker, after its results."""
    import jug_notebook as jn

    @jn.task
    def random_array(seed: int, size: int) -> Any:
        import numpy

        return numpy.random.default_rng(seed).random(size)

    session = jn.connect(url(folder))
    with crew_of(session, 1) as crew:
        pid = crew.workers[0].pid
        jn.wait(random_array.map(range(RESULTS), size=int(RESULT * scale) // 8))
        assert [info.pid for info in crew.workers] == [pid]  # the same worker ran them all
        return resident(pid)


def growth(folder: Path, scale: float, of: str) -> float:
    """MB by which one of the processes grew from a few short tasks to many, in memory that is its own."""
    import jug_notebook as jn

    @jn.task(version="1")
    def short(number: int) -> int:
        return number

    session = jn.connect(url(folder))
    with crew_of(session, 1) as crew:
        [worker], [supervisor] = crew.workers, crew.supervisors
        pid = {"worker": worker.pid, "supervisor": supervisor.pid, "session": os.getpid()}[of]
        few, many = int(FEW * scale), int(MANY * scale)
        jn.wait(short.map(range(few)))
        before = own(pid)
        jn.wait(short.map(range(few, many)))
        assert [info.pid for info in crew.workers] == [worker.pid]
        return own(pid) - before


def worker_growth(folder: Path, scale: float) -> float:
    """Growth of the worker."""
    return growth(folder, scale, "worker")


def supervisor_growth(folder: Path, scale: float) -> float:
    """Growth of the supervisor, which holds the state of all tasks."""
    return growth(folder, scale, "supervisor")


def session_growth(folder: Path, scale: float) -> float:
    """Growth of the session, which holds that too, and what was submitted."""
    return growth(folder, scale, "session")


def kernel(folder: Path, scale: float) -> float:
    """RSS of this process, after its calls, each with another argument, while no cyclic collection helps."""
    import gc

    import numpy as np

    import jug_notebook as jn

    @jn.task
    def total(array: Any) -> float:
        return float(array.sum())

    jn.connect(url(folder))
    random = np.random.default_rng(0)
    gc.disable()
    for _ in range(CALLS):
        total(random.random(int(ARGUMENT * scale) // 8))
    return resident(os.getpid())


ROWS = (
    Row(f"RSS of a worker after {RESULTS} results of 100 MB", "MB", "less", "worker", goal="≤ 200 MB"),
    Row(f"RSS of the kernel after {CALLS} calls with 20 MB", "MB", "less", "kernel", goal="≤ 100 MB"),
    *(
        Row(
            f"growth of the {of}, from {FEW:,} short tasks to {MANY:,}", "MB", "less", f"{of}_growth",
            goal=goal, store=store, quick=False,
        )
        for of, goal in (("worker", "≤ 20 MB"), ("supervisor", "≤ 20 MB"), ("session", "≤ 40 MB"))
        for store in ("file", "redis")
    ),
)  # fmt: skip
