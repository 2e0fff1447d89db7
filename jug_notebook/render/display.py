"""What a session returns to be looked at: objects that show as text, and as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from jug_notebook import render
from jug_notebook.model import Explanation, Graph, Reason, RunView, Snapshot, TaskView

T = TypeVar("T")


class Status:
    """A `Snapshot` to look at, with its ``.counts``, ``.functions``, ``.workers``, ``.failures``, ``.eta``."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.snapshot, name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name in dir(self.snapshot) if not name.startswith("_"))]

    def __repr__(self) -> str:
        return render.text(self.snapshot)

    def _repr_html_(self) -> str:
        return render.html(self.snapshot)


class _Table(Sequence[T]):
    """The first of many rows; ``.total`` is how many there are."""

    def __init__(self, views: Sequence[T], total: int) -> None:
        self.views = tuple(views)
        self.total = total

    def __getitem__(self, index: Any) -> Any:
        return self.views[index]

    def __len__(self) -> int:
        return len(self.views)


class Listing(_Table[TaskView]):
    """Tasks to look at, cut where there are many."""

    def __repr__(self) -> str:
        return render.tasks_text(self.views, self.total)

    def _repr_html_(self) -> str:
        return render.tasks_html(self.views, self.total)


class History(_Table[RunView]):
    """Runs that ended, latest first, cut where there are many."""

    def __repr__(self) -> str:
        return render.history_text(self.views, self.total)

    def _repr_html_(self) -> str:
        return render.history_html(self.views, self.total)


class GraphPicture:
    """The graph by function: text, and a picture in a notebook. ``.graph`` is the data."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def svg(self) -> str:
        """Return the picture as the content of an SVG file."""
        return render.svg(self.graph, alone=True)

    def __repr__(self) -> str:
        return render.graph_text(self.graph)

    def _repr_html_(self) -> str:
        return render.graph_html(self.graph)


class Why:
    """Why tasks are not stored. ``.stored`` is true where all are; ``.reasons`` are the reasons, each once."""

    def __init__(self, tasks: Sequence[Explanation], total: int) -> None:
        self.tasks = tuple(tasks)  #: those that were examined
        self.total = total

    @property
    def stored(self) -> bool:
        return all(task.stored for task in self.tasks)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return tuple(dict.fromkeys(reason for task in self.tasks for reason in task.reasons))

    def __repr__(self) -> str:
        return render.why_text(self.tasks, self.total)

    def _repr_html_(self) -> str:
        return render.why_html(self.tasks, self.total)


class Text(str):
    """A log: shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Outputs(tuple[tuple[str, Any], ...]):
    """What a task printed, ("stdout", text), and displayed, ("display", forms by MIME type): shows as it did."""

    __slots__ = ()

    def __repr__(self) -> str:
        return render.outputs_text(self)

    def _repr_html_(self) -> str:
        return render.outputs_html(self)
