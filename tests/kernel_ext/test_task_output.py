"""What tasks of a real notebook log, print late and ask, in a worker."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.kernels import Kernel

DEFINITIONS = """%%jugtask
def logs(n):
    logging.getLogger("mine").info("hello %s", n)
    logging.getLogger("mine.part").debug("detail")
    logging.getLogger("other").warning("careful")

def leave(go, done):
    def late():
        with open(go) as gate:
            gate.read()
        print("from a thread")
        logging.warning("logged by a thread")
        track_all()
        open(done, "w").close()

    def track_all():
        list(jn.track(range(77)))

    print("from the task")
    command = f"read line <{go}.process; echo from a process; echo >{done}.process"
    subprocess.Popen(["bash", "-c", command])
    subprocess.run(["bash", "-c", f"({command.replace('.process', '.orphan')}) &"])
    threading.Thread(target=late).start()

def meanwhile(go, done):
    from concurrent.futures import ThreadPoolExecutor

    print("first")
    for which in ("", ".process", ".orphan"):
        with open(go + which, "w") as gate:
            gate.write("go\\n")
        open(done + which).close()
    with ThreadPoolExecutor() as pool:
        pool.submit(print, "in a pool").result()
    thread = threading.Thread(target=print, args=("in a thread",))
    thread.start()
    thread.join()
    subprocess.run(["echo", "in a process"])

def uses_pools(n):
    import dask
    from loky import get_reusable_executor

    get_reusable_executor(1).submit(print, "in a process of a pool", n, flush=True).result()
    dask.compute(dask.delayed(print)("in a thread of a pool", n), scheduler="threads")

def asks(how):
    if how == "input()":
        return input("yes? ")
    if how == "getpass()":
        import getpass
        return getpass.getpass()
    if how == "breakpoint()":
        breakpoint()
    import pdb
    pdb.set_trace()
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A notebook with one worker."""
    folder = tmp_path_factory.mktemp("notebook")
    kernel = Kernel(
        folder, JPY_SESSION_NAME=str(folder / "n.ipynb"), XDG_CONFIG_HOME=str(folder), JUG_NOTEBOOK_DISPLAY="text"
    )
    kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn, logging, os, subprocess, threading")
    assert not kernel.run(DEFINITIONS).message
    assert kernel.run("%jug_execute -n 1").out.startswith("started 1 worker")
    yield kernel
    kernel.run("%jug_stop --now")
    kernel.close()


def test_what_a_task_logs_comes_out_as_in_the_notebook(kernel: Kernel) -> None:
    for n, (setup, lines) in enumerate(
        [
            ("pass", ["careful"]),
            ("logging.basicConfig(level=20)", ["INFO:mine:hello 1", "WARNING:other:careful"]),
            (
                "logging.getLogger('mine.part').setLevel(10)",
                ["INFO:mine:hello 2", "DEBUG:mine.part:detail", "WARNING:other:careful"],
            ),
            (
                "logging.root.handlers[0].setFormatter(logging.Formatter('{name} > {message}', style='{'))",
                ["mine > hello 3", "mine.part > detail", "other > careful"],
            ),
            ("logging.disable(20)", ["other > careful"]),
            ("logging.disable(0); logging.root.handlers.clear(); logging.root.setLevel(30)", ["careful"]),
            (
                "own = logging.getLogger('mine'); own.setLevel(20); own.addHandler(logging.StreamHandler())",
                ["hello 6", "detail", "careful"],
            ),
        ]
    ):
        assert kernel.run(f"{setup}\nlogs.run({n})").out.splitlines() == lines
        kernel.run(f"task = logs({n}); task.result()")
        assert kernel.run("print(*[text for kind, text in task.outputs()], sep='')").out.split("\n")[:-2] == lines


def test_what_a_task_left_behind_prints_is_in_the_worker_s_log_and_under_no_other_task(kernel: Kernel) -> None:
    kernel.run("for which in ('', '.process', '.orphan'):\n    os.mkfifo('go' + which), os.mkfifo('done' + which)")
    kernel.run("first, second = os.path.abspath('go'), os.path.abspath('done')\ntask = leave(first, second)")
    printed = str(kernel.run("task.result(); ''.join(text for kind, text in task.outputs())").result)
    assert printed.startswith(r"'from the task\n")
    kernel.run("other = meanwhile(first, second); other.result()")
    assert kernel.run("''.join(text for kind, text in other.outputs())").result == (
        r"'first\nin a pool\nin a thread\nin a process\n'"
    )
    logged = kernel.run(
        "store, seen = jn.current().access.store, -1\n"
        "[worker] = [info.id for info, _, _ in store.processes() if info.kind == 'worker']\n"
        "jn.task(str)(1).result()\n"
        "while store.log(worker).count('from') < 3: seen = store.watch(seen, 0.05)\n"
        "print(*sorted(store.log(worker).splitlines()), sep='\\n')"
    )
    *printed_late, left, end = logged.out.split("\n")
    assert printed_late == ["WARNING:root:logged by a thread", "from a process", "from a process", "from a thread"]
    assert re.fullmatch(r"leave \w{8} left processes behind, which will end with their worker: .*\(bash\)", left)
    assert end == ""


def test_what_a_pool_prints_that_outlives_a_task_is_of_the_task_that_uses_it(kernel: Kernel) -> None:
    for n in (1, 2):
        kernel.run(f"task = uses_pools({n}); task.result()")
        lines = kernel.run("print(*[text for kind, text in task.outputs()], sep='')").out.splitlines()
        assert lines[:2] == [f"in a process of a pool {n}", f"in a thread of a pool {n}"]


@pytest.mark.parametrize("how", ["input()", "getpass()", "breakpoint()", "set_trace()"])
def test_a_task_that_asks_fails_with_the_way_out(kernel: Kernel, how: str) -> None:
    shown = kernel.run(f"asks({how!r}).result()")
    assert f"CantAsk: asks calls {how}, but a task can't ask: " in shown.message
    assert "import_hooks" not in shown.message, "its last line is the user's"
    assert ("pass the answer as an argument" in shown.message) == (how in ("input()", "getpass()"))
