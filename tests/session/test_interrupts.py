"""Ctrl-C at any line: a session then knows either what it knew before, or what it would have known after."""

from __future__ import annotations

import itertools
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook.session import _use as use
from jug_notebook.session import submission
from jug_notebook.store import open_store
from jug_notebook.store.atomic import Folder
from jug_notebook.store.file import journal
from jug_notebook.store.file.watching import FileWatcher
from jug_notebook.store.redis import log
from tests.crews import working
from tests.workbench import PATIENCE, Submitter, cell, wait_until

PACKAGE = str(Path(jn.__file__).parent), str(Path(jn.__file__).parents[1] / "kernel_ext")
POINTS = 6  #: lines at which each verb is interrupted, in each store
COUNT = 12  #: tasks


@contextmanager
def interrupted(at: int, files: str | tuple[str, ...] = PACKAGE) -> Iterator[list[int]]:
    """Within, the line of our code (of ``files``) with that number, as this thread runs them, raises KeyboardInterrupt.

    Yields a list of how many lines ran.
    """
    lines = [0]

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(files) else None

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not text.startswith(
            ("try:", "with ")
        ):  # none strikes between a lock's taking and `with`
            lines[0] += 1
            if lines[0] == at:
                raise KeyboardInterrupt
        return line

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield lines
    finally:
        sys.settrace(before)


def submit(session: jn.Session, tasks: Any) -> Any:
    success = False
    session.submissions.begin_cell("cell")
    try:
        more = square.map(range(COUNT, 2 * COUNT))
        success = True
    finally:  # as IPython does
        session.end_cell(success)
    return more


def invalidate(session: jn.Session, tasks: Any) -> None:
    session.invalidate(tasks[:3])


def patiently(verb: Callable[[], Any]) -> Any:
    """Return what a verb returns when it is called again after an interrupt, as a user does."""
    with suppress(KeyboardInterrupt):
        return verb()
    return verb()


def stream(session: jn.Session, tasks: Any) -> None:
    walk = jn.task(cell("def walk(n):\n    yield from range(n)", "walk"))
    with working(session):
        assert patiently(lambda: list(walk(3).stream())) == [0, 1, 2]


def lazy_map(session: jn.Session, tasks: Any) -> None:
    """What was computed is given once, in order."""
    found: list[int] = []
    while len(found) < 10:
        results = patiently(lambda: square.map(itertools.count(len(found)), ahead=4))
        with working(session), suppress(jn.BadTask):  # it says so if it was interrupted while it read items
            while len(found) < 10:
                found.append(patiently(results.__next__))
        patiently(results.close)
    assert found == [x * x for x in range(10)]


def checkpoint(session: jn.Session, tasks: Any) -> None:
    """A task that is run here goes on from what it saved."""
    source = """def train(n):
    import jug_notebook as jn
    with jn.checkpoint() as c:
        for at in range(c.load(0), n):
            c.save(at + 1)
        return c.load()"""
    task = jn.task(cell(source, "train"))(3)
    patiently(lambda: session.execute(here=True))
    assert task.result(timeout=PATIENCE) == 3
    session.cleanup(older_than=0.0)
    assert not session.access.store.scratch.records()


def run_here(session: jn.Session, tasks: Any) -> None:
    """What an interrupted run of this kernel had claimed is free again, with its token of a limit."""
    cubes = jn.task(limit="db:1")(cell("def cube(x): return x**3", "cube")).map(range(3))
    patiently(lambda: session.execute(here=True))
    with working(session):
        assert cubes.result(timeout=PATIENCE) == [0, 1, 8]


def mirror(session: jn.Session, tasks: Any) -> None:
    """What is in a mirror is copied there in the end, and taken from there, not computed again."""
    bucket = f"file://{session.folder}/{session.identity}"
    patiently(lambda: jn.copy(session, bucket))
    with closing(jn.Session("memory:", notebook=session.folder / "mirrored.ipynb", also=bucket)) as other:

        def taken() -> Any:
            other.submissions.begin_cell("cell")
            try:
                made = square.map(range(COUNT))
            finally:
                other.end_cell()
            return [task.state for task in made]

        use(other)
        try:
            assert patiently(taken) == [jn.State.FINISHED] * COUNT
        finally:
            use(session)


def reports(session: jn.Session, tasks: Any) -> None:
    assert len(patiently(session.timeline).timeline.spans) >= COUNT
    assert len(patiently(session.profile).views) == 1
    assert (
        repr(patiently(lambda: session.verify(tasks, 0.1))) == f"2 of {COUNT} values computed again: all came out equal"
    )
    assert list(patiently(lambda: session.calls.history_frame(square, values=True)).result) == [
        x * x for x in range(COUNT)
    ]
    assert list(patiently(tasks.to_frame).result) == [x * x for x in range(COUNT)]


VERBS: dict[str, Callable[[jn.Session, Any], Any]] = {
    "submit": submit,
    "value": lambda session, tasks: jn.value(tasks),
    "status": lambda session, tasks: session.status(),
    "tasks": lambda session, tasks: session.tasks(),
    "invalidate": invalidate,
    "run_here": run_here,
    "cleanup": lambda session, tasks: session.cleanup(),
    "stream": stream,
    "lazy_map": lazy_map,
    "checkpoint": checkpoint,
    "mirror": mirror,
    "reports": reports,
}


@jn.task
def square(x: int) -> int:
    return x * x


def one_try(url: str, folder: Path, verb: Callable[[jn.Session, Any], Any], at: int) -> int:
    """Interrupt a verb at a line, and look whether all is as it should be. Return how many lines of ours ran."""
    global square
    with closing(jn.connect(url, notebook=folder / "study.ipynb")) as session:
        square = jn.task(cell("def square(x): return x * x", "square"))
        tasks = square.map(range(COUNT))
        session.end_cell()
        with closing(jn.Session(url, notebook=folder / "other.ipynb")) as other, working(other):
            store = other.access.store
            wait_until(store, store.idle)
        what = f"line {at}"
        with interrupted(at) as lines, suppress(KeyboardInterrupt):
            verb(session, tasks)
        more = submit(session, tasks)
        with closing(jn.Session(url, notebook=folder / "third.ipynb")) as fresh:
            everything = [*tasks, *more]
            assert [task.state for task in everything] == [fresh.resolve(t.key)[0].state for t in everything], what
        with working(session):
            assert tasks.result(timeout=PATIENCE) == [x * x for x in range(COUNT)], what
            assert more.result(timeout=PATIENCE) == [x * x for x in range(COUNT, 2 * COUNT)], what
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["file", "redis"])
def test_an_interrupt_at_any_line_loses_nothing(
    kind: str, verb: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def fresh() -> str:
        if kind == "file":
            return f"file:{tmp_path}/{next(numbers)}"
        url: str = request.getfixturevalue("redis_server").url()
        return url

    numbers = itertools.count()
    total = one_try(fresh(), tmp_path, VERBS[verb], 10**9)
    for at in range(1, total + 1, max(1, total // POINTS)):
        one_try(fresh(), tmp_path, VERBS[verb], at)


@pytest.mark.parametrize("written_by", [journal, log], ids=["file", "redis"])
def test_a_log_that_is_closed_after_an_interrupt_is_whole(
    written_by: ModuleType, tmp_path: Path, request: pytest.FixtureRequest, recwarn: pytest.WarningsRecorder
) -> None:
    def submit_and_close(line: int) -> int:
        on_redis = written_by is log
        url = request.getfixturevalue("redis_server").url() if on_redis else f"file:{tmp_path}/{line}"
        with closing(open_store(url)) as store, suppress(KeyboardInterrupt):
            tasks = Submitter(store, tmp_path)
            before = tasks.submit("def f(x): return x", "before")
            with interrupted(line, str(written_by.__file__)) as lines:
                tasks.submit("def f(x): return x", "interrupted")
        with closing(open_store(url)) as store:
            assert store.snapshot().notes == (), line
            assert store.states([before]) == [jn.State.READY]
        return lines[0]

    for line in range(1, submit_and_close(10**9) + 1):
        submit_and_close(line)
    assert [str(one.message) for one in recwarn] == []


@pytest.mark.parametrize("held", [Folder, FileWatcher])
def test_what_an_interrupt_left_half_made_is_dropped_without_an_error(held: type[Folder | FileWatcher]) -> None:
    half = held.__new__(held)  # as if Ctrl-C had come before the first line of __init__
    half.__del__()
    assert half._fd == -1


def test_a_first_call_that_was_interrupted_at_any_line_can_be_made_again(tmp_path: Path) -> None:
    with closing(jn.connect(f"file:{tmp_path}/jugdata", notebook=tmp_path / "study.ipynb")):
        for at in range(1, 41):
            call = jn.task(cell(f"def call{at}(x): return x", f"call{at}"))
            with interrupted(at, submission.__file__) as lines, suppress(KeyboardInterrupt):
                call(1)
            assert lines == [at], "it was interrupted"
            assert call(1).name == f"call{at}", f"line {at}"
