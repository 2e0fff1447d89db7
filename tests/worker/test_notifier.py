"""A line when all has ended: supervisors, workers and an HTTP server that are real, and really die."""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import jug_notebook as jn
from jug_notebook import system
from jug_notebook.clock import CLOCK
from jug_notebook.errors import LaunchError
from jug_notebook.launch import local
from jug_notebook.model import Rest
from jug_notebook.store import Store, once, open_store
from jug_notebook.store.event_log import EventLogStore
from jug_notebook.worker import notices, notifier
from jug_notebook.worker.notices import Notice, NotSent, targets_in
from tests.servers import Receiver
from tests.workbench import PATIENCE, Submitter, wait_until

ROOT = Path(local.__file__).parents[2]
SLOW = "import time\ndef f(x):\n    time.sleep(0.3)\n    return x\n"
BAD = "def f(x):\n    return {}[x % 2]\n"


@pytest.fixture(params=["file", "redis"])
def lasting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store that outlives its processes."""
    url = request.getfixturevalue("redis_server").url() if request.param == "redis" else f"file:{tmp_path / 'jugdata'}"
    store = open_store(url)
    yield store
    store.close()


def started(store: Store, *options: str, crew: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "jug_notebook", "worker", "-n", "2", "--detached", *options]
    command += ["--crew", crew] if crew else []
    environment = {**local.environment(), "JUG_STORE": store.url, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    status = process.wait(40)
    assert process.stderr is not None
    process.stderr.close()
    return status


def test_all_has_ended_and_later_work_in_the_same_store_is_reported_again(
    lasting: Store, receiver: Receiver, tmp_path: Path
) -> None:
    tasks = Submitter(lasting, tmp_path)
    notifier.ask(lasting, [receiver.url("secret-token")], "/here/some.ipynb")
    for x in range(3):
        tasks.submit(SLOW, x)
    for x in range(3):
        tasks.submit(BAD, x)
    running = started(lasting)
    try:
        [line] = receiver.wait_for(1)
        assert line.startswith(
            ("jug_notebook: 3 done, 3 failed (KeyError: 0 ×3), ", "jug_notebook: 3 done, 3 failed (KeyError: 1 ×3), ")
        )
        assert line.endswith(" — /here/some.ipynb")
        assert (receiver.got[0]["done"], receiver.got[0]["failed"]) == (3, 3)
        tasks.submit(SLOW, 10)
        assert receiver.wait_for(2)[1].startswith("jug_notebook: 1 done, ")
    finally:
        ended(running)
    assert len(receiver.got) == 2
    assert notices.notices(lasting.id) == ()  # the last supervisor has ended
    logs = "".join(lasting.log(info.id) for info, _, _ in lasting.processes())
    assert "secret-token" not in logs


def test_who_has_no_key_to_the_targets_finds_them_nowhere_in_the_store(tmp_path: Path, receiver: Receiver) -> None:
    store = open_store(f"file:{tmp_path / 'jugdata'}")
    tasks = Submitter(store, tmp_path)
    notifier.ask(store, [receiver.url("secret-token")])
    tasks.submit(SLOW, 1)
    running = started(store)
    receiver.wait_for(1)
    commands = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    ended(running)
    assert "secret-token" not in commands
    for file in (tmp_path / "jugdata").rglob("*"):
        assert file.is_dir() or b"secret-token" not in file.read_bytes()
    store.close()


def test_workers_that_run_elsewhere_and_do_not_know_the_target_are_named_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(jn.connect(tmp_path / "jugdata", notebook=tmp_path / "n.ipynb")) as session:
        elsewhere = [
            msgspec.structs.replace(system.me("supervisor"), id=f"far{n}-7-abcdef", host=f"far{n}", place=place)
            for n, place in enumerate(("ada", "bob", ""))
        ]
        for info in [*elsewhere, system.me("supervisor")]:
            session.access.store.renew([info])
        capsys.readouterr()
        session.workers.notify("cmd:true secret-token", hosts=["ada"])
        errors = capsys.readouterr().err
        notices.forget(session.access.store.id)
        assert errors.startswith("notify: workers that run on bob (far1), far2 can send nothing there, unless")
        assert "secret-token" not in errors
        session.workers.notify("cmd:true", dry_run=True)
        session.workers.notify([])
        assert capsys.readouterr().err == ""


class Mailbox:
    """What a mail server gets: of whom, for whom, and the message."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[str, list[str], bytes]] = queue.Queue()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.put((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 OK"


def test_a_supervisor_sends_mail_to_a_server_that_asks_for_a_password(tmp_path: Path) -> None:
    controller = pytest.importorskip("aiosmtpd.controller")
    smtp = pytest.importorskip("aiosmtpd.smtp")
    asked: list[tuple[bytes, bytes]] = []

    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        asked.append((data.login, data.password))
        return smtp.AuthResult(success=True)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mailbox = Mailbox()
    server = controller.Controller(
        mailbox, hostname="127.0.0.1", port=port, authenticator=login, auth_require_tls=False, auth_required=True
    )
    server.start()
    store = open_store(f"file:{tmp_path / 'jugdata'}")
    try:
        target = f"mailto://ann:secret-word@127.0.0.1:{port}?mode=insecure&from=jug@here.example&to=ann@there.example"
        tasks = Submitter(store, tmp_path)
        notifier.ask(store, targets_in("env:MAIL", {"MAIL": target}), "/here/some.ipynb")
        tasks.submit(SLOW, 1)
        running = started(store)
        sender, recipients, message = mailbox.got.get(timeout=PATIENCE)
        ended(running)
        logs = "".join(store.log(info.id) for info, _, _ in store.processes())
    finally:
        server.stop()
        store.close()
    assert (sender, recipients) == ("jug@here.example", ["ann@there.example"])
    assert asked == [(b"ann", b"secret-word")]
    assert b"jug_notebook: 1 done, " in b"".join(part.strip() for part in message.splitlines())
    assert mailbox.got.empty()
    assert "secret-word" not in logs


def test_the_last_supervisor_that_ends_says_that_no_worker_is_left(
    lasting: Store, receiver: Receiver, tmp_path: Path
) -> None:
    tasks = Submitter(lasting, tmp_path)
    notifier.ask(lasting, [receiver.url()])
    keys = [tasks.submit(SLOW, x) for x in range(30)]
    first, second = started(lasting, "--max-tasks", "1"), started(lasting, "--max-tasks", "1", crew="b")
    for process in (first, second):
        assert process.wait(60) == 0
        assert process.stderr is not None
        process.stderr.close()
    [line] = receiver.wait_for(1)
    done = sum(lasting.outcomes([key])[0] is not None for key in keys)
    assert line.startswith(f"jug_notebook: no workers are left: {30 - done} still to run, {done} done, ")


def test_what_can_not_be_sent_is_tried_again_and_disturbs_no_work(tmp_path: Path, receiver: Receiver) -> None:
    store = open_store(f"file:{tmp_path / 'jugdata'}")
    tasks = Submitter(store, tmp_path)
    receiver.refused = 1
    notifier.ask(store, [receiver.url()])
    tasks.submit(SLOW, 1)
    running = started(store)
    receiver.wait_for(1)
    ended(running)
    assert len(receiver.got) == 1
    store.close()


def test_killed_supervisors_are_told_by_the_next_session(lasting: Store, receiver: Receiver, tmp_path: Path) -> None:
    tasks = Submitter(lasting, tmp_path)
    notifier.ask(lasting, [receiver.url()], "/a/b.ipynb")
    key = tasks.submit(SLOW, 1)
    for x in range(200):
        tasks.submit(SLOW, 10 + x)
    running = started(lasting)
    wait_until(lasting, lambda: lasting.outcomes([key])[0] is not None)
    running.kill()
    running.wait()
    assert running.stderr is not None
    running.stderr.close()
    assert isinstance(lasting, EventLogStore)
    line = notifier.unreported(lasting, system.python())
    assert line.startswith("workers were killed before they could notify anyone: no workers are left: ")
    assert notifier.unreported(lasting, system.python()) == ""
    assert receiver.got == []


RUNS = int(os.environ.get("JUG_TEST_NOTIFY_RUNS", "3"))


def test_exactly_one_message_comes_of_each_run_in_which_supervisors_and_workers_are_killed(
    lasting: Store, receiver: Receiver, tmp_path: Path
) -> None:
    dice = random.Random(7)
    tasks = Submitter(lasting, tmp_path)
    for run in range(RUNS):
        notifier.ask(lasting, [receiver.url()])
        for x in range(6):
            tasks.submit(SLOW, 100 * run + x)
        crews = [started(lasting, crew=name) for name in ("a", "b")]
        until = CLOCK.monotonic() + dice.uniform(1.0, 6.0)
        while CLOCK.monotonic() < until:
            CLOCK.sleep(dice.uniform(0.3, 1.0))
            alive = [info for info, lives, _ in lasting.processes() if lives and info.kind in ("supervisor", "worker")]
            if alive:
                _kill(dice.choice(alive).pid)
            for place, crew in enumerate(crews):
                if crew.poll() is not None:
                    crews[place] = started(lasting, crew="ab"[place])
        receiver.wait_for(run + 1, 90.0)
        CLOCK.sleep(1.0)  # for a second one there is nothing to wait for
        for crew in crews:
            crew.terminate()
        for crew in crews:
            crew.wait(40)
        assert len(receiver.got) == run + 1, f"run {run}"
    assert len({one["key"] for one in receiver.got}) == RUNS


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# -- targets -----------------------------------------------------------------------------------------------------------


def test_a_target_is_a_command_a_url_or_is_read_from_where_only_its_user_looks(tmp_path: Path) -> None:
    file = tmp_path / "targets"
    file.write_text("# mine\nhttps://chat.example/token\n\necho done\n")
    assert targets_in(f"@{file}") == ["https://chat.example/token", "echo done"]
    assert targets_in(["env:WHERE", "cmd:echo"], {"WHERE": "http://x/y"}) == ["http://x/y", "cmd:echo"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "int is not a target"),
        ([""], "a target is a string"),
        ("env:NOT_THERE", "NOT_THERE is not set"),
        ("@/no/such/file", "can't be read: No such file"),
        ("https:///token", "is not a URL"),
        ("nonsense://token", "Apprise can't use this nonsense://…"),
        ("http:/host/token", "http:… is neither a URL nor an address; give https://HOST/PATH"),
        ("mailto:token", "mailto:… is neither a URL nor an address"),
        ("cmd: ", "there is no command after 'cmd:'"),
        ("no-such-token", "there is no such command here"),
        ("env:", "'env:' names nothing"),
        ("browser", "'browser' is the page of an open notebook"),
        ("@", "'@' names nothing"),
    ],
)
def test_what_can_not_be_a_target_is_refused_at_once_without_what_it_holds(given: Any, message: str) -> None:
    with pytest.raises(LaunchError, match=message) as refused:
        targets_in(given, {})
    assert "token" not in str(refused.value)


def test_a_missing_library_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r"ntfy://… needs the library apprise: pip install 'jug-notebook\[notify\]'"):
        targets_in("ntfy://topic")


def test_a_notice_shows_no_more_than_its_kind() -> None:
    notice = Notice("https://chat.example/token")
    assert (str(notice), f"{notice!r}") == ("<notice by https://…>",) * 2
    assert [Notice(one).label for one in ("desktop", "mailto:a@b.c", "echo x")] == ["desktop", "mail", "command"]


def test_a_command_gets_the_line_as_a_variable_and_as_input(tmp_path: Path) -> None:
    notice = Notice(f'cmd:cat > "{tmp_path}/input"; printf %s "$JUG_MESSAGE" > "{tmp_path}/variable"')
    notices.send(notice, "all $HOME `done`", {})
    assert (tmp_path / "input").read_text() == "all $HOME `done`\n"
    assert (tmp_path / "variable").read_text() == "all $HOME `done`"
    with pytest.raises(NotSent, match="status 3"):
        notices.send(Notice("exit 3"), "x", {})


def test_apprise_sends_to_its_services(receiver: Receiver) -> None:
    port = receiver.server_address[1]
    notices.send(Notice(f"json://127.0.0.1:{port}/path"), "3 done", {})


def test_why_a_post_failed_is_told_without_its_url(receiver: Receiver) -> None:
    receiver.refused = 1
    with pytest.raises(NotSent, match="HTTP status 500") as refused:
        notices.send(Notice(receiver.url("token")), "x", {})
    assert "token" not in str(refused.value)


def test_what_came_of_the_work_is_one_line() -> None:
    def line(rest: Rest, kinds: dict[str, int], busy: bool = False) -> str:
        return notifier.message(rest, kinds, "n.ipynb", busy)

    many = Rest("", 488, ("k",) * 12, 0, 0, 0.1, 4800.1)
    assert line(many, {"KeyError: 'x'": 10, "OSError": 2}) == (
        "jug_notebook: 488 done, 12 failed of 2 kinds (KeyError: 'x' ×10, …), 1 h 20 min — n.ipynb"
    )
    stopped = Rest("", 0, ("k",), 3, 0, 1.0, 3.0)
    assert line(stopped, {}) == "jug_notebook: stopped: 3 blocked by 1 failed, 2.0 s — n.ipynb"
    left = Rest("", 4, (), 0, 40, 1.0, 3.0)
    assert line(left, {}, True) == "jug_notebook: no workers are left: 40 still to run, 4 done, 2.0 s — n.ipynb"


def test_an_onlooker_tells_once_what_came_of_what_was_requested_since(store: Store, tmp_path: Path) -> None:
    tasks = Submitter(store, tmp_path)

    def onlooker(after: float = 0.0) -> notifier.Onlooker:
        return notifier.Onlooker(store, tasks.seal, system.python(), "n.ipynb", after)

    known = onlooker()
    assert [known.look(now, False) for now in (0.0, 100.0)] == [None, None], "nothing is requested"
    tasks.submit(SLOW, 1)
    assert [known.look(now, False) for now in (200.0, 300.0)] == [None, None], "no worker has been there"
    waiting = onlooker()
    assert [waiting.look(now, True) for now in (0.0, 100.0)] == [None, None], "workers are starting"
    assert waiting.look(101.0, False) is None, "a cell may be about to make more tasks"
    left = waiting.look(104.0, False)
    assert left is not None
    assert left.text == "jug_notebook: no workers are left: 1 still to run, 0 done — n.ipynb"
    brief = onlooker(60.0)
    assert [brief.look(now, now < 0) for now in (-1.0, 0.0)] == [None, None]
    assert brief.look(9.0, False) == notifier.Finding(store.rest().id, "")


def test_who_began_and_died_is_followed_by_another_and_what_is_done_stays_done(store: Store) -> None:
    assert isinstance(store, EventLogStore)
    seal = Submitter(store, Path()).seal
    name = "ab" * 20
    first, second = system.me("notifier"), system.me("notifier")
    store.renew([first])
    store.renew([second])
    assert once.begin(store, name, first.id) is not None
    assert once.begin(store, name, second.id) is None
    store.leave([first.id])
    lease = once.begin(store, name, second.id)
    assert lease is not None
    assert lease.attempt == 2
    once.finish(store, lease, second.id, seal)
    assert once.is_done(store, name)
    assert once.begin(store, name, second.id) is None
    assert store.snapshot().total == 0
