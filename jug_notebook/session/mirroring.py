"""Copy the results of a store to a mirror (see `store.mirror`), and a mirror into a store.

A copy sends what the mirror lacks. What is sent counts from the moment at which the index names it, every few seconds,
so an interrupted copy leaves what it has sent, and the next one goes on from there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import SignatureError, StoreError, ValueLost
from jug_notebook.model import Address, Finished, Key, Spec, State, Submission, Verdict, Why
from jug_notebook.session.maintenance import Copied, Progress
from jug_notebook.session.maintenance import copy as copy_store
from jug_notebook.store import Store, addresses_in, exists, keyring, open_store, split
from jug_notebook.store.bucket import blob_name, named_by_content
from jug_notebook.store.mirror import (
    Bringing,
    Index,
    Mirror,
    NothingThere,
    Place,
    Row,
    Signed,
    Value,
    is_mirror,
    segments_of,
)
from jug_notebook.store.signed import SignedReader, SignedWriter, seal_of, template
from jug_notebook.system import batched

PACK = 4 << 20  #: bytes of a pack, about
AT_ONCE = 64 << 20  #: bytes of blobs that are sent or fetched together, about
COMMIT = 10.0  #: seconds after which what was sent is named by the index
SMALL = PACK // 2  #: bytes below which a pack is small, as those of copies that send a few results
CROWD = 64  #: small packs, or segments beyond what there must be, after which they are merged
KEPT = 86_400.0  #: seconds for which an object stays that nothing names any more


class Pushing:
    """One copy of a store's results to a mirror: `run` makes it."""

    def __init__(self, source: Store, url: str, report: Progress | None = None, clock: Clock = CLOCK) -> None:
        self._source, self._mirror, self._clock = source, Mirror(url, clock), clock
        self._report = report or (lambda done, total: None)
        self._opens = SignedReader(source, seal_of(source))
        self._there: set[Address] = set()  #: blobs that the mirror has
        self._pack = bytearray(os.urandom(16))  # so that no two packs have the same name
        self._packed: list[Row] = []
        self._sent: list[tuple[Address, Row]] = []  #: not named by the index yet
        self._wrong: set[Value] = set()
        self._right: set[Value] = set()
        self._committed = clock.monotonic()
        self._count = dict.fromkeys(("results", "blobs", "size", "lost", "refused", "accepted"), 0)

    def run(self) -> Copied:
        """Raises StoreError."""
        mirror = self._mirror
        try:
            mirror.read_index()
        except NothingThere:
            mirror.store_id = self._source.id
            mirror.generation = keyring.extents(mirror.pin).get("index", 0)
            mirror.write_index(Index())
        self._seals = Signed(mirror.store_id)
        calls = [call for one in self._source.snapshot().functions for call in self._source.calls(one.name)]
        finished = sum(state is State.FINISHED for _, state, _ in calls)
        new = [key for part in batched(calls) for key in self._new(part)]
        done = 0
        for part in batched(new):
            self._report(done, len(new))
            self._send(part)
            done += len(part)
        self._end_pack()
        self._commit()
        self._merge()
        self._remove_unused()
        self._report(len(new), len(new))
        left = self._count["refused"] + self._count["accepted"] + self._count["lost"]
        source, sent = self._source.display_url, self._count["results"]
        return Copied(source, mirror.display_url, finished - left, sent, **self._count)

    def _new(self, calls: Sequence[tuple[Key, State, Verdict | None]]) -> Iterator[Key]:
        """Yield the tasks whose results are to be sent; note which values in the mirror are wrong, and which aren't."""
        known, wrong = self._mirror.places(), self._mirror.index.wrong
        for (key, state, verdict), doubted in zip(calls, self._doubted([key for key, *_ in calls]), strict=True):
            there = known.get(key, {})
            if state is not State.FINISHED or verdict is None:
                if doubted:
                    self._wrong |= {(key, place.row.inputs, place.row.digest) for place in there.values()}
                continue
            place, name = there.get(verdict.inputs), (key, verdict.inputs, verdict.digest)
            if doubted:
                self._right |= {name} & wrong
                if place is not None and place.row.digest != verdict.digest:
                    self._wrong.add((key, place.row.inputs, place.row.digest))
            if (place is None or (doubted and place.row.digest != verdict.digest)) and (doubted or name not in wrong):
                yield key

    def _doubted(self, keys: Sequence[Key]) -> list[bool]:
        """Return for each task whether a user has declared an earlier value wrong (unsure after several rounds)."""
        rows = zip(self._source.invalidations(keys), self._source.current_inputs(keys), strict=True)
        return [
            last is not None and (last.why is Why.DIRECT or (now is not None and now.round > 1)) for last, now in rows
        ]

    # -- sending -------------------------------------------------------------------------------------------------------

    def _send(self, keys: Sequence[Key]) -> None:
        source = self._source
        found: list[tuple[Spec, Finished]] = []
        for key, body, held in zip(keys, source.specs(keys), source.outcomes(keys), strict=True):
            if body is None or held is None:
                continue
            if len(held.proof) == 1:  # a person's word for a run of other code; others may give theirs
                self._count["accepted"] += 1
                continue
            try:
                spec, outcome = self._opens.spec(key, body), self._opens.outcome(key, held)
            except SignatureError:
                self._count["refused"] += 1
                continue
            if isinstance(outcome, Finished):
                found.append((spec, msgspec.structs.replace(outcome, key=key, round=0)))
        self._send_blobs(found)
        for spec, outcome in found:
            if not self._there.issuperset(outcome.value.buffers):
                self._count["lost"] += 1
                continue
            self._add(spec, outcome)
            self._count["results"] += 1
        if self._clock.monotonic() - self._committed > COMMIT:
            self._end_pack()
            self._commit()

    def _send_blobs(self, found: Sequence[tuple[Spec, Finished]]) -> None:
        """Send the blobs of tasks and their results that the mirror lacks, except those that the source has lost."""
        bundles = dict.fromkeys(template(spec.template).bundle for spec, _ in found)
        sure = dict.fromkeys(bundles)
        for spec, outcome in found:
            sure.update(dict.fromkeys((*spec.arguments.buffers, *outcome.value.buffers, *outcome.run.blobs)))
        for bundle in bundles:
            if bundle not in self._there:
                sure.update(dict.fromkeys(self._named_in(bundle)))
        names = [name for name in sure if name not in self._there]
        group: list[tuple[str, memoryview]] = []
        size = 0
        for name, there in zip(names, self._mirror.bucket.exist([blob_name(name) for name in names]), strict=True):
            if not there:
                try:
                    data = self._source.get_blob(name, mapped=True)
                except ValueLost:
                    continue
                group.append((blob_name(name), data))
                size += data.nbytes
                self._count["blobs"] += 1
                self._count["size"] += data.nbytes
            self._there.add(name)
            if size > AT_ONCE:
                self._mirror.bucket.put(group)
                group, size = [], 0
        self._mirror.bucket.put(group)

    def _named_in(self, bundle: Address) -> set[Address]:
        try:
            return addresses_in(self._source.get_blob(bundle))
        except ValueLost:
            return set()

    def _add(self, spec: Spec, outcome: Finished) -> None:
        entry = self._seals.entry(spec, outcome)
        start, end = len(self._pack), len(self._pack) + len(entry)
        self._pack += entry
        self._packed.append(Row(spec.key, outcome.inputs, outcome.digest, 0, start, end))
        if end >= PACK:
            self._end_pack()

    def _end_pack(self) -> None:
        if self._packed:
            data = bytes(self._pack)
            name = named_by_content(data)
            self._mirror.bucket.put([(f"packs/{name}", data)])
            self._sent += [(name, row) for row in self._packed]
            self._pack, self._packed = bytearray(os.urandom(16)), []

    # -- the index -----------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Have the index name what was sent."""
        self._committed = self._clock.monotonic()
        mirror = self._mirror
        made = segments_of(self._sent)
        wrong, right = frozenset(self._wrong - mirror.index.wrong), frozenset(self._right & mirror.index.wrong)
        if made or wrong or right:
            mirror.bucket.put([(f"segments/{named.name}", data) for named, data in made])
            mirror.commit([named for named, _ in made], wrong, right)
        self._sent = []

    def _merge(self) -> None:
        """Where there are too many small packs or segments, write them anew in as few as there must be.

        The index names them once they are there, and what it named before stays for a day.
        """
        mirror = self._mirror
        places = [place for places in mirror.places().values() for place in places.values()]
        before, small = mirror.index.segments, _small_packs(places)
        crowded = len(small) > CROWD
        if mirror.damaged or not (crowded or len(before) >= CROWD + 2 * mirror.count() // 1000):
            return
        moved: set[Place] = set()  # what is damaged stays where it is
        for place, spec, finished in mirror.read([place for place in places if crowded and place.pack in small]):
            self._add(spec, finished)
            moved.add(place)
        self._end_pack()
        made = segments_of([*((place.pack, place.row) for place in places if place not in moved), *self._sent])
        self._sent = []
        mirror.bucket.put([(f"segments/{named.name}", data) for named, data in made])
        mirror.read_index()  # which others may have added to
        now = mirror.index
        if set(before) <= set(now.segments):  # else another copy has merged them
            later = [named for named in now.segments if named not in before]
            mirror.write_index(msgspec.structs.replace(now, segments=(*(named for named, _ in made), *later)))

    def _remove_unused(self) -> None:
        """Remove what nothing names for a day; note what else nothing names from now on."""
        mirror, now = self._mirror, self._clock.now()
        mirror.read_index()
        mirror.places()
        index = mirror.index
        if mirror.damaged:
            return
        named = {f"packs/{pack}" for pack in mirror.packs} | {f"segments/{one.name}" for one in index.segments}
        there = [f"{folder}/{name}" for folder in ("packs", "segments") for name in mirror.bucket.names(folder)]
        unused = [name for name in there if name not in named and _OURS.fullmatch(name)]
        since = {name: index.unused.get(name, now) for name in (*unused, *(f"commits/{one}" for one in index.counted))}
        old = [name for name, first in since.items() if now - first > KEPT]
        if since != index.unused:
            left = {name: first for name, first in since.items() if name not in old}
            mirror.write_index(msgspec.structs.replace(index, unused=left))
        mirror.bucket.remove(old)


def _small_packs(places: Sequence[Place]) -> set[Address]:
    sizes: dict[Address, int] = {}
    for place in places:
        sizes[place.pack] = max(sizes.get(place.pack, 0), place.row.end)
    return {pack for pack, size in sizes.items() if size < SMALL}


_OURS = re.compile(r"\w+/[0-9a-f]{40}(\.\S+\.part)?")


class Pulling:
    """One copy of all of a mirror into a store: `run` makes it."""

    def __init__(self, url: str, target: Store, report: Progress | None = None, clock: Clock = CLOCK) -> None:
        self._mirror, self._target = Mirror(url, clock), target
        self._writer = SignedWriter(seal_of(target, make=True))
        self._bringing = Bringing(target, self._mirror, self._writer, system.user())
        self._report = report or (lambda done, total: None)
        self._there: set[Address] = set()
        self._count = dict.fromkeys(("new", "results", "blobs", "size", "lost"), 0)

    def run(self) -> Copied:
        """Raises StoreError."""
        mirror = self._mirror
        mirror.read_index()
        known, wrong = mirror.places(), mirror.index.wrong
        places = [
            place
            for places in known.values()
            for place in places.values()
            if (place.row.key, place.row.inputs, place.row.digest) not in wrong
        ]
        done = 0
        for part in batched(sorted(places, key=lambda place: (place.pack, place.row.start))):
            self._report(done, len(places))
            self._take(part)
            done += len(part)
        self._target.sync()
        self._report(len(places), len(places))
        return Copied(mirror.display_url, self._target.display_url, len(known), **self._count)

    def _take(self, places: Sequence[Place]) -> None:
        keys = [place.row.key for place in places]
        states = dict(zip(keys, self._target.states(keys), strict=True))
        wanted = [place for place in places if states[place.row.key] is not State.FINISHED]
        found = [(spec, finished) for _, spec, finished in self._mirror.read(wanted)]
        self._take_blobs(found)
        whole = [(spec, finished) for spec, finished in found if self._there.issuperset(finished.value.buffers)]
        self._count["lost"] += len(found) - len(whole)
        self._count["results"] += len(whole)
        self._bringing.settle([(spec.key, finished) for spec, finished in whole])
        for spec in {spec.key: spec for spec, _ in found}.values():
            kind = template(spec.template)
            rank = kind.priority, kind.python, kind.resources
            sealed = self._writer.spec(spec)
            one = Submission(spec.key, kind.name, spec.needs, spec.form, sealed, *rank)
            self._target.submit([one], spec.origin)
            self._count["new"] += states[spec.key] is None

    def _take_blobs(self, found: Sequence[tuple[Spec, Finished]]) -> None:
        names: dict[Address, None] = {}
        for spec, finished in found:
            names[template(spec.template).bundle] = None
            names.update(dict.fromkeys((*spec.arguments.buffers, *finished.value.buffers, *finished.run.blobs)))
        self._fetch(list(names))
        modules: set[Address] = set()
        for bundle in {template(spec.template).bundle for spec, _ in found} & self._there:
            modules |= addresses_in(self._target.get_blob(bundle))
        self._fetch(list(modules))

    def _fetch(self, names: Sequence[Address]) -> None:
        missing = []
        for name in names:
            if name not in self._there:
                try:
                    self._target.get_blob(name, mapped=True)
                    self._there.add(name)
                except ValueLost:
                    missing.append(name)
        for name, data in self._mirror.blobs.fetch(missing):
            self._target.put_blob([data])
            self._there.add(name)
            self._count["blobs"] += 1
            self._count["size"] += data.nbytes


def push(source: str, url: str, report: Progress | None = None, clock: Clock = CLOCK) -> Copied:
    """Copy the results of a store to a mirror. Raises StoreError."""
    if split(source)[0] != "memory" and not exists(source):
        raise StoreError(f"no store at {source!r} to copy from")
    store = open_store(source, clock)
    try:
        return Pushing(store, url, report, clock).run()
    finally:
        _close(store)


def pull(url: str, target: str, report: Progress | None = None, clock: Clock = CLOCK) -> Copied:
    """Copy all of a mirror into a store, which is made if it's new. Raises StoreError."""
    store = open_store(target, clock)
    try:
        return Pulling(url, store, report, clock).run()
    finally:
        _close(store)


def copy(source: str, target: str, report: Progress | None = None) -> Copied:
    """Copy a store or a mirror to another; not a mirror to a mirror. Raises StoreError.

    ``report`` is called with the number of tasks done and their total.
    """
    if is_mirror(target):
        if is_mirror(source):
            raise StoreError("a mirror can be copied to a store, and a store to a mirror; name one store")
        return push(source, target, report)
    return pull(source, target, report) if is_mirror(source) else copy_store(source, target, report)


def _close(store: Store) -> None:
    if not store.url.startswith("memory:"):  # that lives as long as it is open
        store.close()
