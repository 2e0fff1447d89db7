"""What verbs give back to look at: pictures and listings that show as text, and as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jug_notebook import render
from jug_notebook.model import Snapshot, TaskView


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


class Text(str):
    """A log: shows as it is, not as a quoted string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Outputs(tuple[tuple[str, Any], ...]):
    """What a task printed, ("stdout", text), and displayed, ("display", forms by MIME type): shows as it did."""

    __slots__ = ()

    def __repr__(self) -> str:
        return render.shown_text(self)

    def _repr_html_(self) -> str:
        return render.shown_html(self)
