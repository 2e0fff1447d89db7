"""Objects of many libraries, as they are passed to tasks: one entry an object. `test_zoo` names them all.

Run as a script, so that its classes and functions are a notebook's own, it makes each object, names it in several ways,
and prints a line of JSON an entry. Arguments: libraries; all of them without any.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import json
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jug_notebook.codec import dump_value, load_value
from jug_notebook.errors import JugError
from jug_notebook.keys.digest import digest

PATIENCE = 10  #: seconds for one entry


class Entry(NamedTuple):
    """An object of a library: how it is made, what is done with it, and another one that computes differently."""

    library: str  #: the package to import; parts of other names are installed with it
    name: str
    make: Callable[[], Any]
    other: Callable[[], Any]
    use: Callable[[Any], Any] | None = None  #: looks at it, and leaves what it computes as it is
    refused: str = ""  #: where no stable key is possible: words of the advice


class Lazy:
    """A module that is imported when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


np, pd, rng = Lazy("numpy"), Lazy("pandas"), Lazy("numpy.random")
X = functools.cache(lambda: rng.default_rng(1).normal(size=(60, 3)))
Y = functools.cache(lambda: (X()[:, 0] > 0).astype(int))

# -- Python ------------------------------------------------------------------------------------------------------------


class Circle:
    def __init__(self, radius: float) -> None:
        self.radius = radius

    @functools.cached_property
    def area(self) -> float:
        return 3.14 * self.radius**2


class Slotted:
    __slots__ = ("__dict__", "radius")

    def __init__(self, radius: float) -> None:
        self.radius = radius

    @functools.cached_property
    def area(self) -> float:
        return 3.14 * self.radius**2


@dataclasses.dataclass(frozen=True)
class Frozen:
    radius: float

    @functools.cached_property
    def area(self) -> float:
        return 3.14 * self.radius**2


class KeepsHash:
    def __init__(self, name: str) -> None:
        self.name, self._hash = name, hash(name)


def _area(value: Any) -> None:
    assert value.area


def _draws() -> Any:
    from random import random

    def task(n: int) -> list[float]:
        return [random() for _ in range(n)]

    return task


# -- pydantic and the like ---------------------------------------------------------------------------------------------


def models(kind: str, limit: int = 3) -> Any:
    """A model, of a class that is made here, as in a notebook."""
    from typing import Annotated, Generic, TypeVar

    from pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        PrivateAttr,
        RootModel,
        TypeAdapter,
        computed_field,
        create_model,
        field_serializer,
        field_validator,
        model_validator,
    )  # fmt: skip
    from pydantic.dataclasses import dataclass

    class Plain(BaseModel):
        n: int
        names: list[str] = []

    class Nested(BaseModel):
        inner: Plain
        more: dict[str, Plain] = {}

    class Limited(BaseModel):
        n: Annotated[int, Field(gt=0, lt=limit)] = 1

    class Validated(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def positive(cls, value: int) -> int:
            assert value < limit
            return value

        @model_validator(mode="after")
        def whole(self) -> Any:
            return self

    class Serialized(BaseModel):
        n: int

        @field_serializer("n")
        def written(self, value: int) -> str:
            return str(value + limit)

    class Computed(BaseModel):
        n: int

        @computed_field
        @functools.cached_property
        def area(self) -> int:
            return self.n * limit

    class Configured(BaseModel):
        model_config = ConfigDict(extra="allow", frozen=True, title=str(limit))
        n: int

    class Private(BaseModel):
        n: int
        _seen: int = PrivateAttr(default=limit)

    class Recursive(BaseModel):
        n: int
        children: list[Recursive] = []

    Recursive.model_rebuild(_types_namespace={"Recursive": Recursive})
    T = TypeVar("T")

    class Box(BaseModel, Generic[T]):
        held: T

    @dataclass
    class Checked:
        n: int
        m: int = limit

    made: dict[str, Callable[[], Any]] = {
        "plain": lambda: Plain(n=limit),
        "class": lambda: Limited,
        "nested": lambda: Nested(inner=Plain(n=limit)),
        "limited": lambda: Limited(),
        "validated": lambda: Validated(n=1),
        "serialized": lambda: Serialized(n=1),
        "computed": lambda: Computed(n=2),
        "configured": lambda: Configured(n=1, more=2),
        "private": lambda: Private(n=1),
        "recursive": lambda: Recursive(n=limit, children=[Recursive(n=1)]),
        "generic": lambda: Box[int](held=limit),
        "root": lambda: RootModel[list[int]]([limit]),
        "dataclass": lambda: Checked(n=1),
        "created": lambda: create_model("Created", n=(int, limit))(),
        "adapter": lambda: TypeAdapter(Annotated[list[int], Field(max_length=limit)]),
    }
    return made[kind]()


def sqlmodels(limit: int) -> Any:
    from sqlmodel import Field, SQLModel

    class Hero(SQLModel):
        n: int = Field(default=limit, ge=0)

    return Hero(n=limit)


def tables(column: str) -> Any:
    from sqlalchemy import Column, Integer
    from sqlalchemy.orm import declarative_base

    Base = declarative_base()
    Hero = type(
        "Hero", (Base,), {"__tablename__": "heroes", "id": Column(Integer, primary_key=True), column: Column(Integer)}
    )
    return Hero(id=1)


# -- numba -------------------------------------------------------------------------------------------------------------


def compiled(factor: int, kind: str = "njit") -> Any:
    import numba

    def scale(x: float) -> float:
        return x * factor

    if kind == "eager":
        return numba.njit("f8(f8)")(scale)
    if kind == "vectorize":
        return numba.vectorize(scale)
    if kind == "options":
        return numba.njit(scale, fastmath=factor == 2)
    fast = numba.njit(scale)
    if kind == "njit":
        return fast

    def task(x: float) -> float:
        return fast(x) + 1

    return numba.njit(task) if kind == "calls" else task


# -- entries -----------------------------------------------------------------------------------------------------------

st, sk = Lazy("scipy.stats"), importlib.import_module
nx, sp, ap, xr, pint = Lazy("networkx"), Lazy("sympy"), Lazy("astropy.units"), Lazy("xarray"), Lazy("pint")


def fitted(home: str, name: str, **options: Any) -> Any:
    model = getattr(sk(home), name)(**options)
    return model.fit(X(), Y())


def frozen_search(seed: Any = None, n: int = 3) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import RandomizedSearchCV

    return RandomizedSearchCV(LogisticRegression(), {"C": st.uniform(0, n)}, random_state=seed)


def array(n: int = 4) -> Any:
    return xr.DataArray(np.arange(float(n)), dims="x", coords={"x": range(n)}, name="t")


def dataset(n: int = 4, engine: str = "", load: bool = False) -> Any:
    whole = xr.Dataset({"t": array(n)})
    if not engine:
        return whole
    path = f"zoo_{engine}_{n}.nc"
    if not Path(path).exists():  # processes with other hash seeds share the folder
        whole.to_netcdf(f"{os.getpid()}.nc", engine=engine)
        os.replace(f"{os.getpid()}.nc", path)
    found = xr.open_dataset(path, engine=engine)
    return found.load() if load else found


def fits(value: int) -> Any:
    from astropy.io.fits import Header

    held = Header()
    held["N"] = value
    return Header.fromstring(held.tostring())


def nifti(value: float) -> Any:
    return sk("nibabel").Nifti1Image(np.full((2, 2, 2), value), np.eye(4))


def read_nifti(value: float) -> Any:
    return sk("nibabel").Nifti1Image.from_bytes(nifti(value).to_bytes())


def ols(n: int = 60, fit: bool = False) -> Any:
    model = sk("statsmodels.api").OLS(X()[:n, 0], X()[:n, 1:])
    return model.fit() if fit else model


def glm(n: int = 60) -> Any:
    sm = sk("statsmodels.api")
    return sm.GLM(Y()[:n], X()[:n, 1:], family=sm.families.Binomial()).fit()


def words(text: str) -> Any:
    return sk("spacy").blank("en")(text)


def tokens(vocabulary: dict[str, int]) -> Any:
    tk = sk("tokenizers")
    return tk.Tokenizer(tk.models.WordLevel(vocabulary, unk_token="[UNK]"))


def h5() -> Any:
    return sk("h5py").File(f"zoo{next(_numbers)}.h5", "w", driver="core", backing_store=False)


_numbers = itertools.count()


def figure(n: int) -> Any:
    from matplotlib.figure import Figure

    made = Figure()
    made.subplots().plot(range(n))
    return made


def module(n: int) -> Any:
    torch = sk("torch")
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(n, 2), torch.nn.ReLU())


def frames(n: int) -> Any:
    return sk("geopandas").GeoDataFrame({"a": [n]}, geometry=sk("geopandas").points_from_xy([n], [1]))


def scheme(n: int) -> Any:
    pa = sk("pandera.pandas")
    return pa.DataFrameSchema({"a": pa.Column(int, pa.Check.gt(n))})


def registry_quantity(n: int) -> Any:
    return _units().Quantity(n, "m/s")


_units = functools.cache(lambda: pint.UnitRegistry())

ZOO = [
    Entry("functools", "cached_property", lambda: Circle(1), lambda: Circle(2), _area),
    Entry("functools", "cached_property and slots", lambda: Slotted(1), lambda: Slotted(2), _area),
    Entry("functools", "cached_property of a frozen dataclass", lambda: Frozen(1), lambda: Frozen(2), _area),
    Entry("random", "global generator", lambda: random._inst, lambda: random.Random(1), lambda x: x.random()),
    Entry("random", "method of it", lambda: random.random, lambda: random.gauss, lambda x: x()),
    Entry("random", "function that draws", _draws, lambda: len, lambda x: x(2)),
    Entry("builtins", "kept hash", lambda: KeepsHash("a"), lambda: KeepsHash("b"), refused="_hash"),
    Entry("numpy", "global generator", lambda: rng.mtrand._rand, lambda: rng.RandomState(1), lambda x: x.rand()),
    Entry("numpy", "method of it", lambda: rng.rand, lambda: rng.randn, lambda x: x()),
    *(
        Entry("pydantic", kind, functools.partial(models, kind), functools.partial(models, kind, 4), use)
        for kind, use in {
            "plain": lambda x: x.model_dump_json(), "class": lambda x: (x().model_dump(), x.__signature__, x(n=2)),
            "nested": lambda x: x.model_dump(), "limited": lambda x: x.model_copy(), "validated": lambda x: type(x)(n=2),
            "serialized": lambda x: x.model_dump(), "computed": lambda x: (x.area, x.model_dump()),
            "configured": lambda x: x.model_dump(), "private": lambda x: x._seen, "recursive": lambda x: x.model_dump(),
            "generic": lambda x: x.model_dump(), "root": lambda x: x.model_dump(), "dataclass": lambda x: repr(x),
            "created": lambda x: x.model_dump(), "adapter": lambda x: x.validate_python([1]),
        }.items()
    ),
    Entry("sqlmodel", "model", lambda: sqlmodels(3), lambda: sqlmodels(4), lambda x: x.model_dump()),
    Entry("sqlalchemy", "mapped instance", lambda: tables("a"), lambda: tables("b"), lambda x: x.id, refused="SQLAlchemy"),
    Entry("sqlalchemy", "table", lambda: sk("sqlalchemy").Table("t", sk("sqlalchemy").MetaData()), lambda: sk("sqlalchemy").text("1"), refused="SQLAlchemy"),
    Entry("sqlalchemy", "engine", lambda: sk("sqlalchemy").create_engine("sqlite://"), lambda: sk("sqlalchemy").text("1"), refused="inside the task"),
    *(
        Entry("numba", kind, functools.partial(compiled, 2, kind), functools.partial(compiled, 3, kind), lambda x: x(1.5))
        for kind in ("njit", "eager", "vectorize", "options", "calls", "task")
    ),
    Entry("scipy", "norm.sf", lambda: st.norm.sf, lambda: st.norm.cdf, lambda x: x(0.5)),
    Entry("scipy", "frozen distribution", lambda: st.norm(0, 1), lambda: st.norm(0, 2), lambda x: x.rvs(2)),
    Entry("scipy", "seeded distribution", lambda: seeded(1), lambda: seeded(2)),
    Entry("scipy", "cKDTree", lambda: sk("scipy.spatial").cKDTree(X()), lambda: sk("scipy.spatial").cKDTree(X()[1:]), lambda x: x.query(X()[:2])),
    Entry("scipy", "KDTree", lambda: sk("scipy.spatial").KDTree(X()), lambda: sk("scipy.spatial").KDTree(X(), leafsize=3), lambda x: (x.query(X()[:2]), x.tree)),
    Entry("scipy", "Delaunay", lambda: sk("scipy.spatial").Delaunay(X()), lambda: sk("scipy.spatial").Delaunay(X()[1:]), lambda x: (x.find_simplex(X()[:2]), x.vertex_to_simplex, x.convex_hull, x.transform)),
    Entry("scipy", "ConvexHull", lambda: sk("scipy.spatial").ConvexHull(X()), lambda: sk("scipy.spatial").ConvexHull(X()[:30]), lambda x: x.vertices),
    Entry("scipy", "UnivariateSpline", lambda: sk("scipy.interpolate").UnivariateSpline(range(9), np.sqrt(range(9))), lambda: sk("scipy.interpolate").UnivariateSpline(range(9), np.sqrt(range(9)), k=2), lambda x: x(2.5)),
    Entry("scipy", "interp1d", lambda: sk("scipy.interpolate").interp1d([1, 2], [3, 4]), lambda: sk("scipy.interpolate").interp1d([1, 2], [3, 5]), lambda x: x(1.5)),
    Entry("scipy", "CubicSpline", lambda: sk("scipy.interpolate").CubicSpline([1, 2, 3], [3, 4, 6]), lambda: sk("scipy.interpolate").CubicSpline([1, 2, 3], [3, 4, 5]), lambda x: x(1.5)),
    Entry("sklearn", "RandomizedSearchCV", frozen_search, lambda: frozen_search(n=4), lambda x: x.get_params()),
    Entry("sklearn", "HashingVectorizer", lambda: sk("sklearn.feature_extraction.text").HashingVectorizer(), lambda: sk("sklearn.feature_extraction.text").HashingVectorizer(lowercase=False), lambda x: x.transform(["a b"])),
    Entry("sklearn", "KNeighborsClassifier", lambda: fitted("sklearn.neighbors", "KNeighborsClassifier"), lambda: fitted("sklearn.neighbors", "KNeighborsClassifier", n_neighbors=3), lambda x: x.predict(X())),
    Entry("sklearn", "KDTree", lambda: sk("sklearn.neighbors").KDTree(X()), lambda: sk("sklearn.neighbors").KDTree(X()[1:]), lambda x: x.query(X()[:3])),
    Entry("sklearn", "BallTree", lambda: sk("sklearn.neighbors").BallTree(X()), lambda: sk("sklearn.neighbors").BallTree(X(), leaf_size=3), lambda x: x.query(X()[:3])),
    Entry("sklearn", "GaussianProcessRegressor", lambda: fitted("sklearn.gaussian_process", "GaussianProcessRegressor"), lambda: fitted("sklearn.gaussian_process", "GaussianProcessRegressor", alpha=1), lambda x: x.predict(X(), return_std=True)),
    Entry("sklearn", "RandomForestClassifier", lambda: fitted("sklearn.ensemble", "RandomForestClassifier", n_estimators=3, random_state=1), lambda: fitted("sklearn.ensemble", "RandomForestClassifier", n_estimators=3, random_state=2), lambda x: x.predict(X())),
    Entry("networkx", "graph", lambda: nx.path_graph(5), lambda: nx.path_graph(6), lambda x: (x.nodes, x.edges, x.adj, x.degree)),
    Entry("networkx", "digraph", lambda: nx.DiGraph([(1, 2)]), lambda: nx.DiGraph([(2, 1)]), lambda x: (x.nodes, x.pred, x.succ, x.in_edges, nx.pagerank(x))),
    Entry("networkx", "multigraph", lambda: nx.MultiGraph([(1, 2)]), lambda: nx.MultiGraph([(1, 2), (1, 2)]), lambda x: (x.nodes, x.edges)),
    Entry("sympy", "expression", lambda: sp.Symbol("x") ** 2 + 1, lambda: sp.Symbol("x") ** 2 + 2, lambda x: (hash(x), x.diff(), x.is_positive, x.sort_key())),
    Entry("sympy", "assumptions", lambda: sp.Symbol("x", positive=True), lambda: sp.Symbol("x"), lambda x: (x.is_real, x.is_zero, x.is_integer)),
    Entry("sympy", "matrix", lambda: sp.Matrix([[1, 2], [3, 4]]), lambda: sp.Matrix([[1, 2], [3, 5]]), lambda x: x.det()),
    Entry("sympy", "Dummy", lambda: sp.Dummy("x"), lambda: sp.Symbol("x"), refused="Symbol"),
    Entry("sympy", "lambdify", lambda: sp.lambdify([sp.Symbol("x")], sp.Symbol("x") + 1), lambda: sp.lambdify([sp.Symbol("x")], sp.Symbol("x") + 2), lambda x: x(1)),
    Entry("astropy", "quantity", lambda: 50 * ap.GHz, lambda: 50 * ap.MHz, lambda x: (x.decompose(), x.to(ap.Hz), repr(x))),
    Entry("astropy", "unit", lambda: ap.GHz * ap.m, lambda: ap.GHz / ap.m, lambda x: (x.decompose(), hash(x))),
    Entry("astropy", "header", lambda: fits(1), lambda: fits(2), lambda x: (x["N"], repr(x), list(x.cards))),
    Entry("astropy", "table", lambda: sk("astropy.table").Table({"a": [1, 2]}), lambda: sk("astropy.table").Table({"a": [1, 3]}), lambda x: (x["a"], repr(x))),
    Entry("astropy", "time", lambda: sk("astropy.time").Time(60000.0, format="mjd"), lambda: sk("astropy.time").Time(60001.0, format="mjd"), lambda x: (x.iso, x.jd, x.tai)),
    Entry("astropy", "coordinates", lambda: sk("astropy.coordinates").SkyCoord(1, 2, unit="deg"), lambda: sk("astropy.coordinates").SkyCoord(1, 3, unit="deg"), lambda x: (x.ra, x.galactic, repr(x))),
    Entry("astropy", "model", lambda: sk("astropy.modeling.models").Gaussian1D(1, 2, 3), lambda: sk("astropy.modeling.models").Gaussian1D(1, 2, 4), lambda x: (x(1.0), repr(x))),
    Entry("astropy", "wcs", lambda: sk("astropy.wcs").WCS(naxis=2), lambda: sk("astropy.wcs").WCS(naxis=3), lambda x: repr(x)),
    Entry("xarray", "DataArray", array, lambda: array(5), lambda x: (x._repr_html_(), repr(x), x.mean(), x.sel(x=1), x.plot)),
    Entry("xarray", "Dataset", dataset, lambda: dataset(5), lambda x: (x._repr_html_(), x.mean(), x.sel(x=1), x.t)),
    Entry("xarray", "opened", lambda: dataset(4, "netcdf4"), lambda: dataset(5, "netcdf4"), refused="load"),
    Entry("xarray", "loaded", lambda: dataset(4, "netcdf4", True), lambda: dataset(5, "netcdf4", True), lambda x: repr(x)),
    Entry("xarray", "opened, of scipy", lambda: dataset(4, "scipy"), lambda: dataset(5, "scipy"), refused="load"),
    Entry("xarray", "loaded, of scipy", lambda: dataset(4, "scipy", True), lambda: dataset(5, "scipy", True), lambda x: repr(x)),
    Entry("xarray", "DataTree", lambda: xr.DataTree(dataset(), name="a"), lambda: xr.DataTree(dataset(5), name="a"), lambda x: (repr(x), x.ds)),
    Entry("xarray", "groupby", lambda: array().groupby("x"), lambda: array(5).groupby("x"), lambda x: x.mean(), refused="groupby"),
    Entry("pint", "quantity", lambda: registry_quantity(3), lambda: registry_quantity(4), lambda x: (x.to("km/h"), x.to_base_units(), repr(x))),
    Entry("pint", "unit", lambda: _units().Unit("m"), lambda: _units().Unit("s"), lambda x: x.dimensionality),
    Entry("pint", "registry", lambda: pint.UnitRegistry(), lambda: 1, refused="pint"),
    Entry("unyt", "quantity", lambda: sk("unyt").unyt_quantity(3, "km"), lambda: sk("unyt").unyt_quantity(3, "m"), lambda x: (x.to("m"), x.in_base(), repr(x))),
    Entry("unyt", "array", lambda: sk("unyt").unyt_array([1, 2], "km/s"), lambda: sk("unyt").unyt_array([1, 2], "km"), lambda x: (x * x, repr(x), x.units.base_value)),
    Entry("uncertainties", "product", lambda: 2 * sk("uncertainties").ufloat(1, 0.1) * 3, lambda: 6 * sk("uncertainties").ufloat(1, 0.2), lambda x: (x.std_dev, repr(x))),
    Entry("uncertainties", "number", lambda: sk("uncertainties").ufloat(1, 0.1), lambda: sk("uncertainties").ufloat(1, 0.2), lambda x: (x.std_dev, repr(x), hash(x))),
    Entry("statsmodels", "OLS", ols, lambda: ols(50), lambda x: (x.fit().summary(), x.fit().params)),
    Entry("statsmodels", "OLS results", lambda: ols(fit=True), lambda: ols(50, True), lambda x: (x.summary(), x.rsquared, x.resid)),
    Entry("statsmodels", "GLM results", glm, lambda: glm(50), lambda x: (x.summary(), x.aic, x.null_deviance, x.model._tmp_like_exog.fill(5))),
    Entry("matplotlib", "figure", lambda: figure(3), lambda: figure(4), refused="numbered by where it lies"),
    Entry("matplotlib", "colormap", lambda: sk("matplotlib").colormaps["viridis"], lambda: sk("matplotlib").colormaps["magma"], lambda x: x(0.5)),
    Entry("matplotlib", "norm", lambda: sk("matplotlib.colors").Normalize(0, 1), lambda: sk("matplotlib.colors").Normalize(0, 2), lambda x: x(0.5)),
    Entry("torch", "tensor", lambda: sk("torch").ones(3), lambda: sk("torch").zeros(3), lambda x: (x.sum(), repr(x))),
    Entry("torch", "module", lambda: module(3), lambda: module(4), lambda x: (x(sk("torch").ones(3)), repr(x), x.state_dict())),
    Entry("torch", "optimizer", lambda: sk("torch").optim.SGD(module(3).parameters(), lr=0.1), lambda: sk("torch").optim.SGD(module(3).parameters(), lr=0.2)),
    Entry("torch", "dataset", lambda: sk("torch.utils.data").TensorDataset(sk("torch").ones(3)), lambda: sk("torch.utils.data").TensorDataset(sk("torch").zeros(3)), lambda x: x[0]),
    Entry("shapely", "polygon", lambda: sk("shapely").box(0, 0, 1, 1), lambda: sk("shapely").box(0, 0, 1, 2), lambda x: (x.area, sk("shapely").prepare(x), x.contains(x.centroid))),
    Entry("geopandas", "frame", lambda: frames(1), lambda: frames(2), lambda x: (x.sindex, x.total_bounds, x._repr_html_(), x.area)),
    Entry("nibabel", "image", lambda: nifti(1.0), lambda: nifti(2.0), lambda x: (x.get_fdata(), x.header, repr(x))),
    Entry("nibabel", "image from bytes", lambda: read_nifti(1.0), lambda: read_nifti(2.0), lambda x: (x.get_fdata(), x.header), "get_fdata()"),
    Entry("zarr", "array in memory", lambda: sk("zarr").array(np.arange(4)), lambda: sk("zarr").array(np.arange(5)), refused="x[...]"),
    Entry("h5py", "file", lambda: h5(), lambda: 1, refused="jn.file(path)"),
    Entry("h5py", "dataset", lambda: h5().create_dataset("a", (3,)), lambda: 1, refused="x[...]"),
    Entry("pandera", "schema", lambda: scheme(1), lambda: scheme(2), lambda x: (x.validate(pd.DataFrame({"a": [5]})), repr(x))),
    Entry("spacy", "Doc", lambda: words("some words here"), lambda: words("some other words"), lambda x: (x.text, [t.text for t in x]), refused="to_bytes"),
    Entry("spacy", "pipeline", lambda: sk("spacy").blank("en"), lambda: sk("spacy").blank("de"), lambda x: x("new words"), refused="spacy"),
    Entry("gensim", "dictionary", lambda: sk("gensim.corpora").Dictionary([["b", "a"]]), lambda: sk("gensim.corpora").Dictionary([["b", "c"]]), lambda x: (x.doc2bow(["a"]), x[0])),
    Entry("gensim", "Word2Vec", lambda: sk("gensim.models").Word2Vec([["b", "a"]], min_count=1, vector_size=4, seed=1, workers=1), lambda: sk("gensim.models").Word2Vec([["b", "c"]], min_count=1, vector_size=4, seed=1, workers=1), lambda x: x.wv.most_similar("a")),
    Entry("umap", "UMAP", lambda: sk("umap").UMAP(n_neighbors=3), lambda: sk("umap").UMAP(n_neighbors=4), lambda x: x.get_params()),
    Entry("tokenizers", "tokenizer", lambda: tokens({"[UNK]": 0, "a": 1}), lambda: tokens({"[UNK]": 0, "b": 1}), lambda x: x.encode("a")),
    Entry("trimesh", "mesh", lambda: sk("trimesh").creation.box(), lambda: sk("trimesh").creation.box((1, 1, 2)), lambda x: (x.volume, x.face_normals, x.bounds, x.is_watertight)),
    Entry("rdkit", "molecule", lambda: sk("rdkit.Chem").MolFromSmiles("CCO"), lambda: sk("rdkit.Chem").MolFromSmiles("CCN"), lambda x: (x.GetNumAtoms(), sk("rdkit.Chem").MolToSmiles(x))),
    Entry("dask", "delayed", lambda: sk("dask").delayed(len)([1]), lambda: sk("dask").delayed(len)([2]), refused="compute"),
    Entry("pandas", "frame", lambda: pd.DataFrame({"a": [1]}), lambda: pd.DataFrame({"a": [2]}), lambda x: (x.sum(), x._repr_html_(), x.groupby("a").sum())),
    Entry("pandas", "groupby", lambda: pd.DataFrame({"a": [1]}).groupby("a"), lambda: pd.DataFrame({"a": [2]}).groupby("a"), lambda x: (x.sum(), x.groups, x.indices)),
]  # fmt: skip


def seeded(seed: int) -> Any:
    made = st.norm(0, 1)
    made.random_state = seed
    return made


# -- naming them -------------------------------------------------------------------------------------------------------


def named(value: Any) -> str:
    """The digest of a value, or why there is none."""
    try:
        return digest(value).hex()
    except JugError as refusal:
        return f"refused: {refusal}"


def trip(value: Any) -> Any:
    """The value as a worker gets it; in its place, why it can't travel."""
    blobs: dict[str, bytes] = {}

    def put(parts: Any) -> str:
        address = f"{len(blobs):040x}"
        blobs[address] = b"".join(bytes(part) for part in parts)
        return address

    try:
        payload, _ = dump_value(value, put)
    except JugError as refusal:
        return refusal
    return load_value(payload, lambda address: memoryview(bytearray(blobs[address])))


def names(entry: Entry) -> dict[str, str]:
    """All names of an entry: they are the same, but for ``other``."""
    value = entry.make()
    found = {"key": named(value), "again": named(value), "made again": named(entry.make())}
    arrived = trip(value)
    found["after a trip"] = "refused" if isinstance(arrived, JugError) else named(arrived)
    if entry.use is not None:
        entry.use(value)
        found["after use"] = named(value)
        found["after use and a trip"] = named(used) if not isinstance(used := trip(value), JugError) else "refused"
    return {**found, "other": named(entry.other())}


class TooLong(BaseException):
    """Not caught by what handles the exceptions of objects."""


def too_long(*_: Any) -> None:
    raise TooLong(f"more than {PATIENCE} s")


def main() -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_long)
    for entry in ZOO:
        if sys.argv[1:] and entry.library not in sys.argv[1:]:
            continue
        try:
            importlib.import_module(entry.library)
        except ImportError as error:
            print(json.dumps([entry.library, entry.name, {"missing": str(error)}]))
            continue
        signal.alarm(PATIENCE)
        try:
            found = names(entry)
        except (Exception, TooLong) as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        finally:
            signal.alarm(0)
        print(json.dumps([entry.library, entry.name, found]), flush=True)


if __name__ == "__main__":
    main()
