"""Python values as bytes, and back: results, arguments, functions, exceptions.

Pickle 5, with large buffers in blobs of their own; `pickling` says how things travel that a worker can't import.
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
from jug_notebook.codec.pickling import INLINE, Get, Needs, Put, Shared, Unpickler, bundled, stream
from jug_notebook.errors import JugError, StoreError, Unstorable, ValueLost
from jug_notebook.keys import callables, modules, syntax
from jug_notebook.keys import digest as canon
from jug_notebook.keys.code import Code
from jug_notebook.model import Address, FunctionBundle, Key, Payload, decoder
from jug_notebook.render.format import advice, summarise

LARGEST_EXCEPTION = 1 << 20
_REMEMBERED = 16  #: number of buffers that `put_once` keeps

_PLAIN = "pickle"  #: any unpickler can read it
_BOUND = "pickle+"  #: refers to needs or to classes by identity
_SCALARS = frozenset({int, float, bool, str, bytes, complex, type(None)})
_dumps = pickle.dumps


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


def _loaded(payload: Payload, get: Get, buffer: Get | None, values: Needs | None = None) -> Any:
    data, addresses = _stream_of(payload, get)
    if payload.format == _PLAIN:
        return pickle.loads(data, buffers=map(buffer or writable(get), addresses))
    if payload.format != _BOUND:
        raise StoreError(
            f"a value is stored as {payload.format!r}, which this version of jug_notebook doesn't read. Update it here."
        )
    return Unpickler(data, get, values, addresses, buffer or writable(get)).load()


def _stream_of(payload: Payload, get: Get) -> tuple[Any, tuple[Address, ...]]:
    """Return a payload's stream, which may be a blob, and the addresses of the others."""
    if not payload.data and not payload.buffers:
        raise ValueLost("the stored value is empty, so it can't be loaded")
    return (payload.data, payload.buffers) if payload.data else (get(payload.buffers[0]), payload.buffers[1:])


def writable(get: Get) -> Get:
    """Return a ``get`` whose buffers may be written to: a read-only one is copied."""

    def got(address: Address) -> memoryview:
        view = get(address)
        return system.copied(view) if view.readonly else view

    return got


# -- calls and values --------------------------------------------------------------------------------------------------


def dump_call(args: tuple[Any, ...], kwargs: dict[str, Any], needs: Sequence[Key], put: Put) -> Payload:
    """Return a call's arguments as bytes. References to tasks become indexes in ``needs``. Raises Unstorable."""
    if not needs:
        for value in args:
            if type(value) not in _SCALARS:
                break
        else:
            if not kwargs or _SCALARS.issuperset(map(type, kwargs.values())):
                data = _dumps((args, kwargs), 5)
                if len(data) <= INLINE:
                    return Payload(_PLAIN, data)
    return _encoded((args, kwargs), put, "argument", {key: slot for slot, key in enumerate(needs)})[0]


def share(value: Any, put: Put) -> Any:
    """Store a large argument that many calls share, and return a stand-in for it in each call.

    A small argument is returned itself; so is one that can't be stored, about which the call will complain.
    """
    if type(value) in _SCALARS and not isinstance(value, str | bytes):
        return value
    try:
        payload, _ = _encoded(value, put, "argument", {})
    except JugError:
        return value
    return Shared(payload.format, payload.data, payload.buffers) if payload.buffers else value


def put_once(put: Put) -> Put:
    """Return a ``put`` that stores each buffer once: for arguments that do not change meanwhile."""
    known: dict[tuple[int, int], tuple[Any, Address]] = {}

    def put_new(parts: Iterable[bytes | memoryview]) -> Address:
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

    return put_new


def load_call(
    payload: Payload, values: Needs | None, get: Get, buffer: Get | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call. ``values`` are those of its needs, each loaded when it is first met.

    For ``buffer`` see `load_value`.
    """
    args, kwargs = _loaded(payload, get, buffer, values)
    return args, kwargs


def inspect_call(
    payload: Payload, stand_in: Callable[[int, tuple[tuple[str, Any], ...]], Any], get: Get
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with ``stand_in(slot, steps)`` in place of the value of each need."""
    data, addresses = _stream_of(payload, get)
    inspector = Unpickler(data, get, None, addresses, get)
    inspector.need = stand_in  # type: ignore[method-assign, assignment]
    inspector.value_of = lambda value: value  # type: ignore[method-assign]
    args, kwargs = inspector.load()
    return args, kwargs


def dump_value(value: Any, put: Put) -> tuple[Payload, bytes]:
    """Return a value as bytes, and its digest: ``c`` and the canonical digest, or ``p`` and that of its pickle."""
    if type(value) in _SCALARS:
        data = _dumps(value, 5)
        if len(data) <= INLINE:
            return Payload(_PLAIN, data), b"c" + canon.digest(value)
    payload, hashed = _encoded(value, put, "result")
    try:
        return payload, b"c" + canon.digest(value, "result", hashed)
    except Exception:  # it can't be hashed, or a library's type raises anything: the value must not be lost for that
        whole = msgspec.msgpack.encode(payload)
        return payload, b"p" + blake3(whole).digest(canon.SIZE)


def pack(value: Any, what: str) -> bytes:
    """Return a value as bytes, its large buffers among them. Raises Unstorable, which calls it ``what``."""
    parts: list[bytes] = []

    def put(pieces: Iterable[bytes | memoryview]) -> Address:
        parts.append(b"".join(pieces))
        return f"{len(parts) - 1:040x}"

    payload, _ = _encoded(value, put, what)
    return msgspec.msgpack.encode((payload, parts))


def unpack(data: bytes | memoryview) -> Any:
    """Return the value of `pack`."""
    payload, parts = _packed(data)
    return load_value(payload, lambda address: memoryview(parts[int(address, 16)]))


_packed = decoder(tuple[Payload, list[bytes]], "a checkpoint")


def load_value(payload: Payload, get: Get, buffer: Get | None = None) -> Any:
    """Return the value. ``buffer`` loads the memory of large arrays: by default memory of their own, to write to."""
    if payload.format == _PLAIN and payload.data and not payload.buffers:
        return pickle.loads(payload.data)
    return _loaded(payload, get, buffer)


# -- functions ---------------------------------------------------------------------------------------------------------


def dump_function(
    function: Callable[..., Any], code: Code, put: Put, label_of: Callable[[str], str | None] | None = None
) -> FunctionBundle:
    """Return a function by value, with its project's modules and the source of the cells that it comes from.

    ``label_of`` maps the file name of a cell's code to the label that people see: "Cell In[3]". Raises Unstorable.
    """
    function = callables.plain(function)
    name = getattr(function, "__name__", type(function).__name__)
    try:
        data, pickler = stream(function, put, whole=True)
    except JugError:
        raise
    except Exception as error:  # pickling runs the user's own __reduce__ and __getstate__
        raise _unstorable(function, f"function {name}", error, None) from error
    carried = {root: put([bundled(root)]) for root in sorted(code.modules)}
    sources = {file: text for file in pickler.files if not syntax.of_library(file) and (text := syntax.text_of(file))}
    labels = {file: label for file in pickler.files if label_of is not None and (label := label_of(file))}
    return FunctionBundle(
        data, carried, sources, dict(code.parts), labels, dict(code.texts), _signature(function),
        dict(code.environment), code.secrets, tuple(pickler.addresses), dict(code.pins),
    )  # fmt: skip


def _signature(function: Callable[..., Any]) -> tuple[tuple[str, int, bool], ...]:
    try:
        parameters = callables.signature(function).parameters.values()
    except (ValueError, TypeError):  # many builtins have none
        return ()
    return tuple((one.name, int(one.kind), one.default is not one.empty) for one in parameters)


def load_function(
    bundle: FunctionBundle, get: Get, exact: bool = False, buffer: Get | None = None
) -> Callable[..., Any]:
    """Return the function, with its modules installed and its sources where tracebacks look for them.

    ``exact`` for one that `needs_exact`: classes built here before get its docstrings and its order of attributes. For
    ``buffer`` see `load_value`.
    """
    modules.install(
        {
            root: (address, {} if modules.known(address) else msgspec.msgpack.decode(get(address)))
            for root, address in bundle.modules.items()
        }
    )
    for file, text in bundle.sources.items():
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    unpickler = Unpickler(bundle.function, get, None, bundle.buffers, buffer or writable(get), exact)
    function: Callable[..., Any] = unpickler.load()
    return function


def inspect_function(bundle: FunctionBundle, get: Get) -> Callable[..., Any]:
    """Return the function to look at its values, not to call it: modules of the project are those of this process."""
    function: Callable[..., Any] = Unpickler(bundle.function, get).load()
    return function


def needs_exact(bundle: FunctionBundle) -> bool:
    """Return whether the function reads docstrings, names or the like of others: then what it loads is its alone."""
    return any(syntax.INSPECTED.keys() >= set(label.split(" and ")) for label in bundle.parts)


def use_modules(bundle: FunctionBundle) -> None:
    """Make imports find the modules that the function came with; for use before each call."""
    if bundle.modules:
        modules.use(bundle.modules)


# -- exceptions --------------------------------------------------------------------------------------------------------


def dump_exception(exception: BaseException) -> bytes:
    """Return an exception as bytes, empty where it can't be pickled and unpickled."""
    try:
        data, _ = stream(exception, None)
        if len(data) > LARGEST_EXCEPTION or type(Unpickler(data, None).load()) is not type(exception):
            return b""
    except Exception:  # pickling runs the user's own code; the failure is reported as text anyway
        return b""
    return data


def load_exception(data: bytes) -> BaseException | None:
    """Return the exception, or None where it can't be unpickled here."""
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
        return Unstorable(f"{where} is a task; pass it to the function as an argument, which then gets its value.")
    article = "an" if kind[0] in "aeiouAEIOU" else "a"
    why = f" ({error})" if str(error) and kind not in str(error) else ""
    return Unstorable(f"{where} is {article} {kind}, which can't be stored{why}; {advice(culprit)}.")


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, each with the path to it."""
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
        yield from _children_of_function(value)
    elif isinstance(value, types.MethodType):
        yield f", the object of {value.__name__}()", value.__self__
    elif isinstance(value, type):
        for name, item in list(vars(value).items()):
            if not name.startswith("__"):
                yield f".{name}", item
    elif not isinstance(value, types.ModuleType):
        yield from _children_of_instance(value)


def _children_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name in callables.global_names(function.__code__):
        if name in function.__globals__:
            yield f", global {name!r}", function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if cell != types.CellType():
            yield f", closure {name!r}", cell.cell_contents
    for number, item in enumerate(function.__defaults__ or ()):
        yield f", default {number}", item


def _children_of_instance(value: Any) -> Iterator[tuple[str, Any]]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        for name, item in list(attributes.items()):
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
    """Return the path to the innermost part of ``value`` that pickle refuses, and that part."""
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
