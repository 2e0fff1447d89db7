"""What is to be done once in a store, whoever does it, and by another where who began it has died: a notification.

Such a thing has a name of the form of a task's key, and no task. It is claimed, and recorded as done, as a task is.
"""

from __future__ import annotations

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.model import NO_INPUTS, Claimed, Key, Lease, Settlement, Verdict, WorkerId
from jug_notebook.scheduler.records import Offer
from jug_notebook.store.event_log import EventLogStore
from jug_notebook.store.sealing import Seal

DONE = b"done"


class NotNow(Exception):
    """Nothing can be claimed at this moment: try again."""


def is_done(store: EventLogStore, name: Key) -> bool:
    """Return whether it is recorded as done."""
    with store._updated() as scheduler:
        task = scheduler.tasks.get(name)
        return task is not None and bool(task.records)


def begin(store: EventLogStore, name: Key, process: WorkerId) -> Lease | None:
    """Claim it for a process whose heartbeats the store gets. Return None where it is done, or another is at it.

    Raises NotNow, StoreError.
    """
    with store._updated() as scheduler:
        task = scheduler.tasks.get(name) or scheduler._record(name)
        last = max(task.attempts or (), key=lambda attempt: attempt.attempt, default=None)
        if task.records or (last and not last.released and scheduler.leases.lives(last.worker or last.owner)):
            return None
        lease = Lease(name, 0, NO_INPUTS, 1 if last is None else last.attempt + 1)
        if not store._win(process, [Offer(task, lease, 0, 0, (task,))])[0]:
            return None
        store._record(Claimed(process, [lease]))
        store.sync()
        return lease


def finish(store: EventLogStore, lease: Lease, process: WorkerId, seal: Seal, clock: Clock = CLOCK) -> None:
    """Record that it is done, for good."""
    verdict = Verdict(lease.key, lease.round, lease.inputs, lease.attempt, DONE, clock.now())
    body = seal.seal("done", lease.key, lease.round, lease.inputs, DONE)
    store.claim(process, 0, 0.0, [Settlement(verdict, body)])
    store.sync()
