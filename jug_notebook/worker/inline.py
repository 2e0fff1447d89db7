"""A worker in this very process: tasks run one after another, where a debugger and an interrupt reach them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from jug_notebook import system
from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.errors import WaitInterrupted
from jug_notebook.model import Claim, Settlement, Target, WorkerInfo
from jug_notebook.render import plural
from jug_notebook.store import Store
from jug_notebook.worker.capture import ThreadCapture, listen_no_more
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.loop import work
from jug_notebook.worker.slot import SharedStatus


def work_here(
    store: Store,
    seal: Seal,
    clock: Clock,
    in_process: list[Callable[[], WorkerInfo]],
    target: Target | None,
    max_tasks: int | None,
    max_time: float | None,
    stop: Callable[[], bool] | None = None,
    each: Callable[[TaskRunner, Claim], Settlement | None] = TaskRunner.attempt,
) -> int:
    """Work until nothing is left that can run, or others run; answer how many tasks ran.

    Whoever beats for this process beats for the ``guests`` too. Raises WaitInterrupted on Ctrl-C.
    """
    slot = SharedStatus()
    me = system.me("worker", clock)

    def said() -> WorkerInfo:
        running = slot.read()
        if running is None:
            return msgspec.structs.replace(me, done=slot.done)
        return msgspec.structs.replace(
            me, task=running.lease.key, task_name=running.name, since=running.started, done=slot.done
        )

    store.renew([me])
    in_process.append(said)
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
            listener=ThreadCapture(echo=True),
            in_process=True,
        )
    except KeyboardInterrupt:
        ran = f"{plural(slot.done)} ran"
        raise WaitInterrupted(f"interrupted: {ran}; the one that was running was given back") from None
    finally:
        in_process.remove(said)
        listen_no_more()
        store.leave([me.id])
