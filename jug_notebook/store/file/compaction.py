"""Compaction: replaces the logs of ended writers by one sealed log without the events that no longer matter.

What is kept is decided in `merging`: the sealed log, when applied, gives the same state as the logs that it replaces.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from jug_notebook import system
from jug_notebook.errors import StoreError
from jug_notebook.model import UNREADABLE, Accepted, Event, Forgotten, Invalidated, Key, Requested, WorkerInfo
from jug_notebook.scheduler.records import Place
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.store.atomic import Folder, ForeignFile
from jug_notebook.store.file.blobs import TRASH_KEPT
from jug_notebook.store.file.folders import listed, make_folders, remove_older
from jug_notebook.store.file.journal import (
    Again,
    Chain,
    Closed,
    Frame,
    Log,
    Sealed,
    SealedLog,
    Vanished,
    content_of,
    encode,
    log_of,
    offset_of,
    size_of,
)
from jug_notebook.store.file.logs import Logs, mark
from jug_notebook.store.merging import Merger
from jug_notebook.store.sealing import EventSeal

CROWD = 100  #: logs of ended writers that make a compaction worthwhile
GRACE = 60.0  #: seconds for which replaced logs stay: others may still be reading them
ABANDONED = 600.0  #: seconds of silence after which another machine's compaction counts as abandoned
TRACES_KEPT = 3600.0  #: seconds for which files about ended processes are kept
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
COPIES = 100  #: events in one frame of second copies
OUTPUT_KEPT = 30 * 86_400.0  #: seconds for which their output is kept
TWICE = (Requested, Accepted, Invalidated, Forgotten)  #: events that nothing but the log knows of


class SealedWriter:
    """Writes a sealed log, under a hidden name until `publish`. What can't be computed again is in it twice."""

    def __init__(self, folder: Folder, name: str, replaces: Sealed, seal: EventSeal) -> None:
        self.path = folder / name
        self._hidden = f".{name}"
        self._chain = Chain(name, seal)
        self._file = open(folder.open(self._hidden, NEW), "wb")  # noqa: SIM115
        self._replaces = Frame(replaces)
        self._copies: list[tuple[int, bytes, list[bytes]]] = []
        self._write(self._replaces)

    def _write(self, frame: Frame, bodies: Sequence[bytes] = ()) -> None:
        self._file.write(self._chain.frame(content_of(frame, bodies)))

    def append(self, event: Event, bodies: Sequence[bytes] = ()) -> None:
        frame = Frame(event, [len(body) for body in bodies])
        if isinstance(event, TWICE):
            self._copies.append((self._chain.number, encode(frame), list(bodies)))
        self._write(frame, bodies)

    def publish(self) -> int:
        """Make it durable and give it its name. Return its size in bytes. Raises StoreError if the disk is full."""
        try:
            for part in system.batched(self._copies, COPIES):
                bodies = [body for _, _, own in part for body in own]
                again = Again([(number, head) for number, head, _ in part])
                self._write(Frame(again, [len(body) for body in bodies]), bodies)
            self._write(self._replaces)
            self._write(Frame(Closed()))
            size = self._file.tell()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self.path.parent.publish(self._hidden, self.path.name)
        except OSError as error:
            self.discard()
            raise StoreError(f"can't write to {self.path.parent}: {error.strerror}") from error
        return size

    def discard(self) -> None:
        with suppress(OSError):  # what is left can't be written
            self._file.close()
        self.path.parent.unlink(self._hidden)


# -- compaction --------------------------------------------------------------------------------------------------------


def is_crowded(folder: Folder, ended: Callable[[float], list[str]]) -> bool:
    """Return True if there is something to compact, or to remove after a compaction. ``ended`` as in `compact`."""
    if len(listed(folder / "log")) > CROWD and len(ended(folder.server_time())) > CROWD:
        return True
    if not listed(folder / "sealing"):
        return False  # else there are logs that sealed ones replace: had every reader the time to notice?
    sealed = []
    for name in listed(folder / "sealed"):
        with suppress(FileNotFoundError):  # another compaction has just replaced it
            sealed.append((folder / "sealed" / name).stat().st_mtime)
    return bool(sealed) and folder.server_time() - max(sealed) > GRACE


def compact(
    folder: Folder,
    scheduler: SchedulerState,
    logs: Logs,
    ended: Callable[[float], list[str]],
    read_to_end: Callable[[], None],
    quiet: bool,
) -> int:
    """Replace the logs of ended writers by one. Return the bytes saved, 0 if another process is compacting.

    ``ended(now)`` returns the names of those logs, ``read_to_end()`` applies all logs to the scheduler state, and
    ``quiet`` is True if no other process is reading. A compaction that was interrupted is finished by the next one:
    logs that were moved are read where they are until a sealed log, which appears as a whole, replaces them.
    """
    make_folders(folder, "sealing", "sealed", "trash")
    lock = _lock(folder)
    if lock is None:
        return 0
    try:
        now = folder.server_time()
        _remove_replaced(folder, logs, now, quiet)
        for name in ended(now):
            with suppress(FileNotFoundError):
                (folder / "log").rename(name, name, folder / "sealing")
        (folder / "sealing").sync()
        (folder / "log").sync()
        read_to_end()
        _change_epoch(folder)
        _remove_claims(folder, scheduler)  # also of tasks that were forgotten, while that is remembered
        saved = _seal(folder, scheduler, logs, lock)
        read_to_end()
        _change_epoch(folder)
        _remove_claims(folder, scheduler)
        _remove_replaced(folder, logs, folder.server_time(), quiet)
        _remove_traces(folder, now)
        return saved
    finally:
        folder.unlink(lock.name)


def _seal(folder: Folder, scheduler: SchedulerState, logs: Logs, lock: Folder) -> int:
    """Write the sealed log. Return the bytes saved."""
    existing = _sealed(folder, logs)
    for log in existing:
        log.shut()
    done = {name for log in existing for name in log.replaces}
    former = [log for log in existing if log.path.name not in done]
    size = {path: path.stat().st_size for path in [log.path for log in former] + _files(folder / "sealing")}
    fresh = [path for path in _files(folder / "sealing") if path.name not in done or _grew(path, existing)]
    fresh.sort(key=lambda path: path.stat().st_mtime)
    merged = [log for log in former if scheduler.forgotten or logs.is_damaged(log.path.name)]
    must = bool(merged)
    if not must:
        weight = sum(size[path] for path in fresh)
        for log in sorted(former, key=lambda log: size[log.path]):
            if size[log.path] <= 2 * weight:  # so that each event is rewritten only a few times
                merged.append(log)
                weight += size[log.path]
    if len(fresh) + len(merged) < 2 and not fresh and not must:
        return 0
    sources = [logs.open(path) for path in (*(log.path for log in former if log in merged), *fresh)]
    others = [name for name in (folder / "log").names() if name.endswith(".log")]
    alone = not others and len(merged) == len(former)
    number = 1 + max((int(log.path.name.split(".")[0]) for log in existing), default=0)
    path = folder / "sealed" / f"{number:06}.{secrets.token_hex(4)}.sealed"
    before = {mark(name) for log in merged for name in log.replaces}
    before |= {log.before[at : at + 8] for log in merged for at in range(0, len(log.before), 8)}
    replaces = Sealed({log.path.name: size[log.path] for log in sources}, b"".join(sorted(before)))
    assert logs.seal is not None, "without the store's key, nothing can be compacted"
    after = merge(scheduler, sources, path, replaces, alone, logs.seal, passed=lambda: folder.touch(lock.name))
    return max(0, sum(replaces.replaces.values()) - after)


def merge(
    scheduler: SchedulerState,
    logs: Iterable[Log],
    path: Folder,
    replaces: Sealed,
    alone: bool,
    seal: EventSeal,
    passed: Callable[[], None],
) -> int:
    """Write one sealed log that replaces ``logs``. Return its size in bytes. ``passed`` is called after each log."""
    writer = SealedWriter(path.parent, path.name, replaces, seal)

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


def _files(folder: Folder) -> list[Folder]:
    """Return the files in a folder; others may be removing some of them."""
    found = []
    for name in sorted(folder.names()):
        with suppress(FileNotFoundError):
            if stat.S_ISREG(folder.stat(name).st_mode):
                found.append(folder / name)
    return found


def _sealed(folder: Folder, logs: Logs) -> list[SealedLog]:
    found = []
    for path in _files(folder / "sealed"):
        with suppress(Vanished):
            found.append(SealedLog(path, logs.seal, logs.report))
    return found


def _grew(path: Folder, sealed: Iterable[SealedLog]) -> bool:
    """Return True if a log was appended to after it was put into a sealed log."""
    return all(log.replaces.get(path.name, 0) < path.stat().st_size for log in sealed)


# -- removing what is obsolete -----------------------------------------------------------------------------------------


def _remove_replaced(folder: Folder, logs: Logs, now: float, quiet: bool) -> None:
    """Remove the logs that a sealed one replaces, once every reader has had the time to notice.

    One of which not all could be read goes to the trash: there is more in it.
    """
    for log in _sealed(folder, logs):
        if quiet or now - log.path.stat().st_mtime > GRACE:
            for name, size in log.replaces.items():
                path = folder / ("sealed" if name.endswith(".sealed") else "sealing") / name
                with suppress(FileNotFoundError):
                    if path.stat().st_size > size:
                        continue
                    if logs.is_damaged(name) or name in logs.healed:
                        path.parent.rename(name, name, folder / "trash")
                        (folder / "trash").touch(name)
                    else:
                        path.parent.unlink(name)
        log.shut()


def _remove_claims(folder: Folder, scheduler: SchedulerState) -> None:
    """Remove the names of attempts that have an outcome, unless a crash of its writer's host could still lose it."""
    claims = folder / "claims"
    for name in claims.names():
        key, _, rest = name.partition(".")
        try:
            round, inputs, attempt, _ = rest.split(".")
            over = _has_outcome(scheduler, key, int(round), bytes.fromhex(inputs), int(attempt))
        except ValueError:
            continue  # no claim
        if over:
            claims.unlink(name)


def _has_outcome(scheduler: SchedulerState, key: Key, round: int, inputs: bytes, attempt: int) -> bool:
    if round <= scheduler.forgotten.get(key, (0, -1))[1]:
        return True
    task = scheduler.tasks.peek(key)
    if task is None:
        return scheduler.limits.is_over(key, attempt)
    return round < task.round or any(
        (verdict.round, verdict.inputs) == (round, inputs)
        and verdict.attempt >= attempt
        and log_of(place).path.parent.name != "log"
        for verdict, place, _ in task.outcomes
    )


def _remove_traces(folder: Folder, now: float) -> None:
    """Remove files about processes that ended long ago, and of compactions that were interrupted."""
    running = set((folder / "workers").names())
    for path in _files(folder / "owners"):
        with suppress(FileNotFoundError):
            found = path.stat()
            unused = found.st_nlink == 1 and path.name.rsplit(".", 1)[0] not in running
            if unused and now - found.st_mtime > TRACES_KEPT:
                path.parent.unlink(path.name)
    remove_older(folder / "sealed", now - TRACES_KEPT, hidden=True)
    remove_older(folder / "workers" / "gone", now - TRACES_KEPT)
    remove_older(folder / "orders", now - TRACES_KEPT)
    remove_older(folder / "trash", now - TRASH_KEPT)
    remove_older(folder / "output", now - OUTPUT_KEPT, keep={f"{name}.log" for name in running})


def _change_epoch(folder: Folder) -> None:
    folder.replace("epoch", secrets.token_hex(8).encode(), durable=True)


def _lock(folder: Folder) -> Folder | None:
    """Return the lock, None if another process has it. Two compactions would do no harm, but the same work twice."""
    path = folder / "compacting"
    me = msgspec.msgpack.encode(system.me("compaction"))
    for _ in range(2):
        if folder.create(path.name, me):
            return path
        if not _is_abandoned(path, folder):
            return None
        folder.unlink(path.name)
    return None


def _is_abandoned(path: Folder, folder: Folder) -> bool:
    try:
        age = folder.server_time() - path.stat().st_mtime
        info = msgspec.msgpack.decode(folder.read(path.name), type=WorkerInfo)
    except FileNotFoundError:
        return True
    except (*UNREADABLE, ForeignFile):  # it appears as a whole, so this one is damaged
        return True
    running = system.running(info)
    return age > ABANDONED if running is None else not running
