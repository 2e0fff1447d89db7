"""Lists of tasks as data: what their parameters are, as a table (pandas) or as labelled arrays (xarray)."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jug_notebook.errors import BadTask, NoSuchTask
from jug_notebook.model import State
from jug_notebook.render.format import describe_arguments
from jug_notebook.task.handles import Call, briefly

_PLAIN = frozenset({int, float, bool, complex, type(None)})
_KEPT = (str, bytes, enum.Enum, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction)
_LONGEST = 200  #: characters of a parameter that is text


class Row(NamedTuple):
    """A task as a line of a table. ``error`` is empty, or says in a line why there is no value."""

    name: str
    call: Call
    state: State
    value: Any
    error: str


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


def frame(rows: Sequence[Row]) -> Any:
    """Return a pandas.DataFrame with a line for each task: parameters, state, results, and errors where there are any.

    What is missing is NaN or None. Results that are dicts, dataclasses, named tuples or Series have a column for each
    of their parts, named after it, or "result.NAME" where a parameter has that name; others are in "result".
    """
    import pandas

    columns: dict[str, Any] = {}
    functions = [row.name for row in rows]
    if len(set(functions)) > 1:
        columns["function"] = functions
    parameters = names_in(row.call for row in rows)
    same = len({row.call[0] for row in rows}) <= 1
    if same and rows:
        columns.update(zip(parameters, zip(*(row.call[1] for row in rows), strict=True), strict=True))
    else:
        having = [dict(zip(*row.call, strict=True)) for row in rows]
        columns.update({name: [one.get(name) for one in having] for name in parameters})
    labels = {state: state.value for state in State}
    columns["state"] = [labels[row.state] for row in rows]
    for name, values in _results(rows).items():
        columns[f"result.{name}" if name in columns else name] = values
    if any(row.error for row in rows):
        columns["error"] = [row.error or None for row in rows]
    return pandas.DataFrame({name: _column(values) for name, values in columns.items()})


def _column(values: Sequence[Any]) -> Sequence[Any]:
    """Return values as a column; arrays and lists are objects in it."""
    kinds = set(map(type, values))
    if not kinds <= _PLAIN and any(getattr(v, "shape", ()) or isinstance(v, list | tuple | dict) for v in values):
        import pandas

        return pandas.Series(list(values), dtype=object)  # type: ignore[no-any-return]
    return list(values)


def _results(rows: Sequence[Row]) -> dict[str, list[Any]]:
    finished = [row.value for row in rows if row.state is State.FINISHED]
    if not finished or _parts(finished[0]) is None:
        return {"result": [row.value for row in rows]}
    spread = [_parts(row.value) if row.state is State.FINISHED else {} for row in rows]
    names = dict.fromkeys(name for parts in spread for name in parts or ())
    columns = {str(name): [(parts or {}).get(name) for parts in spread] for name in names}
    if any(parts is None for parts in spread):
        columns["result"] = [row.value if parts is None else None for row, parts in zip(rows, spread, strict=True)]
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


def dataset(rows: Sequence[Row]) -> Any:
    """Return an xarray.Dataset with a dimension for each parameter that varies; those that don't are attributes.

    Where the tasks are less than half of all combinations, they have one dimension, "task", whose coordinates the
    parameters are. What is missing is NaN; "state" says why. Arrays add dimensions of their own. Raises BadTask where
    two tasks have equal parameters.
    """
    import numpy
    import xarray

    names = names_in(row.call for row in rows)
    having = [dict(zip(*row.call, strict=True)) for row in rows]
    columns = {name: [one.get(name) for one in having] for name in names}
    axes = {name: _distinct(values) for name, values in columns.items()}
    fixed = {name: axes.pop(name)[0] for name in names if len(axes[name]) == 1}
    numbers = {name: {value: number for number, value in enumerate(axis)} for name, axis in axes.items()}
    where = [tuple(number[one.get(name)] for name, number in numbers.items()) for one in having]
    if len(set(where)) < len(rows) and axes:
        raise BadTask("two tasks have equal parameters: .to_frame() shows them all, or choose some with .sel(...)")
    sizes = tuple(map(len, axes.values()))
    flat = not axes or len(rows) * 2 < math.prod(sizes)
    dims, shape = (("task",), (len(rows),)) if flat else (tuple(axes), sizes)
    places: list[tuple[int, ...]] = [(number,) for number in range(len(rows))] if flat else where
    coordinates = {name: ("task", columns[name]) for name in axes} if flat else axes
    data: dict[str, Any] = {}
    for name, values in {**_results(rows), "state": [row.state.value for row in rows]}.items():
        inner = next((numpy.shape(value) for value in values if numpy.shape(value)), ())
        like = numpy.asarray([value for value in values if value is not None][:1])
        text = like.dtype.kind not in "biufc"
        whole = numpy.full(
            shape + inner, None if text else numpy.nan, object if text else numpy.result_type(like, float)
        )
        for place, value in zip(places, values, strict=True):
            if value is not None and (not inner or numpy.shape(value) == inner):
                whole[place] = value
        data[name] = ((*dims, *(f"{name}_{number}" for number in range(len(inner)))), whole)
    return xarray.Dataset(data, coordinates, {name: _attribute(value) for name, value in fixed.items()})


def _distinct(values: Collection[Any]) -> list[Any]:
    found = list(dict.fromkeys(values))
    try:
        return sorted(found)
    except TypeError:
        return found


def _attribute(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)
