"""Results from a mirror in a bucket, whose server takes 50 ms longer for each request: moto's, in a process of its own.

The peer, s3fs, fetches as many objects as there are results, as a cache in a bucket with an object a value would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Row, crew_of

LATENCY = 0.05  #: seconds
MIRROR = "s3://bench/study"


def serve() -> None:
    """Be the server, until the input ends; its port is the first line that it prints."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    moto = DomainDispatcherApplication(create_backend_app)
    WSGIRequestHandler.log = lambda *_, **__: None  # type: ignore[method-assign]

    def late(environ: Any, start: Any) -> Any:
        time.sleep(float(os.environ.get("BENCH_LATENCY", LATENCY)))
        return moto(environ, start)

    server = make_server("127.0.0.1", 0, late, threaded=True)
    print(server.port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # so that it ends with a side that was ended


@contextmanager
def bucket() -> Iterator[Any]:
    """An empty bucket in a server; yields s3fs's file system, and this process finds the server, too."""
    import fsspec

    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}", "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    try:
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("bench")
        yield files
    finally:
        server.terminate()
        server.wait()


def copied(folder: Path, task: Any, count: int) -> None:
    """Fill the mirror with the results of so many calls."""
    import jug_notebook as jn

    session = jn.connect(folder / "theirs")
    with crew_of(session):
        task.map(range(count)).wait()
    jn.copy(folder / "theirs", MIRROR)


def read(folder: Path, function: Callable[[int], Any], count: int, wanted: int) -> float:
    """Seconds for a clone, which has nothing, from its connection to these values."""
    import jug_notebook as jn

    with bucket():
        task = jn.task(function)
        copied(folder, task, count)
        start = time.perf_counter()
        jn.connect(folder / "clone", also=MIRROR)
        assert len(task.map(range(wanted)).result()) == wanted
        return time.perf_counter() - start


def objects(count: int, size: int) -> float:
    """Seconds for s3fs, from its connection to the bytes of so many objects."""
    import fsspec

    with bucket() as files:
        names = [f"bench/cache/{number}" for number in range(count)]
        files.pipe({name: os.urandom(size) for name in names})
        start = time.perf_counter()
        found = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False).cat(names)
        took = time.perf_counter() - start
        assert len(found) == count or count == 1
        return took


def megabyte(number: int) -> bytes:
    return number.to_bytes(8, "little") * 131_072


def first(folder: Path, scale: float) -> float:
    from peer_tasks import double

    return read(folder, double, int(10_000 * scale), 1)


def many(folder: Path, scale: float) -> float:
    from peer_tasks import double

    return read(folder, double, int(10_000 * scale), int(10_000 * scale))


def thousand(folder: Path, scale: float) -> float:
    return many(folder, scale / 10)


def large(folder: Path, scale: float) -> float:
    from mirror import megabyte

    return read(folder, megabyte, int(200 * scale), int(200 * scale))


def computed_again(folder: Path, scale: float) -> float:
    """How many of a thousand tasks a clone computes, with workers of its own beside it."""
    from peer_tasks import double

    import jug_notebook as jn

    count = int(1000 * scale)
    with bucket():
        task = jn.task(double)
        copied(folder, task, count)
        session = jn.connect(folder / "clone", also=MIRROR)
        with crew_of(session):
            tasks = task.map(range(count))
            tasks.wait()
            return sum(not one.provenance()["run"]["copied_from"] for one in tasks)


def s3fs_first(folder: Path, scale: float) -> float:
    return objects(1, 100)


def s3fs_thousand(folder: Path, scale: float) -> float:
    return objects(int(1000 * scale), 100)


def s3fs_large(folder: Path, scale: float) -> float:
    return objects(int(200 * scale), 1 << 20)


ROWS = (
    Row("mirror 50 ms away: first of 10 000 values", "s", "less", "first", (("s3fs", "s3fs_first"),), "≤ 1 s"),
    Row("mirror 50 ms away: 1 000 values", "s", "less", "thousand", (("s3fs", "s3fs_thousand"),)),
    Row("mirror 50 ms away: 10 000 values", "s", "less", "many", (), "≤ 5 s"),
    Row("mirror 50 ms away: 200 values of 1 MB", "s", "less", "large", (("s3fs", "s3fs_large"),)),
    Row("mirror: a clone computes again, of 1 000 tasks", "tasks", "less", "computed_again", (), "0"),
)

if __name__ == "__main__":
    serve()
