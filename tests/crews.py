"""Workers for tests: threads of this process that run a session's tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jug_notebook import system
from jug_notebook.session import Session
from jug_notebook.worker import loop, status


@contextmanager
def working(session: Session, workers: int = 1) -> Iterator[None]:
    """Within, workers run the tasks of a session's store; they end with the block."""
    store, seal = session.access.store, session.access.seal
    over = threading.Event()
    infos = [system.me("worker") for _ in range(workers)]
    threads = [
        threading.Thread(
            target=loop.work,
            args=(store, seal, info, status.SharedStatus()),
            kwargs={"stop": over.is_set, "wait": 0.05, "listener": None},
            daemon=True,
        )
        for info in infos
    ]
    store.renew(infos)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
        store.leave([info.id for info in infos])
