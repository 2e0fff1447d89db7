"""Jug's hooks: functions called at certain points of an execution, and the ready-made ones that stop it early."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

from jug_notebook.errors import JugError

EVENTS = (
    "execute.task-loadable",  #: (task): its value is stored already
    "execute.task-pre-execute",  #: (task): it is about to run
    "execute.task-executed1",  #: (task): it has run and has a value
    "execute.finished_pre_status",  #: (): nothing is left to do; the table comes next
    "execute.finished_post_status",  #: (): the table has been printed
)
_hooks: dict[str, list[Callable[..., Any]]] = {}
_registered: set[Any] = set()


def jug_hook(name: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> list[Any]:
    """Call all functions registered for an event; return what they returned."""
    return [f(*args, **(kwargs or {})) for f in list(_hooks.get(name, ()))]


def register_hook(name: str, f: Callable[..., Any] | None = None) -> Any:
    """Register ``f`` for an event; without it, return a decorator. Raises ValueError for an unknown event."""
    if name not in EVENTS:
        raise ValueError(f"no event {name!r}; the events are {', '.join(EVENTS)}")
    if f is None:
        return partial(register_hook, name)
    _hooks.setdefault(name, []).append(f)
    return None


def register_hook_once(name: str, code: Any, f: Callable[..., Any]) -> None:
    """Register ``f`` once per ``(name, code)``: scripts are loaded again at each barrier."""
    if (name, code) not in _registered:
        _registered.add((name, code))
        register_hook(name, f)


def reset_all_hooks() -> None:
    """Unregister all functions."""
    _registered.clear()
    _hooks.clear()


def listened(name: str) -> bool:
    """Return whether any function is registered for an event."""
    return bool(_hooks.get(name))


# -- reasons to stop early; a script may register them each time it is loaded, they count once -------------------------

_EXECUTED = "execute.task-executed1"


def _exit_if(condition: Callable[[Any], Any], task: Any) -> None:
    if condition(task):
        sys.exit(0)


def exit_if_file_exists(fname: str) -> None:
    """Start no further task once this file exists."""
    check = partial(_exit_if, lambda _: os.path.exists(fname))
    register_hook_once("execute.task-pre-execute", ("exit_if_file_exists", fname), check)


def exit_when_true(f: Callable[..., Any], function_takes_Task: bool = False) -> None:
    """Call ``f()`` or ``f(task)`` after each task, and stop once it returns true."""
    check = partial(_exit_if, f if function_takes_Task else lambda _: f())
    code = getattr(f, "__code__", None)
    if code is None or getattr(f, "__closure__", None) is not None:
        register_hook(_EXECUTED, check)
    else:
        register_hook_once(_EXECUTED, ("exit_when_true", code, function_takes_Task), check)


def exit_after_n_tasks(n: int) -> None:
    """Stop after ``n`` tasks."""
    numbers = count(1)
    check = partial(_exit_if, lambda _: next(numbers) >= n)
    register_hook_once(_EXECUTED, ("exit_after_n_tasks", n), check)


def exit_after_time(hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
    """Start no further task after this time from now."""
    end = time.monotonic() + 3600 * hours + 60 * minutes + seconds
    check = partial(_exit_if, lambda _: time.monotonic() >= end)
    register_hook_once(_EXECUTED, ("exit_after_time", hours, minutes, seconds), check)


def exit_env_vars(environ: Mapping[str, str] | None = None) -> None:
    """Stop as the environment says: see `limits_in`."""
    tasks, seconds, file = limits_in(os.environ if environ is None else environ)
    if tasks is not None:
        exit_after_n_tasks(tasks)
    if seconds:
        exit_after_time(seconds=seconds)
    if file:
        exit_if_file_exists(file)


STOP_FILE = "__jug_please_stop_running.txt"  #: in the folder where tasks are executed: it stops that
_UNITS = {"JUG_MAX_HOURS": 3600, "JUG_MAX_MINUTES": 60, "JUG_MAX_SECONDS": 1}
LIMITS = ("JUG_MAX_TASKS", *_UNITS, "JUG_EXIT_IF_FILE_EXISTS")


def limits_in(environ: Mapping[str, str]) -> tuple[int | None, int, str]:
    """Return the limits that an environment sets: a number of tasks, seconds, a file that stops it. Raises JugError."""

    def number(name: str) -> int | None:
        written = environ.get(name, "")
        if written and not written.isdecimal():
            raise JugError(f"${name} is {written!r}, which is not a whole number")
        return int(written) if written else None

    seconds = sum((number(name) or 0) * unit for name, unit in _UNITS.items())
    return number("JUG_MAX_TASKS"), seconds, environ.get("JUG_EXIT_IF_FILE_EXISTS", "")


# -- how long tasks take -----------------------------------------------------------------------------------------------


class TimeTasks:
    """Measures how long the tasks of each function take."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._began = 0.0

    def start(self, t: Any) -> None:
        self._began = time.monotonic()

    def stop(self, t: Any) -> None:
        self.times[t.name].append(time.monotonic() - self._began)

    def print_summary(self) -> None:
        print("TIMES")
        print("-----\n")
        for name, times in self.times.items():
            print(f"{name:20} {sum(times) / len(times):.2f}s ({len(times)} tasks)")


def register_time_tasks() -> None:
    """Print the mean time of each function's tasks when the execution ends."""
    times = TimeTasks()
    register_hook_once("execute.task-pre-execute", "register_time_tasks", times.start)
    register_hook_once("execute.task-executed1", "register_time_tasks", times.stop)
    register_hook_once("execute.finished_post_status", "register_time_tasks", times.print_summary)
