"""The magics in a real kernel, with two workers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels import HELD, PRIMES, CellOutput, Kernel

pytest.importorskip("ipykernel")

CALLS = "flags = [is_prime(n) for n in range(2, {})]\ntotal = count_primes(flags)"
#: the first cells of the notebook: what each is there for, its code and its id
FIRST_CELLS = [
    ("load", "%load_ext jug_notebook", ""),
    ("define", PRIMES, "defs"),
    ("call", CALLS.format(30), "calls"),
    ("edit", CALLS.format(20), "calls"),
    ("start", "import time\nbegan = time.perf_counter()\n%jug_execute -n 2\ntook = time.perf_counter() - began", ""),
    ("wait", "%jug_wait", ""),
    ("status", "%jug_status", ""),
    ("import", "import jug_notebook as jn", ""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def started(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kernel, dict[str, CellOutput]]]:
    """A kernel as a Jupyter server starts it, with its display in text, and what `FIRST_CELLS` printed in it."""
    kernel = Kernel.of_notebook(folder, tmp_path_factory.mktemp("settings"))
    yield kernel, {name: kernel.run(code, cell) for name, code, cell in FIRST_CELLS}
    kernel.run("%jug_stop --now")
    kernel.close()


@pytest.fixture(scope="module")
def kernel(started: tuple[Kernel, dict[str, CellOutput]]) -> Kernel:
    return started[0]


@pytest.fixture(scope="module")
def printed(started: tuple[Kernel, dict[str, CellOutput]]) -> dict[str, str]:
    """What each of the first cells printed."""
    return {name: reply.out for name, reply in started[1].items()}


def test_loading_names_the_store_and_twice_says_nothing_new(kernel: Kernel, printed: dict[str, str]) -> None:
    assert printed["load"] == "jug_notebook: file store ./jugdata, 0 tasks; %jug_execute -n 4 starts workers\n"
    assert "already loaded" in kernel.run("%load_ext jug_notebook").out
    assert kernel.run("jn.load_ipython_extension(get_ipython())").out == ""


def test_a_cell_of_definitions_introduces_its_tasks(printed: dict[str, str]) -> None:
    assert printed["define"] == (
        "is_prime, count_primes are tasks: call them, or is_prime.map(…), then "
        "%jug_execute -n 4; is_prime.run(n) runs here\n"
    )


def test_calls_without_a_worker_say_so_under_the_cell(printed: dict[str, str]) -> None:
    assert printed["call"] == "29 tasks queued, no workers running. Start some: %jug_execute -n 4\n"


def test_rerunning_an_edited_cell_cancels_what_it_no_longer_makes(printed: dict[str, str]) -> None:
    assert "cancelled 11 pending tasks of the previous version" in printed["edit"]


def test_workers_start_at_once_and_asking_twice_starts_none(kernel: Kernel, printed: dict[str, str]) -> None:
    assert printed["start"] == "started 2 workers on file store ./jugdata\n"
    assert kernel.run("took < 0.3").result == "True"
    assert kernel.run("%jug_execute -n 2").out == "2 workers are running already; none was started\n"


def test_results_come_back(kernel: Kernel, printed: dict[str, str]) -> None:
    assert printed["wait"] == "all 19 finished\n"
    assert kernel.run("total.result()").result == "8"
    assert printed["status"].splitlines()[0].startswith("19 tasks: 19 finished")


def test_what_a_task_printed_is_in_its_log(kernel: Kernel) -> None:
    assert kernel.run("%jug_log flags[3]").out == "── is_prime(n=5) · finished\ntesting 5\n"
    assert kernel.run("%jug_tasks flags[3]").out == "is_prime(n=5)  finished  bool True\n"


def test_a_failed_task_shows_the_lines_of_its_cell(kernel: Kernel) -> None:
    kernel.run("%%jugtask\ndef divide(a, b):\n    return a / b\n")
    reply = kernel.run("bad = divide(1, 0)\nbad.result()")
    text = reply.plain_traceback
    assert reply.error == "TaskFailed"
    assert "return a / b" in text
    assert "line 3" in text
    assert "ZeroDivisionError: division by zero" in text
    assert kernel.run("%jug_wait bad").out == "1 failed; %jug_status shows why\n"
    assert kernel.run("%jug_retry bad").out == "1 task will be tried again\n"
    kernel.run("%jug_wait bad")
    assert kernel.run("%jug_cancel flags").out.startswith("nothing was cancelled: none of these is pending, ")


def test_dropping_a_value_computes_it_again(kernel: Kernel) -> None:
    assert kernel.run("%jug_invalidate flags[3] --dry-run").out.startswith("would invalidate 1 result")
    assert kernel.run("%jug_invalidate flags[3]").out.startswith(
        "invalidated 1 result; it and what depends on it will be recomputed"
    )
    assert kernel.run("%jug_wait total").out == "finished\n"
    assert kernel.run("total.result()").result == "8"


def test_why_says_what_changed(kernel: Kernel) -> None:
    assert kernel.run("%jug_why flags[3]").out == "is_prime(n=5) is stored\n"
    kernel.run("%config JugMagics.display = 'html'")
    [display] = kernel.run("%jug_why flags").displays
    assert display["data"]["text/plain"] == "18 tasks of is_prime: all stored"
    assert "<b>18 tasks of is_prime: all stored</b>" in display["data"]["text/html"]
    kernel.run("%config JugMagics.display = 'text'")
    assert "did you mean" in kernel.run("%jug_why flagz").message


def test_a_cell_with_a_name_is_one_task_with_its_outputs(kernel: Kernel) -> None:
    reply = kernel.run("%%jugtask spread\nimport math\nroot = math.sqrt(total)\nhalf = total / 2\n_scratch = 1")
    # how it is to be waited for, or where its value is from: two workers are running, and may be faster than the line
    assert reply.out.startswith("spread is a task of total with outputs root, half")
    assert kernel.run("root.result() ** 2, half.result(), math.pi > 3").result == "(8.000000000000002, 4.0, True)"
    assert kernel.run("sorted(spread.result())").result == "['half', 'root']"


SHOWS = """%%jugtask chart
import pandas, warnings
import matplotlib.pyplot as plt
print("before")
plt.plot([1, 2])
plt.show()
print("between")
display(pandas.DataFrame({"x": [1]}))
print("after")
"the last"
"""
KINDS = ["image/png", "text/html", "text/plain"]


def kinds(reply: CellOutput) -> list[str]:
    """What each display is, at its best."""
    return [min(set(display["data"]) & set(KINDS)) for display in reply.displays]


@pytest.fixture(scope="module")
def chart(kernel: Kernel) -> tuple[CellOutput, CellOutput]:
    """What the cell `chart` showed, and waiting for it."""
    return kernel.run(SHOWS, "chart"), kernel.run("%jug_wait chart")


def test_what_a_cell_task_shows_is_shown_when_it_was_waited_for(
    kernel: Kernel, chart: tuple[CellOutput, CellOutput]
) -> None:
    cell, waited = chart
    assert cell.out == "chart is a task; chart.result() waits for it, %jug_execute -n 4 starts workers\n"
    assert waited.out == "── chart\nbefore\nbetween\nafter\nfinished\n"
    assert kinds(waited) == KINDS
    assert kernel.run("%jug_wait chart").out == "finished\n"


@pytest.mark.usefixtures("chart")
def test_a_cell_task_that_is_stored_shows_at_once_what_it_showed(kernel: Kernel) -> None:
    reply = kernel.run(SHOWS, "chart")
    assert reply.out == "chart is a task\nalready computed\nbefore\nbetween\nafter\n"
    assert kinds(reply) == KINDS


@pytest.mark.usefixtures("chart")
def test_a_log_has_the_displays_of_any_task(kernel: Kernel) -> None:
    assert kernel.run("%jug_log chart").out == (
        "── chart() · finished\nbefore\n<Figure size 640x480 with 1 Axes>\nbetween\n   x\n0  1\nafter\n'the last'\n"
    )
    assert kernel.run("[kind for kind, _ in chart.outputs()]").result == (
        "['stdout', 'display', 'stdout', 'display', 'stdout', 'display']"
    )


@pytest.mark.usefixtures("chart")
def test_other_magics_stack_on_it(kernel: Kernel) -> None:
    timed = kernel.run("%%time\n" + SHOWS, "chart")
    assert timed.out.startswith("chart is a task\nalready computed\nbefore\n")
    assert "Wall time" in timed.out
    kernel.run("%%capture got\n" + SHOWS, "chart")
    assert kernel.run("len(got.outputs), 'between' in got.stdout").result == "(3, True)"


def test_commands_magics_and_await_work_in_a_cell_task(kernel: Kernel) -> None:
    cell = """%%jugtask mixed
import asyncio
n = 6
said = !echo {n} times
!echo seen
%time doubled = 2 * n
await asyncio.sleep(0)
async def _seven(): return 7
found = await _seven()
"""
    assert kernel.run(cell).error == ""
    assert kernel.run("said.result(), found.result()").result == "(['6 times'], 7)"
    assert "seen\n" in kernel.run("%jug_log mixed").out


def test_a_script_is_a_task_whose_value_is_its_output(kernel: Kernel) -> None:
    kernel.run("word = 'hi'")
    assert kernel.run('%%jugtask greet --bash -i word\necho "$word" there').out.startswith("greet is a task of word;")
    assert kernel.run("greet.result()").result == r"'hi there\n'"
    kernel.run("%%jugtask broken --bash\necho no >&2\nfalse\necho unseen")
    reply = kernel.run("broken.result()")
    assert "CommandFailed: exit status 1: no" in reply.message
    assert "unseen" not in reply.message


def test_a_cell_task_can_run_here_and_is_stored_all_the_same(kernel: Kernel, folder: Path) -> None:
    kernel.run("%jug_store aside")  # no worker is there
    cell = "%%jugtask quick --now\nimport os, asyncio\nprint('here')\ndisplay(1)\nme = os.getpid()\n" + (
        "await asyncio.sleep(0, 'slept')"
    )
    reply = kernel.run(cell, "quick")
    assert reply.out == "quick is a task with output me; it runs here\nhere\n"
    assert [display["data"]["text/plain"] for display in reply.displays] == ["1", "'slept'"]
    assert kernel.run("me.result() == __import__('os').getpid()").result == "True"
    again = kernel.run(cell, "quick")
    assert again.out == "quick is a task with output me\nalready computed\nhere\n"
    assert len(again.displays) == 2
    failed = kernel.run("%%jugtask wrong --now\nx = 1 / 0")
    assert failed.error == "TaskFailed"
    assert kernel.run("%jug_store jugdata").out.startswith("file store ./jugdata")


def test_a_running_task_shows_its_tail_in_the_log(kernel: Kernel, folder: Path) -> None:
    gate = folder / "tail gate"
    kernel.run(
        "%%jugtask\nimport os, time\nimport jug_notebook\ndef slow(path):\n    print('on my way')\n"
        "    for i in jug_notebook.track(range(3)):\n"
        "        while i == 2 and not os.path.exists(path):\n            time.sleep(0.01)\n"
    )
    kernel.run(f"way = slow({str(gate)!r})")
    until = "while 'on my way' not in way.log(): jn.current().queries.watch(-1, 0.1)"
    assert kernel.run(until).error == ""
    assert "· running\n2 of 3 done\non my way\n" in kernel.run("%jug_log way").out
    gate.touch()
    assert kernel.run("%jug_wait way").out == "finished\n"


def test_an_input_that_is_the_cells_own_output_means_its_value_before(kernel: Kernel) -> None:
    kernel.run("level = 5")
    kernel.run("%%jugtask rise\nlevel = level + 1", "rise")
    assert kernel.run("level.result()").result == "6"
    kernel.run("%%jugtask rise\nlevel = level + 10", "rise")
    assert kernel.run("level.result()").result == "15"


def test_an_input_changed_in_place_fails_by_name(kernel: Kernel) -> None:
    kernel.run("numbers = [3, 1, 2]")
    kernel.run("%%jugtask tidy\nnumbers.sort()\nleast = numbers[0]")
    reply = kernel.run("least.result()")
    assert "changed its input 'numbers' in place" in reply.message
    kernel.run("%%jugtask tidy -o numbers\nnumbers.sort()\nleast = numbers[0]")
    assert kernel.run("numbers.result(), least.result()").result == "([1, 2, 3], 1)"


def test_an_output_that_is_not_there_fails_only_when_used(kernel: Kernel) -> None:
    kernel.run("%%jugtask odd\nsquares = (n * n for n in range(3))\nsize = 3\nif size > 5:\n    never = 1")
    assert kernel.run("size.result()").result == "3"
    assert "'squares' of cell 'odd' can't be stored" in kernel.run("squares.result()").message
    assert "ended without setting 'never'" in kernel.run("never.result()").message


def test_async_functions_and_generators_of_a_cell_are_tasks(kernel: Kernel) -> None:
    cell = "%%jugtask\nimport asyncio\nasync def later(n):\n    await asyncio.sleep(0)\n    return 2 * n\n"
    cell += "def upto(n):\n    yield n"
    assert kernel.run(cell).out.startswith("later, upto are tasks")
    kernel.run("pair = later(4), upto(5)\n%jug_execute --here --target pair")
    assert kernel.run("[one.result() for one in pair]").result == "[8, [5]]"


def test_a_magic_line_is_read_as_it_is_typed(kernel: Kernel) -> None:
    kernel.run("blank = {'a b': flags[0], 'a  b': flags[1]}")
    assert kernel.run("%jug_tasks blank['a  b']  # two blanks, and don't mind").out.startswith("is_prime(n=3)")
    kernel.run('%%jugtask tagged --version "1" -i flags -i total  # a comment\ntag = 1')
    assert kernel.run("tagged").result.startswith("<Task tagged(")
    assert kernel.run("%%jugtask pair -i flags -i total\ntwo = 2").out.startswith("pair is a task of flags, total ")
    kernel.run("%jug_cancel pair\n%jug_cancel tagged")


def test_a_store_with_a_blank_in_its_name_is_connected(kernel: Kernel, folder: Path) -> None:
    assert "my store" in kernel.run("%jug_store 'my store'").out
    assert (folder / "my store").is_dir()
    kernel.run("%jug_store jugdata")


def test_an_interrupt_ends_the_wait_and_not_the_tasks(kernel: Kernel, folder: Path) -> None:
    gate = folder / "gate"
    kernel.run(HELD)
    kernel.run(f"slow = held({str(gate)!r})")
    kernel.run("import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)")
    # an interrupt that finds it waiting
    reply = kernel.run("signal.setitimer(signal.ITIMER_REAL, 0.3)\n%jug_wait slow")
    assert reply.error == "WaitInterrupted"
    assert "the tasks go on" in reply.message
    assert "----> 2 " in reply.plain_traceback
    gate.touch()
    assert kernel.run("slow.result()").result == "1"


def test_options_and_functions_complete(kernel: Kernel) -> None:
    assert kernel.complete("%jug_execute --id") == ["--idle-timeout"]
    assert kernel.complete("%jug_wait fla") == ["flags"]


def test_the_help_of_a_magic_has_examples(kernel: Kernel) -> None:
    reply = kernel.run("print(get_ipython().magics_manager.magics['line']['jug_execute'].__doc__)")
    assert "%jug_execute -n 2 --target is_prime" in reply.out
    assert "--idle-timeout" in reply.out


def test_another_store_is_a_magic_or_a_trait_away_and_a_new_one_says_so(kernel: Kernel, folder: Path) -> None:
    assert kernel.run("%jug_store").out.startswith("file store ./jugdata, ")
    assert kernel.run("%jug_store jugdat").out == "made a new, empty store: ./jugdat; did you mean jugdata?\n"
    assert kernel.run("%jug_store jugdat").out == "file store ./jugdat, 0 tasks\n"
    assert kernel.run("from jug_notebook import connect\n%config JugMagics.store = 'jugdata'").out == ""
    new = kernel.run("connect('jugdta').close()").out
    assert new == "made a new, empty store: ./jugdta; did you mean jugdata?\n"
    assert kernel.run(f"%config JugMagics.store = '{folder}-else'").out == f"made a new, empty store: {folder}-else\n"
    kernel.run("%config JugMagics.store = 'jugdata'")
    assert kernel.run("%jug_store").out.startswith("file store ./jugdata, ")
    refused = kernel.run("%jug_store nonsense:x")
    assert refused.error == "StoreError"


def test_pictures_are_text_and_html_in_one_and_follow_the_store(kernel: Kernel, folder: Path) -> None:
    kernel.run("%config JugMagics.display = 'html'")
    gate = folder / "second gate"
    kernel.run(HELD)
    kernel.run(f"later = held({str(gate)!r})")
    [display] = kernel.run("%jug_status").displays
    assert {"text/plain", "text/html"} <= set(display["data"])
    gate.touch()
    update = kernel.update()
    print(display["data"]["text/plain"], update["data"]["text/plain"])
    while any(f"{state} 1" in update["data"]["text/plain"] for state in ("ready", "running")):
        update = kernel.update()
    assert update["transient"]["display_id"] == display["transient"]["display_id"]
    kernel.run("%config JugMagics.display = 'text'")


def test_what_a_cell_task_shows_comes_under_its_cell_when_it_has_finished(kernel: Kernel, folder: Path) -> None:
    kernel.run("%config JugMagics.display = 'html'")
    gate = folder / "third gate"
    kernel.run(f"gate = {str(gate)!r}")
    cell = "%%jugtask late\nimport os, time\nwhile not os.path.exists(gate):\n    time.sleep(0.01)\nprint('<b>')\n7"
    [display] = kernel.run(cell).displays
    assert "its output will appear here" in display["data"]["text/plain"]
    gate.touch()
    update = kernel.update()
    while update["transient"]["display_id"] != display["transient"]["display_id"]:
        update = kernel.update()
    assert re.fullmatch(r"computed on \S+ in .*s\n<b>\n7", update["data"]["text/plain"])
    assert "&lt;b&gt;" in update["data"]["text/html"]
    again = kernel.run(cell)
    assert re.search(r"already computed: on \S+, (just now|\d+ s ago), in .*s\n<b>\n", again.out)
    kernel.run("%config JugMagics.display = 'text'")


def test_reloading_doubles_nothing_and_unloading_leaves_only_workers(kernel: Kernel) -> None:
    kernel.run("%reload_ext jug_notebook")
    assert kernel.run("again = is_prime(101)").out == ""
    assert kernel.run("import threading\n[t.name for t in threading.enumerate() if 'jug' in t.name]").result == (
        "['jug-session']"
    )
    kernel.run("%unload_ext jug_notebook")
    assert kernel.run("[t.name for t in threading.enumerate() if 'jug' in t.name]").result == "[]"
    assert kernel.run("%jug_status").error == "UsageError"
    kernel.run("%load_ext jug_notebook")
    kernel.run("%config JugMagics.display = 'text'")
    assert "running already" in kernel.run("%jug_execute -n 2").out
