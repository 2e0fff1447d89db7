"""Facts from the operating system: this host, user, processes, memory; and checks of numbers that people give."""

from __future__ import annotations

import functools
import gc
import getpass
import math
import mmap
import operator
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import BadNumber, JugError
from jug_notebook.model import WorkerInfo

VERSION = "0.1.0"  #: of this package


@functools.cache
def host() -> str:
    """Return this host's short name, for people."""
    return socket.gethostname().split(".")[0] or "localhost"


@functools.cache
def machine() -> str:
    """Return eight hex digits that identify the running kernel and pid namespace: where they are equal, so are pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: the host's name must do
        boot = socket.getfqdn()
    return blake3(boot.encode()).hexdigest(length=4)


@functools.cache
def user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a name
        return f"uid{os.getuid()}"


def python() -> str:
    """Return Python's major and minor version, "3.11": pickled byte code is only for the same version."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def cores() -> int:
    """Return how many workers this host gets by default: one per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def born(pid: int) -> int | None:
    """Return when a process of this machine started, in clock ticks since boot; None if there is none, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def new_id() -> str:
    """Return a new id for a worker, supervisor or session of this process."""
    return f"{host()}-{os.getpid()}-{os.urandom(3).hex()}"


def me(kind: str, clock: Clock = CLOCK, **more: object) -> WorkerInfo:
    """Return the `WorkerInfo` of this process. ``more`` are further fields of it."""
    pid = os.getpid()
    info = WorkerInfo(
        id=new_id(),
        kind=kind,
        user=user(),
        host=host(),
        pid=pid,
        born=born(pid) or 0,
        python=python(),
        started=clock.now(),
        machine=machine(),
    )
    return msgspec.structs.replace(info, **more)


def running(info: WorkerInfo) -> bool | None:
    """Return whether that process still exists; None if it is on another machine."""
    if info.machine != machine():
        return None
    return born(info.pid) == info.born


def children(pid: int) -> list[int]:
    """Return the child processes of a process of this machine; none where the system doesn't tell."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    return found


def children_so_far() -> tuple[int, frozenset[int]]:
    """Return a number that changes when a child of this process has ended, and those that haven't.

    If both are as before, this process has started no other in between. Takes microseconds while it has no child.
    """
    import resource  # Unix only

    faults = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none
        return faults, frozenset()
    return faults, frozenset(children(os.getpid()))


@contextmanager
def uncollected() -> Iterator[None]:
    """Turn garbage collection off, while many objects are made that stay: it would take a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


Item = TypeVar("Item")


def batched(items: Sequence[Item], size: int = 1000) -> Iterator[Sequence[Item]]:
    """Yield ``items`` in slices of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


LARGE = 1 << 22  #: bytes from which large pages are worth it


def private(size: int) -> memoryview:
    """Return new writable memory of ``size`` bytes, in large pages where possible: filling is twice as fast."""
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def copied(view: memoryview) -> memoryview:
    """Return a writable copy of these bytes."""
    made = private(view.nbytes)
    made[:] = view.cast("B")
    return made


# -- numbers that people give, checked alike at every door: NaN, strings and half a worker are refused ----------------


def whole_number(
    name: str,
    given: Any,
    unit: str,
    *,
    least: int = 1,
    most: int = 1 << 62,
    instead: str = "",
    error: type[JugError] = BadNumber,
) -> int:
    """Return a whole number from ``least`` to ``most`` as an int. Raises ``error`` for anything else."""
    number: int | None = None
    if not isinstance(given, bool):
        try:
            number = operator.index(given)
        except TypeError:
            number = None
    if number is None or not least <= number <= most:
        bounds = f"{least:,} or more" if number is None or number < least else f"{most:,} at most"
        what = f"a whole number of {unit}" if unit else "a whole number"
        raise error(f"{name}={given!r:.60}: give {what}, {bounds}{instead}")
    return number


def positive_number(name: str, given: Any, unit: str = "seconds", *, error: type[JugError] = BadNumber) -> float:
    """Return a finite number of more than 0, as an int or a float. Raises ``error`` for anything else."""
    if not (_is_real(given) and given > 0 and math.isfinite(given)):
        raise error(f"{name}={given!r:.60}: give a number of {unit}, more than 0; for no limit leave it out")
    return given if type(given) is int else float(given)


def waiting_time(given: Any, name: str = "timeout") -> float | None:
    """Return seconds to wait, 0 where less is given; None for no limit. Raises BadNumber for what is no number."""
    if given is None:
        return None
    if not _is_real(given) or math.isnan(given):
        raise BadNumber(f"{name}={given!r:.60}: give a number of seconds, or None for no limit")
    return None if given == math.inf else max(0.0, float(given))


def not_negative(name: str, given: Any, unit: str = "seconds") -> float:
    """Return a finite number of 0 or more. Raises BadNumber for anything else."""
    if not (_is_real(given) and given >= 0 and math.isfinite(given)):
        raise BadNumber(f"{name}={given!r:.60}: give a number of {unit}, 0 or more")
    return float(given)


def share(name: str, given: Any) -> float:
    """Return a number of more than 0 and at most 1. Raises BadNumber for anything else."""
    if not (_is_real(given) and 0 < given <= 1):
        raise BadNumber(f"{name}={given!r:.60}: give a number of more than 0 and at most 1, as 0.05")
    return float(given)


def _is_real(given: Any) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool)
