"""What a task displays: pictures, tables, figures; in order with what it prints, and bounded.

In workers, $MPLBACKEND names this module: matplotlib takes `FigureCanvas` and `show` from it, and draws in memory.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from jug_notebook.model import Display
from jug_notebook.render import plural
from jug_notebook.task.context import left_behind
from jug_notebook.worker.capture import Listener

LIMIT = 4 << 20  #: bytes of one task's displays that are kept
MAX_DISPLAYS = 500  #: of one task


@dataclass
class DisplayItem:
    """One display, until the task ends."""

    at: int
    data: dict[str, Any]
    metadata: dict[str, Any]
    size: int
    id: str = ""


class DisplayBuffer:
    """Collects what the task displays that a thread, or a process, runs."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._items: list[DisplayItem] = []
        self._left_out = 0
        self._clears = False

    def add(self, data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None, id: str = "") -> None:
        """Keep a display: the same thing in several forms, by MIME type."""
        if self._clears:
            self.clear()
        item = _item(self._listener.cut(), data, metadata or {}, id)
        if len(self._items) >= MAX_DISPLAYS or item.size + sum(item.size for item in self._items) > LIMIT:
            self._left_out += 1
        else:
            self._items.append(item)

    def update(self, data: Mapping[str, Any], metadata: Mapping[str, Any] | None, id: str) -> None:
        """Replace the display with this id."""
        for i, item in enumerate(self._items):
            if item.id == id:
                fresh = _item(item.at, data, metadata or {}, id)
                if fresh.size - item.size + sum(item.size for item in self._items) <= LIMIT:
                    self._items[i] = fresh

    def clear(self, wait: bool = False) -> None:
        """Drop what the task printed and displayed; with ``wait``, when it next displays something."""
        self._clears = wait
        if not wait:
            self._listener.clear()
            self._items.clear()
            self._left_out = 0

    def take(self) -> list[Display]:
        """Return all displays and start empty for the next task."""
        if not self._items and not self._left_out:
            self._clears = False
            return []
        taken = [Display(item.at, item.data, item.metadata) for item in self._items]
        if self._left_out:
            more = f"{plural(self._left_out, 'more display')} left out"
            taken.append(Display(self._listener.cut(), {"text/plain": f"[{more}: a task may show {LIMIT >> 20} MB]"}))
        self._items, self._left_out, self._clears = [], 0, False
        return taken

    def add_figures(self) -> None:
        """Keep the figures that pyplot has open, and close them. Costs nothing where pyplot isn't imported."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        numbers: list[int] = getattr(pyplot, "get_fignums", list)()
        if pyplot is None or not numbers:
            return
        for number in numbers:
            figure = pyplot.figure(number)
            try:
                self.add({"text/plain": repr(figure), "image/png": drawn(figure)})
            except Exception as error:  # drawing calls whatever the task has put into the figure
                print(f"{figure!r} could not be drawn: {type(error).__name__}: {error}", file=sys.stderr)
        pyplot.close("all")


def drawn(figure: Any) -> bytes:
    """A figure as PNG, cut to what is on it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight")
    return picture.getvalue()


def _item(at: int, data: Mapping[str, Any], metadata: Mapping[str, Any], id: str) -> DisplayItem:
    try:
        size = len(msgspec.msgpack.encode((data, metadata)))
    except (TypeError, ValueError, OverflowError):  # a form that isn't text, bytes or JSON
        data, metadata = {kind: form for kind, form in data.items() if isinstance(form, str | bytes)}, {}
        size = sum(map(len, data.values()))
    return DisplayItem(at, dict(data), dict(metadata), size, id)


# -- where displays go -------------------------------------------------------------------------------------------------


class _Open(threading.local):
    displays: DisplayBuffer | None = None


_open = _Open()


def current() -> DisplayBuffer | None:
    """Where this thread's displays go; None outside of tasks, and for what an earlier task left behind."""
    return None if left_behind() else _open.displays


@contextmanager
def opened(displays: DisplayBuffer) -> Iterator[None]:
    """Within, what this thread displays goes there."""
    before = _open.displays
    _open.displays = displays
    try:
        yield
    finally:
        _open.displays = before


def always_open(displays: DisplayBuffer) -> None:
    """This process is a worker: what any of its threads displays goes there."""
    _Open.displays = displays


# -- matplotlib's backend ----------------------------------------------------------------------------------------------


def show(*_: Any, **__: Any) -> None:
    """Keep all open figures, in order with what is printed, and close them."""
    if _open.displays is not None:
        _open.displays.add_figures()


def __getattr__(name: str) -> Any:
    if name != "FigureCanvas":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return globals().setdefault(name, FigureCanvasAgg)  # matplotlib looks into `vars` of the module, too
