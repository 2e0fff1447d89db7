"""How things are pickled that a worker can't import, and how classes keep their identity on the way.

A class that travels is identified by (module, qualname, digest). An instance is loaded with the live class of that
digest, else one built here before, else one built from the blob with its definition. A task function travels as its
plain function.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import importlib
import io
import pickle
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import cloudpickle
import msgspec
from cloudpickle import cloudpickle as pickling

from jug_notebook.errors import JugError
from jug_notebook.keys import callables, modules, syntax
from jug_notebook.keys import code as coding
from jug_notebook.keys.digest import Hashed
from jug_notebook.keys.libraries import lazy_names, shared_name, without
from jug_notebook.keys.register import instance_dict
from jug_notebook.model import UNLOADED, Address, Key

INLINE = 64 * 1024  #: larger parts go to blobs of their own

Put: TypeAlias = Callable[[Iterable["bytes | memoryview"]], Address]
Get: TypeAlias = Callable[[Address], memoryview]
Slots: TypeAlias = Mapping[Key, int] | None

# -- classes by identity ----------------------------------------------------------------------------------------------

ClassName: TypeAlias = tuple[str, str, str]  #: module, qualname, digest


class _ClassRegistry:
    """The travelling classes of this process, by name."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_name: dict[ClassName, weakref.ref[type]] = {}
        self._digests: weakref.WeakKeyDictionary[type, set[str]] = weakref.WeakKeyDictionary()
        self._kept: dict[ClassName, type] = {}  #: built classes live as long as the process, for later tasks

    def name(self, cls: type) -> ClassName:
        """Return a travelling class's name. One that was built here keeps the name it came with."""
        digest = coding.class_digest(cls)
        name = (cls.__module__, cls.__qualname__, digest)
        with self._lock:
            self._by_name[name] = weakref.ref(cls)
            self._digests.setdefault(cls, set()).add(digest)
        return name

    def find(self, name: ClassName) -> type | None:
        """Return the class of that name: the live one if it is the same, else one met or built before, else None."""
        module, qualname, digest = name
        live: Any = sys.modules.get(module)
        for step in qualname.split("."):
            live = getattr(live, "__dict__", {}).get(step)
        if isinstance(live, type) and self._is(live, digest):
            return live
        held = self._by_name.get(name)
        return held() if held is not None else None

    def _is(self, live: type, digest: str) -> bool:
        known = self._digests.get(live)
        if known is not None and digest in known:
            return True
        try:
            found = coding.class_digest(live)
        except JugError:  # the live class holds something that can't be hashed: then it isn't the same
            return False
        with self._lock:
            self._digests.setdefault(live, set()).add(found)
        return found == digest

    def built(self, name: ClassName) -> type | None:
        """Return the class of that name if it was built here."""
        return self._kept.get(name)

    def add(self, name: ClassName, cls: type) -> None:
        """Register a class that was built here."""
        with self._lock:
            self._by_name[name] = weakref.ref(cls)
            self._digests.setdefault(cls, set()).add(name[2])
            self._kept[name] = cls
        coding.adopt_class(cls, name[2])


_registry = _ClassRegistry()


# -- pickling ----------------------------------------------------------------------------------------------------------


class Forbidden(pickle.PicklingError):
    """Something that pickle would accept, but that makes no sense in another process."""


# Names in the stream, which the unpickler replaces by methods of its own.


def _only_here(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise pickle.UnpicklingError(f"{name} can only be loaded by this codec")

    refuse.__name__ = refuse.__qualname__ = name
    return refuse


_class, _carried, _skeleton, _fill = map(_only_here, ("_class", "_carried", "_skeleton", "_fill"))
_need, _part, _value = map(_only_here, ("_need", "_part", "_value"))


class _Made(NamedTuple):
    """A pickled object in place of itself: what ``__reduce_ex__`` returned."""

    maker: Callable[..., Any]
    arguments: tuple[Any, ...]
    rest: tuple[Any, ...]


def _new(cls: type, *arguments: Any) -> Any:
    return cls.__new__(cls, *arguments)


def _new_ex(cls: type, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return cls.__new__(cls, *arguments, **named)


#: pickle accepts these only for an object of that very class
_MAKERS = {getattr(copyreg, "__newobj__"): _new, getattr(copyreg, "__newobj_ex__"): _new_ex}  # noqa: B009


class Shared(NamedTuple):
    """Stands for an argument that was stored before, for many calls."""

    format: str
    data: bytes
    buffers: tuple[Address, ...]


def _set_function(function: types.FunctionType, state: tuple[Any, bytes]) -> None:
    """Set a function's state and the digest of its form, since its source may not be here."""
    pickling._function_setstate(function, state[0])
    if state[1]:
        syntax.adopt(function.__code__, state[1])


_IN_MEMORY = frozenset({io.BytesIO, io.StringIO})


class _LargeBuffers:
    """Stores the large buffers of one pickle apart from its stream. It doesn't know the pickler, which holds it."""

    def __init__(self, put: Put) -> None:
        self.addresses: list[Address] = []
        self.hashed: Hashed = {}
        self._put = put

    def add(self, buffer: pickle.PickleBuffer) -> bool:
        """Store a large buffer; return True for one that stays in the stream."""
        with buffer.raw() as raw:
            if raw.nbytes <= INLINE:
                return True
            address = self._put([raw])
            self.addresses.append(address)
            self.hashed[id(raw.obj)] = (raw.obj, raw.nbytes, bytes.fromhex(address))
        return False


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what a worker can't import. If ``put`` is None, everything goes into the one stream.

    If it is to be ``whole``, all but large buffers does. ``slots`` maps a call's needs to their indexes; None: no call.

    A pickler, and an unpickler, must not be reachable from what it holds: it remembers every object that it met, and a
    large value would live until the next cyclic collection.
    """

    def __init__(self, file: io.BytesIO, put: Put | None, slots: Slots = None, whole: bool = False) -> None:
        large = None if put is None else _LargeBuffers(put)
        self.addresses: list[Address] = [] if large is None else large.addresses
        self.hashed: Hashed = {} if large is None else large.hashed
        self.blobs: list[Address] = []  #: of classes; they come after the buffers, which pickle counts
        self.bound = False
        self.files: dict[str, None] = {}
        self._put = None if whole else put
        self._slots = slots
        super().__init__(file, protocol=5, buffer_callback=None if large is None else large.add)

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if issubclass(kind, type):
            return self._class(value)
        if kind is types.FunctionType:
            if callables.dispatches(value):  # what it remembers for speed can't be pickled
                return _dispatcher, (value.__wrapped__, dict(value.registry))
            return self._of_project(value) or super().reducer_override(value)
        if kind is types.CodeType:
            return _code(value)
        if kind is Shared:
            self.bound = True
            self.blobs += [address for address in value.buffers if address not in self.blobs]
            return _part, tuple(value)
        if kind is callables.CACHED and callables.travels(value):
            beside = {name: what for name, what in vars(value).items() if name != "cache_parameters"}
            return _cached, (value.__wrapped__, *value.cache_parameters().values()), beside
        if kind is typing.NewType and callables.travels(value):
            return _new_type, (value.__module__, value.__qualname__, value.__supertype__)
        if kind is functools.cached_property:  # has a lock, before Python 3.12
            return _cached_property, (value.func, value.attrname)
        if issubclass(kind, types.ModuleType):
            lazy = kind is not types.ModuleType  # one of its own kind, which pickle would take apart
            return self._of_project(value) or ((importlib.import_module, (value.__name__,)) if lazy else NotImplemented)
        if hasattr(kind, "__jug_reference__"):
            return self._reference(value)
        if kind is _Made:
            return value.maker, value.arguments, *value.rest
        if hasattr(kind, "__jug_value__") and self._slots is not None:
            return self._own_value(value)
        function = callables.plain(value)
        if function is not value:
            # the same object each time, so that the memo knows it
            return _plain_calls, (function,)
        if isinstance(value, io.IOBase) and kind not in _IN_MEMORY and value not in (sys.stdout, sys.stderr):
            raise Forbidden(f"cannot pickle an open file ({kind.__name__})")
        if callables.is_ufunc(kind) and callables.ufunc_name(value) is None:
            (_, function), *numbers = callables.ufunc_fields(value)
            return _ufunc, (function, *(number for _, number in numbers))
        if kind.__name__ in ("Random", "RandomState") and (shared := shared_name(value)) is not None:
            return _shared, shared  # by name, as in keys
        return _uncached(kind, value)

    def _reference(self, value: Any) -> Any:
        reference = value.__jug_reference__()
        slot = self._slots.get(reference.key) if self._slots is not None else None
        if slot is None:
            raise Forbidden("cannot pickle a task here; pass it to the function as an argument")
        self.bound = True
        return _need, (slot, reference.steps)

    def _own_value(self, value: Any) -> Any:
        """Reduce an argument whose ``__jug_value__`` gives what the function gets, once its tasks have values."""
        reduced = value.__reduce_ex__(5)
        if isinstance(reduced, str):
            raise Forbidden("its __jug_value__ can't be called in a worker: it is pickled by name")
        maker, arguments, *rest = reduced
        self.bound = True
        return _value, (_Made(_MAKERS.get(maker, maker), arguments, tuple(rest)),)

    def _class(self, cls: type) -> Any:
        if cls.__module__ == "builtins" or pickling._should_pickle_by_reference(cls):
            return self._of_project(cls) or super().reducer_override(cls)
        self.bound = True
        name = _registry.name(cls)
        if self._put is not None:
            return _class, (*name, self._blob(definition(cls, name)))
        maker, arguments, state, _, _, setter = pickling._dynamic_class_reduce(cls)
        # cloudpickle's own tracker is a random number of this process; our name says more
        arguments = (*arguments[:-2], None, arguments[-1])
        if issubclass(cls, enum.Enum):  # with its aliases
            every = cls.__members__
            arguments = (*arguments[:3], {n: member.value for n, member in every.items()}, *arguments[4:])
            state = ({n: what for n, what in state[0].items() if n not in every}, state[1])
        elif "__slots__" in cls.__dict__:  # given when a class is made, or never
            meta, title, bases, extra, tracker, last = arguments
            if issubclass(cls, tuple):  # typing.NamedTuple would make the fields anew
                bases = cls.__bases__
            arguments = (meta, title, bases, {**extra, "__slots__": cls.__dict__["__slots__"]}, tracker, last)
            content = {n: what for n, what in state[0].items() if type(what) is not types.MemberDescriptorType}
            state = (content, state[1])
        state = (_as_written(cls, state[0]), state[1])
        return _skeleton, (*name, maker, arguments), (state, setter, _members(cls)), None, None, _fill

    def _of_project(self, value: Any) -> Any:
        """Reduce a project module, or a class or function of one, with the module for workers that have none."""
        whole = isinstance(value, types.ModuleType)
        home = value.__name__ if whole else value.__module__
        if self._put is None or not home or not modules.of_project(home, coding.home()):
            return None
        if not whole and callables.travels(value):
            return None
        self.bound = True
        roots = modules.closed_over([modules.root_of(home)], coding.home())
        carried = tuple((root, self._blob(bundled(root))) for root in sorted(roots))
        return _carried, (carried, home, "" if whole else value.__qualname__)

    def _blob(self, data: bytes) -> Address:
        assert self._put is not None
        address = self._put([data])
        if address not in self.blobs:
            self.blobs.append(address)
        return address

    def _dynamic_function_reduce(self, function: types.FunctionType) -> Any:
        """Do as cloudpickle does, with exactly the global names that the key covers."""
        code, space = function.__code__, function.__globals__
        self.files[code.co_filename] = None
        arguments = self._function_getnewargs(function)
        state, slots = pickling._function_getstate(callables.with_annotations(function))
        slots["__globals__"] = {name: space[name] for name in callables.global_names(code) if name in space}
        own = callables.form_of(function)
        return pickling._make_function, arguments, ((state, slots), own), None, None, _set_function


def _shared(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _uncached(kind: type, value: Any) -> Any:
    """Reduce an object without its cached properties: the key doesn't cover their values."""
    cached = lazy_names(kind)
    if not cached or cached.isdisjoint(instance_dict(value)):
        return NotImplemented
    reduced = value.__reduce_ex__(5)
    if isinstance(reduced, str) or len(reduced) < 3:
        return NotImplemented
    maker, arguments, state, *rest = reduced
    slots = state[1:] if type(state) is tuple and len(state) == 2 else ()
    kept = state[0] if slots else state
    if type(kept) is not dict:
        return NotImplemented
    kept = without(kept, cached)
    return maker, arguments, (kept, *slots) if slots else kept, *rest


def _code(code: types.CodeType) -> Any:
    """Do as cloudpickle does, but keep the file name, which newer versions leave out: tracebacks need it."""
    maker, arguments = pickling._code_reduce(code)
    file = "".join(code.co_filename)  # another object each time, so that interning makes no difference
    return maker, (*arguments[:_FILE], file, *arguments[_FILE + 1 :])


_FILE = 10  #: index of the file name among the arguments of a code object


def _as_written(cls: type, content: dict[str, Any]) -> dict[str, Any]:
    """Return a class's attributes in order, with those taken from a base, which cloudpickle leaves out."""
    taken = {
        name: what
        for name, what in cls.__dict__.items()
        if (name[:2] != "__" or type(what) is types.FunctionType)
        and not issubclass(cls, enum.Enum)
        and any(base.__dict__.get(name) is what for base in cls.__bases__)
    }
    notes = callables.annotations_of(cls)
    content = {name: what for name, what in content.items() if name not in callables.OF_ANNOTATIONS}
    whole = {**content, **taken, **({"__annotations__": dict(notes)} if notes else {})}
    return {**{name: whole[name] for name in cls.__dict__ if name in whole}, **whole}


def _empty(cls: type) -> None:
    """Delete the attributes that will be set again in order, and what was added since."""
    if issubclass(cls, enum.Enum):
        return
    for name, what in list(cls.__dict__.items()):
        if name[:2] != "__" and name != "_abc_impl" and type(what) is not types.MemberDescriptorType:
            delattr(cls, name)


def _members(cls: type) -> dict[str, dict[str, Any]]:
    """Return what enum members hold besides their values: their ``__init__`` isn't run again."""
    if not issubclass(cls, enum.Enum):
        return {}
    return {
        member.name: {name: held for name, held in member.__dict__.items() if not name.startswith("_")}
        for member in cls
    }


def _plain_calls(function: Any) -> Any:
    """Return a task function as it is in workers: plain, with plain ``run``, ``map`` and ``starmap``."""
    if isinstance(function, types.FunctionType):
        function.run = function  # type: ignore[attr-defined]
        function.map = lambda *items, chunksize=1, **constants: [  # type: ignore[attr-defined]
            function(*item, **constants) for item in zip(*items, strict=False)
        ]
        function.starmap = lambda items, chunksize=1, **constants: [  # type: ignore[attr-defined]
            function(*item, **constants) for item in items
        ]
    return function


def _dispatcher(function: Any, registry: dict[type, Any]) -> Any:
    made = functools.singledispatch(function)
    for kind, each in registry.items():
        if kind is not object:
            made.register(kind, each)
    return made


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _new_type(module: str, qualname: str, supertype: Any) -> Any:
    maker: Any = typing.NewType
    made = maker(qualname, supertype)
    made.__module__ = module
    return made


def _cached_property(function: Any, name: str | None) -> functools.cached_property[Any]:
    made: functools.cached_property[Any] = functools.cached_property(function)
    made.attrname = name
    return made


def _ufunc(function: Any, nin: int, nout: int, identity: Any) -> Any:
    import numpy as np

    return np.frompyfunc(function, nin, nout, **({} if identity is None else {"identity": identity}))


def stream(value: Any, put: Put | None, slots: Slots = None, whole: bool = False) -> tuple[bytes, Pickler]:
    with io.BytesIO() as file:
        pickler = Pickler(file, put, slots, whole)
        pickler.dump(value)
        return file.getvalue(), pickler


def definition(cls: type, name: ClassName) -> bytes:
    """Return a travelling class as bytes, with all its attributes."""
    held = _definitions.get(cls)
    if held is None or held[0] != name:
        held = _definitions[cls] = (name, stream(cls, None)[0])
    return held[1]


_definitions: weakref.WeakKeyDictionary[type, tuple[ClassName, bytes]] = weakref.WeakKeyDictionary()


def bundled(root: str) -> bytes:
    return msgspec.msgpack.encode(dict(sorted(modules.bundle(root).items())))


_OURS = {
    "_class": "cls",
    "_carried": "carried",
    "_skeleton": "skeleton",
    "_fill": "fill",
    "_need": "need",
    "_part": "part",
    "_value": "value_of",
}


class Needs(Protocol):
    """The values of a call's needs, by index."""

    def __getitem__(self, slot: int, /) -> Any: ...

    def unloaded(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        """Return the task itself, whose value the function may load."""


class _Tracked(threading.local):
    classes: dict[type, None] | None = None


_tracked = _Tracked()


def track_classes() -> dict[type, None]:
    """Return a dict in which classes built here are noted from now on, as this thread meets them in values."""
    found: dict[type, None] = {}
    _tracked.classes = found
    return found


def restore_class(cls: type, get: Get) -> None:
    """Reset a class that was built here to the attributes it was built with."""
    name, data = _definitions.get(cls, (None, b""))
    if name is not None and _registry.built(name) is cls:
        Unpickler(data, get, exact=True).load()


class _Stream(pickle.Unpickler):
    """Reads one pickle. `Unpickler` rebuilds what is ours in it, and doesn't know this object: see `Pickler`."""

    def __init__(self, data: Any, buffers: Iterable[memoryview], ours: Unpickler) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._ours = ours

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name in _OURS:
            return getattr(self._ours, _OURS[name])
        return super().find_class(module, name)


class Unpickler:
    """Loads classes by identity, and calls with the values of their needs."""

    def __init__(
        self,
        data: Any,
        get: Get | None,
        values: Needs | None = None,
        addresses: Iterable[Address] = (),
        buffer: Get | None = None,
        exact: bool = False,
    ) -> None:
        """``buffer`` loads the memory of the arrays at ``addresses``; for ``exact`` see `load_function`."""
        self._data = data
        self._addresses = addresses
        self._get = get
        self._buffer = buffer
        self._values = values
        self._exact = exact
        self._making: dict[ClassName, type] = {}
        self._filled: set[ClassName] = set()

    def load(self) -> Any:
        buffer = self._buffer
        value = _Stream(self._data, () if buffer is None else map(buffer, self._addresses), self).load()
        for name, cls in self._making.items():
            _registry.add(name, cls)
        return value

    def cls(self, module: str, qualname: str, digest: str, address: Address) -> type:
        name = (module, qualname, digest)
        found = self._making.get(name) or _registry.find(name) or self._built(name, address)
        if _tracked.classes is not None and _registry.built(name) is found:
            _tracked.classes[found] = None
        return found

    def _built(self, name: ClassName, address: Address) -> type:
        assert self._get is not None
        data = bytes(self._get(address))
        made: type = Unpickler(data, self._get).load()
        _definitions[made] = (name, data)
        return made

    def carried(self, bundles: tuple[tuple[str, Address], ...], module: str, qualname: str) -> Any:
        """Return a project module, or something of it. The notebook has the module itself."""
        get = self._get
        assert get is not None
        if not modules.importable(modules.root_of(module)):
            modules.install({root: (at, msgspec.msgpack.decode(get(at))) for root, at in bundles})
        found = importlib.import_module(module)
        for step in qualname.split(".") if qualname else ():
            found = getattr(found, step)
        return found

    def skeleton(self, module: str, qualname: str, digest: str, maker: Any, arguments: tuple[Any, ...]) -> type:
        name = (module, qualname, digest)
        found = self._making.get(name) or _registry.find(name)
        if found is None:
            found = self._making[name] = maker(*arguments)
            found.__qualname__ = qualname
        elif self._exact and _registry.built(name) is found:
            self._making[name] = found
        return found

    def fill(self, cls: type, state: tuple[Any, Any, dict[str, dict[str, Any]]]) -> None:
        for name, made in self._making.items():
            if made is cls and name not in self._filled:
                self._filled.add(name)
                content, setter, members = state
                if self._exact:
                    _empty(cls)
                setter(cls, content)
                for member, held in members.items():
                    getattr(cls, member).__dict__.update(held)
                return

    def part(self, form: str, data: bytes, addresses: tuple[Address, ...]) -> Any:
        """Return an argument that many calls share: each gets its own copy."""
        get = self._get
        assert get is not None
        whole: Any = data
        if not data:
            whole, addresses = get(addresses[0]), addresses[1:]
        return Unpickler(whole, get, None, addresses, self._buffer).load()

    def value_of(self, value: Any) -> Any:
        """Return what the argument's ``__jug_value__`` gives."""
        return value.__jug_value__()

    def need(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        assert self._values is not None
        if steps and steps[-1] == UNLOADED:
            return self._values.unloaded(slot, steps[:-1])
        value = self._values[slot]
        for verb, what in steps:
            value = value[what] if verb == "item" else what(value)
        return value
