"""Settles single tasks in this process: claims one, runs it, gives it a value from elsewhere, or marks it as failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jug_notebook import codec, system
from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.model import Claim, Failed, Finished, Key, Lease, Outcome, Run, Target, Verdict, WorkerInfo
from jug_notebook.render.values import summarise
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedWriter
from jug_notebook.worker.capture import ThreadCapture, restore_streams
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.status import SharedStatus


class ByHand:
    """A worker that takes each step when it is called. The process's heartbeat covers it until `close`."""

    def __init__(self, store: Store, seal: Seal, clock: Clock, in_process: list[Callable[[], WorkerInfo]]) -> None:
        self._store, self._seal, self._clock, self._in_process = store, seal, clock, in_process
        self._me = system.me("worker", clock)
        self._listener = ThreadCapture(echo=True)
        self._runner = TaskRunner(store, seal, self._me, SharedStatus(), clock, self._listener, True)
        store.renew([self._me])
        in_process.append(self._info)

    def _info(self) -> WorkerInfo:
        return self._me

    def claim(self, key: Key, first: bool = False) -> Claim | None:
        """Return the claim on a task; None where it isn't ready, or is claimed. Faster if it is likely the ``first`` in
        the queue and this is given."""
        claims = self._claimed(None) if first else []
        if not any(claim.lease.key == key for claim in claims):
            self._store.release([claim.lease for claim in claims])
            claims = self._claimed(Target(keys=frozenset([key])))
        others = [claim.lease for claim in claims if claim.lease.key != key]  # its dependencies are ready, but it isn't
        self._store.release(others)
        return next((claim for claim in claims if claim.lease.key == key), None)

    def _claimed(self, target: Target | None) -> list[Claim]:
        return self._store.claim(self._me.id, 1, 0.0, (), target, self._me.python)

    def release(self, claim: Claim) -> None:
        self._store.release([claim.lease])

    def run(self, claim: Claim) -> None:
        """Run the task and settle it."""
        try:
            settlement = self._runner.attempt(claim)
        finally:
            restore_streams()
        if settlement is not None:
            self._store.claim(self._me.id, 0, 0.0, [settlement])

    def deposit(self, claim: Claim, value: Any) -> None:
        """Settle with a value that comes from elsewhere."""
        lease = claim.lease
        payload, digest = codec.dump_value(value, self._store.put_blob)
        run = self._run(lease)
        outcome = Finished(lease.key, lease.round, lease.inputs, digest, payload, summarise(value), run)
        self._settle(outcome, lease, digest)

    def fail(self, claim: Claim, why: str) -> None:
        """Settle with a failure."""
        lease = claim.lease
        failed = Failed(lease.key, lease.round, lease.inputs, "raised", why, "", self._run(lease))
        self._settle(failed, lease, b"")

    def _run(self, lease: Lease) -> Run:
        me = self._me
        return Run(me.id, me.host, me.pid, me.user, me.python, self._clock.now(), 0.0, 0.0, lease.attempt)

    def _settle(self, outcome: Outcome, lease: Lease, digest: bytes) -> None:
        verdict = Verdict(lease.key, lease.round, lease.inputs, lease.attempt, digest, outcome.run.started)
        settlement = SignedWriter(self._seal).settlement(verdict, outcome)
        self._store.claim(self._me.id, 0, 0.0, [settlement])

    def close(self) -> None:
        """Give back the claims that are not settled."""
        if self._info in self._in_process:
            self._in_process.remove(self._info)
            self._store.leave([self._me.id])
