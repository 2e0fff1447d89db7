"""Runs a notebook without a browser, with the same keys, requests and results as when it is run in JupyterLab.

For that, the kernel starts in the notebook's folder and knows its path, as under a Jupyter server; each cell is sent
with its id. ``JUG_HEADLESS`` in the kernel's environment means that it ends after the last cell.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import JugError
from jug_notebook.render import duration
from jug_notebook.render.format import clean, elide
from jug_notebook.store import atomic


class NotANotebook(JugError):
    """The file is not a notebook."""


class KernelDied(JugError):
    """The notebook's kernel died."""


def environment(notebook: Path) -> dict[str, str]:
    """Return the environment variables of a notebook's kernel."""
    return {**os.environ, "JPY_SESSION_NAME": str(notebook), "JUG_HEADLESS": "1"}


def read(notebook: Path) -> Any:
    """Return the content of a notebook. Raises NotANotebook."""
    _, nbformat = _needed()
    try:
        return nbformat.read(notebook, as_version=4)
    except Exception as refused:  # nbformat raises whatever meets a file of another form
        why = next(iter(str(refused).splitlines()), type(refused).__name__)
        raise NotANotebook(f"{notebook.name} is not a notebook: {why[:120]}") from refused


def execute(notebook: Path, output: Path | None, notify: Callable[[str], None], clock: Clock = CLOCK) -> bool:
    """Run all cells and notify of each. Return False if one failed; ``output`` is written even then.

    Ctrl-C interrupts the cell, and the kernel ends in order; a second Ctrl-C ends the kernel at once. Both raise
    KeyboardInterrupt. Raises NotANotebook, KernelDied.
    """
    notebook = Path(os.path.abspath(notebook))  # not resolved: Jupyter doesn't resolve links, either
    nbclient, nbformat = _needed()
    content = read(notebook)
    run = _Run(nbclient, content, notebook, notify, clock)
    try:
        run.to_its_end()
    except nbclient.exceptions.CellExecutionError as failed:
        notify(clean(failed.traceback, colours=sys.stderr.isatty()).rstrip())
        return False
    except nbclient.exceptions.DeadKernelError as dead:
        raise KernelDied(f"the kernel of {notebook.name} died in cell {run.current} of {run.count}") from dead
    finally:
        if output is not None:
            mode = output.stat().st_mode & 0o7777 if output.exists() else atomic.USUAL
            atomic.replace(output, f"{nbformat.writes(content)}\n".encode(), mode=mode)
    return True


class _Run:
    """One run of a notebook, in a thread, so that the main thread can handle Ctrl-C."""

    def __init__(self, nbclient: Any, notebook: Any, path: Path, notify: Callable[[str], None], clock: Clock) -> None:
        self._cells = notebook.cells
        self._notify, self._clock, self._began = notify, clock, 0.0
        self.current = 0
        self.count = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in self._cells)
        self._client: Any = nbclient.NotebookClient(
            notebook,
            timeout=None,
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_execute=self._begins,
            on_cell_executed=self._ended,
        )
        manager = self._client.create_kernel_manager()
        if hasattr(manager, "transport_encryption"):  # used where both sides can do it
            manager.transport_encryption = "auto"
        self._environment = environment(path)
        self._interrupts = 0
        self._failure: BaseException | None = None
        self._started, self._over = threading.Event(), threading.Event()

    def to_its_end(self) -> None:
        """Run it. Raises what nbclient raises, and KeyboardInterrupt after a Ctrl-C, even if the cell caught it."""
        thread = threading.Thread(target=self._work, name="notebook")
        thread.start()
        while not self._over.is_set():  # an interrupted join would take the thread for dead
            try:
                self._over.wait()
            except KeyboardInterrupt:
                self._interrupt()
        thread.join()
        if self._interrupts:
            raise KeyboardInterrupt
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            asyncio.run(self._execute())
        except BaseException as failure:  # raised again in the main thread
            self._failure = failure
        finally:
            self._started.set()
            self._over.set()

    async def _execute(self) -> None:
        running = asyncio.current_task()
        assert running is not None
        self._loop, self._running = asyncio.get_running_loop(), running
        self._started.set()
        await self._client.async_execute(env=self._environment)

    def _interrupt(self) -> None:
        self._interrupts += 1
        self._started.wait()
        gently = self._interrupts == 1 and self.current
        if gently:
            self._notify("interrupting the cell; press Ctrl-C again to end the kernel")
        with suppress(RuntimeError, AttributeError):  # the loop has just closed, or never ran
            if gently:
                self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._client.km.interrupt_kernel()))
            else:
                self._loop.call_soon_threadsafe(self._running.cancel)

    def _begins(self, cell: Any, cell_index: int) -> None:
        if self._interrupts:
            raise KeyboardInterrupt
        # the metadata is sent with the code: it tells the kernel which cell this is
        self._client.kc.session.metadata = {"cellId": cell["id"]} if "id" in cell else {}
        self.current += 1
        self._began = self._clock.monotonic()

    def _ended(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        took = duration(self._clock.monotonic() - self._began)
        mark = "✓" if execute_reply["content"]["status"] == "ok" else "×"
        place = f"{self.current:>{len(str(self.count))}}/{self.count}"
        meant = mark == "×" and "raises-exception" in cell.metadata.get("tags", ())
        why = "  (meant to fail: the cell is tagged raises-exception)" if meant else ""
        self._notify(f"{mark} {place}  {took:>10}  {_first_line(cell.source)}{why}")


def _first_line(source: str) -> str:
    """Return the first line that is no comment, else the first one, shortened."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("#")), lines[0])
    return elide(first, 80)


def _needed() -> tuple[Any, Any]:
    try:
        import nbclient
        import nbclient.exceptions
        import nbformat
    except ImportError as missing:
        raise JugError(f"running a notebook needs {missing.name}: pip install 'jug-notebook[notebook]'") from missing
    return nbclient, nbformat
