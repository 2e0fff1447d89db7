"""The words of the house: plain values that every room speaks.

No behaviour beyond looking at oneself, no IO. Three families live here:

*facts* (``Submitted`` … ``Gone``) are what a store remembers and a `SchedulerState` folds: small, and possibly late,
repeated
or out of order. *Sealed* values (``Spec``, ``Finished``, ``Failed``) are the heavy, signed bytes that facts point to:
only who runs or shows them opens them. *Views* (``Snapshot`` and its parts) are the picture at one instant.
"""

from __future__ import annotations

import enum
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
    """Where a task stands. Derived from facts by `SchedulerState`, never written."""

    WAITING = "waiting"  #: some need has no value yet
    READY = "ready"  #: a worker may claim it
    RUNNING = "running"  #: a live worker holds a claim
    FINISHED = "finished"  #: a value is stored and holds
    FAILED = "failed"  #: raised, timed out or poisoned, with no attempt left
    BLOCKED = "blocked"  #: needs a failed task
    CANCELLED = "cancelled"  #: nobody wants it any more

    __hash__ = object.__hash__  # there is one of each; states are keys of every count, and Enum's own hash is slow

    @property
    def settled(self) -> bool:
        """True where waiting longer changes nothing by itself."""
        return self in (State.FINISHED, State.FAILED, State.BLOCKED, State.CANCELLED)


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


class Request(Struct, frozen=True, array_like=True):
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


class TaskTemplate(Struct, frozen=True, array_like=True):
    """What the tasks of one function share."""

    name: str
    code: str  #: digest of the code part of the key
    bundle: Address  #: blob with a `FunctionBundle`
    python: str  #: "3.11": byte code travels, so a worker must match
    runner: str = ""  #: "module:function" that calls it instead of a plain call (cell tasks)
    retries: int = 0
    timeout: float | None = None
    priority: int = 0
    nout: int | None = None


class FunctionBundle(Struct, frozen=True):
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
    template: bytes  #: msgpack of a `TaskTemplate`: shared by many, decoded once
    needs: tuple[Key, ...]
    form: bytes
    arguments: Payload  #: pickle of ``(args, kwargs)`` with references to needs
    args_repr: str  #: the call's arguments in short, "n=3, mode='fast'"
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


class Lease(Struct, frozen=True, array_like=True):
    """The right to make one attempt at a task."""

    key: Key
    round: int
    inputs: bytes
    attempt: int


class Claim(Struct, frozen=True):
    """A grant with all that is needed to use it: the sealed spec, and sealed outcomes of the needs in slot order."""

    lease: Lease
    name: str
    body: bytes
    needs: tuple[bytes, ...] = ()
    failures: int = 0  #: attempts of this round that raised (for ``retries``)
    deaths: int = 0  #: attempts of this round whose worker died (for poison)
    proofs: tuple[tuple[bytes, ...], ...] = ()  #: by slot, as in `CurrentOutcome`; empty where no need is an alias


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


class CurrentOutcome(Struct, frozen=True):
    """The outcome that a task has now: its verdict and the sealed bytes.

    Where it was taken over (an *alias*) both are another run's: ``verdict.key`` says of which task. ``proof`` is what
    shows that it may be: the sealed specs of both, whose forms are equal, or the sealed `Acceptance`.
    """

    verdict: Verdict
    body: bytes
    proof: tuple[bytes, ...] = ()


class Attempt(Struct, frozen=True):
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


# -- views: the picture at one instant --------------------------------------------------------------------------------
