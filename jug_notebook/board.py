"""Folds facts into the picture: states, ready queue, counts. Pure: no IO, no time of its own.

House rules of this file:

* The picture depends on the *set* of facts folded, not on their order or repetition. So nothing here compares
  arrival times, and a fact about an unknown task waits on its card until the task's own fact comes.
* State is derived, in one place (`_derive`). Facts only change what it is derived from.
* What follows from a change flows along needs through a worklist, never by recursion: chains may be long.

A task that has no value of its own may take over another's: see `reuse`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import sha1
from typing import Any, NamedTuple

from jug_notebook.model import (
    NO_INPUTS,
    Accepted,
    Claimed,
    Fact,
    Gone,
    Grant,
    Invalidated,
    Invalidation,
    Key,
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
    WorkerId,
)
from jug_notebook.reuse import Outcome, Reuse, Standing, may_be_reused

BUDGET = 0.02  #: seconds of expected work that one claim may take

LONGEST = 60.0  #: seconds between two attempts; whoever said later has a clock that is ahead

STATES = list(State)
WAITING, READY, RUNNING, FINISHED, FAILED, BLOCKED, WITHDRAWN = range(7)  # states as indexes: enums hash slowly
UNKNOWN = -1  # mentioned by a fact, not yet submitted
REUSED = len(STATES)  # in tallies alone: finished, by another's run


class Kind:
    """What tasks of one function have in common, and how they fare. ``queue`` holds its ready tasks, oldest first."""

    __slots__ = ("done", "name", "priority", "python", "queue", "spent")

    def __init__(self, name: str, priority: int, python: str) -> None:
        self.name, self.priority, self.python = name, priority, python
        self.queue: list[tuple[int, Card]] = []
        self.done = 0
        self.spent = 0.0

    @property
    def mean(self) -> float | None:
        return self.spent / self.done if self.done else None


class Card:
    """One task. ``worth`` is the digest of the value it has now, empty without; ``spec`` tells where its body is."""

    __slots__ = (
        "attempts",
        "blocking",
        "dependents",
        "direct",
        "form",
        "inputs",
        "key",
        "kind",
        "lost",
        "missing",
        "needs",
        "notebooks",
        "outcomes",
        "queued",
        "round",
        "seq",
        "spec",
        "state",
        "taken",
        "tallied",
        "tally",
        "wanted",
        "wanters",
        "wishes",
        "worth",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.state = UNKNOWN
        self.kind: Kind = NO_KIND
        self.needs: tuple[Card, ...] = ()
        self.dependents: list[Card] = []
        self.form = b""
        self.seq = 0
        self.spec: Any = None
        self.round = 0
        self.inputs: bytes | None = None
        self.missing = 0
        self.blocking = 0
        self.worth = b""
        self.outcomes: tuple[Outcome, ...] = ()
        self.taken: Outcome | None = None  # over from another run
        self.direct = self.lost = -1  # the last round that was invalidated directly, or whose value was lost
        self.attempts: list[Attempt] | None = None
        self.wishes: tuple[tuple[Origin, int, bool], ...] = ()
        self.wanters = 0
        self.wanted = False
        self.queued = False
        self.notebooks: tuple[str, ...] = ()
        self.tally: list[int] | None = None
        self.tallied = 0


class Attempt:
    """One claimed attempt; ``over`` once released. A verdict on it removes it."""

    __slots__ = ("attempt", "inputs", "over", "round", "worker")

    def __init__(self, round: int, inputs: bytes, attempt: int) -> None:
        self.round, self.inputs, self.attempt = round, inputs, attempt
        self.worker: WorkerId = ""
        self.over = False


class Offer(NamedTuple):
    """A ready task and the grant that a claim of it would be."""

    card: Card
    grant: Grant
    failures: int
    deaths: int


NO_KIND = Kind("", 0, "")


class Board:
    """All tasks of a store, as the facts folded so far have it. ``version`` rises with each fold."""

    def __init__(self) -> None:
        self.cards: dict[Key, Card] = {}
        self.version = 0
        self.counter = 0  #: the highest counter of any wish
        self._kinds: dict[tuple[str, int, str], Kind] = {}
        self._tallies: dict[tuple[Kind, tuple[str, ...]], list[int]] = {}
        self._delayed: list[tuple[float, int, Card]] = []
        self._held: dict[WorkerId, set[Card]] = {}
        self.settled_by: dict[WorkerId, int] = {}  #: outcomes by worker
        self._gone: set[WorkerId] = set()
        self._presumed: set[WorkerId] = set()
        self._work: deque[Card] = deque()
        self._sequence = 0
        self._invalidations: dict[Key, tuple[int, float, str, str]] = {}
        self._reuse = Reuse(self.cards, self._work.extend)

    # -- folding -------------------------------------------------------------------------------------------------------

    def fold(self, fact: Fact, bodies: Sequence[Any] = ()) -> None:
        """Take in one fact. ``bodies`` says where the sealed bytes of each task of it are; it is kept, not read."""
        self.version += 1
        if type(fact) is Settled:
            for verdict, body in zip(fact.verdicts, bodies, strict=True):
                self._settled(verdict, body, fact.worker)
        elif type(fact) is Claimed:
            for grant in fact.grants:
                self._claimed(grant, fact.worker)
        elif type(fact) is Submitted:
            self._submitted(fact, bodies)
        elif type(fact) is Wished:
            self._wished(fact)
        elif type(fact) is Invalidated:
            for index, (key, from_round) in enumerate(zip(fact.keys, fact.from_rounds, strict=True)):
                inputs = fact.inputs[index] if index < len(fact.inputs) else b""
                self._invalidated(self._card(key), from_round, fact.why, inputs)
                said = (from_round, fact.at, fact.user, fact.why.value)
                self._invalidations[key] = max(self._invalidations.get(key, said), said)
        elif type(fact) is Accepted:
            self.counter = max(self.counter, fact.counter)
            self._work.extend(map(self._card, fact.keys))
            self._reuse.accept(fact, bodies)
        elif type(fact) is Released:
            for grant in fact.grants:
                card = self._card(grant.key)
                self._attempt(card, grant).over = True
                self._work.append(card)
        elif type(fact) is Gone:
            self._gone.add(fact.worker)
            self._work.extend(self._held.pop(fact.worker, ()))
        self._flow()

    def presume(self, worker: WorkerId, dead: bool) -> None:
        """Treat a worker's claims as void, or as valid again. An observation of this reader, not a fact for all."""
        if dead == (worker in self._presumed):
            return
        (self._presumed.add if dead else self._presumed.discard)(worker)
        self.version += 1
        self._work.extend(self._held.get(worker, ()))
        self._flow()

    def _card(self, key: Key) -> Card:
        card = self.cards.get(key)
        if card is None:
            card = self.cards[key] = Card(key)
        return card

    def _submitted(self, fact: Submitted, bodies: Sequence[Any]) -> None:
        kind_key = (fact.name, fact.priority, fact.python)
        kind = self._kinds.get(kind_key)
        if kind is None:
            kind = self._kinds[kind_key] = Kind(*kind_key)
        for key, needs, form, body in zip(fact.keys, fact.needs, fact.forms, bodies, strict=True):
            card = self._card(key)
            if card.state != UNKNOWN:
                continue
            card.kind = kind
            card.form = form
            card.spec = body
            self._sequence += 1
            card.seq = self._sequence
            card.state = WITHDRAWN
            card.needs = tuple(map(self._card, needs))
            for need in card.needs:
                need.dependents.append(card)
                card.missing += not need.worth
                card.blocking += need.state in (FAILED, BLOCKED)
                self._spread(need, card.notebooks)
                if card.wanted:
                    need.wanters += 1
                    self._work.append(need)
            self._weigh_inputs(card)
            for verdict, _, _ in card.outcomes:
                if verdict.digest:
                    kind.done += 1
                    kind.spent += verdict.duration
                    if verdict.inputs != NO_INPUTS:
                        self._reuse.ran(card, verdict)
            if card.direct >= 0:
                self._reuse.submitted(card)
            self._retally(card)
            self._work.append(card)

    def _wished(self, fact: Wished) -> None:
        origin, counter, wanted = fact.wish.origin, fact.wish.counter, fact.wish.wanted
        self.counter = max(self.counter, counter)
        for key in fact.keys:
            card = self._card(key)
            for wish in card.wishes:
                if wish[0] == origin:
                    if (counter, wanted) > wish[1:]:
                        card.wishes = (*(w for w in card.wishes if w is not wish), (origin, counter, wanted))
                    break
            else:
                card.wishes += ((origin, counter, wanted),)
            if wanted:
                self._spread(card, (origin.notebook,))
            self._work.append(card)

    def _spread(self, card: Card, notebooks: tuple[str, ...]) -> None:
        """Tasks belong to a notebook that ever wished them, and so do those they need."""
        below = [card]
        while below:
            card = below.pop()
            if not set(notebooks) <= set(card.notebooks):
                card.notebooks = tuple(sorted({*card.notebooks, *notebooks}))
                if card.state != UNKNOWN:
                    self._retally(card)
                below.extend(card.needs)

    def _claimed(self, grant: Grant, worker: WorkerId) -> None:
        card = self._card(grant.key)
        if any(v.attempt == grant.attempt and v.round == grant.round and v.inputs == grant.inputs
               for v, _, _ in card.outcomes):
            return
        self._attempt(card, grant).worker = worker
        if worker not in self._gone:
            self._held.setdefault(worker, set()).add(card)
        self._work.append(card)

    def _attempt(self, card: Card, grant: Grant) -> Attempt:
        if card.attempts is None:
            card.attempts = []
        for attempt in card.attempts:
            if attempt.attempt == grant.attempt and attempt.round == grant.round and attempt.inputs == grant.inputs:
                return attempt
        card.attempts.append(Attempt(grant.round, grant.inputs, grant.attempt))
        return card.attempts[-1]

    def _settled(self, verdict: Verdict, body: Any, worker: WorkerId) -> None:
        card = self._card(verdict.key)
        for known, _, by in card.outcomes:
            if known == verdict and by == worker:
                return
        if card.attempts is not None:
            for attempt in card.attempts:
                if (
                    attempt.attempt == verdict.attempt
                    and attempt.round == verdict.round
                    and attempt.inputs == verdict.inputs
                ):
                    card.attempts.remove(attempt)
                    held = self._held.get(attempt.worker)
                    if held is not None and not any(other.worker == attempt.worker for other in card.attempts):
                        held.discard(card)
                    break
            if not card.attempts:
                card.attempts = None
        if verdict.round < card.round and not may_be_reused(verdict):
            return
        card.outcomes += ((verdict, body, worker),)
        if verdict.digest and card.state != UNKNOWN:
            card.kind.done += 1
            card.kind.spent += verdict.duration
            if verdict.inputs != NO_INPUTS:
                self._reuse.ran(card, verdict)
        if self._reuse.accepts:
            self._reuse.settled(card)
        self.settled_by[worker] = self.settled_by.get(worker, 0) + 1
        self._new_round(card, verdict.round)

    def _new_round(self, card: Card, round: int) -> None:
        if round > card.round:
            card.round = round
            card.outcomes = tuple(o for o in card.outcomes if o[0].round >= round or may_be_reused(o[0]))
        self._work.append(card)

    def _invalidated(self, card: Card, from_round: int, why: Why, inputs: bytes) -> None:
        if why is Why.DIRECT:
            card.direct = max(card.direct, from_round)
        elif why is Why.LOST:
            card.lost = max(card.lost, from_round)
        self._new_round(card, from_round + 1)
        self._reuse.invalidated(card, why, inputs, known=card.state != UNKNOWN)

    # -- deriving ------------------------------------------------------------------------------------------------------

    def _flow(self) -> None:
        work = self._work
        while work:
            card = work.popleft()
            self._want(card)
            if card.state == UNKNOWN:
                continue
            state, worth = self._derive(card)
            if worth != card.worth:
                gained, lost = worth and not card.worth, card.worth and not worth
                card.worth = worth
                for above in card.dependents:
                    above.missing += 1 if lost else -1 if gained else 0
                    self._weigh_inputs(above)
                    work.append(above)
            if state != card.state:
                was, now = card.state in (FAILED, BLOCKED), state in (FAILED, BLOCKED)
                card.state = state
                if was != now:
                    for above in card.dependents:
                        above.blocking += 1 if now else -1
                        work.append(above)
            if state == READY and not card.queued:
                self._enqueue(card)
            tallied = state
            if state == FINISHED and (not card.wanted or card.taken is not None):
                tallied = REUSED if card.wanted else WITHDRAWN
            if tallied != card.tallied and card.tally is not None:
                card.tally[card.tallied] -= 1
                card.tally[tallied] += 1
                card.tallied = tallied

    def _want(self, card: Card) -> None:
        """Wanting flows to needs."""
        wanted = card.wanters > 0 or _wished_by_any(card.wishes)
        if wanted != card.wanted:
            card.wanted = wanted
            for need in card.needs:
                need.wanters += 1 if wanted else -1
                self._work.append(need)

    def _derive(self, card: Card) -> tuple[int, bytes]:
        """The one place that says what state a task is in, and what value it has."""
        inputs = card.inputs
        card.taken = None
        if inputs is not None:
            held = _heaviest(card)
            if held is not None and held[0].digest:
                return FINISHED, held[0].digest
            if held is None and self.runner(card):
                return RUNNING, b""
            if card.needs or self._reuse.accepts:
                card.taken = self._reuse.stands_for(card)
                if card.taken is not None:
                    return FINISHED, card.taken[0].digest
            if held is not None and card.wanted:
                return FAILED, b""
        if not card.wanted:
            return WITHDRAWN, b""
        if card.blocking:
            return BLOCKED, b""
        return (WAITING, b"") if inputs is None else (READY, b"")

    def runner(self, card: Card) -> WorkerId:
        """Who holds the latest attempt at what the task is now; empty where nobody live does."""
        if card.attempts is None:
            return ""
        latest: Attempt | None = None
        for attempt in card.attempts:
            if (
                attempt.round == card.round
                and attempt.inputs == card.inputs
                and (latest is None or attempt.attempt > latest.attempt)
            ):
                latest = attempt
        if latest is None or latest.over or latest.worker in self._gone or latest.worker in self._presumed:
            return ""
        settled = max((v.attempt for v in _current(card)), default=0)
        return "" if settled > latest.attempt else latest.worker

    @staticmethod
    def _weigh_inputs(card: Card) -> None:
        if card.missing:
            card.inputs = None
        elif card.needs:
            card.inputs = sha1(b"".join([need.worth for need in card.needs])).digest()
        else:
            card.inputs = NO_INPUTS

    def _retally(self, card: Card) -> None:
        if card.tally is not None:
            card.tally[card.tallied] -= 1
        pair = (card.kind, card.notebooks)
        tally = self._tallies.get(pair)
        if tally is None:
            tally = self._tallies[pair] = [0] * (len(STATES) + 1)
        card.tally = tally
        card.tallied = card.state
        if card.state == FINISHED and (not card.wanted or card.taken is not None):
            card.tallied = REUSED if card.wanted else WITHDRAWN
        tally[card.tallied] += 1

    # -- the ready queue -----------------------------------------------------------------------------------------------

    def _enqueue(self, card: Card) -> None:
        card.queued = True
        if card.outcomes and (retry_at := _retry_at(card)):
            heapq.heappush(self._delayed, (retry_at, card.seq, card))
        else:
            heapq.heappush(card.kind.queue, (card.seq, card))

    def ready(self, limit: int, now: float, target: Target | None = None, python: str = "") -> list[Offer]:
        """Take up to ``limit`` ready tasks off the queue, best first, at most `BUDGET` seconds of expected work.

        Each must then be claimed (fold `Claimed`) or given back (`back`).
        """
        while self._delayed and not now < self._delayed[0][0] <= now + LONGEST:
            _, seq, card = heapq.heappop(self._delayed)
            heapq.heappush(card.kind.queue, (seq, card))
        allowed = self._allowed(target)
        heads = [
            (-kind.priority, head[0], kind)
            for kind in self._kinds.values()
            if (not python or kind.python == python) and (head := self._head(kind, now)) is not None
        ]
        heads.sort(key=lambda h: h[:2])
        offers: list[Offer] = []
        passed: list[Card] = []
        budget = BUDGET
        while heads and len(offers) < limit:
            priority, _, kind = heads[0]
            mean = kind.mean
            if offers and (mean is None or mean > budget):
                break
            card = heapq.heappop(kind.queue)[1]
            card.queued = False
            if allowed is None or card.key in allowed:
                offers.append(self._offer(card))
                budget -= BUDGET if mean is None else mean
            else:
                passed.append(card)
            head = self._head(kind, now)
            if head is None:
                heads.pop(0)
            else:
                heads[0] = (priority, head[0], kind)
                if len(heads) > 1 and heads[0][:2] > heads[1][:2]:
                    heads.sort(key=lambda h: h[:2])
        for card in passed:
            self._enqueue(card)
        return offers

    def back(self, card: Card) -> None:
        """A task that was offered and not claimed: it stays in the queue if it is still ready."""
        if card.state == READY and not card.queued:
            self._enqueue(card)

    def _head(self, kind: Kind, now: float) -> tuple[int, Card] | None:
        """The oldest task of the queue that may run now; those that are no longer ready fall out here."""
        queue = kind.queue
        while queue:
            seq, card = queue[0]
            delayed = card.outcomes and now < _retry_at(card) <= now + LONGEST
            if card.state == READY and not delayed:
                return queue[0]
            heapq.heappop(queue)
            if delayed:
                heapq.heappush(self._delayed, (_retry_at(card), seq, card))
            else:
                card.queued = False
        return None

    @staticmethod
    def _offer(card: Card) -> Offer:
        assert card.inputs is not None
        top = failures = deaths = 0
        for verdict in _current(card):
            top = max(top, verdict.attempt)
            deaths += verdict.died
            failures += not verdict.died
        for attempt in card.attempts or ():
            if attempt.round == card.round and attempt.inputs == card.inputs:
                top = max(top, attempt.attempt)
        return Offer(card, Grant(card.key, card.round, card.inputs, top + 1), failures, deaths)

    def next_retry(self) -> float | None:
        """When the first delayed task may be tried again, seconds since the epoch."""
        return self._delayed[0][0] if self._delayed else None

    def _allowed(self, target: Target | None) -> set[Key] | None:
        """The keys a target means, with all they need; None for all tasks."""
        if target is None:
            return None
        below = [card for card in self.cards.values() if card.key in target.keys or card.kind.name in target.names]
        found: set[Key] = set()
        while below:
            card = below.pop()
            if card.key not in found:
                found.add(card.key)
                below.extend(card.needs)
        return found

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        """True where nothing is ready or running that a worker of this ``python`` could run or wait for."""
        if target is not None:
            allowed = self._allowed(target)
            return not any(c.state in (READY, RUNNING) for c in self.cards.values() if allowed and c.key in allowed)
        return not any(
            tally[RUNNING] or (tally[READY] and (not python or kind.python == python))
            for (kind, _), tally in self._tallies.items()
        )

    def foreign(self, python: str) -> dict[str, int]:
        """Ready tasks that a worker of this ``python`` must leave alone, by the python they want."""
        found: dict[str, int] = {}
        for (kind, _), tally in self._tallies.items():
            if tally[READY] and kind.python != python:
                found[kind.python] = found.get(kind.python, 0) + tally[READY]
        return found

    # -- looking -------------------------------------------------------------------------------------------------------

    def state(self, key: Key) -> State | None:
        """None for a task that was never submitted."""
        card = self.cards.get(key)
        return None if card is None or card.state == UNKNOWN else STATES[card.state]

    def held(self, key: Key) -> Outcome | None:
        """The outcome that holds now: verdict, where its body is, whose it is. An alias has another task's verdict."""
        card = self.cards.get(key)
        return None if card is None or card.inputs is None else card.taken or _heaviest(card)

    def running_of(self, worker: WorkerId) -> Card | None:
        """The task that a worker runs, or the first of those it will run next."""
        cards = [card for card in self._held.get(worker, ()) if self.runner(card) == worker]
        return min(cards, key=lambda card: card.seq, default=None)

    def invalidation(self, key: Key) -> Invalidation | None:
        """Who began the round that the task is in; None where it is in its first."""
        card, said = self.cards.get(key), self._invalidations.get(key)
        if card is None or said is None or said[0] + 1 != card.round:
            return None
        return Invalidation(said[0], said[1], said[2], Why(said[3]))

    def holders(self) -> list[WorkerId]:
        """Workers with open attempts."""
        return [worker for worker, cards in self._held.items() if cards]

    def blame(self, key: Key) -> Key | None:
        """The failed task that, through whatever chain of needs, blocks this one."""
        card = self.cards.get(key)
        while card is not None and card.state == BLOCKED:
            card = next((need for need in card.needs if need.state in (FAILED, BLOCKED)), None)
        return card.key if card is not None and card.state == FAILED else None

    def wished(self, origin: Origin) -> list[Key]:
        """What this very origin wants now."""
        return [
            key
            for key, card in self.cards.items()
            if card.wishes and _wished_by_any(tuple(w for w in card.wishes if w[0] == origin or _is_bar(w, origin)))
        ]

    def wish(self, origin: Origin, wanted: bool) -> Wish:
        """A wish that outweighs all seen so far."""
        return Wish(origin, self.counter + 1, wanted)

    def needed_wishes(self, keys: Sequence[Key], origin: Origin) -> list[Key]:
        """Those of ``keys`` for which this origin's wish does not stand yet."""
        standing = []
        for key in keys:
            card = self.cards.get(key)
            if card is None or not _wished_by_any(
                tuple(w for w in card.wishes if w[0] == origin or _is_bar(w, origin))
            ):
                standing.append(key)
        return standing

    def counts(self, scope: Scope = Scope()) -> dict[str, tuple[list[int], float | None]]:
        """By function, in the order they were first seen: tasks by state (indexes of `STATES`) and mean seconds."""
        counts: dict[str, list[int]] = {kind.name: [0] * len(STATES) for kind in self._kinds.values()}
        for (kind, notebooks), tally in self._tallies.items():
            if scope.notebook is None or scope.notebook in notebooks:
                counts[kind.name] = [a + b for a, b in zip(counts[kind.name], tally[:REUSED], strict=True)]
                counts[kind.name][FINISHED] += tally[REUSED]
        done = dict.fromkeys(counts, 0)
        spent = dict.fromkeys(counts, 0.0)
        for kind in self._kinds.values():
            done[kind.name] += kind.done
            spent[kind.name] += kind.spent
        return {
            name: (states, spent[name] / done[name] if done[name] else None)
            for name, states in counts.items()
            if any(states)
        }

    def edges(self, scope: Scope = Scope()) -> dict[tuple[str, str], int]:
        """How many needs tasks of one function have of another's, by (function, needed function), as first seen.

        Tasks that nobody wants any more are left out, as they are in a picture.
        """
        found: dict[tuple[str, str], int] = {}
        for card in self.cards.values():
            wanted = card.needs and card.tallied != WITHDRAWN
            if wanted and (scope.notebook is None or scope.notebook in card.notebooks):
                name = card.kind.name
                for need in card.needs:
                    if need.state != UNKNOWN:
                        pair = (name, need.kind.name)
                        found[pair] = found.get(pair, 0) + 1
        return found

    def reused(self, scope: Scope = Scope()) -> dict[str, int]:
        """By function: how many of the finished tasks took over their value."""
        counts: dict[str, int] = {}
        for (kind, notebooks), tally in self._tallies.items():
            if tally[REUSED] and (scope.notebook is None or scope.notebook in notebooks):
                counts[kind.name] = counts.get(kind.name, 0) + tally[REUSED]
        return counts

    def accepted(self, key: Key) -> Standing | None:
        """The acceptance that stands for what a task is now, whether or not it needs one."""
        return self._reuse.accepted(key)

    def listing(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None
    ) -> Iterator[Card]:
        """Submitted tasks in order of submission."""
        code = None if state is None else STATES.index(state)
        for card in self.cards.values():
            if (
                card.state != UNKNOWN
                and (code is None or card.state == code)
                and (scope.notebook is None or scope.notebook in card.notebooks)
                and (target is None or card.key in target.keys or card.kind.name in target.names)
            ):
                yield card


def _retry_at(card: Card) -> float:
    """Before when it should not be tried again; 0 where there is no such time."""
    return max((verdict.retry_at for verdict in _current(card)), default=0.0)


def _current(card: Card) -> Iterator[Verdict]:
    """Verdicts on what the task is now: of its round, on its inputs."""
    for verdict, _, _ in card.outcomes:
        if verdict.round == card.round and verdict.inputs == card.inputs:
            yield verdict


def _heaviest(card: Card) -> Outcome | None:
    """Its own final outcome that holds: of this round, on the inputs it has now; finished before failed, then later."""
    best = None
    for outcome in card.outcomes:
        verdict = outcome[0]
        if verdict.final and verdict.round == card.round and verdict.inputs == card.inputs:
            weight = (bool(verdict.digest), verdict.attempt, verdict.digest, outcome[2])
            if best is None or weight > best[0]:
                best = (weight, outcome)
    return None if best is None else best[1]


def _is_bar(wish: tuple[Origin, int, bool], origin: Origin) -> bool:
    """No longer wanting something without naming a cell speaks for all cells of the notebook."""
    by, _, wanted = wish
    return not wanted and not by.cell and by.notebook == origin.notebook and by.user == origin.user


def _wished_by_any(wishes: tuple[tuple[Origin, int, bool], ...]) -> bool:
    if not wishes:
        return False
    if len(wishes) == 1:
        return wishes[0][2]
    return any(
        wanted and not any(_is_bar(other, origin) and other[1] > counter for other in wishes)
        for origin, counter, wanted in wishes
    )
