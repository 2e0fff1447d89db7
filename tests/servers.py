"""Real servers for tests: Redis on a socket of its own, killed and started at will; one that keeps what it gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted to it; the first ``refused`` posts get status 500."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, Any]] = []
        self.refused = 0
        self.arrived = threading.Condition()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def wait_for(self, count: int, patience: float = 40.0) -> list[str]:
        """Return the lines that came, once there are so many of them."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, patience), f"only {self.got} came"
            return [one["text"] for one in self.got]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.arrived:
            if server.refused:
                server.refused -= 1
                self.send_error(500)
            else:
                server.got.append({"path": self.path, "key": self.headers["Idempotency-Key"], **data})
                self.send_response(200)
                self.end_headers()
            server.arrived.notify_all()

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()
