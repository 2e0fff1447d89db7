"""Whoever can write to a store without its key, and drop, reorder and send again what is there, changes no result.

What such an attacker can do unseen is here, too, as SECURITY.md names it: cut off what nobody has read yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jug_notebook import system
from jug_notebook.errors import SignatureError, StoreError
from jug_notebook.model import (
    LEASE,
    NO_INPUTS,
    Acceptance,
    Accepted,
    CurrentOutcome,
    Event,
    Finished,
    Invalidated,
    Key,
    Lease,
    Settled,
    State,
    Verdict,
    Why,
)
from jug_notebook.store import Store, keyring, open_store
from jug_notebook.store.file import journal
from jug_notebook.store.redis import frames
from jug_notebook.store.sealing import ATTEMPT, EventSeal
from jug_notebook.store.signed import SignedReader, SignedWriter
from jug_notebook.worker.loop import work
from jug_notebook.worker.status import SharedStatus
from tests.store.test_damage import frames as frames_in
from tests.store.test_redis import admin
from tests.workbench import FakeClock, Need, Submitter

pytestmark = pytest.mark.filterwarnings("ignore:.*is damaged, or someone without the key changed it")


def ahead(key: Key) -> list[Lease]:
    """Rounds and attempts at a task that nobody has made yet."""
    return [Lease(key, round, NO_INPUTS, attempt) for round in range(3) for attempt in range(1, 5)]


def guessed(store_id: str, name: str | bytes) -> list[bytes]:
    """What someone without the key takes for the MAC of a claim."""
    seal = EventSeal(os.urandom(32), store_id)
    return [bytes(ATTEMPT), seal.attempt(name.encode() if isinstance(name, str) else name)]


class Folder:
    """What an attacker can do with the bytes of a store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder)

    @property
    def _log(self) -> Path:
        return max((self.folder / "log").iterdir(), key=lambda log: log.stat().st_size)

    def frames(self) -> list[Any]:
        return frames_in(self._log)

    def write(self, entries: list[Any]) -> None:
        self._log.write_bytes(b"".join(entries))

    def forge(self, store_id: str, event: Event, bodies: list[bytes], seal: EventSeal | None = None) -> None:
        path = self.folder / "log" / "forger-1-abcdef.log"
        sizes = [len(body) for body in bodies]
        chain = journal.Chain(path.name, seal or EventSeal(os.urandom(32), store_id))
        path.write_bytes(chain.frame(journal.content_of(journal.Frame(event, sizes), bodies)))
        os.utime(path, (1, 1))  # or what another machine writes is waited for

    def claim_ahead(self, store_id: str, key: Key, owner: str) -> None:
        for lease in ahead(key):
            name = f"{key}.{lease.round}.{NO_INPUTS.hex()}.{lease.attempt}"
            macs = [f".{mac.hex()}" for mac in guessed(store_id, name)]
            for mac in ("", *macs, *(f".{path.name.rpartition('.')[2]}" for path in self._claims())):
                (self.folder / "claims" / (name + mac)).write_text(owner)

    def _claims(self) -> list[Path]:
        return list((self.folder / "claims").iterdir())

    def usurp(self, owner: str) -> int:
        for path in self._claims():
            path.unlink()
            path.write_text(owner)
        return len(self._claims())

    def copy(self) -> Any:
        return shutil.copytree(self.folder, self.folder.with_name("copy"))

    def put_back(self, copy: Any) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(copy, self.folder)


class Project:
    """What an attacker can do with the bytes of a store in a Redis server."""

    def __init__(self, server: Any) -> None:
        self.url = server.url()
        self._line = admin(server)
        self._name = f"jug:{{{self.url.rpartition('=')[2]}}}:"

    def frames(self) -> list[Any]:
        read = "return redis.call('XRANGE', KEYS[1], '-', '+')"  # its fields as they are: some have equal names
        return [fields for _, fields in self._line.eval(read, 1, self._name + "log")]

    def write(self, entries: list[Any]) -> None:
        self._line.delete(self._name + "log")
        for fields in entries:
            self._line.execute_command("XADD", self._name + "log", "*", *fields)

    def forge(self, store_id: str, event: Event, bodies: list[bytes], seal: EventSeal | None = None) -> None:
        places = [int.from_bytes(os.urandom(8), "big") << 32 for _ in bodies]
        for place, body in zip(places, bodies, strict=True):
            self._line.hset(self._name + "bodies", frames.packed([place]), body)
        chain = frames.Chain(b"forger", seal or EventSeal(os.urandom(32), store_id))
        frame = chain.frame(frames.Frame(frames.packed(places), len(bodies), event))
        self._line.xadd(self._name + "log", {b"forger": frame})

    def claim_ahead(self, store_id: str, key: Key, owner: str) -> None:
        for lease in ahead(key):
            name = f"{key}.{lease.round}.{lease.attempt}.".encode() + NO_INPUTS
            for mac in (b"", *guessed(store_id, name), *(name[-ATTEMPT:] for name in self._claims())):
                self._line.hset(self._name + "claims", name + mac, owner)

    def _claims(self) -> list[bytes]:
        return list(self._line.hkeys(self._name + "claims"))

    def usurp(self, owner: str) -> int:
        for name in self._claims():
            self._line.hset(self._name + "claims", name, owner)
        return len(self._claims())

    def copy(self) -> Any:
        return {name: self._line.dump(name) for name in self._line.keys(self._name + "*")}

    def put_back(self, copy: Any) -> None:
        self._line.flushall()
        for name, data in copy.items():
            self._line.restore(name, 0, data)


Place = Folder | Project


@pytest.fixture(params=["file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Folder(tmp_path / "jugdata")
    return Project(request.getfixturevalue("redis_server"))


@pytest.fixture
def tasks(place: Place, tmp_path: Path) -> Iterator[Submitter]:
    store = open_store(place.url)
    yield Submitter(store, tmp_path)
    with suppress(StoreError):
        store.close()


def run_all(tasks: Submitter) -> int:
    me = system.me("worker")
    tasks.store.renew([me])
    return work(tasks.store, tasks.seal, me, SharedStatus(), until_idle=True)


def seen_afresh(place: Place, tasks: Submitter) -> Submitter:
    """The store as a process sees it that comes later."""
    return Submitter(open_store(place.url), tasks.folder)


def notes(store: Store) -> str:
    return " ".join(note for note in store.snapshot().notes if "append-only" not in note)


def salaries(tasks: Submitter) -> list[Key]:
    """``net(salary(1))`` and ``net(salary(2))``: two calls of one form."""
    salary, net = "def f(n): return 1000 * n", "def f(x): return x // 2"
    return [tasks.submit(net, Need(tasks.submit(salary, n))) for n in (1, 2)]


# -- what fails --------------------------------------------------------------------------------------------------------


def test_a_call_never_gets_the_value_of_another_call_of_its_form(place: Place, tasks: Submitter) -> None:
    one, two = salaries(tasks)
    run_all(tasks)
    first, second = tasks.store.outcomes([one, two])
    assert first is not None
    assert second is not None
    tasks.store.invalidate([two], Why.DIRECT, "ann")
    tasks.store.sync()
    place.write([*place.frames(), *place.frames()[-6:-1]])  # among them what settled it
    forged = Verdict(two, 1, second.verdict.inputs, 1, first.verdict.digest, 1.0)
    place.forge(tasks.store.id, Settled("eve-1-abcdef", [forged]), [first.body])
    later = seen_afresh(place, tasks)
    assert [later.state(key) for key in (one, two)] == [State.FINISHED, State.READY]
    assert run_all(later) == 1
    assert [later.value(key) for key in (one, two)] == [500, 1000]


def test_an_outcome_opens_only_with_the_verdict_that_it_came_with(tasks: Submitter) -> None:
    one, two = salaries(tasks)
    run_all(tasks)
    signed, writer = SignedReader(tasks.store, tasks.seal), SignedWriter(tasks.seal)
    first, second = tasks.store.outcomes([one, two])
    assert first is not None
    assert second is not None
    outcome = signed.outcome(two, second)
    assert isinstance(outcome, Finished)
    other = writer.settlement(second.verdict, msgspec.structs.replace(outcome, digest=first.verdict.digest)).body
    for verdict, body in (
        (second.verdict, first.body),
        (second.verdict, other),  # of another attempt in this round
        (msgspec.structs.replace(second.verdict, digest=first.verdict.digest), second.body),
        (msgspec.structs.replace(second.verdict, digest=b""), second.body),
        (msgspec.structs.replace(second.verdict, round=1), second.body),
        (msgspec.structs.replace(second.verdict, inputs=first.verdict.inputs), second.body),
        (first.verdict, first.body),
    ):
        with pytest.raises(SignatureError):
            signed.outcome(two, CurrentOutcome(verdict, body))


def test_bodies_that_a_server_swaps_are_not_opened(tasks: Submitter, place: Place) -> None:
    if not isinstance(place, Project):
        pytest.skip("in a folder, the bodies of outcomes are inside of frames")
    one, two = salaries(tasks)
    run_all(tasks)
    name = place._name + "bodies"
    helds = tasks.store.outcomes([one, two])
    bodies = {held.body: field for field, body in place._line.hgetall(name).items() for held in helds
              if held is not None and held.body == body}  # fmt: skip
    (first, first_field), (second, second_field) = bodies.items()
    place._line.hset(name, mapping={first_field: second, second_field: first})
    later = seen_afresh(place, tasks)
    for key in (one, two):
        with pytest.raises(SignatureError):
            later.value(key)


def reopened_without(place: Place, number: int, key: str) -> Store:
    """Drop one frame, open the store anew, and look at a task."""
    frames = place.frames()
    place.write([*frames[:number], *frames[number + 1 :]])
    later = open_store(place.url)
    later.states([key])
    return later


def test_an_invalidation_that_was_dropped_from_the_middle_is_missed(place: Place, tasks: Submitter) -> None:
    key = tasks.submit("def f(): return 1")
    run_all(tasks)
    before = len(place.frames())
    tasks.store.invalidate([key], Why.DIRECT, "ann")
    tasks.submit("def f(): return 2")
    tasks.store.sync()
    assert "missing" in notes(reopened_without(place, before, key))


def test_what_settled_a_task_and_is_sent_again_does_not_undo_its_invalidation(place: Place, tasks: Submitter) -> None:
    key = tasks.submit("def f(): return 1")
    run_all(tasks)
    tasks.store.sync()
    settled = place.frames()
    tasks.store.invalidate([key], Why.DIRECT, "ann")
    tasks.store.sync()
    place.write([*place.frames(), *settled])
    assert open_store(place.url).states([key]) == [State.READY]


def accepted(tasks: Submitter) -> tuple[Key, Acceptance, bytes]:
    """A task for which another one's run is accepted."""
    old, new = tasks.submit("def f(): return 1"), "def f(): return 0 + 1"
    run_all(tasks)
    key = tasks.submit(new)
    [held] = tasks.store.outcomes([old])
    assert held is not None
    acceptance = Acceptance(key, 0, NO_INPUTS, old, 0, held.verdict.digest, "code", "ann", 7.0)
    sealed = SignedWriter(tasks.seal).acceptance(acceptance)
    tasks.store.accept([(acceptance, sealed)])
    assert tasks.state(key) is State.FINISHED
    return key, acceptance, sealed


def test_an_acceptance_that_was_undone_and_is_sent_again_stays_undone(place: Place, tasks: Submitter) -> None:
    key, acceptance, sealed = accepted(tasks)
    tasks.store.sync()
    accepting = place.frames()
    tasks.store.accept([(acceptance, sealed)], undone=True)
    tasks.store.sync()
    place.write([*place.frames(), *accepting])
    later = open_store(place.url)
    assert later.states([key]) == [State.READY]
    assert later.outcomes([key]) == later.acceptances([key]) == [None]


def test_an_undone_acceptance_that_was_dropped_from_the_middle_is_missed(place: Place, tasks: Submitter) -> None:
    key, acceptance, sealed = accepted(tasks)
    tasks.store.sync()
    before = len(place.frames())
    tasks.store.accept([(acceptance, sealed)], undone=True)
    tasks.submit("def f(): return 2")
    tasks.store.sync()
    assert "missing" in notes(reopened_without(place, before, key))


def test_forged_invalidations_and_ends_of_acceptances_change_nothing(place: Place, tasks: Submitter) -> None:
    key, by, sealed = accepted(tasks)
    tasks.store.sync()
    undone = Accepted(99, True, "eve", 9.0, [key], [0], [by.inputs], [by.source], [0], [by.digest])
    for event, bodies in (
        (Invalidated([key, by.source], [0, 0], Why.DIRECT, "eve", 1.0), []),
        (Invalidated([key, by.source], [2, 2], Why.LOST, "eve", 1.0), []),
        (undone, [sealed]),
    ):
        place.forge(tasks.store.id, event, bodies)  # type: ignore[arg-type]
        later = seen_afresh(place, tasks)
        assert [later.state(one) for one in (key, by.source)] == [State.FINISHED] * 2
        assert later.value(key) == 1


def test_rounds_that_were_claimed_ahead_bring_no_old_value_back(place: Place, tasks: Submitter) -> None:
    key = tasks.submit("def f(): return 1")
    run_all(tasks)
    [held] = tasks.store.outcomes([key])
    assert held is not None
    place.claim_ahead(tasks.store.id, key, "eve-1-abcdef")
    forged = msgspec.structs.replace(held.verdict, round=1)
    place.forge(tasks.store.id, Settled("eve-1-abcdef", [forged]), [held.body])
    tasks.store.invalidate([key], Why.DIRECT, "ann")
    assert tasks.store.outcomes([key]) == [None]
    assert seen_afresh(place, tasks).state(key) is not State.FINISHED


OWNERS = {"an idle worker": "", "one that has died": "eve-1-abcdef", "nobody": "../../x"}


@pytest.mark.parametrize("owner", OWNERS)
def test_claims_of_who_has_no_key_hold_up_nothing(place: Place, tasks: Submitter, owner: str) -> None:
    key, other = tasks.submit("def f(): return 1"), system.me("worker")
    tasks.store.renew([other])
    place.claim_ahead(tasks.store.id, key, OWNERS[owner] or other.id)
    [claim] = tasks.store.claim(system.me("worker").id, 1, 0.0)
    assert (claim.lease.attempt, claim.deaths) == (1, 0)


@pytest.mark.parametrize("owner", OWNERS)
def test_a_claim_of_which_the_event_was_cut_off_is_no_death_and_holds_for_a_while_at_most(
    place: Place, tasks: Submitter, owner: str
) -> None:
    key, other, worker = tasks.submit("def f(): return 1"), system.me("worker"), system.me("worker")
    tasks.store.renew([other, worker])
    before = place.frames()
    [claim] = tasks.store.claim(worker.id, 1, 0.0)
    place.write(before)
    assert place.usurp(OWNERS[owner] or other.id) == 1
    clock = FakeClock()
    late = open_store(place.url, clock)
    assert late.states([key]) == [State.READY]
    assert late.claim(worker.id, 1, 0.0) == []
    clock.advance(LEASE + 1)
    [again] = late.claim(worker.id, 1, 0.0)
    assert (claim.lease.attempt, again.lease.attempt, again.deaths) == (1, 2, 0)


def test_who_has_seen_more_keeps_it_when_an_older_copy_is_put_back(place: Place, tasks: Submitter) -> None:
    key = tasks.submit("def f(): return 1")
    run_all(tasks)
    tasks.store.sync()
    copy = place.copy()
    tasks.store.invalidate([key], Why.DIRECT, "ann")
    tasks.store.sync()
    place.put_back(copy)
    with suppress(StoreError):
        assert tasks.state(key) is State.READY
        assert tasks.store.outcomes([key]) == [None]


@pytest.mark.parametrize("what", ["its end was cut off", "all of it was removed", "an older copy was put back"])
@pytest.mark.parametrize("who", ["its writer", "another"])
def test_what_is_taken_back_from_the_end_is_missed_by_its_writer_and_by_whoever_came_after_a_reader(
    place: Place, tasks: Submitter, what: str, who: str
) -> None:
    """The writer's account knows how far it had come; a reader's last record says how far it had read."""
    key = tasks.submit("def f(): return 1")
    run_all(tasks)
    tasks.store.sync()
    copy, before = place.copy(), place.frames()
    tasks.store.invalidate([key], Why.DIRECT, "ann")
    tasks.store.sync()
    reader = seen_afresh(place, tasks)
    reader.submit("def f(): return 2")
    reader.store.close()
    if who == "its writer":
        tasks.store.close()
    else:
        keyring.unpin(tasks.store.pin)
    if what == "an older copy was put back":
        if who == "another":
            pytest.skip("the records of its readers are gone, too")
        place.put_back(copy)
    elif isinstance(place, Folder):
        log = place.folder / "log" / tasks.store._writer.log.path.name  # type: ignore[attr-defined]
        log.unlink() if what == "all of it was removed" else log.write_bytes(b"".join(before))
    else:
        own = before[0][0]
        kept = before if what == "its end was cut off" else []
        place.write([*kept, *(entry for entry in place.frames() if entry[0] != own and entry[0][:1] != b"c")])
    later = seen_afresh(place, tasks)
    with pytest.warns(UserWarning, match="the end of 1 of its logs is missing"):
        later.state(key)
    assert "what was invalidated since may count again" in notes(later.store)


def test_a_shell_names_an_older_copy_that_was_put_back_in_one_line(tmp_path: Path) -> None:
    place = Folder(tmp_path / "jugdata")
    tasks = Submitter(open_store(place.url), tmp_path)
    copy = place.copy()
    tasks.submit("def f(): return 1")
    tasks.store.close()
    place.put_back(copy)
    command = [sys.executable, "-m", "jug_notebook", "status", place.url]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    [line] = found.stderr.splitlines()
    assert line.startswith(f"jug-notebook: file:{place.folder}: the end of 1 of its logs is missing (an older copy?)")
    assert "note: " in found.stdout


@pytest.mark.filterwarnings("error::UserWarning")
def test_what_was_compacted_again_and_again_is_not_missed(place: Place, tasks: Submitter) -> None:
    tasks.submit("def f(): return 1")
    run_all(tasks)
    tasks.store.close()
    pinned = keyring.extents(tasks.store.pin)
    assert len(pinned) == 1
    for number in range(3):
        later = seen_afresh(place, tasks)
        later.store.pin = ""  # or it would be its own log that is expected
        later.submit(f"def f(): return {number + 2}")
        run_all(later)
        later.store.close()
        compacting = open_store(place.url)
        compacting.compact()
        compacting.close()
        if isinstance(place, Folder):
            for path in place.folder.glob("seal*/*"):
                os.utime(path, (1, 1))
            with closing(open_store(place.url)) as store:
                store.compact()
    assert keyring.extents(tasks.store.pin) == pinned
    if isinstance(place, Folder):
        assert len(list((place.folder / "sealed").iterdir())) == 1
        assert not any((place.folder / "log").iterdir())
    later = seen_afresh(place, tasks)
    assert len(later.store.tasks()) == 4
    assert notes(later.store) == ""


def test_an_invalidation_that_was_cut_off_holds_once_a_worker_has_begun_to_run_the_task_again(
    place: Place, tasks: Submitter
) -> None:
    key = tasks.submit("def f(): return 1")
    run_all(tasks)
    tasks.store.sync()
    before = place.frames()
    tasks.store.invalidate([key], Why.DIRECT, "ann")
    worker = seen_afresh(place, tasks).store
    me = system.me("worker")
    worker.renew([me])
    assert worker.claim(me.id, 1, 0.0)
    worker.sync()
    if isinstance(place, Folder):
        log = place.folder / "log" / tasks.store._writer.log.path.name  # type: ignore[attr-defined]
        log.write_bytes(b"".join(before))
    else:
        place.write([*before, *place.frames()[len(before) + 1 :]])
    later = seen_afresh(place, tasks)
    assert later.store.outcomes([key]) == [None]
    assert later.state(key) is State.RUNNING


# -- what doesn't ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["its end was cut off", "an older copy was put back"])
def test_what_nobody_has_read_can_be_taken_back_unseen(place: Place, tasks: Submitter, how: str) -> None:
    key = tasks.submit("def f(): return 1")
    run_all(tasks)
    tasks.store.sync()
    copy, before = place.copy(), place.frames()
    tasks.store.invalidate([key], Why.DIRECT, "ann")
    tasks.store.sync()
    assert seen_afresh(place, tasks).state(key) is State.READY
    if how == "its end was cut off":
        place.write(before)
    else:
        place.put_back(copy)
    later = seen_afresh(place, tasks)
    assert later.state(key) is State.FINISHED
    assert notes(later.store) == ""
