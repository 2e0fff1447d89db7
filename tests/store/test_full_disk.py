"""A store on a disk that is full, can't be written, or fails: finished work stays in view, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.errors import StoreError
from jug_notebook.model import State
from jug_notebook.session import Session
from jug_notebook.store import lacks_room, open_store
from tests.faults import ALL, MAKE, READ, SYNC, WRITE, Faults
from tests.kernels import ROOT, Kernel
from tests.store.test_outages import NOTES, counts_in, crew_at
from tests.workbench import Fifo, Submitter, is_readable, wait_until


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    tried = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "jug", folder], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk to its last byte, with a file."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return disk / "filler"


def test_a_notebook_on_a_full_disk_shows_what_there_is_and_submits_the_rest_when_there_is_room(
    disk: Path, tmp_path: Path
) -> None:
    kernel = Kernel(tmp_path, JUG_STORE=f"{disk}/jugdata", JUG_NOTEBOOK_DISPLAY="text")
    try:
        kernel.run("%load_ext kernel_ext")
        kernel.run("%%jugtask\ndef g(x):\n    print('hello')\n    return x + 1")
        assert kernel.run("a = g(1)\n%jug_execute -n 1\na.result()").result == "2"
        filler = fill(disk)
        refused = kernel.run("ts = [g(x) for x in range(1500)]")
        assert not refused.error
        assert refused.traceback.startswith("StoreError: 1,500 tasks not submitted yet: can't write to ")
        for cell, seen in (
            ("%jug_status", "1 finished"),
            ("print(a.value())", "2"),
            ("%jug_log g", "hello"),
            ("1 + 1", ""),
        ):
            reply = kernel.run(cell)
            assert seen in reply.out, reply
            assert "Error in callback" not in reply.out
            assert len(reply.traceback.splitlines()) == 1, "one line a cell"
        assert "not submitted yet" in kernel.run("ts[7].result()").message
        filler.unlink()
        assert kernel.run("ts[7].result(), ts[-1].result()").result == "(8, 1500)"
        assert kernel.run("1 + 1").traceback == ""
    finally:
        kernel.run("%jug_stop --now")
        kernel.manager.shutdown_kernel(now=True)


def test_workers_that_wait_for_room_show_in_the_status_and_go_on(disk: Path, tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, JUG_STORE=f"{disk}/jugdata", JUG_NOTEBOOK_DISPLAY="text")
    try:
        kernel.run("%load_ext kernel_ext")
        kernel.run("%%jugtask\ndef big(x):\n    import os\n    return os.urandom(300_000)")
        kernel.run("ts = [big(x) for x in range(12)]\n%jug_execute -n 2")
        status = (
            "import jug_notebook as jn, time\nuntil = time.monotonic() + 20\n"
            "while not (notes := jn.status().snapshot.notes) and time.monotonic() < until: time.sleep(0.05)\n"
            "notes"
        )
        notes = kernel.run(status).result
        assert "wait for room on file:" in notes or "waits for room on file:" in notes
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert kernel.run("len(jn.bvalue(ts))").result == "12"
    finally:
        kernel.run("%jug_stop --now")
        kernel.manager.shutdown_kernel(now=True)


def test_a_result_larger_than_its_disk_is_named_with_the_room_that_it_needs(disk: Path, tmp_path: Path) -> None:
    opened = jn.connect(f"file:{disk}/jugdata", notebook=tmp_path / "study.ipynb")
    store, tasks = opened.access.store, Submitter(opened.access.store, tmp_path)
    with crew_at(opened, 1):
        key = tasks.submit("def f():\n    import os\n    return os.urandom(5_000_000)")
        named = f"f {key[:8]} waits for room in the store: No space left on device (5.0 MB needed, "
        wait_until(store, lambda: any(note.startswith(named) for note in store.snapshot().notes), "it isn't named")
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert len(tasks.value(key)) == 5_000_000
        wait_until(store, lambda: not any("waits" in note for note in store.snapshot().notes))
    opened.close()


def test_compacting_on_a_full_disk_is_refused_in_one_line_and_works_once_there_is_room(disk: Path) -> None:
    url = f"file:{disk}/jugdata"
    for number in range(3):
        writer = open_store(url)
        Submitter(writer, disk).submit(f"def f(): return {number}")
        writer.close()
    filler = fill(disk)
    command = [sys.executable, "-m", "jug_notebook", "pack", f"{disk}/jugdata"]
    environ = {**os.environ, "PYTHONPATH": ROOT}
    for _ in range(2):
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
        assert ran.returncode
        assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr
        assert "No space left on device" in ran.stderr
    assert not (disk / "jugdata/compacting").exists()
    filler.unlink()
    subprocess.run(command, env=environ, check=True, timeout=60)
    assert list((disk / "jugdata/sealed").iterdir())


def test_a_worker_that_dies_on_a_full_disk_takes_nobody_with_it(disk: Path, tmp_path: Path) -> None:
    opened = jn.connect(f"file:{disk}/jugdata", notebook=tmp_path / "study.ipynb")
    tasks = Submitter(opened.access.store, tmp_path)
    fifo, go = Fifo(tmp_path), Fifo(tmp_path, "go")
    source = (
        "import os, signal\ndef f(path, go):\n    with open(path, 'w') as fifo: fifo.write('here\\n')\n"
        "    with open(go) as fifo: word = fifo.readline()\n"
        "    if word == 'die\\n': os.kill(os.getpid(), signal.SIGKILL)\n    return 1\n"
    )
    with crew_at(opened, 2) as crew:
        [supervisor], before = crew.supervisors, {info.id for info in crew.workers}
        key = tasks.submit(source, fifo.path, go.path)
        assert fifo.read_line() == "here"
        filler = fill(disk)
        end = os.pidfd_open(supervisor.pid)
        go.write_line("die")
        assert not is_readable(end, 2.5), "the supervisor ended"
        os.close(end)
        filler.unlink()
        assert fifo.read_line() == "here"
        go.write_line("")
        assert tasks.value(key) == 1
        assert [info.id for info in crew.supervisors] == [supervisor.id]
        assert len(before & {info.id for info in crew.workers}) == 1
    opened.close()


def test_a_store_that_can_only_be_read_can_be_looked_at(disk: Path) -> None:
    program = (
        "import jug_notebook as jn\njn.connect('jugdata')\n@jn.task\ndef g(x):\n    print('hello')\n    return x + 1\n"
        "a = g(1)\njn.execute(here=True)\nprint(a.value())"
    )
    (disk / "program.py").write_text(program)
    environ = {**os.environ, "PYTHONPATH": ROOT}
    subprocess.run([sys.executable, "program.py"], cwd=disk, env=environ, check=True, timeout=60)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for words, seen in ((["status"], "1 of 1 finished"), (["log", "g"], "hello"), (["check"], "1 of 1 finished")):
        ran = subprocess.run(
            [sys.executable, "-m", "jug_notebook", *words], cwd=disk, env=environ, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert seen in ran.stdout, ran.stderr
    ran = subprocess.run(
        [sys.executable, "-m", "jug_notebook", "worker", "jugdata", "-n", "1"], cwd=disk, env=environ,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode
    assert len(ran.stderr.strip().splitlines()) == 1


# -- a file system that refuses for a moment ---------------------------------------------------------------------------


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """What befalls the workers of this test, and not the test itself."""
    made = Faults(tmp_path, tmp_path / "jugdata")
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    opened = jn.connect(f"file:{tmp_path}/jugdata", notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()


def assert_once(ran: Path) -> None:
    repeated = {name: count for name, count in counts_in(ran).items() if count > 1}
    assert not repeated, f"{len(repeated)} ran again"


def finish(session: Session, tasks: Submitter, keys: list[str]) -> list[int]:
    """The values of all tasks, once there are so many."""
    wait_until(session.access.store, lambda: set(session.access.store.states(keys)) == {State.FINISHED}, patience=60)
    return [tasks.value(key) for key in keys]


REFUSALS = {
    "claims": (MAKE, errno.EPERM, "claims"),
    "all folders": (MAKE | WRITE | SYNC, errno.EROFS, ""),
    "a disk": (ALL, errno.EIO, ""),
    "a server's handles": (ALL, errno.ESTALE, ""),
}


@pytest.mark.parametrize("refused", REFUSALS)
def test_workers_wait_for_a_file_system_that_refuses_and_say_so_and_nothing_runs_twice(
    refused: str, faults: Faults, session: Session, tmp_path: Path
) -> None:
    kinds, error, under = REFUSALS[refused]
    store, tasks, ran = session.access.store, Submitter(session.access.store, tmp_path), tmp_path / "ran"
    with crew_at(session, 2) as crew:
        before = {info.id for info in (*crew.workers, *crew.supervisors)}
        keys = [tasks.submit(NOTES, str(ran), x) for x in range(20)]
        wait_until(store, lambda: len(counts_in(ran)) > 3)
        with faults.during(kinds, error, under=under):
            keys += [tasks.submit(NOTES, str(ran), x) for x in range(20, 40)]
            if under:  # heartbeats can be written
                waits = f"waits for the store: {os.strerror(error)}"
                wait_until(store, lambda: any(waits in note for note in store.snapshot().notes), "it doesn't say so")
            wait_until(store, lambda: faults.failed > 60, "nobody tries again")  # for more than 3 seconds
        assert finish(session, tasks, keys) == [x * x for x in range(40)]
        assert {info.id for info in (*crew.workers, *crew.supervisors)} == before
    assert_once(ran)


NOW_AND_THEN = {
    "syncs": (SYNC, errno.EIO, 7),
    "any call": (ALL, errno.EIO, 25),
    "names": (READ | MAKE, errno.ESTALE, 40),
}


@pytest.mark.parametrize("failing", NOW_AND_THEN)
def test_calls_that_fail_now_and_then_end_no_worker_and_repeat_nothing(
    failing: str, faults: Faults, session: Session, tmp_path: Path
) -> None:
    tasks, ran = Submitter(session.access.store, tmp_path), tmp_path / "ran"
    large = NOTES.replace("x * x", "bytes(1_500_000) + bytes([x])")
    with crew_at(session, 2) as crew, faults.during(*NOW_AND_THEN[failing]):
        before = {info.id for info in (*crew.workers, *crew.supervisors)}
        keys = [tasks.submit(large, str(ran), x) for x in range(100)]
        values = finish(session, tasks, keys)
        assert [value[-1] for value in values] == list(range(100))
        assert faults.failed > 20
        assert {info.id for info in (*crew.workers, *crew.supervisors)} == before
    assert_once(ran)


def test_a_store_that_is_moved_away_and_back_is_waited_for(session: Session, tmp_path: Path) -> None:
    store, tasks, ran = session.access.store, Submitter(session.access.store, tmp_path), tmp_path / "ran"
    with crew_at(session, 2) as crew:
        before = {info.id for info in (*crew.workers, *crew.supervisors)}
        keys = [tasks.submit(NOTES, str(ran), x) for x in range(40)]
        wait_until(store, lambda: len(counts_in(ran)) > 3)
        beat = max(info.beat for info in crew.supervisors)
        (tmp_path / "jugdata").rename(tmp_path / "elsewhere")
        threading.Event().wait(2.0)  # that is the time in question
        (tmp_path / "elsewhere").rename(tmp_path / "jugdata")
        wait_until(store, lambda: max(info.beat for info in crew.supervisors) > beat + 2)
        keys += [tasks.submit(NOTES, str(ran), x) for x in range(40, 60)]
        assert finish(session, tasks, keys) == [x * x for x in range(60)]
        assert {info.id for info in (*crew.workers, *crew.supervisors)} == before
        assert "was away for" in "".join(map(store.log, before))
    assert_once(ran)


# -- what is no store's business ---------------------------------------------------------------------------------------


def test_what_the_file_system_refuses_is_a_store_error(tmp_path: Path) -> None:
    store = open_store(f"file:{tmp_path}/jugdata")
    (tmp_path / "jugdata/log").rename(tmp_path / "log")
    (tmp_path / "jugdata/log").write_text("no folder")  # reading it fails as a broken disk does
    with pytest.raises(StoreError, match="can't be used") as caught:
        open_store(f"file:{tmp_path}/jugdata").snapshot()
    assert isinstance(caught.value.__cause__, OSError)
    assert not lacks_room(caught.value)
    store.close()


@pytest.mark.parametrize(("shared", "mode"), [("", 0o600), ("group", 0o660)])
def test_logs_of_processes_are_for_those_alone_who_use_the_store(tmp_path: Path, shared: str, mode: int) -> None:
    store = open_store(f"file:{tmp_path}/jugdata")
    if shared:
        store.share(b"x" * 32)  # type: ignore[attr-defined]
    process = system.me("worker")
    before = os.umask(0o022)
    try:
        store.notice(process.id, "hello\n")
    finally:
        os.umask(before)
    assert (tmp_path / "jugdata/output" / f"{process.id}.log").stat().st_mode & 0o777 == mode
    assert store.log(process.id) == "hello\n"
    store.close()
