"""A task runs in the kernel's working folder at the call, and relative paths of two folders are two keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels import Kernel

pytest.importorskip("ipykernel")

FIRST = """%%jugtask
import os
def first(path):
    return open(path).read()
def here(n):
    return os.path.basename(os.getcwd())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for place, text in ((folder, "of the notebook"), (folder / "sub", "of sub")):
        place.mkdir(exist_ok=True)
        (place / "data.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def kernel(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with one worker; the tests below are cells of its notebook."""
    kernel = Kernel.of_notebook(folder, tmp_path_factory.mktemp("settings"))
    kernel.run(
        "import os, warnings\nimport jug_notebook as jn\n%load_ext jug_notebook\nwarnings.simplefilter('ignore')"
    )
    kernel.run(FIRST, "defs")
    kernel.run("%jug_execute -n 1")
    yield kernel
    kernel.run("%jug_stop --now")
    kernel.close()


@pytest.fixture(autouse=True)
def back(kernel: Kernel, folder: Path) -> Iterator[None]:
    yield
    kernel.run(f"os.chdir({str(folder)!r})")


@pytest.mark.parametrize("change", ["os.chdir('sub')", "%cd -q sub"])
def test_a_task_reads_the_file_that_the_plain_function_reads(kernel: Kernel, change: str) -> None:
    kernel.run("before = first('data.txt')")
    kernel.run(change)
    assert kernel.run("first('data.txt').result(), first.run('data.txt')").result == "('of sub', 'of sub')"
    assert kernel.run("before.result()").result == "'of the notebook'"
    assert kernel.run("first.map(['data.txt', 'data.txt'], )[1].result()").result == "'of sub'"


def test_back_in_the_notebooks_folder_the_first_result_is_found_again(kernel: Kernel) -> None:
    kernel.run("os.chdir('sub')\nthere = first('data.txt')\nos.chdir('..')")
    assert kernel.run("again = first('data.txt'); again.result(), again.key != there.key").result == (
        "('of the notebook', True)"
    )


def test_a_file_is_read_where_the_call_is_made_and_nobody_changed_it(kernel: Kernel) -> None:
    kernel.run("os.chdir('sub')")
    assert kernel.run("first(jn.file('data.txt')).result()").result == "'of sub'"


def test_tasks_of_one_cell_run_where_each_was_made(kernel: Kernel) -> None:
    kernel.run("a = here(1)\nos.chdir('sub')\nb = here(2)\nos.chdir('..')\nc = here(3)")
    assert kernel.run("[t.result() for t in (a, b, c)]").result.replace("'", "").startswith("[work")
    assert kernel.run("b.result(), a.result() == c.result()").result == "('sub', True)"


def test_a_task_that_runs_in_the_kernel_goes_to_its_folder_and_comes_back(kernel: Kernel, folder: Path) -> None:
    kernel.run("%jug_stop --now\n%jug_wait")
    kernel.run("os.chdir('sub')\nlate = here(10), first('./data.txt')\nos.chdir('..')")
    kernel.run("%jug_execute --here")
    assert kernel.run("[t.result() for t in late]").result == "['sub', 'of sub']"
    assert kernel.run("os.getcwd()").result == repr(str(folder))
    kernel.run("os.chdir('sub')")
    kernel.run("%%jugtask now --now\nplace = os.path.basename(os.getcwd())\ntext = open('data.txt').read()")
    assert kernel.run("place.result(), text.result()").result == "('sub', 'of sub')"


def test_a_command_runs_there_too(kernel: Kernel) -> None:
    kernel.run("os.chdir('sub')\nread = jn.shell(['cat', 'data.txt'])\nos.chdir('..')\n%jug_execute --here")
    assert kernel.run("read.result().stdout").result == "'of sub'"


def test_why_says_that_the_working_folder_differs(kernel: Kernel) -> None:
    kernel.run("os.chdir('sub')")
    assert "working folder" in kernel.run("jn.why(here(3))").result


def test_a_working_folder_that_was_removed_is_an_error_in_one_line(kernel: Kernel, folder: Path) -> None:
    kernel.run("os.mkdir('gone')\nos.chdir('gone')\nos.rmdir('../gone')")
    shown = kernel.run("here(20)")
    assert shown.error == "BadTask"
    assert "the working folder was removed" in shown.message
