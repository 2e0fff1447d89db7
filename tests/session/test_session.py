"""What a session does for its notebook: hands in, waits, loads, takes back, tells. Workers are threads."""

from __future__ import annotations

import linecache
import os
import shutil
import signal
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook.keys import advice
from jug_notebook.launch import Crew, WorkerGroup
from jug_notebook.model import Origin, State, Target
from jug_notebook.render.summary import attempt_text
from jug_notebook.session.key_list import KeyList
from jug_notebook.store import keyring, open_store, signed
from tests.crews import working
from tests.workbench import PATIENCE, FakeClock, cell, wait_until


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()
    jn.definitions.clear()


def run_cell(source: str) -> None:
    """Run code as a cell of a notebook is run."""
    filename = f"<cell {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), NOTEBOOK)


def define(source: str, name: str = "f", **options: Any) -> Any:
    """A task function as a cell of a notebook defines it."""
    run_cell(source)
    NOTEBOOK[name] = jn.task(**options)(NOTEBOOK[name])
    return NOTEBOOK[name]


NOTEBOOK: dict[str, Any] = {"__name__": "__main__"}


@pytest.fixture(autouse=True)
def _a_fresh_notebook() -> None:
    NOTEBOOK.clear()
    NOTEBOOK["__name__"] = "__main__"


# -- connecting --------------------------------------------------------------------------------------------------------


def test_connecting_twice_is_one_session(session, store_url, tmp_path):
    assert jn.connect(store_url, notebook=tmp_path / "study.ipynb") is session
    assert jn.current() is session


def test_a_store_that_connecting_makes_is_reported_once_with_what_may_have_been_meant(tmp_path, capsys):
    def reported(name: str) -> str:
        jn.connect(name, notebook=tmp_path / "study.ipynb").close()
        return capsys.readouterr().err

    assert reported("results") == "jug_notebook: made a new, empty store: ./results\n"
    assert reported("results") == ""
    assert reported("result") == "jug_notebook: made a new, empty store: ./result; did you mean results?\n"


def test_connecting_to_a_store_that_was_removed_makes_it_anew(tmp_path):
    before = jn.connect(tmp_path / "jugdata", notebook=tmp_path)
    lost = define("def f(x): return x")(1)
    shutil.rmtree(tmp_path / "jugdata")
    with pytest.raises(jn.StoreGone, match=r"is gone: its folder was removed or moved; to make a new store, run %jug"):
        before.status()
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path)
    try:
        assert session is not before
        assert before.closed
        assert session.identity != before.identity
        assert session.status(all=True).total == 0
        with pytest.raises(jn.StoreError):
            lost.result()
        with working(session):
            assert NOTEBOOK["f"](2).result() == 2
    finally:
        session.close()
        jn.definitions.clear()


def test_a_store_that_took_anothers_place_is_refused_until_it_is_accepted(tmp_path):
    for name in ("jugdata", "other"):
        jn.connect(tmp_path / name, notebook=tmp_path).close()
    shutil.rmtree(tmp_path / "jugdata")
    shutil.move(tmp_path / "other", tmp_path / "jugdata")
    with pytest.raises(jn.StoreError, match=r"held another store before .* accept_new=True"):
        jn.connect(tmp_path / "jugdata", notebook=tmp_path)
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path, accept_new=True)
    assert jn.connect(tmp_path / "jugdata", notebook=tmp_path) is session
    session.close()


def test_a_session_whose_store_was_replaced_submits_nothing_to_the_new_one(tmp_path):
    before = jn.connect(tmp_path / "jugdata", notebook=tmp_path)
    f = define("def f(x): return x")
    f(1)
    before.submissions.flush()  # its log is open from now on
    shutil.rmtree(tmp_path / "jugdata")
    with closing(open_store(tmp_path / "jugdata")) as replaced:
        f(2)
        with pytest.raises(jn.StoreGone, match="there is another store in its place"):
            before.submissions.flush()
        session = jn.connect(tmp_path / "jugdata", notebook=tmp_path)
        try:
            assert session.identity == replaced.id
            assert session.status(all=True).total == 0
        finally:
            session.close()
            jn.definitions.clear()


def test_the_first_need_connects_to_the_store_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JUG_STORE", "results/here")
    monkeypatch.chdir(tmp_path)
    session = jn.current()
    try:
        assert session.url == f"file:{tmp_path / 'results/here'}"
    finally:
        session.close()


def test_a_store_whose_key_is_unknown_is_refused_with_the_way_out(tmp_path, monkeypatch):
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path)
    define("def f(x): return x")(1)
    store_id = session.identity
    session.close()
    keyring._here.clear()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(jn.StoreError, match=f"key of store {store_id[:12]}"):
        jn.connect(tmp_path / "jugdata", notebook=tmp_path)


def test_a_session_is_seen_in_its_store_until_it_is_closed(session):
    alive = {info.id: alive for info, alive, _ in session.access.store.processes()}
    assert alive[session.id]
    store = session.access.store
    session.close()
    session.close()
    assert not {info.id: alive for info, alive, _ in store.processes()}.get(session.id)
    assert repr(session).endswith("closed>")


def test_tasks_of_two_stores_do_not_mix(session, tmp_path):
    f = define("def f(x): return x")
    here = f(1)
    other = jn.connect("memory:other", notebook=tmp_path)
    try:
        with pytest.raises(jn.BadTask, match="belongs to"):
            f(here)
        assert here.state is State.READY
    finally:
        other.close()


# -- the keyring -------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_is_readable_by_its_user_alone():
    secret = keyring.secret("abc", make=True)
    keyring._here.clear()
    assert keyring.secret("abc") == secret
    assert stat.S_IMODE((keyring.key_folder() / "abc").stat().st_mode) == 0o600
    assert stat.S_IMODE(keyring.key_folder().stat().st_mode) == 0o700
    assert keyring.keep_secret("abc", bytes(32)) == secret


def test_a_key_that_others_can_read_is_refused():
    keyring.secret("open", make=True)
    keyring._here.clear()
    (keyring.key_folder() / "open").chmod(0o644)
    with pytest.raises(jn.StoreError, match="chmod 600"):
        keyring.secret("open")


def test_a_key_that_is_only_for_this_process_is_not_written():
    keyring.secret("fleeting", make=True, lasting=False)
    assert not (keyring.key_folder() / "fleeting").exists()
    with pytest.raises(jn.StoreError, match="is not in"):
        keyring.secret("unknown")
    with pytest.raises(jn.StoreError, match="not the id"):
        keyring.secret("../../etc/passwd")


# -- handing in --------------------------------------------------------------------------------------------------------


def test_a_cell_tells_what_it_handed_in(session):
    f = define("def f(x): return x")
    session.begin_cell("1")
    f.map(range(5))
    report = session.end_cell()
    assert (report.new, report.known, report.finished, report.queued, report.workers) == (5, 0, 0, 5, 0)
    with working(session):
        session.barrier()
    session.begin_cell("1")
    f.map(range(6))
    report = session.end_cell()
    assert (report.new, report.finished, report.cancelled) == (1, 5, 0)


def test_tasks_reach_the_store_by_the_batch(session):
    f = define("def f(x): return x")
    session.begin_cell("1")
    f(1)
    handed = session.submissions._submitted
    f.map(range(10, 1200))
    assert (handed.new, session.submissions._submitted.new >= 1000) == (0, True)
    assert session.end_cell().new == 1191


def test_what_a_long_cell_leaves_lying_is_handed_in_after_a_while(store_url, tmp_path):
    clock = FakeClock()
    session = jn.Session(store_url, notebook=tmp_path, clock=clock)
    from jug_notebook.task import context

    context.set_current(session)
    task = define("def f(x): return x")(1)
    assert session.access.store.states([task.key]) == [None]
    clock.advance(1)
    session._beat_once()
    assert session.access.store.states([task.key]) == [State.READY]
    session.close()


def test_rerunning_an_edited_cell_takes_back_what_it_no_longer_makes(session):
    f = define("def f(x): return x")
    session.begin_cell("1")
    before = f.map(range(5))
    session.end_cell()
    session.begin_cell("2")
    elsewhere = f(3)
    session.end_cell()
    session.begin_cell("1")
    f.map(range(2))
    assert session.end_cell().cancelled == 2, "the third is requested elsewhere"
    assert [t.state for t in before] == [State.READY] * 2 + [State.CANCELLED, State.READY, State.CANCELLED]
    assert elsewhere.state is State.READY
    with pytest.raises(jn.TaskCancelled, match="is cancelled"), working(session):
        before[4].result()


def test_a_cell_that_failed_takes_nothing_back(session):
    f = define("def f(x): return x")
    session.begin_cell("1")
    before = f.map(range(5))
    session.end_cell()
    session.begin_cell("1")
    f(0)
    assert session.end_cell(success=False).cancelled == 0
    assert {t.state for t in before} == {State.READY}


def test_finished_tasks_are_not_taken_back(session):
    f = define("def f(x): return x")
    session.begin_cell("1")
    task = f(1)
    session.end_cell()
    with working(session):
        task.result()
    session.begin_cell("1")
    session.end_cell()
    assert task.state is State.FINISHED


def test_redefining_a_function_takes_back_its_old_versions_pending_tasks(session):
    session.begin_cell("1")
    f = define("def f(x): return x")
    old = f.map(range(3))
    session.end_cell()
    session.begin_cell("2")
    f = define("def f(x): return x + 1")
    assert session.end_cell().cancelled == 3
    assert {t.state for t in old} == {State.CANCELLED}
    new = f(1)
    assert new.key != old[1].key
    assert new.state is State.READY


@pytest.mark.parametrize("store_url", ["file", "redis"], indirect=True)
def test_after_a_restart_only_the_cell_that_requested_tasks_of_other_code_cancels_them(store_url, tmp_path):
    first = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    first.begin_cell("calls")
    old = define("def f(x): return x")(1)
    first.end_cell()
    first.close()
    second = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    second.begin_cell("another")
    define("def f(x): return x + 1")(2)
    assert second.end_cell().cancelled == 0
    assert second.access.store.states([old.key]) == [State.READY]
    second.begin_cell("calls")
    define("def f(x): return x + 1")(1)
    assert second.end_cell().cancelled == 1
    assert second.access.store.states([old.key]) == [State.CANCELLED]
    second.close()


def test_the_same_code_again_takes_nothing_back_and_is_no_former_definition(session):
    session.begin_cell("1")
    task = define("def f(x): return x")(1)
    session.end_cell()
    session.begin_cell("1")
    again = define("def f(x):\n    # a comment\n    return x")(1)
    assert session.end_cell().cancelled == 0
    assert again.key == task.key
    assert "previous" not in repr(task)


def test_another_value_of_a_global_is_no_redefinition(session):
    NOTEBOOK["ALPHA"] = 1
    f = define("def f(x): return x + ALPHA")
    session.begin_cell("1")
    old = f(1)
    session.end_cell()
    NOTEBOOK["ALPHA"] = 2
    session.begin_cell("2")
    new = f(1)
    assert session.end_cell().cancelled == 0
    assert (old.state, new.state) == (State.READY, State.READY)
    assert "previous" not in repr(old)


def test_a_redefined_helper_makes_a_former_definition(session):
    run_cell("def helper(x): return x")
    f = define("def f(x): return helper(x)")
    session.begin_cell("1")
    old = f(1)
    session.end_cell()
    session.begin_cell("2")
    run_cell("def helper(x): return -x")
    assert session.end_cell().cancelled == 1
    assert "previous" in repr(old)


def test_a_handle_of_a_former_definition_says_so(session):
    session.begin_cell("1")
    task = define("def f(x): return x")(1)
    session.end_cell()
    with working(session):
        task.result()
    session.begin_cell("2")
    define("def f(x): return -x")
    session.end_cell()
    session.begin_cell("3")
    assert "of a previous definition" in repr(task)
    with pytest.warns(jn.FormerDefinition, match="call it again"):
        assert task.result() == 1
    with pytest.warns(jn.FormerDefinition):
        assert jn.value([task]) == [1]
    session.end_cell()


def test_a_handle_made_before_a_global_changed_says_so_and_so_does_what_needs_it(session):
    session.begin_cell("1")
    NOTEBOOK["BIAS"] = 1
    score = define("def score(x): return x + BIAS", "score")
    total = define("def total(xs): return sum(xs)", "total")
    scores = [score(x) for x in range(3)]
    whole = total([total(scores[:2]), scores[2]])
    session.end_cell()
    with working(session), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (scores[2].result(), whole.result()) == (3, 6)
    session.begin_cell("2")
    NOTEBOOK["BIAS"] = 100
    session.end_cell()
    session.begin_cell("3")
    with pytest.warns(jn.FormerDefinition, match=r"score\(x=2\) was made before global BIAS \(1 → 100\) changed; make"):
        assert scores[2].result() == 3
    with pytest.warns(jn.FormerDefinition, match=r"global BIAS \(1 → 100\) of score, which it needs, changed"):
        assert whole.result() == 6
    session.end_cell()
    NOTEBOOK["BIAS"] = 1
    session.begin_cell("4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (scores[2].result(), whole.result()) == (3, 6)
    session.end_cell()


def test_environment_variables_are_handed_along_and_secrets_are_the_workers_own(session, monkeypatch):
    monkeypatch.setenv("MODE", "fast")
    monkeypatch.setenv("TOKEN", "hush-hush")
    monkeypatch.delenv("LEVEL", raising=False)
    source = "import os\ndef f(): return os.environ['MODE'], os.getenv('LEVEL'), os.environ['TOKEN'][:4]"
    f = define(source, env=["MODE", "LEVEL"], secret_env="TOKEN")
    task = f()
    session.submissions.flush()
    monkeypatch.setenv("MODE", "slow")
    monkeypatch.setenv("LEVEL", "3")
    with working(session):
        assert task.result() == ("fast", None, "hush")  # as it was when the task was made
    assert (os.environ["MODE"], os.environ["LEVEL"]) == ("slow", "3")
    again = f()
    assert again.key != task.key
    template = signed.template(session.access.signed.known_spec(task.key).template)
    bundle = bytes(session.access.store.get_blob(template.bundle))
    assert b"fast" in bundle
    assert b"hush" not in bundle
    session.submissions.flush()
    monkeypatch.delenv("TOKEN")
    with working(session), pytest.raises(jn.TaskFailed, match=r"no environment variable 'TOKEN'.*start them anew"):
        again.result()


def test_what_changes_within_a_cell_is_an_error_that_names_it(session):
    NOTEBOOK["ALPHA"] = 1
    f = define("def f(x): return x + ALPHA")
    g = define("def g(x): return x", "g")
    session.begin_cell("1")
    many = f.map(range(1500))
    other, needing, after = g(1), g(many[0]), g([g(many[1499])])
    NOTEBOOK["ALPHA"] = 2
    with pytest.raises(jn.ChangedInCell, match=r"global ALPHA.* changed after f was first called"):
        session.end_cell()
    assert {t.state for t in many} == {State.CANCELLED}
    assert other.state is State.READY
    assert {needing.state, after.state} == {State.CANCELLED}  # they would wait for ever
    session.begin_cell("1")
    assert f(1).key != many[1].key
    session.end_cell()


def test_what_can_no_longer_be_hashed_at_the_end_of_its_cell_has_changed_too(session):
    NOTEBOOK["ALPHA"] = 1
    f = define("def f(x): return x + ALPHA")
    session.begin_cell("1")
    before = f(1)
    NOTEBOOK["ALPHA"] = threading.Lock()
    after = f(2)
    with pytest.raises(jn.ChangedInCell, match=r"lock.* changed after f was first called"):
        session.end_cell()
    session.begin_cell("2")
    session.end_cell()
    assert {before.state, after.state} == {State.CANCELLED}


def test_in_a_script_each_handing_in_ends_the_cell(session):
    NOTEBOOK["ALPHA"] = 1
    f = define("def f(x): return x + ALPHA")
    one = f(1)
    session.submissions.flush()
    NOTEBOOK["ALPHA"] = 2
    two = f(1)
    session.submissions.flush()
    assert one.key != two.key
    with working(session):
        assert jn.bvalue([one, two]) == [2, 3]


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_waiting_with_nobody_at_work_ends_at_once_and_says_what_to_do(session):
    task = define("def f(x): return x")(1)
    for wait in (task.result, jn.barrier, lambda: jn.bvalue([task]), lambda: jn.wait(task), task.exception):
        with pytest.raises(jn.BarrierError, match="%jug_execute -n 4"):
            wait()
    done, not_done = jn.wait([task], timeout=0)
    assert (done, not_done) == (set(), {task})


def test_workers_that_a_queue_starts_late_are_waited_for_as_long_as_was_asked(session, capsys):
    task = define("def f(x): return x + 1")(1)
    with pytest.raises(jn.NoWorkers):
        task.result(wait_for_workers=0.1)
    assert "1 task queued and no worker is running yet: waiting up to 100 ms for one" in capsys.readouterr().err
    late = threading.Timer(1.2, lambda: jn.execute(1))  # after the first look, which would have raised
    late.start()
    assert task.result(wait_for_workers=30) == 2
    late.join()
    session.stop(now=True)


def test_how_long_workers_are_waited_for_can_be_given_once_for_all_results(session, capsys):
    task = define("def f(x): return x + 1")(1)
    session.results.wait_for_workers = 0.1
    for wait in (task.result, jn.barrier, lambda: jn.bvalue([task])):
        with pytest.raises(jn.NoWorkers):
            wait()
        assert "waiting up to 100 ms" in capsys.readouterr().err
    with pytest.raises(jn.NoWorkers):
        task.result(wait_for_workers=0)
    assert not capsys.readouterr().err
    with pytest.raises(jn.JugError, match="wait_for_workers='long': give a number of seconds"):
        jn.execute(1, wait_for_workers="long")


def test_asking_again_for_starting_workers_counts_them_once(session):
    class Starting(WorkerGroup):
        def is_starting(self, supervisors, workers):
            return True

    for size in (1, 2, 2, 2):
        session.workers.crews.append(Crew(session.access.store, [Starting(session.access.store, "c", size=size)]))
    assert session.status().snapshot.starting == 2


def test_workers_of_another_python_do_not_count(session):
    import msgspec

    from jug_notebook import system

    task = define("def f(x): return x")(1)
    other = msgspec.structs.replace(system.me("worker"), python="2.7")
    session.access.store.renew([other])
    with pytest.raises(jn.BarrierError, match=r"have Python 2\.7"):
        task.result()
    session.access.store.leave([other.id])


def test_a_task_that_takes_too_long_goes_on(session):
    gate = session.folder / "gate"
    g = define(
        "def g(gate):\n    import os, select\n    end = os.open(gate, os.O_RDONLY)\n    return os.read(end, 9)", "g"
    )
    os.mkfifo(gate)
    task = g(str(gate))
    with working(session):
        with pytest.raises(jn.WaitTimeout, match="they go on"):
            task.result(timeout=0.05)
        with pytest.raises(jn.WaitTimeout):
            jn.TaskList([task]).wait(0.05)
        gate.write_bytes(b"open")
        assert task.result(20) == b"open"


def test_ctrl_c_ends_the_wait_alone_and_says_how_much_goes_on(session):
    gate = session.folder / "gate"
    g = define("def g(gate):\n    with open(gate) as file:\n        return file.read()", "g")
    os.mkfifo(gate)
    task = g(str(gate))
    with working(session):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(jn.WaitInterrupted, match=r"1 running.*%jug_stop"):
            task.result()
        gate.write_text("fine")
        assert task.result(20) == "fine"


def test_a_failure_tells_what_where_and_why(session):
    f = define("def f(x):\n    print('so far so good')\n    raise KeyError(x)")
    g = define("def g(x): return x", "g")
    task = f(3)
    needy = g(task)
    with working(session):
        with pytest.raises(jn.TaskFailed) as caught:
            task.result()
        with pytest.raises(jn.TaskFailed, match=r"g\(x=f\(x=3\)\) needs a task that failed"):
            needy.result()
    message = str(caught.value)
    for part in ("f(x=3)", "KeyError: 3", "raise KeyError(x)", "pid"):
        assert part in message
    assert message.endswith("\n\nfailed just now; %jug_retry tries it again")
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.failure.kind == "raised"
    assert isinstance(task.exception(), KeyError)
    assert needy.state is State.BLOCKED
    [failure] = session.status().failures
    assert (failure.name, failure.args_repr) == ("f", "x=3")


def test_a_failure_says_which_attempt_it_was(session):
    f = define("def f(x):\n    raise KeyError(x)")
    g = define("def g(x):\n    raise KeyError(x)", "g")
    again, once = jn.task(retries=2)(f.__jug_function__)(3), g(3)
    with working(session):
        for task, there in ((again, True), (once, False)):
            with pytest.raises(jn.TaskFailed) as caught:
                task.result()
            assert (" · attempt 3 of 3 · started " in str(caught.value)) is there
            assert (" · attempt 3 of 3\n" in str(session.log(task))) is there
            assert ("attempt" in str(caught.value)) is there
    assert ", attempt 3 of 3, started " in session.status()._repr_html_()


def test_a_death_is_an_attempt_beyond_those_that_retries_give():
    assert [attempt_text(*numbers, " · ") for numbers in ((1, 1), (2, 1), (1, 3), (4, 3))] == [
        "",
        " · attempt 2",
        " · attempt 1 of 3",
        " · attempt 4",
    ]


def test_workers_that_are_stopped_before_they_came_are_no_failure(tmp_path):
    with closing(jn.connect(tmp_path / "jugdata", notebook=tmp_path / "study.ipynb")) as session:
        store, started = session.access.store, []
        for cycle in range(20):
            for _ in range(1 + cycle % 2):  # the second finds no supervisor yet, either
                started += [getattr(group, "_started", None) for group in session.execute(1).groups]
            session.stop(now=cycle % 4 == 0)
        left = [process for process in started if process is not None]
        wait_until(store, lambda: all(process.poll() is not None for process in left), "a stopped crew has come")
        assert len(left) > 10
        assert not [line for crew in session.workers.crews for line in crew.failures]
        task = define("def f(x): return x")(3)
        session.execute(1)
        assert task.result(timeout=PATIENCE) == 3
        session.stop(now=True)
        wait_until(store, lambda: not any(crew.supervisors for crew in session.workers.crews))
    jn.definitions.clear()


def test_a_picture_that_moves_reads_a_few_failures_at_a_time_and_each_once(session, monkeypatch):
    f = define("def f(n, why='bad'):\n    raise ValueError(f'{why} row {n}')")
    tasks = f.map(range(150))
    with working(session):
        tasks.wait()
    read = []
    fill = session.access.signed.filled
    monkeypatch.setattr(session.access.signed, "filled", lambda views: read.extend(views) or fill(views))
    seen = []
    while not seen or seen[-1] < 150:
        [kind] = session.queries.glance().kinds
        seen.append(len(kind.keys))
    assert seen == [60, 120, 150]
    assert session.queries.glance().kinds == session.status().kinds == (kind,)
    assert (len(read), len(session.status().failures)) == (150, 20)
    assert kind.about == "ValueError: bad row #"
    assert set(kind.keys) == {task.key for task in tasks}
    assert kind.newest.key == kind.keys[0]
    assert [like.key for like in kind.others] == list(kind.keys[1:13])
    assert "149 similar failures" in repr(session.status())


def test_kinds_of_failures_that_were_listed_keep_their_place(session):
    f = define("def f(word):\n    raise ValueError(word)")
    words = [f"{a}{b}" for a in "abcdef" for b in "uvwxyz"]
    with working(session):
        f.map(words[:3]).wait()
        first = [kind.about for kind in session.queries.glance().kinds]
        f.map(words[3:]).wait()
        kinds = session.queries.glance().kinds
        assert [kind.about for kind in kinds[:3]] == first
        assert len(kinds) == 10
        again = f(words[0] + "!")
        again.exception()
        assert session.queries.glance().kinds == kinds


def test_a_target_may_be_keys_and_functions_of_any_notebook(session, tmp_path):
    f = define("def f(n):\n    if n: raise ValueError(n)")
    tasks = f.map(range(40))
    with working(session):
        tasks.wait()
    failed = frozenset(kind_key for kind in session.queries.glance().kinds for kind_key in kind.keys)
    assert session.retry(Target(keys=failed)) == 39
    assert session.retry(Target(keys=failed)) == 0
    other = jn.Session(session.url, notebook=tmp_path / "other.ipynb")
    name = Target(names=frozenset([f.name]))
    assert other.invalidate(name) == 0
    assert other.invalidate(name, all=True) == 1
    other.close()


def test_failures_that_are_tried_again_are_read_again(session, tmp_path):
    f = define("import os\ndef f(path):\n    raise (KeyError if os.path.exists(path) else ValueError)('it')")
    task, gate = f(tmp_path / "gate"), tmp_path / "gate"
    with working(session):
        task.exception()
        [kind] = session.queries.glance().kinds
        assert kind.about == "ValueError: it"
        gate.touch()
        assert task.retry() == 1
        task.exception()
        [kind] = session.queries.glance().kinds
        assert kind.about == "KeyError: 'it'"
    assert [run.superseded for run in session.history()] == ["", "tried again"]


def test_a_lost_value_is_computed_again(session):
    f = define("def f(n): return bytes(n)")
    task = f(200_000)
    with working(session):
        assert len(task.result()) == 200_000
        outcome = session.access.signed.outcomes([task.key])[0]
        lost = [part for part in (outcome.value.data, *outcome.value.buffers) if isinstance(part, str)]
        assert lost
        forget(session, lost)
        assert len(task.result()) == 200_000
        forget(session, lost)
        with pytest.raises(jn.NotReady, match="will be recomputed"):
            task.value()


def forget(session: jn.Session, addresses: list[str]) -> None:
    """Remove blobs behind the store's back."""
    store: Any = session.access.store
    if session.url.startswith("memory:"):
        for address in addresses:
            del store._blobs[address]
    elif session.url.startswith("unix:"):
        for address in addresses:
            assert store._connection.command("DEL", store._connection.key(f"v:{address}")) == 1
    else:
        for address in addresses:
            for path in Path(store.folder, "blobs").rglob("*"):
                if path.is_file() and path.name.endswith(address[4:]):
                    path.unlink()


def test_values_that_someone_else_wrote_are_not_opened(session):
    task = define("def f(x): return x")(1)
    with working(session):
        task.result()
    real = session.access.store.outcomes
    session.access.store.outcomes = lambda keys: [
        held and type(held)(held.verdict, bytes(32) + bytes(held.body)[32:]) for held in real(keys)
    ]
    with working(session), warnings.catch_warnings():  # on Redis it runs again, once
        warnings.simplefilter("ignore")
        with pytest.raises(jn.SignatureError, match=task.key[:12]):
            task.result(timeout=30)
    assert "not shown" in repr(session.tasks())


# -- the verbs ---------------------------------------------------------------------------------------------------------


def test_a_target_is_an_expression_a_name_a_key_or_a_pattern(session):
    f = define("def fit(x): return x", "fit")
    g = define("def predict(x): return x", "predict")
    models = f.map(range(3))
    guess = g(models[0])
    session.submissions.flush()
    space = {"models": models, "guess": guess, "fit": f}

    def keys(target, namespace=None):
        return {task.key for task in session.resolve(target, namespace)}

    every = {t.key for t in models}
    assert keys("models", space) == keys("fit") == keys("fit", space) == keys(f) == keys(models) == every
    assert keys("models[1:]", space) == {t.key for t in models[1:]}
    assert keys(guess) == keys(guess.key[:8]) == keys("/pre/") == keys({"a": [guess]}) == {guess.key}
    assert keys("/fit|predict/") == every | {guess.key}
    assert session.resolve("predict")[0].dependencies()[0] == models[0]
    refusals = {"predit": "did you mean predict", "/[/": "regular expression", "zzz": "There are tasks of"}
    for wrong, message in refusals.items():
        with pytest.raises(jn.NoSuchTask, match=message):
            session.resolve(wrong, space)
    with pytest.raises(jn.NoSuchTask, match="holds no task"):
        session.resolve(3)


def test_handles_can_be_found_again_and_read(session):
    task = define("def f(x): return x")(5)
    with working(session):
        task.result()
    [found] = session.resolve("f")
    assert found == task
    assert found.result() == 5
    assert repr(found) == repr(task)


def test_retry_tries_what_failed_again(session, tmp_path):
    flag = tmp_path / "flag"
    f = define("def f(path):\n    with open(path) as file:\n        return file.read()")
    g = define("def g(x): return x.upper()", "g")
    task = g(f(str(flag)))
    with working(session):
        with pytest.raises(jn.TaskFailed):
            task.result()
        flag.write_text("there")
        assert task.retry() == 1
        assert task.result() == "THERE"
    assert session.retry() == 0


def test_invalidate_computes_again_with_all_that_depends(session, tmp_path):
    source = tmp_path / "source"
    source.write_text("1")
    f = define("def f(path):\n    with open(path) as file:\n        return int(file.read())")
    g = define("def g(x): return x + 1", "g")
    first = f(str(source))
    second = g(first)
    with working(session):
        assert second.result() == 2
        source.write_text("10")
        assert session.invalidate("f") == 1
        assert second.result() == 11


def test_cancel_takes_back_what_has_not_started(session):
    f = define("def f(x): return x")
    many = f.map(range(4))
    assert many[0].cancel() == 1
    assert many[1:3].cancel() == 2
    assert session.cancel("f") == 1
    assert {t.state for t in many} == {State.CANCELLED}
    assert f(0).state is State.READY


def test_only_what_cancelling_keeps_from_running_counts_as_cancelled(session):
    f = define("def f(x): return 1 / x")
    g = define("def g(y): return y")
    failing = f(0)
    with working(session), pytest.raises(jn.TaskFailed):
        failing.result()
    pending = f(2)
    blocked, needing = g(failing), g(pending)
    assert pending.cancel() == 0, "another task needs it"
    assert session.cancel([failing, pending, blocked, needing]) == 3
    assert session.cancel([failing, pending, blocked, needing]) == 0
    session.begin_cell("2")
    f(0)
    session.end_cell()
    session.begin_cell("2")
    assert session.end_cell().cancelled == 0, "it has failed before"


def test_the_listing_and_the_log_have_what_tasks_printed(session, capsys):
    f = define("def f(x):\n    return [x] * 3")
    tasks = f.map(range(60))
    with working(session):
        tasks.wait()
    listing = session.tasks(limit=10)
    assert (len(listing), listing.total) == (10, 60)
    assert listing[0].summary == "list of 3"
    assert repr(listing).splitlines()[0].split() == ["key", "state", "task", "x", "time", "value"]
    assert repr(listing).splitlines()[1].split()[1:4] == ["finished", "f", "0"]
    assert "50 more" in repr(listing)
    assert "<" in listing._repr_html_()
    assert [view.args_repr for view in session.tasks("f", state="finished", limit=2)] == ["x=0", "x=1"]
    message = session.log("f")
    assert "f(x=0) · finished" in message
    assert "40 more" in message
    assert repr(message) == str(message)
    assert "40 tasks before" in session.log()
    with pytest.raises(jn.NoSuchTask, match="no worker on host"):
        session.log(host="nowhere")


def test_status_is_of_this_notebook_or_of_the_whole_store(session, tmp_path):
    define("def f(x): return x").map(range(3))
    session.submissions.flush()
    elsewhere = Origin("somebody", str(tmp_path / "other.ipynb"))
    [body] = session.access.store.specs([session.tasks()[0].key])
    assert body is not None
    session.access.store.request([session.tasks()[0].key], elsewhere, True)
    assert session.status().counts[State.READY] == 3
    assert session.status(all=True).total == 3
    assert "3" in repr(session.status())
    assert "<div" in session.status()._repr_html_()
    assert isinstance(session.status().eta, float | None)


def test_a_crew_runs_what_the_session_hands_in(tmp_path):
    session = jn.connect(f"memory:{tmp_path.name}", notebook=tmp_path, headless=True)
    tasks = define("def f(x): return x * 2").map(range(20))
    crew = session.execute(2)
    assert tasks.result(timeout=20) == [2 * i for i in range(20)]
    assert crew in session.workers.crews
    session.close()
    jn.definitions.clear()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size))])
def test_a_function_that_the_store_has_lost_is_stored_again_by_the_notebook_that_has_it(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "a.ipynb")
    double = jn.task(cell("def double(x): return 2 * x", "double"))
    half = jn.task(cell("def half(x): return x // 2", "half"))
    with working(session):
        assert double(1).result() == 2
    for path in (tmp_path / "jugdata/blobs").glob("*/*"):
        damage(path)
    with working(session):
        assert half(double(2)).result() == 2
    session.close()


def test_a_long_wait_for_many_tasks_shows_how_far_it_is(session: jn.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Line:
        def show(self, line: str) -> None:
            lines.append(line)

        def end(self, line: str) -> None:
            lines.append(f"end: {line}")

    monkeypatch.setattr("jug_notebook.session.results.QUIET", 0.0)
    session.results.progress = Line
    double, total = jn.task(lambda x: 2 * x), jn.task(sum)
    tasks = [double(n) for n in range(3)]
    with working(session):
        assert jn.result(tasks) == [0, 2, 4]
        assert double(7).result() == 14, "one that needs no other shows nothing"
    assert lines[0].endswith(" of 3 tasks done")
    assert lines[-1] == "end: 3 of 3 tasks done"
    del lines[:]
    one = total([double(n) for n in range(3, 7)])
    with working(session):
        assert one.result() == 36
    assert lines[0].endswith(" of 5 tasks done"), "itself and the four that it needs"
    assert lines[-1] == "end: 5 of 5 tasks done"
    part = jn.task(lambda x: 1 // x)
    with working(session), pytest.raises(jn.TaskFailed):
        jn.result([total([part(n)]) for n in range(3)])
    assert lines[-1].endswith(" of 6 tasks done, 1 failed, 1 blocked")


@pytest.mark.filterwarnings("ignore::jug_notebook.errors.OnlyAPath")
def test_a_failure_names_files_that_were_written_since(
    session: jn.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("data.csv")
    path.write_text("n/a")
    number = jn.task(lambda path: float(Path(path).read_text()))
    with working(session):
        for argument in (jn.file(path), "data.csv"):
            with pytest.raises(jn.TaskFailed) as failed:
                number(argument).result()
            assert "written since" not in str(failed.value)
        os.utime(path, (2e9, 2e9))
        with pytest.raises(jn.TaskFailed, match=r"tries it again\. data\.csv was written since$"):
            number("data.csv").result()
        [made] = [view for view in session.tasks() if "file(" in view.args_repr]
        with pytest.raises(jn.TaskFailed, match=r"But data\.csv was written since: re-run its cell"):
            raise session.results.problem(made.key)


def test_a_wait_whose_errors_go_to_no_terminal_shows_nothing(
    session: jn.Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jug_notebook.session.results.QUIET", 0.0)
    double = jn.task(lambda x: 2 * x)
    tasks = [double(n) for n in range(3)]
    with working(session):
        assert jn.result(tasks) == [0, 2, 4]
    assert capsys.readouterr() == ("", "")


def test_a_warning_is_given_once_about_a_notebook_and_a_store_also_by_later_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(store: str, notebook: str) -> int:
        monkeypatch.setattr(advice, "_warned", set())  # as in a new process
        session = jn.connect(tmp_path / store, notebook=tmp_path / notebook)
        with closing(session), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            advice.warn_once(("path", "f", "x"), jn.OnlyAPath, "argument 'x' is a path.")
            advice.warn_once(("path", "f", "x"), jn.OnlyAPath, "argument 'x' is a path.")
        return len(caught)

    assert [given("one", "a.ipynb"), given("one", "a.ipynb")] == [1, 0]
    assert [given("one", "b.ipynb"), given("two", "a.ipynb"), given("two", "a.ipynb")] == [1, 1, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", jn.KeyAdvice)
        for _ in range(2):
            with pytest.raises(jn.OnlyAPath):
                advice.warn_once(("path", "f", "y"), jn.OnlyAPath, "argument 'y' is a path.")


def test_keys_that_come_again_are_kept_once_or_twice_and_given_once() -> None:
    keys, found = [f"{number:040x}" for number in range(100)], KeyList()
    found.extend(keys, False)
    for _ in range(50):
        found.extend(keys[::-1], True)
    assert list(found) == keys
    assert len(found) <= 2 * len(keys)
    found.extend(["f" * 40], False)
    assert list(found) == [*keys, "f" * 40]
