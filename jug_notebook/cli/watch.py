"""Pictures that follow the store: in a terminal (``status --watch``), and in a browser (``webstatus``)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from jug_notebook.cli import existing, opener_of, verdict
from jug_notebook.errors import StoreError

if TYPE_CHECKING:
    from jug_notebook.model import Key, Snapshot
    from jug_notebook.store.signed import SignedReader

FAILURES = 100  #: so many of the latest are shown, if at all
PACE = 0.25  #: seconds between two pictures, at least
TICK = 1.0  #: seconds after which ages and estimates are drawn anew though nothing has changed


class View:
    """A store as who looks on sees it. Failures are opened once."""

    def __init__(self, url: str) -> None:
        from jug_notebook.store import open_store

        self.store = open_store(existing(url))
        self._seen = -1
        self._failures: dict[tuple[Key, float], Any] = {}
        self._signed: SignedReader | None = None
        self._note = ""
        try:
            self._signed = opener_of(self.store)
        except StoreError as unknown:  # the picture is no secret
            self._note = f"failures are not shown: {unknown}"

    def picture(self) -> Snapshot:
        from msgspec.structs import replace

        from jug_notebook.model import State

        picture = self.store.snapshot()
        if not picture.counts[State.FAILED]:
            return picture
        if self._signed is None:
            return replace(picture, notes=(*picture.notes, self._note))
        latest = self.store.tasks(state=State.FAILED, limit=FAILURES)
        known = self._failures
        new = [view for view in latest if (view.key, view.started) not in known]
        for view, failure in zip(new, self._signed.failures(new), strict=True):
            known[view.key, view.started] = failure
        shown = [known[view.key, view.started] for view in latest]
        return replace(picture, failures=tuple(failure for failure in shown if failure is not None))

    def news(self, timeout: float) -> bool:
        """Wait until something has changed since the last call, at most so long. Did it?"""
        before, self._seen = self._seen, self.store.watch(self._seen, timeout)
        return self._seen != before

    def close(self) -> None:
        self.store.close()


# -- in a terminal -----------------------------------------------------------------------------------------------------


def watch(url: str, out: TextIO) -> int:
    """Draw until Ctrl-C, which is the way to end it: the last picture stays. Without a terminal, a line a change."""
    view = View(url)
    draw = _redraw(out) if out.isatty() else _a_line_a_change(out)
    picture = None
    try:
        for picture in _pictures(view):
            draw(picture)
    except KeyboardInterrupt:
        return 1 if picture is None else verdict(picture)
    finally:
        view.close()
    raise AssertionError("pictures never end")


def _pictures(view: View) -> Iterator[Snapshot]:
    pause = threading.Event()
    while True:
        yield view.picture()
        pause.wait(PACE)
        view.news(TICK - PACE)


def _redraw(out: TextIO) -> Callable[[Snapshot], None]:
    from jug_notebook import render

    before: list[str] = []

    def draw(picture: Snapshot) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = fitted(render.text(picture, render.SHELL).splitlines(), columns, rows - 1)
        up = sum(max(1, -(-len(line) // columns)) for line in before)  # the window may be narrower than it was
        out.write((f"\x1b[{up}F" if up else "") + "\x1b[J" + "".join(f"{line}\n" for line in lines))
        out.flush()
        before[:] = lines

    return draw


def fitted(lines: list[str], columns: int, rows: int) -> list[str]:
    """As much of it as there is room for."""
    from jug_notebook.render import elide_columns

    if len(lines) > rows > 1:
        lines = [*lines[: rows - 1], f"… and {len(lines) - rows + 1} more lines: make the window taller"]
    return [elide_columns(line, columns) for line in lines]


def _a_line_a_change(out: TextIO) -> Callable[[Snapshot], None]:
    from jug_notebook import render

    before = ""

    def draw(picture: Snapshot) -> None:
        nonlocal before
        line = render.short(picture)
        if line != before:
            print(line, file=out, flush=True)
            before = line

    return draw


# -- in a browser ------------------------------------------------------------------------------------------------------
