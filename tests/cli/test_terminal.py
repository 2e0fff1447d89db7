"""Nothing that comes from a store acts on a terminal: no name, argument, error, output, host, user or log."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from jug_notebook import __main__ as command_line
from jug_notebook import cli, system
from jug_notebook.cli import completion, inspect, shell, webstatus
from jug_notebook.clock import CLOCK
from jug_notebook.errors import NoSuchTask, clean
from jug_notebook.model import Display, Failed, Finished, Key, Origin, Outcome, Run, Settlement, Verdict, Why
from jug_notebook.session import Session
from jug_notebook.store import Store, open_store
from jug_notebook.store.signed import SignedWriter, unverified_spec
from tests.cli.test_command_line import Shell
from tests.kernels import Kernel
from tests.workbench import Need, Submitter, cell

EVIL = "a\x1b]52;c;cm0gLXJm\x07b\x1b[2Jc\x1bPq\x1b\\d\rover\x9b31m\x00\x08\x7f\u202ereversed\u2066\u2028<b>\U000e0041"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
SOURCE = "def f(*args):\n    return args\n"
FAILED = 2  #: which of the planted tasks has failed


def harmless(text: str) -> None:
    """Check that nothing in it acts on a terminal, colours apart."""
    found = ACTS.search(re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert found is None, f"{found[0]!r} in {text[max(0, found.start() - 60) : found.end() + 20]!r}"


def plant(store: Store, folder: Path) -> list[Key]:
    """Put tasks into a store that has hostile text in every field: finished, invalidated, failed, blocked and ready."""
    submitter, me = Submitter(store, folder), system.me("worker", CLOCK)
    function = cell(SOURCE)
    function.__name__ = EVIL
    origin = Origin(EVIL, f"/tmp/{EVIL}.ipynb", EVIL)
    writer, keys = SignedWriter(submitter.seal), list[Key]()

    def submit(*args: object) -> None:
        made = submitter.submission(function, *args)
        spec = replace(unverified_spec(made.body), args_repr=EVIL, origin=origin)
        store.submit([replace(made, body=writer.spec(spec))], origin)
        keys.append(made.key)

    for number in range(3):
        submit(number)
    display = Display(1, {"text/plain": EVIL, EVIL: EVIL})
    run = Run(me.id, EVIL, 1, EVIL, EVIL, 1e9, 2.0, 1.0, 1, (("stdout", EVIL), ("stderr", EVIL)), (display,))
    for claim in store.claim(me.id, 3, 0.0, python=system.python()):
        lease = claim.lease
        failed = keys.index(lease.key) == FAILED
        payload = unverified_spec(claim.body).arguments
        digest = b"" if failed else b"d" * 20
        settled = (lease.key, lease.round, lease.inputs)
        outcome: Outcome = Finished(*settled, digest, payload, EVIL, run, EVIL)
        if failed:
            outcome = Failed(*settled, "raised", EVIL, EVIL, run)
        verdict = Verdict(*settled, lease.attempt, digest, 1e9, 2.0)
        store.claim(me.id, 0, 0.0, [Settlement(verdict, writer.settlement(verdict, outcome).body)])
    store.invalidate(keys[1:2], Why.DIRECT, EVIL)
    submit(Need(keys[0]))
    submit(Need(keys[FAILED]))
    words = {"user": EVIL, "host": EVIL, "place": EVIL, "note": EVIL, "python": EVIL, "crew": EVIL, "machine": EVIL}
    head = replace(system.me("supervisor", CLOCK), size=2, resources=((EVIL, 1.0, 1.0),), **words)
    busy = {"task": keys[3], "task_name": EVIL, "tail": EVIL, "since": 1e9, "supervisor": head.id}
    store.renew([head, replace(me, **words, **busy)])
    store.notice(me.id, f"{EVIL}\n")
    store.notice(head.id, f"{EVIL}\n")
    store.sync()
    return keys


@pytest.fixture(params=["file", "redis"])
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, list[Key]]]:
    """The URL of a store with hostile text, and the keys of its tasks."""
    redis = request.param == "redis"
    url = request.getfixturevalue("redis_server").url() if redis else f"file:{tmp_path / 'jugdata'}"
    store = open_store(url)
    yield url, plant(store, tmp_path)
    store.close()


#: what each command is given, after the store's URL; KEY, FAILED: keys of tasks
COMMANDS = {
    "status": [[], ["--short"], ["--json"], ["--html", "-"]],
    "check": [[]],
    "count": [[]],
    "log": [["--history"], ["KEY"], ["FAILED"], ["/a/"], ["no such"]],
    "graph": [[], ["--svg", "-"]],
    "timeline": [[], ["--svg", "-"], ["--html", "-"]],
    "profile": [[]],
    "why": [["KEY"], ["FAILED"], ["/a/"], ["READY"]],
    "invalidate": [["--dry-run", "/a/"], ["KEY"]],
    "accept": [["/a/", "--dry-run"], ["READY"]],
    "retry": [["FAILED"], ["/a/"]],
    "stop": [["--host", "nowhere"]],
    "cleanup": [["--dry-run"], []],
    "copy": [["TO"]],
    "pack": [[]],
    "key": [[]],
    "doctor": [[], ["--verify"], ["--repair"]],
}
#: those with a test of their own, and those that read no store
ELSEWHERE = {"sleep-until", "webstatus", "shell", "mcp", "completion", "worker", "execute"}
WITHOUT_STORE = {"import-jugdata", "demo", "test-jug", "install-skills"}


def test_every_command_is_tried() -> None:
    assert set(cli.FILES) == {*COMMANDS, *ELSEWHERE, *WITHOUT_STORE}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_lets_a_store_act_on_the_terminal(
    command: str, planted: tuple[str, list[Key]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, keys = planted
    meant = {"KEY": keys[0], "FAILED": keys[FAILED], "READY": keys[3], "TO": str(tmp_path / "copy")}
    for words in COMMANDS[command]:
        before = ["export"] if command == "key" else []
        command_line.main([command, *before, url, *(meant.get(word, word) for word in words)])
        out, err = capsys.readouterr()
        harmless(out)
        harmless(err)
        assert out or err


def test_running_a_store_lets_it_not_act_on_the_terminal(planted: tuple[str, list[Key]], tmp_path: Path) -> None:
    url, _ = planted
    shell = Shell(tmp_path)
    shell.environment |= {name: value for name, value in cli.os.environ.items() if name.startswith("XDG_")}
    ran = subprocess.run(
        shell.command("execute", url, "-n", "1"), env=shell.environment, capture_output=True, timeout=100, check=False
    )
    harmless(ran.stdout.decode())
    harmless(ran.stderr.decode())


def test_what_is_watched_completed_or_shown_on_a_page_is_harmless(
    planted: tuple[str, list[Key]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = planted
    out = io.StringIO()
    monkeypatch.setattr(inspect, "TICK", 0.0)

    class Once:
        def sleep(self, seconds: float) -> None:
            raise KeyboardInterrupt

    inspect.watch(cli.Store(url), out, Once())  # type: ignore[arg-type]
    harmless(out.getvalue())
    view = cli.View(cli.Store(url))
    picture = view.picture()
    harmless("".join(webstatus.parts_of(picture).values()) + webstatus._document(picture))
    view.close()
    for candidate in [*completion._functions(["--store", url]), *completion._hosts(["--store", url])]:
        harmless(candidate)


def test_what_the_shell_and_a_session_return_is_harmless(planted: tuple[str, list[Key]]) -> None:
    url, keys = planted
    session = Session(url, read_only=True)
    tasks = shell.Tasks(session)
    texts = [repr(tasks), *session.queries.hosts(), str(session.log(host=EVIL))]
    for shown in (
        session.status(all=True),
        session.history(all=True),
        session.queries.graph(all=True),
        session.timeline(all=True),
        session.profile(all=True),
        session.queries.why(keys[0]),
        session.queries.why(keys[FAILED]),
        session.queries.tasks(keys[0]),
        session.queries.tasks(keys[FAILED]),
        session.resolve(keys[0], all=True),
        session.resolve(keys[0], all=True)[0],
    ):
        texts += [repr(shown), shown._repr_html_()]
    texts += [repr(session.results.outputs(keys[0])), session.queries.origin(keys[0])]
    texts.append(repr(session.verify(keys[0], 1.0)))
    with pytest.raises(NoSuchTask) as refused:
        session.resolve("nothing", all=True)
    for text in [*texts, str(refused.value)]:
        harmless(text)
    session.close()


MAGICS = """\
%jug_status --all
%jug_status --all --text
%jug_status --short
%jug_tasks {key}
%jug_tasks --history --all
%jug_log {key}
%jug_log {failed}
%jug_why {key}
%jug_why {failed}
%jug_graph --all
%jug_timeline --all
%jug_timeline --all --text
%jug_profile --all
%jug_verify {key}
%jug_invalidate {key} --dry-run
%jug_accept {ready} --dry-run
%jug_retry {failed}
%jug_cleanup --dry-run
%jug_debug {failed}
import jug_notebook as jn; jn.status(all=True)
jn.history(all=True)
jn.log({failed!r})
%jug_execute --here
%jug_stop --now
"""


@pytest.mark.parametrize("display", ["text", "html"])
def test_no_magic_lets_a_store_act_on_a_console(display: str, tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'jugdata'}"
    store = open_store(url)
    keys = plant(store, tmp_path)
    kernel = Kernel(tmp_path, JUG_NOTEBOOK_DISPLAY=display, JUG_STORE=url, JPY_SESSION_NAME=str(tmp_path / "n.ipynb"))
    kernel.run("%load_ext jug_notebook")
    for line in MAGICS.format(key=keys[0], failed=keys[FAILED], ready=keys[3]).splitlines():
        ran = kernel.run(line)
        texts = [ran.out, ran.result, ran.message, ran.traceback]
        texts += [str(shown["data"].get(form, "")) for shown in ran.displays for form in ("text/plain", "text/html")]
        for text in texts:
            harmless(text)
    kernel.close()
    store.close()


def test_what_acts_on_a_terminal_is_made_visible_and_colours_of_outputs_pass() -> None:
    assert clean("x\x1b]0;t\x07 \x9b1m \u202ey \ud800") == "x␛]0;t␇ \\x9b1m \\u202ey \\ud800"
    assert clean("\x1b[31mred\x1b[0m \x1b[2K\x1b[1Aup") == "red up"
    assert clean("\x1b[31mred\x1b[0m\x1b]8;;x\x07", colours=True) == "\x1b[31mred\x1b[0m␛]8;;x␇"
    assert clean("\x1b[8mhidden", colours=True).endswith("hidden\x1b[0m")
    assert clean("naïve 中文 é\tx\n") == "naïve 中文 é\tx\n"
    assert str(NoSuchTask("no \x1b]0;t\x07")) == "no ␛]0;t␇"
