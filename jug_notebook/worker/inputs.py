"""What a running task gets in place of the tasks that it needs: their values, loaded on first use, or the tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

from jug_notebook.errors import BadTask
from jug_notebook.model import Key, State, TaskView
from jug_notebook.store.signed import SignedReader, template


class Stale(Exception):
    """The needs no longer have the values that the claim names."""


UNASKED = object()


class Needs:
    """A running task's needs, by slot: each value is loaded when it is first asked for."""

    def __init__(
        self, keys: Sequence[Key], loads: Sequence[Callable[[], Any]], signed: SignedReader, unsettled: Key = ""
    ) -> None:
        self._unsettled = unsettled  #: the task of which the store knows no value yet
        self._keys = keys
        self._loads = loads
        self._signed = signed
        self._values: list[Any] = [UNASKED] * len(keys)
        self._window: Window | None = None

    def __getitem__(self, slot: int) -> Any:
        value = self._values[slot]
        if value is UNASKED:
            value = self._values[slot] = self._loads[slot]()
        return value

    def unloaded(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        """The task itself, or a tasklet of it, as `NoLoad`."""
        from jug_notebook.task.context import FunctionVersion, SessionProtocol  # most tasks need none of it
        from jug_notebook.task.handles import handle, unloaded

        if self._keys[slot] == self._unsettled:
            raise Stale
        if self._window is None:
            self._window = Window(self._signed, dict(zip(self._keys, self._loads, strict=True)))
        spec = self._signed.known_spec(self._keys[slot])
        known = template(spec.template)
        version = FunctionVersion(known.name, None, known.code, spec.template, known.priority, known.nout)
        return unloaded(
            handle(cast(SessionProtocol, self._window), version, spec.key, spec.needs, spec.args_repr), steps
        )


class Window:
    """The session of tasks that a running task got unloaded: it shows them, and takes nothing in."""

    def __init__(self, signed: SignedReader, loads: Mapping[Key, Callable[[], Any]]) -> None:
        self._signed = signed
        self._store = signed.store
        self._loads = loads
        self.identity, self.display_url = self._store.id, self._store.display_url

    # -- what handles ask of their session

    @property
    def submissions(self) -> Window:
        return self

    @property
    def results(self) -> Window:
        return self

    def former(self, version: Any) -> bool:
        return False

    def outdated(self, version: Any, needs: Sequence[Key]) -> str:
        return ""

    def states(self, keys: Sequence[Key]) -> list[State]:
        return [state or State.CANCELLED for state in self._store.states(keys)]

    def views(self, keys: Sequence[Key]) -> list[TaskView]:
        return [TaskView(key, "", state) for key, state in zip(keys, self.states(keys), strict=True)]

    def collect(self, keys: Sequence[Key], **_: Any) -> list[Any]:
        """The values, loaded now."""
        return [self._loads[key]() for key in keys]

    def settle(self, keys: Sequence[Key], timeout: float | None = None, first: bool = False) -> bool:
        return True  # or the task that asks would not run

    def provenance(self, key: Key) -> dict[str, Any]:
        return self._signed.provenance(key)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise BadTask(
            f"inside a task, a task that was passed as NoLoad has its value, key, name and provenance, and no {name!r}"
        )
