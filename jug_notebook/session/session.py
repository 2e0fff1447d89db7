"""A store as a notebook or a script uses it: the desk where tasks are handed in, and the verbs come together."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jug_notebook import render, system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.codec import Seal
from jug_notebook.errors import LaunchError, NoSuchTask, StoreError
from jug_notebook.keys import modules
from jug_notebook.launch import start
from jug_notebook.model import (
    BEAT,
    OPEN_STATES,
    Address,
    Failed,
    FailureKind,
    FunctionView,
    Key,
    Origin,
    Run,
    Scale,
    Scope,
    Snapshot,
    State,
    Stop,
    Target,
    TaskView,
    Why,
    WorkerInfo,
)
from jug_notebook.render.display import Listing, Outputs, Status, Text
from jug_notebook.render.display import Why as Answer
from jug_notebook.session import key_check
from jug_notebook.session.accept import Accepted, Accepting
from jug_notebook.session.cleanup import Cleaned, clean
from jug_notebook.session.closer import Closer
from jug_notebook.session.failing import KNOWN, FailureIndex
from jug_notebook.session.rerun import Rerun
from jug_notebook.session.results import Reader
from jug_notebook.session.submission import PENDING, CellReport, SubmissionQueue
from jug_notebook.session.targets import keys_of
from jug_notebook.session.why import WhyQuery
from jug_notebook.store import open_store, split
from jug_notebook.store.file import sharing
from jug_notebook.store.signed import SignedReader, secret_of, template
from jug_notebook.task import TaskFunction, context, definitions
from jug_notebook.task.context import FunctionVersion, PendingTask
from jug_notebook.task.handles import SHORT, Task, handle
from jug_notebook.task.values import TaskList
from jug_notebook.worker import WorkerOptions

if TYPE_CHECKING:
    from jug_notebook.launch import Crew
    from jug_notebook.launch.preflight import Preflight
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

AT_A_GLANCE = 60  #: so many failures are read for a picture that will be renewed
LOGS = 20  #: so many tasks are shown in one log


class Session(Closer):
    """A store in use by one notebook or script. `connect` makes it current; the verbs of ``jug_notebook`` act on that.

    Raises StoreError where the store can't be opened or its key isn't known.
    """

    def __init__(
        self,
        url: str | Path = "jugdata",
        *,
        notebook: str | Path | None = None,
        headless: bool = False,
        shared: str | None = None,
        clock: Clock = CLOCK,
        folder: Path | None = None,
        runner: str = "",
        read_only: bool = False,
    ) -> None:
        """``folder``: where tasks run, if not beside the notebook; ``runner`` calls those that name none; ``looking``:
        tasks that are made are named and not handed in, and nobody hears of the session.
        """
        self.notebook = notebook_path(notebook)
        self.folder = folder or notebook_folder(self.notebook)
        self.read_only = read_only
        self.headless = headless  #: nobody watches: `close` stops the crews that it started
        self.crews: list[Crew] = []  #: those that this session started
        self._clock = clock
        self._store = open_store(resolve_url(url, self.folder), clock)
        if shared is not None:
            sharing.join(self._store, shared, self._secret)
        self._seal = Seal(self._secret(), self._store.id)
        self._signed = SignedReader(self._store, self._seal)
        self._reader = Reader(self._store, self._signed, clock, self._starting)
        self._failures = FailureIndex(self._store, self._signed)
        self._scope = Scope(notebook=self.notebook)
        self._user = system.user()
        self._rerun = Rerun(self._store, self._signed, self._reader, self._user)
        self._in_process: list[Callable[[], WorkerInfo]] = []  # workers in this process, and how they are
        self._submissions = SubmissionQueue(
            self._store, self._seal, clock, self._user, self.notebook, self.folder, runner, read_only
        )  # fmt: skip
        modules.notice(self.folder)
        self._info = system.me("session", clock)
        self._ended = threading.Event()
        OPEN_SESSIONS.add(self)
        if read_only:
            return
        self._store.renew([self._info])
        self._pulse = threading.Thread(
            target=_beat, args=(weakref.ref(self), self._ended), name="jug-session", daemon=True
        )
        self._pulse.start()

    def _secret(self) -> bytes:
        advice = sharing.advice(self._store)
        try:
            return secret_of(self._store, make=not advice)
        except StoreError:
            if advice:
                raise StoreError(advice) from None
            raise

    # -- about itself --------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """This session among the processes of the store."""
        return self._info.id

    @property
    def url(self) -> str:
        """The store's URL, for other processes. May hold a password; `shown` does not."""
        return self._store.url

    @property
    def display_url(self) -> str:
        """The store's URL for people: short, and without a password."""
        scheme, rest = split(self._store.url)
        if scheme == "file" and Path(rest).is_relative_to(self.folder):
            return f"file:{Path(rest).relative_to(self.folder)}"
        return self._store.display_url

    @property
    def identity(self) -> str:
        """Names the store for good."""
        return self._store.id

    @property
    def closed(self) -> bool:
        return self._ended.is_set()

    def __repr__(self) -> str:
        if self.closed:
            return f"<Session {self.display_url} · closed>"
        return f"<Session {self.display_url} · {self._reader.workers()} workers · {self.notebook}>"

    def close(self) -> None:
        """Hand in what is left, leave the store, and if headless stop the crews started here. Closing twice is fine."""
        if self.closed:
            return
        try:
            self._submissions.close()
        finally:
            self._ended.set()
            OPEN_SESSIONS.discard(self)
            if context.current is self:
                context.set_current(None)
            if self.headless:
                for crew in self.crews:
                    crew.stop()
            if not self.read_only:
                if self._pulse is not threading.current_thread():
                    self._pulse.join()
                self._store.leave([self._info.id])
            self._store.close()

    # -- handing in tasks ----------------------------------------------------------------------------------------------

    def function_version(self, function: TaskFunction) -> FunctionVersion:
        """See `SessionProtocol`."""
        return self._submissions.function_version(function)

    def former(self, version: FunctionVersion) -> bool:
        """See `SessionProtocol`."""
        return self._submissions.former(version)

    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """See `SessionProtocol`."""
        return self._submissions.put(parts)

    def add(self, pending_tasks: Sequence[PendingTask]) -> None:
        """See `SessionProtocol`."""
        self._submissions.add(pending_tasks)

    def name_files(self, label_of: Callable[[str], str | None]) -> None:
        """Give code that isn't in a real file a name for people, which tracebacks show: "Cell In[3]"."""
        self._submissions.label_of = label_of

    def watch(self, seen: int, timeout: float) -> int:
        """Wait until the store's version differs from ``seen``, at most so many seconds; answer the version now."""
        return self._store.watch(seen, timeout)

    def flush(self) -> None:
        """Hand in the tasks that were made and not handed in yet. In a script, raises as `end_cell` does."""
        self._submissions.flush()

    def begin_cell(self, cell: str) -> None:
        """A cell starts to run: tasks made until `end_cell` are its."""
        self._submissions.begin_cell(cell)

    def end_cell(self, success: bool = True) -> CellReport:
        """The cell has run: hand in its tasks, and take back what it, or a redefined function, no longer makes.

        A cell that failed (``success=False``) has made only part of its tasks, so nothing is taken back. Raises
        ChangedInCell, naming what changed, where a function's code or globals changed after its first call in the cell;
        its tasks are taken back.
        """
        modules.notice(self.folder)
        report = self._submissions.end_cell(success)
        workers = self._reader.workers() or int(self._starting()) if report.queued else 0
        return msgspec.structs.replace(report, workers=workers)

    def made(self) -> list[tuple[Task, tuple[Key, ...]]]:
        """The tasks that the cell that runs has made so far, each with the keys of what it needs."""
        return [(handle(self, version, key, needs, ""), needs) for key, version, needs in self._submissions.made()]

    def check_keys(self, on: bool = True) -> None:
        """From now on keep some calls of each function, for `unstable_keys`; or no longer."""
        if on != (self._submissions.sample is not None):
            self._submissions.sample = {} if on else None

    def unstable_keys(self) -> list[str]:
        """Name the calls kept since the last time again, in a second process under another hash seed.

        Answers a line for each argument or global that has another name there. Takes the time of starting a process.
        """
        kept = self._submissions.sample
        if not kept:
            return []
        self._submissions.sample = {}
        return key_check.unstable(key_check.sampled(kept, self._store, self.folder))

    def _starting(self) -> bool:
        return any(crew.starting for crew in self.crews)

    # -- what handles ask ----------------------------------------------------------------------------------------------

    def states(self, keys: Sequence[Key]) -> list[State]:
        """See `SessionProtocol`. A task that the store doesn't know (any more) counts as cancelled."""
        self.flush()
        return [state or State.CANCELLED for state in self._store.states(keys)]

    def ended_before(self, key: Key) -> bool:
        """Has a task that was made just now ended already? Looked at before it is handed in: workers may be quick."""
        [state] = self._store.states([key])
        self.flush()
        return state in (State.FINISHED, State.FAILED)

    def views(self, keys: Sequence[Key]) -> list[TaskView]:
        """See `SessionProtocol`."""
        self.flush()
        return self._signed.views(keys, filled=True)

    def collect(
        self, keys: Sequence[Key], *, wait: bool, timeout: float | None = None, strict: bool = True, mmap: bool = False
    ) -> list[Any]:
        """See `SessionProtocol`."""
        self.flush()
        return self._reader.collect(keys, wait, timeout, strict, mmap, self._user)

    def settle(self, keys: Sequence[Key], timeout: float | None = None, first: bool = False) -> bool:
        """See `SessionProtocol`."""
        self.flush()
        return self._reader.settle(keys, timeout, first)

    async def settled(self, key: Key) -> None:
        """See `SessionProtocol`."""
        self.flush()
        await self._reader.settled(key)

    def needs(self, key: Key) -> TaskList:
        """See `SessionProtocol`."""
        self.flush()
        [spec] = self._signed.specs([key])
        return TaskList(() if spec is None else self._found(spec.needs))

    def outputs(self, key: Key) -> Outputs:
        """See `SessionProtocol`."""
        self.flush()
        [outcome] = self._signed.outcomes([key])
        return Outputs(() if outcome is None else self._signed.pieces(outcome.run))

    def origin(self, key: Key, dated: bool = True) -> str:
        """Where and how long an ended task ran, in a line; ``dated``, when."""
        self.flush()
        [outcome] = self._signed.outcomes([key])
        return "" if outcome is None else render.origin_text(outcome.run, self._clock.now() if dated else None)

    def tail(self, key: Key) -> str:
        """How far a running task is, and the last that it printed, as its worker told with its last beat."""
        for info, alive, _ in self._store.processes():
            if alive and info.task == key:
                done, total = info.progress
                far = f"{done} of {total or '?'} done\n" if done or total else ""
                return f"{far}{info.tail}"
        return ""

    def _found(self, keys: Sequence[Key]) -> list[Task]:
        tasks = []
        for key, spec in zip(keys, self._signed.specs(keys), strict=True):
            if spec is None:
                raise NoSuchTask(f"no task {key[:SHORT]} in {self.display_url}")
            known = template(spec.template)
            version = FunctionVersion(known.name, None, known.code, spec.template, known.priority, known.nout)
            tasks.append(handle(self, version, key, spec.needs, spec.args_repr))
        return tasks

    # -- the verbs -----------------------------------------------------------------------------------------------------

    def resolve(self, target: Any, namespace: Mapping[str, Any] | None = None, all: bool = False) -> list[Task]:
        """The tasks that a target means, with ``all`` in the whole store: see `keys_of`.

        Raises NoSuchTask, which names what comes near.
        """
        if not all:
            return self._found(self._keys(target, namespace))
        self.flush()
        return self._found(keys_of(target, self._store, Scope(), namespace))

    def _keys(self, target: Any, namespace: Mapping[str, Any] | None) -> list[Key]:
        self.flush()
        keys = keys_of(target, self._store, self._scope, namespace)
        self.flush()  # the expression may have made some
        return keys

    def execute(
        self,
        workers: int | None = None,
        *,
        hosts: Iterable[str | Path] = (),
        on: Any = None,
        wait: bool = False,
        target: Any = None,
        max_tasks: int | None = None,
        max_time: float | None = None,
        idle_timeout: float = 600,
        keep_going: bool = True,
        memory_limit: int | None = None,
        python: str | None = None,
        setup: str | None = None,
        remote_dir: str | None = None,
        dry_run: bool = False,
        here: bool = False,
        namespace: Mapping[str, Any] | None = None,
    ) -> Crew:
        """Start workers in the background: on this host, on ``hosts``, or ``on`` an executor. Answers at once.

        ``workers`` is the total to have on each host with equal options (all cores, if not given); asking twice starts
        none twice. ``hosts`` are reached by ssh: "host", "user@host", "user@host:8", or a Path of a
        file with one a line. There, ``python`` is the Python to
        run, ``setup`` shell commands to run before, ``remote_dir`` where this notebook's folder is ("/there"), or
        another ("/here=/there"). ``on`` is whatever has a ``submit``: a Dask client, an executor (also submitit's), an
        ipyparallel view; whoever runs that can run code as you, and you as they.
        ``target`` runs these tasks and what they need, and no others; ``max_tasks`` and ``max_time`` (seconds) are a
        worker's and a crew's limits, ``memory_limit`` a task's in bytes; ``idle_timeout`` ends them so many seconds
        after the last session left with nothing to do. Without ``keep_going`` a host's workers end after their current
        tasks once one has failed for good. ``wait`` waits for this notebook's tasks. With ``dry_run`` none is started:
        the answer tells what would be. Nor is any with ``here``: see `run_here`. Raises LaunchError; what goes wrong on
        other hosts, `Crew.failures` tells.
        """
        from jug_notebook.launch import Crew

        if dry_run:
            if on is not None:
                raise LaunchError("dry_run looks at hosts; what an executor runs on only it knows")
            told = self.foretell(workers, list(hosts), target, python, setup, remote_dir, namespace)
            return Crew(self._store, clock=self._clock, plan=told)
        if here:
            self.run_here(target, max_tasks, max_time, namespace, keep_going=keep_going)
            return Crew(self._store, clock=self._clock)
        self.flush()
        named = start.read_hosts(hosts, self.folder)
        elsewhere = bool(named) or on is not None
        options = self._options(
            workers if workers is not None else 0 if elsewhere else start.cores(),
            idle_timeout=idle_timeout,
            max_tasks=max_tasks,
            max_time=max_time,
            memory_limit=memory_limit,
            keep_going=keep_going,
            target=None if target is None else self._target(target, namespace),
            python=python,
            setup=setup or "",
            remote_dir=remote_dir,
        )
        crew = start.start(self._store, self.folder, options, named, on, self._clock)
        self.crews.append(crew)
        if wait:
            self.barrier()
        return crew

    def foretell(
        self,
        workers: int | None = None,
        hosts: Sequence[str | Path] = (),
        target: Any = None,
        python: str | None = None,
        setup: str | None = None,
        remote_dir: str | None = None,
        namespace: Mapping[str, Any] | None = None,
        steady: bool = False,
    ) -> str:
        """What `execute` would run, and what is in the way on each host; ``steady``: the same in every run."""
        lines = [self.plan(workers, target=target, namespace=namespace).text(timed=not steady, who=not hosts)]
        if hosts:
            reports = self.look(hosts, workers or 0, python, setup, remote_dir)
            if steady:
                lines += [report.failure or f"{report.place}: workers could start there" for report in reports]
            else:
                lines += ["", repr(reports)]
            lines.append("nothing was started")
        return "\n".join(lines)

    def _options(self, size: int, remote_dir: str | None = None, **asked: Any) -> WorkerOptions:
        folders = start.folders_of(remote_dir, self.folder)
        return WorkerOptions(size, **asked, folders=folders, tied_to=self._info.id if self.headless else "")

    def look(
        self,
        hosts: Iterable[str | Path],
        workers: int = 0,
        python: str | None = None,
        setup: str | None = None,
        remote_dir: str | None = None,
    ) -> Preflight:
        """What would stand in the way of workers on these hosts. Starts nothing. Raises LaunchError."""
        self.flush()
        options = self._options(workers, remote_dir, python=python, setup=setup or "")
        named = start.read_hosts(hosts, self.folder)
        return start.look(self._store, self.folder, options, named, self._clock)

    def _target(self, target: Any, namespace: Mapping[str, Any] | None) -> Target:
        if isinstance(target, TaskFunction):
            return Target(names=frozenset([target.name]))
        if isinstance(target, str) and self._store.keys_named(target, self._scope):
            return Target(names=frozenset([target]))
        return Target(keys=frozenset(self._keys(target, namespace)))

    def barrier(self) -> None:
        """Wait until nothing of this notebook waits or runs. Raises NoWorkers if nobody works, WaitInterrupted."""
        self.flush()

        def busy() -> int:
            counts = self._store.snapshot(self._scope).counts
            return sum(counts[state] for state in OPEN_STATES)

        self._reader.barrier(busy)

    def status(self, all: bool = False) -> Status:
        """The picture now: this notebook's tasks, or with ``all`` the whole store's."""
        self.flush()
        scope = Scope() if all else self._scope
        failed = self._failures.latest(scope)
        picture = self._picture(scope, self._failures.kinds(failed))
        return Status(msgspec.structs.replace(picture, failures=self._failures.told(failed)))

    def glance(self, all: bool = False) -> Snapshot:
        """The picture for who looks again soon: few failures are read at a time, and none is told but by its kind."""
        self.flush()
        scope = Scope() if all else self._scope
        return self._picture(scope, self._failures.kinds(self._failures.latest(scope), AT_A_GLANCE))

    def _picture(self, scope: Scope, kinds: tuple[FailureKind, ...]) -> Snapshot:
        snapshot = self._store.snapshot(scope)
        coming = snapshot.starting or sum(max(1, crew.size) for crew in self.crews if crew.coming)
        notes = (*snapshot.notes, *(line for crew in self.crews[-1:] for line in crew.failures))
        return msgspec.structs.replace(snapshot, store=self.display_url, kinds=kinds, starting=coming, notes=notes)

    def status_of(self, keys: Sequence[Key]) -> Status:
        """The same of these tasks alone."""
        self.flush()
        wanted = set(keys)
        views = [view for view in self._store.tasks(target=Target(keys=frozenset(wanted))) if view.key in wanted]
        rows: dict[str, list[TaskView]] = {}
        for view in views:
            rows.setdefault(view.name, []).append(view)
        failed = sorted(
            (view for view in views if view.state is State.FAILED), key=lambda view: -view.started - view.duration
        )[:KNOWN]
        snapshot = msgspec.structs.replace(
            self._store.snapshot(self._scope),
            store=self.display_url,
            scope="these tasks",
            functions=tuple(_function_view(name, row) for name, row in rows.items()),
            failures=self._failures.told(failed),
            kinds=self._failures.kinds(failed),
        )
        return Status(snapshot)

    def tasks(
        self,
        target: Any = None,
        state: State | str | None = None,
        limit: int = 50,
        namespace: Mapping[str, Any] | None = None,
    ) -> Listing:
        """Tasks of this notebook (or those of a target) to look at, with arguments, results in short, errors."""
        self.flush()
        wanted = State(state) if isinstance(state, str) else state
        if target is None:
            views = self._store.tasks(self._scope, state=wanted)
        else:
            keys = dict.fromkeys(self._keys(target, namespace))
            found = self._store.tasks(target=Target(keys=frozenset(keys)))
            views = [view for view in found if view.key in keys and wanted in (None, view.state)]
        return Listing(self._signed.filled(views[:limit] if limit else views), len(views))

    def why(self, target: Any, namespace: Mapping[str, Any] | None = None) -> Answer:
        """Are these tasks stored; and where not, what changed since the nearest that are? Raises NoSuchTask."""
        keys = self._keys(target, namespace)
        return Answer(WhyQuery(self._store, self._signed, self._scope, _ignored).explain(keys), len(keys))

    def log(self, target: Any = None, host: str | None = None, namespace: Mapping[str, Any] | None = None) -> str:
        """What tasks printed, with the traceback of failed ones; without a target, of those that ended last.

        With ``host``, what the workers there said of themselves.
        """
        self.flush()
        if host is not None:
            return Text(self._host_log(host))
        if target is None:
            ended = [view for view in self._store.tasks(self._scope) if view.state in (State.FINISHED, State.FAILED)]
            ended.sort(key=lambda view: view.started + view.duration)
            keys = [view.key for view in ended]
            cut = keys[-LOGS:]
            parts = [f"… {len(keys) - len(cut)} tasks before"] if len(keys) > len(cut) else []
        else:
            keys = self._keys(target, namespace)
            cut = keys[:LOGS]
            parts = []
        parts += [self._task_log(view) for view in self._signed.views(cut)]
        if target is not None and len(keys) > len(cut):
            parts.append(f"… and {len(keys) - len(cut)} more tasks")
        return Text("\n".join(parts) or "nothing was run yet")

    def _task_log(self, view: TaskView) -> str:
        [outcome] = self._signed.outcomes([view.key])
        head = f"── {view.name}({view.args_repr}) · {view.state.value} · {view.key[:SHORT]}"
        if outcome is None:
            tail = self.tail(view.key).rstrip("\n") if view.state is State.RUNNING else ""
            return f"{head}\n{tail}" if tail else head
        run = outcome.run
        if outcome.key != view.key:
            head += f" · reused from {outcome.key[:SHORT]}"
        parts = [f"{head} · {run.duration:.3g} s on {run.host}, pid {run.pid}", self._said(run)]
        if isinstance(outcome, Failed):
            parts.append(outcome.traceback.rstrip("\n") or outcome.error)
        return "\n".join(part for part in parts if part)

    def _said(self, run: Run) -> str:
        return render.outputs_text(self._signed.pieces(run) if run.displays else run.output).rstrip("\n")

    def _host_log(self, host: str) -> str:
        there = [info for info, _, _ in self._store.processes() if info.is_on(host) and info.kind != "session"]
        if not there:
            raise NoSuchTask(f"no worker on host {host!r}; there are some on {', '.join(self.hosts()) or 'none'}")
        parts = []
        for info in there:
            text = self._store.log(info.id).rstrip("\n")
            if text:
                parts += [f"── {info.kind} {info.id}", text]
        return "\n".join(parts) or f"the workers on {host} said nothing"

    def stop(self, now: bool = False, host: str | None = None) -> int:
        """Stop the workers (of one host) after their current task, or ``now``. Answers how many were told."""
        told = [
            info
            for info, alive, _ in self._store.processes()
            if alive and info.kind == "supervisor" and info.is_on(host)
        ]
        own = {crew.name: crew for crew in self.crews}.values() if host is None else ()
        theirs = {info.id for crew in own for info in crew.supervisors}
        for crew in own:  # also those that are still on their way
            crew.stop(now)
        if others := [info for info in told if info.id not in theirs]:
            from jug_notebook.launch import tell

            tell(self._store, others, Stop(now))
        return sum(info.size for info in told)

    def add_workers(self, count: int = 1) -> int:
        """Have so many more workers on this host than there are; answers how many that makes. Raises LaunchError."""
        from jug_notebook.launch import tell

        here, user = system.host(), system.user()
        alive = [info for info, alive, _ in self._store.processes() if alive and (info.host, info.user) == (here, user)]
        led = [info for info in alive if info.kind == "supervisor"]
        if not led:
            size = count + sum(info.kind == "worker" for info in alive)
            self.execute(size)
            return size
        tell(self._store, led[:1], Scale(led[0].size + count, at_least=True))
        return count + sum(info.size for info in led)

    def retry(self, target: Any = None, namespace: Mapping[str, Any] | None = None, *, all: bool = False) -> int:
        """Try failed tasks again: all of this notebook (with ``all``, of the store), or those of a target and those
        they need. Answers how many.
        """
        self.flush()
        if target is None:
            keys = [view.key for view in self._store.tasks(Scope() if all else self._scope, state=State.FAILED)]
        else:
            meant = self._keys(target, namespace)
            blamed = dict(zip(meant, self._store.blocking_tasks(meant), strict=True))
            states = dict(zip(meant, self._store.states(meant), strict=True))
            culprits = [key if states[key] is State.FAILED else blamed[key] for key in meant]
            keys = list(dict.fromkeys(key for key in culprits if key is not None))
        return len(self._store.invalidate(keys, Why.RETRY, self._user)) if keys else 0

    def invalidate(self, target: Any, namespace: Mapping[str, Any] | None = None, *, all: bool = False) -> int:
        """These values are wrong: compute them again, and what was made from them. Answers how many were dropped.

        A function's name means its tasks of this notebook, or with ``all`` of the store.
        """
        self.flush()
        keys = keys_of(target, self._store, Scope() if all else self._scope, namespace)
        return len(self._store.invalidate(keys, Why.DIRECT, self._user)) if keys else 0

    def accept(
        self, target: Any, undo: bool = False, dry_run: bool = False, namespace: Mapping[str, Any] | None = None
    ) -> Accepted:
        """The code was edited, and what its former version made stands: open tasks take over its results.

        Those of the same function with equal arguments, on equal values of what they need. It is on record who said
        so, when, and whose results they are. ``undo`` takes that back; ``dry_run`` only tells. Raises NoSuchTask.
        """
        keys = self._keys(target, namespace)
        accepting = Accepting(self._store, self._seal, self._user)
        return (accepting.undo if undo else accepting.accept)(keys, self._clock.now(), dry_run)

    def cancel(self, target: Any, namespace: Mapping[str, Any] | None = None) -> int:
        """This notebook no longer wants these tasks: what has not started won't. Answers how many were taken back."""
        keys = self._keys(target, namespace)
        states = self._store.states(keys)
        unwanted = [k for k, state in zip(keys, states, strict=True) if state in PENDING or state is State.RUNNING]
        if unwanted:
            self._store.request(unwanted, Origin(self._user, self.notebook), False)
        return sum(state in PENDING for state in states)

    def cleanup(
        self,
        older_than: float | None = None,
        dry_run: bool = False,
        target: Any = None,
        namespace: Mapping[str, Any] | None = None,
    ) -> Cleaned:
        """Forget tasks that nobody wants any more, in any notebook, and remove what only they had stored.

        What is wanted stays, with all that it needs and all whose runs it has taken over, and so does what runs.
        ``older_than``: only tasks made and run before so many seconds; ``target``: only these; ``dry_run`` only tells.
        """
        among = None if target is None else set(self._keys(target, namespace))
        self.flush()
        bundles = self._submissions.bundles()
        return clean(self._store, self._clock.now(), among, older_than, bundles, dry_run)

    # -- the pulse -----------------------------------------------------------------------------------------------------

    def _beat_once(self) -> None:
        self._store.renew([self._info, *(said() for said in self._in_process)])
        self._submissions.hurry()


def _beat(session: weakref.ref[Session], ended: threading.Event) -> None:
    """Beat for a session until it ends or is forgotten, and hand in what a long cell left lying."""
    while not ended.wait(BEAT):
        alive = session()
        if alive is None:
            return
        try:
            alive._beat_once()
        except (StoreError, OSError):
            continue  # the next verb will meet it where it can be told
        del alive


def _function_view(name: str, views: Sequence[TaskView]) -> FunctionView:
    counts: dict[State, int] = {}
    for view in views:
        counts[view.state] = counts.get(view.state, 0) + 1
    durations = [view.duration for view in views if view.state is State.FINISHED]
    reused = sum(bool(view.source) for view in views)
    return FunctionView(name, counts, sum(durations) / len(durations) if durations else None, reused)


def _ignored(name: str) -> Iterable[str]:
    """The arguments of a function, as it is defined now, that don't count."""
    function = definitions.get(name)
    return () if function is None else function.ignore


# -- the session in use ------------------------------------------------------------------------------------------------


OPEN_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def resolve_url(url: str | Path, folder: Path) -> str:
    """A store's URL, with a relative path taken from the notebook's folder."""
    scheme, rest = split(str(url))
    return f"file:{folder / Path(rest).expanduser()}" if scheme == "file" and rest else str(url)


def notebook_path(given: str | Path | None) -> str:
    """The notebook's path: as given, as Jupyter says, or the working folder."""
    path = given or os.environ.get("JPY_SESSION_NAME") or "."
    return os.path.normpath(os.path.abspath(path))


def notebook_folder(notebook: str) -> Path:
    path = Path(notebook)
    if path.is_dir():
        return path
    return path.parent if path.parent.is_dir() else Path.cwd()
