"""Jug, reborn inside the notebook: calls become tasks, background workers run them, results are kept.

>>> import jug_notebook as jn
>>> @jn.task
... def double(x):
...     return 2 * x
>>> crew = jn.execute(4)            # workers in the background
>>> jn.value([t.result() for t in double.map(range(10))])
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jug_notebook.public import *

__version__ = "0.1.0"


def load_ipython_extension(ip: Any) -> None:
    """``%load_ext jug_notebook``."""
    import kernel_ext  # the only import upwards

    kernel_ext.load_ipython_extension(ip)


def unload_ipython_extension(ip: Any) -> None:
    """``%unload_ext jug_notebook``."""
    import kernel_ext

    kernel_ext.unload_ipython_extension(ip)


__all__ = [
    "BadTask",
    "BarrierError",
    "CachedFunction",
    "CellReport",
    "ChangedInCell",
    "ClaimLost",
    "CommandFailed",
    "CompoundTask",
    "CompoundTaskGenerator",
    "CustomHash",
    "FileChanged",
    "FormerDefinition",
    "Handle",
    "IsATask",
    "JugError",
    "KeyAdvice",
    "LaunchError",
    "NoHash",
    "NoLoad",
    "NoSuchTask",
    "NotReady",
    "OnlyAPath",
    "Opaque",
    "Ran",
    "Session",
    "SignatureError",
    "State",
    "StoreError",
    "Task",
    "TaskFailed",
    "TaskFunction",
    "TaskGenerator",
    "TaskList",
    "Tasklet",
    "Unhashable",
    "Unseeded",
    "Unstorable",
    "ValueLost",
    "WaitInterrupted",
    "WaitTimeout",
    "Withdrawn",
    "accept",
    "as_completed",
    "barrier",
    "bvalue",
    "cached_glob",
    "cancel",
    "cleanup",
    "connect",
    "copy",
    "current",
    "definitions",
    "execute",
    "file",
    "graph",
    "history",
    "identity",
    "in_task",
    "invalidate",
    "iteratetask",
    "load_ipython_extension",
    "log",
    "mapreduce",
    "resolve",
    "retry",
    "return_tuple",
    "shell",
    "status",
    "stop",
    "task",
    "tasks",
    "tasks_in",
    "timed_path",
    "track",
    "unload_ipython_extension",
    "value",
    "verify",
    "wait",
    "why",
    "write_task_out",
]


class _Package(ModuleType):
    """Loads the public names when the first of them is asked for: what needs none, as a shell does, starts sooner."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = importlib.import_module("jug_notebook.public")
        self.__dict__.update((shown, getattr(public, shown)) for shown in __all__ if shown not in self.__dict__)
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            return  # whoever imports the room `jug_notebook.task` must not hide the decorator of that name
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
