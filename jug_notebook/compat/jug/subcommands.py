"""Commands that users write: classes derived from `SubCommand`, in ``~/.config/jug/jug_user_commands.py``."""

from __future__ import annotations

import importlib
import sys
from abc import ABCMeta, abstractmethod
from pathlib import Path
from typing import Any

from jug_notebook.compat import replacing_jug

__all__ = ["NoSuchCommandError", "SubCommand", "SubCommandError", "cmdapi"]

FOLDER = "~/.config/jug"
MODULE = "jug_user_commands"


class SubCommandError(Exception):
    """A sub-command is not written as it should be."""


class NoSuchCommandError(Exception):
    """There is no such sub-command."""


class SubCommand(metaclass=ABCMeta):
    """A sub-command; the help lists it with the first line of its docstring."""

    def __init__(self) -> None:
        cmdapi.register(self)

    @property
    @abstractmethod
    def name(self) -> str:
        """The command's name."""

    def parse(self, parser: Any) -> None:
        """Add options to an ``argparse`` parser; with ``store_const``, so that jugrc files can set them."""
        return

    def parse_defaults(self) -> dict[str, Any] | None:
        """Return the defaults of the options."""
        return None

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command with ``options``, ``store`` and ``jugspace``. Return the exit status, or None for 0."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class _Commands:
    """The users' sub-commands."""

    def __init__(self) -> None:
        self._commands: dict[str, SubCommand] = {}

    def register(self, command: SubCommand) -> None:
        self._commands[command.name] = command

    def get(self, name: str) -> SubCommand:
        try:
            return self._commands[name]
        except KeyError:
            raise NoSuchCommandError(f"no sub-command {name!r}") from None

    def load(self) -> dict[str, SubCommand]:
        """Import the user's file, if there is one; return all commands by name."""
        folder = Path(FOLDER).expanduser()
        if (folder / f"{MODULE}.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            with replacing_jug():
                importlib.import_module(MODULE)
        return dict(self._commands)


cmdapi = _Commands()


def help_of(command: SubCommand) -> str:
    """Return the line for the help. Raises SubCommandError if there is none."""
    lines = (type(command).__doc__ or "").strip().splitlines()
    if not lines:
        raise SubCommandError(f"sub-command {command.name!r} has no docstring; its first line is its help")
    return lines[0]
