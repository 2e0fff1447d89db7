"""Facts from the operating system: this host, user, processes, memory; and checks of numbers that people give."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import gc
import getpass
import math
import mmap
import operator
import os
import re
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import BadNumber, JugError
from jug_notebook.model import BEAT, LEASE, WorkerInfo

VERSION = "0.1.0"  #: of this package
FRESH = 5 * BEAT  #: see `is_alive`


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


def cores(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Return how many cores this process may use, at least 1: so many workers a host gets by default.

    The least of its processor affinity, the quotas of its control groups and what Slurm gave it (SLURM_CPUS_PER_TASK).
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = environ.get("SLURM_CPUS_PER_TASK", "")
    slurm = [int(given)] if given.isdecimal() else []
    return max(1, min([allowed, *slurm, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the processor quotas, in cores, of this process's control groups and those above, versions 1 and 2."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for mount in ("cpu", controllers) if controllers else ("", "unified"):
                top = root / "sys/fs/cgroup" / mount
                group = top / path.strip("/")
                for folder in (group, *group.parents):  # a container may see its own group as the topmost
                    with suppress(OSError, ValueError):
                        if controllers:
                            quota = (folder / "cpu.cfs_quota_us").read_text()
                            period = (folder / "cpu.cfs_period_us").read_text()
                        else:
                            quota, period = (folder / "cpu.max").read_text().split()
                        if int(quota) > 0:  # else there is none
                            yield int(quota) / int(period)
                    if folder == top:
                        break


def job_time_left(now: float, environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds until Slurm ends the job that this process is part of; None where it doesn't tell."""
    end = environ.get("SLURM_JOB_END_TIME", "")
    left = int(end) - now if end.isdecimal() else 0.0
    return left if left > 0 else None  # it was extended where that time is over


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


def is_alive(info: WorkerInfo, silent: float) -> bool:
    """Return whether a process counts as running, ``silent`` seconds after its last heartbeat.

    On this machine by its pid, on others for the length of a lease. A record of this host's name, but of another boot
    or pid namespace, is mostly what a crash or a replaced container left behind: it counts only while it is fresh.
    """
    exists = running(info)
    if exists is not None:
        return exists
    return silent <= (FRESH if info.host == host() else LEASE)


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


def private_map(fd: int) -> mmap.mmap:
    """Return a map of a file. A page of it is copied when it is written to: no one else sees that."""
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)  # it may be larger than the memory
    try:
        return mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError:  # the system insists on having room for all of it
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)


def copies_of(view: memoryview, address: str) -> Callable[[], memoryview]:
    """Return a function that makes writable copies of the bytes of a blob. Those of a large one share what they can."""
    if view.nbytes < LARGE or not hasattr(os, "memfd_create"):
        return functools.partial(copied, view)
    file = os.fdopen(os.memfd_create("jug"), "wb", buffering=0)
    at = 0
    while at < view.nbytes:
        at += file.write(view[at:])

    def copy() -> memoryview:
        memory = private_map(file.fileno())
        MEMORY.adopt(memory, address)
        return memoryview(memory)

    return copy


# -- memory whose hash is known until a page of it is written to -------------------------------------------------------

WATCHED = LARGE  #: bytes from which memory is watched
HASH = 20  #: bytes of a hash
_MOST = 256  #: ranges that are watched
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}  #: the system call's number
_API, _REGISTER, _UNREGISTER, _SCAN = 0xC018AA3F, 0xC020AA00, 0x8010AA01, 0xC0606610  #: ioctls
_FEATURES = 1 | 1 << 13 | 1 << 15  #: write protection, lifted by the kernel itself; also of pages not used before
_WATCHABLE, _WRITTEN, _OF_FILE, _THERE = 1, 2, 4, 8 | 16  #: categories of pages; the last: in memory or swapped out
_PROTECT, _ONLY_WATCHABLE = 1, 2  #: what a scan does besides
#: what a process may have open: a device, or an io_uring, may write to its memory without its page table
_HARMLESS = re.compile(
    r"(?!/dev/|anon_inode:)|/dev/(null|zero|full|u?random|tty.*|pts/.*|ptmx|shm/.*|console|log)$|"
    r"anon_inode:\[?(event|inotify|timerfd|signalfd|pidfd|userfaultfd)"
)


class _Range:
    """Memory that is watched: its whole pages, and a copy of the bytes before and behind these."""

    __slots__ = ("edges", "hashes", "pages")

    def __init__(self, pages: tuple[int, int], edges: bytes) -> None:
        self.pages, self.edges = pages, edges
        self.hashes: dict[object, bytes] = {}


class KnownMemory:
    """The hashes of large buffers of this process. A hash holds until a page of the buffer is written to.

    Linux (6.7) knows which pages were: they are write-protected when a buffer is hashed, which the kernel lifts by
    itself when any thread or system call writes to one. To look takes less than a millisecond for 500 MB. A hash isn't
    remembered for memory that others may write to (files, shared memory; but maps of blobs count by their content), in
    a process that has a device open which may write to its memory (a GPU), and where userfaultfd isn't allowed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: dict[tuple[int, int], _Range] = {}
        self._maps: dict[int, tuple[int, str, weakref.ref[Any]]] = {}  #: of blobs: end and address, by start
        self._faults = self._pages = -1  #: file descriptors: of userfaultfd, of this process's page map
        self._pid = 0

    def hash(self, start: int, stop: int, make: Callable[[], bytes], form: object = None) -> bytes:
        """Return what ``make()`` does: a hash that only depends on ``form`` and on the bytes from start to stop."""
        if stop - start < WATCHED:
            return make()
        known = self.recall(start, stop, form)
        if known is not None:
            return known
        watched = self._ranges.get((start, stop)) or self._watch(start, stop)
        made = make()  # what is written from now on is noticed the next time
        if watched is not None:
            watched.hashes[form] = made
        return made

    def recall(self, start: int, stop: int, form: object = None) -> bytes | None:
        """Return the hash if it is known and still right. Memory that isn't as it was is forgotten."""
        if self._pid != os.getpid():
            self._open()
        end, address, memory = self._maps.get(start, (0, "", None))
        if end == stop and memory is not None and memory() is not None and form is None:
            with suppress(OSError):  # a page that was written to is no page of the file any more
                if not self._scan(start, _up(stop), without=_OF_FILE, some=_THERE):
                    return bytes.fromhex(address)
        watched = self._ranges.get((start, stop))
        if watched is None:
            return None
        with suppress(OSError):
            unwritten = self._scan(*watched.pages, _ONLY_WATCHABLE, _WATCHABLE, without=_WRITTEN, some=_THERE)
            if unwritten == watched.pages and watched.edges == _edges(start, stop, watched.pages):
                return watched.hashes.get(form)
        self._ranges.pop((start, stop), None)
        return None

    def adopt(self, memory: mmap.mmap, address: str) -> None:
        """Note which blob a private map is of. It is forgotten with the map."""
        if self._pid != os.getpid():
            self._open()
        if len(memory) >= WATCHED and (place := place_of(memoryview(memory))) is not None:
            start, stop = place
            self._maps[start] = stop, address, weakref.ref(memory, lambda _: self._maps.pop(start, None))

    def forget(self) -> None:
        """Forget all: a fork has other pages."""
        self._lock = threading.Lock()
        self._ranges.clear()
        self._maps.clear()
        self._pid = 0

    def _open(self) -> None:
        """Ask the system for what this process needs."""
        with self._lock:
            if self._pid == os.getpid():
                return
            self._ranges.clear()
            for fd in (self._faults, self._pages):
                if fd >= 0:
                    os.close(fd)
            self._faults = self._pages = -1
            with suppress(OSError):
                self._pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
                number = _USERFAULTFD.get(os.uname().machine)
                if number is not None and struct.calcsize("P") == 8:
                    self._faults = ctypes.CDLL(None).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | 1)  # 1: user mode
                if self._faults >= 0:
                    fcntl.ioctl(self._faults, _API, bytearray(struct.pack("3Q", 0xAA, _FEATURES, 0)), True)
            self._pid = os.getpid()

    def _watch(self, start: int, stop: int) -> _Range | None:
        """Watch memory from now on. Return None if it can't be, or if others might write to it unseen."""
        first, last = pages = _up(start), stop // mmap.PAGESIZE * mmap.PAGESIZE
        with self._lock, suppress(OSError):
            if self._faults < 0 or not _only_ours(first, last):
                return None
            fcntl.ioctl(self._faults, _REGISTER, bytearray(struct.pack("4Q", first, last - first, 2, 0)), True)
            at = first
            while written := self._scan(at, last, _PROTECT | _ONLY_WATCHABLE, _WRITTEN):
                begin, at = written
                for name, other in list(self._ranges.items()):  # nobody could see any more that these were written to
                    if other.pages[0] < at and begin < other.pages[1]:
                        del self._ranges[name]
            while len(self._ranges) >= _MOST:
                low, high = self._ranges.pop(next(iter(self._ranges))).pages
                with suppress(OSError):  # it may be gone
                    fcntl.ioctl(self._faults, _UNREGISTER, struct.pack("2Q", low, high - low))
            self._ranges[start, stop] = watched = _Range(pages, _edges(start, stop, pages))
            return watched
        return None

    def _scan(
        self, start: int, stop: int, act: int = 0, all: int = 0, without: int = 0, some: int = 0
    ) -> tuple[int, int] | None:
        """Return the first run of pages (start, stop) that are of these categories; None if there is none."""
        run = (ctypes.c_uint64 * 3)()
        place = ctypes.addressof(run)
        query = struct.pack("12Q", 96, act, start, stop, 0, place, 1, 0, without, all | without, some, all or some)
        return (run[0], run[1]) if fcntl.ioctl(self._pages, _SCAN, bytearray(query), True) else None


MEMORY = KnownMemory()
os.register_at_fork(after_in_child=MEMORY.forget)


_PARALLEL = 1 << 22  #: bytes from which threads of one's own pay
_LOADED_BY = os.getpid()  #: the threads that AUTO shares are not there in its forks, which would wait for them for ever


def hasher(size: int) -> blake3:
    """Return a new blake3 hasher for about ``size`` bytes, which uses several cores if that pays."""
    forked = os.getpid() != _LOADED_BY
    return blake3(max_threads=(cores() if size >= _PARALLEL else 1) if forked else blake3.AUTO)


def hashed(pieces: Sequence[memoryview]) -> bytes:
    """Return the blake3 hash of bytes in pieces; of one large piece, perhaps what is known of it."""

    def make() -> bytes:
        state = hasher(sum(piece.nbytes for piece in pieces))
        for piece in pieces:
            state.update(piece)
        return bytes(state.digest(HASH))

    place = _place_of_one(pieces)
    return make() if place is None else MEMORY.hash(*place, make)


def known(pieces: Sequence[memoryview]) -> bytes | None:
    """Return the same if it needn't be computed, else None."""
    place = _place_of_one(pieces)
    return None if place is None else MEMORY.recall(*place)


def _place_of_one(pieces: Sequence[memoryview]) -> tuple[int, int] | None:
    return place_of(pieces[0]) if len(pieces) == 1 and pieces[0].nbytes >= WATCHED else None


def place_of(view: memoryview) -> tuple[int, int] | None:
    """Return where the bytes of a view begin and end in memory; None where numpy, which can tell, isn't loaded."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    start: int = numpy.frombuffer(view, "u1").__array_interface__["data"][0]
    return start, start + view.nbytes


def _up(address: int) -> int:
    return -(-address // mmap.PAGESIZE) * mmap.PAGESIZE


def _edges(start: int, stop: int, pages: tuple[int, int]) -> bytes:
    return ctypes.string_at(start, pages[0] - start) + ctypes.string_at(pages[1], stop - pages[1])


def _only_ours(start: int, stop: int) -> bool:
    """Return True for private memory of this process, if no device may write to it."""
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if not _HARMLESS.match(os.readlink(f"/proc/self/fd/{fd}")):
                return False
    at = start
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            span, rights, _, _, inode, *path = line.split()
            low, high = (int(side, 16) for side in span.split(b"-"))
            if path == [b"/[aio]"]:
                return False
            if low <= at < high and at < stop:
                if rights[3:] != b"p" or inode != b"0":
                    return False
                at = high
    return at >= stop


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


# -- a process without effects -----------------------------------------------------------------------------------------

#: audit events of what acts outside the process: on files, and otherwise
_ON_FILES = frozenset(f"os.{name}" for name in (
    *("remove", "rename", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "chown", "utime"),
    *("setxattr", "removexattr"),
))  # fmt: skip
_EFFECTS = _ON_FILES | {
    *(f"os.{name}" for name in ("system", "exec", "posix_spawn", "spawn", "fork", "forkpty", "kill", "killpg")),
    *("subprocess.Popen", "pty.spawn", "sqlite3.connect", "webbrowser.open"),
    *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def forbid_effects(folder: str, why: str, allowed: str) -> None:
    """Let this process act on nothing outside it from now on, but for files below ``folder``.

    What would write a file, start a process or connect raises PermissionError, whose text ends with ``why``, except
    inside modules whose names begin with ``allowed``. On Linux, the kernel forbids this thread, and those that it
    starts, to write any other file, so that no library does it either.
    """
    inside = os.path.realpath(folder) + os.sep

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            paths = arguments[:1]
            if not (arguments[2] or 0) & _WRITES or paths[0] == os.devnull:
                return
        elif event in _EFFECTS:
            paths = arguments if event in _ON_FILES else ()
        else:
            return
        files = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
        if (paths and all(f"{os.path.realpath(file)}{os.sep}".startswith(inside) for file in files)) or _below(allowed):
            return
        what = "writing" if event == "open" else event
        raise PermissionError(f"{what}{f' {files[0]!r}' if files else ''} {why}")

    _landlock(folder)
    sys.addaudithook(check)


def _below(module: str) -> bool:
    """Return True if code of that module, or of a package's, called this."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not str(frame.f_globals.get("__name__", "")).startswith(module):
        frame = frame.f_back
    return frame is not None


def _landlock(folder: str) -> None:
    """Have the kernel forbid this thread all writing of files but below ``folder``; where it can't, do nothing."""
    import ctypes
    import struct

    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    writing = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # write, remove, make
    rules = struct.pack("<Q", writing)
    if (ruleset := libc.syscall(444, rules, len(rules), 0)) < 0:  # an older kernel
        return
    for path, allowed in ((folder, writing), (os.devnull, 1 << 1)):
        at = os.open(path, os.O_PATH)
        libc.syscall(445, ruleset, 1, struct.pack("<Qi", allowed, at), 0)
        os.close(at)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which the kernel asks for
    libc.syscall(446, ruleset, 0)
    os.close(ruleset)
