"""Workers under a batch system: limits, notices, stop files and pre-emption, as Slurm, SGE and Jug mean them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jug_notebook import system
from jug_notebook.cli.run import heed_environment
from jug_notebook.compat.hooks import STOP_FILE
from jug_notebook.errors import JugError
from jug_notebook.model import State, WorkerInfo
from jug_notebook.store import Store, open_store
from jug_notebook.worker import execution, loop, status
from tests.workbench import PATIENCE, FakeClock, Fifo, Submitter, cell, wait_until

ROOT = str(Path(__file__).resolve().parents[2])
GATE = """
def gate(path):
    with open(path, "w") as said: said.write("here\\n")
    with open(path + "-go") as go: return go.readline().strip()
"""


class Options:
    max_tasks: int | None = None
    max_time: float | None = None


class Job:
    """A job of a batch system: ``jug-notebook worker`` in a folder, with its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(f"file:{folder}/jugdata")
        self.tasks = Submitter(self.store, folder)
        self.begun, self.go = Fifo(folder, "begun"), Fifo(folder, "begun-go")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-m", "jug_notebook", "worker", self.store.url, "-n", "1", *words]
        self.started.append(
            subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, "PYTHONPATH": path, **environ},
                stderr=subprocess.PIPE, text=True, start_new_session=True,
            )
        )  # fmt: skip
        return self.started[-1]

    def gated(self) -> str:
        """A task that has begun, and waits."""
        return self.tasks.submit(cell(GATE, "gate"), self.begun.path)

    def alive(self, kind: str) -> list[WorkerInfo]:
        return [info for info, alive, _ in self.store.processes() if alive and info.kind == kind]

    def close(self) -> None:
        for job in self.started:
            job.kill()
            job.wait()
            assert job.stderr is not None
            job.stderr.close()
        self.store.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.close()


def test_jug_s_variables_are_limits_where_no_option_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options()
    environ = {"JUG_MAX_TASKS": "5", "JUG_MAX_HOURS": "1", "JUG_MAX_MINUTES": "2", "JUG_MAX_SECONDS": "3"}
    files = heed_environment(options, {**environ, "JUG_EXIT_IF_FILE_EXISTS": "halt"})  # type: ignore[arg-type]
    assert (options.max_tasks, options.max_time) == (5, 3723.0)
    assert files == [tmp_path / STOP_FILE, tmp_path / "halt"]
    options.max_tasks, options.max_time = 7, 8.0
    assert heed_environment(options, environ) == [tmp_path / STOP_FILE]  # type: ignore[arg-type]
    assert (options.max_tasks, options.max_time) == (7, 8.0)
    with pytest.raises(JugError, match="JUG_MAX_TASKS is 'many', which is not a whole number"):
        heed_environment(Options(), {"JUG_MAX_TASKS": "many"})  # type: ignore[arg-type]


def test_a_worker_ends_after_so_many_tasks_as_the_environment_says(job: Job) -> None:
    keys = [job.tasks.submit("def f(x): return x", x) for x in range(5)]
    started = job.start(JUG_MAX_TASKS="2")
    assert started.wait(PATIENCE) == 0
    assert sorted(state.value for key in keys if (state := job.tasks.state(key))) == ["finished"] * 2 + ["ready"] * 3


@pytest.mark.parametrize("name", [STOP_FILE, "halt"])
def test_a_stop_file_ends_workers_after_their_current_tasks(job: Job, name: str) -> None:
    key = job.gated()
    started = job.start(JUG_EXIT_IF_FILE_EXISTS="halt")
    job.begun.read_line()
    (job.folder / name).touch()
    wait_until(job.store, lambda: any(info.size == 0 for info in job.alive("supervisor")))
    other = job.tasks.submit("def f(x): return x", 1)
    job.go.write_line("done")
    assert job.tasks.value(key) == "done"
    assert started.wait(PATIENCE) == 0
    assert f"{job.folder}/{name} exists: stopping after the current tasks" in started.communicate()[1]
    assert job.tasks.state(other) is State.READY


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_the_notice_of_a_batch_system_lets_tasks_end(job: Job, number: signal.Signals) -> None:
    key = job.gated()
    started = job.start()
    job.begun.read_line()
    [info], [supervisor] = job.alive("worker"), job.alive("supervisor")
    for pid in (info.pid, supervisor.pid):  # a whole job is told, its workers too
        os.kill(pid, number)
    wait_until(job.store, lambda: any(info.size == 0 for info in job.alive("supervisor")))
    job.go.write_line("done")
    assert job.tasks.value(key) == "done"
    assert started.wait(PATIENCE) == 0
    assert f"{number.name}: stopping after the current tasks" in started.communicate()[1]


def test_a_job_that_is_ended_gives_its_tasks_back_however_often(job: Job) -> None:
    key = job.gated()
    for _ in range(4):  # a fourth death in one task would make it poison
        started = job.start()
        job.begun.read_line()
        [info], [supervisor] = job.alive("worker"), job.alive("supervisor")
        for pid in (info.pid, supervisor.pid):  # the worker may be told first
            os.kill(pid, signal.SIGTERM)
        assert started.wait(PATIENCE) == 0
        assert job.tasks.state(key) is State.READY
    job.start()
    job.begun.read_line()
    job.go.write_line("done")
    assert job.tasks.value(key) == "done"


def test_a_worker_that_alone_is_ended_has_died_in_its_task(job: Job) -> None:
    key = job.tasks.submit("import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGTERM)")
    job.start()
    failed = job.tasks.failure(key)
    assert failed.kind == "poison"
    assert "killed by SIGTERM" in failed.error


def test_a_job_that_is_killed_outright_is_no_death_of_its_task(job: Job) -> None:
    key = job.gated()
    for _ in range(2):  # more often than that, and the task itself is suspected
        started = job.start()
        job.begun.read_line()
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        wait_until(job.store, lambda: job.tasks.state(key) is State.READY)
    job.start()
    job.begun.read_line()
    job.go.write_line("done")
    assert job.tasks.value(key) == "done"


def test_no_task_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    store = open_store(f"memory:{tmp_path}")
    tasks = Submitter(store, tmp_path)
    clock = FakeClock()
    vars(execution)["_clock_of_test"] = clock
    source = "import jug_notebook.worker.execution as w\ndef f(x): w._clock_of_test.sleep(10)"
    keys = [tasks.submit(source, x) for x in range(5)]
    me = system.me("worker")
    store.renew([me])
    ran = loop.work(
        store, tasks.seal, me, status.SharedStatus(), clock=clock, deadline=clock.monotonic() + 35, in_process=True
    )
    del vars(execution)["_clock_of_test"]
    assert ran == 3  # the fourth would need 40 seconds
    assert clock.monotonic() <= 1_000_031
    assert [tasks.state(key) for key in keys] == [State.FINISHED] * 3 + [State.READY] * 2


def test_a_worker_that_has_no_time_for_another_task_is_not_replaced(job: Job) -> None:
    for x in range(50):
        job.tasks.submit("import time\ndef f(x): time.sleep(0.4)", x)
    started = job.start("--max-time", "1")
    assert started.wait(PATIENCE) == 0
    counts = job.store.snapshot().counts
    assert counts[State.FINISHED] <= 3
    assert counts[State.FINISHED] + counts[State.READY] == 50


def test_jobs_of_an_array_are_workers_of_their_own(job: Job) -> None:
    keys = [job.tasks.submit("import os\ndef f(x): return os.getpid()", x) for x in range(3)]
    for index in range(3):
        job.start("--max-tasks", "1", SLURM_ARRAY_TASK_ID=str(index))
    assert len({job.tasks.value(key) for key in keys}) == 3
    assert [started.wait(PATIENCE) for started in job.started] == [0, 0, 0]
