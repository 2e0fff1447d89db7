"""What a task costs the process that runs it: memory, processor time of its subprocesses, bytes read and written."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from contextlib import suppress
from typing import NamedTuple

from jug_notebook import system

_PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096
LONG = 0.02  #: seconds; memory and bytes of a shorter task are not measured: that would cost more than it tells
PAUSE = 0.02  #: seconds between two looks at the memory of subprocesses
MAXRSS = 1024 if sys.platform == "linux" else 1  #: bytes in a unit of ``ru_maxrss``


class Usage(NamedTuple):
    """``cpu``: seconds; ``peak``: resident bytes at most, with those of subprocesses. 0 where it wasn't measured.

    ``waited``: seconds for which the main thread could run, and no core was free.
    """

    cpu: float = 0.0
    peak: int = 0
    read: int = 0
    written: int = 0
    waited: float = 0.0


class Meter:
    """Measures one task after another in this process. Without ``alone``, others run in it, and nothing is measured.

    Linux tells the most that a process had resident since that was last reset, and the bytes that it read and wrote.
    Of subprocesses it tells only the most that any has ever had, once it has ended. So once there were some, a thread
    looks at those that live while a task runs.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._reset = self._status = self._io = self._schedule = -1
        if alone and sys.platform == "linux":
            with suppress(OSError):  # some containers refuse them
                self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
                self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
                self._io = os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)
            with suppress(OSError):  # some kernels don't keep it
                self._schedule = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._children, self._largest = self._subprocesses()
        self._begun = (0, 0)
        self._waited = self._waiting()
        self._watch: _Watch | None = None

    def begin(self, long: bool) -> None:
        """A task begins, which may be ``long``: of others, what went before them counts, too."""
        if not long:
            return
        self._waited = self._waiting()
        if self._io >= 0:
            os.pwrite(self._reset, b"5", 0)
            self._begun = self._transferred()
            if self._watch is not None:
                self._watch.begin()

    def end(self, duration: float) -> Usage:
        """It has ended after so many seconds."""
        if duration < LONG or not self._alone:
            return Usage()
        children, most = self._children, self._largest
        self._children, self._largest = self._subprocesses()
        spent = self._children - children
        before, self._waited = self._waited, self._waiting()
        waited = self._waited - before
        if self._io < 0:
            return Usage(spent, waited=waited)
        peak = self._own_peak()
        if self._watch is not None:
            peak += max(self._watch.end(), self._largest if self._largest > most else 0)
        elif spent or system.children_so_far()[1]:
            peak += self._largest if spent else 0
            self._watch = _Watch()
        read, written = self._transferred()
        usage = Usage(spent, peak, max(0, read - self._begun[0]), max(0, written - self._begun[1]), waited)
        self._begun = read, written
        return usage

    def _subprocesses(self) -> tuple[float, int]:
        """Return the processor seconds of those that have ended, and the most memory that any of them had."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime, used.ru_maxrss * MAXRSS

    def _waiting(self) -> float:
        """Return the seconds for which the main thread has waited for a core so far."""
        return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9 if self._schedule >= 0 else 0.0

    def _own_peak(self) -> int:
        _, _, rest = os.pread(self._status, 4096, 0).partition(b"VmHWM:")
        return int(rest.split(None, 1)[0]) * 1024 if rest else 0

    def _transferred(self) -> tuple[int, int]:
        rchar, wchar = os.pread(self._io, 4096, 0).split(b"\n", 2)[:2]
        return int(rchar.split()[1]), int(wchar.split()[1])


class _Watch:
    """The most memory that the subprocesses of this process have together while a task runs, as a thread sees it."""

    def __init__(self) -> None:
        self._most = 0
        self._wanted = threading.Event()
        threading.Thread(target=self._look, name="jug-memory", daemon=True).start()

    def begin(self) -> None:
        self._most = 0
        self._wanted.set()

    def end(self) -> int:
        """Return the bytes."""
        self._wanted.clear()
        return self._most

    def _look(self) -> None:
        pause = threading.Event()
        while self._wanted.wait():
            _, children = system.children_so_far()
            self._most = max(self._most, sum(map(memory_of_group, children)))
            pause.wait(PAUSE)


def memory_of(pid: int) -> int:
    """Return the resident bytes of a process; 0 where that is unknown."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def memory_of_group(pid: int) -> int:
    """Return the resident bytes of a process with all its descendants."""
    total, pids = 0, [pid]
    while pids:
        one = pids.pop()
        total += memory_of(one)
        pids += system.children(one)
    return total


def give_back_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it."""
    with suppress(AttributeError):  # only glibc has this
        ctypes.CDLL(None).malloc_trim(0)
