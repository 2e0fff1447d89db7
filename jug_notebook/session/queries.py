"""Queries about a session's tasks: status, tables, logs, graph, history, failures. Nothing here changes the store."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import msgspec

from jug_notebook import render, system
from jug_notebook.errors import NoSuchTask
from jug_notebook.model import (
    Cause,
    CurrentOutcome,
    Failed,
    FailureKind,
    FailureView,
    FunctionProfile,
    FunctionView,
    Graph,
    Key,
    Limit,
    LimitView,
    Load,
    Outcome,
    Scope,
    SimilarFailure,
    Snapshot,
    Span,
    Spread,
    State,
    Target,
    TaskView,
    Timeline,
    seconds_to_run,
)
from jug_notebook.render.display import GraphPicture, History, Listing, ProfileTable, Status, Text, TimelinePicture, Why
from jug_notebook.render.format import clean, elide, parse_moment
from jug_notebook.render.profile import profile_of
from jug_notebook.render.summary import SIMILAR, attempt_text
from jug_notebook.session.access import StoreAccess
from jug_notebook.session.submission import CellReport
from jug_notebook.session.targets import TargetResolver, graph_of, names_in
from jug_notebook.session.why import WhyQuery
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader, template
from jug_notebook.system import whole_number
from jug_notebook.task import definitions
from jug_notebook.task.handles import SHORT
from jug_notebook.worker.usage import LONG

SAMPLE = 200  #: runs of a function, the latest, that tell what its tasks take
RARELY = 20  #: times as long as a look at them took until the next one
AT_A_GLANCE = 60  #: most failures read for a picture that will be renewed soon
PROFILED = 20_000  #: most runs, the latest, of which a profile is made
EXPLAINED = 2000  #: tasks of a function up to which a cell's line tells why some will run
LOGS = 20  #: most tasks in one log
KNOWN = 1000  #: most failures (the latest) that are sorted into kinds
LISTED = 20  #: most failures listed one by one


class Queries:
    """Queries about the tasks and workers of a store, from one notebook's point of view."""

    def __init__(self, access: StoreAccess, targets: TargetResolver) -> None:
        self._access = access
        self._store = access.store
        self._signed = access.signed
        self._targets = targets
        self._failures = FailureIndex(access.store, access.signed)
        self._memory: dict[str, tuple[int, Spread]] = {}  #: by function: finished tasks when it was looked up, and it
        self._next_memory = 0.0

    # -- pictures of all tasks -----------------------------------------------------------------------------------------

    def status(self, all: bool = False) -> Status:
        """Return the state of this notebook's tasks, or with ``all`` of the whole store's: counts, workers, failures.

        It is displayed as text or HTML; its data is in ``snapshot``. Raises StoreError.
        """
        self._targets.flush()
        scope = self._access.scope_of(all)
        failed = self._failures.latest(scope)
        snapshot = self._snapshot(scope, self._failures.kinds(failed))
        notes = (*snapshot.notes, *filter(None, [self.left_behind(snapshot if all else None)]))
        return Status(msgspec.structs.replace(snapshot, failures=self._failures.latest_views(failed), notes=notes))

    def left_behind(self, whole: Snapshot | None = None) -> str:
        """Return how many pending tasks only ended runs requested, and how to cancel them, in a line; "" for none.

        Nobody cancels by himself what another run requested, so scripts and consoles may leave such tasks. ``whole``: a
        snapshot of the whole store, where there is one.
        """
        if self._access.read_only:
            return ""
        open_states = (State.WAITING, State.READY, State.BLOCKED)
        counts = (self._store.snapshot() if whole is None else whole).counts
        if not any(counts[state] for state in open_states):
            return ""
        mine = self._store.snapshot(self._access.scope).counts
        if all(mine[state] == counts[state] for state in open_states):
            return ""
        keys = sorted({key for origin in self._access.ended_runs() for key in self._store.requested(origin)})
        count = sum(state in open_states for state in self._store.states(keys))
        return (
            f"{render.plural(count, 'pending task')} of ended runs: %jug_cancel --ended cancels them" if count else ""
        )

    def forecast(self, report: CellReport, timed: bool = True) -> str:
        """Return what the tasks that a cell has made will cost, in a line; empty where nothing will run.

        "12 of 500 will run, about 9 min on 8 workers, because helper `_clean` changed; 488 stored". Not ``timed``:
        without what depends on workers.
        """
        views = {view.name: view for view in self._store.snapshot(self._access.scope).functions}
        workers = sum(alive and info.kind == "worker" for info, alive, _ in self._store.processes())
        found = [(count, views[name]) for name, count, _ in report.to_run if name in views]
        about, rough = "", len(found) < len(report.to_run) or any(view.mean is None for _, view in found)
        if timed and workers and (seconds := self._seconds(found, workers)) >= 1:
            least = "at least" if rough else "about"
            about = f", {least} {render.duration(seconds)} on {render.plural(workers, 'worker')}"
        few = [key for name, _, key in report.to_run[:3] if name in views and views[name].size <= EXPLAINED]
        why = WhyQuery(self._signed, self._access.scope, _ignored).explain(few)
        reasons = dict.fromkeys(
            reason.line.partition("\n")[0] for one in why for reason in one.reasons if reason.cause is Cause.CODE
        )
        because = f", because {elide(' and '.join(reasons), 100)}" if reasons else ""
        if not (about or because or report.finished):
            return ""
        total, queued = report.queued + report.finished, report.queued
        runs = f"{queued:,} of {total:,} will run" if report.finished else f"{render.plural(queued)} will run"
        return clean(f"{runs}{about}{because}" + (f"; {report.finished:,} stored" if report.finished else ""))

    def _seconds(self, found: Sequence[tuple[int, FunctionView]], workers: int) -> float:
        """Return the estimated seconds until so many tasks of functions have run, in workers that are there."""
        seconds = seconds_to_run([_load(count, view) for count, view in found], workers)
        if seconds < 1:
            return seconds
        runs = [usual(self._access, view.name, 0.0) for _, view in found]
        loads = [_load(count, undelayed(view, ran)) for (count, view), ran in zip(found, runs, strict=True)]
        counts = [(count, ran) for (count, _), ran in zip(found, runs, strict=True)]
        return max(seconds_to_run(loads, workers), seconds_of_cores(counts) if self._all_here() else 0.0)

    def _all_here(self) -> bool:
        """Are all workers on this host?"""
        here = system.host()
        return all(info.host == here for info, alive, _ in self._store.processes() if alive and info.kind == "worker")

    def other_numbers(self, report: CellReport) -> list[str]:
        """Return a line for each limit of a cell's functions for which others give another number: which one holds."""
        names, lines = {name for name, _, _ in report.to_run}, []
        limits = self._store.limits() if names else {}
        given = [
            (Limit(view.name, view.given, view.period), name)
            for name, views in limits.items()
            for view in views
            if view.given
        ]
        for limit, name in [one for one in given if one[1] in names]:
            others = [one for one in given if one[0][::2] == limit[::2] and one[0] != limit]
            other, by = min(others, default=(limit, ""))
            if other < limit:
                lines.append(f"limit {limit} of {name} has no effect while tasks of {by} are open: {other} holds")
            elif other > limit:
                lines.append(f"limit {limit} of {name} holds for tasks of {by}, too, which have {other}")
        return list(map(clean, lines))

    def glance(self, all: bool = False) -> Snapshot:
        """Return the same, for a display that is renewed often: few failures are read at a time, and only by kind."""
        self._targets.flush()
        scope = self._access.scope_of(all)
        return self._snapshot(scope, self._failures.kinds(self._failures.latest(scope), AT_A_GLANCE))

    def _with_memory(self, view: FunctionView) -> FunctionView:
        """Return a function with the memory that its runs take, looked up again when there are more of them."""
        done, now = view.counts.get(State.FINISHED, 0), time.monotonic()
        known, memory = self._memory.get(view.name, (0, view.memory))
        if (view.mean or 0.0) >= LONG and done > 1.1 * known and now >= self._next_memory:
            found = usual(self._access, view.name)
            memory = Spread() if found is None else found.memory
            self._memory[view.name] = done, memory
            self._next_memory = time.monotonic() + RARELY * (time.monotonic() - now)
        return msgspec.structs.replace(view, memory=memory)

    def _snapshot(self, scope: Scope, kinds: tuple[FailureKind, ...]) -> Snapshot:
        snapshot, crews = self._store.snapshot(scope), self._access.crews
        sizes: dict[str, int] = {}  # by name, for asking again is about the same workers
        for crew in crews:
            if count := crew.count_starting():
                sizes[crew.name] = max(count, sizes.get(crew.name, 0))
        starting = max(snapshot.starting, sum(sizes.values()))
        lines = [line for crew in {crew.name: crew for crew in crews}.values() for line in crew.notes]
        also = self._store.also
        lines += [also.note] if also is not None and also.note else []
        notes = (*snapshot.notes, *lines, *(line for crew in crews[-1:] for line in crew.failures))
        return msgspec.structs.replace(
            snapshot, store=self._access.display_url, kinds=kinds, starting=starting, notes=notes,
            functions=tuple(map(self._with_memory, snapshot.functions)),
        )  # fmt: skip

    def status_of(self, keys: Sequence[Key]) -> Status:
        """Return the status of these tasks alone."""
        self._targets.flush()
        wanted = set(keys)
        views = [view for view in self._store.tasks(target=Target(keys=frozenset(wanted))) if view.key in wanted]
        rows: dict[str, list[TaskView]] = {}
        for view in views:
            rows.setdefault(view.name, []).append(view)
        failed = sorted(
            (view for view in views if view.state is State.FAILED), key=lambda view: -view.started - view.duration
        )[:KNOWN]
        snapshot = self._store.snapshot(self._access.scope)
        limits = {view.name: view.limits for view in snapshot.functions}
        snapshot = msgspec.structs.replace(
            snapshot,
            store=self._access.display_url,
            scope="these tasks",
            functions=tuple(_function_view(name, row, limits.get(name, ())) for name, row in rows.items()),
            failures=self._failures.latest_views(failed),
            kinds=self._failures.kinds(failed),
        )
        return Status(snapshot)

    def graph(self, target: Any = None, all: bool = False, namespace: Mapping[str, Any] | None = None) -> GraphPicture:
        """Return which functions need which, how often, and their tasks by state: this notebook's, or the store's.

        With a target: of these tasks and what they need. Raises NoSuchTask.
        """
        self._targets.flush()
        scope = self._access.scope_of(all)
        if target is None:
            snapshot = self._store.snapshot(scope)
            functions, edges, of = snapshot.functions, tuple(self._store.edges(scope)), snapshot.scope
        else:
            wanted = self._targets.target(target, namespace)
            functions, edges = graph_of(wanted, scope, self._store, self._signed)
            of = "a part"
        return GraphPicture(Graph(functions, edges, self._access.display_url, of))

    def history(self, all: bool = False, limit: int = 50) -> History:
        """Return who ran what and when: the latest ``limit`` attempts of this notebook's tasks, or of the whole
        store's.

        They include failures that were tried again, and values that were invalidated: ``superseded`` says so.
        """
        limit = whole_number("limit", limit, "rows (0: all)", least=0)
        self._targets.flush()
        return History(*self._signed.history(self._access.scope_of(all), limit))

    def timeline(self, all: bool = False, since: str | float = 0.0, until: str | float = inf) -> TimelinePicture:
        """Return who ran what and when: attempts of this notebook's tasks, or of the whole store's, and what runs now.

        ``since``, ``until``: only what ran between these times, given in seconds since the epoch, as a date
        ("2026-10-31", "2026-10-31 14:00", local time), or as a length of time before now ("2h", "30d"). Raises
        ValueError.
        """
        self._targets.flush()
        now, scope = time.time(), self._access.scope_of(all)
        begin, end = (parse_moment(at, now) if isinstance(at, str) else at for at in (since, until))
        spans, path = self._store.timeline(scope)
        mine = None if scope.notebook is None else {view.key for view in self._store.tasks(scope, state=State.RUNNING)}
        spans += [
            Span(info.task, info.task_name, info.id, info.since, max(0.0, now - info.since), 0, State.RUNNING)
            for info, alive, _ in self._store.processes()
            if alive and info.task and info.since and (mine is None or info.task in mine)
        ]
        found = sorted((one for one in spans if one.ended >= begin and one.started <= end), key=lambda one: one.started)
        label = "the whole store" if scope.notebook is None else "this notebook"
        return TimelinePicture(Timeline(tuple(found), tuple(path), self._access.display_url, label))

    def profile(
        self, target: Any = None, all: bool = False, namespace: Mapping[str, Any] | None = None
    ) -> ProfileTable:
        """Return what runs took, by function: time, processor time, memory, bytes read and written.

        Every attempt that ended is a run, even if it failed, was killed, or no longer counts. The runs are those of
        this notebook's tasks, of a target's, or with ``all`` of the whole store's; at most the latest 20 000. Raises
        NoSuchTask.
        """
        self._targets.flush()
        if target is None:
            latest, total = self._store.runs(self._access.scope_of(all), PROFILED)
        elif keys := frozenset(self._targets.keys(target, namespace, all)):
            latest, total = self._store.runs(Scope(), PROFILED, Target(keys=keys))
        else:
            latest, total = [], 0
        by_function: dict[str, list[Outcome]] = {}
        for run in latest:
            outcome = self._signed.outcome(run.verdict.key, CurrentOutcome(run.verdict, run.body))
            by_function.setdefault(run.name, []).append(outcome)
        profiles = [profile_of(name, runs) for name, runs in by_function.items()]
        specs = self._signed.specs([profile.largest for profile in profiles])
        named = [
            profile if spec is None else msgspec.structs.replace(profile, args_repr=spec.args_repr)
            for profile, spec in zip(profiles, specs, strict=True)
        ]
        return ProfileTable(sorted(named, key=lambda one: -one.duration.mean * one.runs), total - len(latest))

    def watch(self, seen: int, timeout: float) -> int:
        """Wait until the store's version differs from ``seen``, at most ``timeout`` seconds. Return the version now."""
        return self._store.watch(seen, timeout)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def tasks(
        self,
        target: Any = None,
        state: State | str | None = None,
        limit: int = 50,
        namespace: Mapping[str, Any] | None = None,
    ) -> Listing:
        """Return a table of this notebook's tasks (or a target's), with arguments, and summaries of results and errors.

        At most ``limit`` rows (0: all), of one ``state`` if given. What only earlier versions of the notebook requested
        comes last; without a target, it is counted, but not listed. Raises NoSuchTask.
        """
        limit = whole_number("limit", limit or 0, "rows (0: all)", least=0)
        names = [one.value for one in State]
        if state is not None and not isinstance(state, State) and state not in names:
            raise NoSuchTask(f"no task is {state!r:.40}; state is one of {', '.join(names)}")
        self._targets.flush()
        wanted = None if state is None else State(state)
        if target is None:
            listed = self._store.tasks(self._access.scope, state=wanted)
            views = [view for view in listed if not view.kept and (wanted or view.state is not State.CANCELLED)]
        else:
            keys = dict.fromkeys(self._targets.keys(target, namespace))
            found = self._store.tasks(target=Target(keys=frozenset(keys)))
            views = listed = [view for view in found if view.key in keys and wanted in (None, view.state)]
            views.sort(key=lambda view: view.kept or view.state is State.CANCELLED)
        kept = sum(view.kept for view in listed) if views is not listed else 0
        cancelled = len(listed) - len(views) - kept
        return Listing(self._signed.filled(views[:limit] if limit else views), len(views), kept, cancelled)

    def why(self, target: Any, namespace: Mapping[str, Any] | None = None) -> Why:
        """Return whether these tasks are stored and, if not, what changed since the nearest ones that are.

        Raises NoSuchTask.
        """
        keys = self._targets.keys(target, namespace)
        return Why(WhyQuery(self._signed, self._access.scope, _ignored).explain(keys), len(keys))

    def listed(self, state: State | None = None, all: bool = False) -> list[TaskView]:
        """Return keys, names and states of this notebook's tasks, or of the whole store's; nothing else is read."""
        self._targets.flush()
        return self._store.tasks(self._access.scope_of(all), state=state)

    def requested(self) -> dict[Key, str]:
        """Return the tasks that this notebook requests, each with the cell that made it."""
        keys = [view.key for view in self.listed() if view.state is not State.CANCELLED]
        specs = self._signed.specs(keys)
        return {key: spec.origin.cell for key, spec in zip(keys, specs, strict=True) if spec is not None}

    def states(self, keys: Sequence[Key]) -> list[State | None]:
        """Return the state of each task; None where the store doesn't know it."""
        self._targets.flush()
        return self._store.states(keys)

    def blocking_task(self, target: Any, namespace: Mapping[str, Any] | None = None) -> Key | None:
        """Return the first failed task of a target, or the one that blocks its first blocked task; else None."""
        keys = self._targets.keys(target, namespace)
        states = self._store.states(keys)
        for key, state, blocking in zip(keys, states, self._store.blocking_tasks(keys), strict=True):
            if state is State.FAILED or blocking is not None:
                return blocking or key
        return None

    def origin(self, key: Key, dated: bool = True) -> str:
        """Return where and how long an ended task ran, in a line; with ``dated``, also when."""
        self._targets.flush()
        [outcome] = self._signed.outcomes([key])
        return "" if outcome is None else render.origin_text(outcome.run, self._access.clock.now() if dated else None)

    # -- logs ----------------------------------------------------------------------------------------------------------

    def log(self, target: Any = None, host: str | None = None, namespace: Mapping[str, Any] | None = None) -> str:
        """Return what tasks printed, with the traceback of failed ones; without a target, of the last that ended.

        With ``host``, the logs of the workers there. Raises NoSuchTask.
        """
        self._targets.flush()
        if host is not None:
            return Text(self._host_log(host))
        if target is None:
            ended = [view for view in self.listed() if view.state in (State.FINISHED, State.FAILED)]
            ended.sort(key=lambda view: view.started + view.duration)
            keys = [view.key for view in ended]
            cut = keys[-LOGS:]
            parts = [f"… {len(keys) - len(cut)} tasks before"] if len(keys) > len(cut) else []
        else:
            keys = self._targets.keys(target, namespace)
            cut = keys[:LOGS]
            parts = []
        parts += [self._task_log(view) for view in self._signed.views(cut)]
        if target is not None and len(keys) > len(cut):
            parts.append(f"… and {len(keys) - len(cut)} more tasks")
        return Text("\n".join(parts) or "nothing was run yet")

    def _task_log(self, view: TaskView) -> str:
        [outcome], [spec] = self._signed.outcomes([view.key]), self._signed.specs([view.key])
        head = f"── {elide(f'{view.name}({view.args_repr})', 200)} · {view.state.value} · {view.key[:SHORT]}"
        if outcome is None:
            tail = self.tail(view.key).rstrip("\n") if view.state is State.RUNNING else ""
            return f"{head}\n{tail}" if tail else head
        run = outcome.run
        if outcome.key != view.key:
            head += f" · reused from {outcome.key[:SHORT]}"
        printed = render.outputs_text(self._signed.pieces(run) if run.displays else run.output).rstrip("\n")
        attempts = 1 + (template(spec.template).retries if spec is not None else 0)
        place = f"{elide(run.host, 64)}, pid {run.pid}{attempt_text(run.attempt, attempts, ' · ')}"
        parts = [f"{head} · {run.duration:.3g} s on {place}", printed]
        if isinstance(outcome, Failed):
            parts.append(outcome.traceback.rstrip("\n") or outcome.error)
        return "\n".join(part for part in parts if part)

    def tail(self, key: Key) -> str:
        """Return the progress of a running task and the last it printed, as its worker reported with its heartbeat."""
        for info, alive, _ in self._store.processes():
            if alive and info.task == key:
                done, total = info.progress
                progress = f"{done} of {total or '?'} done\n" if done or total else ""
                at, size = info.checkpoint
                if at:
                    progress += f"checkpoint {render.ago(self._access.clock.now() - at)}, {render.size(size)}\n"
                return f"{progress}{info.tail}"
        return ""

    def _host_log(self, host: str) -> str:
        there = [info for info, _, _ in self._store.processes() if info.is_on(host) and info.kind != "session"]
        if not there:
            raise NoSuchTask(f"no worker on host {host!r}; there are some on {', '.join(self.hosts()) or 'none'}")
        parts = []
        for info in there:
            text = self._store.log(info.id).rstrip("\n")
            if text:
                parts += [f"── {info.kind} {info.id}", text]
        return "\n".join(parts) or f"the workers on {host} have logged nothing"

    # -- names, for completion -----------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the functions of which this notebook has tasks."""
        return names_in(self._store, self._access.scope)

    def hosts(self) -> list[str]:
        """Return the hosts on which workers are, or were lately, sorted."""
        known = [info for info, _, _ in self._store.processes() if info.kind != "session"]
        return sorted({name for info in known if (name := info.place or info.host).isprintable()})


def usual(access: StoreAccess, name: str, least: float = LONG) -> FunctionProfile | None:
    """Return what a function's latest runs took, of those that took ``least`` seconds; None where there is none."""
    ended = [key for key, _, verdict in access.store.calls(name) if verdict is not None and verdict.duration >= least]
    outcomes = [outcome for outcome in access.signed.outcomes(ended[-SAMPLE:]) if outcome is not None]
    return profile_of(name, outcomes) if outcomes else None


def undelayed(view: FunctionView, runs: FunctionProfile | None) -> FunctionView:
    """Return a function with the mean that its runs had had with a core for each: more may have run at a time."""
    if runs is None or view.mean is None:
        return view
    return msgspec.structs.replace(view, mean=view.mean * runs.undelayed)


def seconds_of_cores(counts: Iterable[tuple[int, FunctionProfile | None]]) -> float:
    """Return the seconds that so many tasks of functions need of all cores of this host, as far as that is known."""
    return sum(count * runs.cpu.mean for count, runs in counts if runs is not None) / system.cores()


def _load(count: int, view: FunctionView) -> Load:
    return Load(count, view.mean or 0.0, limits=view.limits)


def _function_view(name: str, views: Sequence[TaskView], limits: tuple[LimitView, ...]) -> FunctionView:
    counts = dict(Counter(view.state for view in views))
    durations = [view.duration for view in views if view.state is State.FINISHED]
    reused = sum(bool(view.source) for view in views)
    return FunctionView(name, counts, sum(durations) / len(durations) if durations else None, reused, limits=limits)


def _ignored(name: str) -> Iterable[str]:
    """Return the arguments that a function, as it is defined now, leaves out of keys."""
    function = definitions.get(name)
    return () if function is None else function.ignore


# -- failures ----------------------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """What is kept of a failure that was read. ``at`` tells it from a later one of the same task."""

    at: tuple[float, int]
    about: str
    args_repr: str
    error: str


class FailureIndex:
    """Failures, each read once and sorted into kinds: a picture of a thousand costs only those that are new."""

    def __init__(self, store: Store, signed: SignedReader) -> None:
        self._store = store
        self._signed = signed
        self._lock = threading.Lock()  # a notebook's live displays read from another thread
        self._read: dict[Key, _Read] = {}
        self._whole: dict[tuple[Key, tuple[float, int]], FailureView] = {}
        self._places: dict[tuple[str, str], int] = {}
        self._place = itertools.count()

    def latest(self, scope: Scope) -> list[TaskView]:
        """Return the failed tasks of a scope, the latest first."""
        return self._store.tasks(scope, state=State.FAILED, limit=KNOWN)

    def latest_views(self, failed: Sequence[TaskView]) -> tuple[FailureView, ...]:
        """Return the first of them, at most `LISTED`, with all that is known."""
        with self._lock:
            return tuple(self._opened(failed[:LISTED]))

    def kinds(self, failed: Sequence[TaskView], at_once: int = KNOWN) -> tuple[FailureKind, ...]:
        """Return kinds of failures, that of the latest first; once returned, a kind keeps its place.

        Within each, the latest first. Reads at most ``at_once`` that were not read before.
        """
        with self._lock:
            return self._kinds(failed, at_once)

    def _kinds(self, failed: Sequence[TaskView], at_once: int) -> tuple[FailureKind, ...]:
        new = [view for view in failed if (known := self._read.get(view.key)) is None or known.at != _at(view)]
        for view, filled in zip(new[:at_once], self._signed.filled(new[:at_once]), strict=True):
            error = filled.error or "it failed"
            self._read[view.key] = _Read(_at(view), render.pattern(error), filled.args_repr, error)
        groups: dict[tuple[str, str], list[TaskView]] = {}
        for view in failed:
            known = self._read.get(view.key)
            if known is not None and known.at == _at(view):
                groups.setdefault((view.name, known.about), []).append(view)
        for kind in groups:
            self._places.setdefault(kind, next(self._place))
        top = sorted(groups.items(), key=lambda item: self._places[item[0]])[: render.FAILURES]
        whole = {view.key: view for view in self._opened([group[0] for _, group in top])}
        self._forget(failed)
        if len(self._places) > 2 * KNOWN:
            self._places = {kind: self._places[kind] for kind in groups}
        return tuple(
            FailureKind(
                about,
                whole[group[0].key],
                tuple(view.key for view in group),
                tuple(SimilarFailure(view.key, *self._read[view.key][2:]) for view in group[1 : SIMILAR + 1]),
            )
            for (_, about), group in top
            if group[0].key in whole
        )

    def _opened(self, views: Sequence[TaskView]) -> list[FailureView]:
        missing = [view for view in views if (view.key, _at(view)) not in self._whole]
        for view, found in zip(missing, self._signed.failures(missing), strict=True):
            if found is not None:
                self._whole[view.key, _at(view)] = found
        return [found for view in views if (found := self._whole.get((view.key, _at(view)))) is not None]

    def _forget(self, failed: Sequence[TaskView]) -> None:
        """Drop what no longer counts."""
        if len(self._read) > 2 * KNOWN:
            keep = {view.key for view in failed}
            self._read = {key: known for key, known in self._read.items() if key in keep}
        while len(self._whole) > 4 * LISTED:
            del self._whole[next(iter(self._whole))]


def _at(view: TaskView) -> tuple[float, int]:
    return view.started, view.attempt
