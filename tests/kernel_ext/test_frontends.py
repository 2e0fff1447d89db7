"""Whose workers end with the kernel: those of runs that nobody watches. With the front ends themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbclient
import nbformat
import pytest

from jug_notebook.session import Session
from jug_notebook.store import open_store
from tests.kernels import ROOT, Kernel
from tests.workbench import wait_until

NOTE = "headless run: its workers stop when it ends"
CELLS = [
    "%load_ext jug_notebook\nimport jug_notebook as jn\n%config JugMagics.display = 'text'",
    "%%jugtask\ndef double(n):\n    return 2 * n",
    "%jug_store first\n%jug_execute -n 1\ndouble(1).result()",
    "jn.connect('second')\ncrew = jn.execute(1)",
    "jn.connect('third')\n%config JugMagics.autostart = 1\ntask = double(21)",
    "task.result()",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a notebook, for front ends that know nothing of this test's own."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("JUG_HEADLESS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))))
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "P"}})
    nbformat.write(notebook, tmp_path / "n.ipynb")
    return tmp_path


def by_nbclient(folder: Path) -> None:
    notebook = nbformat.read(folder / "n.ipynb", 4)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    nbformat.write(notebook, folder / "out.ipynb")


def by_papermill(folder: Path) -> None:
    papermill = pytest.importorskip("papermill")
    papermill.execute_notebook(folder / "n.ipynb", folder / "out.ipynb", cwd=str(folder), progress_bar=False)


def by_nbconvert(folder: Path) -> None:
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--output", "out", "n.ipynb"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def supervisors(folder: Path, name: str) -> int:
    store = open_store(folder / name)
    count = sum(alive for info, alive, _ in store.processes() if info.kind == "supervisor")
    store.close()
    return count


@pytest.mark.parametrize("run", [by_nbclient, by_papermill, by_nbconvert])
def test_a_run_that_nobody_watches_says_that_its_workers_end_with_it(folder: Path, run: Callable[[Path], None]) -> None:
    run(folder)
    cells = [cell for cell in nbformat.read(folder / "out.ipynb", 4).cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells[-len(CELLS) :]]
    assert [text.count(NOTE) for text in texts] == [0, 0, 1, 1, 1, 0]
    assert cells[-1].outputs[0]["data"]["text/plain"] == "42"
    for name in ("first", "second", "third"):
        store = open_store(folder / name)
        wait_until(store, lambda name=name: not supervisors(folder, name))  # type: ignore[misc]
        store.close()


def stopped(folder: Path) -> None:
    session = Session(folder / "first")
    assert session.stop(now=True) == 1
    session.close()


def test_workers_outlive_a_console(folder: Path) -> None:
    pytest.importorskip("jupyter_console")
    pexpect = pytest.importorskip("pexpect")
    command = ["-m", "jupyter_console", "--simple-prompt", "--kernel", "python3"]
    console = pexpect.spawn(sys.executable, command, cwd=str(folder), encoding="utf-8", timeout=60)
    for line, answer in (
        ("%load_ext jug_notebook", "starts workers"),
        ("%config JugMagics.display = 'text'", ""),
        ("%jug_store first", "made a new, empty store: "),
        ("%jug_execute -n 1", "started 1 worker"),
        ("import jug_notebook as jn; jn.task(abs)(-42).result()", "42"),
        ("jn.current().workers.headless", "False"),
    ):
        console.expect(r"In \[\d+\]: ")
        console.sendline(line)
        console.expect(answer)
        assert NOTE not in console.before
    console.expect(r"In \[\d+\]: ")
    console.sendline("exit")
    console.expect(pexpect.EOF)
    assert supervisors(folder, "first") == 1
    stopped(folder)


def test_workers_outlive_a_bare_client_whose_user_may_be_asked(folder: Path) -> None:
    kernel = Kernel(folder)
    kernel.asks = True
    try:
        assert [NOTE in kernel.run(cell).out for cell in CELLS[:3]] == [False] * 3
        kernel.run("%unload_ext jug_notebook")
    finally:
        kernel.close()
    assert supervisors(folder, "first") == 1
    stopped(folder)
