"""The keys of stores, and which store each URL held: small files in the user's config folder, readable by them alone.

Everything that a store's users write is sealed with its key (see `sealing`); who doesn't have it can neither forge nor
change what they wrote. A store's id is pinned to its URL when it is first opened there, so that nobody can put another
store in its place unseen.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from blake3 import blake3

from jug_notebook.errors import StoreError
from jug_notebook.store.atomic import create, replace

KEY_SIZE = 32  #: bytes of a key
_STORE_ID = re.compile(r"[0-9A-Za-z_-]{1,100}")
_EXTENT = re.compile(r"(\S{1,255}) (\d{1,18})", re.ASCII)

_READING = ".read"  #: at the end of the name of a file with a reading key

_here: dict[str, bytes] = {}  # keys of stores that live in this process, and those already read
_also_here: dict[str, str] = {}  # mirrors of stores, as the launcher of this process has named them
_made: set[str] = set()  # stores whose key was made in this process: see `just_made`


def key_folder() -> Path:
    """Return the folder of the keys: ``$XDG_CONFIG_HOME/jug_notebook/keys``, or the same in ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "jug_notebook" / "keys"


class GivenWarnings:
    """Which warnings were given about one notebook and store, by earlier processes of this user too."""

    def __init__(self, store_id: str, notebook: str) -> None:
        self._path = key_folder().parent / "warned" / store_id
        self._notebook = notebook

    def __call__(self, name: str) -> bool:
        """Return whether a warning of that name was given; remember that it is now."""
        line = blake3(f"{self._notebook}\0{name}".encode("utf-8", "surrogateescape")).hexdigest(16) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+") as known:
                known.seek(0)
                if line in known:
                    return True
                known.write(line)
        except OSError:
            pass
        return False


def secret(store_id: str, make: bool = False, lasting: bool = True) -> bytes:
    """Return the key of a store. With ``make``, make a missing one; without ``lasting``, keep it in this process only.

    Raises StoreError where there is none, or where other users could read it.
    """
    known = _here.get(store_id)
    if known is None and lasting:
        known = _read_key(store_id)
    if known is None:
        if refusal := read_only(store_id):
            raise StoreError(refusal)
        if not make:
            raise StoreError(
                f"the key of store {store_id[:12]} is not in {key_folder()}, so its tasks can't be trusted or signed; "
                "copy the file of that name from the account that made the store, or use a new store"
            )
        _made.add(store_id)
        return keep_secret(store_id, os.urandom(KEY_SIZE), lasting)
    _here[store_id] = known
    return known


def reading_key(secret: bytes) -> bytes:
    """Return the key by which all of a store can be read and verified, and nothing be signed; it tells nothing of
    ``secret``."""
    return blake3(secret, derive_key_context="jug_notebook 2026-11 reading only").digest()


def read_secret(store_id: str) -> bytes:
    """Return a store's reading key: made of its key, or the one that is here alone. Raises StoreError."""
    if read_only(store_id):
        return _read_key(store_id, _READING) or b""
    return reading_key(secret(store_id))


def read_only(store_id: str) -> str:
    """Return why nothing can be written to a store, in a line, where only its reading key is here; else nothing."""
    if store_id in _here or not os.path.exists(_key_path(store_id, _READING)) or os.path.exists(_key_path(store_id)):
        return ""
    return (
        f"the key of store {store_id[:12]} is read-only here: it reads and verifies, and signs nothing, so no task can "
        "be submitted, run or changed; that takes the store's own key: jug-notebook key export, jug-notebook key import"
    )


def import_read_secret(store_id: str, value: bytes) -> None:
    """Keep a reading key that comes from elsewhere. Raises StoreError where the store has another one here."""
    if len(value) != KEY_SIZE:
        raise StoreError(f"a reading key has {KEY_SIZE} bytes, not {len(value)}")
    known = reading_key(secret(store_id)) if has_secret(store_id) else _write_key(store_id, value, _READING)
    if known != value:
        raise StoreError(f"{key_folder()} has another key of store {store_id[:8]}; move that file away first")


def has_secret(store_id: str) -> bool:
    """Return whether the key of a store is known here."""
    try:
        secret(store_id)
    except StoreError:
        return False
    return True


def known_ids() -> list[str]:
    """Return the ids of the stores whose keys this user has, as far as the names of files tell."""
    try:
        return sorted(name for name in os.listdir(key_folder()) if _STORE_ID.fullmatch(name))
    except OSError:
        return []


def keep_secret(store_id: str, value: bytes, lasting: bool = True) -> bytes:
    """Keep a key, unless the store has one already. Return the one it has. Raises StoreError."""
    if len(value) != KEY_SIZE:
        raise StoreError(f"a store's key has {KEY_SIZE} bytes, not {len(value)}")
    if lasting:
        value = _write_key(store_id, value)
    return _here.setdefault(store_id, value)


def import_secret(store_id: str, value: bytes, lasting: bool = True) -> None:
    """Keep a key that comes from elsewhere. Raises StoreError where the store has another one here."""
    if keep_secret(store_id, value, lasting) != value:
        raise StoreError(f"{key_folder()} has another key of store {store_id[:8]}; move that file away first")


def forget(store_id: str) -> None:
    """Remove the key of a store that was never used."""
    _here.pop(store_id, None)
    _made.discard(store_id)
    _key_path(store_id).unlink(missing_ok=True)


def just_made(store_id: str) -> bool:
    """Return whether this process has made the key of a store since it was last asked that."""
    new = store_id in _made
    _made.discard(store_id)
    return new


def also(store_id: str) -> str:
    """Return the URL of the mirror that this user has chosen for a store; empty where there is none."""
    if store_id in _also_here:
        return _also_here[store_id]
    try:
        return _also_path(store_id).read_text()
    except OSError:
        return ""


def keep_also(store_id: str, url: str, lasting: bool = True) -> None:
    """Note which mirror a store has from now on, in a file of the user's; without a URL, none. Raises StoreError.

    Not ``lasting``: only in this process and those that it forks, as the URL may hold a password.
    """
    if not lasting:
        _also_here[store_id] = url
        return
    path = _also_path(store_id)
    try:
        if not url:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace(path, url.encode())
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror}; set XDG_CONFIG_HOME to another folder") from error


def _also_path(store_id: str) -> Path:
    return key_folder().parent / "also" / _key_path(store_id).name


# -- pins -------------------------------------------------------------------------------------------------------------


def pinned(url: str) -> str:
    """Return the id of the store that the URL held when it was last opened; empty where that isn't known.

    The URL is absolute and without a password. Raises StoreError where that can't be read.
    """
    path = _pin_path(url)
    try:
        store_id = _pin_lines(path)[0]
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StoreError(f"which store {url} held can't be read from {path}: {error.strerror}") from error
    if not _STORE_ID.fullmatch(store_id):
        raise StoreError(f"{path} names no store; if you trust the one at {url}, remove that file")
    return store_id


def extents(url: str) -> dict[str, int]:
    """Return how far the logs had come that this user wrote there last; nothing where that isn't known."""
    try:
        rows = [_EXTENT.fullmatch(line) for line in _pin_lines(_pin_path(url))[1:]]
    except OSError:
        return {}
    return {row[1]: int(row[2]) for row in rows if row}


def _pin_lines(path: Path) -> list[str]:
    with open(path, "rb") as file:
        return file.read(1000).decode(errors="replace").strip().split("\n")


def pin(url: str, store_id: str, extents: Mapping[str, int] = MappingProxyType({})) -> None:
    """Note that the URL, absolute and without a password, holds the store of that id. Raises StoreError.

    ``extents``: how far logs have come that this process wrote there. Where the user may not write to their own
    keyring, keys were put there for them, and nothing is noted.
    """
    path = _pin_path(url)
    lines = [store_id, *(f"{log} {extent}" for log, extent in extents.items())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return
        raise StoreError(
            f"which store {url} holds can't be noted in {path.parent}: {error.strerror}; set XDG_CONFIG_HOME to a "
            "folder you may write to"
        ) from error


def unpin(url: str) -> None:
    """Forget which store the URL held."""
    _pin_path(url).unlink(missing_ok=True)


def _pin_path(url: str) -> Path:
    return key_folder() / "pins" / blake3(url.encode(errors="surrogateescape")).hexdigest(length=20)


def _key_path(store_id: str, suffix: str = "") -> Path:
    if not _STORE_ID.fullmatch(store_id):
        raise StoreError(f"{store_id[:40]!r} is not the id of a store")
    return key_folder() / f"{store_id}{suffix}"


def _read_key(store_id: str, suffix: str = "") -> bytes | None:
    path = _key_path(store_id, suffix)
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            value = file.read(KEY_SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the key of store {store_id[:12]} can't be read: {error}") from error
    if mode & 0o077:
        raise StoreError(f"{path} can be read or written by other users; if none of them did, run: chmod 600 {path}")
    if len(value) != KEY_SIZE:
        raise StoreError(f"{path} is not a key of {KEY_SIZE} bytes; copy it again from where the store was made")
    return value


def _write_key(store_id: str, value: bytes, suffix: str = "") -> bytes:
    """Write the key, unless another process has written one first. Return the one that is kept."""
    path = _key_path(store_id, suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not create(path, value):
            value = _read_key(store_id, suffix) or value
    except OSError as error:
        raise StoreError(
            f"the store's key can't be kept in {path.parent}: {error}; set XDG_CONFIG_HOME to a folder you may write to"
        ) from error
    return value
