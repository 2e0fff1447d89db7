"""Mirrors: results in a bucket that stores take from, and that nobody without the key can make them believe."""

from __future__ import annotations

import getpass
import gzip
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

import jug_notebook as jn
from jug_notebook.__main__ import main
from jug_notebook.errors import NotReady, StoreError, Unreachable
from jug_notebook.model import State
from jug_notebook.session import _use as session_in_use
from jug_notebook.session import mirroring
from jug_notebook.session.mirroring import copy
from jug_notebook.session.verification import verify
from jug_notebook.store import keyring, mirror, open_store
from jug_notebook.store.bucket import Bucket, Part
from tests import sshd
from tests.crews import working
from tests.kernels import ROOT, Kernel
from tests.session.test_cleanup_and_copy import define
from tests.store.test_reading_key import other_account
from tests.workbench import FakeClock, wait_until

SQUARE = "def f(x): return x * x"
LARGE = "def f(x): return bytes([x]) * 200_000"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """A server of S3 on this host; returns its address."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty bucket, and the environment in which the S3 client finds the server and its credentials."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    name = f"b{abs(hash(str(tmp_path))):x}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    return f"s3://{name}/study"


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty mirror of each kind."""
    found: str = request.getfixturevalue("s3") if request.param == "s3" else f"file://{tmp_path}/bucket"
    return found


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., jn.Session]]:
    """Connects a notebook of its own to a store in this test's folder."""
    opened: list[jn.Session] = []

    def connected(name: str, **more: Any) -> jn.Session:
        url = name if ":" in name else tmp_path / name
        opened.append(jn.connect(url, notebook=tmp_path / f"{len(opened)}.ipynb", **more))
        return opened[-1]

    yield connected
    for session in opened:
        session.close()
    jn.definitions.clear()


def run(session: jn.Session, source: str, count: int, cell: str = "one") -> list[Any]:
    """The values of a function on the first numbers, computed by a worker where they aren't stored."""
    session_in_use(session)
    session.begin_cell(cell)
    tasks = define(source).map(range(count))
    session.end_cell()
    with working(session):
        return list(tasks.result(timeout=60))


def taken(session: jn.Session, source: str, count: int) -> int:
    """How many results of that function are there as soon as it is called, with no worker at all."""
    session_in_use(session)
    session.begin_cell("one")
    tasks = define(source).map(range(count))
    session.end_cell()
    states = session.access.store.states([task.key for task in tasks])
    return sum(state is State.FINISHED for state in states)


def mirrored(connect: Callable[..., jn.Session], url: str, source: str, count: int) -> tuple[jn.Session, jn.Session]:
    """A session that has computed and copied results of a function, and one that has taken all of them."""
    one = connect("one")
    run(one, source, count)
    jn.copy(one, url)
    two = connect("two", also=url)
    assert taken(two, source, count) == count
    return one, two


def own_key(session: jn.Session) -> None:
    """The account has never had the key of this store."""
    keyring.forget(session.identity)


# -- taking results ----------------------------------------------------------------------------------------------------


def test_a_colleagues_store_recomputes_none_of_a_thousand(connect, url, store_url, capsys):
    one = connect("one")
    run(one, SQUARE, 1000)
    assert "copied 1,000 tasks, 1,000 results" in str(jn.copy(one, url))
    two = connect(store_url, also=url)
    assert taken(two, SQUARE, 1000) == 1000
    tasks = define(SQUARE).map(range(1000))
    assert tasks.result() == [n * n for n in range(1000)]
    where = tasks[3].provenance()
    assert where["run"]["copied_from"] == url
    assert two.status().snapshot.counts[State.FINISHED] == 1000


def test_large_values_stay_in_the_bucket_until_they_are_read_and_are_kept_then(connect, url, tmp_path):
    _, two = mirrored(connect, url, LARGE, 5)
    assert two.access.store.sweep([], [], -1.0, dry_run=True).size < 200_000, "none was fetched yet"
    tasks = define(LARGE).map(range(5))
    assert tasks[3].result() == bytes([3]) * 200_000
    assert 200_000 < two.access.store.sweep([], [], -1.0, dry_run=True).size < 400_000
    two.close()
    again = connect("two", also="none")
    assert define(LARGE)(3).result() == bytes([3]) * 200_000
    assert again.access.store.also is None


def test_what_is_still_in_the_bucket_is_not_missing_and_a_repair_leaves_it_alone(connect, url, tmp_path, monkeypatch):
    _, two = mirrored(connect, url, LARGE, 3)
    where = two.access.store.url
    assert verify(where, repair=True).damages == ()
    monkeypatch.setattr(Bucket, "get", away)
    damages = verify(where, repair=True).damages
    assert len(damages) >= 3
    assert all("it may be in" in damage.refused and not damage.done for damage in damages), "none is known to be lost"
    monkeypatch.undo()
    assert [len(value) for value in jn.result(define(LARGE).map(range(3)))] == [200_000] * 3


def away(*_: object) -> None:
    raise Unreachable("no network")


def test_a_worker_takes_what_its_task_needs_from_the_mirror_that_the_account_has_chosen(connect, url):
    _, two = mirrored(connect, url, LARGE, 3)
    two.begin_cell("two")
    total = define("def g(parts): return sum(map(len, parts))", name="g")(list(define(LARGE).map(range(3))))
    two.end_cell()
    two.execute(1)
    assert total.result(timeout=60) == 600_000
    ran = two.access.store.runs()[0]
    assert [run.verdict.key for run in ran].count(total.key) == 1
    assert len(ran) == 4, "three of another store, and the one that ran here"
    two.stop(now=True)


def test_what_depends_on_a_value_that_is_another_here_is_computed_again(connect, url):
    chain = "def g(x): return x + 1"

    def both(session: jn.Session) -> Any:
        session.begin_cell("one")
        made = define(chain, name="g")(define("import os\ndef f(): return int(os.environ['JN_TEST'])")())
        session.end_cell()
        with working(session):
            return made.result(timeout=60)

    os.environ["JN_TEST"] = "1"
    try:
        one = connect("one")
        assert both(one) == 2
        jn.copy(one, url)
        two = connect("two")
        os.environ["JN_TEST"] = "10"
        assert both(two) == 11
        assert both(connect("two", also=url)) == 11
    finally:
        del os.environ["JN_TEST"]


# -- copying -----------------------------------------------------------------------------------------------------------


def test_a_second_copy_sends_only_what_is_new(connect, url):
    one = connect("one")
    run(one, LARGE, 3)
    assert jn.copy(one, url).results == 3
    again = jn.copy(one, url)
    assert (again.results, again.blobs, again.size) == (0, 0, 0)
    run(one, LARGE, 5)
    more = jn.copy(one, url)
    assert more.results == 2
    assert 400_000 < more.size < 410_000


def test_an_interrupted_copy_leaves_what_was_sent_and_the_next_goes_on_from_there(connect, tmp_path, monkeypatch):
    one = connect("one")
    run(one, SQUARE, 2500)
    monkeypatch.setattr(mirroring, "COMMIT", 0.0)
    url, calls = f"file://{tmp_path}/bucket", []
    put = Bucket.put

    def interrupted(self: Bucket, objects: Any) -> None:
        calls.append(objects)
        if sum(name.startswith("packs/") for group in calls for name, _ in group) == 3:
            raise KeyboardInterrupt
        put(self, objects)

    monkeypatch.setattr(Bucket, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jn.copy(one, url)
    monkeypatch.setattr(Bucket, "put", put)
    two = connect("two", also=url)
    assert taken(two, SQUARE, 2500) == 2000
    assert jn.copy(one, url).results == 500


def commands(*several: list[str]) -> list[subprocess.Popen[str]]:
    """Run the program with these arguments, each in a process of its own."""
    return [
        subprocess.Popen([sys.executable, "-m", "jug_notebook", *words], stdout=subprocess.PIPE, text=True)
        for words in several
    ]


def test_a_copy_that_is_killed_in_the_middle_is_completed_by_the_next(connect, url, tmp_path):
    one = connect("one")
    run(one, LARGE, 250)
    [killed] = commands(["copy", str(tmp_path / "one"), url])
    bucket = Bucket(url)
    wait_until(one.access.store, lambda: bool(bucket.names("blobs") or killed.poll() is not None), patience=60)
    killed.kill()
    killed.communicate(timeout=60)
    [after] = commands(["copy", str(tmp_path / "one"), url])
    assert "tasks" in after.communicate(timeout=60)[0]
    assert after.returncode == 0
    two = connect("two", also=url)
    assert taken(two, LARGE, 250) == 250
    assert define(LARGE).map(range(250)).result() == [bytes([n]) * 200_000 for n in range(250)]


def test_copies_at_once_while_workers_write_lose_nothing_and_all_end_well(connect, url, tmp_path):
    """Two of one store, one of another, to one mirror, again and again until all is there."""
    one, other = connect("one"), connect("other")
    run(one, SQUARE, 10)
    run(other, "def f(x): return -x", 500)
    jn.copy(one, url)
    session_in_use(one)
    one.begin_cell("two")
    more = define("def f(x): return x + 1").map(range(500))
    one.end_cell()
    with working(one, 2):
        for _ in range(3):
            words = [["copy", str(tmp_path / name), url] for name in ("one", "other", "one")]
            for copying in commands(*words):
                copying.communicate(timeout=100)
                assert copying.returncode == 0
        more.result(timeout=60)
    jn.copy(one, url)
    two = connect("two", also=url)
    assert taken(two, SQUARE, 10) == 10
    assert taken(two, "def f(x): return -x", 500) == 500
    assert taken(two, "def f(x): return x + 1", 500) == 500
    assert not mirror.Mirror(url).damaged


def put_back_index(session, url, index, *counts):
    """Run and copy so many tasks, one after another, and put back the index as it was after the first copy."""
    indexes = []
    for count in counts:
        run(session, SQUARE, count)
        jn.copy(session, url)
        indexes.append(index.read_bytes())
    index.write_bytes(indexes[0])


def test_an_index_that_was_written_late_hides_nothing_that_was_copied_meanwhile(connect, tmp_path, monkeypatch):
    url, index = f"file://{tmp_path}/bucket", tmp_path / "bucket" / "index"
    one = connect("one")
    put_back_index(one, url, index, 2, 3, 4, 5)
    assert taken(connect("two", also=url), SQUARE, 5) == 5
    run(one, SQUARE, 6)
    assert jn.copy(one, url).results == 1
    assert taken(connect("three", also=url), SQUARE, 6) == 6


def test_what_nothing_names_any_more_is_removed_a_day_after_that_was_seen(connect, tmp_path, monkeypatch):
    monkeypatch.setattr(mirroring, "CROWD", 3)
    url, bucket, clock = f"file://{tmp_path}/bucket", tmp_path / "bucket", FakeClock()
    one = connect("one")
    for count in range(1, 7):
        run(one, SQUARE, count)
        mirroring.Pushing(one.access.store, url, clock=clock).run()
    orphan = bucket / "packs" / ("ab" * 20)
    orphan.write_bytes(b"of a copy that was killed")
    (bucket / "packs" / "notes.txt").write_text("of somebody else")
    before = files(bucket, "commits", "segments")
    mirroring.Pushing(one.access.store, url, clock=clock).run()
    clock.sleep(80_000)
    mirroring.Pushing(one.access.store, url, clock=clock).run()
    assert files(bucket, "commits", "segments") == before, "who reads by an older index finds all of it"
    clock.sleep(10_000)
    mirroring.Pushing(one.access.store, url, clock=clock).run()
    assert not files(bucket, "commits")
    assert len(files(bucket, "segments")) < len(before) - 6
    assert not orphan.exists()
    assert (bucket / "packs" / "notes.txt").exists()
    assert taken(connect("two", also=url), SQUARE, 6) == 6
    run(one, SQUARE, 7)
    mirroring.Pushing(one.access.store, url, clock=clock).run()
    assert taken(connect("three", also=url), SQUARE, 7) == 7


def small_copies(session: jn.Session, url: str, counts: range, **more: Any) -> None:
    """Copy the store after each task."""
    for count in counts:
        run(session, SQUARE, count)
        mirroring.Pushing(session.access.store, url, **more).run()


def named(url: str) -> tuple[int, int]:
    """How many packs and results a mirror names."""
    found = mirror.Mirror(url)
    found.read_index()
    assert len(found.places()) == found.count()
    return len(found.packs), found.count()


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than three small packs or segments are too many, and nothing is believed for long."""
    monkeypatch.setattr(mirroring, "CROWD", 3)
    monkeypatch.setattr(mirror, "FRESH", -1.0)


def test_many_small_copies_are_merged_and_who_reads_meanwhile_finds_all(crowded, connect, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "SHARD", 2)
    url = f"file://{tmp_path}/bucket"
    one = connect("one")
    small_copies(one, url, range(1, 2))
    two = connect("two", also=url)
    for count in range(2, 9):
        small_copies(one, url, range(count, count + 1))
        assert taken(two, SQUARE, count) == count
    assert len(files(tmp_path / "bucket", "segments")) <= 20
    assert named(url) == (2, 8), "those that were merged, and one more"
    three = connect("three", also=url)
    assert taken(three, SQUARE, 8) == 8


def test_a_merge_that_ends_at_any_point_loses_nothing_and_the_next_copy_completes_it(crowded, connect, tmp_path):
    class Killed(BaseException):
        pass

    one, put = connect("one"), Bucket.put
    small_copies(one, f"file://{tmp_path}/0", range(1, 4))
    run(one, SQUARE, 4)
    written: list[str] = []

    def counted(self: Bucket, objects: Any) -> None:
        written.extend(name.partition("/")[0] for name, _ in objects)
        if len(written) == last:
            raise Killed
        put(self, objects)

    for last in range(1, 20):
        written.clear()
        url = f"file://{tmp_path}/{last}"
        shutil.copytree(tmp_path / "0", tmp_path / str(last))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Bucket, "put", counted)
            with suppress(Killed):
                jn.copy(one, url)
        if len(written) < last:
            break
        assert named(url) == ((3, 3) if last <= 3 else (4, 4) if last <= 7 else (1, 4)), written
        jn.copy(one, url)
        assert named(url) == (1, 4)
    assert written == [
        "packs", "segments", "commits", "index",  # what is new
        "packs", "segments", "index", "index",  # all in one pack; then what nothing names any more
    ]  # fmt: skip


@pytest.mark.parametrize("both", [False, True], ids=["one merges", "both merge"])
def test_a_merge_keeps_what_others_copy_meanwhile_and_what_is_damaged(both, crowded, connect, tmp_path, monkeypatch):
    one, other, url = connect("one"), connect("other"), f"file://{tmp_path}/bucket"
    run(other, "def f(x): return -x", 2)
    small_copies(one, url, range(1, 4))
    damaged = files(tmp_path / "bucket", "packs")[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(bytes(len(whole)))
    add, copied = mirroring.Pushing._add, []

    def slow(self: mirroring.Pushing, *row: Any) -> None:
        if self._mirror.count() == 4 and not copied:  # in the middle of the merge
            copied.append(url)
            with monkeypatch.context() as patched:
                patched.setattr(mirroring, "CROWD", 3 if both else 64)
                jn.copy(other, url)
        add(self, *row)

    monkeypatch.setattr(mirroring.Pushing, "_add", slow)
    small_copies(one, url, range(4, 5))
    assert copied
    assert named(url) == (2 if both else 3, 6), "those that were merged, the damaged one, and what came meanwhile"
    assert taken(connect("two", also=url), "def f(x): return -x", 2) == 2
    assert taken(connect("three", also=url), SQUARE, 4) == 3
    damaged.write_bytes(whole)
    assert taken(connect("four", also=url), SQUARE, 4) == 4


def test_more_copies_in_a_day_than_commits_are_read_at_once_lose_nothing(connect, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "COMMITS", 2)
    url = f"file://{tmp_path}/bucket"
    small_copies(connect("one"), url, range(1, 6))
    assert taken(connect("two", also=url), SQUARE, 5) == 5


def test_a_mirror_can_be_copied_into_a_store_that_needs_it_no_longer(connect, url, store_url, tmp_path):
    one = connect("one")
    run(one, LARGE, 3)
    jn.copy(one, url)
    copied = copy(url, store_url)
    assert (copied.new, copied.results) == (3, 3)
    two = connect(store_url)
    assert taken(two, LARGE, 3) == 3
    assert define(LARGE)(2).result() == bytes([2]) * 200_000


# -- what was declared wrong -------------------------------------------------------------------------------------------


def test_a_value_that_was_declared_wrong_is_no_longer_served_and_goes_where_it_was_taken(connect, url, monkeypatch):
    monkeypatch.setattr(mirror, "FRESH", -1.0)
    mirrored(connect, url, SQUARE, 4)
    one = connect("one")
    define(SQUARE)
    [wrong] = [task for task in define(SQUARE).map(range(4)) if task.result() == 9]
    one.invalidate(wrong)
    jn.copy(one, url)
    assert taken(connect("three", also=url), SQUARE, 4) == 3
    assert taken(connect("two", also=url), SQUARE, 4) == 3


def test_what_was_invalidated_here_is_not_taken_from_a_mirror_again(connect, url):
    _, two = mirrored(connect, url, SQUARE, 2)
    two.invalidate(define(SQUARE)(1))
    assert taken(two, SQUARE, 2) == 1


# -- who has no key, and who lies --------------------------------------------------------------------------------------


def test_without_the_key_nothing_is_taken_and_a_line_tells_how_to_get_it(connect, url, capsys):
    one = connect("one")
    run(one, SQUARE, 3)
    jn.copy(one, url)
    one.close()
    own_key(one)
    two = connect("two", also=url)
    assert taken(two, SQUARE, 3) == 0
    said = capsys.readouterr().err
    assert said.count("jug-notebook key import") == 1
    assert any("jug-notebook key import" in note for note in two.status().snapshot.notes)


def test_who_has_the_reading_key_alone_takes_and_reads_all_of_a_mirror_and_adds_nothing(connect, url, tmp_path, capsys):
    one = connect("one")
    run(one, LARGE, 3)
    jn.copy(one, url)
    [lost] = [task.key for task in define(LARGE).map([2])]
    one.close()
    shutil.rmtree(tmp_path / "one" / "blobs")
    (tmp_path / "one" / "blobs").mkdir(mode=0o700)
    with other_account(tmp_path, one.identity):
        reading = connect("one", also=url)
        assert reading.read_only
        assert reading.resolve(lost, all=True).result() == [bytes([2]) * 200_000]
        with pytest.raises(StoreError, match="is read-only here"):
            jn.copy(reading, url)
        assert (copied := copy(url, str(tmp_path / "own"))).results == 3, copied
        two = connect("two", also=url)
        assert taken(two, LARGE, 3) == 3
        assert define(LARGE).map(range(3)).result() == [bytes([n]) * 200_000 for n in range(3)]
        assert "isn't here" not in capsys.readouterr().err
        two.close()
        reading.close()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def files(folder: Path, *names: str) -> list[Path]:
    return sorted(path for name in names for path in (folder / name).rglob("*") if path.is_file())


@pytest.fixture
def poisoned(connect: Any, tmp_path: Path) -> Path:
    """The folder of a mirror of five large results, and of one function more."""
    one = connect("one")
    run(one, LARGE, 5)
    run(one, "def f(x): return -x", 5, "two")
    jn.copy(one, f"file://{tmp_path}/bucket")
    return tmp_path / "bucket"


@pytest.mark.parametrize("what", ["index", "segments", "packs"])
def test_flipped_bits_serve_nothing_and_are_named(poisoned, connect, what, capsys):
    for path in [poisoned / "index"] if what == "index" else files(poisoned, what):
        flip(path)
        if what == "packs":
            path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    two = connect("two", also=f"file://{poisoned}")
    assert taken(two, LARGE, 5) == 0
    assert capsys.readouterr().err.count("jug_notebook: ") >= 1
    assert run(two, LARGE, 5) == [bytes([n]) * 200_000 for n in range(5)]


def test_flipped_or_swapped_blobs_are_computed_again(poisoned, connect):
    two = connect("two", also=f"file://{poisoned}")
    blobs = [path for path in files(poisoned, "blobs") if path.stat().st_size >= 200_000]
    assert len(blobs) == 5
    flip(blobs[0])
    blobs[1].write_bytes(blobs[2].read_bytes())
    assert run(two, LARGE, 5) == [bytes([n]) * 200_000 for n in range(5)]


READ = """
import resource, sys
import jug_notebook as jn
from tests.store.test_mirror import LARGE, define, taken
two = jn.connect(sys.argv[1], notebook=sys.argv[1] + ".ipynb", also=sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = taken(two, LARGE, 5)
served = 0
for number in range(5 if found else 0):
    try:
        assert define(LARGE)(number).value() == bytes([number]) * 200_000
        served += 1
    except jn.NotReady:
        pass
print(found, served, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("what", ["index", "commits", "segments", "packs", "blobs"])
@pytest.mark.parametrize("how", ["huge", "pickle"])
def test_huge_objects_cost_no_memory_and_pickles_run_nothing(poisoned, tmp_path, what, how):
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    hostile = [poisoned / "index"] if what == "index" else files(poisoned, what)
    if what == "commits":
        hostile += [poisoned / "commits" / f"{number:012d}-{number:040x}" for number in range(30)]
    for path in hostile:
        path.write_bytes(pickle.dumps(Evil()))
        if how == "huge":
            os.truncate(path, 1 << 40)
    words = [sys.executable, "-c", READ, str(tmp_path / "two"), f"file://{poisoned}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    found, served, kilobytes = map(int, done.stdout.split())
    assert (found, served) == (5 if what in ("commits", "blobs") else 0, 5 if what == "commits" else 0)
    assert kilobytes < 400_000
    assert f"file://{poisoned}" in done.stderr, "it is named"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("what", ["packs", "blobs"])
def test_objects_that_were_cut_are_as_good_as_none(connect, url, what, capsys):
    one = connect("one")
    run(one, LARGE, 5)
    jn.copy(one, url)
    bucket = Bucket(url)
    for path in bucket._fs.find(f"{bucket._root}/{what}"):
        bucket.put([(path.removeprefix(f"{bucket._root}/"), b"")])
    two = connect("two", also=url)
    assert taken(two, LARGE, 5) == (0 if what == "packs" else 5)
    assert run(two, LARGE, 5) == [bytes([n]) * 200_000 for n in range(5)]
    assert "going on without it" not in capsys.readouterr().err, "the rest of the mirror is of use"


def test_a_mirror_in_which_all_is_damaged_is_told_of_in_a_few_lines(connect, tmp_path, monkeypatch, capsys):
    one = connect("one")
    run(one, SQUARE, 100)
    jn.copy(one, f"file://{tmp_path}/bucket")
    [pack] = files(tmp_path / "bucket", "packs")
    pack.write_bytes(bytes(pack.stat().st_size))
    two = connect("two", also=f"file://{tmp_path}/bucket")
    capsys.readouterr()
    assert taken(two, SQUARE, 100) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == mirror.NAMED + 1
    assert said[-1].endswith("more is damaged than is named here, and left out")


def test_swapped_packs_serve_nothing(connect, tmp_path):
    one = connect("one")
    url = f"file://{tmp_path}/bucket"
    run(one, SQUARE, 5)
    jn.copy(one, url)
    run(one, "def f(x): return -x", 5, "two")
    jn.copy(one, url)
    packs = files(tmp_path / "bucket", "packs")
    first, second = [path.read_bytes() for path in packs]
    packs[0].write_bytes(second)
    packs[1].write_bytes(first)
    assert taken(connect("two", also=url), SQUARE, 5) == 0


def test_objects_of_another_stores_key_serve_nothing(connect, tmp_path, capsys):
    url = f"file://{tmp_path}/bucket"
    one = connect("one")
    run(one, SQUARE, 5)
    jn.copy(one, url)
    before = connect("two", also=url)
    assert taken(before, SQUARE, 5) == 5
    other = connect("other")
    run(other, "def f(x): return x * x + 0", 5)
    jn.copy(other, f"file://{tmp_path}/theirs")
    shutil.rmtree(tmp_path / "bucket")
    shutil.copytree(tmp_path / "theirs", tmp_path / "bucket")
    assert taken(connect("three", also=url), "def f(x): return x * x + 0", 5) == 0
    assert "held results of another store before" in capsys.readouterr().err
    assert taken(connect("three", also=url, accept_new=True), "def f(x): return x * x + 0", 5) == 5


def test_an_index_that_names_another_tasks_outcome_serves_nothing(connect, tmp_path):
    """As somebody with another store's key could write it, who puts the other store's name on it."""
    url = f"file://{tmp_path}/bucket"
    one = connect("one")
    run(one, SQUARE, 2)
    jn.copy(one, url)
    bucket, reader = Bucket(url), mirror.Mirror(url)
    reader.read_index()
    rows = [place for places in reader.places().values() for place in places.values()]
    swapped = [
        (place.pack, mirror.Row(other.row.key, place.row.inputs, place.row.digest, 0, place.row.start, place.row.end))
        for place, other in zip(rows, reversed(rows), strict=True)
    ]
    made = mirror.segments_of(swapped)
    bucket.put([(f"segments/{named.name}", data) for named, data in made])
    reader.write_index(mirror.Index(tuple(named for named, _ in made), counted=reader.index.counted))
    assert taken(connect("two", also=url), SQUARE, 2) == 0


def test_an_older_index_that_was_put_back_serves_nothing(connect, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirror, "FRESH", -1.0)
    url, index = f"file://{tmp_path}/bucket", tmp_path / "bucket" / "index"
    one = connect("one")
    run(one, SQUARE, 3)
    jn.copy(one, url)
    old = index.read_bytes()
    one.invalidate(define(SQUARE)(2))
    jn.copy(one, url)
    assert taken(connect("two", also=url), SQUARE, 3) == 2
    index.write_bytes(old)
    assert taken(connect("three", also=url), SQUARE, 3) == 2, "what was committed since counts"
    last = max(files(tmp_path / "bucket", "commits"))
    last.unlink()
    assert taken(connect("four", also=url), SQUARE, 3) == 0
    assert "is older than before" in capsys.readouterr().err
    with pytest.raises(StoreError, match="give --accept-new-store, too"):
        jn.copy(one, url)
    assert main(["copy", "--accept-new-store", str(tmp_path / "one"), url]) == 0


def test_an_index_put_back_without_a_commit_in_the_middle_serves_nothing(connect, tmp_path, capsys):
    url, index = f"file://{tmp_path}/bucket", tmp_path / "bucket" / "index"
    one = connect("one")
    put_back_index(one, url, index, 1, 2, 3)
    files(tmp_path / "bucket", "commits")[1].unlink()
    assert taken(connect("two", also=url), SQUARE, 3) == 0
    assert "is older than before" in capsys.readouterr().err


# -- what is away ------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_away_costs_a_line_and_no_waiting(connect, monkeypatch, capsys):
    from tests.servers import free_port

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    two = connect("two", also="s3://nowhere/study")
    assert run(two, SQUARE, 3) == [0, 1, 4]
    said = capsys.readouterr().err
    assert said.count("going on without it") == 1
    assert "very-secret" not in said
    assert any("going on without it" in note for note in two.status().snapshot.notes)


def test_a_missing_library_is_named_with_the_way_out(connect, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("fsspec"):
            raise ImportError("no fsspec", name="fsspec")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StoreError, match=r"needs s3fs: pip install s3fs"):
        connect("two", also="s3://bucket/study")


def test_what_can_be_no_mirror_is_refused_in_a_line_with_the_way_out(connect, tmp_path):
    connect("one")
    for also, way_out in {
        str(tmp_path / "one"): "is a store, not a mirror; make one from it: jug-notebook copy",
        "redis://127.0.0.1/1": "is a store, not a mirror; make one from it: jug-notebook copy",
        "nowhere://bucket/study": "give s3://BUCKET/PREFIX",
        "memory://bucket/study": "ends with this process",
        "simplecache::memory://bucket/study": "ends with this process",
        "file://bucket": "give file:///FOLDER",
    }.items():
        with pytest.raises(StoreError) as refused:
            connect("two", also=also)
        assert way_out in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", ["memory://bucket", "memory:", "memory:bucket"])
def test_a_copy_to_where_nobody_could_ever_read_it_is_refused(connect, tmp_path, capsys, target):
    one = connect("one")
    run(one, SQUARE, 1)
    capsys.readouterr()
    assert main(["copy", str(tmp_path / "one"), target]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_copy_to_no_bucket_or_without_credentials_ends_with_a_line(s3, connect, tmp_path, monkeypatch, capsys):
    one = connect("one")
    run(one, SQUARE, 1)
    assert main(["copy", str(tmp_path / "one"), "s3://no-such-bucket/study"]) == 2
    assert capsys.readouterr().err.endswith("does not exist; correct its name, or make it first\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["copy", str(tmp_path / "one"), s3]) == 2
    assert capsys.readouterr().err.endswith("or run: aws configure\n")


def test_passwords_in_urls_are_not_shown(tmp_path):
    found = Bucket("http://ann:secret@127.0.0.1:9/x?token=hush")
    assert "secret" not in found.display_url
    assert "hush" not in found.display_url


# -- the web -----------------------------------------------------------------------------------------------------------


class Web(SimpleHTTPRequestHandler):
    """Serves a folder, without lists and without parts of files; ``endless`` never ends, ``packed`` is a bomb."""

    packed = gzip.compress(bytes(10_000_000))
    left = threading.Event()  #: who has asked for ``endless`` has gone

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def list_directory(self, path: Any) -> None:
        self.send_error(403)

    def do_GET(self) -> None:
        if self.path not in ("/endless", "/packed"):
            super().do_GET()
            return
        self.send_response(200)
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(self.packed)
        with suppress(OSError):
            while self.path == "/endless":
                self.wfile.write(bytes(1 << 16))
            return
        self.left.set()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL at which a web server shows the folder ``bucket``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=str(tmp_path / "bucket"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_mirror_is_read_from_a_web_server_that_lists_no_folder_and_knows_no_parts(web, poisoned, connect, capsys):
    two = connect("two", also=web)
    capsys.readouterr()
    assert taken(two, LARGE, 5) == 5
    assert define(LARGE).map(range(5)).result() == [bytes([n]) * 200_000 for n in range(5)]
    assert capsys.readouterr().err == ""
    run(two, SQUARE, 1)
    with pytest.raises(Unreachable, match="501"):
        jn.copy(two, web)


def test_no_more_is_read_from_a_web_server_than_was_asked_for(web):
    bucket = Bucket(web)
    [packed, endless] = bucket.get([Part("packed", 2, 1000), Part("endless", len(Web.packed), 1 << 20)])
    assert packed == Web.packed[2:1000], "as it was sent"
    assert endless == bytes((1 << 20) - len(Web.packed))
    assert Web.left.wait(60)


def test_what_is_marked_as_packed_in_a_bucket_is_read_as_it_is(s3):
    bucket = Bucket(s3)
    bucket._fs.pipe_file(f"{bucket._root}/index", Web.packed, ContentEncoding="gzip")
    assert bucket.get([Part("index", 0, 1 << 20)]) == [Web.packed]


@pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing())
def test_a_mirror_over_sftp_is_connected_to_when_it_is_used_and_again_after_it_was_away(
    connect, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("paramiko")
    monkeypatch.setattr(mirror, "FRESH", -1.0)
    server = sshd.Sshd(tmp_path / "ssh")
    try:
        (tmp_path / ".ssh").mkdir()
        shutil.copy(tmp_path / "ssh" / "user", tmp_path / ".ssh" / "id_ed25519")
        monkeypatch.setenv("HOME", str(tmp_path))
        url = f"sftp://{getpass.getuser()}@127.0.0.1:{server.port}{tmp_path}/bucket"
        one = connect("one")
        run(one, LARGE, 3)
        assert jn.copy(one, url).results == 3
        server.stop()
        two = connect("two", also=url)
        assert taken(two, LARGE, 3) == 0
        assert "Unable to connect" in capsys.readouterr().err
        server.start()
        assert taken(two, LARGE, 3) == 3
        assert define(LARGE).map(range(3)).result() == [bytes([n]) * 200_000 for n in range(3)]
        assert (jn.copy(one, url).results, named(url)) == (0, (1, 3))
    finally:
        server.stop()


# -- how many requests -------------------------------------------------------------------------------------------------


def test_ten_thousand_results_cost_few_requests(connect, tmp_path, monkeypatch):
    url = f"file://{tmp_path}/bucket"
    one = connect("one")
    run(one, SQUARE, 10_000)
    jn.copy(one, url)
    requests: list[Part] = []
    get = Bucket.get

    def counted(self: Bucket, parts: Any, *more: Any) -> Any:
        requests.extend(parts)
        return get(self, parts, *more)

    monkeypatch.setattr(Bucket, "get", counted)
    two = connect("two", also=url)
    assert taken(two, SQUARE, 10_000) == 10_000
    assert len(requests) <= 100
    two.close()
    assert open_store(tmp_path / "two").also is not None


@pytest.mark.parametrize("form", ["result", "to_frame"])
def test_large_values_are_fetched_several_at_once_and_only_those_that_the_store_lacks(
    connect, tmp_path, monkeypatch, form
):
    url, fetched = f"file://{tmp_path}/bucket", []
    _, two = mirrored(connect, url, LARGE, 100)
    tasks = define(LARGE).map(range(100))
    assert tasks[40].result() == bytes([40]) * 200_000
    get = Bucket.get
    monkeypatch.setattr(Bucket, "get", lambda self, parts, *more: fetched.append(parts) or get(self, parts, *more))
    values = list(tasks.to_frame()["result"]) if form == "to_frame" else tasks.result()
    assert values == [bytes([n]) * 200_000 for n in range(100)]
    assert sum(map(len, fetched)) == 99, "each once, and the one that is here not at all"
    assert len(fetched) <= 4
    two.close()


def test_a_value_of_many_megabytes_comes_in_pieces_and_what_is_too_large_not_at_all(connect, url, monkeypatch, capsys):
    source = "def f(x): return bytes([x]) * 20_000_000"
    _, two = mirrored(connect, url, source, 2)
    assert define(source)(1).result() == bytes([1]) * 20_000_000
    monkeypatch.setattr(Bucket, "size", lambda self, name: 1 << 60)
    two.begin_cell("one")
    with pytest.raises(NotReady, match="was lost"):
        define(source)(0).value()
    assert "finds no room" in capsys.readouterr().err


# -- in a notebook -----------------------------------------------------------------------------------------------------


def test_a_colleagues_notebook_names_the_mirror_and_recomputes_none_of_a_thousand(connect, s3, tmp_path):
    settings = os.environ["XDG_CONFIG_HOME"]
    cell = "%%jugtask\ndef square(n):\n    return n * n"

    def kernel(name: str) -> Kernel:
        (tmp_path / name).mkdir()
        started = Kernel.of_notebook(tmp_path / name, Path(settings))
        started.run("%load_ext jug_notebook")
        return started

    mine = kernel("mine")
    mine.run(cell)
    mine.run("squares = square.map(range(1000))")
    mine.run("%jug_execute -n 1")
    assert "332833500" in mine.run("sum(squares.result())").result
    mine.run("%jug_stop")
    assert main(["copy", str(tmp_path / "mine" / "jugdata"), s3]) == 0
    theirs = kernel("theirs")
    said = theirs.run(f"%jug_store jugdata --also {s3}").out
    assert f"also {s3} with 1,000 results" in said
    theirs.run(cell)
    theirs.run("squares = square.map(range(1000))")
    assert "332833500" in theirs.run("sum(squares.result())").result
    for started in (mine, theirs):
        started.close()
