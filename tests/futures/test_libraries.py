"""Libraries that take an executor, a pool's ``map`` or a joblib backend run unchanged; a second run costs nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jug_notebook as jn
from jug_notebook.model import State
from tests.workbench import cell, wait_until

joblib = pytest.importorskip("joblib")


@pytest.fixture(params=["file", "redis"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[jn.Session]:
    url = f"file:{tmp_path / 'jugdata'}" if request.param == "file" else request.getfixturevalue("redis_server").url()
    opened = jn.connect(url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.stop(now=True)
    opened.close()


@dataclasses.dataclass(frozen=True)
class Pool:
    """What a program is given: an executor and a joblib backend, ours or those that it had before."""

    executor: futures.Executor
    backend: str

    def parallel(self) -> Any:
        return joblib.parallel_config(self.backend, n_jobs=2)


def slow(body: str) -> Any:
    """A function of ``x`` that takes 20 ms."""
    return cell(f"import time, numpy as np\ndef f(x):\n    time.sleep(0.02)\n    return {body}")


# -- programs that use a library as they always did, and what they find ------------------------------------------------


def scipy(pool: Pool) -> Any:
    optimize = importlib.import_module("scipy.optimize")
    options: dict[str, Any] = {"updating": "deferred", "seed": 1, "maxiter": 4, "polish": False, "popsize": 5}
    f = slow("float(((x - 1) ** 2).sum())")
    found = optimize.differential_evolution(f, [(-3, 3)] * 2, workers=pool.executor.map, **options)
    return [*found.x, found.fun]


def emcee(pool: Pool) -> Any:
    library = importlib.import_module("emcee")
    sampler = library.EnsembleSampler(8, 2, slow("-0.5 * float((x**2).sum())"), pool=pool.executor)
    sampler.random_state = np.random.RandomState(3).get_state()
    sampler.run_mcmc(np.random.RandomState(1).randn(8, 2), 5)
    return sampler.get_chain()


def adaptive(pool: Pool) -> Any:
    library = importlib.import_module("adaptive")
    learner = library.Learner1D(slow("float(np.tanh(20 * x))"), bounds=(-1, 1))
    options: dict[str, Any] = {"executor": pool.executor, "ntasks": 1, "shutdown_executor": False}
    library.runner.BlockingRunner(learner, npoints_goal=30, **options)
    return sorted(learner.data.items())


def optuna(pool: Pool) -> Any:
    library, f = importlib.import_module("optuna"), slow("(x - 1) ** 2")
    library.logging.set_verbosity(library.logging.ERROR)
    study = library.create_study(sampler=library.samplers.RandomSampler(seed=1))
    for _ in range(6):
        trials = [study.ask() for _ in range(4)]
        for trial, done in [(trial, pool.executor.submit(f, trial.suggest_float("x", -2, 2))) for trial in trials]:
            study.tell(trial, done.result())
    threads = library.create_study(sampler=library.samplers.RandomSampler(seed=2))
    threads.optimize(lambda trial: pool.executor.submit(f, trial.suggest_int("x", 5, 5)).result(), n_trials=6, n_jobs=2)
    return [study.best_value, threads.best_value]


def pipefunc(pool: Pool) -> Any:
    library = importlib.import_module("pipefunc")
    double = library.pipefunc(output_name="y", mapspec="x[i] -> y[i]")(slow("2 * x"))
    total = library.pipefunc(output_name="total")(cell("def total(y): return sum(y)", "total"))
    pipeline = library.Pipeline([double, total])
    options: dict[str, Any] = {"executor": pool.executor, "parallel": True, "storage": "dict", "chunksizes": 1}
    return int(pipeline.map({"x": list(range(30))}, **options)["total"].output)


def dask(pool: Pool) -> Any:
    library, f = importlib.import_module("dask"), slow("x + 1")
    return library.compute(*[library.delayed(f, pure=True)(i) for i in range(40)], scheduler=pool.executor)


def run_in_executor(pool: Pool) -> Any:
    f = slow("x + 1")

    async def waited() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(pool.executor, f, i) for i in range(40)])

    return asyncio.run(waited())


def joblib_generator(pool: Pool) -> Any:
    f = slow("x * x")
    with pool.parallel():
        return list(joblib.Parallel(return_as="generator", verbose=11)(joblib.delayed(f)(i) for i in range(40)))


def joblib_nested(pool: Pool) -> Any:
    f = cell("""
        import time
        from joblib import Parallel, delayed
        def f(x):
            time.sleep(0.02)
            return sum(Parallel(n_jobs=2)(delayed(pow)(x, i) for i in range(3)))
    """)
    with pool.parallel():
        return joblib.Parallel()(joblib.delayed(f)(i) for i in range(30))


SLOW = """
    import time
    import numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin
    class Slow(ClassifierMixin, BaseEstimator):
        def __init__(self, a=0):
            self.a = a
        def fit(self, X, y):
            time.sleep(0.02)
            self.classes_ = np.unique(y)
            return self
        def predict(self, X):
            return np.full(len(X), self.classes_[self.a % 2])
"""
X, Y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2


def grid_search(pool: Pool) -> Any:
    selection = importlib.import_module("sklearn.model_selection")
    with pool.parallel():
        search = selection.GridSearchCV(cell(SLOW, "Slow")(), {"a": list(range(10))}, cv=4, refit=False).fit(X, Y)
    return search.cv_results_["mean_test_score"]


def cross_validation(pool: Pool) -> Any:
    selection = importlib.import_module("sklearn.model_selection")
    with pool.parallel():
        return selection.cross_val_score(cell(SLOW, "Slow")(), X, Y, cv=20)


def forest(pool: Pool) -> Any:
    ensemble = importlib.import_module("sklearn.ensemble")
    x, y = importlib.import_module("sklearn.datasets").make_classification(2000, 20, random_state=0)
    with pool.parallel():
        return ensemble.RandomForestClassifier(40, random_state=0).fit(x, y).predict_proba(x[:50])


PROGRAMS: dict[str, Callable[[Pool], Any]] = {
    program.__name__: program
    for program in (
        scipy, emcee, adaptive, optuna, pipefunc, dask, run_in_executor,
        joblib_generator, joblib_nested, grid_search, cross_validation, forest,
    )
}  # fmt: skip
FORKS = multiprocessing.get_context("forkserver")  # the libraries are imported once
LIBRARIES = ("scipy.optimize", "emcee", "adaptive", "optuna", "pipefunc", "dask", "sklearn.ensemble")


def run(name: str, url: str, notebook: Path, environment: dict[str, str], found: Any) -> None:
    """A process of its own, as a script is."""
    os.environ.clear()
    os.environ.update(environment)
    jn.connect(url, notebook=notebook)
    with jn.Executor(2) as executor:
        found.send(PROGRAMS[name](Pool(executor, "jug_notebook")))


def started(name: str, session: jn.Session, tmp_path: Path) -> tuple[Any, Any]:
    """Return the process that runs the program with this store, and where it sends what it found."""
    FORKS.set_forkserver_preload([__name__, *LIBRARIES])
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=run, args=(name, session.url, tmp_path / "program", dict(os.environ), there))
    process.start()
    there.close()
    return process, here


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_was_killed_computes_only_the_rest_and_the_next_run_nothing(name, session, tmp_path):
    for library in LIBRARIES:
        pytest.importorskip(library)
    with futures.ThreadPoolExecutor(2) as threads:
        expected = PROGRAMS[name](Pool(threads, "threading"))
    store = session.access.store

    def finished() -> int:
        return sum(view.counts.get(State.FINISHED, 0) for view in session.status(all=True).snapshot.functions)

    process, found = started(name, session, tmp_path)
    wait_until(store, lambda: finished() >= 5, "no five tasks were finished")
    process.kill()
    process.join()
    with pytest.raises(EOFError):  # it had found nothing yet
        found.recv()
    kept = finished()
    process, found = started(name, session, tmp_path)
    np.testing.assert_equal(found.recv(), expected)
    process.join()
    (_, runs), tasks = store.runs(), finished()
    assert kept < tasks <= runs <= tasks + 2  # a worker that ended with its program began each of two again
    process, found = started(name, session, tmp_path)
    np.testing.assert_equal(found.recv(), expected)
    process.join()
    assert (store.runs()[1], finished()) == (runs, tasks)


# -- joblib ------------------------------------------------------------------------------------------------------------


def test_import_is_enough_and_imports_no_joblib():
    script = (
        "import sys, jug_notebook; assert 'joblib' not in sys.modules\n"
        "import joblib\nwith joblib.parallel_config('jug_notebook', n_jobs=2) as config: print(type(config['backend']))"
    )
    for first in ("", "import joblib\n"):
        code = first + (script if not first else script.replace("; assert 'joblib' not in sys.modules", ""))
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "JugBackend" in found.stdout


@pytest.mark.filterwarnings("ignore::jug_notebook.KeyAdvice")
def test_parallel_as_a_list_a_generator_nested_and_failing(session, tmp_path, capsys):
    path = tmp_path / "runs"
    f = cell(f"""
        def f(x):
            with open({str(path)!r}, "a") as file:
                file.write("x")
            return x * x
    """)
    nested = cell("""
        from joblib import Parallel, delayed
        def f(x):
            return sum(Parallel(n_jobs=2)(delayed(pow)(x, i) for i in range(3)))
    """)
    delayed, squares = joblib.delayed, [i * i for i in range(40)]
    with joblib.parallel_config("jug_notebook", n_jobs=2):
        assert joblib.Parallel()(delayed(f)(i) for i in range(40)) == squares
        assert joblib.Parallel(batch_size=7)(delayed(f)(i) for i in range(40)) == squares
        found = joblib.Parallel(return_as="generator", verbose=11)(delayed(f)(i) for i in range(40))
        assert list(found) == squares
        unordered = joblib.Parallel(return_as="generator_unordered")(delayed(f)(i) for i in range(40))
        assert sorted(unordered) == squares
        assert len(path.read_text()) == 40  # however the calls are batched
        assert "Done  40 out of  40" in "".join(capsys.readouterr())
        assert joblib.Parallel()(delayed(nested)(i) for i in (2, 3)) == [7, 13]
        with pytest.raises(ValueError, match="invalid literal"):
            joblib.Parallel()(delayed(int)(text) for text in "12a4")
        with (
            open(__file__) as file,
            pytest.raises(jn.Unstorable, match=r"^function <lambda>\S* .* TextIOWrapper, .*pass its path[^\n]*$"),
        ):
            joblib.Parallel()(delayed(lambda x: file.read())(i) for i in range(3))
        with pytest.raises(ValueError, match="has no meaning"):
            joblib.Parallel(n_jobs=0)(delayed(f)(i) for i in range(3))


def test_equal_calls_of_one_parallel_are_samples_of_their_own(session):
    draw = cell("import random\ndef f(): return random.SystemRandom().random()")
    with joblib.parallel_config("jug_notebook", n_jobs=2):
        first, second = (joblib.Parallel()(joblib.delayed(draw)() for _ in range(20)) for _ in range(2))
    assert len(set(first)) == 20
    assert second == first


def test_a_large_array_is_stored_once_and_a_changed_one_is_another(session, tmp_path):
    f = cell("def f(array, i): return float(array[i])")
    array = np.arange(1_000_000.0)
    with joblib.parallel_config("jug_notebook", n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(f)(array, i) for i in range(30)) == list(range(30))
        if session.url.startswith("file:"):
            stored = sum(path.stat().st_size for path in (tmp_path / "jugdata").rglob("*") if path.is_file())
            assert stored < 1.5 * array.nbytes
        array[3] = -1
        assert joblib.Parallel()(joblib.delayed(f)(array, i) for i in (2, 3)) == [2, -1]


def test_scikit_learn_searches_forests_and_settings(session):
    sklearn = pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.svm import SVC

    x, y = make_classification(120, 5, random_state=0)
    plain = GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3).fit(x, y)

    def counts() -> dict[str, int]:
        return {view.name: view.counts[State.FINISHED] for view in session.status().snapshot.functions}

    with joblib.parallel_config("jug_notebook", n_jobs=-1):
        search = GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3, verbose=3).fit(x, y)
        assert search.best_params_ == plain.best_params_
        np.testing.assert_array_equal(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
        assert counts() == {"SVC.fit_and_score": 6}
        GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3).fit(x, y)
        assert counts() == {"SVC.fit_and_score": 9}  # the larger grid shares what the smaller one has
        GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3, scoring="roc_auc").fit(x, y)
        assert counts() == {"SVC.fit_and_score": 15}  # another scorer makes other fits
        with sklearn.config_context(assume_finite=True):
            GridSearchCV(SVC(), {"C": [0.1]}, cv=3).fit(x, y)
        assert counts() == {"SVC.fit_and_score": 18}  # and so do other settings
        x[0, 0] += 1
        GridSearchCV(SVC(), {"C": [0.1]}, cv=3).fit(x, y)
        assert counts() == {"SVC.fit_and_score": 21}  # and other data
        assert cross_val_score(SVC(), x, y, cv=3).shape == (3,)
        forest = RandomForestClassifier(10, random_state=0).fit(x, y)
        assert forest.score(x, y) > 0.9
        assert counts()["DecisionTreeClassifier.parallel_build_trees"] == 10


def test_a_search_over_a_large_array_stores_it_once_and_workers_of_one_host_share_its_memory(session, tmp_path):
    selection = pytest.importorskip("sklearn.model_selection")
    kind = cell(
        """
        from sklearn.base import BaseEstimator
        class Reader(BaseEstimator):
            def __init__(self, by=1):
                self.by = by
            def fit(self, X, y=None):
                return self
            def score(self, X, y=None):
                lines = [line.split() for line in open("/proc/self/smaps_rollup")]
                return sum(float(line[1]) for line in lines if line[0] == "Anonymous:") / 1024
        """,
        "Reader",
    )
    splits = [([0, 1], [2, 3]), ([4, 5], [6, 7])]  # 2 of 100 rows each

    def own_memory(columns: int) -> float:
        """Return the megabytes that a worker shares with no one, while it scores with so many columns of 100 rows."""
        X = np.arange(100.0 * columns).reshape(100, -1)
        search = selection.GridSearchCV(kind(), {"by": [1, 2, 3]}, cv=splits, refit=False, error_score="raise")
        with joblib.parallel_config("jug_notebook", n_jobs=2):
            search.fit(X)
        return float(search.cv_results_["mean_test_score"].max())

    more = own_memory(131_072) - own_memory(100)  # 100 MB, and nearly nothing
    if session.url.startswith("file:"):
        assert more < 30
        large = [path for path in (tmp_path / "jugdata").rglob("*") if path.is_file() and path.stat().st_size > 5e7]
        assert len(large) == 1
    else:
        assert more < 150  # one copy each: what a server holds can't be mapped
