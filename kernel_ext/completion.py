"""The Tab key after a magic: its options, what may stand after one, and for a target what may hold tasks."""

from __future__ import annotations

from typing import Any

import jug_notebook as jn
from kernel_ext.options import known

WITH_TARGET = (
    "jug_tasks", "jug_wait", "jug_log", "jug_retry", "jug_cancel", "jug_invalidate", "jug_graph", "jug_debug",
    "jug_verify", "jug_why",
)  # fmt: skip
OF_FAILED = ("jug_debug", "jug_retry", "jug_log")  #: here the keys of failed tasks are at hand
FAILED = 20  #: so many of these


def candidates(magic: str, magics: Any, session: jn.Session | None, line: str = "") -> list[str]:
    """What may follow a magic; ``line`` is what is typed up to the cursor."""
    before = line.split()[:-1] if line and not line[-1].isspace() else line.split()
    last = before[-1] if before else ""
    if last == "--host":
        return _asked(lambda: session.hosts()) if session else []
    if last == "--target":
        return _targets(magics, session)
    words = known(getattr(magics, magic))
    if magic in WITH_TARGET:
        words += _targets(magics, session)
    if magic in OF_FAILED and session:
        words += _asked(lambda: [view.key[:8] for view in session.tasks(state=jn.State.FAILED, limit=FAILED)])
    return words


def _targets(magics: Any, session: jn.Session | None) -> list[str]:
    """Variables that may hold tasks, and functions that have some."""
    space = magics.shell.user_ns
    held = [
        name
        for name, value in space.items()
        if not name.startswith("_") and isinstance(value, jn.TaskFunction | jn.Handle | list | tuple | dict)
    ]
    named = _asked(lambda: session.names()) if session else []
    return list(dict.fromkeys([*held, *named]))


def _asked(ask: Any) -> list[str]:
    """What a store answers; where it can't, the Tab key has nothing to say."""
    try:
        return list(ask())
    except (jn.JugError, OSError):
        return []


def _names(magics: Any) -> list[tuple[str, str]]:
    found = [("%" + name, name) for name in magics.magics["line"]]
    return [*found, *(("%%" + name, name) for name in magics.magics["cell"])]


def add(shell: Any, main: Any, *others: Any) -> None:
    """From now on, Tab knows our magics. The session is ``main``'s, where it has one by then."""
    for magics in (main, *others):
        for key, name in _names(magics):
            shell.set_hook("complete_command", _hook(name, magics, main), str_key=key)


def _hook(name: str, magics: Any, main: Any) -> Any:
    def complete(_: Any, event: Any) -> list[str]:
        return candidates(name, magics, main.attached(), getattr(event, "line", ""))

    return complete


def remove(shell: Any, *all_magics: Any) -> None:
    """Take back what `add` did."""
    dispatcher = shell.strdispatchers.get("complete_command")
    for magics in all_magics:
        for key, _ in _names(magics):
            if dispatcher is not None:
                dispatcher.strs.pop(key, None)
