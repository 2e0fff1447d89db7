"""The board: the same facts, in any order and however often, give the same picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha1

from hypothesis import given, settings
from hypothesis import strategies as st

from jug_notebook.model import (
    NO_INPUTS,
    Accepted,
    Claimed,
    Fact,
    Forgotten,
    Gone,
    Grant,
    Invalidated,
    Invalidation,
    Origin,
    Released,
    Scope,
    Settled,
    State,
    Submitted,
    Target,
    Verdict,
    Why,
    Wish,
    Wished,
)
from jug_notebook.scheduler.queue import BUDGET
from jug_notebook.scheduler.records import STATES
from jug_notebook.scheduler.state import Board

HERE = Origin("ann", "/a.ipynb", "cell-1")
THERE = Origin("bob", "/b.ipynb", "cell-1")


PLACES: list[str] = []


def at(text: str) -> int:
    """Where a body is, as a store would number it."""
    if text not in PLACES:
        PLACES.append(text)
    return PLACES.index(text)


def submitted(
    key: str, *needs: str, name: str = "f", priority: int = 0, python: str = "3.11", form: bytes = b""
) -> tuple[Fact, list[int]]:
    forms = [form or b"form of " + key.encode()]
    return Submitted(name, priority, python, [key], [needs], forms), [at(f"spec of {key}")]


def wished(*keys: str, origin: Origin = HERE, counter: int = 1, wanted: bool = True) -> Fact:
    return Wished(Wish(origin, counter, wanted), list(keys))


def inputs_of(*digests: bytes) -> bytes:
    return sha1(b"".join(digests)).digest()


def finished(
    key: str, digest: bytes, *needs: bytes, round: int = 0, attempt: int = 1, duration: float = 0.1, started: float = 5
) -> Verdict:
    return Verdict(key, round, inputs_of(*needs), attempt, digest, started, duration)


def invalidated(key: str, round: int = 0, why: Why = Why.DIRECT, inputs: bytes = b"") -> Fact:
    return Invalidated([key], [round], why, "ann", 9.0, [inputs])


def accepted(
    key: str, source: str, digest: bytes, *needs: bytes, round: int = 0, counter: int = 1, undone: bool = False,
    source_round: int = 0,
) -> tuple[Fact, list[int]]:  # fmt: skip
    inputs = [inputs_of(*needs)]
    fact = Accepted(counter, undone, "ann", 9.0, [key], [round], inputs, [source], [source_round], [digest])
    return fact, [at(f"acceptance of {source} for {key}")]


def failed(key: str, *needs: bytes, round: int = 0, attempt: int = 1, final: bool = True, died: bool = False,
           retry_at: float = 0.0) -> Verdict:  # fmt: skip
    return Verdict(key, round, inputs_of(*needs), attempt, final=final, died=died, retry_at=retry_at)


def settled(*verdicts: Verdict, worker: str = "w") -> tuple[Fact, list[int]]:
    return Settled(worker, list(verdicts)), [at(f"outcome of {v.key}") for v in verdicts]


def board_of(*facts: Fact | tuple[Fact, list[int]]) -> Board:
    board = Board()
    for fact in facts:
        if isinstance(fact, tuple):
            board.fold(*fact)
        else:
            board.fold(fact)
    return board


def pair(board: Board, *keys: str) -> list[State | None]:
    return [board.state(key) for key in keys]


def test_inputs_of_a_task_without_needs_are_the_digest_of_nothing() -> None:
    assert inputs_of() == NO_INPUTS


def test_a_task_is_ready_when_all_it_needs_is_finished() -> None:
    board = board_of(submitted("a"), submitted("b", "a"), wished("b"))
    assert pair(board, "a", "b") == [State.READY, State.WAITING]
    board.fold(*settled(finished("a", b"1")))
    assert pair(board, "a", "b") == [State.FINISHED, State.READY]


def test_wanting_flows_to_needs_and_so_does_no_longer_wanting() -> None:
    board = board_of(submitted("a"), submitted("b", "a"), submitted("c", "b"), wished("c"))
    assert board.state("a") is State.READY
    board.fold(wished("c", counter=2, wanted=False))
    assert pair(board, "a", "b", "c") == [State.WITHDRAWN] * 3


def test_the_later_wish_of_one_origin_counts_and_others_stand() -> None:
    board = board_of(submitted("a"), wished("a", counter=4, wanted=False), wished("a", counter=3))
    assert board.state("a") is State.WITHDRAWN
    board.fold(wished("a", origin=THERE))
    assert board.state("a") is State.READY


def test_not_wanting_without_a_cell_speaks_for_all_cells_of_the_notebook() -> None:
    notebook = Origin(HERE.user, HERE.notebook)
    board = board_of(submitted("a"), wished("a"), wished("a", origin=notebook, counter=2, wanted=False))
    assert board.state("a") is State.WITHDRAWN
    assert board.wished(HERE) == []
    board.fold(wished("a", counter=3))
    assert board.state("a") is State.READY


def test_what_needs_a_failed_task_is_blocked_and_knows_whom_to_blame() -> None:
    board = board_of(submitted("a"), submitted("b", "a"), submitted("c", "b"), wished("c"), settled(failed("a")))
    assert pair(board, "a", "b", "c") == [State.FAILED, State.BLOCKED, State.BLOCKED]
    assert board.blame("c") == "a"
    board.fold(Invalidated(["a"], [0], Why.RETRY, "ann", 9.0))
    assert pair(board, "a", "b", "c") == [State.READY, State.WAITING, State.WAITING]


def test_an_invalidated_need_takes_back_what_used_it_and_gives_it_again_if_it_comes_back_equal() -> None:
    board = board_of(
        submitted("a"),
        submitted("b", "a"),
        wished("b"),
        settled(finished("a", b"1")),
        settled(finished("b", b"2", b"1")),
    )
    board.fold(Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0))
    assert pair(board, "a", "b") == [State.READY, State.WAITING]
    board.fold(*settled(finished("a", b"1", round=1)))
    assert pair(board, "a", "b") == [State.FINISHED, State.FINISHED]


def test_a_need_that_comes_back_different_makes_what_used_it_run_again() -> None:
    board = board_of(
        submitted("a"),
        submitted("b", "a"),
        wished("b"),
        settled(finished("a", b"1")),
        settled(finished("b", b"2", b"1")),
    )
    board.fold(Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0))
    board.fold(*settled(finished("a", b"other", round=1)))
    assert board.state("b") is State.READY
    assert board.ready(9, 0.0)[0].grant == Grant("b", 0, inputs_of(b"other"), 1)


def test_two_presses_of_invalidate_are_one() -> None:
    press = Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0)
    board = board_of(submitted("a"), wished("a"), settled(finished("a", b"1")), press)
    board.fold(*settled(finished("a", b"1", round=1)))
    board.fold(press)
    assert board.state("a") is State.FINISHED


def test_a_board_knows_who_began_the_round_that_a_task_is_in() -> None:
    by_ann, by_bob = (Invalidated(["a"], [0], Why.DIRECT, who, at) for who, at in (("ann", 9.0), ("bob", 8.0)))
    for facts in ((by_ann, by_bob), (by_bob, by_ann)):
        board = board_of(submitted("a"), wished("a"), settled(finished("a", b"1")), *facts)
        assert board.invalidation("a") == Invalidation(0, 9.0, "ann", Why.DIRECT)
    assert board_of(submitted("a"), wished("a")).invalidation("a") is None
    assert board.invalidation("b") is None


def test_a_late_outcome_of_a_former_round_counts_for_nothing() -> None:
    board = board_of(
        submitted("a"), wished("a"), Invalidated(["a"], [0], Why.DIRECT, "ann", 9.0), settled(finished("a", b"1"))
    )
    assert board.state("a") is State.READY


def test_attempts_that_count_for_nothing_are_still_told_each_once() -> None:
    verdicts = [failed("a", final=False), failed("a", attempt=2), finished("a", b"1", round=1)]
    board = board_of(submitted("a"), wished("a"), settled(*verdicts[:2]), invalidated("a", why=Why.RETRY))
    board.fold(*settled(verdicts[2]))
    board.fold(invalidated("a", round=1))
    board.fold(*settled(verdicts[0]))
    assert sorted((outcome[0].round, outcome[0].attempt) for _, outcome in board.runs()) == [(0, 1), (0, 2), (1, 1)]
    assert list(board.runs(Scope(THERE.notebook))) == []


def test_a_claim_of_a_worker_that_is_gone_is_void_and_the_next_attempt_is_offered() -> None:
    board = board_of(submitted("a"), wished("a"))
    grant = board.ready(1, 0.0)[0].grant
    board.fold(Claimed("w", [grant]))
    assert board.state("a") is State.RUNNING
    board.fold(Gone("w"))
    assert board.ready(1, 0.0)[0].grant.attempt == 2


def test_a_worker_that_is_gone_held_all_it_had_claimed_in_any_round_of_a_task() -> None:
    board = board_of(
        submitted("a"), wished("a"), Claimed("w", [Grant("a", 0, NO_INPUTS, 1)]), invalidated("a"),
        Claimed("w", [Grant("a", 1, NO_INPUTS, 1)]), settled(finished("a", b"1")),
    )  # fmt: skip
    assert board.state("a") is State.RUNNING
    board.fold(Gone("w"))
    assert board.state("a") is State.READY


def test_a_worker_presumed_dead_that_beats_again_has_its_claims_back() -> None:
    board = board_of(submitted("a"), wished("a"), Claimed("w", [Grant("a", 0, NO_INPUTS, 1)]))
    board.presume("w", dead=True)
    assert board.state("a") is State.READY
    board.presume("w", dead=False)
    assert board.state("a") is State.RUNNING


def test_a_released_claim_is_open_again() -> None:
    grant = Grant("a", 0, NO_INPUTS, 1)
    board = board_of(submitted("a"), wished("a"), Claimed("w", [grant]), Released([grant]))
    offer = board.ready(1, 0.0)[0]
    assert (offer.grant.attempt, offer.failures, offer.deaths) == (2, 0, 0)


def test_a_failure_that_is_not_final_is_tried_again_when_its_time_has_come() -> None:
    board = board_of(submitted("a"), wished("a"), settled(failed("a", final=False, retry_at=100.0)))
    assert board.ready(1, 99.0) == []
    assert board.queue.next_retry() == 100.0
    offer = board.ready(1, 100.0)[0]
    assert (offer.grant.attempt, offer.failures) == (2, 1)


def test_a_clock_that_is_hours_ahead_does_not_put_off_a_retry() -> None:
    board = board_of(submitted("a"), wished("a"), settled(failed("a", final=False, retry_at=7_300.0)))
    assert board.ready(1, 100.0)[0].grant.attempt == 2


def test_deaths_are_counted_apart_from_failures() -> None:
    board = board_of(submitted("a"), wished("a"), settled(failed("a", final=False, died=True)))
    assert board.ready(1, 0.0)[0][2:] == (0, 1)


def test_a_value_outweighs_a_failure_and_a_later_attempt_an_earlier_one() -> None:
    board = board_of(
        submitted("a"),
        wished("a"),
        settled(failed("a", attempt=3)),
        settled(finished("a", b"1", attempt=1)),
        settled(finished("a", b"2", attempt=2)),
    )
    held = board.held("a")
    assert held is not None
    assert held[0].digest == b"2"


def test_priority_comes_first_then_the_order_of_submission() -> None:
    board = board_of(submitted("late"), submitted("early", name="g"), submitted("urgent", name="h", priority=5),
                     wished("late", "early", "urgent"))  # fmt: skip
    timed = settled(
        finished("x", b"1", duration=0.0001), finished("y", b"1", duration=0.0001), finished("z", b"1", duration=0.0001)
    )
    for name, key in (("f", "x"), ("g", "y"), ("h", "z")):
        board.fold(*submitted(key, name=name, priority=5 if name == "h" else 0))
    board.fold(*timed)
    assert [offer.card.key for offer in board.ready(9, 0.0)] == ["urgent", "late", "early"]


def test_one_task_is_offered_of_a_function_not_yet_timed_and_a_budget_of_one_that_is() -> None:
    board = board_of(*(submitted(str(i)) for i in range(100)), wished(*map(str, range(100))))
    assert len(board.ready(100, 0.0)) == 1
    for name in range(50):
        board.fold(*settled(finished(str(name), b"1", duration=BUDGET / 10.5)))
    assert len(board.ready(100, 0.0)) == 10


def test_few_tasks_that_were_short_do_not_promise_that_many_will_be() -> None:
    board = board_of(*(submitted(str(i)) for i in range(100)), wished(*map(str, range(100))))
    for name in range(3):
        board.fold(*settled(finished(str(name), b"1", duration=BUDGET / 1000)))
    assert len(board.ready(100, 0.0)) == 3


def test_tasks_of_another_python_are_left_alone_and_counted() -> None:
    board = board_of(submitted("a", python="3.12"), wished("a"))
    assert board.ready(1, 0.0, python="3.11") == []
    assert board.idle(python="3.11")
    assert board.foreign("3.11") == {"3.12": 1}


def test_a_target_means_its_tasks_and_what_they_need() -> None:
    board = board_of(submitted("a"), submitted("b", "a", name="g"), submitted("c"), wished("b", "c"))
    target = Target(names=frozenset(["g"]))
    assert [offer.card.key for offer in board.ready(9, 0.0, target)] == ["a"]
    assert not board.idle(target)


def test_counts_are_by_notebook_and_include_what_its_tasks_need() -> None:
    board = board_of(
        submitted("a"), submitted("b", "a", name="g"), submitted("c"), wished("b"), wished("c", origin=THERE)
    )
    assert set(board.counts(Scope(HERE.notebook))) == {"f", "g"}
    assert sum(board.counts(Scope(HERE.notebook))["f"][0]) == 1
    assert sum(board.counts(Scope())["f"][0]) == 2


def test_a_long_chain_does_not_reach_the_recursion_limit() -> None:
    board = Board()
    for i in range(20_000):
        board.fold(*submitted(str(i), *([str(i - 1)] if i else [])))
    board.fold(wished("19999"))
    board.fold(*settled(failed("0")))
    assert board.state("19999") is State.BLOCKED
    assert board.blame("19999") == "0"


# -- taking over -------------------------------------------------------------------------------------------------------


def source(board: Board, key: str) -> str | None:
    """Whose run gives a task its value."""
    held = board.held(key)
    return None if held is None or not held[0].digest else held[0].key


def twins() -> Board:
    """Two needs of two codes, worth the same, and one function of each; the first has run."""
    return board_of(
        submitted("a1"), submitted("a2"), submitted("b1", "a1", form=b"b"), submitted("b2", "a2", form=b"b"),
        wished("b1", "b2"), settled(finished("a1", b"1"), finished("b1", b"2", b"1")),
    )  # fmt: skip


def test_a_task_on_an_equal_value_takes_over_the_run_that_there_was() -> None:
    board = twins()
    assert pair(board, "a2", "b2") == [State.READY, State.WAITING]
    board.fold(*settled(finished("a2", b"1")))
    assert (board.state("b2"), source(board, "b2")) == (State.FINISHED, "b1")
    assert board.ready(9, 0.0) == []
    assert board.reused() == {"f": 1}
    assert board.counts()["f"][0][STATES.index(State.FINISHED)] == 4


def test_a_task_on_another_value_or_of_another_form_takes_over_nothing() -> None:
    board = twins()
    board.fold(*submitted("c2", "a2", form=b"c"))
    board.fold(wished("c2"))
    board.fold(*settled(finished("a2", b"other")))
    assert pair(board, "b2", "c2") == [State.READY, State.READY]


def test_a_task_without_needs_takes_over_nothing() -> None:
    board = board_of(
        submitted("a1", form=b"a"), submitted("a2", form=b"a"), wished("a1", "a2"), settled(finished("a1", b"1"))
    )
    assert board.state("a2") is State.READY


def test_a_failure_is_no_source_and_an_equal_run_outweighs_it() -> None:
    board = board_of(
        submitted("a"), submitted("b1", "a", form=b"b"), submitted("b2", "a", form=b"b"), wished("b1", "b2"),
        settled(finished("a", b"1"), failed("b1", b"1")),
    )  # fmt: skip
    assert pair(board, "b1", "b2") == [State.FAILED, State.READY]
    board.fold(*settled(finished("b2", b"2", b"1")))
    assert source(board, "b1") == "b2"


def test_a_running_task_goes_on_and_what_it_computes_outweighs_what_it_could_take_over() -> None:
    board = twins()
    board.fold(*settled(finished("a2", b"one"), finished("a1", b"1")))
    board.fold(Claimed("w", [board.ready(1, 0.0)[0].grant]))
    board.fold(*settled(finished("b1", b"2", b"one")))
    assert board.state("b2") is State.RUNNING
    board.fold(*settled(finished("b2", b"3", b"one")))
    assert source(board, "b2") == "b2"


def test_a_run_of_a_former_round_is_a_source_unless_it_was_wrong() -> None:
    back_to_the_first_value = (
        settled(finished("a", b"1")), settled(finished("b", b"2", b"1")), invalidated("a"),
        settled(finished("a", b"other", round=1)), settled(failed("b", b"other")), invalidated("b", why=Why.RETRY),
        invalidated("a", 1), settled(finished("a", b"1", round=2)),
    )  # fmt: skip
    board = board_of(submitted("a"), submitted("b", "a"), wished("b"), *back_to_the_first_value)
    assert board.state("b") is State.FINISHED
    board.fold(invalidated("b", 1))
    assert board.state("b") is State.READY


def test_a_direct_invalidation_bars_all_equal_runs_but_the_tasks_own_later_ones() -> None:
    board = twins()
    board.fold(*settled(finished("a2", b"1")))
    board.fold(*submitted("b3", "a2", form=b"b"))
    board.fold(wished("b3"))
    board.fold(invalidated("b2", inputs=inputs_of(b"1")))
    assert pair(board, "b1", "b2", "b3") == [State.FINISHED, State.READY, State.READY]
    board.fold(*settled(finished("b2", b"2", b"1", round=1)))
    assert (source(board, "b2"), source(board, "b3")) == ("b2", "b2")
    board.fold(invalidated("b3", inputs=inputs_of(b"1")))
    assert board.state("b3") is State.READY


def test_an_alias_falls_when_its_source_is_invalidated_and_bars_by_retry_there_are_none() -> None:
    board = twins()
    board.fold(*settled(finished("a2", b"1")))
    board.fold(invalidated("b1", why=Why.RETRY))
    assert (board.state("b1"), source(board, "b2")) == (State.FINISHED, "b1")
    board.fold(invalidated("b1", 1))
    assert pair(board, "b1", "b2") == [State.READY, State.READY]


def test_a_lost_value_is_not_taken_over_but_an_equal_run_is() -> None:
    board = twins()
    board.fold(*settled(finished("a2", b"1")))
    board.fold(invalidated("b1", why=Why.LOST))
    assert pair(board, "b1", "b2") == [State.READY, State.READY]
    board.fold(*settled(finished("b2", b"2", b"1")))
    assert pair(board, "b1", "b2") == [State.FINISHED, State.FINISHED]


def test_a_lost_run_that_is_made_again_is_taken_over_by_who_waits() -> None:
    board = twins()
    board.fold(*settled(finished("a2", b"1")))
    board.fold(invalidated("b1", why=Why.LOST))
    board.fold(*settled(finished("b1", b"2", b"1", round=1)))
    assert (board.state("b2"), source(board, "b2")) == (State.FINISHED, "b1")


def test_of_several_runs_the_one_that_began_first_is_taken_whichever_came_first() -> None:
    runs = [settled(finished("b1", b"2", b"1", started=7.0)), settled(finished("b2", b"3", b"1", started=6.0))]
    for order in (runs, runs[::-1]):
        board = board_of(
            submitted("a"), *(submitted(f"b{i}", "a", form=b"b") for i in range(4)), wished("b3"),
            settled(finished("a", b"1")), *order,
        )  # fmt: skip
        assert source(board, "b3") == "b2"


def test_of_two_attempts_at_one_task_the_one_that_began_first_is_taken_whichever_came_first() -> None:
    early = settled(finished("b", b"2", b"1", started=1, attempt=2), worker="z")
    late = settled(finished("b", b"3", b"1", started=2), worker="w")
    known = [
        submitted("a"), submitted("b", "gone", form=b"F"), submitted("c", "a", form=b"F"), wished("c"),
        settled(finished("a", b"1")),
    ]  # fmt: skip
    for order in ([*known, late, early], [*known, early, late], [late, early, *known]):
        held = board_of(*order).held("c")
        assert held is not None
        assert held[0].digest == b"2"


def test_an_accepted_run_stands_until_that_is_undone_or_either_task_is_invalidated() -> None:
    def board() -> Board:
        return board_of(submitted("old"), submitted("new"), wished("new"), settled(finished("old", b"1")),
                        submitted("above", "new"), wished("above"), accepted("new", "old", b"1"))  # fmt: skip

    assert (board().state("new"), source(board(), "new")) == (State.FINISHED, "old")
    assert board().state("above") is State.READY
    for end in (accepted("new", "old", b"1", counter=2, undone=True)[0], invalidated("new"), invalidated("old")):
        ended = board()
        ended.fold(end, ["again"] if isinstance(end, Accepted) else [])
        assert pair(ended, "new", "above") == [State.READY, State.WAITING]


def test_an_acceptance_is_for_the_inputs_it_was_made_for() -> None:
    board = board_of(
        submitted("a"), submitted("old", "a"), submitted("new", "a"), wished("old", "new"),
        settled(finished("a", b"1"), finished("old", b"2", b"1")), accepted("new", "old", b"2", b"1"),
    )  # fmt: skip
    assert source(board, "new") == "old"
    board.fold(invalidated("a"))
    board.fold(*settled(finished("a", b"other", round=1)))
    assert board.state("new") is State.READY


def test_many_that_wait_for_one_computation_are_told_once() -> None:
    tasks = [f"b{i}" for i in range(2000)]
    board = board_of(submitted("a"), *(submitted(key, "a", form=b"b") for key in tasks), wished(*tasks),
                     settled(finished("a", b"1")))  # fmt: skip
    runs = [finished(key, b"2", b"1", started=5.0 + i) for i, key in enumerate(tasks[:300])]
    for run in runs:
        board.fold(*settled(run))
    assert board.reused() == {"f": 1700}


# -- any order, any repeats --------------------------------------------------------------------------------------------

KEYS = ["a", "b", "c", "d"]
NEEDS = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
FORMS = {"a": b"a", "b": b"b", "c": b"b", "d": b"d"}
DIGESTS = [b"1", b"2"]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Fact, list[int]]]:
    facts: list[tuple[Fact, list[int]]] = [submitted(key, *NEEDS[key], form=FORMS[key]) for key in KEYS]
    digests = st.sampled_from(DIGESTS)
    keys = st.sampled_from(KEYS)
    rounds = st.integers(0, 2)
    for _ in range(draw(st.integers(1, 14))):
        key = draw(keys)
        needs = [draw(digests) for _ in NEEDS[key]]
        grant = Grant(key, draw(rounds), inputs_of(*needs), draw(st.integers(1, 3)))
        verdict = Verdict(
            key, grant.round, grant.inputs, grant.attempt, draw(st.sampled_from([b"", *DIGESTS])),
            draw(st.sampled_from([1.0, 2.0])), final=draw(st.booleans()),
        )  # fmt: skip
        worker = draw(st.sampled_from(["v", "w"]))
        said, _ = accepted(
            key, draw(keys), draw(digests), *needs, round=grant.round, counter=draw(st.integers(1, 3)),
            undone=draw(st.booleans()), source_round=draw(rounds),
        )  # fmt: skip
        fact: Fact = draw(
            st.sampled_from(
                [
                    wished(
                        key,
                        counter=draw(st.integers(1, 3)),
                        wanted=draw(st.booleans()),
                        origin=draw(st.sampled_from([HERE, THERE, Origin(HERE.user, HERE.notebook)])),
                    ),
                    Claimed(worker, [grant]),
                    Released([grant]),
                    Settled(worker, [verdict]),
                    invalidated(
                        key, draw(rounds), draw(st.sampled_from(Why)), draw(st.sampled_from([b"", grant.inputs]))
                    ),
                    said,
                    Gone(worker),
                    Forgotten(draw(st.integers(0, 3)), [key], [draw(rounds)]),
                    Submitted("f", 0, "3.11", [key], [NEEDS[key]], [FORMS[key]], draw(st.integers(1, 3))),
                ]
            )
        )
        bodies = [at(f"{verdict}")] if isinstance(fact, Settled | Accepted) else []
        facts.append((fact, [at(f"spec of {key}")] if isinstance(fact, Submitted) else bodies))
    return facts


def picture(board: Board) -> object:
    def value(key: str) -> object:
        held = board.held(key)
        return held and (held[0].key, held[0].round, held[0].digest, held[0].attempt)

    return (
        {(verdict, worker) for _, (verdict, _, worker) in board.runs()},
        _sorted_reused(board),
        [(key, board.state(key), value(key), board.blame(key)) for key in KEYS],
        {scope: _sorted(board.counts(Scope(scope))) for scope in (None, HERE.notebook, THERE.notebook)},
        sorted((offer.grant.key, offer.grant.attempt) for offer in _all_ready(board)),
    )


def _sorted_reused(board: Board) -> object:
    return [board.reused(Scope(scope)) for scope in (None, HERE.notebook, THERE.notebook)]


def _sorted(counts: dict[str, tuple[list[int], float | None]]) -> object:
    return sorted((name, tuple(states)) for name, (states, _) in counts.items())


def _all_ready(board: Board) -> Sequence[object]:
    found = []
    while offers := board.ready(100, 1e12):
        found.extend(offers)
    return found


@settings(max_examples=500, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_any_order_and_any_repeats_of_facts_give_one_picture(
    facts: list[tuple[Fact, list[int]]], rng: random.Random
) -> None:
    mixed = facts + rng.sample(facts, rng.randint(0, len(facts)))
    rng.shuffle(mixed)
    assert picture(board_of(*facts)) == picture(board_of(*mixed))


@settings(max_examples=300, deadline=None)
@given(histories())
def test_what_is_taken_over_is_a_finished_run_that_nobody_called_wrong(facts: list[tuple[Fact, list[int]]]) -> None:
    board = board_of(*facts)
    verdicts = [verdict for fact, _ in facts if isinstance(fact, Settled) for verdict in fact.verdicts]
    runs = {(v.key, v.round, v.inputs, v.digest) for v in verdicts}
    wrong = {
        (fact.keys[0], round)
        for fact, _ in facts
        if isinstance(fact, Invalidated) and fact.why is not Why.RETRY
        for round in range(fact.from_rounds[0] + 1)
    }
    for key in KEYS:
        card, held = board.cards.get(key), board.held(key)
        if held is not None and card is not None and card.taken == held and card.taken is not None:
            verdict = held[0]
            assert verdict.digest
            assert (verdict.key, verdict.round, verdict.inputs, verdict.digest) in runs
            assert (verdict.key, verdict.round) not in wrong
            assert verdict.inputs == card.inputs


@settings(max_examples=200, deadline=None)
@given(histories())
def test_counts_by_state_agree_with_the_states_of_the_tasks(facts: list[tuple[Fact, list[int]]]) -> None:
    board = board_of(*facts)
    counts = board.counts().get("f", ([0] * len(STATES), None))[0]
    for code, state in enumerate(STATES):
        tasks = [
            key
            for key in KEYS
            if (
                State.WITHDRAWN
                if board.state(key) is State.FINISHED and not (key in board.cards and board.cards[key].wanted)
                else board.state(key)
            )
            is state
        ]
        assert counts[code] == len(tasks)
