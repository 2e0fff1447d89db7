"""Results that are reused: after a need came back equal, after code was edited and accepted; and when not."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.model import CurrentOutcome, Finished, State, Why, WorkerInfo
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader
from jug_notebook.worker.loop import work
from jug_notebook.worker.status import SharedStatus
from tests.crews import working
from tests.workbench import Need, Submitter, cell

# -- one worker --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(store: Store, tmp_path: Path) -> Submitter:
    return Submitter(store, tmp_path)


@pytest.fixture
def me() -> WorkerInfo:
    return system.me("worker")


def run_all(tasks: Submitter, me: WorkerInfo) -> int:
    tasks.store.renew([me])
    return work(tasks.store, tasks.seal, me, SharedStatus(), until_idle=True)


def test_a_task_on_an_equal_value_of_another_need_does_not_run_and_its_value_serves_others(
    tasks: Submitter, me: WorkerInfo
) -> None:
    double = cell("def f(x): return x * 2")
    one = tasks.submit("def f(): return 21")
    doubled = tasks.submit(double, Need(one))
    assert run_all(tasks, me) == 2
    same = tasks.submit("def f(): return 20 + 1")
    again = tasks.submit(double, Need(same))
    above = tasks.submit("def f(x): return -x", Need(again))
    assert run_all(tasks, me) == 2
    assert [tasks.state(key) for key in (again, above)] == [State.FINISHED, State.FINISHED]
    assert tasks.value(above) == -42
    [held] = tasks.store.outcomes([again])
    assert held is not None
    assert (held.verdict.key, len(held.proof)) == (doubled, 2)


def test_another_function_on_equal_values_runs(tasks: Submitter, me: WorkerInfo) -> None:
    one = tasks.submit("def f(): return 21")
    tasks.submit("def f(x): return x * 2", Need(one))
    tasks.submit("def f(x): return x * 3", Need(one))
    assert run_all(tasks, me) == 3


def test_a_store_that_gives_another_tasks_result_is_not_believed(tasks: Submitter, me: WorkerInfo) -> None:
    one = tasks.submit("def f(): return 21")
    doubled = tasks.submit("def f(x): return x * 2", Need(one))
    tripled = tasks.submit("def f(x): return x * 3", Need(one))
    run_all(tasks, me)
    [held], specs = tasks.store.outcomes([doubled]), tasks.store.specs([tripled, doubled])
    assert held is not None
    assert held.verdict.key == doubled
    signed = SignedReader(tasks.store, tasks.seal)
    for proof in ((), tuple(specs), (specs[0],)):
        with pytest.raises(jn.SignatureError):
            signed.outcome(tripled, CurrentOutcome(held.verdict, held.body, proof))  # type: ignore[arg-type]


def test_a_lost_value_that_was_reused_is_computed_again_and_not_reused_again(tasks: Submitter, me: WorkerInfo) -> None:
    double = cell("def f(x): return x * 2")
    one, same = tasks.submit("def f(): return 21"), tasks.submit("def f(): return 20 + 1")
    doubled = tasks.submit(double, Need(one))
    run_all(tasks, me)
    again = tasks.submit(double, Need(same))
    assert tasks.state(again) is State.FINISHED
    tasks.store.invalidate([again], Why.LOST, "ann")
    assert [tasks.state(key) for key in (doubled, again)] == [State.READY, State.READY]
    assert run_all(tasks, me) >= 1, "the other may reuse it, once one has run"
    assert (tasks.value(doubled), tasks.value(again)) == (42, 42)


# -- a session ---------------------------------------------------------------------------------------------------------

NOTEBOOK: dict[str, Any] = {}


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    NOTEBOOK.clear()
    NOTEBOOK.update({"__name__": "__main__", "LOG": jn.NoHash(str(tmp_path / "ran"))})
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()
    jn.definitions.clear()


def define(source: str, name: str) -> Any:
    """A task function as a cell defines it, which writes its name to a file when it runs."""
    head, body = source.split(": ", 1)
    source = f"{head}:\n    with open({str(LOG)!r}, 'a') as log:\n        log.write({name!r})\n    {body}\n"
    filename = f"<cell {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), NOTEBOOK)
    NOTEBOOK[name] = jn.task(NOTEBOOK[name])
    return NOTEBOOK[name]


LOG = Path()


@pytest.fixture(autouse=True)
def _a_log(tmp_path: Path) -> None:
    global LOG
    LOG = tmp_path / "ran"


def ran() -> str:
    """Which functions have run since the last question."""
    text = "".join(sorted(LOG.read_text())) if LOG.exists() else ""
    LOG.unlink(missing_ok=True)
    return text


def test_upstream_code_that_makes_an_equal_value_runs_nothing_downstream(session: jn.Session) -> None:
    f, g = define("def f(x): return x + 1", "f"), define("def g(y): return y * 2", "g")
    with working(session):
        first = g(f(1))
        assert first.result() == 4
    assert ran() == "fg"
    f = define("def f(x): return 1 + x", "f")
    with working(session):
        second = g(f(1))
        assert second.result() == 4
    assert ran() == "f"
    assert second.key != first.key
    assert f"reused from {first.key[:8]}" in repr(second)
    assert "reused" not in repr(first)
    assert second.provenance()["reused from"] == first.key
    assert session.status().reused == 1
    assert "1 of them reused" in repr(session.status())
    assert "reused" in repr(session.tasks(g))


def test_a_need_computed_again_to_an_equal_value_runs_nothing_and_to_another_runs_all(session: jn.Session) -> None:
    f, g = define("def f(x): return x + 1", "f"), define("def g(y): return y * 2", "g")
    with working(session):
        task = g(f(1))
        task.result()
        ran()
        session.invalidate(f)
        assert task.result() == 4
        assert ran() == "f"


def test_a_direct_invalidation_is_never_undone_by_an_equal_run(session: jn.Session) -> None:
    f, g = define("def f(x): return x + 1", "f"), define("def g(y): return y * 2", "g")
    with working(session):
        g(f(1)).result()
    f = define("def f(x): return 1 + x", "f")
    with working(session):
        again = g(f(1))
        again.result()
        assert ran() == "ffg"
        assert again.invalidate() == 1
        assert again.result() == 4
        assert ran() == "g"
        assert "reused" not in repr(again)


def test_a_retry_bars_nothing(session: jn.Session, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    f, g = define("def f(x): return x + 1", "f"), define(f"def g(y): return open({str(gate)!r}).read()", "g")
    with working(session):
        failed = g(f(1))
        assert failed.exception() is not None
        gate.write_text("open")
        assert failed.retry() == 1
        failed.result()
        ran()
        f = define("def f(x): return 1 + x", "f")
        assert g(f(1)).result() == "open"
    assert ran() == "f"


def test_accepted_results_of_former_code_serve_without_a_run_and_undone_they_do_not(session: jn.Session) -> None:
    f, g = define("def f(x): return x + 1", "f"), define("def g(y): return y * 2", "g")
    with working(session):
        before = f.map(range(3))
        jn.bvalue([g(t) for t in before])
    assert ran() == "fffggg"
    f = define("def f(x): z = 1 + x; return z", "f")
    tasks = f.map(range(4))
    above = [g(t) for t in tasks]
    report = session.accept(f, dry_run=True)
    assert (report.bound, report.without) == (3, 1)
    assert tasks[0].state is State.READY
    report = session.accept(f)
    assert str(report).startswith("accepted 3 results, from ")
    assert set(report.sources) == {task.key for task in before}
    assert str(report).endswith("1 task had no previous result")
    assert jn.value(tasks[:3]) == [1, 2, 3]
    assert jn.value(above[:3]) == [2, 4, 6]
    where = tasks[0].provenance()
    assert (where["reused from"], where["accepted by"]) == (before[0].key, system.user())
    assert ran() == ""
    assert session.accept(tasks).there == 3
    assert session.accept(f, undo=True).undone == 3
    assert [task.state for task in tasks] == [State.READY] * 4
    assert [task.state for task in above] == [State.WAITING] * 4
    with working(session):
        assert jn.bvalue(above) == [2, 4, 6, 8]
    assert ran() == "ffffg"
    assert "accepted by" not in tasks[0].provenance()


def test_accepting_a_chain_goes_up_step_by_step(session: jn.Session) -> None:
    f, g = define("def f(x): return x + 1", "f"), define("def g(y): return y * 2", "g")
    with working(session):
        g(f(1)).result()
    f, g = define("def f(x): z = x + 1; return z", "f"), define("def g(y): z = 2 * y; return z", "g")
    task = g(f(1))
    assert session.accept(g).waiting == 1
    assert session.accept([task, *task.dependencies()]).bound == 2
    assert task.value() == 4


def test_a_result_accepted_twice_over_is_the_original_runs(session: jn.Session) -> None:
    f = define("def f(x): return x + 1", "f")
    with working(session):
        first = f(1)
        first.result()
    second = define("def f(x): return 1 + x", "f")(1)
    session.accept(second)
    third = define("def f(x): z = 1 + x; return z", "f")(1)
    session.accept(third)
    session.accept(second, undo=True)
    assert third.value() == 2
    assert third.provenance()["reused from"] == first.key
    first.invalidate()
    assert third.state is State.READY


def test_an_accepted_result_is_dropped_by_a_direct_invalidation(session: jn.Session) -> None:
    f = define("def f(x): return x + 1", "f")
    with working(session):
        f(1).result()
        ran()
    task = define("def f(x): return 1 + x", "f")(1)
    session.accept(task)
    assert task.state is State.FINISHED
    assert task.invalidate() == 1
    assert task.state is State.READY


def test_an_acceptance_that_nobody_signed_opens_nothing(session: jn.Session) -> None:
    f = define("def f(x): return x + 1", "f")
    with working(session):
        f(1).result()
    task = define("def f(x): return 1 + x", "f")(1)
    session.accept(task)
    [held] = session.access.store.outcomes([task.key])
    assert held is not None
    assert isinstance(session.access.signed.outcome(task.key, held), Finished)
    forged = msgspec.structs.replace(held, proof=(bytes(32) + held.proof[0][32:],))
    for wrong in (forged, CurrentOutcome(held.verdict, held.body)):
        with pytest.raises(jn.SignatureError):
            session.access.signed.outcome(task.key, wrong)
