"""`JugMagics`: settings (%config JugMagics …), the session, %%jugtask, %jug_store, and what the other magics share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class
from traitlets import Bool, Enum, Float, Int, List, TraitError, Unicode, observe, validate

from jug_notebook import render
from jug_notebook.errors import JugError, LaunchError, StoreError, StoreGone
from jug_notebook.keys import advice
from jug_notebook.keys.callables import signature
from jug_notebook.model import OPEN_STATES, Snapshot
from jug_notebook.render import plural
from jug_notebook.render.display import Status
from jug_notebook.session import Session, connect, current, key_check, switch
from jug_notebook.session.access import running_file, unverified_picture
from jug_notebook.task.cell import CellTask
from jug_notebook.task.sweeps import SweepPlot
from jug_notebook.worker import number_of_workers
from kernel_ext import cells
from kernel_ext.cells import Record
from kernel_ext.display import WaitLine, label, play, promise, replay, show, wanted, widgets_work
from kernel_ext.frontend import beside_cells, headless, in_subshell, is_kernel, notebook_path
from kernel_ext.live import Drawing, Live, Plot
from kernel_ext.options import (
    attempts,
    cell_magic,
    limits,
    line_magic,
    names,
    option,
    options,
    packages,
    read,
    resources,
    seconds,
)

START = "%jug_execute -n 4"
NO_WORKERS = f"no workers running. Start some: {START}"


@dataclass
class Memory:
    """What a shell keeps while the extension is unloaded and loaded again."""

    records: dict[str, Record] = field(default_factory=dict)  #: of cell tasks, by name
    store: str = ""  #: chosen by ``%jug_store``


class Settings(Magics):
    """The settings of `JugMagics`."""

    store = Unicode("", help="the store to use: a folder or its URL (default: $JUG_STORE, else 'jugdata')").tag(
        config=True
    )
    also = Unicode("", help="a mirror (s3://…) that supplies results which the store lacks").tag(config=True)
    autostart = Int(0, help="workers to start when tasks are queued and none is running; 0: only print a hint").tag(
        config=True
    )
    wait_for_workers = Int(
        0,
        min=0,
        help="how many seconds to wait for results while no worker is running, as a queue may start them late",
    ).tag(config=True)
    notify = List(Unicode(), help="where workers send a line when all is done: see %jug_execute --notify").tag(
        config=True
    )
    notify_after = Float(30.0, min=0.0, help="JugMagics.notify says nothing about work that took fewer seconds").tag(
        config=True
    )
    check_keys = Bool(
        False, help="run each cell that makes tasks again in other processes, and report keys that differ there"
    ).tag(config=True)
    advice = Bool(True, help="warn once where a key may miss something that affects a result (jn.KeyAdvice)").tag(
        config=True
    )
    display = Enum(
        ["", "text", "html", "widget"],
        "",
        help="how status and tasks are shown (default: $JUG_NOTEBOOK_DISPLAY, else widgets where they work)",
    ).tag(config=True)


@magics_class
class JugMagics(Settings):
    """Function calls become tasks, workers run them in the background, results outlive every process."""

    shell: Any

    def __init__(self, shell: Any, live: Live, memory: Memory) -> None:
        self.ready = False  # the configuration is read before there is anything to act on
        super().__init__(shell)
        self.live = live
        self.memory = memory
        self.cell = ""  #: the name of the running cell
        self.cell_lasts = False  #: is that its name in later runs, too?
        self.typed: str | None = None  #: its text
        self.in_cell = False
        self._ran_here = 0  # tasks of the running cell that ran in this kernel
        #: returns the cells that the running one depends on, and itself, as plain Python; or why they aren't known
        self.cells_again: Callable[[], tuple[Sequence[key_check.Cell], str]] = lambda: ((), key_check.UNKNOWN)
        self._unshown: dict[str, str] = {}  # names of the cell tasks whose output is still to be shown, by key
        self._opened: dict[Session, None] = {}  # in order
        self.ready = True

    # -- the session ---------------------------------------------------------------------------------------------------

    def connect(
        self, url: str, accept_new: bool = False, also: str | None = None, how: Callable[..., Session] = connect
    ) -> Session:
        """Use the store at ``url``, for the rest of this cell too; ``accept_new`` and ``also``: see `connect`."""
        also, notebook = also or self.also or None, notebook_path(self.shell)
        session = how(url, notebook=notebook, headless=headless(self.shell), accept_new=accept_new, also=also)
        self._opened[session] = None
        return session

    def adopt(self, session: Session) -> None:
        """From here on, also in the cell that runs, tasks go to this session, whoever connected it."""
        before = self.attached()
        if before is session:
            return
        self._session = session
        if before is not None and self.in_cell:
            with suppress(StoreGone):  # what the cell has made is lost with its store
                before.end_cell()
        session.workers.headless = session.workers.headless or headless(self.shell)
        session.submissions.label_of = self.cell_of
        session.submissions.beside = in_subshell
        if is_kernel(self.shell):
            session.results.progress = lambda: WaitLine() if self._watched and not self.as_text else None
        if self.in_cell:
            session.begin_cell(self.cell, self.cell_lasts)
        session.submissions.check_keys(self.check_keys)
        session.results.wait_for_workers = session.results.wait_for_workers or float(self.wait_for_workers)

    def cell_of(self, file: str) -> str | None:
        """Return the label of the cell whose code has that file name: "Cell In[3]"; None for other files."""
        known = self.shell.compile.format_code_name(file)
        return None if known is None else " ".join(known)

    def attached(self) -> Session | None:
        """Return the session in use, or None: this opens none."""
        return self._session if self._session is not None and not self._session.closed else None

    _session: Session | None = None

    @property
    def session(self) -> Session:
        """The session in use: the user's own, where they have connected to another store. Raises StoreError."""
        if self.attached() is None:
            self._session = self.connect(self._url, how=switch)
        self._session = current()
        self._session.workers.headless = self._session.workers.headless or headless(self.shell)
        return self._session

    @property
    def _url(self) -> str:
        return self.memory.store or self.store or os.environ.get("JUG_STORE") or "jugdata"

    def unverified(self) -> Status | None:
        """Return the status of the store that would be in use, if its key isn't known here; else None."""
        picture = unverified_picture(self._url, running_file(notebook_path(self.shell))[1])
        return None if picture is None else Status(picture)

    def open(self) -> None:
        """Print which store is used; where it can't be, why, and go on: the user may give another."""
        self.in_cell = True
        try:
            session = self.session
            print(f"jug_notebook: {_about(session, self.as_text)}; {START} starts workers")
            if missed := session.workers.unreported():
                print(f"jug_notebook: {missed}")
        except (StoreError, OSError) as error:
            print(f"jug_notebook: {error}. Give another store: %jug_store URL")

    def close(self) -> None:
        """Close the sessions. Workers go on, except those of a headless kernel. What goes wrong is only printed."""
        for session in self._opened:
            try:
                session.close()
            except (JugError, OSError) as error:
                print(f"jug_notebook: {error}", file=sys.stderr)

    @observe("store", "also")
    def _store_changed(self, change: Any) -> None:
        if self.ready:
            self.memory.store = "" if change.name == "store" else self.memory.store
            self._session = self.connect(self._url)

    @observe("wait_for_workers")
    def _wait_for_workers_changed(self, change: Any) -> None:
        if self.ready and self.attached() is not None:
            self.session.results.wait_for_workers = float(self.wait_for_workers)

    @observe("advice")
    def _advice_changed(self, change: Any) -> None:
        advice.on = change.new

    @observe("check_keys")
    def _check_keys_changed(self, change: Any) -> None:
        if self.ready and self.attached() is not None:
            self.session.submissions.check_keys(self.check_keys)

    @validate("autostart")
    def _autostart_valid(self, proposal: Any) -> int:
        try:
            return number_of_workers("JugMagics.autostart", proposal.value, least=0)
        except LaunchError as error:
            raise TraitError(str(error)) from None

    @property
    def as_text(self) -> bool:
        return wanted(self.display) == "text"

    # -- around a cell -------------------------------------------------------------------------------------------------

    def begin_cell(self, cell: str, typed: str, lasting: bool) -> None:
        """A cell starts to run."""
        self.cell, self.typed, self.in_cell, self.cell_lasts = cell, typed, True, lasting
        self.live.forget(cell)
        session = self.attached()
        if session is not None:
            self.session.begin_cell(cell, lasting)
            self.session.submissions.check_keys(self.check_keys)

    def end_cell(self, success: bool) -> None:
        """The cell has ended: submit its tasks, and print what the user should know. Raises ChangedInCell."""
        self.in_cell = False
        if self.attached() is None:
            return
        report = self.session.end_cell(success)
        for message in key_check.unstable_keys(self.session, self.cells_again):
            print(f"check_keys: {message}", file=sys.stderr)
        queued, self._ran_here = max(0, report.queued - self._ran_here), 0
        if report.cancelled:
            print(f"cancelled {plural(report.cancelled, 'pending task')} of the previous version")
        if report.failed and not self.as_text:
            print(self.session.results.earlier_failures(report.failed))
        if queued and not report.workers and self.autostart:
            self.session.execute(self.autostart)
            print(f"{plural(queued)} queued; started {plural(self.autostart, 'worker')}")
        elif queued and not report.workers:
            known = self.session.queries.forecast(report, timed=False) if queued == report.queued else ""
            print(f"{known}; {NO_WORKERS}" if known else f"{plural(queued)} queued, {NO_WORKERS}")
        elif queued and not self.as_text and (line := self.session.queries.forecast(report)):
            print(line)
        for line in self.session.queries.other_numbers(report):
            print(line)
        if note := self.session.workers.headless_note():
            print(note)

    # -- making tasks --------------------------------------------------------------------------------------------------

    @cell_magic
    @options()
    @option("name", nargs="?", help="with a name, the whole cell is one task")
    @option("--version", metavar="V", help="a tag that stands for the code in the key: only a new tag makes new tasks")
    @option(
        "--ignore-global", action="append", default=[], metavar="NAME",
        help="a global that doesn't affect the results; repeatable",
    )  # fmt: skip
    @option(
        "--env", type=names, action="extend", default=[], metavar="NAMES",
        help="environment variables to pass to workers, as part of the key: A,B",
    )  # fmt: skip
    @option(
        "--secret-env", type=names, action="extend", default=[], metavar="NAMES",
        help="environment variables that workers must have themselves; their values are never stored",
    )  # fmt: skip
    @option(
        "--pin", type=packages, action="extend", default=[], metavar="NAMES",
        help="packages whose installed versions are part of the key: scikit-learn,numpy",
    )  # fmt: skip
    @option(
        "--retries", type=attempts, default=0, metavar="N", help="further attempts after an exception (0)"
    )  # fmt: skip
    @option("--timeout", type=seconds, metavar="S", help="seconds that an attempt may take")
    @option(
        "--resources", type=resources, default={}, metavar="NAME=N,…",
        help="what a host must have free for a run: gpu=1,mem=8G,license=2",
    )  # fmt: skip
    @option(
        "--limit", type=limits, action="extend", default=[], metavar="NAME:N",
        help="at most 4 tasks with this limit at a time: db:4; or 60 started a minute: api:60/min; repeatable",
    )  # fmt: skip
    @option(
        "-i", "--inputs", type=names, action="extend", default=[], metavar="NAMES",
        help="inputs that the code doesn't name: a,b (with NAME)",
    )  # fmt: skip
    @option(
        "-o", "--outputs", type=names, action="extend", default=[], metavar="NAMES",
        help="outputs that the cell must set, or inputs that it changes in place: a,b (with NAME)",
    )  # fmt: skip
    @option(
        "--only", type=names, action="extend", default=[], metavar="NAMES",
        help="functions that become tasks, the others stay plain: fit,clean (without NAME)",
    )  # fmt: skip
    @option("--ask", action="store_true", help="say what would run and for how long, then wait for a click (with NAME)")
    @option("--now", action="store_true", help="run it in this kernel, at once, unless it is stored (with NAME)")
    @option("--bash", action="store_true", help="the cell is a bash script; its output is the value (with NAME)")
    def jugtask(self, line: str, cell: str) -> None:
        """Turn a cell's functions into task functions, or with a name the whole cell into one task.

        Without a name: the cell's public functions become task functions. Calling one makes a task, which workers run.
        Functions whose names begin with _ stay plain; with --only fit,clean, all others do. The cell may hold imports,
        def, class and assignments:

            %%jugtask
            def is_prime(n):
                return all(n % k for k in range(2, n))

            primes = [is_prime(n) for n in range(2, 100)]      # in another cell
            primes[0].result()                                 # waits; is_prime.run(7) computes in this kernel

        With a name: the cell is one task. The names that it reads from outside are its inputs, which may be tasks; each
        public name that it sets becomes a part of its result, to wait for or to pass to other tasks:

            %%jugtask statistics
            counted = sum(found)
            share = counted / len(found)

            statistics.result(), share.result()                # in another cell

        The key of a task covers the code and the inputs, so running a cell again computes nothing: what the task
        printed and displayed is shown again. !commands, %magics and await are fine in such a cell.

            %%jugtask lines --bash -i path
            wc -l < "$path"                                    # ends with the first command that fails
        """
        asked = read(self.jugtask, line)
        _refuse_mixed_options(asked)
        how = _task_options(asked)
        session = self.session  # raises where the store can't be used, before anything runs
        record = self.memory.records.setdefault(asked.name or "", Record())
        if asked.bash:
            made = cells.make_script(self.shell, cell, asked.name, record, asked.inputs, **how)
            self._made(session, asked.name, made, asked.now)
            return
        text = cells.read(self.shell, cell, self.typed)
        if asked.name is None:
            print(_introduced(*cells.define(self.shell, text, asked.only, **how)))
            return
        with cells.held(session, asked.ask) as held:
            made = cells.make_task(self.shell, text, asked.name, record, asked.inputs, asked.outputs, **how)
        name, task = asked.name, made.task
        if not cells.asks(session, name, task, held, lambda: self._await_output(session, name, task)):
            self._made(session, asked.name, made, asked.now)

    def _made(self, session: Session, name: str, made: CellTask, now: bool) -> None:
        """Print what the cell has become, and show its output: at once where it is stored, else when it has run."""
        takes = f" of {', '.join(made.inputs)}" if made.inputs else ""
        gives = f" with output{'s' * (len(made.outputs) > 1)} {', '.join(made.outputs)}" if made.outputs else ""
        about, task = f"{name} is a task{takes}{gives}", made.task
        if session.results.ended_before(task.key):
            print(about)
            replay(session, task, self.as_text)
        elif now:
            print(f"{about}; it runs here")
            self._ran_here += 1
            session.run_here(task)
            if session.results.provenance(task.key)["run"]["pid"] != os.getpid():  # a worker was quicker
                play(session.results.outputs(task.key))
            task.result()
        else:
            print(f"{about}; {name}.result() waits for it, {START} starts workers")
            self._await_output(session, name, task)

    def _await_output(self, session: Session, name: str, task: Any) -> None:
        """Show the task's output once it has run."""
        if self._watched and not self.as_text:
            self.live.until(promise(session, task))
        else:
            self._unshown[task.key] = name

    @line_magic
    @options()
    @option("url", nargs="?", help="a folder (made if it is new), redis://HOST/DB?project=NAME, or memory:")
    @option("--accept-new-store", action="store_true", help="connect even if another store was at that URL before")
    @option(
        "--also", metavar="URL", help="from now on, take results that the store lacks from this mirror; none: no longer"
    )
    def jug_store(self, line: str) -> None:
        """Use another store, or show which one is in use.

        %jug_store                    which store is this?
        %jug_store results            a folder, relative to the notebook's folder
        %jug_store redis://host:6379/0?project=study      a project in a Redis server
        %jug_store memory:            for trying things out: it ends with the kernel
        %jug_store jugdata --also s3://bucket/prefix      and take what it lacks from there: see jug-notebook copy

        Tasks that you make from now on go there; tasks of the previous store still read their results from it.
        """
        asked = read(self.jug_store, line)
        url = asked.url or (self._url if asked.accept_new_store or asked.also else None)
        if url is not None:
            before = self.attached()
            self._session = self.connect(url, asked.accept_new_store, asked.also)
            self.memory.store = url
            if self._session is not before and self._session.access.is_new and not asked.also:
                return  # that it was made is told
        print(_about(self.session, self.as_text))

    # -- what the other magics share -----------------------------------------------------------------------------------

    def no_workers_hint(self) -> str:
        """Return what follows a message about tasks to run: how to start workers, where none runs."""
        session = self.session
        if any(view.alive for view in session.status(all=True).workers) or any(
            crew.is_starting for crew in session.workers.crews
        ):
            return ""
        return f"; {NO_WORKERS}"

    def show_ended(self, session: Session, keys: Sequence[str] | None) -> None:
        """Show the output of cell tasks that could not be shown under their cells: of these tasks, or of all."""
        self.live.run_errands()
        unseen = [key for key in self._unshown if keys is None or key in keys]
        for key, state in zip(unseen, session.results.states(unseen), strict=True):
            if state not in OPEN_STATES:
                name, outputs = self._unshown.pop(key), session.results.outputs(key)
                print(f"── {name}\n" if outputs else "", end="")
                play(outputs)

    @property
    def _watched(self) -> bool:
        """Is there a front end that redraws, with a user in front of it?"""
        return is_kernel(self.shell) and not headless(self.shell)

    def picture(self, session: Session, *, all: bool, message: str = "") -> None:
        """Show the status below ``message``: as a live widget where these work, as HTML that is redrawn, or as text."""
        snapshot: Snapshot = session.queries.glance(all)
        watched = self._watched
        chosen = wanted(self.display)

        def draw(snapshot: Snapshot) -> dict[str, Any]:
            line = message if snapshot.alive or snapshot.starting else ""  # it tells of workers
            above = f'<div style="margin-bottom:.4em">{escape(line)}</div>' if line else ""
            return {
                "text/plain": (f"{line}\n\n" if line else "") + render.text(snapshot),
                "text/html": above + render.html(snapshot),
            }

        if chosen == "widget" or (watched and chosen != "html" and widgets_work()):
            from kernel_ext.widgets import Panel

            panel = Panel(session, all, snapshot, message, waiting=self._presses_wait)
            still = show(panel.still(draw(snapshot), first=True), display_id=True)
            show({**panel.box._repr_mimebundle_(), "text/plain": ""})
            panel.kept = lambda snapshot: still.update(panel.still(draw(snapshot)), raw=True)
            self.live.follow(self.cell, snapshot, panel)
            return
        handle = show(draw(snapshot), display_id=watched)
        if handle is not None:
            self.live.follow(self.cell, snapshot, Drawing(session, all, handle, draw))

    def show_crew(self, crew: Any) -> None:
        """Show a crew of workers as the live status of its store, or as its repr where that must be text."""
        if self.as_text or crew.plan:
            print(repr(crew))
            return
        session = next(
            (known for known in self._opened if crew in known.workers.crews and not known.closed), self.session
        )
        await_first_worker(crew)
        self.picture(session, all=False)

    def show_plot(self, plot: SweepPlot) -> None:
        """Show a plot, which follows its tasks while they run, or its repr where that must be text."""
        print(repr(plot)) if self.as_text else _follow_plot(plot, self.live, self.cell, self._watched)

    def _presses_wait(self) -> bool:
        """Do button presses wait until the running cell has ended?"""
        return self.in_cell and not beside_cells(self.shell)


def _follow_plot(plot: SweepPlot, live: Live, cell: str, watched: bool) -> None:
    """Show a plot, and redraw it while its tasks run, where somebody watches."""

    def draw(_: Snapshot | None = None) -> dict[str, Any]:
        line, picture = plot.forms()
        return {"text/plain": line, "image/png": b64encode(picture).decode()}

    session = next((task.task._session for task in plot.tasks), None)
    handle = show(draw(), display_id=watched)
    if handle is not None and isinstance(session, Session):
        live.follow(cell, session.queries.glance(False), Plot(session, handle, draw))


def await_first_worker(crew: Any) -> None:
    """Wait for a worker, 0.2 s at most, so that the first picture doesn't show a store without workers."""
    seen = crew.store.watch(-1, 0.0)
    for _ in range(6):
        if crew.alive():
            return
        seen = crew.store.watch(seen, 0.03)


def _introduced(made: Sequence[Any], plain: Sequence[str]) -> str:
    """Return what is printed under a cell of definitions: which functions are tasks, and how to call and run them.

    ``plain``: names of functions that are none.
    """
    if not made:
        return "no public functions here, so no tasks (functions whose names begin with _ stay plain)"
    first = made[0]
    parameters = list(signature(first.__jug_function__).parameters)
    arguments = ", ".join(parameters[:3]) + (", …" if len(parameters) > 3 else "")
    names = ", ".join(dict.fromkeys(re.sub(r".*\.", "", function.__name__) for function in made))
    are = "is a task: call it" if len(made) == 1 else "are tasks: call them"
    are += f", or {first.__name__}.map(…)"
    stay = f"; {', '.join(plain)} {'stays' if len(plain) == 1 else 'stay'} plain" if plain else ""
    return f"{names} {are}, then {START}; {first.__name__}.run({arguments}) runs here{stay}"


def _about(session: Session, as_text: bool) -> str:
    """Return which store a session uses, how many tasks it has, and where else it looks for results."""
    also = session.access.store.also
    more = "" if also is None else f"; {also.about}"
    where = label(session.display_url, session.folder, as_text)
    return f"{where}, {plural(session.status(all=True).total)}{more}"


def _task_options(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the tasks that a cell makes, as `task` takes them."""
    how = {"version": asked.version, "retries": asked.retries, "timeout": asked.timeout, "resources": asked.resources}
    several = {
        "ignore_globals": asked.ignore_global,
        "env": asked.env,
        "limit": asked.limit,
        "secret_env": asked.secret_env,
        "pin": asked.pin,
    }
    return how | {name: tuple(given) for name, given in several.items()}


def _refuse_mixed_options(asked: argparse.Namespace) -> None:
    """Raises UsageError for options of ``%%jugtask`` that don't go together."""
    if asked.name is None and (asked.inputs or asked.outputs):
        raise UsageError("%%jugtask: -i and -o are for a cell that is one task: %%jugtask NAME -o …")
    if asked.name is not None and asked.only:
        raise UsageError("%%jugtask: --only chooses among the functions of a cell, so it goes without NAME")
    if asked.ask and (asked.now or asked.bash):
        raise UsageError("%%jugtask: --ask goes without --now and --bash")
    if asked.name is None and (asked.now or asked.bash or asked.ask):
        option = "--bash" if asked.bash else "--now" if asked.now else "--ask"
        raise UsageError(f"%%jugtask: {option} is for a cell that is one task: %%jugtask NAME {option}")
    if asked.bash and asked.outputs:
        raise UsageError("%%jugtask: a script has no -o; what it prints is the value of the task")
