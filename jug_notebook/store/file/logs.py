"""Reads all logs of a store's folder, wherever they are: those being written, those on their way, and sealed ones.

What is damaged in them, or was changed by someone who has no key, is skipped, and named once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

from blake3 import blake3

from jug_notebook import system
from jug_notebook.model import Event
from jug_notebook.scheduler.records import Place
from jug_notebook.scheduler.state import SchedulerState
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file.folders import length, listed
from jug_notebook.store.file.journal import Log, SealedLog, Vanished, Writer, read_bodies
from jug_notebook.store.sealing import EventSeal

TOGETHER = 40_000  #: tasks in events that are applied at once
NOTES = 10  #: at most this many notes about damage are kept
LOOKS = 10  #: times that logs are looked for again, while compactions move them
SILENCE = 86_400.0  #: seconds without an event after which another machine's writer counts as ended
ARRIVING = 60.0  #: seconds for which a log of another machine's may still be on its way to this one
_named: set[tuple[str, str]] = set()  #: damage that a warning has named: of which log, and what


def mark(name: str) -> bytes:
    """Return eight bytes that stand for a log's name."""
    return blake3(name.encode()).digest(8)


def is_local(name: str) -> bool:
    """Return True if the log of that name is written on this machine."""
    return name.startswith(system.machine() + ".")


def writer_has_ended(path: Folder, now: float) -> bool:
    """Return True if nothing more will be appended to a log. ``now`` is the file server's time."""
    words = path.name.split(".", 1)[-1].split("-")
    pid = int(words[-2]) if len(words) > 2 and words[-2].isdigit() else 0
    if is_local(path.name) and pid:
        return system.born(pid) is None
    try:
        return now - path.stat().st_mtime > SILENCE
    except FileNotFoundError:
        return False


class Logs:
    """The logs that a process knows, and how far it has read each. What it reads is applied to a scheduler state."""

    def __init__(self, folder: Folder, scheduler: SchedulerState, writer: Writer, seal: EventSeal | None) -> None:
        self.skipped: list[SealedLog] = []  #: sealed logs whose events were known from the logs they replace
        self._folder = folder
        self._scheduler = scheduler
        self._writer = writer
        self._replaced: set[str] = set()  # by a sealed log that was read
        self.healed: set[str] = set()  #: damaged logs that another one replaces by now
        self.seal = seal  #: None where the store's key isn't known, so that nothing is verified
        self._known: dict[str, Log] = {}
        self._faults: dict[str, dict[str, str]] = {}  # by the name of a log, a line for each

    # -- damage --------------------------------------------------------------------------------------------------------

    def report(self, path: Folder, what: str) -> None:
        """Note, and warn once, that something is wrong with a log, wherever it is moved to."""
        lines = self._faults.setdefault(path.name, {})
        if what not in lines and len(lines) < NOTES:
            line = lines[what] = f"{path} is damaged, or someone without the key changed it: {what}"
            if (path.name, what) not in _named:
                _named.add((path.name, what))
                warnings.warn(f"{line}. The tasks recorded there run again", stacklevel=2)

    def is_damaged(self, name: str) -> bool:
        """Return whether something was reported about a log."""
        return name in self._faults

    @property
    def faults(self) -> list[str]:
        """What is wrong with the logs that count, one line each."""
        return [line for lines in self._faults.values() for line in lines.values()]

    @property
    def notes(self) -> list[str]:
        """The first of the faults, for people."""
        return self.faults[:NOTES]

    @property
    def missing(self) -> set[Folder]:
        """The paths at which there was no log any more when it was last read."""
        return {log.path for log in self._known.values() if log.vanished and not log.closed}

    @property
    def suspect(self) -> bool:
        """True where a log of another machine may be damaged, or what was written may still be on its way."""
        return any(log.suspect[0] == log.offset for log in self._known.values())

    # -- logs ----------------------------------------------------------------------------------------------------------

    def open(self, path: Folder) -> Log:
        """Return a log to be read from its beginning."""
        if path.name.endswith(".sealed"):
            return SealedLog(path, self.seal, self.report)
        return Log(path, is_local(path.name), self.seal, self.report)

    def get(self, name: str) -> Log | None:
        """Return the log of that name; None for this process's own, whose events are applied as they are written."""
        log = self._known.get(name)
        if log is None:
            if name == self._writer.log.path.name or not name.endswith(".log"):
                return None
            log = self._known[name] = self.open(self._folder / "log" / name)
        return log

    def read_one(self, log: Log) -> None:
        """Apply what was appended to a log."""
        if not log.closed and log.path != self._writer.log.path:
            self._apply_all([log])

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
        own = self._writer.log.path
        logs = [log for log in self._known.values() if not (log.closed or (remote_only and log.local))]
        self._apply_all([log for log in logs if log.path != own])

    def _apply_all(self, logs: Sequence[Log]) -> None:
        """Apply what was appended to these logs. Where one can't be read, what was read before counts."""
        events: list[tuple[Event, Sequence[Place]]] = []
        rows = 0
        try:
            for log in logs:
                for event, places in log.poll():
                    events.append((event, places))
                    rows += len(places)
                    if rows > TOGETHER:
                        self._scheduler.apply_all(events, more=True)
                        events, rows = [], 0
                if log.closed:
                    log.shut()
        finally:
            self._scheduler.apply_all(events)

    def find(self, names: Sequence[str]) -> None:
        """Find the logs that have moved, and those that are new: ``names``, which were in the folder before."""
        moved = listed(self._folder / "sealing")
        for _ in range(LOOKS):
            if self._add_sealed([name for name in listed(self._folder / "sealed") if name not in self._known]):
                break
        for name in moved:
            log = self.get(name)
            if log is not None:
                if log.path.parent.name == "log":
                    log.path = self._folder / "sealing" / name
                if log.closed and log.offset < length(log.path):
                    log.closed = False  # its writer, on another machine, hadn't ended after all
        for name in names:
            self.get(name)

    def _add_sealed(self, names: Sequence[str]) -> bool:
        """Read new sealed logs. Skip those that replace only logs which were read to their end.

        Return False if one has vanished meanwhile: then another one replaces it.
        """
        added: list[SealedLog] = []
        vanished = False
        for name in sorted(names):
            try:
                added.append(SealedLog(self._folder / "sealed" / name, self.seal, self.report))
            except Vanished:
                vanished = True
        newer = {name for log in added for name in log.replaces}
        for log in reversed(added):  # the newest first: what it replaces isn't known until it has been read itself
            self._known[log.path.name] = log
            known = [(self._known.get(name), size) for name, size in log.replaces.items()]
            if log.path.name in newer:
                log.skip()
            elif known and all(one is not None and one.offset >= size for one, size in known):
                self.skipped.append(log)
                log.skip()
            else:
                self.read_one(log)  # its file is open still, so it is there
            log.shut()
            for name, size in log.replaces.items():
                former = self._known.get(name)
                if former is None:
                    former = self._known[name] = Log(self._folder / "sealing" / name, local=True)
                self._replaced.add(name)
                former.offset = max(former.offset, size)
                former.closed = True
                former.shut()
                if self._faults.pop(name, None) is not None:
                    self.healed.add(name)
        return not vanished

    def follow_moves(self, scan: Callable[[], object]) -> dict[Place, Place]:
        """Return the new places of bodies whose logs were removed: the sealed logs that were skipped tell."""
        scan()
        moved: dict[Place, Place] = {}
        self._scheduler.moved = moved
        try:
            while self.skipped:
                with suppress(Vanished):  # replaced by another
                    log = self.skipped[-1]
                    log.closed = False
                    for event, places in log.poll():
                        self._scheduler.apply(event, places)
                    log.shut()
                self.skipped.pop()
        finally:
            self._scheduler.moved = None
        return moved

    def bodies(self, places: Sequence[Place], scan: Callable[[], object]) -> list[bytes]:
        """Return the bodies at these places, wherever they are now; ``scan`` finds moved logs. Raises ValueLost."""
        try:
            return read_bodies(places)
        except Vanished:
            now = list(places)
            for _ in range(LOOKS):
                moved = self.follow_moves(scan)
                while any(place in moved for place in now):
                    now = [moved.get(place, place) for place in now]
                with suppress(Vanished):
                    return read_bodies(now)
            return read_bodies(now)

    # -- how far they have come ----------------------------------------------------------------------------------------

    def extents(self) -> dict[str, int]:
        """Return the bytes read of each log that no sealed one replaces."""
        return {
            name: log.offset
            for name, log in self._known.items()
            if log.offset and name.endswith(".log") and name not in self._replaced
        }

    def read_by_writers(self) -> dict[str, int]:
        """Return, once, how many bytes writers had read of other logs when they ended."""
        found: dict[str, int] = {}
        for log in self._known.values():
            for name, size in log.read_by_writer.items():
                found[name] = max(size, found.get(name, 0))
            log.read_by_writer = {}
        return found

    def extent(self, name: str) -> int:
        """Return the bytes read of a log; very many where a sealed log has what it held."""
        log, own = self._known.get(name), self._writer.log.path
        if name == own.name:
            return length(own)  # what this process writes itself it doesn't read
        if log is not None:
            return log.offset
        marked, size = mark(name), len(mark(name))
        sealed = (log.before for log in self._known.values() if isinstance(log, SealedLog))
        found = any(marked in (before[at : at + size] for at in range(0, len(before), size)) for before in sealed)
        return 1 << 62 if found else 0

    def patience(self, name: str) -> float:
        """Return for how many seconds what is missing of a log may be on its way to this machine, or being moved."""
        log = self._known.get(name)
        return 0.0 if is_local(name) and (log is None or not log.vanished) else ARRIVING

    def shut(self) -> None:
        """Close all files."""
        for log in self._known.values():
            log.shut()
