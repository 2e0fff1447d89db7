"""All exceptions and warnings, and `clean`, which makes text from a store fit for a terminal.

The docstring of each exception is its default message. Messages are cleaned: they may name what a store holds.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from jug_notebook import frames

_COLOURS = re.compile(r"(\x1b\[[0-9;:]*m)")
#: what programs write that redraw a line: cursor moves, erasing, hiding the cursor
_REDRAWING = re.compile(r"\x1b\[(?:[0-9;]*[A-HJKSTfsu]|\?25[hl])")
#: controls, directions, unseen and half characters: they act on a terminal, or let a line read as another one
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def clean(written: str, colours: bool = False) -> str:
    """Return text from a store for a terminal: no control, escape sequence or bidirectional override acts there.

    Those of colours and redrawn lines are left out (of such a line its last state is kept), all others made visible:
    "␛]52;c", "\\u202e". With ``colours``, for what tasks printed, colours are kept.
    """
    if written.isprintable():
        return written
    written = _REDRAWING.sub("", written if colours else _COLOURS.sub("", written)).replace("\r\n", "\n")
    if "\r" in written:
        written = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in written.split("\n"))
    if not colours:
        return _ACTING.sub(_visible, written)
    parts = _COLOURS.split(written)
    parts[::2] = (_ACTING.sub(_visible, part) for part in parts[::2])
    return "".join(parts) + "\x1b[0m" * (len(parts) > 1 and not re.fullmatch(r"\x1b\[0*m", parts[-2]))


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20 or code == 0x7F:
        return chr(0x2421 if code == 0x7F else 0x2400 + code)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class JugError(Exception):
    """Something went wrong in jug_notebook."""

    def __init__(self, message: str = "") -> None:
        super().__init__(clean(message) or " ".join((type(self).__doc__ or "").split()))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the user's frames as its %xmode wants them, then the message.

        The line of a magic alone tells nothing, so its error is the message, in a line.
        """
        users = frames.hide_ours(self, True)
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if shell is None or not users:
            return [f"{type(self).__name__}: {self}"]
        cause, context, suppressed = self.__cause__, self.__context__, self.__suppress_context__
        if not frames.has_users_frame(cause or context):  # an error inside of ours, or one that the message holds
            self.__cause__ = self.__context__ = None
        try:
            lines: list[str] = shell.InteractiveTB.structured_traceback(type(self), self, self.__traceback__)
            return lines
        finally:
            self.__cause__, self.__context__, self.__suppress_context__ = cause, context, suppressed


class NotReady(JugError):
    """The value isn't there yet. Wait for it with .result(), or start workers: %jug_execute -n 4"""


class NoWorkers(JugError):
    """Waiting would never end: no worker is alive. Start some: %jug_execute -n 4"""


class TaskCancelled(JugError):
    """This task was cancelled, so it will not run. To request it again, re-run the cell that calls its function."""


class WaitTimeout(JugError, TimeoutError):
    """The timeout is over; the tasks keep running."""


class WaitInterrupted(JugError, KeyboardInterrupt):
    """Waiting was interrupted; the tasks keep running in their workers. Stop those with %jug_stop"""


class TaskFailed(JugError):
    """A task failed. `.failure` describes it; `__cause__` is the exception, where it could be pickled."""

    def __init__(self, message: str = "", failure: Any = None) -> None:
        super().__init__(message)
        self.failure = failure


class BadNumber(JugError, ValueError):
    """A number makes no sense here."""


class CantAsk(JugError, EOFError):
    """A task can't ask: pass the answer as an argument."""


class Unhashable(JugError, TypeError):
    """A value can't be hashed reliably. Pass its path or its parts, give its class a __jug_hash__ method, or wrap it in
    NoHash if it doesn't affect the result."""


class Unstorable(JugError, TypeError):
    """A value can't be stored: it can't be pickled."""


class FileChanged(JugError):
    """A file was changed after a task was made from its content."""


class ChangedInCell(JugError):
    """Something that a function reads was changed between its first call in the cell and the end of the cell."""


class FormerDefinition(UserWarning):
    """The task was made by a previous definition of its function."""


class KeyAdvice(UserWarning):
    """A key may miss something that affects the result. Each warning appears once."""


class Opaque(KeyAdvice):
    """What a function reads or calls can't be determined from its code."""


class DroppedByPickle(KeyAdvice):
    """A value holds something that doesn't come along when it is pickled, so no task sees it. Pass it by itself."""


class ReadsEnvironment(KeyAdvice):
    """A function reads an environment variable, whose value isn't part of the key. List it: @jn.task(env=["X"])"""


class Unseeded(KeyAdvice):
    """A function uses random numbers without a seed."""


class OnlyAPath(KeyAdvice):
    """An argument is the path of a file; keys cover the path, not the file's content. Pass jn.file(path)."""


class StoreError(JugError):
    """The store can't be used."""


class Unreachable(StoreError):
    """The server of a store can't be reached."""


class StoreGone(StoreError):
    """The store was removed, or there is another one in its place."""


class ValueLost(StoreError):
    """A stored value is missing or corrupt; it will be recomputed."""


class SignatureError(StoreError):
    """Data in the store wasn't written by someone who has the store's key, so it is not opened."""


class LaunchError(JugError):
    """Workers could not be started."""


class CommandFailed(JugError):
    """A command ended with a nonzero exit status, or did not write an expected file."""


class NoSuchTask(JugError, LookupError):
    """No such task. %jug_tasks lists them."""


class BadTask(JugError, TypeError):
    """A task can't be made from this."""


class TaskNotValue(JugError, TypeError):
    """This is a task, not its value; use .result()"""
