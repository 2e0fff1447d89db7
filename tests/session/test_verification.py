"""`verify`: what is damaged in a store is named, with what it costs; a repair moves it out of the way."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook import __main__ as command_line
from jug_notebook.model import Finished
from jug_notebook.session.verification import Verified, verify
from jug_notebook.store import keyring, open_store
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file import logs
from jug_notebook.store.file.journal import HEADER
from jug_notebook.store.signed import template
from tests import damage
from tests.crews import working
from tests.servers import Server
from tests.workbench import cell

ARGUMENT = list(range(40_000))


@pytest.fixture(params=["file", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        server: Server = request.getfixturevalue("redis_server")
        return server.url()
    return f"file:{tmp_path / 'jugdata'}"


@pytest.fixture(autouse=True)
def _nothing_named_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_named", set())
    jn.definitions.clear()
    yield
    jn.definitions.clear()


class Run:
    """A notebook with two tasks whose results are blobs; it can be run again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = jn.connect(url)
        self.fit = jn.task(cell("def fit(x): return bytes([x]) * 200_000", "fit"))
        self.count = jn.task(cell("def count(points): return len(points)", "count"))
        self.small, self.large = self.fit(3), self.count(ARGUMENT)
        self.session.end_cell()

    def __enter__(self) -> Run:
        with working(self.session):
            assert len(self.small.result()) == 200_000
            assert self.large.result() == 40_000
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    @property
    def store(self) -> Any:
        return self.session.access.store

    def value_of(self, task: Any) -> str:
        [outcome] = self.session.access.signed.outcomes([task.key])
        assert isinstance(outcome, Finished)
        return outcome.value.buffers[0]

    def argument(self) -> str:
        return self.session.access.signed.known_spec(self.large.key).arguments.buffers[0]

    def function(self) -> str:
        return template(self.session.access.signed.known_spec(self.small.key).template).bundle

    def works(self) -> None:
        """The notebook, run again, has the right values."""
        with working(self.session):
            assert self.fit(3).result() == bytes([3]) * 200_000
            assert self.count(ARGUMENT).result() == 40_000


def lines(found: Verified) -> list[str]:
    return str(found).splitlines()


def quietly(url: str, repair: bool = False) -> Verified:
    """Verify; what is damaged is in the result, and isn't warned of besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return verify(url, repair)


def test_a_whole_store_is_whole(url: str) -> None:
    with Run(url) as run:
        found = quietly(url)
        [line] = lines(found)
        assert re.fullmatch(r".*: checked its logs, 2 tasks and \d blobs \(\d+ kB\): nothing is damaged", line)
        run.store.compact()
        assert quietly(url).good
    assert quietly(url).good, "nor once it is closed"
    open_store(url).compact()
    assert quietly(url, repair=True).good


@pytest.mark.parametrize("change", [damage.flipped, damage.cut, damage.emptied])
def test_a_damaged_result_is_named_and_runs_again_after_a_repair(url: str, change: damage.Change) -> None:
    with Run(url) as run:
        damage.blob(run.store, run.value_of(run.small))(change)
        found = quietly(url)
        named, total = lines(found)
        assert named == "the result of fit(x=3) is damaged: it runs again when it's next asked for"
        assert total.endswith("1 damaged or missing")
        assert not found.good
        assert lines(quietly(url)) == [named, total], "looking has changed nothing"
        assert run.small.state is jn.State.FINISHED
        repaired = quietly(url, repair=True)
        moved = "moved to trash/" if url.startswith("file:") else "removed"
        assert lines(repaired)[0] == f"the result of fit(x=3) is damaged: {moved}; {named.rpartition(': ')[2]}"
        assert repaired.good
        assert quietly(url).good
        assert run.small.state is jn.State.READY
        run.works()


def test_a_missing_result_is_named_and_runs_again_after_a_repair(url: str) -> None:
    with Run(url) as run:
        damage.remove(run.store, run.value_of(run.small))
        assert lines(quietly(url))[0].startswith("the result of fit(x=3) is missing: it runs again")
        assert "is missing: invalidated; it runs again" in lines(quietly(url, repair=True))[0]
        assert quietly(url).good
        run.works()


def test_a_damaged_argument_or_function_is_stored_again_when_its_cell_runs_again(url: str) -> None:
    with Run(url) as run:
        for address in (run.argument(), run.function()):
            damage.blob(run.store, address)(damage.flipped)
        found = sorted(lines(quietly(url, repair=True))[:-1])
        assert found[0].startswith("an argument of count(points=[0, 1")
        assert found[1].startswith("the function fit is damaged")
        assert all("stored again when its cell is run again" in line for line in found)
        assert [line.partition(":")[0].endswith("is missing") for line in lines(quietly(url))[:-1]] == [True, True]
        run.session.close()
        with Run(url) as again:
            again.works()
            assert quietly(url).good


def test_a_blob_that_no_task_uses_costs_nothing(url: str) -> None:
    with Run(url) as run:
        damage.blob(run.store, run.store.put_blob([b"x" * 1000]))(damage.flipped)
        assert re.match(r"a blob that no task uses \(\w{12}\) is damaged: costs nothing", lines(quietly(url))[0])
        assert quietly(url, repair=True).good
        assert quietly(url).damages == ()


def test_a_blob_that_has_expired_because_no_task_names_it_is_no_damage(redis_server: Server) -> None:
    with Run(redis_server.url()) as run:
        address = run.store.put_blob([b"x" * 1000])
        run.store._connection.command("PEXPIRE", run.store._connection.key(f"v:{address}"), 0)
        assert address in run.store.inventory.addresses()
        assert quietly(run.url).good


def test_an_acceptance_that_is_damaged_costs_a_run_and_keeps_what_it_accepted(redis_server: Server) -> None:
    with Run(redis_server.url()) as run:
        former = run.fit(9)
        run.session.end_cell()
        with working(run.session):
            former.result()
        edited = jn.task(cell("def fit(x): return bytes([x]) * (100_000 * 2)", "fit"))(9)
        run.session.end_cell()
        run.session.accept(edited)
        assert edited.state is jn.State.FINISHED
        [body] = run.store.acceptances([edited.key])
        spoil_body(run.store, body, damage.flipped)
        [line, _] = lines(quietly(run.url, repair=True))
        assert line.startswith("the record of the reuse of fit(x=9) is damaged: invalidated; it runs again")
        assert former.state is jn.State.FINISHED
        assert quietly(run.url).good


def test_without_the_key_only_hashes_and_checksums_are_checked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(url) as run:
        damage.blob(run.store, run.value_of(run.small))(damage.flipped)
    monkeypatch.setattr(keyring, "_here", {})
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    found = lines(quietly(url))
    assert found[0].startswith("the result of fit(x=3) is damaged")
    assert found[1].startswith("signatures were not checked, only hashes and checksums: the key of store")
    with pytest.raises(jn.StoreError, match="the key of store"):
        verify(url, repair=True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_command_has_a_line_of_progress_on_a_terminal_only_and_a_status(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(url) as run:
        capsys.readouterr()
        assert command_line.main(["doctor", url, "--verify"]) == 0
        out, err = capsys.readouterr()
        assert out.endswith("nothing is damaged\n")
        assert not err
        damage.blob(run.store, run.value_of(run.small))(damage.flipped)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert command_line.main(["doctor", url, "--verify"]) == 1
        assert re.search(r"\r\x1b\[Kchecked 0 of 2 tasks.*\r\x1b\[K$", terminal.getvalue())
        assert "\n" not in terminal.getvalue()
        assert command_line.main(["doctor", url, "--repair"]) == 0
        assert command_line.main(["doctor", url, "--verify"]) == 0
        assert command_line.main(["doctor", url, "--verify", "--host", "a"]) == 2
        assert "leave --host and --hosts-file out" in terminal.getvalue()


# -- without a repair: who meets damage mends it ----------------------------------------------------------------------

CHANGES = [damage.flipped, damage.cut, damage.emptied]


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_result_that_is_asked_for_runs_again(url: str, change: damage.Change) -> None:
    with Run(url) as run:
        address = run.value_of(run.small)
        damage.blob(run.store, address)(change)
        run.works()
        assert run.store.inventory.inspect(address).wrong == ""
        assert quietly(url).good


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_result_that_another_task_needs_runs_again_first(url: str, change: damage.Change) -> None:
    with Run(url) as run:
        damage.blob(run.store, run.value_of(run.small))(change)
        length = jn.task(cell("def length(data): return len(data)", "length"))(run.small)
        run.session.end_cell()
        with working(run.session):
            assert length.result() == 200_000
        assert quietly(url).good


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_function_is_sent_again_by_the_kernel_that_has_it(url: str, change: damage.Change) -> None:
    with Run(url) as run:
        damage.blob(run.store, run.function())(change)
        with working(run.session):
            assert run.fit(5).result() == bytes([5]) * 200_000
        assert quietly(url).good


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_argument_is_stored_again_by_its_cell(url: str, change: damage.Change) -> None:
    with Run(url) as run:
        argument = list(range(50_000))
        task = run.count(argument)
        run.session.end_cell()
        [address] = run.session.access.signed.known_spec(task.key).arguments.buffers
        damage.blob(run.store, address)(change)
        with working(run.session):
            with pytest.raises(jn.TaskFailed, match="re-run its cell"):
                task.result()
            assert run.count(argument).result() == 50_000
        assert quietly(url).good


# -- logs of a folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jugdata"


def log_of(folder: Path, kind: str = "log") -> Path:
    """The largest of the logs."""
    return max((folder / kind).iterdir(), key=lambda path: path.stat().st_size)


def second_frame(log: Path) -> int:
    """Where it begins."""
    return HEADER.size + int(HEADER.unpack_from(log.read_bytes())[2])


def spoil(log: Path, at: int) -> None:
    data = bytearray(log.read_bytes())
    data[at] ^= 1
    log.write_bytes(data)


@pytest.mark.parametrize("kind", ["log", "sealed"])
def test_a_damaged_log_is_named_once_and_compacted_in_a_repair(folder: Path, kind: str) -> None:
    with Run(f"file:{folder}"):
        pass
    if kind == "sealed":
        open_store(folder).compact()
    log = log_of(folder, kind)
    spoil(log, second_frame(log) + HEADER.size + 20)
    [line, total] = lines(quietly(str(folder)))
    assert line.startswith(f"{log} is damaged, or someone without the key changed it: its frame 1 can't be read")
    assert line.endswith(": the tasks recorded there run again when they're next asked for")
    assert total.endswith("1 damaged or missing")
    [line, total] = lines(quietly(str(folder), repair=True))
    assert "compacted without what is damaged; the tasks recorded there" in line
    assert total.endswith("1 damaged, now out of the way")
    assert log.name in os.listdir(folder / "trash"), "there is more in it"
    assert quietly(str(folder)).good
    with Run(f"file:{folder}") as run:
        run.works()


def test_the_log_of_a_writer_that_still_runs_is_named_and_left_alone(folder: Path) -> None:
    with Run(f"file:{folder}"):
        log = log_of(folder)
        spoil(log, second_frame(log) + HEADER.size + 20)
        found = quietly(str(folder), repair=True)
        assert not found.good
        assert lines(found)[0].endswith("next asked for; its writer still runs: repair it after that")
    assert quietly(str(folder), repair=True).good
    assert quietly(str(folder)).good


def test_a_torn_end_of_a_log_and_logs_that_a_compaction_replaced_are_no_damage(folder: Path) -> None:
    with Run(f"file:{folder}") as run:
        log = log_of(folder)
        data = log.read_bytes()
        for torn in (1, HEADER.size // 2, HEADER.size, HEADER.size + 9):
            log.write_bytes(data + data[:torn])
            assert quietly(str(folder)).good, torn
        log.write_bytes(data)
        run.works()
    reader = open_store(folder)
    reader.tasks()  # it may be reading them, so they stay for a while
    other = open_store(folder)
    other.compact()
    for path in (folder / "sealing").iterdir():
        spoil(path, 100)
    assert quietly(str(folder)).good


def test_what_another_machine_has_damaged_is_named_once_it_has_settled(folder: Path) -> None:
    with Run(f"file:{folder}"):
        pass
    log = log_of(folder)
    spoil(log, second_frame(log) + HEADER.size + 20)
    log.rename(log.with_name("elsewhere-1.abcdef.log"))  # under that name, none of its frames holds
    assert any("are not a record of its writer's" in line for line in lines(quietly(str(folder))))


def test_what_cant_be_moved_aside_is_named_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(f"file:{folder}") as run:
        damage.blob(run.store, run.value_of(run.small))(damage.flipped)

        def refused(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Folder, "rename", refused)
        found = quietly(str(folder), repair=True)
        assert lines(found)[0].endswith("asked for; can't be moved to trash/: Permission denied")
        assert not found.good
        with pytest.raises(jn.ValueLost, match=r"is damaged, and can't be moved to .*trash: Permission denied"):
            run.store.get_blob(run.value_of(run.small))


def test_a_blob_in_the_trash_is_no_damage_and_one_that_is_all_holes_is_not_read(folder: Path) -> None:
    with Run(f"file:{folder}") as run:
        address = run.value_of(run.small)
        (folder / "blobs" / address[:2] / address[2:]).rename(folder / "trash" / address)
        assert quietly(str(folder)).good
        assert len(run.small.result()) == 200_000
        os.truncate(folder / "blobs" / address[:2] / address[2:], 1 << 43)
        assert lines(quietly(str(folder)))[0].startswith("the result of fit(x=3) is damaged")


# -- records in a server -----------------------------------------------------------------------------------------------


def spoil_body(store: Any, body: bytes, change: damage.Change | None) -> None:
    """Change a sealed record, or remove it."""
    name, command = store._connection.key("bodies"), store._connection.command
    fields = command("HGETALL", name)
    [field] = [field for field, value in zip(fields[::2], fields[1::2], strict=True) if value == body]
    if change is None:
        command("HDEL", name, field)
    else:
        command("HSET", name, field, change(body))


@pytest.mark.parametrize("change", [damage.flipped, damage.emptied, None])
@pytest.mark.parametrize("what", ["spec", "outcome"])
def test_a_damaged_record_in_a_server_is_named_and_repaired(
    redis_server: Server, what: str, change: damage.Change | None
) -> None:
    with Run(redis_server.url()) as run:
        store = run.store
        body = store.specs([run.small.key])[0] if what == "spec" else store.outcomes([run.small.key])[0].body
        spoil_body(store, body, change)
        [line, _] = lines(quietly(run.url))
        if what == "spec":
            assert re.match(r"the record of fit \(\w{8}\) is damaged: its result is kept, but it can't run again", line)
        else:
            assert line.startswith("the record of the result of fit(x=3) is damaged: it runs again")
            assert quietly(run.url, repair=True).good
            assert quietly(run.url).good
            run.works()


def test_a_task_whose_outcome_is_damaged_in_a_server_runs_again_when_it_is_asked_for(redis_server: Server) -> None:
    with Run(redis_server.url()) as run:
        spoil_body(run.store, run.store.outcomes([run.small.key])[0].body, damage.flipped)
        with working(run.session), pytest.warns(UserWarning, match=rf"record of task {run.small.key[:8]} is damaged"):
            assert run.small.result() == bytes([3]) * 200_000
        assert quietly(run.url).good


def test_a_task_whose_outcome_is_damaged_in_a_server_runs_again_when_another_needs_it(redis_server: Server) -> None:
    with Run(redis_server.url()) as run:
        spoil_body(run.store, run.store.outcomes([run.small.key])[0].body, damage.flipped)
        needs = run.count(run.small)
        run.session.end_cell()
        with working(run.session):
            assert needs.result() == 200_000
        assert run.store.states([run.small.key]) == [jn.State.FINISHED]
        assert quietly(run.url).good


def test_a_task_that_cant_run_for_its_damaged_record_is_forgotten_and_made_anew_by_its_cell(
    redis_server: Server,
) -> None:
    with Run(redis_server.url()) as run:
        task = run.fit(7)
        run.count(task)  # needs it
        run.session.end_cell()
        spoil_body(run.store, run.store.specs([task.key])[0], damage.flipped)
        with (
            working(run.session),
            pytest.raises(jn.SignatureError, match="doctor --verify names what is damaged, --re"),
        ):
            task.result()
        assert re.search(r"× fit\(\)  not shown: .*\n +key \w{8}\n", str(run.session.status()))
        [line, _] = lines(quietly(run.url, repair=True))
        assert "is damaged: forgotten; it can't run until its cell is run again" in line
        assert quietly(run.url).good
        with pytest.raises(jn.TaskCancelled, match=r"isn't in unix\S*: .* re-run the cell"):
            task.result()
        again = run.fit(7)
        run.session.end_cell()
        with working(run.session):
            assert again.result() == bytes([7]) * 200_000


def test_what_allows_the_reuse_of_a_result_is_checked_and_the_result_itself_is_kept(redis_server: Server) -> None:
    with Run(redis_server.url()) as run:
        one, other = (jn.task(cell(f"def {name}(): return 1", name)) for name in ("one", "other"))
        first, second = run.fit(one()), run.fit(other())
        run.session.end_cell()
        with working(run.session):
            assert first.result() == second.result()
        [source] = [view.source for view in run.store.tasks() if view.key in (first.key, second.key) and view.source]
        spoil_body(run.store, run.store.specs([source])[0], damage.flipped)
        found = lines(quietly(run.url, repair=True))
        assert [line for line in found if line.startswith("the record of the reuse of fit(x=")]
        assert run.store.states([source]) == [jn.State.FINISHED]
