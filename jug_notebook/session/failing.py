"""What failed, opened once each and sorted into kinds: so a picture of a thousand failures costs what is new of it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import NamedTuple

from jug_notebook import render
from jug_notebook.model import FailureKind, FailureView, Key, Like, Scope, State, TaskView
from jug_notebook.render.summary import LIKE
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader

KNOWN = 1000  #: so many of the latest are sorted,
SHOWN = 20  #: so many told of one by one


class _Read(NamedTuple):
    """What is remembered of a failure that was opened. ``at`` tells it from a later one of the same task."""

    at: tuple[float, int]
    about: str
    args_repr: str
    error: str


class FailureIndex:
    """Reads failures for pictures."""

    def __init__(self, store: Store, signed: SignedReader) -> None:
        self._store = store
        self._signed = signed
        self._lock = threading.Lock()  # a notebook's pictures look from a thread of their own
        self._read: dict[Key, _Read] = {}
        self._whole: dict[tuple[Key, tuple[float, int]], FailureView] = {}
        self._places: dict[tuple[str, str], int] = {}
        self._place = itertools.count()

    def latest(self, scope: Scope) -> list[TaskView]:
        """The failed tasks that count here, the latest first."""
        return self._store.tasks(scope, state=State.FAILED, limit=KNOWN)

    def told(self, failed: Sequence[TaskView], limit: int = SHOWN) -> tuple[FailureView, ...]:
        """The latest few, whole."""
        with self._lock:
            return tuple(self._opened(failed[:limit]))

    def kinds(self, failed: Sequence[TaskView], at_once: int = KNOWN) -> tuple[FailureKind, ...]:
        """Kinds of failures, that of the latest first; once told, a kind keeps its place. Of each, the latest first.

        Opens at most so many that were not opened before.
        """
        with self._lock:
            return self._kinds(failed, at_once)

    def _kinds(self, failed: Sequence[TaskView], at_once: int) -> tuple[FailureKind, ...]:
        new = [view for view in failed if (known := self._read.get(view.key)) is None or known.at != _at(view)]
        self._take_in(new[:at_once])
        groups: dict[tuple[str, str], list[TaskView]] = {}
        for view in failed:
            known = self._read.get(view.key)
            if known is not None and known.at == _at(view):
                groups.setdefault((view.name, known.about), []).append(view)
        for kind in groups:
            self._places.setdefault(kind, next(self._place))
        top = sorted(groups.items(), key=lambda item: self._places[item[0]])[: render.FAILURES]
        whole = {view.key: view for view in self._opened([group[0] for _, group in top])}
        self._forget(failed)
        if len(self._places) > 2 * KNOWN:
            self._places = {kind: self._places[kind] for kind in groups}
        return tuple(
            FailureKind(
                about,
                whole[group[0].key],
                tuple(view.key for view in group),
                tuple(self._like(view.key) for view in group[1 : LIKE + 1]),
            )
            for (_, about), group in top
            if group[0].key in whole
        )

    def _like(self, key: Key) -> Like:
        known = self._read[key]
        return Like(key, known.args_repr, known.error)

    def _take_in(self, views: Sequence[TaskView]) -> None:
        for view, filled in zip(views, self._signed.filled(views), strict=True):
            error = filled.error or "it failed"
            self._read[view.key] = _Read(_at(view), render.pattern(error), filled.args_repr, error)

    def _opened(self, views: Sequence[TaskView]) -> list[FailureView]:
        missing = [view for view in views if (view.key, _at(view)) not in self._whole]
        for view, found in zip(missing, self._signed.failures(missing), strict=True):
            if found is not None:
                self._whole[view.key, _at(view)] = found
        return [found for view in views if (found := self._whole.get((view.key, _at(view)))) is not None]

    def _forget(self, failed: Sequence[TaskView]) -> None:
        """What no longer counts."""
        if len(self._read) > 2 * KNOWN:
            keep = {view.key for view in failed}
            self._read = {key: known for key, known in self._read.items() if key in keep}
        while len(self._whole) > 4 * SHOWN:
            del self._whole[next(iter(self._whole))]


def _at(view: TaskView) -> tuple[float, int]:
    return view.started, view.attempt
