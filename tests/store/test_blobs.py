"""Large values: written once and whole, proven when read, mapped without reading, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from jug_notebook import codec
from jug_notebook.errors import ValueLost
from jug_notebook.keys import digest
from jug_notebook.store import open_store
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file import blobs
from jug_notebook.store.file.blobs import LARGE, Blobs, Proofs

np = pytest.importorskip("numpy")
BYTES = np.random.default_rng(0).bytes(3 * LARGE + 17)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trash").mkdir()
    (tmp_path / "blobs").mkdir()
    return tmp_path / "blobs"


def opened(folder: Path) -> Blobs:
    """As another process would."""
    return Blobs(Folder(folder.parent), "file:store", Proofs("store"))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [0, 5, LARGE - 1, LARGE, 3 * LARGE + 17])
def test_what_is_put_is_got(folder: Path, size: int) -> None:
    data = BYTES[:size]
    address = opened(folder).put([data[: size // 3], memoryview(data)[size // 3 :]])
    assert bytes(opened(folder).get(address)) == data
    assert bytes(opened(folder).map(address)) == data


def test_a_large_blob_that_is_there_is_not_written_again(folder: Path) -> None:
    address = opened(folder).put([BYTES])
    [path] = files(folder)
    os.utime(path, (1, 1))
    before = path.stat()
    assert opened(folder).put([BYTES[:100], BYTES[100:]]) == address
    [path] = files(folder)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime > 1, "it is in use again"


def test_nothing_is_left_where_the_disk_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(blobs.StoreError, match="No space left"):
        opened(folder).put([BYTES])
    assert not files(folder)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("read", ["get", "map"])
@pytest.mark.parametrize("size", [100, len(BYTES)])
def test_a_damaged_blob_is_no_value_even_with_its_old_time_and_size(
    folder: Path, read: str, size: int, known: bool
) -> None:
    store = opened(folder)
    address = store.put([BYTES[:size]])
    getattr(store, read)(address)
    [path] = files(folder)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(50)
        file.write(bytes([BYTES[50] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueLost, match="damaged"):
        getattr(store if known else opened(folder), read)(address)
    with pytest.raises(ValueLost, match="missing"):
        getattr(store, read)(address)
    assert [path.name[:40] for path in files(folder.with_name("trash"))] == [address], "it is kept aside for a day"
    assert store.put([BYTES[:size]]) == address
    assert bytes(getattr(store, read)(address)) == BYTES[:size], "who makes it again brings it back"


@pytest.mark.parametrize("size", [100, len(BYTES)])
def test_writing_a_blob_again_replaces_one_that_was_damaged_unseen(folder: Path, size: int) -> None:
    address = opened(folder).put([BYTES[:size]])
    [path] = files(folder)
    path.write_bytes(bytes(size))
    assert opened(folder).put([BYTES[:size]]) == address
    assert bytes(opened(folder).get(address)) == BYTES[:size]


def test_a_shortened_or_missing_blob_is_no_value(folder: Path) -> None:
    address = opened(folder).put([BYTES])
    [path] = files(folder)
    for read in ("get", "map"):
        os.truncate(path, 2 * LARGE)
        with pytest.raises(ValueLost, match="damaged"):
            getattr(opened(folder), read)(address)
        opened(folder).put([BYTES])
    path.unlink()
    with pytest.raises(ValueLost, match="missing"):
        opened(folder).map(address)


def test_a_map_is_hashed_once_on_a_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = opened(folder).put([BYTES])
    [path] = files(folder)
    os.utime(path, (1, 1))  # touched, so nothing is known of it
    hashed: list[object] = []
    really = blobs._hashed
    monkeypatch.setattr(blobs, "_hashed", lambda pieces: hashed.append(1) or really(pieces))
    for _ in range(3):
        assert opened(folder).map(address) == BYTES
    assert len(hashed) == 1


def test_who_wrote_a_blob_may_map_it_unhashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = opened(folder).put([BYTES])
    monkeypatch.setattr(blobs, "_hashed", lambda pieces: pytest.fail("hashed"))
    assert opened(folder).map(address) == BYTES


def test_proofs_that_others_could_have_written_are_not_believed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = opened(folder).put([BYTES])
    [proofs] = files(tmp_path / "cache")
    assert proofs.stat().st_mode & 0o777 == 0o600
    proofs.chmod(0o622)
    hashed: list[object] = []
    really = blobs._hashed
    monkeypatch.setattr(blobs, "_hashed", lambda pieces: hashed.append(1) or really(pieces))
    opened(folder).map(address)
    assert hashed


def test_without_a_place_for_proofs_blobs_are_hashed_each_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    address = opened(folder).put([BYTES])
    assert opened(folder).map(address) == BYTES


def test_what_is_got_or_mapped_is_ones_own(tmp_path: Path) -> None:
    store = open_store(tmp_path / "jugdata")
    array = np.arange(300_000.0)
    payload, _ = codec.dump_value([array, array[:20_000]], store.put_blob)
    mine = codec.load_value(payload, store.get_blob)
    mine[0][0] = -1
    mine[1][1] = -1
    again = codec.load_value(payload, store.get_blob)
    assert again[0][0] == 0
    assert again[1][1] == 1
    mapped = codec.load_value(payload, store.get_blob, partial(store.get_blob, mapped=True))
    mapped[0][0] = -1
    kept = codec.load_value(payload, store.get_blob, codec.writable(partial(store.get_blob, mapped=True)))
    kept[0][0] = -1
    assert codec.load_value(payload, store.get_blob, partial(store.get_blob, mapped=True))[0][0] == 0


@pytest.mark.parametrize(
    "value",
    [
        np.arange(60_000.0).reshape(200, 300),
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        np.arange(60_000.0)[::2],
        [np.arange(60_000.0), np.arange(60_000.0)[10:], np.arange(60_000).view("f8").reshape(2, -1).T],
        np.ma.masked_less(np.arange(60_000.0), 7),
        np.arange(60_000.0).view(np.recarray),
    ],
    ids=["C", "Fortran", "strided", "views", "masked", "subclass"],
)
def test_a_value_is_named_alike_whether_or_not_its_buffers_were_hashed_on_the_way(value: object, store) -> None:  # type: ignore[no-untyped-def]
    _, name = codec.dump_value(value, store.put_blob)
    assert name == b"c" + digest.digest(value)


MEMORY = """
    import resource, sys
    import numpy as np
    from jug_notebook import codec
    from jug_notebook.store import open_store

    def grown(act):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kept = act()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (size >> 10), kept

    size = 128 << 20
    store = open_store(sys.argv[1])
    value = np.random.default_rng(0).random(size // 8)
    codec.dump_value(value[: 1 << 20], store.put_blob)
    stored, (payload, _) = grown(lambda: codec.dump_value(value, store.put_blob))
    first = float(value[-1])
    loaded, again = grown(lambda: codec.load_value(payload, store.get_blob))
    assert again[-1] == first
    print(stored, loaded)
"""


def test_storing_a_value_copies_nothing_and_loading_it_takes_its_size_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "jugdata")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    stored, loaded = map(float, done.stdout.split())
    assert stored < 0.1
    assert loaded < 1.1  # less where what was freed before had room for it
