"""An agent at a store: the tools of `jug-notebook mcp`, driven by a real client over both transports."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("mcp")
import httpx2
import nbformat
from mcp import Client, MCPError, StdioServerParameters, types
from mcp.client.extension import ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client

from jug_notebook.cli import Store, mcp, mcp_tools
from jug_notebook.errors import JugError, LaunchError
from jug_notebook.session import Session
from jug_notebook.store import keyring, open_store
from jug_notebook.task import context
from tests.cli.test_terminal import harmless, plant
from tests.servers import Server
from tests.store.test_reading_key import other_account
from tests.workbench import arithmetic

ROOT = str(Path(__file__).parents[2])
LOOKING = {"status", "tasks", "failures", "log", "why", "timeline", "task", "result", "wait"}
ACTING = {"retry", "invalidate", "cancel", "accept", "start_workers", "stop_workers"}
PAGE = 2048  #: bytes

double, divide, add = arithmetic("double", "divide", "add")


@pytest.fixture(params=["file", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store of each kind that outlives a process."""
    redis: str = request.getfixturevalue("redis_server").url() if request.param == "redis" else ""
    return redis or f"file:{tmp_path / 'jugdata'}"


def fill(url: str, folder: Path, count: int = 3, ready: int = 0) -> list[str]:
    """Put tasks into a store: ``count`` that finish, one that fails, one blocked by it, ``ready`` more. Return ids."""
    session = Session(url, notebook=folder / "n.ipynb")
    context.set_current(session)
    finished = [double(x) for x in range(count)]
    wrong = divide(0)
    last = add(finished[1], wrong)
    session.submissions.flush()
    session.run_here()
    more = [double(x) for x in range(count, count + ready)]
    session.close()
    return [one.key for one in (*finished, wrong, last, *more)]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith(("XDG_", "JUG_DEVICE"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))}


def command(url: str, *options: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable, args=["-m", "jug_notebook", "mcp", url, *options], env=environment()
    )


@contextmanager
def served(url: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server over HTTP, and its address."""
    words = [sys.executable, "-m", "jug_notebook", "mcp", url, "--http", "0", *options]
    process = subprocess.Popen(
        words, env={**os.environ, **environment()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, process.communicate()[1]
        yield process, address
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def token(url: str) -> str:
    return mcp.token_of(identity(url))[0]


def identity(url: str) -> str:
    with closing(open_store(url)) as store:
        return store.id


@asynccontextmanager
async def connected(transport: str, url: str, *options: str, **more: Any) -> Any:
    """A client of the SDK's, connected to a server of its own."""
    if transport == "stdio":
        async with Client(command(url, *options), **more) as client:
            yield client
        return
    with served(url, *options) as (_, address):
        headers = {"Authorization": f"Bearer {token(url)}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(address, http_client=http), **more) as client,
        ):
            yield client


async def call(client: Client, name: str, **arguments: Any) -> Any:
    """What a tool returns, which is the same as data and as text."""
    found: Any = await client.call_tool(name, arguments)
    text = found.content[0].text
    assert not found.is_error, text
    assert json.loads(text) == found.structured_content
    assert len(text.encode()) <= PAGE, text
    return found.structured_content


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        await asyncio.wait_for(work(), 100)

    asyncio.run(within())


JUGFILE = """
from jug import TaskGenerator

@TaskGenerator
def triple(x):
    return 3 * x

print("made", [triple(x) for x in range({count})] and "them")
"""


class LongRunning(ClientExtension):
    """A client's side of the protocol's extension, which the library leaves to whoever needs it."""

    identifier = mcp.EXTENSION

    class Created(types.Result):
        result_type: Literal["task"] = "task"
        task_id: str
        status: str

    class Get(types.Request[types.GetTaskRequestParams, Literal["tasks/get"]]):
        method: Literal["tasks/get"] = "tasks/get"
        params: types.GetTaskRequestParams
        name_param = "taskId"

    class Cancel(types.Request[types.GetTaskRequestParams, Literal["tasks/cancel"]]):
        method: Literal["tasks/cancel"] = "tasks/cancel"
        params: types.GetTaskRequestParams
        name_param = "taskId"

    class Polled(types.Result):
        result_type: str
        task_id: str
        status: str
        result: types.CallToolResult | None = None

    def claims(self) -> list[Any]:
        return [ResultClaim(result_type="task", model=self.Created, resolve=self._resolve)]

    async def _resolve(self, created: Any, context: Any) -> types.CallToolResult:
        while (polled := await self.poll(context.session, created.task_id)).result is None:
            await asyncio.sleep(0.1)
        return polled.result

    @classmethod
    async def poll(cls, session: Any, id: str) -> Polled:
        found: LongRunning.Polled = await session.send_request(
            cls.Get(params=types.GetTaskRequestParams(task_id=id)), cls.Polled
        )
        return found


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_a_run_of_a_file_is_a_task_of_the_store(transport: str, url: str, tmp_path: Path) -> None:
    fill(url, tmp_path)
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "jugfile.py").write_text(JUGFILE.format(count=4))
    (folder / "wrong.py").write_text("1 / 0")
    (tmp_path / "secret.py").write_text("")
    (folder / "link.py").symlink_to(tmp_path / "secret.py")

    async def work() -> None:
        async with connected(transport, url, "--allow-submit", str(folder)) as client:
            for path in ("../secret.py", str(tmp_path / "secret.py"), "link.py", "none.py", "."):
                refused = await client.call_tool("run", {"path": path})
                assert refused.is_error
                assert "which was allowed" in refused.content[0].text
            submitted = await call(client, "run", path="jugfile.py")
            again = await call(client, "run", path="jugfile.py")
            assert again["id"] == submitted["id"]
            assert (await call(client, "wait", target=submitted["id"], timeout=60))["counts"] == {"finished": 1}
            assert "made them" in (await call(client, "log", task=submitted["id"]))["text"]
            assert (await call(client, "tasks", function="triple"))["total"] == 4
            assert (await call(client, "run", path="jugfile.py"))["id"] != submitted["id"]  # the first is over
            failed = await call(client, "run", path="wrong.py")
            assert (await call(client, "wait", target=failed["id"], timeout=60))["counts"] == {"failed": 1}
            assert "division by zero" in (await call(client, "log", task=failed["id"]))["text"]
            assert not (await client.call_tool("stop_workers", {"now": True})).is_error

    run(work)


CELLS = """%load_ext jug_notebook
%%jugtask
def square(x):
    return x * x
%jug_execute -n 1
print("sum", sum(square.map(range(5)).result()))
"""


@pytest.mark.slow
def test_a_run_of_a_notebook_does_not_take_the_place_of_its_only_worker(url: str, tmp_path: Path) -> None:
    fill(url, tmp_path)
    lines = CELLS.splitlines()
    content = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in (lines[0], "\n".join(lines[1:4]), *lines[4:])]
    )
    nbformat.write(content, tmp_path / "study.ipynb")

    async def work() -> None:
        async with connected("stdio", url, "--allow-submit", str(tmp_path)) as client:
            submitted = await call(client, "run", path="study.ipynb")
            assert (await call(client, "wait", target=submitted["id"], timeout=80))["counts"] == {"finished": 1}
            assert "✓ 4/4" in (await call(client, "log", task=submitted["id"]))["text"]
            assert (await call(client, "tasks", function="square", state="finished"))["total"] == 5

    run(work)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_a_long_run_is_polled_after_its_server_has_ended(transport: str, url: str, tmp_path: Path) -> None:
    [done, *_] = fill(url, tmp_path)
    (tmp_path / "jugfile.py").write_text(JUGFILE.format(count=2))
    options = ("--allow-submit", str(tmp_path))

    async def work() -> None:
        async with connected(transport, url, *options, extensions=[LongRunning()]) as client:
            created = await client.session.call_tool("run", {"path": "jugfile.py"}, allow_claimed=True)
            assert isinstance(created, LongRunning.Created)
            assert created.status == "working"
            (tmp_path / "other.py").write_text("1 / 0")
            failed = await client.call_tool("run", {"path": "other.py"})  # whose client polls for it
            assert failed.is_error
            assert "division by zero" in failed.content[0].text
        async with connected(transport, url, extensions=[LongRunning()]) as client:  # another server
            await call(client, "wait", target=created.task_id, timeout=60)
            polled = await LongRunning.poll(client.session, created.task_id)
            assert (polled.status, polled.result_type) == ("completed", "complete")
            assert polled.result is not None
            assert not polled.result.is_error
            assert "ran to its end" in str(polled.result.structured_content)
            assert (
                await LongRunning.poll(client.session, done)
            ).status == "completed"  # any task of the store has its id
            with pytest.raises(MCPError, match="no task"):
                await LongRunning.poll(client.session, "0" * 40)

    run(work)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_an_agent_looks_and_acts(transport: str, url: str, tmp_path: Path) -> None:
    keys = fill(url, tmp_path)

    async def work() -> None:
        async with connected(transport, url) as client:
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(listed) == LOOKING | ACTING
            assert all(tool.output_schema and tool.description for tool in listed.values())
            assert {name for name, tool in listed.items() if tool.annotations.read_only_hint} == LOOKING
            destructive = {name for name, tool in listed.items() if tool.annotations.destructive_hint}
            assert destructive == {"invalidate", "cancel", "accept", "stop_workers"}

            status = await call(client, "status")
            assert status["counts"] == {"finished": 3, "failed": 1, "blocked": 1}
            first = await call(client, "tasks", limit=3)
            rest = await call(client, "tasks", cursor=first["cursor"])
            assert first["total"] == 5
            assert "cursor" not in rest
            assert [row["id"] for row in first["tasks"] + rest["tasks"]] == [key[: mcp_tools.ID] for key in keys]
            [failed] = (await call(client, "tasks", state="failed"))["tasks"]
            [kind] = (await call(client, "failures"))["kinds"]
            assert kind["task"] == failed["id"] == keys[3][: mcp_tools.ID]
            assert "ZeroDivisionError" in kind["error"]
            assert "return 1 / x" in (await call(client, "log", task=failed["id"]))["text"]
            assert "doubling 2" in (await call(client, "log", task=keys[2][:8]))["text"]
            assert "blocked" in (await call(client, "why", target="add"))["text"]
            assert "double: 3 runs" in (await call(client, "timeline"))["text"]
            report = await call(client, "task", id=keys[4])
            assert (report["id"], report["state"]) == (keys[4], "blocked")
            assert report["blocked_by"] == failed["id"]
            assert await call(client, "result", id=keys[2]) == {
                "id": keys[2], "state": "finished", "type": "int 4", "repr": "4"
            }  # fmt: skip
            assert (await call(client, "wait", timeout=0))["over"]
            wrong = await client.call_tool("task", {"id": "0123456789"})
            assert wrong.is_error
            assert "no task '0123456789'" in wrong.content[0].text

            assert (await call(client, "retry"))["done"] == "1 task will be tried again"
            assert not (await call(client, "wait", timeout=0.1))["over"]
            assert (await call(client, "cancel", target="divide"))["done"] == "cancelled 0 pending tasks"  # needed
            assert (await call(client, "cancel", target="/divide|add/"))["done"] == "cancelled 2 pending tasks"
            assert "3 tasks" in (await call(client, "invalidate", target="double", dry_run=True))["done"]
            assert (await call(client, "result", id=keys[2]))["state"] == "finished"
            assert "invalidated 1 result" in (await call(client, "invalidate", target=keys[2]))["done"]
            assert (await call(client, "result", id=keys[2]))["state"] == "ready"
            assert "no previous" in (await call(client, "accept", target="double", dry_run=True))["done"]
            assert (await call(client, "start_workers", count=1))["done"] == "1 worker on this host"
            assert (await call(client, "wait", target="double", timeout=60))["counts"] == {"finished": 3}
            assert "1 worker will stop" in (await call(client, "stop_workers", now=True))["done"]

    run(work)


@pytest.mark.slow
def test_a_read_only_door_has_no_tool_that_acts(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'jugdata'}"
    fill(url, tmp_path)

    async def work() -> None:
        async with connected("stdio", url, "--read-only") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == LOOKING

    run(work)


async def attempts(client: Client, keys: list[str]) -> list[bool]:
    """Which of all acts were refused, whether or not they are listed."""
    done = [await client.call_tool(name, {"target": "double"}) for name in ("retry", "invalidate", "cancel", "accept")]
    done += [await client.call_tool("start_workers", {"count": 1}), await client.call_tool("stop_workers", {})]
    refused = [one.is_error for one in (*done, await client.call_tool("run", {"path": "jugfile.py"}))]
    with pytest.raises(MCPError):
        await client.session.send_request(
            LongRunning.Cancel(params=types.GetTaskRequestParams(task_id=keys[-1])), types.EmptyResult
        )
    return refused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*someone without the key changed it", "ignore:skipped the")
def test_an_agent_with_the_reading_key_reads_all_and_submits_nothing_by_whatever_it_tries(
    url: str, tmp_path: Path
) -> None:
    keys = fill(url, tmp_path, ready=1)
    submit = ("--allow-submit", str(tmp_path))
    (tmp_path / "jugfile.py").write_text(JUGFILE.format(count=2))

    def counts() -> dict[str, dict[str, int]]:
        with closing(open_store(url)) as store:
            found = store.snapshot().functions
        return {one.name: {state.value: count for state, count in one.counts.items() if count} for one in found}

    async def reads() -> None:
        async with connected("stdio", url, extensions=[LongRunning()]) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == LOOKING
            assert (await call(client, "result", id=keys[2]))["repr"] == "4"
            assert "notes" not in await call(client, "status"), "all of it is verified"
            assert all(await attempts(client, keys))

    async def forges() -> None:
        async with connected("stdio", url, *submit) as client:
            assert (await call(client, "status"))["counts"] == {}, "what others have signed is nothing to it"
            await attempts(client, keys)

    before = counts()
    with other_account(tmp_path, identity(url)):
        run(reads)
        words = [sys.executable, "-m", "jug_notebook", "mcp", url, *submit]
        refused = subprocess.run(
            words, env=os.environ | environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
        )
        assert refused.returncode == 2
        assert "is read-only here" in refused.stderr
        assert refused.stderr.count("\n") == 1
        [reading] = keyring.key_folder().glob("*.read")
        shutil.copy(reading, reading.with_suffix(""))  # in the place of the key that signs
        run(forges)
    assert counts() == before


@pytest.mark.slow
def test_ten_thousand_tasks_take_two_kilobytes(url: str, tmp_path: Path) -> None:
    keys = fill(url, tmp_path, count=20, ready=10_000)

    async def work() -> None:
        async with connected("stdio", url) as client:
            assert (await call(client, "status"))["counts"]["ready"] == 10_000
            page = await call(client, "tasks", state="ready")
            assert (page["total"], len(page["tasks"])) == (10_000, mcp_tools.PAGE)
            again = await call(client, "tasks", state="ready", cursor=page["cursor"])
            ids = [row["id"] for row in page["tasks"] + again["tasks"]]
            assert ids == [key[: mcp_tools.ID] for key in keys[22 : 22 + len(ids)]]
            for name in ("failures", "timeline"):
                await call(client, name)
            await call(client, "why", target="double")
            assert not (await call(client, "wait", timeout=0))["over"]

    run(work)


@pytest.mark.slow
def test_an_old_id_is_answered_after_all_processes_were_killed(url: str, tmp_path: Path) -> None:
    keys = fill(url, tmp_path)
    for number in range(3):
        asyncio.run(answered_after_a_kill(url, keys[number + 2], ("finished", "failed", "blocked")[number]))


async def answered_after_a_kill(url: str, id: str, state: str) -> float:
    """Seconds in which a task's state is there, by its id, from a new server to a new client; the server is killed."""
    with served(url) as (process, address):
        headers = {"Authorization": f"Bearer {token(url)}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(address, http_client=http)) as client,
        ):
            await client.list_tools()  # as every agent does that connects
            connected = time.perf_counter()
            assert (await call(client, "task", id=id))["state"] == state
            took = time.perf_counter() - connected
        process.kill()
    return took


@pytest.mark.slow
def test_who_has_no_token_or_comes_by_another_name_is_refused(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'jugdata'}"
    fill(url, tmp_path)
    with served(url) as (process, address):
        good = token(url)
        path = mcp.token_of(identity(url))[1]
        assert path is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert good not in Path(f"/proc/{process.pid}/cmdline").read_text()

        def status(authorization: str = "", **headers: str) -> int:
            given = {"Accept": "application/json, text/event-stream", **headers}
            given |= {"Authorization": authorization} if authorization else {}
            message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            return httpx2.post(address, json=message, headers=given).status_code

        assert status() == 401
        assert status(f"Bearer {good[:-1]}") == 401
        assert status(f"Basic {good}") == 401
        assert status(f"Bearer {good}", Host="evil.example") == 421
        assert status(f"Bearer {good}", Origin="http://evil.example") == 403
        assert status(f"Bearer {good}") not in (401, 403, 421)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert good not in out + err


def test_a_token_that_others_can_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    token, path = mcp.token_of("store")
    assert path is not None
    assert mcp.token_of("store") == (token, path)
    path.chmod(0o640)
    with pytest.raises(LaunchError, match="can be read by other users"):
        mcp.token_of("store")
    monkeypatch.setenv("JUG_MCP_TOKEN", "chosen by its user")
    assert mcp.token_of("store") == ("chosen by its user", None)
    assert "JUG_MCP_TOKEN" not in os.environ  # nor in that of workers
    monkeypatch.setenv("JUG_MCP_TOKEN", "short")
    with pytest.raises(LaunchError, match="fewer than 16"):
        mcp.token_of("store")


def test_without_the_library_a_line_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(LaunchError, match=r"pip install 'jug-notebook\[mcp\]'"):
        mcp.make_server(mcp_tools.Looking(Store(str(tmp_path))))


def test_no_text_of_a_store_acts_on_who_reads_it(url: str, tmp_path: Path) -> None:
    store = open_store(url)
    keys = plant(store, tmp_path)
    tools = mcp_tools.Acting(Store(url))
    calls: list[tuple[Callable[..., Any], Any]] = [
        (tools.status, ()), (tools.tasks, ()), (tools.failures, ()), (tools.timeline, ()), (tools.why, ("/a/",)),
        (tools.accept, ("/a/", False, True)), (tools.retry, ()), (tools.invalidate, ("/a/", True)),
        (tools.task, ("zz",)), *((tool, (key,)) for key in keys for tool in (tools.task, tools.result, tools.log)),
    ]  # fmt: skip
    for tool, arguments in calls:
        try:
            found = mcp_tools.plain(tool(*arguments))
        except JugError as error:
            found = str(error)
        harmless(json.dumps(found, ensure_ascii=False))
    tools.close()
    store.close()


def test_a_store_that_goes_and_comes_back_costs_no_connection(tmp_path: Path) -> None:
    server = Server()
    url = server.url()
    [key, *_] = fill(url, tmp_path)
    tools = mcp_tools.Acting(Store(url))
    tools.session.access.store.patience = 0.5

    async def work() -> None:
        async with Client(mcp.make_server(tools)) as client:
            assert (await call(client, "task", id=key))["state"] == "finished"
            server.kill()
            away = await client.call_tool("invalidate", {"target": key})
            assert away.is_error
            assert "\n" not in away.content[0].text
            server.start()
            assert (await call(client, "wait", timeout=0))["over"]
            assert (await call(client, "task", id=key))["state"] == "finished"

    try:
        run(work)
    finally:
        tools.close()
        server.remove()


def test_a_removed_store_is_named_and_one_in_its_place_is_served(tmp_path: Path) -> None:
    [key, *_] = fill(str(tmp_path / "jugdata"), tmp_path)
    tools = mcp_tools.Acting(Store(str(tmp_path / "jugdata")))

    async def work() -> None:
        async with Client(mcp.make_server(tools)) as client:
            assert (await call(client, "task", id=key))["state"] == "finished"
            shutil.rmtree(tmp_path / "jugdata")
            gone = await client.call_tool("retry", {"target": key})
            assert gone.is_error
            missing = await client.call_tool("status", {})
            assert "no store at" in missing.content[0].text
            [other, *_] = fill(str(tmp_path / "jugdata"), tmp_path, count=2)
            assert (await call(client, "task", id=other))["state"] == "finished"

    run(work)
    tools.close()
