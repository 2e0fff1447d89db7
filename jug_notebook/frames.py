"""Which frames of a traceback are the user's: the others are ours, IPython's, or those of installed libraries."""

from __future__ import annotations

import linecache
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType, TracebackType

_HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = "<target>"  #: what an expression of a magic's line is compiled as: the line itself is shown
OURS = (_HERE + os.sep, os.path.join(os.path.dirname(_HERE), "kernel_ext") + os.sep, TARGET)
_INSTALLED = re.compile(
    r"[/\\]((site|dist)-packages|lib(64)?[/\\]python3\.\d+)[/\\]|^<(frozen |__array_function__|decorator-gen)"
    r"|^\w+[/\\].*\.p(yx|xi)$"  # compiled by Cython elsewhere
)


def is_users(filename: str) -> bool:
    """Return whether code of this file, on whichever machine, is the user's: no library's, and not ours."""
    return not filename.startswith(OURS) and _INSTALLED.search(filename) is None


def warn(text: str, category: type[Warning], code: CodeType | None = None) -> None:
    """Warn at the line of the user that led here; where none did, as at the end of a cell, at that of ``code``.

    A cell has the name that its notebook shows: "Cell In[3]".
    """
    frame = caller()
    filename, line, space = frame.f_code.co_filename, frame.f_lineno, frame.f_globals
    if code is not None and _runs_for_ipython(frame):
        filename, line = code.co_filename, code.co_firstlineno
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    label = None if shell is None else shell.compile.format_code_name(filename)
    module, registry = space.get("__name__", "<unknown>"), space.setdefault("__warningregistry__", {})
    name = " ".join(label) if label else filename
    warnings.warn_explicit(text, category, name, line, module, registry)


def caller() -> FrameType:
    """Return the innermost frame that isn't ours, which led here."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    return frame


def place(label_of: Callable[[str], str | None] | None = None) -> str:
    """Return the line that led here: "Cell In[3], line 4", if ``label_of`` maps the file names of cells to labels."""
    frame = caller()
    name = frame.f_code.co_filename
    return f"{(label_of and label_of(name)) or os.path.basename(name)}, line {frame.f_lineno}"


def with_present_cells(traceback: str, labels: Mapping[str, str]) -> str:
    """Return a stored traceback with the labels that its cells have in this kernel: "Cell In[3]" by their latest run.

    A cell whose text was not run in this kernel is one "of another kernel". ``labels``: those in the traceback, by the
    file names of the cells.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not labels:
        return traceback
    folder, now = os.path.dirname(shell.compile.get_code_name("", "", 0)), {}
    for file, label in labels.items():  # a kernel names the file of a cell by the cell's text
        files = file, os.path.join(folder, os.path.basename(file))
        known = (shell.compile.format_code_name(one) for one in files)
        now[label] = next((" ".join(one) for one in known if one), f"{label} of another kernel")
    return re.sub(r"(?m)^(\s*)(Cell In\[\d+\])(?=, line)", lambda at: at[1] + now.get(at[2], at[2]), traceback)


def is_ours(error: BaseException) -> bool:
    """Return whether a traceback contains a frame of ours."""
    return any(step.tb_frame.f_code.co_filename.startswith(OURS) for step in _steps(error.__traceback__))


def line_below(error: BaseException) -> tuple[str, int] | None:
    """Return the file name and the line of the user's last frame; None where no code stands above that line."""
    users = [step for step in _steps(error.__traceback__) if _is_users_frame(step)]
    return (users[-1].tb_frame.f_code.co_filename, users[-1].tb_lineno) if users and _is_below(users[-1]) else None


def hide_ours(error: BaseException, is_ours: bool = False) -> int:
    """Take our frames, and those of what we called, out of the tracebacks of an error and of its causes, in place;
    of an error that ``is_ours`` also those of libraries, through which the user's code may have called it.

    Return how many frames of the user are left in that of the error; 0 where the only one is the line of a magic that
    begins its cell.
    """
    count, *_ = [_prune(one, is_ours and one is error) for one in list(_causes(error))]
    return count


def has_users_frame(error: BaseException | None) -> bool:
    """Return whether a traceback contains a frame of the user."""
    return error is not None and any(map(_is_users_frame, _steps(error.__traceback__)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _steps(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _is_users_frame(step: TracebackType) -> bool:
    return is_users(step.tb_frame.f_code.co_filename)


def _is_below(step: TracebackType) -> bool:
    """Return whether there is code above its line: a cell of one magic needs no line to find it."""
    above = linecache.getlines(step.tb_frame.f_code.co_filename)[: step.tb_lineno - 1]
    return any(line.strip() and not line.lstrip().startswith("#") for line in above)


def _is_ipythons(step: TracebackType) -> bool:
    return _runs_for_ipython(step.tb_frame)


def _runs_for_ipython(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return module in ("IPython", "ipykernel") and not is_users(frame.f_code.co_filename)


def _prune(error: BaseException, is_ours: bool) -> int:
    kept: list[TracebackType] = []
    inside = by_magic = False  # of a call of ours; called by IPython for a magic
    for step in list(_steps(error.__traceback__)):
        if step.tb_frame.f_code.co_filename.startswith(OURS):
            inside = True
            while len(kept) > 1 and not _is_users_frame(kept[-1]):  # the first is the shell's, which runs the cell
                by_magic = by_magic or _is_ipythons(kept.pop())
        elif not inside or _is_users_frame(step):
            inside = False
            kept.append(step)
    if inside or is_ours:
        kept = [step for step in kept if step is kept[0] or _is_users_frame(step)]
    following: TracebackType | None = None
    for step in reversed(kept):
        if step.tb_next is not following:
            step.tb_next = following
        following = step
    error.__traceback__ = following
    users = [step for step in kept if _is_users_frame(step)]
    return 0 if by_magic and len(users) == 1 and not _is_below(users[0]) else len(users)
