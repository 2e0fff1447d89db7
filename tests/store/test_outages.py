"""A Redis server that is away, full, restarted with or without what it held: real servers, workers and sessions."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook.__main__ import main
from jug_notebook.errors import StoreError
from jug_notebook.session import Session
from jug_notebook.store import lacks_room
from tests.servers import Server
from tests.store.test_redis import admin, opened_at
from tests.store.test_store import HERE, key, task
from tests.workbench import Fifo, Submitter, is_readable, wait_until

redis = pytest.importorskip("redis")
WAITS = """
def f(path, go):
    with open(path, 'w') as fifo: fifo.write('here\\n')
    with open(go) as fifo: fifo.readline()
    return 1
"""
NOTES = """
def f(path, x):
    import os
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b'%d\\n' % x)
    return x * x
"""


@contextmanager
def removed(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def crew_at(session: Session, workers: int, **options: float) -> Iterator[jn.Crew]:
    """Workers that have come; afterwards they are gone."""
    crew = session.execute(workers, **options)
    wait_until(session.access.store, lambda: len(crew.workers) == workers, "no worker came")
    try:
        yield crew
    except BaseException:
        session.access.store.patience = 0.0
        raise
    crew.stop(now=True)
    wait_until(session.access.store, lambda: not crew.supervisors, "the workers stayed")


def test_a_server_that_is_full_for_a_while_holds_workers_up_and_none_ends(tmp_path: Path) -> None:
    with removed(Server("--maxmemory-policy", "noeviction")) as server:
        fifo, go = Fifo(tmp_path), Fifo(tmp_path, "go")
        session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
        store, tasks = session.access.store, Submitter(session.access.store, tmp_path)
        with crew_at(session, 1) as crew, admin(server) as line:
            before = [info.id for info in (*crew.workers, *crew.supervisors)]
            first, second = tasks.submit(WAITS, fifo.path, go.path), tasks.submit("def f(): return 2")
            assert fifo.read_line() == "here"
            line.config_set("maxmemory", 1)
            with pytest.raises(StoreError, match="is full: raise its maxmemory") as full:
                tasks.submit("def f(): return 3")
            assert lacks_room(full.value)
            go.write_line("")
            lacking = lambda: any("1 worker waits for room" in note for note in store.snapshot().notes)  # noqa: E731
            wait_until(store, lacking, "the status says nothing")
            line.config_set("maxmemory", 0)
            assert [tasks.value(first), tasks.value(second)] == [1, 2]
            assert [info.id for info in (*crew.workers, *crew.supervisors)] == before
            assert store.runs()[1] == 2
        session.close()


def test_workers_are_stopped_and_tasks_cleaned_up_on_a_full_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with removed(Server("--maxmemory-policy", "noeviction")) as server:
        url = server.url()
        session = jn.connect(url, notebook=tmp_path / "study.ipynb")
        with admin(server) as line:
            with crew_at(session, 1):
                tasks = Submitter(session.access.store, tmp_path)
                done = tasks.submit("def f(): return bytes(100_000)")
                assert len(tasks.value(done)) == 100_000
                line.config_set("maxmemory", 1)
            session.access.store.request([done], session.access.store.origins()[0], False)
            assert main(["cleanup", "--jugdir", url, "--older-than", "0s"]) == 0
            assert "removed 1 task" in capsys.readouterr().out
            assert line.hlen(f"jug:{{{url.rpartition('=')[2]}}}:bodies") == 0
            line.config_set("maxmemory", 0)
        session.close()


def test_a_server_that_closes_connections_again_and_again_is_used_to_the_end(tmp_path: Path) -> None:
    with removed(Server()) as server:
        session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
        tasks, seed = Submitter(session.access.store, tmp_path), random.Random(9)
        with crew_at(session, 2) as crew, admin(server) as line:
            before = {info.id for info in crew.workers}
            keys = []
            for round in range(150):
                line.execute_command("CLIENT", "KILL", "TYPE", seed.choice(["normal", "normal", "replica"]))
                keys.append(tasks.submit("def f(x): return x * x", round))
            assert [tasks.value(k) for k in keys] == [x * x for x in range(150)]
            assert {info.id for info in crew.workers} == before
            assert session.access.store.runs()[1] == 150
        session.close()


def test_supervisor_and_workers_end_only_when_their_patience_does(tmp_path: Path) -> None:
    with removed(Server()) as server:
        fifo, go = Fifo(tmp_path), Fifo(tmp_path, "go")
        session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
        tasks = Submitter(session.access.store, tmp_path)
        crew = session.execute(1, patience=0.3)
        wait_until(session.access.store, lambda: bool(crew.workers), "no worker came")
        pids = [info.pid for info in (*crew.supervisors, *crew.workers)]
        tasks.submit(WAITS, fifo.path, go.path)
        assert fifo.read_line() == "here"
        ends = [os.pidfd_open(pid) for pid in pids]
        server.kill()
        for end in ends:
            assert is_readable(end), "it waits without end"
            os.close(end)
        server.start()
        session.close()


def test_a_supervisor_that_is_asked_to_end_while_the_server_is_away_does_so_at_once(tmp_path: Path) -> None:
    with removed(Server()) as server:
        session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
        crew = session.execute(1)
        wait_until(session.access.store, lambda: bool(crew.workers), "no worker came")
        [supervisor] = crew.supervisors
        server.kill()
        end = os.pidfd_open(supervisor.pid)
        os.kill(supervisor.pid, signal.SIGTERM)
        assert is_readable(end)
        os.close(end)
        session.close()  # and so does a session


def test_a_picture_taken_while_the_server_is_away_says_so_and_a_line_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jug_notebook.store.redis.connection.REPORTED", 0.05)
    with removed(Server()) as server:
        store, lines = opened_at(server.url()), list[str]()
        store.notify = lines.append
        store.submit([task("a")], HERE)
        before = store.snapshot()
        server.kill()
        during = store.snapshot()
        assert during.functions == before.functions
        away = f"the server at {server.socket} is away for 0 s; waiting up to 10 min"
        assert during.notes == (away, *before.notes)
        waiting = threading.Thread(target=lambda: store.states([key("a")]))
        waiting.start()
        while not lines:
            waiting.join(0.01)
        server.start()
        waiting.join()
        assert lines == [away]
        assert store.snapshot().notes == before.notes


def counts_in(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


@pytest.mark.parametrize("appendonly", [False, True])
def test_what_a_restarted_server_has_lost_is_told_again_and_nothing_finished_runs_again(
    appendonly: bool, tmp_path: Path
) -> None:
    seed, ran = random.Random(appendonly), tmp_path / "ran"
    with removed(Server(appendonly=appendonly)) as server:
        session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
        tasks = Submitter(session.access.store, tmp_path)
        with crew_at(session, 2) as crew:
            before = {info.id for info in (*crew.workers, *crew.supervisors)}
            keys = []
            for round in range(3):
                keys += [tasks.submit(NOTES, str(ran), x) for x in range(40 * round, 40 * round + 40)]
                wanted = seed.randrange(40 * round, 40 * round + 40)
                wait_until(session.access.store, lambda n=wanted: len(counts_in(ran)) > n)  # type: ignore[misc]
                server.kill()
                server.start()
            assert [tasks.value(k) for k in keys] == [x * x for x in range(120)]
            assert {info.id for info in (*crew.workers, *crew.supervisors)} == before
        repeated = {name: count for name, count in counts_in(ran).items() if count > 1}
        assert not repeated, f"{len(repeated)} ran again"
        session.close()


def test_a_supervisor_that_was_stopped_keeps_its_task_if_nobody_took_it(tmp_path: Path) -> None:
    with removed(Server()) as server:
        fifo, go = Fifo(tmp_path), Fifo(tmp_path, "go")
        session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
        tasks = Submitter(session.access.store, tmp_path)
        with crew_at(session, 2) as crew:
            first = tasks.submit(WAITS, fifo.path, go.path)
            assert fifo.read_line() == "here"
            [supervisor] = crew.supervisors
            os.kill(supervisor.pid, signal.SIGSTOP)
            store = opened_at(session.url)
            with admin(server) as line:  # as long ago as 40 seconds are
                beats = store._connection.key("beats")
                at = line.time()[0] - 40
                line.zadd(beats, dict.fromkeys(line.zrange(beats, 0, -1), at))
            os.kill(supervisor.pid, signal.SIGCONT)
            second = tasks.submit("def f(): return 2")
            assert tasks.value(second) == 2
            go.write_line("")
            assert tasks.value(first) == 1
            assert store.runs()[1] == 2
            store.close()
        session.close()


LONG = bool(os.environ.get("LONG_OUTAGES"))  #: as `make test-chaos` has it: longer than a lease, which takes its time
SHORTLY = ["frozen server", "killed, everysec"]
HOW = [*SHORTLY, "killed, keeps nothing", "killed, always", "frozen supervisor"] if LONG else SHORTLY


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [35, 45, 60] if LONG else [6])
@pytest.mark.parametrize("how", HOW)
def test_workers_outlast_a_server_that_is_away_and_nothing_runs_twice(tmp_path: Path, how: str, seconds: int) -> None:
    always = ["--appendfsync", "always"] if how.endswith("always") else []
    with removed(Server(*always, appendonly="nothing" not in how)) as server:
        fifo, go = Fifo(tmp_path), Fifo(tmp_path, "go")
        journal = tmp_path / "journal"
        session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
        tasks = Submitter(session.access.store, tmp_path)
        with crew_at(session, 2) as crew:
            before = {info.id for info in (*crew.workers, *crew.supervisors)}
            keys = [tasks.submit(NOTES, str(journal), x) for x in range(20)]
            assert [tasks.value(one) for one in keys] == [x * x for x in range(20)]
            ends_meanwhile = tasks.submit(WAITS, fifo.path, go.path)
            assert fifo.read_line() == "here"
            [supervisor] = crew.supervisors
            if how == "frozen supervisor":
                os.kill(supervisor.pid, signal.SIGSTOP)
            else:
                server.freeze() if how == "frozen server" else server.kill()
            go.write_line("")
            time.sleep(seconds)  # time itself is what this is about
            if how == "frozen supervisor":
                os.kill(supervisor.pid, signal.SIGCONT)
            else:
                server.thaw() if how == "frozen server" else server.start()
            assert tasks.value(ends_meanwhile) == 1
            after = [tasks.submit(NOTES, str(journal), x) for x in range(20, 30)]
            assert [tasks.value(one) for one in (*keys, *after)] == [x * x for x in range(30)]
            assert max(counts_in(journal).values()) == 1
            assert {info.id for info in (*crew.workers, *crew.supervisors)} == before
        session.close()
