"""``completion``: what makes a shell complete our commands, options and the names of a store's or script's functions.

The script is written once, from the parsers themselves; only for names of functions does the shell ask us again. tcsh
asks us for all.
"""

from __future__ import annotations

import argparse
import ast
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jug_notebook.cli import Arguments, Command, UsageError, commands, is_there, url_of
from jug_notebook.errors import JugError

SHELLS = ("bash", "zsh", "fish", "tcsh")
HOW = {
    "bash": "jug-notebook completion bash > ~/.local/share/bash-completion/completions/jug-notebook",
    "zsh": "jug-notebook completion zsh > DIR/_jug-notebook, where DIR is in $fpath",
    "fish": "jug-notebook completion fish > ~/.config/fish/completions/jug-notebook.fish",
    "tcsh": "jug-notebook completion tcsh >> ~/.tcshrc",
}
STORE_OPTIONS = ("--jugdir", "--store")
#: what options are about whose value is a function
OF_NAMES = frozenset({"target", "execute_name", "execute_pattern", "invalid_name", "invalid_pattern"})
_NAME = re.compile(r"[\w.]+")


class Option(NamedTuple):
    """One of a command's, by all its spellings."""

    spellings: tuple[str, ...]
    help: str
    takes_value: bool
    names: bool  #: may the value be a function?


class Grammar(NamedTuple):
    """What may follow a command's name."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...]  #: that its argument may be
    names: bool  #: its argument may be a function of the store, or a script


def grammars() -> list[Grammar]:
    return [_grammar(name, found) for name, found in commands().items()]


def _grammar(name: str, found: Command) -> Grammar:
    options: dict[tuple[str, ...], Option] = {}
    words: list[str] = []
    names = False
    for action in _actions(name, found):
        said = " ".join((action.help or "").replace("%(default)", "").split())
        if said == argparse.SUPPRESS:
            continue
        if action.option_strings:
            known = {spelling for spellings in options for spelling in spellings}
            if spellings := tuple(one for one in action.option_strings if one not in known):
                options[spellings] = Option(spellings, said, action.nargs != 0, action.dest in OF_NAMES)
        else:
            words += map(str, action.choices or ())
            names = names or action.dest == "target"
    return Grammar(name, found.help, tuple(options.values()), tuple(words), names)


def _actions(name: str, found: Command) -> Iterator[argparse.Action]:
    """What the command takes, for stores and for scripts."""
    from jug_notebook.cli.jugfiles import SCRIPTS
    from jug_notebook.compat.commands import add_common

    adders = [found.add_arguments]
    if name in SCRIPTS:
        adders += [SCRIPTS[name].add, add_common]
    for number, add in enumerate(adders):
        parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
        if not number:
            parser.add_argument(*STORE_OPTIONS, dest="jugdir", help="the store: a folder, or its URL")
        add(parser)
        yield from parser._actions


# -- bash --------------------------------------------------------------------------------------------------------------

_BASH = """\
# completes jug-notebook in bash
_jug_notebook() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= i options= values= words= names=
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --jugdir|--store) ((i++)) ;;
      -*) ;;
      *) command=${COMP_WORDS[i]}; break ;;
    esac
  done
  case $command in
    '') options='@TOP@' values='--jugdir --store' words='@COMMANDS@' ;;
@CASES@
  esac
  COMPREPLY=()
  if [[ " $values " == *" $prev "* ]]; then
    if [[ " $names " == *" $prev "* ]]; then
      COMPREPLY=($(compgen -W "$(jug-notebook completion --names "${COMP_WORDS[@]:1}" 2>/dev/null)" -- "$cur"))
    else
      COMPREPLY=($(compgen -f -- "$cur"))
    fi
  elif [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$cur"))
  elif [[ -n $words ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
  elif [[ " $names " == *" target "* ]]; then
    COMPREPLY=($(compgen -W "$(jug-notebook completion --names "${COMP_WORDS[@]:1}" 2>/dev/null)" -- "$cur"))
    COMPREPLY+=($(compgen -f -X '!*.py' -- "$cur") $(compgen -d -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}
complete -o filenames -F _jug_notebook jug-notebook
"""


def bash(every: list[Grammar]) -> str:
    cases = []
    for one in every:
        options = " ".join(spelling for option in one.options for spelling in option.spellings)
        values = " ".join(spelling for option in one.options if option.takes_value for spelling in option.spellings)
        names = " ".join([*_of_names(one), *(["target"] if one.names else [])])
        words = " ".join(one.words)
        cases.append(f"    {one.name}) options='{options}' values='{values}' words='{words}' names='{names}' ;;")
    listed = " ".join(one.name for one in every)
    script = _BASH.replace("@TOP@", "--help --version --jugdir --store").replace("@COMMANDS@", listed)
    return script.replace("@CASES@", "\n".join(cases))


def _of_names(grammar: Grammar) -> list[str]:
    """Options whose value is a function."""
    return [spelling for option in grammar.options if option.names for spelling in option.spellings]


# -- zsh ---------------------------------------------------------------------------------------------------------------

_ZSH = """\
#compdef jug-notebook
# completes jug-notebook in zsh
_jug_notebook_names() {
  local -a found
  found=(${(f)"$(jug-notebook completion --names ${words[2,-1]} 2>/dev/null)"})
  compadd -a found
}
_jug_notebook_targets() { _jug_notebook_names; _files -g '*.py'; }
_jug_notebook() {
  local command= i
  local -a commands
  for ((i = 2; i < CURRENT; i++)); do
    case ${words[i]} in
      --jugdir|--store) ((i++)) ;;
      -*) ;;
      *) command=${words[i]}; break ;;
    esac
  done
  case $command in
@CASES@
    *)
      if [[ ${words[CURRENT-1]} == (--jugdir|--store) ]]; then _files; return; fi
      if [[ ${words[CURRENT]} == -* ]]; then compadd -- --help --version --jugdir --store; return; fi
      commands=(
@COMMANDS@
      )
      _describe command commands ;;
  esac
}
_jug_notebook "$@"
"""


def zsh(every: list[Grammar]) -> str:
    cases = []
    for one in every:
        specs = []
        for option in one.options:
            told = _told(option.help).replace("[", "(").replace("]", ")").replace(":", " ")
            action = ":value:_jug_notebook_names" if option.names else ":value:_files"
            specs += [_quoted(f"*{s}[{told}]{action if option.takes_value else ''}") for s in option.spellings]
        if one.words:
            rest = f":argument:({' '.join(one.words)})"
        else:
            rest = ":argument:_jug_notebook_targets" if one.names else ":argument:_files"
        # the command itself is the first argument that is seen
        cases.append(f"    {one.name}) _arguments -S {' '.join(specs)} ':command:' {_quoted('*' + rest)} ;;")
    listed = [f"        {_quoted(one.name + ':' + one.help.replace(':', ' '))}" for one in every]
    return _ZSH.replace("@CASES@", "\n".join(cases)).replace("@COMMANDS@", "\n".join(listed))


# -- fish --------------------------------------------------------------------------------------------------------------


def fish(every: list[Grammar]) -> str:
    listed = " ".join(one.name for one in every)
    lines = [
        "# completes jug-notebook in fish",
        "function __jug_notebook_names; jug-notebook completion --names (commandline -opc)[2..] 2>/dev/null; end",
        f"set -l none 'not __fish_seen_subcommand_from {listed}'",
        "complete -c jug-notebook -n $none -l help -l version -f",
        "complete -c jug-notebook -n $none -l jugdir -l store -r",
    ]
    for one in every:
        seen = _quoted(f"__fish_seen_subcommand_from {one.name}")
        lines.append(f"complete -c jug-notebook -f -n $none -a {one.name} -d {_quoted(_told(one.help))}")
        for option in one.options:
            spelt = " ".join(f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in option.spellings)
            value = " -r" if option.takes_value else ""
            if option.names:
                value = " -x -a '(__jug_notebook_names)'"
            lines.append(f"complete -c jug-notebook -n {seen} {spelt}{value} -d {_quoted(_told(option.help))}")
        if one.words or one.names:
            what = _quoted(" ".join(one.words)) if one.words else "'(__jug_notebook_names; __fish_complete_suffix .py)'"
            lines.append(f"complete -c jug-notebook -f -n {seen} -a {what}")
    return "\n".join(lines) + "\n"


# -- tcsh --------------------------------------------------------------------------------------------------------------

TOP = ("--help", "--version", *STORE_OPTIONS)


def tcsh(every: list[Grammar]) -> str:
    """It knows nothing of commands within commands, so it asks us each time."""
    return "complete jug-notebook 'p@*@`jug-notebook completion --line $COMMAND_LINE:q`@'\n"


def candidates(line: str) -> list[str]:
    """What the last word of a line may become."""
    _, *before, word = line.split(" ")
    spoken = [one for one, left in zip(before, ("", *before), strict=False) if left not in STORE_OPTIONS]
    name = next((one for one in spoken if one and not one.startswith("-")), None)
    found = commands().get(name) if name else None
    if name is None or found is None:
        every = TOP if word.startswith("-") else tuple(commands())
    else:
        every = _candidates(_grammar(name, found), before, word)
    return [one for one in every if one.startswith(word)]


def _candidates(grammar: Grammar, before: list[str], word: str) -> tuple[str, ...]:
    functions = argparse.Namespace(names=before, jugdir=None)
    for option in grammar.options:
        if option.takes_value and before[-1] in option.spellings:
            return tuple(names(functions)) if option.names else _files(word)
    if word.startswith("-"):
        return tuple(spelling for option in grammar.options for spelling in option.spellings)
    if grammar.words:
        return grammar.words
    return (*(names(functions) if grammar.names else ()), *_files(word))


def _files(start: str) -> tuple[str, ...]:
    return tuple(f"{path}/" if os.path.isdir(path) else path for path in glob.glob(f"{glob.escape(start)}*"))


def _told(help: str) -> str:
    """In a line of a list there is room for little."""
    return help if len(help) <= 70 else f"{help[:69]}…"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- the command -------------------------------------------------------------------------------------------------------


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", nargs="?", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    # what the scripts ask, with all that was typed so far
    parser.add_argument("--names", nargs=argparse.REMAINDER, metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--line", nargs=argparse.REMAINDER, metavar="LINE", help=argparse.SUPPRESS)
    parser.epilog = " · ".join(HOW.values())


def _completion(arguments: Arguments) -> int:
    if arguments.names is not None:
        print("\n".join(names(arguments)))
        return 0
    if arguments.line is not None:
        print("\n".join(candidates(" ".join(arguments.line))))
        return 0
    if arguments.shell is None:
        raise UsageError(f"for which shell? {', '.join(f'jug-notebook completion {shell}' for shell in SHELLS)}")
    print({"bash": bash, "zsh": zsh, "fish": fish, "tcsh": tcsh}[arguments.shell](grammars()), end="")
    return 0


def names(arguments: Arguments) -> list[str]:
    """The functions that the words typed so far may be about: of the store, and of the script that is named.

    None of a store that isn't there or can't be read. No script is run for that.
    """
    for before, word in zip(arguments.names, arguments.names[1:], strict=False):
        if before in STORE_OPTIONS:
            arguments.jugdir = word
    for word in arguments.names:
        option, equals, value = word.partition("=")
        if equals and option in STORE_OPTIONS:
            arguments.jugdir = value
    script = _script(arguments)
    found = [] if script is None else _functions(script)
    found += [name for name in _stored(_url(arguments, script)) if name not in found]
    return [name for name in found if _NAME.fullmatch(name)]


def _script(arguments: Arguments) -> Path | None:
    """The script that is meant."""
    from jug_notebook.cli.jugfiles import DEFAULT

    named = [word for word in arguments.names if word.endswith(".py")]
    script = Path(named[0] if named else DEFAULT)
    return script if script.is_file() and (named or not arguments.jugdir) else None


def _url(arguments: Arguments, script: Path | None) -> str:
    from jug_notebook.compat import configuration

    if script is None or arguments.jugdir:
        return url_of(arguments)
    return str(configuration.settle({"jugfile": str(script)}, {})["jugdir"])


def _stored(url: str) -> list[str]:
    from jug_notebook.store import open_store

    try:
        if not is_there(url):
            return []
        store = open_store(url)
    except JugError:
        return []
    found = [function.name for function in store.snapshot().functions]
    store.close()
    return found


def _functions(script: Path) -> list[str]:
    """The functions that a script makes tasks of, by its text: those with a decorator, and those handed to a call."""
    try:
        tree = ast.parse(script.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    handed = {argument.id for call in calls for argument in call.args if isinstance(argument, ast.Name)}
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and (node.decorator_list or node.name in handed)
    ]


COMMANDS = {
    "completion": Command(
        "a script that makes bash, zsh, fish or tcsh complete our commands", _add_completion, _completion
    ),
}
