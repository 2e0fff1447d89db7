"""What tasks leave until they end: checkpoints that outlive kills."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook.store import Store
from jug_notebook.store.scratch import Record
from tests.crews import working
from tests.workbench import PATIENCE, Fifo, cell, wait_until

TRAIN = """
import os, signal
import jug_notebook as jn
def f(steps, log, fatal, parent):
    with jn.checkpoint() as c:
        step, state = c.load((0, []))
        with open(log, "a") as file:
            file.write(f"{step}\\n")
        while step < steps:
            if step in fatal and len(open(log).readlines()) == fatal.index(step) + 1:
                os.kill(os.getppid() if parent else os.getpid(), signal.SIGKILL)
                signal.pause()
            step += 1
            state.append(step)
            c.save((step, state))
    return state
"""


@pytest.fixture
def session(store_url: str, tmp_path: Path) -> Iterator[jn.Session]:
    opened = jn.connect(store_url, notebook=tmp_path / "study.ipynb")
    yield opened
    if not store_url.startswith("memory:"):
        opened.stop(now=True)
    opened.close()
    jn.definitions.clear()


pytestmark = pytest.mark.filterwarnings("ignore::jug_notebook.OnlyAPath", "ignore::jug_notebook.FormerDefinition")
processes = pytest.mark.parametrize("store_url", ["file", "redis"], indirect=True)


def define(source: str, **options: Any) -> Any:
    return jn.task(**options)(cell(source))


def leftovers(session: jn.Session, what: str = "") -> list[Record]:
    return [record for record in session.access.store.scratch.records() if record.name.endswith(what)]


def begun(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


@processes
def test_a_task_whose_worker_is_killed_goes_on_where_it_was(session: jn.Session, tmp_path: Path) -> None:
    fatal = sorted(random.sample(range(2, 40), 2))
    session.execute(1)
    task = define(TRAIN)(40, str(tmp_path / "log"), fatal, False)
    assert task.result(PATIENCE) == list(range(1, 41))
    first, second, third = begun(tmp_path / "log")
    assert first == 0
    assert fatal[0] - 1 <= second <= fatal[0], "at most the step that was being written is lost"
    assert fatal[1] - 1 <= third <= fatal[1]
    wait_until(session.access.store, lambda: not leftovers(session), "the checkpoint was never removed")


@processes
def test_a_checkpoint_outlives_its_supervisor(session: jn.Session, tmp_path: Path) -> None:
    task = define(TRAIN)(9, str(tmp_path / "log"), [5], True)
    session.execute(1)
    store = session.access.store
    wait_until(store, lambda: (tmp_path / "log").exists(), "the task never began")
    wait_until(store, lambda: not any(alive for info, alive, _ in store.processes() if info.kind != "session"), "never")
    session.access.crews.clear()
    session.execute(1)
    assert task.result(PATIENCE) == list(range(1, 10))
    assert begun(tmp_path / "log")[1] in (4, 5)


def test_what_a_failed_attempt_saved_is_loaded_by_the_next_and_removed_with_the_last(session: jn.Session) -> None:
    f = define(
        "import jug_notebook as jn\ndef f(last):\n    c = jn.checkpoint()\n    n = c.load(0) + 1\n    c.save(n)\n"
        "    assert n > last, n\n    return n",
        retries=2,
    )
    with working(session):
        assert f(2).result(PATIENCE) == 3
        with pytest.raises(jn.TaskFailed, match="AssertionError: 3"):
            f(9).result(PATIENCE)
    assert leftovers(session) == []


def test_an_invalidated_task_and_one_with_other_inputs_begin_anew(session: jn.Session, tmp_path: Path) -> None:
    (tmp_path / "value").write_text("1")
    source = define("def f(path): return open(path).read()")(str(tmp_path / "value"))
    f = define(
        "import jug_notebook as jn\ndef f(x, log):\n    with jn.checkpoint() as c:\n        before = c.load('none')\n"
        "        c.save(x)\n    open(log, 'a').write(before + '\\n')\n    assert 0",
    )
    task = f(source, str(tmp_path / "log"))
    scratch = session.access.store.scratch
    kept: dict[str, bytes] = {}
    scratch.drop, drop = lambda names: None, scratch.drop  # type: ignore[method-assign, assignment]
    with working(session):
        for change in (lambda: None, lambda: task.retry(), lambda: source.invalidate()):
            (tmp_path / "value").write_text(f"{len(kept)}")
            change()
            with pytest.raises(jn.TaskFailed):
                task.result(PATIENCE)
            kept |= {record.name: b"" for record in leftovers(session, ".checkpoint")}
    scratch.drop = drop  # type: ignore[method-assign]
    assert (tmp_path / "log").read_text() == "none\n" * 3
    assert len(kept) == 3, "each round and each input has its own"


@pytest.mark.parametrize("damage", ["changed", "unsigned", "of another task"])
def test_a_damaged_checkpoint_counts_as_none_and_the_log_names_it(
    session: jn.Session, tmp_path: Path, damage: str
) -> None:
    f = define(
        "import jug_notebook as jn\ndef f(x, go):\n    with jn.checkpoint() as c: c.save(x)\n    open(go).readline()\n"
        "    return c.load('none')"
    )
    store = session.access.store
    first, second = Fifo(tmp_path, "first"), Fifo(tmp_path, "second")
    with working(session, 2):
        tasks = [f(number, go.path) for number, go in enumerate((first, second))]
        wait_until(store, lambda: len(leftovers(session)) == 2, "they never saved")
        [name, other] = sorted(
            (record.name for record in leftovers(session)), key=lambda name: not name.startswith(tasks[0].key)
        )
        data = bytearray(b"".join(store.scratch.read(name)[0]))
        data[-1] ^= 1
        changed = {"changed": bytes(data), "unsigned": bytes(data)[32:]}
        store.scratch.put(name, changed.get(damage) or b"".join(store.scratch.read(other)[0]))
        first.write_line("")
        second.write_line("")
        assert [task.result(PATIENCE) for task in tasks] == ["none", 1]
        log = "".join(store.log(info.id) for info, _, _ in store.processes() if info.kind == "worker")
    assert log.count("\n") == 1
    assert f"the checkpoint of task {tasks[0].key[:12]} in the store is not opened: it is damaged" in log


def test_cleanup_removes_what_ended_tasks_left_and_spares_what_runs(session: jn.Session, tmp_path: Path) -> None:
    f = define(
        "import jug_notebook as jn\ndef f(go):\n    with jn.checkpoint() as c: c.save(1)\n    open(go).readline()"
    )
    store, go = session.access.store, Fifo(tmp_path)
    with working(session):
        task = f(go.path)
        wait_until(store, lambda: bool(leftovers(session)), "it never saved")
        [running] = leftovers(session)
        store.scratch.put(f"{'ab' * 20}.1..x.checkpoint", b"of a task that was forgotten")
        assert session.cleanup(dry_run=True).blobs == 1
        session.cleanup()
        assert leftovers(session) == [running]
        go.write_line("")
        task.result(PATIENCE)


@processes
def test_the_status_and_the_log_tell_the_age_of_the_last_checkpoint_of_a_task_that_runs(
    session: jn.Session, tmp_path: Path
) -> None:
    f = define("import jug_notebook as jn\ndef f(go):\n    jn.checkpoint().save(1)\n    open(go).readline()")
    go = Fifo(tmp_path)
    session.execute(1)
    task = f(go.path)
    wait_until(
        session.access.store,
        lambda: any(view.info.checkpoint[0] for view in session.status().snapshot.workers),
        "no worker told of it",
        patience=60.0,
    )
    status, log = session.status(), session.log(task)
    go.write_line("")
    task.result(PATIENCE)
    assert re.search(rf" f {task.key[:8]} checkpoint (just now|\d+ \w+ ago) ", repr(status))
    assert re.search("checkpoint\xa0(just\xa0now|\\d+\xa0\\w+\xa0ago)", status._repr_html_())
    assert re.search(r"checkpoint (just now|\d+ \w+ ago), \d+ B", log)


def test_outside_a_task_a_checkpoint_is_in_memory_and_as_rare_as_it_is_to_be() -> None:
    with jn.checkpoint() as c:
        assert c.load() is None
        assert c.load(7) == 7
        assert c.save({"a": 1}, every=60)
        assert not c.save({"a": 2}, every=60)
        assert c.load() == {"a": 1}
        assert not c.every(60).save(3)
        assert c.save(4, every=0)
        assert c.load() == 4
    assert jn.checkpoint().load() is None
    with pytest.raises(ValueError, match="every"):
        c.every(-1)
    with pytest.raises(jn.BadTask, match="give a name, or nothing"):
        jn.checkpoint(3)  # type: ignore[arg-type]


def test_a_checkpoint_of_what_cannot_be_stored_says_so(session: jn.Session) -> None:
    f = define("import jug_notebook as jn, threading\ndef f(): jn.checkpoint().save([threading.Lock()])")
    with working(session), pytest.raises(jn.TaskFailed, match=r"the checkpoint\[0\] is a lock, which can't be stored"):
        f().result(PATIENCE)


def test_large_arrays_are_in_the_checkpoint_and_can_be_written_to(session: jn.Session) -> None:
    f = define(
        "import jug_notebook as jn, numpy\ndef f():\n    with jn.checkpoint() as c:\n"
        "        c.save({'a': numpy.arange(3_000_000), 'b': numpy.zeros(5)})\n        found = c.load()\n"
        "    found['a'][0] = 7\n    return int(found['a'].sum()), found['b'].shape"
    )
    with working(session):
        assert f().result(PATIENCE) == (3_000_000 * 2_999_999 // 2 + 7, (5,))


@pytest.mark.parametrize("kind", ["own", "blobs"])
def test_every_store_keeps_records_of_pieces(store: Store, kind: str) -> None:
    from jug_notebook.store.scratch import BlobScratch

    scratch, name, other = store.scratch if kind == "own" else BlobScratch(store), f"{'a' * 40}.1.x", f"{'b' * 40}.1.x"
    assert scratch.read(name) == ([], 0)
    scratch.append(name, b"one")
    scratch.append(name, b"two")
    pieces, position = scratch.read(name)
    assert list(map(bytes, pieces)) == [b"one", b"two"]
    scratch.append(name, b"three")
    pieces, end = scratch.read(name, position)
    assert list(map(bytes, pieces)) == [b"three"]
    assert scratch.read(name, end) == ([], end)
    scratch.put(other, os.urandom(40 << 10))
    scratch.put(other, b"last")
    assert b"".join(scratch.read(other)[0]) == b"last"
    assert [record.name for record in scratch.records(f"{'a' * 40}.")] == [name]
    scratch.drop([name, "c" * 40 + ".1.x"])
    assert scratch.read(name)[0] == []
    assert scratch.records(f"{'a' * 40}.") == []
