"""Orders to supervisors, given through the store so that none is lost.

A supervisor reads its orders with each heartbeat. Before it ends it leaves its crew, in a heartbeat as well: an order
from before that is obeyed still, and whoever gives one sees afterwards whether it came in time (`engage`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from jug_notebook import system
from jug_notebook.model import Order, WorkerId, WorkerInfo
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
