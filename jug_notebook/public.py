"""What ``jug_notebook`` shows to the world: everything that its ``__all__`` names, loaded when first asked for."""

# ruff: noqa: F401

from __future__ import annotations

from jug_notebook import mapreduce
from jug_notebook.compound import CachedFunction, CompoundTask, CompoundTaskGenerator
from jug_notebook.errors import (
    BadTask,
    BarrierError,
    ChangedInCell,
    ClaimLost,
    CommandFailed,
    FileChanged,
    FormerDefinition,
    IsATask,
    JugError,
    KeyAdvice,
    LaunchError,
    NoSuchTask,
    NotReady,
    OnlyAPath,
    Opaque,
    SignatureError,
    StoreError,
    TaskFailed,
    Unhashable,
    Unseeded,
    Unstorable,
    ValueLost,
    WaitInterrupted,
    WaitTimeout,
    Withdrawn,
)
from jug_notebook.model import State
from jug_notebook.outside import Ran, cached_glob, shell, write_task_out
from jug_notebook.patterns import CustomHash, NoHash, identity, iteratetask, return_tuple
from jug_notebook.progress import track
from jug_notebook.session import CellReport, Session, connect, current
from jug_notebook.session.verbs import (
    accept,
    barrier,
    cancel,
    cleanup,
    copy,
    execute,
    graph,
    history,
    invalidate,
    log,
    resolve,
    retry,
    status,
    stop,
    tasks,
    verify,
    why,
)
from jug_notebook.task import TaskFunction, TaskGenerator, definitions, task
from jug_notebook.task.desk import in_task
from jug_notebook.task.files import file, timed_path
from jug_notebook.task.handles import Handle, NoLoad, Task, Tasklet, TaskList
from jug_notebook.task.values import as_completed, bvalue, tasks_in, value, wait
