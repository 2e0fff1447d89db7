"""A store as a notebook or a script uses it: connect to one, and submit, watch, fetch and change its tasks.

`Session` holds the parts. After it: the session in use, and the verbs of ``jug_notebook`` as functions that act on it.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import ChangedInCell, NoSuchTask, StoreError, StoreGone, Unreachable
from jug_notebook.keys import advice, modules
from jug_notebook.model import BEAT, Key, State, Why
from jug_notebook.session.access import announce, new_store_text, open_access, resolve_url, running_file, use_mirror
from jug_notebook.session.calls import StoredCalls
from jug_notebook.session.maintenance import Cleaned, Copied, clean
from jug_notebook.session.mirroring import copy as copy_store
from jug_notebook.session.queries import Queries
from jug_notebook.session.rerun import Accepted, Accepting, Rerun
from jug_notebook.session.results import Results
from jug_notebook.session.submission import PENDING, CellReport, SubmissionQueue
from jug_notebook.session.targets import TargetResolver
from jug_notebook.session.workers import Workers
from jug_notebook.store import absolute, masked
from jug_notebook.store.keyring import GivenWarnings
from jug_notebook.store.mirror import is_mirror
from jug_notebook.store.signed import template
from jug_notebook.task import context
from jug_notebook.task.binding import misfit
from jug_notebook.task.context import FunctionVersion, PendingTask
from jug_notebook.task.handles import SHORT, Task, handle
from jug_notebook.task.values import TaskList

Part = TypeVar("Part")
P = ParamSpec("P")
R = TypeVar("R")


def _of(part: str, method: Callable[Concatenate[Part, P], R]) -> Callable[Concatenate[Session, P], R]:
    """A method of a session that is a method of one of its parts, with its signature and docstring."""

    signature = inspect.signature(method)

    @functools.wraps(method)
    def verb(self: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
        of = getattr(self, part)
        try:
            return method(of, *args, **kwargs)
        except TypeError:
            try:
                signature.bind(of, *args, **kwargs)
            except TypeError as error:
                raise misfit(method.__name__, signature, error) from None
            raise

    return verb


class Session:
    """A store in use by one notebook or script. `connect` makes it the current one, on which the verbs of
    ``jug_notebook`` act.

    Its parts: ``submissions`` (tasks on their way into the store), ``results`` (states and values), ``workers``,
    ``queries`` (status, tables, logs …) and ``reruns``. What they share is ``access``.

    ``folder``: the folder that counts as the notebook's; ``runner``: what calls functions that name none; ``together``:
    all processes that run this file count as one;
    ``headless``: `close` stops the workers that it started; ``read_only``: tasks get keys but are not submitted, and
    the session isn't listed in the store, as where only the store's reading key is here;
    ``accept_new``: the URL may hold another store than before; ``also``: see `connect`.
    Raises StoreError where the store can't be opened or its key isn't known.
    """

    def __init__(
        self,
        url: str | Path = "jugdata",
        *,
        notebook: str | Path | None = None,
        headless: bool = False,
        shared: str | None = None,
        clock: Clock = CLOCK,
        folder: Path | None = None,
        runner: str = "",
        read_only: bool = False,
        together: bool = False,
        accept_new: bool = False,
        also: str | None = None,
    ) -> None:
        file, beside, lasting = running_file(notebook)
        self.folder = folder or beside
        access = open_access(url, file, self.folder, shared, read_only, clock, accept_new, also)
        self.read_only = read_only = access.read_only
        access.store.notify = functools.partial(print, file=sys.stderr, flush=True)
        self.access = access = access if read_only else announce(access, lasting=lasting, together=together)
        self.notebook = access.notebook  #: who requests tasks: the notebook's path, or one run of it
        self.id = access.process.id  #: this session among the processes of the store
        self.url = masked(access.store.url)  #: the store's, without a password: see `url_with_password`
        self.display_url = access.display_url  #: the store's, for people: short, and without a password
        self.identity = access.store.id  #: names the store for good
        self.submissions = SubmissionQueue(access, runner)
        self.results = Results(
            access, self.submissions.flush_if_room, self.submissions.flush, self.submissions.store_again
        )
        self._targets = TargetResolver(access, self.submissions.flush_if_room)
        self.workers = Workers(access, self._targets, self.results, headless)
        self.queries = Queries(access, self._targets)
        #: cell tasks that wait to be confirmed: the tasks, where they run, and what is called then
        self.unconfirmed: dict[str, tuple[list[PendingTask], str, Callable[[], object]]] = {}
        self.calls = StoredCalls(access, self.submissions.flush_if_room)
        self.reruns = Rerun(access, self._targets, self.results)
        modules.notice(self.folder)
        self._ended = threading.Event()
        OPEN_SESSIONS.add(self)
        if read_only:
            return
        self._heartbeat = threading.Thread(
            target=_beat, args=(weakref.ref(self), self._ended), name="jug-session", daemon=True
        )
        self._heartbeat.start()

    def url_with_password(self) -> str:
        """Return the URL by which other processes open the store. It may hold a password: don't print it."""
        return self.access.store.url

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._ended.is_set()

    def __repr__(self) -> str:
        if self.closed:
            return f"<Session {self.display_url} · closed>"
        return f"<Session {self.display_url} · {self.results.workers()} workers · {self.notebook}>"

    def close(self) -> None:
        """Submit what is left, leave the store, and if headless stop the workers started here. May be called twice."""
        if self.closed:
            return
        try:
            self.submissions.close()
        finally:
            self.access.store.patience = 0.0  # nobody waits for a server only to close
            self._ended.set()
            OPEN_SESSIONS.discard(self)
            if context.current is self:
                context.set_current(None)
                advice.remember_by(None)
            if self.workers.headless:
                with suppress(StoreGone, Unreachable):  # then they end by themselves
                    for crew in self.workers.crews[self.workers.found :]:
                        crew.stop()
            if not self.read_only:
                if self._heartbeat is not threading.current_thread():
                    self._heartbeat.join()
                with suppress(StoreGone, Unreachable):
                    self.access.store.leave([self.id])
            self.access.store.close()

    def _beat_once(self) -> None:
        for info in (self.access.process, *(worker() for worker in self.access.in_process)):
            self.access.store.renew([info])
        self.submissions.hurry()

    # -- cells ---------------------------------------------------------------------------------------------------------

    begin_cell = _of("submissions", SubmissionQueue.begin_cell)

    def end_cell(self, success: bool = True) -> CellReport:
        """Do what `SubmissionQueue.end_cell` does, and count the workers that are alive or starting."""
        modules.notice(self.folder)
        report = self.submissions.end_cell(success)
        workers = self.results.workers() or int(self.access.starting()) if report.queued else 0
        return msgspec.structs.replace(report, workers=workers)

    def made(self) -> list[tuple[Task, tuple[Key, ...]]]:
        """Return the tasks that the running cell has made so far, each with the keys of what it needs."""
        return [(handle(self, version, key, needs, ""), needs) for key, version, needs in self.submissions.made()]

    # -- workers -------------------------------------------------------------------------------------------------------

    execute = _of("workers", Workers.execute)
    run_here = _of("workers", Workers.run_here)
    barrier = _of("workers", Workers.barrier)
    stop = _of("workers", Workers.stop)

    # -- queries -------------------------------------------------------------------------------------------------------

    status = _of("queries", Queries.status)
    status_of = _of("queries", Queries.status_of)
    tasks = _of("queries", Queries.tasks)
    graph = _of("queries", Queries.graph)
    history = _of("queries", Queries.history)
    timeline = _of("queries", Queries.timeline)
    profile = _of("queries", Queries.profile)
    log = _of("queries", Queries.log)
    why = _of("queries", Queries.why)
    verify = _of("reruns", Rerun.verify)
    history_frame = _of("calls", StoredCalls.history_frame)
    compare = _of("calls", StoredCalls.compare)

    def resolve(self, target: Any, namespace: Mapping[str, Any] | None = None, all: bool = False) -> TaskList:
        """Return the tasks that a target means, with ``all`` in the whole store.

        A target is a task or a container of tasks, a task function, a Python expression for one of these, a function's
        name, the beginning of a key (6 hex digits or more), or /regex/ over functions' names. Raises NoSuchTask, which
        suggests similar names.
        """
        return TaskList(self._handles(self._targets.keys(target, namespace, all)))

    def needs(self, key: Key) -> TaskList:
        """Return the tasks whose values a task needs."""
        self.submissions.flush()
        [spec] = self.access.signed.specs([key])
        return TaskList(() if spec is None else self._handles(spec.needs))

    def _handles(self, keys: Sequence[Key]) -> list[Task]:
        tasks = []
        for key, spec in zip(keys, self.access.signed.specs(keys), strict=True):
            if spec is None:
                raise NoSuchTask(f"no task {key[:SHORT]} in {self.display_url}")
            known = template(spec.template)
            version = FunctionVersion(known.name, None, known.code, spec.template, known.priority, known.nout)
            tasks.append(handle(self, version, key, spec.needs, spec.args_repr))
        return tasks

    # -- changes -------------------------------------------------------------------------------------------------------

    def confirm(self, name: str | None = None) -> int:
        """Start what ``%%jugtask NAME --ask`` has made: that cell, or all that wait. Return the number of tasks.

        Raises NoSuchTask if nothing waits.
        """
        names = list(self.unconfirmed) if name is None else [name]
        for one in names:
            if one not in self.unconfirmed:
                raise NoSuchTask(f"no cell task {one!r} waits to be confirmed; run its cell with --ask")
        if not names:
            raise NoSuchTask("nothing waits to be confirmed: %%jugtask NAME --ask makes a task that does")
        waiting = [self.unconfirmed.pop(one) for one in names]
        for pending_tasks, folder, confirmed in waiting:
            self.submissions.send(pending_tasks, folder)
            confirmed()
        return sum(len(pending_tasks) for pending_tasks, _, _ in waiting)

    def retry(self, target: Any = None, namespace: Mapping[str, Any] | None = None, *, all: bool = False) -> int:
        """Run failed tasks again: this notebook's (with ``all``, the store's), or a target's and those that block it.

        Return how many. Raises NoSuchTask.
        """
        self.submissions.flush()
        store = self.access.store
        if target is None:
            keys = [view.key for view in store.tasks(self.access.scope_of(all), state=State.FAILED)]
        else:
            meant = self._targets.keys(target, namespace)
            rows = zip(meant, store.states(meant), store.blocking_tasks(meant), strict=True)
            failed = (key if state is State.FAILED else blocking for key, state, blocking in rows)
            keys = list(dict.fromkeys(key for key in failed if key is not None))
        if keys:
            self.submissions.store_again()
        return len(store.invalidate(keys, Why.RETRY, self.access.user)) if keys else 0

    def invalidate(self, target: Any, namespace: Mapping[str, Any] | None = None, *, all: bool = False) -> int:
        """Declare values wrong: they, and what depends on them, will be computed again.

        Return how many of the target's tasks had a result or failure. A function's name means its tasks of this
        notebook, or with ``all`` of the store. Raises NoSuchTask.
        """
        keys = self._targets.keys(target, namespace, all)
        return len(self.access.store.invalidate(keys, Why.DIRECT, self.access.user)) if keys else 0

    def accept(
        self, target: Any, undo: bool = False, dry_run: bool = False, namespace: Mapping[str, Any] | None = None
    ) -> Accepted:
        """Accept results of a function's previous code for its unfinished tasks, after the function was edited.

        A task reuses the result of the same function with equal arguments, if what it needs has equal values. The store
        records who accepted the result, when, and which task it comes from. ``undo`` reverts that; ``dry_run`` only
        counts. Return an `Accepted`: how many results, from which tasks, and how many tasks found none. Raises
        NoSuchTask.
        """
        keys = self._targets.keys(target, namespace)
        accepting = Accepting(self.access.store, self.access.seal, self.access.user)
        return (accepting.undo if undo else accepting.accept)(keys, self.access.clock.now(), dry_run)

    def cancel(
        self,
        target: Any = None,
        namespace: Mapping[str, Any] | None = None,
        *,
        ended: bool = False,
        all: bool = False,
    ) -> int:
        """Cancel this notebook's requests for these tasks: pending tasks won't start; running ones go on to the end.

        With ``ended``, cancel what this user's ended runs (of scripts, consoles and headless notebooks) requested:
        these tasks, or all if there is no target. With ``all``, cancel the requests of all of this user's notebooks and
        runs. Return how many tasks were cancelled; tasks that run, have failed, or are still needed by another notebook
        or task don't count. Raises NoSuchTask.
        """
        store = self.access.store
        if target is None and not ended:
            raise NoSuchTask("cancel(target): name the tasks; or give ended=True, for what ended runs left pending")
        keys = None if target is None else dict.fromkeys(self._targets.keys(target, namespace, all))
        origins = self.access.ended_runs() if ended else [self.access.origin()]
        if all:
            origins = [origin for origin in store.origins() if origin.user == self.access.user]
        before = {} if keys is None else dict(zip(keys, store.states(list(keys)), strict=True))
        for origin in origins:
            asked = store.requested(origin) if ended or all else keys or []
            chosen = [key for key in asked if keys is None or key in keys]
            states = dict(zip(chosen, store.states(chosen), strict=True))
            if unwanted := [key for key, state in states.items() if state in (*PENDING, State.RUNNING, State.FAILED)]:
                store.request(unwanted, origin, False)
            before = states | before
        pending = [key for key, state in before.items() if state in PENDING]
        return store.states(pending).count(State.CANCELLED)

    def withdraw(self, keys: Sequence[Key]) -> None:
        """Withdraw this notebook's requests for these tasks, finished ones too: `cleanup` may delete them."""
        self.submissions.flush()
        self.access.store.request(keys, self.access.origin(), False)

    def cleanup(
        self,
        older_than: float | None = None,
        dry_run: bool = False,
        target: Any = None,
        namespace: Mapping[str, Any] | None = None,
    ) -> Cleaned:
        """Delete tasks that no notebook requests, with the data that only they had stored.

        Requested tasks stay, with all that they need and all whose results they reuse; so do running ones.
        ``older_than``: only tasks made and run more than this many seconds ago; ``target``: only these; ``dry_run``:
        only report. Return a `Cleaned`: tasks and bytes by function, blobs, and bytes in all. Raises NoSuchTask.
        """
        among = None if target is None else set(self._targets.keys(target, namespace))
        self.submissions.flush()
        bundles = self.submissions.bundles()
        return clean(self.access.store, self.access.clock.now(), among, older_than, bundles, dry_run)


def _beat(session: weakref.ref[Session], ended: threading.Event) -> None:
    """Send heartbeats for a session until it is closed or collected, and submit tasks that a long cell left pending."""
    while not ended.wait(BEAT):
        alive = session()
        if alive is None:
            return
        try:
            alive._beat_once()
        except (StoreError, OSError):
            continue  # the next call that uses the store raises it
        del alive


OPEN_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


# -- the session in use ------------------------------------------------------------------------------------------------

_current: Session | None = None
on_connect: list[Callable[[Session], None]] = []  #: called with each session that `connect` returns


def connect(
    url: str | Path = "jugdata",
    *,
    shared: str | None = None,
    notebook: str | Path | None = None,
    headless: bool = False,
    accept_new: bool = False,
    also: str | None = None,
) -> Session:
    """Use the store at ``url``: a folder, made if it's new, ``redis://…`` or ``memory:``.

    ``shared="group"``: all members of the group that the folder belongs to can use it, each with their own notebooks
    and workers. They can run code as each other.

    Relative folders start at the notebook's folder. Tasks that you make from now on go there; tasks of another store
    still read their results from it. Connecting twice returns the same session, unless the store was removed in the
    meantime: then a new store is made, with a warning. If the URL held another store before, connecting is refused,
    unless ``accept_new``. If this makes a store, a line says so, and names one beside it with a similar name.

    ``also``: a mirror, "s3://bucket/prefix" or another URL of fsspec's, to which `copy` has copied results. Those that
    this store lacks are taken from there, with the key of the store that was copied. This account uses it for the store
    from now on; "none" forgets it. Raises StoreError.
    """
    before = _current
    session = switch(url, shared, notebook, headless, accept_new, also)
    if session.access.is_new and session is not before:
        text = new_store_text(session.access)
        # under a cell, what is on stderr looks like an error
        print(text) if on_connect else print(f"jug_notebook: {text}", file=sys.stderr)
    return session


def switch(
    url: str | Path,
    shared: str | None = None,
    notebook: str | Path | None = None,
    headless: bool = False,
    accept_new: bool = False,
    also: str | None = None,
) -> Session:
    """Do what `connect` does, without a word of a new store: nobody has given its name."""
    global _current
    path, folder, _ = running_file(notebook)
    before = None if _current is None or _close_if_gone(_current) else _current
    if before is not None and not before.closed:
        before.submissions.flush()
        same = before.url_with_password() == absolute(resolve_url(url, folder)) and before.access.file == path
        if same and shared is None:
            before.workers.headless = before.workers.headless or headless
            use_mirror(before.access.store, also, folder, accept_new)
            return _use(before)
    _current = Session(url, notebook=notebook, headless=headless, shared=shared, accept_new=accept_new, also=also)
    return _use(_current)


def _use(session: Session) -> Session:
    context.set_current(session)
    lasting = not session.url.startswith("memory:")
    advice.remember_by(GivenWarnings(session.identity, session.access.file) if lasting else None)
    for call in on_connect:
        call(session)
    return session


def current() -> Session:
    """Return the session in use; if there is none, connect to ``$JUG_STORE``, or ``jugdata``. Raises StoreError."""
    if _current is None or _current.closed:
        return switch(os.environ.get("JUG_STORE") or "jugdata")
    return _current


def using() -> Session | None:
    """Return the session in use; None if there is none."""
    return None if _current is None or _current.closed else _current


def _close_if_gone(session: Session) -> bool:
    """Return True if there is another store, or none, where the session's was; the session is closed then."""
    if session.closed:
        return False
    store = session.access.store
    patience, store.patience = store.patience, 0.0  # who connects to another store doesn't wait for this one's server
    try:
        store.renew([])
    except Unreachable:
        return False
    except StoreGone:
        with suppress(StoreError, OSError, ChangedInCell):  # what was left to submit is lost with the store
            session.close()
        return True
    finally:
        store.patience = patience
    return False


@atexit.register
def _close_all() -> None:
    for session in list(OPEN_SESSIONS):
        try:
            session.close()
        except (StoreError, OSError, ChangedInCell) as error:
            print(f"jug_notebook: the session of {session.display_url} could not be closed: {error}", file=sys.stderr)


context.on_first_need(current)


def _verb(method: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Return a function that calls the session in use, with the method's signature (but for ``self``) and docstring."""

    @functools.wraps(method)
    def verb(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(current(), *args, **kwargs)

    signature = inspect.signature(method)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    verb.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    verb.__module__, verb.__qualname__ = "jug_notebook", method.__name__
    return verb


execute = _verb(Session.execute)
barrier = _verb(Session.barrier)
stop = _verb(Session.stop)

status = _verb(Session.status)
tasks = _verb(Session.tasks)
graph = _verb(Session.graph)
history = _verb(Session.history)
timeline = _verb(Session.timeline)
profile = _verb(Session.profile)
log = _verb(Session.log)
why = _verb(Session.why)
verify = _verb(Session.verify)
compare = _verb(Session.compare)
confirm = _verb(Session.confirm)
resolve = _verb(Session.resolve)

retry = _verb(Session.retry)
invalidate = _verb(Session.invalidate)
accept = _verb(Session.accept)
cancel = _verb(Session.cancel)
cleanup = _verb(Session.cleanup)


def copy(src: str | Path | Session, dst: str | Path | Session) -> Copied:
    """Copy all of a store into another, of any kind; what is there already is not copied again.

    A mirror, "s3://bucket/prefix" or another URL of fsspec's, gets only the results, which can be copied from there
    into a store. Relative paths are taken from the notebook's folder. Return a `Copied`: how many tasks, results,
    failures, blobs and bytes were copied. Raises StoreError.
    """
    session = using()
    folder = Path.cwd() if session is None else session.folder
    if session is not None:
        session.submissions.flush()
    urls = []
    for end in (src, dst):
        if isinstance(end, Session):
            end.submissions.flush()
            urls.append(end.url_with_password())
        else:
            urls.append(str(end) if is_mirror(str(end)) else resolve_url(end, folder))
    return copy_store(urls[0], urls[1])


__all__ = ["CellReport", "Session", "connect", "current", "resolve_url", "switch", "using"]
