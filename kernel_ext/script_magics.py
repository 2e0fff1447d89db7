"""%jug_import brings the tasks of a jugfile into the notebook; %jug_export writes the notebook's tasks as a script."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class

from jug_notebook.model import State
from jug_notebook.session import Session
from kernel_ext.frontend import cell_name
from kernel_ext.magics import JugMagics
from kernel_ext.options import line_magic, option, options, read, sign


@magics_class
class ScriptMagics(Magics):
    """Import from and export to scripts. Keeps the cells that were run, as they were typed last."""

    shell: Any

    def __init__(self, shell: Any, main: JugMagics) -> None:
        super().__init__(shell)
        self.main = main
        self.cells: dict[str, tuple[int, str]] = {}  #: the number of the latest run and the text, by name
        history = getattr(getattr(shell, "history_manager", None), "input_hist_raw", ())
        for number, typed in enumerate(history):
            if typed.strip():
                self.note(cell_name(None, typed)[0], typed, number)

    def note(self, name: str, typed: str, number: int) -> None:
        """A cell is about to run. It keeps the place of its first run."""
        self.cells[name] = (number, typed)

    @line_magic
    @options()
    @option("jugfile", help="the script")
    @option("arguments", nargs="*", help="its sys.argv[1:]")
    @option("--jugdir", metavar="URL", help="its store (default: the one that the script or Jug's settings name)")
    def jug_import(self, line: str) -> None:
        """Bring the tasks of a Jug script into the notebook, with all that is stored of them.

        %jug_import jugfile.py                  the notebook has its names and uses its store from now on
        %jug_import jugfile.py --jugdir other   with another store

        Where the script stops at a barrier, run its tasks, and import it again.
        """
        from jug_notebook.compat.loading import import_jugfile  # loaded only when needed

        asked = read(self.jug_import, line)
        script = asked.jugfile
        if not Path(script).is_file():
            raise UsageError(f"{sign(self.jug_import)}: no script at {script!r}")
        imported = import_jugfile(script, asked.jugdir, asked.arguments, self.main.connect)
        self.shell.user_ns.update(imported.names)
        names = ", ".join(imported.names) or "no names"
        states = [task.state for task in imported.tasks]
        done = sum(state is State.FINISHED for state in states)
        print(f"{script}: {len(states):,} tasks, {done:,} of them stored in {imported.session.display_url}; {names}")
        if imported.barrier:
            print("it stopped at a barrier; run these tasks, %jug_execute, then import it again")

    @line_magic
    @options()
    @option("file", help="the script to write")
    def jug_export(self, line: str) -> None:
        """Write the notebook's tasks as a script: the cells that make them, and what these read.

        %jug_export pipeline.py

        Run it with python, or with jug-notebook execute: the keys are the same, so stored results are found. Prints how
        many of the tasks the script makes, and which cells can't be in a script.
        """
        from kernel_ext import export

        path = Path(read(self.jug_export, line).file)
        if path.suffix != ".py":
            raise UsageError(f"{sign(self.jug_export)} FILE: a script's name ends in .py, not {str(path)!r}")
        session = self.main.session
        wanted = session.queries.requested()
        makers = set(wanted.values())
        cells = [
            export.Cell(typed, f"In[{number}]", name in makers)
            for name, (number, typed) in self.cells.items()
            if name != self.main.cell
        ]
        reader = export.Reader(self.shell.transform_cell, self._asked)
        text, lacks = export.script(cells, _connection(session, path), reader)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as refused:
            raise UsageError(f"{sign(self.jug_export)}: can't write {path}: {refused.strerror}") from refused
        found, failure = export.keys_of(path.absolute(), session.url)
        print(export.report(str(path), wanted, found, lacks, failure))

    def _asked(self, line: str) -> argparse.Namespace | None:
        """Return the options of a ``%%jugtask`` line; None where they are wrong, so that the cell never ran."""
        try:
            return read(self.main.jugtask, line)
        except UsageError:
            return None


def _connection(session: Session, script: Path) -> str:
    """Return the statement by which the script connects to the store, without a password."""
    url = session.url
    if url.startswith("file:"):
        folder = Path(url.removeprefix("file:"))
        return f"jn.connect({os.path.relpath(folder, script.absolute().parent)!r})"
    if url == session.display_url or url.startswith("memory:"):
        return f"jn.connect({url!r})"
    return "jn.connect()  # the store has a password: set JUG_STORE"
