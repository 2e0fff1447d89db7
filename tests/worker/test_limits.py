"""Limits: how many tasks of a store run at a time, or begin in a time, with workers and supervisors that really die."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.clock import SystemClock
from jug_notebook.errors import BadTask
from jug_notebook.model import Limit, Scope, Settlement, State, Submission, Verdict, parse_limits, with_limits
from jug_notebook.render.summary import plain
from jug_notebook.render.tasks import tasks_text
from jug_notebook.session.why import WhyQuery
from jug_notebook.store import Store, open_store
from jug_notebook.store.signed import SignedReader
from jug_notebook.task import task
from tests.servers import Server
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


def test_none_begins_under_a_smaller_number_until_fewer_run_than_it_allows(store: Store) -> None:
    worker = Claimer(store)
    large = submit(store, "large", 6, "db:4")
    held = [claim for _ in range(4) for claim in worker.claim()]
    small = submit(store, "small", 2, "db:2")
    assert store.waits_for([large[5], small[0]]) == ["db (4 of 2 in use, as small has it)", "db (4 of 2 in use)"]
    running = {claim.lease.key: claim for claim in held}
    for key in (large[0], large[3]):
        worker.settle(running.pop(key))
        assert worker.claim() == []
    while running:
        worker.settle(running.popitem()[1])
        running |= {claim.lease.key: claim for claim in worker.claim()}
        assert len(running) <= 2
    assert store.states([*large, *small]).count(State.FINISHED) == 8
    assert store.limits() == {}


def test_a_smaller_rate_counts_what_began_under_the_larger_one(store: Store) -> None:
    worker = Claimer(store)
    submit(store, "large", 5, "api:4/h")
    for _ in range(3):
        [claim] = worker.claim()
        store.start(claim.tokens)
        worker.settle(claim)
    small = submit(store, "small", 2, "api:2/h")
    assert worker.claim() == []
    assert store.waits_for(small)[0] == "api (2/h: next in 3600 s)"
    assert store.beyond_limits() == {"large": 2, "small": 2}
    [view] = store.limits()["large"]
    assert (view.number, view.given, view.used, len(view.waits)) == (2, 4, 3, 2)


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

    def kill(self, pid: int, *others: str) -> None:
        """Kill a process, and note that once it has ended; with it others end, which are named as in the journal."""
        with_it = [pid, *system.children(pid)]
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + LONG
        while any(system.born(one) is not None for one in with_it):
            assert time.monotonic() < until
            time.sleep(0.001)
        for name in [*map(cell(JOURNAL, "process"), with_it), *others]:
            cell(JOURNAL, "note")(self.path, name, DEATH)

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
    """Wait until all tasks have finished, but those in which too many workers were killed."""
    until = time.monotonic() + LONG
    while left := sum(not state.settled for state in site.store.states(keys) if state):
        assert time.monotonic() < until, f"{left} of {len(keys)} have not finished"
        site.store.watch(site.store.version, 0.2)
    failed = [key for key, state in zip(keys, site.store.states(keys), strict=True) if state is State.FAILED]
    assert all(site.tasks.failure(key).kind == "poison" for key in failed)


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


@pytest.fixture
def both_sites(tmp_path: Path, redis_server: Server) -> Iterator[list[Site]]:
    """A site of each kind of store: what waits for a lease waits once for both."""
    made = []
    for name, url in (("file", f"file:{tmp_path}/file/jugdata"), ("redis", redis_server.url())):
        (tmp_path / name).mkdir()
        made.append(Site(tmp_path / name, url))
    yield made
    for one in made:
        one.end()


def kill_a_host(at: Site) -> tuple[Journal, list[str]]:
    """Kill a host that runs three tasks of nine, start another, and return the journal and the tasks' keys."""
    journal = Journal(at.folder)
    keys = journal.submit(at, 9, 2.0, "db:3")
    host = at.supervise(4, within=[*UNSHARE, "--uts"])
    wait_until(at.store, lambda: len(journal.starts()) == 3, "three never began", LONG)
    journal.kill(host.pid, *{row[0] for row in journal.rows()})
    at.supervise(4, within=[*UNSHARE, "--uts"])
    wait_until(at.store, lambda: len(at.alive()) >= 4, "no other host came", LONG)
    return journal, keys


def test_a_host_that_dies_with_all_its_processes_leaves_no_token_behind(both_sites: list[Site]) -> None:
    if reason := no_namespaces():
        pytest.skip(reason)
    for at, (journal, keys) in [(one, kill_a_host(one)) for one in both_sites]:
        finish(at, keys)
        assert journal.most_at_once() == 3
        assert 9 <= len(journal.starts()) <= 9 + 3, "what the dead host had begun ran again, and nothing else"


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
    rate = (100 - 20) / (starts[99] - starts[0])  # the last one may be the killed one's, once its death is noticed
    assert rate >= 10, "half of it, on a machine that is busy"


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


# -- beside everything else --------------------------------------------------------------------------------------------


class Ahead(SystemClock):
    """The clock of a host that is an hour ahead."""

    @staticmethod
    def now() -> float:
        return time.time() + 3600


def test_a_rate_holds_between_hosts_whose_clocks_are_an_hour_apart(store_url: str) -> None:
    if store_url.startswith("memory"):
        pytest.skip("it has one host")
    here, there = open_store(store_url), open_store(store_url, Ahead())
    one, other = Claimer(here), Claimer(there)
    submit(here, "f", 4, "api:1/min")
    [claim] = one.claim()
    here.start(claim.tokens)
    one.settle(claim)
    assert other.claim() == []
    assert one.claim() == []
    assert here.pause == pytest.approx(60, abs=5)
    assert there.pause == pytest.approx(60, abs=5)
    here.close()
    there.close()


def test_a_limited_task_never_rides_behind_a_claim_without_a_token(store: Store) -> None:
    worker = Claimer(store)
    names = [sha1(f"chain {number}".encode()).hexdigest() for number in range(40)]
    limit = with_limits((), parse_limits("db:1"))
    for number, key in enumerate(names):  # each second one is limited, and needs the one before
        needs, is_limited = tuple(names[number - 1 : number]), number % 2
        made = Submission(key, f"f{is_limited}", needs, key.encode(), b"spec", resources=limit if is_limited else ())
        store.submit([made], ORIGIN)
    ran: list[str] = []
    while claims := store.claim(worker.id, 50, 0.0, chains=True):
        for claim in claims:
            assert claim.name == "f0" or claims == [claim]
            ran.append(claim.lease.key)
            worker.settle(claim)
    assert ran == names


def test_gpus_are_not_kept_for_a_task_that_waits_for_a_token(folder_site: Site, tmp_path: Path) -> None:
    site, journal = folder_site, Journal(tmp_path)
    both = with_limits((("gpu", 1.0),), parse_limits("db:1"))
    made = [site.tasks.submission(journal.job, x, journal.path, 0.3, resources=both) for x in range(6)]
    free = [site.tasks.submission(journal.job, x, journal.path, 0.01, resources=(("gpu", 1.0),)) for x in range(6, 60)]
    site.store.submit([*made, *free], ORIGIN)
    site.supervise(4, gpus="0,1")
    finish(site, [one.key for one in [*made, *free]])
    ends = {row[2]: row[1] for row in journal.rows() if row[-1] == -1}
    assert max(ends[x] for x in range(6, 60)) < max(ends[x] for x in range(6)), "who needs no token used the other GPU"


def test_no_jobs_are_wanted_for_tasks_that_limits_hold_up(store: Store) -> None:
    worker = Claimer(store)
    submit(store, "f", 10, "db:4", "api:3/h")
    submit(store, "free", 5)
    assert store.beyond_limits() == {"f": 7}
    worker.claim()
    assert store.beyond_limits() == {"f": 7}, "9 are ready, and two may begin"


@pytest.mark.filterwarnings("ignore::jug_notebook.OnlyAPath")
def test_calls_that_a_session_an_executor_or_this_kernel_runs_keep_to_limits(tmp_path: Path) -> None:
    session = jn.connect(f"file:{tmp_path}/jugdata")
    journal = Journal(tmp_path)
    limited = task(limit=("db:2", "api:100/s"))(journal.job)
    with jn.Executor(4) as pool:
        futures = [pool.submit(limited, x, journal.path, 0.05) for x in range(10)]
        assert [future.result(60) for future in futures] == list(range(10))
    assert journal.most_at_once() == 2
    more = limited.map(range(10, 20), path=journal.path, lasts=0.05)
    session.execute(here=True)
    assert [one.result(60) for one in more] == list(range(10, 20))
    assert journal.most_at_once() == 2
    assert [one.result(60) for one in task(journal.job).map(range(20), path=journal.path, lasts=0.05)] == list(
        range(20)
    )
    assert len(journal.starts()) == 20, "a limit is no part of the key"


@pytest.fixture(params=["file", "redis"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[jn.Session]:
    url = f"file:{tmp_path}/jugdata" if request.param == "file" else request.getfixturevalue("redis_server").url()
    opened = jn.connect(url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.stop(now=True)
    opened.close()


@pytest.mark.filterwarnings("ignore::jug_notebook.OnlyAPath")
def test_all_calls_of_an_executor_and_of_joblib_keep_to_the_limits_that_these_have(
    session: jn.Session, tmp_path: Path
) -> None:
    joblib, journal, numbers = pytest.importorskip("joblib"), Journal(tmp_path), itertools.count()

    def calls(count: int = 10) -> list[int]:
        return list(itertools.islice(numbers, count))

    with jn.Executor(4, limit="db:2") as pool:
        first, second = calls(), calls()
        assert list(pool.map(journal.job, first, [journal.path] * 10, [0.05] * 10)) == first
        own = task(limit="api:1000/min")(journal.job)
        assert [made.result(60) for made in [pool.submit(own, x, journal.path, 0.05) for x in second]] == second
        with pytest.raises(BadTask, match="limit 'db' has two numbers: db:3 and db:2"):
            pool.submit(task(limit="db:3")(journal.job), 0, journal.path, 0.0).result(60)
    with joblib.parallel_config("jug_notebook", n_jobs=4, limit="db:2"):
        for batch_size in ("auto", 3):
            given = calls()
            run = joblib.delayed(journal.job)
            assert joblib.Parallel(batch_size=batch_size)(run(x, journal.path, 0.05) for x in given) == given
    with joblib.parallel_config("jug_notebook", n_jobs=4):
        run, given = joblib.delayed(task(limit="db:2")(journal.job)), calls()
        assert joblib.Parallel()(run(x, journal.path, 0.05) for x in given) == given
    assert journal.most_at_once() == 2
    assert len(journal.starts()) == next(numbers)
    with pytest.raises(BadTask, match=re.escape(f"limit='db': {ADVICE}")), jn.Executor(4, limit="db"):
        pass
    with (
        pytest.raises(BadTask, match=re.escape(f"limit='db': {ADVICE}")),
        joblib.parallel_config("jug_notebook", n_jobs=4, limit="db"),
    ):
        joblib.Parallel()(run(x, journal.path, 0.05) for x in given)


@pytest.mark.filterwarnings("ignore::jug_notebook.KeyAdvice", "ignore::jug_notebook.OnlyAPath")
def test_calls_that_can_not_be_hashed_or_are_not_kept_have_limits_too(session: jn.Session, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with jn.Executor(4, limit="db:2", cache=False) as pool:
        assert list(pool.map(journal.job, [7] * 8, [journal.path] * 8, [0.05] * 8)) == [7] * 8
    unknown = cell("import threading\nheld = threading.local\n" + JOURNAL + "\nstate = iter([1])\n", "job")
    unknown.__globals__["process"].__defaults__ = (iter([1]),)
    with jn.Executor(4) as pool:
        found = [pool.submit(task(limit="db:2")(unknown), 8, journal.path, 0.05) for _ in range(8)]
        assert [one.result(60) for one in found] == [8] * 8
    assert journal.most_at_once() == 2


def test_forecasts_keep_to_limits_and_a_rate_is_known_before_any_run(session: jn.Session) -> None:
    function = cell("def once_a_second(x):\n    return x", "once_a_second")
    session.begin_cell("one")
    limited = task(limit="api:60/min")(function).map(range(600))
    report = session.end_cell(True)
    plan = session.workers.plan(8)
    assert plan.seconds is None
    assert re.search("at least 9 min . s: not all functions have been timed, with 8 workers", plan.text())
    session.run_here(limited[:1])
    for workers in (8, 80):
        assert session.workers.plan(workers).seconds == pytest.approx(9 * 60, abs=70)
        assert session.workers.plan(workers, target=limited).seconds == pytest.approx(9 * 60, abs=70)
    session.access.store.renew([system.me("worker")])
    assert re.search(r"600 tasks will run, about (8|9|10) min.* on 1 worker", session.queries.forecast(report))
    assert re.search("about (8|9|10) min.* left", repr(session.status()))
    [limit] = plain(session.status().snapshot)["functions"][0]["limits"]
    assert limit == {"name": "api", "number": 60, "period": 60, "used": 1}


def test_another_number_for_a_limit_is_named_with_the_one_that_holds(session: jn.Session) -> None:
    lines = {}
    for name, limit in (("four", "db:4"), ("two", "db:2"), ("eight", "db:8"), ("other", "disk:1")):
        session.begin_cell(name)
        task(limit=limit)(cell(f"def {name}(x):\n    return x", name)).map(range(3))
        lines[name] = session.queries.other_numbers(session.end_cell(True))
    assert lines == {
        "four": [],
        "two": ["limit db:2 of two holds for tasks of four, too, which have db:4"],
        "eight": ["limit db:8 of eight has no effect while tasks of two are open: db:2 holds"],
        "other": [],
    }
