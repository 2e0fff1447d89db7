"""A store of ours with the methods of Jug's backends, and how a jugfile's tasks are settled and called."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jug_notebook import codec, system
from jug_notebook.compat import replacing_jug
from jug_notebook.errors import NoSuchTask, StoreError, Unhashable
from jug_notebook.keys.digest import digest
from jug_notebook.model import Claim, Failed, Finished, Key, Lease, Outcome, Run, State, Target, Verdict
from jug_notebook.render.format import summarise
from jug_notebook.session import Session
from jug_notebook.session.access import StoreAccess
from jug_notebook.store import atomic, exists, split
from jug_notebook.store.signed import SignedWriter
from jug_notebook.worker.capture import ThreadCapture, restore_streams
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.status import SharedStatus

RUNNER = "jug_notebook.compat.jugdir:call"


@dataclass
class Purpose:
    """What stores are opened for: the script, its arguments and folder; ``read_only`` submits no tasks."""

    script: str = ""
    arguments: str = ""
    folder: Path = field(default_factory=Path.cwd)
    read_only: bool = False
    #: opens a store by its URL where a notebook's session is used; the notebook closes it
    connect: Callable[[str], Session] | None = None


purpose = Purpose()


class NotOurs(StoreError):
    """This folder is a jugdir of Jug itself."""


def url_of(jugdir: str) -> str:
    """Return the URL of a store that Jug's scripts name."""
    if jugdir == "dict_store":
        return f"memory:jugfile-{os.getpid()}"
    scheme, colon, rest = jugdir.partition(":")
    if colon and scheme in ("dict_store", "file_keepalive"):
        return f"file:{rest}"
    if colon and scheme == "redis" and not rest.startswith("//"):
        return f"redis://{rest or 'localhost'}"
    return jugdir


def refuse_jugs_own(url: str, folder: Path) -> None:
    """Raise NotOurs for a folder that Jug wrote: cleaning up one kind of store would delete the other's results."""
    scheme, rest = split(url)
    if scheme == "file" and rest and is_jugs_own(folder / Path(rest).expanduser()):
        raise NotOurs(
            f"{rest!r} is a jugdir of Jug itself, and is left alone. Keep ours elsewhere, as in --jugdir {rest}.jn, or "
            "move that one away; its results can be taken over: "
            f"jug-notebook import-jugdata JUGFILE {rest} --jugdir {rest}.jn"
        )


_FANNED = re.compile("[0-9a-f]{2}")


def is_jugs_own(path: Path) -> bool:
    """Return whether it is a folder that Jug's file store wrote."""
    if not path.is_dir() or exists(f"file:{path}"):
        return False
    return any(
        entry.name in ("tempfiles", "locks", "packs") or (_FANNED.fullmatch(entry.name) and entry.is_dir())
        for entry in path.iterdir()
    )


class Jugdir:
    """A store as a jugfile sees it. Opened when first needed, for the `purpose` at that moment."""

    def __init__(self, jugdir: str, compress_numpy: bool = False) -> None:
        self.jugdir = jugdir
        self.url = url_of(jugdir)
        self._session: Session | None = None
        self._hand: ByHand | None = None
        self.claims: dict[Key, Claim] = {}  #: of the locks that the script holds

    @property
    def is_open(self) -> bool:
        return self._session is not None

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = self._opened()
            if purpose.script:
                self._session.begin_cell(purpose.arguments or "jugfile")
        return self._session

    def _opened(self) -> Session:
        refuse_jugs_own(self.url, purpose.folder)
        if purpose.connect is not None:
            return purpose.connect(self.url)
        url = self.url
        if purpose.read_only and not _is_there(url, purpose.folder):
            url = f"memory:nothing-there-{os.getpid()}"  # reading must not create a store
        return Session(
            url,
            notebook=purpose.script or None,
            headless=True,
            folder=purpose.folder,
            runner=RUNNER,
            read_only=purpose.read_only,
            together=True,
        )

    @property
    def hand(self) -> ByHand:
        """Return what settles single tasks in this process."""
        if self._hand is None:
            self._hand = ByHand(self.session.access)
        return self._hand

    def __repr__(self) -> str:
        return f"<jugdir {self.jugdir}>"

    # -- the methods of Jug's stores -----------------------------------------------------------------------------------

    def can_load(self, name: bytes | str) -> bool:
        return self.state(_key(name)) is State.FINISHED

    def state(self, key: Key) -> State | None:
        """Return the task's state, None where the store doesn't know the task."""
        return self.states([key])[key]

    def states(self, keys: Iterable[Key]) -> dict[Key, State | None]:
        """Return the state of each task, None where the store doesn't know the task."""
        unique = list(dict.fromkeys(keys))
        return dict(zip(unique, self.session.queries.states(unique), strict=True)) if unique else {}

    def load(self, name: bytes | str) -> Any:
        return self.session.results.collect([_key(name)], wait=False)[0]

    def dump(self, object: Any, name: bytes | str) -> None:
        """Give a task its value."""
        key = _key(name)
        if self.state(key) is State.FINISHED:
            return
        claim = self.claims.pop(key, None) or self.hand.claim(key)
        if claim is None:
            raise StoreError(f"task {key[:12]} can't be given a value: it is not in this store, not ready, or claimed")
        self.hand.deposit(claim, object)

    def list(self) -> Iterator[bytes]:
        """Yield the keys of all tasks with values."""
        for view in self.session.queries.listed(State.FINISHED):
            yield view.key.encode()

    def listlocks(self) -> Iterator[bytes]:
        """Yield the keys of all tasks that run or have failed."""
        for state in (State.RUNNING, State.FAILED):
            for view in self.session.queries.listed(state):
                yield view.key.encode()

    def remove(self, name: bytes | str) -> bool:
        return bool(self.remove_many([name]))

    def remove_many(self, names: Iterable[bytes | str]) -> set[bytes | str]:
        """Invalidate values and what depends on them. Return the names that had values."""
        keys = {name: _key(name) for name in names}
        states = self.states(keys.values())
        there = {name for name, key in keys.items() if states[key] is State.FINISHED}
        if there:
            self.session.invalidate(Target(keys=frozenset(map(_key, there))))
        return there

    def cleanup(self, active: Iterable[Any], keeplocks: bool = False) -> int:
        """Withdraw all tasks that are not ``active``, delete unreferenced tasks and return their number."""
        kept = {_key(task.hash()) for task in active}
        gone = [view.key for view in self.session.queries.listed() if view.key not in kept]
        if gone:
            self.session.withdraw(gone)
        return self.session.cleanup().tasks

    def retry_failed(self, keys: Iterable[Key] | None = None) -> int:
        """Let failed tasks be tried again, of ``keys`` or all. Return how many. Dead workers hold no locks."""
        if keys is None:
            return self.session.retry()
        failed = [key for key, state in self.states(keys).items() if state is State.FAILED]
        return self.session.retry(Target(keys=frozenset(failed))) if failed else 0

    remove_locks = retry_failed

    def getlock(self, name: bytes | str) -> Lock:
        return Lock(self, _key(name))

    def metadata(self, task: Any) -> dict[str, Any] | None:
        """Return when a task was computed, how long it took and where; None where that is unknown."""
        try:
            run = self.session.results.provenance(_key(task.hash()))["run"]
        except NoSuchTask:
            run = None
        return run_metadata(run)

    def close(self) -> None:
        if self._hand is not None:
            self._hand.close()
            self._hand = None
        if self._session is not None and purpose.connect is None:
            self._session.close()
        self._session = None
        self.claims.clear()

    @staticmethod
    def remove_store(jugdir: str) -> None:
        """Delete a store in a folder."""
        scheme, rest = split(url := url_of(jugdir))
        if scheme == "file" and exists(url):
            shutil.rmtree(rest)


def run_metadata(run: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what Jug's metadata say of a run in a provenance."""
    if run is None:
        return None
    ended = datetime.fromtimestamp(run["started"] + run["duration"]).astimezone()
    return {"computed": ended.isoformat(timespec="seconds"), "seconds": run["duration"], "host": run["host"]}


def _is_there(url: str, folder: Path) -> bool:
    scheme, rest = split(url)
    return scheme != "file" or exists(f"file:{folder / Path(rest).expanduser()}")


def _key(name: bytes | str) -> Key:
    return name.decode() if isinstance(name, bytes) else name


class Lock:
    """A task's lock: the claim on it, which ends with the process that holds it."""

    def __init__(self, jugdir: Jugdir, key: Key) -> None:
        self._jugdir = jugdir
        self._key = key

    def get(self) -> bool:
        if self._key in self._jugdir.claims:
            return False
        claim = self._jugdir.hand.claim(self._key)
        if claim is None:
            return False
        self._jugdir.claims[self._key] = claim
        return True

    def release(self) -> None:
        """Give the claim back; a failed task can be tried again."""
        claim = self._jugdir.claims.pop(self._key, None)
        if claim is not None:
            self._jugdir.hand.release(claim)
        elif self.is_failed():
            self._jugdir.retry_failed([self._key])

    def is_locked(self) -> bool:
        return self._jugdir.state(self._key) in (State.RUNNING, State.FAILED)

    def fail(self) -> bool:
        """Mark the task as failed, if this process holds the lock. Return whether it is failed."""
        claim = self._jugdir.claims.pop(self._key, None)
        if claim is not None:
            self._jugdir.hand.fail(claim, "marked as failed by its script")
        return self.is_failed()

    def is_failed(self) -> bool:
        return self._jugdir.state(self._key) is State.FAILED


# -- settling single tasks ---------------------------------------------------------------------------------------------


class ByHand:
    """A worker that takes each step when it is called. The process's heartbeat covers it until `close`."""

    def __init__(self, access: StoreAccess) -> None:
        self._access, self._store = access, access.store
        self._me = me = system.me("worker", access.clock)
        capture = ThreadCapture(echo=True)
        self._runner = TaskRunner(access.store, access.seal, me, SharedStatus(), access.clock, capture, True)
        self._store.renew([me])
        self._info = lambda: me
        access.in_process.append(self._info)

    def claim(self, key: Key, first: bool = False) -> Claim | None:
        """Return the claim on a task; None where it isn't ready, or is claimed. Faster if it is likely the ``first`` in
        the queue and this is given."""
        claims = self._claimed(None) if first else []
        if not any(claim.lease.key == key for claim in claims):
            self._store.release([claim.lease for claim in claims])
            claims = self._claimed(Target(keys=frozenset([key])))
        others = [claim.lease for claim in claims if claim.lease.key != key]  # its dependencies are ready, but it isn't
        self._store.release(others)
        return next((claim for claim in claims if claim.lease.key == key), None)

    def _claimed(self, target: Target | None) -> list[Claim]:
        return self._store.claim(self._me.id, 1, 0.0, (), target, self._me.python)

    def release(self, claim: Claim) -> None:
        self._store.release([claim.lease])

    def run(self, claim: Claim) -> None:
        """Run the task and settle it."""
        try:
            settlement = self._runner.attempt(claim)
        finally:
            restore_streams()
        if settlement is not None:
            self._store.claim(self._me.id, 0, 0.0, [settlement])

    def deposit(self, claim: Claim, value: Any) -> None:
        """Settle with a value that comes from elsewhere."""
        lease = claim.lease
        payload, digest = codec.dump_value(value, self._store.put_blob)
        run = self._run(lease)
        outcome = Finished(lease.key, lease.round, lease.inputs, digest, payload, summarise(value), run)
        self._settle(outcome, lease, digest)

    def fail(self, claim: Claim, why: str) -> None:
        """Settle with a failure."""
        lease = claim.lease
        failed = Failed(lease.key, lease.round, lease.inputs, "raised", why, "", self._run(lease))
        self._settle(failed, lease, b"")

    def _run(self, lease: Lease) -> Run:
        me = self._me
        return Run(me.id, me.host, me.pid, me.user, me.python, self._access.clock.now(), 0.0, 0.0, lease.attempt)

    def _settle(self, outcome: Outcome, lease: Lease, digest: bytes) -> None:
        verdict = Verdict(lease.key, lease.round, lease.inputs, lease.attempt, digest, outcome.run.started)
        settlement = SignedWriter(self._access.seal).settlement(verdict, outcome)
        self._store.claim(self._me.id, 0, 0.0, [settlement])

    def close(self) -> None:
        """Give back the claims that are not settled."""
        if self._info in self._access.in_process:
            self._access.in_process.remove(self._info)
            self._store.leave([self._me.id])


# -- stores by Jug's names: all of them are stores of ours -------------------------------------------------------------


def select(jugdir: Any) -> Any:
    """Return the store at a path or URL; anything else is a store already."""
    return Jugdir(os.fspath(jugdir)) if isinstance(jugdir, str | os.PathLike) else jugdir


file_store = redis_store = Jugdir


def dict_store(backend: str | None = None) -> Jugdir:
    """Return a store in memory; with a name, one in a folder."""
    return Jugdir("dict_store" if backend is None else f"dict_store:{backend}")


def memoize_store(base: Any, list_base: bool = False) -> Any:
    """Return ``base``: our stores cache by themselves."""
    return base


def fsync_dir(fname: str) -> None:
    """Write a file's directory entry to the disk."""
    atomic.sync_folder(Path(os.path.abspath(fname)).parent)


# -- the call of a task ------------------------------------------------------------------------------------------------

CHECK = "JUG_CHECK_ARGUMENTS"  #: environment variable: check that tasks don't change their arguments
stage = replacing_jug
#: called with each exception of a task, in the process where it was raised
on_error: Callable[[BaseException], None] | None = None


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a task's function: the runner of a jugfile's tasks. Raises RuntimeError where an argument changed."""
    before = _digests(args, kwargs) if os.environ.get(CHECK) else {}
    try:
        value = function(*args, **kwargs)
    except Exception as error:
        if on_error is not None:
            on_error(error)
        raise
    if before:
        after = _digests(args, kwargs)
        if changed := [name for name in before if before[name] != after[name]]:
            raise RuntimeError(
                f"{getattr(function, '__name__', 'the function')}() changed its argument {' and '.join(changed)} in "
                "place, so results computed from it would not match their keys"
            )
    return value


def _digests(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, bytes]:
    digests: dict[str, bytes] = {}
    for name, value in [*((str(number), value) for number, value in enumerate(args, 1)), *kwargs.items()]:
        try:
            digests[name] = digest(value)
        except Unhashable:  # a task's value may be anything
            digests[name] = b""
    return digests
