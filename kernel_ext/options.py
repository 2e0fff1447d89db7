"""The options of magics: how they are declared, parsed, refused in one line with a suggestion, and completed by Tab."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

from IPython.core import magic, magic_arguments
from IPython.core.error import UsageError

from jug_notebook.errors import JugError, NoSuchTask
from jug_notebook.model import State
from jug_notebook.render import parse_duration, parse_resources
from jug_notebook.session import Session
from jug_notebook.task import TaskFunction
from jug_notebook.task.cell import near
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


def names(written: str) -> list[str]:
    """Names separated by commas."""
    found = [name for name in written.split(",") if name]
    for name in found:
        if not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{name!r} is not a name; give names separated by commas, as in a,b")
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


def known(magic: Any) -> list[str]:
    """Return the options of a magic as they are typed: "-n", "--workers" …"""
    return [option for action in magic.parser._actions for option in action.option_strings]


def _better(message: str, magic: Any) -> str:
    """Return argparse's message; of a word it doesn't know, with a suggestion."""
    if not message.startswith("unrecognized arguments: "):
        return message
    words = message.partition(": ")[2].split()
    word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
    has = ", ".join(known(magic)) or "no options"
    typed = {one.lstrip("-"): one for one in known(magic)}
    close = re.sub(r"(?<=mean )(\S+)(?=\?)", lambda name: typed.get(name[1], name[1]), near(word.lstrip("-"), typed))
    if word.isdigit() and "-n" in known(magic):
        close = f"; did you mean -n {word}?"
    if not word.startswith("-"):
        return f"doesn't know what {word!r} is for" + (close or f"; it takes {has}")
    return f"has no option {word}" + (close or f"; it takes {has}")


# -- completion --------------------------------------------------------------------------------------------------------

WITH_FAILED = ("jug_debug", "jug_retry", "jug_log")  #: completed with the keys of failed tasks, too
MAX_FAILED = 20  #: failed tasks that are offered


def candidates(magic: str, magics: Any, session: Session | None, line: str = "") -> list[str]:
    """Return the words that may follow a magic; ``line`` is what is typed up to the cursor."""
    before = line.split()[:-1] if line and not line[-1].isspace() else line.split()
    last = before[-1] if before else ""
    if last == "--host":
        return _asked(lambda: session.queries.hosts()) if session else []
    if last in ("--target", "--not-target"):
        return _targets(magics, session)
    method = getattr(magics, magic)
    words = known(method)
    if any(action.dest == "target" and not action.option_strings for action in method.parser._actions):
        words += _targets(magics, session)
    if magic in WITH_FAILED and session:
        words += _asked(lambda: [view.key[:8] for view in session.tasks(state=State.FAILED, limit=MAX_FAILED)])
    return words


def _targets(magics: Any, session: Session | None) -> list[str]:
    """Return the variables that may hold tasks, and the functions that have some."""
    space = magics.shell.user_ns
    held = [
        name
        for name, value in space.items()
        if not name.startswith("_") and isinstance(value, TaskFunction | Handle | list | tuple | dict)
    ]
    named = _asked(lambda: session.queries.names()) if session else []
    return list(dict.fromkeys([*held, *named]))


def _asked(ask: Any) -> list[str]:
    """Return what a store lists; nothing where it can't be read: the Tab key has no place for errors."""
    try:
        return list(ask())
    except (JugError, OSError):
        return []


def _names(magics: Any) -> list[tuple[str, str]]:
    found = [("%" + name, name) for name in magics.magics["line"]]
    return [*found, *(("%%" + name, name) for name in magics.magics["cell"])]


def add_completers(shell: Any, main: Any, *others: Any) -> None:
    """From now on, Tab completes our magics. The session is ``main``'s, where it has one by then."""
    for magics in (main, *others):
        for key, name in _names(magics):
            shell.set_hook("complete_command", _hook(name, magics, main), str_key=key)


def _hook(name: str, magics: Any, main: Any) -> Any:
    def complete(_: Any, event: Any) -> list[str]:
        return candidates(name, magics, main.attached(), getattr(event, "line", ""))

    return complete


def remove_completers(shell: Any, *all_magics: Any) -> None:
    """Undo `add_completers`."""
    dispatcher = shell.strdispatchers.get("complete_command")
    for magics in all_magics:
        for key, _ in _names(magics):
            if dispatcher is not None:
                dispatcher.strs.pop(key, None)
