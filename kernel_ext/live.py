"""Pictures that follow the store: redrawn in place while cells run and between them. Nothing depends on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jug_notebook as jn
from jug_notebook.model import Snapshot

PAUSE = 0.5  #: seconds between two looks
PICTURES = 20  #: so many are followed; the oldest stay as they are


class Picture(NamedTuple):
    """Something shown: its handle, how to look, how to draw what was seen, and what was seen last."""

    handle: Any
    look: Callable[[], Snapshot]
    draw: Callable[[Snapshot], dict[str, str]]
    seen: Any


class Live:
    """Redraws pictures from one thread, which never prints: that would land under whatever cell runs then."""

    def __init__(self, pause: float = PAUSE) -> None:
        self._pause = pause
        self._pictures: dict[str, Picture] = {}
        self._errands: list[Callable[[], bool]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, cell: str, shown: Snapshot, picture: Picture) -> None:
        """From now on redraw the picture just ``shown`` by ``cell``; what that cell showed before stays as it is."""
        with self._lock:
            self._pictures.pop(cell, None)
            self._pictures[cell] = picture._replace(seen=_gist(shown))
            while len(self._pictures) > PICTURES:
                del self._pictures[next(iter(self._pictures))]
            self._start()

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
            except (jn.JugError, OSError):  # the next verb will meet it where it can be told
                continue
            with self._lock:
                if done and errand in self._errands:
                    self._errands.remove(errand)

    def _start(self) -> None:
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="jug-live", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it. Stopping twice is fine."""
        self._ended.set()
        with self._lock:
            self._pictures.clear()
            self._errands.clear()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended.wait(self._pause):
            self.redraw()
            self.run_errands()

    def redraw(self) -> None:
        """Redraw what has changed."""
        with self._lock:
            pictures = list(self._pictures.items())
        for cell, picture in pictures:
            try:
                snapshot = picture.look()
            except (jn.JugError, OSError):  # the next verb will meet it where it can be told
                continue
            gist = _gist(snapshot)
            if gist == picture.seen:
                continue
            picture.handle.update(picture.draw(snapshot), raw=True)
            with self._lock:
                if self._pictures.get(cell) is picture:
                    self._pictures[cell] = picture._replace(seen=gist)


def _gist(snapshot: Snapshot) -> Any:
    """What of a snapshot is worth a redraw: not the time, nor each beat."""
    workers = tuple((view.info.id, view.alive, view.info.task, view.info.progress) for view in snapshot.workers)
    failures = tuple(failure.key for failure in snapshot.failures)
    return snapshot.functions, workers, failures, snapshot.notes
