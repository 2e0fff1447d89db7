"""Processes in a store's folder: their heartbeats, orders to supervisors, and what processes printed.

A heartbeat is a file ``workers/<process>`` that its process rewrites every second: a `WorkerInfo` with a rising number,
and, from a supervisor, one for each of its workers. A process of this machine is alive while its pid is there; another
one while its number keeps rising. That is timed by the reader's clock alone, so hosts' clocks may differ. What people
see of one that hasn't changed since the first look is as old as its file, by the file server's clock.

Heartbeats and orders are sealed with the store's key, each under its file's name. What isn't sealed, or isn't a file of
ours, is skipped and named once; only without the key, for looking at a store, heartbeats are taken as they are.
"""

from __future__ import annotations

import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress

import msgspec

from jug_notebook import system as process
from jug_notebook.clock import Clock
from jug_notebook.model import BEAT, LEASE, Order, WorkerId, WorkerInfo
from jug_notebook.scheduler.views import LATELY
from jug_notebook.store import read_heartbeats, read_orders
from jug_notebook.store.atomic import Folder, ForeignFile
from jug_notebook.store.file.claims import WORKER_ID
from jug_notebook.store.sealing import EventSeal, with_mac, without_mac

LOOK = LEASE / 10  #: seconds between two looks at the heartbeats of other machines' workers
MOST = 10_000  #: files in one folder that are looked at, besides those of processes that are known
LARGEST = 1 << 20  #: bytes of a heartbeat or order
NAMED = 20  #: files skipped that are named, each once


class Heartbeats:
    """Heartbeats, orders and logs of one store. Raises FileNotFoundError if the folder was removed.

    ``seal()`` returns the seal of the store, None while its key is unknown.
    """

    def __init__(self, root: Folder, clock: Clock, seal: Callable[[], EventSeal | None]) -> None:
        self._root = root
        self._workers, self._orders, self._output = root / "workers", root / "orders", root / "output"
        self._gone = self._workers / "gone"
        self._clock = clock
        self._seal = seal
        self._lock = threading.Lock()
        self._beats: dict[WorkerId, tuple[int, float]] = {}
        self._first: dict[WorkerId, tuple[int, float]] = {}  # the first seen, and when it was written
        self._written: dict[WorkerId, list[WorkerInfo]] = {}  # by this process, under the first one's name
        self._known: dict[WorkerId, tuple[str, WorkerInfo]] = {}  # the file of a process, and what was in it
        self._absent: set[WorkerId] = set()  # of those asked for at the last look
        self._next_look = 0.0
        self._orders_seen = 0
        self._taken: set[str] = set()  # orders that were carried out
        self._skipped: set[str] = set()  # files that a warning or notice has named
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
            self._read(self._names() if strangers else names)
            self._absent = strangers - self._known.keys()
        return {
            worker
            for worker in workers
            if (known := self._known.get(worker)) is None
            or not _holds_leases(known[1], now - self._last_change(known[1], now))
        }

    def _names(self) -> Sequence[str]:
        """Return the files with heartbeats. Where there are too many, those that are known come first."""
        names = self._workers.names(MOST + 1)
        if len(names) <= MOST:
            return names
        self._skip("workers", f"{self._workers.path} has more than {MOST:,} files, so not all new ones are read")
        return list(dict.fromkeys([name for name, _ in self._known.values()] + names))

    def _read(self, names: Iterable[str]) -> list[WorkerInfo]:
        """Return what is in these files."""
        found = []
        for name in names:
            if name != "gone":
                infos, written = self._read_file(self._workers, name)
                for info in infos:
                    self._known[info.id] = name, info
                    if info.id not in self._first:
                        age = max(0.0, self._server_time() - written)
                        self._first[info.id] = info.beat, self._clock.monotonic() - age
                    found.append(info)
        return found

    def _read_file(self, folder: Folder, name: str) -> tuple[list[WorkerInfo], float]:
        """Return the heartbeats in a file, and when it was written by the file server's clock; none if it isn't ours.

        The first one has the name of the file, the others are those of its workers.
        """
        if not WORKER_ID.fullmatch(name):
            self._skip(name, f"skipped {name!a} in {folder.path}: it isn't the name of a process")
            return [], 0.0
        for _ in range(3):
            try:
                raw, written = folder.read_with_time(name, LARGEST)
            except FileNotFoundError:
                break
            except OSError as error:
                self._skip(name, f"skipped the heartbeat of {name}: {error.strerror}")
                break
            data = raw[8 : 8 + int.from_bytes(raw[:4], "little")]
            if len(raw) > 8 and zlib.crc32(data) == int.from_bytes(raw[4:8], "little"):
                content = without_mac(self._seal(), "heartbeat", name, 0, data)
                if content is None:
                    self._skip(name, f"skipped the heartbeat of {name}, which isn't sealed with the store's key")
                    break
                infos = read_heartbeats(content)
                own = infos[:1] if infos and infos[0].id == name else []
                return own + [info for info in infos[1:] if own and WORKER_ID.fullmatch(info.id)], written
        return [], 0.0

    def _write_file(self, folder: Folder, name: str, infos: Sequence[WorkerInfo]) -> None:
        """Write in place, in one call. A reader that sees half of it notices by the checksum."""
        data = with_mac(self._seal(), "heartbeat", name, 0, msgspec.msgpack.encode(infos))
        folder.write(name, len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data)

    def _skip(self, name: str, text: str) -> None:
        if self._is_new(name):
            warnings.warn(text, stacklevel=2)

    def _is_new(self, name: str) -> bool:
        """Return whether a file that is skipped is to be named: the first time, and only some of very many."""
        new = name not in self._skipped and len(self._skipped) < NAMED
        if new:
            self._skipped.add(name)
        return new

    def _server_time(self) -> float:
        try:
            return self._root.server_time()
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
        """Return when its heartbeat last rose, by this process's clock."""
        with self._lock:
            beat, since = self._beats.get(info.id, (-1, now))
            if beat < info.beat:
                since = now
                self._beats[info.id] = (info.beat, now)
            return since

    def write(self, processes: Sequence[WorkerInfo]) -> None:
        """Write the heartbeats of a process, the first one, and of all its workers."""
        if processes:
            first = processes[0].id
            self._written[first] = list(processes)
            self._write_file(self._workers, first, processes)

    # -- orders --------------------------------------------------------------------------------------------------------

    def orders(self, supervisor: WorkerId) -> list[Order]:
        """Return the orders of a supervisor that it hasn't had yet, and remove them and what can't be read."""
        found: list[bytes] = []
        refused: list[str] = []
        for name in sorted(name for name in self._orders.names(MOST) if name.startswith(f"{supervisor}.")):
            try:
                data = self._order_in(supervisor, name)
            except FileNotFoundError:  # another thread of this supervisor was first
                continue
            except (OSError, ValueError):
                refused.append(name)
                data = b""
            with suppress(OSError):
                self._orders.unlink(name)
            if data and self._takes(name):
                found.append(data)
        if any(list(map(self._is_new, refused))):
            more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
            text = f"skipped an order that nobody with the store's key has given: {refused[0]!a}{more}\n"
            self.notice(supervisor, text)
        return read_orders(found, lambda text: self.notice(supervisor, text))

    def _order_in(self, supervisor: WorkerId, name: str) -> bytes:
        """Return the order in a file. Raises ValueError if it isn't sealed with the store's key under this name."""
        raw = self._orders.read(name, LARGEST)
        number = int(name[len(supervisor) + 1 :]) % (1 << 64)
        data = without_mac(self._seal(), "order", supervisor, number, raw)
        if data is None or name != _name_of_order(supervisor, number):
            raise ValueError(name)
        return data

    def _takes(self, name: str) -> bool:
        with self._lock:
            new = name not in self._taken
            self._taken.add(name)
        return new

    def orders_changed(self) -> bool:
        """Return True if there were orders since the last call. For systems without inotify."""
        seen = self._orders_seen
        with suppress(FileNotFoundError):  # the store was removed: other calls report that
            self._orders_seen = self._root.stat("orders").st_mtime_ns
        return seen != self._orders_seen

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        """Give an order to supervisors, those with a name that a process can have."""
        data = msgspec.msgpack.encode(order)
        for supervisor in filter(WORKER_ID.fullmatch, supervisors):
            number = time.time_ns()
            sealed = with_mac(self._seal(), "order", supervisor, number, data)
            self._orders.replace(_name_of_order(supervisor, number), sealed)

    # -- processes -----------------------------------------------------------------------------------------------------

    def retire(self, worker: WorkerId) -> None:
        """Move the heartbeat of a process that has ended out of the way."""
        for first, infos in self._written.items():
            last = [info for info in infos if info.id == worker]
            if last and first != worker:
                self._write_file(self._gone, worker, last)
                infos.remove(last[0])
                self._write_file(self._workers, first, infos)
                return
        if own := self._written.pop(worker, None):  # it leaves by itself, so it isn't one that died with its workers
            self._write_file(self._workers, worker, [msgspec.structs.replace(own[0], size=0), *own[1:]])
        try:
            self._workers.rename(worker, worker, self._gone)
            self._gone.touch(worker)
        except OSError:  # another process was first, the file is another user's, or nothing can be written
            return

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        """Return all processes, lately ended ones too: whether each is alive, and seconds since its last heartbeat."""
        now, today = self._clock.monotonic(), self._clock.now()
        found: list[tuple[WorkerInfo, bool, float]] = []
        for info in self._read(self._names()):
            silent = self._silence(info, now)
            alive = process.is_alive(info, silent)
            found.append((info, alive, silent))
            if not alive and process.running(info) is False and self._may_write():
                self.retire(info.id)
        listed = {info.id for info, _, _ in found}  # some of them were moved there just now
        for name in self._gone.names(MOST):
            with suppress(FileNotFoundError):
                age = today - self._gone.stat(name).st_mtime
                if age < LATELY:
                    ended = (info for info in self._read_file(self._gone, name)[0] if info.id not in listed)
                    found += [(info, False, max(0.0, age)) for info in ended]
        return sorted(found, key=lambda item: (item[0].started, item[0].id))

    # -- what processes printed ----------------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        seal = self._seal()
        return seal is not None and not seal.read_only

    def notice(self, process: WorkerId, text: str) -> None:
        """Append to a process's log."""
        self._output.append(f"{process}.log", text.encode(errors="replace"))

    def log(self, process: WorkerId) -> str:
        """Return the end of a process's log, 64 kB; empty if there is none."""
        try:
            return self._output.tail(f"{process}.log", 1 << 16).decode(errors="replace")
        except (FileNotFoundError, ForeignFile):
            return ""


def _name_of_order(supervisor: WorkerId, number: int) -> str:
    return f"{supervisor}.{number:020d}"


def _holds_leases(info: WorkerInfo, silent: float) -> bool:
    """``silent`` is for how many seconds its heartbeat hasn't changed; the age of its file doesn't count here."""
    running = process.running(info)
    return silent <= LEASE if running is None else running
