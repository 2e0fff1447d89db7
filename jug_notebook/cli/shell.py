"""``shell``: IPython with the tasks of a store, or with the names of a jugfile."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jug_notebook.cli import Arguments, existing, register
from jug_notebook.errors import JugError, NoSuchTask, clean

if TYPE_CHECKING:
    from jug_notebook.compat.jug.task import Task
    from jug_notebook.session import Session
    from jug_notebook.task.values import TaskList

BANNER = """\
{short}
tasks["f"]: the tasks of a function (Tab completes) · value(x): values, at any depth · get_tasks(failed=True)
invalidate, retry, cancel, why, log, status: of tasks or of a function's name · jn: all else · %jug_…: the magics
"""
JUGFILE_BANNER = """\
The names of {script}, and
    value(t)                    the value of a task, or of what holds tasks
    load_all()                  replaces all tasks by their values
    invalidate(t)               compute it and what depends on it again
    get_tasks()                 all tasks
    get_filtered_tasks(loadable=False, failed=False, available=False)
"""


# -- on a jugfile ------------------------------------------------------------------------------------------------------


def _shell_on_jugfile(arguments: Arguments) -> int:
    from jug_notebook.compat import loading

    options = loading.settled("shell", arguments)
    with loading.loaded(options, read_only=False) as space:
        from IPython.terminal.embed import InteractiveShellEmbed
        from IPython.terminal.ipapp import load_default_config

        script = options.jugfile
        load_config: Any = load_default_config
        make: Any = InteractiveShellEmbed
        embedded = make(config=load_config(), banner1=JUGFILE_BANNER.format(script=script))
        more = jugfile_names(lambda: embedded.user_ns)
        embedded(module=sys.modules[Path(script).name.removesuffix(".py")], local_ns={**space, **more})
    return 0


def jugfile_names(names: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the functions that a shell adds to a script's names, which ``names()`` returns."""
    from jug_notebook.compat.jug.task import Task, alltasks, value

    def load_all() -> None:
        """Replace each task that has a value by its value."""
        space = names()
        for name, held in list(space.items()):
            if name.startswith("__") or name in functions:
                continue
            try:
                space[name] = value(held)
            except JugError as error:
                print(f"{name}: {error}")

    def invalidate(t: Task) -> None:
        """Compute a task and what depends on it again."""
        Task.store.session.invalidate([t])
        t.unload()

    def get_tasks(copy: bool = True) -> list[Task]:
        """Return all tasks of the script."""
        return alltasks[:] if copy else alltasks

    def get_filtered_tasks(loadable: bool = False, failed: bool = False, available: bool = False) -> list[Task]:
        """Return the tasks that have a value, that failed, or that could run now, as asked for."""
        return [
            task
            for task in alltasks
            if (loadable and task.can_load())
            or (failed and task.is_failed())
            or (available and not task.can_load() and task.can_run())
        ]

    functions: dict[str, Any] = {
        each.__name__: each for each in (load_all, value, invalidate, get_tasks, get_filtered_tasks)
    }
    return functions


# -- on a store --------------------------------------------------------------------------------------------------------


@register("shell", "open IPython with the tasks loaded", "[STORE]", jugfile=_shell_on_jugfile)
def _shell(arguments: Arguments) -> int:
    from jug_notebook.store import absolute

    url = absolute(existing(arguments.of.url))
    os.environ["JUG_STORE"] = url  # what the extension connects to
    import IPython
    from traitlets.config import Config

    from jug_notebook import connect, render

    session = connect(url)
    config = Config()
    config.InteractiveShellApp.extensions = ["jug_notebook"]
    config.TerminalInteractiveShell.banner2 = BANNER.format(short=render.short(session.status(all=True).snapshot))
    try:
        IPython.start_ipython(argv=[], config=config, user_ns=names(session))
    finally:
        session.close()
    return 0


def names(session: Session) -> dict[str, Any]:
    """Return the names that the shell starts with. A function's name stands for its tasks in the whole store."""
    import jug_notebook as jn

    tasks = Tasks(session)

    def accepting_names(act: Callable[..., Any]) -> Callable[..., Any]:
        """Let a function of tasks take a function's name, too."""

        @functools.wraps(act)
        def run(target: Any, *args: Any, **kwargs: Any) -> Any:
            return act(tasks[target] if isinstance(target, str) else target, *args, **kwargs)

        return run

    def status() -> Any:
        """Return the status of the whole store."""
        return session.status(all=True)

    taking_tasks: list[Any] = [jn.invalidate, jn.retry, jn.cancel, jn.why, jn.log]
    acts = {act.__name__: accepting_names(act) for act in taking_tasks}
    more = {"value": jn.value, "bvalue": jn.bvalue, "status": status, "get_tasks": tasks.all}
    return {"jn": jn, "tasks": tasks, **more, **acts}


class Tasks(Mapping[str, Any]):
    """The store's tasks by function name, or by a target: the beginning of a key, a /regex/ over names."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, target: str) -> TaskList:
        from jug_notebook.task.values import TaskList

        try:
            return TaskList(self._session.resolve(target, all=True))
        except NoSuchTask as error:
            raise NoTasks(str(error)) from None

    def all(self, failed: bool = False, loadable: bool = False) -> TaskList:
        """Return all tasks of the store; with ``failed`` or ``loadable`` those that failed, or that have values."""
        from jug_notebook.model import State
        from jug_notebook.task.values import TaskList

        kept = {state for state, asked in ((State.FAILED, failed), (State.FINISHED, loadable)) if asked}
        found = [task for name in self for task in self[name]]
        states = self._session.results.states([task.key for task in found]) if kept else []
        return TaskList([t for t, s in zip(found, states, strict=True) if s in kept] if kept else found)

    def __iter__(self) -> Iterator[str]:
        return iter([function.name for function in self._session.status(all=True).snapshot.functions])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        return clean(f"<tasks of {', '.join(self) or 'no function yet'}>")


class NoTasks(KeyError):
    """No task in the store has this name."""

    def __str__(self) -> str:
        return str(self.args[0])
