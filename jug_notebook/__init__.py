"""Jug, reborn inside the notebook: calls become tasks, background workers run them, results are kept.

>>> import jug_notebook as jn
>>> @jn.task
... def double(x):
...     return 2 * x
>>> crew = jn.execute(4)            # workers in the background
>>> jn.result(double.map(range(10)))
"""

from __future__ import annotations

from typing import Any

from jug_notebook import errors
from jug_notebook.errors import *  # noqa: F403
from jug_notebook.errors import NoWorkers
from jug_notebook.futures import Executor
from jug_notebook.keys.libraries import ignore_attributes
from jug_notebook.model import State
from jug_notebook.session import (
    CellReport,
    Session,
    accept,
    barrier,
    cancel,
    cleanup,
    compare,
    confirm,
    connect,
    copy,
    current,
    execute,
    graph,
    history,
    invalidate,
    log,
    profile,
    resolve,
    retry,
    status,
    stop,
    tasks,
    timeline,
    verify,
    why,
)
from jug_notebook.system import VERSION
from jug_notebook.task import TaskFunction, TaskGenerator, definitions, mapreduce, task
from jug_notebook.task.cell import cell_task
from jug_notebook.task.checkpoints import Checkpoint, checkpoint
from jug_notebook.task.context import in_task, track
from jug_notebook.task.external import Ran, cached_glob, shell, write_task_out
from jug_notebook.task.files import file, timed_path
from jug_notebook.task.handles import Handle, NoLoad, Task, Tasklet
from jug_notebook.task.patterns import (
    CachedFunction,
    CompoundTask,
    CompoundTaskGenerator,
    CustomHash,
    NoHash,
    identity,
    iteratetask,
    return_tuple,
    unordered,
)
from jug_notebook.task.values import LazyResults, TaskList, as_completed, bvalue, result, tasks_in, value, wait

__version__ = VERSION

BarrierError = NoWorkers  #: Jug's name for `NoWorkers`


def load_ipython_extension(ip: Any) -> None:
    """``%load_ext jug_notebook``."""
    import kernel_ext  # the only import upwards

    kernel_ext.load_ipython_extension(ip)


def unload_ipython_extension(ip: Any) -> None:
    """``%unload_ext jug_notebook``."""
    import kernel_ext

    kernel_ext.unload_ipython_extension(ip)


__all__ = [
    "BarrierError",
    "CachedFunction",
    "CellReport",
    "Checkpoint",
    "CompoundTask",
    "CompoundTaskGenerator",
    "CustomHash",
    "Executor",
    "Handle",
    "LazyResults",
    "NoHash",
    "NoLoad",
    "Ran",
    "Session",
    "State",
    "Task",
    "TaskFunction",
    "TaskGenerator",
    "TaskList",
    "Tasklet",
    "accept",
    "as_completed",
    "barrier",
    "bvalue",
    "cached_glob",
    "cancel",
    "cell_task",
    "checkpoint",
    "cleanup",
    "compare",
    "confirm",
    "connect",
    "copy",
    "current",
    "definitions",
    "execute",
    "file",
    "graph",
    "history",
    "identity",
    "ignore_attributes",
    "in_task",
    "invalidate",
    "iteratetask",
    "load_ipython_extension",
    "log",
    "mapreduce",
    "profile",
    "resolve",
    "result",
    "retry",
    "return_tuple",
    "shell",
    "status",
    "stop",
    "task",
    "tasks",
    "tasks_in",
    "timed_path",
    "timeline",
    "track",
    "unload_ipython_extension",
    "unordered",
    "value",
    "verify",
    "wait",
    "why",
    "write_task_out",
]
__all__ += [name for name, kind in vars(errors).items() if isinstance(kind, type) and name != "Any"]
