"""Many workers on one store: does each task run once, does everybody get some, and what does a claim cost?

``--workers`` simulated workers speak the real protocol (claim, settle, as `worker.work` does) in threads of
``--processes`` processes. Each process has one connection to the store and serves its workers over sockets, as the
supervisor of a host does. Tasks are no-ops of ``--seconds`` each. It also fits a redis store: ``--store
redis://localhost:6379/?project=swarm`` (made new each time).

With ``--machines`` each process passes for a machine of its own: it has no notice of what others write, as over NFS.

Told: tasks a second, milliseconds that a claim took (median, 99th percentile), how evenly the tasks went round (the
fewest and the most of one worker, and how many got none; the fewest of one host, as a part of an equal share), how long
after the first the last worker began, and how many files a host opens or lists in a second with nothing to do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK
from jug_notebook.model import Origin, Settlement, State, Submission, Verdict, WorkerInfo
from jug_notebook.store import Store, open_store
from jug_notebook.worker.channel import StoreServer, connected

HERE = Origin("ann", "/home/ann/study.ipynb", "cell-1")


class Worker:
    """One of the swarm: a thread."""

    def __init__(self, store: Store, seconds: float, over: threading.Event) -> None:
        self.store, self.seconds, self.over = store, seconds, over
        self.info: WorkerInfo = system.me("worker")
        self.ran: list[str] = []
        self.claims: list[float] = []
        self.began = 0.0

    def live(self) -> None:
        settled: list[Settlement] = []
        while not self.over.is_set():
            start = time.perf_counter()
            claims = self.store.claim(self.info.id, 512 if self.seconds < 0.01 else 1, 1.0, settled)
            if claims:
                self.claims.append(time.perf_counter() - start)
                self.began = self.began or time.time()
            settled = []
            for claim in claims:
                if self.seconds:
                    time.sleep(self.seconds)
                lease = claim.lease
                self.ran.append(lease.key)
                verdict = Verdict(
                    lease.key, lease.round, lease.inputs, lease.attempt, b"1", time.time(), max(self.seconds, 1e-5)
                )
                settled.append(Settlement(verdict, b"outcome"))
        self.store.claim(self.info.id, 0, 0.0, settled)


def pass_for_a_machine() -> None:
    """Make this process one that shares no kernel with the others, but only a folder."""
    from jug_notebook.store.file import watching

    name = secrets.token_hex(4)
    system.machine = lambda: name  # type: ignore[assignment]
    noticed = watching.FileWatcher.changed

    def changed(self: watching.FileWatcher) -> set[tuple[str, str]] | None:
        found = noticed(self)
        return found and {one for one in found if one[1].startswith(name)}

    watching.FileWatcher.changed = changed  # type: ignore[method-assign]


def host(url: str, workers: int, seconds: float, machine: bool) -> None:
    """A process with so many workers: at work from the first line that it gets to the third, idle from the second."""
    if machine:
        pass_for_a_machine()
    opened = [0]
    sys.addaudithook(
        lambda event, _: opened.__setitem__(0, opened[0] + (event in ("open", "os.listdir", "os.scandir")))
    )
    store, over = open_store(url), threading.Event()
    server = StoreServer(store, CLOCK)
    swarm = [Worker(connected(store, server.connect()[0]), seconds, over) for _ in range(workers)]
    supervisor = system.me("supervisor")
    infos = [supervisor, *(msgspec.structs.replace(worker.info, supervisor=supervisor.id) for worker in swarm)]
    store.renew(infos)
    threads = [threading.Thread(target=worker.live) for worker in swarm]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    ended = threading.Event()
    serving = threading.Thread(target=_serve, args=(server, store, infos, ended))
    serving.start()
    sys.stdin.readline()
    before, since = opened[0], time.time()
    sys.stdin.readline()
    idle = (opened[0] - before) / (time.time() - since)
    over.set()
    for thread in threads:
        thread.join()
    ended.set()
    serving.join()
    store.leave([info.id for info in infos])
    for worker in swarm:
        print(json.dumps({"ran": worker.ran, "claims": worker.claims, "began": worker.began, "idle": idle}))
    store.close()


def _serve(server: StoreServer, store: Store, infos: list[WorkerInfo], ended: threading.Event) -> None:
    beat, due = 0, 0.0
    while not ended.is_set():
        server.wait(0.1)
        if time.monotonic() >= due:
            beat, due = beat + 1, time.monotonic() + 1.0
            store.renew([msgspec.structs.replace(info, beat=beat) for info in infos])


def swarm(
    url: str, workers: int, processes: int, tasks: int, seconds: float, machines: bool, rest: float
) -> dict[str, float]:
    store = open_store(url)
    shares = [workers // processes + (number < workers % processes) for number in range(processes)]
    command = [sys.executable, __file__, "--store", url, "--seconds", str(seconds), "--host"]
    if machines:
        command.insert(2, "--machines")
    hosts = [
        subprocess.Popen([*command, str(share)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for share in shares
        if share
    ]
    for one in hosts:
        assert one.stdout is not None
        one.stdout.readline()
    names = [hashlib.sha1(b"%d" % number).hexdigest() for number in range(tasks)]
    for first in range(0, tasks, 1000):
        part = names[first : first + 1000]
        store.submit([Submission(key, "f", (), bytes.fromhex(key), b"spec", 0, "3.11") for key in part], HERE)
    start = time.time()
    for one in hosts:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    seen = -1
    while store.snapshot().counts[State.FINISHED] < tasks:
        seen = store.watch(seen, 1.0)
    took = time.time() - start
    for line, pause in (("idle\n", 5.0), ("over\n", rest)):
        time.sleep(pause)  # before it: until news is old
        for one in hosts:
            assert one.stdin is not None
            one.stdin.write(line)
            one.stdin.flush()
    by_host = [[json.loads(line) for line in one.communicate()[0].splitlines()] for one in hosts]
    report = [worker for one in by_host for worker in one]
    store.close()
    shares_ran = [sum(len(worker["ran"]) for worker in one) for one in by_host]
    ran = Counter(key for worker in report for key in worker["ran"])
    claims = sorted(claim for worker in report for claim in worker["claims"])
    counts = [len(worker["ran"]) for worker in report]
    began = [worker["began"] for worker in report if worker["began"]]
    return {
        "workers": workers,
        "tasks": tasks,
        "tasks/s": tasks / took,
        "run twice": sum(ran.values()) - len(ran),
        "never run": tasks - len(ran),
        "claim ms": 1e3 * statistics.median(claims),
        "claim ms, 99 %": 1e3 * claims[len(claims) * 99 // 100],
        "fewest of one": min(counts),
        "most of one": max(counts),
        "got none": sum(count == 0 for count in counts),
        "fewest of a host": min(shares_ran) * len(shares_ran) / tasks,
        "last began after s": max(began) - min(began),
        "idle opens/s": max(worker["idle"] for worker in report),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="its URL (default: a new folder, gone afterwards)")
    parser.add_argument("--workers", default="10,100,500")
    parser.add_argument("--processes", type=int, default=4, help="as many hosts")
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=0.05, help="that a task takes")
    parser.add_argument("--machines", action="store_true", help="each host passes for a machine of its own")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host is not None:
        host(options.store, options.host, options.seconds, options.machines)
        return
    rows = []
    for workers in map(int, options.workers.split(",")):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            url = f"{folder}/jugdata"
            if options.store:
                url = f"{options.store}-{secrets.token_hex(3)}"
            rows.append(swarm(url, workers, options.processes, options.tasks, options.seconds, options.machines, 5.0))
        print("  ".join(f"{name}: {value:,.4g}" for name, value in rows[-1].items()), flush=True)
    print(f"\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{value:,.4g}' for value in row.values())} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
