"""Processes in a store's folder: their heartbeats, orders to supervisors, and what processes printed.

A heartbeat is a file ``workers/<process>`` that its process rewrites every second: a `WorkerInfo` with a rising number,
and, from a supervisor, one for each of its workers. A process of this machine is alive while its pid is there; another
one while its number keeps rising. That is timed by the reader's clock alone, so hosts' clocks may differ. What people
see of one that hasn't changed since the first look is as old as its file, by the file server's clock.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path

import msgspec

from jug_notebook import system as process
from jug_notebook.clock import Clock
from jug_notebook.model import BEAT, LEASE, Order, WorkerId, WorkerInfo
from jug_notebook.scheduler.views import LATELY
from jug_notebook.store import read_heartbeats, read_orders
from jug_notebook.store.file.folders import replace, server_time

LOOK = LEASE / 10  #: seconds between two looks at the heartbeats of other machines' workers


class Heartbeats:
    """Heartbeats, orders and logs of one store. Raises FileNotFoundError if the folder was removed."""

    def __init__(self, folder: Path, clock: Clock, mode: int) -> None:
        self.mode = mode  #: of the files that it makes
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._beats: dict[WorkerId, tuple[int, float]] = {}
        self._first: dict[WorkerId, tuple[int, float]] = {}  # the first seen, and when it was written
        self._written: dict[WorkerId, list[WorkerInfo]] = {}  # by this process, under the first one's name
        self._known: dict[WorkerId, tuple[str, WorkerInfo]] = {}  # the file of a process, and what was in it
        self._absent: set[WorkerId] = set()  # of those asked for at the last look
        self._next_look = 0.0
        self._orders_seen = 0
        self._last_check = 0.0

    def dead_among(self, workers: Set[WorkerId], now: float) -> set[WorkerId]:
        """Return those of these workers that don't run: by their pid on this machine, elsewhere by their heartbeats."""
        if now - self._last_check > 5 * BEAT:  # this process was suspended, so silence until now means nothing
            with self._lock:
                self._beats.clear()
                self._first.clear()
        self._last_check = now
        strangers = {worker for worker in workers if worker not in self._known}
        if now >= self._next_look or not strangers <= self._absent:
            self._next_look = now + LOOK
            remote = [worker for worker in workers - strangers if process.running(self._known[worker][1]) is None]
            names = {self._known.pop(worker)[0] for worker in remote}
            self._read(os.listdir(self._folder / "workers") if strangers else names)
            self._absent = strangers - self._known.keys()
        return {
            worker
            for worker in workers
            if (known := self._known.get(worker)) is None
            or not _holds_leases(known[1], now - self._last_change(known[1], now))
        }

    def _read(self, names: Iterable[str]) -> list[WorkerInfo]:
        """Return what is in these files."""
        found = []
        for name in names:
            if name != "gone" and not name.startswith("."):
                infos, written = _read_infos(f"{self._folder}/workers/{name}")
                for info in infos:
                    self._known[info.id] = name, info
                    if info.id not in self._first:
                        age = max(0.0, self._server_time() - written)
                        self._first[info.id] = info.beat, self._clock.monotonic() - age
                    found.append(info)
        return found

    def _server_time(self) -> float:
        try:
            return server_time(self._folder)
        except FileNotFoundError:
            raise
        except OSError:  # nothing can be written here, so the clocks of the hosts must do
            return self._clock.now()

    def _silence(self, info: WorkerInfo, now: float) -> float:
        """Return the seconds since the last heartbeat."""
        change = self._last_change(info, now)
        beat, written = self._first.get(info.id, (-1, now))
        return now - (written if beat == info.beat else change)

    def _last_change(self, info: WorkerInfo, now: float) -> float:
        """Return when its heartbeat last changed, by this process's clock."""
        with self._lock:
            beat, since = self._beats.get(info.id, (-1, now))
            if beat != info.beat:
                since = now
                self._beats[info.id] = (info.beat, now)
            return since

    def write(self, processes: Sequence[WorkerInfo]) -> None:
        """Write the heartbeats of a process, the first one, and of all its workers."""
        if processes:
            first = processes[0].id
            self._written[first] = list(processes)
            _write_infos(self._folder / "workers" / first, processes, self.mode)

    def orders(self, supervisor: WorkerId) -> list[Order]:
        """Return the orders of a supervisor, and remove them, those that can't be read too."""
        found: list[bytes] = []
        folder = self._folder / "orders"
        for name in sorted(os.listdir(folder)):
            if name.startswith(f"{supervisor}."):
                try:
                    data = (folder / name).read_bytes()
                    (folder / name).unlink()
                except FileNotFoundError:  # another thread of this supervisor was first
                    continue
                found.append(data)
        return read_orders(found, lambda text: self.notice(supervisor, text))

    def orders_changed(self) -> bool:
        """Return True if there were orders since the last call. For systems without inotify."""
        seen = self._orders_seen
        with suppress(FileNotFoundError):  # the store was removed: other calls report that
            self._orders_seen = os.stat(self._folder / "orders").st_mtime_ns
        return seen != self._orders_seen

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        for supervisor in supervisors:
            name = f"{supervisor}.{time.time_ns():020d}"
            replace(self._folder / "orders" / name, msgspec.msgpack.encode(order), mode=self.mode)

    def retire(self, worker: WorkerId) -> None:
        """Move the heartbeat of a process that has ended out of the way."""
        ended = self._folder / "workers" / "gone" / worker
        for first, infos in self._written.items():
            last = [info for info in infos if info.id == worker]
            if last and first != worker:
                _write_infos(ended, last, self.mode)
                infos.remove(last[0])
                _write_infos(self._folder / "workers" / first, infos, self.mode)
                return
        self._written.pop(worker, None)
        try:
            os.rename(self._folder / "workers" / worker, ended)
            os.utime(ended)
        except OSError:  # another process was first, the file is another user's, or nothing can be written
            return

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        """Return all processes, lately ended ones too: whether each is alive, and seconds since its last heartbeat."""
        now, today = self._clock.monotonic(), self._clock.now()
        found: list[tuple[WorkerInfo, bool, float]] = []
        for info in self._read(os.listdir(self._folder / "workers")):
            silent = self._silence(info, now)
            alive = process.is_alive(info, silent)
            found.append((info, alive, silent))
            if not alive and process.running(info) is False:
                self.retire(info.id)
        with os.scandir(self._folder / "workers" / "gone") as entries:
            for entry in entries:
                age = today - entry.stat().st_mtime
                if age < LATELY:
                    found += [(info, False, max(0.0, age)) for info in _read_infos(entry.path)[0]]
        return sorted(found, key=lambda item: (item[0].started, item[0].id))

    def notice(self, process: WorkerId, text: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        with os.fdopen(os.open(self.log_path(process), flags, self.mode), "a") as log:
            log.write(text)
            if self.mode != 0o600:
                os.chmod(log.fileno(), self.mode)  # whatever the umask is

    def log(self, process: WorkerId) -> str:
        try:
            with self.log_path(process).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - (1 << 16)))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def log_path(self, process: WorkerId) -> Path:
        """Return the file for a process's output."""
        return self._folder / "output" / f"{process}.log"


def _holds_leases(info: WorkerInfo, silent: float) -> bool:
    """``silent`` is for how many seconds its heartbeat hasn't changed; the age of its file doesn't count here."""
    running = process.running(info)
    return silent <= LEASE if running is None else running


def _write_infos(path: Path, infos: Sequence[WorkerInfo], mode: int) -> None:
    """Write in place, in one call. A reader that sees half of it notices by the checksum."""
    data = msgspec.msgpack.encode(infos)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        if mode != 0o600 and os.fstat(fd).st_size == 0:  # new: whatever the umask is
            os.chmod(fd, mode)
        os.pwrite(fd, len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data, 0)
    finally:
        os.close(fd)


def _read_infos(path: str) -> tuple[list[WorkerInfo], float]:
    """Return the heartbeats in a file, and when it was written by the file server's clock."""
    for _ in range(3):
        try:
            with open(path, "rb", buffering=0) as file:
                raw, written = file.read(), os.fstat(file.fileno()).st_mtime
        except (FileNotFoundError, IsADirectoryError):
            break
        data = raw[8 : 8 + int.from_bytes(raw[:4], "little")]
        if len(raw) > 8 and zlib.crc32(data) == int.from_bytes(raw[4:8], "little"):
            return read_heartbeats(data), written
    return [], 0.0
