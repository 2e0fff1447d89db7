"""What a session returns to be looked at: objects that show as text, and as HTML in a notebook.

And what a task printed and displayed. Text is cleaned and escaped; displays bring their own HTML, as under any cell:
the caller has checked that the store's workers signed it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from jug_notebook.model import (
    Explanation,
    FailureView,
    FunctionProfile,
    FunctionView,
    Graph,
    Reason,
    Run,
    RunView,
    Snapshot,
    State,
    TaskView,
    Timeline,
    WorkerView,
)
from jug_notebook.render.format import ago, clean, duration, escape, excerpt, size
from jug_notebook.render.graph import graph_html, graph_text, svg
from jug_notebook.render.html import all_workers_html as workers_html
from jug_notebook.render.html import block, failures_html, functions_html, html
from jug_notebook.render.profile import profile_html, profile_text
from jug_notebook.render.summary import beside
from jug_notebook.render.tasks import history_html, history_text, tasks_html, tasks_text, why_html, why_text
from jug_notebook.render.text import all_workers_text as workers_text
from jug_notebook.render.text import failures_text, functions_text, text
from jug_notebook.render.timeline import Figure, timeline_html, timeline_svg, timeline_text

T = TypeVar("T")


class Rows(tuple[T, ...]):
    """Rows of a status, as data; shows as a table."""

    def __new__(cls, rows: Iterable[T], text: str, html: str) -> Rows[T]:
        """Return the rows with what they show."""
        made = super().__new__(cls, rows)
        made._text, made._html = clean(text), block(html) if html else ""
        return made

    _text: str
    _html: str

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str | None:
        return self._html or None


class Status:
    """A `Snapshot` to look at, with its ``.counts``, ``.functions``, ``.workers``, ``.failures``, ``.eta``."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    @property
    def workers(self) -> Rows[WorkerView]:
        """The workers: those alive, and apart those that ended lately."""
        return Rows(self.snapshot.workers, workers_text(self.snapshot), workers_html(self.snapshot))

    @property
    def functions(self) -> Rows[FunctionView]:
        """The functions, each with its tasks by state and times."""
        whole = len(self.snapshot.functions)
        text = "\n".join(functions_text(self.snapshot, whole)) if self.snapshot.total else "no tasks"
        return Rows(self.snapshot.functions, text, functions_html(self.snapshot, whole))

    @property
    def failures(self) -> Rows[FailureView]:
        """The latest failures, shown by kind."""
        text = "\n".join(failures_text(self.snapshot)) if self.snapshot.counts[State.FAILED] else "no failures"
        return Rows(self.snapshot.failures, text, failures_html(self.snapshot))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.snapshot, name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name in dir(self.snapshot) if not name.startswith("_"))]

    def __repr__(self) -> str:
        return text(self.snapshot)

    def _repr_html_(self) -> str:
        return html(self.snapshot)


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
    """Tasks to look at, cut where there are many.

    ``kept`` results of earlier versions, and ``cancelled`` tasks, are counted beside them.
    """

    def __init__(self, views: Sequence[TaskView], total: int, kept: int = 0, cancelled: int = 0) -> None:
        super().__init__(views, total)
        self.kept = kept
        self.cancelled = cancelled

    def __repr__(self) -> str:
        return tasks_text(self.views, self.total, beside(self.kept, self.cancelled))

    def _repr_html_(self) -> str:
        return tasks_html(self.views, self.total, beside(self.kept, self.cancelled))


class History(_Table[RunView]):
    """Runs that ended, latest first, cut where there are many."""

    def __repr__(self) -> str:
        return history_text(self.views, self.total)

    def _repr_html_(self) -> str:
        return history_html(self.views, self.total)


class ProfileTable(_Table[FunctionProfile]):
    """What runs took, by function; ``.before`` is how many earlier runs were left out."""

    def __init__(self, views: Sequence[FunctionProfile], before: int) -> None:
        super().__init__(views, len(views))
        self.before = before

    def __repr__(self) -> str:
        return profile_text(self.views, self.before)

    def _repr_html_(self) -> str:
        return profile_html(self.views, self.before)


class GraphPicture:
    """The graph by function: text, and a picture in a notebook. ``.graph`` is the data."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def svg(self) -> str:
        """Return the picture as the content of an SVG file."""
        return svg(self.graph, alone=True)

    def __repr__(self) -> str:
        return graph_text(self.graph)

    def _repr_html_(self) -> str:
        return graph_html(self.graph)


class TimelinePicture:
    """Who ran what when: text, and a picture in a notebook. ``.timeline`` is the data, ``.spans`` its attempts."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.spans = timeline.spans

    def svg(self) -> str:
        """Return the picture as the content of an SVG file."""
        return timeline_svg(self.timeline, alone=True)

    def to_frame(self) -> Any:
        """Return a `pandas.DataFrame`, a row for each attempt, by start.

        Columns: key, function, state (finished, failed, died, running), host, worker, attempt, started (datetime64,
        UTC), duration (seconds), critical (is it on the critical path?). Raises ImportError where pandas is missing.
        """
        import pandas as pd

        figure, spans = Figure(self.timeline), self.spans
        path = set(map(id, figure.critical))
        return pd.DataFrame(
            {
                "key": [span.key for span in spans],
                "function": pd.Categorical([span.name for span in spans]),
                "state": pd.Categorical(["died" if span.died else span.state.value for span in spans]),
                "host": pd.Categorical([span.host for span in spans]),
                "worker": pd.Categorical([span.worker for span in spans]),
                "attempt": pd.array([span.attempt for span in spans], dtype="int64"),
                "started": pd.to_datetime([span.started for span in spans], unit="s", utc=True),
                "duration": pd.array([span.duration for span in spans], dtype="float64"),
                "critical": pd.array([id(span) in path for span in spans], dtype="bool"),
            }
        )

    def __repr__(self) -> str:
        return timeline_text(self.timeline)

    def _repr_html_(self) -> str:
        return timeline_html(self.timeline)


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
        return why_text(self.tasks, self.total)

    def _repr_html_(self) -> str:
        return why_html(self.tasks, self.total)


class Text(str):
    """A log, fit for a terminal: shows without quotes, what tasks printed in its colours."""

    __slots__ = ()

    def __new__(cls, written: str) -> Text:
        return super().__new__(cls, clean(written, colours=True))

    def __repr__(self) -> str:
        return str(self)


class Outputs(tuple[tuple[str, Any], ...]):
    """What a task printed, ("stdout", text), and displayed, ("display", forms by MIME type): shows as it did."""

    __slots__ = ()

    def __repr__(self) -> str:
        return outputs_text(self)

    def _repr_html_(self) -> str:
        return outputs_html(self)


# -- what a task printed and displayed ---------------------------------------------------------------------------------


Piece: TypeAlias = "tuple[str, Any]"
"""("stdout", text), ("stderr", text) or ("display", forms by MIME type)."""

_PRE = "margin:2px 0;padding:0;overflow:auto;white-space:pre-wrap;font-size:13px;line-height:1.4;background:none"
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")


def origin_text(run: Run, now: float | None = None) -> str:
    """Return where and how long a task ran, in a line; with ``now`` (seconds since the epoch), also when."""
    when = "" if now is None else f", {ago(now - run.started - run.duration)},"
    return f"computed on {clean(run.host)}{when} in {duration(run.duration)}"


def outputs_text(pieces: Sequence[Piece]) -> str:
    """Return all of it as text for a terminal, in order and in its colours."""
    parts: list[str] = []
    for kind, piece in pieces:
        text = as_text(piece) if kind == "display" else piece
        if parts and parts[-1] and not parts[-1].endswith("\n") and kind == "display":
            parts.append("\n")
        parts.append(f"{text}\n" if kind == "display" else text)
    return clean("".join(parts), colours=True)


def as_text(forms: Mapping[str, Any]) -> str:
    """Return a display as text; a picture by its type and size."""
    for kind in _IMAGES:
        if kind in forms:
            text = str(forms.get("text/plain", ""))
            return f"[{kind}, {size(_weight(forms[kind]))}]" if "<IPython" in text or not text else text
    return str(forms.get("text/plain") or f"[{', '.join(forms)}]")


def outputs_html(pieces: Sequence[Piece]) -> str:
    """Return all of it as HTML, in order."""
    return "".join(
        _display(piece) if kind == "display" else f'<pre style="{_PRE}{_tint(kind)}">{_text(piece)}</pre>'
        for kind, piece in pieces
    )


def _display(forms: Mapping[str, Any]) -> str:
    if "text/html" in forms:
        return f"<div>{_one(forms['text/html'])}</div>"
    for kind in _IMAGES:
        if kind in forms:
            return f'<div><img src="data:{kind};base64,{base64_of(kind, forms[kind])}" style="max-width:100%"></div>'
    return f'<pre style="{_PRE}">{_text(as_text(forms))}</pre>'


def base64_of(kind: str, form: Any) -> str:
    """Return an image as front ends take it."""
    if isinstance(form, str) and not kind.endswith("svg+xml"):
        return "".join(form.split())  # IPython's own images come so
    data = form.encode() if isinstance(form, str) else bytes(form)
    return base64.b64encode(data).decode()


def _weight(form: Any) -> int:
    return len(form) * 3 // 4 if isinstance(form, str) else len(form)


def _one(form: Any) -> str:
    return form if isinstance(form, str) else bytes(form).decode(errors="replace")


def _text(written: str) -> str:
    return escape(excerpt(written, 20_000))


def _tint(stream: str) -> str:
    return ";border-left:3px solid rgba(213,94,0,.55);padding-left:8px" if stream == "stderr" else ""
