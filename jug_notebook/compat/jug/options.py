"""What a command was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jug_notebook.compat.jug.backends.select import select
from jug_notebook.compat.jug.task import Task

__all__ = ["Options", "set_jugdir"]


class Options:
    """Values by name; what isn't set here is asked of ``next``. ``autoinit`` is called on the first question."""

    def __init__(self, next: Any = None, autoinit: Callable[[Any], None] | None = None) -> None:
        self.__dict__.update(next=next, _autoinit=autoinit)

    def update(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def copy(self) -> Options:
        made = Options(self.__dict__["next"], self.__dict__["_autoinit"])
        made.update(self.__dict__)
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        fill = self.__dict__.get("_autoinit")
        if fill:
            self.__dict__["_autoinit"] = None
            fill(self)
            return getattr(self, name)
        following = self.__dict__.get("next")
        if following is None:
            raise AttributeError(f"no option {name!r}")
        return getattr(following, name)


def set_jugdir(jugdir: Any) -> Any:
    """Use this store from now on, for all tasks of the script. None means 'jugdata'."""
    store = select("jugdata" if jugdir is None else jugdir)
    if getattr(Task.store, "jugdir", None) != getattr(store, "jugdir", store):
        Task.store = store
    return Task.store
