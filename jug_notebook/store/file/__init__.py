"""``file:PATH``, or just a path: a store in a folder, which works over NFS. No server, no locks.

    store.json        format, id                        log/<writer>.log   a journal for each process that writes
    claims/<key>.<round>.<inputs>.<attempt>             a hard link to a file that names the worker
    owners/<worker>.<n>                                 those files          blobs/ab/cd…   by content
    workers/<process>  what it said with its last beat  workers/gone/        of those that ended
    orders/<process>.<time>  what it is to do           output/<process>.log what it printed
    sealing/  logs whose writers have ended, on their way into  sealed/  logs that stand for many
    epoch     another one since names of claims were removed    trash/   blobs of which nobody knew any more

Logs go from ``log`` by ``sealing`` to ``sealed``; who looks in that order misses none.

Whoever creates the name of an attempt has it: `link` is atomic on every file system we know, NFS included. Names are
never taken back; a dead worker's task is claimed under the next attempt's name, so no two can win it. Compaction alone
removes names, of attempts that came to something; before, it changes the epoch. Who claims looks at that afterwards,
and where it has changed, reads all there is before it relies on what it won.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from jug_notebook import system as process
from jug_notebook.clock import Clock
from jug_notebook.errors import StoreError
from jug_notebook.model import (
    BEAT,
    Address,
    Claimed,
    Event,
    Order,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.scheduler.packing import Place
from jug_notebook.scheduler.records import Offer
from jug_notebook.store.event_log import EventLogStore
from jug_notebook.store.file.atomic import appear, length, listed, share_like, sync_folder
from jug_notebook.store.file.blobs import Blobs, Missing, Proofs
from jug_notebook.store.file.claims import Claims
from jug_notebook.store.file.heartbeats import Heartbeats
from jug_notebook.store.file.inotify import IN_CREATE, IN_MODIFY, IN_MOVED_TO, FileWatcher
from jug_notebook.store.file.journal import Log, SealedLog, Vanished, Writer, log_of, offset_of, size_of

FORMAT = 1
GROUP = 0.02  #: seconds that a settled result may wait, under load, for others to be made durable with it
FAST, SLOW = 0.002, 0.25  #: seconds between two looks at what other machines write, at first and at last
OPEN_LOGS = 32  #: from so many on, logs that are read once are closed again: a process may have few files open
TOGETHER = 40_000  #: so many rows of facts are folded at once
SPREAD = 1 << 20  #: bytes between bodies that are read with them, rather than each body alone
CROWD = 100  #: so many logs of writers that have ended are worth a compaction
FORGOTTEN_WRITER = 86_400.0  #: seconds without a word after which another machine's writer has ended
_FOLDERS = (
    "log", "sealing", "sealed", "claims", "owners", "blobs", "trash", "workers", "workers/gone", "orders", "output",
)  # fmt: skip


class _Identity(msgspec.Struct):
    """What store.json holds."""

    format: int
    id: str
    shared: str = ""  #: with whom: "group", or nobody


def open(rest: str, clock: Clock) -> FileStore:
    """Open the store in that folder, making it if it's new."""
    return FileStore(Path(rest), clock)


def exists(rest: str) -> bool:
    """Is that folder a store?"""
    return (Path(rest).expanduser() / "store.json").is_file()


def absolute(rest: str) -> str:
    """With the whole path."""
    return f"file:{Path(rest).expanduser().absolute()}"


class FileStore(EventLogStore):
    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(clock)
        self.folder = folder.expanduser().absolute()
        self.url = f"file:{self.folder}"
        self.display_url = f"file:{folder}"
        identity = _identity(self.folder, self.display_url)
        self.id = identity.id
        self.shared = identity.shared  #: with whom: "group", or nobody
        self._writer = Writer(self.folder / "log", f"{process.machine()}.{process.new_id()}", self._mode)
        self._unsynced_since = 0.0
        self._logs: dict[str, Log] = {}
        self._bell = FileWatcher(
            {
                "log": (self.folder / "log", IN_MODIFY | IN_CREATE),
                "orders": (self.folder / "orders", IN_MOVED_TO),
            }
        )
        self._next_scan = 0.0
        self._next_poll = 0.0
        self._pause = SLOW
        self._next_census = 0.0
        self._census_at = 0.0
        self._claims = Claims(self.folder, self._mode)
        self._heartbeats = Heartbeats(self.folder, clock, self._mode)
        self._blobs = Blobs(self.folder / "blobs", self.display_url, Proofs(self.id), self._mode)
        self._epoch = b""
        self._passed: list[SealedLog] = []

    # -- whose it is ---------------------------------------------------------------------------------------------------

    @property
    def _mode(self) -> int:
        """Of files that others of the store must read, or touch."""
        return 0o660 if self.shared else 0o600

    def share(self, secret: bytes) -> None:
        """Open it to the group that its folder belongs to, its key with it. Raises StoreError where that can't be."""
        if any(alive for _, alive, _ in self.processes()):
            raise StoreError(
                f"{self.display_url} is in use; to share it, stop its workers and close its notebooks first"
            )
        try:
            for name, _, files in os.walk(self.folder):
                os.chmod(name, 0o2770)
                for file in files:
                    os.chmod(Path(name) / file, 0o660)
            appear(self.folder / "key", f"{self.id} {secret.hex()}\n".encode(), durable=True, mode=0o640)
            identity = _Identity(FORMAT, self.id, "group")
            appear(self.folder / "store.json", msgspec.json.encode(identity) + b"\n", durable=True, mode=0o660)
        except PermissionError as error:
            raise StoreError(f"{self.display_url} has files of others, so only they can share it: {error}") from error
        self.shared = "group"
        for room in (self._writer, self._blobs, self._claims, self._heartbeats):
            room.mode = self._mode

    def shared_key(self) -> bytes:
        """The key that lies in a shared store."""
        try:
            store, secret = (self.folder / "key").read_text().split()
            if store != self.id:
                raise ValueError
            return bytes.fromhex(secret)
        except PermissionError as error:
            raise StoreError(f"{self.display_url} is shared with group {self.group}, and you are not in it") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"the key of {self.display_url} can't be read: {error or 'it is damaged'}") from error

    @property
    def group(self) -> str:
        """The group that its folder belongs to."""
        try:
            return self.folder.group()
        except KeyError:
            return str(self.folder.stat().st_gid)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def _append(self, event: Event, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        if not self._writer.unsynced:
            self._unsynced_since = self._clock.monotonic()
        return self._writer.append(event, bodies)

    def sync(self) -> None:
        with self._lock:
            self._writer.sync()

    def _commit(self, busy: float | None) -> None:
        if not self._writer.unsynced:
            return
        if busy is not None and busy > GROUP:  # the disk's work goes on beside the worker's
            _thread.start_new_thread(self._sync_beside, ())  # `threading` would wait until it runs
        elif busy is None or self._clock.monotonic() - self._unsynced_since > GROUP:
            self._writer.sync()

    def _sync_beside(self) -> None:
        with suppress(StoreError):  # what could not be synced still is to be: the next `sync` says what is wrong
            self.sync()

    def _poll(self) -> None:
        now = self._clock.monotonic()
        changed = self._bell.changed()
        if self._heartbeats.news_of_orders() if changed is None else any(label == "orders" for label, _ in changed):
            self._scheduler.version += 1
        if changed is None or now >= self._next_scan:
            self._look_around(now)
            self._next_scan = now + 1.0
        else:
            moved = False
            for label, name in changed:
                if label == "log" and (told := self._log(name)) is not None:
                    self._follow(told)
                    moved = moved or (told.vanished and not told.closed)
            if moved:  # a compaction was here: what was said is somewhere else by now
                self._look_around(now)
            elif now >= self._next_poll:
                self._follow_all(now, elsewhere=True)
        if now >= self._next_census:
            self._next_census = now + BEAT
            self._census(now)

    def _look_around(self, now: float) -> None:
        """Find all logs, wherever they are by now, and read them to their end."""
        with process.uncollected():
            self._scan()
            self._follow_all(now)

    def _follow_all(self, now: float, elsewhere: bool = False) -> None:
        """Look at all logs, or at those of other machines; again soon where there was news, else ever later."""
        before = self._scheduler.version
        said: list[tuple[Event, Sequence[Place]]] = []
        rows = 0
        for log in list(self._logs.values()):
            if (elsewhere and log.local) or log.closed or log.path == self._writer.log.path:
                continue
            for event, places in log.poll():
                said.append((event, places))
                rows += len(places)
                if rows > TOGETHER:
                    self._scheduler.apply_all(said)
                    said, rows = [], 0
            if log.closed:
                log.shut()
        self._scheduler.apply_all(said)
        self._pause = FAST if self._scheduler.version != before else min(SLOW, self._pause * 1.5)
        self._next_poll = now + self._pause

    def _scan(self) -> None:
        """Find logs that are new, and those that have moved."""
        try:
            epoch = self._claims.epoch()
            names = os.listdir(self.folder / "log")
        except FileNotFoundError:
            raise self._gone() from None
        moved = listed(self.folder / "sealing")
        self._meet([name for name in listed(self.folder / "sealed") if name not in self._logs])
        for name in moved:
            log = self._log(name)
            if log is not None:
                if log.path.parent.name == "log":
                    log.path = self.folder / "sealing" / name
                if log.closed and log.offset < length(log.path):
                    log.closed = False  # a writer of another machine had not ended after all
        for name in names:
            self._log(name)
        self._epoch = epoch

    def _meet(self, names: Sequence[str]) -> None:
        """Sealed logs have appeared. Where all that one stands for was read before, it holds no news."""
        met: list[SealedLog] = []
        for name in sorted(names):
            try:
                met.append(SealedLog(self.folder / "sealed" / name))
            except Vanished:
                continue
        newer = {name for log in met for name in log.replaces}
        for log in met:
            self._logs[log.path.name] = log
            known = [(self._logs.get(name), size) for name, size in log.replaces.items()]
            if log.path.name in newer:
                log.pass_over()
            elif all(one is not None and one.offset >= size for one, size in known):
                self._passed.append(log)
                log.pass_over()
            else:
                self._follow(log)
            log.shut()
            for name, size in log.replaces.items():
                former = self._logs.get(name)
                if former is None:
                    former = self._logs[name] = Log(self.folder / "sealing" / name, local=True)
                former.offset = max(former.offset, size)
                former.closed = True
                former.shut()

    def _moves(self) -> dict[Place, Place]:
        """Logs have gone. Those that were passed over tell where their bodies are now."""
        self._scan()
        passed, self._passed = self._passed, []
        moved: dict[Place, Place] = {}
        self._scheduler.moved = moved
        for log in passed:
            try:
                log.closed = False
                for event, places in log.poll():
                    self._scheduler.apply(event, places)
                log.shut()
            except Vanished:
                continue  # another stands for it
        self._scheduler.moved = None
        return moved

    def _gone(self) -> StoreError:
        return StoreError(f"{self.display_url} is gone: its folder was removed or moved")

    def _log(self, name: str) -> Log | None:
        """The log of that name; None for our own, whose facts are folded as they are written."""
        log = self._logs.get(name)
        if log is None:
            if name == self._writer.log.path.name or not name.endswith(".log"):
                return None
            log = self._logs[name] = Log(self.folder / "log" / name, local=_is_local(name))
        return log

    def _follow(self, log: Log) -> None:
        if not log.closed and log.path != self._writer.log.path:
            self._scheduler.apply_all(list(log.poll()))
            if log.closed:
                log.shut()

    def _read(self, places: Sequence[Place]) -> list[bytes]:
        try:
            return self._read_here(places)
        except Vanished:
            moved = self._moves()
            now = list(places)
            while any(place in moved for place in now):
                now = [moved.get(place, place) for place in now]
            return self._read_here(now)

    def _size(self, place: Place) -> int:
        return size_of(place)

    def _read_here(self, places: Sequence[Place]) -> list[bytes]:
        if len(places) < 16:
            return [log_of(place).read(offset_of(place), size_of(place)) for place in places]
        found: list[bytes] = [b""] * len(places)
        by_log: dict[Log, list[int]] = {}
        for index, place in enumerate(places):
            by_log.setdefault(log_of(place), []).append(index)
        for log, indexes in by_log.items():
            spans = [(offset_of(places[i]), size_of(places[i])) for i in indexes]
            start = min(offset for offset, _ in spans)
            end = max(offset + size for offset, size in spans)
            if end - start <= 2 * sum(size for _, size in spans) + SPREAD:
                data = log.read(start, end - start)
                for i, (offset, size) in zip(indexes, spans, strict=True):
                    found[i] = data[offset - start : offset - start + size]
            else:
                for i, (offset, size) in zip(indexes, spans, strict=True):
                    found[i] = log.read(offset, size)
            if log.closed and len(by_log) > OPEN_LOGS:
                log.shut()
        return found

    def watch(self, seen: int, timeout: float) -> int:
        until = self._clock.monotonic() + timeout
        while True:
            with self._lock:
                self._poll()
                version = self._scheduler.version
                pause = self._pause if any(not log.local and not log.closed for log in self._logs.values()) else SLOW
            left = until - self._clock.monotonic()
            if version != seen or left <= 0:
                return version
            if self._bell.works:
                self._bell.wait(min(left, pause))
            else:
                self._clock.sleep(min(left, self._pause))

    # -- claims --------------------------------------------------------------------------------------------------------

    def _win(self, worker: WorkerId, offers: Sequence[Offer]) -> list[bool]:
        won = [self._take(worker, offer) for offer in offers]
        if any(won) and self._claims.epoch() != self._epoch:
            self._look_around(self._clock.monotonic())
            won = [has and self._scheduler.queue.is_valid(offer) for has, offer in zip(won, offers, strict=True)]
        return won

    def _take(self, worker: WorkerId, offer: Offer) -> bool:
        owner = self._claims.take(worker, offer.lease)
        if owner != worker:
            self._scheduler.apply(Claimed(owner or "nobody known", [offer.lease]))
        return owner == worker

    # -- processes -----------------------------------------------------------------------------------------------------

    def _census(self, now: float) -> None:
        """Presume dead whoever holds claims and does not live, so that others take over."""
        if now - self._census_at > 5 * BEAT:
            self._heartbeats.doubt()  # we were away (a laptop that slept): what we last saw of others says nothing
        self._census_at = now
        holders = self._scheduler.leases.workers()
        here = self._heartbeats
        dead = {worker for worker in holders if (info := here.said(worker)) is None or not here.lives(info, now)}
        if not self._scheduler.leases.all_presumed_dead(dead):
            self._look_around(now)  # what they said last counts, wherever a compaction has put it
        for worker in holders:
            self._scheduler.presume(worker, dead=worker in dead)

    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        try:
            self._heartbeats.say(processes)
            return self._heartbeats.orders(processes[0].id) if processes else []
        except FileNotFoundError:
            raise self._gone() from None

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        self._heartbeats.order(supervisors, order)

    def leave(self, processes: Sequence[WorkerId]) -> None:
        super().leave(processes)
        for worker in processes:
            self._heartbeats.retire(worker)

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        try:
            return self._heartbeats.all()
        except FileNotFoundError:
            raise self._gone() from None

    def notice(self, process: WorkerId, text: str) -> None:
        self._heartbeats.notice(process, text)

    def log(self, process: WorkerId) -> str:
        return self._heartbeats.log(process)

    def log_path(self, process: WorkerId) -> Path:
        """Where a process's output goes."""
        return self._heartbeats.log_path(process)

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        return self._blobs.put(parts)

    def get_blob(self, address: Address) -> memoryview:
        return self._read_blob(self._blobs.get, address)

    def map_blob(self, address: Address) -> memoryview:
        return self._read_blob(self._blobs.map, address)

    def _read_blob(self, read: Callable[[Address], memoryview], address: Address) -> memoryview:
        """Somebody reads what was swept, or is being looked at by a sweep, so it is wanted after all."""
        path, bin = self._blobs.path(address), self.folder / "trash" / address
        while True:
            try:
                return read(address)
            except Missing as missing:
                try:
                    os.utime(bin)
                    path.parent.mkdir(exist_ok=True)
                    os.rename(bin, path)
                except FileNotFoundError:
                    if not (path.exists() or bin.exists()):  # else a sweep is moving it, there or back
                        raise missing from None

    # -- taking less space ---------------------------------------------------------------------------------------------

    def _sweep_blobs(self, keep: Collection[Address], older_than: float, dry_run: bool) -> tuple[int, int]:
        from jug_notebook.store.file.compaction import BIN, remove_older, server_time

        now = server_time(self.folder)
        cut = now - older_than
        blobs = size = 0
        (self.folder / "trash").mkdir(exist_ok=True, mode=0o700)
        share_like(self.folder, self.folder / "trash")
        for part in map((self.folder / "blobs").joinpath, listed(self.folder / "blobs")):
            for entry in os.scandir(part):
                address = part.name + entry.name
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # another sweep was first
                    continue
                if address in keep or entry.name.startswith(".") or stat.st_mtime > cut:
                    continue
                if dry_run or self._throw_away(Path(entry.path), address, cut):
                    blobs += 1
                    size += stat.st_size
        if not dry_run:
            remove_older(self.folder / "trash", now - BIN)
        return blobs, size

    def _throw_away(self, path: Path, address: Address, cut: float) -> bool:
        """Into the trash; unless it was put again meanwhile, for that touches it under whatever name it has."""
        bin = self.folder / "trash" / address
        try:
            if path.stat().st_mtime > cut:
                return False
            os.rename(path, bin)
            if bin.stat().st_mtime > cut:
                os.rename(bin, path)
                return False
            os.utime(bin)
        except FileNotFoundError:  # another sweep was first
            return False
        return True

    def crowded(self) -> bool:
        if len(listed(self.folder / "log")) > CROWD and self._count_ended() > CROWD:
            return True
        return self._are_left_over()

    def _are_left_over(self) -> bool:
        """Are there logs that sealed ones stand for, and everybody has had the time to see that?"""
        from jug_notebook.store.file.compaction import GRACE, server_time

        if not listed(self.folder / "sealing"):
            return False
        sealed = [(self.folder / "sealed" / name).stat().st_mtime for name in listed(self.folder / "sealed")]
        return bool(sealed) and server_time(self.folder) - max(sealed) > GRACE

    def _count_ended(self) -> int:
        from jug_notebook.store.file.compaction import server_time

        with self._lock:
            self._poll()
            return len(self._ended(server_time(self.folder)))

    def _ended(self, now: float) -> list[str]:
        """Logs to which nothing more will come."""
        return [
            name
            for name in os.listdir(self.folder / "log")
            if name.endswith(".log") and name != self._writer.log.path.name and self._has_ended(name, now)
        ]

    def _has_ended(self, name: str, now: float) -> bool:
        log = self._logs.get(name)
        if log is not None and log.closed:
            return True
        pid = _pid_of(name)
        if _is_local(name) and pid:
            return process.born(pid) is None
        try:
            return now - os.stat(self.folder / "log" / name).st_mtime > FORGOTTEN_WRITER
        except FileNotFoundError:
            return False

    def compact(self) -> int:
        from jug_notebook.store.file.compaction import compact

        quiet = self._is_quiet()
        with self._lock:
            self._take_in()
            self._writer.sync()
            own = self._writer.log.path.name
            saved = compact(self.folder, self._scheduler, self._ended, self._take_in, own, quiet)
            self._take_in()
            return saved

    def _take_in(self) -> None:
        """Read all logs to their end, and know where each body is now."""
        self._look_around(self._clock.monotonic())
        if self._passed:
            self._moves()

    def _is_quiet(self) -> bool:
        """Is nobody else here who could be reading logs?"""
        own = os.getpid(), process.machine()
        return not any(alive and (info.pid, info.machine) != own for info, alive, _ in self.processes())

    def close(self) -> None:
        with self._lock:
            self._writer.close()
            self._bell.close()
            for log in self._logs.values():
                log.shut()
            self._claims.close()


def _is_local(log: str) -> bool:
    return log.startswith(process.machine() + ".")


def _pid_of(log: str) -> int:
    """Of the process that writes a log; 0 where its name doesn't tell."""
    words = log.split(".", 1)[-1].split("-")
    return int(words[-2]) if len(words) > 2 and words[-2].isdigit() else 0


def _identity(folder: Path, shown: str) -> _Identity:
    """What is in store.json; makes a store where there is none. Raises StoreError that says what stands in the way."""
    path = folder / "store.json"
    try:
        if not path.exists():
            _make(folder, shown)
        identity = msgspec.json.decode(path.read_bytes(), type=_Identity)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StoreError(f"{shown} is no store: its store.json can't be read") from None
    except NotADirectoryError:
        raise StoreError(f"{shown} is a file, not a folder; give another path") from None
    except PermissionError as error:
        raise StoreError(f"{shown} is not yours to write: {error.strerror}; give another path") from None
    except OSError as error:
        raise StoreError(f"{shown} can't be used: {error.strerror}; give another path") from None
    if identity.format > FORMAT:
        raise StoreError(
            f"{shown} has format {identity.format}, made by a newer jug_notebook; this one reads format {FORMAT}: "
            "pip install -U jug-notebook"
        )
    if not os.access(folder / "log", os.W_OK | os.X_OK):
        raise StoreError(f"{shown} is not yours to write; give another path")
    return identity


def _make(folder: Path, shown: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    strange = [name for name in os.listdir(folder) if name not in ("CACHEDIR.TAG", ".gitignore", *_FOLDERS)]
    if any(not name.startswith(".") for name in strange if name != "store.json"):
        raise StoreError(f"{shown} holds other files ({sorted(strange)[0]}, …); give a new or an empty folder")
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# made by jug_notebook\n")
    (folder / ".gitignore").write_text("*\n")
    aside = folder / f".store.{os.urandom(8).hex()}"
    aside.write_bytes(msgspec.json.encode(_Identity(FORMAT, os.urandom(16).hex())) + b"\n")
    try:
        os.link(aside, folder / "store.json")  # somebody else may be making it at this moment: one id wins
    except FileExistsError:
        pass
    except OSError:
        os.rename(aside, folder / "store.json")
        return
    aside.unlink()
    sync_folder(folder)
