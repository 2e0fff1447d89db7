"""Cells in a shell of this process: what they may hold, what they become, and how a cell task runs."""

from __future__ import annotations

import pickle
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import jug_notebook as jn
from jug_notebook import render
from jug_notebook.model import FunctionView, Snapshot, State
from jug_notebook.store import keyring
from jug_notebook.worker.cell_runner import ChangedInPlace, NoSuchOutput, Outputs, fingerprint, run
from kernel_ext import load_ipython_extension, unload_ipython_extension
from kernel_ext.frontend import cell_name, headless, notebook_path
from kernel_ext.live import Drawing, Live


class Notebook:
    """A shell with the extension, and what its last cell printed."""

    def __init__(self, shell: Any, printed: Callable[[], str]) -> None:
        self.shell = shell
        self._printed = printed

    @property
    def names(self) -> dict[str, Any]:
        space: dict[str, Any] = self.shell.user_ns
        return space

    def run(self, code: str, cell: str = "") -> str:
        """Run a cell; answer what it printed. Raises what it raised."""
        self._printed()
        result = self.shell.run_cell(code, store_history=True, cell_id=cell or None)
        printed = self._printed()
        result.raise_error()
        return printed


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Notebook]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUG_STORE", f"memory:{tmp_path.name}")
    monkeypatch.setenv("JUG_NOTEBOOK_DISPLAY", "text")
    main = sys.modules["__main__"]
    config = Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}})
    shell = InteractiveShell(config=config)
    load_ipython_extension(shell)
    yield Notebook(shell, lambda: "".join(capsys.readouterr()))
    jn.stop(now=True)
    unload_ipython_extension(shell)
    shell.restore_sys_module_state()
    sys.modules["__main__"] = main


def test_only_the_functions_that_are_named_become_tasks(notebook: Notebook) -> None:
    printed = notebook.run(
        "%%jugtask --only fit\ndef season(t):\n    return t % 4\ndef _norm(t):\n    return t\n"
        "def steps():\n    yield 1\ndef fit(t):\n    return season(_norm(t))"
    )
    assert printed == (
        "fit is a task: call it, or fit.map(…), then "
        "%jug_execute -n 4; fit.run(t) runs here; season, _norm, steps stay plain\n"
    )
    assert notebook.names["season"](7) == 3
    assert isinstance(notebook.names["fit"](7), jn.Task)
    for line, message in (
        ("--only fti", "--only fti: the cell defines fit"),
        ("whole --only fit", "--only chooses among the functions of a cell, so it goes without NAME"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            notebook.shell.run_cell_magic("jugtask", line, "def fit(t):\n    return t")


# -- names that are easily lost ----------------------------------------------------------------------------------------


def test_what_is_timed_in_a_cell_task_is_set_in_it(notebook: Notebook) -> None:
    notebook.run("x = 1")
    notebook.run("%%jugtask timing\n%time x = 5\nif x:\n    %time y = x + 1\n    %time x == 5\nz = x, y")
    jn.execute(wait=True, target="timing")
    assert notebook.names["z"].result() == (5, 6)


@pytest.mark.parametrize(
    "line", ["exec('x = 5')", "globals()['x'] = 5", "%run setting.py", "%prun x = 5", "y = %time x = 5"]
)
def test_what_may_set_names_unseen_is_refused_in_a_cell_task(notebook: Notebook, line: str) -> None:
    notebook.run("x = 1")
    with pytest.raises(UsageError, match="may set names without showing which"):
        notebook.run(f"%%jugtask hidden\n{line}\ny = x")


@pytest.mark.parametrize("body", ["x = x", "for x in []: pass\n    y = x", "global x\n    x = 6", "y = x; x = 7"])
def test_a_class_that_would_read_another_name_than_the_cells_is_refused(notebook: Notebook, body: str) -> None:
    notebook.run("x = 1")
    with pytest.raises(UsageError, match="line 3: class A and the cell both set 'x'"):
        notebook.run(f"%%jugtask confused\nx = 5\nclass A:\n    {body}\nz = A")
    notebook.run("%%jugtask clear\nclass A:\n    len = len\n    def list(self) -> list: return []\nz = A.len('ab')")
    jn.execute(wait=True, target="clear")
    assert notebook.names["z"].result() == 2


# -- cells of definitions ----------------------------------------------------------------------------------------------


def test_private_and_decorated_functions_stay_what_they_are(notebook: Notebook) -> None:
    notebook.run("import jug_notebook as jn")
    output = notebook.run(
        '''%%jugtask --retries 2 --limit db:2 --limit api:60/min
"""What this cell is about."""
import math
SCALE: float = 2.0
class Point:
    pass
def _helper(x):
    return SCALE * x
def double(x):
    return _helper(x)
@jn.task(retries=7)
def told(x):
    return x
'''
    )
    assert (
        output == "double, told are tasks: call them, or double.map(…), then "
        "%jug_execute -n 4; double.run(x) runs here; _helper stays plain\n"
    )
    names = notebook.names
    assert names["double"].retries == 2
    assert names["told"].retries == 7
    assert list(map(str, names["double"].limit)) == ["api:60/min", "db:2"]
    assert names["_helper"](3) == 6.0
    assert names["double"].run(3) == 6.0
    assert not isinstance(names["Point"], jn.TaskFunction)


def test_what_follows_a_definition_in_its_cell_finds_a_task_function(notebook: Notebook) -> None:
    notebook.run("%%jugtask\ndef f(x):\n    return x\nmade = [f(n) for n in range(3)]")
    assert all(isinstance(task, jn.Task) for task in notebook.names["made"])


def test_a_cell_without_public_functions_says_that_it_makes_no_task(notebook: Notebook) -> None:
    assert "no public function" in notebook.run("%%jugtask\ndef _f(x):\n    return x")


def test_braces_and_dollars_in_a_cell_are_left_alone(notebook: Notebook) -> None:
    notebook.run("x = 1")
    notebook.run("%%jugtask\ndef f():\n    return '{x} $x'")
    assert notebook.names["f"].run() == "{x} $x"


def test_an_error_leaves_the_cells_line_in_the_traceback(notebook: Notebook) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        notebook.run("%%jugtask\nx = 0\ny = 1 / x")
    reply = "\n".join(caught.value._render_traceback_())  # type: ignore[attr-defined]
    assert "----> 3 y = 1 / x" in reply
    assert "kernel_ext" not in reply


def test_a_magic_in_a_function_is_refused_and_in_a_string_is_not(notebook: Notebook) -> None:
    with pytest.raises(Exception, match=r"line 3: `!ls` needs IPython"):
        notebook.run("%%jugtask\ndef f():\n    !ls")
    notebook.run("%%jugtask\ndef f():\n    return '''\n%matplotlib\n'''")
    assert notebook.names["f"].run() == "\n%matplotlib\n"


# -- cells that are one task -------------------------------------------------------------------------------------------


def test_inputs_are_the_data_that_a_cell_reads(notebook: Notebook) -> None:
    notebook.run("import math\ndef half(x):\n    return x / 2\nlimit = 8\nspare = 1")
    output = notebook.run("%%jugtask c\nroot = math.sqrt(half(limit))\n[n for n in range(3)]")
    assert output.startswith("c is a task of limit with output root;")
    notebook.run("%jug_execute -n 1")
    assert notebook.names["root"].result() == 2.0
    assert notebook.names["c"].result() == {"root": 2.0}


def test_the_same_cell_and_inputs_are_the_same_task(notebook: Notebook) -> None:
    notebook.run("limit = 8")
    notebook.run("%%jugtask c\ny = limit + 1")
    before = notebook.names["c"].key
    notebook.run("%%jugtask c\n# the same, told otherwise\ny = (limit + 1)")
    assert notebook.names["c"].key == before
    notebook.run("limit = 9")
    notebook.run("%%jugtask c\ny = limit + 1")
    assert notebook.names["c"].key != before


def test_a_declared_input_is_one_although_no_line_reads_it(notebook: Notebook) -> None:
    notebook.run("limit = 8")
    with pytest.warns(UserWarning, match="eval"):
        assert "c is a task of limit" in notebook.run("%%jugtask c -i limit\ny = eval('limit') + 1")
    with pytest.raises(Exception, match=r"-i limti: there is no 'limti'; did you mean limit\?"):
        notebook.run("%%jugtask c -i limti\ny = 1")


def test_what_a_cell_imports_is_there_for_later_cells_and_no_output(notebook: Notebook) -> None:
    notebook.run("%%jugtask c\nimport json as j\nfrom math import tau\ny = j.dumps(1)")
    assert notebook.names["j"].dumps(2) == "2"
    assert notebook.names["tau"] > 6
    assert isinstance(notebook.names["y"], jn.Tasklet)


def test_a_name_that_the_cell_may_set_first_is_no_input(notebook: Notebook) -> None:
    loop = "%%jugtask c\nfor n in range(4):\n    s = n if n == 0 else s + n"
    notebook.run(loop)
    key = notebook.names["c"].key
    notebook.run(loop)
    assert notebook.names["c"].key == key


def test_reading_an_own_output_that_was_nothing_before_is_refused(notebook: Notebook) -> None:
    notebook.run("%%jugtask c\ndata = [1]")
    with pytest.raises(Exception, match="the cell reads 'data', which is its own output"):
        notebook.run("%%jugtask c\ndata = data + [2]")
    notebook.run("data = [5]")
    notebook.run("%%jugtask c\ndata = data + [2]")
    notebook.run("%jug_execute -n 1")
    assert notebook.names["data"].result() == [5, 2]


def test_what_was_before_is_remembered_when_the_extension_is_loaded_again(notebook: Notebook) -> None:
    notebook.run("data = [5]")
    notebook.run("%%jugtask c\ndata = data + [2]")
    key = notebook.names["c"].key
    unload_ipython_extension(notebook.shell)
    load_ipython_extension(notebook.shell)
    notebook.run("%%jugtask c\ndata = data + [2]")
    assert notebook.names["c"].key == key


def test_a_star_import_is_refused_in_a_cell_task(notebook: Notebook) -> None:
    with pytest.raises(UsageError, match="Name what you need"):
        notebook.run("%%jugtask c\nfrom math import *\ny = pi")


def test_cell_tasks_and_functions_take_each_others_values(notebook: Notebook) -> None:
    notebook.run("%%jugtask\ndef add(a, b):\n    return a + b")
    notebook.run("%%jugtask first\nx = 1\ny = 2")
    notebook.run("total = add(x, y)")
    notebook.run("%%jugtask last\nz = total * 10 + x")
    notebook.run("%jug_execute -n 1")
    assert notebook.names["z"].result() == 31


def test_display_in_a_cell_task_is_printed(notebook: Notebook) -> None:
    notebook.run("%%jugtask c\nx = [1]\ndisplay(x)\nprint('end')")
    notebook.run("%jug_execute -n 1")
    notebook.run("%jug_wait c")
    assert notebook.run("%jug_log c") == "── c() · finished\n[1]\nend\n"


def test_what_changes_after_a_call_in_its_cell_is_told_under_the_cell(notebook: Notebook) -> None:
    notebook.run("%%jugtask\nSCALE = 1\ndef f(x):\n    return SCALE * x")
    output = notebook.run("SCALE = 2\na = f(1)\nSCALE = 3")
    assert "ChangedInCell" in output
    assert "SCALE" in output
    assert "Traceback" not in output


def test_workers_start_by_themselves_where_that_is_configured(notebook: Notebook) -> None:
    notebook.run("%config JugMagics.autostart = 1")
    notebook.run("%%jugtask\ndef f(x):\n    return x + 1")
    assert notebook.run("a = f(1)") == "1 task queued; started 1 worker\n"
    assert notebook.names["a"].result() == 2


def test_a_store_can_be_chosen_in_the_configuration(notebook: Notebook, tmp_path: Path) -> None:
    unload_ipython_extension(notebook.shell)
    notebook.shell.config.JugMagics.store = "chosen"
    load_ipython_extension(notebook.shell)
    assert notebook.run("%jug_store") == "file store ./chosen, 0 tasks\n"
    assert (tmp_path / "chosen" / "store.json").exists()


def test_a_store_that_cannot_be_used_is_told_in_a_line_and_another_may_be_given(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unload_ipython_extension(notebook.shell)
    (tmp_path / "plain").write_text("no store")
    monkeypatch.setenv("JUG_STORE", "plain")
    notebook.run("1")
    output = notebook.run("import kernel_ext\nkernel_ext.load_ipython_extension(get_ipython())")
    assert output.count("\n") == 1
    assert "%jug_store URL" in output
    with pytest.raises(jn.StoreError):
        notebook.run("%%jugtask\ndef f(): pass")
    assert notebook.run("%jug_store memory:").startswith("memory store, 0 tasks")
    assert "is a task" in notebook.run("%%jugtask\ndef f(): pass")


def test_a_store_that_was_removed_is_made_anew_by_jug_store(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run("%jug_store jugdata")
    notebook.run("%%jugtask\ndef f(x):\n    return x")
    notebook.run("before = f(1)")
    shutil.rmtree(tmp_path / "jugdata")
    text = notebook.run("lost = f(2)")
    assert text.startswith("jug_notebook: ")
    assert text.endswith("%jug_store file:" + str(tmp_path / "jugdata") + "\n")
    assert text.count("\n") == 1
    with pytest.raises(jn.StoreGone):
        notebook.run("%jug_store")
    text = notebook.run("%jug_store jugdata")
    assert text.startswith("made a new, empty store: ")
    assert "which is gone; this is a new one" in text
    notebook.run("again = f(1)")
    assert notebook.run("%jug_store") == "file store ./jugdata, 1 task\n"


def test_a_store_whose_key_is_not_known_shows_its_status_unverified_and_nothing_else(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook.run("%jug_store jugdata")
    notebook.run("%%jugtask\ndef f(x):\n    return x")
    notebook.run("f(1)")
    unload_ipython_extension(notebook.shell)
    monkeypatch.setattr(keyring, "_here", {})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    load_ipython_extension(notebook.shell)
    assert notebook.run("%jug_status --short").endswith(" · unverified\n")
    assert notebook.run("%jug_status") == (
        "unverified: the store's key is not known here\n1 task: 1 ready\n  f  1 ready\n"
    )
    for line in ("%jug_store", "%jug_invalidate f", "%jug_execute -n 1"):
        with pytest.raises(jn.StoreError, match="copy the file of that name"):
            notebook.run(line)
    notebook.run("%jug_store memory:")


def test_another_store_than_before_is_refused_by_jug_store_until_it_is_accepted(
    notebook: Notebook, tmp_path: Path
) -> None:
    for name in ("study", "other", "third"):
        notebook.run(f"%jug_store {name}")
    shutil.rmtree(tmp_path / "study")
    shutil.move(tmp_path / "other", tmp_path / "study")
    with pytest.raises(jn.StoreError, match="held another store before"):
        notebook.run("%jug_store study")
    assert notebook.run("%jug_store") == "file store ./third, 0 tasks\n"
    assert notebook.run("%jug_store study --accept-new-store") == "file store ./study, 0 tasks\n"


def test_the_magics_are_there_after_a_reload_even_if_the_store_was_removed(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run("%jug_store jugdata")
    notebook.run("%%jugtask\ndef f(x):\n    return x")
    notebook.run("before = f(1)")
    shutil.rmtree(tmp_path / "jugdata")
    unload_ipython_extension(notebook.shell)
    load_ipython_extension(notebook.shell)
    notebook.run("1")
    assert notebook.run("%jug_store") == "file store ./jugdata, 0 tasks\n"
    assert "is a task" in notebook.run("%%jugtask\ndef f(x): return x")


def test_a_task_of_a_former_version_of_the_cell_is_taken_back(notebook: Notebook) -> None:
    notebook.run("%%jugtask c\ny = 1", "one")
    former = notebook.names["c"]
    notebook.run("%%jugtask c\ny = 2", "one")
    assert former.state is jn.State.CANCELLED


# -- in the worker -----------------------------------------------------------------------------------------------------


def cell(body: Callable[..., dict[str, Any]], outputs: tuple[str, ...], declared: tuple[str, ...] = ()) -> Any:
    body.jug_cell = (outputs, declared)  # type: ignore[attr-defined]
    return body


def test_a_cell_that_changes_nothing_in_place_gives_its_outputs() -> None:
    assert run(cell(lambda xs: {"n": len(xs)}, ("n",)), (), {"xs": [1, 2]}) == {"n": 2}


def test_an_undeclared_change_of_an_input_is_told_by_name() -> None:
    with pytest.raises(ChangedInPlace, match="'xs' in place"):
        run(cell(lambda xs: xs.append(1) or {"n": 1}, ("n",)), (), {"xs": []})


def test_an_input_that_is_an_output_may_be_changed() -> None:
    def body(xs: list[int]) -> dict[str, Any]:
        xs.append(1)
        return {"xs": xs}

    assert run(cell(body, ("xs",), ("xs",)), (), {"xs": [0]}) == {"xs": [0, 1]}


def test_a_declared_output_must_be_there() -> None:
    with pytest.raises(NoSuchOutput, match="without setting 'n'"):
        run(cell(lambda: {"m": 1}, ("n",), ("n",)), (), {})


def test_absent_outputs_travel_and_fail_when_used() -> None:
    outputs = pickle.loads(pickle.dumps(run(cell(lambda: {"a": 1, "m": sys}, ("a", "b", "m")), (), {})))
    assert isinstance(outputs, Outputs)
    assert outputs["a"] == 1
    with pytest.raises(NoSuchOutput, match="without setting 'b'"):
        outputs["b"]
    with pytest.raises(NoSuchOutput, match="module sys"):
        outputs["m"]


@pytest.mark.parametrize("value", [[1, [2]], {"a": {1, 2}}, bytearray(b"x"), {1: [None, 2.5]}])
def test_a_fingerprint_stays_until_the_value_changes(value: Any) -> None:
    before = fingerprint(value)
    assert fingerprint(value) == before
    {list: lambda: value[1].append(0), dict: value.clear if isinstance(value, dict) else None}.get(
        type(value), lambda: value.append(1)
    )()
    assert fingerprint(value) != before


def test_a_fingerprint_sees_into_arrays() -> None:
    np = pytest.importorskip("numpy")
    array = np.zeros(10_000)
    before = fingerprint({"a": array})
    array[7] = 1
    assert fingerprint({"a": array}) != before


def test_a_fingerprint_of_what_cannot_be_pickled_is_unknown() -> None:
    assert fingerprint(n for n in range(3)) is None


# -- who is looking ----------------------------------------------------------------------------------------------------


class _Shell:
    def __init__(self, kernel: object = None, allow_stdin: bool | None = None, **names: str) -> None:
        self.kernel = kernel
        self.user_ns = names
        self._content = {} if allow_stdin is None else {"allow_stdin": allow_stdin}

    def get_parent(self) -> dict[str, object]:
        return {"content": self._content}


def test_the_notebook_is_what_the_front_end_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notebook_path(_Shell(__vsc_ipynb_file__="/home/me/v.ipynb")) == Path("/home/me/v.ipynb")
    assert notebook_path(_Shell()) is None
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/n.ipynb")
    assert notebook_path(_Shell()) is None, "this process is no kernel: it inherited the name from one"


def test_a_kernel_whose_cells_may_not_ask_is_headless() -> None:
    assert headless(_Shell(kernel=object(), allow_stdin=False), {})
    assert not headless(_Shell(kernel=object(), allow_stdin=True), {})
    assert not headless(_Shell(kernel=object()), {})
    assert not headless(_Shell(kernel=object(), allow_stdin=False, __vsc_ipynb_file__="/n.ipynb"), {})
    assert not headless(_Shell(), {})
    assert headless(_Shell(__vsc_ipynb_file__="/n.ipynb"), {"JUG_HEADLESS": "1"})


def test_a_cell_keeps_its_name_over_edits_where_the_front_end_tells_it() -> None:
    assert cell_name("a1b2-c3", "x = 1") == cell_name("a1b2-c3", "x = 2") == ("a1b2-c3", True)
    assert cell_name(None, "x = 1") == cell_name(None, "x = 1\n") != cell_name(None, "x = 2")
    handle = "vscode-notebook-cell:/home/me/n.ipynb#W2sZmlsZQ%3D%3D"
    assert cell_name(handle, "x = 1") == cell_name(None, "x = 1"), "a handle moves when the file is opened again"
    assert not cell_name(None, "x = 1")[1]


# -- pictures ----------------------------------------------------------------------------------------------------------


class _Handle:
    def __init__(self) -> None:
        self.drawn: list[Any] = []

    def update(self, bundle: Any, raw: bool) -> None:
        self.drawn.append(bundle)


class _Eye:
    """A session that shows what it is given."""

    queries = property(lambda self: self)  # the part of a session that is asked

    closed = False

    def __init__(self, *pictures: Any) -> None:
        self.pictures = list(pictures)

    def glance(self, all: bool) -> Snapshot:
        reply = self.pictures[0] if len(self.pictures) == 1 else self.pictures.pop(0)
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, Snapshot)
        return reply

    def watch(self, seen: int, timeout: float) -> int:
        return seen


def _follow(session: _Eye, reply: Snapshot) -> tuple[Live, _Handle]:
    handle, live = _Handle(), Live(pause=3600)
    drawing = Drawing(session, True, handle, lambda seen: {"text/plain": str(seen.total)})  # type: ignore[arg-type]
    live.follow("cell", reply, drawing)
    return live, handle


def test_a_picture_is_redrawn_only_when_there_is_news() -> None:
    empty = Snapshot("s", 1.0, "whole store")
    full = Snapshot("s", 3.0, "whole store", (FunctionView("f", {State.READY: 4}),))
    session = _Eye(empty)
    live, handle = _follow(session, empty)
    live.redraw()
    assert handle.drawn == []
    session.pictures = [full]
    live.redraw()
    live.redraw()
    assert handle.drawn == [{"text/plain": "4"}]
    live.stop()
    assert not live.running


def test_a_picture_that_moves_in_a_terminal_fits_into_it() -> None:
    text = "\n".join(["x" * 30, "短" * 10, "  a  b", *map(str, range(20))])
    assert render.fitted(text, 100, 40) == text
    cut = render.fitted(text, 12, 8).splitlines()
    assert cut == ["x" * 11 + "…", "短" * 5 + "…", "  a  b", "0", "1", "2", "… 17 more l…"]
    assert render.fitted("a\nb\nc", 10, 1) == "a\n… 2 more …"


def test_a_store_that_is_out_of_reach_leaves_the_picture_as_it_is() -> None:
    live, handle = _follow(_Eye(jn.StoreError()), Snapshot("s", 1.0, "whole store"))
    live.redraw()
    assert handle.drawn == []
    live.stop()


def warned(notebook: Notebook, source: str) -> warnings.WarningMessage:
    """The one warning that a cell causes, which names the cell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notebook.run(source)
    [warning] = caught
    assert re.fullmatch(r"Cell In\[\d+\]|.*<ipython-input-.*|Input In \[\d+\]", warning.filename), warning.filename
    return warning


def test_a_warning_names_the_users_cell_and_line_and_how_to_silence_it(notebook: Notebook) -> None:
    notebook.run("import random, jug_notebook as jn")
    warning = warned(notebook, "@jn.task\ndef unseeded():\n    return random.random()\n\nunseeded()")
    assert warning.lineno == 5
    assert str(warning.message).endswith("To silence: %config JugMagics.advice = False")


def test_a_warning_at_the_end_of_a_cell_names_the_line_of_the_function_that_it_is_about(notebook: Notebook) -> None:
    notebook.run("import random")
    source = "%%jugtask\ndef seeded(x):\n    return x\n\ndef by_chance(x):\n    return x + random.random()"
    warning = warned(notebook, source)
    assert "by_chance()" in str(warning.message)
    assert warning.lineno == 5
