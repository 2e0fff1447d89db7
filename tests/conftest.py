"""What all tests stand on: stores of every kind, in folders that are gone afterwards, and a keyring of their own."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jug_notebook.keys import advice
from jug_notebook.store import Store, open_store
from tests.servers import receiver, redis_server

__all__ = ["receiver", "redis_server"]

# who runs the tests in a shell's background ignores Ctrl-C, and so would all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
# stores that tests leave open, as killed processes do, hold descriptors, and a user's shell often allows but 1 024
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

#: files that take long come first, the longest of them before the others: at the end, no process is busy alone
LONGEST = """
    session/test_interrupts store/test_closed_doors store/test_mirror store/test_compaction store/test_full_disk
    store/test_random_programs
    worker/test_limits worker/test_supervisor cli/test_command_line cli/test_mcp launch/test_executor
    futures/test_libraries futures/test_executor kernel_ext/test_who_requests compat/test_jugfile_commands
    worker/test_notifier worker/test_resources launch/test_many_hosts launch/test_hosts_in_a_notebook cli/test_shells
    kernel_ext/test_browser launch/test_ssh kernel_ext/test_magics
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"tests/{name}.py": number for number, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of test stores do not land in the user's keyring, and nothing of the user's environment leaks in."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in [name for name in os.environ if name.startswith("JUG_") or name == "JPY_SESSION_NAME"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JUG_DEVICE_LOCKS", str(tmp_path_factory.mktemp("locks") / "devices"))  # pretended ones


@pytest.fixture(autouse=True)
def _no_warnings_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once in a process is said once in each test."""
    monkeypatch.setattr(advice, "_warned", set())


@pytest.fixture(params=["memory", "file", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL of each kind of store."""
    if request.param == "redis":
        url: str = request.getfixturevalue("redis_server").url()
        return url
    return {"memory": f"memory:{tmp_path.name}", "file": f"file:{tmp_path / 'jugdata'}"}[request.param]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An empty store of each kind."""
    opened = open_store(store_url)
    yield opened
    opened.close()
