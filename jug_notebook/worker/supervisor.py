"""One supervisor per host and crew: starts workers, renews their leases, enforces limits, and reports how they died.

Single-threaded and light. It observes workers only from outside (their `SharedStatus`, /proc, their output files), so a
task that holds the interpreter's lock, or loops in C, is neither taken for dead nor out of reach.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import LaunchError, StoreError, StoreGone, clean
from jug_notebook.model import BEAT, Order, Stop, WorkerId, WorkerInfo
from jug_notebook.render.format import MEMORY, duration
from jug_notebook.store import Store, is_missing, lacks_room, may_pass, open_store, out_of_reach
from jug_notebook.store.signed import SignedWriter, seal_of
from jug_notebook.worker import WorkerOptions
from jug_notebook.worker.channel import StoreServer
from jug_notebook.worker.crew import WAKE, Neighbours
from jug_notebook.worker.leftovers import drop_leftovers
from jug_notebook.worker.notifier import Notifier
from jug_notebook.worker.process import (
    MOVED,
    NOTICE,
    ForkContext,
    WorkerProcess,
    signal_group,
)
from jug_notebook.worker.resources import LOCKS, HostLocks, Reservations, find_devices, find_memory
from jug_notebook.worker.status import (
    Exit,
    Running,
    Termination,
    cause_of_death,
    classify_exit,
    overstepped,
    settled_death,
)
from jug_notebook.worker.strays import GRACE, Strays
from jug_notebook.worker.usage import MAXRSS, give_back_memory, memory_of, memory_of_group

TICK = 0.1  #: seconds between two looks at the workers
MAX_STARTUP_CRASHES = 5  #: workers in a row that died before their first task: something is wrong with this host
RIVALS = 3 * BEAT  #: seconds in which rivals of the same crew are noticed, also those that must be seen to beat
RESTART_PAUSE = 0.05  #: seconds before a worker is replaced that died before its first task; doubles each time
AMBIGUOUS = 0.5  #: seconds to find out whether a worker that got a signal is one of a whole job that is being ended

ENDING = {signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)}
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
    ``lead`` is a file descriptor: when its other end is closed, the supervisor ends. Without ``options.max_time`` the
    end of the Slurm job counts that it runs in, if any. Raises LaunchError where the system has no ``fork``.
    """
    if not hasattr(os, "fork"):
        raise LaunchError("workers can't be started on Windows; use WSL, or a host that has them: %jug_execute --host")
    if threading.current_thread() is not threading.main_thread():
        raise LaunchError("a supervisor runs in the main thread of a process of its own: jug-notebook worker URL")
    if options.max_time is None:
        options = msgspec.structs.replace(options, max_time=system.job_time_left(clock.now()))
    store = open_store(url, clock)
    store.patience = 0.0  # the supervisor looks after its workers, and heeds signals, while it waits for a server
    supervisor = Supervisor(store, options, crew, detached, clock, place, tuple(stop_files), ready, lead)
    try:
        return supervisor.run()
    finally:
        store.close()


class Absence:
    """A store that can't be used for now, because it is away or lacks room: workers wait for that, and so does their
    supervisor."""

    def __init__(self, patience: float, clock: Clock) -> None:
        self._patience = patience
        self._clock = clock
        self._since: float | None = None
        self._used = False  #: was it there once? A folder that never could be written is not waited for

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Do without what the store can't do for now. Raises StoreError once it was away for too long."""
        try:
            yield
        except StoreError as error:
            if not may_pass(error) or (out_of_reach(error) and not self._used):
                raise
            if lacks_room(error):
                return
            now = self._clock.monotonic()
            patience = min(self._patience, MOVED) if is_missing(error) else self._patience
            if self._since is None:
                self._since = now
                print(f"{error}; waiting up to {duration(patience)}", file=sys.stderr, flush=True)
            elif now - self._since >= patience:
                raise

    def end(self) -> str:
        """Return for how long the store was away, now that it is back; empty where it wasn't."""
        since, self._since = self._since, None
        self._used = True
        return "" if since is None else duration(self._clock.monotonic() - since)


@dataclass
class Supervisor:
    """Keeps ``options.size`` workers; see `supervise`."""

    store: Store
    options: WorkerOptions
    crew: str
    detached: bool
    clock: Clock
    place: str = ""
    stop_files: tuple[Path, ...] = ()
    ready: Callable[[WorkerInfo], None] | None = None
    lead: int | None = None

    _workers: dict[int, WorkerProcess] = field(default_factory=dict)  #: by pid
    _ending: bool = False  #: no worker is replaced from now on
    _in_crew: bool = True  #: until it is about to end, see `worker.crew`
    _beat: int = 0
    _startup_crashes: int = 0  #: in a row
    _compaction: int = 0  #: a pid, while it runs
    _fork_at: float = 0.0
    _note: str = ""
    _ended_at_once: bool = False
    #: workers that got a signal which was not ours, their wait status, until when that may mean that all are ended
    _ambiguous: list[tuple[WorkerProcess, int, float]] = field(default_factory=list)
    _signals: list[int] = field(default_factory=list)

    def run(self) -> int:
        """Return the exit status once all workers have ended."""
        self.size = self.options.size
        self._absence = Absence(self.options.patience, self.clock)
        self._me = system.me("supervisor", self.clock, crew=self.crew, size=self.size, place=self.place)
        self._neighbours = Neighbours(self.store, self._me, self._absence.tolerated)
        self._seal = seal_of(self.store, make=True)
        self._strays = Strays()
        self._threads_set = {name for name in _THREADS if name in os.environ}
        self._wakeup, self._wakeup_end = os.pipe()
        os.set_blocking(self._wakeup_end, False)
        os.set_blocking(self._wakeup, False)
        parent_pipe, parent_end = os.pipe()
        os.environ.update(self.options.env)
        self._server = StoreServer(self.store, self.clock, _reservations(self.options))
        blobs = Path(tempfile.mkdtemp(prefix="jug-blobs-"))
        self._server.listen(self._wakeup)
        if self.lead is not None:
            self._server.listen(self.lead)
        self._fork = ForkContext(
            self._me, self.store.url, self.store.id, self._seal, self.options, self.clock, self._server, blobs,
            parent_pipe,
            (parent_end, self.lead) if self.lead else (parent_end,),  # 0 stays open: /dev/null takes its place
        )  # fmt: skip
        self._notifier = Notifier(self.store, self._me, self.options.target, self._fork.fork_notifier)
        handlers = _caught_signals(self._signals, self._wakeup_end)
        gc.freeze()  # or our collections would copy all pages that workers have of us
        try:
            self._renew()
            if self._is_second():
                return 0
            if self.ready is not None:
                text = f"pid {self._me.pid}, Python {self._me.python} ({sys.executable}), workers: {self.size}\n"
                self._notice(self._me.id, text)
                self.ready(self._info())
            with self._absence.tolerated():
                if self.store.compact(dry_run=True):
                    self._compaction = self._fork.fork_compaction()
            return self._loop()
        except StoreError as error:  # no message can be left where there is no store
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            if isinstance(error, StoreGone):
                with suppress(StoreError, OSError):  # there may be another in its place
                    self.store.notice(self._me.id, "its store was removed, so this supervisor and its workers ended\n")
            return 1
        except BaseException:
            self._report(traceback.format_exc())
            raise
        finally:
            ended = self._reap_all()
            shutil.rmtree(blobs, ignore_errors=True)
            with suppress(StoreError, OSError):  # or the store is gone
                self._server.close()
                self.store.leave([*ended, self._me.id])
                self._notifier.end(self._ended_at_once)
            signal.set_wakeup_fd(handlers.pop(0))
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for fd in (self._wakeup, self._wakeup_end, parent_pipe, parent_end):
                os.close(fd)

    def _loop(self) -> int:
        clock = self.clock
        now = clock.monotonic()
        end = None if self.options.max_time is None else now + self.options.max_time
        next_beat, next_idle, idle_since = now, now, now
        settled_crew = now + RIVALS
        while True:
            now = clock.monotonic()
            self._reap()
            while self._signals:
                self._on_signal(self._signals.pop(0))
            self._resolve_ambiguous(now)
            if self._strays.kill_at:
                self._end_strays()
            if end is not None and now >= end:
                self._end()
            if not self._ending and now >= self._fork_at:
                self._fill(end)
            if self._ending and not self._workers and not self._ambiguous:
                crashed = self._startup_crashes >= MAX_STARTUP_CRASHES
                if self._left_crew():
                    return 1 if crashed else 0
                settled_crew = now + RIVALS
            self._enforce_limits(now)
            if now >= next_beat:
                next_beat = now + BEAT
                self._beat_all()
                self._notifier.look(now, self._absence.tolerated())
                if not self._ending and now <= settled_crew and self._neighbours.take_over(self.size):
                    self._end()
                if self.options.tied_to and not self._neighbours.is_alive(self.options.tied_to):
                    self._end(at_once=True)
                if not self._ending and (found := next((path for path in self.stop_files if path.exists()), None)):
                    self._report(f"{found} exists: stopping after the current tasks\n")
                    self._end()
            if not all(process.status.waiting for process in self._workers.values()):
                idle_since = now
            elif now >= next_idle and not self._ending:
                next_idle = now + min(2.0, self.options.idle_timeout / 4)
                give_back_memory()
                if not self._is_idle():
                    idle_since = now
                elif now - idle_since >= self.options.idle_timeout:
                    self._end()
            self._pause(TICK)

    def _pause(self, seconds: float) -> None:
        ready = self._server.wait(seconds)
        outworn = self._server.take_outworn()
        for process in self._workers.values():
            if process.line in outworn and not process.leaving:
                process.stop()
                process.kill()  # it waits for tasks: nothing is lost
        if self.lead is not None and self.lead in ready and not os.read(self.lead, 4096):
            self._server.ignore(self.lead)
            self.lead = None
            self._end(at_once=True)
        if self._wakeup in ready:
            with suppress(BlockingIOError):
                os.read(self._wakeup, 4096)

    # -- signals

    def _on_signal(self, number: int) -> None:
        if number == WAKE:
            self._renew()
        elif number == signal.SIGINT and not self._ending:
            self._report("stopping after the current tasks; press Ctrl-C again to stop at once\n")
            self._end()
        elif number in NOTICE and not self._ending:
            self._report(f"{signal.Signals(number).name}: stopping after the current tasks\n")
            self._end()
        elif number in ENDING:
            self._end(at_once=True)

    # -- the store

    def _renew(self) -> None:
        """Renew our heartbeat and those of workers, and obey orders; then renew them again with the new state."""
        self._beat += 1
        heartbeats = [process.heartbeat(self._beat) for process in self._workers.values()]
        with self._absence.tolerated():
            while orders := self.store.renew([self._info(), *heartbeats]):
                for order in orders:
                    self._obey(order)
            if away := self._absence.end():
                self._report(f"{self.store.display_url} was away for {away}; going on\n")

    def _info(self) -> WorkerInfo:
        size, note = 0 if self._ending else self.size, self._note or self._notifier.note
        crew = self.crew if self._in_crew else ""
        return msgspec.structs.replace(self._me, beat=self._beat, crew=crew, size=size, **self._server.info(note))

    def _beat_all(self) -> None:
        for process in self._workers.values():
            process.memory = memory_of(process.info.pid)
            process.files.trim()
            if stray := process.files.stray():
                self._notice(process.info.id, stray)
        self._end_strays()
        self._server.share()
        self._renew()

    def _obey(self, order: Order) -> None:
        if isinstance(order, Stop):
            self._end(at_once=order.now)
            return
        staying = [process for process in self._workers.values() if not process.leaving]
        size = max(order.size, len(staying) if self._ending else self.size) if order.at_least else order.size
        self.size = size
        self._ending = self._ended_at_once = False
        self._startup_crashes = 0
        if size == 0:
            self._end()
        idle_first = sorted(staying, key=lambda process: not process.status.waiting)
        for process in idle_first[: max(0, len(staying) - size)]:
            process.stop()

    def _is_second(self) -> bool:
        """Is another supervisor of our crew here already? Then it has our orders."""
        self._ending = self._neighbours.take_over(self.size)
        return self._ending and self._left_crew()

    def _left_crew(self) -> bool:
        """Leave the crew, so that nobody counts on us; False where an order to have workers came just before."""
        if not self.crew:
            return True
        self._in_crew = False
        self._renew()
        self._in_crew = not self._ending
        return self._ending

    def _is_idle(self) -> bool:
        """Is there nothing to do for these workers, and no session for which they are to stay?"""
        with self._absence.tolerated():
            return self._nothing_to_do()
        return False

    def _nothing_to_do(self) -> bool:
        if not self.store.idle(self.options.target, self._me.python):
            return False
        foreign = _foreign_tasks(self.store.foreign(self._me.python), self._me.python)
        if foreign and foreign != self._note:
            self._note = foreign
            self._report(f"{foreign}\n")
        if self.options.idle_timeout == 0 or not self.options.keep_attached:
            return True
        every = self.options.idle_timeout / 10
        return not self._neighbours.is_attended(self.clock.monotonic(), every)

    def _notice(self, process: WorkerId, text: str) -> None:
        with self._absence.tolerated():
            self.store.notice(process, text)

    def _report(self, text: str) -> None:
        if self.detached:
            self._notice(self._me.id, text)
        print(clean(text), end="", file=sys.stderr, flush=True)

    # -- starting and ending workers

    def _fill(self, end: float | None) -> None:
        """Fork the workers that are missing."""
        missing = self.size - sum(not process.leaving for process in self._workers.values())
        if missing <= 0:
            return
        threads = str(max(1, system.cores() // max(1, self.size)))
        os.environ.update((name, threads) for name in _THREADS if name not in self._threads_set)
        for _ in range(missing):
            process = self._fork.fork_worker(end)
            self._workers[process.info.pid] = process
        self._beat_all()

    def _end(self, at_once: bool = False) -> None:
        """Replace no worker from here on; with ``at_once`` end those that run."""
        self._ending = True
        self._ended_at_once = self._ended_at_once or at_once
        for process in self._workers.values():
            if not process.leaving:
                process.stop()
            if at_once and not process.killed and process.termination is None:
                process.terminate(Termination(-1, "stopped", "", self.clock.monotonic() + GRACE))

    def _end_at_failure(self) -> None:
        if not self._ending:
            self._report("a task failed: stopping after the current tasks\n")
            self._end()

    def _enforce_limits(self, now: float) -> None:
        """End tasks that are over a limit, and workers that were asked to stop and are idle."""
        limit = self.options.memory_limit
        for process in self._workers.values():
            if process.termination is not None:
                if now >= process.termination.kill_at and not process.killed:
                    process.kill()
                continue
            if process.leaving and process.status.waiting:
                process.kill()  # it waits for tasks: nothing is lost
                continue
            if (running := process.status.read()) is None:
                continue
            process.peak = memory = memory_of_group(process.info.pid) if limit is not None else 0
            if over := overstepped(running, memory, limit, now):
                process.terminate(Termination(running.turn, over[0], over[1], now + GRACE))

    # -- workers that have ended

    def _reap_all(self) -> list[WorkerId]:
        """Kill and reap every process that is left; return the ids of the workers among them."""
        for pid in self._workers:
            signal_group(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if self._compaction:
            os.kill(self._compaction, signal.SIGKILL)  # the next one continues its work
            os.waitpid(self._compaction, 0)
        if left := self._strays.end_all(self.clock.monotonic()):
            print(f"ended what tasks had left behind: {left}", file=sys.stderr)
        ended = [process.info.id for process in (*self._workers.values(), *(one[0] for one in self._ambiguous))]
        self._workers.clear()
        return ended

    def _end_strays(self, ended: WorkerId = "") -> None:
        """End what the tasks of workers left behind that have ended: of all, and of one that has ended just now."""
        workers = {process.info.id for process in self._workers.values()}
        for worker, left in self._strays.look(self.clock.monotonic(), workers, ended).items():
            self._notice(worker, f"ended what its tasks had left behind: {left}\n")

    def _reap(self) -> None:
        if self._compaction and os.waitpid(self._compaction, os.WNOHANG)[0]:
            self._compaction = 0
        for pid in list(self._workers):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            signal_group(pid, signal.SIGKILL)  # what it left behind; the group is ours until we have waited
            _, status, used = os.wait4(pid, 0)
            process = self._workers.pop(pid)
            self._end_strays(process.info.id)
            process.peak = max(process.peak, used.ru_maxrss * MAXRSS)
            signalled = os.WIFSIGNALED(status) and os.WTERMSIG(status) in ENDING
            if signalled and process.termination is None and not process.killed:
                self._ambiguous.append((process, status, self.clock.monotonic() + AMBIGUOUS))
            else:
                self._on_exit(process, status)

    def _resolve_ambiguous(self, now: float) -> None:
        """A batch system that ends a job signals all its processes, the workers too: that is no death in a task.

        It may signal them before us, so we know a moment later whether that was it.
        """
        ended = bool(ENDING.intersection(self._signals)) or self._ended_at_once
        for one in list(self._ambiguous):
            process, status, until = one
            if ended or now >= until:
                self._ambiguous.remove(one)
                process.killed = process.killed or ended
                self._on_exit(process, status)

    def _on_exit(self, process: WorkerProcess, status: int) -> None:
        """Report at once what is known of a worker's end, and open its claims to others; once there is room for it."""
        try:
            self._report_exit(process, status)
        except StoreError as error:
            if not may_pass(error):
                raise
            if self._ended_at_once and not lacks_room(error):
                return  # nobody waits for a server only to end
            self._ambiguous.append((process, status, self.clock.monotonic() + BEAT))

    def _report_exit(self, process: WorkerProcess, status: int) -> None:
        self._server.disconnect(process.line)
        running = process.status.read()
        output = process.files.last_words()
        if running is not None and process.died_in(running):
            self._settle(process, running, status, output)
        elif output:
            self._notice(process.info.id, "".join(text for _, text in output))
        self.store.leave([process.info.id])
        kind = classify_exit(status, running, asked=process.killed or process.termination is not None)
        if kind is Exit.LIMIT_REACHED:
            self.size -= 1  # it has done its share
            if self.size <= 0:
                self._end()
        elif kind is Exit.TASK_FAILED:
            self._end_at_failure()
        elif kind is Exit.CRASHED:
            self._on_startup_crash(process, status, "".join(text for _, text in output).strip())
        elif process.status.done or running is not None:
            self._startup_crashes = 0
            self._note = ""
        process.close()

    def _on_startup_crash(self, process: WorkerProcess, status: int, output: str) -> None:
        """A worker died outside of any task: try again, but not for ever and not in a loop."""
        self._note = f"a worker {cause_of_death(status)}: {output.rpartition(chr(10))[2] or 'no output'}"[:300]
        self._report(f"{self._note}\n")
        self._startup_crashes = self._startup_crashes + 1 if process.status.done == 0 else 1
        self._fork_at = self.clock.monotonic() + RESTART_PAUSE * 2**self._startup_crashes
        if self._startup_crashes >= MAX_STARTUP_CRASHES:
            self._report(f"{MAX_STARTUP_CRASHES} workers in a row died before their first task; giving up\n")
            self._end()

    def _settle(
        self, process: WorkerProcess, running: Running, status: int, output: tuple[tuple[str, str], ...]
    ) -> None:
        """Store the failure of the task in which a worker died."""
        how = process.termination, status, output, process.peak
        verdict, failed = settled_death(running, process.info, *how, self.clock)
        self.store.claim(process.info.id, 0, 0.0, [SignedWriter(self._seal).settlement(verdict, failed)])
        drop_leftovers(self.store, verdict)
        if verdict.final and not self.options.keep_going:
            self._end_at_failure()
        self._report(f"{running.name} {running.lease.key[:8]} in worker {process.info.id}: {failed.error}\n")


def _caught_signals(received: list[int], wakeup: int) -> dict[int, Any]:
    """Have signals noted, and ``wakeup`` written to. Return the former handlers, and under 0 the former descriptor."""
    wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, *NOTICE, *([WAKE] if WAKE else [])]
    handlers: dict[int, Any] = {
        number: signal.signal(number, lambda number, _: received.append(number)) for number in wanted
    }
    handlers[0] = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    return handlers


def _foreign_tasks(foreign: Mapping[str, int], python: str) -> str:
    """Return that there is work, but not for us: byte code travels between equal versions of Python only."""
    if not foreign:
        return ""
    version, count = max(foreign.items(), key=lambda item: item[1])
    return (
        f"{count} ready task{' was' if count == 1 else 's were'} made with Python {version} and these workers have "
        f"{python}: start some with Python {version}"
    )


def _reservations(options: WorkerOptions) -> Reservations:
    """Return what this host has: what the options name, and GPUs and memory as the system has them."""
    gpus = options.gpus
    memory, pool = find_memory()
    totals = {MEMORY: memory, **dict(options.resources)}
    locks = HostLocks(Path(os.environ.get("JUG_DEVICE_LOCKS", LOCKS)), pool)
    shares_memory = MEMORY not in dict(options.resources)
    return Reservations(totals, find_devices if gpus is None else lambda: gpus, locks, shares_memory)
