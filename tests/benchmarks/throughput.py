"""No-op tasks per second, end to end: submitted, run by two workers, every result kept.

Workers are up when the clock starts, but for Jug, whose worker is the program that reads the jugfile: its start-up, the
time of a run with one task, is taken off.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from harness import Row, crew_of, redis_port, url

WORKERS = 2

JUGFILE = """
from jug import TaskGenerator

@TaskGenerator
def double(x):
    return 2 * x

for i in range({tasks}):
    double(i)
"""


def count(scale: float) -> int:
    return int(20_000 * scale)


def ours(folder: Path, scale: float) -> float:
    import jug_notebook as jn

    @jn.task
    def double(x: int) -> int:
        return 2 * x

    session, tasks = jn.connect(url(folder)), count(scale)
    with crew_of(session, WORKERS):
        double(-1).result()  # a worker has answered: all is up
        start = time.perf_counter()
        found = double.map(range(tasks))
        found.wait()
        spent = time.perf_counter() - start
        assert found.result() == [2 * i for i in range(tasks)]
    return tasks / spent


def _on_devices(
    folder: Path,
    scale: float,
    resources: dict[str, float],
    number: int = 10_000,
    seconds: float = 0.001,
    every: int = 500,
    spare: int = 0,
) -> tuple[float, float]:
    """Run tasks on four pretended GPUs with as many workers and ``spare`` ones; one task of ``every`` kills its worker.

    Return how many run in a second, and what share of the GPUs' time passed without a task, in percent.
    """
    import fcntl
    import os
    import signal

    import jug_notebook as jn

    @jn.task(resources=resources, ignore=["place"])
    def use(x: int, place: str) -> bool:
        device = os.environ.get("CUDA_VISIBLE_DEVICES", str(os.getpid()))
        with open(f"{place}/device-{device}", "a", buffering=1) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where another process has the device
            began = time.monotonic()
            once = f"{place}/died-{x}"
            if x % every == every - 1 and not os.path.exists(once):
                open(once, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            print(began, time.monotonic(), file=file)
        return device in "0123"

    session, tasks = jn.connect(url(folder)), int(number * scale)
    jn.execute(4 + spare, gpus="0,1,2,3")
    use(-1, str(folder)).result()
    start, began = time.perf_counter(), time.monotonic()
    found = use.map(range(tasks), place=str(folder))
    found.wait()
    spent = time.perf_counter() - start
    assert all(found.result()) or not resources
    session.stop(now=True)
    session.close()
    files = [path.read_text().split() for path in folder.glob("device-*")]
    runs = [pair for words in files for pair in zip(map(float, words[::2]), map(float, words[1::2]), strict=True)]
    runs = [(begin, end) for begin, end in runs if begin >= began]
    first, last = min(begin for begin, _ in runs), max(begin for begin, _ in runs)
    busy = sum(min(end, last) - begin for begin, end in runs)
    return tasks / spent, 100 * (1 - busy / (last - first) / 4)


def with_gpus(folder: Path, scale: float) -> float:
    return _on_devices(folder, scale, {"gpu": 1})[0]


def without_gpus(folder: Path, scale: float) -> float:
    return _on_devices(folder, scale, {})[0]


def idle_gpus(folder: Path, scale: float) -> float:
    return _on_devices(folder, scale, {"gpu": 1}, 500, 0.25, 50, spare=2)[1]


def idle_workers(folder: Path, scale: float) -> float:
    return _on_devices(folder, scale, {}, 500, 0.25, 50)[1]


def sealed(folder: Path, scale: float) -> float:
    """Return the CPU time of a task in the stores of who claims and settles it and of who reads of it, in µs."""
    import os

    from jug_notebook import system
    from jug_notebook.model import Finished, Origin, Payload, Run, Settlement, Submission, Verdict
    from jug_notebook.store import open_store
    from jug_notebook.store.signed import SignedWriter, seal_of

    worker, reader = open_store(url(folder)), open_store(url(folder))
    me, keys = system.me("worker"), [os.urandom(20).hex() for _ in range(count(scale))]
    writer, by = SignedWriter(seal_of(worker)), Run(me.id, me.host, 1, me.user, "3.11", 1e9, 1e-4, 1e-4, 1)
    tasks = [Submission(key, "double", (), bytes.fromhex(key), os.urandom(400), 0, "3.11") for key in keys]
    worker.submit(tasks, Origin("a", "b", "c"))
    worker.renew([me])
    reader.states(keys[:1])
    settled: list[Settlement] = []
    start = time.process_time()
    while claims := worker.claim(me.id, 20, 0.0, settled):
        settled = []
        for key, round, inputs, attempt in [
            (c.lease.key, c.lease.round, c.lease.inputs, c.lease.attempt) for c in claims
        ]:
            outcome = Finished(key, round, inputs, b"x" * 21, Payload("pickle", b"x" * 20, ()), "1", by)
            settled.append(writer.settlement(Verdict(key, round, inputs, attempt, b"x" * 21, 1e9, 1e-4), outcome))
        reader.states(keys[:1])
    return 1e6 * (time.process_time() - start) / len(keys)


def unsealed(folder: Path, scale: float) -> float:
    from jug_notebook.store.sealing import FIRST, EventSeal

    for name in ("frame", "record", "attempt"):
        setattr(EventSeal, name, lambda *_: FIRST)
    return sealed(folder, scale)


def jug(folder: Path, scale: float) -> float:
    tasks = max(2000, count(scale) // 4)  # fewer than its start-up would drown in the noise
    startup = _jug(folder / "one", 1)
    return tasks / max(_jug(folder / "all", tasks) - startup, 1e-9)


def _jug(folder: Path, tasks: int) -> float:
    folder.mkdir()
    (folder / "jugfile.py").write_text(JUGFILE.format(tasks=tasks))
    command = [sys.executable, "-m", "jug.jug", "execute", "jugfile.py", "--jugdir", "jugdata"]
    quiet = subprocess.DEVNULL
    start = time.perf_counter()
    for process in [subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet) for _ in range(WORKERS)]:
        assert process.wait() == 0
    return time.perf_counter() - start


def joblib(folder: Path, scale: float) -> float:
    from joblib import Memory, Parallel, delayed
    from peer_tasks import double

    kept, tasks = Memory(folder / "joblib", verbose=0).cache(double), count(scale)
    with Parallel(n_jobs=WORKERS) as parallel:
        parallel(delayed(kept)(-i) for i in range(1, 5))
        start = time.perf_counter()
        parallel(delayed(kept)(i) for i in range(tasks))
        return tasks / (time.perf_counter() - start)


def dask(folder: Path, scale: float) -> float:
    from peer_tasks import dask_client, double

    tasks = count(scale) // 10
    with dask_client(folder, WORKERS) as client:
        client.gather(client.map(double, range(-4, 0), pure=False))
        start = time.perf_counter()
        client.gather(client.map(double, range(tasks), pure=False))
        return tasks / (time.perf_counter() - start)


def huey(folder: Path, scale: float) -> float:
    from peer_tasks import huey_consumer

    tasks = count(scale) // 2
    with huey_consumer(folder, redis_port(), WORKERS) as module:
        module.double(-1)(blocking=True)
        start = time.perf_counter()
        results = [module.double(i) for i in range(tasks)]
        for result in results:
            result.get(blocking=True, backoff=1, max_delay=0.01)
        return tasks / (time.perf_counter() - start)


_PEERS = (("joblib.Memory", "joblib"), ("jug", "jug"), ("dask (keeps nothing)", "dask"))
ROWS = (
    Row(
        "tasks of 1 ms on 4 pretended GPUs, with kills",
        "tasks/s",
        "more",
        "with_gpus",
        (("none", "without_gpus"),),
        "≥ 95 %",
    ),
    Row(
        "idle share of 4 pretended GPUs, with kills",
        "%",
        "less",
        "idle_gpus",
        (("none", "idle_workers"),),
        "≤ 1 %",
    ),
    *(
        Row("MACs of events, in the stores alone", "µs/task", "less", "sealed", (("none", "unsealed"),), "≤ 3 µs", kind)
        for kind in ("file", "redis")
    ),
    Row("no-op tasks, 2 workers", "tasks/s", "more", "ours", _PEERS, "≥ 15 000/s"),
    Row("no-op tasks, 2 workers", "tasks/s", "more", "ours", (("huey", "huey"),), "≥ 15 000/s", "redis"),
)
