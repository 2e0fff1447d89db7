"""The workers of a session: start, scale, stop and wait for them, work in this process, or only plan what would run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jug_notebook import system
from jug_notebook.errors import LaunchError, NoSuchTask
from jug_notebook.launch import start
from jug_notebook.model import (
    OPEN_STATES,
    Claim,
    FunctionView,
    Load,
    Scale,
    Settlement,
    State,
    Stop,
    Target,
    WorkerInfo,
    seconds_to_run,
)
from jug_notebook.render import duration, plural
from jug_notebook.render.format import size
from jug_notebook.session.access import StoreAccess
from jug_notebook.session.queries import seconds_of_cores, undelayed, usual
from jug_notebook.session.results import Results
from jug_notebook.session.targets import TargetResolver, graph_of
from jug_notebook.store import PATIENCE
from jug_notebook.worker import WorkerOptions, number_of_workers
from jug_notebook.worker.crew import engage, send_order
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.loop import FailureWatcher, work_in_process
from jug_notebook.worker.resources import find_memory

if TYPE_CHECKING:
    from jug_notebook.launch import Crew
    from jug_notebook.launch.remote import Preflight

OVERHEAD = 0.0003  #: seconds that a worker takes to claim a task and to settle it
LOOK = 0.2  #: seconds between two looks at workers that end


class Workers:
    """Starts, scales, stops and waits for the workers of a session."""

    def __init__(self, access: StoreAccess, targets: TargetResolver, results: Results, headless: bool) -> None:
        self._access = access
        self._targets = targets
        self._results = results
        self.crews = access.crews  #: those that this session started, and batch jobs of earlier ones
        self.crews += start.submitted(access.store, access.clock)
        self._noted = self.found = len(self.crews)  #: crews of earlier processes
        self.stopped: list[str] = []  #: what the last `stop` did besides, a line each
        self.headless = headless  #: nobody watches: they end with the session

    def execute(
        self, workers: int | None = None, *, hosts: Iterable[str | Path] = (), on: Any = None,
        slurm: Mapping[str, Any] | bool | None = None, wait: bool = False, target: Any = None, not_target: Any = None,
        max_tasks: int | None = None, max_time: float | None = None, idle_timeout: float = 600,
        keep_attached: bool | None = None, wait_for_workers: float | None = None, keep_going: bool = True,
        memory_limit: int | None = None, gpus: str | Sequence[str] | None = None,
        resources: Mapping[str, float | str] | str = {}, env: Mapping[str, str] | Sequence[str] = {},
        python: str | None = None, setup: str | None = None, remote_dir: str | None = None, dry_run: bool = False,
        patience: float = PATIENCE, notify: str | Sequence[str] = (), notify_after: float = 0.0, here: bool = False,
        namespace: Mapping[str, Any] | None = None,
    ) -> Crew:  # fmt: skip
        """Start workers in the background: on this host, on ``hosts``, or ``on`` an executor. Return their `Crew`.

        It doesn't wait for them, except with ``wait``: until this notebook's tasks are done.

        ``workers``: how many to have on each host (default: one per core); asking again starts no duplicates.
        ``target``: run only these tasks and what they need; ``not_target``: all but these.
        ``max_tasks``: per worker; ``max_time``: seconds for all; ``memory_limit``: bytes per task.
        ``idle_timeout``: seconds after which workers end if they have nothing to do. ``keep_attached``: keep them while
        a session is open (default: yes, except ``on`` an executor or with ``slurm``, where idle ones may cost money).
        ``wait_for_workers``: how many seconds, from now on, to wait for results while no worker is running.
        ``gpus``: ids of the GPUs that tasks may use, "0,1" (default: all that are found); ``resources``: what else a
        host has, {"license": 2}, or less "mem"; tasks that need more than is free wait.
        ``env``: environment variables for workers, {"OMP_NUM_THREADS": "4"}; everyone on the host can read them.
        ``patience``: how many seconds to wait for the store's server when it is away.
        ``notify``: where to send a line when everything that was requested has ended, when nothing can go on, or when
        no worker is left: a shell command, a URL, "desktop", "env:NAME", "@FILE"; not for work of less than
        ``notify_after`` seconds. ``keep_going=False``: once a task has failed for good, workers end after their tasks.
        ``hosts``: reached by ssh, each "host", "user@host", "user@host:8", or a Path of a file with one per line.
        ``python``, ``setup``, ``remote_dir``: there, the Python to run, shell commands to run first, and the folder
        that stands for this notebook's ("/there") or for another ("/here=/there").
        ``on``: an object with ``submit``: a Dask client, an executor (also submitit's), an ipyparallel view. Security:
        this gives those who run it permission to run code as you, and the reverse.
        ``slurm``: as jobs of one worker each, a dict: see `jug_notebook.launch.slurm.Settings`.
        ``dry_run``: start nothing; the crew's ``plan`` and text say what would run. ``here``: work in this process.

        Raises LaunchError; failures on other hosts are in `Crew.failures`.
        """
        workers = None if workers is None else number_of_workers("workers", workers)
        if here and not dry_run:
            if gpus is not None or resources or notify:
                raise LaunchError(
                    "here=True takes no gpus, resources or notify, which are for workers: start some, or leave them out"
                )
            self.run_here(target, max_tasks, max_time, namespace, keep_going=keep_going, not_target=not_target)
            return self._no_crew()
        attached = on is None and not slurm if keep_attached is None else keep_attached
        options = self.options(
            target, not_target, namespace, remote_dir, setup, python, idle_timeout=idle_timeout, keep_attached=attached,
            max_tasks=max_tasks, max_time=max_time, memory_limit=memory_limit, keep_going=keep_going, gpus=gpus,
            resources=resources, env=env, patience=patience,
        )  # fmt: skip
        self.notify(notify, notify_after, dry_run, hosts := start.read_words(hosts))
        if dry_run:
            if on is not None:
                raise LaunchError("dry_run can't look into an executor: leave 'on' out")
            return self._no_crew(self.dry_run(workers, options, hosts, slurm))
        if wait_for_workers is not None:
            self._results.wait_for_workers = system.not_negative("wait_for_workers", wait_for_workers)
        return self._start(workers, options, hosts, on, slurm, wait)

    def notify(
        self,
        targets: str | Sequence[str],
        after: float = 0.0,
        dry_run: bool = False,
        hosts: Iterable[str | Path] = (),
    ) -> None:
        """Have supervisors report what comes of the tasks in this store; see `execute`. Raises LaunchError.

        With ``dry_run`` the targets are only checked. Targets go to this host, and to ``hosts`` with what is started
        there; a line to standard error names others whose workers run already.
        """
        from jug_notebook.worker import notices, notifier

        access, found = self._access, notices.targets_in(targets)
        if found and access.store.url.startswith("memory:"):
            raise LaunchError("notify: 'memory:' ends with this process; use a folder: %jug_store jugdata")
        after = system.not_negative("notify_after", after)
        if dry_run:
            return
        self._targets.flush()
        notifier.ask(access.store, found, access.file, after)
        if found and (others := self._elsewhere(hosts)):
            print(
                f"notify: workers that run on {', '.join(others)} can send nothing there, unless these hosts share "
                "this home folder: if all others may end before them, name these hosts again, too",
                file=sys.stderr,
            )

    def _elsewhere(self, hosts: Iterable[str | Path]) -> list[str]:
        """Return the other hosts whose workers run already, but for these."""
        named = {host.place for host in start.read_hosts(hosts, self._access.folder)}
        there = [info for info, alive, _ in self._access.store.processes() if alive and info.kind == "supervisor"]
        return sorted({info.where for info in there if info.host != system.host() and info.place not in named})

    def unreported(self) -> str:
        """Return, once, what workers that were killed were to notify of, in a line; "" where there is nothing."""
        from jug_notebook.store.event_log import EventLogStore
        from jug_notebook.worker import notifier

        store = self._access.store
        return notifier.unreported(store, self._access.process.python) if isinstance(store, EventLogStore) else ""

    def _no_crew(self, plan: str = "") -> Crew:
        from jug_notebook.launch import Crew

        return Crew(self._access.store, clock=self._access.clock, plan=plan)

    def headless_note(self) -> str:
        """Return, once for the crews started since the last call, that they end with a headless run; else nothing."""
        fresh, self._noted = self.crews[self._noted :], len(self.crews)
        lasting = self.headless and not self._access.store.url.startswith("memory:")  # there they always end with it
        ends = lasting and any(crew.is_starting or crew.supervisors for crew in fresh)
        return "headless run: its workers stop when it ends" if ends else ""

    def _start(
        self, workers: int | None, options: WorkerOptions, hosts: Iterable[str | Path], on: Any, slurm: Any, wait: bool
    ) -> Crew:
        store, clock, folder = self._access.store, self._access.clock, self._access.folder
        named = start.read_hosts(hosts, folder)
        if workers is None:  # elsewhere, each host counts its own cores
            workers = 0 if named or slurm or on is not None else system.cores()
        crew = start.start(store, folder, msgspec.structs.replace(options, size=workers), named, on, slurm, clock)
        self.crews.append(crew)
        if wait:
            self.barrier()
        return crew

    def options(
        self,
        target: Any = None,
        not_target: Any = None,
        namespace: Mapping[str, Any] | None = None,
        remote_dir: str | None = None,
        setup: str | None = None,
        python: str | None = None,
        **options: Any,
    ) -> WorkerOptions:
        """Return what `execute` asks of workers when it gets these options. Raises LaunchError, NoSuchTask."""
        self._targets.flush()
        wanted = self._target(target, namespace, not_target)
        remote_dir, setup, python = (
            _text(name, given) for name, given in (("remote_dir", remote_dir), ("setup", setup), ("python", python))
        )
        folders = start.folders_of(remote_dir, self._access.folder)
        return WorkerOptions(
            setup=setup or "", python=python, folders=folders, tied_to=self._tied_to, target=wanted, **options
        )

    def _target(self, target: Any, namespace: Mapping[str, Any] | None, not_target: Any = None) -> Target | None:
        wanted = Target() if target is None else self._targets.target(target, namespace)
        if target is not None and not wanted.names and not wanted.keys:
            raise NoSuchTask(f"target={target!r:.60} holds no task; for all tasks leave it out")
        if not_target is not None:
            left_out = self._targets.target(not_target, namespace)
            wanted = msgspec.structs.replace(wanted, not_names=left_out.names, not_keys=left_out.keys)
        return None if wanted == Target() else wanted

    @property
    def _tied_to(self) -> str:
        return self._access.process.id if self.headless else ""

    def dry_run(
        self,
        workers: int | None,
        options: WorkerOptions,
        hosts: Sequence[str | Path] = (),
        slurm: Mapping[str, Any] | bool | None = None,
        steady: bool = False,
    ) -> str:
        """Return what `execute` would run, problems on each host, and what Slurm would be asked for.

        ``steady``: the same text in every run. Raises LaunchError.
        """
        here = not hosts and not slurm
        lines = [self._plan(workers, options, here).text(timed=not steady, who=here)]
        options = msgspec.structs.replace(options, size=workers or 0)
        if slurm:
            asked = start.dry_run(self._access.store, options, hosts, slurm, self._access.clock)
            lines += [asked, "nothing was submitted"]
        elif hosts:
            reports = self._look(hosts, options)
            if steady:
                lines += [report.failure or f"{report.place}: workers could start there" for report in reports]
            else:
                lines += ["", repr(reports)]
            lines.append("nothing was started")
        return "\n".join(lines)

    def plan(
        self,
        workers: int | None = None,
        *,
        target: Any = None,
        not_target: Any = None,
        namespace: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Return what `execute` would run with ``workers`` workers (default: one per core). Starts nothing."""
        return self._plan(workers, self.options(target, not_target, namespace))

    def _plan(self, workers: int | None, options: WorkerOptions, here: bool = True) -> Plan:
        from jug_notebook.launch import local

        access, wanted = self._access, options.target
        size = system.cores() if workers is None else number_of_workers("workers", workers)
        if wanted is None or not (wanted.names or wanted.keys or wanted.not_keys):
            functions = access.store.snapshot(access.scope).functions
            functions = tuple(view for view in functions if wanted is None or view.name not in wanted.not_names)
        else:
            functions, _ = graph_of(wanted, access.scope, access.store, access.signed)
        had = local.there(access.store, msgspec.structs.replace(options, size=size))
        runs = {view.name: run for view in functions if view.open and (run := usual(access, view.name, 0.0))}
        functions = tuple(undelayed(view, runs.get(view.name)) for view in functions)
        open_ones = [view for view in functions if view.open]
        least = access.store.longest_chain({view.name: view.mean or 0.0 for view in open_ones}, access.scope, wanted)
        if here:
            least = max(least, seconds_of_cores([(view.open, runs.get(view.name)) for view in open_ones]))
        measured = {name: run if run.memory.largest else usual(access, name) for name, run in runs.items()}
        peaks = {name: run.memory.p95 for name, run in measured.items() if run is not None}
        return Plan(functions, max(size, had), max(0, size - had), peaks, int(find_memory()[0]), least)

    def look(
        self,
        hosts: Iterable[str | Path],
        workers: int = 0,
        python: str | None = None,
        setup: str | None = None,
        remote_dir: str | None = None,
    ) -> Preflight:
        """Check whether workers could start on these hosts. Starts nothing. Raises LaunchError."""
        options = self.options(remote_dir=remote_dir, setup=setup, python=python)
        return self._look(hosts, msgspec.structs.replace(options, size=workers))

    def _look(self, hosts: Iterable[str | Path], options: WorkerOptions) -> Preflight:
        named = start.read_hosts(hosts, self._access.folder)
        return start.look(self._access.store, self._access.folder, options, named, self._access.clock)

    def run_here(
        self,
        target: Any = None,
        max_tasks: int | None = None,
        max_time: float | None = None,
        namespace: Mapping[str, Any] | None = None,
        *,
        keep_going: bool = True,
        not_target: Any = None,
        stop: Callable[[], bool] | None = None,
        each: Callable[[TaskRunner, Claim], Settlement | None] = TaskRunner.attempt,
    ) -> int:
        """Run tasks in this process, one by one, until none is left that can run. Return how many ran.

        What they print is displayed and stored. Without ``keep_going`` it ends with the first that fails for good.
        ``stop`` and ``each`` as in `worker.work`. Raises WaitInterrupted on Ctrl-C (the running task is given back),
        LaunchError for limits that make no sense.
        """
        limits = WorkerOptions(max_tasks=max_tasks, max_time=max_time)
        self._targets.flush()
        watcher = FailureWatcher(each)

        def over() -> bool:
            return (watcher.failed and not keep_going) or (stop is not None and stop())

        access = self._access
        wanted = self._target(target, namespace, not_target)
        return work_in_process(
            access.store, access.seal, access.clock, access.in_process, wanted, limits.max_tasks, limits.max_time,
            over, watcher,
        )  # fmt: skip

    def barrier(self) -> None:
        """Wait until none of this notebook's tasks waits or runs.

        Raises NoWorkers where tasks are left and no worker is alive, WaitInterrupted on Ctrl-C.
        """
        self._targets.flush()

        def busy() -> int:
            counts = self._access.store.snapshot(self._access.scope).counts
            return sum(counts[state] for state in OPEN_STATES)

        self._results.barrier(busy)

    def stop(self, now: bool = False, host: str | None = None) -> int:
        """Stop workers (of one ``host``) after their current task, or ``now``. Return how many will stop."""
        if host is not None and not isinstance(host, str):
            raise LaunchError(f"host={host!r:.60}: give the name of one host")
        alive = [info for info, alive, _ in self._access.store.processes() if alive and info.is_on(host)]
        supervisors = [info for info in alive if info.kind == "supervisor"]
        own = list({crew.name: crew for crew in self.crews}.values()) if host is None else []
        of_own = {info.id for crew in own for info in crew.supervisors}
        for crew in self.crews if host is None else ():  # also those that are still starting
            if crew in own:
                crew.stop(now)
            else:
                crew.abandon()
        self.stopped = [group.stopped for crew in own for group in crew.groups if group.stopped]
        if others := [info for info in supervisors if info.id not in of_own]:
            send_order(self._access.store, others, Stop(now))
        ending = [info for info in supervisors if not info.size] if now else []  # told before, and not there yet
        finishing = sum(info.kind == "worker" and info.supervisor in {one.id for one in ending} for info in alive)
        return sum(info.size for info in supervisors) + finishing

    def ended(self, patience: float, host: str | None = None) -> bool:
        """Wait until no worker (of one ``host``) is alive, at most ``patience`` seconds. Return whether none is."""
        store, clock, seen = self._access.store, self._access.clock, -1
        until = clock.monotonic() + patience
        while any(alive and info.kind == "worker" and info.is_on(host) for info, alive, _ in store.processes()):
            if (left := until - clock.monotonic()) <= 0:
                return False
            seen = store.watch(seen, min(left, LOOK))
        return True

    def add_workers(self, count: int = 1) -> int:
        """Have ``count`` more workers on this host than now. Return how many that makes. Raises LaunchError."""
        count = number_of_workers("count", count)
        store = self._access.store

        def alive(kind: str) -> list[WorkerInfo]:
            here = kind, system.host(), self._access.user
            return [info for info, alive, _ in store.processes() if alive and (info.kind, info.host, info.user) == here]

        def supervisors() -> list[WorkerInfo]:
            lasting = [info for info in alive("supervisor") if info.crew or info.size]  # without either, it is ending
            return [info for info in lasting if not info.place.startswith("Slurm")]  # a job has one worker

        found = supervisors()
        if found and engage(store, supervisors, Scale(found[0].size + count, at_least=True)):
            return count + sum(info.size for info in found)
        size = count + len(alive("worker"))
        self.execute(size)
        return size


def _text(name: str, given: Any) -> str | None:
    """Return a path or a text as a string. Raises LaunchError."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Path):
        return str(given)
    raise LaunchError(f"{name}={given!r:.60}: give a string or a Path")


class Plan(msgspec.Struct, frozen=True):
    """What would run: by function, with ``workers`` workers, of which ``started`` would be new.

    The mean of a function is that of runs with a core for each.

    ``peaks``: bytes that a task of each function usually takes at most; 0 where that isn't known. ``available``: the
    memory of this host. ``floor``: seconds that no number of workers goes below: those of the longest chain of tasks
    that need each other, and the processor time, by the cores of this host.
    """

    functions: tuple[FunctionView, ...]
    workers: int
    started: int
    peaks: dict[str, float] = {}
    available: int = 0
    floor: float = 0.0

    @property
    def to_run(self) -> int:
        """Number of tasks that would run, or are running."""
        return sum(view.open for view in self.functions)

    @property
    def stored(self) -> int:
        """Number of tasks whose values are stored."""
        return sum(view.counts.get(State.FINISHED, 0) for view in self.functions)

    @property
    def seconds(self) -> float | None:
        """Estimated time to run them all; None where a function has not been timed yet."""
        return None if any(view.open and view.mean is None for view in self.functions) else self.least

    @property
    def least(self) -> float:
        """Estimated time that is known of: of functions that have been timed, and of rates that limit others."""
        loads = [
            Load(view.open, 0.0 if view.mean is None else view.mean + OVERHEAD, limits=view.limits)
            for view in self.functions
            if view.open
        ]
        return max(self.floor, seconds_to_run(loads, self.workers))

    @property
    def memory(self) -> float:
        """Estimated bytes that tasks take at once at most: of those that take most, one for each worker.

        Tasks whose memory was not measured, for they are short or new, count nothing.
        """
        free, total = self.workers, 0.0
        for view in sorted(self.functions, key=lambda view: -self.peaks.get(view.name, 0.0)):
            total += min(free, view.open) * self.peaks.get(view.name, 0.0)
            free -= min(free, view.open)
        return total

    def text(self, timed: bool = True, who: bool = True) -> str:
        """Return the plan for people, without times (``timed``) the same in every run; ``who`` adds the workers."""
        if not self.functions:
            return "no tasks yet: nothing would run" + (", no worker would be started" if who else "")
        left_out = sum(view.counts.get(s, 0) for view in self.functions for s in (State.FAILED, State.BLOCKED))
        lines = [f"{self.to_run:,} to run, {self.stored:,} stored" + (f", {left_out:,} failed" if left_out else "")]
        width = max(len(view.name) for view in self.functions)
        for view in self.functions:
            parts = [f"{view.open:,} to run"] if view.open else []
            for state, word in ((State.FINISHED, "stored"), (State.FAILED, "failed"), (State.BLOCKED, "blocked")):
                if view.counts.get(state):
                    parts.append(f"{view.counts[state]:,} {word}")
            if timed and view.open:
                parts.append("not timed yet" if view.mean is None else f"{duration(view.mean)} each")
            if parts:
                lines.append(f"  {view.name:<{width}}  {', '.join(parts)}")
        if who:
            lines.append(self._when() if timed else self._who())
        return "\n".join(lines)

    def _who(self) -> str:
        if not self.started:
            return f"{plural(self.workers, 'worker')} would run it, all running already; nothing was started"
        there = self.workers - self.started
        more = f", beside the {there} running" if there else ""
        return f"{plural(self.started, 'worker')} would be started{more}; nothing was started"

    def _when(self) -> str:
        seconds = self.seconds
        if not self.to_run:
            return self._who()
        time = f"about {duration(self.least)}"
        if seconds is None:
            time = f"at least {duration(self.least)}" if self.least >= 1 else "time unknown"
            time += ": not all functions have been timed"
        text = f"{self._who()}\n{time}, with {plural(self.workers, 'worker')}"
        if memory := self.memory:
            text += f", up to {size(memory)} of memory at once"
            if 0 < self.available < memory:
                text += f"; this host has {size(self.available)}: start fewer workers, or give resources={{'mem': …}}"
        return text

    def __repr__(self) -> str:
        return self.text()
