"""Which process is this, and is that one still there? Asks the operating system, starts and ends nothing."""

from __future__ import annotations

import functools
import gc
import getpass
import mmap
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.model import WorkerInfo

VERSION = "0.1.0"  #: of this package


@functools.cache
def host() -> str:
    """This host's name, for people."""
    return socket.gethostname().split(".")[0] or "localhost"


@functools.cache
def machine() -> str:
    """Eight hex digits that name the running kernel and pid namespace: if equal, a pid means the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: the host's name must do
        boot = socket.getfqdn()
    return blake3(boot.encode()).hexdigest(length=4)


@functools.cache
def user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without a name
        return f"uid{os.getuid()}"


def python() -> str:
    """Major and minor version: byte code travels between equal ones only."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def born(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if there is none (a zombie is none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return None
    except ProcessLookupError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def new_id() -> str:
    """A name for a worker, a supervisor or a session of this process."""
    return f"{host()}-{os.getpid()}-{os.urandom(3).hex()}"


def me(kind: str, clock: Clock = CLOCK, **more: object) -> WorkerInfo:
    """What this process says of itself. ``more`` are further fields of `WorkerInfo`."""
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
    """Is that process still there? None where it lives on another machine, so nobody here can tell."""
    if info.machine != machine():
        return None
    return born(info.pid) == info.born


@contextmanager
def uncollected() -> Iterator[None]:
    """What is made within stays: looking through it for garbage, again and again, would take a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


Item = TypeVar("Item")


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield ``items`` in slices of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


LARGE = 1 << 22  #: from so many bytes on, large pages pay


def private(size: int) -> memoryview:
    """So many bytes of one's own, to write to; in large pages where the system has them: filling is twice as fast."""
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)


def copied(view: memoryview) -> memoryview:
    """A copy of one's own of these bytes."""
    made = private(view.nbytes)
    made[:] = view.cast("B")
    return made
