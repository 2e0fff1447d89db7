"""A store's reading key: who has it alone sees and verifies everything, and can make nothing that counts for others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jug_notebook import system
from jug_notebook.cli import Store as CommandStore
from jug_notebook.cli import mcp_tools
from jug_notebook.errors import JugError, SignatureError, StoreError
from jug_notebook.model import (
    NO_INPUTS,
    Event,
    Finished,
    Invalidated,
    Key,
    Lease,
    Request,
    Requested,
    Settled,
    Stop,
    Submitted,
    Verdict,
    Why,
)
from jug_notebook.session import Session
from jug_notebook.session.maintenance import copy
from jug_notebook.session.verification import verify
from jug_notebook.store import keyring, open_store
from jug_notebook.store.redis.log import claim_name
from jug_notebook.store.sealing import HALF, EventSeal, Seal, _Tags
from jug_notebook.store.signed import SignedWriter
from jug_notebook.task import context
from jug_notebook.worker.supervisor import supervise
from tests.cli.test_command_line import Shell
from tests.store.test_replay import Folder, Place, run_all
from tests.store.test_replay import place as place
from tests.store.test_replay import tasks as tasks
from tests.workbench import ORIGIN, Submitter, arithmetic, cell

pytestmark = pytest.mark.filterwarnings("ignore:.*is damaged, or someone without the key changed it", "ignore:skipped")

double, divide = arithmetic("double", "divide")


@contextmanager
def other_account(folder: Path, store_id: str) -> Iterator[None]:
    """Within, this process is of an account that has the store's reading key alone."""
    value, before, here = keyring.read_secret(store_id), os.environ["XDG_CONFIG_HOME"], dict(keyring._here)
    os.environ["XDG_CONFIG_HOME"] = str(folder / "agent")
    keyring._here.clear()
    try:
        keyring.import_read_secret(store_id, value)
        yield
    finally:
        os.environ["XDG_CONFIG_HOME"] = before
        keyring._here.clear()
        keyring._here.update(here)


def filled(url: str, folder: Path) -> tuple[str, Key, Key]:
    """A store with a value, a failure and a ready task. Return its id, and the keys of the first two."""
    session = Session(url, notebook=folder / "n.ipynb")
    context.set_current(session)
    value, failure = double(21), divide(0)
    session.run_here()
    double(23)
    session.close()
    return session.identity, value.key, failure.key


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_who_has_it_sees_every_value_and_leaves_no_trace(place: Place, tmp_path: Path) -> None:
    store_id, value, failure = filled(place.url, tmp_path)
    before = files(place.folder) if isinstance(place, Folder) else place.frames()
    with other_account(tmp_path, store_id), closing(Session(place.url, notebook=tmp_path / "n.ipynb")) as session:
        assert session.read_only
        assert session.resolve(value, all=True).result() == [42]
        assert "doubling 21" in session.log(value)
        assert "ZeroDivisionError" in session.log(failure)
        assert "blocked" not in str(session.status(all=True))
        assert session.queries.why(value).stored
        context.set_current(session)
        assert double(21).result() == 42
        tools = mcp_tools.Acting(CommandStore(place.url))
        assert (tools.result(value).repr, tools.task(failure).state) == ("42", "failed")
        tools.close()
        found = verify(place.url)
        assert found.good
        assert not found.unverified
    assert before == (files(place.folder) if isinstance(place, Folder) else place.frames())


def test_every_verb_that_writes_refuses_in_one_line(place: Place, tmp_path: Path) -> None:
    store_id, value, failure = filled(place.url, tmp_path)
    with other_account(tmp_path, store_id), closing(Session(place.url, notebook=tmp_path / "n.ipynb")) as session:
        context.set_current(session)
        store = session.access.store
        me = system.me("worker")
        verbs: list[Callable[[], Any]] = [
            lambda: double(22),
            lambda: session.retry(failure),
            lambda: session.invalidate(value, all=True),
            lambda: session.cleanup(),
            lambda: session.execute(1),
            lambda: session.run_here(),
            lambda: session.results.collect([session.resolve(failure, all=True)[0].retry()], wait=False),
            lambda: supervise(place.url, session.workers.options(None), stop_files=()),
            lambda: store.renew([me]),
            lambda: store.order(["worker-1-abcdef"], Stop(True)),
            lambda: store.request([value], ORIGIN, True),
            lambda: store.compact(),
            lambda: store.claim(me.id, 1, 0.0),
            lambda: verify(place.url, repair=True),
            lambda: copy(place.url, place.url),
            lambda: SignedWriter(session.access.seal).spec(session.access.signed.known_spec(value)),
        ]
        for number, verb in enumerate(verbs):
            try:
                verb()
            except JugError as error:
                lines = str(error)
                assert "read-only" in lines or "copied to itself" in lines, (number, lines)
                assert "\n" not in lines
            else:
                pytest.fail(f"verb {number} didn't refuse")
        copied = copy(place.url, tmp_path / "own")  # into a store of one's own
        assert (copied.results, copied.refused) == (1, 0)


# -- forging -----------------------------------------------------------------------------------------------------------

#: what who has the reading key puts in the place of the half that it can't make
HALVES: dict[str, Callable[[bytes, bytes, str], bytes]] = {
    "random": lambda hashed, key, use: os.urandom(HALF),
    "zeros": lambda hashed, key, use: bytes(HALF),
    "the same": lambda hashed, key, use: hashed[:HALF],
    "the rest": lambda hashed, key, use: hashed[HALF:],
    "by the reading key": lambda hashed, key, use: _Tags(key, use, "some-store", False).tag(hashed)[:HALF],
}


def forging(tags: _Tags, half: str, key: bytes, use: str) -> None:
    """Let tags be made whose second halves are right."""
    tags.tag = lambda hashed: HALVES[half](hashed, key, use) + hashed[:HALF]  # type: ignore[method-assign]


def forgers(store_id: str, key: bytes, half: str) -> tuple[Seal, EventSeal]:
    seal, events = Seal(key, store_id, read_only=True), EventSeal(key, store_id, read_only=True)
    forging(seal._tags, half, key, "what is stored about a task")
    forging(events._frames, half, key, "events in a log")
    forging(events._records, half, key, "records")
    events.read_only, events._attempts = "", key
    return seal, events


@pytest.mark.parametrize("half", HALVES)
def test_nothing_that_is_forged_with_it_counts_for_who_has_the_key(half: str, place: Place, tasks: Submitter) -> None:
    done, ready = tasks.submit("def f(): return 1"), tasks.submit("def f(): return 2")
    run_all(tasks)
    tasks.store.invalidate([ready], Why.DIRECT, "ann")
    tasks.store.sync()
    store_id, real = tasks.store.id, tasks.seal
    seal, events = forgers(store_id, keyring.read_secret(store_id), half)
    reader = EventSeal(keyring.read_secret(store_id), store_id, read_only=True)
    assert reader.is_frame(events.frame(b"w", 0, b"", b"c"), b"w", 0, b"", b"c")  # other readers may be fooled

    evil = Submitter(tasks.store, tasks.folder)
    evil.seal = seal
    made = evil.submission(cell("def f(): return 'evil'"))
    verdict = Verdict(ready, 1, NO_INPUTS, 1, b"e" * 21, 1.0)
    [held] = tasks.store.outcomes([done])
    assert held is not None
    outcome = Submitter(tasks.store, tasks.folder).outcome(done)
    assert isinstance(outcome, Finished)
    again = msgspec.structs.replace(outcome, key=ready, round=1, digest=verdict.digest)
    forged: list[tuple[Event, list[bytes]]] = [
        (Submitted(made.name, 0, made.python, [made.key], [()], [made.form], 99), [made.body]),
        (Requested(Request(ORIGIN, 99, True), [made.key]), []),
        (Settled("eve-1-abcdef", [verdict]), [SignedWriter(seal).settlement(verdict, again).body]),
        (Invalidated([done], [0], Why.DIRECT, "eve", 1.0), []),
    ]
    for event, bodies in forged:
        place.forge(store_id, event, bodies, events)
        with closing(open_store(place.url)) as later:
            assert later.states([done, ready, made.key])[2] is None, event
            assert [state and state.value for state in later.states([done, ready])] == ["finished", "ready"], event
    for kind, key, body in (
        ("spec", made.key, made.body),
        ("outcome", ready, seal.seal("outcome", ready, 1, b"", b"x")),
    ):
        with pytest.raises(SignatureError):
            real.open(kind, key, 1 if kind == "outcome" else 0, b"", body)
    whole = EventSeal(keyring.secret(store_id), store_id)
    for kind in ("heartbeat", "order", "left", "claim", "counts", "sharing"):
        assert not whole.is_record(events.record(kind, "n", 0, b"x"), kind, "n", 0, b"x")
    name = claim_name(Lease(ready, 1, NO_INPUTS, 1), events)
    assert name != claim_name(Lease(ready, 1, NO_INPUTS, 1), whole)


@pytest.mark.parametrize("half", HALVES)
def test_heartbeats_and_orders_that_are_forged_with_it_are_ignored(half: str, place: Place, tasks: Submitter) -> None:
    supervisor = system.me("supervisor")
    tasks.store.renew([supervisor])
    _, events = forgers(tasks.store.id, keyring.read_secret(tasks.store.id), half)
    with closing(open_store(place.url)) as evil:  # its code, with a forged seal
        held: Any = evil
        if isinstance(place, Folder):
            held._seal = events
        else:
            held._log.seal = events
        held.order([supervisor.id], Stop(True))
        held.renew([msgspec.structs.replace(system.me("worker"), id="evil-1-abcdef")])
    assert tasks.store.renew([supervisor]) == []
    with closing(open_store(place.url)) as later:
        assert "evil-1-abcdef" not in {info.id for info, _, _ in later.processes()}


# -- keeping it --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_exported_and_imported_through_pipes(tmp_path: Path) -> None:
    owner, agent = Shell(tmp_path), Shell(tmp_path)
    agent.environment["XDG_CONFIG_HOME"] = str(tmp_path / "agent")
    (tmp_path / "script.py").write_text(
        "import jug_notebook as jn\njn.connect('jugdata')\n\n@jn.task\ndef f(x):\n    return x\n\nf(7)\n"
    )
    owner.python("script.py")
    assert owner.run("execute", "jugdata", "-n", "1").returncode == 0
    line = owner.run("key", "export", "--read-only", "jugdata").stdout
    whole = owner.run("key", "export", "jugdata").stdout
    assert line.split()[1] == "read"
    assert line.split()[2] not in whole
    assert agent.run("key", "import", given=line).stdout == f"read-only key of store {line.split()[0]} kept\n"
    assert agent.run("check", "jugdata").returncode == 0
    assert "f(x=7)" in agent.run("log", "jugdata", "f").stdout
    for words in (["invalidate", "jugdata", "f"], ["worker", "jugdata", "-n", "1"], ["key", "export", "jugdata"]):
        refused = agent.run(*words)
        assert refused.returncode == 2
        assert "is read-only here" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert agent.run("key", "export", "--read-only", "jugdata").stdout == line
    assert agent.run("key", "import", given=whole).returncode == 0  # from now on it has both
    assert agent.run("invalidate", "jugdata", "f").returncode == 0


def test_a_reading_key_tells_nothing_of_the_key_and_is_one_for_each_store(tmp_path: Path) -> None:
    first, second = os.urandom(32), os.urandom(32)
    assert len({keyring.reading_key(first), keyring.reading_key(second), first, second}) == 4
    with pytest.raises(StoreError, match="has 32 bytes, not 3"):
        keyring.import_read_secret("some-store", b"key")
    keyring.import_read_secret("some-store", first)
    assert "is read-only here" in keyring.read_only("some-store")
    with pytest.raises(StoreError, match="another key"):
        keyring.import_read_secret("some-store", second)
    with pytest.raises(StoreError, match="is read-only here"):
        keyring.secret("some-store", make=True)
    assert (keyring.key_folder() / "some-store.read").stat().st_mode & 0o777 == 0o600
