"""The store that a notebook shows how to write keeps all that stores promise."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from jug_notebook.store import Store, open_store
from tests.store import test_store

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "reference" / "own_store.ipynb"
HEADER = "%%writefile jug_store_sqlite.py\n"


@pytest.fixture
def store_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    [source] = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.source.startswith(HEADER)]
    (tmp_path / "jug_store_sqlite.py").write_text(source.removeprefix(HEADER))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jug_store_sqlite", raising=False)
    return f"sqlite:{tmp_path / 'store.db'}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    yield opened
    opened.close()


def test_it_takes_what_callers_give_to_any_store(store: Store) -> None:
    for name in filter(lambda name: callable(getattr(Store, name)), Store.__abstractmethods__):
        promised = list(inspect.signature(getattr(Store, name)).parameters)[1:]
        assert list(inspect.signature(getattr(store, name)).parameters) == promised, name


#: the promises of every store, from the tests of ours; the others there are about folders
for _name, _test in vars(test_store).items():
    if _name.startswith("test_") and "store" in _test.__code__.co_varnames[: _test.__code__.co_argcount]:
        globals()[_name] = _test
