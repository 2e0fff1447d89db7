"""Workers on executors, real ones: threads, processes, loky, Dask, submitit, ipyparallel."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.errors import LaunchError
from jug_notebook.launch import executor as pool
from jug_notebook.launch.remote import Request
from jug_notebook.model import State
from jug_notebook.session import Session
from jug_notebook.store import keyring
from tests.crews import sends_one_line, total_of_what_is_elsewhere
from tests.servers import Receiver
from tests.workbench import PATIENCE, Fifo, cell, wait_until

SAY = """
import os
def say(path):
    with open(path, "w") as said: said.write(f"{os.getpid()}\\n")
    with open(path + "-go") as go: return go.readline().strip()
"""


def needs(module: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def of_threads(folder: Path) -> tuple[Any, Callable[[], object]]:
    threads = ThreadPoolExecutor(2)
    return threads, threads.shutdown


def of_processes(folder: Path) -> tuple[Any, Callable[[], object]]:
    processes = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    return processes, processes.shutdown


def of_loky(folder: Path) -> tuple[Any, Callable[[], object]]:
    loky = importlib.import_module("loky").ProcessPoolExecutor(2)
    return loky, loky.shutdown


def of_dask(folder: Path) -> tuple[Any, Callable[[], object]]:
    distributed = importlib.import_module("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(folder / "dask")
    )
    client = distributed.Client(cluster)

    def close() -> None:
        client.close()
        cluster.close()

    return client, close


def of_submitit(folder: Path) -> tuple[Any, Callable[[], object]]:
    return importlib.import_module("submitit").AutoExecutor(folder=folder / "slurm", cluster="local"), lambda: None


def of_ipyparallel(folder: Path) -> tuple[Any, Callable[[], object]]:
    cluster = importlib.import_module("ipyparallel").Cluster(n=2, ipython_dir=str(folder / "ipython"))
    client = cluster.start_and_connect_sync()

    def close() -> None:
        client.close()
        cluster.stop_cluster_sync()

    return client.load_balanced_view(), close


ENGINES = [
    pytest.param(of_threads, id="threads"),
    pytest.param(of_processes, id="processes"),
    pytest.param(of_loky, id="loky", marks=needs("loky")),
    pytest.param(of_dask, id="dask", marks=needs("distributed")),
    pytest.param(of_submitit, id="submitit", marks=needs("submitit")),
    pytest.param(of_ipyparallel, id="ipyparallel", marks=needs("ipyparallel")),
]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("PYTHONPATH", path)
    opened = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "a.ipynb")
    yield opened
    opened.stop(now=True)
    opened.close()


@pytest.fixture
def engines(request: pytest.FixtureRequest, session: Session, tmp_path: Path) -> Iterator[Any]:
    on, close = request.param(tmp_path)
    yield on
    for crew in session.workers.crews:
        crew.stop(now=True)
    close()


@pytest.mark.parametrize("engines", ENGINES, indirect=True)
def test_tasks_run_on_whatever_runs_functions(engines: Any, session: Session) -> None:
    double = jn.task(cell("def double(x): return 2 * x", "double"))
    results = double.map(range(10))
    crew = session.execute(2, on=engines)
    assert crew.starting
    assert crew.messages(0)[0].endswith(": asked for 2 workers")
    assert results.result() == [2 * x for x in range(10)]
    wait_until(crew.store, lambda: crew.alive() == 2)
    assert session.execute(2, on=engines).messages(0)[0].endswith(": 2 workers are there already")
    crew.scale(1)
    wait_until(crew.store, lambda: crew.alive() == 1)
    assert double(11).result() == 22
    crew.stop()
    wait_until(crew.store, lambda: not crew.supervisors)
    assert not crew.starting


@pytest.mark.parametrize("engines", [ENGINES[1], ENGINES[4]], indirect=True)
def test_workers_there_read_what_only_the_mirror_of_the_session_has(
    engines: Any, session: Session, tmp_path: Path
) -> None:
    total_of_what_is_elsewhere(session, tmp_path, lambda: session.execute(1, on=engines))


@pytest.mark.parametrize("engines", [ENGINES[1], ENGINES[3], ENGINES[4]], indirect=True)
def test_of_workers_there_one_sends_the_line(engines: Any, session: Session, receiver: Receiver) -> None:
    sends_one_line(session, receiver, lambda target: session.execute(2, on=engines, notify=target))


def test_as_many_as_an_executor_can_run_by_default(session: Session) -> None:
    with ThreadPoolExecutor(3) as threads:
        crew = session.execute(on=threads)
        wait_until(crew.store, lambda: crew.alive() == 3)
        crew.scale(1)
        wait_until(crew.store, lambda: crew.alive() == 1)
        crew.scale(3)
        wait_until(crew.store, lambda: crew.alive() == 3)
        crew.stop()


def test_an_executor_that_was_closed_is_no_hindrance_to_a_stop(session: Session, tmp_path: Path) -> None:
    client, close = of_dask(tmp_path)
    crew = session.execute(1, on=client)
    assert jn.task(cell("def double(x): return 2 * x", "double"))(4).result() == 8
    close()
    session.stop(now=True)
    crew.stop(now=True)


@pytest.mark.parametrize("way", ["crew", "session"])
def test_workers_that_are_stopped_before_they_came_end(session: Session, way: str) -> None:
    with ThreadPoolExecutor(2) as threads:  # waits for what runs on it
        crew = session.execute(2, on=threads)
        (crew if way == "crew" else session).stop()
    assert not crew.supervisors


def test_workers_that_wait_in_a_queue_are_coming(session: Session) -> None:
    with ThreadPoolExecutor(1) as threads:
        crew = session.execute(2, on=threads)
        wait_until(crew.store, lambda: crew.alive() == 1)
        assert crew.starting  # the second waits for the first to end
        crew.scale(1)
        assert not crew.starting
        assert crew.alive() == 1
        crew.stop()


def test_an_engine_that_is_killed_takes_its_worker_along_and_the_task_is_run_again(
    session: Session, tmp_path: Path
) -> None:
    started, go = Fifo(tmp_path, "said"), Fifo(tmp_path, "said-go")
    task = jn.task(cell(SAY, "say"))(started.path)
    processes = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    crew = session.execute(1, on=processes)
    first = int(started.read_line())
    [engine] = processes._processes
    os.kill(engine, signal.SIGKILL)
    wait_until(crew.store, lambda: crew.alive() == 0)
    with ThreadPoolExecutor(1) as threads:
        other = session.execute(1, on=threads)
        assert int(started.read_line()) != first
        go.write_line("done")
        assert task.result() == "done"
        assert task.provenance()["run"]["attempt"] == 2
        other.stop()
    processes.shutdown()
    with pytest.raises(LaunchError, match="ProcessPoolExecutor: A process in the process pool was terminated abruptly"):
        assert crew.starting


@needs("distributed")
@pytest.mark.filterwarnings("ignore")
def test_a_dask_worker_that_is_killed_is_replaced_and_the_task_is_run_again(session: Session, tmp_path: Path) -> None:
    started, go = Fifo(tmp_path, "said"), Fifo(tmp_path, "said-go")
    client, close = of_dask(tmp_path)
    try:
        crew = session.execute(1, on=client)
        task = jn.task(cell(SAY, "say"))(started.path)
        first = int(started.read_line())
        [supervisor] = crew.supervisors
        os.kill(parent(supervisor.pid), signal.SIGKILL)
        assert int(started.read_line()) != first  # Dask ran the job again, on another of its workers
        go.write_line("done")
        assert task.result() == "done"
        crew.stop()
        wait_until(crew.store, lambda: not crew.supervisors)
    finally:
        close()


@needs("submitit")
def test_a_job_that_is_ended_is_a_dead_worker_and_no_failure(session: Session, tmp_path: Path) -> None:
    started, go = Fifo(tmp_path, "said"), Fifo(tmp_path, "said-go")
    executor, _ = of_submitit(tmp_path)
    crew = session.execute(1, on=executor)
    task = jn.task(cell(SAY, "say"))(started.path)
    worker = int(started.read_line())
    [supervisor] = crew.supervisors
    for pid in (worker, supervisor.pid, parent(supervisor.pid)):  # as Slurm does: all of the job, in no order
        os.kill(pid, signal.SIGTERM)
    wait_until(crew.store, lambda: task.state is State.READY)
    wait_until(crew.store, lambda: crew.alive() == 0)
    with ThreadPoolExecutor(1) as threads:
        other = session.execute(1, on=threads)
        started.read_line()
        go.write_line("done")
        assert task.result() == "done"
        other.stop()


@needs("submitit")
def test_no_key_lies_in_the_folder_of_a_batch_system(session: Session, tmp_path: Path) -> None:
    executor, _ = of_submitit(tmp_path)
    crew = session.execute(1, on=executor)
    wait_until(crew.store, lambda: crew.alive() == 1)
    secret = keyring.secret(session.identity)
    written = [path.read_bytes() for path in (tmp_path / "slurm").rglob("*") if path.is_file()]
    assert written
    assert not any(secret in data or secret.hex().encode() in data for data in written)


def test_a_job_shows_no_key_and_reports_why_it_cannot_start(session: Session) -> None:
    request = Request(system.python(), jn.__version__, "file:/no/where", session.identity, secret="ab" * 32, stay=True)
    job = pool.WorkerJob(request)
    assert "ab" not in repr(job)
    with pytest.raises(LaunchError, match=r"sees no store at /no/where; mount that folder there"):
        job()


def test_a_crew_of_which_nothing_came_says_why(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "VERSION", "9.9")
    with ThreadPoolExecutor(1) as threads:
        crew = session.execute(1, on=threads)
        with pytest.raises(LaunchError, match=r"ThreadPoolExecutor: .*no worker could start"):
            wait_until(crew.store, lambda: not crew.starting)


def test_what_can_not_run_workers_is_refused_by_name(session: Session) -> None:
    with pytest.raises(LaunchError, match=r"int 3 can't run workers: it has no submit\(\)"):
        session.execute(1, on=3)
    with pytest.raises(LaunchError, match="brings its own hosts"):
        session.execute(1, on=3, hosts=["a"])
    with pytest.raises(LaunchError, match="lives in this process alone"):
        jn.connect("memory:").execute(1, on=ThreadPoolExecutor(1))


@needs("submitit")
def test_a_queue_can_not_tell_how_many_it_takes(session: Session, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="local doesn't report how many workers it can run; give a number: -n N"):
        session.execute(on=of_submitit(tmp_path)[0])


@pytest.mark.parametrize("kind", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_a_process_ends_although_workers_are_on_its_executor(session: Session, tmp_path: Path, kind: str) -> None:
    script = (
        "import concurrent.futures, jug_notebook as jn\n"
        "if __name__ == '__main__':\n"
        f"    jn.connect({session.url!r})\n"
        f"    executor = concurrent.futures.{kind}(1)\n"
        "    crew = jn.execute(1, on=executor)\n"
        "    while not crew.alive(): crew.store.watch(-1, 0.05)\n"
        "    print(crew.workers[0].pid)\n"
    )
    (tmp_path / "script.py").write_text(script)
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE * 2, check=True
    )
    pid = int(ran.stdout)
    wait_until(session.access.store, lambda: system.born(pid) is None)


@needs("submitit")
def test_jobs_of_submitit_are_submitted_in_one_array_and_other_parameters_are_another_crew(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = importlib.import_module("submitit")
    calls: list[int] = []
    real = submitit.LocalExecutor._internal_process_submissions

    def counted(self: Any, submissions: list[Any]) -> list[Any]:
        calls.append(len(submissions))
        jobs: list[Any] = real(self, submissions)
        return jobs

    monkeypatch.setattr(submitit.LocalExecutor, "_internal_process_submissions", counted)
    short, long = (submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local") for _ in range(2))
    short.update_parameters(timeout_min=5)
    long.update_parameters(timeout_min=60)
    assert pool.adapter_of(short).name != pool.adapter_of(long).name
    crew = session.execute(3, on=short)
    wait_until(session.access.store, lambda: crew.alive() == 3)
    assert calls == [3]
    crew.stop(now=True)
    wait_until(session.access.store, lambda: all(f.done() for some in pool._open.values() for f in some.values()))
    assert not crew.is_starting


def test_what_an_executor_refuses_is_a_launch_error_with_its_last_line(session: Session) -> None:
    class Refusing:
        def submit(self, job: object) -> object:
            raise RuntimeError("a trace:\n-----\nsbatch: error: Invalid partition\n")

    with pytest.raises(LaunchError, match=r"^Refusing: sbatch: error: Invalid partition$"):
        session.execute(2, on=Refusing())
