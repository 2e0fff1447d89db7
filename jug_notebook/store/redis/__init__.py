"""``redis://[user:password@]host:port/db?project=NAME``: a store in a Redis (6.2 or later) or Valkey server.

It is an event log: see `log`. What must be atomic is a script in ``lua/``: appending, claiming, heartbeats, blobs.
Besides the log, the server keeps of each project:

    id format       of the store                      info beats left   processes: last info, when, which have ended
    tick grace      the latest heartbeat of all; exists while silence means nothing, because the server was away
    returned        exists while nothing is claimed, because the server was restarted and may have lost something
    orders:W log:W  of a process: its orders, what it printed
    blobs sizes v:A c:A:N bin   blobs, by last use; swept ones that may come back, by expiry
    scratch s:NAME              checkpoints and streams: their sizes, their pieces
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import StoreError, StoreGone, Unreachable, ValueLost
from jug_notebook.model import (
    BEAT,
    LEASE,
    Address,
    Claimed,
    Event,
    Lease,
    Order,
    Released,
    Scope,
    Settled,
    Snapshot,
    WorkerId,
    WorkerInfo,
    WorkerLost,
)
from jug_notebook.scheduler.queries import CountRow
from jug_notebook.scheduler.records import RUNNING, Offer, Place, parted
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.scheduler.views import snapshot
from jug_notebook.store.event_log import EventLogStore, Wanted, Won
from jug_notebook.store.once import NotNow
from jug_notebook.store.redis.blobs import Blobs, RedisScratch
from jug_notebook.store.redis.connection import NOTHING, Command, Connection, number_of, understood
from jug_notebook.store.redis.frames import PLACE, places_in
from jug_notebook.store.redis.log import Log
from jug_notebook.store.redis.processes import Processes
from jug_notebook.store.redis.wire import place
from jug_notebook.store.sealing import with_mac, without_mac

PACE = 0.002  #: least seconds between two looks at the version, so that waiting for many tasks doesn't load the server
TOGETHER = 40_000  #: tasks in events that are applied at once
BODIES = 5000  #: bodies that are read at once
CROWD = 20  #: times as many entries in the log as frames in its snapshot, which hold many tasks each
MANY, VERY_MANY = 5000, 100_000  #: tasks from which on counts are left, and may be a moment old
MOMENT = 2.0  #: seconds
DOZE = 5.0  #: seconds for which a reader waits for the server, where it has no worker to look after

_count_rows = msgspec.msgpack.Decoder(list[CountRow]).decode


class Scheme:
    """How a URL scheme reaches a server: ``redis://``, over TLS (``rediss://``), or through a socket (``unix://``)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, rest: str, clock: Clock) -> RedisStore:
        """Open the store of that project, making it if it's new."""
        return RedisStore(self.name, rest, clock)

    def exists(self, rest: str) -> bool:
        """Return whether that project exists."""
        return bool(Connection(place(self.name, rest), CLOCK, make=False).id)

    def absolute(self, rest: str) -> str:
        """Return the URL with the project, and absolute paths."""
        return place(self.name, rest).url


SCHEMES = {name: Scheme(name) for name in ("redis", "rediss", "unix")}


class Restarted(NotNow):
    """The picture must be made anew before anything can be claimed."""


class Returned(NotNow):
    """The server was restarted, so nothing can be claimed for a moment."""


class RedisStore(EventLogStore):
    """A project in a Redis server. The verbs are described in `Store`."""

    def __init__(self, scheme: str, rest: str, clock: Clock) -> None:
        super().__init__(clock)
        where = place(scheme, rest)
        self._connection = Connection(where, clock, waiting=self)
        self.url, self.display_url, self.id = where.url, where.display_url, self._connection.id
        self._scheduler.limits.now = self._connection.time
        self._log = Log(self._connection)
        self.unverified, self.bodies_apart = self._log.unverified, True
        self.read_only = "" if self._log.seal is None else self._log.seal.read_only
        self._announced = False  # whether the script that claimed has appended what was won
        self.inventory = self._blobs = Blobs(self._connection)
        self.scratch = RedisScratch(self._connection)
        self._fetched: dict[Place, bytes] = {}  # bodies that came with a claim
        self._doubtful: list[tuple[WorkerId, Offer]] = []  # claims whose reply was lost
        self._processes = Processes(self._connection, lambda: self._log.seal)
        self._looked, self._next_check = threading.local(), 0.0  # when each thread last looked at the version
        self._pictures: dict[Scope, Snapshot] = {}  # the latest, to have one while the server is away

    def __repr__(self) -> str:
        return f"<RedisStore {self.display_url}>"

    # -- events --------------------------------------------------------------------------------------------------------

    def _append(self, event: Event, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        self._require_key()
        if type(event) is Claimed and self._announced:
            return ()
        return self._log.append(event, bodies)

    def _require_key(self) -> None:
        self._log.require_key()
        self.unverified = ""

    def _record(self, event: Event, bodies: Sequence[bytes] = ()) -> None:
        if type(event) in (Settled, Claimed):
            if self._log.unsent and self._log.has(event):
                return  # what could not be sent the first time
            self._blobs.mentioned(bodies, self._scheduler.tasks)
            super()._record(event, bodies)  # sent with what comes next, and, as finished work, never withdrawn
        else:
            self._record_all([(event, bodies)])

    def _record_all(self, events: Iterable[tuple[Event, Sequence[bytes]]]) -> None:
        """Send, then apply: what the server refuses has not happened."""
        appended = [(event, self._append(event, bodies)) for event, bodies in events]
        try:
            self._exchange()
        except BaseException:
            self._log.withdraw(len(appended))
            raise
        self._scheduler.apply_all(appended)

    def _exchange(self, *commands: Command) -> list[Any]:
        """Send what was appended, and these commands. Apply what others have appended; return the replies."""
        replies = self._send(commands)
        self._apply()
        return replies

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        blobs = self._blobs.unnamed() if self._log.unsent else []
        orders = self._log.orders
        replies = self._log.exchange(commands, blobs)
        self._blobs.named(blobs)
        self._scheduler.version += self._log.orders - orders
        return replies

    def _apply(self, more: bool = False) -> bool:
        """Apply what has arrived, before ``more``; was there anything? What breaks that off has all read anew."""
        frames = self._log.arrived
        if not frames:
            return False
        rows = [(frame.event, places_in(frame.places, frame.count)) for frame in frames]
        try:
            self._scheduler.apply_all(rows, more)  # type: ignore[arg-type]
        except BaseException as error:
            self._log.stale = True
            if isinstance(error, Exception) and self.unverified:  # whoever wrote that hadn't the key, nor sense
                raise StoreError(f"{self.display_url} can't be read, and is unverified: {self.unverified}") from error
            raise
        self._log.arrived = []
        return True

    def _poll(self) -> None:
        now = self._clock.monotonic()
        if now >= self._next_check:
            self._next_check = now + BEAT
            self._check_workers()
            self._leave_counts()
        if self._log.last == NOTHING:
            self._read_on()
        else:
            self._exchange()
        while self._log.more or self._log.stale:
            if self._log.stale:
                self._make_anew()
            self._read_on()
        if self._doubtful:
            self._resolve_doubts()

    def _rewind(self) -> None:
        while self._log.unsent:
            self._send(())
        self._log.read_anew()
        self._fetched.clear()

    def _read_on(self) -> None:
        """Read a long log to its end, or until all must be read anew."""
        with system.uncollected():
            try:
                while True:
                    self._send(())
                    if not self._log.more or self._log.stale:
                        break
                    if sum(frame.count for frame in self._log.arrived) > TOGETHER:
                        self._apply(more=True)
            finally:
                self._apply()
                self._scheduler.apply_all(())  # there may have been no more
        if not self._log.stale:  # else not all was read
            self._extents.expect(self._log.reader.read_by_writers)
            self._extents.check(self._clock.monotonic(), self._log.reader.extent, lambda name: 0.0, self._exchange)

    def _read(self, places: Sequence[Place]) -> list[bytes]:
        fetched = self._fetched
        if fetched and all(place in fetched for place in places):
            return [fetched[place] for place in places]
        commands = self._fetching(places)
        replies = self._exchange(*commands) if self._log.unsent else self._connection.pipeline(commands)
        found = [body for reply in replies for body in reply]
        if None in found:
            raise ValueLost(f"{self.display_url} lacks {found.count(None)} specs or outcomes that it had")
        return found

    def _fetching(self, places: Sequence[Place]) -> list[Command]:
        name = self._connection.key("bodies")
        return [
            ("HMGET", name, *(place.to_bytes(PLACE, "big") for place in part))
            for part in system.batched(places, BODIES)
        ]

    def _size(self, place: Place) -> int:
        return self._total_size([place])

    @understood
    def _total_size(self, places: Sequence[Place]) -> int:
        name = self._connection.key("bodies")
        return sum(self._connection.pipeline([("HSTRLEN", name, place.to_bytes(PLACE, "big")) for place in places]))

    def _commit(self, busy: float | None) -> None:
        self.sync()

    def sync(self) -> None:
        with self._step():
            if self._log.unsent:
                self._exchange()

    def watch(self, seen: int, timeout: float, descriptor: int = -1) -> int:
        until = self._clock.monotonic() + timeout
        early = PACE - (self._clock.monotonic() - getattr(self._looked, "at", 0.0))
        if 0 < early < timeout and descriptor < 0:  # whoever waits for more than news doesn't wait for many tasks
            self._clock.sleep(early)
        look = descriptor < 0
        while True:
            with self._step():
                if look or seen != self._scheduler.version or self._clock.monotonic() >= self._next_check:
                    self._poll()
                look = True  # a supervisor waits first: that tells at once whether there is something new
                version, last = self._scheduler.version, self._log.last
                doze = BEAT if self._scheduler.leases.workers() else DOZE
            left = until - self._clock.monotonic()
            if version != seen or left <= 0:
                self._looked.at = self._clock.monotonic()
                return version
            if self._connection.wait(last, min(left, doze), descriptor):
                return version

    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        former = self._pictures.get(scope)
        if former is None:
            picture = self._snapshot(scope)
        else:
            try:
                with self._connection.impatiently():
                    picture = self._snapshot(scope)
            except Unreachable:
                return msgspec.structs.replace(former, notes=(self._connection.away, *former.notes))
        self._pictures[scope] = picture
        return picture

    def _snapshot(self, scope: Scope) -> Snapshot:
        processes = self.processes()  # fails at once if the server is away, while another thread waits with the lock
        with self._step():
            scheduler = self._counted()
            if scheduler is None:
                self._poll()
                scheduler = self._scheduler
            notes = [*self._notes(), *self._connection.notes, *self._log.reader.notes, *self._processes.notes]
            return snapshot(scheduler, processes, scope, self.display_url, self._clock.now(), notes)

    @understood
    def _counted(self) -> SchedulerState | None:
        """Return the counts that another process has left, if nothing was read here, and they are good enough.

        They are if no event came later, and no worker may have died; or, of very many tasks, a moment after they were
        made.
        """
        key = self._connection.key
        if self._log.last != NOTHING or self._log.unsent:
            return None
        time, (upto, raw) = self._connection.pipeline([("TIME",), ("HMGET", key("counts"), "upto", "rows")])
        if upto is None or raw is None:
            return None
        data = without_mac(self._log.seal, "counts", self.id, number_of(upto)[0], raw)
        if self._log.seal is None or data is None:
            return None
        rows = _count_rows(data)
        age = int(time[0]) + int(time[1]) / 1e6 - number_of(upto)[0] / 1e3
        final = not any(row[-1][RUNNING] for row in rows) and self._log.ends_at(upto)
        recent = age <= MOMENT and sum(sum(row[-1]) for row in rows) >= VERY_MANY
        return SchedulerState.counted(rows) if final or recent else None

    def _leave_counts(self) -> None:
        """Leave the counts of many tasks for processes that want to know no more."""
        log = self._log
        settled = log.seal is not None and not self.read_only and not log.unsent and not log.stale
        if log.uncounted and settled and len(self._scheduler.tasks) > MANY:
            log.uncounted, data = False, msgspec.msgpack.encode(self._scheduler.counts.rows())
            rows = with_mac(log.seal, "counts", self.id, number_of(log.last)[0], data)
            self._connection.run("full", "HSET", self._connection.key("counts"), "upto", log.last, "rows", rows)

    def log_faults(self) -> Sequence[str]:
        return [*super().log_faults(), *self._log.reader.notes]

    # -- claims --------------------------------------------------------------------------------------------------------

    def _claim_begun(self, worker: WorkerId, lease: Lease) -> None:
        with suppress(Restarted, Returned):
            super()._claim_begun(worker, lease)

    def _claim(self, worker: WorkerId, wanted: Wanted, look: bool) -> Won:
        while True:
            try:
                ready = any(queue.heap or queue.backlog for queue in self._scheduler.queue.queues.values())
                early = ready and not self._doubtful and self._clock.monotonic() < self._next_check
                won = super()._claim(worker, wanted, look and not early)  # news come with the claim
                return super()._claim(worker, wanted, look) if early and not won[0] else won
            except Restarted:
                continue
            except Returned:
                return [], None

    @understood
    def _win(self, worker: WorkerId, offers: Sequence[Offer]) -> list[bool]:
        self._require_key()
        places = list(dict.fromkeys(place for offer in offers for place in self._places_for(offer)))
        claiming = self._log.claim_command(worker, *parted(offers))
        try:
            owners, *bodies = self._send([claiming, *self._fetching(places)])
            if self._log.stale:
                raise Restarted
        except BaseException:  # what was won is in the log, to be given back
            self._log.withdraw(0)
            self._doubtful += [(worker, offer) for offer in offers]
            raise
        if owners is None:
            self._apply()
            raise Returned
        held = [offer for offer, owner in zip(offers, owners, strict=True) if not owner]
        if held:
            self._connection.remember(self._log.claim_command(worker, *parted(held), again=claiming))
        news = self._apply()
        self._fetched = {
            place: body for place, body in zip(places, (b for part in bodies for b in part), strict=True) if body
        }
        won = [not owner for owner in owners]
        self._announced = all(won)
        for offer, owner in zip(offers, owners, strict=True):
            if owner:
                found = offer.task, offer.lease, owner.decode(errors="replace"), self._clock.monotonic()
                self._scheduler.observe(self._scheduler.leases.found(*found))
        if news:  # what was won by a picture that was out of date is given back
            valid = _still_valid(self._scheduler, offers, won)
            lost = [offer for offer, has, still in zip(offers, won, valid, strict=True) if has and not still]
            won, (unused, void) = valid, parted(lost)
            if unused:
                super()._record(Claimed(worker, void, unused))
            if void:
                super()._record(Released(void))
        return won

    @understood
    def _resolve_doubts(self) -> None:
        """Give back what was won by claims whose reply was lost."""
        names = self._log.claim_names([offer.lease for _, offer in self._doubtful])
        owners = self._connection.command("HMGET", self._connection.key("claims"), *names)
        doubtful, self._doubtful = self._doubtful, []
        held: dict[WorkerId, list[Offer]] = {}
        for (worker, offer), owner in zip(doubtful, owners, strict=True):
            if owner == worker.encode():
                held.setdefault(worker, []).append(offer)
        self._announced = False
        for worker, offers in held.items():
            tokens, leases = parted(offers)
            self._record_all([(Claimed(worker, leases, tokens), ()), (Released(leases), ())])

    # -- processes -----------------------------------------------------------------------------------------------------

    def _check_workers(self) -> None:
        """Presume dead the workers with claims that are not alive, so that others may claim their tasks."""
        leases = self._scheduler.leases
        self._scheduler.observe(leases.doubt(self._clock.monotonic() - LEASE))
        workers = leases.workers()
        if not workers:
            return
        alive = {info.id for info, alive, _ in self._read_processes(after_grace=True) if alive}
        dead = {worker for worker in workers if worker not in alive}
        if not leases.all_presumed_dead(dead):
            self._exchange()  # their last events count
        for worker in workers:
            self._scheduler.observe(leases.presume(worker, dead=worker in dead))

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        return self._read_processes()

    def _read_processes(self, after_grace: bool = False) -> list[tuple[WorkerInfo, bool, float]]:
        found, ended = self._processes.read(after_grace)
        if ended:
            with self._lock:
                for worker in ended:
                    self._record(WorkerLost(worker, found=True))
                self.sync()
            self._processes.leave(ended)
        return found

    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        if not processes:
            self._connection.check()
            return []
        return self._processes.renew(processes)

    def leave(self, processes: Sequence[WorkerId]) -> None:
        if processes:
            with self._step():
                super().leave(processes)
            self._processes.leave(processes)

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        self._connection.check()
        self._processes.order(supervisors, order)

    def notice(self, process: WorkerId, text: str) -> None:
        self._processes.notice(process, text)

    def log(self, process: WorkerId) -> str:
        return self._processes.log(process)

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        return self._blobs.put(parts)

    def get_blob(self, address: Address, mapped: bool = False) -> memoryview:
        return self._blobs.map(address) if mapped else self._blobs.get(address)

    def _sweep_blobs(self, keep: Collection[Address], older_than: float, dry_run: bool) -> tuple[int, int]:
        return self._blobs.sweep(keep, older_than, dry_run)

    # -- the store itself ----------------------------------------------------------------------------------------------

    @understood
    def compact(self, dry_run: bool = False) -> int:
        from jug_notebook.store.redis.snapshots import compact

        if dry_run:
            key = self._connection.key
            entries, frames = self._connection.pipeline([("XLEN", key("log")), ("HGET", key("snapshot"), "frames")])
            return int(entries > CROWD * max(1000, int(frames or 0)))
        own = os.getpid(), system.machine()
        alone = not any(alive and (info.pid, info.machine) != own for info, alive, _ in self.processes())
        with self._updated():
            self.sync()
            self._poll()
            self._log.uncounted = True  # and leave the counts with the next look
            return compact(self._connection, self._log, self._scheduler, alone)

    def close(self) -> None:
        try:
            with suppress(StoreGone, Unreachable), self._step():  # after an interrupt nothing follows half an event
                if self._log.unsent or self._log.uncounted:
                    self._poll()
                    self._leave_counts()
            with self._lock, suppress(StoreError), self._connection.impatiently():
                left = self._log.leave()
                self.sync()
                self._extents.leave(left)
        finally:
            self._connection.close()


def _still_valid(scheduler: SchedulerState, offers: Sequence[Offer], won: Sequence[bool]) -> list[bool]:
    """Return what of that which was won would still be offered: of a task and its tokens, all or nothing."""
    valid = [has and scheduler.queue.is_valid(offer) for offer, has in zip(offers, won, strict=True)]
    return valid if all(offer.tasks for offer in offers) else [all(valid)] * len(valid)
