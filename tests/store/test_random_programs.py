"""Random programs of verbs: whatever is done to it, a store shows what the scheduler state in memory shows."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jug_notebook import system
from jug_notebook.model import (
    Acceptance,
    Claim,
    Origin,
    Scope,
    Settlement,
    State,
    Submission,
    Target,
    TaskView,
    Verdict,
    Why,
    parse_limits,
    with_limits,
)
from jug_notebook.scheduler import queue, state
from jug_notebook.store import Store, open_store
from jug_notebook.store.event_log import EventLogStore
from tests.servers import Server

NEEDS = {
    "a": "", "b": "", "c": "a", "d": "b", "e": "ab", "f": "c", "g": "d", "h": "ef", "i": "gh", "j": "x", "k": "aa",
}  # fmt: skip
FORMS = {"c": "form 1", "d": "form 1", "f": "form 2", "g": "form 2"}  # equal calls on what two tasks come to
FUNCTIONS = {"a": "make", "b": "make", "e": "join", "h": "join", "i": "join"}
PYTHONS = {"j": "3.12"}
PRIORITIES = {"d": 1}
LIMITS = {"b": "db:1", "d": "db:2,disk:1", "f": "disk:1"}
ORIGINS = [Origin("ann", "/a.ipynb", "1"), Origin("ann", "/a.ipynb", "2"), Origin("bob", "/b.ipynb", "1"),
           Origin("ann", "/a.ipynb")]  # fmt: skip
WORKERS = 3
NAMES = st.sampled_from(sorted(NEEDS))
SOME = st.lists(NAMES, min_size=1, max_size=5)
DIGESTS = st.sampled_from([b"1", b"2"])


def key(name: str) -> str:
    return sha1(name.encode()).hexdigest()


KEYS = [key(name) for name in [*NEEDS, "x"]]


@pytest.fixture(autouse=True, scope="module")
def pack_at_once() -> Iterator[None]:
    """Have stores pack whatever can be packed as soon as that is possible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "TOGETHER", 1)
        patch.setattr(queue, "LONG", 0)
        patch.setattr(queue, "SHORT", 1)
        yield


def model_in(folder: str) -> Store:
    """A store in memory that packs nothing."""
    store = open_store(f"memory:{folder}")
    assert isinstance(store, EventLogStore)
    pytest.MonkeyPatch().setattr(store._scheduler.tasks, "pack", lambda bound: None)
    return store


def submission(name: str) -> Submission:
    return Submission(
        key(name), FUNCTIONS.get(name, "f"), tuple(map(key, NEEDS[name])), FORMS.get(name, f"form of {name}").encode(),
        f"spec of {name}".encode(), PRIORITIES.get(name, 0), PYTHONS.get(name, "3.11"),
        with_limits((), parse_limits(LIMITS.get(name, ()))),
    )  # fmt: skip


class Twins:
    """A store and the model: what is done to one is done to the other, and both must answer the same."""

    def __init__(self, model: Store, store: Store) -> None:
        self.stores = (model, store)
        self._count = itertools.count()
        self.workers = [self._worker() for _ in range(WORKERS)]
        self.held: list[tuple[str, Claim]] = []
        self.done: list[tuple[str, Settlement]] = []

    def _worker(self) -> str:
        info = system.me("worker")
        for store in self.stores:
            store.renew([info])
        return info.id

    def submit(self, names: list[str], origin: Origin) -> None:
        first, second = (store.submit([submission(name) for name in names], origin) for store in self.stores)
        assert first == second

    def request(self, names: list[str], origin: Origin, wanted: bool) -> None:
        known = [k for k, state in zip(KEYS, self.stores[0].states(KEYS), strict=True) if state is not None]
        for store in self.stores:
            store.request([key(name) for name in names if key(name) in known], origin, wanted)

    def claim(self, worker: int, limit: int, target: Target | None, python: str) -> None:
        name = self.workers[worker]
        first, second = (store.claim(name, limit, 0.0, (), target, python) for store in self.stores)
        assert first == second
        self.held += ((name, claim) for claim in first)

    def settle(self, which: int, digest: bytes, kind: int, started: float, duration: float) -> None:
        if not self.held:
            return
        worker, claim = self.held.pop(which % len(self.held))
        lease = claim.lease
        kinds = [(True, False, 0.0), (False, False, 1.0), (False, False, 1e12), (False, True, 0.0)]
        final, died, retry_at = kinds[kind]
        verdict = Verdict(
            lease.key, lease.round, lease.inputs, lease.attempt, digest, started, duration, final or bool(digest),
            died and not digest, 0.0 if digest else retry_at,
        )  # fmt: skip
        self._settle(worker, Settlement(verdict, b"outcome %d" % next(self._count)))

    def _settle(self, worker: str, settlement: Settlement) -> None:
        for store in self.stores:
            assert store.claim(worker, 0, 0.0, [settlement]) == []
        self.done.append((worker, settlement))

    def settle_again(self, which: int) -> None:
        if self.done:
            self._settle(*self.done[which % len(self.done)])

    def release(self, which: int) -> None:
        if self.held:
            _, claim = self.held.pop(which % len(self.held))
            for store in self.stores:
                store.release([claim.lease])

    def leave(self, worker: int) -> None:
        """It may yet settle what it holds."""
        for store in self.stores:
            store.leave([self.workers[worker]])
        self.workers[worker] = self._worker()

    def invalidate(self, names: list[str], why: Why) -> None:
        states = self.stores[0].states([key(name) for name in names])
        known = list(dict.fromkeys(key(n) for n, state in zip(names, states, strict=True) if state is not None))
        first, second = (store.invalidate(known, why, "ann") for store in self.stores)
        assert first == second

    def accept(self, name: str, source: str, undone: bool) -> None:
        lease = self.stores[0].current_inputs([key(name)])[0]
        held = self.stores[0].outcomes([key(source)])[0]
        if lease is None or held is None or not held.verdict.finished:
            return
        verdict = held.verdict
        acceptance = Acceptance(
            key(name), lease.round, lease.inputs, verdict.key, verdict.round, verdict.digest, "code", "ann", 7.0
        )
        body = b"acceptance %d" % next(self._count)
        for store in self.stores:
            store.accept([(acceptance, body)], undone)

    def forget(self, names: list[str]) -> None:
        first, second = (store.sweep([key(name) for name in names], [], 1e9) for store in self.stores)
        assert first.tasks == second.tasks

    def run_all_again(self) -> None:
        for worker in range(WORKERS):
            self.leave(worker)
        self.held.clear()
        self.submit(sorted(NEEDS), ORIGINS[0])
        for store in self.stores:
            settled: list[Settlement] = []
            while claims := store.claim(self.workers[0], 1, 0.0, settled):
                verdicts = [Verdict(*msgspec.structs.astuple(claim.lease), b"1", 7.0, 0.001) for claim in claims]
                settled = [Settlement(verdict, b"outcome") for verdict in verdicts]

    def compare_states(self) -> None:
        """Once something was forgotten, rounds may differ, and to which notebooks what it needed belongs."""
        first, second = (
            (
                store.states(KEYS),
                [held and (held.body, held.verdict.key) for held in store.outcomes(KEYS)],
                store.blocking_tasks(KEYS),
                [sorted(store.requested(origin)) for origin in ORIGINS],
                store.snapshot().counts,
                store.snapshot().reused,
                sorted(store.edges()),
                store.runs()[1] == len(store.runs()[0]),
            )
            for store in self.stores
        )
        assert first == second

    def compare(self) -> None:
        first, second = (_picture(store) for store in self.stores)
        for name, value in first.items():
            assert second[name] == value, name


def _picture(store: Store) -> dict[str, object]:
    scopes = [Scope(), Scope("/a.ipynb"), Scope("/b.ipynb")]
    snapshots = [store.snapshot(scope) for scope in scopes]
    ends = store.invalidations(KEYS)
    return {
        "states": store.states(KEYS),
        "outcomes": store.outcomes(KEYS),
        "blame": store.blocking_tasks(KEYS),
        "standing": store.current_inputs(KEYS),
        "invalidations": [end and (end.from_round, end.user, end.why) for end in ends],
        "acceptances": store.acceptances(KEYS),
        "requested": [sorted(store.requested(origin)) for origin in ORIGINS],
        "counts": [[(f.name, f.counts, f.mean, f.reused) for f in s.functions] for s in snapshots],
        "running": sorted((w.info.id, w.info.task, w.info.done) for w in snapshots[0].workers),
        "tasks": [_by_key(store.tasks(scope)) for scope in scopes],
        "failed": sorted(view.key for view in store.tasks(state=State.FAILED)),
        "targeted": _by_key(store.tasks(scopes[1], Target(frozenset(["make"]), frozenset([key("c")])))),
        "named": [sorted(store.keys_named(name, scope)) for name in ("make", "f") for scope in scopes],
        "edges": [sorted(store.edges(scope)) for scope in scopes],
        "runs": [_ended(store, scope) for scope in scopes],
        "idle": [store.idle(python=python) for python in ("", "3.11", "3.12")],
        "foreign": [store.foreign(python) for python in ("3.11", "3.12")],
    }


def _ended(store: Store, scope: Scope) -> tuple[list[tuple[Verdict, bytes, bool]], int]:
    ended, total = store.runs(scope)
    when = [run.verdict.started + run.verdict.duration for run in ended]
    assert when == sorted(when, reverse=True)
    assert [run.verdict.key for run in store.runs(scope, 3)[0]] == [run.verdict.key for run in ended[:3]]
    return sorted(((run.verdict, run.body, run.counts) for run in ended), key=repr), total


def _by_key(views: list[TaskView]) -> list[TaskView]:
    return sorted(views, key=lambda view: view.key)


VERBS = st.one_of(
    st.tuples(st.just("submit"), SOME, st.sampled_from(ORIGINS[:3])),
    st.tuples(st.just("request"), SOME, st.sampled_from(ORIGINS), st.booleans()),
    *[st.tuples(
        st.just("claim"), st.integers(0, WORKERS - 1), st.integers(1, 4),
        st.sampled_from([None, None, Target(frozenset(["make"])), Target(frozenset(), frozenset([key("c")]))]),
        st.sampled_from(["", "3.11"]),
    )] * 2,
    *[st.tuples(
        st.just("settle"), st.integers(0, 9), st.sampled_from([b"", b"1", b"1", b"2"]), st.integers(0, 3),
        st.sampled_from([5.0, 6.0]), st.sampled_from([0.001, 0.5]),
    )] * 3,
    st.tuples(st.just("settle_again"), st.integers(0, 9)),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("leave"), st.integers(0, WORKERS - 1)),
    st.tuples(st.just("invalidate"), SOME, st.sampled_from(Why)),
    st.tuples(st.just("accept"), NAMES, NAMES, st.booleans()),
)  # fmt: skip

everything = ("submit", sorted(NEEDS), ORIGINS[0])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(VERBS, min_size=3, max_size=25), forgotten=st.lists(NAMES, min_size=1, max_size=9))
def test_what_is_forgotten_after_a_random_program_is_as_if_never_submitted(
    redis_server: Server, program: list[tuple[object, ...]], forgotten: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, model = open_store(redis_server.url()), model_in(folder)
        try:
            twins = Twins(model, store)
            for verb, *arguments in [everything, *program]:
                getattr(twins, str(verb))(*arguments)
            for origin in ORIGINS:
                twins.request(forgotten, origin, False)
            twins.compare()
            twins.forget(forgotten)
            twins.compare_states()
            twins.run_all_again()
            twins.compare_states()
        finally:
            model.close()
            store.close()


@pytest.fixture(params=["file", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        request.getfixturevalue("redis_server")
    kind: str = request.param
    return kind


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(st.one_of(VERBS, st.just(("compact",))), min_size=9, max_size=40), looks=st.integers(1, 9))
def test_compaction_in_the_midst_of_a_random_program_changes_no_state(
    kind: str, request: pytest.FixtureRequest, program: list[tuple[object, ...]], looks: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server: Server | None = request.getfixturevalue("redis_server") if kind == "redis" else None
        url = f"file:{folder}/jugdata" if server is None else server.url()
        store, behind, model = open_store(url), open_store(url), model_in(folder)
        try:
            twins, late = Twins(model, store), Twins.__new__(Twins)
            late.stores = (model, behind)
            for number, (verb, *arguments) in enumerate([everything, *program]):
                if verb == "compact":
                    other = open_store(url)
                    other.compact()
                    other.close()
                else:
                    getattr(twins, str(verb))(*arguments)
                twins.compare_states()
                if number % looks == 0:
                    late.compare_states()
            late.compare_states()
        finally:
            for one in (model, behind, store):
                one.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(VERBS, min_size=3, max_size=25), all_at_first=st.booleans())
def test_a_random_program_shows_what_the_model_shows(
    kind: str, request: pytest.FixtureRequest, program: list[tuple[object, ...]], all_at_first: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server: Server | None = request.getfixturevalue("redis_server") if kind == "redis" else None
        store = open_store(Path(folder) / "jugdata" if server is None else server.url())
        model = model_in(folder)
        try:
            twins = Twins(model, store)
            for verb, *arguments in [everything, *program] if all_at_first else program:
                getattr(twins, str(verb))(*arguments)
                twins.compare()
        finally:
            model.close()
            store.close()
