"""Jug's public names (those of 2.7), for scripts that say ``from jug import …``."""

from jug_notebook.compat.jug.backends import dict_store, file_store, redis_store
from jug_notebook.compat.jug.barrier import barrier, bvalue
from jug_notebook.compat.jug.compound import CompoundTask, CompoundTaskGenerator
from jug_notebook.compat.jug.jug import init, is_jug_running
from jug_notebook.compat.jug.jug_version import __version__
from jug_notebook.compat.jug.options import set_jugdir
from jug_notebook.compat.jug.task import (
    CachedFunction,
    Task,
    TaskGenerator,
    Tasklet,
    iteratetask,
    return_tuple,
    value,
)

__all__ = [
    "CachedFunction",
    "CompoundTask",
    "CompoundTaskGenerator",
    "Task",
    "TaskGenerator",
    "Tasklet",
    "__version__",
    "barrier",
    "bvalue",
    "dict_store",
    "file_store",
    "init",
    "is_jug_running",
    "iteratetask",
    "redis_store",
    "return_tuple",
    "set_jugdir",
    "value",
]
