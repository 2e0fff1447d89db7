"""Stores keep tasks, results, errors, logs and progress: here are the protocol of all stores, and `open_store`.

A store handles bytes and events, no Python objects. Most verbs take many items at once, and each is one atomic step.
A new store is a module here, ``<scheme>.py``, with three functions: ``open(rest, clock) -> Store``, ``exists(rest)``
and ``absolute(rest)``, where ``rest`` is what follows the scheme in the URL. A store outside this package is a module
``jug_store_<scheme>`` on Python's path; it needs only the first.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.util
import os
import re
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import StoreError, StoreGone, Unreachable, ValueLost, clean
from jug_notebook.model import (
    UNREADABLE,
    Acceptance,
    Address,
    Claim,
    Fits,
    Key,
    Lease,
    Order,
    Origin,
    Scope,
    Settlement,
    Snapshot,
    Submission,
    SubmitReport,
    SweepReport,
    Target,
    Why,
    WorkerId,
    WorkerInfo,
)
from jug_notebook.store import keyring
from jug_notebook.store.queries import Queries
from jug_notebook.store.scratch import BlobScratch, Scratch

PATIENCE = 600.0  #: seconds
SETTLING = 0.2  #: seconds within which who makes a store has pinned it


class Elsewhere(Protocol):
    """Where else a store finds results: see `mirror.Mirror`."""

    url: str
    display_url: str

    @property
    def note(self) -> str:
        """Why it can't be used now, in a line; empty where it can."""

    @property
    def about(self) -> str:
        """What it holds, in a few words."""

    def has(self, address: Address) -> bool:
        """Return whether it has a blob. Raises Unreachable where that can't be told."""
        ...

    def expect(self, upcoming: Callable[[], Iterable[Address]]) -> None:
        """Note what returns the blobs that are likely to be read now, so that several are fetched at once."""


class Store(Queries, Protocol):
    """The verbs of a store, beside `Queries`. Safe to use from several threads of one process."""

    url: str  #: as `open_store` takes it, absolute, so that another process can open the same
    id: str  #: made with the store, never changes; covered by signatures
    display_url: str  #: the URL for people: short, the password masked
    unverified: str = ""  #: why events can't be verified here, so that nothing may be loaded or written; else empty
    read_only: str = ""  #: why nothing may be written, where only the store's reading key is here; else empty
    pin: str = ""  #: the name by which `keyring` knows what was last here; empty where that doesn't count
    maps: bool = False  #: does `get_blob` map files of this host's?
    bodies_apart: bool = False  #: are outcomes kept apart from the events, so that one can be damaged by itself?
    patience: float = PATIENCE  #: seconds for which every verb waits for a server that is away, before Unreachable
    pause: float | None = None  #: after a `claim` that got nothing: seconds until a task may begin by time alone
    notify: Callable[[str], None] | None = None  #: gets a line, once, when a server has been away for some seconds
    also: Elsewhere | None = None  #: the mirror that `get_blob` looks in, too

    @property
    @abstractmethod
    def version(self) -> int:
        """A number that rises with each event and order that this process learns of: see `watch`."""

    @abstractmethod
    def submit(self, submissions: Sequence[Submission], origin: Origin) -> SubmitReport:
        """Add tasks and request them for ``origin``. Tasks that are known are only requested. Durable on return."""

    @abstractmethod
    def request(self, keys: Sequence[Key], origin: Origin, wanted: bool) -> None:
        """Request known tasks, or withdraw requests; without a cell, of all cells of the notebook."""

    @abstractmethod
    def claim(
        self,
        worker: WorkerId,
        limit: int,
        wait: float,
        settled: Sequence[Settlement] = (),
        target: Target | None = None,
        python: str = "",
        chains: bool = False,
        begun: Lease | None = None,
        fits: Fits | None = None,
        look: bool = True,
    ) -> list[Claim]:
        """Settle, then claim up to ``limit`` ready tasks, best first, in one step.

        Returns claims for at most about 20 ms of expected work, or one task of a function that has not been timed.
        Blocks up to ``wait`` seconds while there is nothing to do (``limit=0`` only settles, and never blocks).
        Settling is idempotent; a late outcome that no longer holds is ignored. Outcomes show at once and are durable
        within moments, many together; `sync` waits for that. Tasks made with another ``python`` are left alone, and
        those whose resources don't fit; all that are claimed at once need the same resources. Without ``look`` only
        what this process knows already is claimed, for a caller that has just looked.

        With ``chains``, claims may be followed by tasks that need the one before: their inputs are `NEXT`, and they
        are not claimed, but no other worker gets them before what they need is settled. To be settled together with
        that, or left alone; ``begun`` is one that the worker runs already while it settles what that needs.
        """

    @abstractmethod
    def start(self, tokens: Sequence[Lease], ahead: float = 0.0) -> None:
        """Note that a task claimed with these tokens begins now, or in ``ahead`` seconds: `Claim.tokens` asks for it.

        Their periods begin then. The task must begin within `MARGIN` seconds of that. Known to all on return.
        """

    @abstractmethod
    def release(self, leases: Sequence[Lease]) -> None:
        """Give back claims whose tasks were not started."""

    @abstractmethod
    def renew(self, processes: Sequence[WorkerInfo]) -> list[Order]:
        """Send heartbeats of these processes, supervisor or session first; return its new orders.

        Raises StoreGone if the store was removed, or there is another one in its place.
        """

    @abstractmethod
    def leave(self, processes: Sequence[WorkerId]) -> None:
        """Note that these processes have ended: others may take their unsettled claims at once."""

    @abstractmethod
    def order(self, supervisors: Sequence[WorkerId], order: Order) -> None:
        """Give supervisors an order; they receive it when they next `renew`, at once on the same host."""

    @abstractmethod
    def processes(self) -> list[tuple[WorkerInfo, bool, float]]:
        """Return workers, supervisors and sessions: last info, whether alive, seconds since the last heartbeat."""

    @abstractmethod
    def invalidate(self, keys: Sequence[Key], why: Why, user: str) -> list[Key]:
        """Invalidate outcomes; what used them must run again. Return the tasks that had an outcome.

        With `Why.LOST`, a reused value is lost for the task that ran, too. Raises NoSuchTask.
        """

    @abstractmethod
    def accept(self, sealed: Sequence[tuple[Acceptance, bytes]], undone: bool = False) -> None:
        """Accept runs of other code for tasks, or (``undone``) no longer: see `Acceptance`. The last one counts."""

    @abstractmethod
    def put_blob(self, parts: Iterable[bytes | memoryview]) -> Address:
        """Store bytes, once, under their blake3 hash, and return that. Durable on return."""

    @abstractmethod
    def get_blob(self, address: Address, mapped: bool = False) -> memoryview:
        """Return the bytes. Raises ValueLost where they are missing or damaged.

        A view that isn't read-only belongs to the caller, who may change it. ``mapped``: map a file where possible: a
        page of it is copied when it is written to. If it was verified once on this machine and hasn't changed since,
        it isn't verified again.
        """

    @abstractmethod
    def sweep(
        self, forget: Sequence[Key], keep: Collection[Address], older_than: float, dry_run: bool = False
    ) -> SweepReport:
        """Forget tasks, as if never submitted, and remove all blobs but those in ``keep``.

        Tasks that are requested by now, or that run, stay. So do blobs written or used within the last ``older_than``
        seconds, and those of outcomes that don't hold at present but may again. ``dry_run`` changes nothing.
        """

    @abstractmethod
    def compact(self, dry_run: bool = False) -> int:
        """Compact what the store keeps while others go on working; return the number of bytes saved.

        ``dry_run`` changes nothing: the number is rough then, and 0 where it isn't worth while.
        """

    @abstractmethod
    def snapshot(self, scope: Scope = Scope()) -> Snapshot:
        """Return counts and workers, without failures, which are sealed. The cost is in proportion to what changed."""

    @abstractmethod
    def watch(self, seen: int, timeout: float, descriptor: int = -1) -> int:
        """Wait until the store's version differs from ``seen``, at most ``timeout`` seconds; return it.

        Where a descriptor is given, return also when it becomes readable.
        """

    @abstractmethod
    def notice(self, process: WorkerId, text: str) -> None:
        """Append to a process's log in the store."""

    @abstractmethod
    def log(self, process: WorkerId) -> str:
        """Return the end of a process's log."""

    @abstractmethod
    def sync(self) -> None:
        """Make everything written so far durable."""

    @abstractmethod
    def close(self) -> None: ...

    @functools.cached_property
    def scratch(self) -> Scratch:
        """What tasks leave until they end. A store that keeps it otherwise than as blobs has an attribute for it."""
        return BlobScratch(self)


class Condition(NamedTuple):
    """The condition of a blob, its size in bytes, and what was done about it: "moved to trash/", "removed"."""

    wrong: str  #: "missing", "damaged", or why it can't be read; empty where it is whole
    size: int = 0
    done: str = ""  #: empty where nothing was, or could be, done
    refused: str = ""  #: why it could not be


class Inventory(Protocol):
    """The blobs of a store, to be checked one by one."""

    def addresses(self) -> Iterator[Address]:
        """Yield the addresses of all blobs there are; more may come, and some go, meanwhile."""

    def inspect(self, address: Address, repair: bool = False) -> Condition:
        """Read a blob in bounded memory; return its condition. ``repair``: put it out of the way if it is damaged."""


_order: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_info = msgspec.msgpack.Decoder(WorkerInfo)


def read_orders(encoded: Iterable[bytes], notify: Callable[[str], None]) -> list[Order]:
    """Return the orders of a supervisor. One that can't be read is skipped with a line to ``notify``."""
    found = []
    for data in encoded:
        try:
            found.append(_order.decode(data))
        except UNREADABLE as error:
            notify(f"skipped an order that can't be read: {error}\n")
    return found


def read_heartbeat(data: bytes) -> WorkerInfo | None:
    """Return what a process reports about itself; None, and once a warning, where that can't be read."""
    try:
        return _info.decode(data)
    except UNREADABLE as error:
        found = _PROCESS.search(data, 0, 300)  # more would take long where it is nonsense
        process = found[1].decode() if found else "a process"
        if process not in _unreadable:
            _unreadable.add(process)
            text = f"skipped the heartbeat of {process}, which can't be read ({error}): is it another version's?"
            warnings.warn(clean(text), stacklevel=2)
        return None


_PROCESS = re.compile(rb"([\w.-]+-\d+-[0-9a-f]{6})")
_PASSING = {
    errno.EIO, errno.EPERM, errno.EACCES, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, getattr(errno, "EREMOTEIO", errno.EIO),
}  # fmt: skip
_unreadable: set[str] = set()  #: those that a warning has named


def lacks_room(error: StoreError) -> bool:
    """Return whether a store refused something for want of space, on its disk or in its server, which may pass."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def is_missing(error: StoreError) -> bool:
    """Return whether nothing is in the place of a store's folder, which may have been moved for a moment only."""
    return isinstance(error, StoreGone) and isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)


def out_of_reach(error: StoreError) -> bool:
    """Return whether the file system refused what it may grant in a moment: a disk that fails, a share that is away."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _PASSING


def may_pass(error: StoreError) -> bool:
    """Return whether what a store refused may succeed later: it is away, or it lacks room."""
    return isinstance(error, Unreachable) or lacks_room(error) or out_of_reach(error) or is_missing(error)


def reason_of(error: StoreError) -> str:
    """Return why the system refused what a store wanted of it, in a few words: "Input/output error"."""
    return getattr(error.__cause__, "strerror", None) or str(error)


def read_heartbeats(data: bytes) -> list[WorkerInfo]:
    """Return what a process reports about itself and its workers, without what can't be read."""
    try:
        parts = _parts.decode(data)
    except UNREADABLE:
        return []
    return [info for part in parts if (info := read_heartbeat(bytes(part))) is not None]


_parts = msgspec.msgpack.Decoder(list[msgspec.Raw])


def addresses_in(body: bytes | memoryview) -> set[Address]:
    """Return all strings in msgpack data that look like addresses of blobs, keys of tasks among them."""
    return {name.decode() for name in _ADDRESS.findall(body)}


_ADDRESS = re.compile(rb"\xd9\x28([0-9a-f]{40})")


def named_in(store: Store, blob: Address) -> set[Address]:
    """Return the blobs that a blob, a function's bundle, may name."""
    with suppress(ValueLost):
        return addresses_in(store.get_blob(blob, mapped=True))
    return set()


HIDDEN = "***"  #: shown in a URL in place of a password
_SECRET = re.compile(r"(//)[^/]*(@)|([?&]password=)[^&]*")
#: the module of each scheme; a module with several schemes has a table ``SCHEMES``
_MODULES = {
    "memory": "jug_notebook.store.memory",
    "file": "jug_notebook.store.file",
    "redis": "jug_notebook.store.redis",
    "rediss": "jug_notebook.store.redis",
    "unix": "jug_notebook.store.redis",
}
_SCHEME = re.compile(r"([a-z][a-z0-9+]*):(.*)", re.DOTALL)


def split(url: str) -> tuple[str, str]:
    """``"file:path"`` or ``"path"`` → ``("file", "path")``; the scheme's module reads the rest."""
    match = _SCHEME.fullmatch(url)
    return (match[1], match[2]) if match else ("file", url)


def open_store(url: str | Path, clock: Clock = CLOCK, known: str = "") -> Store:
    """Open the store at ``url``, making it if it's new. Raises StoreError that names the URL and the way out.

    Another store than the one that was last there is refused, unless it has just been made. ``known``: the id by which
    a launcher knows the store, which counts instead; the caller compares it.
    """
    opener, rest = _opener(str(url))
    store: Store = opener.open(rest, clock)
    if split(store.url)[0] == "memory":
        return store
    _attach(store)
    new = keyring.just_made(store.id)
    try:
        if not known:
            _check_pin(store, new, clock)
            store.pin = "" if store.unverified else masked(store.url)
        elif store.id == known != keyring.pinned(masked(store.url)):
            keyring.pin(masked(store.url), known)
    except BaseException:
        store.close()
        raise
    return store


def _attach(store: Store) -> None:
    """Let the store use the mirror that this account has chosen for it, or that $JUG_ALSO names."""
    if not store.unverified and (url := os.environ.get("JUG_ALSO") or keyring.also(store.id)):
        try:
            importlib.import_module("jug_notebook.store.mirror").attach(store, url)
        except StoreError as error:
            warnings.warn(clean(f"{error}; going on without it"), stacklevel=3)


def accept_new_store(url: str) -> None:
    """Let the store that is at ``url`` now take the place of the one that was there before."""
    keyring.unpin(masked(absolute(url)))


def _check_pin(store: Store, new: bool, clock: Clock) -> None:
    """Pin the store to its URL. Raises StoreError if that held another one, and this one isn't new."""
    name = masked(store.url)
    before = keyring.pinned(name)
    if before == store.id:
        return
    if before and not new and not _is_unused(store):
        clock.sleep(SETTLING)  # a process that has just made it may be about to pin it
        if keyring.pinned(name) != store.id:
            raise StoreError(
                f"{store.display_url} held another store before ({before[:8]}, and now {store.id[:8]}); if that is "
                "fine, accept it: --accept-new-store in a shell or after %jug_store, or jn.connect(…, accept_new=True)"
            )
    elif before:
        text = f"{store.display_url} held another store before ({before[:8]}…), which is gone; this is a new one"
        print(f"jug_notebook: {clean(text)}", file=sys.stderr)
    if not store.unverified:  # who lacks the key can't know that it is the right one
        keyring.pin(name, store.id)


def _is_unused(store: Store) -> bool:
    """Return whether a store that makes no key itself has neither a key nor a task."""
    return not store.unverified and not keyring.has_secret(store.id) and not store.snapshot().functions


def exists(url: str) -> bool:
    """Return whether there is a store at the URL, without making one. Raises StoreError where that isn't known."""
    opener, rest = _opener(url)
    there: bool = not hasattr(opener, "exists") or opener.exists(rest)
    return there


def is_known(scheme: str) -> bool:
    """Return whether there are stores of this kind."""
    return importlib.util.find_spec(_module_of(scheme)) is not None


def _module_of(scheme: str) -> str:
    return _MODULES.get(scheme, f"jug_store_{re.sub('[^a-z0-9]', '_', scheme)}")


def absolute(url: str) -> str:
    """Return the URL as an open store has it, so that URLs can be compared."""
    opener, rest = _opener(url)
    whole: str = opener.absolute(rest) if hasattr(opener, "absolute") else url
    return whole


def masked(url: str) -> str:
    """Return a URL for people, without a password. An open store has a shorter one: ``display_url``."""
    return _SECRET.sub(rf"\1\3{HIDDEN}\2", url)


def _opener(url: str) -> tuple[Any, str]:
    """Return what opens stores of the URL's scheme, and the rest of the URL. Raises StoreError."""
    scheme, rest = split(url)
    if not rest and scheme != "memory":
        raise StoreError(f"{url!r} names no store; give a folder, as in 'jugdata'")
    name = _module_of(scheme)
    if not is_known(scheme):
        raise StoreError(
            f"{masked(url)!r}: there is no store of kind {scheme!r}; give a folder, redis://…, or 'memory:' (a store "
            f"of your own is a module {name} on PYTHONPATH; a bucket can't be a store, but it can be a mirror: --also)"
        )
    module = importlib.import_module(name)
    return getattr(module, "SCHEMES", {}).get(scheme, module), rest
