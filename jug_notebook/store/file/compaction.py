"""Compaction: replaces the logs of ended writers by one sealed log without the events that no longer matter.

It keeps what the scheduler state still uses: submitted tasks, the latest request of each origin, outcomes that count or
may be reused, open claims, invalidations and acceptances. It drops what the state has dropped: superseded requests,
outcomes of earlier rounds, claims that have an outcome, and all events about a task before it was forgotten. So the
sealed log, when applied, gives the same state as the logs that it replaces.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from jug_notebook import system
from jug_notebook.errors import StoreError
from jug_notebook.model import (
    Accepted,
    Claimed,
    Event,
    Forgotten,
    Invalidated,
    Key,
    Lease,
    Released,
    Request,
    Requested,
    Settled,
    Submitted,
    WorkerId,
    WorkerInfo,
    WorkerLost,
)
from jug_notebook.scheduler.records import Place, TaskRecord
from jug_notebook.scheduler.state import SchedulerState, without_forgotten
from jug_notebook.store.atomic import publish, sync_folder
from jug_notebook.store.file.blobs import TRASH_KEPT
from jug_notebook.store.file.folders import listed, remove_older, replace, server_time, share_like
from jug_notebook.store.file.journal import (
    CHUNK,
    HEAD,
    MAGIC,
    TRAILER,
    Frame,
    Log,
    Sealed,
    SealedLog,
    encode,
    log_of,
    offset_of,
    size_of,
)

ROWS = 1000  #: tasks in one frame, at most
CROWD = 100  #: logs of ended writers that make a compaction worthwhile
GRACE = 60.0  #: seconds for which replaced logs stay: others may still be reading them
ABANDONED = 600.0  #: seconds of silence after which another machine's compaction counts as abandoned
TRACES_KEPT = 3600.0  #: seconds for which files about ended processes are kept
OUTPUT_KEPT = 30 * 86_400.0  #: seconds for which their output is kept


class SealedWriter:
    """Writes a sealed log, under a hidden name until `publish`."""

    def __init__(self, folder: Path, name: str, replaces: Mapping[str, int]) -> None:
        self.path = folder / name
        self._hidden = folder / f".{name}"
        self._bodies = open(self._hidden, "wb", opener=_private)  # noqa: SIM115
        share_like(folder, self._hidden)
        self._heads = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._head(Frame(Sealed(dict(replaces))))

    def _head(self, frame: Frame) -> None:
        head = encode(frame)
        self._heads.write(HEAD.pack(len(head), zlib.crc32(head)) + head)

    def append(self, event: Event, bodies: Sequence[bytes] = ()) -> None:
        self._bodies.writelines(bodies)
        self._head(Frame(event, [len(body) for body in bodies]))

    def publish(self) -> int:
        """Make it durable and give it its name. Return its size in bytes. Raises StoreError if the disk is full."""
        try:
            start = self._bodies.tell()
            end = start + self._heads.tell()
            self._heads.seek(0)
            shutil.copyfileobj(self._heads, self._bodies, CHUNK)
            self._bodies.write(TRAILER.pack(MAGIC, start, end))
            self._bodies.flush()
            os.fsync(self._bodies.fileno())
            self.close()
            publish(self._hidden, self.path)
        except OSError as error:
            self.discard()
            raise StoreError(f"can't write to {self.path.parent}: {error.strerror}") from error
        return end + TRAILER.size

    def discard(self) -> None:
        self.close()
        self._hidden.unlink(missing_ok=True)

    def close(self) -> None:
        self._bodies.close()
        self._heads.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


class Merger:
    """Takes the events of one log after the other, and appends those that count.

    ``alone`` means that there are no other logs, so that it need not be kept which tasks were forgotten.
    """

    def __init__(self, scheduler: SchedulerState, append: Callable[[Event, Sequence[Any]], None], alone: bool) -> None:
        self._scheduler = scheduler
        self._append = append
        self._alone = alone
        self._seen: dict[TaskRecord, int] = {}  # bits for the parts of a task that were taken: events may come twice
        self._others: set[bytes] = set()
        self._rows: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        self._lost: set[WorkerId] = set()
        self._claimers: set[WorkerId] = set()

    def take(self, event: Event, bodies: Sequence[Any]) -> None:
        tasks = self._scheduler.tasks
        if type(event) is Submitted:
            function = (event.name, event.priority, event.python)
            for key, needs, form, body in zip(event.keys, event.needs, event.forms, bodies, strict=True):
                void = self._scheduler.forgotten.get(key)
                task = tasks.get(key)
                if task is None or task.state < 0 or (void is not None and event.counter <= void[0]):
                    continue
                if self._first(task, 0):
                    self._put((Submitted, *function, 0 if void is None else event.counter), (key, needs, form, body))
        elif type(event) is Requested:
            wanted = (event.request.origin, event.request.counter, event.request.wanted)
            for key in event.keys:
                task = tasks.get(key)
                for index, request in enumerate(task.requests if task is not None else ()):
                    if request == wanted and task is not None and self._first(task, 1 + 3 * index):
                        self._put((Requested, *wanted), (key,))
        elif type(event) is Settled:
            for verdict, body in zip(event.verdicts, bodies, strict=True):
                task = tasks.get(verdict.key)
                for index, (known, _, by) in enumerate(task.outcomes if task is not None else ()):
                    if (
                        known == verdict
                        and by == event.worker
                        and task is not None
                        and self._first(task, 2 + 3 * index)
                    ):
                        self._put((Settled, event.worker), (verdict, body))
        elif isinstance(event, Claimed | Released):
            worker = event.worker if isinstance(event, Claimed) else None
            for lease in event.leases:
                if self._is_open(lease, worker):
                    self._put((type(event), worker), (lease,))
                    self._claimers.add(worker or "")
        elif type(event) is WorkerLost:
            self._lost.add(event.worker)
        elif isinstance(event, Forgotten | Invalidated | Accepted):
            encoded = encode(Frame(event))
            if encoded not in self._others:
                self._others.add(encoded)
                left, kept = without_forgotten(event, bodies, self._scheduler.forgotten)
                if left.keys and not (isinstance(left, Forgotten) and self._alone):
                    self._append(left, kept)

    def _first(self, task: TaskRecord, what: int) -> bool:
        seen = self._seen.get(task, 0)
        self._seen[task] = seen | 1 << what
        return not seen >> what & 1

    def finish(self) -> None:
        for name, rows in self._rows.items():
            self._write(name, rows)
        self._rows.clear()
        for worker in sorted(self._lost & self._claimers):
            self._append(WorkerLost(worker), ())

    # -- counting ------------------------------------------------------------------------------------------------------

    def _is_open(self, lease: Lease, worker: WorkerId | None) -> bool:
        """Return True if an attempt has no outcome and is held by ``worker``, or was released if that is None."""
        task = self._scheduler.tasks.get(lease.key)
        return task is not None and any(
            (one.round, one.inputs, one.attempt) == (lease.round, lease.inputs, lease.attempt)
            and (one.released if worker is None else one.worker == worker)
            for one in task.attempts or ()
        )

    # -- writing -------------------------------------------------------------------------------------------------------

    def _put(self, name: tuple[Any, ...], row: tuple[Any, ...]) -> None:
        rows = self._rows.setdefault(name, [])
        rows.append(row)
        if len(rows) >= ROWS:
            self._write(name, rows)
            del self._rows[name]

    def _write(self, name: tuple[Any, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        kind, *shared = name
        columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
        if kind is Submitted:
            function, priority, python, counter = shared
            keys, needs, forms, bodies = columns
            self._append(Submitted(function, priority, python, keys, needs, forms, counter), bodies)
        elif kind is Requested:
            origin, counter, wanted = shared
            self._append(Requested(Request(origin, counter, wanted), columns[0]), ())
        elif kind is Settled:
            self._append(Settled(shared[0], columns[0]), columns[1])
        elif kind is Claimed:
            self._append(Claimed(shared[0], columns[0]), ())
        else:
            self._append(Released(columns[0]), ())


# -- compaction --------------------------------------------------------------------------------------------------------


def is_crowded(folder: Path, ended: Callable[[float], list[str]]) -> bool:
    """Return True if there is something to compact, or to remove after a compaction. ``ended`` as in `compact`."""
    if len(listed(folder / "log")) > CROWD and len(ended(server_time(folder))) > CROWD:
        return True
    if not listed(folder / "sealing"):
        return False  # else there are logs that sealed ones replace: had every reader the time to notice?
    sealed = [(folder / "sealed" / name).stat().st_mtime for name in listed(folder / "sealed")]
    return bool(sealed) and server_time(folder) - max(sealed) > GRACE


def compact(
    folder: Path,
    scheduler: SchedulerState,
    ended: Callable[[float], list[str]],
    read_to_end: Callable[[], None],
    quiet: bool,
) -> int:
    """Replace the logs of ended writers by one. Return the bytes saved, 0 if another process is compacting.

    ``ended(now)`` returns the names of those logs, ``read_to_end()`` applies all logs to the scheduler state, and
    ``quiet`` is True if no other process is reading. A compaction that was interrupted is finished by the next one:
    logs that were moved are read where they are until a sealed log, which appears as a whole, replaces them.
    """
    for name in ("sealing", "sealed", "trash"):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
        share_like(folder, folder / name)
    lock = _lock(folder)
    if lock is None:
        return 0
    try:
        now = server_time(folder)
        _remove_replaced(folder, now, quiet)
        for name in ended(now):
            with suppress(FileNotFoundError):
                os.rename(folder / "log" / name, folder / "sealing" / name)
        sync_folder(folder / "sealing")
        sync_folder(folder / "log")
        read_to_end()
        _change_epoch(folder)
        _remove_claims(folder, scheduler)  # also of tasks that were forgotten, while that is remembered
        saved = _seal(folder, scheduler, lock)
        read_to_end()
        _change_epoch(folder)
        _remove_claims(folder, scheduler)
        _remove_replaced(folder, server_time(folder), quiet)
        _remove_traces(folder, now)
        return saved
    finally:
        lock.unlink(missing_ok=True)


def _seal(folder: Path, scheduler: SchedulerState, lock: Path) -> int:
    """Write the sealed log. Return the bytes saved."""
    existing = _sealed(folder)
    done = {name for log in existing for name in log.replaces}
    former = [log for log in existing if log.path.name not in done]
    size = {path: path.stat().st_size for path in [log.path for log in former] + _files(folder / "sealing")}
    fresh = [path for path in _files(folder / "sealing") if path.name not in done or _grew(path, existing)]
    fresh.sort(key=lambda path: path.stat().st_mtime)
    merged = [log for log in former if scheduler.forgotten]
    if not merged:
        weight = sum(size[path] for path in fresh)
        for log in sorted(former, key=lambda log: size[log.path]):
            if size[log.path] <= 2 * weight:  # so that each event is rewritten only a few times
                merged.append(log)
                weight += size[log.path]
    if len(fresh) + len(merged) < 2 and not (fresh or (merged and scheduler.forgotten)):
        return 0
    logs: list[Log] = [SealedLog(log.path) for log in former if log in merged]
    logs += [Log(path, local=True) for path in fresh]
    others = [name for name in os.listdir(folder / "log") if name.endswith(".log")]
    alone = not others and len(merged) == len(former)
    number = 1 + max((int(log.path.name.split(".")[0]) for log in existing), default=0)
    path = folder / "sealed" / f"{number:06}.{secrets.token_hex(4)}.sealed"
    replaces = {log.path.name: size[log.path] for log in logs}
    after = merge(scheduler, logs, path, replaces, alone, passed=lambda: os.utime(lock))
    return max(0, sum(replaces.values()) - after)


def merge(
    scheduler: SchedulerState,
    logs: Iterable[Log],
    path: Path,
    replaces: Mapping[str, int],
    alone: bool,
    passed: Callable[[], None],
) -> int:
    """Write one sealed log that replaces ``logs``. Return its size in bytes. ``passed`` is called after each log."""
    writer = SealedWriter(path.parent, path.name, replaces)

    at: Log | None = None

    def body(place: Place) -> bytes:
        log = log_of(place)
        data = log.read(offset_of(place), size_of(place))
        if log is not at:
            log.shut()  # there may be more logs than files that a process may have open
        return data

    def append(event: Event, places: Sequence[Place]) -> None:
        writer.append(event, [body(place) for place in places])

    try:
        merger = Merger(scheduler, append, alone)
        for at in logs:
            for event, places in at.poll():
                merger.take(event, places)
            at.shut()
            passed()
        at = None
        merger.finish()
        return writer.publish()
    except BaseException:
        writer.discard()
        raise


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def _sealed(folder: Path) -> list[SealedLog]:
    return [SealedLog(path) for path in _files(folder / "sealed")]


def _grew(path: Path, sealed: Iterable[SealedLog]) -> bool:
    """Return True if a log was appended to after it was put into a sealed log."""
    return all(log.replaces.get(path.name, 0) < path.stat().st_size for log in sealed)


# -- removing what is obsolete -----------------------------------------------------------------------------------------


def _remove_replaced(folder: Path, now: float, quiet: bool) -> None:
    """Remove the logs that a sealed one replaces, once every reader has had the time to notice."""
    for log in _sealed(folder):
        if quiet or now - log.path.stat().st_mtime > GRACE:
            for name, size in log.replaces.items():
                path = folder / ("sealed" if name.endswith(".sealed") else "sealing") / name
                with suppress(FileNotFoundError):
                    if path.stat().st_size <= size:
                        path.unlink()
        log.shut()


def _remove_claims(folder: Path, scheduler: SchedulerState) -> None:
    """Remove the names of attempts that have an outcome, unless a crash of its writer's host could still lose it."""
    for entry in os.scandir(folder / "claims"):
        key, _, rest = entry.name.partition(".")
        try:
            round, inputs, attempt = rest.split(".")
            over = _has_outcome(scheduler, key, int(round), bytes.fromhex(inputs), int(attempt))
        except ValueError:
            continue  # no claim
        if over:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)


def _has_outcome(scheduler: SchedulerState, key: Key, round: int, inputs: bytes, attempt: int) -> bool:
    if round <= scheduler.forgotten.get(key, (0, -1))[1]:
        return True
    task = scheduler.tasks.get(key)
    return task is not None and (
        round < task.round
        or any(
            (verdict.round, verdict.inputs) == (round, inputs)
            and verdict.attempt >= attempt
            and log_of(place).path.parent.name != "log"
            for verdict, place, _ in task.outcomes
        )
    )


def _remove_traces(folder: Path, now: float) -> None:
    """Remove files about processes that ended long ago, and of compactions that were interrupted."""
    running = set(os.listdir(folder / "workers"))
    for path in _files(folder / "owners"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            if stat.st_nlink == 1 and now - stat.st_mtime > TRACES_KEPT and path.name.rsplit(".", 1)[0] not in running:
                path.unlink()
    for path in (folder / "sealed").glob(".*"):
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime > TRACES_KEPT:
                path.unlink()
    remove_older(folder / "workers" / "gone", now - TRACES_KEPT)
    remove_older(folder / "orders", now - TRACES_KEPT)
    remove_older(folder / "trash", now - TRASH_KEPT)
    remove_older(folder / "output", now - OUTPUT_KEPT, keep={f"{name}.log" for name in running})


def _change_epoch(folder: Path) -> None:
    mode = 0o660 if folder.stat().st_mode & 0o020 else 0o600
    replace(folder / "epoch", secrets.token_hex(8).encode(), durable=True, mode=mode)


def _lock(folder: Path) -> Path | None:
    """Return the lock, None if another process has it. Two compactions would do no harm, but the same work twice."""
    path = folder / "compacting"
    me = msgspec.msgpack.encode(system.me("compaction"))
    for _ in range(2):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if not _is_abandoned(path, folder):
                return None
            path.unlink(missing_ok=True)
            continue
        with os.fdopen(fd, "wb") as file:
            share_like(folder, path)
            file.write(me)
        return path
    return None


def _is_abandoned(path: Path, folder: Path) -> bool:
    try:
        age = server_time(folder) - path.stat().st_mtime
        info = msgspec.msgpack.decode(path.read_bytes(), type=WorkerInfo)
    except FileNotFoundError:
        return True
    except msgspec.MsgspecError:
        return age > ABANDONED
    running = system.running(info)
    return age > ABANDONED if running is None else not running
