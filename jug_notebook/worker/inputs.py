"""What a running task gets in place of tasks that it needs: their values, or, unloaded, the tasks themselves.

Also where a value comes from, which both a notebook and an unloaded task can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol, cast

import msgspec

from jug_notebook import alias
from jug_notebook.codec import Seal
from jug_notebook.errors import BadTask, NoSuchTask
from jug_notebook.model import Failed, Finished, Key, Outcome, Parcel, Recipe, Spec, State, TaskView
from jug_notebook.store import Store

_SPEC = msgspec.msgpack.Decoder(Spec)
_OUTCOME: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Finished | Failed)
_RECIPE = msgspec.msgpack.Decoder(Recipe)

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
        from jug_notebook.task.context import Desk, Edition  # most tasks need none of it
        from jug_notebook.task.handles import handle, unloaded

        if self._window is None:
            self._window = Window(self._store, self._seal, dict(zip(self._keys, self._loads, strict=True)))
        spec = self._window.spec(self._keys[slot])
        known = _recipe(spec)
        edition = Edition(known.name, None, known.code, spec.recipe, known.priority, known.nout)
        return unloaded(handle(cast(Desk, self._window), edition, spec.key, spec.needs, spec.shown), steps)


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
            raise NoSuchTask(f"no task {key[:12]} in {self._store.shown}")
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
                alias.prove(self._seal, key, said.key, said.round, said.inputs, said.digest, held.proof)
            found.append(_OUTCOME.decode(self._seal.open("outcome", said.key, said.round, said.inputs, held.body)))
        return found

    # -- what handles ask of their desk

    @property
    def identity(self) -> str:
        return self._store.id

    @property
    def shown(self) -> str:
        return self._store.shown

    def former(self, edition: Any) -> bool:
        return False

    def states(self, keys: Sequence[Key]) -> list[State]:
        return [state or State.WITHDRAWN for state in self._store.states(keys)]

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


class Look(Protocol):
    """Who opens what a store holds."""

    def specs(self, keys: Sequence[Key]) -> list[Spec | None]: ...

    def outcomes(self, keys: Sequence[Key]) -> list[Outcome | None]: ...


def _recipe(spec: Spec) -> Recipe:
    return _RECIPE.decode(spec.recipe)


UPSTREAM = 1000  #: so many needed tasks are told of


def provenance(key: Key, store: Store, look: Look, seal: Seal) -> dict[str, Any]:
    """All that is known of where a task's value comes from: plain data, fit for JSON. Times are seconds.

    ``needs`` are keys; what is known of these, and of what they need in turn, stands in ``upstream``, each once, the
    nearest first, at most a thousand: ``upstream_complete`` says whether that is all. Where another task's run stands
    for this one, ``reused from`` is its key, and ``accepted by`` and ``accepted at`` tell who said so.
    """
    [spec] = look.specs([key])
    if spec is None:
        raise NoSuchTask(f"no task {key[:12]} in {store.shown}")
    [outcome] = look.outcomes([key])
    [state] = store.states([key])
    told = _facts(spec, outcome, state)
    told |= _reuse(key, outcome, store, seal)
    parcel = msgspec.msgpack.decode(store.get_blob(_recipe(spec).parcel), type=Parcel)
    told["parts"] = dict(parcel.parts)
    upstream: dict[Key, dict[str, Any]] = {}
    missing = False
    row = [need for need in dict.fromkeys(spec.needs) if need != key]
    while row:
        missing = missing or len(upstream) + len(row) > UPSTREAM
        row = row[: UPSTREAM - len(upstream)]
        following: dict[Key, None] = {}
        known = zip(row, look.specs(row), look.outcomes(row), store.states(row), strict=True)
        for need, found, came, state in known:
            upstream[need] = {"key": need} if found is None else _facts(found, came, state)
            following.update(dict.fromkeys(() if found is None else found.needs))
        row = [need for need in following if need not in upstream and need != key]
    return {**told, "upstream": upstream, "upstream_complete": not missing}


def _reuse(key: Key, outcome: Outcome | None, store: Store, seal: Seal) -> dict[str, Any]:
    """Whose run it is, where that isn't its own."""
    if outcome is None or outcome.key == key:
        return {}
    told: dict[str, Any] = {"reused from": outcome.key}
    [said] = store.acceptances([key])
    if said is not None and isinstance(outcome, Finished):
        by = alias.opened(seal, key, said)
        if (by.source, by.source_round, by.digest) == (outcome.key, outcome.round, outcome.digest):
            told |= {"accepted by": by.user, "accepted at": by.at}
    return told


def _facts(spec: Spec, outcome: Outcome | None, state: State | None) -> dict[str, Any]:
    known = _recipe(spec)
    told: dict[str, Any] = {
        "key": spec.key,
        "name": known.name,
        "state": (state or State.WITHDRAWN).value,
        "arguments": spec.shown,
        "code": known.code,
        "made": spec.made,
        "by": spec.origin.user,
        "notebook": spec.origin.notebook,
        "cell": spec.origin.cell,
        "folder": spec.folder,
        "python": known.python,
        "needs": list(spec.needs),
        "run": None,
    }
    if outcome is not None:
        run = outcome.run
        told["run"] = {
            "user": run.user,
            "host": run.host,
            "pid": run.pid,
            "python": run.python,
            "started": run.started,
            "duration": run.duration,
            "cpu": run.cpu,
            "attempt": run.attempt,
        }
        if isinstance(outcome, Finished):
            told["value"] = {"digest": outcome.digest[1:].hex(), "summary": outcome.summary}
        else:
            told["error"] = outcome.error
    return told
