"""An outcome in as few bytes as it takes: a board keeps one of each task, and there may be millions.

A record is a fixed head, the inputs unless there were no needs, and the digest of the value. `opened` is what it says.
"""

from __future__ import annotations

from struct import Struct
from typing import TypeAlias

from jug_notebook.model import NO_INPUTS, Key, Lease, Verdict, WorkerId

Place: TypeAlias = int
"""Where a body is, as a store numbers it: less than 2^96."""

Outcome: TypeAlias = tuple[Verdict, Place, WorkerId]
"""A verdict, where its body is, whose it is."""

_HEAD = Struct("<BIIIdd12s")  # flags, worker, round, attempt, started, duration, place
_ROUND, _ATTEMPT = Struct("<I"), Struct("<II")
_LATER = Struct("<d")
_FINAL, _DIED, _NEEDS, _LATER_SET = 1, 2, 4, 8
_FIXED = _HEAD.size
_FIRST = _ROUND.pack(0)
_SIZES = {0: _FIXED, _NEEDS: _FIXED + 20, _LATER_SET: _FIXED + 8, _NEEDS | _LATER_SET: _FIXED + 28}  # up to the digest

_workers: list[WorkerId] = []
_numbers: dict[WorkerId, int] = {}


def packed(verdict: Verdict, place: Place, worker: WorkerId) -> bytes:
    """The record of an outcome."""
    number = _numbers.get(worker)
    if number is None:
        number = _numbers[worker] = len(_workers)
        _workers.append(worker)
    flags, rest = verdict.final | verdict.died << 1, verdict.digest
    if verdict.retry_at:
        flags |= _LATER_SET
        rest = _LATER.pack(verdict.retry_at) + rest
    if verdict.inputs != NO_INPUTS:
        flags |= _NEEDS
        rest = verdict.inputs + rest
    head = _HEAD.pack(
        flags, number, verdict.round, verdict.attempt, verdict.started, verdict.duration, place.to_bytes(12, "little")
    )
    return head + rest


def opened(key: Key, record: bytes) -> Outcome:
    """The outcome of that task."""
    flags, number, round, attempt, started, duration, place = _HEAD.unpack_from(record)
    at, inputs, later = _FIXED, NO_INPUTS, 0.0
    if flags & _NEEDS:
        at += len(NO_INPUTS)
        inputs = record[_FIXED:at]
    if flags & _LATER_SET:
        (later,) = _LATER.unpack_from(record, at)
        at += _LATER.size
    verdict = Verdict(
        key, round, inputs, attempt, record[at:], started, duration, bool(flags & _FINAL), bool(flags & _DIED), later
    )
    return verdict, int.from_bytes(place, "little"), _workers[number]


def holds(record: bytes, round: int, inputs: bytes) -> bool:
    """Is it final, of this round, on these inputs?"""
    flags = record[0]
    if not flags & _FINAL or record[5:9] != (_FIRST if round == 0 else _ROUND.pack(round)):
        return False
    return record[_FIXED : _FIXED + 20] == inputs if flags & _NEEDS else inputs == NO_INPUTS


def is_of(record: bytes, lease: Lease) -> bool:
    """Is it what this attempt came to?"""
    round, attempt = _ATTEMPT.unpack_from(record, 5)
    if attempt != lease.attempt or round != lease.round:
        return False
    return lease.inputs == (record[_FIXED : _FIXED + 20] if record[0] & _NEEDS else NO_INPUTS)


def has_value(record: bytes) -> bool:
    """Did it come to a value?"""
    return len(record) > _SIZES[record[0] & (_NEEDS | _LATER_SET)]


def digest_of(record: bytes) -> bytes:
    """The digest of the value; empty for a failure."""
    return record[_SIZES[record[0] & (_NEEDS | _LATER_SET)] :]


def of_digest(digest: bytes) -> bytes:
    """A record that says no more than what the value is."""
    return b"\0" * _FIXED + digest
