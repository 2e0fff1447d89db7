"""How a worker calls a function of a jugfile: what it imports of Jug means us, as when the script was loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from jug_notebook.compat import answering
from jug_notebook.errors import Unhashable
from jug_notebook.keys.digest import digest

CHECK = "JUG_CHECK_ARGUMENTS"  #: in the environment: tasks must not change their arguments

stage = answering

#: is handed each exception of a task, in the process where it was raised
on_error: Callable[[BaseException], None] | None = None


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call, with what was asked for around it."""
    before = _named(args, kwargs) if os.environ.get(CHECK) else {}
    try:
        value = function(*args, **kwargs)
    except Exception as error:
        if on_error is not None:
            on_error(error)
        raise
    if before:
        after = _named(args, kwargs)
        changed = [name for name in before if before[name] != after[name]]
        if changed:
            raise RuntimeError(
                f"{getattr(function, '__name__', 'the function')}() changed its argument {' and '.join(changed)} in "
                "place, so what is made from it would not be what it is called"
            )
    return value


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, bytes]:
    named: dict[str, bytes] = {}
    for name, value in [*((str(number), value) for number, value in enumerate(args, 1)), *kwargs.items()]:
        try:
            named[name] = digest(value)
        except Unhashable:  # it can't be told; the value of a task may be anything
            named[name] = b""
    return named
