"""``execute`` for a jugfile: loads it, runs its tasks, and loads it again as often as it stops at a barrier.

Tasks run in this process, as Jug runs them, or in workers. Any number of executions may run at the same time.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.compat import hooks, jugdir, loading
from jug_notebook.compat.hooks import LIMITS, STOP_FILE, jug_hook, listened
from jug_notebook.compat.jug import task as tasks
from jug_notebook.compat.jug.utils import Matcher, print_task_summary_table
from jug_notebook.compat.jugdir import Jugdir
from jug_notebook.errors import WaitInterrupted
from jug_notebook.model import OPEN_STATES, Claim, Key, Settlement, State, Target
from jug_notebook.worker import import_hooks
from jug_notebook.worker.execution import TaskRunner

if TYPE_CHECKING:
    from jug_notebook.launch import Crew

LOOK = 0.25  #: seconds between two looks at workers
LEAST = 0.2  #: seconds to wait for others at least


class Execution:
    """One run of ``execute``. ``matches`` selects tasks by name; None selects all."""

    def __init__(self, options: Any, matches: Matcher | None = None, clock: Clock = CLOCK) -> None:
        self._options = options
        self._jugfile: str = options.jugfile
        self._workers: int | None = options.execute_workers
        self._matches = matches
        self._clock = clock
        self._patience = max(LEAST, options.execute_nr_wait_cycles * options.execute_wait_cycle_time)
        self._changed = clock.monotonic()  #: when something last happened
        self._version = -1  #: of the store
        self._executed: Counter[str] = Counter()
        self._loaded: Counter[str] = Counter()
        self.failed: dict[Key, None] = {}  #: the tasks that failed in this run, in order
        self._ended: BaseException | None = None  #: what a hook raised
        self._halted = False
        self._twins: list[tasks.Task] = []  #: equal to tasks that have run
        self._crews: dict[Jugdir, Crew] = {}
        self._by_key: dict[Key, list[tasks.Task]] = {}
        self._counted: set[Key] = set()  #: the tasks of `_by_key` that are counted as executed or loaded

    def run(self) -> int:
        """Execute; return the exit status, 0 only if every task has a value."""
        if not self._options.execute_no_check_environment and self._workers is None:
            hooks.exit_env_vars()
            hooks.exit_if_file_exists(STOP_FILE)
        jugdir.on_error = _debug if self._options.pdb else None
        with _interrupted_by_sigterm():
            try:
                left = self._load_and_work()
            finally:
                for crew in self._crews.values():
                    crew.stop()
                jugdir.on_error = None
        if self._ended is not None:
            if not isinstance(self._ended, SystemExit) or self._ended.code not in (0, None):
                raise self._ended
            if left:
                have = "has" if left == 1 else "have"
                print(f"stopped by a hook; {left} task{'s' * (left != 1)} {have} no value yet", file=sys.stderr)
            return 1 if left else 0
        jug_hook("execute.finished_pre_status")
        if not self._options.execute_part:
            print_task_summary_table(self._options, [("Executed", self._executed), ("Loaded", self._loaded)])
        jug_hook("execute.finished_post_status")
        return 1 if self.failed or left else 0

    def _load_and_work(self) -> int:
        """Load and work until nothing is left that could be done. Return how many of the tasks have no value."""
        first = True
        before = -1
        while True:
            del tasks.alltasks[:]
            space = loading.load(self._jugfile, "propagate" if self._options.pdb else "exit")
            barrier = loading.BARRIER in space
            self._begin(first)
            first = False
            if self._by_key:
                self._work()
            elif not barrier:
                print(f"{self._jugfile} makes no tasks", file=sys.stderr)
            self._count_loaded(self._twins)
            self._twins.clear()
            self._count_others(self._states())
            left = [key for key, state in self._states().items() if state is not State.FINISHED]
            if not barrier or self._stopping():
                return sum(map(self._selected, left)) + barrier
            if left and self._matches is not None:
                left = self._await_others()
            done = len(self._by_key) - len(left)
            if left or done == before:  # no progress: a task that the barrier waits for has failed
                return len(left) + 1
            before = done

    def _stopping(self) -> bool:
        return self._halted or self._ended is not None

    # -- before and after the work -------------------------------------------------------------------------------------

    def _begin(self, first: bool) -> None:
        """Count what has a value already; the first time, let tasks that failed in earlier runs be tried again."""
        self._by_key = {}
        for one in tasks.alltasks:
            self._by_key.setdefault(one.key, []).append(one)
        self._counted = set()
        states = self._states()
        failed = [key for key, state in states.items() if state is State.FAILED and self._selected(key)]
        if first and failed and not self._options.execute_keep_failed:
            tasks.Task.store.retry_failed(failed)
        self._count_others(states)

    def _count_others(self, states: dict[Key, State | None]) -> None:
        """Count as loaded what was there, what others have run meanwhile, and what was reused."""
        for key, state in states.items():
            if state is State.FINISHED and key not in self._counted and self._ended is None:
                self._counted.add(key)
                self._count_loaded(self._by_key[key])

    def _count_loaded(self, loaded: Iterable[tasks.Task]) -> None:
        for one in loaded:
            if self._matches is None or self._matches(one.name):
                logging.info("Loadable %s...", one.name)
                self._loaded[one.name] += 1
                self._call_hooks("execute.task-loadable", one)

    def _states(self) -> dict[Key, State | None]:
        states: dict[Key, State | None] = tasks.Task.store.states(self._by_key)
        return states

    def _selected(self, key: Key) -> bool:
        return self._matches is None or any(self._matches(one.name) for one in self._by_key[key])

    # -- the work ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        hooked = any(map(listened, ("execute.task-pre-execute", "execute.task-executed1")))
        if self._workers is None:
            self._work_here()
        elif self._matches or hooked or any(name in os.environ for name in LIMITS):
            self._work_in_processes(self._workers)  # hooks must be called where the tasks run
        else:
            self._work_in_crew(self._workers)

    def _work_here(self) -> None:
        """Run tasks in this process, one after another."""
        session = tasks.Task.store.session
        import_hooks.hand_on()
        while not self._over():
            target: Target | None = None
            if self._matches is not None:
                # only the selected tasks, not their dependencies: these are for others to run
                states = self._states()
                ready = [key for key, state in states.items() if state is State.READY and self._selected(key)]
                if not ready:
                    if not any(self._selected(key) and state in OPEN_STATES for key, state in states.items()):
                        return
                    session.queries.watch(self._version, LOOK)
                    continue
                target = Target(keys=frozenset(ready))
            elif any(
                view.key not in self._by_key
                for state in OPEN_STATES
                for view in session.queries.listed(state, all=True)
            ):
                target = Target(keys=frozenset(self._by_key))  # the store serves other scripts, too
            try:
                session.run_here(target, stop=self._over, each=self._attempt)
            except WaitInterrupted:
                raise KeyboardInterrupt from None
            if self._matches is None:
                return

    def _await_others(self) -> list[Key]:
        """Wait for tasks that others run, so that a barrier may open. Return those without a value."""
        while True:
            states = self._states()
            left = [key for key, state in states.items() if state is not State.FINISHED]
            if not any(states[key] in OPEN_STATES for key in left) or self._over():
                return left
            tasks.Task.store.session.queries.watch(self._version, LOOK)

    def _over(self) -> bool:
        """Return whether to stop; called between tasks, and while waiting for others."""
        if self._stopping():
            return True
        now = self._clock.monotonic()
        if now - self._changed < LEAST / 2:
            return False
        version = tasks.Task.store.session.queries.watch(-1, 0.0)
        if version != self._version:
            self._version, self._changed = version, now
        return bool(now - self._changed >= self._patience)

    def _attempt(self, runner: TaskRunner, claim: Claim) -> Settlement | None:
        """Run one task, with the hooks around it. Return None where it was given back."""
        equal = self._by_key.get(claim.lease.key, [])
        if equal:
            logging.info("Executing %s...", equal[0].name)
            self._call_hooks("execute.task-pre-execute", equal[0])
        if self._ended is not None:
            tasks.Task.store.hand.release(claim)
            return None
        settlement = runner.attempt(claim)
        self._changed = self._clock.monotonic()
        if settlement is None or not settlement.verdict.final:
            return settlement
        if settlement.verdict.finished:
            if listened("execute.task-executed1"):
                runner.hand_in(settlement)  # the hooks may need the value
            self._count_executed(equal)
        else:
            self._fail(claim.lease.key)
        return settlement

    def _count_executed(self, equal: list[tasks.Task]) -> None:
        for one in equal[:1]:
            self._counted.add(one.key)
            self._executed[one.name] += 1
            self._call_hooks("execute.task-executed1", one)
        self._twins += equal[1:]

    def _fail(self, key: Key) -> None:
        self.failed[key] = None
        if not self._options.execute_keep_going:
            self._halted = True

    def _call_hooks(self, event: str, one: tasks.Task) -> None:
        try:
            jug_hook(event, (one,))
        except BaseException as ended:  # it ends the execution once the current task is settled
            self._ended = self._ended or ended

    # -- in other processes --------------------------------------------------------------------------------------------

    def _work_in_crew(self, size: int) -> None:
        """Let workers run the tasks until nothing is left that they could do. They stay for later barriers."""
        session = tasks.Task.store.session
        crew = self._crews.get(tasks.Task.store)
        if crew is None:
            crew = self._crews[tasks.Task.store] = session.execute(size)
        finished = {key for key, state in self._states().items() if state is State.FINISHED}
        version = -1
        while True:
            version = session.queries.watch(version, LOOK)
            states = self._states()
            for key, state in states.items():
                if state is State.FINISHED and key not in finished:
                    finished.add(key)
                    self._count_executed(self._by_key[key])
                elif state is State.FAILED and key not in self.failed:
                    self._fail(key)
            if not self._options.execute_no_check_environment and os.path.exists(STOP_FILE):
                self._ended = SystemExit(0)
            if self._stopping() or not any(state in OPEN_STATES for state in states.values()):
                return
            if not crew.alive() and not crew.starting:
                print("the workers were stopped", file=sys.stderr)
                self._halted = True

    def _work_in_processes(self, size: int) -> None:
        """Let executions like this one run the tasks, each in a process."""
        before = {key for key, state in self._states().items() if state is State.FINISHED}
        command = [sys.executable, "-m", "jug_notebook", *self._options.again]
        started = [subprocess.Popen(command) for _ in range(size)]
        try:
            statuses = [each.wait() for each in started]
        finally:
            for each in started:
                each.terminate()
                each.wait()
        for key, state in self._states().items():
            if state is State.FINISHED and key not in before:
                self._counted.add(key)  # without hooks: they were called there
                one, *twins = self._by_key[key]
                self._executed[one.name] += 1
                self._loaded.update(twin.name for twin in twins)
            elif state is State.FAILED:
                self._fail(key)
        if any(statuses) and not self.failed:
            self._halted = True


def _debug(error: BaseException) -> None:
    """Start a debugger on the innermost frame of an exception."""
    import pdb

    traceback.print_exception(error)
    pdb.post_mortem(error.__traceback__)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the execution as Ctrl-C does: the running task is given back. A process that a task forks is no
    execution and just ends."""
    here = os.getpid()

    def terminate(number: int, frame: Any) -> None:
        if os.getpid() != here:
            os._exit(128 + number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
