"""The status of a store, once or as it changes: `View`, and the terminal display of ``status --watch``."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from jug_notebook.cli import Store, existing, session_of
from jug_notebook.errors import StoreError

if TYPE_CHECKING:
    from jug_notebook.model import Snapshot

PACE = 0.25  #: seconds between two updates, at least
TICK = 1.0  #: seconds after which ages and estimates are updated though nothing has changed


class View:
    """The status of a store; without its failures if this account doesn't have the store's key."""

    def __init__(self, of: Store) -> None:
        from jug_notebook.model import Scope
        from jug_notebook.store import open_store

        existing(of.url)
        self._seen = -1
        try:
            session = session_of(of)
        except StoreError as unknown:  # counts can be read without the key
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
        """Return the status now, with the latest ``failures`` or only their number."""
        return self._picture(failures)

    def changed(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for a change since the last call. Return whether there was one."""
        before, self._seen = self._seen, self.watch(self._seen, timeout)
        return self._seen != before


def _noted(picture: Snapshot, note: str, failures: bool) -> Snapshot:
    from msgspec.structs import replace

    from jug_notebook.model import State

    return replace(picture, notes=(*picture.notes, note)) if failures and picture.counts[State.FAILED] else picture


def picture_of(of: Store, failures: bool = False) -> Snapshot:
    """Return the status of a store now, for a process that ends soon."""
    gc.disable()  # most of what is read is needed to the end; looking for garbage costs a sixth of the time
    view = View(of)
    picture = view.picture(failures)
    view.close()
    return picture


def verdict(picture: Snapshot) -> int:
    """Return the exit status: 0 if all tasks are finished, else 1."""
    from jug_notebook.model import State

    return 0 if picture.counts[State.FINISHED] == picture.total else 1


# -- in a terminal -----------------------------------------------------------------------------------------------------


def watch(of: Store, out: TextIO) -> int:
    """Display the status until Ctrl-C; the last one stays. Without a terminal, print a line for each change."""
    view = View(of)
    draw = _redraw if out.isatty() else _print_change
    before = ""
    picture = None
    try:
        for picture in _pictures(view):
            before = draw(picture, before, out)
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


def _redraw(picture: Snapshot, before: str, out: TextIO) -> str:
    """Replace the text that was drawn ``before``. Return the text drawn now."""
    from jug_notebook import render

    columns, rows = shutil.get_terminal_size()
    text = render.fitted(render.text(picture, render.SHELL), columns, rows)
    out.write(render.redrawn(before, text, columns))
    out.flush()
    return text


def _print_change(picture: Snapshot, before: str, out: TextIO) -> str:
    """Print a line unless it is the same as ``before``, and return it."""
    from jug_notebook import render

    line = render.short(picture)
    if line != before:
        print(line, file=out, flush=True)
    return line
