"""Objects of many libraries have one key: in each process, made again, after use and after a trip to a worker.

Entries are in `zoo`. One process per hash seed names them all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook.keys import libraries
from jug_notebook.keys.digest import digest

HERE = Path(__file__).parent


def load() -> Any:
    spec = importlib.util.spec_from_file_location("zoo", HERE / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module
    spec.loader.exec_module(module)
    return module


zoo = load()
SEEDS = ("0", "1", "2")

Names = dict[tuple[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Names]:
    """The names of all entries, by hash seed."""
    environ = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    folder = tmp_path_factory.mktemp("zoo")
    runs = {
        seed: subprocess.Popen(
            [sys.executable, str(HERE / "zoo.py")], env={**environ, "PYTHONHASHSEED": seed}, text=True,
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for seed in SEEDS
    }  # fmt: skip
    results = {}
    for seed, run in runs.items():
        out, errors = run.communicate()
        assert run.returncode == 0, errors
        lines = [json.loads(line) for line in out.splitlines() if line.startswith('["')]
        results[seed] = {(library, name): names for library, name, names in lines}
    return results


@pytest.mark.slow
@pytest.mark.timeout(400)  # all of them are named for the first
@pytest.mark.parametrize("entry", zoo.ZOO, ids=lambda entry: f"{entry.library}: {entry.name}")
def test_an_object_has_one_key_or_is_refused_by_name(entry: Any, found: dict[str, Names]) -> None:
    each = [names[entry.library, entry.name] for names in found.values()]
    names = each[0]
    if "missing" in names:
        pytest.skip(names["missing"])
    assert "failed" not in names, names["failed"]
    key, other = names["key"], names.pop("other")
    if entry.refused:
        assert key.startswith("refused: "), "it has a key"
        assert entry.refused in key
        return
    assert names == dict.fromkeys(names, key)
    assert other != key
    assert [one["key"] for one in each] == [key] * len(SEEDS)


# -- what a user may leave out -----------------------------------------------------------------------------------------


def model() -> Any:
    class Model:
        def __init__(self, n: int) -> None:
            self.n, self.calls = n, 0

    return Model


def test_an_ignored_attribute_does_not_count_for_a_class_and_those_derived_from_it() -> None:
    Model = model()
    Derived = type("Derived", (Model,), {})
    for kind in (Model, Derived):
        used = kind(1)
        used.calls = 5
        before = digest(used)
        assert before != digest(kind(1))
        if kind is Derived:
            jn.ignore_attributes(Model, "calls")
            assert digest(used) == digest(kind(1)) != digest(kind(2))


def test_classes_that_libraries_make_or_fill_have_one_key_in_every_process() -> None:
    source = """
        import attrs, sympy
        @attrs.frozen
        class Point:
            x: int
        @attrs.define(frozen=True, cache_hash=True)
        class Kept:
            x: int
        class Step(sympy.Function):
            def _eval_is_real(self): return True
        f = lambda: (Point, Kept, Step, sympy.Function("g"))
    """
    pytest.importorskip("sympy")
    code = "from tests.keys.test_code import cell\nfrom jug_notebook.keys.code import examine\n"
    code += f"f = cell({source!r})['f']\nprint(examine(f).digest, *map(examine, f()), sep='\\n')"
    found = set()
    for seed in (*SEEDS, "3"):
        environ = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], env=environ, text=True, capture_output=True, check=True)
        found.add(run.stdout)
    assert len(found) == 1, found


def test_ignore_attributes_says_what_it_needs() -> None:
    for arguments in ((model()(1), "calls"), (model(),), (model(), 3)):
        with pytest.raises(TypeError, match="needs a class and names of its attributes"):
            jn.ignore_attributes(*arguments)


def test_a_value_set_by_hand_in_place_of_a_fitted_one_counts() -> None:
    sm = pytest.importorskip("statsmodels.api")
    np = pytest.importorskip("numpy")
    made = [sm.OLS(np.arange(9.0), np.vander(np.arange(9.0), 2)) for _ in range(2)]
    made[0].fit()
    assert digest(made[0]) == digest(made[1])
    made[0].df_resid = 3
    assert digest(made[0]) != digest(made[1])


def test_an_array_that_an_image_keeps_counts_once_it_was_changed() -> None:
    nib, np = pytest.importorskip("nibabel"), pytest.importorskip("numpy")
    image = nib.Nifti1Image(np.ones((2, 2, 2)), np.eye(4))
    before = digest(image)
    assert digest(image) == before
    image.get_fdata()[0] = 5
    assert digest(image) != before


def test_a_registry_entry_names_attributes_of_a_class_that_exists() -> None:
    for dotted in libraries.CACHES:
        assert dotted.partition(".")[0] in {entry.library for entry in zoo.ZOO}, f"no entry of the zoo shows {dotted}"
