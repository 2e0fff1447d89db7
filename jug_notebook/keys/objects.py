"""How Python's own types and instances of any class are written for a digest.

To make another type of Python or its standard library hashable, add one function (`writer_for`), or one line
(`write_parts`), to this file; for a type of numpy, pandas and their like, to `arrays`.

A handle on a file, a connection or a plan is no value: what it stands for may change while it stays equal, or means
nothing in another process. To have another class refused, add a line to `libraries.REFUSED`.
"""

from __future__ import annotations

import copyreg
import functools
import struct
import sys
from operator import countOf
from types import EllipsisType, NoneType
from typing import Any

from jug_notebook.keys import libraries
from jug_notebook.keys.advice import report_dropped
from jug_notebook.keys.encoder import Encoder
from jug_notebook.keys.libraries import counted, shared_name
from jug_notebook.keys.register import (
    BODIES,
    INSIDE,
    NAN,
    WRITERS,
    Refused,
    Writer,
    contained,
    count,
    described,
    dumps,
    exact_writer,
    has_writer,
    held_by,
    named,
    own_hash,
    short,
    step,
    write_parts,
    writer_for,
)
from jug_notebook.keys.rows import columns, parts
from jug_notebook.keys.unordered import members
from jug_notebook.model import UNLOADED, Reference

# -- scalars, lists, dicts, sets, classes ------------------------------------------------------------------------------


@exact_writer(NoneType, bool, int, EllipsisType)
def _plain(encoder: Encoder, value: Any, path: str) -> None:
    encoder.out += dumps(value, 2)


@exact_writer(float)
def _float(encoder: Encoder, value: float, path: str) -> None:
    encoder.out += dumps(value, 2) if value == value else b"g" + NAN


@exact_writer(complex)
def _complex(encoder: Encoder, value: complex, path: str) -> None:
    encoder.out += b"y"
    for part in (value.real, value.imag):
        encoder.out += struct.pack("<d", part) if part == part else NAN


@exact_writer(str)
def _str(encoder: Encoder, value: str, path: str) -> None:
    try:
        encoder.out += dumps(value, 2)
    except ValueError:  # two gigabytes are too long for it
        encoder.out += b"U"
        encoder.data(value.encode("utf-8", "surrogatepass"))


@exact_writer(bytes)
def _bytes(encoder: Encoder, value: bytes, path: str) -> None:
    encoder.data(value)


def list_body(encoder: Encoder, value: list[Any], path: str) -> None:
    start = len(encoder.out)
    encoder.out += b"L" + count(len(value))
    parts(encoder, value, path, start)


def tuple_body(encoder: Encoder, value: tuple[Any, ...], path: str) -> None:
    start = len(encoder.out)
    encoder.out += b"(" + count(len(value))
    parts(encoder, value, path, start)


exact_writer(list)(contained(list_body, mutable=True))
exact_writer(tuple)(contained(tuple_body, mutable=False))


def mapping_body(encoder: Encoder, value: Any, path: str) -> None:
    """Write a dict in its own order, which functions see: in the columns of a table made of it, say."""
    if countOf(map(type, value), str) == len(value):
        columns(encoder, list(value), list(value.values()), step, path, len(encoder.out))
        return
    if countOf(map(type, value), int) == len(value):
        encoder.out += b"I"
        columns(encoder, list(value), list(value.values()), step, path, len(encoder.out) - 1)
        return
    encoder.out += b"d" + count(len(value))
    for key, item in value.items():
        try:
            WRITERS[type(key)](encoder, key, "")
            WRITERS[type(item)](encoder, item, "")
        except Refused as refused:
            refused.at(path + step(key))
            raise


exact_writer(dict)(contained(mapping_body, mutable=True))
BODIES.update({list: list_body, dict: mapping_body})


@writer_for("jug_notebook.task.patterns.unordered", mutable=True)
def _unordered(encoder: Encoder, value: Any, path: str) -> None:
    """Write a dict whose order doesn't count."""
    encoder.tag("unordered", len(value))
    members(encoder, list(value.items()), path)


def _set_body(encoder: Encoder, value: Any, path: str) -> None:
    encoder.out += (b"{" if isinstance(value, frozenset) else b"S") + count(len(value))
    kinds = set(map(type, value))
    if kinds <= {str} or kinds <= {int}:
        parts(encoder, sorted(value), path)
    else:
        members(encoder, [(item,) for item in value], path)


exact_writer(set)(contained(writer_for("builtins.set", mutable=True)(_set_body), mutable=True))
exact_writer(frozenset)(contained(writer_for("builtins.frozenset", nested=True)(_set_body), mutable=False))


@exact_writer(object)
def _bare(encoder: Encoder, value: object, path: str) -> None:
    verdict = "only `is` tells from another, and a worker gets a copy: pass None, a string or a member of an Enum"
    encoder.refuse(value, path, verdict=verdict)


@exact_writer(type)
def _class(encoder: Encoder, value: type, path: str) -> None:
    """Write a class as a value: by name if no writer of classes is registered."""
    encoder.out += b"K"
    encoder.class_part(value, path)


# -- objects with special methods --------------------------------------------------------------------------------------


@writer_for("__jug_hash__")
def _hashed_by_method(encoder: Encoder, value: Any, path: str) -> None:
    answer = value.__jug_hash__()
    if not isinstance(answer, str | bytes):
        encoder.refuse(value, path, f"its __jug_hash__ returns {described(answer)}, not a str or bytes")
    encoder.out += b"J"
    encoder.text(type(value).__qualname__)
    encoder.add(str(answer) if isinstance(answer, str) else bytes(answer), path)
    if hasattr(type(value), "__jug_dependencies__"):
        _needed(encoder, value, path)


@writer_for("__jug_dependencies__")
def _needed(encoder: Encoder, value: Any, path: str) -> None:
    found: list[Any] = []
    _gather(encoder, value, value.__jug_dependencies__(), path, found)
    encoder.tagged("needs", found, path)


def _gather(encoder: Encoder, value: Any, answer: Any, path: str, found: list[Any]) -> None:
    """Collect the tasks in what ``__jug_dependencies__`` returned. Anything else in it is ignored, as in Jug."""
    try:
        items = list(answer.values() if isinstance(answer, dict) else answer)
    except TypeError:
        encoder.refuse(value, path, f"its __jug_dependencies__ returns {described(answer)}, not a list of tasks")
    for item in items:
        if hasattr(type(item), "__jug_reference__"):
            found.append(item)
        elif hasattr(type(item), "__jug_dependencies__"):
            _gather(encoder, item, item.__jug_dependencies__(), path, found)
        elif isinstance(item, list | tuple | set | frozenset | dict):
            _gather(encoder, value, item, path, found)


@writer_for("__jug_reference__")
def _reference(encoder: Encoder, value: Any, path: str) -> None:
    reference: Reference = value.__jug_reference__()
    encoder.met.append(reference.key)
    if encoder.slots is None:
        encoder.out += b"R"
        encoder.text(reference.key)
    else:
        encoder.out += b"r" + short(encoder.slots[reference.key])
        if reference.steps and reference.steps[-1] == UNLOADED:  # the function may read the task, not only its value
            encoder.text(reference.key)
    encoder.out += count(len(reference.steps))
    for kind, what in reference.steps:
        encoder.text(kind)
        encoder.add(what, path)


# -- instances of any class --------------------------------------------------------------------------------------------


@writer_for("collections.namedtuple")  # of no module: any tuple with fields
def _namedtuple(encoder: Encoder, value: Any, path: str) -> None:
    if not own_hash(encoder, value, path):
        encoder.nested(value, path, _namedtuple_body)


def _namedtuple_body(encoder: Encoder, value: Any, path: str) -> None:
    encoder.out += b"n"
    encoder.class_part(type(value), path)
    items = list(tuple.__iter__(value))
    names = list(type(value)._fields)
    if len(names) == len(items):
        columns(encoder, names, items, ".{}".format, path)
    else:
        tuple_body(encoder, tuple(items), path)
    encoder.attributes(held_by(value), path)


@writer_for("builtins.object")
def _instance(encoder: Encoder, value: Any, path: str) -> None:
    """Write any other object: its class, and the state that pickle would store."""
    kind: Any = type(value)
    if hasattr(kind, "__jug_hash__") and own_hash(encoder, value, path):
        return
    if is_used_up(kind):
        what = "list(x)" if hasattr(kind, "__next__") else "await x"
        encoder.refuse(value, path, verdict=f"can't be hashed reliably, since reading it would use it up: pass {what}")
    (encoder.nested if by_value(kind) else encoder.shared)(value, path, _instance_body)


@functools.lru_cache(1024)
def is_used_up(kind: type) -> bool:
    """Return True for classes whose instances are used up by reading them."""
    return hasattr(kind, "__next__") or hasattr(kind, "__await__")


@functools.lru_cache(1024)
def by_value(kind: type) -> bool:
    """Return True for classes whose instances are hashable by value: that two are one and the same doesn't count.

    A class whose ``__hash__`` calls ``id`` isn't one.
    """
    method: Any = kind.__hash__
    if method in (None, object.__hash__) or getattr(kind, "__eq__", None) is object.__eq__:
        return False
    code = getattr(method, "__code__", None)
    return code is None or "id" not in code.co_names


_NEW = getattr(copyreg, "__newobj__")  # noqa: B009  (mypy knows no such name)
_EMPTY = b"(" + count(0)  #: an empty tuple's form


def _instance_body(encoder: Encoder, value: Any, path: str) -> None:
    reduced = _reduced(encoder, value, path)
    kind = type(value)
    if isinstance(reduced, str):
        encoder.out += named(b"G", getattr(value, "__module__", None) or kind.__module__, reduced)
        return
    maker, made_of, state, items, pairs, set_by = (*reduced, None, None, None, None)[:6]
    usual = maker is _NEW and made_of[0] is kind
    given = (not usual, items is not None, pairs is not None, set_by is not None)  # what of it follows
    encoder.out += b"O" + bytes(given)
    encoder.class_part(kind, path)
    if usual:
        made_of = made_of[1:]
    else:
        _maker(encoder, maker, path)
    if made_of:
        encoder.nested(made_of, path, tuple_body)
    else:
        encoder.out += _EMPTY
    _state(encoder, value, state, path)
    if items is not None:
        encoder.nested(list(items), path, list_body)
    if pairs is not None:
        encoder.nested(dict(pairs), path, mapping_body)
    if set_by is not None:
        _maker(encoder, set_by, path)


def _reduced(encoder: Encoder, value: Any, path: str) -> Any:
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        reduced = reduce(value) if reduce else value.__reduce_ex__(2)
    except Exception as error:  # the user's own __reduce__ and __getstate__ may raise anything
        why = "" if str(error).startswith("cannot pickle") else f" ({str(error) or type(error).__name__})"
        encoder.refuse(value, path, verdict=f"can't be sent to a worker{why}: {INSIDE}")
    if not isinstance(reduced, str) and not (isinstance(reduced, tuple) and 2 <= len(reduced) <= 6):
        encoder.refuse(value, path, "its __reduce__ returns neither a string nor a tuple of 2 to 6 items")
    return reduced


_LARGE = 1 << 40  #: what hash() gives is hardly ever less


def _refuse_kept_hash(encoder: Encoder, value: Any, state: dict[str, Any], path: str) -> None:
    """Refuse an object that keeps ``hash()`` of a text it holds: that is a different number in each process."""
    for name, number in state.items():
        if type(number) is not int or -_LARGE < number < _LARGE:
            continue
        texts = [item for item in state.values() if type(item) in (str, bytes)]
        tuples = [item for item in state.values() if type(item) is tuple and set(map(type, item)) == {str}]
        for kept in (*texts, tuple(texts), *tuples):
            if hash(kept) == number:
                verdict = (
                    f"keeps in {name!r} what hash() gives, a different number in each process: leave it out with "
                    f"jn.ignore_attributes({type(value).__qualname__}, {name!r})"
                )
                encoder.refuse(value, path, verdict=verdict)


def _state(encoder: Encoder, value: Any, state: Any, path: str) -> None:
    held, state, slots = _parted(value, state)
    if held is not None:
        for number in held.values():
            if type(number) is int and not -_LARGE < number < _LARGE:
                _refuse_kept_hash(encoder, value, held, path)
                break
        encoder.out += b"a"
        encoder.attributes(held, path)
    elif slots is None:
        encoder.add(state, path)
    else:
        encoder.tagged("state", (state, slots), path)


def _parted(value: Any, state: Any) -> tuple[dict[str, Any] | None, Any, Any]:
    """Return the attributes in the state of an instance that count, None if it has others; the state; its slots."""
    slots = None
    if type(state) is tuple and len(state) == 2:
        named, more = state
        pair = type(more) is dict and type(named) in (dict, NoneType) and not hasattr(type(value), "__setstate__")
        if pair and more.keys().isdisjoint(named or ()):
            state, slots = named or {}, more  # as pickle writes what has slots
    if type(state) is dict and countOf(map(type, state), str) == len(state):
        return counted(value, state | slots if slots else state), state, slots
    return None, state, slots


def attributes_of(value: Any) -> dict[str, Any] | None:
    """Return the attributes that count of an instance that is written by them; None for any other value."""
    if has_writer(type(value)) or hasattr(type(value), "__jug_hash__"):
        return None
    try:
        reduced = _reduced(Encoder(bytearray()), value, "")
    except Refused:
        return None
    return _parted(value, reduced[2])[0] if isinstance(reduced, tuple) and len(reduced) > 2 else None


def _maker(encoder: Encoder, maker: Any, path: str) -> None:
    """Write the function that would build the object again."""
    if isinstance(maker, type):
        encoder.class_part(maker, path)
    elif has_writer(type(maker)):
        encoder.add(maker, path)
    elif hasattr(maker, "__qualname__") and hasattr(maker, "__module__"):
        encoder.out += named(b"G", maker.__module__, maker.__qualname__)
    else:
        encoder.add(maker, path)


@writer_for("random.Random", mutable=True)
def _random(encoder: Encoder, value: Any, path: str) -> None:
    if not by_shared_name(encoder, value):
        _instance_body(encoder, value, path)


def by_shared_name(encoder: Encoder, value: Any) -> bool:
    """Write a generator that the whole process shares by its name, since anything may draw from it at any time."""
    shared = shared_name(value)
    if shared is not None:
        encoder.out += named(b"G", *shared)
    return shared is not None


# -- builtins and containers -------------------------------------------------------------------------------------------


@writer_for("builtins.bytearray", mutable=True)
def _bytearray(encoder: Encoder, value: bytearray, path: str) -> None:
    encoder.tag("bytearray")
    encoder.data(value)


@writer_for("builtins.memoryview")
def _memoryview(encoder: Encoder, value: memoryview, path: str) -> None:
    encoder.tagged("memoryview", (value.format, value.shape))
    encoder.data(value if value.c_contiguous and value.nbytes else value.tobytes())


@writer_for("array.array", mutable=True)
def _array(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("array", (value.typecode, value.itemsize, sys.byteorder))
    encoder.data(value if len(value) else b"")


@writer_for("builtins.range")
def _range(encoder: Encoder, value: range, path: str) -> None:
    """Write the numbers in it, as ``==`` compares them."""
    first, last = (value[0], value[-1]) if value else (None, None)
    encoder.tagged("range", (first, last, value.step if first != last else 0), path)


for _names, _parts in libraries.FORMS.items():
    write_parts(_names, _names.partition(" ")[0], _parts, nested=True)

write_parts("builtins.slice", "slice", lambda value: (value.start, value.stop, value.step))
write_parts("builtins.mappingproxy", "mappingproxy", lambda value: (dict(value),))
write_parts("collections.OrderedDict", "OrderedDict", lambda value: (list(value), list(value.values())), mutable=True)
write_parts("collections.defaultdict", "defaultdict", lambda value: (value.default_factory, dict(value)), mutable=True)
write_parts(
    "collections.Counter", "Counter", lambda value: (dict(value), dict(vars(value))), mutable=True, attributes=False
)
write_parts("collections.deque", "deque", lambda value: (value.maxlen, list(value)), mutable=True)
write_parts(
    "enum.Enum", "Enum", lambda value: (type(value).__qualname__, value._name_, value._value_), attributes=False
)
write_parts(
    "typing.NewType",
    "NewType",
    lambda value: (value.__module__, value.__qualname__, value.__supertype__),
    attributes=False,
)


# one form of what Pythons and libraries keep in several
_union = "types.UnionType typing.Union typing._UnionGenericAlias"
write_parts(_union, "Union", lambda value: value.__args__, attributes=False)
write_parts(
    "typing._AnnotatedAlias", "Annotated", lambda value: (value.__origin__, *value.__metadata__), attributes=False
)


@writer_for("dataclasses.Field", attributes=False)
def _field(encoder: Encoder, value: Any, path: str) -> None:
    names = [name for name in type(value).__slots__ if getattr(value, name) is not None]
    encoder.tagged("Field", (names, [getattr(value, name) for name in names]), path)


@writer_for("typing.TypeVar", attributes=False)
def _type_variable(encoder: Encoder, value: Any, path: str) -> None:
    limits = (value.__bound__, value.__constraints__, value.__covariant__, value.__contravariant__)
    encoder.tagged("TypeVar", (value.__module__, value.__name__, *limits), path)


# -- numbers, names, patterns ------------------------------------------------------------------------------------------


write_parts("decimal.Decimal", "Decimal", lambda value: (str(value),))
write_parts("fractions.Fraction", "Fraction", lambda value: (value.numerator, value.denominator))
write_parts("uuid.UUID", "UUID", lambda value: (value.int,), attributes=False)
write_parts("re.Pattern", "Pattern", lambda value: (value.pattern, int(value.flags)))
# By text: the content of the file doesn't count.
write_parts("pathlib.PurePath", "Path", lambda value: (str(value),), attributes=False)


# -- dates and times ---------------------------------------------------------------------------------------------------


write_parts("datetime.date", "date", lambda value: (value.toordinal(),))


@writer_for("datetime.time")
def _time(encoder: Encoder, value: Any, path: str) -> None:
    clock = (value.hour, value.minute, value.second, value.microsecond, value.fold)
    encoder.tagged("time", (clock, value.tzinfo), path)


@writer_for("datetime.datetime")
def _datetime(encoder: Encoder, value: Any, path: str) -> None:
    """Write what the clock shows, if there is no zone, else the instant and the zone."""
    zone, away = value.tzinfo, value.utcoffset()
    if away is None:
        instant, fold = value, value.fold
    else:
        naive = value.replace(tzinfo=None)
        fold = 0
        try:
            instant = naive - away
        except OverflowError:  # at the ends of time there may be no such instant
            instant, fold = naive, 2 + value.fold
    seconds = (instant.hour * 60 + instant.minute) * 60 + instant.second
    # the offset tells a time that the clocks skip from the one that they show instead
    encoder.tagged("datetime", (instant.toordinal(), seconds, instant.microsecond, fold, away, zone), path)


write_parts("datetime.timedelta", "timedelta", lambda value: (value.days, value.seconds, value.microseconds))
write_parts("datetime.timezone", "timezone", lambda value: (value.utcoffset(None), value.tzname(None)))


@writer_for("zoneinfo.ZoneInfo")
def _zoneinfo(encoder: Encoder, value: Any, path: str) -> None:
    if value.key is None:
        encoder.refuse(value, path, "it was read from a file, so it has no key")
    encoder.tagged("ZoneInfo", (value.key,))


# -- what stands for something outside the process: refused by name, with what to pass instead ------------------------


def _refuse(verdict: str) -> Writer:
    def writer(encoder: Encoder, value: Any, path: str) -> None:
        encoder.refuse(value, path, verdict=verdict)

    return writer


for _names, _verdict in libraries.REFUSED.items():
    for _name in _names.split():
        writer_for(_name, attributes=False)(_refuse(_verdict))


@writer_for("astropy.Table", attributes=False, mutable=True)  # a pickle keeps columns and meta
def _table(encoder: Encoder, value: Any, path: str) -> None:
    groups = getattr(value, "_groups", None)  # made when it is first asked for
    report_dropped(value, ["groups"] if getattr(groups, "_indices", None) is not None else ())
    _instance_body(encoder, value, path)


@writer_for("mne.BaseRaw", attributes=False)
@writer_for("mne.BaseEpochs", attributes=False)
def _recording(encoder: Encoder, value: Any, path: str) -> None:
    if not value.preload:
        encoder.refuse(value, path, verdict=f"{libraries.READS}pass x.load_data(), {libraries.FILE}")
    _instance_body(encoder, value, path)


@writer_for("rdkit.Mol", attributes=False)
def _molecule(encoder: Encoder, value: Any, path: str) -> None:
    parts = (value, *value.GetAtoms(), *value.GetBonds())
    report_dropped(value, dict.fromkeys(name for part in parts for name in part.GetPropNames()))
    encoder.tagged("rdkit.Mol", (value.ToBinary(),), path)
