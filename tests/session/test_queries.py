"""What a session tells of its tasks: their graph, history, origins; what would run; and running them here."""

from __future__ import annotations

import json
import linecache
import math
import platform
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jug_notebook as jn
from jug_notebook.launch import Crew
from jug_notebook.model import State
from jug_notebook.store import open_store
from tests.crews import working

SOURCE = """
import jug_notebook as jn

@jn.task
def load(n):
    print("loading", n)
    return [n] * 3

@jn.task
def total(rows):
    return sum(map(sum, rows))

@jn.task
def divide(a, b):
    left = a
    return left / b

@jn.task
def walk(x):
    return x + 1
"""


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()
    jn.definitions.clear()


@pytest.fixture
def cell(session: jn.Session) -> dict[str, Any]:
    """The names of a notebook in which a cell has defined some functions."""
    linecache.cache["<cell 1>"] = (len(SOURCE), None, SOURCE.splitlines(True), "<cell 1>")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SOURCE, "<cell 1>", "exec"), namespace)
    return namespace


def test_tasks_run_here_one_after_another_until_nothing_is_left(session, cell, capsys):
    rows = cell["load"].map(range(3))
    answer = cell["total"](rows)
    assert session.run_here() == 4
    assert answer.value() == 9
    assert capsys.readouterr().out == "loading 0\nloading 1\nloading 2\n"
    assert rows[2].outputs() == (("stdout", "loading 2\n"),)


def test_of_a_function_the_current_tasks_are_listed_before_those_of_earlier_versions(session, cell):
    for numbers in ([0, 1, 2], [2, 3]):  # the same cell, edited
        session.begin_cell("one")
        cell["load"].map(numbers)
        session.end_cell()
        session.run_here()
    listing = jn.tasks("load")
    assert [view.kept for view in listing.views] == [False, False, True, True]
    assert {view.args_repr for view in listing.views[:2]} == {"n=2", "n=3"}


@pytest.mark.parametrize("number", [2.5, 1.0, "4", 0, -1, True])
def test_a_number_of_workers_is_a_whole_number_at_every_door(session, number):
    crew = Crew(open_store(session.url))
    doors = [jn.execute, lambda n: jn.execute(n, dry_run=True), lambda n: jn.execute(n, here=True)]
    for door in [*doors, session.workers.plan, session.workers.add_workers, crew.scale]:
        with pytest.raises(jn.LaunchError, match="give a whole number of workers, 1 or more"):
            door(number)
    with pytest.raises(jn.LaunchError, match="give a whole number of tasks, 1 or more"):
        session.run_here(max_tasks=number)
    assert session.workers.crews == []


@pytest.mark.parametrize("given", ["5", math.nan, True, [1]])
def test_a_time_to_wait_is_a_number_at_every_door(session, cell, given):
    task, rows = cell["load"](1), cell["load"].map(range(2))
    session.run_here()
    crew = Crew(open_store(session.url))
    for door in [task.result, rows.result, rows.wait, crew.wait]:
        with pytest.raises(jn.JugError, match="give a number of seconds, or None for no limit"):
            door(timeout=given)
    for door in [jn.wait, jn.bvalue, lambda *args: list(jn.as_completed(*args))]:
        with pytest.raises(jn.JugError, match="give a number of seconds, or None for no limit"):
            door([task], given)
    assert task.result(np.float64(1)) == task.result(math.inf) == task.result(-1) == [1, 1, 1]


@pytest.mark.parametrize(
    ("door", "message"),
    [
        (lambda: jn.tasks(limit=-1), "limit=-1: give a whole number of rows"),
        (lambda: jn.history(limit=2.5), "limit=2.5: give a whole number of rows"),
        (lambda: jn.tasks(state="done"), "no task is 'done'; state is one of waiting, ready, running, finished"),
        (lambda: jn.verify("load", fraction=5), "fraction=5: give a number of more than 0 and at most 1"),
        (lambda: jn.verify("load", fraction=math.nan), "fraction=nan: give a number of more than 0 and at most 1"),
        (lambda: jn.cleanup(older_than="1d"), "older_than='1d': give a number of seconds, 0 or more"),
        (lambda: jn.cleanup(older_than=-1), "older_than=-1: give a number of seconds, 0 or more"),
        (lambda: jn.stop(host=["ada"]), "host=['ada']: give the name of one host"),
        (lambda: jn.execute(10**9), "workers=1000000000: give a whole number of workers, 4,096 at most"),
        (lambda: jn.execute(1, hosts=[5]), "hosts: 5 is not a host"),
        (lambda: jn.execute(1, hosts=5), "hosts=5: give a list of hosts"),
        (lambda: jn.execute(1, target=[]), "target=[] holds no task; for all tasks leave it out"),
        (lambda: jn.execute(1, python=5), "python=5: give a string or a Path"),
        (lambda: jn.execute(1, hosts="ada", remote_dir=5), "remote_dir=5: give a string or a Path"),
        (lambda: jn.wait("load"), "str 'load' holds no task"),
        (lambda: jn.wait(np.arange(3)), "ndarray array([0, 1, 2]) holds no task"),
        (lambda: list(jn.as_completed(None)), "NoneType None holds no task"),
        (lambda: jn.connect(5), "int 5 names no store"),
    ],
)
def test_a_number_or_word_that_makes_no_sense_is_refused_in_a_line(session, cell, door, message):
    cell["load"](1)
    session.run_here()
    with pytest.raises(jn.JugError) as raised:
        door()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_only_a_target_and_what_it_needs_runs_here(session, cell):
    cell["walk"](1)
    answer = cell["total"]([cell["load"](1)])
    info = jn.execute(3, dry_run=True, target=answer)
    assert repr(info).startswith("2 to run, 0 stored\n")
    assert "3 workers would be started; nothing was started" in repr(info)
    assert (info.alive(), info.groups) == (0, ())
    with pytest.raises(jn.LaunchError, match="look into an executor"):
        jn.execute(dry_run=True, on=object())
    crew = jn.execute(here=True, target=answer)
    assert crew.alive() == 0
    assert answer.value() == 3
    assert session.status().counts[State.READY] == 1


@pytest.mark.parametrize("given", [{"gpus": "0,1"}, {"gpus": "none"}, {"resources": {"license": 2}}])
def test_work_in_this_process_refuses_resources_that_it_cannot_give(session, cell, given):
    task = cell["load"](1)
    with pytest.raises(jn.LaunchError) as refused:
        jn.execute(here=True, **given)
    assert str(refused.value) == (
        "here=True takes no gpus, resources or notify, which are for workers: start some, or leave them out"
    )
    assert task.state is State.READY


def test_a_dry_run_leaves_out_what_is_not_meant(session, cell):
    rows = cell["load"].map(range(3))
    cell["total"](rows)
    cell["walk"](1)
    assert session.workers.plan(4, not_target="load").text(timed=False).splitlines()[:3] == [
        "2 to run, 0 stored",
        "  total  1 to run",
        "  walk   1 to run",
    ]
    assert repr(jn.execute(3, dry_run=True, not_target="walk")).startswith("4 to run, 0 stored\n")
    assert repr(jn.execute(3, dry_run=True, target="total", not_target=rows[0])).startswith("3 to run, 0 stored\n")
    assert repr(jn.execute(3, dry_run=True, target="total", not_target="load")).startswith("1 to run, 0 stored\n")


def test_a_dry_run_tells_what_slurm_would_be_asked_for(session, cell, monkeypatch):
    cell["load"].map(range(3))
    monkeypatch.setenv("PATH", "")
    asked = {"walltime": "2h", "mem": "4G", "gpus": 1, "partition": "long", "options": ["constraint=avx"]}
    if session.access.store.url.startswith("memory:"):
        with pytest.raises(jn.LaunchError, match="no job can see it"):
            jn.execute(20, dry_run=True, slurm=asked)
        return
    crew = jn.execute(20, dry_run=True, slurm=asked)
    words = "--ntasks=1 --requeue --time=120 --mem=4G --gres=gpu:1 --partition=long --constraint=avx"
    assert repr(crew).splitlines() == [
        "3 to run, 0 stored",
        "  load  3 to run, not timed yet",
        "Slurm: no squeue on this host; log in where jobs can be submitted to Slurm, or leave out --slurm: "
        "-n 4 starts workers on this host",
        f"Slurm would get 20 jobs of one worker each: sbatch {words} --array=0-19",
        "nothing was submitted",
    ]
    growing = repr(jn.execute(dry_run=True, slurm={"up_to": 200}))
    assert "Slurm would get up to 200 jobs as work comes: sbatch --ntasks=1 --requeue\n" in growing
    for slip, line in (
        ({"slurm": True}, "how many jobs?"),
        ({"slurm": {"nodes": 2}}, "slurm: Object contains unknown field"),
        ({"slurm": True, "hosts": ["a"]}, "Slurm chooses the hosts"),
    ):
        with pytest.raises(jn.LaunchError, match=line):
            jn.execute(dry_run=True, **slip)
    assert not list(session.access.folder.glob("*/slurm-*"))


def test_a_task_that_fails_here_is_a_failed_task_and_the_others_run(session, cell):
    bad, good = cell["divide"](1, 0), cell["divide"](1, 2)
    assert session.run_here() == 2
    assert (bad.state, good.value()) == (State.FAILED, 0.5)


def test_an_interrupt_gives_the_task_back_and_says_so(session, cell):
    @jn.task
    def press():
        import signal

        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        task = press()
        with pytest.raises(jn.WaitInterrupted, match="the one that was running was requeued"):
            session.run_here()
    finally:
        signal.signal(signal.SIGINT, before)
    assert task.state is State.READY
    assert not [view for view in session.status(all=True).workers if view.alive]


def test_a_plan_says_what_would_run_and_starts_nothing(session, cell):
    cell["total"](cell["load"].map(range(3)))
    done = cell["walk"](1)
    session.run_here(done)
    plan = session.workers.plan(4)
    assert (plan.to_run, plan.stored, plan.started, plan.seconds) == (4, 1, 4, None)
    assert plan.text(timed=False).splitlines() == [
        "4 to run, 1 stored",
        "  load   3 to run",
        "  total  1 to run",
        "  walk   1 stored",
        "4 workers would be started; nothing was started",
    ]
    assert session.workers.plan(4, target="load").to_run == 3
    assert session.workers.plan(4, target="total").to_run == 4
    assert not any(view.alive for view in session.status().workers)


def test_a_plan_of_timed_functions_says_how_long(session, cell):
    session.run_here(cell["load"](0))
    cell["load"].map(range(1, 9))
    plan = session.workers.plan(2)
    assert plan.seconds is not None
    assert "about " in repr(plan)


def test_a_stored_call_is_repeated_with_the_values_of_its_needs(session, cell):
    answer = cell["total"](cell["load"].map(range(3)))
    with pytest.raises(jn.NotReady):
        session.reruns.rerun(answer.key)
    session.run_here()
    assert session.reruns.rerun(answer.key) == 9


def test_a_task_run_again_raises_what_it_raised(session, cell):
    bad = cell["divide"](1, 0)
    session.run_here()
    with pytest.raises(ZeroDivisionError):
        session.reruns.rerun(bad.key)
    assert bad.state is State.FAILED


def test_equal_values_verify(session, cell):
    rows = cell["load"].map(range(300))
    session.run_here()
    assert repr(jn.verify(rows, fraction=0.01)) == "3 of 300 values computed again: all came out equal"
    assert jn.verify(rows, fraction=1.0)
    assert repr(jn.verify(cell["walk"].map([1]))) == "nothing to verify: none of these is finished"


def test_a_value_that_comes_out_otherwise_is_reported(session, cell, tmp_path):
    @jn.task
    def age(path):
        return int(open(path).read())

    path = tmp_path / "age"
    task = age(str(path))
    path.write_text("7")
    session.run_here()
    path.write_text("8")
    found = jn.verify(task)
    assert not found
    assert "1 of 1 values computed again: 1 differs" in repr(found)
    assert "int 7 then; now int 8" in repr(found)
    path.unlink()
    assert "FileNotFoundError" in repr(jn.verify(task))


def test_the_graph_counts_needs_by_function(session, cell):
    cell["total"](cell["load"].map(range(3)))
    step = cell["walk"](0)
    for _ in range(3):
        step = cell["walk"](step)
    assert set(jn.graph().graph.edges) == {("total", "load", 3), ("walk", "walk", 3)}
    assert repr(jn.graph()).splitlines() == [
        "3 functions, 8 tasks",
        "total · 1 task: 1 waiting",
        "  3 × load · 3 tasks: 3 ready",
        "walk · 4 tasks: 1 ready, 3 waiting, needs itself 3 times",
    ]
    assert "<svg" in jn.graph()._repr_html_()


def test_history_tells_who_ran_what_when_and_survives_the_session(session, cell, store_url, tmp_path):
    cell["walk"](1)
    cell["divide"](1, 0)
    session.run_here()
    if store_url.startswith("file:"):
        session.close()
        session = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    runs = jn.history()
    assert {(run.name, run.state) for run in runs} == {("walk", State.FINISHED), ("divide", State.FAILED)}
    assert all(run.user and run.host and run.started and run.duration >= 0 for run in runs)
    assert runs[0].started >= runs[1].started
    assert "ZeroDivisionError" in repr(runs)
    assert "int 2" in runs._repr_html_()


def test_history_tells_of_attempts_that_no_longer_count(session, cell):
    task = cell["divide"](1, 0)
    session.run_here()
    assert task.retry() == 1
    session.run_here()
    value = cell["walk"](1)
    session.run_here()
    value.invalidate()
    session.run_here()
    info = [(run.name, run.state.value, run.superseded, run.message) for run in reversed(jn.history())]
    wrong = "ZeroDivisionError: division by zero"
    assert info == [
        ("divide", "failed", "tried again", wrong), ("divide", "failed", "", wrong),
        ("walk", "finished", "dropped", "int 2"), ("walk", "finished", "", "int 2"),
    ]  # fmt: skip
    assert "failed, tried again" in repr(jn.history())
    assert "finished, dropped" in jn.history()._repr_html_()


def test_provenance_is_plain_data_with_all_that_went_in(session, cell):
    rows = cell["load"].map(range(2))
    answer = cell["total"](rows)
    with working(session):
        answer.result(timeout=20)
    info = json.loads(json.dumps(answer.provenance()))
    assert (info["name"], info["state"], info["value"]["summary"]) == ("total", "finished", "int 3")
    assert info["needs"] == [row.key for row in rows]
    assert set(info["upstream"]) == set(info["needs"])
    assert info["upstream_complete"]
    assert info["upstream"][rows[1].key]["run"]["host"]
    assert info["run"]["duration"] >= 0
    assert info["run"]["environment"]["python"] == platform.python_version()
    assert info["run"]["environment"]["packages"]["numpy"] == np.__version__
    assert "function total" in info["parts"]
    assert cell["walk"](5).provenance()["run"] is None


def test_provenance_of_a_long_chain_is_bounded(session, cell):
    step = cell["walk"](0)
    for _ in range(1100):
        step = cell["walk"](step)
    info = step.provenance()
    assert len(info["upstream"]) == 1000
    assert not info["upstream_complete"]
