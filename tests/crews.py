"""Workers for tests: threads that run a session's tasks; and what is tried with each way to start others."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.model import State
from jug_notebook.session import Session
from jug_notebook.session import _use as session_in_use
from jug_notebook.session.access import use_mirror
from jug_notebook.store import Store, keyring
from jug_notebook.worker import loop, status
from tests.servers import Receiver
from tests.workbench import cell, wait_until


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


SECRET = "a-token-that-nobody-sees"


def sends_one_line(
    session: Session, receiver: Receiver, start: Callable[[str], object], elsewhere: Iterable[Path] = ()
) -> None:
    """Have workers that ``start`` starts notify of six tasks: once, and no file or process shows where.

    ``elsewhere``: folders to look into, besides the session's.
    """
    twice = jn.task(cell("def twice(x): return 2 * x", "twice"))
    results = twice.map(range(6))
    start(receiver.url(SECRET))
    assert results.result(timeout=60) == [0, 2, 4, 6, 8, 10]
    [line] = receiver.wait_for(1, 60.0)
    assert line.startswith("jug_notebook: 6 done, ")
    visible = shows_secret("/proc/*/cmdline", "/proc/*/environ")
    for crew in session.workers.crews:
        crew.stop()
    store = session.access.store
    until_no_supervisor(store)
    assert len(receiver.got) == 1, "each supervisor looked once more as it ended"
    visible += shows_secret(*(f"{folder}/**" for folder in (session.folder, *elsewhere)))
    assert visible == []
    assert SECRET not in "".join(store.log(info.id) for info, _, _ in store.processes())


def until_no_supervisor(store: Store) -> None:
    """Wait until all supervisors have ended, and those that send for them."""
    kinds = {"supervisor", "notifier"}
    wait_until(
        store, lambda: not any(alive and info.kind in kinds for info, alive, _ in store.processes()), patience=60.0
    )


def shows_secret(*patterns: str) -> list[str]:
    """Return the files that hold it, of those that match and can be read."""
    found = []
    for path in (path for pattern in patterns for path in glob.glob(pattern, recursive=True, include_hidden=True)):
        with suppress(OSError):
            if SECRET.encode() in Path(path).read_bytes():
                found.append(path)
    return found


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
