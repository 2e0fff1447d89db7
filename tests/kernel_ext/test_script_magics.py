"""Scripts and notebooks, in a real kernel: a jugfile's tasks come in, the notebook's go out, under the same keys."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels import ROOT, Kernel

pytest.importorskip("ipykernel")

JUGFILE = """
import sys
from jug import TaskGenerator, barrier, value, mapreduce

@TaskGenerator
def double(x):
    return shifted(x) * 2

@TaskGenerator
def total(xs):
    return sum(xs)

def shifted(x):
    return x + OFFSET

OFFSET = int(sys.argv[1]) if len(sys.argv) > 1 else 0
doubled = [double(x) for x in range(4)]
mapped = mapreduce.map(double, [5, 6, 7])
part = mapped[1]
barrier()
whole = total(doubled + value(list(mapped)))
"""


class SessionProtocol:
    """A folder with a notebook's kernel, and a shell beside it."""

    def __init__(self, folder: Path, settings: Path) -> None:
        self.folder = folder
        self.settings = {"XDG_CONFIG_HOME": str(settings), "JUG_NOTEBOOK_DISPLAY": "text"}
        self.kernel = Kernel(folder, JPY_SESSION_NAME=str(folder / "n.ipynb"), **self.settings)
        self.kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn")

    def shell(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("JUG_", "JPY_"))} | self.settings
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def close(self) -> None:
        self.kernel.run("%jug_stop --now")
        self.kernel.close()


@pytest.fixture
def at(tmp_path: Path) -> Iterator[SessionProtocol]:
    folder, settings = tmp_path / "work", tmp_path / "settings"
    folder.mkdir()
    settings.mkdir()
    desk = SessionProtocol(folder, settings)
    yield desk
    desk.close()


def test_a_jugfile_comes_in_with_what_is_stored(at: SessionProtocol) -> None:
    (at.folder / "jugfile.py").write_text(JUGFILE)
    assert at.shell("-m", "jug_notebook", "execute", "jugfile.py").returncode == 0
    report = at.kernel.run("%jug_import jugfile.py").out
    assert "6 tasks, 6 of them stored in file:jugfile.jugdata" in report
    assert at.kernel.run("jn.value([doubled, mapped, part, whole])").result == "[[0, 2, 4, 6], [10, 12, 14], 12, 48]"
    assert at.kernel.run("double(3).key == doubled[3].key, double.run(3), whole.state.value").result == (
        "(True, 6, 'finished')"
    )


def test_a_jugfile_that_has_not_run_is_run_from_the_notebook(at: SessionProtocol) -> None:
    (at.folder / "jugfile.py").write_text(JUGFILE)
    report = at.kernel.run("%jug_import jugfile.py 100 --jugdir elsewhere").out
    assert "5 tasks, 0 of them stored in file:elsewhere" in report
    assert "it stopped at a barrier" in report
    assert at.kernel.run("%jug_execute --here").error == ""
    assert "6 tasks, 5 of them stored" in at.kernel.run("%jug_import jugfile.py 100 --jugdir elsewhere").out
    at.kernel.run("%jug_execute --here")
    assert at.kernel.run("whole.result()").result == str(2 * sum(100 + x for x in (0, 1, 2, 3, 5, 6, 7)))
    assert at.shell("-m", "jug_notebook", "check", "jugfile.py", "100", "--jugdir", "elsewhere").returncode == 0
    assert at.kernel.run("later = jn.task(abs)(-3)\nlater._session is jn.current()").result == "True"
    assert "elsewhere" in at.kernel.run("jn.current().url").result, "tasks made after it go to its store, too"


def test_a_script_that_is_imported_again_takes_the_place_of_what_it_was(at: SessionProtocol) -> None:
    text = "from jug import TaskGenerator\n@TaskGenerator\ndef f(x):\n    return x\nmany = [f(n) for n in range({})]\n"
    (at.folder / "jugfile.py").write_text(text.format(3))
    first = at.kernel.run("%jug_import jugfile.py", "one").out
    assert "3 tasks, 0 of them stored in file:jugfile.jugdata" in first
    assert "made a new, empty store" not in first, "nobody has given its name"
    (at.folder / "jugfile.py").write_text(text.format(2).replace("return x", "return -x"))
    assert "cancelled 3 pending tasks of the previous version" in at.kernel.run("%jug_import jugfile.py", "other").out
    at.kernel.run("%jug_execute --here")
    assert at.kernel.run("print(jn.status().total, jn.result(many))").out == "2 [0, -1]\n"


def test_what_is_no_script_or_does_not_load_is_told(at: SessionProtocol) -> None:
    assert "no script at 'absent.py'" in at.kernel.run("%jug_import absent.py").message
    (at.folder / "jugfile.py").touch()
    assert at.kernel.run("%jug_import jugfiel.py").message.endswith("at 'jugfiel.py'; did you mean jugfile.py?")
    (at.folder / "wrong.py").write_text("import jug\n1 / 0\n")
    assert at.kernel.run("%jug_import wrong.py").error == "ZeroDivisionError"
    assert "ends in .py" in at.kernel.run("%jug_export notes.txt").message
    assert at.kernel.run("import sys; 'jug' in sys.modules").result == "False"


def test_a_notebooks_tasks_go_out_under_the_same_keys(at: SessionProtocol) -> None:
    run = at.kernel.run
    run("import math\nSCALE = 3", "imports")
    run("unused = [1] * 10\nprint('nothing to do with it')", "other")
    run("%%jugtask --retries 1\ndef scaled(x):\n    return helped(x) * SCALE\n\ndef _private(x):\n    return x", "defs")
    run("def helped(x):\n    return math.floor(x) + len(open('/dev/null').read())", "helper")
    run("@jn.task\ndef total(xs):\n    return sum(xs)", "more")
    run("params = {'n': 2}\nparams['n'] += 2", "params")
    run("rows = scaled.map([1.5, 2.5], chunksize=2)\n%jug_status\nrows.status()", "rows")
    run("all_of_it = total([*rows, scaled(params['n'])])", "total")
    run("%%jugtask cell\nanswer = SCALE + 1", "cell")
    run("%jug_execute --here", "run")
    run("all_of_it.result()\njn.status()\n%time all_of_it.wait()", "look")
    run("total([ord('  '[0])]).why()\ntotal([5]).why(); five = total([6])", "asked at once")
    run("%jug_execute --here", "run")
    report = run("%jug_export pipeline.py", "export").out
    assert report == "pipeline.py makes 7 of this notebook's 7 tasks, under the same keys\n"
    text = (at.folder / "pipeline.py").read_text()
    assert "unused" not in text
    assert "# In[2]\nimport math\n" in text, "as people see it beside the cell"
    assert "# %jug_status\n# rows.status()\n" in text
    status = at.shell("-m", "jug_notebook", "status", "--short", "pipeline.py", "--jugdir", "jugdata")
    assert status.stdout == "All tasks complete (7 tasks).\n", status.stderr
    executed = at.shell("-m", "jug_notebook", "execute", "pipeline.py", "--jugdir", "jugdata")
    assert executed.returncode == 0, executed.stderr
    look = "t = runpy.run_path('pipeline.py', run_name='__main__')['all_of_it']; print(t.value(), t.state.value)"
    assert at.shell("-c", f"import runpy; {look}").stdout == "21 finished\n"


CELLS = {
    "data": "import math\nrows = [3, 1, 2]\nword = 'two words'\nn = 7\n%matplotlib --list\n",
    "defs": "%%jugtask\ndef scaled(x):\n    n = 2\n    return n * x",
    "plain": "def helped(x):\n    return math.sqrt(x)",
    "simple": "%%jugtask simple --now\ntotal = sum(rows) + n\n_private = 1\ntotal",
    "uses": "%%time\nlater = scaled(total)",
    "imports": "%%jugtask imports --timeout 9 --limit db:2\nimport json as j\nfrom math import tau\ntxt = j.dumps(tau)",
    "changes": "%%jugtask changes -o rows\nrows.append(helped(16))",
    "asks": "%%jugtask asks -i word --version 3\nasked = eval('word')",
    "aside": "%%jugtask aside --ignore-global n\nshifted = total + n;",
    "script": '%%jugtask lines --bash -i word,total\n\nprintf \'%s\\n\' "$word" \'"""\' $total\n',
    "magic": "%%jugtask magic\nfound = !printf '%s\\n' a b\n%time quick = len(found)\n!echo over;",
    "awaits": "%%jugtask awaits\nimport asyncio\nawait asyncio.sleep(0)\nlast = lines.upper() + j.dumps(found)",
    "classes": "%%jugtask classes\nclass Kept:\n    size = len(last)\n    text = '%s\\\n?'",
    "ends": "%%jugtask ends\nend = [Kept.size, Kept.text, rows, shifted, asked, later, txt]",
}


def test_cells_that_are_one_task_go_out_under_the_same_keys(at: SessionProtocol) -> None:
    run = at.kernel.run
    for cell, text in CELLS.items():
        assert run(text, cell).error == ""
    assert run("%jug_execute --here", "run").error == ""
    value = run("end.result()", "end").result
    report = run("%jug_export pipeline.py", "export").out
    assert report == (
        "pipeline.py makes 11 of this notebook's 11 tasks, under the same keys\n"
        "  In[5]: --now is not in the script; its task is, and runs with the others\n"
    )
    for words in (["status", "--short"], ["execute"]):
        done = at.shell("-m", "jug_notebook", *words, "pipeline.py", "--jugdir", "jugdata")
        assert done.returncode == 0, done.stderr
    assert "Executed" in done.stdout
    names = "simple, imports, changes, asks, aside, lines, magic, awaits, classes, ends, later"
    keys = run(f"print(*[t.key for t in ({names})])").out
    look = f"import runpy; of = runpy.run_path('pipeline.py', run_name='__main__'); print(*[t.key for t in ({names})])"
    assert at.shell("-c", look.replace(f"({names})", f"map(of.get, '{names}'.split(', '))")).stdout == keys
    fresh = at.folder / "fresh"
    fresh.mkdir()
    (fresh / "pipeline.py").write_bytes((at.folder / "pipeline.py").read_bytes())
    at.folder = fresh
    assert at.shell("pipeline.py").returncode == 0
    assert at.shell("-m", "jug_notebook", "execute", "pipeline.py", "-n", "2", "--jugdir", "jugdata").returncode == 0
    look = "t = runpy.run_path('pipeline.py', run_name='__main__')['end']; print(t.value())"
    assert at.shell("-c", f"import runpy; {look}").stdout.strip() == value


def test_what_cannot_be_in_a_script_is_told_and_the_rest_goes_out(at: SessionProtocol) -> None:
    run = at.kernel.run
    run('@jn.task\ndef told(x):\n    text = """\n%s?\n!x\n"""\n    return text % x', "defs")
    run("from math import *", "star")
    run("%%capture seen\nif pi:\n    %time a = told(floor(pi))\n    !echo nothing", "captured")
    run("files = !echo a b\nb = told(files)", "command")
    run("import asyncio\nawait asyncio.sleep(0)\nc = told(3.5)", "awaits")
    run("%%prun -q\nd = told(4.5)", "magic")
    report = run("%jug_export pipeline.py", "export").out.splitlines()
    assert report == [
        "pipeline.py makes 1 of this notebook's 4 tasks, under the same keys",
        "  left out: In[5]: line 1 needs IPython",
        "  left out: In[6]: it is not plain Python",
        "  left out: In[7]: %%prun can't be in a script",
    ]
    text = (at.folder / "pipeline.py").read_text()
    assert "if pi:\n    a = told(floor(pi))\n    pass  # !echo nothing\n" in text
