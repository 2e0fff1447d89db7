"""States and values of tasks: wait for them, load them, and explain why there is none."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from jug_notebook import codec, render, system
from jug_notebook.clock import STARTED, Clock
from jug_notebook.errors import (
    DroppedByPickle,
    JugError,
    NotReady,
    NoWorkers,
    SignatureError,
    StoreError,
    TaskCancelled,
    TaskFailed,
    ValueLost,
    WaitInterrupted,
    WaitTimeout,
)
from jug_notebook.keys.advice import warn_once
from jug_notebook.model import Address, CurrentOutcome, Failed, Key, Spec, State, TaskView, Why
from jug_notebook.render.display import Outputs
from jug_notebook.render.format import clean, elide, elide_columns
from jug_notebook.session.access import StoreAccess
from jug_notebook.session.streams import follow
from jug_notebook.store import Store, addresses_in
from jug_notebook.store.signed import Brief, failure, template
from jug_notebook.system import waiting_time
from jug_notebook.task.context import Problem
from jug_notebook.task.files import changed_files

if TYPE_CHECKING:
    import asyncio

WINDOW = 500  #: states read at once
LOADED = 1000  #: outcomes read at once
QUIET = 1.5  #: seconds of a wait before it shows how far it is,
EVERY = 0.5  #: and between two times that it does
PATIENCE = 1.0  #: seconds between two checks that workers are alive
LOST = re.compile(r"could not be loaded: \w+: blob (\w+) ")  #: the error of a task where a blob of its own is lost
TRIES = 4  #: how often a value that was lost is waited for again


class Progress(Protocol):
    """A line for somebody who waits, shown in place of the one before."""

    def show(self, line: str) -> None: ...
    def end(self, line: str) -> None: ...


class TerminalLine:
    """The line at the foot of a terminal. It goes when the wait has ended."""

    def show(self, line: str) -> None:
        cut = elide_columns(clean(line), shutil.get_terminal_size().columns - 1)
        print(f"\r{cut}\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self, line: str) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def terminal_line() -> Progress | None:
    """Return a line in the terminal; None where errors go elsewhere."""
    return TerminalLine() if sys.stderr is not None and sys.stderr.isatty() else None


class WaitDisplay:
    """Shows, from `QUIET` seconds on, how many of the tasks that something waits for, and of those they need, are done.

    A task that needs nothing any more shows nothing.
    """

    def __init__(self, store: Store, keys: Sequence[Key], clock: Clock, make: Callable[[], Progress | None]) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._make = make
        self._line: Progress | None = None
        self._began = clock.monotonic()
        self._first = 0  #: how many were done when it was first shown
        self._next = self._began + QUIET if keys else float("inf")

    def look(self) -> None:
        """Show the line anew, if it is time."""
        now = self._clock.monotonic()
        if now < self._next:
            return
        if self._line is None:
            self._keys = self._store.outstanding(self._keys)
            line = self._make() if len(self._keys) > 1 else None
            if line is None:
                self._next = float("inf")
                return
            self._line, self._first, self._began = line, self._done()[0], now
        done, text = self._done()
        since, left = done - self._first, len(self._keys) - done
        about = f" · about {render.duration((now - self._began) * left / since)} left" if since and left else ""
        self._line.show(text + about)
        self._next = now + max(EVERY, 20 * (self._clock.monotonic() - now))

    def end(self) -> None:
        """The wait has ended."""
        if self._line is not None:
            self._line.end(self._done()[1])

    def _done(self) -> tuple[int, str]:
        states = self._store.states(self._keys)
        done = sum(state is None or state.settled for state in states)
        wrong = [f"{states.count(one):,} {one.value}" for one in (State.FAILED, State.BLOCKED) if one in states]
        return done, ", ".join([f"{done:,} of {render.plural(len(self._keys))} done", *wrong])


class WorkerCheck:
    """Checks once a second, while something waits for tasks, that workers are there to run them.

    ``absent`` returns, for a number of tasks, why waiting would never end, or nothing where workers are alive.
    """

    def __init__(self, absent: Callable[[int], str], clock: Clock, patience: float) -> None:
        self._absent = absent
        self._clock = clock
        self._patience = patience
        self._next = clock.monotonic()
        self._until: float | None = None  # while there are none

    def __call__(self, count: Callable[[], int], over: Callable[[], bool]) -> None:
        """Raise NoWorkers if there have been none for ``patience`` seconds, and the tasks are not ``over``."""
        now = self._clock.monotonic()
        if now < self._next:
            return
        self._next = now + PATIENCE
        absent = self._absent(count())
        if not absent or over():  # the last worker may have left after settling the last task
            self._until = None
            return
        if self._until is None:
            self._until = now + self._patience
            if self._patience:
                tasks = render.plural(count())
                patience = render.duration(self._patience)
                print(f"{tasks} queued and no worker is running yet: waiting up to {patience} for one", file=sys.stderr)
        if now >= self._until:
            raise NoWorkers(absent)


class Results:
    """States, values and outputs of tasks. Each query first submits the tasks that are still pending.

    ``flush`` does that where the store has room, ``flush_all`` raises StoreError where it has not.
    """

    def __init__(
        self,
        access: StoreAccess,
        flush: Callable[[], None],
        flush_all: Callable[[], None],
        store_functions: Callable[[], None],
    ) -> None:
        self._store = access.store
        self._signed = access.signed
        self._clock = access.clock
        self._user = access.user
        self.opened = min(STARTED, access.process.started)  #: when this process began, in seconds since the epoch
        self._starting = access.starting
        self._flush = flush
        self._flush_all = flush_all
        self._store_functions = store_functions
        self.progress = terminal_line  #: returns what shows how far a wait is, or None
        self.wait_for_workers = 0.0  #: seconds to wait while no worker is running, where a call gives none
        self._seen = -1
        self._doubted: dict[Key, int] = {}  # how often a task had an outcome that could not be opened
        self._dropped: set[str] = set()  #: warnings of tasks that were given here
        self._ticks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[int]] = (
            weakref.WeakKeyDictionary()
        )

    # -- what is known -------------------------------------------------------------------------------------------------

    def states(self, keys: Sequence[Key]) -> list[State]:
        """Return the state of each task; one that the store doesn't know (any more) counts as cancelled."""
        self._flush()
        return [state or State.CANCELLED for state in self._store.states(keys)]

    def ended_before(self, key: Key) -> bool:
        """Return whether a task had ended before it is submitted now; read first, as workers may be quick."""
        [state] = self._store.states([key])
        self._flush()
        return state in (State.FINISHED, State.FAILED)

    def views(self, keys: Sequence[Key]) -> list[TaskView]:
        """Return each task as people see it, with a summary of its value or error."""
        self._flush()
        return self._signed.views(keys, filled=True)

    def kept(self, key: Key) -> Spec | None:
        """Return what a finished task was submitted with; None where it isn't finished."""
        self._flush()
        return self._signed.specs([key])[0] if self._store.states([key])[0] is State.FINISHED else None

    def outputs(self, key: Key) -> Outputs:
        """Return what the task printed and displayed, in order."""
        self._flush()
        [outcome] = self._signed.outcomes([key])
        return Outputs(() if outcome is None else self._signed.pieces(outcome.run))

    def provenance(self, key: Key) -> dict[str, Any]:
        """Return where a task's value comes from: see `Handle.provenance`."""
        self._flush()
        return self._signed.provenance(key)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def settle(
        self,
        keys: Sequence[Key],
        timeout: float | None = None,
        first: bool = False,
        strict: bool = False,
        wait_for_workers: float | None = None,
    ) -> bool:
        """Wait until all tasks are settled; with ``first``, one of them; with ``strict``, at most until one failed.

        Return False if ``timeout`` seconds were over before. Raises NoWorkers where none is alive, or comes within
        ``wait_for_workers`` seconds (default: the session's); WaitInterrupted on Ctrl-C.
        """
        self._flush_all()
        at = 0  # the tasks before this one are settled

        def over() -> bool:
            nonlocal at
            if first:
                return not keys or any(state is None or state.settled for state in self._store.states(keys))
            while at < len(keys):
                for state in self._store.states(keys[at : at + WINDOW]):
                    if state is not None and not state.settled:
                        return False
                    if strict and state is not State.FINISHED:
                        return True
                    at += 1
            return True

        return self._wait(over, lambda: keys[at:], timeout, wait_for_workers, () if first else keys)

    def _wait(
        self,
        over: Callable[[], bool],
        left: Callable[[], Sequence[Key]],
        timeout: float | None,
        wait_for_workers: float | None = None,
        keys: Sequence[Key] = (),
    ) -> bool:
        """Wait until ``over``; ``left`` are the keys that are waited for, of all these ``keys``. See `settle`."""
        timeout = waiting_time(timeout)
        until = None if timeout is None else self._clock.monotonic() + timeout
        check, display = self.worker_check(wait_for_workers), WaitDisplay(self._store, keys, self._clock, self.progress)
        try:
            seen = self._store.watch(-1, 0.0)
            while not over():
                now = self._clock.monotonic()
                if until is not None and now >= until:
                    return False
                check(lambda: len(left()), over)
                display.look()
                seen = self._store.watch(seen, PATIENCE if until is None else min(PATIENCE, until - now))
        except KeyboardInterrupt:
            raise WaitInterrupted(_interrupted(self._store, left())) from None
        finally:
            display.end()
        return True

    def barrier(self, busy: Callable[[], int]) -> None:
        """Wait until ``busy()``, a number of tasks, is zero."""
        self._flush_all()
        self._wait(lambda: not busy(), lambda: [""] * busy(), None)

    def worker_check(self, patience: float | None = None) -> WorkerCheck:
        """Return what raises NoWorkers while something waits; ``patience`` as ``wait_for_workers`` of `settle`."""
        patience = self.wait_for_workers if patience is None else system.not_negative("wait_for_workers", patience)
        return WorkerCheck(self._no_workers, self._clock, patience)

    def workers(self) -> int:
        """Return how many live workers can run our tasks; a supervisor that has none yet counts as one."""
        mine = system.python()
        return sum(
            alive and info.python == mine and (info.kind == "worker" or (info.kind == "supervisor" and info.size > 0))
            for info, alive, _ in self._store.processes()
        )

    def _no_workers(self, count: int) -> str:
        """Return why waiting would never end; empty where workers are alive."""
        if self.workers() or self._starting() or self.workers():  # those that were starting may have come meanwhile
            return ""
        return _for_ever(self._store, count)

    def stream(self, key: Key) -> Iterator[Any]:
        """Yield what a generator task yields: see `Task.stream`."""
        self._flush_all()
        return follow(self._store, self._signed.seal, key, self.worker_check(), lambda: self.collect([key], wait=True))

    async def settled(self, key: Key) -> None:
        """Wait until a task is settled, without blocking the loop. Waits in one loop share one watch on the store."""
        self._flush_all()
        from asyncio import shield  # it costs as much to import as all the rest

        check = self.worker_check()

        def over() -> bool:
            [state] = self._store.states([key])
            return state is None or state.settled

        while True:
            tick = self._tick()
            if over():
                return
            check(lambda: 1, over)
            await shield(tick)

    def _tick(self) -> asyncio.Task[int]:
        import asyncio

        loop = asyncio.get_running_loop()
        tick = self._ticks.get(loop)
        if tick is None or tick.done():
            self._seen = self._store.watch(-1, 0.0)
            tick = self._ticks[loop] = loop.create_task(asyncio.to_thread(self._store.watch, self._seen, PATIENCE / 2))
        return tick

    # -- loading -------------------------------------------------------------------------------------------------------

    def collect(
        self,
        keys: Sequence[Key],
        *,
        wait: bool,
        timeout: float | None = None,
        strict: bool = True,
        mmap: bool = False,
        wait_for_workers: float | None = None,
    ) -> list[Any]:
        """Return the values of tasks, in order. Where there is none, its error is raised, or (not ``strict``) a
        `Problem` stands in its place.

        ``wait`` until they are there, at most ``timeout`` seconds (WaitTimeout), with ``wait_for_workers`` as in
        `settle`; ``mmap`` maps large arrays instead of reading them. A value that was lost is computed again, and with
        ``wait`` waited for.
        """
        self._flush()
        timeout = waiting_time(timeout)
        until = None if timeout is None else self._clock.monotonic() + timeout
        values: dict[Key, Any] = {}
        left = keys
        for attempt in range(TRIES):
            if wait:
                remaining = None if until is None else max(0.0, until - self._clock.monotonic())
                if not self.settle(left, remaining, strict=strict, wait_for_workers=wait_for_workers):
                    raise WaitTimeout(self._late(left, timeout))
            again = wait and attempt < TRIES - 1
            left = self._load(left, values, strict, mmap, again)
            if not left:
                break
        return [values[key] for key in keys]

    def table(self, keys: Sequence[Key]) -> tuple[list[State], list[Any], dict[int, tuple[str, str]]]:
        """Return the tasks as they are now: their states, their values (None where there is none), and by number what
        went wrong with each that failed or is blocked: its kind, as in `Failed`, or "blocked", and a line.
        """
        self._flush()
        states: list[State] = []
        values: list[Any] = []
        errors: dict[int, tuple[str, str]] = {}
        for part in system.batched(keys, LOADED):
            missing = []
            for number, (key, held) in enumerate(zip(part, self._signed.held(part), strict=True), len(values)):
                value = None
                states.append(State.FINISHED)
                try:
                    if held is not None and held.verdict.digest:
                        value = self._value(key, held, False)
                    else:
                        missing.append(number)
                except ValueLost:
                    self._store.invalidate([key], Why.LOST, self._user)
                    missing.append(number)
                except (SignatureError, StoreError):
                    raise
                except Exception as error:  # the user's own classes are loaded here
                    errors[number] = "load", f"its value can't be loaded here: {type(error).__name__}: {error}"
                values.append(value)
            if missing:
                self._without_value(keys, missing, states, errors)
        return states, values, errors

    def _without_value(
        self, keys: Sequence[Key], numbers: Sequence[int], states: list[State], errors: dict[int, tuple[str, str]]
    ) -> None:
        """Fill in the states of tasks that have no value, and what went wrong."""
        for number, state in zip(numbers, self.states([keys[number] for number in numbers]), strict=True):
            states[number] = State.READY if state is State.FINISHED else state  # it has finished since
        failed = {number: keys[number] for number in numbers if states[number] is State.FAILED}
        blocked = [number for number in numbers if states[number] is State.BLOCKED]
        by = self._store.blocking_tasks([keys[number] for number in blocked])
        failed |= {number: key for number, key in zip(blocked, by, strict=True) if key is not None}
        unique = list(dict.fromkeys(failed.values()))
        outcomes = dict(zip(unique, self._signed.outcomes(unique), strict=True))
        calls = {key: self._call(key) for key in {failed[number] for number in blocked if number in failed}}
        for number, key in failed.items():
            outcome = outcomes[key]
            if isinstance(outcome, Failed):
                needed = states[number] is State.BLOCKED
                line = f"needs {calls[key]}, which failed: {outcome.error}" if needed else outcome.error
                errors[number] = ("blocked" if needed else outcome.kind), line

    def _late(self, keys: Sequence[Key], timeout: float | None) -> str:
        left = sum(state is not None and not state.settled for state in self._store.states(keys))
        return f"{left} of {len(keys)} tasks not done after {timeout:g} s; they go on"

    def _load(self, keys: Sequence[Key], values: dict[Key, Any], strict: bool, mmap: bool, again: bool) -> list[Key]:
        """Load what is stored into ``values``. Return, with ``again``, the keys to wait for once more."""
        left: list[Key] = []
        for part in system.batched(keys, LOADED):
            for key, held in zip(part, self._signed.held(part), strict=True):
                error: JugError
                try:
                    if held is not None and held.verdict.digest:
                        values[key] = self._value(key, held, mmap)
                        continue
                    error = self.problem(key)
                    if again and isinstance(error, TaskFailed) and self._brings_back(key):
                        error = NotReady(f"{self._call(key)} is being tried again")
                except ValueLost as lost:
                    self._store.invalidate([key], Why.LOST, self._user)
                    error = NotReady(f"the value of {key[:8]} was lost ({lost}) and will be recomputed")
                except SignatureError as damaged:
                    if not self._doubts(key):
                        raise
                    error = NotReady(f"what is stored of {key[:8]} is damaged and read anew: {damaged}")
                if again and isinstance(error, NotReady):
                    left.append(key)
                elif strict:
                    raise error
                values[key] = Problem(error)
        return left

    def _doubts(self, key: Key) -> bool:
        """Have a damaged record read anew, once for a task; after that, where possible, have the task run again, once.

        Whoever writes to the store without its key could have it run for ever.
        """
        before = self._doubted.get(key, 0)
        self._doubted[key] = before + 1
        return before < 2 and (_runs_again(self._store, key, self._user) if before else self._store.doubt())

    def _brings_back(self, key: Key) -> bool:
        """Where a task failed, or what it needs, for want of a blob, and that is there again by now: try it again.

        A function is stored again here. An argument was, if the cell of the task has run again.
        """
        [blocking] = self._store.blocking_tasks([key])
        failed = blocking or key
        [outcome] = self._signed.outcomes([failed])
        lost = LOST.match(outcome.error) if isinstance(outcome, Failed) else None
        if lost is None:
            return False
        self._store_functions()
        if not _has_blob(self._store, self._signed.known_spec(failed), lost[1]):
            return False
        self._store.invalidate([failed], Why.RETRY, self._user)
        return True

    def _value(self, key: Key, held: CurrentOutcome, mmap: bool) -> Any:
        outcome = self._signed.brief(key, held)
        assert type(outcome) is Brief
        if outcome.dropped and outcome.dropped not in self._dropped:
            self._dropped.add(outcome.dropped)
            warn_once(outcome.dropped, DroppedByPickle, f"{self._call(key)}: {outcome.dropped}")
        return codec.load_value(outcome.value, self._store.get_blob, self._mapped if mmap else None)

    def _mapped(self, address: Address) -> memoryview:
        return self._store.get_blob(address, mapped=True).toreadonly()

    def problem(self, key: Key) -> JugError:
        """Return the error that says why a task has no value. Raises StoreError if it couldn't be submitted."""
        self._flush_all()
        [state] = self._store.states([key])
        call = self._call(key)
        if state is None or state is State.CANCELLED:
            why, confirm = "is cancelled, so it", ""
            if state is None:
                why, confirm = f"isn't in {self._store.display_url}: it", ", and jn.confirm() where that asks"
            return TaskCancelled(f"{call} {why} will not run; re-run the cell that calls its function{confirm}")
        if state is State.FAILED:
            return self._failed(key, "") or NotReady(f"{call} is being tried again")
        if state is State.BLOCKED:
            [blocking] = self._store.blocking_tasks([key])
            if blocking is not None:
                return self._failed(blocking, f"{call} needs a task that failed:\n") or NotReady(f"{call} is waiting")
        return NotReady(
            f"{call} is {'waiting' if state is None else state.value}; wait for it with .result(), or start workers: "
            "%jug_execute -n 4"
        )

    def _when_failed(self, ended: float, them: str = "it") -> str:
        where = " in another run" if ended < self.opened else ""
        return f"{render.ago(self._clock.now() - ended)}{where}; %jug_retry tries {them} again"

    def earlier_failures(self, keys: Sequence[Key]) -> str:
        """Return, in a line, when these tasks failed, why the last did, and the way out; empty where none has."""
        views = [view for view in self._signed.views(keys[:LOADED], filled=True) if view.error]
        if not views:
            return ""
        last = max(views, key=lambda view: view.started + view.duration)
        what, why = render.call(last.name, last.args_repr, 60), elide(last.error, 80)
        when = self._when_failed(last.started + last.duration, "it" if len(keys) == 1 else "them")
        if len(keys) == 1:
            return clean(f"{what} failed {when} ({why})")
        return clean(f"{render.plural(len(keys))} failed before, the last {when} ({what}: {why})")

    def _call(self, key: Key) -> str:
        [view] = self._signed.views([key])
        return f"{view.name}({view.args_repr})" if view.name else f"task {key[:8]}"

    def _failed(self, key: Key, before: str) -> TaskFailed | None:
        [outcome] = self._signed.outcomes([key])
        [spec] = self._signed.specs([key])
        if not isinstance(outcome, Failed):
            return None
        view = failure(outcome, self._signed.views([key])[0].name, spec)
        when = f"failed {self._when_failed(view.started + view.duration)}"
        written: tuple[list[str], list[str]] = ([], [])
        if spec is not None:
            written = changed_files(spec.args_repr, spec.folder, spec.made, view.started)
        if written[0]:
            when += f". But {_were_written(written[0])}: re-run its cell, which makes another task"
        elif written[1]:
            when += f". {_were_written(written[1])}"
        elif " in another run" in when:
            when += "; if its code has changed since, re-run its cell, which makes another task"
        if LOST.match(outcome.error):
            when = "the store has lost its function or an argument of it: re-run its cell, which stores that again"
        error = TaskFailed(f"{before}{render.failure_text(view)}\n\n{when}", outcome)
        error.__cause__ = codec.load_exception(outcome.exception)
        return error


def _runs_again(store: Store, key: Key, user: str) -> bool:
    """Have a task run again whose outcome alone is damaged. Return False where it can't be damaged by itself."""
    if not store.bodies_apart or store.read_only:
        return False
    store.invalidate([key], Why.LOST, user)
    warnings.warn(f"the record of task {key[:8]} is damaged, so it runs again", stacklevel=2)
    return True


def _has_blob(store: Store, spec: Spec, beginning: str) -> bool:
    """Return whether the store has the blob of a task's function or arguments whose address begins so."""
    bundle = template(spec.template).bundle
    try:
        named = [bundle, *spec.arguments.buffers, *addresses_in(store.get_blob(bundle))]
        return bool([store.get_blob(name, mapped=True) for name in named if name.startswith(beginning)])
    except ValueLost:
        return False


def _for_ever(store: Store, count: int) -> str:
    """Return why waiting for ``count`` tasks would never end, where no worker can run them."""
    others = {info.python for info, alive, _ in store.processes() if alive and info.kind == "worker"}
    tasks = "1 task waits" if count == 1 else f"{count} tasks wait"
    if others:
        return (
            f"{tasks}, and the workers alive have Python {', '.join(sorted(others))} while the tasks were made "
            f"with {system.python()}, so waiting would never end. Start some with this Python: %jug_execute -n 4"
        )
    return (
        f"{tasks} and no worker is alive, so waiting would never end. Start some: %jug_execute -n 4; or wait for "
        "those of a queue: .result(wait_for_workers=600)"
    )


def _were_written(files: Sequence[str]) -> str:
    return f"{' and '.join(files)} {'was' if len(files) == 1 else 'were'} written since"


def _interrupted(store: Store, left: Sequence[Key]) -> str:
    counts: dict[str, int] = {}
    for state in store.states(store.outstanding(left)):
        if state is not None and not state.settled:
            counts[state.value] = counts.get(state.value, 0) + 1
    tasks = ", ".join(f"{count} {state}" for state, count in counts.items())
    tasks = tasks or (f"{len(left)} left" if any(key == "" for key in left) else "none is left")
    return f"waiting was interrupted; the tasks go on in their workers ({tasks}). Stop those with %jug_stop"
