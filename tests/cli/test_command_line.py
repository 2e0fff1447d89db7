"""The command line, as a shell sees it: real processes, their output and their exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jug_notebook.model import State
from jug_notebook.store import open_store

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import jug_notebook as jn

@jn.task
def double(x):
    print("doubling", x)
    return 2 * x

@jn.task
def divide(x):
    return 1 / x

@jn.task
def add(x, y):
    return x + y

@jn.task
def patient(path):
    with open(path) as gate:
        return gate.read()

jn.connect(sys.argv[1])
if len(sys.argv) > 2:
    patient(sys.argv[2])
else:
    double.map(range(3))
    add(double(1), divide(0))
"""


class Shell:
    """A folder, an environment, and commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUG_", "JPY_"))}
        self.environment |= {
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words), cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, stdin=pipe, text=True
        )

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            input=given,
            timeout=60,
            check=False,
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "jug_notebook", *words]

    def python(self, *words: str) -> str:
        ran = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A store "jugdata" where three tasks finished, one failed and one is blocked by it."""
    shell = Shell(tmp_path_factory.mktemp("ran"))
    (shell.folder / "script.py").write_text(SCRIPT)
    shell.python("script.py", "jugdata")
    before = shell.run("check")
    assert before.returncode == 1
    assert before.stdout.startswith("0 of 5 finished · 4 ready · 1 waiting")
    assert "no workers running" in before.stdout
    executed = shell.run("execute", "jugdata", "-n", "1")
    assert executed.returncode == 1, executed.stderr  # one task failed
    assert executed.stdout.splitlines()[-1].startswith("3 of 5 finished · 1 failed · 1 blocked")
    return shell


# -- asking wrongly ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["check"],
        ["invalidate", "f"],
        ["retry", "f"],
        ["stop"],
        ["log", "f"],
        ["key", "export"],
        ["execute"],
    ],
    ids=lambda words: words[0],
)
def test_looking_for_a_store_never_makes_one(shell: Shell, words: list[str]) -> None:
    ran = shell.run(*words)
    assert ran.returncode == 2
    assert (
        ran.stderr
        == "jug-notebook: no store at 'jugdata'; name another with --jugdir, or make one: jug-notebook worker\n"
    )
    assert list(shell.folder.iterdir()) == []


def test_before_there_is_a_store_doctor_tells_whether_one_could_be_made_and_leaves_nothing(shell: Shell) -> None:
    ran = shell.run("doctor")
    assert ran.returncode == 0, ran.stderr
    assert "✓ store    there is none at 'jugdata' yet; one could be made" in ran.stdout
    assert "✓ writing  works" in ran.stdout
    assert list(shell.folder.iterdir()) == []
    assert "no store at 'jugdtaa'" in shell.run("doctor", "jugdtaa").stderr


def test_a_misspelt_command_is_answered_with_the_nearest_one(shell: Shell) -> None:
    ran = shell.run("statsu")
    assert (ran.returncode, ran.stderr) == (2, "jug-notebook: no command 'statsu'; did you mean 'status'?\n")


def test_without_a_command_it_lists_them_all(shell: Shell) -> None:
    ran = shell.run()
    assert ran.returncode == 2
    for command in ("worker", "execute", "status", "check", "invalidate", "retry", "stop", "log", "key"):
        assert f"\n  {command} " in ran.stderr
    assert shell.run("--version").stdout.startswith("jug-notebook ")


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["worker", "x", "-n", "0"], "'0' is not a whole number"),
        (["worker", "x", "--max-time", "soon"], "'soon' is not a length of time"),
        (["worker", "x", "--memory-limit", "much"], "'much' is not a size"),
        (["worker", "x", "--memory-limt", "1G"], "--memory-limt"),
        (["worker", "memory:"], "lives in the process that made it"),
        (["worker", "nosuch:x"], "no store of kind 'nosuch'"),
        (["execute", "absent.ipynb"], "no notebook at 'absent.ipynb'"),
        (["execute", "absent", "--inplace"], "'absent' is none"),
        (["status", "--short", "--json"], "not allowed with"),
        (["key", "import"], "this is not a key"),
    ],
)
def test_what_is_asked_wrongly_is_named_and_exits_with_2(shell: Shell, words: list[str], printed: str) -> None:
    ran = shell.run(*words)
    assert ran.returncode == 2
    assert printed in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("written", "meant"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("10min", 600), ("2h", 7200), ("1 d", 86_400)]
)
def test_lengths_of_time_may_have_units(written: str, meant: float) -> None:
    from jug_notebook.cli import seconds

    assert seconds(written) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [("4096", 4096), ("500MB", 500_000_000), ("2G", 2 * 10**9), ("2GiB", 2 * 1024**3), ("1 kb", 1000)],
)
def test_sizes_may_have_units(written: str, meant: int) -> None:
    from jug_notebook.cli import size

    assert size(written) == meant


# -- looking -----------------------------------------------------------------------------------------------------------


def test_the_status_tells_what_failed_and_why(ran: Shell) -> None:
    printed = ran.run("status")
    assert printed.returncode == 1
    for part in ("3 of 5 finished", "double", "divide(x=0)", "ZeroDivisionError: division by zero", "return 1 / x"):
        assert part in printed.stdout
    assert "%jug" not in printed.stdout


def test_the_status_is_one_line_when_asked(ran: Shell) -> None:
    printed = ran.run("status", "--short")
    assert printed.stdout.count("\n") == 1
    assert printed.stdout.startswith("3 of 5 finished · 1 failed · 1 blocked · stopped: 1 failed, 1 blocked by it")


def test_the_status_as_json_has_the_documented_shape(ran: Shell) -> None:
    picture = json.loads(ran.run("status", "--json").stdout)
    assert set(picture) == {
        "store", "scope", "at", "total", "eta", "done", "counts", "kept", "functions", "workers", "failures",
        "notes",
    }  # fmt: skip
    assert picture["counts"] == {state.value: 0 for state in State} | {"finished": 3, "failed": 1, "blocked": 1}
    assert [function["name"] for function in picture["functions"]] == ["double", "divide", "add"]
    [failure] = picture["failures"]
    assert (failure["name"], failure["arguments"]) == ("divide", "x=0")
    assert "return 1 / x" in failure["traceback"]


def test_the_status_as_a_page_appears_whole(ran: Shell) -> None:
    assert ran.run("status", "--html", "page.html").returncode == 1
    page = (ran.folder / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "ZeroDivisionError" in page
    assert not list(ran.folder.glob(".page.html*"))
    refused = ran.run("status", "--html", "absent/page.html")
    assert (refused.returncode, "can't write" in refused.stderr) == (2, True)


def test_the_store_may_be_named_in_four_ways(ran: Shell) -> None:
    short = "3 of 5 finished"
    assert ran.run("status", str(ran.folder / "jugdata"), "--short").stdout.startswith(short)
    assert ran.run("--jugdir", "file:jugdata", "status", "--short").stdout.startswith(short)
    assert ran.run("check", "--store=jugdata").stdout.startswith(short)
    elsewhere = Shell(ran.folder)
    elsewhere.environment["JUG_STORE"] = "nowhere"
    assert "no store at 'nowhere'" in elsewhere.run("check").stderr
    assert elsewhere.run("check", "--jugdir", "jugdata").stdout.startswith(short)


def test_the_log_shows_what_a_task_printed_and_why_it_failed(ran: Shell) -> None:
    printed = ran.run("log", "double")
    assert printed.returncode == 0
    assert "double(x=2) · finished" in printed.stdout
    assert "\ndoubling 2\n" in printed.stdout
    failed = ran.run("log", "/div/").stdout
    assert "divide(x=0) · failed" in failed
    assert "ZeroDivisionError: division by zero" in failed
    assert "did you mean double?" in ran.run("log", "duble").stderr


def test_without_the_key_the_counts_show_and_the_failures_say_why_not(ran: Shell) -> None:
    stranger = Shell(ran.folder)
    stranger.environment["XDG_CONFIG_HOME"] = str(ran.folder / "stranger")
    printed = stranger.run("status")
    assert "3 of 5 finished" in printed.stdout
    assert "failures are not shown" in printed.stdout
    assert "ZeroDivisionError" not in printed.stdout
    assert "note: unverified: the key of store" in printed.stdout
    for words in (["status", "--short"], ["check"]):
        assert stranger.run(*words).stdout.endswith(" · unverified\n")


@pytest.mark.parametrize(
    "words", ["log double", "invalidate double", "retry divide", "accept double", "stop", "cleanup", "pack",
              "copy jugdata elsewhere", "worker -n 1", "execute", "key export"],
)  # fmt: skip
def test_without_the_key_nothing_is_loaded_or_written_and_one_line_says_what_to_do(ran: Shell, words: str) -> None:
    stranger = Shell(ran.folder)
    stranger.environment["XDG_CONFIG_HOME"] = str(ran.folder / "stranger")
    files = {path: path.stat().st_mtime_ns for path in (ran.folder / "jugdata").rglob("*")}
    refused = stranger.run(*words.split())
    assert refused.returncode == 2
    assert "copy the file of that name from the account that made the store" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in (ran.folder / "jugdata").rglob("*")} == files


def test_a_key_goes_to_another_account_through_pipes(ran: Shell) -> None:
    friend = Shell(ran.folder)
    friend.environment["XDG_CONFIG_HOME"] = str(ran.folder / "friend")
    line = ran.run("key", "export").stdout
    assert line.count("\n") == 1
    assert friend.run("key", "import", given=line).returncode == 0
    assert "ZeroDivisionError" in friend.run("status").stdout
    wrong = line.split()[0] + " " + "00" * 32
    assert "another key" in friend.run("key", "import", given=wrong).stderr


# -- acting ------------------------------------------------------------------------------------------------------------


def test_another_store_than_before_is_refused_by_every_command_until_it_is_accepted(shell: Shell) -> None:
    for name in ("jugdata", "other"):
        assert shell.run("worker", name, "-n", "1", "--idle-timeout", "0").returncode == 0
    (shell.folder / "jugdata").rename(shell.folder / "former")
    (shell.folder / "other").rename(shell.folder / "jugdata")
    for words in (["status"], ["log", "f"], ["worker", "-n", "1"], ["pack"], ["key", "export"], ["invalidate", "f"]):
        refused = shell.run(*words)
        assert refused.returncode == 2
        assert "held another store before" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert shell.run("status", "--accept-new-store").returncode == 0
    assert shell.run("status").returncode == 0


def test_invalidating_and_retrying_make_tasks_ready_again(shell: Shell) -> None:
    (shell.folder / "script.py").write_text(SCRIPT)
    shell.python("script.py", "jugdata")
    shell.run("execute", "jugdata", "-n", "1")
    dry = shell.run("invalidate", "double", "--dry-run")
    assert dry.stdout.count("finished  double") == 3
    assert "int 4" in dry.stdout
    assert shell.run("check").stdout.startswith("3 of 5 finished")
    dropped = shell.run("invalidate", "double").stdout
    assert dropped == "invalidated 3 results; they and what depends on them will be recomputed\n"
    assert shell.run("check").stdout.startswith("0 of 5 finished · 3 ready")
    assert "none of these" in shell.run("retry", "double").stdout
    assert "1 task will be tried again" in shell.run("retry", "add").stdout
    assert shell.run("check").stdout.startswith("0 of 5 finished · 4 ready · 1 waiting")
    assert shell.run("invalidate", "nosuch").returncode == 2


def test_results_of_former_code_can_be_accepted_and_given_back(shell: Shell) -> None:
    for source in (SCRIPT, SCRIPT.replace("return 2 * x", "twice = 2 * x; return twice")):
        (shell.folder / "script.py").write_text(source)
        shell.python("script.py", "jugdata")
        if source is SCRIPT:
            shell.run("execute", "jugdata", "-n", "1")
    assert shell.run("accept", "double", "--dry-run").stdout.startswith("would accept 3 results, from ")
    assert shell.run("accept", "double").stdout.startswith("accepted 3 results, from ")
    assert shell.run("accept", "double").stdout.startswith("nothing to accept: ")
    assert "3 of them reused" in shell.run("status").stdout
    assert shell.run("accept", "double", "--undo").stdout == "undid the acceptance of 3 results of previous code\n"
    assert "3 ready" in shell.run("check").stdout


def test_a_worker_makes_its_store_and_ends_when_idle(shell: Shell) -> None:
    ran = shell.run("worker", "new", "-n", "1", "--idle-timeout", "0")
    assert (ran.returncode, ran.stderr) == (0, "made a new store: file:new\n")
    printed = shell.run("status", "new")
    assert printed.returncode == 0
    assert "no tasks yet" in printed.stdout


def test_a_worker_does_only_what_its_target_names(shell: Shell) -> None:
    (shell.folder / "script.py").write_text(SCRIPT)
    shell.python("script.py", "jugdata")
    ran = shell.run("worker", "jugdata", "-n", "1", "--idle-timeout", "0", "--target", "/^dou/")
    assert ran.returncode == 0, ran.stderr
    assert shell.run("check").stdout.startswith("3 of 5 finished · 1 ready · 1 waiting")
    assert "no function of the store matches" in shell.run("worker", "jugdata", "--target", "/nosuch/").stderr


def waiting_task(shell: Shell) -> Path:
    """A task that runs until somebody writes into the pipe."""
    gate = shell.folder / "gate"
    os.mkfifo(gate)
    (shell.folder / "script.py").write_text(SCRIPT)
    shell.python("script.py", "jugdata", str(gate))
    return gate


def until_running(shell: Shell) -> None:
    store = open_store(str(shell.folder / "jugdata"))
    seen = -1
    for _ in range(200):
        if any(info.task for info, alive, _ in store.processes() if alive):  # a claim alone may be given back
            break
        seen = store.watch(seen, 0.5)
    else:
        raise AssertionError("nothing runs")
    store.close()


def test_ctrl_c_lets_a_worker_finish_its_task(shell: Shell) -> None:
    gate = waiting_task(shell)
    process = shell.start("execute", "jugdata", "-n", "1")
    until_running(shell)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping after the current tasks" in process.stderr.readline()
    gate.write_text("now")
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert stdout.startswith("1 of 1 finished · all done")


def test_stop_reaches_the_workers_of_a_store(shell: Shell) -> None:
    waiting_task(shell)
    process = shell.start("worker", "jugdata", "-n", "1")
    until_running(shell)
    assert "1 worker stopped" in shell.run("stop", "--now").stdout
    process.communicate(timeout=30)
    assert shell.run("check").stdout.startswith("0 of 1 finished · 1 ready")
    assert shell.run("stop").stdout == "no worker is alive\n"


def test_other_packages_can_add_commands(shell: Shell) -> None:
    (shell.folder / "hello.py").write_text(
        "from jug_notebook.cli import Command\n"
        "def add(parser): parser.add_argument('name')\n"
        "def run(arguments): print('hello', arguments.name); return 7\n"
        "HELLO = Command('say hello', add, run)\n"
    )
    details = shell.folder / "hello-1.0.dist-info"
    details.mkdir()
    (details / "METADATA").write_text("Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
    (details / "entry_points.txt").write_text("[jug_notebook.commands]\nhello = hello:HELLO\n")
    ran = shell.run("hello", "world")
    assert (ran.returncode, ran.stdout) == (7, "hello world\n")
    assert "say hello" in shell.run("--help").stdout


def test_looking_and_working_load_nothing_heavy(ran: Shell) -> None:
    watch = (
        "import sys; from jug_notebook.__main__ import main; main(sys.argv[1:])\n"
        "heavy = {'IPython', 'numpy', 'redis', 'nbclient', 'nbformat', 'pandas', 'traitlets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for words in (["status"], ["check"], ["worker", "--idle-timeout", "0", "-n", "1"]):
        ran.python("-c", watch, *words)


def test_a_closed_pipe_is_no_error(ran: Shell) -> None:
    process = ran.start("status", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(timeout=30)


# -- notebooks ---------------------------------------------------------------------------------------------------------


def notebook(path: Path, *cells: str) -> Path:
    """A notebook file with these code cells, named a, b, c …"""
    content = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": [
            {
                "cell_type": "code",
                "id": "cell-" + "abcdef"[i],
                "metadata": {},
                "source": cell,
                "outputs": [],
                "execution_count": None,
            }
            for i, cell in enumerate(cells)
        ],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def outputs(path: Path) -> list[str]:
    return [
        "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        for cell in json.loads(path.read_text())["cells"]
        for output in cell["outputs"]
    ]


def test_a_notebook_runs_in_its_folder_and_knows_its_path_and_cells(shell: Shell) -> None:
    path = notebook(
        shell.folder / "a folder" / "my notebook.ipynb",
        "import os\nprint(os.getcwd(), os.environ['JPY_SESSION_NAME'], os.environ['JUG_HEADLESS'], sep='|')",
        "# a comment\nget_ipython().kernel.get_parent('shell')['metadata']['cellId']",
    )
    before = path.read_text()
    ran = shell.run("execute", "a folder/my notebook.ipynb", "--output", "out.ipynb")
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stderr.splitlines()
    assert first.startswith("✓ 1/2")
    assert first.endswith("import os")
    assert second.startswith("✓ 2/2")
    assert "get_ipython()" in second
    printed, cell = outputs(shell.folder / "out.ipynb")
    assert printed == f"{path.parent}|{path}|1\n"
    assert cell == "'cell-b'"
    assert path.read_text() == before


def test_a_failing_cell_shows_its_traceback_and_what_ran_is_kept(shell: Shell) -> None:
    path = notebook(
        shell.folder / "bad.ipynb", "print('before')", "def f(x):\n    return 1 / x\nf(0)", "print('never')"
    )
    ran = shell.run("execute", "bad.ipynb", "--inplace")
    assert ran.returncode == 1
    assert "× 2/3" in ran.stderr
    assert "ZeroDivisionError: division by zero" in ran.stderr
    assert "return 1 / x" in ran.stderr
    assert "\x1b" not in ran.stderr
    assert outputs(path)[0] == "before\n"
    assert "never\n" not in outputs(path)
    assert not list(shell.folder.glob(".bad*"))


def test_a_kernel_that_dies_is_told_with_its_cell(shell: Shell) -> None:
    notebook(shell.folder / "dead.ipynb", "1", "import os; os._exit(3)")
    ran = shell.run("execute", "dead.ipynb")
    assert ran.returncode == 2
    assert "the kernel of dead.ipynb died in cell 2 of 2" in ran.stderr


def test_what_is_no_notebook_is_refused(shell: Shell) -> None:
    (shell.folder / "no.ipynb").write_text("hello")
    ran = shell.run("execute", "no.ipynb")
    assert ran.returncode == 2
    assert "no.ipynb is not a notebook" in ran.stderr
    assert "%jug_execute" in shell.run("execute", "no.ipynb", "-n", "2").stderr
    (shell.folder / "text.txt").write_text("1")
    assert "neither a notebook" in shell.run("execute", "text.txt").stderr


def test_a_script_that_makes_no_tasks_says_so_and_one_with_a_store_of_its_own_is_refused(shell: Shell) -> None:
    (shell.folder / "script.py").write_text("1")
    ran = shell.run("execute", "script.py")
    assert (ran.returncode, "makes no tasks" in ran.stderr) == (0, True)
    (shell.folder / "script.py").write_text(SCRIPT)
    ran = shell.run("execute", "script.py", "jugdata")
    assert ran.returncode == 2
    assert "connects to" in ran.stderr


def test_a_script_that_makes_tasks_by_our_own_names_is_executed(shell: Shell) -> None:
    (shell.folder / "script.py").write_text(SCRIPT.partition("jn.connect")[0] + "add(double(1), double(20))\n")
    assert shell.run("status", "--short", "script.py").stdout.startswith("3 tasks waiting")
    ran = shell.run("execute", "script.py")
    assert ran.returncode == 0, ran.stderr
    assert shell.run("check", "script.py").returncode == 0


def test_ctrl_c_interrupts_the_cell_and_ends_the_kernel_in_order(shell: Shell) -> None:
    gate, left = shell.folder / "gate", shell.folder / "left"
    os.mkfifo(gate)
    notebook(
        shell.folder / "slow.ipynb",
        f"import atexit, pathlib\natexit.register(pathlib.Path({str(left)!r}).write_text, 'in order')",
        f"open({str(gate)!r}).read()\nimport threading\nthreading.Event().wait()",
        "print('never')",
    )
    process = shell.start("execute", "slow.ipynb", "--inplace")
    gate.write_text("")  # opens when the cell does
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupting the cell" in stderr
    assert left.read_text() == "in order"
    assert "never\n" not in outputs(shell.folder / "slow.ipynb")


# -- graph, history ----------------------------------------------------------------------------------------------------


def test_the_graph_is_a_list_or_a_picture_in_a_file(ran: Shell) -> None:
    assert ran.run("graph", "jugdata").stdout.splitlines() == [
        "3 functions, 5 tasks",
        "add · 1 task: 1 blocked",
        "  1 × double · 3 tasks: 3 finished",
        "  1 × divide · 1 task: 1 failed",
    ]
    assert ran.run("graph", "jugdata", "--svg", "g.svg").returncode == 0
    assert (ran.folder / "g.svg").read_text().startswith("<svg xmlns=")
    assert ran.run("graph", "jugdata", "--svg", "-").stdout == (ran.folder / "g.svg").read_text()


def test_the_timeline_is_drawn_from_the_store_alone_long_after(ran: Shell) -> None:
    text = ran.run("timeline", "jugdata").stdout
    assert text.startswith("4 runs of 2 functions by ")
    assert "1 failed" in text.splitlines()[1]
    assert "double: 3 runs" in text
    assert ran.run("timeline", "jugdata", "--html", "t.html").returncode == 0
    page = (ran.folder / "t.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert page.count("<rect") > 4
    assert ran.run("timeline", "jugdata", "--since", "1999-01-01", "--until", "2001-01-01").stdout == (
        "no task has run yet\n"
    )
    refused = ran.run("timeline", "jugdata", "--since", "yesterday")
    assert refused.returncode == 2
    assert "'yesterday' is not a time; give a date as 2026-10-31" in refused.stderr


def test_history_tells_who_ran_what_when(ran: Shell) -> None:
    details = ran.run("log", "--history").stdout
    assert details.splitlines()[0].split() == [
        "started",
        "took",
        "user",
        "host",
        "state",
        "task",
        "value",
        "or",
        "error",
        "key",
    ]
    assert len(details.splitlines()) == 5
    assert "ZeroDivisionError" in details
    assert "name the tasks" in ran.run("log").stderr
