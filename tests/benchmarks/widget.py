"""What the widget costs the kernel: time and bytes an update, with many tasks, functions, workers and failures.

Run as a program; it prints a table: seconds of this thread on a processor, so others on the machine don't count. The
messages are counted as a front end would get them.
"""

from __future__ import annotations

import json
import linecache
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import comm
from comm.base_comm import BaseComm
from msgspec.structs import replace

from jug_notebook import State, render
from jug_notebook.model import FailureView, FunctionView, Snapshot, WorkerInfo, WorkerView

sent: list[int] = []


class Counting(BaseComm):
    def publish_msg(self, msg_type: str, data: Any = None, **rest: Any) -> None:
        sent.append(len(json.dumps(data or {})))


comm.create_comm = Counting


def picture(
    tasks: int = 10_000, functions: int = 200, workers: int = 64, failures: int = 1000, step: int = 0
) -> Snapshot:
    each = tasks // functions
    rows = tuple(
        FunctionView(
            f"analyse_measurements_of_station_{number}",
            {State.FINISHED: each // 2 + (step + number) % 9, State.RUNNING: 1, State.READY: each // 3}
            | {State.FAILED: 5},
            0.25,
        )
        for number in range(functions)
    )
    crew = tuple(
        WorkerView(
            WorkerInfo(
                f"host-{n}", "worker", "user", f"node-{n // 8}.cluster.example.org", 10_000 + n, 1, "3.11", 0.0,
                task=f"{n + step:040x}", task_name=rows[n % functions].name, since=1e9, done=step + n,
                memory=300_000_000 + step * 1000,
            ),
            True,
            0.2,
        )
        for n in range(workers)
    )  # fmt: skip
    wrong = tuple(
        FailureView(
            f"{n:040x}", rows[n % 12].name, f"n={n}, path='/data/{n}.csv'",
            f"ValueError: no data in run {n}",
            "Traceback (most recent call last):\n" + '  File "x.py", line 3, in f\n    return g(x)\n' * 12,
            "node-1", 3, 1e9, 0.2, "reading\n" * 40,
        )
        for n in range(failures)
    )  # fmt: skip
    kinds = tuple(render.failure_kinds(wrong))
    return Snapshot("file:jugdata", 1e9 + step / 4, "this notebook", rows, crew, wrong, kinds=kinds)


def drawing() -> None:
    """The widget alone: each update after the other, the largest there can be."""
    from kernel_ext.widgets import Panel

    class Nobody:
        url = "file:/bench"
        closed = False

    start = time.thread_time()
    panel = Panel(Nobody(), False, picture())  # type: ignore[arg-type]
    report("first display", [time.thread_time() - start], [sum(sent)])
    first = picture()
    start = time.thread_time()
    fallback = len(render.html(first)) + len(render.text(first))
    report("saved picture", [time.thread_time() - start], [fallback])
    times, sizes = [], []
    for step in range(1, 120):
        snapshot = picture(step=step, failures=1000 if step < 60 else 3)
        sent.clear()
        start = time.thread_time()
        panel.show(snapshot)
        times.append(time.thread_time() - start)
        sizes.append(sum(sent))
    report("an update", times, sizes)
    sent.clear()
    for _ in range(10):
        panel.rest(replace(snapshot, at=snapshot.at + 1))
    print(f"nothing new     {len(sent)} messages")


def report(what: str, seconds: list[float], sizes: list[int]) -> None:
    milli = sorted(1000 * second for second in seconds)
    print(
        f"{what:<15} median {statistics.median(milli):6.1f} ms  p95 {milli[int(0.95 * (len(milli) - 1))]:6.1f} ms"
        f"  largest {milli[-1]:6.1f} ms {max(sizes) / 1000:6.1f} kB"
    )


def following(folder: Path) -> None:
    """The same with the look at a real store: 10 000 tasks of 200 functions, 1 000 of them failed, 64 workers."""
    import jug_notebook as jn
    from jug_notebook import system
    from kernel_ext.widgets import Panel

    session = jn.connect(folder / "jugdata", notebook=folder / "bench.ipynb")
    source = "def f(n, which):\n    if n % 10 == 3: raise ValueError(f'no data in run {n}')\n    return n"
    linecache.cache["<bench>"] = (len(source), None, source.splitlines(True), "<bench>")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<bench>", "exec"), space)
    tasks = jn.TaskList()
    for number in range(200):
        tasks += jn.task(name=f"analyse_station_{number}")(space["f"]).map(range(50), which=number)
    session.submissions.flush()
    crew = session.execute(2)
    store = crew.store
    infos = [replace(system.me("worker"), id=f"bench-{n}", memory=3 * 10**8, done=n) for n in range(62)]
    store.renew(infos)
    panel, looks, times, sizes = None, [], [], []
    while not store.idle():
        sent.clear()
        start = time.thread_time()
        snapshot = session.queries.glance()
        looks.append(time.thread_time() - start)
        if panel is None:
            panel = Panel(session, False, snapshot)
        panel.show(snapshot)
        times.append(time.thread_time() - start)
        sizes.append(sum(sent))
        time.sleep(max(0.0, 0.25 - times[-1]))
        store.renew(infos)
    assert panel is not None
    report("look, busy", looks, [0])
    report("look and update", times, sizes)
    session.stop(now=True)
    looks, times, sizes = [], [], []
    for number in range(60):
        tasks[number * 100].invalidate()
        sent.clear()
        start = time.thread_time()
        snapshot = session.queries.glance()
        looks.append(time.thread_time() - start)
        panel.show(snapshot)
        times.append(time.thread_time() - start)
        sizes.append(sum(sent))
    report("look, calm", looks, [0])
    report("look and update", times, sizes)
    known = sum(len(kind.keys) for kind in snapshot.kinds)
    print(f"{snapshot.total} tasks, {snapshot.counts[State.FAILED]} failed, {known} in {len(snapshot.kinds)} kinds")
    start = time.thread_time()
    session.status()
    print(f"status() whole  {1000 * (time.thread_time() - start):6.1f} ms")
    session.close()


def main() -> None:
    drawing()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CONFIG_HOME"] = folder
        following(Path(folder))


if __name__ == "__main__":
    main()
