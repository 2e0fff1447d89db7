"""Equal values have equal digests, unequal ones don't, and what can't be hashed reliably is refused."""

from __future__ import annotations

import array
import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import itertools
import math
import os
import pathlib
import pickle
import random
import re
import socket
import struct
import sys
import threading
import types
import typing
import uuid
import zoneinfo
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jug_notebook.errors import Unhashable
from jug_notebook.keys import register
from jug_notebook.keys.digest import Encoder, digest, name_call, remembering
from jug_notebook.model import Reference
from jug_notebook.task.patterns import unordered
from tests.workbench import with_hash_seeds

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")


class Plain:
    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


class Other(Plain):
    pass


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Cached(Plain):
    @functools.cached_property
    def dear(self) -> int:
        return 1


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass
class Spot:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    x: Any


@attrs.define
class Attr:
    x: Any


@attrs.frozen(cache_hash=True, slots=False)
class Hashed:
    x: Any


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Paint(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(typing.NamedTuple):
    a: Any
    b: Any = None


class Couple(typing.NamedTuple):
    a: Any
    b: Any = None


class MyDict(dict[Any, Any]):
    pass


class MyList(list[Any]):
    pass


class MySet(set[Any]):
    pass


class MyTuple(tuple[Any, ...]):
    pass


class MyStr(str):
    pass


class MyInt(int):
    pass


class MyFloat(float):
    pass


class MyOrdered(collections.OrderedDict[Any, Any]):
    pass


class Hooked:
    def __init__(self, answer: Any) -> None:
        self.answer, self.lock = answer, threading.Lock()

    def __jug_hash__(self) -> Any:
        return self.answer


class HookedToo(Hooked):
    pass


class Need:
    def __init__(self, key: str, *steps: tuple[str, Any]) -> None:
        self.reference = Reference(key, steps)

    def __jug_reference__(self) -> Reference:
        return self.reference

    def __hash__(self) -> int:
        return hash(self.reference.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Need) and other.reference == self.reference


def deep(levels: int, inner: Any = None) -> Any:
    value: Any = inner
    for _ in range(levels):
        value = [value]
    return value


# -- unequal values differ ---------------------------------------------------------------------------------------------

NOON = dt.datetime(2024, 7, 1, 12, 0)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")

#: no two of these are the same thing
APART: dict[str, Any] = {
    "none": None,
    "false": False,
    "zero": 0,
    "true": True,
    "one": 1,
    "one, float": 1.0,
    "one, complex": 1 + 0j,
    "one, numpy int64": np.int64(1),
    "one, numpy int32": np.int32(1),
    "one, numpy float64": np.float64(1),
    "one, numpy bool": np.bool_(True),
    "one, array": np.array(1),
    "one, decimal": decimal.Decimal(1),
    "one, decimal with a place": decimal.Decimal("1.0"),
    "one, fraction": fractions.Fraction(1),
    "one, text": "1",
    "one, bytes": b"1",
    "one, bytearray": bytearray(b"1"),
    "one, memoryview": memoryview(b"1"),
    "one, numpy text": np.str_("1"),
    "one, numpy bytes": np.bytes_(b"1"),
    "one, subclass of int": MyInt(1),
    "one, subclass of float": MyFloat(1),
    "one, subclass of str": MyStr("1"),
    "one, enum": Colour.RED,
    "one, other enum": Paint.RED,
    "two, enum": Colour.BLUE,
    "one, int enum": Level.LOW,
    "one, flag": Mode.READ,
    "three, flags": Mode.READ | Mode.WRITE,
    "zero, float": 0.0,
    "minus zero": -0.0,
    "complex minus zero": complex(1, -0.0),
    "nan": math.nan,
    "nan, numpy": np.float64("nan"),
    "nan, complex": complex(math.nan, 0),
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "big": 2**31,
    "bigger": 2**63,
    "huge": 2**5000,
    "huge, negative": -(2**5000),
    "ellipsis": ...,
    "not implemented": NotImplemented,
    "surrogate": "\ud800",
    "no text": "",
    "nul": "\0",
    "no bytes": b"",
    "no list": [],
    "no tuple": (),
    "no dict": {},
    "no set": set(),
    "no frozenset": frozenset(),
    "none in a list": [None],
    "none in a tuple": (None,),
    "none in a set": {None},
    "nesting": [[1], 2],
    "other nesting": [[1, 2]],
    "flat": [1, 2],
    "flat, other order": [2, 1],
    "flat, floats": [1.0, 2.0],
    "flat, mixed": [1, 2.0],
    "flat, bool": [True, 2],
    "flat, numpy": [np.int64(1), 2],
    "flat, list subclass": MyList([1, 2]),
    "flat, tuple": (1, 2),
    "flat, tuple subclass": MyTuple((1, 2)),
    "flat, namedtuple": Pair(1, 2),
    "flat, other namedtuple": Couple(1, 2),
    "flat, set": {1, 2},
    "flat, frozenset": frozenset({1, 2}),
    "flat, set subclass": MySet({1, 2}),
    "flat, deque": collections.deque([1, 2]),
    "flat, bounded deque": collections.deque([1, 2], maxlen=5),
    "flat, array": array.array("i", [1, 2]),
    "flat, long array": array.array("q", [1, 2]),
    "flat, ndarray": np.array([1, 2]),
    "flat, ndarray int32": np.array([1, 2], dtype="int32"),
    "flat, big endian": np.array([1, 2], dtype=">i8"),
    "flat, objects": np.array([1, 2], dtype=object),
    "flat, column": np.array([[1], [2]]),
    "flat, row": np.array([[1, 2]]),
    "flat, masked": np.ma.array([1, 2], mask=[False, True]),
    "flat, not masked": np.ma.array([1, 2]),
    "flat, record array": np.rec.fromarrays([[1, 2]], names="a"),
    "flat, series": pd.Series([1, 2]),
    "flat, named series": pd.Series([1, 2], name="a"),
    "flat, other index": pd.Series([1, 2], index=[1, 2]),
    "flat, nullable": pd.Series([1, 2], dtype="Int64"),
    "flat, index": pd.Index([1, 2]),
    "flat, range index": pd.RangeIndex(1, 3),
    "flat, frame": pd.DataFrame({"a": [1, 2]}),
    "strings that run into each other": ["ab", "c"],
    "strings that run otherwise": ["a", "bc"],
    "bytes that run into each other": [b"ab", b"c"],
    "bytes that run otherwise": [b"a", b"bc"],
    "dict": {"a": 1},
    "dict, other value": {"a": 2},
    "dict, other key": {"b": 1},
    "dict, number key": {1: 1},
    "dict, true key": {True: 1},
    "dict subclass": MyDict(a=1),
    "ordered dict": collections.OrderedDict(a=1),
    "ordered dict subclass": MyOrdered(a=1),
    "default dict": collections.defaultdict(int, a=1),
    "default dict of lists": collections.defaultdict(list, a=1),
    "counter": collections.Counter(a=1),
    "mapping proxy": types.MappingProxyType({"a": 1}),
    "namespace": types.SimpleNamespace(a=1),
    "object": Plain(a=1),
    "object, other value": Plain(a=2),
    "object, other class": Other(a=1),
    "slots": Slotted(1, 2),
    "slots, exchanged": Slotted(2, 1),
    "dataclass": Point(1),
    "other dataclass": Spot(1),
    "frozen dataclass": Fixed(1),
    "attrs": Attr(1),
    "attrs, other value": Attr(2),
    "class": Plain,
    "other class": Other,
    "builtin class": int,
    "hooked": Hooked("a"),
    "hooked, bytes": Hooked(b"a"),
    "hooked, other": Hooked("b"),
    "hooked, other class": HookedToo("a"),
    "range": range(3),
    "range from one": range(1, 3),
    "slice": slice(3),
    "slice with step": slice(None, 3, 1),
    "posix path": pathlib.PurePosixPath("a/b"),
    "windows path": pathlib.PureWindowsPath("a/b"),
    "path": pathlib.Path("a/b"),
    "path, other": pathlib.Path("a/c"),
    "naive": NOON,
    "utc": NOON.replace(tzinfo=dt.UTC),
    "offset": NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=2))),
    "zone": NOON.replace(tzinfo=BERLIN),
    "zone, later": NOON.replace(hour=13, tzinfo=BERLIN),
    "fold": NOON.replace(fold=1),
    "date": NOON.date(),
    "time": NOON.time(),
    "time with zone": NOON.time().replace(tzinfo=dt.UTC),
    "timestamp": pd.Timestamp(NOON),
    "timestamp with zone": pd.Timestamp(NOON, tz="UTC"),
    "datetime64": np.datetime64(NOON),
    "datetime64, seconds": np.datetime64(NOON, "s"),
    "nat": pd.NaT,
    "na": pd.NA,
    "timedelta": dt.timedelta(1),
    "pandas timedelta": pd.Timedelta(1, "D"),
    "timezone": dt.UTC,
    "zoneinfo": BERLIN,
    "period": pd.Period("2024-07"),
    "interval": pd.Interval(0, 1),
    "interval, closed left": pd.Interval(0, 1, closed="left"),
    "uuid": uuid.UUID(int=1),
    "pattern": re.compile("a"),
    "pattern with flags": re.compile("a", re.IGNORECASE),
    "pattern of bytes": re.compile(b"a"),
    "dtype": np.dtype("f8"),
    "dtype, big endian": np.dtype(">f8"),
    "dtype, fields": np.dtype([("a", "f8")]),
    "dtype, instants": np.dtype("M8[ns]"),
    "rng": np.random.default_rng(1),
    "rng, other seed": np.random.default_rng(2),
    "old rng": np.random.RandomState(1),
    "python's rng": random.Random(1),
    "exception": ValueError("a"),
    "other exception": TypeError("a"),
    "structured": np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
    "instants": np.array(["2024-01-01"], dtype="M8[D]"),
    "instants, ns": np.array(["2024-01-01"], dtype="M8[ns]"),
    "texts": np.array(["a", "b"]),
    "wider texts": np.array(["a", "b"], dtype="U5"),
    "categorical": pd.Categorical(["a", "b"]),
    "categorical, other order": pd.Categorical(["a", "b"], categories=["b", "a"]),
    "categorical, ordered": pd.Categorical(["a", "b"], ordered=True),
}


def test_no_two_different_things_share_a_digest() -> None:
    names = {name: digest(value) for name, value in APART.items()}
    same = [(a, b) for a, b in itertools.combinations(names, 2) if names[a] == names[b]]
    assert same == []
    assert {len(name) for name in names.values()} == {register.SIZE}


@pytest.mark.parametrize("name", APART)
def test_a_copy_has_the_digest_of_its_original(name: str) -> None:
    value = APART[name]
    again = value if isinstance(value, memoryview | types.MappingProxyType | Hooked) else copy.deepcopy(value)
    assert digest(again) == digest(value)
    assert digest([again, value]) == digest([value, again])


def test_digests_are_what_they_were() -> None:
    """To change one of these is to lose every stored result: raise SCHEME then."""
    known = {
        digest(3).hex(),
        digest([1, "a", 2.5, None, {"b": (True, b"x")}]).hex(),
        digest(list(range(100_000))).hex(),
        digest(np.arange(6, dtype="<i4").reshape(2, 3)).hex(),
    }
    assert known == KNOWN


KNOWN = {
    "ac76f0f1ac2f6850df1fa89acb3f69aa5039b1fc",
    "a72f446c823d53b684f4c51af82ffcc24586a536",
    "5b2cdd6088b3a048291808e17e951af47bc4c251",
    "3b277ab9edf0fbdaa0e1be1a23792e9691da502d",
}


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


ODD_ONES_OUT = [
    Level.LOW,
    MyInt(1),
    Plain(),
    np.array([1]),
    True,
    1.0,
    "1",
    None,
    b"1",
    np.int64(1),
    decimal.Decimal(1),
    2**70,
    [1],
    (),
    Word.A,
]


@pytest.mark.parametrize("plain", [1, 1.5, "a"])
@pytest.mark.parametrize("odd", ODD_ONES_OUT, ids=lambda odd: repr(odd).partition(" object at ")[0])
@pytest.mark.parametrize("length", [3, 10_000])
def test_one_odd_item_among_many_alike_is_seen(plain: Any, odd: Any, length: int) -> None:
    alike = [plain] * length
    other = [*alike[:-1], odd]
    assert digest(other) != digest(alike)
    assert digest({str(n): item for n, item in enumerate(other)}) != digest(
        dict.fromkeys(map(str, range(length)), plain)
    )


def test_halves_of_characters_and_numbers_beyond_64_bits_are_told_apart() -> None:
    values = [["\ud800"], ["\ud801"], ["?"], [2**64], [2**64 + 1], [-(2**63) - 1], [float(2**64)]]
    assert len({digest(value) for value in values}) == len(values)
    assert len({digest({"a": value[0], value[0]: 1}) for value in values}) == len(values)


def test_the_head_of_a_tuple_is_not_taken_for_true_and_a_number() -> None:
    nones = ord("g")
    spelled = [True, struct.unpack("<d", b"\0" * 7 + b"N")[0], *[None] * (nones - 1)]
    packed = (None,) * nones
    assert digest([*spelled, packed]) != digest([packed, *spelled])


def test_no_form_of_ours_starts_as_a_scalar_does() -> None:
    import marshal

    point = collections.namedtuple("point", "x")
    ours = [
        [1],
        (1,),
        {1},
        frozenset([1]),
        {"a": 1},
        {1: 1},
        b"a",
        1j,
        point(1),
        Plain(a=1),
        dt.date(2024, 1, 1),
        len,
        int,
    ]
    scalars = [None, True, False, ..., 1, 2**70, 1.0, "a"]

    def tag(value: Any) -> bytes:
        out = bytearray()
        Encoder(out).add(value)
        return bytes(out[:1])

    assert {tag(value) for value in scalars} == {marshal.dumps(value, 2)[:1] for value in scalars}
    assert {tag(value) for value in ours}.isdisjoint(map(tag, scalars))


def test_message_pack_still_writes_what_runs_are_made_of() -> None:
    assert register.pack([1, -1, 300, 2**40, 2.0, "é", None, True]) == (
        b"\x98\x01\xff\xcd\x01,\xcf\x00\x00\x01\x00\x00\x00\x00\x00\xcb@\x00\x00\x00\x00\x00\x00\x00\xa2\xc3\xa9\xc0\xc3"
    )


def test_marshal_still_writes_what_the_form_was_made_of() -> None:
    import marshal

    assert marshal.dumps([1, 2.0, "é", None, True, 2**40], 2) == (
        b"[\x06\x00\x00\x00i\x01\x00\x00\x00g\x00\x00\x00\x00\x00\x00\x00@u\x02\x00\x00\x00\xc3\xa9NT"
        b"l\x03\x00\x00\x00\x00\x00\x00\x00\x00\x04"
    )


# -- equal values agree ------------------------------------------------------------------------------------------------


def test_all_nans_are_one() -> None:
    import struct

    odd = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]
    assert digest(odd) == digest(math.nan) == digest(-math.nan)
    assert digest([1.0, odd]) == digest([1.0, math.nan])
    assert digest([odd, "a"]) == digest([-math.nan, "a"])
    assert digest({"a": odd}) == digest({"a": math.nan})
    assert digest([odd] * 5000) == digest([math.nan] * 5000)
    assert digest(complex(odd, 1)) == digest(complex(math.nan, 1))
    assert digest(np.float64(odd)) == digest(np.float64("nan"))
    assert name_call("c", "f", [("x", odd)]) == name_call("c", "f", [("x", math.nan)])


def test_infinities_that_sum_up_to_nan_stay_themselves() -> None:
    assert digest([math.inf, -math.inf]) != digest([math.nan, math.nan])
    assert digest([math.inf, -math.inf] * 3000) != digest([-math.inf, math.inf] * 3000)


def test_what_shares_its_parts_many_times_over_is_still_digested() -> None:
    tower: Any = [1.5]
    for _ in range(60):
        tower = [tower, tower]
    assert digest(tower) == digest(pickle.loads(pickle.dumps(tower)))


def test_the_order_of_a_dict_counts_since_a_function_that_iterates_sees_it() -> None:
    ordered = collections.OrderedDict
    for kind in (dict, MyDict, ordered, MyOrdered):
        assert digest(kind(a=1, b=[2])) == digest(kind(a=1, b=[2])) != digest(kind(b=[2], a=1))
    assert digest({1: 1, "b": [2], None: 3}) != digest({None: 3, "b": [2], 1: 1})
    assert digest(collections.Counter("aab")) != digest(collections.Counter("baa"))  # most_common() keeps it
    assert digest({"x": {"a": 1, "b": 2}}) != digest({"x": {"b": 2, "a": 1}})


def test_the_order_of_an_unordered_dict_does_not_count() -> None:
    one, other = unordered({"a": 1, 2: [3]}), unordered({2: [3], "a": 1})
    assert digest(one) == digest(other)
    assert len({digest(each) for each in (one, unordered({"a": 1, 2: [4]}), {"a": 1, 2: [3]}, unordered())}) == 4
    assert type(pickle.loads(pickle.dumps(one))) is dict


def test_attributes_count_in_no_order() -> None:
    assert digest(Plain(a=1, b=2)) == digest(Plain(b=2, a=1))


def test_a_value_that_was_cached_in_an_object_does_not_count() -> None:
    fresh, used = Cached(a=1), Cached(a=1)
    assert used.dear == 1
    assert digest(fresh) == digest(used)
    plain, hashed = Hashed(1), Hashed(1)
    hash(hashed)
    assert digest(plain) == digest(hashed)


def test_what_a_subclass_adds_counts() -> None:
    bare, more = MyList([1]), MyList([1])
    more.note = "a"  # type: ignore[attr-defined]
    assert digest(bare) != digest(more)
    ordered, noted = MyOrdered(a=1), MyOrdered(a=1)
    noted.note = "a"  # type: ignore[attr-defined]
    assert digest(ordered) != digest(noted)


def test_ranges_are_their_numbers() -> None:
    assert digest(range(0, 3, 2)) == digest(range(0, 4, 2))
    assert digest(range(0)) == digest(range(5, 2))
    assert digest(range(10**30)) != digest(range(10**30 + 1))


def test_one_instant_in_one_zone_is_one_value() -> None:
    summer = dt.datetime(2024, 7, 1, 12, tzinfo=BERLIN)
    assert digest(summer) == digest(dt.datetime.fromtimestamp(summer.timestamp(), BERLIN))
    twice = dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)
    assert digest(twice) != digest(twice.replace(fold=1))
    assert digest(dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=5)))) is not None


ROUTES: dict[str, tuple[list[Any], list[Any]]] = {
    "ints": (list(range(6000)), [0, *range(1, 6000)]),
    "floats": ([i / 2 for i in range(6000)], [i * 0.5 for i in range(6000)]),
    "big ints": ([2**i for i in range(100)] * 60, [1 << i for i in range(100)] * 60),
}


def test_a_time_that_the_clocks_leave_out_is_not_the_one_that_they_show_instead() -> None:
    left_out, real = (dt.datetime(2024, 3, 31, hour, 30, tzinfo=BERLIN) for hour in (2, 3))
    assert left_out.astimezone(dt.UTC) == real.astimezone(dt.UTC)
    assert digest(left_out) != digest(real)


@pytest.mark.parametrize("kind", ROUTES)
def test_a_long_list_is_the_same_by_any_route(kind: str) -> None:
    items, again = ROUTES[kind]
    assert digest(items) == digest(again) == digest(list(iter(items)))
    assert digest(items[:-1]) != digest(items)


def test_a_list_that_holds_itself_in_the_middle_does_not_stop_the_bulk_path() -> None:
    knot: list[Any] = [1] * 5000
    knot[1000] = knot[1001] = knot
    assert digest(knot) == digest(copy.deepcopy(knot))


# -- cycles and depth --------------------------------------------------------------------------------------------------


def test_what_contains_itself_is_digested() -> None:
    one: list[Any] = [1]
    one.append(one)
    two: list[Any] = [1]
    two.append(two)
    assert digest(one) == digest(two)
    assert digest(one) != digest([1, [1]])
    assert digest([one, one]) != digest([one, two])
    ring: dict[str, Any] = {}
    ring["me"] = [ring]
    assert digest(ring) == digest(copy.deepcopy(ring))
    thing = Plain(a=1)
    thing.me = thing  # type: ignore[attr-defined]
    assert digest(thing) == digest(copy.deepcopy(thing))
    subclass = MyOrdered()
    subclass["me"] = subclass
    subclass.me = subclass  # type: ignore[attr-defined]
    assert digest(subclass) == digest(copy.deepcopy(subclass))
    array = np.empty(1, dtype=object)
    array[0] = array
    assert len(digest(array)) == register.SIZE


def test_parents_and_children_that_know_each_other_are_digested_once() -> None:
    def family() -> Any:
        root = Plain(parent=None, children=[])
        for i in range(50):
            child = Plain(parent=root, children=[], n=i)
            child.children.append(Plain(parent=child, children=[]))  # type: ignore[attr-defined]
            root.children.append(child)  # type: ignore[attr-defined]
        return root

    assert digest(family()) == digest(family())


@pytest.mark.slow
def test_a_hundred_thousand_levels_are_no_matter() -> None:
    assert digest(deep(100_000)) == digest(deep(100_000))
    assert digest(deep(100_000)) != digest(deep(99_999))


def test_a_long_chain_of_objects_is_no_matter() -> None:
    def chain(length: int) -> Any:
        link = None
        for i in range(length):
            link = Plain(next=link, n=i)
        return link

    assert digest(chain(5000)) == digest(chain(5000))


def test_depth_does_not_change_where_a_cycle_leads() -> None:
    def knotted() -> Any:
        root: list[Any] = []
        root.append(deep(1000, root))
        return root

    assert digest(knotted()) == digest(knotted())


def test_trouble_deep_down_is_reported() -> None:
    with pytest.raises(Unhashable, match=r"^value\[0\]\[0\].*…"):
        digest(deep(3000, (x for x in [1])))


# -- other processes ---------------------------------------------------------------------------------------------------

ELSEWHERE = """
import collections, datetime, enum, pathlib, sys, types
import numpy as np, pandas as pd
from jug_notebook.keys.digest import digest
from jug_notebook.task.patterns import unordered
class Plain: pass
thing = Plain(); thing.tags = {"x", "y", "z", ("a", 1), None}
class E(enum.Enum): A = "a"
words = {f"w{i}" for i in range(50)}
values = [words, frozenset(words), {frozenset(words): words}, unordered({w: 1 for w in words}),
          collections.Counter(sorted(words)),
          thing, E.A, [{1, "a", None, (2, "b")}], np.array([words], dtype=object), pathlib.Path("a"),
          types.SimpleNamespace(w=words),
          pd.DataFrame({"a": ["x", "y"], "b": pd.Categorical(["p", "q"])}), datetime.datetime(2024, 1, 1), {E.A: words}]
sys.stdout.write("\\n".join(digest(v).hex() for v in values))
"""


@pytest.mark.slow
def test_fresh_processes_with_other_hash_seeds_agree() -> None:
    answers = with_hash_seeds(ELSEWHERE, 4)
    assert answers[0].count("\n") == 13
    assert len(set(answers)) == 1


# -- properties --------------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(), max_size=6)
    | st.binary(max_size=6)
    | st.sampled_from([1, 1.0, True, 0.0, -0.0, math.nan, "1", b"1", Colour.RED, np.int64(1), Fixed(1)])
)
hashables = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.builds(Point, inner, inner)
        | st.dictionaries(st.sampled_from("abc"), inner).map(lambda held: Plain(**held))
    ),
    max_leaves=12,
)


def other_way(value: Any) -> Any:
    """An equal value, built otherwise: sets and attributes reversed, every NaN another."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(other_way(item) for item in value)
    if kind in (set, frozenset):
        return kind(reversed([other_way(item) for item in value]))
    if kind is dict:
        return {other_way(key): other_way(item) for key, item in value.items()}
    if kind is Point:
        return Point(y=other_way(value.y), x=other_way(value.x))
    if kind is Plain:
        return Plain(**dict(reversed(other_way(vars(value)).items())))
    if kind is float:
        return value if value == value else -math.nan
    return pickle.loads(pickle.dumps(value))


def canon(value: Any) -> Any:
    """What a value is, spelt out, for comparing by ``==``: types kept apart, order left out where it doesn't count."""
    kind = type(value)
    if kind in (list, tuple):
        return (kind.__name__, [canon(item) for item in value])
    if kind in (set, frozenset):
        return (kind.__name__, sorted(repr(canon(item)) for item in value))
    if kind is dict:
        return ("dict", [(repr(canon(key)), repr(canon(item))) for key, item in value.items()])
    if kind in (Plain, Point):
        return (kind.__name__, sorted((name, repr(canon(item))) for name, item in vars(value).items()))
    return (kind.__name__, repr(value).replace("-nan", "nan"))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(values)
def test_equal_values_built_by_different_routes_agree(value: Any) -> None:
    assert digest(value) == digest(other_way(value))


@settings(max_examples=300, deadline=None)
@given(values, values)
def test_digests_agree_where_values_do_and_only_there(one: Any, two: Any) -> None:
    assert (digest(one) == digest(two)) == (repr(canon(one)) == repr(canon(two)))


@settings(max_examples=100, deadline=None)
@given(st.lists(scalars, max_size=6), st.lists(scalars, max_size=6))
def test_lists_run_into_nothing(one: list[Any], two: list[Any]) -> None:
    assert digest([one, two]) != digest([one + two])
    assert (digest([one, two]) == digest([two, one])) == (repr(canon(one)) == repr(canon(two)))


# -- what names itself, and what can't be named ------------------------------------------------------------------------


def test_an_object_that_names_itself_needs_no_other_name() -> None:
    assert digest(Hooked("a")) == digest(Hooked("a"))
    with pytest.raises(Unhashable, match="__jug_hash__ returns an int"):
        digest(Hooked(3))


def test_a_class_may_be_given_a_name_after_it_was_refused() -> None:
    class Late:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    with pytest.raises(Unhashable, match=r"value\.lock is a _thread.lock"):
        digest(Late())
    Late.__jug_hash__ = lambda self: "late"  # type: ignore[attr-defined]
    assert digest(Late()) == digest(Late())


async def _coroutine() -> None: ...


def _refusals() -> dict[str, Any]:
    coroutine = _coroutine()
    coroutine.close()
    return {
        "generator": (x for x in [1]),
        "iterator": iter([1]),
        "map": map(str, [1]),
        "zip": zip([1], strict=True),
        "enumerate": enumerate([1]),
        "file": open(os.devnull),
        "bytes file": io.BytesIO(b"a"),
        "lock": threading.Lock(),
        "rlock": threading.RLock(),
        "event": threading.Event(),
        "thread": threading.Thread(),
        "socket": socket.socket(),
        "coroutine": coroutine,
        "weak reference": __import__("weakref").ref(Plain),
        "frame": sys._getframe(),
        "dict view": {}.keys(),
    }


@pytest.mark.parametrize("kind", list(_refusals()))
def test_what_cannot_be_hashed_reliably_is_refused_with_a_way_out(kind: str) -> None:
    value = _refusals()[kind]
    with pytest.raises(Unhashable) as caught:
        name_call("c", "f", [("cfg", Plain(opts=[1, 2, 3, value]))])
    message = str(caught.value)
    assert message.startswith(("argument 'cfg'.opts[3] is a", "argument 'cfg'.opts[3]."))
    assert type(value).__qualname__ in message or ".opts[3]." in message  # itself, or something that it holds
    assert any(way_out in message for way_out in ("pass list(x)", "await x", "inside the task", "x.getvalue()"))
    if hasattr(value, "close"):
        value.close()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"b c": [iter(())]}}, r"\['a'\]\['b c'\]\[0\]"),
        ({1: iter(())}, r"\[1\]"),
        ({(1, 2): iter(())}, r"\[<tuple>\]"),
        ([0, Pair(1, iter(()))], r"\[1\]\.b"),
        (Point(1, iter(())), r"\.y"),
        (Slotted(1, iter(())), r"\.b"),
        (Attr(iter(())), r"\.x"),
        ({"k" * 100: iter(())}, r"\['k+…\]"),
        (np.array([None, iter(())], dtype=object), r"\[1\]"),
        (pd.DataFrame({"a": pd.Series([None, iter(())], dtype=object)}), r"\['a'\]\[1\]"),
    ],
)
def test_a_refusal_says_where(value: Any, path: str) -> None:
    with pytest.raises(Unhashable, match=rf"^argument 'x'{path} is a (list_|tuple_|)iterator"):
        name_call("c", "f", [("x", value)])


def test_trouble_in_the_users_own_reduce_is_a_refusal() -> None:
    class Broken:
        def __reduce__(self) -> Any:
            raise KeyError("inside")

    with pytest.raises(Unhashable, match="inside"):
        digest(Broken())


# -- entries -----------------------------------------------------------------------------------------------------------


def test_a_writer_is_found_by_name_and_holds_for_subclasses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        def __init__(self, it: Any, more: Any = None) -> None:
            self.it, self.more = iter([it]), more
            self.content = it

    class Odder(Odd):
        pass

    monkeypatch.setattr(register, "_registry", dict(register._registry))

    @register.writer_for(f"{__name__}.{Odd.__qualname__}", attributes=False)
    def _odd(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tagged("odd", (value.content,), path)

    assert digest(Odd(1)) == digest(Odd(1, more=2))
    assert len({digest(x) for x in (Odd(1), Odd(2), Odder(1))}) == 3
    register.WRITERS.clear()
    register.WRITERS.update(register._exact)


# -- naming calls ------------------------------------------------------------------------------------------------------

A, B, C = (letter * 40 for letter in "abc")


def test_a_call_is_named_by_code_name_labels_and_values() -> None:
    calls: list[tuple[str, str, list[tuple[str, Any]]]] = [
        ("c", "f", [("x", 1)]),
        ("d", "f", [("x", 1)]),
        ("c", "g", [("x", 1)]),
        ("c", "f", [("y", 1)]),
        ("c", "f", [("x", 2)]),
        ("c", "f", [("x", "1")]),
        ("c", "f", [("x", [1])]),
        ("c", "f", []),
        ("c", "f", [("x", 1), ("y", 1)]),
        ("cf", "", [("x", 1)]),
    ]
    names = {name_call(code, name, arguments).key for code, name, arguments in calls}
    assert len(names) == 10
    naming = name_call("c", "f", [("x", 1)])
    assert naming == name_call("c", "f", [("x", 1)])
    assert naming.needs == ()
    assert bytes.fromhex(naming.key) == naming.form


def test_needs_are_numbered_as_they_are_met_and_each_once() -> None:
    arguments = [("x", [Need(B), {"k": Need(A)}]), ("y", Need(B)), ("z", Plain(c=Need(C, ("item", 0))))]
    naming = name_call("c", "f", arguments)
    assert naming.needs == (B, A, C)
    assert naming.form != bytes.fromhex(naming.key)


def test_the_form_is_blind_to_the_keys_of_needs_and_the_key_is_not() -> None:
    one = name_call("c", "f", [("x", [Need(A), Need(B), Need(A)])])
    two = name_call("c", "f", [("x", [Need(C), Need(A), Need(C)])])
    three = name_call("c", "f", [("x", [Need(A), Need(B), Need(B)])])
    assert one.form == two.form != three.form
    assert len({one.key, two.key, three.key}) == 3


def test_the_steps_to_a_part_of_a_need_count() -> None:
    whole, part, other = Need(A), Need(A, ("item", 0)), Need(A, ("item", slice(1)))
    namings = [name_call("c", "f", [("x", need)]) for need in (whole, part, other)]
    assert len({naming.key for naming in namings}) == len({naming.form for naming in namings}) == 3
    assert {naming.needs for naming in namings} == {(A,)}
    assert len({digest(need) for need in (whole, part, other)}) == 3


@given(st.permutations([Need(A), Need(B), Need(C), 1, "x"]))
@settings(deadline=None)
def test_needs_in_sets_and_dicts_are_numbered_in_one_order(items: list[Any]) -> None:
    def naming(things: list[Any]) -> Any:
        return name_call("c", "f", [("s", set(things)), ("d", unordered({thing: [Need(B)] for thing in things}))])

    assert naming(items) == naming(sorted(items, key=repr))


def test_a_need_inside_something_heavy_is_found_each_time() -> None:
    heavy = [list(range(10_000)), Need(A)]
    with remembering():
        first = name_call("c", "f", [("x", heavy), ("y", heavy)])
        assert name_call("c", "f", [("x", heavy), ("y", heavy)]) == first
    assert first.needs == (A,)
    assert name_call("c", "f", [("x", heavy), ("y", heavy)]) == first


def test_within_a_map_a_heavy_argument_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from jug_notebook.keys import arrays as digest_arrays

    hashed = []
    body = digest_arrays._content

    def counting(*arguments: Any) -> None:
        hashed.append(1)
        body(*arguments)

    monkeypatch.setattr(digest_arrays, "_content", counting)
    heavy = np.arange(20_000)
    apart = [name_call("c", "f", [("x", [heavy]), ("n", n)]) for n in range(3)]
    assert len(hashed) == 3
    with remembering():
        assert [name_call("c", "f", [("x", [heavy]), ("n", n)]) for n in range(3)] == apart
    assert len(hashed) == 4


def test_outside_a_map_a_change_is_always_seen() -> None:
    a = np.arange(100_000)
    before = name_call("c", "f", [("x", a)])
    a[5] = 0
    assert name_call("c", "f", [("x", a)]) != before
    view = a[:]
    view.flags.writeable = False
    before = name_call("c", "f", [("x", view)])
    a[6] = 0
    assert name_call("c", "f", [("x", view)]) != before
