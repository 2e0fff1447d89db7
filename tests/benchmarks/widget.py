"""What the widget costs the kernel: time and bytes an update, with many tasks, functions, workers and failures.

Run as a program; it prints a table. The messages are counted as a front end would get them.
"""

from __future__ import annotations

import json
import statistics
import time
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
    kinds = tuple(render.sorted_out(wrong))
    return Snapshot("file:jugdata", 1e9 + step / 4, "this notebook", rows, crew, wrong, kinds=kinds)


def main() -> None:
    from kernel_ext.widgets import Panel

    class Nobody:
        closed = False

    start = time.perf_counter()
    panel = Panel(Nobody(), False, picture())  # type: ignore[arg-type]
    took = 1000 * (time.perf_counter() - start)
    print(f"first         {took:6.1f} ms  {sum(sent) / 1000:6.1f} kB  {len(sent)} messages")
    first = picture()
    start = time.perf_counter()
    fallback = len(render.html(first)) + len(render.text(first))
    print(f"saved picture {1000 * (time.perf_counter() - start):6.1f} ms  {fallback / 1000:6.1f} kB")
    times, sizes, counts = [], [], []
    for step in range(1, 120):
        snapshot = picture(step=step, failures=1000 if step < 60 else 3)
        sent.clear()
        start = time.perf_counter()
        panel.show(snapshot)
        times.append(1000 * (time.perf_counter() - start))
        sizes.append(sum(sent) / 1000)
        counts.append(len(sent))
    print(f"an update     {statistics.median(times):6.1f} ms  {statistics.median(sizes):6.1f} kB  {max(counts)} sent")
    print(f"the largest   {max(times):6.1f} ms  {max(sizes):6.1f} kB")
    sent.clear()
    for _ in range(10):
        panel.rest(replace(snapshot, at=snapshot.at + 1))
    print(f"nothing new   {len(sent)} messages")


if __name__ == "__main__":
    main()
