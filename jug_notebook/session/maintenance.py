"""Maintain whole stores: `clean` up what is no longer needed in one, and `copy` one into another, of any kind.

A copy has tasks, results, failures and requests, signed with the target's key. It repeats in the target what holds in
the source now: a second copy adds nothing, and an interrupted one is completed by the next. The target counts its own
rounds. Outcomes of earlier rounds are not copied, but that they were invalidated is: otherwise the target could reuse
them through an equal run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import SignatureError, StoreError, ValueLost
from jug_notebook.model import (
    Address,
    CurrentOutcome,
    Finished,
    Key,
    Lease,
    Origin,
    Outcome,
    Settlement,
    Spec,
    State,
    Submission,
    TaskView,
    Verdict,
    Why,
)
from jug_notebook.render import plural
from jug_notebook.render import size as size_text
from jug_notebook.render.format import elide
from jug_notebook.store import Store, addresses_in, exists, open_store, split
from jug_notebook.store.scratch import Record
from jug_notebook.store.sealing import Seal
from jug_notebook.store.signed import SignedReader, SignedWriter, reading_seal, seal_of, template, unverified_spec
from jug_notebook.system import batched, not_negative

YOUNG = 3600.0  #: seconds for which an unreferenced blob stays: a task that needs it may be on its way

Weight: TypeAlias = tuple[int, int]
"""Tasks, and the bytes of what is stored of them, blobs left out."""

Progress = Callable[[int, int], None]


class Cleaned(msgspec.Struct, frozen=True):
    """What a cleanup removed, or would remove; ``str`` lists it by function."""

    functions: dict[str, Weight] = {}
    blobs: int = 0
    size: int = 0  #: bytes, of tasks and blobs
    dry: bool = False  #: nothing was removed

    @property
    def tasks(self) -> int:
        return sum(tasks for tasks, _ in self.functions.values())

    def __str__(self) -> str:
        if not self.tasks and not self.blobs:
            return "nothing to clean up: all that is stored is in use"
        lines = []
        rows = sorted(((elide(name, 120), *each) for name, each in self.functions.items()), key=lambda row: -row[2])
        width = max((len(name) for name, *_ in rows), default=0)
        for name, tasks, size in rows:
            lines.append(f"{name:<{width}}  {plural(tasks, 'task')}, {size_text(size)}")
        total = f"{'would remove' if self.dry else 'removed'} {plural(self.tasks, 'task')}"
        if self.blobs:
            total += f" and {plural(self.blobs, 'blob')}"
        return "\n".join([*lines, f"{total}, {size_text(self.size)}"])

    __repr__ = __str__


def clean(
    store: Store,
    now: float,
    among: Collection[Key] | None = None,
    older_than: float | None = None,
    keep: Iterable[Address] = (),
    dry: bool = False,
    clock: Clock = CLOCK,
) -> Cleaned:
    """Delete the tasks that are no longer needed, and the blobs that nothing refers to.

    A task is needed while it is requested or runs, and while another needed task depends on it or reuses its result.
    ``among``: consider only these tasks; ``older_than``: only tasks made and run, and blobs written, more than this
    many seconds ago (default: all tasks, and blobs older than an hour); ``keep``: blobs that are needed although
    nothing stored refers to them; ``dry``: delete nothing. Return what was deleted, or would be.
    """
    if store.read_only and not dry:
        raise StoreError(store.read_only)
    older_than = None if older_than is None else not_negative("older_than", older_than)
    began = clock.monotonic()
    views = {view.key: view for view in store.tasks()}
    needed = _needed(store, views)
    going = [key for key in views if key not in needed and (among is None or key in among)]
    if older_than is not None:
        going = [key for key in going if views[key].started + views[key].duration < now - older_than]
        found = (spec for part in batched(going) for spec in _specs(store, part) if spec is not None)
        made = {spec.key: spec.made for spec in found}
        going = [key for key in going if made.get(key, 0.0) < now - older_than]
    gone = set(going)
    kept = {*keep, *_addresses(store, [key for key in views if key not in gone])}
    again = gone & _needed(store, views)  # requested meanwhile
    if again:
        going = [key for key in going if key not in again]
        kept |= _addresses(store, list(again))
    functions: dict[str, Weight] = {}
    for part in batched(going):
        for key, body, held in zip(part, store.specs(part), store.outcomes(part), strict=True):
            tasks, size = functions.get(views[key].name, (0, 0))
            size += len(body or b"") + (len(held.body) if held is not None and held.verdict.key == key else 0)
            functions[views[key].name] = tasks + 1, size
    took = clock.monotonic() - began  # a blob stored meanwhile may belong to a task that was not read
    report = store.sweep(going, kept, max(YOUNG if older_than is None else older_than, took), dry)
    orphans = _orphans(store, going)
    if not dry:
        store.scratch.drop([record.name for record in orphans])
    if report.tasks and not dry:
        store.compact()
    return Cleaned(functions, report.blobs + len(orphans), report.size + sum(record.size for record in orphans), dry)


def _orphans(store: Store, gone: Collection[Key]) -> list[Record]:
    """Return the checkpoints and streams of tasks that are gone or have ended, or that belong to an earlier round."""
    records = store.scratch.records()
    keys = list(dict.fromkeys(record.name.partition(".")[0] for record in records))
    running = {
        f"{key}.{lease.round}."
        for key, state, lease in zip(keys, store.states(keys), store.current_inputs(keys), strict=True)
        if state is not None and not state.settled and lease is not None and key not in gone
    }
    return [record for record in records if not record.name.startswith(tuple(running))]


def _needed(store: Store, views: dict[Key, TaskView]) -> set[Key]:
    found: set[Key] = {key for key, view in views.items() if view.state is State.RUNNING}
    for origin in store.origins():
        found.update(store.requested(origin))
    row = [key for key in found if key in views]
    while row:
        following: dict[Key, None] = {}
        for part in batched(row):
            for spec in _specs(store, part):
                following.update(dict.fromkeys(() if spec is None else spec.needs))
        row = [key for key in following if key in views and key not in found]
        found.update(row)
    return found | {views[key].source for key in found if key in views and views[key].source}


def _specs(store: Store, keys: Sequence[Key]) -> list[Spec | None]:
    """Return specs without checking their signatures (nothing of them is run or displayed); None for damaged ones."""
    found: list[Spec | None] = []
    for body in store.specs(keys):
        try:
            found.append(None if body is None else unverified_spec(body))
        except SignatureError:
            found.append(None)
    return found


def _addresses(store: Store, keys: Sequence[Key]) -> set[Address]:
    """Return the blobs of tasks: results, displays, arguments, functions, and the modules that came with these."""
    found: set[Address] = set()
    read: set[bytes] = set()
    for part in batched(keys):
        for body, spec in zip(store.specs(part), _specs(store, part), strict=True):
            found |= addresses_in(body or b"")
            if spec is not None and spec.template not in read:
                read.add(spec.template)
                found |= _modules(store, spec.template)
        for held in store.outcomes(part):
            if held is not None:
                found |= addresses_in(held.body)
    return found


def _modules(store: Store, data: bytes) -> set[Address]:
    """Return the blobs of the modules that came with a function."""
    try:
        return addresses_in(store.get_blob(template(data).bundle))
    except (ValueLost, SignatureError):
        return set()


class Copied(msgspec.Struct, frozen=True):
    """What was copied; ``str`` gives a line for people."""

    source: str
    target: str
    tasks: int = 0  #: in the source
    new: int = 0  #: of these, not in the target before
    results: int = 0  #: copied
    failures: int = 0  #: copied
    blobs: int = 0
    size: int = 0  #: bytes of blobs
    lost: int = 0  #: results of which the source has lost the value, so that they will be recomputed
    refused: int = 0  #: tasks and outcomes that aren't signed with the source's key
    accepted: int = 0  #: results of other code, accepted by a user, which a mirror doesn't get

    def __str__(self) -> str:
        parts = [plural(self.new, "task")]
        parts += [plural(count, what) for count, what in ((self.results, "result"), (self.failures, "failure"))]
        parts.append(f"{plural(self.blobs, 'blob')}, {size_text(self.size)}")
        there = self.tasks - self.new - self.refused
        line = f"copied {', '.join(parts)} from {self.source} to {self.target}"
        if there > 0:
            line += f"; {plural(there, 'task')} were there already" if there > 1 else "; 1 task was there already"
        if self.lost:
            line += f"; {plural(self.lost, 'value')} the source has lost: they will be recomputed"
        if self.accepted:
            line += f"; {plural(self.accepted, 'accepted result')} of other code left out"
        if self.refused:
            line += f"; {self.refused:,} not signed with the source's key, so left out"
        return line

    __repr__ = __str__


def copy(source: str | Path, target: str | Path, report: Progress | None = None, clock: Clock = CLOCK) -> Copied:
    """Copy all of a store into another, which is made if it's new. Raises StoreError.

    ``report`` is called with the number of tasks done and their total.
    """
    if split(str(source))[0] != "memory" and not exists(str(source)):
        raise StoreError(f"no store at {str(source)!r} to copy from")
    one, two = open_store(source, clock), open_store(target, clock)
    try:
        if one.id == two.id:
            raise StoreError(f"{one.display_url} can't be copied to itself; give another store")
        return Copying(one, reading_seal(one), two, seal_of(two, make=True), report).run()
    finally:
        for store in (one, two):
            if not store.url.startswith("memory:"):  # that lives as long as it is open
                store.close()


class Copying:
    """One copy of a store into another: `run` makes it."""

    def __init__(self, source: Store, opens: Seal, target: Store, seals: Seal, report: Progress | None = None) -> None:
        self._source, self._target = source, target
        self._signed, self._writer = SignedReader(source, opens), SignedWriter(seals)
        self._report = report or (lambda done, total: None)
        self._me = system.new_id()
        #: requests, while it is copied, what the source doesn't request
        self._by = Origin(system.user(), "", f"copy of {source.id}")
        self._blobs: dict[Address, bool] = {}
        self._count = dict.fromkeys(("new", "results", "failures", "blobs", "size", "lost"), 0)
        self._refused: set[Key] = set()

    def run(self) -> Copied:
        views = self._source.tasks()
        requests = {origin: self._source.requested(origin) for origin in self._source.origins()}
        wanted = {key: origin for origin, keys in requests.items() for key in keys}
        for part in batched(self._target.requested(self._by)):  # left by an interrupted copy
            self._target.request(part, self._by, False)
        postponed: list[Key] = []
        done = 0
        for part in batched([view.key for view in views]):
            self._report(done, len(views))
            done += len(part)
            unwanted = self._submit(part, wanted)
            postponed += self._settle(part)
            self._target.request(unwanted, self._by, False)
        for origin, keys in requests.items():
            for part in batched([key for key in keys if key not in self._refused]):
                self._target.request(part, origin, True)
        self._settle_rest(postponed, views)
        self._repeat_doubts(views)
        self._target.sync()
        self._report(len(views), len(views))
        return Copied(
            self._source.display_url, self._target.display_url, len(views), refused=len(self._refused), **self._count
        )

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _submit(self, keys: Sequence[Key], wanted: Mapping[Key, Origin]) -> list[Key]:
        """Submit new tasks. Return those that the source doesn't request: the copy does, until they are settled."""
        unknown = [key for key, state in zip(keys, self._target.states(keys), strict=True) if state is None]
        groups: dict[Origin, list[Submission]] = {}
        unwanted: dict[Origin, list[Key]] = {}
        for key, body in zip(unknown, self._source.specs(unknown), strict=True):
            if body is None:
                continue  # deleted by a cleanup meanwhile
            try:
                spec = self._signed.spec(key, body)
            except SignatureError:
                self._refused.add(key)
                continue
            kind = template(spec.template)
            sealed = self._writer.spec(spec)
            rank = kind.priority, kind.python, kind.resources
            submission = Submission(key, kind.name, spec.needs, spec.form, sealed, *rank)
            self._carry_spec(spec)
            if key not in wanted:
                unwanted.setdefault(spec.origin, []).append(key)
            groups.setdefault(wanted.get(key, self._by), []).append(submission)
        for origin, group in groups.items():
            self._count["new"] += self._target.submit(group, origin).new
        for origin, its in unwanted.items():
            self._target.request(its, origin, False)
        return [key for its in unwanted.values() for key in its]

    def _carry_spec(self, spec: Spec) -> None:
        bundle = template(spec.template).bundle
        if bundle not in self._blobs and self._carry([bundle]):
            self._carry(addresses_in(self._source.get_blob(bundle)), surely=False)
        self._carry(spec.arguments.buffers)

    def _carry(self, addresses: Collection[Address], surely: bool = True) -> bool:
        """Copy blobs. Return False where one is missing, unless the addresses are only guesses (not ``surely``)."""
        there = True
        for address in addresses:
            if address not in self._blobs:
                try:
                    data = self._source.get_blob(address)
                except ValueLost:
                    self._blobs[address] = False
                else:
                    self._target.put_blob([data])
                    self._blobs[address] = True
                    self._count["blobs"] += 1
                    self._count["size"] += data.nbytes
            there = there and self._blobs[address]
        return there or not surely

    # -- outcomes ------------------------------------------------------------------------------------------------------

    def _settle(self, keys: Sequence[Key], own: bool = True) -> list[Key]:
        """Copy outcomes. Return the tasks that have to wait for their needs, or reuse the run of another task.

        Without ``own``, a reused result becomes the task's own.
        """
        keys = [key for key in keys if key not in self._refused]
        keys = self._not_settled(keys)
        helds = self._source.outcomes(keys)
        rows = list(zip(keys, helds, self._target.current_inputs(keys), self._wrong(keys), strict=True))
        later: list[Key] = []
        settled: list[Settlement] = []
        doubted: list[tuple[Settlement, Outcome]] = []
        failed = {key for key, state in zip(keys, self._target.states(keys), strict=True) if state is State.FAILED}
        for key, held, lease, wrong in rows:
            if held is None or (key in failed and not held.verdict.finished):
                continue
            if lease is None or (own and held.verdict.key != key):
                later.append(key)
                continue
            found = self._opened(key, held)
            if found is None or held.verdict.inputs != lease.inputs:
                continue
            settlement = self._sealed(found, held.verdict, lease)
            if wrong and type(found) is Finished:
                doubted.append((settlement, found))
            else:
                settled.append(settlement)
        self._hand_in(settled)
        self._settle_doubted(doubted)
        return later

    def _not_settled(self, keys: Sequence[Key]) -> list[Key]:
        """Return the tasks without a value in the target, and those whose invalidation it doesn't know yet."""
        states = self._target.states(keys)
        rows = zip(keys, states, self._wrong(keys), self._target.invalidations(keys), strict=True)
        return [
            key
            for key, state, wrong, invalidation in rows
            if state is not None and (state is not State.FINISHED or (wrong and invalidation is None))
        ]

    def _opened(self, key: Key, held: CurrentOutcome) -> Outcome | None:
        try:
            found = self._signed.outcome(key, held)
        except SignatureError:
            self._refused.add(key)
            return None
        self._carry(found.run.blobs)
        if type(found) is Finished and not self._carry(found.value.buffers):
            self._count["lost"] += 1
            return None
        return found

    def _sealed(self, outcome: Outcome, verdict: Verdict, lease: Lease) -> Settlement:
        key, round, inputs = lease.key, lease.round, lease.inputs
        again = msgspec.structs.replace(outcome, key=key, round=round, inputs=inputs)
        return self._writer.settlement(msgspec.structs.replace(verdict, key=key, round=round, inputs=inputs), again)

    def _hand_in(self, settled: Sequence[Settlement]) -> None:
        if settled:
            self._target.claim(self._me, 0, 0.0, settled)
            results = sum(one.verdict.finished for one in settled)
            self._count["results"] += results
            self._count["failures"] += len(settled) - results

    def _settle_rest(self, keys: Sequence[Key], views: Sequence[TaskView]) -> None:
        """Copy outcomes that had to wait, in order; then acceptances; then what isn't reused, as the task's own."""
        left = self._settle_all(keys, own=True)
        for part in batched([view.key for view in views]):
            self._accept(part)
        self._settle_all(left, own=False)

    def _settle_all(self, keys: Sequence[Key], own: bool) -> Sequence[Key]:
        """Settle as long as each round leaves fewer tasks. Return those left."""
        while keys and len(left := self._settle(keys, own)) < len(keys):
            keys = left
        return keys

    # -- what people declared ------------------------------------------------------------------------------------------

    def _accept(self, keys: Sequence[Key]) -> None:
        accepted = []
        bodies = self._source.acceptances(keys)
        meant = [key for key, body in zip(keys, bodies, strict=True) if body is not None]
        there = dict(zip(meant, self._target.acceptances(meant), strict=True))
        for key, body in zip(keys, bodies, strict=True):
            if body is None or there[key] is not None:
                continue
            try:
                one = self._signed.acceptance(key, body)
            except SignatureError:
                self._refused.add(key)
                continue
            lease, source = self._target.current_inputs([key, one.source])
            if lease is not None and source is not None and lease.inputs == one.inputs:
                accepted.append(msgspec.structs.replace(one, round=lease.round, source_round=source.round))
        if accepted:
            self._target.accept([(one, self._writer.acceptance(one)) for one in accepted])

    def _wrong(self, keys: Sequence[Key]) -> list[bool]:
        """Return for each task whether a user may have invalidated an earlier value (unsure after several rounds)."""
        rows = zip(self._source.invalidations(keys), self._source.current_inputs(keys), strict=True)
        return [
            last is not None and (last.why is Why.DIRECT or (now is not None and now.round > 1)) for last, now in rows
        ]

    def _settle_doubted(self, doubted: Sequence[tuple[Settlement, Outcome]]) -> None:
        """Settle values that follow an invalidated one, and invalidate in between, so that equal runs aren't reused."""
        if not doubted:
            return
        self._hand_in([settlement for settlement, _ in doubted])
        self._count["results"] -= len(doubted)
        keys = [settlement.verdict.key for settlement, _ in doubted]
        self._target.invalidate(keys, Why.DIRECT, system.user())
        again = []
        for (settlement, outcome), lease in zip(doubted, self._target.current_inputs(keys), strict=True):
            if lease is not None:
                again.append(self._sealed(outcome, settlement.verdict, lease))
        self._hand_in(again)

    def _repeat_doubts(self, views: Sequence[TaskView]) -> None:
        """Invalidate results that tasks reuse in the target but that were invalidated in the source."""
        unfinished = [view.key for view in views if view.state is not State.FINISHED and view.key not in self._refused]
        for part in batched(unfinished):
            wrong = [key for key, doubt in zip(part, self._wrong(part), strict=True) if doubt]
            rows = zip(wrong, self._target.outcomes(wrong), strict=True)
            reused = [key for key, held in rows if held is not None and held.verdict.key != key]
            if reused:
                self._target.invalidate(reused, Why.DIRECT, system.user())
