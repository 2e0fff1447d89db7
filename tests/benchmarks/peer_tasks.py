"""Tasks of the peers, which want them in a module, and how each peer's workers are brought up."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


def double(x: int) -> int:
    return 2 * x


def nap(x: int, seconds: float, *needs: Any) -> int:
    time.sleep(seconds)
    return x


def total(values: list[int]) -> int:
    return sum(values)


@contextmanager
def dask_client(folder: Path, workers: int) -> Iterator[Any]:
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, local_directory=str(folder)
        ) as here,
        Client(here) as client,
    ):
        client.wait_for_workers(workers)
        yield client


HUEY = """
import logging
from huey import RedisHuey
huey = RedisHuey({name!r}, port={port})

@huey.task()
def double(x, *rest):
    return 2 * x
"""


@contextmanager
def huey_consumer(folder: Path, port: int, workers: int) -> Iterator[ModuleType]:
    """A module with its task, and a consumer with so many processes."""
    (folder / "hueytasks.py").write_text(HUEY.format(name=folder.name, port=port))
    command = [sys.executable, "-m", "huey.bin.huey_consumer", "hueytasks.huey", "-k", "process", "-w", str(workers)]
    command += ["-d", "0.001", "-m", "0.01", "-q"]
    consumer = subprocess.Popen(command, cwd=folder, env=None, stderr=subprocess.DEVNULL)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("hueytasks")
    finally:
        consumer.terminate()
        consumer.wait()
