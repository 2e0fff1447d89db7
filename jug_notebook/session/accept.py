"""Accept results of previous code: the user edited a function and declares that its results are still right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from jug_notebook.codec import Seal
from jug_notebook.model import Acceptance, CurrentOutcome, Finished, Key, Spec, State
from jug_notebook.render import plural
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader, SignedWriter, template

SHORT = 8  #: characters of a key that people see

Former: TypeAlias = dict[tuple[str, bytes, bytes], list[tuple[Finished, str]]]
"""Finished runs by function, call and inputs, each with the code it ran."""


class Accepted(msgspec.Struct, frozen=True):
    """How many results were accepted; ``str`` gives a line for people."""

    bound: int = 0  #: tasks that reuse a result of previous code
    sources: tuple[Key, ...] = ()  #: the tasks whose results these are
    without: int = 0  #: tasks for which there is no such result
    waiting: int = 0  #: tasks whose needs have no value yet, so that nothing can be accepted for them
    there: int = 0  #: tasks that were finished already
    undone: int = 0  #: tasks whose acceptance was undone
    dry: bool = False  #: nothing was written

    def __str__(self) -> str:
        parts = []
        if self.undone:
            results = plural(self.undone, "result")
            parts.append(f"{'would undo' if self.dry else 'undid'} the acceptance of {results} of previous code")
        if self.bound:
            sources = ", ".join(key[:SHORT] for key in self.sources[:3])
            more = f" and {len(self.sources) - 3:,} more" if len(self.sources) > 3 else ""
            parts.append(
                f"{'would accept' if self.dry else 'accepted'} {plural(self.bound, 'result')}, from {sources}{more}"
            )
        if self.without:
            parts.append(f"{plural(self.without)} had no previous result")
        if self.waiting:
            parts.append(
                f"{plural(self.waiting)} not decided yet: what they need has no value; accept again once it has"
            )
        if not parts:
            parts.append("nothing to accept" + (f": {plural(self.there)} finished already" if self.there else ""))
        return "; ".join(parts)

    __repr__ = __str__


class Accepting:
    """Accepts results of previous code for tasks of new code, in the name of one user."""

    def __init__(self, store: Store, seal: Seal, user: str) -> None:
        self._store = store
        self._signed, self._writer = SignedReader(store, seal), SignedWriter(seal)
        self._user = user

    def accept(self, keys: Sequence[Key], now: float, dry: bool = False) -> Accepted:
        """Accept, for each requested, unfinished task, the result of the same call with other code.

        If there are several, the one computed last. Once a task has a value, the tasks that need it can be decided,
        too, so this is repeated until nothing more is found. ``dry``: write nothing.
        """
        states = dict(zip(keys, self._store.states(keys), strict=True))
        there = sum(state is State.FINISHED for state in states.values())
        left = [key for key, state in states.items() if state not in (State.FINISHED, State.CANCELLED, None)]
        specs = {key: spec for key, spec in zip(left, self._signed.specs(left), strict=True) if spec is not None}
        former = self._former({template(spec.template).name for spec in specs.values()})
        bound: dict[Key, Key] = {}
        while acceptances := self._found(left, specs, former, now):
            if not dry:
                self._store.accept([(one, self._writer.acceptance(one)) for one in acceptances])
            bound |= {one.key: one.source for one in acceptances}
            left = [key for key in left if key not in bound]
        unknown = sum(lease is None for lease in self._store.current_inputs(left))
        sources = tuple(dict.fromkeys(bound.values()))
        return Accepted(len(bound), sources, len(left) - unknown, unknown, there, dry=dry)

    def _found(self, keys: Sequence[Key], specs: Mapping[Key, Spec], former: Former, now: float) -> list[Acceptance]:
        """Return what can be accepted for these tasks now."""
        acceptances = []
        for key, lease in zip(keys, self._store.current_inputs(keys), strict=True):
            found = None if lease is None else _latest(former, specs[key], lease.inputs)
            if lease is not None and found is not None:
                run, code = found
                acceptances.append(
                    Acceptance(key, lease.round, lease.inputs, run.key, run.round, run.digest, code, self._user, now)
                )
        return acceptances

    def undo(self, keys: Sequence[Key], now: float, dry: bool = False) -> Accepted:
        """Stop using results of previous code for these tasks. The acceptances stay on record."""
        acceptances = []
        for key, body in zip(keys, self._store.acceptances(keys), strict=True):
            if body is not None:
                one = self._signed.acceptance(key, body)
                acceptances.append(msgspec.structs.replace(one, user=self._user, at=now))
        if acceptances and not dry:
            self._store.accept([(one, self._writer.acceptance(one)) for one in acceptances], undone=True)
        return Accepted(undone=len(acceptances), dry=dry)

    def _former(self, names: set[str]) -> Former:
        found: Former = {}
        for name in names:
            keys = self._store.keys_named(name)
            for key, spec, held in zip(keys, self._signed.specs(keys), self._store.outcomes(keys), strict=True):
                if spec is None or not spec.call or held is None or not held.verdict.finished:
                    continue
                run = self._run(key, held)
                found.setdefault((name, spec.call, run.inputs), []).append((run, template(spec.template).code))
        return found

    def _run(self, key: Key, held: CurrentOutcome) -> Finished:
        outcome = self._signed.outcome(key, held)
        assert isinstance(outcome, Finished), "the verdict says so"
        return outcome


def _latest(former: Former, spec: Spec, inputs: bytes) -> tuple[Finished, str] | None:
    known = template(spec.template)
    runs = [one for one in former.get((known.name, spec.call, inputs), ()) if one[1] != known.code]
    return max(runs, key=lambda one: (one[0].run.started, one[0].key), default=None)
