"""How a claim is won on a file system, without a server or locks.

Each attempt at a task has a file name: ``claims/<key>.<round>.<inputs>.<attempt>``. The worker that creates that name
has the claim. To create it, a worker hard-links a file of its own, with its id inside, to the name: `link` is atomic on
every file system we know, NFS included, and fails if the name exists. Then the loser reads there who won. Where hard
links are refused, the name itself is created (``O_EXCL``) and the id written into it.

A name is never reused: when a worker dies, its task is claimed under the name of the next attempt, so two workers can't
both win it. Only compaction removes names, of attempts that have an outcome, and changes the *epoch* first. A worker
that claims compares the epoch afterwards: if it changed, the worker reads all events before it relies on the claim.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from jug_notebook.errors import StoreError
from jug_notebook.model import Lease, WorkerId
from jug_notebook.store.file.folders import share_like

LINKS = 50_000  #: hard links to one file; ext4 allows 65 000


class Claims:
    """The claims of a store's folder, as one process makes them."""

    def __init__(self, folder: Path, mode: int) -> None:
        self.mode = mode  #: of the files that it makes
        self._folder = folder
        self._epoch_path = str(folder / "epoch")
        self._owners: dict[WorkerId, tuple[Path, int]] = {}

    def epoch(self) -> bytes:
        """Return the epoch: another one each time that names of claims were removed; empty before the first time."""
        try:
            fd = os.open(self._epoch_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.read(fd, 64)
        finally:
            os.close(fd)

    def claim(self, worker: WorkerId, lease: Lease) -> WorkerId | None:
        """Try to claim an attempt. Return who has it: this worker, another, or None if that can't be told yet."""
        key, round, inputs, attempt = msgspec.structs.astuple(lease)
        name = self._folder / "claims" / f"{key}.{round}.{inputs.hex()}.{attempt}"
        try:
            os.link(self._owner_file(worker), name)
            return worker
        except OSError as error:
            if error.errno == errno.EMLINK:
                del self._owners[worker]
                return self.claim(worker, lease)
            refused = error
        owner = _owner_of(name)
        if owner is None and refused.errno != errno.EEXIST:
            owner = _create_exclusively(name, worker, refused, self.mode)
        return owner

    def _owner_file(self, worker: WorkerId) -> Path:
        """Return a file that names the worker, to link claims to."""
        path, links = self._owners.get(worker, (None, 0))
        if path is None or links >= LINKS:
            path = self._folder / "owners" / f"{worker}.{os.urandom(4).hex()}"
            path.write_text(worker)
            share_like(self._folder, path)
            links = 0
        self._owners[worker] = (path, links + 1)
        return path

    def close(self) -> None:
        for path, _ in self._owners.values():
            path.unlink(missing_ok=True)


def _owner_of(name: Path) -> WorkerId | None:
    """Return who made that claim; None if there is no such claim, or it isn't written yet."""
    try:
        return name.read_text() or None
    except FileNotFoundError:
        return None


def _create_exclusively(name: Path, worker: WorkerId, refused: OSError, mode: int) -> WorkerId | None:
    """Claim where hard links are refused: create the name itself. Return who has it."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.EPERM) and name.exists():
            return _owner_of(name)
        raise StoreError(f"can't claim in {name.parent}: {refused.strerror}") from error
    with os.fdopen(fd, "w") as file:
        os.chmod(fd, mode)  # whatever the umask is
        file.write(worker)
    return worker
