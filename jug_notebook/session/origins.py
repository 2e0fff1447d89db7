"""Where values come from: the facts about a task's code, arguments, needs and run; and who ran what when."""

from __future__ import annotations

from jug_notebook.errors import SignatureError
from jug_notebook.model import Finished, RunView, Scope, State, TaskView
from jug_notebook.session.opening import Opener
from jug_notebook.store import Store
from jug_notebook.unloaded import provenance


def history(store: Store, opener: Opener, scope: Scope, limit: int) -> tuple[list[RunView], int]:
    """The latest runs that ended, latest first, and how many are known. One of each task: the one that counts."""
    ended = [view for view in store.tasks(scope) if view.started]
    ended.sort(key=lambda view: view.started + view.duration, reverse=True)
    return [_run(view, opener) for view in opener.filled(ended[:limit] if limit else ended)], len(ended)


def _run(view: TaskView, opener: Opener) -> RunView:
    try:
        [outcome] = opener.outcomes([view.key])
    except SignatureError:
        outcome = None
    if outcome is None:
        return RunView(view.key, view.name, view.state, view.shown, started=view.started, duration=view.duration)
    run = outcome.run
    said = view.error or view.summary
    state = State.FINISHED if isinstance(outcome, Finished) else State.FAILED
    return RunView(
        view.key, view.name, state, view.shown, run.user, run.host, run.pid, run.started, run.duration, said
    )  # fmt: skip


__all__ = ["history", "provenance"]
