"""Memory for large values."""

from __future__ import annotations

import mmap
from contextlib import suppress

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
