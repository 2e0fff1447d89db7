"""The magics: each reads its line, asks the session, and says in a line or a picture what came of it."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class
from traitlets import Bool, Enum, Int, TraitError, Unicode, observe, validate

from jug_notebook import render
from jug_notebook.errors import NoSuchTask, StoreError
from jug_notebook.model import OPEN_STATES, Snapshot, State
from jug_notebook.render import plural
from jug_notebook.session import Session, connect, current
from jug_notebook.task.cell import CellTask
from jug_notebook.worker import options_in
from kernel_ext import cells, launching
from kernel_ext.cells import Record
from kernel_ext.display import (
    label,
    play,
    promise,
    replay,
    show,
    steady_history,
    steady_log,
    steady_status,
    steady_tasks,
    tally,
    wanted,
    widgets_work,
)
from kernel_ext.frontend import beside_cells, headless, is_kernel, notebook_path
from kernel_ext.launching import elsewhere
from kernel_ext.live import Drawing, Live, watch
from kernel_ext.options import (
    age,
    attempts,
    cell_magic,
    count,
    joined,
    line_magic,
    names,
    option,
    options,
    read,
    seconds,
    sign,
)

START = "%jug_execute -n 4"
TARGET = "tasks: an expression, a function's name, the beginning of a key, or /regex/ over function names"


@dataclass
class Memory:
    """What a shell remembers when the extension is loaded again."""

    records: dict[str, Record] = field(default_factory=dict)  #: of cell tasks, by name
    store: str = ""  #: chosen by ``%jug_store``


@magics_class
class JugMagics(Magics):
    """Calls of functions become tasks, workers run them in the background, results outlive every process."""

    shell: Any

    store = Unicode("", help="the store to use: a folder or its URL (default: $JUG_STORE, else 'jugdata')").tag(
        config=True
    )
    autostart = Int(0, help="start so many workers where tasks are queued and none lives; 0: only say so").tag(
        config=True
    )
    check_keys = Bool(
        False, help="name some calls of each cell again in a second process, and say what has another key there"
    ).tag(config=True)
    display = Enum(
        ["", "text", "html", "widget"],
        "",
        help="how things are shown (default: $JUG_NOTEBOOK_DISPLAY, else widgets where they work)",
    ).tag(config=True)

    def __init__(self, shell: Any, live: Live, memory: Memory) -> None:
        self.ready = False  # the configuration is read before there is anything to act on
        super().__init__(shell)
        self.live = live
        self.memory = memory
        self.cell = ""  #: the cell that runs
        self.typed: str | None = None  #: its text
        self.in_cell = False
        self._asked: dict[str, int] = {}
        self._ran_here = 0  # tasks of the cell that runs
        self._unshown: dict[str, str] = {}  # cell tasks whose output nobody has seen yet, by key
        self._opened: list[Session] = []
        self.ready = True

    # -- the session ---------------------------------------------------------------------------------------------------

    def connect(self, url: str) -> Session:
        """Use the store at ``url``, for the rest of this cell too."""
        before = self.attached()
        if before is not None and self.in_cell:
            before.end_cell()
        session = connect(url, notebook=notebook_path(self.shell), headless=headless(self.shell))
        session.submissions.label_of = self.cell_of
        if self.in_cell:
            session.begin_cell(self.cell)
        session.submissions.check_keys(self.check_keys)
        self._opened.append(session)
        return session

    def cell_of(self, file: str) -> str | None:
        """What people know the code in a file of that name by: "Cell In[3]"."""
        known = self.shell.compile.format_code_name(file)
        return None if known is None else " ".join(known)

    def attached(self) -> Session | None:
        """The session in use, where there is one; asking makes none."""
        return self._session if (self._session is not None and not self._session.closed) else None

    _session: Session | None = None

    @property
    def session(self) -> Session:
        """The session in use. The user may have connected by hand: what is current counts. Raises StoreError."""
        if self.attached() is None:
            self._session = self.connect(self._url)
        self._session = current()
        self._session.workers.headless = self._session.workers.headless or headless(self.shell)
        return self._session

    @property
    def _url(self) -> str:
        return self.memory.store or self.store or os.environ.get("JUG_STORE") or "jugdata"

    def open(self) -> None:
        """Say which store is used; where it can't be, why, and go on: another may be given."""
        self.in_cell = True
        try:
            session = self.session
            print(f"jug_notebook: {self._about(session)}; {START} starts workers")
        except StoreError as error:
            print(f"jug_notebook: {error}. Give another store: %jug_store URL")

    def leave(self) -> None:
        """Leave the stores: hand in what is left, stop beating. Workers go on, unless nobody will be there."""
        for session in self._opened:
            session.close()

    def _about(self, session: Session) -> str:
        return f"{label(session.display_url, session.folder, self.as_text)}, {plural(session.status(all=True).total)}"

    @observe("store")
    def _store_changed(self, change: Any) -> None:
        if self.ready:
            self.memory.store = ""
            self._session = self.connect(self._url)

    @observe("check_keys")
    def _check_keys_changed(self, change: Any) -> None:
        if self.ready and self.attached() is not None:
            self.session.submissions.check_keys(self.check_keys)

    @validate("autostart")
    def _autostart_valid(self, proposal: Any) -> int:
        if proposal.value < 0:
            raise TraitError("JugMagics.autostart is a number of workers, 0 or more")
        return int(proposal.value)

    @property
    def as_text(self) -> bool:
        return wanted(self.display) == "text"

    # -- around a cell -------------------------------------------------------------------------------------------------

    def begin(self, cell: str, typed: str) -> None:
        """A cell starts to run."""
        self.cell, self.typed, self.in_cell = cell, typed, True
        self.live.forget(cell)
        session = self.attached()
        if session is not None:
            self.session.begin_cell(cell)
            self.session.submissions.check_keys(self.check_keys)

    def end(self, success: bool) -> None:
        """It has ended. Raises ChangedInCell."""
        self.in_cell = False
        if self.attached() is None:
            return
        report = self.session.end_cell(success)
        for told in self.session.submissions.unstable_keys():
            print(f"check_keys: {told}", file=sys.stderr)
        queued, self._ran_here = max(0, report.queued - self._ran_here), 0
        if report.cancelled:
            print(f"cancelled {plural(report.cancelled, 'pending task')} of the previous version")
        if queued and not report.workers:
            if self.autostart:
                self.session.execute(self.autostart)
                print(f"{plural(queued)} queued; started {plural(self.autostart, 'worker')}")
            else:
                print(f"{plural(queued)} queued, no workers running. Start some: {START}")

    # -- making tasks --------------------------------------------------------------------------------------------------

    @cell_magic
    @options()
    @option("name", nargs="?", help="with a name the whole cell is one task")
    @option("--version", metavar="V", help="a tag in the key instead of the code: only a new tag makes new tasks")
    @option(
        "--ignore-global", action="append", default=[], metavar="NAME",
        help="something outside that doesn't matter for the results; may be given again",
    )  # fmt: skip
    @option("--retries", type=attempts, default=0, metavar="N", help="further attempts after an exception")
    @option("--timeout", type=seconds, metavar="S", help="seconds that one attempt may take")
    @option(
        "-i", "--inputs", type=names, default=[], metavar="NAMES",
        help="inputs that can't be seen in the code: a,b (with NAME)",
    )  # fmt: skip
    @option(
        "-o", "--outputs", type=names, default=[], metavar="NAMES",
        help="outputs that must be there in the end, inputs changed in place among them: a,b (with NAME)",
    )  # fmt: skip
    @option("--now", action="store_true", help="run it here, at once, unless it is stored (with NAME)")
    @option("--bash", action="store_true", help="the cell is a bash script; its output is the value (with NAME)")
    def jugtask(self, line: str, cell: str) -> None:
        """Make a cell into tasks.

        Without a name: the cell's public functions become task functions. Calling one makes a task, which workers run.
        Functions whose names begin with _ stay plain. The cell may hold imports, def, class and assignments:

            %%jugtask
            def is_prime(n):
                return all(n % k for k in range(2, n))

            primes = [is_prime(n) for n in range(2, 100)]      # in another cell
            primes[0].result()                                 # waits; is_prime.run(7) computes here and now

        With a name: the cell is one task. What it reads from outside are its inputs, tasks among them; each public name
        that it sets becomes a part of its result, to wait for or to hand to other tasks:

            %%jugtask statistics
            counted = sum(found)
            share = counted / len(found)

            statistics.result(), share.result()                # in another cell

        The key of a task covers the code and the inputs, so running a cell again computes nothing again: what the task
        printed and displayed is shown again. !commands, %magics and await are fine in such a cell.

            %%jugtask lines --bash -i path
            wc -l < "$path"                                    # ends with the first command that fails
        """
        asked = read(self.jugtask, line)
        how = {"version": asked.version, "retries": asked.retries, "timeout": asked.timeout}
        how["ignore_globals"] = tuple(asked.ignore_global)
        if asked.name is None and (asked.inputs or asked.outputs):
            raise UsageError("%%jugtask: -i and -o are for a cell that is one task: %%jugtask NAME -o …")
        if asked.name is None and (asked.now or asked.bash):
            option = "--bash" if asked.bash else "--now"
            raise UsageError(f"%%jugtask: {option} is for a cell that is one task: %%jugtask NAME {option}")
        if asked.bash and asked.outputs:
            raise UsageError("%%jugtask: a script has no -o; what it prints is the value of the task")
        session = self.session  # where the store can't be used, say so before anything runs
        record = self.memory.records.setdefault(asked.name or "", Record())
        if asked.bash:
            made = cells.make_script(self.shell, cell, asked.name, record, asked.inputs, **how)
            self._made(session, asked.name, made, asked.now)
            return
        text = cells.read(self.shell, cell, self.typed)
        if asked.name is None:
            print(_introduced(cells.define(self.shell, text, **how)))
            return
        made = cells.make_task(self.shell, text, asked.name, record, asked.inputs, asked.outputs, **how)
        self._made(session, asked.name, made, asked.now)

    def _made(self, session: Session, name: str, made: CellTask, now: bool) -> None:
        """Say what a cell became, and show what it shows: at once where it is stored, else when it has run."""
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
            if self._watched and not self.as_text:
                self.live.until(promise(session, task))
            else:
                self._unshown[task.key] = name

    # -- stores and workers --------------------------------------------------------------------------------------------

    @line_magic
    @options()
    @option("url", nargs="?", help="a folder (made if it is new), redis://HOST/DB?project=NAME, or memory:")
    def jug_store(self, line: str) -> None:
        """Use another store, or say which one is in use.

        %jug_store                    which store is this?
        %jug_store results            a folder, from the notebook's folder on
        %jug_store redis://host:6379/0?project=study      a project in a Redis server
        %jug_store memory:            for trying out: it ends with the kernel

        Tasks made from now on go there; handles of the former store go on reading theirs.
        """
        asked = read(self.jug_store, line)
        if asked.url is not None:
            url = joined([asked.url]) or ""
            self._session = self.connect(url)
            self.memory.store = url
        print(self._about(self.session))

    @line_magic
    @options()
    @option("-n", "--workers", type=count, metavar="N", help="how many there shall be in all (default: one a core)")
    @option("--wait", action="store_true", help="wait until nothing of this notebook is left to do")
    @option("--target", metavar="T", help=f"run only these and what they need ({TARGET})")
    @option("--max-tasks", type=count, metavar="N", help="tasks after which a worker ends")
    @option("--max-time", type=seconds, metavar="S", help="seconds after which no task is begun")
    @option(
        "--idle-timeout", type=seconds, default=600, metavar="S",
        help="seconds with nothing to do and no notebook attached after which they end (600)",
    )  # fmt: skip
    @option("--python", metavar="P", help="the Python to run them with: the same minor version, other packages")
    @option(
        "--host", action="append", default=[], metavar="H[:N]",
        help="start them there, over ssh: host, user@host, user@host:8; may be given again",
    )  # fmt: skip
    @option("--hosts-file", metavar="F", help="start them on the hosts in a file, one a line")
    @option("--setup", metavar="CMD", help="shell commands to run there first: 'module load python; source env/…'")
    @option("--remote-dir", metavar="D", help="where this notebook's folder is there; HERE=THERE for another one")
    @option("--on", metavar="VAR", help="run them on what a variable holds: a Dask client, an executor, a view")
    @option("--here", action="store_true", help="run the tasks in this kernel, one after another; nothing is started")
    @option("--dry-run", action="store_true", help="only say what would run, what is stored, how long it would take")
    def jug_execute(self, line: str) -> None:
        """Start workers in the background, and show how far things are. They go on when the kernel ends.

        %jug_execute -n 4                        four workers on this host; asking again starts none twice
        %jug_execute -n 2 --target is_prime      only tasks of is_prime, and what they need
        %jug_execute -n 4 --wait                 wait until all is done
        %jug_execute -n 4 --dry-run              what would run, and for how long?
        %jug_execute --here                      no workers: run the tasks in this kernel, now
        %jug_execute -n 8 --host a --host me@b:4 eight on a and four on b, over ssh; --dry-run looks what is in the way
        %jug_execute -n 8 --on client            on a Dask client or an executor: these and you trust each other

        %jug_stop ends them.
        """
        asked = read(self.jug_execute, line)
        session = self.session
        if elsewhere(asked):
            self._execute_there(session, asked)
            return
        if asked.setup or asked.remote_dir:
            raise UsageError("%jug_execute: --setup and --remote-dir are for other hosts: --host H")
        if asked.dry_run:
            target = joined([asked.target or ""])
            space, steady = self.shell.user_ns, self.as_text
            print(
                self.meant(lambda: session.workers.foretell(asked.workers, (), target, namespace=space, steady=steady))
            )
            return
        if asked.here:
            self._execute_here(asked)
            return
        earlier = list(session.workers.crews)
        served = {view.info.supervisor for view in session.status(all=True).workers if view.alive}
        size = asked.workers or len(os.sched_getaffinity(0))
        crew = self.meant(
            lambda: session.execute(
                size,
                **options_in(asked) | {"target": joined([asked.target or ""])},
                namespace=self.shell.user_ns,
            )
        )
        there = [info for info in crew.supervisors if info.id in served]
        again = bool(there) or any(one.name == crew.name and (one.supervisors or one.starting) for one in earlier)
        had = max([self._asked.get(crew.name, 0) if again else 0, *(info.size for info in there)])
        self._asked[crew.name] = max(size, had)
        if not had:
            said = f"started {plural(size, 'worker')} on {label(session.display_url, session.folder, self.as_text)}"
        elif had < size:
            said = f"started {plural(size - had, 'more worker')}: {size} in all"
        else:
            said = f"{plural(had, 'worker')} {'is' if had == 1 else 'are'} there already; none was started"
        if self.as_text:
            print(said)
        else:
            _glance(crew)
            self._picture(session, all=False, said=said)
        if asked.wait:
            session.barrier()
            self._say_how_it_ended(session.status().counts)

    def _execute_there(self, session: Session, asked: Any) -> None:
        if asked.here:
            raise UsageError("%jug_execute --here runs tasks in this kernel: leave out --host and --on")
        if asked.dry_run:
            print(self.meant(lambda: launching.dry_run(session, asked, self.shell.user_ns, self.as_text)))
            return
        crew, told = self.meant(lambda: launching.launch(session, asked, self.shell.user_ns))
        if self.as_text:
            print("\n".join(told))
        else:
            _glance(crew)
            self._picture(session, all=False, said=" · ".join(told))
        if asked.wait:
            session.barrier()
            self._say_how_it_ended(session.status().counts)

    def _execute_here(self, asked: Any) -> None:
        if asked.workers or asked.python:
            raise UsageError("%jug_execute --here runs tasks in this kernel: leave out -n and --python")
        session, target = self.session, joined([asked.target or ""])
        ran = self.meant(
            lambda: session.run_here(target, asked.max_tasks, asked.max_time, namespace=self.shell.user_ns)
        )
        if ran:
            print(f"{plural(ran)} ran here; now {tally(session.status().counts)}")
        else:
            print("nothing to run: no task is ready")

    @line_magic
    @options()
    @option("--now", action="store_true", help="at once: what they run is given back, and tried again by others")
    @option("--host", metavar="H", help="only those of this host")
    def jug_stop(self, line: str) -> None:
        """Stop the workers on this store.

        %jug_stop               after their current task
        %jug_stop --now         at once; nothing is lost but the work on current tasks
        %jug_stop --host a      only those of one host
        """
        asked = read(self.jug_stop, line)
        told = self.session.stop(now=asked.now, host=asked.host)
        self._asked.clear()
        there = f" on {asked.host}" if asked.host else ""
        if told:
            print(f"{plural(told, 'worker')}{there} will stop {'now' if asked.now else 'after the current task'}")
        else:
            print(f"no worker to stop{there}")

    # -- looking -------------------------------------------------------------------------------------------------------

    @line_magic
    @options()
    @option("--all", action="store_true", help="all tasks of the store, other notebooks' too")
    @option("--text", action="store_true", help="as text")
    @option("--short", action="store_true", help="in one line")
    @option("--watch", action="store_true", help="as text, redrawn until nothing is left to do or Ctrl-C (interrupt)")
    def jug_status(self, line: str) -> None:
        """How far things are: tasks by function and state, workers, failures.

        %jug_status             this notebook's tasks, redrawn as they go on
        %jug_status --all       the whole store's
        %jug_status --short     in a line
        %jug_status --watch     in a terminal: redrawn until all is done
        """
        asked = read(self.jug_status, line)
        session = self.session
        if asked.watch:
            watch(session, asked.all, steady_status if self.as_text else render.short if asked.short else render.text)
        elif self.as_text:
            snapshot = session.status(asked.all).snapshot
            print(steady_status(snapshot).splitlines()[0] if asked.short else steady_status(snapshot))
        elif asked.short:
            print(render.short(session.status(asked.all).snapshot))
        elif asked.text:
            print(render.text(session.status(asked.all).snapshot))
        else:
            self._picture(session, all=asked.all)

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--history", action="store_true", help="who ran what when: the latest attempts that ended")
    @option("--all", action="store_true", help="with --history: other notebooks' too")
    def jug_tasks(self, line: str) -> None:
        """List tasks: state, arguments, time, and the result or error in short.

        %jug_tasks                      this notebook's
        %jug_tasks is_prime             of a function
        %jug_tasks primes[3:7]          what an expression holds
        %jug_tasks /prime|count/        of functions whose name matches
        %jug_tasks --history            who ran what, where and when
        """
        asked = read(self.jug_tasks, line)
        target = joined(asked.target)
        if asked.history or asked.all:
            self._history(asked, target)
            return
        listing = self.meant(lambda: self.session.tasks(target, namespace=self.shell.user_ns))
        if self.as_text:
            print(steady_tasks(listing.views, listing.total))
        else:
            show({"text/plain": repr(listing), "text/html": listing._repr_html_()})

    def _history(self, asked: Any, target: str | None) -> None:
        if target is not None or not asked.history:
            raise UsageError("%jug_tasks: --history takes no target, and --all goes with --history")
        runs = self.session.history(asked.all)
        if self.as_text:
            print(steady_history(runs, runs.total))
        else:
            show({"text/plain": repr(runs), "text/html": runs._repr_html_()})

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--host", metavar="H", help="what the workers of this host said of themselves")
    def jug_log(self, line: str) -> None:
        """What tasks printed, with the traceback of failed ones.

        %jug_log                        of those that ended last
        %jug_log primes[3]              of these
        %jug_log --host a               what the workers of a host said of themselves
        """
        asked = read(self.jug_log, line)
        target = joined(asked.target)
        session = self.session
        if asked.host:
            if target:
                raise UsageError("%jug_log: --host is about workers; leave TARGET out")
            print(self.meant(lambda: session.log(host=asked.host)))
            return
        listing = self.meant(lambda: session.tasks(target, limit=20, namespace=self.shell.user_ns))
        ended = [view for view in listing.views if view.state in (State.FINISHED, State.FAILED)]
        said = [(view, session.results.outputs(view.key)) for view in ended]
        if self.as_text:
            running = [view for view in listing.views if target and view.state is State.RUNNING]
            print(steady_log([*said, *((view, [("stdout", session.queries.tail(view.key))]) for view in running)]))
        elif any(kind == "display" for _, pieces in said for kind, _ in pieces):
            for view, pieces in said:
                print(f"── {view.name}({view.args_repr}) · {view.state.value}")
                play(pieces)
                if view.error:
                    print(view.error)
        else:
            print(self.meant(lambda: session.log(target, namespace=self.shell.user_ns)))

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    def jug_why(self, line: str) -> None:
        """Is it stored; and if not, what changed since the nearest task that is?

        %jug_why total                  a task
        %jug_why is_prime               all of a function: what keeps how many
        """
        target = self._demanded(self.jug_why, read(self.jug_why, line).target)
        why = self.meant(lambda: self.session.why(target, namespace=self.shell.user_ns))
        if self.as_text:
            print(render.why_text(why.tasks, why.total, times=False))
        else:
            show({"text/plain": repr(why), "text/html": why._repr_html_()})

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--timeout", type=seconds, metavar="S", help="seconds to wait at most")
    def jug_wait(self, line: str) -> None:
        """Wait until tasks have finished or failed. Ctrl-C (interrupt) ends the wait alone; the tasks go on.

        %jug_wait                       for all of this notebook
        %jug_wait primes                for these
        %jug_wait --timeout 60          for a minute at most
        """
        asked = read(self.jug_wait, line)
        session, target = self.session, joined(asked.target)
        if target is None:
            keys = [view.key for state in OPEN_STATES for view in session.tasks(state=state, limit=0)]
        else:
            keys = [task.key for task in self._resolved(target)]
        if not session.results.settle(keys, asked.timeout):
            print(f"not done after {asked.timeout:g} s; the tasks go on")
            return
        self.live.run_errands()
        self._show_the_rest(session, keys if target else list(self._unshown))
        counts: dict[State, int] = {}
        if target is None:
            counts = session.status().counts
        else:
            for state in session.results.states(keys):
                counts[state] = counts.get(state, 0) + 1
        self._say_how_it_ended(counts)

    def _show_the_rest(self, session: Session, keys: Sequence[str]) -> None:
        """What cell tasks have shown that could not be shown under their cells."""
        unseen = [key for key in keys if key in self._unshown]
        for key, state in zip(unseen, session.results.states(unseen), strict=True):
            if state not in OPEN_STATES:
                name, pieces = self._unshown.pop(key), session.results.outputs(key)
                print(f"── {name}\n" if pieces else "", end="")
                play(pieces)

    # -- changing one's mind -------------------------------------------------------------------------------------------

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    def jug_retry(self, line: str) -> None:
        """Try failed tasks again.

        %jug_retry                      all that have failed
        %jug_retry total                what keeps this one from its value
        """
        target = joined(read(self.jug_retry, line).target)
        found = self.meant(lambda: self.session.retry(target, namespace=self.shell.user_ns))
        print(f"{plural(found)} will be tried again" + self._if_nobody() if found else "no failed task to try again")

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    def jug_cancel(self, line: str) -> None:
        """Cancel tasks that have not started; those that run go on to their end.

        %jug_cancel slow                all of a function
        %jug_cancel results[10:]        what an expression holds
        """
        target = self._demanded(self.jug_cancel, read(self.jug_cancel, line).target)
        found = self.meant(lambda: self.session.cancel(target, namespace=self.shell.user_ns))
        print(f"cancelled {plural(found)}" if found else "nothing to cancel: none of these is pending")

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--dry-run", action="store_true", help="only show what would be invalidated")
    def jug_invalidate(self, line: str) -> None:
        """Invalidate wrong values: they, and all that depends on them, will be computed again.

        %jug_invalidate load --dry-run      what would be invalidated?
        %jug_invalidate load                all values of a function
        %jug_invalidate tables[3]           one
        """
        asked = read(self.jug_invalidate, line)
        target = self._demanded(self.jug_invalidate, asked.target)
        if asked.dry_run:
            listing = self.meant(lambda: self.session.tasks(target, limit=0, namespace=self.shell.user_ns))
            views = [view for view in listing.views if view.state in (State.FINISHED, State.FAILED)]
            print(f"would invalidate {plural(len(views), 'result')}" + (", and what depends on them:" if views else ""))
            if views:
                print(steady_tasks(views[:20], len(views)))
            return
        found = self.meant(lambda: self.session.invalidate(target, namespace=self.shell.user_ns))
        if found:
            results = plural(found, "result")
            they = "it and what depends on it" if found == 1 else "they and what depends on them"
            print(f"invalidated {results}; {they} will be recomputed{self._if_nobody()}")
        else:
            print("nothing to invalidate: none of these has a result")

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--undo", action="store_true", help="take that back: what stood on it is computed after all")
    @option("--dry-run", action="store_true", help="only say what would come of it")
    def jug_accept(self, line: str) -> None:
        """The code was edited and its results stay right: open tasks take over what the former code made.

        %jug_accept fit --dry-run           how many results are there?
        %jug_accept fit                     for all tasks of a function
        %jug_accept fits[3]                 for one
        %jug_accept fit --undo              compute them after all, with what was made from them

        Results go to tasks of the same function with equal arguments, on equal values of what they need. Make the tasks
        first (run the cell that calls the function). Who said so and when is on record: task.provenance().
        """
        asked = read(self.jug_accept, line)
        target = self._demanded(self.jug_accept, asked.target)
        print(self.meant(lambda: self.session.accept(target, asked.undo, asked.dry_run, namespace=self.shell.user_ns)))

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--dry-run", action="store_true", help="only say what would go")
    @option("--older-than", type=age, metavar="T", help="only what was made and run before: 90s, 10min, 2h, 30d")
    def jug_cleanup(self, line: str) -> None:
        """Forget the tasks that no notebook wants any more, with what only they had stored.

        %jug_cleanup --dry-run              what would go?
        %jug_cleanup                        let it go
        %jug_cleanup fit --older-than 30d   of one function, and only what is older than a month

        What is wanted stays, with all that it needs; so does what runs.
        """
        asked = read(self.jug_cleanup, line)
        target = joined(asked.target)
        print(
            self.meant(
                lambda: self.session.cleanup(asked.older_than, asked.dry_run, target, namespace=self.shell.user_ns)
            )
        )

    # -- what they share -----------------------------------------------------------------------------------------------

    def meant(self, act: Callable[[], Any]) -> Any:
        """Do something with a target; a name that is no task is the user's slip, so it shows as one line."""
        try:
            return act()
        except NoSuchTask as error:
            raise UsageError(str(error)) from None

    def _resolved(self, target: str) -> list[Any]:
        found: list[Any] = self.meant(lambda: self.session.resolve(target, self.shell.user_ns))
        return found

    def _demanded(self, magic: Any, words: Sequence[str]) -> str:
        target = joined(words)
        if target is None:
            raise UsageError(f"{sign(magic)} TARGET: say which {TARGET}")
        return target

    def _if_nobody(self) -> str:
        session = self.session
        busy = any(view.alive for view in session.status(all=True).workers)
        return (
            ""
            if busy or any(crew.coming for crew in session.workers.crews)
            else f"; no workers running. Start some: {START}"
        )

    def _say_how_it_ended(self, counts: dict[State, int]) -> None:
        bad = sum(counts.get(state, 0) for state in (State.FAILED, State.BLOCKED))
        ended: dict[State, int] = {state: counts[state] for state in State if counts.get(state)}
        ended.pop(State.CANCELLED, None)
        total = sum(ended.values())
        if not total:
            print("nothing to wait for")
        elif not bad:
            print(f"all {total} finished" if total > 1 else "finished")
        else:
            print(f"{tally(ended)}; %jug_status shows why")

    @property
    def _watched(self) -> bool:
        """Is there a front end that redraws, and somebody before it?"""
        return not headless(self.shell) and getattr(self.shell, "kernel", None) is not None

    def _picture(self, session: Session, *, all: bool, said: str = "") -> None:
        """Show the status, and let it follow the store where somebody watches: as a widget where there are some."""
        snapshot: Snapshot = session.queries.glance(all)
        watched = is_kernel(self.shell) and not headless(self.shell)
        chosen = wanted(self.display)

        def draw(snapshot: Snapshot) -> dict[str, Any]:
            above = f'<div style="margin-bottom:.4em">{escape(said)}</div>' if said else ""
            return {
                "text/plain": (f"{said}\n\n" if said else "") + render.text(snapshot),
                "text/html": above + render.html(snapshot),
            }

        if chosen == "widget" or (watched and chosen != "html" and widgets_work()):
            from kernel_ext.widgets import Panel

            panel = Panel(session, all, snapshot, said, waiting=self._presses_wait)
            still = show(panel.still(draw(snapshot), first=True), display_id=True)
            show({**panel.box._repr_mimebundle_(), "text/plain": ""})
            panel.kept = lambda snapshot: still.update(panel.still(draw(snapshot)), raw=True)
            self.live.follow(self.cell, snapshot, panel)
            return
        handle = show(draw(snapshot), display_id=watched)
        if handle is not None:
            self.live.follow(self.cell, snapshot, Drawing(session, all, handle, draw))

    def show_crew(self, crew: Any) -> None:
        """A crew shows as the live picture of its store, or as its line where that must be text."""
        if self.as_text or crew.plan:
            print(repr(crew))
            return
        session = next(
            (known for known in self._opened if crew in known.workers.crews and not known.closed), self.session
        )
        _glance(crew)
        self._picture(session, all=False)

    def _presses_wait(self) -> bool:
        """Does a press of a button wait until the running cell has ended?"""
        return self.in_cell and not beside_cells(self.shell)


def _glance(crew: Any) -> None:
    """Give a crew a blink to appear, so that the first picture doesn't show a store without workers."""
    seen = crew.store.watch(-1, 0.0)
    for _ in range(6):
        if crew.alive():
            return
        seen = crew.store.watch(seen, 0.03)


def _introduced(made: Sequence[Any]) -> str:
    """What a cell of definitions says: who is a task, how to call, run and launch."""
    if not made:
        return "no public function here, so no task (names that begin with _ stay plain)"
    first = made[0]
    parameters = list(inspect.signature(first.__jug_function__).parameters)
    shown = ", ".join(parameters[:3]) + (", …" if len(parameters) > 3 else "")
    names = ", ".join(dict.fromkeys(re.sub(r".*\.", "", function.__name__) for function in made))
    are = "is a task: call it" if len(made) == 1 else "are tasks: call them"
    return f"{names} {are}, then {START}; {first.__name__}.run({shown}) runs here"
