"""Jug's public names (those of 2.7), by Jug's module names, for scripts with ``from jug.x import …``.

`NAMES` lists where each name is defined. Jug's modules that are no files here (``jug.hooks``, ``jug.io`` …) are made
from it; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "2.7.0"  #: the version of Jug whose names these are

_HOOKS = {"hooks": "jug_hook register_hook register_hook_once reset_all_hooks listened EVENTS"}
#: Jug's module: {the module here that has it, in ``jug_notebook.compat``: names, as "ours=Jug's" where they differ}
NAMES: dict[str, dict[str, str]] = {
    "": {
        "jug.task": "CachedFunction Task TaskGenerator Tasklet barrier bvalue iteratetask return_tuple value",
        "jug.mapreduce": "CompoundTask CompoundTaskGenerator",
        "jugdir": "dict_store file_store redis_store",
        "loading": "init is_jug_running set_jugdir",
    },
    "backends": {"jugdir": "memoize_store select"},
    "backends.base": {"jugdir": "Jugdir=base_store Lock=base_lock"},
    "backends.dict_store": {"jugdir": "dict_store"},
    "backends.file_store": {"jugdir": "file_store file_store=file_keepalive_store fsync_dir"},
    "backends.memoize_store": {"jugdir": "memoize_store"},
    "backends.redis_store": {"jugdir": "redis_store"},
    "backends.select": {"jugdir": "select"},
    "barrier": {"jug.task": "BarrierError barrier bvalue"},
    "compound": {"jug.mapreduce": "CompoundTask CompoundTaskGenerator"},
    "hash": {"jug.task": "hash_one hash_update new_hash_object"},
    "hooks": _HOOKS,
    "hooks.register": _HOOKS,
    "hooks.execution": {"hooks": "TimeTasks register_time_tasks"},
    "hooks.exit_checks": {
        "hooks": "exit_after_n_tasks exit_after_time exit_env_vars exit_if_file_exists exit_when_true"
    },
    "io": {
        "jug.utils": "NoLoad TaskGenerator Tasklet print_task_summary_table write_metadata write_task_out "
        "get_terminal_size"
    },
    "jug": {"loading": "init is_jug_running"},
    "jug_version": {"jug": "__version__"},
    "options": {
        "configuration": "Options default_options find_local_configuration_files key_to_option read_configuration_file",
        "loading": "set_jugdir",
    },
    "subcommands": {"commands": "NoSuchCommandError SubCommand SubCommandError cmdapi"},
    "unsafe": {"jug.utils": "NoHash"},
}
#: all modules: those with a file here, and those made from `NAMES`
MODULES = ["jug", *(f"jug.{name}" for name in ["task", "mapreduce", "utils", *NAMES] if name)]


def _homes(module: str) -> dict[str, tuple[str, str]]:
    """Return ``{Jug's name: (the module here, its name there)}``."""
    pairs = [(home, *word.partition("=")[::2]) for home, words in NAMES[module].items() for word in words.split()]
    return {theirs or ours: (f"jug_notebook.compat.{home}", ours) for home, ours, theirs in pairs}


class _Names(ModuleType):
    """A module of Jug's whose names are defined elsewhere."""

    def __init__(self, module: str) -> None:
        super().__init__(f"{__name__}.{module}", f"Names of ``jug.{module}``.")
        self.__spec__ = ModuleSpec(self.__name__, None, is_package=any(name.startswith(f"{module}.") for name in NAMES))
        self.__path__: list[str] = []
        self._homes = _homes(module)
        self.__all__ = list(self._homes)

    def __getattr__(self, name: str) -> Any:
        return _found(self, self._homes, name)


def _found(module: ModuleType, homes: dict[str, tuple[str, str]], name: str) -> Any:
    if name not in homes:
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    home, ours = homes[name]
    value = getattr(importlib.import_module(home), ours)
    setattr(module, name, value)
    return value


def __getattr__(name: str) -> Any:
    return _found(sys.modules[__name__], _PUBLIC, name)


_PUBLIC = _homes("")
__all__ = [*_PUBLIC, "__version__"]
for _name in NAMES:
    if _name:
        sys.modules[f"{__name__}.{_name}"] = _Names(_name)
        _above, _, _last = f"{__name__}.{_name}".rpartition(".")
        if _last not in sys.modules[_above].__all__:  # ``jug.barrier`` is the function, as in Jug
            setattr(sys.modules[_above], _last, sys.modules[f"{__name__}.{_name}"])
