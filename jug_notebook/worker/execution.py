"""One worker: claim tasks, run them, settle them, until told to stop.

`work` is the loop; a `Bench` holds what it keeps between tasks (functions, values of needs) and runs one; a `Slot` is
the page on which a supervisor, without asking, reads what the worker runs.
"""

from __future__ import annotations

import errno
import importlib
import mmap
import os
import signal
import sys
import threading
import traceback
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from hashlib import sha1
from struct import Struct
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from jug_notebook import alias, codec
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.codec import Seal
from jug_notebook.errors import JugError, SignatureError, StoreError, ValueLost
from jug_notebook.model import (
    NO_INPUTS,
    Address,
    Claim,
    Display,
    Failed,
    Finished,
    Grant,
    Key,
    Outcome,
    Parcel,
    Recipe,
    Run,
    Settlement,
    Spec,
    Target,
    Verdict,
    Why,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.store import Store
from jug_notebook.task import progress
from jug_notebook.task.context import running
from jug_notebook.worker import displays as album
from jug_notebook.worker.capture import Capture, Deaf, Listener
from jug_notebook.worker.displays import Album
from jug_notebook.worker.inputs import Needs
from jug_notebook.worker.mutations import Traces

BATCH = 512  #: tasks in one claim; the store gives fewer, about 20 ms of work
HURRY = 0.02  #: seconds after which a batch settles what it has
PATIENCE = 0.05  #: seconds for which the rest of a batch waits behind a task that takes longer than was expected
WAIT = 1.0  #: seconds of waiting for work in one go
BACKOFF = 0.25  #: seconds before the first retry; doubles each time
TRACEBACK = 1 << 16  #: characters of a traceback that are kept

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OURS = (_HOME + os.sep, os.path.join(os.path.dirname(_HOME), "kernel_ext") + os.sep)


# -- what the supervisor sees ------------------------------------------------------------------------------------------


class Running(NamedTuple):
    """What a worker was running when it was looked at."""

    turn: int  #: counts the tasks that this worker began
    grant: Grant
    name: str
    started: float  #: seconds since the epoch
    since: float  #: the same on the monotonic clock, which all processes of a host share
    timeout: float | None
    failures: int
    retries: int
    deaths: int
    progress: tuple[int, int] = (0, 0)  #: done, and of how many, as the task itself tells


class Slot:
    """One page that a worker and its supervisor share: written and read without a system call."""

    _record = Struct("<QQdddIIIIII40s20s255s")
    _count = Struct("<Q")
    _progress = Struct("<QQQ")
    _RUNNING, _STOP, _WAITING, _DONE, _PROGRESS, _RECORD = 0, 1, 2, 8, 16, 40

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._turn = 0
        self._done = 0

    # the worker writes

    def begin(self, claim: Claim, recipe: Recipe, started: float, since: float) -> None:
        """From here on, a death of the worker is a death in this task."""
        grant = claim.grant
        self._turn += 1
        name = claim.name.encode()[:255]
        timeout = -1.0 if recipe.timeout is None else recipe.timeout
        self._record.pack_into(
            self._page, self._RECORD, self._turn, len(name), started, since, timeout, claim.failures, recipe.retries,
            claim.deaths, grant.round, grant.attempt, len(grant.key), grant.key.encode(), grant.inputs, name,
        )  # fmt: skip
        self._page[self._RUNNING] = 1

    def end(self, settled: bool = True) -> None:
        self._page[self._RUNNING] = 0
        self._done += settled
        self._count.pack_into(self._page, self._DONE, self._done)

    def tell(self, done: int, total: int) -> None:
        """How far the task is. It counts for this turn alone."""
        self._progress.pack_into(self._page, self._PROGRESS, self._turn, done, total)

    def waits(self, waiting: bool) -> None:
        """A worker that waits for tasks may be killed: it has nothing to lose."""
        self._page[self._WAITING] = waiting

    @property
    def told_to_stop(self) -> bool:
        return bool(self._page[self._STOP])

    # the supervisor reads

    def stop(self) -> None:
        """Tell the worker to end after its current task."""
        self._page[self._STOP] = 1

    @property
    def done(self) -> int:
        count: int = self._count.unpack_from(self._page, self._DONE)[0]
        return count

    @property
    def waiting(self) -> bool:
        return bool(self._page[self._WAITING])

    def read(self) -> Running | None:
        """What the worker runs now. Two equal looks in a row mean that neither saw half a change."""
        size = self._RECORD + self._record.size
        page = self._page[:size]
        while page != (again := self._page[:size]):
            page = again
        if not page[self._RUNNING]:
            return None
        (turn, name_size, started, since, timeout, failures, retries, deaths, round, attempt, key_size,
         key, inputs, name) = self._record.unpack_from(page, self._RECORD)  # fmt: skip
        grant = Grant(key[:key_size].decode(), round, inputs, attempt)
        shown = name[:name_size].decode(errors="ignore")
        limit = None if timeout < 0 else timeout
        told, done, total = self._progress.unpack_from(page, self._PROGRESS)
        progress = (done, total) if told == turn else (0, 0)
        return Running(turn, grant, shown, started, since, limit, failures, retries, deaths, progress)

    def close(self) -> None:
        self._page.close()


# -- what a worker keeps between tasks ---------------------------------------------------------------------------------

K = TypeVar("K")
V = TypeVar("V")


class Shelf(Generic[K, V]):
    """The things used last, so many and so heavy at the most."""

    def __init__(self, places: int, weight: int = 1 << 62) -> None:
        self._places = places
        self._weight = weight
        self._things: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._heavy = 0

    def get(self, name: K) -> V | None:
        found = self._things.get(name)
        if found is None:
            return None
        self._things.move_to_end(name)
        return found[0]

    def drop(self, name: K) -> None:
        _, weight = self._things.pop(name, (None, 0))
        self._heavy -= weight

    def put(self, name: K, thing: V, weight: int = 0) -> None:
        if weight > self._weight or name in self._things:
            return
        self._things[name] = (thing, weight)
        self._heavy += weight
        while len(self._things) > self._places or self._heavy > self._weight:
            _, (_, gone) = self._things.popitem(last=False)
            self._heavy -= gone


class _Stale(Exception):
    """The needs are no longer worth what the claim says."""


class _Function(NamedTuple):
    call: Callable[..., Any]
    parcel: Parcel  #: without the function's bytes
    traces: Traces  #: that tasks left in it


class Runner(NamedTuple):
    """Calls a task's function instead of a plain call. What it needs around that, loading included, is its `stage`."""

    call: Callable[..., Any]
    stage: Callable[[], AbstractContextManager[Any]] | None


def runner_of(name: str) -> Runner:
    """The runner "module:function"; the stage is that module's ``stage``, if it has one."""
    module, _, attribute = name.partition(":")
    room = importlib.import_module(module)
    return Runner(getattr(room, attribute), getattr(room, "stage", None))


class Bench:
    """Where one worker runs tasks, with what it keeps at hand for the next one."""

    def __init__(
        self,
        store: Store,
        seal: Seal,
        me: WorkerInfo,
        slot: Slot,
        clock: Clock,
        listener: Listener,
        guest: bool,
        book: Album | None = None,
        folders: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._store = store
        self._seal = seal
        self._me = me
        self._slot = slot
        self._clock = clock
        self._listener = listener
        self._album = book or Album(listener)
        self._guest = guest
        self._alone = isinstance(listener, Capture)  #: is this process a worker and nothing else?
        self._warnings: Callable[[], Any] = nullcontext if guest else warnings.catch_warnings
        self._interruptible = guest and threading.current_thread() is threading.main_thread()
        self._home = os.getcwd()
        self._lost = False  #: the value of a need, while this task ran
        self._folders = tuple(folders)
        self._recipes: Shelf[bytes, Recipe] = Shelf(1000)
        self._functions: Shelf[Address, _Function] = Shelf(200)
        self._last: tuple[Address, _Function] | None = None  #: that ran
        self._met: dict[type, None] = {}  #: classes of its values
        self._classes: dict[type, Traces] = {}
        self._runners: dict[str, Runner] = {}
        self._values: Shelf[tuple[Key, bytes], Any] = Shelf(1000, 64 << 20)
        self._blobs: Shelf[Address, memoryview] = Shelf(64, 64 << 20)
        self._maps: Shelf[Address, memoryview] = Shelf(64, 1 << 30)  # of the machine's memory, not of the worker's own
        self._buffer = codec.own(self._mapped)
        self._spec = msgspec.msgpack.Decoder(Spec)
        self._recipe = msgspec.msgpack.Decoder(Recipe)
        self._parcel = msgspec.msgpack.Decoder(Parcel)
        self._finished = msgspec.msgpack.Decoder(Finished)
        self._encode = msgspec.msgpack.Encoder().encode
        self._pace: dict[str, float] = {}
        self.met_a_long_one = False  #: the last task wasn't short: none should wait behind the next one

    def pace(self, name: str) -> float:
        """Seconds that a task of this function took here so far; 0 where none was."""
        return self._pace.get(name, 0.0)

    def hand_in(self, settlement: Settlement) -> None:
        """Settle at once, for who wants to look at the value. Settling again later is fine."""
        self._store.claim(self._me.id, 0, 0.0, [settlement])

    def is_short(self, name: str) -> bool:
        """Did tasks of this function take next to no time so far?"""
        return self._pace.get(name, HURRY) < HURRY

    def attempt(self, claim: Claim) -> Settlement | None:
        """Run one task. None where it could not be begun as claimed; then it has been given back."""
        clock, grant = self._clock, claim.grant
        started, since, cpu = clock.now(), clock.monotonic(), clock.cpu()
        recipe, spec, function, kind = Recipe("", "", "", ""), None, None, "load"
        failure: BaseException | None = None
        stray = self._listener.begin()
        if stray:  # threads or subprocesses that a task left behind
            self._store.notice(self._me.id, "".join(text for _, text in stray))
        try:
            with ExitStack() as around:
                around.enter_context(running())
                around.enter_context(self._warnings())  # a warning shows in each task, not once in a worker's life
                spec = self._spec.decode(self._seal.open("spec", grant.key, 0, b"", claim.body))
                recipe = self._known_recipe(spec.recipe)
                self._slot.begin(claim, recipe, started, since)
                if not self._guest:
                    self._go_to(spec.folder)
                runner = self._runner(recipe.runner) if recipe.runner else None
                if runner is not None and runner.stage is not None:
                    around.enter_context(runner.stage())
                needs = self._needed(claim, spec)
                function = self._function(recipe.parcel)
                codec.use_modules(function.parcel)
                args, kwargs = codec.load_call(spec.arguments, needs, self._blob, self._buffer)
                needs = None
                for cls in self._met:
                    if cls not in self._classes:
                        self._classes[cls] = Traces(cls)
                kind = "raised"
                if runner is not None:
                    value = runner.call(function.call, args, kwargs)
                else:
                    value = function.call(*args, **kwargs)
                kind = "result"
                payload, digest = codec.dump_value(value, self._put)
                summary = codec.summarise(value)
        except _Stale:
            self._give_back(claim)
            return None
        except KeyboardInterrupt as error:
            if self._interruptible:  # somebody pressed Ctrl-C
                self._give_back(claim)
                raise
            failure = error
        except StoreError as error:
            if kind != "raised" and not isinstance(error, SignatureError | ValueLost):
                self._give_back(claim)  # not the task's fault
                raise
            failure = error
        except OSError as error:
            if kind == "load" and error.errno in (errno.EMFILE, errno.ENFILE):
                self._give_back(claim)  # tasks before it left files open; a fresh worker has none
                raise
            failure = error
        except BaseException as error:  # whatever a task raises, SystemExit too, is its outcome and not our end
            failure = error
        if os.getpid() != self._me.pid:
            os._exit(failure is not None)  # the task forked and this is the copy: the task's outcome is not its to tell
        if self._lost:  # what it asked for was not there, whatever it made of that
            self._give_back(claim)
            return None
        if self._alone:
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that it left must not ring in the next task
        if not self._guest:
            self._album.add_figures()
        duration = clock.monotonic() - since
        displays = self._album.take()
        run = Run(
            self._me.id, self._me.host, self._me.pid, self._me.user, self._me.python, started, duration,
            clock.cpu() - cpu, grant.attempt, self._listener.take(), tuple(map(self._shown, displays)),
        )  # fmt: skip
        outcome: Outcome
        key, round, inputs, attempt = grant.key, grant.round, grant.inputs, grant.attempt
        if failure is None:
            outcome = Finished(key, round, inputs, digest, payload, summary, run)
            verdict = Verdict(key, round, inputs, attempt, digest, started, duration)
        else:
            outcome = self._failed(failure, kind, grant, run, function.parcel.labels if function else {})
            again = kind == "raised" and claim.failures < recipe.retries
            retry_at = clock.now() + backoff(claim.failures) if again else 0.0
            verdict = Verdict(key, round, inputs, attempt, b"", started, duration, not again, False, retry_at)
        body = self._seal.seal("outcome", key, round, inputs, self._encode(outcome))
        failure = None  # or its traceback would keep this frame, and the task's values, alive
        self._slot.end()
        self.met_a_long_one = duration > HURRY
        before = self._pace.get(claim.name, duration)
        self._pace[claim.name] = max(duration, before + (duration - before) * 0.2)
        return Settlement(verdict, body)

    def _shown(self, display: Display) -> Display:
        """Large ones go into a blob, so that who wants the value needn't read them."""
        data = self._encode(display.data)
        if len(data) <= codec.INLINE:
            return display
        return Display(display.at, {}, display.metadata, self._put([data]))

    def _put(self, parts: Iterable[bytes | memoryview]) -> Address:
        """What a task has come to is not thrown away because there is no room for it at the moment."""
        pieces = list(parts)
        return self.patiently(lambda: self._store.put_blob(pieces))

    def patiently(self, act: Callable[[], V]) -> V:
        """Do something with the store. Where its disk is full, wait until there is room again; a guest doesn't."""
        pause = 0.5
        while True:
            try:
                return act()
            except StoreError as error:
                cause = error.__cause__
                if self._guest or not isinstance(cause, OSError) or cause.errno not in _NO_ROOM:
                    raise
                with suppress(OSError):  # there may be no room for this either
                    self._store.notice(self._me.id, f"{error}; waiting for room\n")
            self._clock.sleep(pause)
            pause = min(10.0, 2 * pause)

    def _give_back(self, claim: Claim) -> None:
        self._listener.take()
        self._album.take()
        self._slot.end(settled=False)
        self._store.release([claim.grant])

    # -- getting ready

    def _known_recipe(self, data: bytes) -> Recipe:
        recipe = self._recipes.get(data)
        if recipe is None:
            recipe = self._recipe.decode(data)
            self._recipes.put(data, recipe)
        return recipe

    def _function(self, address: Address) -> _Function:
        self._tidy()
        function = self._functions.get(address) or self._loaded(address)
        self._last = address, function
        return function

    def _tidy(self) -> None:
        """What the last task changed in its function, or in classes of its values, is not what the next one finds."""
        with suppress(StoreError):
            for cls in self._met:
                if cls in self._classes and not self._classes[cls].none():
                    codec.restore(cls, self._blob)
            if self._last is not None and not self._last[1].traces.none():
                former, self._last = self._last[0], None
                self._functions.drop(former)
                self._loaded(former, exact=True)  # its classes are those of others, too
        self._met = codec.meeting()

    def _loaded(self, address: Address, exact: bool = False) -> _Function:
        parcel = self._parcel.decode(self._blob(address))
        looks = codec.looks(parcel)
        call = codec.load_function(parcel, self._blob, exact=exact or looks)
        function = _Function(
            call, msgspec.structs.replace(parcel, function=b"", sources={}, parts={}), Traces(call)
        )
        if not looks:
            self._functions.put(address, function)
        return function

    def _runner(self, name: str) -> Runner:
        runner = self._runners.get(name)
        if runner is None:
            runner = self._runners[name] = runner_of(name)
        return runner

    def _needed(self, claim: Claim, spec: Spec) -> Needs | None:
        """The needs, of which values are loaded when they are asked for. Raises _Stale where they aren't as claimed."""
        self._lost = False
        if not spec.needs and claim.grant.inputs == NO_INPUTS:
            return None
        opened: list[Finished] = []
        for slot, (key, body) in enumerate(zip(spec.needs, claim.needs, strict=True)):
            said = self._finished.decode(memoryview(body)[32:])  # unproven; says what the signature must cover
            opened.append(self._finished.decode(self._seal.open("outcome", said.key, said.round, said.inputs, body)))
            if said.key != key:
                proof = claim.proofs[slot] if claim.proofs else ()
                alias.prove(self._seal, key, said.key, said.round, said.inputs, said.digest, proof)
        if sha1(b"".join([need.digest for need in opened])).digest() != claim.grant.inputs:
            raise _Stale
        loads = [partial(self._value, key, need) for key, need in zip(spec.needs, opened, strict=True)]
        return Needs(spec.needs, loads, self._store, self._seal)

    def _value(self, key: Key, need: Finished) -> Any:
        name = (key, need.digest)
        value = self._values.get(name)
        if value is None:
            try:
                value = codec.load_value(need.value, self._blob, self._buffer)
            except ValueLost:
                self._lost = True
                self._store.invalidate([key], Why.LOST, self._me.user)
                raise _Stale from None
            if type(value) in _IMMUTABLE:  # whatever can be changed in place is made anew for each task
                self._values.put(name, value, sys.getsizeof(value))
        return value

    def _blob(self, address: Address) -> memoryview:
        data = self._blobs.get(address)
        if data is None:
            data = self._store.get_blob(address).toreadonly()
            self._blobs.put(address, data, data.nbytes)
        return data

    def _mapped(self, address: Address) -> memoryview:
        """Proven once for all the tasks that need it; each gets a copy of its own."""
        data = self._maps.get(address)
        if data is None:
            data = self._store.map_blob(address)
            self._maps.put(address, data, data.nbytes)
        return data

    def _go_to(self, folder: str) -> None:
        folder = mapped(folder, self._folders)
        try:
            if os.getcwd() == folder:
                return
        except OSError:  # the task before left us in a folder that it removed
            os.chdir(self._home)
        try:
            os.chdir(folder)
        except OSError:  # the notebook's folder is not on this host
            os.chdir(self._home)

    # -- telling what went wrong

    def _failed(self, error: BaseException, kind: str, grant: Grant, run: Run, labels: dict[str, str]) -> Failed:
        # our own errors say what, where and what next; a traceback through our code says nothing more
        report = "" if kind != "raised" and isinstance(error, JugError) else _traceback(error, labels)
        return Failed(
            grant.key, grant.round, grant.inputs, kind, in_a_line(error, kind), report, run,
            codec.dump_exception(error) if kind == "raised" else b"",
        )  # fmt: skip


def mapped(path: str, folders: Iterable[tuple[str, str]]) -> str:
    """Where a path of another machine is on this one: the longest folder that it is below counts."""
    for before, after in sorted(folders, key=lambda pair: len(pair[0]), reverse=True):
        before = before.rstrip("/")
        if path == before or path.startswith(before + "/"):
            return after.rstrip("/") + path[len(before) :] or "/"
    return path


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_IMMUTABLE = frozenset((int, float, complex, bool, str, bytes))


def backoff(failures: int) -> float:
    """Seconds before a task that has raised so often is tried again."""
    return float(min(60.0, BACKOFF * 2**failures))


def in_a_line(error: BaseException, kind: str = "raised") -> str:
    """As in "ZeroDivisionError: division by zero"."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)[:100]})"
    name = type(error).__qualname__
    try:
        text = str(error).strip().partition("\n")[0]
    except Exception:  # the task's own class may do anything
        text = "(its text can't be had: str() of it raises)"
    line = f"{name}: {text[:300]}" if text else name
    if kind == "load":
        return f"could not be loaded: {line}"
    return f"its result can't be stored: {line}" if kind == "result" else line


def _traceback(error: BaseException, labels: dict[str, str]) -> str:
    """As Python prints it, from the task's first own line on; cells by the names that people know them by."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_OURS):
        frame = frame.tb_next
    try:
        text = "".join(traceback.TracebackException(type(error), error, frame, compact=True).format())
    except Exception:  # an exception class of the task that can't even be printed
        text = f"{type(error).__qualname__}\n"
    for filename, label in labels.items():
        text = text.replace(f'File "{filename}"', label)
    if len(text) > TRACEBACK:
        cut = len(text) - TRACEBACK
        text = f"{text[: TRACEBACK // 2]}\n… {cut:,} characters were cut here …\n{text[-TRACEBACK // 2 :]}"
    return text


# -- the loop ----------------------------------------------------------------------------------------------------------


def work(
    store: Store,
    seal: Seal,
    me: WorkerInfo,
    slot: Slot,
    *,
    clock: Clock = CLOCK,
    target: Target | None = None,
    max_tasks: int | None = None,
    deadline: float | None = None,
    until_idle: bool = False,
    stop: Callable[[], bool] | None = None,
    listener: Listener | None = None,
    book: Album | None = None,
    guest: bool = False,
    wait: float = WAIT,
    folders: Sequence[tuple[str, str]] = (),
    each: Callable[[Bench, Claim], Settlement | None] = Bench.attempt,
) -> int:
    """Run tasks until told to stop; answer how many.

    ``stop`` is asked between tasks and after at most ``wait`` seconds without any. ``deadline`` is on the monotonic
    clock: no task begins after it, nor one that by those before it would not end in time. Tasks whose folder is below
    the first of a pair of ``folders`` run below the second. ``until_idle`` ends when nothing is ready or running that
    this worker could run or wait for. ``listener`` keeps what tasks print; without one it goes where it goes. Displays
    go into ``book``. A ``guest`` works in somebody else's process: it leaves the folder and the warnings as they are,
    and Ctrl-C ends the loop, giving the task back.
    ``each`` makes one attempt: see `Bench.attempt`.
    """
    listener = listener or Deaf()
    book = book or Album(listener)
    bench = Bench(store, seal, me, slot, clock, listener, guest, book, folders)
    stop = stop or _never
    tray = Tray(store, me.id, bench.patiently)
    count = 0
    monotonic = clock.monotonic
    attached = ExitStack()
    attached.enter_context(album.opened(book))
    attached.enter_context(progress.told(slot.tell))

    def over() -> bool:
        return (
            stop()
            or (max_tasks is not None and count >= max_tasks)
            or (deadline is not None and monotonic() >= deadline)
        )

    try:
        while not over():
            limit = 1 if bench.met_a_long_one else BATCH
            if max_tasks is not None:
                limit = min(limit, max_tasks - count)
            claims: list[Claim] = []
            if done := tray.take_done():
                claims = bench.patiently(partial(store.claim, me.id, limit, 0.0, done, target, me.python))
            if not claims:
                patience = _patience(wait, deadline, until_idle, clock)
                slot.waits(True)
                claims = bench.patiently(partial(store.claim, me.id, limit, patience, (), target, me.python))
                slot.waits(False)
            if not claims and until_idle and store.idle(target, me.python):
                break
            settled_at = monotonic()
            tray.fill(claims)
            while not over() and (claim := tray.next()) is not None:
                if deadline is not None and monotonic() + bench.pace(claim.name) > deadline:
                    store.release([claim.grant])
                    return count
                if tray.done and (not bench.is_short(claim.name) or monotonic() - settled_at > HURRY):
                    tray.settle()
                    settled_at = monotonic()
                settlement = each(bench, claim)
                if settlement is not None:
                    tray.done.append(settlement)
                    count += 1
    finally:
        attached.close()
        slot.waits(False)
        tray.clear()
    return count


class Watchful:
    """Makes attempts as ``each`` does, and knows whether one has failed for good."""

    def __init__(self, each: Callable[[Bench, Claim], Settlement | None] = Bench.attempt) -> None:
        self.failed = False
        self._each = each

    def __call__(self, bench: Bench, claim: Claim) -> Settlement | None:
        settlement = self._each(bench, claim)
        if settlement is not None and settlement.verdict.final and not settlement.verdict.finished:
            self.failed = True
        return settlement


class Tray:
    """What a worker has claimed and not begun, and what it has done and not handed in.

    A task that takes longer than those before it must not hold up the rest: a thread looks at the tray now and then,
    and if the same task is still running gives back what waits behind it and hands in what was done before it.
    """

    def __init__(
        self, store: Store, worker: WorkerId, patiently: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._patiently = patiently
        self.done: deque[Settlement] = deque()
        self._store = store
        self._worker = worker
        self._claims: deque[Claim] = deque()
        self._begun = 0
        self._filled = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def fill(self, claims: Sequence[Claim]) -> None:
        self._claims.extend(claims)
        if len(claims) > 1:
            self._filled.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._relieve, name="jug-relief", daemon=True)
                self._thread.start()

    def next(self) -> Claim | None:
        """The claim to use now."""
        self._begun += 1
        try:
            return self._claims.popleft()
        except IndexError:  # all are used, or were given back
            return None

    def take_done(self) -> list[Settlement]:
        return _emptied(self.done)

    def settle(self) -> None:
        """Hand in what is done."""
        if done := self.take_done():
            self._patiently(partial(self._store.claim, self._worker, 0, 0.0, done))

    def give_back(self) -> None:
        if claims := _emptied(self._claims):
            self._store.release([claim.grant for claim in claims])

    def clear(self) -> None:
        """The worker ends."""
        self._ended = True
        self._filled.set()
        self.settle()
        self.give_back()
        if self._thread is not None:
            self._thread.join()

    def _relieve(self) -> None:
        pause = threading.Event()
        while not self._ended:
            self._filled.wait()
            seen = self._begun
            pause.wait(PATIENCE)
            if not self._claims and not self.done:
                self._filled.clear()
                if self._claims:  # filled in between
                    self._filled.set()
            elif seen == self._begun and not self._ended:
                self.give_back()
                self.settle()


T = TypeVar("T")


def _emptied(things: deque[T]) -> list[T]:
    """All of them, taken out one by one, so that two threads may do so at once."""
    taken = []
    with suppress(IndexError):
        while True:
            taken.append(things.popleft())
    return taken


def _never() -> bool:
    return False


def _patience(wait: float, deadline: float | None, until_idle: bool, clock: Clock) -> float:
    if until_idle:
        wait = min(wait, 0.05)
    return wait if deadline is None else max(0.0, min(wait, deadline - clock.monotonic()))
