"""``execute`` for a jugfile: load it, run its tasks, and load it again as often as it stops at a barrier.

Tasks run in this process, as Jug runs them, or in workers. Any number of executions may go on at the same time.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.compat import hooks, jugdir, loading
from jug_notebook.compat.hooks import jug_hook, listened
from jug_notebook.compat.jug import task as tasks
from jug_notebook.compat.jug.utils import Matcher, print_task_summary_table
from jug_notebook.compat.jugdir import Jugdir
from jug_notebook.errors import WaitInterrupted
from jug_notebook.model import OPEN_STATES, Claim, Key, Settlement, State, Target
from jug_notebook.worker import import_hooks
from jug_notebook.worker.execution import TaskRunner

if TYPE_CHECKING:
    from jug_notebook.launch import Crew

STOP_FILE = "__jug_please_stop_running.txt"
LIMITS = ("JUG_MAX_TASKS", "JUG_MAX_HOURS", "JUG_MAX_MINUTES", "JUG_MAX_SECONDS", "JUG_EXIT_IF_FILE_EXISTS")
LOOK = 0.25  #: seconds between two looks at workers
LEAST = 0.2  #: seconds that one waits for others at least


class Execution:
    """One run of ``execute``. ``matches`` says by name which tasks are meant; None means all."""

    def __init__(
        self,
        jugfile: str,
        options: Any,
        matches: Matcher | None = None,
        workers: int | None = None,
        clock: Clock = CLOCK,
    ) -> None:
        self._jugfile = jugfile
        self._options = options
        self._matches = matches
        self._workers = workers
        self._clock = clock
        self._patience = max(LEAST, options.execute_nr_wait_cycles * options.execute_wait_cycle_time)
        self._moved = clock.monotonic()  #: when something happened last
        self._version = -1
        self._executed: Counter[str] = Counter()
        self._loaded: Counter[str] = Counter()
        self._failed: dict[Key, None] = {}  #: in this run
        self._ended: BaseException | None = None  #: what a hook raised
        self._halted = False
        self._twins: list[tasks.Task] = []  #: equal to tasks that have run
        self._crews: dict[Jugdir, Crew] = {}  #: that were started
        self._by_key: dict[Key, list[tasks.Task]] = {}
        self._told: set[Key] = set()  #: of those, what was executed or loaded

    def run(self) -> int:
        """Execute; answers the exit status: 0 only where every value is there."""
        if not self._options.execute_no_check_environment and self._workers is None:
            hooks.exit_env_vars()
            hooks.exit_if_file_exists(STOP_FILE)
        with _sigterm(), self._post_mortem():
            try:
                left = self._to_the_end()
            finally:
                for crew in self._crews.values():
                    crew.stop()
        if self._ended is not None:
            return self._end_early(self._ended, left)
        jug_hook("execute.finished_pre_status")
        if not self._options.execute_part:
            print_task_summary_table(self._options, [("Executed", self._executed), ("Loaded", self._loaded)])
        jug_hook("execute.finished_post_status")
        return 1 if self._failed or left else 0

    def _to_the_end(self) -> int:
        """Load and work until nothing is left that could be done. Answers how many of the tasks have no value."""
        first = True
        before = -1
        while True:
            del tasks.alltasks[:]
            space = loading.load(self._jugfile, "propagate" if self._options.pdb else "exit")
            self._take_stock(first)
            first = False
            if self._by_key:
                self._work()
            elif loading.BARRIER not in space:
                print(f"{self._jugfile} makes no tasks", file=sys.stderr)
            for one in self._twins:
                self._is_there(one)
            self._twins.clear()
            self._meet_others()
            left = [key for key, state in self._states().items() if state is not State.FINISHED]
            wanted = [key for key in left if self._is_meant(key)]
            if loading.BARRIER not in space or self._ended is not None or self._halted:
                return len(wanted) + (loading.BARRIER in space)
            if left and self._matches is not None:
                left = self._await_others()
            done = len(self._by_key) - len(left)
            if left or done == before:  # nothing has come of it: there is a failure below the barrier
                return len(left) + 1
            before = done

    # -- before the work -----------------------------------------------------------------------------------------------

    def _take_stock(self, first: bool) -> None:
        """What is there already, and what failed the last time."""
        self._by_key = {}
        for one in tasks.alltasks:
            self._by_key.setdefault(one.key, []).append(one)
        states = self._states()
        there = [key for key, state in states.items() if state is State.FINISHED]
        self._told = set(there)
        failed = [key for key, state in states.items() if state is State.FAILED and key not in self._failed]
        if first and failed and not self._options.execute_keep_failed:
            self._store.retry_failed([key for key in failed if self._is_meant(key)])
        for key in there:
            for one in self._by_key[key]:
                self._is_there(one)

    def _meet_others(self) -> None:
        """What others have run meanwhile is loaded, as what was taken over since it would come out the same."""
        for key, state in self._states().items():
            if state is State.FINISHED and key not in self._told and self._ended is None:
                self._told.add(key)
                for one in self._by_key[key]:
                    self._is_there(one)

    def _is_there(self, one: tasks.Task) -> None:
        if self._matches is None or self._matches(one.name):
            logging.info("Loadable %s...", one.name)
            self._loaded[one.name] += 1
            self._tell("execute.task-loadable", one)

    @property
    def _store(self) -> Jugdir:
        store: Jugdir = tasks.Task.store
        return store

    def _states(self) -> dict[Key, State | None]:
        keys = list(self._by_key)
        return dict(zip(keys, self._store.session.queries.states(keys), strict=True)) if keys else {}

    def _is_meant(self, key: Key) -> bool:
        return self._matches is None or any(map(self._matches, (one.name for one in self._by_key[key])))

    # -- the work ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._workers is None:
            self._here()
        elif self._matches or any(map(listened, ("execute.task-pre-execute", "execute.task-executed1"))) or _limited():
            self._in_processes(self._workers)  # what hooks do, they do where the tasks run
        else:
            self._with_crew(self._workers)

    def _here(self) -> None:
        """In this process, one after another."""
        session = self._store.session
        import_hooks.hand_on()
        while not self._over():
            target: Target | None = None
            if self._matches is not None:
                # only these, and not what they need: that is somebody else's to run
                states = self._states()
                ready = [key for key, state in states.items() if state is State.READY and self._is_meant(key)]
                if not ready:
                    if not any(self._is_meant(key) and state in OPEN_STATES for key, state in states.items()):
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
        """Wait for tasks that aren't ours to run, so that a barrier may open. Answers those without a value."""
        while True:
            states = self._states()
            left = [key for key, state in states.items() if state is not State.FINISHED]
            if not any(states[key] in OPEN_STATES for key in left) or self._over():
                return left
            self._store.session.queries.watch(self._version, LOOK)

    def _over(self) -> bool:
        """Is it time to stop? Asked between tasks, and while waiting for others."""
        if self._ended is not None or self._halted:
            return True
        now = self._clock.monotonic()
        if now - self._moved < LEAST / 2:
            return False
        version = self._store.session.queries.watch(-1, 0.0)
        if version != self._version:
            self._version, self._moved = version, now
        return bool(now - self._moved >= self._patience)

    def _attempt(self, runner: TaskRunner, claim: Claim) -> Settlement | None:
        """One task, with the hooks around it."""
        mine = self._by_key.get(claim.lease.key, [])
        if mine:
            logging.info("Executing %s...", mine[0].name)
            self._tell("execute.task-pre-execute", mine[0])
        if self._ended is not None:
            self._store.hand.release(claim)
            return None
        settlement = runner.attempt(claim)
        self._moved = self._clock.monotonic()
        if settlement is None or not settlement.verdict.final:
            return settlement
        if settlement.verdict.finished:
            if listened("execute.task-executed1"):
                runner.hand_in(settlement)  # whoever is called may want the value
            self._has_run(mine)
        else:
            self._has_failed(claim.lease.key)
        return settlement

    def _has_run(self, mine: list[tasks.Task]) -> None:
        for one in mine[:1]:
            self._told.add(one.key)
            self._executed[one.name] += 1
            self._tell("execute.task-executed1", one)
        self._twins += mine[1:]

    def _has_failed(self, key: Key) -> None:
        self._failed[key] = None
        if not self._options.execute_keep_going:
            self._halted = True

    def _tell(self, event: str, one: tasks.Task) -> None:
        try:
            jug_hook(event, (one,))
        except BaseException as ended:  # whatever a hook raises is an end, to be met once all is settled
            self._ended = self._ended or ended

    # -- others that work ----------------------------------------------------------------------------------------------

    def _with_crew(self, size: int) -> None:
        """In workers, until nothing is left that they could do. They stay for what comes after a barrier."""
        session = self._store.session
        crew = self._crews.get(self._store)
        if crew is None:
            crew = self._crews[self._store] = session.execute(size)
        known = {key for key, state in self._states().items() if state is State.FINISHED}
        seen = -1
        while True:
            seen = session.queries.watch(seen, LOOK)
            states = self._states()
            for key, state in states.items():
                if state is State.FINISHED and key not in known:
                    known.add(key)
                    self._has_run(self._by_key[key])
                elif state is State.FAILED and key not in self._failed:
                    self._has_failed(key)
            if not self._options.execute_no_check_environment and os.path.exists(STOP_FILE):
                self._ended = SystemExit(0)
            if self._halted or self._ended is not None or not any(state in OPEN_STATES for state in states.values()):
                return
            if not crew.alive() and not crew.starting:
                print("the workers were stopped", file=sys.stderr)
                self._halted = True

    def _in_processes(self, size: int) -> None:
        """In executions like this one, each a process of its own."""
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
                self._has_run_elsewhere(self._by_key[key])
            elif state is State.FAILED:
                self._has_failed(key)
        if any(statuses) and not self._failed:
            self._halted = True

    def _has_run_elsewhere(self, mine: list[tasks.Task]) -> None:
        self._told.add(mine[0].key)
        self._executed[mine[0].name] += 1
        for one in mine[1:]:
            self._loaded[one.name] += 1

    # -- the end -------------------------------------------------------------------------------------------------------

    def _end_early(self, ended: BaseException, left: int) -> int:
        if not isinstance(ended, SystemExit):
            raise ended
        if ended.code not in (0, None):
            raise ended
        if left:
            print(
                f"stopped as a hook said; {left} task{'s have' if left != 1 else ' has'} no value yet", file=sys.stderr
            )
        return 1 if left else 0

    def failures(self) -> list[Key]:
        """The tasks that failed in this run."""
        return list(self._failed)

    @contextmanager
    def _post_mortem(self) -> Iterator[None]:
        """With ``--pdb`` a debugger looks at each exception of a task, where it was raised."""
        if not self._options.pdb:
            yield
            return
        jugdir.on_error = post_mortem
        try:
            yield
        finally:
            jugdir.on_error = None


def post_mortem(error: BaseException) -> None:
    """A debugger on the innermost frame of an exception."""
    import pdb
    import traceback

    traceback.print_exception(error)
    pdb.post_mortem(error.__traceback__)


def _limited() -> bool:
    return any(name in os.environ for name in LIMITS)


@contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM ends the execution as Ctrl-C does: the task that runs is given back. A process that a task forks is no
    execution: it just ends."""
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


__all__ = ["Execution", "post_mortem"]
