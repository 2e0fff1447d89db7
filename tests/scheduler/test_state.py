"""The scheduler state: the same events, in any order and however often applied, give the same state."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Sequence
from hashlib import sha1
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jug_notebook.model import (
    NO_INPUTS,
    Accepted,
    Claimed,
    Event,
    Forgotten,
    Invalidated,
    Invalidation,
    Lease,
    Origin,
    Released,
    Request,
    Requested,
    Scope,
    Settled,
    State,
    Submitted,
    Target,
    Verdict,
    Why,
    WorkerLost,
)
from jug_notebook.scheduler import queries, queue, state
from jug_notebook.scheduler.queue import BUDGET
from jug_notebook.scheduler.records import KEPT, REUSED, STATES, Offer
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.store.merging import Merger

HERE = Origin("ann", "/a.ipynb", "cell-1")
LONE = sha1(b"alone").hexdigest()  #: a key as real ones are: a finished task of that name can be packed
THERE = Origin("bob", "/b.ipynb", "cell-1")


@pytest.fixture(autouse=True, scope="module")
def pack_at_once() -> Iterator[None]:
    """Have each finished task packed as soon as that is possible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "TOGETHER", 1)
        yield


PLACES: list[str] = []


def at(text: str) -> int:
    """Where a body is, as a store would number it."""
    if text not in PLACES:
        PLACES.append(text)
    return PLACES.index(text)


def submitted(
    key: str, *needs: str, name: str = "f", priority: int = 0, python: str = "3.11", form: bytes = b""
) -> tuple[Event, list[int]]:
    forms = [form or b"form of " + key.encode()]
    return Submitted(name, priority, python, [key], [needs], forms), [at(f"spec of {key}")]


def requested(*keys: str, origin: Origin = HERE, counter: int = 1, wanted: bool = True) -> Event:
    return Requested(Request(origin, counter, wanted), list(keys))


def inputs_of(*digests: bytes) -> bytes:
    return sha1(b"".join(digests)).digest()


def finished(
    key: str, digest: bytes, *needs: bytes, round: int = 0, attempt: int = 1, duration: float = 0.1, started: float = 5
) -> Verdict:
    return Verdict(key, round, inputs_of(*needs), attempt, digest, started, duration)


def invalidated(key: str, round: int = 0, why: Why = Why.DIRECT, inputs: bytes = b"") -> Event:
    return Invalidated([key], [round], why, "ann", 9.0, [inputs])


def accepted(
    key: str, source: str, digest: bytes, *needs: bytes, round: int = 0, counter: int = 1, undone: bool = False,
    source_round: int = 0,
) -> tuple[Event, list[int]]:  # fmt: skip
    inputs = [inputs_of(*needs)]
    event = Accepted(counter, undone, "ann", 9.0, [key], [round], inputs, [source], [source_round], [digest])
    return event, [at(f"acceptance of {source} for {key}")]


def failed(key: str, *needs: bytes, round: int = 0, attempt: int = 1, final: bool = True, died: bool = False,
           retry_at: float = 0.0) -> Verdict:  # fmt: skip
    return Verdict(key, round, inputs_of(*needs), attempt, final=final, died=died, retry_at=retry_at)


def settled(*verdicts: Verdict, worker: str = "w") -> tuple[Event, list[int]]:
    return Settled(worker, list(verdicts)), [at(f"outcome of {v.key}") for v in verdicts]


def state_of(*events: Event | tuple[Event, list[int]]) -> SchedulerState:
    scheduler = SchedulerState()
    for event in events:
        if isinstance(event, tuple):
            scheduler.apply(*event)
        else:
            scheduler.apply(event)
    return scheduler


def pair(scheduler: SchedulerState, *keys: str) -> list[State | None]:
    return [scheduler.state(key) for key in keys]


def test_inputs_of_a_task_without_needs_are_the_digest_of_nothing() -> None:
    assert inputs_of() == NO_INPUTS


def test_a_task_is_ready_when_all_it_needs_is_finished() -> None:
    scheduler = state_of(submitted("a"), submitted("b", "a"), requested("b"))
    assert pair(scheduler, "a", "b") == [State.READY, State.WAITING]
    scheduler.apply(*settled(finished("a", b"1")))
    assert pair(scheduler, "a", "b") == [State.FINISHED, State.READY]


def test_wanting_flows_to_needs_and_so_does_no_longer_wanting() -> None:
    scheduler = state_of(submitted("a"), submitted("b", "a"), submitted("c", "b"), requested("c"))
    assert scheduler.state("a") is State.READY
    scheduler.apply(requested("c", counter=2, wanted=False))
    assert pair(scheduler, "a", "b", "c") == [State.CANCELLED] * 3


def test_the_later_request_of_one_origin_counts_and_others_stand() -> None:
    scheduler = state_of(submitted("a"), requested("a", counter=4, wanted=False), requested("a", counter=3))
    assert scheduler.state("a") is State.CANCELLED
    scheduler.apply(requested("a", origin=THERE))
    assert scheduler.state("a") is State.READY


def test_not_wanting_without_a_cell_speaks_for_all_cells_of_the_notebook() -> None:
    notebook = Origin(HERE.user, HERE.notebook)
    scheduler = state_of(submitted("a"), requested("a"), requested("a", origin=notebook, counter=2, wanted=False))
    assert scheduler.state("a") is State.CANCELLED
    assert queries.requested(scheduler.tasks.values(), HERE) == []
    scheduler.apply(requested("a", counter=3))
    assert scheduler.state("a") is State.READY


def test_what_needs_a_failed_task_is_blocked_and_knows_whom_to_blame() -> None:
    scheduler = state_of(submitted("a"), submitted("b", "a"), submitted("c", "b"), requested("c"), settled(failed("a")))
    assert pair(scheduler, "a", "b", "c") == [State.FAILED, State.BLOCKED, State.BLOCKED]
    assert queries.blocking_task(scheduler.tasks.get("c")) == "a"
    scheduler.apply(Invalidated(["a"], [0], Why.RETRY, "ann", 9.0))
    assert pair(scheduler, "a", "b", "c") == [State.READY, State.WAITING, State.WAITING]


def test_an_invalidated_need_takes_back_what_used_it_and_gives_it_again_if_it_comes_back_equal() -> None:
    scheduler = state_of(
        submitted("a"),
        submitted("b", "a"),
        requested("b"),
        settled(finished("a", b"1")),
        settled(finished("b", b"2", b"1")),
    )
    scheduler.apply(Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0))
    assert pair(scheduler, "a", "b") == [State.READY, State.WAITING]
    scheduler.apply(*settled(finished("a", b"1", round=1)))
    assert pair(scheduler, "a", "b") == [State.FINISHED, State.FINISHED]


def test_a_need_that_comes_back_different_makes_what_used_it_run_again() -> None:
    scheduler = state_of(
        submitted("a"),
        submitted("b", "a"),
        requested("b"),
        settled(finished("a", b"1")),
        settled(finished("b", b"2", b"1")),
    )
    scheduler.apply(Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0))
    scheduler.apply(*settled(finished("a", b"other", round=1)))
    assert scheduler.state("b") is State.READY
    assert scheduler.ready(9, 0.0)[0].lease == Lease("b", 0, inputs_of(b"other"), 1)


def test_two_presses_of_invalidate_are_one() -> None:
    press = Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0)
    scheduler = state_of(submitted("a"), requested("a"), settled(finished("a", b"1")), press)
    scheduler.apply(*settled(finished("a", b"1", round=1)))
    scheduler.apply(press)
    assert scheduler.state("a") is State.FINISHED


def test_the_state_knows_who_began_the_round_that_a_task_is_in() -> None:
    by_ann, by_bob = (Invalidated(["a"], [0], Why.DIRECT, who, at) for who, at in (("ann", 9.0), ("bob", 8.0)))
    for events in ((by_ann, by_bob), (by_bob, by_ann)):
        scheduler = state_of(submitted("a"), requested("a"), settled(finished("a", b"1")), *events)
        assert scheduler.history.invalidation(scheduler.tasks["a"]) == Invalidation(0, 9.0, "ann", Why.DIRECT)
    scheduler = state_of(submitted("a"), requested("a"))
    assert scheduler.history.invalidation(scheduler.tasks["a"]) is None


def test_a_late_outcome_of_a_former_round_counts_for_nothing() -> None:
    scheduler = state_of(
        submitted("a"), requested("a"), Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0), settled(finished("a", b"1"))
    )
    assert scheduler.state("a") is State.READY


def test_attempts_that_count_for_nothing_are_still_told_each_once() -> None:
    verdicts = [failed("a", final=False), failed("a", attempt=2), finished("a", b"1", round=1)]
    scheduler = state_of(submitted("a"), requested("a"), settled(*verdicts[:2]), invalidated("a", why=Why.RETRY))
    scheduler.apply(*settled(verdicts[2]))
    scheduler.apply(invalidated("a", round=1))
    scheduler.apply(*settled(verdicts[0]))
    assert sorted((outcome[0].round, outcome[0].attempt) for _, outcome in scheduler.runs()) == [(0, 1), (0, 2), (1, 1)]
    assert list(scheduler.runs(Scope(THERE.notebook))) == []


def test_a_claim_of_a_worker_that_is_gone_is_void_and_the_next_attempt_is_offered() -> None:
    scheduler = state_of(submitted("a"), requested("a"))
    lease = scheduler.ready(1, 0.0)[0].lease
    scheduler.apply(Claimed("w", [lease]))
    assert scheduler.state("a") is State.RUNNING
    scheduler.apply(WorkerLost("w"))
    assert scheduler.ready(1, 0.0)[0].lease.attempt == 2


def test_a_worker_that_is_gone_held_all_it_had_claimed_in_any_round_of_a_task() -> None:
    scheduler = state_of(
        submitted("a"), requested("a"), Claimed("w", [Lease("a", 0, NO_INPUTS, 1)]), invalidated("a"),
        Claimed("w", [Lease("a", 1, NO_INPUTS, 1)]), settled(finished("a", b"1")),
    )  # fmt: skip
    assert scheduler.state("a") is State.RUNNING
    scheduler.apply(WorkerLost("w"))
    assert scheduler.state("a") is State.READY


def test_a_worker_presumed_dead_that_beats_again_has_its_claims_back() -> None:
    scheduler = state_of(submitted("a"), requested("a"), Claimed("w", [Lease("a", 0, NO_INPUTS, 1)]))
    scheduler.observe(scheduler.leases.presume("w", dead=True))
    assert scheduler.state("a") is State.READY
    scheduler.observe(scheduler.leases.presume("w", dead=False))
    assert scheduler.state("a") is State.RUNNING


def test_who_has_an_attempt_by_a_claim_alone_holds_it_until_that_is_doubted_and_never_counts_as_dead() -> None:
    scheduler = state_of(submitted("a"), requested("a"))
    task, leases = scheduler.tasks["a"], scheduler.leases
    lease = Lease("a", 0, NO_INPUTS, 1)
    scheduler.observe(leases.found(task, lease, "v", now=0.0))
    assert (scheduler.state("a"), leases.holder(task)) == (State.RUNNING, "v")
    scheduler.observe(leases.doubt(before=1.0))
    [offer] = scheduler.ready(1, 0.0)
    assert (offer.lease.attempt, offer.deaths) == (2, 0)
    scheduler.observe(leases.found(task, offer.lease, "v", now=2.0))
    scheduler.apply(Claimed("w", [offer.lease]))
    scheduler.observe([*leases.doubt(before=3.0), *leases.presume("v", dead=True)])
    assert (scheduler.state("a"), leases.holder(task), leases.workers()) == (State.RUNNING, "w", ["w"])
    scheduler.observe(leases.presume("w", dead=True))
    [offer] = scheduler.ready(1, 0.0)
    assert (offer.lease.attempt, offer.deaths) == (3, 1)
    scheduler.apply(*settled(Verdict("a", 0, NO_INPUTS, 3, b"1")))
    assert leases.found(task, offer.lease, "v", now=4.0) == []


def test_a_worker_that_died_with_its_supervisor_counts_as_a_death_in_all_it_held_and_these_are_tried_alone() -> None:
    scheduler = state_of(
        submitted("z"), submitted("a"), submitted("b"), requested("z", "a", "b"), settled(finished("z", b"1"))
    )
    offers = scheduler.ready(3, 0.0)
    assert [offer.task.key for offer in offers] == ["a"]  # one finished run doesn't promise much
    leases = [Lease(key, 0, NO_INPUTS, 1) for key in "ab"]
    scheduler.apply(Claimed("w", leases))
    scheduler.observe(scheduler.leases.presume("w", dead=True))
    alone = [scheduler.ready(3, 0.0), scheduler.ready(3, 0.0)]
    assert [[(offer.task.key, offer.lease.attempt, offer.deaths) for offer in offers] for offers in alone] == [
        [("a", 2, 1)], [("b", 2, 1)],
    ]  # fmt: skip
    for offers in alone:
        scheduler.queue.back(offers[0].task)
    scheduler.apply(WorkerLost("w"))  # its supervisor was there after all, and tells of deaths itself
    assert [offer.deaths for offer in scheduler.ready(1, 0.0)] == [0]


def test_a_task_that_was_ready_when_it_was_forgotten_and_comes_back_is_offered_once() -> None:
    again = (Submitted("f", 0, "3.11", ["a"], [()], [b""], counter=2), [at("spec of a")])
    back = requested("a", counter=3)
    scheduler = state_of(submitted("a"), submitted("b", "a"), requested("a"), Forgotten(1, ["a"], [0]), again, back)
    assert [offer.lease.key for offer in scheduler.ready(100, 1.0)] + [*scheduler.ready(100, 1.0)] == ["a"]


def test_of_two_claims_of_one_attempt_no_order_decides() -> None:
    claims = [Claimed(worker, [Lease("a", 0, NO_INPUTS, 1)]) for worker in ("v", "w")]
    states = [
        state_of(submitted("a"), requested("a"), *order, WorkerLost("v")).state("a") for order in (claims, claims[::-1])
    ]
    assert states == [State.RUNNING, State.RUNNING]


def test_a_forgotten_task_lends_no_run_not_even_of_a_later_round() -> None:
    events = [
        *(submitted(key, *NEEDS[key], form=FORMS[key]) for key in KEYS),
        settled(finished("a", b"2")),
        settled(finished("c", b"1", b"2", round=1)),
        Forgotten(0, ["c"], [0]),
    ]
    early = [*events[:-2], events[-1], events[-2]]
    assert [state_of(*order).outcome("b") for order in (events, early)] == [None, None]


def test_what_is_known_of_later_rounds_is_not_forgotten_with_a_task_in_any_order() -> None:
    again = (Submitted("f", 0, "3.11", ["a"], [()], [b""], counter=2), [at("spec of a")])
    events = [again, settled(failed("a", round=2)), invalidated("a", round=2), Forgotten(0, ["a"], [0])]
    early = [events[-1], *events[:-1]]
    runs = [[verdict.round for _, (verdict, _, _) in state_of(*order).runs()] for order in (events, early)]
    assert runs == [[2], [2]]


def test_a_released_claim_is_open_again() -> None:
    lease = Lease("a", 0, NO_INPUTS, 1)
    scheduler = state_of(submitted("a"), requested("a"), Claimed("w", [lease]), Released([lease]))
    offer = scheduler.ready(1, 0.0)[0]
    assert (offer.lease.attempt, offer.failures, offer.deaths) == (2, 0, 0)


def test_a_failure_that_is_not_final_is_tried_again_when_its_time_has_come() -> None:
    scheduler = state_of(submitted("a"), requested("a"), settled(failed("a", final=False, retry_at=100.0)))
    assert scheduler.ready(1, 99.0) == []
    assert scheduler.queue.next_retry() == 100.0
    offer = scheduler.ready(1, 100.0)[0]
    assert (offer.lease.attempt, offer.failures) == (2, 1)


def test_a_clock_that_is_hours_ahead_does_not_put_off_a_retry() -> None:
    scheduler = state_of(submitted("a"), requested("a"), settled(failed("a", final=False, retry_at=7_300.0)))
    assert scheduler.ready(1, 100.0)[0].lease.attempt == 2


def test_deaths_are_counted_apart_from_failures() -> None:
    scheduler = state_of(submitted("a"), requested("a"), settled(failed("a", final=False, died=True)))
    [offer] = scheduler.ready(1, 0.0)
    assert (offer.failures, offer.deaths) == (0, 1)


def test_a_value_outweighs_a_failure_and_a_later_attempt_an_earlier_one() -> None:
    scheduler = state_of(
        submitted("a"),
        requested("a"),
        settled(failed("a", attempt=3)),
        settled(finished("a", b"1", attempt=1)),
        settled(finished("a", b"2", attempt=2)),
    )
    held = scheduler.outcome("a")
    assert held is not None
    assert held[0].digest == b"2"


def test_priority_comes_first_then_the_order_of_submission() -> None:
    scheduler = state_of(submitted("late"), submitted("early", name="g"), submitted("urgent", name="h", priority=5),
                     requested("late", "early", "urgent"))  # fmt: skip
    timed = settled(
        finished("x", b"1", duration=0.0001), finished("y", b"1", duration=0.0001), finished("z", b"1", duration=0.0001)
    )
    for name, key in (("f", "x"), ("g", "y"), ("h", "z")):
        scheduler.apply(*submitted(key, name=name, priority=5 if name == "h" else 0))
    scheduler.apply(*timed)
    assert [offer.task.key for offer in scheduler.ready(9, 0.0)] == ["urgent", "late", "early"]


def test_one_task_is_offered_of_a_function_not_yet_timed_and_a_budget_of_one_that_is() -> None:
    scheduler = state_of(*(submitted(str(i)) for i in range(100)), requested(*map(str, range(100))))
    assert len(scheduler.ready(100, 0.0)) == 1
    for name in range(50):
        scheduler.apply(*settled(finished(str(name), b"1", duration=BUDGET / 10.5)))
    assert len(scheduler.ready(100, 0.0)) == 10


def test_a_task_from_further_back_in_the_queue_is_offered_once_whatever_comes_of_it() -> None:
    keys = [f"task {i}" for i in range(20)]
    scheduler = state_of(*(submitted(key) for key in keys), requested(*keys))
    [offer] = scheduler.ready(1, 0.0, skip=5)
    assert offer.task.key == keys[5]
    scheduler.queue.back(offer.task)
    [again] = scheduler.ready(1, 0.0, skip=5)
    scheduler.apply(Claimed("w", [again.lease]))
    found = [offer.task.key for offer in _all_ready(scheduler)]
    assert sorted(found) == sorted({*keys} - {keys[5]})
    scheduler.apply(Released([again.lease]))
    assert [(one.task.key, one.lease.attempt) for one in scheduler.ready(9, 0.0)] == [(keys[5], 2)]
    assert state_of(submitted("a"), requested("a")).ready(1, 0.0, skip=5)[0].task.key == "a"


def test_few_tasks_that_were_short_do_not_promise_that_many_will_be() -> None:
    scheduler = state_of(*(submitted(str(i)) for i in range(100)), requested(*map(str, range(100))))
    for name in range(3):
        scheduler.apply(*settled(finished(str(name), b"1", duration=BUDGET / 1000)))
    assert len(scheduler.ready(100, 0.0)) == 3


def test_tasks_of_another_python_are_left_alone_and_counted() -> None:
    scheduler = state_of(submitted("a", python="3.12"), requested("a"))
    assert scheduler.ready(1, 0.0, python="3.11") == []
    assert scheduler.idle(python="3.11")
    assert scheduler.counts.foreign("3.11") == {"3.12": 1}


def test_a_target_means_its_tasks_and_what_they_need() -> None:
    scheduler = state_of(submitted("a"), submitted("b", "a", name="g"), submitted("c"), requested("b", "c"))
    target = Target(names=frozenset(["g"]))
    assert [offer.task.key for offer in scheduler.ready(9, 0.0, target)] == ["a"]
    assert not scheduler.idle(target)


def test_counts_are_by_notebook_and_include_what_its_tasks_need() -> None:
    scheduler = state_of(
        submitted("a"), submitted("b", "a", name="g"), submitted("c"), requested("b"), requested("c", origin=THERE)
    )
    assert set(scheduler.counts.by_function(Scope(HERE.notebook))) == {"f", "g"}
    assert sum(scheduler.counts.by_function(Scope(HERE.notebook))["f"][0]) == 1
    assert sum(scheduler.counts.by_function(Scope())["f"][0]) == 2


@pytest.mark.slow
def test_a_long_chain_does_not_reach_the_recursion_limit() -> None:
    scheduler = SchedulerState()
    for i in range(20_000):
        scheduler.apply(*submitted(str(i), *([str(i - 1)] if i else [])))
    scheduler.apply(requested("19999"))
    scheduler.apply(*settled(failed("0")))
    assert scheduler.state("19999") is State.BLOCKED
    assert queries.blocking_task(scheduler.tasks.get("19999")) == "0"


# -- taking over -------------------------------------------------------------------------------------------------------


def source(scheduler: SchedulerState, key: str) -> str | None:
    """Whose run gives a task its value."""
    held = scheduler.outcome(key)
    return None if held is None or not held[0].digest else held[0].key


def twins() -> SchedulerState:
    """Two needs of two codes, worth the same, and one function of each; the first has run."""
    return state_of(
        submitted("a1"), submitted("a2"), submitted("b1", "a1", form=b"b"), submitted("b2", "a2", form=b"b"),
        requested("b1", "b2"), settled(finished("a1", b"1"), finished("b1", b"2", b"1")),
    )  # fmt: skip


def test_a_task_on_an_equal_value_reuses_the_run_that_there_was() -> None:
    scheduler = twins()
    assert pair(scheduler, "a2", "b2") == [State.READY, State.WAITING]
    scheduler.apply(*settled(finished("a2", b"1")))
    assert (scheduler.state("b2"), source(scheduler, "b2")) == (State.FINISHED, "b1")
    assert scheduler.ready(9, 0.0) == []
    assert scheduler.counts.apart(REUSED) == {"f": 1}
    assert scheduler.counts.by_function()["f"][0][STATES.index(State.FINISHED)] == 4


def test_a_task_on_another_value_or_of_another_form_reuses_nothing() -> None:
    scheduler = twins()
    scheduler.apply(*submitted("c2", "a2", form=b"c"))
    scheduler.apply(requested("c2"))
    scheduler.apply(*settled(finished("a2", b"other")))
    assert pair(scheduler, "b2", "c2") == [State.READY, State.READY]


def test_a_task_without_needs_reuses_nothing() -> None:
    scheduler = state_of(
        submitted("a1", form=b"a"), submitted("a2", form=b"a"), requested("a1", "a2"), settled(finished("a1", b"1"))
    )
    assert scheduler.state("a2") is State.READY


def test_a_failure_is_no_source_and_an_equal_run_outweighs_it() -> None:
    scheduler = state_of(
        submitted("a"), submitted("b1", "a", form=b"b"), submitted("b2", "a", form=b"b"), requested("b1", "b2"),
        settled(finished("a", b"1"), failed("b1", b"1")),
    )  # fmt: skip
    assert pair(scheduler, "b1", "b2") == [State.FAILED, State.READY]
    scheduler.apply(*settled(finished("b2", b"2", b"1")))
    assert source(scheduler, "b1") == "b2"


def test_a_running_task_goes_on_and_what_it_computes_outweighs_what_it_could_take_over() -> None:
    scheduler = twins()
    scheduler.apply(*settled(finished("a2", b"one"), finished("a1", b"1")))
    scheduler.apply(Claimed("w", [scheduler.ready(1, 0.0)[0].lease]))
    scheduler.apply(*settled(finished("b1", b"2", b"one")))
    assert scheduler.state("b2") is State.RUNNING
    scheduler.apply(*settled(finished("b2", b"3", b"one")))
    assert source(scheduler, "b2") == "b2"


def test_a_run_of_a_former_round_is_a_source_unless_it_was_wrong() -> None:
    back_to_the_first_value = (
        settled(finished("a", b"1")), settled(finished("b", b"2", b"1")), invalidated("a"),
        settled(finished("a", b"other", round=1)), settled(failed("b", b"other")), invalidated("b", why=Why.RETRY),
        invalidated("a", 1), settled(finished("a", b"1", round=2)),
    )  # fmt: skip
    scheduler = state_of(submitted("a"), submitted("b", "a"), requested("b"), *back_to_the_first_value)
    assert scheduler.state("b") is State.FINISHED
    scheduler.apply(invalidated("b", 1))
    assert scheduler.state("b") is State.READY


def test_a_direct_invalidation_bars_all_equal_runs_but_the_tasks_own_later_ones() -> None:
    scheduler = twins()
    scheduler.apply(*settled(finished("a2", b"1")))
    scheduler.apply(*submitted("b3", "a2", form=b"b"))
    scheduler.apply(requested("b3"))
    scheduler.apply(invalidated("b2", inputs=inputs_of(b"1")))
    assert pair(scheduler, "b1", "b2", "b3") == [State.FINISHED, State.READY, State.READY]
    scheduler.apply(*settled(finished("b2", b"2", b"1", round=1)))
    assert (source(scheduler, "b2"), source(scheduler, "b3")) == ("b2", "b2")
    scheduler.apply(invalidated("b3", inputs=inputs_of(b"1")))
    assert scheduler.state("b3") is State.READY


def test_an_alias_falls_when_its_source_is_invalidated_and_bars_by_retry_there_are_none() -> None:
    scheduler = twins()
    scheduler.apply(*settled(finished("a2", b"1")))
    scheduler.apply(invalidated("b1", why=Why.RETRY))
    assert (scheduler.state("b1"), source(scheduler, "b2")) == (State.FINISHED, "b1")
    scheduler.apply(invalidated("b1", 1))
    assert pair(scheduler, "b1", "b2") == [State.READY, State.READY]


def test_a_lost_value_is_not_reused_but_an_equal_run_is() -> None:
    scheduler = twins()
    scheduler.apply(*settled(finished("a2", b"1")))
    scheduler.apply(invalidated("b1", why=Why.LOST))
    assert pair(scheduler, "b1", "b2") == [State.READY, State.READY]
    scheduler.apply(*settled(finished("b2", b"2", b"1")))
    assert pair(scheduler, "b1", "b2") == [State.FINISHED, State.FINISHED]


def test_a_lost_run_that_is_made_again_is_reused_by_tasks_that_wait() -> None:
    scheduler = twins()
    scheduler.apply(*settled(finished("a2", b"1")))
    scheduler.apply(invalidated("b1", why=Why.LOST))
    scheduler.apply(*settled(finished("b1", b"2", b"1", round=1)))
    assert (scheduler.state("b2"), source(scheduler, "b2")) == (State.FINISHED, "b1")


def test_of_several_runs_the_one_that_began_first_is_taken_whichever_came_first() -> None:
    runs = [settled(finished("b1", b"2", b"1", started=7.0)), settled(finished("b2", b"3", b"1", started=6.0))]
    for order in (runs, runs[::-1]):
        scheduler = state_of(
            submitted("a"), *(submitted(f"b{i}", "a", form=b"b") for i in range(4)), requested("b3"),
            settled(finished("a", b"1")), *order,
        )  # fmt: skip
        assert source(scheduler, "b3") == "b2"


def test_of_two_attempts_at_one_task_the_one_that_began_first_is_taken_whichever_came_first() -> None:
    early = settled(finished("b", b"2", b"1", started=1, attempt=2), worker="z")
    late = settled(finished("b", b"3", b"1", started=2), worker="w")
    known = [
        submitted("a"), submitted("b", "gone", form=b"F"), submitted("c", "a", form=b"F"), requested("c"),
        settled(finished("a", b"1")),
    ]  # fmt: skip
    for order in ([*known, late, early], [*known, early, late], [late, early, *known]):
        held = state_of(*order).outcome("c")
        assert held is not None
        assert held[0].digest == b"2"


def test_an_accepted_run_stands_until_that_is_undone_or_either_task_is_invalidated() -> None:
    def scheduler() -> SchedulerState:
        return state_of(submitted("old"), submitted("new"), requested("new"), settled(finished("old", b"1")),
                        submitted("above", "new"), requested("above"), accepted("new", "old", b"1"))  # fmt: skip

    assert (scheduler().state("new"), source(scheduler(), "new")) == (State.FINISHED, "old")
    assert scheduler().state("above") is State.READY
    for end in (accepted("new", "old", b"1", counter=2, undone=True)[0], invalidated("new"), invalidated("old")):
        ended = scheduler()
        ended.apply(end, ["again"] if isinstance(end, Accepted) else [])
        assert pair(ended, "new", "above") == [State.READY, State.WAITING]


def test_an_acceptance_is_for_the_inputs_it_was_made_for() -> None:
    scheduler = state_of(
        submitted("a"), submitted("old", "a"), submitted("new", "a"), requested("old", "new"),
        settled(finished("a", b"1"), finished("old", b"2", b"1")), accepted("new", "old", b"2", b"1"),
    )  # fmt: skip
    assert source(scheduler, "new") == "old"
    scheduler.apply(invalidated("a"))
    scheduler.apply(*settled(finished("a", b"other", round=1)))
    assert scheduler.state("new") is State.READY


def test_many_that_wait_for_one_computation_are_told_once() -> None:
    tasks = [f"b{i}" for i in range(2000)]
    scheduler = state_of(submitted("a"), *(submitted(key, "a", form=b"b") for key in tasks), requested(*tasks),
                     settled(finished("a", b"1")))  # fmt: skip
    runs = [finished(key, b"2", b"1", started=5.0 + i) for i, key in enumerate(tasks[:300])]
    for run in runs:
        scheduler.apply(*settled(run))
    assert scheduler.counts.apart(REUSED) == {"f": 1700}


# -- packed tasks ------------------------------------------------------------------------------------------------------


def packed(*events: Event | tuple[Event, list[int]]) -> SchedulerState:
    """A state with a finished task that was packed before these events."""
    scheduler = state_of(submitted(LONE), requested(LONE), settled(finished(LONE, b"1")))
    assert scheduler.tasks.state(LONE)
    for event in events:
        scheduler.apply(*event) if isinstance(event, tuple) else scheduler.apply(event)
    return scheduler


def test_a_finished_task_that_nothing_needs_is_packed_and_everything_is_known_of_it() -> None:
    scheduler = packed()
    assert not scheduler.tasks.live
    assert (LONE in scheduler.tasks, list(scheduler.tasks), len(scheduler.tasks)) == (True, [LONE], 1)
    assert scheduler.outcome(LONE) == (finished(LONE, b"1"), at(f"outcome of {LONE}"), "w")
    [task] = scheduler.tasks.values()
    assert (task.key, task.requests, task.notebooks) == (LONE, ((HERE, 1, True),), (HERE.notebook,))
    assert (task.spec, STATES[task.state], task.wanted) == (at(f"spec of {LONE}"), State.FINISHED, True)
    assert scheduler.tasks.state(LONE), "listing it doesn't change that"


def test_a_packed_task_that_is_invalidated_runs_again_and_is_packed_again() -> None:
    scheduler = packed(invalidated(LONE))
    assert [offer.lease.round for offer in scheduler.ready(9, 0.0)] == [1]
    scheduler.apply(*settled(finished(LONE, b"2", round=1)))
    assert scheduler.tasks.state(LONE)
    again = scheduler.tasks[LONE]
    assert (again.round, again.marks, again.records) == (1, (0, -1), again.value_digest)
    assert scheduler.counts.by_function()["f"][0] == [0, 0, 0, 1, 0, 0, 0]


def test_an_offer_of_a_task_is_no_longer_valid_once_it_has_finished_and_is_packed() -> None:
    scheduler = state_of(submitted(LONE), requested(LONE))
    [offer] = scheduler.ready(1, 0.0)
    assert scheduler.queue.is_valid(offer)
    scheduler.apply(*settled(finished(LONE, b"1")))
    assert LONE not in scheduler.tasks.live
    assert not scheduler.queue.is_valid(offer), "or another worker would run it again"


def test_a_task_that_was_passed_over_is_offered_next_though_many_are_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = state_of(submitted(LONE), requested(LONE))
    monkeypatch.setattr(queue, "LONG", 0)
    assert scheduler.ready(1, 0.0, Target(frozenset(), frozenset(["other"]))) == []
    assert [offer.lease.key for offer in scheduler.ready(1, 0.0)] == [LONE]


def test_an_offer_of_what_is_no_task_is_no_longer_valid_once_it_is_done() -> None:
    scheduler = SchedulerState()
    task = scheduler._record(LONE)
    offer = Offer(task, Lease(LONE, 0, NO_INPUTS, 1), 0, 0, (task,))
    assert scheduler.queue.is_valid(offer)
    scheduler.apply(*settled(finished(LONE, b"done")))
    assert not scheduler.queue.is_valid(offer), "or what is to be done once would be done twice beside a compaction"


def test_what_is_known_of_a_packed_task_is_kept_once_however_often_it_is_read() -> None:
    events = [submitted(LONE), (requested(LONE), []), settled(finished(LONE, b"1"))]
    kept: list[Event] = []
    merger = Merger(packed(), lambda event, bodies: kept.append(event), True)
    for event, bodies in events * 2:
        merger.take(event, bodies)
    merger.finish()
    assert kept == [event for event, _ in events]


def test_a_packed_task_that_another_one_needs_has_a_record_as_long_as_it_does() -> None:
    scheduler = packed(submitted("above", LONE), requested("above"))
    assert pair(scheduler, LONE, "above") == [State.FINISHED, State.READY]
    assert scheduler.tasks.live["above"].needs == (scheduler.tasks.live[LONE],)


def test_a_packed_task_is_no_longer_wanted_where_its_request_is_withdrawn() -> None:
    scheduler = packed(requested(LONE, counter=2, wanted=False))
    assert scheduler.counts.apart(KEPT) == {"f": 1}
    assert queries.requested(scheduler.tasks.values(), HERE) == []
    scheduler.apply(Forgotten(9, [LONE], [0]))
    assert (scheduler.state(LONE), len(scheduler.tasks), scheduler.counts.apart(KEPT)) == (None, 0, {})


def test_tasks_are_listed_in_the_order_of_submission_packed_or_not() -> None:
    keys = [sha1(b"%d" % number).hexdigest() for number in range(9)]
    scheduler = state_of(*map(submitted, keys), requested(*keys), settled(*(finished(key, b"1") for key in keys[::2])))
    assert sum(map(bool, map(scheduler.tasks.state, keys))) == 5
    assert list(scheduler.tasks) == keys


def test_tasks_are_found_by_the_beginning_of_their_keys_packed_or_not() -> None:
    keys = [sha1(b"%d" % number).hexdigest() for number in range(3000)]
    scheduler = state_of(*map(submitted, keys), requested(*keys), settled(*(finished(key, b"1") for key in keys[::2])))
    assert len(scheduler.tasks.live) == 1500
    for beginning in (keys[0][:6], keys[1][:7], keys[2][:16], keys[2998], keys[2999], keys[4][:1], "no", ""):
        found = scheduler.tasks.starting(beginning)
        assert sorted(found) == sorted(key for key in keys if key.startswith(beginning))
    assert len(scheduler.tasks.live) == 1500, "finding them unpacks none"


def test_packed_tasks_are_found_whichever_others_were_taken_out_before() -> None:
    keys = [sha1(b"%d" % number).hexdigest() for number in range(3000)]
    scheduler = state_of(*map(submitted, keys), requested(*keys), settled(*(finished(key, b"1") for key in keys)))
    table, random = scheduler.tasks, Random(0)
    for _ in range(10):
        out = set(random.sample(keys, 1000))
        assert all(table[key].key == key for key in out)
        assert out <= set(table.live)
        assert [key in table for key in keys] == [True] * 3000
        assert sorted(key for digit in "0123456789abcdef" for key in table.starting(digit)) == sorted(keys)
        assert all(table.starting(key[:12]) == [key] for key in keys[::100])
        assert list(table) == keys
        table.pack(())
        assert not table.live
        assert len(table) == 3000


def test_a_finished_task_takes_less_than_200_bytes() -> None:
    number, scheduler = 20_000, SchedulerState()
    keys = [sha1(b"%d" % number).hexdigest() for number in range(number)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for first in range(0, number, 500):
            part = keys[first : first + 500]
            forms: list[bytes] = [b"form"] * len(part)
            scheduler.apply(Submitted("f", 0, "3.11", part, [()] * len(part), forms, first), range(len(part)))
            scheduler.apply(requested(*part, counter=first))
            verdicts = [finished(key, b"c" + bytes.fromhex(key)) for key in part]
            scheduler.apply(Settled("w", verdicts), range(len(part)))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert scheduler.counts.by_function()["f"][0] == [0, 0, 0, number, 0, 0, 0]
    assert grown / number < 200


def test_tasks_behind_many_are_packed_and_taken_in_the_order_of_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "LONG", 50)
    monkeypatch.setattr(queue, "SHORT", 10)
    keys = [sha1(b"%d" % number).hexdigest() for number in range(600)]
    scheduler = state_of(*(submitted(key) for key in keys), requested(*keys))
    assert sum(key not in scheduler.tasks.live for key in keys) == 550
    assert (scheduler.state(keys[599]), scheduler.outcome(keys[599])) == (State.READY, None)
    scheduler.apply(*settled(finished(keys[200], b"1")))
    scheduler.apply(requested(keys[300], counter=2, wanted=False))
    scheduler.apply(Forgotten(9, [keys[400]], [0]))
    scheduler.apply(*submitted("above", keys[500]))
    scheduler.apply(requested("above", keys[300], origin=THERE, counter=3))
    assert not scheduler.idle(Target(keys=frozenset([keys[100]])))
    taken = []
    while offers := scheduler.ready(1, 0.0):
        taken += [offer.task.key for offer in offers]
    assert taken == [key for key in keys if key not in (keys[200], keys[400])]


# -- any order, any repeats --------------------------------------------------------------------------------------------

KEYS = A, B, C, D, E = [sha1(name).hexdigest() for name in (b"a", b"b", b"c", b"d", b"e")]
NEEDS: dict[str, tuple[str, ...]] = {A: (), B: (A,), C: (A,), D: (B, C), E: ()}
FORMS = {A: b"a", B: b"b", C: b"b", D: b"d", E: b"e"}
DIGESTS = [b"1", b"2"]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Event, list[int]]]:
    events: list[tuple[Event, list[int]]] = [submitted(key, *NEEDS[key], form=FORMS[key]) for key in KEYS]
    digests = st.sampled_from(DIGESTS)
    keys = st.sampled_from(KEYS)
    rounds = st.integers(0, 2)
    for _ in range(draw(st.integers(1, 14))):
        key = draw(keys)
        needs = [draw(digests) for _ in NEEDS[key]]
        lease = Lease(key, draw(rounds), inputs_of(*needs), draw(st.integers(1, 3)))
        verdict = Verdict(
            key, lease.round, lease.inputs, lease.attempt, draw(st.sampled_from([b"", *DIGESTS])),
            draw(st.sampled_from([1.0, 2.0])), final=draw(st.booleans()),
        )  # fmt: skip
        worker = draw(st.sampled_from(["v", "w"]))
        acceptance, _ = accepted(
            key, draw(keys), draw(digests), *needs, round=lease.round, counter=draw(st.integers(1, 3)),
            undone=draw(st.booleans()), source_round=draw(rounds),
        )  # fmt: skip
        event: Event = draw(
            st.sampled_from(
                [
                    requested(
                        key,
                        counter=draw(st.integers(1, 3)),
                        wanted=draw(st.booleans()),
                        origin=draw(st.sampled_from([HERE, THERE, Origin(HERE.user, HERE.notebook)])),
                    ),
                    Claimed(worker, [lease]),
                    Released([lease]),
                    Settled(worker, [verdict]),
                    invalidated(
                        key, draw(rounds), draw(st.sampled_from(Why)), draw(st.sampled_from([b"", lease.inputs]))
                    ),
                    acceptance,
                    WorkerLost(worker),
                    Forgotten(draw(st.integers(0, 3)), [key], [draw(rounds)]),
                    Submitted("f", 0, "3.11", [key], [NEEDS[key]], [FORMS[key]], draw(st.integers(1, 3))),
                ]
            )
        )
        bodies = [at(f"{verdict}")] if isinstance(event, Settled | Accepted) else []
        events.append((event, [at(f"spec of {key}")] if isinstance(event, Submitted) else bodies))
    return events


def picture(scheduler: SchedulerState) -> object:
    def value(key: str) -> object:
        held = scheduler.outcome(key)
        return held and (held[0].key, held[0].round, held[0].digest, held[0].attempt)

    many = [*KEYS, "", "not hexadecimal", "0" * 40]
    assert scheduler.tasks.outcomes(many) == [scheduler.outcome(key) for key in many]
    listed = queries.listing(list(scheduler.tasks.values()), Scope(), Target(names=frozenset(["f"])))
    calls = [(task.key, STATES[task.state], scheduler.outcome(task.key)) for task in listed]
    assert sorted(scheduler.tasks.calls("f"), key=str) == sorted(
        [(*one, held and held[0]) for *one, held in calls], key=str
    )

    return (
        {(verdict, worker) for _, (verdict, _, worker) in scheduler.runs()},
        _sorted_reused(scheduler),
        [(key, scheduler.state(key), value(key), queries.blocking_task(scheduler.tasks.get(key))) for key in KEYS],
        {scope: _sorted(scheduler.counts.by_function(Scope(scope))) for scope in (None, HERE.notebook, THERE.notebook)},
        sorted((offer.lease.key, offer.lease.attempt) for offer in _all_ready(scheduler)),
    )


def _sorted_reused(scheduler: SchedulerState) -> object:
    return [scheduler.counts.apart(REUSED, Scope(scope)) for scope in (None, HERE.notebook, THERE.notebook)]


def _sorted(counts: dict[str, tuple[list[int], float | None]]) -> object:
    return sorted((name, tuple(states)) for name, (states, _) in counts.items())


def _all_ready(scheduler: SchedulerState) -> Sequence[Offer]:
    found = []
    while offers := scheduler.ready(100, 1e12):
        found.extend(offers)
    return found


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_any_order_and_any_repeats_of_facts_give_one_picture(
    events: list[tuple[Event, list[int]]], rng: random.Random
) -> None:
    mixed = events + rng.sample(events, rng.randint(0, len(events)))
    rng.shuffle(mixed)
    found = picture(state_of(*events))
    assert found == picture(state_of(*mixed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "TOGETHER", 1 << 30)
        assert found == picture(state_of(*mixed)), "records are the same, packed or not"
    together, cut = SchedulerState(), rng.randint(0, len(mixed))
    together.apply_all(mixed[:cut], more=True)
    together.apply_all(mixed[cut:])
    assert found == picture(together)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(histories())
def test_what_is_reused_is_a_finished_run_that_was_not_invalidated(events: list[tuple[Event, list[int]]]) -> None:
    scheduler = state_of(*events)
    verdicts = [verdict for event, _ in events if isinstance(event, Settled) for verdict in event.verdicts]
    runs = {(v.key, v.round, v.inputs, v.digest) for v in verdicts}
    wrong = {
        (event.keys[0], round)
        for event, _ in events
        if isinstance(event, Invalidated) and event.why is not Why.RETRY
        for round in range(event.from_rounds[0] + 1)
    }
    for key in KEYS:
        task, held = scheduler.tasks.get(key), scheduler.outcome(key)
        if held is not None and task is not None and task.reused_from == held and task.reused_from is not None:
            verdict = held[0]
            assert verdict.digest
            assert (verdict.key, verdict.round, verdict.inputs, verdict.digest) in runs
            assert (verdict.key, verdict.round) not in wrong
            assert verdict.inputs == task.inputs


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(histories())
def test_counts_by_state_agree_with_the_states_of_the_tasks(events: list[tuple[Event, list[int]]]) -> None:
    scheduler = state_of(*events)
    counts = scheduler.counts.by_function().get("f", ([0] * len(STATES), None))[0]
    states = {key: scheduler.state(key) for key in KEYS}
    kept = {key for key, now in states.items() if now is State.FINISHED and not scheduler.tasks[key].wanted}
    for code, one in enumerate(STATES):
        assert counts[code] == sum(states[key] is one for key in KEYS if key not in kept)
    assert scheduler.counts.apart(KEPT).get("f", 0) == len(kept)
