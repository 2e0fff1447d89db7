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

EVENTS = (
    "execute.task-loadable",  #: (task): its value is there already
    "execute.task-pre-execute",  #: (task): it is about to run
    "execute.task-executed1",  #: (task): it has run, and has a value
    "execute.finished_pre_status",  #: (): nothing is left to do; the table comes next
    "execute.finished_post_status",  #: (): the table was shown
)
_hooks: dict[str, list[Callable[..., Any]]] = {}
_registered: set[Any] = set()


def jug_hook(name: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> list[Any]:
    """Call all that are registered; answers what they answered."""
    return [f(*args, **(kwargs or {})) for f in list(_hooks.get(name, ()))]


def register_hook(name: str, f: Callable[..., Any] | None = None) -> Any:
    """Have ``f`` called at an event; without it, a decorator. Raises ValueError for an event that there isn't."""
    if name not in EVENTS:
        raise ValueError(f"no event {name!r}; there are {', '.join(EVENTS)}")
    if f is None:
        return partial(register_hook, name)
    _hooks.setdefault(name, []).append(f)
    return None


def register_hook_once(name: str, code: Any, f: Callable[..., Any]) -> None:
    """The same once for each ``(name, code)``: scripts are loaded again at each barrier."""
    if (name, code) not in _registered:
        _registered.add((name, code))
        register_hook(name, f)


def reset_all_hooks() -> None:
    """Forget all that was registered."""
    _registered.clear()
    _hooks.clear()


def listened(name: str) -> bool:
    """Is anybody called at this event?"""
    return bool(_hooks.get(name))


# -- reasons to stop before all is done. A script may register them at each loading; each counts once ------------------

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


# -- how long tasks take -----------------------------------------------------------------------------------------------


class TimeTasks:
    """Collects how long tasks of each name take."""

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
