"""From asking for workers to the first result, and from the death of a worker to its task running again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness import Row, crew_of, redis_port, url


def start(folder: Path, scale: float) -> float:
    from peer_tasks import double

    import jug_notebook as jn

    session = jn.connect(url(folder))
    task = jn.task(double)(1)
    session.submissions.flush()
    began = time.perf_counter()
    crew = jn.execute(2)
    assert task.result() == 2
    spent = time.perf_counter() - began
    crew.stop(now=True)
    crew.wait()
    return spent


def start_jug(folder: Path, scale: float) -> float:
    (folder / "jugfile.py").write_text(
        "import time\nfrom jug import Task\ndef now(): return time.time()\nstarted = Task(now)\n"
    )
    command = [sys.executable, "-m", "jug.jug", "execute", "jugfile.py", "--jugdir", "jugdata"]
    began = time.time()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    import jug

    _, space = jug.init(str(folder / "jugfile.py"), str(folder / "jugdata"))
    return float(jug.value(space["started"]) - began)


def start_huey(folder: Path, scale: float) -> float:
    from peer_tasks import huey_consumer

    began = time.perf_counter()
    with huey_consumer(folder, redis_port(), 2) as module:
        module.double(1).get(blocking=True, backoff=1, max_delay=0.001)
        return time.perf_counter() - began


def start_dask(folder: Path, scale: float) -> float:
    from peer_tasks import dask_client, double

    began = time.perf_counter()
    with dask_client(folder, 2) as client:
        client.submit(double, 1).result()
        return time.perf_counter() - began


def first_task(folder: Path, scale: float) -> float:
    """From a supervisor that is there, with its imports, and told to have one more worker, to a task's start there."""
    import jug_notebook as jn
    from jug_notebook.model import Scale
    from jug_notebook.worker.crew import send_order

    @jn.task
    def now(x: int) -> float:
        import time

        return time.time()

    session = jn.connect(url(folder))
    with crew_of(session, 1) as crew:
        now(0).result()
        busy = jn.task(stamp)(str(folder / "busy"))  # keeps the worker that is there
        session.submissions.flush()
        while busy.state.value != "running":
            session.queries.watch(-1, 0.02)
        task = now(1)
        session.submissions.flush()
        began = time.time()
        send_order(crew.store, crew.supervisors, Scale(2))
        return float(task.result() - began)


def stamp(path: str) -> int:
    """Say who runs this and since when; then, the first time, take long."""
    import os
    import time

    again = os.path.exists(path)
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")
    if not again:
        time.sleep(60)
    return 1


def _stamps(path: Path) -> list[tuple[int, float]]:
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(int(words[0]), float(words[1])) for words in lines if len(words) == 2]


def _killed(path: Path) -> float:
    """Kill who runs the task; seconds until it runs again."""
    until = time.time() + 30
    while not _stamps(path):
        assert time.time() < until
        time.sleep(0.001)
    time.sleep(0.3)
    killed = time.time()
    os.kill(_stamps(path)[0][0], signal.SIGKILL)
    while len(_stamps(path)) < 2:
        assert time.time() < until, "it never ran again"
        time.sleep(0.001)
    return _stamps(path)[1][1] - killed


def again(folder: Path, scale: float) -> float:
    import jug_notebook as jn

    session = jn.connect(url(folder))
    with crew_of(session):
        task = jn.task(stamp)(str(folder / "stamps"))
        session.submissions.flush()
        spent = _killed(folder / "stamps")
        assert task.result() == 1
        return spent


def again_dask(folder: Path, scale: float) -> float:
    from peer_tasks import dask_client

    with dask_client(folder, 2) as client:
        future = client.submit(stamp, str(folder / "stamps"))
        spent = _killed(folder / "stamps")
        del future
        return spent


def answer(folder: Path, scale: float) -> float:
    """The slowest answer to an agent about an old task: of ten servers, each new to a new client and killed after."""
    import asyncio

    import jsonschema  # noqa: F401  # which a client loads, once, with its first answer
    from peer_tasks import double

    import jug_notebook as jn

    session = jn.connect(url(folder))
    with crew_of(session):
        task = jn.task(double)(1)
        assert task.result() == 2
    session.close()
    return max(asyncio.run(_answered(url(folder), task.key)) for _ in range(10))


async def _answered(store: str, key: str) -> float:
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    command = [sys.executable, "-m", "jug_notebook", "mcp", store, "--http", "0"]
    token = "only for this benchmark"
    server = subprocess.Popen(
        command, env=os.environ | {"JUG_MCP_TOKEN": token}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http,
            Client(streamable_http_client(address, http_client=http)) as client,
        ):
            await client.list_tools()
            began = time.perf_counter()
            found = await client.call_tool("task", {"id": key})
            spent = time.perf_counter() - began
            assert found.structured_content["state"] == "finished"
            return spent
    finally:
        server.kill()
        server.wait()


_STARTS = (("huey", "start_huey"), ("jug", "start_jug"), ("dask", "start_dask"))
ROWS = (
    Row("execute → first result", "s", "less", "start", _STARTS, "≤ 0.15 s"),
    Row("supervisor ready → first task", "s", "less", "first_task", (), "≤ 0.03 s"),
    Row("killed worker's task running again", "s", "less", "again", (("dask", "again_dask"),), "≤ 0.02 s"),
    Row("agent's new server → an old task's state", "s", "less", "answer", (), "≤ 0.2 s"),
    Row("execute → first result", "s", "less", "start", (("huey", "start_huey"),), "", "redis"),
)
