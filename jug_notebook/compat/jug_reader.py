"""Reads a jugdir with Jug itself, in a process of its own: tells which tasks have values, then hands out values.

``python -m jug_notebook.compat.jug_reader JUGFILE JUGDIR ARGS …``: says its say on stdout as pickles, one for all tasks
``{likeness: hash}``, then one for each hash (a line on stdin), ``(True, value)`` or ``(False, why)``.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any, BinaryIO

from jug_notebook.compat.task_match import likeness
from jug_notebook.errors import JugError
from jug_notebook.keys.modules import scripts


def main(jugfile: str, jugdir: str, arguments: list[str]) -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the script prints is not for them
    sys.argv[:] = [jugfile, *arguments]
    scripts.add(Path(jugfile).stem)
    jug: Any = importlib.import_module("jug.jug")
    task: Any = importlib.import_module("jug.task")
    compound: Any = importlib.import_module("jug.compound")
    jug._is_jug_running = True
    compound.CompoundTask = _expanded(task.Task, task.alltasks, compound.compound_task_execute)
    whole: Any = importlib.import_module("jug")
    whole.CompoundTask = compound.CompoundTask
    options: Any = importlib.import_module("jug.options")
    options.set_jugdir = whole.set_jugdir = lambda _: task.Task.store  # the jugdir that was named is meant
    backends: Any = importlib.import_module("jug.backends")
    task.Task.store = store = backends.select(jugdir)
    jug.init(jugfile, store=store, on_error="propagate")
    known: dict[int, bytes] = {}
    found: dict[bytes, bytes] = {}
    for one in task.alltasks:
        try:
            known[id(one)] = like = likeness(one, lambda need: known[id(need)])
        except (JugError, KeyError):
            continue
        if store.can_load(one.hash()):
            found[like] = one.hash()
    _say(out, found)
    for line in sys.stdin.buffer:
        try:
            _say(out, (True, store.load(line.strip())))
        except Exception as error:  # whatever it is, that value can't be had
            _say(out, (False, f"{type(error).__name__}: {error}"))


def _say(out: BinaryIO, what: Any) -> None:
    data = pickle.dumps(what)
    out.write(len(data).to_bytes(8, "little") + data)
    out.flush()


def _expanded(make: Any, alltasks: list[Any], execute: Any) -> Any:
    """A compound task that is put together also where its value is stored: as one is that has none yet."""

    def compound(f: Any, *args: Any, **kwargs: Any) -> Any:
        whole = make(f, *args, **kwargs)
        alltasks.pop()
        name = whole.hash()
        made = make(execute, f(*args, **kwargs), name)
        made.said = (args, kwargs)
        made.__jug_hash__ = lambda: name
        return made

    return compound


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
