"""What tasks show: pictures and tables in order with what they print, progress, and the end of it while they run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jug_notebook as jn
from jug_notebook.model import Display, Run, WorkerInfo
from jug_notebook.task import context
from jug_notebook.task.context import track
from jug_notebook.worker import displays
from jug_notebook.worker.capture import Capture, Files, NoCapture, ThreadCapture, restore_streams
from jug_notebook.worker.displays import LIMIT, DisplayBuffer
from tests.workbench import Fifo, cell, wait_until

PNG = b"\x89PNG"


# -- displays ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def buffer() -> DisplayBuffer:
    return DisplayBuffer(NoCapture())


def test_an_empty_buffer_costs_nothing_and_is_empty(buffer: DisplayBuffer) -> None:
    assert buffer.take() == []


def test_displays_keep_their_place_among_what_is_printed() -> None:
    capture = Capture(Files())
    buffer = DisplayBuffer(capture)
    capture.write(1, b"careful\n")
    buffer.add({"text/plain": "first"})
    buffer.add({"text/plain": "second"})
    capture.write(0, b"a")
    buffer.add({"text/plain": "third"})
    capture.write(0, b"b")
    capture.write(0, b"c")
    assert [display.at for display in buffer.take()] == [1, 1, 2]
    assert capture.take() == (("stderr", "careful\n"), ("stdout", "a"), ("stdout", "bc"))


def test_threads_keep_the_place_of_displays_too() -> None:
    listener = ThreadCapture()
    listener.begin()
    buffer = DisplayBuffer(listener)
    for word in "ab":
        print(word)
        print(word)
        buffer.add({"text/plain": word})
    print("c")
    assert [display.at for display in buffer.take()] == [1, 2]
    assert listener.take() == (("stdout", "a\na\n"), ("stdout", "b\nb\n"), ("stdout", "c\n"))


def test_threads_keep_what_a_handler_logs_that_was_there_before() -> None:
    before = sys.stdout
    handler = logging.StreamHandler(before)
    listener = ThreadCapture()
    listener.begin()
    handler.handle(logging.makeLogRecord({"msg": "logged"}))
    assert listener.take() == (("stdout", "logged\n"),)
    restore_streams()
    assert sys.stdout is handler.stream is before


def test_what_is_updated_stays_in_its_place(buffer: DisplayBuffer) -> None:
    buffer.add({"text/plain": "0 %"}, id="bar")
    buffer.add({"text/plain": "other"})
    buffer.update({"text/plain": "100 %"}, None, "bar")
    buffer.update({"text/plain": "nobody"}, None, "unknown")
    assert [display.data["text/plain"] for display in buffer.take()] == ["100 %", "other"]


def test_clearing_drops_what_was_shown_at_once_or_with_the_next_display(buffer: DisplayBuffer) -> None:
    buffer.add({"text/plain": "1"})
    buffer.clear(wait=True)
    buffer.add({"text/plain": "2"})
    assert [display.data["text/plain"] for display in buffer.take()] == ["2"]
    buffer.add({"text/plain": "3"})
    buffer.clear()
    assert buffer.take() == []


def test_too_much_is_left_out_and_said_so(buffer: DisplayBuffer) -> None:
    buffer.add({"image/png": PNG})
    for _ in range(3):
        buffer.add({"image/png": bytes(LIMIT)})
    first, note = buffer.take()
    assert first.data == {"image/png": PNG}
    assert note.data["text/plain"] == "[3 more displays left out: a task may show 4 MB]"
    assert buffer.take() == []


def test_a_form_that_can_not_be_kept_is_left_out_of_its_display(buffer: DisplayBuffer) -> None:
    buffer.add({"text/plain": "x", "application/x-odd": object()}, {"odd": object()})
    assert buffer.take() == [Display(0, {"text/plain": "x"})]


# -- progress ----------------------------------------------------------------------------------------------------------


def test_outside_of_a_task_track_only_goes_over_things() -> None:
    assert list(track("abc")) == ["a", "b", "c"]


def test_a_loop_tells_how_far_it_is_and_loops_within_it_do_not() -> None:
    progress: list[tuple[int, int]] = []
    with context.progress_to(lambda done, total: progress.append((done, total))):
        for _ in track([1, 2]):
            list(track(range(5)))
        list(track(iter("ab"), total=2))
        list(track(letter for letter in "a"))
    assert progress == [(0, 2), (1, 2), (2, 2), (0, 2), (1, 2), (2, 2), (0, 0), (1, 0)]


def test_a_loop_that_is_left_early_is_over() -> None:
    progress: list[tuple[int, int]] = []
    with context.progress_to(lambda done, total: progress.append((done, total))):
        for number in track(range(3)):
            if number:
                break
        list(track("a"))
    assert progress == [(0, 3), (1, 3), (0, 1), (1, 1)]


def test_the_tail_is_whole_lines_of_both_streams() -> None:
    files = Files()
    capture = Capture(files)
    assert files.tail() == ""
    capture.write(0, b"".join(b"%d\n" % n for n in range(10_000)))
    assert files.tail().endswith("9998\n9999\n")
    assert 1500 < len(files.tail()) <= 2048
    capture.write(1, b"oh\n")
    assert files.tail().endswith("9999\noh\n")
    capture.take()
    assert files.tail() == ""


# -- in a worker -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[jn.Session]:
    """A session with one worker, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel has it
        patch.setenv("VIRTUAL_ENV", str(tmp_path_factory.mktemp("another")))  # active in the terminal, but not ours
        session = jn.connect(tmp_path_factory.mktemp("work") / "jugdata")
        crew = jn.execute(1)
        yield session
        crew.stop(now=True)
        crew.wait()
        session.close()


def task(source: str) -> Callable[..., Any]:
    """A task function of this source."""
    return jn.task(cell(source))


def run_of(session: jn.Session, handle: Any) -> Run:
    handle.result()
    [outcome] = session.access.signed.outcomes([handle.key])
    assert outcome is not None
    return outcome.run


def test_a_worker_is_light_until_a_task_is_not(session: jn.Session) -> None:
    names = "('IPython', 'kernel_ext', 'matplotlib', 'tqdm', 'numpy', 'asyncio')"
    loaded = task(f"import sys\ndef f(): return [name for name in {names} if name in sys.modules]")
    assert loaded().result() == []


def test_processes_that_a_task_starts_get_functions_of_the_notebook_by_value(session: jn.Session) -> None:
    pooled = task(
        """
        from multiprocessing import Pool
        SHIFT = 10
        def shifted(x): return x + SHIFT
        def f(n):
            with Pool(2) as pool:
                return pool.map(shifted, range(n))
        """
    )
    assert pooled(3).result() == [10, 11, 12]


def test_figures_tables_and_prints_come_back_in_order(session: jn.Session) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    shows = task(
        """
        def f():
            import pandas, warnings
            import matplotlib.pyplot as plt
            print("one")
            plt.plot([1, 2])
            plt.show()
            print("two")
            display(pandas.DataFrame({"x": [1, 2]}))
            warnings.warn("careful")
            plt.plot([2, 1])  # left open
        """
    )
    run = run_of(session, shows())
    assert [(name, text.splitlines()[0][-16:]) for name, text in run.output] == [
        ("stdout", "one"),
        ("stdout", "two"),
        ("stderr", "Warning: careful"),
    ]
    first, table, last = run.displays
    assert (first.at, table.at, last.at) == (1, 2, 3)
    assert first.data["image/png"].startswith(PNG)
    assert last.data["image/png"].startswith(PNG)
    assert "<table" in table.data["text/html"]
    assert "0  1" in table.data["text/plain"]


def test_a_large_picture_lies_in_a_blob(session: jn.Session) -> None:
    shows = task(
        """
        def f():
            from IPython.display import Image, display
            display(Image(bytes(100_000), format="png"))
        """
    )
    handle = shows()
    [display] = run_of(session, handle).displays
    assert display.blob
    assert not display.data
    [(kind, forms)] = handle.outputs()
    assert kind == "display"
    assert len(forms["image/png"]) > 100_000


def test_a_display_can_be_updated_and_all_cleared(session: jn.Session) -> None:
    shows = task(
        """
        def f():
            from IPython.display import clear_output, display
            print("gone")
            display("gone")
            clear_output()
            handle = display("0 %", display_id=True)
            handle.update("100 %")
        """
    )
    run = run_of(session, shows())
    assert run.output == ()
    assert [display.data["text/plain"] for display in run.displays] == ["'100 %'"]


def test_what_a_failed_task_displayed_is_kept(session: jn.Session) -> None:
    handle = task("def f():\n    display('seen')\n    raise KeyError('x')")()
    assert isinstance(handle.exception(), KeyError)
    assert handle.outputs() == (("display", {"text/plain": "'seen'"}),)


def test_bars_leave_their_last_line_alone(session: jn.Session) -> None:
    pytest.importorskip("tqdm")
    loops = task(
        """
        def f():
            from tqdm import tqdm
            from tqdm.notebook import trange
            for i in tqdm(range(1000), desc="outer"):
                if i % 500 == 0:
                    tqdm.write("half")
            for i in trange(10, leave=False, mininterval=0):
                pass
        """
    )
    run = run_of(session, loops())
    text = "".join(text for _, text in run.output)
    assert text.count("outer: 100%") == 1
    assert text.count("half\n") == 2
    assert len(text.splitlines()) <= 4
    assert "0%|" not in text.replace("100%|", "")


def info_of(session: jn.Session, key: str) -> WorkerInfo | None:
    return next((info for info, _, _ in session.access.store.processes() if info.task == key), None)


@pytest.mark.parametrize("loop", ["jug_notebook.track(range(40))", "tqdm.tqdm(range(40), mininterval=0)"])
def test_a_running_task_shows_how_far_it_is_and_what_it_said(session: jn.Session, tmp_path: Path, loop: str) -> None:
    pytest.importorskip("tqdm")
    gate = Fifo(tmp_path)
    loops = task(
        f"""
        import jug_notebook, tqdm
        def f(path):
            for i in {loop}:
                if i == 30:
                    print("waits at", i)
                    with open(path) as fifo:
                        fifo.readline()
        """
    )
    handle = loops(gate.path)
    session.submissions.flush()

    def far() -> bool:
        info = info_of(session, handle.key)
        return info is not None and info.progress == (30, 40) and "waits at 30" in info.tail

    wait_until(session.access.store, far)
    assert "waits at 30" in handle.log()
    assert "30 of 40" in handle.log()
    assert "30/40" in repr(session.status())
    assert "30/40" in session.status()._repr_html_()
    gate.write_line("go")
    handle.result()


def test_nothing_is_open_outside_of_tasks() -> None:
    assert displays.current() is None
