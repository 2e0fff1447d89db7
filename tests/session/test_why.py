"""Why a task isn't stored: each reason, as people read it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jug_notebook as jn
from jug_notebook import render
from jug_notebook.__main__ import main
from jug_notebook.keys import libraries
from jug_notebook.model import Cause, Explanation, Reason, State, TaskTemplate, Why
from jug_notebook.session import differences
from jug_notebook.store import Store
from tests.crews import working
from tests.session.test_session import NOTEBOOK, define, run_cell


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    NOTEBOOK.clear()
    NOTEBOOK["__name__"] = "__main__"
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.close()
    jn.definitions.clear()


def lines(task: Any) -> list[str]:
    return [reason.line for reason in task.why().reasons]


def compute(session: jn.Session, *tasks: Any) -> None:
    with working(session):
        jn.bvalue(list(tasks))


# -- what stands in a task's own way -----------------------------------------------------------------------------------


def test_a_stored_task_says_when_and_where_it_was_computed(session):
    task = define("def f(n): return n")(3)
    compute(session, task)
    why = task.why()
    assert why.stored
    assert not why.reasons
    assert repr(why).startswith("f(n=3) is stored, computed 2")


def test_a_function_without_any_result_is_new(session):
    task = define("def f(n): return n")(3)
    assert not task.why().stored
    assert lines(task) == ["new function: no result of `f` is stored yet"]
    assert "f(n=3) is not stored: it is ready" in repr(task.why())


def test_a_failed_task_says_what_it_raised(session):
    task = define("def f(n): return 1 / n")(0)
    with working(session):
        task.exception()
    assert lines(task) == ["failed: ZeroDivisionError: division by zero"]


def test_a_task_behind_a_failed_one_names_it(session):
    f = define("def f(n): return 1 / n")
    g = define("def g(x): return x", "g")
    first = g(f(0))
    last = g(first)
    with working(session):
        last.exception()
    assert lines(first) == ["needs f(n=0), which isn't stored: failed: ZeroDivisionError: division by zero"]
    assert lines(last) == [
        "needs g(x=f(n=0)), which isn't stored: needs f(n=0), which failed: ZeroDivisionError: division by zero"
    ]


def test_a_task_that_waits_names_what_it_needs(session):
    f = define("def f(n): return n")
    g = define("def g(xs): return xs", "g")
    assert "needs f(n=1) and f(n=2), which aren't stored" in lines(g([f(1), f(2)]))
    assert "needs 9 tasks of `f`, which aren't stored" in lines(g([f(n) for n in range(9)]))


def test_an_invalidated_task_says_by_whom_and_so_does_what_needs_it(session):
    import getpass

    f, g = define("def f(n): return n"), define("def g(x): return x", "g")
    below = f(1)
    above = g(below)
    compute(session, above)
    below.invalidate()
    assert lines(below) == [f"invalidated by {getpass.getuser()}"]
    assert below.why().reasons[0].at > 0
    assert f"needs f(n=1), which isn't stored: invalidated by {getpass.getuser()}" in lines(above)


def test_a_lost_value_is_distinguished_from_an_invalidated_one(session):
    task = define("def f(n): return n")(1)
    compute(session, task)
    session.access.store.invalidate([task.key], Why.LOST, "ann")
    assert lines(task) == ["its stored value was lost (missing or damaged)"]


def test_a_cancelled_task_says_that_it_is_no_longer_requested(session):
    task = define("def f(n): return n")(1)
    task.cancel()
    assert lines(task) == ["cancelled: it is no longer requested"]


def test_a_task_of_another_python_says_so(session, monkeypatch):
    from jug_notebook import system

    monkeypatch.setattr(system, "python", lambda: "3.12")
    task = define("def f(n): return n")(1)
    session.submissions.flush()
    monkeypatch.undo()
    mine = system.python()
    assert f"made by Python 3.12: workers with Python {mine} don't run it" in lines(task)


# -- what changed in the arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ("f(3)", "f(4)", ["argument `n`: 3 → 4"]),
        ("f(3)", "f(n=3, k=5)", ["argument `k`: 2 (default) → 5"]),
        ("f(3, k=5)", "f(3)", ["argument `k`: 5 → 2 (default)"]),
        ("f('a' * 500)", "f('a' * 400 + 'b')", None),
        ("f({'a': [1, {'b': 2}]})", "f({'a': [1, {'b': 3}]})", ["argument `n`['a'][1]['b']: 2 → 3"]),
        ("f({'b': 2})", "f({'c': 2})", ["argument `n`['b']: 2 → nothing", "argument `n`['c']: nothing → 2"]),
        ("f([1, 2])", "f([1, 2, 3])", ["argument `n`: [1, 2] → [1, 2, 3]"]),
        ("f(1)", "f(1.0)", ["argument `n`: 1 → 1.0"]),
        ("f(np.zeros(9))", "f(np.ones(9))", ["argument `n`: ndarray float64 (9,), 72 B → another of that kind"]),
        ("f(BIG)", "f(BIG + 1)", ["argument `n`: ndarray float64 (99999,), 800 kB → another of that kind"]),
        ("f(Point(1, 2))", "f(Point(1, 3))", ["argument `n`.y: 2 → 3"]),
    ],
)  # fmt: skip
def test_an_argument_is_reported_down_to_the_item(session, before, now, expected):
    run_cell("import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int\n    y: int")
    NOTEBOOK.update(np=np, BIG=np.zeros(99_999))
    f = define("def f(n, k=2): return n")
    NOTEBOOK["f"] = f
    compute(session, eval(before, NOTEBOOK))
    found = lines(eval(now, NOTEBOOK))
    if expected is None:
        assert len(found) == 1
        assert len(found[0]) < 200
    else:
        assert found == expected


def test_an_argument_of_an_edited_class_says_so(session):
    source = "class Window:\n    def holds(self, x): return x {} 1\n    def __repr__(self): return 'Window()'"
    f = define("def f(w): return 1")
    run_cell(source.format("<"))
    compute(session, f(3))
    compute(session, f(NOTEBOOK["Window"]()))
    run_cell(source.format(">"))
    assert lines(f(NOTEBOOK["Window"]())) == ["argument `w`: Window() → Window() of the class as it is now"]


def test_the_nearest_has_the_fewest_other_arguments(session):
    f = define("def f(a, b, c): return a")
    compute(session, f(1, 2, 3), f(1, 2, 9), f(7, 8, 9))
    why = f(1, 2, 4).why()
    assert [reason.line for reason in why.reasons] == ["argument `c`: 9 → 4"]
    assert "compared with f(a=1, b=2, c=9), the most similar stored call" in repr(why)


def test_an_argument_that_does_not_count_is_not_reported(session):
    f = define("def f(n, loud): return n", ignore=("loud",))
    compute(session, f(3, True))
    assert lines(f(4, False)) == ["argument `n`: 3 → 4"]


def test_an_argument_that_is_a_task_is_reported_as_its_call(session):
    f, g = define("def f(n): return n"), define("def g(x): return x", "g")
    compute(session, g(f(1)))
    assert "argument `x`: f(n=1) → f(n=2)" in lines(g(f(2)))
    assert "argument `x`: f(n=1) → f(n=1)[0]" in lines(g(f(1)[0]))


def test_arguments_that_cannot_be_decoded_here_are_reported_in_short(session, monkeypatch):
    f = define("def f(n): return n")
    compute(session, f((1, 2)))
    task = f((1, 3))
    session.submissions.flush()
    from jug_notebook import codec

    def fails(*_: Any) -> Any:
        raise ModuleNotFoundError("no such module here")

    monkeypatch.setattr(codec, "inspect_call", fails)
    assert lines(task) == ["arguments: n=(1, 2) → n=(1, 3)"]


# -- what changed in the code ------------------------------------------------------------------------------------------

CELL = """ALPHA = 0.1
CONFIG = {"rate": 0.1, "layers": [64] * 8}
LIMITS = 3

def norm(x):
    '''Half of it.'''
    return x / 2

class Scale:
    factor = 2

    def by(self, x):
        return x * self.factor

def f(n, k=2):
    return norm(n) * ALPHA * k * CONFIG["rate"] + Scale().by(n)
"""


@pytest.mark.parametrize(
    ("old", "new", "expected", "diff"),
    [
        ("ALPHA = 0.1", "ALPHA = 0.2", "global `ALPHA`: 0.1 → 0.2", ""),
        ('"rate": 0.1', '"rate": 0.2', "global `CONFIG`['rate']: 0.1 → 0.2", ""),
        ("x / 2", "x / 3", "helper `norm` changed", " def norm(x):\n-    return x / 2\n+    return x / 3"),
        ("k=2", "k=3", "default `k`: 2 → 3", ""),
        ("factor = 2", "factor = 3", "`Scale.factor`: 2 → 3", ""),
        ("x * self", "-x * self", "method `Scale.by` changed", "+    return -x * self.factor"),
        ("* k *", "/ k *", "function `f` changed", "+    return norm(n) * ALPHA / k *"),
        ("ALPHA * k", "LIMITS * k", "now uses global `LIMITS`", ""),
        ("ALPHA * k", "LIMITS * k", "no longer uses global `ALPHA`", ""),
        ("ALPHA * k", "BETA * k", "now uses `BETA`, which isn't defined", ""),
    ],
)
def test_each_part_of_the_code_is_reported_by_its_name(session, old, new, expected, diff):
    compute(session, define(CELL)(4))
    assert CELL.count(old) == 1
    task = define(CELL.replace(old, new))(4)
    [reason] = [reason for reason in task.why().reasons if expected in reason.line]
    assert diff in reason.diff
    assert "compared with the stored value of this call" in repr(task.why())


def test_a_comment_or_docstring_is_not_in_a_diff(session):
    compute(session, define(CELL)(4))
    edited = CELL.replace("'''Half of it.'''", "'''A third of it.'''").replace("x / 2", "x / 3  # really")
    [reason] = define(edited)(4).why().reasons
    assert reason.diff == " def norm(x):\n-    return x / 2\n+    return x / 3"


def test_a_version_is_reported_as_such(session):
    compute(session, define("def f(n): return n", version="1")(4))
    assert lines(define("def f(n): return -n", version="2")(4)) == ["version: '1' → '2'"]
    assert lines(define("def f(n): return -n")(4)) == ["version: '1' → none"]


def test_the_same_call_of_former_code_is_nearer_than_another_call_of_the_same(session):
    compute(session, define("def f(n): return n")(4))
    f = define("def f(n): return -n")
    compute(session, f(3))
    assert lines(f(4)) == ["function `f` changed"]
    assert lines(f(5)) == ["argument `n`: 3 → 5"]


def test_a_stored_task_says_why_its_former_value_is_not_used(session):
    compute(session, define(CELL)(4))
    task = define(CELL.replace("0.1\n", "0.2\n"))(4)
    compute(session, task)
    assert lines(task) == ["global `ALPHA`: 0.1 → 0.2"]
    assert "compared with an earlier value of this call, which is no longer used" in repr(task.why())


def test_a_task_that_was_not_run_says_whose_value_it_has(session):
    former = define("def f(n): return n + n")(4)
    compute(session, former)
    task = define("def f(n): return 2 * n")(4)
    session.accept("f")
    why = task.why()
    assert why.stored
    assert [reason.line for reason in why.reasons] == ["function `f` changed"]
    assert repr(why).startswith(f"f(n=4) is stored, reused from {former.key[:8]}")
    assert "differences from f(n=4), whose value it reuses:" in repr(why)


def test_a_change_upstream_is_traced_to_where_it_was_made(session):
    source = "def norm(x): return x / 2\ndef f(n): return norm(n)"
    g = define("def g(x): return x", "g")
    h = define("def h(xs): return sum(xs)", "h")
    f = define(source)
    compute(session, h([g(f(n)) for n in range(3)]))
    f = define(source.replace("/ 2", "/ 3"))
    why = h([g(f(n)) for n in range(3)]).why()
    [reason] = [reason for reason in why.reasons if reason.cause is Cause.CODE]
    assert (reason.of, reason.line) == ("f", "helper `norm` changed")
    assert "in `f`, which it needs: helper `norm` changed" in repr(why)


# -- many, and the doors -----------------------------------------------------------------------------------------------


def test_a_list_is_summed_up(session):
    source = "def norm(x): return x / 2\ndef f(n): return norm(n)"
    compute(session, *define(source).map(range(12)))
    tasks = define(source.replace("/ 2", "/ 3")).map(range(12))
    assert repr(tasks.why()).splitlines()[:2] == ["12 tasks of f: 0 stored, 12 not", "  12 × helper `norm` changed"]
    compute(session, *tasks)
    assert repr(tasks.why()) == "12 tasks of f: all stored"
    assert repr(jn.TaskList().why()) == "no tasks"


def test_arguments_of_many_are_reported_by_name_and_an_example(session):
    f = define("def f(n): return n")
    compute(session, f(100))
    assert repr(f.map(range(3)).why()).splitlines()[1] == "  3 × argument `n`, such as 100 → 0"


def test_a_chain_of_a_thousand_is_answered(session):
    f = define("def f(n): return n + 1")
    task = f(0)
    for _ in range(1000):
        task = f(task)
    assert any(line.startswith("needs f(") for line in lines(task))


def test_the_verb_the_handles_and_the_desk_agree(session):
    f = define("def f(n): return n")
    tasks = [f(1), f(2)]
    assert repr(jn.why(tasks)) == repr(session.why("f")) == repr(jn.TaskList(tasks).why())
    assert repr(f(1)[0].why()) == repr(jn.why(f(1)))
    with pytest.raises(jn.NoSuchTask):
        jn.why("nothing")


def test_what_others_put_into_the_store_is_not_opened(session):
    f = define("def f(n): return n")
    compute(session, f(1))
    task = f(2)
    session.submissions.flush()
    store: Store = session.access.store
    [body] = store.specs([f(1).key])
    assert body is not None
    signed = session.access.signed
    signed.seal = type(signed.seal)(b"x" * 32, store.id)
    assert [reason.cause for reason in task.why().reasons] == [Cause.UNKNOWN]


def test_the_command_line_answers_and_its_status_says_if_it_is_stored(tmp_path, capsys):
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "n.ipynb")
    try:
        f = define("def f(n): return n")
        compute(session, f(1))
        stored, other = f(1).key, f(2).key
        session.submissions.flush()
        assert main(["why", "--store", str(tmp_path / "jugdata"), stored]) == 0
        assert main(["why", "--store", str(tmp_path / "jugdata"), other]) == 1
        assert "argument `n`: 1 → 2" in capsys.readouterr().out
    finally:
        session.close()
        jn.definitions.clear()


def test_a_small_call_does_not_pay_for_why(session):
    f = define("def f(n): return n")
    f(1)
    version = session.submissions.function_version(f)
    bundle = msgspec.msgpack.decode(version.template, type=TaskTemplate).bundle
    assert session.access.store.get_blob(bundle).nbytes < 2000


# -- rendering and comparing, with a pencil ----------------------------------------------------------------------------


def explained(*reasons: Reason, state: State = State.READY) -> Explanation:
    return Explanation("0" * 40, "f", "n=3", state, reasons)


def test_a_page_is_escaped_and_has_no_script():
    evil = "<script>alert(1)</script>"
    reason = Reason(Cause.CODE, evil, f"helper `{evil}` changed", diff=f"-{evil}\n+x\n y")
    page = render.why_html([explained(reason)], 1)
    assert "<script" not in page
    assert "<code>&lt;script&gt;" in page
    assert page.count("<pre") == 1


def test_times_are_left_out_where_text_must_be_steady():
    reason = Reason(Cause.INVALIDATED, "", "invalidated by ann", at=1e9)
    assert "2001-09-" in render.why_text([explained(reason)], 1)
    assert "2001-09-" not in render.why_text([explained(reason)], 1, times=False)


def test_many_reasons_are_cut():
    reasons = [Reason(Cause.CODE, str(i), f"global `x{i}` changed") for i in range(40)]
    assert render.why_text([explained(*reasons)], 1).splitlines()[-1] == "  and 28 more reasons"


def test_a_long_diff_is_cut():
    before = "\n".join(map(str, range(100)))
    lines = differences.difference(before, before.replace("\n", "\n1")).splitlines()
    assert len(lines) == differences.DIFF
    assert "more lines" in lines[-1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_values_have_a_difference_if_and_only_if_their_digests_differ(before, now):
    found = list(differences.differences(before, now))
    assert bool(found) != differences.same(before, now)
    assert len(found) <= differences.FOUND + 1 or all(isinstance(part, str) for one in found for part in one)


@given(st.text(), st.text())
def test_a_window_is_narrow_and_shows_where_texts_differ(before, now):
    was, becomes = differences.window(before, now)
    assert max(len(was), len(becomes)) <= differences.WIDTH + 2
    assert (was == becomes) == (before == now)


# -- attributes that come with use -------------------------------------------------------------------------------------


class Fitted:
    def __init__(self, rate, names=()):
        self.rate, self._names, self.calls = rate, names, 0


REMEDY = "if that doesn't affect the result, ignore it: jn.ignore_attributes"


def test_an_attribute_that_looking_at_an_object_changes_is_named_with_the_way_to_ignore_it(session):
    matcher = difflib.SequenceMatcher(None, "abcd", "bcde")
    match = define("def match(m, n): return m.a", "match")
    compute(session, match(matcher, 1))
    matcher.get_matching_blocks()
    [line] = lines(match(matcher, 1))
    assert line.startswith("argument `m`.matching_blocks: None → [Match(")
    remedy = f"{REMEDY}(difflib.SequenceMatcher, 'matching_blocks')"
    assert line.endswith(remedy)
    try:
        exec(remedy.partition(": ")[2], {"jn": jn, "difflib": difflib})
        assert match(matcher, 1).key == match(difflib.SequenceMatcher(None, "abcd", "bcde"), 1).key
    finally:
        libraries._users.clear()
        libraries.cache_names.cache_clear()


def test_so_is_one_of_a_global_object_and_of_an_object_inside_others(session):
    NOTEBOOK["matcher"] = matcher = difflib.SequenceMatcher(None, "abcd", "bcde")
    match = define("def match(m): return matcher.a", "match")
    compute(session, match(1))
    matcher.ratio()
    changed = lines(match(1))
    assert changed[0].startswith("global `matcher`.matching_blocks: None → ")
    assert changed[-1].endswith(f"{REMEDY}(difflib.SequenceMatcher, 'matching_blocks')")
    use = define("def use(held): return 1", "use")
    held = {"all": [1, difflib.SequenceMatcher(None, "ab", "bc")]}
    compute(session, use(held))
    held["all"][1].get_matching_blocks()
    [line] = lines(use(held))
    assert line.startswith("argument `held`['all'][1].matching_blocks: None → ")
    assert line.endswith(f"{REMEDY}(difflib.SequenceMatcher, 'matching_blocks')")


def test_what_an_object_is_made_from_is_not_to_be_ignored(session):
    use = define("def use(m): return m.rate", "use")
    compute(session, use(Fitted(1, "a")))
    assert lines(use(Fitted(2, "a"))) == ["argument `m`.rate: 1 → 2"]
    assert lines(use(Fitted(1, "b"))) == ["argument `m`._names: 'a' → 'b'"]
    used = Fitted(1, "a")
    used.calls = 3
    [line] = lines(use(used))
    assert line.startswith(f"argument `m`.calls: 0 → 3; {REMEDY}(")
    assert line.endswith("Fitted, 'calls')")
    both = Fitted(2, "a")
    both.calls = 3
    assert lines(use(both)) == ["argument `m`.rate: 1 → 2", "argument `m`.calls: 0 → 3"]
