"""Which run stands for a task that has no value of its own. Pure, a part of the `SchedulerState`.

A task takes over a finished run of the same *form* (code and arguments, needs by slot) on the same *inputs*: so a need
that was computed again and came back equal costs nothing downstream, nor does one that has another key. Or it takes
over a run of other code that the user accepted for it.

Such an alias is derived like all else on the board, and holds while that run does: no fact of its own can outlive its
reason, and none is ever a source. A run that can be taken over is barred once the user has invalidated a task directly
that had a value of this form on these inputs; later runs of that task itself are not. A run whose value was lost is
none to take over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jug_notebook.model import NO_INPUTS, Accepted, Key, Verdict, Why
from jug_notebook.scheduler.packing import Outcome, Place

if TYPE_CHECKING:
    from jug_notebook.scheduler.records import TaskRecord


class Standing(NamedTuple):
    """What somebody said last about taking a former run for a task. ``place``: where the sealed acceptance is."""

    counter: int
    undone: bool
    round: int
    inputs: bytes
    source: Key
    source_round: int
    digest: bytes
    place: Place


def may_be_reused(verdict: Verdict) -> bool:
    """Runs of former rounds count for nothing, but as sources, and as what a direct invalidation was about."""
    return bool(verdict.digest) and verdict.inputs != NO_INPUTS


class Reuse:
    """Who ran what, by form and inputs, and who may take it over. ``wake`` has cards derived again."""

    def __init__(self, tasks: Mapping[Key, TaskRecord], wake: Callable[[Iterable[TaskRecord]], None]) -> None:
        self.accepts = False  #: has anybody accepted anything?
        self._cards = tasks
        self._wake = wake
        # by form and inputs, of tasks with needs: who ran that, who waits for such a run, who was wrong about it
        self._runs: dict[bytes, tuple[TaskRecord, ...]] = {}
        self._peers: dict[bytes, set[TaskRecord]] = {}
        self._bars: dict[bytes, set[TaskRecord]] = {}
        self._dropped: dict[TaskRecord, set[bytes]] = {}
        self._accepted: dict[Key, Standing] = {}
        self._leaning: dict[Key, set[Key]] = {}

    # -- what happens --------------------------------------------------------------------------------------------------

    def submitted(self, task: TaskRecord) -> None:
        """A task is known now that was invalidated before."""
        if task in self._dropped:
            self._bar(task)

    def settled(self, task: TaskRecord) -> None:
        """A task has another outcome, for which acceptances may have waited."""
        self._wake_leaning(task)

    def ran(self, task: TaskRecord, verdict: Verdict) -> None:
        """A finished run: others of that form on those inputs may take it over."""
        name = task.form + verdict.inputs
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
            if barred or source is None or source[0] == verdict:  # else no other run can have come to stand there
                self._wake(peers)
        elif peers is not None:
            del self._peers[name]

    def moved(self, task: TaskRecord, verdict: Verdict) -> None:
        """The body of an outcome is elsewhere now: who has taken it over is to know."""
        if may_be_reused(verdict):
            self._wake(self._peers.get(task.form + verdict.inputs, ()))
        self._wake_leaning(task)

    def forget(self, task: TaskRecord, counter: int, round: int) -> None:
        """A task is forgotten, with its acceptances up to ``counter`` and its runs up to ``round``."""
        said = self._accepted.get(task.key)
        if said is not None and said.counter <= counter:
            del self._accepted[task.key]
        names = {task.form + verdict.inputs for verdict, _, _ in task.outcomes}
        names |= {task.form + inputs for inputs in self._dropped.pop(task, ())}
        if task.inputs is not None:
            names.add(task.form + task.inputs)
        for name in names:
            runs = tuple(run for run in self._runs.get(name, ()) if run is not task)
            left = any(v.round > round and task.form + v.inputs == name and v.digest for v, _, _ in task.outcomes)
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
        self._wake_leaning(task)

    def invalidated(self, task: TaskRecord, why: Why, inputs: bytes, known: bool) -> None:
        """Outcomes of a task count for nothing any more. ``inputs``: those on which it had taken over its value."""
        if inputs and why is Why.DIRECT:
            self._dropped.setdefault(task, set()).add(inputs)
        self._wake_leaning(task)
        if known and why is not Why.RETRY and (task.needs or task in self._dropped):
            self._bar(task)

    def _bar(self, task: TaskRecord) -> None:
        """What this task had come to is no source for others any more; nor are equal runs, if it was wrong."""
        wrong = {verdict.inputs for verdict, _, _ in task.outcomes if verdict.digest and verdict.round <= task.direct}
        wrong |= self._dropped.get(task, set())
        for inputs in wrong:
            self._bars.setdefault(task.form + inputs, set()).add(task)
        for inputs in wrong | {verdict.inputs for verdict, _, _ in task.outcomes if verdict.digest}:
            self._wake(self._peers.get(task.form + inputs, ()))

    def accept(self, event: Accepted, bodies: Sequence[Place]) -> None:
        """Somebody has said that runs stand for tasks, or no longer do."""
        self.accepts = True
        rows = zip(
            event.keys, event.rounds, event.inputs, event.sources, event.source_rounds, event.digests, strict=True
        )
        for (key, round, inputs, source, source_round, digest), place in zip(rows, bodies, strict=True):
            current_inputs = Standing(event.counter, event.undone, round, inputs, source, source_round, digest, place)
            known = self._accepted.get(key)
            if known is None or current_inputs[:-1] >= known[:-1]:
                self._accepted[key] = current_inputs
            self._leaning.setdefault(source, set()).add(key)

    def _wake_leaning(self, task: TaskRecord) -> None:
        self._wake([self._cards[key] for key in self._leaning.get(task.key, ()) if key in self._cards])

    # -- what follows --------------------------------------------------------------------------------------------------

    def stands_for(self, task: TaskRecord) -> Outcome | None:
        """What stands for a task that has come to no value itself."""
        found = None
        if task.needs:
            assert task.inputs is not None
            name = task.form + task.inputs
            self._peers.setdefault(name, set()).add(task)
            found = self._source(name)
        return found or (self._accepted_run(task) if self.accepts else None)

    def _source(self, name: bytes) -> Outcome | None:
        """The run that stands for this form on these inputs: of all that may, the one that began first."""
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
        """The run that the user accepted for what this task is now."""
        said = self.accepted(task.key)
        source = None if said is None else self._cards.get(said.source)
        if said is None or source is None or said.source_round <= max(source.direct, source.lost):
            return None
        best = None
        for outcome in source.outcomes:
            verdict = outcome[0]
            if (
                verdict.round == said.source_round
                and verdict.inputs == said.inputs
                and verdict.digest == said.digest
                and verdict.final
            ):
                weight = (verdict.started, verdict.attempt, outcome[2])
                if best is None or weight < best[0]:
                    best = (weight, outcome)
        return None if best is None else best[1]

    def places(self) -> set[Place]:
        """Where the sealed acceptances are."""
        return {said.place for said in self._accepted.values()}

    def accepted(self, key: Key) -> Standing | None:
        """The acceptance that stands for what a task is now, whether or not it needs one."""
        said, task = self._accepted.get(key), self._cards.get(key)
        if said is None or task is None or said.undone or said.round != task.round or said.inputs != task.inputs:
            return None
        return said
