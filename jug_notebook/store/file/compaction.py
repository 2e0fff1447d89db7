"""Compaction: replaces the logs of ended writers by one sealed log without the events that no longer matter.

What is kept is decided in `merging`: the sealed log, when applied, gives the same state as the logs that it replaces.
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

import msgspec

from jug_notebook import system
from jug_notebook.errors import StoreError
from jug_notebook.model import (
    Event,
    Key,
    WorkerInfo,
)
from jug_notebook.scheduler.records import Place
from jug_notebook.scheduler.state import SchedulerState
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
from jug_notebook.store.merging import Merger

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
