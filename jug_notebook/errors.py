"""All exceptions and warnings. The docstring of each is its default message."""

from __future__ import annotations

from typing import Any


class JugError(Exception):
    """Something went wrong in jug_notebook."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback: the message is enough."""
        return [f"{type(self).__name__}: {self}"]


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
