"""A worker's next task finds its function as its key says, whatever the last one did to it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook.worker.mutations import Traces
from tests.crews import working
from tests.keys.test_code import cell

#: what a function changes that outlives its call
LEAVES = {
    "a default": "def f(x, seen=[]):\n    seen.append(x)\n    return list(seen)",
    "a keyword's default": "def f(x, *, seen={}):\n    seen[x] = 1\n    return dict(seen)",
    "a global": "SEEN = []\ndef f(x):\n    SEEN.append(x)\n    return list(SEEN)",
    "a global that it binds": "N = 0\ndef f(x):\n    global N\n    N += 1\n    return N",
    "a global of a helper": "SEEN = set()\ndef add(x): SEEN.add(x)\ndef f(x):\n    add(x)\n    return sorted(SEEN)",
    "an array": "import numpy\nA = numpy.zeros(3)\ndef f(x):\n    A[x] += 1\n    return A.tolist()",
    "a generator": "import random\nR = random.Random(1)\ndef f(x): return R.random()",
    "a closure": """
        def make():
            n = 0
            def f(x):
                nonlocal n
                n += 1
                return n
            return f
        f = make()
    """,
    "a closure in a table": """
        def make():
            seen = []
            return lambda x: seen.append(x) or list(seen)
        TABLE = {"a": [make()]}
        def f(x): return TABLE["a"][0](x)
    """,
    "a partial": """
        import functools
        def add(seen, x): return seen.append(x) or list(seen)
        g = functools.partial(add, [])
        def f(x): return g(x)
    """,
    "an attribute of a function": "def g(): pass\ng.n = 0\ndef f(x):\n    g.n += 1\n    return g.n",
    "an object": """
        class C:
            n = 0
            def bump(self):
                self.n += 1
                return self.n
        c = C()
        def f(x): return c.bump()
    """,
}
#: of classes, which a process has once
OF_CLASSES = {
    "an attribute": "class C: n = 0\ndef f(x):\n    C.n += 1\n    return C.n",
    "a list": "class C: seen = []\ndef f(x):\n    C.seen.append(x)\n    return list(C.seen)",
    "a method's default": """
        class C:
            def g(self, x, seen=[]): return seen.append(x) or list(seen)
        def f(x): return C().g(x)
    """,
    "by a class method": """
        class C:
            n = 0
            @classmethod
            def bump(cls):
                cls.n += 1
                return cls.n
        def f(x): return C.bump()
    """,
}
LEAVES_NONE = {
    "numbers": "A, B = 1, ('a', (2.5, None))\ndef f(x, y=3): return A + x + y",
    "helpers": "def g(x): return x\ndef f(x): return g(x)",
    "what is looked at": "TABLE = {1: [2]}\ndef f(x): return TABLE.get(x)",
    "objects of its own": """
        class C:
            def __init__(self, x): self.x = x
        def f(x): return C(x).x
    """,
    "an enum": "import enum\nclass E(enum.Enum): A = 1\ndef f(x): return E.A.value",
}


@pytest.mark.parametrize("what", [*LEAVES, *OF_CLASSES])
def test_what_outlives_a_call_is_seen(what: str) -> None:
    function = cell((LEAVES | OF_CLASSES)[what])["f"]
    traces = Traces(function)
    assert traces.none()
    first = function(1)
    assert function(2) != first
    assert not traces.none()


@pytest.mark.parametrize("what", LEAVES_NONE)
def test_where_there_is_nothing_nothing_is_seen(what: str) -> None:
    function = cell(LEAVES_NONE[what])["f"]
    traces = Traces(function)
    function(1)
    assert traces.none()


def test_what_cannot_be_told_counts_as_changed() -> None:
    function = cell("import threading\nLOCK = [threading.Lock()]\ndef f(x): return len(LOCK)")["f"]
    assert not Traces(function).none()


@pytest.mark.parametrize("what", LEAVES)
def test_one_task_finds_nothing_of_another(tmp_path: Path, what: str) -> None:
    session = jn.connect(f"memory:{tmp_path.name}", notebook=tmp_path)
    fresh = [cell(LEAVES[what])["f"](x) for x in range(3)]
    calls = jn.task(cell(textwrap.dedent(LEAVES[what]))["f"]).map(range(3))
    with working(session):
        assert calls.result(timeout=20) == fresh
    session.close()


def test_classes_of_values_are_as_they_were_too(tmp_path: Path) -> None:
    session = jn.connect(str(tmp_path / "jugdata"), notebook=tmp_path, headless=True)
    space = cell("""
        class C:
            n, seen = 0, []
            def bump(self):
                type(self).n += 1
                C.seen.append(1)
                return self.n, list(self.seen)
        def f(c, i): return c.bump()
        def made(i): return C()
        def g(i): return C.n, C().bump()
    """)
    f, made, g = (jn.task(space[name]) for name in ("f", "made", "g"))
    calls = [*(f(space["C"](), i) for i in range(3)), *(f(made(i), i) for i in range(3))]
    others = g.map(range(3))
    crew = session.execute(1)  # a process of its own: here, the class is the notebook's
    assert [call.result(timeout=60) for call in calls] == [(1, [1])] * 6
    assert others.result(timeout=60) == [(0, (1, [1]))] * 3
    crew.stop(now=True)
    session.close()
