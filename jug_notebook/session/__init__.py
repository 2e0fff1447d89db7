"""A store as a notebook or a script uses it: connect to one, and submit, watch, fetch and change its tasks.

Here: the session in use, and the verbs of ``jug_notebook`` as functions that act on that session.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from jug_notebook.errors import ChangedInCell, StoreError, StoreGone
from jug_notebook.session.access import notebook_folder, notebook_path, resolve_url
from jug_notebook.session.session import OPEN_SESSIONS, Session
from jug_notebook.session.submission import CellReport
from jug_notebook.store import absolute
from jug_notebook.task import context

if TYPE_CHECKING:
    from jug_notebook.session.maintenance import Copied

P = ParamSpec("P")
R = TypeVar("R")

_current: Session | None = None


def connect(
    url: str | Path = "jugdata",
    *,
    shared: str | None = None,
    notebook: str | Path | None = None,
    headless: bool = False,
) -> Session:
    """Use the store at ``url``: a folder, made if it's new, ``redis://…`` or ``memory:``.

    ``shared="group"``: all members of the group that the folder belongs to use it, each with notebooks and workers of
    their own. They can run code as each other.

    A relative folder is taken from the notebook's folder. Tasks made from now on go there; handles of another store go
    on reading theirs. Connecting twice returns the same session, unless the store was removed since: then a new store
    is made. Raises StoreError.
    """
    global _current
    path = notebook_path(notebook)
    before = None if _current is None or _close_if_gone(_current) else _current
    if before is not None and not before.closed:
        before.submissions.flush()
        same = before.url == absolute(resolve_url(url, notebook_folder(path))) and before.notebook == path
        if same and shared is None:
            before.workers.headless = before.workers.headless or headless
            context.set_current(before)
            return before
    _current = Session(url, notebook=notebook, headless=headless, shared=shared)
    context.set_current(_current)
    return _current


def current() -> Session:
    """Return the session in use; if there is none, connect to ``$JUG_STORE``, or ``jugdata``. Raises StoreError."""
    if _current is None or _current.closed:
        return connect(os.environ.get("JUG_STORE") or "jugdata")
    return _current


def using() -> Session | None:
    """Return the session in use; None if there is none."""
    return None if _current is None or _current.closed else _current


def _close_if_gone(session: Session) -> bool:
    """Return True if there is another store, or none, where the session's was; the session is closed then."""
    if session.closed:
        return False
    try:
        session.access.store.check()
    except StoreGone:
        with suppress(StoreError, OSError, ChangedInCell):  # what was left to submit is lost with the store
            session.close()
        return True
    return False


@atexit.register
def _close_all() -> None:
    for session in list(OPEN_SESSIONS):
        try:
            session.close()
        except (StoreError, OSError, ChangedInCell) as error:
            print(f"jug_notebook: the session of {session.display_url} could not be closed: {error}", file=sys.stderr)


context.on_first_need(current)


def _verb(method: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Return a function that calls the session in use, with the method's signature (but for ``self``) and docstring."""

    @functools.wraps(method)
    def verb(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(current(), *args, **kwargs)

    signature = inspect.signature(method)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    verb.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    verb.__module__, verb.__qualname__ = "jug_notebook", method.__name__
    return verb


execute = _verb(Session.execute)
barrier = _verb(Session.barrier)
stop = _verb(Session.stop)

status = _verb(Session.status)
tasks = _verb(Session.tasks)
graph = _verb(Session.graph)
history = _verb(Session.history)
log = _verb(Session.log)
why = _verb(Session.why)
verify = _verb(Session.verify)
resolve = _verb(Session.resolve)

retry = _verb(Session.retry)
invalidate = _verb(Session.invalidate)
accept = _verb(Session.accept)
cancel = _verb(Session.cancel)
cleanup = _verb(Session.cleanup)


def copy(src: str | Path | Session, dst: str | Path | Session) -> Copied:
    """Copy all of a store into another, of any kind; what is there already is not copied again.

    Relative paths are taken from the notebook's folder. Return a `Copied`: how many tasks, results, failures, blobs
    and bytes were copied. Raises StoreError.
    """
    from jug_notebook.session.maintenance import copy as copy_store

    session = using()
    folder = Path.cwd() if session is None else session.folder
    if session is not None:
        session.submissions.flush()
    urls = []
    for end in (src, dst):
        if isinstance(end, Session):
            end.submissions.flush()
            urls.append(end.url)
        else:
            urls.append(resolve_url(end, folder))
    return copy_store(urls[0], urls[1])


__all__ = ["CellReport", "Session", "connect", "current", "resolve_url", "using"]
