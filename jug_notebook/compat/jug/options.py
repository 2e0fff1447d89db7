"""What a command was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jug_notebook.compat import configuration
from jug_notebook.compat.jug.backends.select import select
from jug_notebook.compat.jug.task import Task

__all__ = [
    "Options",
    "default_options",
    "find_local_configuration_files",
    "key_to_option",
    "read_configuration_file",
    "set_jugdir",
]


class Options:
    """Values by name; what isn't set here is asked of ``next``. ``autoinit`` is called on the first question."""

    def __init__(self, next: Any = None, autoinit: Callable[[Any], None] | None = None) -> None:
        self.__dict__.update(next=next, _autoinit=autoinit)

    def update(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def copy(self) -> Options:
        made = Options(self.__dict__["next"], self.__dict__["_autoinit"])
        made.update(self.__dict__)
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        fill = self.__dict__.get("_autoinit")
        if fill:
            self.__dict__["_autoinit"] = None
            fill(self)
            return getattr(self, name)
        following = self.__dict__.get("next")
        if following is None:
            raise AttributeError(f"no option {name!r}")
        return getattr(following, name)


def set_jugdir(jugdir: Any) -> Any:
    """Use this store from now on, for all tasks of the script. None means 'jugdata'."""
    store = select("jugdata" if jugdir is None else jugdir)
    if getattr(Task.store, "jugdir", None) != getattr(store, "jugdir", store):
        Task.store = store
    return Task.store


def key_to_option(s: str) -> str:
    """What an option of a jugrc file is called here."""
    return s.replace("-", "_")


def find_local_configuration_files() -> list[str]:
    """The jugrc files from here up to the root of the project, the nearest first."""
    return [str(path) for path in reversed(configuration.local_files())]


def read_configuration_file(fp: Any = None, default_options: Any = None) -> Options:
    """What jugrc files say, or the one that ``fp`` reads; what they don't is asked of ``default_options``."""
    read = Options(default_options)
    known = configuration.DEFAULTS
    texts = [(fp.read(), str(getattr(fp, "name", "jugrc")))] if fp is not None else configuration.texts()
    for text, name in texts:
        read.update(configuration.parsed(text, name, known))
    return read


def _fill(options: Options) -> None:
    options.update({"subcommand": None, "argv": None, "print_out": print, **configuration.DEFAULTS})


default_options = Options(None, _fill)
