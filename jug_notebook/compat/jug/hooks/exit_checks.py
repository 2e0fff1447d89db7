"""Reasons to stop executing before all is done. A script may register them at each loading; each counts once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from jug_notebook.compat.jug.hooks.register import register_hook, register_hook_once

_EXECUTED = "execute.task-executed1"


def exit_if_file_exists(fname: str) -> None:
    """Begin no further task once there is such a file."""

    def check(_: Any) -> None:
        if os.path.exists(fname):
            sys.exit(0)

    register_hook_once("execute.task-pre-execute", ("exit_if_file_exists", fname), check)


def exit_when_true(f: Callable[..., Any], function_takes_Task: bool = False) -> None:
    """After each task ask ``f()`` or ``f(task)``, and stop once the answer is true."""

    def check(task: Any) -> None:
        if f(task) if function_takes_Task else f():
            sys.exit(0)

    code = getattr(f, "__code__", None)
    if code is None or getattr(f, "__closure__", None) is not None:
        register_hook(_EXECUTED, check)
    else:
        register_hook_once(_EXECUTED, ("exit_when_true", code, function_takes_Task), check)


def exit_after_n_tasks(n: int) -> None:
    """Stop once so many tasks were executed."""
    numbers = count(1)

    def check(_: Any) -> None:
        if next(numbers) >= n:
            sys.exit(0)

    register_hook_once(_EXECUTED, ("exit_after_n_tasks", n), check)


def exit_after_time(hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
    """Begin no further task so long from now on."""
    end = time.monotonic() + 3600 * hours + 60 * minutes + seconds

    def check(_: Any) -> None:
        if time.monotonic() >= end:
            sys.exit(0)

    register_hook_once(_EXECUTED, ("exit_after_time", hours, minutes, seconds), check)


def exit_env_vars(environ: Mapping[str, str] | None = None) -> None:
    """As the environment says: JUG_MAX_TASKS, JUG_MAX_HOURS, _MINUTES and _SECONDS (they add up),
    JUG_EXIT_IF_FILE_EXISTS.
    """
    told = os.environ if environ is None else environ
    if "JUG_MAX_TASKS" in told:
        exit_after_n_tasks(int(told["JUG_MAX_TASKS"]))
    length = {unit: int(told.get(f"JUG_MAX_{unit.upper()}", 0)) for unit in ("hours", "minutes", "seconds")}
    if any(length.values()):
        exit_after_time(**length)
    if "JUG_EXIT_IF_FILE_EXISTS" in told:
        exit_if_file_exists(told["JUG_EXIT_IF_FILE_EXISTS"])
