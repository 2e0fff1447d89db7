"""Where values come from: the facts about a task's code, arguments, needs and run; and who ran what when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from jug_notebook.codec.signing import Seal, open_acceptance
from jug_notebook.errors import NoSuchTask, SignatureError
from jug_notebook.model import (
    Attempt,
    CurrentOutcome,
    Finished,
    FunctionBundle,
    Key,
    Outcome,
    RunView,
    Scope,
    Spec,
    State,
    TaskTemplate,
)
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader, template


def history(store: Store, signed: SignedReader, scope: Scope, limit: int) -> tuple[list[RunView], int]:
    """The latest attempts that ended, latest first, and how many are known; those that no longer count among them."""
    ended, total = store.runs(scope, limit)
    bodies = store.specs([run.verdict.key for run in ended])
    return [_run(run, body, signed) for run, body in zip(ended, bodies, strict=True)], total


def _run(ended: Attempt, body: bytes | None, signed: SignedReader) -> RunView:
    verdict = ended.verdict
    key = verdict.key
    state = State.FINISHED if verdict.finished else State.FAILED
    fate = "" if ended.counts else "dropped" if verdict.finished else "tried again"
    try:
        spec = None if body is None else signed.spec(key, body)
        outcome = signed.outcome(key, CurrentOutcome(verdict, ended.body))
    except SignatureError as refused:
        return RunView(
            key,
            "",
            state,
            started=verdict.started,
            duration=verdict.duration,
            message=f"not shown: {refused}",
            fate=fate,
        )
    name, args_repr = ("", "") if spec is None else (template(spec.template).name, spec.args_repr)
    said = outcome.summary if isinstance(outcome, Finished) else outcome.error
    run = outcome.run
    return RunView(key, name, state, args_repr, run.user, run.host, run.pid, run.started, run.duration, said, fate)


_RECIPE = msgspec.msgpack.Decoder(TaskTemplate)


class Look(Protocol):
    """Who opens what a store holds."""

    def specs(self, keys: Sequence[Key]) -> list[Spec | None]: ...

    def outcomes(self, keys: Sequence[Key]) -> list[Outcome | None]: ...


def _recipe(spec: Spec) -> TaskTemplate:
    return _RECIPE.decode(spec.template)


UPSTREAM = 1000  #: so many needed tasks are told of


def provenance(key: Key, store: Store, look: Look, seal: Seal) -> dict[str, Any]:
    """All that is known of where a task's value comes from: plain data, fit for JSON. Times are seconds.

    ``needs`` are keys; what is known of these, and of what they need in turn, stands in ``upstream``, each once, the
    nearest first, at most a thousand: ``upstream_complete`` says whether that is all. Where another task's run stands
    for this one, ``reused from`` is its key, and ``accepted by`` and ``accepted at`` tell who said so.
    """
    [spec] = look.specs([key])
    if spec is None:
        raise NoSuchTask(f"no task {key[:12]} in {store.display_url}")
    [outcome] = look.outcomes([key])
    [state] = store.states([key])
    told = _facts(spec, outcome, state)
    told |= _reuse(key, outcome, store, seal)
    bundle = msgspec.msgpack.decode(store.get_blob(_recipe(spec).bundle), type=FunctionBundle)
    told["parts"] = dict(bundle.parts)
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
        by = open_acceptance(seal, key, said)
        if (by.source, by.source_round, by.digest) == (outcome.key, outcome.round, outcome.digest):
            told |= {"accepted by": by.user, "accepted at": by.at}
    return told


def _facts(spec: Spec, outcome: Outcome | None, state: State | None) -> dict[str, Any]:
    known = _recipe(spec)
    told: dict[str, Any] = {
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


__all__ = ["history", "provenance"]
