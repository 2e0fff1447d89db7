"""A jugfile's tasks in a notebook: loaded there, with the handles that a notebook has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jug_notebook.compat import commands, jugdir, loading
from jug_notebook.compat.jug import mapreduce, task
from jug_notebook.errors import JugError
from jug_notebook.session import Session
from jug_notebook.task import TaskFunction, handles
from jug_notebook.task.values import TaskList


class NotLoaded(JugError):
    """A jugfile could not be loaded."""


class Brought(NamedTuple):
    """What a jugfile comes to in a notebook."""

    names: dict[str, Any]  #: what it defines: tasks as handles, task generators as task functions
    tasks: TaskList
    session: Session
    barrier: bool  #: did it stop at one?


def bring(jugfile: str, jugdir_: str | None, arguments: Sequence[str], connect: Callable[[str], Session]) -> Brought:
    """Load a jugfile; its store is opened by ``connect``. What the script raises is raised."""
    given = argparse.Namespace(jugfile=jugfile, jugdir=jugdir_, user_args=list(arguments))
    options = commands.settled("import", given)
    try:
        with commands.serving(options, read_only=False, connect=connect):
            space = loading.load(jugfile, "propagate")
            session: Session = task.Task.store.session
            made = TaskList(one.task for one in task.alltasks)
            names = {
                name: _ours(held) for name, held in space.items() if not name.startswith("_") and not _is_jugs(held)
            }
    except SystemExit as ended:
        raise NotLoaded(f"{jugfile} ended itself, or isn't there: {ended}") from ended
    return Brought(names, made, session, loading.BARRIER in space)


def _is_jugs(held: Any) -> bool:
    home = getattr(held, "__module__", None) or getattr(held, "__name__", "")
    return isinstance(held, type | type(_ours) | type(task)) and str(home).startswith("jug_notebook.compat")


def _ours(held: Any) -> Any:
    """The same as a notebook has it."""
    if isinstance(held, task.Task):
        return held.task
    if isinstance(held, task.Tasklet):
        base = _ours(held.base)
        return base[_ours(held.f.slice)] if type(held.f) is task._getitem else handles.Tasklet(base, held.f)
    if isinstance(held, task.TaskGenerator):
        return TaskFunction(held.f, runner=jugdir.RUNNER)
    if isinstance(held, mapreduce.block_access):
        return TaskList(_ours(item) for item in held)
    if isinstance(held, task.iteratetask):
        return [_ours(held[i]) for i in range(len(held))]
    if type(held) is list and held and all(isinstance(item, task.TaskletMixin) for item in held):
        return TaskList(map(_ours, held))
    if type(held) in (list, tuple):
        return type(held)(map(_ours, held))
    if type(held) is dict:
        return {key: _ours(item) for key, item in held.items()}
    return held
