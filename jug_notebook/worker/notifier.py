"""When a notification is sent, and by whom: once for each target, when all work of a store has ended or stands still.

Each supervisor that has targets sees that for itself, and forks a process that claims the message in the store. Who has
the claim sends, then records that; the others wait for the record, and one of them sends where the sender dies without
it. So a message is sent twice where a sender's machine dies in the moment between the receiver's answer and the record:
rather twice than never. The process outlives its supervisor, whose death therefore costs no message.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import JugError, StoreError
from jug_notebook.model import BEAT, Failed, Key, Rest, Target, WorkerInfo
from jug_notebook.render.format import clean, duration, elide, plural
from jug_notebook.render.summary import pattern
from jug_notebook.store import Store, keyring, once
from jug_notebook.store.event_log import EventLogStore
from jug_notebook.store.sealing import Seal
from jug_notebook.store.signed import SignedReader
from jug_notebook.worker import notices
from jug_notebook.worker.notices import Notice, NotSent

QUIET = 2.0  #: seconds for which nothing runs before that counts as the end: a cell may be about to make more tasks
PAUSES = (1.0, 4.0, 15.0, 60.0)  #: seconds between two tries to send
TURN = 1.0  #: seconds between two looks at what the sender does
LONGEST = 900.0  #: seconds for which another sender is waited for
READ = 500  #: failures that are read, to tell their kinds
FAREWELL = 20.0  #: seconds for which a supervisor that ends waits until its message is sent


class Outcome(msgspec.Struct):
    """What became of the targets: by target, what was reported to it; and why something was not sent."""

    seen: dict[str, tuple[str, float]] = {}
    wrong: list[str] = []


class Notifier:
    """A supervisor's part: sees that work has ended, and has that reported."""

    def __init__(
        self, store: Store, me: WorkerInfo, target: Target | None, fork: Callable[[Callable[[Store], int]], int]
    ) -> None:
        self.note = ""  #: that a message could not be sent, for people
        self._store, self._me, self._target, self._fork = store, me, target, fork
        self._ended: int | None = None  # how many runs have ended, while nothing is left to run
        self._since = 0.0
        self._examined: object = None
        self._pid = self._pipe = 0
        self._began = False

    def look(self, now: float, tolerated: AbstractContextManager[None]) -> None:
        """Have it reported if all work has ended. To be called about once a second; a store may be away meanwhile."""
        self._began = True
        with tolerated:
            self._look(now)

    def _look(self, now: float) -> None:
        if self._pid:
            self._reap(os.WNOHANG)
        wanted = notices.notices(self._store.id)
        if not wanted or self._pid:
            return
        ended = self._store.at_rest(self._target, self._me.python)
        if ended != self._ended:
            self._ended, self._since = ended, now
        state = ended, tuple((notice.target, notice.seen) for notice in wanted)
        if ended is not None and now - self._since >= QUIET and state != self._examined:
            self._examined = state
            self._start(wanted, last=False)

    def end(self, at_once: bool) -> None:
        """Report, as this supervisor ends, how far it came, if no other one is left. ``at_once``: try that once."""
        if self._pid:
            self._wait(FAREWELL)
        if self._began and (wanted := notices.notices(self._store.id)):
            self._start(wanted, last=True, tries=1 if at_once else len(PAUSES) + 1)
            self._wait(BEAT if at_once else FAREWELL)

    def _start(self, wanted: Sequence[Notice], last: bool, tries: int = len(PAUSES) + 1) -> None:
        reader, writer = os.pipe()

        def run(store: Store) -> int:
            os.close(reader)
            assert isinstance(store, EventLogStore)
            outcome = Delivery(store, self._me, self._target, tries).run(wanted, last)
            os.write(writer, msgspec.json.encode(outcome))
            return 0

        try:
            self._pid, self._pipe = self._fork(run), reader
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)

    def _wait(self, patience: float) -> None:
        """Wait for the process that sends, which goes on alone after that."""
        until = CLOCK.monotonic() + patience
        while self._pid and CLOCK.monotonic() < until:
            self._reap(os.WNOHANG)
            CLOCK.sleep(0.02)

    def _reap(self, options: int) -> None:
        pid, status = os.waitpid(self._pid, options)
        if not pid:
            return
        with os.fdopen(self._pipe, "rb") as pipe:
            data = pipe.read()
        self._pid = 0
        if status or not data:
            self._examined = None  # it was killed, or the store was away: once more
            self._since = CLOCK.monotonic()
            return
        outcome = msgspec.json.decode(data, type=Outcome)
        self.note = "; ".join(outcome.wrong)
        with suppress(JugError):
            notices.reported(self._store.id, outcome.seen)


class Delivery:
    """The process that sends, for one supervisor."""

    def __init__(
        self, store: EventLogStore, supervisor: WorkerInfo, target: Target | None, tries: int, clock: Clock = CLOCK
    ) -> None:
        self._store, self._supervisor, self._target, self._clock = store, supervisor, target, clock
        self._pauses = PAUSES[: tries - 1]
        self._seal = Seal(keyring.secret(store.id), store.id)
        self._me = system.me("notifier", clock, supervisor=supervisor.id)

    def run(self, wanted: Sequence[Notice], last: bool) -> Outcome:
        """Send what is to be sent to each target. ``last``: the supervisor has ended its workers, and ends now."""
        outcome = Outcome()
        others = [
            info
            for info, alive, _ in self._store.processes()
            if alive and info.kind == "supervisor" and info.id != self._supervisor.id
        ]
        of_a_job = "#" in self._supervisor.crew  # others may be waiting in the queue
        with self._beating(), ThreadPoolExecutor(len(wanted)) as pool:
            for notice, done in zip(wanted, pool.map(lambda one: self._report(one, last, others), wanted), strict=True):
                if isinstance(done, str):
                    outcome.wrong.append(f"could not notify ({notice.label}): {done}")
                elif done is not None:
                    outcome.seen[notice.target] = done.id, done.ended
        if outcome.wrong:
            self._store.notice(self._supervisor.id, clean("".join(f"{line}\n" for line in outcome.wrong)))
        if last and not others and not of_a_job and not outcome.wrong:
            notices.forget(self._store.id)
        self._store.leave([self._me.id])
        return outcome

    @contextmanager
    def _beating(self) -> Iterator[None]:
        over = threading.Event()

        def beat() -> None:
            count = 1
            while not over.wait(BEAT):
                count += 1
                with suppress(StoreError):
                    self._store.renew([msgspec.structs.replace(self._me, beat=count)])

        self._store.renew([msgspec.structs.replace(self._me, beat=1)])
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _report(self, notice: Notice, last: bool, others: Sequence[WorkerInfo]) -> Rest | str | None:
        """Return what was reported; why it could not be; or None where there is nothing to report."""
        rest = self._store.rest(notice.ended, self._target)
        busy = not self._store.idle(self._target, self._supervisor.python)
        if busy and (not last or others or "#" in self._supervisor.crew):
            return None
        news = rest.id != notice.seen and bool(rest.done or rest.failed)
        if not news and not (last and rest.left):
            return None
        if rest.ended - rest.began < notice.after:
            return rest
        name = name_of(self._store.id, notice.target, rest, busy)
        until = self._clock.monotonic() + LONGEST
        while not once.is_done(self._store, name):
            if (lease := self._begin(name)) is not None:
                return self._send(notice, rest, lease, busy)
            if self._clock.monotonic() > until:
                return "another process did not finish sending it"
            self._clock.sleep(TURN)
        return rest

    def _begin(self, name: Key) -> Any:
        try:
            return once.begin(self._store, name, self._me.id)
        except once.NotNow:
            return None

    def _send(self, notice: Notice, rest: Rest, lease: Any, busy: bool) -> Rest | str:
        kinds = kinds_of(self._store, self._seal, rest)
        text = message(rest, kinds, notice.path or self._store.display_url, busy)
        data = {
            "id": lease.key, "done": rest.done, "failed": len(rest.failed), "blocked": rest.blocked, "left": rest.left,
            "seconds": rest.ended - rest.began if rest.began else 0.0, "errors": kinds, "notebook": notice.path,
            "store": self._store.display_url,
        }  # fmt: skip
        wrong = ""
        for pause in (*self._pauses, None):
            try:
                notices.send(notice, text, data)
                once.finish(self._store, lease, self._me.id, self._seal, self._clock)
                return rest
            except NotSent as refused:
                wrong = str(refused)
            if pause is not None:
                self._clock.sleep(pause)
        self._store.release([lease])  # another host may reach it
        return f"{wrong}; tried {plural(len(self._pauses) + 1, 'time')}"


def kinds_of(store: Store, seal: Seal, rest: Rest) -> dict[str, int]:
    """Return an error of each kind, with how many there are of that kind, from the most frequent."""
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with suppress(JugError):
        for outcome in SignedReader(store, seal).outcomes(rest.failed[:READ]):
            if isinstance(outcome, Failed):
                error = outcome.error.partition("\n")[0]
                found[examples.setdefault(pattern(error), error)] += 1
    return dict(found.most_common())


class Finding(NamedTuple):
    """What an `Onlooker` has seen. ``text`` is empty where too little time has passed for it to be reported."""

    id: str
    text: str


class Onlooker:
    """Sees once, from a process that is no supervisor, that what is requested has ended, stands still or lacks workers.

    What ended before counts as known, and so does work that took less than ``after`` seconds.
    """

    def __init__(self, store: Store, seal: Seal | None, python: str, where: str, after: float) -> None:
        self._store, self._seal, self._python, self._where, self._after = store, seal, python, where, after
        self._before = store.rest()
        self._since: float | None = None  # when nothing ran any more
        self._had = False  # workers, since this was made

    def look(self, now: float, starting: bool) -> Finding | None:
        """Return what came of it, once that is known. ``starting``: workers that the store doesn't know of yet."""
        busy = not self._store.idle(None, self._python)
        if busy and (starting or self._has_workers()):
            self._had, self._since = True, None
            return None
        self._since = now if self._since is None else self._since
        if now - self._since < QUIET:
            return None
        rest = self._store.rest(self._before.ended)
        news = rest.id != self._before.id and bool(rest.done or rest.failed)
        if not news and not (busy and self._had and rest.left):
            return None
        if rest.ended - rest.began < self._after:
            return Finding(rest.id, "")
        kinds = {} if self._seal is None else kinds_of(self._store, self._seal, rest)
        return Finding(rest.id, message(rest, kinds, self._where, busy))

    def _has_workers(self) -> bool:
        return any(alive and info.kind == "supervisor" for info, alive, _ in self._store.processes())


def name_of(store_id: str, target: str, rest: Rest, busy: bool) -> Key:
    """Return the name under which a message is claimed: nobody can tell the target from it."""
    text = f"{target}\0{rest.id}\0{busy}".encode("utf-8", "surrogateescape")
    return blake2b(text, digest_size=20, key=keyring.secret(store_id)).hexdigest()


def message(rest: Rest, kinds: Mapping[str, int], where: str, busy: bool) -> str:
    """Return one line that says what came of the work. ``busy``: it is not at its end, but no worker is left."""
    failed = f"{len(rest.failed):,} failed"
    if kinds:
        of = f" of {len(kinds):,} kinds" if len(kinds) > 1 else ""
        first, count = next(iter(kinds.items()))
        times, more = f" ×{count:,}" if count > 1 else "", ", …" if len(kinds) > 1 else ""
        failed += f"{of} ({elide(first, 80)}{times}{more})"
    parts = [f"{rest.done:,} done"] if rest.done or not rest.failed else []
    if rest.blocked:
        parts.insert(0, f"stopped: {rest.blocked:,} blocked" + (f" by {failed}" if rest.failed else ""))
    elif rest.failed:
        parts.append(failed)
    if rest.left:
        parts.insert(0, f"{'no workers are left' if busy else 'stopped'}: {rest.left:,} still to run")
    if rest.began:
        parts.append(duration(rest.ended - rest.began))
    return clean(f"jug_notebook: {', '.join(parts)} — {where}")


def unreported(store: EventLogStore, python: str) -> str:
    """Return what supervisors that were killed did not report, in a line; empty where there is nothing of that kind.

    That is told once: nobody is notified of what happens in the store after that, unless it is asked for again.
    """
    wanted = notices.notices(store.id)
    if not wanted or any(alive and info.kind in ("supervisor", "notifier") for info, alive, _ in store.processes()):
        return ""
    busy = not store.idle(None, python)
    lines = []
    for notice in wanted:
        rest = store.rest(notice.ended)
        news = rest.id != notice.seen and bool(rest.done or rest.failed or rest.left)
        if news and not once.is_done(store, name_of(store.id, notice.target, rest, busy)):
            lines.append(message(rest, {}, notice.path or store.display_url, busy))
    notices.forget(store.id)
    return f"workers were killed before they could notify anyone: {lines[0].partition(': ')[2]}" if lines else ""


def ask(store: Store, targets: Sequence[str], path: str = "", after: float = 0.0) -> tuple[Notice, ...]:
    """Have what happens in a store from now on reported to targets, as `notices.targets_in` returns them."""
    if not targets:
        return ()
    rest = store.rest()
    found = tuple(Notice(target, path, after, rest.id, rest.ended) for target in targets)
    notices.add(store.id, found)
    return found
