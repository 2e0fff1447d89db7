"""What a supervisor's host has of GPUs, memory and the like, and which of its workers holds how much of it."""

from __future__ import annotations

import fcntl
import functools
import math
import os
import re
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from hashlib import blake2b
from pathlib import Path
from struct import Struct

from jug_notebook.keys.advice import DEVICES
from jug_notebook.model import Resources
from jug_notebook.render.format import GPU, MEMORY
from jug_notebook.task.context import environment

SMI_TIMEOUT = 20.0  #: seconds for nvidia-smi to answer
_DIGITS = 9  #: decimal places of amounts: ten tenths are one
_SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
LOCKS = Path("/tmp/jug-notebook-devices")  #: one for all users and processes of a host, whatever their TMPDIR
TURN = 60.0  #: seconds for which a supervisor may use a device that another one wants
KEPT_AFTER = 1.0  #: seconds for which something doesn't fit before what becomes free is kept for it
UNIT = 1 << 27  #: bytes of memory that supervisors of a host share out at a time
_POOLS = 1 << 60  #: where in the file units of memory begin, a byte each
_NAMES = 1 << 62  #: where names begin, two bytes each: for who holds it, and for who wants it
_FLOCK = Struct("hhqqi4x")


class HostLocks:
    """What the supervisors of a host keep from each other: names, and units of memory, each held by one at a time.

    They share a file, in which nothing is written: its bytes are locked (Linux has such locks). A supervisor opens it
    before it forks workers, who have it too. So what it holds is free once it gives it back, or once it and all those
    workers have ended, however they did. Without a file everything is free. Those with one ``pool`` of memory share it.
    """

    def __init__(self, path: Path | None = None, pool: str = "") -> None:
        self._file = None if path is None or not hasattr(fcntl, "F_OFD_SETLK") else _open_shared(path)
        self._held: set[int] = set()  #: names, as places in the file
        self._wanted: set[int] = set()
        self._units: set[int] = set()  #: of memory
        self._pool = _POOLS + (int.from_bytes(blake2b(pool.encode(), digest_size=4).digest(), "little") << 24)

    def take(self, name: str) -> bool:
        """Hold a name, unless another supervisor does; return whether it is ours."""
        at = _place(name)
        if at not in self._held and self._lock(fcntl.F_WRLCK, at):
            self._held.add(at)
        return at in self._held

    def give(self, name: str) -> None:
        """Give a name back, if it is ours."""
        if (at := _place(name)) in self._held:
            self._held.discard(at)
            self._lock(fcntl.F_UNLCK, at)

    def is_taken(self, name: str) -> bool:
        """Return whether another supervisor holds it."""
        return bool(self._taken(_place(name), 1))

    def want(self, names: Set[str]) -> None:
        """Let whoever holds these names, and no others, know that they are wanted here."""
        wanted = {_place(name) + 1 for name in names}
        for at in self._wanted ^ wanted:
            self._lock(fcntl.F_RDLCK if at in wanted else fcntl.F_UNLCK, at)
        self._wanted = wanted

    def is_wanted(self, name: str) -> bool:
        """Return whether another supervisor wants it."""
        return bool(self._taken(_place(name) + 1, 1))

    def take_memory(self, used: float, total: float) -> bool:
        """Hold as much memory, in bytes, as is needed for ``used`` in all; return whether that much of it was free."""
        missing = math.ceil(used / UNIT) - len(self._units)
        if missing <= 0:
            return True
        units = range(self._pool, self._pool + math.ceil(total / UNIT))
        taken = {unit for at, size in self._taken(units.start, len(units)) for unit in range(at, at + size)}
        free = [unit for unit in units if unit not in taken and unit not in self._units]
        found = [unit for unit in free[:missing] if len(free) >= missing and self._lock(fcntl.F_WRLCK, unit)]
        self._units.update(found)
        return len(found) == missing

    def refresh(self, used: float) -> None:
        """Give back the memory above ``used``; and keep the file from being removed as one that nobody uses."""
        for unit in sorted(self._units)[math.ceil(used / UNIT) :]:
            self._lock(fcntl.F_UNLCK, unit)
            self._units.discard(unit)
        if self._file is not None:
            os.utime(self._file)

    def memory_taken(self, total: float) -> float:
        """Return how much memory other supervisors hold, in bytes."""
        taken = self._taken(self._pool, math.ceil(total / UNIT))
        return min(total, UNIT * float(sum(size for _, size in taken)))

    def _lock(self, kind: int, at: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
        except OSError:
            return False
        return True

    def _taken(self, at: int, size: int) -> list[tuple[int, int]]:
        """Return the parts of a range that others have locked: where, and how many bytes."""
        if self._file is None or size <= 0:
            return []
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, size, 0)
        kind, _, begin, length, _ = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return []
        first, last = max(at, begin), min(at + size, begin + length)
        return [*self._taken(at, first - at), (first, last - first), *self._taken(last, at + size - last)]


def _open_shared(path: Path) -> int | None:
    """Open the file of a host's locks, made by whoever comes first; one of this user alone where that is refused."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for one in (path, path.with_name(f"{path.name}-{os.getuid()}")):
        for more in (os.O_CREAT | os.O_EXCL, 0):
            with suppress(OSError):
                file = os.open(one, flags | more, 0o666)
                if more:
                    os.fchmod(file, 0o666)  # the locks are for all users of this host
                if stat.S_ISREG(os.fstat(file).st_mode):
                    return file
                os.close(file)
    return None


def _place(name: str) -> int:
    return _NAMES + 2 * int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "little")


class Reservations:
    """What a host has in all, and what each worker holds of it. Workers are known by a number.

    A process that has used a GPU keeps a context there, with memory, for as long as it lives, and sees no others. So a
    worker that had GPUs gets the same again, or none. GPUs, and memory if it ``shares_memory``, belong to all
    supervisors of a host: a GPU to one of them at a time, for as long as a worker of it has a context there.

    Requests come in the order of the queue, in one `look` after another. What the first has not found for a while is
    kept for it: those behind it get only what they leave enough of.
    """

    def __init__(
        self,
        totals: Mapping[str, float],
        find_devices: Callable[[], Sequence[str]] = tuple,
        locks: HostLocks | None = None,
        shares_memory: bool = False,
    ) -> None:
        self._totals = dict(totals)
        self._used = dict.fromkeys(totals, 0.0)
        self._find = find_devices
        self._locks = locks or HostLocks()
        self._shares_memory = shares_memory
        self._names: dict[str, str] = {}  #: what other supervisors know each device by
        self._held: dict[int, tuple[Resources, tuple[str, ...]]] = {}
        self._bound: dict[int, tuple[str, ...]] = {}  #: the devices that each worker has used
        self._wanted: set[str] = set()  #: names of devices that others hold
        self._began: dict[str, float] = {}  #: when we came to hold each device
        self._ceded: set[str] = set()  #: devices that are another's turn
        self.refused: set[Resources] = set()  #: what did not fit since `forget_refused`
        self._now = 0.0  #: when the current look began
        self._since: dict[Resources, float] = {}  #: when what does not fit was first asked for
        self._asked: set[Resources] = set()  #: in the current look
        self._first: Resources = ()  #: of those in it that have waited for a while

    @functools.cached_property
    def _free(self) -> dict[str, float]:
        """What is left of each device. Found once a task asks for one: that may take a second."""
        found = tuple(self._find())
        self._names = dict(zip(found, names_of(found), strict=True))
        return dict.fromkeys(found, 1.0)

    def look(self, now: float) -> None:
        """From now on `fits` is asked for the next worker, for what comes first in the queue first."""
        if self._since:
            self._since = {one: since for one, since in self._since.items() if one in self._asked}
        self._asked.clear()
        self._now, self._first = now, ()

    def fits(self, worker: int, resources: Resources) -> bool:
        """Return whether this worker may have that now. Worker -1 stands for a new one."""
        self._asked.add(resources)
        if self._first and resources != self._first and not self._leaves_enough(worker, resources):
            return False
        if self._has(worker, resources):
            return True
        self.refused.add(resources)
        since = self._since.setdefault(resources, self._now)
        if not self._first and self._now - since >= KEPT_AFTER and self._could_have(resources):
            self._first = resources
        return False

    def makes_room(self, worker: int) -> bool:
        """Return whether a worker had better get nothing, so that a new one gets what has waited and doesn't fit it."""
        first = self._first
        if not first or not self._bound.get(worker) or self._has(worker, first) or not self._has(-1, first):
            return False
        self.refused.add(first)
        return True

    def _could_have(self, resources: Resources) -> bool:
        """Return whether the host has that much at all."""
        return all(
            amount <= (len(self._free) if name == GPU else self._totals.get(name, 0.0)) for name, amount in resources
        )

    def _leaves_enough(self, worker: int, resources: Resources) -> bool:
        """Return whether there is still enough for the first in the queue once this worker has that."""
        for name, needed in self._first:
            amount = dict(resources).get(name)
            if amount is None:
                continue
            if name == GPU:
                chosen = self._chosen(worker, amount)
                left = float(sum(free == 1.0 and device not in chosen for device, free in self._free.items()))
            else:
                left = self._totals[name] - self._used[name] - amount
            if round(left - needed, _DIGITS) < 0:
                return False
        return True

    def _has(self, worker: int, resources: Resources) -> bool:
        for name, amount in resources:
            if name == GPU:
                fit = bool(self._chosen(worker, amount))
            else:
                used, total = self._used.get(name, 0.0), self._totals.get(name, 0.0)
                fit = amount <= round(total - used, _DIGITS)
                if fit and name == MEMORY and self._shares_memory:
                    fit = self._locks.take_memory(used + amount, total)
            if not fit:
                return False
        return True

    def reserve(self, worker: int, resources: Resources) -> tuple[str, ...]:
        """Take what `fits` for a worker that holds nothing. Return the ids of its devices."""
        devices: tuple[str, ...] = ()
        for name, amount in resources:
            if name == GPU:
                self._bound[worker] = devices = self._chosen(worker, amount)
                for device in devices:
                    self._free[device] = round(self._free[device] - min(1.0, amount), _DIGITS)
            else:
                self._used[name] = round(self._used[name] + amount, _DIGITS)
        self._held[worker] = resources, devices
        self._since.pop(resources, None)
        return devices

    def release(self, worker: int) -> bool:
        """Take back what a worker holds; return whether it was anything."""
        if worker not in self._held:
            return False
        resources, devices = self._held.pop(worker)
        for name, amount in resources:
            if name == GPU:
                for device in devices:
                    self._free[device] = round(self._free[device] + min(1.0, amount), _DIGITS)
            else:
                self._used[name] = round(self._used[name] - amount, _DIGITS)
        return True

    def forget(self, worker: int) -> bool:
        """A worker has ended. Return whether it held anything, or had used devices."""
        held = self.release(worker)
        return self._bound.pop(worker, None) is not None or held

    def forget_refused(self) -> None:
        """Begin to collect anew what does not fit."""
        self.refused.clear()
        self._wanted.clear()

    def bound(self, worker: int) -> tuple[str, ...]:
        """Return the devices that a worker has used; none for one that may still get any."""
        return self._bound.get(worker, ())

    def share(self) -> set[int]:
        """Give other supervisors what is not used here, and let them know what is wanted.

        Return the workers that use nothing now, but have contexts on devices that others want: they had better end.
        """
        self._locks.refresh(self._used.get(MEMORY, 0.0))
        if "_free" not in vars(self):
            return set()
        self._locks.want(self._wanted)
        contexts = {device for devices in self._bound.values() for device in devices}
        idle = [device for device, left in self._free.items() if left == 1.0]
        for device in idle:
            if device not in contexts:
                self._locks.give(self._names[device])
                self._began.pop(device, None)
        asked = {one for one in contexts if self._locks.is_wanted(self._names[one])}
        self._ceded = {one for one in asked if self._now - self._began.get(one, self._now) >= TURN}
        asked.intersection_update(idle)
        return {worker for worker, devices in self._bound.items() if worker not in self._held and asked & {*devices}}

    def usage(self) -> tuple[tuple[str, float, float], ...]:
        """Return, by name, how much there is and how much of it is in use, by other supervisors of this host, too.

        What is kept for the first in the queue counts as in use.
        """
        found = [(name, total, self._used[name]) for name, total in self._totals.items()]
        if self._shares_memory:
            total = self._totals[MEMORY]
            used = min(total, self._used[MEMORY] + self._locks.memory_taken(total))
            found = [(name, *((total, used) if name == MEMORY else rest)) for name, *rest in found]
        if "_free" in vars(self) and self._free:
            left = [free for one, free in self._free.items() if not self._locks.is_taken(self._names[one])]
            found.append((GPU, len(self._free), round(len(self._free) - sum(left), _DIGITS)))
        kept = dict(self._first)
        return tuple(sorted((name, total, total if name in kept else used) for name, total, used in found))

    def _chosen(self, worker: int, amount: float) -> tuple[str, ...]:
        """Return the devices that a worker would get: whole ones, or a share of one; none if there aren't enough.

        They are held from then on.
        """
        share, number = min(1.0, amount), max(1, round(amount))
        own = self._bound.get(worker)
        left = [device for device, left in self._free.items() if share <= left and device not in self._ceded]
        if own:
            return own if len(own) == number and all(device in left for device in own) else ()
        if len(left) < number:
            return ()
        foreign = {device for device in left if self._locks.is_taken(self._names[device])}
        fitting = [device for device in left if device not in foreign]
        if len(fitting) < number:
            self._wanted.update(self._names[device] for device in foreign)
            return ()
        contexts = [device for devices in self._bound.values() for device in devices]
        best = sorted(fitting, key=lambda device: (self._free[device], contexts.count(device)))[:number]
        if not all(self._locks.take(name) for name in sorted(self._names[device] for device in best)):
            self.share()  # another was quicker: give back what is of no use now
            return ()
        for device in best:
            self._began.setdefault(device, self._now)
        return tuple(device for device in fitting if device in best)


# -- what there is -----------------------------------------------------------------------------------------------------


def find_devices(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the ids of the GPUs that this process may use, from its environment or else from nvidia-smi."""
    for name in (*DEVICES, *_SLURM):
        if name in environ:
            ids = [one.strip() for one in environ[name].split(",")]
            return tuple(dict.fromkeys(one for one in ids if one and one not in ("-1", "NoDevFiles", "none")))
    listed = _listed()
    return tuple(re.findall(r"UUID: (MIG-[^)\s]+)", listed) or re.findall(r"UUID: (GPU-[^)\s]+)", listed))


def names_of(devices: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a name of each device that is the same for all processes of this host, however they number devices."""
    listed = dict(re.findall(r"GPU (\d+):.*UUID: (GPU-[^)\s]+)", _listed())) if devices else {}
    names = []
    for device in devices:
        whole = [one for one in listed.values() if device.startswith("GPU-") and one.startswith(device)]
        # what Slurm gives a job is that job's own, and may be numbered from 0 in each
        names.append(listed.get(device) or (whole or [f"{environ.get('SLURM_JOB_ID', '')}/{device}"])[0])
    return names


@functools.cache
def _listed() -> str:
    """Return what nvidia-smi lists; nothing where there is none."""
    try:
        return subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SMI_TIMEOUT, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def visible(devices: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment in which a task sees these GPUs and no others."""
    ids = ",".join(devices)
    if "ROCR_VISIBLE_DEVICES" in environ:  # the runtime below counts those that this leaves
        below = ",".join(map(str, range(len(devices))))
        return {"ROCR_VISIBLE_DEVICES": ids, "HIP_VISIBLE_DEVICES": below, "CUDA_VISIBLE_DEVICES": below}
    found = {"CUDA_VISIBLE_DEVICES": ids, "HIP_VISIBLE_DEVICES": ids}
    return found | ({"ZE_AFFINITY_MASK": ids} if all(one.replace(".", "").isdigit() for one in devices) else {})


class VisibleDevices:
    """The GPUs that a worker's tasks see. Variables are set for as long as they stay the same, not for each task."""

    def __init__(self) -> None:
        self._around = ExitStack()
        self._devices: tuple[str, ...] = ()
        self._values: dict[str, str] = {}

    def let_see(self, devices: tuple[str, ...]) -> dict[str, str]:
        """Let the next task see these GPUs, or all if there are none; return the variables that do so."""
        if devices != self._devices:
            self._around.close()
            self._values = visible(devices) if devices else {}
            self._around.enter_context(environment(self._values))
            self._devices = devices
        elif any(os.environ.get(name) != value for name, value in self._values.items()):  # a task has changed them
            os.environ.update(self._values)
        return self._values


def find_memory(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[float, str]:
    """Return the bytes that this process may use, and the name of what they are shared with.

    That is the host (""), or its control group or Slurm job if that has less.
    """
    found = [(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), "")]
    with suppress(ValueError, KeyError):
        found.append((float(environ["SLURM_MEM_PER_NODE"]) * 2**20, f"job {environ.get('SLURM_JOB_ID', '')}"))
    groups = []
    with suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        inner = Path(path.lstrip("/"))
        for folder in (base / inner, *(base / above for above in inner.parents)):
            with suppress(OSError, ValueError):  # "max"
                limit = (folder / ("memory.limit_in_bytes" if controllers else "memory.max")).read_text()
                found.append((float(limit), str(folder)))
    return min(one for one in found if one[0] > 0)
