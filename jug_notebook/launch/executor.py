"""Workers on whatever takes a function and runs it elsewhere: an executor, a Dask client, a batch system's queue.

What is submitted is a `WorkerJob`: it runs one supervisor with one worker in a process beside the engine, until that
ends, or the engine does. So limits, heartbeats and lost workers are handled there as on any host. Security: this gives
those who run the engines permission to run code as you, and the reverse.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import msgspec
from blake3 import blake3

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import LaunchError, StoreError
from jug_notebook.launch import STARTING, Crew, WorkerGroup
from jug_notebook.launch.local import environment
from jug_notebook.launch.remote import BOOT, Report, Request, answers, mirror_of
from jug_notebook.model import Stop, WorkerInfo
from jug_notebook.render import plural
from jug_notebook.store import Store, keyring, split
from jug_notebook.worker import WorkerOptions
from jug_notebook.worker.crew import send_order
from jug_notebook.worker.notices import notices

TICK = 0.1  #: seconds between two looks for workers that were stopped before they started
LOST = 30.0  #: seconds for which an engine that is gone may come again: Dask runs what was lost elsewhere


class JobFuture(Protocol):
    """What an executor gives back for what was submitted."""

    def done(self) -> bool: ...

    def cancel(self) -> Any: ...

    def exception(self) -> BaseException | None: ...


class ExecutorAdapter(NamedTuple):
    """What we need of an executor. ``carries_keys``: what is submitted isn't written to a disk."""

    name: str  #: the same executor has the same name
    place: str
    size: int  #: how many it can run at once; 0 where that is unknown
    submit: Callable[[WorkerJob], JobFuture]
    carries_keys: bool = True
    ends_with_us: bool = False  #: its engines end with this process, which waits for them
    batch: Callable[[], AbstractContextManager[None]] = nullcontext  #: in it, what is submitted is submitted at once


class WorkerJob:
    """One worker on an engine. Called there, it returns when the worker has ended."""

    def __init__(self, request: Request) -> None:
        self._request = msgspec.json.encode(request).decode()

    def __repr__(self) -> str:
        return "<a jug_notebook worker>"  # executors write down what they run, and it holds a key

    def __call__(self) -> str:
        """Raises LaunchError where no worker could be started."""
        run = "import sys, json; exec(json.loads(sys.stdin.readline()))"
        with tempfile.TemporaryFile() as errors:
            ran = subprocess.Popen(
                [sys.executable, "-c", run, "jug-notebook", "worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, env=environment(),
            )  # fmt: skip
            assert ran.stdin is not None
            assert ran.stdout is not None
            try:
                ran.stdin.write(f"{json.dumps(BOOT)}\n{self._request}\n".encode())
                ran.stdin.flush()
                replies = answers(ran.stdout.readlines())  # to its end; it ends when our end of its input is gone
                status = ran.wait()
            finally:
                with suppress(BrokenPipeError):
                    ran.stdin.close()
                ran.stdout.close()
                ran.wait()
            checks = tuple(check for answer in replies for check in answer.checks)
            failure = Report(system.host(), checks).failure
            errors.seek(0)
            message = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        if not failure and any(answer.supervisor for answer in replies):
            return f"ended with status {status}"
        raise LaunchError(failure or f"{system.host()}: no worker could start: {message or f'status {status}'}")

    def checkpoint(self) -> Any:
        """For submitit: a job that is pre-empted is queued again."""
        return importlib.import_module("submitit.helpers").DelayedSubmission(self)


def adapter_of(on: Any) -> ExecutorAdapter:
    """Raises LaunchError for what can't run anything."""
    kind = type(on).__name__
    here = f"{system.host()}-{os.getpid()}-{id(on):x}"
    if hasattr(on, "scheduler_info") and hasattr(on, "submit"):
        return _dask(on)
    if hasattr(on, "apply_async") and hasattr(on, "client"):  # a view of ipyparallel's
        engines = on.client.executor(on.targets)
        return ExecutorAdapter(f"on-{kind}-{here}", "ipyparallel", len(on), engines.submit)
    if hasattr(on, "ids") and hasattr(on, "executor"):  # a client of ipyparallel's
        return ExecutorAdapter(f"on-{kind}-{here}", "ipyparallel", len(on.ids), on.executor().submit)
    if not hasattr(on, "submit"):
        raise LaunchError(
            f"{kind} {on!r:.60} can't run workers: it has no submit(); give a Dask client, an executor, a submitit "
            "executor or an ipyparallel view"
        )
    if hasattr(on, "update_parameters"):  # submitit's: what is submitted lies in a folder that others may read
        about = str(getattr(on, "folder", id(on))), sorted(map(str, getattr(on, "parameters", {}).items()))
        name = blake3(str(about).encode()).hexdigest(length=6)
        where = str(getattr(on, "cluster", "")) or "submitit"
        return ExecutorAdapter(f"on-submitit-{name}", where, 0, on.submit, carries_keys=False, batch=on.batch)
    size = getattr(on, "_max_workers", 0)
    return ExecutorAdapter(
        f"on-{kind}-{here}", kind.strip("_"), int(size or 0), on.submit, ends_with_us=isinstance(on, Executor)
    )


def _dask(client: Any) -> ExecutorAdapter:
    if getattr(client, "asynchronous", False):
        raise LaunchError("that Dask client is asynchronous; give one that isn't: Client(address)")
    all_workers = {"n_workers": -1} if "n_workers" in inspect.signature(client.scheduler_info).parameters else {}
    info = client.scheduler_info(**all_workers)
    distributed = importlib.import_module("distributed")

    def submit(job: WorkerJob) -> JobFuture:
        future: JobFuture = client.submit(job, key=f"jug-worker-{uuid4().hex[:12]}", pure=False)
        distributed.fire_and_forget(future)  # it goes on when this client leaves
        return future

    size = sum(worker.get("nthreads", 1) for worker in info["workers"].values())
    return ExecutorAdapter(f"on-dask-{info['id']}", "Dask", size, submit)


class ExecutorGroup(WorkerGroup):
    """The workers of one crew on an executor: each a supervisor with one worker, under a name of its own."""

    begins_once = False  # some may work while others wait in a queue

    def __init__(self, store: Store, adapter: ExecutorAdapter, options: WorkerOptions, clock: Clock) -> None:
        super().__init__(store, adapter.name + options.suffix, adapter.place, clock=clock)
        self.over.set()
        self._adapter = adapter
        self._options = options
        self._futures = _open.setdefault(f"{store.id} {self.name}", {})
        self._seen: dict[str, float] = {}
        self._leaving: set[str] = set()  # asked to end
        self._ends_with_us = False

    def holds(self, supervisor: WorkerInfo) -> bool:
        return supervisor.crew.startswith(self.name + "#")

    def have(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        """Submit what is missing."""
        self._prune()
        names = ({info.crew for info in supervisors} | set(self._futures)) - self._leaving
        missing = size - len(names)
        before = len(names)
        self.size = max(size, before)
        submitted: dict[str, JobFuture] = {}
        try:
            with self._adapter.batch() if missing > 1 else nullcontext():
                for _ in range(missing):
                    name = f"{self.name}#{uuid4().hex[:8]}"
                    submitted[name] = self._adapter.submit(WorkerJob(self._request(name)))
        except Exception as error:  # each executor has its own exceptions for what it refuses
            if self._adapter.batch is not nullcontext:
                submitted.clear()  # none of a batch was
            raise LaunchError(f"{self.place}: {_last_line(error)}") from error
        finally:
            self._futures |= submitted
        if missing > 0 and self._adapter.ends_with_us and not self._ends_with_us:
            self._ends_with_us = True
            _before_the_end(self._cut)  # registered after the executor's own wait, so it runs first
        if missing <= 0:
            message = f"{before} worker{' is' if before == 1 else 's are'} there already"
        else:
            message = f"asked for {plural(missing, 'worker')}"
            message += f" more: {size} in all" if before else ""
        self.message = f"{self.place}: {message}"

    def _request(self, name: str) -> Request:
        return Request(
            python=system.python(),
            version=system.VERSION,
            url=self.store.url,
            store=self.store.id,
            crew=name,
            place=self.place,
            secret=keyring.secret(self.store.id).hex() if self._adapter.carries_keys else "",
            options=msgspec.structs.replace(self._options, size=1),
            notices=notices(self.store.id) if self._adapter.carries_keys else (),
            also=mirror_of(self.store, secret=self._adapter.carries_keys),
            stay=True,
            lasting=False,
        )

    def is_starting(self, supervisors: Sequence[WorkerInfo], workers: Sequence[WorkerInfo]) -> bool:
        now = self.clock.monotonic()
        alive = {info.crew for info in supervisors}
        self._seen.update(dict.fromkeys(alive, now))
        self._prune()
        return any(
            name not in alive and now - self._seen.get(name, now) < LOST
            for name in self._futures.keys() - self._leaving
        ) or super().is_starting(supervisors, workers)

    def _prune(self) -> None:
        """Forget what has ended; keep why, where it ended badly."""
        for name, future in list(self._futures.items()):
            if not future.done():
                continue
            del self._futures[name]
            try:
                wrong = future.exception()
            except (CancelledError, Exception) as error:  # each executor has its own exception for that
                wrong = error
            if wrong is not None and name not in self._leaving:
                self.failure = f"{self.place}: {_last_line(wrong)}"

    def scale(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        self._prune()
        supervisors = [info for info in supervisors if info.crew not in self._leaving]
        alive = {info.crew for info in supervisors}
        waiting = [name for name in self._futures if name not in alive | self._leaving]
        surplus = len(alive) + len(waiting) - size
        for name in waiting[: max(0, surplus)]:
            _called_off(self._futures.pop(name))
            surplus -= 1
        if surplus > 0:
            busy = {info.supervisor for info, lives, _ in self.store.processes() if lives and info.task}
            idle_first = sorted(supervisors, key=lambda info: info.id in busy)
            send_order(self.store, idle_first[:surplus], Stop())
            self._leaving.update(info.crew for info in idle_first[:surplus])
        self.have(size, supervisors)
        self.size = size

    def stop(self, now: bool, supervisors: Sequence[WorkerInfo]) -> None:
        alive = {info.crew for info in supervisors}
        unregistered = {name for name in self._futures.keys() - alive if not _called_off(self._futures.pop(name))}
        super().stop(now, supervisors)
        self._leaving |= alive
        if unregistered:
            threading.Thread(target=self._see_off, args=(unregistered, now), name="jug-pool", daemon=True).start()

    def _see_off(self, unregistered: set[str], now: bool) -> None:
        """What has started on an engine can't be cancelled: it gets an order to end once it has registered."""
        tick, until = threading.Event(), self.clock.monotonic() + STARTING
        with suppress(StoreError, OSError):  # the store was closed: workers that start now end by themselves
            while unregistered and self.clock.monotonic() < until:
                registered = [info for info, alive, _ in self.store.processes() if alive and info.crew in unregistered]
                send_order(self.store, registered, Stop(now))
                unregistered -= {info.crew for info in registered}
                tick.wait(TICK)

    def _cut(self) -> None:
        """This process ends, and would wait for engines that wait for workers."""
        with suppress(Exception):
            alive = [info for info, lives, _ in self.store.processes() if lives and info.kind == "supervisor"]
            self.stop(True, [info for info in alive if self.holds(info)])


def _last_line(error: BaseException) -> str:
    """Return the last line of an error: where an executor hands on what went wrong elsewhere, it ends with that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -=")]
    return (lines[-1].partition("LaunchError: ")[2] or lines[-1])[:300] if lines else type(error).__name__


def _called_off(future: JobFuture) -> bool:
    """True where it will not begin."""
    try:
        return future.cancel() is True
    except Exception:  # each executor has its own exception where it was closed
        return True


_open: dict[str, dict[str, JobFuture]] = {}  # by store and crew: who asks again for the same asks for these


def _before_the_end(act: Callable[[], None]) -> None:
    """Do something before executors are waited for, which is before ``atexit``."""
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        with suppress(RuntimeError):  # it ends already
            register(act)


def launch(store: Store, options: WorkerOptions, on: Any, clock: Clock = CLOCK) -> Crew:
    """Have ``options.size`` workers on an executor (0: as many as it can run at once)."""
    if split(store.url)[0] == "memory":
        raise LaunchError("memory: lives in this process alone, so no executor can see it; use a folder: %jug_store")
    adapter = adapter_of(on)
    size = options.size or adapter.size
    if not size:
        raise LaunchError(f"{adapter.place} doesn't report how many workers it can run; give a number: -n N")
    group = ExecutorGroup(store, adapter, options, clock)
    crew = Crew(store, [group], clock)
    group.have(size, crew.supervisors)
    return crew
