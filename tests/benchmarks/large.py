"""An array of 500 MB: stored durably and named, loaded and proven, mapped, and handed to many tasks.

Memory is warm: all is done twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Row, url

SMALLEST = 50  #: MB


def _size(scale: float) -> int:
    return max(SMALLEST, int(500 * scale)) * 125_000


def _array(scale: float) -> Any:
    import numpy as np

    return np.random.default_rng(0).random(_size(scale))


def _second(act: Callable[[Any], None], array: Any) -> float:
    """Of two times with different content, the second: the first pays for cold memory."""
    act(array)
    array[0] = 7
    os.sync()
    start = time.perf_counter()
    act(array)
    return time.perf_counter() - start


def store(folder: Path, scale: float) -> float:
    from jug_notebook import codec
    from jug_notebook.store import open_store

    there = open_store(url(folder))
    return _second(lambda array: codec.dump_value(array, there.put_blob) and None, _array(scale))


def np_save(folder: Path, scale: float) -> float:
    import numpy as np

    def save(array: Any) -> None:
        with (folder / f"{time.time_ns()}.npy").open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())

    return _second(save, _array(scale))


def load_before(folder: Path, scale: float) -> None:
    from harness import crew_of

    import jug_notebook as jn

    with crew_of(jn.connect(url(folder)), 1):
        made(scale).result()


def made(scale: float) -> Any:
    import jug_notebook as jn

    @jn.task
    def random_array(size: int) -> Any:
        import numpy

        return numpy.random.default_rng(0).random(size)

    return random_array(_size(scale))


def _timed(act: Callable[[], Any]) -> float:
    """Twice, for warm memory; every page of the second is touched."""
    act()
    start = time.perf_counter()
    array = act()
    assert array[::512].sum() > 0
    return time.perf_counter() - start


def load(folder: Path, scale: float) -> float:
    import jug_notebook as jn

    jn.connect(url(folder))
    return _timed(made(scale).value)


def np_load_before(folder: Path, scale: float) -> None:
    import numpy as np

    np.save(folder / "array.npy", _array(scale))


def np_load(folder: Path, scale: float) -> float:
    import numpy as np

    return _timed(lambda: np.load(folder / "array.npy"))


mapped_before, np_map_before = load_before, np_load_before


def mapped(folder: Path, scale: float) -> float:
    """The first time in this process, and only to have it: the rest is the system's."""
    import numpy  # noqa: F401  (its import is not what is measured)

    import jug_notebook as jn

    jn.connect(url(folder))
    task = made(scale)
    task.state  # noqa: B018  (what the store knows has been read)
    start = time.perf_counter()
    task.value(mmap=True)
    return time.perf_counter() - start


def np_map(folder: Path, scale: float) -> float:
    import numpy as np

    start = time.perf_counter()
    np.load(folder / "array.npy", mmap_mode="r")
    return time.perf_counter() - start


def joblib_map_before(folder: Path, scale: float) -> None:
    import joblib

    joblib.dump(_array(scale), folder / "array.joblib")


def joblib_map(folder: Path, scale: float) -> float:
    import joblib

    start = time.perf_counter()
    joblib.load(folder / "array.joblib", mmap_mode="r")
    return time.perf_counter() - start


MANY = 100  #: tasks that are given one array, by one call each
BY_NAME: Any = None  #: the same array as a global


def _given_to_many(folder: Path, scale: float, by_name: bool = False) -> tuple[Any, list[Any], float]:
    """Return the session, the tasks, and the CPU seconds of a call after the first."""
    global BY_NAME
    import jug_notebook as jn

    def element(array: Any, place: int) -> float:
        return float(array[place])

    def global_element(place: int) -> float:
        return float(BY_NAME[place])

    session, given, named, array = jn.connect(url(folder)), jn.task(element), jn.task(global_element), _array(scale)
    BY_NAME = array if by_name else None
    tasks = [given(array, 0)]
    start = time.process_time()
    tasks += [given(array, place) for place in range(1, MANY)]
    session.submissions.flush()
    spent = (time.process_time() - start) / (MANY - 1)
    if by_name:
        named(0)
        session.submissions.flush()
    return session, tasks, spent


def each_call(folder: Path, scale: float) -> float:
    session, _, spent = _given_to_many(folder, scale)
    session.close()
    return spent


def each_joblib(folder: Path, scale: float) -> float:
    import joblib

    array = _array(scale)
    start = time.process_time()
    for _ in range(5):
        joblib.hash(array)
    return (time.process_time() - start) / 5


def each_task(folder: Path, scale: float) -> float:
    from harness import crew_of

    session, tasks, _ = _given_to_many(folder, scale)
    with crew_of(session, 1):
        [task.result() for task in tasks]
        return sum(task.provenance()["run"]["cpu"] for task in tasks) / len(tasks)


def each_joblib_load(folder: Path, scale: float) -> float:
    """A file for each call, as loky's workers get one."""
    import joblib

    joblib.dump(_array(scale), folder / "array.joblib")
    start = time.process_time()
    for place in range(MANY):
        float(joblib.load(folder / "array.joblib", mmap_mode="c")[place])
    return (time.process_time() - start) / MANY


def bytes_stored(folder: Path, scale: float) -> float:
    session, _, _ = _given_to_many(folder, scale, by_name=True)
    session.close()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


_JOBLIB = (("joblib", "joblib_map"), ("np.load, mapped", "np_map"))
ROWS = (
    Row("500 MB array: store", "s", "less", "store", (("np.save + fsync", "np_save"),), "≥ 0.75 x np.save + fsync"),
    Row("500 MB array: load", "s", "less", "load", (("np.load", "np_load"),), "≥ 0.5 x np.load"),
    Row("500 MB array: mapped load", "s", "less", "mapped", _JOBLIB, "≤ 6 ms"),
    Row("500 MB array, 100 tasks: a call's CPU", "s", "less", "each_call", (("joblib.hash", "each_joblib"),), "≤ 1 ms"),
    Row(
        "500 MB array, 100 tasks: a task's CPU in a worker", "s", "less", "each_task",
        (("joblib.load, mapped", "each_joblib_load"),), "≤ 10 ms",
    ),
    Row("500 MB array, 100 tasks, and a global: stored", "MB", "less", "bytes_stored", (), "≤ 501 MB"),
)  # fmt: skip
