"""Objects that stand for something outside the process, such as open files: refused by name, with what to pass instead.

The key of a call covers values. A handle on a file, a connection or a plan is none: what it stands for may change while
it stays equal, or means nothing in another process. To have another class refused, add a line to `REFUSED`.
"""

from __future__ import annotations

from typing import Any

from jug_notebook.keys.advice import report_dropped
from jug_notebook.keys.encoder import Encoder
from jug_notebook.keys.register import Writer, writer_for

_READS = "reads its file when it is used, so a changed file would go unnoticed: "
_FILE = "or jn.file(path) and open that inside the task"
_OPEN = "is open in this process only: pass jn.file(path), and open that inside the task"
_PLAN = "is a plan, not a value: "
_INSIDE = "means something in this process only: make it inside the task"

#: dotted names of classes (as for `writer_for`) -> what follows "is a zarr.Array, which"; it is for subclasses, too
REFUSED = {
    "_io._IOBase tempfile._TemporaryFileWrapper zipfile.ZipFile tarfile.TarFile pyarrow.NativeFile": _OPEN,
    "builtins.dict_keys builtins.dict_values builtins.dict_items": "changes with its dict: pass list(x)",
    "fsspec.OpenFile pandas.ExcelFile pandas.HDFStore": _OPEN,
    "_io.BytesIO _io.StringIO": "has a position, which reading it changes: pass x.getvalue()",
    "h5py.HLObject zarr.Array zarr.AsyncArray": f"{_READS}pass x[...], {_FILE}",
    "zarr.Group zarr.AsyncGroup": f"{_READS}pass its arrays, x['name'][...], {_FILE}",
    "xarray.BackendArray": f"{_READS}pass x.load(), {_FILE}",
    "nibabel.ArrayProxy": f"{_READS}pass type(x)(x.get_fdata(), x.affine, x.header), {_FILE}",
    "numpy.NpzFile": f"{_READS}pass dict(x), {_FILE}",
    "pyarrow.Dataset pyarrow.Fragment pyarrow.Scanner": f"{_READS}pass x.to_table(), {_FILE}",
    "pyarrow.ParquetFile pyarrow.ParquetDataset": f"{_READS}pass x.read(), {_FILE}",
    "fsspec.FSMap": f"{_READS}pass dict(x), {_FILE}",
    "sqlite3.Connection sqlite3.Cursor duckdb.DuckDBPyConnection _duckdb.DuckDBPyConnection": _OPEN,
    "duckdb.DuckDBPyRelation _duckdb.DuckDBPyRelation": f"{_PLAN}pass x.df()",
    "polars.LazyFrame": f"{_PLAN}pass x.collect()",
    "dask.DaskMethodsMixin dask.FrameBase": f"{_PLAN}pass x.compute()",
    "distributed.Client sqlalchemy.Engine sqlalchemy.Connection sqlalchemy.Session rich.Console": _INSIDE,
    "pint.GenericPlainRegistry pint.LazyRegistry pint.ApplicationRegistry": (
        "can't be sent to a worker: read pint.get_application_registry() inside the task, or pass quantities"
    ),
    "matplotlib.Artist matplotlib.TransformNode": (
        "is numbered by where it lies in memory: pass the task that returns it, or what it is drawn from"
    ),
    "sqlalchemy.Mapper sqlalchemy.MetaData sqlalchemy.Table": (
        "belongs to SQLAlchemy's registry in this process: pass the values of its columns, as a dict or a dataclass"
    ),
    "spacy.Language spacy.Vocab": "has another form in each process: pass its name, and load it inside the task",
    "spacy.Doc spacy.Span spacy.Token": "has another form in each process: pass x.text, or Doc.to_bytes()",
    "sympy.Dummy": "is another symbol in each process: pass sympy.Symbol(name)",
    "xarray.GroupBy": f"{_PLAN}pass the data, and call groupby() inside the task",
    "concurrent.Executor socket.socket _socket.socket": _INSIDE,
}


def _refuse(verdict: str) -> Writer:
    def writer(encoder: Encoder, value: Any, path: str) -> None:
        encoder.refuse(value, path, verdict=verdict)

    return writer


for _names, _verdict in REFUSED.items():
    for _name in _names.split():
        writer_for(_name, attributes=False)(_refuse(_verdict))


@writer_for("rdkit.Mol", attributes=False)
def _molecule(encoder: Encoder, value: Any, path: str) -> None:
    parts = (value, *value.GetAtoms(), *value.GetBonds())
    report_dropped(value, dict.fromkeys(name for part in parts for name in part.GetPropNames()))
    encoder.tagged("rdkit.Mol", (value.ToBinary(),), path)
