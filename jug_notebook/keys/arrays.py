"""How arrays and tables are written for a digest: by content, whatever their layout. One entry a type; see `digest`.

Nothing is imported here for its own sake: who meets an array has numpy already.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from jug_notebook.keys.encoder import Encoder, held, register

CHUNK = 1 << 24  #: an array that isn't contiguous is copied for hashing in pieces of so many bytes

# -- numpy -------------------------------------------------------------------------------------------------------------


def _dtype_form(dtype: Any) -> tuple[Any, ...]:
    """What a dtype says of its elements. Byte order counts; metadata doesn't.

    Made anew each time: dtypes that are equal to numpy may differ in what counts, such as records and alignment.
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


@register("numpy.dtype")
def _dtype(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("dtype", _dtype_form(value))


def _chunks(array: Any) -> Iterator[memoryview]:
    """The bytes of an array in C order; copied piece by piece, where they lie otherwise."""
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


def _padded(dtype: Any) -> bool:
    """True for x86's long doubles: six bytes of each are nobody's."""
    import numpy as np

    return dtype.char in "gG" and dtype.itemsize in (16, 32) and np.finfo(dtype).nmant == 63


def _content(encoder: Encoder, array: Any, path: str) -> None:
    """The elements of a plain array. NaNs go by their bits here: to look for them would cost more than the hash."""
    import numpy as np

    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:  # by field: what lies between them is nobody's
            _content(encoder, array[name], f"{path}[{name!r}]")
    elif dtype.hasobject or dtype.kind == "T":
        encoder.add(array.ravel(order="C").tolist(), path)
    elif array.size == 0 or dtype.itemsize == 0:
        encoder.data(b"")
    elif _padded(dtype):
        encoder.data(np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, 16)[:, :10].tobytes())
    else:
        encoder.stream(array.nbytes, _chunks(array), array if array.flags.c_contiguous else None)


def _array_body(encoder: Encoder, value: Any, path: str) -> None:
    import numpy as np

    array = np.asarray(value)
    encoder.tag("ndarray", 3)
    encoder.add(_dtype_form(array.dtype))
    encoder.add(array.shape)
    _content(encoder, array, path)


@register("numpy.ndarray")
@register("numpy.memmap", attributes=False)
def _array(encoder: Encoder, value: Any, path: str) -> None:
    encoder.nested(value, path, _array_body)


@register("numpy.MaskedArray", attributes=False)
def _masked(encoder: Encoder, value: Any, path: str) -> None:
    import numpy as np

    def body(encoder: Encoder, value: Any, path: str) -> None:
        parts = (np.asarray(value.data), np.ma.getmaskarray(value), np.asarray(value.fill_value), bool(value.hardmask))
        encoder.tagged("MaskedArray", parts, path)

    encoder.nested(value, path, body)


@register("numpy.MaskedConstant", attributes=False)
def _masked_constant(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("masked")


_SCALARS = "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"


@register("numpy.generic", attributes=False)
def _scalar(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag("scalar", 2)
    dtype = value.dtype
    if dtype.kind in "fc" and value != value:
        encoder.text(dtype.str)
        encoder.add(tuple(b"" if part != part else part.tobytes() for part in (value.real, value.imag)))
    elif dtype.kind in "biufc" and dtype.char not in "gG":
        encoder.text(dtype.str)
        encoder.out += value.tobytes()
    else:
        _array_body(encoder, value, path)


for _name in _SCALARS.split():
    register(f"numpy.{_name}")(_scalar)


@register("numpy.Generator", attributes=False)
def _generator(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("Generator", (value.bit_generator,), path)


@register("numpy.BitGenerator", attributes=False)
def _bits(encoder: Encoder, value: Any, path: str) -> None:
    """State, and what `spawn` would make of it."""
    seed = getattr(value, "seed_seq", None)
    encoder.tagged("BitGenerator", (value.state, getattr(seed, "state", None)), path)


@register("numpy.RandomState", attributes=False)
def _random_state(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("RandomState", (value.get_state(legacy=False),), path)


#: what ``numpy.vectorize`` holds itself; the rest was put there by somebody
_OF_VECTORIZE = frozenset({"pyfunc", "otypes", "excluded", "signature", "cache", "_ufunc", "_in_and_out_core_dims"})


@register("numpy.vectorize", attributes=False)
def _vectorize(encoder: Encoder, value: Any, path: str) -> None:
    """Without what it keeps once it was called."""

    def body(encoder: Encoder, value: Any, path: str) -> None:
        own = tuple(getattr(value, name, None) for name in ("pyfunc", "otypes", "excluded", "signature", "cache"))
        added = {name: what for name, what in held(value).items() if name not in _OF_VECTORIZE and name[:2] != "__"}
        encoder.tagged("vectorize", (*own, added), path)

    encoder.nested(value, path, body)


# -- pandas ------------------------------------------------------------------------------------------------------------


def _column(values: Any) -> Any:
    """What a Series or an Index holds: a numpy array, or an extension array."""
    import numpy as np

    return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array


def _added(value: Any) -> tuple[Any, ...]:
    """What users add to a table: attrs, flags, and the metadata of subclasses."""
    own = {name: getattr(value, name, None) for name in value._metadata if name not in ("_name", "name")}
    return value.attrs, bool(value.flags.allows_duplicate_labels), own


@register("pandas.DataFrame", attributes=False)
def _frame(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tag("DataFrame", value.shape[1] + 3)
        encoder.add(value.columns, f"{path}.columns")
        encoder.add(value.index, f"{path}.index")
        for label, column in value.items():
            encoder.add(_column(column), f"{path}[{label!r}]")
        encoder.add(_added(value), f"{path}.attrs")

    encoder.nested(value, path, body)


@register("pandas.Series", attributes=False)
def _series(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tag("Series", 4)
        encoder.add(value.name, f"{path}.name")
        encoder.add(value.index, f"{path}.index")
        encoder.add(_column(value), path)
        encoder.add(_added(value), f"{path}.attrs")

    encoder.nested(value, path, body)


@register("pandas.Index", attributes=False)
def _index(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        frequency = getattr(value, "freqstr", None)
        encoder.tagged("Index", (value.name, _column(value), frequency), path)

    encoder.nested(value, path, body)


@register("pandas.RangeIndex", attributes=False)
def _range_index(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("RangeIndex", (value.name, range(value.start, value.stop, value.step)), path)


@register("pandas.MultiIndex", attributes=False)
def _multi_index(encoder: Encoder, value: Any, path: str) -> None:
    """By the levels, whose order `unstack` shows, and their codes. What no row has any more doesn't count."""

    def body(encoder: Encoder, value: Any, path: str) -> None:
        used = value.remove_unused_levels()
        levels = [_column(level) for level in used.levels]
        codes = [each.astype("int64") for each in used.codes]
        encoder.tagged("MultiIndex", (tuple(value.names), levels, codes), path)

    encoder.nested(value, path, body)


@register("pandas.Categorical", attributes=False)
def _categorical(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("Categorical", (value.categories, bool(value.ordered), value.codes), path)


@register("pandas.DatetimeArray", attributes=False)
@register("pandas.TimedeltaArray", attributes=False)
def _instants(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("instants", (type(value).__name__, value.unit, getattr(value, "tz", None), value.asi8), path)


@register("pandas.PeriodArray", attributes=False)
def _periods(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("periods", (value.freqstr, value.asi8), path)


@register("pandas.IntervalArray", attributes=False)
def _intervals(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("intervals", (value.left, value.right, value.closed), path)


@register("pandas.BaseMaskedArray", attributes=False)
def _nullable(encoder: Encoder, value: Any, path: str) -> None:
    """Int64, boolean, Float64: what lies below a missing value doesn't count."""
    missing = value.isna()
    numpy_dtype = value.dtype.numpy_dtype
    known = value.to_numpy(dtype=numpy_dtype, na_value=numpy_dtype.type(0)) if missing.any() else value.to_numpy()
    encoder.tagged("nullable", (str(value.dtype), known, missing), path)


@register("pandas.SparseArray", attributes=False)
def _sparse_column(encoder: Encoder, value: Any, path: str) -> None:
    import numpy as np

    encoder.tagged("sparse column", (str(value.dtype), value.fill_value, np.asarray(value)), path)


@register("pandas.StringArray", attributes=False)
def _strings(encoder: Encoder, value: Any, path: str) -> None:
    missing = value.isna()
    known = value.to_numpy(dtype=object)
    if missing.any():
        known = known.copy()
        known[missing] = ""
    form = (str(value.dtype.storage), repr(value.dtype.na_value))
    encoder.tagged("strings", (form, known.tolist(), missing), path)


@register("pandas.NumpyExtensionArray", attributes=False)
def _wrapped(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("wrapped", (value.to_numpy(),), path)


@register("pandas.ArrowExtensionArray", attributes=False)
def _arrow_column(encoder: Encoder, value: Any, path: str) -> None:
    form = (str(value.dtype), repr(getattr(value.dtype, "na_value", None)))
    encoder.tagged("arrow column", (form, value.__arrow_array__()), path)


@register("pandas.Timestamp", attributes=False)
@register("pandas.Timedelta", attributes=False)
def _instant(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("instant", (type(value).__name__, getattr(value, "tz", None), value.to_numpy()), path)


@register("pandas.NaTType", attributes=False)
@register("pandas.NAType", attributes=False)
def _missing(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tag(f"pandas {value!r}")


@register("pandas.Period", attributes=False)
def _period(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("period", (value.freqstr, value.ordinal), path)


@register("pandas.Interval", attributes=False)
def _interval(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("interval", (value.left, value.right, value.closed), path)


# -- polars ------------------------------------------------------------------------------------------------------------


@register("polars.DataFrame", attributes=False)
def _polars_frame(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("polars.DataFrame", (value.height, value.get_columns()), path)


@register("polars.Series", attributes=False)
def _polars_series(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tag("polars.Series", 4)
        encoder.text(value.name)
        encoder.text(repr(value.dtype))
        kind = str(value.dtype)
        physical = value.to_physical() if value.dtype.is_temporal() else value
        if value.dtype.is_nested():
            encoder.add(_within(value), path)
            encoder.add(None)
        elif physical.dtype.is_numeric() and not physical.dtype.is_decimal() and "128" not in kind:
            missing = physical.is_null()
            encoder.add(physical.fill_null(0).to_numpy() if missing.any() else physical.to_numpy())
            encoder.add(missing.to_numpy() if missing.any() else None)
        elif kind == "String":
            known = value.fill_null("")
            encoder.add((value.is_null().to_numpy(), known.str.len_bytes().to_numpy()))
            encoder.data((known.str.join("").item() or "").encode())
        else:
            encoder.add(value.to_list(), path)
            encoder.add(None)

    encoder.nested(value, path, body)


def _within(value: Any) -> tuple[Any, ...]:
    """What lists and structs of polars are made of: as Python values, instants would lose their nanoseconds."""
    missing = value.is_null().to_numpy()
    if value.dtype.base_type().__name__ == "Struct":
        return missing, value.struct.unnest().get_columns()
    lists = value.arr.to_list() if value.dtype.base_type().__name__ == "Array" else value
    lengths = lists.list.len().fill_null(0)
    return missing, lengths.to_numpy(), lists.filter(lengths > 0).explode().rename("")


@register("polars.LazyFrame", attributes=False)
def _lazy(encoder: Encoder, value: Any, path: str) -> None:
    encoder.refuse(value, path, "it is a plan, not a value: collect() it")


# -- pyarrow -----------------------------------------------------------------------------------------------------------


@register("pyarrow.DataType", attributes=False)
def _arrow_type(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("arrow type", (str(value),))


@register("pyarrow.Field", attributes=False)
def _arrow_field(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("arrow field", (value.name, str(value.type), value.nullable, value.metadata), path)


@register("pyarrow.Schema", attributes=False)
def _arrow_schema(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("arrow schema", (list(value), value.metadata), path)


@register("pyarrow.Table", attributes=False)
@register("pyarrow.RecordBatch", attributes=False)
def _arrow_table(encoder: Encoder, value: Any, path: str) -> None:
    def body(encoder: Encoder, value: Any, path: str) -> None:
        encoder.tagged("arrow table", (type(value).__name__, value.schema, value.num_rows, list(value.columns)), path)

    encoder.nested(value, path, body)


@register("pyarrow.Array", attributes=False)
@register("pyarrow.ChunkedArray", attributes=False)
def _arrow_array(encoder: Encoder, value: Any, path: str) -> None:
    """By the values: chunks, slices and what lies below nulls don't count."""
    encoder.nested(value, path, _arrow_body)


def _arrow_body(encoder: Encoder, value: Any, path: str) -> None:
    import numpy as np

    pa: Any = importlib.import_module("pyarrow")
    kind = value.type
    encoder.tag("arrow array", 4)
    encoder.text(str(kind))
    encoder.add(len(value))
    encoder.add(value.is_null().to_numpy(zero_copy_only=False) if value.null_count else None)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        known = value.fill_null(False if pa.types.is_boolean(kind) else 0) if value.null_count else value
        encoder.add(known.to_numpy(zero_copy_only=False) if isinstance(known, pa.Array) else known.to_numpy())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        known = (value.fill_null("") if value.null_count else value).cast(pa.large_string())
        whole = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
        if not len(whole):
            encoder.add(None)
            return
        _, offsets, data = whole.buffers()
        ends = np.frombuffer(offsets, np.int64)[whole.offset : whole.offset + len(whole) + 1]
        encoder.add(ends if not ends[0] else ends - ends[0])
        encoder.data(memoryview(data)[ends[0] : ends[-1]] if data is not None else b"")
    elif pa.types.is_temporal(kind) and kind.bit_width in (32, 64):
        plain = value.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
        encoder.add(plain)
    else:
        encoder.add(_arrow_parts(pa, value), path)


def _arrow_parts(pa: Any, value: Any) -> Any:
    """What dictionaries, lists and structs are made of: as Python values, they would lose order and nanoseconds."""
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


@register("pyarrow.Scalar", attributes=False)
def _arrow_scalar(encoder: Encoder, value: Any, path: str) -> None:
    pa: Any = importlib.import_module("pyarrow")
    encoder.tagged("arrow scalar", (pa.array([value], value.type),), path)


# -- scipy -------------------------------------------------------------------------------------------------------------


#: what sparse arrays hold themselves; anything else was put there by somebody
_OF_SPARSE = frozenset({"data", "indices", "indptr", "row", "col", "coords", "offsets", "rows", "maxprint", "format"})


@register("scipy._spbase", attributes=False)
@register("scipy.spmatrix", attributes=False)
def _sparse(encoder: Encoder, value: Any, path: str) -> None:
    """By what is stored, in order. Zeros that are stored stay, and so does what is stored twice for one place."""

    def body(encoder: Encoder, value: Any, path: str) -> None:
        import numpy as np

        kind, shape = value.format, value.shape
        added = {name: what for name, what in held(value).items() if name[0] != "_" and name not in _OF_SPARSE}
        parts: tuple[Any, ...]
        if kind in ("csr", "csc", "bsr"):
            if not value.has_canonical_format:
                value = value.copy()
                value.has_sorted_indices = False  # whoever wrote to the indices may not have said so
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

    encoder.nested(value, path, body)


# -- torch -------------------------------------------------------------------------------------------------------------


@register("torch.Tensor", attributes=False)
def _tensor(encoder: Encoder, value: Any, path: str) -> None:
    """By dtype, shape and elements, whatever the layout; whether it wants a gradient counts, the gradient doesn't."""
    encoder.nested(value, path, _tensor_body)


def _tensor_body(encoder: Encoder, value: Any, path: str) -> None:
    torch: Any = importlib.import_module("torch")
    if value.device.type != "cpu":
        encoder.refuse(value, path, f"it lies on {value.device}: hand over x.cpu()")
    if value.is_quantized or value.layout not in (torch.strided, torch.sparse_coo):
        encoder.refuse(value, path, "it is neither dense nor sparse in coordinates: hand over x.to_dense()")
    plain = value.detach()
    encoder.tag("tensor", 4)
    encoder.text(str(plain.dtype))
    encoder.add((tuple(plain.shape), bool(value.requires_grad)), path)
    if plain.layout is torch.sparse_coo:
        whole = plain.coalesce()
        encoder.add([whole.indices(), whole.values()], path)
        return
    dense = plain.resolve_conj().resolve_neg().contiguous().reshape(-1)
    encoder.data(dense.view(torch.uint8).numpy() if dense.numel() else b"")


@register("torch.Generator", attributes=False)
def _torch_generator(encoder: Encoder, value: Any, path: str) -> None:
    encoder.tagged("torch.Generator", (value.get_state(),), path)
