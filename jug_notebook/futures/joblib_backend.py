"""The joblib backend "jug_notebook": each call of a ``joblib.Parallel`` is a stored task.

>>> with joblib.parallel_config("jug_notebook", n_jobs=-1):
...     search.fit(X, y)            # started again after a crash, it computes only what is not stored

How calls are batched has no influence on their keys. joblib finds it by what `jug_notebook.futures` adds to its table.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent import futures
from inspect import signature
from pathlib import Path
from typing import Any

from joblib import parallel_config, register_parallel_backend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from jug_notebook import system
from jug_notebook.futures import Executor, Numbering
from jug_notebook.keys import digest
from jug_notebook.keys.code import Code
from jug_notebook.render.format import describe_arguments
from jug_notebook.session import Session, current
from jug_notebook.task import TaskFunction
from jug_notebook.task.context import in_task
from jug_notebook.task.function import Arguments, Around

#: arguments of scikit-learn's functions that are printed or reported only, and concern no result
REPORTED = {"verbose", "split_progress", "candidate_progress", "caller", "callback_ctx", "tree_idx", "n_trees"}
#: what is worth reading of a call, where there is any of it
READ = ("estimator", "tree", "parameters", "split_progress", "tree_idx")
DISPLAY = ("display", "print_changed_only")  #: scikit-learn's settings that concern no result


class JugBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the calls of ``joblib.Parallel`` as tasks. Its parameters are options of `jug_notebook.Executor`."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def configure(self, n_jobs: int = 1, parallel: Any = None, **hints: Any) -> int:
        """Have that many workers; return how many calls run at once. ``hints`` concern joblib's own memory maps."""
        self.parallel = parallel
        count: int = self.effective_n_jobs(n_jobs)
        if not in_task.on:
            self._executor = _executor(None if n_jobs < 0 else n_jobs, self.backend_kwargs)
            self._numbering = Numbering()
            self._open: weakref.WeakSet[futures.Future[Any]] = weakref.WeakSet()
        return count

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at once: at least two, for joblib stores nothing where it is one."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if in_task.on:
            return 1
        if n_jobs is None or n_jobs < 0:
            n_jobs = (current().results.workers() or system.cores()) + 1 + (n_jobs or -1)
        return max(2, n_jobs)

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> futures.Future[list[Any]]:
        """Return the future of a batch; each call in it is a task."""
        nested = func._backend, func._n_jobs
        calls = []
        for called, given, named in func.items:
            function, args, kwargs = self._task_function(called, given, named, nested)
            calls.append(self._executor.submit_task(function, args, kwargs, self._numbering))
        self._open.update(calls)
        return _Batch(calls, callback).whole

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the values of a batch, or raise what one of its calls raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what has not started."""
        for future in list(self._open):
            future.cancel()

    def _task_function(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], nested: tuple[Any, Any]
    ) -> tuple[TaskFunction, tuple[Any, ...], dict[str, Any]]:
        estimator, wrapper = _estimator(args), None
        config: dict[str, Any] = {}
        if type(function).__module__ == "sklearn.utils.parallel":  # it carries settings, and filters of warnings
            wrapper, function = function, function.function
            config = {name: value for name, value in wrapper.config.items() if name not in DISPLAY}

        def make(plain: Callable[..., Any]) -> TaskFunction:
            called: Any = plain if wrapper is None else copy.copy(wrapper)
            if wrapper is not None:
                called.function = plain
            return _Call(plain, called, nested, config, estimator)

        return self._executor.function(function, args, kwargs, (estimator, repr(config)), make)


class _Batch:
    """Several futures as one, whose result is the list of theirs."""

    def __init__(self, calls: list[Any], callback: Callable[[Any], Any] | None) -> None:
        self.whole: futures.Future[list[Any]] = futures.Future()
        self.whole.set_running_or_notify_cancel()
        if callback is not None:
            self.whole.add_done_callback(callback)
        self._calls = calls
        self._left = len(calls)
        self._lock = threading.Lock()
        for call in calls:
            call.add_done_callback(self._done)

    def _done(self, call: futures.Future[Any]) -> None:
        error = futures.CancelledError() if call.cancelled() else call.exception()
        with self._lock:
            self._left -= 1
            over = self._left == 0 or error is not None
            if not over or self.whole.done():
                return
            calls, self._calls = self._calls, []
        if error is not None:
            self.whole.set_exception(error)
        else:
            self.whole.set_result([one.result() for one in calls])


class _Nested:
    """Calls a function with the backend for what it does in parallel itself."""

    def __init__(self, function: Callable[..., Any], nested: tuple[Any, Any]) -> None:
        self.function = function
        self.nested = nested
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        backend, n_jobs = self.nested
        with parallel_config(backend=backend, n_jobs=n_jobs):
            return self.function(*args, **kwargs)


class _Call(Around):
    """A function that joblib calls: its key covers its code, and scikit-learn's settings."""

    def __init__(
        self,
        plain: Callable[..., Any],
        called: Callable[..., Any],
        nested: tuple[Any, Any],
        config: Mapping[str, Any],
        estimator: str,
    ) -> None:
        name = getattr(plain, "__name__", "")
        options: dict[str, Any] = {"name": f"{estimator}.{name.lstrip('_')}"} if estimator and name else {}
        if getattr(plain, "__module__", "").startswith("sklearn."):
            options["ignore"] = REPORTED & signature(plain).parameters.keys()
        self._function = TaskFunction(plain, **options)
        super().__init__(_Nested(called, nested), [self._function], **{**self._function.options(), "ignore": ()})
        self.ignore = self._function.ignore
        self._config = config

    def examine(self, project: Path) -> Code:
        code = super().examine(project)
        if not self._config:
            return code
        whole = digest.digest([code.digest, dict(self._config)]).hex()
        return code._replace(digest=whole, parts={**code.parts, "scikit-learn settings": str(self._config)})

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        return self._function._bound(args, kwargs)

    def _args_repr(self, arguments: Arguments) -> str:
        read = [pair for pair in arguments if pair[0] in READ and pair[1] is not None]
        return describe_arguments(read or arguments)


def _estimator(args: tuple[Any, ...]) -> str:
    """Return the class of the estimator that a call is about, "" where it is about none."""
    if not args or not hasattr(type(args[0]), "get_params"):
        return ""
    name = type(args[0]).__name__
    steps = getattr(args[0], "steps", None)
    return f"{name}.{type(steps[-1][1]).__name__}" if steps else name


_executors: weakref.WeakKeyDictionary[Session, dict[str, Executor]] = weakref.WeakKeyDictionary()


def _executor(workers: int | None, options: Mapping[str, Any]) -> Executor:
    """Return the executor of the session in use that has these workers: calls after one another share it."""
    known = _executors.setdefault(current(), {})
    name = f"{workers} {options!r}"
    if name not in known:
        known[name] = Executor(workers, **options)
    return known[name]


register_parallel_backend("jug_notebook", JugBackend)
