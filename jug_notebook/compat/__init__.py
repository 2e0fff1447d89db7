"""Jug's own scripts, unmodified: while one is loaded or run, Jug's module names mean the modules of `jug` here.

``jug.utils`` is ``jug_notebook.compat.jug.utils`` then. A jugfile's tasks are our tasks, in our store, under our keys.
An installed Jug is left alone: outside of `answering`, ``import jug`` means that one.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_lock = threading.RLock()
_depth = 0
_theirs: dict[str, ModuleType] = {}


@contextmanager
def answering() -> Iterator[None]:
    """Within, ``import jug`` means `jug` here. What was imported under its names before is there again afterwards."""
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _theirs.update(_take_out())
            sys.modules.update(_ours())
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _take_out()
                sys.modules.update(_theirs)
                _theirs.clear()


def _ours() -> dict[str, ModuleType]:
    """Return our modules by Jug's names."""
    from jug_notebook.compat.jug import MODULES

    return {name: importlib.import_module(f"{__name__}.{name}") for name in MODULES}


def _take_out() -> dict[str, ModuleType]:
    if "jug" not in sys.modules:
        return {}
    names = [name for name in sys.modules if name == "jug" or name.startswith("jug.")]
    return {name: sys.modules.pop(name) for name in names}
