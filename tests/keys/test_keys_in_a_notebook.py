"""Keys as a user of a notebook meets them: cells under other magics, options, advice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels import Kernel

pytest.importorskip("ipykernel")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("work")
    kernel = Kernel.of_notebook(folder, tmp_path_factory.mktemp("settings"))
    kernel.run("%load_ext jug_notebook\n%jug_store memory:")
    kernel.run("import jug_notebook as jn, warnings\nfrom jug_notebook.keys.code import examine")
    yield kernel
    kernel.close()


def evaluated(kernel: Kernel, code: str) -> str:
    ran = kernel.run(code)
    assert not ran.error, ran.traceback
    return ran.result


def test_a_function_under_a_magic_that_hides_its_cell_is_named_by_its_text(kernel: Kernel) -> None:
    kernel.run("def f(x):\n    return x + 1  # plain\nplain = examine(f).digest")
    for magic in ("%%time", "%%capture", "%%prun -q", "%%time\n%%capture", "%%capture\n%%time"):
        out = kernel.run(f"{magic}\ndef f(x):\n    '''Another comment.'''\n    return x + 1\ntask = jn.task(f)").out
        assert "no source" not in out
        assert evaluated(kernel, "task.examine(None).digest == plain") == "True"


def test_functions_of_several_such_cells_are_told_apart(kernel: Kernel) -> None:
    kernel.run("%%time\ndef one(x):\n    return 1")
    kernel.run("held = [one]")
    kernel.run("%%time\ndef one(x):\n    return 2")
    assert evaluated(kernel, "examine(held[0]).digest != examine(one).digest") == "True"
    kernel.run("def one(x):\n    return 1\nfirst = examine(one).digest")
    assert evaluated(kernel, "examine(held[0]).digest == first") == "True"


def test_lambdas_under_such_a_magic_are_named_by_their_text(kernel: Kernel) -> None:
    kernel.run("%%time\npair = [lambda x: x + 1, lambda x: x + 2]")
    kernel.run("same = [lambda x: x + 1, lambda x: x + 2]")
    output = evaluated(kernel, "[examine(a).digest == examine(b).digest for a in pair for b in same]")
    assert output == "[True, False, False, True]"


@pytest.mark.parametrize("magic", ["%%time", "%%capture"])
def test_a_cell_of_tasks_below_another_magic_has_the_keys_of_one_without(kernel: Kernel, magic: str) -> None:
    kernel.run("%%jugtask\ndef below(x):\n    return x * 3")
    kernel.run("key = below(1).key")
    kernel.run(f"{magic}\n%%jugtask\n# why\ndef below(x):\n    return x * 3")
    assert evaluated(kernel, "below(1).key == key") == "True"


def test_what_is_ignored_outside_does_not_count(kernel: Kernel) -> None:
    kernel.run("LEVEL, SPEED = 1, 1")
    cell = "%%jugtask --ignore-global LEVEL --ignore-global SPEED\ndef g(x):\n    return x, LEVEL, SPEED"
    kernel.run(cell)
    kernel.run("key = g(1).key")
    kernel.run("LEVEL, SPEED = 2, 3")
    assert evaluated(kernel, "g(1).key == key") == "True"
    kernel.run(cell.replace("--ignore-global SPEED", ""))
    assert evaluated(kernel, "g(1).key == key") == "False"


def test_what_a_cell_task_ignores_does_not_count(kernel: Kernel) -> None:
    cell = "%%jugtask whole --ignore-global LEVEL\nwide = LEVEL + 1"
    kernel.run("LEVEL = 1")
    kernel.run(cell)
    kernel.run("key, LEVEL = whole.key, 5")
    kernel.run(cell)
    assert evaluated(kernel, "whole.key == key") == "True"


def test_a_version_names_the_code(kernel: Kernel) -> None:
    kernel.run("%%jugtask --version 1\ndef v(x):\n    return 1")
    kernel.run("key = v(1).key")
    kernel.run("%%jugtask --version 1\ndef v(x):\n    return 2")
    assert evaluated(kernel, "v(1).key == key") == "True"
    kernel.run("%%jugtask --version 2\ndef v(x):\n    return 2")
    assert evaluated(kernel, "v(1).key == key") == "False"


UNSTABLE = """
class Marked:
    def __init__(self, n): self.n = n
    def __jug_hash__(self): return str(hash("salt") + self.n)
class Ordered:
    def __init__(self, words): self.words = set(words)
    def __getstate__(self): return {"words": list(self.words)}
    def __setstate__(self, state): self.words = set(state["words"])
%config JugMagics.check_keys = True
"""


def test_the_guard_names_the_argument_and_the_global_that_another_process_calls_otherwise(kernel: Kernel) -> None:
    kernel.run(UNSTABLE)
    kernel.run("%%jugtask\ndef steady(x, y=1):\n    return x\ndef shaky(x, mark):\n    return x")
    quiet = kernel.run("steady(1); steady([1, {'a', 'b'}], 2); steady.map(range(10)); shaky(steady(1)[0], None)")
    assert "check_keys" not in quiet.out
    output = kernel.run("shaky(1, Marked(2)); shaky(2, Marked(3)); steady(Ordered('abcdefghij'))").out
    assert output.count("check_keys: ") == 2
    assert "argument 'mark' of shaky() has a different digest in each process" in output
    assert "argument 'x' of steady()" in output
    kernel.run("%%jugtask\ndef reads(x):\n    return GLOBAL")
    output = kernel.run("GLOBAL = Marked(1)\nreads(1)").out
    assert "check_keys: global GLOBAL of reads() has a different digest" in output
    kernel.run("%config JugMagics.check_keys = False")
    assert "check_keys" not in kernel.run("shaky(1, Marked(7))").out


ANEW = """
import os, numba, pydantic
from scipy.stats import norm
class Settings(pydantic.BaseModel):
    rate: float
    names: list[str] = []
class Tag:
    def __init__(self, word): self.word, self.mark = word, hash(word) % 1_000_003
@numba.njit
def doubled(x): return 2 * x
ORDER = tuple(set("abcdefghijklmnop"))  # two orders are the same by no chance
@numba.njit
def ordered(x): return x, ORDER
tag = Tag("x")
"""


def test_cells_run_again_in_other_processes_to_find_what_each_makes_anew(kernel: Kernel) -> None:
    kernel.run(ANEW)
    kernel.run(
        "%%jugtask\ndef model(m): return m.rate\ndef fast(x): return doubled(x) + norm.sf(x)\n"
        "def tagged(t): return t.word\ndef sets(x): return ordered(x)\ndef marked(x): return tag.word"
    )
    kernel.run("%config JugMagics.check_keys = True")
    assert "check_keys" not in kernel.run("model(Settings(rate=1, names=['a'])); fast(2); fast(model(1)).key").out
    lines = kernel.run("tagged(Tag('a')); sets(1); marked(1)").out.splitlines()
    found = [line.partition(" has a different value")[0] for line in lines if line.startswith("check_keys: ")]
    assert found == [
        "check_keys: argument 't.mark' of tagged()",
        "check_keys: global ORDER of sets()",
        "check_keys: global tag.mark of marked()",
    ]
    assert lines[-1].endswith("leave it out: jn.ignore_attributes(Tag, 'mark')")
    kernel.run("jn.ignore_attributes(Tag, 'mark')")
    assert "check_keys" not in kernel.run("tagged(Tag('b')); marked(2)").out


def test_a_cell_that_runs_again_changes_nothing_and_what_it_does_not_reach_is_listed(kernel: Kernel) -> None:
    kernel.run("%%jugtask\ndef reads(x): return x")
    kernel.run("%config JugMagics.check_keys = True\nimport os, subprocess")
    cell = "with open('count', 'a') as file: file.write('x')\nreads([1])"
    assert "check_keys: can't tell whether argument 'x' of reads() would be made the same again: In[" in (
        out := kernel.run(cell).out
    )
    assert "stops with PermissionError: writing 'count' is not allowed when check_keys runs it again" in out
    assert evaluated(kernel, "open('count').read(), os.remove('count')") == "('x', None)"
    for cell in ("subprocess.run('true')", "os.system('true')", "os.mkdir('new'), os.rmdir('new')"):
        assert "is not allowed when check_keys runs it again" in kernel.run(f"{cell}\nreads([2])").out
    assert "can't tell whether argument 'x' of reads()" in kernel.run("%%prun -q\nreads([3])").out
    assert "check_keys" not in kernel.run("import tempfile\nwith tempfile.TemporaryFile(): reads([4])").out
    kernel.run("%config JugMagics.check_keys = False")


def test_cells_that_use_values_of_tasks_find_them_when_they_run_again(tmp_path: Path) -> None:
    kernel = Kernel.of_notebook(tmp_path, tmp_path)
    kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn")
    kernel.run("%%jugtask\ndef f(x): return x")
    kernel.run("%jug_execute -n 1\n%config JugMagics.check_keys = True")
    kernel.run("base = f([1]).result()")
    quiet = kernel.run("f(base + [2]).result()\nf([f(base)]).result()")
    assert quiet.result == "[[1]]"
    assert "check_keys" not in quiet.out
    kernel.run("import os")
    out = kernel.run("f([os.getpid(), *base])").out
    assert (
        out.count("check_keys: ") == out.count("argument 'x' of f() has a different value each time its cell runs") == 1
    )
    assert "check_keys" not in kernel.run("jn.connect('elsewhere')\nf(3)").out
    kernel.run("%jug_store jugdata\n%jug_stop --now")
    kernel.close()


def test_libraries_do_not_write_either_when_a_cell_runs_again(kernel: Kernel) -> None:
    pytest.importorskip("h5py")
    kernel.run("import h5py, numpy\nfile = h5py.File('kept.h5', 'w'); file['x'] = 1; file.close()")
    kernel.run("%%jugtask\ndef reads(x): return x")
    kernel.run("%config JugMagics.check_keys = True")
    cell = "if 'x' in (held := h5py.File('kept.h5', 'r+')): held['x'][...] += 1\nheld.close()\nreads([5])"
    assert "can't tell whether argument 'x' of reads()" in kernel.run(cell).out
    assert evaluated(kernel, "int(h5py.File('kept.h5')['x'][()])") == "2"
    kernel.run("%config JugMagics.check_keys = False")


# -- with workers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def staffed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kernel, Path]]:
    """A kernel with a worker, which has the same environment variables, and the folder of both."""
    folder = tmp_path_factory.mktemp("staffed")
    notebook, settings = str(folder / "n.ipynb"), str(folder / "settings")
    kernel = Kernel(
        folder, JPY_SESSION_NAME=notebook, XDG_CONFIG_HOME=settings, JUG_NOTEBOOK_DISPLAY="text",
        MODE="fast", TOKEN="hush-hush-hush",
    )  # fmt: skip
    kernel.run("%load_ext jug_notebook\n%jug_store store\n%jug_execute -n 1\nimport os")
    yield kernel, folder
    kernel.run("%jug_stop --now")
    kernel.close()


def test_what_the_pickle_of_a_result_drops_is_reported_where_it_is_read_once_and_in_its_log(
    staffed: tuple[Kernel, Path],
) -> None:
    pytest.importorskip("pandas")
    kernel, _ = staffed
    kernel.run(
        "%%jugtask\ndef table():\n    import pandas\n    made = pandas.DataFrame({'a': [1]})\n"
        "    object.__setattr__(made, 'source', 'x')\n    return {'made': made}"
    )
    drops = "pickling pandas.DataFrame drops what was added to it (source), so the stored result lacks it. Return it"
    ran = kernel.run("print(list(table().result()))")
    assert "['made']" in ran.out
    assert f"DroppedByPickle: table(): {drops}" in ran.out
    assert "Dropped" not in kernel.run("table().result()").out
    assert f"DroppedByPickle: {drops}" in kernel.run("%jug_log table").out


def test_environment_variables_reach_a_task_and_a_secret_no_file_of_the_store(staffed: tuple[Kernel, Path]) -> None:
    kernel, folder = staffed
    cell = (
        "%%jugtask{} --env MODE,LEVEL --secret-env TOKEN\n{}import os\n    "
        "{}os.environ['MODE'], os.getenv('LEVEL'), len(os.environ['TOKEN'])"
    )
    function, whole = cell.format("", "def f():\n    ", "return "), cell.format(" whole -o seen", "", "seen = ")
    for source in (function, whole.replace("    ", "")):
        assert not (ran := kernel.run(source)).error, ran.traceback
    assert evaluated(kernel, "f().result(30), whole.result(30)['seen']") == "(('fast', None, 14), ('fast', None, 14))"
    kernel.run("before = f().key\nos.environ['TOKEN'] = 'another'")
    assert evaluated(kernel, "f().key == before") == "True"
    kernel.run("os.environ['MODE'] = 'slow'")
    assert evaluated(kernel, "f().key == before, f().result(30)") == "(False, ('slow', None, 14))"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(b"slow" in path.read_bytes() for path in files)
    assert not [path for path in files if b"hush-hush" in path.read_bytes()]
