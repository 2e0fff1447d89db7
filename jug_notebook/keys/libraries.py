"""What keys know about classes of libraries: caches, what an instance is made of, and what is refused.

One line an entry, by the dotted name of a class: ``module.qualname``, or ``root.qualname`` where the module in between
is the package's own business. An entry holds for subclasses, too. A type whose content is written in a way of its own
is in `objects` or `arrays`.

An attribute may be listed only if it follows from the others: two objects that compute differently must never have
one key. Users do the same for classes of their own with `ignore_attributes`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# -- attributes of instances -------------------------------------------------------------------------------------------

#: attributes that follow from the others: they come with use, or differ in each process
CACHES = {
    "pydantic._internal._decorators.Decorator": "cls_ref func shim",
    "pydantic.TypeAdapter": "core_schema validator serializer pydantic_complete _parent_depth _module_name",
    "pandera.Dispatcher": "_function_registry",
    "sklearn._VectorizerMixin": "_stop_words_id",
    "scipy.KDTree": "_tree",
    "scipy.UnivariateSpline": "_data",  # written in part: see FORMS
    "scipy.Delaunay": "_transform _vertex_to_simplex _vertex_neighbor_vertices",
    "scipy.ConvexHull": "_vertices",
    "scipy.Voronoi": "_ridge_dict",
    "statsmodels.RegressionModel": "rank pinv_wexog normalized_cov_params wexog_singular_values",
    "statsmodels.Results": "_summary_cache _summary_statistics_cache _nobs_int diagn",
    "statsmodels.Representation": "_representations _statespaces _kalman_filters _kalman_smoothers _simulators",
    "statsmodels.GLM": "_tmp_like_exog",  # memory to work in, never written at first
    "matplotlib.Colormap": "_isinit _lut",
    "matplotlib.CallbackRegistry": "_cid_gen",
    "gensim.SaveLoad": "lifecycle_events total_train_time",
    "formulaic.Term": "_hash",
    "mne.BaseEpochs": "_current",
    "trimesh.EnforcedForest": "_hash _cache",
    "trimesh.TrackedArray": "_dirty_hash _hashed",
    "gensim.Dictionary": "id2token",
    "astropy.UnitBase": "_hash _physical_type_id _decomposed_cache",
    "astropy.Table": "pprint_exclude_names pprint_include_names",  # how it is printed, which no pickle keeps
    "astropy.Model": "_parameters _constraints_cache",
}

#: descriptors that keep in an instance's ``__dict__``, under their own name, what they computed
LAZY = frozenset({"functools.cached_property", "astropy.lazyproperty"})

#: descriptors that keep what they computed in the instance's dict ``_cache``, under their own name
LAZY_IN_CACHE = frozenset({"pandas.CachedProperty", "statsmodels.cache_readonly"})


Change = Callable[[Any, dict[str, Any]], dict[str, Any]]


def _regression(value: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return it without the degrees of freedom that a fit derives from the data; those that a user has set count."""
    rank = state.get("rank")
    if rank is None:
        return state
    derived = {"_df_model": float(rank - state["k_constant"]), "_df_resid": state["nobs"] - rank}
    return {**state, **{name: None for name, number in derived.items() if state.get(name) == number}}


def _image(value: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return it without the array that ``get_fdata`` keeps, unless a user has changed it."""
    import numpy as np

    kept, source = state.get("_fdata_cache"), state.get("_dataobj")
    if kept is None or type(source) is not np.ndarray:
        return state
    same = np.array_equal(kept, source.astype(kept.dtype), equal_nan=True)
    return {**state, "_fdata_cache": None} if same else state


def _settable(*names: str) -> Change:
    """Return what looks up attributes that are computed when they are first read, unless a user has set them."""
    return lambda value, state: {
        **state,
        "_cache": {**state.get("_cache", {}), **{name: getattr(value, name) for name in names}},
    }


def _vectors(value: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return it without the norms of vectors, unless the vectors were changed since."""
    import numpy as np

    kept, vectors = state.get("norms"), state.get("vectors")
    same = kept is not None and vectors is not None and np.array_equal(kept, np.linalg.norm(vectors, axis=1))
    return {**state, "norms": None} if same else state


def _normalized(value: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return it with True for the function that its first use puts in the place of True."""
    usual = sys.modules["gensim.matutils"].unitvec
    return {**state, "normalize": True} if state.get("normalize") is usual else state


#: what else makes states alike that differ in what was read only
ALIKE: Mapping[str, Change] = {
    "statsmodels.RegressionModel": _regression,
    "statsmodels.ModelData": _settable("xnames", "ynames"),
    "statsmodels.RegressionResults": _settable("scale"),
    "nibabel.DataobjImage": _image,
    "gensim.KeyedVectors": _vectors,
    "gensim.TfidfModel": _normalized,
}

_users: dict[type, frozenset[str]] = {}


def names_of(kind: type) -> Iterator[str]:
    """Yield the names under which this file may list a class, and its bases."""
    for base in kind.__mro__:
        module = base.__module__
        if isinstance(module, str):
            yield f"{module}.{base.__qualname__}"
            yield f"{module.partition('.')[0]}.{base.__qualname__}"


@functools.lru_cache(1024)
def lazy_names(kind: type, descriptors: frozenset[str] = LAZY) -> frozenset[str]:
    """Return the names of lazy properties, by default of those that keep their values in the ``__dict__``."""
    return frozenset(
        name
        for base in kind.__mro__
        for name, what in vars(base).items()
        if not descriptors.isdisjoint(names_of(type(what))) and getattr(what, "fset", None) is None
    )


@functools.lru_cache(1024)
def cache_names(kind: type) -> frozenset[str]:
    """Return the attributes of instances that don't count: caches, and what users said to ignore."""
    listed = (CACHES[name].split() for name in names_of(kind) if name in CACHES)
    chosen = (_users.get(base, frozenset()) for base in kind.__mro__)
    return lazy_names(kind).union({"_attrs_cached_hash"}, *listed, *chosen)


@functools.lru_cache(1024)
def _rules(kind: type) -> tuple[frozenset[str], tuple[Change, ...]]:
    """Return what doesn't count of the dict ``_cache`` of instances, and what else makes their states alike."""
    changes = tuple(ALIKE[name] for name in dict.fromkeys(names_of(kind)) if name in ALIKE)
    return lazy_names(kind, LAZY_IN_CACHE), changes


def without(state: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return a state, and the ``__dict__`` that pydantic's models have in it, without some attributes."""
    inner = state.get("__dict__")
    if type(inner) is dict and not names.isdisjoint(inner):
        state = {**state, "__dict__": without(inner, names)}
    return state if names.isdisjoint(state) else {name: what for name, what in state.items() if name not in names}


def counted(value: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return what counts of the state of an instance; where it has a ``__dict__`` in it, of that as well."""
    kind: Any = type(value)
    passing, (cached, changes) = cache_names(kind), _rules(kind)
    for change in changes:
        state = change(value, state)
    if cached and type(state.get("_cache")) is dict:
        kept = {name: item for name, item in state["_cache"].items() if name not in cached}
        state = {name: item for name, item in state.items() if name != "_cache"} | ({"_cache": kept} if kept else {})
    return without(state, passing)


def ignore_attributes(kind: type, *names: str) -> None:
    """Leave attributes of a class's instances, and of its subclasses', out of keys: caches, counters, time stamps.

    They still travel to workers with the object, so ignore only what doesn't affect a result. Raises TypeError if
    ``kind`` isn't a class or no name is given. It holds for keys made from now on in this process.
    """
    if not isinstance(kind, type) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError('jn.ignore_attributes needs a class and names of its attributes: (Model, "_cache")')
    _users[kind] = _users.get(kind, frozenset()) | frozenset(names)
    cache_names.cache_clear()


def ignored_attributes() -> dict[str, str]:
    """Return what `ignore_attributes` was told in this process, as entries of `CACHES`."""
    return {f"{kind.__module__}.{kind.__qualname__}": " ".join(sorted(names)) for kind, names in _users.items()}


# -- attributes of classes ---------------------------------------------------------------------------------------------

#: attributes that a library derives from the rest of a class; some appear with the first instance
DERIVED = frozenset(
    {
        *("__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__", "__pydantic_complete__"),
        *("__pydantic_setattr_handlers__", "__pydantic_parent_namespace__", "__pydantic_fields_complete__"),
        *("__pydantic_computed_fields__", "__pydantic_custom_init__", "__pydantic_post_init__"),
        *("__pydantic_extra_info__", "__signature__", "__class_vars__"),
    }
)

#: and those of a library's classes and all that are derived from these, by the name of the class
DERIVED_OF = {"sympy.Basic": "_prop_handler default_assumptions"}


@functools.lru_cache(1024)
def derived_names(cls: type) -> frozenset[str]:
    """Return the attributes of a class that a library of its bases derives from the others."""
    return frozenset[str]().union(*(DERIVED_OF[name].split() for name in names_of(cls) if name in DERIVED_OF))


# -- what is made of others --------------------------------------------------------------------------------------------

Fields = Callable[[Any], list[tuple[str, Any]]]


def _dispatcher_fields(value: Any) -> list[tuple[str, Any]]:
    """Return a numba function's own parts; what it compiled when it was called follows from them."""
    options = {name: what for name, what in value.targetoptions.items() if what is not None}
    eager = None if value._can_compile else [str(each) for each in value.nopython_signatures]
    return [("func", value.py_func), ("options", options), ("locals", dict(value.locals)), ("signatures", eager)]


def _ufunc_fields(value: Any) -> list[tuple[str, Any]]:
    eager = list(value.types) if value._frozen else None
    made = value._dispatcher
    return [
        ("func", made.py_func),
        ("options", dict(made.targetoptions)),
        ("identity", value.identity),
        ("signatures", eager),
    ]


def _gufunc_fields(value: Any) -> list[tuple[str, Any]]:
    builder = value.gufunc_builder
    eager = list(value.types) if value._frozen else None
    return [
        *(("func", builder.py_func), ("signature", value.signature), ("identity", value.identity)),
        *(("options", dict(builder.targetoptions)), ("signatures", eager)),
    ]


#: things that are made of functions, and how to take them apart
COMPOSITE: Mapping[str, Fields] = {
    "numba.core.dispatcher.Dispatcher": _dispatcher_fields,
    "numba.np.ufunc.dufunc.DUFunc": _ufunc_fields,
    "numba.np.ufunc.gufunc.GUFunc": _gufunc_fields,
}


@functools.lru_cache(1024)
def composite(kind: type) -> tuple[type, Fields] | None:
    """Return the base that makes a class composite, and how to take instances apart; None for other classes."""
    for base in kind.__mro__:
        fields = COMPOSITE.get(f"{base.__module__}.{base.__qualname__}")
        if fields is not None:
            return base, fields
    return None


# -- content -----------------------------------------------------------------------------------------------------------


def _variable(value: Any) -> tuple[Any, ...]:
    return value.dims, value._data, value._attrs or {}, value._encoding or {}


def _tree(value: Any) -> tuple[Any, ...]:
    if value.parent is not None:  # what it is inside of can be read from it
        return value.path, value.root
    return value.name, _tree_content(value)


def _tree_content(value: Any) -> tuple[Any, ...]:
    children = [(name, *_tree_content(child)) for name, child in value.children.items()]
    return value.to_dataset(inherit=False), value.attrs, value.encoding, children


def _spline(value: Any) -> tuple[Any, ...]:
    """Return the data and the knots in use; the rest of the arrays was never written."""
    data = value._data
    return (data[:7], data[7:8], value._eval_args, value.ext)


def _mesh(value: Any) -> tuple[Any, ...]:
    """Return a mesh with its normals: those of a file are kept where the others are cached."""
    look = value.visual
    colours = (look.kind, look.face_colors, look.vertex_colors) if look.kind in ("face", "vertex") else look.kind
    shape = value.vertices.view(), value.faces.view(), value.face_normals, value.vertex_normals
    return (*map(_plain, shape), value.metadata, dict(value.face_attributes), dict(value.vertex_attributes), colours)


def _plain(array: Any) -> Any:
    import numpy as np

    return np.asarray(array)


def _world_coordinates(value: Any) -> tuple[Any, ...]:
    """Return the header that it is pickled as, and its attributes but for a key of that header, in order of name."""
    header = value.__reduce__()[1][2]
    return header, [(name, what) for name, what in sorted(vars(value).items()) if name != "_alt_wcskey"]


def _unit(value: Any) -> tuple[Any, ...]:
    """Return a unit by what it is worth; of its registry, the units of others than itself don't count."""
    system = getattr(value.registry.unit_system, "name", None)
    return str(value.expr), float(value.base_value), float(value.base_offset), str(value.dimensions), str(system)


def _derivatives(value: Any) -> tuple[Any, ...]:
    """Return what it becomes once it is asked for its derivatives."""
    if not value.expanded():
        value.expand()
    return (dict(value.linear_combo),)


#: types of libraries -> the parts that make an instance what it is. Caches and leftovers of memory don't count.
FORMS: Mapping[str, Callable[[Any], tuple[Any, ...]]] = {
    "scipy.cKDTree": lambda value: (value.data, value.leafsize, value.boxsize, value.indices, value.size),
    "scipy.UnivariateSpline": _spline,
    "sklearn.BinaryTree64 sklearn.BinaryTree32": lambda value: (
        (state := value.__getstate__())[:7] + state[11:]  # not how often it was asked
    ),
    "xarray.Variable": _variable,
    "xarray.DataArray": lambda value: (value._name, value._variable, _ordered(value._coords), dict(value._indexes)),
    "xarray.Dataset": lambda value: (
        *(_ordered(value._variables), sorted(map(str, value._coord_names)), value._attrs or {}),
        *(value._encoding or {}, dict(value._indexes)),
    ),
    "xarray.DataTree": _tree,
    "trimesh.Trimesh": _mesh,
    "uncertainties.LinearCombination": _derivatives,
    "trimesh.Cache": lambda value: (),
    "rdkit.ChemicalReaction": lambda value: (type(value)(value.ToBinary()).ToBinary(),),
    "unyt.Unit": _unit,
    "astropy.WCS": _world_coordinates,
    "astropy.DataInfo": lambda value: tuple(value._attrs.get(n) for n in ("name", "format", "description", "meta")),
    "astropy.Header": lambda value: ([(card.keyword, card.value, card.comment) for card in value.cards],),
}


def _ordered(value: Mapping[Any, Any]) -> tuple[Any, ...]:
    return list(value), list(value.values())


# -- what is refused --------------------------------------------------------------------------------------------------


READS = "reads its file when it is used, so a changed file would go unnoticed: "
FILE = "or jn.file(path) and open that inside the task"
_OPEN = "is open in this process only: pass jn.file(path), and open that inside the task"
_PLAN = "is a plan, not a value: "
_INSIDE = "means something in this process only: make it inside the task"

#: dotted names of classes (as for `writer_for`) -> what follows "is a zarr.Array, which"; it is for subclasses, too
REFUSED = {
    "_io._IOBase tempfile._TemporaryFileWrapper zipfile.ZipFile tarfile.TarFile pyarrow.NativeFile": _OPEN,
    "builtins.dict_keys builtins.dict_values builtins.dict_items": "changes with its dict: pass list(x)",
    "fsspec.OpenFile pandas.ExcelFile pandas.HDFStore": _OPEN,
    "_io.BytesIO _io.StringIO": "has a position, which reading it changes: pass x.getvalue()",
    "h5py.HLObject zarr.Array zarr.AsyncArray": f"{READS}pass x[...], {FILE}",
    "netCDF4.Dataset netCDF4.Variable": f"{READS}pass x['name'][...], {FILE}",
    "zarr.Group zarr.AsyncGroup": f"{READS}pass its arrays, x['name'][...], {FILE}",
    "xarray.BackendArray": f"{READS}pass x.load(), {FILE}",
    "nibabel.ArrayProxy": f"{READS}pass type(x)(x.get_fdata(), x.affine, x.header), {FILE}",
    "numpy.NpzFile": f"{READS}pass dict(x), {FILE}",
    "pyarrow.Dataset pyarrow.Fragment pyarrow.Scanner": f"{READS}pass x.to_table(), {FILE}",
    "pyarrow.ParquetFile pyarrow.ParquetDataset": f"{READS}pass x.read(), {FILE}",
    "fsspec.FSMap": f"{READS}pass dict(x), {FILE}",
    "sqlite3.Connection sqlite3.Cursor duckdb.DuckDBPyConnection _duckdb.DuckDBPyConnection": _OPEN,
    "duckdb.DuckDBPyRelation _duckdb.DuckDBPyRelation": f"{_PLAN}pass x.df()",
    "polars.LazyFrame": f"{_PLAN}pass x.collect()",
    "polars.LazyGroupBy": f"{_PLAN}pass the data, and call group_by() inside the task",
    "concurrent.Future distributed.Future": "stands for a value: pass x.result()",
    "dask.DaskMethodsMixin dask.FrameBase": f"{_PLAN}pass x.compute()",
    "distributed.Client sqlalchemy.Engine sqlalchemy.Connection sqlalchemy.Session rich.Console": _INSIDE,
    "redis.Redis httpx.BaseClient": _INSIDE,
    "pint.GenericPlainRegistry pint.LazyRegistry pint.ApplicationRegistry": (
        "can't be sent to a worker: read pint.get_application_registry() inside the task, or pass quantities"
    ),
    "matplotlib.Artist matplotlib.TransformNode": (
        "is numbered by where it lies in memory: pass the task that returns it, or what it is drawn from"
    ),
    "matplotlib.RcParams": (
        "belongs to this process: pass the settings that you changed, as a dict, and call plt.rc_context(x) in the task"
    ),
    "pandas.StylerRenderer": "has a random id: pass the table, x.data, and style it inside the task",
    "sqlalchemy.ClauseElement": f"{_PLAN}pass what it is made from, and build it inside the task",
    "torch.ScriptModule": f"{_INSIDE}, or pass jn.file(path) of what torch.jit.save wrote",
    "numba.List numba.Dict": "lies in numba's own memory: pass list(x) or dict(x), and make it inside the task",
    "_box.Box": "lies in numba's own memory: pass its fields, and make it inside the task",
    "sqlalchemy.Mapper sqlalchemy.MetaData sqlalchemy.Table": (
        "belongs to SQLAlchemy's registry in this process: pass the values of its columns, as a dict or a dataclass"
    ),
    "spacy.Language spacy.Vocab": "has a different form in each process: pass its name, and load it inside the task",
    "spacy.Doc spacy.Span spacy.Token": "has a different form in each process: pass x.text, or Doc.to_bytes()",
    "sympy.Dummy": "is a different symbol in each process: pass sympy.Symbol(name)",
    "xarray.GroupBy": f"{_PLAN}pass the data, and call groupby() inside the task",
    "concurrent.Executor socket.socket _socket.socket": _INSIDE,
}


# -- what counts by name -----------------------------------------------------------------------------------------------

#: shared objects whose state is no value: (module, name of the attribute)
SHARED = (("random", "_inst"), ("numpy.random.mtrand", "_rand"))


def shared_name(value: Any) -> tuple[str, str] | None:
    """Return the (module, name) of a generator of random numbers that a whole process shares; None for others."""
    for home, name in SHARED:
        module = sys.modules.get(home)
        if module is not None and value is getattr(module, name, None):
            return home, name
    return None
