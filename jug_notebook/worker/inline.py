"""A worker in this very process: tasks run one after another, where a debugger and an interrupt reach them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from jug_notebook import system
from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.errors import WaitInterrupted
from jug_notebook.model import Claim, Settlement, Target, WorkerInfo
from jug_notebook.store import Store
from jug_notebook.worker.capture import Overheard, listen_no_more
from jug_notebook.worker.execution import Bench
from jug_notebook.worker.loop import work
from jug_notebook.worker.slot import Slot


def work_here(
    store: Store,
    seal: Seal,
    clock: Clock,
    guests: list[Callable[[], WorkerInfo]],
    target: Target | None,
    max_tasks: int | None,
    max_time: float | None,
    stop: Callable[[], bool] | None = None,
    each: Callable[[Bench, Claim], Settlement | None] = Bench.attempt,
) -> int:
    """Work until nothing is left that can run, or others run; answer how many tasks ran.

    Whoever beats for this process beats for the ``guests`` too. Raises WaitInterrupted on Ctrl-C.
    """
    slot = Slot()
    me = system.me("worker", clock)

    def said() -> WorkerInfo:
        running = slot.read()
        if running is None:
            return msgspec.structs.replace(me, done=slot.done)
        return msgspec.structs.replace(
            me, task=running.grant.key, task_name=running.name, since=running.started, done=slot.done
        )

    store.renew([me])
    guests.append(said)
    try:
        return work(
            store,
            seal,
            me,
            slot,
            clock=clock,
            target=target,
            max_tasks=max_tasks,
            deadline=None if max_time is None else clock.monotonic() + max_time,
            until_idle=True,
            stop=stop,
            each=each,
            listener=Overheard(echo=True),
            guest=True,
        )
    except KeyboardInterrupt:
        ran = f"{slot.done} task{'s' * (slot.done != 1)} ran"
        raise WaitInterrupted(f"interrupted: {ran}; the one that was running was given back") from None
    finally:
        guests.remove(said)
        listen_no_more()
        store.leave([me.id])
