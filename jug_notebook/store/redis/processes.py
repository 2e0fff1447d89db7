"""The processes that use a store in a Redis server: their heartbeats, the orders that they get, and their logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from jug_notebook import system
from jug_notebook.model import Order, WorkerId, WorkerInfo
from jug_notebook.scheduler.views import LATELY
from jug_notebook.store import read_heartbeat, read_orders
from jug_notebook.store.redis.connection import NOTHING, Connection, understood
from jug_notebook.store.redis.frames import NOTED
from jug_notebook.store.sealing import EventSeal, with_mac, without_mac

AWAY = 5.0  #: seconds without any heartbeat after which the server itself has been away
DAY = 86_400  #: seconds for which orders are kept
NUMBER = 8  #: bytes of the number of an order


class Processes:
    """The processes of one store."""

    def __init__(self, connection: Connection, seal: Callable[[], EventSeal | None]) -> None:
        self.notes: dict[str, None] = {}  #: what was skipped, one line each
        self._connection = connection
        self._seal = seal
        self._taken: set[int] = set()  # numbers of orders
        self._former: list[tuple[WorkerInfo, bool, float]] = []
        self._last_orders: dict[WorkerId, bytes] = {}

    @understood
    def read(self, after_grace: bool = False) -> tuple[list[tuple[WorkerInfo, bool, float]], list[WorkerId]]:
        """Return all processes, and those of this machine that have ended without a word.

        With ``after_grace``, those silent for long are alive if the server was just away.
        """
        key = self._connection.key
        time, tick, grace, infos, beats, left = self._connection.pipeline(
            [
                ("TIME",), ("GET", key("tick")), ("EXISTS", key("grace")), ("HGETALL", key("info")),
                ("ZRANGE", key("beats"), 0, -1, "WITHSCORES"), ("HGETALL", key("left")),
            ]
        )  # fmt: skip
        now = int(time[0]) + int(time[1]) / 1e6
        spared = after_grace and bool(grace or now - float(tick or 0) > AWAY)
        ages = {process: max(0.0, now - float(at)) for process, at in zip(beats[::2], beats[1::2], strict=True)}
        gone = {process for process, raw in zip(left[::2], left[1::2], strict=True) if self._has_left(process, raw)}
        found: list[tuple[WorkerInfo, bool, float]] = []
        ended: list[WorkerId] = []
        for process, raw in zip(infos[::2], infos[1::2], strict=True):
            age = ages.get(process)
            if age is None or (info := self._opened(process, raw)) is None:
                continue
            if process in gone:
                info = msgspec.structs.replace(info, size=0)
            elif system.running(info) is False:
                ended.append(info.id)
            alive = process not in gone and system.is_alive(info, 0.0 if spared else age)
            if alive or age < LATELY:
                found.append((info, alive, age))
        if self._connection.is_back:  # those that have not told a restarted server yet that they live
            known = {info.id for info, _, _ in found}
            found += [one for one in self._former if one[0].id not in known and one[0].id not in ended]
        self._former = found
        return sorted(found, key=lambda item: (item[0].started, item[0].id)), ended

    @understood
    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        """Send heartbeats; return the orders that the first process got since the last time."""
        first = processes[0].id
        last = self._last_orders.get(first, NOTHING)
        rows = [part for info in processes for part in (info.id, self._sealed("heartbeat", info.id, 0, info))]
        orders = self._connection.run("beat", self._connection.id, last, *rows)
        if orders:
            self._last_orders[first] = orders[-1][0]
        opened = (self._opened_order(first, fields[1]) for _, fields in orders)
        return read_orders((data for data in opened if data), lambda text: self.notice(first, text))

    def _sealed(self, kind: str, name: str, number: int, content: object) -> bytes:
        return with_mac(self._seal(), kind, name, number, msgspec.msgpack.encode(content))

    def _opened(self, process: bytes, raw: bytes) -> WorkerInfo | None:
        """Return a heartbeat; None where nobody with the store's key has sent it under this name."""
        name = process.decode(errors="replace")
        data = without_mac(self._seal(), "heartbeat", name, 0, raw)
        if data is None:
            self._note(f"skipped the heartbeat of {name[:60]}, which isn't sealed with the store's key")
            return None
        info = read_heartbeat(data)
        return info if info is not None and info.id == name else None

    def _has_left(self, process: bytes, raw: bytes) -> bool:
        """Return whether someone with the store's key has noted that this process has ended."""
        name = process.decode(errors="replace")
        left = without_mac(self._seal(), "left", name, 0, raw) is not None
        if not left:
            self._note(f"skipped a note that {name[:60]} has ended, which isn't sealed with the store's key")
        return left

    def _opened_order(self, supervisor: WorkerId, raw: bytes) -> bytes:
        """Return an order; nothing if nobody with the store's key has given it to this supervisor, or it had it."""
        number = int.from_bytes(raw[:NUMBER], "big")
        if number in self._taken:
            return b""
        data = without_mac(self._seal(), "order", supervisor, number, raw[NUMBER:])
        if data is None:
            if self._note("skipped an order that nobody with the store's key has given"):
                self.notice(supervisor, "skipped an order that nobody with the store's key has given\n")
            return b""
        self._taken.add(number)
        return data

    def _note(self, text: str) -> bool:
        """Keep a note, at most `NOTED` of them; return whether it is new."""
        new = text not in self.notes and len(self.notes) < NOTED
        if new:
            self.notes[text] = None
        return new

    def leave(self, processes: Sequence[WorkerId]) -> None:
        """Note that these have ended."""
        rows = [part for process in processes for part in (process, self._sealed("left", process, 0, True))]
        self._connection.run("full", "HSET", self._connection.key("left"), *rows)

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        """Give supervisors an order."""
        key, full = self._connection.key, self._connection.though_full
        for supervisor in supervisors:
            number = time.time_ns()
            data = number.to_bytes(NUMBER, "big") + self._sealed("order", supervisor, number, order)
            name = key(f"orders:{supervisor}")
            self._connection.pipeline(
                [
                    full("XADD", name, "MAXLEN", "~", 1000, "*", "o", data),
                    ("EXPIRE", name, DAY),
                    full("XADD", key("log"), "*", "o", supervisor),
                ]
            )

    def notice(self, process: WorkerId, text: str) -> None:
        """Append to a process's log."""
        self._connection.run("notice", process, text.encode(errors="replace"))

    @understood
    def log(self, process: WorkerId) -> str:
        """Return the end of a process's log."""
        text: bytes = self._connection.command("GET", self._connection.key(f"log:{process}")) or b""
        return text[-(1 << 16) :].decode(errors="replace")
