"""Workers on this host: a detached supervisor that outlives the kernel; for ``memory:``, threads of this process."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import threading
from pathlib import Path

import msgspec

from jug_notebook import process
from jug_notebook.capture import Overheard, listen_no_more
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.codec import Seal
from jug_notebook.errors import LaunchError
from jug_notebook.fate import first_of_crew
from jug_notebook.launch import Crew, CrewOptions, arguments, tell
from jug_notebook.model import Order, Scale, Stop, WorkerInfo
from jug_notebook.store import Store, keyring, split
from jug_notebook.supervisor import TICK
from jug_notebook.worker import Slot, work


def launch(store: Store, options: CrewOptions, clock: Clock = CLOCK) -> Crew:
    """Have ``options.size`` workers on this host; returns at once. A live supervisor of the same crew is used again."""
    name = _name(options)
    living = _living(store, name)
    if living:
        tell(store, living[:1], Scale(options.size, at_least=True))
        return Crew(store, name, clock=clock)
    if split(store.url)[0] == "memory":
        Captain(store, name, options, clock).start()
        return Crew(store, name, clock=clock)
    return _detached(store, name, options, clock)


def there(store: Store, options: CrewOptions) -> int:
    """How many workers a crew with these options keeps already."""
    return max((info.size for info in _living(store, _name(options))), default=0)


def _name(options: CrewOptions) -> str:
    return f"local-{process.host()}-{process.user()}-{process.python()}{options.suffix}"


def _living(store: Store, name: str) -> list[WorkerInfo]:
    return [
        info
        for info, alive, _ in store.processes()
        if alive and info.kind == "supervisor" and info.crew == name and info.user == process.user()
    ]


def _detached(store: Store, name: str, options: CrewOptions, clock: Clock) -> Crew:
    command = [options.python or sys.executable, "-P", "-m", "jug_notebook", "worker", store.url]
    command += [*arguments(options), "--crew", name, "--detached"]
    import tempfile  # it takes long to import, and workers have no use for it

    log = tempfile.TemporaryFile()  # noqa: SIM115  # the crew reads it, should the start fail
    try:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(),
        )
    except OSError as error:
        log.close()
        raise LaunchError(f"{command[0]} can't be started: {error.strerror}; give another python") from error
    return Crew(store, name, started, options.size, log, clock)


def _environment() -> dict[str, str]:
    """Ours, and where to find this package, should it be neither installed nor on the path."""
    home = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH", "")
    if home in (*site.getsitepackages(), site.getusersitepackages(), *before.split(os.pathsep)):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, before)))}


class Captain(threading.Thread):
    """A supervisor's part for workers that are threads: it beats for them and obeys orders. It can't end a task."""

    def __init__(self, store: Store, name: str, options: CrewOptions, clock: Clock) -> None:
        super().__init__(name=f"jug_notebook {name}", daemon=True)
        self._store = store
        self._options = options
        self._clock = clock
        self._size = options.size
        self._end = None if options.max_time is None else clock.monotonic() + options.max_time
        self._seal = Seal(keyring.secret(store.id, make=True, lasting=False), store.id)
        self._me = process.me("supervisor", clock, crew=name, size=options.size)
        self._threads: list[Thread] = []
        self._fill()
        self._beat()

    def run(self) -> None:
        tick = threading.Event()
        while self._threads and first_of_crew(self._me.crew, self._me, self._store.processes()).id == self._me.id:
            tick.wait(TICK)
            self._beat()
        for thread in self._threads:
            thread.slot.stop()
        self._store.leave([self._me.id, *(thread.info.id for thread in self._threads)])
        listen_no_more()

    def _fill(self) -> None:
        while sum(not thread.slot.told_to_stop for thread in self._threads) < self._size:
            info = process.me("worker", self._clock, supervisor=self._me.id)
            self._store.renew([info])
            thread = Thread(self._store, self._seal, info, self._options, self._end, self._clock)
            self._threads.append(thread)
            thread.start()

    def _beat(self) -> None:
        ended = [thread for thread in self._threads if not thread.is_alive()]
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._store.leave([thread.info.id for thread in ended])
        said = [thread.said() for thread in self._threads]
        for order in self._store.renew([msgspec.structs.replace(self._me, size=self._size), *said]):
            self._obey(order)

    def _obey(self, order: Order) -> None:
        staying = [thread for thread in self._threads if not thread.slot.told_to_stop]
        if isinstance(order, Stop):
            self._size = 0
            if order.now:
                self._store.leave([thread.info.id for thread in staying])
        else:
            self._size = max(order.size, self._size) if order.at_least else order.size
        for thread in staying[self._size :]:
            thread.slot.stop()
        self._fill()


class Thread(threading.Thread):
    """One worker."""

    def __init__(
        self, store: Store, seal: Seal, info: WorkerInfo, options: CrewOptions, end: float | None, clock: Clock
    ) -> None:
        super().__init__(name=f"jug_notebook worker {info.id}", daemon=True)
        self.info = info
        self.slot = Slot()
        self._store = store
        self._seal = seal
        self._options = options
        self._end = end
        self._clock = clock

    def run(self) -> None:
        work(
            self._store,
            self._seal,
            self.info,
            self.slot,
            clock=self._clock,
            target=self._options.target,
            max_tasks=self._options.max_tasks,
            deadline=self._end,
            stop=lambda: self.slot.told_to_stop,
            listener=Overheard(),
            guest=True,
            wait=TICK,
        )

    def said(self) -> WorkerInfo:
        running = self.slot.read()
        return msgspec.structs.replace(
            self.info,
            task=running.grant.key if running else "",
            task_name=running.name if running else "",
            since=running.started if running else 0.0,
            progress=running.progress if running else (0, 0),
            done=self.slot.done,
        )
