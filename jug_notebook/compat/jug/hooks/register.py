"""Who is called at which point."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

EVENTS = (
    "execute.task-loadable",  #: (task): its value is there already
    "execute.task-pre-execute",  #: (task): it is about to run
    "execute.task-executed1",  #: (task): it has run, and has a value
    "execute.finished_pre_status",  #: (): nothing is left to do; the table comes next
    "execute.finished_post_status",  #: (): the table was shown
)
_hooks: dict[str, list[Callable[..., Any]]] = {}
_registered: set[Any] = set()


def jug_hook(name: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> list[Any]:
    """Call all that are registered; answers what they answered."""
    return [f(*args, **(kwargs or {})) for f in list(_hooks.get(name, ()))]


def register_hook(name: str, f: Callable[..., Any] | None = None) -> Any:
    """Have ``f`` called at an event; without it, a decorator. Raises ValueError for an event that there isn't."""
    if name not in EVENTS:
        raise ValueError(f"no event {name!r}; there are {', '.join(EVENTS)}")
    if f is None:
        return partial(register_hook, name)
    _hooks.setdefault(name, []).append(f)
    return None


def register_hook_once(name: str, code: Any, f: Callable[..., Any]) -> None:
    """The same once for each ``(name, code)``: scripts are loaded again at each barrier."""
    if (name, code) not in _registered:
        _registered.add((name, code))
        register_hook(name, f)


def reset_all_hooks() -> None:
    """Forget all that was registered."""
    _registered.clear()
    _hooks.clear()


def listened(name: str) -> bool:
    """Is anybody called at this event?"""
    return bool(_hooks.get(name))
