"""Loading a script."""

from __future__ import annotations

from typing import Any

from jug_notebook.compat.jug.options import set_jugdir
from jug_notebook.compat.jug.task import Task
from jug_notebook.compat.loading import is_running, load

__all__ = ["init", "is_jug_running"]


def is_jug_running() -> bool:
    """Is this script loaded by a command, and not by Python itself?"""
    return is_running()


def init(
    jugfile: str | None = None, jugdir: Any = None, on_error: str = "exit", store: Any = None
) -> tuple[Any, dict[str, Any]]:
    """Load a script; answers its store and what it defines. ``on_error`` is "exit" or "propagate"."""
    assert on_error in ("exit", "propagate"), "on_error is 'exit' or 'propagate'"
    set_jugdir(jugdir if store is None else store)
    space = load(jugfile or "jugfile.py", on_error)
    return Task.store, space
