"""A mirror: the results of stores in a bucket, or wherever fsspec reaches, from which sessions and workers take them.

What lies there is believed only with the key of the store that was first copied there. Objects, all but the first named
by the hash of their content:

- ``index``: the store's id, a number that rises with each commit, a MAC, the names of the segments, and which values
  were declared wrong;
- ``commits/…``: what copies have added to that. Each is an object of its own, so that copies at the same time lose
  nothing: a reader adds those that the index doesn't count yet, in the order of their numbers;
- ``segments/…``: which results there are, of tasks whose keys begin alike, and where they are in packs;
- ``packs/…``: for each result the sealed task and the sealed outcome, small values included;
- ``blobs/…``: large values, which are fetched when they are read.

Objects are written before what names them, so an interrupted copy leaves a mirror that is whole. Where small copies
have left many segments or packs, a later one writes them anew in a few. What nothing names any more is removed a day
after a copy has first seen that, so that nobody misses it who reads by an older index.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import SignatureError, StoreError, ValueLost, clean
from jug_notebook.model import UNREADABLE, Address, Finished, Invalidation, Key, Lease, Spec, State, Verdict, Why
from jug_notebook.render import plural
from jug_notebook.store import Store, exists, is_known, keyring
from jug_notebook.store.bucket import Blobs, Bucket, Part, blob_name, named_by_content
from jug_notebook.store.sealing import EventSeal, Seal, event_seal
from jug_notebook.store.signed import SignedReader, SignedWriter

FORMAT = 2
FRESH = 60.0  #: seconds for which an index counts as the latest, and after which a bucket that was away is tried again
LARGEST = 64 << 20  #: bytes of an index, at most; and of all parts of packs that are read together, about
LARGEST_COMMIT, COMMITS = 16 << 20, 1000  #: bytes of a commit, at most, and how many are read
SHARD = 20_000  #: results in a segment, about
GAP = 64 << 10  #: bytes between two parts of a pack up to which one request fetches both
NAMED = 10  #: damaged objects that are named one by one
NO_MIRROR = "none"  #: in place of a URL: forget the one that is remembered


Value = tuple[Key, bytes, bytes]  #: of a task: key, inputs, digest


class Row(msgspec.Struct, frozen=True, array_like=True):
    """A result: the task, the digests of what it ran on and of its value, and where in its segment's packs it is."""

    key: Key
    inputs: bytes
    digest: bytes
    pack: int
    start: int
    end: int


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """Results of tasks whose keys begin alike."""

    packs: list[Address]
    rows: list[Row]


class Named(msgspec.Struct, frozen=True, array_like=True):
    """A segment as the index names it; ``prefix``: how all its keys begin; ``size``: its bytes."""

    name: Address
    prefix: str
    count: int
    size: int


class Index(msgspec.Struct, frozen=True, array_like=True):
    """Segments, later ones first to be believed; and values that were declared wrong: key, inputs, digest.

    ``counted``: names of commits that are in it. ``unused``: names of objects that nothing names, since when.
    """

    segments: tuple[Named, ...] = ()
    wrong: frozenset[Value] = frozenset()
    counted: frozenset[str] = frozenset()
    unused: dict[str, float] = {}


class Commit(msgspec.Struct, frozen=True, array_like=True):
    """What a copy adds to an index of the generation ``base``: segments, values that are wrong, and that aren't."""

    base: int
    segments: tuple[Named, ...]
    wrong: frozenset[Value]
    right: frozenset[Value]


class Head(msgspec.Struct, frozen=True, array_like=True):
    """An index or a commit as it is stored. ``generation`` rises with each commit."""

    format: int
    store: str
    generation: int
    mac: bytes
    body: bytes


class Place(NamedTuple):
    """Where a result is: the number of its segment in the index, and the bytes of a pack."""

    order: int
    pack: Address
    row: Row


_head = msgspec.msgpack.Decoder(Head).decode
_index = msgspec.msgpack.Decoder(Index).decode
_commit = msgspec.msgpack.Decoder(Commit).decode
_commit_name = re.compile(r"\d{12}-[0-9a-f]{40}", re.ASCII).fullmatch
_segment = msgspec.msgpack.Decoder(Segment).decode
_entry = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode
encode = msgspec.msgpack.Encoder().encode


def segments_of(found: Sequence[tuple[Address, Row]]) -> list[tuple[Named, bytes]]:
    """Return segments that name these results, each with its pack."""
    digits = 0
    while len(found) > SHARD * 16**digits:
        digits += 1
    shards: defaultdict[str, list[tuple[Address, Row]]] = defaultdict(list)
    for pack, row in found:
        shards[row.key[:digits]].append((pack, row))
    made = []
    for prefix, rows in sorted(shards.items()):
        packs = {pack: number for number, pack in enumerate(dict.fromkeys(pack for pack, _ in rows))}
        moved = [msgspec.structs.replace(row, pack=packs[pack]) for pack, row in rows]
        data = encode(Segment(list(packs), moved))
        made.append((Named(named_by_content(data), prefix, len(rows), len(data)), data))
    return made


class NothingThere(StoreError):
    """Nothing was copied to a mirror yet."""


class Mirror:
    """A mirror for reading. Nothing raises where it is away or damaged: one line says so, and there are fewer results.

    ``display_url`` and ``note``, a line for people, hold no secrets.
    """

    def __init__(self, url: str, clock: Clock = CLOCK) -> None:
        self.url = url
        self.bucket = Bucket(url)
        self.display_url = self.bucket.display_url
        self.store_id = ""  #: of the store with whose key all is signed
        self.generation = 0
        self.index = Index()
        self.fetched = 0  #: results that were found here
        self.problem = ""
        self._clock = clock
        self._read_at: float | None = None
        self.packs: set[Address] = set()  #: those that segments name, as far as these were read
        self.damaged = False  #: was anything left out?
        self.declared = -1  #: the generation whose wrong values were invalidated
        self._loaded: dict[Address, int] = {}
        self._places: dict[Key, dict[bytes, Place]] = {}
        self._lock = threading.RLock()
        self._named: set[str] = set()
        self.blobs = Blobs(self.bucket, self._skip)

    @property
    def note(self) -> str:
        """Why it can't be used now, in a line; empty where it can."""
        return self.problem

    @property
    def about(self) -> str:
        """What it holds, in a few words."""
        if self.problem or self._read_at is None:
            return f"also {self.display_url}" + (" (not in use now)" if self.problem else "")
        taken = f", {self.fetched:,} taken" if self.fetched else ""
        return f"also {self.display_url} with {plural(self.count(), 'result')}{taken}"

    @property
    def pin(self) -> str:
        """The name by which the keyring knows which store's results are here, and how new the index was."""
        return f"also {self.display_url}"

    def count(self) -> int:
        """Return how many results the index names."""
        return sum(named.count for named in self.index.segments)

    # -- the index -----------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Read the index, unless that was done of late. Return whether the mirror can be used."""
        with self._lock:
            now = self._clock.monotonic()
            if self._read_at is None or now - self._read_at > FRESH:
                try:
                    self.read_index()
                    self.problem = ""
                except StoreError as error:
                    self._complain(f"{error}; going on without it")
                self._read_at = now
            return not self.problem

    def read_index(self) -> None:
        """Read the index and the commits since. Raises StoreError where there is none, or it can't be believed."""
        where = self.display_url
        names = [name for name in self.bucket.names("commits") if _commit_name(name)]
        [raw] = self.bucket.get([Part("index", 0, LARGEST)])
        if raw is None:
            raise NothingThere(f"nothing was copied to {where} yet: jug-notebook copy STORE {where}")
        head, pinned = self._checked(raw), keyring.pinned(self.pin)
        before = max(keyring.extents(self.pin).get("index", 0), self.generation)
        index, generation, complete = _index(head.body), head.generation, True
        segments, wrong, counted = dict.fromkeys(index.segments), index.wrong, index.counted & set(names)
        for name, commit in self._commits(head.store, sorted(set(names) - counted)[:COMMITS]):
            complete = complete and commit.base <= generation
            generation = max(generation, commit.base + 1)
            segments.update(dict.fromkeys(commit.segments))
            wrong, counted = (wrong | commit.wrong) - commit.right, counted | {name}
        if generation < before or not complete:
            raise StoreError(
                f"the index of {where} is older than before ({head.generation} < {max(before, generation)}): was "
                "a copy put back? Nothing there is used; if that is fine, give --accept-new-store, too"
            )
        if not set(self._loaded) <= {named.name for named in segments}:  # merged into others
            self._loaded, self._places, self.packs = {}, {}, set()
        index = Index(tuple(segments), wrong, counted, index.unused)
        if generation > before or not pinned:
            keyring.pin(self.pin, head.store, {"index": generation})
        self.store_id, self.generation, self.index = head.store, generation, index

    def _checked(self, raw: bytes) -> Head:
        """Return the stored index. Raises StoreError where it can't be believed."""
        where = self.display_url
        try:
            head = _head(raw)
        except UNREADABLE:
            raise StoreError(f"the index of {where} is damaged, so nothing there is used") from None
        if head.format != FORMAT:
            raise StoreError(f"{where} was written by another version of jug_notebook")
        pinned = keyring.pinned(self.pin)
        if pinned and pinned != head.store:
            raise StoreError(
                f"{where} held results of another store before ({pinned[:8]}, and now {head.store[:8]}); if "
                "that is fine, give --accept-new-store, too"
            )
        if not self._event_seal(head.store).is_record(head.mac, "mirror", head.store, head.generation, head.body):
            raise StoreError(f"the index of {where} isn't signed with its store's key, so nothing there is used")
        return head

    def _commits(self, store_id: str, names: Sequence[str]) -> Iterator[tuple[str, Commit]]:
        """Yield these commits, without those that are gone or can't be believed."""
        seal = self._event_seal(store_id)
        for part in system.batched(names, LARGEST // LARGEST_COMMIT):
            parts = [Part(f"commits/{name}", 0, LARGEST_COMMIT) for name in part]
            for name, raw in zip(part, self.bucket.get(parts), strict=True):
                try:
                    head = None if raw is None else _head(raw)
                    if head is not None:
                        if not seal.is_record(head.mac, "mirror commit", name, head.generation, head.body):
                            raise SignatureError(name)
                        yield name, _commit(head.body)
                except (SignatureError, *UNREADABLE):
                    self._skip(f"commits/{name}")

    def _event_seal(self, store_id: str) -> EventSeal:
        _, seal = event_seal(store_id)
        if seal is None:
            raise StoreError(
                f"{self.display_url} is signed with the key of store {store_id[:12]}, which isn't here, so nothing "
                "is used; get it from someone who has it: jug-notebook key export there, jug-notebook key import here"
            )
        return seal

    def commit(self, segments: Sequence[Named], wrong: frozenset[Value], right: frozenset[Value]) -> None:
        """Add these to what the mirror has, whoever does so at the same time. Raises StoreError."""
        body = encode(Commit(self.generation, tuple(segments), wrong, right))
        generation = self.generation + 1
        name = f"{generation:012d}-{named_by_content(body + system.new_id().encode())}"
        self._put(f"commits/{name}", "mirror commit", name, generation, body)
        self.read_index()
        if name not in self.index.counted:
            raise StoreError(f"{self.display_url} doesn't list what was just written there: it can't be a mirror")
        self.write_index(self.index)

    def write_index(self, index: Index) -> None:
        """Write the index: nobody needs it to be the last word, as commits are kept for a day. Raises StoreError."""
        self._put("index", "mirror", self.store_id, self.generation, encode(index))
        self.index = index
        keyring.pin(self.pin, self.store_id, {"index": self.generation})

    def _put(self, path: str, kind: str, name: str, generation: int, body: bytes) -> None:
        mac = self._event_seal(self.store_id).record(kind, name, generation, body)
        self.bucket.put([(path, encode(Head(FORMAT, self.store_id, generation, mac, body)))])

    def _complain(self, line: str) -> None:
        self.problem = line
        if line not in self._named:
            self._named.add(line)
            print(f"jug_notebook: {clean(line)}", file=sys.stderr, flush=True)

    def _skip(self, what: str) -> None:
        """Name what is damaged or forged, once; the rest goes on."""
        self.damaged = True
        line = f"{self.display_url}: {what} is damaged, or not signed with the store's key: left out"
        if line in self._named or len(self._named) > NAMED:
            return
        if len(self._named) == NAMED:
            line = f"{self.display_url}: more is damaged than is named here, and left out"
        self._named.add(line)
        print(f"jug_notebook: {clean(line)}", file=sys.stderr, flush=True)

    # -- results -------------------------------------------------------------------------------------------------------

    def places(self, keys: Sequence[Key] | None = None) -> Mapping[Key, Mapping[bytes, Place]]:
        """Return where results are, by task and inputs: of these tasks, with others, or of all. Raises Unreachable."""
        prefixes = {named.prefix for named in self.index.segments}
        if keys is None:
            wanted = prefixes
        else:
            wanted = {key[:size] for size in {len(prefix) for prefix in prefixes} for key in keys}
        missing = [
            (order, named)
            for order, named in enumerate(self.index.segments)
            if named.name not in self._loaded and named.prefix in wanted
        ]
        parts = [Part(f"segments/{named.name}", 0, named.size) for _, named in missing]
        for (order, named), data in zip(missing, self.bucket.get(parts), strict=True):
            if data is None or named_by_content(data) != named.name:
                self._skip(f"segments/{named.name[:8]}")
                self._loaded[named.name] = order
                continue
            segment = _segment(data)
            self.packs.update(segment.packs)
            for row in segment.rows:
                known = self._places.setdefault(row.key, {})
                if row.inputs not in known or known[row.inputs].order < order:
                    known[row.inputs] = Place(order, segment.packs[row.pack], row)
            self._loaded[named.name] = order  # now that all of it is there, whatever interrupts this
        return self._places

    def find(self, keys: Sequence[Key]) -> list[tuple[Key, Finished]]:
        """Return the results of tasks that are here, verified; of one task there may be several, on other inputs."""
        with self._lock:
            if not keys or not self.look():
                return []
            try:
                known = self.places(keys)
                places = [place for key in keys for place in known.get(key, {}).values()]
                wrong = self.index.wrong
                rows = [p for p in places if (p.row.key, p.row.inputs, p.row.digest) not in wrong]
                found = [(place.row.key, finished) for place, _, finished in self.read(rows)]
            except StoreError as error:
                self._complain(f"{error}; going on without it")
                return []
        return found

    def read(self, places: Sequence[Place]) -> Iterator[tuple[Place, Spec, Finished]]:
        """Yield what is at these places; what is damaged or forged is named and left out. Raises Unreachable."""
        signed = Signed(self.store_id)
        spans = _spans(sorted(places, key=lambda place: (place.pack, place.row.start)))
        for part in _portions(spans):
            for (span, inside), data in zip(part, self.bucket.get([span for span, _ in part]), strict=True):
                for place in inside:
                    try:
                        start = place.row.start - span.start
                        spec, outcome = _entry((data or b"")[start : place.row.end - span.start])
                        yield place, signed.spec(place.row.key, spec), signed.finished(place.row, outcome)
                    except (SignatureError, *UNREADABLE):
                        self._skip(f"the result of task {place.row.key[:8]}")

    def expect(self, upcoming: Callable[[], Iterable[Address]]) -> None:
        """Note what returns the blobs that are likely to be read now, in this order."""
        self.blobs.expect(upcoming)

    def has(self, address: Address) -> bool:
        """Return whether there is a blob of that name. Raises Unreachable."""
        return self.bucket.get([Part(blob_name(address), 0, 1)])[0] is not None


def _spans(places: Sequence[Place]) -> list[tuple[Part, list[Place]]]:
    """Return the parts of packs to fetch, each with what is in it. The places are sorted."""
    spans: list[tuple[Part, list[Place]]] = []
    for pack, group in groupby(places, lambda place: place.pack):
        inside: list[Place] = []
        end = 0
        for place in group:
            if inside and place.row.start - end > GAP:
                spans.append((Part(f"packs/{pack}", inside[0].row.start, end), inside))
                inside = []
            inside.append(place)
            end = max(end, place.row.end)
        spans.append((Part(f"packs/{pack}", inside[0].row.start, end), inside))
    return spans


def _portions(spans: Sequence[tuple[Part, list[Place]]]) -> Iterator[list[tuple[Part, list[Place]]]]:
    """Yield the parts in portions of about `LARGEST` bytes."""
    portion: list[tuple[Part, list[Place]]] = []
    size = 0
    for span, inside in spans:
        if size > LARGEST:
            yield portion
            portion, size = [], 0
        portion.append((span, inside))
        size += (span.end or 0) - span.start
    yield portion


class Signed:
    """Opens and seals what is in the packs of a mirror, with the key of its store: all of round 0."""

    def __init__(self, store_id: str) -> None:
        seal = Seal(keyring.read_secret(store_id), store_id, True) if keyring.read_only(store_id) else None
        seal = seal or Seal(keyring.secret(store_id), store_id)
        self._reader = SignedReader(None, seal)  # type: ignore[arg-type]  # nothing is asked of a store
        self._writer = SignedWriter(seal)

    def spec(self, key: Key, body: bytes) -> Spec:
        """Return a task. Raises SignatureError."""
        return self._reader.spec(key, body)

    def finished(self, row: Row, body: bytes) -> Finished:
        """Return the result that a row names. Raises SignatureError."""
        found = self._reader.result(row.key, body)
        if (found.round, found.inputs, found.digest) != (0, row.inputs, row.digest):
            raise SignatureError("it isn't the result that the index names")
        return found

    def entry(self, spec: Spec, finished: Finished) -> bytes:
        """Return what is written to a pack: the outcome must be of round 0."""
        verdict = Verdict(finished.key, 0, finished.inputs, 0, finished.digest)
        return encode((self._writer.spec(spec), self._writer.settlement(verdict, finished).body))


# -- how a store uses it -----------------------------------------------------------------------------------------------


def is_mirror(url: str) -> bool:
    """Return whether a URL is one of fsspec's, and so a mirror's, not a store's."""
    scheme, found, _ = url.partition("://")
    if not found:
        return False
    if scheme in ("file", "memory"):
        return scheme == "memory" or not exists(url)
    return not is_known(scheme)


def attach(store: Store, url: str, clock: Clock = CLOCK) -> Mirror:
    """Let a store take from a mirror the blobs that it hasn't itself; they are kept in it. Raises StoreError.

    Nothing is read yet. What was attached before is no longer used.
    """
    mirror = Mirror(url, clock)
    get: Callable[..., memoryview] = getattr(store.get_blob, "inner", store.get_blob)

    def lacks(address: Address) -> bool:
        try:
            get(address, True)
        except ValueLost:
            return True
        return False

    def get_blob(address: Address, mapped: bool = False) -> memoryview:
        try:
            return get(address, mapped)
        except ValueLost:
            data = mirror.blobs.get(address, lacks)
            with suppress(StoreError):  # as where there is no room, or only a reading key
                if not store.read_only:
                    store.put_blob([data])
                    return get(address, mapped)
            return data

    get_blob.inner = get  # type: ignore[attr-defined]
    store.get_blob = get_blob  # type: ignore[method-assign]
    store.also = mirror
    return mirror


def detach(store: Store) -> None:
    """Let a store have no mirror."""
    if store.also is not None:
        store.get_blob = getattr(store.get_blob, "inner", store.get_blob)  # type: ignore[method-assign]
        store.also = None


class Bringing:
    """Brings results from a store's mirror into it, as outcomes of its own, for tasks that are submitted."""

    def __init__(self, store: Store, mirror: Mirror, writer: SignedWriter, user: str) -> None:
        self._store, self._mirror, self._writer, self._user = store, mirror, writer, user
        self._me = system.new_id()
        self._found: list[tuple[Key, Finished]] = []

    def before(self, forms: Mapping[Key, bytes]) -> None:
        """Settle those of these tasks, by key with their forms, that the mirror has: before they are submitted."""
        self._forget_wrong()
        keys = list(forms)
        states = self._store.states(keys)
        missing = [key for key, state in zip(keys, states, strict=True) if state not in (State.FINISHED, State.RUNNING)]
        found = self._mirror.find(missing)
        barred = self._store.barred([(forms[key], finished.inputs) for key, finished in found])
        self._found = [one for one, bar in zip(found, barred, strict=True) if not bar]
        self.settle(self._found)
        self._mirror.fetched += len({key for key, _ in self._found})

    def after(self) -> None:
        """Settle, once they are submitted, those of which the store counts later rounds, for they were deleted once."""
        keys = list(dict.fromkeys(key for key, _ in self._found))
        states = dict(zip(keys, self._store.states(keys), strict=True))
        left = [one for one in self._found if states[one[0]] not in (State.FINISHED, State.RUNNING)]
        if left:
            self.settle(left)

    def settle(self, found: Sequence[tuple[Key, Finished]]) -> None:
        """Write results into the store, as outcomes that note where they come from; none that a user may doubt."""
        for part in system.batched(found):
            keys = [key for key, _ in part]
            rows = zip(part, self._store.current_inputs(keys), self._store.invalidations(keys), strict=True)
            settled = []
            for (key, finished), lease, invalidation in rows:
                round = _round(finished, lease, invalidation)
                if round is None:
                    continue
                run = msgspec.structs.replace(finished.run, copied_from=self._mirror.display_url)
                outcome = msgspec.structs.replace(finished, round=round, run=run)
                verdict = Verdict(key, round, finished.inputs, run.attempt, finished.digest, run.started, run.duration)
                settled.append(self._writer.settlement(verdict, outcome))
            if settled:
                self._store.claim(self._me, 0, 0.0, settled)

    def _forget_wrong(self) -> None:
        """Invalidate values that others, who have the key, have declared wrong; not what was computed again here."""
        mirror = self._mirror
        if not mirror.look() or mirror.declared == mirror.generation:
            return
        declared, generation = mirror.index.wrong, mirror.generation
        keys = sorted({key for key, _, _ in declared})
        states = self._store.states(keys)
        known = [key for key, state in zip(keys, states, strict=True) if state is State.FINISHED]
        rows = zip(known, self._store.outcomes(known), self._store.invalidations(known), strict=True)
        doubted = [
            key
            for key, held, invalidation in rows
            if held is not None and invalidation is None and (key, held.verdict.inputs, held.verdict.digest) in declared
        ]
        if doubted:
            self._store.invalidate(doubted, Why.DIRECT, self._user)
            print(
                f"jug_notebook: {len(doubted):,} results here were declared wrong where {mirror.display_url} "
                "comes from, so they are invalidated here, too",
                file=sys.stderr,
            )
        mirror.declared = generation


def _round(finished: Finished, lease: Lease | None, invalidation: Invalidation | None) -> int | None:
    """Return the round in which a result counts; None where a user may have declared an earlier value wrong."""
    if lease is None:
        return None if invalidation is not None else 0
    if lease.inputs != finished.inputs:
        return None
    doubted = invalidation is not None and (invalidation.why is Why.DIRECT or lease.round > 1)
    return None if doubted else lease.round
