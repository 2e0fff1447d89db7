"""What a task prints: caught in order, with stream names, bounded, and readable from outside while it runs.

A worker process has two files behind its descriptors 1 and 2, so what subprocesses and C code write is caught too, and
the supervisor can read the last words of a worker that was killed. `Capture` keeps the order between the streams.
What threads and processes print that a task left behind goes to the worker's log, not under the next task.
Threads that work in one process (`memory:`) share their descriptors: `ThreadCapture` keeps what Python code prints,
and nothing else.

What a task logs comes out as it would in its notebook: levels of loggers travel with it, and the format of what goes to
a stream. Handlers don't: a worker writes to the task's output.
"""

from __future__ import annotations

import ctypes
import io
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from typing import Any, Protocol, TextIO, TypeAlias

from jug_notebook import system
from jug_notebook.model import LoggerSetup
from jug_notebook.task.context import left_behind
from jug_notebook.worker.strays import left_by_task, names

Output: TypeAlias = tuple[tuple[str, str], ...]

LIMIT = 1 << 20  #: bytes that are kept of what one task prints: the first half and the last
HALF = LIMIT // 2
TAIL = 2048  #: bytes of it that each heartbeat carries while the task runs
FORMER_FILES = 16  #: pairs of files of a worker that its supervisor still reads, in which processes may print
HEAP = 8 * LIMIT  #: a file that grows beyond this loses its middle
NAMES = ("stdout", "stderr")
_POOLS = ("loky.process_executor", "joblib.externals.loky.process_executor", "concurrent.futures.process")
_TURNS = 10_000  #: changes between the streams whose order is kept


class Listener(Protocol):
    """Captures what a task prints."""

    def begin(self) -> Output:
        """From here on, what is printed belongs to the next task. Return what was printed that belongs to none.

        Called in the thread that runs the task.
        """

    def clear(self) -> None:
        """Drop what the task has printed so far."""

    def left_behind(self) -> str:
        """The task has ended. Return the names of processes that it left behind and that the system won't end with us.

        Called before what it printed is taken, and `release` after that.
        """

    def release(self) -> None:
        """Processes that the task left behind no longer print where the next one prints."""

    def take(self) -> Output:
        """What was printed since."""

    def cut(self) -> int:
        """What is printed from here on is a separate piece. Returns how many pieces there were before."""


class NoCapture:
    """Leaves output alone."""

    def begin(self) -> Output:
        return ()

    def clear(self) -> None: ...

    def left_behind(self) -> str:
        return ""

    def release(self) -> None: ...

    def take(self) -> Output:
        return ()

    def cut(self) -> int:
        return 0


# -- files behind the descriptors --------------------------------------------------------------------------------------


class Files:
    """The two files that catch a worker's output. Made before the fork: worker and supervisor both hold them.

    The worker may put others in their place, and sends these to its supervisor.
    """

    def __init__(self) -> None:
        self.fds = _unnamed_files()
        self._former: deque[tuple[int, int]] = deque()
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def replace(self) -> bool:
        """In the worker: use new files from here on. Return False while the supervisor has too many to take."""
        fresh = _unnamed_files()
        try:
            socket.send_fds(self._sender, [b"."], fresh)
        except OSError:  # so many since it last looked
            _close(fresh)
            return False
        _close(self.fds)
        self.fds = fresh
        return True

    def _receive(self) -> None:
        """In the supervisor: take the files that the worker uses by now."""
        with suppress(BlockingIOError):
            while True:
                _, fds, _, _ = socket.recv_fds(self._receiver, 1, 2)
                for fd in fds:
                    os.set_inheritable(fd, False)
                self._former.append(self.fds)
                self.fds = (fds[0], fds[1])
                if len(self._former) > FORMER_FILES:
                    _close(self._former.popleft())

    def stray(self) -> str:
        """In the supervisor: return, once, what was printed by processes that earlier tasks left behind."""
        self._receive()
        pieces = []
        for fd in chain.from_iterable(self._former):
            if end := _end(fd):
                pieces.append(os.pread(fd, min(end, LIMIT), 0).decode(errors="replace"))
                os.ftruncate(fd, 0)
        return "".join(pieces)

    def last_words(self) -> Output:
        """What a worker printed in the task that it died in. The order between the streams died with it."""
        self._receive()
        ends = [_end(fd) for fd in self.fds]
        return _pieces(self.fds, [(i, end) for i, end in enumerate(ends) if end])

    def tail(self) -> str:
        """The end of what the worker's task has printed so far, by whole lines where it has any."""
        self._receive()
        ends = [(fd, end) for fd in self.fds if (end := _end(fd))]
        return "".join(_tail(fd, end, TAIL // len(ends)) for fd, end in ends)

    def trim(self) -> None:
        """Give back the middle of what has become too long; offsets stay as they are."""
        for fd in self.fds:
            _punch(fd, _end(fd))

    def close(self) -> None:
        for fds in (self.fds, *self._former):
            _close(fds)
        self._receiver.close()
        self._sender.close()


class Capture:
    """Captures the output of a worker process; `install` puts it in the place of stdout and stderr."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._fds = files.fds
        self._stray: list[tuple[str, str]] = []  #: what threads print that an earlier task left behind
        self._children: tuple[int, frozenset[int]] = (0, frozenset())
        self._orphans: set[int] = set()  # see `left_by_task`
        self._started = False  # has the last task started processes?
        self._known = [0, 0]  # how much of each file has its place in the order
        self._turns: list[tuple[int, int]] = []  # (which stream, its length by then), in order
        self._cut = 0  # turns before this one take in nothing more
        self._punched = [HEAP, HEAP]
        self._texts = [self._text(0), self._text(1)]

    def install(self) -> None:
        self._use(self._files.fds)
        self._children = system.children_so_far()
        self.begin()

    def _use(self, fds: tuple[int, int]) -> None:
        self._fds = fds
        for i, fd in enumerate(fds):
            os.dup2(fd, i + 1)

    def begin(self) -> Output:
        for which, text in enumerate(self._texts):
            if text.closed:  # by a former task: with sys.stdout as out: …
                self._texts[which] = self._text(which)
        sys.stdout, sys.stderr = self._texts  # a former task may have left its own there
        stray, self._stray = self._stray, []
        return (*stray, *self.take())

    def clear(self) -> None:
        self.take()

    def left_behind(self) -> str:
        before, self._children = self._children, system.children_so_far()
        self._started = before[0] != self._children[0] or bool(self._children[1] - before[1])
        return names(left_by_task(before[1], self._children[1], self._orphans)) if self._started else ""

    def release(self) -> None:
        """A process keeps the files that it was started with. If the task has started any, the next task has others.

        Not while there is a pool of processes, such as joblib keeps: it works for whatever task calls it next.
        """
        managers = [thread for name in _POOLS for thread in getattr(sys.modules.get(name), "_threads_wakeups", ())]
        if self._started and not any(thread.is_alive() for thread in managers) and self._files.replace():
            self._use(self._files.fds)

    def _text(self, which: int) -> io.TextIOWrapper:
        return io.TextIOWrapper(
            CaptureStream(self, which), encoding="utf-8", errors="backslashreplace", write_through=True
        )

    def write(self, which: int, data: Any) -> int:
        """For ``sys.stdout`` and ``sys.stderr``. Whatever came past us, from a subprocess, was there before."""
        fd, rest = self._fds[which], memoryview(data).cast("B")
        size = rest.nbytes
        if left_behind():
            if len(self._stray) < _TURNS:
                self._stray.append((NAMES[which], str(rest[:LIMIT], "utf-8", "replace")))
            return size
        self._look()
        while rest.nbytes:
            rest = rest[os.write(fd, rest) :]
        self._note(which, _end(fd))
        if self._known[which] > self._punched[which]:
            _punch(fd, self._known[which])
            self._punched[which] = self._known[which] + HEAP
        return size

    def take(self) -> Output:
        self._look()
        turns = self._turns
        if not turns:
            return ()
        output = _pieces(self._fds, turns)
        for which, fd in enumerate(self._fds):
            if self._known[which]:
                os.ftruncate(fd, 0)
        self._known, self._turns, self._cut, self._punched = [0, 0], [], 0, [HEAP, HEAP]
        return output

    def cut(self) -> int:
        self._look()
        self._cut = len(self._turns)
        return self._cut

    def _look(self) -> None:
        known = self._known
        for which, fd in enumerate(self._fds):
            end = os.lseek(fd, 0, os.SEEK_END)
            if end != known[which]:
                self._note(which, end)

    def _note(self, which: int, end: int) -> None:
        turns = self._turns
        self._known[which] = end
        if turns and turns[-1][0] == which and len(turns) > self._cut:
            turns[-1] = (which, end)
        elif len(turns) < _TURNS:
            turns.append((which, end))
        else:  # the rest in two pieces
            for i in range(len(turns) - 1, -1, -1):
                if turns[i][0] == which:
                    turns[i] = (which, end)
                    break


class CaptureStream(io.RawIOBase):
    """The bytes side of ``sys.stdout``."""

    def __init__(self, capture: Capture, which: int) -> None:
        self._capture = capture
        self._which = which
        self.name = f"<{NAMES[which]}>"
        self.mode = "wb"

    def write(self, data: Any) -> int:
        return self._capture.write(self._which, data)

    def fileno(self) -> int:
        return self._which + 1

    def writable(self) -> bool:
        return True


def _unnamed_files() -> tuple[int, int]:
    return _unnamed_file("stdout"), _unnamed_file("stderr")


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _unnamed_file(name: str) -> int:
    """A file that only its descriptor leads to, opened so that every writer appends."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name)
    else:
        import tempfile  # it takes long to import

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd


def _end(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def _tail(fd: int, end: int, size: int) -> str:
    start = max(0, end - size)
    data = os.pread(fd, end - start, start)
    if start and b"\n" in data[:-1]:
        data = data[data.index(b"\n") + 1 :]
    return data.decode(errors="replace")


def _pieces(fds: tuple[int, int], turns: list[tuple[int, int]]) -> Output:
    """The text of each turn; where all of it is too much, the first half and the last of what may be kept."""
    at, spans = [0, 0], []
    for which, end in turns:
        spans.append((which, at[which], end))
        at[which] = end
    cut = max(0, sum(at) - LIMIT)
    head, skip = HALF, cut
    pieces: list[tuple[str, str]] = []
    for which, start, end in spans:
        if cut:
            first = min(head, end - start)
            _add(pieces, fds, which, start, start + first)
            head -= first
            start += first
            if head == 0 and skip and start < end:
                if skip == cut:
                    pieces.append((NAMES[which], f"\n… {cut:,} bytes left out …\n"))
                gone = min(skip, end - start)
                skip -= gone
                start += gone
        _add(pieces, fds, which, start, end)
    return tuple(pieces)


def _add(pieces: list[tuple[str, str]], fds: tuple[int, int], which: int, start: int, end: int) -> None:
    if end > start:
        data = os.pread(fds[which], end - start, start)
        pieces.append((NAMES[which], data.decode(errors="replace")))


def _punch(fd: int, end: int) -> None:
    if end <= HEAP:
        return
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):  # not Linux: it keeps its length
        return
    keep_size, punch_hole = 1, 2
    fallocate(fd, keep_size | punch_hole, ctypes.c_int64(LIMIT), ctypes.c_int64(end - 2 * LIMIT))


# -- threads of one process --------------------------------------------------------------------------------------------

_captured = threading.local()


class ThreadCapture:
    """Captures what one thread prints, but not what subprocesses or C code write to descriptors.

    With ``echo`` it is also printed as before.
    """

    def __init__(self, echo: bool = False) -> None:
        self._echo = echo

    def begin(self) -> Output:
        for name in NAMES:
            stream = getattr(sys, name)
            if not isinstance(stream, TeeStream):
                _put_in_place(name, stream, TeeStream(stream, name))
        self.clear()
        _captured.echo = self._echo
        return ()

    def clear(self) -> None:
        _captured.pieces, _captured.size = [], 0

    def left_behind(self) -> str:
        return ""

    def release(self) -> None: ...

    def take(self) -> Output:
        pieces = _joined(getattr(_captured, "pieces", None) or ())
        if getattr(_captured, "size", 0) > LIMIT:
            pieces.append(("stderr", f"\n… only the first {LIMIT:,} characters are kept …\n"))
        _captured.pieces = None
        return tuple(pieces)

    def cut(self) -> int:
        pieces = getattr(_captured, "pieces", None)
        if pieces is None:
            return 0
        pieces.append(_CUT)
        return len(_joined(pieces))


_CUT = ("", "")  #: no piece goes on across it


def _joined(pieces: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join what was printed on one stream without a break."""
    joined: list[list[str]] = []
    before = ""
    for name, text in pieces:
        if name and name == before:
            joined[-1][1] += text
        elif name:
            joined.append([name, text])
        before = name
    return [(name, text) for name, text in joined]


def restore_streams() -> None:
    """Put back the streams that `ThreadCapture` has replaced."""
    for name in NAMES:
        stream = getattr(sys, name)
        if isinstance(stream, TeeStream):
            _put_in_place(name, stream, stream._stream)


def _put_in_place(name: str, before: Any, stream: Any) -> None:
    """Make ``stream`` that of ``sys``, and of handlers of loggers that write to the one before."""
    setattr(sys, name, stream)
    logging: Any = sys.modules.get("logging")
    for reference in list(logging._handlerList) if logging else ():
        handler = reference()
        if getattr(handler, "stream", None) is before:
            handler.stream = stream


class TeeStream:
    """Wraps a stream: what a capturing thread writes is kept, everything else goes on to the stream."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        pieces = getattr(_captured, "pieces", None)
        if pieces is None:
            return self._stream.write(text)
        _captured.size += len(text)
        if _captured.size <= LIMIT:
            pieces.append((self._name, text))
        if _captured.echo:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if getattr(_captured, "pieces", None) is None or _captured.echo:
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# -- what tasks log ---------------------------------------------------------------------------------------------------


#: loggers of the notebook's own machinery
_NOT_THE_USERS = frozenset({"IPKernelApp", "TerminalIPythonApp", "traitlets", "tornado"})


def loggers_now() -> tuple[LoggerSetup, ...]:
    """Return the loggers of this process that have a level or a stream; () while they are as Python sets them up."""
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return ()
    loggers: dict[str, Any] = {"": logging.root, **logging.root.manager.loggerDict}
    found = [
        _setup_of(name, logger, logging)
        for name, logger in sorted(loggers.items())
        if isinstance(logger, logging.Logger) and name not in _NOT_THE_USERS and (logger.level or logger.handlers)
    ]
    return tuple(one for one in found if one != LoggerSetup("", logging.WARNING) and (one.level or one.stream))


def _setup_of(name: str, logger: Any, logging: Any) -> LoggerSetup:
    level = max(logger.level, logger.manager.disable + 1) if logger.level else 0
    for handler in logger.handlers:
        to_stream = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
        if to_stream or not type(handler).__module__.startswith("logging"):
            stream = "stdout" if "stdout" in str(getattr(getattr(handler, "stream", None), "name", "")) else "stderr"
            form = _format_of(handler.formatter, logging)
            return LoggerSetup(name, level, logger.propagate, stream, *form, handler.level)
    return LoggerSetup(name, level, logger.propagate)


def _format_of(formatter: Any, logging: Any) -> tuple[str, str | None, str]:
    """Return a formatter's format, format of dates and style; Python's own format where the formatter is a class."""
    if formatter is None:
        return "%(message)s", None, "%"
    styles = [style for style, (kind, _) in logging._STYLES.items() if type(formatter._style) is kind]
    if type(formatter) is not logging.Formatter or not styles:
        return logging.BASIC_FORMAT, None, "%"
    return formatter._fmt, formatter.datefmt, styles[0]


class Loggers:
    """Sets up the loggers of a worker's process for one task after another."""

    def __init__(self) -> None:
        self._set: list[tuple[LoggerSetup, Any, tuple[int, bool], Any]] = []  #: its logger, as that was, our handler

    def set_up(self, setups: tuple[LoggerSetup, ...]) -> None:
        """Set up loggers for a task, and undo what was set up for the one before. Cheap where both are alike."""
        if not setups and not self._set:
            return
        if tuple(one[0] for one in self._set) != setups:
            for _, logger, former, handler in self._set:
                logger.setLevel(former[0])
                logger.propagate = former[1]
                logger.removeHandler(handler)
            import logging  # most tasks log nothing

            pairs = [(setup, logging.getLogger(setup.name)) for setup in setups]
            self._set = [(one, to, (to.level, to.propagate), _handler(one, to)) for one, to in pairs]
        for setup, logger, _, handler in self._set:
            if setup.level and logger.level != setup.level:
                logger.setLevel(setup.level)
            logger.propagate = setup.propagate
            if handler not in logger.handlers and setup.stream:
                logger.addHandler(handler)


class _Stream:
    """A stream of the process, whatever that is when something is written."""

    def __init__(self, name: str) -> None:
        self._name = name

    def write(self, text: str) -> None:
        getattr(sys, self._name).write(text)

    def flush(self) -> None:
        getattr(sys, self._name).flush()


def _handler(setup: LoggerSetup, logger: Any) -> Any:
    """Return a handler that writes to the task's output, unless the logger has got another: a module's own."""
    import logging

    handler = logging.StreamHandler(_Stream(setup.stream or "stderr"))
    handler.setLevel(setup.threshold)
    handler.setFormatter(logging.Formatter(setup.format or None, setup.date_format, setup.style))  # type: ignore[arg-type]
    handler.addFilter(lambda record: logger.handlers == [handler])
    return handler
