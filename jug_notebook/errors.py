"""Exceptions. The docstring of each is its default message, so none can go undocumented."""

from __future__ import annotations

from typing import Any


class JugError(Exception):
    """Something went wrong in jug_notebook."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of its own traceback: the message says what, where and what next."""
        return [f"{type(self).__name__}: {self}"]


class NotReady(JugError):
    """The value isn't there yet. Wait for it with .result(), or start workers: %jug_execute -n 4"""


class NoWorkers(JugError):
    """Waiting would never end: no worker is alive. Start some: %jug_execute -n 4"""


class TaskCancelled(JugError):
    """Nobody wants this task any more, so it will not run. Make it again: re-run the cell that calls its function."""


class WaitTimeout(JugError, TimeoutError):
    """The time given for waiting is over; the tasks go on."""


class WaitInterrupted(JugError, KeyboardInterrupt):
    """Waiting was interrupted; the tasks go on in their workers. Stop those with %jug_stop"""


class TaskFailed(JugError):
    """A task failed. `.failure` is what the store keeps of it; `__cause__` the exception, where it could travel."""

    def __init__(self, message: str = "", failure: Any = None) -> None:
        super().__init__(message)
        self.failure = failure


class Unhashable(JugError, TypeError):
    """A value can't be hashed reliably. Pass its path or its parts, give its class a __jug_hash__ method, or wrap it in
    NoHash if it doesn't affect the result."""


class Unstorable(JugError, TypeError):
    """A value can't be stored: it can't be pickled."""


class FileChanged(JugError):
    """A file was changed after a task was made of its content."""


class ChangedInCell(JugError):
    """Something that a function reads changed between its first call in the cell and the cell's end."""


class FormerDefinition(UserWarning):
    """The task was made by a previous definition of its function."""


class KeyAdvice(UserWarning):
    """A key may not see all that matters. Each is said once."""


class Opaque(KeyAdvice):
    """Something that a function does can't be seen from its code."""


class Unseeded(KeyAdvice):
    """A function draws random numbers from a generator that nobody seeded."""


class OnlyAPath(KeyAdvice):
    """An argument is the path of a file; keys cover the path, not the file's content. Pass jn.file(path)."""


class StoreError(JugError):
    """The store can't be used."""


class Unreachable(StoreError):
    """The server of a store doesn't answer."""


class ValueLost(StoreError):
    """A stored value is missing or corrupt; it will be computed again."""


class SignatureError(StoreError):
    """Bytes in the store weren't written by someone who has the store's key, so they are not opened."""


class ClaimLost(JugError):
    """Another worker has taken over this task."""


class LaunchError(JugError):
    """Workers could not be started."""


class CommandFailed(JugError):
    """A command ended with an exit status other than 0, or did not write a file that it should."""


class NoSuchTask(JugError, LookupError):
    """No such task. %jug_tasks lists them."""


class BadTask(JugError, TypeError):
    """A task can't be made of this."""


class TaskNotValue(JugError, TypeError):
    """This is a task, not its value; use .result()"""
