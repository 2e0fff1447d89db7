"""``import-jugdata``: takes over the values that Jug itself has stored, under our keys.

Jug reads its own values, in a process of its own: `serve_values`.

Jug's keys and ours differ, so tasks are matched by their `likeness`: function names and arguments. Both sides load the
same script, each with its own `jug`, and the same call has the same likeness in both.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import sys
import types
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jug_notebook.compat import loading
from jug_notebook.compat.jug import task
from jug_notebook.compat.jug.utils import print_task_summary_table
from jug_notebook.compat.jugdir import is_jugs_own, url_of
from jug_notebook.errors import JugError, clean
from jug_notebook.keys.digest import digest
from jug_notebook.keys.modules import scripts
from jug_notebook.store import split


class NoJug(JugError):
    """Jug's own values are read with Jug: pip install jug"""


class NoJugdir(JugError):
    """There is no such jugdir."""


class JugProcess:
    """Jug in a process of its own, see `serve_values`. ``hashes``: of all tasks with values, by likeness."""

    def __init__(self, jugfile: str, jugdir: str, arguments: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve_values, args=(theirs, jugfile, jugdir, arguments))
        self._process.start()
        theirs.close()
        try:
            self.hashes: dict[bytes, bytes] = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise NoJugdir(f"Jug could not load {jugfile}, or read {jugdir!r}; the reason is above") from None

    def value(self, name: bytes) -> tuple[bool, Any]:
        """Return (True, value), or (False, why not), of the task with this hash."""
        self._pipe.send(name)
        found: tuple[bool, Any] = self._pipe.recv()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


class Import:
    """Called with each task as the script makes it: gives it the value that Jug has for it."""

    def __init__(self, jug: JugProcess) -> None:
        self._jug = jug
        self._likenesses: dict[int, bytes] = {}
        self.imported: Counter[str] = Counter()
        self.there: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.unread: list[str] = []

    def __call__(self, one: task.Task) -> None:
        store = task.Task.store
        try:
            self._likenesses[id(one)] = like = likeness(one, lambda need: self._likenesses[id(need)])
            name = self._jug.hashes.get(like)
        except (JugError, KeyError):
            name = None
        if store.can_load(one.hash()):
            self.there[one.name] += 1
            return
        claim = None if name is None or one.name == "jug.io._do_write_task_out" else store.hand.claim(one.key, True)
        if name is None or claim is None:
            self.missing[one.name] += 1
            return
        readable, value = self._jug.value(name)
        if readable:
            store.hand.deposit(claim, value)
            self.imported[one.name] += 1
        else:
            store.hand.release(claim)
            self.missing[one.name] += 1
            self.unread.append(f"{one.name}: {value}")


class NotTrusted(JugError):
    """Jug's values are pickles, which nobody has signed: reading them may run code as you."""


def import_values(jugfile: str, jugdir: str, options: Any, trust: bool = False) -> int:
    """Give the script's tasks the values that Jug has stored in ``jugdir``, print how many, return the exit status.

    0 where all tasks have values now, 1 where some have none: they will be computed. Without ``trust`` in those who
    could write to the jugdir, ask in a terminal. Raises NoJug, NoJugdir, NotTrusted.
    """
    if importlib.util.find_spec("jug.jug" if importlib.util.find_spec("jug") else "jug") is None:
        raise NoJug
    scheme, rest = split(url_of(jugdir))
    if scheme == "file" and not is_jugs_own(Path(rest).expanduser()):
        raise NoJugdir(f"{jugdir!r} is not a jugdir that Jug has written")
    if not trust and not _trusted(jugdir):
        raise NotTrusted(
            f"{jugdir!r} contains unsigned pickles: anyone who could write to it can run code as you. "
            "If you trust them, give --trust"
        )
    jug = JugProcess(jugfile, jugdir, list(options.user_args))
    task.on_made = values = Import(jug)
    try:
        space = loading.load(jugfile)
        complete = loading.BARRIER not in space and task.done(task.alltasks)
    finally:
        task.on_made = None
        jug.close()
    print_task_summary_table(
        options, [("Taken over", values.imported), ("There", values.there), ("Missing", values.missing)]
    )
    for line in values.unread:
        print(clean(f"can't be read: {line}"), file=sys.stderr)
    print("they are imported as they are: Jug does not record whether a function was edited after its tasks had run")
    print(f"now in {task.Task.store.session.display_url}: jug-notebook execute {jugfile} --jugdir {options.jugdir}")
    return 0 if complete else 1


def _trusted(jugdir: str) -> bool:
    """Ask whether the jugdir may be read; False where nobody can answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(clean(f"{jugdir!r} contains pickles: anyone who could write to it can run code as you."), file=sys.stderr)
    print("Do you trust them? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# -- in Jug's process -------------------------------------------------------------------------------------------------


def serve_values(pipe: Connection, jugfile: str, jugdir: str, arguments: list[str]) -> None:
    """Load the script with Jug and send ``{likeness: hash}`` of its tasks that have values; then, for each hash that
    comes, ``(True, value)`` or ``(False, why not)``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the script prints when it is loaded here, too
    sys.argv[:] = [jugfile, *arguments]
    scripts.add(Path(jugfile).stem)
    jug: Any = importlib.import_module("jug.jug")
    task: Any = importlib.import_module("jug.task")
    compound: Any = importlib.import_module("jug.compound")
    jug._is_jug_running = True
    compound.CompoundTask = _expanded(task.Task, task.alltasks, compound.compound_task_execute)
    package: Any = importlib.import_module("jug")
    package.CompoundTask = compound.CompoundTask
    options: Any = importlib.import_module("jug.options")
    options.set_jugdir = package.set_jugdir = lambda _: task.Task.store  # the jugdir of the command line wins
    backends: Any = importlib.import_module("jug.backends")
    task.Task.store = store = backends.select(jugdir)
    jug.init(jugfile, store=store, on_error="propagate")
    likenesses: dict[int, bytes] = {}
    stored: dict[bytes, bytes] = {}
    for one in task.alltasks:
        try:
            likenesses[id(one)] = like = likeness(one, lambda need: likenesses[id(need)])
        except (JugError, KeyError):
            continue
        if store.can_load(one.hash()):
            stored[like] = one.hash()
    pipe.send(stored)
    while True:
        name = pipe.recv()
        try:
            pipe.send((True, store.load(name)))
        except Exception as error:  # reading or pickling a value may fail in any way
            pipe.send((False, f"{type(error).__name__}: {error}"))


def _expanded(make: Any, alltasks: list[Any], execute: Any) -> Any:
    """Return a CompoundTask that calls its function even where its value is stored, under the same hash."""

    def compound(f: Any, *args: Any, **kwargs: Any) -> Any:
        whole = make(f, *args, **kwargs)
        alltasks.pop()
        name = whole.hash()
        made = make(execute, f(*args, **kwargs), name)
        made.compound_call = (args, kwargs)
        made.__jug_hash__ = lambda: name
        return made

    return compound


# -- matching Jug's tasks with ours ------------------------------------------------------------------------------------

_OURS = "jug_notebook.compat.jug"
#: classes that both sides have: what matters of their objects
_ATTRIBUTES = {
    "Tasklet": "base f",
    "NoLoad": "base",
    "_getitem": "slice",
    "CustomHash": "obj",
    "block_access": "blocks block_size len",
}


class Unlike(JugError):
    """An argument can't be compared between Jug and us."""


def likeness(task: Any, known: Callable[[Any], bytes]) -> bytes:
    """Return a digest of a task's function name and arguments; ``known`` gives those of its dependencies. Raises
    Unlike."""
    args, kwargs = getattr(task, "compound_call", None) or (task.args, task.kwargs)
    return digest((task.name, _part(list(args), known), _part(dict(kwargs), known)))


def _part(x: Any, known: Callable[[Any], bytes]) -> Any:
    kind = type(x)
    name = kind.__name__ if _is_jugs(kind.__module__) or kind.__name__ == "NoLoad" else ""
    if name in ("Task", "Compound"):
        return ("task", known(x))
    if name in _ATTRIBUTES:
        return (name, *(_part(getattr(x, attribute), known) for attribute in _ATTRIBUTES[name].split()))
    if name == "NoHash":
        return "any"
    if name == "TaskGenerator":
        return _part(x.f, known)
    if name == "block_access_slice":
        return _part([x[i] for i in range(len(x))], known)
    if name:
        raise Unlike(f"an argument is a {name}")
    if kind is list or kind is tuple:
        return kind(_part(item, known) for item in x)
    if kind is dict:
        return {key: _part(item, known) for key, item in x.items()}
    if kind is slice:
        return ("slice", x.start, x.stop, x.step)
    if kind is partial:
        return ("partial", _part(x.func, known), _part(x.args, known), _part(x.keywords, known))
    return _function(x) if kind is types.FunctionType else x


def _is_jugs(module: str) -> bool:
    return module.partition(".")[0] == "jug" or module == _OURS or module.startswith(f"{_OURS}.")


def _function(f: types.FunctionType) -> Any:
    if _is_jugs(f.__module__):
        return ("function", f"jug.{f.__name__}")
    constants = [c for c in f.__code__.co_consts if not isinstance(c, types.CodeType)]
    return ("function", f.__module__, f.__qualname__, f.__code__.co_code, repr(constants), f.__code__.co_names)
