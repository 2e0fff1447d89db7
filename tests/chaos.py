"""Faults at random in a store at work: what is finished stays finished and right, and only deaths make work repeat.

    python -m tests.chaos file redis --seconds 180 --seed 1

Workers and supervisors are killed and stopped, logs compacted, results invalidated, deleted and computed again, kernels
closed, and bits flipped in whatever the store holds, or its end cut off, while tasks that need each other run. Each run
of a task leaves a line in a journal of its own, so it is known how often each really ran. Where damage makes a task
fail, its cell is run again; at the end, `verify` repairs what is left. A seed gives the same faults in the same order;
when they strike depends on the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jug_notebook as jn
from jug_notebook.model import POISON, Finished
from jug_notebook.session.verification import verify
from jug_notebook.store import open_store
from jug_notebook.store.signed import SignedReader, seal_of
from tests import damage
from tests.servers import Server
from tests.workbench import cell

WORKERS = 3
BATCH = 120  #: leaves that are submitted at once
IN_FLIGHT = 4  #: tasks that a worker may have run whose outcomes are not stored yet
PATIENCE = 60.0  #: seconds after which tasks that don't finish are called lost
SOURCE = """
import os, time
def leaf(x, folder, padding=None):
    note(folder, f"leaf {x}")
    time.sleep(x % 4 / 500)
    return [x * x] + ([x] * 40_000 if x % 10 == 0 else [])
def pair(a, b, x, folder):
    note(folder, f"pair {x}")
    return a[0] + b[0]
def note(folder, line):
    fd = os.open(folder + "/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)
"""


@dataclass
class Report:
    """What came of it: all that counts, by how many."""

    store: str
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    tasks: int = 0
    lost: int = 0  #: finished, and no longer so, or never finished
    wrong: int = 0
    stale: int = 0  #: declared wrong, and not computed again
    repeated: int = 0  #: runs more than there should have been
    explained: int = 0  #: runs that may have been cut short, or not yet stored, when somebody died, or were damaged
    poisoned: int = 0  #: tasks that failed because we killed too many workers that had them
    undone: int = 0  #: results declared wrong of which the record of that was damaged
    notes: list[str] = field(default_factory=list)  #: what was repaired, and what is stale
    strange: list[str] = field(default_factory=list)  #: errors that aren't ours, and what no repair has mended

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        strange = "".join(f"\n  strange: {one}" for one in self.strange)
        notes = "" if self.good else "".join(f"\n  {one}" for one in self.notes)
        return (
            f"{self.store}, seed {self.seed}: {sum(self.faults.values())} faults ({faults}); {self.tasks} tasks, "
            f"{self.lost} lost, {self.wrong} wrong, {self.stale} stale (damage explains {self.undone}), "
            f"{self.poisoned} in which {POISON} workers were killed, "
            f"{self.repeated} run again (deaths and damage explain {self.explained}){strange}{notes}"
        )

    @property
    def good(self) -> bool:
        """True if nothing was lost or wrong, and no more repeated than deaths and damage explain."""
        kills = self.faults["killed worker"] + WORKERS * self.faults["killed supervisor"]
        fine = not (self.lost or self.wrong or self.strange) and POISON * self.poisoned <= kills
        return fine and self.stale <= self.undone and self.repeated <= self.explained


class Chaos:
    """A session with workers on one store, and the faults that befall them."""

    def __init__(self, url: str, seed: int, folder: Path, report: Report) -> None:
        self.report = report
        self._url = url
        self._random = random.Random(seed)
        self._folder = str(folder)
        self._functions = {name: cell(SOURCE, name) for name in ("leaf", "pair")}
        self._next = 0
        self._right: dict[str, int] = {}  # by key
        self._tasks: dict[str, Any] = {}  # by key, the tasks of this session
        self._needs: dict[str, set[str]] = {}  # by key of a pair
        self._lines: dict[str, str] = {}  # by key, what each run writes
        self._asked: Counter[str] = Counter()  # by key: runs that were asked for
        self._finished: set[str] = set()
        self._excused: set[str] = set()  # by key: results that were damaged
        self._connect()

    def _connect(self) -> None:
        self._session = jn.connect(self._url)
        self._leaf, self._pair = (jn.task(self._functions[name]) for name in ("leaf", "pair"))
        self._crew = self._session.execute(WORKERS)

    def submit(self) -> None:
        """Submit one batch: leaves, and the sums of neighbours."""
        numbers = range(self._next, self._next + BATCH)
        self._next += BATCH
        leaves, pairs = self._cell(numbers)
        self._note(leaves, numbers, [[x * x] + ([x] * 40_000 if x % 10 == 0 else []) for x in numbers])
        self._note(pairs, numbers[::2], [x * x + (x + 1) ** 2 for x in numbers[::2]])
        for i, task in enumerate(pairs):
            self._needs[task.key] = {leaves[2 * i].key, leaves[2 * i + 1].key}
        self._session.end_cell()

    def _cell(self, numbers: Sequence[int]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Some leaves have an argument that is stored as a blob."""
        padding = [None if x % 15 else [numbers[0]] * 40_000 for x in numbers]
        leaves = [self._leaf(x, self._folder, pad) for x, pad in zip(numbers, padding, strict=True)]
        pairs = [self._pair(leaves[i], leaves[i + 1], numbers[i], self._folder) for i in range(0, BATCH, 2)]
        return leaves, pairs

    def _note(self, tasks: Sequence[Any], numbers: Sequence[int], right: Sequence[int]) -> None:
        for task, x, value in zip(tasks, numbers, right, strict=True):
            self._tasks[task.key] = task
            self._lines[task.key] = f"{task.name} {x}"
            self._right[task.key] = value
            self._asked[task.key] += 1
        self.report.tasks += len(tasks)

    # -- faults --------------------------------------------------------------------------------------------------------

    def strike(self) -> None:
        """One fault, chosen at random."""
        name = self._random.choice(
            ("killed worker", "killed worker", "killed supervisor", "stop", "stop now", "compaction", "cleanup",
             "invalidation", "invalidation", "kernel closed", "frozen worker", "damage", "damage", "damage", "damage")
        )  # fmt: skip
        getattr(self, "_" + name.replace(" ", "_"))()
        if name != "damage":  # which names itself
            self.report.faults[name] += 1

    def _killed_worker(self) -> None:
        self._kill([info.pid for info in self._crew.workers][:1], each=1)

    def _killed_supervisor(self) -> None:
        self._kill([info.pid for info in self._crew.supervisors], each=WORKERS)
        self._crew = self._session.execute(WORKERS)

    def _kill(self, pids: Sequence[int], each: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.report.explained += each * IN_FLIGHT

    def _frozen_worker(self) -> None:
        for info in self._crew.workers[:1]:
            with suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGSTOP)
                self._progress(0.3)
                os.kill(info.pid, signal.SIGCONT)

    def _stop(self, now: bool = False) -> None:
        self._crew.stop(now=now)
        if now:
            self.report.explained += WORKERS * IN_FLIGHT
        self._progress(0.2)
        self._crew = self._session.execute(WORKERS)

    def _stop_now(self) -> None:
        self._stop(now=True)

    def _compaction(self) -> None:
        self._session.access.store.compact()

    def _cleanup(self) -> None:
        self._session.cleanup(older_than=0)

    def _invalidation(self) -> None:
        leaves = [task for key, task in self._tasks.items() if key in self._finished and task.name == "leaf"]
        if not leaves:
            return
        chosen = self._random.sample(leaves, min(5, len(leaves)))
        keys = {task.key for task in chosen}
        self._finished -= keys  # what needs them holds again once they have the same value again
        self._finished = {key for key in self._finished if not keys & self._needs.get(key, set())}
        try:
            self._session.invalidate(chosen)
        except jn.NoSuchTask:  # all records of one were damaged
            self._run_cells()
            self._session.invalidate(chosen)
        self._asked.update(keys)

    def _kernel_closed(self) -> None:
        self._session.close()
        self._connect()
        self._run_cells()

    def _run_cells(self) -> None:
        """Run all cells again."""
        before = set(self._tasks)
        for x in range(0, self._next, BATCH):
            leaves, pairs = self._cell(range(x, x + BATCH))
            self._tasks.update({task.key: task for task in [*leaves, *pairs]})
        self._session.end_cell()
        self.report.wrong += len(self._tasks.keys() ^ before)

    # -- damage --------------------------------------------------------------------------------------------------------

    def _damage(self) -> None:
        """Flip a bit somewhere, or cut off an end; note what may run again for that."""
        store = self._session.access.store
        by_kind: dict[str, list[damage.Piece]] = {}
        for kind, piece in damage.pieces(store):
            by_kind.setdefault(kind, []).append(piece)
        if not by_kind:
            return
        kind = self._random.choice(sorted(by_kind))
        piece = self._random.choice(by_kind[kind])
        change = self._random.choice((damage.flipped, damage.flipped, damage.cut))
        before = self._picture()
        piece(lambda data: change(data, self._random))
        after = self._picture()
        self.report.faults[f"{change.__name__} {kind}"] += 1
        lost = {key for key, (digest, _) in before.items() if digest and after.get(key, ("", 0))[0] != digest}
        undone = {key for key, (_, rounds) in before.items() if after.get(key, ("", 0))[1] < rounds}
        self._excused |= lost | {key for key, needs in self._needs.items() if needs & lost}
        self.report.explained += len(lost) + (kind in ("claim", "heartbeat") and WORKERS * IN_FLIGHT)
        self.report.undone += len(undone)

    def _picture(self) -> dict[str, tuple[bytes, int]]:
        """Return what a new reader finds: of each task its value's digest, if it can be loaded, and its round."""
        found = {}
        store = open_store(self._url)
        try:
            signed = SignedReader(store, seal_of(store))
            for view in store.tasks():
                value = b""
                with suppress(jn.StoreError):
                    [outcome] = signed.outcomes([view.key])
                    if isinstance(outcome, Finished):
                        whole = all(not store.inventory.inspect(one).wrong for one in outcome.value.buffers)  # type: ignore[attr-defined]
                        value = outcome.digest if whole else b""
                found[view.key] = value, store._scheduler.tasks[view.key].round  # type: ignore[attr-defined]
        finally:
            store.close()
        return found

    def _mend(self, thoroughly: bool = False) -> None:
        """Do what an error advises: run the cells again, ask again; where that doesn't help, repair the store."""
        store = self._session.access.store
        keys = list(self._tasks)
        failed = [
            self._tasks[key]
            for key, state in zip(keys, store.states(keys), strict=True)
            if state in (jn.State.FAILED, jn.State.BLOCKED)
        ]
        self._run_cells()
        for task in failed:
            with suppress(jn.WaitTimeout, jn.ValueLost, jn.SignatureError, jn.TaskCancelled):
                try:
                    task.result(timeout=5)
                except jn.TaskFailed as error:
                    if "SignatureError" in str(error) or "could not be loaded" in str(error):
                        thoroughly = True
                    elif "workers died in it" in str(error):  # for we killed so many
                        self.report.poisoned += self._session.retry(task)
                    else:
                        self.report.strange.append(str(error)[:500])
        if thoroughly:  # by workers that have read it anew
            self._stop_all()
            self.report.notes.append(str(verify(self._url, repair=True)))
            self._run_cells()
            self._session.retry(all=True)
            self._crew = self._session.execute(WORKERS)

    # -- looking -------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Compare what is finished with what was: nothing of that may be missing."""
        keys = list(self._tasks)
        store = self._session.access.store
        states = dict(zip(keys, store.states(keys), strict=True))
        now = {key for key, state in states.items() if state is jn.State.FINISHED}
        gone = self._finished - now - self._excused
        self.report.lost += len(gone)
        self.report.strange += [f"{self._lines[key]} became {states[key]}" for key in sorted(gone)[:5]]
        self._finished = now
        for key in self._random.sample(sorted(now), min(3, len(now))):
            with suppress(jn.NotReady, jn.StoreError, jn.TaskCancelled):  # where it is damaged
                self.report.wrong += self._tasks[key].value() != self._right[key]
        if jn.State.FAILED in states.values():
            self._mend()

    def _progress(self, seconds: float) -> None:
        """Let the store work on for a while."""
        store, until, seen = self._session.access.store, time.monotonic() + seconds, -1
        while (left := until - time.monotonic()) > 0:
            seen = store.watch(seen, left)

    def pause(self) -> None:
        """Let it work for a while, at random."""
        self._progress(self._random.uniform(0.05, 0.8))

    def crowded(self) -> bool:
        """True while more is waiting than workers do in a moment."""
        return len(self._tasks) - len(self._finished) > 3 * BATCH

    def settle(self) -> None:
        """Wait for all tasks, and count what is missing, wrong, or was run more often than asked for."""
        self._stop_all()
        self._session.close()
        self.report.notes.append(str(verify(self._url, repair=True)))
        self._connect()
        self._run_cells()
        store, until, seen = self._session.access.store, time.monotonic() + PATIENCE, -1
        keys = list(self._tasks)
        while (states := set(store.states(keys))) != {jn.State.FINISHED} and time.monotonic() < until:
            if jn.State.FAILED in states:
                self._mend()
            seen = store.watch(seen, 0.5)
        for key, task in self._tasks.items():
            if task.state is not jn.State.FINISHED:
                self.report.lost += 1
                self.report.strange.append(f"{self._lines[key]} is {task.state.value}: {self._error_of(task)}")
            elif task.value() != self._right[key]:
                self.report.wrong += 1
        self._stop_all()
        ran = Counter(Path(self._folder, "journal").read_text().splitlines())
        for key, line in self._lines.items():
            self.report.repeated += max(0, ran[line] - self._asked[key])
            self.report.stale += max(0, self._asked[key] - ran[line])
            if self._asked[key] > ran[line]:
                self.report.notes.append(f"{line} ({key[:8]}) was asked for {self._asked[key]} times, ran {ran[line]}")
        self._session.close()

    def _error_of(self, task: Any) -> str:
        try:
            return f"{task.value()}"
        except jn.JugError as error:
            return str(error)

    def _stop_all(self) -> None:
        """Stop the workers, and wait until they have ended."""
        store, seen = self._session.access.store, -1
        self._crew.stop()
        while self._crew.alive() or self._crew.supervisors:
            seen = store.watch(seen, 0.5)
        for info, _, _ in store.processes():
            if "Traceback" in (log := store.log(info.id)):
                self.report.strange.append(log[log.index("Traceback") :][:1000])


@contextmanager
def place(kind: str, folder: Path) -> Iterator[str]:
    """A fresh store of that kind, for as long as it is needed."""
    if kind == "file":
        yield f"file:{folder / 'jugdata'}"
        return
    server = Server()
    try:
        yield server.url()
    finally:
        server.remove()


def run(kind: str, seed: int, seconds: float, tell: Callable[[str], None] = lambda text: None) -> Report:
    """Let faults strike for so many seconds, then wait for all tasks. Return what came of it."""
    report = Report(kind, seed)
    with tempfile.TemporaryDirectory(prefix="chaos") as folder, place(kind, Path(folder)) as url:
        chaos = Chaos(url, seed, Path(folder), report)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not chaos.crowded():
                chaos.submit()
            chaos.pause()
            chaos.strike()
            chaos.look()
            tell(str(report))
        chaos.settle()
    return report


def main() -> int:
    """Run it for each kind of store. Return the exit status: 1 where anything was lost, wrong, or run in vain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="*", help="file, redis, or both (default)")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    reports = [run(kind, options.seed, options.seconds) for kind in options.stores or ("file", "redis")]
    print(*reports, sep="\n")
    return 0 if all(report.good for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
