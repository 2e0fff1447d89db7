"""The policy of keys, a row each: what makes one key, what makes two, and what is refused.

The details of each row are tested beside the code that decides it; here it can be read as a table.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime as dt
import enum
import functools
import math
import pathlib
import random
import threading
import types
import warnings
import zoneinfo
from collections.abc import Callable
from typing import Any, Optional, Union

import pytest

from jug_notebook.errors import KeyAdvice, Unhashable
from jug_notebook.keys.code import examine
from jug_notebook.keys.digest import digest, name_call
from jug_notebook.task import TaskFunction
from jug_notebook.task.files import file
from jug_notebook.task.patterns import CustomHash, NoHash, unordered
from tests.keys.test_code import cell

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0

    def norm(self) -> Any:
        return self.x


LOOP: list[Any] = [1]
LOOP.append(LOOP)
OTHER: list[Any] = [1]
OTHER.append(OTHER)
ONE = (1, 2)
GRID = np.arange(12.0).reshape(3, 4)
FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
BERLIN, UTC = zoneinfo.ZoneInfo("Europe/Berlin"), dt.UTC
WORDS = [f"w{n}" for n in range(20)]

#: row, values that are one
SAME: list[tuple[str, list[Any]]] = [
    ("pickle memo: sharing does not count", [[ONE, ONE], [(1, 2), copy.deepcopy([ONE])[0]]]),
    ("set, frozenset: no order", [set(WORDS), set(WORDS + WORDS)]),
    ("unordered: dict order does not count", [unordered(a=1, b=2), unordered(b=2, a=1)]),
    ("all NaN are one", [math.nan, -math.nan, float("nan")]),
    ("ndarray: layout does not count", [GRID, np.asfortranarray(GRID), np.vstack([GRID, GRID])[:3]]),
    ("ndarray: flags do not count", [GRID, np.frombuffer(GRID.tobytes()).reshape(3, 4)]),
    ("object ndarray: element by element", [np.array([[1], "a"], object), np.array([[1], "".join("a")], object)]),
    ("pandas: blocks do not count", [FRAME, pd.concat([FRAME[["a"]], FRAME[["b"]]], axis=1), FRAME.copy()]),
    ("recursion: back references", [LOOP, OTHER]),
    ("dataclass: by fields", [Point(1, {2}), Point(y={2}, x=1)]),
    ("union: however it is written", [int | None, Optional[int], Union[int, None]]),  # noqa: UP045
    ("NoHash: does not count", [NoHash(1), NoHash("x")]),
    ("CustomHash: as it says", [CustomHash(1, lambda x: "a"), CustomHash(2, lambda x: "a")]),
    ("random generators: by state", [np.random.default_rng(1), np.random.default_rng(1)]),
    ("random generators: by state, Python's", [random.Random(1), random.Random(1)]),
    ("tz datetimes: one instant in one zone",
     [dt.datetime(2024, 7, 1, 12, tzinfo=BERLIN), dt.datetime(2024, 7, 1, 10, tzinfo=UTC).astimezone(BERLIN)]),
]  # fmt: skip

#: row, values that are all different
DIFFERENT: list[tuple[str, list[Any]]] = [
    ("nesting", [[[1], 2], [[1, 2]], [1, [2]], [1, 2], [[1, 2], []]]),
    ("set and frozenset are two", [{1}, frozenset({1}), [1], (1,)]),
    ("order of dict and OrderedDict counts",
     [collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), {"a": 1, "b": 2}, {"b": 2, "a": 1}]),
    ("int, bool, float, numpy scalar", [1, True, 1.0, np.int64(1), np.int32(1), np.float64(1), "1", b"1"]),
    ("-0.0 and 0.0", [0.0, -0.0, 0]),
    ("ndarray: dtype, byte order and shape count", [GRID, GRID.astype("f4"), GRID.astype(">f8"), GRID.ravel(), GRID.T]),
    ("pandas: order, index, dtype and attrs count",
     [FRAME, FRAME[["b", "a"]], FRAME[::-1], FRAME.set_axis([1, 2]), FRAME.astype({"a": float}), FRAME["a"]]),
    ("Categorical: categories and their order count",
     [pd.Categorical(["a"], ["a", "b"]), pd.Categorical(["a"], ["b", "a"]), pd.Categorical(["a"], ["a"]),
      pd.Categorical(["a"], ["a", "b"], ordered=True)]),
    ("tz datetimes: the zone counts, naive is not aware",
     [dt.datetime(2024, 7, 1, 12, tzinfo=zone) for zone in (BERLIN, UTC, None)]),
    ("str, bytes, Path", ["a", b"a", pathlib.PurePosixPath("a"), bytearray(b"a"), file(__file__), __file__]),
    ("Enum: member and value", [Colour.RED, 1, "RED", Colour]),
    ("dataclass: class and fields", [Point(1), Point(1, 1), {"x": 1, "y": 0}, (1, 0)]),
    ("method: class, state and name", [Point(1).norm, Point(2).norm, Point.norm, Point(1).__eq__]),
    ("partial: function, arguments, keywords",
     [functools.partial(int, "1"), functools.partial(int, "2"), functools.partial(int, "1", base=2), int]),
    ("builtins and C functions", [len, max, math.sin, "a".join, "b".join, np.sin]),
    ("modules of libraries, by name", [math, random, "math"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "values"), SAME, ids=[row for row, _ in SAME])
def test_these_are_one(row: str, values: list[Any]) -> None:
    assert len({digest(value) for value in values}) == 1


@pytest.mark.parametrize(("row", "values"), DIFFERENT, ids=[row for row, _ in DIFFERENT])
def test_these_are_different(row: str, values: list[Any]) -> None:
    assert len({digest(value) for value in values}) == len(values)


def _graph(module: Any, *edges: str) -> Any:
    return module.Graph([tuple(edge) for edge in edges])


def _coordinates(module: Any, *names: str) -> Any:
    return module.Dataset(coords={name: ("x", [1, 2]) for name in names})


#: library, one, the same in another order, what shows the order
ORDERED: list[tuple[str, Callable[[Any], Any], Callable[[Any], Any], Callable[[Any, Any], Any]]] = [
    ("networkx", lambda nx: _graph(nx, "ab", "cd", "bc"), lambda nx: _graph(nx, "cd", "ab", "bc"),
     lambda nx, x: nx.to_numpy_array(x).tolist()),
    ("networkx", lambda nx: _graph(nx, "ab", "ac"), lambda nx: nx.Graph({"a": "cb", "b": "a", "c": "a"}),
     lambda nx, x: list(nx.dfs_preorder_nodes(x, "a"))),
    ("xarray", lambda xr: _coordinates(xr, "a", "b"), lambda xr: _coordinates(xr, "b", "a"),
     lambda xr, x: list(x.to_dataframe(["x"]).columns)),
    ("pandas", lambda pd: pd.DataFrame({"a": [1], "b": [2]}), lambda pd: pd.DataFrame({"b": [2], "a": [1]}),
     lambda pd, x: x.to_numpy().tolist()),
    ("pandas", lambda pd: pd.Series({"a": 1, "b": 1}), lambda pd: pd.Series({"b": 1, "a": 1}),
     lambda pd, x: x.idxmax()),
    ("collections", lambda c: c.Counter("ab"), lambda c: c.Counter("ba"), lambda c, x: x.most_common(1)),
    ("collections", lambda c: c.OrderedDict(a=1, b=2), lambda c: c.OrderedDict(b=2, a=1), lambda c, x: x.popitem()),
    ("collections", lambda c: c.defaultdict(int, a=1, b=2), lambda c: c.defaultdict(int, b=2, a=1), lambda c, x: [*x]),
    ("collections", lambda c: c.ChainMap({"a": 1}, {"b": 2}), lambda c: c.ChainMap({"b": 2}, {"a": 1}),
     lambda c, x: [*x]),
    ("json", lambda json: {"a": 1, "b": 2}, lambda json: {"b": 2, "a": 1}, lambda json, x: json.dumps(x)),
]  # fmt: skip


@pytest.mark.parametrize(("library", "one", "other", "shown"), ORDERED)
def test_an_order_that_results_show_is_part_of_the_key(
    library: str, one: Callable[[Any], Any], other: Callable[[Any], Any], shown: Callable[[Any, Any], Any]
) -> None:
    module = pytest.importorskip(library)
    assert shown(module, one(module)) != shown(module, other(module))
    assert digest(one(module)) != digest(other(module))
    assert digest(one(module)) == digest(one(module))


def test_an_order_that_only_chance_makes_is_not() -> None:
    nx = pytest.importorskip("networkx")
    backwards = WORDS[::-1]
    assert digest([set(WORDS), frozenset(WORDS)]) == digest([set(backwards), frozenset(backwards)])
    assert digest(set(_graph(nx, "ab", "cd"))) == digest(set(_graph(nx, "cd", "ab")))
    one, other = types.SimpleNamespace(a=1, b=2), types.SimpleNamespace(b=2, a=1)
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        ((n for n in range(3)), "pass list(x)"),
        (open(__file__), "pass jn.file(path)"),  # noqa: SIM115
        (threading.Lock(), "inside the task"),
        (iter([1]), "pass list(x)"),
        ({}.items(), "pass list(x)"),
    ],
    ids=["generator", "file", "lock", "iterator", "dict view"],
)
def test_what_cannot_be_named_is_refused_with_its_path_and_a_way_out_that_works(value: Any, way_out: str) -> None:
    with pytest.raises(Unhashable) as refusal:
        digest({"opts": [0, value]}, "argument 'cfg'")
    assert str(refusal.value).startswith("argument 'cfg'['opts'][1] is a")
    assert way_out in str(refusal.value)
    assert "NoHash" not in str(refusal.value)  # what can't be sent can't be ignored either


# -- code: each row is a text, what is replaced, and what by -----------------------------------------------------------

CODE = '''
import functools
ALPHA = 0.1
def helper(x): return deeper(x)
def deeper(x): return x + 1
def twice(f):
    @functools.wraps(f)
    def inner(*a): return f(*a) * 2
    return inner
def closed(n):
    def inside(x): return x + n
    return inside
captured = closed(3)
class Model:
    """A model."""
    rate = 5
    def fit(self): return self.rate
@twice
def decorated(x): return x
pair = (lambda x: x + 1, lambda x: x + 2)
def f(x, y=2, *, z=3):
    """What it does."""
    w = {"p", "q"}  # why
    print(x)
    return helper(x) + ALPHA + captured(y) + decorated(z) + pair[0](1) + Model().fit()
'''

COUNTS = [
    ("default argument", "y=2", "y=4"),
    ("keyword-only default", "z=3", "z=4"),
    ("closure: captured value", "closed(3)", "closed(4)"),
    ("decorated function: the decorator's own code", "* 2", "* 3"),
    ("decorated function: what it wraps", "decorated(x): return x", "decorated(x): return -x"),
    ("helper function of a helper", "return x + 1\ndef twice", "return x - 1\ndef twice"),
    ("global that is read", "ALPHA = 0.1", "ALPHA = 0.2"),
    ("set constant in code", '{"p", "q"}', '{"p", "r"}'),
    ("class of the notebook: body", "self.rate\n", "-self.rate\n"),
    ("class of the notebook: class-level value", "rate = 5", "rate = 6"),
    ("lambdas of one line are told apart", "pair[0](1)", "pair[1](1)"),
    ("lambda: its text", "x + 1, lambda", "x + 3, lambda"),
    ("rename of a local variable", "w = {", "v = {"),
    ("print edits", "print(x)", "print(y)"),
]
COSMETIC = [
    ("comment", "# why", "# because"),
    ("blank lines and position", "def f(", "\n\n\n# moved\ndef f("),
    ("docstring", '"""What it does."""', '"""What it did."""'),
    ("docstring of a class", '"""A model."""', '"""The model."""'),
    ("formatting", "return helper(x) + ALPHA", "return (helper(x)\n        + ALPHA)"),
    ("annotation", "def f(x, y=2", "def f(x: int, y: float = 2"),
    ("unrelated code in the cell", "ALPHA = 0.1", "ALPHA = 0.1\nBETA = 3"),
]


def key_of(source: str) -> str:
    return examine(cell(source)["f"]).digest


@pytest.mark.parametrize(("row", "old", "new"), COUNTS, ids=[row for row, *_ in COUNTS])
def test_this_counts(row: str, old: str, new: str) -> None:
    assert old in CODE
    assert key_of(CODE.replace(old, new)) != key_of(CODE)


@pytest.mark.parametrize(("row", "old", "new"), COSMETIC, ids=[row for row, *_ in COSMETIC])
def test_this_does_not_count(row: str, old: str, new: str) -> None:
    assert old in CODE
    assert key_of(CODE.replace(old, new)) == key_of(CODE)


def test_the_same_cell_in_two_notebooks_is_one_and_a_change_in_one_is_not() -> None:
    assert key_of(CODE) == key_of("\n\n" + CODE)
    assert key_of(CODE) != key_of(CODE.replace("helper(x) +", "helper(x) -"))


def test_a_task_as_argument_counts_by_its_key_and_never_by_its_value() -> None:
    class Asked:
        def __jug_reference__(self) -> Any:
            from jug_notebook.model import Reference

            return Reference("ab" * 20)

        def value(self) -> None:
            raise AssertionError("nobody asks for it")

    assert name_call("c", "f", [("x", Asked())]).needs == ("ab" * 20,)


def test_equal_calls_are_bound_equally_and_gathered_keywords_count_in_order() -> None:
    def f(x: int, y: int = 1, **more: int) -> int:
        return x

    bound = TaskFunction(f)._bound

    def name(*args: Any, **kwargs: Any) -> str:
        return name_call("c", "f", bound(args, kwargs)).key

    assert name(1) == name(x=1) == name(1, 1) == name(y=1, x=1)
    assert len({name(1, a=1, b=2), name(1, b=2, a=1), name(1, a=2, b=1)}) == 3  # `more` is a dict like any other
    assert name(1, a=1, b=2) == name(a=1, x=1, b=2)


def test_dynamic_look_ups_and_global_random_generators_are_warned_of() -> None:
    for body in ("getattr(x, y)", "eval(x)", "globals()[x]", "random.random()", "x.__subclasses__()"):
        with pytest.warns(KeyAdvice):
            examine(cell(f"import random\ndef f(x, y): return {body}")["f"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examine(cell("def f(x, y): return x.y")["f"])


def test_a_global_that_is_written_is_warned_of() -> None:
    with pytest.warns(KeyAdvice, match="writes the global"):
        examine(cell("def f():\n    global N\n    N = 1")["f"])
