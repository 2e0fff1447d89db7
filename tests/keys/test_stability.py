"""Digests are the same in every process, under every hash seed, in every order, and in later versions of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jug_notebook as jn
from jug_notebook.keys.digest import digest

np = pytest.importorskip("numpy")
HERE = Path(__file__).parents[1]
LATER = [f"python3.{minor}" for minor in range(sys.version_info.minor + 1, sys.version_info.minor + 5)]


def begun(python: str, seed: int, *arguments: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(HERE.parent)}
    program = [python, str(HERE / "gallery.py"), *arguments]
    return subprocess.Popen(program, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digests(run: subprocess.Popen[str]) -> dict[str, str]:
    out, errors = run.communicate()
    assert run.returncode == 0, errors
    found = dict(line.rsplit(": ", 1) for line in out.splitlines())
    assert all(len(digest) == 40 for digest in found.values()), out
    return found


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    """The digests of the gallery, as a process with hash seed 0 finds them."""
    return digests(begun(sys.executable, 0))


def test_any_hash_seed_and_any_order_of_making_give_the_same_digests(here: dict[str, str]) -> None:
    runs = [begun(sys.executable, 1), begun(sys.executable, 2, "reverse"), begun(sys.executable, 3, "reverse")]
    for run in runs:
        assert digests(run) == here
    assert len(set(here.values())) > 100  # and they are told apart


@pytest.mark.parametrize("python", LATER)
def test_a_later_python_finds_the_same_digests(here: dict[str, str], python: str) -> None:
    program = shutil.which(python)
    if program is None:
        pytest.skip(f"no {python} on the PATH")
    needed = subprocess.run([program, "-c", "import msgspec, cloudpickle, blake3"], capture_output=True, check=False)
    if needed.returncode:
        pytest.skip(f"{python} has no msgspec, cloudpickle or blake3")
    there = digests(begun(program, 1))
    assert len(there) > 90
    assert there == {name: here[name] for name in there}


# -- changes in place --------------------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path) -> Iterator[jn.Session]:
    session = jn.connect(f"memory:{tmp_path.name}")
    yield session
    session.stop(now=True)
    session.close()


@jn.task
def total(x: Any, more: Any = None) -> Any:
    return sum(x) if more is None else sum(x) + sum(more["m"])


def test_an_argument_that_is_changed_after_the_call_is_named_and_sent_as_it_was(session: jn.Session) -> None:
    numbers, more, array = [1, 2], {"m": [3]}, np.array([1.0, 2.0])
    first, second, third = total(numbers), total(numbers, more), total(array)
    numbers.append(10)
    more["m"].append(10)
    array[0] = 10
    assert [first.key, second.key, third.key] == [
        total([1, 2]).key, total([1, 2], {"m": [3]}).key, total(np.array([1.0, 2.0])).key
    ]  # fmt: skip
    assert total(numbers).key != first.key
    session.execute(1)
    assert jn.bvalue([first, second, third, total(numbers)]) == [3, 6, 3.0, 13]


def test_arguments_of_a_map_that_are_changed_while_it_is_made_are_named_as_they_were(session: jn.Session) -> None:
    held = [0]

    def growing() -> Iterator[list[int]]:
        for n in range(5):
            held[0] = n
            yield held

    tasks = total.map(growing())
    assert [task.key for task in tasks] == [total([n]).key for n in range(5)]


def test_a_constant_of_a_map_that_is_changed_afterwards_is_seen_by_the_next(session: jn.Session) -> None:
    more = {"m": list(range(10_000))}
    before = total.map([[1]], more=more)[0].key
    more["m"][-1] = -1
    assert total.map([[1]], more=more)[0].key != before


def test_large_arguments_that_are_changed_while_a_map_is_made_are_named_and_sent_as_they_were(
    session: jn.Session,
) -> None:
    held = np.zeros(20_000)

    def growing() -> Iterator[Any]:
        for n in range(3):
            held[:] = n
            yield held

    tasks = total.map(growing())
    assert [task.key for task in tasks] == [total(np.full(20_000, float(n))).key for n in range(3)]
    session.execute(1)
    assert jn.bvalue(list(tasks)) == [0.0, 20_000.0, 40_000.0]


def test_what_the_calls_of_a_map_share_is_digested_and_stored_once(
    session: jn.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    put = session.access.store.put_blob

    def counted(parts: Any) -> str:
        chunks = [bytes(part) for part in parts]
        stored.append(sum(map(len, chunks)))
        return put(chunks)

    monkeypatch.setattr(session.access.store, "put_blob", counted)
    array, words = np.arange(50_000.0), {"m": [float(n) for n in range(50_000)]}
    by_constant = total.map([[n] for n in range(100)], more=words)
    as_items = total.map([array] * 100)
    as_axes = total.grid(x=[[1], [2]], more=words)
    assert sum(size > 100_000 for size in stored) == 3
    assert by_constant[7].key == total([7], words).key
    assert as_items[0].key == as_items[99].key == total(array).key
    assert as_axes[1].key == total([2], more=words).key
    session.execute(1)
    assert by_constant[7].result() == 7 + sum(words["m"])


LEVELS = [1, 2]


@jn.task
def level(x: int) -> int:
    return LEVELS[x]


def test_a_global_that_is_changed_in_place_between_call_and_submission_is_an_error_that_names_it(
    session: jn.Session,
) -> None:
    session.begin_cell("one")
    level(1)
    LEVELS.append(3)
    with pytest.raises(jn.ChangedInCell, match="LEVELS"):
        session.end_cell()
    session.begin_cell("two")
    task = level(1)
    session.end_cell()
    LEVELS.pop()
    session.begin_cell("three")
    assert level(1).key != task.key
    session.end_cell()


# -- arrays: unequal ones are told apart -------------------------------------------------------------------------------

numbers = st.lists(st.integers(0, 3), min_size=0, max_size=6)
dtypes = st.sampled_from(["<i4", ">i4", "<i8", "<f4", "<f8", "|u1", "|S2", "<U2", "|b1", "O", "<M8[s]", "<M8[D]"])
arrays = st.builds(lambda items, dtype: np.array(items, dtype="<i8").astype(dtype), numbers, dtypes)
shaped = st.builds(
    lambda array, turn: array.reshape(len(array) // 2, 2)[:: -1 if turn else 1] if len(array) % 2 == 0 else array,
    arrays,
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(shaped, shaped)
def test_arrays_agree_where_dtype_shape_and_elements_do_and_only_there(one: Any, two: Any) -> None:
    same = one.dtype == two.dtype and one.shape == two.shape and one.tolist() == two.tolist()
    assert (digest(one) == digest(two)) == same
    assert digest(np.asfortranarray(one)) == digest(one.copy()) == digest(one)
