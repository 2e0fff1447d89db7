"""A worker as a process: forking it, the signals and pipes between it and its supervisor, what it uses, its end.

The supervisor forks before any user code is imported, so a fork is cheap and each worker starts clean.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import math
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jug_notebook import system
from jug_notebook.clock import Clock
from jug_notebook.errors import JugError, StoreError, StoreGone
from jug_notebook.model import WorkerInfo
from jug_notebook.store import Store, exists, is_missing, may_pass, open_store
from jug_notebook.store.sealing import Seal
from jug_notebook.task import context
from jug_notebook.worker import WorkerOptions, displays, import_hooks, strays
from jug_notebook.worker.capture import Capture, Files
from jug_notebook.worker.channel import StoreServer, connected
from jug_notebook.worker.crew import WAKE
from jug_notebook.worker.displays import DisplayBuffer
from jug_notebook.worker.loop import FailureWatcher, work
from jug_notebook.worker.status import LIMIT_REACHED, TASK_FAILED, Running, SharedStatus, Termination

#: batch systems give notice with these, to the whole job: no new task, but what runs may end (Slurm's --signal, SGE's
#: -notify, limits of processor time). Workers ignore them; their supervisor does not.
NOTICE = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU) if hasattr(signal, "SIGUSR1") else ()

MOVED = 5.0  #: seconds in which a store whose folder is missing may come back
REOPEN_PAUSE = 0.1  #: seconds before a worker tries again to open the store that its supervisor has open


@dataclass
class WorkerProcess:
    """A worker, as its supervisor knows it."""

    info: WorkerInfo
    status: SharedStatus
    files: Files
    line: int = -1  #: its `StoreServer.connect`
    leaving: bool = False  #: asked to stop after its current task
    termination: Termination | None = None
    killed: bool = False
    memory: int = 0  #: resident bytes
    peak: int = 0  #: the most that it had, as far as is known; with its subprocesses, where their memory is limited

    def died_in(self, running: Running) -> bool:
        """Is its death something that happened in this task, and not our way of ending the worker?"""
        return not self.killed if self.termination is None else self.termination.turn == running.turn

    def heartbeat(self, beat: int) -> WorkerInfo:
        """Return what the store is to know of it with this heartbeat."""
        info = self.status.heartbeat(self.info, beat=beat, memory=self.memory)
        return msgspec.structs.replace(info, tail=self.files.tail()) if info.task else info

    def stop(self) -> None:
        """Let it end after its current task."""
        self.leaving = True
        self.status.stop()

    def terminate(self, termination: Termination) -> None:
        """Ask it and its subprocesses to end now; it is killed at ``termination.kill_at``."""
        self.termination = termination
        signal_group(self.info.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and its subprocesses."""
        self.killed = True
        signal_group(self.info.pid, signal.SIGKILL)

    def close(self) -> None:
        """Release what was shared with it."""
        self.status.close()
        self.files.close()


@dataclass(frozen=True)
class ForkContext:
    """What a forked process gets from its supervisor."""

    supervisor: WorkerInfo
    url: str
    store_id: str
    seal: Seal
    options: WorkerOptions
    clock: Clock
    server: StoreServer
    blobs: Path  #: a folder for those that come over the network
    parent_pipe: int  #: its end of file tells, where the system doesn't, that the supervisor is gone
    to_close: tuple[int, ...]  #: descriptors that are the supervisor's alone

    def fork_worker(self, deadline: float | None) -> WorkerProcess:
        """Fork a worker. ``deadline`` is on the monotonic clock: no task starts after it."""
        status, files, suffix = SharedStatus(), Files(), os.urandom(3).hex()
        line, ours = self.server.connect()
        pid = _fork(lambda: self._run_worker(suffix, status, files, line, deadline))
        line.close()
        with suppress(OSError):  # it may have ended already
            os.setpgid(pid, pid)  # the child does so too: whichever is first
        return WorkerProcess(self._worker_info(pid, suffix), status, files, ours)

    def fork_compaction(self) -> int:
        """Fork a process of low priority that compacts the store; return its pid."""
        return _fork(self._compact)

    def fork_notifier(self, run: Callable[[Store], int]) -> int:
        """Fork a process that outlives its supervisor and does this with the store; return its pid."""
        return _fork(lambda: self._notify(run))

    def _notify(self, run: Callable[[Store], int]) -> int:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._let_go()
        return run(self._reopen())

    def _reopen(self) -> Store:
        """Open the supervisor's store; a server that is away is waited for, and from then on by every verb.

        Raises StoreGone if there is another store by now, or none.
        """
        since = self.clock.monotonic()
        while True:
            try:
                if not exists(self.url):
                    raise StoreGone("the store was removed while this worker started") from FileNotFoundError(self.url)
                store = open_store(self.url, self.clock)
                break
            except StoreError as error:
                patience = min(self.options.patience, MOVED if is_missing(error) else math.inf)
                if not may_pass(error) or self.clock.monotonic() - since >= patience:
                    raise
                self.clock.sleep(REOPEN_PAUSE)
        if store.id != self.store_id:
            raise StoreGone("there is another store in its place since this worker started")
        store.patience = self.options.patience
        return store

    def _worker_info(self, pid: int, suffix: str) -> WorkerInfo:
        me = self.supervisor
        return msgspec.structs.replace(
            me, id=f"{me.host}-{pid}-{suffix}", kind="worker", pid=pid, born=system.born(pid) or 0,
            started=self.clock.now(), supervisor=me.id, crew="", size=0,
        )  # fmt: skip

    def _detach(self) -> None:
        """Drop the signal handlers and descriptors that came from the supervisor, and end when it does."""
        self._let_go()
        _die_with(self.supervisor.pid, self.parent_pipe)

    def _let_go(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, *((WAKE,) if WAKE else ())):
            signal.signal(number, signal.SIG_DFL)
        for fd in (*self.to_close, *self.server.descriptors):
            os.close(fd)

    def _compact(self) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._detach()
        os.nice(10)
        store = self._reopen()
        store.compact()
        store.close()
        return 0

    def _run_worker(
        self, suffix: str, status: SharedStatus, files: Files, line: socket.socket, deadline: float | None
    ) -> int:
        """Run tasks in the child; return its exit status."""
        gc.freeze()  # or the first collection would copy all pages of the supervisor
        for number in NOTICE:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setpgid(0, 0)
        self._detach()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        capture = Capture(files)
        capture.install()
        faulthandler.enable(file=2)
        context.always_in_task()
        context.follow_threads()
        buffer = DisplayBuffer(capture)
        displays.always_open(buffer)
        context.always_progress_to(status.report)
        import_hooks.install()
        me, options = self._worker_info(os.getpid(), suffix), self.options
        os.environ[strays.WORKER] = me.id
        store = connected(self._reopen(), line, self.blobs)
        each = FailureWatcher()
        count = work(
            store, self.seal, me, status, clock=self.clock, target=options.target, max_tasks=options.max_tasks,
            deadline=deadline, stop=lambda: status.stopping or (each.failed and not options.keep_going),
            listener=capture, buffer=buffer, folders=options.folders, each=each,
        )  # fmt: skip
        store.close()
        if each.failed and not options.keep_going:
            return TASK_FAILED
        used_up = options.max_tasks is not None and count >= options.max_tasks
        return LIMIT_REACHED if used_up or (deadline is not None and not status.stopping) else 0


def _fork(run: Callable[[], int]) -> int:
    """Run a function in a child process, which ends with the status that it returns; return the child's pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        strays.forked.add(pid)
        return pid
    status = 1
    try:
        status = run()
    except JugError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    except BaseException:  # whatever it is, the supervisor reports it, and the parent's code must not run on here
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _die_with(parent: int, parent_pipe: int) -> None:
    """Make the system end this process when its parent dies, however that dies."""
    if sys.platform == "linux":
        set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_pdeathsig, signal.SIGKILL)
    else:
        threading.Thread(target=_end_with_pipe, args=(parent_pipe,), daemon=True, name="parent-pipe").start()
    if os.getppid() != parent:  # it was quicker
        os._exit(1)


def _end_with_pipe(parent_pipe: int) -> None:
    os.read(parent_pipe, 1)
    signal_group(os.getpid(), signal.SIGKILL)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a process and its subprocesses, if they still exist."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:  # something in the group changed its user; the worker itself is ours
        os.kill(pid, number)
