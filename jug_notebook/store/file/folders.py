"""A store's folder: its files, its identity in ``store.json``, and sharing it with a group of users.

Other processes, and maybe other users, read these files while this process writes them. A store that a group shares has
one key for all of them, kept in the folder itself.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import stat
import struct
import sys
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from jug_notebook.errors import StoreError, StoreGone, clean
from jug_notebook.model import UNREADABLE
from jug_notebook.store import Store, keyring
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file.journal import HEADER, MAGIC, Chain, frame_end
from jug_notebook.store.sealing import EventSeal

FORMAT = 2
_FOLDERS = (
    "log", "sealing", "sealed", "claims", "owners", "blobs", "trash", "workers", "workers/gone", "orders", "output",
    "scratch",
)  # fmt: skip


class Stamp(NamedTuple):
    """What differs once a file was changed or replaced. Times are in nanoseconds, by the file server's clock."""

    inode: int
    size: int
    changed: int
    written: int


_STATX = struct.Struct("=32xQQ48xqI4xqI4x")  #: of a `struct statx`: inode, size, ctime, mtime
_HERE, _NOW, _BASIC = -100, 0x2100, 0x7FF  #: AT_FDCWD; AT_STATX_FORCE_SYNC, no links followed; STATX_BASIC_STATS


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
    if statx is not None and statx(_HERE, os.fsencode(path), _NOW, _BASIC, buffer) == 0:
        inode, size, seconds, nanoseconds, written, rest = _STATX.unpack_from(buffer)
        return Stamp(inode, size, seconds * 10**9 + nanoseconds, written * 10**9 + rest)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return Stamp(found.st_ino, found.st_size, found.st_ctime_ns, found.st_mtime_ns)


def make_folders(root: Folder, *names: str) -> None:
    """Make folders of a store that aren't there; such a name has at most two parts. Raises OSError."""
    for name in names:
        above, _, last = name.rpartition("/")
        (root / above if above else root).make(last).close()


def listed(folder: Folder) -> list[str]:
    """Return the names in a folder except hidden ones; none if there is no such folder."""
    try:
        return folder.names()
    except FileNotFoundError:
        return []


def length(file: Folder) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def remove_older(folder: Folder, than: float, keep: Collection[str] = (), hidden: bool = False) -> None:
    """Remove files last changed before a time (of the file server, seconds since the epoch), except those to keep.

    With ``hidden``, remove those whose names begin with a dot, else the others.
    """
    for name in folder.names(hidden=hidden):
        with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            if name not in keep and folder.stat(name).st_mtime < than:
                folder.unlink(name)


# -- identity ---------------------------------------------------------------------------------------------------------

_ID = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,100}$")]


class Identity(msgspec.Struct):
    """The content of store.json."""

    format: int
    id: _ID
    shared: Literal["", "group"] = ""  #: "group" if it is shared, else empty
    seal: str = ""  #: of a shared store: says that who has its key has shared it


def _read_identity(root: Folder) -> Identity:
    return msgspec.json.decode(root.read("store.json", 1 << 16), type=Identity)


def identity_of(root: Folder, display_url: str) -> Identity:
    """Return the identity of the store in a folder, made here if there is none. Raises StoreError that says why not."""
    try:
        try:
            identity = _read_identity(root)
        except FileNotFoundError:
            _make(root, display_url)
            identity = _read_identity(root)
    except UNREADABLE:
        raise StoreError(f"{display_url} is no store: its store.json can't be read") from None
    except NotADirectoryError:
        raise StoreError(f"{display_url} is a file, not a folder; give another path") from None
    except PermissionError as error:
        raise StoreError(f"{display_url} is not yours to write: {error.strerror}; give another path") from error
    except OSError as error:
        raise StoreError(f"{display_url} can't be used: {error.strerror}; give another path") from error
    if identity.format != FORMAT:
        older = identity.format < FORMAT
        way = "give another folder" if older else "pip install -U jug-notebook"
        maker = f"made by {'an earlier' if older else 'a newer'} jug_notebook"
        raise StoreError(f"{display_url} has format {identity.format}, {maker}; this one reads format {FORMAT}: {way}")
    return identity


def check_identity(root: Folder, store_id: str, display_url: str) -> None:
    """Raise StoreGone if the store of that id isn't at the folder's path any more. If it is a copy, use that."""
    try:
        with Folder(root.path) as now:
            found = _read_identity(now)
        if found.id == store_id and root.moved():
            root.renew()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreGone(_missing(root.path, display_url)) from error
    except (OSError, *UNREADABLE):  # out of reach for now: what is done next may meet it
        return
    if found.id != store_id:
        raise StoreGone(
            f"{display_url} was removed, and there is another store in its place; to use that, run "
            f"%jug_store {display_url}"
        )


def _missing(path: Path, display_url: str) -> str:
    """Return what to say of a store whose store.json isn't where it was."""
    with suppress(OSError), Folder(path) as now:
        if first_frames(now):
            return f"{display_url} has lost its store.json; to have it restored, run %jug_store {display_url}"
    return f"{display_url} is gone: its folder was removed or moved; to make a new store, run %jug_store {display_url}"


def check_if_changed(root: Folder, store_id: str, display_url: str, checked: Stamp | None) -> Stamp | None:
    """Do what `check_identity` does, unless ``store.json`` has that stamp still. Return the stamp it has, if any."""
    try:
        stamp = stamp_of(root.path / "store.json")
    except OSError:  # the check finds out why
        stamp = None
    if stamp is None or stamp != checked:
        check_identity(root, store_id, display_url)
    return stamp


def _make(root: Folder, display_url: str) -> None:
    root.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _restore(root, display_url):
        return
    known = ("CACHEDIR.TAG", "news", "store.json", *_FOLDERS)
    if strange := sorted(name for name in root.names() if name not in known):
        raise StoreError(f"{display_url} holds other files ({strange[0]}, …); give a new or an empty folder")
    make_folders(root, *_FOLDERS)
    root.replace("CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n# made by jug_notebook\n")
    root.replace(".gitignore", b"*\n")
    os.close(root.open("news", os.O_WRONLY | os.O_CREAT))
    identity = Identity(FORMAT, os.urandom(16).hex())
    keyring.secret(identity.id, make=True)  # before the store can be seen
    if not root.create("store.json", msgspec.json.encode(identity) + b"\n"):
        keyring.forget(identity.id)  # another process was first


def first_frames(root: Folder) -> dict[str, bytes]:
    """Return the first frame of each log in a store's folder whose checksum holds, by the log's name.

    Where none does, it's what the log begins with; logs that are empty or gone are left out.
    """
    found = {}
    for place in ("sealed", "sealing", "log"):
        for name in listed(root / place):
            with suppress(FileNotFoundError):
                fd = (root / place).open(name)
                try:
                    found[name] = _first_frame(fd)
                finally:
                    os.close(fd)
    return {name: frame for name, frame in found.items() if frame}


def _first_frame(fd: int) -> bytes:
    if not os.fstat(fd).st_size:
        return b""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        at = data.find(MAGIC)
        while at >= 0:
            frame = bytes(view[at : frame_end(view, at)])
            if len(frame) > HEADER.size and Chain("", None).open(memoryview(frame)) is not None:
                return frame
            at = data.find(MAGIC, at + 1)
        return data[: HEADER.size]


def _restore(root: Folder, display_url: str) -> bool:
    """Write the store.json that the logs in a folder lack. Return False if there are no logs either.

    Which store it is must be proven by a key: of the store that was last there, of another one of this user's, or the
    key in a shared store. Raises StoreError where none fits.
    """
    if not (frames := first_frames(root)):
        return False
    pinned, shared = keyring.pinned(f"file:{root.path}"), ("", b"")
    with suppress(OSError, ValueError):
        store_id, written = root.read("key", 1 << 16).decode().split()
        shared = store_id, bytes.fromhex(written)
    keys = [shared] if shared[0] else []
    for store_id in dict.fromkeys([pinned, *keyring.known_ids()]):
        with suppress(StoreError):
            keys.append((store_id, keyring.secret(store_id)))
    for store_id, secret in keys:
        seal = EventSeal(secret, store_id)
        if any(len(one) > HEADER.size and Chain(name, seal).open(memoryview(one)) for name, one in frames.items()):
            break
    else:
        with suppress(FileNotFoundError):  # who makes it may have begun to write
            return bool(_read_identity(root).id)
        raise StoreError(
            f"{display_url} has lost its store.json, and no key in {keyring.key_folder()} fits its logs: bring back "
            "that file, or the key from the account that made the store; to begin anew, move the folder away"
        )
    make_folders(root, *_FOLDERS)
    identity = Identity(FORMAT, store_id)
    if (store_id, secret) == shared:
        root.mode = 0o660
        identity = Identity(FORMAT, store_id, "group", _seal_of_sharing(EventSeal(secret, store_id), store_id))
    if root.create("store.json", msgspec.json.encode(identity) + b"\n"):
        text = (
            f"{display_url} had lost its store.json, which is restored: the key of store {store_id[:8]} fits its logs"
        )
        print(f"jug_notebook: {clean(text)}", file=sys.stderr)
    return True


# -- sharing ----------------------------------------------------------------------------------------------------------


def share_folder(root: Folder, store_id: str, secret: bytes, display_url: str) -> None:
    """Open a store's folder to the group that it belongs to, with the key inside. Raises StoreError."""
    try:
        _open_to_group(root, 2)
        root.mode = 0o660
        root.replace("key", f"{store_id} {secret.hex()}\n".encode(), durable=True, mode=0o640)
        identity = Identity(FORMAT, store_id, "group", _seal_of_sharing(EventSeal(secret, store_id), store_id))
        root.replace("store.json", msgspec.json.encode(identity) + b"\n", durable=True)
    except PermissionError as error:
        raise StoreError(f"{display_url} has files of others, so only they can share it: {error}") from error
    except OSError as error:
        raise StoreError(f"{display_url} can't be shared: {error.strerror}") from error


def _open_to_group(folder: Folder, below: int) -> None:
    """Open to the group a folder, the files in it, and so many levels of folders below."""
    os.fchmod(folder.fd, 0o2770)
    linked = folder.path.name in ("claims", "owners")  # elsewhere, a file has one name
    for name in folder.names() + folder.names(hidden=True):
        if below and stat.S_ISDIR(folder.stat(name).st_mode):
            with Folder(name, folder) as inner:
                _open_to_group(inner, below - 1)
        else:
            fd = folder.open(name, os.O_RDONLY if linked else os.O_RDWR)
            try:
                os.fchmod(fd, 0o660)
            finally:
                os.close(fd)


def _seal_of_sharing(seal: EventSeal, store_id: str) -> str:
    return seal.record("sharing", store_id, 0, b"group").hex()


def is_shared(identity: Identity, seal: EventSeal, display_url: str) -> bool:
    """Return whether someone who has the store's key has shared it. Where only store.json says so, a warning does."""
    if not identity.shared:
        return False
    try:
        sealed = seal.is_record(bytes.fromhex(identity.seal), "sharing", identity.id, 0, b"group")
    except ValueError:
        sealed = False
    if not sealed:
        warnings.warn(
            f"{display_url} is not treated as shared: its store.json says so, but nobody with the store's key does; "
            "to share it, give shared='group' once more",
            stacklevel=2,
        )
    return sealed


def read_shared_key(root: Folder, store_id: str, display_url: str) -> bytes:
    """Return the key inside a shared store. Raises StoreError if this user can't read it."""
    try:
        store, secret = root.read("key", 1 << 16).decode().split()
        if store != store_id:
            raise ValueError
        return bytes.fromhex(secret)
    except PermissionError as error:
        raise StoreError(f"{display_url} is shared with group {group_of(root.path)}, and you are not in it") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"the key of {display_url} can't be read: {error or 'it is damaged'}") from error


def group_of(folder: Path) -> str:
    """Return the name, or else the number, of the group that a folder belongs to."""
    try:
        return folder.group()
    except KeyError:
        return str(folder.stat().st_gid)


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
