"""Jug's patterns: lists mapped and reduced, tasks that make tasks, arguments that are not what they seem, commands."""

from __future__ import annotations

import functools
import operator
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jug_notebook as jn
from jug_notebook.model import State
from jug_notebook.session import Session
from jug_notebook.task import external
from jug_notebook.task.files import PathAdvice
from tests.crews import working
from tests.kernels import Kernel
from tests.workbench import cell


@contextmanager
def opened(url: str | Path, folder: Path) -> Iterator[Session]:
    session = jn.connect(url, notebook=folder / "work.ipynb")
    with working(session, 2):
        yield session
    session.close()


@pytest.fixture(params=["file", "redis"])
def session(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session with two workers, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    url = request.getfixturevalue("redis_server").url() if request.param == "redis" else tmp_path / "jugdata"
    with opened(url, tmp_path) as made:
        yield made


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """The same on a file store."""
    monkeypatch.chdir(tmp_path)
    with opened(tmp_path / "jugdata", tmp_path) as made:
        yield made


@jn.task
def square(n: int) -> int:
    return n * n


@jn.task
def add(a: Any, b: Any) -> Any:
    return a + b


@jn.task
def spell(thing: Any) -> str:
    return repr(thing)


def error_of(call: Callable[[], object]) -> str:
    """The one line with which a wrong use is refused."""
    with pytest.raises(jn.BadTask) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- map and reduce ----------------------------------------------------------------------------------------------------


def test_map_makes_a_task_of_every_few_calls_and_gives_a_tasklet_for_each(session: Session) -> None:
    squares = jn.mapreduce.map(square, range(10), map_step=4)
    assert len({each.key for each in squares}) == 3
    assert squares.result() == [n * n for n in range(10)]
    assert squares[3].result() == 9
    assert squares[2:4].result() == [4, 9]
    assert jn.mapreduce.map(square, (n for n in range(2)), map_step=1)[1].key == square(1).key


def test_map_is_the_map_of_the_function_itself(session: Session) -> None:
    assert jn.mapreduce.map(square, [1, 2, 3], 2)[0].key == square.map([1, 2, 3], chunksize=2)[0].key


def test_currymap_takes_each_item_as_the_arguments(session: Session) -> None:
    assert jn.mapreduce.currymap(add, [(1, 2), ("a", "b")]).result() == [3, "ab"]


def test_a_mapped_list_may_be_an_argument(session: Session) -> None:
    assert spell(jn.mapreduce.map(square, range(6))).result() == "[0, 1, 4, 9, 16, 25]"


@pytest.mark.parametrize("count", [1, 2, 8, 9, 65, 200])
def test_mapreduce_brings_a_list_down_to_one_value_in_order(session: Session, count: int) -> None:
    words = jn.mapreduce.mapreduce(operator.add, str, range(count), map_step=3, reduce_step=2)
    assert words.result() == "".join(map(str, range(count)))
    assert jn.mapreduce.reduce(add, [str(n) for n in range(count)]).result() == words.result()


def test_tasks_can_be_reduced(session: Session) -> None:
    assert jn.mapreduce.reduce(lambda a, b: a + b, square.map(range(20))).result() == sum(n * n for n in range(20))


def test_nothing_is_reduced_to_an_empty_list(session: Session) -> None:
    assert jn.mapreduce.reduce(add, []).result() == jn.mapreduce.mapreduce(add, square, []).result() == []


def test_the_code_of_mapper_and_reducer_is_in_the_keys(session: Session) -> None:
    def keys(mapper: str, reducer: str) -> str:
        return jn.mapreduce.mapreduce(cell(reducer, "r"), cell(mapper, "m"), range(5)).key

    one, other = "def m(x): return x + 1", "def m(x): return x + 2"
    plus, times = "def r(a, b): return a + b", "def r(a, b): return a * b"
    assert keys(one, plus) == keys(one + "  # the same", plus)
    assert len({keys(one, plus), keys(other, plus), keys(one, times)}) == 3
    helped = "def r(a, b): return h(a, b)\ndef h(a, b): return a {} b"
    assert keys(one, helped.format("+")) != keys(one, helped.format("*"))
    assert jn.mapreduce.mapreduce(cell(plus, "r"), cell(one, "m"), range(5)).result() == 15


def test_inside_a_task_they_are_plain_calls(session: Session) -> None:
    @jn.task
    def inside(n: int) -> Any:
        return jn.mapreduce.map(square, range(n)), jn.mapreduce.mapreduce(add, square, range(n))

    assert inside(4).result() == ([0, 1, 4, 9], 14)


def test_wrong_uses_of_mapreduce_are_refused_in_one_line(session: Session) -> None:
    assert "the mapper is a function, not 3" in error_of(lambda: jn.mapreduce.map(3, [1]))  # type: ignore[arg-type]
    assert "map_step=0: give a whole number of calls" in error_of(lambda: jn.mapreduce.map(square, [1], map_step=0))
    assert "never end" in error_of(lambda: jn.mapreduce.reduce(add, [1, 2], reduce_step=1))
    assert "iterate over jn.result(task)" in error_of(lambda: jn.mapreduce.map(square, square(1)))
    assert "iterates over a list, not over int" in error_of(lambda: jn.mapreduce.reduce(add, 5))  # type: ignore[arg-type]


# -- tasks that make tasks ---------------------------------------------------------------------------------------------


def test_a_compound_task_makes_its_tasks_once(session: Session) -> None:
    made = []

    @jn.CompoundTaskGenerator(ignore_globals=["made"])
    def norm(n: int) -> Any:
        made.append(n)
        return add(jn.mapreduce.reduce(add, square.map(range(n))), 0)

    assert norm(4).result() == 14
    assert norm(4).result() == 14
    assert made == [4]
    assert norm(4).state is State.FINISHED
    assert norm.map([4, 5]).result() == [14, 30]
    assert made == [4, 5]
    assert jn.CompoundTask(norm, 4).key == norm(4).key != norm(5).key
    assert [one.key for one in norm.grid(n=[4, 5])] == [norm(4).key, norm(5).key]


def test_a_compound_task_follows_what_it_is_made_of(session: Session) -> None:
    @jn.CompoundTaskGenerator
    def twice(n: int) -> Any:
        return add(square(n), square(n))

    task = twice(3)
    assert task.result() == 18
    assert [need.name for need in task.dependencies()] == [add.name]
    square(3).invalidate()
    assert task.result() == 18


def test_what_a_compound_function_answers_may_hold_tasks_or_none(session: Session) -> None:
    assert jn.CompoundTask(lambda: {"a": square(2), "b": [square(3), 1]}).result() == {"a": 4, "b": [9, 1]}
    assert jn.CompoundTask(lambda: 7).result() == 7


def test_a_compound_task_may_be_an_argument_and_take_tasks(session: Session) -> None:
    outer = jn.CompoundTask(lambda x: add(x, 1), jn.CompoundTask(lambda: square(5)))
    assert add(outer, 1).result() == 27


def test_the_code_that_makes_the_tasks_is_in_the_key(session: Session) -> None:
    one, other = (f"def f(n):\n    return square(n + {more})" for more in (1, 2))

    def compound(source: str) -> Any:
        function = cell(source)
        function.__globals__["square"] = square
        return jn.CompoundTask(function, 1)

    assert compound(one).key == compound(one + "  # the same").key != compound(other).key
    assert jn.value([compound(one).result(), compound(other).result()]) == [4, 9]


def test_inside_a_task_a_compound_function_is_a_plain_call(session: Session) -> None:
    @jn.CompoundTaskGenerator
    def twice(n: int) -> Any:
        return add(square(n), square(n))

    @jn.task
    def outer() -> Any:
        return twice(2), twice.run(3)

    assert outer().result() == (8, 18)


def test_calls_of_a_compound_function_are_not_chunked(session: Session) -> None:
    compound = jn.CompoundTaskGenerator(lambda n: square(n))
    assert "can't be chunked" in error_of(lambda: compound.map([1], chunksize=2))


def test_a_cached_function_runs_here_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = jn.connect(tmp_path / "jugdata")  # no worker

    def inputs(n: int) -> list[int]:
        with Path("ran.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return list(range(n))

    assert jn.CachedFunction(inputs, 3) == jn.CachedFunction(inputs, 3) == [0, 1, 2]
    assert jn.CachedFunction(spell, square(3)) == "9"  # what it needs is run here too
    assert Path("ran.txt").read_text() == f"{os.getpid()}\n"
    session.close()


def test_a_cached_function_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = jn.connect(tmp_path / "jugdata")  # no worker, which might fail before we look

    def fickle() -> str:
        Path("once").touch() if not Path("once").exists() else Path("twice").touch()
        if not Path("twice").exists():
            raise ValueError("not yet")
        return "now"

    with pytest.raises(jn.TaskFailed, match="not yet"):
        jn.CachedFunction(fickle)
    assert jn.CachedFunction(fickle) == "now"
    session.close()


# -- parts of values ---------------------------------------------------------------------------------------------------


def test_tasklets_take_parts_and_functions_of_values(session: Session) -> None:
    pair = jn.Task(divmod, 17, 5)
    offset = 100
    tasklets = [pair[0], jn.Tasklet(pair, lambda p: p[0] + offset), jn.Tasklet(pair[1], lambda x: -x)]
    assert jn.bvalue(tasklets) == [3, 103, -2]
    assert spell(tasklets).result() == "[3, 103, -2]"
    keys = {spell(jn.Tasklet(pair, function)).key for function in (lambda p: p[0], lambda p: p[1])}
    keys |= {spell(jn.Tasklet(pair, lambda p, by=by: p[0] + by)).key for by in (1, 2)}
    assert len(keys) == 4


def test_iteratetask_unpacks(session: Session) -> None:
    a, b = jn.iteratetask(jn.Task(divmod, 17, 5), 2)
    assert (a.result(), b.result()) == (3, 2)
    assert "whole number of values" in error_of(lambda: jn.iteratetask(jn.Task(divmod, 17, 5), -1))
    assert "takes a task apart" in error_of(lambda: jn.iteratetask([1, 2], 2))  # type: ignore[arg-type]


def test_return_tuple_unpacks_and_counts(session: Session) -> None:
    @jn.return_tuple(2)
    @jn.task(retries=1)
    def both(n: int) -> tuple[int, ...]:
        return (n, n + 1) if n else (1, 2, 3)

    a, b = both(1)
    assert (a.result(), b.result()) == (1, 2)
    assert both.retries == 1
    with pytest.raises(jn.TaskFailed, match="it returned 3 values, not 2"):
        both(0).result()
    assert "whole number of values" in error_of(lambda: jn.return_tuple(0))


def test_another_number_of_values_is_another_task(session: Session) -> None:
    keys = {jn.return_tuple(n)(cell("def f(x): return x, x"))(1).key for n in (2, 3)}
    assert len(keys) == 2


# -- arguments that are not what they seem -----------------------------------------------------------------------------


class Sum:
    """Two tasks, worth the sum of their values."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right

    def __jug_dependencies__(self) -> list[Any]:
        return [self.left, [self.right]]

    def __jug_value__(self) -> Any:
        return jn.value(self.left) + jn.value(self.right)


class Named(Sum):
    def __jug_hash__(self) -> str:
        return "sum"


@pytest.mark.parametrize("kind", [Sum, Named])
def test_an_argument_that_tells_its_own_value_is_worth_that_to_the_function(session: Session, kind: type[Sum]) -> None:
    assert spell(kind(square(3), square(4))).result() == "25"
    assert spell([kind(square(3), kind(square(1), 2))]).result() == "[12]"
    assert spell(kind(1, 2)).result() == "3"
    assert spell.map([1, 2], chunksize=1).result() == ["1", "2"]
    assert spell(kind(square(3), 0)).key != spell(kind(square(4), 0)).key
    assert {need.key for need in spell(kind(square(3), square(4))).dependencies()} == {square(3).key, square(4).key}


def test_what_tells_its_own_value_is_asked_by_value_and_waited_for(session: Session) -> None:
    total = Sum(square(3), square(4))
    assert jn.bvalue({"total": [total]}) == {"total": [25]}
    assert jn.value(total) == 25
    assert {task.key for task in jn.tasks_in([total])} == {square(3).key, square(4).key}


def test_what_it_is_worth_is_told_by_the_worker_each_time(session: Session) -> None:
    both = Sum(square(3), 1)

    def twice(a: Any, *, b: Any) -> Any:
        return a, b

    assert jn.Task(twice, both, b=both).result() == (10, 10)
    assert jn.task(twice).map([1, 2], b=both).result() == [(1, 10), (2, 10)]


def test_wrong_dependencies_are_refused_in_one_line(session: Session) -> None:
    class Wrong(Sum):
        def __jug_dependencies__(self) -> Any:
            return 5

    with pytest.raises(jn.Unhashable, match="__jug_dependencies__ returns an int, not a list of tasks"):
        spell(Wrong(1, 2))


def test_a_class_that_names_its_instances_itself_is_believed(session: Session) -> None:
    class Grid:
        def __init__(self, name: str, junk: object) -> None:
            self.name, self.junk = name, junk

        def __jug_hash__(self) -> str:
            return self.name

    assert spell(Grid("a", 1)).key == spell(Grid("a", 2)).key != spell(Grid("b", 1)).key


def test_a_figure_is_a_result_and_as_an_argument_is_refused_in_one_line(session: Session) -> None:
    @jn.task
    def draw() -> Any:
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([1, 2, 3])
        right.scatter([1, 2], [3, 4])
        return figure, left, right

    assert len(draw().result()[0].axes) == 2
    with pytest.raises(jn.Unhashable, match="argument 'thing'"):
        spell(draw().result())


def test_no_hash_and_custom_hash_hand_on_what_they_hold(session: Session) -> None:
    assert spell(jn.NoHash([1])).result() == spell(jn.NoHash([2])).result() == "[1]"
    assert spell(jn.CustomHash({"a": 1}, lambda d: sorted(d)[0])).result() == "{'a': 1}"
    assert "pass the task itself" in error_of(lambda: jn.NoHash(square(1)))


# -- tasks that are not loaded -----------------------------------------------------------------------------------------


@jn.task
def peek(ref: Any, load: bool) -> Any:
    return ref.key, ref.name, ref.state.value, jn.value(ref) if load else None


def test_a_task_that_is_not_loaded_is_waited_for_and_loaded_on_demand(session: Session) -> None:
    task = square(6)
    assert peek(jn.NoLoad(task), True).result() == (task.key, square.name, "finished", 36)
    assert peek(jn.NoLoad(task), False).result() == (task.key, square.name, "finished", None)
    assert [need.key for need in peek(jn.NoLoad(task), True).dependencies()] == [task.key]


def test_a_part_that_is_not_loaded_is_a_part_when_it_is(session: Session) -> None:
    pair = jn.Task(divmod, 17, 5)

    @jn.task
    def late(refs: dict[str, Any]) -> Any:
        return refs["part"].value(), jn.value(refs)["whole"]

    assert late({"part": jn.NoLoad(pair[1]), "whole": jn.NoLoad(pair)}).result() == (2, (3, 2))


def test_loaded_and_not_loaded_are_two_tasks(session: Session) -> None:
    assert len({spell(square(2)).key, spell(jn.NoLoad(square(2))).key, spell(jn.NoLoad(square(3))).key}) == 3
    assert jn.NoLoad(square(2)) == jn.NoLoad(square(2)) != square(2)


def test_what_tells_of_one_task_is_not_taken_over_for_another_of_equal_value(session: Session) -> None:
    for n in (2, -2):
        assert peek(jn.NoLoad(square(n)), False).result()[0] == square(n).key


def test_what_is_not_loaded_is_not_read(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = jn.Task(np.zeros, 100_000)
    heavy.result()
    read = []
    really = session.access.store.get_blob
    get = functools.partial(really, mapped=True)

    def get_blob(address: str, mapped: bool = False) -> memoryview:
        read.append(address)
        return really(address, mapped)

    monkeypatch.setattr(session.access.store, "get_blob", get_blob)

    def blobs() -> int:
        return sum(len(get(address)) >= 800_000 for address in read)

    assert peek(jn.NoLoad(heavy), False).result()[3] is None
    assert blobs() == 0
    assert jn.Task(lambda ref: float(jn.value(ref).sum()), jn.NoLoad(heavy)).result() == 0.0
    assert blobs() == 1


def test_a_value_that_is_lost_when_it_is_asked_for_is_computed_again_whatever_the_task_makes_of_that(
    in_a_folder: Session,
) -> None:
    heavy = jn.Task(np.ones, 100_000)
    heavy.result()

    @jn.task
    def careless(ref: Any) -> float:
        with Path("tries.txt").open("a") as file:
            file.write("tried\n")
        try:
            return float(jn.value(ref).sum())
        except Exception:
            return -1.0

    [blob] = [path for path in Path("jugdata/blobs").rglob("*") if path.is_file() and path.stat().st_size > 700_000]
    blob.unlink()
    assert careless(jn.NoLoad(heavy)).result() == 100_000.0
    assert Path("tries.txt").read_text() == "tried\ntried\n"


def test_the_value_of_a_task_that_is_not_loaded_is_in_the_notebook_its_value(session: Session) -> None:
    assert jn.bvalue([jn.NoLoad(square(3))]) == [9]
    assert jn.wait(jn.NoLoad(square(3))).not_done == set()


def test_inside_a_task_what_is_not_loaded_is_the_value_itself(session: Session) -> None:
    @jn.task
    def outer(n: int) -> Any:
        return spell(jn.NoLoad(square(n)))

    assert outer(3).result() == "9"


def test_an_unloaded_task_tells_in_a_task_what_it_can_not_do_there(session: Session) -> None:
    failed = jn.Task(lambda ref: ref.invalidate(), jn.NoLoad(square(1)))
    with pytest.raises(jn.TaskFailed, match="has its value, key, name and provenance, and no 'invalidate'"):
        failed.result()


def test_wrong_uses_of_no_load_are_refused_in_one_line(session: Session) -> None:
    assert "NoLoad takes a task" in error_of(lambda: jn.NoLoad([square(1)]))
    assert "take NoLoad(task[0])" in error_of(lambda: jn.NoLoad(square(1))[0])
    assert "made from a task" in error_of(lambda: jn.Tasklet(jn.NoLoad(square(1)), abs))
    assert jn.NoLoad(jn.NoLoad(square(1))) == jn.NoLoad(square(1))


# -- the world outside -------------------------------------------------------------------------------------------------


def test_a_command_is_a_task_with_status_output_and_files(session: Session) -> None:
    ran = jn.shell("printf 'b\\na\\n' | sort | tee sorted.txt; echo careful >&2", outputs="sorted.txt")
    found = ran.result()
    assert (found.status, found.stdout, found.stderr) == (0, "a\nb\n", "careful\n")
    assert found.files == {"sorted.txt": b"a\nb\n"}
    assert "careful" in ran.log()
    Path("sorted.txt").unlink()
    assert found.save() == [Path("sorted.txt")]
    assert Path("sorted.txt").read_text() == "a\nb\n"


def test_words_of_a_command_may_be_tasks_files_and_numbers(session: Session) -> None:
    Path("data.txt").write_text("one\ntwo\n")
    first = jn.shell(["head", "-n", 1, jn.file("data.txt")])
    assert jn.shell(["echo", first, square(3), "three words"]).result().stdout == "one 9 three words\n"
    assert jn.shell(["wc", "-w"], stdin=first).result().stdout.strip() == "1"
    before = first.key
    Path("data.txt").write_text("two\n")
    assert jn.shell(["head", "-n", 1, jn.file("data.txt")]).key != before


def test_a_command_that_fails_says_how_in_one_line(session: Session) -> None:
    with pytest.raises(jn.TaskFailed, match="CommandFailed: echo no >&2; exit 3: exit status 3: no"):
        jn.shell("echo no >&2; exit 3").result()
    with pytest.raises(jn.TaskFailed, match="no-such-program: No such file"):
        jn.shell(["no-such-program"]).result()
    with pytest.raises(jn.TaskFailed, match=r"should have written the file out\.txt, but there is none"):
        jn.shell("true", outputs=["out.txt"]).result()
    assert jn.shell("exit 3", check=False, outputs="out.txt").result().status == 3


def test_a_command_waits_for_what_it_comes_after(session: Session) -> None:
    made = jn.shell("echo there > made.txt")
    assert jn.shell(["cat", "made.txt"], after=[made]).result().stdout == "there\n"


def test_a_command_in_another_folder_is_another_task(session: Session, tmp_path: Path) -> None:
    here = jn.shell(["ls"]).key
    (tmp_path / "other").mkdir()
    other = jn.connect(session.url, notebook=tmp_path / "other" / "work.ipynb")
    assert jn.shell(["ls"]).key != here
    other.close()


def test_a_word_that_is_a_files_path_is_said_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "_PATH_ADVICE", PathAdvice("shell"))  # others may have seen it
    Path("data.txt").write_text("one\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jn.shell(["cat", "data.txt"])
        jn.shell(["wc", "data.txt"])
        jn.shell(["sort", "x", "-o", "data.txt"], outputs=["data.txt"])
    assert [one.category for one in caught] == [jn.OnlyAPath]


def test_wrong_commands_are_refused_in_one_line(session: Session) -> None:
    assert "the command is empty" in error_of(lambda: jn.shell(" "))
    assert "a string or a list of words, not int" in error_of(lambda: jn.shell(5))
    assert "a word of a command" in error_of(lambda: jn.shell(["echo", None]))
    assert "outputs are paths" in error_of(lambda: jn.shell("true", outputs=[3]))  # type: ignore[list-item]
    assert "env=5: give a dict of variables" in error_of(lambda: jn.shell("true", env=5))  # type: ignore[arg-type]
    assert "source=5 is not a string" in error_of(lambda: jn.cell_task("one", 5, {}))  # type: ignore[arg-type]


def test_a_cached_glob_stays_as_it_was_until_it_is_invalidated(session: Session) -> None:
    for name in ("b.csv", "a.csv", "c.txt"):
        Path(name).touch()
    assert jn.cached_glob("*.csv") == ["a.csv", "b.csv"]
    Path("d.csv").touch()
    assert jn.cached_glob("*.csv") == ["a.csv", "b.csv"]
    jn.invalidate("cached_glob")
    assert jn.cached_glob("*.csv") == ["a.csv", "b.csv", "d.csv"]
    assert "takes a pattern" in error_of(lambda: jn.cached_glob(Path("*.csv")))  # type: ignore[arg-type]


def test_a_relative_glob_is_another_one_in_another_folder(session: Session, tmp_path: Path) -> None:
    Path("a.csv").touch()
    assert jn.cached_glob("*.csv") == ["a.csv"]
    (tmp_path / "other").mkdir()
    os.chdir(tmp_path / "other")
    assert jn.cached_glob("*.csv") == []


def test_results_are_written_with_their_provenance(session: Session) -> None:
    import json

    import yaml

    array = jn.Task(np.arange, square(3))
    assert jn.write_task_out(array, "a.npy", "a.json").result() == "a.npy"
    assert np.load("a.npy").tolist() == list(range(9))
    report = json.loads(Path("a.json").read_text())
    assert (report["name"], report["state"], report["run"]["host"]) == (
        "numpy.arange",
        "finished",
        array.provenance()["run"]["host"],
    )
    assert [above["name"] for above in report["upstream"].values()] == [square.name]
    jn.write_task_out(square(4), Path("b.pkl"), "b.yaml").result()
    assert pickle.loads(Path("b.pkl").read_bytes()) == 16
    assert yaml.safe_load(Path("b.yaml").read_text())["name"] == square.name
    assert jn.write_task_out(square(5), None, "c.json").result() == "c.json"
    assert not [path for path in Path().iterdir() if path.name.startswith(".") and path.is_file()]


def test_wrong_uses_of_write_task_out_are_refused_in_one_line(session: Session) -> None:
    assert "the value of a task, not int" in error_of(lambda: jn.write_task_out(5, "a.pkl"))
    assert "needs a file name" in error_of(lambda: jn.write_task_out(square(1), None))
    assert "'json' or 'yaml', not 'xml'" in error_of(lambda: jn.write_task_out(square(1), "a", "b", "xml"))


# -- as a notebook's user meets them -----------------------------------------------------------------------------------


def test_in_a_notebook_with_real_workers_the_patterns_do_what_jugs_do(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, JPY_SESSION_NAME=str(tmp_path / "work.ipynb"))
    try:
        run = functools.partial(kernel.run)
        run("%load_ext jug_notebook\nimport jug_notebook as jn")
        run("%%jugtask\ndef square(n):\n    return n * n\ndef look(ref):\n    return ref.name, jn.value(ref)\n")
        run(
            "class Both:\n    def __init__(self, *tasks): self.tasks = tasks\n"
            "    def __jug_dependencies__(self): return self.tasks\n"
            "    def __jug_value__(self): return sum(jn.value(list(self.tasks)))"
        )
        run(
            "add = lambda a, b: a + b\n"
            "@jn.CompoundTaskGenerator\ndef sums(n):\n    print('making')\n"
            "    return jn.mapreduce.mapreduce(add, square, range(n))"
        )
        assert "is not stored" in run("%jug_why sums(11)").displays[0]["data"]["text/plain"]
        run("%jug_execute -n 2")
        assert run("sums(10).result()").result == "285"
        again = run("sums(10).result()")
        assert (again.out, again.result) == ("", "285")
        assert run("look(jn.NoLoad(square(7))).result()").result == "('square', 49)"
        assert run("square(Both(square(1), square(2))).result()").result == "25"
        assert run("jn.shell('echo $((6 * 7))').result().stdout").result == r"'42\n'"
        assert run("jn.CachedFunction(sorted, [3, 1])").result == "[1, 3]"
        reply = run("tasks = square.map(range(20, 60)); jn.barrier(); {t.state.value for t in tasks}")
        assert reply.result == "{'finished'}", reply.traceback
        reply = run("n = jn.bvalue(square(8)); [square(i) for i in range(n)][-1].result()")
        assert reply.result == str(63 * 63)
    finally:
        kernel.run("%jug_stop --now")
        kernel.close()
