"""What a running task gets in place of tasks that it needs: their values, or, unloaded, the tasks themselves.

Also where a value comes from, which both a notebook and an unloaded task can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import msgspec

from jug_notebook.codec.signing import Seal, prove
from jug_notebook.errors import BadTask, NoSuchTask
from jug_notebook.model import Failed, Finished, Key, Outcome, Spec, State, TaskView
from jug_notebook.store import Store
from jug_notebook.store.provenance import _recipe, provenance

_SPEC = msgspec.msgpack.Decoder(Spec)
_OUTCOME: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Finished | Failed)

UNASKED = object()


class Needs:
    """A running task's needs, by slot: each value is loaded when it is first asked for."""

    def __init__(self, keys: Sequence[Key], loads: Sequence[Callable[[], Any]], store: Store, seal: Seal) -> None:
        self._keys = keys
        self._loads = loads
        self._store = store
        self._seal = seal
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

        if self._window is None:
            self._window = Window(self._store, self._seal, dict(zip(self._keys, self._loads, strict=True)))
        spec = self._window.spec(self._keys[slot])
        known = _recipe(spec)
        version = FunctionVersion(known.name, None, known.code, spec.template, known.priority, known.nout)
        return unloaded(
            handle(cast(SessionProtocol, self._window), version, spec.key, spec.needs, spec.args_repr), steps
        )


class Window:
    """The desk of tasks that a running task got unloaded: it shows them, and takes nothing in."""

    def __init__(self, store: Store, seal: Seal, loads: Mapping[Key, Callable[[], Any]]) -> None:
        self._store = store
        self._seal = seal
        self._loads = loads

    def spec(self, key: Key) -> Spec:
        """What the store keeps of a task. Raises NoSuchTask."""
        [spec] = self.specs([key])
        if spec is None:
            raise NoSuchTask(f"no task {key[:12]} in {self._store.display_url}")
        return spec

    def specs(self, keys: Sequence[Key]) -> list[Spec | None]:
        """None for tasks that the store doesn't know."""
        return [
            None if body is None else _SPEC.decode(self._seal.open("spec", key, 0, b"", body))
            for key, body in zip(keys, self._store.specs(keys), strict=True)
        ]

    def outcomes(self, keys: Sequence[Key]) -> list[Outcome | None]:
        """None where no outcome holds."""
        found: list[Outcome | None] = []
        for key, held in zip(keys, self._store.outcomes(keys), strict=True):
            if held is None:
                found.append(None)
                continue
            said = held.verdict
            if said.key != key:
                prove(self._seal, key, said.key, said.round, said.inputs, said.digest, held.proof)
            found.append(_OUTCOME.decode(self._seal.open("outcome", said.key, said.round, said.inputs, held.body)))
        return found

    # -- what handles ask of their desk

    @property
    def identity(self) -> str:
        return self._store.id

    @property
    def display_url(self) -> str:
        return self._store.display_url

    def former(self, version: Any) -> bool:
        return False

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
        return provenance(key, self._store, self, self._seal)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise BadTask(
            f"inside a task, a task that was passed as NoLoad has its value, key, name and provenance, and no {name!r}"
        )


# -- where a value comes from ------------------------------------------------------------------------------------------
