"""Workers as jobs of a real Slurm of one node, which is started for these tests and ended after them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook.errors import LaunchError, NoWorkers
from jug_notebook.launch import slurm, slurm_jobs
from jug_notebook.model import FunctionView, Snapshot, State, WorkerInfo, WorkerView
from jug_notebook.session import Session
from jug_notebook.store import keyring
from jug_notebook.worker import WorkerOptions
from tests.crews import sends_one_line, total_of_what_is_elsewhere
from tests.servers import Receiver, Server, free_port
from tests.workbench import PATIENCE, Fifo, cell, wait_until

CPUS = 4
CONF = """
ClusterName=jn
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={other_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,requeue_setup_env_fail
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=2
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if os.getuid() != 0:
        return "slurmd needs root"
    programs = ("sbatch", "slurmctld", "slurmd", "munged")
    gone = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"{', '.join(gone)} not installed: make slurm" if gone else ""


pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.slow, pytest.mark.timeout(120)]

ADD = "def add(i):\n    return i + 1"
WAIT = """
def wait(folder):
    job = open("/proc/self/environ").read().partition("SLURM_JOB_ID=")[2].partition("\\0")[0]
    with open(f"{folder}/began", "w") as began: began.write(f"{job}\\n")
    with open(f"{folder}/go") as go: return go.readline().strip()
"""


def until(reached: Callable[[], Any], otherwise: Callable[[], object] = str, patience: float = PATIENCE) -> None:
    """Slurm gives no events: look again and again."""
    end = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.1)


def munge_works() -> bool:
    return subprocess.run(["munge", "-n"], capture_output=True).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("spool", "state"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, port=free_port(), other_port=free_port(), cpus=CPUS))
    path = f"{os.environ['PATH']}:/usr/sbin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", path)
        of_ours = None
        if not munge_works():
            subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
            command = ["setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups", "munged", "-F", "-f"]
            of_ours = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            until(munge_works)
        daemons = [subprocess.Popen([name, "-D", "-f", str(conf)], stderr=subprocess.DEVNULL) for name in
                   ("slurmctld", "slurmd")]  # fmt: skip
        try:
            until(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout)
            yield folder
        finally:
            subprocess.run(["scancel", "--user=root"], check=False)
            with suppress(AssertionError):
                until(lambda: not slurm.run("squeue", "-h"), patience=10)
            for daemon in filter(None, (*reversed(daemons), of_ours)):
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(20)


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], Session]]:
    """Opens sessions on one store, as kernels of one notebook do, one after the other."""
    opened: list[Session] = []

    def connect() -> Session:
        opened.append(jn.connect(tmp_path / "jugdata", notebook=tmp_path / "a.ipynb"))
        return opened[-1]

    yield connect
    for session in opened[:-1]:
        session.close()
    session = opened[-1]
    session.stop(now=True)
    names = {crew.name for crew in session.workers.crews}
    until(lambda: not any(not job.ended for name in names for job in slurm.jobs_named(name)))
    session.close()


@pytest.fixture
def session(connect: Callable[[], Session]) -> Session:
    return connect()


def group_of(crew: Any) -> slurm.SlurmGroup:
    group = crew.groups[0]
    assert isinstance(group, slurm.SlurmGroup)
    return group


def states(crew: Any) -> list[str]:
    return sorted(job.state for job in slurm.jobs_named(crew.name))


def test_twenty_jobs_are_one_array_whose_script_and_processes_show_neither_key_nor_url(
    session: Session, tmp_path: Path
) -> None:
    began = time.monotonic()
    crew = session.execute(20, slurm={"walltime": "10min"})
    assert time.monotonic() - began < 1
    (array,) = {job.id.partition("_")[0] for job in slurm.jobs_named(crew.name)}
    assert crew.messages(0) == [f"Slurm: submitted 20 jobs ({array}_[0-19])"]
    add = jn.task(cell(ADD, "add"))
    assert [add(i).result() for i in range(20)] == list(range(1, 21))
    wait_until(session.access.store, lambda: crew.alive() == CPUS)
    for job in [job for job in slurm.jobs_named(crew.name) if job.state == "RUNNING"]:
        array_id, _, index = job.id.partition("_")
        left = slurm_jobs.time_left({"SLURM_ARRAY_JOB_ID": array_id, "SLURM_ARRAY_TASK_ID": index})
        assert left is not None
        assert 500 < left <= 600
    key = keyring.secret(session.access.store.id).hex()
    visible = slurm.run("scontrol", "show", "job", f"{array}_0") + slurm.run(
        "scontrol", "write", "batch_script", f"{array}_0", "-"
    )
    supervisor = crew.supervisors[0]
    visible += Path(f"/proc/{supervisor.pid}/cmdline").read_text()
    assert key not in visible
    assert key not in group_of(crew).file.read_text()
    assert crew.name in visible
    assert group_of(crew).file.stat().st_mode & 0o777 == 0o600
    assert {view.info.place for view in session.status().workers} <= {f"Slurm {array}_{i}" for i in range(20)}


def test_jobs_read_what_only_the_mirror_of_the_session_has(session: Session, tmp_path: Path) -> None:
    total_of_what_is_elsewhere(session, tmp_path, lambda: session.execute(1, slurm={"walltime": "10min"}))


def test_of_several_jobs_one_sends_the_line(session: Session, receiver: Receiver, cluster: Path) -> None:
    sends_one_line(
        session,
        receiver,
        lambda target: session.execute(2, slurm={"walltime": "10min"}, notify=target),
        elsewhere=[cluster],
    )


def test_pending_jobs_are_starting_with_reason_and_id_and_stop_cancels_them(session: Session) -> None:
    crew = session.execute(CPUS + 3, slurm={"walltime": 600})
    wait_until(session.access.store, lambda: crew.alive() == CPUS)
    until(lambda: any("(Resources)" in note or "(Priority)" in note for note in session.status().notes), session.status)
    snapshot = session.status().snapshot
    assert (snapshot.alive, snapshot.starting) == (CPUS, 3)
    assert any(note.startswith("Slurm: 3 jobs pending (") and "in short: " in note for note in snapshot.notes)
    assert session.stop() == CPUS
    assert session.workers.stopped[0].startswith("cancelled 3 Slurm jobs (")
    until(lambda: set(states(crew)) == {"CANCELLED", "COMPLETED"}, lambda: states(crew))
    assert session.status().snapshot.starting == 0
    assert not list(group_of(crew).file.parent.glob("*_*.log"))  # they had nothing to report


def test_a_new_kernel_finds_pending_jobs_doubles_none_and_can_cancel_them(connect: Callable[[], Session]) -> None:
    first = connect()
    crew = first.execute(2, slurm={"walltime": 600, "options": "begin=now+600"})
    first.close()
    second = connect()
    assert second.status().snapshot.starting == 2
    until(lambda: any("pending (BeginTime)" in note for note in second.status().notes), second.status)
    again = second.execute(2, slurm={"walltime": 600, "options": ["begin=now+600"]})
    assert again.messages(0) == ["Slurm: 2 jobs are there already"]
    assert states(crew) == ["PENDING"] * 2
    more = second.execute(3, slurm={"walltime": 600, "options": ["begin=now+600"]})
    assert "submitted 1 job more: 3 in all" in more.messages(0)[0]
    other = second.execute(1, slurm={"walltime": 600, "partition": "high", "options": ["begin=now+600"]})
    assert other.name != crew.name
    second.close()
    third = connect()
    assert third.stop() == 0
    assert len(third.workers.stopped) == 2
    until(lambda: set(states(crew)) == {"CANCELLED"}, lambda: states(crew))


def test_jobs_that_somebody_cancelled_are_no_longer_waited_for(session: Session) -> None:
    crew = session.execute(1, slurm={"options": "begin=now+600"})
    add = jn.task(cell(ADD, "add"))
    task = add(1)
    assert session.status().snapshot.starting == 1
    slurm.run("scancel", f"--name={crew.name}")
    until(lambda: session.status().snapshot.starting == 0, session.status)
    with pytest.raises(NoWorkers):
        task.result()


def test_what_slurm_refuses_is_one_line_with_the_way_out(session: Session) -> None:
    with pytest.raises(
        LaunchError, match=r"sbatch failed: .*invalid partition specified: nope|Invalid partition"
    ) as no:
        session.execute(2, slurm={"partition": "nope"})
    assert "\n" not in str(no.value)
    assert "--partition" in str(no.value)
    with pytest.raises(LaunchError, match="how many jobs"):
        session.execute(slurm=True)
    slips = ({"wall": 1}, "wall"), ({"walltime": "2 weeks"}, "length of time"), (3, "dict"), ({"up_to": 0.5}, "up_to")
    for given, complaint in slips:
        with pytest.raises(LaunchError, match=complaint):
            session.execute(1, slurm=given)  # type: ignore[arg-type]


def test_a_job_that_can_start_no_worker_fails_with_the_last_line_of_its_log(session: Session) -> None:
    crew = session.execute(1, slurm={"walltime": 600}, setup="echo no module named lost >&2; false")
    task = jn.task(cell(ADD, "add"))(1)
    with pytest.raises(LaunchError, match=r"^Slurm job \d+_0: no module named lost$"):
        task.result()
    assert crew.failures


def test_a_preempted_job_is_coming_again_and_its_task_runs_once_more(session: Session, tmp_path: Path) -> None:
    began, go = Fifo(tmp_path, "began"), Fifo(tmp_path, "go")
    crew = session.execute(1, slurm={"walltime": 600, "options": [f"cpus-per-task={CPUS}"]})
    task = jn.task(cell(WAIT, "wait"))(str(tmp_path))
    job = began.read_line()
    command = ["--partition=high", f"--cpus-per-task={CPUS}", "--parsable", "--output=/dev/null"]
    rival = slurm.run("sbatch", *command, script="#!/bin/sh\nsleep 600\n").strip()
    until(lambda: any("pending" in note for note in session.status().notes), session.status)
    assert session.status().snapshot.starting == 1
    assert task.state is State.READY
    slurm.run("scancel", rival)

    def due_again() -> bool:
        with suppress(LaunchError):  # Slurm lets a requeued job wait for two minutes, and needs one second
            slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
            return True
        return False

    until(due_again)
    until(lambda: states(crew) == ["RUNNING"], lambda: states(crew))
    assert began.read_line() == job
    go.write_line("gone on")
    assert task.result() == "gone on"
    assert (crew.failures, session.status().counts[State.FAILED]) == ([], 0)


def test_a_task_that_the_walltime_ends_has_not_failed(session: Session, tmp_path: Path) -> None:
    began, go = Fifo(tmp_path, "began"), Fifo(tmp_path, "go")
    session.execute(1, slurm={"walltime": 600})
    task = jn.task(cell(WAIT, "wait"))(str(tmp_path))
    job = began.read_line()
    slurm.run("scancel", "--signal=TERM", "--full", job)  # what the walltime does, too: to all processes of the job
    wait_until(session.access.store, lambda: task.state is State.READY)
    session.execute(1, slurm={"walltime": 600, "mem": "100M"})
    assert began.read_line() != job
    go.write_line("done")
    assert task.result() == "done"


def test_a_task_that_would_outlive_its_job_is_not_started_there(session: Session) -> None:
    assert session.execute(1, slurm={"walltime": 600}, max_time=600).messages(0)
    nap = jn.task(cell("import time\ndef nap(i, s):\n    time.sleep(s)", "nap"))
    nap(0, 1.5).result()
    session.stop()
    short = session.execute(1, slurm={"walltime": 600}, max_time=1)
    task = nap(1, 0.0)
    wait_until(session.access.store, lambda: short.alive() == 1)
    until(lambda: states(short) == ["COMPLETED"], lambda: states(short))
    assert task.state is State.READY


def test_jobs_grow_with_the_work_and_end_when_idle_while_the_notebook_is_closed(connect: Callable[[], Session]) -> None:
    session = connect()
    crew = session.execute(slurm={"walltime": 600, "up_to": 3}, idle_timeout=1)
    assert crew.messages(0) == ["Slurm: up to 3 jobs as work comes"]
    nap = jn.task(cell("import time\ndef nap(i):\n    time.sleep(0.5)\n    return i", "nap"))
    tasks = [nap(i) for i in range(200)]
    session.submissions.flush()
    name = crew.name
    session.close()  # it grows without a notebook, and shrinks without one
    until(lambda: sum(job.state == "RUNNING" for job in slurm.jobs_named(name)) == 3, lambda: states(crew))
    session = connect()
    session.cancel(nap)
    until(lambda: all(job.ended for job in slurm.jobs_named(name)), lambda: states(crew))
    assert len(tasks) == 200
    assert session.stop() == 0
    assert session.workers.stopped == ["no more Slurm jobs will be submitted"]


def test_a_refusing_queue_is_asked_again_after_a_while_and_the_status_has_its_reason(session: Session) -> None:
    session.execute(slurm={"walltime": 600, "up_to": 3, "partition": "nope"})
    jn.task(cell(ADD, "add"))(1)
    until(lambda: any("next try in" in note and "artition" in note for note in session.status().notes), session.status)


def test_the_jobs_of_a_redis_store_read_its_url_and_its_key_from_the_same_home(
    redis_server: Server, tmp_path: Path
) -> None:
    session = jn.connect(redis_server.url(), notebook=tmp_path / "a.ipynb")
    crew = session.execute(1, slurm={"walltime": 600})
    assert jn.task(cell(ADD, "add"))(1).result() == 2
    assert redis_server.url() not in slurm.run("scontrol", "show", "job", crew.supervisors[0].crew.rpartition("#")[2])
    session.stop(now=True)
    until(lambda: set(states(crew)) <= slurm.ENDED)
    session.close()


def test_doctor_and_command_line_know_slurm(session: Session, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        command = [sys.executable, "-m", "jug_notebook", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        return done.stdout + done.stderr

    assert "takes jobs; partitions high, short*" in run("doctor", "jugdata")
    tasks = [jn.task(cell(ADD, "add"))(i) for i in range(3)]
    session.submissions.flush()
    output = run("execute", "--slurm", "-n", "2", "--walltime", "10min", "--slurm-option", "comment=ours", "jugdata")
    assert "Slurm: submitted 2 jobs (" in output
    assert [task.result() for task in tasks] == [1, 2, 3]


# -- decisions, which need no Slurm ------------------------------------------------------------------------------------


def test_ids_are_written_as_slurm_does() -> None:
    jobs = [slurm.Job(id, "PENDING", "None", "short") for id in ("7_3", "7_0", "7_1", "9_4", "12")]
    assert slurm.id_ranges(jobs) == "7_[0-1,3] 9_4 12_0"


def test_as_many_jobs_are_wanted_as_run_what_is_ready_in_half_a_minute() -> None:
    def snapshot(mean: float | None, *since: float) -> Snapshot:
        workers = tuple(
            WorkerView(WorkerInfo(str(i), "worker", "u", "h", 1, 1, "3", 0, task_name="f", since=began), True, 0)
            for i, began in enumerate(since)
        )
        return Snapshot("", 1000.0, "", (FunctionView("f", {}, mean),), workers)

    def want(mean: float | None, ready: int, *since: float, busy: int = 0, most: int = 200, longest: float = 0) -> int:
        return slurm_jobs.wanted(snapshot(mean, *since), {"f": ready}, busy, most, longest)

    assert want(0.001, 10_000) == 1
    assert want(3.0, 200) == 20
    assert want(3600.0, 10) == 10
    assert want(3600.0, 1000, busy=5) == 200
    assert want(3600.0, 10, busy=5) == 15
    assert want(None, 300) == 10
    assert want(None, 300, 1000.0 - 60) == 200  # one has run for a minute already
    assert want(3600.0, 10, longest=1800) == 0
    assert slurm_jobs.too_long(snapshot(3600.0), {"f": 10}, 1800) == (
        "no job is long enough for f(), which takes about 1 h: give a longer --walltime"
    )
    assert not slurm_jobs.too_long(snapshot(3600.0), {"f": 0}, 1800)
    assert want(3.0, 0, busy=4) == 4


def test_requests_for_other_jobs_are_other_crews(tmp_path: Path) -> None:
    store = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "a.ipynb").access.store
    names = {
        slurm.plan_of(store, WorkerOptions(size), slurm.settings_of(given)).name
        for size in (1, 2)
        for given in ({"mem": "4G"}, {"mem": "4G", "up_to": 8}, {"partition": "high"}, {"gpus": 1})
    }
    assert len(names) == 3
