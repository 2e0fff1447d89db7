"""What a supervisor sees of a worker's current task, through shared memory."""

from __future__ import annotations

import mmap
from struct import Struct
from typing import NamedTuple

from jug_notebook.model import (
    Claim,
    Lease,
    TaskTemplate,
)


class Running(NamedTuple):
    """What a worker was running when it was looked at."""

    turn: int  #: counts the tasks that this worker began
    lease: Lease
    name: str
    started: float  #: seconds since the epoch
    since: float  #: the same on the monotonic clock, which all processes of a host share
    timeout: float | None
    failures: int
    retries: int
    deaths: int
    progress: tuple[int, int] = (0, 0)  #: done, and of how many, as the task itself tells


class SharedStatus:
    """One page that a worker and its supervisor share: written and read without a system call."""

    _record = Struct("<QQdddIIIIII40s20s255s")
    _count = Struct("<Q")
    _progress = Struct("<QQQ")
    _RUNNING, _STOP, _WAITING, _DONE, _PROGRESS, _RECORD = 0, 1, 2, 8, 16, 40

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._turn = 0
        self._done = 0

    # the worker writes

    def begin(self, claim: Claim, template: TaskTemplate, started: float, since: float) -> None:
        """From here on, a death of the worker is a death in this task."""
        lease = claim.lease
        self._turn += 1
        name = claim.name.encode()[:255]
        timeout = -1.0 if template.timeout is None else template.timeout
        self._record.pack_into(
            self._page, self._RECORD, self._turn, len(name), started, since, timeout, claim.failures, template.retries,
            claim.deaths, lease.round, lease.attempt, len(lease.key), lease.key.encode(), lease.inputs, name,
        )  # fmt: skip
        self._page[self._RUNNING] = 1

    def end(self, settled: bool = True) -> None:
        self._page[self._RUNNING] = 0
        self._done += settled
        self._count.pack_into(self._page, self._DONE, self._done)

    def report(self, done: int, total: int) -> None:
        """Report the progress of the current task."""
        self._progress.pack_into(self._page, self._PROGRESS, self._turn, done, total)

    def waits(self, waiting: bool) -> None:
        """A worker that waits for tasks may be killed: it has nothing to lose."""
        self._page[self._WAITING] = waiting

    @property
    def stopping(self) -> bool:
        return bool(self._page[self._STOP])

    # the supervisor reads

    def stop(self) -> None:
        """Tell the worker to end after its current task."""
        self._page[self._STOP] = 1

    @property
    def done(self) -> int:
        count: int = self._count.unpack_from(self._page, self._DONE)[0]
        return count

    @property
    def waiting(self) -> bool:
        return bool(self._page[self._WAITING])

    def read(self) -> Running | None:
        """What the worker runs now. Two equal looks in a row mean that neither saw half a change."""
        size = self._RECORD + self._record.size
        page = self._page[:size]
        while page != (again := self._page[:size]):
            page = again
        if not page[self._RUNNING]:
            return None
        (turn, name_size, started, since, timeout, failures, retries, deaths, round, attempt, key_size,
         key, inputs, name) = self._record.unpack_from(page, self._RECORD)  # fmt: skip
        lease = Lease(key[:key_size].decode(), round, inputs, attempt)
        label = name[:name_size].decode(errors="ignore")
        limit = None if timeout < 0 else timeout
        reported, done, total = self._progress.unpack_from(page, self._PROGRESS)
        progress = (done, total) if reported == turn else (0, 0)
        return Running(turn, lease, label, started, since, limit, failures, retries, deaths, progress)

    def close(self) -> None:
        self._page.close()
