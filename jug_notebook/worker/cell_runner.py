"""Calls the function of a cell task in a worker: watches its inputs, and lets each output succeed or fail by itself.

Loaded only where such tasks run, and light: IPython comes when a cell asks for it
(`jug_notebook.worker.ipython_shell`). The function
says in its attribute ``jug_cell`` which names are outputs, and which of them were declared.
"""

from __future__ import annotations

import builtins
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import cloudpickle
from blake3 import blake3

from jug_notebook.errors import JugError

_AS_IT_IS = frozenset({type(None), bool, int, float, complex, str, bytes})


class ChangedInPlace(JugError):
    """A cell changed an input in place without saying so."""


class NoSuchOutput(JugError, LookupError):
    """A cell has no such output."""


class Outputs(dict[str, Any]):
    """The outputs of a cell some of which are absent: these fail, and say why, only when they are used."""

    def __init__(self, present: Mapping[str, Any], absent: Mapping[str, str]) -> None:
        super().__init__(present)
        self.absent = dict(absent)

    def __missing__(self, name: str) -> Any:
        raise NoSuchOutput(self.absent.get(name, f"the cell has no output {name!r}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Outputs, (dict(self), self.absent)


def get_ipython() -> Any:
    """What ``!command`` and ``%magic`` in a cell task ask for."""
    from jug_notebook.worker.ipython_shell import shell

    return shell()


def show_last(value: Any) -> None:
    """The value of a cell's last expression, as under any cell."""
    if value is not None:
        from jug_notebook.worker.ipython_shell import publish

        publish(value)


def _awaited(coroutine: Any) -> Any:
    """The result of a coroutine, in a loop of its own.

    In a kernel a loop runs in this thread already. It is set aside meanwhile: another thread would not be listened to.
    """
    import asyncio  # it costs as much to import as all the rest

    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()
        asyncio._set_running_loop(outer)


def run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The cell's outputs by name. Raises ChangedInPlace, and NoSuchOutput for a declared output that isn't there."""
    vars(builtins).setdefault("display", _display)
    outputs, declared = function.jug_cell  # type: ignore[attr-defined]
    watched = {name: fingerprint(value) for name, value in kwargs.items() if name not in outputs}
    if "jug_notebook.worker.ipython_shell" in sys.modules:
        from jug_notebook.worker.ipython_shell import work_in

        work_in(function.__globals__)
    values = function(*args, **kwargs)
    if inspect.iscoroutine(values):
        values = _awaited(values)
    for name, before in watched.items():
        if before is not None and fingerprint(kwargs[name]) != before:
            raise ChangedInPlace(
                f"cell {function.__name__!r} changed its input {name!r} in place, which no other task would see. "
                f"Declare it as an output, %%jugtask {function.__name__} -o {name}, or change a copy"
            )
    return _sorted_out(function.__name__, values, outputs, declared)


def _display(*objects: Any, **_: Any) -> None:
    """IPython's ``display`` where there is no IPython: as text, into what the task printed."""
    for thing in objects:
        print(repr(thing))


def _sorted_out(
    cell: str, values: dict[str, Any], outputs: tuple[str, ...], declared: tuple[str, ...]
) -> dict[str, Any]:
    absent = {name: why for name in outputs if (why := _why_absent(cell, name, values))}
    for name in declared:
        if name in absent:
            raise NoSuchOutput(absent[name])
    present = {name: values[name] for name in outputs if name not in absent}
    return Outputs(present, absent) if absent else present


def _why_absent(cell: str, name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        return f"cell {cell!r} ended without setting {name!r}"
    value = values[name]
    if type(value) in _AS_IT_IS:
        return ""
    if isinstance(value, ModuleType):
        return f"{name!r} of cell {cell!r} is the module {value.__name__}, and modules are imported, not stored"
    try:
        _pickle(value, _Hashing(), lambda buffer: None)
    except Exception as error:  # pickling calls methods of the user's classes, which may raise anything
        return f"{name!r} of cell {cell!r} can't be stored: {type(value).__name__}: {' '.join(str(error).split())}"
    return ""


def fingerprint(value: Any) -> bytes | None:
    """Equal as long as the value isn't changed; only within this process. None where that is unknown."""
    if type(value) in _AS_IT_IS:
        return b""
    sink = _Hashing()
    try:
        _pickle(value, sink, sink.buffer)
    except Exception:  # pickling calls methods of the user's classes; what can't be watched isn't
        return None
    return sink.hash.digest()


def _pickle(value: Any, sink: Any, buffer: Callable[[pickle.PickleBuffer], Any]) -> None:
    cloudpickle.Pickler(sink, protocol=5, buffer_callback=buffer).dump(value)


class _Hashing:
    """A file that keeps a hash of what is written, and of the buffers beside it."""

    def __init__(self) -> None:
        self.hash = blake3()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)

    def buffer(self, buffer: pickle.PickleBuffer) -> None:
        raw = buffer.raw()
        self.hash.update(b"%d:" % raw.nbytes)
        self.hash.update(raw)
