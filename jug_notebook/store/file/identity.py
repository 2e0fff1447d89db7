"""What makes a folder a store: its ``store.json`` and subfolders, and the key inside a store that a group shares."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from jug_notebook.errors import StoreError
from jug_notebook.store.atomic import create
from jug_notebook.store.file.folders import replace

FORMAT = 1
_FOLDERS = (
    "log", "sealing", "sealed", "claims", "owners", "blobs", "trash", "workers", "workers/gone", "orders", "output",
)  # fmt: skip


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
    if not os.access(folder / "log", os.W_OK | os.X_OK):
        raise StoreError(f"{display_url} is not yours to write; give another path")
    return identity


def _make(folder: Path, display_url: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    strange = [name for name in os.listdir(folder) if name not in ("CACHEDIR.TAG", ".gitignore", *_FOLDERS)]
    if any(not name.startswith(".") for name in strange if name != "store.json"):
        raise StoreError(f"{display_url} holds other files ({sorted(strange)[0]}, …); give a new or an empty folder")
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True, mode=0o700)
    (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# made by jug_notebook\n")
    (folder / ".gitignore").write_text("*\n")
    identity = Identity(FORMAT, os.urandom(16).hex())
    create(folder / "store.json", msgspec.json.encode(identity) + b"\n")  # another process may do so, too


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
