"""What is said, once and in a line, of things that a key can't see."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from jug_notebook.errors import KeyAdvice, Opaque, Unseeded
from jug_notebook.keys.code import examine
from jug_notebook.task import context
from tests.keys.test_code import cell

np = pytest.importorskip("numpy")

IMPORTS = """
import random, importlib
import numpy as np
from random import choice
from numpy.random import default_rng
"""


def said(source: str, name: str = "f", **options: Any) -> list[str]:
    """What examining a function says."""
    function = cell(IMPORTS + source)[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examine(function, **options)
    assert all(issubclass(each.category, KeyAdvice) for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("return random.random() + 1", "random.random"),
        ("return choice([1, 2])", "choice"),
        ("return np.random.rand(3)", "np.random.rand"),
        ("import random as dice; return dice.randint(1, 7)", "dice.randint"),
        ("from numpy import random; return random.normal(1)", "random.normal"),
        ("return np.random.default_rng().random(2)", "np.random.default_rng"),
        ("return default_rng(None).random(3)", "default_rng"),
        ("return random.Random().random()", "random.Random"),
        ("random.seed(); return random.gauss(0, 1)", "random.gauss"),
    ],
)
def test_random_numbers_that_nobody_seeded_are_said(body: str, name: str) -> None:
    told = said(f"def f(): {body}  # {name}")
    assert len(told) == 1, told
    assert "\n" not in told[0]
    assert f"{name}()" in told[0]
    assert "seed as an argument" in told[0]


@pytest.mark.parametrize(
    "source",
    [
        "def f(s): return default_rng(s).random()",
        "def f(s): return random.Random(s).random()",
        "def f(s): np.random.seed(s); return np.random.rand(3)",
        "def g(): return random.random()\ndef f(s): random.seed(s); return g()",
        "def f(rng): return rng.random(3)",
        "class random:\n    random = int\ndef f(): return random.random()",
        "def f(a): return np.sum(a)",
    ],
)
def test_seeded_generators_are_nobodys_business(source: str) -> None:
    assert said(source) == []


def test_each_thing_is_said_once_and_points_at_the_users_line() -> None:
    space = cell("import random\ndef only_once(): return random.random()")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examine(space["only_once"])
        examine(space["only_once"], version=None, ignore_globals=["nothing"])
    assert [each.category for each in caught] == [Unseeded]
    assert caught[0].filename == __file__


def test_nothing_is_said_in_a_worker() -> None:
    with context.running():
        assert said("def f(): return random.random() * 3") == []


def test_a_version_silences_what_is_said_of_the_code() -> None:
    assert said("def f(): return random.random() * 4", version="1") == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(x, n): return getattr(x, n)", "getattr"),
        ("def f(n): return importlib.import_module(n)", "import_module"),
        ("def f(n): return globals()[n]", "globals"),
        ("def f(n): return eval(n)", "eval"),
    ],
)
def test_a_look_up_that_cannot_be_seen_is_said(source: str, name: str) -> None:
    told = said(source)
    assert len(told) == 1, told
    assert f"{name}()" in told[0]
    assert "depends=[…]" in told[0]


def test_a_look_up_that_is_written_out_is_none() -> None:
    assert said("def f(x): return getattr(x, 'name', None)") == []
    assert said("def getattr(x, n): return n\ndef f(x, n): return getattr(x, n)") == []


def test_all_advice_is_a_user_warning() -> None:
    assert issubclass(Opaque, UserWarning)
    assert issubclass(Unseeded, KeyAdvice)
