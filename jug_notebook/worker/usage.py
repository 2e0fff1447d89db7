"""What a task costs the process that runs it: memory, processor time of its subprocesses, bytes read and written."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from typing import NamedTuple

LONG = 0.02  #: seconds; memory and bytes of a shorter task are not measured: that would cost more than it tells
MAXRSS = 1024 if sys.platform == "linux" else 1  #: bytes in a unit of ``ru_maxrss``


class Usage(NamedTuple):
    """``cpu``: seconds; ``peak``: resident bytes at most, with those of subprocesses. 0 where it wasn't measured."""

    cpu: float = 0.0
    peak: int = 0
    read: int = 0
    written: int = 0


class Meter:
    """Measures one task after another in this process. Without ``alone``, others run in it, and nothing is measured.

    Linux tells the most that a process had resident since that was last reset, and the bytes that it read and wrote.
    Of subprocesses the system tells only the most that any had so far: where some ended in a task, that counts for it.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._reset = self._status = self._io = -1
        if alone and sys.platform == "linux":
            with suppress(OSError):  # some containers refuse them
                self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
                self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
                self._io = os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)
        self._children = self._subprocesses()[0]
        self._begun = (0, 0)

    def begin(self, long: bool) -> None:
        """A task begins, which may be ``long``: of others, what went before them counts, too."""
        if long and self._io >= 0:
            os.pwrite(self._reset, b"5", 0)
            self._begun = self._transferred()

    def end(self, duration: float) -> Usage:
        """It has ended after so many seconds."""
        if duration < LONG or not self._alone:
            return Usage()
        before = self._children
        self._children, largest = self._subprocesses()
        spent = self._children - before
        if self._io < 0:
            return Usage(spent)
        peak = self._own_peak() + (largest if spent else 0)
        read, written = self._transferred()
        usage = Usage(spent, peak, max(0, read - self._begun[0]), max(0, written - self._begun[1]))
        self._begun = read, written
        return usage

    def _subprocesses(self) -> tuple[float, int]:
        """Return the processor seconds of those that have ended, and the most memory that any of them had."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime, used.ru_maxrss * MAXRSS

    def _own_peak(self) -> int:
        _, _, rest = os.pread(self._status, 4096, 0).partition(b"VmHWM:")
        return int(rest.split(None, 1)[0]) * 1024 if rest else 0

    def _transferred(self) -> tuple[int, int]:
        rchar, wchar = os.pread(self._io, 4096, 0).split(b"\n", 2)[:2]
        return int(rchar.split()[1]), int(wchar.split()[1])
