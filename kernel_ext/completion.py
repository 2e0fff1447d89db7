"""The Tab key after a magic: its options, and for a target what may hold tasks."""

from __future__ import annotations

from typing import Any

import jug_notebook as jn
from kernel_ext.options import known

WITH_TARGET = ("jug_tasks", "jug_wait", "jug_log", "jug_retry", "jug_cancel", "jug_invalidate", "jug_why")


def candidates(magic: str, magics: Any) -> list[str]:
    """What may follow a magic."""
    words = known(getattr(magics, magic))
    if magic in WITH_TARGET:
        space = magics.shell.user_ns
        words += [
            name
            for name, value in space.items()
            if not name.startswith("_") and isinstance(value, jn.TaskFunction | jn.Handle | list | tuple | dict)
        ]
    return words


def _names(magics: Any) -> list[tuple[str, str]]:
    found = [("%" + name, name) for name in magics.magics["line"]]
    return [*found, *(("%%" + name, name) for name in magics.magics["cell"])]


def add(shell: Any, magics: Any) -> None:
    """From now on, Tab knows our magics."""
    for key, name in _names(magics):
        shell.set_hook("complete_command", lambda _, event, name=name: candidates(name, magics), str_key=key)


def remove(shell: Any, magics: Any) -> None:
    """Take back what `add` did."""
    dispatcher = shell.strdispatchers.get("complete_command")
    for key, _ in _names(magics):
        if dispatcher is not None:
            dispatcher.strs.pop(key, None)
