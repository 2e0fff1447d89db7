"""Jug's own scripts, unmodified: for as long as one is loaded or run, these rooms answer to Jug's module names.

`jug` mirrors Jug's modules: ``jug.utils`` is ``jug_notebook.compat.jug.utils``. A jugfile's tasks are our tasks, in our
store, under our keys. An installed Jug is left alone: outside of `answering`, ``import jug`` means it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

_OURS = f"{__name__}.jug"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``jug`` and ``jug.x`` here."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "jug" and not name.startswith("jug."):
            return None
        ours = _OURS + name.removeprefix("jug")
        if importlib.util.find_spec(ours) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(_OURS + spec.name.removeprefix("jug"))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = importlib.util.find_spec(module.__name__) if module.__spec__ is None else module.__spec__
        if module.__spec__ is not None and module.__spec__.loader is self:
            module.__spec__ = module.__spec__.loader_state  # the import gave it the name it was asked for by


_FINDER = _Finder()
_lock = threading.RLock()
_depth = 0
_theirs: dict[str, ModuleType] = {}


@contextmanager
def answering() -> Iterator[None]:
    """Within, ``import jug`` means us. What was imported under these names before is there again afterwards."""
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _theirs.update(_take_out())
            sys.meta_path.insert(0, _FINDER)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                sys.meta_path.remove(_FINDER)
                _take_out()
                sys.modules.update(_theirs)
                _theirs.clear()


def _take_out() -> dict[str, ModuleType]:
    if "jug" not in sys.modules:
        return {}
    names = [name for name in sys.modules if name == "jug" or name.startswith("jug.")]
    return {name: sys.modules.pop(name) for name in names}
