"""The command line, ``jug-notebook`` or ``python -m jug_notebook``: finds the command, parses its arguments, runs it.

Exit status: 0: success; 1: a task failed or is not done, or a notebook's cell failed; 2: the command is not valid or
not possible.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings

from jug_notebook.cli import Command, Jugfile, Parser, UsageError, command, commands, split, what_is_meant
from jug_notebook.errors import JugError


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    warnings.formatwarning = _in_one_line
    collecting = gc.isenabled()
    try:
        if "_ARGCOMPLETE" in os.environ:
            from jug_notebook.cli.completion import complete

            complete()
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("jug-notebook: interrupted", file=sys.stderr)
        return 130
    except JugError as error:
        print("jug-notebook:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `jug-notebook status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if collecting:  # commands that end soon turn it off
            gc.enable()


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning about a store as a message; any other one, of the user's code, for instance, as Python does."""
    if category is UserWarning and filename.startswith(os.path.dirname(__file__)):
        return f"jug-notebook: {message}\n"
    return _as_python_does(message, category, filename, lineno, line)


_as_python_does = warnings.formatwarning


def main_execute() -> int:
    """Run ``jug-notebook execute``: the program ``jug-notebook-execute``."""
    return main(["execute", *sys.argv[1:]])


def _dispatch(argv: list[str]) -> int:
    name, words = split(argv)
    if name is None:
        return _without_command(words)
    found = command(name) or _users(name)
    parser = Parser(name, found)
    arguments = parser.read(words)
    if not found.words:
        return found.run(arguments)
    arguments.of = of = what_is_meant(found, parser, arguments)
    if isinstance(of, Jugfile) and found.jugfile is not None:
        arguments.jugfile, arguments.user_args = of
        return found.jugfile(arguments)
    return found.run(arguments)


def _users(name: str) -> Command:
    """Return the command that the user has written for Jug, in ``jug_user_commands.py``. Raises UsageError."""
    import difflib

    from jug_notebook.cli import jugfiles

    found = jugfiles.users(name)
    if found is not None:
        return found
    close = difflib.get_close_matches(name, list(commands()), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "jug-notebook --help lists them"
    raise UsageError(f"no command {name!r}; {hint}")


def _without_command(argv: list[str]) -> int:
    parser = Parser(
        usage="jug-notebook [--jugdir URL] COMMAND …",
        description="Tasks of notebooks and jugfiles, from a shell. For each command: jug-notebook COMMAND --help",
        epilog="commands:\n" + _table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("--print-completion", metavar="SHELL", help="the same as: completion SHELL")
    arguments = parser.parse_args(argv)
    if arguments.print_completion is not None:
        return _dispatch(["completion", arguments.print_completion])
    if arguments.version:
        from jug_notebook import __version__

        print("jug-notebook", __version__)
        return 0
    parser.print_help(sys.stderr)
    return 2


def _table() -> str:
    listed = commands()
    width = max(map(len, listed))
    return "\n".join(f"  {name:<{width}}  {found.help}" for name, found in listed.items())


if __name__ == "__main__":
    sys.exit(main())
