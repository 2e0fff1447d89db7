"""Options of magics: how they are declared, read, and refused in one line with what comes near."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from IPython.core import magic, magic_arguments
from IPython.core.error import UsageError

from jug_notebook.task.cell import near

F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", int, float)

_magic: Any = magic
_arguments: Any = magic_arguments


def line_magic(method: F) -> F:
    """``%name options``."""
    marked: F = _magic.line_magic(method)
    return marked


def cell_magic(method: F) -> F:
    """``%%name options``, with the cell below as it is typed: no ``{var}`` is filled in."""
    marked: F = _magic.no_var_expand(_magic.cell_magic(method))
    return marked


def options() -> Callable[[F], F]:
    """The method below has options; its docstring, with them, is what ``%magic?`` shows."""
    decorate: Callable[[F], F] = _arguments.magic_arguments()
    return decorate


def option(*names: str, **about: Any) -> Callable[[F], F]:
    """One option, as ``argparse`` takes it."""
    decorate: Callable[[F], F] = _arguments.argument(*names, **about)
    return decorate


# -- what is written after an option ---------------------------------------------------------------------------------


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
    """Seconds, or with a unit: 90s, 10min, 2h, 30d."""
    units = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400}
    number = written.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        found = float(number) * units[written[len(number) :]]
    except (ValueError, KeyError):
        found = -1.0
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{written!r} is not a length of time; give seconds, or as in 90s, 2h, 30d")
    return found


def names(written: str) -> list[str]:
    """Names separated by commas."""
    found = [name for name in written.split(",") if name]
    for name in found:
        if not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{name!r} is not a name; give names separated by commas, as in a,b")
    return found


def joined(words: Sequence[str]) -> str | None:
    """A target as it was typed, without quotes around the whole."""
    text = " ".join(words).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return text or None


# -- reading a line --------------------------------------------------------------------------------------------------


def read(magic: Any, line: str) -> argparse.Namespace:
    """A magic's options. Raises UsageError, in one line with what comes near."""
    try:
        asked: argparse.Namespace = _arguments.parse_argstring(magic, line)
    except UsageError as error:
        raise UsageError(f"{sign(magic)}: {_better(str(error), magic)}") from None
    except ValueError as error:  # a quotation that doesn't end
        raise UsageError(f"{sign(magic)}: {error}: {line}") from None
    return asked


def sign(magic: Any) -> str:
    """How a magic is written."""
    name = magic.__name__
    return f"%%{name}" if name == "jugtask" else f"%{name}"


def known(magic: Any) -> list[str]:
    """The options of a magic, as they are written."""
    return [option for action in magic.parser._actions for option in action.option_strings]


def _better(message: str, magic: Any) -> str:
    """What argparse says of a word it doesn't know, with advice."""
    if not message.startswith("unrecognized arguments: "):
        return message
    words = message.partition(": ")[2].split()
    word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
    has = ", ".join(known(magic)) or "no options"
    close = near(word.lstrip("-"), [one.lstrip("-") for one in known(magic)]).replace("mean ", "mean --")
    if word.isdigit() and "-n" in known(magic):
        close = f"; did you mean -n {word}?"
    if not word.startswith("-"):
        return f"doesn't know what {word!r} is for" + (close or f"; it takes {has}")
    return f"has no option {word}" + (close or f"; it takes {has}")
