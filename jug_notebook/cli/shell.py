"""``shell``: IPython on a store, with its tasks at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jug_notebook.cli import Arguments, Command, Parser, existing
from jug_notebook.cli.jugfiles import for_jugfile

if TYPE_CHECKING:
    from jug_notebook.session import Session
    from jug_notebook.task.values import TaskList

BANNER = """\
{short}
tasks["f"]: the tasks of a function (Tab completes) · value(x): values, at any depth · get_tasks(failed=True)
invalidate, retry, cancel, why, log, status: of tasks or of a function's name · jn: all else · %jug_…: the magics
"""


def _add_nothing(parser: Parser) -> None:
    return


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
    """What one finds in the shell. Here a function's name means its tasks in the whole store: a shell has no others."""
    import jug_notebook

    tasks = Tasks(session)

    def of(target: Any) -> Any:
        return tasks[target] if isinstance(target, str) else target

    def status() -> Any:
        """The whole store's picture."""
        return session.status(all=True)

    def get_tasks(failed: bool = False, loadable: bool = False) -> TaskList:
        """All tasks of the store; with ``failed`` or ``loadable`` only those that failed, or that have a value."""
        return tasks.all(failed, loadable)

    def invalidate(target: Any) -> Any:
        """Make results count for nothing, and with them whatever was computed from them."""
        return jug_notebook.invalidate(of(target))

    def retry(target: Any) -> Any:
        """Try failed tasks again."""
        return jug_notebook.retry(of(target))

    def cancel(target: Any) -> Any:
        """Take back tasks that have not started."""
        return jug_notebook.cancel(of(target))

    def why(target: Any) -> Any:
        """Why a task isn't stored."""
        return jug_notebook.why(of(target))

    def log(target: Any) -> Any:
        """What a task printed, and why it failed."""
        return jug_notebook.log(of(target))

    acts = (status, get_tasks, invalidate, retry, cancel, why, log)
    more = {"jn": jug_notebook, "tasks": tasks, "value": jug_notebook.value, "bvalue": jug_notebook.bvalue}
    return {**more, **{act.__name__: act for act in acts}}


class Tasks(Mapping[str, Any]):
    """The store's tasks by function; also by the beginning of a key, or by a /regex/ over names."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, target: str) -> TaskList:
        from jug_notebook.errors import NoSuchTask
        from jug_notebook.task.values import TaskList

        try:
            return TaskList(self._session.resolve(target, all=True))
        except NoSuchTask as error:
            raise NoTasks(str(error)) from None

    def all(self, failed: bool = False, loadable: bool = False) -> TaskList:
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
        return f"<tasks of {', '.join(self) or 'no function yet'}>"


class NoTasks(KeyError):
    """Nothing in the store is called that."""

    def __str__(self) -> str:
        return str(self.args[0])


COMMANDS = {
    "shell": Command("IPython with the tasks at hand", _add_nothing, _shell, "[STORE]", for_jugfile("shell")),
}
