"""How a claim is won on a file system, without a server or locks.

Each attempt at a task has a file name: ``claims/<key>.<round>.<inputs>.<attempt>.<MAC>``, which nobody without the
store's key can foretell. The worker that creates that name has the claim. To create it, a worker hard-links a file of
its own, with its id inside, to the name: `link` is atomic on every file system we know, NFS included, and fails if the
name exists. Then the loser reads there who won, and believes it for a while, until an event says so. Where hard links
are refused, the name itself is created (``O_EXCL``) and the id written into it.

A name is never reused: when a worker dies, its task is claimed under the name of the next attempt, so two workers can't
both win it. Only compaction removes names, of attempts that have an outcome, and changes the *epoch* first. A worker
that claims compares the epoch afterwards: if it changed, the worker reads all events before it relies on the claim.
"""

from __future__ import annotations

import errno
import os
import re

import msgspec

from jug_notebook.errors import StoreError
from jug_notebook.model import Lease, WorkerId
from jug_notebook.store.atomic import Folder, ForeignFile
from jug_notebook.store.sealing import EventSeal

LINKS = 50_000  #: hard links to one file; ext4 allows 65 000
WORKER_ID = re.compile(r"\w[\w.-]{0,250}")  #: of any process; no other word from a store becomes a file's name
NOBODY = "unknown"  #: has a claim that names no worker


class Claims:
    """The claims of a store's folder, as one process makes them."""

    def __init__(self, root: Folder, seal: EventSeal | None) -> None:
        self._root = root
        self._seal = seal
        self._claims = root / "claims"
        self._files = root / "owners"
        self._owners: dict[WorkerId, tuple[str, int]] = {}

    def epoch(self) -> bytes:
        """Return the epoch: another one each time that names of claims were removed; empty before the first time."""
        try:
            return self._root.read("epoch", 64)
        except (FileNotFoundError, ForeignFile):
            return b""

    def claim(self, worker: WorkerId, lease: Lease) -> WorkerId | None:
        """Try to claim an attempt. Return who has it: this worker, another, or None if that can't be told yet."""
        assert self._seal is not None, "without the store's key, nothing can be claimed"
        key, round, inputs, attempt = msgspec.structs.astuple(lease)
        name = f"{key}.{round}.{inputs.hex()}.{attempt}"
        name = f"{name}.{self._seal.attempt(name.encode()).hex()}"
        try:
            self._files.link(self._owner_file(worker), name, self._claims)
            return worker
        except OSError as error:
            if error.errno == errno.EMLINK:
                del self._owners[worker]
                return self.claim(worker, lease)
            refused = error
        _ = self._claims.fd  # raises where the folder is none: then nobody has the claim, and no later attempt can help
        owner = self._owner_of(name)
        if owner is None and refused.errno != errno.EEXIST:
            owner = self._create_exclusively(name, worker, refused)
        return owner

    def _owner_file(self, worker: WorkerId) -> str:
        """Return a file that names the worker, to link claims to."""
        name, links = self._owners.get(worker, ("", LINKS))
        if links >= LINKS:
            name, links = f"{worker}.{os.urandom(4).hex()}", 0
            self._write_new(self._files, name, worker)
        self._owners[worker] = (name, links + 1)
        return name

    def close(self) -> None:
        for name, _ in self._owners.values():
            self._files.unlink(name)

    def _owner_of(self, name: str) -> WorkerId | None:
        """Return who made that claim; None if there is no such claim, or it isn't written yet."""
        try:
            owner = self._claims.read(name, 1000).decode(errors="replace")
        except FileNotFoundError:
            return None
        except ForeignFile:
            return NOBODY
        return (owner or None) if not owner or WORKER_ID.fullmatch(owner) else NOBODY

    def _create_exclusively(self, name: str, worker: WorkerId, refused: OSError) -> WorkerId | None:
        """Claim where hard links are refused: create the name itself. Return who has it."""
        try:
            self._write_new(self._claims, name, worker)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.EPERM) and (owner := self._owner_of(name)) is not None:
                return owner or None
            raise StoreError(f"can't claim in {self._claims.path}: {refused.strerror}") from error
        return worker

    @staticmethod
    def _write_new(folder: Folder, name: str, worker: WorkerId) -> None:
        fd = folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(fd, worker.encode())
        except OSError:
            folder.unlink(name)  # it names nobody
            raise
        finally:
            os.close(fd)
