"""Workers for tests: threads of this process that run a session's tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.model import State
from jug_notebook.session import Session
from jug_notebook.session import _use as session_in_use
from jug_notebook.session.access import use_mirror
from jug_notebook.store import keyring
from jug_notebook.worker import loop, status
from tests.workbench import cell


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


def total_of_what_is_elsewhere(session: Session, folder: Path, start: Callable[[], object]) -> None:
    """Have workers that ``start`` starts run a task whose needs are in a mirror alone, which their account forgets."""
    large = jn.task(cell("def large(x): return bytes([x]) * 200_000", "large"))
    other = jn.connect(folder / "other", notebook=session.folder / "other.ipynb")
    with working(other):
        large.map(range(3)).result(timeout=60)
    url = f"file://{folder}/bucket"
    jn.copy(other, url)
    other.close()
    session_in_use(session)
    use_mirror(session.access.store, url, folder, accept_new=False)
    keyring.keep_also(session.access.store.id, "")
    total = jn.task(cell("def total(parts): return sum(map(len, parts))", "total"))(list(large.map(range(3))))
    session.submissions.flush()
    [state] = session.access.store.states([total.key])
    assert state is State.READY, "what it needs has come from the mirror"
    start()
    assert total.result(timeout=60) == 600_000
    assert len(session.access.store.runs()[0]) == 4, "three of another store, none of them lost here, and this one"
