"""A store's folder: its files, its identity in ``store.json``, and sharing it with a group of users.

Other processes, and maybe other users, read these files while this process writes them. A store that a group shares has
one key for all of them, kept in the folder itself.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from jug_notebook.errors import StoreError, StoreGone
from jug_notebook.store import Store, atomic, keyring

FORMAT = 1
_FOLDERS = (
    "log", "sealing", "sealed", "claims", "owners", "blobs", "trash", "workers", "workers/gone", "orders", "output",
)  # fmt: skip


class Stamp(NamedTuple):
    """What differs once a file was changed or replaced. Times are in nanoseconds, by the file server's clock."""

    inode: int
    size: int
    changed: int
    written: int


_STATX = struct.Struct("=32xQQ48xqI4xqI4x")  #: of a `struct statx`: inode, size, ctime, mtime
_HERE, _FORCE_SYNC, _BASIC = -100, 0x2000, 0x7FF  #: AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS


@functools.cache
def _statx() -> Callable[..., int] | None:
    """Return Linux' `statx`; None on other systems."""
    return getattr(ctypes.CDLL(None, use_errno=True), "statx", None) if sys.platform == "linux" else None


def stamp_of(path: Path) -> Stamp:
    """Return a file's stamp as it is on the file server now, whatever is cached here. Raises OSError.

    Over NFS that is one request. Where the system can't ask so, opening the file does it, which are three.
    """
    buffer = ctypes.create_string_buffer(256)
    statx = _statx()
    if statx is not None and statx(_HERE, os.fsencode(path), _FORCE_SYNC, _BASIC, buffer) == 0:
        inode, size, seconds, nanoseconds, written, rest = _STATX.unpack_from(buffer)
        return Stamp(inode, size, seconds * 10**9 + nanoseconds, written * 10**9 + rest)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return Stamp(found.st_ino, found.st_size, found.st_ctime_ns, found.st_mtime_ns)


def share_like(folder: Path, *names: Path) -> None:
    """Open files and folders to the group, whatever the umask is, if ``folder`` (the store or one in it) is open."""
    if folder.stat().st_mode & 0o020:
        for name in names:
            with suppress(PermissionError):  # another user's, who has done so
                name.chmod(0o2770 if name.is_dir() else 0o660)


def replace(path: Path, *pieces: bytes | memoryview, durable: bool = False, mode: int = 0o600) -> None:
    """Write a file as a whole. Raises StoreError where that can't be done."""
    try:
        atomic.replace(path, *pieces, durable=durable, mode=mode)
    except OSError as error:
        raise StoreError(f"can't write to {path.parent}: {error.strerror}") from error


def listed(folder: Path) -> list[str]:
    """Return the names in a folder except hidden ones; none if there is no such folder."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def length(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def remove_older(folder: Path, than: float, keep: Collection[str] = ()) -> None:
    """Remove files last changed before a time (of the file server, seconds since the epoch), except those to keep."""
    for name in listed(folder):
        with suppress(FileNotFoundError):
            if name not in keep and (folder / name).stat().st_mtime < than:
                (folder / name).unlink()


def server_time(folder: Path) -> float:
    """Return the file server's time. Hosts' clocks may differ from it, and all times of files are the server's."""
    path = atomic.hidden(folder)
    path.touch()
    try:
        return path.stat().st_mtime
    finally:
        path.unlink()


# -- identity ---------------------------------------------------------------------------------------------------------


class Identity(msgspec.Struct):
    """The content of store.json."""

    format: int
    id: str
    shared: str = ""  #: "group" if it is shared, else empty


def identity_of(folder: Path, display_url: str) -> Identity:
    """Return the identity of the store in a folder, made here if there is none. Raises StoreError that says why not."""
    path = folder / "store.json"
    try:
        if not path.exists():
            _make(folder, display_url)
        identity = msgspec.json.decode(path.read_bytes(), type=Identity)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StoreError(f"{display_url} is no store: its store.json can't be read") from None
    except NotADirectoryError:
        raise StoreError(f"{display_url} is a file, not a folder; give another path") from None
    except PermissionError as error:
        raise StoreError(f"{display_url} is not yours to write: {error.strerror}; give another path") from None
    except OSError as error:
        raise StoreError(f"{display_url} can't be used: {error.strerror}; give another path") from None
    if identity.format > FORMAT:
        raise StoreError(
            f"{display_url} has format {identity.format}, made by a newer jug_notebook; this one reads format "
            f"{FORMAT}: pip install -U jug-notebook"
        )
    return identity


def check_identity(folder: Path, store_id: str, display_url: str) -> None:
    """Raise StoreGone if the store of that id isn't in the folder any more."""
    try:
        found = msgspec.json.decode((folder / "store.json").read_bytes(), type=Identity)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreGone(
            f"{display_url} is gone: its folder was removed or moved; to make a new store, run %jug_store {display_url}"
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # out of reach for now: what is done next may meet it
        return
    if found.id != store_id:
        raise StoreGone(
            f"{display_url} was removed, and there is another store in its place; to use that, run "
            f"%jug_store {display_url}"
        )


def check_if_changed(folder: Path, store_id: str, display_url: str, checked: Stamp | None) -> Stamp | None:
    """Do what `check_identity` does, unless ``store.json`` has that stamp still. Return the stamp it has, if any."""
    try:
        stamp = stamp_of(folder / "store.json")
    except OSError:  # the check finds out why
        stamp = None
    if stamp is None or stamp != checked:
        check_identity(folder, store_id, display_url)
    return stamp


def _make(folder: Path, display_url: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    strange = [name for name in os.listdir(folder) if name not in ("CACHEDIR.TAG", ".gitignore", "news", *_FOLDERS)]
    if any(not name.startswith(".") for name in strange if name != "store.json"):
        raise StoreError(f"{display_url} holds other files ({sorted(strange)[0]}, …); give a new or an empty folder")
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# made by jug_notebook\n")
    (folder / ".gitignore").write_text("*\n")
    (folder / "news").touch(0o600)
    identity = Identity(FORMAT, os.urandom(16).hex())
    atomic.create(folder / "store.json", msgspec.json.encode(identity) + b"\n")  # another process may do so, too


def share_folder(folder: Path, store_id: str, secret: bytes, display_url: str) -> None:
    """Open a store's folder to the group that it belongs to, with the key inside. Raises StoreError."""
    try:
        for name, _, files in os.walk(folder):
            os.chmod(name, 0o2770)
            for file in files:
                os.chmod(Path(name) / file, 0o660)
        replace(folder / "key", f"{store_id} {secret.hex()}\n".encode(), durable=True, mode=0o640)
        identity = msgspec.json.encode(Identity(FORMAT, store_id, "group"))
        replace(folder / "store.json", identity + b"\n", durable=True, mode=0o660)
    except PermissionError as error:
        raise StoreError(f"{display_url} has files of others, so only they can share it: {error}") from error


def read_shared_key(folder: Path, store_id: str, display_url: str) -> bytes:
    """Return the key inside a shared store. Raises StoreError if this user can't read it."""
    try:
        store, secret = (folder / "key").read_text().split()
        if store != store_id:
            raise ValueError
        return bytes.fromhex(secret)
    except PermissionError as error:
        raise StoreError(f"{display_url} is shared with group {group_of(folder)}, and you are not in it") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"the key of {display_url} can't be read: {error or 'it is damaged'}") from error


def group_of(folder: Path) -> str:
    """Return the name, or else the number, of the group that a folder belongs to."""
    try:
        return folder.group()
    except KeyError:
        return str(folder.stat().st_gid)


# -- sharing ----------------------------------------------------------------------------------------------------------


def join_shared(store: Store, shared: str, secret: Callable[[], bytes]) -> None:
    """Share the user's own store with its group, or take the key of a store that a colleague shares. Raises StoreError.

    This is mutual trust, as a message says once: each member can run code as every other member who uses the store.
    """
    if shared != "group":
        raise StoreError(f"shared={shared!r} means nothing; give shared='group', or leave it out")
    file: Any = store
    if not hasattr(store, "share"):
        raise StoreError(
            f"{store.display_url} has no group; share it by its key: jug-notebook key export, jug-notebook key import"
        )
    new = not file.shared
    if new:
        file.share(secret())
    key = file.shared_key()
    known = keyring.has_secret(store.id)
    keyring.import_secret(store.id, key)
    if new or not known:
        print(
            f"jug_notebook: {store.display_url} is shared with group {group_of(file.folder)}. Its members can run code "
            "as you, and you as them",
            file=sys.stderr,
        )


def sharing_advice(store: Store) -> str:
    """Return what to do about a missing key if the store is shared; else an empty string."""
    if not getattr(store, "shared", ""):
        return ""
    file: Any = store
    return (
        f"{store.display_url} is shared with group {group_of(file.folder)}. Its members could run code as you, and you "
        f"as them. If that is fine: jn.connect({store.url.partition(':')[2]!r}, shared='group'), or in a shell: "
        f"jug-notebook key import < {file.folder}/key"
    )
