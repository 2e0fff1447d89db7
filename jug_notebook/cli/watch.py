"""Looking at a store, once or as it changes: `View`, and the picture in a terminal of ``status --watch``."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from jug_notebook.cli import Store, existing, session_of
from jug_notebook.errors import StoreError

if TYPE_CHECKING:
    from jug_notebook.model import Snapshot

PACE = 0.25  #: seconds between two pictures, at least
TICK = 1.0  #: seconds after which ages and estimates are drawn anew though nothing has changed


class View:
    """A store as commands show it: with its failures, or without where this account doesn't have the store's key."""

    def __init__(self, of: Store) -> None:
        from jug_notebook.model import Scope
        from jug_notebook.store import open_store

        existing(of.url)
        self._seen = -1
        try:
            session = session_of(of)
        except StoreError as unknown:  # counts are no secret
            note = f"failures are not shown: {unknown}"
            store = open_store(of.url)
            scope = Scope(notebook=of.notebook)
            self.watch, self.close = store.watch, store.close
            self._picture: Callable[[bool], Snapshot] = lambda failures: _noted(store.snapshot(scope), note, failures)
        else:
            whole = of.notebook is None
            self.watch, self.close = session.queries.watch, session.close
            self._picture = lambda failures: (
                session.queries.status(whole).snapshot if failures else session.queries.glance(whole)
            )

    def picture(self, failures: bool = True) -> Snapshot:
        """Return the picture now, with the latest ``failures`` whole, or only counted."""
        return self._picture(failures)

    def changed(self, timeout: float) -> bool:
        """Wait until something has changed since the last call, at most ``timeout`` seconds. Return whether it has."""
        before, self._seen = self._seen, self.watch(self._seen, timeout)
        return self._seen != before


def _noted(picture: Snapshot, note: str, failures: bool) -> Snapshot:
    from msgspec.structs import replace

    from jug_notebook.model import State

    return replace(picture, notes=(*picture.notes, note)) if failures and picture.counts[State.FAILED] else picture


def verdict(picture: Snapshot) -> int:
    """Return the exit status: 0 where all tasks are finished."""
    from jug_notebook.model import State

    return 0 if picture.counts[State.FINISHED] == picture.total else 1


# -- in a terminal -----------------------------------------------------------------------------------------------------


def watch(of: Store, out: TextIO) -> int:
    """Draw until Ctrl-C, which is the way to end it: the last picture stays. Without a terminal, a line a change."""
    view = View(of)
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
        view.changed(TICK - PACE)


def _redraw(out: TextIO) -> Callable[[Snapshot], None]:
    from jug_notebook import render

    before = ""

    def draw(picture: Snapshot) -> None:
        nonlocal before
        columns, rows = shutil.get_terminal_size()
        text = render.fitted(render.text(picture, render.SHELL), columns, rows)
        out.write(render.redrawn(before, text, columns))
        out.flush()
        before = text

    return draw


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
