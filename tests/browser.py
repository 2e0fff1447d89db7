"""A real JupyterLab in a real browser for tests: own folders, own token, the loopback alone."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = str(Path(__file__).resolve().parents[1])
PATIENCE = 15_000  #: milliseconds after which what does not appear is missing
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
}
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
KERNEL = f"{NOTEBOOK}?.sessionContext?.session?.kernel"


def missing() -> str:
    """What a browser test needs and isn't there; empty where all is."""
    try:
        import jupyterlab  # noqa: F401
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    return "" if chromium() else f"none of {', '.join(CHROMIUM)} is installed"


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


class Lab:
    """A JupyterLab server that serves ``folder/work``."""

    def __init__(self, folder: Path, theme: str = "JupyterLab Light", **environ: str) -> None:
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        settings = folder / "settings" / "@jupyterlab"
        for name, content in {**SETTINGS, "apputils-extension/themes": {"theme": theme}}.items():
            path = settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        self.token = secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        env = {
            **os.environ,
            "JUPYTER_TOKEN": self.token,
            "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH", "")))),
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            **environ,
        }
        options = [
            "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.url.rsplit(':')[-1]}",
            "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.work}", "--LabApp.expose_app_in_browser=True",
            "--LabApp.extension_manager=readonly", "--LabApp.news_url=",
        ]  # fmt: skip
        self._log = folder / "server.log"
        with self._log.open("w") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log, start_new_session=True
            )

    def await_ready(self, page: Page) -> None:
        """Until it answers."""
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=5).read()
                return
            except OSError:
                assert self._server.poll() is None, self._log.read_text()
                page.wait_for_timeout(50)

    def write(self, name: str, cells: Sequence[str]) -> None:
        """A notebook with these cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.work / name)

    def close(self) -> None:
        """Kernels first, then the server."""
        request = urllib.request.Request(f"{self.url}/api/shutdown?token={self.token}", method="POST")
        try:
            urllib.request.urlopen(request, timeout=10).read()
            self._server.wait(20)
        except (urllib.error.URLError, subprocess.TimeoutExpired):
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()


class Tab:
    """A notebook in the browser, driven through the application, not the keyboard."""

    def __init__(self, lab: Lab, page: Page, name: str) -> None:
        self.lab, self.page, self.name = lab, page, name
        page.set_default_timeout(PATIENCE)

    def open(self) -> None:
        """Open it, or open it anew."""
        page = self.page
        page.goto(f"{self.lab.url}/lab/tree/{self.name}?token={self.lab.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.await_status("idle")
        page.evaluate("window.jupyterapp.shell.collapseLeft()")

    def run(self, cell: int) -> None:
        """Run a cell, and wait until it has run."""
        self.page.evaluate(_RUN + "await done; }", cell)

    def begin(self, cell: int) -> None:
        """Run a cell, and don't wait."""
        self.page.evaluate(_RUN + "}", cell)

    def await_status(self, status: str) -> None:
        self.page.wait_for_function(f"window.jupyterapp && {KERNEL}?.status == '{status}'")

    @property
    def status(self) -> str:
        """What the kernel does: idle, busy …"""
        return str(self.page.evaluate(f"{KERNEL}?.status"))

    def runs(self, cell: int) -> bool:
        """Does that cell still run? The kernel's status can't tell: a press handled beside the cell makes it idle."""
        return self._prompt(cell).inner_text() == "[*]:"

    def await_end(self, cell: int) -> None:
        """Until a cell that was begun has run."""
        self._prompt(cell).filter(has_not_text="*").wait_for()

    def _prompt(self, cell: int) -> Any:
        return self.page.locator(".jp-Cell").nth(cell).locator(".jp-InputPrompt")

    def restart_kernel(self) -> None:
        self.page.evaluate(f"async () => {{ await {KERNEL}.restart(); }}")
        self.await_status("idle")

    def save(self) -> Any:
        """Save it, and answer what is in the file."""
        self.page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save'); }")
        return nbformat.read(self.lab.work / self.name, 4)


_RUN = f"""async i => {{
  const notebook = {NOTEBOOK};
  notebook.content.activeCellIndex = i;
  const done = window.jupyterapp.commands.execute('notebook:run-cell');
"""


@contextmanager
def browser(width: int = 1200, height: int = 1500) -> Iterator[Page]:
    """A page of a browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, headless=True)
        try:
            yield started.new_context(viewport={"width": width, "height": height}).new_page()
        finally:
            started.close()
