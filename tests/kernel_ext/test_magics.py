"""The magics in real kernels: one that somebody watches, one that nobody does."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels import CellOutput, Kernel

pytest.importorskip("ipykernel")

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PRIMES = """%%jugtask
def is_prime(n):
    print("testing", n)
    return n > 1 and all(n % k for k in range(2, n))

def count_primes(flags):
    return sum(flags)
"""

HELD = """%%jugtask
import os, time
def held(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def kernel(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel as a Jupyter server starts it, with its display in text; the tests below are cells of its notebook."""
    kernel = Kernel.of_notebook(folder, tmp_path_factory.mktemp("settings"))
    loaded = kernel.run("%load_ext jug_notebook")
    assert loaded.out == "jug_notebook: file store ./jugdata, 0 tasks; %jug_execute -n 4 starts workers\n"
    yield kernel
    kernel.run("%jug_stop --now")
    kernel.close()


def test_loading_twice_says_nothing_new(kernel: Kernel) -> None:
    assert "already loaded" in kernel.run("%load_ext jug_notebook").out
    assert kernel.run("import jug_notebook as jn\njn.load_ipython_extension(get_ipython())").out == ""


def test_a_cell_of_definitions_introduces_its_tasks(kernel: Kernel) -> None:
    reply = kernel.run(PRIMES, "defs")
    assert reply.out == (
        "is_prime, count_primes are tasks: call them, or is_prime.map(…), then "
        "%jug_execute -n 4; is_prime.run(n) runs here\n"
    )


def test_calls_without_a_worker_say_so_under_the_cell(kernel: Kernel) -> None:
    reply = kernel.run("flags = [is_prime(n) for n in range(2, 30)]\ntotal = count_primes(flags)", "calls")
    assert reply.out == "29 tasks queued, no workers running. Start some: %jug_execute -n 4\n"


def test_waiting_with_no_worker_shows_the_users_line_and_says_what_to_do(kernel: Kernel) -> None:
    reply = kernel.run("total.result()")
    assert reply.error == "NoWorkers"
    assert "%jug_execute -n 4" in reply.message
    text = COLOURS.sub("", reply.traceback)
    assert "----> 1 total.result()" in text
    assert "jug_notebook" not in text


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("total + 1", "TaskNotValue"),
        ("is_prime(1, 2, 3)", "TypeError"),
        ("is_prime.map([1], [2])", "TypeError"),
        ("total.head()", "AttributeError"),
        ("flags[99]", "IndexError"),
        ("total.result()", "NoWorkers"),
    ],
)
def test_an_error_shows_the_frames_of_the_user_and_none_of_ours(kernel: Kernel, call: str, error: str) -> None:
    reply = kernel.run(f"def helper():\n    return {call}\n\nprint('first')\nhelper()")
    text = COLOURS.sub("", reply.traceback)
    assert reply.error == error
    assert "----> 5 helper()" in text
    assert f"----> 2     return {call}" in text
    assert "jug_notebook" not in text.replace("import jug_notebook", "")
    assert "site-packages" not in text
    assert "lib/python" not in text


def test_a_target_that_raises_shows_the_line_of_its_magic(kernel: Kernel) -> None:
    reply = kernel.run("first = 1\n%jug_log flags[99]")
    text = COLOURS.sub("", reply.traceback)
    assert reply.error == "IndexError"
    assert "----> 2 " in text
    assert "flags[99]" in text
    assert "<target>" not in text


def test_errors_follow_xmode_and_the_debugger_opens_in_the_users_frame(kernel: Kernel) -> None:
    kernel.run("%xmode Minimal")
    minimal = kernel.run("total + 1").traceback
    kernel.run("%xmode Context")
    assert len(minimal.strip().splitlines()) == 1
    for call in ("total + 1", "is_prime(1, 2, 3)"):
        kernel.run(f"def helper():\n    mine = 41\n    return {call}\nhelper()")
        assert "41" in kernel.asked("%debug", ["p mine", "q"]).out, call


def test_the_error_of_a_magic_is_its_message_in_a_line_where_it_begins_its_cell(kernel: Kernel) -> None:
    reply = kernel.run("# waits\n%jug_wait total\n1 + 1")
    assert reply.error == "NoWorkers"
    assert len(reply.traceback.splitlines()) == 1


def test_further_down_the_error_of_a_magic_shows_its_line_and_a_slip_names_it(kernel: Kernel) -> None:
    reply = kernel.run("mine = 41\nfor _ in range(2):\n    %jug_wait total\n1 + 1")
    text = COLOURS.sub("", reply.traceback)
    assert reply.error == "NoWorkers"
    assert "----> 3 " in text
    assert "jug_notebook" not in text
    assert "IPython" not in text
    assert "41" in kernel.asked("%debug", ["p mine", "q"]).out
    for line, message in (
        ("%jug_execute --n 2", "has no option --n"),
        ("%jug_execte -n 2", "did you mean %jug_execute?"),
    ):
        slip = kernel.run(f"mine = 41\n\n{line}")
        assert re.match(r"UsageError: Cell In\[\d+\], line 3: .*" + re.escape(message), slip.out), slip.out
        assert slip.out.count("\n") == 1
        assert kernel.run("%tb").out == slip.out


def test_what_changed_after_a_first_call_names_the_line_of_that_call(kernel: Kernel) -> None:
    kernel.run("offset = 1")
    kernel.run("%%jugtask\ndef shifted(n):\n    return n + offset")
    reply = kernel.run("mine = 41\nshifted(1)\noffset = 2")
    assert re.search(r"changed after shifted was first called \(Cell In\[\d+\], line 2\), so", reply.traceback)


def test_rerunning_an_edited_cell_cancels_what_it_no_longer_makes(kernel: Kernel) -> None:
    reply = kernel.run("flags = [is_prime(n) for n in range(2, 20)]\ntotal = count_primes(flags)", "calls")
    assert "cancelled 11 pending tasks of the previous version" in reply.out


def test_workers_start_at_once_and_asking_twice_starts_none(kernel: Kernel) -> None:
    timed = "import time\nbegan = time.perf_counter()\n%jug_execute -n 2\ntook = time.perf_counter() - began"
    assert kernel.run(timed).out == "started 2 workers on file store ./jugdata\n"
    assert kernel.run("took < 0.3").result == "True"
    assert kernel.run("%jug_execute -n 2").out == "2 workers are running already; none was started\n"


def test_results_come_back(kernel: Kernel) -> None:
    assert kernel.run("%jug_wait").out == "all 19 finished\n"
    assert kernel.run("total.result()").result == "8"
    assert kernel.run("%jug_status").out.splitlines()[0].startswith("19 tasks: 19 finished")


def test_what_a_task_printed_is_in_its_log(kernel: Kernel) -> None:
    assert kernel.run("%jug_log flags[3]").out == "── is_prime(n=5) · finished\ntesting 5\n"
    assert kernel.run("%jug_tasks flags[3]").out == "is_prime(n=5)  finished  bool True\n"


def test_a_failed_task_shows_the_lines_of_its_cell(kernel: Kernel) -> None:
    kernel.run("%%jugtask\ndef divide(a, b):\n    return a / b\n")
    reply = kernel.run("bad = divide(1, 0)\nbad.result()")
    text = COLOURS.sub("", reply.traceback)
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


def test_what_a_cell_task_shows_is_shown_when_it_was_waited_for(kernel: Kernel) -> None:
    assert kernel.run(SHOWS, "chart").out == (
        "chart is a task; chart.result() waits for it, %jug_execute -n 4 starts workers\n"
    )
    reply = kernel.run("%jug_wait chart")
    assert reply.out == "── chart\nbefore\nbetween\nafter\nfinished\n"
    assert kinds(reply) == KINDS
    assert kernel.run("%jug_wait chart").out == "finished\n"


def test_a_cell_task_that_is_stored_shows_at_once_what_it_showed(kernel: Kernel) -> None:
    reply = kernel.run(SHOWS, "chart")
    assert reply.out == "chart is a task\nalready computed\nbefore\nbetween\nafter\n"
    assert kinds(reply) == KINDS


def test_a_log_has_the_displays_of_any_task(kernel: Kernel) -> None:
    assert kernel.run("%jug_log chart").out == (
        "── chart() · finished\nbefore\n<Figure size 640x480 with 1 Axes>\nbetween\n   x\n0  1\nafter\n'the last'\n"
    )
    assert kernel.run("[kind for kind, _ in chart.outputs()]").result == (
        "['stdout', 'display', 'stdout', 'display', 'stdout', 'display']"
    )


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


def test_other_magics_stack_on_it(kernel: Kernel) -> None:
    timed = kernel.run("%%time\n" + SHOWS, "chart")
    assert timed.out.startswith("chart is a task\nalready computed\nbefore\n")
    assert "Wall time" in timed.out
    kernel.run("%%capture got\n" + SHOWS, "chart")
    assert kernel.run("len(got.outputs), 'between' in got.stdout").result == "(3, True)"


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


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%jug_execute --wiat", "has no option --wiat; did you mean --wait?"),
        ("%jug_execute 4", "did you mean -n 4?"),
        ("%jug_stop now", "did you mean --now?"),
        ("%jug_execute -n 2.5", "'2.5' is not a whole number of 1 or more"),
        ("%jug_execute -n two", "'two' is not a whole number of 1 or more"),
        ("%jug_wait --timeout x", "'x' is not a number of seconds more than 0"),
        ("%jug_wait is_prine", "did you mean is_prime"),
        ("%jug_cancel", "%jug_cancel TARGET: say which tasks"),
        ("%%jugtask -o x\ndef f(): pass", "%%jugtask NAME -o"),
        ("%%jugtask\nx = 1\nprint(x)", "line 3: `print(x)` does something"),
        ("%%jugtask\ndef f():\n    !ls", "line 3: `!ls` needs IPython"),
        ("%%jugtask --now\ndef f(): pass", "%%jugtask NAME --now"),
        ("%%jugtask --bash\nls", "%%jugtask NAME --bash"),
        ("%%jugtask c --bash -o x\nls", "a script has no -o"),
        ("%%jugtask c --bash -i flogs\nls", "-i flogs: there is no 'flogs'; did you mean flags?"),
        ("%%jugtask c\ny = flogs[0]", "line 2: there is no 'flogs'; did you mean flags?"),
        ("%%jugtask 3x\ny = 1", "'3x' can't be the name of a task"),
        ("%%jugtask c\nc = 1", "sets 'c' itself"),
        ("%jug_execute --n 2", "has no option --n; did you mean -n?"),
        ("%%jugtask c\n%%time\ny = 1", "put %%time above the %%jugtask line"),
        ("%%jugtask\n%%time\ndef f(): pass", "put %%time above the %%jugtask line"),
        ("%jug_execte -n 2", "`%jug_execte` not found; did you mean %jug_execute?"),
        ("%%jugtaks\ndef f(): pass", "`%%jugtaks` not found; did you mean %%jugtask?"),
        ("%%jugtask f g\ndef f(): pass\ndef g(): pass", "a cell has one NAME, so what is 'g'?"),
        ("%%jugtask f\ndef f(): pass", "for a function as a task: %%jugtask --only f"),
        ("%jug_export", "give FILE, as in %jug_export FILE"),
        (
            "%%jugtask --limit db\ndef f(): pass",
            "limit='db': give a number of tasks at a time, as db:4, or a rate, as api:60/min",
        ),
    ],
)
def test_a_slip_is_answered_in_one_line(kernel: Kernel, cell: str, message: str) -> None:
    reply = kernel.run(cell)
    assert reply.error == "UsageError"
    assert message in reply.message
    assert reply.out == f"UsageError: {reply.message}\n"
    assert "\n" not in reply.message


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


def test_a_syntax_error_shows_as_in_any_cell(kernel: Kernel) -> None:
    reply = kernel.run("%%jugtask\ndef f(:\n    pass")
    text = COLOURS.sub("", reply.traceback)
    assert reply.error == "SyntaxError"
    assert "line 2" in text
    assert "magic" not in text


def test_an_error_in_a_definitions_cell_shows_its_line_alone(kernel: Kernel) -> None:
    reply = kernel.run("%%time\n%%jugtask\nx = 1\ny = x / 0")
    text = COLOURS.sub("", reply.traceback)
    assert reply.error == "ZeroDivisionError"
    assert "----> 4 y = x / 0" in text
    assert "run_cell_magic" not in text


def test_an_interrupt_ends_the_wait_and_not_the_tasks(kernel: Kernel, folder: Path) -> None:
    gate = folder / "gate"
    kernel.run(HELD)
    kernel.run(f"slow = held({str(gate)!r})")
    kernel.run("import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)")
    # an interrupt that finds it waiting
    reply = kernel.run("signal.setitimer(signal.ITIMER_REAL, 0.3)\n%jug_wait slow")
    assert reply.error == "WaitInterrupted"
    assert "the tasks go on" in reply.message
    assert "----> 2 " in COLOURS.sub("", reply.traceback)
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
    assert kernel.run("%jug_store jugdat").out == (
        f"made a new, empty store: {folder.resolve() / 'jugdat'}; did you mean jugdata?\n"
    )
    assert kernel.run("%jug_store jugdat").out == "file store ./jugdat, 0 tasks\n"
    kernel.run("%config JugMagics.store = 'jugdata'")
    assert kernel.run("%jug_store").out.startswith("file store ./jugdata, ")
    refused = kernel.run("%jug_store nonsense:x")
    assert refused.error == "StoreError"


def test_pictures_are_text_and_html_in_one_and_follow_the_store(kernel: Kernel, folder: Path) -> None:
    kernel.run("%config JugMagics.display = 'html'")
    gate = folder / "second gate"
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


def test_a_headless_kernel_takes_its_crew_along(folder: Path, kernel: Kernel, tmp_path: Path) -> None:
    settings = str(tmp_path)
    alone = Kernel(folder, XDG_CONFIG_HOME=settings, JUG_HEADLESS="1", JUG_STORE="alone", JUG_NOTEBOOK_DISPLAY="text")
    try:
        alone.run("%load_ext jug_notebook")
        alone.run("%jug_execute -n 1")
        alone.run("import jug_notebook as jn\nhere = jn.task(str)(5)")
        assert alone.run("here.result()").result == "'5'"
    finally:
        alone.close()
    from jug_notebook.store import open_store

    store = open_store(folder / "alone")
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
        assert "Cell In[4], line 3, in clean" in COLOURS.sub("", failed.traceback), "the same text was run here"
    finally:
        kernel.close()
