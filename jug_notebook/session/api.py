"""The verbs as plain functions: each acts on the session in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jug_notebook.model import State
from jug_notebook.render.display import GraphPicture, History, Listing, Status, Why
from jug_notebook.session.accept import Accepted
from jug_notebook.session.cleanup import Cleaned
from jug_notebook.session.connection import current, using
from jug_notebook.session.rerun import Verified
from jug_notebook.session.session import Session, resolve_url
from jug_notebook.task.values import TaskList

if TYPE_CHECKING:
    from jug_notebook.launch import Crew
    from jug_notebook.session.copy import Copied


def execute(
    workers: int | None = None,
    *,
    hosts: Iterable[str | Path] = (),
    on: Any = None,
    wait: bool = False,
    target: Any = None,
    max_tasks: int | None = None,
    max_time: float | None = None,
    idle_timeout: float = 600,
    keep_going: bool = True,
    memory_limit: int | None = None,
    python: str | None = None,
    setup: str | None = None,
    remote_dir: str | None = None,
    dry_run: bool = False,
    here: bool = False,
) -> Crew:
    """Start workers in the background: see `Session.execute`. Raises LaunchError."""
    return current().execute(
        workers,
        hosts=hosts,
        on=on,
        wait=wait,
        target=target,
        max_tasks=max_tasks,
        max_time=max_time,
        idle_timeout=idle_timeout,
        keep_going=keep_going,
        memory_limit=memory_limit,
        python=python,
        setup=setup,
        remote_dir=remote_dir,
        dry_run=dry_run,
        here=here,
    )


def barrier() -> None:
    """Wait until nothing of this notebook waits or runs. Raises NoWorkers where nobody works, WaitInterrupted."""
    current().barrier()


def status(all: bool = False) -> Status:
    """The picture now: this notebook's tasks, or with ``all`` the whole store's. Raises StoreError."""
    return current().status(all)


def tasks(target: Any = None, state: State | str | None = None, limit: int = 50) -> Listing:
    """Tasks of this notebook, or of a target, to look at. Raises NoSuchTask."""
    return current().tasks(target, state, limit)


def graph(target: Any = None, all: bool = False) -> GraphPicture:
    """Which functions need which, and how far each is: this notebook's, or with ``all`` the whole store's.

    With a target: of these tasks and what they need. Raises NoSuchTask.
    """
    return current().graph(target, all)


def history(all: bool = False, limit: int = 50) -> History:
    """Who ran what when, latest first: this notebook's tasks, or with ``all`` the whole store's."""
    return current().history(all, limit)


def verify(target: Any, fraction: float = 0.01) -> Verified:
    """Compute a sample of finished tasks again, here, and compare: true where all came out equal. Raises NoSuchTask."""
    return current().verify(target, fraction)


def log(target: Any = None, host: str | None = None) -> str:
    """What tasks printed, with tracebacks; with ``host``, what the workers there said. Raises NoSuchTask."""
    return current().log(target, host)


def why(target: Any) -> Why:
    """Are these tasks stored; and where not, what changed since the nearest that are? Raises NoSuchTask."""
    return current().why(target)


def stop(now: bool = False, host: str | None = None) -> int:
    """Stop workers after their current task, or ``now``. Answers how many were told."""
    return current().stop(now, host)


def retry(target: Any = None) -> int:
    """Try failed tasks again. Answers how many. Raises NoSuchTask."""
    return current().retry(target)


def invalidate(target: Any) -> int:
    """These values are wrong: compute them again, and what was made from them. Answers how many. Raises NoSuchTask."""
    return current().invalidate(target)


def accept(target: Any, undo: bool = False, dry_run: bool = False) -> Accepted:
    """The code was edited and its former results stand: see `Session.accept`. Raises NoSuchTask."""
    return current().accept(target, undo, dry_run)


def cancel(target: Any) -> int:
    """Take back tasks that have not started. Answers how many. Raises NoSuchTask."""
    return current().cancel(target)


def cleanup(older_than: float | None = None, dry_run: bool = False, target: Any = None) -> Cleaned:
    """Forget the tasks that nobody wants any more, with what only they had stored: see `Session.cleanup`."""
    return current().cleanup(older_than, dry_run, target)


def copy(src: str | Path | Session, dst: str | Path | Session) -> Copied:
    """Copy all of a store into another, of any kind; copying twice is copying once. Raises StoreError.

    Relative paths are taken from the folder of the notebook.
    """
    from jug_notebook.session.copy import copy as copied

    session = using()
    folder = Path.cwd() if session is None else session.folder
    if session is not None:
        session.flush()
    ends = []
    for end in (src, dst):
        if isinstance(end, Session):
            end.flush()
            ends.append(end.url)
        else:
            ends.append(resolve_url(end, folder))
    return copied(ends[0], ends[1])


def resolve(target: Any, namespace: Mapping[str, Any] | None = None) -> TaskList:
    """The tasks meant by an expression, a function's name, the beginning of a key, or /regex/. Raises NoSuchTask."""
    return TaskList(current().resolve(target, namespace))
