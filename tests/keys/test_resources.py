"""What stands for something outside the process is refused by name, and the message has the way out that works."""

from __future__ import annotations

import gzip
import sqlite3
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jug_notebook.errors import BadTask, DroppedByPickle, Unhashable
from jug_notebook.keys.code import examine
from jug_notebook.keys.digest import digest, name_call
from jug_notebook.task import TaskFunction, task
from tests.keys.test_code import cell

np = pytest.importorskip("numpy")


def refusal(value: Any) -> str:
    with pytest.raises(Unhashable) as refused:
        digest(value, "argument 'x'")
    text = str(refused.value)
    assert text.startswith("argument 'x'")
    assert "\n" not in text
    assert len(text) < 510
    return text


# -- a handle is named by its content or refused ----------------------------------------------------------------------


def _zarr(folder: Path) -> Any:
    zarr = pytest.importorskip("zarr")
    array = zarr.open(str(folder / "z.zarr"), mode="w", shape=(4,), dtype="f8")
    array[:] = 1
    return array


def _zarr_group(folder: Path) -> Any:
    return pytest.importorskip("zarr").open_group(str(folder / "g.zarr"), mode="w")


def _h5py(folder: Path) -> Any:
    file = pytest.importorskip("h5py").File(folder / "a.h5", "w")
    file["x"] = np.ones(3)
    return file["x"]


def _nibabel(folder: Path) -> Any:
    nib = pytest.importorskip("nibabel")
    nib.save(nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2), np.eye(4)), folder / "i.nii.gz")
    return nib.load(folder / "i.nii.gz")


def _xarray(folder: Path) -> Any:
    xr = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    xr.Dataset({"a": ("x", np.arange(3.0))}).to_zarr(folder / "d.zarr")
    return xr.open_dataset(folder / "d.zarr", engine="zarr", chunks=None)


def _parquet(folder: Path) -> str:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"a": [1, 2]}), folder / "p.parquet")
    return str(folder / "p.parquet")


def _dataset(folder: Path) -> Any:
    path = _parquet(folder)
    return pytest.importorskip("pyarrow.dataset").dataset(path)


def _parquet_file(folder: Path) -> Any:
    path = _parquet(folder)
    return pytest.importorskip("pyarrow.parquet").ParquetFile(path)


def _npz(folder: Path) -> Any:
    np.savez(folder / "n.npz", a=np.ones(2))
    return np.load(folder / "n.npz")


def _gzip(folder: Path) -> Any:
    return gzip.open(folder / "g.gz", "w")


def _zip(folder: Path) -> Any:
    return zipfile.ZipFile(folder / "z.zip", "w")


def _temporary(folder: Path) -> Any:
    return tempfile.NamedTemporaryFile(dir=folder)


def _sqlite(folder: Path) -> Any:
    return sqlite3.connect(folder / "s.db")


def _duckdb(folder: Path) -> Any:
    return pytest.importorskip("duckdb").connect(str(folder / "d.db"))


def _mne(folder: Path) -> Any:
    mne = pytest.importorskip("mne")
    made = mne.io.RawArray(np.ones((2, 300)), mne.create_info(["a", "b"], 100.0, "eeg"), verbose="error")
    made.save(folder / "a_raw.fif", verbose="error")
    return mne.io.read_raw_fif(folder / "a_raw.fif", verbose="error")


READERS = [
    _mne, _zarr, _zarr_group, _h5py, _nibabel, _xarray, _dataset, _parquet_file, _npz, _gzip, _zip, _temporary, _sqlite,
    _duckdb,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("handle", READERS, ids=[each.__name__.strip("_") for each in READERS])
def test_a_handle_on_a_file_is_refused_with_how_to_load_it(handle: Callable[[Path], Any], tmp_path: Path) -> None:
    text = refusal(handle(tmp_path))
    assert "jn.file(path)" in text
    assert "NoHash" not in text


@pytest.mark.filterwarnings("ignore")
def test_what_the_message_says_to_pass_can_be_passed(tmp_path: Path) -> None:
    for handle, loaded in (
        (_zarr, lambda x: x[...]),
        (_h5py, lambda x: x[...]),
        (_nibabel, lambda x: type(x)(x.get_fdata(), x.affine, x.header)),
        (_dataset, lambda x: x.to_table()),
        (_npz, dict),
        (_mne, lambda x: x.load_data(verbose="error")),
    ):
        assert digest(loaded(handle(tmp_path)))


def test_an_array_in_a_mapped_file_is_named_by_its_content(tmp_path: Path) -> None:
    np.save(tmp_path / "n.npy", np.ones(3))
    before = digest(np.load(tmp_path / "n.npy", mmap_mode="r"))
    np.save(tmp_path / "n.npy", np.zeros(3))
    assert digest(np.load(tmp_path / "n.npy", mmap_mode="r")) != before


# -- messages ---------------------------------------------------------------------------------------------------------


def test_a_version_that_is_no_string_is_refused_in_words() -> None:
    with pytest.raises(BadTask, match=r"version=1 of .*: a tag is a string, version='1'"):
        task(version=1)(lambda x: x)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["env", "secret_env", "ignore", "ignore_globals", "depends"])
def test_a_list_of_names_that_is_none_is_reported_with_what_to_give(option: str) -> None:
    for given in (3, [3]) if option != "depends" else (3,):
        with pytest.raises(BadTask, match=rf"^{option}=\[?3\]?: give a list of (names|functions and values)$"):
            task(**{option: given})(len)


def test_plans_are_refused_with_how_to_compute_them() -> None:
    delayed = pytest.importorskip("dask.delayed").delayed(len)([1])
    assert "is a plan, not a value: pass x.compute()" in refusal(delayed)
    assert "is a plan, not a value: pass x.compute()" in refusal(pytest.importorskip("dask.bag").from_sequence([1]))
    lazy = pytest.importorskip("polars").LazyFrame({"a": [1]})
    assert "is a plan, not a value: pass x.collect()" in refusal([lazy])
    assert "pass the data, and call group_by() inside the task" in refusal(lazy.group_by("a"))


def test_a_future_is_refused_with_how_to_get_its_value() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert "stands for a value: pass x.result()" in refusal(executor.submit(len, [1]))


def test_a_dask_array_and_frame_are_plans_too() -> None:
    array = pytest.importorskip("dask.array").ones(3)
    assert "is a plan, not a value: pass x.compute()" in refusal({"a": array})
    frame = pytest.importorskip("dask.dataframe").from_pandas(pytest.importorskip("pandas").DataFrame({"a": [1]}))
    assert "is a plan, not a value: pass x.compute()" in refusal(frame)


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("sqlalchemy", lambda sa: sa.create_engine("sqlite://")),
        ("rich.console", lambda rich: rich.Console()),
        ("redis", lambda redis: redis.Redis()),
        ("httpx", lambda httpx: httpx.Client()),
        ("concurrent.futures", lambda futures: futures.ThreadPoolExecutor()),
    ],
)
def test_a_client_an_engine_or_a_console_is_to_be_made_inside_the_task(library: str, make: Any) -> None:
    space = cell("def f(): return CLIENT")
    space["CLIENT"] = make(pytest.importorskip(library))
    with pytest.raises(Unhashable, match=r"^global 'CLIENT' read by f\(\).*: make it inside the task\.$") as refused:
        examine(space["f"])
    for fails_next in ("ignore_globals", "NoHash", "__jug_hash__"):
        assert fails_next not in str(refused.value)


def test_a_message_is_short_however_deep_the_part_lies() -> None:
    class Node:
        def __init__(self, callback: Any) -> None:
            self.callback = callback

        def run(self) -> None: ...

    node = Node(iter([]))
    for _ in range(30):
        node = Node(node.run)
    assert refusal(node).endswith("pass list(x).")


def test_a_registry_of_units_is_refused_by_name_and_its_quantities_count_by_value() -> None:
    pint = pytest.importorskip("pint")
    registry, other = pint.UnitRegistry(), pint.UnitRegistry()
    text = refusal(registry)
    assert len(text) < 200
    assert "inside the task" in text
    assert "selfref" not in text
    assert digest(3 * registry.m) == digest(3 * other.m) != digest(3 * registry.km)
    assert digest(3 * registry.m) not in (digest(4 * registry.m), digest(3.0 * registry.m), digest(3 * registry.s))


def test_a_table_of_astropy_counts_by_columns_in_order_and_metadata() -> None:
    table = pytest.importorskip("astropy.table").Table
    one = table({"a": [1, 2], "b": [3, 4]}, meta={"a": 1})
    same = table({"a": [1, 2], "b": [3, 4]}, meta={"a": 1})
    str(same)
    assert same["a"].info.name == "a"  # makes an attribute
    assert digest(one) == digest(same)
    others = [
        table({"b": [3, 4], "a": [1, 2]}, meta={"a": 1}),
        table({"a": [1, 5], "b": [3, 4]}, meta={"a": 1}),
        table({"a": [1, 2], "b": [3, 4]}, meta={"a": 2}),
        table({"a": [1, 2], "b": [3, 4]}, meta={"a": 1}, units={"a": "m"}),
    ]
    assert len({digest(each) for each in (one, *others)}) == 5


# -- a bare object() --------------------------------------------------------------------------------------------------


def test_a_bare_object_is_no_argument_since_only_its_identity_tells_it_from_another() -> None:
    for value in (object(), [object()], {"a": object()}):
        assert "pass None, a string or a member of an Enum" in refusal(value)


def test_a_sentinel_counts_by_the_name_that_holds_it() -> None:
    text = "A = object()\nB = {}\ndef f(x, y={}): return x is A, y is B"
    one, alias, default = (
        examine(cell(text.format(b, y))["f"]).digest for b, y in (("object()", 1), ("A", 1), ("object()", "A"))
    )
    assert len({one, alias, default, examine(cell(text.format("object()", "B"))["f"]).digest}) == 4
    assert examine(cell(text.format("object()", 1))["f"]).digest == one


@pytest.mark.filterwarnings("ignore")
def test_a_default_that_is_a_sentinel_need_not_be_passed() -> None:
    space = cell(
        "A = object()\ndef f(x, y=A, *, z=A): return x if y is A else y\ndef g(x, y=A): return x if y is A else y"
    )
    f, g = TaskFunction(space["f"]), TaskFunction(space["g"])
    assert name_call("c", "f", f._bound((1,), {})).key == name_call("c", "f", f._bound((), {"x": 1})).key
    assert name_call("c", "f", g._bound((1,), {})).key != name_call("c", "f", g._bound((1, ...), {})).key
    with pytest.raises(Unhashable, match="argument 'y' is an object, which only `is` tells from another"):
        name_call("c", "f", f._bound((1, space["A"]), {}))


# -- what a pickle drops ----------------------------------------------------------------------------------------------


class Marked(np.ndarray):  # type: ignore[misc]
    pass


def _series(name: str) -> Any:
    frame = pytest.importorskip("pandas").DataFrame({"a": [1]})
    object.__setattr__(frame, name, "x")
    return frame


def _polars(name: str) -> Any:
    frame = pytest.importorskip("polars").DataFrame({"a": [1]})
    setattr(frame, name, "x")
    return frame


def _marked(name: str) -> Any:
    array = np.ones(3).view(Marked)
    setattr(array, name, "m")
    return array


def _molecule(name: str) -> Any:
    molecule = pytest.importorskip("rdkit.Chem").MolFromSmiles("CCO")
    molecule.GetAtomWithIdx(0).SetProp(name, "x")
    return molecule


def _hooked(name: str) -> Any:
    tensor = pytest.importorskip("torch").ones(3, requires_grad=True)
    tensor.register_hook(lambda gradient: gradient * 2)
    return tensor


def _grouped(name: str) -> Any:
    table = pytest.importorskip("astropy.table").Table({"a": [1, 2], "b": ["x", "y"]})
    return table.group_by("b") if name == "groups" else table


@pytest.mark.parametrize("make", [_series, _polars, _marked, _molecule, _hooked, _grouped])
def test_what_a_pickle_drops_is_reported_once(make: Any) -> None:
    name = {_hooked: "hooks", _grouped: "groups"}.get(make, "label")
    with pytest.warns(DroppedByPickle, match=rf"drops what was added to it \({name}\).*argument of its own"):
        digest(make(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digest(make(name))


def test_what_a_pickle_keeps_counts_and_is_not_reported() -> None:
    torch, pd = pytest.importorskip("torch"), pytest.importorskip("pandas")
    plain, marked, other = torch.ones(3), torch.ones(3), torch.ones(3)
    marked.tag, other.tag = "x", "y"
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["name"] = "x"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len({digest(each) for each in (plain, marked, other)}) == 3
        assert digest(frame) != digest(pd.DataFrame({"a": [1]}))
        assert digest(pd.Series([1], name="s")) != digest(pd.Series([1]))
