"""Check that keys are the same in another process: calls are hashed again in processes with other hash seeds.

Each of them decodes the calls, which finds what pickling changes. It also runs the cells again that make the calls,
where these are known, without any effect outside the process: that finds what each process makes anew, such as a kept
``hash()``. Runs only on request. The processes run `main`: it reads an `Order` and writes an `Answer`, both in msgpack.
"""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec

from jug_notebook import codec, system
from jug_notebook import session as sessions
from jug_notebook.codec.pickling import Get, Unpickler
from jug_notebook.errors import JugError
from jug_notebook.keys import digest, libraries
from jug_notebook.keys.objects import attributes_of
from jug_notebook.model import Address, FunctionBundle, Key, Payload, Reference, TaskTemplate
from jug_notebook.session import Session
from jug_notebook.session.differences import listed
from jug_notebook.store import Store
from jug_notebook.store.signed import function_bundle
from jug_notebook.task import TaskFunction
from jug_notebook.task.context import PendingTask

PATIENCE = 60.0  #: seconds for the other processes
UNKNOWN = "the cells that make it are not known"
PROCESSES = 3  #: with fewer, a set of two strings is too often in one order in all of them

_OF_VALUES = ("global ", "closure ", "default ", "attribute ", "argument ")  #: parts of a call that are values
_INSIDE = " in "  #: is in labels of attributes: "global model.rate in Model"


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


class Cell(msgspec.Struct, frozen=True):
    """A cell as plain Python; the last one of a list makes the calls."""

    label: str
    text: str


class Names(msgspec.Struct, frozen=True):
    """Digests of the parts of a function's calls, as one process computes them."""

    name: str
    parts: dict[str, str]
    arguments: tuple[dict[str, str], ...]  #: per call: label -> digest, or why there is none


class Order(msgspec.Struct, frozen=True):
    """What the other process has to do."""

    samples: tuple[Sample, ...]
    cells: tuple[Cell, ...]
    url: str  #: the store that has values of tasks which the cells ask for
    project: str
    aside: str  #: the only folder that it may write to
    ignored: dict[str, str]  #: attributes that don't count, by class


class Answer(msgspec.Struct, frozen=True):
    """What the other process found."""

    decoded: tuple[Names, ...]  #: of the samples, in order
    made: tuple[Names, ...] = ()  #: of the calls that the cells made there
    stopped: str = ""  #: why the cells did not run to their end


# -- in this process ---------------------------------------------------------------------------------------------------


def unstable_keys(session: Session, cells: Callable[[], tuple[Sequence[Cell], str]]) -> list[str]:
    """Compute keys of the calls that the session has kept since the last time again, in new processes.

    ``cells()`` returns the cells that make these calls, which run again there, or why they can't. Return a line for
    each argument or global with another digest there, or of which that can't be known. Takes as long as starting a
    process and running the cells, at most `PATIENCE` seconds.
    """
    kept = session.submissions.take_sample()
    if not kept:
        return []
    samples = sampled(kept, session.access.store, session.access.folder)
    made_by, unknown = cells()
    return unstable(samples, made_by, session.url_with_password(), unknown)


def sampled(pending_tasks: Mapping[Any, Sequence[PendingTask]], store: Store, project: Path) -> list[Sample]:
    """Return samples of pending tasks, given by function version, with the blobs that they need."""
    samples = []
    for version, some in pending_tasks.items():
        function = version.function
        template = msgspec.msgpack.decode(version.template, type=TaskTemplate)
        bundle = function_bundle(store, template.bundle)
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


def unstable(samples: Sequence[Sample], cells: Sequence[Cell] = (), url: str = "", unknown: str = UNKNOWN) -> list[str]:
    """Return a line for each argument or global that another process names otherwise, and for what can't be known.

    ``cells`` make the calls when they are run in this order; ``unknown`` is why they can't be, if they can't.
    """
    if not samples:
        return []
    answers = _answers(samples, cells, url)
    if isinstance(answers, str):
        if cells:
            return unstable(samples, (), url, f"running its cells again failed: {answers}")
        return [f"the check in other processes failed: {answers}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were given when the tasks were made
        here = [names(sample) for sample in samples]
    found: dict[tuple[str, str], str] = {}
    for sample, mine, other in zip(samples, here, answers[0].decoded, strict=True):
        for label in _differing(Names(sample.name, sample.parts, mine.arguments), other):
            if _INSIDE not in label:
                found.setdefault((sample.name, label), _after_pickling(sample.name, label))
    first, *others = (_by_name(answer.made) for answer in answers)
    blind = []
    for sample, mine in zip(samples, here, strict=True):
        rows = list(zip(*(made.get(sample.name, ()) for made in (first, *others)), strict=False))
        for one, *rest in rows:
            different = list(dict.fromkeys(label for another in rest for label in _differing(one, another)))
            for label in (label for label in different if _INSIDE not in label):
                inside = [inner for inner in different if inner.startswith(f"{label}.")]
                part = inside[0] if len(inside) == 1 else label
                found.setdefault((sample.name, label), _made_anew(sample.name, part))
        if not rows:
            ran = (
                next((answer.stopped for answer in answers if answer.stopped), "")
                or "its cells don't call it when they run again"
            )
            why = ran if cells else unknown
            blind += _unseen(sample, mine, why)
    return [*found.values(), *blind]


def _differing(here: Names, there: Names) -> Iterator[str]:
    """Yield the labels of values that differ between two processes: globals and the like, and arguments."""
    for label, found in here.parts.items():
        if label.startswith(_OF_VALUES) and there.parts.get(label, found) != found:
            yield label
    labels: dict[str, None] = {}
    for one, another in zip(here.arguments, there.arguments, strict=False):
        labels.update((f"argument {label}", None) for label, found in one.items() if another.get(label) != found)
    yield from labels


def _by_name(made: Iterable[Names]) -> dict[str, list[Names]]:
    found: dict[str, list[Names]] = {}
    for one in made:
        found.setdefault(one.name, []).append(one)
    return found


def _called(label: str) -> str:
    kind, _, name = label.partition(" ")
    return f"argument {name!r}" if kind == "argument" else label


def _after_pickling(function: str, label: str) -> str:
    kind, _, name = label.partition(" ")
    way = "wrap it in jn.CustomHash or jn.NoHash"
    if kind != "argument":
        way = f"leave it out: {_ignore_global(name)}"
    return (
        f"{_called(label)} of {function}() has a different digest in each process, so its tasks are never found again; "
        f"give its class __jug_hash__, or {way}"
    )


def _made_anew(function: str, label: str) -> str:
    label, _, cls = label.partition(_INSIDE)
    kind, _, name = label.partition(" ")
    if cls:
        way = f"jn.ignore_attributes({cls}, {name.partition('.')[2]!r})"
    else:
        way = f"@jn.task(ignore={[name]!r})" if kind == "argument" else _ignore_global(name)
    return (
        f"{_called(label)} of {function}() has a different value each time its cell runs, so its tasks are not found "
        f"again after a restart; make it without hash(), id(), the time, random numbers or the order of a set, or "
        f"leave it out: {way}"
    )


def _ignore_global(name: str) -> str:
    return f"@jn.task(ignore_globals={name.split()[:1]!r}), %%jugtask --ignore-global {name.split()[0]}"


def _unseen(sample: Sample, here: Names, why: str) -> list[str]:
    """Return a line about what is made anew in each process and was not, so that it can't be compared."""
    values = [label for label in sample.parts if label.startswith(_OF_VALUES)]
    values += [f"argument {label!r}" for label in dict.fromkeys(label for one in here.arguments for label in one)]
    values = [label for label in values if _INSIDE not in label]
    if not values:
        return []
    return [f"can't tell whether {listed(values)} of {sample.name}() would be made the same again: {why}"]


def _answers(samples: Sequence[Sample], cells: Sequence[Cell], url: str) -> list[Answer] | str:
    """Return what new processes with other hash seeds find; as a string, what went wrong there."""
    seed = int(samples[0].calls[0].key[:7], 16)  # others for each call, and the same whenever it is checked
    project, until = samples[0].project, time.monotonic() + PATIENCE
    with tempfile.TemporaryDirectory() as aside:
        order = msgspec.msgpack.encode(
            Order(tuple(samples), tuple(cells), url, project, aside, libraries.ignored_attributes())
        )
        path = Path(aside, "order")
        path.write_bytes(order)
        environ = {
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": aside, "MPLBACKEND": "agg",
            "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        program = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import main; main()", str(path)]
        processes = [
            subprocess.Popen(
                program, env={**environ, "PYTHONHASHSEED": str(seed + number)}, cwd=project if not cells else None,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for number in range(PROCESSES)
        ]  # fmt: skip
        try:
            outputs = [one.communicate(timeout=max(0.0, until - time.monotonic())) for one in processes]
        except subprocess.TimeoutExpired:
            return f"it took more than {PATIENCE:g} s"
        finally:
            for one in processes:
                one.kill()
                one.wait()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"exit status {process.returncode}"
    return [msgspec.msgpack.decode(out, type=Answer) for out, _ in outputs]


# -- in each process ---------------------------------------------------------------------------------------------------


class _Reader(Unpickler):
    """Decodes a call without the values of its needs: references stay references, to the first need, the second …"""

    def __init__(self, data: Any, get: Get, addresses: Sequence[Address]) -> None:
        super().__init__(data, get, None, addresses, lambda address: memoryview(bytearray(get(address))))

    def need(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        return _Stub(Reference(f"need {slot}", steps))

    def value_of(self, value: Any) -> Any:
        return value


class _Stub:
    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __jug_reference__(self) -> Reference:
        return self._reference


def names(sample: Sample) -> Names:
    """Return the digests that this process computes for a sample once it is decoded."""
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
    return Names(sample.name, parts, tuple(_labelled(function, call, blobs) for call in sample.calls))


def _labelled(function: TaskFunction, call: Call, blobs: Mapping[Address, memoryview]) -> dict[str, str]:
    found: dict[str, str] = {}
    args, kwargs = _arguments(call, blobs)
    for label, value in function._bound(args, kwargs):
        if label in function.ignore:
            continue
        found[label] = _digest(value)
        found |= _digests_inside(label, value)
    return found


def _digest(value: Any) -> str:
    try:
        return digest.digest(value).hex()
    except JugError as error:
        return str(error)


def _digests_inside(label: str, value: Any) -> dict[str, str]:
    cls = type(value).__qualname__
    return {f"{label}.{name}{_INSIDE}{cls}": _digest(what) for name, what in (attributes_of(value) or {}).items()}


def _arguments(call: Call, blobs: Mapping[Address, memoryview]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    data: Any = call.arguments.data
    addresses = call.arguments.buffers
    if not data:
        data, addresses = blobs[addresses[0]], addresses[1:]
    args, kwargs = _Reader(data, blobs.__getitem__, addresses).load()
    return args, kwargs


# -- in the other processes --------------------------------------------------------------------------------------------


def main() -> None:
    """Run in the other process: an `Order` from the file that the command names, an `Answer` to stdout."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # what the user's modules print must not mix with the result
    order = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    libraries.CACHES.update((name, f"{libraries.CACHES.get(name, '')} {more}") for name, more in order.ignored.items())
    answer = Answer(tuple(names(sample) for sample in order.samples))
    if order.cells:
        answer = _run_cells(order, answer)
    with os.fdopen(stdout, "wb") as out:
        out.write(msgspec.msgpack.encode(answer))
        out.flush()
        os._exit(0)  # no user's code runs at exit


def _run_cells(order: Order, answer: Answer) -> Answer:
    """Return the answer with what running the cells made: into a store of this process, which nobody works for."""
    project = Path(order.project)
    here = Session("memory:check", folder=project)
    with suppress(JugError, OSError):  # a store that can't be read from here has no values
        here.results = Session(order.url, folder=project, read_only=True).results

    def stay(*_: Any, **__: Any) -> Any:
        return sessions._use(here)

    ours: Any = sys.modules["jug_notebook"]
    sessions._current, sessions.connect, ours.connect = here, stay, stay
    stay()
    system.forbid_effects(order.aside, "is not allowed when check_keys runs it again", "jug_notebook.store.")
    space = sys.modules["__main__"].__dict__
    space["jn"] = ours
    stopped = ""
    for cell in order.cells:
        here.begin_cell(cell.label, False)
        here.submissions.check_keys(cell is order.cells[-1])
        try:
            exec(_compiled(cell), space)
        except BaseException as error:  # the user's code may raise anything
            stopped = f"{cell.label} stops with {_in_a_line(error)}"
        with suppress(JugError):
            here.end_cell()
        if stopped:
            break
    made = here.submissions.take_sample()
    return msgspec.structs.replace(answer, made=tuple(_made(made, here.access.store)), stopped=stopped)


def _compiled(cell: Cell) -> CodeType:
    filename = f"<{cell.label}>"
    linecache.cache[filename] = (len(cell.text), None, cell.text.splitlines(keepends=True), filename)
    return compile(cell.text, filename, "exec", dont_inherit=True)


def _in_a_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:200]


def _made(sample: Mapping[Any, Sequence[PendingTask]], store: Store) -> Iterator[Names]:
    for version, some in sample.items():
        calls = [Call(pending_task[1], pending_task[4], pending_task[3]) for pending_task in some]
        blobs = {at: store.get_blob(at) for call in calls for at in call.arguments.buffers}
        space = getattr(version.function.__jug_function__, "__globals__", {})
        parts = {name: part for name, part in version.parts.items() if not name.startswith("environment ")}
        for label in list(parts):
            kind, _, name = label.partition(" ")
            if kind == "global" and name in space:
                parts |= _digests_inside(label, space[name])
        yield Names(version.name, parts, tuple(_labelled(version.function, call, blobs) for call in calls))
