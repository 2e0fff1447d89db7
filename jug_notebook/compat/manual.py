"""One task at a time, in this process, as somebody says: claimed, run, given a value from elsewhere, or failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jug_notebook import codec, system
from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.model import (
    Claim,
    Failed,
    Finished,
    Key,
    Lease,
    Outcome,
    Run,
    Settlement,
    Target,
    Verdict,
    WorkerInfo,
)
from jug_notebook.render.values import summarise
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedWriter
from jug_notebook.worker.capture import ThreadCapture, restore_streams
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.status import SharedStatus


class ByHand:
    """A worker that is told each step. Whoever beats for this process beats for it until `close`."""

    def __init__(self, store: Store, seal: Seal, clock: Clock, in_process: list[Callable[[], WorkerInfo]]) -> None:
        self._store, self._seal, self._clock, self._in_process = store, seal, clock, in_process
        self._me = system.me("worker", clock)
        self._listener = ThreadCapture(echo=True)
        self._runner = TaskRunner(store, seal, self._me, SharedStatus(), clock, self._listener, True)
        store.renew([self._me])
        in_process.append(self._said)

    def _said(self) -> WorkerInfo:
        return self._me

    def claim(self, key: Key, first: bool = False) -> Claim | None:
        """The right to settle a task; None where it isn't ready, or somebody has it.

        Quicker where it is likely to be ``first`` in the queue.
        """
        claims = self._claimed(None) if first else []
        if not any(claim.lease.key == key for claim in claims):
            self._store.release([claim.lease for claim in claims])
            claims = self._claimed(Target(keys=frozenset([key])))
        others = [claim.lease for claim in claims if claim.lease.key != key]  # what it needs is ready, not the task
        self._store.release(others)
        return next((claim for claim in claims if claim.lease.key == key), None)

    def _claimed(self, target: Target | None) -> list[Claim]:
        return self._store.claim(self._me.id, 1, 0.0, (), target, self._me.python)

    def release(self, claim: Claim) -> None:
        self._store.release([claim.lease])

    def run(self, claim: Claim) -> None:
        """Make the attempt, and settle it."""
        try:
            settlement = self._runner.attempt(claim)
        finally:
            restore_streams()
        if settlement is not None:
            self._settle(settlement)

    def deposit(self, claim: Claim, value: Any) -> None:
        """Settle with a value that comes from elsewhere."""
        self._settle(self.with_value(claim.lease, value))

    def with_value(self, lease: Lease, value: Any) -> Settlement:
        """What settles a grant with a value that comes from elsewhere."""
        payload, digest = codec.dump_value(value, self._store.put_blob)
        run = self._run(lease)
        outcome = Finished(lease.key, lease.round, lease.inputs, digest, payload, summarise(value), run)
        return self._sealed(outcome, lease, digest)

    def fail(self, claim: Claim, why: str) -> None:
        """Settle with a failure."""
        lease = claim.lease
        failed = Failed(lease.key, lease.round, lease.inputs, "raised", why, "", self._run(lease))
        self._settle(self._sealed(failed, lease, b""))

    def _run(self, lease: Lease) -> Run:
        me = self._me
        return Run(me.id, me.host, me.pid, me.user, me.python, self._clock.now(), 0.0, 0.0, lease.attempt)

    def _sealed(self, outcome: Outcome, lease: Lease, digest: bytes) -> Settlement:
        verdict = Verdict(lease.key, lease.round, lease.inputs, lease.attempt, digest, outcome.run.started)
        return SignedWriter(self._seal).settlement(verdict, outcome)

    def _settle(self, settlement: Settlement) -> None:
        self._store.claim(self._me.id, 0, 0.0, [settlement])

    def close(self) -> None:
        """Give back what is claimed and not settled."""
        if self._said in self._in_process:
            self._in_process.remove(self._said)
            self._store.leave([self._me.id])
