"""Check that keys are the same in another process: calls are decoded there, with another hash seed, and hashed again.

Runs only on request. The other process runs `main`: it reads samples of calls and writes digests, both in msgpack.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from jug_notebook import codec
from jug_notebook.codec.pickling import Get, Unpickler
from jug_notebook.errors import JugError
from jug_notebook.keys import digest
from jug_notebook.model import Address, FunctionBundle, Key, Payload, Reference, TaskTemplate
from jug_notebook.store import Store
from jug_notebook.task import TaskFunction
from jug_notebook.task.context import PendingTask

SAMPLE = 3  #: most calls of each function that are checked
PATIENCE = 60.0  #: seconds for the other process

_OF_VALUES = ("global ", "closure ", "default ", "attribute ", "argument ")  #: parts of a code that are values


class Call(msgspec.Struct, frozen=True):
    """A call as it is sent to the other process."""

    key: Key
    arguments: Payload
    needs: tuple[Key, ...]


class Sample(msgspec.Struct, frozen=True):
    """Some calls of a function, with everything needed to decode them."""

    name: str
    bundle: FunctionBundle
    parts: dict[str, str]
    ignored: tuple[str, ...]  #: arguments
    ignored_globals: tuple[str, ...]
    calls: tuple[Call, ...]
    blobs: dict[Address, bytes]
    project: str


class Names(msgspec.Struct, frozen=True):
    """Digests of the parts of a sample, as one process computes them."""

    parts: dict[str, str]
    arguments: tuple[dict[str, str], ...]  #: per call: label -> digest, or why there is none


class _Reader(Unpickler):
    """Decodes a call without the values of its needs: references stay references."""

    def __init__(self, data: Any, get: Get, needs: Sequence[Key], addresses: Sequence[Address]) -> None:
        super().__init__(data, get, None, addresses, lambda address: memoryview(bytearray(get(address))))
        self._needs = needs

    def need(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        return _Stub(Reference(self._needs[slot], steps))

    def value_of(self, value: Any) -> Any:
        return value


class _Stub:
    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __jug_reference__(self) -> Reference:
        return self._reference


def sampled(pending_tasks: Mapping[Any, Sequence[PendingTask]], store: Store, project: Path) -> list[Sample]:
    """Return samples of pending tasks, given by function version, with the blobs that they need."""
    samples = []
    for version, some in pending_tasks.items():
        function = version.function
        template = msgspec.msgpack.decode(version.template, type=TaskTemplate)
        bundle = msgspec.msgpack.decode(bytes(store.get_blob(template.bundle)), type=FunctionBundle)
        calls = tuple(Call(pending_task[1], pending_task[4], pending_task[3]) for pending_task in some)
        addresses = {
            *bundle.modules.values(),
            *bundle.buffers,
            *(at for call in calls for at in call.arguments.buffers),
        }
        blobs = {address: bytes(store.get_blob(address)) for address in addresses}
        ignored, aside = tuple(sorted(function.ignore)), function.ignore_globals
        parts = {name: part for name, part in version.parts.items() if not name.startswith("environment ")}
        samples.append(Sample(version.name, bundle, parts, ignored, aside, calls, blobs, str(project)))
    return samples


def names(sample: Sample) -> Names:
    """Return the digests that this process computes for a sample."""
    blobs = {address: memoryview(data) for address, data in sample.blobs.items()}
    function = TaskFunction(
        codec.load_function(sample.bundle, blobs.__getitem__),
        ignore=sample.ignored,
        ignore_globals=sample.ignored_globals,
    )
    try:
        parts = function.examine(Path(sample.project)).parts
    except JugError as error:
        parts = {"": str(error)}
    return Names(parts, tuple(_labelled(function, call, blobs) for call in sample.calls))


def _labelled(function: TaskFunction, call: Call, blobs: Mapping[Address, memoryview]) -> dict[str, str]:
    found: dict[str, str] = {}
    args, kwargs = _arguments(call, blobs)
    for label, value in function._bound(args, kwargs):
        if label in function.ignore:
            continue
        try:
            found[label] = digest.digest(value).hex()
        except JugError as error:
            found[label] = str(error)
    return found


def _arguments(call: Call, blobs: Mapping[Address, memoryview]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    data: Any = call.arguments.data
    addresses = call.arguments.buffers
    if not data:
        data, addresses = blobs[addresses[0]], addresses[1:]
    args, kwargs = _Reader(data, blobs.__getitem__, call.needs, addresses).load()
    return args, kwargs


def unstable(samples: Sequence[Sample]) -> list[str]:
    """Return a line for each argument or global whose digest differs in another process, or after pickling."""
    if not samples:
        return []
    there = _elsewhere(samples)
    if isinstance(there, str):
        return [f"the check in a second process failed: {there}"]
    return [text for sample, other in zip(samples, there, strict=True) for text in _compared(sample, other)]


def _compared(sample: Sample, other: Names) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were given when the tasks were made
        here = names(sample)
    for label, found in sample.parts.items():
        if label.startswith(_OF_VALUES) and other.parts.get(label, found) != found:
            yield (
                f"{label} of {sample.name}() has another digest in each process, so its tasks are never found again; "
                f"give its class __jug_hash__, or leave it out: --ignore-global {label.split()[1]}"
            )
    reported: set[str] = set()
    for one, another in zip(here.arguments, other.arguments, strict=True):
        for label, found in one.items():
            if another.get(label) != found and label not in reported:
                reported.add(label)
                yield (
                    f"argument {label!r} of {sample.name}() has another digest in each process, so its tasks are never "
                    f"found again; give its class __jug_hash__, or wrap it in jn.CustomHash or jn.NoHash"
                )


def _elsewhere(samples: Sequence[Sample]) -> list[Names] | str:
    """Return the digests of a new process with another hash seed; as a string, what went wrong there."""
    seed = "4242" if os.environ.get("PYTHONHASHSEED") != "4242" else "4243"
    environ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import main; main()"]
    try:
        ran = subprocess.run(
            program, input=msgspec.msgpack.encode(samples), capture_output=True, env=environ, cwd=samples[0].project,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it took more than {PATIENCE:g} s"
    if ran.returncode:
        return (ran.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
    return msgspec.msgpack.decode(ran.stdout, type=list[Names])


def main() -> None:
    """Run in the other process: samples from stdin, `Names` to stdout."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # what the user's modules print must not mix with the result
    samples = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[Sample])
    found = msgspec.msgpack.encode([names(sample) for sample in samples])
    with os.fdopen(stdout, "wb") as out:
        out.write(found)
