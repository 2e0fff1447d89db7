"""Time. Only this module reads the system's clocks or sleeps; everything else is handed a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol

STARTED = time.time()  #: when this process loaded the package, in seconds since the epoch


class Clock(Protocol):
    """What tells the time, and waits."""

    def now(self) -> float:
        """Return seconds since the epoch: for people, and for comparing hosts roughly."""

    def monotonic(self) -> float:
        """Return seconds on a clock of this host that never goes back: for leases and deadlines."""

    def cpu(self) -> float:
        """Return the CPU time of this process, in seconds."""

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real time."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    cpu = staticmethod(time.process_time)
    sleep = staticmethod(time.sleep)


CLOCK = SystemClock()  #: the default everywhere
