"""Runs Jug's scripts unmodified: while one is loaded or run, ``import jug`` means `jug_notebook.compat.jug`.

A jugfile's tasks are tasks of ours then, in our stores, under our keys. An installed Jug is left alone: outside of
`replacing_jug`, ``import jug`` means that one.
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
def replacing_jug() -> Iterator[None]:
    """Within, Jug's module names mean our modules; what was imported by these names before is put back afterwards."""
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _theirs.update(_remove())
            modules = importlib.import_module(f"{__name__}.jug").MODULES
            sys.modules.update({name: importlib.import_module(f"{__name__}.{name}") for name in modules})
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _remove()
                sys.modules.update(_theirs)
                _theirs.clear()


def _remove() -> dict[str, ModuleType]:
    """Remove Jug's modules from `sys.modules` and return them."""
    if "jug" not in sys.modules:
        return {}
    names = [name for name in sys.modules if name == "jug" or name.startswith("jug.")]
    return {name: sys.modules.pop(name) for name in names}
