"""Run a stored task again in this process, with its original arguments: to debug it, or to verify its value.

Or don't run it again: `Accepting` accepts results of previous code, where the user edited a function and declares that
its results are still right.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from jug_notebook import codec
from jug_notebook.errors import BadTask, ValueLost, clean
from jug_notebook.keys.packages import Change, changes, check_pins
from jug_notebook.model import Acceptance, Address, Finished, Key, Spec, State
from jug_notebook.render import plural
from jug_notebook.render.format import summarise
from jug_notebook.session.access import StoreAccess
from jug_notebook.session.results import Results
from jug_notebook.session.targets import TargetResolver
from jug_notebook.store import Store
from jug_notebook.store.sealing import Seal
from jug_notebook.store.signed import SignedReader, SignedWriter, function_bundle, template
from jug_notebook.system import share
from jug_notebook.task.binding import run_to_end
from jug_notebook.task.context import environment, running
from jug_notebook.task.files import as_it_is
from jug_notebook.task.handles import SHORT
from jug_notebook.worker.execution import in_a_line, runner_of
from jug_notebook.worker.inputs import Needs

_SIZE = 20  #: bytes of a blob's address
CHANGES = 4  #: most changes of versions in a line


class Difference(NamedTuple):
    """A value that differs from the stored one."""

    key: Key
    call: str
    how: str  #: both values in short


class Verified(msgspec.Struct, frozen=True):
    """The result of `Rerun.verify`: ``checked`` of ``total`` values were computed again. True if none differs."""

    checked: int
    total: int
    differing: tuple[Difference, ...]
    changes: tuple[Change, ...] | None = None  #: with ``changed_environment``: what differs from where these ran

    def __bool__(self) -> bool:
        return not self.differing

    def __repr__(self) -> str:
        if not self.total and self.changes is not None:
            return "nothing to verify: finished tasks ran with the versions installed here, or theirs are not on record"
        if not self.total:
            return "nothing to verify: none of these is finished"
        of = f"{self.checked:,} of {self.total:,} values computed again"
        if self.changes:
            more = f", and {len(self.changes) - CHANGES} more" if len(self.changes) > CHANGES else ""
            listed = ", ".join(f"{name} {then} → {now}" for name, then, now in self.changes[:CHANGES])
            of = f"of values from other versions ({listed}{more}), {of}"
        if not self.differing:
            return f"{of}: all came out equal"
        lines = [f"{of}: {len(self.differing):,} differ{'s' * (len(self.differing) == 1)}"]
        lines += [f"  {one.key[:SHORT]}  {one.call}: {one.how}" for one in self.differing[:50]]
        if len(self.differing) > 50:
            lines.append(f"  and {len(self.differing) - 50:,} more")
        return clean("\n".join(lines))


class Rerun:
    """Repeats stored calls in this process. Stores nothing."""

    def __init__(self, access: StoreAccess, targets: TargetResolver, results: Results) -> None:
        self._store = access.store
        self._signed = access.signed
        self._targets = targets
        self._results = results

    def rerun(self, key: Key) -> Any:
        """Repeat a stored call here, as a worker would, and return its value. Raises what the call raises.

        Raises NoSuchTask, NotReady where a value that it needs is not stored. Task functions are plain functions in it.
        """
        self._targets.flush()
        with contextlib.ExitStack() as around:
            around.enter_context(running())
            spec = self._signed.known_spec(key)
            known = template(spec.template)
            runner = runner_of(known.runner) if known.runner else None
            if runner is not None and runner.stage is not None:
                around.enter_context(runner.stage())
            values = self._results.collect(spec.needs, wait=False)
            bundle = function_bundle(self._store, known.bundle)
            function = codec.load_function(bundle, self._store.get_blob)
            codec.use_modules(bundle)
            needs = Needs(spec.needs, [partial(as_it_is, value) for value in values], self._signed)
            check_pins(bundle.pins)
            around.enter_context(environment(bundle.environment, bundle.secrets))
            args, kwargs = codec.load_call(spec.arguments, needs, self._store.get_blob)
            return run_to_end(function, args, kwargs) if runner is None else runner.call(function, args, kwargs)

    def verify(
        self,
        target: Any,
        fraction: float = 0.01,
        namespace: Mapping[str, Any] | None = None,
        changed_environment: bool = False,
    ) -> Verified:
        """Compute a sample of a target's finished tasks again, in this process, and compare the values.

        ``fraction`` of them, at least one. With ``changed_environment``, only of tasks that ran with other versions of
        Python, of packages or of the system than those here, and that aren't pinned to them. Return a `Verified`, which
        is true if all came out equal. Stores nothing, and what the tasks print is discarded. Raises NoSuchTask.
        """
        keys = self._targets.keys(target, namespace)
        states = self._store.states(keys)
        finished = [key for key, state in zip(keys, states, strict=True) if state is State.FINISHED]
        found_changes: dict[Change, None] | None = None
        if changed_environment:
            changed = {key: found for key, found in self._changes(finished) if found}
            finished = list(self._runnable(list(changed)))
            found_changes = {change: None for key in finished for change in changed[key]}
        count = min(len(finished), max(1, math.ceil(len(finished) * share("fraction", fraction))))
        sample = set(random.sample(finished, count))
        ordered = [key for key in finished if key in sample]
        differing = tuple(self._differing(ordered))
        return Verified(len(ordered), len(finished), differing, None if found_changes is None else tuple(found_changes))

    def _changes(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Sequence[Change]]]:
        """Yield each finished task with what differs here from the environment that it ran in."""
        known: dict[Address, Sequence[Change]] = {"": ()}
        for key, outcome in zip(keys, self._signed.outcomes(keys), strict=True):
            if outcome is None:
                continue
            address = outcome.run.environment
            if address not in known:
                had = self._signed.environment(outcome.run)
                known[address] = () if had is None else tuple(changes(had))
            yield key, known[address]

    def _runnable(self, keys: Sequence[Key]) -> Iterator[Key]:
        """Yield all of these tasks but those that are pinned to other versions of packages than are here."""
        known: dict[Address, bool] = {}
        for key, spec in zip(keys, self._signed.specs(keys), strict=True):
            address = "" if spec is None else template(spec.template).bundle
            if address and address not in known:
                try:
                    check_pins(function_bundle(self._store, address).pins)
                    known[address] = True
                except BadTask:
                    known[address] = False
                except ValueLost:  # that it can't run is reported
                    known[address] = True
            if known.get(address):
                yield key

    def _differing(self, keys: Sequence[Key]) -> Iterator[Difference]:
        for key, outcome in zip(keys, self._signed.outcomes(keys), strict=True):
            if isinstance(outcome, Finished):
                how = self._difference(key, outcome)
                if how:
                    [view] = self._signed.views([key])
                    yield Difference(key, f"{view.name}({view.args_repr})", how)

    def _difference(self, key: Key, outcome: Finished) -> str:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                value = self.rerun(key)
            _, digest = codec.dump_value(value, _address)
        except Exception as error:  # any error differs from the stored value
            return f"{outcome.summary} then; now {in_a_line(error)}"
        if digest == outcome.digest:
            return ""
        how = f"{outcome.summary} then; now {summarise(value)}"
        if digest[:1] != b"c" or outcome.digest[:1] != b"c":
            how += " (compared by their pickles, which may differ for equal values of its type)"
        return how


def _address(parts: Iterable[bytes | memoryview]) -> Address:
    """Return the address that a store would give these bytes, without storing them."""
    hashed = blake3()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest(length=_SIZE)


# -- accepting results of previous code --------------------------------------------------------------------------------

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
                run = self._signed.outcome(key, held)
                assert isinstance(run, Finished), "the verdict says so"
                found.setdefault((name, spec.call, run.inputs), []).append((run, template(spec.template).code))
        return found


def _latest(former: Former, spec: Spec, inputs: bytes) -> tuple[Finished, str] | None:
    known = template(spec.template)
    runs = [one for one in former.get((known.name, spec.call, inputs), ()) if one[1] != known.code]
    return max(runs, key=lambda one: (one[0].run.started, one[0].key), default=None)
