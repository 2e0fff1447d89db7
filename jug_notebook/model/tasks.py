"""Tasks and what belongs to them: where they come from, their sealed specs and outcomes, and the verbs' arguments.

Plain values without behaviour or IO. *Sealed* values (`Spec`, `Finished`, `Failed`) are stored as signed bytes, which
only someone who runs or shows them opens.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias, Union

import msgspec
from msgspec import Meta, Struct

from jug_notebook.errors import StoreError, ValueLost

Key: TypeAlias = str  #: of a task: 40 hex digits
Address: TypeAlias = str  #: of a blob, from its content: 40 hex digits
WorkerId: TypeAlias = str  #: "host-pid-6hex": of a worker, a supervisor or a session
Round: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 31)]  #: of a task, or an attempt in it; a decoder refuses others
Inputs: TypeAlias = Annotated[bytes, Meta(min_length=20, max_length=20)]  #: digest of the values of a task's needs
Resources: TypeAlias = tuple[
    tuple[str, float], ...
]  #: amounts by name, sorted: (("gpu", 1), ("mem", 8e9)); see `limits`, too
Fits: TypeAlias = Callable[[Resources], bool]  #: tells whether what a task needs is free

NO_INPUTS = bytes.fromhex("da39a3ee5e6b4b0d3255bfef95601890afd80709")  #: SHA-1 of nothing: a task without needs
NEXT = bytes(20)  #: in place of inputs: the task needs the one before it in the same reply, and isn't claimed yet
LEASE = 30.0  #: seconds without a heartbeat after which a process of another host counts as dead
BEAT = 1.0  #: seconds between two heartbeats
NO_ROOM = "waits for room in the store"  #: how the note of a worker begins that can't write its results
AWAY = "waits for the store"  #: how the note of a worker or supervisor begins that can't use it
POISON = 3  #: a task in which this many workers died has failed
UNREADABLE = (ValueError, RecursionError)  #: what decoding raises: errors of msgspec and of text are ValueErrors


def decoder(kind: Any, what: str, error: type[StoreError] = ValueLost) -> Callable[[bytes | memoryview], Any]:
    """Return what decodes msgpack of a ``kind``, and raises ``error`` for any bytes that aren't that."""
    decode = msgspec.msgpack.Decoder(kind).decode

    def decoded(data: bytes | memoryview) -> Any:
        try:
            return decode(data)
        except UNREADABLE as wrong:
            raise error(
                f"{what} in the store can't be decoded ({wrong}): it is damaged, or another version's"
            ) from None

    return decoded


class State(enum.Enum):
    """The state of a task. Derived from events by the scheduler, never stored."""

    WAITING = "waiting"  #: something that it needs has no value yet
    READY = "ready"  #: a worker may claim it
    RUNNING = "running"  #: a live worker holds a claim
    FINISHED = "finished"  #: its value is stored
    FAILED = "failed"  #: it raised, timed out or killed its workers, with no attempt left
    BLOCKED = "blocked"  #: needs a failed task
    CANCELLED = "cancelled"  #: no one requests it any more

    __hash__ = object.__hash__  # by identity: states are keys of every count, and Enum's own hash is slow

    @property
    def settled(self) -> bool:
        """Whether the task stays in this state unless someone does something."""
        return self in (State.FINISHED, State.FAILED, State.BLOCKED, State.CANCELLED)


OPEN_STATES = (State.WAITING, State.READY, State.RUNNING)  #: of tasks that will still run, or are running


class Why(enum.Enum):
    """Why a task's outcome was invalidated."""

    DIRECT = "direct"  #: a user called the value wrong
    RETRY = "retry"  #: a user wants a failed task retried
    LOST = "value lost"  #: the stored bytes are missing or corrupt


# -- who and where -----------------------------------------------------------------------------------------------------


class Origin(Struct, frozen=True, array_like=True):
    """Who made a task, and where. ``notebook``: the path of the notebook or script, or the working folder where none is
    known; with `run_name`, for a run that is not to be taken for any other.
    """

    user: str
    notebook: str
    cell: str = ""


def run_name(file: str, process: WorkerId) -> str:
    """Return the name of one run of a notebook or script: "/home/ann/fit.py [host-123-a1b2c3]"."""
    return f"{file} [{process}]"


def names_a_run(notebook: str) -> bool:
    """Return whether an origin's ``notebook`` is a single run, as `run_name` names it."""
    return notebook.endswith("]") and " [" in notebook


class Request(Struct, frozen=True, array_like=True):
    """Tasks are requested (or, ``wanted=False``, no longer). Per (task, origin) the highest ``counter`` counts."""

    origin: Origin
    counter: int
    wanted: bool = True


class WorkerInfo(Struct, frozen=True, omit_defaults=True):
    """What a process reports with each heartbeat. ``kind`` is worker, supervisor or session."""

    id: WorkerId
    kind: str
    user: str
    host: str
    pid: int
    born: int  #: start time of the pid in clock ticks since boot: with host and pid it names a process for good
    python: str  #: "3.11"
    started: float  #: seconds since the epoch
    machine: str = ""  #: identifies the running kernel and pid namespace; a pid means something only there
    beat: int = 0  #: rises with each heartbeat
    supervisor: WorkerId = ""  #: of a worker
    crew: str = ""  #: of a supervisor: its worker group, which has one supervisor
    size: int = 0  #: of a supervisor: how many workers it keeps
    task: Key = ""  #: of a worker: the task that it runs
    task_name: str = ""
    since: float = 0.0  #: when the task began, seconds since the epoch
    progress: tuple[int, int] = (0, 0)  #: that the task reported: steps done, and their total (0: unknown)
    checkpoint: tuple[float, int] = (0.0, 0)  #: that the task saved last: when, seconds since the epoch, and its bytes
    tail: str = ""  #: the last lines that the task printed
    done: int = 0  #: tasks settled so far
    memory: int = 0  #: resident bytes
    note: str = ""  #: one line for people: "97 ready tasks were made with Python 3.12"
    place: str = ""  #: the name by which the host was reached (an ssh alias), if not its own
    notebook: str = ""  #: of a session: as in the `Origin` of its tasks
    resources: tuple[tuple[str, float, float], ...] = ()  #: of a supervisor: name, how much its host has, and in use

    @property
    def where(self) -> str:
        """The host, as people know it."""
        return f"{self.place} ({self.host})" if self.place else self.host

    def is_on(self, host: str | None) -> bool:
        """Return whether it runs on that host, by either of its names. None means any host."""
        return host is None or host in (self.host, self.place)


class Stop(Struct, frozen=True, tag="stop"):
    """An order to end: after the current task, or at once."""

    now: bool = False


class Scale(Struct, frozen=True, tag="scale"):
    """An order to keep ``size`` workers; with ``at_least``, never fewer than there are."""

    size: Annotated[int, Meta(ge=0)]
    at_least: bool = False


Order: TypeAlias = Union[Stop, Scale]


UNLOADED: tuple[str, Any] = ("unloaded", None)  #: a last step of a `Reference`: pass the task itself


class Reference(Struct, frozen=True):
    """How an argument refers to another task's value: take it, then apply the steps ("item", i) or ("call", function).

    Where the last step is `UNLOADED`, the function gets the task itself, and may load its value.

    Any object with a method ``__jug_reference__()`` that returns one of these is a need, anywhere in the arguments.
    """

    key: Key
    steps: tuple[tuple[str, Any], ...] = ()


# -- sealed values -----------------------------------------------------------------------------------------------------


class Payload(Struct, frozen=True, array_like=True):
    """An encoded value: a short stream inline, and the addresses of the blobs with its large parts.

    Where the stream itself is large, ``data`` is empty and the first of ``buffers`` holds it.
    """

    format: str
    data: bytes
    buffers: tuple[Address, ...] = ()


class LoggerSetup(Struct, frozen=True, array_like=True):
    """A logger as the notebook has set it up. ``stream`` is that of its handler, empty where it has none."""

    name: str  #: empty for the root logger
    level: int
    propagate: bool = True
    stream: str = ""  #: "stdout" or "stderr"
    format: str = ""
    date_format: str | None = None
    style: str = "%"
    threshold: int = 0  #: the handler's own level


class TaskTemplate(Struct, frozen=True, array_like=True):
    """What all tasks of one function version share."""

    name: str
    code: str  #: digest of the function's code, part of the key
    bundle: Address  #: of the blob with the `FunctionBundle`
    python: str  #: "3.11": it is byte code that travels, so a worker needs the same
    runner: str = ""  #: "module:function" that makes the call, of cell tasks
    retries: int = 0
    timeout: float | None = None
    priority: int = 0
    nout: int | None = None
    loggers: tuple[LoggerSetup, ...] = ()  #: those that aren't as Python sets them up
    resources: Resources = ()  #: what a host must have free for a run


class FunctionBundle(Struct, frozen=True):
    """A pickled function with all that workers need. ``sources`` is for tracebacks, ``parts`` for explaining keys."""

    function: bytes  #: pickle
    modules: dict[str, Address] = {}  #: project modules it needs: name of the root module to blob
    sources: dict[str, str] = {}  #: file name in code objects to text
    parts: dict[str, str] = {}  #: what the code digest is made of: "helper norm" to digest or short text
    labels: dict[str, str] = {}  #: file name in code objects to the label that people see: "Cell In[3]"
    texts: dict[str, str] = {}  #: of parts that are no plain value: the relevant source, or a short form
    #: parameters: name, kind as in `inspect`, whether it has a default
    signature: tuple[tuple[str, int, bool], ...] = ()
    environment: dict[str, str | None] = {}  #: variables to be set while it runs; None: not set
    secrets: tuple[str, ...] = ()  #: names of variables that a worker must have itself
    buffers: tuple[Address, ...] = ()  #: of large arrays among its globals and the like
    pins: dict[str, str] = {}  #: packages and the versions that a worker must have


class Spec(Struct, frozen=True, array_like=True):
    """All that a worker needs to run a task."""

    key: Key
    template: bytes  #: msgpack of a `TaskTemplate`
    needs: tuple[Key, ...]
    form: bytes
    arguments: Payload  #: pickle of ``(args, kwargs)`` with references to needs
    args_repr: str  #: the call's arguments in short, "n=3, mode='fast'"
    origin: Origin
    folder: str  #: the working folder
    made: float  #: seconds since the epoch
    call: bytes = b""  #: digest of the arguments alone: equal for the same call of other code


class Display(Struct, frozen=True, array_like=True):
    """Something that a task displayed, in several forms by MIME type. Large data is kept in a blob."""

    at: int  #: index in the run's ``output`` of the piece that follows it
    data: dict[str, Any]  #: text as str, images as bytes, JSON as it is
    metadata: dict[str, Any] = {}
    blob: Address = ""  #: where ``data`` is empty: the blob with it, as msgpack


class Environment(Struct, frozen=True, array_like=True):
    """What a worker has: its Python, system and imported packages, each with its version. Kept in a blob."""

    implementation: str  #: "CPython"
    python: str  #: "3.11.2"
    system: str  #: "Linux x86_64 glibc 2.36"
    packages: dict[str, str]  #: versions by top-level name


class Run(Struct, frozen=True, array_like=True):
    """One run of a task. ``output`` is (stream, text) in order; its size and the number of displays are limited."""

    worker: WorkerId
    host: str
    pid: int
    user: str
    python: str
    started: float
    duration: float  #: seconds
    cpu: float = 0.0  #: seconds, subprocesses included
    attempt: int = 1
    output: tuple[tuple[str, str], ...] = ()
    displays: tuple[Display, ...] = ()
    peak: int = 0  #: bytes of memory that it had at most, with its worker's libraries; 0 where it wasn't measured
    read: int = 0  #: bytes, from files, pipes and the network
    written: int = 0  #: bytes
    environment: Address = ""  #: the blob with its `Environment`
    copied_from: str = ""  #: the mirror from which the store has it; empty where it was run for the store itself
    waited: float = 0.0  #: seconds for a core, which others had; 0 where it wasn't measured

    @property
    def blobs(self) -> list[Address]:
        """The blobs that it names: large displays, and its environment."""
        return [blob for blob in (*(display.blob for display in self.displays), self.environment) if blob]


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """The outcome of a task with a value: ``digest`` identifies it, ``summary`` describes it in short.

    ``dropped`` is a warning, where the stored value lacks something that the task returned.
    """

    key: Key
    round: int
    inputs: bytes
    digest: bytes
    value: Payload
    summary: str
    run: Run
    dropped: str = ""


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """The outcome of a task that failed. ``error`` is one line, "KeyError: 'x'"; ``exception`` a pickle, or empty."""

    key: Key
    round: int
    inputs: bytes
    kind: str  #: raised, died, timeout, memory, poison, result (it could not be stored), load (could not be decoded)
    error: str
    traceback: str
    run: Run
    exception: bytes = b""
    labels: dict[str, str] = {}  #: those that cells have in ``traceback``, by file name: "Cell In[3]"


Outcome: TypeAlias = Union[Finished, Failed]


class Acceptance(Struct, frozen=True, array_like=True):
    """A user accepts the result of a task of other code as that of this task, on these inputs."""

    key: Key
    round: int
    inputs: bytes
    source: Key  #: the task that ran
    source_round: int
    digest: bytes  #: of the value
    code: str  #: digest of the source's code
    user: str
    at: float  #: seconds since the epoch


# -- arguments and results of a store's verbs --------------------------------------------------------------------------


class Submission(Struct, frozen=True, array_like=True):
    """A task to be stored: what the store must know about it, and its sealed `Spec`."""

    key: Key
    name: str
    needs: tuple[Key, ...]
    form: bytes
    body: bytes
    priority: int = 0
    python: str = ""
    resources: Resources = ()


class SubmitReport(Struct, frozen=True):
    """How many of the submitted tasks are new, known or finished; they add up to all of them."""

    new: int = 0
    known: int = 0
    finished: int = 0


class Lease(Struct, frozen=True, array_like=True):
    """The right to make one attempt at a task."""

    key: Key
    round: Round
    inputs: Inputs
    attempt: Round


class Claim(Struct, frozen=True, array_like=True):
    """A lease with all that is needed to use it: the sealed spec, and sealed outcomes of the needs in slot order."""

    lease: Lease
    name: str
    body: bytes
    needs: tuple[bytes, ...] = ()
    failures: int = 0  #: attempts of this round that raised; ``retries`` limits them
    deaths: int = 0  #: attempts of this round whose worker died; see `POISON`
    #: by slot, as in `CurrentOutcome`; empty where no need's value is reused
    proofs: tuple[tuple[bytes, ...], ...] = ()
    expected: float = 0.0  #: seconds that tasks of this function take on average; 0 where none has ended
    resources: Resources = ()
    devices: tuple[str, ...] = ()  #: ids of the GPUs that it may use
    tokens: tuple[Lease, ...] = ()  #: of limits that are rates: see `Store.start`


class Verdict(Struct, frozen=True, array_like=True):
    """What a store must know about an outcome. After a failure that is not ``final``, the task gets another attempt."""

    key: Key
    round: Round
    inputs: Inputs
    attempt: Round
    digest: bytes = b""  #: of the value; empty for a failure
    started: float = 0.0
    duration: float = 0.0
    final: bool = True
    died: bool = False  #: the worker died in it
    retry_at: float = 0.0  #: seconds since the epoch; no attempt before that

    @property
    def finished(self) -> bool:
        return bool(self.digest)


class Settlement(Struct, frozen=True, array_like=True):
    """A verdict with the sealed outcome."""

    verdict: Verdict
    body: bytes


class CurrentOutcome(Struct, frozen=True):
    """The outcome that a task has now: its verdict and the sealed bytes.

    Where another task's run is reused, both are of that run, and ``verdict.key`` is the other task. ``proof`` shows
    that this is allowed: the sealed specs of both tasks, whose forms are equal, or the sealed `Acceptance`.
    """

    verdict: Verdict
    body: bytes
    proof: tuple[bytes, ...] = ()


class Attempt(Struct, frozen=True):
    """An attempt that ended; ``counts`` is whether its outcome is the task's present one, ``name`` the function's."""

    verdict: Verdict
    body: bytes
    counts: bool
    name: str = ""


class SweepReport(Struct, frozen=True):
    """What a sweep removed, or would remove: tasks, blobs, and the bytes of both."""

    tasks: int = 0
    blobs: int = 0
    size: int = 0


class Target(Struct, frozen=True):
    """A choice of tasks: those of these functions, those with these keys, and what they need; or, where both are empty,
    all. Without those of functions and with keys that are excluded.
    """

    names: frozenset[str] = frozenset()
    keys: frozenset[Key] = frozenset()
    not_names: frozenset[str] = frozenset()
    not_keys: frozenset[Key] = frozenset()


class Scope(Struct, frozen=True):
    """A choice of tasks: those a notebook ever requested, or (``notebook=None``) all of the store's."""

    notebook: str | None = None


# -- events ------------------------------------------------------------------------------------------------------------

# What happened to tasks. Each is written once by one process; a store keeps them, a scheduler applies them. They may
# arrive late, repeatedly or out of order. `Submitted` and `Settled` come with one sealed body per task.


def _columns(*columns: list[Any]) -> None:
    if len(set(map(len, columns))) > 1:
        raise ValueError("columns of different lengths")


class Submitted(Struct, frozen=True, array_like=True, tag="submitted"):
    """Tasks of one function: shared fields once, then columns."""

    name: str
    priority: int
    python: str
    keys: list[Key]
    needs: list[tuple[Key, ...]]
    forms: list[bytes]
    counter: int = 0  #: one more than that of any request seen before
    resources: Resources = ()

    def __post_init__(self) -> None:
        _columns(self.keys, self.needs, self.forms)


class Requested(Struct, frozen=True, array_like=True, tag="requested"):
    request: Request
    keys: list[Key]


class Claimed(Struct, frozen=True, array_like=True, tag="claimed"):
    """A worker has attempts at tasks, and with them ``tokens`` of their limits (see `scheduler.limits`)."""

    worker: WorkerId
    leases: list[Lease]
    tokens: list[Lease] = []


class Started(Struct, frozen=True, array_like=True, tag="started"):
    """The task that was claimed with these tokens begins: ``at`` by the store's clock, or a moment later."""

    tokens: list[Lease]
    at: float


class Released(Struct, frozen=True, array_like=True, tag="released"):
    leases: list[Lease]


class Settled(Struct, frozen=True, array_like=True, tag="settled"):
    worker: WorkerId
    verdicts: list[Verdict]


class Invalidated(Struct, frozen=True, array_like=True, tag="invalidated"):
    """Outcomes of these rounds and earlier are invalid. Merged by max, so doing it twice is the same as once.

    ``inputs`` are those on which a task had reused its value, where it has no outcome of its own.
    """

    keys: list[Key]
    from_rounds: list[Round]
    why: Why
    user: str
    at: float
    inputs: list[bytes] = []

    def __post_init__(self) -> None:
        _columns(self.keys, self.from_rounds)


class Accepted(Struct, frozen=True, array_like=True, tag="accepted"):
    """Results of other code are accepted for tasks, or (``undone``) no longer. One sealed `Acceptance` each.

    Columns: task, its round and inputs; source task, its round and value digest. The highest ``counter`` counts.
    """

    counter: int
    undone: bool
    user: str
    at: float
    keys: list[Key]
    rounds: list[Round]
    inputs: list[bytes]
    sources: list[Key]
    source_rounds: list[Round]
    digests: list[bytes]

    def __post_init__(self) -> None:
        _columns(self.keys, self.rounds, self.inputs, self.sources, self.source_rounds, self.digests)


class WorkerLost(Struct, frozen=True, array_like=True, tag="lost"):
    """A worker has died: its claims that were not settled are void. ``found``: not by its supervisor, who died, too."""

    worker: WorkerId
    found: bool = False


class Forgotten(Struct, frozen=True, array_like=True, tag="forgotten"):
    """These tasks are as if never submitted: events of these rounds and earlier are ignored.

    So are submissions, requests and acceptances up to ``counter``. Merged by max.
    """

    counter: int
    keys: list[Key]
    rounds: list[Round]

    def __post_init__(self) -> None:
        _columns(self.keys, self.rounds)


Event: TypeAlias = Union[
    Submitted, Requested, Claimed, Started, Released, Settled, Invalidated, Accepted, WorkerLost, Forgotten
]


def body_count(event: object) -> int:
    """Return how many sealed bodies come with an event."""
    if isinstance(event, Settled):
        return len(event.verdicts)
    return len(event.keys) if isinstance(event, Submitted | Accepted) else 0
