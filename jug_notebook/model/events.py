"""Events: what happened to tasks, each written once by one process."""

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
    counter: int = 0  #: one more than that of any wish seen before


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
    """Outcomes of these rounds and earlier count for nothing. Merged by max, so two presses are one.

    ``inputs`` names those on which a task had taken over its value: there is no outcome of its own to tell.
    """

    keys: list[Key]
    from_rounds: list[int]
    why: Why
    user: str
    at: float
    inputs: list[bytes] = []


class Accepted(Struct, frozen=True, array_like=True, tag="accepted"):
    """Results of former code stand for tasks of new code, or (``undone``) no longer do. One sealed `Acceptance` each.

    Columns: whose task, in which round, on which inputs; whose run, of which round, with which value. Per task the
    highest ``counter`` counts.
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
    """This worker is dead: claims it had not settled are void."""

    worker: WorkerId


class Forgotten(Struct, frozen=True, array_like=True, tag="forgotten"):
    """These tasks are as if never submitted: what was said of these rounds and earlier counts for nothing.

    Nor do submissions, wishes and acceptances up to ``counter``. Merged by max.
    """

    counter: int
    keys: list[Key]
    rounds: list[int]


Event: TypeAlias = Union[Submitted, Requested, Claimed, Released, Settled, Invalidated, Accepted, WorkerLost, Forgotten]
