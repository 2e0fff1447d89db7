"""The options of commands for jugfiles: from the command line, else from ``jugrc`` files, else the defaults."""

from __future__ import annotations

import configparser
import logging
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jug_notebook.errors import JugError

GLOBAL = ("~/.config/jug/jugrc", "~/.config/jugrc", "~/.jug/configrc")
LOCAL = (".jugrc", "jugrc")

DEFAULTS: dict[str, Any] = {
    "jugdir": "%(jugfile)s.jugdata",
    "jugfile": "jugfile.py",
    "aggressive_unload": False,
    "short": False,
    "pdb": False,
    "verbose": "quiet",
    "debug": False,
    "will_cite": False,
    "execute_wait_cycle_time": 12.0,
    "execute_nr_wait_cycles": 150,
    "execute_name": None,
    "execute_pattern": None,
    "execute_keep_going": False,
    "execute_keep_failed": False,
    "execute_no_check_environment": False,
    "execute_workers": None,
    "execute_part": False,
    "status_cache": False,
    "status_cache_clear": False,
    "status_cache_file": ".jugstatus.sqlite3",
    "invalid_name": None,
    "invalid_pattern": None,
    "cleanup_locks_only": False,
    "cleanup_failed_only": False,
    "cleanup_keep_locks": False,
    "graph_no_status": False,
    "graph_format": "png",
    "webstatus_port": 0,
    "webstatus_ip": "127.0.0.1",
    "trust": False,
    "install_skills_output": None,
    "install_skills_force": False,
}


class BadConfiguration(JugError):
    """A jugrc file can't be understood."""


def local_files() -> list[Path]:
    """Return the files from the project's root down to this folder, or only here; later ones override earlier ones."""
    here = Path.cwd()
    above = [here, *here.parents]
    root = next((folder for folder in above if (folder / ".git").exists()), here)
    project = reversed(above[: above.index(root) + 1])
    return [path for folder in project for name in reversed(LOCAL) if (path := folder / name).is_file()]


def texts() -> list[tuple[str, str]]:
    """Return the text of each configuration file with its path; later ones override earlier ones."""
    user = [path for path in map(Path, map(os.path.expanduser, GLOBAL)) if path.is_file()][:1]
    return [(_text_of(path), str(path)) for path in [*user, *local_files()]]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as wrong:
        raise BadConfiguration(f"{path} can't be read: {wrong}") from wrong


def parsed(text: str, file: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a file sets, with the types of their defaults. Raises BadConfiguration."""
    config = configparser.RawConfigParser()
    try:
        config.read_string(text, file)
    except configparser.Error as wrong:
        raise BadConfiguration(f"{file}: {' '.join(str(wrong).split())}") from wrong
    found: dict[str, Any] = {}
    for section in config.sections():
        for key, setting in config.items(section):
            name = key.replace("-", "_")
            name = name if section == "main" else f"{section.replace('-', '_')}_{name}"
            default = defaults.get(name)
            try:
                found[name] = setting if default is None else _like(setting, default)
            except ValueError as wrong:
                kind = type(default).__name__
                raise BadConfiguration(f"{file}: {key} = {setting!r} in [{section}] is no {kind}") from wrong
    return found


def _like(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return text.lower() not in ("", "0", "false", "off", "no", "n")
    return type(default)(text)


def settle(given: dict[str, Any], more_defaults: dict[str, Any]) -> dict[str, Any]:
    """Return all options: ``given`` (and not None), else configured, else the defaults. Raises BadConfiguration."""
    defaults = {**DEFAULTS, **more_defaults}
    options = dict(defaults)
    for text, file in texts():
        options |= parsed(text, file, defaults)
    named = given.get("jugdir") or os.environ.get("JUG_STORE")
    options |= {name: value for name, value in given.items() if value is not None}
    options["jugdir"] = str(named or options["jugdir"])
    options["debug"] = options["debug"] or options["pdb"]
    options["jugdir"] = _filled(options["jugdir"], options["jugfile"])
    level = logging.getLevelName(str(options["verbose"]).upper())
    if isinstance(level, int):
        logging.getLogger().setLevel(level)
    return options


def _filled(jugdir: str, jugfile: str) -> str:
    try:
        return jugdir % {"date": datetime.now().strftime("%Y-%m-%d"), "jugfile": jugfile.removesuffix(".py")}
    except (ValueError, TypeError, KeyError) as wrong:
        raise BadConfiguration(
            f"jugdir {jugdir!r}: only %(jugfile)s and %(date)s can stand in it, and a per cent sign as %%"
        ) from wrong


# -- Jug's own names ---------------------------------------------------------------------------------------------------


class Options:
    """Options as attributes; one that isn't set is taken from ``next``. ``autoinit`` is called at the first look-up."""

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


def key_to_option(s: str) -> str:
    """Return the attribute name of an option in a jugrc file."""
    return s.replace("-", "_")


def find_local_configuration_files() -> list[str]:
    """Return the jugrc files from here up to the root of the project, the nearest first."""
    return [str(path) for path in reversed(local_files())]


def read_configuration_file(fp: Any = None, default_options: Any = None) -> Options:
    """Return the options of all jugrc files, or of the one that ``fp`` reads, else those of ``default_options``."""
    read = Options(default_options)
    for text, name in texts() if fp is None else [(fp.read(), str(getattr(fp, "name", "jugrc")))]:
        read.update(parsed(text, name, DEFAULTS))
    return read


default_options = Options()
default_options.update({"subcommand": None, "argv": None, "print_out": print, **DEFAULTS})
