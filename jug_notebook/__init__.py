"""Jug, reborn inside the notebook: calls become tasks, background workers run them, results are kept.

>>> import jug_notebook as jn
>>> @jn.task
... def double(x):
...     return 2 * x
>>> crew = jn.execute(4)            # workers in the background
>>> jn.value([t.result() for t in double.map(range(10))])
"""

from __future__ import annotations

from typing import Any

from jug_notebook.errors import (
    BadTask,
    BarrierError,
    ChangedInCell,
    ClaimLost,
    FormerDefinition,
    IsATask,
    JugError,
    LaunchError,
    NoSuchTask,
    NotReady,
    SignatureError,
    StoreError,
    TaskFailed,
    Unhashable,
    Unstorable,
    ValueLost,
    WaitInterrupted,
    WaitTimeout,
    Withdrawn,
)
from jug_notebook.model import State
from jug_notebook.patterns import CustomHash, NoHash, identity, iteratetask, return_tuple
from jug_notebook.progress import track
from jug_notebook.session import CellReport, Session, connect, current
from jug_notebook.session.verbs import barrier, cancel, execute, invalidate, log, resolve, retry, status, stop, tasks
from jug_notebook.task import TaskFunction, TaskGenerator, definitions, task
from jug_notebook.task.desk import in_task
from jug_notebook.task.handles import Handle, Task, Tasklet, TaskList
from jug_notebook.task.values import as_completed, bvalue, tasks_in, value, wait

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
    "CellReport",
    "ChangedInCell",
    "ClaimLost",
    "CustomHash",
    "FormerDefinition",
    "Handle",
    "IsATask",
    "JugError",
    "LaunchError",
    "NoHash",
    "NoSuchTask",
    "NotReady",
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
    "Unstorable",
    "ValueLost",
    "WaitInterrupted",
    "WaitTimeout",
    "Withdrawn",
    "as_completed",
    "barrier",
    "bvalue",
    "cancel",
    "connect",
    "current",
    "definitions",
    "execute",
    "identity",
    "in_task",
    "invalidate",
    "iteratetask",
    "load_ipython_extension",
    "log",
    "resolve",
    "retry",
    "return_tuple",
    "status",
    "stop",
    "task",
    "tasks",
    "tasks_in",
    "track",
    "unload_ipython_extension",
    "value",
    "wait",
]
