"""Loads jugfiles: runs a script as Jug runs it, and submits the tasks that it makes to its store.

The commands load a script between `serving` and its end; a notebook imports the tasks of one with `import_jugfile`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

from jug_notebook import errors
from jug_notebook.compat import configuration, jugdir, replacing_jug
from jug_notebook.compat.jug import mapreduce, task
from jug_notebook.compat.jugdir import Jugdir, select
from jug_notebook.errors import ChangedInCell, JugError, NotReady, OnlyAPath, StoreError, TaskCancelled
from jug_notebook.keys.modules import scripts
from jug_notebook.session import Session, current, using
from jug_notebook.task import TaskFunction, handles
from jug_notebook.task import context as context
from jug_notebook.task.values import TaskList

running = False  #: is a script being run by one of our commands?

BARRIER = "__jug__hasbarrier__"  #: set in a script's namespace where it has stopped at a barrier


class NotLoaded(JugError):
    """A jugfile could not be loaded."""


class OtherStore(StoreError):
    """The script connects to a store itself."""


def is_jug_running() -> bool:
    """Return whether the script is loaded by a command, and not by Python itself."""
    return running


# -- what a script finds when it is loaded -----------------------------------------------------------------------------


def settled(name: str, given: argparse.Namespace, more: dict[str, Any] | None = None) -> Any:
    """Return all options of a command: those given, else configured, else the defaults, which ``more`` adds to."""
    options = configuration.Options()
    options.update(configuration.settle(vars(given), more or {}))
    options.update({"subcommand": name, "print_out": print, "argv": None})
    return options


@contextmanager
def loaded(options: Any, read_only: bool) -> Iterator[dict[str, Any]]:
    """Load a script; yield its namespace, while its tasks can be queried. ``read_only`` submits nothing."""
    with serving(options, read_only):
        yield load(options.jugfile, "propagate" if options.pdb else "exit")


@contextmanager
def serving(options: Any, read_only: bool, connect: Callable[[str], Session] | None = None) -> Iterator[None]:
    """Within, scripts can be loaded: with their ``sys.argv`` and store, and with our modules by Jug's names.

    ``connect`` opens the store where a notebook's session is to be used. Raises SystemExit where there is no jugfile.
    """
    global running
    if not os.path.isfile(options.jugfile):
        print(f"jug-notebook: no jugfile at {options.jugfile!r}", file=sys.stderr)
        sys.exit(1)
    arguments = list(options.user_args)
    owner = "" if connect else os.path.abspath(options.jugfile)  # else the notebook begins and ends the cell
    if options.debug:
        os.environ[jugdir.CHECK] = "1"
    before = jugdir.purpose, running, sys.argv[:], context.current
    with replacing_jug(), warnings.catch_warnings():
        warnings.simplefilter("ignore", OnlyAPath)  # Jug's scripts name files by their paths
        jugdir.purpose = jugdir.Purpose(owner, " ".join(arguments), Path.cwd(), read_only, connect=connect)
        running = True
        context.set_current(None)
        context.on_first_need(_session)
        sys.argv[:] = [options.jugfile, *arguments]
        try:
            task.Task.store = Jugdir(options.jugdir)
            yield
        finally:
            if isinstance(task.Task.store, Jugdir):
                task.Task.store.close()
            del task.alltasks[:]
            task.forget_functions()
            jugdir.purpose, running, sys.argv[:], session = before
            context.on_first_need(current)
            context.set_current(using() if connect else session)  # a notebook goes on with the script's store


def _session() -> context.SessionProtocol:
    """Return the session for tasks that a script makes by our own names."""
    session: Session = task.Task.store.session
    return session


# -- running the script ------------------------------------------------------------------------------------------------


def load(jugfile: str, on_error: str = "exit") -> dict[str, Any]:
    """Run a script; return its namespace. A barrier ends it early, and `BARRIER` is in the namespace.

    Where it fails, prints why and raises SystemExit; with ``on_error`` "propagate" only raises.
    """
    start = len(task.alltasks)
    in_a_cell = not jugdir.purpose.script  # a notebook looks at the functions when its own cell ends
    for deferred in (True,) if in_a_cell else (False, True):
        task.forget_functions()
        del task.alltasks[start:]
        task.deferred = deferred
        store = task.Task.store
        if isinstance(store, Jugdir) and store.is_open and jugdir.purpose.script:
            store.session.begin_cell(jugdir.purpose.arguments or "jugfile")
        try:
            space = _run(jugfile)
            _submit(start, complete=BARRIER not in space)
        except ChangedInCell as changed:
            # A helper was defined, or a global set, after a task was made: the second time, tasks get keys at the end
            if deferred:
                _report(jugfile, changed, on_error)
                raise
        except StoreError:
            raise  # it isn't the script's fault
        except Exception as error:
            _report(jugfile, error, on_error)
            raise
        else:
            return space
        finally:
            task.deferred = False
    raise AssertionError("the second attempt returns or raises")


def _submit(start: int, complete: bool) -> None:
    store = task.Task.store
    known = {one.key: one for one in task.alltasks}  # this also computes the keys that were deferred
    if not isinstance(store, Jugdir):
        return
    if isinstance(context.current, Session) and context.current is not store.session:
        raise OtherStore(
            f"the script connects to {context.current.display_url} itself, so its tasks are not ours to run: run it "
            "with python, or let it connect under: if __name__ == '__main__'"
        )
    if not jugdir.purpose.script:
        return
    if store.is_open:
        compounds: dict[str, tuple[task.Task, ...]] = {}
        for handle, needs in store.session.made():  # also by our own names, as in @jn.task
            needed = tuple(known[need] for need in needs if need in known)
            if handle.key not in known:
                known[handle.key] = task.Task.around(handle.name, None, needed, {}, partial(lambda task: task, handle))
            if isinstance(known[handle.key], mapreduce.Compound):
                compounds[handle.key] = needed
        for one in task.alltasks:
            if isinstance(one, mapreduce.Compound):
                one.inner = compounds.get(one.key, ())
    if task.alltasks or store.is_open:
        store.session.end_cell(success=complete)


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
        # Jug's, and what our own waiting raises: a read-only load submits nothing, so its tasks seem to be cancelled
        space[BARRIER] = True
    return space


def _report(jugfile: str, error: Exception, on_error: str) -> None:
    if on_error != "exit":
        return
    logging.critical("%s can't be loaded: %s", jugfile, error)
    path, frame = os.path.abspath(jugfile), error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != path:
        frame = frame.tb_next
    traceback.print_exception(type(error), error, frame)
    sys.exit(1)


# -- into a notebook ---------------------------------------------------------------------------------------------------


class Imported(NamedTuple):
    """What a jugfile defines, as a notebook has it."""

    names: dict[str, Any]  #: tasks as handles, task generators as task functions
    tasks: TaskList
    session: Session
    barrier: bool  #: did it stop at one?


def import_jugfile(
    jugfile: str, jugdir_: str | None, arguments: Sequence[str], connect: Callable[[str], Session]
) -> Imported:
    """Load a jugfile into a notebook; ``connect`` opens its store.

    What the script raises is raised. Raises NotLoaded where it exits, or isn't there.
    """
    given = argparse.Namespace(jugfile=jugfile, jugdir=jugdir_, user_args=list(arguments))
    try:
        with serving(settled("import", given), read_only=False, connect=connect):
            space = load(jugfile, "propagate")
            session: Session = task.Task.store.session
            made = TaskList(one.task for one in task.alltasks)
            held = {name: x for name, x in space.items() if not name.startswith("_") and not _is_jugs(x)}
            names = {name: _as_ours(x) for name, x in held.items()}
    except SystemExit as ended:
        raise NotLoaded(f"{jugfile} called exit, or isn't there: {ended}") from ended
    return Imported(names, made, session, BARRIER in space)


def _is_jugs(held: Any) -> bool:
    home = getattr(held, "__module__", None) or getattr(held, "__name__", "")
    return isinstance(held, type | types.FunctionType | types.ModuleType) and str(home).startswith(
        "jug_notebook.compat"
    )


def _as_ours(held: Any) -> Any:
    """Return what a notebook has instead of an object of Jug's."""
    if isinstance(held, task.Task):
        return held.task
    if isinstance(held, task.Tasklet):
        base = _as_ours(held.base)
        return base[_as_ours(held.f.slice)] if type(held.f) is task._getitem else handles.Tasklet(base, held.f)
    if isinstance(held, task.TaskGenerator):
        return TaskFunction(held.f, runner=jugdir.RUNNER)
    if isinstance(held, mapreduce.block_access):
        return TaskList(map(_as_ours, held))
    if isinstance(held, task.iteratetask):
        return [_as_ours(held[i]) for i in range(len(held))]
    if type(held) is list and held and all(isinstance(item, task.TaskletMixin) for item in held):
        return TaskList(map(_as_ours, held))
    if type(held) in (list, tuple):
        return type(held)(map(_as_ours, held))
    if type(held) is dict:
        return {key: _as_ours(item) for key, item in held.items()}
    return held


# -- Jug's own names ---------------------------------------------------------------------------------------------------


def set_jugdir(jugdir: Any) -> Any:
    """Use this store from now on for all tasks of the script, and return it. None means 'jugdata'."""
    store = select("jugdata" if jugdir is None else jugdir)
    if getattr(task.Task.store, "jugdir", None) != getattr(store, "jugdir", store):
        task.Task.store = store
    return task.Task.store


def init(
    jugfile: str | None = None, jugdir: Any = None, on_error: str = "exit", store: Any = None
) -> tuple[Any, dict[str, Any]]:
    """Load a script; return its store and its namespace. ``on_error`` is "exit" or "propagate"."""
    assert on_error in ("exit", "propagate"), "on_error is 'exit' or 'propagate'"
    set_jugdir(jugdir if store is None else store)
    space = load(jugfile or "jugfile.py", on_error)
    return task.Task.store, space
