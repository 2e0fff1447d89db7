"""``import-jugdata``: takes over the values that Jug itself has stored, under our keys."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from jug_notebook.compat import loading
from jug_notebook.compat.jug import task
from jug_notebook.compat.jug.utils import print_task_summary_table
from jug_notebook.compat.jug_reader import likeness
from jug_notebook.compat.jugdir import is_jugs_own, url_of
from jug_notebook.errors import JugError
from jug_notebook.store import split


class NoJug(JugError):
    """Jug's own values are read with Jug: pip install jug"""


class NoJugdir(JugError):
    """There is no such jugdir."""


class JugProcess:
    """Jug in a process of its own, see `jug_reader`. ``hashes``: of all tasks with values, by likeness."""

    def __init__(self, jugfile: str, jugdir: str, arguments: list[str]) -> None:
        command = [sys.executable, "-P", "-m", "jug_notebook.compat.jug_reader", jugfile, jugdir, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        self.hashes: dict[bytes, bytes] = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        head = self._process.stdout.read(8)
        if len(head) < 8:
            assert self._process.stderr is not None
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            raise NoJugdir(f"Jug could not load the script: {lines[-1] if lines else 'it printed no reason'}")
        return pickle.loads(self._process.stdout.read(int.from_bytes(head, "little")))

    def value(self, name: bytes) -> tuple[bool, Any]:
        """Return (True, value), or (False, why not), of the task with this hash."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + b"\n")
        self._process.stdin.flush()
        found: tuple[bool, Any] = self._read()
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


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


def import_values(jugfile: str, jugdir: str, options: Any) -> int:
    """Give the script's tasks the values that Jug has stored in ``jugdir``, print how many, return the exit status.

    0 where all tasks have values now, 1 where some have none: they will be computed. Raises NoJug, NoJugdir.
    """
    if importlib.util.find_spec("jug.jug" if importlib.util.find_spec("jug") else "jug") is None:
        raise NoJug
    scheme, rest = split(url_of(jugdir))
    if scheme == "file" and not is_jugs_own(Path(rest).expanduser()):
        raise NoJugdir(f"{jugdir!r} is no jugdir that Jug has written")
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
        print(f"can't be read: {line}", file=sys.stderr)
    print("they are taken as they are: Jug does not record whether a function was edited after its tasks had run")
    print(f"now in {task.Task.store.session.display_url}: jug-notebook execute {jugfile} --jugdir {options.jugdir}")
    return 0 if complete else 1
