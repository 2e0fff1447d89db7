"""One task at a time, in this process, as somebody says: claimed, run, given a value from elsewhere, or failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from jug_notebook import codec, system
from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.model import (
    Claim,
    Failed,
    Finished,
    Grant,
    Key,
    Outcome,
    Run,
    Settlement,
    Target,
    Verdict,
    WorkerInfo,
)
from jug_notebook.store import Store
from jug_notebook.worker.capture import Overheard, listen_no_more
from jug_notebook.worker.execution import Bench
from jug_notebook.worker.slot import Slot


class ByHand:
    """A worker that is told each step. Whoever beats for this process beats for it until `close`."""

    def __init__(self, store: Store, seal: Seal, clock: Clock, guests: list[Callable[[], WorkerInfo]]) -> None:
        self._store, self._seal, self._clock, self._guests = store, seal, clock, guests
        self._me = system.me("worker", clock)
        self._listener = Overheard(echo=True)
        self._bench = Bench(store, seal, self._me, Slot(), clock, self._listener, True)
        store.renew([self._me])
        guests.append(self._said)

    def _said(self) -> WorkerInfo:
        return self._me

    def claim(self, key: Key, first: bool = False) -> Claim | None:
        """The right to settle a task; None where it isn't ready, or somebody has it.

        Quicker where it is likely to be ``first`` in the queue.
        """
        claims = self._claimed(None) if first else []
        if not any(claim.grant.key == key for claim in claims):
            self._store.release([claim.grant for claim in claims])
            claims = self._claimed(Target(keys=frozenset([key])))
        others = [claim.grant for claim in claims if claim.grant.key != key]  # what it needs is ready, not the task
        self._store.release(others)
        return next((claim for claim in claims if claim.grant.key == key), None)

    def _claimed(self, target: Target | None) -> list[Claim]:
        return self._store.claim(self._me.id, 1, 0.0, (), target, self._me.python)

    def release(self, claim: Claim) -> None:
        self._store.release([claim.grant])

    def run(self, claim: Claim) -> None:
        """Make the attempt, and settle it."""
        try:
            settlement = self._bench.attempt(claim)
        finally:
            listen_no_more()
        if settlement is not None:
            self._settle(settlement)

    def deposit(self, claim: Claim, value: Any) -> None:
        """Settle with a value that comes from elsewhere."""
        self._settle(self.with_value(claim.grant, value))

    def with_value(self, grant: Grant, value: Any) -> Settlement:
        """What settles a grant with a value that comes from elsewhere."""
        payload, digest = codec.dump_value(value, self._store.put_blob)
        run = self._run(grant)
        outcome = Finished(grant.key, grant.round, grant.inputs, digest, payload, codec.summarise(value), run)
        return self._sealed(outcome, grant, digest)

    def fail(self, claim: Claim, why: str) -> None:
        """Settle with a failure."""
        grant = claim.grant
        failed = Failed(grant.key, grant.round, grant.inputs, "raised", why, "", self._run(grant))
        self._settle(self._sealed(failed, grant, b""))

    def _run(self, grant: Grant) -> Run:
        me = self._me
        return Run(me.id, me.host, me.pid, me.user, me.python, self._clock.now(), 0.0, 0.0, grant.attempt)

    def _sealed(self, outcome: Outcome, grant: Grant, digest: bytes) -> Settlement:
        verdict = Verdict(grant.key, grant.round, grant.inputs, grant.attempt, digest, outcome.run.started)
        body = self._seal.seal("outcome", grant.key, grant.round, grant.inputs, msgspec.msgpack.encode(outcome))
        return Settlement(verdict, body)

    def _settle(self, settlement: Settlement) -> None:
        self._store.claim(self._me.id, 0, 0.0, [settlement])

    def close(self) -> None:
        """Give back what is claimed and not settled."""
        if self._said in self._guests:
            self._guests.remove(self._said)
            self._store.leave([self._me.id])
