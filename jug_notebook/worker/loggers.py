"""What a task logs comes out as it would in its notebook: the set-up of loggers travels with each task.

Levels travel, and the format of what goes to a stream. Handlers don't: a worker writes to the task's output.
"""

from __future__ import annotations

import sys
from typing import Any

from jug_notebook.model import LoggerSetup

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
