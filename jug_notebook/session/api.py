"""The verbs of ``jug_notebook`` as plain functions: each acts on the session in use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from jug_notebook.session.access import resolve_url
from jug_notebook.session.connection import current, using
from jug_notebook.session.session import Session

if TYPE_CHECKING:
    from jug_notebook.session.copy import Copied

P = ParamSpec("P")
R = TypeVar("R")


def _verb(method: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """The method of the session in use, with its signature (but for ``self``) and docstring."""

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
    from jug_notebook.session.copy import copy as copy_store

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
