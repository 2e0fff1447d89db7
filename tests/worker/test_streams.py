"""What a generator task yields is read along, while it runs, from any process; each value once, whatever is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook.session import Session
from tests.crews import working


@pytest.fixture(params=["file", "redis"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    """A session of a store that other processes can use."""
    url = request.getfixturevalue("redis_server").url() if request.param == "redis" else str(tmp_path / "jugdata")
    opened = jn.connect(url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.stop()
    opened.close()
    jn.definitions.clear()


def until_there(path: str) -> None:
    until = time.monotonic() + 30
    while not os.path.exists(path):
        assert time.monotonic() < until, path
        time.sleep(0.01)


@jn.task(retries=1)
def stepwise(folder: str, n: int, killed_at: int = -1) -> Iterator[tuple[int, str]]:
    """Yield each value once its file is there."""
    for i in range(n):
        until_there(f"{folder}/{i}")
        if i == killed_at and not os.path.exists(f"{folder}/killed"):
            Path(f"{folder}/killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield i, "x" * 2_000_000


def test_values_come_while_the_task_runs(session: Session, tmp_path: Path) -> None:
    task = stepwise(str(tmp_path), 4)
    jn.execute(1)
    values = task.stream()
    for i in range(4):
        (tmp_path / str(i)).touch()
        assert next(values)[0] == i
        if i < 3:
            assert task.state is jn.State.RUNNING, "the next one waits for its file"
    assert list(values) == []
    assert [i for i, _ in task.result()] == [0, 1, 2, 3]
    assert [i for i, _ in task.stream()] == [0, 1, 2, 3], "it is there from the beginning, for who comes later"
    scratch = session.access.store.scratch
    seen = -1
    while scratch.records():
        seen = session.access.store.watch(seen, 0.1)


def test_after_a_kill_each_value_comes_once(session: Session, tmp_path: Path) -> None:
    task = stepwise(str(tmp_path), 5, killed_at=3)
    jn.execute(1)
    values = task.stream()
    for i in (0, 1, 2):
        (tmp_path / str(i)).touch()
        assert next(values)[0] == i
    for i in (3, 4):
        (tmp_path / str(i)).touch()
    assert [i for i, _ in values] == [3, 4]
    assert (tmp_path / "killed").exists()


def test_a_stream_ends_with_what_the_task_raised(session: Session, tmp_path: Path) -> None:
    @jn.task
    def short(folder: str) -> Iterator[int]:
        yield 1
        until_there(f"{folder}/go")
        raise ValueError("no more")

    task = short(str(tmp_path))
    jn.execute(1)
    values = task.stream()
    assert next(values) == 1
    (tmp_path / "go").touch()
    with pytest.raises(jn.TaskFailed, match="no more"):
        next(values)


def test_an_async_generator_streams_as_well_and_thousands_of_values_come_in_order(
    session: Session, tmp_path: Path
) -> None:
    @jn.task
    async def many(folder: str) -> AsyncIterator[int]:
        for i in range(20_000):
            yield i
            if i == 10_000:
                until_there(f"{folder}/go")

    task = many(str(tmp_path))
    jn.execute(1)
    values = task.stream()
    assert [next(values) for _ in range(10_001)] == list(range(10_001))
    assert task.state is jn.State.RUNNING
    (tmp_path / "go").touch()
    assert list(values) == list(range(10_001, 20_000))


def test_a_forged_stream_yields_nothing(session: Session, tmp_path: Path) -> None:
    task = stepwise(str(tmp_path), 2)
    scratch = session.access.store.scratch
    assert task.state is jn.State.READY
    inputs = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
    scratch.append(f"{task.key}.0.{inputs}.9.stream", b"x" * 50)
    scratch.append(f"{task.key}.0.nothex.9.stream", b"x")
    scratch.append(f"{task.key}.rubbish", b"x")
    for i in range(2):
        (tmp_path / str(i)).touch()
    with working(session):
        assert [i for i, _ in task.stream()] == [0, 1]


def test_without_workers_a_stream_says_so_and_other_values_have_none(session: Session, tmp_path: Path) -> None:
    with pytest.raises(jn.NoWorkers):
        next(stepwise(str(tmp_path), 2).stream())

    @jn.task
    def plain() -> int:
        return 1

    task = plain()
    session.run_here(task)
    with pytest.raises(jn.BadTask, match="its value is of type int"):
        next(task.stream())
