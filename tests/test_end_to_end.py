"""The main job, as a user lives it: a kernel that is killed in mid-run, a notebook that comes back."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from jug_notebook import connect
from jug_notebook.model import State
from jug_notebook.session import Session
from tests.kernels import Kernel

DEFINITIONS = """%%jugtask
def note(line):
    with open("ran.txt", "a") as file:
        file.write(line + "\\n")

def slow_square(n, gate):
    note(f"square {n}")
    if n >= 4:
        open(gate).close()  # a pipe, which opens when somebody opens its other end
    return n * n

def total(squares):
    note("total")
    return sum(squares)
"""
CALLS = """
squares = slow_square.map(range(12), gate="gate")
answer = total(list(squares))
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return tmp_path / "work.ipynb"


def start(notebook: Path) -> Kernel:
    """A kernel as a notebook server starts it, with the tasks made."""
    kernel = Kernel(notebook.parent, JPY_SESSION_NAME=str(notebook))
    assert "file store" in kernel.run("%load_ext jug_notebook", "cell-1").out
    kernel.run(DEFINITIONS, "cell-2")
    reply = kernel.run(CALLS, "cell-3")
    assert not reply.error, reply.traceback
    return kernel


def wait_for(session: Session, state: State, count: int) -> None:
    seen = -1
    while session.status(all=True).counts[state] != count:
        seen = session.access.store.watch(seen, 60.0)


def test_a_killed_kernel_costs_nothing_and_its_notebook_finds_everything_again(notebook: Path) -> None:
    os.mkfifo(notebook.parent / "gate")
    kernel = start(notebook)
    kernel.run("%jug_execute -n 2", "cell-4")
    watcher = connect(notebook.parent / "jugdata", notebook=notebook)
    try:
        wait_for(watcher, State.FINISHED, 4)
        wait_for(watcher, State.RUNNING, 2)
        assert kernel.manager.provisioner is not None
        pid = kernel.manager.provisioner.pid  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGKILL)
        with (notebook.parent / "gate").open("w"):  # nobody but the workers is there to see it
            wait_for(watcher, State.FINISHED, 13)
        kernel.close()

        again = start(notebook)
        reply = again.run("answer.result(), answer.state.value", "cell-5")
        assert reply.result == f"({sum(n * n for n in range(12))}, 'finished')"
        again.run("%jug_stop", "cell-6")
        again.close()
    finally:
        watcher.stop(now=True)
        watcher.close()
    ran = Counter((notebook.parent / "ran.txt").read_text().split("\n"))
    del ran[""]
    assert ran == {**{f"square {n}": 1 for n in range(12)}, "total": 1}


def test_a_comment_runs_nothing_and_a_changed_helper_runs_what_depends_on_it(notebook: Path) -> None:
    (notebook.parent / "gate").touch()
    kernel = start(notebook)
    try:
        kernel.run("%jug_execute -n 2", "cell-4")
        assert kernel.run("answer.result()", "cell-5").result == "506"
        kernel.run(DEFINITIONS.replace("def total", "# nothing new\n\ndef total"), "cell-2")
        assert not kernel.run(CALLS, "cell-3").error
        assert kernel.run("answer.state.value", "cell-5").result == "'finished'"
        kernel.run(DEFINITIONS.replace("n * n", "n * n * n"), "cell-2")
        kernel.run(CALLS, "cell-3")
        assert kernel.run("answer.result()", "cell-5").result == str(sum(n**3 for n in range(12)))
    finally:
        kernel.run("%jug_stop --now", "cell-6")
        kernel.close()
    ran = (notebook.parent / "ran.txt").read_text().split()
    assert ran.count("total") == 2


def test_instances_of_a_notebooks_class_come_back_as_its_instances(notebook: Path) -> None:
    (notebook.parent / "gate").touch()
    kernel = start(notebook)
    try:
        kernel.run("%jug_execute -n 1", "cell-4")
        kernel.run(
            "%%jugtask\n"
            "import dataclasses, enum\n"
            "class Colour(enum.Enum):\n    RED = 1\n    BLUE = 2\n"
            "@dataclasses.dataclass\nclass Point:\n    x: int\n    colour: Colour\n"
            "def move(point, by):\n    return Point(point.x + by, Colour.BLUE)\n",
            "cell-5",
        )
        reply = kernel.run(
            "p = move(move(Point(1, Colour.RED), 2), 3).result()\n"
            "isinstance(p, Point), p == Point(6, Colour.BLUE), p.colour is Colour.BLUE"
        )
        assert reply.result == "(True, True, True)", reply.traceback
    finally:
        kernel.run("%jug_stop --now", "cell-6")
        kernel.close()


def test_an_accepted_refactoring_runs_nothing_and_given_back_it_runs(notebook: Path) -> None:
    (notebook.parent / "gate").touch()
    kernel = start(notebook)
    try:
        kernel.run("%jug_execute -n 1", "cell-4")
        assert kernel.run("answer.result()", "cell-5").result == "506"
        kernel.run("%jug_stop\nimport jug_notebook\njug_notebook.current().workers.crews[-1].wait()", "cell-6")
        kernel.run(DEFINITIONS.replace("return n * n", "square = n * n\n    return square"), "cell-2")
        kernel.run(CALLS, "cell-3")
        assert kernel.run("%jug_accept slow_square", "cell-7").out.startswith("accepted 12 results, from ")
        reply = kernel.run("answer.value(), answer.state.value, answer.provenance()['reused from'] != answer.key")
        assert reply.result == "(506, 'finished', True)", reply.traceback
        undone = kernel.run("%jug_accept slow_square --undo", "cell-8").out
        assert undone.startswith("undid the acceptance of 12 results")
        assert kernel.run("answer.state.value, squares[0].state.value").result == "('waiting', 'ready')"
        assert len((notebook.parent / "ran.txt").read_text().splitlines()) == 13
        kernel.run("%jug_execute -n 1", "cell-9")
        assert kernel.run("answer.result()", "cell-10").result == "506"
    finally:
        kernel.run("%jug_stop --now", "cell-11")
        kernel.close()
    ran = (notebook.parent / "ran.txt").read_text().splitlines()
    assert len(ran) == 13 + 12
    assert ran.count("total") == 1
