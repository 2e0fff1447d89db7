"""Puts many logs into one, and leaves out what counts for nothing any more.

What is left out is what the board has dropped: superseded wishes, outcomes of rounds that are over, claims that came to
something, all that was said of tasks before they were forgotten. So the picture is the same with it and without it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from jug_notebook.scheduler.packing import Place
from jug_notebook.scheduler.records import TaskRecord
from jug_notebook.scheduler.state import SchedulerState, part_of
from jug_notebook.store.file.atomic import share_like, sync_folder
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

ROWS = 1000  #: so many tasks in one frame
GRACE = 60.0  #: seconds for which logs stay that a sealed one stands for: others may still be reading them
ABANDONED = 600.0  #: seconds without a sign of life after which another machine's compaction is given up
BIN = 86_400.0  #: seconds for which swept blobs lie in the trash
LONG_AGO = 3600.0  #: seconds after which nobody asks after a process that ended
PAPERS = 30 * 86_400.0  #: seconds for which what it printed is kept


class SealedWriter:
    """Writes a sealed log, aside until `appear`."""

    def __init__(self, folder: Path, name: str, replaces: Mapping[str, int]) -> None:
        self.path = folder / name
        self._aside = folder / f".{name}"
        self._bodies = open(self._aside, "wb", opener=_private)  # noqa: SIM115
        share_like(folder, self._aside)
        self._heads = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._head(Frame(Sealed(dict(replaces))))

    def _head(self, frame: Frame) -> None:
        head = encode(frame)
        self._heads.write(HEAD.pack(len(head), zlib.crc32(head)) + head)

    def append(self, event: Event, bodies: Sequence[bytes] = ()) -> None:
        self._bodies.writelines(bodies)
        self._head(Frame(event, [len(body) for body in bodies]))

    def appear(self) -> int:
        """Make it durable, then let it be seen; answer its size. Raises StoreError where the disk is full."""
        try:
            start = self._bodies.tell()
            end = start + self._heads.tell()
            self._heads.seek(0)
            shutil.copyfileobj(self._heads, self._bodies, CHUNK)
            self._bodies.write(TRAILER.pack(MAGIC, start, end))
            self._bodies.flush()
            os.fsync(self._bodies.fileno())
            self.close()
            os.rename(self._aside, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            self.discard()
            raise StoreError(f"can't write to {self.path.parent}: {error.strerror}") from error
        return end + TRAILER.size

    def discard(self) -> None:
        self.close()
        self._aside.unlink(missing_ok=True)

    def close(self) -> None:
        self._bodies.close()
        self._heads.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


class Merger:
    """Takes in the facts of logs, one after the other, and appends those that count.

    ``alone``: there are no other logs, so who was forgotten needn't be remembered.
    """

    def __init__(self, scheduler: SchedulerState, append: Callable[[Event, Sequence[Any]], None], alone: bool) -> None:
        self._scheduler = scheduler
        self._append = append
        self._alone = alone
        self._seen: dict[TaskRecord, int] = {}  # which of what counts of a task was taken: facts may come twice
        self._others: set[bytes] = set()
        self._rows: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        self._gone: set[WorkerId] = set()
        self._claimers: set[WorkerId] = set()

    def take(self, event: Event, bodies: Sequence[Any]) -> None:
        tasks = self._scheduler.tasks
        if type(event) is Submitted:
            kind = (event.name, event.priority, event.python)
            for key, needs, form, body in zip(event.keys, event.needs, event.forms, bodies, strict=True):
                void = self._scheduler.forgotten.get(key)
                task = tasks.get(key)
                if task is None or task.state < 0 or (void is not None and event.counter <= void[0]):
                    continue
                if self._first(task, 0):
                    self._put((Submitted, *kind, 0 if void is None else event.counter), (key, needs, form, body))
        elif type(event) is Requested:
            told = (event.request.origin, event.request.counter, event.request.wanted)
            for key in event.keys:
                task = tasks.get(key)
                for index, request in enumerate(task.requests if task is not None else ()):
                    if request == told and task is not None and self._first(task, 1 + 3 * index):
                        self._put((Requested, *told), (key,))
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
            self._gone.add(event.worker)
        elif isinstance(event, Forgotten | Invalidated | Accepted):
            said = encode(Frame(event))
            if said not in self._others:
                self._others.add(said)
                self._take_other(event, bodies)

    def _first(self, task: TaskRecord, what: int) -> bool:
        seen = self._seen.get(task, 0)
        self._seen[task] = seen | 1 << what
        return not seen >> what & 1

    def _take_other(self, event: Forgotten | Invalidated | Accepted, bodies: Sequence[Any]) -> None:
        """Few, so they are kept as they are, but for tasks that were forgotten."""
        void = self._scheduler.forgotten
        if isinstance(event, Forgotten):
            if not self._alone:
                self._append(event, ())
            return
        if isinstance(event, Accepted):
            stays = [key not in void or event.counter > void[key][0] for key in event.keys]
        else:
            rows = zip(event.keys, event.from_rounds, strict=True)
            stays = [key not in void or round > void[key][1] for key, round in rows]
        if any(stays):
            kept = [body for body, stay in zip(bodies, stays, strict=False) if stay]
            self._append(part_of(event, stays), kept)

    def finish(self) -> None:
        for name, rows in self._rows.items():
            self._write(name, rows)
        self._rows.clear()
        for worker in sorted(self._gone & self._claimers):
            self._append(WorkerLost(worker), ())

    # -- what counts ---------------------------------------------------------------------------------------------------

    def _is_open(self, lease: Lease, worker: WorkerId | None) -> bool:
        """Is this an attempt that came to nothing yet? ``worker`` is None where it was given back."""
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


# -- the whole of it ---------------------------------------------------------------------------------------------------


def compact(
    folder: Path,
    scheduler: SchedulerState,
    ended: Callable[[float], list[str]],
    take_in: Callable[[], None],
    own: str,
    quiet: bool,
) -> int:
    """Put the logs of those that have ended into one; answer the bytes saved, 0 where somebody else is at it.

    ``ended(now)`` names those logs, ``take_in()`` reads all logs to their end into the board, ``own`` is this process's
    log, ``quiet``: nobody else is reading. What is cut off in the midst is taken up by the next: logs that were moved
    are read where they are until a sealed log stands for them, and that appears whole.
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
        take_in()
        _change_epoch(folder)
        _remove_claims(folder, scheduler)  # also of tasks that were forgotten, while that is remembered
        saved = _seal(folder, scheduler, own, lock)
        take_in()
        _change_epoch(folder)
        _remove_claims(folder, scheduler)
        _remove_replaced(folder, server_time(folder), quiet)
        _remove_traces(folder, now)
        return saved
    finally:
        lock.unlink(missing_ok=True)


def _seal(folder: Path, scheduler: SchedulerState, own: str, lock: Path) -> int:
    there = _sealed(folder)
    done = {name for log in there for name in log.replaces}
    former = [log for log in there if log.path.name not in done]
    size = {path: path.stat().st_size for path in [log.path for log in former] + _files(folder / "sealing")}
    fresh = [path for path in _files(folder / "sealing") if path.name not in done or _grew(path, there)]
    fresh.sort(key=lambda path: path.stat().st_mtime)
    reused_from = [log for log in former if scheduler.forgotten]
    if not reused_from:
        weight = sum(size[path] for path in fresh)
        for log in sorted(former, key=lambda log: size[log.path]):
            if size[log.path] <= 2 * weight:  # so that each fact is written anew a few times in its life
                reused_from.append(log)
                weight += size[log.path]
    if len(fresh) + len(reused_from) < 2 and not (fresh or (reused_from and scheduler.forgotten)):
        return 0
    logs: list[Log] = [SealedLog(log.path) for log in former if log in reused_from]
    logs += [Log(path, local=True) for path in fresh]
    others = [name for name in os.listdir(folder / "log") if name.endswith(".log")]
    alone = not others and len(reused_from) == len(former)
    number = 1 + max((int(log.path.name.split(".")[0]) for log in there), default=0)
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
    """Write one sealed log that stands for ``logs``; answer its size. ``passed`` is called after each of them."""
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
        return writer.appear()
    except BaseException:
        writer.discard()
        raise


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def _sealed(folder: Path) -> list[SealedLog]:
    return [SealedLog(path) for path in _files(folder / "sealed")]


def _grew(path: Path, sealed: Iterable[SealedLog]) -> bool:
    """Was there more written to it after it was put into a sealed log?"""
    return all(log.replaces.get(path.name, 0) < path.stat().st_size for log in sealed)


# -- what nobody needs any more ----------------------------------------------------------------------------------------


def _remove_replaced(folder: Path, now: float, quiet: bool) -> None:
    """Logs that a sealed one stands for, once everybody has had the time to see that."""
    for log in _sealed(folder):
        if quiet or now - log.path.stat().st_mtime > GRACE:
            for name, size in log.replaces.items():
                path = folder / ("sealed" if name.endswith(".sealed") else "sealing") / name
                with suppress(FileNotFoundError):
                    if path.stat().st_size <= size:
                        path.unlink()
        log.shut()


def _remove_claims(folder: Path, scheduler: SchedulerState) -> None:
    """Names of attempts that came to something which no crash can take back."""
    for entry in os.scandir(folder / "claims"):
        key, _, rest = entry.name.partition(".")
        try:
            round, inputs, attempt = rest.split(".")
            over = _is_over(scheduler, key, int(round), bytes.fromhex(inputs), int(attempt))
        except ValueError:
            continue  # not ours
        if over:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)


def _is_over(scheduler: SchedulerState, key: Key, round: int, inputs: bytes, attempt: int) -> bool:
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
    """Of processes that ended long ago, and of work that was cut off."""
    here = set(os.listdir(folder / "workers"))
    for path in _files(folder / "owners"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            if stat.st_nlink == 1 and now - stat.st_mtime > LONG_AGO and path.name.rsplit(".", 1)[0] not in here:
                path.unlink()
    for path in (folder / "sealed").glob(".*"):
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime > LONG_AGO:
                path.unlink()
    remove_older(folder / "workers" / "gone", now - LONG_AGO)
    remove_older(folder / "orders", now - LONG_AGO)
    remove_older(folder / "trash", now - BIN)
    remove_older(folder / "output", now - PAPERS, but={f"{name}.log" for name in here})


def remove_older(folder: Path, than: float, but: Collection[str] = ()) -> None:
    """Files last changed before a time."""
    for path in _files(folder):
        with suppress(FileNotFoundError):
            if path.name not in but and path.stat().st_mtime < than:
                path.unlink()


def server_time(folder: Path) -> float:
    """What time the file server has: clocks of hosts may differ, and all times of files are the server's."""
    aside = folder / f".clock.{secrets.token_hex(8)}"
    aside.touch()
    try:
        return aside.stat().st_mtime
    finally:
        aside.unlink()


def _change_epoch(folder: Path) -> None:
    aside = folder / f".epoch.{secrets.token_hex(8)}"
    aside.write_text(secrets.token_hex(8))
    share_like(folder, aside)
    os.rename(aside, folder / "epoch")
    sync_folder(folder)


def _lock(folder: Path) -> Path | None:
    """One at a time: two would do no harm, and the same work. None where another is at it."""
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
    here = system.running(info)
    return age > ABANDONED if here is None else not here
