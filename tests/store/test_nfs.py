"""A store in a folder that two machines share over NFSv4.1, with workers on both: `make test-nfs`, as root.

The machines are emulated and so slow that what is measured here is a bound, not a speed.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook.clock import CLOCK
from jug_notebook.model import LEASE, State
from jug_notebook.session import Session
from tests import nfs
from tests.workbench import cell

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.nfs, pytest.mark.slow, pytest.mark.timeout(300)]

RUN = """
def run(name, number, pause):
    import socket, time, uuid
    with open(f"/mnt/side/{socket.gethostname()}.runs", "a") as runs:
        runs.write(f"{name} {number}\\n")
    time.sleep(pause)
    return number * number, uuid.uuid4().hex
"""
STEP = "def {name}(number, mark): return number + 1"
COLLECT = "def collect(results): return results"


class Crew:
    """Workers on both machines, for one store."""

    def __init__(self, server: nfs.Server, clients: list[nfs.Client], name: str, words: list[str]) -> None:
        self.server = server
        self.clients = clients
        self.session: Session = jn.connect(server.export / name, notebook=server.folder / f"{name}.ipynb")
        self.count = sum(int(line.split()[1]) for line in words)
        self._commands = [client.start(self._command(name, line)) for client, line in zip(clients, words, strict=True)]
        self._until(lambda: len(self._alive("worker")) == self.count, 90)

    def _command(self, store: str, words: str) -> str:
        python, root = shlex.quote(sys.executable), shlex.quote(str(ROOT))
        return f"cd /mnt/own && PYTHONPATH={root} exec {python} -m jug_notebook worker {nfs.MOUNT}/{store} {words}"

    def _alive(self, kind: str) -> list[str]:
        return [info.host for info, alive, _ in self.session.access.store.processes() if alive and info.kind == kind]

    def _until(self, condition: Callable[[], bool], timeout: float) -> None:
        until = CLOCK.monotonic() + timeout
        while not condition():
            outputs = [client.output(command) for client, command in zip(self.clients, self._commands, strict=True)]
            assert CLOCK.monotonic() < until, (self.session.status(all=True), self._alive("worker"), outputs)
            CLOCK.sleep(0.1)

    def submit(self, name: str, count: int, pause: float) -> list[Any]:
        """Return tasks that note where they run."""
        tasks = list(jn.task(cell(RUN, "run")).map([name] * count, range(count), [pause] * count))
        self.session.submissions.flush()
        return tasks

    def runs(self, name: str) -> Counter[tuple[str, int]]:
        """Return how often each machine began each task of that name."""
        found: Counter[tuple[str, int]] = Counter()
        for client in self.clients:
            path = client.side / f"{client.name}.runs"
            lines = path.read_text().splitlines() if path.exists() else []
            found.update((client.name, int(line.split()[1])) for line in lines if line.split()[0] == name)
        return found

    def shares(self, name: str) -> dict[str, int]:
        runs = self.runs(name)
        return {client.name: sum(n for (host, _), n in runs.items() if host == client.name) for client in self.clients}

    def wait_for_runs(self, name: str, count: int) -> None:
        self._until(lambda: self.runs(name).total() >= count, 60)

    def check(self, tasks: list[Any], timeout: float) -> None:
        """All have the right value, the same one for this machine, for another process of it, and for a worker."""
        values = [task.result(timeout) for task in tasks]
        assert [value for value, _ in values] == [number * number for number in range(len(tasks))]
        assert jn.task(cell(COLLECT, "collect"))(tasks).result(timeout) == values
        fresh = Session(self.session.url, read_only=True)
        views = self.session.results.views([task.key for task in tasks])
        try:
            assert fresh.results.collect([task.key for task in tasks], wait=False) == values
        finally:
            fresh.close()
        assert {view.state for view in views} == {State.FINISHED}

    def operations(self, seconds: float) -> list[Counter[str]]:
        """Return, for each machine, what an idle one asks of the server in this time."""
        CLOCK.sleep(4)  # until what was new is no longer
        before = [client.operations() for client in self.clients]
        CLOCK.sleep(seconds)
        return [client.operations() - first for client, first in zip(self.clients, before, strict=True)]

    def end(self) -> None:
        self.session.stop(now=True)
        self._until(lambda: not self._alive("supervisor"), 60)
        self.session.close()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[nfs.Server, list[nfs.Client]]]:
    if reason := nfs.missing():
        pytest.skip(reason)
    server = nfs.Server(tmp_path_factory.mktemp("nfs"))
    clients = [nfs.Client(server, name) for name in ("first", "second")]
    try:
        for client in clients:
            client.wait(timeout=120)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("XDG_CONFIG_HOME", str(clients[0].side / "config"))
            yield server, clients
    finally:
        for client in clients:
            client.kill()
        server.kill()


@pytest.fixture(autouse=True)
def _own_settings(machines: tuple[nfs.Server, list[nfs.Client]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of stores are where the machines see them, too."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(machines[1][0].side / "config"))


@pytest.fixture(scope="module")
def two(machines: tuple[nfs.Server, list[nfs.Client]]) -> Iterator[Crew]:
    """Two workers on each machine. The last test ends one of them."""
    crew = Crew(*machines, "two", ["-n 2", "-n 2"])
    yield crew
    crew.session.close()


def report(**figures: object) -> None:
    print("nfs:", ", ".join(f"{name} {value}" for name, value in figures.items()))


def test_machines_hear_of_each_other_within_a_second_and_idle_ones_ask_little(
    machines: tuple[nfs.Server, list[nfs.Client]],
) -> None:
    crew = Crew(*machines, "four", ["-n 4 --target ping", "-n 4 --target pong"])
    hops = 12
    number: Any = 0
    began = CLOCK.monotonic()
    for hop in range(hops):
        name = ("ping", "pong")[hop % 2]
        number = jn.task(cell(STEP.format(name=name), name))(number, hop)
    assert number.result(100) == hops
    hop = (CLOCK.monotonic() - began) / hops
    idle = crew.operations(10)
    began = CLOCK.monotonic()
    assert jn.task(cell(STEP.format(name="ping"), "ping"))(0, "idle").result(100) == 1
    woken = CLOCK.monotonic() - began
    report(hop=round(hop, 2), woken=round(woken, 2), idle_with_four=[dict(each) for each in idle])
    crew.end()
    assert hop < 1.5
    assert woken < 3
    assert all(each.total() <= 100 for each in idle)


def test_idle_machines_ask_no_less_for_fewer_workers(two: Crew) -> None:
    idle = two.operations(10)
    report(idle_with_two=[dict(each) for each in idle])
    assert all(each.total() <= 100 for each in idle)


@pytest.mark.parametrize("pause", [0.0, 0.01])
def test_each_machine_gets_its_share_of_short_tasks_and_each_task_runs_once(two: Crew, pause: float) -> None:
    name, count = f"short-{pause}", 200
    began = CLOCK.monotonic()
    tasks = two.submit(name, count, pause)
    two.check(tasks, 100)
    shares = two.shares(name)
    report(pause=pause, shares=shares, seconds=round(CLOCK.monotonic() - began, 1))
    assert sorted(number for _, number in two.runs(name).elements()) == list(range(count))
    assert min(shares.values()) >= count / 4


def test_a_server_that_is_restarted_loses_nothing(two: Crew) -> None:
    tasks = two.submit("restart", 80, 0.1)
    two.wait_for_runs("restart", 10)
    two.server.kill()
    CLOCK.sleep(3)
    two.server.start()
    began = CLOCK.monotonic()
    two.check(tasks, 100)
    report(restart=two.shares("restart"), seconds=round(CLOCK.monotonic() - began, 1))


def test_a_machine_that_was_stopped_for_longer_than_a_lease_goes_on(two: Crew) -> None:
    tasks = two.submit("stopped", 80, 0.5)
    two.wait_for_runs("stopped", 10)
    two.clients[0].stop()
    began = CLOCK.monotonic()
    CLOCK.sleep(40)
    two.clients[0].go_on()
    two.check(tasks, 60)
    report(stopped=two.shares("stopped"), seconds=round(CLOCK.monotonic() - began, 1))
    after = two.submit("after", 40, 0.5)
    two.check(after, 100)
    report(after=two.shares("after"))
    assert min(two.shares("after").values()) >= 5


def test_tasks_of_a_machine_that_died_run_again_on_the_other_after_a_lease(two: Crew) -> None:
    tasks = two.submit("died", 40, 0.5)
    two.wait_for_runs("died", 8)
    two.clients[0].kill()
    began = CLOCK.monotonic()
    two.check(tasks, LEASE + 60)
    report(died=two.shares("died"), seconds=round(CLOCK.monotonic() - began, 1))
    again = [number for (_, number), _ in two.runs("died").items()]
    assert len(set(again)) == 40
    assert max(two.runs("died").values()) == 1  # on each machine once at most
