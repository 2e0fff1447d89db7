"""Reading and writing what is signed in a store: specs, outcomes, acceptances, and views made of them.

Everything that opens or seals these does it here. Unsigned bytes are never shown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from jug_notebook.errors import NoSuchTask, SignatureError, StoreError, ValueLost
from jug_notebook.frames import with_present_cells
from jug_notebook.model import (
    Acceptance,
    Address,
    Attempt,
    CurrentOutcome,
    Display,
    Environment,
    Failed,
    FailureView,
    Finished,
    FunctionBundle,
    Key,
    Outcome,
    Payload,
    Run,
    RunView,
    Scope,
    Settlement,
    Spec,
    State,
    TaskTemplate,
    TaskView,
    Verdict,
    decoder,
)
from jug_notebook.store import Store
from jug_notebook.store.keyring import read_secret, secret
from jug_notebook.store.sealing import TAG, Seal

TAIL = 4000  #: characters of a failed task's output that its error shows
UPSTREAM = 1000  #: at most this many needed tasks are described
_OF_RUN = (
    "user", "host", "pid", "python", "started", "duration", "cpu", "peak", "read", "written", "attempt", "copied_from",
)  # fmt: skip


class Brief(msgspec.Struct, frozen=True, array_like=True, tag="finished"):
    """A `Finished` whose run isn't decoded: that takes as long as all the rest."""

    key: Key
    round: int
    inputs: bytes
    digest: bytes
    value: Payload
    summary: str
    run: msgspec.Raw
    dropped: str = ""


class BriefSpec(msgspec.Struct, frozen=True, array_like=True):
    """A `Spec` without what isn't about its call."""

    key: Key
    template: bytes
    needs: msgspec.Raw
    form: bytes
    arguments: Payload
    args_repr: str
    origin: msgspec.Raw
    folder: str
    made: float
    call: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_template: Callable[[bytes], TaskTemplate] = decoder(TaskTemplate, "what tasks share", SignatureError)
_spec: Callable[[bytes | memoryview], Spec] = decoder(Spec, "a task", SignatureError)
_brief_spec: Callable[[bytes | memoryview], BriefSpec] = decoder(BriefSpec, "a task", SignatureError)
_finished: Callable[[bytes | memoryview], Finished] = decoder(Finished, "a task's outcome", SignatureError)
_outcome: Callable[[bytes | memoryview], Outcome] = decoder(Finished | Failed, "a task's outcome", SignatureError)
_brief: Callable[[bytes | memoryview], Brief | Failed] = decoder(Brief | Failed, "a task's outcome", SignatureError)
_acceptance: Callable[[bytes | memoryview], Acceptance] = decoder(Acceptance, "an acceptance", SignatureError)
_bundle: Callable[[memoryview], FunctionBundle] = decoder(FunctionBundle, "a function")
_environment: Callable[[memoryview], Environment] = decoder(Environment, "an environment")
_display: Callable[[memoryview], dict[str, Any]] = decoder(dict[str, Any], "a display")


def secret_of(store: Store, make: bool = False) -> bytes:
    """Return the store's key. With ``make``, make one for a store that doesn't do so itself, if it has no tasks yet.

    Raises StoreError where the key is missing or can't be read.
    """
    try:
        return secret(store.id)
    except StoreError:
        if not make or store.unverified or store.snapshot().functions:
            raise
    return secret(store.id, make=True)


def seal_of(store: Store, make: bool = False) -> Seal:
    """Return the store's seal; ``make`` and errors as for `secret_of`."""
    return Seal(secret_of(store, make), store.id)


def reading_seal(store: Store) -> Seal:
    """Return the store's seal, or one that opens and signs nothing, where only its reading key is here.

    Raises StoreError where neither is.
    """
    return Seal(read_secret(store.id), store.id, read_only=True) if store.read_only else seal_of(store)


# -- reading and writing ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1000)
def template(data: bytes) -> TaskTemplate:
    """Return the decoded template of a spec; many specs share one, so it is decoded once."""
    return _template(data)


def function_bundle(store: Store, address: Address) -> FunctionBundle:
    """Return a function as it is stored. Raises ValueLost where it is missing or damaged."""
    return _bundle(store.get_blob(address))


def unverified_spec(body: bytes) -> Spec:
    """Return a spec whose signature is not checked: for counting what a store holds, never for running or showing."""
    return _spec(memoryview(body)[TAG:])


def unverified_outcome(body: bytes) -> Outcome:
    """Return an outcome, likewise."""
    return _outcome(memoryview(body)[TAG:])


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
        self.seal = seal

    def spec(self, key: Key, body: bytes) -> Spec:
        """Return a spec from its sealed bytes."""
        return _spec(self.seal.open("spec", key, 0, b"", body))

    def brief_spec(self, key: Key, body: bytes) -> BriefSpec:
        """Return the same, without its origin and needs: quicker."""
        return _brief_spec(self.seal.open("spec", key, 0, b"", body))

    def outcome(self, key: Key, held: CurrentOutcome) -> Outcome:
        """Return an outcome from its sealed bytes, if it is the verdict's and it is proven that ``key`` may have it."""
        outcome: Outcome = self._opened(key, held, _outcome)
        return outcome

    def brief(self, key: Key, held: CurrentOutcome) -> Brief | Failed:
        """Return the same, without the run of one that finished."""
        outcome: Brief | Failed = self._opened(key, held, _brief)
        return outcome

    def held(self, keys: Sequence[Key]) -> Sequence[CurrentOutcome | None]:
        """Return the outcomes of tasks whose values are read next: a mirror may fetch several of these at once."""
        found = self.store.outcomes(keys)
        if self.store.also is not None:
            self.store.also.expect(lambda: self._blobs_of(keys, found))
        return found

    def _blobs_of(self, keys: Sequence[Key], outcomes: Sequence[CurrentOutcome | None]) -> Iterator[Address]:
        for key, held in zip(keys, outcomes, strict=True):
            if held is not None and held.verdict.digest:
                with suppress(SignatureError):  # it is raised when the value is read
                    outcome = self.brief(key, held)
                    yield from outcome.value.buffers if isinstance(outcome, Brief) else ()

    def _opened(self, key: Key, held: CurrentOutcome, decode: Callable[[bytes | memoryview], Any]) -> Any:
        verdict = held.verdict
        if verdict.key != key:
            self._prove(key, verdict.key, verdict.round, verdict.inputs, verdict.digest, held.proof)
        outcome = decode(self.seal.open("outcome", verdict.key, verdict.round, verdict.inputs, held.body))
        if (b"" if type(outcome) is Failed else outcome.digest) != verdict.digest:  # of another attempt
            raise SignatureError(
                f"the store gives task {key[:12]} another value than the run it is said to come from had"
            )
        if type(outcome) is Failed:
            return msgspec.structs.replace(outcome, traceback=with_present_cells(outcome.traceback, outcome.labels))
        return outcome

    def result(self, key: Key, body: bytes, proof: Sequence[bytes] = ()) -> Finished:
        """Return the finished outcome of a task that another one needs, as a claim hands it over."""
        unproven = _finished(memoryview(body)[TAG:])  # says what the signature must cover
        source, round, inputs = unproven.key, unproven.round, unproven.inputs
        finished = _finished(self.seal.open("outcome", source, round, inputs, body))
        if source != key:
            self._prove(key, source, round, inputs, finished.digest, proof)
        return finished

    def acceptance(self, key: Key, body: bytes) -> Acceptance:
        """Return an acceptance from its sealed bytes."""
        unproven = _acceptance(memoryview(body)[TAG:])  # says what the signature must cover
        self.seal.open("acceptance", key, unproven.round, unproven.inputs, body)
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

    def known_spec(self, key: Key) -> Spec:
        """Return a task's spec. Raises NoSuchTask where the store doesn't know it."""
        [spec] = self.specs([key])
        if spec is None:
            raise NoSuchTask(f"no task {key[:12]} in {self.store.display_url}")
        return spec

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
        found: dict[str, Any] = dict.fromkeys(("summary", "error", "source", "user"), "")
        try:
            if body is not None:
                spec = self.spec(view.key, body)
                found |= {"args_repr": spec.args_repr, "user": spec.origin.user}
            if held is not None:
                outcome, verdict = self.outcome(view.key, held), held.verdict
                found |= {"started": verdict.started, "duration": verdict.duration}
                found["source"] = "" if verdict.key == view.key else verdict.key
                found |= {"summary": outcome.summary} if isinstance(outcome, Finished) else {"error": outcome.error}
        except SignatureError as refused:
            found["error"] = f"not shown: {refused}"
        return msgspec.structs.replace(view, **found)

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
            return _display(self.store.get_blob(display.blob))
        except ValueLost:
            return {"text/plain": "[the store has lost this output]"}

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
            return failure(outcome, view.name, None if body is None else self.spec(view.key, body))
        except SignatureError as refused:
            return FailureView(view.key, view.name, "", f"not shown: {refused}", "", "", 0, 0.0, 0.0)

    # -- where values come from ----------------------------------------------------------------------------------------

    def history(self, scope: Scope, limit: int) -> tuple[list[RunView], int]:
        """Return the latest attempts that ended, latest first, and how many are known; obsolete ones are included."""
        ended, total = self.store.runs(scope, limit)
        bodies = self.store.specs([run.verdict.key for run in ended])
        return [self._run(run, body) for run, body in zip(ended, bodies, strict=True)], total

    def _run(self, ended: Attempt, body: bytes | None) -> RunView:
        verdict = ended.verdict
        key = verdict.key
        state = State.FINISHED if verdict.finished else State.FAILED
        superseded = "" if ended.counts else "dropped" if verdict.finished else "tried again"
        try:
            spec = None if body is None else self.spec(key, body)
            outcome = self.outcome(key, CurrentOutcome(verdict, ended.body))
        except SignatureError as refused:
            began, message = verdict.started, f"not shown: {refused}"
            return RunView(
                key, "", state, started=began, duration=verdict.duration, message=message, superseded=superseded
            )
        name, args_repr = ("", "") if spec is None else (template(spec.template).name, spec.args_repr)
        message = outcome.summary if isinstance(outcome, Finished) else outcome.error
        run = outcome.run
        return RunView(
            key, name, state, args_repr, run.user, run.host, run.pid, run.started, run.duration, message, superseded
        )

    def provenance(self, key: Key) -> dict[str, Any]:
        """Return all that is known about where a task's value comes from, as plain data fit for JSON. Times: seconds.

        ``needs`` are keys. ``upstream`` describes these tasks and what they need in turn, each once, nearest first, at
        most a thousand; ``upstream_complete`` says whether that is all. Where the value was reused, ``reused from`` is
        the key of the task that ran; where a user accepted it, ``accepted by`` and ``accepted at`` say who and when.
        Raises NoSuchTask.
        """
        store = self.store
        spec = self.known_spec(key)
        [outcome] = self.outcomes([key])
        [state] = store.states([key])
        bundle = function_bundle(store, template(spec.template).bundle)
        info = _described(spec, outcome, state) | self._reuse(key, outcome) | {"parts": dict(bundle.parts)}
        if outcome is not None:
            had = self.environment(outcome.run)
            info["run"]["environment"] = None if had is None else msgspec.structs.asdict(had)
        upstream: dict[Key, dict[str, Any]] = {}
        missing = False
        row = [need for need in dict.fromkeys(spec.needs) if need != key]
        while row:
            missing = missing or len(upstream) + len(row) > UPSTREAM
            row = row[: UPSTREAM - len(upstream)]
            following: dict[Key, None] = {}
            known = zip(row, self.specs(row), self.outcomes(row), store.states(row), strict=True)
            for need, found, came, state in known:
                upstream[need] = {"key": need} if found is None else _described(found, came, state)
                following.update(dict.fromkeys(() if found is None else found.needs))
            row = [need for need in following if need not in upstream and need != key]
        return {**info, "upstream": upstream, "upstream_complete": not missing}

    def environment(self, run: Run) -> Environment | None:
        """Return the versions that a run had; None where that isn't known, or its store has lost it."""
        try:
            return _environment(self.store.get_blob(run.environment)) if run.environment else None
        except ValueLost:
            return None

    def _reuse(self, key: Key, outcome: Outcome | None) -> dict[str, Any]:
        """Return which task's run the value comes from, where that isn't its own."""
        if outcome is None or outcome.key == key:
            return {}
        info: dict[str, Any] = {"reused from": outcome.key}
        [body] = self.store.acceptances([key])
        if body is not None and isinstance(outcome, Finished):
            by = self.acceptance(key, body)
            if (by.source, by.source_round, by.digest) == (outcome.key, outcome.round, outcome.digest):
                info |= {"accepted by": by.user, "accepted at": by.at}
        return info


def failure(failed: Failed, name: str, spec: Spec | None) -> FailureView:
    """Return a failure as people see it; of the task itself, only what its spec tells."""
    run = failed.run
    output = printed(run.output)[-TAIL:]
    place = run.host, run.pid, run.started, run.duration
    args_repr, attempts = ("", 1) if spec is None else (spec.args_repr, template(spec.template).retries + 1)
    return FailureView(
        failed.key, name, args_repr, failed.error, failed.traceback, *place, output, run.attempt, attempts
    )


def printed(output: Sequence[tuple[str, str]]) -> str:
    """Return what a task printed, in order, as a terminal would have shown it."""
    return "".join(text for _, text in output)


def _described(spec: Spec, outcome: Outcome | None, state: State | None) -> dict[str, Any]:
    known = template(spec.template)
    info: dict[str, Any] = {
        "key": spec.key,
        "name": known.name,
        "state": (state or State.CANCELLED).value,
        "arguments": spec.args_repr,
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
        info["run"] = {name: getattr(outcome.run, name) for name in _OF_RUN}
        if isinstance(outcome, Finished):
            info["value"] = {"digest": outcome.digest[1:].hex(), "summary": outcome.summary}
        else:
            info["error"] = outcome.error
    return info
