"""Claims in a folder: hard links to a file that names the worker. Whoever creates the name of an attempt has it.

`link` is atomic on every file system we know, NFS included. Where it is refused, the name itself is created.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from jug_notebook.errors import StoreError
from jug_notebook.model import Lease, WorkerId
from jug_notebook.store.file.atomic import share_like

LINKS = 50_000  #: hard links to one file; ext4 allows 65 000


class Claims:
    """``epoch()`` is another one once names of claims were removed."""

    def __init__(self, folder: Path, mode: int) -> None:
        self.mode = mode  #: of the files that it makes
        self._folder = folder
        self._epoch_path = str(folder / "epoch")
        self._owners: dict[WorkerId, tuple[Path, int]] = {}

    def epoch(self) -> bytes:
        try:
            fd = os.open(self._epoch_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.read(fd, 64)
        finally:
            os.close(fd)

    def take(self, worker: WorkerId, lease: Lease) -> WorkerId | None:
        """Whose the attempt is now: this worker's, or another's; None where that can't be told yet."""
        key, round, inputs, attempt = msgspec.structs.astuple(lease)
        name = self._folder / "claims" / f"{key}.{round}.{inputs.hex()}.{attempt}"
        try:
            os.link(self._owner(worker), name)
            return worker
        except OSError as error:
            if error.errno == errno.EMLINK:
                del self._owners[worker]
                return self.take(worker, lease)
            refused = error
        owner = _owner_of(name)
        if owner is None and refused.errno != errno.EEXIST:
            owner = _create_exclusively(name, worker, refused, self.mode)
        return owner

    def _owner(self, worker: WorkerId) -> Path:
        """A file that names the worker, to link claims to."""
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
    """Whose claim that is; None where there is none, or one whose content is not there yet."""
    try:
        return name.read_text() or None
    except FileNotFoundError:
        return None


def _create_exclusively(name: Path, worker: WorkerId, refused: OSError, mode: int) -> WorkerId | None:
    """Where hard links are refused: create the name itself. Answers whose it is then."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.EPERM) and name.exists():
            return _owner_of(name)
        raise StoreError(f"can't claim in {name.parent}: {refused.strerror}") from error
    with os.fdopen(fd, "w") as file:
        os.chmod(fd, mode)  # whatever the umask takes away
        file.write(worker)
    return worker
