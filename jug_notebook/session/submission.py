"""Tasks on their way into a store: sealed, handed in by the batch; and taken back when nobody makes them any more."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from jug_notebook import codec, system
from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.errors import ChangedInCell, StoreError, Unhashable
from jug_notebook.keys.code import Code
from jug_notebook.model import Address, Key, Origin, Scope, Spec, State, Submission, TaskTemplate
from jug_notebook.session import key_check
from jug_notebook.store import Store, addresses_in
from jug_notebook.store.signed import SignedReader, SignedWriter, template
from jug_notebook.task import TaskFunction, definitions
from jug_notebook.task.context import FunctionVersion, PendingTask

FLUSH_TASKS = 1000  #: so many tasks are handed in together,
FLUSH_AFTER = 0.05  #: or those made in so many seconds

#: a function goes into the store again after so many seconds, for what nobody touches may be swept
FRESH = 600.0

#: what can be taken back: it has not started, or has come to nothing
PENDING = (State.WAITING, State.READY, State.BLOCKED, State.FAILED)


class CellReport(msgspec.Struct, frozen=True):
    """What a cell's run came to: tasks handed in (``new + known + finished``) and taken back, and who will run them."""

    new: int = 0
    known: int = 0
    finished: int = 0
    taken_back: int = 0
    workers: int = 0  #: alive, or on their way

    @property
    def queued(self) -> int:
        """Tasks of this run that are not finished."""
        return self.new + self.known


class SubmissionQueue:
    """The way in for the tasks of one notebook. Safe to use from several threads."""

    def __init__(
        self,
        store: Store,
        seal: Seal,
        clock: Clock,
        user: str,
        notebook: str,
        folder: Path,
        runner: str = "",
        read_only: bool = False,
    ) -> None:
        self._store = store
        self._signed, self._writer = SignedReader(store, seal), SignedWriter(seal)
        self._clock = clock
        self._user = user
        self._notebook = notebook
        self._folder = folder
        self._runner = runner  #: for functions that name none
        self._looking = read_only  #: tasks are only named
        self._lock = threading.RLock()
        self._buffer: list[PendingTask] = []
        self._since = 0.0
        self._closed = False
        self._cell: str | None = None
        self._made: dict[Key, FunctionVersion] = {}
        self._needs: dict[Key, tuple[Key, ...]] = {}  #: of those
        self._handed = CellReport()
        self._editions: dict[TaskFunction, FunctionVersion] = {}
        self._codes: dict[TaskFunction, Code] = {}
        self._last: weakref.WeakKeyDictionary[TaskFunction, FunctionVersion] = weakref.WeakKeyDictionary()
        self._known: dict[str, Code] = {}
        self._parcels: weakref.WeakKeyDictionary[FunctionVersion, tuple[list[bytes], float]] = (
            weakref.WeakKeyDictionary()
        )
        self._former = 0
        self.label_of: Callable[[str], str | None] | None = None
        self.sample: dict[FunctionVersion, list[PendingTask]] | None = (
            None  #: of each function some calls, where they are wanted
        )

    # -- handing in tasks ----------------------------------------------------------------------------------------------

    def function_version(self, function: TaskFunction) -> FunctionVersion:
        """See `SessionProtocol`."""
        return self._editions.get(function) or self._pin(function)

    def _pin(self, function: TaskFunction) -> FunctionVersion:
        code = self._code(function)
        version = self._last.get(function)
        if version is None or version.code != code.digest or function.hidden:
            parts: list[bytes] = []

            def put(chunks: Iterable[bytes | memoryview]) -> Address:
                parts.append(b"".join(chunks))
                return self.put(parts[-1:])

            bundle = codec.dump_function(function.__jug_function__, code, put, self.label_of)
            address = put([msgspec.msgpack.encode(bundle)])
            bound = TaskTemplate(
                name=function.name,
                code=code.digest,
                bundle=address,
                python=system.python(),
                runner=function.runner or self._runner,
                retries=function.retries,
                timeout=function.timeout,
                priority=function.priority,
                nout=function.nout,
            )
            version = FunctionVersion(
                function.name,
                function,
                code.digest,
                msgspec.msgpack.encode(bound),
                function.priority,
                function.nout,
                code.parts,
            )
            self._last[function] = version
            self._parcels[version] = parts, self._clock.monotonic()
        elif self._clock.monotonic() - self._parcels[version][1] > FRESH:
            parts, _ = self._parcels[version]
            for part in parts:
                self._store.put_blob([part])
            self._parcels[version] = parts, self._clock.monotonic()
        self._editions[function] = version
        self._former += self._take_back_former(function, code)
        return version

    def bundles(self) -> set[Address]:
        """Blobs of functions that may be called again, whether or not the store has tasks of theirs."""
        with self._lock:
            versions = {
                *self._last.values(),
                *self._editions.values(),
                *(pending_task[0] for pending_task in self._buffer),
            }
            return {
                name
                for version in versions
                for data in (version.template, *self._parcels[version][0])
                for name in addresses_in(data)
            }

    def put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """See `SessionProtocol`."""
        return "" if self._looking else self._store.put_blob(parts)

    def _code(self, function: TaskFunction) -> Code:
        code = self._codes.get(function)
        if code is None:
            code = self._codes[function] = function.examine(self._folder)
        return code

    def former(self, version: FunctionVersion) -> bool:
        """See `SessionProtocol`."""
        function = version.function
        if function is None:
            return False
        latest = definitions.get(version.name, function) if function.defines else function
        try:
            code = self._code(latest)
            return code.digest != version.code and _redefines(version.parts, code.parts)
        except Unhashable:
            return latest is not function

    def add(self, pending_tasks: Sequence[PendingTask]) -> None:
        """See `SessionProtocol`."""
        with self._lock:
            if self._closed:
                raise StoreError(f"the session of {self._store.display_url} is closed; connect() again")
            if self._looking:
                self._note(pending_tasks)
                return
            now = self._clock.monotonic()
            if not self._buffer:
                self._since = now
            self._buffer.extend(pending_tasks)
            if self.sample is not None:
                for pending_task in pending_tasks[: key_check.SAMPLE]:
                    some = self.sample.setdefault(pending_task[0], [])
                    if len(some) < key_check.SAMPLE:
                        some.append(pending_task)
            if len(self._buffer) >= FLUSH_TASKS or now - self._since > FLUSH_AFTER:
                self.flush()

    def flush(self) -> None:
        """Hand in the tasks that were made and not handed in yet. In a script this ends a run, as `end_cell` does."""
        if self._cell is not None:
            self._deliver()
        elif self._buffer:
            self._end_of_run()

    def _deliver(self) -> None:
        with self._lock:
            pending_tasks = self._buffer
            if not pending_tasks:
                return
            origin = Origin(self._user, self._notebook, self._cell or "")
            report = self._store.submit(self._submissions(pending_tasks, origin), origin)
            if self._cell is not None:
                self._note(pending_tasks)
            self._buffer = []
            self._handed = msgspec.structs.replace(
                self._handed,
                new=self._handed.new + report.new,
                known=self._handed.known + report.known,
                finished=self._handed.finished + report.finished,
            )

    def _submissions(self, pending_tasks: Sequence[PendingTask], origin: Origin) -> list[Submission]:
        folder, made, python = str(self._folder), self._clock.now(), system.python()
        sealed = self._writer.spec
        submissions = []
        for version, key, form, needs, arguments, shown, call in pending_tasks:
            spec = Spec(key, version.template, needs, form, arguments, shown, origin, folder, made, call)
            submissions.append(Submission(key, version.name, needs, form, sealed(spec), version.priority, python))
        return submissions

    def close(self) -> None:
        """Hand in what is left, and take in no more."""
        try:
            self.flush()
        finally:
            self._closed = True

    def hurry(self) -> None:
        """Hand in what was left lying, by a cell that goes on with other things."""
        with self._lock:
            if self._buffer and self._clock.monotonic() - self._since > FLUSH_AFTER:
                self._deliver()

    # -- cells ---------------------------------------------------------------------------------------------------------

    def begin_cell(self, cell: str) -> None:
        """A cell starts to run: tasks made until `end_cell` are its."""
        with self._lock:
            self._deliver()
            self._cell = cell
            self._made, self._needs = {}, {}
            self._handed = CellReport()
            self._former = 0
            self._unpin()

    def end_cell(self, success: bool = True) -> CellReport:
        """The cell has run: hand in its tasks, and take back what it, or a redefined function, no longer makes.

        A cell that failed (``success=False``) has made only part of its tasks, so nothing is taken back. Raises
        ChangedInCell, naming what changed, where a function's code or globals changed after its first call in the cell;
        its tasks are taken back.
        """
        with self._lock:
            if self._cell is None:
                self.flush()
                return CellReport()
            cell = self._cell
            try:
                taken_back = self._end_of_run()
                taken_back += self._former
                if success and not self._looking:
                    taken_back += self._redefined() + self._no_longer_made(cell)
                return msgspec.structs.replace(self._handed, taken_back=taken_back)
            finally:
                self._cell = None
                self._made, self._needs = {}, {}

    def _note(self, pending_tasks: Sequence[PendingTask]) -> None:
        self._made.update((pending_task[1], pending_task[0]) for pending_task in pending_tasks)
        self._needs.update((pending_task[1], pending_task[3]) for pending_task in pending_tasks)

    def made(self) -> list[tuple[Key, FunctionVersion, tuple[Key, ...]]]:
        """What the cell that runs has made so far, each with what it needs."""
        with self._lock:
            self.flush()
            return [(key, version, self._needs[key]) for key, version in self._made.items()]

    def _end_of_run(self) -> int:
        """Compare what was pinned with what is, hand in, forget the pins."""
        with self._lock:
            pinned = {pending_task[0] for pending_task in self._buffer} | set(self._editions.values())
            self._codes.clear()
            changed = {version: parts for version in pinned if (parts := self._changed(version))}
            self._buffer = [pending_task for pending_task in self._buffer if pending_task[0] not in changed]
            gone = [key for key, version in self._made.items() if version in changed]
            try:
                self._deliver()
                if gone and not self._looking:
                    self._store.request(gone, Origin(self._user, self._notebook, self._cell or ""), False)
            finally:
                self._unpin()
            if changed:
                raise ChangedInCell(_changed_text(changed))
            return len(gone)

    def _changed(self, version: FunctionVersion) -> list[str]:
        assert version.function is not None, "only functions are pinned"
        code = self._code(version.function)
        if code.digest == version.code:
            return []
        return _changed_parts(version.parts, code.parts) or ["its code"]

    def _unpin(self) -> None:
        self._editions.clear()
        self._codes.clear()

    def _no_longer_made(self, cell: str) -> int:
        """Take back what this cell wanted when it ran before, and did not make this time."""
        if not cell:
            return 0
        origin = Origin(self._user, self._notebook, cell)
        gone = [key for key in self._store.requested(origin) if key not in self._made]
        return self._take_back(gone, origin)

    def _redefined(self) -> int:
        """Take back what former definitions of functions still have pending; also of those that were not called."""
        taken_back = 0
        for function in list(definitions.values()):
            try:
                taken_back += self._take_back_former(function, self._code(function))
            except Unhashable:
                continue  # its next call will say so
        return taken_back

    def _take_back_former(self, function: TaskFunction, code: Code) -> int:
        name = function.name
        known = self._known.get(name)
        if definitions.get(name) is not function or (known is not None and known.digest == code.digest):
            return 0
        self._known[name] = code
        if known is not None and not _redefines(known.parts, code.parts):
            return 0
        keys = self._store.keys_named(name, Scope(self._notebook))
        former = [
            key
            for key, spec in zip(keys, self._signed.specs(keys), strict=True)
            if spec is not None and template(spec.template).code != code.digest
        ]
        return self._take_back(former, Origin(self._user, self._notebook))

    def _take_back(self, keys: Sequence[Key], origin: Origin) -> int:
        """No longer want these; answer how many of them had not started or had come to nothing.

        What is finished stays in the store, but is no longer counted as this notebook's work.
        """
        if keys and not self._looking:
            pending = sum(state in PENDING for state in self._store.states(keys))
            self._store.request(keys, origin, False)
            return pending
        return 0


def _changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _redefines(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Is it another definition? The same code that finds another value in a global is none: both may be wanted."""
    changed = _changed_parts(before, now)
    return not changed or any(not name.startswith("global ") for name in changed)


def _changed_text(changed: Mapping[FunctionVersion, list[str]]) -> str:
    told = [
        f"{' and '.join(parts)} changed after {version.name} was first called" for version, parts in changed.items()
    ]
    return (
        f"{'; '.join(told)}, so its tasks would mean two things. They were taken back: "
        "split the cell there, or pass what changes as an argument"
    )
