"""Where values come from: a task's code, arguments, needs and run; and the history of attempts in a store."""

from __future__ import annotations

from typing import Any

import msgspec

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
)
from jug_notebook.store.signed import SignedReader, template


def history(signed: SignedReader, scope: Scope, limit: int) -> tuple[list[RunView], int]:
    """Return the latest attempts that ended, latest first, and how many are known; obsolete ones are included."""
    ended, total = signed.store.runs(scope, limit)
    bodies = signed.store.specs([run.verdict.key for run in ended])
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
        began, message = verdict.started, f"not shown: {refused}"
        return RunView(key, "", state, started=began, duration=verdict.duration, message=message, fate=fate)
    name, args_repr = ("", "") if spec is None else (template(spec.template).name, spec.args_repr)
    message = outcome.summary if isinstance(outcome, Finished) else outcome.error
    run = outcome.run
    return RunView(key, name, state, args_repr, run.user, run.host, run.pid, run.started, run.duration, message, fate)


UPSTREAM = 1000  #: at most this many needed tasks are described
_OF_RUN = ("user", "host", "pid", "python", "started", "duration", "cpu", "attempt")


def provenance(key: Key, signed: SignedReader) -> dict[str, Any]:
    """Return all that is known about where a task's value comes from, as plain data fit for JSON. Times are seconds.

    ``needs`` are keys. ``upstream`` describes these tasks and what they need in turn, each once, nearest first, at most
    a thousand; ``upstream_complete`` says whether that is all. Where the value was reused, ``reused from`` is the key
    of the task that ran, and where a user accepted it, ``accepted by`` and ``accepted at`` say who and when.
    Raises NoSuchTask.
    """
    store = signed.store
    [spec] = signed.specs([key])
    if spec is None:
        raise NoSuchTask(f"no task {key[:12]} in {store.display_url}")
    [outcome] = signed.outcomes([key])
    [state] = store.states([key])
    bundle = msgspec.msgpack.decode(store.get_blob(template(spec.template).bundle), type=FunctionBundle)
    info = _described(spec, outcome, state) | _reuse(key, outcome, signed) | {"parts": dict(bundle.parts)}
    upstream: dict[Key, dict[str, Any]] = {}
    missing = False
    row = [need for need in dict.fromkeys(spec.needs) if need != key]
    while row:
        missing = missing or len(upstream) + len(row) > UPSTREAM
        row = row[: UPSTREAM - len(upstream)]
        following: dict[Key, None] = {}
        known = zip(row, signed.specs(row), signed.outcomes(row), store.states(row), strict=True)
        for need, found, came, state in known:
            upstream[need] = {"key": need} if found is None else _described(found, came, state)
            following.update(dict.fromkeys(() if found is None else found.needs))
        row = [need for need in following if need not in upstream and need != key]
    return {**info, "upstream": upstream, "upstream_complete": not missing}


def _reuse(key: Key, outcome: Outcome | None, signed: SignedReader) -> dict[str, Any]:
    """Return which task's run the value comes from, where that isn't its own."""
    if outcome is None or outcome.key == key:
        return {}
    info: dict[str, Any] = {"reused from": outcome.key}
    [body] = signed.store.acceptances([key])
    if body is not None and isinstance(outcome, Finished):
        by = signed.acceptance(key, body)
        if (by.source, by.source_round, by.digest) == (outcome.key, outcome.round, outcome.digest):
            info |= {"accepted by": by.user, "accepted at": by.at}
    return info


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
