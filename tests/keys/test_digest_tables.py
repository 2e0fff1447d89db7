"""Arrays and tables are named by their content, whatever their layout."""

from __future__ import annotations

import copy
import datetime as dt
import math
import pathlib
import pickle
from typing import Any

import pytest

from jug_notebook.errors import Unhashable
from jug_notebook.keys.digest import digest

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

# -- numpy -------------------------------------------------------------------------------------------------------------


def test_the_layout_of_an_array_does_not_count() -> None:
    a = np.arange(60.0).reshape(3, 4, 5)
    wide = np.zeros((6, 8, 5))
    wide[::2, ::2] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    for same in (np.asfortranarray(a), wide[::2, ::2], a.copy()[::-1][::-1], frozen, a.T.copy().T):
        assert digest(same) == digest(a)
    assert digest(a.T) != digest(a)
    assert digest(a.reshape(4, 3, 5)) != digest(a)


def test_an_array_that_is_copied_in_pieces_has_the_same_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    from jug_notebook.keys import arrays as digest_arrays

    a = np.arange(100_000.0).reshape(500, 200)
    monkeypatch.setattr(digest_arrays, "CHUNK", 10_000)
    assert digest(np.asfortranarray(a)) == digest(a)
    assert digest(np.repeat(a.ravel(), 2)[::2].reshape(500, 200)) == digest(a)


def test_a_mapped_array_is_named_by_its_content(tmp_path: pathlib.Path) -> None:
    a = np.arange(1000)
    np.save(tmp_path / "a.npy", a)
    assert digest(np.load(tmp_path / "a.npy", mmap_mode="r")) == digest(a)


def test_object_arrays_are_named_element_by_element() -> None:
    a = np.array([[1, "a"], [None, {2, 3}]], dtype=object)
    assert digest(a) == digest(copy.deepcopy(a)) == digest(np.asfortranarray(a))
    assert digest(a) != digest(np.array([[1, "a"], [None, {2, 4}]], dtype=object))


def test_what_lies_between_the_fields_of_a_structure_does_not_count() -> None:
    kind = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    clean, dirty = np.zeros(3, kind), np.frombuffer(b"\xff" * 3 * kind.itemsize, kind).copy()
    dirty["a"] = dirty["b"] = 0
    assert digest(clean) == digest(dirty)
    assert digest(clean[0]) == digest(dirty[0])
    assert digest(clean) != digest(clean[["b", "a"]])


@pytest.mark.parametrize("kind", ["?", "i1", "<u2", ">i4", "f2", "f8", "g", "c16", "M8[ns]", "m8[s]", "S3", "U3", "V5"])
def test_every_kind_of_array_has_a_name(kind: str) -> None:
    a = np.zeros((3, 2), dtype=kind)
    assert digest(a) == digest(np.zeros((2, 3), dtype=kind).T)
    assert digest(a) != digest(a[:2])
    assert digest(a[0, 0]) == digest(a[1, 1])
    assert digest(a[:0]) != digest(a[:0].T)


def test_arrays_of_strings_of_any_length_are_named_by_their_strings() -> None:
    kind = np.dtypes.StringDType()
    a = np.array(["a", "b" * 100], dtype=kind)
    assert digest(a) == digest(np.array(["x", "a", "b" * 100], dtype=kind)[1:])
    assert digest(a) != digest(np.array(["a", "c" * 100], dtype=kind))


def test_records_are_told_from_structures() -> None:
    plain = np.dtype([("a", "i4")])
    kinds = [plain, np.dtype((np.record, plain)), np.dtype([("a", "i4")], align=True)]
    assert kinds[0] == kinds[1] == kinds[2]
    names = [digest(np.zeros(2, kind)) for kind in kinds]
    assert len(set(names)) == 3
    assert names[::-1] == [digest(np.zeros(2, kind)) for kind in kinds[::-1]]


def test_a_value_that_is_masked_out_has_a_name() -> None:
    assert digest(np.ma.array([1], mask=[True]).sum()) == digest(np.ma.masked) != digest(np.ma.array(0.0, mask=True))


def test_functions_of_numpys_kind_are_named_by_their_home_or_by_what_they_were_made_of() -> None:
    special = pytest.importorskip("scipy.special")
    found = [
        np.log1p, special.log1p, special.expit, np.add.reduce,
        np.frompyfunc(lambda x: x + 1, 1, 1), np.frompyfunc(lambda x: x + 2, 1, 1),
        np.frompyfunc(lambda x: (x, x), 1, 2), np.frompyfunc(max, 2, 1), np.frompyfunc(max, 2, 1, identity=0),
        np.frompyfunc(max, 2, 1).reduce,
    ]  # fmt: skip
    assert len({digest(each) for each in found}) == len(found)
    assert digest(np.frompyfunc(max, 2, 1)) == digest(np.frompyfunc(max, 2, 1))


def test_a_vectorized_function_is_named_as_before_once_it_was_called() -> None:
    def made(step: int, **options: Any) -> Any:
        return np.vectorize(lambda x: x + step, **options)

    found = [made(1), made(2), made(1, otypes=[float]), made(1, otypes=[int]), made(1, excluded=[0])]
    names = [digest(each) for each in found]
    assert len(set(names)) == len(found)
    for each in found[:4]:
        each([1, 2])
    assert [digest(each) for each in found] == names
    found[0].note = 1
    assert digest(found[0]) != names[0]


def test_a_generator_of_random_numbers_is_named_by_its_state() -> None:
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    assert digest(one) == digest(two) == digest(pickle.loads(pickle.dumps(one)))
    one.random()
    assert digest(one) != digest(two)
    old, older = np.random.RandomState(3), np.random.RandomState(3)
    assert digest(old) == digest(older)
    old.rand()
    assert digest(old) != digest(older)


# -- pandas ------------------------------------------------------------------------------------------------------------


def frame() -> Any:
    return pd.DataFrame(
        {
            "f": [1.0, 2.0, math.nan],
            "i": [1, 2, 3],
            "s": ["a", "b", None],
            "o": np.array([1, "a", None], dtype=object),
            "c": pd.Categorical(["x", "y", "x"]),
            "t": pd.date_range("2024-01-01", periods=3, tz="Europe/Berlin"),
            "d": pd.to_timedelta([1, 2, None], unit="D"),
            "n": pd.array([1, None, 3], dtype="Int64"),
            "b": pd.array([True, None, False], dtype="boolean"),
            "p": pd.period_range("2024-01", periods=3, freq="M"),
            "v": pd.arrays.IntervalArray.from_breaks([0, 1, 2, 3]),
            "z": pd.arrays.SparseArray([0, 1, 0]),
            "y": pd.array(["a", None, "c"], dtype="string"),
        },
        index=pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["k", "l"]),
    )


def test_equal_frames_agree() -> None:
    a = frame()
    assert digest(a) == digest(frame()) == digest(a.copy(deep=True)) == digest(pickle.loads(pickle.dumps(a)))


@pytest.mark.parametrize("column", list(frame().columns))
def test_every_column_of_a_frame_counts(column: str) -> None:
    a, b = frame(), frame()
    b[column] = b[column].iloc[[1, 0, 2]].set_axis(b.index)
    assert digest(a) != digest(b)
    assert digest(a.drop(columns=column)) != digest(a)
    assert digest(a.rename(columns={column: "other"})) != digest(a)


def test_blocks_and_longer_frames_do_not_show() -> None:
    together = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "b"])
    apart = pd.DataFrame({"a": [0.0, 2.0, 4.0]})
    apart["b"] = [1.0, 3.0, 5.0]
    assert digest(together) == digest(apart)
    longer = pd.DataFrame({"a": [1, 2, 3, 4], "s": list("abcd")})
    assert digest(longer[:2]) == digest(pd.DataFrame({"a": [1, 2], "s": list("ab")}))


def test_attrs_order_and_index_of_a_frame_count() -> None:
    a = frame()
    noted = frame()
    noted.attrs["source"] = "there"
    assert len({digest(x) for x in (a, noted, a[a.columns[::-1]], a.iloc[::-1], a.reset_index(drop=True))}) == 5


def test_what_lies_below_a_missing_value_does_not_count() -> None:
    values, mask = np.array([1, 2, 3]), np.array([False, True, False])
    one = pd.arrays.IntegerArray(values.copy(), mask.copy())
    two = pd.arrays.IntegerArray(np.array([1, 99, 3]), mask.copy())
    assert digest(one) == digest(two)
    assert digest(one) != digest(pd.arrays.IntegerArray(values, ~mask))


def test_levels_that_no_row_has_any_more_do_not_count() -> None:
    index = pd.MultiIndex.from_product([["a", "b", "c"], [1, 2]])
    assert digest(index[:2]) == digest(pd.MultiIndex.from_product([["a"], [1, 2]]))


def test_the_order_of_levels_counts_since_it_shows() -> None:
    one, two = (
        pd.Series([1, 2], pd.MultiIndex(levels=[levels, ["x"]], codes=[codes, [0, 0]]))
        for levels, codes in ((["b", "a"], [0, 1]), (["a", "b"], [1, 0]))
    )
    assert one.equals(two)
    assert list(one.unstack(0).columns) != list(two.unstack(0).columns)
    assert digest(one) != digest(two)


INDEXES = {
    "range": pd.RangeIndex(3),
    "int": pd.Index([0, 1, 2]),
    "float": pd.Index([0.0, 1.0, 2.0]),
    "object": pd.Index([0, 1, 2], dtype=object),
    "named": pd.Index([0, 1, 2], name="a"),
    "dates": pd.date_range("2024-01-01", periods=3),
    "dates with zone": pd.date_range("2024-01-01", periods=3, tz="UTC"),
    "dates in another zone": pd.date_range("2024-01-01", periods=3, tz="Europe/Berlin"),
    "deltas": pd.timedelta_range("1D", periods=3),
    "periods": pd.period_range("2024-01", periods=3, freq="M"),
    "categories": pd.CategoricalIndex(["a", "b", "a"]),
    "intervals": pd.interval_range(0, 3),
    "strings": pd.Index(["a", "b", "c"]),
}


def test_every_kind_of_index_has_a_name_of_its_own() -> None:
    assert len({digest(index) for index in INDEXES.values()}) == len(INDEXES)
    for index in INDEXES.values():
        assert digest(index) == digest(pickle.loads(pickle.dumps(index)))


# -- other tables, where they are installed ----------------------------------------------------------------------------


def test_chunks_of_a_polars_frame_do_not_show() -> None:
    pl = pytest.importorskip("polars")
    numbers = {"a": [1, 2, None], "f": [1.0, 2.0, 3.0], "b": [True, None, False]}
    whole = pl.DataFrame({**numbers, "s": ["x", None, "z"], "l": [[1], [], None]})
    pieces = pl.concat([whole[:1], whole[1:]], rechunk=False)
    assert pieces.n_chunks() == 2
    assert digest(whole) == digest(pieces) == digest(pl.concat([whole, whole])[3:])
    others = (whole.rename({"a": "c"}), whole.cast({"a": pl.Int32}), whole[::-1], whole.with_columns(s=pl.lit("x")))
    assert digest(whole) not in {digest(other) for other in others}
    assert digest(pl.Series("s", ["ab", "c"])) != digest(pl.Series("s", ["a", "bc"]))
    assert digest(pl.Series("s", ["", None])) != digest(pl.Series("s", [None, ""]))
    dates = pl.Series("d", [dt.datetime(2024, 1, 1), None])
    assert digest(dates) != digest(dates.dt.replace_time_zone("UTC"))
    one, two = (pl.Series("s", ["b", "a"], dtype=pl.Categorical) for _ in range(2))
    assert digest(one) == digest(two)
    with pytest.raises(Unhashable, match="collect"):
        digest(whole.lazy())


def test_lists_and_structs_of_polars_are_named_to_the_nanosecond() -> None:
    pl = pytest.importorskip("polars")
    for inner in (pl.Datetime("ns"), pl.Duration("ns"), pl.Time, pl.List(pl.Time), pl.Struct({"t": pl.Time})):
        for outer in (pl.List(inner), pl.Array(inner, 1)):
            plain = pl.List(pl.List(pl.Int64)) if inner == pl.List(pl.Time) else pl.List(pl.Int64)
            one, two = (
                pl.Series([[[n]] if inner == pl.List(pl.Time) else [n]], dtype=plain).cast(outer)
                if inner != pl.Struct({"t": pl.Time})
                else pl.Series([[{"t": n}]], dtype=pl.List(pl.Struct({"t": pl.Int64}))).cast(outer)
                for n in (1, 2)
            )
            assert digest(one) != digest(two), outer
            assert digest(one) == digest(pl.concat([two, one], rechunk=False)[1:]), outer
    rows = [[[1], [], None], [[1], None, []], [[], [1], None], [None, None, [1]], [[1, None], [], None]]
    assert len({digest(pl.Series(row, dtype=pl.List(pl.Int8))) for row in rows}) == len(rows)
    structs = [[None, {"a": 1}], [{"a": None}, {"a": 1}], [{"a": 1}, None]]
    assert len({digest(pl.Series(row, dtype=pl.Struct({"a": pl.Int8}))) for row in structs}) == len(structs)
    assert digest(pl.Series([1], dtype=pl.Int128)) != digest(pl.Series([2**70], dtype=pl.Int128))


def test_dictionaries_lists_and_structs_of_arrow_are_named_by_all_they_hold() -> None:
    pa = pytest.importorskip("pyarrow")
    encoded = [([0], ["a", "b"]), ([1], ["b", "a"]), ([0], ["a"])]
    assert len({digest(pa.DictionaryArray.from_arrays(*each)) for each in encoded}) == 3
    whole = pa.chunked_array([pa.DictionaryArray.from_arrays([0, 1], ["a", "b"])])
    assert digest(pa.chunked_array([whole.chunk(0)[:1], whole.chunk(0)[1:]])) == digest(whole)
    times = {
        "list": [pa.array([[n]], pa.list_(pa.int64())).cast(pa.list_(pa.time64("ns"))) for n in (1, 2)],
        "struct": [pa.StructArray.from_arrays([pa.array([n]).cast(pa.time64("ns"))], ["t"]) for n in (1, 2)],
        "map": [
            pa.array([[("k", n)]], pa.map_(pa.string(), pa.int64())).cast(pa.map_(pa.string(), pa.time64("ns")))
            for n in (1, 2)
        ],
        "same name twice": [pa.StructArray.from_arrays([pa.array([n]), pa.array([3])], ["a", "a"]) for n in (1, 2)],
    }
    for kind, (one, two) in times.items():
        assert digest(one) != digest(two), kind
        assert digest(one) == digest(pa.concat_arrays([two, one])[1:]), kind
    lists = [[[1], [], None], [[1], None, []], [[], [1], None], [None, None, [1]], [[1, None], [], None]]
    for kind in (pa.list_(pa.int8()), pa.large_list(pa.int8())):
        assert len({digest(pa.array(each, kind)) for each in lists}) == len(lists)


def test_chunks_slices_and_nulls_of_an_arrow_table_do_not_show() -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {
        "i": pa.array([1, None, 3, 4]),
        "f": pa.array([1.0, 2.0, None, 4.0]),
        "s": pa.array(["a", None, "", "d"]),
        "t": pa.array([dt.datetime(2024, 1, day) for day in range(1, 5)], pa.timestamp("us", tz="UTC")),
        "b": pa.array([True, None, False, True]),
        "l": pa.array([[1], None, [], [2, 3]]),
        "c": pa.array(["x", "y", "x", None]).dictionary_encode(),
    }
    table = pa.table(columns)
    pieces = pa.concat_tables([table[:1], table[1:3], table[3:]])
    assert digest(table) == digest(pieces) == digest(pa.concat_tables([table, table])[4:])
    for name, column in columns.items():
        assert digest(column) == digest(pa.concat_arrays([column, column])[4:])
        assert digest(column) != digest(column.take(pa.array([1, 0, 2, 3]))), name
    assert digest(table) != digest(table.rename_columns(list("abcdefg")))
    assert digest(table) != digest(table.replace_schema_metadata({"a": "b"}))
    column = pd.array(["a", None], dtype=pd.ArrowDtype(pa.string()))
    assert digest(column) == digest(pd.array(["x", "a", None], dtype=pd.ArrowDtype(pa.string()))[1:])


def test_sparse_matrices_are_named_by_what_they_store() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.array([[0, 1.0, 0], [2.0, 0, 3.0]])
    for kind in ("csr", "csc", "coo", "lil", "dok", "dia", "bsr"):
        assert digest(sparse.coo_array(dense).asformat(kind)) == digest(sparse.csr_array(dense).asformat(kind))
    twice = sparse.coo_array((np.array([1.0, 1.0]), (np.array([0, 0]), np.array([1, 1]))), shape=(2, 3))
    once = sparse.coo_array(([2.0], ([0], [1])), shape=(2, 3))
    assert twice.nnz != once.nnz
    assert digest(twice) != digest(once)
    rows = [sparse.csr_array((np.ones(n), np.ones(n, int), np.array([0, n, n])), (2, 3)) for n in (1, 2)]
    assert digest(rows[0]) != digest(rows[1])
    mixed = sparse.csr_array((np.array([3.0, 2.0]), np.array([2, 0]), np.array([0, 2])), shape=(1, 3))
    assert digest(mixed) == digest(sparse.csr_array(np.array([[2.0, 0, 3.0]])))
    assert digest(sparse.csr_array(dense)) != digest(sparse.csr_matrix(dense))
    assert digest(sparse.csr_array(dense)) != digest(sparse.csc_array(dense))
    labelled = sparse.csr_array(dense)
    labelled.label = "x"
    assert digest(labelled) != digest(sparse.csr_array(dense))


def test_an_estimator_is_named_by_its_parameters_and_what_it_learnt() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = np.arange(10.0).reshape(-1, 1), np.arange(10.0)
    assert digest(linear.Ridge(alpha=2)) == digest(linear.Ridge(alpha=2))
    assert digest(linear.Ridge(alpha=2)) != digest(linear.Ridge(alpha=3))
    assert digest(linear.Ridge().fit(x, y)) == digest(linear.Ridge().fit(x, y)) != digest(linear.Ridge())


def test_tensors_are_named_by_dtype_shape_and_elements() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    found = [
        tensor, tensor.T, tensor.double(), tensor.bfloat16(), tensor.reshape(4, 3), tensor[0], tensor[0, 0],
        tensor.clone().requires_grad_(), tensor.to_sparse(), torch.zeros(0), torch.zeros(0, 2), tensor.bool(),
        torch.nn.Parameter(tensor), tensor + 0j, tensor.numpy(), tensor.tolist(),
    ]  # fmt: skip
    assert len({digest(each) for each in found}) == len(found)
    columns = tensor.T.contiguous().T
    assert digest(columns) == digest(tensor) == digest(tensor.clone()) == digest(torch.cat([tensor, tensor])[:3])
    assert digest((tensor + 1j).conj()) == digest(tensor - 1j)
    assert digest({"model": torch.nn.Linear(2, 2).state_dict()})
    generator = torch.Generator().manual_seed(3)
    before = digest(generator)
    assert digest(torch.Generator().manual_seed(3)) == before
    torch.rand(1, generator=generator)
    assert digest(generator) != before
    with pytest.raises(Unhashable, match=r"x\.cpu\(\)"):
        digest(torch.zeros(2, device="meta"))
