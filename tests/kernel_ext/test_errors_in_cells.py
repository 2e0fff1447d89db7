"""What a cell shows when something is wrong in it, in a kernel for which no worker runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.kernels import PRIMES, Kernel

pytest.importorskip("ipykernel")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with tasks `flags` and `total`, which nothing runs."""
    kernel = Kernel.of_notebook(tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("settings"))
    kernel.run("%load_ext jug_notebook")
    kernel.run(PRIMES)
    kernel.run("flags = [is_prime(n) for n in range(2, 20)]\ntotal = count_primes(flags)")
    yield kernel
    kernel.close()


def test_waiting_with_no_worker_shows_the_users_line_and_says_what_to_do(kernel: Kernel) -> None:
    reply = kernel.run("total.result()")
    assert reply.error == "NoWorkers"
    assert "%jug_execute -n 4" in reply.message
    text = reply.plain_traceback
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
    text = reply.plain_traceback
    assert reply.error == error
    assert "----> 5 helper()" in text
    assert f"----> 2     return {call}" in text
    assert "jug_notebook" not in text.replace("import jug_notebook", "")
    assert "site-packages" not in text
    assert "lib/python" not in text


def test_a_list_of_tasks_taken_for_a_task_says_what_gives_its_values(kernel: Kernel) -> None:
    assert kernel.run("flags.result()").plain_traceback.splitlines()[-1] == (
        "AttributeError: 'list' object has no attribute 'result'; jn.result(…) waits for the tasks in it "
        "(import jug_notebook as jn)"
    )
    assert kernel.run("[1].result()").plain_traceback.endswith("has no attribute 'result'")
    assert kernel.run("is_prime.mpa(flags)").plain_traceback.endswith("has no attribute 'mpa'; did you mean map?")


def test_libraries_between_the_user_and_an_error_of_ours_are_not_shown(kernel: Kernel) -> None:
    reply = kernel.run("import functools\nfunctools.reduce(lambda x, y: x + y, flags)")
    assert reply.error == "TaskNotValue"
    shown = reply.plain_traceback.count("----> 2 functools.reduce(lambda x, y: x + y, flags)")
    assert shown == 2, "the call and its lambda"
    text = kernel.run("import numpy\nnumpy.atleast_1d(total)").plain_traceback
    assert "----> 2 numpy.atleast_1d(total)" in text
    assert "site-packages" not in text


def test_a_target_that_raises_shows_the_line_of_its_magic(kernel: Kernel) -> None:
    reply = kernel.run("first = 1\n%jug_log flags[99]")
    text = reply.plain_traceback
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
    text = reply.plain_traceback
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


def test_a_syntax_error_shows_as_in_any_cell(kernel: Kernel) -> None:
    reply = kernel.run("%%jugtask\ndef f(:\n    pass")
    text = reply.plain_traceback
    assert reply.error == "SyntaxError"
    assert "line 2" in text
    assert "magic" not in text


def test_an_error_in_a_definitions_cell_shows_its_line_alone(kernel: Kernel) -> None:
    reply = kernel.run("%%time\n%%jugtask\nx = 1\ny = x / 0")
    text = reply.plain_traceback
    assert reply.error == "ZeroDivisionError"
    assert "----> 4 y = x / 0" in text
    assert "run_cell_magic" not in text
