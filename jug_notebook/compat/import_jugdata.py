"""Taking over what Jug itself has stored: its values, under our keys."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections import Counter
from typing import Any

from jug_notebook.compat import loading
from jug_notebook.compat.jug import task
from jug_notebook.compat.jug.utils import print_task_summary_table
from jug_notebook.compat.jugdir import is_jugs_own, url_of
from jug_notebook.compat.task_match import likeness
from jug_notebook.errors import JugError
from jug_notebook.model import State
from jug_notebook.store import split


class NoJug(JugError):
    """Jug's own values are read with Jug: pip install jug"""


class NoJugdir(JugError):
    """There is no such jugdir."""


class Theirs:
    """Jug, in a process of its own."""

    def __init__(self, jugfile: str, jugdir: str, arguments: list[str]) -> None:
        command = [sys.executable, "-P", "-m", "jug_notebook.compat.jug_reader", jugfile, jugdir, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self.hashes: dict[bytes, bytes] = self._heard()

    def _heard(self) -> Any:
        assert self._process.stdout is not None
        head = self._process.stdout.read(8)
        if len(head) < 8:
            assert self._process.stderr is not None
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            raise NoJugdir(f"Jug could not load the script: {said[-1] if said else 'it said nothing'}")
        return pickle.loads(self._process.stdout.read(int.from_bytes(head, "little")))

    def value(self, name: bytes) -> tuple[bool, Any]:
        """(True, value), or (False, why not)."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + b"\n")
        self._process.stdin.flush()
        found: tuple[bool, Any] = self._heard()
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


class TakingOver:
    """Gives each task that the script makes the value that Jug has for it, as soon as it is made."""

    def __init__(self, theirs: Theirs) -> None:
        self._theirs = theirs
        self._known: dict[int, bytes] = {}
        self.taken: Counter[str] = Counter()
        self.there: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.unread: list[str] = []

    def __call__(self, one: task.Task) -> None:
        store = task.Task.store
        try:
            self._known[id(one)] = like = likeness(one, lambda need: self._known[id(need)])
            name = self._theirs.hashes.get(like)
        except (JugError, KeyError):
            name = None
        if store.can_load(one.hash()):
            self.there[one.name] += 1
            return
        claim = None if name is None or one.name == "jug.io._do_write_task_out" else store.hand.claim(one.key, True)
        if name is None or claim is None:
            self.missing[one.name] += 1
            return
        known, value = self._theirs.value(name)
        if known:
            store.hand.deposit(claim, value)
            self.taken[one.name] += 1
        else:
            store.hand.release(claim)
            self.missing[one.name] += 1
            self.unread.append(f"{one.name}: {value}")


def take_over(jugfile: str, jugdir: str, options: Any) -> int:
    """Give the script's tasks the values that Jug has stored in ``jugdir``; say how many; answer the exit status.

    0 where all tasks have values now, 1 where some have none: they will be computed.
    """
    if importlib.util.find_spec("jug.jug" if importlib.util.find_spec("jug") else "jug") is None:
        raise NoJug
    scheme, rest = split(url_of(jugdir))
    if scheme == "file" and not is_jugs_own(_path(rest)):
        raise NoJugdir(f"{jugdir!r} is no jugdir that Jug has written")
    theirs = Theirs(jugfile, jugdir, list(options.user_args))
    taking = TakingOver(theirs)
    task.on_made = taking
    try:
        space = loading.load(jugfile)
        keys = list(dict.fromkeys(one.key for one in task.alltasks))
        states = task.Task.store.session.queries.states(keys)
    finally:
        task.on_made = None
        theirs.close()
    counts = [("Taken over", taking.taken), ("There", taking.there), ("Missing", taking.missing)]
    print_task_summary_table(options, counts)
    for line in taking.unread:
        print(f"can't be read: {line}", file=sys.stderr)
    print("they are taken as they are: Jug does not tell whether a function was edited after its tasks had run")
    print(f"now in {task.Task.store.session.display_url}: jug-notebook execute {jugfile} --jugdir {options.jugdir}")
    return 0 if loading.BARRIER not in space and all(state is State.FINISHED for state in states) else 1


def _path(rest: str) -> Any:
    from pathlib import Path

    return Path(rest).expanduser()


__all__ = ["TakingOver", "Theirs", "take_over"]
