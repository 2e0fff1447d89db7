"""Pictures that follow the store: renewed in place while cells run and between them. Nothing depends on it."""

from __future__ import annotations

import shutil
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from jug_notebook import render
from jug_notebook.errors import JugError
from jug_notebook.model import OPEN_STATES, Snapshot
from jug_notebook.session import Session

PAUSE = 0.25  #: seconds between two updates, at least
LOOK = 0.5  #: seconds between two looks, at most: a worker's beats change no fact
SLOW = 2.0  #: seconds after which what changes by itself (how long a task runs, memory) is worth an update
PICTURES = 20  #: so many are followed; the oldest stay as they are


class Picture(Protocol):
    """Something shown that can be renewed. Its methods are called from the one thread of `Live`."""

    session: Session
    all: bool  #: the whole store's tasks, not this notebook's alone

    def show(self, snapshot: Snapshot) -> None:
        """Something has changed, or `SLOW` seconds have gone while somebody works."""
        ...

    def rest(self, snapshot: Snapshot) -> None:
        """Nothing has changed since the last look."""
        ...

    def lost(self, why: str) -> None:
        """It follows no more, or not now; `show` may follow."""
        ...

    def close(self) -> None:
        """It will never be renewed again, because its cell runs anew or the kernel ends."""
        ...


class Live:
    """Renews pictures from one thread, which never prints: that would land under whatever cell runs then."""

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause = pause
        self._pictures: list[tuple[str, Picture]] = []
        self._seen: weakref.WeakKeyDictionary[Picture, tuple[Any, float]] = weakref.WeakKeyDictionary()
        self._versions: weakref.WeakKeyDictionary[Session, int] = weakref.WeakKeyDictionary()
        self._errands: list[Callable[[], bool]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, cell: str, shown: Snapshot, picture: Picture) -> None:
        """From now on renew the picture just ``shown`` by ``cell``."""
        with self._lock:
            self._seen[picture] = summary(shown), shown.at
            self._pictures.append((cell, picture))
            surplus, self._pictures = self._pictures[:-PICTURES], self._pictures[-PICTURES:]
            self._start()
        for _, former in surplus:
            former.lost(f"only the latest {PICTURES} are kept up to date")

    def until(self, errand: Callable[[], bool]) -> None:
        """Run an errand now and then, until it answers that it is done."""
        with self._lock:
            self._errands.append(errand)
            self._start()

    def run_errands(self) -> None:
        """Run them now."""
        for errand in list(self._errands):
            try:
                done = errand()
            except (JugError, OSError):  # the next verb will meet it where it can be told
                continue
            with self._lock:
                if done and errand in self._errands:
                    self._errands.remove(errand)

    def _start(self) -> None:
        if not self.running and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="jug-live", daemon=True)
            self._thread.start()

    def forget(self, cell: str) -> None:
        """The cell runs anew: what it showed before is gone from the page."""
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
        """Until the store that was shown last has news, or it's time to look at all of them anyway."""
        with self._lock:
            session = self._pictures[-1][1].session if self._pictures else None
        if session is None or session.closed:
            self._ended.wait(LOOK)
            return
        try:
            self._versions[session] = session.queries.watch(self._versions.get(session, -1), LOOK)
        except (JugError, OSError):
            self._ended.wait(LOOK)

    def redraw(self) -> None:
        """Renew what has changed. Pictures of the same tasks share one look."""
        with self._lock:
            pictures = [picture for _, picture in self._pictures]
        looks: dict[tuple[int, bool], Snapshot | str] = {}
        for picture in pictures:
            about = id(picture.session), picture.all
            if about not in looks:
                looks[about] = _look(picture)
            found = looks[about]
            if isinstance(found, str):
                self._seen.pop(picture, None)
                picture.lost(found)
                continue
            now = summary(found)
            before, at = self._seen.get(picture, (None, 0.0))
            if now != before or (_busy(found) and found.at - at >= SLOW):
                picture.show(found)
                self._seen[picture] = now, found.at
            else:
                picture.rest(found)


def _look(picture: Picture) -> Snapshot | str:
    """The picture now, or why there is none."""
    if picture.session.closed:
        return "the session is closed"
    try:
        return picture.session.queries.glance(picture.all)
    except (JugError, OSError) as error:  # the next verb will meet it where it can be told
        return str(error)


def _busy(snapshot: Snapshot) -> bool:
    return any(view.alive and view.info.task for view in snapshot.workers)


def summary(snapshot: Snapshot) -> Any:
    """What of a snapshot is worth an update at once: not the time, nor each beat."""
    workers = tuple(
        (view.info.id, view.alive, view.info.task, view.info.done, view.info.progress) for view in snapshot.workers
    )
    kinds = tuple((kind.newest.key, kind.newest.started, len(kind.keys)) for kind in snapshot.kinds)
    return snapshot.functions, workers, kinds, snapshot.notes, snapshot.starting


def watch(session: Session, all: bool, draw: Callable[[Snapshot], str]) -> None:
    """Draw the picture as text over the last one, until nothing is left that could change. Ctrl-C ends it before.

    Where nothing can be redrawn, in a file or a pipe, only the last picture is shown. In a terminal what doesn't fit is
    cut while it moves; the last picture is whole.
    """
    terminal = sys.stdout.isatty()
    whole, shown, seen = "", "", -1
    try:
        while True:
            seen = session.queries.watch(seen, PAUSE)
            snapshot = session.queries.glance(all)
            whole = draw(snapshot)
            shown = _over(shown, fitting(whole, *shutil.get_terminal_size())) if terminal else whole
            able = snapshot.starting or any(view.alive for view in snapshot.workers)
            if not able or not any(snapshot.counts[state] for state in OPEN_STATES):
                break
            if terminal:
                threading.Event().wait(PAUSE)
    except KeyboardInterrupt:
        pass
    if terminal and shown != whole:
        _over(shown, whole)
    elif not terminal:
        print(whole)


def fitting(text: str, columns: int, lines: int) -> str:
    """As much of a picture as can be drawn over in a terminal of that size: no line breaks, none scrolls away."""
    rows = [render.elide_columns(row, columns) for row in text.splitlines()]
    if len(rows) >= lines:
        left = len(rows) - max(1, lines - 2)
        rows = [*rows[: max(1, lines - 2)], render.elide_columns(f"… {left} more lines", columns)]
    return "\n".join(rows)


def _over(former: str, text: str) -> str:
    """Print over what was printed before, line by line: a screen that is cleared goes into the scrollback."""
    back = f"\r\x1b[{len(former.splitlines())}A" if former else ""
    print(back + "\x1b[K\n".join(text.splitlines()) + "\x1b[K\n\x1b[J", end="", flush=True)
    return text


class Drawing:
    """A picture without widgets: text and HTML, drawn again whole."""

    def __init__(self, session: Session, all: bool, handle: Any, draw: Callable[[Snapshot], dict[str, str]]) -> None:
        self.session = session
        self.all = all
        self._handle = handle
        self._draw = draw

    def show(self, snapshot: Snapshot) -> None:
        self._handle.update(self._draw(snapshot), raw=True)

    def rest(self, snapshot: Snapshot) -> None:
        """It is as it should be."""

    def lost(self, why: str) -> None:
        """Its "as of" tells how old it is."""

    def close(self) -> None:
        """It stays as it is."""
