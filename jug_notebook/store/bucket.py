"""Objects in a bucket, or in any place that fsspec reaches: read and written by name, many at once, in bounded time.

Credentials are those that fsspec's libraries find for themselves, in their usual environment and configuration.
"""

from __future__ import annotations

import functools
import mmap
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from blake3 import blake3

from jug_notebook import system
from jug_notebook.errors import StoreError, Unreachable, ValueLost, clean
from jug_notebook.model import Address
from jug_notebook.store import masked

T = TypeVar("T")

WIDTH = 64  #: requests at once
PATIENCE = 10.0  #: seconds without any answer after which a bucket counts as out of reach
LONG = 600.0  #: the same for what may be large
PIECE = 8 << 20  #: bytes that one request fetches of a blob, at most
AHEAD = 64 << 20  #: bytes of blobs that are fetched together, at most
ONE_AT_A_TIME = {"sftp", "ssh", "ftp", "smb"}
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "az"}  #: an object that is written there appears as a whole
_IN_MEMORY = re.compile("(.*::)?memory://.*", re.DOTALL)
_RELATIVE = re.compile("(.*::)?(file|local)://[^/].*", re.DOTALL)
_BEYOND = re.compile("range.* not satisfiable", re.IGNORECASE)  #: a server's word for a part behind an object's end
PARTIAL = 206  #: status of a web server that sends a part, as it was asked to
_NO_LISTING = (403, 405, 501)  #: of a web server that shows files and no folders
_TIMES = {"connect_timeout": 4, "read_timeout": 20, "retries": {"max_attempts": 1}}
_LIBRARIES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "http": "aiohttp",
    "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol",
}  # fmt: skip
#: what libraries complain of, and the way out
_WAYS_OUT = (
    ("NoCredentialsError", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run: aws configure"),
    ("bucket does not exist", "correct its name, or make it first"),
    ("No authentication methods", "put a key that its server knows into ~/.ssh, or start ssh-agent"),
    ("Protocol not known", "give s3://BUCKET/PREFIX, file:///FOLDER, or another URL of fsspec's"),
    ("Invalid length for parameter", "name the bucket: s3://BUCKET/PREFIX"),
    ("PermissionError", "the credentials that were found may not do that"),
)


class Part(NamedTuple):
    """An object, or the bytes of it from ``start`` on up to ``end``."""

    name: str
    start: int = 0
    end: int | None = None


class Bucket:
    """The objects below a URL. Safe to use from several threads. All methods raise Unreachable."""

    def __init__(self, url: str) -> None:
        self._url, self._scheme = url, url.partition(":")[0] if "://" in url else "file"
        self.display_url = masked(url).partition("?")[0]
        self._whole = self._scheme in WHOLE
        self._is_web = self._scheme in ("http", "https")
        self._width = 1 if self._scheme in ONE_AT_A_TIME else WIDTH
        if _IN_MEMORY.fullmatch(url):
            raise StoreError(f"{self.display_url} ends with this process, so it can be no mirror; give file:///FOLDER")
        if _RELATIVE.fullmatch(url):
            raise StoreError(
                f"{self.display_url} depends on the current folder; give file:///FOLDER, with three slashes"
            )
        try:
            from fsspec import get_filesystem_class

            if self._scheme in ONE_AT_A_TIME:  # whose servers are connected to when they are used
                get_filesystem_class(self._scheme)
            else:
                self._opened  # noqa: B018
        except ImportError as missing:
            library = _LIBRARIES.get(self._scheme, missing.name or "fsspec")
            raise StoreError(
                f"{self.display_url} needs {library}: pip install {library}, or 'jug-notebook[cloud]' for s3"
            ) from missing
        except Exception as wrong:  # each library has errors of its own
            raise StoreError(f"{self.display_url} can't be used: {_reason(wrong)}") from wrong

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the folder in it."""
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {"skip_instance_cache": True}
        if self._scheme not in ("sftp", "ssh"):  # which keep no lists, and take no word about that
            options["use_listings_cache"] = False
        if self._scheme in ("s3", "s3a"):
            options["config_kwargs"] = _TIMES
        elif self._scheme == "file":
            options["auto_mkdir"] = True
        elif self._is_web:  # what is packed may be of any size
            options["client_kwargs"] = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
        fs, root = url_to_fs(self._url, **options)
        return fs, str(root).rstrip("/")

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def get(self, parts: Sequence[Part], patience: float = PATIENCE) -> list[bytes | None]:
        """Return the bytes of objects, or of parts of them; None for those that aren't there."""
        return self._all([lambda part=part: self._get(part) for part in parts], patience)  # type: ignore[misc]

    def _get(self, part: Part) -> bytes | None:
        try:
            if self._is_web and part.end is not None:
                return self._get_from_web(part, part.end)
            data: bytes = self._fs.cat_file(self._path(part.name), start=part.start or None, end=part.end)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except Exception as error:  # each library has errors of its own
            if _BEYOND.search(str(error)):
                return b""
            raise
        return data

    def _get_from_web(self, part: Part, end: int) -> bytes:
        """Return a part of a file from a server that may know no ranges, or send without end."""
        wanted = {**self._fs.kwargs.get("headers", {}), "Range": f"bytes={part.start}-{end - 1}"}
        data = bytearray()
        with self._fs.open(self._path(part.name), block_size=0, size=end, headers=wanted) as file:
            skipped = 0 if file.r.status == PARTIAL else part.start
            limit = skipped + end - part.start
            while len(data) < limit and (piece := file.read(limit - len(data))):
                data += piece
        return bytes(data[skipped:])

    def put(self, objects: Sequence[tuple[str, bytes | memoryview]]) -> None:
        """Write objects; each appears as a whole or not at all."""
        self._all([lambda name=name, data=data: self._put(name, data) for name, data in objects], LONG)  # type: ignore[misc]

    def _put(self, name: str, data: bytes | memoryview) -> None:
        path = self._path(name)
        if self._whole:
            self._fs.pipe_file(path, bytes(data))
            return
        aside = f"{path}.{system.new_id()}.part"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(aside, bytes(data))
        self._fs.mv(aside, path)

    def exist(self, names: Sequence[str]) -> list[bool]:
        """Return for each object whether it is there."""
        return self._all([lambda name=name: bool(self._fs.exists(self._path(name))) for name in names], PATIENCE)  # type: ignore[misc]

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects in a folder, sorted; none where they can't be listed, only read."""
        return self._all([lambda: self._names(self._path(folder))], PATIENCE)[0]

    def _names(self, path: str) -> list[str]:
        try:
            found = self._fs.ls(path, detail=False)
        except (FileNotFoundError, PermissionError, NotImplementedError, NotADirectoryError):
            return []
        except Exception as error:  # each library has errors of its own
            if getattr(error, "status", 0) in _NO_LISTING:
                return []
            raise
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)

    def size(self, name: str) -> int:
        """Return the bytes of an object; 0 where it isn't there."""
        return self._all([lambda: self._size(name)], PATIENCE)[0]

    def _size(self, name: str) -> int:
        try:
            return int(self._fs.size(self._path(name)) or 0)
        except FileNotFoundError:
            return 0

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; those that are gone already don't matter."""
        self._all([lambda name=name: self._remove(name) for name in names], PATIENCE)  # type: ignore[misc]

    def _remove(self, name: str) -> None:
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _all(self, calls: Sequence[Callable[[], T]], patience: float) -> list[T]:
        """Call all of them, many at once. Raise Unreachable where one fails, or none has ended for ``patience``."""
        if not calls:
            return []
        gathering = _Gathering(calls)
        for _ in range(min(self._width, len(calls))):
            threading.Thread(target=gathering.work, name="jug_notebook bucket", daemon=True).start()
        done = gathering.wait(patience)
        if gathering.error is not None and self._scheme in ONE_AT_A_TIME:
            self.__dict__.pop("_opened", None)  # the next call connects again
        if not done:
            raise Unreachable(f"{self.display_url} doesn't answer for {patience:g} s")
        if gathering.error is not None:
            raise Unreachable(f"{self.display_url} can't be used: {_reason(gathering.error)}") from gathering.error
        return [gathering.results[number] for number in range(len(calls))]


class _Gathering:
    """Calls that several threads make; daemons, so that one which hangs doesn't keep the process from ending."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.results: dict[int, Any] = {}
        self.error: Exception | None = None
        self._calls: Iterator[tuple[int, Callable[[], Any]]] = iter(list(enumerate(calls)))
        self._count = len(calls)
        self._changed = threading.Condition()

    def work(self) -> None:
        while True:
            with self._changed:
                number, call = next(self._calls, (0, None))
                if call is None or self.error is not None:
                    return
            try:
                result = call()
            except Exception as error:
                with self._changed:
                    self.error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self.results[number] = result
                self._changed.notify_all()

    def wait(self, patience: float) -> bool:
        """Wait until all is done, or one has failed. Return False if nothing has come for ``patience`` seconds."""
        with self._changed:
            while self.error is None and len(self.results) < self._count:
                if not self._changed.wait(patience):
                    self.error = TimeoutError()
                    return False
            return True


def named_by_content(data: bytes | memoryview) -> Address:
    """Return the name of an object, from its content: that of a blob."""
    return blake3(data).hexdigest(length=20)


def blob_name(address: Address) -> str:
    """Return where a blob is in a mirror."""
    return f"blobs/{address[:2]}/{address}"


class Blobs:
    """The blobs in a bucket. Each is returned only if its content is what its name says; ``skip`` names others."""

    def __init__(self, bucket: Bucket, skip: Callable[[str], None]) -> None:
        self._bucket, self._skip = bucket, skip
        self._upcoming: Callable[[], Iterable[Address]] | None = None
        self._expected: list[Address] = []  # those that are likely to be read after the last one
        self._ahead: dict[Address, memoryview] = {}  # those of them that were fetched with it
        self._size = AHEAD  # bytes of the largest that were fetched last

    @property
    def _width(self) -> int:
        """How many to fetch at once, if none is larger than twice the last."""
        return max(1, min(WIDTH, AHEAD // (2 * self._size + 1)))

    def expect(self, upcoming: Callable[[], Iterable[Address]]) -> None:
        """Note what returns the blobs that are likely to be read now, in this order."""
        self._upcoming, self._ahead = upcoming, {}

    def get(self, address: Address, lacks: Callable[[Address], bool] = lambda _: False) -> memoryview:
        """Return a blob. Raises ValueLost where it isn't there or is damaged, Unreachable.

        With it come those that are expected next and that the store ``lacks``, several at once.
        """
        data = self._ahead.pop(address, None)
        if data is None:
            self._ahead = dict(self.fetch([address, *islice(self._following(address, lacks), self._width - 1)]))
            data = self._ahead.pop(address, None)
        if data is None:
            raise ValueLost(f"blob {address[:12]} is neither in the store nor in {self._bucket.display_url}")
        return data

    def _following(self, address: Address, lacks: Callable[[Address], bool]) -> Iterator[Address]:
        if self._upcoming is not None:
            self._expected, self._upcoming = list(dict.fromkeys(self._upcoming())), None
        if address not in self._expected:
            return iter(())
        self._expected = self._expected[self._expected.index(address) + 1 :]
        return filter(lacks, self._expected)

    def fetch(self, addresses: Sequence[Address]) -> Iterator[tuple[Address, memoryview]]:
        """Yield blobs, without those that aren't there or are damaged. Raises Unreachable.

        Large ones come one after another, by way of files: under a name, a bucket may hold anything of any size.
        """
        done = 0
        while part := addresses[done : done + self._width]:
            done += len(part)
            limit = min(PIECE, AHEAD // len(part))
            firsts = self._bucket.get([Part(blob_name(address), 0, limit) for address in part], LONG)
            sizes = []
            for address, first in zip(part, firsts, strict=True):
                if first is None:
                    continue
                data = memoryview(first) if len(first) < limit else self._large(address, first)
                if data is not None and named_by_content(data) == address:
                    sizes.append(data.nbytes)
                    yield address, data
                else:
                    self._skip(f"blob {address[:8]}")
            self._size = max(sizes, default=self._size)

    def _large(self, address: Address, first: bytes) -> memoryview | None:
        """Return a large blob, in a file that goes with it; None where there is no room, or it ends too soon."""
        name = blob_name(address)
        size = self._bucket.size(name)
        if size >= shutil.disk_usage(tempfile.gettempdir()).free:
            self._skip(f"blob {address[:8]}, of {size:,} bytes, finds no room in {tempfile.gettempdir()}, or")
            return None
        with tempfile.TemporaryFile() as file:
            file.write(first)
            for group in system.batched(range(len(first), size, PIECE), AHEAD // PIECE):
                parts = [Part(name, start, min(start + PIECE, size)) for start in group]
                for part, piece in zip(parts, self._bucket.get(parts, LONG), strict=True):
                    if piece is None or part.start + len(piece) != part.end:
                        return None
                    file.write(piece)
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _reason(error: BaseException) -> str:
    """Return why a library failed, in a line without secrets."""
    text = " ".join(masked(str(error)).split())
    line = clean(f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__)
    return next((f"{line}; {way_out}" for complaint, way_out in _WAYS_OUT if complaint in line), line)
