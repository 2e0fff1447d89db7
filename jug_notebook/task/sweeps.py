"""Lists of tasks as data: what their parameters are, as a table (pandas) or as labelled arrays (xarray)."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from jug_notebook.errors import BadTask, NoSuchTask
from jug_notebook.model import State
from jug_notebook.render.format import describe_arguments
from jug_notebook.task.handles import Call, briefly

_PLAIN = frozenset({int, float, bool, complex, type(None)})
_KEPT = (str, bytes, enum.Enum, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction)
_NUMBERS = frozenset({int, float, bool, complex})
_SIMPLE = _PLAIN | {str}
_EXACT = 2**53  #: up to this, each whole number is a float
_LONGEST = 200  #: characters of a parameter that is text

Item = TypeVar("Item")


class Sweep(NamedTuple):
    """Tasks as they are at one time, in columns. ``errors`` has, by the place in these, what failed: kind and line."""

    numbers: Sequence[int]  #: in the list
    functions: Sequence[str]
    calls: Sequence[Call]
    states: list[State]
    values: list[Any]  #: None where there is none
    errors: dict[int, tuple[str, str]]

    def finished(self) -> Sweep:
        """Return those that have a value."""
        kept = [i for i, state in enumerate(self.states) if state is State.FINISHED and i not in self.errors]

        def of(column: Sequence[Item]) -> list[Item]:
            return [column[i] for i in kept]

        return Sweep(of(self.numbers), of(self.functions), of(self.calls), of(self.states), of(self.values), {})


def call_of(arguments: Sequence[tuple[str, Any]]) -> Call:
    """Return the parameters of a call: numbers, short texts and the like as they are, what is larger as text."""
    return tuple([name for name, _ in arguments]), tuple(
        [value if type(value) in _PLAIN else _small(value) for _, value in arguments]
    )


def _small(value: Any) -> Any:
    if isinstance(value, _KEPT) and (not isinstance(value, str | bytes) or len(value) <= _LONGEST):
        return value
    if isinstance(value, int | float | complex) or (
        type(value).__module__ == "numpy" and getattr(value, "shape", 1) == ()
    ):
        return value
    if type(value) is tuple and len(value) < 10:
        return tuple(map(_small, value))
    with briefly():
        return describe_arguments([("", value)]).removeprefix("=")


def names_in(calls: Iterable[Call]) -> list[str]:
    """Return the names of all parameters, in order."""
    return list(dict.fromkeys(name for names in dict.fromkeys(call[0] for call in calls) for name in names))


def chosen(calls: Sequence[Call], wanted: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the calls with these parameters: a value, a collection of them, a slice of them (both ends
    count), or a function that says which. Raises NoSuchTask where no call has a parameter of that name.
    """
    known = names_in(calls)
    for name in wanted:
        if name not in known:
            raise NoSuchTask(f"no parameter {name!r} in these tasks; they have {', '.join(known) or 'none'}")
    tests = {name: _test(value) for name, value in wanted.items()}
    found = []
    for number, (names, values) in enumerate(calls):
        having = dict(zip(names, values, strict=True))
        if all(name in having and test(having[name]) for name, test in tests.items()):
            found.append(number)
    return found


def _test(wanted: Any) -> Callable[[Any], bool]:
    if callable(wanted):
        return lambda value: bool(wanted(value))
    if isinstance(wanted, slice):
        low, high = wanted.start, wanted.stop
        return lambda value: (low is None or low <= value) and (high is None or value <= high)
    if isinstance(wanted, list | set | frozenset | range) or getattr(wanted, "shape", None):
        options = list(wanted)
        return lambda value: any(_same(value, option) for option in options)
    return lambda value: _same(value, wanted)


def _same(value: Any, wanted: Any) -> bool:
    return value is wanted or bool(value == wanted) or (value != value and wanted != wanted)


# -- tables ------------------------------------------------------------------------------------------------------------


def frame(sweep: Sweep) -> Any:
    """Return a pandas.DataFrame with a line for each task: parameters, state, results, and errors where there are any.

    What is missing is NaN or None. Results that are dicts, dataclasses, named tuples or Series have a column for each
    of their parts, named after it, or "result.NAME" where another column has that name; others are in "result". Where
    something failed, "failure" is its kind ("raised", "timeout", "memory", "died", "blocked" by another one …) and
    "error" its message.
    """
    import pandas

    columns: dict[str, Any] = {}
    if len(set(sweep.functions)) > 1:
        columns["function"] = sweep.functions
    columns |= _parameters(sweep.calls)
    labels = {state: number for number, state in enumerate(State)}
    columns["state"] = pandas.array([state.value for state in State]).take([labels[state] for state in sweep.states])
    errors = _errors(sweep)
    for name, values in _results(sweep).items():
        columns[f"result.{name}" if name in columns or name in errors else name] = values
    return pandas.DataFrame({name: _column(values) for name, values in (columns | errors).items()}, sweep.numbers)


def _parameters(calls: Sequence[Call]) -> dict[str, list[Any]]:
    """Return a column for each parameter, None for a call that has none of that name."""
    parameters = names_in(calls)
    if len({names for names, _ in calls}) <= 1:
        return {name: [values[i] for _, values in calls] for i, name in enumerate(parameters)}
    having = [dict(zip(*call, strict=True)) for call in calls]
    return {name: [one.get(name) for one in having] for name in parameters}


def _errors(sweep: Sweep) -> dict[str, list[Any]]:
    """Return the columns "failure" and "error", if anything failed."""
    if not sweep.errors:
        return {}
    each = [sweep.errors.get(number, (None, None)) for number in range(len(sweep.states))]
    return {"failure": [kind for kind, _ in each], "error": [line for _, line in each]}


def _column(values: Any) -> Any:
    """Return values as a column; arrays, lists and whole numbers that a float can't hold are objects in it."""
    import pandas

    if not isinstance(values, list):
        return values
    kinds = set(map(type, values))
    if kinds == {int}:
        import numpy

        with suppress(OverflowError):
            return numpy.array(values, numpy.int64)
    mixed = int in kinds and len(kinds) > 1 and any(type(v) is int and abs(v) > _EXACT for v in values)
    if mixed or (not kinds <= _SIMPLE and any(_is_nested(value) for value in values)):
        found = pandas.Series([None] * len(values), dtype=object)
        for number, value in enumerate(values):
            found.iat[number] = value
        return found.array
    return values


def _is_nested(value: Any) -> bool:
    return bool(getattr(value, "shape", ())) or isinstance(value, list | tuple | dict | set | frozenset)


def _results(sweep: Sweep) -> dict[str, list[Any]]:
    """Return the columns of results: "result", or one for each of their parts."""
    values = sweep.values
    if _SIMPLE.issuperset(set(map(type, values))):
        return {"result": values}
    spread = [_parts(value) for value in values]
    names = dict.fromkeys(name for parts in spread for name in parts or ())
    columns = {str(name): [(parts or {}).get(name) for parts in spread] for name in names}
    if not names or any(parts is None and value is not None for parts, value in zip(spread, values, strict=True)):
        columns["result"] = [value if parts is None else None for value, parts in zip(values, spread, strict=True)]
    return columns


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """Return a result's parts by name; None for what is one value."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()  # type: ignore[no-any-return]
    if type(value).__name__ == "Series" and hasattr(value, "to_dict"):
        return value.to_dict()  # type: ignore[no-any-return]
    return None


# -- labelled arrays ---------------------------------------------------------------------------------------------------


def dataset(sweep: Sweep) -> Any:
    """Return an xarray.Dataset with a dimension for each parameter that varies; those that don't are attributes.

    Where the tasks are less than half of all combinations, they have one dimension, "task", whose coordinates the
    parameters are. What is missing is NaN or None; "state" says why, and "failure" and "error" as in `frame`. Arrays
    of equal shape add dimensions of their own. Raises BadTask where two tasks have equal parameters.
    """
    import numpy
    import xarray

    count = len(sweep.calls)
    columns = _parameters(sweep.calls)
    axes = {name: _distinct(values) for name, values in columns.items()}
    fixed = {name: axes.pop(name)[0] for name in columns if len(axes[name]) == 1}
    numbers = {name: {value: number for number, value in enumerate(axis)} for name, axis in axes.items()}
    where = list(zip(*([numbers[name][value] for value in columns[name]] for name in axes), strict=True))
    if len(set(where)) < count and axes:
        raise BadTask("two tasks have equal parameters: .to_frame() shows them all, or choose some with .sel(...)")
    sizes = tuple(map(len, axes.values()))
    flat = not axes or count * 2 < math.prod(sizes)
    dims, shape = (("task",), (count,)) if flat else (tuple(axes), sizes)
    places: Any = numpy.arange(count) if flat else tuple(numpy.array(where, int).T)
    coordinates: dict[str, Any] = {
        name: (("task", columns[name]) if flat else (name, axis)) for name, axis in axes.items()
    }
    coordinates = {name: (dim, _array(values, missing=False)) for name, (dim, values) in coordinates.items()}
    data: dict[str, Any] = {}
    state = [state.value for state in sweep.states]
    for name, values in {**_results(sweep), "state": state, **_errors(sweep)}.items():
        whole = _array(values, missing=count < math.prod(shape))
        inner = whole.shape[1:]
        full = numpy.full(shape + inner, None if whole.dtype == object else numpy.nan, whole.dtype)
        full[places] = whole
        data[_free(name, data, dims)] = ((*dims, *(f"{name}_{number}" for number in range(len(inner)))), full)
    return xarray.Dataset(data, coordinates, {name: _attribute(value) for name, value in fixed.items()})


def _free(name: str, *taken: Collection[str]) -> str:
    return f"result.{name}" if any(name in names for names in taken) else name


def _array(values: Sequence[Any], missing: bool) -> Any:
    """Return values as one array, with dimensions of their own if all have the same shape; None is NaN in numbers.

    ``missing``: there will be gaps, too. What isn't numbers, or wouldn't be exact beside NaN, is an array of objects.
    """
    import numpy

    present = [value for value in values if value is not None]
    missing = missing or len(present) < len(values)
    found: Any = None
    if present and _NUMBERS.issuperset(set(map(type, present))):
        found = numpy.array(present)
    elif not any(isinstance(value, str | bytes | Mapping) for value in present):
        with suppress(ValueError, TypeError):  # of unequal shapes
            found = numpy.array(present)
    if found is not None and (found.dtype.kind not in "biufcmM" or not len(present)):
        found = None
    if found is not None and missing and found.dtype.kind in "biu":
        found = None if (abs(found.astype(object)) > _EXACT).any() else found.astype(float)
    if found is None:
        whole = numpy.full(len(values), None, object)
        for number, value in enumerate(values):
            whole[number] = value
        return whole
    if len(present) == len(values):
        return found
    gap = numpy.array("NaT", found.dtype) if found.dtype.kind in "mM" else numpy.nan
    whole = numpy.full((len(values), *found.shape[1:]), gap, found.dtype)
    whole[[number for number, value in enumerate(values) if value is not None]] = found
    return whole


def _distinct(values: Collection[Any]) -> list[Any]:
    found = list(dict.fromkeys(values))
    try:
        return sorted(found)
    except TypeError:
        return found


def _attribute(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)
