"""Cleaning up and copying: what is wanted stays and works, what isn't goes; a copy is as good as what it is of."""

from __future__ import annotations

import gc
import linecache
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.__main__ import main
from jug_notebook.model import Display, Origin, Scope, State, Target, Why
from jug_notebook.session.maintenance import Copying, clean, copy
from jug_notebook.store import Store, addresses_in, open_store
from jug_notebook.store.file import FileStore
from jug_notebook.store.redis import RedisStore
from jug_notebook.worker.loop import work
from jug_notebook.worker.status import SharedStatus
from tests.crews import working
from tests.store.test_store import key, run_all, task, worker_of
from tests.workbench import Need, Submitter, cell, wait_until

NOTEBOOK: dict[str, Any] = {"__name__": "__main__"}


def define(source: str, name: str = "f", **options: Any) -> Any:
    """A task function as a cell of a notebook defines it."""
    filename = f"<cell {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), NOTEBOOK)
    NOTEBOOK[name] = jn.task(**options)(NOTEBOOK[name])
    return NOTEBOOK[name]


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()
    jn.definitions.clear()


def blobs(session: jn.Session) -> int:
    """How many there are: so many would be swept if none were kept."""
    return session.access.store.sweep([], [], -1.0, dry_run=True).blobs


def lose(store: Store, addresses: set[str]) -> None:
    """These blobs are gone for good."""
    store.sweep([], {name for key in store.keys_named("f") for body in store.specs([key]) if body
                     for name in addresses_in(body)} - addresses, -1.0)  # fmt: skip
    if isinstance(store, FileStore):
        for path in (store.folder / "trash").iterdir():
            path.unlink()
    if isinstance(store, RedisStore):
        for address in addresses:
            store._connection.command("DEL", store._connection.key(f"v:{address}"))


# -- cleaning up -------------------------------------------------------------------------------------------------------


def test_what_a_changed_function_no_longer_wants_goes_and_what_is_wanted_stays(session):
    session.begin_cell("one")
    f = define("def f(x): return bytes(100_000) + str(x).encode()")
    with working(session):
        old = f.map(range(3))
        session.end_cell()
        old.result()
        session.begin_cell("one")
        f = define("def f(x): return bytes(200_000) + str(x).encode()")
        new = f.map(range(2))
        session.end_cell()
        new.result()
    before = blobs(session)
    report = session.cleanup(dry_run=True)
    assert report.functions["f"][0] == report.tasks == 3
    assert "would remove 3 tasks" in str(report)
    assert str(report).startswith("f  3 tasks, ")
    assert blobs(session) == before
    assert session.cleanup(0.0).tasks == 3
    assert before - blobs(session) == 3, "the results: the function could still be called"
    assert [len(value) for value in new.result()] == [200_001] * 2
    assert [one.state for one in old] == [State.CANCELLED] * 3
    assert str(session.cleanup(0.0)) == "nothing to clean up: all that is stored is in use"


def test_a_task_that_was_cleaned_up_runs_again_when_it_is_wanted_again(session):
    f = define("def f(x): return x + 1")
    with working(session):
        assert f(1).result() == 2
        session.cancel(f)
        [made] = session.resolve(f)
        session.access.store.request([made.key], Origin(session.access.user, session.notebook), False)
        assert session.cleanup().tasks == 1
        assert f(1).result() == 2


def test_what_a_wanted_task_needs_stays(session):
    f, g = define("def f(x): return x"), define("def g(x): return x", name="g")
    with working(session):
        last = g(f(1))
        last.result()
        session.access.store.request(
            [one.key for one in last.dependencies()], Origin(session.access.user, session.notebook), False
        )
        assert session.cleanup().tasks == 0
        session.access.store.request([last.key], Origin(session.access.user, session.notebook), False)
        assert session.cleanup().tasks == 2


def test_a_run_that_others_have_taken_over_stays_with_its_value(session):
    one = define("def one(): return 21", name="one")
    same = define("def same(): return 20 + 1", name="same")
    f = define("def f(x): return bytes(100_000) + bytes([x])")
    with working(session):
        needed = one()
        first = f(needed)
        first.result()
        again = f(same())
        again.result()
        assert again.provenance()["reused from"] == first.key
        session.access.store.request([first.key, needed.key], Origin(session.access.user, session.notebook), False)
        report = session.cleanup(0.0)
        assert list(report.functions) == ["one"]
        assert len(again.result()) == 100_001
    assert session.results.states([again.key]) == [State.FINISHED]


def test_displays_arguments_and_modules_of_what_stays_are_kept(store, tmp_path):
    tasks = Submitter(store, tmp_path)
    me = system.me("worker")
    store.renew([me])
    made = tasks.submit("def f(x): return x + bytes(70_000)", bytes(90_000))
    work(store, tasks.seal, me, SharedStatus(), until_idle=True)
    kept = addresses_in(store.specs([made])[0]) | addresses_in(store.outcomes([made])[0].body)
    assert clean(store, 1e12, older_than=0.0).blobs == 0
    assert len(kept) > 2
    assert len(tasks.value(made)) == 160_000


def test_a_shown_blob_and_a_functions_modules_are_names_that_are_found(store):
    from msgspec.msgpack import encode

    address = store.put_blob([b"picture"])
    assert addresses_in(encode(Display(0, {}, {}, address))) == {address}
    assert addresses_in(encode({"modules": {"mine": address}})) == {address}


def test_only_a_target_and_only_what_is_old_enough(session):
    f, g = define("def f(x): return x"), define("def g(x): return x", name="g")
    with working(session):
        found = [*f.map([1, 2]), *g.map([1])]
        for one in found:
            one.result()
    session.access.store.request([one.key for one in found], Origin(session.access.user, session.notebook), False)
    assert session.cleanup(3600.0).tasks == 0
    assert session.cleanup(target="g").functions.keys() == {"g"}
    assert session.cleanup(target=found[0]).tasks == 1
    assert session.cleanup().tasks == 1


def test_a_function_that_was_called_before_a_cleanup_can_be_called_after_it(session):
    f = define("def f(x): return x")
    made = f(1)
    session.submissions.flush()
    session.access.store.request([made.key], Origin(session.access.user, session.notebook), False)
    assert session.cleanup(0.0).tasks == 1
    with working(session):
        assert f(2).result() == 2


def test_what_is_put_while_a_cleanup_looks_stays(store, tmp_path, monkeypatch):
    old = store.put_blob([b"old"])
    tasks, ticks = store.tasks, tmp_path / "ticks"

    def ticked() -> float:
        ticks.touch()
        return ticks.stat().st_mtime

    def meanwhile(*args: Any) -> Any:
        began = ticked()
        while ticked() == began:  # the clock of a file system is a coarse one
            pass
        store.put_blob([b"new"])
        return tasks(*args)

    began = ticked()
    while ticked() < began + 0.1:  # what is in doubt by that little stays
        pass
    monkeypatch.setattr(store, "tasks", meanwhile)
    assert clean(store, 1e12, older_than=0.0).blobs == 1
    assert store.sweep([], [], -1.0, dry_run=True).blobs == 1
    assert store.put_blob([b"old"]) == old


def test_nothing_is_lost_or_run_twice_while_others_clean_up_all_the_time(session, store_url):
    if store_url.startswith("memory:"):
        pytest.skip("what is swept from there is gone at once")
    f = define("def f(x, y): return bytes(100_000) + bytes([x])")
    over, went_wrong = threading.Event(), list[BaseException]()

    def clean_on() -> None:
        store = open_store(session.access.store.url)
        try:
            while not over.is_set():
                clean(store, time.time(), older_than=0.0)
        except BaseException as error:
            went_wrong.append(error)

    cleaners = [threading.Thread(target=clean_on) for _ in range(2)]
    with working(session, 2):
        for cleaner in cleaners:
            cleaner.start()
        made = []
        for x in range(40):
            made.append(f(x, bytes(80_000 + x)))
            session.submissions.flush()
        values = [one.result(60) for one in made]
        over.set()
        for cleaner in cleaners:
            cleaner.join()
    assert values == [bytes(100_000) + bytes([x]) for x in range(40)]
    assert went_wrong == []
    ended, total = session.access.store.runs()
    assert (total, sum(run.counts for run in ended)) == (40, 40)


def test_what_runs_or_waits_for_a_worker_stays(store):
    store.submit([task("a"), task("b"), task("c")], Origin("ann", "/a.ipynb"))
    (claim,) = store.claim(worker_of(store).id, 1, 0.0)
    store.request([claim.lease.key], Origin("ann", "/a.ipynb"), wanted=False)
    assert clean(store, 1e12).tasks == 0
    assert sorted(map(str, store.states([key(name) for name in "abc"]))) == ["State.READY"] * 2 + ["State.RUNNING"]


# -- copying -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_url(store_url: str, tmp_path: Path) -> str:
    """Another store of that kind."""
    return f"memory:{tmp_path.name}-copy" if store_url.startswith("memory:") else f"file:{tmp_path / 'copy'}"


def pictured(store: Store) -> dict[str, Any]:
    keys = sorted(view.key for view in store.tasks())
    return {
        "states": dict(zip(keys, store.states(keys), strict=True)),
        "worth": {
            k: h and (h.verdict.digest, h.verdict.key, h.verdict.started)
            for k, h in zip(keys, store.outcomes(keys), strict=True)
        },
        "wishes": {origin: sorted(store.requested(origin)) for origin in store.origins()},
        "edges": sorted(store.edges()),
        "accepted": dict(zip(keys, (body is not None for body in store.acceptances(keys)), strict=True)),
    }


def study(session: jn.Session) -> dict[str, Any]:
    """A notebook's life: results small and large, outputs, failures, a need, reuse, something cancelled and open."""
    session.begin_cell("one")
    f = define("def f(x):\n    print('said', x)\n    return bytes(100_000) + bytes([x])")
    g = define("def g(x): return len(x) // 0 if x[-1] == 2 else len(x)", name="g")
    one = define("def one(): return 21", name="one")
    same = define("def same(): return 20 + 1", name="same")
    h = define("def h(x): return x * 2", name="h")
    small = define("def small(x): return x", name="small")
    with working(session):
        last = [g(f(i)) for i in range(3)]
        doubled = [h(one())]
        doubled[0].result()
        doubled.append(h(same()))
        gone = small(7)
        session.submissions.flush()
        for made in [*last[:2], *doubled, gone]:
            made.result()
        wait_until(session.access.store, lambda: last[2].state is State.FAILED)
        session.cancel(gone)
        session.access.store.request([gone.key], Origin(session.access.user, session.notebook), False)
    pending = small(8)
    session.submissions.flush()
    session.end_cell()
    return {"last": last, "doubled": doubled, "gone": gone, "pending": pending, "f": f}


def test_a_copy_has_all_and_twice_is_once(session, store_url, other_url, tmp_path):
    made = study(session)
    report = jn.copy(store_url, other_url)
    assert (report.tasks, report.new, report.failures) == (12, 12, 1)
    source, target = session.access.store, open_store(other_url)
    assert pictured(target) == pictured(source)
    again = jn.copy(store_url, other_url)
    assert (again.new, again.results, again.failures) == (0, 0, 0)
    assert "12 tasks were there already" in str(again)
    assert pictured(target) == pictured(source)
    other = jn.Session(other_url, notebook=session.notebook)
    try:
        [f] = other.resolve(made["last"][0].dependencies()[0].key)
        assert f.result() == bytes(100_001)
        keys = [view.key for view in source.tasks()]
        runs, copied = ([one and one.run for one in end.access.signed.outcomes(keys)] for end in (session, other))
        assert runs == copied, "outputs, displays, who ran it, where and when"
        with pytest.raises(jn.TaskFailed, match="ZeroDivisionError"):
            other.resolve(made["last"][2].key)[0].result()
        reused = other.resolve(made["doubled"][1].key)[0]
        assert reused.provenance()["reused from"] == made["doubled"][0].key
    finally:
        other.close()


def test_a_notebook_run_on_the_copy_runs_nothing_again(session, store_url, other_url):
    study(session)
    jn.copy(store_url, other_url)
    other = jn.connect(other_url, notebook=session.notebook)
    try:
        f = NOTEBOOK["f"]
        found = f.map(range(3))
        assert found.result() == [bytes(100_000) + bytes([x]) for x in range(3)]
        assert not [view for view in other.tasks().views if view.state in (State.READY, State.RUNNING) and
                    view.name == "f"]  # fmt: skip
    finally:
        other.close()


def test_there_and_back_again_through_a_store_of_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = jn.connect(tmp_path / "first", notebook=tmp_path / "study.ipynb")
    try:
        study(session)
        jn.copy("first", "memory:between")
        jn.copy("memory:between", "last")
        assert pictured(open_store(tmp_path / "last")) == pictured(session.access.store)
    finally:
        session.close()
        open_store("memory:between").close()
        jn.definitions.clear()


def test_there_and_back_again_through_a_server(redis_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = redis_server.url()
    bob = jn.connect("first", notebook=tmp_path / "bob.ipynb")
    shared = define("def shared(x): return x + 1", name="shared")
    with working(bob):
        shared(1).result()
    bob.close()
    session = jn.connect("first", notebook=tmp_path / "study.ipynb")
    try:
        study(session)
        big = define("def big(x): return bytes([x]) * (40 << 20)", name="big")
        shows = define(
            "def shows(x):\n"
            "    from jug_notebook.worker import displays\n"
            "    print('before')\n"
            "    displays.current().add({'text/plain': 'a picture', 'image/png': bytes(300_000)})\n"
            "    print('after')\n"
            "    return x",
            name="shows",
        )
        with working(session):
            assert len(big(7).result()) == 40 << 20
            shared(1).result()
        crew = session.execute(1)  # a process of its own: what it prints is kept
        assert shows(1).result(60) == 1
        crew.stop(now=True)
        wait_until(session.access.store, lambda: not crew.supervisors, "the worker stayed")
        old = define("def old(x): return x + 1", name="old")
        with working(session):
            old(1).result()
        old = define("def old(x): return 1 + x", name="old")
        accepted = old(1)
        assert session.accept(old).bound == 1
        source = session.access.store
        keys = [view.key for view in source.tasks()]
        report = jn.copy("first", there)
        assert (report.lost, report.refused, report.new) == (0, 0, len(keys))
        assert report.size > 40 << 20
        back = jn.copy(there, "last")
        assert (back.lost, back.refused, back.new) == (0, 0, len(keys))
        assert (back.results, back.failures) == (report.results, report.failures)
        server, last = open_store(there), open_store("last")
        assert pictured(server) == pictured(source)
        assert pictured(last) == pictured(source)
        for notebook in ("bob.ipynb", "study.ipynb"):
            scope = Scope(str(tmp_path / notebook))
            for store in (server, last):
                assert {view.key for view in store.tasks(scope)} == {view.key for view in source.tasks(scope)}
                assert store.snapshot(scope).counts == source.snapshot(scope).counts
        for url in (there, "last"):
            other = jn.Session(url, notebook=session.notebook)
            runs, copied = ([one and one.run for one in end.access.signed.outcomes(keys)] for end in (session, other))
            assert runs == copied
            [run] = [run for run in copied if run and run.displays]
            assert "".join(text for _, text in run.output) == "before\nafter\n"
            [display] = run.displays
            assert (display.at, bytes(session.access.store.get_blob(display.blob))) == (
                1, bytes(other.access.store.get_blob(display.blob)),
            )  # fmt: skip
            [made] = other.resolve("big")
            assert made.result() == b"\x07" * (40 << 20)
            assert other.resolve(accepted.key)[0].provenance()["accepted by"] == system.user()
            other.close()
        again = jn.copy(there, "last")
        assert (again.new, again.results, again.failures) == (0, 0, 0)
        server.close()
        last.close()
    finally:
        session.close()
        jn.definitions.clear()


def test_acceptances_are_copied_with_who_accepted(session, store_url, other_url):
    f = define("def f(x): return x + 1")
    with working(session):
        f(1).result()
    f = define("def f(x): return 1 + x")
    made = f(1)
    assert session.accept(f).bound == 1
    jn.copy(store_url, other_url)
    assert pictured(open_store(other_url)) == pictured(session.access.store)
    other = jn.Session(other_url, notebook=session.notebook)
    try:
        report = other.resolve(made.key)[0].provenance()
        assert report["accepted by"] == system.user()
        assert made.result() == 2
    finally:
        other.close()


def test_what_was_called_wrong_is_not_served_from_an_equal_run_in_the_copy(store, other_url, tmp_path):
    tasks = Submitter(store, tmp_path)
    other = open_store(other_url)
    there = Submitter(other, tmp_path)
    me = system.me("worker")
    double = cell("def f(x): return x * 2")
    one, same, equal = (tasks.submit(f"def f(): return {text}") for text in ("21", "20 + 1", "22 - 1"))
    first = tasks.submit(double, Need(one))
    store.renew([me])
    work(store, tasks.seal, me, SharedStatus(), until_idle=True)
    second = tasks.submit(double, Need(same))
    work(store, tasks.seal, me, SharedStatus(), until_idle=True)
    store.invalidate([second], Why.DIRECT, "ann")
    assert store.states([first, second]) == [State.FINISHED, State.READY]

    def copied() -> None:
        Copying(store, tasks.seal, other, there.seal).run()

    copied()
    assert other.states([first, second]) == [State.FINISHED, State.READY]
    work(store, tasks.seal, me, SharedStatus(), until_idle=True)
    assert store.states([second]) == [State.FINISHED]
    copied()
    copied()
    assert other.states([second]) == [State.FINISHED]
    third = there.submit(double, Need(equal))
    other.renew([me])
    [held] = other.outcomes([third])
    assert held is None or held.verdict.key == second, "the run that was called wrong must not stand for it"
    assert held is not None


def test_a_copy_may_be_cut_off_anywhere_and_is_taken_up(session, store_url, other_url, monkeypatch):
    study(session)
    number = calls = 0
    while number == calls:
        number, calls = number + 1, 0
        target = open_store(f"{other_url}{number}")
        for verb in ("submit", "claim", "request", "put_blob"):

            def cut(
                *args: Any,
                _act: Any = getattr(type(target), verb),
                _at: int = number,
                _url: str = target.url,
                **more: Any,
            ) -> Any:
                nonlocal calls
                if args[0].url == _url:
                    calls += 1
                    if calls == _at:
                        raise jn.StoreError("cut off")
                return _act(*args, **more)

            monkeypatch.setattr(type(target), verb, cut)
        with suppress(jn.StoreError):
            jn.copy(store_url, target.url)
        monkeypatch.undo()
        jn.copy(store_url, target.url)
        assert pictured(target) == pictured(session.access.store), f"cut off at call {number}"
        target.close()
    assert number > 12


def test_a_lost_value_is_reported_and_computed_again_in_the_copy(session, store_url, other_url):
    f = define("def f(x): return bytes(100_000)")
    with working(session):
        made = f(1)
        made.result()
    [held] = session.access.store.outcomes([made.key])
    lose(session.access.store, addresses_in(held.body))
    report = jn.copy(store_url, other_url)
    assert (report.results, report.lost) == (0, 1)
    assert open_store(other_url).states([made.key]) == [State.READY]


def test_there_must_be_something_to_copy_and_somewhere_else_to_copy_it(session, store_url, tmp_path):
    with pytest.raises(jn.StoreError, match="can't be copied to itself"):
        jn.copy(store_url, store_url)
    with pytest.raises(jn.StoreError, match="no store at"):
        copy(tmp_path / "nowhere", store_url)
    assert not (tmp_path / "nowhere").exists()


# -- from a shell ------------------------------------------------------------------------------------------------------


def test_the_shell_counts_cleans_packs_and_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session = jn.connect("jugdata", notebook=tmp_path / "study.ipynb")
    made = study(session)
    session.close()
    jn.definitions.clear()
    del made
    capsys.readouterr()
    assert main(["count"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["f", "3"], ["g", "3"], ["one", "1"], ["h", "2"], ["same", "1"], ["small", "1"], ["total", "11"]
    ]  # fmt: skip
    assert main(["cleanup", "--dry-run"]) == 0
    assert "would remove 1 task" in capsys.readouterr().out
    assert main(["cleanup", "--older-than", "1d"]) == 0
    assert "nothing to clean up" in capsys.readouterr().out
    assert main(["cleanup", "small"]) == 0
    assert "removed 1 task" in capsys.readouterr().out
    assert main(["copy", "jugdata", "there"]) == 0
    assert capsys.readouterr().out.startswith("copied 11 tasks, ")
    assert main(["pack", "there"]) == 0
    assert capsys.readouterr().out.startswith("file:there ")
    assert main(["status", "there", "--short"]) == 1
    assert gc.isenabled(), "whoever calls it goes on"
    assert main(["copy", "nowhere", "there"]) == 2
    assert "no store at 'nowhere'" in capsys.readouterr().err


def test_a_store_that_was_packed_goes_on(tmp_path):
    store = open_store(tmp_path / "jugdata")
    store.submit([task("a"), task("b", "a")], Origin("ann", "/a.ipynb"))
    assert run_all(store) == 2
    store.close()
    assert main(["pack", str(tmp_path / "jugdata")]) == 0
    later = open_store(tmp_path / "jugdata")
    assert later.tasks(target=Target(keys=frozenset([key("b")])))[0].state is State.FINISHED
    later.submit([task("c", "b")], Origin("ann", "/a.ipynb"))
    assert run_all(later) == 1
