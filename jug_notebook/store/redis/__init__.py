"""``redis://[user:password@]host:port/db?project=NAME``: a store in a Redis (6.2 or later) or Valkey server.

What the `SchedulerState` is to other stores, here is the server's: cards, ready queue, leases and counts live there,
so a worker
keeps nothing and asks little. `lua/cards.lua` lists the keys. Here is only what each verb says to its script, and how
the answer is read.
"""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from blake3 import blake3

from jug_notebook import system as process
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import NoSuchTask, ValueLost
from jug_notebook.model import (
    BEAT,
    NO_INPUTS,
    Acceptance,
    Address,
    Attempt,
    Claim,
    CurrentOutcome,
    FunctionView,
    Invalidation,
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
    TaskView,
    Verdict,
    Why,
    WorkerId,
    WorkerInfo,
    WorkerView,
)
from jug_notebook.store import addresses_in
from jug_notebook.store.event_log import LATELY, starting
from jug_notebook.store.redis.blobs import CHUNK, Chunks
from jug_notebook.store.redis.connection import Link, new_waiter, packed, place

BATCH = 500  #: tasks, with what they need, in one script
PAGE = 100  #: attempts that ended, with what they came to, in one answer
SLICE = 1.0  #: seconds for which an idle worker sleeps at most; should a call to wake have been for one that died
PACE = 0.002  #: seconds between two looks at the news: who waits for many tasks isn't to keep the server from them
STATES = list(State)
REUSED = len(STATES)

_numbers = struct.Struct(">IIdd??d").pack
_verdict = msgspec.msgpack.Decoder(Verdict)
_info = msgspec.msgpack.Decoder(WorkerInfo)


class Scheme:
    """How a scheme of URLs reaches a server: ``redis://``, over TLS (``rediss://``), or through a socket (``unix://``)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, rest: str, clock: Clock) -> RedisStore:
        """Open the store of that project, making it if it's new."""
        return RedisStore(self.name, rest, clock)

    def exists(self, rest: str) -> bool:
        """Is that project there?"""
        return bool(Link(place(self.name, rest), CLOCK, make=False).id)

    def absolute(self, rest: str) -> str:
        """The URL with the project, and absolute paths."""
        return place(self.name, rest).url


SCHEMES = {name: Scheme(name) for name in ("redis", "rediss", "unix")}


class RedisStore(Chunks):
    def __init__(self, scheme: str, rest: str, clock: Clock) -> None:
        where = place(scheme, rest)
        super().__init__(Link(where, clock))
        self.url, self.display_url, self.id = where.url, where.display_url, self._link.id
        self._clock = clock
        self._me = secrets.token_hex(6)
        self._calls = 0
        self._heard: dict[WorkerId, int] = {}
        self._known_targets: set[str] = set()
        self._renewed = 0
        self._looked = threading.local()  # when each thread saw news last

    def __repr__(self) -> str:
        return f"<RedisStore {self.display_url}>"

    # -- submitting ----------------------------------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], origin: Origin) -> SubmitReport:
        new = finished = 0
        for part in _weighed(submissions):
            functions, rows = _flattened(part)
            blobs = self._unkept()
            _, _, counter, fresh, done = self._link.change("submit", packed((origin, 0, blobs, functions)), *rows)
            self._link.tell("submit", packed((origin, counter, blobs, functions)), *rows)
            self._kept(blobs)
            new, finished = new + fresh, finished + done
        return SubmitReport(new=new, known=len(submissions) - new - finished, finished=finished)

    def request(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> None:
        for part in _parts(keys):
            said = packed(part)
            _, _, counter = self._link.change("request", packed((origin, 0, wanted)), said)
            self._link.tell("request", packed((origin, counter, wanted)), said)

    def requested(self, origin: Origin) -> list[Key]:
        return [key.decode() for key in self._link.ask("requested", packed(origin))[2]]

    def origins(self) -> list[Origin]:
        return [Origin(*(part.decode() for part in row)) for row in self._link.ask("origins")[2]]

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
            blobs = self._unkept()
            for settlement in settled:
                v = settlement.verdict
                outcomes += (v.key, self.numbers_of(v), _named(v.inputs), v.digest, packed(v), settlement.body)
        while True:
            left = until - self._clock.monotonic()
            self._calls += 1
            this = f"{self._me}{self._calls}"
            said = (worker, max(0, limit), left > 0 and limit > 0, label, python, this, blobs, waited)
            reply = self._link.change("claim", packed(said), *outcomes)
            if outcomes:
                self._link.tell("claim", packed((worker, 0, False, "", "", "", blobs, False)), *outcomes)
                self._kept(blobs)
                outcomes, blobs = [], []
            if reply[1] and not reply[5] and limit > 0:
                continue  # what followed from what was settled came only after we had asked
            if reply[5] or left <= 0 or limit <= 0:
                return _claims(reply[3], reply[4], reply[5])
            retry = float(reply[2])
            waited = True
            self._link.wait(worker, min(left, SLICE, retry if retry >= 0 else SLICE))
            self._look_for_the_dead()

    @staticmethod
    def numbers_of(v: Verdict) -> bytes:
        """What `claim.lua` reads of a verdict."""
        return _numbers(v.round, v.attempt, v.started, v.duration, v.final, v.died, v.retry_at)

    def _look_for_the_dead(self) -> None:
        """One worker of a machine, once a second: who of its processes has ended, and nobody said so?"""
        name = self._link.key(f"census:{process.machine()}")
        if self._link.do("SET", name, 1, "NX", "PX", int(BEAT * 1000)):
            self.processes()

    def release(self, leases: Sequence[Lease]) -> None:
        for part in _parts(leases):
            said = (one for g in part for one in (packed((g.key, g.round, g.attempt)), _named(g.inputs)))
            self._link.change("release", *said)

    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        if not processes:
            return []
        first = processes[0].id
        heard = self._heard.get(first, 0)
        said = [part for info in processes for part in (info.id, packed(info))]
        orders = []
        for number, order in self._link.change("renew", heard, *said)[2]:
            if int(number) > heard:
                heard = self._heard[first] = int(number)
                orders.append(msgspec.msgpack.decode(order, type=Order))
        return orders

    def leave(self, processes: Sequence[WorkerId]) -> None:
        for part in _parts(processes):
            self._link.change("leave", *part)
            self._link.tell("leave", *part)

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        if supervisors:
            self._link.change("order", packed(order), *supervisors)

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        found, ended = [], []
        for raw, alive, age in self._link.run("processes"):
            info = _info.decode(raw)
            if alive and process.running(info) is False:
                ended.append(info.id)
                alive = False
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

    def foreign(self, python: str) -> dict[str, int]:
        kinds, counts, _, _ = self._tallies("")
        found: dict[str, int] = {}
        for kind, state, count in counts:
            if state is State.READY and kinds[kind - 1][2] != python:
                found[kinds[kind - 1][2]] = found.get(kinds[kind - 1][2], 0) + count
        return found

    def _label(self, target: Target) -> str:
        """The label that a target's tasks carry; from now on, if it is new."""
        told = (sorted(target.names), sorted(target.keys))
        label = f"t:{blake3(packed(told)).hexdigest(length=10)}"
        if self._renewed != self._link.renewed:
            self._renewed = self._link.renewed
            self._known_targets.clear()
        if label not in self._known_targets:
            self._link.change("target", label, packed(told))
            self._known_targets.add(label)
        return label

    # -- looking -------------------------------------------------------------------------------------------------------

    def states(self, keys: Sequence[Key]) -> list[State | None]:
        return [
            STATES[state] if state >= 0 else None
            for part in _parts(keys)
            for state in self._link.ask("states", packed(part))[2]
        ]

    def specs(self, keys: Sequence[Key]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for part in _parts(keys):
            found += self._link.do("HMGET", self._link.key("s"), *part)
        return found

    def outcomes(self, keys: Sequence[Key]) -> list[CurrentOutcome | None]:
        found: list[CurrentOutcome | None] = []
        for part in _parts(keys, 1000):
            _, _, bodies, reused_from, more = self._link.ask("outcomes", packed(part))
            proofs = {index: tuple(more[number] for number in numbers) for index, *numbers in reused_from}
            found += [None if body is None else _held(body, proofs.get(index, ())) for index, body in enumerate(bodies)]
        return found

    def blocking_tasks(self, keys: Sequence[Key]) -> list[Key | None]:
        found: list[Key | None] = []
        for key in keys:
            said, on = key, 1
            while on:
                _, _, raw, on = self._link.ask("blocking_task", said)
                said = raw.decode()
            found.append(said or None)
        return found

    def runs(self, scope: Scope = Scope(), limit: int = 0) -> tuple[list[Attempt], int]:
        found: dict[bytes, Attempt] = {}
        total = start = 0
        while start >= 0 and not (limit and len(found) >= limit):
            size = min(PAGE, limit - len(found)) if limit else PAGE
            _, _, total, bodies, rows, start = self._link.ask("runs", packed((_label_of(scope), start, size)))
            for row, counts in rows:
                if bodies[row] is not None:  # one that has moved on is told once
                    held = _held(bodies[row], ())
                    found.setdefault(bodies[row], Attempt(held.verdict, held.body, bool(counts)))
            if len(found) >= total:
                break
        return list(found.values()), total

    def keys_named(self, name: str, scope: Scope = Scope()) -> list[Key]:
        return [view.key for _, view in sorted(self._listed(scope, frozenset([name])), key=_by_number)]

    def edges(self, scope: Scope = Scope()) -> list[tuple[str, str, int]]:
        kinds = self._kinds()
        counts: dict[tuple[str, str], int] = {}
        firsts: dict[tuple[str, str], int] = {}
        for number, (name, _, _) in enumerate(kinds, 1):
            on = -1
            while True:
                _, _, rows, on = self._link.ask("edges", packed((number, on, _label_of(scope))))
                for needed, first, count in rows:
                    pair = (name, kinds[needed - 1][0])
                    counts[pair] = counts.get(pair, 0) + count
                    firsts[pair] = min(firsts.get(pair, first), first)
                if on < 0:
                    break
        return [(*pair, counts[pair]) for pair in sorted(counts, key=firsts.__getitem__)]

    def tasks(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None, limit: int = 0
    ) -> list[TaskView]:
        if state is State.FAILED and target is None:
            return self._failed(scope, limit)
        found = dict[Key, tuple[int, TaskView]]()
        if target is None or target.names:
            for number, view in self._listed(scope, None if target is None else target.names, state):
                found[view.key] = (number, view)
        for number, view in self._viewed(list(target.keys) if target else [], scope, state):
            found[view.key] = (number, view)
        views = [view for _, view in sorted(found.values(), key=_by_number)]
        if state is State.FAILED:
            views.sort(key=_ended, reverse=True)
        return views[:limit] if limit else views

    def _failed(self, scope: Scope, limit: int) -> list[TaskView]:
        keys: list[Key] = []
        start, more = 0, 1
        while more and not (limit and len(keys) >= limit):
            _, _, part, more = self._link.ask("failed", packed((_label_of(scope), start, BATCH)))
            start += BATCH
            keys += (key.decode() for key in part)
        views = [view for _, view in self._viewed(keys[:limit] if limit else keys, scope, State.FAILED)]
        return sorted(views, key=_ended, reverse=True)

    def _listed(
        self, scope: Scope, names: Collection[str] | None, state: State | None = None
    ) -> Iterator[tuple[int, TaskView]]:
        """Tasks of these functions, with their numbers."""
        kinds = self._kinds()
        wanted = -1 if state is None else STATES.index(state)
        for number, (name, _, _) in enumerate(kinds, 1):
            on = -1
            while names is None or name in names:
                _, _, rows, on = self._link.ask("views", packed((False, number, on, _label_of(scope), wanted)))
                yield from (_view(row, kinds) for row in rows)
                if on < 0:
                    break

    def _viewed(self, keys: Sequence[Key], scope: Scope, state: State | None) -> Iterator[tuple[int, TaskView]]:
        wanted = -1 if state is None else STATES.index(state)
        for part in _parts(keys):
            rows = self._link.ask("views", packed((part, 0, 0, _label_of(scope), wanted)))[2]
            kinds = self._kinds() if rows else []
            yield from (_view(row, kinds) for row in rows)

    def _kinds(self) -> list[tuple[str, int, str]]:
        return self._tallies("")[0]

    def _tallies(
        self, label: str, asked: Sequence[tuple[WorkerId, Key]] = ()
    ) -> tuple[list[tuple[str, int, str]], list[tuple[int, State | None, int]], dict[str, float], list[Any]]:
        """Functions; (function, state or None for reused, how many); how they fare; and what workers do."""
        _, _, kinds, stats, counts, busy = self._link.ask("tallies", label, packed(asked))
        return (
            [(name.decode(), priority, python.decode()) for name, priority, python in kinds],
            [(kind, None if state == REUSED else STATES[state], count) for kind, state, count in counts],
            {name.decode(): float(number) for name, number in zip(stats[::2], stats[1::2], strict=True)},
            busy,
        )

    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        processes = self.processes()
        asked = [(info.id, info.task) for info, _, _ in processes]
        kinds, counted, stats, busy = self._tallies(_label_of(scope), asked)
        now = self._clock.now()
        processes = [
            (_up_to_date(info, row, now - age), alive, age)
            for (info, alive, age), row in zip(processes, busy, strict=True)
        ]
        counts: dict[str, dict[State, int]] = {name: {} for name, _, _ in kinds}
        reused = dict.fromkeys(counts, 0)
        for kind, state, count in counted:
            name = kinds[kind - 1][0]
            if state is None:
                reused[name] += count
            shown = state or State.FINISHED
            counts[name][shown] = counts[name].get(shown, 0) + count
        done, spent = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0)
        for number, (name, _, _) in enumerate(kinds, 1):
            done[name] += stats.get(f"{number}:done", 0.0)
            spent[name] += stats.get(f"{number}:spent", 0.0)
        notes = (f"{info.where}: {info.note}" for info, alive, _ in processes if alive and info.note)
        return Snapshot(
            store=self.display_url,
            at=now,
            scope="whole store" if scope.notebook is None else "this notebook",
            functions=tuple(
                FunctionView(
                    name,
                    {state: by_state[state] for state in STATES if state in by_state},
                    spent[name] / done[name] if done[name] else None,
                    reused[name],
                )
                for name, by_state in counts.items()
                if by_state
            ),
            workers=tuple(
                WorkerView(info, alive, age)
                for info, alive, age in processes
                if info.kind == "worker" and (alive or age < LATELY)
            ),
            notes=tuple(dict.fromkeys((*self._link.notes, *notes))),
            starting=starting(processes),
        )

    def watch(self, seen: int, timeout: float) -> int:
        until = self._clock.monotonic() + timeout
        early = PACE - (self._clock.monotonic() - getattr(self._looked, "at", 0.0))
        if 0 < early < timeout:
            self._clock.sleep(early)
        waiter = new_waiter() if timeout > 0 else ""
        while True:
            left = until - self._clock.monotonic()
            version: int = self._link.run("watch", seen, waiter, int(left > 0))
            if version != seen or left <= 0:
                self._looked.at = self._clock.monotonic()
                return version
            self._link.wait(waiter, min(left, 5.0))

    # -- taking back, taking over --------------------------------------------------------------------------------------

    def invalidate(self, keys: Sequence[Key], why: Why, user: str) -> list[Key]:
        lost: list[Key] = []
        if len(keys) > BATCH and None in (states := self.states(keys)):
            raise NoSuchTask(f"no task {keys[states.index(None)][:12]} in {self.display_url}")
        told = packed((why.value, user, self._clock.now()))
        for part in _parts(list(dict.fromkeys(keys))):
            _, _, unknown, rows = self._link.change("invalidate", told, packed(part))
            if unknown:
                raise NoSuchTask(f"no task {unknown.decode()[:12]} in {self.display_url}")
            if rows:
                events = (one for key, round, inputs, _ in rows for one in (packed((key.decode(), round)), inputs))
                self._link.tell("invalidate", told, packed(()), *events)
                lost += (key.decode() for key, _, _, asked in rows if asked)
        return lost

    def invalidations(self, keys: Sequence[Key]) -> list[Invalidation | None]:
        return [
            Invalidation(row[0], float(row[1]), row[2].decode(), Why(row[3].decode())) if row else None
            for part in _parts(keys)
            for row in self._link.ask("invalidations", packed(part))[2]
        ]

    def current_inputs(self, keys: Sequence[Key]) -> list[Lease | None]:
        found: list[Lease | None] = []
        for part in _parts(keys):
            rows = self._link.ask("current_inputs", packed(part))[2]
            for key, row in zip(part, rows, strict=True):
                found.append(Lease(key, row[0], _inputs(row[1]), 0) if row else None)
        return found

    def accept(self, sealed: Sequence[tuple[Acceptance, bytes]], undone: bool = False) -> None:
        for part in _parts(sealed):
            said = [
                one
                for a, body in part
                for one in (packed((a.key, a.round, a.source, a.source_round)), _named(a.inputs), a.digest, body)
            ]
            _, _, counter = self._link.change("accept", packed((0, undone)), *said)
            self._link.tell("accept", packed((counter, undone)), *said)

    def acceptances(self, keys: Sequence[Key]) -> list[bytes | None]:
        return [
            row[0] if row else None for part in _parts(keys) for row in self._link.ask("acceptances", packed(part))[2]
        ]

    # -- tidying up ----------------------------------------------------------------------------------------------------

    def sweep(
        self, forget: Sequence[Key], keep: Collection[Address], older_than: float, dry_run: bool = False
    ) -> SweepReport:
        before = self._now() - older_than  # first of all: what is touched from here on stays
        tasks = size = 0
        keep = set(keep)
        for part in _parts(list(dict.fromkeys(forget)), 100):
            _, _, count, freed, stay = self._link.change("forget", packed(part), int(dry_run))
            tasks, size = tasks + count, size + freed
            keep |= self._named_by([key.decode() for key in stay])
        keep |= self._mentioned(forget if dry_run else ())
        blobs, freed = self._drop_blobs(keep, before, dry_run)
        return SweepReport(tasks, blobs, size + freed)

    def _named_by(self, keys: Sequence[Key]) -> set[Address]:
        """Blobs of tasks that were to be forgotten and are wanted again, and what came with their functions."""
        specs = [addresses_in(body) for body in self.specs(keys) if body is not None]
        found = set[Address]().union(*specs, *(addresses_in(held.body) for held in self.outcomes(keys) if held))
        for address in set[Address]().union(*specs):
            if int(self._link.do("HGET", self._link.key("sizes"), address) or 0) <= CHUNK:
                with suppress(ValueLost):
                    found |= addresses_in(self.get_blob(address))
        return found

    def _mentioned(self, going: Sequence[Key]) -> set[Address]:
        """Blobs of outcomes that don't hold, and may again: of tasks that fell back, or ran before."""
        found: set[Address] = set()
        on, said = b"0", packed(list(going))
        while True:
            _, _, on, part = self._link.ask("mentioned", on, said)
            found.update(address.decode() for address in part)
            if on == b"0":
                return found

    def compact(self) -> int:
        return 0  # the server rewrites its own files

    # -- what is printed -----------------------------------------------------------------------------------------------

    def crowded(self) -> bool:
        return False

    def notice(self, process: WorkerId, text: str) -> None:
        self._link.run("notice", process, text.encode(errors="replace"))

    def log(self, process: WorkerId) -> str:
        text: bytes = self._link.do("GET", self._link.key(f"log:{process}")) or b""
        return text[-(1 << 16) :].decode(errors="replace")

    def sync(self) -> None:
        """The server took in what it was told, and what it may yet lose it is told again."""

    def close(self) -> None:
        self._link.close()


# -- reading answers ---------------------------------------------------------------------------------------------------


def _claims(names: Sequence[Any], bodies: Sequence[bytes], rows: Sequence[Any]) -> list[Claim]:
    named = {number: name.decode() for number, name in zip(names[::2], names[1::2], strict=True)}
    claims = []
    for key, round, inputs, attempt, kind, failures, deaths, body, needs in rows:
        aliases = any(len(need) > 1 for need in needs)
        claims.append(
            Claim(
                Lease(key.decode(), round, _inputs(inputs), attempt),
                named[kind],
                bodies[body],
                tuple([_sealed(bodies[need[0]]) for need in needs]),
                failures,
                deaths,
                tuple(tuple(bodies[n] for n in need[1:]) for need in needs) if aliases else (),
            )
        )
    return claims


def _named(inputs: bytes) -> str:
    """Inputs as scripts write them."""
    return "-" if inputs == NO_INPUTS else inputs.hex()


def _inputs(named: bytes) -> bytes:
    return NO_INPUTS if named == b"-" else bytes.fromhex(named.decode())


def _held(body: bytes, proof: tuple[bytes, ...]) -> CurrentOutcome:
    size = 2 + int.from_bytes(body[:2], "big")
    return CurrentOutcome(_verdict.decode(body[2:size]), body[size:], proof)


def _sealed(body: bytes) -> bytes:
    """An outcome without its verdict."""
    return body[2 + int.from_bytes(body[:2], "big") :]


def _view(row: Sequence[Any], kinds: Sequence[tuple[str, int, str]]) -> tuple[int, TaskView]:
    key, kind, number, state, worker, started, duration, attempt, whose = row
    return number, TaskView(
        key.decode(), kinds[kind - 1][0], STATES[state], worker.decode(), float(started), float(duration), attempt,
        source=whose.decode(),
    )  # fmt: skip


def _up_to_date(info: WorkerInfo, row: Sequence[Any], beat: float) -> WorkerInfo:
    """A beat is up to a second old; the server may know better what a worker has done and what it no longer runs.

    When what it runs now began nobody told: it was after its last ``beat``, and after its last run had ended.
    """
    done, task, name, differs, ended = row
    done = max(info.done, done)
    if not differs:
        return msgspec.structs.replace(info, done=done)
    since = max(beat, float(ended)) if task else 0.0
    return msgspec.structs.replace(
        info, done=done, task=task.decode(), task_name=name.decode(), since=since, progress=(0, 0)
    )


def _label_of(scope: Scope) -> str:
    return "" if scope.notebook is None else f"n:{scope.notebook}"


def _by_number(item: tuple[int, TaskView]) -> int:
    return item[0]


def _ended(view: TaskView) -> float:
    return view.started + view.duration


def _weighed(submissions: Sequence[Submission]) -> Iterator[list[Submission]]:
    """Parts that a script can take in: tasks and what they need are not too many."""
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
    """The functions, and what `submit.lua` takes of each task: function by function."""
    functions: dict[tuple[str, int, str], tuple[int, list[Any]]] = {}
    for key, name, needs, form, body, priority, python in map(msgspec.structs.astuple, submissions):
        number, rows = functions.setdefault((name, priority, python), (len(functions) + 1, []))
        rows += (key, number, ",".join(needs), form, body)
    return list(functions), [part for _, rows in functions.values() for part in rows]


def _parts(items: Sequence[Any], size: int = BATCH) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
