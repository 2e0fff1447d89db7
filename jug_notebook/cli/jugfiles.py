"""Commands about jugfiles: those that answer where a script is named, and those that there are for scripts only."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jug_notebook.cli import ROOMS, Arguments, Command, store_of
from jug_notebook.compat import commands
from jug_notebook.compat.commands import ALONE, Script, add_common, as_store, settled, users_command

DEFAULT = "jugfile.py"
URL_OPTIONS = ("--jugdir", "--store")


def _add_webstatus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, dest="webstatus_port", metavar="N", help="the port (default: any free one)")
    parser.add_argument(
        "--ip", "--host", dest="webstatus_ip", metavar="HOST", help="who may connect (default: this machine alone)"
    )


def _webstatus(options: Any) -> int:
    """The tasks are handed in, so that the page has them all; who runs them is seen to do it."""
    from jug_notebook.cli.webstatus import serve
    from jug_notebook.compat.jug.task import Task

    with commands.loaded(options, read_only=False):
        _ = Task.store.session
        url = Task.store.url
    return serve(url, options.webstatus_ip, options.webstatus_port)


SCRIPTS = {
    **commands.SCRIPTS,
    "webstatus": Script("the status of a jugfile as a page that follows it", _add_webstatus, _webstatus),
}

#: commands for scripts that there are for stores, too
ROOMS_OF_STORES = frozenset(name for name in SCRIPTS if ROOMS.get(name, "jugfiles") != "jugfiles")


def for_script(name: str, words: Sequence[str]) -> Command | None:
    """What the command ``name`` does where these words mean a jugfile; None where they don't.

    They do where the first that is no option ends in ".py"; and where no store is named and there is a jugfile.py.
    Where an option is one that only stores have, the script's store is meant: see `store_instead`.
    """
    script = SCRIPTS.get(name)
    if script is None or _strange(script, words):
        return None
    first = _first(script, words)
    if first is not None:
        return _command(name, script) if first.endswith(".py") else None
    return _command(name, script) if _by_default(words) else None


def store_instead(name: str, words: list[str]) -> list[str]:
    """For a command that is about stores: the store of the jugfile that is named, if one is. Completing runs none."""
    if name == "completion" or name in ALONE or (name in SCRIPTS and name not in ROOMS_OF_STORES):
        return words
    script = next((word for word in words if word.endswith(".py") and Path(word).is_file()), None)
    if script is None and name in SCRIPTS and _by_default(words) and not any(map(_is_url, words)):
        script = DEFAULT
    if script is None:
        return words
    rest = [word for word in words if word != script]
    named = any(word.partition("=")[0] in URL_OPTIONS for word in rest)
    return rest if named else [*rest, "--jugdir", as_store(script, None)]


def _is_url(word: str) -> bool:
    return not word.startswith("-")


def users(name: str) -> Command | None:
    """A sub-command that the user has written; None where there is none of that name."""
    from jug_notebook.compat import answering
    from jug_notebook.compat.jug.subcommands import cmdapi, users_file

    if not users_file():
        return None
    with answering():
        command = cmdapi.load().get(name)
    return None if command is None else _command(name, users_command(command), command.parse_defaults())


def _parser(script: Script) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(*URL_OPTIONS)
    script.add(parser)
    add_common(parser)
    return parser


def _strange(script: Script, words: Sequence[str]) -> bool:
    """Is there an option that the command for scripts does not have?"""
    known = {option for action in _parser(script)._actions for option in action.option_strings}
    told = words[: words.index("--")] if "--" in words else words
    return any(word.startswith("-") and word != "-" and word.partition("=")[0] not in known for word in told)


def _first(script: Script, words: Sequence[str]) -> str | None:
    """The first word that is neither an option nor an option's value."""
    actions = _parser(script)._actions
    takes = {option for action in actions if action.nargs is None for option in action.option_strings}
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


def _sleep_for_store(arguments: Arguments) -> int:
    """Wait until nothing is left to do in a store; 0 where all its tasks have values then."""
    from jug_notebook.model import OPEN_STATES, State

    store = store_of(arguments, arguments.jugfile)
    seen = -1
    while True:
        counts = store.snapshot().counts
        if not any(counts[state] for state in OPEN_STATES):
            break
        seen = store.watch(seen, 1.0)
    store.close()
    return 1 if counts[State.FAILED] or counts[State.BLOCKED] else 0


def _sleep_until() -> Command:
    of_script = _command("sleep-until", SCRIPTS["sleep-until"])

    def run(arguments: Arguments) -> int:
        script = (arguments.jugfile or "").endswith(".py") or (not arguments.jugfile and _by_default([]))
        return of_script.run(arguments) if script else _sleep_for_store(arguments)

    return of_script._replace(run=run, help="wait until nothing is left to do, for a jugfile or a store")


COMMANDS = {name: _command(name, script) for name, script in {**SCRIPTS, **ALONE}.items()}
COMMANDS["sleep-until"] = _sleep_until()
