"""Workers elsewhere as a notebook asks for them: magics in a real kernel, over a real sshd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jug_notebook.launch import ssh
from jug_notebook.store import open_store
from tests import sshd
from tests.crews import SECRET, shows_secret, until_no_supervisor
from tests.kernels import Kernel
from tests.servers import Receiver
from tests.workbench import wait_until

pytestmark = pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing())

DEFINE = "%%jugtask\ndef double(x):\n    print('doubling', x)\n    return 2 * x"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Sshd]:
    started = sshd.Sshd(tmp_path / "ssh")
    for name in ("ada", "bob"):
        started.host(name)
    started.host("eve", Port="1", ControlPath="none")
    yield started
    started.close()


@pytest.fixture
def kernel(tmp_path: Path, server: sshd.Sshd) -> Iterator[Kernel]:
    (tmp_path / "work").mkdir()
    started = Kernel(tmp_path / "work", JUG_HEADLESS="0", JUG_NOTEBOOK_DISPLAY="text", **{ssh.COMMAND: server.command})
    started.run("%load_ext jug_notebook")
    yield started
    started.run("%jug_stop --now")
    store = open_store(tmp_path / "work" / "jugdata")
    wait_until(store, lambda: not any(alive and i.kind == "supervisor" for i, alive, _ in store.processes()))
    store.close()
    started.close()


def test_a_notebook_gets_workers_of_two_hosts_and_says_so(kernel: Kernel, tmp_path: Path) -> None:
    kernel.run(DEFINE)
    kernel.run("results = double.map(range(10))")
    looked = kernel.run("%jug_execute -n 2 --host ada --host bob:1 --dry-run")
    assert looked.out == (
        "10 to run, 0 stored\n  double  10 to run\nada: workers could start there\nbob: workers could start there\n"
        "nothing was started\n"
    )
    assert kernel.run("%jug_execute -n 2 --host ada --host bob:1 --wait").out == (
        "ada: started 2 workers\nbob: started 1 worker\nall 10 finished\n"
    )
    assert kernel.run("results.result()").result == str([2 * x for x in range(10)])
    assert kernel.run("%jug_execute -n 2 --host ada,bob").out == (
        "ada: 2 workers are there already\nbob: started 1 more: 2 in all\n"
    )
    assert kernel.run("%jug_stop --host ada").out == "2 workers on ada will stop after the current task\n"
    assert "workers: 1" in kernel.run("%jug_log --host bob").out
    (tmp_path / "work" / "hosts").write_text("bob 2\n")
    assert kernel.run("%jug_execute --hosts-file hosts").out == "bob: 2 workers are there already\n"
    kernel.run("%config JugMagics.display = 'html'")
    reply = kernel.run("%jug_execute -n 2 --host bob").displays[0]["data"]
    assert "bob (" in json.dumps(reply)


def test_a_host_that_fails_is_one_line_and_the_others_work(kernel: Kernel) -> None:
    kernel.run(DEFINE)
    line = "eve: can't be reached (Connection refused); is it up? Try in a terminal: ssh eve"
    assert kernel.run("%jug_execute -n 1 --host ada --host eve").out == f"ada: started 1 worker\n{line}\n"
    assert kernel.run("double(4).result()").result == "8"
    alone = kernel.run("%jug_execute -n 1 --host eve")
    assert (alone.error, alone.message) == ("LaunchError", line)
    assert alone.traceback == f"LaunchError: {line}"
    assert kernel.run("double(5).result()").result == "10"  # it was said once


def test_of_all_hosts_one_sends_the_line_and_its_target_is_seen_nowhere(
    kernel: Kernel, tmp_path: Path, receiver: Receiver
) -> None:
    targets = tmp_path / "targets"
    targets.write_text(f"{receiver.url(SECRET)}\n")
    replies = [kernel.run(DEFINE), kernel.run("results = double.map(range(6))")]
    replies.append(kernel.run(f"%jug_execute -n 1 --host ada --host bob --notify @{targets} --wait"))
    [line] = receiver.wait_for(1, 60.0)
    assert line.startswith("jug_notebook: 6 done, ")
    visible = shows_secret("/proc/*/cmdline", "/proc/*/environ")
    questions = ("%jug_status", "%jug_log --host ada", "%jug_log --host bob", "%jug_log double", "%jug_tasks")
    replies += [kernel.run(question) for question in (*questions, "%jug_stop")]
    store = open_store(tmp_path / "work" / "jugdata")
    until_no_supervisor(store)
    assert len(receiver.got) == 1, "each host looked once more as it ended"
    assert visible + shows_secret(f"{tmp_path}/work/**") == []
    assert SECRET not in "".join(f"{reply.out} {reply.message} {reply.displays}" for reply in replies)
    assert SECRET not in "".join(store.log(info.id) for info, _, _ in store.processes())
    store.close()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--host -oProxyCommand=true", "expected one argument"),
        ("--host 'a b'", "'a b' is not a host; give HOST, USER@HOST or HOST:8"),
        ("--hosts-file none", "the hosts in"),
        ("--on nothing", "no variable 'nothing'; --on takes one that holds a client or an executor"),
        ("--on results", "can't run workers: it has no submit()"),
        ("--here --host ada", "leave out --host, --on and --slurm"),
        ("--setup true", "--setup and --remote-dir are for other hosts"),
        ("--host ada --remote-dir there", "is not an absolute path"),
    ],
)
def test_what_can_not_be_asked_for_is_one_line(kernel: Kernel, line: str, message: str) -> None:
    kernel.run("results = []")
    reply = kernel.run(f"%jug_execute -n 1 {line}")
    assert reply.error in ("UsageError", "LaunchError")
    assert message in reply.message
    assert "\n" not in reply.message.strip()


def test_an_executor_of_the_notebook_runs_workers(kernel: Kernel) -> None:
    kernel.run(DEFINE)
    kernel.run("from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)")
    assert kernel.run("%jug_execute --on pool").out == "ThreadPoolExecutor: asked for 2 workers\n"
    assert kernel.run("double(3).result()").result == "6"
    kernel.run("%jug_stop")
    kernel.run("pool.shutdown()")


def test_workers_of_hosts_outlive_the_kernel(kernel: Kernel, tmp_path: Path) -> None:
    kernel.run(DEFINE)
    kernel.run("%jug_execute -n 1 --host ada")
    kernel.run("import jug_notebook as jn")
    before = kernel.run("[view.info.pid for view in jn.status(all=True).workers]").result
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    kernel.run("%load_ext jug_notebook")
    kernel.run(DEFINE)
    assert kernel.run("double(8).result()").result == "16"
    kernel.run("import jug_notebook as jn")
    assert kernel.run("[view.info.pid for view in jn.status(all=True).workers]").result == before
    assert kernel.run("%jug_execute -n 1 --host ada").out == "ada: 1 worker is there already\n"
