"""Who is here, in a folder: what each process said with its last beat, what it is to do, what it printed."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from jug_notebook import system as process
from jug_notebook.clock import Clock
from jug_notebook.model import LEASE, Order, WorkerId, WorkerInfo
from jug_notebook.store.file.atomic import appear
from jug_notebook.store.views import LATELY


class Heartbeats:
    """Raises FileNotFoundError where the folder is gone."""

    def __init__(self, folder: Path, clock: Clock, mode: int) -> None:
        self.mode = mode  #: of the files that it makes
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._beats: dict[WorkerId, tuple[int, float]] = {}
        self._orders_seen = 0

    def said(self, worker: WorkerId) -> WorkerInfo | None:
        """What a process said last; None where it said nothing yet, or has ended."""
        return _read_info(f"{self._folder}/workers/{worker}")

    def lives(self, info: WorkerInfo, now: float) -> bool:
        """By its pid, where it is a process of this host; else by whether its beats go on."""
        return _lives(info, now - self._heard(info, now))

    def _heard(self, info: WorkerInfo, now: float) -> float:
        """Since when its beat has been what it is."""
        with self._lock:
            beat, since = self._beats.get(info.id, (-1, now))
            if beat != info.beat:
                since = now
                self._beats[info.id] = (info.beat, now)
            return since

    def doubt(self) -> None:
        """What was seen of beats so far says nothing."""
        with self._lock:
            self._beats.clear()

    def say(self, processes: Sequence[WorkerInfo]) -> None:
        """These live."""
        for info in processes:
            _write_info(self._folder / "workers" / info.id, info, self.mode)

    def orders(self, supervisor: WorkerId) -> list[Order]:
        """What it is to do; told once."""
        found: list[Order] = []
        folder = self._folder / "orders"
        for name in sorted(os.listdir(folder)):
            if name.startswith(f"{supervisor}."):
                try:
                    found.append(msgspec.msgpack.decode((folder / name).read_bytes(), type=Order))
                    (folder / name).unlink()
                except FileNotFoundError:  # another thread of this supervisor was first
                    continue
        return found

    def news_of_orders(self) -> bool:
        """Was anything ordered since we last asked? For where no bell rings."""
        seen = self._orders_seen
        with suppress(FileNotFoundError):  # all else is gone, too, which is said soon
            self._orders_seen = os.stat(self._folder / "orders").st_mtime_ns
        return seen != self._orders_seen

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        for supervisor in supervisors:
            name = f"{supervisor}.{time.time_ns():020d}"
            appear(self._folder / "orders" / name, msgspec.msgpack.encode(order), mode=self.mode)

    def retire(self, worker: WorkerId) -> None:
        """Who has ended is no longer asked after."""
        gone = self._folder / "workers" / "gone" / worker
        try:
            os.rename(self._folder / "workers" / worker, gone)
            os.utime(gone)
        except (FileNotFoundError, PermissionError):  # another was first, or it is a colleague's
            return

    def all(self) -> list[tuple[WorkerInfo, bool, float]]:
        """Everybody: does it live, and how many seconds ago its last beat was seen. Those, too, who ended lately."""
        now, today = self._clock.monotonic(), self._clock.now()
        found: list[tuple[WorkerInfo, bool, float]] = []
        for name in os.listdir(self._folder / "workers"):
            info = None if name == "gone" or name.startswith(".") else self.said(name)
            if info is not None:
                silent = now - self._heard(info, now)
                alive = _lives(info, silent)
                found.append((info, alive, silent))
                if not alive and process.running(info) is False:
                    self.retire(info.id)
        with os.scandir(self._folder / "workers" / "gone") as entries:
            for entry in entries:
                age = today - entry.stat().st_mtime
                if age < LATELY and (info := _read_info(entry.path)) is not None:
                    found.append((info, False, max(0.0, age)))
        return sorted(found, key=lambda item: (item[0].started, item[0].id))

    def notice(self, process: WorkerId, text: str) -> None:
        with self.log_path(process).open("a") as log:
            log.write(text)
            if self.mode != 0o600:
                os.chmod(log.fileno(), self.mode)

    def log(self, process: WorkerId) -> str:
        try:
            with self.log_path(process).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - (1 << 16)))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def log_path(self, process: WorkerId) -> Path:
        """Where a process's output goes."""
        return self._folder / "output" / f"{process}.log"


def _lives(info: WorkerInfo, silent: float) -> bool:
    """``silent``: for so many seconds its beat hasn't changed."""
    here = process.running(info)
    return silent <= LEASE if here is None else here


def _write_info(path: Path, info: WorkerInfo, mode: int) -> None:
    """In place, in one write: the checksum tells a reader when it saw half of it."""
    data = msgspec.msgpack.encode(info)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        if mode != 0o600 and os.fstat(fd).st_size == 0:  # new, so the umask has had its way with it
            os.chmod(fd, mode)
        os.pwrite(fd, len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data, 0)
    finally:
        os.close(fd)


def _read_info(path: str) -> WorkerInfo | None:
    for _ in range(3):
        try:
            with open(path, "rb", buffering=0) as file:
                raw = file.read()
        except (FileNotFoundError, IsADirectoryError):
            return None
        data = raw[8 : 8 + int.from_bytes(raw[:4], "little")]
        if len(raw) > 8 and zlib.crc32(data) == int.from_bytes(raw[4:8], "little"):
            return msgspec.msgpack.decode(data, type=WorkerInfo)
    return None
