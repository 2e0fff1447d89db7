"""Why a task failed that was run in this kernel: its own frames, in the debugger or as text with their variables."""

from __future__ import annotations

import linecache
import os
import reprlib
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from jug_notebook import errors
from kernel_ext.frontend import is_kernel

FRAMES = 10  #: shown at most, the innermost
VARIABLES = 20  #: shown of each frame at most
WIDTH = 100  #: characters of a variable's value at most

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ENGINE = os.path.dirname(os.path.abspath(errors.__file__)) + os.sep
_LIBRARY = tuple(
    {os.path.join(path, "") for path in (*site.getsitepackages(), sysconfig.get_path("stdlib"), _HERE, _ENGINE)}
)


def own(error: BaseException) -> TracebackType | None:
    """Return the traceback from the task's first own frame on; None where the task's code was not reached."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith((_HERE, _ENGINE)):
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
    theirs = [(frame, line) for frame, line in found if not frame.f_code.co_filename.startswith(_LIBRARY)]
    frames = theirs or found
    lines = [f"… {len(frames) - FRAMES} frames before"] if len(frames) > FRAMES else []
    for frame, number in frames[-FRAMES:]:
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
