"""Calls become tasks: how they are bound, named, shown and put together; values come from workers that are threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import functools
import itertools
import pickle
import threading
from collections import deque, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jug_notebook as jn
from jug_notebook.task.context import running
from tests.crews import working


@pytest.fixture
def session(tmp_path: Path) -> Iterator[jn.Session]:
    opened = jn.connect(f"memory:{tmp_path.name}", notebook=tmp_path)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _no_definitions() -> Iterator[None]:
    yield
    jn.definitions.clear()


@jn.task
def double(x: Any, y: Any = 2) -> Any:
    return x * y


@jn.task
def total(xs: Any) -> Any:
    return sum(xs)


@jn.task(nout=2)
def pair(x: int) -> tuple[int, int]:
    return x, x + 1


@jn.task
def fails(x: int) -> None:
    print("about to fail")
    raise KeyError(x)


@jn.task
def keywords(a: int, *rest: int, b: int = 1, **more: int) -> Any:
    return a, rest, b, more


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    def scale(self, x: int) -> int:
        return self.factor * x


Point = namedtuple("Point", "x y")


# -- binding -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("session")
def test_calls_that_mean_the_same_are_one_task():
    assert double(3).key == double(x=3).key == double(3, 2).key == double(3, y=2).key == double(y=2, x=3).key
    assert len({double(3).key, double(3, 3).key, double(3.0).key, double(True).key, double("3").key}) == 5


def with_defaults(**given: Any) -> Any:
    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **{**given, **kwargs}), len(args)

        return inner

    return decorate


def test_a_wrapper_may_have_defaults_of_its_own_and_treat_names_otherwise(session):
    @jn.task(ignore=["quiet"])
    @with_defaults(n=10)
    def scaled(x, n=3, quiet=True):
        return x * n

    calls = [scaled(1), scaled(1, n=3), scaled(x=1), scaled.map([1], n=3)[0]]
    assert len({call.key for call in calls}) == 3
    assert calls[1].key == calls[3].key
    assert scaled(1, n=3, quiet=True).key == scaled(1, n=3, quiet=False).key
    assert "(x=1, n=3)" in repr(calls[1])
    with working(session):
        assert [call.result() for call in calls] == [(10, 1), (3, 1), (10, 0), (3, 1)]


def test_defaults_that_were_replaced_are_the_ones_that_count(session):
    def scaled(x, n=2, *, m=1):
        return x * n * m

    task = jn.task(scaled)
    former = task(3)
    session.submissions.flush()
    scaled.__defaults__, scaled.__kwdefaults__ = (5,), {"m": 4}
    assert len({former.key, task(3).key, task(3, 2).key, task(3, m=1).key}) == 4
    assert task(3).key == task(3, 5, m=4).key
    session.submissions.flush()
    scaled.__code__ = (lambda x, k, n=2, *, m=1: x * n * m).__code__
    assert task(3, 2).key == task(3, n=5, k=2).key != task(3, n=2, k=5).key


@pytest.mark.usefixtures("session")
def test_keyword_arguments_have_no_order_unless_the_function_gathers_them():
    assert keywords(a=1, b=2, p=1).key == keywords(p=1, b=2, a=1).key
    assert keywords(1, p=1, q=2).key == keywords(1, p=1, b=1, q=2).key != keywords(1, q=2, p=1).key  # `more` shows it
    assert keywords(1, 2, 3).key != keywords(1, 2).key


@pytest.mark.usefixtures("session")
def test_a_wrong_call_is_refused_where_it_is_made():
    with pytest.raises(TypeError, match=r"double\(\) missing a required argument: 'x'"):
        double()
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        double(1, z=2)
    with pytest.raises(TypeError, match="too many positional arguments"):
        double(1, 2, 3)
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        double(1, x=1)
    with pytest.raises(TypeError, match="missing"):
        keywords.starmap([()])


def test_ignored_arguments_reach_the_function_but_not_the_key(session):
    @jn.task(ignore="verbose")
    def loud(x, verbose=False):
        return x, verbose

    assert loud(1, verbose=True).key == loud(1).key
    task = loud(2, verbose=True)
    with working(session):
        assert task.result() == (2, True)


def test_arguments_are_encoded_when_the_call_is_made(session):
    numbers = [1, 2, 3]
    task = total(numbers)
    numbers.append(100)
    with working(session):
        assert task.result() == 6


@pytest.mark.usefixtures("session")
def test_what_cannot_be_named_is_refused_by_name():
    with pytest.raises(jn.Unhashable, match="argument 'x'"):
        double({"lock": threading.Lock()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": "nothing"}, "has no such argument"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0}, "timeout=0"),
        ({"nout": 0}, "nout=0"),
        ({"nout": 2.0}, "nout=2.0: give a whole number"),
        ({"retries": "3"}, "retries=.3.: give a whole number"),
        ({"timeout": "5"}, "timeout=.5.: give a number of seconds"),
        ({"priority": "high"}, "priority=.high.: give a whole number, "),
        ({"name": 5}, "name=5: a task function"),
        ({"retires": 1}, "no option 'retires'"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(jn.BadTask, match=message):
        jn.task(**options)(lambda x: x)


def test_what_no_task_can_be_made_of_is_refused():
    with pytest.raises(jn.BadTask, match="not from int"):
        jn.task(3)


def test_a_task_function_keeps_name_signature_and_doc():
    @jn.task
    def documented(x: int, y: int = 1) -> int:
        """Says something."""
        return x + y

    import inspect

    assert documented.__doc__ == "Says something."
    assert documented.__name__ == "documented"
    assert str(inspect.signature(documented)) == "(x: 'int', y: 'int' = 1) -> 'int'"
    assert documented.__wrapped__ is documented.__jug_function__
    assert documented.run(1) == 2


# -- values ------------------------------------------------------------------------------------------------------------


def test_tasks_are_found_wherever_they_are_in_the_arguments(session):
    inner = double(3)
    task = jn.Task(lambda x: x, {"a": [inner, (inner, 1)], "b": {2: inner}})
    with working(session):
        assert task.result() == {"a": [6, (6, 1)], "b": {2: 6}}
    assert [need.key for need in task.dependencies()] == [inner.key]


def test_value_loads_what_holds_tasks(session):
    tree = {"list": [double(1), 5], "point": Point(double(2), 0), "set": {7}, "pair": (double(3),), "part": pair(4)[1]}
    with pytest.raises(jn.NotReady, match=r"double\(x=1, y=2\) is ready"):
        jn.value(tree)
    with working(session):
        jn.barrier()
    assert jn.value(tree) == {"list": [2, 5], "point": Point(4, 0), "set": {7}, "pair": (6,), "part": 5}


def test_what_has_no_value_can_be_left_out_or_shown_in_its_place(session):
    tasks = [double(1), fails(1), double(2)]
    with working(session):
        jn.wait(tasks)
    assert jn.value(tasks, on_error="skip") == [2, 4]
    first, error, last = jn.value(tasks, on_error="return")
    assert (first, last) == (2, 4)
    assert isinstance(error, jn.TaskFailed)
    with pytest.raises(jn.TaskFailed):
        jn.value(tasks)
    with pytest.raises(ValueError, match="on_error"):
        jn.value(tasks, on_error="ignore")


def test_lambdas_partials_methods_classes_and_builtins_are_tasks_too(session):
    tasks = [
        jn.Task(lambda x: x + 1, 3),
        jn.Task(functools.partial(double.__jug_function__, y=5), 2),
        jn.Task(Scaler(4).scale, 2),
        jn.Task(Scaler(4), 3),
        jn.Task(len, [1, 2]),
        jn.Task("abc".upper),
        jn.Task(dict, a=1),
        jn.Task(double, 4),
    ]
    with working(session):
        assert jn.bvalue(tasks) == [4, 10, 8, 12, 2, "ABC", {"a": 1}, 8]


@pytest.mark.usefixtures("session")
def test_a_partial_is_the_call_it_stands_for():
    assert jn.Task(functools.partial(double, y=5), 2).key == double(2, 5).key


def test_functions_with_nout_unpack_into_tasklets(session):
    first, second = pair(4)
    both = total([first, second])
    with working(session):
        assert (first.result(), second.result(), both.result()) == (4, 5, 9)
    assert len(pair(4)) == 2
    assert [part.result() for part in jn.iteratetask(pair(4), 2)] == [4, 5]


def test_tasklets_are_parts_and_functions_of_a_value(session):
    numbers = jn.Task(list, range(10))
    parts = [numbers[3], numbers[2:5], numbers[2:5][1], jn.Tasklet(numbers, len), jn.Tasklet(numbers[2:4], sum)]
    with working(session):
        assert jn.bvalue(parts) == [3, [2, 3, 4], 3, 10, 5]
        assert total(parts[1]).result() == 9
    assert parts[1].name == "list"
    assert "list(" in repr(parts[3])


def test_awaiting_a_task_gives_its_value(session):
    async def gather():
        return await asyncio.gather(*(double(i) for i in range(20)))

    with working(session):
        assert asyncio.run(gather()) == [2 * i for i in range(20)]


def test_identity_and_arguments_named_otherwise(session):
    assert double(jn.NoHash(1)).key == double(jn.NoHash(2)).key
    assert double(jn.CustomHash(1, str)).key != double(jn.CustomHash(2, str)).key
    task, same = double(jn.NoHash(21), 3), jn.identity([1, 2])
    with working(session):
        assert (task.result(), total(same).result()) == (63, 3)
    with pytest.raises(jn.BadTask, match="NoHash can't hold a task"):
        jn.NoHash([same])


# -- many at once ------------------------------------------------------------------------------------------------------


def test_what_a_generator_changes_on_its_way_is_seen_in_each_call(session):
    heavy = list(range(20_000))

    def grown(times: int) -> Iterator[list[int]]:
        for _ in range(times):
            heavy.append(1)
            yield heavy

    with working(session):
        assert total.map(grown(2)).result() == [199_990_001, 199_990_002]
        assert total.starmap([grown(1), grown(1)]).result() == [199_990_003, 199_990_004]
    with pytest.raises(jn.JugError, match="changed in place before its chunk was complete"):
        total.map(grown(2), chunksize=2)
    copies = (list(each) for each in grown(2))
    with working(session):
        assert total.map(copies, chunksize=2).result() == [199_990_007, 199_990_008]

    class Setting:
        level = 0

    def settings() -> Iterator[Setting]:
        for Setting.level in range(3):
            yield Setting()

    assert len({task.key for task in double.map(settings())}) == 3


def test_map_starmap_and_grid_make_the_calls_one_would_write(session):
    assert [t.key for t in double.map(range(3))] == [double(i).key for i in range(3)]
    assert [t.key for t in double.map(range(3), range(3))] == [double(i, i).key for i in range(3)]
    assert [t.key for t in double.map([1, 2], y=7)] == [double(1, 7).key, double(2, 7).key]
    assert [t.key for t in double.starmap([(1, 2), (3,)])] == [double(1, 2).key, double(3).key]
    assert [t.key for t in double.grid(x=[1, 2], y=range(2))] == [double(x, y).key for x in (1, 2) for y in (0, 1)]
    assert [t.key for t in double.grid(x=["a", "b"], y=3)] == [double("a", 3).key, double("b", 3).key]
    with working(session):
        assert double.map(range(5)).result() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"a": [1]}), "this DataFrame has 2 dimensions, and would be a task for each column"),
        (np.ones((2, 3)), "this ndarray has 2 dimensions, and would be a task for each row"),
    ],
)
def test_a_table_is_no_axis_of_a_grid(session, table, message):
    for grid in (double.grid, jn.CompoundTaskGenerator(double.run).grid):
        with pytest.raises(jn.BadTask, match=message) as refusal:
            grid(x=table, y=[1])
        assert "x=[x] to pass it as one value, x=list(x) for a task for each" in str(refusal.value)
    assert [task.key for task in double.grid(x=[table])] == [double(table).key]
    assert [task.key for task in double.grid(x=list(table))] == [double(part).key for part in table]


def test_arrays_of_one_dimension_are_axes_and_those_of_none_are_constants(session):
    assert len(double.grid(x=np.arange(3), y=pd.Series([1.0, 2.0]))) == 6
    assert len(double.grid(x=np.array(1), y=[1, 2])) == 2


def test_a_table_or_a_text_is_no_list_of_calls(session):
    table = pd.DataFrame({"a": [1]})
    for call in (lambda: double.map(table), lambda: double.starmap(table)):
        with pytest.raises(jn.BadTask, match="a task for the name of each column"):
            call()
    for item in ("ab", {"x": 1}):
        with pytest.raises(jn.BadTask, match="a tuple of arguments for each call"):
            double.starmap([item])


def test_a_grid_of_more_than_a_million_calls_tells_its_size_and_makes_none(session):
    with pytest.raises(jn.BadTask, match=r"would make 2,002,000 calls \(x: 1,001 x y: 2,000\)"):
        double.grid(x=range(1001), y=range(2000))
    with pytest.raises(jn.BadTask, match="chunksize=1000"):
        double.grid(x=itertools.count())
    assert not any(session.status(all=True).counts.values())


def test_chunks_are_one_task_each_and_show_a_tasklet_a_call(session):
    calls = double.map(range(7), chunksize=3, y=10)
    assert len(calls) == 7
    assert len({call.key for call in calls}) == 3
    assert calls[0].key != double(0, 10).key
    with working(session):
        assert calls.result() == [10 * i for i in range(7)]
    with pytest.raises(TypeError, match="missing a required argument"):
        double.starmap([()], chunksize=2)
    needy = double.map(calls[:4], chunksize=2)
    with working(session):
        assert needy.result() == [0, 20, 40, 60]


def test_a_failing_call_in_a_chunk_is_named(session):
    chunk = jn.task(lambda x: 1 // x, name="inverse").map([1, 0, 2], chunksize=3)
    with working(session), pytest.raises(jn.TaskFailed, match="in call 1 of a chunk of 3"):
        chunk.result()


def test_a_list_of_tasks_is_a_list_in_arguments(session):
    many = double.map(range(4))
    assert total(many).key == total(list(many)).key
    task = jn.Task(type, many)
    with working(session):
        assert task.result() is list


def test_a_list_of_tasks_shows_as_one_table(session):
    many = double.map(range(500)) + fails.map(range(3))
    assert "500 of " in repr(many)
    assert len(repr(many)) < 300
    for text in (many.as_text(), many.as_html()):
        assert all(part in text for part in ("503", "500 ready", "x=7, y=2", "and 495 more"))
        assert "x=8, y=2" not in text
    assert "503 tasks of " in repr(total(many))
    with working(session):
        many.wait()
    assert (len(many.done), len(many.failed), len(many[:10])) == (503, 3, 10)
    assert isinstance(many[:10], jn.TaskList)
    page = many._repr_html_()
    assert page.count("<tr ") == 1 + 2 + 1 + 8  # by function, and the first few
    assert "int 14" in page
    assert "\u00a0ms" in page
    assert "int 14" in many.as_text(steady=True)
    assert " ms" not in many.as_text(steady=True)
    assert "'seven' " in jn.TaskList(many[7:8]).as_text(["seven"])
    assert "Error" in many[-1:]._repr_html_()
    counts = many.status().counts
    assert (counts[jn.State.FINISHED], counts[jn.State.FAILED]) == (500, 3)


def test_as_completed_gives_each_task_once(session):
    many = double.map(range(50))
    with working(session, workers=2):
        seen = list(jn.as_completed(many))
    assert sorted(t.key for t in seen) == sorted(t.key for t in many)


ITERABLES: dict[str, Any] = {
    "the values of a dict": lambda tasks: dict(enumerate(tasks)).values(),
    "the keys of a dict": lambda tasks: dict.fromkeys(tasks).keys(),
    "a generator": lambda tasks: (task for task in tasks),
    "a map": lambda tasks: map(copy.copy, tasks),
    "a filter": lambda tasks: filter(lambda task: True, tasks),
    "a deque": deque,
    "an object with __iter__": lambda tasks: type("Tasks", (), {"__iter__": lambda self: iter(tasks)})(),
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_any_iterable_of_tasks_is_waited_for_and_read_once(session, kind):
    many = double.map(range(3))
    with working(session):
        assert jn.wait(ITERABLES[kind](many)) == (set(many), set())
        assert set(jn.as_completed(ITERABLES[kind](many))) == set(many)
        assert jn.bvalue(ITERABLES[kind](many)) == [0, 2, 4]
        assert jn.value(ITERABLES[kind](many)) == [0, 2, 4]


def test_iterables_inside_containers_are_read_too(session):
    one, two = double(1), double(2)
    point = namedtuple("point", "x y")
    held = {"views": {1: one}.values(), "pair": (enumerate([two]), 3), "point": point(iter([two]), deque([one]))}
    assert jn.tasks_in([{1: one}.items(), deque([two])]) == [one, two]
    with working(session):
        assert jn.bvalue(held) == {"views": [2], "pair": ([(0, 4)], 3), "point": point([4], [2])}
        assert jn.wait([iter([one]), [map(copy.copy, [two])]]).done == {one, two}
    assert jn.retry({1: one}.values()) == jn.retry(task for task in [one]) == 0


def test_what_cant_hold_tasks_is_its_own_value(session, tmp_path):
    (tmp_path / "file").write_text("a line\n")
    with (tmp_path / "file").open() as file:
        things = ["text", b"bytes", np.ones(2), pd.DataFrame({"a": [1]}), range(3), file, 3, None, {1}, pd.Series([1])]
        things += [bytearray(b"x"), type("Numbers", (), {"__iter__": lambda self: iter([1, 2])})(), {"a": [1]}, [[1]]]
        for thing in things:
            if type(thing) in (list, set, dict):
                assert jn.wait(thing) == (set(), set())
                assert list(jn.as_completed(thing)) == []
            else:
                for waits in (jn.wait, lambda it: next(jn.as_completed(it))):
                    with pytest.raises(jn.NoSuchTask, match="holds no task"):
                        waits(thing)
            found = jn.value(thing)
            assert found is thing or (type(thing) in (list, set, dict) and found == thing)
        assert file.read() == "a line\n"


# -- manners -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        bool,
        len,
        list,
        int,
        float,
        lambda t: t + 1,
        lambda t: 1 + t,
        lambda t: -t,
        lambda t: t < 1,
        lambda t: t == 1,
        lambda t: [0][t],
        lambda t: 3 in t,
        lambda t: f"{t:.2f}",
        lambda t: t(),
        lambda t: round(t),
    ],
)
@pytest.mark.parametrize("kind", ["task", "tasklet"])
@pytest.mark.usefixtures("session")
def test_a_task_taken_for_its_value_says_what_to_do(use, kind):
    task = double(3) if kind == "task" else double([3])[0]
    with pytest.raises(jn.TaskNotValue, match=r"is a task; use \.result\(\)"):
        use(task)


@pytest.mark.usefixtures("session")
def test_numpy_does_not_take_a_task_for_a_number():
    numpy = pytest.importorskip("numpy")
    for use in (numpy.array, lambda t: numpy.array([t]), lambda t: numpy.float64(2) * t, numpy.mean):
        with pytest.raises(jn.TaskNotValue):
            use(double(3))


@pytest.mark.usefixtures("session")
def test_an_attribute_of_the_value_is_asked_of_the_result():
    with pytest.raises(AttributeError, match=r"use \.result\(\)\.shape"):
        double(3).shape  # noqa: B018
    assert not hasattr(double(3), "_repr_png_")
    with pytest.raises(AttributeError, match=r"no 'results'; use \.result\(\)\.results; did you mean result\?"):
        double(3).results  # noqa: B018
    with pytest.raises(AttributeError, match=r"no 'compute'; use \.result\(\)$"):
        double(3).compute()
    with pytest.raises(AttributeError, match=r"a list of tasks has no 'mean'; use \.result\(\) for the list"):
        double.map([3]).mean()
    assert not hasattr(double.map([3]), "_repr_png_")


@pytest.mark.usefixtures("session")
def test_a_call_that_does_not_fit_names_what_was_meant():
    with pytest.raises(AttributeError, match=r"is a task function and has no 'result'; call it first: .*\(…\)\.result"):
        double.result()
    with pytest.raises(AttributeError, match="'TaskFunction' object has no attribute 'nothing'"):
        double.nothing  # noqa: B018
    with pytest.raises(TypeError, match=r"double\(\) got too many positional arguments; it takes \(x, y\)"):
        double(1, 2, 3)
    with pytest.raises(
        TypeError, match=r"execute\(\) got an unexpected keyword argument 'worker'; did you mean workers\?"
    ):
        jn.execute(worker=3)
    with pytest.raises(
        TypeError, match=r"execute\(\) got an unexpected keyword argument 'worker'; did you mean workers\?"
    ):
        jn.current().execute(worker=3)


def test_one_task_that_failed_is_left_out_or_returned_like_many(session: jn.Session) -> None:
    invert = jn.task(lambda x: 1 / x)
    with working(session):
        assert invert(2).result(on_error="skip") == 0.5
        assert invert(0).result(on_error="skip") is None
        assert isinstance(invert(0).result(on_error="return"), jn.TaskFailed)
    with pytest.raises(ValueError, match="on_error is 'raise', 'skip' or 'return', not 'none'"):
        invert(0).result(on_error="none")


@pytest.mark.usefixtures("session")
def test_a_task_plotted_as_a_value_is_named():
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    for draw in (axes.plot, lambda ys: axes.bar([1], ys), lambda ys: axes.scatter([1], ys)):
        with pytest.raises(jn.TaskNotValue, match=r"double\(x=3, y=2\) is a task"):
            draw([double(3)])


@pytest.mark.usefixtures("session")
def test_equal_tasks_are_one_in_sets_and_copies_are_the_task_itself():
    assert len({double(1), double(1), double(2)}) == 2
    assert double(1) == double(x=1) != double(2)
    assert pair(1)[0] == pair(1)[0] != pair(1)[1]
    task = double(1)
    assert copy.deepcopy(task) is task
    with pytest.raises(jn.BadTask, match="pickle its"):
        pickle.dumps(task)


def test_the_repr_tells_state_key_arguments_and_value(session):
    inner = double(3)
    outer = total([inner, 1])
    assert repr(inner) == f"<Task {inner.name}(x=3, y=2) · ready · {inner.key[:8]}>"
    assert "· waiting ·" in repr(outer)
    assert "needs a ready task" in repr(outer)
    assert f"{outer}" == repr(outer)
    with working(session):
        outer.result()
    assert repr(outer).endswith("· int 7>")
    session.close()
    assert repr(outer).startswith("<Task ")


def test_a_task_shows_on_a_page_with_state_value_and_what_it_needs(session):
    many = double.map(range(8))
    outer = total(many)
    page = outer._repr_html_()
    assert all(part in page for part in ("waiting", outer.key[:8], "x=4, y=2", "and 3 more", "ready"))
    assert "x=5, y=2" not in page
    with working(session):
        outer.result()
    page = outer._repr_html_()
    assert "finished" in page
    assert "int 56" in page
    assert outer[0]._repr_html_().startswith("<pre")
    evil = double("<script>x</script>")
    assert "<script>" not in evil._repr_html_() + jn.TaskList([evil])._repr_html_()
    session.close()
    assert "total" in outer._repr_html_()


def test_the_page_of_a_blocked_task_names_the_failed_need_first(session):
    @jn.task
    def careful(x):
        if x == 7:
            raise ValueError(f"bad row {x}")
        return x

    outer = total(careful.map(range(8)))
    with working(session):
        session.barrier()
    page = outer._repr_html_()
    assert "blocked" in page
    assert page.index("x=7") < page.index("x=0")
    assert "and 3 more: %jug_graph" in page


def test_inside_a_running_task_calls_are_plain(session):
    with running():
        assert double(3) == 6
        assert double.map([1, 2]) == [2, 4]
        assert double.grid(x=[1, 2]) == [2, 4]
        assert jn.identity(3) == 3

    @jn.task
    def outer(x):
        return double(x) + double(1)

    task = outer(3)
    with working(session):
        assert task.result() == 8


def test_a_default_may_hold_a_task(session):
    given = double(4)

    @jn.task
    def lazy(x, y=None):
        return x, y

    @jn.task(version="1")
    def shy(x, y=given):
        return x, y

    with working(session):
        assert lazy(1, y=given).result() == (1, 8)
        assert jn.value(given) == 8


def test_importing_the_package_stays_light():
    import subprocess
    import sys

    probe = "import jug_notebook, sys; print({'IPython', 'numpy', 'asyncio', 'pandas'} & set(sys.modules))"
    home = Path(jn.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=home)
    assert run.stdout.strip() == "set()"


def test_a_task_function_that_a_plain_one_was_meant_for_names_its_run_and_joblibs_parallel_is_refused(
    session: jn.Session,
) -> None:
    task = double(4)
    with pytest.raises(jn.TaskNotValue, match=r"call double\.run\(…\) for the plain function"):
        float(task)
    parallel = pytest.importorskip("joblib")
    with pytest.raises(jn.BadTask, match=r"double\.map\(xs\)\.result\(\).*parallel_config\(\"jug_notebook\"\)"):
        parallel.Parallel(1)(parallel.delayed(double)(x) for x in range(3))
    with pytest.raises(AttributeError, match=r"jn\.wait\(tasks\).*jn\.Executor"):
        concurrent.futures.wait([task])
