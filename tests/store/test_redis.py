"""The store in a Redis server: what it alone promises. What every store promises is in `test_store`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.__main__ import main
from jug_notebook.errors import StoreError, StoreGone, ValueLost
from jug_notebook.model import (
    Claim,
    Lease,
    Origin,
    Scope,
    Settlement,
    State,
    SubmitReport,
    SweepReport,
    Target,
    Why,
)
from jug_notebook.store import absolute, exists, keyring, open_store
from jug_notebook.store import redis as redis_store
from jug_notebook.store.redis import RedisStore, blobs, connection
from jug_notebook.store.redis.wire import Wire
from tests.servers import Server, free_port, speaks_tls
from tests.store.test_store import HERE, key, outcome, run_all, task, worker_of
from tests.workbench import Fifo, Submitter, wait_until

redis = pytest.importorskip("redis")
SAY = """
def f(path, go):
    with open(path, 'w') as fifo: fifo.write('here\\n')
    open(go).close()
    return 1
"""


@pytest.fixture
def server() -> Iterator[Server]:
    """One of the test's own, to be killed."""
    made = Server()
    yield made
    made.remove()


@pytest.fixture
def store(redis_server: Server) -> Iterator[RedisStore]:
    opened = opened_at(redis_server.url())
    yield opened
    opened.close()


def opened_at(url: str) -> RedisStore:
    store = open_store(url)
    assert isinstance(store, RedisStore)
    return store


def admin(server: Server, **options: Any) -> Any:
    return redis.Redis(unix_socket_path=str(server.socket), **options)


def counted(store: RedisStore) -> dict[State, int]:
    return {state: count for state, count in store.snapshot().counts.items() if count}


def calls(server: Server) -> int:
    """Commands that the server ran so far, those within scripts, too."""
    with admin(server) as line:
        return sum(row["calls"] for row in line.info("commandstats").values())


# -- where it is -------------------------------------------------------------------------------------------------------


def test_projects_and_databases_of_one_server_know_nothing_of_each_other() -> None:
    port = free_port()
    server = Server("--port", str(port))
    try:
        urls = [f"redis://127.0.0.1:{port}/{db}?project={name}" for db in (0, 1) for name in ("one", "two")]
        stores = [open_store(url) for url in urls]
        assert len({store.id for store in stores}) == 4
        stores[0].submit([task("a")], HERE)
        assert [store.states([key("a")]) for store in stores] == [[State.READY], [None], [None], [None]]
        assert [store.display_url for store in stores] == urls
        assert open_store(urls[0]).id == stores[0].id
        with admin(server) as line:
            assert all(name.startswith(b"jug:{") for name in line.scan_iter())
    finally:
        server.remove()


def test_looking_for_a_store_makes_none(redis_server: Server) -> None:
    url = redis_server.url()
    assert not exists(url)
    opened_at(url).close()
    assert exists(url)


def test_a_user_of_an_acl_works_within_its_project_and_the_password_is_never_shown(tmp_path: Path) -> None:
    users = tmp_path / "users.acl"
    users.write_text(
        "user default off\nuser admin on >adminpw ~* &* +@all\n"
        "user ann on >s3cr3t/pw ~jug:{study}:* resetchannels +@all -@admin -@dangerous\n"
    )
    server = Server("--aclfile", str(users))
    try:
        url = f"unix://ann:s3cr3t%2Fpw@{server.socket}?project=study"
        store = opened_at(url)
        store.submit([task("a")], HERE)
        assert run_all(store) == 1
        assert store.display_url == f"unix://ann:***@{server.socket}?project=study"
        assert "s3cr3t" not in repr(store)
        for wrong, message in [
            (url.replace("s3cr3t", "guess"), "doesn't know this user or password"),
            (url.replace("study", "other"), "the user's ACL must allow ~jug:{other}"),
            (url.replace("ann:s3cr3t%2Fpw@", ""), "doesn't know this user or password"),
        ]:
            with pytest.raises(StoreError, match=message.replace("{", r"\{")) as caught:
                open_store(wrong)
            assert "s3cr3t" not in str(caught.value)
            assert "guess" not in str(caught.value)
        keyring.secret(store.id, make=True)
        session = jn.connect(url, notebook=tmp_path / "study.ipynb")
        assert "s3cr3t" not in f"{session!r} {session.display_url} {session.status()!r}"
        session.close()
    finally:
        server.remove()


def test_workers_of_a_store_with_a_password_do_not_have_it_on_their_command_line(tmp_path: Path) -> None:
    server = Server("--requirepass", "s3cr3t")
    try:
        session = jn.connect(f"unix://:s3cr3t@{server.socket}?project=study", notebook=tmp_path / "study.ipynb")
        crew = session.execute(1)
        wait_until(session.access.store, lambda: bool(crew.workers), "no worker came")
        for info in [*crew.workers, *crew.supervisors]:
            assert b"s3cr3t" not in Path(f"/proc/{info.pid}/cmdline").read_bytes()
        crew.stop(now=True)
        wait_until(session.access.store, lambda: not crew.supervisors, "the workers stayed")
        session.close()
    finally:
        server.remove()


def certificates(folder: Path) -> None:
    def run(command: str) -> None:
        subprocess.run(["openssl", *command.split()], check=True, cwd=folder, capture_output=True)

    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    run(f"req -x509 {curve} -days 2 -subj /CN=ca -keyout ca.key -out ca.crt")
    run(f"req {curve} -subj /CN=localhost -keyout srv.key -out srv.csr")
    run("x509 -req -in srv.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out srv.crt")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here to make certificates")
def test_over_tls_a_server_whose_authority_is_known_is_used_and_another_refused_at_once(tmp_path: Path) -> None:
    if not speaks_tls():
        pytest.skip("this redis-server was built without TLS")
    certificates(tmp_path)
    port = free_port()
    server = Server(
        "--tls-port", str(port), "--tls-cert-file", str(tmp_path / "srv.crt"), "--tls-key-file",
        str(tmp_path / "srv.key"), "--tls-ca-cert-file", str(tmp_path / "ca.crt"), "--tls-auth-clients", "no",
    )  # fmt: skip
    try:
        store = opened_at(f"rediss://localhost:{port}/0?project=study&ssl_ca_certs={tmp_path}/ca.crt")
        store.submit([task("a")], HERE)
        assert run_all(store) == 1
        assert store.display_url == f"rediss://localhost:{port}/0?project=study"
        with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
            open_store(f"rediss://localhost:{port}/0?project=study")
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://127.0.0.1:1/0", "can't be reached: .*refused"),
        ("redis:localhost", "names no server: give host, port and database"),
        ("unix://", "names no server: give the path of a socket"),
        ("redis://h:port/0", "can't be read"),
        ("redis://h/zero", "'zero' is not a database number"),
        ("redis://h/0?project=a/b", "'a/b' can't name a project"),
        ("redis://h/0?colour=red", "can't be used: .*colour"),
        ("redys://ann:s3cr3t@h/0", r"'redys://\*\*\*@h/0': there is no store of kind 'redys'"),
    ],
)
def test_a_url_that_names_no_server_is_refused_with_the_way_out(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)


def test_two_ways_to_write_a_url_are_one_store() -> None:
    assert absolute("redis://h/0") == absolute("redis://h/0?project=jug")
    assert absolute("rediss://h/0?ssl_ca_certs=ca.crt").endswith(f"ssl_ca_certs={os.getcwd()}/ca.crt&project=jug")


def test_opening_a_store_needs_no_package_but_our_own(redis_server: Server) -> None:
    script = "import sys; from jug_notebook.store import open_store; open_store(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, redis_server.url()], check=True, capture_output=True, text=True
    )
    assert not {"redis", "hiredis"} & set(done.stdout.split())


def test_a_server_that_drops_what_it_was_given_is_noted() -> None:
    server = Server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", appendonly=False)
    try:
        notes = open_store(server.url()).snapshot().notes
        assert [note.rpartition("; ")[2] for note in notes] == ["set maxmemory-policy noeviction", "set appendonly yes"]
    finally:
        server.remove()


def test_a_server_that_is_full_says_so_and_loses_nothing() -> None:
    server = Server("--maxmemory-policy", "noeviction")
    try:
        store = open_store(server.url())
        store.submit([task("a")], HERE)
        with admin(server) as line:
            line.config_set("maxmemory", 1)
            with pytest.raises(StoreError, match="is full: raise its maxmemory"):
                store.submit([task("b")], HERE)
            line.config_set("maxmemory", 0)
        assert store.states([key("a"), key("b")]) == [State.READY, None]
    finally:
        server.remove()


@pytest.mark.parametrize(("format", "message"), [("99", "made by a newer jug_notebook"), ("1", "give another project")])
def test_a_store_of_another_format_is_refused(redis_server: Server, format: str, message: str) -> None:
    url = redis_server.url()
    name = url.rpartition("=")[2]
    with admin(redis_server) as line:
        line.set(f"jug:{{{name}}}:id", "abc")
        line.set(f"jug:{{{name}}}:format", format)
    with pytest.raises(StoreError, match=message):
        open_store(url)


# -- a server that goes and comes back ---------------------------------------------------------------------------------


def test_scripts_that_the_server_forgot_are_told_again(server: Server) -> None:
    store = open_store(server.url())
    store.submit([task("a")], HERE)
    with admin(server) as line:
        line.script_flush()
    assert run_all(store) == 1


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_workers_and_session_outlive_a_server_that_ends_in_mid_run_and_is_started_again(
    server: Server, ending: str, tmp_path: Path
) -> None:
    fifo, go = Fifo(tmp_path), Fifo(tmp_path, "go")
    session = jn.connect(server.url(), notebook=tmp_path / "study.ipynb")
    tasks = Submitter(session.access.store, tmp_path)
    crew = session.execute(2)
    first = tasks.submit(SAY, fifo.path, go.path)
    others = [tasks.submit("def f(x): return x * x", x) for x in range(50)]
    assert fifo.read_line() == "here"
    assert tasks.value(others[0]) == 0, "both workers are there: one waits to go on"
    before = {info.id for info in crew.workers}
    getattr(server, ending)()
    waiting = threading.Thread(target=lambda: session.access.store.watch(-1, 0.0))
    waiting.start()
    server.start()
    waiting.join()
    go.write_line("")
    assert tasks.value(first) == 1
    assert [tasks.value(k) for k in others] == [x * x for x in range(50)]
    wait_until(
        session.access.store, lambda: {info.id for info in crew.workers} == before, "they are not the same workers"
    )
    crew.stop(now=True)
    wait_until(session.access.store, lambda: not crew.supervisors, "the workers stayed")
    session.close()


def rewind(server: Server) -> Path:
    """What the server has on disk now: a crash that loses what comes later ends here."""
    with admin(server) as line:
        line.config_set("appendfsync", "always")
        line.set("all", "written")
        line.config_set("appendfsync", "no")
    copy = server.folder / "copy"
    copy.mkdir()
    for kept in server.folder.glob("appendonly*"):  # a file, or since Redis 7 a folder
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, copy / kept.name)
    return copy


def crash(server: Server, copy: Path) -> None:
    server.kill()
    for kept in copy.iterdir():
        lost = server.folder / kept.name
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        kept.rename(lost)
    server.start()


def test_a_server_that_lost_its_last_second_is_told_again_what_it_lost(server: Server) -> None:
    url = server.url()
    session, worker = opened_at(url), opened_at(url)
    session.submit([task("a"), task("gone")], HERE)
    copy = rewind(server)
    session.submit([task("b"), task("c", "b"), task("d")], HERE)
    session.request([key("d")], HERE, False)
    blob = worker.put_blob([b"of a task"])
    assert run_all(worker) == 4
    assert session.invalidate([key("gone")], Why.DIRECT, "ann") == [key("gone")]
    names = [key(name) for name in ("a", "b", "c", "d", "gone")]
    seen = session.states(names)
    with admin(server) as line:
        entries = line.xlen(session._connection.key("log"))
    assert seen == [State.FINISHED] * 3 + [State.CANCELLED, State.READY]
    crash(server, copy)
    with admin(server) as line:
        assert line.xlen(session._connection.key("log")) < entries
    assert worker.specs(names[:1]) == [b"spec of a"]
    assert session.states(names) == seen
    assert session.submit([task("a")], HERE) == SubmitReport(finished=1)
    assert bytes(worker.get_blob(blob)) == b"of a task"
    with admin(server) as line:
        assert line.ttl(session._connection.key(f"v:{blob}")) == -1


def test_telling_again_repeats_no_invalidation_of_what_has_run_since(server: Server) -> None:
    url = server.url()
    session, worker = opened_at(url), opened_at(url)
    session.submit([task("a")], HERE)
    run_all(worker)
    session.invalidate([key("a")], Why.DIRECT, "ann")
    run_all(worker, b"2")
    server.stop()
    server.start()
    assert session.states([key("a")]) == [State.FINISHED]
    assert run_all(session) == 0


def test_a_server_that_stays_away_ends_in_a_clear_error(server: Server) -> None:
    store = open_store(server.url())
    store.patience = 0.1
    server.kill()
    with pytest.raises(StoreError, match=r"can't be reached: .*; start it again, or give another store"):
        store.states([key("a")])
    server.start()
    assert store.states([key("a")]) == [None]


def test_another_store_in_the_place_of_the_one_that_was_is_refused(server: Server) -> None:
    url = server.url()
    store = open_store(url)
    with admin(server) as line:
        line.flushall()
    open_store(url)
    server.stop()
    server.start()
    with pytest.raises(StoreError, match="there is another store now"):
        store.states([key("a")])


def test_a_store_that_was_deleted_takes_nothing_more(server: Server) -> None:
    url = server.url()
    store = open_store(url)
    with admin(server) as line:
        line.flushall()
        for use in (
            lambda: store.renew([]),
            lambda: store.submit([task("a")], HERE),
            lambda: store.renew([system.me("worker")]),
            lambda: store.claim("w", 1, 0.0),
            lambda: store.leave(["w"]),
        ):
            with pytest.raises(StoreGone, match="was deleted; connect again: %jug_store URL"):
                use()
        assert line.keys() == []
    open_store(url)
    with pytest.raises(StoreGone, match="there is another store now at"):
        store.claim("w", 1, 0.0)


class Cut(Wire):
    """A connection that breaks after the server has run what it got, before the reply is read."""

    cut = False

    def receive(self) -> Any:
        found = super().receive()
        if Cut.cut:
            Cut.cut = False
            raise ConnectionResetError("cut")
        return found


def test_a_claim_whose_reply_was_lost_on_the_way_is_made_once(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "Wire", Cut)
    store = opened_at(redis_server.url())
    store.submit([task("a"), task("b")], HERE)
    worker = worker_of(store)
    Cut.cut = True
    [claim] = store.claim(worker.id, 1, 0.0)
    assert claim.lease.attempt == 1
    Cut.cut = True
    [other] = store.claim(worker.id, 1, 0.0, [outcome(claim)])
    assert other.lease.key != claim.lease.key
    assert store.runs()[1] == 1
    assert opened_at(store.url).runs()[1] == 1


def test_what_a_claim_won_whose_reply_never_came_is_given_back(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "Wire", Cut)
    store = opened_at(redis_server.url())
    store.submit([task("a")], HERE)
    worker = worker_of(store)
    Cut.cut = True
    store.patience = 0.0
    with pytest.raises(StoreError, match="can't be reached"):
        store.claim(worker.id, 1, 0.0)
    store.patience = 10.0
    [claim] = store.claim(worker.id, 1, 0.0)
    assert claim.lease.attempt == 2
    assert [view.worker for view in opened_at(store.url).tasks()] == [worker.id]


# -- leases ------------------------------------------------------------------------------------------------------------


def silence(server: Server, store: RedisStore, worker: str, seconds: float) -> None:
    """Let a worker's last beat be so long ago, by the server's clock."""
    with admin(server) as line:
        line.set(store._connection.key("tick"), line.time()[0])
        line.delete(store._connection.key("grace"))
        line.zadd(store._connection.key("beats"), {worker: line.time()[0] - seconds})
    store._next_check = 0.0


def test_a_worker_of_another_machine_that_is_silent_for_a_lease_is_taken_over_and_heard_again(
    redis_server: Server, store: RedisStore
) -> None:
    store.submit([task("a"), task("b")], HERE)
    far, near = system.me("worker", machine="elsewhere", host="far"), worker_of(store)
    store.renew([far])
    claims = [store.claim(far.id, 1, 0.0)[0] for _ in range(2)]
    silence(redis_server, store, far.id, 29)
    assert store.claim(near.id, 1, 0.0) == []
    silence(redis_server, store, far.id, 31)
    (reused_from,) = store.claim(near.id, 1, 0.0)
    assert reused_from.lease == Lease(claims[0].lease.key, 0, reused_from.lease.inputs, 2)
    assert (far.id, False) in [(info.id, alive) for info, alive, _ in store.processes()]
    store.renew([far])
    store._next_check = 0.0
    assert store.claim(near.id, 1, 0.0) == []  # the second is its own again
    assert store.states([key("a"), key("b")]) == [State.RUNNING, State.RUNNING]
    store.claim(far.id, 0, 0.0, [outcome(claim) for claim in claims])
    store.claim(near.id, 0, 0.0, [outcome(reused_from, b"2")])
    held = store.outcomes([reused_from.lease.key])[0]
    assert held is not None
    assert held.body == b"outcome 1"


def test_after_the_server_was_away_all_may_say_first_that_they_live(redis_server: Server, store: RedisStore) -> None:
    store.submit([task("a")], HERE)
    far, near = system.me("worker", machine="elsewhere", host="far"), worker_of(store)
    store.renew([far])
    store.claim(far.id, 1, 0.0)
    silence(redis_server, store, far.id, 100)
    with admin(redis_server) as line:
        line.set(store._connection.key("tick"), line.time()[0] - 100)
    assert store.claim(near.id, 1, 0.0) == []
    with admin(redis_server) as line:
        line.set(store._connection.key("tick"), line.time()[0])
        line.delete(store._connection.key("grace"))
    store._next_check = 0.0
    assert len(store.claim(near.id, 1, 0.0)) == 1


def test_the_claim_of_a_killed_process_of_this_machine_is_taken_over_at_once(store: RedisStore) -> None:
    store.submit([task("a")], HERE)
    child = os.fork()
    if child == 0:
        signal.pause()
    dying = system.me("worker", id="dying", pid=child, born=system.born(child))
    store.renew([dying])
    store.claim(dying.id, 1, 0.0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert store.claim(worker_of(store).id, 1, 20.0)[0].lease.attempt == 2


def test_of_idle_workers_the_right_one_is_woken_and_gets_the_task(redis_server: Server) -> None:
    url = redis_server.url()
    store = opened_at(url)
    got: dict[str, int] = {}

    def work(python: str) -> None:
        mine = opened_at(url)
        got[python] = len(mine.claim(worker_of(mine).id, 5, 20.0, python=python))

    threads = [threading.Thread(target=work, args=(python,)) for python in ("3.11", "3.12")]
    for thread in threads:
        thread.start()
    with admin(redis_server) as line:
        while line.info("clients")["blocked_clients"] < 2:
            pass
        store.submit([task("a", python="3.12")], HERE)
        threads[1].join(20)
        assert got == {"3.12": 1}
    store.submit([task("b", python="3.11")], HERE)
    threads[0].join(20)
    assert got == {"3.12": 1, "3.11": 1}


# -- many tasks --------------------------------------------------------------------------------------------------------


def test_what_follows_for_thousands_follows_in_steps_and_is_whole_when_seen(store: RedisStore) -> None:
    many = [f"t{i}" for i in range(2500)]
    store.submit([task("a"), *(task(name, "a") for name in many), task("all", *many)], HERE)
    assert counted(store) == {State.READY: 1, State.WAITING: 2501}
    assert run_all(store) == 2502
    assert store.invalidate([key("a")], Why.DIRECT, "ann") == [key("a")]
    assert store.states([key("a"), key(many[-1]), key("all")]) == [State.READY, State.WAITING, State.WAITING]
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    store.claim(worker.id, 0, 0.0, [outcome(claim)])
    assert set(store.states([key(name) for name in [*many, "all"]])) == {State.FINISHED}
    store.request(list(map(key, ["all", "a", *many])), HERE, False)
    assert counted(store) == {}, "what is finished and no longer requested is kept, and counts in no state"
    assert store.snapshot().kept == 2502


def test_a_claim_and_a_look_cost_the_same_whatever_there_is(redis_server: Server) -> None:
    def once(tasks: int) -> tuple[int, int, int]:
        store = opened_at(redis_server.url())
        store.submit([task(f"{i}") for i in range(tasks)], HERE)
        worker = worker_of(store)
        settled = [outcome(store.claim(worker.id, 1, 0.0)[0])]
        counts = [calls(redis_server)]
        store.claim(worker.id, 1, 0.0, settled)
        counts.append(calls(redis_server))
        store.snapshot(Scope(HERE.notebook))
        counts.append(calls(redis_server))
        store.idle(python="3.11")
        counts.append(calls(redis_server))
        store.close()
        return counts[1] - counts[0], counts[2] - counts[1], counts[3] - counts[2]

    def cost(tasks: int) -> list[int]:
        """The least of three: in some, heartbeats are looked at, too, for it is time."""
        return [min(found) for found in zip(*(once(tasks) for _ in range(3)), strict=True)]

    assert cost(20) == cost(4000)


def test_a_target_of_a_function_means_tasks_that_come_later_and_what_they_need(store: RedisStore) -> None:
    target = Target(names=frozenset(["g"]))
    store.submit([task("a"), task("b", "a", function="g"), task("c")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 9, 0.0, target=target)
    assert claim.lease.key == key("a")
    store.submit([task("d"), task("e", "d", function="g")], HERE)
    (other,) = store.claim(worker.id, 1, 0.0, [outcome(claim)], target)
    (last,) = store.claim(worker.id, 1, 0.0, [outcome(other)], target)
    assert {other.lease.key, last.lease.key} == {key("b"), key("d")}
    assert not store.idle(target)
    assert store.states([key("c")]) == [State.READY]


# -- blobs -------------------------------------------------------------------------------------------------------------


def test_a_large_blob_lies_in_chunks_that_stay_once_a_task_may_name_it(
    redis_server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "CHUNK", 100_000)
    data = os.urandom(250_000)
    address = store.put_blob([data[:30], memoryview(data)[30:200_030], data[200_030:]])
    names = [store._connection.key(f"c:{address}:{i}") for i in range(3)] + [store._connection.key(f"v:{address}")]
    with admin(redis_server) as line:
        assert [line.strlen(name) for name in names[:3]] == [100_000, 100_000, 50_000]
        assert all(0 < line.ttl(name) <= blobs.TEMPORARY for name in names)
        assert bytes(store.get_blob(address)) == data
        store.submit([task("a")], HERE)
        assert all(line.ttl(name) == -1 for name in names)
        assert store.put_blob([data]) == address  # it stays, and is not sent again
        assert all(line.ttl(name) == -1 for name in names)


@pytest.mark.parametrize("size", [10, 70_000, 250_000])
def test_a_damaged_blob_is_a_lost_value_and_can_be_written_again(
    redis_server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(blobs, "CHUNK", 100_000)
    data = os.urandom(size)
    address = store.put_blob([data])
    with admin(redis_server) as line:
        line.setrange(store._connection.key(f"c:{address}:1" if size > 100_000 else f"v:{address}"), 5, b"damage")
    with pytest.raises(ValueLost, match="damaged"):
        store.get_blob(address)
    assert store.put_blob([data]) == address
    assert bytes(store.get_blob(address)) == data


def test_chunks_that_one_has_kept_stay_when_another_who_writes_them_dies(
    redis_server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "CHUNK", 100_000)
    data = os.urandom(250_000)
    other = opened_at(store.url)
    run = other._connection.run

    def meanwhile(script: str, *arguments: Any) -> Any:
        answer = run(script, *arguments)
        if script == "put" and len(arguments) == 3:  # it is not there yet: from here on the other writes it, too
            monkeypatch.setattr(other._connection, "run", run)
            store.put_blob([data])
            store.submit([task("a")], HERE)
        return answer

    monkeypatch.setattr(other._connection, "run", meanwhile)
    address = other.put_blob([data])
    other.close()
    with admin(redis_server) as line:
        names = [store._connection.key(name) for name in (f"v:{address}", *(f"c:{address}:{i}" for i in range(3)))]
        assert [line.ttl(name) for name in names] == [-1] * 4


def test_a_missing_chunk_is_a_lost_value(
    redis_server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "CHUNK", 100_000)
    address = store.put_blob([os.urandom(250_000)])
    with admin(redis_server) as line:
        line.delete(store._connection.key(f"c:{address}:2"))
    with pytest.raises(ValueLost):
        store.get_blob(address)


# -- tidying up --------------------------------------------------------------------------------------------------------


def test_a_forgotten_task_is_as_if_it_had_never_been_submitted(redis_server: Server, store: RedisStore) -> None:
    store.submit([task("a"), task("b", "a"), task("c", "b"), task("d")], HERE)
    run_all(store)
    store.request([key(name) for name in "bcd"], HERE, False)
    report = store.sweep([key("b"), key("d"), key("nothing")], [], 1e9, dry_run=True)
    assert (report.tasks, report.blobs, report.size > len(b"spec of b" + b"spec of d")) == (2, 0, True)
    assert store.sweep([key("b"), key("d"), key("nothing")], [], 1e9) == report
    store.request([key("c")], HERE, True)
    assert store.states([key(name) for name in "abcd"]) == [State.FINISHED, None, State.WAITING, None]
    assert counted(store) == {State.FINISHED: 1, State.WAITING: 1}
    assert sorted(store.requested(HERE)) == sorted([key("a"), key("c")])
    assert store.submit([task("b", "a")], HERE) == SubmitReport(new=1)
    assert store.states([key("b")]) == [State.READY]
    assert run_all(store) == 1
    assert store.states([key("c")]) == [State.FINISHED]
    store.request([key(name) for name in "abc"], HERE, False)
    assert store.sweep([key(name) for name in "cba"], [], 1e9).tasks == 3
    with admin(redis_server) as line:
        left = {name.decode().rpartition("}:")[2] for name in line.scan_iter(store._connection.key("*"))}
    of_tasks = ("d:", "m:", "b:", "r:", "p:", "x:", "l:", "kind:")
    assert not any(name in "tsnoiay" or name in ("ended", "past") or name.startswith(of_tasks) for name in left)
    assert store.runs() == ([], 0)
    assert store.snapshot().functions == ()


def settled_at(claim: Claim, body: bytes, **more: Any) -> Settlement:
    return Settlement(msgspec.structs.replace(outcome(claim).verdict, **more), body)


def test_the_latest_runs_are_read_and_no_others(redis_server: Server, store: RedisStore) -> None:
    store.submit([task(str(i)) for i in range(3000)], HERE)
    worker, settled, at = worker_of(store), [], 0
    while claims := store.claim(worker.id, 1000, 0.0, settled):
        settled = [settled_at(claim, bytes(1000), started=float(at + i)) for i, claim in enumerate(claims)]
        at += len(claims)

    def sent() -> int:
        with admin(redis_server) as line:
            output: int = line.info("stats")["total_net_output_bytes"]
            return output

    for scope in (Scope(), Scope(HERE.notebook)):
        before = sent()
        ended, total = store.runs(scope, 20)
        assert sent() - before < 100_000
        assert ([run.verdict.started for run in ended], total) == ([float(n) for n in range(2999, 2979, -1)], 3000)
        assert len({run.verdict.key for run in store.runs(scope)[0]}) == 3000


def test_a_run_that_is_told_again_after_a_crash_is_told_of_once(server: Server) -> None:
    store = opened_at(server.url())
    store.submit([task("a")], HERE)
    for digest in (b"1", b"2"):
        run_all(store, digest)
        store.invalidate([key("a")], Why.DIRECT, "ann")
    before = store.runs()
    assert [run.body for run in before[0]].count(b"outcome 1") == 1
    assert before[1] == 2
    server.kill()
    server.start()
    assert store.runs() == before
    assert store.states([key("a")]) == [State.READY]


def test_a_swept_blob_comes_back_with_the_outcome_that_names_it(redis_server: Server, store: RedisStore) -> None:
    store.submit([task("a")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    small, large = store.put_blob([b"small"]), store.put_blob([bytes(100_000)])
    assert store.sweep([], [], 0.0).blobs == 2
    assert store.sweep([], [], 0.0).blobs == 0
    with admin(redis_server) as line:
        names = [store._connection.key(f"v:{address}") for address in (small, large)]
        assert all(0 < line.ttl(name) <= 3600 for name in names)
        store.claim(worker.id, 0, 0.0, [outcome(claim)])
        assert [line.ttl(name) for name in names] == [-1, -1]
    assert store.sweep([], [], 3600.0).blobs == 0
    assert store.sweep([], [], -1.0, dry_run=True).blobs == 2
    assert (bytes(store.get_blob(small)), len(store.get_blob(large))) == (b"small", 100_000)


def test_a_large_blob_that_another_puts_again_while_it_goes_stays(
    redis_server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "CHUNK", 100_000)
    data = os.urandom(250_000)
    store.submit([task("a")], HERE)
    address = store.put_blob([data])
    run_all(store)
    assert store.sweep([], [], 0.0).blobs == 1
    other = opened_at(store.url)
    assert other.put_blob([data]) == address
    other.submit([task("b")], HERE)
    with admin(redis_server) as line:
        names = [store._connection.key(name) for name in (f"v:{address}", *(f"c:{address}:{i}" for i in range(3)))]
        assert [line.ttl(name) for name in names] == [-1] * 4
    assert bytes(other.get_blob(address)) == data
    other.close()


def test_what_is_wished_again_while_others_clean_up_keeps_its_blobs(store: RedisStore) -> None:
    module = store.put_blob([b"module"])
    bundle = store.put_blob([named_bytes(module)])
    value = store.put_blob([b"value"])
    named = msgspec.structs.replace(task("a"), body=b"spec \xd9\x28" + bundle.encode())
    store.submit([named], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    store.claim(worker.id, 0, 0.0, [settled_at(claim, b"outcome \xd9\x28" + value.encode())])
    assert store.sweep([key("a")], [], 0.0) == SweepReport()  # the cleanup looked before somebody wished it
    found = [bytes(store.get_blob(name)) for name in (module, bundle, value)]
    assert found == [b"module", named_bytes(module), b"value"]


def named_bytes(address: str) -> bytes:
    return b"parcel \xd9\x28" + address.encode()


def test_what_was_called_wrong_and_comes_late_after_it_was_forgotten_is_not_served(store: RedisStore) -> None:
    store.submit([task("a")], HERE)
    slow = worker_of(store)
    (claim,) = store.claim(slow.id, 1, 0.0)
    store.leave([slow.id])
    run_all(store)
    assert store.invalidate([key("a")], Why.DIRECT, "ann") == [key("a")]
    store.request([key("a")], HERE, False)
    assert store.sweep([key("a")], [], 0.0).tasks == 1
    store.submit([task("a")], HERE)
    store.claim(slow.id, 0, 0.0, [outcome(claim, b"wrong")])
    assert store.states([key("a")]) == [State.READY]
    assert run_all(store, b"2") == 1


def test_blobs_that_nothing_names_go_when_they_are_old(redis_server: Server, store: RedisStore) -> None:
    kept, old, new = (store.put_blob([name]) for name in (b"kept", b"old", b"new"))
    with admin(redis_server) as line:
        line.zadd(store._connection.key("blobs"), {kept: 1, old: 1})
    assert store.sweep([], [kept], 3600, dry_run=True) == SweepReport(blobs=1, size=3)
    assert store.sweep([], [kept], 3600) == SweepReport(blobs=1, size=3)
    assert bytes(store.get_blob(kept)) == b"kept"
    assert bytes(store.get_blob(new)) == b"new"
    with pytest.raises(ValueLost):
        store.get_blob(old)
    assert store.compact() == 0


def test_origins_are_those_that_wish_something_now(store: RedisStore) -> None:
    other, notebook = Origin("ann", "/a.ipynb", "cell-2"), Origin("ann", "/a.ipynb")
    bob = Origin("bob", "/b.ipynb", "1")
    for origin in (HERE, other, bob):
        store.submit([task("a"), task("b")], origin)
    assert set(store.origins()) == {HERE, other, bob}
    store.request([key("a")], notebook, False)
    assert set(store.origins()) == {HERE, other, bob}
    store.request([key("b")], notebook, False)
    assert store.origins() == [bob]


# -- from the command line ---------------------------------------------------------------------------------------------


def test_the_command_line_looks_into_a_store_and_shows_no_password(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with admin(server) as line:
        line.config_set("requirepass", "s3cr3t")
    url = f"unix://:s3cr3t@{server.socket}?project=study"
    assert main(["status", url]) == 2
    assert f"no store at 'unix://***@{server.socket}?project=study'" in capsys.readouterr().err
    store = opened_at(url)
    tasks = Submitter(store, tmp_path)
    tasks.submit("def f(x): return x * x", 3)
    assert main(["worker", url, "-n", "1", "--idle-timeout", "0"]) == 0
    assert main(["status", "--short", url]) == 0
    output = capsys.readouterr()
    assert "1 of 1 finished" in output.out
    assert "s3cr3t" not in output.out + output.err


# -- many tasks, seen by a process that comes later --------------------------------------------------------------------


def test_counts_that_were_left_are_read_alone_and_only_while_they_hold(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "MANY", 2)
    store.submit([task("a"), task("b"), task("c", function="g")], HERE)
    store.submit([task("d")], Origin("bob", "/b.ipynb", "1"))
    run_all(store)
    opened_at(store.url).close()  # it has seen nothing, so it leaves nothing
    assert opened_at(store.url)._counted() is None
    looked = opened_at(store.url)
    assert looked.states([key("a")]) == [State.FINISHED]
    looked.close()
    store.leave(["somebody"])
    for scope in (Scope(), Scope(HERE.notebook)):
        later = opened_at(store.url)
        assert later.snapshot(scope).functions == store.snapshot(scope).functions
        assert not later._scheduler.tasks, "it read the counts alone"
    store.invalidate([key("a")], Why.DIRECT, "ann")
    assert counted(opened_at(store.url)) == {State.FINISHED: 3, State.READY: 1}
    monkeypatch.setattr(redis_store, "VERY_MANY", 4)
    looked = opened_at(store.url)
    looked.states([])
    looked.close()
    store.claim(worker_of(store).id, 1, 0.0)
    assert counted(opened_at(store.url)) == {State.FINISHED: 3, State.READY: 1}, "of a moment ago"
    monkeypatch.setattr(redis_store, "MOMENT", 0.0)
    assert counted(opened_at(store.url)) == {State.FINISHED: 3, State.RUNNING: 1}


# -- compaction --------------------------------------------------------------------------------------------------------


def test_a_snapshot_takes_the_place_of_the_log_and_whoever_was_behind_reads_it(
    redis_server: Server, store: RedisStore
) -> None:
    behind, level = opened_at(store.url), opened_at(store.url)
    store.submit([task(str(i)) for i in range(20)], HERE)
    store.request([key("0"), key("1")], HERE, wanted=False)
    behind.states([])
    run_all(store)
    store.invalidate([key("5")], Why.DIRECT, "ann")
    run_all(store, b"2")
    store.sweep([key("0"), key("1")], [], 1e9)
    level.states([])
    with admin(redis_server) as line:
        before = line.hlen(store._connection.key("bodies"))
        assert store.compact() > 0
        assert line.xlen(store._connection.key("log")) == 1
        assert line.hlen(store._connection.key("bodies")) == before - 3, (
            "two specs, and an outcome that was invalidated"
        )
    names = [key(str(i)) for i in range(20)]
    for reader in (store, behind, level, opened_at(store.url)):
        assert reader.states(names) == [None] * 2 + [State.FINISHED] * 18
        assert [held and held.body for held in reader.outcomes(names[4:6])] == [b"outcome 1", b"outcome 2"]
        assert reader.specs(names[:3]) == [None, None, b"spec of 2"]
    behind.submit([task("later")], HERE)
    assert run_all(level) == 1
    assert store.states([key("later")]) == [State.FINISHED]
    assert store.compact() >= 0
    assert opened_at(store.url).states([key("later"), *names]) == [State.FINISHED, None, None, *[State.FINISHED] * 18]


def test_a_claim_that_is_open_outlives_a_compaction(store: RedisStore) -> None:
    store.submit([task("a"), task("b")], HERE)
    first, second = worker_of(store), opened_at(store.url)
    (claim,) = store.claim(first.id, 1, 0.0)
    store.compact()
    other = worker_of(second)
    (its,) = second.claim(other.id, 5, 0.0)
    assert its.lease.key != claim.lease.key
    second.claim(other.id, 0, 0.0, [outcome(its)])
    store.claim(first.id, 0, 0.0, [outcome(claim)])
    assert opened_at(store.url).states([key("a"), key("b")]) == [State.FINISHED] * 2


def test_a_picture_that_is_out_of_date_wins_nothing_that_is_settled_or_cancelled(store: RedisStore) -> None:
    late = opened_at(store.url)
    worker = worker_of(late)
    for name, state in (("a", State.FINISHED), ("b", State.CANCELLED)):
        store.submit([task(name)], HERE)
        late.states([])
        if state is State.FINISHED:
            assert run_all(store) == 1
        else:
            store.request([key(name)], HERE, wanted=False)
        assert late.claim(worker.id, 9, 0.0) == []
        for reader in (late, opened_at(store.url)):
            assert reader.states([key(name)]) == [state]
    store.request([key("b")], HERE, wanted=True)
    assert [claim.lease.attempt for claim in late.claim(worker.id, 9, 0.0)] == [2], "the first was given back"


def test_what_is_remembered_in_case_the_server_crashes_takes_no_more_space_than_is_allowed(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "KEPT_BYTES", 4 << 20)
    one = store._connection
    tracemalloc.start()
    try:
        for number in range(4_000):
            many = [part for at in range(4) for part in (b"%010d%d" % (number, at), os.urandom(400))]
            one.remember(one.script("append", one.id, b"writer", "", len(many), *many, 1, os.urandom(200), 0, 0))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.8 * (4 << 20) < held < 1.15 * (4 << 20)
