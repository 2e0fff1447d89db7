"""Libraries that take an executor, a pool's ``map`` or a joblib backend run unchanged; a second run costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jug_notebook as jn
from jug_notebook.model import State
from tests.workbench import Fifo, cell

joblib = pytest.importorskip("joblib")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["file", "redis"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[jn.Session]:
    url = f"file:{tmp_path / 'jugdata'}" if request.param == "file" else request.getfixturevalue("redis_server").url()
    opened = jn.connect(url, notebook=tmp_path / "study.ipynb")
    yield opened
    opened.stop(now=True)
    opened.close()


def counted(tmp_path: Path, body: str) -> tuple[Any, Callable[[], int]]:
    """A function of ``x``, and what counts its runs."""
    path = tmp_path / "runs"
    function = cell(f"""
        import numpy as np
        def f(x):
            with open({str(path)!r}, "a") as file:
                file.write("x")
            return {body}
    """)
    return function, lambda: len(path.read_text()) if path.exists() else 0


def twice(run: Callable[[jn.Executor], Any], runs: Callable[[], int]) -> Any:
    """Run it twice, and check that the second time nothing is computed and the result is the same."""
    with jn.Executor(2) as executor:
        first = run(executor)
    count = runs()
    assert count > 0
    with jn.Executor(2) as executor:
        np.testing.assert_equal(run(executor), first)
    assert runs() == count
    return first


# -- executors ---------------------------------------------------------------------------------------------------------


def test_scipys_differential_evolution(session, tmp_path):
    optimize = pytest.importorskip("scipy.optimize")
    f, runs = counted(tmp_path, "float(((x - 1) ** 2).sum())")

    def run(executor: jn.Executor) -> list[float]:
        options: dict[str, Any] = {"updating": "deferred", "seed": 1, "maxiter": 5, "polish": False, "popsize": 5}
        found = optimize.differential_evolution(f, [(-3, 3)] * 2, workers=executor.map, **options)
        return [*found.x, found.fun]

    assert twice(run, runs)[2] < 0.1


def test_emcee(session, tmp_path):
    emcee = pytest.importorskip("emcee")
    f, runs = counted(tmp_path, "-0.5 * float((x**2).sum())")

    def run(executor: jn.Executor) -> Any:
        sampler = emcee.EnsembleSampler(8, 2, f, pool=executor)
        sampler.random_state = np.random.RandomState(3).get_state()
        sampler.run_mcmc(np.random.RandomState(1).randn(8, 2), 5)
        return sampler.get_chain()

    assert twice(run, runs).shape == (5, 8, 2)


def test_adaptive(session, tmp_path):
    adaptive = pytest.importorskip("adaptive")
    f, runs = counted(tmp_path, "float(np.tanh(20 * x))")

    def run(executor: jn.Executor) -> float:
        learner = adaptive.Learner1D(f, bounds=(-1, 1))
        adaptive.runner.BlockingRunner(learner, npoints_goal=9, executor=executor, ntasks=1, shutdown_executor=False)
        return float(learner.data[1.0])

    assert twice(run, runs) == np.tanh(20)


def test_optuna(session, tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    f, runs = counted(tmp_path, "(x - 1) ** 2")

    def run(executor: jn.Executor) -> float:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for _ in range(3):
            trials = [study.ask() for _ in range(4)]
            futures = [executor.submit(f, trial.suggest_float("x", -2, 2)) for trial in trials]
            for trial, future in zip(trials, futures, strict=True):
                study.tell(trial, future.result())
        threads = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
        threads.optimize(lambda trial: executor.submit(f, trial.suggest_int("x", 5, 5)).result(), n_trials=6, n_jobs=2)
        return float(study.best_value)

    assert twice(run, runs) < 1


@pytest.mark.filterwarnings("ignore:Automatic chunksize:UserWarning")
def test_pipefunc(session, tmp_path):
    pipefunc = pytest.importorskip("pipefunc")
    f, runs = counted(tmp_path, "2 * x")

    def run(executor: jn.Executor) -> int:
        double = pipefunc.pipefunc(output_name="y", mapspec="x[i] -> y[i]")(f)
        total = pipefunc.pipefunc(output_name="total")(cell("def total(y): return sum(y)", "total"))
        pipeline = pipefunc.Pipeline([double, total])
        found = pipeline.map({"x": list(range(6))}, executor=executor, parallel=True, storage="dict")
        return int(found["total"].output)

    assert twice(run, runs) == 30


def test_dask(session, tmp_path):
    dask = pytest.importorskip("dask")
    f, runs = counted(tmp_path, "x + 1")

    def run(executor: jn.Executor) -> Any:
        return dask.compute(*[dask.delayed(f, pure=True)(i) for i in range(6)], scheduler=executor)

    assert twice(run, runs) == (1, 2, 3, 4, 5, 6)


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


def test_parallel_as_a_list_a_generator_nested_and_failing(session, tmp_path, capsys):
    f, runs = counted(tmp_path, "x * x")
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
        assert runs() == 40  # however the calls are batched
        assert "Done  40 out of  40" in "".join(capsys.readouterr())
        assert joblib.Parallel()(delayed(nested)(i) for i in (2, 3)) == [7, 13]
        with pytest.raises(ValueError, match="invalid literal"):
            joblib.Parallel()(delayed(int)(text) for text in "12a4")
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


SEARCH = """
    import time
    import joblib, numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import GridSearchCV
    import jug_notebook as jn

    class Slow(ClassifierMixin, BaseEstimator):
        def __init__(self, a=0):
            self.a = a
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            time.sleep(0.05)
            with open({path!r}, "w") as file:
                file.write(f"{{self.a}}\\n")
            return self
        def predict(self, X):
            return np.full(len(X), self.classes_[self.a % 2])

    jn.connect({store!r})
    X, y = np.arange(60.0).reshape(30, 2), np.arange(30) % 2
    with joblib.parallel_config("jug_notebook", n_jobs=2):
        GridSearchCV(Slow(), {{"a": list(range(10))}}, cv=3, refit=False).fit(X, y)
    print("done")
"""


def test_a_grid_search_that_was_killed_computes_only_the_rest(session, tmp_path):
    pytest.importorskip("sklearn")
    fits = Fifo(tmp_path)
    script = tmp_path / "search.py"
    script.write_text(textwrap.dedent(SEARCH.format(path=fits.path, store=session.url)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], env=environment) as process:
        for _ in range(18):
            fits.read_line()
        process.kill()
        session.stop(now=True)
    seen = -1
    while any(alive and info.kind != "session" for info, alive, _ in session.access.store.processes()):
        seen = session.access.store.watch(seen, 0.1)
    [view] = session.status(all=True).snapshot.functions
    stored = view.counts[State.FINISHED]
    assert view.name == "Slow.fit_and_score"
    assert 16 <= stored < 30
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE) as process:
        for _ in range(30 - stored):
            fits.read_line()
        assert process.communicate(timeout=60)[0] == b"done\n"
    [view] = session.status(all=True).snapshot.functions
    assert view.counts[State.FINISHED] == 30


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
