"""Notices at once when files in a folder change on this machine (Linux: inotify). Other systems have to poll."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Mapping
from pathlib import Path

IN_MODIFY, IN_MOVED_TO, IN_CREATE = 0x2, 0x80, 0x100
IN_Q_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")


class FileWatcher:
    """Watches folders, each under a label, for changes given as an inotify mask."""

    def __init__(self, folders: Mapping[str, tuple[Path, int]]) -> None:
        self._labels: dict[int, str] = {}
        self._fd = -1
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return
        for label, (folder, mask) in folders.items():
            watch = libc.inotify_add_watch(self._fd, os.fsencode(folder), mask) if self._fd >= 0 else -1
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

    def wait(self, timeout: float) -> None:
        """Wait until something changes, at most ``timeout`` seconds. Several threads may wait."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(max(0.0, timeout * 1000))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:  # there are few, and a store may be dropped without being closed
        self.close()
