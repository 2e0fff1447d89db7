"""The shell that a worker has once a task needs one: for a magic, a command, or something to display."""

from __future__ import annotations

import sys
from typing import Any

import IPython
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from jug_notebook.worker import displays


class Publisher(DisplayPublisher):
    """What a task displays is kept with it."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: Any = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        buffer, name = displays.current(), (transient or {}).get("display_id", "")
        if buffer is None:
            print(data.get("text/plain", ""))
        elif update:
            buffer.update(data, metadata, name)
        else:
            buffer.add(data, metadata, name)

    def clear_output(self, wait: bool = False) -> None:
        buffer = displays.current()
        if buffer is not None:
            buffer.clear(wait)


def shell() -> Any:
    """The shell in use. A worker has none until a task needs it, for a magic, a command or something to display."""
    if not InteractiveShell.initialized():
        from traitlets.config import Config

        quiet = Config()
        quiet.HistoryManager.enabled = False
        quiet.InteractiveShell.colors = "nocolor" if IPython.version_info[0] >= 9 else "NoColor"
        made: Any = Shell.instance(config=quiet, user_module=sys.modules["__main__"])
        pictures: Any = made.display_formatter.formatters["image/png"]  # ``display(figure)`` shows the picture
        pictures.for_type_by_name("matplotlib.figure", "Figure", displays.drawn)
    return InteractiveShell.instance()


class Shell(InteractiveShell):
    """A shell without a history, which leaves the process as it is."""

    display_pub_class = Publisher
    system = InteractiveShell.system_raw  # through a terminal of its own, lines would end in carriage returns

    def init_sys_modules(self) -> None:
        """``__main__`` stays what it was."""

    def init_virtualenv(self) -> None:
        """Packages come from where the worker has its own, whatever environment the terminal had activated."""

    def init_traceback_handlers(self, custom_exceptions: Any) -> None:
        super().init_traceback_handlers(custom_exceptions)
        sys.excepthook = sys.__excepthook__


def publish(value: Any) -> None:
    """Show a value as under any cell."""
    here: Any = shell()
    bundle = here.display_formatter.format(value)
    buffer = displays.current()
    if buffer is not None and isinstance(here, Shell):
        buffer.add(*bundle)
    else:
        here.display_pub.publish(*bundle)


def work_in(namespace: dict[str, Any]) -> None:
    """A worker's shell, where there is one by now, finds names there."""
    if InteractiveShell.initialized() and isinstance(InteractiveShell.instance(), Shell):
        InteractiveShell.instance().user_ns = namespace
