"""Values, calls and functions as bytes, and back."""

from __future__ import annotations

import functools
import gc
import io
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from jug_notebook.codec import (
    INLINE,
    dump_call,
    dump_exception,
    dump_function,
    dump_value,
    load_call,
    load_exception,
    load_function,
    load_value,
    put_once,
    share,
)
from jug_notebook.errors import StoreError, Unstorable
from jug_notebook.keys.code import class_digest, examine
from jug_notebook.keys.digest import digest
from jug_notebook.model import Payload, Reference
from jug_notebook.render.format import describe_arguments, summarise
from tests.keys.test_code import DISPATCH, cell

ROOT = Path(__file__).parents[2]


class Blobs(dict[str, bytes]):
    """A store's blobs: all that the codec wants of one."""

    def put(self, chunks: Iterable[bytes | memoryview]) -> str:
        data = b"".join(chunks)
        address = blake3(data).hexdigest(20)
        self[address] = data
        return address

    def get(self, address: str) -> memoryview:
        return memoryview(self[address])


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The namespace of a notebook: cells run in it, and its classes are found as those of ``__main__``."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main.__dict__


def again(value: Any, blobs: Blobs, **options: Any) -> Any:
    payload, _ = dump_value(value, blobs.put)
    stored = msgpack.decode(msgpack.encode(payload), type=Payload)
    return load_value(stored, blobs.get, **options)


# -- values -----------------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = st.booleans() | st.integers() | st.text() | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(keys)
        | st.frozensets(keys)
        | st.lists(inner).map(deque)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_what_was_stored_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    found = again(value, Blobs())
    assert found == value
    assert type(found) is type(value)
    assert digest(found) == digest(value)


@settings(max_examples=50, deadline=None)
@given(st.lists(values, max_size=4), st.dictionaries(st.text(min_size=1), values, max_size=4))
def test_calls_come_back_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    blobs = Blobs()
    payload = dump_call(tuple(args), kwargs, (), blobs.put)
    assert load_call(payload, (), blobs.get) == (tuple(args), kwargs)


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(b=1, a=2),
        defaultdict(list, a=[1]),
        Pair(1, 2),
        Decimal("1.10"),
        Fraction(1, 3),
        datetime(2026, 1, 2, tzinfo=UTC),
        Path("a/b"),
        range(3),
        functools.partial(math.pow, 2),
        np.float32(1.5),
        b"x" * (INLINE + 1),
        "é" * INLINE,
    ],
    ids=lambda value: type(value).__name__,
)
def test_common_types_come_back(value: Any, blobs: Blobs) -> None:
    found = again(value, blobs)
    assert type(found) is type(value)
    assert found == value or repr(found) == repr(value)


def test_nan_and_cycles_come_back(blobs: Blobs) -> None:
    assert math.isnan(again(math.nan, blobs))
    loop: list[Any] = [1]
    loop.append(loop)
    found = again(loop, blobs)
    assert found[1] is found


def test_equal_values_have_one_digest_and_what_has_no_name_goes_by_its_bytes(blobs: Blobs) -> None:
    assert dump_value({"a", "b"}, blobs.put)[1] == dump_value({"b", "a"}, blobs.put)[1]
    assert dump_value({"a": 1, "b": 2}, blobs.put)[1] != dump_value({"b": 2, "a": 1}, blobs.put)[1]
    assert dump_value(1, blobs.put)[1] != dump_value(True, blobs.put)[1]
    assert dump_value(25, blobs.put)[1][:1] == b"c"


class Contrary:
    def __jug_hash__(self) -> str:
        raise AttributeError("not now")


def test_a_value_that_fails_to_name_itself_is_stored_all_the_same(blobs: Blobs) -> None:
    payload, name = dump_value([Contrary()], blobs.put)
    assert name[:1] == b"p"
    assert type(load_value(payload, blobs.get)[0]) is Contrary


class Circle:
    def __init__(self, radius: float) -> None:
        self.radius = radius

    @functools.cached_property
    def area(self) -> float:
        return 3 * self.radius**2


class SlottedCircle(Circle):
    __slots__ = ("name",)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Circle, SlottedCircle])
def test_what_a_cached_property_has_kept_does_not_travel_for_no_name_covers_it(kind: type[Circle]) -> None:
    used, fresh = kind(1.0), kind(2.0)
    assert used.area == 3
    used.radius = 2.0
    assert digest(used) == digest(fresh)
    for circle in (used, fresh):
        assert again(circle, Blobs()).area == 12
        assert again([circle], Blobs())[0].radius == 2.0


def test_what_numpy_makes_of_a_python_function_travels(blobs: Blobs) -> None:
    add = again(np.frompyfunc(lambda x, y: x + y, 2, 1, identity=0), blobs)
    assert list(add([1, 2], 3)) == [4, 5]
    assert add.identity == 0
    assert again(np.log1p, blobs) is np.log1p


def test_a_small_value_needs_no_blob_and_a_large_one_is_one(blobs: Blobs) -> None:
    dump_value([1, "a"], blobs.put)
    assert not blobs
    payload, _ = dump_value("x" * (INLINE + 1), blobs.put)
    assert len(blobs) == 1
    assert payload.buffers == tuple(blobs)
    assert not payload.data


def test_large_arrays_go_to_blobs_of_their_own_once(blobs: Blobs) -> None:
    array = np.arange(INLINE, dtype=float)
    payload, _ = dump_value({"a": array, "b": array.copy(), "small": np.arange(3)}, blobs.put)
    assert len(set(payload.buffers)) == 1
    assert len(payload.data) < 1000
    assert blobs[payload.buffers[0]] == array.tobytes()
    found = load_value(payload, blobs.get)
    assert (found["b"] == array).all()
    found["b"][0] = 7
    assert found["a"][0] == 0
    assert load_value(payload, blobs.get)["b"][0] == 0


def test_mapped_arrays_are_views_of_the_store_and_read_only(blobs: Blobs) -> None:
    payload, _ = dump_value(np.zeros(INLINE), blobs.put)
    held = blobs[payload.buffers[0]]
    found = load_value(payload, blobs.get, blobs.get)
    assert not found.flags.writeable
    assert found.__array_interface__["data"][0] == np.frombuffer(held).__array_interface__["data"][0]


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(40_000.0).reshape(200, 200)),
        np.arange(40_000.0)[::2],
        np.array([1, "a", None], dtype=object),
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
        np.ma.masked_array(np.arange(3), [0, 1, 0]),
        np.array("2026-01-01", dtype="M8[D]"),
    ],
    ids=["fortran", "strided", "object", "structured", "masked", "scalar date"],
)
def test_arrays_of_every_kind_come_back(array: Any, blobs: Blobs) -> None:
    found = again(array, blobs)
    assert found.dtype == array.dtype
    assert repr(found) == repr(array)


def test_tables_come_back(blobs: Blobs) -> None:
    frame = pd.DataFrame({"n": range(10_000), "s": ["a", "b"] * 5_000})
    pd.testing.assert_frame_equal(again(frame, blobs), frame)


def test_a_value_in_an_unknown_format_says_what_to_do(blobs: Blobs) -> None:
    with pytest.raises(StoreError, match="Update"):
        load_value(Payload("arrow", b"x"), blobs.get)


def test_small_values_take_microseconds(blobs: Blobs) -> None:
    def best(act: Callable[[], object]) -> float:
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(200):
                act()
            times.append((time.perf_counter() - begin) / 200)
        return min(times)

    payload, _ = dump_value(25, blobs.put)
    assert best(lambda: dump_value(25, blobs.put)) < 20e-6  # 2.5 µs here; room for a busy machine
    assert best(lambda: load_value(payload, blobs.get)) < 10e-6


# -- calls that need other tasks ---------------------------------------------------------------------------------------


class Handle:
    """Stands for another task's value."""

    def __init__(self, key: str, *steps: tuple[str, Any]) -> None:
        self.reference = Reference(key, steps)

    def __jug_reference__(self) -> Reference:
        return self.reference

    def __reduce__(self) -> Any:
        raise AssertionError("a task is never pickled itself")


class Handles(list[Any]):
    pass


@dataclass
class Holder:
    inside: Any


def test_references_are_resolved_wherever_they_are(blobs: Blobs) -> None:
    one, two = Handle("k1"), Handle("k2", ("item", 1), ("call", lambda x: x * 10))
    plain = types.SimpleNamespace(deep=[{"x": (two,)}])
    args = (
        one,
        [one, two],
        {"a": two},
        (one,),
        {one},
        frozenset({two}),
        Holder(one),
        plain,
        Handles([two]),
        [[[[two]]]],
    )
    payload = dump_call(args, {"kw": two}, ("k1", "k2"), blobs.put)
    found, kwargs = load_call(payload, ("first", [0, 4]), blobs.get)
    assert found[:6] == ("first", ["first", 40], {"a": 40}, ("first",), {"first"}, frozenset({40}))
    assert found[6].inside == "first"
    assert found[7].deep == [{"x": (40,)}]
    assert found[8] == [40]
    assert type(found[8]) is Handles
    assert found[9] == [[[[40]]]]
    assert kwargs == {"kw": 40}


def test_a_task_that_is_no_need_is_refused_with_advice(blobs: Blobs) -> None:
    with pytest.raises(Unstorable, match=r"result\[1\] is a task; pass it to the function as an argument"):
        dump_value([1, Handle("k")], blobs.put)


def test_task_functions_in_arguments_are_plain_functions_there(blobs: Blobs) -> None:
    import jug_notebook as jn

    helper = jn.task(cell("def helper(x): return x + 1")["helper"])
    args, _ = load_call(dump_call(([helper, helper],), {}, (), blobs.put), (), blobs.get)
    assert [type(one) for one in args[0]] == [types.FunctionType] * 2
    assert args[0][0](1) == 2


# -- what can't be stored ----------------------------------------------------------------------------------------------


class Sulky:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")

    def __repr__(self) -> str:
        raise RuntimeError("no repr either")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, 2, 3, (x for x in "ab")]}, r"result\['a'\]\[3\] is a generator, .*list\(…\)"),
        (Holder(threading.Lock()), r"result\.inside is a lock, .*inside the task"),
        (Pair(1, [threading.Lock()]), r"result\.b\[0\] is a lock"),
        ({1: {"x": Sulky()}}, r"result\[1\]\['x'\] is a Sulky, .*not today"),
        (functools.partial(print, (x for x in "a")), r"result.* is a "),
    ],
)
def test_the_culprit_is_named_with_the_way_to_it(value: Any, message: str, blobs: Blobs) -> None:
    with pytest.raises(Unstorable, match=message):
        dump_value(value, blobs.put)


def test_open_files_are_refused(blobs: Blobs, tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+") as file, pytest.raises(Unstorable, match="its path"):
        dump_value([file], blobs.put)
    assert again(io.StringIO("a"), blobs).read() == "a"


def test_arguments_are_named_in_messages(blobs: Blobs) -> None:
    with pytest.raises(Unstorable, match=r"argument 'cfg'\['a'\] is a generator"):
        dump_call((1,), {"cfg": {"a": (x for x in "a")}}, (), blobs.put)
    with pytest.raises(Unstorable, match=r"argument 2\[0\] is a generator"):
        dump_call((1, [(x for x in "a")]), {}, ("k",), blobs.put)


def test_a_function_says_which_global_or_closure_cant_travel(blobs: Blobs) -> None:
    space = cell("import threading\nLOCK = threading.Lock()\ndef f(): return LOCK")
    with pytest.raises(Unstorable, match=r"function f, global 'LOCK' is a lock"):
        dump_function(space["f"], examine(space["f"], ignore_globals=["LOCK"]), blobs.put)


def test_too_deep_a_nesting_is_refused_in_words(blobs: Blobs) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unstorable, match="too deep"):
        dump_value(deep, blobs.put)


# -- classes by identity -----------------------------------------------------------------------------------------------

CLASSES = """
import enum
from dataclasses import dataclass
class Base:
    def twin(self): return type(self)()
    def friend(self): return Friend(self)
class Point(Base):
    def __init__(self, x=0): self.x = x
    def __eq__(self, other): return isinstance(other, Point) and other.x == self.x
    def move(self): return Point(self.x + 1)
    def up(self): return super().twin()
class Friend:
    def __init__(self, of): self.of = of
    def back(self): return Point(5)
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
    def other(self): return Colour.BLUE
@dataclass(frozen=True)
class Row:
    a: int
    colour: Colour = Colour.RED
def work(p):
    assert isinstance(p, Point)
    return [p.move(), Colour.RED, Row(3), Friend(p), Point, p.up()]
"""

#: a worker: gets a function and a call as bytes, gives the value as bytes
WORKER = """
import sys
from msgspec import msgpack
from jug_notebook.codec import *
from jug_notebook.model import FunctionBundle, Payload
from tests.codec.test_codec import Blobs
bundle, call, held = msgpack.decode(sys.stdin.buffer.read(), type=tuple[FunctionBundle, Payload, dict[str, bytes]])
blobs = Blobs(held)
function = load_function(bundle, blobs.get)
args, kwargs = load_call(call, (), blobs.get)
for _ in range(2):
    payload, named = dump_value(function(*args, **kwargs), blobs.put)
sys.stdout.buffer.write(msgpack.encode((payload, named, blobs)))
"""


def elsewhere(function: Any, *args: Any) -> tuple[Payload, bytes, Blobs]:
    """Call a function in a fresh process."""
    blobs = Blobs()
    bundle = dump_function(function, examine(function), blobs.put)
    call = dump_call(args, {}, (), blobs.put)
    run = subprocess.run(
        [sys.executable, "-c", WORKER],
        input=msgpack.encode((bundle, call, dict(blobs))),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    payload, named, held = msgpack.decode(run.stdout, type=tuple[Payload, bytes, dict[str, bytes]])
    return payload, named, Blobs(held)


def test_what_comes_back_from_a_worker_is_of_the_kernels_own_classes(notebook: dict[str, Any]) -> None:
    cell(CLASSES, notebook)
    payload, named, blobs = elsewhere(notebook["work"], notebook["Point"](1))
    moved, red, row, friend, point, up = load_value(payload, blobs.get)
    assert type(moved) is notebook["Point"]
    assert moved == notebook["Point"](2)
    assert red is notebook["Colour"].RED
    assert row == notebook["Row"](3)
    assert row.colour is red
    assert type(friend) is notebook["Friend"]
    assert type(friend.of) is type(up) is point is notebook["Point"]
    value = [moved, red, row, friend, point, up]
    assert named == dump_value(value, blobs.put)[1]


def test_a_restarted_kernel_that_runs_the_cell_again_takes_its_new_classes(
    notebook: dict[str, Any], blobs: Blobs
) -> None:
    cell(CLASSES, notebook)
    payload, _ = dump_value(notebook["Point"](1), blobs.put)
    cell("# edited comment\n" + CLASSES, notebook)
    assert type(load_value(payload, blobs.get)) is notebook["Point"]


def test_an_edited_class_leaves_old_values_their_old_class(notebook: dict[str, Any], blobs: Blobs) -> None:
    cell(CLASSES, notebook)
    payload, _ = dump_value([notebook["Point"](1), notebook["Colour"].RED], blobs.put)
    old = notebook["Point"]
    cell(CLASSES.replace("self.x + 1", "self.x + 2"), notebook)
    point, colour = load_value(payload, blobs.get)
    assert type(point) is old
    assert colour is notebook["Colour"].RED
    assert point.move().x == 2


BUILD = """
import sys
from msgspec import msgpack
from jug_notebook.codec import *
from jug_notebook.model import Payload
from tests.codec.test_codec import Blobs
payload, held = msgpack.decode(sys.stdin.buffer.read(), type=tuple[Payload, dict[str, bytes]])
blobs = Blobs(held)
one = load_value(payload, blobs.get)
two = load_value(payload, blobs.get)
point, colour, row, friend = one
assert [type(a) for a in one] == [type(a) for a in two] and colour is two[1]
assert type(point.move()) is type(point) is type(friend.back()) and type(point.friend()) is type(friend)
assert type(point.up()) is type(point) and isinstance(point, type(point).__mro__[1])
assert colour.other() is type(colour).BLUE and row.colour is colour and row == two[2]
payload, named = dump_value(one, blobs.put)
sys.stdout.buffer.write(msgpack.encode((payload, named, blobs)))
"""


def test_a_process_without_the_classes_builds_them_once(notebook: dict[str, Any], blobs: Blobs) -> None:
    cell(CLASSES, notebook)
    point = notebook["Point"](1)
    value = [point, notebook["Colour"].RED, notebook["Row"](3), notebook["Friend"](point)]
    payload, named = dump_value(value, blobs.put)
    run = subprocess.run(
        [sys.executable, "-c", BUILD],
        input=msgpack.encode((payload, dict(blobs))),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    _, named_again, _ = msgpack.decode(run.stdout, type=tuple[Payload, bytes, dict[str, bytes]])
    assert named_again == named


def test_the_blob_of_a_class_is_among_the_payloads_addresses(notebook: dict[str, Any], blobs: Blobs) -> None:
    cell(CLASSES, notebook)
    payload, _ = dump_value([notebook["Point"](1), np.zeros(INLINE)], blobs.put)
    assert set(payload.buffers) == set(blobs)
    assert (load_value(payload, blobs.get)[1] == 0).all()


def test_local_classes_and_functions_come_back(notebook: dict[str, Any], blobs: Blobs) -> None:
    cell(
        "def make():\n    class Inner:\n        k = 3\n    return Inner()\ndef twice(f): return lambda x: f(f(x))",
        notebook,
    )
    inner = notebook["make"]()
    assert type(again(inner, blobs)) is type(inner)
    assert again(notebook["twice"](abs), blobs)(-3) == 3


KINDS = """
import enum, abc, typing, collections, functools, threading
from dataclasses import dataclass, field
from typing import NamedTuple, Generic, TypeVar, Protocol, TypedDict
T = TypeVar("T")
class F(enum.Flag):
    A=enum.auto(); B=enum.auto(); AB=A|B
class I(enum.IntEnum):
    X=1; Y=2
class S(enum.StrEnum):
    P="p"
class Planet(enum.Enum):
    E=(1,2)
    def __init__(self,a,b): self.a=a; self.b=b
    @property
    def total(self): return self.a+self.b
class NT(NamedTuple):
    a: int
    b: str = "x"
    def hello(self): return self.a
CN = collections.namedtuple("CN","p q")
@dataclass(slots=True)
class DS:
    a: int
    b: list = field(default_factory=list)
    def m(self): return DS(self.a)
class AB(abc.ABC):
    @abc.abstractmethod
    def run(self): ...
class Impl(AB):
    def run(self): return 1
class G(Generic[T]):
    def __init__(self,x:T): self.x=x
class Meta(type):
    def __new__(m,n,b,d):
        d["added"]=1
        return super().__new__(m,n,b,d)
class WithMeta(metaclass=Meta):
    @functools.cached_property
    def big(self): return 5
    @staticmethod
    def st(): return 1
    class Inner:
        k=2
class Sl:
    __slots__=("a","b")
    def __init__(self): self.a=1
class Err(ValueError):
    def __init__(self,a): super().__init__(a); self.a=a
class Pr(Protocol):
    def go(self)->int: ...
class TD(TypedDict):
    a: int

def make():
    made = [F.AB, F.A, I.X, S.P, Planet.E, NT(1), CN(1, 2), DS(3).m(), Impl(), G(3), WithMeta(), WithMeta.Inner()]
    return [*made, Sl(), Err(3), TD(a=1), F, I, S, Planet, NT, CN, DS, AB, Impl, G, WithMeta, Sl, Err, Pr, TD]
def use(values):
    flag, planet, row, big = values[0], values[4], values[5], values[10]
    assert flag.name == "AB" and planet.total == 3 and row.hello() == 1 and big.big == 5 and big.added == 1
    assert not hasattr(values[7], "__dict__") and not hasattr(values[12], "__dict__")
    return make()
"""


def test_classes_of_every_kind_keep_identity_and_digest_across_processes(notebook: dict[str, Any]) -> None:
    cell(KINDS, notebook)
    payload, named, blobs = elsewhere(notebook["use"], notebook["make"]())
    before = [class_digest(value) for value in notebook["make"]() if isinstance(value, type)]
    cell("# again\n" + KINDS, notebook)
    assert [class_digest(value) for value in notebook["make"]() if isinstance(value, type)] == before
    found = load_value(payload, blobs.get)
    for theirs, ours in zip(found, notebook["make"](), strict=True):
        assert type(theirs) is type(ours)
        assert theirs is ours or not isinstance(ours, type)
    assert found[0] is notebook["F"].AB
    assert dump_value(found, blobs.put)[1] == named


# -- functions ---------------------------------------------------------------------------------------------------------

LINES = """
SCALE = 2
def inner(x):
    return SCALE / x  # the culprit

def f(x):
    return inner(x)
"""

SHOW = """
import sys, traceback
from msgspec import msgpack
from jug_notebook.codec import load_function
from jug_notebook.model import FunctionBundle
function = load_function(msgpack.decode(sys.stdin.buffer.read(), type=FunctionBundle), None)
print(function(2))
try:
    function(0)
except ZeroDivisionError:
    traceback.print_exc(file=sys.stdout)
print([m for m in ("IPython", "numpy") if m in sys.modules])
"""


def test_a_fresh_process_shows_the_cells_lines_in_its_traceback(blobs: Blobs) -> None:
    space = cell(LINES)
    file = space["f"].__code__.co_filename
    bundle = dump_function(space["f"], examine(space["f"]), blobs.put, {file: "Cell In[3]", "other": "Cell In[4]"}.get)
    assert bundle.labels == {file: "Cell In[3]"}
    assert bundle.parts["helper inner"]
    run = subprocess.run(
        [sys.executable, "-c", SHOW],
        input=msgpack.encode(bundle),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    printed = run.stdout.decode()
    assert run.returncode == 0, run.stderr.decode()
    assert printed.startswith("1.0\n")
    assert "return SCALE / x  # the culprit" in printed
    assert "line 4, in inner" in printed
    assert printed.endswith("[]\n")


def test_only_names_that_the_key_covers_travel(blobs: Blobs) -> None:
    space = cell("SECRET = 'do not ship'\nX = 3\ndef f():\n    class C:\n        x = X\n    return C.x")
    bundle = dump_function(space["f"], examine(space["f"]), blobs.put)
    assert b"do not ship" not in bundle.function
    assert load_function(bundle, blobs.get)() == 3


def test_task_functions_inside_a_function_travel_plain(blobs: Blobs) -> None:
    import jug_notebook as jn

    space = cell("def helper(x): return x + 1\ndef f(x): return helper(x) * 2")
    space["helper"] = jn.task(space["helper"])
    function = load_function(dump_function(space["f"], examine(space["f"]), blobs.put), blobs.get)
    assert function(1) == 4


def test_a_recursive_task_function_is_plain_all_the_way(blobs: Blobs) -> None:
    import jug_notebook as jn

    space = cell("def fact(n): return n * fact(n - 1) if n else 1")
    space["fact"] = jn.task(space["fact"])
    function = load_function(dump_function(space["fact"], examine(space["fact"]), blobs.put), blobs.get)
    assert function(5) == 120


def test_lambdas_partials_methods_and_classes_travel(notebook: dict[str, Any], blobs: Blobs) -> None:
    cell(CLASSES + "\nf = lambda x: x + 1\n", notebook)
    for made, args, wanted in [
        (notebook["f"], (1,), 2),
        (functools.partial(notebook["f"], 2), (), 3),
        (notebook["Point"](4).move, (), notebook["Point"](5)),
        (notebook["Point"], (7,), notebook["Point"](7)),
        (len, ([1, 2],), 2),
    ]:
        assert load_function(dump_function(made, examine(made), blobs.put), blobs.get)(*args) == wanted


ELSEWHERE = """
import sys
from msgspec import msgpack
from jug_notebook.codec import load_function, needs_exact
from jug_notebook.model import FunctionBundle
parcels, clean = msgpack.decode(sys.stdin.buffer.read(), type=tuple[list[FunctionBundle], bool])
for bundle in parcels:
    print(load_function(bundle, None, exact=clean or needs_exact(bundle))())
"""


def told_elsewhere(*functions: Callable[..., Any], clean: bool = False) -> list[str]:
    """What functions answer in another process, one after the other."""
    bundles = [dump_function(each, examine(each), Blobs().put) for each in functions]
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=msgpack.encode((bundles, clean)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode().splitlines()


HARD_TO_SEND = {
    "cached functions": """
        import functools
        @functools.cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        @functools.lru_cache(maxsize=3, typed=True)
        def twice(n): return 2 * n
        twice.note = 5
        def f(): return fib(30), twice(2), twice.note, twice.cache_parameters()
    """,
    "new types": """
        import typing
        class A: pass
        Name, Mine = typing.NewType("Name", str), typing.NewType("Mine", A)
        def f(): return Name("a"), Name.__supertype__, Name.__module__, Mine.__supertype__ is A
    """,
    "what a class takes from one of its bases": """
        class Far:
            x, y = 1, 2
            def m(self): return "far"
            def __len__(self): return 1
        class Near(Far): pass
        class Other:
            x, y = 3, 2
            def m(self): return "other"
            def __len__(self): return 2
        class C(Near, Other):
            x, m, __len__ = Other.x, Other.m, Other.__len__
        def f(): return C.x, C().m(), len(C()), C.y
    """,
    "attributes in their order": """
        class C:
            b = d = a = c = 0
            def z(self): return 0
            e = 1
        def f(): return [name for name in vars(C) if name[0] != "_"]
    """,
    "annotations": """
        class C:
            x: int
            y: "list[str]" = None
        def g(a: C, *b: str) -> float: pass
        def f(): return C.__annotations__, [(name, note.__name__) for name, note in g.__annotations__.items()]
    """,
}
if sys.version_info >= (3, 14):  # earlier versions look at annotations when a function is defined
    HARD_TO_SEND["annotations that only a type checker can read"] = """
        from annotationlib import Format, get_annotations
        class C:
            x: int
            y: list[Missing] = None
        def g(a: Missing.Part, *, b: int = 1) -> list[Missing]: pass
        def f(x: Missing = 1): return [get_annotations(one, format=Format.STRING) for one in (C, g)]
    """


@pytest.mark.parametrize("kind", HARD_TO_SEND)
def test_what_is_hard_to_send_is_the_same_elsewhere(notebook: dict[str, Any], kind: str) -> None:
    cell(HARD_TO_SEND[kind], notebook)
    assert told_elsewhere(notebook["f"]) == [str(notebook["f"]())]


def test_a_class_that_is_the_same_but_for_its_docstrings_has_those_of_the_function_that_looks_at_them() -> None:
    source = """
        class A:
            "one"
            def m(self): "one too"
            a = b = 0
        def f(): return A.__doc__, A().m.__doc__, [name for name in vars(A) if name[0] != "_"]
    """
    one, two = cell(source)["f"], cell(source.replace("one", "two").replace("a = b", "b = a"))["f"]
    assert class_digest(one.__globals__["A"]) == class_digest(two.__globals__["A"])
    assert told_elsewhere(one, two, one) == [str(one()), str(two()), str(one())]


def test_a_class_that_a_call_changed_can_be_had_as_it_was() -> None:
    function = cell("""
        class C:
            n, seen = 0, []
            def bump(self, more=[]):
                more.append(1)
                C.n += 1
                C.seen.append(C.n)
                C.new = True
                return self.n, C.seen, more
        def f(): return hasattr(C, "new"), C().bump()
    """)["f"]
    assert set(told_elsewhere(function, function, function, clean=True)) == {"(False, (1, [1], [1]))"}


MODULES = """
import sys
from msgspec import msgpack
from jug_notebook.codec import load_function, use_modules
from jug_notebook.model import FunctionBundle
from tests.codec.test_codec import Blobs
parcels, held = msgpack.decode(sys.stdin.buffer.read(), type=tuple[list[FunctionBundle], dict[str, bytes]])
blobs = Blobs(held)
functions = [load_function(bundle, blobs.get) for bundle in parcels]
for turn in (0, 1, 0, 1):
    use_modules(parcels[turn])
    print(functions[turn](1))
import jnpack
print(jnpack.__file__ == __import__("os").path.abspath("jnpack/__init__.py"))
try:
    import jnpack.absent
except ImportError:
    print("absent")
"""


def test_project_modules_travel_as_text_and_versions_are_never_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blobs: Blobs
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "jnpack"
    package.mkdir()
    bundles = []
    for version in (1, 2):
        for name in [name for name in sys.modules if name.partition(".")[0] == "jnpack"]:
            monkeypatch.delitem(sys.modules, name)
        (package / "__init__.py").write_text("from .deep import add\n")
        (package / "deep.py").write_text(
            f"def add(x): return x + {version}\ndef late(x): return x * {version}{' ' * version}\n"
        )
        space = cell("import jnpack\ndef f(x):\n    from jnpack.deep import late\n    return jnpack.add(x), late(x)")
        code = examine(space["f"], project=tmp_path)
        assert code.modules == {"jnpack"}
        bundles.append(dump_function(space["f"], code, blobs.put))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [name for name in sys.modules if name.partition(".")[0] == "jnpack"]:
        monkeypatch.delitem(sys.modules, name)
    run = subprocess.run(
        [sys.executable, "-c", MODULES],
        input=msgpack.encode((bundles, dict(blobs))),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout.decode().split("\n")[:6] == ["(2, 1)", "(3, 2)", "(2, 1)", "(3, 2)", "True", "absent"]


CARRIED = """
import sys
from msgspec import msgpack
from jug_notebook.codec import dump_value, load_call
from jug_notebook.model import Payload
from tests.codec.test_codec import Blobs
call, held = msgpack.decode(sys.stdin.buffer.read(), type=tuple[Payload, dict[str, bytes]])
blobs = Blobs(held)
args, kwargs = load_call(call, (), blobs.get)
payload, _ = dump_value([args[0].twice(), type(args[0])], blobs.put)
sys.stdout.buffer.write(msgpack.encode((payload, blobs)))
"""


def test_arguments_of_a_projects_class_bring_their_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blobs: Blobs
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "jnnear.py").write_text("def double(x): return x * 2\n")
    (tmp_path / "jnshapes.py").write_text(
        "from jnnear import double\nclass Box:\n    def __init__(self, x): self.x = x\n"
        "    def twice(self): return Box(double(self.x))\n"
    )
    from jnshapes import Box  # type: ignore[import-not-found]

    examine(Box, project=tmp_path)
    before = digest(Box(3))
    call = dump_call((Box(3),), {}, (), blobs.put)
    run = subprocess.run(
        [sys.executable, "-c", CARRIED],
        input=msgpack.encode((call, dict(blobs))),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    payload, held = msgpack.decode(run.stdout, type=tuple[Payload, dict[str, bytes]])
    box, kind = load_value(payload, Blobs(held).get)
    assert kind is type(box) is Box
    assert box.x == 6
    monkeypatch.setattr(Box, "extra", 1, raising=False)
    assert digest(Box(3)) != before


# -- exceptions --------------------------------------------------------------------------------------------------------


def test_exceptions_travel_where_they_can(notebook: dict[str, Any]) -> None:
    found = load_exception(dump_exception(KeyError("x")))
    assert isinstance(found, KeyError)
    assert found.args == ("x",)
    cell("class Mine(ValueError): pass", notebook)
    assert type(load_exception(dump_exception(notebook["Mine"]("y")))) is notebook["Mine"]


def test_exceptions_that_cannot_travel_are_nothing() -> None:
    class Picky(Exception):  # made here: libraries register those that there are when they are imported
        def __init__(self, one: int, two: int) -> None:
            super().__init__("no")

    assert dump_exception(Picky(1, 2)) == b""
    assert dump_exception(ValueError(threading.Lock())) == b""
    assert load_exception(b"") is None
    assert load_exception(pickle.dumps(3)) is None
    assert load_exception(b"rubbish") is None


# -- in words ----------------------------------------------------------------------------------------------------------


class Liar:
    __slots__ = ()

    @property
    def shape(self) -> Any:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (25, "int 25"),
        (None, "None"),
        (True, "bool True"),
        ("abc", "str 'abc'"),
        (np.zeros((3, 4)), "ndarray float64 (3, 4), 96 B"),
        (list(range(99)), "list of 99"),
        ({"a": 1, "b": 2}, "dict of 2: 'a', 'b'"),
        (pd.DataFrame({"x": [1, 2], "y": [3, 4]}), "DataFrame 2 rows × 2 columns: x, y"),
        (b"x" * 1500, "bytes 1.5 kB"),
        (Pair(1, 2), "Pair(a=1, b=2)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_summaries_say_type_shape_and_size(value: Any, expected: str) -> None:
    assert summarise(value) == expected


@settings(max_examples=100, deadline=None)
@given(values)
def test_summaries_are_one_short_line(value: Any) -> None:
    for text, width in ((summarise(value), 80), (describe_arguments([("a", value), ("b", value)]), 120)):
        assert len(text) <= width
        assert "\n" not in text


@pytest.mark.parametrize(
    "value",
    [Liar(), Sulky(), [Liar()], {"a": Sulky()}, 10**100_000, "x" * 10**7, [[[[[[[1]]]]]]]],
    ids=lambda value: type(value).__name__,
)
def test_summaries_never_raise(value: Any) -> None:
    assert summarise(value)
    assert describe_arguments([("v", value)])


def test_summaries_of_large_things_are_quick() -> None:
    class Big:
        def __init__(self) -> None:
            self.rows = [[0] * 10] * 1_000_000

        def __repr__(self) -> str:
            raise AssertionError("a long repr was asked for")

    for value in ([[0] * 10] * 1_000_000, Big(), dict.fromkeys(range(1_000_000))):
        begin = time.perf_counter()
        summarise(value)
        describe_arguments([("v", value)])
        assert time.perf_counter() - begin < 0.05


def test_arguments_are_described_in_order() -> None:
    output = describe_arguments([("n", 3), ("mode", "fast"), ("a", np.zeros(4)), ("f", math.sqrt)])
    assert output == "n=3, mode='fast', a=<ndarray float64 (4,), 32 B>, f=sqrt"


def test_a_dispatching_function_travels_with_all_it_dispatches_to() -> None:
    function, blobs = cell(DISPATCH)["f"], Blobs()
    there = load_function(dump_function(function, examine(function), blobs.put), blobs.get)
    assert (there(3), there("a")) == (1, 0)


# -- a large value dies with its last reference ------------------------------------------------------------------------


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The cyclic collector is off: what is still alive is referred to by something, if only by a cycle."""
    gc.disable()
    yield
    gc.enable()


class WithData:
    def __init__(self, data: Any) -> None:
        self.data = data


@pytest.fixture(params=["itself", "list", "imported class", "class that travels"])
def hold(request: pytest.FixtureRequest, notebook: dict[str, Any]) -> Callable[[Any], Any]:
    cell("class Travels:\n    def __init__(self, data):\n        self.data = data\n", notebook)
    ways: dict[str, Callable[[Any], Any]] = {"itself": lambda array: array, "list": lambda array: [array]}
    return {**ways, "imported class": WithData, "class that travels": notebook["Travels"]}[request.param]


def large_array() -> Any:
    return np.arange(100_000.0)


def dump_as_function(value: Any, put: Any) -> None:
    def function() -> Any:
        return value

    dump_function(function, examine(function, project=ROOT), put)


WAYS_TO_DUMP: dict[str, Callable[[Any, Any], Any]] = {
    "a value": dump_value,
    "a value that can't be hashed": lambda value, put: dump_value([value, iter([])], put),
    "an argument": lambda value, put: dump_call((value,), {}, [], put),
    "an argument of many calls": share,
    "an argument that is stored once": lambda value, put: dump_call((value,), {}, [], put_once(put)),
    "a closure": dump_as_function,
}


@pytest.mark.parametrize("way", WAYS_TO_DUMP)
def test_a_dumped_array_dies_with_its_last_reference(
    blobs: Blobs, uncollected: None, way: str, hold: Callable[[Any], Any]
) -> None:
    array = large_array()
    alive = weakref.ref(array)
    WAYS_TO_DUMP[way](hold(array), blobs.put)
    del array
    assert alive() is None


def test_an_array_in_what_cant_be_stored_dies_with_its_last_reference(blobs: Blobs, uncollected: None) -> None:
    array = large_array()
    alive = weakref.ref(array)
    with pytest.raises(Unstorable):
        dump_value([array, threading.Lock()], blobs.put)
    del array
    assert alive() is None


def test_a_loaded_array_dies_with_its_last_reference(
    blobs: Blobs, uncollected: None, hold: Callable[[Any], Any]
) -> None:
    array = large_array()
    value = load_value(dump_value(hold(array), blobs.put)[0], blobs.get)
    loaded = value.data if hasattr(value, "__dict__") else value[0] if isinstance(value, list) else value
    alive = weakref.ref(loaded)
    del value, loaded
    assert alive() is None


def test_the_value_of_a_need_and_a_shared_argument_die_with_their_last_reference(
    blobs: Blobs, uncollected: None
) -> None:
    array = large_array()
    call = dump_call((Handle("k" * 40), share(array, blobs.put)), {}, ["k" * 40], blobs.put)
    (need, shared), _ = load_call(call, [array], blobs.get)
    assert need is array
    alive = [weakref.ref(array), weakref.ref(shared)]
    del array, need, shared
    assert all(one() is None for one in alive)
