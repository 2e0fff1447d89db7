"""What stores have in common that fold facts in their own process: every verb, over a `Board`.

A subclass says how facts are kept and read, how a claim is won, and what rings when others have news.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from jug_notebook.clock import Clock
from jug_notebook.errors import NoSuchTask, ValueLost
from jug_notebook.model import (
    Acceptance,
    Accepted,
    Address,
    Claim,
    Claimed,
    Ended,
    Fact,
    Forgotten,
    FunctionView,
    Gone,
    Grant,
    Held,
    Invalidated,
    Invalidation,
    Key,
    Order,
    Origin,
    Released,
    Scope,
    Settled,
    Settlement,
    Snapshot,
    State,
    Submission,
    SubmitReport,
    Submitted,
    SweepReport,
    Target,
    TaskView,
    Why,
    Wished,
    WorkerId,
    WorkerInfo,
    WorkerView,
)
from jug_notebook.scheduler.packing import Outcome, Place
from jug_notebook.scheduler.records import STATES, Card, Offer
from jug_notebook.scheduler.state import Board
from jug_notebook.store import addresses_in

BATCH = 1000  #: facts about so many tasks make one record at the most
LATELY = 60.0  #: seconds for which a dead worker is still shown


class FoldedStore(ABC):
    """The verbs. All state is the board; the lock makes each verb one step for the threads of this process."""

    url: str
    id: str
    shown: str

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._board = Board()
        self._lock = threading.RLock()

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def _keep(self, fact: Fact, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        """Remember a fact with its bodies; answer where each body is."""

    @abstractmethod
    def _news(self) -> None:
        """Fold what others have written since the last time."""

    @abstractmethod
    def _win(self, worker: WorkerId, offers: Sequence[Offer]) -> list[bool]:
        """Try to claim; True where this worker has it now. Where it has not, the board must come to know who has."""

    @abstractmethod
    def _read(self, places: Sequence[Place]) -> list[bytes]:
        """The bodies at these places."""

    @abstractmethod
    def watch(self, seen: int, timeout: float) -> int: ...

    @abstractmethod
    def sync(self) -> None: ...

    @abstractmethod
    def _commit(self, busy: float | None) -> None:
        """A worker goes on to work of ``busy`` seconds (None: unknown): make durable what should be before."""

    @abstractmethod
    def processes(self) -> list[tuple[WorkerInfo, bool, float]]: ...

    @abstractmethod
    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]: ...

    @abstractmethod
    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None: ...

    @abstractmethod
    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address: ...

    @abstractmethod
    def get_blob(self, address: Address) -> memoryview: ...

    def map_blob(self, address: Address) -> memoryview:
        return self.get_blob(address).toreadonly()

    @abstractmethod
    def compact(self) -> int: ...

    @abstractmethod
    def crowded(self) -> bool: ...

    @abstractmethod
    def _size(self, place: Place) -> int:
        """How many bytes a body has."""

    @abstractmethod
    def _sweep_blobs(self, keep: Collection[Address], older_than: float, dry_run: bool) -> tuple[int, int]:
        """Remove blobs; answer how many, and how many bytes."""

    @abstractmethod
    def notice(self, process: WorkerId, text: str) -> None: ...

    @abstractmethod
    def log(self, process: WorkerId) -> str: ...

    @abstractmethod
    def close(self) -> None: ...

    # -- submitting ----------------------------------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], origin: Origin) -> SubmitReport:
        with self._lock:
            self._news()
            cards = self._board.cards
            seen: dict[Key, None] = {}
            new: dict[tuple[str, int, str], list[Submission]] = {}
            finished = 0
            for submission in submissions:
                key = submission.key
                if key in seen:
                    continue
                seen[key] = None
                card = cards.get(key)
                if card is None or card.state < 0:
                    new.setdefault((submission.name, submission.priority, submission.python), []).append(submission)
                elif STATES[card.state] is State.FINISHED:
                    finished += 1
            said: list[tuple[Fact, Sequence[bytes]]] = []
            for (name, priority, python), group in new.items():
                for part in _parts(group):
                    keys, needs, forms = [s.key for s in part], [s.needs for s in part], [s.form for s in part]
                    fact = Submitted(name, priority, python, keys, needs, forms, self._board.counter + 1)
                    said.append((fact, [s.body for s in part]))
            self._record_all([*said, *self._wishes(list(seen), origin, True)])
            self.sync()
            self._news()
            again = [s for s in submissions if s.key not in cards or cards[s.key].state < 0]
            if again:  # somebody forgot them meanwhile
                self.submit(again, origin)
            reused = sum(
                cards[s.key].taken is not None for group in new.values() for s in group if s.needs
            )  # finished before anybody could claim them
            finished += reused
            fresh = sum(map(len, new.values())) - reused
            return SubmitReport(new=fresh, known=len(submissions) - fresh - finished, finished=finished)

    def wish(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> None:
        with self._lock:
            self._news()
            self._record_all(self._wishes(list(keys), origin, wanted))
            self.sync()

    def _wishes(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> Iterator[tuple[Fact, Sequence[bytes]]]:
        if wanted:
            keys = self._board.needed_wishes(keys, origin)
        wish = self._board.wish(origin, wanted)
        for part in _parts(keys):
            yield Wished(wish, part), ()

    def wished(self, origin: Origin) -> list[Key]:
        with self._lock:
            self._news()
            return self._board.wished(origin)

    def origins(self) -> list[Origin]:
        with self._lock:
            self._news()
            return self._board.origins()

    # -- running -------------------------------------------------------------------------------------------------------

    def claim(
        self,
        worker: WorkerId,
        limit: int,
        wait: float,
        settled: Sequence[Settlement] = (),
        target: Target | None = None,
        python: str = "",
    ) -> list[Claim]:
        until = self._clock.monotonic() + wait
        while True:
            with self._lock:
                if any(settlement.verdict.attempt > 1 for settlement in settled):
                    self._news()  # it may have been overtaken
                if settled:
                    self._settle(worker, settled)  # facts come in any order: others need not wait until we have read on
                    settled = ()
                if limit <= 0:
                    self._commit(None)
                    return []
                self._news()
                won, expected = self._claim(worker, limit, target, python)
                seen = self._board.version
                claims = [self._claimed(offer) for offer in won]
                self._commit(expected if won else None)
                retry = self._board.queue.next_retry()
            left = until - self._clock.monotonic()
            if claims or left <= 0:
                return claims
            if retry is not None:
                left = max(0.001, min(left, retry - self._clock.now()))
            self.watch(seen, left)

    def _settle(self, worker: WorkerId, settled: Sequence[Settlement]) -> None:
        verdicts, bodies = [], []
        for settlement in settled:
            verdict = settlement.verdict
            if verdict.attempt > 1 and self._overtaken(verdict.key, verdict.inputs):
                continue  # the former owner was alive after all, and was first: one value is enough
            verdicts.append(verdict)
            bodies.append(settlement.body)
        if verdicts:
            self._record(Settled(worker, verdicts), bodies)

    def _overtaken(self, key: Key, inputs: bytes) -> bool:
        held = self._board.held(key)
        return held is not None and held[0].finished and held[0].inputs == inputs and held[0].key == key

    def _claim(
        self, worker: WorkerId, limit: int, target: Target | None, python: str
    ) -> tuple[list[Offer], float | None]:
        """Claim until something is won or nothing is ready. Answers what was won and how long it should take."""
        board = self._board
        while True:
            offers = board.ready(limit, self._clock.now(), target, python)
            if not offers:
                return [], None
            wins = self._win(worker, offers)
            won = [offer for offer, win in zip(offers, wins, strict=True) if win]
            if won:
                self._record(Claimed(worker, [offer.grant for offer in won]))
            for offer, win in zip(offers, wins, strict=True):
                if not win:
                    board.queue.back(offer.card)
            if won:
                means = [offer.card.kind.mean for offer in won]
                return won, None if None in means else sum(m for m in means if m is not None)

    def _claimed(self, offer: Offer) -> Claim:
        card = offer.card
        places = [card.spec]
        aliases = False
        for need in card.needs:
            held = self._board.held(need.key)
            assert held is not None, "an offered task has all it needs"
            places.append(held[1])
            aliases = aliases or need.taken is not None
        body, *needs = self._read(places)
        proofs = tuple(self._proof(need.key, need.taken) for need in card.needs) if aliases else ()
        return Claim(offer.grant, card.kind.name, body, tuple(needs), offer.failures, offer.deaths, proofs)

    def _proof(self, key: Key, held: Outcome | None) -> tuple[bytes, ...]:
        """What shows that a task may take over this outcome; empty for its own."""
        if held is None or held[0].key == key:
            return ()
        cards = self._board.cards
        task, source = cards[key], cards[held[0].key]
        if task.needs and task.form == source.form:
            return tuple(self._read([task.spec, source.spec]))
        said = self._board.accepted(key)
        assert said is not None, "nothing else is taken over"
        return tuple(self._read([said.place]))

    def release(self, grants: Sequence[Grant]) -> None:
        with self._lock:
            if grants:
                self._record(Released(list(grants)))
                self._commit(None)

    def leave(self, processes: Sequence[WorkerId]) -> None:
        with self._lock:
            for process in processes:
                self._record(Gone(process))
            self.sync()

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        with self._lock:
            self._news()
            return self._board.idle(target, python)

    def foreign(self, python: str) -> dict[str, int]:
        with self._lock:
            self._news()
            return self._board.foreign(python)

    # -- looking -------------------------------------------------------------------------------------------------------

    def states(self, keys: Sequence[Key]) -> list[State | None]:
        with self._lock:
            self._news()
            return [self._board.state(key) for key in keys]

    def specs(self, keys: Sequence[Key]) -> list[bytes | None]:
        with self._lock:
            self._news()
            cards = [self._board.cards.get(key) for key in keys]
            return self._bodies([None if card is None or card.state < 0 else card.spec for card in cards])

    def outcomes(self, keys: Sequence[Key]) -> list[Held | None]:
        with self._lock:
            self._news()
            held = [self._board.held(key) for key in keys]
            bodies = self._bodies([None if h is None else h[1] for h in held])
            return [
                None if h is None or body is None else Held(h[0], body, () if h[0].key == key else self._proof(key, h))
                for key, h, body in zip(keys, held, bodies, strict=True)
            ]

    def _bodies(self, places: Sequence[Place | None]) -> list[bytes | None]:
        found = iter(self._read([place for place in places if place is not None]))
        return [None if place is None else next(found) for place in places]

    def blame(self, keys: Sequence[Key]) -> list[Key | None]:
        with self._lock:
            self._news()
            return [self._board.blame(key) for key in keys]

    def keys_named(self, name: str, scope: Scope = Scope()) -> list[Key]:
        with self._lock:
            self._news()
            return [card.key for card in self._board.listing(scope, Target(names=frozenset([name])))]

    def edges(self, scope: Scope = Scope()) -> list[tuple[str, str, int]]:
        with self._lock:
            self._news()
            return [(name, needed, count) for (name, needed), count in self._board.edges(scope).items()]

    def tasks(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None, limit: int = 0
    ) -> list[TaskView]:
        with self._lock:
            self._news()
            if state is State.FAILED and target is None:
                return [self._view(card) for card in self._board.failed(scope, limit)]
            views = [self._view(card) for card in self._board.listing(scope, target, state)]
        if state is State.FAILED:
            views.sort(key=lambda view: view.started + view.duration, reverse=True)
        return views[:limit] if limit else views

    def runs(self, scope: Scope = Scope(), limit: int = 0) -> tuple[list[Ended], int]:
        with self._lock:
            self._news()
            ended = [(outcome, card) for card, outcome in self._board.runs(scope)]
            ended.sort(key=lambda pair: (pair[0][0].started + pair[0][0].duration, pair[0][0].key), reverse=True)
            latest = ended[:limit] if limit else ended
            try:
                bodies = self._read([outcome[1] for outcome, _ in latest])
            except ValueLost:  # a compaction has dropped what counts for nothing
                if not self._board.drop_past():
                    raise
                return self.runs(scope, limit)
            counting = [card.taken is None and self._board.held(card.key) == outcome for outcome, card in latest]
        return [
            Ended(outcome[0], body, counts) for (outcome, _), body, counts in zip(latest, bodies, counting, strict=True)
        ], len(ended)

    def _view(self, card: Card) -> TaskView:
        held = self._board.held(card.key)
        if held is None:
            return TaskView(card.key, card.kind.name, STATES[card.state], worker=self._board.runner(card))
        verdict, _, worker = held
        return TaskView(
            card.key, card.kind.name, STATES[card.state], worker, verdict.started, verdict.duration, verdict.attempt,
            source="" if card.taken is None else verdict.key,
        )  # fmt: skip

    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        processes = self.processes()
        with self._lock:
            self._news()
            counts = self._board.counts(scope)
            reused = self._board.reused(scope)
            now = self._clock.now()
            processes = [(self._up_to_date(info, now - age), alive, age) for info, alive, age in processes]
        return Snapshot(
            store=self.shown,
            at=now,
            scope="whole store" if scope.notebook is None else "this notebook",
            functions=tuple(
                FunctionView(
                    name,
                    {state: n for state, n in zip(STATES, counts[0], strict=True) if n},
                    counts[1],
                    reused.get(name, 0),
                )
                for name, counts in counts.items()
            ),
            workers=tuple(
                WorkerView(info, alive, age)
                for info, alive, age in processes
                if info.kind == "worker" and (alive or age < LATELY)
            ),
            notes=tuple(
                dict.fromkeys(f"{info.where}: {info.note}" for info, alive, _ in processes if alive and info.note)
            ),
            starting=starting(processes),
        )

    def _up_to_date(self, info: WorkerInfo, beat: float) -> WorkerInfo:
        """A beat is up to a second old; the facts may know better what a worker has done and what it no longer runs.

        When what it runs now began no fact tells: it was after its last ``beat``, and after its last run had ended.
        """
        done = max(info.done, self._board.settled_by.get(info.id, 0))
        card = self._board.running_of(info.id)
        if card is None:
            return msgspec.structs.replace(info, done=done, task="", task_name="", since=0.0)
        said = self._board.cards.get(info.task)
        if said is not None and self._board.runner(said) == info.id:
            return msgspec.structs.replace(info, done=done)
        since = max(beat, self._board.ended_by.get(info.id, 0.0))
        return msgspec.structs.replace(
            info, done=done, task=card.key, task_name=card.kind.name, since=since, progress=(0, 0)
        )

    # -- taking back ---------------------------------------------------------------------------------------------------

    def invalidate(self, keys: Sequence[Key], why: Why, user: str) -> list[Key]:
        with self._lock:
            self._news()
            lost: list[Key] = []
            rounds: list[int] = []
            inputs: list[bytes] = []
            sources: list[Key] = []
            source_rounds: list[int] = []
            for key in keys:
                card = self._board.cards.get(key)
                if card is None or card.state < 0:
                    raise NoSuchTask(f"no task {key[:12]} in {self.shown}")
                held = self._board.held(key)
                if why is Why.RETRY and (held is None or held[0].finished):
                    continue
                if card.taken is not None or any(verdict.round == card.round for verdict, _, _ in card.outcomes):
                    lost.append(key)
                    rounds.append(card.round)
                    inputs.append(b"" if card.taken is None else card.taken[0].inputs)
                    if why is Why.LOST and card.taken is not None:
                        sources.append(card.taken[0].key)
                        source_rounds.append(card.taken[0].round)
            if lost:
                fact = Invalidated(lost + sources, rounds + source_rounds, why, user, self._clock.now(), inputs)
                self._record(fact)
                self.sync()
            return lost

    def invalidations(self, keys: Sequence[Key]) -> list[Invalidation | None]:
        with self._lock:
            self._news()
            return [self._board.invalidation(key) for key in keys]

    # -- taking over ---------------------------------------------------------------------------------------------------

    def standing(self, keys: Sequence[Key]) -> list[Grant | None]:
        with self._lock:
            self._news()
            cards = [self._board.cards.get(key) for key in keys]
            return [
                None if card is None or card.inputs is None else Grant(card.key, card.round, card.inputs, 0)
                for card in cards
            ]

    def accept(self, sealed: Sequence[tuple[Acceptance, bytes]], undone: bool = False) -> None:
        with self._lock:
            self._news()
            for part in _parts(sealed):
                said = [acceptance for acceptance, _ in part]
                fact = Accepted(
                    self._board.counter + 1, undone, said[0].user, said[0].at, [a.key for a in said],
                    [a.round for a in said], [a.inputs for a in said], [a.source for a in said],
                    [a.source_round for a in said], [a.digest for a in said],
                )  # fmt: skip
                self._record(fact, [body for _, body in part])
            self.sync()

    def acceptances(self, keys: Sequence[Key]) -> list[bytes | None]:
        with self._lock:
            self._news()
            said = [self._board.accepted(key) for key in keys]
            return self._bodies([None if one is None else one.place for one in said])

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def sweep(
        self, forget: Sequence[Key], keep: Collection[Address], older_than: float, dry_run: bool = False
    ) -> SweepReport:
        began = self._clock.monotonic()
        with self._lock:
            self._news()
            cards = self._board.cards
            meant = [card for key in dict.fromkeys(forget) if (card := cards.get(key)) is not None and card.state >= 0]
            going = [card for card in meant if _idle(card)]
            size = sum(self._size(place) for card in going for place in places_of(card))
            wanted = [place for card in meant if not _idle(card) for place in places_of(card)]
            keep = {*keep, *self._mentioned(set(going)), *self._addresses(wanted)}
            if going and not dry_run:
                self._forget(going)
        looked = self._clock.monotonic() - began  # what was put meanwhile stays
        blobs, freed = self._sweep_blobs(keep, older_than + looked, dry_run)
        return SweepReport(len(going), blobs, size + freed)

    def _forget(self, going: Sequence[Card]) -> None:
        """Say so; and take it back for those that somebody, in the same moment, wished again."""
        specs = dict(zip([card.key for card in going], self._read([card.spec for card in going]), strict=True))
        kinds = {card.key: (card.kind, tuple(need.key for need in card.needs), card.form) for card in going}
        for part in _parts(going):
            self._record(Forgotten(self._board.counter, [c.key for c in part], [c.round for c in part]))
        self.sync()
        self._news()
        for key, (kind, needs, form) in kinds.items():
            card = self._board.cards.get(key)
            if card is not None and card.state < 0 and card.wanted:
                counter = self._board.counter + 1
                fact = Submitted(kind.name, kind.priority, kind.python, [key], [needs], [form], counter)
                self._record(fact, [specs[key]])
        self.sync()

    def _mentioned(self, going: Collection[Card]) -> set[Address]:
        """Blobs of outcomes that don't hold, and may again: of tasks that stay and fell back, or ran before."""
        board = self._board
        places = [
            outcome[1]
            for card in board.cards.values()
            if card.records and card.records is not card.worth and card not in going
            for outcome in card.outcomes
            if outcome != board.held(card.key)
        ]
        return self._addresses(places)

    def _addresses(self, places: Sequence[Place]) -> set[Address]:
        return {name for part in _parts(places) for body in self._read(part) for name in addresses_in(body)}

    # -- recording -----------------------------------------------------------------------------------------------------

    def _record(self, fact: Fact, bodies: Sequence[bytes] = ()) -> None:
        self._board.fold(fact, self._keep(fact, bodies))

    def _record_all(self, facts: Iterable[tuple[Fact, Sequence[bytes]]]) -> None:
        """Facts that belong together: each task is derived once."""
        said: list[tuple[Fact, Sequence[Place]]] = []
        try:
            for fact, bodies in facts:
                said.append((fact, self._keep(fact, bodies)))
        finally:  # what is kept counts, also where the disk is full behind it
            self._board.fold_all(said)


def _idle(card: Card) -> bool:
    """Submitted, and neither wanted nor running."""
    return card.state >= 0 and not card.wanted and STATES[card.state] is not State.RUNNING


def places_of(card: Card) -> Iterator[Place]:
    """Where the bodies of a submitted task are."""
    yield card.spec
    for outcome in card.outcomes:
        yield outcome[1]


def starting(processes: Sequence[tuple[WorkerInfo, bool, float]]) -> int:
    """How many workers live supervisors are to keep that are not there yet."""
    wanted = {info.id: info.size for info, alive, _ in processes if alive and info.kind == "supervisor"}
    for info, alive, _ in processes:
        if alive and info.kind == "worker" and info.supervisor in wanted:
            wanted[info.supervisor] -= 1
    return sum(max(0, missing) for missing in wanted.values())


def _parts(items: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), BATCH):
        yield list(items[start : start + BATCH])
