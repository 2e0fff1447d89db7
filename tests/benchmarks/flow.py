"""How tightly work follows work: a chain, a fan-out, a fan-in, with two workers that are up."""

from __future__ import annotations

import time
from pathlib import Path

from harness import Row, crew_of, redis_port, url

LINKS = 100
NAP = 0.05


def chain(folder: Path, scale: float) -> float:
    """Seconds a link."""
    import jug_notebook as jn

    @jn.task
    def step(x: int) -> int:
        return x + 1

    session = jn.connect(url(folder))
    with crew_of(session):
        for warm in range(5):
            step(-1000 - warm).result()
        start = time.perf_counter()
        last = step(0)
        for _ in range(LINKS - 1):
            last = step(last)
        assert last.result() == LINKS
        return (time.perf_counter() - start) / LINKS


def chain_dask(folder: Path, scale: float) -> float:
    from peer_tasks import dask_client, double

    with dask_client(folder, 2) as client:
        client.submit(double, -1, pure=False).result()
        start = time.perf_counter()
        last = client.submit(double, 0, pure=False)
        for _ in range(LINKS - 1):
            last = client.submit(double, last, pure=False)
        last.result()
        return (time.perf_counter() - start) / LINKS


def chain_huey(folder: Path, scale: float) -> float:
    from peer_tasks import huey_consumer

    with huey_consumer(folder, redis_port(), 2) as module:
        module.double(-1)(blocking=True)
        start = time.perf_counter()
        pipeline = module.double.s(0)
        for _ in range(LINKS - 1):
            pipeline = pipeline.then(module.double)
        for result in module.huey.enqueue(pipeline):
            result.get(blocking=True, backoff=1, max_delay=0.001)
        return (time.perf_counter() - start) / LINKS


def fan_out(folder: Path, scale: float) -> float:
    """Makespan over ideal: a task of a second, then a hundred of 50 ms that need it."""
    from peer_tasks import nap

    import jug_notebook as jn

    task, session, count = jn.task(nap), jn.connect(url(folder)), int(100 * max(scale, 0.4))
    with crew_of(session):
        jn.bvalue([task(-i, 0.0) for i in range(1, 5)])
        start = time.perf_counter()
        first = task(0, 1.0)
        jn.bvalue([task(i, NAP, first) for i in range(1, count + 1)])
        return (time.perf_counter() - start) / (1.0 + count * NAP / 2)


def fan_out_dask(folder: Path, scale: float) -> float:
    from peer_tasks import dask_client, nap

    count = int(100 * max(scale, 0.4))
    with dask_client(folder, 2) as client:
        client.gather([client.submit(nap, -i, 0.0, pure=False) for i in range(4)])
        start = time.perf_counter()
        first = client.submit(nap, 0, 1.0, pure=False)
        client.gather([client.submit(nap, i, NAP, first, pure=False) for i in range(1, count + 1)])
        return (time.perf_counter() - start) / (1.0 + count * NAP / 2)


def fan_in(folder: Path, scale: float) -> float:
    """Makespan over ideal: a thousand of 50 ms, then one that needs them all."""
    from peer_tasks import nap, total

    import jug_notebook as jn

    task, adds, session, count = jn.task(nap), jn.task(total), jn.connect(url(folder)), int(1000 * scale)
    with crew_of(session):
        jn.bvalue([task(-i, 0.0) for i in range(1, 5)])
        start = time.perf_counter()
        assert adds([task(i, NAP) for i in range(count)]).result() == count * (count - 1) // 2
        return (time.perf_counter() - start) / (count * NAP / 2)


def fan_in_dask(folder: Path, scale: float) -> float:
    from peer_tasks import dask_client, nap, total

    count = int(1000 * scale)
    with dask_client(folder, 2) as client:
        client.gather([client.submit(nap, -i, 0.0, pure=False) for i in range(4)])
        start = time.perf_counter()
        client.submit(total, [client.submit(nap, i, NAP, pure=False) for i in range(count)]).result()
        return (time.perf_counter() - start) / (count * NAP / 2)


ROWS = (
    Row("a link of a chain of 100", "s", "less", "chain", (("huey", "chain_huey"), ("dask", "chain_dask")), "≤ 0.5 ms"),
    Row("a link of a chain of 100", "s", "less", "chain", (("huey", "chain_huey"),), "≤ 0.5 ms", "redis"),
    Row(
        "fan-out after 1 s, 100 x 50 ms: makespan / ideal",
        "x",
        "less",
        "fan_out",
        (("dask", "fan_out_dask"),),
        "≤ 1.02",
    ),
    Row("fan-in, 1 000 x 50 ms: makespan / ideal", "x", "less", "fan_in", (("dask", "fan_in_dask"),), "≤ 1.02"),
)
