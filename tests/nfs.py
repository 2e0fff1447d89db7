"""Machines for tests that share a folder over NFSv4.1: a server here, and clients with a Linux kernel of their own.

The server is nfs-ganesha, without root's ports. A client is a virtual machine (qemu, in software) with Debian's kernel,
whose root is this machine's, read only: so it runs the same Python and the same package. Two clients share nothing but
the server: each has its boot id, its pids, its clock and its cache.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

PROGRAMS = ("ganesha.nfsd", "qemu-system-x86_64", "busybox", "cpio", "depmod", "modprobe", "apt-get", "dpkg-deb")
MODULES = ("virtio_pci", "virtio_net", "9p", "9pnet_virtio", "nfs", "nfsv4")
KERNEL = Path(sys.prefix) / "nfs-kernel"  #: made once
MOUNT = Path("/mnt/nfs")  #: the shared folder, as clients see it
SIDE = Path("/mnt/side")  #: beside it, a folder that clients and this machine share otherwise
LEASE = 20  #: seconds after which the server forgets a silent client

SERVER = """
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = {port}; Bind_addr = 127.0.0.1; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Lease_Lifetime = {lease}; Grace_Period = {lease}; RecoveryBackend = fs; RecoveryRoot = {folder}/recovery; }}
# it caches nothing, for this machine changes files, too; Linux' server is the same in this
MDCACHE {{ Dir_Chunk = 0; }}
EXPORT_DEFAULTS {{ Attr_Expiration_Time = 0; }}
EXPORT {{ Export_Id = 1; Path = {folder}/export; Pseudo = /x; Access_Type = RW; Squash = No_Root_Squash; Protocols = 4;
         SecType = sys; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""

INIT = """#!/bin/busybox sh
B=/bin/busybox; $B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
for word in $($B cat /proc/cmdline); do
    case $word in name=*) NAME=${word#name=};; port=*) PORT=${word#port=};; esac
done
$B hostname $NAME
while read module; do $B insmod /modules/$module || echo "no $module"; done < /order
$B ip link set lo up; $B ip link set eth0 up; $B ip addr add 10.0.2.15/24 dev eth0; $B ip route add default via 10.0.2.2
P=trans=virtio,version=9p2000.L,msize=262144
$B mount -t 9p -o $P,ro,cache=loose host /r
$B mount -t proc x /r/proc; $B mount -t sysfs x /r/sys; $B mount -t devtmpfs x /r/dev
$B mkdir -p /r/dev/shm; $B mount -t tmpfs x /r/dev/shm; $B mount -t tmpfs x /r/mnt
$B mkdir /r/mnt/nfs /r/mnt/side /r/mnt/own; $B mount -t 9p -o $P,cache=none side /r/mnt/side
export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/mnt/own TMPDIR=/mnt/own
export XDG_CONFIG_HOME=/mnt/side/config XDG_CACHE_HOME=/mnt/own
$B chroot /r /bin/mount -i -t nfs4 \
    -o vers=4.1,port=$PORT,proto=tcp,addr=10.0.2.2,clientaddr=10.0.2.15,hard 10.0.2.2:/x /mnt/nfs
$B stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo up >&3
while read -r number; do
    file=/mnt/side/$NAME.$number
    { $B chroot /r /bin/sh $file.sh </dev/null >/r$file 2>&1 3>&-; echo "$number $?" >&3; } &
done <&3
"""


def missing() -> str:
    """What this needs and isn't there; empty where all is."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "only Linux on x86_64 has these machines"
    if os.getuid() != 0:
        return "only root can run this server"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is not installed: make test-nfs installs it where it can"
    try:
        make_kernel()
    except subprocess.CalledProcessError as error:
        return f"Debian's kernel can't be had here: {error.cmd}: {error.stderr}"
    return ""


def make_kernel() -> None:
    """Make Debian's kernel and a first file system with the few modules and the one script that a client needs."""
    if (KERNEL / "init.gz").exists():
        return
    shutil.rmtree(KERNEL, ignore_errors=True)
    image, root = KERNEL / "image", KERNEL / "root"
    for folder in ("bin", "modules", "r", "proc", "sys", "dev"):
        (root / folder).mkdir(parents=True)
    depends = _run(KERNEL, "apt-cache", "depends", "linux-image-amd64").split()
    _run(KERNEL, "apt-get", "download", "-q", depends[depends.index("Depends:") + 1])
    [package] = KERNEL.glob("*.deb")
    _run(KERNEL, "dpkg-deb", "-x", str(package), str(image))
    [linux] = image.glob("boot/vmlinuz-*")
    linux.rename(KERNEL / "vmlinuz")
    version = linux.name.partition("-")[2]
    _run(KERNEL, "depmod", "-b", str(image), version)
    paths: dict[str, None] = {}
    for module in MODULES:
        lines = _run(KERNEL, "modprobe", "-d", str(image), "-S", version, "--show-depends", module).splitlines()
        paths |= dict.fromkeys(line.split()[1] for line in lines if line.startswith("insmod"))
    for path in paths:
        shutil.copy(path, root / "modules")
    (root / "order").write_text("".join(f"{Path(path).name}\n" for path in paths))
    shutil.copy(shutil.which("busybox") or "", root / "bin")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    _run(root, "sh", "-c", "find . | cpio -o -H newc --quiet | gzip -1 > ../init.new")
    package.unlink()
    shutil.rmtree(image)
    (KERNEL / "init.new").rename(KERNEL / "init.gz")


def _run(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=100)
    return done.stdout


class Server:
    """An NFS server of the folder ``export``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.export = folder / "export"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        for path in (self.export, folder / "recovery", Path("/run/ganesha"), Path("/var/lib/nfs/ganesha")):
            path.mkdir(parents=True, exist_ok=True)
        (folder / "ganesha.conf").write_text(SERVER.format(port=self.port, folder=folder, lease=LEASE))
        self.start()

    def start(self) -> None:
        words = ["ganesha.nfsd", "-F", "-f", "ganesha.conf", "-L", f"{self.folder}/ganesha.log", "-p", "ganesha.pid"]
        self._process = subprocess.Popen(
            words, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 30
        while True:
            assert self._process.poll() is None, (self.folder / "ganesha.log").read_text()[-3000:]
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < until, "the server does not listen"
                time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Client:
    """A machine that has mounted the server's folder at `MOUNT`."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self.side = server.folder / "side"
        self.side.mkdir(exist_ok=True)
        self._ended: dict[int, int] = {}
        self._changed = threading.Condition()
        self._commands = 0
        path = server.folder / f"{name}.serial"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(60)
        shared = "security_model=none,multidevs=remap"
        self._process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "700", "-nodefaults",
             "-no-reboot", "-display", "none",
             "-serial", f"file:{server.folder}/{name}.console", "-serial", f"unix:{path}",
             "-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(KERNEL / "init.gz"),
             "-append", f"console=ttyS0 quiet panic=1 mitigations=off name={name} port={server.port}",
             "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile=",
             "-virtfs", f"local,path=/,mount_tag=host,readonly=on,{shared}",
             "-virtfs", f"local,path={self.side},mount_tag=side,{shared}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(server.folder / f"{name}.qemu").open("w"),
        )  # fmt: skip
        self._line, _ = listener.accept()
        listener.close()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with self._line.makefile("r") as lines:
            for line in lines:
                number, _, status = line.strip().partition(" ")
                with self._changed:
                    self._ended[0 if number == "up" else int(number)] = int(status or 0)
                    self._changed.notify_all()

    def wait(self, command: int = 0, timeout: float = 60) -> str:
        """Wait until a command has ended, the machine's start without one. Return what it wrote."""
        with self._changed:
            ended = self._changed.wait_for(lambda: command in self._ended, timeout)
        assert ended, f"{self.name} is not done after {timeout:g} s: {self.output(command)}"
        assert self._ended[command] == 0, self.output(command)
        return self.output(command)

    def output(self, command: int) -> str:
        path = self.side / f"{self.name}.{command}"
        return path.read_text() if path.exists() else ""

    def start(self, line: str) -> int:
        """Start a shell's command. Return its number."""
        self._commands += 1
        (self.side / f"{self.name}.{self._commands}.sh").write_text(line)
        self._line.sendall(f"{self._commands}\n".encode())  # a serial line may lose what is longer
        return self._commands

    def run(self, line: str, timeout: float = 60) -> str:
        """Return what a shell's command writes."""
        return self.wait(self.start(line), timeout)

    def operations(self) -> Counter[str]:
        """Return how often each operation was asked of the server since the mount."""
        lines = self.run("cat /proc/self/mountstats").partition("per-op statistics")[2].splitlines()
        words = [line.split() for line in lines if ":" in line]
        return Counter({name.rstrip(":"): int(count) for name, count, *_ in words})

    def stop(self) -> None:
        """Stop the whole machine for a while."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as where its power fails."""
        self._process.kill()
        self._process.wait()
