"""How objects of any class, and those of the standard library, are written for a digest. One entry a type."""

from __future__ import annotations

import copyreg
import functools
import sys
from types import NoneType
from typing import Any

from jug_notebook.keys.builtin import list_body, mapping_body, tuple_body
from jug_notebook.keys.encoder import Encoder, cached_names, columns, has_entry, held, named, own_hash, register

# -- objects -----------------------------------------------------------------------------------------------------------


@register("collections.namedtuple")  # of no module: any tuple with fields
def _namedtuple(encoder: Encoder, value: Any, path: str) -> None:
    if hasattr(type(value), "__jug_hash__"):
        return own_hash(encoder, value, path)
    return encoder.nested(value, path, _namedtuple_body)


def _namedtuple_body(encoder: Encoder, value: Any, path: str) -> None:
    encoder.out += b"n"
    encoder.class_part(type(value), path)
    items = list(tuple.__iter__(value))
    names = list(type(value)._fields)
    if len(names) == len(items):
        columns(encoder, names, items, ".{}".format, path)
    else:
        tuple_body(encoder, tuple(items), path)
    encoder.attributes(held(value), path)


@functools.lru_cache(1024)
def _passing(kind: type) -> frozenset[str]:
    """What doesn't count of what an instance holds: it comes and goes without changing the value."""
    return cached_names(kind) | {"_attrs_cached_hash"}


@register("builtins.object")
def _instance(encoder: Encoder, value: Any, path: str) -> None:
    """Any other object: its class, and the state that it would be pickled by, walked by us."""
    kind = type(value)
    if hasattr(kind, "__jug_hash__"):
        return own_hash(encoder, value, path)
    if hasattr(kind, "__next__") or hasattr(kind, "__await__"):
        encoder.refuse(value, path, "it is used up by looking at it")
    return encoder.nested(value, path, _instance_body)


def _instance_body(encoder: Encoder, value: Any, path: str) -> None:
    reduced = _reduced(encoder, value, path)
    kind = type(value)
    if isinstance(reduced, str):
        encoder.out += named(b"G", getattr(value, "__module__", None) or kind.__module__, reduced)
        return
    maker, made_of, state, items, pairs, *setter = (*reduced, None, None, None)[:6]
    usual = maker is getattr(copyreg, "__newobj__") and made_of[0] is kind  # noqa: B009  (mypy knows no such name)
    set_by = setter[0] if setter else None
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
        tuple_body(encoder, (), path)
    _state(encoder, kind, state, path)
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
    except Exception as error:  # anything may come out of the user's own __reduce__ and __getstate__
        encoder.refuse(value, path, str(error) or type(error).__name__)
    if not isinstance(reduced, str) and not (isinstance(reduced, tuple) and 2 <= len(reduced) <= 6):
        encoder.refuse(value, path, "its __reduce__ answers something unheard of")
    return reduced


def _state(encoder: Encoder, kind: type, state: Any, path: str) -> None:
    slots = None
    if type(state) is tuple and len(state) == 2 and type(state[1]) is dict and isinstance(state[0], dict | NoneType):
        state, slots = state[0] or {}, state[1]
    if type(state) is dict and set(map(type, state)) <= {str}:
        passing = _passing(kind)
        if not passing.isdisjoint(state):
            state = {name: item for name, item in state.items() if name not in passing}
        encoder.out += b"a"
        encoder.attributes(state | slots if slots else state, path)
    elif slots is None:
        encoder.add(state, path)
    else:
        encoder.tagged("state", (state, slots), path)


def _maker(encoder: Encoder, maker: Any, path: str) -> None:
    """The function that would build the object again."""
    if isinstance(maker, type):
        encoder.class_part(maker, path)
    elif has_entry(type(maker)):
        encoder.add(maker, path)
    elif hasattr(maker, "__qualname__") and hasattr(maker, "__module__"):
        encoder.out += named(b"G", maker.__module__, maker.__qualname__)
    else:
        encoder.add(maker, path)


# -- builtins and containers -------------------------------------------------------------------------------------------


@register("builtins.bytearray")
def _bytearray(encoder: Encoder, value: bytearray, path: str) -> None:
    encoder.tag("bytearray")
    encoder.data(value)


@register("builtins.memoryview")
def _memoryview(encoder: Encoder, value: memoryview, path: str) -> None:
    encoder.tagged("memoryview", (value.format, value.shape))
    encoder.data(value if value.c_contiguous and value.nbytes else value.tobytes())


@register("array.array")
def _array(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("array", (value.typecode, value.itemsize, sys.byteorder))
    encoder.data(value if len(value) else b"")


@register("builtins.range")
def _range(encoder: Encoder, value: range, path: str) -> None:
    """By the numbers in it, as ``==`` has it."""
    first, last = (value[0], value[-1]) if value else (None, None)
    encoder.tagged("range", (first, last, value.step if first != last else 0), path)


@register("builtins.slice")
def _slice(encoder: Encoder, value: slice, path: str) -> None:
    encoder.tagged("slice", (value.start, value.stop, value.step), path)


@register("builtins.mappingproxy")
def _mappingproxy(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("mappingproxy", (dict(value),), path)


@register("collections.OrderedDict")
def _ordered(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tagged("OrderedDict", (list(value), list(value.values())), path)

    encoder.nested(value, path, body)


@register("collections.defaultdict")
def _defaultdict(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tagged("defaultdict", (value.default_factory, dict(value)), path)

    encoder.nested(value, path, body)


@register("collections.Counter", attributes=False)
def _counter(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tagged("Counter", (dict(value), dict(vars(value))), path)

    encoder.nested(value, path, body)


@register("collections.deque")
def _deque(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tagged("deque", (value.maxlen, list(value)), path)

    encoder.nested(value, path, body)


@register("enum.Enum", attributes=False)
def _enum(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("Enum", (type(value).__qualname__, value._name_, value._value_), path)


@register("typing.NewType", attributes=False)
def _new_type(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("NewType", (value.__module__, value.__qualname__, value.__supertype__), path)


@register("typing.TypeVar", attributes=False)
def _type_variable(encoder: Encoder, value: Any, path: str) -> None:
    limits = (value.__bound__, value.__constraints__, value.__covariant__, value.__contravariant__)
    encoder.tagged("TypeVar", (value.__module__, value.__name__, *limits), path)


# -- numbers, names, patterns ------------------------------------------------------------------------------------------


@register("decimal.Decimal")
def _decimal(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("Decimal", (str(value),))


@register("fractions.Fraction")
def _fraction(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("Fraction", (value.numerator, value.denominator))


@register("uuid.UUID", attributes=False)
def _uuid(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("UUID", (value.int,))


@register("re.Pattern")
def _pattern(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("Pattern", (value.pattern, int(value.flags)))


@register("pathlib.PurePath", attributes=False)
def _path(encoder: Encoder, value: Any, path: str) -> None:
    """By text: what is in the file is another matter."""
    encoder.tagged("Path", (str(value),))


# -- dates and times ---------------------------------------------------------------------------------------------------


@register("datetime.date")
def _date(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("date", (value.toordinal(),))


@register("datetime.time")
def _time(encoder: Encoder, value: Any, path: str) -> None:
    clock = (value.hour, value.minute, value.second, value.microsecond, value.fold)
    encoder.tagged("time", (clock, value.tzinfo), path)


@register("datetime.datetime")
def _datetime(encoder: Encoder, value: Any, path: str) -> None:
    """Without a zone, what the clock shows; with one, the instant and the zone."""
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
    # how far it is away tells a time that the clocks leave out from the one that they show instead
    encoder.tagged("datetime", (instant.toordinal(), seconds, instant.microsecond, fold, away, zone), path)


@register("datetime.timedelta")
def _timedelta(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("timedelta", (value.days, value.seconds, value.microseconds))


@register("datetime.timezone")
def _timezone(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("timezone", (value.utcoffset(None), value.tzname(None)))


@register("zoneinfo.ZoneInfo")
def _zoneinfo(encoder: Encoder, value: Any, path: str) -> None:
    if value.key is None:
        encoder.refuse(value, path, "it was read from a file and has no key")
    encoder.tagged("ZoneInfo", (value.key,))
