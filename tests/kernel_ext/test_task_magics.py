"""The magics that look closer, in a real kernel: the graph, a failed task looked into, tasks run here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels import COLOURS, CellOutput, Kernel

pytest.importorskip("ipykernel")

CELL = """%%jugtask
def load(n):
    print("loading", n)
    return list(range(n))

def total(rows):
    return sum(map(sum, rows))

def divide(a, b):
    half = a / 2
    return share(half, b)

def share(part, whole):
    return part / whole
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel whose display is text, with 8 tasks that nothing has run."""
    folder = tmp_path_factory.mktemp("work")
    kernel = Kernel.of_notebook(folder, tmp_path_factory.mktemp("settings"))
    kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn")
    kernel.run(CELL, "defs")
    kernel.run("rows = load.map(range(6))\nanswer = total(rows)\nbad = divide(6, 0)\nother = [divide(6, 0), answer]")
    yield kernel
    kernel.run("%jug_stop --now")
    kernel.close()


@pytest.fixture(scope="module")
def ran(kernel: Kernel) -> CellOutput:
    """What running those tasks in the kernel showed."""
    return kernel.run("%jug_execute --here")


def test_a_dry_run_says_what_would_run_and_starts_nothing(kernel: Kernel) -> None:
    assert kernel.run("%jug_execute -n 3 --dry-run").out.splitlines() == [
        "8 to run, 0 stored",
        "  load    6 to run",
        "  total   1 to run",
        "  divide  1 to run",
        "3 workers would be started; nothing was started",
    ]
    assert kernel.run("%jug_execute -n 3 --dry-run --target divide").out.startswith("1 to run, 0 stored\n")
    assert kernel.run("%jug_execute -n 3 --dry-run --not-target divide").out.startswith("7 to run, 0 stored\n")
    slurm = kernel.run("%jug_execute -n 3 --dry-run --slurm --walltime 2h").out
    assert "Slurm would get 3 jobs of one worker each: sbatch --ntasks=1 --requeue --time=120 --array=0-2\n" in slurm
    refused = kernel.run("%jug_execute --here --gpus 0,1")
    assert (refused.error, refused.message) == (
        "UsageError",
        "%jug_execute --here runs tasks in this kernel: leave out --gpus, --resources, --env and --notify",
    )
    assert kernel.run("jn.status().workers").result == "no workers"


def test_where_no_line_can_be_sent_to_is_refused_before_anything_starts_without_what_it_holds(kernel: Kernel) -> None:
    for given, message in [
        ("https:///token", "https://… is not a URL; give http://HOST/PATH or https://HOST/PATH"),
        ("htps://host/token", "Apprise can't use this htps://… URL; see its form with: apprise --details"),
        (
            "http:/host/token",
            "http:… is neither a URL nor an address; give https://HOST/PATH, mailto:NAME@HOST or env:NAME",
        ),
        ("env:NOT_THERE", "the environment variable NOT_THERE is not set; set it, or give the target itself"),
    ]:
        for asked in (
            kernel.run(f"%jug_execute -n 1 --notify {given}"),
            kernel.run(f"%jug_execute -n 1 --notify {given} --dry-run"),
            kernel.run(f"%config JugMagics.notify = [{given!r}]\n%jug_execute -n 1"),
            kernel.run(f"%config JugMagics.notify = []\njn.execute(1, notify={given!r})"),
        ):
            assert (asked.error, asked.message, asked.out) == ("LaunchError", f"notify: {message}", "")
            assert "token" not in asked.traceback.replace(repr(given), "")  # as it is written in the cell
    here = kernel.run("%jug_execute --here --notify 'echo done'")
    assert here.message.endswith("leave out --gpus, --resources, --env and --notify")
    assert kernel.run("jn.status().workers").result == "no workers"


def test_the_graph_is_a_list_where_text_is_wanted_and_a_picture_else(kernel: Kernel) -> None:
    assert kernel.run("%jug_graph").out.splitlines() == [
        "3 functions, 8 tasks",
        "total · 1 task: 1 waiting",
        "  6 × load · 6 tasks: 6 ready",
        "divide · 1 task: 1 ready",
    ]
    assert kernel.run("%jug_graph answer").out.splitlines()[0] == "2 functions, 7 tasks"
    kernel.run("%config JugMagics.display = 'html'")
    [display] = kernel.run("%jug_graph --all").displays
    assert "<svg" in display["data"]["text/html"]
    assert display["data"]["text/plain"].startswith("3 functions, 8 tasks")
    kernel.run("%config JugMagics.display = 'text'")


def test_many_tasks_in_a_list_or_dict_show_as_one_table(kernel: Kernel) -> None:
    lines = ["▒" * 24 + "  6 tasks: 6 ready", "     state  task       value"]
    lines += [f"[{n}]  ready  load(n={n})" for n in range(6)]
    for code in ("rows", "list(rows)"):
        assert kernel.run(code).result.splitlines() == lines
    labelled = kernel.run("{'n' * n: load(n) for n in range(5)}").result.splitlines()
    assert labelled[0].endswith("  5 tasks: 5 ready")
    assert labelled[4] == "'nn'    ready  load(n=2)"
    many = kernel.run("tuple(rows) * 100").result.splitlines()
    assert (many[0][26:], many[-2][:5], many[-1]) == (
        "600 tasks: 600 ready",
        "[7]  ",
        "and 592 more: %jug_tasks VARIABLE --limit 0",
    )
    assert kernel.run("[1, 2, 3, 4, 5, 6]").result == "[1, 2, 3, 4, 5, 6]"
    assert kernel.run("[*rows[:5], 7]").result.startswith("[<Task load")
    assert kernel.run("{'a': bad}").result.startswith("{'a': <Task divide")


def test_tasks_run_here_and_what_they_print_shows(kernel: Kernel, ran: CellOutput) -> None:
    assert ran.out.splitlines()[:6] == [f"loading {n}" for n in range(6)]
    assert ran.out.splitlines()[-1] == "8 tasks ran here; now 7 finished, 1 failed"
    assert kernel.run("answer.value()").result == "20"
    assert kernel.run("%jug_execute --here").out == "nothing to run: no task is ready\n"
    assert "leave out -n" in kernel.run("%jug_execute --here -n 2").message


@pytest.mark.usefixtures("ran")
def test_a_timeline_counts_runs_where_text_is_wanted_and_is_a_picture_else(kernel: Kernel) -> None:
    assert kernel.run("%jug_timeline").out.splitlines() == [
        "divide  1 run failed",
        "load  6 runs finished",
        "total  1 run finished",
    ]
    kernel.run("%config JugMagics.display = 'html'")
    [display] = kernel.run("%jug_timeline --all --since 1h").displays
    assert "<svg" in display["data"]["text/html"]
    assert display["data"]["text/plain"].startswith("8 runs of 3 functions by 1 worker on 1 host, ")
    kernel.run("%config JugMagics.display = 'text'")
    assert kernel.run("list(jn.timeline().to_frame().columns)[:3]").result == "['key', 'function', 'state']"
    assert kernel.run("%jug_profile").out.splitlines() == ["divide  1 run", "load  6 runs", "total  1 run"]
    assert kernel.run("%jug_profile load").out == "load  6 runs\n"
    assert "'soon' is not a time" in kernel.run("%jug_timeline --since soon").message


@pytest.mark.usefixtures("ran")
def test_a_listing_is_cut_where_asked_and_names_the_way_to_all(kernel: Kernel) -> None:
    lines = kernel.run("%jug_tasks load --limit 2").out.splitlines()
    assert lines[2:] == ["and 4 more: %jug_tasks --limit 0"]
    assert len(kernel.run("%jug_tasks --limit 0").out.splitlines()) == 8
    assert kernel.run("%jug_tasks --state failed").out.startswith("divide(a=6, b=0)  failed  ZeroDivisionError")


@pytest.mark.usefixtures("ran")
def test_an_interrupt_gives_a_task_that_runs_here_back(kernel: Kernel) -> None:
    kernel.run("%%jugtask\nimport signal\ndef press():\n    signal.raise_signal(signal.SIGINT)")
    reply = kernel.run("pressed = press()\n%jug_execute --here")
    assert reply.error == "WaitInterrupted"
    assert "the one that was running was requeued" in reply.message
    assert "%jug_execute" in reply.traceback or "'jug_execute'" in reply.traceback, "its line"
    assert kernel.run("pressed.state").result == "<State.READY: 'ready'>"
    kernel.run("%jug_cancel pressed")


@pytest.mark.usefixtures("ran")
def test_a_failed_task_is_looked_into_at_its_failing_line(kernel: Kernel) -> None:
    reply = kernel.run("%jug_debug bad")
    lines = reply.out.splitlines()
    assert lines[0] == "divide(a=6, b=0) failed here too: ZeroDivisionError: float division by zero"
    assert "in divide" in lines[1]
    assert lines[2:5] == ["    return share(half, b)", "      a = 6", "      b = 0"]
    assert "      half = 3.0" in lines
    assert lines[-3:] == ["    return part / whole", "      part = 3.0", "      whole = 0"]
    assert kernel.run("%jug_debug other").out == reply.out
    assert "nothing to debug" in kernel.run("%jug_debug answer").message
    assert "say which" in kernel.run("%jug_debug").message


@pytest.mark.usefixtures("ran")
def test_a_debugger_opens_where_somebody_can_answer_it(kernel: Kernel) -> None:
    output = kernel.asked("%jug_debug bad", ["p (part, whole)", "up", "p half", "q"])
    text = COLOURS.sub("", output.out)
    assert "(3.0, 0)" in text
    assert "3.0" in text.splitlines()
    assert "failed here too" in text


@pytest.mark.usefixtures("ran")
def test_equal_values_verify(kernel: Kernel) -> None:
    assert kernel.run("%jug_verify load --fraction 50%").out == "3 of 6 values computed again: all came out equal\n"
    assert "not a fraction" in kernel.run("%jug_verify load --fraction 2").message
    assert "say which" in kernel.run("%jug_verify").message


@pytest.mark.usefixtures("ran")
def test_history_is_a_magic_and_a_verb(kernel: Kernel) -> None:
    lines = kernel.run("%jug_tasks --history").out.splitlines()
    assert "divide(a=6, b=0)  failed  ZeroDivisionError: float division by zero" in lines
    assert "total(rows=6 tasks of load)  finished  int 20" in lines
    assert kernel.run("len(jn.history()), jn.history()[0].user != ''").result == "(8, True)"
    assert "goes with --history" in kernel.run("%jug_tasks --all").message


@pytest.mark.usefixtures("ran")
def test_functions_hosts_and_failed_keys_complete(kernel: Kernel) -> None:
    key = kernel.run("bad.key[:8]").result.strip("'")
    assert key in kernel.complete(f"%jug_debug {key[:3]}")
    assert "divide" in kernel.complete("%jug_graph div")
    assert "divide" in kernel.complete("%jug_execute --target div")
    host = kernel.run("import socket\nsocket.gethostname().split('.')[0]").result.strip("'")
    assert host in kernel.run("from kernel_ext.options import candidates\n"
                              "candidates('jug_log', None, jn.current(), '%jug_log --host ')").result  # fmt: skip


@pytest.mark.parametrize("jedi", [True, False])
def test_tab_offers_what_is_ours_and_nothing_else(kernel: Kernel, jedi: bool) -> None:
    folder = Path(kernel.run("import os\nos.getcwd()").result.strip("'"))
    (folder / "stores" / "one").mkdir(parents=True, exist_ok=True)
    (folder / "stores" / "file").touch()
    kernel.run(f"get_ipython().Completer.use_jedi = {jedi}\nnumbers, kept = [1, 2], [bad]")
    options = kernel.complete("%jug_execute --")
    assert {"--workers", "--dry-run"} < set(options)
    assert all(option.startswith("--") and "_" not in option for option in options)
    assert kernel.complete("%jug_execute --ho") == ["--host", "--hosts-file"]
    assert kernel.complete("%jug_store stores/") == ["stores/one/"]
    assert "memory:" in kernel.complete("%jug_store ")
    assert kernel.complete("%jug_tasks --state f") == ["finished", "failed"]
    targets = kernel.complete("%jug_wait ")
    assert {"divide", "kept"} < set(targets)
    assert not {"numbers", "In", "Out"} & set(targets)
    assert kernel.complete("kept[0].pro") == ["provenance"]
    assert not any(name.startswith("_") for name in kernel.complete("kept[-1]."))
    assert "real" in {name.lstrip(".") for name in kernel.complete("numbers[0].")}


@pytest.mark.usefixtures("ran")
def test_unloading_takes_the_tables_back(kernel: Kernel) -> None:
    kernel.run("%reload_ext jug_notebook")
    assert "6 tasks: 6 finished" in kernel.run("list(rows)").result
    kernel.run("%unload_ext jug_notebook")
    assert kernel.run("list(rows)").result.startswith("[<Task load")
    assert kernel.run("%jug_graph").error == "UsageError"
    kernel.run("%load_ext jug_notebook")


def test_a_plot_follows_a_sweep_while_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kernel = Kernel(tmp_path, XDG_CONFIG_HOME=str(tmp_path / "settings"), JPY_SESSION_NAME=str(tmp_path / "n.ipynb"))
    try:
        kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn\nimport os, time")
        kernel.run(
            "@jn.task\ndef held(a, b):\n    while a == 2 and not os.path.exists(f'gate{b}'):\n        time.sleep(0.1)\n"
            "    return a * b"
        )
        kernel.run("ts = held.grid(a=[1, 2], b=[1, 2])\ncrew = jn.execute(2)\nts.sel(a=1).wait()")
        reply = kernel.run("ts.plot(x='b')", "plot")
        [picture] = reply.displays
        assert set(picture["data"]) == {"text/plain", "image/png"}
        assert "2 of 4 finished" in picture["data"]["text/plain"]
        (tmp_path / "gate1").touch()
        began = time.monotonic()
        update = kernel.update()
        while "3 of 4 finished" not in update["data"]["text/plain"]:
            update = kernel.update()
        assert update["transient"] == picture["transient"]
        assert update["data"]["image/png"] != picture["data"]["image/png"]
        assert time.monotonic() - began < 10  # within a second on a machine that is idle
        (tmp_path / "gate2").touch()
        while "4 of 4 finished" not in kernel.update()["data"]["text/plain"]:
            pass
        table = kernel.run("%config JugMagics.display = 'text'\n%jug_tasks held").out
        assert "held(a=1, b=1)" in table  # in plain text, a call a line
        kernel.run("%jug_stop --now")
    finally:
        kernel.close()


def test_a_cell_that_asks_runs_once_it_is_confirmed(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, XDG_CONFIG_HOME=str(tmp_path / "settings"), JPY_SESSION_NAME=str(tmp_path / "n.ipynb"))
    try:
        kernel.run("%load_ext jug_notebook\nimport jug_notebook as jn\n%config JugMagics.display = 'text'")
        kernel.run(
            "@jn.task\ndef half(x): return x / 2\nhalves = half.map([1, 2])\ncrew = jn.execute(1)\nhalves.wait();"
        )
        cell = "%%jugtask total --ask\nwhole = sum(halves)"
        asked = kernel.run(cell, "cell").out
        assert "total would run: not timed yet" in asked
        assert "2 stored" in asked
        assert "jn.confirm('total')" in asked
        assert "· not in the store ·" in kernel.run("total").result
        early = kernel.run("whole.result()")
        assert early.error == "TaskCancelled"
        assert "re-run the cell that calls its function, and jn.confirm() where that asks" in early.message
        refused = kernel.run("jn.confirm('totl')")
        assert (refused.error, "no cell task 'totl' waits" in refused.message) == ("NoSuchTask", True)
        assert kernel.run("jn.confirm()").result == "1"
        assert kernel.run("whole.result()").result == "1.5"
        again = kernel.run(cell, "cell").out
        assert "would run" not in again  # it is stored
        assert kernel.run("jn.confirm()").error == "NoSuchTask"
        assert "--ask goes without" in kernel.run("%%jugtask x --ask --now\ny = 1").message
        kernel.run("%jug_stop --now")
    finally:
        kernel.close()
