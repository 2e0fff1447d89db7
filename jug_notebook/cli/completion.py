"""``completion``: makes a shell complete our commands, options, and the names of functions, hosts and jugfiles.

The shell runs `jug-notebook` with the line typed so far in its environment, and `complete` prints what may follow, with
`argcomplete`. None of the user's code runs for that: a jugfile is parsed, not executed.
"""

from __future__ import annotations

import argparse
import ast
import glob
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from jug_notebook.cli import DEFAULT_JUGFILE, Arguments, Parser, UsageError, command, commands, register, split
from jug_notebook.errors import JugError

if TYPE_CHECKING:
    from jug_notebook.store import Store

SHELLS = ("bash", "zsh", "fish", "tcsh")
SET_UP = """\
bash:  jug-notebook completion bash > ~/.local/share/bash-completion/completions/jug-notebook
zsh:   jug-notebook completion zsh > DIR/_jug-notebook, where DIR is in $fpath
fish:  jug-notebook completion fish > ~/.config/fish/completions/jug-notebook.fish
tcsh:  jug-notebook completion tcsh >> ~/.tcshrc"""
#: argcomplete's own code for tcsh needs a program that isn't installed with it
_TCSH = "complete jug-notebook 'p@*@`jug-notebook completion --line $COMMAND_LINE:q`@'"


def _add_completion(parser: Parser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = SET_UP
    parser.add_argument("shell", nargs="?", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.add_argument("--line", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # what tcsh passes


@register("completion", "print the completion script for bash, zsh, fish or tcsh", add=_add_completion)
def _completion(arguments: Arguments) -> int:
    if arguments.line is not None:
        line = " ".join(arguments.line)
        os.environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
        os.environ |= {"_ARGCOMPLETE_SHELL": "tcsh", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
        complete(sys.stdout)
    if arguments.shell is None:
        raise UsageError(f"name a shell: {', '.join(f'jug-notebook completion {shell}' for shell in SHELLS)}")
    from argcomplete.shell_integration import shellcode

    print(_TCSH if arguments.shell == "tcsh" else shellcode(["jug-notebook"], shell=arguments.shell))
    return 0


def complete(out: TextIO | None = None) -> None:
    """Print for the shell what may follow the line in ``$COMP_LINE``, and exit."""
    import argcomplete

    typed = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")[1:-1]
    name, words = split([word for word in typed if word])
    found = command(name) if name else None
    parser = Parser()
    parser.add_argument("--version", action="store_true", help="show the version")
    children = parser.add_subparsers(parser_class=argparse.ArgumentParser)
    for each, one in ({name: found} if name and found else commands()).items():
        children.add_parser(each, help=one.help)
    if name and found:
        children.choices[name] = child = Parser(name, found)
        for action in child._actions:
            action.completer = _completer(action.dest, name, found.words, words)  # type: ignore[attr-defined]
    files: Any = _files
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=files, output_stream=out)


def _completer(dest: str, name: str, usage: str, words: list[str]) -> Any:
    """Return what completes an option's value or the positional words; None: its choices, else files."""
    functions = partial(_functions, words)
    if dest in ("target", "execute_name", "execute_pattern", "invalid_name", "invalid_pattern"):
        return functions
    if dest == "words" and "TARGET" in usage:
        return lambda **about: [*functions(), *_files(ending=".py", **about)]
    return partial(_hosts, words) if dest == "host" and name != "webstatus" else None


def _files(prefix: str, ending: str = "", **_: Any) -> list[str]:
    paths = glob.glob(f"{glob.escape(prefix)}*")
    folders = [f"{path}/" for path in paths if os.path.isdir(path)]
    return [*folders, *(path for path in paths if path.endswith(ending) and f"{path}/" not in folders)]


def _hosts(words: list[str], **_: Any) -> list[str]:
    """Return the hosts that work for the store, and those in ssh's configuration."""
    config = Path("~/.ssh/config").expanduser()
    lines = config.read_text(errors="replace").splitlines() if config.is_file() else []
    named = [word for line in lines if line.lower().startswith("host ") for word in line.split()[1:]]
    with _store_and_script(words) as (store, _script):
        working = [] if store is None else [info.host for info, _, _ in store.processes() if info.host.isprintable()]
    return list(dict.fromkeys([*working, *(word for word in named if not set("*?!") & set(word))]))


def _functions(words: list[str], **_: Any) -> list[str]:
    """Return the functions of the store and of the jugfile that the words typed so far name."""
    with _store_and_script(words) as (store, script):
        stored = [] if store is None else [function.name for function in store.snapshot().functions]
    found = dict.fromkeys([*(_functions_in(script) if script else ()), *stored])
    return [name for name in found if re.fullmatch(r"[\w.]+", name)]


@contextmanager
def _store_and_script(words: list[str]) -> Iterator[tuple[Store | None, str | None]]:
    """Yield the store that the words typed so far name, None if it can't be read, and the jugfile."""
    from jug_notebook.store import exists, open_store

    arguments, rest = Parser(add_help=False).parse_known_args(words)
    url = arguments.jugdir or os.environ.get("JUG_STORE")
    named = [word for word in rest if word.endswith(".py")]
    script = next(filter(os.path.isfile, named or [DEFAULT_JUGFILE] * (not url)), None)
    if script and not url:
        from jug_notebook.compat import configuration

        url = str(configuration.settle({"jugfile": script}, {})["jugdir"])
    url = url or "jugdata"
    try:
        store = open_store(url) if exists(url) else None
    except JugError:  # complete nothing, and print nothing
        store = None
    yield store, script
    if store is not None:
        store.close()


def _functions_in(script: str) -> list[str]:
    """Return the functions that a script probably makes tasks of: those with a decorator, and arguments of calls."""
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    arguments = {argument.id for call in calls for argument in call.args if isinstance(argument, ast.Name)}
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and (node.decorator_list or node.name in arguments)
    ]
