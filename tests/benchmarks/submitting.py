"""Calls made, named and, with us, submitted: on the disk before the clock stops. Nothing runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Row, redis_port, url


def _ours(folder: Path, scale: float, make: Callable[[Any, range], Any]) -> float:
    import jug_notebook as jn

    @jn.task
    def double(x: int) -> int:
        return 2 * x

    session, count = jn.connect(url(folder)), int(20_000 * scale)
    double(-1)
    session.submissions.flush()
    start = time.perf_counter()
    make(double, range(count))
    session.submissions.flush()
    return count / (time.perf_counter() - start)


def calls(folder: Path, scale: float) -> float:
    return _ours(folder, scale, lambda double, numbers: [double(i) for i in numbers])


def mapped(folder: Path, scale: float) -> float:
    return _ours(folder, scale, lambda double, numbers: double.map(numbers))


def jug(folder: Path, scale: float) -> float:
    from jug import Task
    from peer_tasks import double

    count = int(20_000 * scale)
    start = time.perf_counter()
    for i in range(count):
        Task(double, i).hash()
    return count / (time.perf_counter() - start)


def dask(folder: Path, scale: float) -> float:
    from peer_tasks import dask_client, double

    count = int(20_000 * scale)
    with dask_client(folder, 1) as client:
        client.submit(double, -1).result()
        start = time.perf_counter()
        futures = client.map(double, range(count))
        spent = time.perf_counter() - start
        client.cancel(futures)
    return count / spent


def rq(folder: Path, scale: float) -> float:
    from peer_tasks import double
    from redis import Redis
    from rq import Queue

    count, queue = int(20_000 * scale), Queue(folder.name, connection=Redis(port=redis_port()))
    start = time.perf_counter()
    queue.enqueue_many([Queue.prepare_data(double, (i,)) for i in range(count)])
    return count / (time.perf_counter() - start)


_PEERS = (("dask (client.map; stores nothing)", "dask"), ("jug (hashed only)", "jug"))
ROWS = (
    Row("20 000 calls submitted, one by one", "calls/s", "more", "calls", _PEERS, "≥ 40 000/s"),
    Row("20 000 calls submitted, in one .map", "calls/s", "more", "mapped", _PEERS, "≥ 90 000/s"),
    Row("20 000 calls submitted, one by one", "calls/s", "more", "calls", (("rq", "rq"),), "≥ 25 000/s", "redis"),
)
