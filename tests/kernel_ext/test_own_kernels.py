"""The magics in kernels that end, are asked, are interrupted or come one after the other: each test has its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jug_notebook.store import open_store
from tests.kernels import HELD, Kernel

pytest.importorskip("ipykernel")


def test_a_headless_kernel_takes_its_crew_along(tmp_path: Path) -> None:
    settings = str(tmp_path)
    alone = Kernel(tmp_path, XDG_CONFIG_HOME=settings, JUG_HEADLESS="1", JUG_STORE="alone", JUG_NOTEBOOK_DISPLAY="text")
    try:
        alone.run("%load_ext jug_notebook")
        alone.run("%jug_execute -n 1")
        alone.run("import jug_notebook as jn\nhere = jn.task(str)(5)")
        assert alone.run("here.result()").result == "'5'"
    finally:
        alone.close()
    store = open_store(tmp_path / "alone")
    seen = -1
    while any(alive for info, alive, _ in store.processes() if info.kind == "supervisor"):
        seen = store.watch(seen, 1.0)
    store.close()


@pytest.mark.parametrize("asks", [True, False])
def test_workers_end_with_a_kernel_whose_cells_may_not_ask(tmp_path: Path, asks: bool) -> None:
    kernel = Kernel(tmp_path, XDG_CONFIG_HOME=str(tmp_path / "settings"), JUG_NOTEBOOK_DISPLAY="text")
    kernel.asks = asks
    try:
        kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn")
        kernel.run(HELD)
        kernel.run("task = held('gate')")
        assert ("its workers stop when it ends" in kernel.run("%jug_execute -n 1").out) is not asks
        assert kernel.run("jn.current().workers.headless").result == str(not asks)
        kernel.run("import threading\nwhile task.state.value != 'running': threading.Event().wait(0.01)")
        waits = "import signal\nthreading.Timer(0.5, signal.raise_signal, [2]).start()\n"
        assert kernel.run(f"{waits}%jug_execute -n 1 --wait").error == "WaitInterrupted"
        assert kernel.run("%jug_stop").out == "1 worker will stop after the current task\n"
        for wait in ("%jug_status --watch", "jn.barrier()"):
            reply = kernel.run(f"{waits}{wait}")
            assert reply.error == "WaitInterrupted"
            assert "none is left" not in reply.message
        assert kernel.run("%jug_stop --now").out == "1 worker stopped\n"
    finally:
        kernel.close()


THREADS = """%%jugtask
def shown(n):
    from IPython.display import HTML, clear_output, display
    print("at first")
    clear_output()
    print("then", n)
    display(HTML(f"<b>{n}</b>"), display_id="it")
    display(HTML(f"<i>{n}</i>"), display_id="it", update=True)
    print("last")
    return n
"""


def test_workers_that_are_threads_of_the_kernel_keep_what_tasks_display(tmp_path: Path) -> None:
    settings = str(tmp_path / "settings")
    kernel = Kernel(tmp_path, JUG_STORE="memory:", XDG_CONFIG_HOME=settings, JUG_NOTEBOOK_DISPLAY="text")
    try:
        kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn")
        kernel.run(THREADS)
        ran = kernel.run("task = shown(1)\ncrew = jn.execute(1)\ntask.result()")
        assert (ran.result, ran.out, ran.displays) == ("1", "", [])
        forms = "[(kind, piece if kind == 'stdout' else piece['text/html']) for kind, piece in task.outputs()]"
        output = kernel.run(forms)
        assert output.result == r"[('stdout', 'then 1\n'), ('display', '<i>1</i>'), ('stdout', 'last\n')]"
        kernel.run("%jug_stop --now\nseen = -1\nwhile crew.supervisors: seen = crew.store.watch(seen, 0.05)")
        here = kernel.run("again = shown(2)\n%jug_execute --here")
        assert "then 2" in here.out
        assert [one["data"]["text/html"] for one in here.displays] == ["<b>2</b>"]
        assert kernel.run("again.outputs()[1][1]['text/html']").result == "'<i>2</i>'"
    finally:
        kernel.close()


def test_a_crew_shows_as_the_picture_of_its_store(tmp_path: Path) -> None:
    settings = str(tmp_path / "settings")
    kernel = Kernel(tmp_path, XDG_CONFIG_HOME=settings, JPY_SESSION_NAME=str(tmp_path / "n.ipynb"))
    try:
        kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn\n%config JugMagics.display = 'html'")
        kernel.run(HELD)
        planned = kernel.run("jn.execute(3, dry_run=True)", "plan")
        assert planned.out == "no tasks yet: nothing would run, no worker would be started\n"
        assert not planned.displays
        reply = kernel.run("task = held('gate')\ncrew = jn.execute(1)\ncrew", "crew")
        [picture] = reply.displays
        assert (reply.result, reply.out) == ("", "")
        assert "this notebook" in picture["data"]["text/plain"]
        assert "ready <b>1</b>" in picture["data"]["text/html"] or "running <b>1</b>" in picture["data"]["text/html"]
        (tmp_path / "gate").touch()
        while "all done" not in kernel.update()["data"]["text/plain"]:
            pass
        [still, view] = kernel.run("%config JugMagics.display = 'widget'\ncrew", "widget").displays
        assert "all done" in still["data"]["text/plain"]
        assert "application/vnd.jupyter.widget-view+json" in view["data"]
        text = kernel.run("%config JugMagics.display = 'text'\ncrew", "text")
        assert text.out.startswith("<Crew of 1 worker")
        kernel.run("%unload_ext jug_notebook")
        assert kernel.run("crew").result.startswith("<Crew of ")
        assert kernel.run("'all done' in crew._repr_html_()").result == "True"
        kernel.run("crew.stop(now=True)")
    finally:
        kernel.close()


def test_what_an_edited_cell_left_behind_is_cleaned_up_by_function(tmp_path: Path) -> None:
    settings = str(tmp_path / "settings")
    kernel = Kernel(tmp_path, XDG_CONFIG_HOME=settings, JPY_SESSION_NAME=str(tmp_path / "n.ipynb"))
    try:
        kernel.run("%load_ext jug_notebook\n%config JugMagics.display = 'text'")
        kernel.run("%%jugtask\ndef shape(n):\n    return [n] * 3\n", "define")
        kernel.run("made = shape.map(range(4))\n%jug_execute --here", "calls")
        assert kernel.run("%jug_cleanup").out == "nothing to clean up: all that is stored is in use\n"
        kernel.run("%%jugtask\ndef shape(n):\n    return [n] * 5\n", "define")
        kernel.run("made = shape.map(range(2))\n%jug_execute --here", "calls")
        report = kernel.run("%jug_cleanup shape --dry-run").out.splitlines()
        assert report[0].startswith("shape  4 tasks, ")
        assert report[1].startswith("would remove 4 tasks, ")
        assert kernel.run("%jug_cleanup --older-than 1d").out.startswith("nothing to clean up")
        assert "removed 4 tasks" in kernel.run("%jug_cleanup").out
        assert kernel.run("made.result()").result == "[[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]"
        wrong = kernel.run("%jug_cleanup --older-than soon")
        assert (wrong.error, "length of time" in wrong.message) == ("UsageError", True)
        assert kernel.run("import jug_notebook as jn\njn.copy('jugdata', 'elsewhere')").result.startswith(
            "copied 2 tasks, 2 results, 0 failures, "
        )
        assert kernel.run("jn.cleanup(dry_run=True)").result.startswith("nothing to clean up")
    finally:
        kernel.close()


def test_the_python_of_workers_may_be_in_a_folder_with_a_blank(tmp_path: Path) -> None:
    python = tmp_path / "with space" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nOTHER=yes exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    kernel = Kernel(tmp_path, XDG_CONFIG_HOME=str(tmp_path / "settings"), JUG_NOTEBOOK_DISPLAY="text")
    try:
        kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn, os")
        assert kernel.run(f"%jug_execute -n 1 --python '{python}'").out.startswith("started 1 worker")
        assert kernel.run("jn.task(lambda: os.environ['OTHER'])().result()").result == "'yes'"
        kernel.run("%jug_stop --now")
    finally:
        kernel.close()


LEAKS = """
import gc, os
from tests.session.test_interrupts import interrupted

def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

def execute(at=0):
    with interrupted(at) as lines:
        try:
            get_ipython().run_line_magic("jug_execute", "-n 1")
        except KeyboardInterrupt:
            pass
    get_ipython().run_line_magic("jug_stop", "--now")
    return lines[0]

total = execute()
before = descriptors()
for at in range(1, total + 1, max(1, total // 15)):
    execute(at)
jn.status()
print("more:", descriptors() - before)
"""


def test_an_interrupted_start_of_workers_leaks_no_descriptor(tmp_path: Path) -> None:
    kernel = Kernel.of_notebook(tmp_path, tmp_path / "settings")
    try:
        kernel.run(f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n%load_ext jug_notebook")
        reply = kernel.run(f"import jug_notebook as jn\n{LEAKS}")
        assert int(reply.out.rpartition("more:")[2]) <= 0, reply
    finally:
        kernel.close()


def test_a_failure_of_a_former_kernel_names_no_cell_of_this_one(tmp_path: Path) -> None:
    definition = "%%jugtask\ndef clean(x):\n    return 1 / x"
    former = Kernel.of_notebook(tmp_path, tmp_path / "settings")
    try:
        former.run("%load_ext jug_notebook")
        former.run(definition)
        former.run("bad = clean(0)\n%jug_execute --here")
        status = "import jug_notebook as jn\nprint(jn.status())"
        assert "Cell In[2], line 3, in clean: return 1 / x" in former.run(status).out
    finally:
        former.close()
    kernel = Kernel.of_notebook(tmp_path, tmp_path / "settings")
    try:
        kernel.run("1\n1")
        kernel.run("%load_ext jug_notebook")
        assert "Cell In[2] of another kernel, line 3, in clean: return 1 / x" in kernel.run(status).out
        kernel.run(definition)
        kernel.run("bad = clean(0)")
        failed = kernel.run("bad.result()")
        assert "Cell In[4], line 3, in clean" in failed.plain_traceback, "the same text was run here"
    finally:
        kernel.close()
