"""Logs that are damaged, or that someone without the store's key has changed: what is noticed, and what it costs."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jug_notebook import system
from jug_notebook.errors import NoSuchTask, StoreError, StoreGone
from jug_notebook.model import Claimed, Event, Invalidated, Settled, State, Stop, Why
from jug_notebook.store import exists, keyring, open_store
from jug_notebook.store.file import FileStore, logs
from jug_notebook.store.file.journal import HEADER, MAGIC, Chain, Closed, Frame, content_of
from jug_notebook.store.sealing import EventSeal
from tests import damage
from tests.store.test_store import HERE, key, run_all, task

NAMES = [f"t{number}" for number in range(8)]
KEYS = [key(name) for name in NAMES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jugdata"


@pytest.fixture(autouse=True)
def _nothing_named_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_named", set())


def opened(folder: Path) -> FileStore:
    store = open_store(folder)
    assert isinstance(store, FileStore)
    return store


def written(folder: Path, close: bool = True) -> Path:
    """A log with eight tasks, each a frame of its own, and their requests."""
    store = opened(folder)
    for name in NAMES:
        store.submit([task(name)], HERE)
    if close:
        store.close()
    [log] = (folder / "log").iterdir()
    return log


def frames(path: Path) -> list[bytes]:
    """The frames of an undamaged log."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        end = at + HEADER.size + int(HEADER.unpack_from(data, at)[2])
        found.append(data[at:end])
        at = end
    return found


def known(folder: Path) -> list[bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = opened(folder)
        states = store.states(KEYS)
        store.close()
    return [state is not None for state in states]


@contextmanager
def named(what: str) -> Iterator[None]:
    with pytest.warns(UserWarning, match=f"is damaged, or someone without the key changed it: {what}") as caught:
        yield
    assert len([one for one in caught if "someone without the key" in str(one.message)]) == 1


# -- what is noticed ---------------------------------------------------------------------------------------------------


def test_a_frame_that_was_edited_is_skipped_and_named(folder: Path) -> None:
    log = written(folder)
    parts = frames(log)
    at = parts[4].index(KEYS[2].encode())
    edited = parts[4][:at] + KEYS[7].encode() + parts[4][at + 40 :]
    log.write_bytes(b"".join((*parts[:4], edited, *parts[5:])))
    with named("its frame 4 can't be read or is missing"):
        store = opened(folder)
        states = store.states(KEYS)
    assert [state is not None for state in states] == [name != "t2" for name in NAMES]
    assert any("its frame 4" in note and log.name in note for note in store.snapshot().notes)


@pytest.mark.parametrize("count", [1, 3])
def test_frames_that_were_cut_out_of_the_middle_are_missed(folder: Path, count: int) -> None:
    log = written(folder)
    parts = frames(log)
    log.write_bytes(b"".join((*parts[:6], *parts[6 + count :])))
    with named("its frame 6 can't" if count == 1 else "its frames 6 to 8 can't be read or are missing"):
        opened(folder).states(KEYS)


def test_frames_in_another_order_are_noticed(folder: Path) -> None:
    log = written(folder)
    parts = frames(log)
    log.write_bytes(b"".join((*parts[:4], parts[6], parts[5], parts[4], *parts[7:])))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert None not in opened(folder).states(KEYS)
    assert any("comes twice or out of order" in str(one.message) for one in caught)


def test_a_frame_that_is_repeated_is_noticed_and_counts_once(folder: Path) -> None:
    log = written(folder)
    parts = frames(log)
    log.write_bytes(b"".join((*parts[:-1], parts[4], parts[-1])))
    with named("its frame 4 comes twice or out of order"):
        assert opened(folder).states(KEYS) == [State.READY] * len(KEYS)


def test_a_log_under_another_name_says_nothing(folder: Path) -> None:
    log = written(folder)
    os.utime(log, (1, 1))  # what another machine writes may be on its way for a moment
    log.rename(log.with_name("elsewhere-1-abcdef.log"))
    with pytest.warns(UserWarning, match="not a record of its writer's"):
        assert opened(folder).states(KEYS) == [None] * len(KEYS)


def test_a_log_that_is_shorter_than_it_was_is_noticed_by_who_has_read_it(folder: Path) -> None:
    log = written(folder, close=False)
    reader = opened(folder)
    assert None not in reader.states(KEYS)
    os.truncate(log, len(b"".join(frames(log)[:6])))
    reader._next_whole = 0.0
    with named("it is shorter than it was: its end was cut off"):
        assert None not in reader.states(KEYS)


def test_who_reads_a_log_while_it_grows_is_interrupted_anywhere_and_misses_nothing(folder: Path) -> None:
    written(folder)
    reader = opened(folder)
    log = reader._logs.open(reader._root / "log" / next((folder / "log").iterdir()).name)
    next(log.poll())  # and no further
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(len(places) for _, places in log.poll()) == len(KEYS)


# -- forging -----------------------------------------------------------------------------------------------------------


class Forger:
    """Whoever can write to the folder, but hasn't the key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log" / "forger-1-abcdef.log"
        store_id = opened(folder).id
        self._chain = Chain(self.path.name, EventSeal(os.urandom(32), store_id))

    def write(self, event: Event | Closed, bodies: list[bytes] | None = None) -> None:
        frame = self._chain.frame(content_of(Frame(event, [len(body) for body in bodies or ()]), bodies or ()))
        with open(self.path, "ab") as file:
            file.write(frame)
        os.utime(self.path, (1, 1))


def test_events_of_who_has_no_key_change_nothing(folder: Path) -> None:
    store = opened(folder)
    store.submit([task("a"), task("b")], HERE)
    assert run_all(store) == 2
    before = store.outcomes([key("a")])[0]
    assert before is not None
    forger = Forger(folder)
    forger.write(Invalidated([key("a")], [0], Why.DIRECT, "eve", 1.0))
    forged = before.verdict.__class__(key("a"), 1, before.verdict.inputs, 1, b"p" + bytes(20))
    forger.write(Claimed("eve", []))
    forger.write(Settled("eve", [forged]), [b"anything"])
    fresh = opened(folder)
    with pytest.warns(UserWarning, match="not a record of its writer's"):
        assert fresh.outcomes([key("a")])[0] == before
    assert fresh.invalidations([key("a")]) == [None]


def test_who_has_no_key_looks_but_neither_writes_nor_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(folder)
    store.submit([task("b")], HERE)
    run_all(store)
    store.submit([task("a")], HERE)
    monkeypatch.setattr(keyring, "_here", {})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent / "elsewhere"))
    stranger = opened(folder)
    assert stranger.states([key("a")]) == [State.READY]
    [note] = stranger.snapshot().notes
    assert note.startswith(f"unverified: the key of store {store.id[:12]} is not in {folder.parent}/elsewhere")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for verb in (
        lambda: stranger.submit([task("c")], HERE),
        lambda: stranger.claim("w", 1, 0.0),
        lambda: stranger.invalidate([key("b")], Why.DIRECT, "eve"),
        lambda: stranger.request([key("a")], HERE, False),
        lambda: stranger.renew([system.me("worker")]),
        lambda: stranger.leave(["w"]),
        lambda: stranger.order(["w"], Stop()),
        lambda: stranger.notice("w", "text"),
        lambda: stranger.put_blob([b"data"]),
        lambda: stranger.sweep([], [], 0.0),
        stranger.compact,
    ):
        with pytest.raises(StoreError, match="copy the file of that name"):
            verb()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_store_has_its_key_before_anyone_can_see_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    with pytest.raises(StoreError, match="the store's key can't be kept"):
        open_store(folder)
    assert not (folder / "store.json").exists()


def test_what_others_had_read_of_a_log_before_they_ended_is_not_missing_to_its_writer(folder: Path) -> None:
    store = opened(folder)
    store.submit([task("a")], HERE)
    other = opened(folder)
    other.submit([task("b")], HERE)
    other.close()
    assert store.log_faults() == []
    store.close()


def test_a_log_that_was_written_after_others_were_listed_is_not_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder)
    store = opened(folder)
    find = logs.Logs.find

    def find_late(self: logs.Logs, names: list[str]) -> None:
        monkeypatch.setattr(logs.Logs, "find", find)
        other = opened(folder)
        other.submit([task("late")], HERE)
        other.close()
        find(self, names)

    monkeypatch.setattr(logs.Logs, "find", find_late)
    assert store.log_faults() == []
    assert store.states([key("late")]) == [State.READY]
    store.close()


# -- a store that has lost its store.json ------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("known", ["by its pin", "by its key"])
def test_a_lost_identity_is_restored_where_a_key_fits_the_logs(
    folder: Path, known: str, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    store = opened(folder)
    store.submit([task("a"), task("b")], HERE)
    assert run_all(store) == 2
    if packed:
        store.compact()
    store.close()
    before = (folder / "store.json").read_bytes()
    (folder / "store.json").unlink()
    if known == "by its key":
        keyring.unpin(store.url)
    assert exists(store.url)
    again = opened(folder)
    assert (folder / "store.json").read_bytes() == before
    assert capsys.readouterr().err == (
        f"jug_notebook: {again.display_url} had lost its store.json, which is restored: "
        f"the key of store {store.id[:8]} fits its logs\n"
    )
    assert again.states([key("a"), key("b")]) == [State.FINISHED] * 2
    again.close()


def test_a_lost_identity_is_restored_from_any_record_of_any_log_that_holds(folder: Path) -> None:
    log = written(folder)
    before = (folder / "store.json").read_bytes()
    (folder / "store.json").unlink()
    first, *others = frames(log)
    log.write_bytes(b"".join([damage.flipped(first), *others]))
    assert exists(f"file:{folder}")
    assert known(folder) == [False] + [True] * 7
    assert (folder / "store.json").read_bytes() == before


def test_who_has_a_store_open_is_told_whether_it_is_gone_or_can_be_restored(folder: Path) -> None:
    store = opened(folder)
    store.submit([task("a")], HERE)
    (folder / "store.json").unlink()
    with pytest.raises(StoreGone, match=r"has lost its store.json; to have it restored, run %jug_store "):
        store.renew([])
    shutil.rmtree(folder)
    with pytest.raises(StoreGone, match=r"is gone: its folder was removed or moved; to make a new store, run"):
        store.renew([])
    store.close()


def test_a_shared_store_that_has_lost_its_identity_is_shared_again(folder: Path) -> None:
    store = opened(folder)
    store.submit([task("a")], HERE)
    store.share(keyring.secret(store.id))
    store.close()
    before = (folder / "store.json").read_bytes()
    (folder / "store.json").unlink()
    again = opened(folder)
    assert ((folder / "store.json").read_bytes(), again.shared) == (before, "group")
    assert again.states([key("a")]) == [State.READY]
    again.close()


def test_a_lost_identity_that_no_key_proves_is_refused_and_nothing_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(folder)
    (folder / "store.json").unlink()
    data = log.read_bytes()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(keyring, "_here", {})
        elsewhere.setenv("XDG_CONFIG_HOME", str(folder.parent / "elsewhere"))
        with pytest.raises(StoreError, match=r"has lost its store.json, and no key in .* to begin anew"):
            opened(folder)
        assert not (folder / "store.json").exists()
        assert keyring.known_ids() == []
    assert log.read_bytes() == data
    assert None not in opened(folder).states(KEYS)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_flip_in_a_header_hides_nothing_that_follows(folder: Path) -> None:
    log = written(folder)
    data = log.read_bytes()
    starts = [0]
    for part in frames(log):
        starts.append(starts[-1] + len(part))
    for bit in range(HEADER.size * 8):
        damaged = bytearray(data)
        damaged[starts[4] + bit // 8] ^= 1 << bit % 8
        log.write_bytes(damaged)
        lost = [name for name, there in zip(NAMES, known(folder), strict=True) if not there]
        assert lost in ([], ["t2"]), f"bit {bit}"  # a flip in the checksum costs nothing, where the MAC holds


def test_a_task_of_which_the_submission_is_damaged_can_be_invalidated_and_its_value_never_counts_again(
    folder: Path,
) -> None:
    log = written(folder)
    store = opened(folder)
    assert run_all(store) == len(NAMES)
    store.close()
    data = bytearray(log.read_bytes())
    data[len(frames(log)[0]) // 2] ^= 1
    log.write_bytes(data)
    with named("its frame 0"):
        store = opened(folder)
        assert store.states(KEYS[:2]) == [None, State.FINISHED]
    assert store.invalidate(KEYS[:2], Why.DIRECT, "ann") == KEYS[:2]
    store.submit([task(NAMES[0])], HERE)
    assert store.states(KEYS[:2]) == [State.READY, State.READY]
    with pytest.raises(NoSuchTask):
        store.invalidate([key("none")], Why.DIRECT, "ann")
    store.close()


def test_who_has_no_key_goes_by_the_checksum(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = written(folder)
    parts = frames(log)
    log.write_bytes(b"".join((*parts[:4], parts[4][:-1] + b"\0", *parts[5:])))
    monkeypatch.setattr(keyring, "_here", {})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent / "elsewhere"))
    with named("its frame 4 can't be read"):
        assert opened(folder).states(KEYS).count(None) == 1


def test_a_torn_tail_is_waited_for_and_not_named(folder: Path) -> None:
    log = written(folder)
    parts = frames(log)
    keyring.unpin(opened(folder).pin)  # how far that log had come
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for torn in (10, HEADER.size - 1, HEADER.size, len(parts[-3]) - 1):
            log.write_bytes(b"".join((*parts[:-3], parts[-3][:torn])))
            reader = opened(folder)
            assert reader.states(KEYS).count(None) == 1
            with log.open("ab") as file:
                file.write(parts[-3][torn:] + b"".join(parts[-2:]))
            assert None not in reader.states(KEYS)
            reader.close()
            for other in (folder / "log").iterdir():
                assert other == log


def test_a_torn_frame_that_others_follow_costs_only_itself(folder: Path) -> None:
    log = written(folder)
    parts = frames(log)
    log.write_bytes(b"".join((*parts[:4], parts[4][:70], *parts[5:])))
    assert known(folder) == [name != "t2" for name in NAMES]


def test_a_frame_larger_than_what_is_read_at_once_is_found_behind_damage(folder: Path) -> None:
    store = opened(folder)
    store.submit([task("a")], HERE)
    large = task("b")
    large = large.__class__(*[getattr(large, name) for name in large.__struct_fields__[:4]], os.urandom(5 << 20))
    store.submit([large], HERE)
    store.submit([task("c")], HERE)
    store.close()
    [log] = (folder / "log").iterdir()
    data = bytearray(log.read_bytes())
    data[3] ^= 1
    log.write_bytes(data)
    with named("its frame 0 can't"):
        assert [state is None for state in opened(folder).states([key(name) for name in "abc"])] == [True, False, False]


def test_a_log_full_of_beginnings_of_frames_is_given_up_soon_and_named(folder: Path) -> None:
    log = written(folder)
    junk = (MAGIC + bytes(4) + (1 << 20).to_bytes(4, "little") + bytes(44)) * 40_000
    log.write_bytes(junk + log.read_bytes())
    with pytest.warns(UserWarning, match="someone without the key"):
        opened(folder).states(KEYS)


@pytest.mark.filterwarnings("ignore:.*is damaged, or someone without the key")
@pytest.mark.parametrize("own", [True, False], ids=["its writer", "a reader"])
def test_a_log_that_is_cut_while_it_is_used_costs_its_last_tasks_and_nobody_fails(folder: Path, own: bool) -> None:
    writer = opened(folder)
    for name in NAMES:
        writer.submit([task(name)], HERE)
    [log] = (folder / "log").iterdir()
    store = writer if own else opened(folder)
    assert None not in store.states(KEYS)
    os.truncate(log, len(b"".join(frames(log)[:6])))  # three tasks and their requests
    assert [body is None for body in store.specs(KEYS)] == [False] * 3 + [True] * 5
    assert run_all(store) == 3


@pytest.mark.filterwarnings("ignore:.*is damaged, or someone without the key")
def test_a_worker_that_claims_what_was_cut_off_claims_again(folder: Path) -> None:
    written(folder, close=False)
    store = opened(folder)
    assert None not in store.states(KEYS)
    [log] = (folder / "log").iterdir()
    os.truncate(log, len(b"".join(frames(log)[:6])))
    assert run_all(store) + run_all(store) == 3, "what could not be read was given back"
    assert store.states(KEYS) == [State.FINISHED] * 3 + [None] * 5


# -- sealed logs -------------------------------------------------------------------------------------------------------


def compacted(folder: Path) -> Path:
    """A sealed log of eight finished tasks."""
    store = opened(folder)
    for name in NAMES:
        store.submit([task(name)], HERE)
    assert run_all(store) == len(NAMES)
    store.close()
    packer = opened(folder)
    packer.compact()
    packer.close()
    assert not list((folder / "sealing").iterdir())
    [log] = (folder / "sealed").iterdir()
    return log


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_anywhere_in_a_sealed_log_costs_the_tasks_of_one_frame(folder: Path, seed: int) -> None:
    log = compacted(folder)
    data = log.read_bytes()
    parts = frames(log)
    assert len(parts) > 5
    chance = random.Random(seed)
    start = 0
    for number, part in enumerate(parts):
        for at in (chance.randrange(HEADER.size), chance.randrange(HEADER.size, len(part))):
            damaged = bytearray(data)
            damaged[start + at] ^= 1 << chance.randrange(8)
            log.write_bytes(damaged)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                logs._named.clear()
                store = opened(folder)
                states = store.states(KEYS)
                read = store.specs(KEYS)
                store.close()
            assert len(caught) <= 1, f"frame {number}, byte {at}"
            assert set(states) <= {State.FINISHED, State.READY, None}
            for other in (folder / "log").iterdir():
                other.unlink()
            if caught and any(state is not State.FINISHED for state in states):
                assert [body is None for body in read] == [state is None for state in states]
        start += len(part)
    log.write_bytes(data)
    assert opened(folder).states(KEYS) == [State.FINISHED] * len(KEYS)


def test_requests_and_invalidations_in_a_sealed_log_survive_damage(folder: Path) -> None:
    store = opened(folder)
    store.submit([task("a")], HERE)
    run_all(store)
    store.invalidate([key("a")], Why.DIRECT, "me")
    store.close()
    opened(folder).compact()
    [log] = (folder / "sealed").iterdir()
    parts = frames(log)
    for number in range(len(parts)):
        if b"requested" in parts[number] or b"invalidated" in parts[number]:
            damaged = parts[number][:-1] + bytes([parts[number][-1] ^ 1])
            log.write_bytes(b"".join((*parts[:number], damaged, *parts[number + 1 :])))
            logs._named.clear()
            store = opened(folder)
            with pytest.warns(UserWarning, match="someone without the key"):
                assert store.states([key("a")]) == [State.READY]
            assert store.requested(HERE) == [key("a")]
            assert store.invalidations([key("a")])[0] is not None
            store.close()


def test_a_compaction_heals_what_is_damaged_and_keeps_the_damaged_file_for_a_while(folder: Path) -> None:
    log = compacted(folder)
    data = bytearray(log.read_bytes())
    data[data.index(b"settled") + 30] ^= 1
    log.write_bytes(data)
    with named("its frame"):
        store = opened(folder)
        lost = [key for key, state in zip(KEYS, store.states(KEYS), strict=True) if state is not State.FINISHED]
    assert lost
    assert run_all(store) == len(lost)
    store.close()
    packer = opened(folder)
    packer.compact()
    assert packer.snapshot().notes == ()
    assert log.name in os.listdir(folder / "trash")
    packer.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(folder).states(KEYS) == [State.FINISHED] * len(KEYS)


def test_a_sealed_log_that_was_cut_is_noticed(folder: Path) -> None:
    log = compacted(folder)
    parts = frames(log)
    log.write_bytes(b"".join(parts[:-1]))
    with named("its end is missing"):
        opened(folder).states(KEYS)


def test_an_empty_lock_of_a_compaction_on_a_full_disk_is_in_nobodys_way(folder: Path) -> None:
    written(folder)
    (folder / "compacting").touch()
    store = opened(folder)
    store.compact()
    assert os.listdir(folder / "sealed")
    assert not (folder / "compacting").exists()
