"""The options of magics: how they are declared, parsed, refused in one line with a suggestion, and completed by Tab."""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from glob import escape as glob_escape
from glob import glob
from itertools import islice
from typing import Any, TypeVar

from IPython.core import magic, magic_arguments
from IPython.core.completer import SimpleCompletion
from IPython.core.error import UsageError

from jug_notebook.errors import JugError, NoSuchTask
from jug_notebook.model import State, parse_limits
from jug_notebook.render import parse_duration, parse_resources
from jug_notebook.render.format import near
from jug_notebook.session import Session
from jug_notebook.task import TaskFunction
from jug_notebook.task.handles import Handle

F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", int, float)

_magic: Any = magic
_arguments: Any = magic_arguments


def line_magic(method: F) -> F:
    """``%name options``. A target that names no task is the user's slip: it is reported in one line."""

    @functools.wraps(method)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return method(*args, **options)
        except NoSuchTask as error:
            raise UsageError(str(error)) from None

    marked: F = _magic.line_magic(run)
    return marked


def cell_magic(method: F) -> F:
    """``%%name options``, with the cell below as it was typed: no ``{var}`` is filled in."""
    marked: F = _magic.no_var_expand(_magic.cell_magic(method))
    return marked


def options() -> Callable[[F], F]:
    """The method below has options; ``%magic?`` shows its docstring and them."""
    decorate: Callable[[F], F] = _arguments.magic_arguments()
    return decorate


def option(*names: str, **about: Any) -> Callable[[F], F]:
    """One option, declared as for ``argparse``."""
    decorate: Callable[[F], F] = _arguments.argument(*names, **about)
    return decorate


TARGET = "tasks: an expression, a function's name, the beginning of a key, or /regex/ over function names"

#: ``%magic TARGET``: the tasks that a magic is about. `read` returns it as one string, or None.
target = option("target", nargs="*", help=TARGET)


# -- values of options -------------------------------------------------------------------------------------------------


def _number(kind: Callable[[str], N], least: N, what: str) -> Callable[[str], N]:
    def read(written: str) -> N:
        try:
            number = kind(written)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{written!r} is not {what}") from None
        if not number >= least:
            raise argparse.ArgumentTypeError(f"{written!r} is not {what}")
        return number

    return read


count = _number(int, 1, "a whole number of 1 or more")
attempts = _number(int, 0, "a whole number of 0 or more")
seconds = _number(float, 1e-9, "a number of seconds more than 0")


def age(written: str) -> float:
    """Return the seconds in "90", "90s", "10min", "2h" or "30d"."""
    try:
        return parse_duration(written)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def resources(written: str) -> dict[str, float]:
    """Return {"gpu": 1.0, "mem": 8e9} for "gpu=1,mem=8G"."""
    try:
        return dict(parse_resources(written))
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def limits(written: str) -> list[str]:
    """Return ["db:4", "api:60/min"] for "db:4,api:60/min"."""
    try:
        return [str(limit) for limit in parse_limits(written)]
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def names(written: str) -> list[str]:
    """Names separated by commas."""
    found = [name for name in written.split(",") if name]
    for name in found:
        if not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{name!r} is not a name; give names separated by commas, as in a,b")
    return found


def packages(written: str) -> list[str]:
    """Names of packages, separated by commas."""
    found = [name for name in written.split(",") if name]
    for name in found:
        if not name.replace("-", "_").replace(".", "_").isidentifier():
            raise argparse.ArgumentTypeError(
                f"{name!r} is not a package; give names as pip has them: numpy,scikit-learn"
            )
    return found


def fraction(written: str) -> float:
    """Return 0.05 for "0.05" or "5%"."""
    try:
        part = float(written.removesuffix("%")) / (100 if written.endswith("%") else 1)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise argparse.ArgumentTypeError(f"{written!r} is not a fraction: give 0.05, or 5%")
    return part


# -- parsing a line ----------------------------------------------------------------------------------------------------


class _Word(str):
    """A word of a line, without quotes around it; ``start`` and ``end`` tell where it is typed."""

    start: int
    end: int


_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\S)+""")
_QUOTED = re.compile(r"""([^'"=]*=)?(?:'([^']*)'|"([^"]*)")""")


def split(line: str) -> list[_Word]:
    """Return the words of a line up to a comment. Quotes hold a word together; around it, or its value, they go.

    Raises ValueError for a quotation that doesn't end.
    """
    words = []
    for found in _WORD.finditer(line):
        typed = found.group()
        if typed.startswith("#"):
            break
        if typed[0] in "'\"" and (len(typed) == 1 or typed[0] not in typed[1:]):
            raise ValueError("No closing quotation")
        word = _Word(_unquoted(typed))
        word.start, word.end = found.span()
        words.append(word)
    return words


def _unquoted(text: str) -> str:
    """Return "a b" for "'a b'", and "--python=a b" for "--python='a b'"; other texts as they are."""
    found = _QUOTED.fullmatch(text)
    return (found[1] or "") + (found[2] or found[3] or "") if found else text


def read(magic: Any, line: str) -> argparse.Namespace:
    """Return a magic's options; its target as it is typed. Raises UsageError: one line, with a suggestion."""
    magic.parser.allow_abbrev = False  # what is short for one option today would be for two tomorrow
    try:
        asked: argparse.Namespace = magic.parser.parse_args(split(line))
    except UsageError as error:
        raise UsageError(f"{sign(magic)}: {_better(str(error), magic)}") from None
    except ValueError as error:
        raise UsageError(f"{sign(magic)}: {error}: {line}") from None
    words = getattr(asked, "target", None)
    if isinstance(words, list):
        asked.target = _unquoted(line[words[0].start : words[-1].end]) or None if words else None
    for name, value in vars(asked).items():
        if isinstance(value, list):
            setattr(asked, name, [str(word) if isinstance(word, _Word) else word for word in value])
        elif isinstance(value, _Word):
            setattr(asked, name, str(value))
    return asked


def read_target(magic: Any, line: str) -> argparse.Namespace:
    """Like `read`, for a magic that needs a target. Raises UsageError without one."""
    asked = read(magic, line)
    if asked.target is None:
        raise UsageError(f"{sign(magic)} TARGET: say which {TARGET}")
    return asked


def sign(magic: Any) -> str:
    """Return a magic's name as it is typed: "%jug_status"."""
    name = magic.__name__
    return f"%%{name}" if name == "jugtask" else f"%{name}"


def signs(*holders: Any) -> list[str]:
    """Return the magics of these objects as they are typed: "%jug_status", "%%jugtask" …"""
    return [
        ("%" if kind == "line" else "%%") + name for one in holders for kind in one.magics for name in one.magics[kind]
    ]


def known(magic: Any) -> list[str]:
    """Return the options of a magic as they are typed: "-n", "--workers" …"""
    return [option for action in magic.parser._actions for option in action.option_strings]


def _better(message: str, magic: Any) -> str:
    """Return argparse's message; of a word it doesn't know, or that is missing, with what to type."""
    if message.startswith("the following arguments are required: "):
        missing = message.partition(": ")[2].replace(",", "").upper()
        return f"give {missing}, as in {sign(magic)} {missing}"
    if not message.startswith("unrecognized arguments: "):
        return message
    words = message.partition(": ")[2].split()
    word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
    has = ", ".join(known(magic)) or "no options"
    typed = {one.lstrip("-"): one for one in known(magic)}
    close = re.sub(r"(?<=mean )(\S+)(?=\?)", lambda name: typed.get(name[1], name[1]), near(word.lstrip("-"), typed))
    if word.isdigit() and "-n" in known(magic):
        close = f"; did you mean -n {word}?"
    if not word.startswith("-") and magic.__name__ == "jugtask":
        return f"a cell has one NAME, so what is {word!r}? To make tasks of some functions only: %%jugtask --only f,g"
    if not word.startswith("-"):
        return f"doesn't know what {word!r} is for" + (close or f"; it takes {has}")
    return f"has no option {word}" + (close or f"; it takes {has}")


# -- completion --------------------------------------------------------------------------------------------------------

WITH_FAILED = ("jug_debug", "jug_retry", "jug_log")  #: completed with the keys of failed tasks, too
MAX_FAILED = 20  #: failed tasks that are offered
LOOKED_AT = 20  #: items of a list or dict that are looked at for tasks

_MAGIC = re.compile(r"\s*%{1,2}(jug\w*)\s+(?:.*\s)?(\S*)")  #: a magic, up to the cursor, and its last word
_ITEM = re.compile(r"(?:.*[^\w.\])])?([A-Za-z_]\w*)\[(-?\d+)\]\.(\w*)")  #: an attribute of an item: "tasks[0].res"


def candidates(magic: str, magics: Any, session: Session | None, line: str = "") -> list[str]:
    """Return the words that may follow a magic; ``line`` is what is typed up to the cursor."""
    words = line.split()
    word = words.pop() if words and not line[-1].isspace() else ""
    last = words[-1] if words else ""
    if last == "--host":
        return _asked(lambda: session.queries.hosts()) if session else []
    if last in ("--target", "--not-target"):
        return _targets(magics, session)
    method = getattr(magics, magic)
    actions = [action for action in method.parser._actions if last in action.option_strings]
    if actions and actions[0].choices:
        return list(actions[0].choices)
    if word.startswith("-"):
        return known(method)
    if magic == "jug_store":
        return _folders(word)
    takes_target = any(action.dest == "target" and not action.option_strings for action in method.parser._actions)
    found = _targets(magics, session) if takes_target else []
    if magic in WITH_FAILED and session:
        found += _asked(lambda: [view.key[:8] for view in session.tasks(state=State.FAILED, limit=MAX_FAILED)])
    return found if word else [*found, *known(method)]


def _targets(magics: Any, session: Session | None) -> list[str]:
    """Return the variables that hold tasks, the task functions, and the functions of which the store has tasks."""
    space = magics.shell.user_ns
    held = [name for name, value in space.items() if not name.startswith("_") and _holds_tasks(value)]
    named = _asked(lambda: session.queries.names()) if session else []
    return list(dict.fromkeys([*held, *named]))


def _holds_tasks(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(islice(value.values(), LOOKED_AT))
    if isinstance(value, list | tuple):
        return any(isinstance(item, Handle) for item in value[:LOOKED_AT])
    return isinstance(value, TaskFunction | Handle)


def _folders(word: str) -> list[str]:
    """Return the folders whose paths begin with a word, and the beginnings of URLs."""
    try:
        found = sorted(path + os.sep for path in glob(glob_escape(word) + "*") if os.path.isdir(path))
    except OSError:
        found = []
    return [*found, "redis://", "memory:"]


def _asked(ask: Any) -> list[str]:
    """Return what a store lists; nothing where it can't be read: the Tab key has no place for errors."""
    try:
        return list(ask())
    except (JugError, OSError):
        return []


def _of_item(space: Mapping[str, Any], text: str) -> tuple[list[str], str] | None:
    """Return the public names of a task in a list, ``tasks[0].``, and what is typed of one; None for anything else.

    IPython evaluates no item of a list of ours while one types.
    """
    found = _ITEM.fullmatch(text)
    held = space.get(found[1]) if found else None
    if found is None or not isinstance(held, list | tuple) or not -len(held) <= int(found[2]) < len(held):
        return None
    item = held[int(found[2])]
    return ([name for name in dir(item) if not name.startswith("_")], found[3]) if isinstance(item, Handle) else None


class Matcher:
    """Completes our magics, and the attributes of tasks in lists; nothing else is offered beside."""

    matcher_api_version = 2
    matcher_priority = 100
    matcher_identifier = "jug_notebook"

    def __init__(self, shell: Any, main: Any, all_magics: Sequence[Any]) -> None:
        self.__qualname__ = self.matcher_identifier  # IPython reads it of every matcher
        self._shell = shell
        self._main = main
        self._by_name = {name: magics for magics in all_magics for kind in magics.magics.values() for name in kind}

    def __call__(self, context: Any) -> dict[str, Any]:
        text = context.text_until_cursor
        found = _MAGIC.fullmatch(text)
        if found is None or found[1] not in self._by_name:
            words, typed = _of_item(self._shell.user_ns, text) or ([], "")
        else:
            session, typed = self._main.attached(), found[2]
            words = candidates(found[1], self._by_name[found[1]], session, text)
        fitting = [SimpleCompletion(text=word) for word in words if word.startswith(typed)]
        return {"completions": fitting, "suppress": bool(fitting), "ordered": True, "matched_fragment": typed}


def add_completers(shell: Any, main: Any, *others: Any) -> Matcher:
    """From now on, Tab completes our magics. The session is ``main``'s, where it has one by then."""
    matcher = Matcher(shell, main, (main, *others))
    shell.Completer.custom_matchers.append(matcher)
    return matcher


def remove_completers(shell: Any, matcher: Matcher) -> None:
    """Undo `add_completers`."""
    if matcher in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(matcher)
