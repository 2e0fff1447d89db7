"""What the front end tells: the notebook's file, whether a user is there, which cell runs, and the text of cells."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from jug_notebook.keys import syntax


def is_kernel(shell: Any) -> bool:
    """True in a Jupyter kernel, False in a terminal."""
    return getattr(shell, "kernel", None) is not None


def beside_cells(shell: Any) -> bool:
    """Can the kernel handle messages of the front end while a cell runs?"""
    return bool(getattr(shell.kernel, "_supports_kernel_subshells", False)) if is_kernel(shell) else False


def notebook_path(shell: Any, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the notebook's file, if VS Code or a Jupyter server names it; None in consoles and bare kernels."""
    path = shell.user_ns.get("__vsc_ipynb_file__") or environ.get("JPY_SESSION_NAME", "")
    return Path(os.path.abspath(path)) if str(path).endswith(".ipynb") else None


def headless(shell: Any, environ: Mapping[str, str] = os.environ) -> bool:
    """Does the kernel end when its cells have run, as under nbclient? Then its workers must end with it.

    Where nobody is there to type, as under nbclient, papermill and nbconvert, a cell comes without ``allow_stdin``;
    consoles and notebooks set it. Messages other than cells don't tell, and count as a user's.
    """
    forced = environ.get("JUG_HEADLESS", "")
    if forced:
        return forced != "0"
    if not is_kernel(shell) or environ.get("JPY_SESSION_NAME") or "__vsc_ipynb_file__" in shell.user_ns:
        return False
    return not (shell.get_parent() or {}).get("content", {}).get("allow_stdin", True)


def cell_name(cell_id: str | None, text: str) -> str:
    """Return a name for a cell: the front end's id, which stays when the cell is edited, or else a hash of its text."""
    return cell_id or "text-" + hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).hexdigest()


def cell_now(shell: Any) -> str:
    """Return the name of the running cell, when called from it."""
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
