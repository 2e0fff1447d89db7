"""Only what has ended is superseded: no run cancels what another live notebook, script or console requested."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

import jug_notebook as jn
from jug_notebook.model import State
from tests.kernels import ROOT, Kernel

pytest.importorskip("ipykernel")

FIT = """%%jugtask
def fit(i):
    return i + {}
"""
STATES = "print(sorted({t.state.value for t in ts}), len(ts))"
SCRIPT = """
import sys
import jug_notebook as jn

@jn.task
def fit(i):
    return i * {factor}

ts = fit.map(range(20))
jn.connect().submissions.flush()
print("asked", flush=True)
if "wait" in sys.argv:
    sys.stdin.readline()
print(sorted({{t.state.value for t in ts}}), len(ts), flush=True)
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "JUG_NOTEBOOK_DISPLAY": "text"}


class Process:
    """A process that requests tasks, and then waits for a line before it tells their states."""

    def __init__(self, folder: Path, *command: str, **environ: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder, env={**environment(), **environ}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def until(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if word in line:
                return line
        raise AssertionError(f"it ended without {word!r}")

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def end(self) -> str:
        out, _ = self._process.communicate("\n", timeout=60)
        assert self._process.returncode == 0
        return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, factor in (("linear", 1), ("forest", 2)):
        (tmp_path / f"{name}.py").write_text(SCRIPT.format(factor=factor))
    return tmp_path


@pytest.fixture
def kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel as a Jupyter server starts it, for the notebook study.ipynb."""
    kernel = Kernel(folder, JPY_SESSION_NAME=str(folder / "study.ipynb"), JUG_NOTEBOOK_DISPLAY="text")
    kernel.run("%load_ext jug_notebook")
    yield kernel
    kernel.close()


def notebook(path: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


def test_two_scripts_with_a_function_of_one_name_leave_each_other_alone(folder: Path) -> None:
    linear = Process(folder, "linear.py", "wait")
    linear.until("asked")
    assert "['ready'] 20" in Process(folder, "forest.py").end()
    assert "['ready'] 20" in linear.end()


def test_two_runs_of_one_script_at_two_versions_leave_each_other_alone(folder: Path) -> None:
    before = Process(folder, "linear.py", "wait")
    before.until("asked")
    (folder / "linear.py").write_text(SCRIPT.format(factor=3))
    assert "['ready'] 20" in Process(folder, "linear.py").end()
    assert "['ready'] 20" in before.end()


def test_two_consoles_in_one_folder_leave_each_other_alone(folder: Path) -> None:
    typed = (
        "import jug_notebook as jn\n"
        "fit = jn.task(lambda i: i + {}, name='fit')\n"
        "ts = fit.map(range(20)); jn.connect().submissions.flush(); print('as' + 'ked')\n"
    )
    options = ("-m", "IPython", "--simple-prompt", "--no-banner", "--quick")
    consoles = []
    for number in (1, 2):
        console = Process(folder, *options)
        console.type(typed.format(number))
        console.until("asked")
        consoles.append(console)
    for console in consoles:
        console.type(f"{STATES}\nexit\n")
        assert "['ready'] 20" in console.end()


def test_what_a_notebook_starts_leaves_its_tasks_alone(folder: Path, kernel: Kernel) -> None:
    kernel.run(FIT.format(1), "defs")
    kernel.run("ts = fit.map(range(20))", "calls")
    assert "['ready'] 20" in kernel.run(f"!{sys.executable} forest.py", "shell").out
    notebook(folder / "other.ipynb", "%load_ext jug_notebook", FIT.format(5), "us = fit.map(range(20))", "print(us[0])")
    run = "import papermill\npapermill.execute_notebook('other.ipynb', 'out.ipynb', progress_bar=False); print('done')"
    assert kernel.run(run, "papermill").out.endswith("done\n")
    assert kernel.run(STATES).out == "['ready'] 20\n"
    assert "60 pending" not in kernel.run("%jug_status").out


def test_two_runs_of_one_notebook_with_other_parameters_both_end(folder: Path) -> None:
    pytest.importorskip("papermill")
    source = notebook(
        folder / "t.ipynb",
        "%load_ext jug_notebook\nimport os",
        "%%jugtask\ndef trial(seed, i):\n    return (seed, i)",
        "seed = 0",
        "ts = [trial(seed, i) for i in range(10)]",
        "open(f'asked-{seed}', 'w').close()\nwhile len([n for n in os.listdir() if n.startswith('asked')]) < 2: pass",
        "%jug_execute --here\nassert [t.result() for t in ts] == [(seed, i) for i in range(10)]",
    )
    read = nbformat.read(source, 4)
    read.cells[2].metadata["tags"] = ["parameters"]
    nbformat.write(read, source)
    runs = [Process(folder, "-m", "papermill", "t.ipynb", f"out{s}.ipynb", "-p", "seed", str(s)) for s in (1, 2)]
    for run in runs:
        run.end()


def test_two_notebooks_that_nbconvert_runs_at_once_leave_each_other_alone(folder: Path) -> None:
    for number in (1, 2):
        notebook(
            folder / f"n{number}.ipynb",
            "%load_ext jug_notebook\nimport os",
            FIT.format(number),
            "ts = fit.map(range(10))",
            f"open('asked-{number}', 'w').close()\n"
            "while len([n for n in os.listdir() if n.startswith('asked')]) < 2: pass",
            f"%jug_execute --here\nassert [t.result() for t in ts] == [i + {number} for i in range(10)]",
        )
    for run in [
        Process(folder, "-m", "nbconvert", "--execute", "--to", "notebook", "--output", f"out{n}", f"n{n}.ipynb")
        for n in (1, 2)
    ]:
        run.end()


def test_a_cell_of_vs_code_whose_handle_moved_takes_nothing_back(folder: Path) -> None:
    handle = f"vscode-notebook-cell:{folder}/study.ipynb#W{{}}sZmlsZQ%3D%3D"
    kernel = Kernel(folder, JUG_NOTEBOOK_DISPLAY="text")
    try:
        kernel.run(f"__vsc_ipynb_file__ = {str(folder / 'study.ipynb')!r}\n%load_ext jug_notebook", handle.format(0))
        kernel.run(FIT.format(1), handle.format(1))
        kernel.run("ts = fit.map(range(20))", handle.format(2))
        # a cell was inserted above, and the file opened again: the definitions have the handle of the calls
        assert "cancelled" not in kernel.run(FIT.format(1), handle.format(2)).out
        assert kernel.run(STATES).out == "['ready'] 20\n"
        edited = kernel.run(FIT.format(2), handle.format(2))
        assert "cancelled 20 pending tasks" in edited.out, "this process asked for them, by a former definition"
    finally:
        kernel.close()


def test_the_tasks_of_a_subshell_stay_when_the_cell_of_the_main_thread_is_run_again(kernel: Kernel) -> None:
    kernel.run(FIT.format(1), "defs")
    made = kernel.client.session.msg("create_subshell_request", {})
    kernel.client.control_channel.send(made)
    subshell = kernel.client.get_control_msg(timeout=60)["content"]["subshell_id"]
    held = kernel.begin("import threading\ngo = threading.Event()\nmain = fit(100)\ngo.wait(60)", "main")
    beside: dict[str, Any] = {
        "code": "import time\nwhile 'go' not in globals(): time.sleep(0.01)\nts = fit.map(range(5)); go.set()",
        "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": False,
    }  # fmt: skip
    message = kernel.client.session.msg("execute_request", beside, metadata={"cellId": "side"})
    message["header"]["subshell_id"] = subshell
    kernel.client.shell_channel.send(message)
    kernel.end(held)
    assert "cancelled" not in kernel.run("main = fit(100)", "main").out
    assert kernel.run(STATES).out == "['ready'] 5\n"


def test_a_renamed_notebook_goes_on_with_its_tasks(folder: Path) -> None:
    def opened(name: str) -> Kernel:
        kernel = Kernel(folder, JPY_SESSION_NAME=str(folder / name), JUG_NOTEBOOK_DISPLAY="text")
        kernel.run("%load_ext jug_notebook")
        return kernel

    path = notebook(folder / "draft.ipynb", FIT.format(1), "ts = fit.map(range(20))")
    ids = [cell["id"] for cell in nbformat.read(path, 4).cells]
    kernel = opened("draft.ipynb")
    kernel.run(FIT.format(1), ids[0])
    kernel.run("ts = fit.map(range(20))", ids[1])
    kernel.close()
    path.rename(folder / "paper.ipynb")
    kernel = opened("paper.ipynb")
    assert kernel.run("%jug_status --short").out.startswith("20 tasks")
    kernel.run(FIT.format(1), ids[0])
    assert "cancelled 10 pending tasks" in kernel.run("ts = fit.map(range(10))", ids[1]).out
    kernel.close()
    session = jn.connect(folder / "jugdata", notebook=folder / "paper.ipynb")
    origins = {origin.notebook for origin in session.access.store.origins()}
    assert origins == {str(folder / "paper.ipynb")}, "the old path requests nothing any more"
    session.close()


def test_what_a_run_that_ended_left_pending_is_shown_and_cancelled_by_hand(folder: Path, kernel: Kernel) -> None:
    Process(folder, "forest.py").end()
    line = "20 pending tasks of ended runs: %jug_cancel --ended cancels them"
    assert line in kernel.run("%jug_status").out
    assert line in kernel.run("jn.status() if 'jn' in globals() else __import__('jug_notebook').status()").result
    assert kernel.run("%jug_cancel --ended").out == "cancelled 20 tasks\n"
    assert line not in kernel.run("%jug_status").out
    session = jn.connect(folder / "jugdata", notebook=folder / "study.ipynb")
    assert session.access.store.snapshot().counts[State.CANCELLED] == 20
    session.close()
