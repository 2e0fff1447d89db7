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

ss, so, si, sg = Lazy("scipy.spatial"), Lazy("scipy.optimize"), Lazy("scipy.interpolate"), Lazy("scipy.signal")


def recording(value: float, read: bool = False, preload: bool = True) -> Any:
    mne = sk("mne")
    made = mne.io.RawArray(np.full((2, 300), value), mne.create_info(["a", "b"], 100.0, "eeg"), verbose="error")
    if not read:
        return made
    path = f"zoo_{value}_raw.fif"
    if not Path(path).exists():
        made.save(f"{os.getpid()}_raw.fif", verbose="error", overwrite=True)
        os.replace(f"{os.getpid()}_raw.fif", path)
    return mne.io.read_raw_fif(path, preload=preload, verbose="error")


def epochs(value: float, preload: bool = True) -> Any:
    events = np.array([[0, 0, 1], [100, 0, 1]])
    source = recording(value, read=True, preload=preload)
    return sk("mne").Epochs(source, events, tmin=0, tmax=0.5, baseline=None, preload=preload, verbose="error")


def formula(what: str) -> Any:
    frame = pd.DataFrame({"y": Y(), "a": X()[:, 0], "b": X()[:, 1]})
    return sk("statsmodels.formula.api").ols(what, frame).fit()


def pipeline(c: float) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    columns = ColumnTransformer([("a", StandardScaler(), [0]), ("b", FunctionTransformer(np.abs), [1, 2])])
    return make_pipeline(columns, LogisticRegression(C=c)).fit(X(), Y())


def correlated(n: int) -> Any:
    x = sk("uncertainties").ufloat(n, 0.1)
    return x, x * 2 + 1


def loader(n: int) -> Any:
    tud = sk("torch.utils.data")
    return tud.DataLoader(tud.TensorDataset(sk("torch").ones(8, n)), batch_size=2, shuffle=True)


def scheduler(rate: float) -> Any:
    torch = sk("torch")
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(module(3).parameters(), lr=rate), 2)


def jitclass(n: int) -> Any:
    import numba
    from numba.experimental import jitclass as compiled_class

    class Cell:
        def __init__(self, x: int) -> None:
            self.x = x

    return compiled_class([("x", numba.int64)])(Cell)(n)


def typed(n: int) -> Any:
    import numba

    found = numba.typed.List()
    found.append(n)
    return found


def ccd(n: int) -> Any:
    return sk("astropy.nddata").CCDData(np.full((2, 2), float(n)), unit="adu")


def hdus(n: int) -> Any:
    fits = sk("astropy.io.fits")
    return fits.HDUList([fits.PrimaryHDU(np.full((2, 2), n))])


def parser(n: int) -> Any:
    import argparse

    made = argparse.ArgumentParser("x")
    made.add_argument("-n", type=int, default=n)
    return made


def config(n: int) -> Any:
    import configparser

    made = configparser.ConfigParser()
    made.read_string(f"[a]\nb = {n}\n")
    return made


def element(text: str) -> Any:
    return sk("xml.etree.ElementTree").fromstring(text)


def attrs_class(n: int) -> Any:
    import attrs

    @attrs.define(cache_hash=True, frozen=True)
    class Point:
        x: int
        y: int = attrs.field(default=n, converter=int)

    return Point(1)


def struct(n: int) -> Any:
    import msgspec

    class Point(msgspec.Struct, frozen=True):
        x: int
        y: int = n

    return Point(1)


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
    Entry("argparse", "parser", lambda: parser(1), lambda: parser(2), lambda x: (x.parse_args([]), x.format_help())),
    Entry("configparser", "parser", lambda: config(1), lambda: config(2), lambda x: (x["a"]["b"], x.sections(), x.getint("a", "b"))),
    Entry("xml", "element", lambda: element("<a b='1'><c/></a>"), lambda: element("<a b='2'><c/></a>"), lambda x: (list(x), x.find("c"), x.attrib)),
    Entry("string", "template", lambda: sk("string").Template("$a"), lambda: sk("string").Template("$b"), lambda x: x.substitute(a=1)),
    Entry("ipaddress", "network", lambda: sk("ipaddress").ip_network("10.0.0.0/8"), lambda: sk("ipaddress").ip_network("10.0.0.0/9"), lambda x: (x.broadcast_address, x.hostmask, x.num_addresses, hash(x), x.is_private)),
    Entry("statistics", "NormalDist", lambda: sk("statistics").NormalDist(0, 1), lambda: sk("statistics").NormalDist(0, 2), lambda x: (x.pdf(0), hash(x))),
    Entry("graphlib", "sorter", lambda: sk("graphlib").TopologicalSorter({"a": ["b"]}), lambda: sk("graphlib").TopologicalSorter({"a": ["c"]})),
    Entry("logging", "logger", lambda: sk("logging").getLogger("zoo"), lambda: sk("logging").getLogger("zoo.two"), lambda x: (x.isEnabledFor(10), x.info("x"), x.setLevel(10))),
    Entry("decimal", "context", lambda: sk("decimal").Context(prec=5), lambda: sk("decimal").Context(prec=6), lambda x: x.copy()),
    Entry("collections", "Counter", lambda: sk("collections").Counter("abca"), lambda: sk("collections").Counter("bcaa"), lambda x: (x.most_common(), x["z"])),
    Entry("attrs", "cached hash", lambda: attrs_class(1), lambda: attrs_class(2), lambda x: (hash(x), repr(x), x == x)),
    Entry("msgspec", "struct", lambda: struct(1), lambda: struct(2), lambda x: (hash(x), repr(x), x == x)),
    Entry("numpy", "poly1d", lambda: np.poly1d([1, 2]), lambda: np.poly1d([1, 3]), lambda x: (x(1), x.roots, x.deriv())),
    Entry("numpy", "Polynomial", lambda: sk("numpy.polynomial").Polynomial([1, 2]), lambda: sk("numpy.polynomial").Polynomial([1, 3]), lambda x: (x(1), x.roots(), x.mapparms())),
    Entry("numpy", "recarray", lambda: np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), lambda: np.rec.array([(1, 3.0)], dtype=[("a", int), ("b", float)]), lambda x: (x.a, x[0].b)),
    Entry("numpy", "masked array", lambda: np.ma.array([1, 2], mask=[0, 1]), lambda: np.ma.array([1, 2], mask=[1, 0]), lambda x: (x.sum(), x.filled(), x.mean(), repr(x))),
    Entry("numpy", "SeedSequence", lambda: rng.SeedSequence(1), lambda: rng.SeedSequence(2), lambda x: x.generate_state(4)),
    Entry("numpy", "Generator", lambda: rng.default_rng(1), lambda: rng.default_rng(2), lambda x: repr(x)),
    Entry("pandas", "resampler", lambda: pd.Series([1.0, 2], pd.date_range("2024", periods=2)).resample("1D"), lambda: pd.Series([1.0, 3], pd.date_range("2024", periods=2)).resample("1D"), lambda x: x.mean()),
    Entry("pandas", "rolling", lambda: pd.Series([1.0, 2]).rolling(2), lambda: pd.Series([1.0, 2]).rolling(1), lambda x: (x.mean(), repr(x))),
    Entry("pandas", "offset", lambda: pd.offsets.BusinessDay(2), lambda: pd.offsets.BusinessDay(3), lambda x: (x + pd.Timestamp("2024"), repr(x), hash(x), x.freqstr)),
    Entry("pandas", "IntervalIndex", lambda: pd.interval_range(0, 3), lambda: pd.interval_range(0, 4), lambda x: (x.get_loc(1), x.is_unique, x.mid)),
    Entry("pandas", "MultiIndex", lambda: pd.MultiIndex.from_product([["a", "b"], [1, 2]]), lambda: pd.MultiIndex.from_product([["a", "b"], [1, 3]]), lambda x: (x.get_loc(("a", 1)), x.is_monotonic_increasing, x.values)),
    Entry("pandas", "categories", lambda: pd.Series(["a", "b"], dtype="category"), lambda: pd.Series(["b", "a"], dtype="category"), lambda x: (x.cat.codes, x.value_counts(), repr(x))),
    Entry("pandas", "styler", lambda: pd.DataFrame({"a": [1]}).style, lambda: pd.DataFrame({"a": [2]}).style, lambda x: x.to_html(), refused="random id"),
    Entry("scipy", "Rotation", lambda: sk("scipy.spatial.transform").Rotation.from_euler("z", 1), lambda: sk("scipy.spatial.transform").Rotation.from_euler("z", 2), lambda x: (x.as_matrix(), x.inv(), x.magnitude())),
    Entry("scipy", "BSpline", lambda: si.make_interp_spline(range(9), np.sqrt(range(9))), lambda: si.make_interp_spline(range(9), np.sqrt(range(1, 10))), lambda x: (x(2.5), x.derivative()(1))),
    Entry("scipy", "RBFInterpolator", lambda: si.RBFInterpolator(X(), Y()), lambda: si.RBFInterpolator(X(), 1 - Y()), lambda x: x(X()[:2])),
    Entry("scipy", "LinearNDInterpolator", lambda: si.LinearNDInterpolator(X(), Y()), lambda: si.LinearNDInterpolator(X(), 1 - Y()), lambda x: x(X()[:2] * 0.5)),
    Entry("scipy", "RegularGridInterpolator", lambda: si.RegularGridInterpolator((np.arange(3), np.arange(3)), np.ones((3, 3))), lambda: si.RegularGridInterpolator((np.arange(3), np.arange(3)), np.zeros((3, 3))), lambda x: x([[1, 1.5]])),
    Entry("scipy", "gaussian_kde", lambda: st.gaussian_kde(X()[:, 0]), lambda: st.gaussian_kde(X()[:, 1]), lambda x: (x(0), x.covariance, x.inv_cov, x.integrate_box_1d(0, 1))),
    Entry("scipy", "multivariate_normal", lambda: st.multivariate_normal([0, 0]), lambda: st.multivariate_normal([0, 1]), lambda x: (x.pdf([0, 0]), x.rvs(2), x.entropy())),
    Entry("scipy", "Sobol", lambda: st.qmc.Sobol(2, rng=1), lambda: st.qmc.Sobol(2, rng=2), lambda x: repr(x)),
    Entry("scipy", "result", lambda: so.minimize(lambda x: (x**2).sum(), [1.0, 2]), lambda: so.minimize(lambda x: (x**2).sum() + 1, [1.0, 2]), lambda x: (x.x, repr(x))),
    Entry("scipy", "constraints", lambda: so.LinearConstraint([[1, 2]], 0, 1), lambda: so.LinearConstraint([[1, 2]], 0, 2), lambda x: x.residual([1, 1])),
    Entry("scipy", "system", lambda: sg.TransferFunction([1], [1, 2]), lambda: sg.TransferFunction([1], [1, 3]), lambda x: (x.poles, x.to_ss(), x.step())),
    Entry("scipy", "sparse", lambda: sk("scipy.sparse").random_array((5, 5), density=0.5, rng=1, format="csr"), lambda: sk("scipy.sparse").random_array((5, 5), density=0.5, rng=2, format="csr"), lambda x: (x.T @ x, x.has_sorted_indices, x.nnz, x.sum_duplicates(), x.has_canonical_format)),
    Entry("scipy", "Voronoi", lambda: ss.Voronoi(X()[:, :2]), lambda: ss.Voronoi(X()[1:, :2]), lambda x: (x.regions, x.ridge_dict)),
    Entry("sklearn", "pipeline", lambda: pipeline(1), lambda: pipeline(2), lambda x: (x.predict(X()), repr(x), x._repr_html_(), x.get_params())),
    Entry("sklearn", "SVC", lambda: fitted("sklearn.svm", "SVC"), lambda: fitted("sklearn.svm", "SVC", C=2), lambda x: (x.predict(X()), x.support_vectors_, x.n_support_)),
    Entry("sklearn", "GradientBoostingClassifier", lambda: fitted("sklearn.ensemble", "GradientBoostingClassifier", n_estimators=3, random_state=1), lambda: fitted("sklearn.ensemble", "GradientBoostingClassifier", n_estimators=4, random_state=1), lambda x: (x.predict(X()), x.feature_importances_)),
    Entry("sklearn", "HistGradientBoostingClassifier", lambda: fitted("sklearn.ensemble", "HistGradientBoostingClassifier", max_iter=3, random_state=1), lambda: fitted("sklearn.ensemble", "HistGradientBoostingClassifier", max_iter=4, random_state=1), lambda x: x.predict(X())),
    Entry("sklearn", "KMeans", lambda: fitted("sklearn.cluster", "KMeans", n_clusters=2, random_state=1), lambda: fitted("sklearn.cluster", "KMeans", n_clusters=3, random_state=1), lambda x: x.predict(X())),
    Entry("sklearn", "MLPClassifier", lambda: fitted("sklearn.neural_network", "MLPClassifier", max_iter=5, random_state=1), lambda: fitted("sklearn.neural_network", "MLPClassifier", max_iter=6, random_state=1), lambda x: x.predict(X())),
    Entry("sklearn", "TfidfVectorizer", lambda: sk("sklearn.feature_extraction.text").TfidfVectorizer().fit(["a word", "two words"]), lambda: sk("sklearn.feature_extraction.text").TfidfVectorizer().fit(["a word", "two"]), lambda x: (x.transform(["word"]), x.get_feature_names_out(), x.build_analyzer(), x.get_stop_words())),
    Entry("sklearn", "IsolationForest", lambda: fitted("sklearn.ensemble", "IsolationForest", n_estimators=3, random_state=1), lambda: fitted("sklearn.ensemble", "IsolationForest", n_estimators=3, random_state=2), lambda x: (x.predict(X()), x.estimators_samples_)),
    Entry("sklearn", "NearestNeighbors", lambda: fitted("sklearn.neighbors", "NearestNeighbors"), lambda: fitted("sklearn.neighbors", "NearestNeighbors", n_neighbors=3), lambda x: x.kneighbors(X())),
    Entry("sklearn", "KFold", lambda: sk("sklearn.model_selection").KFold(3), lambda: sk("sklearn.model_selection").KFold(4), lambda x: list(x.split(X()))),
    Entry("sklearn", "OneHotEncoder", lambda: sk("sklearn.preprocessing").OneHotEncoder().fit(Y()[:, None]), lambda: sk("sklearn.preprocessing").OneHotEncoder(drop="first").fit(Y()[:, None]), lambda x: (x.transform(Y()[:, None]), x.get_feature_names_out())),
    Entry("networkx", "subgraph view", lambda: nx.path_graph(5).subgraph([1, 2]), lambda: nx.path_graph(5).subgraph([1, 3]), lambda x: (x.nodes, list(x.edges), x.adj)),
    Entry("networkx", "frozen graph", lambda: nx.freeze(nx.path_graph(3)), lambda: nx.freeze(nx.path_graph(4)), lambda x: x.nodes),
    Entry("networkx", "dispatched function", lambda: nx.pagerank, lambda: nx.dijkstra_path, lambda x: x(nx.path_graph(3)) if x is nx.pagerank else None),
    Entry("sympy", "Poly", lambda: sp.Poly(sp.Symbol("x") ** 2, sp.Symbol("x")), lambda: sp.Poly(sp.Symbol("x") ** 3, sp.Symbol("x")), lambda x: (x.degree(), x.all_roots(), hash(x), x.factor_list())),
    Entry("sympy", "Function", lambda: sp.Function("f")(sp.Symbol("x")).diff(), lambda: sp.Function("g")(sp.Symbol("x")).diff(), lambda x: (hash(x), x.free_symbols)),
    Entry("sympy", "Integral", lambda: sp.Integral(sp.exp(-sp.Symbol("x") ** 2)), lambda: sp.Integral(sp.exp(-sp.Symbol("x") ** 3)), lambda x: (hash(x), x.doit())),
    Entry("sympy", "FiniteSet", lambda: sp.FiniteSet(*map(sp.Symbol, "abc")), lambda: sp.FiniteSet(*map(sp.Symbol, "abd")), lambda x: (hash(x), list(x))),
    Entry("astropy", "cosmology", lambda: sk("astropy.cosmology").FlatLambdaCDM(70, 0.3), lambda: sk("astropy.cosmology").FlatLambdaCDM(71, 0.3), lambda x: (x.age(1), repr(x), x.H(1))),
    Entry("astropy", "Planck18", lambda: sk("astropy.cosmology").Planck18, lambda: sk("astropy.cosmology").Planck15, lambda x: (x.age(1), repr(x))),
    Entry("astropy", "EarthLocation", lambda: sk("astropy.coordinates").EarthLocation(1, 2, 3, unit="m"), lambda: sk("astropy.coordinates").EarthLocation(1, 2, 4, unit="m"), lambda x: (x.lon, x.geodetic, repr(x))),
    Entry("astropy", "QTable", lambda: sk("astropy.table").QTable({"a": [1, 2] * ap.m}), lambda: sk("astropy.table").QTable({"a": [1, 2] * ap.s}), lambda x: (x["a"].to(ap.km), repr(x), x.group_by("a"))),
    Entry("astropy", "compound model", lambda: sk("astropy.modeling.models").Gaussian1D(1, 2, 3) + sk("astropy.modeling.models").Const1D(1), lambda: sk("astropy.modeling.models").Gaussian1D(1, 2, 3) + sk("astropy.modeling.models").Const1D(2), lambda x: (x(1.0), repr(x), x.param_names, x.parameters)),
    Entry("astropy", "CCDData", lambda: ccd(1), lambda: ccd(2), lambda x: (x.data, x.header, repr(x), x.add(x))),
    Entry("astropy", "HDUList", lambda: hdus(1), lambda: hdus(2), lambda x: (x[0].data, x.info(output=False), x[0].header)),
    Entry("astropy", "Angle", lambda: sk("astropy.coordinates").Angle("1d"), lambda: sk("astropy.coordinates").Angle("2d"), lambda x: (x.hms, x.wrap_at("180d"), repr(x))),
    Entry("astropy", "TimeSeries", lambda: sk("astropy.timeseries").TimeSeries(time_start="2024-01-01", time_delta=3 * ap.s, n_samples=3), lambda: sk("astropy.timeseries").TimeSeries(time_start="2024-01-01", time_delta=4 * ap.s, n_samples=3), lambda x: (x.time.iso, repr(x))),
    Entry("xarray", "MultiIndex", lambda: xr.Dataset(coords=xr.Coordinates.from_pandas_multiindex(pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["u", "v"]), "x")), lambda: xr.Dataset(coords=xr.Coordinates.from_pandas_multiindex(pd.MultiIndex.from_product([["a", "b"], [1, 3]], names=["u", "v"]), "x")), lambda x: (x.sel(u="a"), repr(x), x.indexes, x.unstack("x"))),
    Entry("xarray", "rolling", lambda: array().rolling(x=2), lambda: array().rolling(x=3), lambda x: x.mean()),
    Entry("xarray", "coordinates", lambda: array().coords, lambda: array(5).coords, lambda x: (x["x"], repr(x))),
    Entry("polars", "expression", lambda: sk("polars").col("a") + 1, lambda: sk("polars").col("a") + 2, lambda x: (repr(x), x.meta.root_names())),
    Entry("polars", "categories", lambda: sk("polars").Series(["a", "b"], dtype=sk("polars").Categorical), lambda: sk("polars").Series(["a", "c"], dtype=sk("polars").Categorical), lambda x: (x.to_physical(), x.unique(), x.sort())),
    Entry("pyarrow", "table", lambda: sk("pyarrow").table({"a": [1, None]}), lambda: sk("pyarrow").table({"a": [1, 2]}), lambda x: (x.to_pandas(), x.schema, repr(x))),
    Entry("pyarrow", "expression", lambda: sk("pyarrow.compute").field("a") > 1, lambda: sk("pyarrow.compute").field("a") > 2, lambda x: repr(x)),
    Entry("torch", "LSTM", lambda: (sk("torch").manual_seed(1), sk("torch").nn.LSTM(2, 3))[1], lambda: (sk("torch").manual_seed(2), sk("torch").nn.LSTM(2, 3))[1], lambda x: (x(sk("torch").ones(1, 2)), x.flatten_parameters())),
    Entry("torch", "DataLoader", lambda: loader(1), lambda: loader(2), lambda x: list(x)),
    Entry("torch", "scheduler", lambda: scheduler(0.1), lambda: scheduler(0.2), lambda x: x.get_last_lr()),
    Entry("torch", "distribution", lambda: sk("torch").distributions.Normal(0.0, 1.0), lambda: sk("torch").distributions.Normal(0.0, 2.0), lambda x: (x.sample(), x.mean, x.log_prob(sk("torch").ones(1)))),
    Entry("torch", "generator", lambda: sk("torch").Generator().manual_seed(1), lambda: sk("torch").Generator().manual_seed(2), lambda x: x.initial_seed()),
    Entry("torch", "script", lambda: sk("torch").jit.trace(module(3), sk("torch").ones(3)), lambda: sk("torch").jit.trace(module(4), sk("torch").ones(4)), lambda x: x.code, refused="jit.save"),
    Entry("matplotlib", "ListedColormap", lambda: sk("matplotlib.colors").ListedColormap(["red", "blue"]), lambda: sk("matplotlib.colors").ListedColormap(["red", "green"]), lambda x: (x(0.5), x._repr_html_())),
    Entry("matplotlib", "BoundaryNorm", lambda: sk("matplotlib.colors").BoundaryNorm([0, 1, 2], 3), lambda: sk("matplotlib.colors").BoundaryNorm([0, 1, 3], 3), lambda x: x(0.5)),
    Entry("matplotlib", "Path", lambda: sk("matplotlib.path").Path([[0, 0], [1, 1]]), lambda: sk("matplotlib.path").Path([[0, 0], [1, 2]]), lambda x: (x.get_extents(), x.contains_point((0, 0)), x.to_polygons())),
    Entry("matplotlib", "FontProperties", lambda: sk("matplotlib.font_manager").FontProperties(size=5), lambda: sk("matplotlib.font_manager").FontProperties(size=6), lambda x: (x.get_name(), hash(x))),
    Entry("shapely", "STRtree", lambda: sk("shapely").STRtree([sk("shapely").Point(1, 2)]), lambda: sk("shapely").STRtree([sk("shapely").Point(1, 3)]), lambda x: x.query(sk("shapely").box(0, 0, 5, 5))),
    Entry("geopandas", "series with crs", lambda: sk("geopandas").GeoSeries.from_xy([1], [2], crs=4326), lambda: sk("geopandas").GeoSeries.from_xy([1], [2], crs=3857), lambda x: (x.sindex, x.crs, x.area, x.to_crs(3857))),
    Entry("pyproj", "CRS", lambda: sk("pyproj").CRS(4326), lambda: sk("pyproj").CRS(3857), lambda x: (x.to_wkt(), x.axis_info, x.geodetic_crs, repr(x))),
    Entry("pyproj", "Transformer", lambda: sk("pyproj").Transformer.from_crs(4326, 3857), lambda: sk("pyproj").Transformer.from_crs(3857, 4326), lambda x: (x.transform(1, 2), repr(x))),
    Entry("pint", "array quantity", lambda: _units().Quantity(np.ones(3), "m"), lambda: _units().Quantity(np.zeros(3), "m"), lambda x: (x.to("km"), repr(x), x.mean())),
    Entry("uncertainties", "correlated", lambda: correlated(1), lambda: correlated(2), lambda x: (x[1].std_dev, repr(x[1]), x[1].derivatives)),
    Entry("statsmodels", "formula", lambda: formula("y ~ a"), lambda: formula("y ~ a + b"), lambda x: (x.summary(), x.params, x.predict(pd.DataFrame({"a": [1.0]})))),
    Entry("statsmodels", "Logit results", lambda: sk("statsmodels.api").Logit(Y(), X()[:, 1:]).fit(disp=0), lambda: sk("statsmodels.api").Logit(Y()[1:], X()[1:, 1:]).fit(disp=0), lambda x: (x.summary(), x.llnull, x.get_margeff())),
    Entry("statsmodels", "ARIMA", lambda: sk("statsmodels.tsa.api").ARIMA(X()[:, 0], order=(1, 0, 0)), lambda: sk("statsmodels.tsa.api").ARIMA(X()[:, 0], order=(0, 0, 1)), lambda x: (x.start_params, x.param_names, x.ssm.transition)),
    Entry("statsmodels", "KDE", lambda: sk("statsmodels.api").nonparametric.KDEUnivariate(X()[:, 0]), lambda: sk("statsmodels.api").nonparametric.KDEUnivariate(X()[:, 1])),
    Entry("numba", "jitclass", lambda: jitclass(1), lambda: jitclass(2), lambda x: x.x, refused="fields"),
    Entry("numba", "typed list", lambda: typed(1), lambda: typed(2), lambda x: x[0], refused="list(x)"),
    Entry("dask", "bag", lambda: sk("dask.bag").from_sequence([1]), lambda: sk("dask.bag").from_sequence([2]), refused="compute"),
    Entry("trimesh", "scene", lambda: sk("trimesh").Scene([sk("trimesh").creation.box()]), lambda: sk("trimesh").Scene([sk("trimesh").creation.box((1, 1, 2))]), lambda x: (x.bounds, x.graph.nodes, x.dump())),
    Entry("trimesh", "points", lambda: sk("trimesh").PointCloud(X()), lambda: sk("trimesh").PointCloud(X()[1:]), lambda x: (x.bounds, x.convex_hull, x.kdtree)),
    Entry("gensim", "TfidfModel", lambda: sk("gensim.models").TfidfModel([[(0, 1), (1, 2)]]), lambda: sk("gensim.models").TfidfModel([[(0, 1)], [(1, 2)]]), lambda x: x[[(0, 1)]]),
    Entry("gensim", "LdaModel", lambda: sk("gensim.models").LdaModel([[(0, 1), (1, 2)]], num_topics=2, random_state=1), lambda: sk("gensim.models").LdaModel([[(0, 1), (1, 3)]], num_topics=2, random_state=1), lambda x: x.show_topics()),
    Entry("nibabel", "header", lambda: nifti(1.0).header, lambda: sk("nibabel").Nifti1Image(np.ones((3, 2, 2)), np.eye(4)).header, lambda x: (x.get_zooms(), x["dim"], repr(x))),
    Entry("rdkit", "fingerprint", lambda: sk("rdkit.Chem").RDKFingerprint(sk("rdkit.Chem").MolFromSmiles("CCO")), lambda: sk("rdkit.Chem").RDKFingerprint(sk("rdkit.Chem").MolFromSmiles("CCN")), lambda x: (x.GetNumOnBits(), list(x))),
    Entry("rdkit", "reaction", lambda: sk("rdkit.Chem.AllChem").ReactionFromSmarts("[C:1]>>[C:1]O"), lambda: sk("rdkit.Chem.AllChem").ReactionFromSmarts("[C:1]>>[C:1]N"), lambda x: x.GetNumProductTemplates()),
    Entry("sqlalchemy", "select", lambda: sk("sqlalchemy").select(sk("sqlalchemy").column("a")), lambda: sk("sqlalchemy").select(sk("sqlalchemy").column("b")), lambda x: str(x), refused="inside the task"),
    Entry("netCDF4", "dataset", lambda: sk("netCDF4").Dataset(f"zoo{next(_numbers)}.nc", "w", diskless=True), lambda: 1, refused="jn.file(path)"),
    Entry("formulaic", "formula", lambda: sk("formulaic").Formula("y ~ a"), lambda: sk("formulaic").Formula("y ~ b"), lambda x: repr(x)),
    Entry("mne", "raw of an array", lambda: recording(1.0), lambda: recording(2.0), lambda x: (x.get_data(), repr(x), x._repr_html_(), x.times)),
    Entry("mne", "raw", lambda: recording(1.0, True, False), lambda: recording(2.0, True, False), refused="load_data()"),
    Entry("mne", "loaded raw", lambda: recording(1.0, True), lambda: recording(2.0, True), lambda x: (x.get_data(), repr(x), x._repr_html_(), x.times)),
    Entry("mne", "epochs", lambda: epochs(1.0), lambda: epochs(2.0), lambda x: (x.get_data(), repr(x), list(x), x.average(), x.drop_log)),
    Entry("mne", "unloaded epochs", lambda: epochs(1.0, False), lambda: epochs(2.0, False), refused="load_data()"),
    Entry("mne", "average", lambda: epochs(1.0).average(), lambda: epochs(2.0).average(), lambda x: (x.get_data(), repr(x), x.times)),
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
