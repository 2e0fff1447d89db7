"""A project's module is edited while workers run: the very next task uses the new code, old keys find old results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels import Kernel

pytest.importorskip("ipykernel")


TASKS = """%%jugtask
from scaling import norm

def f(x):
    return scaling.norm(x)

def g(x):
    return norm(x)

def h(x):
    return shapes.area(x)

def inside(x):
    import scaling
    return scaling.norm(x)
"""


def write(path: Path, text: str) -> None:
    """Save as an editor does; each save has a time of its own, even within the same second."""
    path.parent.mkdir(exist_ok=True)
    before = path.stat().st_mtime if path.exists() else 0.0
    path.write_text(text)
    stamp = max(path.stat().st_mtime, before + 2)
    os.utime(path, (stamp, stamp))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write(folder / "scaling.py", "def norm(x):\n    return x / 2\n")
    write(folder / "shapes" / "__init__.py", "from shapes.area import area\n")
    write(folder / "shapes" / "area.py", "from .sides import side\n\ndef area(x):\n    return side(x) ** 2\n")
    write(folder / "shapes" / "sides.py", "def side(x):\n    return x\n")
    return folder


@pytest.fixture(scope="module")
def kernel(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    kernel = Kernel.of_notebook(folder, tmp_path_factory.mktemp("settings"))
    kernel.run("%load_ext jug_notebook\n%jug_execute -n 2")
    kernel.run("import importlib, scaling, shapes")
    kernel.run(TASKS)
    yield kernel
    kernel.run("%jug_stop --now")
    kernel.close()


def test_the_very_next_task_after_a_reload_uses_the_new_code(kernel: Kernel, folder: Path) -> None:
    assert kernel.run("before = f(12); before.result(), inside(12).result()").result == "(6.0, 6.0)"
    write(folder / "scaling.py", "def norm(x):\n    return x / 3\n")
    kernel.run("importlib.reload(scaling)")
    reply = kernel.run("after = f(12); after.result(), inside(12).result()")
    assert reply.result == "(4.0, 4.0)", reply
    assert kernel.run("after.key != before.key").result == "True"


def test_the_old_key_still_finds_the_old_result(kernel: Kernel) -> None:
    kernel.run("import warnings; warnings.simplefilter('ignore')")
    assert kernel.run("before.result()").result == "6.0"
    assert kernel.run("%jug_why after").out == (
        "f(x=12) is stored\n"
        "compared with an earlier value of this call, which is no longer used:\n"
        "  helper `scaling.norm` changed\n"
        "       def norm(x):\n"
        "      -    return x / 2\n"
        "      +    return x / 3\n"
    )


def test_why_shows_what_changed_in_a_module_that_counts_whole(kernel: Kernel) -> None:
    assert kernel.run("%jug_why inside(12)").out.splitlines()[2:] == [
        "  module `scaling` changed",
        "       def norm(x):",
        "      -    return x / 2",
        "      +    return x / 3",
    ]


def test_a_name_from_before_the_reload_goes_on_meaning_what_it_meant(kernel: Kernel) -> None:
    assert kernel.run("g.run(12), g(12).result()").result == "(6.0, 6.0)"
    kernel.run("from scaling import norm")
    assert kernel.run("g.run(12), g(12).result()").result == "(4.0, 4.0)"


def test_going_back_to_the_former_text_finds_the_former_results(kernel: Kernel, folder: Path) -> None:
    write(folder / "scaling.py", "# as it was\ndef norm(x):\n    return x / 2\n")
    kernel.run("importlib.reload(scaling)")
    assert kernel.run("f(12).key == before.key").result == "True"
    assert kernel.run("f(12).state.value").result == "'finished'"


def test_what_was_edited_and_not_reloaded_is_refused_by_name(kernel: Kernel, folder: Path) -> None:
    write(folder / "scaling.py", "def norm(x):\n    return x / 5\n")
    reply = kernel.run("f(13)")
    assert reply.error == "BadTask"
    assert "importlib.reload(scaling)" in reply.message
    kernel.run("importlib.reload(scaling)")
    assert kernel.run("f(15).result()").result == "3.0"


def test_a_submodule_of_a_package_is_followed(kernel: Kernel, folder: Path) -> None:
    assert kernel.run("h(3).result()").result == "9"
    write(folder / "shapes" / "sides.py", "def side(x):\n    return 2 * x\n")
    kernel.run(
        "import sys\nfor name in ('shapes.sides', 'shapes.area', 'shapes'):\n    importlib.reload(sys.modules[name])"
    )
    assert kernel.run("h(3).result()").result == "36"


def test_autoreload_will_do_as_well(kernel: Kernel, folder: Path) -> None:
    kernel.run("from scaling import norm\n%load_ext autoreload\n%autoreload 2")
    assert kernel.run("f(30).result()").result == "6.0"
    write(folder / "scaling.py", "def norm(x):\n    return x / 10\n")
    reply = kernel.run("f(30).result()")
    assert reply.result == "3.0", reply
    write(folder / "scaling.py", "FACTOR = 15\n\n\ndef norm(x):\n    return x / FACTOR\n")
    reply = kernel.run("f(30).result(), g(30).result(), inside(30).result()")
    assert reply.result == "(2.0, 2.0, 2.0)", reply


def test_a_value_that_was_edited_and_not_reloaded_is_refused_by_name(kernel: Kernel, folder: Path) -> None:
    kernel.run("%autoreload 0")
    write(folder / "scaling.py", "FACTOR = 20\n\n\ndef norm(x):\n    return x / FACTOR\n")
    reply = kernel.run("f(60)")
    assert reply.error == "BadTask"
    assert "scaling.FACTOR is 15 here, but 20 in the source of scaling" in reply.message
    kernel.run("importlib.reload(scaling)")
    assert kernel.run("f(60).result()").result == "3.0"
    assert "is 30 here" in kernel.run("scaling.FACTOR = 30\nf(60)").message


def test_a_reload_sets_it_right(kernel: Kernel) -> None:
    kernel.run("importlib.reload(scaling)")
    assert kernel.run("f(60).state.value").result == "'finished'"


def test_what_a_module_computes_is_watched_too(kernel: Kernel, folder: Path) -> None:
    write(folder / "scaling.py", "TABLE = dict(a=1)\n\n\ndef norm(x):\n    return x / TABLE['a']\n")
    kernel.run("importlib.reload(scaling)")
    assert kernel.run("f(7).result()").result == "7.0"
    write(folder / "scaling.py", "TABLE = dict(a=7)\n\n\ndef norm(x):\n    return x / TABLE['a']\n")
    assert "was edited after scaling was imported" in kernel.run("f(7)").message
    assert not kernel.run("1 + 1").traceback  # a cell that doesn't call it has nothing to do with it
    kernel.run("importlib.reload(scaling)")
    assert kernel.run("f(7).result()").result == "1.0"


def test_what_a_module_computes_is_watched_from_its_import_on(kernel: Kernel, folder: Path) -> None:
    write(folder / "rates.py", "RATES = dict(a=1)\n\n\ndef rate(x):\n    return x * RATES['a']\n")
    kernel.run("import rates")
    write(folder / "rates.py", "RATES = dict(a=2)\n\n\ndef rate(x):\n    return x * RATES['a']\n")
    kernel.run("%%jugtask\ndef r(x):\n    return rates.rate(x)")
    assert "was edited after rates was imported" in kernel.run("r(3)").message
    kernel.run("importlib.reload(rates)")
    assert kernel.run("r(3).result()").result == "6"


def test_a_comment_that_was_not_reloaded_is_no_edit(kernel: Kernel, folder: Path) -> None:
    write(folder / "scaling.py", "# moved\n\nTABLE = dict(a=7)\n\ndef norm(x):\n    # hm\n    return x / TABLE['a']\n")
    assert kernel.run("f(7).state.value").result == "'finished'"
    assert kernel.run("f(14).result()").result == "2.0"
