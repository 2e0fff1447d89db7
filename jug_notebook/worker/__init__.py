"""What runs tasks: the worker's loop, the supervisor that starts and watches workers, and what they capture.

`WorkerOptions` is what is asked of workers, one record from the magic, command or call that asks to each worker's loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from jug_notebook.errors import LaunchError
from jug_notebook.model import Resources, Target, WorkerId
from jug_notebook.render.format import GPU, parse_resources
from jug_notebook.store import PATIENCE
from jug_notebook.system import positive_number, whole_number

#: options that have a flag of the same name in ``jug-notebook worker``
_FLAGS = ("idle_timeout", "max_tasks", "max_time", "memory_limit", "patience", "tied_to")


MOST_WORKERS = 4096  #: on one host: more is a slip


def number_of_workers(name: str, given: Any, *, least: int = 1, instead: str = "") -> int:
    """Return a number of workers as an int. Raises LaunchError unless it is a whole number from ``least`` on."""
    return whole_number(name, given, "workers", least=least, most=MOST_WORKERS, instead=instead, error=LaunchError)


class WorkerOptions(msgspec.Struct, frozen=True):
    """What is asked of workers. ``size`` is the total to have on each host with otherwise equal options.

    A new option needs a field here, the flag that sets it (`Session.execute`, ``jug_notebook/cli/run.py``,
    ``kernel_ext``) and the code that heeds it. Raises LaunchError for a number that makes no sense.
    """

    size: int = 0  #: 0: one per core of that host
    idle_timeout: float = 600  #: seconds with nothing to do, after which workers end
    keep_attached: bool = True  #: they don't while a session is open, unless ``idle_timeout`` is 0
    max_tasks: int | None = None  #: for each worker
    max_time: float | None = None  #: seconds; no task starts afterwards, nor one that would not end by then
    memory_limit: int | None = None  #: bytes, for a task with its subprocesses
    target: Target | None = None  #: run these tasks and what they need, and no others
    python: str | None = None  #: the Python to run
    tied_to: WorkerId = ""  #: end when this process is gone
    setup: str = ""  #: shell commands to run on another host first
    folders: tuple[tuple[str, str], ...] = ()  #: pairs of a folder here and where that is there
    keep_going: bool = True  #: start new tasks after one has failed for good
    gpus: tuple[str, ...] | None = None  #: ids of the GPUs to use; None: those that are found
    resources: Resources = ()  #: what there is of other things, by name; "mem" in place of what is found
    env: tuple[tuple[str, str], ...] = ()  #: variables to set in workers
    patience: float = PATIENCE  #: seconds for which workers wait for the store's server when it is away

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "gpus": None if self.gpus is None else devices_in(self.gpus),
            "resources": resources_in(self.resources),
            "env": environment_in(self.env),
        }
        if self.patience != 0:
            checked["patience"] = positive_number("patience", self.patience, error=LaunchError)
        if type(self.size) is not int or self.size != 0:
            checked["size"] = number_of_workers("workers", self.size)
        if self.max_tasks is not None:
            checked["max_tasks"] = whole_number("max_tasks", self.max_tasks, "tasks", error=LaunchError)
        if self.max_time is not None:
            checked["max_time"] = positive_number("max_time", self.max_time, error=LaunchError)
        if self.memory_limit is not None:
            checked["memory_limit"] = int(
                positive_number("memory_limit", self.memory_limit, "bytes", error=LaunchError)
            )
        if type(self.idle_timeout) is bool or self.idle_timeout != 0:
            checked["idle_timeout"] = positive_number("idle_timeout", self.idle_timeout, error=LaunchError)
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
        if self.keep_attached:
            words.append("--keep-attached")
        if self.gpus is not None:
            words += ["--gpus", ",".join(self.gpus) or "none"]
        if self.resources:
            words += ["--resources", ",".join(f"{name}={amount:.17g}" for name, amount in self.resources)]
        for name, value in self.env:
            words += ["--env", f"{name}={value}"]
        if not self.keep_going:
            words.append("--no-keep-going")
        if self.target is not None:
            for name in sorted(self.target.names | self.target.keys):
                words += ["--target", name]
            for name in sorted(self.target.not_names | self.target.not_keys):
                words += ["--not-target", name]
        return words


def devices_in(given: Any) -> tuple[str, ...]:
    """Return ids of GPUs, of "0,1", ["0", "1"] or "none". Raises LaunchError."""
    if isinstance(given, str):
        given = [] if given == "none" else [word.strip() for word in given.split(",")]
    ids = [str(one) for one in given] if isinstance(given, list | tuple | range) else [""]
    if not all(ids) or len(set(ids)) < len(ids):
        raise LaunchError(f"gpus={given!r:.60}: give the ids of GPUs, each once, as in '0,1'; 'none' for none")
    return tuple(ids)


def resources_in(given: Any) -> Resources:
    """Return what hosts have, by name. Raises LaunchError."""
    found = parse_resources(given, LaunchError)
    if any(name == GPU for name, _ in found):
        raise LaunchError("GPUs of a host are named by their ids: --gpus 0,1, or gpus='0,1'")
    return found


def environment_in(given: Any) -> tuple[tuple[str, str], ...]:
    """Return variables and their values, sorted, of {"K": "V"} or ["K=V"]. Raises LaunchError."""
    given = given.items() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else [given]
    pairs: list[Any] = [one.split("=", 1) if isinstance(one, str) else one for one in given]
    for pair in pairs:
        good = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(word, str) for word in pair)
        if not good or not pair[0] or "=" in pair[0] or "\0" in "".join(pair):
            raise LaunchError(f"env={pair!r:.60} is not a variable with a value; give NAME=VALUE")
    return tuple(sorted(dict(pairs).items()))


def options_in(parsed: Any) -> dict[str, Any]:
    """Return the fields of `WorkerOptions` that a parsed command line or magic has, by name."""
    return {name: value for name, value in vars(parsed).items() if name in WorkerOptions.__struct_fields__}
