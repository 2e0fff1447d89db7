"""Crews, as their supervisors and those who give them orders see them; an order goes through the store and is not lost.

A supervisor reads its orders with each heartbeat. Before it ends it leaves its crew, in a heartbeat as well: an order
from before that is obeyed still, and whoever gives one sees afterwards whether it came in time (`engage`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress

from jug_notebook import system
from jug_notebook.model import Order, Scale, WorkerId, WorkerInfo
from jug_notebook.store import Store

WAKE = getattr(signal, "SIGURG", None)  #: "look at your orders"; a process that does not listen for it isn't harmed


def living(store: Store, crew: str) -> list[WorkerInfo]:
    """Return the live supervisors of a crew."""
    return [info for info, alive, _ in store.processes() if alive and info.kind == "supervisor" and info.crew == crew]


def send_order(store: Store, supervisors: Sequence[WorkerInfo], order: Order) -> None:
    """Order, so that supervisors of this host act at once, others with their next heartbeat."""
    store.order([info.id for info in supervisors], order)
    for info in supervisors:
        wake(info)


def engage(store: Store, find: Callable[[], Sequence[WorkerInfo]], order: Order) -> WorkerInfo | None:
    """Give an order to the first supervisor that ``find`` returns and that stays to obey it.

    Returns what was known of it before; None where there is none, or the last one was just ending.
    """
    given: dict[WorkerId, WorkerInfo] = {}
    while found := find():
        if staying := [given[info.id] for info in found if info.id in given]:
            return staying[0]
        given[found[0].id] = found[0]
        send_order(store, found[:1], order)
    return None


def wake(info: WorkerInfo) -> None:
    """Make a supervisor of this host look at its orders now. Others see them with their next heartbeat."""
    if WAKE is not None and info.pid != os.getpid() and system.running(info):
        with suppress(ProcessLookupError, PermissionError):  # it has just ended; or another user's
            os.kill(info.pid, WAKE)


def first_of_crew(
    crew: str, me: WorkerInfo, processes: Iterable[tuple[WorkerInfo, bool, float]], beats: dict[WorkerId, int]
) -> WorkerInfo:
    """Return, of all live supervisors of one crew, the one that stays: the oldest.

    One of another machine counts once it has been seen to beat, for its record may be all that a crash left of it.
    ``beats`` keeps, from call to call, the heartbeats that were seen first.
    """
    rivals = [
        info
        for info, alive, _ in processes
        if alive and info.kind == "supervisor" and info.crew == crew
        if system.running(info) or beats.setdefault(info.id, info.beat) != info.beat
    ]
    return min([*rivals, me], key=lambda info: (info.started, info.id))


class Neighbours:
    """The other processes of a store, as a supervisor looks at them.

    ``tolerated`` makes a context in which the store may be away; then nobody is known to have come or gone.
    """

    def __init__(self, store: Store, me: WorkerInfo, tolerated: Callable[[], AbstractContextManager[None]]) -> None:
        self._store = store
        self._me = me
        self._tolerated = tolerated
        self._beats: dict[WorkerId, int] = {}  # see `first_of_crew`
        self._attended = False  # was there a session at the last census?
        self._next_census = 0.0

    def take_over(self, size: int) -> bool:
        """Is another supervisor of our crew on this store already? Then it is told to have our workers."""
        if not self._me.crew:
            return False
        with self._tolerated():
            return engage(self._store, self._elder, Scale(size, at_least=True)) is not None
        return False

    def _elder(self) -> list[WorkerInfo]:
        first = first_of_crew(self._me.crew, self._me, self._store.processes(), self._beats)
        return [] if first.id == self._me.id else [first]

    def is_alive(self, session: WorkerId) -> bool:
        """Is that session open?"""
        with self._tolerated():
            return any(alive and info.id == session for info, alive, _ in self._store.processes())
        return True

    def is_attended(self, now: float, every: float) -> bool:
        """Is any session open? It is looked up every so many seconds, for that reads a file of each host."""
        if now >= self._next_census:
            self._next_census = now + every
            self._attended = any(alive and info.kind == "session" for info, alive, _ in self._store.processes())
        return self._attended
