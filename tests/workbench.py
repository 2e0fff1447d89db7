"""For tests: tasks written as text, as a notebook's cells are, and put into a store without a session; and a clock."""

from __future__ import annotations

import linecache
import os
import select
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from jug_notebook import codec, system
from jug_notebook.clock import CLOCK
from jug_notebook.keys import digest
from jug_notebook.keys.code import examine
from jug_notebook.model import Failed, Finished, Key, Origin, Outcome, Reference, Spec, State, Submission, TaskTemplate
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader, SignedWriter, seal_of
from jug_notebook.task import TaskFunction

ORIGIN = Origin("tester", "/nowhere/notebook.ipynb", "cell")
PATIENCE = 20.0  #: seconds after which a test that waits has failed


class Need:
    """Stands in arguments for another task's value."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def __jug_reference__(self) -> Reference:
        return Reference(self.key)


def cell(source: str, name: str = "f") -> Callable[..., Any]:
    """The function of that name that a cell defines."""
    source = textwrap.dedent(source)
    filename = f"<cell {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace[name]
    return function


_ARITHMETIC = """
def double(x):
    print("doubling", x)
    return 2 * x

def divide(x):
    return 1 / x

def add(x, y):
    return x + y
"""


def arithmetic(*names: str) -> list[TaskFunction]:
    """Return task functions for a whole test file: "double", which prints, "divide" one by x, "add".

    They are no definitions of their names, or scripts of other files, in this process, would redefine them.
    """
    return [TaskFunction(cell(_ARITHMETIC, name)) for name in names]


class Submitter:
    """Puts tasks into a store and reads what became of them."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.seal = seal_of(store, make=True)

    def submission(self, function: Callable[..., Any], *args: Any, **options: Any) -> Submission:
        code = examine(function)
        labels = options.pop("labels", None)
        bundle = self.store.put_blob(
            [msgspec.msgpack.encode(codec.dump_function(function, code, self.store.put_blob, (labels or {}).get))]
        )
        name = function.__name__
        template = TaskTemplate(name, code.digest, bundle, system.python(), **options)
        key, form, needs, call = digest.name_call(code.digest, name, [(str(i), value) for i, value in enumerate(args)])
        payload = codec.dump_call(args, {}, needs, self.store.put_blob)
        spec = Spec(
            key, msgspec.msgpack.encode(template), needs, form, payload, "", ORIGIN, str(self.folder), CLOCK.now(), call
        )  # fmt: skip
        body = SignedWriter(self.seal).spec(spec)
        return Submission(key, name, needs, form, body, 0, system.python(), template.resources)

    def submit(self, function: Callable[..., Any] | str, *args: Any, **options: Any) -> Key:
        submission = self.submission(cell(function) if isinstance(function, str) else function, *args, **options)
        self.store.submit([submission], ORIGIN)
        return submission.key

    def state(self, key: Key) -> State | None:
        return self.store.states([key])[0]

    def outcome(self, key: Key) -> Outcome:
        """What it came to, once it has come to something."""
        wait_until(self.store, lambda: self.store.outcomes([key])[0] is not None, f"{key} is {self.state(key)}")
        held = self.store.outcomes([key])[0]
        assert held is not None
        return SignedReader(self.store, self.seal).outcome(key, held)

    def value(self, key: Key) -> Any:
        outcome = self.outcome(key)
        assert isinstance(outcome, Finished), f"{outcome.error}\n{outcome.traceback}"
        return codec.load_value(outcome.value, self.store.get_blob)

    def failure(self, key: Key) -> Failed:
        outcome = self.outcome(key)
        assert isinstance(outcome, Failed), outcome
        return outcome


def wait_until(
    store: Store, reached: Callable[[], bool], otherwise: str = "it never came to that", patience: float = PATIENCE
) -> None:
    """Wait on the store's news until something is so."""
    until = CLOCK.monotonic() + patience
    seen = -1
    while not reached():
        assert CLOCK.monotonic() < until, otherwise
        seen = store.watch(seen, 0.05)


def is_readable(descriptor: int, patience: float = PATIENCE) -> bool:
    """Does it become so, within the patience of a test? A process's descriptor does when the process ends."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(patience * 1000))


class Fifo:
    """Where a task says that it runs, and a test waits for that."""

    def __init__(self, folder: Path, name: str = "fifo") -> None:
        self.path = str(folder / name)
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR)

    def __del__(self) -> None:
        os.close(self._fd)

    def read_line(self) -> str:
        """The next line."""
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._fd, 1)
        return line.decode().strip()

    def write_line(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())


class FakeClock:
    """A clock for tests: time passes only in `sleep` and `advance`, and at once."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._time = start

    def now(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._time

    def cpu(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self._time += seconds

    advance = sleep


def with_hash_seeds(script: str, count: int) -> list[str]:
    """Return what a script prints in that many processes, each with another seed of ``hash()``."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(count)
    ]
    return [run.communicate()[0] for run in runs]
