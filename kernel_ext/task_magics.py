"""The magics about tasks: show them, ask why one has to run, wait for them, and retry, cancel or invalidate them."""

from __future__ import annotations

import argparse
import linecache
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class

from jug_notebook import frames, render
from jug_notebook.errors import JugError, StoreError, clean
from jug_notebook.model import OPEN_STATES, State, Target
from jug_notebook.render import plural
from jug_notebook.session import Session
from kernel_ext.display import (
    outcome_text,
    play,
    show_either,
    steady_history,
    steady_log,
    steady_profile,
    steady_status,
    steady_tasks,
    steady_timeline,
)
from kernel_ext.frontend import is_kernel
from kernel_ext.live import watch
from kernel_ext.magics import JugMagics
from kernel_ext.options import age, attempts, fraction, line_magic, option, options, read, read_target, seconds, target

ENDED = (State.FINISHED, State.FAILED)


@magics_class
class TaskMagics(Magics):
    """Ask about tasks, and change them."""

    shell: Any

    def __init__(self, shell: Any, main: JugMagics) -> None:
        super().__init__(shell)
        self.main = main

    @property
    def _session(self) -> Session:
        return self.main.session

    # -- asking --------------------------------------------------------------------------------------------------------

    @line_magic
    @options()
    @option("--all", action="store_true", help="all tasks of the store, including other notebooks'")
    @option("--text", action="store_true", help="as text")
    @option("--short", action="store_true", help="in one line")
    @option("--watch", action="store_true", help="as text, redrawn until nothing is left to run or Ctrl-C (interrupt)")
    def jug_status(self, line: str) -> None:
        """Show the progress: tasks by function and state, workers, failures.

        %jug_status             this notebook's tasks, updated as they run
        %jug_status --all       the whole store's
        %jug_status --short     in one line
        %jug_status --watch     in a terminal: redrawn until all is done
        """
        asked = read(self.jug_status, line)
        steady = self.main.as_text
        try:
            session = self._session
        except StoreError:
            if (looked := self.main.unverified()) is None:
                raise
            text = repr(looked) if asked.text else None
            if asked.short:
                text = render.short(looked.snapshot)
            elif steady:
                text = f"unverified: the store's key is not known here\n{steady_status(looked.snapshot)}"
            show_either(looked, text)
            return
        if asked.watch:
            watch(session, asked.all, steady_status if steady else render.short if asked.short else render.text)
        elif steady:
            text = steady_status(session.status(asked.all).snapshot)
            print(text.splitlines()[0] if asked.short else text)
        elif asked.short or asked.text:
            print((render.short if asked.short else render.text)(session.status(asked.all).snapshot))
        else:
            self.main.picture(session, all=asked.all)
        if left := "" if asked.watch or asked.text else session.queries.left_behind():
            print(left)

    @line_magic
    @options()
    @target
    @option("--state", choices=[state.value for state in State], help="only those that are finished, failed …")
    @option("--limit", type=attempts, default=50, metavar="N", help="show at most this many rows (50); 0: all")
    @option("--history", action="store_true", help="who ran what and when: the latest attempts that ended")
    @option("--all", action="store_true", help="with --history: including other notebooks'")
    def jug_tasks(self, line: str) -> None:
        """List tasks: state, arguments, time, and a summary of the value or error.

        %jug_tasks                      this notebook's
        %jug_tasks is_prime             of a function
        %jug_tasks primes[3:7]          those in the value of an expression
        %jug_tasks --state failed       those that failed
        %jug_tasks /prime|count/        of functions whose name matches
        %jug_tasks --history            who ran what, where and when
        """
        asked = read(self.jug_tasks, line)
        if not asked.history and not asked.all:
            listing = self._session.tasks(asked.target, asked.state, asked.limit, namespace=self.shell.user_ns)
            show_either(listing, steady_tasks(listing.views, listing.total) if self.main.as_text else None)
        elif asked.target is not None or not asked.history:
            raise UsageError("%jug_tasks: --history takes no target, and --all goes with --history")
        else:
            runs = self._session.history(asked.all)
            show_either(runs, steady_history(runs, runs.total) if self.main.as_text else None)

    @line_magic
    @options()
    @target
    @option("--host", metavar="H", help="the log of the workers on this host instead")
    def jug_log(self, line: str) -> None:
        """Show what tasks printed, with the traceback of failed ones.

        %jug_log                        of the tasks that ended last
        %jug_log primes[3]              of these
        %jug_log --host a               the log of the workers on a host
        """
        asked = read(self.jug_log, line)
        session = self._session
        if asked.host:
            if asked.target:
                raise UsageError("%jug_log: --host is about workers; leave TARGET out")
            print(session.log(host=asked.host))
            return
        views = session.tasks(asked.target, limit=20, namespace=self.shell.user_ns).views
        logs = [(view, session.results.outputs(view.key)) for view in views if view.state in ENDED]
        if self.main.as_text:
            running = [view for view in views if asked.target and view.state is State.RUNNING]
            print(steady_log([*logs, *((view, [("stdout", session.queries.tail(view.key))]) for view in running)]))
        elif any(kind == "display" for _, outputs in logs for kind, _ in outputs):
            for view, outputs in logs:
                print(clean(f"── {view.name}({view.args_repr}) · {view.state.value}"))
                play(outputs)
                if view.error:
                    print(clean(view.error))
        else:
            print(session.log(asked.target, namespace=self.shell.user_ns))

    @line_magic
    @options()
    @target
    def jug_why(self, line: str) -> None:
        """Say whether a task is stored and, if not, what changed since the nearest one that is.

        %jug_why total                  a task
        %jug_why is_prime               all tasks of a function, counted by reason
        """
        asked = read_target(self.jug_why, line)
        why = self._session.why(asked.target, namespace=self.shell.user_ns)
        show_either(why, render.why_text(why.tasks, why.total, times=False) if self.main.as_text else None)

    @line_magic
    @options()
    @target
    @option("--all", action="store_true", help="all tasks of the store, including other notebooks'")
    def jug_graph(self, line: str) -> None:
        """Draw which functions need which, with the number of tasks and their progress.

        %jug_graph                      this notebook's
        %jug_graph report               of these tasks and what they need
        %jug_graph --all                the whole store's
        """
        asked = read(self.jug_graph, line)
        graph = self._session.graph(asked.target, asked.all, self.shell.user_ns)
        show_either(graph, str(graph) if self.main.as_text else None)

    @line_magic
    @options()
    @option("--all", action="store_true", help="all tasks of the store, including other notebooks'")
    @option("--since", metavar="T", default=0.0, help="only what ran after that: a date, or 2h for two hours ago")
    @option("--until", metavar="T", default=float("inf"), help="only what began before that")
    @option("--text", action="store_true", help="as text")
    def jug_timeline(self, line: str) -> None:
        """Draw who ran what and when, from the store alone: where the time went, failures, deaths, the critical path.

        %jug_timeline                       this notebook's tasks
        %jug_timeline --since 2h            what ran in the last two hours
        %jug_timeline --since 2026-10-01 --until 2026-10-31 --all
        """
        asked = read(self.jug_timeline, line)
        try:
            found = self._session.timeline(asked.all, asked.since, asked.until)
        except ValueError as wrong:
            raise UsageError(f"%jug_timeline: {wrong}") from None
        show_either(found, steady_timeline(found.timeline) if self.main.as_text else str(found) if asked.text else None)

    @line_magic
    @options()
    @target
    @option("--all", action="store_true", help="all tasks of the store, including other notebooks'")
    def jug_profile(self, line: str) -> None:
        """Show what runs took, by function: time, processor time, memory, bytes read and written.

        %jug_profile                    this notebook's
        %jug_profile fit                of a function
        %jug_profile --all              the whole store's
        """
        asked = read(self.jug_profile, line)
        found = self._session.profile(asked.target, asked.all, self.shell.user_ns)
        show_either(found, steady_profile(found) if self.main.as_text else None)

    @line_magic
    @options()
    @target
    @option("--timeout", type=seconds, metavar="S", help="wait at most this many seconds")
    def jug_wait(self, line: str) -> None:
        """Wait until tasks have finished or failed. Ctrl-C (interrupt) ends only the wait; the tasks go on.

        %jug_wait                       for all tasks of this notebook
        %jug_wait primes                for these
        %jug_wait --timeout 60          for a minute at most
        """
        asked = read(self.jug_wait, line)
        session = self._session
        if asked.target is None:
            keys = [view.key for state in OPEN_STATES for view in session.tasks(state=state, limit=0)]
        else:
            keys = [task.key for task in session.resolve(asked.target, self.shell.user_ns)]
        if not session.results.settle(keys, asked.timeout):
            print(f"not done after {asked.timeout:g} s; the tasks go on")
            return
        self.main.show_ended(session, None if asked.target is None else keys)
        print(outcome_text(session.status().counts if asked.target is None else Counter(session.results.states(keys))))

    # -- running in this kernel ----------------------------------------------------------------------------------------

    @line_magic
    @options()
    @target
    def jug_debug(self, line: str) -> None:
        """Run a failed task again in this kernel, with its stored arguments, under the debugger at the failing line.

        %jug_debug fits[3]              this one
        %jug_debug total                the failed task that this one waits for
        %jug_debug 3f2a91c0             by its key

        Where the debugger can't prompt for commands, it shows the variables in each frame of the task instead.
        """
        asked = read_target(self.jug_debug, line)
        session = self._session
        key = session.queries.blocking_task(asked.target, self.shell.user_ns)
        if key is None:
            raise UsageError(f"none of {asked.target} has failed, so there is nothing to debug")
        [view] = session.results.views([key])
        call = clean(f"{view.name}({view.args_repr})")
        try:
            session.reruns.rerun(key)
        except Exception as error:  # whatever the task raises is what is looked for
            self._debug(error, call)
        else:
            had = clean(view.error)
            print(f"{call} did not fail here; it had failed with {had}. Try it again: %jug_retry {key[:8]}")

    def _debug(self, error: Exception, call: str) -> None:
        """Open the debugger where the task's own code raised, or show its frames. Raises what wasn't the task's."""
        traceback = own_frames(error)
        if traceback is None:
            if isinstance(error, JugError):
                raise error
            raise UsageError(f"{call} fails before its code is reached: {type(error).__name__}: {error}") from None
        error.__traceback__ = traceback
        print(f"{call} failed here too: {clean(f'{type(error).__name__}: {error}')}")
        if can_ask(self.shell):
            post_mortem(self.shell, error)
        else:
            print(frames_text(traceback, self.main.cell_of))

    @line_magic
    @options()
    @target
    @option("--fraction", type=fraction, default=0.01, metavar="F", help="which part of them: 0.05 or 5%% (1%%)")
    @option("--changed-environment", action="store_true", help="only tasks that ran with other versions of packages")
    def jug_verify(self, line: str) -> None:
        """Compute a sample of finished tasks again, in this kernel, and report the values that come out differently.

        %jug_verify fit                                        one in a hundred, at least one
        %jug_verify fit --fraction 100%                        all
        %jug_verify --changed-environment                      after an upgrade: of all tasks of this notebook
                                                               that ran with other versions of packages
        """
        asked = read(self.jug_verify, line)
        if asked.target is None and not asked.changed_environment:
            read_target(self.jug_verify, line)
        session = self._session
        requested = Target(keys=frozenset(session.queries.requested()))
        target = requested if asked.target is None else asked.target
        print(session.verify(target, asked.fraction, self.shell.user_ns, asked.changed_environment))

    # -- changing ------------------------------------------------------------------------------------------------------

    @line_magic
    @options()
    @target
    def jug_retry(self, line: str) -> None:
        """Try failed tasks again.

        %jug_retry                      all that have failed
        %jug_retry total                this one, or the failed tasks that it waits for
        """
        found = self._session.retry(read(self.jug_retry, line).target, namespace=self.shell.user_ns)
        print(
            f"{plural(found)} will be tried again{self._if_no_workers()}" if found else "no failed tasks to try again"
        )

    @line_magic
    @options()
    @target
    @option("--ended", action="store_true", help="what ended runs of scripts and consoles left pending")
    def jug_cancel(self, line: str) -> None:
        """Cancel tasks that have not started; running ones go on to the end.

        %jug_cancel slow                all of a function
        %jug_cancel results[10:]        those in the value of an expression
        %jug_cancel --ended             what ended runs left pending: of scripts, consoles, nbconvert …
        """
        asked = read(self.jug_cancel, line)
        if not asked.ended:
            asked = read_target(self.jug_cancel, line)
        found = self._session.cancel(asked.target, namespace=self.shell.user_ns, ended=asked.ended)
        none = "nothing was cancelled: none of these is pending, or another notebook or task still needs them"
        print(f"cancelled {plural(found)}" if found else none)

    @line_magic
    @options()
    @target
    @option("--dry-run", action="store_true", help="only list what would be invalidated")
    def jug_invalidate(self, line: str) -> None:
        """Discard wrong values: they and what depends on them will be recomputed.

        %jug_invalidate load --dry-run      which ones?
        %jug_invalidate load                all values of a function
        %jug_invalidate tables[3]           one
        """
        asked = read_target(self.jug_invalidate, line)
        if asked.dry_run:
            self._list_results(asked)
            return
        found = self._session.invalidate(asked.target, namespace=self.shell.user_ns)
        if not found:
            print("nothing to invalidate: none of these has a result")
            return
        what = "they and what depends on them" if found > 1 else "it and what depends on it"
        print(f"invalidated {plural(found, 'result')}; {what} will be recomputed{self._if_no_workers()}")

    def _list_results(self, asked: argparse.Namespace) -> None:
        found = self._session.tasks(asked.target, limit=0, namespace=self.shell.user_ns)
        views = [view for view in found.views if view.state in ENDED]
        print(f"would invalidate {plural(len(views), 'result')}" + (", and what depends on them:" if views else ""))
        if views:
            print(steady_tasks(views[:20], len(views)))

    @line_magic
    @options()
    @target
    @option("--undo", action="store_true", help="take that back: compute them, and what was made from them, after all")
    @option("--dry-run", action="store_true", help="only report how many results there are")
    def jug_accept(self, line: str) -> None:
        """Keep results although the code was edited: pending tasks reuse what the previous code computed.

        %jug_accept fit --dry-run           how many results are there?
        %jug_accept fit                     for all tasks of a function
        %jug_accept fits[3]                 for one
        %jug_accept fit --undo              compute them after all, and what was made from them

        A task takes the result of the same function with equal arguments, if what it needs has equal values. Make the
        tasks first (run the cell that calls the function). Who accepted, and when, is on record: task.provenance().
        """
        asked = read_target(self.jug_accept, line)
        print(self._session.accept(asked.target, asked.undo, asked.dry_run, namespace=self.shell.user_ns))

    @line_magic
    @options()
    @target
    @option("--dry-run", action="store_true", help="only report what would be deleted")
    @option("--older-than", type=age, metavar="T", help="only tasks made and run longer ago: 90s, 10min, 2h, 30d")
    def jug_cleanup(self, line: str) -> None:
        """Delete the tasks that no notebook refers to, with their data.

        %jug_cleanup --dry-run              what would be deleted?
        %jug_cleanup                        delete it
        %jug_cleanup fit --older-than 30d   of one function, and only what is older than 30 days

        What a notebook refers to stays, with everything it needs; so do running tasks.
        """
        asked = read(self.jug_cleanup, line)
        print(self._session.cleanup(asked.older_than, asked.dry_run, asked.target, namespace=self.shell.user_ns))

    def _if_no_workers(self) -> str:
        return self.main.no_workers_hint()


# -- why a task failed that was run in this kernel: its own frames and their variables ---------------------------------


FRAMES = 10  #: shown at most, the innermost
VARIABLES = 20  #: shown of each frame at most
WIDTH = 100  #: characters of a variable's value at most


def own_frames(error: BaseException) -> TracebackType | None:
    """Return the traceback from the task's first own frame on; None where the task's code was not reached."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(frames.OURS):
        traceback = traceback.tb_next
    return traceback


def can_ask(shell: Any) -> bool:
    """Can the user type at a debugger's prompt?"""
    if is_kernel(shell):
        return bool(getattr(shell.kernel, "_allow_stdin", False))
    return bool(sys.stdin is not None and sys.stdin.isatty())


def post_mortem(shell: Any, error: BaseException) -> None:
    """Open IPython's debugger where the task failed; ``%debug`` opens it again."""
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if hasattr(sys, "last_exc"):
        sys.last_exc = error
    shell.InteractiveTB.tb = None
    shell.debugger(force=True)


def frames_text(traceback: TracebackType, label_of: Callable[[str], str | None]) -> str:
    """Return the task's own frames, with the failing line and the variables of each, the innermost last."""
    found = list(_frames(traceback))
    theirs = [(frame, line) for frame, line in found if frames.is_users(frame.f_code.co_filename)]
    visible = theirs or found
    lines = [f"… {len(visible) - FRAMES} frames before"] if len(visible) > FRAMES else []
    for frame, number in visible[-FRAMES:]:
        code = frame.f_code
        lines.append(f"{label_of(code.co_filename) or code.co_filename}, line {number}, in {code.co_name}")
        source = linecache.getline(code.co_filename, number, frame.f_globals).strip()
        lines += [f"    {source}"] if source else []
        lines += [f"      {line}" for line in _variables(frame)]
    return "\n".join(lines)


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxother = self.maxstring = self.maxlong = WIDTH

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            text = " ".join(repr(x).split())
        except Exception as error:  # the task's own class may do anything
            return f"<{type(x).__name__} whose repr raises {type(error).__name__}>"
        return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _variables(frame: FrameType) -> list[str]:
    names = [name for name in frame.f_locals if not name.startswith("__")]
    short = _Short().repr
    lines = [f"{name} = {short(frame.f_locals[name])}" for name in names[:VARIABLES]]
    return [*lines, f"and {len(names) - VARIABLES} more"] if len(names) > VARIABLES else lines
