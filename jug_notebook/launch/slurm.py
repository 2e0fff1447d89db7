"""Workers as jobs of Slurm: job arrays of one worker each, found again by their name, and as many as the work needs.

``sbatch``, ``squeue`` and ``scancel`` are called as they are: one call submits all jobs of a request, and one lists
them with their states and reasons. A library between would add a process to each job, and calls for each of them.

The queue itself is the record of what was submitted: a job's name names the store and the request, so a kernel that
starts anew finds its jobs, and doubles none, even where the last one ended between submitting and noting an id. Beside
that, the request lies in the store's folder as a file that only its user can read, with the logs of its jobs. The key
of the store isn't in it: jobs read that from the same home. Job scripts and command lines name the file, nothing else.

With ``up_to``, a small detached process of the submit host (`slurm_jobs.Scaler`) adds and ends jobs, for that is where
jobs can be submitted, and it needs neither a kernel nor a running job. It gets orders as a supervisor does.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3
from msgspec import Struct

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import LaunchError
from jug_notebook.launch import Crew, WorkerGroup
from jug_notebook.launch.local import environment
from jug_notebook.launch.remote import Check, Request, mirror_of
from jug_notebook.model import Scale, Stop, WorkerInfo
from jug_notebook.render import duration, parse_duration, plural
from jug_notebook.store import Store, atomic, keyring, split
from jug_notebook.worker import WorkerOptions, number_of_workers
from jug_notebook.worker.crew import engage, living, send_order

IDLE = 30.0  #: seconds with nothing to do after which a job ends, notebook or not: it costs money
MAX_ARRAY = 1000  #: jobs in one array; Slurm's own limit is 1001 unless set otherwise
LOOK = 2.0  #: seconds between two looks at the queue, or more where a look takes long
OLD = 5.0  #: seconds after which what was last seen of the queue is not displayed before another look
PATIENCE = 60.0  #: seconds that a command of Slurm may take
WAY_OUT = "--partition, --walltime, --mem, --gpus and --slurm-option change what is asked for"

TOO_LONG = "no job is long enough for"  #: the beginning of a scaler's note

#: states of jobs that will not run again; others are pending, running or something between
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
         "PREEMPTED", "REVOKED", "TIMEOUT"}  # fmt: skip
FAILED = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a job asks Slurm for."""

    walltime: str | float = 0  #: "2h", or seconds; 0: the partition's default
    mem: str = ""  #: "4G"
    gpus: str | int = 0  #: 1, or "a100:1"
    partition: str = ""
    up_to: int = 0  #: grow to so many jobs where there is work, and shrink where there is none; 0: as many as asked
    options: tuple[str, ...] = ()  #: further options of ``sbatch``: "--account=x", "constraint=avx"

    @property
    def seconds(self) -> float:
        """The walltime in seconds; 0 where Slurm decides."""
        return parse_duration(self.walltime) if isinstance(self.walltime, str) else float(self.walltime)

    def arguments(self) -> list[str]:
        """Return the options of ``sbatch``."""
        words = [f"--time={math.ceil(self.seconds / 60)}"] if self.seconds else []
        words += [f"--mem={self.mem}"] if self.mem else []
        words += [f"--gres=gpu:{self.gpus}"] if self.gpus else []
        words += [f"--partition={self.partition}"] if self.partition else []
        return words + [option if option.startswith("-") else f"--{option}" for option in self.options]


def settings_of(given: Mapping[str, Any] | Settings | bool) -> Settings:
    """Return the settings that a mapping has; True stands for Slurm's defaults. Raises LaunchError."""
    if isinstance(given, Settings):
        return given
    known = ", ".join(Settings.__struct_fields__)
    if not isinstance(given, Mapping) and given is not True:
        raise LaunchError(f"slurm={given!r:.60}: give a dict of {known}")
    fields = dict(given) if isinstance(given, Mapping) else {}
    if isinstance(fields.get("options"), str):
        fields["options"] = [fields["options"]]
    try:
        settings = msgspec.convert(fields, Settings)
        if settings.up_to:
            number_of_workers("up_to", settings.up_to)
        if settings.seconds < 0:
            raise ValueError(f"walltime={settings.walltime!r} is not a length of time")
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise LaunchError(f"slurm: {error}; known are {known}") from None
    return settings


class Plan(Struct, frozen=True):
    """A request as its jobs and its scaler read it."""

    request: Request
    settings: Settings

    @property
    def name(self) -> str:
        """Return the name of the crew and of its jobs."""
        return self.request.crew


class Job(NamedTuple):
    """A job in the queue: "12_3", its state and why it waits."""

    id: str
    state: str
    reason: str
    partition: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


# -- Slurm's commands --------------------------------------------------------------------------------------------------


def run(*command: str, script: str = "") -> str:
    """Return the output of a command of Slurm. Raises LaunchError with the last line of its complaint."""
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False,
            env=environment(),
        )  # fmt: skip
    except FileNotFoundError:
        text = "log in where jobs can be submitted to Slurm, or leave out --slurm: -n 4 starts workers on this host"
        raise LaunchError(f"no {command[0]} on this host; {text}") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} didn't answer within {duration(PATIENCE)}; try again later") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        message = lines[-1].removeprefix(f"{command[0]}: ").removeprefix("error: ") if lines else "no output"
        raise LaunchError(f"{command[0]} failed: {message}; {WAY_OUT}")
    return done.stdout


def submit(plan: Plan, file: Path, count: int) -> list[str]:
    """Submit ``count`` jobs, in arrays. Return the ids of these. Raises LaunchError where Slurm refuses."""
    command = ["sbatch", "--parsable", *_common(plan), f"--output={file.parent}/%A_%a.log", "--open-mode=append"]
    ids = []
    for first in range(0, count, MAX_ARRAY):
        array = f"--array=0-{min(MAX_ARRAY, count - first) - 1}"
        ids.append(run(*command, array, script=_script(plan, file)).strip().partition(";")[0])
    return ids


def _common(plan: Plan) -> list[str]:
    return [f"--job-name={plan.name}", "--ntasks=1", "--requeue", *plan.settings.arguments()]


def _script(plan: Plan, file: Path) -> str:
    setup = f"{{ {plan.request.options.setup}\n}} || exit 1\n" if plan.request.options.setup else ""
    python = plan.request.options.python or sys.executable
    return f"#!/bin/bash\n{setup}exec {_quoted(python)} -P -m jug_notebook.launch.slurm_jobs job {_quoted(str(file))}\n"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def jobs_named(name: str) -> list[Job]:
    """Return the jobs of that name, those that ended lately included. Raises LaunchError."""
    listing = run("squeue", "-h", "-r", "-t", "all", f"--user={os.getuid()}", f"--name={name}", "-o", "%i|%T|%P|%r")
    fields = (line.strip().split("|", 3) for line in listing.splitlines() if line.count("|") >= 3)
    return [Job(id, state, reason, partition) for id, state, partition, reason in fields]


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; one that has just ended is no error."""
    if ids := list(jobs):
        with suppress(LaunchError):
            run("scancel", "-Q", *ids)


class Queue:
    """The jobs of one name, as last seen. Looks are made in a thread, so that no display waits for a busy Slurm."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.jobs: list[Job] | None = None  #: None: not seen yet
        self.failure = ""  #: why the queue can't be seen
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0
        self._looking: threading.Thread | None = None

    def look(self) -> list[Job]:
        """Look now. Raises LaunchError."""
        with self._lock:
            began = self._clock.monotonic()
            try:
                self.jobs, self.failure = jobs_named(self.name), ""
            except LaunchError as error:
                self.failure = str(error)
                raise
            finally:
                took = self._clock.monotonic() - began
                self._next = began + max(LOOK, 20 * took)
            return self.jobs

    def peek(self) -> list[Job] | None:
        """Return what is known, and look again in the background where that is old; wait a moment if it's very old."""
        looking = self._looking is not None and self._looking.is_alive()
        if not looking and (late := self._clock.monotonic() - self._next) >= 0:
            self._looking = threading.Thread(target=self._peek, name="jug-squeue", daemon=True)
            self._looking.start()
            if self.jobs is None or late > OLD:
                self._looking.join(LOOK)
        return self.jobs

    def _peek(self) -> None:
        with suppress(LaunchError):
            self.look()


# -- the jobs of a request ---------------------------------------------------------------------------------------------


def folder_of(store: Store) -> Path:
    """Return where requests and logs of jobs are: in the store's folder, else beside the keys, which jobs see, too."""
    scheme, rest = split(store.url)
    return (
        Path(rest) / f"slurm-{system.user()}" if scheme == "file" else keyring.key_folder().parent / "slurm" / store.id
    )


class SlurmGroup(WorkerGroup):
    """The jobs of one request. ``size``: how many were asked for."""

    begins_once = False  # some may work while others wait in the queue

    def __init__(self, store: Store, plan: Plan, file: Path, clock: Clock) -> None:
        super().__init__(store, plan.name, "Slurm", clock=clock)
        self.over.set()
        self.plan, self.file = plan, file
        self.queue = Queue(plan.name, clock)
        self.scaler: subprocess.Popen[bytes] | None = None
        self._old: set[str] | None = None  # jobs that had failed before
        self._seen, self._leaving = _followed.setdefault(f"{store.id} {plan.name}", (set(), set()))

    def holds(self, supervisor: WorkerInfo) -> bool:
        return supervisor.crew == self.name or supervisor.crew.startswith(self.name + "#")

    def have(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        """Submit the jobs that are missing, in one call. Raises LaunchError."""
        with self._alone():
            jobs = self.queue.look()
            self._old = {job.id for job in jobs if job.state in FAILED}
            there = len(self.unregistered(supervisors)) + len(self.staying(supervisors))
            self.size = max(size, there)
            if size > there:
                submit(self.plan, self.file, size - there)
                self.queue.look()
        if size > there:
            more = f" more: {size} in all" if there else ""
            text = f"submitted {plural(size - there, 'job')}{more} ({id_ranges(self.unregistered(supervisors))})"
        else:
            text = f"{plural(there, 'job')} {'is' if there == 1 else 'are'} there already" if size else ""
        if self.plan.settings.up_to:
            text += f"{'; ' if text else ''}up to {plural(self.plan.settings.up_to, 'job')} as work comes"
        self.message = f"Slurm: {text}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Write the request, and let nobody else submit jobs for it meanwhile."""
        atomic.replace(self.file, msgspec.json.encode(self.plan), mode=0o600)
        with open(self.file.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _coming(self) -> list[Job]:
        return [job for job in self.queue.jobs or () if not job.ended]

    def staying(self, supervisors: Sequence[WorkerInfo]) -> list[WorkerInfo]:
        """Return the supervisors of jobs, without those that were ordered to end."""
        own = [info for info in supervisors if info.crew != self.name and info.size > 0]
        return [info for info in own if info.id not in self._leaving]

    def unregistered(self, supervisors: Sequence[WorkerInfo]) -> list[Job]:
        """Return the jobs that are to come, or to come again: pending, requeued, or running without a worker yet."""
        alive = {info.crew.rpartition("#")[2] for info in supervisors}
        self._seen |= alive
        coming = [job for job in self._coming() if job.id not in alive]
        self._seen -= {job.id for job in coming if job.state == "PENDING"}
        return [job for job in coming if job.id not in self._seen]

    def is_starting(self, supervisors: Sequence[WorkerInfo], workers: Sequence[WorkerInfo]) -> bool:
        if self.queue.peek() is None:
            return not self.queue.failure
        scalers = (info for info in supervisors if info.crew == self.name and info.id not in self._leaving)
        scaler = next(scalers, None)
        jobs = self.unregistered(supervisors)
        self.coming = len(jobs)
        self.notes = self._notes(jobs)
        self.look_for_failures()
        if jobs:
            return True
        if scaler is None and self.scaler is not None:
            if (status := self.scaler.poll()) is None and not self._late:
                return True
            if status:
                why = last_line(self.file.with_suffix(".log")) or f"status {status}"
                self.failure = f"Slurm: the process that submits jobs ended: {why}"
        if scaler is not None and not workers:
            request = self.plan.request
            return not scaler.note.startswith(TOO_LONG) and not self.store.idle(request.options.target, request.python)
        if not supervisors and not self._coming():
            self._forget()
        return False

    def _notes(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        kinds: dict[tuple[str, str], list[Job]] = {}
        for job in jobs:
            reason = "" if job.reason in ("None", "") else f" ({job.reason})"
            kinds.setdefault((job.state.lower(), reason), []).append(job)
        lines = [
            f"Slurm: {plural(len(some), 'job')} {state}{reason} in {some[0].partition}: {id_ranges(some)}"
            for (state, reason), some in kinds.items()
        ]
        return tuple(filter(None, (*lines, self.queue.failure)))

    def look_for_failures(self) -> None:
        """A job that failed before its worker registered has the reason in its log."""
        failed = {job.id: job for job in self.queue.jobs or () if job.state in FAILED}
        if self._old is None:
            self._old = set(failed)
        for job in failed.values():
            if job.id not in self._seen | self._old:
                self._old.add(job.id)
                why = last_line(self.file.parent / f"{job.id}.log") or f"{job.state} {job.reason}"
                self.failure = f"Slurm job {job.id}: {why}"

    def _forget(self) -> None:
        """Nothing is left of this request: remove its file, unless somebody has just written it."""
        with suppress(OSError):
            if self.clock.now() - self.file.stat().st_mtime > PATIENCE:
                self.file.unlink()

    def scale(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        """Have ``size`` jobs: pending ones are cancelled first, then idle workers end, then others after their task."""
        self.queue.look()
        self.shrink(size, supervisors)
        self.have(size, supervisors)
        self.size = size

    def shrink(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        pending = self.unregistered(supervisors)
        staying = self.staying(supervisors)
        surplus = len(pending) + len(staying) - size
        if surplus > 0:
            gone = [job.id for job in pending[::-1][:surplus]]
            cancel(gone)
            surplus -= len(gone)
        if surplus > 0:
            busy = {info.supervisor for info, lives, _ in self.store.processes() if lives and info.task}
            idle_first = sorted(staying, key=lambda info: info.id in busy)
            self.dismiss(idle_first[:surplus])

    def dismiss(self, supervisors: Sequence[WorkerInfo]) -> None:
        """Have these jobs end after their current task."""
        send_order(self.store, supervisors, Stop())
        self._leaving.update(info.id for info in supervisors)

    def stop(self, now: bool, supervisors: Sequence[WorkerInfo]) -> None:
        """Cancel jobs without a worker; order the others to end."""
        super().stop(now, supervisors)
        self._leaving.update(info.id for info in supervisors)
        with suppress(LaunchError):
            self.queue.look()
        waiting = self.unregistered(supervisors)
        if waiting:
            cancel(job.id for job in waiting)
            with suppress(LaunchError):
                self.queue.look()
        registered = any(info.crew == self.name for info in supervisors)
        started = self.scaler is not None and self.scaler.poll() is None
        lines = [f"cancelled {plural(len(waiting), 'Slurm job')} ({id_ranges(waiting)})"] if waiting else []
        lines += ["no more Slurm jobs will be submitted"] if registered or started else []
        self.stopped = "; ".join(lines)
        if self.scaler is not None and started and not registered:
            self.scaler.terminate()
        self.scaler = None


#: by store and crew: jobs whose workers have been seen, and supervisors that were ordered to end
_followed: dict[str, tuple[set[str], set[str]]] = {}


def id_ranges(jobs: Sequence[Job]) -> str:
    """Return ids for people: "12_[0-3,7] 13_0"."""
    arrays: dict[str, list[int]] = {}
    for job in jobs:
        array, _, index = job.id.partition("_")
        arrays.setdefault(array, []).append(int(index) if index.isdecimal() else 0)
    words = []
    for array, indices in arrays.items():
        ranges: list[tuple[int, int]] = []
        for number in sorted(indices):
            if ranges and number == ranges[-1][1] + 1:
                ranges[-1] = ranges[-1][0], number
            else:
                ranges.append((number, number))
        text = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
        words.append(f"{array}_{text}" if len(indices) == 1 else f"{array}_[{text}]")
    return " ".join(words)


def last_line(log: Path) -> str:
    """Return the last line of a job's log that isn't Slurm's own; "" where there is none."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("slurm")), "")[:300]


# -- starting ----------------------------------------------------------------------------------------------------------


def launch(
    store: Store, options: WorkerOptions, given: Mapping[str, Any] | Settings | bool, clock: Clock = CLOCK
) -> Crew:
    """Have ``options.size`` jobs of one worker each, and with ``up_to`` as many as there is work for."""
    group = _group(store, options, given, clock)
    group.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    crew, up_to = Crew(store, [group], clock), group.plan.settings.up_to
    group.have(options.size, crew.supervisors)
    if up_to and engage(store, lambda: living(store, group.name), Scale(up_to)) is None:
        group.scaler = _start_scaler(group)
    return crew


def dry_run(
    store: Store, options: WorkerOptions, given: Mapping[str, Any] | Settings | bool, clock: Clock = CLOCK
) -> str:
    """Return what `launch` would ask for, in a line or two. Submits nothing. Raises LaunchError."""
    group, there, lines = _group(store, options, given, clock), 0, []
    try:
        group.queue.look()
        supervisors = Crew(store, [group], clock).supervisors
        there = len(group.unregistered(supervisors)) + len(group.staying(supervisors))
    except LaunchError as error:
        lines.append(f"Slurm: {error}")
    command = " ".join(["sbatch", *_common(group.plan)[1:]])  # without the name
    if missing := max(0, options.size - there):
        more = f" more, beside the {there} there" if there else ""
        array = f" --array=0-{min(MAX_ARRAY, missing) - 1}"
        lines.append(f"Slurm would get {plural(missing, 'job')} of one worker each{more}: {command}{array}")
    elif options.size:
        lines.append(f"Slurm would get no job: {plural(there, 'job')} {'is' if there == 1 else 'are'} there already")
    if up_to := group.plan.settings.up_to:
        lines.append(f"Slurm would get up to {plural(up_to, 'job')} as work comes: {command}")
    return "\n".join(lines)


def _group(
    store: Store, options: WorkerOptions, given: Mapping[str, Any] | Settings | bool, clock: Clock
) -> SlurmGroup:
    """Return the jobs of a request, as yet not submitted. Raises LaunchError."""
    settings = settings_of(given)
    if split(store.url)[0] == "memory":
        raise LaunchError("memory: lives in this process alone, so no job can see it; use a folder: %jug_store")
    if not options.size and not settings.up_to:
        raise LaunchError("how many jobs? Give a number: -n N, or --up-to N")
    if options.idle_timeout == WorkerOptions().idle_timeout:
        options = msgspec.structs.replace(options, idle_timeout=IDLE)
    plan = plan_of(store, options, settings)
    return SlurmGroup(store, plan, folder_of(store) / f"{plan.name}.json", clock)


def plan_of(store: Store, options: WorkerOptions, settings: Settings) -> Plan:
    """Return the plan of a request. Its name tells it from requests that ask for other jobs."""
    options = msgspec.structs.replace(options, size=1, tied_to="")
    about = msgspec.json.encode(
        (options, msgspec.structs.replace(settings, up_to=0), system.python()), order="deterministic"
    )
    name = f"jug-{store.id[:8]}-{blake3(about).hexdigest(length=4)}"
    also = mirror_of(store, secret=False)
    request = Request(system.python(), system.VERSION, store.url, store.id, name, "Slurm", options=options, also=also)
    return Plan(request, settings)


def _start_scaler(group: SlurmGroup) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "jug_notebook.launch.slurm_jobs", "scale", str(group.file)]
    with open(group.file.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment()
        )


def known(store: Store, clock: Clock = CLOCK) -> list[Crew]:
    """Return the crews whose jobs this or an earlier process of this user submitted for the store."""
    crews = []
    for file in sorted(folder_of(store).glob("jug-*.json")):
        with suppress(OSError, msgspec.MsgspecError):
            crews.append(Crew(store, [SlurmGroup(store, read_plan(file), file, clock)], clock))
    return crews


def read_plan(file: Path) -> Plan:
    """Raises OSError, msgspec.MsgspecError."""
    return msgspec.json.decode(file.read_bytes(), type=Plan)


def look() -> list[Check]:
    """Can jobs be submitted here? Nothing where there is no Slurm."""
    if shutil.which("sbatch") is None:
        return []
    try:
        version = run("sbatch", "--version").strip()
        partitions = [line.split("|") for line in run("sinfo", "-h", "-o", "%P|%a|%l|%G").splitlines()]
        names = ", ".join(sorted({one[0] for one in partitions if one[1:2] == ["up"]})) or "none is up"
        run("sbatch", "--test-only", "--ntasks=1", script="#!/bin/sh\ntrue\n")
    except LaunchError as error:
        return [Check("slurm", str(error).partition(";")[0], "jobs can't be submitted before that is fixed")]
    return [Check("slurm", f"{version} takes jobs; partitions {names}")]
