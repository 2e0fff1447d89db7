"""Warnings about what a key can't cover: once each, in one line."""

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


def warnings_of(source: str, name: str = "f", **options: Any) -> list[str]:
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
def test_random_numbers_without_a_seed_are_warned_of(body: str, name: str) -> None:
    given = warnings_of(f"def f(): {body}  # {name}")
    assert len(given) == 1, given
    assert "\n" not in given[0]
    assert f"{name}()" in given[0]
    assert "seed as an argument" in given[0]


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
    assert warnings_of(source) == []


def test_each_warning_is_given_once_and_points_at_the_users_line() -> None:
    space = cell("import random\ndef only_once(): return random.random()")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examine(space["only_once"])
        examine(space["only_once"], version=None, ignore_globals=["nothing"])
    assert [each.category for each in caught] == [Unseeded]
    assert caught[0].filename == __file__


def test_no_warning_is_given_in_a_worker() -> None:
    with context.running():
        assert warnings_of("def f(): return random.random() * 3") == []


def test_a_version_silences_warnings_about_the_code() -> None:
    assert warnings_of("def f(): return random.random() * 4", version="1") == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(x, n): return getattr(x, n)", "getattr"),
        ("def f(n): return importlib.import_module(n)", "import_module"),
        ("def f(n): return globals()[n]", "globals"),
        ("def f(n): return eval(n)", "eval"),
    ],
)
def test_a_look_up_by_a_computed_name_is_warned_of(source: str, name: str) -> None:
    given = warnings_of(source)
    assert len(given) == 1, given
    assert f"{name}()" in given[0]
    assert "depends=[…]" in given[0]


def test_a_look_up_that_is_written_out_is_none() -> None:
    assert warnings_of("def f(x): return getattr(x, 'name', None)") == []
    assert warnings_of("def getattr(x, n): return n\ndef f(x, n): return getattr(x, n)") == []


def test_all_advice_is_a_user_warning() -> None:
    assert issubclass(Opaque, UserWarning)
    assert issubclass(Unseeded, KeyAdvice)


# -- environment variables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "return os.environ['MODE']",
        "return os.environ.get('MODE', 'fast')",
        "return os.getenv('MODE')",
        "return environ['MODE']",
        "return getenv('MODE')",
        "from os import environ as e; return e['MODE']",
        "import os as o; return o.getenv('MODE')",
    ],
)
def test_an_environment_variable_read_by_a_name_that_is_written_out_is_warned_of(body: str) -> None:
    source = f"import os\nfrom os import environ, getenv\ndef f(): {body}"
    given = warnings_of(source)
    assert len(given) == 1, given
    assert "f() reads the environment variable 'MODE'" in given[0]
    assert "@jn.task(env=['MODE'])" in given[0]
    assert warnings_of(source, environment=["MODE"]) == warnings_of(source, secrets=["MODE"]) == []


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"])
def test_a_task_may_read_which_gpus_it_was_given(name: str) -> None:
    assert warnings_of(f"import os\ndef f(): return os.environ[{name!r}], os.environ.get({name!r})") == []
    assert len(warnings_of(f"import os\ndef f(): return os.environ['{name}_OF']")) == 1


def test_what_only_looks_like_the_environment_is_not_warned_of() -> None:
    assert warnings_of("def f(environ): return environ['MODE']") == []
    assert warnings_of("import os\ndef f(): os.environ['MODE'] = '1'") == []
    assert warnings_of("class os:\n    environ = {}\ndef f(): return os.environ['MODE']") == []


def test_variables_handed_along_count_by_their_values_and_secrets_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    function = cell("import os\ndef f(): return os.environ['MODE'], os.environ['TOKEN']")["f"]

    def code() -> Any:
        return examine(function, environment=["MODE"], secrets=["TOKEN"])

    monkeypatch.setenv("MODE", "fast")
    monkeypatch.setenv("TOKEN", "secret!")
    fast = code()
    monkeypatch.setenv("TOKEN", "another")
    assert code() == fast
    assert "secret!" not in repr(fast)
    monkeypatch.setenv("MODE", "slow")
    slow = code()
    monkeypatch.delenv("MODE")
    assert len({fast.digest, slow.digest, code().digest}) == 3
    assert (fast.parts["environment MODE"], code().parts["environment MODE"]) == ("'fast'", "not set")
    assert examine(function, version="1", environment=["MODE"]) != examine(function, version="1")
