"""A real Redis server for tests: started on a socket of its own, killed and started again at will."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

BINARY = os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")


class Server:
    """One server, in a folder of its own; what it is given outlives it there."""

    def __init__(self, *options: str, appendonly: bool = True, binary: str | None = BINARY) -> None:
        if binary is None:
            pytest.skip("there is no redis-server here: apt-get install redis-server")
        self.folder = Path(tempfile.mkdtemp(prefix="jr"))  # the path of a socket must be short
        self.socket = self.folder / "redis.sock"
        self._log = self.folder / "log"
        self._command = [
            binary, "--dir", str(self.folder), "--unixsocket", str(self.socket), "--bind", "127.0.0.1", "--port", "0",
            "--save", "", "--appendonly", "yes" if appendonly else "no", "--appendfsync", "everysec",
            "--logfile", str(self._log), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Answers when it takes connections; it may still be reading its data."""
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        while True:
            with socket.socket(socket.AF_UNIX) as line:
                try:
                    line.connect(str(self.socket))
                    return
                except OSError:
                    assert self._process.poll() is None, self._log.read_text()[-2000:]

    def kill(self) -> None:
        """As a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It takes connections, but answers nothing until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, project: str = "", **options: str) -> str:
        """Of a project; a fresh one, if none is named."""
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"unix://{self.socket}?project={project or uuid.uuid4().hex[:8]}{more}"


def speaks_tls() -> bool:
    """Was the server built with it?"""
    if BINARY is None:
        return False
    command = [BINARY, "--port", "0", "--tls-port", "1"]  # without a certificate it ends, and says what it lacks
    return "tls-cert-file configured" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port: int = line.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """One for all tests; each has a project of its own."""
    server = Server()
    yield server
    server.remove()
