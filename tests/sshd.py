"""A real OpenSSH server for tests: on the loopback, with keys, settings and known hosts of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from jug_notebook.clock import CLOCK

ROOT = str(Path(__file__).resolve().parents[1])
SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def missing() -> str:
    """What a test over ssh needs and isn't there; empty where all is."""
    for program in ("ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return "" if SSHD else "sshd is not installed"


class Sshd:
    """A server; ``there`` is what a login finds in its environment. ``host(…)`` gives it names for ssh."""

    def __init__(self, folder: Path, **there: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host", "user", "other"):
            make_key(folder / name)
        public = (folder / "host.pub").read_text().split()[:2]
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")
        other = (folder / "other.pub").read_text().split()[:2]
        (folder / "known_otherwise").write_text(f"[127.0.0.1]:{self.port} {' '.join(other)}\n")
        (folder / "known_nobody").write_text("")
        self.config = folder / "config"
        self.config.write_text("")
        path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH", ""))))
        (folder / "home").mkdir(exist_ok=True)  # what the user's own shell does at a login is no matter here
        finds = {"PYTHONPATH": path, "XDG_CONFIG_HOME": str(folder / "settings"), "HOME": str(folder / "home"), **there}
        (folder / "sshd_config").write_text(
            f"""
Port {self.port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
SetEnv {" ".join(f'"{name}={value}"' for name, value in finds.items())}
"""
        )
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert SSHD is not None
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # a server of root separates privileges there
        self._server = subprocess.Popen(
            [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "log")],
            stdin=subprocess.DEVNULL,
        )
        until = CLOCK.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._server.poll() is None, (self.folder / "log").read_text()
            assert CLOCK.monotonic() < until, "the server never listened"
            CLOCK.sleep(0.01)

    def stop(self) -> None:
        """No new connection, and none that is kept."""
        assert self._server is not None
        self.leave()
        self._server.terminate()
        self._server.wait()

    def host(self, name: str, **options: str) -> str:
        """A name for it, with ssh options of its own."""
        settings: Mapping[str, str] = {
            "HostName": "127.0.0.1", "Port": str(self.port), "IdentityFile": f"{self.folder}/user",
            "IdentitiesOnly": "yes", "IdentityAgent": "none", "UserKnownHostsFile": f"{self.folder}/known",
            "GlobalKnownHostsFile": "/dev/null",
            "ControlMaster": "auto", "ControlPath": f"{self.folder}/cm-{name}", "ControlPersist": "60",
        } | options  # fmt: skip
        with self.config.open("a") as config:
            config.write(f"Host {name}\n" + "".join(f"  {key} {value}\n" for key, value in settings.items()))
        return name

    @property
    def command(self) -> str:
        """ssh, with these names."""
        return f"ssh -F {self.config}"

    def leave(self, name: str = "") -> None:
        """Close the connections that are kept, or one."""
        for socket_path in self.folder.glob(f"cm-{name or '*'}"):
            subprocess.run(
                ["ssh", "-F", str(self.config), "-O", "exit", socket_path.name[3:]],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip

    def close(self) -> None:
        self.leave()
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGTERM)
            self._server.wait()


def make_key(path: Path) -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
