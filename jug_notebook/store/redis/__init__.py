"""``redis://[user:password@]host:port/db?project=NAME``: a store in a Redis (6.2 or later) or Valkey server.

Task records, ready queue, leases and counts live in the server, where Lua scripts do what `SchedulerState` does for
other stores; so a worker keeps no state and makes few requests. ``lua/records.lua`` lists the server's keys. Here you
find what each verb hands to its script, and how the reply is read.
"""

from __future__ import annotations

import mmap
import secrets
import select
import struct
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from blake3 import blake3

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import NoSuchTask, ValueLost
from jug_notebook.model import (
    BEAT,
    Acceptance,
    Address,
    Claim,
    Key,
    Lease,
    Order,
    Origin,
    Scope,
    Settlement,
    Snapshot,
    State,
    Submission,
    SubmitReport,
    SweepReport,
    Target,
    Verdict,
    Why,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.store import addresses_in, read_heartbeat, read_orders
from jug_notebook.store.event_log import LATELY
from jug_notebook.store.redis.connection import Connection, new_waiter, packed, place
from jug_notebook.store.redis.queries import BATCH, Queries, inputs_from, inputs_text, without_verdict
from jug_notebook.system import batched

SLICE = 1.0  #: seconds that an idle worker sleeps at most, in case the worker that was woken instead has died
LOOK = 0.005  #: seconds between two looks at the version while something else is waited for, too
PACE = 0.002  #: least seconds between two looks at the version, so that waiting for many tasks doesn't load the server
CHUNK = 16 << 20  #: bytes of a chunk
AT_ONCE = 1 << 16  #: a blob up to this size is sent without asking first whether the server has it
TEMPORARY = 86_400  #: seconds after which a blob that nothing names expires

_numbers = struct.Struct(">IIdd??d").pack


class Scheme:
    """How a URL scheme reaches a server: ``redis://``, over TLS (``rediss://``), or through a socket (``unix://``)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, rest: str, clock: Clock) -> RedisStore:
        """Open the store of that project, making it if it's new."""
        return RedisStore(self.name, rest, clock)

    def exists(self, rest: str) -> bool:
        """Return whether that project exists."""
        return bool(Connection(place(self.name, rest), CLOCK, make=False).id)

    def absolute(self, rest: str) -> str:
        """Return the URL with the project, and absolute paths."""
        return place(self.name, rest).url


SCHEMES = {name: Scheme(name) for name in ("redis", "rediss", "unix")}


class RedisStore(Queries):
    """A project in a Redis server. The verbs are described in `Store`."""

    def __init__(self, scheme: str, rest: str, clock: Clock) -> None:
        where = place(scheme, rest)
        connection = Connection(where, clock)
        super().__init__(connection, clock)
        self._new: dict[str, None] = {}  # keys of blobs that nothing written so far names
        self.url, self.display_url, self.id = where.url, where.display_url, connection.id
        self._me = secrets.token_hex(6)
        self._calls = 0
        self._last_orders: dict[WorkerId, int] = {}
        self._known_targets: set[str] = set()
        self._replays = 0
        self._looked = threading.local()  # when each thread last looked at the version

    def __repr__(self) -> str:
        return f"<RedisStore {self.display_url}>"

    # -- submitting ----------------------------------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], origin: Origin) -> SubmitReport:
        new = finished = 0
        self.check()
        for part in _weighed(submissions):
            functions, rows = _flattened(part)
            blobs = list(self._new)
            _, _, counter, fresh, done = self._connection.write("submit", packed((origin, 0, blobs, functions)), *rows)
            self._connection.remember("submit", packed((origin, counter, blobs, functions)), *rows)
            self._confirm_blobs(blobs)
            new, finished = new + fresh, finished + done
        return SubmitReport(new=new, known=len(submissions) - new - finished, finished=finished)

    def request(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> None:
        for part in batched(keys, BATCH):
            packed_keys = packed(part)
            _, _, counter = self._connection.write("request", packed((origin, 0, wanted)), packed_keys)
            self._connection.remember("request", packed((origin, counter, wanted)), packed_keys)

    # -- running -------------------------------------------------------------------------------------------------------

    def claim(
        self,
        worker: WorkerId,
        limit: int,
        wait: float,
        settled: Sequence[Settlement] = (),
        target: Target | None = None,
        python: str = "",
    ) -> list[Claim]:
        until = self._clock.monotonic() + wait
        label = "" if target is None else self._label(target)
        waited = False
        outcomes: list[Any] = []
        blobs: list[str] = []
        if settled:
            blobs = list(self._new)
            for settlement in settled:
                v = settlement.verdict
                outcomes += (v.key, self.numbers_of(v), inputs_text(v.inputs), v.digest, packed(v), settlement.body)
        while True:
            left = until - self._clock.monotonic()
            self._calls += 1
            this = f"{self._me}{self._calls}"
            args = (worker, max(0, limit), left > 0 and limit > 0, label, python, this, blobs, waited, self.id)
            reply = self._connection.write("claim", packed(args), *outcomes)
            if outcomes:
                self._connection.remember("claim", packed((worker, 0, False, "", "", "", blobs, False)), *outcomes)
                self._confirm_blobs(blobs)
                outcomes, blobs = [], []
            if reply[1] and not reply[5] and limit > 0:
                continue  # settling made tasks ready only after the script had looked for some
            if reply[5] or left <= 0 or limit <= 0:
                return _claims(reply[3], reply[4], reply[5])
            retry = float(reply[2])
            waited = True
            self._connection.wait(worker, min(left, SLICE, retry if retry >= 0 else SLICE))
            self._reap()

    @staticmethod
    def numbers_of(v: Verdict) -> bytes:
        """Return what `claim.lua` reads of a verdict."""
        return _numbers(v.round, v.attempt, v.started, v.duration, v.final, v.died, v.retry_at)

    def _reap(self) -> None:
        """Notice processes of this machine that ended without notice: one worker looks, once a second."""
        name = self._connection.key(f"census:{system.machine()}")
        if self._connection.command("SET", name, 1, "NX", "PX", int(BEAT * 1000)):
            self.processes()

    def release(self, leases: Sequence[Lease]) -> None:
        for part in batched(leases, BATCH):
            rows = (one for g in part for one in (packed((g.key, g.round, g.attempt)), inputs_text(g.inputs)))
            self._connection.write("release", *rows)

    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        if not processes:
            return []
        self.check()
        first = processes[0].id
        last = self._last_orders.get(first, 0)
        rows = [part for info in processes for part in (info.id, packed(info))]
        orders: list[bytes] = []
        for number, order in self._connection.write("renew", last, *rows)[2]:
            if int(number) > last:
                last = self._last_orders[first] = int(number)
                orders.append(order)
        return read_orders(orders, lambda text: self.notice(first, text))

    def leave(self, processes: Sequence[WorkerId]) -> None:
        self.check()
        for part in batched(processes, BATCH):
            self._connection.write("leave", *part)
            self._connection.remember("leave", *part)

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        if supervisors:
            self._connection.write("order", packed(order), *supervisors)

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        found, ended = [], []
        for raw, alive, age in self._connection.run("processes"):
            info = read_heartbeat(raw)
            if info is None:
                continue
            if alive and system.running(info) is False:
                ended.append(info.id)
            alive = alive and system.is_alive(info, float(age))
            if alive or float(age) < LATELY:
                found.append((info, bool(alive), float(age)))
        self.leave(ended)
        return sorted(found, key=lambda item: (item[0].started, item[0].id))

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        kinds, counts, _, _ = self._tallies("" if target is None else self._label(target))
        return not any(
            state is State.RUNNING or (state is State.READY and (target or not python or kinds[kind - 1][2] == python))
            for kind, state, _ in counts
        )

    def _label(self, target: Target) -> str:
        """Return the label that a target's tasks carry; if it is new, they get it now."""
        members = packed((sorted(target.names), sorted(target.keys)))
        label = f"t:{blake3(members).hexdigest(length=10)}"
        if self._replays != self._connection.replays:
            self._replays = self._connection.replays
            self._known_targets.clear()
        if label not in self._known_targets:
            self._connection.write("target", label, members)
            self._known_targets.add(label)
        return label

    # -- looking -------------------------------------------------------------------------------------------------------

    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        return self._snapshot(scope, self.processes())

    def watch(self, seen: int, timeout: float, descriptor: int = -1) -> int:
        until = self._clock.monotonic() + timeout
        early = PACE - (self._clock.monotonic() - getattr(self._looked, "at", 0.0))
        if 0 < early < timeout:
            self._clock.sleep(early)
        waiter = new_waiter() if timeout > 0 else ""
        while True:
            left = until - self._clock.monotonic()
            version: int = self._connection.run("watch", seen, waiter, int(left > 0))
            if version != seen or left <= 0:
                self._looked.at = self._clock.monotonic()
                return version
            if descriptor >= 0:
                if select.select([descriptor], [], [], min(left, LOOK))[0]:
                    return version
            else:
                self._connection.wait(waiter, min(left, 5.0))

    # -- invalidating, accepting ---------------------------------------------------------------------------------------

    def invalidate(self, keys: Sequence[Key], why: Why, user: str) -> list[Key]:
        lost: list[Key] = []
        if len(keys) > BATCH and None in (states := self.states(keys)):
            raise NoSuchTask(f"no task {keys[states.index(None)][:12]} in {self.display_url}")
        args = packed((why.value, user, self._clock.now()))
        for part in batched(list(dict.fromkeys(keys)), BATCH):
            _, _, unknown, rows = self._connection.write("invalidate", args, packed(part))
            if unknown:
                raise NoSuchTask(f"no task {unknown.decode()[:12]} in {self.display_url}")
            if rows:
                events = (one for key, round, inputs, _ in rows for one in (packed((key.decode(), round)), inputs))
                self._connection.remember("invalidate", args, packed(()), *events)
                lost += (key.decode() for key, _, _, asked in rows if asked)
        return lost

    def accept(self, sealed: Sequence[tuple[Acceptance, bytes]], undone: bool = False) -> None:
        for part in batched(sealed, BATCH):
            rows = [
                one
                for a, body in part
                for one in (packed((a.key, a.round, a.source, a.source_round)), inputs_text(a.inputs), a.digest, body)
            ]
            _, _, counter = self._connection.write("accept", packed((0, undone)), *rows)
            self._connection.remember("accept", packed((counter, undone)), *rows)

    # -- cleaning up ---------------------------------------------------------------------------------------------------

    def sweep(
        self, forget: Sequence[Key], keep: Collection[Address], older_than: float, dry_run: bool = False
    ) -> SweepReport:
        before = self._now() - older_than  # before anything else: blobs used from here on stay
        tasks = size = 0
        keep = set(keep)
        for part in batched(list(dict.fromkeys(forget)), 100):
            _, _, count, freed, stay = self._connection.write("forget", packed(part), int(dry_run))
            tasks, size = tasks + count, size + freed
            keep |= self._named_by([key.decode() for key in stay])
        keep |= self._mentioned(forget if dry_run else ())
        blobs, freed = self._drop_blobs(keep, before, dry_run)
        return SweepReport(tasks, blobs, size + freed)

    def _named_by(self, keys: Sequence[Key]) -> set[Address]:
        """Return blobs of tasks that turned out to be wanted again, with those of their functions."""
        specs = [addresses_in(body) for body in self.specs(keys) if body is not None]
        found = set[Address]().union(*specs, *(addresses_in(held.body) for held in self.outcomes(keys) if held))
        for address in set[Address]().union(*specs):
            if int(self._connection.command("HGET", self._connection.key("sizes"), address) or 0) <= CHUNK:
                with suppress(ValueLost):
                    found |= addresses_in(self.get_blob(address))
        return found

    def _mentioned(self, going: Sequence[Key]) -> set[Address]:
        """Return blobs of outcomes that don't hold now but may again: of earlier inputs or rounds."""
        found: set[Address] = set()
        on, forgotten = b"0", packed(list(going))
        while True:
            _, _, on, part = self._connection.read("mentioned", on, forgotten)
            found.update(address.decode() for address in part)
            if on == b"0":
                return found

    def compact(self) -> int:
        return 0  # the server rewrites its own files

    # -- blobs ---------------------------------------------------------------------------------------------------------
    #
    # Large ones are in chunks, so that neither side ever holds several copies. A blob expires after a day unless a task
    # or an outcome is written that may name it, so the blobs of a worker that died before it settled disappear by
    # themselves. Chunks are written first and the blob's own key last: where that is, all is.

    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        pieces = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        size = sum(piece.nbytes for piece in pieces)
        address = system.hashed(pieces).hex()
        chunks = self._connection.run("put", address, size, TEMPORARY) if size > AT_ONCE else -1
        if chunks < 0:
            chunks = self._write(address, size, pieces)
        self._new.update(dict.fromkeys([f"v:{address}", *(f"c:{address}:{i}" for i in range(chunks))]))
        return address

    def _write(self, address: Address, size: int, pieces: list[memoryview]) -> int:
        if size <= CHUNK:
            content = b"".join([b"=", *pieces])
            chunks: int = self._connection.run("put", address, size, TEMPORARY, content)
            if size <= AT_ONCE:
                self._connection.remember("put", address, size, TEMPORARY, content)
            return chunks
        count = 0
        for chunk in _chunks(pieces):
            self._write_chunk(self._connection.key(f"c:{address}:{count}"), chunk)
            count += 1
        self._connection.run("put", address, size, TEMPORARY, b"+%d" % count)
        return count

    def _write_chunk(self, name: str, chunk: bytes | memoryview) -> None:
        """Write it, over an existing one too, but keep that one's expiry: it may have become permanent meanwhile."""
        while not self._connection.command("SET", name, chunk, "NX", "EX", TEMPORARY):
            if self._connection.command("SET", name, chunk, "XX", "KEEPTTL"):
                return

    def get_blob(self, address: Address) -> memoryview:
        found: bytes | None = self._connection.command("GET", self._connection.key(f"v:{address}"))
        if found is None:
            raise ValueLost(f"blob {address[:12]} is missing in {self._connection.display_url}")
        if found.startswith(b"+"):
            return self._gathered(address, int(found[1:]))
        data = memoryview(found)[1:]
        if blake3(data, max_threads=blake3.AUTO).hexdigest(length=20) != address:
            raise self._damaged(address)
        return data

    def map_blob(self, address: Address) -> memoryview:
        view = self.get_blob(address)
        return (system.copied(view) if view.readonly else view).toreadonly()  # the bytes behind a tag are not aligned

    def _gathered(self, address: Address, count: int) -> memoryview:
        size = int(self._connection.command("HGET", self._connection.key("sizes"), address) or 0)
        data = memoryview(mmap.mmap(-1, max(size, 1)))
        hasher = blake3(max_threads=blake3.AUTO)
        at = 0
        for i in range(count):
            chunk: bytes | None = self._connection.command("GET", self._connection.key(f"c:{address}:{i}"))
            if chunk is None or at + len(chunk) > size:
                raise self._damaged(address)
            data[at : at + len(chunk)] = chunk
            hasher.update(chunk)
            at += len(chunk)
        if at != size or hasher.hexdigest(length=20) != address:
            raise self._damaged(address)
        return data

    def _damaged(self, address: Address) -> ValueLost:
        """Delete the blob, so that it is stored again when the value is recomputed, and return the error."""
        self._connection.command("DEL", self._connection.key(f"v:{address}"))
        return ValueLost(f"blob {address[:12]} in {self._connection.display_url} is damaged")

    def _confirm_blobs(self, names: Collection[str]) -> None:
        """Note that these keys were written with something that may name them: they no longer expire."""
        for name in names:
            self._new.pop(name, None)

    def _now(self) -> float:
        """Return the time by the server's clock, in seconds since the epoch."""
        seconds, fraction = self._connection.command("TIME")
        return int(seconds) + int(fraction) / 1e6

    def _drop_blobs(self, keep: Collection[Address], before: float, dry_run: bool) -> tuple[int, int]:
        """Remove blobs not written or used since ``before``. Return how many, and their bytes."""
        found = self._connection.command("ZRANGEBYSCORE", self._connection.key("blobs"), "-inf", before)
        spared = frozenset(keep)
        old = [address for raw in found if (address := raw.decode()) not in spared]
        blobs = size = 0
        for start in range(0, len(old), 1000):
            count, freed = self._connection.run("drop", before, int(dry_run), *old[start : start + 1000])
            blobs, size = blobs + count, size + freed
        return blobs, size

    # -- logs ----------------------------------------------------------------------------------------------------------

    def crowded(self) -> bool:
        return False

    def notice(self, process: WorkerId, text: str) -> None:
        self._connection.run("notice", process, text.encode(errors="replace"))

    def log(self, process: WorkerId) -> str:
        text: bytes = self._connection.command("GET", self._connection.key(f"log:{process}")) or b""
        return text[-(1 << 16) :].decode(errors="replace")

    def sync(self) -> None:
        """Do nothing: the server has confirmed every write, and what it loses in a crash is repeated."""

    def check(self) -> None:
        self._connection.check()

    def close(self) -> None:
        self._connection.close()


# -- arguments and replies of scripts ----------------------------------------------------------------------------------


def _claims(names: Sequence[Any], bodies: Sequence[bytes], rows: Sequence[Any]) -> list[Claim]:
    named = {number: name.decode() for number, name in zip(names[::2], names[1::2], strict=True)}
    claims = []
    for key, round, inputs, attempt, kind, failures, deaths, body, needs in rows:
        aliases = any(len(need) > 1 for need in needs)
        claims.append(
            Claim(
                Lease(key.decode(), round, inputs_from(inputs), attempt),
                named[kind],
                bodies[body],
                tuple([without_verdict(bodies[need[0]]) for need in needs]),
                failures,
                deaths,
                tuple(tuple(bodies[n] for n in need[1:]) for need in needs) if aliases else (),
            )
        )
    return claims


def _weighed(submissions: Sequence[Submission]) -> Iterator[list[Submission]]:
    """Yield parts small enough for one script: a limited number of tasks and needs."""
    part: list[Submission] = []
    weight = 0
    for submission in submissions:
        part.append(submission)
        weight += 1 + len(submission.needs)
        if weight >= BATCH:
            yield part
            part, weight = [], 0
    if part:
        yield part


def _flattened(submissions: Sequence[Submission]) -> tuple[list[tuple[str, int, str]], list[Any]]:
    """Return the functions, and the arguments of `submit.lua` for each task, function by function."""
    functions: dict[tuple[str, int, str], tuple[int, list[Any]]] = {}
    for key, name, needs, form, body, priority, python in map(msgspec.structs.astuple, submissions):
        number, rows = functions.setdefault((name, priority, python), (len(functions) + 1, []))
        rows += (key, number, ",".join(needs), form, body)
    return list(functions), [part for _, rows in functions.values() for part in rows]


def _chunks(pieces: list[memoryview]) -> Iterator[bytes | memoryview]:
    """Yield all bytes in chunks of equal size but the last; copied only where a chunk spans several pieces."""
    rest: list[memoryview] = []
    held = 0
    for piece in pieces:
        while piece.nbytes:
            part, piece = piece[: CHUNK - held], piece[CHUNK - held :]
            rest.append(part)
            held += part.nbytes
            if held == CHUNK:
                yield rest[0] if len(rest) == 1 else b"".join(rest)
                rest, held = [], 0
    if rest:
        yield rest[0] if len(rest) == 1 else b"".join(rest)
