"""The only file that asks what time it is, or waits. Rooms that need time are handed a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Time as the house sees it."""

    def now(self) -> float:
        """Seconds since the epoch: for people, and for comparing hosts roughly."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that only this host has and that never goes back: for leases and deadlines."""
        ...

    def cpu(self) -> float:
        """Seconds that this process has kept processors busy."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real time."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    cpu = staticmethod(time.process_time)
    sleep = staticmethod(time.sleep)


class FakeClock:
    """Time that moves only when somebody sleeps or `advance` is called: hours pass in no time, in tests."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._time = start

    def now(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._time

    def cpu(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self._time += seconds

    advance = sleep


CLOCK = SystemClock()  #: the default at every door
