"""The text of functions that were defined under a magic such as ``%%time``, which runs a cell under no name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from jug_notebook.keys import syntax


class Sources:
    """Finds it in the cells that were run, the latest first. The finder's answers are compared with the code."""

    def __init__(self, shell: Any, now: Callable[[], str | None]) -> None:
        self._shell = shell
        self._now = now  #: the cell that runs, as it was typed

    def load(self) -> None:
        syntax.finders.append(self.texts)

    def unload(self) -> None:
        syntax.finders.remove(self.texts)

    def texts(self, code: CodeType) -> Iterator[str]:
        """Texts that may hold ``code``: what follows the magics of a cell."""
        history = getattr(getattr(self._shell, "history_manager", None), "input_hist_raw", ())
        word = "lambda" if code.co_name == "<lambda>" else code.co_name
        for typed in dict.fromkeys((self._now() or "", *reversed(history))):
            body = typed.lstrip()
            while body.startswith("%%") and word in body:
                body = body.partition("\n")[2]
                yield self._shell.transform_cell(body)
