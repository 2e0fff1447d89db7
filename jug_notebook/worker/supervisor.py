"""One per host and crew: forks workers, beats for them, enforces limits, buries the dead and says why they died.

Single-threaded and light: it forks before any user code is imported, so that a fork is cheap and a worker starts clean.
It looks at workers only from outside (their `SharedStatus`, /proc, their output files): a task that holds the
interpreter's
lock, or loops in C, is neither taken for dead nor out of reach.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import JugError, LaunchError, StoreError, Unreachable
from jug_notebook.model import (
    BEAT,
    Failed,
    Order,
    Run,
    Scale,
    Stop,
    Verdict,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.store import Store, open_store
from jug_notebook.store.signed import SignedWriter, seal_of
from jug_notebook.task import context
from jug_notebook.worker import WorkerOptions, displays, import_hooks
from jug_notebook.worker.capture import Capture, Files
from jug_notebook.worker.displays import DisplayBuffer
from jug_notebook.worker.execution import backoff
from jug_notebook.worker.loop import FailureWatcher, work
from jug_notebook.worker.policy import Termination, cause_of_death, death_outcome, first_of_crew, overstepped
from jug_notebook.worker.slot import Running, SharedStatus

TICK = 0.1  #: seconds between two looks at the workers
GRACE = 0.5  #: seconds from asking a process group to end to ending it
NUDGE = getattr(signal, "SIGURG", None)  #: "look at your orders"; a process that does not listen for it isn't harmed
GIVE_UP = 5  #: so many workers in a row that died before their first task: something is wrong with this host
BRAKE = 0.05  #: seconds before a worker is replaced that died before its first task; doubles each time

#: batch systems give notice with these, to the whole job: no new task, but what runs may end (Slurm's --signal, SGE's
#: -notify, limits of processor time). Workers don't hear them; their supervisor does.
NOTICE = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU) if hasattr(signal, "SIGUSR1") else ()
ENDING = {signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)}
REOPENING = 5.0  #: seconds for which a worker tries to open the store that its supervisor has open
DOUBT = 0.5  #: seconds for which a worker that was asked to end may be one of a whole job that is

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def supervise(
    url: str,
    options: WorkerOptions,
    *,
    crew: str = "",
    detached: bool = False,
    place: str = "",
    stop_files: Sequence[Path] = (),
    ready: Callable[[WorkerInfo], None] | None = None,
    lead: int | None = None,
    clock: Clock = CLOCK,
) -> int:
    """Keep ``options.size`` workers for the store at ``url`` until told to stop; return the exit status.

    Runs in the main thread only. Of several supervisors with one ``crew`` on one store one stays; the others pass their
    size on to it and end. With ``detached`` there is no terminal, so messages go into the store. SIGTERM ends the
    workers at once, giving their tasks back; SIGINT lets them finish what they run, a second one does not; SIGUSR1 and
    SIGUSR2 are the notice that batch systems give: no new task. So does one of ``stop_files`` when it exists.

    ``place`` is the name by which this host was asked for. ``ready`` is called once the supervisor has registered.
    ``lead`` is a file descriptor: when its other end is closed, the supervisor ends. Raises LaunchError where the
    system has no ``fork``.
    """
    if not hasattr(os, "fork"):
        raise LaunchError("workers can't be started on Windows; use WSL, or a host that has them: %jug_execute --host")
    store = open_store(url, clock)
    supervisor = Supervisor(store, options, crew, detached, clock, place, tuple(stop_files), ready, lead)
    try:
        return supervisor.run()
    finally:
        store.close()


# -- the supervisor ----------------------------------------------------------------------------------------------------


@dataclass
class WorkerProcess:
    """A worker, as its supervisor knows it."""

    info: WorkerInfo
    slot: SharedStatus
    files: Files
    leaving: bool = False  #: told to stop
    termination: Termination | None = None
    killed: bool = False
    memory: int = 0

    def is_mourned(self, running: Running) -> bool:
        """Is its death something that happened in this task, and not our way of ending the worker?"""
        return not self.killed if self.termination is None else self.termination.turn == running.turn

    def said(self, running: Running | None, beat: int) -> WorkerInfo:
        """What a beat says of it."""
        return msgspec.structs.replace(
            self.info,
            beat=beat,
            task=running.lease.key if running else "",
            task_name=running.name if running else "",
            since=running.started if running else 0.0,
            progress=running.progress if running else (0, 0),
            tail=self.files.tail() if running else "",
            done=self.slot.done,
            memory=self.memory,
        )


@dataclass
class Supervisor:
    store: Store
    options: WorkerOptions
    crew: str
    detached: bool
    clock: Clock
    place: str = ""
    stop_files: tuple[Path, ...] = ()
    ready: Callable[[WorkerInfo], None] | None = None
    lead: int | None = None

    _hands: dict[int, WorkerProcess] = field(default_factory=dict)
    _ending: bool = False  #: no worker is replaced any more
    _beat: int = 0
    _quick_deaths: int = 0
    _housekeeper: int = 0  #: a pid, while it is at work
    _fork_at: float = 0.0
    _note: str = ""
    _cut_short: bool = False  #: told to end at once
    _doubtful: list[tuple[WorkerProcess, int, float]] = field(
        default_factory=list
    )  #: asked to end, not by us; until when
    _signals: list[int] = field(default_factory=list)

    def run(self) -> int:
        self.size = self.options.size
        self._me = system.me("supervisor", self.clock, crew=self.crew, size=self.size, place=self.place)
        self._seal = seal_of(self.store, make=True)
        self._threads_set = {name for name in _THREADS if name in os.environ}
        self._bell, self._ringer = os.pipe()
        os.set_blocking(self._ringer, False)
        os.set_blocking(self._bell, False)
        self._leash, self._held = os.pipe()  # its end tells workers, where the system doesn't, that we are gone
        before = self._catch_signals()
        try:
            self._renew()
            if self._is_second():
                return 0
            if self.ready is not None:
                told = f"pid {self._me.pid}, Python {self._me.python} ({sys.executable}), workers: {self.size}\n"
                self.store.notice(self._me.id, told)
                self.ready(self._said())
            self._keep_house()
            gc.collect()
            gc.freeze()  # or the first collection in each worker would copy all our pages
            return self._loop()
        except StoreError as error:  # no message can be left where there is no store
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        except BaseException:
            self._say(traceback.format_exc())
            raise
        finally:
            gc.unfreeze()
            ended = self._bury_all()
            with suppress(StoreError, OSError):  # or the store is gone: nobody is left to tell
                self.store.leave([*ended, self._me.id])
            self._restore_signals(before)
            for fd in (self._bell, self._ringer, self._leash, self._held):
                os.close(fd)

    def _loop(self) -> int:
        clock = self.clock
        now = clock.monotonic()
        end = None if self.options.max_time is None else now + self.options.max_time
        next_beat, next_idle, idle_since = now, now, now
        settled_crew = now + BEAT  # a rival that registered in the same moment is seen by then
        patience = self.options.idle_timeout
        while True:
            now = clock.monotonic()
            self._reap()
            for number in self._take_signals():
                self._on_signal(number)
            self._judge(now)
            if end is not None and now >= end:
                self._end()
            if not self._ending and now >= self._fork_at:
                self._fill(end)
            if self._ending and not self._hands and not self._doubtful:
                return 1 if self._quick_deaths >= GIVE_UP else 0
            self._look(now)
            if now >= next_beat:
                next_beat = now + BEAT
                self._beat_all()
                if settled_crew and now >= settled_crew:
                    settled_crew = 0.0
                    if self._is_second():
                        self._end()
                if self.options.tied_to and not self._lives(self.options.tied_to):
                    self._end(at_once=True)
                self._look_for_stop_files()
            if not all(hand.slot.waiting for hand in self._hands.values()):
                idle_since = now
            elif now >= next_idle and not self._ending:
                next_idle = now + min(2.0, patience / 4)
                if not self._nothing_to_do():
                    idle_since = now
                elif now - idle_since >= patience:
                    self._end()
            self._pause(TICK)

    def _pause(self, seconds: float) -> None:
        held = [self._bell] if self.lead is None else [self._bell, self.lead]
        ready, _, _ = select.select(held, [], [], seconds)
        if self.lead in ready and not os.read(self.lead or 0, 4096):
            self.lead = None
            self._end(at_once=True)
        if self._bell in ready:
            try:
                os.read(self._bell, 4096)
            except BlockingIOError:
                return

    def _look_for_stop_files(self) -> None:
        there = next((path for path in self.stop_files if path.exists()), None)
        if there is not None and not self._ending:
            self._say(f"{there} is there: stopping after the current tasks\n")
            self._end()

    # -- signals

    def _catch_signals(self) -> dict[int, Any]:
        wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, *NOTICE]
        if NUDGE is not None:
            wanted.append(NUDGE)
        if threading.current_thread() is not threading.main_thread():
            raise LaunchError("a supervisor runs in the main thread of a process of its own: jug-notebook worker URL")
        before: dict[int, Any] = {number: signal.signal(number, self._on_ring) for number in wanted}
        before[0] = signal.set_wakeup_fd(self._ringer, warn_on_full_buffer=False)
        return before

    def _restore_signals(self, before: dict[int, Any]) -> None:
        signal.set_wakeup_fd(before.pop(0))
        for number, handler in before.items():
            signal.signal(number, handler)

    def _on_ring(self, number: int, _: Any) -> None:
        self._signals.append(number)

    def _take_signals(self) -> list[int]:
        taken, self._signals = self._signals, []
        return taken

    def _on_signal(self, number: int) -> None:
        if number == NUDGE:
            self._renew()
        elif number == signal.SIGINT and not self._ending:
            self._say("stopping after the current tasks; press Ctrl-C again to stop at once\n")
            self._end()
        elif number in NOTICE and not self._ending:
            self._say(f"{signal.Signals(number).name}: stopping after the current tasks\n")
            self._end()
        elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._end(at_once=True)

    # -- talking to the store

    def _renew(self, hands: Iterable[WorkerProcess] = ()) -> None:
        """Say that we are here, and do as we're told; then say how that leaves us."""
        self._beat += 1
        said = [hand.said(hand.slot.read(), self._beat) for hand in hands]
        while orders := self.store.renew([self._said(), *said]):
            for order in orders:
                self._obey(order)

    def _said(self) -> WorkerInfo:
        size = 0 if self._ending else self.size
        return msgspec.structs.replace(self._me, beat=self._beat, size=size, note=self._note)

    def _beat_all(self) -> None:
        for hand in self._hands.values():
            hand.memory = _memory(hand.info.pid)
            hand.files.trim()
        self._renew(list(self._hands.values()))

    def _obey(self, order: Order) -> None:
        if isinstance(order, Stop):
            self._end(at_once=order.now)
            return
        staying = [hand for hand in self._hands.values() if not hand.leaving]
        size = max(order.size, len(staying) if self._ending else self.size) if order.at_least else order.size
        self.size = size
        self._ending = False
        self._quick_deaths = 0
        if size == 0:
            self._end()
        for hand in sorted(staying, key=lambda hand: not hand.slot.waiting)[: max(0, len(staying) - size)]:
            self._dismiss(hand)

    def _is_second(self) -> bool:
        """Is another supervisor of our crew on this store already? Then it gets our orders."""
        if not self.crew:
            return False
        first = first_of_crew(self.crew, self._me, self.store.processes())
        if first.id == self._me.id:
            return False
        self.store.order([first.id], Scale(self.size, at_least=True))
        wake(first)
        return True

    def _lives(self, session: WorkerId) -> bool:
        return any(alive and info.id == session for info, alive, _ in self.store.processes())

    def _nothing_to_do(self) -> bool:
        if not self.store.idle(self.options.target, self._me.python):
            return False
        self._tell_of_foreign_tasks()
        if self.options.idle_timeout == 0:
            return True
        return not any(alive and info.kind == "session" for info, alive, _ in self.store.processes())

    def _tell_of_foreign_tasks(self) -> None:
        """There is work, and it's not for us: byte code travels between equal versions of Python only."""
        foreign = self.store.foreign(self._me.python)
        if not foreign:
            return
        version, count = max(foreign.items(), key=lambda item: item[1])
        told = (
            f"{count} ready task{' was' if count == 1 else 's were'} made with Python {version} and these workers have "
            f"{self._me.python}: start some with Python {version}"
        )
        if told != self._note:
            self._note = told
            self._say(f"{told}\n")

    def _say(self, text: str) -> None:
        if self.detached:
            self.store.notice(self._me.id, text)
        print(text, end="", file=sys.stderr, flush=True)

    # -- starting

    def _keep_house(self) -> None:
        """Where much has gathered in the store, a process of its own, and not urgently, puts it into less space."""
        if not self.store.crowded():
            return
        mine = os.getpid()
        self._housekeeper = os.fork()
        if self._housekeeper:
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, *((NUDGE,) if NUDGE else ())):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.close(self._held)
            _die_with(mine, self._leash)
            os.nice(10)
            store = open_store(self.store.url, self.clock)
            store.compact()
            store.close()
            status = 0
        except JugError as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        except BaseException:  # whatever it is, the parent's code must not run on here
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def _fill(self, end: float | None) -> None:
        """Fork what is missing."""
        missing = self.size - sum(not hand.leaving for hand in self._hands.values())
        if missing <= 0:
            return
        threads = str(max(1, (os.cpu_count() or 1) // max(1, self.size)))
        os.environ.update((name, threads) for name in _THREADS if name not in self._threads_set)
        for _ in range(missing):
            self._fork(end)
        self._beat_all()

    def _fork(self, end: float | None) -> None:
        slot, files, tail = SharedStatus(), Files(), os.urandom(3).hex()
        sys.stdout.flush()
        sys.stderr.flush()
        mine = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_worker(mine, tail, slot, files, end)
        with suppress(OSError):  # it may have ended already
            os.setpgid(pid, pid)  # the child does so too: whoever is first
        self._hands[pid] = WorkerProcess(self._worker_info(pid, tail), slot, files)

    def _worker_info(self, pid: int, tail: str) -> WorkerInfo:
        return msgspec.structs.replace(
            self._me, id=f"{self._me.host}-{pid}-{tail}", kind="worker", pid=pid, born=system.born(pid) or 0,
            started=self.clock.now(), supervisor=self._me.id, crew="", size=0,
        )  # fmt: skip

    def _be_worker(self, parent: int, tail: str, slot: SharedStatus, files: Files, end: float | None) -> NoReturn:
        """The child's life, to its end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, *((NUDGE,) if NUDGE else ())):
                signal.signal(number, signal.SIG_DFL)
            for number in NOTICE:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            os.close(self._held)
            if self.lead:
                os.close(self.lead)  # as for 0, /dev/null takes its place
            _die_with(parent, self._leash)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            capture = Capture(files)
            capture.install()
            faulthandler.enable(file=2)
            context.always_in_task()
            book = DisplayBuffer(capture)
            displays.always_open(book)
            context.always_progress_to(slot.tell)
            import_hooks.meet()
            me = self._worker_info(os.getpid(), tail)
            store = _reopened(self.store.url, self.clock)
            store.renew([me])  # before it claims: who is not known does not live
            each, options = FailureWatcher(), self.options
            count = work(
                store, self._seal, me, slot, clock=self.clock, target=self.options.target, max_tasks=options.max_tasks,
                deadline=end, stop=lambda: slot.told_to_stop or (each.failed and not options.keep_going),
                listener=capture, book=book, folders=self.options.folders, each=each,
            )  # fmt: skip
            store.close()
            if each.failed and not options.keep_going:
                status = ENOUGH
            else:
                spent = options.max_tasks is not None and count >= options.max_tasks
                status = DONE if spent or (end is not None and not slot.told_to_stop) else 0
        except JugError as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        except BaseException:  # whatever it is, the supervisor tells, and the parent's code must not run on here
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    # -- ending

    def _end(self, at_once: bool = False) -> None:
        """Workers are not replaced from here on."""
        self._ending = True
        self._cut_short = self._cut_short or at_once
        for hand in self._hands.values():
            if not hand.leaving:
                self._dismiss(hand)
            if at_once and not hand.killed and hand.termination is None:
                self._ask_to_end(hand, Termination(-1, "stopped", "", self.clock.monotonic() + GRACE))

    def _end_at_failure(self) -> None:
        if not self._ending:
            self._say("a task failed: stopping after the current tasks\n")
            self._end()

    def _dismiss(self, hand: WorkerProcess) -> None:
        """Let a worker end after its current task."""
        hand.leaving = True
        hand.slot.stop()

    def _ask_to_end(self, hand: WorkerProcess, termination: Termination) -> None:
        hand.termination = termination
        _signal_group(hand.info.pid, signal.SIGTERM)

    def _bury_all(self) -> list[WorkerId]:
        """Nobody outlives us, whatever brought us here."""
        for pid in self._hands:
            _signal_group(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if self._housekeeper:
            os.kill(self._housekeeper, signal.SIGKILL)  # the next one takes up what it was at
            os.waitpid(self._housekeeper, 0)
        ended = [hand.info.id for hand in (*self._hands.values(), *(hand for hand, *_ in self._doubtful))]
        self._hands.clear()
        return ended

    # -- watching

    def _look(self, now: float) -> None:
        """Enforce limits, and see off those who were told to go."""
        for hand in self._hands.values():
            if hand.termination is not None:
                if now >= hand.termination.kill_at and not hand.killed:
                    hand.killed = True
                    _signal_group(hand.info.pid, signal.SIGKILL)
                continue
            if hand.leaving and hand.slot.waiting:
                hand.killed = True
                _signal_group(hand.info.pid, signal.SIGKILL)  # it waits for tasks: nothing is lost
                continue
            running = hand.slot.read()
            if running is None:
                continue
            memory = _memory_of_group(hand.info.pid) if self.options.memory_limit is not None else 0
            over = overstepped(running, memory, self.options.memory_limit, now)
            if over is not None:
                self._ask_to_end(hand, Termination(running.turn, over[0], over[1], now + GRACE))

    def _reap(self) -> None:
        if self._housekeeper and os.waitpid(self._housekeeper, os.WNOHANG)[0]:
            self._housekeeper = 0
        for pid in list(self._hands):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _signal_group(pid, signal.SIGKILL)  # what it left behind; the group is ours until we have waited
                _, status = os.waitpid(pid, 0)
                hand = self._hands.pop(pid)
                if (
                    os.WIFSIGNALED(status)
                    and os.WTERMSIG(status) in ENDING
                    and hand.termination is None
                    and not hand.killed
                ):
                    self._doubtful.append((hand, status, self.clock.monotonic() + DOUBT))
                else:
                    self._bury(hand, status)

    def _judge(self, now: float) -> None:
        """A batch system that ends a job tells all its processes, the workers too: that is no death in a task.

        It may tell them before us, so whether that was it shows a moment later.
        """
        told = bool(ENDING.intersection(self._signals)) or self._cut_short
        for one in list(self._doubtful):
            hand, status, until = one
            if told or now >= until:
                self._doubtful.remove(one)
                hand.killed = told
                self._bury(hand, status)

    def _bury(self, hand: WorkerProcess, status: int) -> None:
        """Say at once what is known of a worker's death, and open its claims to others."""
        running = hand.slot.read()
        words = hand.files.last_words()
        if running is not None and hand.is_mourned(running):
            self._settle(hand, running, status, words)
        elif words:
            self.store.notice(hand.info.id, "".join(text for _, text in words))
        self.store.leave([hand.info.id])
        code = os.waitstatus_to_exitcode(status)
        if running is None and code == DONE:
            self.size -= 1  # it has done its share
            if self.size <= 0:
                self._end()
        elif running is None and code == ENOUGH:
            self._end_at_failure()
        elif running is None and code != 0 and not hand.killed and hand.termination is None:
            self._stumble(hand, status, words)
        elif hand.slot.done or running is not None:
            self._quick_deaths = 0
            self._note = ""
        hand.slot.close()
        hand.files.close()

    def _stumble(self, hand: WorkerProcess, status: int, words: tuple[tuple[str, str], ...]) -> None:
        """A worker died outside of any task: try again, but not for ever and not in a loop."""
        said = "".join(text for _, text in words).strip()
        self._note = f"a worker {cause_of_death(status)}: {said.rpartition(chr(10))[2] or 'it said nothing'}"[:300]
        self._say(f"{self._note}\n")
        self._quick_deaths = self._quick_deaths + 1 if hand.slot.done == 0 else 1
        self._fork_at = self.clock.monotonic() + BRAKE * 2**self._quick_deaths
        if self._quick_deaths >= GIVE_UP:
            self._say(f"{GIVE_UP} workers in a row died before their first task; giving up\n")
            self._end()

    def _settle(self, hand: WorkerProcess, running: Running, status: int, words: tuple[tuple[str, str], ...]) -> None:
        kind, text, final, died = death_outcome(running, hand.termination, cause_of_death(status))
        lease, me, now = running.lease, hand.info, self.clock.now()
        duration = self.clock.monotonic() - running.since
        run = Run(me.id, me.host, me.pid, me.user, me.python, running.started, duration, 0.0, lease.attempt, words)
        where = f"worker {me.id} on {me.host}, pid {me.pid}"
        report = f"{running.name} had run for {duration:.3g} s in {where}: {text}.\n"
        failed = Failed(lease.key, lease.round, lease.inputs, kind, text, report, run)
        retry_at = 0.0 if final or died else now + backoff(running.failures)
        verdict = Verdict(
            lease.key, lease.round, lease.inputs, lease.attempt, b"", running.started, duration, final, died, retry_at
        )
        self.store.claim(me.id, 0, 0.0, [SignedWriter(self._seal).settlement(verdict, failed)])
        if final and not self.options.keep_going:
            self._end_at_failure()
        self._say(f"{running.name} {lease.key[:8]} in worker {me.id}: {text}\n")


DONE = 64  #: exit status of a worker that may begin no more: its tasks or its time are used up
ENOUGH = 65  #: and of one that was not to go on after a failure


def _reopened(url: str, clock: Clock) -> Store:
    """The store that was there a moment ago: a server that is just being started again is waited for."""
    until = clock.monotonic() + REOPENING
    while True:
        try:
            return open_store(url, clock)
        except Unreachable:
            if clock.monotonic() >= until:
                raise
            clock.sleep(TICK)


def wake(info: WorkerInfo) -> None:
    """Tell a supervisor of this host to look at its orders now. Others see them with their next beat."""
    if NUDGE is not None and info.pid != os.getpid() and system.running(info):
        try:
            os.kill(info.pid, NUDGE)
        except (ProcessLookupError, PermissionError):  # it has just ended; or another user's
            return


def _die_with(parent: int, parent_pipe: int) -> None:
    """Make the system end this process when its parent dies, however that dies."""
    if sys.platform == "linux":
        set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_pdeathsig, signal.SIGKILL)
    else:
        threading.Thread(target=_wait_for_the_end, args=(parent_pipe,), daemon=True, name="leash").start()
    if os.getppid() != parent:  # it was quicker
        os._exit(1)


def _wait_for_the_end(parent_pipe: int) -> None:
    os.read(parent_pipe, 1)
    _signal_group(os.getpid(), signal.SIGKILL)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:  # something in the group changed its user; the worker itself is ours
        os.kill(pid, number)


def _memory(pid: int) -> int:
    """Resident bytes of a process; 0 where that can't be told."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096


def _memory_of_group(pid: int) -> int:
    """The same with all its descendants."""
    total, open_pids = 0, [pid]
    while open_pids:
        one = open_pids.pop()
        total += _memory(one)
        try:
            threads = os.listdir(f"/proc/{one}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{one}/task/{thread}/children", "rb") as file:
                    open_pids.extend(map(int, file.read().split()))
            except OSError:
                continue
    return total


__all__ = ["Supervisor", "supervise", "wake"]
