"""Open a store for a session: paths, the key, who requests tasks, and the `StoreAccess` that its parts share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jug_notebook import system
from jug_notebook.clock import Clock
from jug_notebook.errors import StoreError
from jug_notebook.model import Origin, Scope, Snapshot, WorkerInfo, names_a_run, run_name
from jug_notebook.render.format import near
from jug_notebook.store import Store, accept_new_store, exists, keyring, lacks_room, masked, mirror, open_store, split
from jug_notebook.store.file.folders import join_shared, sharing_advice
from jug_notebook.store.sealing import Seal
from jug_notebook.store.signed import SignedReader, reading_seal, secret_of
from jug_notebook.task.context import PendingTask

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
    file: str  #: path of the notebook or script, or the working folder where none is known
    folder: Path  #: the notebook's, from which relative paths of stores are taken; the working folder of a script
    read_only: bool  #: tasks get keys but are not submitted
    display_url: str  #: the store's URL for people: short, and without a password
    is_new: bool = False  #: was the store made by opening it?
    in_process: list[Callable[[], WorkerInfo]] = field(default_factory=list)  #: workers in this process
    crews: list[Crew] = field(default_factory=list)  #: workers that this session started

    def starting(self) -> bool:
        """Return whether workers of this session are starting. Raises LaunchError, once, if none could start."""
        return any(crew.starting for crew in self.crews)

    @property
    def notebook(self) -> str:
        """Who requests tasks here: ``file``, or one run of it, as `announce` decided."""
        return self.process.notebook or self.file

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

    def only_known(self, pending_tasks: Sequence[PendingTask]) -> Sequence[PendingTask]:
        """Return these tasks. Raises StoreError for new ones where only the store's reading key is here."""
        if self.store.read_only and None in self.store.states([task[1] for task in pending_tasks]):
            raise StoreError(self.store.read_only)
        return pending_tasks

    def live_notebooks(self) -> set[str]:
        """Return the notebooks and runs in which other processes of this user request tasks now."""
        mine = self.process.machine, self.process.pid, self.process.born
        return {
            info.notebook
            for info, alive, _ in self.store.processes()
            if alive and info.kind == "session" and info.user == self.user
            if (info.machine, info.pid, info.born) != mine
        }

    def ended_runs(self) -> list[Origin]:
        """Return who requested tasks in runs of this user that have ended, of scripts, consoles and the like."""
        live = self.live_notebooks() | {self.notebook}
        runs = (one for one in self.store.origins() if one.user == self.user and names_a_run(one.notebook))
        return [origin for origin in runs if origin.notebook not in live]


def open_access(
    url: str | Path, file: str, folder: Path, shared: str | None, read_only: bool, clock: Clock, accept_new: bool,
    also: str | None = None,
) -> StoreAccess:  # fmt: skip
    """Open the store at ``url`` (a relative path is taken from ``folder``). Raises StoreError.

    ``accept_new``: even if it isn't the one that was there before; ``also``: see `use_mirror`.
    """
    if accept_new:
        accept_new_store(resolve_url(url, folder))
    is_new = not is_there(url, folder)
    store = open_store(resolve_url(url, folder), clock)
    if shared is not None:
        join_shared(store, shared, lambda: _secret(store))
        if store.unverified:  # until the key came
            store.close()
            store = open_store(resolve_url(url, folder), clock)
    try:
        use_mirror(store, also, folder, accept_new)
    except BaseException:
        store.close()
        raise
    seal = reading_seal(store) if store.read_only else Seal(_secret(store), store.id)
    signed = SignedReader(store, seal)
    process = system.me("session", clock)
    return StoreAccess(
        store, seal, signed, clock, process, system.user(), file, folder,
        read_only or bool(store.read_only), short_url(store, folder), is_new,
    )  # fmt: skip


def use_mirror(store: Store, also: str | None, folder: Path, accept_new: bool) -> None:
    """Have a store look for results in the mirror ``also`` from now on; "none": in none, None: as before.

    A relative path is taken from ``folder``. Where the mirror can't be used now, a line says so. Raises StoreError
    where it never can. ``accept_new``: even if it held another store's results before.
    """
    if also is None or store.unverified:
        return
    lasting = split(store.url)[0] != "memory"
    if also in ("", mirror.NO_MIRROR):
        mirror.detach(store)
        if lasting:
            keyring.keep_also(store.id, "")
        return
    url = also if "://" in also else f"file://{(folder / Path(also).expanduser()).absolute()}"
    if store.also is not None and store.also.url == url and not accept_new:
        return
    if not mirror.is_mirror(url):
        raise StoreError(
            f"{masked(also)} is a store, not a mirror; make one from it: jug-notebook copy STORE s3://BUCKET/PREFIX"
        )
    found = mirror.attach(store, url)
    if accept_new:
        keyring.unpin(found.pin)
    if lasting:
        keyring.keep_also(store.id, url)
    found.look()


def unverified_picture(url: str, folder: Path) -> Snapshot | None:
    """Return what a store tells whose key isn't known here; None if it is known, or there is no store. Makes none."""
    url = resolve_url(url, folder)
    if split(url)[0] == "memory" or not exists(url):
        return None
    with closing(open_store(url)) as store:
        return store.snapshot() if store.unverified else None


def is_there(url: str | Path, folder: Path) -> bool:
    """Return whether there is a store at the URL, and makes none; what ends with the process always counts as there."""
    url = resolve_url(url, folder)
    return split(url)[0] == "memory" or exists(url)


def new_store_text(access: StoreAccess) -> str:
    """Return that a store was made just now, and where; where one of a similar name lies beside it, with that."""
    scheme, rest = split(access.store.url)
    where = access.display_url
    if scheme == "file":
        path = Path(rest)
        stores = {store.parent.name for store in path.parent.glob("*/store.json")} - {path.name}
        inside = path.is_relative_to(access.folder)
        where = f"./{path.relative_to(access.folder)}" if inside else str(path)
        where += near(path.name, stores)
    return f"made a new, empty store: {where}"


def announce(access: StoreAccess, *, lasting: bool, together: bool) -> StoreAccess:
    """Send the first heartbeat, and decide who requests tasks here. Return the access with that.

    A notebook is known by its path, in one process at a time, and takes over what an earlier run of it requested. A
    second process of the same notebook is a run of its own, and so is each run of what doesn't last (``lasting=False``:
    a script, a console, a notebook whose path is unknown): what it requests is cancelled by nobody else. Processes
    that work on one file ``together``, as on a jugfile, are one.
    """
    store, process = access.store, msgspec.structs.replace(access.process, notebook=access.file)
    if lasting or together:
        _renew(store, process)
    alone = lasting and access.file not in access.live_notebooks()
    if not together and not alone:
        process = msgspec.structs.replace(process, notebook=run_name(access.file, process.id))
        _renew(store, process)
    access = replace(access, process=process)
    if alone and access.file.endswith(".ipynb"):
        _take_over_renamed(access)
    return access


def _renew(store: Store, process: WorkerInfo) -> None:
    """Send a heartbeat; where the store has no room for it, a later one has."""
    try:
        store.renew([process])
    except StoreError as error:
        if not lacks_room(error):
            raise


def _take_over_renamed(access: StoreAccess) -> None:
    """Let a notebook that was renamed go on: take over what cells with its ids requested under a path that is gone."""
    if access.store.snapshot(access.scope).functions:
        return
    origins = [origin for origin in access.store.origins() if origin.user == access.user and origin.cell]
    ids = _cell_ids(Path(access.file)) if origins else frozenset()
    live = access.live_notebooks()
    for origin in origins:
        known = origin.notebook.endswith(".ipynb") and origin.notebook not in live
        if known and origin.cell in ids and not os.path.exists(origin.notebook):
            keys = access.store.requested(origin)
            access.store.request(keys, access.origin(origin.cell), True)
            access.store.request(keys, origin, False)


def _cell_ids(notebook: Path) -> frozenset[str]:
    """Return the ids of the cells in a notebook's file; none where it can't be read, or is older than ids."""
    try:
        return frozenset(str(cell["id"]) for cell in json.loads(notebook.read_bytes())["cells"] if "id" in cell)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()


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


def running_file(given: str | Path | None) -> tuple[str, Path, bool]:
    """Return the path of the notebook, as given or as Jupyter names it; else of the script, or the working folder.

    With it come the folder that the notebook is in, or in which the script runs, and whether the file lasts: whether a
    later run of it goes on where this one has ended.
    """
    if notebook := given or notebook_of_kernel():
        path = os.path.normpath(os.path.abspath(notebook))
        return path, _notebook_folder(path), True
    script = None if _in_kernel() else getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.abspath(script or "."), Path.cwd(), False


def notebook_of_kernel() -> str:
    """Return the path of the notebook that VS Code or a Jupyter server started this kernel for; "" if this is none.

    All processes that a kernel starts, scripts and other kernels, inherit the variable by which the server names it. So
    that counts only in a kernel, and only if the process that started the kernel doesn't have the same.
    """
    if path := getattr(sys.modules.get("__main__"), "__vsc_ipynb_file__", ""):
        return str(path)
    name = os.environ.get("JPY_SESSION_NAME", "")
    if not name.endswith(".ipynb") or not _in_kernel():
        return ""
    try:
        import psutil  # ipykernel needs it, too

        parent = psutil.Process(int(os.environ.get("JPY_PARENT_PID") or os.getppid()))
        return "" if parent.environ().get("JPY_SESSION_NAME") == name else name
    except (ImportError, ValueError, OSError, psutil.Error):
        return name


def _in_kernel() -> bool:
    application = sys.modules.get("ipykernel.kernelapp")
    return application is not None and bool(application.IPKernelApp.initialized())


def _notebook_folder(notebook: str) -> Path:
    """Return the folder that a notebook is in, or the working folder where that doesn't exist."""
    path = Path(notebook)
    if path.is_dir():
        return path
    return path.parent if path.parent.is_dir() else Path.cwd()
