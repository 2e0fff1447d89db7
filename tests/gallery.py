# ruff: noqa: E501  (a table, and texts whose lines are what they are)
"""Values and functions to be digested in several processes: as a program, it prints a line ``name: digest`` for each.

``reverse`` as an argument makes everything in another order. Needs nothing but Python, the engine and, if there, numpy.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import itertools
import linecache
import math
import operator
import pathlib
import random
import re
import sys
import types
import typing
import uuid
import warnings
import zoneinfo
from typing import Any

from jug_notebook.keys.code import examine
from jug_notebook.keys.digest import digest

CODE = '''
import abc, collections, dataclasses, enum, functools, itertools, math, operator, os, re, sys, typing
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict, Generic, TypeVar, Protocol

T = TypeVar("T")
ALPHA, TABLE, TAGS = 0.1, {"b": 2, "a": [1, 2]}, {"x", "y", "z"}
PATTERN = re.compile("a+")

def plain(x, y=2, *args, k=ALPHA, **more):
    """Doc."""
    z = [x, y]
    if x and not y or k:
        z += [i * j for i in range(3) for j in z if j]
    elif y: pass
    else:
        while x: x -= 1
        else: return None
    return z, {*args}, {**more}, f"{x!r:>{y}} and {x=} {{}}"

def walrus(x):
    if (n := len(x)) > 1: return n
    return lambda q: q + n

def literals():
    return 1, 2.5, 3j, "s" 'joined', b"b", None, ..., True, (1, (2, 3)), {1, 2}, {"a": 1}, 10**30, -1, 1_000, 0xff, "\\u20ac"

def strings(a, b): return f"x{a}y{b!s}" "tail" f"{a:.3f}{{}}" + "abc"[a:b:2] + f'{a + b:{b}.{a}}' + f"nested {f'{a}'}"

def matched(x):
    match x:
        case 1 | 2: return "n"
        case [a, *rest] if a: return rest
        case {"k": v, **others}: return v, others
        case str() as s: return s
        case None | True: return None
        case Node(left=l): return l
        case _: return 0

def tried(x):
    try: return 1 / x
    except (ZeroDivisionError, ValueError) as e: raise KeyError(x) from e
    except* OSError: pass
    finally: print(x)

def tried_plain(x):
    try: y = 1 / x
    except ZeroDivisionError as e: raise KeyError(x) from e
    else: return y
    finally: print(x)

def grouped():
    try: pass
    except* OSError as e: print(e)

def generator(n):
    x = yield n
    yield from range(n)

async def coroutine(x):
    async with x as y, y:
        async for i in y: await i
    return [i async for i in x]

def comprehensions(x): return [a for a in x], {a for a in x}, {a: b for a, b in x}, (a for a in x), [[y for y in z if ALPHA] for z in x]

def unpacked(x):
    a, (b, *c), d = x
    a.b, x[0], x[1:2, ...] = c, *d,
    del a, x[0]
    return (*a, *b)

def with_inner(x):
    total: int = 0
    def inner(y: int = x) -> int:
        nonlocal total
        total += y
        return total
    class Local:
        a: int = 1
        def get(self): return ALPHA, __class__
    assert x, "why"
    return inner, Local

def annotated(a: int, b: "str" = "x") -> typing.List[int]: return [a]

def uses_many(): return ALPHA, TABLE, TAGS, PATTERN, math.pi, os.path.join, operator.add, sorted, collections.Counter, Point, Colour, Pair

def recursive(n): return n and other(n - 1)
def other(n): return recursive(n) + 1

def closure_of(n, text="t"):
    def inside(x): return x + n, text
    return inside
closed = closure_of(3)

@functools.lru_cache(maxsize=None)
def cached(x): return plain(x)

@functools.wraps(plain)
def wrapper(*a): return plain(*a)

@functools.singledispatch
def show(x): return 0
@show.register(int)
def _(x): return 1

def decorate(n):
    def deco(f):
        @functools.wraps(f)
        def inner(*a): return f(*a) * n
        return inner
    return deco

@decorate(3)
def decorated(x): return x

class Node:
    """A node."""
    limit = 3
    def __init__(self, left=None, right=None): self.left, self.right = left, right
    def __eq__(self, o): return self.left == o.left
    @property
    def p(self): return self.left
    @p.setter
    def p(self, v): self.left = v
    @staticmethod
    def s(x): return x
    @classmethod
    def c(cls): return cls()
    @functools.cached_property
    def dear(self): return super().__repr__()

class Sub(Node):
    __slots__ = ("extra",)
    def __init_subclass__(cls, **k): pass
    def area(self): return self.limit * ALPHA

@dataclass
class Point:
    x: int
    y: list = field(default_factory=list)
    z: float = 0.5
    def norm(self): return (self.x ** 2) ** 0.5

@dataclass(frozen=True, order=True, slots=True, kw_only=True)
class Spot:
    x: int
    tags: frozenset = frozenset({"p", "q"})

class Colour(enum.Enum):
    RED = 1
    BLUE = "b"
    def lower(self): return self.name.lower()

class Bits(enum.Flag):
    A = 1
    B = 2
    AB = 3

class Level(enum.IntEnum):
    LOW = 1
    HIGH = enum.auto()

class Word(enum.StrEnum):
    ONE = enum.auto()

class Pair(NamedTuple):
    a: int
    b: str = "x"

class Options(TypedDict, total=False):
    a: int

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...

class Box(Generic[T]):
    item: T
    def get(self) -> T: return self.item

class Can(Protocol):
    def can(self) -> int: ...

class Meta(type):
    def __new__(m, n, b, d): return super().__new__(m, n, b, d)
class Made(metaclass=Meta):
    a = 1

Old = collections.namedtuple("Old", "a b", defaults=[1])
two = (lambda x: x + 1, lambda x: x + 2)
partial = functools.partial(plain, 1, k=3)
method = Node(1).c
bound = Sub(2).area
def all_classes(): return Node, Sub, Point, Spot, Bits, Level, Word, Options, Shape, Box, Can, Made, Old, show, two
'''
CODE = CODE.replace("    except* OSError: pass\n    finally: print(x)", "    finally: print(x)")


def functions() -> dict[str, Any]:
    """The functions and classes of a cell."""
    name = "<ipython-input-1-gallery>"
    linecache.cache[name] = (len(CODE), None, CODE.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": "__main__"}
    sys.modules.setdefault("__main__", types.ModuleType("__main__"))
    exec(compile(CODE, name, "exec", dont_inherit=True), space)
    kept = {n: v for n, v in space.items() if callable(v) and not n.startswith("_") and not _imported(v)}
    kept |= {"first of two": space["two"][0], "second of two": space["two"][1]}
    kept.pop("T", None)
    return kept


def _imported(value: Any) -> bool:
    home = getattr(value, "__module__", None)
    return home in ("dataclasses", "typing", "functools", "builtins") and not isinstance(value, functools.partial)


@dataclasses.dataclass
class Spread:
    x: Any
    y: Any = dataclasses.field(default_factory=dict)


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class CurrentOutcome:
    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


class Named(typing.NamedTuple):
    a: Any
    b: Any = 1


def values(turn: Any = list) -> dict[str, Any]:
    """Values of every kind. ``turn`` orders what has no order."""
    words = turn([f"w{n}" for n in range(50)])
    mixed = turn([1, "a", None, (2, "b"), 2.5, b"x", frozenset({"p", "q"})])
    loop: list[Any] = [1]
    loop.append(loop)
    deep: Any = 1
    for _ in range(3000):
        deep = [deep]
    found: dict[str, Any] = {
        "int": 10**40, "bools": [True, 1, 1.0], "float": [0.1, -0.0, math.inf, math.nan], "complex": 1 - 2j,
        "str": "gr\u00fc\u00df\ud800", "bytes": b"\0\xff", "bytearray": bytearray(b"x"), "none": [None, ...],
        "list": [[1], [2, "a"]], "tuple": (1, (2,)), "set": set(words), "frozenset": frozenset(mixed),
        "dict": dict.fromkeys(sorted(words), 1), "dict of mixed": {1: "a", None: (2, "b"), "c": 2}, "long": list(range(10_000)),
        "floats": [n / 7 for n in range(10_000)], "strings": [f"s{n}" for n in range(10_000)],
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]), "counter": collections.Counter(sorted(words)),
        "defaultdict": collections.defaultdict(list, a=[1]), "deque": collections.deque([1, 2], 5),
        "chain": collections.ChainMap({"a": 1}, {"b": 2}), "named": Named(1), "dataclass": Spread(1, {"a"}),
        "enum": [Colour.RED, {Colour.BLUE: 1}], "object": CurrentOutcome(**dict.fromkeys(words, 2)), "path": pathlib.PurePosixPath("a/b"),
        "date": dt.date(2024, 2, 29), "time": dt.time(1, 2, 3), "datetime": dt.datetime(2024, 1, 2, 3, 4, 5, 6),
        "zone": dt.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        "utc": dt.datetime(2024, 7, 1, tzinfo=dt.UTC), "delta": dt.timedelta(1, 2, 3), "decimal": decimal.Decimal("1.10"),
        "fraction": fractions.Fraction(1, 3), "uuid": uuid.UUID(int=7), "range": range(0, 10, 3), "slice": slice(1, None),
        "pattern": re.compile("a+", re.I), "bytes pattern": re.compile(b"x"), "array": array.array("d", [1, 2]),
        "namespace": types.SimpleNamespace(**dict.fromkeys(words, 3)), "mapping": types.MappingProxyType({"a": 1}),
        "random": random.Random(3), "partial": functools.partial(int, base=2), "loop": loop, "deep": deep,
        "builtin": len, "method of str": "abc".join, "itemgetter": operator.itemgetter(1), "type": [int, dict, Colour, CurrentOutcome],
        "exception": ValueError("x", 1), "module-level": math.sin, "count": itertools.repeat(1, 2).__class__,
        "generic": list[int], "union": [int | None, typing.Optional[int]], "annotated": typing.Annotated[int, 5],  # noqa: UP045
        "field": dataclasses.field(default=3), "view": memoryview(b"abc"),
    }  # fmt: skip
    try:
        import numpy as np
    except ImportError:
        return found
    found |= {
        "ndarray": np.arange(12, dtype="<f8").reshape(3, 4), "object array": np.array([set(words), None], dtype=object),
        "structured": np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")]), "np scalar": [np.int64(1), np.float32(0.5)],
        "generator": np.random.default_rng(1), "state": np.random.RandomState(1), "masked": np.ma.masked_equal([1, 2], 1),
        "dates": np.array(["2024-01-01"], dtype="M8[D]"), "texts": np.array(["a", "bc"]), "dtype": np.dtype("<f4"),
        "ufunc": np.sin,
    }  # fmt: skip
    return found


def main() -> None:
    warnings.simplefilter("error")  # nothing here should go by byte code
    reverse = "reverse" in sys.argv
    found = values(lambda items: list(reversed(items)) if reverse else items)
    code = functions()
    names = [*(("value", n, v) for n, v in found.items()), *(("code", n, v) for n, v in code.items())]
    lines = []
    for kind, name, value in reversed(names) if reverse else names:
        try:
            outcome = digest(value).hex() if kind == "value" else examine(value).digest
        except Exception as error:  # a line of its own: the others are compared all the same
            outcome = f"{type(error).__name__}: {error}"[:200]
        lines.append(f"{kind} {name}: {outcome}")
    print("\n".join(sorted(lines)))


if __name__ == "__main__":
    main()
