"""Open a store for a session: paths, the key, and the `StoreAccess` that all parts of a session share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jug_notebook import system
from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.errors import StoreError
from jug_notebook.model import Origin, Scope, WorkerInfo
from jug_notebook.store import Store, open_store, split
from jug_notebook.store.file.folders import join_shared, sharing_advice
from jug_notebook.store.signed import SignedReader, secret_of

if TYPE_CHECKING:
    from jug_notebook.launch import Crew


@dataclass(frozen=True)
class StoreAccess:
    """An open store with its key, and who uses it from where."""

    store: Store
    seal: Seal
    signed: SignedReader
    clock: Clock
    process: WorkerInfo  #: this session among the processes of the store
    user: str
    notebook: str  #: path of the notebook or script, or the working folder
    folder: Path  #: where tasks run
    read_only: bool  #: tasks get keys but are not submitted
    display_url: str  #: the store's URL for people: short, and without a password
    in_process: list[Callable[[], WorkerInfo]] = field(default_factory=list)  #: workers in this process
    crews: list[Crew] = field(default_factory=list)  #: workers that this session started

    def starting(self) -> bool:
        """Return whether workers of this session are starting. Raises LaunchError, once, if none could start."""
        return any(crew.starting for crew in self.crews)

    @property
    def scope(self) -> Scope:
        """The scope of this notebook's tasks."""
        return Scope(notebook=self.notebook)

    def scope_of(self, all: bool) -> Scope:
        """Return the scope of this notebook's tasks, or with ``all`` of the whole store's."""
        return Scope() if all else self.scope

    def origin(self, cell: str = "") -> Origin:
        """Return who requests tasks here."""
        return Origin(self.user, self.notebook, cell)


def open_access(
    url: str | Path, notebook: str, folder: Path, shared: str | None, read_only: bool, clock: Clock
) -> StoreAccess:
    """Open the store at ``url`` (a relative path is taken from ``folder``). Raises StoreError."""
    store = open_store(resolve_url(url, folder), clock)
    if shared is not None:
        join_shared(store, shared, lambda: _secret(store))
    seal = Seal(_secret(store), store.id)
    signed = SignedReader(store, seal)
    process = system.me("session", clock)
    return StoreAccess(
        store, seal, signed, clock, process, system.user(), notebook, folder, read_only, short_url(store, folder)
    )


def _secret(store: Store) -> bytes:
    advice = sharing_advice(store)
    try:
        return secret_of(store, make=not advice)
    except StoreError:
        if advice:
            raise StoreError(advice) from None
        raise


def short_url(store: Store, folder: Path) -> str:
    """Return a store's URL for people, relative to ``folder`` where it is inside."""
    scheme, rest = split(store.url)
    if scheme == "file" and Path(rest).is_relative_to(folder):
        return f"file:{Path(rest).relative_to(folder)}"
    return store.display_url


def resolve_url(url: str | Path, folder: Path) -> str:
    """Return a store's URL, with a relative path taken from ``folder``. Raises StoreError for what is no URL."""
    if not isinstance(url, str | os.PathLike):
        raise StoreError(f"{type(url).__name__} {url!r:.60} names no store; give a folder, as in 'jugdata', or a URL")
    scheme, rest = split(str(url))
    return f"file:{folder / Path(rest).expanduser()}" if scheme == "file" and rest else str(url)


def notebook_path(given: str | Path | None) -> str:
    """Return the notebook's absolute path: as given, as Jupyter says, or the working folder."""
    return os.path.normpath(os.path.abspath(given or os.environ.get("JPY_SESSION_NAME") or "."))


def notebook_folder(notebook: str) -> Path:
    """Return the folder that a notebook is in, or the working folder where that doesn't exist."""
    path = Path(notebook)
    if path.is_dir():
        return path
    return path.parent if path.parent.is_dir() else Path.cwd()
