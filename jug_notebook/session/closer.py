"""The verbs of a session that ask, and change nothing in its store but for `Closer.run_here`, which is a worker."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jug_notebook.clock import Clock
from jug_notebook.codec import Seal
from jug_notebook.model import Claim, Graph, Key, Origin, Scope, Settlement, Spec, State, Target, TaskView, WorkerInfo
from jug_notebook.render.display import GraphPicture, History
from jug_notebook.session import ahead
from jug_notebook.session.ahead import Plan
from jug_notebook.session.rerun import Call, Rerun, Verified
from jug_notebook.session.targets import names_in
from jug_notebook.store import Store, provenance
from jug_notebook.store.signed import SignedReader
from jug_notebook.worker.execution import TaskRunner
from jug_notebook.worker.loop import FailureWatcher, work_in_process


class Closer(ABC):
    """What a `Session` answers about its tasks."""

    headless: bool
    notebook: str
    _store: Store
    _seal: Seal
    _signed: SignedReader
    _clock: Clock
    _scope: Scope
    _info: WorkerInfo
    _rerun: Rerun
    _in_process: list[Callable[[], WorkerInfo]]

    @property
    @abstractmethod
    def display_url(self) -> str:
        """See `Session`."""

    @abstractmethod
    def flush(self) -> None:
        """See `Session`."""

    @abstractmethod
    def _keys(self, target: Any, namespace: Mapping[str, Any] | None) -> list[Key]: ...

    @abstractmethod
    def _target(self, target: Any, namespace: Mapping[str, Any] | None) -> Target: ...

    def kept(self, key: Key) -> Spec | None:
        """See `SessionProtocol`."""
        self.flush()
        if self._store.states([key])[0] is not State.FINISHED:
            return None
        return self._signed.specs([key])[0]

    def provenance(self, key: Key) -> dict[str, Any]:
        """See `SessionProtocol`."""
        self.flush()
        return provenance.provenance(key, self._signed)

    def recall(self, key: Key) -> Call:
        """A stored call: its function, args and kwargs. Raises NoSuchTask, NotReady where it needs a value not there.

        A task function that it calls is the plain function.
        """
        self.flush()
        return self._rerun.recall(key)

    def rerun(self, key: Key) -> Any:
        """Make a stored call here, as a worker does, and answer its value; what it raises is raised. Stores nothing."""
        self.flush()
        return self._rerun.rerun(key)

    def names(self) -> list[str]:
        """The functions of which this notebook has tasks."""
        return names_in(self._store, self._scope)

    def hosts(self) -> list[str]:
        """Where workers are, or were lately."""
        known = [info for info, _, _ in self._store.processes() if info.kind != "session"]
        return sorted({info.place or info.host for info in known})

    def run_here(
        self,
        target: Any = None,
        max_tasks: int | None = None,
        max_time: float | None = None,
        namespace: Mapping[str, Any] | None = None,
        *,
        keep_going: bool = True,
        stop: Callable[[], bool] | None = None,
        each: Callable[[TaskRunner, Claim], Settlement | None] = TaskRunner.attempt,
    ) -> int:
        """Run tasks in this process, one after another, until nothing is left that can run; answer how many ran.

        What they print is shown, and kept. Without ``keep_going`` the first that fails for good is the last.
        ``stop`` and ``each`` as in `worker.work`. Raises WaitInterrupted on Ctrl-C;
        the task that ran is given back.
        """
        self.flush()
        watchful = FailureWatcher(each)

        def over() -> bool:
            return (watchful.failed and not keep_going) or (stop is not None and stop())

        wanted = target if target is None or isinstance(target, Target) else self._target(target, namespace)
        return work_in_process(
            self._store, self._seal, self._clock, self._in_process, wanted, max_tasks, max_time, over, watchful
        )  # fmt: skip

    def withdraw(self, keys: Sequence[Key]) -> None:
        """This script or notebook no longer wants these tasks, finished ones too: they may be cleaned away."""
        self.flush()
        self._store.request(keys, Origin(self._info.user, self.notebook), False)

    def listed(self, state: State | None = None, all: bool = False) -> list[TaskView]:
        """Tasks of this script or notebook, or of the whole store, with nothing opened of them: names and states."""
        self.flush()
        return self._store.tasks(Scope() if all else self._scope, state=state)

    def wanted(self) -> dict[Key, str]:
        """The tasks that this notebook wants, each with the cell that made it."""
        keys = [view.key for view in self.listed() if view.state is not State.CANCELLED]
        specs = self._signed.specs(keys)
        return {key: spec.origin.cell for key, spec in zip(keys, specs, strict=True) if spec is not None}

    def pack(self) -> int:
        """Put what the store keeps into less space, while others go on working; answer how many bytes that saved."""
        self.flush()
        return self._store.compact()

    def known(self, keys: Sequence[Key]) -> list[State | None]:
        """Where tasks stand; None where the store does not know them."""
        self.flush()
        return self._store.states(keys)

    def plan(
        self, workers: int | None = None, *, target: Any = None, namespace: Mapping[str, Any] | None = None
    ) -> Plan:
        """What `execute` would run with so many workers (all cores, if not given). Starts nothing."""
        self.flush()
        size = workers if workers is not None else len(os.sched_getaffinity(0))
        wanted = None if target is None else self._target(target, namespace)
        tied = self._info.id if self.headless else ""
        return ahead.plan(size, wanted, self._scope, self._store, self._signed, tied)

    def culprit(self, target: Any, namespace: Mapping[str, Any] | None = None) -> Key | None:
        """The first failed task of a target, or the one that blocks the first blocked; None where nothing is wrong."""
        keys = self._keys(target, namespace)
        states = self._store.states(keys)
        for key, state, blamed in zip(keys, states, self._store.blocking_tasks(keys), strict=True):
            if state is State.FAILED or blamed is not None:
                return blamed or key
        return None

    def graph(self, target: Any = None, all: bool = False, namespace: Mapping[str, Any] | None = None) -> GraphPicture:
        """Which functions need which, how often, and how far each is: this notebook's, or the whole store's.

        With a target: of these tasks and what they need.
        """
        self.flush()
        scope = Scope() if all else self._scope
        if target is None:
            snapshot = self._store.snapshot(scope)
            graph = Graph(snapshot.functions, tuple(self._store.edges(scope)), self.display_url, snapshot.scope)
        else:
            wanted = self._target(target, namespace)
            functions, edges = ahead.graph_of(wanted, scope, self._store, self._signed)
            graph = Graph(functions, edges, self.display_url, "a part")
        return GraphPicture(graph)

    def history(self, all: bool = False, limit: int = 50) -> History:
        """Who ran what when: the latest attempts that ended, of this notebook's tasks or of the whole store's.

        Failed ones that were tried again and values that were dropped are among them: their ``fate`` says so.
        """
        self.flush()
        return History(*provenance.history(self._signed, Scope() if all else self._scope, limit))

    def verify(self, target: Any, fraction: float = 0.01, namespace: Mapping[str, Any] | None = None) -> Verified:
        """Compute a sample of finished tasks again, in this process, and compare the values. Stores nothing."""
        return self._rerun.verify(self._keys(target, namespace), fraction)
