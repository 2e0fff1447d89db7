"""``file:PATH``, or just a path: a store in a folder, which works over NFS. No server, no locks.

    store.json         format and id of the store      log/<writer>.log    an event log for each process that writes
    claims/<key>.<round>.<inputs>.<attempt>.<MAC>      names who has an attempt: see `claims`
    owners/<worker>.<n>  what claims are linked to     blobs/ab/cd…        large bytes, named by their hash
    workers/<process>  its last heartbeat              workers/gone/       of processes that have ended
    orders/<process>.<time>  what it is to do          output/<process>.log  what it printed
    sealing/           logs of ended writers, on their way into            sealed/  logs that replace many
    epoch              changes when claims are removed                     trash/   unreferenced blobs
    news               whoever has written to a log touches it             scratch/  checkpoints and streams

Each process appends events to a log of its own and reads those of all others. Compaction moves the logs of ended
writers from ``log`` to ``sealing`` and replaces them by one in ``sealed``; a reader that looks in that order misses
none.
"""

from __future__ import annotations

import _thread
import errno
import functools
import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from jug_notebook import system as process
from jug_notebook.clock import Clock
from jug_notebook.errors import StoreError, StoreGone
from jug_notebook.model import (
    BEAT,
    LEASE,
    Address,
    Event,
    Order,
    Origin,
    Submission,
    SubmitReport,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.scheduler.records import Offer, Place
from jug_notebook.store.atomic import Folder
from jug_notebook.store.event_log import EventLogStore
from jug_notebook.store.file.blobs import Blobs, Proofs
from jug_notebook.store.file.claims import NOBODY, Claims
from jug_notebook.store.file.folders import (
    Stamp,
    check_identity,
    check_if_changed,
    first_frames,
    identity_of,
    is_shared,
    read_shared_key,
    share_folder,
)
from jug_notebook.store.file.heartbeats import Heartbeats
from jug_notebook.store.file.journal import SETTLING, Vanished, Writer, size_of
from jug_notebook.store.file.logs import LOOKS, Logs, writer_has_ended
from jug_notebook.store.file.scratch import FileScratch
from jug_notebook.store.file.watching import GRAIN, IN_CREATE, IN_MODIFY, IN_MOVED_TO, FileWatcher, News
from jug_notebook.store.sealing import EventSeal, event_seal

GROUP = 0.02  #: seconds that a settled result may wait, under load, to be made durable together with others
PACE = 0.001  #: seconds between two looks at many tasks that end one after the other
SHORTLY = 0.002  #: seconds for which it may wait to be written that a short task was claimed
FAST, SLOW = 0.002, 0.4  #: shortest and longest pause, in seconds, between two looks at other machines' logs, or news
SCAN = 0.5  #: seconds between two looks for new logs, while there is news
WHOLE = 30.0  #: seconds between two looks at all logs, whatever the news


def open(rest: str, clock: Clock) -> FileStore:
    """Open the store in that folder, which is made if it's new."""
    return FileStore(Path(rest), clock)


def exists(rest: str) -> bool:
    """Return True if that folder is a store, or only lacks its store.json, which `open` restores.

    One that may not be looked into counts as a store: `open` says why it can't be used.
    """
    folder = Path(rest).expanduser()
    try:
        if (folder / "store.json").is_file():
            return True
    except PermissionError:
        return True
    with Folder(folder) as root, suppress(OSError):
        return bool(first_frames(root))
    return False


def absolute(rest: str) -> str:
    """Return the URL with the absolute path."""
    return f"file:{Path(rest).expanduser().absolute()}"


P = ParamSpec("P")
R = TypeVar("R")


def _as_store_error(
    verb: Callable[Concatenate[FileStore, P], R],
) -> Callable[Concatenate[FileStore, P], R]:
    """Let a verb of the store raise StoreError for whatever the file system refuses; its cause tells the reason."""

    @functools.wraps(verb)
    def checked(self: FileStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(self, *args, **kwargs)
        except FileNotFoundError:
            gone = self._removed()
            raise gone from gone.__cause__
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._hold_anew()
            way_out = "; give another path" if error.errno in (errno.EACCES, errno.EROFS) else ""
            raise StoreError(f"{self.display_url} can't be used: {error.strerror}{way_out}") from error

    return checked


class FileStore(EventLogStore):
    """A store in a folder."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(clock)
        self.folder = folder.expanduser().absolute()
        self.url = f"file:{self.folder}"
        self.display_url = f"file:{folder}"
        self._root = Folder(self.folder)
        self._scheduler.limits.now = functools.partial(self._root.time, clock)
        self._identity = identity_of(self._root, self.display_url)
        self.id, self.maps = self._identity.id, True
        self.shared: str = self._identity.shared  #: "group" if it is shared, else empty
        self.unverified, self._seal = event_seal(self.id)
        if self._seal is not None:
            self.read_only = self._seal.read_only
            self._use_key(self._seal)
        name = f"{process.machine()}.{process.new_id()}"
        self._writer = Writer(self._root / "log", name, self._check, self._seal)
        self._unsynced_since = 0.0
        self._logs = Logs(self._root, self._scheduler, self._writer, self._seal)
        self._watcher = FileWatcher(
            {"log": (self.folder / "log", IN_MODIFY | IN_CREATE), "orders": (self.folder / "orders", IN_MOVED_TO)}
        )
        self._next_scan = self._next_poll = 0.0
        self._pause = SLOW
        self._news = News(self._root / "news", clock)
        self._next_whole = self._next_check = 0.0
        self._checked: Stamp | None = None  # of store.json, when `renew` last read it
        self._claims = Claims(self._root, self._seal)
        self._heartbeats = Heartbeats(self._root, clock, lambda: self._seal)
        self.scratch = FileScratch(self._root / "scratch")
        self.inventory = self._blobs = Blobs(self._root, self.display_url, Proofs(self.id))
        self._epoch = b""
        self._serving = False  #: does a supervisor use it, which comes to `watch` in a moment?
        self._looked = threading.local()  #: ``at``: when this thread last did in `watch`

    # -- sharing ------------------------------------------------------------------------------------------------------

    def _use_key(self, seal: EventSeal) -> None:
        if is_shared(self._identity, seal, self.display_url):
            self._root.mode = 0o660
        else:
            self.shared = ""

    def share(self, secret: bytes) -> None:
        """Open it to the group of its folder, with the key inside. Raises StoreError if that can't be done."""
        if any(alive for _, alive, _ in self.processes()):
            raise StoreError(
                f"{self.display_url} is in use; to share it, stop its workers and close its notebooks first"
            )
        share_folder(self._root, self.id, secret, self.display_url)
        self.shared = "group"

    def shared_key(self) -> bytes:
        """Return the key inside a shared store. Raises StoreError if this user can't read it."""
        secret = read_shared_key(self._root, self.id, self.display_url)
        self._identity = identity_of(self._root, self.display_url)
        self._use_key(EventSeal(secret, self.id))
        if not self.shared:
            raise StoreError(f"the key in {self.display_url} is not the one with which the store was shared")
        return secret

    # -- events --------------------------------------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], origin: Origin) -> SubmitReport:
        self._check()  # an open log of a removed folder would take them, and lose them
        return super().submit(submissions, origin)

    def _append(self, event: Event, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        self._check_key()
        if not self._writer.unsynced and not self._writer.syncing:
            self._unsynced_since = self._clock.monotonic()
        places = self._writer.append(event, bodies)
        self._news.pending = True
        self._news.publish()
        return places

    def sync(self) -> None:
        with self._step():
            self._writer.sync()
            self._news.publish(at_once=True)

    def _commit(self, busy: float | None) -> None:
        if not self._serving or busy is None or busy > GROUP:
            self._writer.flush()
        if not self._writer.unsynced or self._writer.syncing:
            return
        if busy is None or busy > GROUP or self._clock.monotonic() - self._unsynced_since > GROUP:
            self._writer.syncing = True
            self._unsynced_since = self._clock.monotonic()  # of what is appended from here on
            _thread.start_new_thread(self._sync_in_background, ())  # `threading` would wait until it has started

    def _sync_in_background(self) -> None:
        with suppress(StoreError):  # not synced yet, so the next `sync` raises the error
            self._writer.sync_beside(self._lock)
            self._news.publish(at_once=True)

    @_as_store_error
    def _poll(self) -> None:
        now = self._clock.monotonic()
        try:
            if not self._serving and self._root.moved():  # a supervisor looks with each heartbeat
                self._check()
            self._read_changes(now)
        except BaseException:
            self._next_whole = 0.0  # what was to be read is not known any more
            raise

    def _read_changes(self, now: float) -> None:
        changed = self._watcher.changed()
        if self._heartbeats.orders_changed() if changed is None else any(label == "orders" for label, _ in changed):
            self._scheduler.version += 1
        self._news.publish()
        if changed is None or now >= self._next_whole:
            self._read_all_logs(now)
            self._next_whole = now + (WHOLE if self._watcher.works else 1.0)
        else:
            moved = False
            for label, name in changed:
                if label == "log" and (log := self._logs.get(name)) is not None:
                    self._logs.read_one(log)
                    moved = moved or (log.vanished and not log.closed)
            if moved:  # by a compaction
                self._read_all_logs(now)
            elif now >= self._next_poll:
                self._read_news(now)
        if now >= self._next_check:
            self._next_check = now + BEAT
            self._check_workers(now)

    def _rewind(self) -> None:
        self._writer.start_anew()
        self._logs.shut()
        self._logs = Logs(self._root, self._scheduler, self._writer, self._seal)
        self._next_whole = 0.0

    def _read_news(self, now: float) -> None:
        """Read what other machines have written, if they have."""
        try:
            changed = self._news.changed()
        except FileNotFoundError:
            gone = self._removed()
            raise gone from gone.__cause__
        if changed and now >= self._next_scan:
            self._scan()
            self._next_scan = now + SCAN
        if now < self._news.until:
            self._read_logs(now, remote_only=True)
        else:
            self._pause = min(SLOW, self._pause * 1.5)
            self._next_poll = now + self._pause

    def _read_all_logs(self, now: float) -> None:
        """Find all logs, also those that have moved, and read them to their end."""

        def look() -> bytes:
            epoch = self._scan()
            self._read_logs(now)
            return epoch

        with process.uncollected():
            missing = self._logs.missing
            for _ in range(LOOKS):
                epoch = look()
                before, missing = missing, self._logs.missing
                if missing <= before:
                    break  # else a compaction has just moved those: they are elsewhere now
            self._epoch = epoch  # not before: what a compaction removed claims of has been read now
            self._extents.expect(self._logs.read_by_writers())
            self._extents.check(now, self._logs.extent, self._logs.patience, look)

    def _read_logs(self, now: float, remote_only: bool = False) -> None:
        """Read the known logs, or those of other machines, and set when to do so again: soon if there were events."""
        before = self._scheduler.version
        self._logs.read(remote_only)
        self._pause = FAST if self._scheduler.version != before else min(SLOW, self._pause * 1.5)
        self._next_poll = now + self._pause

    def _scan(self) -> bytes:
        """Find the logs that are new, and those that have moved. Return the epoch of claims before that."""
        try:
            epoch = self._claims.epoch()
            names = (self._root / "log").names()
        except FileNotFoundError:
            gone = self._removed()
            raise gone from gone.__cause__
        self._check()  # after these names were read: they are of this store
        self._logs.find(names)
        return epoch

    def _check(self) -> None:
        check_identity(self._root, self.id, self.display_url)

    def _check_key(self) -> None:
        if refusal := self.unverified or self.read_only:
            raise StoreError(refusal)

    def _notes(self) -> Sequence[str]:
        return [*super()._notes(), *self._logs.notes]

    def log_faults(self) -> Sequence[str]:
        """Return what is wrong with the logs. Waits until what other machines write is as it will remain."""
        with self._step():
            self._read_all_logs(self._clock.monotonic())
            if self._logs.suspect:
                self._clock.sleep(1.1 * SETTLING)
                self._read_all_logs(self._clock.monotonic())
            return [*super().log_faults(), *self._logs.faults]

    def _hold_anew(self) -> None:
        """Hold the folders by what has their names now. Raises StoreGone."""
        self._check()
        with suppress(OSError):
            self._root.renew()

    def _removed(self) -> StoreError:
        """Return what to raise where a folder is missing."""
        try:
            for _ in range(20):  # it may be on the way out, and its name the last to go
                self._check()
                self._clock.sleep(0.05)
            self._hold_anew()
        except StoreGone as error:
            return error
        return StoreError(f"{self.display_url} is damaged: a folder in it is missing; restore it from a copy")

    @_as_store_error
    def _read(self, places: Sequence[Place]) -> list[bytes]:
        try:
            return self._logs.bodies(places, self._scan)
        except Vanished:
            self.doubt()
            raise

    def _size(self, place: Place) -> int:
        return size_of(place)

    def watch(self, seen: int, timeout: float, descriptor: int = -1) -> int:
        until = self._clock.monotonic() + timeout
        self._serving = self._serving or descriptor >= 0
        early = PACE - (self._clock.monotonic() - getattr(self._looked, "at", 0.0))
        if 0 < early < timeout and descriptor < 0:  # workers needn't wake us at each task
            self._clock.sleep(early)
        while True:
            with self._step():
                self._poll()
                version = self._scheduler.version
                quiet = self._watcher.works and self._logs.local
                pause = SHORTLY if self._writer.postponed else SLOW if quiet else self._pause
            left = until - self._clock.monotonic()
            waits = version == seen and left > 0
            if waits and self._watcher.wait(min(left, pause), descriptor):
                break
            with self._step():
                self._writer.flush()
            if not waits:
                break
        self._looked.at = self._clock.monotonic()
        return version

    # -- claims --------------------------------------------------------------------------------------------------------

    @_as_store_error
    def _win(self, worker: WorkerId, offers: Sequence[Offer]) -> list[bool]:
        self._check_key()
        won = [False] * len(offers)
        for index, offer in enumerate(offers):
            try:
                won[index] = self._claim_one(worker, offer)
            except (OSError, StoreError):
                if not any(won):
                    raise
                break  # what was won is run
            if not won[index]:  # others claim here, too: what they say next tells where to go on
                self._next_poll = 0.0
                self._news.until = self._clock.monotonic() + GRAIN
                break
        with self._delivered([offer for has, offer in zip(won, offers, strict=True) if has]):
            if any(won) and self._claims.epoch() != self._epoch:
                self._read_all_logs(self._clock.monotonic())
                won = [has and self._scheduler.queue.is_valid(offer) for has, offer in zip(won, offers, strict=True)]
        return won

    def _claim_one(self, worker: WorkerId, offer: Offer) -> bool:
        owner = self._claims.claim(worker, offer.lease)
        if owner != worker:
            now = self._clock.monotonic()
            self._scheduler.observe(self._scheduler.leases.found(offer.task, offer.lease, owner or NOBODY, now))
        return owner == worker

    # -- processes -----------------------------------------------------------------------------------------------------

    def _check_workers(self, now: float) -> None:
        """Presume dead the workers with claims that are not alive, so that others may claim their tasks."""
        leases = self._scheduler.leases
        workers = leases.workers()
        dead = self._heartbeats.dead_among(set(workers), now) if workers else set()
        if not leases.all_presumed_dead(dead):
            self._read_all_logs(now)  # their last events count, even if a compaction has moved them
        for worker in workers:
            self._scheduler.observe(leases.presume(worker, dead=worker in dead))
        self._scheduler.observe(leases.doubt(now - LEASE))

    @_as_store_error
    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        if processes:
            self._check_key()
        self._checked = check_if_changed(self._root, self.id, self.display_url, self._checked)
        self._heartbeats.write(processes)
        return self._heartbeats.orders(processes[0].id) if processes else []

    @_as_store_error
    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        self._check_key()
        self._heartbeats.order(supervisors, order)

    @_as_store_error
    def leave(self, processes: Sequence[WorkerId]) -> None:
        self._check_key()
        self._check()
        super().leave(processes)
        for worker in processes:
            self._heartbeats.retire(worker)

    @_as_store_error
    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        if self._root.moved():
            self._check()
        return self._heartbeats.processes()

    @_as_store_error
    def notice(self, process: WorkerId, text: str) -> None:
        self._check_key()
        self._heartbeats.notice(process, text)

    @_as_store_error
    def log(self, process: WorkerId) -> str:
        return self._heartbeats.log(process)

    # -- blobs ---------------------------------------------------------------------------------------------------------

    @_as_store_error
    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        self._check_key()
        return self._blobs.put(parts)

    @_as_store_error
    def get_blob(self, address: Address, mapped: bool = False) -> memoryview:
        return self._blobs.map(address) if mapped else self._blobs.get(address)

    @_as_store_error
    def _sweep_blobs(self, keep: Collection[Address], older_than: float, dry_run: bool) -> tuple[int, int]:
        self._check_key()
        now = self._root.server_time()
        return self._blobs.sweep(keep, now, now - older_than, dry_run)

    # -- compaction ----------------------------------------------------------------------------------------------------

    def _ended(self, now: float) -> list[str]:
        """Return the names of logs that are complete."""
        folder = self._root / "log"
        return [
            name
            for name in folder.names()
            if name.endswith(".log")
            and name != self._writer.log.path.name
            and (self._logs.is_closed(name) or writer_has_ended(folder / name, now))
        ]

    @_as_store_error
    def compact(self, dry_run: bool = False) -> int:
        from jug_notebook.store.file.compaction import compact, is_crowded

        if dry_run:
            with self._updated():
                return is_crowded(self._root, self._ended)
        self._check_key()
        quiet = _is_quiet(self)
        with self._step():
            self._read_to_end()
            self._writer.sync()
            saved = compact(self._root, self._scheduler, self._logs, self._ended, self._read_to_end, quiet)
            self._read_to_end()
            return saved

    def _read_to_end(self) -> None:
        """Read all logs to their end, and learn where each body is now."""
        self._read_all_logs(self._clock.monotonic())
        if self._logs.skipped:
            self._logs.follow_moves(self._scan)

    def close(self) -> None:
        with self._lock:
            with suppress(StoreGone):
                if self.in_doubt:  # an interrupt may have left half of an event: nothing follows that
                    self._writer.start_anew()
                self._extents.leave(self._writer.close(self._logs.extents()))
            for close in (self._watcher.close, self._logs.shut, self._claims.close, self._root.close):
                close()


def _is_quiet(store: FileStore) -> bool:
    """Return True if no other process can be reading logs."""
    own = os.getpid(), process.machine()
    return not any(alive and (info.pid, info.machine) != own for info, alive, _ in store.processes())
