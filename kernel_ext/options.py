"""Options of magics: how they are declared, read, and refused in one line with what comes near."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from IPython.core import magic, magic_arguments
from IPython.core.error import UsageError

from jug_notebook.errors import JugError
from jug_notebook.model import State
from jug_notebook.session import Session
from jug_notebook.task import TaskFunction
from jug_notebook.task.cell import near
from jug_notebook.task.handles import Handle

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


WITH_TARGET = (
    "jug_tasks", "jug_wait", "jug_log", "jug_retry", "jug_cancel", "jug_invalidate", "jug_graph", "jug_debug",
    "jug_verify", "jug_why",
)  # fmt: skip
OF_FAILED = ("jug_debug", "jug_retry", "jug_log")  #: here the keys of failed tasks are at hand
FAILED = 20  #: so many of these


def candidates(magic: str, magics: Any, session: Session | None, line: str = "") -> list[str]:
    """What may follow a magic; ``line`` is what is typed up to the cursor."""
    before = line.split()[:-1] if line and not line[-1].isspace() else line.split()
    last = before[-1] if before else ""
    if last == "--host":
        return _asked(lambda: session.queries.hosts()) if session else []
    if last == "--target":
        return _targets(magics, session)
    words = known(getattr(magics, magic))
    if magic in WITH_TARGET:
        words += _targets(magics, session)
    if magic in OF_FAILED and session:
        words += _asked(lambda: [view.key[:8] for view in session.tasks(state=State.FAILED, limit=FAILED)])
    return words


def _targets(magics: Any, session: Session | None) -> list[str]:
    """Variables that may hold tasks, and functions that have some."""
    space = magics.shell.user_ns
    held = [
        name
        for name, value in space.items()
        if not name.startswith("_") and isinstance(value, TaskFunction | Handle | list | tuple | dict)
    ]
    named = _asked(lambda: session.queries.names()) if session else []
    return list(dict.fromkeys([*held, *named]))


def _asked(ask: Any) -> list[str]:
    """What a store answers; where it can't, the Tab key has nothing to say."""
    try:
        return list(ask())
    except (JugError, OSError):
        return []


def _names(magics: Any) -> list[tuple[str, str]]:
    found = [("%" + name, name) for name in magics.magics["line"]]
    return [*found, *(("%%" + name, name) for name in magics.magics["cell"])]


def add_completers(shell: Any, main: Any, *others: Any) -> None:
    """From now on, Tab knows our magics. The session is ``main``'s, where it has one by then."""
    for magics in (main, *others):
        for key, name in _names(magics):
            shell.set_hook("complete_command", _hook(name, magics, main), str_key=key)


def _hook(name: str, magics: Any, main: Any) -> Any:
    def complete(_: Any, event: Any) -> list[str]:
        return candidates(name, magics, main.attached(), getattr(event, "line", ""))

    return complete


def remove_completers(shell: Any, *all_magics: Any) -> None:
    """Take back what `add_completers` did."""
    dispatcher = shell.strdispatchers.get("complete_command")
    for magics in all_magics:
        for key, _ in _names(magics):
            if dispatcher is not None:
                dispatcher.strs.pop(key, None)
