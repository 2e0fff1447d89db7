"""What the front end tells: the notebook's file, whether a user is there, which cell runs, and the text of cells."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from jug_notebook.keys import syntax
from jug_notebook.session.access import notebook_of_kernel


def is_kernel(shell: Any) -> bool:
    """True in a Jupyter kernel, False in a terminal."""
    return getattr(shell, "kernel", None) is not None


def beside_cells(shell: Any) -> bool:
    """Can the kernel handle messages of the front end while a cell runs?"""
    return bool(getattr(shell.kernel, "_supports_kernel_subshells", False)) if is_kernel(shell) else False


def in_subshell() -> bool:
    """Is this thread a subshell's, which runs cells beside the main thread's?"""
    return "Subshell" in type(threading.current_thread()).__name__


def notebook_path(shell: Any) -> Path | None:
    """Return the notebook's file, if VS Code or a Jupyter server names it; None in consoles and bare kernels."""
    path = str(shell.user_ns.get("__vsc_ipynb_file__") or notebook_of_kernel())
    return Path(os.path.abspath(path)) if path.endswith(".ipynb") else None


def headless(shell: Any, environ: Mapping[str, str] = os.environ) -> bool:
    """Does the kernel end when its cells have run, as under nbclient? Then its workers must end with it.

    Where nobody is there to type, as under nbclient, papermill and nbconvert, a cell comes without ``allow_stdin``;
    consoles and notebooks set it. Messages other than cells don't tell, and count as a user's.
    """
    forced = environ.get("JUG_HEADLESS", "")
    if forced:
        return forced != "0"
    if not is_kernel(shell) or notebook_path(shell) is not None:
        return False
    return not (shell.get_parent() or {}).get("content", {}).get("allow_stdin", True)


def cell_name(cell_id: str | None, text: str) -> tuple[str, bool]:
    """Return a name for a cell, and whether it lasts: whether it stays the cell's when that is edited or reopened.

    That is so of the notebook format's ids. Others, such as VS Code's, which count cells anew whenever the file is
    opened, could be another cell's next time; for these the name is a hash of the text.
    """
    if cell_id and _LASTING_ID.fullmatch(cell_id):
        return cell_id, True
    return "text-" + hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).hexdigest(), False


_LASTING_ID = re.compile("[A-Za-z0-9_-]{1,64}")  # as in the schema of the notebook format


def cell_now(shell: Any) -> tuple[str, bool]:
    """Return the name of the running cell, and whether it lasts, when called from it."""
    parent = shell.get_parent() if is_kernel(shell) else {}
    cell_id = (parent.get("metadata") or {}).get("cellId")
    typed = parent.get("content", {}).get("code") or (shell.user_ns.get("In") or [""])[-1]
    return cell_name(cell_id, typed)


class Sources:
    """Finds the source of functions in the cells that were run, latest first, for the hashing of their code."""

    def __init__(self, shell: Any, now: Callable[[], str | None]) -> None:
        self._shell = shell
        self._now = now  #: returns the running cell, as it was typed

    def load(self) -> None:
        syntax.finders.append(self.texts)

    def unload(self) -> None:
        syntax.finders.remove(self.texts)

    def texts(self, code: CodeType) -> Iterator[str]:
        """Yield texts that may contain ``code``: cells without their magics. The caller compares them with the code."""
        history = getattr(getattr(self._shell, "history_manager", None), "input_hist_raw", ())
        word = "lambda" if code.co_name == "<lambda>" else code.co_name
        for typed in dict.fromkeys((self._now() or "", *reversed(history))):
            body = typed.lstrip()
            while body.startswith("%%") and word in body:
                body = body.partition("\n")[2]
                yield self._shell.transform_cell(body)
