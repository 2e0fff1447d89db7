"""A shell in which a jugfile's names, values and tasks are at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jug_notebook.compat.jug.task import Task, alltasks, value
from jug_notebook.errors import JugError

BANNER = """\
The names of {script}, and
    value(t)                    the value of a task, or of what holds tasks
    load_all()                  puts values in the place of all tasks
    invalidate(t)               compute it again, and all made from it
    get_tasks()                 all tasks
    get_filtered_tasks(loadable=False, failed=False, available=False)
"""


def helpers(names: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The functions that a shell adds to a script's names, which are ``names()``."""

    def load_all() -> None:
        """Put its value in the place of each task that has one."""
        space = names()
        for name, held in list(space.items()):
            if name.startswith("__") or name in found:
                continue
            try:
                space[name] = value(held)
            except JugError as error:
                print(f"{name}: {error}")

    def invalidate(t: Any) -> None:
        """Compute a task again, and all that is made from it."""
        Task.store.session.invalidate([t])
        t.unload()

    def get_tasks(copy: bool = True) -> list[Task]:
        """All tasks of the script."""
        return alltasks[:] if copy else alltasks

    def get_filtered_tasks(loadable: bool = False, failed: bool = False, available: bool = False) -> list[Task]:
        """The tasks of which one of these is true: it has a value; it failed; it could run now."""
        return [
            task
            for task in alltasks
            if (loadable and task.can_load())
            or (failed and task.is_failed())
            or (available and not task.can_load() and task.can_run())
        ]

    found: dict[str, Any] = {
        "load_all": load_all,
        "value": value,
        "invalidate": invalidate,
        "get_tasks": get_tasks,
        "get_filtered_tasks": get_filtered_tasks,
    }
    return found


def shell(space: dict[str, Any], script: str) -> int:
    """Start it; answers the exit status."""
    from IPython.terminal.embed import InteractiveShellEmbed
    from IPython.terminal.ipapp import load_default_config

    module = sys.modules[Path(script).name.removesuffix(".py")]
    load: Any = load_default_config
    make: Any = InteractiveShellEmbed
    embedded = make(config=load(), banner1=BANNER.format(script=script))
    embedded(module=module, local_ns={**space, **helpers(lambda: embedded.user_ns)})
    return 0
