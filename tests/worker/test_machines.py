"""What a machine is to the store: it dies hard and comes back under its name, and it has so many cores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from jug_notebook import system
from jug_notebook.clock import CLOCK
from jug_notebook.model import LEASE
from jug_notebook.store import Store, open_store
from jug_notebook.worker.crew import first_of_crew
from tests.servers import Server
from tests.workbench import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def no_namespaces() -> str:
    """Return why this machine makes no pid namespaces; empty where it does."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"this machine makes no pid namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(params=["file", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file:{tmp_path}/jugdata"
    server: Server = request.getfixturevalue("redis_server")
    return server.url()


PROGRAM = """
import jug_notebook as jn, os, signal, sys
jn.connect(sys.argv[1])
@jn.task
def g(x): return x + 1
crew = jn.execute(1)
print(g(int(sys.argv[2])).result(timeout=25), crew.size, flush=True)
if sys.argv[3:]: os.kill(-1, signal.SIGKILL)
"""


def in_namespace(folder: Path, *words: str) -> str:
    """Run the program in a pid namespace of its own; return what it printed."""
    (folder / "program.py").write_text(PROGRAM)
    ran = subprocess.run(
        [*UNSHARE, sys.executable, "program.py", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=3 * PATIENCE,
    )  # fmt: skip
    return ran.stdout.strip() or ran.stderr


def test_a_machine_that_died_hard_and_came_back_gets_workers_at_once(url: str, tmp_path: Path) -> None:
    if reason := no_namespaces():
        pytest.skip(reason)
    assert in_namespace(tmp_path, url, "1", "die") == "2 1"
    # one more namespace, so that the next gets another number, as after a boot
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "100"]) as holder:
        before = time.monotonic()
        assert in_namespace(tmp_path, url, "2") == "3 1"
        assert time.monotonic() - before < LEASE / 2
        holder.kill()


def ghost(store: Store) -> None:
    """Leave the record of a supervisor of this host's name that died with its machine."""
    store.renew([system.me("supervisor", machine="00000000", crew="c", size=2, beat=9)])


def test_a_record_of_this_host_from_before_counts_only_while_it_is_fresh_and_never_for_starting(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "FRESH", 0.2)
    writer = open_store(url)
    ghost(writer)
    me = system.me("supervisor", crew="c")
    reader = open_store(url)
    beats: dict[str, int] = {}
    assert first_of_crew("c", me, reader.processes(), beats) == me
    [(info, _, _)] = reader.processes()
    until = time.monotonic() + PATIENCE
    while reader.processes()[0][1]:
        assert time.monotonic() < until, "it counts as alive for ever"
        reader.watch(-1, 0.0)
        time.sleep(0.05)
    assert first_of_crew("c", me, reader.processes(), beats) == me
    writer.renew([msgspec.structs.replace(info, beat=10)])
    assert [alive for _, alive, _ in reader.processes()] == [True]
    assert first_of_crew("c", me, reader.processes(), beats).id == info.id, "it lives, in a container of this name"
    for store in (reader, writer):
        store.close()


def test_how_long_ago_a_process_was_last_seen_counts_from_its_files_time_not_from_the_first_look(
    tmp_path: Path,
) -> None:
    writer = open_store(f"file:{tmp_path}/jugdata")
    elsewhere = system.me("worker", machine="00000000", host="elsewhere")
    writer.renew([elsewhere])
    now = CLOCK.now()
    os.utime(tmp_path / "jugdata/workers" / elsewhere.id, (now - 20, now - 20))
    [(_, alive, silent)] = open_store(f"file:{tmp_path}/jugdata").processes()
    assert alive
    assert 19 < silent < 25
    os.utime(tmp_path / "jugdata/workers" / elsewhere.id, (now - 90, now - 90))
    reader = open_store(f"file:{tmp_path}/jugdata")
    [(_, alive, silent)] = reader.processes()
    assert not alive
    assert 89 < silent < 95
    writer.renew([msgspec.structs.replace(elsewhere, beat=1)])
    [(_, alive, silent)] = reader.processes()
    assert alive
    assert silent < 5


# -- cores -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a file system with control groups of both versions."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may use eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)


def write(root: Path, path: str, text: str) -> None:
    file = root / "sys/fs/cgroup" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_cores_are_the_least_of_affinity_slurm_and_quotas(root: Path, eight: None) -> None:
    groups = root / "proc/self/cgroup"
    assert system.cores({}, root) == 8, "no control groups"
    assert system.cores({"SLURM_CPUS_PER_TASK": "3"}, root) == 3
    assert system.cores({"SLURM_CPUS_PER_TASK": "64"}, root) == 8
    groups.write_text("0::/user/job\n")
    write(root, "user/job/cpu.max", "max 100000\n")
    assert system.cores({}, root) == 8
    write(root, "user/cpu.max", "250000 100000\n")
    assert system.cores({}, root) == 3, "the quota of the group above, 2.5 cores"
    write(root, "user/job/cpu.max", "50000 100000\n")
    assert system.cores({}, root) == 1
    groups.write_text("0::/\n")
    assert system.cores({}, root) == 8
    write(root, "cpu.max", "200000 100000\n")
    assert system.cores({}, root) == 2, "a container sees its own group as the topmost"


def test_cores_heed_quotas_of_control_groups_of_version_1(root: Path, eight: None) -> None:
    (root / "proc/self/cgroup").write_text("4:cpu,cpuacct:/docker/ab\n3:cpuset:/docker/ab\n1:name=systemd:/\n")
    write(root, "cpu,cpuacct/docker/ab/cpu.cfs_period_us", "100000\n")
    write(root, "cpu,cpuacct/docker/ab/cpu.cfs_quota_us", "-1\n")
    assert system.cores({}, root) == 8
    write(root, "cpu,cpuacct/docker/ab/cpu.cfs_quota_us", "400000\n")
    assert system.cores({}, root) == 4
    write(root, "cpu/cpu.cfs_period_us", "100000\n")  # as a container sees its own group
    write(root, "cpu/cpu.cfs_quota_us", "200000\n")
    assert system.cores({}, root) == 2


def test_a_process_in_a_real_control_group_with_a_quota_counts_its_cores(tmp_path: Path) -> None:
    count = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jug_notebook.system import cores; print(cores({{}}))"
    name = f"jug-{uuid4().hex[:8]}"
    if (version1 := Path("/sys/fs/cgroup/cpu") / name).parent.is_dir():
        quota, text, made = "cpu.cfs_quota_us", "100000", version1
    else:
        quota, text, made = "cpu.max", "100000 100000", Path("/sys/fs/cgroup") / name
    try:
        made.mkdir()
        (made / quota).write_text(text)
    except OSError as error:
        pytest.skip(f"no control group with a quota can be made here: {error}")
    try:
        enter = f'echo $$ > {made}/cgroup.procs && exec "$@"'
        assert (
            subprocess.run(
                ["sh", "-c", enter, "sh", sys.executable, "-c", count], capture_output=True, text=True, check=True
            ).stdout
            == "1\n"
        )
    finally:
        made.rmdir()
