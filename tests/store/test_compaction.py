"""Compaction and sweeping: less space, the same state, while others work and even if a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jug_notebook import system
from jug_notebook.errors import StoreError
from jug_notebook.model import (
    Claim,
    Origin,
    Settlement,
    State,
    SubmitReport,
    Target,
    Verdict,
    Why,
    parse_limits,
    with_limits,
)
from jug_notebook.scheduler import state
from jug_notebook.store import Store, open_store
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file import FileStore, compaction
from tests.store.test_store import HERE, key, outcome, run_all, task, worker_of

THERE = Origin("bob", "/b.ipynb", "cell-9")
NAMES = [f"t{i}" for i in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jugdata"


def script(source: str, *args: Any) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, which ends without closing anything if the script kills it."""
    command = [sys.executable, "-c", textwrap.dedent(source), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])


def live_through(folder: Path) -> None:
    """A store with a bit of everything, written by four that have ended."""
    one = open_store(folder)
    one.submit([task(name) for name in NAMES[:4]] + [task("sum", *NAMES[:4], form="sum")], HERE)
    one.submit([task(name) for name in NAMES[4:]], THERE)
    run_all(one)
    one.close()
    two = open_store(folder)
    two.invalidate([key("t0")], Why.DIRECT, "ann")
    two.request([key("t4")], THERE, wanted=False)
    run_all(two, b"2")
    two.submit([task("bad"), task("above", "bad")], HERE)
    (claim,) = two.claim(worker_of(two).id, 1, 0.0)
    two.claim(worker_of(two).id, 0, 0.0, [outcome(claim, b"")])
    two.close()
    three = open_store(folder)
    three.submit([task("open"), task("held")], THERE)
    worker = worker_of(three)
    claims = three.claim(worker.id, 1, 0.0)
    three.leave([worker.id])
    assert len(claims) == 1
    three.close()


def picture(store: Store) -> dict[str, Any]:
    """All that can be asked of a store."""
    keys = [view.key for view in store.tasks()]
    return {
        "states": dict(zip(keys, store.states(keys), strict=True)),
        "specs": dict(zip(keys, store.specs(keys), strict=True)),
        "outcomes": dict(zip(keys, store.outcomes(keys), strict=True)),
        "invalidations": dict(zip(keys, store.invalidations(keys), strict=True)),
        "requests": {origin: sorted(store.requested(origin)) for origin in store.origins()},
        "counts": store.snapshot().counts,
        "edges": sorted(store.edges()),
    }


def logs(folder: Path) -> dict[str, int]:
    parts = ("log", "sealing", "sealed", "claims")
    return {part: len([name for name in os.listdir(folder / part) if name[0] != "."]) for part in parts}


def test_the_picture_is_the_same_and_takes_less_space(folder: Path) -> None:
    live_through(folder)
    before = picture(open_store(folder))
    packer = open_store(folder)
    assert packer.compact() > 0
    assert picture(packer) == before
    packer.close()
    assert logs(folder) == {"log": 0, "sealing": 0, "sealed": 1, "claims": 1}
    assert picture(open_store(folder)) == before
    again = open_store(folder)
    assert again.compact() == 0
    assert logs(folder)["sealed"] == 1


def test_what_was_open_goes_on_after_it(folder: Path) -> None:
    live_through(folder)
    open_store(folder).compact()
    store = open_store(folder)
    worker = worker_of(store)
    claims = []
    while found := store.claim(worker.id, 9, 0.0, [outcome(claim) for claim in claims[-1:]]):
        claims += found
    assert sorted((claim.lease.key, claim.lease.attempt) for claim in claims) == sorted(
        [(key("open"), 2), (key("held"), 1)]
    )


def test_a_reader_that_has_seen_all_goes_on_reading_bodies_when_their_logs_are_gone(folder: Path) -> None:
    live_through(folder)
    reader = open_store(folder)
    before = picture(reader)
    packer = open_store(folder)
    packer.compact()
    assert logs(folder)["sealing"] == 0, "no other process is known to be reading"
    assert picture(reader) == before


def test_a_reader_that_had_seen_half_comes_to_the_same_picture(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task("a")], HERE)
    reader = open_store(folder)
    assert reader.states([key("a")]) == [State.READY]
    run_all(store)
    store.submit([task("b", "a")], HERE)
    store.close()
    open_store(folder).compact()
    assert reader.states([key("a"), key("b")]) == [State.FINISHED, State.READY]
    assert [held and held.body for held in reader.outcomes([key("a")])] == [b"outcome 1"]


def test_logs_stay_for_a_while_where_somebody_may_be_reading_them(folder: Path) -> None:
    live_through(folder)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    store = open_store(folder)
    info = system.me("session")
    store.renew([msgspec.structs.replace(info, pid=other.pid, born=system.born(other.pid) or 0)])
    try:
        store.compact()
        assert logs(folder)["sealing"] == 3
        for path in (folder / "sealed").iterdir():
            os.utime(path, (1, 1))
        store.compact()
        assert logs(folder)["sealing"] == 0
    finally:
        other.communicate(b"\n")


def test_sealed_logs_are_put_together_as_they_gather(folder: Path) -> None:
    for number in range(5):
        store = open_store(folder)
        store.submit([task(f"{number}.{i}") for i in range(20)], HERE)
        run_all(store)
        store.compact()
        store.close()
        open_store(folder).compact()
    assert logs(folder)["sealed"] <= 3
    later = open_store(folder)
    assert later.snapshot().counts == {**later.snapshot().counts, State.FINISHED: 100}


def test_a_worker_with_an_old_picture_does_not_run_again_what_lost_its_claims(folder: Path, monkeypatch: Any) -> None:
    store = open_store(folder)
    store.submit([task("a"), task("b")], HERE)
    stale = open_store(folder)
    assert isinstance(stale, FileStore)
    worker = worker_of(stale)
    assert stale.states([key("a")]) == [State.READY]
    with monkeypatch.context() as patch:
        patch.setattr(stale, "_poll", lambda: None)
        run_all(store)
        store.close()
        packer = open_store(folder)
        packer.compact()
        assert logs(folder)["claims"] == 0
        assert stale.claim(worker.id, 9, 0.0) == []
    assert stale.states([key("a"), key("b")]) == [State.FINISHED, State.FINISHED]


def test_a_limited_task_that_was_won_and_not_delivered_is_free_for_others_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = open_store(folder), open_store(folder)
    assert isinstance(one, FileStore)
    one.submit([msgspec.structs.replace(task("a"), resources=with_limits((), parse_limits("db:1")))], HERE)
    first, second = worker_of(one).id, worker_of(other).id
    with monkeypatch.context() as patch:
        patch.setattr(one._claims, "epoch", lambda: b"another")
        patch.setattr(one, "_read_all_logs", raises)
        with pytest.raises(StoreError, match="away"):
            one.claim(first, 1, 0.0)
    assert one.claim(first, 1, 0.0, target=Target(frozenset(["g"]))) == []
    (claim,) = other.claim(second, 1, 0.0)
    assert (claim.lease.key, claim.lease.attempt) == (key("a"), 2)


def raises(now: float) -> None:
    raise StoreError("the folder is away")


_KILLED = """
import os, signal, sys
from jug_notebook.store import open_store
folder, left = sys.argv[1], int(sys.argv[2])
store = open_store(folder)
store.states([])
def watch(event, args):
    global left
    touched = event in ("os.rename", "os.remove", "os.mkdir") or event == "open" and args[2] & os.O_CREAT
    if touched and isinstance(args[0], str) and "/" not in args[0]:  # names in folders of the store
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
store.compact()
"""


def test_a_compaction_may_be_killed_at_any_point(tmp_path: Path) -> None:
    points = 0
    while True:
        folder = tmp_path / str(points)
        live_through(folder)
        before = picture(open_store(folder))
        ended = script(_KILLED, folder, points + 1)
        assert ended.returncode in (0, -9), ended.stderr
        assert picture(open_store(folder)) == before, f"killed at point {points + 1}"
        heir = open_store(folder)
        heir.compact()
        assert picture(heir) == before, f"killed at point {points + 1}, then done again"
        assert picture(open_store(folder)) == before
        assert logs(folder) == {"log": 0, "sealing": 0, "sealed": 1, "claims": 1}
        if ended.returncode == 0:
            break
        points += 1
    assert points > 12, "it has many steps"


def test_a_log_is_read_that_replaces_known_ones_and_one_that_nobody_has_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jug_notebook.store.file._is_quiet", lambda store: False)  # replaced logs stay for a while
    submitter = open_store(folder)
    submitter.submit([task("a")], HERE)
    first = open_store(folder)
    run_all(first)
    first.close()
    packer = open_store(folder)
    packer.compact()
    (unread,) = (folder / "sealed").iterdir()
    unread.rename(tmp_path / unread.name)  # the reader comes in the moment before it appears
    for replaced in (folder / "sealing").iterdir():
        replaced.unlink()
    reader = open_store(folder)
    worker = worker_of(reader)
    second = open_store(folder)
    second.submit([task(name) for name in NAMES], HERE)
    second.close()
    assert set(reader.states([key(name) for name in ("a", *NAMES)])) == {State.READY}
    (tmp_path / unread.name).rename(unread)
    packer.compact()
    assert len(list((folder / "sealed").iterdir())) == 2
    assert [claim.lease.key for claim in reader.claim(worker.id, 1, 0.0)] == [key(NAMES[0])]
    assert reader.states([key("a")]) == [State.FINISHED]


_WORK = """
import os, sys
from tests.store.test_store import outcome
from jug_notebook import system
from jug_notebook.store import open_store
folder, done = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
while True:  # one store after another, so that logs end all the time
    store = open_store(folder)
    worker = system.me("worker")
    store.renew([worker])
    settled, count = [], 0
    while count < 60 and (claims := store.claim(worker.id, 20, 0.0, settled)):
        for claim in claims:
            os.write(done, f"{claim.lease.key}\\n".encode())
        settled = [outcome(claim) for claim in claims]
        count += len(claims)
    store.claim(worker.id, 0, 0.0, settled)
    store.leave([worker.id])
    store.close()
    if not count:
        break
"""


def test_workers_lose_nothing_and_run_nothing_twice_while_it_is_compacted(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder)
    names = [str(i) for i in range(1500)]
    store.submit([task(name) for name in names], HERE)
    done = tmp_path / "done"
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORK, str(folder), str(done)], cwd=Path(__file__).parents[1])
        for _ in range(2)
    ]
    packer = open_store(folder)
    rounds = 0
    while any(worker.poll() is None for worker in workers):
        packer.compact()
        rounds += 1
    packer.compact()
    assert [worker.wait() for worker in workers] == [0, 0]
    assert rounds > 1
    assert sorted(done.read_text().split()) == sorted(map(key, names))
    for seen in (store, packer, open_store(folder)):
        assert set(seen.states([key(name) for name in names])) == {State.FINISHED}
        assert {held and held.body for held in seen.outcomes([key(name) for name in names])} == {b"outcome 1"}


_OPEN = """
import sys
from jug_notebook.store import open_store
seen = 0
for _ in range(30):
    store = open_store(sys.argv[1])
    found = store.tasks()
    assert len(found) >= seen, f"{len(found)} tasks where there were {seen}"
    store.outcomes([view.key for view in found])
    store.close()
    seen = len(found)
"""


_PACK = """
import sys
from jug_notebook.store import open_store
while True:
    store = open_store(sys.argv[1])
    store.compact()
    store.close()
"""


def test_who_opens_a_store_while_it_is_compacted_misses_nothing(folder: Path) -> None:
    live_through(folder)
    opener, second, packer_too = (
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", code, str(folder)],
            stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        )
        for code in (_OPEN, _OPEN, _PACK)
    )  # fmt: skip
    compactions = 0
    while opener.poll() is None or second.poll() is None or compactions < 30:
        for part in "ab":
            writer = open_store(folder)
            writer.submit([task(f"{compactions}{part}")], HERE)
            writer.close()
        packer = open_store(folder)
        packer.compact()
        packer.close()
        compactions += 1
    assert packer_too.poll() is None, packer_too.communicate()
    packer_too.kill()
    packer_too.communicate()
    for one in (opener, second):
        _, problem = one.communicate()
        assert one.returncode == 0, problem


def test_a_writer_of_another_machine_that_was_taken_for_dead_loses_nothing(folder: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(system, "machine", lambda: "elsewhere")
        far = open_store(folder)
        far.submit([task("a")], HERE)
    for log in (folder / "log").iterdir():
        os.utime(log, (1, 1))
    near = open_store(folder)
    near.compact()
    assert logs(folder)["log"] == 0
    far.submit([task("b")], HERE)
    assert open_store(folder).states([key("a"), key("b")]) == [State.READY, State.READY]
    assert near.states([key("a"), key("b")]) == [State.READY, State.READY]


def test_a_crowd_of_ended_logs_is_noticed(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(compaction, "CROWD", 3)
    store = open_store(folder)
    for number in range(4):
        assert not store.compact(dry_run=True)
        other = open_store(folder)
        other.submit([task(str(number))], HERE)
        other.close()
    assert store.compact(dry_run=True)
    store.compact()
    assert not store.compact(dry_run=True)


def test_more_logs_than_files_that_may_be_open_are_read_and_compacted(folder: Path) -> None:
    for number in range(120):
        store = open_store(folder)
        store.submit([task(str(number))], HERE)
        store.close()
    ended = script(
        """
        import os, resource, sys
        from tests.store.test_store import key, run_all
        from jug_notebook.store import open_store
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        store = open_store(sys.argv[1])
        keys = [key(str(number)) for number in range(120)]
        assert None not in store.specs(keys)
        store.compact()
        assert len(os.listdir(f"{sys.argv[1]}/sealed")) == 1
        assert None not in store.specs(keys)
        assert run_all(store) == 120
        """,
        folder,
    )
    assert ended.returncode == 0, ended.stderr
    assert logs(folder)["sealed"] == 1


def test_a_store_of_one_process_lets_go_of_what_no_longer_counts(tmp_path: Path) -> None:
    store = open_store(f"memory:{tmp_path.name}")
    store.submit([task("a"), task("b")], HERE)
    (claim,) = store.claim(worker_of(store).id, 1, 0.0)
    store.claim(worker_of(store).id, 0, 0.0, [outcome(claim, b"")])
    store.invalidate([key("a")], Why.RETRY, "ann")
    run_all(store)
    assert store.compact() == len(b"outcome ")
    assert sorted(ended.body for ended in store.runs()[0]) == [b"outcome 1", b"outcome 1"]
    assert store.specs([key("a"), key("b")]) == [b"spec of a", b"spec of b"]
    store.close()


# -- sweeping ----------------------------------------------------------------------------------------------------------


def test_forgotten_tasks_are_gone_for_all_and_their_space_after_a_compaction(folder: Path) -> None:
    store, other = open_store(folder), open_store(folder)
    store.submit([task("a"), task("b", "a"), task("c")], HERE)
    run_all(store)
    store.request([key("a"), key("b")], HERE, wanted=False)
    report = store.sweep([key("a"), key("b")], [], 0.0)
    assert (report.tasks, report.blobs) == (2, 0)
    assert report.size == len(b"spec of a" + b"spec of b" + 2 * b"outcome 1")
    for seen in (store, other, open_store(folder)):
        assert [view.key for view in seen.tasks()] == [key("c")]
    store.close()
    other.close()
    open_store(folder).compact()
    [sealed] = (folder / "sealed").iterdir()
    assert b"spec of a" not in sealed.read_bytes()
    assert b"spec of c" in sealed.read_bytes()
    assert open_store(folder).submit([task("a"), task("c")], HERE) == SubmitReport(new=1, finished=1)


def test_many_finished_tasks_are_forgotten_with_their_outcomes_though_they_are_packed_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "TOGETHER", 1)
    tasks = [task(str(i)) for i in range(1500)]
    keys = [one.key for one in tasks]
    store.submit(tasks, HERE)
    assert run_all(store) == 1500
    store.request(keys, HERE, wanted=False)
    assert store.sweep(keys, [], 0.0).tasks == 1500
    assert store.submit(tasks, HERE) == SubmitReport(new=1500), "or values would count that were swept"
    assert run_all(store) == 1500


def test_what_was_forgotten_stays_so_when_old_logs_are_read_after_the_news(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task("a")], HERE)
    run_all(store)
    forgetful = open_store(folder)
    forgetful.request([key("a")], HERE, wanted=False)
    forgetful.sweep([key("a")], [], 0.0)
    forgetful.close()
    open_store(folder).compact()
    assert open_store(folder).states([key("a")]) == [None], "the log of the first is read as it is"
    store.close()
    open_store(folder).compact()
    assert open_store(folder).states([key("a")]) == [None]


def test_a_swept_blob_lies_in_the_trash_for_a_day_and_is_taken_out_if_it_is_read(folder: Path) -> None:
    store = open_store(folder)
    address = store.put_blob([b"precious"])
    assert store.sweep([], [], 3600.0).blobs == 0
    assert store.sweep([], [], -1.0, dry_run=True).blobs == 1
    assert store.sweep([], [], -1.0).size == len(b"precious")
    assert (folder / "trash" / address).exists()
    assert bytes(store.get_blob(address)) == b"precious"
    assert store.sweep([], [], -1.0).blobs == 1
    os.utime(folder / "trash" / address, (1, 1))
    store.sweep([], [], -1.0)
    assert not (folder / "trash" / address).exists()


def test_a_blob_that_is_put_again_while_it_is_swept_stays(folder: Path, monkeypatch: Any) -> None:
    store = open_store(folder)
    address = store.put_blob([b"again"])
    path = folder / "blobs" / address[:2] / address[2:]
    os.utime(path, (1, 1))
    rename = os.rename

    def meanwhile(source: Any, target: Any, **at: Any) -> None:
        if source == path.name:
            store.put_blob([b"again"])
        rename(source, target, **at)

    monkeypatch.setattr(os, "rename", meanwhile)
    assert store.sweep([], [], 60.0).blobs == 0
    assert path.exists()


def test_a_task_that_is_submitted_in_the_moment_in_which_it_is_forgotten_is_there_afterwards(
    folder: Path, monkeypatch: Any
) -> None:
    for first in (True, False):
        name = f"a{first}"
        store, other = open_store(folder), open_store(folder)
        assert isinstance(store, FileStore)
        store.submit([task(name)], HERE)
        store.request([key(name)], HERE, wanted=False)
        other.states([])
        append = store._append

        def meanwhile(
            event: Any, bodies: Any = (), *, append: Any = append, other: Any = other, name: str = name
        ) -> Any:
            if type(event).__name__ == "Forgotten":
                monkeypatch.undo()
                other.submit([task(name)], THERE)
            return append(event, bodies)

        monkeypatch.setattr(store, "_append", meanwhile)
        assert store.sweep([key(name)], [], 0.0).tasks == 1
        for seen in (store, other, open_store(folder)):
            assert seen.states([key(name)]) == [State.READY]
            assert seen.specs([key(name)]) == [f"spec of {name}".encode()]
            assert key(name) in seen.requested(THERE)


def test_a_value_that_may_hold_again_keeps_its_blob(store: Store) -> None:
    kept, lost = store.put_blob([b"kept"]), store.put_blob([b"lost"])
    store.submit([task("a"), task("b", "a")], HERE)
    worker = worker_of(store)
    claim: Claim
    settled: list[Settlement] = []
    for _ in range(2):
        (claim,) = store.claim(worker.id, 1, 0.0, settled)
        lease = claim.lease
        body = b"outcome \xd9\x28" + kept.encode()
        settled = [Settlement(Verdict(lease.key, lease.round, lease.inputs, lease.attempt, b"1", 5.0, 0.1), body)]
    store.claim(worker.id, 0, 0.0, settled)
    store.invalidate([key("a")], Why.DIRECT, "ann")
    assert store.states([key("b")]) == [State.WAITING]
    assert store.sweep([], [], -1.0).blobs == 1
    assert bytes(store.get_blob(kept)) == b"kept"
    assert store.sweep([], [lost], -1.0, dry_run=True).blobs == 0


def test_a_sweep_passes_over_what_is_just_being_written(folder: Path) -> None:
    store = open_store(folder)
    address = store.put_blob([b"old"])
    (folder / "blobs" / ".aside").write_bytes(b"half a bl")
    assert store.sweep([], [], -1.0).blobs == 1
    assert (folder / "blobs" / ".aside").exists()
    assert bytes(store.get_blob(address)) == b"old"


def test_what_a_killed_writer_left_is_swept_once_it_is_older_than_an_hour(folder: Path) -> None:
    store = open_store(folder)
    killed = script(
        """
        import os, signal, sys
        from jug_notebook.store import open_store
        store = open_store(sys.argv[1])
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        store.put_blob([bytes(1_500_000)])
        """,
        folder,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [left] = [path for path in (folder / "blobs").iterdir() if path.is_file()]
    assert (left.name[0], left.stat().st_size) == (".", 1_500_000)
    for age, remains in ((3_500, True), (3_700, False)):
        then = time.time() - age
        os.utime(left, (then, then))
        store.sweep([], [], -1.0)
        assert left.exists() == remains, f"after {age} s"


def test_claims_are_few_after_it_however_many_there_were(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task(str(i)) for i in range(300)], HERE)
    run_all(store)
    assert logs(folder)["claims"] == 300
    store.close()
    open_store(folder).compact()
    assert logs(folder)["claims"] == 0
    store = open_store(folder)
    assert store.claim(worker_of(store).id, 9, 0.0, target=Target(names=frozenset(["f"]))) == []


def test_a_worker_may_end_and_remove_its_files_while_a_compaction_looks_at_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_through(folder)
    names = Folder.names

    def with_one_that_has_gone(self: Folder, *args: Any, **options: Any) -> list[str]:
        return [*names(self, *args, **options), *(["gone-1-abcdef.1"] if self.name == "owners" else [])]

    monkeypatch.setattr(Folder, "names", with_one_that_has_gone)
    with closing(open_store(folder)) as store:
        assert store.compact() > 0
