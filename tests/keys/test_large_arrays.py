"""A large array is hashed once, stored once and loaded once per worker, until somebody writes to it."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.keys.code import examine
from jug_notebook.keys.digest import digest

np = pytest.importorskip("numpy")

SIZE = 3 * system.WATCHED // 8  #: elements


def array() -> Any:
    return np.random.default_rng(0).random(SIZE)


def is_watched() -> bool:
    some = array()
    digest(some)
    return system.known([memoryview(some)]) is not None


watched = pytest.mark.skipif(not is_watched(), reason="this system doesn't know which pages were written to")


def true_hash(values: Any) -> bytes:
    return blake3(np.ascontiguousarray(values).reshape(-1).view("u1")).digest(20)


class Counting:
    """Hashes arrays, and knows how many it had to read."""

    def __init__(self) -> None:
        self.memory = system.MEMORY
        self.read = 0

    def __call__(self, values: Any) -> bytes:
        def make() -> bytes:
            self.read += 1
            return true_hash(values)

        place = system.place_of(memoryview(values))
        assert place is not None
        return self.memory.hash(*place, make)


# -- what was written to is hashed again -------------------------------------------------------------------------------


def _by_a_view(values: Any) -> None:
    view = values[:]
    values.flags.writeable = False
    view[SIZE // 2] = 7
    values.flags.writeable = True


def _by_a_thread(values: Any) -> None:
    thread = threading.Thread(target=values.__setitem__, args=(SIZE // 2, 7))
    thread.start()
    thread.join()


def _by_the_system(values: Any) -> None:
    with open("/dev/zero", "rb") as zeros:
        os.preadv(zeros.fileno(), [memoryview(values).cast("B")[1_000_000:1_000_100]], 0)


def _read_only_for_now(values: Any) -> None:
    values.flags.writeable = False
    values.flags.writeable = True
    values[SIZE // 2] = 7
    values.flags.writeable = False


WRITES: dict[str, Callable[[Any], None]] = {
    "an element": lambda values: values.__setitem__(SIZE // 2, 7),
    "the first": lambda values: values.__setitem__(0, 7),
    "the last": lambda values: values.__setitem__(-1, 7),
    "all": lambda values: values.__iadd__(1),
    "by a view": _by_a_view,
    "by a thread": _by_a_thread,
    "by the system": _by_the_system,
    "read-only before and after": _read_only_for_now,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_array_that_was_written_to_has_another_key(write: Callable[[Any], None]) -> None:
    values = array()
    before = digest(values)
    assert digest(values) == before == digest(values.copy())
    write(values)
    assert digest(values) != before
    assert digest(values) == digest(values.copy())


@pytest.mark.parametrize("order", ["F", "every second", "reversed", "fields"])
def test_an_array_in_any_layout_has_the_key_of_its_copy(order: str) -> None:
    many = np.arange(2 * SIZE * 2.0).reshape(2, -1)
    fields = many.view([("a", "f8"), ("b", "f8")])
    values = {"F": np.asfortranarray(many), "every second": many[:, ::2], "reversed": many[::-1], "fields": fields}[
        order
    ]
    copy = values.copy(order="C")
    assert digest(values) == digest(copy)
    values[1, SIZE // 2] = (7, 7) if order == "fields" else 7
    assert digest(values) == digest(values.copy(order="C"))


@watched
def test_an_array_is_read_once_until_it_is_written_to() -> None:
    values, hashed = array(), Counting()
    assert {hashed(values) for _ in range(5)} == {true_hash(values)}
    assert hashed.read == 1
    values[SIZE // 3] = 7
    assert {hashed(values) for _ in range(5)} == {true_hash(values)}
    assert hashed.read == 2


@watched
def test_bytes_are_read_once_though_python_counts_references_beside_them() -> None:
    hashed, data = Counting(), os.urandom(2 * system.WATCHED)
    for _ in range(3):
        kept = [np.frombuffer(data, "u1") for _ in range(10)]
        assert hashed(kept[0]) == blake3(data).digest(20)
    assert hashed.read == 1


@watched
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 11), st.integers(0, 1 << 19)),
            st.tuples(st.just("hash"), st.integers(0, 2), st.integers(4, 12)),
        ),
        max_size=12,
    )
)
def test_no_order_of_writing_and_hashing_parts_gives_an_old_hash(steps: list[tuple[str, int, int]]) -> None:
    whole, hashed = np.zeros(12 * system.WATCHED // 4 // 8), Counting()
    piece = system.WATCHED // 4 // 8
    for what, at, more in steps:
        if what == "write":
            whole[(at * piece + more) % len(whole)] += 1
        else:
            part = whole[at * piece : (at + more) * piece]
            assert hashed(part) == true_hash(part)


@watched
def test_a_write_to_a_part_that_is_hashed_apart_is_noticed_by_the_whole() -> None:
    values, hashed = array(), Counting()
    half = values[: SIZE // 2]
    hashed(values)
    values[5000] = 7
    assert hashed(half) == true_hash(half)  # from here on, this page counts as unwritten again
    assert hashed(values) == true_hash(values)


def test_memory_that_others_may_write_to_is_hashed_each_time(tmp_path: Path) -> None:
    shared = shared_memory.SharedMemory(create=True, size=SIZE * 8)
    np.zeros(SIZE).tofile(tmp_path / "data")
    anonymous = mmap.mmap(-1, SIZE * 8)
    try:
        for values in (
            np.ndarray(SIZE, "f8", buffer=shared.buf),
            np.frombuffer(anonymous),
            np.memmap(tmp_path / "data", "f8", "r"),
            np.memmap(tmp_path / "data", "f8", "c"),
        ):
            hashed = Counting()
            assert hashed(values) == hashed(values) == true_hash(values)
            assert hashed.read == 2
            del values
    finally:
        shared.close()
        shared.unlink()


def test_where_a_device_may_write_to_memory_arrays_are_hashed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: "/dev/nvidia0")
    values, hashed = array(), Counting()
    hashed(values)
    hashed(values)
    assert hashed.read == 2


def test_pages_that_were_given_back_are_not_what_they_were() -> None:
    memory = mmap.mmap(-1, SIZE * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values, hashed = np.frombuffer(memory), Counting()
    values[:] = 1
    hashed(values)
    memory.madvise(mmap.MADV_DONTNEED)
    assert hashed(values) == true_hash(values) == true_hash(np.zeros(SIZE))


@watched
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_knows_nothing_of_its_parents_pages() -> None:
    values = array()
    before = digest(values)
    child = os.fork()
    if not child:
        values[SIZE // 2] = 7
        os._exit(system.known([memoryview(values)]) is not None)
    assert os.waitpid(child, 0)[1] == 0
    assert system.known([memoryview(values)]) == true_hash(values)
    assert digest(values) == before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_of_a_process_that_hashed_with_threads_hashes_too() -> None:
    large = bytes(200_000_000)
    hashed = digest(large)
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends it where it waits for threads that it hasn't
        os._exit(digest(large) != hashed)
    assert os.waitpid(child, 0)[1] == 0


# -- stored once, loaded once ------------------------------------------------------------------------------------------


@pytest.fixture
def session(store_url: str) -> Iterator[jn.Session]:
    session = jn.connect(store_url)
    yield session
    session.close()


def _counted(session: jn.Session, monkeypatch: pytest.MonkeyPatch, verb: str) -> list[int]:
    """Return the sizes of large blobs, as they go by."""
    met: list[int] = []
    really = getattr(session.access.store, verb)

    def counting(given: Any, **options: Any) -> Any:
        given = given if verb == "get_blob" else list(given)
        found = really(given, **options)
        size = found.nbytes if verb == "get_blob" else sum(memoryview(part).nbytes for part in given)
        met.extend([size] if size > 1 << 20 else [])
        return found

    monkeypatch.setattr(session.access.store, verb, counting)
    return met


@watched
def test_one_array_for_many_calls_made_one_by_one_is_read_once(session: jn.Session) -> None:
    @jn.task
    def at(values: Any, place: int) -> float:
        return float(values[place])

    values, forms = array(), list[int]()
    make = system.KnownMemory.hash

    def hash(self: Any, start: int, stop: int, make_it: Any, form: object = None) -> bytes:
        return make(self, start, stop, lambda: forms.append(stop - start) or make_it(), form)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system.KnownMemory, "hash", hash)
        made = [at(values, place) for place in range(20)]
        values[3] = -1
        changed = at(values, 3)
        session.submissions.flush()
    assert len(forms) == 2  # before and after it was written to
    assert changed.key != made[3].key
    session.execute(1)
    assert changed.result() == -1 != made[3].result()


BIG = array()


def test_an_array_that_is_argument_and_global_is_one_blob(session: jn.Session) -> None:
    @jn.task
    def by_name(place: int) -> float:
        return float(BIG[place])

    @jn.task
    def by_argument(values: Any, place: int) -> float:
        return float(values[place])

    first, second = by_name(7), by_argument(BIG, 7)
    session.submissions.flush()
    store = session.access.store
    bundle = codec_bundle(session, first)
    [spec] = [session.access.signed.spec(second.key, body) for body in store.specs([second.key]) if body]
    assert bundle.buffers == spec.arguments.buffers
    assert len(bundle.function) < 10_000
    session.execute(1)
    assert first.result() == second.result() == BIG[7]


def codec_bundle(session: jn.Session, task: Any) -> Any:
    import msgspec

    from jug_notebook.model import FunctionBundle
    from jug_notebook.store.signed import template

    [body] = session.access.store.specs([task.key])
    assert body is not None
    address = template(session.access.signed.spec(task.key, body).template).bundle
    return msgspec.msgpack.decode(session.access.store.get_blob(address), type=FunctionBundle)


def test_a_worker_loads_an_array_once_and_no_task_sees_what_another_writes(
    session: jn.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    @jn.task
    def write(values: Any, place: int) -> tuple[float, float]:
        values[place] = -1.0
        return float(values[:10].sum()), float(values[-1])

    @jn.task
    def write_global(place: int) -> float:
        BIG[place] = -1.0
        return float(BIG[:10].sum())

    values = np.zeros(SIZE)
    loaded = _counted(session, monkeypatch, "get_blob")
    made = [write(values, place) for place in range(6)]
    session.execute(1)
    assert [task.result() for task in made] == [(-1.0, 0.0)] * 6
    if not session.access.store.display_url.startswith(("file", "/")):
        assert len(loaded) <= 1  # a file's is mapped anew, which reads nothing
    expected = [float(np.delete(BIG[:10], place).sum()) - 1 for place in range(4)]
    others = [write_global(place) for place in range(4)]
    session.execute(1)
    assert [task.result() for task in others] == pytest.approx(expected)


def test_a_map_is_known_by_its_blob_until_it_is_written_to(session: jn.Session) -> None:
    values = array()
    address = session.access.store.put_blob([memoryview(values).cast("B")])
    copy = system.copies_of(session.access.store.get_blob(address), address)
    for view in (session.access.store.get_blob(address, mapped=True), copy()):
        if system.known([view]) is None:
            continue  # no map, or a system that doesn't tell
        assert system.known([view]) == bytes.fromhex(address)
        np.frombuffer(view)[5] = 7
        assert system.known([view]) is None
        assert digest(np.frombuffer(view)) == digest(np.frombuffer(view).copy())


def test_a_damaged_blob_is_not_believed_for_being_mapped(tmp_path: Path) -> None:
    session = jn.connect(f"file:{tmp_path / 'jugdata'}")
    address = session.access.store.put_blob([memoryview(array()).cast("B")])
    [file] = list((tmp_path / "jugdata").rglob(address[2:]))
    with file.open("r+b") as opened:
        opened.seek(5_000_000)
        opened.write(b"damaged")
    with pytest.raises(jn.errors.ValueLost, match="damaged"):
        session.access.store.get_blob(address, mapped=True)
    session.close()


def test_a_function_with_a_large_global_is_examined_by_content() -> None:
    space: dict[str, Any] = {"values": array(), "__name__": "__main__"}
    exec("def f(): return values", space)
    before = examine(space["f"]).digest
    assert examine(space["f"]).digest == before
    space["values"][SIZE // 2] = 7
    assert examine(space["f"]).digest != before
