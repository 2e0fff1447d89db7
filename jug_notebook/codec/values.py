"""Values, calls and functions <-> bytes, and the seal that tells whose bytes they are.

Pickle 5, with large buffers in blobs of their own. Classes that a worker can't import travel by *identity*: who loads
an instance takes the live class of the same digest, else one built here before, and only else builds it from the blob.
Task functions travel as their plain function.
"""

from __future__ import annotations

import linecache
import pickle
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from blake3 import blake3

from jug_notebook import system
from jug_notebook.codec.pickling import (
    INLINE,
    Get,
    Needs,
    Put,
    Shared,
    Unpickler,
    bundled,
    meeting,
    restore,
    stream,
)
from jug_notebook.errors import JugError, StoreError, Unstorable
from jug_notebook.keys import callables, modules, syntax
from jug_notebook.keys import digest as canon
from jug_notebook.keys.code import Code
from jug_notebook.model import Address, FunctionBundle, Key, Payload
from jug_notebook.render.values import advice, describe_arguments, summarise

__all__ = [
    "INLINE",
    "Get",
    "Needs",
    "Put",
    "describe_arguments",
    "dump_call",
    "dump_exception",
    "dump_function",
    "dump_value",
    "load_call",
    "load_exception",
    "load_function",
    "load_value",
    "look_at_call",
    "looks",
    "meeting",
    "once",
    "own",
    "restore",
    "share",
    "summarise",
    "use_modules",
]

LARGEST_EXCEPTION = 1 << 20
_REMEMBERED = 16  #: so many buffers are kept, to know them again

_PLAIN = "pickle"  #: any unpickler reads it
_BOUND = "pickle+"  #: refers to needs or to classes by identity
_SCALARS = frozenset({int, float, bool, str, bytes, complex, type(None)})
_dumps = pickle.dumps


# -- the seal ----------------------------------------------------------------------------------------------------------


def _payload(value: Any, put: Put, path: str, slots: Mapping[Key, int] | None = None) -> Payload:
    return _encoded(value, put, path, slots)[0]


def _encoded(value: Any, put: Put, path: str, slots: Mapping[Key, int] | None = None) -> tuple[Payload, canon.Hashed]:
    try:
        data, pickler = stream(value, put, slots)
    except JugError:
        raise
    except Exception as error:  # pickling runs the user's own __reduce__ and __getstate__
        raise _unstorable(value, path, error, slots) from error
    form = _BOUND if pickler.bound else _PLAIN
    if len(data) > INLINE:
        return Payload(form, b"", (put([data]), *pickler.addresses, *pickler.blobs)), pickler.hashed
    return Payload(form, data, (*pickler.addresses, *pickler.blobs)), pickler.hashed


def _load(payload: Payload, get: Get, buffer: Get | None, values: Needs | None = None) -> Any:
    data: Any = payload.data
    addresses = payload.buffers
    if not data:
        data, addresses = get(addresses[0]), addresses[1:]
    if payload.format == _PLAIN:
        return pickle.loads(data, buffers=map(buffer or own(get), addresses))
    if payload.format != _BOUND:
        raise StoreError(
            f"a value is stored as {payload.format!r}, which this version of jug_notebook doesn't read. Update it here."
        )
    return Unpickler(data, get, values, addresses, buffer or own(get)).load()


def own(get: Get) -> Get:
    """A buffer that the value it becomes may write to: as ``get`` gives it, or a copy where that is read-only."""

    def got(address: Address) -> memoryview:
        view = get(address)
        return system.copied(view) if view.readonly else view

    return got


# -- calls and values --------------------------------------------------------------------------------------------------


def dump_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], needs: Sequence[Key], put: Put, path: str = "argument"
) -> Payload:
    """A call's arguments. Where they refer to other tasks, the number of the need in ``needs`` stands for its value."""
    if not needs:
        for value in args:
            if type(value) not in _SCALARS:
                break
        else:
            if not kwargs or _SCALARS.issuperset(map(type, kwargs.values())):
                data = _dumps((args, kwargs), 5)
                if len(data) <= INLINE:
                    return Payload(_PLAIN, data)
    return _payload((args, kwargs), put, path, {key: slot for slot, key in enumerate(needs)})


def share(value: Any, put: Put) -> Any:
    """Store a large argument for many calls: what is answered stands for it in each. A small one is answered itself.

    One that can't be stored alone, such as one with tasks in it, is answered itself too: the call will say so.
    """
    if type(value) in _SCALARS and not isinstance(value, str | bytes):
        return value
    try:
        payload = _payload(value, put, "argument", {})
    except JugError:
        return value
    return Shared(payload.format, payload.data, payload.buffers) if payload.buffers else value


def once(put: Put) -> Put:
    """``put`` that takes each buffer once: for arguments that nobody can change meanwhile."""
    known: dict[tuple[int, int], tuple[Any, Address]] = {}

    def put_once(parts: Iterable[bytes | memoryview]) -> Address:
        chunks = list(parts)
        if len(chunks) != 1 or not isinstance(chunks[0], memoryview):
            return put(chunks)
        view = chunks[0]
        name = id(view.obj), view.nbytes
        if name not in known:
            if len(known) >= _REMEMBERED:
                known.clear()
            known[name] = view.obj, put(chunks)
        return known[name][1]

    return put_once


def load_call(
    payload: Payload, values: Needs | None, get: Get, buffer: Get | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call; ``values`` are those of its needs, each asked for when it is met.

    For ``buffer`` see `load_value`.
    """
    args, kwargs = _load(payload, get, buffer, values)
    return args, kwargs


class _Looker(Unpickler):
    """Where a call refers to another task, puts what stands for it there."""

    def need(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        return self._stand_in(slot, steps)

    def value_of(self, value: Any) -> Any:
        return value

    _stand_in: Callable[[int, tuple[tuple[str, Any], ...]], Any]


def look_at_call(
    payload: Payload, stand_in: Callable[[int, tuple[tuple[str, Any], ...]], Any], get: Get
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call to look at: ``stand_in(slot, steps)`` is put where the value of a need would be."""
    data: Any = payload.data
    addresses = payload.buffers
    if not data:
        data, addresses = get(addresses[0]), addresses[1:]
    looker = _Looker(data, get, None, addresses, get)
    looker._stand_in = stand_in
    args, kwargs = looker.load()
    return args, kwargs


def dump_value(value: Any, put: Put) -> tuple[Payload, bytes]:
    """A value and the digest that names it: ``c`` and its canonical digest, or ``p`` and that of its bytes."""
    if type(value) in _SCALARS:
        data = _dumps(value, 5)
        if len(data) <= INLINE:
            return Payload(_PLAIN, data), b"c" + canon.digest(value)
    payload, hashed = _encoded(value, put, "result")
    try:
        return payload, b"c" + canon.digest(value, "result", hashed)
    except Exception:  # it can't be named, or a library's own type raises what it likes: it must not be lost for that
        whole = msgspec.msgpack.encode(payload)
        return payload, b"p" + blake3(whole).digest(canon.SIZE)


def load_value(payload: Payload, get: Get, buffer: Get | None = None) -> Any:
    """The value again. ``buffer`` gives what large arrays stand on: by default memory of their own, to write to."""
    if payload.format == _PLAIN and not payload.buffers:
        return pickle.loads(payload.data)
    return _load(payload, get, buffer)


# -- functions ---------------------------------------------------------------------------------------------------------


def dump_function(
    function: Callable[..., Any], code: Code, put: Put, label_of: Callable[[str], str | None] | None = None
) -> FunctionBundle:
    """A function as it travels: by value, with its project's modules as text and the text of the cells it is from.

    ``label_of`` tells what people should read for the file name of a cell's code: "Cell In[3]".
    """
    function = callables.plain(function)
    name = getattr(function, "__name__", "the function")
    try:
        data, pickler = stream(function, None)
    except JugError:
        raise
    except Exception as error:  # pickling runs the user's own __reduce__ and __getstate__
        raise _unstorable(function, f"function {name}", error, None) from error
    carried = {root: put([bundled(root)]) for root in sorted(code.modules)}
    sources = {file: text for file in pickler.files if not syntax.of_library(file) and (text := syntax.text_of(file))}
    shown = {file: label for file in pickler.files if label_of is not None and (label := label_of(file))}
    return FunctionBundle(data, carried, sources, dict(code.parts), shown, dict(code.texts), _signature(function))


def _signature(function: Callable[..., Any]) -> tuple[tuple[str, int, bool], ...]:
    import inspect  # it takes long to import, and a worker has no use for it

    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # many builtins have none
        return ()
    return tuple((one.name, int(one.kind), one.default is not one.empty) for one in parameters)


def load_function(bundle: FunctionBundle, get: Get, exact: bool = False) -> Callable[..., Any]:
    """The function again, with the modules it came with in use and its sources where tracebacks look for them.

    ``exact`` for one that `looks`: classes that were built here before get its docstrings and its order of attributes.
    """
    modules.install(
        {
            root: (address, {} if modules.known(address) else msgspec.msgpack.decode(get(address)))
            for root, address in bundle.modules.items()
        }
    )
    for file, text in bundle.sources.items():
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    function: Callable[..., Any] = Unpickler(bundle.function, get, exact=exact).load()
    return function


def looks(bundle: FunctionBundle) -> bool:
    """Does the function look at more of others than what they do? Then what it loads with holds for it alone."""
    return any(syntax.INSPECTED.keys() >= set(label.split(" and ")) for label in bundle.parts)


def use_modules(bundle: FunctionBundle) -> None:
    """Before each call of a loaded function: its imports mean the versions that it came with."""
    if bundle.modules:
        modules.use(bundle.modules)


# -- exceptions --------------------------------------------------------------------------------------------------------


def dump_exception(exception: BaseException) -> bytes:
    """An exception, if it can be pickled and unpickled; else nothing."""
    try:
        data, _ = stream(exception, None)
        if len(data) > LARGEST_EXCEPTION or type(Unpickler(data, None).load()) is not type(exception):
            return b""
    except Exception:  # pickling runs the user's own code; the failure is told in text anyway
        return b""
    return data


def load_exception(data: bytes) -> BaseException | None:
    """The exception, or None where it can't be had here."""
    if not data:
        return None
    try:
        exception = Unpickler(data, None).load()
    except Exception:  # its class may not be importable here, or its constructor may refuse
        return None
    return exception if isinstance(exception, BaseException) else None


# -- what can't be pickled ---------------------------------------------------------------------------------------------


def _unstorable(value: Any, path: str, error: Exception, slots: Mapping[Key, int] | None) -> Unstorable:
    where, culprit = _culprit(value, path, slots)
    kind = type(culprit).__name__
    if isinstance(error, RecursionError) or "recursion" in str(error):
        return Unstorable(f"{where} is nested too deeply to be stored; make it flatter, such as a list of rows.")
    if isinstance(culprit, types.ModuleType):
        kind = f"module {culprit.__name__!r}"
    if hasattr(type(culprit), "__jug_reference__"):
        return Unstorable(f"{where} is a task; hand it to the function as an argument, then it gets the value.")
    article = "an" if kind[0] in "aeiouAEIOU" else "a"
    why = f" ({error})" if str(error) and kind not in str(error) else ""
    return Unstorable(f"{where} is {article} {kind}, which can't be stored{why}; {advice(culprit)}.")


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value and how to reach them."""
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"[{_short(key)}]", item
            yield " key", key
    elif isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        for number, item in enumerate(value):
            yield (f".{names[number]}" if names else f"[{number}]"), item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield "{…}", item
    elif isinstance(value, types.FunctionType):
        for name in callables.global_names(value.__code__):
            if name in value.__globals__:
                yield f", global {name!r}", value.__globals__[name]
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            if cell != types.CellType():
                yield f", closure {name!r}", cell.cell_contents
        for number, item in enumerate(value.__defaults__ or ()):
            yield f", default {number}", item
    elif isinstance(value, types.MethodType):
        yield f", the object of {value.__name__}()", value.__self__
    elif isinstance(value, type):
        for name, item in list(vars(value).items()):
            if not name.startswith("__"):
                yield f".{name}", item
    elif not isinstance(value, types.ModuleType):
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            for name, item in list(held.items()):
                yield f".{name}", item
        for base in type(value).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in [slots] if isinstance(slots, str) else list(slots):
                if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                    yield f".{name}", getattr(value, name)


def _short(key: Any) -> str:
    text = summarise(key) if type(key) not in (str, int, float, bool) else repr(key)
    return text if len(text) <= 40 else text[:39] + "…"


def _culprit(value: Any, path: str, slots: Mapping[Key, int] | None) -> tuple[str, Any]:
    """The innermost part of ``value`` that pickle refuses, and the way to it."""
    if path == "argument" and type(value) is tuple and len(value) == 2:
        args, kwargs = value
        parts = [(f"argument {number}", item) for number, item in enumerate(args, 1)]
        parts += [(f"argument {name!r}", item) for name, item in kwargs.items()]
        for where, part in parts:
            if _refused(part, slots):
                return _culprit(part, where, slots)
        return path, value
    seen = set()
    for _ in range(100):
        seen.add(id(value))
        try:
            parts = list(_children(value))
        except Exception:  # looking at the user's objects runs their code
            break
        for step, part in parts:
            if type(part) not in _SCALARS and id(part) not in seen and _refused(part, slots):
                path, value = path + step, part
                break
        else:
            break
    return path, value


def _refused(value: Any, slots: Mapping[Key, int] | None) -> bool:
    try:
        stream(value, _nowhere, slots)
    except Exception:  # any failure means: not this one
        return True
    return False


def _nowhere(chunks: Iterable[bytes | memoryview]) -> Address:
    return ""
