"""Where tasks, results, errors, logs and progress live: the protocol that every store speaks, and the way to one.

A store knows bytes and facts, no Python objects. Every verb takes and gives many at once and is one atomic step.
A new store is one file here, ``<scheme>.py``, with three functions: ``open(rest, clock) -> Store``, ``exists(rest)``
and ``absolute(rest)``, where ``rest`` is what comes after the scheme in the URL. One of your own is a module
``jug_store_<scheme>`` wherever Python finds modules; it needs only the first.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import StoreError
from jug_notebook.model import (
    Acceptance,
    Address,
    Attempt,
    Claim,
    CurrentOutcome,
    Invalidation,
    Key,
    Lease,
    Order,
    Origin,
    Scope,
    Settlement,
    Snapshot,
    State,
    Submission,
    SubmitReport,
    SweepReport,
    Target,
    TaskView,
    Why,
    WorkerId,
    WorkerInfo,
)


class Store(Protocol):
    """What the rest of the house may ask of a store. Safe to use from several threads of one process."""

    url: str  #: as `open_store` takes it, absolute, so that another process can open the same
    id: str  #: made with the store, never changes; signatures cover it
    display_url: str  #: the URL for people: short, the password masked

    def submit(self, submissions: Sequence[Submission], origin: Origin) -> SubmitReport:
        """Make tasks known and wanted by ``origin``. Known ones are told apart; twice is once. Durable on return."""
        ...

    def request(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> None:
        """Want known tasks again, or no longer. The latter, without a cell, speaks for all cells of the notebook."""
        ...

    def requested(self, origin: Origin) -> list[Key]:
        """What exactly this origin (user, notebook and cell) wants now."""
        ...

    def origins(self) -> list[Origin]:
        """Every origin (user, notebook and cell) that wishes something now."""
        ...

    def claim(
        self,
        worker: WorkerId,
        limit: int,
        wait: float,
        settled: Sequence[Settlement] = (),
        target: Target | None = None,
        python: str = "",
    ) -> list[Claim]:
        """Settle, then claim up to ``limit`` ready tasks, best first, in one step.

        At most about 20 ms of expected work is given, one task where a function has not been timed. Blocks up to
        ``wait`` seconds while there is nothing to do (``limit=0`` settles only and never blocks). Settling is
        idempotent; a late outcome that no longer holds counts for nothing. Tasks made with another ``python`` are
        left alone.
        """
        ...

    def release(self, leases: Sequence[Lease]) -> None:
        """Give back claims that were not started."""
        ...

    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        """Beat for these processes, the supervisor or session first; answer the orders it got since the last beat."""
        ...

    def leave(self, processes: Sequence[WorkerId]) -> None:
        """These processes have ended: their unsettled claims are void and open to others at once."""
        ...

    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        """Tell supervisors to do something; they learn it when they next `renew`, at once on the same host."""
        ...

    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        """Workers, supervisors and sessions: what each said last, whether it is alive, seconds since its last beat."""
        ...

    def states(self, keys: Sequence[Key]) -> list[State | None]:
        """None for tasks the store doesn't know."""
        ...

    def specs(self, keys: Sequence[Key]) -> list[bytes | None]:
        """Sealed specs."""
        ...

    def outcomes(self, keys: Sequence[Key]) -> list[CurrentOutcome | None]:
        """The outcomes that hold now. A failure counts only once it is final."""
        ...

    def blocking_tasks(self, keys: Sequence[Key]) -> list[Key | None]:
        """For blocked tasks, the failed task that blocks each."""
        ...

    def tasks(
        self, scope: Scope = Scope(), target: Target | None = None, state: State | None = None, limit: int = 0
    ) -> list[TaskView]:
        """A listing, in order of submission; of failed tasks, the latest first."""
        ...

    def runs(self, scope: Scope = Scope(), limit: int = 0) -> tuple[list[Attempt], int]:
        """Attempts that ended, the latest first, failed and invalidated ones too as far as they are still known.

        Answers them, and how many there are.
        """
        ...

    def keys_named(self, name: str, scope: Scope = Scope()) -> list[Key]:
        """The tasks of one function."""
        ...

    def edges(self, scope: Scope = Scope()) -> list[tuple[str, str, int]]:
        """(function, a function whose values it needs, how many needs): of tasks that somebody wants."""
        ...

    def invalidate(self, keys: Sequence[Key], why: Why, user: str) -> list[Key]:
        """Make outcomes count for nothing; whatever used them falls back. Answers the tasks that had one to lose.

        A value lost that was taken over is lost for the task that ran, too.
        """
        ...

    def current_inputs(self, keys: Sequence[Key]) -> list[Lease | None]:
        """What each task is now: its round and inputs (and no attempt). None where a need has no value yet."""
        ...

    def accept(self, sealed: Sequence[tuple[Acceptance, bytes]], undone: bool = False) -> None:
        """Let runs stand for tasks of other code, or (``undone``) no longer: see `Acceptance`. The last word counts."""
        ...

    def acceptances(self, keys: Sequence[Key]) -> list[bytes | None]:
        """The sealed acceptances that stand for what these tasks are now."""
        ...

    def invalidations(self, keys: Sequence[Key]) -> list[Invalidation | None]:
        """Who made a task's last outcome count for nothing; None where nobody did."""
        ...

    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Keep bytes, once, under their blake3. Durable on return."""
        ...

    def get_blob(self, address: Address) -> memoryview:
        """Raises ValueLost where the bytes are missing or are not what they were.

        A view that isn't read-only is the caller's own, to change at will.
        """
        ...

    def map_blob(self, address: Address) -> memoryview:
        """A read-only view of what the store holds, where it can give one; raises as `get_blob`.

        The bytes were hashed once on this machine, and their file hasn't been touched since; they aren't hashed again.
        """
        ...

    def sweep(
        self, forget: Sequence[Key], keep: Collection[Address], older_than: float, dry_run: bool = False
    ) -> SweepReport:
        """Forget tasks altogether, as if never submitted; remove blobs that are not to be kept.

        Tasks that somebody wants by now, or that run, stay. So do blobs written, or put again, within the last
        ``older_than`` seconds, and those of outcomes that don't hold at present but may again. ``dry_run`` only tells.
        """
        ...

    def compact(self) -> int:
        """Put what has gathered into less space, while others go on working; answer how many bytes that saved."""
        ...

    def crowded(self) -> bool:
        """Has so much gathered that somebody should `compact`?"""
        ...

    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        """Counts and workers; failures are left to who can open them. Costs what changed, not what there is."""
        ...

    def watch(self, seen: int, timeout: float) -> int:
        """Wait until the store's version differs from ``seen``, at most ``timeout`` seconds; answer the version now."""
        ...

    def idle(self, target: Target | None = None, python: str = "") -> bool:
        """True where no task is ready or running that a worker of this python could run or wait for."""
        ...

    def foreign(self, python: str) -> dict[str, int]:
        """Ready tasks that a worker of this ``python`` leaves alone: how many, by the python they were made with."""
        ...

    def notice(self, process: WorkerId, text: str) -> None:
        """Append to a process's log, which lies in the store."""
        ...

    def log(self, process: WorkerId) -> str:
        """The tail of a process's log."""
        ...

    def sync(self) -> None:
        """Make everything written so far durable."""
        ...

    def close(self) -> None: ...


def addresses_in(body: bytes | memoryview) -> set[Address]:
    """The names of blobs that sealed bytes, or a blob, mention, as msgpack writes them; and other such names, too."""
    return {name.decode() for name in _ADDRESS.findall(body)}


_ADDRESS = re.compile(rb"\xd9\x28([0-9a-f]{40})")


HIDDEN = "***"  #: what people read in a URL in the place of a password
_SECRET = re.compile(r"(//)[^/]*(@)|([?&]password=)[^&]*")
#: the module of each scheme; one with several has a table ``SCHEMES`` of what opens each
_MODULES = {
    "memory": "jug_notebook.store.memory",
    "file": "jug_notebook.store.file",
    "redis": "jug_notebook.store.redis",
    "rediss": "jug_notebook.store.redis",
    "unix": "jug_notebook.store.redis",
}
_SCHEME = re.compile(r"([a-z][a-z0-9+]*):(.*)", re.DOTALL)


def split(url: str) -> tuple[str, str]:
    """``"file:path"`` or ``"path"`` → ``("file", "path")``; the scheme's room decides about the rest."""
    match = _SCHEME.fullmatch(url)
    return (match[1], match[2]) if match else ("file", url)


def open_store(url: str | Path, clock: Clock = CLOCK) -> Store:
    """Open the store at ``url``, making it if it's new. Raises StoreError that names the URL and the way out."""
    room, rest = _room(str(url))
    store: Store = room.open(rest, clock)
    return store


def exists(url: str) -> bool:
    """Is there a store already? Looking makes none. Raises StoreError where that can't be told."""
    room, rest = _room(url)
    there: bool = not hasattr(room, "exists") or room.exists(rest)
    return there


def absolute(url: str) -> str:
    """The URL as an open store has it, so that two that mean one store can be compared."""
    room, rest = _room(url)
    whole: str = room.absolute(rest) if hasattr(room, "absolute") else url
    return whole


def masked(url: str) -> str:
    """A URL for people, without a password. An open store knows a shorter one: ``shown``."""
    return _SECRET.sub(rf"\1\3{HIDDEN}\2", url)


def _room(url: str) -> tuple[Any, str]:
    """The module that has stores of that kind, and what it makes of the URL."""
    scheme, rest = split(url)
    if not rest and scheme != "memory":
        raise StoreError(f"{url!r} names no store; give a folder, as in 'jugdata'")
    own = f"jug_store_{scheme.replace('+', '_')}"
    name = _MODULES.get(scheme, own)
    if importlib.util.find_spec(name) is None:
        raise StoreError(
            f"{masked(url)!r}: there is no store of kind {scheme!r}; give a folder, redis://…, or 'memory:' (a store "
            f"of your own is a module {own} on PYTHONPATH)"
        )
    module = importlib.import_module(name)
    return getattr(module, "SCHEMES", {}).get(scheme, module), rest


__all__ = ["HIDDEN", "Store", "absolute", "addresses_in", "exists", "masked", "open_store", "split"]
