"""Reads all logs of a store's folder, wherever they are: those being written, those on their way, and sealed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jug_notebook.model import Event
from jug_notebook.scheduler.records import Place
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file.folders import length, listed
from jug_notebook.store.file.journal import Log, SealedLog, Vanished, Writer, is_local, read_bodies

TOGETHER = 40_000  #: tasks in events that are applied at once


class Logs:
    """The logs that a process knows, and how far it has read each. What it reads is applied to a scheduler state."""

    def __init__(self, folder: Folder, scheduler: SchedulerState, writer: Writer) -> None:
        self.skipped: list[SealedLog] = []  #: sealed logs whose events were known from the logs they replace
        self._folder = folder
        self._scheduler = scheduler
        self._writer = writer
        self._known: dict[str, Log] = {}

    def get(self, name: str) -> Log | None:
        """Return the log of that name; None for this process's own, whose events are applied as they are written."""
        log = self._known.get(name)
        if log is None:
            if name == self._writer.log.path.name or not name.endswith(".log"):
                return None
            log = self._known[name] = Log(self._folder / "log" / name, local=is_local(name))
        return log

    def read_one(self, log: Log) -> None:
        """Apply what was appended to a log."""
        if not log.closed and log.path != self._writer.log.path:
            self._scheduler.apply_all(list(log.poll()))
            if log.closed:
                log.shut()

    def is_closed(self, name: str) -> bool:
        """Return whether a log is known, and nothing more will be appended to it."""
        log = self._known.get(name)
        return log is not None and log.closed

    @property
    def local(self) -> bool:
        """True where other machines write none of the logs."""
        return all(log.local or log.closed for log in self._known.values())

    def read(self, remote_only: bool = False) -> None:
        """Read the known logs, or those of other machines."""
        events: list[tuple[Event, Sequence[Place]]] = []
        rows = 0
        for log in list(self._known.values()):
            if (remote_only and log.local) or log.closed or log.path == self._writer.log.path:
                continue
            for event, places in log.poll():
                events.append((event, places))
                rows += len(places)
                if rows > TOGETHER:
                    self._scheduler.apply_all(events)
                    events, rows = [], 0
            if log.closed:
                log.shut()
        self._scheduler.apply_all(events)

    def find(self, names: Sequence[str]) -> None:
        """Find the logs that have moved, and those that are new: ``names``, which were in the folder before."""
        moved = listed(self._folder / "sealing")
        self._add_sealed([name for name in listed(self._folder / "sealed") if name not in self._known])
        for name in moved:
            log = self.get(name)
            if log is not None:
                if log.path.parent.name == "log":
                    log.path = self._folder / "sealing" / name
                if log.closed and log.offset < length(log.path):
                    log.closed = False  # its writer, on another machine, hadn't ended after all
        for name in names:
            self.get(name)

    def _add_sealed(self, names: Sequence[str]) -> None:
        """Read new sealed logs. Skip those that replace only logs which were read to their end."""
        added: list[SealedLog] = []
        for name in sorted(names):
            try:
                added.append(SealedLog(self._folder / "sealed" / name))
            except Vanished:
                continue
        newer = {name for log in added for name in log.replaces}
        for log in added:
            self._known[log.path.name] = log
            known = [(self._known.get(name), size) for name, size in log.replaces.items()]
            if log.path.name in newer:
                log.skip()
            elif all(one is not None and one.offset >= size for one, size in known):
                self.skipped.append(log)
                log.skip()
            else:
                self.read_one(log)
            log.shut()
            for name, size in log.replaces.items():
                former = self._known.get(name)
                if former is None:
                    former = self._known[name] = Log(self._folder / "sealing" / name, local=True)
                former.offset = max(former.offset, size)
                former.closed = True
                former.shut()

    def follow_moves(self, scan: Callable[[], object]) -> dict[Place, Place]:
        """Return the new places of bodies whose logs were removed: the sealed logs that were skipped tell."""
        scan()
        skipped, self.skipped = self.skipped, []
        moved: dict[Place, Place] = {}
        self._scheduler.moved = moved
        for log in skipped:
            try:
                log.closed = False
                for event, places in log.poll():
                    self._scheduler.apply(event, places)
                log.shut()
            except Vanished:
                continue  # replaced by another
        self._scheduler.moved = None
        return moved

    def bodies(self, places: Sequence[Place], scan: Callable[[], object]) -> list[bytes]:
        """Return the bodies at these places, wherever they are now; ``scan`` finds moved logs. Raises ValueLost."""
        try:
            return read_bodies(places)
        except Vanished:
            moved = self.follow_moves(scan)
            now = list(places)
            while any(place in moved for place in now):
                now = [moved.get(place, place) for place in now]
            return read_bodies(now)

    def shut(self) -> None:
        """Close all files."""
        for log in self._known.values():
            log.shut()
