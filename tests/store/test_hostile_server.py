"""Whoever can write to a Redis server forges, changes and reorders nothing unseen, and breaks nothing: real servers."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest

import jug_notebook as jn
from jug_notebook.__main__ import main
from jug_notebook.errors import JugError, StoreError
from jug_notebook.model import Order, Scale, Settled, State, Verdict, Why
from jug_notebook.store import keyring, open_store
from jug_notebook.store.redis import RedisStore, wire
from jug_notebook.store.redis.frames import Chain, Frame
from jug_notebook.store.sealing import MAC, EventSeal
from tests.servers import Server, free_port
from tests.store.test_redis import admin, opened_at
from tests.store.test_store import HERE, key, run_all, task, worker_of

redis = pytest.importorskip("redis")


@pytest.fixture
def store(redis_server: Server) -> Iterator[RedisStore]:
    opened = opened_at(redis_server.url())
    yield opened
    with suppress(StoreError):  # what it holds may be anything by now
        opened.close()


def log_of(store: RedisStore) -> str:
    return store._connection.key("log")


def states(store: RedisStore, *names: str) -> list[State | None]:
    return opened_at(store.url).states([key(name) for name in names])


def notes(store: RedisStore) -> str:
    return " ".join(opened_at(store.url).snapshot().notes)


def test_an_outcome_that_nobody_with_the_key_has_written_counts_for_nothing(
    redis_server: Server, store: RedisStore
) -> None:
    store.submit([task("a")], HERE)
    verdict = Verdict(key("a"), 0, b"", 1, b"digest")
    forged = Chain(b"writer", EventSeal(bytes(32), store.id)).frame(Frame(bytes(12), 1, Settled("w", [verdict])))
    with admin(redis_server) as line:
        line.xadd(log_of(store), {b"writer": forged})
    assert states(store, "a") == [State.READY]
    assert "skipped records that are damaged, or not written by someone with the store's key (1)" in notes(store)
    assert run_all(store) == 1


def changed(entries: list[list[bytes]], how: str) -> list[list[bytes]]:
    if how == "edited":
        writer, data = entries[1]
        entries[1] = [writer, data[:-1] + bytes([data[-1] ^ 1])]
    elif how == "cut out":
        del entries[1]
    elif how == "under another name":
        entries[1] = [b"nobody", entries[1][1]]
    elif how == "reordered":
        entries[1], entries[2] = entries[2], entries[1]
    elif how == "repeated":
        entries.append(entries[1])
    return entries


@pytest.mark.parametrize(
    ("how", "state", "note"),
    [
        ("edited", State.FINISHED, "not written by someone with the store's key"),
        ("cut out", State.FINISHED, "records of what was done are missing (1)"),
        ("under another name", State.FINISHED, "not written by someone with the store's key"),
        ("reordered", State.READY, ""),
        ("repeated", State.READY, ""),
    ],
)
def test_a_log_that_the_server_has_changed_is_noticed(
    redis_server: Server, store: RedisStore, how: str, state: State, note: str
) -> None:
    store.submit([task("a")], HERE)
    run_all(store)
    run = store._connection.command
    before = run("XLEN", log_of(store))
    store.invalidate([key("a")], Why.DIRECT, "ann")
    store.submit([task("b")], HERE)
    entries = [fields for _, fields in run("XRANGE", log_of(store), "-", "+")]
    kept, rest = entries[: before - 1], entries[before - 1 :]
    run("DEL", log_of(store))
    for fields in [*kept, *changed(rest, how)]:
        run("XADD", log_of(store), "*", *fields)
    assert states(store, "a", "b") == [state, State.READY]
    assert note in notes(store)
    assert bool(notes(store)) == bool(note)


def test_a_snapshot_is_sealed_and_what_came_before_it_is_missed(redis_server: Server, store: RedisStore) -> None:
    store.submit([task(str(i)) for i in range(5)], HERE)
    run_all(store)
    assert store.compact() > 0
    store.submit([task("later")], HERE)
    assert states(store, "0", "later") == [State.FINISHED, State.READY]
    assert notes(store) == ""
    with admin(redis_server) as line:
        name = store._connection.key(line.hget(store._connection.key("snapshot"), "name").decode())
        frames = line.lrange(name, 0, -1)
        line.lset(name, 1, frames[1][:-1] + bytes([frames[1][-1] ^ 1]))
        assert "not written by someone" in notes(store)
        line.lset(name, 1, frames[1])
        assert notes(store) == ""
        line.delete(store._connection.key("snapshot"))
        assert "records of what was done are missing" in notes(store)


def test_a_store_whose_key_is_not_known_can_be_looked_at_and_nothing_else(
    redis_server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    store.submit([task("a"), task("b")], HERE)
    (claim,) = store.claim(worker_of(store).id, 1, 0.0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(keyring, "_here", {})
    stranger = opened_at(store.url)
    assert "is not in" in stranger.unverified
    picture = stranger.snapshot()
    assert picture.counts[State.RUNNING] == picture.counts[State.READY] == 1
    assert picture.notes[0].startswith("unverified: the key of store")
    for use in (
        lambda: stranger.submit([task("c")], HERE),
        lambda: stranger.claim("w", 1, 0.0),
        lambda: stranger.release([claim.lease]),
        lambda: stranger.invalidate([key("a")], Why.DIRECT, "ann") or stranger.leave(["w"]),
    ):
        with pytest.raises(StoreError, match="the key of store"):
            use()


def test_forged_orders_start_nobody_and_an_old_one_is_not_obeyed_again(redis_server: Server, store: RedisStore) -> None:
    worker = worker_of(store)
    order: Order = Scale(40)
    with admin(redis_server) as line:
        name = store._connection.key(f"orders:{worker.id}")
        line.xadd(name, {"o": bytes(24) + msgspec.msgpack.encode(order)})
        line.xadd(name, {"o": b"\xff"})
        assert store.renew([worker]) == []
        assert "nobody with the store's key has given" in store.log(worker.id)
        store.order([worker.id], order)
        [(_, fields)] = line.xrevrange(name, count=1)
        assert store.renew([worker]) == [order]
        line.xadd(name, fields)
        assert store.renew([worker]) == []
        line.xadd(store._connection.key("orders:other"), fields)
    assert store.renew([msgspec.structs.replace(worker, id="other")]) == []


def test_forged_heartbeats_and_counts_are_skipped_and_named(
    redis_server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(store)
    other = msgspec.structs.replace(worker, id="other")
    with admin(redis_server) as line:
        line.hset(store._connection.key("info"), "other", bytes(16) + msgspec.msgpack.encode(other))
        line.zadd(store._connection.key("beats"), {"other": time.time()})
        real = line.hget(store._connection.key("info"), worker.id)
        line.hset(store._connection.key("info"), "again", real)
        line.zadd(store._connection.key("beats"), {"again": time.time()})
        rows = msgspec.msgpack.encode([])
        line.hset(store._connection.key("counts"), mapping={"upto": "1-1", "rows": bytes(16) + rows})
    fresh = opened_at(store.url)
    assert [info.id for info, _, _ in fresh.processes()] == [worker.id]
    assert sorted(note.split()[4] for note in fresh.snapshot().notes) == ["again,", "other,"]
    store.submit([task("a")], HERE)
    assert opened_at(store.url).snapshot().counts[State.READY] == 1


@pytest.mark.parametrize("left", [b"1", bytes(MAC) + msgspec.msgpack.encode(True), b"", b"another's"])
def test_a_forged_note_that_a_worker_has_ended_takes_nothing_from_it(
    redis_server: Server, store: RedisStore, left: bytes
) -> None:
    store.submit([task("a")], HERE)
    worker, other = worker_of(store), worker_of(store)
    store.claim(worker.id, 1, 0.0)
    store.leave([other.id])
    name = store._connection.key("left")
    with admin(redis_server) as line:
        line.hset(name, worker.id, line.hget(name, other.id) if left == b"another's" else left)
    store.renew([worker])
    for looking in (store, opened_at(store.url)):
        assert {info.id: alive for info, alive, _ in looking.processes()} == {worker.id: True, other.id: False}
        looking.watch(looking.version, 1.1)  # until it checks who is alive
        assert looking.states([key("a")]) == [State.RUNNING]
    assert f"skipped a note that {worker.id} has ended, which isn't sealed" in notes(store)


# -- values that make no sense -----------------------------------------------------------------------------------------

HUGE = 2**45
WRONG: dict[str, Callable[[Any, str], Any]] = {
    "sizes": lambda line, P: line.hset(P + "sizes", mapping=dict.fromkeys(line.hkeys(P + "sizes"), HUGE)),
    "chunks": lambda line, P: [line.set(name, b"+999999999999") for name in line.scan_iter(P + "v:*")],
    "info": lambda line, P: line.hset(P + "info", "x", b"\xdd\xff\xff\xff\xff"),
    "beats": lambda line, P: line.zadd(P + "beats", {"x": float("inf")}),
    "tick": lambda line, P: line.set(P + "tick", "no number"),
    "left": lambda line, P: line.hset(P + "left", "\udcff".encode(errors="surrogatepass"), 1),
    "claims": lambda line, P: line.hset(P + "claims", b"\xff.x", b"\xff"),
    "counts": lambda line, P: line.hset(P + "counts", mapping={"upto": "x", "rows": "y"}),
    "log": lambda line, P: line.xadd(P + "log", {b"\xff": b"\xff", b"c": b"", b"m": b"x"}),
    "snapshot": lambda line, P: line.hset(P + "snapshot", mapping={"name": b"\xff", "upto": b"9-9", "frames": b"x"}),
    "trimmed": lambda line, P: line.xadd(P + "log", {"m": "9999999999999-0"}),
    "bodies": lambda line, P: line.hset(P + "bodies", mapping=dict.fromkeys(line.hkeys(P + "bodies"), b"\xc1")),
    "format": lambda line, P: line.set(P + "format", b"\xff"),
    "id": lambda line, P: line.set(P + "id", b"\xff/../x"),
}
KINDS = ("log", "bodies", "claims", "snapshot", "info", "beats", "left", "tick", "counts", "blobs", "sizes", "format")


def uses_of(url: str, address: str, value: Any) -> None:
    """Use a store in every way; whatever fails does so with an exception of ours."""
    with suppress(JugError):
        store = opened_at(url)
        store.patience = 0.0
        for use in (
            lambda: store.submit([task("new")], HERE),
            lambda: store.claim(value.id, 1, 0.0),
            lambda: store.renew([value]),
            lambda: store.processes(),
            lambda: store.snapshot(),
            lambda: store.states([key("a")]),
            lambda: store.outcomes([key("a")]),
            lambda: store.get_blob(address),
            lambda: store.get_blob(address, mapped=True),
            lambda: store.runs(),
            lambda: store.sweep([], [], 0.0),
            lambda: store.compact(),
            lambda: store.close(),
        ):
            with suppress(JugError):
                use()


@pytest.mark.parametrize("what", [*WRONG, *(f"{kind} of a wrong type" for kind in KINDS)])
@pytest.mark.timeout(60)
def test_hostile_contents_give_exceptions_of_ours_only(redis_server: Server, store: RedisStore, what: str) -> None:
    store.submit([task("a"), task("b")], HERE)
    run_all(store)
    address, worker = store.put_blob([bytes(100)]), worker_of(store)
    prefix = store._connection.key("")
    with admin(redis_server) as line, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if what in WRONG:
            WRONG[what](line, prefix)
        else:
            name = prefix + what.split()[0]
            line.delete(name)
            line.rpush(name, "x") if what.split()[0] != "log" else line.set(name, "x")
        for _ in range(2):
            uses_of(store.url, address, worker)
        with suppress(JugError):
            store.states([key("a")])


@contextmanager
def pretended(reply: bytes, endless: bool) -> Iterator[int]:
    """A server that says this to all that it is asked, again and again if that has no end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                line, _ = listener.accept()
                with line, suppress(OSError):
                    line.recv(1 << 16)
                    line.sendall(reply)
                    while endless:
                        line.sendall(reply * 1000)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("reply", "endless"),
    [
        (b"*1\r\n", True),
        (b"$8589934592\r\n", True),
        (b"$536870912\r\nx", False),
        (b"*99999999999\r\n", False),
        (b"*16777216\r\n", False),
        (b"x", True),
        (b":" + b"9" * 70_000, True),
        (b"+OK\r\n", False),
        (b"*-7\r\n$-2\r\n:x\r\n", False),
        (b"*2\r\n$1\r\nx\r\n:5\r\n" * 50, False),
        (b"-\xff\xfe\r\n" * 50, False),
    ],
)
@pytest.mark.timeout(60)
def test_a_server_that_talks_nonsense_is_refused_in_little_memory(
    reply: bytes, endless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "TIMEOUT", 2.0)
    with pretended(reply, endless) as port, pytest.raises(StoreError):
        open_store(f"redis://127.0.0.1:{port}/0")


# -- on the way to the server ------------------------------------------------------------------------------------------


def test_tls_to_a_plain_port_is_refused_soon_and_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CONNECTING", 1.0)
    port = free_port()
    server = Server("--port", str(port))
    try:
        began = time.monotonic()
        assert main(["status", f"rediss://127.0.0.1:{port}/0"]) == 2
        assert time.monotonic() - began < wire.CONNECTING + 5
        [line] = capsys.readouterr().err.strip().splitlines()
        assert "speak TLS: use redis://" in line
    finally:
        server.remove()


def test_a_connection_that_others_could_read_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_warned", set())
    far, near = (wire.place("redis", f"//:s3cr3t@{host}:1/0") for host in ("redis.example.org", "127.0.0.1"))
    with pytest.warns(UserWarning, match=r"redis.example.org:1 is not encrypted: use rediss:// or an ssh tunnel"):
        wire.warn_of_plain_text(far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in (far, near, wire.place("rediss", "//redis.example.org/0"), wire.place("unix", "///tmp/x")):
            wire.warn_of_plain_text(place)


def test_a_session_has_its_url_without_the_password(tmp_path: Any) -> None:
    server = Server("--requirepass", "s3cr3t")
    try:
        session = jn.connect(f"unix://:s3cr3t@{server.socket}?project=study", notebook=tmp_path / "study.ipynb")
        assert "s3cr3t" not in session.url
        assert open_store(session.url_with_password()).id == session.identity
        assert jn.connect(session.url_with_password(), notebook=tmp_path / "study.ipynb") is session
        session.close()
    finally:
        server.remove()
