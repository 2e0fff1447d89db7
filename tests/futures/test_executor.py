"""`jn.Executor` where a pool was: futures, keys, failures, and CPython's own tests of executors."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from tests.workbench import cell

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.stop(now=True)
    opened.close()


@pytest.fixture
def executor(session: jn.Session) -> Iterator[jn.Executor]:
    with jn.Executor(2) as made:
        yield made


def runs(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def counting(path: Path) -> Any:
    """A function that notes each of its runs in a file."""
    return cell(f"""
        def f(x):
            with open({str(path)!r}, "a") as file:
                file.write(f"{{x}}\\n")
            return 2 * x
    """)


def test_an_executor_works_beside_more_than_a_thousand_open_files(session: jn.Session) -> None:
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(few[0], min(4000, few[1])), few[1]))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with jn.Executor(1) as made:
            assert made.submit(cell("def f(x): return x + 1"), 1).result() == 2
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, few)


def test_results_come_as_futures_that_are_like_any_other(executor):
    f = cell("def f(x, y=1): return x + y")
    called: list[int] = []
    future = executor.submit(f, 1, y=2)
    assert isinstance(future, futures.Future)
    future.add_done_callback(lambda done: called.append(done.result()))
    assert futures.wait([future], 20).done == {future}
    assert future.result() == 3
    many = [executor.submit(f, i) for i in range(20)]
    assert sorted(done.result() for done in futures.as_completed(many, 20)) == list(range(1, 21))
    assert list(executor.map(f, range(5), [10] * 5)) == [10, 11, 12, 13, 14]
    assert list(executor.map(f, range(5), chunksize=2)) == [1, 2, 3, 4, 5]
    assert list(executor.map(f, iter(range(5)), buffersize=2)) == [1, 2, 3, 4, 5]
    assert called == [3]
    assert future.task is not None
    assert future.task.result() == 3

    async def waited() -> list[int]:
        loop = asyncio.get_running_loop()
        wrapped = asyncio.wrap_future(executor.submit(f, 5))
        return [await wrapped, await loop.run_in_executor(executor, f, 6)]

    assert asyncio.run(waited()) == [6, 7]


def test_a_second_run_takes_results_from_the_store(session, tmp_path):
    f, ran = counting(tmp_path / "runs"), tmp_path / "runs"
    for _ in range(2):
        with jn.Executor(2) as executor:
            assert list(executor.map(f, range(10))) == [2 * i for i in range(10)]
            assert executor.submit(f, 7).result() == 14  # the second such call of this run
    assert sorted(runs(ran), key=int) == sorted([*map(str, range(10)), "7"], key=int)


def test_without_a_cache_every_call_runs(session, tmp_path):
    f, ran = counting(tmp_path / "runs"), tmp_path / "runs"
    for _ in range(2):
        with jn.Executor(2, cache=False) as executor:
            assert executor.submit(f, 1).result() == 2
    assert runs(ran) == ["1", "1"]


def test_equal_calls_of_one_run_are_samples_of_their_own_and_the_next_run_gets_the_same(session):
    draw = cell("import random\ndef f(): return random.SystemRandom().random()")
    with jn.Executor(2) as executor:
        first = [future.result() for future in [executor.submit(draw) for _ in range(20)]]
    assert len(set(first)) == 20
    with jn.Executor(2) as executor:
        assert [executor.submit(draw).result() for _ in range(20)] == first


def test_cells_that_run_again_count_equal_calls_from_the_start(executor, session, tmp_path):
    f, ran = counting(tmp_path / "runs"), tmp_path / "runs"
    for _ in range(2):
        session.begin_cell("cell")
        assert [executor.submit(f, 1).result() for _ in range(2)] == [2, 2]
        session.end_cell()
    assert runs(ran) == ["1", "1"]


def test_what_changes_between_two_calls_makes_another_task(executor):
    class Model:
        def __init__(self) -> None:
            self.slope = 1

        def predict(self, x: float) -> float:
            return self.slope * x

        def __call__(self, x: float) -> float:
            return self.slope + x

    model, offset = Model(), [1]
    partial = functools.partial(Model.predict, model)
    closure = cell("def make(offset):\n    def f(x): return x + offset[0]\n    return f", "make")(offset)
    calls = (model.predict, model, partial, closure)
    assert [executor.submit(call, 10).result() for call in calls] == [10, 11, 10, 11]
    model.slope, offset[0] = 5, 7
    assert [executor.submit(call, 10).result() for call in calls] == [50, 15, 50, 17]
    assert [next(executor.map(call, [10])) for call in calls] == [50, 15, 50, 17]


def test_globals_count_as_they_are_at_each_call_though_the_cell_goes_on(executor, session):
    f = cell("LIMIT = 1\ndef f(x): return x + LIMIT")
    session.begin_cell("cell")
    assert executor.submit(f, 1).result() == 2
    f.__globals__["LIMIT"] = 100
    assert executor.submit(f, 1).result() == 101
    session.end_cell()


def test_a_generator_of_random_numbers_counts_with_its_state(executor):
    np = pytest.importorskip("numpy")
    draw, rng = cell("def f(rng): return float(rng.random())"), np.random.default_rng(1)
    first = executor.submit(draw, rng).result()
    assert executor.submit(draw, np.random.default_rng(1)).result() == first == np.random.default_rng(1).random()
    rng.random()
    assert executor.submit(draw, rng).result() == rng.random()


def test_a_generator_that_fills_one_buffer_again_and_again_is_read_as_it_goes(executor):
    def filled() -> Iterator[list[int]]:
        buffer = [0]
        for i in range(5):
            buffer[0] = i
            yield buffer

    f = cell("def f(x): return x[0]")
    assert list(executor.map(f, filled())) == [0, 1, 2, 3, 4]
    with pytest.raises(jn.BadTask, match="changed in place before its chunk was complete"):
        executor.map(f, filled(), chunksize=3)


def test_a_failure_is_the_tasks_own_exception_with_the_remote_traceback_and_is_tried_again(session, tmp_path):
    flag = tmp_path / "mended"
    f = cell(f"""
        import os
        def f(x):
            if not os.path.exists({str(flag)!r}):
                raise KeyError(x)
            return x
    """)
    with jn.Executor(2) as executor:
        error = executor.submit(f, 3).exception(20)
        assert isinstance(error, KeyError)
        assert "raise KeyError(x)" in str(error.__cause__)
    flag.touch()
    with jn.Executor(2) as executor:
        assert executor.submit(f, 3).result(20) == 3


def test_what_cannot_be_hashed_runs_once_each_time_and_is_named_once(executor):
    class Odd:
        def __reduce__(self) -> Any:
            return Odd, ()

        def __jug_hash__(self) -> Any:
            raise jn.Unhashable("odd things have no hash")

    f = cell("def f(x, odd): return x")
    with pytest.warns(jn.KeyAdvice, match="f runs once for each call, and no later run finds its results") as caught:
        assert [executor.submit(f, i, Odd()).result() for i in range(3)] == [0, 1, 2]
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore::jug_notebook.KeyAdvice")
def test_bad_input_gets_one_clear_line(session, tmp_path):
    executor = jn.Executor(2)
    with open(__file__) as file:
        error = executor.submit(lambda: file.read()).exception(20)
    assert isinstance(error, jn.Unstorable)
    assert "TextIOWrapper, which can't be stored; pass its path" in str(error)
    assert "\n" not in str(error)
    with pytest.raises(ValueError, match="chunksize must be >= 1, not 0"):
        executor.map(abs, [1], chunksize=0)
    executor.shutdown()
    with pytest.raises(RuntimeError, match=r"after shutdown; make another jn\.Executor"):
        executor.submit(abs, 1)
    with pytest.raises(ValueError, match="max_workers must be greater than 0, not -1"):
        jn.Executor(-1)
    with pytest.raises(
        TypeError, match=r"jn\.Executor has no option 'worker'; it takes those of jug_notebook\.execute"
    ):
        jn.Executor(worker=3)


def test_cancelled_calls_never_run(executor, tmp_path):
    f, ran, hold = counting(tmp_path / "runs"), tmp_path / "runs", cell("import time\ndef f(s): time.sleep(s)", "f")
    holding = [executor.submit(hold, 0.5) for _ in range(2)]
    late = [executor.submit(f, i) for i in range(20)]
    assert all(future.cancel() for future in late)
    assert all(future.cancelled() for future in late)
    assert [future.result() for future in holding] == [None, None]
    assert executor.submit(f, 99).result() == 198
    assert runs(ran) == ["99"]


def test_what_tasks_print_is_printed_here(executor, capsys):
    executor.submit(cell("def f(): print('from afar')")).result()
    assert "from afar" in capsys.readouterr().out


def test_workers_that_an_executor_started_end_with_it_and_others_stay(tmp_path):
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "study.ipynb")
    f = cell("import os\ndef f(x): return os.getpid()")
    with jn.Executor(1) as executor, jn.Executor(1) as other:
        pid = executor.submit(f, 1).result()
        assert other.submit(f, 2).result() == pid
        executor.shutdown()
        assert other.submit(f, 3).result() == pid
    assert session.workers.crews == []
    crew = jn.execute(1)
    with jn.Executor(1) as executor:
        executor.submit(f, 4).result()
    assert crew.alive() == 1
    session.stop(now=True)
    session.close()


def test_without_workers_a_future_says_so(tmp_path):
    session = jn.connect(tmp_path / "jugdata", notebook=tmp_path / "study.ipynb")
    executor = jn.Executor(1)
    pid = executor.submit(cell("import os\ndef f(): return os.getppid()")).result()
    hold = executor.submit(cell("import time\ndef f(): time.sleep(60)"))
    while not hold.running():
        threading.Event().wait(0.01)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(jn.JugError, match="worker"):
        hold.result(60)
    executor.shutdown()
    session.close()


KILLED = """
    import sys, time
    import jug_notebook as jn
    jn.connect({store!r})

    def work(x):
        with open({path!r}, "a") as file:
            file.write(f"{{x}}\\n")
        time.sleep(0.02)
        return x * x

    with jn.Executor(2) as ex:
        for number, square in enumerate(ex.map(work, range(60))):
            if number == {until}:
                print("half", flush=True)
    print("all", flush=True)
"""


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_after_kill_9_in_the_middle_a_second_run_computes_only_the_rest(kind, tmp_path, request):
    store = f"file:{tmp_path / 'jugdata'}" if kind == "file" else request.getfixturevalue("redis_server").url()
    path = tmp_path / "runs"
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(KILLED.format(store=store, path=str(path), until=20)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    for _ in range(2):
        again = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, env=environment, check=True, timeout=60
        )
        assert again.stdout.endswith("all\n")
    assert sorted(map(int, runs(path))) == list(range(60))
    session = jn.connect(store, notebook=tmp_path / "study.ipynb")
    session.stop(now=True)
    session.close()


# -- CPython's tests ---------------------------------------------------------------------------------------------------

#: of CPython's tests, those that fail, and why
DIFFER = {
    "ShutdownTest.test_cancel_futures": "nothing has started yet where workers are processes that start now",
    "FailingInitializerMixin.test_initializer": "a failing initializer fails its call, and does not break the executor",
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cpythons_own_tests_of_executors_pass(tmp_path):
    where = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test"
    (tmp_path / "path").mkdir()
    if importlib.util.find_spec("test.test_concurrent_futures") is None:
        if not list(Path(where).glob("test_concurrent_futures*")):
            pytest.skip("this Python has no test suite of its own: apt-get install libpython3.X-testsuite")
        (tmp_path / "path" / "test").symlink_to(where)
    found = subprocess.run(
        [sys.executable, Path(__file__).with_name("cpython.py"), tmp_path / "jugdata"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'path'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    results: dict[str, str] = json.loads(found.stdout[found.stdout.index("{") :])
    failed = {name: text for name, text in results.items() if text}
    unexpected = {name: text for name, text in failed.items() if not any(known in name for known in DIFFER)}
    assert not unexpected
    assert len(failed) <= 0.05 * len(results)
