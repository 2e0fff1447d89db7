"""What an agent can do with a store: the tools of `jug-notebook mcp`, each a method of `Looking` or `Acting`,
and with ``--allow-submit`` of `Submitting`.

They return short dataclasses: of a store with 10 000 tasks, no more than about 2 kB by default. Their docstrings are
what an agent reads; nothing here knows of the protocol. All text that comes from a store is cleaned by `plain`.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from jug_notebook import system
from jug_notebook.cli import Store, UsageError, existing, session_of
from jug_notebook.errors import CommandFailed, JugError, NoSuchTask, clean
from jug_notebook.model import OPEN_STATES, Failed, Finished, Key, Scope, State, Target, TaskView
from jug_notebook.render import plural, short
from jug_notebook.render.format import elide
from jug_notebook.session import Session
from jug_notebook.task import TaskFunction, context
from jug_notebook.task.function import Arguments
from jug_notebook.task.values import TaskList

ID = 16  #: hex digits of a key in lists: none is ambiguous, and all of them can be given to a tool
PAGE, LARGEST_PAGE = 10, 100  #: tasks
CALL, LINE = 60, 90  #: characters of arguments and of a result or error in lists
FUNCTIONS = 10  #: in a status
TEXT = 1500  #: characters of a log or explanation, unless more are asked for
LARGEST_TEXT = 20_000
SHORTEST = 6  #: hex digits of a key that are taken for its beginning
LOADED = 100_000  #: bytes up to which a value is loaded for its repr
REPR = 400  #: characters of that
PATIENCE = 5.0  #: seconds for which a call waits for a store's server that is away
STARTING, LOOK = 5.0, 0.2  #: seconds to wait for workers that start, and between two looks

StateName = Literal["waiting", "ready", "running", "finished", "failed", "blocked", "cancelled"]


@dataclass
class FunctionCounts:
    """Tasks of one function by state; ``mean_s`` is the seconds that one takes."""

    name: str
    counts: dict[str, int]
    mean_s: float | None = None


@dataclass
class StatusReport:
    """A store at one instant."""

    summary: str
    counts: dict[str, int]
    workers: int
    functions: list[FunctionCounts]
    more_functions: int = 0
    eta_s: float | None = None
    notes: list[str] | None = None


@dataclass
class TaskRow:
    """A task in a list. ``result`` describes a value, ``error`` a failure."""

    id: str
    function: str
    state: str
    args: str = ""
    result: str = ""
    error: str = ""


@dataclass
class TaskPage:
    """A page of tasks; ``cursor`` gets the next one, and is missing on the last."""

    total: int
    tasks: list[TaskRow]
    cursor: str = ""


@dataclass
class FailureKindRow:
    """Failures of a function with the same kind of error; ``task`` is the latest of them."""

    function: str
    error: str
    count: int
    task: str
    args: str = ""
    others: list[str] | None = None


@dataclass
class FailureReport:
    """Failed tasks by kind of error."""

    failed: int
    kinds: list[FailureKindRow]
    more_kinds: int = 0


@dataclass
class TaskReport(TaskRow):
    """All that is known of one task; its id is its key, which names it for good."""

    by: str = ""
    host: str = ""
    started: str = ""
    took_s: float | None = None
    attempt: int = 0
    needs: list[str] | None = None
    more_needs: int = 0
    blocked_by: str = ""
    reused_from: str = ""


@dataclass
class ValueReport:
    """A result in short: ``type`` with shape and size; ``repr`` only of small values."""

    id: str
    state: str
    type: str = ""
    repr: str = ""
    error: str = ""


@dataclass
class TextReport:
    """A text; ``left_out`` is the number of characters that were."""

    text: str
    left_out: int = 0


@dataclass
class WaitReport:
    """``over``: all tasks have ended; ``counts``: how many are in which state."""

    over: bool
    counts: dict[str, int]


@dataclass
class Done:
    """What was done, in a line; ``id``: of the task that was submitted."""

    done: str
    id: str = ""


def plain(value: Any) -> Any:
    """Return a report as plain data: without fields that have nothing to tell, and with its text cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {clean(name): plain(one) for name, one in value.items()}
    if is_dataclass(value):
        rows = ((one, getattr(value, one.name)) for one in fields(value))
        return {one.name: plain(found) for one, found in rows if found not in _NOTHING.get(one.name, (None, "", [], 0))}
    return value


_NOTHING: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("failed", "total", "workers", "count", "over", "tasks", "kinds", "functions", "text", "summary"), ()
)  #: fields that are always there


class Looking:
    """Tools that look and change nothing. One session serves all calls; it is opened again if its store was removed."""

    def __init__(self, of: Store) -> None:
        self._of = of
        self._whole = of.notebook is None
        self._session: Session | None = None
        self.lock = threading.RLock()  #: held by one call at a time

    @property
    def session(self) -> Session:
        """The session on the store. Raises StoreError."""
        if self._session is None:
            self._session = session_of(self._of)
            self._session.access.store.patience = PATIENCE
        return self._session

    def close(self) -> None:
        """Close the session; the next call opens another."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(JugError):
                session.close()

    def status(self) -> StatusReport:
        """How far all tasks are: counts by state and by function, live workers, time left.

        Look here first, and again instead of listing tasks. If `counts` has failed tasks, `failures` says why; if
        workers is 0 while tasks are ready, nothing runs.
        """
        snapshot = self.session.queries.glance(self._whole)
        functions = sorted(snapshot.functions, key=lambda one: -one.current)
        rows = [
            FunctionCounts(elide(one.name, CALL), _named(one.counts), None if one.mean is None else round(one.mean, 3))
            for one in functions[:FUNCTIONS]
        ]
        eta = snapshot.eta
        notes = [elide(note, 160) for note in snapshot.notes[:3]]
        return StatusReport(
            short(snapshot), _named(snapshot.counts), snapshot.alive, rows, max(0, len(functions) - FUNCTIONS),
            None if eta is None else round(eta, 1), notes,
        )  # fmt: skip

    def tasks(
        self, function: str = "", state: StateName | None = None, cursor: str = "", limit: int = PAGE
    ) -> TaskPage:
        """List tasks in order of submission, `limit` (at most 100) a page, with their ids, arguments and results.

        `function`: only of that name. `state`: only in that state. `cursor`: from the page before. Ids stay valid for
        good, in other sessions too. To see how many there are, `status` is enough.
        """
        limit = min(max(1, limit), LARGEST_PAGE)
        target = Target(names=frozenset([function])) if function else None
        listed = self.session.access.store.tasks(self._scope, target)
        start = 0
        if cursor:
            at = next((at for at, view in enumerate(listed) if view.key == cursor), None)
            if at is None:
                raise NoSuchTask(f"no page follows {cursor[:40]!r}: begin again without a cursor")
            start = at + 1
        wanted = [at for at, view in enumerate(listed) if _is_wanted(view, state)]
        page = [at for at in wanted if at >= start][: limit + 1]
        rows = self.session.access.signed.filled([listed[at] for at in page[:limit]])
        more = listed[page[limit - 1]].key if len(page) > limit else ""
        return TaskPage(len(wanted), [_row(view) for view in rows], more)

    def failures(self, function: str = "", limit: int = 5) -> FailureReport:
        """Why tasks failed, by kind of error: how many, the latest of each, and ids of some others.

        `log` of one of the ids has the traceback. After the cause is gone, `retry` runs them again.
        """
        kinds = [
            kind
            for kind in self.session.queries.status(self._whole).snapshot.kinds
            if function in ("", kind.newest.name)
        ]
        rows = [
            FailureKindRow(
                elide(kind.newest.name, CALL), elide(kind.newest.error, 2 * LINE), len(kind.keys),
                kind.newest.key[:ID], elide(kind.newest.args_repr, CALL), [key[:ID] for key in kind.keys[1:4]],
            )
            for kind in kinds[: max(1, limit)]
        ]  # fmt: skip
        return FailureReport(sum(len(kind.keys) for kind in kinds), rows, max(0, len(kinds) - len(rows)))

    def log(self, task: str, limit: int = TEXT) -> TextReport:
        """What a task printed and, where it failed, the traceback; of a running task, what it printed lately.

        `task`: its id, or the beginning of it. The last `limit` characters are returned.
        """
        text = str(self.session.queries.log(Target(keys=frozenset([self._key(task)]))))
        limit = min(max(1, limit), LARGEST_TEXT)
        return TextReport(text[-limit:], max(0, len(text) - limit))

    def why(self, target: str) -> TextReport:
        """Why tasks aren't stored: what changed in code or arguments since the nearest that are.

        `target`: an id, a function's name, or /regex/ on names. Ask it when tasks run that should have been reused.
        """
        return _head(repr(self.session.queries.why(self._meant(target))))

    def timeline(self, since: str = "", until: str = "") -> TextReport:
        """Who ran what when, and where the time went: lanes by host, a letter a function; failures are marked.

        `since`, `until`: a date ("2026-10-31 14:00"), or a length of time before now ("2h").
        """
        try:
            found = self.session.queries.timeline(self._whole, since or 0.0, until or float("inf"))
        except ValueError as wrong:
            raise UsageError(str(wrong)) from None
        return _head(repr(found))

    def task(self, id: str) -> TaskReport:
        """One task: its state, arguments, result or error in short, where and how long it ran, and what it needs.

        `id`: from any list, a notebook or an earlier session, even if all processes have ended since; or its beginning.
        """
        access, key = self.session.access, self._key(id)
        [view], [spec] = access.signed.views([key], filled=True), access.signed.specs([key])
        [outcome], [blocking] = access.signed.outcomes([key]), access.store.blocking_tasks([key])
        needs = () if spec is None else spec.needs
        report = TaskReport(
            key, view.name, view.state.value, view.args_repr, view.summary, elide(view.error, 400), view.user,
            needs=[need[:ID] for need in needs[:10]], more_needs=max(0, len(needs) - 10),
            blocked_by=(blocking or "")[:ID], reused_from=view.source[:ID],
        )  # fmt: skip
        if outcome is not None:
            run = outcome.run
            report.host, report.took_s, report.attempt = run.host, round(run.duration, 3), run.attempt
            report.started = _moment(run.started)
        return report

    def result(self, id: str) -> ValueReport:
        """A task's result in short: type, shape and size, and the repr of a small value; never all of a large one.

        For values themselves, read them in a notebook: the task's id is shown there, too.
        """
        key = self._key(id)
        access = self.session.access
        [state], [outcome] = access.store.states([key]), access.signed.outcomes([key])
        report = ValueReport(key, (state or State.CANCELLED).value)
        if isinstance(outcome, Failed):
            report.error = elide(outcome.error, 400)
        elif isinstance(outcome, Finished):
            report.type = outcome.summary
            if outcome.value.data and not outcome.value.buffers and len(outcome.value.data) <= LOADED:
                try:
                    text = repr(self.session.results.collect([key], wait=False)[0])
                    report.repr = text if len(text) <= REPR else f"{text[: REPR - 1]}…"
                except Exception as error:  # its library may be missing here, or raise what it likes
                    report.error = elide(f"it can't be loaded here: {type(error).__name__}: {error}", 200)
        return report

    def submitted_at(self, key: Key) -> str:
        """Return when a task was made."""
        return _moment(self.session.access.signed.known_spec(self._key(key)).made)

    def progress_of(self, target: str) -> WaitReport:
        """Return how many of a target's tasks are in which state."""
        if target:
            found = self.session.access.store.states([task.key for task in self._meant(target)])
            counts = Counter(state or State.CANCELLED for state in found)
        else:
            counts = Counter(self.session.access.store.snapshot(self._scope).counts)
        return WaitReport(all(state.settled for state, count in counts.items() if count), _named(counts))

    @property
    def _scope(self) -> Scope:
        return self.session.access.scope_of(self._whole)

    def _meant(self, target: str) -> TaskList:
        """Return the tasks of an id, a function's name or /regex/. Raises NoSuchTask."""
        return self.session.resolve(target, all=self._whole)

    def _key(self, id: str) -> Key:
        """Return the key that an id, or its beginning, means. Raises NoSuchTask."""
        store, given = self.session.access.store, id.strip().lower()
        found = store.keys_starting(given) if len(given) >= SHORTEST else []
        if len(found) > 1:
            raise NoSuchTask(f"{len(found)} tasks begin with {given[:40]!r}: give more of the id")
        if not found:
            raise NoSuchTask(f"no task {given[:40]!r} in {self.session.display_url}; `tasks` lists ids")
        return found[0]


class Acting(Looking):
    """Tools that act on tasks and workers that exist; none brings new code."""

    def retry(self, target: str = "") -> Done:
        """Run failed tasks again: those of a target (an id, a function's name, /regex/), or all.

        Use it once the cause is gone, say a file that was missing. A task whose code is at fault fails again.
        """
        count = self.session.retry(self._meant(target)) if target else self.session.retry(all=self._whole)
        return Done(f"{plural(count)} will be tried again" if count else "none of these has failed")

    def invalidate(self, target: str, dry_run: bool = False) -> Done:
        """Discard results that are wrong: they, and all that depends on them, will be computed again.

        `target`: an id, a function's name, or /regex/ on names. This can cost hours: `dry_run` only counts.
        """
        tasks = self._meant(target)
        if dry_run:
            return Done(f"would invalidate {plural(len(tasks), 'task')}, and what depends on them")
        count = self.session.invalidate(tasks)
        return Done(f"invalidated {plural(count, 'result')}; they and what depends on them will be recomputed")

    def cancel(self, target: str) -> Done:
        """Cancel tasks that haven't started: those of this user's notebooks, no matter which of them requested them.

        `target`: an id, a function's name, or /regex/ on names. What runs goes on to its end; results stay.
        """
        count = self.session.cancel(self._meant(target), all=True)
        return Done(f"cancelled {plural(count, 'pending task')}")

    def accept(self, target: str, undo: bool = False, dry_run: bool = False) -> Done:
        """Let unfinished tasks of an edited function keep the results of its previous code; on record, with `undo`.

        Only where the edit can't change results, and a person has agreed. `target`: a function's name or an id.
        """
        return Done(str(self.session.accept(self._meant(target), undo=undo, dry_run=dry_run)))

    def start_workers(self, count: int = 1) -> Done:
        """Have `count` workers on this host, at most one per core; asking again starts no duplicates.

        They run what is ready, outlive this connection, and end after ten minutes with nothing to do.
        """
        if not 1 <= count <= system.cores():
            raise UsageError(f"count={count}: give 1 to {system.cores()}, one per core of this host")
        crew, clock, seen = self.session.execute(count), self.session.access.clock, -1
        until = clock.monotonic() + STARTING
        while crew.starting and clock.monotonic() < until:
            seen = self.session.queries.watch(seen, LOOK)
        alive = crew.alive()
        return Done(f"{plural(alive, 'worker')} on this host" if alive else "the workers are starting: see `status`")

    def stop_workers(self, now: bool = False) -> Done:
        """Stop all workers of the store after their current tasks, or `now`: then these tasks become ready again."""
        count = self.session.workers.stop(now)
        how = "stop at once; their tasks become ready again" if now else "stop after their current tasks"
        return Done(f"{plural(count, 'worker')} will {how}" if count else "no worker is alive")


# -- runs of files -----------------------------------------------------------------------------------------------------


def headless_run(path: str, content: str, number: int, jugdir: str) -> str:
    """Run a notebook or a jugfile as ``jug-notebook execute`` does; print what it prints. Raises CommandFailed.

    ``content`` and ``number`` are there for the key: what the file was, and the how manieth run of that it is.
    """
    import subprocess

    words = [sys.executable, "-P", "-m", "jug_notebook", "execute", path, *(["--jugdir", jugdir] if jugdir else [])]
    last = ""
    with subprocess.Popen(
        words, cwd=os.path.dirname(path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as running:  # fmt: skip
        assert running.stdout is not None
        for line in running.stdout:
            sys.stdout.write(line)
            last = line.strip() or last
    if running.returncode:
        raise CommandFailed(f"{os.path.basename(path)}: exit status {running.returncode}: {last[-300:]}")
    return f"{os.path.basename(path)} ran to its end"


class _Run(TaskFunction):
    """A task function whose tables name the file and the number of the run; the key covers the file's content."""

    def _look_for_paths(self, arguments: Any) -> None:
        """No advice: see above."""

    def _args_repr(self, arguments: Arguments) -> str:
        return super()._args_repr([(name, value) for name, value in arguments if name in ("path", "number")])


#: a run is a task, so that its state and output are there after every process has ended; only workers of its own
#: have the resource, or it could take the place of a worker that it waits for
RUN = _Run(headless_run, name="headless_run", version="1", resources={"headless": 1})


class Submitting(Acting):
    """The tool that runs files: it can bring new code, from below ``root`` alone."""

    def __init__(self, of: Store, root: Path) -> None:
        super().__init__(of)
        self._root = root.resolve()

    def run(self, path: str) -> Done:
        """Run a notebook (.ipynb) or a jugfile (.py) without a browser: its functions' tasks go to this store.

        `path`: relative to the folder that was allowed. Return at once with the run's id, which is a task's: `wait` for
        it, `log` has what it printed. Stored results are not computed again; a file that runs isn't started twice.
        """
        file = self._allowed(path)
        content, store = blake3(file.read_bytes()).hexdigest(20), self.session.access.store
        jugdir = store.url if store.url.startswith("file:") else ""  # else in the environment: it may hold a password
        context.set_current(self.session)  # which only names tasks
        for number in itertools.count():
            arguments = str(file), content, number, jugdir
            key = RUN(*arguments).key
            [state] = store.states([key])
            if state is None or state in OPEN_STATES:
                break
        if state is None:
            # in the name of the folder: no run of a notebook cancels what that requested
            one = Session(existing(self._of.url), notebook=self._root, folder=Path.cwd(), together=True)
            with closing(one) as session:
                context.set_current(session)
                RUN(*arguments)
        target = Target(keys=frozenset([key]))
        self.session.execute(1, target=target, resources={"headless": 1}, idle_timeout=5, keep_attached=False)
        return Done(f"{file.name} {'runs already' if state in OPEN_STATES else 'was submitted'}", key)

    def _allowed(self, path: str) -> Path:
        file = (self._root / path).resolve()
        if not file.is_relative_to(self._root) or file.suffix not in (".py", ".ipynb") or not file.is_file():
            raise UsageError(f"no notebook (.ipynb) or jugfile (.py) {path[:200]!r} in {self._root}, which was allowed")
        return file


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")


def _named(counts: Any) -> dict[str, int]:
    return {state.value: count for state, count in counts.items() if count}


def _is_wanted(view: TaskView, state: str | None) -> bool:
    if state is None:
        return not view.kept and view.state is not State.CANCELLED
    return view.state.value == state


def _row(view: TaskView) -> TaskRow:
    return TaskRow(
        view.key[:ID], elide(view.name, CALL), view.state.value, elide(view.args_repr, CALL), elide(view.summary, LINE),
        elide(view.error, LINE),
    )  # fmt: skip


def _head(text: str, limit: int = TEXT) -> TextReport:
    lines: Sequence[str] = text[:limit].split("\n")
    kept = text if len(text) <= limit else "\n".join(lines[:-1] or lines)
    return TextReport(kept, len(text) - len(kept))
