"""What tasks leave in a store's folder until they end: a file each, in which each piece follows its length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from jug_notebook.errors import StoreError
from jug_notebook.store.atomic import Folder
from jug_notebook.store.scratch import Record

LENGTH = 8  #: bytes of a piece's length


class FileScratch:
    """The records of one store: see `Scratch`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @contextmanager
    def _in_use(self) -> Iterator[Folder]:
        """Let what the file system refuses be a StoreError."""
        try:
            yield self._folder
        except OSError as error:
            raise StoreError(f"can't use {self._folder.path}: {error.strerror}") from error

    def put(self, name: str, piece: bytes | memoryview) -> None:
        with self._in_use() as folder:
            folder.replace(name, len(piece).to_bytes(LENGTH, "little"), piece, durable=True)

    def append(self, name: str, piece: bytes | memoryview) -> None:
        with self._in_use() as folder:
            folder.append(name, b"".join((len(piece).to_bytes(LENGTH, "little"), piece)))

    def read(self, name: str, position: int = 0) -> tuple[Sequence[bytes | memoryview], int]:
        with self._in_use() as folder:
            try:
                fd = folder.open(name)
            except FileNotFoundError:
                return [], position
            with open(fd, "rb", buffering=0) as file:
                file.seek(position)
                data = memoryview(file.readall())
        pieces, at = [], 0
        while len(data) - at > LENGTH:
            end = at + LENGTH + int.from_bytes(data[at : at + LENGTH], "little")
            if end > len(data):  # the rest is on its way, or was cut off
                break
            pieces.append(data[at + LENGTH : end])
            at = end
        return pieces, position + at

    def records(self, prefix: str = "") -> list[Record]:
        found = []
        with self._in_use() as folder, suppress(FileNotFoundError):
            for name in folder.names():
                if name.startswith(prefix):
                    with suppress(FileNotFoundError):
                        found.append(Record(name, folder.stat(name).st_size))
        return found

    def drop(self, names: Iterable[str]) -> None:
        with self._in_use() as folder, suppress(FileNotFoundError):
            for name in names:
                folder.unlink(name)
