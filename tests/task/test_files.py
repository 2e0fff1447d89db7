"""Files as arguments: what of them counts, and when they are read."""

from __future__ import annotations

import dataclasses
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.keys.digest import digest
from jug_notebook.task import context, files
from tests.workbench import FakeClock


@pytest.fixture
def session(tmp_path: Path) -> Iterator[jn.Session]:
    session = jn.connect(f"memory:{tmp_path.name}")
    yield session
    session.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data.txt"
    path.write_text("one\n")
    return path


def test_a_file_is_named_by_its_content_wherever_it_lies(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("one\n")
    assert digest(jn.file(path)) == digest(jn.file(str(other)))
    other.write_text("two\n")
    assert digest(jn.file(path)) != digest(jn.file(other))
    assert digest(jn.file(path)) != digest(path) != digest(jn.timed_path(path))


def test_a_changed_file_is_seen_at_once(path: Path) -> None:
    before = digest(jn.file(path))
    path.write_text("two\n")  # of the same length, within the same tick of the clock
    assert digest(jn.file(path)) != before


def test_a_file_is_read_again_only_when_its_size_times_or_inode_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    hasher = system.hasher
    monkeypatch.setattr(system, "hasher", lambda size: read.append(1) or hasher(size))
    clock = FakeClock(path.stat().st_ctime + 10)
    first = files.content(path, clock)
    assert [files.content(path, clock) for _ in range(5)] == [first] * 5
    assert len(read) == 1
    path.write_text("one\n")
    clock.advance(1000)
    assert files.content(path, clock) == first
    assert len(read) == 2


def test_a_file_that_was_just_written_is_not_remembered(path: Path) -> None:
    clock = FakeClock(path.stat().st_mtime)
    files.content(path, clock)
    assert (path.stat().st_dev, path.stat().st_ino) not in files._known


def test_the_function_gets_the_path_as_it_was_given(path: Path) -> None:
    for given in (path, str(path)):
        assert pickle.loads(pickle.dumps(jn.file(given))) == given
        assert pickle.loads(pickle.dumps(jn.timed_path(given))) == given
    assert open(jn.file(path)).read() == "one\n"  # noqa: SIM115


def test_a_task_refuses_a_file_that_is_no_longer_what_its_key_names(path: Path) -> None:
    data = pickle.dumps(jn.file(path))
    path.write_text("two\n")
    with context.running(), pytest.raises(jn.FileChanged, match=r"data\.txt was changed after the task was made"):
        pickle.loads(data)


def test_a_timed_path_counts_size_and_time_and_not_content(path: Path) -> None:
    os.utime(path, ns=(1, 10**18))
    before = digest(jn.timed_path(path))
    path.write_text("two\n")
    os.utime(path, ns=(1, 10**18))
    assert digest(jn.timed_path(path)) == before
    os.utime(path, ns=(1, 10**18 + 1))
    assert digest(jn.timed_path(path)) != before


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        jn.file(tmp_path / "nothing")
    with pytest.raises(jn.BadTask, match="folder"):
        digest(jn.file(tmp_path))
    with pytest.raises((jn.BadTask, TypeError)):
        jn.file(b"data.txt")  # type: ignore[arg-type]


# -- paths that are only paths -----------------------------------------------------------------------------------------


def warned(call: object, *arguments: object, **named: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments, **named)  # type: ignore[operator]
    return [str(each.message) for each in caught if each.category is jn.OnlyAPath]


def test_a_path_of_a_file_as_an_argument_is_said_once(
    session: jn.Session, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    path = Path(path.name)

    @jn.task
    def count_words(text: str, mode: str = "fast") -> int:
        return 0

    warnings = warned(count_words, str(path))
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert "argument 'text' is the path of a file" in warnings[0]
    assert f"jn.file({str(path)!r})" in warnings[0]
    assert warned(count_words, str(path)) == warned(count_words, path) == warned(count_words.map, [str(path)]) == []
    assert warned(count_words, "x", mode=path)


@dataclasses.dataclass
class Settings:
    source: object
    size: int = 3


class Dataset:
    __slots__ = ("parts",)

    def __init__(self, *parts: object) -> None:
        self.parts = parts


@pytest.mark.parametrize(
    ("where", "wrap"),
    [
        ("[1]", lambda path: ["a.b", path]),
        ("['raw']['x']", lambda path: {"raw": {"x": path}}),
        (".source", Settings),
        (".parts[0].source", lambda path: Dataset(Settings(path))),
    ],
)
def test_a_path_inside_a_list_a_dict_or_an_object_is_reported_with_where_it_is(
    session: jn.Session, path: Path, where: str, wrap: Any
) -> None:
    @jn.task
    def count_words(source: object) -> int:
        return 0

    given = warned(count_words, wrap(str(path)))
    assert len(given) == 1, given
    assert f"argument 'source'{where} is the path of a file" in given[0]
    assert warned(count_words, wrap(jn.file(path))) == []


def test_looking_for_paths_costs_a_few_look_ups_however_much_is_passed(
    session: jn.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    @jn.task
    def count_words(source: object) -> int:
        return 0

    asked = []
    monkeypatch.setattr(os.path, "isfile", lambda value: asked.append(value))
    count_words([f"{n}.txt" for n in range(100_000)])
    assert len(asked) == files.FEW
    count_words([[float(n)] for n in range(100_000)])
    assert len(asked) == files.FEW


def test_other_strings_files_and_ignored_arguments_are_not_said(session: jn.Session, path: Path) -> None:
    @jn.task(ignore="aside")
    def quiet(text: object, aside: object = None) -> int:
        return 0

    assert warned(quiet, "no.such.file", path) == []
    assert warned(quiet, jn.file(path)) == warned(quiet, jn.NoHash(path)) == warned(quiet, "x\0y.z") == []
    assert warned(quiet, str(path.parent)) == []  # a folder


def test_strings_that_are_never_paths_are_soon_not_looked_at(
    session: jn.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    @jn.task
    def shout(text: str) -> str:
        return text

    asked = []
    monkeypatch.setattr(os.path, "isfile", lambda value: asked.append(value))
    shout.map([f"{n}.txt" for n in range(3 * files.TRIES)])
    assert len(asked) == files.TRIES


def test_arguments_wrapped_in_no_hash_and_custom_hash_count_as_they_say(session: jn.Session) -> None:
    @jn.task
    def f(x: object, workers: object = 1) -> object:
        return x

    assert f(1, jn.NoHash(2)).key == f(1, jn.NoHash([object])).key != f(1, 2).key
    assert f(jn.CustomHash([1, 2], lambda x: "a")).key == f(jn.CustomHash(3, lambda x: "a")).key
    assert f(jn.CustomHash(3, lambda x: "a")).key != f(jn.CustomHash(3, lambda x: "b")).key
