"""Loads the extension into a shell and unloads it: magics, the hooks around each cell, live status, formatters."""

from __future__ import annotations

import atexit
import re
import sys
import threading
from contextlib import suppress
from types import ModuleType
from typing import Any

from IPython.core import interactiveshell
from IPython.core.error import UsageError

from jug_notebook import frames
from jug_notebook.errors import JugError, StoreError, StoreGone
from jug_notebook.keys import advice
from jug_notebook.render.format import near
from jug_notebook.session import on_connect
from jug_notebook.task.values import tasks_in
from kernel_ext import display, options
from kernel_ext.frontend import Sources, cell_name, cell_now
from kernel_ext.live import Live
from kernel_ext.magics import JugMagics, Memory
from kernel_ext.options import signs
from kernel_ext.script_magics import ScriptMagics
from kernel_ext.task_magics import TaskMagics
from kernel_ext.worker_magics import WorkerMagics

#: how IPython says that it has no magic of a name of ours
_UNKNOWN = re.compile(r"(?:Line magic function|Cell magic) `(%+jug\w*)` not found\.")


class Extension:
    """The extension, as loaded into one shell."""

    def __init__(self, shell: Any, memory: Memory) -> None:
        self.shell = shell
        self.live = Live()
        self.magics = JugMagics(shell, self.live, memory)
        self.scripts = ScriptMagics(shell, self.magics)
        self._all_magics = (self.magics, WorkerMagics(shell, self.magics), TaskMagics(shell, self.magics), self.scripts)
        self.sources = Sources(shell, lambda: self.magics.typed)
        self._depth = 0

    def load(self) -> None:
        shell = self.shell
        shell.register_magics(*self._all_magics)
        shell.events.register("pre_run_cell", self.before)
        shell.events.register("post_run_cell", self.after)
        self._matcher = options.add_completers(shell, *self._all_magics)
        shows = self.magics.show_crew, self.magics.show_plot
        self._remove_formatters = display.add_formatters(shell, lambda: self.magics.as_text, *shows)
        self._end_recording = display.record(shell)
        self._show_errors = shell.showtraceback
        shell.showtraceback = self.show_error
        self.sources.load()
        self._silencing, advice.silencing = advice.silencing, "%config JugMagics.advice = False"
        on_connect.append(self.magics.adopt)
        self.magics.cell, self.magics.cell_lasts = cell_now(shell)
        self._use_plain_open()
        atexit.register(self.live.end_with_kernel)
        self.magics.open()

    def _use_plain_open(self) -> None:
        """Remove IPython's own ``open``, with which a task that reads a file would have another key in a script."""
        given = getattr(interactiveshell, "_modified_open", None)
        if given is not None and self.shell.user_ns.get("open") is given:
            del self.shell.user_ns["open"]

    def unload(self) -> None:
        """Undo `load`, end threads and close the sessions; workers go on."""
        shell = self.shell
        atexit.unregister(self.live.end_with_kernel)
        self.live.stop()
        shell.events.unregister("pre_run_cell", self.before)
        shell.events.unregister("post_run_cell", self.after)
        options.remove_completers(shell, self._matcher)
        self._remove_formatters()
        self._end_recording()
        if shell.showtraceback == self.show_error:
            shell.showtraceback = self._show_errors
        self.sources.unload()
        advice.silencing = self._silencing
        on_connect.remove(self.magics.adopt)
        for magics in self._all_magics:
            for kind in ("line", "cell"):
                for name in magics.magics[kind]:
                    shell.magics_manager.magics[kind].pop(name, None)
            shell.magics_manager.registry.pop(type(magics).__name__, None)
            if magics in shell.configurables:
                shell.configurables.remove(magics)
        self.magics.close()

    def show_error(self, exc_tuple: Any = None, *args: Any, **options: Any) -> None:
        """Show an error as IPython does, without frames of ours: `JugError` hides them itself."""
        error = exc_tuple[1] if exc_tuple else sys.exc_info()[1]
        if isinstance(error, UsageError):
            self._complete(error)
        elif isinstance(error, AttributeError):
            _name_meant(error)
        if isinstance(error, BaseException) and not hasattr(error, "_render_traceback_"):
            frames.hide_ours(error)
            if exc_tuple:
                exc_tuple = (type(error), error, error.__traceback__)
        self._show_errors(exc_tuple, *args, **options)

    def _complete(self, error: UsageError) -> None:
        """Name what was meant by a magic that isn't there, and the line of one of ours that doesn't begin its cell."""
        wrong = _UNKNOWN.fullmatch(str(error))
        if wrong:
            error.args = (f"{str(error).rstrip('.')}{near(wrong[1], signs(*self._all_magics))}",)
        if (wrong or frames.is_ours(error)) and (line := frames.line_below(error)) is not None:
            place = f"{self.magics.cell_of(line[0]) or line[0]}, line {line[1]}: "
            error.args = (place + str(error).removeprefix(place),)

    def before(self, info: Any) -> None:
        """A cell starts to run. One that another cell runs is a part of that."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth += 1
        if self._depth == 1:
            name, lasting = cell_name(getattr(info, "cell_id", None), info.raw_cell)
            self._use_plain_open()  # %reset brings it back
            self.scripts.note(name, info.raw_cell, len(self.shell.history_manager.input_hist_raw))
            with suppress(StoreError):  # unless the cell connects to another, its end reports that
                self.magics.begin_cell(name, info.raw_cell, lasting)

    def after(self, result: Any) -> None:
        """A cell has ended: submit its tasks and print messages about them under it."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth = max(0, self._depth - 1)  # the start of the cell that loaded us was not seen
        if self._depth == 0 and self.magics.in_cell:
            try:
                self.magics.end_cell(success=result is not None and bool(result.success))
            except StoreGone as error:
                print(f"jug_notebook: {error}", file=sys.stderr)
            except (JugError, OSError) as error:
                self.shell.showtraceback((type(error), error, error.__traceback__))


def _name_meant(error: AttributeError) -> None:
    """Name the attribute that was meant of an object of ours, and what gives the values of a container of tasks."""
    thing, name, hint = error.obj, error.name or "", ""
    if isinstance(thing, list | tuple | dict | set):
        if name in ("result", "wait") and tasks_in(thing):
            hint = f"; jn.{name}(…) waits for the tasks in it (import jug_notebook as jn)"
    elif (thing.__name__ if isinstance(thing, ModuleType) else type(thing).__module__).startswith("jug_notebook"):
        hint = near(name, dir(thing))
    if ";" not in str(error):  # it has none yet
        error.args = (f"{error}{hint}",)
