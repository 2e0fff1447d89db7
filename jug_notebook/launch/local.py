"""Workers on this host: a detached supervisor that outlives the kernel; for ``memory:``, threads of this process."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import LaunchError
from jug_notebook.launch import Crew, WorkerGroup
from jug_notebook.model import Order, Scale, Stop, WorkerInfo
from jug_notebook.store import Store, split
from jug_notebook.store.sealing import Seal
from jug_notebook.store.signed import seal_of
from jug_notebook.worker import WorkerOptions
from jug_notebook.worker.capture import ThreadCapture, restore_streams
from jug_notebook.worker.crew import engage, first_of_crew, living
from jug_notebook.worker.loop import FailureWatcher, work
from jug_notebook.worker.status import SharedStatus
from jug_notebook.worker.supervisor import TICK

TAIL = 2000  #: bytes of a failed start's output that is displayed


def launch(store: Store, options: WorkerOptions, clock: Clock = CLOCK) -> Crew:
    """Have ``options.size`` workers on this host; returns at once. A live supervisor of the same crew is used again."""
    name = _name(options)
    if found := engage(store, lambda: _living(store, name), Scale(options.size, at_least=True)):
        group = WorkerGroup(store, name, clock=clock)
        group.engaged = found.id, found.beat
        return Crew(store, [group], clock)
    if split(store.url)[0] == "memory":
        if options.gpus is not None or options.resources or options.env:
            raise LaunchError(
                "workers of 'memory:' are threads of this process: leave out gpus, resources and env, or use a folder"
            )
        ThreadSupervisor(store, name, options, clock).start()
        return Crew(store, [WorkerGroup(store, name, clock=clock)], clock)
    return Crew(store, [_detached(store, name, options, clock)], clock)


def there(store: Store, options: WorkerOptions) -> int:
    """How many workers a crew with these options keeps already."""
    return max((info.size for info in _living(store, _name(options))), default=0)


def _name(options: WorkerOptions) -> str:
    """The machine is a part of it: what ran there before a reboot, or in another container, is another crew."""
    return f"local-{system.host()}-{system.machine()}-{system.user()}-{system.python()}{options.suffix}"


def _living(store: Store, name: str) -> list[WorkerInfo]:
    return [info for info in living(store, name) if info.user == system.user()]


class LocalGroup(WorkerGroup):
    """A supervisor that is a process of ours until it has registered."""

    def __init__(
        self, store: Store, name: str, size: int, started: subprocess.Popen[bytes], log: IO[bytes], clock: Clock
    ) -> None:
        super().__init__(store, name, size=size, clock=clock)
        self._started: subprocess.Popen[bytes] | None = started
        self._log = log
        self._stopped = False

    def is_starting(self, supervisors: Sequence[WorkerInfo], workers: Sequence[WorkerInfo]) -> bool:
        if supervisors:
            self._done_starting()
            return super().is_starting(supervisors, workers)
        if self._started is None:
            return False
        status = self._started.poll()
        if status is None:
            return not self._late
        output = "none"
        if not self._log.closed:
            self._log.seek(max(0, self._log.seek(0, 2) - TAIL))
            output = self._log.read().decode(errors="replace").strip() or output
        self._done_starting()
        if status != 0 and not self._stopped:
            self.failure = (
                f"the workers' process ended with status {status} before any worker started. Its output:\n{output}"
            )
        return False

    def _done_starting(self) -> None:
        self._log.close()
        if self._started is not None and self._started.poll() is not None:
            self._started = None

    def stop(self, now: bool, supervisors: Sequence[WorkerInfo]) -> None:
        super().stop(now, supervisors)
        self.abandon(supervisors)

    def abandon(self, supervisors: Sequence[WorkerInfo]) -> None:
        self._stopped = True
        if self._started is None or any(info.pid == self._started.pid for info in supervisors):
            return  # it has registered, so it gets orders
        if self._started.poll() is None:
            self._started.terminate()
        self._log.close()


def _detached(store: Store, name: str, options: WorkerOptions, clock: Clock) -> WorkerGroup:
    command = [options.python or sys.executable, "-P", "-m", "jug_notebook", "worker"]
    command += [*options.arguments(), "--crew", name, "--detached"]
    import tempfile  # it takes long to import, and workers have no use for it

    surroundings = environment()
    if split(store.url)[0] == "file":
        command.append(store.url)
    else:  # it may hold a password, and everybody can read the commands that run
        surroundings["JUG_STORE"] = store.url
    log = tempfile.TemporaryFile()  # noqa: SIM115  # the crew reads it, should the start fail
    try:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=surroundings,
        )
    except BaseException as error:
        log.close()
        if isinstance(error, OSError):
            raise LaunchError(f"{command[0]} can't be started: {error.strerror}; give another python") from error
        raise
    return LocalGroup(store, name, options.size, started, log, clock)


def environment() -> dict[str, str]:
    """Ours, and where to find this package, should it be neither installed nor on the path."""
    home = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH", "")
    if home in (*site.getsitepackages(), site.getusersitepackages(), *before.split(os.pathsep)):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, before)))}


class ThreadSupervisor(threading.Thread):
    """The supervisor of workers that are threads: renews their leases and obeys orders. It can't end a running task."""

    def __init__(self, store: Store, name: str, options: WorkerOptions, clock: Clock) -> None:
        super().__init__(name=f"jug_notebook {name}", daemon=True)
        self._store = store
        self._options = options
        self._clock = clock
        self._size = options.size
        self._end = None if options.max_time is None else clock.monotonic() + options.max_time
        self._seal = seal_of(store, make=True)
        self._me = system.me("supervisor", clock, crew=name, size=options.size)
        self._threads: list[Thread] = []
        self._fill()
        self._beat()

    def run(self) -> None:
        tick = threading.Event()
        while self._is_first() and (self._threads or not self._left_crew()):
            tick.wait(TICK)
            self._beat()
        for thread in self._threads:
            thread.status.stop()
        self._store.leave([self._me.id, *(thread.info.id for thread in self._threads)])
        restore_streams()

    def _is_first(self) -> bool:
        return first_of_crew(self._me.crew, self._me, self._store.processes(), {}).id == self._me.id

    def _left_crew(self) -> bool:
        """Leave the crew, so that nobody counts on us; False where an order to have workers came just before."""
        for order in self._store.renew([msgspec.structs.replace(self._me, crew="", size=0)]):
            self._obey(order)
        return not self._threads

    def _fill(self) -> None:
        while sum(not thread.status.stopping for thread in self._threads) < self._size:
            info = system.me("worker", self._clock, supervisor=self._me.id)
            self._store.renew([info])
            thread = Thread(self._store, self._seal, info, self._options, self._end, self._clock)
            self._threads.append(thread)
            thread.start()

    def _beat(self) -> None:
        ended = [thread for thread in self._threads if not thread.is_alive()]
        if not self._options.keep_going and any(thread.each.failed for thread in ended):
            self._obey(Stop())
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._store.leave([thread.info.id for thread in ended])
        infos = [thread.status.heartbeat(thread.info) for thread in self._threads]
        for order in self._store.renew([msgspec.structs.replace(self._me, size=self._size), *infos]):
            self._obey(order)

    def _obey(self, order: Order) -> None:
        staying = [thread for thread in self._threads if not thread.status.stopping]
        if isinstance(order, Stop):
            self._size = 0
            if order.now:
                self._store.leave([thread.info.id for thread in staying])
        else:
            self._size = max(order.size, self._size) if order.at_least else order.size
        for thread in staying[self._size :]:
            thread.status.stop()
        self._fill()


class Thread(threading.Thread):
    """One worker. Its ``status`` and ``each`` are those of `work`."""

    def __init__(
        self, store: Store, seal: Seal, info: WorkerInfo, options: WorkerOptions, end: float | None, clock: Clock
    ) -> None:
        self.info, self.status, self.each = info, SharedStatus(), FailureWatcher()
        run = partial(
            work, store, seal, info, self.status, clock=clock, target=options.target, max_tasks=options.max_tasks,
            deadline=end, stop=lambda: self.status.stopping or (self.each.failed and not options.keep_going),
            listener=ThreadCapture(), in_process=True, wait=TICK, each=self.each,
        )  # fmt: skip
        super().__init__(target=run, name=f"jug_notebook worker {info.id}", daemon=True)
