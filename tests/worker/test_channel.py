"""How workers use the store through their supervisor."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jug_notebook import system
from jug_notebook.clock import CLOCK
from jug_notebook.errors import NoSuchTask, StoreError, StoreGone
from jug_notebook.model import Claim, State, Submission, Why
from jug_notebook.store import Store, open_store
from jug_notebook.worker import channel
from jug_notebook.worker.channel import BlobCache, StoreServer, connected, framed
from jug_notebook.worker.resources import Reservations
from tests.store.test_store import HERE, key, outcome, task
from tests.workbench import FakeClock, is_readable
from tests.worker.test_supervisor import Site, folder_site

__all__ = ["folder_site"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "jugdata")
    yield opened
    opened.close()


class Serving:
    """A server that serves in a thread, as a supervisor does in its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.server = StoreServer(store, CLOCK)
        self._stop, self._end = os.pipe()
        self.server.listen(self._stop)
        self._lines: list[int] = []
        self._blobs = store
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._serve)

    def worker(self) -> Store:
        line, ours = self.server.connect()
        self._lines.append(ours)
        return connected(self._blobs, line)

    def _serve(self) -> None:
        try:
            while self._stop not in self.server.wait(5.0):
                pass
        except BaseException as failure:
            self.failure = failure
            self.server.close()

    def __enter__(self) -> Serving:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._end, b"x")
        self.thread.join()


def test_each_verb_reaches_the_store_and_its_result_the_worker(store: Store) -> None:
    serving = Serving(store)
    worker, me = serving.worker(), system.me("worker")
    store.renew([me])
    store.submit([task("a"), task("b")], HERE)
    with serving:
        claims = worker.claim(me.id, 1, 0.0)
        assert [claim.lease.key for claim in claims] == [key("a")]
        assert isinstance(claims[0], Claim)
        worker.release([claims[0].lease])
        assert store.states([key("a")]) == [State.READY]
        [claim, *_] = worker.claim(me.id, 1, 0.0)
        worker.claim(me.id, 0, 0.0, [outcome(claim)])
        assert worker.states([key("a"), "0" * 40]) == [State.FINISHED, None]
        assert worker.specs([key("a")]) == store.specs([key("a")])
        assert worker.outcomes([key("a")]) == store.outcomes([key("a")])
        assert worker.invalidate([key("a")], Why.LOST, "ann") == [key("a")]
        worker.notice(me.id, "a line\n")
        assert store.log(me.id) == "a line\n"
        assert worker.idle() is False
        with pytest.raises(NoSuchTask):
            worker.invalidate(["0" * 40], Why.LOST, "ann")


def test_a_worker_that_waits_gets_a_task_as_soon_as_there_is_one(store: Store) -> None:
    serving = Serving(store)
    worker, me = serving.worker(), system.me("worker")
    store.renew([me])
    with serving:
        assert worker.claim(me.id, 1, 0.05) == []
        found: list[list[Claim]] = []
        waiting = threading.Thread(target=lambda: found.append(worker.claim(me.id, 1, 60.0)))
        waiting.start()
        store.submit([task("a")], HERE)
        waiting.join(30)
        assert [claim.lease.key for claim in found[0]] == [key("a")]


def test_what_a_worker_held_that_died_goes_at_once_to_one_that_waits(store: Store) -> None:
    server = StoreServer(store, FakeClock(), Reservations({"license": 1}))
    lines = [server.connect() for _ in range(2)]
    me = system.me("worker")
    store.renew([me])
    store.submit([msgspec.structs.replace(task(name), resources=(("license", 1.0),)) for name in "ab"], HERE)
    for line, _ in lines:
        line.sendall(framed(("claim", (me.id, 1, 60.0, (), None, "", False, None))))
    server.wait(0)
    (dead, descriptor), (waiting, _) = lines if is_readable(lines[0][0].fileno(), 0) else reversed(lines)
    dead.close()
    assert not is_readable(waiting.fileno(), 0)
    server.disconnect(descriptor)
    assert is_readable(waiting.fileno(), 0)
    server.close()
    waiting.close()


def test_a_worker_that_does_not_read_holds_up_no_other(store: Store) -> None:
    serving = Serving(store)
    (stuck_line, _), other, me = serving.server.connect(), serving.worker(), system.me("worker")
    store.renew([me])
    store.submit([Submission(key("a"), "f", (), bytes.fromhex(key("a")), b"x" * (4 << 20), 0, "3.11"), task("b")], HERE)
    with serving:
        stuck_line.sendall(framed(("claim", (me.id, 1, 0.0, (), None, "", False, None))))
        wait = threading.Event()
        while store.states([key("a")]) != [State.RUNNING]:
            wait.wait(0.01)
        assert [claim.lease.key for claim in other.claim(me.id, 1, 30.0)] == [key("b")]
    stuck_line.close()


def test_what_a_worker_settled_just_before_it_died_counts(store: Store) -> None:
    server = StoreServer(store, CLOCK)
    line, ours = server.connect()
    me = system.me("worker")
    store.renew([me])
    store.submit([task("a"), task("b")], HERE)
    [claim] = store.claim(me.id, 1, 0.0)
    line.sendall(framed(("claim", (me.id, 5, 1.0, (outcome(claim),), None, "", False, None))))
    line.close()
    server.disconnect(ours)
    assert store.states([key("a"), key("b")]) == [State.FINISHED, State.READY]


def test_an_error_of_the_store_is_the_worker_s_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(store)
    worker = serving.worker()

    def full(*_: Any) -> list[Claim]:
        raise StoreError("can't write to log: No space left on device") from OSError(28, "No space left on device")

    monkeypatch.setattr(store, "claim", full)
    with serving, pytest.raises(StoreError, match="No space left") as raised:
        worker.claim("w", 1, 0.0)
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == 28


def test_where_the_store_is_gone_supervisor_and_worker_learn_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(store)
    worker = serving.worker()

    def gone(*_: Any) -> list[Claim]:
        raise StoreGone("it is gone")

    monkeypatch.setattr(store, "claim", gone)
    serving.thread.start()
    with pytest.raises(StoreGone, match="supervisor"):
        worker.claim("w", 1, 0.0)
    serving.thread.join()
    assert isinstance(serving.failure, StoreGone)


def test_only_the_supervisor_writes_events_and_heartbeats(folder_site: Site) -> None:
    site = folder_site
    keys = [site.tasks.submit("def f(x): return x * x", x) for x in range(20)]
    site.supervise(3)
    assert [site.tasks.value(one) for one in keys] == [x * x for x in range(20)]
    folder = Path(site.store.url.removeprefix("file:"))
    writers = {path.name.split(".")[1] for path in (folder / "log").iterdir()}
    assert len(writers) == 2  # the test's own, and the supervisor's
    workers = site.until_workers(3)
    assert {path.name for path in (folder / "workers").iterdir()} >= {info.supervisor for info in workers}
    assert not {path.name for path in (folder / "workers").iterdir()} & {info.id for info in workers}


def test_a_blob_that_comes_over_the_network_comes_once_for_all_workers_of_a_host(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    fetched: list[str] = []

    def fetch(address: str) -> memoryview:
        fetched.append(address)
        return memoryview(data)

    caches = [BlobCache(tmp_path, fetch) for _ in range(8)]
    found: list[memoryview] = []
    threads = [threading.Thread(target=lambda cache=cache: found.append(cache.map("ab"))) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["ab"]
    assert [bytes(view) for view in found] == [data] * 8
    found[0][0] = data[0] ^ 1  # what one writes, no other sees
    assert bytes(found[1]) == data == bytes(caches[0].map("ab"))


def test_the_blobs_kept_on_a_host_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "CACHE", 5 << 20)
    cache = BlobCache(tmp_path, lambda address: memoryview(bytes(2 << 20)))
    views = [cache.map(name) for name in ("a", "b", "c")]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5 << 20
    assert all(view.nbytes == 2 << 20 for view in views)
