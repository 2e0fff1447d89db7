"""What tasks leave in the store while they run: a worker's side of checkpoints, and of what generators yield."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from blake3 import blake3

from jug_notebook import codec
from jug_notebook.errors import SignatureError, StoreError
from jug_notebook.model import Key, Lease, Verdict, WorkerInfo
from jug_notebook.store import Store
from jug_notebook.store.scratch import STREAM, Piece, name_of, stream_of
from jug_notebook.store.sealing import Seal
from jug_notebook.worker.status import SharedStatus

PATIENCE = 10.0  #: seconds for which a task waits until what it saved before is written

PACE = 0.2  #: seconds between two sendings of what a generator has yielded

Patiently = Callable[[Callable[[], Any]], Any]


class Leftovers:
    """What the tasks of one worker leave, one after the other. One that leaves nothing pays next to nothing for it."""

    def __init__(self, store: Store, seal: Seal, me: WorkerInfo, status: SharedStatus, patiently: Patiently) -> None:
        self.store, self.seal, self.me, self.status, self.patiently = store, seal, me, status, patiently
        self._attempt: Attempt | None = None
        self._lease: Lease | None = None
        self._spent: list[Key] = []  #: tasks that have ended

    def begin(self, lease: Lease) -> None:
        """A task's function is called next."""
        self._lease = lease

    def attempt(self) -> Attempt | None:
        """Return what keeps the leftovers of the task that runs; None where none does, or this is a forked copy."""
        if self._lease is None or os.getpid() != self.me.pid:
            return None
        if self._attempt is None:
            self._attempt = Attempt(self, self._lease)
        return self._attempt

    def end(self, verdict: Verdict | None = None) -> None:
        """The task has ended with this verdict, or was given back: what it left is of use to its next attempt only."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.flush()
        used = attempt is not None and attempt.used
        if verdict is not None and verdict.final and (used or lease.attempt > 1):
            self._spent.append(lease.key)

    def lost(self, lease: Lease) -> None:
        """A task has failed for good without being tried again."""
        self._spent.append(lease.key)

    def sweep(self) -> None:
        """Remove what tasks left that are settled now. What remains where that fails, the next cleanup removes."""
        if not self._spent:
            return
        spent, self._spent = self._spent, []
        with suppress(StoreError):
            self.store.sync()  # what a settled task left is removed only once that is sure
            for key in spent:
                _drop(self.store, key)


def drop_leftovers(store: Store, verdict: Verdict) -> None:
    """Remove what a task has left whose worker has died, if that settles it. Else the next cleanup does."""
    if verdict.final:
        with suppress(StoreError):
            _drop(store, verdict.key)


def _drop(store: Store, key: Key) -> None:
    store.scratch.drop([record.name for record in store.scratch.records(f"{key}.")])


class Attempt:
    """The leftovers of one attempt at a task: written beside it, one piece at a time."""

    def __init__(self, worker: Leftovers, lease: Lease) -> None:
        self._worker, self._lease = worker, lease
        self._writing: threading.Thread | None = None
        self._refused = False
        self.used = False  #: is there anything of it in the store?

    def save(self, name: str, value: Any) -> bool:
        """See `Keeper.save`."""
        data = codec.pack(value, "the checkpoint")
        if not self._written():
            return False
        self._write(partial(self._put, name, data))
        return True

    def _put(self, name: str, data: bytes) -> None:
        where, sealed = self._record(name), self._seal("checkpoint", data)
        self._worker.store.scratch.put(where, sealed)
        self._worker.status.saved(time.time(), len(sealed))

    def load(self, name: str) -> Any:
        """See `Keeper.load`. What is damaged, unsigned or can't be loaded here counts as none; the log names it."""
        self.flush()
        read = partial(self._worker.store.scratch.read, self._record(name))
        pieces: Sequence[Piece] = self._worker.patiently(read)[0]
        if not pieces:
            raise KeyError(name)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        lease = self._lease
        try:
            return codec.unpack(self._worker.seal.open("checkpoint", lease.key, lease.round, lease.inputs, data))
        except SignatureError as error:
            self._log(f"{error}. The task starts from the beginning")
        except Exception as error:  # its class may have changed, or refuse
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            self._log(
                f"the checkpoint of task {lease.key[:12]} can't be loaded, so it starts from the beginning: {what}"
            )
        raise KeyError(name)

    def collector(self) -> Collector:
        """See `Keeper.collector`."""
        return Collector(self._send)

    def _send(self, first: int, values: list[Any]) -> None:
        """Add values to the stream, of which ``first`` is the index of the first one. Raises StoreError, Unstorable."""
        piece = self._seal(STREAM, codec.pack((self._lease.attempt, first, values), "a value"))
        self.used = True
        self._worker.store.scratch.append(stream_of(self._lease), piece)

    def flush(self) -> None:
        """Wait until what was saved is written."""
        if self._writing is not None:
            self._writing.join()

    def _record(self, name: str) -> str:
        return name_of(self._lease, f"{blake3(name.encode()).hexdigest(length=8)}.checkpoint")

    def _seal(self, kind: str, data: bytes) -> bytes:
        lease = self._lease
        return self._worker.seal.seal(kind, lease.key, lease.round, lease.inputs, data)

    def _written(self, patience: float = PATIENCE) -> bool:
        """Return whether what was to be written before is, at the latest after these seconds."""
        if self._writing is not None:
            self._writing.join(patience)
        return self._writing is None or not self._writing.is_alive()

    def _write(self, act: Callable[[], None]) -> None:
        self.used = True
        writing = threading.Thread(target=self._carry_out, args=(act,), name="jug-checkpoint", daemon=True)
        writing.start()
        self._writing = writing  # now that it can be waited for

    def _carry_out(self, act: Callable[[], None]) -> None:
        try:
            act()
        except StoreError as error:
            if not self._refused:
                self._refused = True
                self._log(f"task {self._lease.key[:12]} goes on though a checkpoint could not be written: {error}")

    def _log(self, line: str) -> None:
        with suppress(StoreError):
            self._worker.store.notice(self._worker.me.id, f"{line}\n")


class Collector:
    """A list that is sent on while it grows: every `PACE` seconds what is new in it, by a thread of its own."""

    def __init__(self, send: Callable[[int, list[Any]], None]) -> None:
        self.values: list[Any] = []
        self._send = send
        self._sent = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def append(self, value: Any) -> None:
        self.values.append(value)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="jug-stream", daemon=True)
            thread.start()
            self._thread = thread  # now that it can be waited for

    def _run(self) -> None:
        while not self._over.wait(PACE):
            if new := self.values[self._sent :]:
                with suppress(Exception):  # the store is away, or a value can't be pickled while it changes: next time
                    self._send(self._sent, new)
                    self._sent += len(new)

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
