"""Loading a jugfile: its text is run as Jug runs it, and the tasks that it makes are handed in."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle

from jug_notebook import errors
from jug_notebook.compat import answering, jugdir
from jug_notebook.compat.jug import mapreduce, task
from jug_notebook.compat.jugdir import select
from jug_notebook.errors import ChangedInCell, NotReady, OnlyAPath, StoreError, TaskCancelled
from jug_notebook.keys.modules import scripts
from jug_notebook.session import Session, current
from jug_notebook.task import context as context

running = False  #: is a script run by one of our commands?

BARRIER = "__jug__hasbarrier__"  #: set in a script's namespace where it has stopped at a barrier


def is_jug_running() -> bool:
    """Return whether the script is loaded by a command, and not by Python itself."""
    return running


@contextmanager
def serving(purpose: jugdir.Purpose) -> Iterator[None]:
    """Within, scripts are loaded for this purpose, and what they import of Jug means us."""
    global running
    before = jugdir.purpose, running
    with answering(), warnings.catch_warnings():
        warnings.simplefilter("ignore", OnlyAPath)  # in Jug's scripts a path is a path
        jugdir.purpose, running = purpose, True
        desk = context.current
        context.set_current(None)
        context.on_first_need(_session)
        try:
            yield
        finally:
            _close()
            jugdir.purpose, running = before
            context.on_first_need(current)
            context.set_current(desk)


def _session() -> context.SessionProtocol:
    """Where tasks go that a script makes by our own names."""
    session: Session = task.Task.store.session
    return session


def _close() -> None:
    store = task.Task.store
    if isinstance(store, jugdir.Jugdir):
        store.close()
    del task.alltasks[:]
    task.forget_functions()


def load(jugfile: str, on_error: str = "exit") -> dict[str, Any]:
    """Run a script; answers its namespace. A barrier ends it early: `BARRIER` says so.

    Where it fails, prints why and raises SystemExit, unless ``on_error`` is "propagate".
    """
    start = len(task.alltasks)
    in_a_cell = not jugdir.purpose.script  # of a notebook: what its functions are in the end, is told at its end
    for deferred in (True,) if in_a_cell else (False, True):
        task.forget_functions()
        del task.alltasks[start:]
        task.deferred = deferred
        _begin(task.Task.store)
        try:
            space = _run(jugfile)
            _hand_in(start, complete=BARRIER not in space)
        except ChangedInCell as changed:
            # A helper was defined, or a global set, after a task was made. What counts is how things are in the end.
            if deferred:
                _failed(jugfile, changed, on_error)
                raise
        except StoreError:
            raise  # it isn't the script's fault
        except Exception as error:
            _failed(jugfile, error, on_error)
            raise
        else:
            return space
        finally:
            task.deferred = False
    raise AssertionError("the second attempt answers or raises")


class Elsewhere(StoreError):
    """The script uses a store of its own."""


def _begin(store: Any) -> None:
    if isinstance(store, jugdir.Jugdir) and store.is_open and jugdir.purpose.script:
        store.session.begin_cell(jugdir.purpose.arguments or "jugfile")


def _hand_in(start: int, complete: bool) -> None:
    store = task.Task.store
    known = {one.key: one for one in task.alltasks}  # asking for the keys names those that were not named yet
    if (
        isinstance(context.current, Session)
        and isinstance(store, jugdir.Jugdir)
        and context.current is not store.session
    ):
        raise Elsewhere(
            f"the script connects to {context.current.display_url} itself, so its tasks are not ours to run: run it "
            "with python, or let it connect under: if __name__ == '__main__'"
        )
    compounds: dict[str, tuple[task.Task, ...]] = {}
    if isinstance(store, jugdir.Jugdir) and store.is_open and jugdir.purpose.script:
        for handle, needs in store.session.made():  # also by our own names, as in @jn.task
            needed = tuple(known[need] for need in needs if need in known)
            if handle.key not in known:
                known[handle.key] = task.Task.around(handle.name, None, needed, {}, partial(_itself, handle))
            compounds.update({handle.key: needed} if isinstance(known[handle.key], mapreduce.Compound) else {})
        for one in task.alltasks:
            if isinstance(one, mapreduce.Compound):
                one.inner = compounds.get(one.key, ())
    if jugdir.purpose.script and isinstance(store, jugdir.Jugdir) and (task.alltasks or store.is_open):
        store.session.end_cell(success=complete)


def _itself(handle: Any) -> Any:
    return handle


def _run(jugfile: str) -> dict[str, Any]:
    here = os.path.abspath(".")
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    name = Path(jugfile).name.removesuffix(".py")
    module = types.ModuleType(name)
    module.__file__ = path = os.path.abspath(jugfile)
    space = module.__dict__
    text = Path(jugfile).read_bytes()
    sys.modules[name] = module
    scripts.add(name)
    cloudpickle.register_pickle_by_value(module)
    try:
        exec(compile(text, path, "exec", dont_inherit=True), space)
    except (task.BarrierError, errors.NoWorkers, NotReady, TaskCancelled):
        # Jug's, and what our own waiting and asking raise; who only looks hands nothing in, so nobody seems to want it
        space[BARRIER] = True
    return space


def _failed(jugfile: str, error: Exception, on_error: str) -> None:
    if on_error != "exit":
        return
    logging.critical("%s can't be loaded: %s", jugfile, error)
    path, frame = os.path.abspath(jugfile), error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != path:
        frame = frame.tb_next
    traceback.print_exception(type(error), error, frame)
    sys.exit(1)


# -- Jug's own names ---------------------------------------------------------------------------------------------------


def set_jugdir(jugdir: Any) -> Any:
    """Use this store from now on, for all tasks of the script. None means 'jugdata'."""
    store = select("jugdata" if jugdir is None else jugdir)
    if getattr(task.Task.store, "jugdir", None) != getattr(store, "jugdir", store):
        task.Task.store = store
    return task.Task.store


def init(
    jugfile: str | None = None, jugdir: Any = None, on_error: str = "exit", store: Any = None
) -> tuple[Any, dict[str, Any]]:
    """Load a script; answers its store and what it defines. ``on_error`` is "exit" or "propagate"."""
    assert on_error in ("exit", "propagate"), "on_error is 'exit' or 'propagate'"
    set_jugdir(jugdir if store is None else store)
    space = load(jugfile or "jugfile.py", on_error)
    return task.Task.store, space
