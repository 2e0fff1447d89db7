"""Questions to a store about its tasks: each is answered from the scheduler state, in one step under its lock.

A store defines none of them. It offers what they are built from: an up-to-date `SchedulerState`, and bodies by place.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from jug_notebook.errors import ValueLost
from jug_notebook.model import (
    Attempt,
    CurrentOutcome,
    Invalidation,
    Key,
    Lease,
    LimitView,
    Origin,
    Rest,
    Scope,
    Span,
    State,
    Target,
    TaskView,
    Verdict,
)
from jug_notebook.scheduler import queries
from jug_notebook.scheduler.records import Outcome, Place
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.scheduler.views import task_view

S = TypeVar("S", bound="Queries")
P = ParamSpec("P")
R = TypeVar("R")


def _of_what_is_there(query: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have a query ask once more where bodies are lost because the picture is of logs that aren't there any more."""

    @functools.wraps(query)
    def asked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return query(self, *args, **kwargs)
        except ValueLost:
            if not self.in_doubt:
                raise
            return query(self, *args, **kwargs)

    return asked


class Queries(Protocol):
    """What can be asked about the tasks of a store. Every query sees what was written before it."""

    in_doubt: bool = False  #: is the picture that queries are answered from to be made anew first?

    def doubt(self) -> bool:
        """Have all read anew, since something of it is no longer as it was. Return False where nothing is kept."""
        return False

    @abstractmethod
    def _updated(self) -> AbstractContextManager[SchedulerState]:
        """Hold the lock, with the scheduler state up to date."""

    @abstractmethod
    def _read(self, places: Sequence[Place]) -> list[bytes]:
        """Return the bodies at these places. Raises ValueLost."""

    def states(self, keys: Sequence[Key]) -> list[State | None]:
        """Return states by key; None for tasks that the store doesn't know."""
        with self._updated() as scheduler:
            return [scheduler.state(key) for key in keys]

    def outstanding(self, keys: Sequence[Key]) -> list[Key]:
        """Return these tasks, and what those that wait need, through any chain of waiting tasks."""
        with self._updated() as scheduler:
            return queries.outstanding(scheduler.tasks, keys)

    @_of_what_is_there
    def specs(self, keys: Sequence[Key]) -> list[bytes | None]:
        """Return sealed specs by key; None for unknown tasks."""
        with self._updated() as scheduler:
            return self._bodies(scheduler.tasks.specs(keys))

    @_of_what_is_there
    def outcomes(self, keys: Sequence[Key]) -> list[CurrentOutcome | None]:
        """Return current outcomes by key, None where there is none. A failure counts only once it is final."""
        with self._updated() as scheduler:
            outcomes = scheduler.tasks.outcomes(keys)
            bodies = self._bodies([None if outcome is None else outcome[1] for outcome in outcomes])
            return [
                None
                if outcome is None or body is None
                else CurrentOutcome(
                    outcome[0], body, () if outcome[0].key == key else self._proof(scheduler, key, outcome)
                )
                for key, outcome, body in zip(keys, outcomes, bodies, strict=True)
            ]

    def blocking_tasks(self, keys: Sequence[Key]) -> list[Key | None]:
        """Return, for each blocked task, the failed task that blocks it; else None."""
        with self._updated() as scheduler:
            return [queries.blocking_task(scheduler.tasks.peek(key)) for key in keys]

    def tasks(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None, limit: int = 0
    ) -> list[TaskView]:
        """Return a listing in order of submission; of failed tasks, the latest first."""
        with self._updated() as scheduler:
            if state is State.FAILED and target is None:
                return [task_view(scheduler, task) for task in queries.latest_failed(scheduler.failed, scope, limit)]
            found = queries.listing(scheduler.tasks.values(), scope, target, state)
            views = [task_view(scheduler, task) for task in found]
        if state is State.FAILED:
            views.sort(key=lambda view: view.started + view.duration, reverse=True)
        return views[:limit] if limit else views

    def runs(self, scope: Scope = Scope(), limit: int = 0, target: Target | None = None) -> tuple[list[Attempt], int]:
        """Return attempts that ended, latest first, and how many are known; failed and invalidated ones included."""
        with self._updated() as scheduler:
            ended = [(outcome, task) for task, outcome in scheduler.runs(scope, target)]
            ended.sort(key=lambda pair: (pair[0][0].started + pair[0][0].duration, pair[0][0].key), reverse=True)
            latest = ended[:limit] if limit else ended
            try:
                bodies = self._read([outcome[1] for outcome, _ in latest])
            except ValueLost:  # a compaction has dropped outcomes of earlier rounds
                if not scheduler.history.drop_past():
                    raise
                return self.runs(scope, limit, target)
            counting = [task.reused_from is None and scheduler.outcome(task.key) == outcome for outcome, task in latest]
        return [
            Attempt(outcome[0], body, counts, task.queue.name)
            for (outcome, task), body, counts in zip(latest, bodies, counting, strict=True)
        ], len(ended)

    def timeline(self, scope: Scope = Scope()) -> tuple[list[Span], list[Key]]:
        """Return when and where attempts ran that have ended, by start, and the critical path to the last of them."""
        with self._updated() as scheduler:
            spans = queries.spans(scheduler.runs(scope))
            last = max(spans, key=lambda span: span.ended, default=None)
            return spans, queries.critical_path(None if last is None else scheduler.tasks.peek(last.key))

    def waits_for(self, keys: Sequence[Key]) -> list[str]:
        """Return, for each ready task, the limit that is used up: "db (4 of 4 in use)"; empty where there is none."""
        with self._updated() as scheduler:
            return [scheduler.limits.waits_for(scheduler.tasks.peek(key)) for key in keys]

    def limits(self) -> dict[str, tuple[LimitView, ...]]:
        """Return the limits of functions that have open tasks, by function."""
        with self._updated() as scheduler:
            return scheduler.limits.views()

    def beyond_limits(self) -> dict[str, int]:
        """Return, by function, how many ready tasks no further worker could begin now, for their limits are used up."""
        with self._updated() as scheduler:
            return scheduler.limits.beyond()

    def keys_named(self, name: str, scope: Scope = Scope()) -> list[Key]:
        """Return the tasks of one function."""
        with self._updated() as scheduler:
            target = Target(names=frozenset([name]))
            return [task.key for task in queries.listing(scheduler.tasks.values(), scope, target)]

    def keys_starting(self, beginning: str) -> list[Key]:
        """Return the tasks whose keys begin so."""
        with self._updated() as scheduler:
            return [key for key in scheduler.tasks.starting(beginning) if scheduler.state(key) is not None]

    def calls(self, name: str) -> list[tuple[Key, State, Verdict | None]]:
        """Return the tasks of one function, whoever requested them, each with the verdict that counts now."""
        with self._updated() as scheduler:
            return scheduler.tasks.calls(name)

    def invalidated_calls(self, name: str) -> dict[Key, list[Verdict]]:
        """Return the verdicts of tasks of one function that were invalidated since, oldest first."""
        with self._updated() as scheduler:
            found: dict[Key, list[Verdict]] = {}
            for key in scheduler.history.known():
                if (task := scheduler.tasks.peek(key)) is not None and task.queue.name == name:
                    ended = [verdict for verdict, _, _ in (*task.outcomes, *scheduler.history.past(key))]
                    former = [verdict for verdict in ended if verdict.final and verdict.round < task.round]
                    found[key] = sorted(former, key=lambda verdict: (verdict.round, verdict.started))
            return found

    def edges(self, scope: Scope = Scope()) -> list[tuple[str, str, int]]:
        """Return (function, a function whose values it needs, number of needs), over all requested tasks."""
        with self._updated() as scheduler:
            edges = queries.edges(scheduler.tasks.values(), scope)
            return [(name, needed, count) for (name, needed), count in edges.items()]

    def requested(self, origin: Origin) -> list[Key]:
        """Return the tasks that exactly this origin (user, notebook and cell) requests now."""
        with self._updated() as scheduler:
            return queries.requested(scheduler.tasks.values(), origin)

    def origins(self) -> list[Origin]:
        """Return every origin (user, notebook and cell) that requests something now."""
        with self._updated() as scheduler:
            return queries.origins(scheduler.tasks.values())

    def invalidations(self, keys: Sequence[Key]) -> list[Invalidation | None]:
        """Return who invalidated each task's last outcome; None where no one did."""
        with self._updated() as scheduler:
            tasks = [scheduler.tasks.peek(key) for key in keys]
            return [None if task is None else scheduler.history.invalidation(task) for task in tasks]

    @_of_what_is_there
    def acceptances(self, keys: Sequence[Key]) -> list[bytes | None]:
        """Return the sealed acceptances that hold for these tasks as they are now; else None."""
        with self._updated() as scheduler:
            accepted = [scheduler.reuse.accepted(key) for key in keys]
            return self._bodies([None if one is None else one.place for one in accepted])

    def current_inputs(self, keys: Sequence[Key]) -> list[Lease | None]:
        """Return each task's present round and inputs (attempt 0); None where a need has no value yet."""
        with self._updated() as scheduler:
            tasks = [scheduler.tasks.peek(key) for key in keys]
            return [
                None if task is None or task.inputs is None else Lease(task.key, task.round, task.inputs, 0)
                for task in tasks
            ]

    def barred(self, runs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Return, for each form and inputs, whether a user has found a run of that wrong."""
        with self._updated() as scheduler:
            return [scheduler.reuse.is_barred(form, inputs) for form, inputs in runs]

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        """Return whether no task is ready or running that a worker of this python could run or wait for."""
        with self._updated() as scheduler:
            return scheduler.idle(target, python)

    def at_rest(self, target: Target | None = None, python: str = "") -> int | None:
        """Return how many runs have ended if the store is `idle`, else None."""
        with self._updated() as scheduler:
            return sum(scheduler.settled_by.values()) if scheduler.idle(target, python) else None

    def rest(self, since: float = 0.0, target: Target | None = None) -> Rest:
        """Return what ended after ``since`` (seconds since the epoch), and what is left."""
        with self._updated() as scheduler:
            tasks = scheduler.tasks
            if target is None:
                return queries.rest(tasks.values(), since)
            return queries.rest([tasks[key] for key in queries.keys_of_target(tasks.values(), target)], since)

    def longest_chain(self, seconds: Mapping[str, float], scope: Scope, target: Target | None = None) -> float:
        """Return how long the open tasks take at least, of which some need others; ``seconds`` of one, by function."""
        with self._updated() as scheduler:
            return queries.longest_chain(queries.listing(scheduler.tasks.values(), scope, target), seconds)

    def foreign(self, python: str) -> dict[str, int]:
        """Return the number of ready tasks made with another python than this, by that python."""
        with self._updated() as scheduler:
            return scheduler.counts.foreign(python)

    def _bodies(self, places: Sequence[Place | None]) -> list[bytes | None]:
        found = iter(self._read([place for place in places if place is not None]))
        return [None if place is None else next(found) for place in places]

    def _proof(self, scheduler: SchedulerState, key: Key, outcome: Outcome | None) -> tuple[bytes, ...]:
        """Return the sealed bytes that prove that a task may reuse this outcome; empty for its own."""
        if outcome is None or outcome[0].key == key:
            return ()
        tasks = scheduler.tasks
        task, source = tasks[key], tasks[outcome[0].key]
        if task.needs and task.form == source.form:
            return tuple(self._read([task.spec, source.spec]))
        acceptance = scheduler.reuse.accepted(key)
        assert acceptance is not None, "a run of another form is reused only if it was accepted"
        return tuple(self._read([acceptance.place]))
