"""No-op tasks per second, end to end, on a file store or a Redis server: ours beside PyPI's `jug`, in one run.

Both sides run ``double(i)`` for i in 0 … N-1 in W worker processes and keep every result on disk. A pair is one run of
each, back to back; the ratio is taken pair by pair, so it holds when the machine's speed drifts.

* ours: workers are up when the clock starts; it stops when the submitter has been told that all are finished
  (submit + run + store). Every argument is digested, every result is fsynced (in groups; a Redis server that is started
  for this writes an append-only file, synced each second, for both sides alike).
* jug: its worker is the program that reads the jugfile, so its clock runs from spawn to the last exit. Its start-up,
  the time of a run with one task, is taken off in the second figure.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jug_notebook as jn

JUGFILE = """
from jug import TaskGenerator

@TaskGenerator
def double(x):
    return 2 * x

for i in range({tasks}):
    double(i)
"""


@jn.task
def double(x: int) -> int:
    return 2 * x


def ours(tasks: int, workers: int, folder: Path, port: int = 0) -> float:
    """Seconds."""
    session = jn.connect(f"redis://127.0.0.1:{port}/1?project={folder.name}" if port else folder / "jugdata")
    crew = jn.execute(workers)
    while crew.alive() < workers:
        session.watch(-1, 0.05)
    double(-1).result()  # a worker has answered: all is up
    start = time.perf_counter()
    found = double.map(range(tasks))
    found.wait()
    seconds = time.perf_counter() - start
    assert found.result() == [2 * i for i in range(tasks)]
    crew.stop(now=True)
    while crew.supervisors:
        session.watch(-1, 0.05)
    session.close()
    return seconds


def jug(tasks: int, workers: int, folder: Path, port: int = 0) -> float:
    """Seconds, start-up included."""
    (folder / "jugfile.py").write_text(JUGFILE.format(tasks=tasks))
    jugdir = f"redis://127.0.0.1:{port}/" if port else "jugdata"
    command = [sys.executable, "-m", "jug.jug", "execute", "jugfile.py", "--jugdir", jugdir]
    start = time.perf_counter()
    running = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    for process in running:
        assert process.wait() == 0
    return time.perf_counter() - start


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """Its port."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port = line.getsockname()[1]
    command = ["redis-server", "--dir", str(folder), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen([*command, "--appendonly", "yes"], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None
        yield port
    finally:
        server.terminate()
        server.wait()


def in_fresh_folder(side: object, tasks: int, workers: int, store: str) -> float:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a supervisor may still be leaving
        with redis_server(Path(folder)) if store == "redis" else nullcontext(0) as port:
            seconds: float = side(tasks, workers, Path(folder), port)  # type: ignore[operator]
        os.sync()
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--store", choices=["file", "redis"], default="file")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    tasks, workers = options.tasks, options.workers

    startup = statistics.median(in_fresh_folder(jug, 1, workers, options.store) for _ in range(3))
    rows = []
    for _ in range(options.pairs):
        mine = in_fresh_folder(ours, tasks, workers, options.store)
        theirs = in_fresh_folder(jug, tasks, workers, options.store)
        net = max(theirs - startup, 1e-9)
        rows.append({"ours": tasks / mine, "jug": tasks / theirs, "jug net of start-up": tasks / net})
        print("  ".join(f"{name}: {rate:9,.0f}/s" for name, rate in rows[-1].items()), flush=True)
    ratio = statistics.median(row["ours"] / row["jug"] for row in rows)
    net_ratio = statistics.median(row["ours"] / row["jug net of start-up"] for row in rows)
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print(f"\n| {tasks:,} tasks, {workers} workers, median of {len(rows)} | tasks/s |\n|---|---|")
    for name, rate in median.items():
        print(f"| {name} | {rate:,.0f} |")
    print(f"| **ratio ours / jug** | **{ratio:.1f}** |\n| ratio ours / jug net of start-up | {net_ratio:.1f} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "ratio": ratio, "ratio_net": net_ratio}, indent=1))


if __name__ == "__main__":
    main()
