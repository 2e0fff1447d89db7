"""Runs one task: load its function and needs, call it, catch what it prints, and settle it.

A `TaskRunner` keeps functions and values between the tasks of one worker. The loop around it is in `loop`.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from hashlib import sha1
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import msgspec

from jug_notebook import codec, frames, system
from jug_notebook.clock import Clock
from jug_notebook.codec.pickling import INLINE, restore_class, track_classes
from jug_notebook.errors import DroppedByPickle, JugError, SignatureError, StoreError, ValueLost
from jug_notebook.keys.advice import storing_result
from jug_notebook.keys.packages import check_pins
from jug_notebook.model import (
    AWAY,
    MARGIN,
    NEXT,
    NO_INPUTS,
    NO_ROOM,
    Address,
    Claim,
    Display,
    Failed,
    Finished,
    FunctionBundle,
    Key,
    Lease,
    Outcome,
    Payload,
    Run,
    Settlement,
    Spec,
    TaskTemplate,
    Verdict,
    Why,
    WorkerInfo,
)
from jug_notebook.render.format import summarise
from jug_notebook.store import Store, lacks_room, may_pass, reason_of
from jug_notebook.store.sealing import Seal
from jug_notebook.store.signed import SignedReader, SignedWriter
from jug_notebook.store.signed import template as template_of
from jug_notebook.task import context
from jug_notebook.task.binding import run_to_end
from jug_notebook.task.context import environment, running
from jug_notebook.worker.capture import Capture, Listener, Loggers
from jug_notebook.worker.displays import DisplayBuffer
from jug_notebook.worker.environment import EnvironmentRecord
from jug_notebook.worker.inputs import Needs, Stale
from jug_notebook.worker.leftovers import Leftovers
from jug_notebook.worker.mutations import Traces
from jug_notebook.worker.resources import VisibleDevices
from jug_notebook.worker.status import SharedStatus, backoff, lost_with_supervisors
from jug_notebook.worker.usage import Meter

SPAWN_TIME = 1e-4  #: seconds: a task that took less has started no process
PAUSE = 0.05  #: seconds before a store that is full or away is tried again; doubles each time, up to 10, or 1
LOGGED = 8 * PAUSE  #: when the pause is that long, the log tells
HURRY = 0.02  #: seconds after which a batch settles what it has
TRACEBACK = 1 << 16  #: characters of a traceback that are kept

K = TypeVar("K")
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """Keeps the items used last: at most ``places`` of them, with at most ``weight`` in all."""

    def __init__(self, places: int, weight: int = 1 << 62) -> None:
        self._places = places
        self._weight = weight
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._total = 0

    def get(self, name: K) -> V | None:
        found = self._items.get(name)
        if found is None:
            return None
        self._items.move_to_end(name)
        return found[0]

    def drop(self, name: K) -> None:
        _, weight = self._items.pop(name, (None, 0))
        self._total -= weight

    def put(self, name: K, item: V, weight: int = 0) -> None:
        if weight > self._weight or name in self._items:
            return
        self._items[name] = (item, weight)
        self._total += weight
        while len(self._items) > self._places or self._total > self._weight:
            _, (_, gone) = self._items.popitem(last=False)
            self._total -= gone


class _Function(NamedTuple):
    call: Callable[..., Any]
    bundle: FunctionBundle  #: without the function's bytes
    traces: Traces  #: that tasks left in it


class _Attempt:
    """One attempt at a task: how far it came."""

    __slots__ = ("claim", "function", "result", "since", "stage", "started", "template")

    def __init__(self, claim: Claim, started: float, since: float) -> None:
        self.claim = claim
        self.started = started
        self.since = since
        self.stage = "load"  #: then "raised", while the function runs, and "result": the kind of a failure there
        self.template = _NO_TEMPLATE
        self.function: _Function | None = None
        self.result: tuple[Payload, bytes, str, str] | None = None  #: value, its digest, its summary, what it lacks


_NO_TEMPLATE = TaskTemplate("", "", "", "")


class _Made:
    """What the last task of a worker came to, for one that needs it and follows at once."""

    __slots__ = ("begun", "outcome", "value")

    def __init__(self) -> None:
        self.begun: Lease | None = None  #: of that task, if it was begun before what it needs was settled
        self.outcome: Finished | None = None
        self.value: tuple[bytes, Any] | None = None  #: digest and value, where that is small and can't change


_bundle = msgspec.msgpack.Decoder(FunctionBundle).decode
_encode = msgspec.msgpack.Encoder().encode


class Runner(NamedTuple):
    """Calls a task's function instead of a plain call. What it needs around that, loading included, is its `stage`."""

    call: Callable[..., Any]
    stage: Callable[[], AbstractContextManager[Any]] | None


def runner_of(name: str) -> Runner:
    """Return the runner "module:function"; its stage is that module's ``stage``, if it has one."""
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    return Runner(getattr(found, attribute), getattr(found, "stage", None))


class TaskRunner:
    """Runs the tasks of one worker, and keeps functions and values for the next ones.

    It has no more than 30 attributes: those of objects with more take CPython longer to find.
    """

    def __init__(
        self,
        store: Store,
        seal: Seal,
        me: WorkerInfo,
        status: SharedStatus,
        clock: Clock,
        listener: Listener,
        in_process: bool,
        buffer: DisplayBuffer | None = None,
        folders: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._store = store
        self._signed, self._writer = SignedReader(store, seal), SignedWriter(seal)
        self._me = me
        self._status = status
        self._clock = clock
        self._listener = listener
        self._displays = buffer or DisplayBuffer(listener)
        self._in_process = in_process
        self._alone = isinstance(listener, Capture)  #: is this process a worker and nothing else?
        self._interruptible = in_process and threading.current_thread() is threading.main_thread()
        self._home = os.getcwd()
        self._devices = VisibleDevices()
        self._lost = False  #: the value of a need, while this task ran
        self._folders = tuple(folders)
        self._functions: LRUCache[Address, _Function] = LRUCache(200)
        self._last: tuple[Address, _Function] | None = None  #: that ran
        self._met: dict[type, None] = {}  #: classes of its values
        self._classes: dict[type, Traces] = {}
        self._runners: dict[str, Runner] = {}
        self._values: LRUCache[tuple[Key, bytes], Any] = LRUCache(1000, 64 << 20)
        self._blobs: LRUCache[Address, memoryview] = LRUCache(64, 64 << 20)
        self._copies: LRUCache[Address, Callable[[], memoryview]] = LRUCache(64, 1 << 30)
        self._loggers = Loggers()
        self._pace: dict[str, float] = {}
        self._meter = Meter(self._alone)
        self._environment = EnvironmentRecord(self._put)
        self.met_a_long_one = False  #: the last task wasn't short: none should wait behind the next one
        self._made = _Made()
        self.leftovers = Leftovers(store, seal, me, status, self.patiently)

    def pace(self, name: str) -> float:
        """Return the seconds that a task of this function took here so far; 0 where none ran."""
        return self._pace.get(name, 0.0)

    @property
    def begun(self) -> Lease | None:
        """The lease of the last task, if that was begun before what it needs was settled."""
        return self._made.begun

    def hand_in(self, settlement: Settlement) -> None:
        """Settle at once, so that the value can be read. Settling again later is harmless."""
        self.patiently(lambda: self._store.claim(self._me.id, 0, 0.0, [settlement]))

    def is_short(self, name: str) -> bool:
        """Did tasks of this function take next to no time so far?"""
        return self._pace.get(name, HURRY) < HURRY

    def attempt(self, claim: Claim) -> Settlement | None:
        """Run one task. Return None where it could not be started as claimed; then it has been given back."""
        clock = self._clock
        if hopeless := lost_with_supervisors(claim, self._me, clock):
            self.leftovers.lost(claim.lease)
            return self._writer.settlement(*hopeless)
        self._made.begun = None
        self._meter.begin(not self.is_short(claim.name))
        started, since, cpu = clock.now(), clock.monotonic(), clock.cpu()
        attempt = _Attempt(claim, started, since)
        failure: BaseException | None = None
        if self._alone:
            context.begin_turn(claim.name)
        if stray := self._listener.begin():  # threads or subprocesses that a task left behind
            with suppress(StoreError):
                self._store.notice(self._me.id, "".join(text for _, text in stray))
        try:
            with ExitStack() as around:
                self._run(attempt, around)
        except Stale:
            self._give_back(claim)
            return None
        except BaseException as error:  # whatever a task raises, SystemExit too, is its outcome and not our end
            if self._is_no_outcome(error, attempt.stage):
                self._give_back(claim)
                raise
            failure = error
        if os.getpid() != self._me.pid:
            os._exit(failure is not None)  # the task forked and this is the copy, which must not settle it
        if self._lost:  # what it asked for was not there, whatever it made of that
            self._give_back(claim)
            return None
        if self._alone:
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that it left must not ring in the next task
        if not self._in_process:
            self._displays.add_figures()
        duration = clock.monotonic() - since
        displays = self._displays.take()
        if duration > SPAWN_TIME and (left := self._listener.left_behind()):
            self._name_strays(claim, left)
        used = self._meter.end(duration)
        run = Run(
            self._me.id, self._me.host, self._me.pid, self._me.user, self._me.python, started, duration,
            clock.cpu() - cpu + used.cpu, claim.lease.attempt, self._listener.take(),
            tuple(map(self._stored, displays)), used.peak, used.read, used.written, self._environment.address(), "",
            used.waited,
        )  # fmt: skip
        context.end_turn()
        if duration > SPAWN_TIME:
            self._listener.release()
        settlement = self._settlement(attempt, failure, run)
        self.leftovers.end(settlement.verdict)
        failure = None  # or its traceback would keep this frame, and the task's values, alive
        self._status.end()
        self.met_a_long_one = duration > HURRY
        before = self._pace.get(claim.name, duration)
        self._pace[claim.name] = max(duration, before + (duration - before) * 0.2)
        return settlement

    def _name_strays(self, claim: Claim, left: str) -> None:
        """Name the processes that a task left behind: in its own output, and in the worker's log."""
        text = f"{claim.name} {claim.lease.key[:8]} left processes behind, which will end with their worker: {left}\n"
        print(text, end="", file=sys.stderr)
        with suppress(StoreError):
            self._store.notice(self._me.id, text)

    def _run(self, attempt: _Attempt, around: ExitStack) -> None:
        """Load the function and its arguments, call it, and encode the result; ``attempt`` keeps how far that came."""
        claim = attempt.claim
        around.enter_context(running())
        if not self._in_process:
            around.enter_context(warnings.catch_warnings())  # one shows in each task, not once in a worker's life
        spec = self._signed.spec(claim.lease.key, claim.body)
        template = attempt.template = template_of(spec.template)
        needs, inputs = self._needed(claim, spec)
        if claim.lease.inputs == NEXT:
            begun = self._made.begun = msgspec.structs.replace(claim.lease, inputs=inputs)
            claim = attempt.claim = msgspec.structs.replace(claim, lease=begun)
        self._status.begin(claim, template, attempt.started, attempt.since)
        self._go_to(spec.folder, around)
        runner = self._runner(template.runner) if template.runner else None
        if runner is not None and runner.stage is not None:
            around.enter_context(runner.stage())
        devices = self._devices.let_see(claim.devices)
        function = attempt.function = self._function(template.bundle)
        codec.use_modules(function.bundle)
        pins = function.bundle.pins
        if pins:
            check_pins(pins)
        if function.bundle.environment or function.bundle.secrets:
            around.enter_context(environment({**function.bundle.environment, **devices}, function.bundle.secrets))
        args, kwargs = codec.load_call(spec.arguments, needs, self._blob, self._buffer)
        needs = None
        for cls in self._met:
            if cls not in self._classes:
                self._classes[cls] = Traces(cls)
        if self._alone:
            self._loggers.set_up(template.loggers)
        if claim.tokens:
            self._start(claim.tokens)
        attempt.stage = "raised"
        call = function.call
        self.leftovers.begin(claim.lease)
        value = runner.call(call, args, kwargs) if runner is not None else run_to_end(call, args, kwargs)
        if pins:
            check_pins(pins)  # it may have been the first to import a package that was installed anew meanwhile
        attempt.stage = "result"
        with storing_result() as warned:
            payload, digest = codec.dump_value(value, self._put)
        dropped = " ".join(warned)
        attempt.result = payload, digest, summarise(value), dropped
        small = not payload.buffers and type(value) in _IMMUTABLE
        self._made.value = (digest, value) if small else None
        if dropped and not self._in_process:  # a notebook is warned by what it loads, a terminal by the log
            print(f"{DroppedByPickle.__name__}: {dropped}", file=sys.stderr)

    def _start(self, tokens: Sequence[Lease]) -> None:
        """Have the periods of rates begin, at a time that is known to be close to that at which the call begins."""
        ahead = 0.0
        while True:
            since = self._clock.monotonic()
            self.patiently(partial(self._store.start, tokens, ahead))
            took = self._clock.monotonic() - since
            if took <= ahead + MARGIN / 2:
                return
            ahead = 2 * took

    def _is_no_outcome(self, error: BaseException, stage: str) -> bool:
        """Is an error not the task's doing? Then the task is given back, and the worker ends."""
        if isinstance(error, KeyboardInterrupt):
            return self._interruptible  # somebody pressed Ctrl-C
        if isinstance(error, StoreError):
            return stage != "raised" and not isinstance(error, SignatureError | ValueLost)
        # tasks before it left files open; a new worker has none
        return stage == "load" and isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)

    def _settlement(self, attempt: _Attempt, failure: BaseException | None, run: Run) -> Settlement:
        """Return what settles the task: its result, or its failure and when it is retried."""
        claim, lease = attempt.claim, attempt.claim.lease
        outcome: Outcome
        self._made.outcome = None
        where = lease.key, lease.round, lease.inputs
        if failure is None:
            assert attempt.result is not None
            payload, digest, summary, dropped = attempt.result
            outcome = self._made.outcome = Finished(*where, digest, payload, summary, run, dropped)
            verdict = Verdict(*where, lease.attempt, digest, run.started, run.duration)
        else:
            labels = attempt.function.bundle.labels if attempt.function else {}
            outcome = self._failed(failure, attempt.stage, lease, run, labels)
            again = attempt.stage == "raised" and claim.failures < attempt.template.retries
            retry_at = self._clock.now() + backoff(claim.failures) if again else 0.0
            verdict = Verdict(*where, lease.attempt, b"", run.started, run.duration, not again, False, retry_at)
        return self._writer.settlement(verdict, outcome)

    def _stored(self, display: Display) -> Display:
        """Move a large display into a blob, so that reading the value need not read it."""
        data = _encode(display.data)
        if len(data) <= INLINE:
            return display
        return Display(display.at, {}, display.metadata, self._put([data]))

    def _put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Store a blob; where there is no room for it now, wait rather than throw a result away."""
        pieces = list(parts)
        return self.patiently(lambda: self._store.put_blob(pieces))

    def patiently(self, act: Callable[[], V]) -> V:
        """Act on the store and return the result. In a worker process, wait while the store can't do it for now.

        That is while it lacks room, or its server is away; how long that may take is the supervisor's business.
        """
        pause = PAUSE
        while True:
            try:
                return act()
            except StoreError as error:
                full = lacks_room(error)
                if self._in_process or not may_pass(error):
                    raise
                if pause == LOGGED:
                    with suppress(StoreError):  # there may be no room for this either
                        self._store.notice(self._me.id, f"{error}; waiting for {'free space' if full else 'it'}\n")
                self._status.note(f"{NO_ROOM if full else AWAY}: {reason_of(error)}")
            self._clock.sleep(pause)
            self._status.note("")
            pause = min(10.0 if full else 1.0, 2 * pause)

    def _give_back(self, claim: Claim) -> None:
        self._listener.take()
        self._displays.take()
        self.leftovers.end()
        self._status.end(settled=False)
        if claim.lease.inputs != NEXT:
            self.patiently(lambda: self._store.release([claim.lease]))

    # -- getting ready

    def _function(self, address: Address) -> _Function:
        self._tidy()
        function = self._functions.get(address) or self._loaded(address)
        self._last = address, function
        return function

    def _tidy(self) -> None:
        """Undo what the last task changed in its function, or in classes of its values, before the next one starts."""
        with suppress(StoreError):
            for cls in self._met:
                if cls in self._classes and not self._classes[cls].none():
                    restore_class(cls, self._blob)
            if self._last is not None and not self._last[1].traces.none():
                last, self._last = self._last[0], None
                self._functions.drop(last)
                self._loaded(last, exact=True)  # its classes are those of others, too
        self._met = track_classes()

    def _loaded(self, address: Address, exact: bool = False) -> _Function:
        bundle = _bundle(self._blob(address))
        looks = codec.needs_exact(bundle)
        call = codec.load_function(bundle, self._blob, exact or looks, self._buffer)
        function = _Function(call, msgspec.structs.replace(bundle, function=b"", sources={}, parts={}), Traces(call))
        if not looks:
            self._functions.put(address, function)
        return function

    def _runner(self, name: str) -> Runner:
        runner = self._runners.get(name)
        if runner is None:
            runner = self._runners[name] = runner_of(name)
        return runner

    def _needed(self, claim: Claim, spec: Spec) -> tuple[Needs | None, bytes]:
        """Return the needs, and the digest of their values, which are loaded on first use.

        Raises Stale where they aren't as claimed, or the task before has no value.
        """
        self._lost = False
        inputs, made = claim.lease.inputs, self._made.outcome
        if not spec.needs and inputs == NO_INPUTS:
            return None, inputs
        opened: list[Finished] = []
        for slot, (key, body) in enumerate(zip(spec.needs, claim.needs, strict=True)):
            if body or inputs != NEXT:
                try:
                    opened.append(self._signed.result(key, body, claim.proofs[slot] if claim.proofs else ()))
                except SignatureError:
                    if not self._store.bodies_apart:
                        raise
                    self._run_again(key)
            elif made is not None and made.key == key:
                opened.append(made)
            else:
                raise Stale
        found = sha1(b"".join([need.digest for need in opened])).digest()
        if inputs not in (found, NEXT):
            raise Stale
        loads = [partial(self._value, key, need) for key, need in zip(spec.needs, opened, strict=True)]
        return Needs(spec.needs, loads, self._signed, made.key if made and inputs == NEXT else ""), found

    def _value(self, key: Key, need: Finished) -> Any:
        made = self._made.value
        if made is not None and made[0] == need.digest:
            return made[1]
        name = (key, need.digest)
        value = self._values.get(name)
        if value is None:
            try:
                value = codec.load_value(need.value, self._blob, self._buffer)
            except ValueLost:
                self._run_again(key)
            if type(value) in _IMMUTABLE:  # whatever can be changed in place is made anew for each task
                self._values.put(name, value, sys.getsizeof(value))
        return value

    def _run_again(self, need: Key) -> NoReturn:
        """Have a need run again whose value is lost or damaged, and give this task back."""
        self._lost = True
        self.patiently(lambda: self._store.invalidate([need], Why.LOST, self._me.user))
        raise Stale from None

    def _blob(self, address: Address) -> memoryview:
        data = self._blobs.get(address)
        if data is None:
            data = self.patiently(lambda: self._store.get_blob(address)).toreadonly()
            self._blobs.put(address, data, data.nbytes)
        return data

    def _buffer(self, address: Address) -> memoryview:
        """Return the memory of an array: read once for all tasks that need it; what one writes, no other sees."""
        copy = self._copies.get(address)
        if copy is None:
            data = self.patiently(lambda: self._store.get_blob(address, mapped=True))
            if not data.readonly:
                return data  # a file's; the system has it in memory for the next task
            copy = system.copies_of(data, address)
            self._copies.put(address, copy, data.nbytes)
        return copy()

    def _go_to(self, folder: str, around: ExitStack) -> None:
        """Change to the folder that the task was made in; what isn't a worker process goes back afterwards."""
        folder = mapped(folder, self._folders)
        try:
            now = os.getcwd()
        except OSError:  # the task before left us in a folder that it removed
            os.chdir(now := self._home)
        if now == folder:
            return
        if self._in_process:
            around.callback(os.chdir, now)
        try:
            os.chdir(folder)
        except OSError:  # it is not on this host
            os.chdir(self._home)

    # -- failures

    def _failed(self, error: BaseException, kind: str, lease: Lease, run: Run, labels: dict[str, str]) -> Failed:
        # our own errors say what, where and what next; a traceback through our code says nothing more
        report = "" if kind != "raised" and isinstance(error, JugError) else _traceback(error, labels)
        return Failed(
            lease.key, lease.round, lease.inputs, kind, in_a_line(error, kind), report, run,
            codec.dump_exception(error) if kind == "raised" else b"", labels,
        )  # fmt: skip


def mapped(path: str, folders: Iterable[tuple[str, str]]) -> str:
    """Return where a path of another machine is on this one: the longest folder that contains it counts."""
    for before, after in sorted(folders, key=lambda pair: len(pair[0]), reverse=True):
        before = before.rstrip("/")
        if path == before or path.startswith(before + "/"):
            return after.rstrip("/") + path[len(before) :] or "/"
    return path


_IMMUTABLE = frozenset((int, float, complex, bool, str, bytes))


def in_a_line(error: BaseException, kind: str = "raised") -> str:
    """Return an error in a line: "ZeroDivisionError: division by zero"."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)[:100]})"
    name = type(error).__qualname__
    try:
        text = str(error).strip().partition("\n")[0]
    except Exception:  # the task's own class may do anything
        text = "(its str() raises)"
    line = f"{name}: {text[:300]}" if text else name
    if kind == "load":
        return f"could not be loaded: {line}"
    return f"its result can't be stored: {line}" if kind == "result" else line


def _traceback(error: BaseException, labels: dict[str, str]) -> str:
    """Return a traceback as Python prints it, from the task's first own line on, without ours; cells have labels."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(frames.OURS):
        frame = frame.tb_next
    try:
        report = traceback.TracebackException(type(error), error, frame, compact=True)
        if theirs := [step for step in report.stack if not step.filename.startswith(frames.OURS)]:
            report.stack[:] = theirs
        text = "".join(report.format())
    except Exception:  # an exception class of the task that can't even be printed
        text = f"{type(error).__qualname__}\n"
    for filename, label in labels.items():
        text = text.replace(f'File "{filename}"', label)
    if len(text) > TRACEBACK:
        cut = len(text) - TRACEBACK
        text = f"{text[: TRACEBACK // 2]}\n… {cut:,} characters left out …\n{text[-TRACEBACK // 2 :]}"
    return text
