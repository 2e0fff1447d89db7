"""Opening what is sealed in a store: specs, outcomes, and what people see of them. Nothing unsigned is ever shown."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec

from jug_notebook.codec.signing import Seal, prove
from jug_notebook.errors import SignatureError, ValueLost
from jug_notebook.model import (
    CurrentOutcome,
    Display,
    Failed,
    FailureView,
    Finished,
    Key,
    Outcome,
    Run,
    Spec,
    State,
    TaskTemplate,
    TaskView,
)
from jug_notebook.store import Store

TAIL = 4000  #: characters of a failed task's output that its error shows

_SPEC = msgspec.msgpack.Decoder(Spec)
_OUTCOME: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Finished | Failed)


@functools.lru_cache(maxsize=1000)
def template(data: bytes) -> TaskTemplate:
    """What tasks of a function share, decoded once."""
    return msgspec.msgpack.decode(data, type=TaskTemplate)


class SignedReader:
    """Opens what a store holds, with the store's seal. Raises SignatureError unless a method says otherwise."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self._store = store
        self._seal = seal

    def spec(self, key: Key, body: bytes) -> Spec:
        """A spec from its sealed bytes."""
        return _SPEC.decode(self._seal.open("spec", key, 0, b"", body))

    def outcome(self, key: Key, held: CurrentOutcome) -> Outcome:
        """An outcome from its sealed bytes."""
        verdict = held.verdict
        if verdict.key != key:
            prove(
                self._seal, key, verdict.key, verdict.round, verdict.inputs, verdict.digest, held.proof
            )  # fmt: skip
        outcome = _OUTCOME.decode(self._seal.open("outcome", verdict.key, verdict.round, verdict.inputs, held.body))
        if held.proof and (type(outcome) is not Finished or outcome.digest != verdict.digest):
            raise SignatureError(f"the store says of task {key[:12]} what the run that it took over doesn't")
        return outcome

    def specs(self, keys: Sequence[Key]) -> list[Spec | None]:
        """None for tasks that the store doesn't know."""
        return [
            None if body is None else self.spec(key, body)
            for key, body in zip(keys, self._store.specs(keys), strict=True)
        ]

    def outcomes(self, keys: Sequence[Key]) -> list[Outcome | None]:
        """None where no outcome holds."""
        return [
            None if held is None else self.outcome(key, held)
            for key, held in zip(keys, self._store.outcomes(keys), strict=True)
        ]

    def views(self, keys: Sequence[Key], filled: bool = False) -> list[TaskView]:
        """Tasks by key. One that the store doesn't know has no name and counts as cancelled."""
        known = []
        for key, state, spec in zip(keys, self._store.states(keys), self.specs(keys), strict=True):
            name, args_repr = ("", "") if spec is None else (template(spec.template).name, spec.args_repr)
            known.append(TaskView(key, name, state or State.CANCELLED, args_repr=args_repr))
        return self.filled(known) if filled else known

    def filled(self, views: Sequence[TaskView]) -> list[TaskView]:
        """Views with their sealed parts: arguments, summary, error. What isn't signed says so in its place."""
        keys = [view.key for view in views]
        bodies, helds = self._store.specs(keys), self._store.outcomes(keys)
        return [self._fill(view, body, held) for view, body, held in zip(views, bodies, helds, strict=True)]

    def _fill(self, view: TaskView, body: bytes | None, held: CurrentOutcome | None) -> TaskView:
        args_repr, summary, error, source, user = view.args_repr, "", "", "", ""
        started, duration = view.started, view.duration
        try:
            if body is not None:
                spec = self.spec(view.key, body)
                args_repr, user = spec.args_repr, spec.origin.user
            if held is not None:
                outcome = self.outcome(view.key, held)
                source = "" if held.verdict.key == view.key else held.verdict.key
                started, duration = held.verdict.started, held.verdict.duration
                summary = outcome.summary if isinstance(outcome, Finished) else ""
                error = outcome.error if isinstance(outcome, Failed) else ""
        except SignatureError as refused:
            error = f"not shown: {refused}"
        return msgspec.structs.replace(
            view,
            args_repr=args_repr,
            summary=summary,
            error=error,
            source=source,
            started=started,
            duration=duration,
            user=user,
        )

    def pieces(self, run: Run) -> list[tuple[str, Any]]:
        """What a run printed, ("stdout", text), and displayed, ("display", forms by MIME type), in order."""
        pieces: list[tuple[str, Any]] = []
        waiting = list(run.displays)
        for number, piece in enumerate(run.output):
            while waiting and waiting[0].at <= number:
                pieces.append(("display", self._forms(waiting.pop(0))))
            pieces.append(piece)
        return pieces + [("display", self._forms(display)) for display in waiting]

    def _forms(self, display: Display) -> dict[str, Any]:
        if not display.blob:
            return display.data
        try:
            forms: dict[str, Any] = msgspec.msgpack.decode(self._store.get_blob(display.blob))
        except ValueLost:
            return {"text/plain": "[a display that the store has lost]"}
        return forms

    def failures(self, views: Sequence[TaskView]) -> list[FailureView | None]:
        """Failed tasks as people see them; None for one that no longer is. What isn't signed says so in its place."""
        keys = [view.key for view in views]
        bodies, helds = self._store.specs(keys), self._store.outcomes(keys)
        return [self._failure(view, body, held) for view, body, held in zip(views, bodies, helds, strict=True)]

    def _failure(self, view: TaskView, body: bytes | None, held: CurrentOutcome | None) -> FailureView | None:
        if held is None or held.verdict.finished:
            return None
        try:
            outcome = self.outcome(view.key, held)
            assert isinstance(outcome, Failed)
            return failure(outcome, view.name, "" if body is None else self.spec(view.key, body).args_repr)
        except SignatureError as refused:
            return FailureView(view.key, view.name, "", f"not shown: {refused}", "", "", 0, 0.0, 0.0)


def failure(failed: Failed, name: str, args_repr: str) -> FailureView:
    """A failure as people see it."""
    run = failed.run
    return FailureView(
        key=failed.key,
        name=name,
        args_repr=args_repr,
        error=failed.error,
        traceback=failed.traceback,
        host=run.host,
        pid=run.pid,
        started=run.started,
        duration=run.duration,
        output=printed(run.output)[-TAIL:],
    )


def printed(output: Sequence[tuple[str, str]]) -> str:
    """What a task printed, in order, as a terminal would have shown it."""
    return "".join(text for _, text in output)
