"""The notebook's side: magics, what happens before and after each cell, and pictures that follow the store.

A worker that runs a cell task comes through here too, and needs none of it: what is heavy is imported by who loads it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernel_ext.extension import Extension
    from kernel_ext.magics import Memory

_loaded: weakref.WeakKeyDictionary[Any, Extension] = weakref.WeakKeyDictionary()
_memories: weakref.WeakKeyDictionary[Any, Memory] = weakref.WeakKeyDictionary()


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext jug_notebook``. Loading twice is loading once."""
    from kernel_ext.extension import Extension
    from kernel_ext.magics import Memory

    if shell in _loaded:
        return
    extension = Extension(shell, _memories.setdefault(shell, Memory()))
    _loaded[shell] = extension
    extension.load()


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext jug_notebook``: threads and hooks end, workers go on."""
    extension = _loaded.pop(shell, None)
    if extension is not None:
        extension.unload()
