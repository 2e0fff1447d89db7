"""Arguments that don't count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jug_notebook.compat.jug.task import value
from jug_notebook.task.values import tasks_in

__all__ = ["NoHash"]


class NoHash:
    """An argument that doesn't matter for the result: the function gets ``obj``. Tasks in it do count: one must know
    for which of them to wait.
    """

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def __jug_hash__(self) -> bytes:
        return b"nohash"

    def __jug_value__(self) -> Any:
        return value(self.obj)

    def __jug_dependencies__(self) -> Sequence[Any]:
        return tasks_in(self.obj)
