"""What a supervisor's host has of GPUs, memory and the like, and which of its workers holds how much of it."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from jug_notebook.keys.advice import DEVICES
from jug_notebook.model import Resources
from jug_notebook.render.format import GPU

SMI_TIMEOUT = 20.0  #: seconds for nvidia-smi to answer
_DIGITS = 9  #: decimal places of amounts: ten tenths are one
_SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")


class Reservations:
    """What a host has in all, and what each worker holds of it. Workers are known by a number.

    A process that has used a GPU keeps a context there, with memory, for as long as it lives, and sees no others. So a
    worker that had GPUs gets the same again, or none.
    """

    def __init__(self, totals: Mapping[str, float], find_devices: Callable[[], Sequence[str]] = tuple) -> None:
        self._totals = dict(totals)
        self._used = dict.fromkeys(totals, 0.0)
        self._find = find_devices
        self._held: dict[int, tuple[Resources, tuple[str, ...]]] = {}
        self._bound: dict[int, tuple[str, ...]] = {}  #: the devices that each worker has used
        self.refused: set[Resources] = set()  #: what did not fit, to be cleared by who looks at it

    @functools.cached_property
    def _free(self) -> dict[str, float]:
        """What is left of each device. Found once a task asks for one: that may take a second."""
        return dict.fromkeys(self._find(), 1.0)

    def fits(self, worker: int, resources: Resources) -> bool:
        """Return whether this worker may have that now. Worker -1 stands for a new one."""
        for name, amount in resources:
            if name == GPU:
                fit = bool(self._chosen(worker, amount))
            else:
                fit = amount <= round(self._totals.get(name, 0.0) - self._used.get(name, 0.0), _DIGITS)
            if not fit:
                self.refused.add(resources)
                return False
        return True

    def reserve(self, worker: int, resources: Resources) -> tuple[str, ...]:
        """Take what fits for a worker that holds nothing. Return the ids of its devices."""
        devices: tuple[str, ...] = ()
        for name, amount in resources:
            if name == GPU:
                self._bound[worker] = devices = self._chosen(worker, amount)
                for device in devices:
                    self._free[device] = round(self._free[device] - min(1.0, amount), _DIGITS)
            else:
                self._used[name] = round(self._used[name] + amount, _DIGITS)
        self._held[worker] = resources, devices
        return devices

    def release(self, worker: int) -> None:
        """Take back what a worker holds, if anything."""
        if worker not in self._held:
            return
        resources, devices = self._held.pop(worker)
        for name, amount in resources:
            if name == GPU:
                for device in devices:
                    self._free[device] = round(self._free[device] + min(1.0, amount), _DIGITS)
            else:
                self._used[name] = round(self._used[name] - amount, _DIGITS)

    def forget(self, worker: int) -> None:
        """A worker has ended."""
        self.release(worker)
        self._bound.pop(worker, None)

    def bound(self, worker: int) -> tuple[str, ...]:
        """Return the devices that a worker has used; none for one that may still get any."""
        return self._bound.get(worker, ())

    def usage(self) -> tuple[tuple[str, float, float], ...]:
        """Return, by name, how much there is and how much of it is in use."""
        found = [(name, total, self._used[name]) for name, total in self._totals.items()]
        if "_free" in vars(self) and self._free:
            number = len(self._free)
            found.append((GPU, number, round(number - sum(self._free.values()), _DIGITS)))
        return tuple(sorted(found))

    def _chosen(self, worker: int, amount: float) -> tuple[str, ...]:
        """Return the devices that a worker would get: whole ones, or a share of one; none if there aren't enough."""
        share, number = min(1.0, amount), max(1, round(amount))
        own = self._bound.get(worker)
        if own:
            return own if len(own) == number and all(share <= self._free[device] for device in own) else ()
        fitting = [device for device, left in self._free.items() if share <= left]
        if len(fitting) < number:
            return ()
        contexts = [device for devices in self._bound.values() for device in devices]
        best = sorted(fitting, key=lambda device: (self._free[device], contexts.count(device)))[:number]
        return tuple(device for device in fitting if device in best)


# -- what there is -----------------------------------------------------------------------------------------------------


def find_devices(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the ids of the GPUs that this process may use, from its environment or else from nvidia-smi."""
    for name in (*DEVICES, *_SLURM):
        if name in environ:
            ids = [one.strip() for one in environ[name].split(",")]
            return tuple(dict.fromkeys(one for one in ids if one and one not in ("-1", "NoDevFiles", "none")))
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SMI_TIMEOUT, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    ids = re.findall(r"UUID: (MIG-[^)\s]+)", listed) or re.findall(r"UUID: (GPU-[^)\s]+)", listed)
    return tuple(ids)


def visible(devices: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment in which a task sees these GPUs and no others."""
    ids = ",".join(devices)
    if "ROCR_VISIBLE_DEVICES" in environ:  # the runtime below counts those that this leaves
        below = ",".join(map(str, range(len(devices))))
        return {"ROCR_VISIBLE_DEVICES": ids, "HIP_VISIBLE_DEVICES": below, "CUDA_VISIBLE_DEVICES": below}
    found = {"CUDA_VISIBLE_DEVICES": ids, "HIP_VISIBLE_DEVICES": ids}
    return found | ({"ZE_AFFINITY_MASK": ids} if all(one.replace(".", "").isdigit() for one in devices) else {})


def find_memory(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> float:
    """Return the bytes that this process may use: the host's, or those of its control group or Slurm job if fewer."""
    found = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    with suppress(ValueError):
        found.append(float(environ["SLURM_MEM_PER_NODE"]) * 2**20 if "SLURM_MEM_PER_NODE" in environ else 0.0)
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
                found.append(float((folder / ("memory.limit_in_bytes" if controllers else "memory.max")).read_text()))
    return min(amount for amount in found if amount > 0)
