"""How long until workers on other hosts run tasks: the first on a new host, the next over a kept connection, and many.

The hosts are stand-ins on this machine: names for one sshd on the loopback (so the network costs nothing and the
processors are shared), or with ``--namespaces`` network namespaces with an sshd each. What ssh and the login cost by
themselves is told beside.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jug_notebook as jn
from jug_notebook.launch import ssh
from tests import netns, sshd


@jn.task
def where(x: object) -> int:
    return os.getpid()


def until_none(session: jn.Session) -> None:
    session.stop(now=True)
    seen = -1
    while any(alive and info.kind == "supervisor" for info, alive, _ in session.access.store.processes()):
        seen = session.access.store.watch(seen, 0.05)


def first_task(session: jn.Session, host: str, mark: object) -> float:
    """Seconds from asking for a worker on a host to the first result from there."""
    task = where(mark)
    session.submissions.flush()
    began = time.perf_counter()
    session.execute(1, hosts=[host])
    task.result()
    took = time.perf_counter() - began
    until_none(session)
    return took


def many(session: jn.Session, hosts: list[str], workers: int) -> dict[str, float]:
    """Start ``workers`` on each; what that takes, and what it costs the kernel and the store meanwhile."""
    cpu, began = time.process_time(), time.perf_counter()
    crew = session.execute(workers, hosts=hosts)
    returned = time.perf_counter() - began
    looks = 0
    while crew.alive() < workers * len(hosts):
        assert not crew.failures, crew.failures
        time.sleep(0.1)
        looks += 1
    took = time.perf_counter() - began
    spent = time.process_time() - cpu
    folder = Path(session.url.partition(":")[2])
    orders = len(list((folder / "orders").iterdir()))
    began = time.perf_counter()
    session.status(all=True)
    status = time.perf_counter() - began
    written = {path: path.stat().st_size for path in (folder / "log").iterdir()}
    time.sleep(3)
    grown = sum(path.stat().st_size - size for path, size in written.items())
    until_none(session)
    return {
        "returned": returned, "took": took, "kernel cpu": spent, "looks": looks, "orders left": orders,
        "status": status, "log growth when idle, bytes/s": grown / 3,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--workers", type=int, default=10, help="on each of the hosts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--namespaces", action="store_true", help="hosts are network namespaces (root)")
    options = parser.parse_args()
    names = [f"h{number}" for number in range(options.hosts)]
    with tempfile.TemporaryDirectory(prefix="jug-hosts-") as place:
        folder = Path(place)
        os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
        hosts: netns.Hosts | sshd.Sshd
        if options.namespaces:
            hosts = netns.Hosts(folder, *names)
        else:
            hosts = sshd.Sshd(folder / "ssh")
            for name in names:
                hosts.host(name)
        os.environ[ssh.COMMAND] = hosts.command
        session = jn.connect(folder / "jugdata")
        try:
            cold, kept, bare = [], [], []
            for number in range(options.repeats):
                hosts.leave()
                began = time.perf_counter()
                login = [*hosts.command.split(), "-T", "-o", "BatchMode=yes", "h0", "true"]
                subprocess.run(login, check=True, stderr=subprocess.DEVNULL)
                bare.append(time.perf_counter() - began)
                hosts.leave()
                cold.append(first_task(session, "h0", ("cold", number)))
                kept.append(first_task(session, "h0", ("kept", number)))
            print(f"ssh and login alone             {median(bare):6.2f} s  (best {min(bare):.2f})")
            print(f"first task on a new host        {median(cold):6.2f} s  (best {min(cold):.2f})   limit 1.5")
            print(f"… over a connection that is kept{median(kept):6.2f} s  (best {min(kept):.2f})   limit 0.5")
            report = many(session, names, options.workers)
            worker_count_text = f"{options.hosts * options.workers} workers on {options.hosts} hosts"
            print(f"{worker_count_text}: all alive after {report.pop('took'):.2f} s   limit 10")
            for name, value in report.items():
                print(f"  {name:<32} {value:.3f}")
        finally:
            until_none(session)
            session.close()
            hosts.close()


if __name__ == "__main__":
    main()
