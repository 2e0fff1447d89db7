"""What a task costs as tasks grow in number, from 10^3 to 10^6: submitted, run, read again; and the memory it takes.

Ours: no-op tasks, on the file store or (``--store redis``) on a Redis server of the benchmark's own, through the
store's own verbs, run by W worker processes that speak the protocol (claim, settle a small sealed outcome). So it is
the store's cost that is measured, not that of the user's function.

* submit: seconds a task, from the first to the last durable answer
* run: seconds a task, from the first claim to the last settled outcome, all workers
* re-open: seconds a task for a fresh process to know the state of every task
* status: seconds for that process's picture afterwards, warm
* memory: resident bytes a task in that process, and in the worker that ends last; with a server also in that

PyPI's ``jug`` runs ``double(i)`` in W processes, as far as ``--jug-up-to``; its clock runs from spawn to the last exit.
With ``--plot F`` the table is drawn into F (PNG or SVG, by its name), with ``--json F`` the figures are written to F.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import redis_server

from jug_notebook import system
from jug_notebook.model import Origin, Settlement, State, Submission, Verdict
from jug_notebook.store import open_store

HERE = Origin("ann", "/home/ann/study.ipynb", "cell-1")
JUGFILE = """
from jug import TaskGenerator

@TaskGenerator
def double(x):
    return 2 * x

for i in range({tasks}):
    double(i)
"""


def resident() -> int:
    """Bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def submit(url: str, tasks: int) -> None:
    store = open_store(url)
    start = time.perf_counter()
    for first in range(0, tasks, 1000):
        keys = [hashlib.sha1(b"%d" % number).hexdigest() for number in range(first, min(tasks, first + 1000))]
        store.submit(
            [Submission(key, "double", (), bytes.fromhex(key), os.urandom(400), 0, "3.11") for key in keys], HERE
        )
    print(json.dumps({"submit": (time.perf_counter() - start) / tasks}))
    store.close()


def work(url: str, tasks: int) -> None:
    before = resident()
    store = open_store(url)
    me = system.me("worker")
    store.renew([me])
    store.states([])
    done, beat = 0, time.monotonic()
    settled: list[Settlement] = []
    print("ready", flush=True)
    sys.stdin.readline()
    while claims := store.claim(me.id, 512, 0.0, settled):
        now = time.time()
        settled = []
        for claim in claims:
            lease = claim.lease
            verdict = Verdict(lease.key, lease.round, lease.inputs, lease.attempt, b"c" + os.urandom(20), now, 1e-5)
            settled.append(Settlement(verdict, os.urandom(350)))
        done += len(claims)
        if time.monotonic() - beat > 1.0:
            store.renew([me])
            beat = time.monotonic()
    store.claim(me.id, 0, 0.0, settled)
    store.sync()
    print(json.dumps({"done": done, "memory": (resident() - before) / max(1, tasks)}), flush=True)
    store.leave([me.id])
    store.close()


def reopen(url: str, tasks: int) -> None:
    before = resident()
    start = time.perf_counter()
    store = open_store(url)
    store.states([])
    opened = time.perf_counter()
    memory = (resident() - before) / tasks
    counts = store.snapshot().counts
    seen = time.perf_counter()
    assert counts[State.FINISHED] == tasks, counts
    report = {"reopen": (opened - start) / tasks, "status": seen - opened, "memory": memory}
    print(json.dumps(report))
    store.close()


ROLES = {"submit": submit, "work": work, "reopen": reopen}


def role(name: str, url: str, tasks: int) -> dict[str, float]:
    """One of the above, in a process of its own."""
    command = [sys.executable, __file__, "--role", name, "--url", url, "--tasks", str(tasks)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def ours(tasks: int, workers: int, url: str) -> dict[str, float]:
    row: dict[str, float] = {"tasks": tasks, **role("submit", url, tasks)}
    command = [sys.executable, __file__, "--role", "work", "--url", url, "--tasks", str(tasks)]
    crew = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    for worker in crew:
        assert worker.stdout is not None
        worker.stdout.readline()
    start = time.perf_counter()
    outputs = [worker.communicate("go\n")[0] for worker in crew]
    row["run"] = (time.perf_counter() - start) / tasks
    reports = [json.loads(text) for text in outputs]
    assert sum(one["done"] for one in reports) == tasks, "each task once"
    row["worker memory"] = max(one["memory"] for one in reports)
    return {**row, **role("reopen", url, tasks)}


@contextmanager
def place(kind: str, folder: str) -> Iterator[tuple[str, int | None]]:
    """A store's URL, and the port of its server if it has one."""
    if kind == "file":
        yield f"{folder}/jugdata", None
        return
    with redis_server(Path(folder)) as port:
        if port is None:
            raise SystemExit("there is no redis-server")
        yield f"redis://127.0.0.1:{port}/0?project=growth", port


def served(port: int) -> int:
    """Bytes that a server holds."""
    import redis

    with redis.Redis(port=port) as server:
        return int(server.info("memory")["used_memory"])


def jug(tasks: int, workers: int, folder: Path) -> float:
    """Seconds a task, start-up included."""
    (folder / "jugfile.py").write_text(JUGFILE.format(tasks=tasks))
    command = [sys.executable, "-m", "jug.jug", "execute", "jugfile.py", "--jugdir", "jugdata"]
    start = time.perf_counter()
    crew = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    assert all(worker.wait() == 0 for worker in crew)
    return (time.perf_counter() - start) / tasks


def table(rows: list[dict[str, float]]) -> str:
    lines = [
        "| tasks | submit µs | run µs | re-open µs | status ms | memory B (re-open · worker · server) | jug run µs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs = f"{row['jug'] * 1e6:,.0f}" if "jug" in row else "–"
        server = f"{row['server memory']:,.0f}" if "server memory" in row else "–"
        lines.append(
            f"| {row['tasks']:,.0f} | {row['submit'] * 1e6:.1f} | {row['run'] * 1e6:.1f} | {row['reopen'] * 1e6:.1f} "
            f"| {row['status'] * 1e3:.1f} | {row['memory']:,.0f} · {row['worker memory']:,.0f} · {server} | {theirs} |"
        )
    first, last = rows[0], rows[-1]
    if len(rows) > 1:
        each = {name: last[name] / first[name] for name in ("submit", "run", "reopen")}
        each_text = ", ".join(f"{name} {ratio:.2f} x" for name, ratio in each.items())
        whole = sum(last[name] for name in each) / sum(first[name] for name in each)
        ends = f"{last['tasks']:,.0f} against one at {first['tasks']:,.0f}"
        lines.append(f"\na task at {ends}: {each_text}; all {whole:.2f} x")
    return "\n".join(lines)


def plot(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(10, 4))
    counts = [row["tasks"] for row in rows]
    for name, label in (("submit", "submit"), ("run", "run"), ("reopen", "read again")):
        cost.plot(counts, [row[name] * 1e6 for row in rows], marker="o", label=label)
    theirs = [row for row in rows if "jug" in row]
    if theirs:
        cost.plot(
            [row["tasks"] for row in theirs], [row["jug"] * 1e6 for row in theirs], "k--", marker="s", label="jug: run"
        )
    cost.set(xscale="log", yscale="log", xlabel="tasks", ylabel="µs a task", title="what a task costs")
    cost.legend()
    memory.plot(counts, [row["memory"] for row in rows], marker="o", label="read again")
    memory.plot(counts, [row["worker memory"] for row in rows], marker="o", label="worker")
    if "server memory" in rows[0]:
        memory.plot(counts, [row["server memory"] for row in rows], marker="o", label="server")
    memory.axhline(600, color="grey", linestyle=":")
    memory.set(xscale="log", ylim=(0, 2500), xlabel="tasks", ylabel="bytes a task", title="memory")
    memory.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1000,10000,100000", help="numbers of tasks; to 1000000 takes minutes")
    parser.add_argument("--store", choices=("file", "redis"), default="file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of up to 10 000 tasks so many runs, of which the median")
    parser.add_argument("--jug-up-to", type=int, default=10_000, help="0: without jug")
    parser.add_argument("--folder", type=Path, help="where stores are made (default: the system's temporary folder)")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        ROLES[options.role](options.url, options.tasks)
        return
    rows = []
    for tasks in map(int, options.counts.split(",")):
        runs: list[dict[str, Any]] = []
        for _ in range(options.rounds if tasks <= 10_000 else 1):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder, place(options.store, folder) as (url, port):
                runs.append(ours(tasks, options.workers, url))
                if port is not None:
                    runs[-1]["server memory"] = served(port) / tasks
                if tasks <= options.jug_up_to:
                    runs[-1]["jug"] = jug(tasks, options.workers, Path(folder))
        middle = len(runs) // 2
        rows.append({name: sorted(run[name] for run in runs)[middle] for name in runs[0]})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
