"""Where loading a script stops until tasks are done; it is loaded again then."""

from __future__ import annotations

from typing import Any

from jug_notebook.compat.jug import task
from jug_notebook.model import State
from jug_notebook.task.handles import Handle
from jug_notebook.task.values import tasks_in

__all__ = ["BarrierError", "barrier", "bvalue"]


class BarrierError(Exception):
    """The script can't go on yet."""


def barrier() -> None:
    """Go on once all tasks made so far are done."""
    if not done(task.alltasks):
        raise BarrierError


def bvalue(t: Any) -> Any:
    """The value; go on once it is there."""
    if not done(needed(t)):
        raise BarrierError
    return task.value(t)


def done(tasks: list[Any]) -> bool:
    """Have all of these tasks values?"""
    keys = list(dict.fromkeys(one.key for one in tasks))
    return not keys or all(state is State.FINISHED for state in task.Task.store.session.known(keys))


def needed(x: Any) -> list[Handle]:
    """The tasks without which `value` can't tell what ``x`` is worth."""
    from jug_notebook.compat.jug.io import NoLoad

    return [handle for handle in tasks_in(x) if not isinstance(handle, NoLoad)]
