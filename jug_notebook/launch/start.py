"""Starts workers for a session: on this host, on others, or on an executor."""

from __future__ import annotations

import dis
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from jug_notebook import system
from jug_notebook.clock import Clock
from jug_notebook.errors import BadTask, LaunchError
from jug_notebook.keys import callables, code, modules
from jug_notebook.store import Store, keyring
from jug_notebook.task import definitions

if TYPE_CHECKING:
    from jug_notebook.launch import Crew
    from jug_notebook.launch.remote import Preflight
    from jug_notebook.launch.ssh import Call, Host
    from jug_notebook.worker import WorkerOptions


def start(
    store: Store, folder: Path, options: WorkerOptions, named: Sequence[Host], on: Any, slurm: Any, clock: Clock
) -> Crew:
    """Start what is asked for; see `Session.execute`. Raises LaunchError."""
    from jug_notebook.launch import Crew, local

    if store.read_only:
        raise LaunchError(store.read_only)
    if slurm:
        from jug_notebook.launch import slurm as batch

        _refuse_hosts(bool(named) or on is not None, options)
        return batch.launch(store, options, slurm, clock)
    if on is not None:
        from jug_notebook.launch import executor

        if named or options.setup or options.python or options.folders:
            raise LaunchError("an executor brings its own hosts and Python: leave hosts, python, setup, remote_dir out")
        return executor.launch(store, options, on, clock)
    if named:
        from jug_notebook.launch import ssh

        return Crew(store, ssh.launch(call(store, folder, options, clock), named), clock)
    if options.setup or options.folders:
        raise LaunchError("setup and remote_dir are for other hosts: name some")
    return local.launch(store, options, clock)


def dry_run(store: Store, options: WorkerOptions, hosts: Sequence[Any], slurm: Any, clock: Clock) -> str:
    """Return what `start` would ask Slurm for. Raises LaunchError."""
    from jug_notebook.launch import slurm as batch

    _refuse_hosts(bool(hosts), options)
    return batch.dry_run(store, options, slurm, clock)


def _refuse_hosts(named: bool, options: WorkerOptions) -> None:
    if named or options.folders:
        raise LaunchError("Slurm chooses the hosts: leave hosts, on, remote_dir out")


def submitted(store: Store, clock: Clock) -> list[Crew]:
    """Return the crews whose batch jobs earlier processes of this user submitted; see `slurm.known`."""
    if shutil.which("squeue") is None or store.url.startswith("memory:"):
        return []
    from jug_notebook.launch import slurm

    return slurm.known(store, clock)


def look(store: Store, folder: Path, options: WorkerOptions, hosts: Sequence[Host], clock: Clock) -> Preflight:
    """Return what would keep workers from starting on these hosts; nothing is started."""
    from jug_notebook.launch import ssh
    from jug_notebook.launch.remote import Preflight

    return Preflight(ssh.look(call(store, folder, options, clock), hosts))


def call(store: Store, folder: Path, options: WorkerOptions, clock: Clock) -> Call:
    """Return what is sent to all hosts."""
    from jug_notebook.launch import ssh
    from jug_notebook.launch.remote import version_of

    packages, compiled = imported(folder)
    versions = {name: version_of(name) for name in packages}
    return ssh.Call(store, options, keyring.secret(store.id), system.VERSION, versions, compiled, clock)


def folders_of(remote_dir: str | None, folder: Path) -> tuple[tuple[str, str], ...]:
    """``THERE``: that is where this notebook's folder is; ``HERE=THERE``: where another is. Raises LaunchError."""
    if not remote_dir:
        return ()
    here, equals, there = remote_dir.rpartition("=")
    if not there.startswith("/"):
        raise LaunchError(f"--remote-dir {remote_dir}: {there!r} is not an absolute path; give one, or HERE=THERE")
    return ((os.path.abspath(os.path.expanduser(here)) if equals else str(folder), there),)


def read_hosts(words: Iterable[str | Path] | str | Path, folder: Path) -> list[Host]:
    """Each of them ``host``, ``user@host``, ``user@host:8``, or the path of a file of hosts. Raises LaunchError."""
    if not words:
        return []
    from jug_notebook.launch import ssh

    found = []
    for word in read_words(words):
        if not isinstance(word, str | Path):
            raise LaunchError(f"hosts: {word!r:.60} is not a host; give 'HOST', 'USER@HOST' or 'HOST:8'")
        found += ssh.hosts_in(folder / word.expanduser()) if isinstance(word, Path) else [ssh.host_of(word)]
    return found


def read_words(words: Iterable[str | Path] | str | Path) -> list[str | Path]:
    """Return the words that name hosts. Raises LaunchError."""
    if isinstance(words, str | Path):
        return [*words.split(",")] if isinstance(words, str) else [words]
    if not isinstance(words, Iterable):
        raise LaunchError(f"hosts={words!r:.60}: give a list of hosts")
    return list(words)


# -- what tasks import -------------------------------------------------------------------------------------------------


def imported(folder: Path) -> tuple[list[str], list[str]]:
    """(packages that the task functions defined here import, project modules of theirs that can't travel)."""
    packages: set[str] = set()
    compiled: set[str] = set()
    project = code.home() or folder
    for root in sorted({root for function in list(definitions.values()) for root in _roots(function)}):
        if root in sys.stdlib_module_names or root in ("__main__", "jug_notebook", "kernel_ext"):
            continue
        if not modules.of_project(root, project):
            packages.add(root)
            continue
        try:
            modules.bundle(root)
        except BadTask:
            compiled.add(root)
    return sorted(packages), sorted(compiled)


def _roots(function: Any) -> Iterator[str]:
    """The top-level names of the modules that a function, and those of the notebook that it calls, use."""
    open_ones: list[Callable[..., Any]] = [function]
    seen: set[int] = set()
    while open_ones:
        one = getattr(open_ones[-1], "__jug_function__", open_ones[-1])
        open_ones.pop()
        if not isinstance(one, FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        yield from _imports(one.__code__)
        for name in callables.global_names(one.__code__):
            value = one.__globals__.get(name)
            if isinstance(value, ModuleType):
                yield modules.root_of(value.__name__)
                continue
            home = getattr(value, "__module__", None)
            if isinstance(home, str) and home != one.__module__:
                yield modules.root_of(home)
            elif callable(value):
                open_ones.append(value)


def _imports(body: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(body):
        if step.opname == "IMPORT_NAME":
            yield modules.root_of(step.argval)
    for constant in body.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant)
