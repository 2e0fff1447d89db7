"""Where values come from: the facts about a task's code, arguments, needs and run; and who ran what when."""

from __future__ import annotations

from jug_notebook.errors import SignatureError
from jug_notebook.model import Ended, Finished, Held, RunView, Scope, State
from jug_notebook.store import Store
from jug_notebook.store.signed import Opener, recipe
from jug_notebook.worker.inputs import provenance


def history(store: Store, opener: Opener, scope: Scope, limit: int) -> tuple[list[RunView], int]:
    """The latest attempts that ended, latest first, and how many are known; those that no longer count among them."""
    ended, total = store.runs(scope, limit)
    bodies = store.specs([run.verdict.key for run in ended])
    return [_run(run, body, opener) for run, body in zip(ended, bodies, strict=True)], total


def _run(ended: Ended, body: bytes | None, opener: Opener) -> RunView:
    verdict = ended.verdict
    key = verdict.key
    state = State.FINISHED if verdict.finished else State.FAILED
    fate = "" if ended.counts else "dropped" if verdict.finished else "tried again"
    try:
        spec = None if body is None else opener.spec(key, body)
        outcome = opener.outcome(key, Held(verdict, ended.body))
    except SignatureError as refused:
        return RunView(
            key, "", state, started=verdict.started, duration=verdict.duration, said=f"not shown: {refused}", fate=fate
        )
    name, shown = ("", "") if spec is None else (recipe(spec.recipe).name, spec.shown)
    said = outcome.summary if isinstance(outcome, Finished) else outcome.error
    run = outcome.run
    return RunView(key, name, state, shown, run.user, run.host, run.pid, run.started, run.duration, said, fate)


__all__ = ["history", "provenance"]
