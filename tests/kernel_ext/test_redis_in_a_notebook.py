"""A notebook on a Redis server: its URL is all that a user changes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from jug_notebook import connect
from tests.kernels import Kernel
from tests.servers import Server
from tests.workbench import wait_until

DEFINITIONS = """
import jug_notebook as jn

@jn.task
def square(n):
    print("squaring", n)
    return n * n

@jn.task
def wait(path):
    open(path).close()
    return "over"

@jn.task
def fail():
    raise ValueError("no such thing")
"""


def test_a_url_is_all_that_a_user_changes_and_a_killed_kernel_costs_nothing(
    redis_server: Server, tmp_path: Path
) -> None:
    notebook, gate = tmp_path / "work.ipynb", tmp_path / "gate"
    os.mkfifo(gate)
    url = redis_server.url()

    def start() -> Kernel:
        kernel = Kernel(tmp_path, JPY_SESSION_NAME=str(notebook))
        kernel.run("%load_ext jug_notebook")
        assert url in kernel.run(f"%jug_store {url}").out
        kernel.run(DEFINITIONS, "definitions")
        return kernel

    kernel = start()
    reply = kernel.run("squares = square.map(range(40)); last = wait('gate'); failed = fail()", "calls")
    assert not reply.error, reply.traceback
    reply = kernel.run("%jug_execute -n 2")
    assert "started 2 workers" in reply.displays[0]["data"]["text/plain"]
    assert kernel.run("sum(squares.result())", "sum").result == str(sum(n * n for n in range(40)))
    assert kernel.run("failed.exception()", "wrong").result == "ValueError('no such thing')"
    assert "squaring 3" in kernel.run("%jug_log squares[3]").out
    assert "2 workers" in kernel.run("%jug_status --text").out
    os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]
    kernel.close()
    gate.write_text("")  # the task goes on meanwhile

    kernel = start()
    again = kernel.run("squares = square.map(range(40)); last = wait('gate')", "calls")
    assert "queued" not in again.out, again.out
    assert kernel.run("last.result()").result == "'over'"
    assert "41 finished" in kernel.run("%jug_status --text").out
    assert "2 workers" in kernel.run("%jug_stop").out
    session = connect(url, notebook=notebook)
    wait_until(session.access.store, lambda: not any(alive for info, alive, _ in session.access.store.processes()
                                               if info.kind == "supervisor"), "they stayed")  # fmt: skip
    session.close()
    kernel.close()


def test_a_server_that_is_started_again_ends_no_kernel(tmp_path: Path) -> None:
    server = Server()
    kernel = Kernel(tmp_path)
    try:
        kernel.run(f"%load_ext jug_notebook\n%jug_store {server.url()}")
        kernel.run(DEFINITIONS)
        kernel.run("%jug_execute -n 1")
        assert kernel.run("square(3).result()").result == "9"
        server.kill()
        server.start()
        assert kernel.run("square(4).result()").result == "16"
        assert "1 worker" in kernel.run("%jug_stop --now").out
    finally:
        kernel.close()
        server.remove()
