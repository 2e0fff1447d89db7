"""Reading and writing what is signed in a store: specs, outcomes, acceptances, and views made of them.

Everything that opens or seals stored bytes, or needs the store's key, does it here. Unsigned bytes are never shown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from jug_notebook.codec import Seal
from jug_notebook.errors import SignatureError, StoreError, ValueLost
from jug_notebook.model import (
    Acceptance,
    CurrentOutcome,
    Display,
    Failed,
    FailureView,
    Finished,
    Key,
    Outcome,
    Run,
    Settlement,
    Spec,
    State,
    TaskTemplate,
    TaskView,
    Verdict,
)
from jug_notebook.store import Store, keyring

TAIL = 4000  #: characters of a failed task's output that its error shows
TAG = 32  #: bytes of the tag in front of sealed data

_encode = msgspec.msgpack.Encoder().encode
_template = msgspec.msgpack.Decoder(TaskTemplate).decode
_spec = msgspec.msgpack.Decoder(Spec).decode
_finished = msgspec.msgpack.Decoder(Finished).decode
_outcome: Callable[[memoryview], Outcome] = msgspec.msgpack.Decoder(Finished | Failed).decode
_acceptance = msgspec.msgpack.Decoder(Acceptance).decode


def secret_of(store: Store, make: bool = False) -> bytes:
    """Return the store's key. With ``make``, make one if there is none and the store has no tasks yet.

    Raises StoreError where the key is missing or can't be read. The key of a ``memory:`` store stays in this process.
    """
    lasting = not store.url.startswith("memory:")
    try:
        return keyring.secret(store.id, lasting=lasting)
    except StoreError:
        if not make or (lasting and store.snapshot().functions):
            raise
    return keyring.secret(store.id, make=True, lasting=lasting)


def seal_of(store: Store, make: bool = False) -> Seal:
    """Return the store's seal; ``make`` and errors as for `secret_of`."""
    return Seal(secret_of(store, make), store.id)


@functools.lru_cache(maxsize=1000)
def template(data: bytes) -> TaskTemplate:
    """Return the decoded template of a spec; many specs share one, so it is decoded once."""
    return _template(data)


def unverified_spec(body: bytes) -> Spec:
    """Return a spec whose signature is not checked: for counting what a store holds, never for running or showing."""
    return _spec(memoryview(body)[TAG:])


class SignedWriter:
    """Seals what goes into a store."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal.seal

    def spec(self, spec: Spec) -> bytes:
        """Return a sealed spec."""
        return self._seal("spec", spec.key, 0, b"", _encode(spec))

    def settlement(self, verdict: Verdict, outcome: Outcome) -> Settlement:
        """Return the verdict with its sealed outcome."""
        body = self._seal("outcome", outcome.key, outcome.round, outcome.inputs, _encode(outcome))
        return Settlement(verdict, body)

    def acceptance(self, acceptance: Acceptance) -> bytes:
        """Return a sealed acceptance."""
        return self._seal("acceptance", acceptance.key, acceptance.round, acceptance.inputs, _encode(acceptance))


class SignedReader:
    """Opens what a store holds, with the store's seal. Raises SignatureError unless a method says otherwise."""

    def __init__(self, store: Store, seal: Seal) -> None:
        self.store = store
        self._seal = seal

    def spec(self, key: Key, body: bytes) -> Spec:
        """Return a spec from its sealed bytes."""
        return _spec(self._seal.open("spec", key, 0, b"", body))

    def outcome(self, key: Key, held: CurrentOutcome) -> Outcome:
        """Return an outcome from its sealed bytes, once it is proven that ``key`` may have it."""
        verdict = held.verdict
        if verdict.key != key:
            self._prove(key, verdict.key, verdict.round, verdict.inputs, verdict.digest, held.proof)
        outcome = _outcome(self._seal.open("outcome", verdict.key, verdict.round, verdict.inputs, held.body))
        if held.proof and (type(outcome) is not Finished or outcome.digest != verdict.digest):
            raise SignatureError(
                f"the store gives task {key[:12]} another value than the run it is said to come from had"
            )
        return outcome

    def result(self, key: Key, body: bytes, proof: Sequence[bytes] = ()) -> Finished:
        """Return the finished outcome of a task that another one needs, as a claim hands it over."""
        unproven = _finished(memoryview(body)[TAG:])  # says what the signature must cover
        source, round, inputs = unproven.key, unproven.round, unproven.inputs
        finished = _finished(self._seal.open("outcome", source, round, inputs, body))
        if source != key:
            self._prove(key, source, round, inputs, finished.digest, proof)
        return finished

    def acceptance(self, key: Key, body: bytes) -> Acceptance:
        """Return an acceptance from its sealed bytes."""
        try:
            unproven = _acceptance(memoryview(body)[TAG:])  # says what the signature must cover
        except msgspec.MsgspecError:
            raise SignatureError(f"the store's acceptance for task {key[:12]} can't be decoded") from None
        self._seal.open("acceptance", key, unproven.round, unproven.inputs, body)
        return unproven

    def _prove(self, key: Key, source: Key, round: int, inputs: bytes, digest: bytes, proof: Sequence[bytes]) -> None:
        """Raise SignatureError unless the task ``key`` may have the value of ``source``'s run in this round."""
        if len(proof) == 2:
            if self.spec(key, proof[0]).form == self.spec(source, proof[1]).form:
                return
        elif len(proof) == 1:
            by = self.acceptance(key, proof[0])
            if (by.source, by.source_round, by.inputs, by.digest) == (source, round, inputs, digest):
                return
        raise SignatureError(
            f"the store gives the result of task {source[:12]} for task {key[:12]}, but no one with the store's key "
            f"has allowed that, so it isn't opened"
        )

    def specs(self, keys: Sequence[Key]) -> list[Spec | None]:
        """Return specs by key; None for tasks that the store doesn't know."""
        return [
            None if body is None else self.spec(key, body)
            for key, body in zip(keys, self.store.specs(keys), strict=True)
        ]

    def outcomes(self, keys: Sequence[Key]) -> list[Outcome | None]:
        """Return current outcomes by key; None for tasks that have none."""
        return [
            None if held is None else self.outcome(key, held)
            for key, held in zip(keys, self.store.outcomes(keys), strict=True)
        ]

    def views(self, keys: Sequence[Key], filled: bool = False) -> list[TaskView]:
        """Return views by key. A task that the store doesn't know has no name and is cancelled."""
        known = []
        for key, state, spec in zip(keys, self.store.states(keys), self.specs(keys), strict=True):
            name, args_repr = ("", "") if spec is None else (template(spec.template).name, spec.args_repr)
            known.append(TaskView(key, name, state or State.CANCELLED, args_repr=args_repr))
        return self.filled(known) if filled else known

    def filled(self, views: Sequence[TaskView]) -> list[TaskView]:
        """Return views with arguments, summary and error opened; a wrong signature is reported in the error instead."""
        keys = [view.key for view in views]
        bodies, helds = self.store.specs(keys), self.store.outcomes(keys)
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
        """Return what a run printed, ("stdout", text), and displayed, ("display", data by MIME type), in order."""
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
            forms: dict[str, Any] = msgspec.msgpack.decode(self.store.get_blob(display.blob))
        except ValueLost:
            return {"text/plain": "[the store has lost this output]"}
        return forms

    def failures(self, views: Sequence[TaskView]) -> list[FailureView | None]:
        """Return failed tasks as people see them, None for one no longer failed; wrong signatures as in `filled`."""
        keys = [view.key for view in views]
        bodies, helds = self.store.specs(keys), self.store.outcomes(keys)
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
    """Return a failure as people see it."""
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
    """Return what a task printed, in order, as a terminal would have shown it."""
    return "".join(text for _, text in output)
