"""What every store promises."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from hashlib import sha1
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jug_notebook import system
from jug_notebook.errors import NoSuchTask, StoreError, ValueLost
from jug_notebook.model import (
    NEXT,
    NO_INPUTS,
    Acceptance,
    Claim,
    Lease,
    Origin,
    Scale,
    Scope,
    Settlement,
    State,
    Stop,
    Submission,
    SubmitReport,
    SweepReport,
    Target,
    Verdict,
    Why,
    WorkerInfo,
)
from jug_notebook.store import Store, open_store
from jug_notebook.store.file.watching import FileWatcher
from tests.workbench import FakeClock

HERE = Origin("ann", "/a.ipynb", "cell-1")


def key(name: str) -> str:
    return sha1(name.encode()).hexdigest()


def task(
    name: str, *needs: str, function: str = "f", python: str = "3.11", priority: int = 0, form: str = ""
) -> Submission:
    needed, named = tuple(map(key, needs)), f"form of {form or name}".encode()
    return Submission(key(name), function, needed, named, f"spec of {name}".encode(), priority, python)


def worker_of(store: Store) -> WorkerInfo:
    info = system.me("worker")
    store.renew([info])
    return info


def outcome(claim: Claim, digest: bytes = b"1", duration: float = 1e-4) -> Settlement:
    lease = claim.lease
    verdict = Verdict(lease.key, lease.round, lease.inputs, lease.attempt, digest, 5.0, duration)
    return Settlement(verdict, b"outcome " + digest)


def run_all(store: Store, digest: bytes = b"1") -> int:
    """Be a worker until nothing is ready; answer how many tasks were run."""
    worker = worker_of(store)
    done, settled = 0, []
    while claims := store.claim(worker.id, 1000, 0.0, settled):
        settled = [outcome(claim, digest) for claim in claims]
        done += len(claims)
    return done


def test_submitting_twice_is_once(store: Store) -> None:
    assert store.submit([task("a"), task("b")], HERE) == SubmitReport(new=2)
    assert store.submit([task("a"), task("c")], HERE) == SubmitReport(new=1, known=1)
    assert run_all(store) == 3
    assert store.submit([task("a")], HERE) == SubmitReport(finished=1)


def test_a_claim_brings_the_spec_and_what_the_needs_came_to(store: Store) -> None:
    store.submit([task("a"), task("b"), task("c", "b", "a")], HERE)
    worker = worker_of(store)
    settled = []
    for digest in (b"1", b"2"):
        (claim,) = store.claim(worker.id, 1, 0.0, settled)
        assert claim.needs == ()
        settled = [outcome(claim, digest, duration=1.0)]
    (claim,) = store.claim(worker.id, 1, 0.0, settled)
    assert claim.body == b"spec of c"
    assert claim.needs == (b"outcome 2", b"outcome 1")
    assert claim.lease.inputs == sha1(b"21").digest()


def test_a_need_may_be_submitted_after_what_needs_it(store: Store) -> None:
    store.submit([task("b", "a")], HERE)
    assert store.states([key("b"), key("a")]) == [State.WAITING, None]
    store.submit([task("a")], HERE)
    assert run_all(store) == 2


def test_needs_are_counted_by_function(store: Store) -> None:
    other = Origin("ann", "/other.ipynb", "cell-1")
    store.submit([task("a", function="load"), task("b", function="load")], HERE)
    store.submit([task("c", "a", "b", function="join"), task("d", "c", function="join")], HERE)
    store.submit([task("e", "d", "not there", function="show")], other)
    assert sorted(store.edges()) == [("join", "join", 1), ("join", "load", 2), ("show", "join", 1)]
    assert ("show", "join", 1) not in store.edges(Scope(notebook=HERE.notebook))
    store.request([key("e")], other, False)
    assert sorted(store.edges()) == [("join", "join", 1), ("join", "load", 2)]


def test_no_two_workers_have_one_task(store: Store) -> None:
    store.submit([task(str(i)) for i in range(200)], HERE)
    reused_from: list[str] = []

    def work() -> None:
        worker = worker_of(store)
        settled: list[Settlement] = []
        while claims := store.claim(worker.id, 7, 0.0, settled):
            reused_from.extend(claim.lease.key for claim in claims)
            settled = [outcome(claim) for claim in claims]

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reused_from) == sorted(key(str(i)) for i in range(200))


def chain_of(store: Store, first: str, *rest: str) -> list[Claim]:
    """Submit tasks that need one another, of a function known to be short, and claim the first."""
    store.submit([task(f"timed {n}") for n in range(9)], HERE)
    run_all(store)
    names = (first, *rest)
    store.submit([task(name, *names[:n][-1:]) for n, name in enumerate(names)], HERE)
    return store.claim(worker_of(store).id, 3, 0.0, chains=True)


def made_of(claim: Claim, digest: bytes = b"1") -> Settlement:
    """Return the outcome of a task that ran on the value ``1``."""
    lease = Lease(claim.lease.key, 0, sha1(b"1").digest(), 1)
    return outcome(msgspec.structs.replace(claim, lease=lease), digest)


def test_a_chain_comes_with_its_first_task_and_is_settled_with_it(store: Store) -> None:
    claims = chain_of(store, "a", "b", "c", "d")
    assert [claim.lease.key for claim in claims] == [key("a"), key("b"), key("c")]
    assert [claim.lease.inputs for claim in claims] == [NO_INPUTS, NEXT, NEXT]
    assert [claim.needs for claim in claims] == [(), (b"",), (b"",)]
    assert store.states([key("b")]) == [State.WAITING]
    assert store.claim("other", 9, 0.0, chains=True) == []
    store.claim("w", 0, 0.0, [outcome(claims[0]), made_of(claims[1]), made_of(claims[2])])
    assert store.states([key(name) for name in "abcd"]) == [State.FINISHED] * 3 + [State.READY]


def test_what_follows_is_others_once_what_it_needs_is_settled_unless_it_has_begun(store: Store) -> None:
    claims = chain_of(store, "a", "b", "c")
    me = system.me("worker").id
    store.claim(me, 0, 0.0, [outcome(claims[0])], begun=Lease(key("b"), 0, sha1(b"1").digest(), 1))
    assert store.states([key("b")]) == [State.RUNNING]
    assert store.claim("other", 9, 0.0) == []
    store.claim(me, 0, 0.0, [made_of(claims[1])])
    assert [claim.lease.key for claim in store.claim("other", 9, 0.0)] == [key("c")]


def test_a_task_that_two_others_need_has_none_that_follows(store: Store) -> None:
    store.submit([task("timed")], HERE)
    run_all(store)
    store.submit([task("a"), task("b", "a"), task("c", "a")], HERE)
    assert len(store.claim("w", 9, 0.0, chains=True)) == 1


def test_what_runs_behind_its_need_is_nothing_that_may_reuse_an_earlier_run(store: Store) -> None:
    store.submit([task("a"), task("b", "a")], HERE)
    run_all(store)
    store.submit([task("a2"), task("b2", "a2", form="b")], HERE)
    claims = store.claim(worker_of(store).id, 9, 0.0, chains=True)
    assert [claim.lease.key for claim in claims] == [key("a2")]
    store.claim("w", 0, 0.0, [outcome(claims[0])])
    assert store.states([key("b2")]) == [State.FINISHED]


def test_what_ran_behind_its_need_counts_for_nothing_where_an_earlier_run_can_be_reused(store: Store) -> None:
    chain = ("s", "x1", "x2")
    store.submit([task("s"), task("x1", "s", form="x"), task("x2", "x1", form="x")], HERE)
    worker = worker_of(store)
    for number in range(len(chain)):
        (claim,) = store.claim(worker.id, 1, 0.0)
        store.claim(worker.id, 0, 0.0, [outcome(claim, str(number).encode())])
    store.submit([task("t"), task("y1", "t", form="x"), task("y2", "y1", form="x")], HERE)
    (first,) = store.claim(worker.id, 9, 0.0, chains=True)
    store.claim(worker.id, 0, 0.0, [outcome(first, b"7")])
    claims = store.claim(worker.id, 9, 0.0, chains=True)  # each needs what is like itself, as in the first chain
    assert [claim.lease.key for claim in claims] == [key("y1"), key("y2")]
    store.claim(worker.id, 0, 0.0, [outcome(claims[0], b"1"), made_of(claims[1], b"9")])
    [held] = store.outcomes([key("y2")])
    assert held is not None
    assert (held.verdict.key, held.verdict.digest) == (key("x2"), b"2")


def test_an_idle_worker_wakes_when_a_task_is_submitted(store: Store) -> None:
    worker = worker_of(store)
    got: list[Claim] = []
    thread = threading.Thread(target=lambda: got.extend(store.claim(worker.id, 1, 30.0)))
    thread.start()
    store.submit([task("a")], HERE)
    thread.join(30)
    assert [claim.lease.key for claim in got] == [key("a")]


def test_settling_twice_is_once(store: Store) -> None:
    store.submit([task("a")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    for _ in range(2):
        store.claim(worker.id, 0, 0.0, [outcome(claim)])
    assert store.states([key("a")]) == [State.FINISHED]
    assert store.snapshot().counts[State.FINISHED] == 1


def test_claims_given_back_are_open_to_others(store: Store) -> None:
    store.submit([task("a")], HERE)
    first, second = worker_of(store), worker_of(store)
    (claim,) = store.claim(first.id, 1, 0.0)
    assert store.claim(second.id, 1, 0.0) == []
    store.release([claim.lease])
    assert store.claim(second.id, 1, 0.0)[0].lease.attempt == 2


def test_claims_of_a_worker_that_left_are_open_to_others_at_once(store: Store) -> None:
    store.submit([task("a")], HERE)
    first, second = worker_of(store), worker_of(store)
    store.claim(first.id, 1, 0.0)
    store.leave([first.id])
    assert store.claim(second.id, 1, 0.0)[0].lease.attempt == 2
    assert [(info.id, alive) for info, alive, _ in store.processes()] == [(first.id, False), (second.id, True)]


def test_an_invalidated_task_and_what_used_it_run_again(store: Store) -> None:
    store.submit([task("a"), task("b", "a")], HERE)
    run_all(store)
    assert store.invalidate([key("a")], Why.DIRECT, "ann") == [key("a")]
    [end, other] = store.invalidations([key("a"), key("nothing")])
    assert end is not None
    assert (end.user, end.why) == ("ann", Why.DIRECT)
    assert other is None
    assert store.states([key("a"), key("b")]) == [State.READY, State.WAITING]
    assert run_all(store, b"2") == 2


def test_retry_is_for_failed_tasks_only(store: Store) -> None:
    store.submit([task("a"), task("b")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    store.claim(worker.id, 0, 0.0, [outcome(claim, b"")])
    run_all(store)
    assert store.states([key("a"), key("b")]) == [State.FAILED, State.FINISHED]
    assert store.invalidate([key("a"), key("b")], Why.RETRY, "ann") == [key("a")]


def test_every_attempt_that_ended_is_told_whether_or_not_it_counts(store: Store) -> None:
    store.submit([task("a"), task("b")], HERE)
    worker = worker_of(store)
    for round, (digest, final) in enumerate([(b"", False), (b"", True), (b"1", True), (b"2", True)]):
        (claim,) = store.claim(worker.id, 1, 0.0, target=Target(keys=frozenset([key("a")])))
        verdict = msgspec.structs.replace(outcome(claim, digest).verdict, final=final, started=5.0 + round)
        store.claim(worker.id, 0, 0.0, [Settlement(verdict, b"outcome %d" % round)])
        if final and round < 3:
            store.invalidate([key("a")], Why.DIRECT if digest else Why.RETRY, "ann")
    ended, total = store.runs()
    assert [(run.body, run.counts) for run in ended] == [
        (b"outcome 3", True), (b"outcome 2", False), (b"outcome 1", False), (b"outcome 0", False),
    ]  # fmt: skip
    assert ([run.body for run in store.runs(limit=1)[0]], total) == ([b"outcome 3"], 4)
    assert store.runs(Scope("/b.ipynb")) == ([], 0)


def test_since_when_a_worker_runs_what_its_last_beat_does_not_tell_follows_from_facts(store: Store) -> None:
    store.submit([task("a"), task("b")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    ended = store.snapshot().at + 60.0  # of a clock that is ahead
    late = msgspec.structs.replace(outcome(claim).verdict, started=ended - 1.0, duration=1.0)
    [view] = store.snapshot().workers
    assert (view.info.task, view.info.since > 1e9) == (key("a"), True)
    (claim,) = store.claim(worker.id, 1, 0.0, [Settlement(late, b"outcome")])
    [view] = store.snapshot().workers
    assert (view.info.task, view.info.since) == (key("b"), ended)


def test_a_clock_that_is_hours_ahead_does_not_put_off_a_retry(store: Store) -> None:
    store.submit([task("a")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    hours = msgspec.structs.replace(outcome(claim, b"").verdict, final=False, retry_at=store.snapshot().at + 7200)
    (again,) = store.claim(worker.id, 1, 0.0, [Settlement(hours, b"outcome")])
    assert (again.lease.attempt, again.failures) == (2, 1)


def test_a_name_that_is_no_task_is_an_error_that_names_it(store: Store) -> None:
    with pytest.raises(NoSuchTask, match=key("nothing")[:12]):
        store.invalidate([key("nothing")], Why.DIRECT, "ann")


def test_a_task_nobody_wants_any_more_is_not_claimed(store: Store) -> None:
    store.submit([task("a")], HERE)
    store.request([key("a")], HERE, wanted=False)
    assert run_all(store) == 0
    store.request([key("a")], HERE, wanted=True)
    assert store.requested(HERE) == [key("a")]
    assert run_all(store) == 1


def test_outcomes_are_those_that_hold(store: Store) -> None:
    store.submit([task("a"), task("b", "a")], HERE)
    run_all(store)
    held = store.outcomes([key("b"), key("nothing"), key("a")])
    assert [h and h.body for h in held] == [b"outcome 1", None, b"outcome 1"]
    store.invalidate([key("a")], Why.DIRECT, "ann")
    assert store.outcomes([key("a"), key("b")]) == [None, None]


def test_blobs_are_kept_once_under_their_content(store: Store) -> None:
    address = store.put_blob([b"ab", memoryview(b"c")])
    assert store.put_blob([b"abc"]) == address
    assert bytes(store.get_blob(address)) == b"abc"
    with pytest.raises(ValueLost, match="0123"):
        store.get_blob("0123" * 10)


def test_orders_reach_the_supervisor_once_and_in_order(store: Store) -> None:
    supervisor = system.me("supervisor")
    store.renew([supervisor])
    version = store.watch(-1, 0.0)
    store.order([supervisor.id], Scale(3))
    store.order([supervisor.id], Stop(now=True))
    assert store.watch(version, 10.0) != version
    assert store.renew([supervisor]) == [Scale(3), Stop(now=True)]
    assert store.renew([supervisor]) == []


@pytest.mark.parametrize("size", [2.5, "4", -1, None])
def test_an_order_that_cant_be_read_is_skipped_and_noted(store: Store, size: Any) -> None:
    supervisor = system.me("supervisor")
    store.renew([supervisor])
    for order in (Scale(3), Scale(size), Stop()):
        store.order([supervisor.id], order)
    assert store.renew([supervisor]) == [Scale(3), Stop()]
    assert "skipped an order that can't be read" in store.log(supervisor.id)
    assert store.renew([supervisor]) == []


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_a_heartbeat_that_cant_be_read_is_skipped_and_noted_once(
    kind: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    store = open_store(request.getfixturevalue("redis_server").url() if kind == "redis" else folder)
    well, unreadable = system.me("supervisor"), system.me("worker", started="yesterday")
    store.renew([well, unreadable])
    with pytest.warns(UserWarning, match=f"skipped the heartbeat of {unreadable.id}, which can't be read") as noted:
        found = store.processes()
    assert [info.id for info, _, _ in found] == [well.id]
    assert store.snapshot().workers == ()
    assert len(noted) == 1
    store.close()


def test_the_version_changes_with_news_only(store: Store) -> None:
    version = store.watch(-1, 0.0)
    assert store.watch(version, 0.0) == version
    store.submit([task("a")], HERE)
    assert store.watch(version, 0.0) != version


def test_the_snapshot_counts_by_function_and_notebook(store: Store) -> None:
    store.submit([task("a"), task("b", "a", function="g")], HERE)
    store.submit([task("c")], Origin("bob", "/b.ipynb"))
    mine = store.snapshot(Scope("/a.ipynb"))
    assert [(f.name, f.counts) for f in mine.functions] == [("f", {State.READY: 1}), ("g", {State.WAITING: 1})]
    assert store.snapshot().counts[State.READY] == 2


def test_a_listing_can_be_by_state_and_target(store: Store) -> None:
    store.submit([task("a"), task("b", "a", function="g")], HERE)
    assert [view.key for view in store.tasks(state=State.WAITING)] == [key("b")]
    assert [view.key for view in store.tasks(target=Target(keys=frozenset([key("a")])))] == [key("a")]
    assert store.keys_named("g") == [key("b")]


def test_tasks_of_another_python_are_counted_and_left_alone(store: Store) -> None:
    store.submit([task("a", python="3.12"), task("b", python="3.11")], HERE)
    worker = worker_of(store)
    assert [claim.lease.key for claim in store.claim(worker.id, 9, 0.0, python="3.11")] == [key("b")]
    assert store.foreign("3.11") == {"3.12": 1}
    assert store.idle(Target(names=frozenset(["nothing"])), "3.11")


def test_what_a_process_prints_is_kept(store: Store) -> None:
    worker = worker_of(store)
    store.notice(worker.id, "one\n")
    store.notice(worker.id, "two\n")
    assert store.log(worker.id) == "one\ntwo\n"
    assert store.log("nobody") == ""


# -- taking over -------------------------------------------------------------------------------------------------------


def test_a_task_on_equal_values_reuses_the_run_there_was_with_the_proof_that_it_may(store: Store) -> None:
    store.submit([task("a1"), task("b1", "a1", form="b")], HERE)
    assert run_all(store) == 2
    store.submit([task("a2"), task("b2", "a2", form="b"), task("c", "b2", form="c")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 9, 0.0)
    (above,) = store.claim(worker.id, 9, 0.0, [outcome(claim)])
    assert [claim.lease.key, above.lease.key] == [key("a2"), key("c")]
    assert (above.needs, above.proofs) == ((b"outcome 1",), ((b"spec of b2", b"spec of b1"),))
    [held] = store.outcomes([key("b2")])
    assert held is not None
    assert (held.verdict.key, held.body, held.proof) == (key("b1"), b"outcome 1", (b"spec of b2", b"spec of b1"))
    [view] = store.tasks(target=Target(keys=frozenset([key("b2")])))
    assert (view.state, view.source) == (State.FINISHED, key("b1"))
    assert store.snapshot().reused == 1


def test_what_was_reused_and_is_invalidated_runs_and_stays_invalidated_for_who_comes_later(
    store: Store, store_url: str
) -> None:
    store.submit([task("a1"), task("a2"), task("b1", "a1", form="b")], HERE)
    run_all(store)
    assert store.submit([task("b2", "a2", form="b"), task("d", "b2")], HERE) == SubmitReport(new=1, finished=1)
    assert run_all(store) == 1
    assert store.states([key("b2")]) == [State.FINISHED]
    assert store.invalidate([key("b2")], Why.DIRECT, "ann") == [key("b2")]
    assert open_store(store_url).states([key("b1"), key("b2")]) == [State.FINISHED, State.READY]
    assert run_all(store) == 1


def test_a_lost_value_is_lost_for_the_run_it_was_reused_from(store: Store) -> None:
    store.submit([task("a1"), task("a2"), task("b1", "a1", form="b")], HERE)
    run_all(store)
    store.submit([task("b2", "a2", form="b")], HERE)
    assert store.invalidate([key("b2")], Why.LOST, "ann") == [key("b2")]
    assert store.states([key("b1"), key("b2")]) == [State.READY, State.READY]


def test_an_accepted_run_stands_until_that_is_undone(store: Store, store_url: str) -> None:
    store.submit([task("old"), task("new"), task("above", "new")], HERE)
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 0.0)
    store.claim(worker.id, 0, 0.0, [outcome(claim)])
    assert claim.lease.key == key("old")
    new, above = store.current_inputs([key("new"), key("above")])
    assert (new, above) == (Lease(key("new"), 0, NO_INPUTS, 0), None)
    acceptance = Acceptance(key("new"), 0, NO_INPUTS, key("old"), 0, b"1", "code", "ann", 7.0)
    store.accept([(acceptance, b"signed")])
    assert store.acceptances([key("new"), key("old")]) == [b"signed", None]
    [held] = store.outcomes([key("new")])
    assert held is not None
    assert (held.verdict.key, held.body, held.proof) == (key("old"), b"outcome 1", (b"signed",))
    store.accept([(acceptance, b"signed again")], undone=True)
    assert store.acceptances([key("new")]) == [None]
    assert open_store(store_url).states([key("new"), key("above")]) == [State.READY, State.WAITING]
    store.accept([(acceptance, b"signed")])
    assert store.states([key("new")]) == [State.FINISHED]


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_the_origins_are_those_who_want_something_now(store: Store) -> None:
    assert store.origins() == []
    bob = Origin("bob", "/b.ipynb", "cell-2")
    store.submit([task("a"), task("b")], HERE)
    store.submit([task("a"), task("c")], bob)
    assert sorted(store.origins(), key=lambda origin: origin.user) == [HERE, bob]
    store.request([key("a"), key("b")], Origin(HERE.user, HERE.notebook), wanted=False)
    assert store.origins() == [bob]
    assert store.requested(HERE) == []


def test_a_forgotten_task_is_as_if_never_submitted(store: Store, store_url: str) -> None:
    store.submit([task("a"), task("b", "a"), task("c"), task("d", "c")], HERE)
    run_all(store)
    store.request([key("a"), key("b")], HERE, wanted=False)
    assert store.sweep([key("a"), key("b"), key("nothing")], [], 0.0, dry_run=True).tasks == 2
    assert store.states([key("a")]) == [State.FINISHED]
    report = store.sweep([key("a"), key("b"), key("nothing")], [], 0.0)
    assert report.tasks == 2
    assert report.size > 0
    for seen in (store, open_store(store_url)):
        assert seen.states([key("a"), key("b"), key("c"), key("d")]) == [None, None, State.FINISHED, State.FINISHED]
        assert seen.specs([key("a")]) == seen.outcomes([key("a")]) == [None]
        assert seen.keys_named("f") == [key("c"), key("d")]
        assert sum(seen.snapshot().counts.values()) == 2
        assert len(seen.edges()) == 1
    assert store.sweep([key("a")], [], 0.0) == SweepReport()


def test_a_forgotten_task_that_is_submitted_again_is_new_and_runs_again(store: Store) -> None:
    store.submit([task("a"), task("b", "a")], HERE)
    run_all(store)
    store.request([key("a"), key("b")], HERE, wanted=False)
    store.sweep([key("a"), key("b")], [], 0.0)
    assert store.submit([task("a"), task("b", "a")], HERE) == SubmitReport(new=2)
    assert store.states([key("a"), key("b")]) == [State.READY, State.WAITING]
    assert run_all(store, b"2") == 2
    held = store.outcomes([key("a"), key("b")])
    assert [one and one.body for one in held] == [b"outcome 2", b"outcome 2"]


def test_a_need_that_is_forgotten_and_comes_back_lets_go_on_what_waits_for_it(store: Store) -> None:
    store.submit([task("a")], HERE)
    store.submit([task("b", "a")], HERE)
    store.request([key("a"), key("b")], HERE, wanted=False)
    assert store.sweep([key("a")], [], 0.0).tasks == 1
    store.request([key("b")], HERE, wanted=True)
    assert store.states([key("a"), key("b")]) == [None, State.WAITING]
    store.submit([task("a")], HERE)
    assert run_all(store) == 2


def test_what_is_wanted_or_runs_is_not_forgotten(store: Store) -> None:
    store.submit([task("a"), task("b", "a"), task("c")], HERE)
    worker = worker_of(store)
    claims = [claim for _ in range(2) for claim in store.claim(worker.id, 1, 0.0)]
    assert {claim.lease.key for claim in claims} == {key("a"), key("c")}
    store.request([key("a"), key("c")], HERE, wanted=False)
    assert store.sweep([key("a"), key("b"), key("c")], [], 0.0) == SweepReport()
    assert store.states([key("a"), key("b"), key("c")]) == [State.RUNNING, State.WAITING, State.RUNNING]


def test_blobs_go_that_are_old_and_not_to_be_kept(store: Store) -> None:
    kept, gone = store.put_blob([b"kept"]), store.put_blob([b"gone away"])
    assert store.sweep([], [], 3600.0) == SweepReport()
    assert store.sweep([], [kept], -1.0, dry_run=True) == SweepReport(blobs=1, size=9)
    assert store.sweep([], [kept], -1.0) == SweepReport(blobs=1, size=9)
    assert store.sweep([], [kept], -1.0) == SweepReport()
    assert bytes(store.get_blob(kept)) == b"kept"
    assert store.put_blob([b"gone away"]) == gone
    assert bytes(store.get_blob(gone)) == b"gone away"


def test_compacting_changes_nothing_that_one_can_ask(store: Store, store_url: str) -> None:
    store.submit([task("a"), task("b", "a"), task("c")], HERE)
    run_all(store)
    store.invalidate([key("c")], Why.DIRECT, "ann")
    store.request([key("b")], HERE, wanted=False)
    before = store.states([key("a"), key("b"), key("c")])
    assert store.compact() >= 0
    assert not store.compact(dry_run=True)
    for seen in (store, open_store(store_url)):
        assert seen.states([key("a"), key("b"), key("c")]) == before
        assert [held and held.body for held in seen.outcomes([key("a"), key("b")])] == [b"outcome 1", b"outcome 1"]
    assert run_all(store) == 1


# -- the file store alone ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jugdata"


def test_two_processes_on_one_folder_see_each_others_facts(folder: Path) -> None:
    one, two = open_store(folder), open_store(folder)
    one.submit([task("a")], HERE)
    assert run_all(two) == 1
    assert one.states([key("a")]) == [State.FINISHED]
    held = one.outcomes([key("a")])[0]
    assert held is not None
    assert held.body == b"outcome 1"


def test_everything_is_found_again_by_a_process_that_comes_later(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task("a"), task("b", "a")], HERE)
    run_all(store)
    store.close()
    later = open_store(folder)
    assert later.submit([task("a"), task("b", "a")], HERE) == SubmitReport(finished=2)


def test_what_was_dropped_is_still_told_of_by_a_process_that_comes_later(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task("a")], HERE)
    run_all(store)
    store.invalidate([key("a")], Why.DIRECT, "ann")
    run_all(store, b"2")
    store.close()
    ended, total = open_store(folder).runs()
    assert sorted((run.body, run.counts) for run in ended) == [(b"outcome 1", False), (b"outcome 2", True)]
    assert total == 2


def test_a_claim_that_another_store_won_first_is_refused_and_known(folder: Path) -> None:
    one, two = open_store(folder), open_store(folder)
    one.submit([task("a")], HERE)
    first, second = worker_of(one), worker_of(two)
    two.states([])
    (claim,) = one.claim(first.id, 1, 0.0)
    os.truncate(next((folder / "log").glob(f"*{os.getpid()}*")), 0)  # the hint is lost, the claim stands
    with pytest.warns(UserWarning, match="shorter than it was"):
        assert two.claim(second.id, 1, 0.0) == []
    assert two.states([claim.lease.key]) == [State.RUNNING]


def test_the_claim_of_a_process_that_was_killed_is_taken_by_another(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task("a")], HERE)
    script = f"""
import os, signal
from jug_notebook import system
from jug_notebook.store import open_store
store = open_store({str(folder)!r})
worker = system.me("worker")
store.renew([worker])
assert store.claim(worker.id, 1, 10.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    worker = worker_of(store)
    (claim,) = store.claim(worker.id, 1, 10.0)
    assert claim.lease.attempt == 2


def test_a_worker_of_another_machine_is_dead_when_its_beat_stands_still_for_a_lease(folder: Path) -> None:
    clock = FakeClock()
    store = open_store(folder, clock)
    store.submit([task("a")], HERE)
    far = msgspec.structs.replace(system.me("worker"), machine="elsewhere")
    store.renew([far])
    store.claim(far.id, 1, 0.0)
    near = worker_of(store)
    for beat in range(40):
        clock.advance(1.0)
        store.renew([msgspec.structs.replace(far, beat=beat)])
        assert store.claim(near.id, 1, 0.0) == []
    reused_from: list[Claim] = []
    for _ in range(32):
        clock.advance(1.0)
        reused_from += store.claim(near.id, 1, 0.0)
    assert [claim.lease.attempt for claim in reused_from] == [2]


def test_an_order_is_news_also_when_it_comes_with_a_full_look_around(folder: Path) -> None:
    clock = FakeClock()
    store = open_store(folder, clock)
    supervisor = system.me("supervisor")
    store.renew([supervisor])
    version = store.watch(-1, 0.0)
    clock.advance(5.0)
    store.order([supervisor.id], Stop())
    assert store.watch(version, 0.0) != version


def test_where_no_bell_rings_an_order_is_news_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileWatcher, "changed", lambda self: None)
    store = open_store(folder)
    supervisor = system.me("supervisor")
    store.renew([supervisor])
    version = store.watch(-1, 0.0)
    assert store.watch(version, 0.0) == version
    store.order([supervisor.id], Stop())
    assert store.watch(version, 0.0) != version


def test_a_busy_reader_sees_other_machines_within_half_a_second(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    near = open_store(folder, clock)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(system, "machine", lambda: "elsewhere")
        far = open_store(folder)
        far.submit([task("a")], HERE)
    monkeypatch.setattr(FileWatcher, "changed", lambda self: set())  # nothing is noticed of what others write
    for _ in range(30):
        clock.advance(0.01)
        near.states([])
    far.submit([task("b")], HERE)
    looks = 0
    while near.states([key("b")]) == [None]:
        clock.advance(0.01)
        looks += 1
    assert looks <= 45


def test_an_idle_host_opens_few_files_however_many_workers_and_other_hosts_there_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    near = open_store(folder, clock)
    supervisor = system.me("supervisor")
    workers = [msgspec.structs.replace(system.me("worker"), supervisor=supervisor.id) for _ in range(50)]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(system, "machine", lambda: "elsewhere")
        far = [open_store(folder) for _ in range(50)]
    for number, store in enumerate(far):
        store.submit([task(f"{number}")], HERE)
        store.request([key(f"{number}")], HERE, False)
        store.renew([msgspec.structs.replace(system.me("supervisor"), machine="elsewhere")])
    monkeypatch.setattr(FileWatcher, "changed", lambda self: set())
    opened: list[object] = []

    def second(beat: int) -> None:
        near.renew([msgspec.structs.replace(info, beat=beat) for info in (supervisor, *workers)])
        for _ in range(10):
            clock.advance(0.1)
            assert near.claim(workers[0].id, 1, 0.0) == []

    for beat in range(10):
        second(beat)
    count_files(opened)
    try:
        for beat in range(10, 20):
            second(beat)
    finally:
        count_files(None)
    assert len(opened) <= 100


_counting: list[list[object] | None] = [None]


def count_files(into: list[object] | None) -> None:
    """Note each file that is opened and folder that is listed; None ends that."""
    if len(_counting) == 1:
        _counting.append(None)
        sys.addaudithook(_on_event)
    _counting[0] = into


def _on_event(event: str, args: object) -> None:
    if event in ("open", "os.listdir", "os.scandir") and (noted := _counting[0]) is not None:
        noted.append(args)


def test_of_two_hosts_that_race_none_gets_much_less(folder: Path) -> None:
    near, far = open_store(folder), open_store(folder)
    names = [f"{number}" for number in range(600)]
    near.submit([task(name) for name in names], HERE)
    me, other = worker_of(near), worker_of(far)
    won = {"near": 0, "far": 0}
    while True:
        first, second = near.claim(me.id, 5, 0.0), far.claim(other.id, 5, 0.0)
        won["near"] += len(first)
        won["far"] += len(second)
        near.claim(me.id, 0, 0.0, [outcome(claim) for claim in first])
        far.claim(other.id, 0, 0.0, [outcome(claim) for claim in second])
        if not first and not second:
            break
    assert sum(won.values()) == 600
    assert min(won.values()) > 200


def test_a_torn_tail_is_ignored_and_read_when_it_is_whole(folder: Path) -> None:
    one, two = open_store(folder), open_store(folder)
    one.submit([task("a")], HERE)
    log = next(path for path in (folder / "log").iterdir() if path.stat().st_size)
    whole = log.read_bytes()
    one.submit([task("b")], HERE)
    more = log.read_bytes()
    log.write_bytes(more[: len(whole) + 20])
    assert two.states([key("a"), key("b")]) == [State.READY, None]
    log.write_bytes(more)
    three = open_store(folder)
    assert three.states([key("a"), key("b")]) == [State.READY, State.READY]


def test_a_damaged_frame_hides_only_itself(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task("a")], HERE)
    log = next(path for path in (folder / "log").iterdir() if path.stat().st_size)
    first = log.stat().st_size
    store.submit([task("b")], HERE)
    data = bytearray(log.read_bytes())
    data[first - 1] ^= 1
    log.write_bytes(data)
    with pytest.warns(UserWarning, match="its frame 1 can't be read"):
        assert open_store(folder).states([key("b")]) == [State.READY]


def test_a_log_that_was_deleted_before_it_was_durable_is_written_again(folder: Path) -> None:
    store = open_store(folder)
    store.submit([task("a")], HERE)
    worker = worker_of(store)
    claims = store.claim(worker.id, 1, 0.0)
    for log in (folder / "log").iterdir():
        log.unlink()
    store.claim(worker.id, 0, 0.0, [outcome(claims[0])])
    store.sync()
    later = open_store(folder)
    later.submit([task("a")], HERE)
    assert later.states([key("a")]) == [State.FINISHED]


def test_what_settles_while_the_disk_is_being_synced_waits_for_the_next_sync_in_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    store = open_store(folder, clock)
    store.submit([task(f"t{n}") for n in range(300)], HERE)
    worker, settled, syncs = worker_of(store), [], 0

    def go_on() -> None:
        nonlocal settled
        settled = [outcome(claim, duration=1e-3) for claim in store.claim(worker.id, 1, 0.0, settled)]
        clock.advance(0.001)

    def sync(_: int) -> None:
        nonlocal syncs
        syncs += 1
        go_on()

    monkeypatch.setattr("_thread.start_new_thread", lambda function, args: function(*args))
    monkeypatch.setattr(os, "fdatasync", sync)
    for _ in range(200):
        go_on()
    assert 5 < syncs <= 11


def test_a_folder_that_was_removed_is_told_by_name(folder: Path) -> None:
    store = open_store(folder)
    folder.rename(folder.with_name("elsewhere"))
    for look in (store.processes, store.snapshot):
        with pytest.raises(StoreError, match="is gone: its folder was removed or moved"):
            look()
    folder.with_name("elsewhere").rename(folder)
    assert store.snapshot().total == 0


def test_a_damaged_blob_is_a_lost_value(folder: Path) -> None:
    store = open_store(folder)
    address = store.put_blob([b"x" * 100])
    path = folder / "blobs" / address[:2] / address[2:]
    path.write_bytes(b"y" * 100)
    with pytest.raises(ValueLost, match="damaged"):
        open_store(folder).get_blob(address)


def test_where_links_are_refused_claims_are_exclusive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **at: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    store = open_store(folder)
    store.submit([task("a")], HERE)
    monkeypatch.setattr(os, "link", refuse)
    other = open_store(folder)
    first, second = worker_of(store), worker_of(other)
    other.states([])
    assert len(store.claim(first.id, 1, 0.0)) == 1
    assert other.claim(second.id, 1, 0.0) == []


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: f.write_text("hello"), "is a file, not a folder"),
        (lambda f: (f.mkdir(), (f / "thesis.tex").write_text("x")), "holds other files"),
        (lambda f: (f.mkdir(), (f / "store.json").write_text("{")), "is no store"),
        (lambda f: (f.mkdir(), (f / "store.json").write_text('{"format": 99, "id": "x"}')), "newer jug_notebook"),
        (lambda f: (f.mkdir(), (f / "store.json").write_text('{"format": 1, "id": "x"}')), "give another folder"),
    ],
)
def test_a_folder_that_is_no_store_is_refused_by_name(folder: Path, prepare: object, message: str) -> None:
    prepare(folder)  # type: ignore[operator]
    with pytest.raises(StoreError, match=message) as caught:
        open_store(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="not yours to write"):
        open_store(tmp_path / "jugdata")


def test_a_kind_of_store_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StoreError, match="no store of kind 'gopher'"):
        open_store("gopher://x")


def test_no_inputs_is_what_a_task_without_needs_is_claimed_with(store: Store) -> None:
    store.submit([task("a")], HERE)
    assert store.claim(worker_of(store).id, 1, 0.0)[0].lease.inputs == NO_INPUTS
