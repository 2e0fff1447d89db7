"""The command line, ``jug-notebook`` or ``python -m jug_notebook``. What each command does is told in `command`.

Exit status: 0 fine; 1 some task failed or is not done, or a notebook's cell failed; 2 asked wrongly, or can't be done.
"""

from __future__ import annotations

import argparse
import os
import sys

from jug_notebook.cli import Command, UsageError, command, commands
from jug_notebook.errors import JugError


def main(argv: list[str] | None = None) -> int:
    """Run one command; answers the exit status."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("jug-notebook: interrupted", file=sys.stderr)
        return 130
    except JugError as error:
        print("jug-notebook:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `jug-notebook status | head`: nobody reads on, and that's fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main_execute() -> int:
    """The program ``jug-notebook-execute``: as ``jug-notebook execute``."""
    return main(["execute", *sys.argv[1:]])


def _dispatch(argv: list[str]) -> int:
    name, rest = _split(argv)
    if name is None:
        return _without_command(rest)
    found = _about_script(name, rest)
    if found is None:
        found = command(name)
        rest = rest if found is None else _in_its_store(name, rest)
    found = found or _users(name)
    parser = _parser(f"jug-notebook {name}", found.help)
    found.add_arguments(parser)
    return found.run(parser.parse_intermixed_args(rest) if found.mixed else parser.parse_args(rest))


def _about_script(name: str, words: list[str]) -> Command | None:
    """What the command does for a jugfile, where one is meant."""
    if not _names_script(words):
        return None
    from jug_notebook.cli import jugfiles

    return jugfiles.for_script(name, words)


def _names_script(words: list[str]) -> bool:
    return any(word.endswith(".py") for word in words) or os.path.isfile("jugfile.py")


def _in_its_store(name: str, words: list[str]) -> list[str]:
    """What is asked of a store may be asked of a script: then its store is meant."""
    if not _names_script(words):
        return words
    from jug_notebook.cli import jugfiles

    return jugfiles.store_instead(name, words)


def _users(name: str) -> Command:
    from jug_notebook.cli import jugfiles

    found = jugfiles.users(name)
    if found is None:
        raise UsageError(_unknown(name))
    return found


_URL_OPTIONS = ("--jugdir", "--store")


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """(command, all else): options that every command takes may stand before it."""
    skip = False
    for i, word in enumerate(argv):
        if skip:
            skip = False
        elif word in (*_URL_OPTIONS, "--print-completion"):
            skip = True
        elif not word.startswith("-"):
            return word, argv[:i] + argv[i + 1 :]
    return None, argv


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        *_URL_OPTIONS,
        dest="jugdir",
        metavar="URL",
        help="the store: a folder, or its URL (default: $JUG_STORE, else 'jugdata')",
    )
    return parser


def _without_command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="jug-notebook",
        usage="jug-notebook [--jugdir URL] COMMAND …",
        description="Tasks of notebooks, from a shell. Each command explains itself: jug-notebook COMMAND --help",
        epilog="commands:\n" + _table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("--print-completion", metavar="SHELL", help="the same as: completion SHELL")
    parser.add_argument(
        *_URL_OPTIONS, dest="jugdir", metavar="URL", help="the store (default: $JUG_STORE, else 'jugdata')"
    )
    asked = parser.parse_args(argv)
    if asked.print_completion is not None:
        return _dispatch(["completion", asked.print_completion])
    if asked.version:
        from jug_notebook import __version__

        print("jug-notebook", __version__)
        return 0
    parser.print_help(sys.stderr)
    return 2


def _table() -> str:
    listed = commands()
    width = max(map(len, listed))
    return "\n".join(f"  {name:<{width}}  {found.help}" for name, found in listed.items())


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, list(commands()), n=1)
    return f"no command {name!r}; " + (f"did you mean {close[0]!r}?" if close else "jug-notebook --help lists them")


if __name__ == "__main__":
    sys.exit(main())
