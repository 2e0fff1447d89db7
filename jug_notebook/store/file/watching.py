"""Noticing that others have written to a store's folder.

`FileWatcher` notices at once when a log on this machine grows (Linux: inotify). Other systems have to poll. `News`
tells readers of other machines.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from jug_notebook.clock import Clock
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file.folders import stamp_of

TOUCH = 0.05  #: seconds between two touches of ``news``
GRAIN = 2.5  #: seconds: more than any file system's grain of time, so a later touch shows


class News:
    """One file that whoever writes to a log touches, so that an idle store is cheap to watch from other machines."""

    def __init__(self, path: Folder, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._seen = -1
        self._next_touch = 0.0
        self.pending = False  #: has this process written something that nobody was told of?
        self.until = 0.0  #: until then logs may have grown, whatever the file's time

    def publish(self, at_once: bool = False) -> None:
        """Tell other machines that there is something new. Soon is soon enough for what they can do without."""
        now = self._clock.monotonic()
        if self.pending and (at_once or now >= self._next_touch):
            self.pending = False
            self._next_touch = now + TOUCH
            with suppress(OSError):  # then they find it when they next look at all logs
                self._path.parent.touch(self._path.name)

    def changed(self) -> bool:
        """Return True if it was touched since the last call. Raises FileNotFoundError."""
        touched = stamp_of(self._path.path).written
        before, self._seen = self._seen, touched
        if touched != before:
            self.until = self._clock.monotonic() + GRAIN
        return touched != before


IN_MODIFY, IN_MOVED_TO, IN_CREATE = 0x2, 0x80, 0x100
IN_Q_OVERFLOW = 0x4000
_ITSELF = 0x3000000  #: IN_DONT_FOLLOW | IN_ONLYDIR
_EVENT = struct.Struct("iIII")


class FileWatcher:
    """Watches folders, each under a label, for changes given as an inotify mask."""

    _fd = -1  # of the class, for `close` comes even if an interrupt leaves no time to set anything

    def __init__(self, folders: Mapping[str, tuple[Path, int]]) -> None:
        self._labels: dict[int, str] = {}
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return
        for label, (folder, mask) in folders.items():
            watch = libc.inotify_add_watch(self._fd, os.fsencode(folder), mask | _ITSELF) if self._fd >= 0 else -1
            if watch < 0:
                self.close()
                return
            self._labels[watch] = label

    @property
    def works(self) -> bool:
        """False where the system has no inotify, or no watch left."""
        return self._fd >= 0

    def fileno(self) -> int:
        """Return a descriptor for select: readable once something changed."""
        return self._fd

    def changed(self) -> set[tuple[str, str]] | None:
        """Return the files changed since the last call, as (label, name); None if unknown: any may have changed."""
        if self._fd < 0:
            return None
        names: set[tuple[str, str]] = set()
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EINTR):
                    return names
                raise
            position = 0
            while position < len(data):
                watch, mask, _, size = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                if mask & IN_Q_OVERFLOW:
                    return None
                name = data[position : position + size].rstrip(b"\0")
                names.add((self._labels.get(watch, ""), os.fsdecode(name)))
                position += size
            if len(data) < 1 << 15:
                return names

    def wait(self, timeout: float, descriptor: int = -1) -> bool:
        """Wait until something changes, at most ``timeout`` seconds; return True if ``descriptor`` is readable.

        Several threads may wait. Where the system has no inotify, only the time and the descriptor count.
        """
        poll = select.poll()
        for fd in (self._fd, descriptor):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        return any(fd == descriptor for fd, _ in poll.poll(max(0.0, timeout * 1000)))

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:  # there are few, and a store may be dropped without being closed
        self.close()
