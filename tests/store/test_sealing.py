"""Seals and MACs: what they bind, and that nothing runs into its neighbour. And the keys of stores."""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jug_notebook.errors import SignatureError, StoreError
from jug_notebook.store import Store, accept_new_store, keyring, masked, open_store
from jug_notebook.store.sealing import ATTEMPT, FIRST, MAC, EventSeal, Seal
from tests.servers import Server
from tests.store.test_redis import admin
from tests.store.test_store import HERE, key, task


def test_only_the_same_key_store_task_round_and_inputs_open_a_seal() -> None:
    seal = Seal(b"k" * 32, "store")
    about: tuple[str, str, int, bytes] = ("outcome", "ab", 1, b"in")
    body = seal.seal(*about, b"data")
    assert bytes(seal.open(*about, body)) == b"data"
    for other in [
        ("spec", "ab", 1, b"in"),
        ("outcome", "abc", 1, b"in"),
        ("outcome", "ab", 2, b"in"),
        ("outcome", "ab", 1, b""),
    ]:
        with pytest.raises(SignatureError, match="key"):
            seal.open(*other, body)
    for stranger in (Seal(b"K" * 32, "store"), Seal(b"k" * 32, "other")):
        with pytest.raises(SignatureError):
            stranger.open(*about, body)
    for broken in (body[:-1], body + b"x", b"", body[:32]):
        with pytest.raises(SignatureError):
            seal.open(*about, broken)


@given(
    st.tuples(st.text(), st.text(), st.integers(0, 99), st.binary(), st.binary()),
    st.tuples(st.text(), st.text(), st.integers(0, 99), st.binary(), st.binary()),
)
def test_fields_of_a_seal_never_run_into_each_other(one: Any, two: Any) -> None:
    seal = Seal(b"k" * 32, "s")
    assert (seal.seal(*one)[:32] == seal.seal(*two)[:32]) == (one == two)


FRAMES = st.tuples(st.binary(), st.integers(0, 2**64 - 1), st.binary(), st.binary())
RECORDS = st.tuples(st.text(), st.text(), st.integers(0, 2**64 - 1), st.binary())


@given(FRAMES, FRAMES)
def test_fields_of_a_frame_never_run_into_each_other(one: Any, two: Any) -> None:
    seal = EventSeal(b"k" * 32, "s")
    assert (seal.frame(*one) == seal.frame(*two)) == (one == two)


@given(RECORDS, RECORDS)
def test_fields_of_a_record_never_run_into_each_other(one: Any, two: Any) -> None:
    seal = EventSeal(b"k" * 32, "s")
    assert (seal.record(*one) == seal.record(*two)) == (one == two)


def test_a_mac_of_one_kind_key_or_store_serves_for_no_other() -> None:
    def macs(seal: EventSeal) -> list[bytes]:
        return [
            seal.frame(b"", 0, b"", b""),
            seal.record("", "", 0, b""),
            seal.frame(b"l", 1, FIRST, b"c"),
            seal.attempt(b"") + bytes(MAC - ATTEMPT),
        ]

    made = [mac for k, s in (("k", "s"), ("K", "s"), ("k", "t")) for mac in macs(EventSeal(k.encode() * 32, s))]
    assert len(set(made)) == len(made)
    assert {len(mac) for mac in made} == {MAC}
    tags = {Seal(b"k" * 32, "s").seal("", "", 0, b"", b"")[:MAC]}
    assert not tags & set(made)


# -- pins --------------------------------------------------------------------------------------------------------------


def opened_once(url: object) -> str:
    """The id of the store at a URL."""
    with closing(open_store(str(url))) as store:
        return store.id


def replaced(tmp_path: Path) -> tuple[Path, str, str]:
    """A folder in which another store of this user's was put in place of the one that was there; both ids."""
    ids = [opened_once(tmp_path / name) for name in ("study", "other")]
    shutil.rmtree(tmp_path / "study")
    shutil.copytree(tmp_path / "other", tmp_path / "study")
    return tmp_path / "study", ids[0], ids[1]


def test_another_store_at_a_url_is_refused_in_one_line_until_it_is_accepted(tmp_path: Path) -> None:
    folder, before, now = replaced(tmp_path)
    for _ in range(2):
        with pytest.raises(StoreError, match="--accept-new-store in a shell") as refused:
            open_store(folder)
        assert f"held another store before ({before[:8]}, and now {now[:8]})" in str(refused.value)
        assert "\n" not in str(refused.value)
    accept_new_store(str(folder))
    assert opened_once(folder) == opened_once(f"file:{folder}") == now


def test_a_project_that_another_store_was_written_to_is_refused(redis_server: Server) -> None:
    url = redis_server.url()
    before = opened_once(url)
    name = f"jug:{{{url.rpartition('=')[2]}}}:id"
    with admin(redis_server) as line:
        assert line.get(name) == before.encode()
        line.set(name, "0123456789abcdef")
    with pytest.raises(StoreError, match=f"held another store before \\({before[:8]}, and now 01234567\\)"):
        open_store(url)


def test_a_store_that_was_removed_is_made_anew_with_one_line_that_says_so(
    store: Store, store_url: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    before = store.id
    if store_url.startswith("memory"):
        pytest.skip("it ends with its process")
    if store_url.startswith("file"):
        shutil.rmtree(store_url.removeprefix("file:"))
    else:
        with admin(request.getfixturevalue("redis_server")) as line:
            line.flushall()
    capfd.readouterr()
    assert opened_once(store_url) != before
    line = capfd.readouterr().err
    assert f"held another store before ({before[:8]}…), which is gone; this is a new one" in line
    assert line.count("\n") == 1
    opened_once(store_url)
    assert capfd.readouterr().err == ""


def test_a_copy_of_a_store_in_its_place_is_that_store(tmp_path: Path) -> None:
    with closing(open_store(tmp_path / "study")) as store:
        store.submit([task("a")], HERE)
    shutil.move(tmp_path / "study", tmp_path / "backup")
    shutil.copytree(tmp_path / "backup", tmp_path / "study")
    with closing(open_store(tmp_path / "study")) as again:
        assert again.id == store.id
        assert again.states([key("a")]) != [None]


def test_pins_are_the_users_alone_and_name_no_url(tmp_path: Path) -> None:
    store_id = opened_once(tmp_path / "study")
    folder = keyring.key_folder() / "pins"
    [pin] = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, pin.stat().st_mode & 0o777) == (0o700, 0o600)
    assert pin.read_text() == f"{store_id}\n"
    assert re.fullmatch("[0-9a-f]{40}", pin.name)


def test_a_url_is_pinned_whatever_its_password() -> None:
    one, two = (masked(f"redis://ann:{word}@host:6379/0?project=x") for word in ("first", "second"))
    keyring.pin(one, "some-store")
    assert keyring.pinned(two) == "some-store"


def test_a_store_in_memory_is_not_pinned() -> None:
    opened_once("memory:pins")
    assert not (keyring.key_folder() / "pins").exists()


def test_whoever_is_told_the_store_by_a_launcher_goes_by_that(tmp_path: Path) -> None:
    folder, _, now = replaced(tmp_path)
    with closing(open_store(folder, known=now)) as store:
        assert store.id == now
    assert opened_once(folder) == now


def test_looking_at_a_store_without_its_key_pins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_once(tmp_path / "study")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(keyring, "_here", {})
    with closing(open_store(tmp_path / "study")) as store:
        assert store.unverified
    assert not (tmp_path / "elsewhere/jug_notebook/keys/pins").exists()


def test_a_pin_that_names_no_store_is_refused_with_its_path(tmp_path: Path) -> None:
    opened_once(tmp_path / "study")
    [pin] = (keyring.key_folder() / "pins").iterdir()
    pin.write_bytes(b"\xff/..\n")
    with pytest.raises(StoreError, match="names no store; if you trust the one at"):
        open_store(tmp_path / "study")
