"""What verbs give back to look at: pictures and listings that show as text, and as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jug_notebook import render
from jug_notebook.model import Explanation, Graph, Reason, RunView, Snapshot, TaskView


class Status:
    """A `Snapshot` to look at: ``.counts``, ``.functions``, ``.workers``, ``.failures``, ``.eta`` are its."""

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


class Listing(Sequence[TaskView]):
    """Tasks to look at, cut where there are many: ``.total`` is how many there are."""

    def __init__(self, views: Sequence[TaskView], total: int) -> None:
        self.views = tuple(views)
        self.total = total

    def __getitem__(self, index: Any) -> Any:
        return self.views[index]

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[TaskView]:
        return iter(self.views)

    def __repr__(self) -> str:
        return render.tasks_text(self.views, self.total)

    def _repr_html_(self) -> str:
        return render.tasks_html(self.views, self.total)


class History(Sequence[RunView]):
    """Runs that ended, latest first, cut where there are many: ``.total`` is how many there are."""

    def __init__(self, runs: Sequence[RunView], total: int) -> None:
        self.runs = tuple(runs)
        self.total = total

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        return render.history_text(self.runs, self.total)

    def _repr_html_(self) -> str:
        return render.history_html(self.runs, self.total)


class GraphPicture:
    """The graph by function: text, and a picture in a notebook. ``.graph`` is the data, ``.svg()`` a file's content."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def svg(self) -> str:
        """The picture as a file of its own."""
        return render.svg(self.graph, alone=True)

    def __repr__(self) -> str:
        return render.graph_text(self.graph)

    def _repr_html_(self) -> str:
        return render.graph_html(self.graph)


class Why:
    """Why tasks are not stored. ``.stored`` is true where all are; ``.reasons`` are the reasons, each once."""

    def __init__(self, tasks: Sequence[Explanation], total: int) -> None:
        self.tasks = tuple(tasks)  #: one by one, as far as they were looked into
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
    """A log: shows as it is, not as a quoted string."""

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
