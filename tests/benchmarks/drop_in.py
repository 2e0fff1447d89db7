"""Where a pool was: executors and joblib backends, and a sweep as a table."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

from harness import Row, url
from memory import resident
from peer_tasks import dask_client, double, nap

WORKERS = 2


def _our_executor(folder: Path) -> Executor:
    import jug_notebook as jn

    jn.connect(url(folder))
    return jn.Executor(WORKERS)


def _executorlib(folder: Path) -> Executor:
    from executorlib import SingleNodeExecutor

    made: Executor = SingleNodeExecutor(max_workers=WORKERS, block_allocation=True)
    return made


def _many(pool: AbstractContextManager[Any], scale: float) -> float:
    count = int(5_000 * scale)
    with pool as executor:
        executor.submit(double, -1).result()
        start = time.perf_counter()
        futures = [executor.submit(double, i) for i in range(count)]
        for future in futures:
            future.result()
        return count / (time.perf_counter() - start)


def _one_by_one(pool: AbstractContextManager[Any], scale: float) -> float:
    count = int(500 * scale)
    with pool as executor:
        executor.submit(double, -1).result()
        start = time.perf_counter()
        for i in range(count):
            executor.submit(double, i).result()
        return (time.perf_counter() - start) / count


def many(folder: Path, scale: float) -> float:
    return _many(_our_executor(folder), scale)


def many_processes(folder: Path, scale: float) -> float:
    return _many(ProcessPoolExecutor(WORKERS), scale)


def many_executorlib(folder: Path, scale: float) -> float:
    return _many(_executorlib(folder), scale)


def many_dask(folder: Path, scale: float) -> float:
    return _many(dask_client(folder, WORKERS), scale)


def trip(folder: Path, scale: float) -> float:
    return _one_by_one(_our_executor(folder), scale)


def trip_processes(folder: Path, scale: float) -> float:
    return _one_by_one(ProcessPoolExecutor(WORKERS), scale)


def trip_executorlib(folder: Path, scale: float) -> float:
    return _one_by_one(_executorlib(folder), scale)


def trip_dask(folder: Path, scale: float) -> float:
    return _one_by_one(dask_client(folder, WORKERS), scale)


def _parallel(backend: str, seconds: float) -> Callable[[Path, float], float]:
    def run(folder: Path, scale: float) -> float:
        import joblib

        import jug_notebook as jn

        jn.connect(url(folder))
        count = max(10, int(scale * min(2_000, 10 / seconds)))
        with joblib.parallel_config(backend, n_jobs=WORKERS):
            joblib.Parallel()(joblib.delayed(nap)(-i, seconds) for i in range(1, 5))
            start = time.perf_counter()
            joblib.Parallel()(joblib.delayed(nap)(i, seconds) for i in range(count))
            spent = time.perf_counter() - start
        jn.stop()
        return spent / (count * seconds / WORKERS)

    return run


joblib_1, joblib_10, joblib_100 = (_parallel("jug_notebook", seconds) for seconds in (0.001, 0.01, 0.1))
loky_1, loky_10, loky_100 = (_parallel("loky", seconds) for seconds in (0.001, 0.01, 0.1))


def frame(folder: Path, scale: float) -> float:
    return _framed(folder, scale, lambda tasks, function: tasks.to_frame())


def history(folder: Path, scale: float) -> float:
    return _framed(folder, scale, lambda tasks, function: function.history_frame())


def _framed(folder: Path, scale: float, make: Callable[[Any, Any], Any]) -> float:
    import jug_notebook as jn

    @jn.task
    def successor(x: int) -> int:
        return x + 1

    jn.connect(url(folder))
    importlib.import_module("pandas")  # who makes frames has it already
    tasks = successor.map(range(int(100_000 * scale)))
    jn.execute(WORKERS)
    tasks.wait()
    jn.stop()
    start = time.perf_counter()
    make(tasks, successor)
    return time.perf_counter() - start


def _lazy(folder: Path) -> Any:
    """Return the results of a map of 10^7 items, which come as its workers make them."""
    import jug_notebook as jn

    @jn.task
    def successor(x: int) -> int:
        return x + 1

    jn.connect(url(folder))
    crew = jn.execute(WORKERS)
    successor(-1).result()
    return crew, successor.map(range(10_000_000), ahead=1000)


def first_result(folder: Path, scale: float) -> float:
    crew, results = _lazy(folder)
    start = time.perf_counter()
    next(results)
    spent = time.perf_counter() - start
    crew.stop(now=True)
    return spent


def lazy_memory(folder: Path, scale: float) -> float:
    crew, results = _lazy(folder)
    before = resident(os.getpid())
    for _ in islice(results, int(100_000 * scale)):
        pass
    more = resident(os.getpid()) - before
    crew.stop(now=True)
    return more


def plot_follows(folder: Path, scale: float) -> float:
    """A kernel shows a sweep that is half done: from the end of one more task to the picture that has it."""
    sys.path.append(str(Path(__file__).parents[2]))
    from tests.kernels import Kernel

    kernel = Kernel(folder, JPY_SESSION_NAME=str(folder / "n.ipynb"))
    try:
        kernel.run(f"%load_ext jug_notebook\nimport os, time\nimport jug_notebook as jn\njn.connect({url(folder)!r})")
        kernel.run(
            "@jn.task\ndef held(a):\n    while a >= 50 and not os.path.exists(f'gate{a}'): time.sleep(0.005)\n"
            "    return time.time()\n"
        )
        kernel.run(f"ts = held.map(range(100))\ncrew = jn.execute({WORKERS})\nts[:50].wait()")
        kernel.run("ts.plot(x='a')")
        spent = []
        for number in range(50, 60):
            (folder / f"gate{number}").touch()
            start = time.perf_counter()
            while f"{number + 1} of 100 finished" not in kernel.update()["data"]["text/plain"]:
                pass
            spent.append(time.perf_counter() - start)
        kernel.run("%jug_stop --now")
        return max(spent)
    finally:
        kernel.close()


def _peers(row: str) -> tuple[tuple[str, str], ...]:
    return (
        ("ProcessPoolExecutor", f"{row}_processes"),
        ("executorlib", f"{row}_executorlib"),
        ("dask client.submit", f"{row}_dask"),
    )


ROWS = (
    Row("executor: 5 000 calls submitted, and their results", "calls/s", "more", "many", _peers("many"), ""),
    Row("executor: one call and its result", "s", "less", "trip", _peers("trip"), ""),
    *(
        Row(f"joblib: calls of {n} ms, time over the ideal", "×", "less", f"joblib_{n}", (("loky", f"loky_{n}"),), "")
        for n in (1, 10, 100)
    ),
    Row("a sweep of 100 000 tasks as a frame", "s", "less", "frame", (), "≤ 0.5 s"),
    Row("100 000 stored calls of a function as a frame", "s", "less", "history", (), "≤ 1 s"),
    Row("a plot of a half-done sweep follows, the slowest of 10 times", "s", "less", "plot_follows", (), "≤ 1 s"),
    Row("a map of 10^7 items: the first result", "s", "less", "first_result", (), "≤ 0.1 s"),
    Row("a map of 10^7 items: memory more after 100 000 results", "MB", "less", "lazy_memory", (), "≤ 50 MB"),
)
