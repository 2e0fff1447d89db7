"""The magics that ask about tasks and change them."""

from __future__ import annotations

import argparse
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class

from jug_notebook.errors import JugError
from kernel_ext import debugging
from kernel_ext.display import show
from kernel_ext.magics import TARGET, JugMagics
from kernel_ext.options import joined, line_magic, option, options, read, sign


def share(written: str) -> float:
    """A part of a whole, "0.05" or "5%"."""
    try:
        part = float(written.removesuffix("%")) / (100 if written.endswith("%") else 1)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise argparse.ArgumentTypeError(f"{written!r} is not a part of all: give 0.05, or 5%")
    return part


@magics_class
class TaskMagics(Magics):
    """Magics that ask, and leave the tasks as they are."""

    shell: Any

    def __init__(self, shell: Any, main: JugMagics) -> None:
        super().__init__(shell)
        self.main = main

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--all", action="store_true", help="all tasks of the store, other notebooks' too")
    def jug_graph(self, line: str) -> None:
        """Which functions need which, how often, and how far each is.

        %jug_graph                      this notebook's
        %jug_graph report               of these tasks and what they need
        %jug_graph --all                the whole store's
        """
        asked = read(self.jug_graph, line)
        target = joined(asked.target)
        picture = self.main.meant(lambda: self.main.session.graph(target, asked.all, self.shell.user_ns))
        if self.main.as_text:
            print(picture)
        else:
            show({"text/plain": repr(picture), "text/html": picture._repr_html_()})

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    def jug_debug(self, line: str) -> None:
        """Run a failed task again in this kernel, with its stored arguments, under the debugger at the failing line.

        %jug_debug fits[3]              this one
        %jug_debug total                what keeps this one from its value
        %jug_debug 3f2a91c0             by its key

        Where nobody can answer a debugger, the variables of each of the task's frames are shown instead.
        """
        target = joined(read(self.jug_debug, line).target)
        if target is None:
            raise UsageError(f"{sign(self.jug_debug)} TARGET: say which {TARGET}")
        session = self.main.session
        key = self.main.meant(lambda: session.queries.blocking_task(target, self.shell.user_ns))
        if key is None:
            raise UsageError(f"none of {target} has failed, so there is nothing to debug")
        [view] = session.results.views([key])
        call = f"{view.name}({view.args_repr})"
        try:
            session.reruns.rerun(key)
        except Exception as error:  # whatever the task raises is what is looked for
            traceback = debugging.own(error)
            if traceback is None:
                if isinstance(error, JugError):
                    raise
                raise UsageError(f"{call} fails before its code is reached: {type(error).__name__}: {error}") from None
            error.__traceback__ = traceback
            print(f"{call} failed here too: {type(error).__name__}: {error}")
            if debugging.can_ask(self.shell):
                debugging.post_mortem(self.shell, error)
            else:
                print(debugging.told(traceback, self.main.cell_of))
        else:
            print(f"{call} did not fail here; it had failed with {view.error}. Try it again: %jug_retry {key[:8]}")

    @line_magic
    @options()
    @option("target", nargs="*", help=TARGET)
    @option("--fraction", type=share, default=0.01, metavar="F", help="which part of them: 0.05 or 5%% (1%%)")
    def jug_verify(self, line: str) -> None:
        """Compute a sample of finished tasks again, in this kernel, and tell which values come out otherwise.

        %jug_verify fit                     one in a hundred, at least one
        %jug_verify fit --fraction 100%     all
        """
        asked = read(self.jug_verify, line)
        target = joined(asked.target)
        if target is None:
            raise UsageError(f"{sign(self.jug_verify)} TARGET: say which {TARGET}")
        print(self.main.meant(lambda: self.main.session.verify(target, asked.fraction, self.shell.user_ns)))
