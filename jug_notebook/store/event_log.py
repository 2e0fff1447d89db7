"""What stores have in common that fold facts in their own process: every verb, over a `SchedulerState`.

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
    Attempt,
    Claim,
    Claimed,
    CurrentOutcome,
    Event,
    Forgotten,
    FunctionView,
    Invalidated,
    Invalidation,
    Key,
    Lease,
    Order,
    Origin,
    Released,
    Requested,
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
    WorkerId,
    WorkerInfo,
    WorkerLost,
    WorkerView,
)
from jug_notebook.scheduler.packing import Outcome, Place
from jug_notebook.scheduler.records import STATES, Offer, TaskRecord
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.store import addresses_in

BATCH = 1000  #: facts about so many tasks make one record at the most
LATELY = 60.0  #: seconds for which a dead worker is still shown


class EventLogStore(ABC):
    """The verbs. All state is the board; the lock makes each verb one step for the threads of this process."""

    url: str
    id: str
    display_url: str

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._scheduler = SchedulerState()
        self._lock = threading.RLock()

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def _keep(self, event: Event, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
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
            tasks = self._scheduler.tasks
            seen: dict[Key, None] = {}
            new: dict[tuple[str, int, str], list[Submission]] = {}
            finished = 0
            for submission in submissions:
                key = submission.key
                if key in seen:
                    continue
                seen[key] = None
                task = tasks.get(key)
                if task is None or task.state < 0:
                    new.setdefault((submission.name, submission.priority, submission.python), []).append(submission)
                elif STATES[task.state] is State.FINISHED:
                    finished += 1
            said: list[tuple[Event, Sequence[bytes]]] = []
            for (name, priority, python), group in new.items():
                for part in _parts(group):
                    keys, needs, forms = [s.key for s in part], [s.needs for s in part], [s.form for s in part]
                    event = Submitted(name, priority, python, keys, needs, forms, self._scheduler.counter + 1)
                    said.append((event, [s.body for s in part]))
            self._record_all([*said, *self._wishes(list(seen), origin, True)])
            self.sync()
            self._news()
            again = [s for s in submissions if s.key not in tasks or tasks[s.key].state < 0]
            if again:  # somebody forgot them meanwhile
                self.submit(again, origin)
            reused = sum(
                tasks[s.key].reused_from is not None for group in new.values() for s in group if s.needs
            )  # finished before anybody could claim them
            finished += reused
            fresh = sum(map(len, new.values())) - reused
            return SubmitReport(new=fresh, known=len(submissions) - fresh - finished, finished=finished)

    def request(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> None:
        with self._lock:
            self._news()
            self._record_all(self._wishes(list(keys), origin, wanted))
            self.sync()

    def _wishes(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> Iterator[tuple[Event, Sequence[bytes]]]:
        if wanted:
            keys = self._scheduler.needed_wishes(keys, origin)
        request = self._scheduler.request(origin, wanted)
        for part in _parts(keys):
            yield Requested(request, part), ()

    def requested(self, origin: Origin) -> list[Key]:
        with self._lock:
            self._news()
            return self._scheduler.requested(origin)

    def origins(self) -> list[Origin]:
        with self._lock:
            self._news()
            return self._scheduler.origins()

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
                seen = self._scheduler.version
                claims = [self._claimed(offer) for offer in won]
                self._commit(expected if won else None)
                retry = self._scheduler.queue.next_retry()
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
        held = self._scheduler.held(key)
        return held is not None and held[0].finished and held[0].inputs == inputs and held[0].key == key

    def _claim(
        self, worker: WorkerId, limit: int, target: Target | None, python: str
    ) -> tuple[list[Offer], float | None]:
        """Claim until something is won or nothing is ready. Answers what was won and how long it should take."""
        scheduler = self._scheduler
        while True:
            offers = scheduler.ready(limit, self._clock.now(), target, python)
            if not offers:
                return [], None
            wins = self._win(worker, offers)
            won = [offer for offer, win in zip(offers, wins, strict=True) if win]
            if won:
                self._record(Claimed(worker, [offer.lease for offer in won]))
            for offer, win in zip(offers, wins, strict=True):
                if not win:
                    scheduler.queue.back(offer.task)
            if won:
                means = [offer.task.kind.mean for offer in won]
                return won, None if None in means else sum(m for m in means if m is not None)

    def _claimed(self, offer: Offer) -> Claim:
        task = offer.task
        places = [task.spec]
        aliases = False
        for need in task.needs:
            held = self._scheduler.held(need.key)
            assert held is not None, "an offered task has all it needs"
            places.append(held[1])
            aliases = aliases or need.reused_from is not None
        body, *needs = self._read(places)
        proofs = tuple(self._proof(need.key, need.reused_from) for need in task.needs) if aliases else ()
        return Claim(offer.lease, task.kind.name, body, tuple(needs), offer.failures, offer.deaths, proofs)

    def _proof(self, key: Key, held: Outcome | None) -> tuple[bytes, ...]:
        """What shows that a task may take over this outcome; empty for its own."""
        if held is None or held[0].key == key:
            return ()
        tasks = self._scheduler.tasks
        task, source = tasks[key], tasks[held[0].key]
        if task.needs and task.form == source.form:
            return tuple(self._read([task.spec, source.spec]))
        said = self._scheduler.accepted(key)
        assert said is not None, "nothing else is taken over"
        return tuple(self._read([said.place]))

    def release(self, leases: Sequence[Lease]) -> None:
        with self._lock:
            if leases:
                self._record(Released(list(leases)))
                self._commit(None)

    def leave(self, processes: Sequence[WorkerId]) -> None:
        with self._lock:
            for process in processes:
                self._record(WorkerLost(process))
            self.sync()

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        with self._lock:
            self._news()
            return self._scheduler.idle(target, python)

    def foreign(self, python: str) -> dict[str, int]:
        with self._lock:
            self._news()
            return self._scheduler.foreign(python)

    # -- looking -------------------------------------------------------------------------------------------------------

    def states(self, keys: Sequence[Key]) -> list[State | None]:
        with self._lock:
            self._news()
            return [self._scheduler.state(key) for key in keys]

    def specs(self, keys: Sequence[Key]) -> list[bytes | None]:
        with self._lock:
            self._news()
            tasks = [self._scheduler.tasks.get(key) for key in keys]
            return self._bodies([None if task is None or task.state < 0 else task.spec for task in tasks])

    def outcomes(self, keys: Sequence[Key]) -> list[CurrentOutcome | None]:
        with self._lock:
            self._news()
            held = [self._scheduler.held(key) for key in keys]
            bodies = self._bodies([None if h is None else h[1] for h in held])
            return [
                None
                if h is None or body is None
                else CurrentOutcome(h[0], body, () if h[0].key == key else self._proof(key, h))
                for key, h, body in zip(keys, held, bodies, strict=True)
            ]

    def _bodies(self, places: Sequence[Place | None]) -> list[bytes | None]:
        found = iter(self._read([place for place in places if place is not None]))
        return [None if place is None else next(found) for place in places]

    def blocking_tasks(self, keys: Sequence[Key]) -> list[Key | None]:
        with self._lock:
            self._news()
            return [self._scheduler.blocking_task(key) for key in keys]

    def keys_named(self, name: str, scope: Scope = Scope()) -> list[Key]:
        with self._lock:
            self._news()
            return [task.key for task in self._scheduler.listing(scope, Target(names=frozenset([name])))]

    def edges(self, scope: Scope = Scope()) -> list[tuple[str, str, int]]:
        with self._lock:
            self._news()
            return [(name, needed, count) for (name, needed), count in self._scheduler.edges(scope).items()]

    def tasks(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None, limit: int = 0
    ) -> list[TaskView]:
        with self._lock:
            self._news()
            if state is State.FAILED and target is None:
                return [self._view(task) for task in self._scheduler.failed(scope, limit)]
            views = [self._view(task) for task in self._scheduler.listing(scope, target, state)]
        if state is State.FAILED:
            views.sort(key=lambda view: view.started + view.duration, reverse=True)
        return views[:limit] if limit else views

    def runs(self, scope: Scope = Scope(), limit: int = 0) -> tuple[list[Attempt], int]:
        with self._lock:
            self._news()
            ended = [(outcome, task) for task, outcome in self._scheduler.runs(scope)]
            ended.sort(key=lambda pair: (pair[0][0].started + pair[0][0].duration, pair[0][0].key), reverse=True)
            latest = ended[:limit] if limit else ended
            try:
                bodies = self._read([outcome[1] for outcome, _ in latest])
            except ValueLost:  # a compaction has dropped what counts for nothing
                if not self._scheduler.drop_past():
                    raise
                return self.runs(scope, limit)
            counting = [
                task.reused_from is None and self._scheduler.held(task.key) == outcome for outcome, task in latest
            ]
        return [
            Attempt(outcome[0], body, counts)
            for (outcome, _), body, counts in zip(latest, bodies, counting, strict=True)
        ], len(ended)

    def _view(self, task: TaskRecord) -> TaskView:
        held = self._scheduler.held(task.key)
        if held is None:
            return TaskView(task.key, task.kind.name, STATES[task.state], worker=self._scheduler.runner(task))
        verdict, _, worker = held
        return TaskView(
            task.key, task.kind.name, STATES[task.state], worker, verdict.started, verdict.duration, verdict.attempt,
            source="" if task.reused_from is None else verdict.key,
        )  # fmt: skip

    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        processes = self.processes()
        with self._lock:
            self._news()
            counts = self._scheduler.counts(scope)
            reused = self._scheduler.reused(scope)
            now = self._clock.now()
            processes = [(self._up_to_date(info, now - age), alive, age) for info, alive, age in processes]
        return Snapshot(
            store=self.display_url,
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
        done = max(info.done, self._scheduler.settled_by.get(info.id, 0))
        task = self._scheduler.running_of(info.id)
        if task is None:
            return msgspec.structs.replace(info, done=done, task="", task_name="", since=0.0)
        said = self._scheduler.tasks.get(info.task)
        if said is not None and self._scheduler.runner(said) == info.id:
            return msgspec.structs.replace(info, done=done)
        since = max(beat, self._scheduler.ended_by.get(info.id, 0.0))
        return msgspec.structs.replace(
            info, done=done, task=task.key, task_name=task.kind.name, since=since, progress=(0, 0)
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
                task = self._scheduler.tasks.get(key)
                if task is None or task.state < 0:
                    raise NoSuchTask(f"no task {key[:12]} in {self.display_url}")
                held = self._scheduler.held(key)
                if why is Why.RETRY and (held is None or held[0].finished):
                    continue
                if task.reused_from is not None or any(verdict.round == task.round for verdict, _, _ in task.outcomes):
                    lost.append(key)
                    rounds.append(task.round)
                    inputs.append(b"" if task.reused_from is None else task.reused_from[0].inputs)
                    if why is Why.LOST and task.reused_from is not None:
                        sources.append(task.reused_from[0].key)
                        source_rounds.append(task.reused_from[0].round)
            if lost:
                event = Invalidated(lost + sources, rounds + source_rounds, why, user, self._clock.now(), inputs)
                self._record(event)
                self.sync()
            return lost

    def invalidations(self, keys: Sequence[Key]) -> list[Invalidation | None]:
        with self._lock:
            self._news()
            return [self._scheduler.invalidation(key) for key in keys]

    # -- taking over ---------------------------------------------------------------------------------------------------

    def current_inputs(self, keys: Sequence[Key]) -> list[Lease | None]:
        with self._lock:
            self._news()
            tasks = [self._scheduler.tasks.get(key) for key in keys]
            return [
                None if task is None or task.inputs is None else Lease(task.key, task.round, task.inputs, 0)
                for task in tasks
            ]

    def accept(self, sealed: Sequence[tuple[Acceptance, bytes]], undone: bool = False) -> None:
        with self._lock:
            self._news()
            for part in _parts(sealed):
                said = [acceptance for acceptance, _ in part]
                event = Accepted(
                    self._scheduler.counter + 1, undone, said[0].user, said[0].at, [a.key for a in said],
                    [a.round for a in said], [a.inputs for a in said], [a.source for a in said],
                    [a.source_round for a in said], [a.digest for a in said],
                )  # fmt: skip
                self._record(event, [body for _, body in part])
            self.sync()

    def acceptances(self, keys: Sequence[Key]) -> list[bytes | None]:
        with self._lock:
            self._news()
            said = [self._scheduler.accepted(key) for key in keys]
            return self._bodies([None if one is None else one.place for one in said])

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def sweep(
        self, forget: Sequence[Key], keep: Collection[Address], older_than: float, dry_run: bool = False
    ) -> SweepReport:
        began = self._clock.monotonic()
        with self._lock:
            self._news()
            tasks = self._scheduler.tasks
            meant = [task for key in dict.fromkeys(forget) if (task := tasks.get(key)) is not None and task.state >= 0]
            going = [task for task in meant if _idle(task)]
            size = sum(self._size(place) for task in going for place in places_of(task))
            wanted = [place for task in meant if not _idle(task) for place in places_of(task)]
            keep = {*keep, *self._mentioned(set(going)), *self._addresses(wanted)}
            if going and not dry_run:
                self._forget(going)
        looked = self._clock.monotonic() - began  # what was put meanwhile stays
        blobs, freed = self._sweep_blobs(keep, older_than + looked, dry_run)
        return SweepReport(len(going), blobs, size + freed)

    def _forget(self, going: Sequence[TaskRecord]) -> None:
        """Say so; and take it back for those that somebody, in the same moment, wished again."""
        specs = dict(zip([task.key for task in going], self._read([task.spec for task in going]), strict=True))
        kinds = {task.key: (task.kind, tuple(need.key for need in task.needs), task.form) for task in going}
        for part in _parts(going):
            self._record(Forgotten(self._scheduler.counter, [c.key for c in part], [c.round for c in part]))
        self.sync()
        self._news()
        for key, (kind, needs, form) in kinds.items():
            task = self._scheduler.tasks.get(key)
            if task is not None and task.state < 0 and task.wanted:
                counter = self._scheduler.counter + 1
                event = Submitted(kind.name, kind.priority, kind.python, [key], [needs], [form], counter)
                self._record(event, [specs[key]])
        self.sync()

    def _mentioned(self, going: Collection[TaskRecord]) -> set[Address]:
        """Blobs of outcomes that don't hold, and may again: of tasks that stay and fell back, or ran before."""
        scheduler = self._scheduler
        places = [
            outcome[1]
            for task in scheduler.tasks.values()
            if task.records and task.records is not task.value_digest and task not in going
            for outcome in task.outcomes
            if outcome != scheduler.held(task.key)
        ]
        return self._addresses(places)

    def _addresses(self, places: Sequence[Place]) -> set[Address]:
        return {name for part in _parts(places) for body in self._read(part) for name in addresses_in(body)}

    # -- recording -----------------------------------------------------------------------------------------------------

    def _record(self, event: Event, bodies: Sequence[bytes] = ()) -> None:
        self._scheduler.apply(event, self._keep(event, bodies))

    def _record_all(self, events: Iterable[tuple[Event, Sequence[bytes]]]) -> None:
        """Facts that belong together: each task is derived once."""
        said: list[tuple[Event, Sequence[Place]]] = []
        try:
            for event, bodies in events:
                said.append((event, self._keep(event, bodies)))
        finally:  # what is kept counts, also where the disk is full behind it
            self._scheduler.apply_all(said)


def _idle(task: TaskRecord) -> bool:
    """Submitted, and neither wanted nor running."""
    return task.state >= 0 and not task.wanted and STATES[task.state] is not State.RUNNING


def places_of(task: TaskRecord) -> Iterator[Place]:
    """Where the bodies of a submitted task are."""
    yield task.spec
    for outcome in task.outcomes:
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
