"""A real kernel for tests: cells are run as a front end runs them, and what each printed and displayed is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

ROOT = str(Path(__file__).resolve().parents[1])

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: cells of tasks
PRIMES = """%%jugtask
def is_prime(n):
    print("testing", n)
    return n > 1 and all(n % k for k in range(2, n))

def count_primes(flags):
    return sum(flags)
"""
#: one that ends once there is a file
HELD = """%%jugtask
import os, time
def held(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return 1
"""


@dataclass
class CellOutput:
    """What one cell printed and displayed."""

    out: str = ""  #: what it printed
    result: str = ""  #: its Out[]
    displays: list[dict[str, Any]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""  #: the exception's name,
    message: str = ""  #: and its text
    traceback: str = ""

    @property
    def plain_traceback(self) -> str:
        """Return the traceback without its colours."""
        return COLOURS.sub("", self.traceback)


class Kernel:
    """A kernel in ``folder``, with environment variables of one's own."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.answers: list[str] = []
        self.asks = False  #: may cells ask, as those of a front end with a user
        self.manager = KernelManager(kernel_name="python3")
        path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH", ""))))
        env = {**os.environ, "PYTHONPATH": path, "IPYTHONDIR": str(folder / ".ipython"), **environ}
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @classmethod
    def of_notebook(cls, folder: Path, settings: Path) -> Kernel:
        """Return a kernel as a Jupyter server starts it for n.ipynb, with its display in text and own settings."""
        notebook = str(folder / "n.ipynb")
        return cls(folder, JPY_SESSION_NAME=notebook, XDG_CONFIG_HOME=str(settings), JUG_NOTEBOOK_DISPLAY="text")

    def begin(self, code: str, cell: str = "", answers: Sequence[str] = ()) -> str:
        """Send a cell, and don't wait."""
        self.answers = list(answers)
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {},
            "allow_stdin": self.asks or bool(answers),
            "stop_on_error": False,
        }  # fmt: skip
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell} if cell else {})
        self.client.shell_channel.send(message)
        ident: str = message["header"]["msg_id"]
        return ident

    def end(self, ident: str) -> CellOutput:
        """Wait until that cell has run."""
        output = CellOutput()
        for answer in self.answers:
            self.client.get_stdin_msg(timeout=60)
            self.client.input(answer)
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            if kind == "update_display_data":
                output.updates.append(content)
            if message["parent_header"].get("msg_id") != ident:
                continue
            if kind == "status" and content["execution_state"] == "idle":
                break
            self._keep(output, kind, content)
        while (reply := self.client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != ident:
            pass
        if reply["content"]["status"] == "error":
            output.error, output.message = reply["content"]["ename"], reply["content"]["evalue"]
        return output

    def update(self) -> dict[str, Any]:
        """Wait until a picture is redrawn; nothing runs meanwhile."""
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["msg_type"] == "update_display_data":
                content: dict[str, Any] = message["content"]
                return content

    @staticmethod
    def _keep(output: CellOutput, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            output.out += content["text"]
        elif kind == "execute_result":
            output.result = content["data"]["text/plain"]
        elif kind == "display_data":
            output.displays.append(content)
        elif kind == "error":
            output.traceback = "\n".join(content["traceback"])

    def run(self, code: str, cell: str = "") -> CellOutput:
        """Run a cell."""
        return self.end(self.begin(code, cell))

    def asked(self, code: str, answers: Sequence[str]) -> CellOutput:
        """Run a cell that asks, as a debugger does, and answer it."""
        return self.end(self.begin(code, answers=answers))

    def complete(self, code: str) -> list[str]:
        """Return what Tab offers at the end of a cell."""
        ident = self.client.complete(code, len(code))
        while (reply := self.client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != ident:
            pass
        matches: list[str] = reply["content"]["matches"]
        return matches

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()
