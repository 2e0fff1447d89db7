"""The words of the house: plain values that every room speaks.

No behaviour beyond looking at oneself, no IO. Three families live here:

*facts* (``Submitted`` … ``Gone``) are what a store remembers and a `Board` folds: small, and possibly late, repeated
or out of order. *Sealed* values (``Spec``, ``Finished``, ``Failed``) are the heavy, signed bytes that facts point to:
only who runs or shows them opens them. *Views* (``Snapshot`` and its parts) are the picture at one instant.
"""

from __future__ import annotations

import enum
import functools
from typing import Any, TypeAlias, Union

from msgspec import Struct

Key: TypeAlias = str  #: names a task: 40 hex digits
Address: TypeAlias = str  #: names a blob by its content: 40 hex digits
WorkerId: TypeAlias = str  #: "host-pid-6hex": of a worker, a supervisor or a session

NO_INPUTS = bytes.fromhex("da39a3ee5e6b4b0d3255bfef95601890afd80709")  #: SHA-1 of nothing: a task without needs
LEASE = 30.0  #: seconds without a beat after which a process of another host counts as dead
BEAT = 1.0  #: seconds between two beats
POISON = 3  #: so many workers that died in one task make it failed


class State(enum.Enum):
    """Where a task stands. Derived from facts by `Board`, never written."""

    WAITING = "waiting"  #: some need has no value yet
    READY = "ready"  #: a worker may claim it
    RUNNING = "running"  #: a live worker holds a claim
    FINISHED = "finished"  #: a value is stored and holds
    FAILED = "failed"  #: raised, timed out or poisoned, with no attempt left
    BLOCKED = "blocked"  #: needs a failed task
    WITHDRAWN = "withdrawn"  #: nobody wants it any more

    __hash__ = object.__hash__  # there is one of each; states are keys of every count, and Enum's own hash is slow

    @property
    def settled(self) -> bool:
        """True where waiting longer changes nothing by itself."""
        return self in (State.FINISHED, State.FAILED, State.BLOCKED, State.WITHDRAWN)


class Why(enum.Enum):
    """Why a task's outcome counts for nothing any more."""

    DIRECT = "direct"  #: the user says: this value is wrong
    RETRY = "retry"  #: the user wants a failed task tried again
    LOST = "value lost"  #: the stored bytes are missing or corrupt


# -- who and where ----------------------------------------------------------------------------------------------------


class Origin(Struct, frozen=True, array_like=True):
    """Where a task was made, and by whom. ``notebook`` is an absolute path, or the working folder if none is known."""

    user: str
    notebook: str
    cell: str = ""


class Wish(Struct, frozen=True, array_like=True):
    """Somebody wants tasks (or, ``wanted=False``, no longer). Per (task, origin) the highest ``counter`` counts."""

    origin: Origin
    counter: int
    wanted: bool = True


class WorkerInfo(Struct, frozen=True, omit_defaults=True):
    """What a process says of itself with each beat. ``kind`` is worker, supervisor or session."""

    id: WorkerId
    kind: str
    user: str
    host: str
    pid: int
    born: int  #: start time of the pid in clock ticks since boot: with host and pid it names a process for good
    python: str  #: "3.11"
    started: float  #: seconds since the epoch
    machine: str = ""  #: names the running kernel and its set of pids; only there can a pid be asked after
    beat: int = 0  #: rises with each beat
    supervisor: WorkerId = ""  #: of a worker
    crew: str = ""  #: of a supervisor: which crew it serves; two requests with one crew are one supervisor
    size: int = 0  #: of a supervisor: how many workers it keeps
    task: Key = ""  #: of a worker: what it runs
    task_name: str = ""
    since: float = 0.0  #: when that began, seconds since the epoch
    progress: tuple[int, int] = (0, 0)  #: how far that says it is: done, and of how many (0: it can't tell)
    tail: str = ""  #: the last that it printed
    done: int = 0  #: tasks settled so far
    memory: int = 0  #: resident bytes
    note: str = ""  #: one line for people: "97 ready tasks were made with Python 3.12"
    place: str = ""  #: what whoever started it calls the host (an ssh alias), where that isn't its own name

    @property
    def where(self) -> str:
        """Its host, as people know it."""
        return f"{self.place} ({self.host})" if self.place else self.host

    def is_on(self, host: str | None) -> bool:
        """Is it on that host, by either of its names? On any, for None."""
        return host is None or host in (self.host, self.place)


class Stop(Struct, frozen=True, tag="stop"):
    """An order to end: after the current task, or at once."""

    now: bool = False


class Scale(Struct, frozen=True, tag="scale"):
    """An order to keep ``size`` workers; with ``at_least``, never fewer than there are."""

    size: int
    at_least: bool = False


Order: TypeAlias = Union[Stop, Scale]


UNLOADED: tuple[str, Any] = ("unloaded", None)


class Reference(Struct, frozen=True):
    """How an argument points at another task's value: take it, then each step, ("item", i) or ("call", function).

    Where the last step is `UNLOADED`, the function gets the task itself, and loads its value when it wants it.

    Whatever has a method ``__jug_reference__()`` that answers one of these is a need, wherever in the arguments it is.
    """

    key: Key
    steps: tuple[tuple[str, Any], ...] = ()


# -- sealed values: heavy, signed, opened only by who runs or shows them ----------------------------------------------


class Payload(Struct, frozen=True, array_like=True):
    """An encoded value: a short stream inline, and the addresses of the blobs with its large parts.

    Where the stream itself is large, ``data`` is empty and the first of ``buffers`` holds it.
    """

    format: str
    data: bytes
    buffers: tuple[Address, ...] = ()


class Recipe(Struct, frozen=True, array_like=True):
    """What the tasks of one function share."""

    name: str
    code: str  #: digest of the code part of the key
    parcel: Address  #: blob with a `Parcel`
    python: str  #: "3.11": byte code travels, so a worker must match
    runner: str = ""  #: "module:function" that calls it instead of a plain call (cell tasks)
    retries: int = 0
    timeout: float | None = None
    priority: int = 0
    nout: int | None = None


class Parcel(Struct, frozen=True):
    """A function as it travels. ``sources`` lets tracebacks show the lines of cells; ``parts`` is for `why`."""

    function: bytes  #: pickle
    modules: dict[str, Address] = {}  #: project modules that travel along: name of the bundle's root to its blob
    sources: dict[str, str] = {}  #: file name in code objects to text
    parts: dict[str, str] = {}  #: what the code digest is made of: "helper norm" to digest or short text
    labels: dict[str, str] = {}  #: file name in code objects to what people should read: "Cell In[3]"
    texts: dict[str, str] = {}  #: of parts that are no plain value: what counts of their source, or the value in short
    signature: tuple[tuple[str, int, bool], ...] = ()  #: parameters: name, kind as in `inspect`, has it a default


class Spec(Struct, frozen=True, array_like=True):
    """All that a worker must know to run a task."""

    key: Key
    recipe: bytes  #: msgpack of a `Recipe`: shared by many, decoded once
    needs: tuple[Key, ...]
    form: bytes
    arguments: Payload  #: pickle of ``(args, kwargs)`` with references to needs
    shown: str  #: the call's arguments in short, "n=3, mode='fast'"
    origin: Origin
    folder: str  #: where the worker runs it
    made: float  #: seconds since the epoch
    call: bytes = b""  #: digest of the arguments alone, needs by slot: equal for the same call of other code


class Display(Struct, frozen=True, array_like=True):
    """Something that a task showed: the same thing in several forms, by MIME type. Large ones lie in a blob."""

    at: int  #: so many pieces of the run's ``output`` came before it
    data: dict[str, Any]  #: text as str, images as bytes, JSON as it is
    metadata: dict[str, Any] = {}
    blob: Address = ""  #: where ``data`` is empty: msgpack of it


class Run(Struct, frozen=True, array_like=True):
    """Facts about one run of a task. ``output`` is (stream, text) in order, bounded; so is what it displayed."""

    worker: WorkerId
    host: str
    pid: int
    user: str
    python: str
    started: float
    duration: float  #: seconds
    cpu: float = 0.0  #: seconds
    attempt: int = 1
    output: tuple[tuple[str, str], ...] = ()
    displays: tuple[Display, ...] = ()


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """A value, with what the run said. ``digest`` names the value; ``summary`` describes it without loading it."""

    key: Key
    round: int
    inputs: bytes
    digest: bytes
    value: Payload
    summary: str
    run: Run


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """Why a task has no value. ``error`` is "KeyError: 'x'" in a line; ``exception`` the object, if it can travel."""

    key: Key
    round: int
    inputs: bytes
    kind: str  #: raised, died, timeout, memory, poison, result (it could not be stored), load (could not be decoded)
    error: str
    traceback: str
    run: Run
    exception: bytes = b""


Outcome: TypeAlias = Union[Finished, Failed]


class Acceptance(Struct, frozen=True, array_like=True):
    """Somebody says: what a task of the former code came to is what this one comes to, on these inputs."""

    key: Key
    round: int
    inputs: bytes
    source: Key  #: whose run it is
    source_round: int
    digest: bytes  #: names the value
    code: str  #: of the source: digest of its code
    user: str
    at: float  #: seconds since the epoch


# -- what the verbs of a store take and give --------------------------------------------------------------------------


class Submission(Struct, frozen=True, array_like=True):
    """A task on its way into a store: what the store must know of it, and its sealed `Spec`."""

    key: Key
    name: str
    needs: tuple[Key, ...]
    form: bytes
    body: bytes
    priority: int = 0
    python: str = ""


class SubmitReport(Struct, frozen=True):
    """What a submission came to. The three numbers add up to the tasks handed in."""

    new: int = 0
    known: int = 0
    finished: int = 0


class Grant(Struct, frozen=True, array_like=True):
    """The right to make one attempt at a task."""

    key: Key
    round: int
    inputs: bytes
    attempt: int


class Claim(Struct, frozen=True):
    """A grant with all that is needed to use it: the sealed spec, and sealed outcomes of the needs in slot order."""

    grant: Grant
    name: str
    body: bytes
    needs: tuple[bytes, ...] = ()
    failures: int = 0  #: attempts of this round that raised (for ``retries``)
    deaths: int = 0  #: attempts of this round whose worker died (for poison)
    proofs: tuple[tuple[bytes, ...], ...] = ()  #: by slot, as in `Held`; empty where no need is an alias


class Verdict(Struct, frozen=True, array_like=True):
    """What a store must know of an outcome. A failure that is not ``final`` gives the task another attempt."""

    key: Key
    round: int
    inputs: bytes
    attempt: int
    digest: bytes = b""  #: value digest; empty for a failure
    started: float = 0.0
    duration: float = 0.0
    final: bool = True
    died: bool = False  #: the worker died in it
    retry_at: float = 0.0  #: seconds since the epoch; not to be tried before

    @property
    def finished(self) -> bool:
        return bool(self.digest)


class Settlement(Struct, frozen=True, array_like=True):
    """A verdict with the sealed outcome."""

    verdict: Verdict
    body: bytes


class Held(Struct, frozen=True):
    """The outcome that a task has now: its verdict and the sealed bytes.

    Where it was taken over (an *alias*) both are another run's: ``verdict.key`` says of which task. ``proof`` is what
    shows that it may be: the sealed specs of both, whose forms are equal, or the sealed `Acceptance`.
    """

    verdict: Verdict
    body: bytes
    proof: tuple[bytes, ...] = ()


class Ended(Struct, frozen=True):
    """An attempt at a task that came to something, whether or not that still ``counts``."""

    verdict: Verdict
    body: bytes
    counts: bool


class SweepReport(Struct, frozen=True):
    """What a sweep removed, or would: tasks, blobs, and the bytes of both."""

    tasks: int = 0
    blobs: int = 0
    size: int = 0


class Target(Struct, frozen=True):
    """Which tasks are meant: those of these functions, and these. What they need is always included."""

    names: frozenset[str] = frozenset()
    keys: frozenset[Key] = frozenset()


class Scope(Struct, frozen=True):
    """Whose tasks are meant: those a notebook ever wished, or (``notebook=None``) all of the store's."""

    notebook: str | None = None


# -- facts: what a store remembers and a Board folds -------------------------------------------------------------------
# ``Submitted`` and ``Settled`` come with one body (sealed bytes) a task, kept beside the record.


class Submitted(Struct, frozen=True, array_like=True, tag="submitted"):
    """Tasks of one function: shared fields once, then columns."""

    name: str
    priority: int
    python: str
    keys: list[Key]
    needs: list[tuple[Key, ...]]
    forms: list[bytes]
    counter: int = 0  #: one more than that of any wish seen before


class Wished(Struct, frozen=True, array_like=True, tag="wished"):
    wish: Wish
    keys: list[Key]


class Claimed(Struct, frozen=True, array_like=True, tag="claimed"):
    worker: WorkerId
    grants: list[Grant]


class Released(Struct, frozen=True, array_like=True, tag="released"):
    grants: list[Grant]


class Settled(Struct, frozen=True, array_like=True, tag="settled"):
    worker: WorkerId
    verdicts: list[Verdict]


class Invalidated(Struct, frozen=True, array_like=True, tag="invalidated"):
    """Outcomes of these rounds and earlier count for nothing. Merged by max, so two presses are one.

    ``inputs`` names those on which a task had taken over its value: there is no outcome of its own to tell.
    """

    keys: list[Key]
    from_rounds: list[int]
    why: Why
    user: str
    at: float
    inputs: list[bytes] = []


class Accepted(Struct, frozen=True, array_like=True, tag="accepted"):
    """Results of former code stand for tasks of new code, or (``undone``) no longer do. One sealed `Acceptance` each.

    Columns: whose task, in which round, on which inputs; whose run, of which round, with which value. Per task the
    highest ``counter`` counts.
    """

    counter: int
    undone: bool
    user: str
    at: float
    keys: list[Key]
    rounds: list[int]
    inputs: list[bytes]
    sources: list[Key]
    source_rounds: list[int]
    digests: list[bytes]


class Gone(Struct, frozen=True, array_like=True, tag="gone"):
    """This worker is dead: claims it had not settled are void."""

    worker: WorkerId


class Forgotten(Struct, frozen=True, array_like=True, tag="forgotten"):
    """These tasks are as if never submitted: what was said of these rounds and earlier counts for nothing.

    Nor do submissions, wishes and acceptances up to ``counter``. Merged by max.
    """

    counter: int
    keys: list[Key]
    rounds: list[int]


Fact: TypeAlias = Union[Submitted, Wished, Claimed, Released, Settled, Invalidated, Accepted, Gone, Forgotten]


# -- views: the picture at one instant --------------------------------------------------------------------------------


class TaskView(Struct, frozen=True):
    """One task in a listing. ``shown``, ``summary``, ``error`` are empty until a session opened the sealed bytes."""

    key: Key
    name: str
    state: State
    worker: WorkerId = ""
    started: float = 0.0
    duration: float = 0.0
    attempt: int = 0
    shown: str = ""
    summary: str = ""
    error: str = ""
    source: Key = ""  #: where the value was taken over: whose run it is
    user: str = ""  #: who made it


class FunctionView(Struct, frozen=True):
    """One function: how many of its tasks stand where. ``mean`` is seconds a finished task, None before the first."""

    name: str
    counts: dict[State, int]
    mean: float | None = None
    reused: int = 0  #: how many of the finished ones did not run, but took over an equal run's value


class WorkerView(Struct, frozen=True):
    """One worker, supervisor or session. ``beat_age`` is seconds since its last beat was seen to change."""

    info: WorkerInfo
    alive: bool
    beat_age: float


class FailureView(Struct, frozen=True):
    """One failure, opened for people. ``output`` is the tail of what the task printed."""

    key: Key
    name: str
    shown: str
    error: str
    traceback: str
    host: str
    pid: int
    started: float
    duration: float
    output: str = ""


class Like(Struct, frozen=True):
    """A failure like another that is told of whole."""

    key: Key
    shown: str
    error: str


class FailureKind(Struct, frozen=True):
    """Failures of one function whose errors are alike but for numbers, addresses and quoted words."""

    about: str  #: what their errors have in common
    newest: FailureView  #: the one told of
    keys: tuple[Key, ...]  #: of all of them, the newest first
    others: tuple[Like, ...] = ()  #: the next few


class RunView(Struct, frozen=True):
    """One attempt that ended, opened for people: who ran what, where, when. ``said`` is its value or error in short."""

    key: Key
    name: str
    state: State
    shown: str = ""
    user: str = ""
    host: str = ""
    pid: int = 0
    started: float = 0.0
    duration: float = 0.0
    said: str = ""
    fate: str = ""  #: of one that doesn't count: "tried again", "dropped"


class Graph(Struct, frozen=True):
    """Which functions need which: tasks and needs counted by function. It may have loops and circles."""

    functions: tuple[FunctionView, ...] = ()
    edges: tuple[tuple[str, str, int], ...] = ()  #: (function, a function whose values it needs, how many needs)
    store: str = ""
    scope: str = ""


class Invalidation(Struct, frozen=True):
    """Who made a task's outcome count for nothing, and when (seconds since the epoch)."""

    from_round: int
    at: float
    user: str
    why: Why


class Cause(enum.Enum):
    """What kind of thing keeps a task from being stored, or makes it another task than one that is."""

    ARGUMENT = "argument"  #: another argument
    CODE = "code"  #: a function, helper, global, default … changed
    NEW = "new"  #: nothing of that function is stored
    NEED = "need"  #: needs a task that isn't stored
    FAILED = "failed"
    INVALIDATED = "invalidated"  #: by somebody, or because its stored value was lost
    PYTHON = "python"  #: made by another Python than this
    WITHDRAWN = "withdrawn"
    UNKNOWN = "unknown"  #: it can't be told


class Reason(Struct, frozen=True):
    """One reason. ``line`` says it all: "argument `n`: 3 → 4"; ``subject`` is what it is about: "argument `n`"."""

    cause: Cause
    subject: str
    line: str
    before: str = ""
    after: str = ""
    diff: str = ""  #: of source: lines that begin with "+", "-" or " "
    of: str = ""  #: the function it holds for, where that isn't the task's own but one that it needs
    at: float = 0.0  #: seconds since the epoch, where it has a time


class Explanation(Struct, frozen=True):
    """Whether a task is stored, and what makes it differ from the nearest one that is."""

    key: Key
    name: str
    shown: str
    state: State
    reasons: tuple[Reason, ...] = ()
    nearest: Key = ""  #: the stored task that it was compared with
    nearest_shown: str = ""
    run: Run | None = None  #: of one that is stored
    source: Key = ""  #: of one that is stored and did not run: the task whose run stands for it

    @property
    def stored(self) -> bool:
        return self.state is State.FINISHED


class Snapshot(Struct, frozen=True, dict=True):
    """The picture at one instant: counts by function and state, who works, what failed."""

    store: str  #: URL, password masked
    at: float  #: seconds since the epoch
    scope: str  #: "this notebook" or "whole store"
    functions: tuple[FunctionView, ...] = ()
    workers: tuple[WorkerView, ...] = ()  #: workers only, alive or lately dead
    failures: tuple[FailureView, ...] = ()  #: the latest few
    notes: tuple[str, ...] = ()  #: one line each, for people
    starting: int = 0  #: workers on their way
    kinds: tuple[FailureKind, ...] = ()  #: what failed by kinds, as far as it has been read

    @functools.cached_property
    def counts(self) -> dict[State, int]:
        """Tasks by state, over all functions."""
        total = dict.fromkeys(State, 0)
        for function in self.functions:
            for state, count in function.counts.items():
                total[state] += count
        return total

    @property
    def reused(self) -> int:
        """How many of the finished tasks took over their value."""
        return sum(function.reused for function in self.functions)

    @property
    def total(self) -> int:
        """All tasks that anybody still wants."""
        return sum(count for state, count in self.counts.items() if state is not State.WITHDRAWN)

    @property
    def eta(self) -> float | None:
        """Seconds until all that can run has run: open tasks by mean time, over the live workers; None: unknown."""
        alive = sum(view.alive for view in self.workers)
        work = 0.0
        for function in self.functions:
            left = sum(function.counts.get(s, 0) for s in (State.WAITING, State.READY, State.RUNNING))
            if left and function.mean is None:
                return None
            work += left * (function.mean or 0.0)
        return work / alive if alive else None
