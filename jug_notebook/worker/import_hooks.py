"""Adapts libraries that tasks import to a worker, so that what they display is kept with the task.

Nothing is imported for it: each is adapted when a task imports it. IPython's ``display`` goes to the task's displays,
tqdm's bars become the task's progress and leave their last line, matplotlib draws in memory, and what came by value
goes on by value to the processes that a task starts. Whatever asks a user fails, and its error names the way out.
Threads, pools of threads and loops that outlive a task are still known as that task's.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, NoReturn, TypeAlias

import cloudpickle

from jug_notebook.errors import CantAsk
from jug_notebook.keys import callables
from jug_notebook.task import context
from jug_notebook.task.context import progress_report

Adapter: TypeAlias = Callable[[ModuleType], None]
SHELL = "jug_notebook.worker.ipython_shell:shell"  #: makes the shell that a worker has on first need


def install() -> None:
    """From now on, in a worker's process."""
    adapt(_ADAPTERS)
    vars(builtins).setdefault("display", display)
    vars(builtins)["input"] = _refused("input()")
    sys.breakpointhook = _refused_breakpoint
    chosen = os.environ.get("MPLBACKEND", "")
    if not chosen or chosen.endswith("backend_inline"):  # a kernel's, which its workers inherit
        os.environ["MPLBACKEND"] = "module://jug_notebook.worker.displays"


def adapt(adapters: Mapping[str, Adapter]) -> None:
    """Call each of ``adapters`` with the module of its name: now, or once that is imported."""
    sys.meta_path.insert(0, _Finder(adapters))
    for name in adapters.keys() & sys.modules.keys():
        adapters[name](sys.modules[name])


def hand_on() -> None:
    """From now on, in this process, what can't be imported goes by value to processes that `multiprocessing` starts."""
    _by_value(importlib.import_module("multiprocessing.reduction"))


def display(*objects: Any, **how: Any) -> Any:
    """IPython's ``display``, which notebooks have without importing it."""
    return importlib.import_module("IPython.display").display(*objects, **how)


class _Finder:
    """Finds modules as the other finders do, and adapts some of them once they are loaded."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self._adapters = adapters

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        adapter = self._adapters.get(name)
        if adapter is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = _then(spec.loader.exec_module, adapter)  # type: ignore[method-assign, assignment]
                return spec
        return None


def _then(load: Callable[[ModuleType], None], adapter: Adapter) -> Callable[[ModuleType], None]:
    def loaded(module: ModuleType) -> None:
        load(module)
        adapter(module)

    return loaded


def _with_a_shell(module: Any) -> None:
    """IPython displays things in a shell only, and prints their repr where there is none."""

    def first(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            where, _, name = SHELL.partition(":")
            getattr(importlib.import_module(where), name)()
            return function(*args, **kwargs)

        return called

    for name in ("display", "publish_display_data", "clear_output"):
        setattr(module, name, first(getattr(module, name)))


def _quiet_bars(module: Any) -> None:
    """Report a bar's progress instead of redrawing it, and print its last line when it closes."""

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> bool:
        report = progress_report()
        if report is not None and not bar.pos:
            report(max(0, int(bar.n)), max(0, int(bar.total or 0)))
        if bar.disable and msg is None:  # it is being closed
            bar.fp.write(str(bar))
        return True

    module.tqdm.display = display
    module.tqdm.clear = lambda bar, nolock=False: None


def _no_widgets(module: Any) -> None:
    """Workers have no front end for widgets: bars for notebooks become plain ones."""
    plain = importlib.import_module("tqdm.std")
    module.tqdm = module.tqdm_notebook = plain.tqdm
    module.trange = module.tnrange = plain.trange


def _by_value(module: Any) -> None:
    """A pool pickles functions and classes by name, and what came here by value has none that leads to it."""

    def reducer_override(pickler: Any, value: Any) -> Any:
        if isinstance(value, FunctionType | type) and callables.travels(value):
            return pickle.loads, (cloudpickle.dumps(value),)
        return NotImplemented

    module.ForkingPickler.reducer_override = reducer_override


def _refused(call: str, way_out: str = "pass the answer as an argument") -> Callable[..., NoReturn]:
    """Return what stands for a function that asks a user."""

    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        task = context.task_name()
        raise CantAsk(f"{task or 'a task'} calls {call}, but a task can't ask: {way_out}")

    return refused


_DEBUGGER = "run the function in the notebook, with .run(...), or look into a failed task with %jug_debug"


def _refused_breakpoint(*args: Any, **kwargs: Any) -> None:
    if os.environ.get("PYTHONBREAKPOINT") != "0":
        _refused("breakpoint()", _DEBUGGER)()


def _no_password(module: Any) -> None:
    module.getpass = _refused("getpass()")


def _no_debugger(module: Any) -> None:
    module.set_trace = module.Pdb.set_trace = _refused("set_trace()", _DEBUGGER)


def _owned_work(module: Any) -> None:
    """What a pool of threads does belongs to the task that submitted it, whichever task the pool is from."""
    submit = module.ThreadPoolExecutor.submit

    @functools.wraps(submit)
    def submitted(pool: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return submit(pool, context.owned(function), *args, **kwargs)

    module.ThreadPoolExecutor.submit = submitted


_ADAPTERS: dict[str, Callable[[ModuleType], None]] = {
    "IPython.core.display_functions": _with_a_shell,
    "tqdm.std": _quiet_bars,
    "tqdm.notebook": _no_widgets,
    "multiprocessing.reduction": _by_value,
    "getpass": _no_password,
    "pdb": _no_debugger,
    "IPython.core.debugger": _no_debugger,
    "concurrent.futures.thread": _owned_work,
}
