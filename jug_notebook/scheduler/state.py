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
from collections.abc import Iterator, Sequence, Set
from hashlib import sha1
from itertools import compress
from typing import Any

import msgspec

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
from jug_notebook.scheduler.counts import Tallies
from jug_notebook.scheduler.packing import Outcome, Place, digest_of, has_value, is_of, of_digest
from jug_notebook.scheduler.queue import ReadyQueue
from jug_notebook.scheduler.records import (
    BLOCKED,
    FAILED,
    FINISHED,
    NO_KIND,
    READY,
    REUSED,
    RUNNING,
    STATES,
    UNKNOWN,
    WAITING,
    WITHDRAWN,
    Attempt,
    Card,
    Kind,
    Offer,
    current,
    heaviest,
    heaviest_record,
    is_bar,
    wished_by_any,
)
from jug_notebook.scheduler.reuse import Reuse, Standing, may_be_reused

_TURNS: dict[type, int] = {Wished: 0, Submitted: 1, Claimed: 3}  # of facts that come together


class Board:
    """All tasks of a store, as the facts folded so far have it. ``version`` rises with each fold."""

    def __init__(self) -> None:
        self.cards: dict[Key, Card] = {}
        self.version = 0
        self.counter = 0  #: the highest counter of any wish
        self.queue = ReadyQueue()
        self._tallies = Tallies()
        self._notebooks: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._held: dict[WorkerId, set[Card]] = {}
        self.settled_by: dict[WorkerId, int] = {}  #: outcomes by worker
        self.ended_by: dict[WorkerId, float] = {}  #: when each worker's latest run ended, seconds since the epoch
        self._gone: set[WorkerId] = set()
        self._presumed: set[WorkerId] = set()
        self._failed: dict[Card, float] = {}  # and when that was
        self._work: deque[Card] = deque()
        self._sequence = 0
        self._invalidations: dict[Key, tuple[int, float, str, str]] = {}
        self._past: dict[Key, dict[tuple[Verdict, WorkerId], Any]] = {}  # runs that are not even sources any more
        self.forgotten: dict[Key, tuple[int, int]] = {}  #: counter and round up to which all is void
        self.moved: dict[Place, Place] | None = None  #: where bodies went whose facts came again, if anybody asks
        self._reuse = Reuse(self.cards, self._work.extend)

    # -- folding -------------------------------------------------------------------------------------------------------

    def fold(self, fact: Fact, bodies: Sequence[Place] = ()) -> None:
        """Take in one fact. ``bodies`` says where the sealed bytes of each task of it are; it is kept, not read."""
        self._take(fact, bodies)
        self._flow()

    def fold_all(self, said: Sequence[tuple[Fact, Sequence[Place]]]) -> None:
        """Take in many at once: each task is derived once.

        Wishes first, so that tasks are counted where they belong, then tasks, so that what they came to finds them;
        claims last, for most have come to something.
        """
        for fact, _ in said:
            if type(fact) is Submitted:
                for key in fact.keys:  # listed in the order in which they were submitted
                    self._card(key)
        for fact, bodies in sorted(said, key=_turn):
            self._take(fact, bodies)
        if len(self._work) > len(said):
            once = dict.fromkeys(self._work)
            self._work.clear()
            self._work.extend(once)
        self._flow()

    def _take(self, fact: Fact, bodies: Sequence[Place]) -> None:
        self.version += 1
        if self.forgotten:
            fact, bodies = self._not_forgotten(fact, bodies)
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
        elif type(fact) is Forgotten:
            self.counter = max(self.counter, fact.counter)
            self._forget(fact)

    def presume(self, worker: WorkerId, dead: bool) -> None:
        """Treat a worker's claims as void, or as valid again. An observation of this reader, not a fact for all."""
        if dead == (worker in self._presumed):
            return
        (self._presumed.add if dead else self._presumed.discard)(worker)
        self.version += 1
        self._work.extend(self._held.get(worker, ()))
        self._flow()

    def all_presumed(self, workers: Set[WorkerId]) -> bool:
        """Are all of these presumed dead already?"""
        return workers <= self._presumed

    def _card(self, key: Key) -> Card:
        card = self.cards.get(key)
        if card is None:
            card = self.cards[key] = Card(key)
            if key in self.forgotten:
                card.round = self.forgotten[key][1] + 1
        return card

    def _submitted(self, fact: Submitted, bodies: Sequence[Place]) -> None:
        kind = self.queue.kind(fact.name, fact.priority, fact.python)
        cards, counter = self.cards, fact.counter
        for key, needs, form, body in zip(fact.keys, fact.needs, fact.forms, bodies, strict=True):
            card = cards.get(key) or self._card(key)
            if counter > card.since:
                card.since = counter
            if card.state != UNKNOWN:
                if self.moved is not None:
                    self.moved[card.spec] = body
                card.lies(card.seq, body)
                continue
            card.kind = kind
            card.form = form if needs else b""  # without needs, no other's run stands for it by its form
            self._sequence += 1
            card.lies(self._sequence, body)
            card.state = WITHDRAWN
            if needs:
                card.needs = tuple(map(self._card, needs))
            for need in card.needs:
                if isinstance(need.dependents, list):
                    need.dependents.append(card)
                else:
                    need.dependents = [card]
                card.missing += not need.worth
                card.blocking += need.state in (FAILED, BLOCKED)
                self._spread(need, card.notebooks)
                if card.wanted:
                    need.wanters += 1
                    self._work.append(need)
            if needs:
                self._weigh_inputs(card)
            else:
                card.inputs = NO_INPUTS
            for verdict, _, _ in card.outcomes if card.records else ():
                if verdict.digest:
                    kind.done += 1
                    kind.spent += verdict.duration
                    if verdict.inputs != NO_INPUTS:
                        self._reuse.ran(card, verdict)
            if card.direct >= 0:
                self._reuse.submitted(card)
            self._tallies.count(card)
            self._work.append(card)

    def _wished(self, fact: Wished) -> None:
        origin, counter, wanted = fact.wish.origin, fact.wish.counter, fact.wish.wanted
        self.counter = max(self.counter, counter)
        alone = ((origin, counter, wanted),)  # shared by all
        notebooks: tuple[str, ...] = (origin.notebook,)
        notebooks = self._notebooks.setdefault(notebooks, notebooks)
        cards = self.cards
        for key in fact.keys:
            card = cards.get(key) or self._card(key)
            if not card.wishes:
                card.wishes = alone
            else:
                for wish in card.wishes:
                    if wish[0] == origin:
                        if (counter, wanted) > wish[1:]:
                            card.wishes = (*(w for w in card.wishes if w is not wish), *alone)
                        break
                else:
                    card.wishes += alone
            if not card.notebooks and card.state == UNKNOWN:
                card.notebooks = notebooks
            elif card.notebooks is not notebooks:
                self._spread(card, notebooks)
            self._work.append(card)

    def _spread(self, card: Card, notebooks: tuple[str, ...]) -> None:
        """Tasks belong to a notebook that ever wished them, and so do those they need."""
        below = [card]
        while below:
            card = below.pop()
            if not set(notebooks) <= set(card.notebooks):
                told = tuple(sorted({*card.notebooks, *notebooks}))
                card.notebooks = self._notebooks.setdefault(told, told)
                if card.state != UNKNOWN:
                    self._tallies.count(card)
                below.extend(card.needs)

    def _claimed(self, grant: Grant, worker: WorkerId) -> None:
        card = self.cards.get(grant.key) or self._card(grant.key)
        records = card.records
        if isinstance(records, bytes):
            if records and is_of(records, grant):
                return
        elif any(is_of(one, grant) for one in records):
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

    def _settled(self, verdict: Verdict, body: Place, worker: WorkerId) -> None:
        card = self.cards.get(verdict.key) or self._card(verdict.key)
        if card.records:
            for known in card.outcomes:
                if known[0] == verdict and known[2] == worker:
                    self._move(card, known, body)
                    return
        if card.attempts is not None:
            self._attempt_ended(card, verdict)
        ended = verdict.started + verdict.duration
        if ended > self.ended_by.get(worker, 0.0):
            self.ended_by[worker] = ended
        if verdict.round < card.round and not may_be_reused(verdict):
            self._past.setdefault(card.key, {})[verdict, worker] = body
            return
        card.came_to(verdict, body, worker)
        if verdict.digest and card.state != UNKNOWN:
            card.kind.done += 1
            card.kind.spent += verdict.duration
            if verdict.inputs != NO_INPUTS:
                self._reuse.ran(card, verdict)
        if self._reuse.accepts:
            self._reuse.settled(card)
        self.settled_by[worker] = self.settled_by.get(worker, 0) + 1
        if verdict.round > card.round:
            self._new_round(card, verdict.round)
        else:
            self._work.append(card)

    def _attempt_ended(self, card: Card, verdict: Verdict) -> None:
        attempts = card.attempts or []
        for attempt in attempts:
            if (
                attempt.attempt == verdict.attempt
                and attempt.round == verdict.round
                and attempt.inputs == verdict.inputs
            ):
                attempts.remove(attempt)
                held = self._held.get(attempt.worker)
                if held is not None and not any(other.worker == attempt.worker for other in attempts):
                    held.discard(card)
                break
        card.attempts = attempts or None

    def _move(self, card: Card, known: Outcome, body: Place) -> None:
        """A fact came again from elsewhere: its body is there from now on, and where it was it may go."""
        if self.moved is not None:
            self.moved[known[1]] = body
        here = (known[0], body, known[2])
        card.outcomes = [here if outcome == known else outcome for outcome in card.outcomes]
        if card.worth:
            self._work.append(card)
        self._reuse.moved(card, known[0])

    def _new_round(self, card: Card, round: int) -> None:
        if round > card.round:
            card.round = round
            outcomes = card.outcomes
            kept = [o for o in outcomes if o[0].round >= round or may_be_reused(o[0])]
            if len(kept) < len(outcomes):
                past = self._past.setdefault(card.key, {})
                past.update({(verdict, worker): body for verdict, body, worker in outcomes if verdict.round < round})
                for verdict, _, worker in kept:
                    past.pop((verdict, worker), None)
            card.outcomes = kept
        self._work.append(card)

    def _invalidated(self, card: Card, from_round: int, why: Why, inputs: bytes) -> None:
        if why is Why.DIRECT:
            card.marks = (max(card.direct, from_round), card.lost)
        elif why is Why.LOST:
            card.marks = (card.direct, max(card.lost, from_round))
        self._new_round(card, from_round + 1)
        self._reuse.invalidated(card, why, inputs, known=card.state != UNKNOWN)

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def _not_forgotten(self, fact: Fact, bodies: Sequence[Place]) -> tuple[Fact, Sequence[Any]]:
        """What is left of a fact without what was said of tasks before they were forgotten."""
        if isinstance(fact, Gone | Forgotten):
            return fact, bodies
        void = self.forgotten
        stays: list[bool]
        if isinstance(fact, Submitted | Wished | Accepted):
            counter = fact.wish.counter if isinstance(fact, Wished) else fact.counter
            stays = [key not in void or counter > void[key][0] for key in fact.keys]
        elif isinstance(fact, Invalidated):
            rows = zip(fact.keys, fact.from_rounds, strict=True)
            stays = [key not in void or round > void[key][1] for key, round in rows]
        else:
            grants = fact.verdicts if isinstance(fact, Settled) else fact.grants
            stays = [one.key not in void or one.round > void[one.key][1] for one in grants]
        if all(stays):
            return fact, bodies
        return part_of(fact, stays), list(compress(bodies, stays))

    def _forget(self, fact: Forgotten) -> None:
        gone: list[Card] = []
        stays: list[Card] = []
        for key, round in zip(fact.keys, fact.rounds, strict=True):
            before = self.forgotten.get(key, (-1, -1))
            counter, round = self.forgotten[key] = max(before[0], fact.counter), max(before[1], round)
            card = self.cards.get(key)
            if card is None:
                continue
            self._invalidations.pop(key, None)
            self._past.pop(key, None)
            self._reuse.forget(card, counter, round)
            for attempt in card.attempts or ():
                if attempt.round <= round and (held := self._held.get(attempt.worker)) is not None:
                    held.discard(card)
            card.attempts = [one for one in card.attempts or () if one.round > round] or None
            for verdict, _, _ in card.outcomes:
                if verdict.round <= round and verdict.digest and card.state != UNKNOWN:
                    card.kind.done -= 1
                    card.kind.spent -= verdict.duration
            card.outcomes = [outcome for outcome in card.outcomes if outcome[0].round > round]
            card.wishes = tuple(wish for wish in card.wishes if wish[1] > counter)
            card.round = max(card.round, round + 1)
            card.marks = (card.direct if card.direct > round else -1, card.lost if card.lost > round else -1)
            if card.state != UNKNOWN and card.since <= counter:
                gone.append(card)
            else:
                self._work.append(card)
                stays.append(card)
        self._withdraw(gone)
        self._gather(stays)
        for card in gone:
            if not (card.dependents or card.wishes or card.records or card.attempts):
                del self.cards[card.key]

    def _withdraw(self, gone: Sequence[Card]) -> None:
        """These cards are of tasks that nobody has submitted."""
        going, needs = set(gone), {need for card in gone for need in card.needs}
        for need in needs:
            need.dependents = [above for above in need.dependents if above not in going]
        for card in gone:
            self._failed.pop(card, None)
            blocked = card.state in (FAILED, BLOCKED)
            if card.tally is not None:
                card.tally[card.tallied] -= 1
            for need in card.needs:
                need.wanters -= card.wanted
                self._work.append(need)
            for above in card.dependents:
                above.missing += bool(card.worth)
                above.blocking -= blocked
                self._weigh_inputs(above)
                self._work.append(above)
            card.state, card.kind, card.tally, card.tallied = UNKNOWN, NO_KIND, None, 0
            card.needs, card.form, card.spot, card.inputs, card.worth, card.taken = (), b"", 0, None, b"", None
            card.since = card.missing = card.blocking = 0
            card.queued = False
            self._work.append(card)
        self._gather([*gone, *needs])

    def _gather(self, below: list[Card]) -> None:
        """Tell again to which notebooks these tasks belong, and those they need."""
        while below:
            card = below.pop()
            notebooks = {origin.notebook for origin, _, _ in card.wishes}
            told = tuple(sorted(notebooks.union(*(above.notebooks for above in card.dependents))))
            if told != card.notebooks:
                card.notebooks = self._notebooks.setdefault(told, told)
                if card.state != UNKNOWN:
                    self._tallies.count(card)
                below.extend(card.needs)

    # -- deriving ------------------------------------------------------------------------------------------------------

    def _flow(self) -> None:
        work = self._work
        stale: set[Kind] = set()
        while work:
            card = work.popleft()
            wishes = card.wishes
            wanted = card.wanters > 0 or (wishes[0][2] if len(wishes) == 1 else wished_by_any(wishes))
            if wanted != card.wanted:  # it flows to what it needs
                card.wanted = wanted
                for need in card.needs:
                    need.wanters += 1 if wanted else -1
                    work.append(need)
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
                if card.state == FAILED:
                    del self._failed[card]
                elif state == FAILED:
                    held = heaviest(card)
                    self._failed[card] = 0.0 if held is None else held[0].started + held[0].duration
                if card.state == READY and card.queued and self.queue.leaves(card):
                    stale.add(card.kind)
                was, now = card.state in (FAILED, BLOCKED), state in (FAILED, BLOCKED)
                card.state = state
                if was != now:
                    for above in card.dependents:
                        above.blocking += 1 if now else -1
                        work.append(above)
            if state == READY and not card.queued:
                self.queue.put(card)
            tallied = state
            if state == FINISHED and (not card.wanted or card.taken is not None):
                tallied = REUSED if card.wanted else WITHDRAWN
            if tallied != card.tallied and card.tally is not None:
                card.tally[card.tallied] -= 1
                card.tally[tallied] += 1
                card.tallied = tallied
        self.queue.freshen(stale)

    def _derive(self, card: Card) -> tuple[int, bytes]:
        """The one place that says what state a task is in, and what value it has."""
        inputs = card.inputs
        card.taken = None
        if inputs is not None:
            held = heaviest_record(card, inputs)
            if held and has_value(held):
                return FINISHED, held
            if not held and self.runner(card):
                return RUNNING, b""
            if card.needs or self._reuse.accepts:
                card.taken = self._reuse.stands_for(card)
                if card.taken is not None:
                    return FINISHED, of_digest(card.taken[0].digest)
            if held and card.wanted:
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
        if not card.records:
            return latest.worker
        settled = max((v.attempt for v in current(card)), default=0)
        return "" if settled > latest.attempt else latest.worker

    @staticmethod
    def _weigh_inputs(card: Card) -> None:
        if card.missing:
            card.inputs = None
        elif card.needs:
            card.inputs = sha1(b"".join([digest_of(need.worth) for need in card.needs])).digest()
        else:
            card.inputs = NO_INPUTS

    # -- the ready queue -----------------------------------------------------------------------------------------------

    def ready(self, limit: int, now: float, target: Target | None = None, python: str = "") -> list[Offer]:
        """Take up to ``limit`` ready tasks off the queue, best first.

        Each must then be claimed (fold `Claimed`) or given back (``queue.back``).
        """
        return self.queue.take(limit, now, self._allowed(target), python)

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
        if target is None:
            return self._tallies.none_open(python)
        allowed = self._allowed(target)
        return not any(c.state in (READY, RUNNING) for c in self.cards.values() if allowed and c.key in allowed)

    def foreign(self, python: str) -> dict[str, int]:
        """Ready tasks that a worker of this ``python`` must leave alone, by the python they want."""
        return self._tallies.foreign(python)

    # -- looking -------------------------------------------------------------------------------------------------------

    def state(self, key: Key) -> State | None:
        """None for a task that was never submitted."""
        card = self.cards.get(key)
        return None if card is None or card.state == UNKNOWN else STATES[card.state]

    def held(self, key: Key) -> Outcome | None:
        """The outcome that holds now: verdict, where its body is, whose it is. An alias has another task's verdict."""
        card = self.cards.get(key)
        return None if card is None or card.inputs is None else card.taken or heaviest(card)

    def runs(self, scope: Scope = Scope()) -> Iterator[tuple[Card, Outcome]]:
        """All attempts that came to something, of former rounds too."""
        for card in self.listing(scope):
            for outcome in card.outcomes:
                yield card, outcome
            for (verdict, worker), body in self._past.get(card.key, {}).items():
                yield card, (verdict, body, worker)

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
            if card.wishes and wished_by_any(tuple(w for w in card.wishes if w[0] == origin or is_bar(w, origin)))
        ]

    def origins(self) -> list[Origin]:
        """Who wants something now."""
        found: dict[Origin, None] = {}
        for wishes in {card.wishes for card in self.cards.values()}:
            for origin, _, wanted in wishes:
                if wanted and wished_by_any(tuple(w for w in wishes if w[0] == origin or is_bar(w, origin))):
                    found[origin] = None
        return list(found)

    def wish(self, origin: Origin, wanted: bool) -> Wish:
        """A wish that outweighs all seen so far."""
        return Wish(origin, self.counter + 1, wanted)

    def needed_wishes(self, keys: Sequence[Key], origin: Origin) -> list[Key]:
        """Those of ``keys`` for which this origin's wish does not stand yet."""
        standing = []
        for key in keys:
            card = self.cards.get(key)
            if card is None or not wished_by_any(tuple(w for w in card.wishes if w[0] == origin or is_bar(w, origin))):
                standing.append(key)
        return standing

    def counts(self, scope: Scope = Scope()) -> dict[str, tuple[list[int], float | None]]:
        """By function, in the order they were first seen: tasks by state (indexes of `STATES`) and mean seconds."""
        return self._tallies.by_function(list(self.queue.kinds.values()), scope)

    def reused(self, scope: Scope = Scope()) -> dict[str, int]:
        """By function: how many of the finished tasks took over their value."""
        return self._tallies.reused(scope)

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

    def acceptances(self) -> set[Place]:
        """Where the sealed acceptances are that may still count."""
        return self._reuse.places()

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

    def drop_past(self) -> bool:
        """Know no more of attempts that are not even sources; False where there were none."""
        some = bool(self._past)
        self._past.clear()
        return some

    def failed(self, scope: Scope = Scope(), limit: int = 0) -> list[Card]:
        """The tasks that failed, the latest first. Costs what failed, not what there is."""
        cards = [
            (ended, card)
            for card, ended in self._failed.items()
            if scope.notebook is None or scope.notebook in card.notebooks
        ]
        latest = heapq.nlargest(limit, cards, key=_when) if limit else sorted(cards, key=_when, reverse=True)
        return [card for _, card in latest]


def _turn(said: tuple[Fact, Sequence[Place]]) -> int:
    return _TURNS.get(type(said[0]), 2)


def _when(failed: tuple[float, Card]) -> tuple[float, Key]:
    return failed[0], failed[1].key


def part_of(fact: Fact, stays: Sequence[bool]) -> Fact:
    """A fact about some of its tasks alone."""
    columns = {}
    for name in fact.__struct_fields__:
        column = getattr(fact, name)
        if isinstance(column, list) and column:
            columns[name] = list(compress(column, stays))
    return msgspec.structs.replace(fact, **columns)
