"""All that is ours in a shell: magics, what happens before and after each cell, pictures that follow the store."""

from __future__ import annotations

import threading
from typing import Any

from IPython.core import interactiveshell

from jug_notebook.errors import JugError
from kernel_ext import display, options
from kernel_ext.frontend import Sources, cell_name, cell_now
from kernel_ext.live import Live
from kernel_ext.magics import JugMagics, Memory
from kernel_ext.script_magics import ScriptMagics
from kernel_ext.task_magics import TaskMagics


class Extension:
    """All that is ours in one shell."""

    def __init__(self, shell: Any, memory: Memory) -> None:
        self.shell = shell
        self.live = Live()
        self.magics = JugMagics(shell, self.live, memory)
        self.inquiry = TaskMagics(shell, self.magics)
        self.scripts = ScriptMagics(shell, self.magics)
        self.sources = Sources(shell, lambda: self.magics.typed)
        self._depth = 0

    def load(self) -> None:
        shell = self.shell
        shell.register_magics(self.magics, self.inquiry, self.scripts)
        shell.events.register("pre_run_cell", self.before)
        shell.events.register("post_run_cell", self.after)
        options.add_completers(shell, self.magics, self.inquiry, self.scripts)
        self._tables = display.add_formatters(shell, lambda: self.magics.as_text, self.magics.show_crew)
        self._record = display.record(shell)
        self.sources.load()
        self.magics.cell = cell_now(shell)
        self._bare_open()
        self.magics.open()

    def _bare_open(self) -> None:
        """IPython has an ``open`` of its own: a task that reads a file would have another key in a script."""
        given = getattr(interactiveshell, "_modified_open", None)
        if given is not None and self.shell.user_ns.get("open") is given:
            del self.shell.user_ns["open"]

    def unload(self) -> None:
        """Take back all that `load` did, end threads and leave the store; workers go on."""
        shell = self.shell
        self.live.stop()
        shell.events.unregister("pre_run_cell", self.before)
        shell.events.unregister("post_run_cell", self.after)
        options.remove_completers(shell, self.magics, self.inquiry, self.scripts)
        self._tables()
        self._record()
        self.sources.unload()
        for magics in (self.magics, self.inquiry, self.scripts):
            for kind in ("line", "cell"):
                for name in magics.magics[kind]:
                    shell.magics_manager.magics[kind].pop(name, None)
            shell.magics_manager.registry.pop(type(magics).__name__, None)
            if magics in shell.configurables:
                shell.configurables.remove(magics)
        self.magics.leave()

    def before(self, info: Any) -> None:
        """A cell starts. One that another cell runs belongs to that."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth += 1
        if self._depth == 1:
            name = cell_name(getattr(info, "cell_id", None), info.raw_cell)
            self._bare_open()  # %reset brings it back
            self.scripts.note(name, info.raw_cell, len(self.shell.history_manager.input_hist_raw))
            self.magics.begin(name, info.raw_cell)

    def after(self, result: Any) -> None:
        """A cell has ended: its tasks are handed in, and what there is to say of them is said under it."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth = max(0, self._depth - 1)  # the cell that loaded us was not seen to begin
        if self._depth == 0 and self.magics.in_cell:
            try:
                self.magics.end(success=result is not None and bool(result.success))
            except (JugError, OSError) as error:
                self.shell.showtraceback((type(error), error, error.__traceback__))
