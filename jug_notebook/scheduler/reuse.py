"""Which other task's run gives a value to a task that has none of its own. Pure, a part of the `SchedulerState`.

A task reuses a finished run of the same *form* (code and arguments, needs by position) on the same *inputs*: so a need
that was computed again with an equal value costs nothing downstream, nor does one that has another key. Or it reuses a
run of other code that the user accepted for it.

Reuse is derived like everything in the scheduler state, and lasts as long as that run counts: there is no event that
could outlive its reason, and a reused value is never itself a source. Once the user has invalidated a task that had a
value of this form on these inputs, such runs are barred from reuse, except later runs of that task itself. A run whose
value was lost is not reused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jug_notebook.model import NO_INPUTS, Accepted, Key, Verdict, Why
from jug_notebook.scheduler.records import Outcome, Place

if TYPE_CHECKING:
    from jug_notebook.scheduler.records import TaskRecord


NEEDS = 8  #: so many needs of a run are remembered


class Standing(NamedTuple):
    """The latest acceptance (or, ``undone``, its end) of an earlier run for a task. ``place``: of its sealed bytes."""

    counter: int
    undone: bool
    round: int
    inputs: bytes
    source: Key
    source_round: int
    digest: bytes
    place: Place


def may_be_reused(verdict: Verdict) -> bool:
    """Return True if a run of an earlier round may still be a source, or bar others from being one."""
    return bool(verdict.digest) and verdict.inputs != NO_INPUTS


class _Sieve:
    """A set in a megabyte, which may take for known what isn't, but never the other way round."""

    def __init__(self) -> None:
        self._bits = bytearray(1 << 20)

    def add(self, item: Hashable) -> None:
        number = hash(item)
        self._bits[number >> 3 & 0xFFFFF] |= 1 << (number & 7)

    def __contains__(self, item: Hashable) -> bool:
        number = hash(item)
        return bool(self._bits[number >> 3 & 0xFFFFF] & 1 << (number & 7))


class Reuse:
    """Finished runs by form and inputs, and the tasks that may reuse them. ``wake`` has task records derived again."""

    def __init__(self, tasks: Mapping[Key, TaskRecord], wake: Callable[[Iterable[TaskRecord]], None]) -> None:
        self.accepts = False  #: True once any run was accepted
        self._tasks = tasks
        self._wake = wake
        # by form and inputs, of tasks with needs: those that ran that, that would reuse it, that bar others from it
        self._runs: dict[bytes, tuple[TaskRecord, ...]] = {}
        self._peers: dict[bytes, set[TaskRecord]] = {}
        self._bars: dict[bytes, set[TaskRecord]] = {}
        self.dropped: dict[TaskRecord, set[bytes]] = {}  #: inputs on which the user found a reused value wrong
        self._forms, self._pairs = _Sieve(), _Sieve()  # that ran, and on whose values they did
        self._accepted: dict[Key, Standing] = {}
        self._accepted_for: dict[Key, set[Key]] = {}

    # -- events --------------------------------------------------------------------------------------------------------

    def submitted(self, task: TaskRecord) -> None:
        """A task was submitted whose invalidation was applied before."""
        if task in self.dropped:
            self._bar(task)

    def settled(self, task: TaskRecord) -> None:
        """A task has another outcome, which may be the one accepted for others."""
        self._wake_accepting(task)

    def ran(self, task: TaskRecord, verdict: Verdict) -> None:
        """A task finished: others of its form on these inputs may reuse the run."""
        name = task.form + verdict.inputs
        self._forms.add(task.form)
        for need in task.needs[:NEEDS]:
            self._pairs.add((task.form, need.form or need.key))
        peers = self._peers.get(name)
        if peers is not None:
            peers.discard(task)
        runs = self._runs.get(name, ())
        if task not in runs:
            self._runs[name] = (*runs, task)
        barred = verdict.round <= task.direct
        if barred:
            self._bars.setdefault(name, set()).add(task)
        if peers:
            source = self._source(name)
            if barred or source is None or source[0] == verdict:  # else the source is the same as before
                self._wake(peers)
        elif peers is not None:
            del self._peers[name]

    def may_serve(self, task: TaskRecord, need: TaskRecord) -> bool:
        """Return False if no run can give a value to the task once this need has one, or if that is most unlikely.

        A run could if one was accepted, or if there is one of this form on another need: that was computed before, by
        other code maybe, and an equal value costs nothing downstream. In a chain of one function all needs are alike.
        """
        pair = task.form, need.form or need.key
        return task.key in self._accepted or (task.form in self._forms and pair not in self._pairs)

    def moved(self, task: TaskRecord, verdict: Verdict) -> None:
        """The body of an outcome is at another place now: wake the tasks that reuse it."""
        if may_be_reused(verdict):
            self._wake(self._peers.get(task.form + verdict.inputs, ()))
        self._wake_accepting(task)

    def forget(self, task: TaskRecord, counter: int, round: int, goes: bool) -> None:
        """Forget a task's acceptances up to ``counter`` and its runs up to ``round``; all of them if the task ``goes``.

        A task that nobody submitted is no source: its spec, which proves the reuse, is gone.
        """
        standing = self._accepted.get(task.key)
        if standing is not None and standing.counter <= counter:
            del self._accepted[task.key]
        names = {task.form + verdict.inputs for verdict, _, _ in task.outcomes}
        names |= {task.form + inputs for inputs in self.dropped.pop(task, ())}
        if task.inputs is not None:
            names.add(task.form + task.inputs)
        for name in names:
            runs = tuple(run for run in self._runs.get(name, ()) if run is not task)
            left = not goes and any(
                v.round > round and task.form + v.inputs == name and v.digest for v, _, _ in task.outcomes
            )
            if runs or left:
                self._runs[name] = (*runs, task) if left else runs
            else:
                self._runs.pop(name, None)
            for table in (self._bars, self._peers):
                tasks = table.get(name)
                if tasks is not None:
                    tasks.discard(task)
                    if not tasks:
                        del table[name]
            self._wake(self._peers.get(name, ()))
        self._wake_accepting(task)

    def invalidated(self, task: TaskRecord, why: Why, inputs: bytes, known: bool) -> None:
        """Outcomes of a task are void. ``inputs``: those on which it reused a value, empty if it had its own."""
        if inputs and why is Why.DIRECT:
            self.dropped.setdefault(task, set()).add(inputs)
        self._wake_accepting(task)
        if known and why is not Why.RETRY and (task.needs or task in self.dropped):
            self._bar(task)

    def _bar(self, task: TaskRecord) -> None:
        """Bar others from this task's runs so far and, where the user found them wrong, from equal runs."""
        wrong = {verdict.inputs for verdict, _, _ in task.outcomes if verdict.digest and verdict.round <= task.direct}
        wrong |= self.dropped.get(task, set())
        for inputs in wrong:
            self._bars.setdefault(task.form + inputs, set()).add(task)
        for inputs in wrong | {verdict.inputs for verdict, _, _ in task.outcomes if verdict.digest}:
            self._wake(self._peers.get(task.form + inputs, ()))

    def accept(self, event: Accepted, bodies: Sequence[Place]) -> None:
        """The user accepted runs for tasks, or took that back."""
        self.accepts = True
        rows = zip(
            event.keys, event.rounds, event.inputs, event.sources, event.source_rounds, event.digests, strict=True
        )
        for (key, round, inputs, source, source_round, digest), place in zip(rows, bodies, strict=True):
            standing = Standing(event.counter, event.undone, round, inputs, source, source_round, digest, place)
            known = self._accepted.get(key)
            if known is None or standing[:-1] >= known[:-1]:
                self._accepted[key] = standing
            self._accepted_for.setdefault(source, set()).add(key)

    def _wake_accepting(self, task: TaskRecord) -> None:
        self._wake([self._tasks[key] for key in self._accepted_for.get(task.key, ()) if key in self._tasks])

    # -- which run to reuse --------------------------------------------------------------------------------------------

    def has_run(self, task: TaskRecord, inputs: bytes) -> bool:
        """Return whether a task could reuse another's run on these inputs."""
        return bool(task.needs) and self._source(task.form + inputs) is not None

    def is_barred(self, form: bytes, inputs: bytes) -> bool:
        """Return whether a user has found a run of this form on these inputs wrong."""
        return inputs != NO_INPUTS and bool(self._bars.get(form + inputs))

    def run_for(self, task: TaskRecord) -> Outcome | None:
        """Return the run that a task without a value of its own reuses; None if there is none."""
        found = None
        if task.needs:
            assert task.inputs is not None
            name = task.form + task.inputs
            self._peers.setdefault(name, set()).add(task)
            found = self._source(name)
        return found or (self._accepted_run(task) if self.accepts else None)

    def _source(self, name: bytes) -> Outcome | None:
        """Return the source for this form and inputs: of all runs that may be reused, the one that began first."""
        bars = self._bars.get(name, ())
        inputs = name[-len(NO_INPUTS) :]
        best = None
        for task in self._runs.get(name, ()):
            for outcome in task.outcomes:
                verdict = outcome[0]
                if (
                    verdict.inputs == inputs
                    and verdict.digest
                    and verdict.final
                    and verdict.round > task.lost
                    and all(wrong is task and verdict.round > task.direct for wrong in bars)
                ):
                    weight = (verdict.started, task.key, verdict.round, verdict.attempt, verdict.digest, outcome[2])
                    if best is None or weight < best[0]:
                        best = (weight, outcome)
        return None if best is None else best[1]

    def _accepted_run(self, task: TaskRecord) -> Outcome | None:
        """Return the run that the user accepted for this round and these inputs of a task."""
        standing = self.accepted(task.key)
        source = None if standing is None else self._tasks.get(standing.source)
        if standing is None or source is None or standing.source_round <= max(source.direct, source.lost):
            return None
        best = None
        for outcome in source.outcomes:
            verdict = outcome[0]
            if (
                verdict.round == standing.source_round
                and verdict.inputs == standing.inputs
                and verdict.digest == standing.digest
                and verdict.final
            ):
                weight = (verdict.started, verdict.attempt, outcome[2])
                if best is None or weight < best[0]:
                    best = (weight, outcome)
        return None if best is None else best[1]

    def places(self) -> set[Place]:
        """Return the places of the sealed acceptances."""
        return {standing.place for standing in self._accepted.values()}

    def accepted(self, key: Key) -> Standing | None:
        """Return the acceptance for a task's round and inputs, even if the task doesn't need one."""
        standing = self._accepted.get(key)
        task = None if standing is None else self._tasks.get(key)
        if (
            standing is None
            or task is None
            or standing.undone
            or standing.round != task.round
            or standing.inputs != task.inputs
        ):
            return None
        return standing
