"""Check everything that a store holds: `verify` names what is damaged and what that costs, and can move it aside.

Logs are checked record by record, what is signed by its signature, blobs by their hashes. What is still being written,
or was replaced by a compaction, is no damage, nor is a blob that has expired because no task names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import SignatureError, StoreError, ValueLost
from jug_notebook.model import Address, CurrentOutcome, Finished, Key, Outcome, Spec, State, TaskView, Why
from jug_notebook.render import call, plural
from jug_notebook.render import size as size_text
from jug_notebook.store import Condition, Inventory, Store, open_store
from jug_notebook.store.event_log import EventLogStore, forget
from jug_notebook.store.signed import (
    SignedReader,
    function_bundle,
    reading_seal,
    template,
    unverified_outcome,
    unverified_spec,
)
from jug_notebook.system import batched

T = TypeVar("T")
Progress = Callable[[str], None]

AGAIN = "it runs again when it's next asked for"
LOGGED = "the tasks recorded there run again when they're next asked for"


class Damage(msgspec.Struct, frozen=True):
    """One thing that is damaged or missing, what that costs, and what was done about it."""

    what: str  #: "result of fit(x=3) is damaged"
    cost: str  #: "it runs again when it's next asked for"
    done: str = ""  #: "moved to trash/"; empty where it is as it was
    refused: str = ""  #: why nothing could be done about it

    def __str__(self) -> str:
        return f"{self.what}: {'; '.join(part for part in (self.done, self.cost, self.refused) if part)}"


class Verified(msgspec.Struct, frozen=True):
    """What `verify` found; ``str`` gives a line for each damage, and one for all."""

    url: str
    tasks: int = 0
    blobs: int = 0
    size: int = 0  #: bytes of the blobs
    damages: tuple[Damage, ...] = ()
    notes: tuple[str, ...] = ()  #: what was skipped, but costs nothing
    unverified: str = ""  #: why signatures could not be checked; else empty

    @property
    def good(self) -> bool:
        """True where nothing is damaged, or left so."""
        return all(damage.done for damage in self.damages)

    def __str__(self) -> str:
        lines = [*map(str, self.damages), *self.notes]
        if self.unverified:
            lines.append(f"signatures were not checked, only hashes and checksums: {self.unverified}")
        mended = sum(bool(damage.done) for damage in self.damages)
        left = len(self.damages) - mended
        found = [f"{mended:,} damaged, now out of the way"] if mended else []
        found += [f"{left:,} damaged or missing"] if left else []
        blobs = f"{plural(self.blobs, 'blob')} ({size_text(self.size)})" if self.blobs else "no blobs"
        checked = f"{self.url}: checked its logs, {plural(self.tasks)} and {blobs}"
        return "\n".join([*lines, f"{checked}: {', '.join(found) or 'nothing is damaged'}"])

    __repr__ = __str__


class Use(NamedTuple):
    """How a task uses a blob: as "result", "argument", "display" or "function"."""

    kind: str
    key: Key
    label: str  #: the call; of a function, its name


def verify(url: str, repair: bool = False, report: Progress | None = None, clock: Clock = CLOCK) -> Verified:
    """Check a store; ``repair`` moves aside what is damaged, so that the next write brings it back. Raises StoreError.

    ``report`` gets how far it is, in a line, ten times a second at most.
    """
    with warnings.catch_warnings(record=True) as caught:  # all of that is in what is returned
        warnings.simplefilter("always")
        store = open_store(url, clock)
        try:
            if repair and (refusal := store.unverified or store.read_only):
                raise StoreError(refusal)
            found = Verification(store, repair, report or (lambda line: None), clock).run()
            if repair and any(damage.cost == LOGGED for damage in found.damages):
                found = _compacted(store, found, clock)
        finally:
            store.close()
    lines = dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning)
    logged = tuple(damage.what for damage in found.damages)
    return msgspec.structs.replace(found, notes=tuple(line for line in lines if not line.startswith(logged)))


def _compacted(store: Store, found: Verified, clock: Clock) -> Verified:
    """Compact the store, which leaves out the records that are damaged, and see which of the faults are gone."""
    store.compact()
    fresh = open_store(store.url, clock, store.id)
    try:
        fresh.tasks()
        left = set(_faults(fresh))
    finally:
        fresh.close()
    damages = []
    for damage in found.damages:
        if damage.cost == LOGGED and damage.what not in left:
            damage = msgspec.structs.replace(damage, done="compacted without what is damaged")
        elif damage.cost == LOGGED:
            missing = damage.what.startswith(store.display_url)  # not about one log, which its path names
            refused = (
                "what is missing can't be brought back" if missing else "its writer still runs: repair it after that"
            )
            damage = msgspec.structs.replace(damage, refused=refused)
        damages.append(damage)
    return msgspec.structs.replace(found, damages=tuple(damages))


def _faults(store: Store) -> Sequence[str]:
    return store.log_faults() if isinstance(store, EventLogStore) else ()


class _ByReading:
    """The blobs of a store that can't list them: those that tasks name."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def addresses(self) -> Iterator[Address]:
        return iter(())

    def inspect(self, address: Address, repair: bool = False) -> Condition:
        try:
            return Condition("", self._store.get_blob(address).nbytes)
        except ValueLost:
            return Condition("missing or damaged")


class Verification:
    """One check of a store: `run` makes it."""

    def __init__(self, store: Store, repair: bool, report: Progress, clock: Clock) -> None:
        self._store, self._repair, self._clock = store, repair, clock
        self._signed = None if store.unverified else SignedReader(store, reading_seal(store))
        inventory = store.inventory if isinstance(store, EventLogStore) else None
        self._inventory: Inventory = inventory or _ByReading(store)
        self._uses: dict[Address, list[Use]] = {}
        self._helds: dict[Key, CurrentOutcome] = {}  # of tasks whose result has blobs
        self._lost_specs: dict[Key, str] = {}  # with what each is called
        self._damages: list[Damage] = []
        self._size = 0
        self._reported = 0.0
        self._progress = report

    def run(self) -> Verified:
        """Read all, and return what was found."""
        self._store.processes()  # warns of heartbeats that can't be read
        views = self._store.tasks()
        checked = 0
        for part in batched(views):
            self._report(f"checked {checked:,} of {plural(len(views))}")
            self._check_tasks(part)
            checked += len(part)
        self._add_modules()
        there = dict.fromkeys(self._inventory.addresses())
        addresses = list(there | dict.fromkeys(self._uses))
        for number, address in enumerate(addresses):
            self._report(f"checked {number:,} of {plural(len(addresses), 'blob')}, {size_text(self._size)}")
            self._check_blob(address)
        for key, label in self._lost_specs.items():
            self._lost_spec(key, label)
        logged = [Damage(line, LOGGED) for line in _faults(self._store)]
        return Verified(
            self._store.display_url, len(views), len(addresses), self._size, tuple(logged + self._damages),
            unverified=self._store.unverified,
        )  # fmt: skip

    def _report(self, line: str) -> None:
        now = self._clock.monotonic()
        if now - self._reported > 0.1:
            self._reported = now
            self._progress(line)

    # -- what is signed ------------------------------------------------------------------------------------------------

    def _check_tasks(self, views: Sequence[TaskView]) -> None:
        keys = [view.key for view in views]
        bodies, helds = _each(self._store.specs, keys), _each(self._store.outcomes, keys)
        for view, body, held in zip(views, bodies, helds, strict=True):
            label = self._check_spec(view, body)
            self._check_outcome(view, held, label)

    def _check_spec(self, view: TaskView, body: bytes | ValueLost | None) -> str:
        """Check the record of a task. Return its call; without arguments where that can't be read."""
        label = f"{view.name} ({view.key[:8]})"
        if body is None:  # deleted meanwhile
            return label
        try:
            spec = self._spec(view.key, body)
            kind = template(spec.template)
        except (SignatureError, ValueLost):
            self._lost_specs[view.key] = label
            return label
        label = call(view.name, spec.args_repr)
        uses = self._uses.setdefault(kind.bundle, [])
        if not uses or uses[-1].label != view.name:
            uses.append(Use("function", view.key, view.name))
        self._use("argument", view.key, label, spec.arguments.buffers)
        return label

    def _spec(self, key: Key, body: bytes | ValueLost) -> Spec:
        if isinstance(body, ValueLost):
            raise body
        return unverified_spec(body) if self._signed is None else self._signed.spec(key, body)

    def _lost_spec(self, key: Key, label: str) -> None:
        """Note that a task can't run; in a repair, forget it unless it has a result, so that its cell makes it anew."""
        [state] = self._store.states([key])
        cost, done = "its result is kept, but it can't run again", ""
        if state is not State.FINISHED:
            cost = "it can't run until its cell is run again, which makes it anew"
            if self._repair and isinstance(self._store, EventLogStore):
                done = "forgotten" if forget(self._store, key) else ""
        self._damages.append(Damage(f"the record of {label} is damaged", cost, done))

    def _check_outcome(self, view: TaskView, held: CurrentOutcome | ValueLost | None, label: str) -> None:
        if held is None:
            return
        try:
            outcome = self._outcome(view.key, held)
        except (SignatureError, ValueLost):
            self._lost_outcome(view, label)
            return
        if type(outcome) is Finished:
            self._use("result", view.key, label, outcome.value.buffers)
            assert isinstance(held, CurrentOutcome)
            if outcome.value.buffers:
                self._helds[view.key] = held
        self._use("display", view.key, label, outcome.run.blobs)

    def _outcome(self, key: Key, held: CurrentOutcome | ValueLost) -> Outcome:
        if isinstance(held, ValueLost):
            raise held
        return unverified_outcome(held.body) if self._signed is None else self._signed.outcome(key, held)

    def _lost_outcome(self, view: TaskView, label: str) -> None:
        """Note that an outcome can't be opened, or what allows a task to have the one of another; invalidate it."""
        what, why = "result" if view.state is State.FINISHED else "failure", Why.LOST
        if view.source:
            [held] = _each(self._store.outcomes, [view.source])
            try:
                if held is not None:
                    self._outcome(view.source, held)
                    what, why = "reuse", Why.DIRECT  # the other's is whole
            except (SignatureError, ValueLost):
                pass
        if self._repair:
            self._store.invalidate([view.key], why, system.user())
        done = "invalidated" if self._repair else ""
        self._damages.append(Damage(f"the record of the {what} of {label} is damaged", AGAIN, done))

    # -- blobs ---------------------------------------------------------------------------------------------------------

    def _use(self, kind: str, key: Key, label: str, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._uses.setdefault(address, []).append(Use(kind, key, label))

    def _add_modules(self) -> None:
        """Add the blobs of modules and arrays that come with functions."""
        for address, uses in list(self._uses.items()):
            if uses[0].kind == "function" and not self._inventory.inspect(address).wrong:
                try:
                    bundle = function_bundle(self._store, address)
                except ValueLost:
                    continue  # named with the other blobs
                for part in (*bundle.modules.values(), *bundle.buffers):
                    self._uses.setdefault(part, []).append(uses[0])

    def _check_blob(self, address: Address) -> None:
        condition = self._inventory.inspect(address, self._repair)
        self._size += condition.size
        uses = self._uses.get(address, [])
        if not condition.wrong or (condition.wrong == "missing" and not uses):
            return
        if condition.wrong == "missing" and (also := self._store.also) is not None:  # fetched when it is first read
            try:
                if also.has(address):
                    return
            except StoreError:
                condition = condition._replace(refused=f"it may be in {also.display_url}, which can't be reached")
        wrong = condition.wrong if condition.wrong.startswith("can't") else f"is {condition.wrong}"
        lines: dict[str, list[Use]] = {}
        for use in uses:
            lines.setdefault(use.kind, []).append(use)
        if not uses:
            self._add(f"a blob that no task uses ({address[:12]}) {wrong}", "costs nothing", condition)
        for kind, those in lines.items():
            others = f" and {plural(len(those) - 1, 'other')}" if len(those) > 1 else ""
            what = f"{_WHAT[kind]} {those[0].label}{others} {wrong}"
            if kind == "result" and self._repair and not condition.refused:
                self._run_again(what, [use.key for use in those], condition)
            else:
                self._add(what, _COSTS[kind], condition)

    def _add(self, what: str, cost: str, condition: Condition) -> None:
        self._damages.append(Damage(what, cost, condition.done, condition.refused))

    def _run_again(self, what: str, keys: Sequence[Key], condition: Condition) -> None:
        """Have tasks run again whose value is gone, unless they have another one by now."""
        current = zip(keys, _each(self._store.outcomes, keys), strict=True)
        same = [key for key, held in current if getattr(held, "verdict", None) == self._helds[key].verdict]
        if same:
            self._store.invalidate(same, Why.LOST, system.user())
        condition = condition._replace(done=condition.done or "invalidated")
        self._add(what, AGAIN if same else "it has run again already", condition)


_WHAT = {
    "result": "the result of",
    "argument": "an argument of",
    "function": "the function",
    "display": "what was displayed by",
}
_COSTS = {
    "result": AGAIN,
    "argument": "it is stored again when its cell is run again; until then the task can't run, a result is kept",
    "function": "it is stored again when its cell is run again; until then its tasks can't run, results are kept",
    "display": "it isn't displayed any more; nothing runs again",
}


def _each(read: Callable[[Sequence[Key]], Sequence[T]], keys: Sequence[Key]) -> list[T | ValueLost]:
    """Return what is read of each key; its error where that is lost, which a store raises for all at once."""
    try:
        return list(read(keys))
    except ValueLost as lost:
        if len(keys) == 1:
            return [lost]
        half = len(keys) // 2
        return [*_each(read, keys[:half]), *_each(read, keys[half:])]
