"""What stores have in common that are an event log: a list of events that every process reads for itself.

An event says what happened: tasks were submitted, a worker claimed them, they settled. It is appended and never
changed. Each process applies all events to a `SchedulerState` of its own, which answers every question about tasks. A
subclass decides where the log is kept, how a claim is won, and how a process notices what others have appended.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import msgspec

from jug_notebook.clock import Clock
from jug_notebook.errors import NoSuchTask, ValueLost
from jug_notebook.model import (
    NEXT,
    NO_INPUTS,
    Acceptance,
    Accepted,
    Address,
    Claim,
    Claimed,
    Event,
    Fits,
    Forgotten,
    Invalidated,
    Key,
    Lease,
    Origin,
    Released,
    Request,
    Requested,
    Resources,
    Scope,
    Settled,
    Settlement,
    Snapshot,
    Started,
    State,
    Submission,
    SubmitReport,
    Submitted,
    SweepReport,
    Target,
    Verdict,
    Why,
    WorkerId,
    WorkerLost,
)
from jug_notebook.scheduler import queries
from jug_notebook.scheduler.queries import is_narrow
from jug_notebook.scheduler.queue import with_followers
from jug_notebook.scheduler.records import STATES, Offer, Outcome, Place, TaskRecord, parted
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.scheduler.views import snapshot
from jug_notebook.store import Inventory, Store, addresses_in, named_in
from jug_notebook.store.extents import Extents
from jug_notebook.system import batched

FURTHEST = 10  #: binary logarithm of how far from the head of the queue a race is avoided
CALMING = 0.1  #: by how much of that a claim that was won brings the next one nearer to the head

Won: TypeAlias = tuple[list[Offer], float | None]
"""What was won, and its expected seconds, if known."""


class Wanted(NamedTuple):
    """Which tasks a worker can run, as in `Store.claim`."""

    limit: int
    target: Target | None
    python: str
    chains: bool
    fits: Fits | None


class EventLogStore(Store, ABC):
    """The verbs of `Store` that follow from the events. The lock makes each one step for this process's threads.

    A new store keeps events and bodies (`_append`, `_read`, `_size`), reads what others have written (`_poll`,
    `_rewind`, `watch`), wins claims (`_win`), makes things durable (`_commit`, `sync`), knows who is alive (`renew`,
    `order`, `processes`, `notice`, `log`), and keeps blobs (`put_blob`, `get_blob`, `_sweep_blobs`); and `compact`
    and `close`.
    """

    inventory: Inventory | None = None  #: where the store can list its blobs

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._scheduler = SchedulerState()
        self._scheduler.limits.spread = random.getrandbits(30)
        self._scheduler.limits.now = clock.now
        self._lock = threading.RLock()
        self.in_doubt = False  # as after an interrupt (Ctrl-C) that may have changed half of the picture
        self._extents = Extents(self)
        self._undelivered: list[Offer] = []  # claims that were won, and failed before they came to their worker
        self._lost = 0.0  # claims of late that others had won: then there is less of a race further back in the queue

    # -- what a subclass defines ---------------------------------------------------------------------------------------

    @abstractmethod
    def _append(self, event: Event, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        """Write an event with its bodies to the log. Return the place of each body."""

    @abstractmethod
    def _poll(self) -> None:
        """Apply what others have written since the last call."""

    @abstractmethod
    def _win(self, worker: WorkerId, offers: Sequence[Offer]) -> list[bool]:
        """Try to claim. Return, for each offer, True if this worker has it now.

        Where it hasn't, the scheduler state must learn who has.
        """

    @abstractmethod
    def _size(self, place: Place) -> int:
        """Return the size of a body in bytes."""

    def _total_size(self, places: Sequence[Place]) -> int:
        return sum(map(self._size, places))

    @abstractmethod
    def _commit(self, busy: float | None) -> None:
        """A worker goes on to work of ``busy`` seconds (None: unknown): make durable what should be before that."""

    @abstractmethod
    def _sweep_blobs(self, keep: Collection[Address], older_than: float, dry_run: bool) -> tuple[int, int]:
        """Remove the other blobs. Return how many, and their bytes."""

    def _notes(self) -> Sequence[str]:
        """Return what people should know about the store as such, a line each."""
        return [note for note in (self.unverified and f"unverified: {self.unverified}", self._extents.note) if note]

    def log_faults(self) -> Sequence[str]:
        """Return what is wrong with the log, as far as it was read, a line each."""
        return [self._extents.note] if self._extents.note else []

    @property
    def version(self) -> int:
        return self._scheduler.version

    @abstractmethod
    def _rewind(self) -> None:
        """Forget what was read of the log: the next `_poll` applies all of it, what this process wrote, too."""

    def doubt(self) -> bool:
        self.in_doubt = True
        return True

    def _make_anew(self) -> None:
        version, limits = self._scheduler.version, self._scheduler.limits
        self._scheduler = SchedulerState()
        self._scheduler.limits.spread, self._scheduler.limits.now = limits.spread, limits.now
        self._scheduler.version = version + 1
        self._rewind()

    @contextmanager
    def _step(self) -> Iterator[SchedulerState]:
        """Hold the lock for one step. If the step is interrupted (Ctrl-C), the next one makes the picture anew."""
        with self._lock:
            if self.in_doubt:
                self._make_anew()
                self.in_doubt = False
            try:
                yield self._scheduler
            except Exception:
                raise
            except BaseException:
                self.in_doubt = True
                raise

    @contextmanager
    def _updated(self) -> Iterator[SchedulerState]:
        """Hold the lock, with the scheduler state up to date."""
        with self._step():
            self._poll()
            yield self._scheduler

    # -- submitting ----------------------------------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], origin: Origin) -> SubmitReport:
        with self._updated() as scheduler:
            tasks = scheduler.tasks
            seen: dict[Key, None] = {}
            groups: dict[tuple[str, int, str, Resources], list[Submission]] = {}
            new: list[Key] = []
            finished = 0
            for submission in submissions:
                key = submission.key
                if key in seen:
                    continue
                seen[key] = None
                task = tasks.peek(key)
                if task is None or task.state < 0:
                    new.append(key)
                elif STATES[task.state] is State.FINISHED:
                    finished += 1
                    continue
                elif (task.queue.priority, task.queue.resources) == (submission.priority, submission.resources):
                    continue
                kind = submission.name, submission.priority, submission.python, submission.resources
                groups.setdefault(kind, []).append(submission)
            events = _submitted(groups, scheduler.counter + 1)
            self._record_all([*events, *self._requests(list(seen), origin, True)])
            self.sync()
            self._poll()
            again = [s for s in submissions if scheduler.state(s.key) is None]
            if again:  # forgotten by a cleanup meanwhile
                self.submit(again, origin)
            reused = sum(scheduler.state(key) is State.FINISHED for key in new)  # by a run that was there before
            finished += reused
            fresh = len(new) - reused
            return SubmitReport(new=fresh, known=len(submissions) - fresh - finished, finished=finished)

    def request(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> None:
        with self._updated():
            self._record_all(self._requests(list(keys), origin, wanted))
            self.sync()

    def _requests(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> Iterator[tuple[Event, Sequence[bytes]]]:
        if wanted:
            keys = queries.without_request(self._scheduler.tasks, keys, origin)
        request = Request(origin, self._scheduler.counter + 1, wanted)
        for part in batched(keys):
            yield Requested(request, list(part)), ()

    # -- running -------------------------------------------------------------------------------------------------------

    def claim(
        self, worker: WorkerId, limit: int, wait: float, settled: Sequence[Settlement] = (),
        target: Target | None = None, python: str = "", chains: bool = False, begun: Lease | None = None,
        fits: Fits | None = None, look: bool = True,
    ) -> list[Claim]:  # fmt: skip
        until = self._clock.monotonic() + wait
        uncommitted = bool(settled)
        while True:
            with self._step():
                if any(settlement.verdict.attempt > 1 for settlement in settled):
                    self._poll()  # another attempt may have settled it
                if settled:
                    self._settle(worker, settled)  # events may come in any order, so this need not wait for the log
                    settled = ()
                if begun is not None:
                    self._claim_begun(worker, begun)
                    begun = None
                if limit <= 0:
                    self._commit(None)
                    return []
                if self._undelivered:
                    self._give_back(worker)
                won, expected = self._claim(worker, Wanted(limit, target, python, chains, fits), look)
                if any(offer.lease.attempt > 1 for offer in won):
                    expected = None  # that it was claimed is written first, for it may kill its host
                seen = self._scheduler.version
                try:
                    with self._delivered(won):
                        claims = self._loaded(won)
                        if won or uncommitted:
                            self._commit(expected)
                except ValueLost:
                    if not self.in_doubt:
                        raise
                    claims = []
                self.pause = None if claims else self._pause_for_time()
            left = until - self._clock.monotonic()
            if claims or left <= 0:
                return claims
            self.watch(seen, left if self.pause is None else max(0.001, min(left, self.pause)))
            look = True

    def _pause_for_time(self) -> float | None:
        """Return the seconds until a task may begin that waits for nothing else; None where there is none."""
        retry, due = self._scheduler.queue.next_retry(), self._scheduler.limits.pause()
        pauses = [] if retry is None else [retry - self._clock.now()]
        return min(pauses if due is None else [*pauses, due], default=None)

    def start(self, tokens: Sequence[Lease], ahead: float = 0.0) -> None:
        with self._step() as scheduler:
            self._record(Started(list(tokens), scheduler.limits.now() + ahead))
            self._commit(None)

    @contextmanager
    def _delivered(self, won: Sequence[Offer]) -> Iterator[None]:
        """Have what was won given back, with the next claim, where it doesn't come to its worker."""
        try:
            yield
        except Exception:
            self._undelivered += won
            raise

    def _give_back(self, worker: WorkerId) -> None:
        """Record that what didn't come to its worker is given back: with a task, its tokens are used up."""
        tokens, leases = parted(self._undelivered)
        if tokens:
            self._record(Claimed(worker, [], tokens))
        if leases:
            self._record(Released(leases))
        self._undelivered = []

    def _settle(self, worker: WorkerId, settled: Sequence[Settlement]) -> None:
        verdicts, bodies = [], []
        for settlement in settled:
            verdict = settlement.verdict
            if verdict.attempt > 1 and _overtaken(self._scheduler.outcome(verdict.key), verdict):
                continue  # the worker presumed dead was alive after all, and first: one value is enough
            if verdict.inputs != NO_INPUTS and self._is_superfluous(verdict):
                continue
            verdicts.append(verdict)
            bodies.append(settlement.body)
        if verdicts:
            self._record(Settled(worker, verdicts), bodies)

    def _is_superfluous(self, verdict: Verdict) -> bool:
        """Return True if a task ran behind what it needs that has no need of a run: there is one it can reuse."""
        task = self._scheduler.tasks.get(verdict.key)
        if task is None or task.inputs is not None or task.attempts is not None:
            return False
        return self._scheduler.reuse.has_run(task, verdict.inputs)

    def _claim_begun(self, worker: WorkerId, lease: Lease) -> None:
        """Claim a task that a worker began before it had settled what that needs, and that is ready now."""
        task = self._scheduler.tasks.get(lease.key)
        if task is None or not self._scheduler.queue.is_valid(offer := Offer(task, lease, 0, 0, (task,))):
            return
        if self._win(worker, [offer])[0]:
            self._record(Claimed(worker, [lease]))

    def _claim(self, worker: WorkerId, wanted: Wanted, look: bool) -> Won:
        """Claim until something is won or nothing is ready. ``look`` for what others have written first."""
        if look:
            self._poll()
        limit, target, python, chains, fits = wanted
        while True:
            scheduler = self._scheduler
            skip = random.randrange(1 << min(int(self._lost), FURTHEST)) if self._lost else 0
            offers = scheduler.ready(limit, self._clock.now(), target, python, skip, fits)
            if not offers:
                return [], None
            if chains and not (target and is_narrow(target)):
                offers = with_followers(offers, limit, python, target, scheduler.reuse)
            try:
                wins = _win_with_tokens(self, worker, offers)
            except BaseException:
                for offer in offers:
                    scheduler.queue.back(offer.task)
                raise
            won = [offer for offer, win in zip(offers, wins, strict=True) if win]
            if won:
                tokens = list(won[0].tokens)  # what has any comes alone
                self._record(Claimed(worker, [offer.lease for offer in won], tokens))
            for offer, win in zip(offers, wins, strict=True):
                if not win:
                    scheduler.queue.back(offer.task)
            if len(won) < len(offers):
                self._lost += not offers[0].tokens  # which of these was lost says nothing about the queue
                with self._delivered(won):
                    self._poll()
            else:
                self._lost = max(0.0, self._lost - CALMING)
            if won:
                means = [task.queue.mean for offer in won for task in offer.tasks]
                return won, None if None in means else sum(m for m in means if m is not None)

    def _loaded(self, won: Sequence[Offer]) -> list[Claim]:
        """Return claims of what was won, with the bodies that are needed to use them."""
        bodies = iter(self._read([place for offer in won for place in self._places_for(offer)]))
        claims = []
        for offer in won:
            for task in offer.tasks:
                needs, queue, body = task.needs, task.queue, next(bodies)
                outcomes = tuple([next(bodies) if need.value_digest else b"" for need in needs])
                reused = any(need.reused_from is not None for need in needs)
                scheduler = self._scheduler
                proofs = tuple(self._proof(scheduler, need.key, need.reused_from) for need in needs) if reused else ()
                if task is offer.task:
                    lease, tries = offer.lease, (offer.failures, offer.deaths)
                else:
                    lease, tries = Lease(task.key, task.round, NEXT, 1), (0, 0)
                more = queue.mean or 0.0, queue.of_host
                claim = Claim(lease, queue.name, body, outcomes, *tries, proofs, *more)
                if offer.tokens:
                    claim = msgspec.structs.replace(claim, tokens=scheduler.limits.of_rates(offer.tokens))
                claims.append(claim)
        return claims

    def _places_for(self, offer: Offer) -> list[Place]:
        """Return where the specs of an offered task and its followers are, each before the outcomes of its needs."""
        places = []
        for task in offer.tasks:
            places.append(task.spec)
            for need in task.needs:
                if need.value_digest:
                    outcome = self._scheduler.outcome(need.key)
                    assert outcome is not None, "what has a value has an outcome"
                    places.append(outcome[1])
        return places

    def release(self, leases: Sequence[Lease]) -> None:
        with self._step():
            if leases:
                self._record(Released(list(leases)))
                self._commit(None)

    def leave(self, processes: Sequence[WorkerId]) -> None:
        with self._step():
            for process in processes:
                self._record(WorkerLost(process))
            self.sync()

    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        processes = self.processes()
        with self._updated() as scheduler:
            return snapshot(scheduler, processes, scope, self.display_url, self._clock.now(), self._notes())

    # -- invalidating, accepting ---------------------------------------------------------------------------------------

    def invalidate(self, keys: Sequence[Key], why: Why, user: str) -> list[Key]:
        with self._updated() as scheduler:
            for key in keys:
                task = scheduler.tasks.peek(key)  # where its submission is damaged, its outcome may count again
                if task is None or (task.state < 0 and not task.records):
                    raise NoSuchTask(f"no task {key[:12]} in {self.display_url}")
            event, lost = _invalidated(scheduler, keys, why, user, self._clock.now())
            if lost:
                self._record(event)
                self.sync()
            return lost

    def accept(self, sealed: Sequence[tuple[Acceptance, bytes]], undone: bool = False) -> None:
        with self._updated() as scheduler:
            for part in batched(sealed):
                event = _accepted([acceptance for acceptance, _ in part], scheduler.counter + 1, undone)
                self._record(event, [body for _, body in part])
            self.sync()

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def sweep(
        self, forget: Sequence[Key], keep: Collection[Address], older_than: float, dry_run: bool = False
    ) -> SweepReport:
        began = self._clock.monotonic()
        with self._updated() as scheduler:
            tasks = scheduler.tasks
            meant = [task for key in dict.fromkeys(forget) if (task := tasks.get(key)) is not None and task.state >= 0]
            going = [task for task in meant if _is_idle(task)]
            size = self._total_size([place for task in going for place in places_of(task)])
            stay = self._addresses([place for task in meant if not _is_idle(task) for place in places_of(task)])
            dormant = self._addresses(_dormant(scheduler, set(going)))
            keep = {*keep, *dormant, *stay, *(name for one in stay for name in named_in(self, one))}
            if going and not dry_run:
                _forget(self, going)
        took = self._clock.monotonic() - began  # what was put meanwhile stays
        blobs, freed = self._sweep_blobs(keep, older_than + took, dry_run)
        return SweepReport(len(going), blobs, size + freed)

    def _addresses(self, places: Sequence[Place]) -> set[Address]:
        return {name for part in batched(places) for body in self._read(part) for name in addresses_in(body)}

    # -- recording -----------------------------------------------------------------------------------------------------

    def _record(self, event: Event, bodies: Sequence[bytes] = ()) -> None:
        self._scheduler.apply(event, self._append(event, bodies))

    def _record_all(self, events: Iterable[tuple[Event, Sequence[bytes]]]) -> None:
        """Record events that belong together, so that each task is derived only once."""
        appended: list[tuple[Event, Sequence[Place]]] = []
        try:
            for event, bodies in events:
                appended.append((event, self._append(event, bodies)))
        finally:  # what was appended counts, even if the disk is full after it
            self._scheduler.apply_all(appended)


def _win_with_tokens(store: EventLogStore, worker: WorkerId, offers: Sequence[Offer]) -> list[bool]:
    """Try to claim. A limited task comes alone, and is claimed together with its tokens or not at all."""
    offer, limits = offers[0], store._scheduler.limits
    if not offer.task.queue.limits:
        return store._win(worker, offers)
    asked = [*map(limits.offer, offer.tokens), offer]
    wins = store._win(worker, asked) if offer.tokens else [False]
    if not all(wins):
        won = [one for one, win in zip(asked, wins, strict=False) if win]
        leases = [one.lease for one in won if one.tasks]
        if won:
            store._record(Claimed(worker, leases, [one.lease for one in won if not one.tasks]))
        if leases:
            store._record(Released(leases))
    return [all(wins)]


def _overtaken(outcome: Outcome | None, verdict: Verdict) -> bool:
    if outcome is None or not outcome[0].finished:
        return False
    return outcome[0].inputs == verdict.inputs and outcome[0].key == verdict.key


def _submitted(
    groups: Mapping[tuple[str, int, str, Resources], Sequence[Submission]], counter: int
) -> Iterator[tuple[Event, Sequence[bytes]]]:
    """Yield the events of submissions by function, priority, python and resources."""
    for (name, priority, python, resources), group in groups.items():
        for part in batched(group):
            keys, needs, forms = [s.key for s in part], [s.needs for s in part], [s.form for s in part]
            event = Submitted(name, priority, python, keys, needs, forms, counter, resources)
            yield event, [s.body for s in part]


def _accepted(rows: Sequence[Acceptance], counter: int, undone: bool) -> Accepted:
    return Accepted(
        counter, undone, rows[0].user, rows[0].at, [a.key for a in rows], [a.round for a in rows],
        [a.inputs for a in rows], [a.source for a in rows], [a.source_round for a in rows], [a.digest for a in rows],
    )  # fmt: skip


def _invalidated(
    scheduler: SchedulerState, keys: Sequence[Key], why: Why, user: str, now: float
) -> tuple[Invalidated, list[Key]]:
    """Return the event that invalidates submitted tasks, and those of them that have an outcome to lose."""
    lost: list[Key] = []
    rounds: list[int] = []
    inputs: list[bytes] = []
    sources: list[Key] = []
    source_rounds: list[int] = []
    for key in keys:
        task, outcome = scheduler.tasks[key], scheduler.outcome(key)
        if why is Why.RETRY and (outcome is None or outcome[0].finished):
            continue
        source = None if task.reused_from is None else task.reused_from[0]
        if source is not None or any(verdict.round == task.round for verdict, _, _ in task.outcomes):
            lost.append(key)
            rounds.append(task.round)
            inputs.append(b"" if source is None else source.inputs)
            if why is Why.LOST and source is not None:
                sources.append(source.key)
                source_rounds.append(source.round)
    return Invalidated(lost + sources, rounds + source_rounds, why, user, now, inputs), lost


def _forget(store: EventLogStore, going: Sequence[TaskRecord]) -> None:
    """Forget these tasks; submit those again that were requested in the same moment."""
    specs = dict(zip([task.key for task in going], store._read([task.spec for task in going]), strict=True))
    queues = {task.key: (task.queue, tuple(need.key for need in task.needs), task.form) for task in going}
    for part in batched([(task.key, task.round) for task in going]):  # a record may be packed between two parts
        keys, rounds = map(list, zip(*part, strict=True))
        store._record(Forgotten(store._scheduler.counter, keys, rounds))
    store.sync()
    store._poll()
    for key, (queue, needs, form) in queues.items():
        task = store._scheduler.tasks.get(key)
        if task is not None and task.state < 0 and task.wanted:
            counter = store._scheduler.counter + 1
            shared = queue.name, queue.priority, queue.python
            event = Submitted(*shared, [key], [needs], [form], counter, queue.resources)
            store._record(event, [specs[key]])
    store.sync()


def forget(store: EventLogStore, key: Key) -> bool:
    """Forget a task, whoever requests it, whose record can't be read, so that its cell makes it anew.

    Return False where it is running, or there is no such task.
    """
    with store._updated() as scheduler:
        task = scheduler.tasks.get(key)
        if task is None or task.state < 0 or STATES[task.state] is State.RUNNING:
            return False
        store._record(Forgotten(scheduler.counter, [key], [task.round]))
        store.sync()
        return True


def _is_idle(task: TaskRecord) -> bool:  # submitted, and neither wanted nor running
    return task.state >= 0 and not task.wanted and STATES[task.state] is not State.RUNNING


def _dormant(scheduler: SchedulerState, going: Collection[TaskRecord]) -> list[Place]:
    """Return the places of outcomes of the other tasks that don't count now, but may count again."""
    return [
        outcome[1]
        for task in scheduler.tasks.values()
        if task.records and task.records is not task.value_digest and task not in going
        for outcome in task.outcomes
        if outcome != scheduler.outcome(task.key)
    ]


def places_of(task: TaskRecord) -> Iterator[Place]:
    """Yield the places of a submitted task's bodies: its spec and its outcomes."""
    yield task.spec
    for outcome in task.outcomes:
        yield outcome[1]
