"""Submit tasks to a store: signed, in batches; and cancel those that a cell no longer makes."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec

from jug_notebook import codec, frames, system
from jug_notebook.errors import BadTask, ChangedInCell, StoreError, Unhashable
from jug_notebook.keys.code import Code
from jug_notebook.model import (
    Address,
    Key,
    Origin,
    Spec,
    State,
    Submission,
    SubmitReport,
    Target,
    TaskTemplate,
    with_limits,
)
from jug_notebook.render import plural
from jug_notebook.session.access import StoreAccess
from jug_notebook.session.key_list import KeyList
from jug_notebook.store import Store, addresses_in, lacks_room
from jug_notebook.store.mirror import Bringing, Mirror
from jug_notebook.store.signed import SignedWriter, template
from jug_notebook.task import TaskFunction, definitions
from jug_notebook.task.context import FunctionVersion, PendingTask
from jug_notebook.worker.capture import loggers_now

FLUSH_TASKS = 1000  #: most tasks that are submitted together,
FLUSH_AFTER = 0.05  #: or those made within this time, in seconds
LOOKED_AT = 1000  #: tasks that one needs which are looked at for code that has changed
SAMPLE = 3  #: most calls of each function that are kept to be checked
FRESH = 600.0  #: seconds after which a function is stored again, for a blob that isn't used may be deleted

PENDING = (State.WAITING, State.READY, State.BLOCKED)  #: what can be cancelled: it has not started


class CellReport(msgspec.Struct, frozen=True):
    """The tasks of a cell's run: submitted (``new + known + finished``) or cancelled, and the workers to run them."""

    new: int = 0
    known: int = 0
    finished: int = 0
    cancelled: int = 0  #: pending tasks of the previous version of the cell or of a function
    workers: int = 0  #: alive or starting
    failed: tuple[Key, ...] = ()  #: tasks that failed before this run, and those that block some of this run
    to_run: tuple[tuple[str, int, Key], ...] = ()  #: functions, how many tasks of each are queued, and one of those

    @property
    def queued(self) -> int:
        """Number of tasks of this run that are still to be finished."""
        return self.new + self.known


class SubmissionQueue:
    """Submits the tasks of one notebook. Safe to use from several threads.

    Functions are pinned: all tasks that a cell makes with one use its code as it was at the first call.
    """

    def __init__(self, access: StoreAccess, runner: str = "") -> None:
        self._access = access
        self._store = access.store
        self._writer = SignedWriter(access.seal)
        self._clock = access.clock
        self._runner = runner  #: for functions that name none
        self._read_only = access.read_only  #: tasks get keys but are not submitted
        self._lock = threading.RLock()
        self._buffer: list[PendingTask] = []  #: of the running cell
        self._beside: list[PendingTask] = []  #: made by other threads than the cell's, which run cells of their own
        self.background: set[int] = set()  #: threads whose flushes end no run: they make no tasks of their own
        self.runs = 0  #: how many cells have begun
        self._since = 0.0
        self._next_try = 0.0  #: when the store's disk was full
        self._closed = False
        self._home = os.path.realpath(access.folder)
        self._now = b""  #: the working folder when what is in the buffers was made,
        self._folder = ""  #: the same as text,
        self._away = ""  #: and where that is, seen from the notebook's
        self._cell: str | None = None
        self._cell_lasts = False
        self._cell_thread = 0
        self._made: dict[Key, FunctionVersion] = {}
        self._needs: dict[Key, tuple[Key, ...]] = {}  #: of those that need any
        self._submitted = CellReport()
        self._began = 0.0  #: when the cell did, in seconds since the epoch
        self._versions: dict[TaskFunction, FunctionVersion] = {}
        self._first_calls = weakref.WeakKeyDictionary[TaskFunction, str]()  #: where a cell first called them
        self._codes: dict[TaskFunction, Code] = {}
        self._last: weakref.WeakKeyDictionary[TaskFunction, FunctionVersion] = weakref.WeakKeyDictionary()
        self._known: dict[str, Code] = {}
        self._requested = defaultdict[tuple[str, str], KeyList](KeyList)  #: here, by the function's name and code
        #: blobs of functions, and when they were stored
        self._bundles = weakref.WeakKeyDictionary[FunctionVersion, tuple[set[Address], float]]()
        self._outdated_codes: dict[str, str] | None = None  #: of versions: what has changed since; None: not known
        self._outdated = 0  #: tasks of previous versions that were cancelled in this cell
        #: names for people of code that is in no real file, in tracebacks: "Cell In[3]"
        self.label_of: Callable[[str], str | None] | None = None
        #: tells whether the calling thread runs cells of its own, beside the main thread's
        self.beside: Callable[[], bool] | None = None
        self.held: list[PendingTask] | None = None  #: gets tasks in place of the store, while it isn't None
        self._sample: dict[FunctionVersion, list[PendingTask]] | None = None  #: some calls of each function

    # -- submitting tasks ----------------------------------------------------------------------------------------------

    def function_version(self, function: TaskFunction) -> FunctionVersion:
        """Return the function with its code, pinned until the cell ends."""
        return self._versions.get(function) or self._pin(function)

    def _pin(self, function: TaskFunction) -> FunctionVersion:
        code = self._code(function)
        self._first_calls[function] = frames.place(self.label_of)
        version = self._versions[function] = self.version_now(function, code)
        self._outdated += self._cancel_outdated(function, code)
        return version

    def version_now(self, function: TaskFunction, code: Code | None = None) -> FunctionVersion:
        """Return the function with its code as it is now, whatever is pinned."""
        code, loggers = code or function.examine(self._access.folder), loggers_now()
        version = self._last.get(function)
        known = version is not None and version.code == code.digest and template(version.template).loggers == loggers
        now = self._clock.monotonic()
        if version is None or not known or function.hidden or now - self._bundles[version][1] > FRESH:
            address, data = self._store_function(function, code)
            encoded = msgspec.msgpack.encode(_template(function, code, address, self._runner, loggers))
            rest = function.priority, function.nout, code.parts, with_limits(function.resources, function.limit)
            version = FunctionVersion(function.name, function, code.digest, encoded, *rest)
            self._bundles[version] = addresses_in(data) | {address}, now  # first: Ctrl-C may come between
            self._last[function] = version
        return version

    def bundles(self) -> set[Address]:
        """Return the blobs of functions that may be called again, whether or not the store has tasks of theirs."""
        with self._lock:
            versions = {*self._last.values(), *self._versions.values(), *(task[0] for task in self._buffer)}
            return {address for version in versions for address in self._bundles[version][0]}

    def store_again(self) -> None:
        """Store the functions of this process once more, where their code is the same: their blobs may be lost."""
        for function, version in list(self._last.items()):
            if (code := self._code_or_none(function)) and code.digest == version.code:
                self._store_function(function, code)

    def _store_function(self, function: TaskFunction, code: Code) -> tuple[Address, bytes]:
        data = msgspec.msgpack.encode(codec.dump_function(function.__jug_function__, code, self.put, self.label_of))
        return self.put([data]), data

    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Store a large part of an argument. Return its address."""
        return "" if self._read_only else self._store.put_blob(parts)

    def _code(self, function: TaskFunction) -> Code:
        code = self._codes.get(function)
        if code is None:
            code = self._codes[function] = function.examine(self._access.folder)
        return code

    def _code_or_none(self, function: TaskFunction) -> Code | None:
        """Return the code of a function; None where it can't be named now, which its next call raises."""
        with suppress(Unhashable, BadTask):
            return self._code(function)
        return None

    def former(self, version: FunctionVersion) -> bool:
        """Return whether the function was redefined since."""
        function = version.function
        if function is None:
            return False
        latest = definitions.get(version.name, function) if function.defines else function
        code = self._code_or_none(latest)
        changed = code is not None and code.digest != version.code and _redefines(version.parts, code.parts)
        return changed if code is not None else latest is not function

    def away(self) -> str:
        """Return the working folder as seen from the notebook's: "" for that itself, which is the rule.

        What is made from now on runs there. Raises BadTask where it was removed.
        """
        try:
            now = os.getcwdb()  # for each call, and faster than as text
        except FileNotFoundError:
            raise BadTask("the working folder was removed; os.chdir() to one that exists") from None
        if now != self._now:
            with self._lock:
                self._submit()
                self._now, self._folder = now, (folder := os.fsdecode(now))
                self._away = "" if folder == self._home else os.path.relpath(folder, self._home)
        return self._away

    def outdated(self, version: FunctionVersion, needs: Sequence[Key]) -> str:
        """Return what has changed since a task was made, in it or in what it needs; empty where nothing has."""
        with self._lock:
            if self._outdated_codes is None:
                versions = list(self._bundles)
                self._outdated_codes = {one.code: what for one in versions if (what := self._changes(one))}
            codes = self._outdated_codes
        if not codes or version.code in codes:
            return codes.get(version.code, "")
        met, waiting = set(needs), list(needs)
        while waiting and len(met) < LOOKED_AT:
            specs = [spec for spec in self._access.signed.specs(waiting) if spec is not None]
            for spec in specs:
                found = template(spec.template)
                if found.code in codes:
                    return f"{codes[found.code]} of {found.name}, which it needs,"
            waiting = [key for key in dict.fromkeys(key for spec in specs for key in spec.needs) if key not in met]
            met.update(waiting)
        return ""

    def _changes(self, version: FunctionVersion) -> str:
        """Return what its function has become, as in "global BIAS (1 → 100)"; empty where nothing has changed."""
        function = version.function
        code = self._code_or_none(definitions.get(version.name, function) if function.defines else function)
        if code is None or code.digest == version.code:
            return ""
        found = []
        for label in _changed_parts(version.parts, code.parts) or ["the code"]:
            before, now = version.parts.get(label, ""), code.parts.get(label, "")
            short = before and now and len(before) < 40 > len(now)
            found.append(f"{label} ({before} → {now})" if short else label)
        return " and ".join(found)

    def add(self, pending_tasks: Sequence[PendingTask]) -> None:
        """Queue tasks: they are submitted soon, and before anything is read from the store."""
        with self._lock:
            if self._closed:
                raise StoreError(f"the session of {self._store.display_url} is closed; connect() again")
            if self._read_only:
                self._note(self._access.only_known(pending_tasks))
                return
            if self.held is not None:
                self.held.extend(pending_tasks)
                return
            now = self._clock.monotonic()
            if not self._buffer and not self._beside:
                self._since = now
            other = self._cell is not None and threading.get_ident() != self._cell_thread
            apart = other and self.beside is not None and self.beside()
            (self._beside if apart else self._buffer).extend(pending_tasks)
            _sample(self._sample, pending_tasks)
            if len(self._buffer) >= FLUSH_TASKS or now - self._since > FLUSH_AFTER:
                self.flush_if_room()

    def flush(self) -> None:
        """Submit the tasks that were made and not submitted yet. In a script this ends a run, as `end_cell` does."""
        if self._cell is not None or threading.get_ident() in self.background:
            self._submit()
        elif self._buffer or self._beside:
            self._end_of_run()

    def flush_if_room(self, submit: Callable[[], None] | None = None) -> None:
        """Do the same, but keep the tasks for later where the store's disk is full: it can still be looked at."""
        if self._clock.monotonic() >= self._next_try:
            try:
                (submit or self.flush)()
            except StoreError as error:
                if not lacks_room(error):
                    raise
                self._next_try = self._clock.monotonic() + FLUSH_AFTER

    def _submit(self) -> None:
        with self._lock, _counting(lambda: len(self._beside) + len(self._buffer)):
            if self._beside:
                self._send(self._beside, "")
                self._beside = []
            pending_tasks = self._buffer
            if not pending_tasks:
                return
            report = self._send(pending_tasks, self._cell or "")
            if self._cell is not None:
                self._note(pending_tasks)
            self._buffer = []
            before = self._submitted
            new, known = before.new + report.new, before.known + report.known
            self._submitted = CellReport(new, known, before.finished + report.finished)

    def folder(self) -> str:
        """Return the working folder of tasks that are made now."""
        self.away()
        return self._folder or self._home

    def send(self, pending_tasks: Sequence[PendingTask], folder: str) -> None:
        """Submit tasks at once that belong to no cell; they run in ``folder``. No cell cancels them."""
        _store_tasks(self._access, self._writer, pending_tasks, "", folder)

    def _send(self, pending_tasks: Sequence[PendingTask], cell: str) -> SubmitReport:
        report = _store_tasks(self._access, self._writer, pending_tasks, cell, self._folder or self._home)
        for version, made in groupby(pending_tasks, itemgetter(0)):
            self._requested[version.name, version.code].extend([m[1] for m in made], report.new < len(pending_tasks))
        return report

    def close(self) -> None:
        """Submit what is left, and accept no more tasks."""
        try:
            self.flush()
        finally:
            self._closed = True

    def hurry(self) -> None:
        """Submit tasks that have waited too long, in a cell that is busy with something else."""
        with self._lock:
            if (self._buffer or self._beside) and self._clock.monotonic() - self._since > FLUSH_AFTER:
                self._submit()

    def check_keys(self, on: bool = True) -> None:
        """Start (or stop) keeping some calls of each function for `key_check`."""
        if on != (self._sample is not None):
            self._sample = {} if on else None

    def take_sample(self) -> dict[FunctionVersion, list[PendingTask]]:
        """Return the calls kept since the last time, by function version."""
        kept = self._sample or {}
        if kept:
            self._sample = {}
        return kept

    # -- cells ---------------------------------------------------------------------------------------------------------

    def begin_cell(self, cell: str, lasting: bool = True) -> None:
        """A cell starts to run: tasks made until `end_cell` belong to it.

        ``lasting``: that is the cell's name for good, so that what a former version of it requested can be cancelled.
        """
        with self._lock:
            self.flush_if_room(self._submit)
            self._beside += self._buffer  # where the disk is full: they are of no later cell
            self._buffer = []
            self._cell, self._cell_lasts, self._cell_thread = cell, lasting, threading.get_ident()
            self.runs += 1
            self._made, self._needs = {}, {}
            self._submitted = CellReport()
            self._began = self._clock.now()
            self._outdated = 0
            self._unpin()

    def end_cell(self, success: bool = True) -> CellReport:
        """The cell has run: submit its tasks, and cancel those that it, or a redefined function, no longer makes.

        A cell that failed (``success=False``) has made only part of its tasks, so none is cancelled. Raises
        ChangedInCell where a function's code or globals changed after its first call in the cell, naming what changed;
        its tasks are cancelled.
        """
        with self._lock:
            if self._cell is None:
                self.flush()
                return CellReport()
            cell = self._cell
            try:
                cancelled = self._end_of_run() + self._outdated
                if success and not self._read_only:
                    cancelled += self._cancel_redefined() + self._cancel_not_made(cell)
                report = _recounted(self._submitted, self._made, self._store, self._began)
                return msgspec.structs.replace(report, cancelled=cancelled)
            finally:
                self._cell = None
                self._made, self._needs = {}, {}

    def _note(self, pending_tasks: Sequence[PendingTask]) -> None:
        self._made.update((task[1], task[0]) for task in pending_tasks)
        self._needs.update((task[1], task[3]) for task in pending_tasks if task[3])

    def made(self) -> list[tuple[Key, FunctionVersion, tuple[Key, ...]]]:
        """Return the tasks that the running cell has made so far: key, function version, keys of its needs."""
        with self._lock:
            self.flush()
            return [(key, version, self._needs.get(key, ())) for key, version in self._made.items()]

    def _end_of_run(self) -> int:
        """Check that pinned functions are unchanged, submit, unpin. Return how many tasks were cancelled."""
        with self._lock:
            pinned = {task[0] for task in self._buffer} | set(self._versions.values())
            self._codes.clear()
            changed = {version: parts for version in pinned if (parts := self._changed(version))}
            cancelled = self._of_versions(changed) if changed else set()
            self._buffer = [task for task in self._buffer if task[1] not in cancelled]
            gone = [key for key in self._made if key in cancelled]
            try:
                self._submit()
                if gone and not self._read_only:
                    self._store.request(gone, self._access.origin(self._cell or ""), False)
            finally:
                self._unpin()
            if changed:
                raise ChangedInCell(_changed_text(changed, self._first_calls))
            return len(gone)

    def _of_versions(self, versions: Collection[FunctionVersion]) -> set[Key]:
        """Return the tasks of the running cell that are of these versions, and those that need them."""
        found: set[Key] = set()
        made = ((key, version, self._needs.get(key, ())) for key, version in self._made.items())
        for key, version, needs in (*made, *((task[1], task[0], task[3]) for task in self._buffer)):
            if version in versions or not found.isdisjoint(needs):
                found.add(key)
        return found

    def _changed(self, version: FunctionVersion) -> list[str]:
        assert version.function is not None, "only functions are pinned"
        try:
            code = self._code(version.function)
        except (Unhashable, BadTask) as error:
            return [f"what it reads ({str(error).rstrip('.')})"]
        if code.digest == version.code:
            return []
        return _changed_parts(version.parts, code.parts) or ["its code"]

    def _unpin(self) -> None:
        self._outdated_codes = None
        self._versions.clear()
        self._codes.clear()

    def _cancel_not_made(self, cell: str) -> int:
        """Cancel what this cell requested when it ran before, and did not make this time.

        Only what has ended is superseded: a cell whose name doesn't last may be another one, and processes that work
        on one file together may each be at another version of it.
        """
        if not cell or not self._cell_lasts:
            return 0
        origin = self._access.origin(cell)
        gone = [key for key in self._store.requested(origin) if key not in self._made]
        if gone and origin.notebook in self._access.live_notebooks():
            return 0
        return self.withdraw(gone, origin)

    def _cancel_redefined(self) -> int:
        """Cancel what this process requested by previous definitions, also of functions that were not called now."""
        cancelled = 0
        for function in list(definitions.values()):
            if code := self._code_or_none(function):
                cancelled += self._cancel_outdated(function, code)
        return cancelled

    def _cancel_outdated(self, function: TaskFunction, code: Code) -> int:
        name = function.name
        known = self._known.get(name)
        if definitions.get(name) is not function or (known is not None and known.digest == code.digest):
            return 0
        self._known[name] = code
        if known is not None and not _redefines(known.parts, code.parts):
            return 0
        former = [version for version in self._requested if version[0] == name and version[1] != code.digest]
        outdated = [key for version in former for key in self._requested.pop(version)]
        return self.withdraw(outdated, self._access.origin())

    def withdraw(self, keys: Sequence[Key], origin: Origin) -> int:
        """Withdraw the requests for these tasks. Return how many of them that cancels.

        What is finished or has failed stays in the store, but no longer counts as this notebook's.
        """
        if not keys or self._read_only:
            return 0
        pending = [key for key, state in zip(keys, self._store.states(keys), strict=True) if state in PENDING]
        self._store.request(keys, origin, False)
        return self._store.states(pending).count(State.CANCELLED)


def _recounted(report: CellReport, made: Mapping[Key, FunctionVersion], store: Store, began: float) -> CellReport:
    """Return a report in tasks, not calls, of which several may be one task; what failed before it ``began`` apart."""
    if not report.queued:
        return report
    keys = list(made)
    states = dict(zip(keys, store.states(keys), strict=True))
    queued = [key for key, state in states.items() if state in (State.WAITING, State.READY, State.RUNNING)]
    names = Counter(made[key].name for key in queued)
    one = {made[key].name: key for key in reversed(queued)}
    stuck = [key for key, state in states.items() if state in (State.FAILED, State.BLOCKED)]
    blocking = store.blocking_tasks(stuck) if stuck else []
    failed = dict.fromkeys(by or key for key, by in zip(stuck, blocking, strict=True))
    views = store.tasks(target=Target(keys=frozenset(failed))) if failed else []
    before = [view.key for view in views if view.key in failed and view.started + view.duration < began]
    return CellReport(
        new=(new := min(report.new, len(queued))),
        known=len(queued) - new,
        finished=sum(state is State.FINISHED for state in states.values()),
        failed=tuple(before),
        to_run=tuple((name, count, one[name]) for name, count in names.items()),
    )


def _sample(kept: dict[FunctionVersion, list[PendingTask]] | None, pending_tasks: Sequence[PendingTask]) -> None:
    """Keep a few calls of each function, if any are kept."""
    for task in pending_tasks[:SAMPLE] if kept is not None else ():
        some = kept.setdefault(task[0], [])  # type: ignore[union-attr]
        if len(some) < SAMPLE:
            some.append(task)


def _template(function: TaskFunction, code: Code, bundle: Address, runner: str, loggers: Any) -> TaskTemplate:
    return TaskTemplate(
        name=function.name,
        code=code.digest,
        bundle=bundle,
        python=system.python(),
        runner=function.runner or runner,
        retries=function.retries,
        timeout=function.timeout,
        priority=function.priority,
        nout=function.nout,
        loggers=loggers,
        resources=with_limits(function.resources, function.limit),
    )


def _store_tasks(
    access: StoreAccess, writer: SignedWriter, pending_tasks: Sequence[PendingTask], cell: str, folder: str
) -> SubmitReport:
    origin = access.origin(cell)
    made, python = access.clock.now(), system.python()
    submissions = []
    for version, key, form, needs, arguments, args_repr, call in pending_tasks:
        spec = Spec(key, version.template, needs, form, arguments, args_repr, origin, folder, made, call)
        rank = version.priority, python, version.resources
        submissions.append(Submission(key, version.name, needs, form, writer.spec(spec), *rank))
    mirror = access.store.also
    if not isinstance(mirror, Mirror):
        return access.store.submit(submissions, origin)
    bringing = Bringing(access.store, mirror, writer, access.user)
    bringing.before({one.key: one.form for one in submissions})
    report = access.store.submit(submissions, origin)
    bringing.after()
    return report


@contextmanager
def _counting(queued: Callable[[], int]) -> Iterator[None]:
    """Have StoreError tell how many tasks stay queued where the disk is full."""
    try:
        yield
    except StoreError as error:
        if not lacks_room(error):
            raise
        text = f"{plural(queued())} not submitted yet: {error}; free some space, and they will be"
        raise StoreError(text) from error.__cause__


def _changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _redefines(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Return whether the code is another definition. A changed global alone makes none: both versions may be wanted."""
    changed = _changed_parts(before, now)
    return not changed or any(not name.startswith(("global ", "environment ")) for name in changed)


def _changed_text(changed: Mapping[FunctionVersion, list[str]], places: Mapping[Any, str]) -> str:
    what = "; ".join(
        f"{' and '.join(parts)} changed after {version.name} was first called ({places.get(version.function, '?')})"
        for version, parts in changed.items()
    )
    return (
        f"{what}, so its tasks would mean two things. They were cancelled: split the cell there, or pass what changes "
        "as an argument"
    )
