"""The session in use, and how to connect to a store."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from jug_notebook.errors import ChangedInCell, StoreError
from jug_notebook.session.access import notebook_folder, notebook_path, resolve_url
from jug_notebook.session.session import OPEN_SESSIONS, Session
from jug_notebook.store import absolute
from jug_notebook.task import context

_current: Session | None = None


def connect(
    url: str | Path = "jugdata",
    *,
    shared: str | None = None,
    notebook: str | Path | None = None,
    headless: bool = False,
) -> Session:
    """Use the store at ``url``: a folder, made if it's new, ``redis://…`` or ``memory:``.

    ``shared="group"``: everybody in the group that the folder belongs to works with it, each with notebooks and workers
    of their own. They can run code as each other.

    A relative folder is one in the notebook's folder. Tasks made from now on go there; handles of another store go on
    reading theirs. Connecting twice is one session.
    Raises StoreError.
    """
    global _current
    path = notebook_path(notebook)
    before = _current
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
    """The session in use; the first need connects to ``$JUG_STORE``, or ``jugdata``. Raises StoreError."""
    if _current is None or _current.closed:
        return connect(os.environ.get("JUG_STORE") or "jugdata")
    return _current


def using() -> Session | None:
    """The session in use, where there is one; asking makes none."""
    return None if _current is None or _current.closed else _current


@atexit.register
def _close_all() -> None:
    for session in list(OPEN_SESSIONS):
        try:
            session.close()
        except (StoreError, OSError, ChangedInCell) as error:
            print(f"jug_notebook: the session of {session.display_url} could not be closed: {error}", file=sys.stderr)


context.on_first_need(current)
