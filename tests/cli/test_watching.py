"""Pictures that follow the store: a page in a real browser, a terminal, a pipe."""

from __future__ import annotations

import http.client
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jug_notebook import render
from jug_notebook.cli import webstatus
from tests import browser
from tests.cli.test_command_line import Shell
from tests.workbench import is_readable

PATIENCE = 20.0
SCRIPT = """
import sys
import jug_notebook as jn

@jn.task
def double(x):
    return 2 * x

@jn.task
def divide(x):
    return 1 / x

jn.connect("jugdata")
double.map(range(int(sys.argv[1])))
divide.map([0, 1])
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A store where three tasks finished and one failed, with a text that could be markup."""
    shell = Shell(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT.replace("1 / x", "1 / x if x else int('<script>alert(1)</script>')"))
    more(shell, 2)
    return shell


def more(shell: Shell, count: int) -> None:
    """Have so many tasks of `double`, run."""
    shell.python("script.py", str(count))
    assert shell.run("execute", "jugdata", "-n", "1").returncode == 1


@pytest.fixture
def served(shell: Shell) -> Iterator[tuple[Shell, str]]:
    pytest.importorskip("tornado")
    server = shell.start("webstatus", "jugdata")
    try:
        assert server.stdout is not None
        yield shell, server.stdout.readline().strip()
    finally:
        server.send_signal(signal.SIGINT)
        _, printed = server.communicate(timeout=PATIENCE)
        assert server.returncode == 0, printed


def fetch(url: str, path: str | None = None, **headers: str) -> tuple[http.client.HTTPResponse, str]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
    connection.request("GET", parts.path if path is None else path, headers=headers)
    response = connection.getresponse()
    return response, response.read().decode()


def test_the_page_is_for_who_has_its_address_and_calls_it_by_its_name(served: tuple[Shell, str]) -> None:
    _, url = served
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    good, page = fetch(url)
    assert good.status == 200
    assert "3 of 4 finished" in page
    policy = good.getheader("Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert good.getheader("Referrer-Policy") == "no-referrer"
    assert fetch(url, Host=f"localhost:{parts.port}")[0].status == 200
    assert fetch(url, Host=f"evil.example:{parts.port}")[0].status == 403
    for path in ("/", f"/{'0' * 32}/", f"/{'0' * 32}/events", f"/{'0' * 32}/live.js", f"{parts.path}../"):
        refused, printed = fetch(url, path)
        assert refused.status == 404
        assert "finished" not in printed


@pytest.mark.parametrize(
    ("host", "ours"),
    [("127.0.0.1:80", True), ("[::1]:80", True), ("localhost", True), ("evil.example", False), ("", False),
     ("127.0.0.1.evil.example", False), ("localhost.evil.example", False), ("[", False)],
)  # fmt: skip
def test_a_name_that_somebody_else_may_have_made_mean_us_is_refused(host: str, ours: bool) -> None:
    assert webstatus.is_ours(host, frozenset({"localhost"})) is ours


def test_the_page_follows_the_store_and_what_was_opened_stays_open(served: tuple[Shell, str]) -> None:
    if reason := browser.missing():
        pytest.skip(reason)
    shell, url = served
    with browser.browser() as page:
        page.set_default_timeout(browser.PATIENCE)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail("a task's text ran as a script"))
        page.goto(url)
        page.get_by_text("3 of 4 finished").wait_for()
        page.get_by_text("live", exact=True).wait_for()
        page.locator("details summary").click()
        page.locator("details[open] pre").first.wait_for()
        page.evaluate("document.querySelector('details').dataset.mark = 'the same'")
        more(shell, 5)
        page.get_by_text("6 of 7 finished").wait_for()
        assert page.title().startswith("85 %")
        assert page.locator("details[open][data-mark='the same'] pre").first.is_visible()
        assert "alert(1)" in page.locator("details[open]").inner_text()
        assert all(request.startswith(url) for request in asked if not request.endswith("favicon.ico")), asked


def test_two_who_look_on_see_the_same_and_one_may_leave(served: tuple[Shell, str]) -> None:
    shell, url = served
    parts = urlsplit(url)
    one, two = (http.client.HTTPConnection(parts.netloc, timeout=PATIENCE) for _ in range(2))
    streams = []
    for connection in (one, two):
        connection.request("GET", f"{parts.path}events")
        stream = connection.getresponse()
        assert stream.getheader("Content-Type") == "text/event-stream"
        assert b"3 of 4" in stream.readline()
        streams.append(stream)
    streams[0].close()
    one.close()
    more(shell, 3)
    until = time.monotonic() + PATIENCE
    while b"4 of 5 finished" not in streams[1].readline():
        assert time.monotonic() < until
    two.close()


def test_a_terminal_shows_the_picture_in_place_and_keeps_the_last(shell: Shell) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    watcher = subprocess.Popen(
        shell.command("status", "jugdata", "--watch"),
        cwd=shell.folder,
        env=shell.environment | {"COLUMNS": "70", "LINES": "14"},
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = read_until(master, "3 of 4 finished")
    more(shell, 6)
    seen += read_until(master, "7 of 8 finished")
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(PATIENCE) == 1, "one task has failed"
    seen += read_until(master, None)
    os.close(master)
    last = re.split(r"\x1b\[\d+A", seen)[-1].replace("\x1b[K", "").replace("\x1b[J", "")
    assert "7 of 8 finished" in last
    assert "interrupted" not in last
    assert "Traceback (most" not in last
    lines = last.replace("\r", "").splitlines()
    assert len(lines) <= 13
    assert all(len(line) <= 70 for line in lines)
    assert "\x1b[" in seen


def read_until(fd: int, wanted: str | None) -> str:
    """What a terminal is sent, up to something, or else to its end."""
    seen, until = "", time.monotonic() + PATIENCE
    while wanted is None or wanted not in seen:
        assert time.monotonic() < until, seen
        is_readable(fd, 0.1)
        try:
            got = os.read(fd, 1 << 16)
        except BlockingIOError:
            continue
        except OSError:  # the other side has closed it
            got = b""
        if not got:
            assert wanted is None, seen
            return seen
        seen += got.decode()
    return seen


def test_without_a_terminal_there_is_a_line_for_each_change(shell: Shell) -> None:
    watcher = shell.start("status", "jugdata", "--watch")
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("3 of 4 finished")
    more(shell, 4)
    while not (line := watcher.stdout.readline()).startswith("5 of 6 finished"):
        assert line
        assert "\x1b" not in line
    watcher.send_signal(signal.SIGINT)
    watcher.communicate(timeout=PATIENCE)
    assert watcher.returncode == 1


def test_a_store_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    for words in (["webstatus", "nothing"], ["status", "nothing", "--watch"], ["shell", "nothing"]):
        done = Shell(tmp_path).run(*words)
        assert done.returncode == 2
        assert "no store at 'nothing'" in done.stderr
        assert not (tmp_path / "nothing").exists()


def test_a_port_that_is_taken_is_told_in_a_line(served: tuple[Shell, str]) -> None:
    shell, url = served
    done = shell.run("webstatus", "jugdata", "--port", str(urlsplit(url).port))
    assert done.returncode == 2
    assert "can't listen on 127.0.0.1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_does_not_fit_is_cut_and_said() -> None:
    assert render.fitted("aaaaaaaaa\nb\nc\nd", 5, 4) == "aaaa…\nb\n… 2 …"
    assert render.fitted("a\nb", 5, 3) == "a\nb"
