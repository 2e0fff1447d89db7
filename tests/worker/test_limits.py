"""Limits: how many tasks of a store run at a time, or begin in a time, with workers and supervisors that really die."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

from jug_notebook import system
from jug_notebook.errors import BadTask
from jug_notebook.model import Limit, Scope, Settlement, State, Submission, Verdict, parse_limits, with_limits
from jug_notebook.render.tasks import tasks_text
from jug_notebook.session.why import WhyQuery
from jug_notebook.store import Store, open_store
from jug_notebook.store.signed import SignedReader
from jug_notebook.task import task
from tests.workbench import ORIGIN, cell, wait_until
from tests.worker.test_machines import UNSHARE, no_namespaces
from tests.worker.test_supervisor import Site, folder_site, site

__all__ = ["folder_site", "site"]

JOURNAL = """
import fcntl, json, os, time
def note(path, *line):
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps([process(os.getpid()), time.monotonic(), *line]) + "\\n")
def process(pid):
    return os.readlink("/proc/self/ns/pid") + str(pid)
def job(x, path, lasts):
    note(path, x, 1)
    time.sleep(lasts)
    note(path, x, -1)
    return x
"""
LONG = 120.0  #: seconds: longer than any test that doesn't fail
DEATH = -2  #: in a journal: this process was killed


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ("db:4", [Limit("db", 4)]),
        ("api:60/min", [Limit("api", 60, 60)]),
        (("db:4", "api:60/min"), [Limit("api", 60, 60), Limit("db", 4)]),
        ("db:4, api:5/second,api:1000/d", [Limit("api", 5, 1), Limit("api", 1000, 86400), Limit("db", 4)]),
        ((), []),
    ],
)
def test_limits_are_numbers_at_a_time_or_in_a_time(given: object, limits: list[Limit]) -> None:
    assert list(parse_limits(given)) == sorted(limits)
    assert parse_limits([str(limit) for limit in limits]) == parse_limits(parse_limits(given)) == parse_limits(given)


ADVICE = "give a number of tasks at a time, as db:4, or a rate, as api:60/min"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("db", f"limit='db': {ADVICE}"),
        ("db:0", f"limit='db:0': {ADVICE}"),
        ("db:many", f"limit='db:many': {ADVICE}"),
        (4, f"limit=4: {ADVICE}"),
        (("db:4", 4), f"limit=4: {ADVICE}"),
        ("api:60/week", f"limit='api:60/week': {ADVICE} (per s, min, h or day)"),
        ("api:60000/h", "limit='api:60000/h': 10,000 at most; give a rate for a shorter time, as api:60/s"),
        (("db:4", "db:2"), "limit 'db' has two numbers: db:4 and db:2"),
    ],
)
def test_a_slip_in_a_limit_is_one_line(given: Any, line: str) -> None:
    with pytest.raises(BadTask, match=f"^{re.escape(line)}$"):
        task(limit=given)(len)


# -- tokens ------------------------------------------------------------------------------------------------------------


class Claimer:
    """Claims and settles tasks of a store, as a worker does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.id = system.me("worker").id

    def claim(self, limit: int = 5, wait: float = 0.0) -> list[Any]:
        self.store.renew([system.me("worker", id=self.id)])
        return self.store.claim(self.id, limit, wait)

    def settle(self, claim: Any) -> None:
        verdict = Verdict(*[getattr(claim.lease, name) for name in ("key", "round", "inputs", "attempt")], b"value")
        self.store.claim(self.id, 0, 0.0, [Settlement(verdict, b"outcome")])


def submit(store: Store, name: str, count: int, *limits: str) -> list[str]:
    """Submit tasks that need nothing but tokens."""
    keys = [sha1(f"{name} {number}".encode()).hexdigest() for number in range(count)]
    resources = with_limits((), parse_limits(limits))
    store.submit([Submission(key, name, (), b"", b"spec", resources=resources) for key in keys], ORIGIN)
    return keys


def test_tasks_of_a_limit_come_one_at_a_time_with_a_token_each(store: Store) -> None:
    one, other = Claimer(store), Claimer(store)
    keys = submit(store, "f", 5, "db:2")
    held = [*one.claim(), *other.claim()]
    assert [claim.lease.key for claim in held] == keys[:2]
    assert one.claim() == other.claim() == []
    assert store.waits_for(keys) == ["", "", *["db (2 of 2 in use)"] * 3]
    free = submit(store, "free", 1)
    assert [claim.lease.key for claim in one.claim()] == free, "what has no limit is found further back"
    other.settle(held[1])
    assert [claim.lease.key for claim in one.claim()] == keys[2:3]
    one.store.release([held[0].lease])
    assert len(other.claim()) == 1
    assert other.claim() == []


def test_a_claim_whose_worker_died_gives_its_token_back(store: Store) -> None:
    one, other = Claimer(store), Claimer(store)
    submit(store, "f", 3, "db:1")
    assert one.claim()
    assert other.claim() == []
    store.leave([one.id])
    assert other.claim()
    assert other.claim() == []


def test_a_task_has_tokens_of_all_its_limits_or_none(store: Store) -> None:
    worker = Claimer(store)
    both = submit(store, "both", 3, "a:1", "b:2")
    only_a = submit(store, "only a", 1, "a:1")
    only_b = submit(store, "only b", 2, "b:2")
    held = worker.claim()
    assert [claim.lease.key for claim in held] == both[:1]
    [b] = worker.claim()
    assert b.lease.key == only_b[0]
    assert worker.claim() == []
    worker.settle(held[0])
    assert [claim.lease.key for claim in worker.claim()] == both[1:2], "the oldest comes first"
    assert worker.claim() == []
    assert store.waits_for(only_a + only_b[1:]) == ["a (1 of 1 in use)", "b (2 of 2 in use)"]


def test_of_two_numbers_for_one_name_the_smaller_holds_while_its_tasks_are_open(store: Store) -> None:
    worker = Claimer(store)
    large, small = submit(store, "large", 5, "db:3"), submit(store, "small", 1, "db:1")
    [first] = worker.claim()
    assert first.lease.key == large[0]
    assert worker.claim() == []
    assert store.waits_for(large[1:2]) == ["db (1 of 1 in use, as small has it)"]
    store.request(small, ORIGIN, wanted=False)
    assert len([worker.claim(), worker.claim()]) == 2
    assert worker.claim() == []
    assert store.waits_for(large[3:4]) == ["db (3 of 3 in use)"]


def test_a_limit_that_was_removed_or_changed_holds_no_longer(store: Store) -> None:
    worker = Claimer(store)
    submit(store, "f", 4, "db:1")
    assert worker.claim()
    assert worker.claim() == []
    submit(store, "f", 4, "db:2")
    assert worker.claim()
    assert worker.claim() == []
    submit(store, "f", 4)
    assert len(worker.claim()) + len(worker.claim()) == 2


def test_a_rate_counts_from_when_a_task_begins_and_comes_to_an_end_by_the_clock_of_the_store(store: Store) -> None:
    worker = Claimer(store)
    keys = submit(store, "f", 4, "api:2/s")
    first, second = worker.claim(), worker.claim()
    worker.settle(first[0])  # it never began, so that its token is free
    assert first[0].tokens
    store.start(first[0].tokens)
    store.start(second[0].tokens)
    began = time.monotonic()
    assert worker.claim() == []
    assert store.waits_for(keys[2:]) == ["api (2/s: next in 1 s)"] * 2
    assert store.pause is not None
    assert 0 < store.pause <= 1.1
    third = worker.claim(wait=5.0)
    assert third, "it comes without any event"
    assert 1.0 < time.monotonic() - began < 3.0


def test_what_is_known_of_tokens_outlives_compaction(store_url: str) -> None:
    if store_url.startswith("memory"):
        pytest.skip("nothing outlives it")
    store = open_store(store_url)
    worker = Claimer(store)
    keys = submit(store, "f", 6, "db:2", "api:5/h")
    for _ in range(2):
        [claim] = worker.claim()
        store.start(claim.tokens)
        worker.settle(claim)
    [held] = worker.claim()
    store.start(held.tokens)
    store.sync()
    store.compact()
    other = open_store(store_url)
    other.compact()
    late = Claimer(other)
    store.compact()
    [fourth] = late.claim()
    assert late.claim() == []
    assert other.waits_for(keys[4:5]) == ["db (2 of 2 in use)"]
    worker.settle(held)
    late.settle(fourth)
    assert late.claim()
    other.start([])
    assert other.states(keys).count(State.FINISHED) == 4
    store.close()
    other.close()


def test_two_processes_that_claim_at_once_never_have_more_than_there_are(store_url: str) -> None:
    if store_url.startswith("memory"):
        pytest.skip("it has one process")
    stores = [open_store(store_url) for _ in range(3)]
    keys = submit(stores[0], "f", 60, "db:4", "disk:6")
    workers = [Claimer(store) for store in stores for _ in range(3)]
    held: dict[str, list[Any]] = {worker.id: [] for worker in workers}
    dice = random.Random(1)
    done = 0
    for _ in range(2000):
        worker = dice.choice(workers)
        if held[worker.id] and dice.random() < 0.5:
            worker.settle(held[worker.id].pop())
            done += 1
        elif not held[worker.id]:
            held[worker.id] = worker.claim()
        assert sum(map(len, held.values())) <= 4
        if done == len(keys):
            break
    assert done == len(keys)
    for store in stores:
        store.close()


# -- with workers ------------------------------------------------------------------------------------------------------


class Journal:
    """What tasks wrote when they began and ended, and who was killed when."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "journal")
        self.job = cell(JOURNAL, "job")

    def submit(self, site: Site, count: int, lasts: float, *limits: str) -> list[str]:
        resources = with_limits((), parse_limits(limits))
        made = [site.tasks.submission(self.job, x, self.path, lasts, resources=resources) for x in range(count)]
        site.store.submit(made, ORIGIN)
        return [one.key for one in made]

    def kill(self, pid: int) -> None:
        """Kill a process, and note that once it has ended."""
        with_it = [pid, *system.children(pid)]
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + LONG
        while any(system.born(one) is not None for one in with_it):
            assert time.monotonic() < until
            time.sleep(0.001)
        for one in with_it:
            cell(JOURNAL, "note")(self.path, cell(JOURNAL, "process")(one), DEATH)

    def rows(self) -> list[list[Any]]:
        path = Path(self.path)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def most_at_once(self) -> int:
        """Return how many ran at once, at most. Who was killed ran until then."""
        running: set[str] = set()
        most = 0
        for process, _, what, sign in sorted(self.rows(), key=lambda row: row[1]):
            if sign == 1:
                running.add(process)
            else:
                running.discard(what if sign == DEATH else process)
            most = max(most, len(running))
        return most

    def starts(self) -> list[float]:
        return sorted(row[1] for row in self.rows() if row[-1] == 1)


def finish(site: Site, keys: list[str]) -> None:
    """Wait until all tasks have finished."""
    until = time.monotonic() + LONG
    while (finished := site.store.states(keys).count(State.FINISHED)) < len(keys):
        assert time.monotonic() < until, f"{finished} of {len(keys)} finished"
        site.store.watch(site.store.version, 0.2)


def test_at_no_moment_do_more_run_than_the_limit_on_two_hosts_together(site: Site, tmp_path: Path) -> None:
    if reason := no_namespaces():
        pytest.skip(reason)
    journal = Journal(tmp_path)
    for _ in range(2):
        site.supervise(4, within=[*UNSHARE, "--uts"])
    site.until_workers(8)
    keys = journal.submit(site, 100, 0.05, "db:5")
    finish(site, keys)
    assert len(journal.starts()) == 100
    assert journal.most_at_once() == 5
    assert len({row[0].partition("]")[0] for row in journal.rows()}) == 2, "no host has five workers"
    again = journal.submit(site, 100, 0.05, "db:1")
    assert site.store.states(again) == [State.FINISHED] * 100
    assert len(journal.starts()) == 100, "what is stored takes no tokens"


def test_workers_and_supervisors_that_are_killed_leave_no_token_behind(site: Site, tmp_path: Path) -> None:
    journal, dice = Journal(tmp_path), random.Random(2)
    keys = journal.submit(site, 60, 0.05, "db:3")
    supervisors = [site.supervise(4, crew=crew) for crew in "ab"]
    for number in range(8):
        wait_until(site.store, lambda: len(journal.starts()) > 5 * number, "they stand still", LONG)  # noqa: B023
        if number % 4 == 3:
            victim = dice.randrange(2)
            journal.kill(supervisors[victim].pid)
            supervisors[victim].wait()
            supervisors[victim] = site.supervise(4, crew="ab"[victim])
        elif workers := site.alive():
            journal.kill(dice.choice(workers).pid)
    finish(site, keys)
    assert journal.most_at_once() <= 3
    more = journal.submit(site, 63, 0.05, "db:3")
    finish(site, more)
    assert journal.most_at_once() == 3, "no token is lost"


def test_no_second_has_more_starts_than_the_rate_and_the_rate_is_used(site: Site, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    keys = journal.submit(site, 120, 0.01, "api:20/s")
    for crew in "ab":
        site.supervise(4, crew=crew)
    killed = False
    while len(journal.starts()) < 120:
        site.store.watch(site.store.version, 0.1)
        if not killed and len(journal.starts()) > 30 and (workers := site.alive()):
            journal.kill(workers[0].pid)
            killed = True
    finish(site, keys)
    starts = journal.starts()
    assert max(sum(1 for start in starts if first <= start < first + 1) for first in starts) <= 20
    rate = (len(starts) - 20) / (starts[-1] - starts[0])
    assert rate >= 16, "four fifths of it"


def test_status_listing_and_why_tell_what_a_task_waits_for(site: Site, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    keys = journal.submit(site, 4, LONG, "db:2")
    site.supervise(4)
    wait_until(site.store, lambda: len(journal.starts()) == 2, "two never began", LONG)
    snapshot = site.store.snapshot()
    assert snapshot.shortage == "2 tasks wait for db (2 of 2 in use)"
    assert snapshot.counts[State.RUNNING] == snapshot.counts[State.READY] == 2
    reader = SignedReader(site.store, site.tasks.seal)
    waiting = [key for key, state in zip(keys, site.store.states(keys), strict=True) if state is State.READY]
    why = WhyQuery(reader, Scope(), lambda _: ()).explain(waiting)
    assert {explanation.reasons[0].line for explanation in why} == {"waits for db (2 of 2 in use)"}
    listing = tasks_text(site.store.tasks(), 4)
    assert listing.count("waits for db (2 of 2 in use)") == 2
