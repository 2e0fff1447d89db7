"""Sweeps: which calls a grid makes; lists of tasks as data: parameters, a table (pandas), labelled arrays (xarray)."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import inspect
import io
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from itertools import islice, product
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any, NamedTuple, TypeVar

from jug_notebook.errors import BadTask, NoSuchTask
from jug_notebook.model import State
from jug_notebook.render.format import describe_arguments
from jug_notebook.task.files import File
from jug_notebook.task.handles import Call, Handle, briefly

_PLAIN = frozenset({int, float, bool, complex, type(None)})
_KEPT = (
    str, bytes, PurePath, enum.Enum, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal,
    fractions.Fraction,
)  # fmt: skip
_NUMBERS = frozenset({int, float, bool, complex})
_SIMPLE = _PLAIN | {str}
_EXACT = 2**53  #: up to this, each whole number is a float
_COLOURS = 10  #: lines of a plot that have names
_MARKERS = 200  #: points of a line that are marked
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
    return tuple([name for name, _ in arguments]), in_short([value for _, value in arguments])


def in_short(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return numbers, short texts and the like as they are, what is larger as text."""
    return tuple([value if type(value) in _PLAIN else _small(value) for value in values])


def _small(value: Any) -> Any:
    if isinstance(value, File):
        value = value.path  # which the function gets
    if isinstance(value, _KEPT) and (not isinstance(value, str | bytes) or len(value) <= _LONGEST):
        return value
    if isinstance(value, int | float | complex):
        return value
    if type(value).__module__ == "numpy" and getattr(value, "shape", 1) == () and value.dtype.kind in "biufcmMSU":
        return value[()]  # of an array of no dimension, which has no hash
    if type(value) is tuple and len(value) < 10:
        return tuple(map(_small, value))
    with briefly():
        return describe_arguments([("", value)]).removeprefix("=")


def names_in(calls: Iterable[Call]) -> list[str]:
    """Return the names of all parameters, in order."""
    return list(dict.fromkeys(name for names in _kinds(calls) for name in names))


def _kinds(calls: Iterable[Call]) -> list[tuple[str, ...]]:
    """Return each sequence of parameters that calls have, once; most share one object."""
    return list(dict.fromkeys({id(names): names for names, _ in calls}.values()))


def chosen(calls: Sequence[Call], wanted: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the calls with these parameters: a value, a collection of them, a slice of them (both ends
    count), or a function that says which. Raises NoSuchTask where no call has a parameter of that name, and BadTask
    where a value can't be compared.
    """
    known = names_in(calls)
    for name in wanted:
        if name not in known:
            raise NoSuchTask(f"no parameter {name!r} in these tasks; they have {', '.join(known) or 'none'}")
    tests = {name: _decided(name, _test(value)) for name, value in wanted.items()}
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
        if wanted.step is not None:
            raise BadTask(f"sel: {wanted} has a step, but a slice of parameters has only two ends; give a list")
        low, high = wanted.start, wanted.stop
        return lambda value: (low is None or low <= value) and (high is None or value <= high)
    if isinstance(wanted, list | set | frozenset | range) or getattr(wanted, "shape", None):
        options = list(wanted)
        return lambda value: any(_same(value, option) for option in options)
    return lambda value: _same(value, wanted)


def _decided(name: str, test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test of one parameter that raises BadTask where it raises anything."""

    def decide(value: Any) -> bool:
        try:
            return test(value)
        except Exception as error:
            raise BadTask(
                f"sel({name}=…) can't be decided for {name}={value!r:.60} ({type(error).__name__}: {error}); give a "
                f"function that takes any {name}, such as lambda {name}: isinstance({name}, int) and {name} > 0"
            ) from error

    return decide


def _plain_path(value: Any) -> Any:
    return fspath(value) if isinstance(value, PathLike) else value


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, PurePath) or isinstance(wanted, PathLike):
        return bool(_plain_path(value) == _plain_path(wanted))
    return value is wanted or bool(value == wanted) or (value != value and wanted != wanted)


# -- which calls a sweep makes -----------------------------------------------------------------------------------------

LARGEST_GRID = 1_000_000  #: calls


def grid_points(
    function: str, unnamed: Sequence[Any], given: Mapping[str, Any], where: Callable[..., Any] | None = None
) -> tuple[list[str], Iterable[tuple[Any, ...]], dict[str, Any]]:
    """Return the names of the axes, their product where ``where`` holds, and the constants. Raises BadTask."""
    _all_named(function, "grid", unnamed)
    axes = {name: _axis(function, "grid", name, value) for name, value in given.items() if _is_axis(value)}
    sizes = {name: len(axis) for name, axis in axes.items()}
    count = math.prod(sizes.values())
    if count > LARGEST_GRID:
        sides = " x ".join(f"{name}: {size:,}" for name, size in sizes.items())
        raise BadTask(
            f"{function}.grid() would make {count:,} calls ({sides}), and at most {LARGEST_GRID:,} are made at once; "
            f"make an axis shorter, or put many calls in one task: {function}.starmap(product(...), chunksize=1000)"
        )
    constants = {name: value for name, value in given.items() if name not in axes}
    points: Iterable[tuple[Any, ...]] = product(*axes.values())
    if where is not None:
        points = _points_where(function, where, list(axes), points, constants)
    return list(axes), points, constants


def _all_named(function: str, verb: str, unnamed: Sequence[Any]) -> None:
    if unnamed:
        raise BadTask(f"{function}.{verb}() takes its lists by name: {function}.{verb}(a=[1, 2], b=[3, 4])")


def _points_where(
    function: str, where: Callable[..., Any], names: Sequence[str], points: Iterable[tuple[Any, ...]],
    constants: Mapping[str, Any],
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Return the points for which ``where`` holds; it gets those parameters that it names. Raises BadTask."""
    if not callable(where):
        raise BadTask(
            f"{function}.grid(where={where!r:.60}): where is a function of parameters that says which calls are made, "
            "such as where=lambda a, b: a < b"
        )
    try:
        parameters = inspect.signature(where).parameters.values()
    except ValueError:  # builtin types have none
        raise BadTask(f"{function}.grid(): it isn't known what {where} takes; write where=lambda a, b: …") from None
    known = {*names, *constants}
    every = any(one.kind is one.VAR_KEYWORD for one in parameters)
    wanted = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    unknown = [one.name for one in parameters if one.name in wanted - known and one.default is one.empty]
    if unknown:
        raise BadTask(f"{function}.grid(): where asks for {unknown[0]!r}, and the grid has {', '.join(sorted(known))}")
    found = []
    for point in points:
        values = {**constants, **dict(zip(names, point, strict=True))}
        asked = values if every else {name: value for name, value in values.items() if name in wanted}
        try:
            if where(**asked):
                found.append(point)
        except Exception as error:
            with briefly():
                call = describe_arguments(list(asked.items()))
            raise BadTask(
                f"{function}.grid(): where({call}) raised {type(error).__name__}: {error}; it says "
                "of every combination whether its call is made"
            ) from error
    return found


def _is_axis(value: Any) -> bool:
    """Does `TaskFunction.grid` iterate over it? The rest are constants."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping | set | frozenset | Handle):
        return False
    return getattr(value, "shape", None) != ()


def _axis(function: str, verb: str, name: str, axis: Iterable[Any]) -> Sequence[Any]:
    shape = getattr(axis, "shape", None)
    if isinstance(shape, tuple) and len(shape) > 1:
        part, kind = "column" if hasattr(axis, "columns") else "row", type(axis).__name__
        raise BadTask(
            f"{function}.{verb}({name}=…): this {kind} has {len(shape)} dimensions, and would be a task for each "
            f"{part}; write {name}=[{name}] to pass it as one value, {name}=list({name}) for a task for each {part}"
        )
    if isinstance(axis, Sequence):
        return axis
    return list(islice(axis, None if isinstance(axis, Sized) else LARGEST_GRID + 1))


def zipped(
    function: str, unnamed: Sequence[Any], given: Mapping[str, Any]
) -> tuple[list[str], Iterable[tuple[Any, ...]], dict[str, Any]]:
    """Return the names of the axes, their values side by side, and the constants. Raises BadTask."""
    _all_named(function, "zip", unnamed)
    axes = {name: _axis(function, "zip", name, value) for name, value in given.items() if _is_axis(value)}
    sizes = {name: len(axis) for name, axis in axes.items()}
    if len(set(sizes.values())) > 1:
        sides = ", ".join(f"{name}: {size:,}" for name, size in sizes.items())
        raise BadTask(f"{function}.zip() goes through its lists side by side, and they have unequal lengths ({sides})")
    if not axes:
        raise BadTask(f"{function}.zip() needs a list to go through, such as {function}.zip(a=[1, 2], b=[3, 4])")
    constants = {name: value for name, value in given.items() if name not in axes}
    return list(axes), zip(*axes.values(), strict=True), constants


# -- tables ------------------------------------------------------------------------------------------------------------


def frame(sweep: Sweep) -> Any:
    """Return a pandas.DataFrame with a line for each task: parameters, state, results, and errors where there are any.

    What is missing is NaN or None. Results that are dicts, dataclasses, named tuples or Series have a column for each
    of their parts, named after it, or "result.NAME" where another column has that name; others are in "result". Where
    something failed, "failure" is its kind ("raised", "timeout", "memory", "died", "blocked" by another one …) and
    "error" its message.
    """
    import pandas

    columns = _parameters(sweep.calls)
    errors = {_free(name, columns, "task."): values for name, values in _errors(sweep).items()}
    if len(set(sweep.functions)) > 1:
        columns = {_free("function", columns, "task."): list(sweep.functions)} | columns
    labels = {state: state.value for state in State}
    columns[_free("state", columns, "task.")] = [labels[state] for state in sweep.states]
    for name, values in results_by_name(sweep.values).items():
        columns[_free(name, columns | errors)] = values
    return pandas.DataFrame({name: _column(values) for name, values in (columns | errors).items()}, sweep.numbers)


def beside(calls: Sequence[Call], ours: Mapping[str, Sequence[Any]], before: str) -> Any:
    """Return a pandas.DataFrame of parameters and of columns of ours; ``before`` goes before names that both have."""
    import pandas

    columns: dict[str, Any] = dict(_parameters(calls))
    columns |= {_free(name, columns, before): values for name, values in ours.items()}
    return pandas.DataFrame({name: _column(values) for name, values in columns.items()})


def moments(seconds: Sequence[float | None]) -> Any:
    """Return seconds since the epoch as moments (UTC); None is NaT."""
    import pandas

    return pandas.to_datetime(pandas.Series(seconds, dtype=float), unit="s", utc=True)


def _parameters(calls: Sequence[Call]) -> dict[str, list[Any]]:
    """Return a column for each parameter, None for a call that has none of that name."""
    parameters = names_in(calls)
    if len(_kinds(calls)) <= 1:
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


def results_by_name(values: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the columns of results: "result", or one for each of their parts."""
    values = list(values)
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
    parameters are. What is missing is NaN or None; "state" says why, and "failure", "error" and "function" are as in
    `frame`. Arrays of equal shape add dimensions of their own. Raises BadTask where two tasks have equal parameters.
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
    coordinates = {
        name: (dim, _array(values, missing=False, labels=True)) for name, (dim, values) in coordinates.items()
    }
    data: dict[str, Any] = {}
    named = {"function": list(sweep.functions)} if len(set(sweep.functions)) > 1 else {}
    named |= {"state": [state.value for state in sweep.states], **_errors(sweep)}
    ours = {_free(name, columns, "task."): values for name, values in named.items()}
    results = {_free(name, {**columns, **ours}): values for name, values in results_by_name(sweep.values).items()}
    for name, values in {**results, **ours}.items():
        whole = _array(values, missing=count < math.prod(shape))
        inner = whole.shape[1:]
        full = numpy.full(shape + inner, _gap(whole.dtype), whole.dtype)
        full[places] = whole
        data[name] = ((*dims, *(f"{name}_{number}" for number in range(len(inner)))), full)
    return xarray.Dataset(data, coordinates, {name: _attribute(value) for name, value in fixed.items()})


def _free(name: str, taken: Collection[str], before: str = "result.") -> str:
    return before + name if name in taken else name


def _gap(dtype: Any) -> Any:
    """Return what stands for a missing value; 0 where none can be missing."""
    return {"O": None, "m": "NaT", "M": "NaT", "f": math.nan, "c": math.nan}.get(dtype.kind, 0)


def _array(values: Sequence[Any], missing: bool, labels: bool = False) -> Any:
    """Return values as one array, with dimensions of their own if all have the same shape; None is NaN in numbers.

    ``missing``: there will be gaps, too; ``labels``: each has one place, whatever its shape. What isn't numbers, or
    wouldn't be exact beside NaN, is an array of objects.
    """
    import numpy

    present = [value for value in values if value is not None]
    missing = missing or len(present) < len(values)
    found: Any = None
    if present and _NUMBERS.issuperset(set(map(type, present))):
        found = numpy.array(present)
    elif not any(isinstance(value, str | bytes | Mapping) for value in present):
        with suppress(Exception):  # of unequal shapes, or libraries' own types that refuse
            found = numpy.array(present)
    if found is not None and (found.dtype.kind not in "biufcmM" or not len(present) or (labels and found.ndim > 1)):
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
    whole = numpy.full((len(values), *found.shape[1:]), _gap(found.dtype), found.dtype)
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


# -- plots -------------------------------------------------------------------------------------------------------------


class SweepPlot:
    """A plot of a sweep's results over one of its parameters, as it is whenever it is drawn."""

    def __init__(self, data: Callable[..., Sweep], x: str, y: str, by: str, tasks: Sequence[Handle]) -> None:
        self._data = data
        self._x, self._y, self._by = x, y, by
        self._warn = True
        self.tasks = tasks  #: the first one

    @property
    def figure(self) -> Any:
        """A new matplotlib Figure of the results that there are now. Raises BadTask where x or y is no column."""
        return self._drawn(self._now())

    def _now(self) -> Sweep:
        sweep, self._warn = self._data(warn=self._warn), False
        return sweep

    def _drawn(self, sweep: Sweep) -> Any:
        from matplotlib.figure import Figure

        parameters = _parameters(sweep.calls)
        varying = [name for name, values in parameters.items() if len(dict.fromkeys(values)) > 1]
        x = self._x or next(iter(varying or parameters), "")
        others = [name for name in varying if name != x]
        by = self._by or (others[0] if len(others) == 1 else "")
        for name in filter(None, (x, by)):
            if name not in parameters:
                known = ", ".join(parameters) or "none"
                raise BadTask(f"plot: no parameter {name!r} in these tasks; they have {known}")
        values = self._numbers(sweep)
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axis = parameters.get(x, list(range(len(values))))
        numeric = all(isinstance(value, int | float) for value in axis)
        places = axis if numeric else [f"{value}" for value in axis]
        _show_all(axes, places, numeric)
        labels = parameters[by] if by else [None] * len(values)
        groups: dict[Any, list[int]] = {label: [] for label in _distinct(labels)}  # so each keeps its colour
        for number, value in enumerate(values):
            if value is not None:
                groups[labels[number]].append(number)
        lines = len(varying) - (x in varying) <= bool(by)
        for label, numbers in groups.items():
            if numeric:
                numbers.sort(key=axis.__getitem__)
            legend = f"{by} = {label}" if by and len(groups) <= _COLOURS else None
            style = "o-" if lines and len(numbers) <= _MARKERS else "-" if lines else "."
            axes.plot([places[i] for i in numbers], [values[i] for i in numbers], style, markersize=3.5, label=legend)
        if by and 0 < len(groups) <= _COLOURS:
            axes.legend(fontsize="small")
        axes.set(xlabel=x, ylabel=self._y, title=_progress(sweep))
        axes.title.set_fontsize("medium")
        return figure

    def _numbers(self, sweep: Sweep) -> list[Any]:
        """Return y of each task, None where it isn't known. Raises BadTask where none has it, or it's no number."""
        results = results_by_name(sweep.values)
        if self._y not in results and any(state is State.FINISHED for state in sweep.states):
            raise BadTask(f"plot: these results have no {self._y!r}; they have {', '.join(results)}")
        values = results.get(self._y, [None] * len(sweep.states))
        for value in values:
            if not _is_number(value):
                kind = f"{type(value).__name__} {value!r:.40}"
                raise BadTask(f"plot: {self._y!r} is {kind}, not a number; name a part of the result that is one: y=…")
        return values

    def forms(self) -> tuple[str, bytes]:
        """Return the plot as it is now, as a line and as a picture."""
        sweep, written = self._now(), io.BytesIO()
        self._drawn(sweep).savefig(written, format="png", dpi=100)
        return self._line(sweep), written.getvalue()

    def _line(self, sweep: Sweep) -> str:
        return f"<plot of {self._y} · {_progress(sweep)}>"

    def __repr__(self) -> str:
        return self._line(self._data(warn=False))

    def _repr_png_(self) -> bytes:
        return self.forms()[1]


def _show_all(axes: Any, places: Sequence[Any], numeric: bool) -> None:
    """Show the whole of the x axis, though results come one by one."""
    if not numeric:
        axes.xaxis.update_units(places)
        axes.set_xlim(-0.5, len(set(places)) - 0.5)
    elif places := [place for place in places if math.isfinite(place)]:
        low, high = min(places), max(places)
        margin = (high - low) / 20 or 0.5
        axes.set_xlim(low - margin, high + margin)


def _is_number(value: Any) -> bool:
    return value is None or (hasattr(value, "__float__") and not getattr(value, "shape", None))


def _progress(sweep: Sweep) -> str:
    counts = Counter(sweep.states)
    finished, total = counts.pop(State.FINISHED, 0), len(sweep.states)
    name = ", ".join(dict.fromkeys(sweep.functions))
    parts = [
        f"{finished:,} of {total:,} finished",
        *(f"{counts[state]:,} {state.value}" for state in State if state in counts),
    ]
    return f"{name}: {' · '.join(parts)}"
