"""Seals and MACs: what they bind, and that nothing runs into its neighbour. And the keys of stores."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jug_notebook.errors import SignatureError
from jug_notebook.store.sealing import FIRST, MAC, EventSeal, Seal


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
        return [seal.frame(b"", 0, b"", b""), seal.record("", "", 0, b""), seal.frame(b"l", 1, FIRST, b"c")]

    made = [mac for k, s in (("k", "s"), ("K", "s"), ("k", "t")) for mac in macs(EventSeal(k.encode() * 32, s))]
    assert len(set(made)) == len(made)
    assert {len(mac) for mac in made} == {MAC}
    tags = {Seal(b"k" * 32, "s").seal("", "", 0, b"", b"")[:MAC]}
    assert not tags & set(made)
