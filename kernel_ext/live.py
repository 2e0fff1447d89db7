"""Live status: what is displayed under a cell is updated in place as the store changes. No result depends on it."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from jug_notebook import render
from jug_notebook.errors import JugError, WaitInterrupted
from jug_notebook.model import OPEN_STATES, Snapshot
from jug_notebook.session import Session

PAUSE = 0.25  #: seconds between two updates, at least
LOOK = 0.5  #: seconds between two reads of the store, at most: heartbeats don't wake a watcher
SLOW = 2.0  #: seconds between two updates of what changes by itself: running times, memory
PICTURES = 20  #: updated at most; older ones stay as they are


class Picture(Protocol):
    """A displayed status that can be updated. `Live` calls its methods, from its one thread."""

    session: Session
    all: bool  #: the whole store's tasks, not only this notebook's

    @property
    def behind(self) -> bool:
        """Has it to show what was left out until now?"""
        ...

    def show(self, snapshot: Snapshot) -> None:
        """Something has changed, or `SLOW` seconds have passed while workers are busy."""
        ...

    def rest(self, snapshot: Snapshot) -> None:
        """Nothing has changed since the last read."""
        ...

    def lost(self, why: str, over: bool = False) -> None:
        """It can't be updated: at least now, and `show` may come later; or never again, if that is ``over``."""
        ...

    def close(self) -> None:
        """There will be no more updates: its cell runs again or the kernel ends."""
        ...


class Live:
    """Updates pictures from one thread. It never prints: that would appear under the cell that runs at that moment."""

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause = pause
        self._pictures: list[tuple[str, Picture]] = []
        self._seen: weakref.WeakKeyDictionary[Picture, tuple[Any, float]] = weakref.WeakKeyDictionary()
        self._versions: weakref.WeakKeyDictionary[Session, int] = weakref.WeakKeyDictionary()
        self._errands: list[Callable[[], bool]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, cell: str, drawn: Snapshot, picture: Picture) -> None:
        """Keep the picture, which ``cell`` has just displayed, up to date."""
        with self._lock:
            self._seen[picture] = summary(drawn), drawn.at
            self._pictures.append((cell, picture))
            surplus, self._pictures = self._pictures[:-PICTURES], self._pictures[-PICTURES:]
            self._start()
        for _, former in surplus:
            former.lost(f"only the latest {PICTURES} are kept up to date")

    def until(self, errand: Callable[[], bool]) -> None:
        """Call ``errand`` now and then, until it returns True."""
        with self._lock:
            self._errands.append(errand)
            self._start()

    def run_errands(self) -> None:
        """Call all errands once, now."""
        for errand in list(self._errands):
            try:
                done = errand()
            except (JugError, OSError):  # the next magic will raise it where the user sees it
                continue
            with self._lock:
                if done and errand in self._errands:
                    self._errands.remove(errand)

    def _start(self) -> None:
        if not self.running and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="jug-live", daemon=True)
            self._thread.start()

    def forget(self, cell: str) -> None:
        """The cell runs again: what it displayed before is gone from the page."""
        with self._lock:
            former = [picture for name, picture in self._pictures if name == cell]
            self._pictures = [pair for pair in self._pictures if pair[0] != cell]
        for picture in former:
            picture.close()

    def stop(self) -> None:
        """End the thread and wait for it; pictures stay as they are. Stopping twice is fine."""
        self._ended.set()
        with self._lock:
            former, self._pictures = self._pictures, []
            self._errands.clear()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for _, picture in former:
            picture.close()

    def end_with_kernel(self) -> None:
        """Say in each picture that it is over, while the front end still listens."""
        self._ended.set()
        with self._lock:
            pictures = [picture for _, picture in self._pictures]
        for picture in pictures:
            picture.lost("its kernel has ended", True)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._await_change()
                self.redraw()
                self.run_errands()
                self._ended.wait(self._pause)
        finally:
            with self._lock:
                self._thread = None
                pictures = list(self._pictures)
            for _, picture in pictures:
                picture.lost("updates have ended")

    def _await_change(self) -> None:
        """Wait until the store displayed last has changed, `LOOK` seconds at most; less if a picture is behind."""
        with self._lock:
            session = self._pictures[-1][1].session if self._pictures else None
            look = self._pause if any(picture.behind for _, picture in self._pictures) else LOOK
        if session is None or session.closed:
            self._ended.wait(LOOK)
            return
        try:
            self._versions[session] = session.queries.watch(self._versions.get(session, -1), look)
        except (JugError, OSError):
            self._ended.wait(LOOK)

    def redraw(self) -> None:
        """Update what has changed. Pictures of the same tasks share one read."""
        with self._lock:
            pictures = [picture for _, picture in self._pictures]
        snapshots: dict[tuple[int, bool], Snapshot | str] = {}
        for picture in pictures:
            about = id(picture.session), picture.all
            if about not in snapshots:
                snapshots[about] = _look(picture)
            found = snapshots[about]
            if isinstance(found, str):
                self._seen.pop(picture, None)
                picture.lost(found, picture.session.closed)
                continue
            now = summary(found)
            before, at = self._seen.get(picture, (None, 0.0))
            if now != before or (_busy(found) and found.at - at >= SLOW):
                picture.show(found)
                self._seen[picture] = now, found.at
            else:
                picture.rest(found)


def _look(picture: Picture) -> Snapshot | str:
    """Return the current status, or why there is none."""
    if picture.session.closed:
        return "the session is closed"
    try:
        return picture.session.queries.glance(picture.all)
    except (JugError, OSError) as error:  # the next magic will raise it where the user sees it
        return str(error)


def _busy(snapshot: Snapshot) -> bool:
    return any(view.alive and view.info.task for view in snapshot.workers)


def summary(snapshot: Snapshot) -> Any:
    """Return the parts of a snapshot whose change is displayed at once: not the time, nor heartbeats."""
    workers = tuple(
        (view.info.id, view.alive, view.info.task, view.info.done, view.info.progress) for view in snapshot.workers
    )
    kinds = tuple((kind.newest.key, kind.newest.started, len(kind.keys)) for kind in snapshot.kinds)
    return snapshot.functions, workers, kinds, snapshot.notes, snapshot.starting


def watch(session: Session, all: bool, draw: Callable[[Snapshot], str]) -> None:
    """Draw the status as text over the last one, until nothing can change any more. Raises WaitInterrupted on Ctrl-C.

    In a file or a pipe, only the last one is printed. In a terminal, all but the last are cut to fit.
    """
    terminal = sys.stdout.isatty()
    whole, drawn, seen, interrupted = "", "", -1, False
    try:
        while True:
            seen = session.queries.watch(seen, PAUSE)
            snapshot = session.queries.glance(all)
            whole = draw(snapshot)
            if terminal:
                before, drawn = drawn, render.fitted(whole, *shutil.get_terminal_size())
                print(render.redrawn(before, drawn, shutil.get_terminal_size().columns), end="", flush=True)
            able = snapshot.starting or any(view.alive for view in snapshot.workers)
            if not able or not any(snapshot.counts[state] for state in OPEN_STATES):
                break
            if terminal:
                threading.Event().wait(PAUSE)
    except KeyboardInterrupt:
        interrupted = True
    if terminal and drawn != whole:
        print(render.redrawn(drawn, whole, shutil.get_terminal_size().columns), end="", flush=True)
    elif not terminal:
        print(whole)
    if interrupted:
        raise WaitInterrupted("watching was interrupted; the tasks go on in their workers. Stop those with %jug_stop")


class Drawing:
    """A picture without widgets: text and HTML, redrawn as a whole."""

    behind = False

    def __init__(self, session: Session, all: bool, handle: Any, draw: Callable[[Snapshot], dict[str, str]]) -> None:
        self.session = session
        self.all = all
        self._handle = handle
        self._draw = draw

    def show(self, snapshot: Snapshot) -> None:
        self._handle.update(self._draw(snapshot), raw=True)

    def rest(self, snapshot: Snapshot) -> None:
        """Nothing to redraw."""

    def lost(self, why: str, over: bool = False) -> None:
        """It has a time ("as of"), which shows how old it is."""

    def close(self) -> None:
        """It stays as it is."""


class Plot(Drawing):
    """A plot, which takes the kernel's time to draw: a third of it at most."""

    def __init__(self, session: Session, handle: Any, draw: Callable[[Snapshot], dict[str, str]]) -> None:
        super().__init__(session, False, handle, draw)
        self._next = 0.0

    def show(self, snapshot: Snapshot) -> None:
        self.behind = True
        self.rest(snapshot)

    def rest(self, snapshot: Snapshot) -> None:
        if self.behind and time.monotonic() >= self._next:
            self.behind = False
            before = time.thread_time()  # what others on a busy machine take meanwhile is no reason to wait longer
            super().show(snapshot)
            self._next = time.monotonic() + 2 * (time.thread_time() - before)
