"""Hosts for tests, as far as one machine can play them: each a network, a name, processes and mounts of its own.

A host is a set of Linux namespaces with a real sshd in it. Its link can be cut, its mounts can differ, and its
processes are no more visible to others than those of another machine, so they live and die by their beats.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from jug_notebook.clock import CLOCK
from tests import sshd

NET = "10.77"


def missing() -> str:
    """What these hosts need and isn't there; empty where all is."""
    if sshd.missing():
        return sshd.missing()
    if os.getuid() != 0:
        return "only root can make network namespaces"
    for program in ("ip", "unshare", "mount"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    probe = f"jnp{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"this machine makes no network namespaces: {tried.stderr.strip()}"
    pair = ["ip", "link", "add", f"{probe}e", "type", "veth", "peer", "name", "eth0", "netns", probe]
    tried = subprocess.run(pair, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], check=False)
    if tried.returncode:
        return f"this machine has no virtual links: {tried.stderr.strip()}"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--uts", "--fork", "true"], capture_output=True, check=False)
    return "this machine makes no pid and mount namespaces" if tried.returncode else ""


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Hosts:
    """Some hosts on one network. ``mounts`` say for a host which folder it sees where, and nowhere else."""

    def __init__(self, folder: Path, *names: str, mounts: Mapping[str, tuple[Path, Path]] | None = None) -> None:
        self.folder = folder / "hosts"
        self.folder.mkdir(mode=0o700)
        os.makedirs("/run/sshd", exist_ok=True)
        self.names = names
        self._tag = f"{os.getpid() % 100000:x}"
        self._centre = f"jnc{self._tag}"
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        sshd.make_key(self.folder / "user")
        self.config = self.folder / "config"
        self._spaces = [self._centre]
        run("ip", "netns", "add", self._centre)
        run("ip", "-n", self._centre, "link", "set", "lo", "up")
        run("ip", "-n", self._centre, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._centre, "addr", "add", f"{NET}.0.1/16", "dev", "br0")
        run("ip", "-n", self._centre, "link", "set", "br0", "up")
        for number, name in enumerate(names, 1):
            self._add(name, f"{NET}.1.{number}", (mounts or {}).get(name))

    def _add(self, name: str, address: str, mount: tuple[Path, Path] | None) -> None:
        space, link, folder = self._space(name), self._link(name), self.folder
        run("ip", "netns", "add", space)
        self._spaces.append(space)
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "link", "add", link, "netns", self._centre, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", self._centre, "link", "set", link, "master", "br0", "up")
        run("ip", "-n", space, "addr", "add", f"{address}/16", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        sshd.make_key(folder / f"host-{name}")
        with (folder / "known").open("a") as known:
            known.write(f"{address} {' '.join((folder / f'host-{name}.pub').read_text().split()[:2])}\n")
        with self.config.open("a") as config:
            config.write(
                f"Host {name}\n  HostName {address}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
                f"  IdentityAgent none\n  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
                f"  ConnectTimeout 3\n  ControlMaster auto\n  ControlPath {folder}/cm-{name}\n  ControlPersist 60\n"
            )
        path = os.pathsep.join(filter(None, (sshd.ROOT, os.environ.get("PYTHONPATH", ""))))
        steps = [f"hostname {name}"]
        if mount is not None:
            here, there = mount
            there.mkdir(exist_ok=True)
            steps += [f"mount --bind {here} {there}", f"mount -t tmpfs none {here}"]
        steps.append(
            f"exec {sshd.SSHD} -D -f /dev/null -E {folder}/{name}.log -h {folder}/host-{name} "
            f"-o ListenAddress={address} -o PidFile=none -o AuthorizedKeysFile={folder}/user.pub -o StrictModes=no "
            f"-o UsePAM=no -o PasswordAuthentication=no "
            f"-o 'SetEnv=PYTHONPATH={path} XDG_CONFIG_HOME={folder}/settings-{name} HOME={folder}/home-{name}'"
        )
        self._hosts[name] = subprocess.Popen(
            ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child",
             "--mount-proc", "sh", "-c", " && ".join(steps)],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        until = CLOCK.monotonic() + 20
        probe = ["ip", "netns", "exec", self._centre, "ssh-keyscan", "-T", "1", address]
        while not subprocess.run(probe, capture_output=True, check=False).stdout:
            assert self._hosts[name].poll() is None, f"{name} ended with {self._hosts[name].returncode}"
            assert CLOCK.monotonic() < until, (folder / f"{name}.log").read_text()

    def _space(self, name: str) -> str:
        return f"jnw{self._tag}{self.names.index(name)}"

    def _link(self, name: str) -> str:
        return f"jne{self._tag}{self.names.index(name)}"

    @property
    def command(self) -> str:
        """ssh, from the middle of this network."""
        return f"ip netns exec {self._centre} ssh -F {self.config}"

    def cut(self, name: str) -> None:
        """Take a host's link down; and with it, as where a hard mount hangs, all that its processes do."""
        run("ip", "-n", self._centre, "link", "set", self._link(name), "down")
        self._signal(name, signal.SIGSTOP)

    def heal(self, name: str) -> None:
        run("ip", "-n", self._centre, "link", "set", self._link(name), "up")
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: int) -> None:
        for pid in run("ip", "netns", "pids", self._space(name)).split():
            try:
                os.kill(int(pid), number)
            except ProcessLookupError:
                continue

    def leave(self) -> None:
        """Close the connections that are kept."""
        for path in self.folder.glob("cm-*"):
            subprocess.run([*self.command.split(), "-O", "exit", path.name[3:]], capture_output=True, check=False)

    def close(self) -> None:
        for name, host in self._hosts.items():
            self._signal(name, signal.SIGKILL)
            host.wait()
        for pid in run("ip", "netns", "pids", self._centre).split():
            os.kill(int(pid), signal.SIGKILL)
        for space in self._spaces:
            run("ip", "netns", "del", space)
