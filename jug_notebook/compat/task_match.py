"""Knowing a task of Jug's again as one of ours: by function names and arguments, without either's keys.

Both sides load the same script, each in its own process and with its own `jug`; what they make has the same likeness
in both where it is the same call.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

from jug_notebook.errors import JugError
from jug_notebook.keys.digest import digest

_OURS = "jug_notebook.compat.jug"


class Unlike(JugError):
    """It can't be told whether two of these are the same."""


def likeness(task: Any, known: Callable[[Any], bytes]) -> bytes:
    """What a task is like; ``known`` tells it of the tasks that it needs. Raises Unlike."""
    arguments = getattr(task, "said", None) or (task.args, task.kwargs)
    return digest((task.name, _part(list(arguments[0]), known), _part(dict(arguments[1]), known)))


def _part(x: Any, known: Callable[[Any], bytes]) -> Any:
    kind = type(x)
    name = kind.__name__ if _jugs(kind.__module__) else ""
    if name in ("Task", "Compound"):
        return ("task", known(x))
    if name == "Tasklet":
        return ("tasklet", _part(x.base, known), _part(x.f, known))
    if name == "NoLoad" or (name == "" and kind.__name__ == "NoLoad"):
        return ("unloaded", _part(x.base, known))
    if name == "_getitem":
        return ("item", _part(x.slice, known))
    if name == "CustomHash":
        return ("named", _part(x.obj, known))
    if name == "NoHash":
        return "whatever"
    if name == "TaskGenerator":
        return _part(x.f, known)
    if name == "block_access":
        return ("blocks", _part(x.blocks, known), x.block_size, x.len)
    if name == "block_access_slice":
        return _part([x[i] for i in range(len(x))], known)
    if name:
        raise Unlike(f"an argument is a {name}")
    if kind is list or kind is tuple:
        return kind(_part(item, known) for item in x)
    if kind is dict:
        return {key: _part(item, known) for key, item in x.items()}
    if kind is slice:
        return ("slice", x.start, x.stop, x.step)
    if kind is partial:
        return ("partial", _part(x.func, known), _part(x.args, known), _part(x.keywords, known))
    if kind is types.FunctionType:
        return _function(x)
    return x


def _jugs(module: str) -> bool:
    return module.partition(".")[0] == "jug" or module == _OURS or module.startswith(f"{_OURS}.")


def _function(f: types.FunctionType) -> Any:
    if _jugs(f.__module__):
        return ("function", f"jug.{f.__name__}")
    constants = [c for c in f.__code__.co_consts if not isinstance(c, types.CodeType)]
    return ("function", f.__module__, f.__qualname__, f.__code__.co_code, repr(constants), f.__code__.co_names)
