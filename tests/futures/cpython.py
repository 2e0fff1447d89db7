"""Runs CPython's own tests of executors with `jug_notebook.Executor`, and prints each test with what became of it.

    python cpython.py STORE

They are those that any executor can pass; those of ThreadPoolExecutor and ProcessPoolExecutor look inside them.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import unittest
from typing import Any

import jug_notebook as jn

SCRIPT = "import jug_notebook; jug_notebook.connect({store!r}); from jug_notebook import Executor"


def loaded() -> dict[str, Any]:
    """The classes of CPython's tests: one module before Python 3.12, a package of several since."""
    found: dict[str, Any] = {}
    package = importlib.import_module("test.test_concurrent_futures")
    modules = [package]
    if hasattr(package, "__path__"):
        names = ("util", "executor", "test_init", "test_shutdown", "test_wait", "test_as_completed", "test_future")
        modules += [importlib.import_module(f"test.test_concurrent_futures.{name}") for name in names]
    for module in modules:
        found.update(vars(module))
        if hasattr(module, "assert_python_ok"):
            _adapt_scripts(module)
    return found


def _adapt_scripts(module: Any) -> None:
    """Some tests start a Python of their own: it uses a store of its own."""
    ok, stores = module.assert_python_ok, itertools.count()

    def assert_python_ok(*arguments: str, **variables: str) -> Any:
        store = f"{sys.argv[1]}-{next(stores)}"
        jn.Session(store).close()  # a new one is announced on stderr, which must stay empty
        script = SCRIPT.format(store=store)
        arguments = tuple(one.replace("from concurrent.futures import Executor", script) for one in arguments)
        return ok(*arguments, **variables, __isolated=False, PYTHONPATH=os.pathsep.join(sys.path))

    module.assert_python_ok = assert_python_ok


def main() -> None:
    jn.connect(sys.argv[1])
    found = loaded()
    sessions: list[jn.Session] = []  # their threads are none of the tests' business

    class Mixin(found["ExecutorMixin"]):  # type: ignore[misc]
        executor_type = jn.Executor

        def setUp(self) -> None:  # what one test has slept for, another needn't
            sessions.append(jn.connect(f"{sys.argv[1]}-{self.id()}"))
            super().setUp()

    suite = unittest.TestSuite()
    wanted = ("ExecutorTest", "ExecutorShutdownTest", "WaitTests", "AsCompletedTests", "InitializerMixin")
    for name in (*wanted, "FailingInitializerMixin"):
        made = type(f"Jug{name}", (found[name], Mixin, found["BaseTestCase"]), {})
        suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(made))
    suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(found["FutureTests"]))
    ids = [test.id().split(".", 1)[1] for test in suite]
    result = unittest.TextTestRunner(stream=sys.stderr).run(suite)
    wrong = {test.id().split(".", 1)[1]: text for test, text in [*result.failures, *result.errors]}
    print(json.dumps({name: wrong.get(name, "") for name in ids}))


if __name__ == "__main__":
    main()
