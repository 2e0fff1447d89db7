"""Packs an outcome into few bytes: the scheduler state keeps one for each task, and there may be millions.

A packed record is a fixed head, the inputs (unless the task needs nothing) and the digest of the value.
"""

from __future__ import annotations

from struct import Struct
from typing import TypeAlias

from jug_notebook.model import NO_INPUTS, Key, Lease, Verdict, WorkerId

Place: TypeAlias = int
"""Where a store keeps a body (sealed bytes): a number less than 2^96 that only that store understands."""

Outcome: TypeAlias = tuple[Verdict, Place, WorkerId]
"""A verdict, the place of its body, the worker it came from."""

_HEAD = Struct("<BIIIdd12s")  # flags, worker, round, attempt, started, duration, place
_ROUND, _ATTEMPT = Struct("<I"), Struct("<II")
_TIME = Struct("<d")
_FINAL, _DIED, _NEEDS, _RETRY = 1, 2, 4, 8
_FIXED = _HEAD.size
_FIRST = _ROUND.pack(0)
_SIZES = {0: _FIXED, _NEEDS: _FIXED + 20, _RETRY: _FIXED + 8, _NEEDS | _RETRY: _FIXED + 28}  # up to the digest

_workers: list[WorkerId] = []
_numbers: dict[WorkerId, int] = {}


def packed(verdict: Verdict, place: Place, worker: WorkerId) -> bytes:
    """Return the record of an outcome."""
    number = _numbers.get(worker)
    if number is None:
        number = _numbers[worker] = len(_workers)
        _workers.append(worker)
    flags, rest = verdict.final | verdict.died << 1, verdict.digest
    if verdict.retry_at:
        flags |= _RETRY
        rest = _TIME.pack(verdict.retry_at) + rest
    if verdict.inputs != NO_INPUTS:
        flags |= _NEEDS
        rest = verdict.inputs + rest
    head = _HEAD.pack(
        flags, number, verdict.round, verdict.attempt, verdict.started, verdict.duration, place.to_bytes(12, "little")
    )
    return head + rest


def unpacked(key: Key, record: bytes) -> Outcome:
    """Return the outcome that a record of this task holds."""
    flags, number, round, attempt, started, duration, place = _HEAD.unpack_from(record)
    at, inputs, retry_at = _FIXED, NO_INPUTS, 0.0
    if flags & _NEEDS:
        at += len(NO_INPUTS)
        inputs = record[_FIXED:at]
    if flags & _RETRY:
        (retry_at,) = _TIME.unpack_from(record, at)
        at += _TIME.size
    verdict = Verdict(
        key, round, inputs, attempt, record[at:], started, duration, bool(flags & _FINAL), bool(flags & _DIED), retry_at
    )
    return verdict, int.from_bytes(place, "little"), _workers[number]


def is_current(record: bytes, round: int, inputs: bytes) -> bool:
    """Return True if it is final, of this round and on these inputs."""
    flags = record[0]
    if not flags & _FINAL or record[5:9] != (_FIRST if round == 0 else _ROUND.pack(round)):
        return False
    return record[_FIXED : _FIXED + 20] == inputs if flags & _NEEDS else inputs == NO_INPUTS


def is_outcome_of(record: bytes, lease: Lease) -> bool:
    """Return True if it is the outcome of this attempt."""
    round, attempt = _ATTEMPT.unpack_from(record, 5)
    if attempt != lease.attempt or round != lease.round:
        return False
    return lease.inputs == (record[_FIXED : _FIXED + 20] if record[0] & _NEEDS else NO_INPUTS)


def has_value(record: bytes) -> bool:
    """Return True if it has a value, not an error."""
    return len(record) > _SIZES[record[0] & (_NEEDS | _RETRY)]


def digest_of(record: bytes) -> bytes:
    """Return the digest of the value; empty for a failure."""
    return record[_SIZES[record[0] & (_NEEDS | _RETRY)] :]


def value_only(digest: bytes) -> bytes:
    """Return a record that holds nothing but the digest of a value."""
    return b"\0" * _FIXED + digest
