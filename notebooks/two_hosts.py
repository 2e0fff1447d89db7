"""Lets this machine play other hosts, so that the notebook on many machines can run on a single one.

`play` starts an ssh server on the loopback, with its own keys and settings, and gives it several names. Your ssh
configuration is neither read nor changed. If there is no sshd, a stand-in for ssh runs here what ssh would have run
there, so that everything except the network is the same.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

STAND_IN = """#!/bin/sh
for last; do :; done
case " $* " in *" -G "*) exit 0;; esac
case " $* " in *" stranger "*) echo "ssh: Could not resolve hostname stranger" >&2; exit 255;; esac
exec sh -c "$last"
"""


def play(*names: str) -> str:
    """Let jug_notebook's ``ssh NAME`` reach this machine from now on. Return a text that says what plays the hosts."""
    folder = Path(tempfile.mkdtemp(prefix="two-hosts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        os.environ["JUG_NOTEBOOK_SSH"] = _server(folder, names)
        return f"a private ssh server on this machine, called {' and '.join(names)}"
    except (OSError, subprocess.SubprocessError):
        (folder / "ssh").write_text(STAND_IN)
        (folder / "ssh").chmod(0o755)
        os.environ["JUG_NOTEBOOK_SSH"] = str(folder / "ssh")
        return f"a stand-in for ssh, as there is no sshd here; hosts are {' and '.join(names)}"


def _server(folder: Path, names: tuple[str, ...]) -> str:
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if sshd is None:
        raise FileNotFoundError("sshd")
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known").write_text(f"[127.0.0.1]:{port} {public}\n")
    known = ("PYTHONPATH", "XDG_CONFIG_HOME")
    found = " ".join(f'"{name}={os.environ[name]}"' for name in known if os.environ.get(name))
    if os.environ.get("XDG_CONFIG_HOME"):
        found += f' "HOME={folder}"'  # whatever the shell does at a login
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": f"{folder}/host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": f"{folder}/user.pub", "StrictModes": "no", "PasswordAuthentication": "no",
    } | ({"SetEnv": found} if found else {})  # fmt: skip
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    config = "".join(f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n" for name in names) + (
        f"Host stranger\n  HostName stranger.invalid\nHost *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
        f"  ControlMaster auto\n  ControlPath {folder}/kept-%n\n  ControlPersist 60\n"
    )
    (folder / "config").write_text(config)
    server = subprocess.Popen(
        [sshd, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")], stdin=subprocess.DEVNULL
    )
    atexit.register(server.terminate)
    command = f"ssh -F {folder}/config"
    for name in names:
        patience = ["-o", "BatchMode=yes", "-o", "ConnectionAttempts=20", "-o", "ConnectTimeout=5"]
        subprocess.run(
            [*command.split(), *patience, name, "true"], check=True, timeout=30, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        atexit.register(subprocess.run, [*command.split(), "-O", "exit", name], check=False, stderr=subprocess.DEVNULL)
    return command
