"""Code digests: what changes them and what doesn't."""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
import linecache
import os
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jug_notebook.errors import BadTask, Opaque, Unhashable
from jug_notebook.keys import advice, callables, modules
from jug_notebook.keys.callables import source_of, travels
from jug_notebook.keys.cell_names import cell_function, cell_names
from jug_notebook.keys.code import class_digest, examine
from jug_notebook.keys.digest import digest
from jug_notebook.keys.modules import bundle

_number = itertools.count()


def cell(source: str, space: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a source as a notebook would: its text is known to linecache under a name of its own."""
    name = f"<ipython-input-{next(_number)}-test>"
    source = textwrap.dedent(source)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space = {} if space is None else space
    space.setdefault("__name__", "__main__")
    exec(compile(source, name, "exec", dont_inherit=True), space)
    return space


def name_of(source: str, function: str = "f", **options: Any) -> str:
    return examine(cell(source)[function], **options).digest


# -- cosmetics don't count ---------------------------------------------------------------------------------------------

PLAIN = """
def f(x, y=2):
    z = [x, y]
    if x:
        z.append('a' "b")
    return z
"""


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(PLAIN.replace("    if x:", "    # why\n\n    if x:  # yes"), id="comments"),
        pytest.param(PLAIN.replace("    z = ", '    """What it does."""\n    z = '), id="docstring"),
        pytest.param("import os\n\n\n\nother = 1\n" + PLAIN, id="position"),
        pytest.param(PLAIN.replace("[x, y]", "[\n   x ,\n   y,\n  ]").replace("'a' \"b\"", "'ab'"), id="formatting"),
        pytest.param(PLAIN.replace("x, y=2):", "x: int, y: 'str' = 2) -> list:"), id="annotations"),
        pytest.param(PLAIN.replace("z = ", "z: list = "), id="annotated local"),
        pytest.param(PLAIN.replace("y=2", "y=1 + 1"), id="text of a default with the same value"),
    ],
)
def test_what_means_nothing_changes_nothing(other: str) -> None:
    assert name_of(other) == name_of(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(PLAIN.replace("y=2", "y=3"), id="default"),
        pytest.param(PLAIN.replace("y=2", "y=2.0"), id="type of a default"),
        pytest.param(PLAIN.replace("y=2", "*, y=2"), id="kind of an argument"),
        pytest.param(PLAIN.replace('"b"', '"c"'), id="constant"),
        pytest.param(PLAIN.replace("return z", "return z[:]"), id="statement"),
        pytest.param(PLAIN.replace("def f", "def deco(g): return g\n@deco\ndef f"), id="decorator"),
    ],
)
def test_what_means_something_changes_the_digest(other: str) -> None:
    assert name_of(other) != name_of(PLAIN)


def test_a_docstring_that_is_read_counts() -> None:
    source = 'def f():\n    "one"\n    return f.__doc__\n'
    assert name_of(source) != name_of(source.replace("one", "two"))


def test_annotations_count_where_a_decorator_may_read_them() -> None:
    source = "def deco(g): return g\n@deco\ndef f(x: int): return x\n"
    assert name_of(source) != name_of(source.replace("int", "str"))


def test_a_class_with_annotations_inside_a_function_reads_no_annotations_of_others() -> None:
    source = "def g(x: int): return x\ndef f():\n    class C:\n        a: int = 1{}\n    return g(C.a)\n"
    plain, reading = source.format(""), source.format("\n        b = g.__annotations__")
    assert name_of(plain) == name_of(plain.replace("x: int", "x: str"))
    assert name_of(reading) != name_of(reading.replace("x: int", "x: str"))


def test_what_pickling_leaves_in_a_class_does_not_count() -> None:
    held = cell("class Held:\n    def __init__(self, **held): vars(self).update(held)\n")["Held"]
    before = examine(held).digest
    assert examine(held).digest == before
    held(a=1).__reduce_ex__(2)
    assert "__slotnames__" in vars(held)
    assert examine(held).digest == before


def test_our_own_decorator_does_not_count() -> None:
    bare = cell("def f(x): return x")["f"]
    made = cell("import jug_notebook as jn\n@jn.task(retries=3)\ndef f(x: int): return x")["f"]
    assert examine(made).digest == examine(bare).digest


# -- what a function reads --------------------------------------------------------------------------------------------

CHAIN = """
import math
ALPHA = 0.1
def norm(x): return math.hypot(x, 1)
def helper(x): return norm(x) * ALPHA
def f(x): return helper(x)
def unrelated(): return 1
"""


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("hypot(x, 1)", "hypot(x, 2)", {"helper norm"}),
        ("ALPHA = 0.1", "ALPHA = 0.2", {"global ALPHA"}),
        ("norm(x) * ALPHA", "norm(x) + ALPHA", {"helper helper"}),
        ("return 1", "return 2", set()),
    ],
)
def test_each_change_shows_in_its_own_part_alone(old: str, new: str, changed: set[str]) -> None:
    before = examine(cell(CHAIN)["f"])
    after = examine(cell(CHAIN.replace(old, new))["f"])
    assert before.parts.keys() == after.parts.keys()
    assert {part for part in before.parts if before.parts[part] != after.parts[part]} == changed
    assert (before.digest != after.digest) == bool(changed)


def test_a_global_that_is_rebound_or_changed_in_place_counts_at_once() -> None:
    space = cell("LIMIT = 3\nTABLE = [1]\ndef f(x): return x < LIMIT\ndef g(): return TABLE")
    first, second = examine(space["f"]).digest, examine(space["g"]).digest
    space["LIMIT"] = 4
    space["TABLE"].append(2)
    assert examine(space["f"]).digest != first
    assert examine(space["g"]).digest != second
    space["LIMIT"] = 3
    assert examine(space["f"]).digest == first


def test_recursion_and_mutual_recursion_have_stable_digests() -> None:
    source = """
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        def fact(n): return n * fact(n - 1) if n else 1
    """
    one, two = cell(source), cell(source)
    for name in ("even", "odd", "fact"):
        assert examine(one[name]).digest == examine(two[name]).digest
    changed = cell(source.replace("n != 0", "n > 0"))
    assert examine(changed["even"]).digest != examine(one["even"]).digest


def test_a_global_container_that_holds_its_reader_ends() -> None:
    source = "TABLE = {}\ndef f(n): return TABLE['f'](n - 1) if n else 0\nTABLE['f'] = f"
    assert name_of(source) == name_of(source)
    assert name_of(source) != name_of(source.replace("n - 1", "n - 2"))


def test_closures_count_by_value() -> None:
    space = cell("def make(k):\n    def f(x): return x + k\n    return f")
    assert examine(space["make"](1)).digest == examine(space["make"](1)).digest != examine(space["make"](2)).digest


def test_lambdas_of_one_line_are_told_apart() -> None:
    space = cell("one, two = lambda x: x + 1, lambda x: x + 2\nthree = (lambda: lambda x: x + 1)\nfour = three()")
    digests = [examine(space[name]).digest for name in ("one", "two", "three", "four")]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_a_lambda_over_several_lines_has_a_digest() -> None:
    assert name_of("f = (lambda x:\n   x +\n   1)") == name_of("f = lambda x: x + 1")


def test_names_that_only_a_nested_class_body_reads_count() -> None:
    source = "SIZE = 3\ndef f():\n    class C:\n        size = SIZE\n    return C.size"
    assert name_of(source) != name_of(source.replace("SIZE = 3", "SIZE = 4"))


def test_undefined_names_are_part_of_the_key_and_listed() -> None:
    space = cell("def f(): return later()")
    before = examine(space["f"])
    assert "undefined name later" in before.parts
    cell("def later(): return 1", space)
    assert examine(space["f"]).digest != before.digest


def test_partials_methods_and_wrappers_count_with_all_they_hold() -> None:
    space = cell("""
        import functools
        class Model:
            def __init__(self, k): self.k = k
            def run(self, x): return x * self.k
            def other(self, x): return x * self.k
        def f(x, y): return x + y
        @functools.lru_cache(maxsize=None)
        def cached(x): return x
        def deco(k):
            def wrap(g):
                @functools.wraps(g)
                def inner(*args): return g(*args) + k
                return inner
            return wrap
        one = deco(1)(f)
        two = deco(2)(f)
    """)
    model = space["Model"]
    things = [
        *(functools.partial(space["f"], 1), functools.partial(space["f"], 2), functools.partial(space["f"], y=1)),
        *(model(1).run, model(2).run, model(1).other, model, space["cached"], space["one"], space["two"]),
    ]
    digests = [examine(thing).digest for thing in things]
    assert len(set(digests)) == len(digests)
    assert examine(model(1).run).digest == examine(model(1).run).digest


SECRETS = {
    "a method for one type": """
        import functools
        class A:
            @functools.singledispatchmethod
            def g(self, x): return 0
            @g.register
            def _(self, x: int): return 1
            @g.register
            def _(self, x: str): return 2
        def f(): return A().g(1)
    """,
    "what positions mean in a pattern": """
        class P:
            x, y = 1, 2
            __match_args__ = ("x", "y")
        def f():
            match P():
                case P(a, b): return a
    """,
    "the boundary of a flag": """
        import enum
        class P(enum.Flag, boundary=enum.KEEP):
            A = 1
        def f(): return P(8)
    """,
    "a method made by exec": """
        made = {}
        exec("def area(self): return 1", made)
        class P: area = made["area"]
        def f(): return P().area()
    """,
    "an __init__ made by exec": """
        made = {}
        exec("def __init__(self): self.area = 1", made)
        class P: __init__ = made["__init__"]
        def f(): return P().area
    """,
    "what a member of an enum got later": """
        import enum
        class E(enum.Enum): A = 0
        E.A.weight = 1
        def f(): return E.A.weight
    """,
    "a docstring that a decorator reads": """
        def template(g):
            def call(**names): return g.__doc__.format(**names)
            return call
        @template
        def f(): "hello 1"
    """,
    "a docstring of a helper": """
        def g(): "hello 1"
        def f(): return g.__doc__
    """,
    "a docstring of a function in a table": """
        def g(): "hello 1"
        TABLE = [g]
        def f(): return [each.__doc__ for each in TABLE]
    """,
    "a docstring of a class": """
        class C: "hello 1"
        def f(): return C.__doc__
    """,
    "an annotation of a helper": """
        import typing
        def g(x: "x 1"): return x
        def f(): return typing.get_type_hints(g)
    """,
    "the name of a helper": """
        def g_1(): return 0
        TABLE = [g_1]
        def f(): return {g.__name__: g() for g in TABLE}
    """,
    "the order of attributes": """
        class C: a_1 = a_3 = a_2 = 0
        def f(): return list(vars(C))
    """,
    "a global behind a name that a class body sets and takes back": """
        A = 1
        def f():
            class B:
                A = 5
                del A
                b = A
            return B.b
    """,
    "a global behind a name that a class body may set": """
        A = 1
        def f(often=()):
            class B:
                for A in often: pass
                b = A
            return B.b
    """,
    "a class derived from property": """
        class prop(property): pass
        class P:
            @prop
            def area(self): return 1
        def f(): return P().area
    """,
    "what an object of a class derived from partial holds": """
        import functools
        class Part(functools.partial): pass
        part = Part(int)
        part.note = 1
        def f(): return part.note
    """,
    "what a class is derived from, as it is written": """
        import typing
        T = typing.TypeVar("T")
        class Base(typing.Generic[T]): pass
        class A(Base[typing.Literal[1]]): pass
        def f(): return A.__orig_bases__
    """,
    "a class in an alias": """
        import typing
        class A: x = 1
        ALIASES = list[A], A | None, typing.Optional[A], dict[str, list[A]], typing.Callable[[A], int]
        def f(): return typing.get_args(ALIASES[0])[0].x
    """,
    "a class in an alias that is read": """
        import typing
        class A: x = 1
        ALIAS = dict[str, A | None]
        def f(): return typing.get_args(typing.get_args(ALIAS)[1])[0].x
    """,
    "a class in an annotation of a class": """
        import typing
        class A: x = 1
        class B: a: list[A]
        def f(): return typing.get_args(typing.get_type_hints(B)["a"])[0].x
    """,
    "a class in an annotation that a function reads": """
        import typing
        class A: x = 1
        def g(a: typing.Optional["A"]): return a
        def f(): return typing.get_args(typing.get_type_hints(g, globals())["a"])[0].x
    """,
    "a class in an annotation that a decorator may read": """
        import typing
        class A: x = 1
        def made(g):
            g.made = lambda: typing.get_type_hints(g)["a"].x
            return g
        @made
        def g(a: A): return a
        def f(): return g.made()
    """,
    "what is noted in an annotation": """
        import typing
        class Unit:
            def __init__(self, factor): self.factor = factor
        class A: x: typing.Annotated[int, Unit(1)] = 0
        def f(): return A.__annotations__["x"].__metadata__[0].factor
    """,
    "what a cached function holds beside": """
        import functools
        @functools.lru_cache
        def g(): return 0
        g.note = 1
        def f(): return g.note
    """,
    "what a static method holds beside": """
        g = staticmethod(lambda: 0)
        g.note = 1
        def f(): return g.note
    """,
    "what is registered with an abstract class": """
        import abc
        class Base(abc.ABC): pass
        class A: x = 1
        Base.register(A)
        def f(): return issubclass(A, Base)
    """,
    "the limits of a type variable": """
        import typing
        T = typing.TypeVar("T", bound=typing.Literal[1])
        def f(): return T.__bound__
    """,
    "what a new type is made of": """
        import typing
        N = typing.NewType("N", typing.Literal[1])
        def f(): return N.__supertype__
    """,
    "what a partial holds beside": """
        import functools
        part = functools.partial(int)
        part.note = 1
        def f(): return part.note
    """,
}


@pytest.mark.filterwarnings("ignore::jug_notebook.errors.KeyAdvice")
@pytest.mark.parametrize("secret", SECRETS)
def test_what_is_hard_to_see_counts(secret: str) -> None:
    source = SECRETS[secret]
    assert name_of(source) == name_of(source)
    assert name_of(source) != name_of(source.replace("KEEP", "EJECT").replace("1", "4"))


def test_a_name_that_a_class_body_may_set_need_not_be_known() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = examine(cell("def f():\n    class B:\n        for i in []: pass\n        b = i")["f"])
    assert "undefined name i" not in found.parts


def test_examining_again_sees_what_a_class_has_lost_and_got() -> None:
    space = cell("""
        import enum
        class A: old = 1
        class B: pass
        class C(A): pass
        class E(enum.Enum): X = 1
        def f(): return hasattr(A, "old"), C.__mro__, E.X, g.__name__
        def g(): "hello"
    """)
    found = [examine(space["f"]).digest]

    def change(act: Callable[[], Any]) -> None:
        act()
        found.append(examine(space["f"]).digest)

    def swap() -> None:
        del space["A"].old
        space["A"].new = 2

    change(swap)
    change(lambda: setattr(space["C"], "__bases__", (space["B"],)))
    change(lambda: setattr(space["E"].X, "weight", 1))
    change(lambda: setattr(space["E"].X, "weight", 2))
    change(lambda: setattr(space["g"], "__name__", "h"))
    assert len(set(found)) == 6


def test_the_shell_is_never_followed() -> None:
    source = "def f(): return get_ipython().system('ls')"
    space = cell(source)
    space["get_ipython"] = types.SimpleNamespace(threading=warnings).__init__
    assert examine(space["f"]).digest == name_of(source)
    assert cell_names("files = get_ipython().getoutput('ls')").reads == set()


def test_generators_and_coroutines_have_digests() -> None:
    plain = name_of("def f(x):\n    return x")
    assert len({plain, name_of("def f(x):\n    yield x"), name_of("async def f(x):\n    return x")}) == 3


def test_builtins_and_c_functions_go_by_name() -> None:
    assert len({examine(thing).digest for thing in (len, abs, str.upper, "".join, dict, itertools.chain)}) == 6


def test_a_function_without_source_goes_by_bytecode_and_warns() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(x): return x in {1, 2, 3}\ndef g(x): return x in {1, 2, 4}", space)
    with pytest.warns(Opaque, match="no source"):
        first = examine(space["f"]).digest
    with pytest.warns(Opaque, match="no source"):
        assert examine(space["g"]).digest != first


def test_a_global_that_is_written_warns_once() -> None:
    space = cell("count = 0\ndef f():\n    global count\n    count += 1")
    with pytest.warns(Opaque, match="writes the global 'count'"):
        examine(space["f"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examine(space["f"])


@pytest.mark.parametrize("body", ["made.append(x)", "made[x] = 1", "del made[0]", "made.sort()"])
def test_a_global_list_that_is_changed_warns_and_a_local_one_does_not(body: str) -> None:
    with pytest.warns(Opaque, match="changes the global 'made', but only in the worker's own copy"):
        examine(cell(f"made = []\ndef f(x): {body}")["f"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examine(cell(f"def f(x):\n    made = []\n    {body}")["f"])


def test_a_dynamic_look_up_warns_and_depends_counts() -> None:
    space = cell("def f(): return eval('1')\ndef g(): return 1")
    with pytest.warns(Opaque, match="depends"):
        bare = examine(space["f"]).digest
    assert examine(space["f"], depends=[space["g"]]).digest != bare


def test_an_unhashable_global_is_refused_by_name_and_can_be_ignored() -> None:
    space = cell("NUMBERS = iter([1])\ndef f(): return next(NUMBERS)")
    with pytest.raises(Unhashable, match=r"global 'NUMBERS' read by f\(\).*ignore_globals=\['NUMBERS'\]"):
        examine(space["f"])
    assert examine(space["f"], ignore_globals=["NUMBERS"]).digest


def test_a_global_that_no_worker_can_have_is_to_be_made_inside_the_task() -> None:
    space = cell("import threading\nLOCK = threading.Lock()\ndef f():\n    with LOCK: return 1")
    with pytest.raises(Unhashable, match=r"global 'LOCK' read by f\(\).*: make it inside the task\.$") as refusal:
        examine(space["f"])
    assert "ignore_globals" not in str(refusal.value)  # it would fail next
    space = cell(
        "import threading\nclass Held: lock = None\nHELD = Held()\nHELD.lock = threading.Lock()\ndef f(): return HELD"
    )
    with pytest.raises(
        Unhashable, match=r"^global 'HELD'\.lock read by f\(\) is a _thread\.lock.*: make what holds it inside"
    ):
        examine(space["f"])


def test_version_stands_for_the_code() -> None:
    one, two = cell("import threading\nL = threading.Lock()\ndef f(): return L, 1"), cell("def f(): return 2")
    assert examine(one["f"], version="1").digest == examine(two["f"], version="1").digest
    assert examine(one["f"], version="2").digest != examine(two["f"], version="1").digest
    assert examine(one["f"], version="1").parts == {"version": "'1'"}


def test_a_task_function_stands_for_its_plain_function_wherever_it_is() -> None:
    import jug_notebook as jn

    space = cell("def helper(x): return x\ndef f(x): return helper(x)")
    before = examine(space["f"]).digest
    space["helper"] = jn.task(space["helper"])
    assert examine(space["f"]).digest == before
    assert digest(space["helper"]) == digest(space["helper"].__jug_function__)


def test_examining_again_is_quick_and_never_stale() -> None:
    space = cell(CHAIN)
    first = examine(space["f"])
    assert examine(space["f"]) is first
    space["norm"].__defaults__ = (1,)
    assert examine(space["f"]).digest != first.digest


def test_values_hold_functions_and_classes_by_their_code() -> None:
    one, two = cell("def f(): return 1"), cell("def f(): return 2")
    assert digest([one["f"]]) == digest([cell("def f():\n  return 1")["f"]]) != digest([two["f"]])


# -- classes ----------------------------------------------------------------------------------------------------------

CLASS = """
import enum
from dataclasses import dataclass
K = 2
@dataclass
class Base:
    x: int
    y: int = 3
    def area(self):
        "doc"
        return self.x * self.y * K
class f(Base):
    limit = 7
    @property
    def half(self): return self.area() / 2
    @classmethod
    def make(cls): return cls(1)
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.x * self.y", "self.x + self.y"),
        ("limit = 7", "limit = 8"),
        ("y: int = 3", "y: int = 4"),
        ("x: int", "x: float"),
        ("@dataclass", "@dataclass(frozen=True)"),
        ("K = 2", "K = 3"),
        ("area() / 2", "area() / 3"),
        ("cls(1)", "cls(2)"),
        ("class f(Base)", "class f(Base, str)"),
    ],
)
def test_any_change_of_a_class_or_its_bases_changes_its_digest(old: str, new: str) -> None:
    changed = CLASS.replace(old, new)
    if "frozen" in new:
        changed = changed.replace("class f(Base)", "class f(Base)")
    assert class_digest(cell(CLASS)["f"]) != class_digest(cell(changed)["f"])


def test_comments_and_docstrings_of_a_class_do_not_count() -> None:
    other = CLASS.replace('"doc"', '"other"  # and').replace("class f(Base):", 'class f(Base):\n    "Doc."\n')
    assert class_digest(cell(CLASS)["f"]) == class_digest(cell(other)["f"])


def test_enum_members_count() -> None:
    digests = {
        class_digest(cell(CLASS.replace("BLUE = 2", text))["Colour"]) for text in ("BLUE = 2", "BLUE = 3", "B = 2")
    }
    assert len(digests) == 3
    assert class_digest(cell(CLASS)["Colour"]) in digests


def test_a_changed_class_changes_the_digest_of_its_instances() -> None:
    one, two = cell(CLASS), cell(CLASS.replace("limit = 7", "limit = 8"))
    assert digest(one["f"](1)) == digest(cell(CLASS)["f"](1)) != digest(two["f"](1))


def test_a_class_that_holds_its_own_instance_has_a_digest() -> None:
    source = "class f:\n    def __init__(self): self.k = 1\nf.origin = f()"
    assert name_of(source) == name_of(source)


def test_library_classes_go_by_name_and_notebook_classes_travel() -> None:
    space = cell(CLASS)
    assert travels(space["f"])
    assert not travels(Path)
    assert not travels(textwrap.dedent)


# -- the same in every process -----------------------------------------------------------------------------------------

FRESH = """
from tests.keys import test_code
space = test_code.cell(test_code.CHAIN + test_code.CLASS.replace("class f", "class G") + '''
TAGS = {{"a", "b", "c", "d"}}
def g(x): return x in {{"p", "q", "r"}} and TAGS and G and f(x)
''')
print(test_code.examine(space["g"]).digest)
"""


def test_digests_agree_in_fresh_processes_under_any_hash_seed() -> None:
    script = FRESH.format()
    found = set()
    for seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(run.stdout)
    assert len(found) == 1


# -- modules of the project --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Write a module of the project, and import it anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: set[str] = set()

    def write(path: str, text: str) -> None:
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(textwrap.dedent(text))
        root = path.split("/")[0].removesuffix(".py")
        made.add(root)
        for name in [name for name in sys.modules if name.partition(".")[0] == root]:
            del sys.modules[name]
        for cached in place.parent.glob("__pycache__/*"):
            cached.unlink()
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in made]:
        del sys.modules[name]


MODULE = """
LIMIT = 3
def used(x): return inner(x) + LIMIT
def inner(x): return x
def unused(x): return x
"""


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("def inner(x): return x", "def inner(x): return -x", True),
        ("LIMIT = 3", "LIMIT = 4", True),
        ("def unused(x): return x", "def unused(x): return -x", False),
    ],
)
@pytest.mark.parametrize("user", ["import jnmod\ndef f(x): return jnmod.used(x)", "from jnmod import used as f"])
def test_what_is_used_of_a_project_module_counts(
    project: Callable[[str, str], None], tmp_path: Path, user: str, old: str, new: str, changed: bool
) -> None:
    project("jnmod.py", MODULE)
    before = examine(cell(user)["f"], project=tmp_path)
    assert before.modules == {"jnmod"}
    project("jnmod.py", MODULE.replace(old, new))
    assert (examine(cell(user)["f"], project=tmp_path).digest != before.digest) == changed


SCHEMA = """
from __future__ import annotations
import dataclasses
@dataclasses.dataclass
class Inner:
    x: int = 1
@dataclasses.dataclass
class Outer:
    inner: list[Inner] | None
"""


def test_classes_that_annotations_of_a_project_module_name_as_text_count(
    project: Callable[[str, str], None], tmp_path: Path
) -> None:
    user = "import jnmod, dataclasses\ndef f(x): return dataclasses.replace(jnmod.Outer(None), **x)"
    found = []
    for schema in (SCHEMA, SCHEMA.replace("= 1", "= 2"), SCHEMA + "class More: pass\n"):
        project("jnmod.py", schema)
        found.append(examine(cell(user)["f"], project=tmp_path).digest)
    assert found[0] == found[2] != found[1]


def test_a_module_outside_the_project_goes_by_name(project: Callable[[str, str], None]) -> None:
    project("jnmod.py", MODULE)
    found = examine(cell("import jnmod\ndef f(x): return jnmod.used(x)")["f"], project=Path("/nowhere"))
    assert not found.modules


def test_a_module_imported_inside_counts_with_all_its_text(project: Callable[[str, str], None], tmp_path: Path) -> None:
    user = "def f(x):\n    import jnmod\n    return jnmod.used(x)"
    project("jnmod.py", MODULE)
    before = examine(cell(user)["f"], project=tmp_path)
    assert before.modules == {"jnmod"}
    project("jnmod.py", MODULE.replace("return x", "return -x"))
    assert examine(cell(user)["f"], project=tmp_path).digest != before.digest


CORE = """
LIMIT = 3
TABLE = dict(a=1)
def run(x, k=1): return x + k
def other(x): return x
"""


@pytest.mark.parametrize(
    "taken",
    ["from .core import LIMIT, TABLE as T, run as go", "from .core import *\nfrom .core import TABLE as T, run as go"],
)
@pytest.mark.parametrize(
    ("used", "old", "new"),
    [("LIMIT", "= 3", "= 4"), ("T", "a=1", "a=2"), ("go(1)", "x + k", "x - k"), ("go(1)", "k=1", "k=2")],
)
def test_what_a_module_took_from_another_before_that_was_reloaded_is_refused(
    project: Callable[[str, str], None], tmp_path: Path, taken: str, used: str, old: str, new: str
) -> None:
    project("jnpack/core.py", CORE)
    project("jnpack/__init__.py", f"{taken}\ndef use(x): return {used}")
    space = cell(f"import jnpack, jnpack.core\ndef f(): return jnpack.{used}\ndef g(): return jnpack.use(1)")
    names = [examine(space[name], project=tmp_path).digest for name in "fg"]
    modules.notice(tmp_path)
    (tmp_path / "jnpack/core.py").write_text(CORE.replace(old, new))
    importlib.invalidate_caches()
    importlib.reload(space["jnpack"].core)
    for name in "fg":
        with pytest.raises(BadTask, match=r"importlib\.reload\(jnpack"):
            examine(space[name], project=tmp_path)
    importlib.reload(space["jnpack"])
    assert all(examine(space[name], project=tmp_path).digest not in names for name in "fg")


def test_an_edited_module_that_was_not_reloaded_is_refused(project: Callable[[str, str], None], tmp_path: Path) -> None:
    project("jnmod.py", MODULE)
    space = cell("import jnmod\ndef f(x): return jnmod.used(x)")
    (tmp_path / "jnmod.py").write_text(MODULE.replace("inner(x) +", "inner(x) -"))
    with pytest.raises(BadTask, match="Reload it"):
        examine(space["f"], project=tmp_path)


SET_FROM_OUTSIDE = """
TABLE = {"a": {"b": 1}}
GROWN = {}
GROWN["a"] = 1
ALIASED = [1]
OTHER = ALIASED
OTHER.append(2)
def norm(x): return x
class Model:
    layers = 2
    sizes = [1, 2]
    def run(self, x): return x * self.layers
def use(x): return norm(x), TABLE["a"]["b"], GROWN, ALIASED, Model().run(x), MADE
MADE = sum([1, 2])
"""


@pytest.mark.parametrize(
    "act",
    [
        pytest.param("jnmod.TABLE['a']['b'] = 2", id="in a dict"),
        pytest.param("jnmod.TABLE = 3", id="a name"),
        pytest.param("jnmod.norm = lambda x: -x", id="a function"),
        pytest.param("jnmod.Model.layers = 3", id="an attribute of a class"),
        pytest.param("jnmod.Model.sizes.append(3)", id="in an attribute of a class"),
        pytest.param("def run(self, x): return x\njnmod.Model.run = run", id="a method"),
        pytest.param("class Mine: run = abs\njnmod.Model = Mine", id="a class"),
    ],
)
@pytest.mark.parametrize("user", ["jnmod.use(1)", "(jnmod.norm, jnmod.TABLE['a'], jnmod.Model.layers)"])
def test_what_was_set_in_a_module_from_outside_is_refused_since_workers_have_its_text(
    project: Callable[[str, str], None], tmp_path: Path, act: str, user: str
) -> None:
    project("jnmod.py", SET_FROM_OUTSIDE)
    space = cell(f"import jnmod\ndef f(): return {user}")
    assert examine(space["f"], project=tmp_path).digest
    cell(act, space)
    with pytest.raises(BadTask, match=r"jnmod\.\w+.*(in the source of jnmod|of the notebook)"):
        examine(space["f"], project=tmp_path)


def test_a_change_to_what_a_module_computed_is_warned_of(project: Callable[[str, str], None], tmp_path: Path) -> None:
    project("jnmod.py", SET_FROM_OUTSIDE)
    space = cell("import jnmod\ndef f(): return jnmod.use(1)\ndef g(): return jnmod.MADE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examine(space["f"], project=tmp_path)
        examine(space["f"], project=tmp_path)
    cell("jnmod.MADE = 4", space)
    for name in "fg":
        with pytest.warns(Opaque, match=r"jnmod\.MADE has changed in this process since it was first used"):
            examine(space[name], project=tmp_path)
        advice._warned.clear()


def test_what_a_module_gives_by_getattr_counts(project: Callable[[str, str], None], tmp_path: Path) -> None:
    module = "def __getattr__(name):\n    if name == 'beta': return 7\n    raise AttributeError(name)\n"
    found = set()
    for text in (module, module.replace("7", "8")):
        project("jnmod.py", text)
        found.add(examine(cell("import jnmod\ndef f(): return jnmod.beta")["f"], project=tmp_path).digest)
    assert len(found) == 2


def test_a_bundle_takes_along_what_its_modules_import(project: Callable[[str, str], None], tmp_path: Path) -> None:
    project("jnother.py", "X = 1\n")
    project("jnpack/__init__.py", "")
    project("jnpack/deep.py", "from .near import two\nimport jnother\ndef run(): return two()\n")
    project("jnpack/near.py", "def two(): return 2\n")
    found = examine(cell("from jnpack.deep import run\ndef f(): return run()")["f"], project=tmp_path)
    assert found.modules == {"jnpack", "jnother"}
    assert bundle("jnpack").keys() == {"jnpack/__init__.py", "jnpack/deep.py", "jnpack/near.py"}


def test_compiled_modules_are_refused_with_advice(project: Callable[[str, str], None], tmp_path: Path) -> None:
    project("jnpack/__init__.py", "")
    (tmp_path / "jnpack" / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    with pytest.raises(BadTask, match="pip install"):
        bundle("jnpack")


# -- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reads", "assigns"),
    [
        ("y = x + 1", {"x"}, ["y"]),
        ("x = 1\ny = x", set(), ["x", "y"]),
        ("x += 1", {"x"}, ["x"]),
        ("x = x + 1", {"x"}, ["x"]),
        ("y = [i * k for i in data]", {"k", "data"}, ["y"]),
        ("y = [i for i in i]", {"i"}, ["y"]),
        ("y = [z := i for i in data]", {"data"}, ["z", "y"]),
        ("for i in data: total = i", {"data"}, ["i", "total"]),
        ("with thing as (a, b): pass", {"thing"}, ["a", "b"]),
        ("try: a = 1\nexcept E as error: b = error", {"E"}, ["a", "b"]),
        ("a = 1\ndel a", set(), []),
        ("a = 1\ndel a\na = 2", set(), ["a"]),
        ("if (n := len(data)) > 3: big = n", {"len", "data"}, ["n", "big"]),
        ("if c: a = 1\nb = a", {"c", "a"}, ["a", "b"]),
        ("if c: a = 1\nelse: a = 2\nb = a", {"c"}, ["a", "b"]),
        ("def f(p, q=k): return p + g", {"k", "g"}, ["f"]),
        ("def f(): return later\nlater = 1", set(), ["f", "later"]),
        ("f = lambda v: v + w", {"w"}, ["f"]),
        ("class C(B):\n    a = k\n    b = a\n    def m(self): return h", {"B", "k", "h"}, ["C"]),
        ("def f():\n    global n\n    n = 1\nf()", set(), ["f", "n"]),
        ("match v:\n    case {'a': p, **r}: pass\n    case [q, *s]: pass", {"v"}, ["p", "r", "q", "s"]),
        ("a[0] = b", {"a", "b"}, []),
        ("a.x = b", {"a", "b"}, []),
        ("(a, *b), c = d", {"d"}, ["a", "b", "c"]),
        ("x: int = 1", {"int"}, ["x"]),
    ],
)
def test_the_names_of_a_cell_follow_pythons_scope_rules(source: str, reads: set[str], assigns: list[str]) -> None:
    names = cell_names(source)
    assert names.reads == reads
    assert sorted(names.assigns) == sorted(assigns)


def test_imports_are_never_outputs() -> None:
    names = cell_names("import numpy as np, os.path\nfrom math import pi\nx = np.zeros(3) * pi")
    assert names.imports == {"np", "os", "pi"}
    assert names.assigns == ("x",)
    assert not names.reads


def test_star_imports_are_refused() -> None:
    with pytest.raises(BadTask, match="import \\*"):
        cell_names("from math import *")


def test_a_syntax_error_is_pythons_own() -> None:
    for source in ("x = (", "return 1"):
        with pytest.raises(SyntaxError):
            cell_names(source)


def made(source: str, inputs: list[str], outputs: list[str], **space: Any) -> types.FunctionType:
    name = f"<cell-{next(_number)}>"
    source = textwrap.dedent(source)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return cell_function("job", source, name, inputs, outputs, {"__name__": "__main__", **space})


def test_a_cell_is_a_function_of_its_inputs() -> None:
    job = made("total = sum(data)\nsquares = [x * x for x in data]\n", ["data"], ["total", "squares"])
    assert job([1, 2]) == {"total": 3, "squares": [1, 4]}
    assert job.__name__ == "job"


def test_outputs_that_were_never_set_are_left_out() -> None:
    job = made("if flag:\n    a = 1\nb = 2\ndel b", ["flag"], ["a", "b"])
    assert job(True) == {"a": 1}
    assert job(False) == {}


def test_functions_of_a_cell_share_its_names() -> None:
    job = made("n = 0\ndef bump():\n    global n\n    n += step\nbump(); bump()", ["step"], ["n"])
    assert job(2) == {"n": 4}


def test_names_that_are_no_inputs_come_from_the_namespace() -> None:
    job = made("y = k + 1", [], ["y"], k=3)
    assert job() == {"y": 4}


def test_a_cell_with_await_is_a_coroutine_function() -> None:
    job = made("import asyncio\nawait asyncio.sleep(0)\nx = 1", [], ["x"])
    assert asyncio.run(job()) == {"x": 1}


def test_a_future_import_in_a_cell_is_honoured() -> None:
    job = made("from __future__ import annotations\ndef g(x: Unknown): return x\ny = g(1)", [], ["y"])
    assert job() == {"y": 1}


def test_tracebacks_of_a_cell_show_its_lines() -> None:
    job = made("a = 1\nb = a / zero\n", ["zero"], ["b"])
    with pytest.raises(ZeroDivisionError) as failure:
        job(0)
    entry = failure.traceback[-1]
    assert entry.lineno == 1
    assert source_of(job) == (job.__code__.co_filename, "a = 1\nb = a / zero\n")


def test_a_cells_digest_ignores_comments_and_sees_code_and_what_it_reads() -> None:
    first = examine(made("y = k + 1  # one", [], ["y"], k=3)).digest
    assert examine(made("# two\n\ny = (k + 1)", [], ["y"], k=3)).digest == first
    assert examine(made("y = k + 2", [], ["y"], k=3)).digest != first
    assert examine(made("y = k + 1", [], ["y"], k=4)).digest != first


def test_global_names_are_those_of_nested_code_too() -> None:
    space = cell("def f():\n    return [a for _ in b] + (lambda: c)()")
    assert callables.global_names(space["f"].__code__) == ("a", "b", "c")


# -- odd functions -----------------------------------------------------------------------------------------------------


def test_functions_deep_down_are_found_where_a_deep_value_goes_on_elsewhere() -> None:
    source = """
    held = []
    def f():
        return held
    inner = f
    for _ in range(1000):
        inner = [inner]
    held.append(inner)
    """
    one, other = cell(source)["f"], cell(source)["f"]
    assert examine(one).digest == examine(other).digest


def test_bound_methods_that_are_made_anew_each_time_end() -> None:
    space = cell("""
    class Bound:
        def __init__(self, n=0): self.items = [self, n]
        def act(self): return 1
        def __getstate__(self): return {"act": self.act, "add": self.items.append, "items": self.items}
    one, other, third = Bound(), Bound(), Bound(1)
    def f(): return one
    upper = "abc".upper
    def g(): return upper()
    """)
    assert digest(space["one"]) == digest(space["other"]) != digest(space["third"])
    assert examine(space["f"]).digest
    assert examine(space["g"]).digest
    assert examine("abc".upper).digest == examine("abc".upper).digest != examine("abd".upper).digest


def test_a_refusal_in_the_code_of_a_function_inside_an_argument_says_where_it_is() -> None:
    space = cell("import threading\nlock = threading.Lock()\ndef f(): return lock")
    with pytest.raises(Unhashable, match=r"argument 'cfg'\['opts'\]\[1\]: global 'lock' read by f\(\) is a _thread"):
        digest({"opts": [0, space["f"]]}, "argument 'cfg'")


DISPATCH = """
import functools
@functools.singledispatch
def show(x): return 0
@show.register(int)
def _(x): return 1
def f(x): return show(x)
"""


def test_a_dispatching_function_counts_with_all_it_dispatches_to() -> None:
    space = cell(DISPATCH)
    plain = examine(space["f"]).digest
    assert examine(cell(DISPATCH)["f"]).digest == plain
    assert name_of(DISPATCH.replace("return 1", "return 2")) != plain
    assert name_of(DISPATCH.replace("return 0", "return 3")) != plain
    assert name_of(DISPATCH.replace("(int)", "(str)")) != plain
    space["f"](True)  # which fills its cache
    assert examine(space["f"]).digest == plain
    space["show"].register(float, len)
    assert examine(space["f"]).digest != plain
