"""How things are pickled that a worker can't import, and classes that keep their identity on the way.

A class that travels is called by (module, qualname, digest): who loads an instance takes the live class of that digest,
else one built here before, and only else builds it from the blob with its definition.
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
from jug_notebook.keys.encoder import cached_names, instance_dict
from jug_notebook.model import UNLOADED, Address, Key

INLINE = 64 * 1024  #: larger parts go to blobs of their own

Put: TypeAlias = Callable[[Iterable["bytes | memoryview"]], Address]
Get: TypeAlias = Callable[[Address], memoryview]

# -- classes by identity ----------------------------------------------------------------------------------------------

ClassName: TypeAlias = tuple[str, str, str]  #: module, qualname, digest


class _Known:
    """The classes of this process that travel: what each is called, and which one a name means."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_name: dict[ClassName, weakref.ref[type]] = {}
        self._digests: weakref.WeakKeyDictionary[type, set[str]] = weakref.WeakKeyDictionary()
        self._kept: dict[ClassName, type] = {}  #: built classes live as long as the process: tasks come back to them

    def name(self, cls: type) -> ClassName:
        """What a travelling class is called. One that was built here keeps the name it came with."""
        digest = coding.class_digest(cls)
        name = (cls.__module__, cls.__qualname__, digest)
        with self._lock:
            self._by_name[name] = weakref.ref(cls)
            self._digests.setdefault(cls, set()).add(digest)
        return name

    def find(self, name: ClassName) -> type | None:
        """The class that a name means here: the live one if it is the same, else one that was met or built before."""
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
        except JugError:  # the live class holds something that can't be named: then it isn't the one that was
            return False
        with self._lock:
            self._digests.setdefault(live, set()).add(found)
        return found == digest

    def built(self, name: ClassName) -> type | None:
        """The class of that name that was built here."""
        return self._kept.get(name)

    def add(self, name: ClassName, cls: type) -> None:
        """A class was built here."""
        with self._lock:
            self._by_name[name] = weakref.ref(cls)
            self._digests.setdefault(cls, set()).add(name[2])
            self._kept[name] = cls
        coding.adopt_class(cls, name[2])


_known = _Known()


# -- pickling ----------------------------------------------------------------------------------------------------------


class Forbidden(pickle.PicklingError):
    """Something that pickle would take, but that makes no sense elsewhere."""


# Names in the stream; the unpickler answers them with verbs of its own.


def _class(*name: Any) -> Any:
    raise pickle.UnpicklingError("a class by identity can only be loaded by this codec")


def _carried(*_: Any) -> Any:
    raise pickle.UnpicklingError("a project's class can only be loaded by this codec")


def _skeleton(*_: Any) -> Any:
    raise pickle.UnpicklingError("a class by identity can only be loaded by this codec")


def _fill(*_: Any) -> Any:
    raise pickle.UnpicklingError("a class by identity can only be loaded by this codec")


def _need(*_: Any) -> Any:
    raise pickle.UnpicklingError("a call can only be loaded with the values that it needs")


def _part(*_: Any) -> Any:
    raise pickle.UnpicklingError("a shared part of a call can only be loaded by this codec")


def _value(*_: Any) -> Any:
    raise pickle.UnpicklingError("an argument that tells its own value can only be loaded by this codec")


class _Made(NamedTuple):
    """An object as it is pickled, in place of itself."""

    maker: Callable[..., Any]
    arguments: tuple[Any, ...]
    rest: tuple[Any, ...]


def _new(cls: type, *arguments: Any) -> Any:
    return cls.__new__(cls, *arguments)


def _new_ex(cls: type, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return cls.__new__(cls, *arguments, **named)


#: pickle takes these only for an object of that very class
_MAKERS = {getattr(copyreg, "__newobj__"): _new, getattr(copyreg, "__newobj_ex__"): _new_ex}  # noqa: B009


class Shared(NamedTuple):
    """Stands in a call for an argument that was stored before, for many calls."""

    format: str
    data: bytes
    buffers: tuple[Address, ...]


def _set_function(function: types.FunctionType, state: tuple[Any, bytes]) -> None:
    """A function that came by value keeps the name of its form, since its source may not be here."""
    pickling._function_setstate(function, state[0])
    if state[1]:
        syntax.adopt(function.__code__, state[1])


_IN_MEMORY = frozenset({io.BytesIO, io.StringIO})


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what a worker can't import. ``put`` None: everything goes into the one stream.

    ``slots`` are the numbers of a call's needs; None for what is no call.
    """

    def __init__(self, file: io.BytesIO, put: Put | None, slots: Mapping[Key, int] | None = None) -> None:
        self.addresses: list[Address] = []
        self.hashed: Hashed = {}
        self.blobs: list[Address] = []  #: of classes; they come after the buffers, which pickle counts
        self.bound = False
        self.files: dict[str, None] = {}
        self._put = put
        self._slots = slots
        super().__init__(file, protocol=5, buffer_callback=self._buffer if put is not None else None)

    def _buffer(self, buffer: pickle.PickleBuffer) -> bool:
        with buffer.raw() as raw:
            if raw.nbytes <= INLINE:
                return True
            assert self._put is not None
            address = self._put([raw])
            self.addresses.append(address)
            self.hashed[id(raw.obj)] = (raw.obj, raw.nbytes, bytes.fromhex(address))
        return False

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
        return _uncached(kind, value)

    def _reference(self, value: Any) -> Any:
        reference = value.__jug_reference__()
        slot = self._slots.get(reference.key) if self._slots is not None else None
        if slot is None:
            raise Forbidden("cannot pickle a task here; hand it to the function as an argument")
        self.bound = True
        return _need, (slot, reference.steps)

    def _own_value(self, value: Any) -> Any:
        """An argument that tells itself what the function gets, once the tasks in it have values."""
        reduced = value.__reduce_ex__(5)
        if isinstance(reduced, str):
            raise Forbidden("its __jug_value__ can't be asked in a worker: it is pickled by name")
        maker, arguments, *rest = reduced
        self.bound = True
        return _value, (_Made(_MAKERS.get(maker, maker), arguments, tuple(rest)),)

    def _class(self, cls: type) -> Any:
        if cls.__module__ == "builtins" or pickling._should_pickle_by_reference(cls):
            return self._of_project(cls) or super().reducer_override(cls)
        self.bound = True
        name = _known.name(cls)
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
        """A project module, or a class or function of one, in a value: it comes along for who has none of it."""
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
        """As cloudpickle does it, with exactly the names that the key covers."""
        code, space = function.__code__, function.__globals__
        self.files[code.co_filename] = None
        arguments = self._function_getnewargs(function)
        state, slots = pickling._function_getstate(function)
        slots["__globals__"] = {name: space[name] for name in callables.global_names(code) if name in space}
        own = callables.form_of(function)
        return pickling._make_function, arguments, ((state, slots), own), None, None, _set_function


def _uncached(kind: type, value: Any) -> Any:
    """An object without what its cached properties have kept: its name doesn't cover that, so nobody may rely on it."""
    cached = cached_names(kind)
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
    kept = {name: what for name, what in kept.items() if name not in cached}
    return maker, arguments, (kept, *slots) if slots else kept, *rest


def _code(code: types.CodeType) -> Any:
    """As cloudpickle does it, with the file that it names: tracebacks show its lines. Newer ones leave that out."""
    maker, arguments = pickling._code_reduce(code)
    file = "".join(code.co_filename)  # another object each time, so that interning makes no difference
    return maker, (*arguments[:_FILE], file, *arguments[_FILE + 1 :])


_FILE = 10  #: of the arguments of a code object, where its file is


def _as_written(cls: type, content: dict[str, Any]) -> dict[str, Any]:
    """What a class holds, in its own order. cloudpickle leaves out what it took from a base, which another may hide."""
    taken = {
        name: what
        for name, what in cls.__dict__.items()
        if (name[:2] != "__" or type(what) is types.FunctionType)
        and not issubclass(cls, enum.Enum)
        and any(base.__dict__.get(name) is what for base in cls.__bases__)
    }
    whole = {**content, **taken}
    return {**{name: whole[name] for name in cls.__dict__ if name in whole}, **whole}


def _empty(cls: type) -> None:
    """Take away what will be given again, in its order, and what was added since."""
    if issubclass(cls, enum.Enum):
        return
    for name, what in list(cls.__dict__.items()):
        if name[:2] != "__" and name != "_abc_impl" and type(what) is not types.MemberDescriptorType:
            delattr(cls, name)


def _members(cls: type) -> dict[str, dict[str, Any]]:
    """What the members of an enum hold beside their value: their ``__init__`` isn't run again."""
    if not issubclass(cls, enum.Enum):
        return {}
    return {
        member.name: {name: held for name, held in member.__dict__.items() if not name.startswith("_")}
        for member in cls
    }


def _plain_calls(function: Any) -> Any:
    """Where tasks run, a task function is its plain function; its other ways of calling it are plain too."""
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


def stream(value: Any, put: Put | None, slots: Mapping[Key, int] | None = None) -> tuple[bytes, Pickler]:
    with io.BytesIO() as file:
        pickler = Pickler(file, put, slots)
        pickler.dump(value)
        return file.getvalue(), pickler


def definition(cls: type, name: ClassName) -> bytes:
    """A travelling class as bytes, with all that it is made of."""
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
    """The values of a call's needs, by slot."""

    def __getitem__(self, slot: int, /) -> Any: ...

    def unloaded(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        """The task itself, of which the function may load the value."""
        ...


class _Met(threading.local):
    classes: dict[type, None] | None = None


_met = _Met()


def meeting() -> dict[type, None]:
    """From now on, classes that were built here are noted in it, as this thread meets them in values."""
    found: dict[type, None] = {}
    _met.classes = found
    return found


def restore(cls: type, get: Get) -> None:
    """A class that was built here gets what it was built with."""
    name, data = _definitions.get(cls, (None, b""))
    if name is not None and _known.built(name) is cls:
        Unpickler(data, get, exact=True).load()


class Unpickler(pickle.Unpickler):
    """Knows classes by identity, and the values that a call needs."""

    def __init__(
        self,
        data: Any,
        get: Get | None,
        values: Needs | None = None,
        addresses: Iterable[Address] = (),
        buffer: Get | None = None,
        exact: bool = False,
    ) -> None:
        """``buffer`` gives what the arrays at ``addresses`` stand on; with ``exact``, see `load_function`."""
        super().__init__(io.BytesIO(data), buffers=() if buffer is None else map(buffer, addresses))
        self._get = get
        self._buffer = buffer
        self._values = values
        self._exact = exact
        self._making: dict[ClassName, type] = {}
        self._filled: set[ClassName] = set()

    def load(self) -> Any:
        value = super().load()
        for name, cls in self._making.items():
            _known.add(name, cls)
        return value

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name in _OURS:
            return getattr(self, _OURS[name])
        return super().find_class(module, name)

    def cls(self, module: str, qualname: str, digest: str, address: Address) -> type:
        name = (module, qualname, digest)
        found = self._making.get(name) or _known.find(name) or self._built(name, address)
        if _met.classes is not None and _known.built(name) is found:
            _met.classes[found] = None
        return found

    def _built(self, name: ClassName, address: Address) -> type:
        assert self._get is not None
        data = bytes(self._get(address))
        made: type = Unpickler(data, self._get).load()
        _definitions[made] = (name, data)
        return made

    def carried(self, bundles: tuple[tuple[str, Address], ...], module: str, qualname: str) -> Any:
        """Something of a project module. Here that may be the notebook, which has the module itself."""
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
        found = self._making.get(name) or _known.find(name)
        if found is None:
            found = self._making[name] = maker(*arguments)
            found.__qualname__ = qualname
        elif self._exact and _known.built(name) is found:
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
        """An argument that many calls share, each its own copy of it."""
        get = self._get
        assert get is not None
        whole: Any = data
        if not data:
            whole, addresses = get(addresses[0]), addresses[1:]
        return Unpickler(whole, get, None, addresses, self._buffer).load()

    def value_of(self, value: Any) -> Any:
        """What an argument says that it is worth."""
        return value.__jug_value__()

    def need(self, slot: int, steps: tuple[tuple[str, Any], ...]) -> Any:
        assert self._values is not None
        if steps and steps[-1] == UNLOADED:
            return self._values.unloaded(slot, steps[:-1])
        value = self._values[slot]
        for verb, what in steps:
            value = value[what] if verb == "item" else what(value)
        return value
