"""Several hosts, each with network, processes and mounts of its own: what a cut link does, and what it can't."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook.launch import ssh
from jug_notebook.model import LEASE, State
from jug_notebook.session import Session
from tests import netns
from tests.servers import Server
from tests.workbench import PATIENCE, Fifo, cell, wait_until

pytestmark = [pytest.mark.skipif(bool(netns.missing()), reason=netns.missing()), pytest.mark.timeout(180)]

SLOW = """
import socket
def slow(folder):
    name = socket.gethostname()
    with open(f"{folder}/said", "w") as said: said.write(f"{name}\\n")
    with open(f"{folder}/go-{name}") as go: go.readline()
    return name
"""

NAME = """
import os, socket, time
def name(i):
    time.sleep(0.05)
    return socket.gethostname(), os.path.exists("data.txt")
"""
READ = """
import os, socket
def read(i):
    return os.getcwd(), socket.gethostname(), open("data.txt").read()
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def session(request: pytest.FixtureRequest, work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.chdir(work)  # as a notebook's kernel
    redis = getattr(request, "param", "file") == "redis"
    url = request.getfixturevalue("redis_server").url() if redis else work / "jugdata"
    opened = jn.connect(url, notebook=work / "a.ipynb")
    yield opened
    opened.close()


@pytest.fixture
def hosts(
    request: pytest.FixtureRequest, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[netns.Hosts]:
    mounts = {name: (work, tmp_path / f"seen-by-{name}") for name in getattr(request, "param", ())}
    made = netns.Hosts(tmp_path, "ada", "bob", mounts=mounts)
    monkeypatch.setenv(ssh.COMMAND, made.command)
    yield made
    made.close()


@pytest.mark.parametrize("session", ["file", "redis"], indirect=True)
def test_what_a_cut_off_host_ran_is_run_elsewhere_and_its_late_result_counts_for_nothing(
    hosts: netns.Hosts, session: Session, work: Path
) -> None:
    started, go = Fifo(work, "said"), {name: Fifo(work, f"go-{name}") for name in hosts.names}
    slow = jn.task(cell(SLOW, "slow"))
    first = session.execute(1, hosts=["ada"])
    task = slow(str(work))
    assert started.read_line() == "ada", first.failures
    second = session.execute(1, hosts=["bob"])
    wait_until(second.store, lambda: second.alive() == 1)
    hosts.cut("ada")
    store = session.access.store
    until = LEASE + PATIENCE
    wait_until(store, lambda: first.alive() == 0, "a host that says nothing is still taken for alive", patience=until)
    assert started.read_line() == "bob"
    go["bob"].write_line("")
    assert task.result() == "bob"
    dependent = jn.task(cell("def shout(name): return name.upper()", "shout"))(task)
    assert dependent.result() == "BOB"
    hosts.heal("ada")
    wait_until(store, lambda: first.alive() == 1)
    go["ada"].write_line("")
    [worker] = first.workers
    wait_until(store, lambda: not next((i.task for i, *_ in store.processes() if i.id == worker.id), ""))
    assert (task.result(), dependent.result()) == ("bob", "BOB")
    assert task.provenance()["run"]["host"] == "bob"
    assert task.provenance()["run"]["attempt"] == 2
    session.stop(host="bob")
    wait_until(store, lambda: second.alive() == 0)
    again = slow(str(work) + "/")
    assert started.read_line() == "ada"  # it is back, and takes part
    go["ada"].write_line("")
    assert again.result() == "ada"
    assert session.status(all=True).snapshot.counts[State.FAILED] == 0


@pytest.mark.parametrize("hosts", [("ada", "bob")], indirect=True)
def test_each_host_may_see_the_folder_at_another_place(
    hosts: netns.Hosts, session: Session, work: Path, tmp_path: Path
) -> None:
    (work / "data.txt").write_text("42")
    read = jn.task(cell(READ, "read"))
    crew = session.execute(1, hosts=["ada"], remote_dir=str(tmp_path / "wrong"))
    assert crew.messages(PATIENCE)[0].startswith(
        f"ada: sees no store at {tmp_path}/wrong/jugdata; mount that folder there"
    )
    for name in hosts.names:
        there = tmp_path / f"seen-by-{name}"
        crew = session.execute(1, hosts=[name], remote_dir=str(there))
        assert crew.messages(PATIENCE) == [f"{name}: started 1 worker"]
        assert read(name).result() == (str(there), name, "42")
        session.stop(now=True, host=name)
        wait_until(crew.store, lambda crew=crew: crew.alive() == 0)  # type: ignore[misc]


@pytest.mark.parametrize("hosts", [("ada", "bob")], indirect=True)
def test_hosts_without_the_folder_work_for_a_redis_server(hosts: netns.Hosts, redis_server: Server, work: Path) -> None:
    session = jn.connect(redis_server.url(), notebook=work / "a.ipynb")
    crew = session.execute(1, hosts=list(hosts.names))
    assert sorted(crew.messages(PATIENCE)) == ["ada: started 1 worker", "bob: started 1 worker"]
    wait_until(crew.store, lambda: crew.alive() == 2)
    names = jn.task(cell(NAME, "name")).map(range(40)).result()
    assert set(names) == {("ada", False), ("bob", False)}  # they don't see the notebook's folder
    session.stop(now=True)
    wait_until(crew.store, lambda: not crew.supervisors)
    session.close()


def test_a_host_that_is_cut_off_delays_no_other_and_obeys_when_back(hosts: netns.Hosts, session: Session) -> None:
    crew = session.execute(1, hosts=["ada"])
    assert crew.messages(PATIENCE) == ["ada: started 1 worker"]
    wait_until(crew.store, lambda: crew.alive() == 1)
    hosts.cut("ada")
    other = session.execute(1, hosts=["bob", "ada"])
    assert jn.task(cell("def f(x): return x", "f"))(1).result() == 1  # nothing waits for the host that is gone
    assert other.messages(PATIENCE)[0] == "bob: started 1 worker"  # the other is given up by then, and told no more
    assert session.stop(now=True, host="ada") == 1
    hosts.heal("ada")
    wait_until(crew.store, lambda: crew.alive() == 0)
    assert other.alive() == 1
    assert os.getpid() not in {info.pid for info in other.workers}
