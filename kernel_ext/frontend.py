"""Who is looking: which notebook this kernel belongs to, whether anybody will be there afterwards, which cell runs."""

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
    """True where the kernel can handle messages of the front end while a cell runs."""
    return bool(getattr(shell.kernel, "_supports_kernel_subshells", False)) if is_kernel(shell) else False


def notebook_path(shell: Any, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The notebook's file, as VS Code or a Jupyter server tells it; None in consoles and bare kernels."""
    told = shell.user_ns.get("__vsc_ipynb_file__") or environ.get("JPY_SESSION_NAME", "")
    return Path(os.path.abspath(told)) if str(told).endswith(".ipynb") else None


def headless(shell: Any, environ: Mapping[str, str] = os.environ) -> bool:
    """True where the kernel ends when its cells have run, as under nbclient: crews started here must end with it."""
    told = environ.get("JUG_HEADLESS", "")
    if told:
        return told != "0"
    return is_kernel(shell) and not environ.get("JPY_SESSION_NAME") and "__vsc_ipynb_file__" not in shell.user_ns


def cell_name(told: str | None, text: str) -> str:
    """A name for a cell that outlives edits where the front end tells one; else the text must do."""
    return told or "text-" + hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).hexdigest()


def cell_now(shell: Any) -> str:
    """The name of the cell that is running, asked from within it."""
    parent = shell.get_parent() if is_kernel(shell) else {}
    told = (parent.get("metadata") or {}).get("cellId")
    typed = parent.get("content", {}).get("code") or (shell.user_ns.get("In") or [""])[-1]
    return cell_name(told, typed)


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
