"""``memory:``, a store inside one process: workers are its threads, and nothing survives it. For trials and tests."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Collection, Iterable, Sequence

import msgspec
from blake3 import blake3

from jug_notebook.clock import Clock
from jug_notebook.errors import StoreError, ValueLost
from jug_notebook.model import Address, Event, Order, WorkerId, WorkerInfo
from jug_notebook.scheduler.records import Offer, Place
from jug_notebook.store import keyring, read_orders
from jug_notebook.store.event_log import EventLogStore, places_of
from jug_notebook.store.scratch import MemoryScratch

_OPEN: dict[str, MemoryStore] = {}


def open(rest: str, clock: Clock) -> MemoryStore:
    """Return the store of that name in this process; ``memory:`` and ``memory:name`` are two stores."""
    store = _OPEN.get(rest)
    if store is None:
        store = _OPEN[rest] = MemoryStore(rest, clock)
    return store


def exists(rest: str) -> bool:
    """Raise StoreError: only this process could tell."""
    raise StoreError(f"'memory:{rest}' lives in the process that made it; no other can look into it")


def absolute(rest: str) -> str:
    """Return the URL as it is."""
    return f"memory:{rest}"


DOZE = 0.002  #: seconds between two looks at a descriptor


class MemoryStore(EventLogStore):
    """An event log in memory: no other process reads it."""

    def __init__(self, name: str, clock: Clock) -> None:
        super().__init__(clock)
        self.url = self.display_url = f"memory:{name}"
        self.id = os.urandom(16).hex()
        keyring.secret(self.id, make=True, lasting=False)
        self._name = name
        self._changed = threading.Condition(self._lock)
        self._bodies_kept: list[bytes] = []
        self._events: list[tuple[Event, Sequence[Place]]] = []
        self._blobs: dict[Address, bytes] = {}
        self._touched: dict[Address, float] = {}
        self.scratch = MemoryScratch()
        self._processes: dict[WorkerId, WorkerInfo] = {}
        self._heartbeats: dict[WorkerId, float] = {}
        self._left: set[WorkerId] = set()
        self._orders: dict[WorkerId, list[Order]] = {}
        self._logs: dict[WorkerId, list[str]] = {}

    def _append(self, event: Event, bodies: Sequence[bytes] = ()) -> Sequence[Place]:
        self._changed.notify_all()
        first = len(self._bodies_kept)
        self._bodies_kept += bodies
        places = range(first, len(self._bodies_kept))
        self._events.append((event, places))
        return places

    def _poll(self) -> None:
        """No other process writes events."""

    def _rewind(self) -> None:
        self._scheduler.apply_all(self._events)

    def _win(self, worker: WorkerId, offers: Sequence[Offer]) -> list[bool]:
        return [True] * len(offers)  # this thread has the lock

    def _read(self, places: Sequence[Place]) -> list[bytes]:
        return [self._bodies_kept[place] for place in places]

    def watch(self, seen: int, timeout: float, descriptor: int = -1) -> int:
        with self._changed:
            if descriptor < 0:
                self._changed.wait_for(lambda: self._scheduler.version != seen, timeout)
                return self._scheduler.version
            until, readable = time.monotonic() + timeout, select.poll()
            readable.register(descriptor, select.POLLIN)
            while self._scheduler.version == seen and not readable.poll(0):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, DOZE))
            return self._scheduler.version

    def sync(self) -> None:
        """Nothing here outlives the process."""

    def _commit(self, busy: float | None) -> None:
        """Likewise."""

    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        with self._changed:
            for info in processes:
                if info.id not in self._left:
                    beat = self._processes[info.id].beat + 1 if info.id in self._processes else 1
                    self._processes[info.id] = msgspec.structs.replace(info, beat=beat)
                    self._heartbeats[info.id] = self._clock.monotonic()
            first = processes[0].id if processes else ""
            orders = map(msgspec.msgpack.encode, self._orders.pop(first, []))
            return read_orders(orders, lambda text: self.notice(first, text))

    def leave(self, processes: Sequence[WorkerId]) -> None:
        with self._lock:
            self._left.update(processes)
            super().leave(processes)

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        with self._lock:
            now = self._clock.monotonic()
            return [
                (info, process not in self._left, now - self._heartbeats[process])
                for process, info in self._processes.items()
            ]

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        with self._changed:
            for supervisor in supervisors:
                self._orders.setdefault(supervisor, []).append(order)
            self._scheduler.version += 1
            self._changed.notify_all()

    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        data = b"".join(parts)
        address = blake3(data).hexdigest(length=20)
        with self._lock:
            self._blobs[address] = data
            self._touched[address] = self._clock.monotonic()
        return address

    def get_blob(self, address: Address, mapped: bool = False) -> memoryview:
        try:
            return memoryview(self._blobs[address])
        except KeyError:
            raise ValueLost(f"blob {address[:12]} is not in {self.display_url}") from None

    def _sweep_blobs(self, keep: Collection[Address], older_than: float, dry_run: bool) -> tuple[int, int]:
        with self._lock:
            before = self._clock.monotonic() - older_than
            old = [name for name, at in self._touched.items() if at <= before and name not in keep]
            size = sum(len(self._blobs[name]) for name in old)
            if not dry_run:
                for name in old:
                    del self._blobs[name], self._touched[name]
            return len(old), size

    def _size(self, place: Place) -> int:
        return len(self._bodies_kept[place])

    def compact(self, dry_run: bool = False) -> int:
        if dry_run:
            return 0
        with self._lock:
            self._scheduler.history.drop_past()
            used = {place for task in self._scheduler.tasks.values() for place in places_of(task)}
            used |= self._scheduler.reuse.places()
            saved = 0
            for place, body in enumerate(self._bodies_kept):
                if place not in used:
                    saved += len(body)
                    self._bodies_kept[place] = b""
            return saved

    def notice(self, process: WorkerId, text: str) -> None:
        self._logs.setdefault(process, []).append(text)

    def log(self, process: WorkerId) -> str:
        return "".join(self._logs.get(process, ()))

    def close(self) -> None:
        _OPEN.pop(self._name, None)
