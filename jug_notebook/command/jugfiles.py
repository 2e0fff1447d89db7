"""Commands about jugfiles: those that answer where a script is named, and those that there are for scripts only."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from jug_notebook.command import Arguments, Command
from jug_notebook.compat.commands import ALONE, SCRIPTS, Script, add_common, as_store, settled, users_command

DEFAULT = "jugfile.py"
URL_OPTIONS = ("--jugdir", "--store")


def for_script(name: str, words: Sequence[str]) -> Command | None:
    """What the command ``name`` does where these words mean a jugfile; None where they don't.

    They do where the first that is no option ends in ".py"; and where no store is named and there is a jugfile.py.
    """
    script = SCRIPTS.get(name)
    if script is None:
        return None
    first = _first(script, words)
    if first is not None:
        return _command(name, script) if first.endswith(".py") else None
    return _command(name, script) if _by_default(words) else None


def store_instead(name: str, words: list[str]) -> list[str]:
    """For a command that is about stores: the store of the jugfile that is named, if one is."""
    if name in ALONE or name in SCRIPTS:
        return words
    first = next((word for word in words if not word.startswith("-")), "")
    if not first.endswith(".py") or not Path(first).is_file():
        return words
    rest = [word for word in words if word != first]
    named = next((rest[i + 1] for i, word in enumerate(rest[:-1]) if word in URL_OPTIONS), None)
    return rest if named else [*rest, "--jugdir", as_store(first, None)]


def users(name: str) -> Command | None:
    """A sub-command that the user has written; None where there is none of that name."""
    from jug_notebook.compat import answering
    from jug_notebook.compat.jug.subcommands import cmdapi, users_file

    if not users_file():
        return None
    with answering():
        command = cmdapi.load().get(name)
    return None if command is None else _command(name, users_command(command), command.parse_defaults())


def _first(script: Script, words: Sequence[str]) -> str | None:
    """The first word that is neither an option nor an option's value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(*URL_OPTIONS)
    script.add(parser)
    takes = {option for action in parser._actions if action.nargs is None for option in action.option_strings}
    takes.add("--verbose")
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in takes:
            skip = True
        elif not word.startswith("-"):
            return word
    return None


def _by_default(words: Sequence[str]) -> bool:
    named = any(word.partition("=")[0] in URL_OPTIONS for word in words) or "JUG_STORE" in os.environ
    return not named and Path(DEFAULT).is_file()


def _command(name: str, script: Script, defaults: dict[str, object] | None = None) -> Command:
    def add(parser: argparse.ArgumentParser) -> None:
        script.add(parser)
        add_common(parser)

    def run(arguments: Arguments) -> int:
        options = settled(name, arguments, defaults)
        options.update({"jugdir_given": arguments.jugdir is not None})
        return script.run(options)

    return Command(script.help, add, run, mixed=True)


COMMANDS = {name: _command(name, script) for name, script in {**SCRIPTS, **ALONE}.items()}
