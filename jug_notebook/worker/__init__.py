"""What runs tasks: the worker's loop, the supervisor that starts and watches workers, and what they capture.

`WorkerOptions` is what is asked of workers, one record from the magic, command or call that asks to each worker's loop.
"""

from __future__ import annotations

import math
import operator
from hashlib import blake2b
from numbers import Real
from typing import Any

import msgspec

from jug_notebook.errors import LaunchError
from jug_notebook.model import Target, WorkerId

#: options that have a flag of the same name in ``jug-notebook worker``
_FLAGS = ("idle_timeout", "max_tasks", "max_time", "memory_limit", "tied_to")


def whole_number(name: str, given: Any, unit: str = "workers", instead: str = "", least: int = 1) -> int:
    """Return a number of workers or tasks as an int. Raises LaunchError unless it is a whole number of 1 or more."""
    try:
        number = -1 if isinstance(given, bool) else operator.index(given)  # numpy's integers are whole numbers, too
    except TypeError:
        number = -1
    if number < least:
        raise LaunchError(f"{name}={given!r:.60}: give a whole number of {unit}, 1 or more{instead}")
    return number


def positive_number(name: str, given: Any, unit: str = "seconds") -> float:
    """Return a length of time or a size. Raises LaunchError for anything but a finite number of more than 0."""
    real = isinstance(given, Real) and not isinstance(given, bool)
    if not (real and given > 0 and math.isfinite(given)):
        raise LaunchError(f"{name}={given!r:.60}: give a number of {unit}, more than 0; for no limit leave it out")
    return given if type(given) is int else float(given)


class WorkerOptions(msgspec.Struct, frozen=True):
    """What is asked of workers. ``size`` is the total to have on each host with otherwise equal options.

    A new option needs a field here, the flag that sets it (`Session.execute`, ``jug_notebook/cli/run.py``,
    ``kernel_ext``) and the code that heeds it. Raises LaunchError for a number that makes no sense.
    """

    size: int = 0  #: 0: one per core of that host
    idle_timeout: float = 600  #: seconds with nothing to do and no session attached; 0: sessions don't count
    max_tasks: int | None = None  #: for each worker
    max_time: float | None = None  #: seconds; no task starts afterwards, nor one that would not end by then
    memory_limit: int | None = None  #: bytes, for a task with its subprocesses
    target: Target | None = None  #: run these tasks and what they need, and no others
    python: str | None = None  #: the Python to run
    tied_to: WorkerId = ""  #: end when this process is gone
    setup: str = ""  #: shell commands to run on another host first
    folders: tuple[tuple[str, str], ...] = ()  #: pairs of a folder here and where that is there
    keep_going: bool = True  #: start new tasks after one has failed for good

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"size": whole_number("workers", self.size, least=0)}
        if self.max_tasks is not None:
            checked["max_tasks"] = whole_number("max_tasks", self.max_tasks, "tasks")
        if self.max_time is not None:
            checked["max_time"] = positive_number("max_time", self.max_time)
        if self.memory_limit is not None:
            checked["memory_limit"] = int(positive_number("memory_limit", self.memory_limit, "bytes"))
        if type(self.idle_timeout) is bool or self.idle_timeout != 0:
            checked["idle_timeout"] = positive_number("idle_timeout", self.idle_timeout)
        for name, value in checked.items():
            if value is not getattr(self, name):
                msgspec.structs.force_setattr(self, name, value)

    @property
    def suffix(self) -> str:
        """Return what tells crews apart that must not be one; empty for the default options, whatever the size."""
        options = msgspec.structs.replace(self, size=0)
        if options == WorkerOptions():
            return ""
        return "-" + blake2b(msgspec.json.encode(options, order="deterministic"), digest_size=4).hexdigest()

    def arguments(self) -> list[str]:
        """Return the options as ``jug-notebook worker`` takes them."""
        words = ["-n", str(self.size)]
        for name in _FLAGS:
            if (value := getattr(self, name)) not in (None, ""):
                words += [f"--{name.replace('_', '-')}", str(value)]
        if not self.keep_going:
            words.append("--no-keep-going")
        if self.target is not None:
            for name in sorted(self.target.names | self.target.keys):
                words += ["--target", name]
        return words


def options_in(parsed: Any) -> dict[str, Any]:
    """Return the fields of `WorkerOptions` that a parsed command line or magic has, by name."""
    return {name: value for name, value in vars(parsed).items() if name in WorkerOptions.__struct_fields__}
