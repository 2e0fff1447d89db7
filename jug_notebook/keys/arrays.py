"""How arrays and tables (numpy, pandas, polars, pyarrow, scipy, torch) are written for a digest, by content.

To make another type of such a package hashable, add one function (`writer_for`), or one line (`write_parts`). Types are
named by text, so that no package is imported here: a process that meets an array has numpy loaded already.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from jug_notebook.keys.advice import report_dropped
from jug_notebook.keys.encoder import Encoder
from jug_notebook.keys.objects import by_shared_name
from jug_notebook.keys.register import held_by, instance_dict, write_parts, writer_for
from jug_notebook.system import WATCHED

#: for types of which an instance holds nothing but its content, or whose writer below looks for more itself
_writer_for, _write_parts = partial(writer_for, attributes=False), partial(write_parts, attributes=False)

CHUNK = 1 << 24  #: an array that isn't contiguous is copied for hashing in pieces of this number of bytes

# -- numpy -------------------------------------------------------------------------------------------------------------


def _dtype_form(dtype: Any) -> tuple[Any, ...]:
    """Return what a dtype says about its elements. Byte order counts; metadata doesn't.

    Made again each time: dtypes that are equal to numpy may differ in what counts, such as records and alignment.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ("sub", _dtype_form(base), tuple(shape))
    if dtype.names is not None:
        fields = tuple((name, _dtype_form(dtype.fields[name][0]), *dtype.fields[name][1:]) for name in dtype.names)
        record = ("record",) if dtype.type.__name__ == "record" else ()  # elements have attributes
        return ("fields", fields, dtype.itemsize, dtype.isalignedstruct, *record)
    if dtype.kind == "T":
        missing = getattr(dtype, "na_object", "")
        return ("string", repr(missing), bool(getattr(dtype, "coerce", True)))
    return ("plain", dtype.str)


write_parts("numpy.dtype", "dtype", _dtype_form)


def _chunks(array: Any) -> Iterator[memoryview]:
    """Yield the bytes of an array in C order, copied piece by piece if its layout is another."""
    import numpy as np

    def raw(piece: Any) -> memoryview:
        flat: Any = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
        return memoryview(flat)

    if array.flags.c_contiguous or array.nbytes <= CHUNK or not array.ndim:
        yield raw(array)
        return
    rows = max(1, CHUNK * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield raw(array[start : start + rows])


def _place(array: Any) -> tuple[int, int]:
    """Return where its first byte in memory is, and the end of its last."""
    start = array.__array_interface__["data"][0]
    ways = [step * (length - 1) for step, length in zip(array.strides, array.shape, strict=True)]
    return start + sum(way for way in ways if way < 0), start + sum(way for way in ways if way > 0) + array.itemsize


def _padded(dtype: Any) -> bool:
    """Return True for x86's long doubles: six bytes of each are padding."""
    import numpy as np

    return dtype.char in "gG" and dtype.itemsize in (16, 32) and np.finfo(dtype).nmant == 63


def _content(encoder: Encoder, array: Any, path: str) -> None:
    """Write the elements of a plain array. NaNs count by their bits: looking for them would cost more than the hash."""
    import numpy as np

    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:  # by field: what lies between them is padding
            _content(encoder, array[name], f"{path}[{name!r}]")
    elif dtype.hasobject or dtype.kind == "T":
        encoder.part(array.ravel(order="C").tolist(), path)
    elif array.size == 0 or dtype.itemsize == 0:
        encoder.data(b"")
    elif _padded(dtype):
        encoder.data(np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, 16)[:, :10].tobytes())
    else:
        form = None if array.flags.c_contiguous else (array.shape, array.strides, dtype.itemsize)
        place = _place(array) if array.nbytes >= WATCHED else None
        encoder.stream(array.nbytes, _chunks(array), None if form else array, place, form)


@writer_for("numpy.ndarray", mutable=True)
@_writer_for("numpy.memmap", mutable=True)
def _array_body(encoder: Encoder, value: Any, path: str) -> None:
    import numpy as np

    held, kind = held_by(value), type(value)
    if held and kind.__module__ != "numpy" and "ndarray" in kind.__reduce__.__qualname__:
        report_dropped(value, held)
    array = np.asarray(value)
    encoder.tag("ndarray", 3)
    encoder.part(_dtype_form(array.dtype))
    encoder.part(array.shape)
    _content(encoder, array, path)


@_writer_for("numpy.MaskedArray", mutable=True)
def _masked(encoder: Encoder, value: Any, path: str) -> None:
    import numpy as np

    parts = (np.asarray(value.data), np.ma.getmaskarray(value), np.asarray(value.fill_value), bool(value.hardmask))
    encoder.tagged("MaskedArray", parts, path)


@_writer_for("numpy.MaskedConstant")
def _masked_constant(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("masked")


_SCALARS = "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"


@_writer_for("numpy.generic")
def _scalar(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("scalar", 2)
    dtype = value.dtype
    if dtype.kind in "fc" and value != value:
        encoder.text(dtype.str)
        encoder.part(tuple(b"" if part != part else part.tobytes() for part in (value.real, value.imag)))
    elif dtype.kind in "biufc" and dtype.char not in "gG":
        encoder.text(dtype.str)
        encoder.out += value.tobytes()
    else:
        _array_body(encoder, value, path)


for _name in _SCALARS.split():
    writer_for(f"numpy.{_name}")(_scalar)


@_writer_for("numpy.Generator", mutable=True)
def _generator(encoder: Encoder, value: Any, path: str) -> None:
    """Write what it draws from: two generators may share it."""
    encoder.tag("Generator", 1)
    encoder.add(value.bit_generator, path)


@_writer_for("numpy.BitGenerator", mutable=True)
def _bits(encoder: Encoder, value: Any, path: str) -> None:
    """Write the state, and what `spawn` would make of it."""
    seed = getattr(value, "seed_seq", None)
    encoder.tagged("BitGenerator", (value.state, getattr(seed, "state", None)), path)


@_writer_for("numpy.RandomState", mutable=True)
def _random_state(encoder: Encoder, value: Any, path: str) -> None:
    if not by_shared_name(encoder, value):
        encoder.tagged("RandomState", (value.get_state(legacy=False),), path)


#: attributes of ``numpy.vectorize`` itself; others were added by the user
_OF_VECTORIZE = frozenset({"pyfunc", "otypes", "excluded", "signature", "cache", "_ufunc", "_in_and_out_core_dims"})


@_writer_for("numpy.vectorize", nested=True)
def _vectorize(encoder: Encoder, value: Any, path: str) -> None:
    """Write it without what it caches when called."""

    own = tuple(getattr(value, name, None) for name in ("pyfunc", "otypes", "excluded", "signature", "cache"))
    added = {
        name: what for name, what in instance_dict(value).items() if name not in _OF_VECTORIZE and name[:2] != "__"
    }
    encoder.tagged("vectorize", (*own, added), path)


# -- pandas ------------------------------------------------------------------------------------------------------------


def _column(values: Any) -> Any:
    """Return what a Series or an Index holds: a numpy array, or an extension array."""
    import numpy as np

    return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array


def _added(value: Any) -> tuple[Any, ...]:
    """Return what users add to a table: attrs, flags, and the metadata of subclasses."""
    report_dropped(value, [n for n in instance_dict(value) if n[0] != "_" and n not in value._metadata])
    own = {name: getattr(value, name, None) for name in value._metadata if name not in ("_name", "name")}
    return value.attrs, bool(value.flags.allows_duplicate_labels), own


@_writer_for("pandas.DataFrame", mutable=True)
def _frame(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("DataFrame", value.shape[1] + 3)
    encoder.part(value.columns, f"{path}.columns")
    encoder.part(value.index, f"{path}.index")
    for label, column in value.items():
        encoder.part(_column(column), f"{path}[{label!r}]")
    encoder.part(_added(value), f"{path}.attrs")


@_writer_for("pandas.Series", mutable=True)
def _series(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("Series", 4)
    encoder.part(value.name, f"{path}.name")
    encoder.part(value.index, f"{path}.index")
    encoder.part(_column(value), path)
    encoder.part(_added(value), f"{path}.attrs")


@_writer_for("pandas.Index", nested=True)
def _index(encoder: Encoder, value: Any, path: str) -> None:
    frequency = getattr(value, "freqstr", None)
    encoder.tagged("Index", (value.name, _column(value), frequency), path)


_write_parts("pandas.RangeIndex", "RangeIndex", lambda value: (value.name, range(value.start, value.stop, value.step)))


@_writer_for("pandas.MultiIndex", nested=True)
def _multi_index(encoder: Encoder, value: Any, path: str) -> None:
    """Write the levels, whose order `unstack` shows, and their codes. Values that no row has don't count."""

    used = value.remove_unused_levels()
    levels = [_column(level) for level in used.levels]
    codes = [each.astype("int64") for each in used.codes]
    encoder.tagged("MultiIndex", (tuple(value.names), levels, codes), path)


_write_parts("pandas.Categorical", "Categorical", lambda value: (value.categories, bool(value.ordered), value.codes))
_write_parts(
    "pandas.DatetimeArray pandas.TimedeltaArray",
    "instants",
    lambda value: (type(value).__name__, value.unit, getattr(value, "tz", None), value.asi8),
)
_write_parts("pandas.PeriodArray", "periods", lambda value: (value.freqstr, value.asi8))
_write_parts("pandas.IntervalArray", "intervals", lambda value: (value.left, value.right, value.closed))


@_writer_for("pandas.BaseMaskedArray")
def _nullable(encoder: Encoder, value: Any, path: str) -> None:
    """Write Int64, boolean, Float64 and the like: what lies below a missing value doesn't count."""
    missing = value.isna()
    numpy_dtype = value.dtype.numpy_dtype
    known = value.to_numpy(dtype=numpy_dtype, na_value=numpy_dtype.type(0)) if missing.any() else value.to_numpy()
    encoder.tagged("nullable", (str(value.dtype), known, missing), path)


@_writer_for("pandas.SparseArray")
def _sparse_column(encoder: Encoder, value: Any, path: str) -> None:
    import numpy as np

    encoder.tagged("sparse column", (str(value.dtype), value.fill_value, np.asarray(value)), path)


@_writer_for("pandas.StringArray")
def _strings(encoder: Encoder, value: Any, path: str) -> None:
    missing = value.isna()
    known = value.to_numpy(dtype=object)
    if missing.any():
        known = known.copy()
        known[missing] = ""
    form = (str(value.dtype.storage), repr(value.dtype.na_value))
    encoder.tagged("strings", (form, known.tolist(), missing), path)


_write_parts("pandas.NumpyExtensionArray", "wrapped", lambda value: (value.to_numpy(),))


@_writer_for("pandas.ArrowExtensionArray")
def _arrow_column(encoder: Encoder, value: Any, path: str) -> None:
    form = (str(value.dtype), repr(getattr(value.dtype, "na_value", None)))
    encoder.tagged("arrow column", (form, value.__arrow_array__()), path)


_write_parts(
    "pandas.Timestamp pandas.Timedelta",
    "instant",
    lambda value: (type(value).__name__, getattr(value, "tz", None), value.to_numpy()),
)


@_writer_for("pandas.NaTType")
@_writer_for("pandas.NAType")
def _missing(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag(f"pandas {value!r}")


_write_parts("pandas.Period", "period", lambda value: (value.freqstr, value.ordinal))
_write_parts("pandas.Interval", "interval", lambda value: (value.left, value.right, value.closed))


# -- polars ------------------------------------------------------------------------------------------------------------


@_writer_for("polars.DataFrame", mutable=True)
def _polars_frame(encoder: Encoder, value: Any, path: str) -> None:
    report_dropped(value, [name for name in instance_dict(value) if name[0] != "_"])
    encoder.tagged("polars.DataFrame", (value.height, value.get_columns()), path)


@_writer_for("polars.Series", mutable=True)
def _polars_series(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("polars.Series", 4)
    encoder.text(value.name)
    encoder.text(repr(value.dtype))
    kind = str(value.dtype)
    physical = value.to_physical() if value.dtype.is_temporal() else value
    if value.dtype.is_nested():
        encoder.part(_within(value), path)
        encoder.part(None)
    elif physical.dtype.is_numeric() and not physical.dtype.is_decimal() and "128" not in kind:
        missing = physical.is_null()
        encoder.part(physical.fill_null(0).to_numpy() if missing.any() else physical.to_numpy())
        encoder.part(missing.to_numpy() if missing.any() else None)
    elif kind == "String":
        known = value.fill_null("")
        encoder.part((value.is_null().to_numpy(), known.str.len_bytes().to_numpy()))
        encoder.data((known.str.join("").item() or "").encode())
    else:
        encoder.part(value.to_list(), path)
        encoder.part(None)


def _within(value: Any) -> tuple[Any, ...]:
    """Return the parts of lists and structs of polars: as Python values, instants would lose their nanoseconds."""
    missing = value.is_null().to_numpy()
    if value.dtype.base_type().__name__ == "Struct":
        return missing, value.struct.unnest().get_columns()
    lists = value.arr.to_list() if value.dtype.base_type().__name__ == "Array" else value
    lengths = lists.list.len().fill_null(0)
    return missing, lengths.to_numpy(), lists.filter(lengths > 0).explode().rename("")


# -- pyarrow -----------------------------------------------------------------------------------------------------------


_write_parts("pyarrow.DataType", "arrow type", lambda value: (str(value),))
_write_parts(
    "pyarrow.Field", "arrow field", lambda value: (value.name, str(value.type), value.nullable, value.metadata)
)
_write_parts("pyarrow.Schema", "arrow schema", lambda value: (list(value), value.metadata))
_write_parts(
    "pyarrow.Table pyarrow.RecordBatch",
    "arrow table",
    lambda value: (type(value).__name__, value.schema, value.num_rows, list(value.columns)),
    nested=True,
)


@_writer_for("pyarrow.Array", nested=True)
@_writer_for("pyarrow.ChunkedArray", nested=True)
def _arrow_array(encoder: Encoder, value: Any, path: str) -> None:
    """Write the values; chunks, slices and what lies below nulls don't count."""
    import numpy as np

    pa: Any = importlib.import_module("pyarrow")
    kind = value.type
    encoder.tag("arrow array", 4)
    encoder.text(str(kind))
    encoder.part(len(value))
    encoder.part(value.is_null().to_numpy(zero_copy_only=False) if value.null_count else None)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        known = value.fill_null(False if pa.types.is_boolean(kind) else 0) if value.null_count else value
        encoder.part(known.to_numpy(zero_copy_only=False) if isinstance(known, pa.Array) else known.to_numpy())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        known = (value.fill_null("") if value.null_count else value).cast(pa.large_string())
        whole = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
        if not len(whole):
            encoder.part(None)
            return
        _, offsets, data = whole.buffers()
        ends = np.frombuffer(offsets, np.int64)[whole.offset : whole.offset + len(whole) + 1]
        encoder.part(ends if not ends[0] else ends - ends[0])
        encoder.data(memoryview(data)[ends[0] : ends[-1]] if data is not None else b"")
    elif pa.types.is_temporal(kind) and kind.bit_width in (32, 64):
        plain = value.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
        encoder.part(plain)
    else:
        encoder.part(_arrow_parts(pa, value), path)


def _arrow_parts(pa: Any, value: Any) -> Any:
    """Return the parts of dictionaries, lists and structs: as Python values, they would lose order and nanoseconds."""
    kind = value.type
    if isinstance(value, pa.ChunkedArray):
        if pa.types.is_dictionary(kind):
            value = value.unify_dictionaries()
        value = value.combine_chunks()
        if isinstance(value, pa.ChunkedArray):  # longer than one array can be
            return [_arrow_parts(pa, chunk) for chunk in value.chunks]
    if pa.types.is_dictionary(kind):
        return value.indices, value.dictionary
    if pa.types.is_struct(kind):
        return [str(field.metadata) for field in kind.fields], value.flatten()
    if pa.types.is_run_end_encoded(kind):
        return (importlib.import_module("pyarrow.compute").run_end_decode(value),)
    if isinstance(value, pa.ExtensionArray):
        return (value.storage,)
    if pa.types.is_map(kind):
        value = value.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
    if hasattr(value, "value_lengths"):
        return value.value_lengths().fill_null(0), value.flatten()
    return value.to_pylist()


@_writer_for("pyarrow.Scalar")
def _arrow_scalar(encoder: Encoder, value: Any, path: str) -> None:
    pa: Any = importlib.import_module("pyarrow")
    encoder.tagged("arrow scalar", (pa.array([value], value.type),), path)


# -- scipy -------------------------------------------------------------------------------------------------------------


#: attributes of sparse arrays themselves; others were added by the user
_OF_SPARSE = frozenset({"data", "indices", "indptr", "row", "col", "coords", "offsets", "rows", "maxprint", "format"})


@_writer_for("scipy._spbase", mutable=True)
@_writer_for("scipy.spmatrix", mutable=True)
def _sparse(encoder: Encoder, value: Any, path: str) -> None:
    """Write what is stored, in order. Stored zeros count, and so do entries stored twice for one place."""

    import numpy as np

    kind, shape = value.format, value.shape
    added = {name: what for name, what in instance_dict(value).items() if name[0] != "_" and name not in _OF_SPARSE}
    parts: tuple[Any, ...]
    if kind in ("csr", "csc", "bsr"):
        if not value.has_canonical_format:
            value = value.copy()
            value.has_sorted_indices = False  # code that wrote to the indices may not have cleared this flag
            value.sort_indices()
        parts = (value.indptr.astype(np.int64), value.indices.astype(np.int64), value.data)
    elif kind == "dia":
        order = np.argsort(value.offsets, kind="stable")
        parts = (value.offsets[order].astype(np.int64), value.data[order])
    else:
        value = value.tocoo()
        places = getattr(value, "coords", None) or (value.row, value.col)
        order = np.lexsort(places[::-1])
        parts = (*(place[order].astype(np.int64) for place in places), value.data[order])
    parts = (kind, tuple(int(side) for side in shape), *parts)
    encoder.tagged("sparse and more" if added else "sparse", (*parts, added) if added else parts, path)


# -- torch -------------------------------------------------------------------------------------------------------------


@_writer_for("torch.Tensor", mutable=True)
def _tensor(encoder: Encoder, value: Any, path: str) -> None:
    """Write dtype, shape, elements and whether it needs a gradient; neither its layout nor its gradient counts."""
    torch: Any = importlib.import_module("torch")
    if value.device.type != "cpu":
        encoder.refuse(value, path, f"it is on {value.device}: pass x.cpu()")
    if value.is_quantized or value.layout not in (torch.strided, torch.sparse_coo):
        encoder.refuse(value, path, "it is neither dense nor sparse in coordinates: pass x.to_dense()")
    plain = value.detach()
    report_dropped(value, ["hooks"] if value._backward_hooks else [])
    if added := instance_dict(value):
        encoder.tagged("tensor and more", (added,), path)
    encoder.tag("tensor", 4)
    encoder.text(str(plain.dtype))
    encoder.part((tuple(plain.shape), bool(value.requires_grad)), path)
    if plain.layout is torch.sparse_coo:
        whole = plain.coalesce()
        encoder.part([whole.indices(), whole.values()], path)
        return
    dense = plain.resolve_conj().resolve_neg().contiguous().reshape(-1)
    encoder.data(dense.view(torch.uint8).numpy() if dense.numel() else b"")


_write_parts("torch.Generator", "torch.Generator", lambda value: (value.get_state(),), mutable=True)


# -- units -------------------------------------------------------------------------------------------------------------


def _units(value: Any) -> tuple[Any, ...]:
    """Return the units of a quantity of pint, by name; its class, which each registry makes anew, doesn't count."""
    return type(value).__name__, getattr(value, "magnitude", None), tuple(sorted(dict(value._units).items()))


_write_parts("pint.Quantity pint.Unit pint.Measurement", "pint", _units)


@_writer_for("astropy.Column", mutable=True)
@_writer_for("astropy.MaskedColumn", mutable=True)
def _astropy_column(encoder: Encoder, value: Any, path: str) -> None:
    """Write content and description; neither the table that it is part of nor what `info` keeps counts."""
    about = (value.name, str(value.unit or ""), value.format, value.description, dict(value.meta or {}))
    encoder.tagged("astropy column", (type(value).__name__, value.data, about), path)
