"""A fresh process and a store with everything in it: all values, and how things stand."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from harness import Row, crew_of, url

JUGFILE = """
from jug import TaskGenerator

@TaskGenerator
def double(x):
    return 2 * x

tasks = [double(i) for i in range({tasks})]
"""


def values_before(folder: Path, scale: float) -> None:
    from peer_tasks import double

    import jug_notebook as jn

    session = jn.connect(url(folder))
    with crew_of(session):
        jn.task(double).map(range(int(20_000 * scale))).wait()


def values(folder: Path, scale: float) -> float:
    """From the calls to their values."""
    from peer_tasks import double

    import jug_notebook as jn

    jn.connect(url(folder))
    task, count = jn.task(double), int(20_000 * scale)
    tasks = task.map(range(count))
    start = time.perf_counter()
    assert jn.value(tasks)[-1] == 2 * count - 2
    return count / (time.perf_counter() - start)


def diskcache_before(folder: Path, scale: float) -> None:
    from diskcache import Cache

    with Cache(str(folder / "cache")) as cache, cache.transact():
        for i in range(int(20_000 * scale)):
            cache[f"key{i}"] = 2 * i


def diskcache(folder: Path, scale: float) -> float:
    from diskcache import Cache

    count = int(20_000 * scale)
    start = time.perf_counter()
    with Cache(str(folder / "cache")) as cache:
        assert [cache[f"key{i}"] for i in range(count)][-1] == 2 * count - 2
    return count / (time.perf_counter() - start)


def jug_before(folder: Path, scale: float) -> None:
    (folder / "jugfile.py").write_text(JUGFILE.format(tasks=int(20_000 * scale)))
    command = [sys.executable, "-m", "jug.jug", "execute", "jugfile.py", "--jugdir", "jugdata"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def jug(folder: Path, scale: float) -> float:
    import jug as peer

    _, space = peer.init("jugfile.py", "jugdata")
    start = time.perf_counter()
    found = peer.value(space["tasks"])
    assert len(found) == int(20_000 * scale)
    return len(found) / (time.perf_counter() - start)


status_before, jug_status_before = values_before, jug_before


def status(folder: Path, scale: float) -> float:
    return _command([sys.executable, "-m", "jug_notebook", "status", "--short", url(folder)], folder)


def jug_status(folder: Path, scale: float) -> float:
    return _command([sys.executable, "-m", "jug.jug", "status", "jugfile.py", "--jugdir", "jugdata"], folder)


def _command(words: list[str], folder: Path) -> float:
    start = time.perf_counter()
    done = subprocess.run(words, cwd=folder, capture_output=True)
    assert done.returncode in (0, 1), done.stderr
    return time.perf_counter() - start


def warm_status(folder: Path, scale: float) -> float:
    """In a process that looks on: of 100 000 tasks."""
    from peer_tasks import double

    import jug_notebook as jn

    session = jn.connect(url(folder))
    task = jn.task(double)
    task.map(range(int(100_000 * scale)))
    session.submissions.flush()
    jn.status(all=True)
    task(-1)
    session.submissions.flush()
    start = time.perf_counter()
    jn.status(all=True)
    return time.perf_counter() - start


ROWS = (
    Row(
        "fresh process: 20 000 values",
        "values/s",
        "more",
        "values",
        (("diskcache", "diskcache"), ("jug", "jug")),
        "≥ 200 000/s",
    ),
    Row("status of 20 000 tasks, the whole command", "s", "less", "status", (("jug", "jug_status"),), "≤ 0.15 s"),
    Row("status of 100 000 tasks, warm", "s", "less", "warm_status", (), "≤ 10 ms"),
    Row(
        "fresh process: 20 000 values",
        "values/s",
        "more",
        "values",
        (("diskcache", "diskcache"),),
        "≥ 200 000/s",
        "redis",
    ),
)
