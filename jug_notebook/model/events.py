"""Events: what happened to tasks. Each is written once by one process; a store keeps them, a scheduler applies them.

They may arrive late, repeatedly or out of order. `Submitted` and `Settled` come with one sealed body per task.
"""

from __future__ import annotations

from typing import TypeAlias, Union

from msgspec import Struct

from jug_notebook.model.tasks import Key, Lease, Request, Verdict, Why, WorkerId


class Submitted(Struct, frozen=True, array_like=True, tag="submitted"):
    """Tasks of one function: shared fields once, then columns."""

    name: str
    priority: int
    python: str
    keys: list[Key]
    needs: list[tuple[Key, ...]]
    forms: list[bytes]
    counter: int = 0  #: one more than that of any request seen before


class Requested(Struct, frozen=True, array_like=True, tag="requested"):
    request: Request
    keys: list[Key]


class Claimed(Struct, frozen=True, array_like=True, tag="claimed"):
    worker: WorkerId
    leases: list[Lease]


class Released(Struct, frozen=True, array_like=True, tag="released"):
    leases: list[Lease]


class Settled(Struct, frozen=True, array_like=True, tag="settled"):
    worker: WorkerId
    verdicts: list[Verdict]


class Invalidated(Struct, frozen=True, array_like=True, tag="invalidated"):
    """Outcomes of these rounds and earlier are invalid. Merged by max, so doing it twice is the same as once.

    ``inputs`` are those on which a task had reused its value, where it has no outcome of its own.
    """

    keys: list[Key]
    from_rounds: list[int]
    why: Why
    user: str
    at: float
    inputs: list[bytes] = []


class Accepted(Struct, frozen=True, array_like=True, tag="accepted"):
    """Results of other code are accepted for tasks, or (``undone``) no longer. One sealed `Acceptance` each.

    Columns: task, its round and inputs; source task, its round and value digest. The highest ``counter`` counts.
    """

    counter: int
    undone: bool
    user: str
    at: float
    keys: list[Key]
    rounds: list[int]
    inputs: list[bytes]
    sources: list[Key]
    source_rounds: list[int]
    digests: list[bytes]


class WorkerLost(Struct, frozen=True, array_like=True, tag="lost"):
    """A worker has died: its claims that were not settled are void."""

    worker: WorkerId


class Forgotten(Struct, frozen=True, array_like=True, tag="forgotten"):
    """These tasks are as if never submitted: events of these rounds and earlier are ignored.

    So are submissions, requests and acceptances up to ``counter``. Merged by max.
    """

    counter: int
    keys: list[Key]
    rounds: list[int]


Event: TypeAlias = Union[Submitted, Requested, Claimed, Released, Settled, Invalidated, Accepted, WorkerLost, Forgotten]
