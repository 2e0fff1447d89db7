"""The widget without a page: what it sends, and when."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("ipywidgets")
import comm
import ipywidgets
from comm.base_comm import BaseComm
from msgspec.structs import replace

from jug_notebook import State, render
from jug_notebook.model import FailureView, FunctionView, Snapshot, WorkerInfo, WorkerView
from kernel_ext.widgets import AT_ONCE, Panel, _all

AT = 1_795_000_000.0


class Nobody:
    """A session that the panel only holds."""

    closed = False

    def __init__(self, url: str = "file:/data/jug data") -> None:
        self.url = url


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that goes to the page, as JSON."""
    messages: list[str] = []

    class Noting(BaseComm):
        def publish_msg(self, msg_type: str, data: Any = None, **rest: Any) -> None:
            messages.append(json.dumps(data))

    monkeypatch.setattr(comm, "create_comm", Noting)
    return messages


@pytest.fixture
def panel_of() -> Iterator[Callable[..., Panel]]:
    made: list[Panel] = []

    def make(snapshot: Snapshot, **more: Any) -> Panel:
        made.append(Panel(more.pop("session", Nobody()), False, snapshot, **more))
        return made[-1]

    yield make
    for panel in made:
        panel.close()


def failure(number: int, error: str) -> FailureView:
    return FailureView(
        f"{number:040x}", "fit", f"n={number}", error, f"Traceback …\n{error}", "node3", 7, AT - number, 0.5
    )  # fmt: skip


def picture(*errors: str, at: float = AT, done: int = 1) -> Snapshot:
    failures = [failure(number, error) for number, error in enumerate(errors)]
    counts = {State.FINISHED: done, State.READY: 1}
    counts |= {State.FAILED: len(failures)} if failures else {}
    worker = WorkerView(WorkerInfo("w", "worker", "ann", "node3", 7, 1, "3.11", AT), True, 0.2)
    functions = (FunctionView("fit", counts),)
    return Snapshot("s", at, "whole store", functions, (worker,), kinds=tuple(render.failure_kinds(failures)))


def kinds(count: int) -> list[str]:
    return [f"ValueError: {word}" for word in "abcdefghijklmn"[:count]]


def titles(panel: Panel) -> list[str]:
    return [title for failure in panel._failures._visible.values() for title in failure.box.titles]


def details_written(panel: Panel) -> int:
    return sum(failure.has_details for failure in panel._failures._visible.values())


def test_failures_come_a_few_at_a_time_and_their_details_after_them(
    panel_of: Callable[..., Panel], sent: list[str]
) -> None:
    snapshot = picture(*kinds(12))
    panel = panel_of(snapshot)
    assert titles(panel) == []
    steps = []
    for _ in range(40):
        sent.clear()
        panel.rest(snapshot)
        assert sum(map(len, sent)) < 20_000
        steps.append((len(titles(panel)), details_written(panel)))
        if not sent:
            break
    assert steps[0] == (AT_ONCE, 0)
    assert steps[-1] == (render.FAILURES, render.FAILURES)
    assert len(steps) == 2 * render.FAILURES / AT_ONCE + 1


def test_workers_that_start_are_not_called_none(panel_of: Callable[..., Panel], sent: list[str]) -> None:
    panel_of(replace(picture(), workers=(), starting=2))
    assert any("2 workers starting" in message for message in sent)
    assert not any("no workers" in message for message in sent)


def test_failures_alike_are_one_line_that_counts_them(panel_of: Callable[..., Panel]) -> None:
    panel = panel_of(picture(*(f"ValueError: bad row {n}" for n in range(930))))
    panel.rest(picture(*(f"ValueError: bad row {n}" for n in range(930))))
    assert titles(panel) == ["fit(n=0) and 929 similar  ·  ValueError: bad row 0"]


def test_what_has_not_changed_is_not_sent_again(panel_of: Callable[..., Panel], sent: list[str]) -> None:
    snapshot = picture("ValueError: a")
    panel = panel_of(snapshot)
    for _ in range(4):
        panel.rest(snapshot)
    sent.clear()
    panel.rest(replace(snapshot, at=AT + 1))
    assert sent == []
    panel.show(picture("ValueError: a", done=2))
    assert sent
    assert not any("Traceback" in message for message in sent)


def test_open_details_stay_while_its_failure_is_there_and_closed_ones_follow(
    panel_of: Callable[..., Panel],
) -> None:
    rows = [f"ValueError: bad row {n}" for n in (1, 2, 3)]
    panel = panel_of(picture(rows[0]))
    panel.rest(picture(rows[0]))
    panel.rest(picture(rows[0]))
    [line] = panel._failures._visible.values()
    assert "bad row 1" in line._details.value
    line.box.selected_index = 0
    newer = picture(rows[1], rows[0])
    newer = replace(newer, kinds=tuple(render.failure_kinds([failure(9, rows[1]), failure(0, rows[0])])))
    panel.show(newer)
    assert "bad row 1" in line._details.value
    assert line.box.titles == ("fit(n=9) and 1 similar  ·  ValueError: bad row 2",)
    line.box.selected_index = None
    panel.show(newer)
    assert "Traceback …\nValueError: bad row 2" in line._details.value
    line.box.selected_index = 0
    panel.show(replace(newer, kinds=tuple(render.failure_kinds([failure(11, rows[2])]))))
    assert "Traceback …\nValueError: bad row 3" in line._details.value


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:/data/jug data", "jug-notebook stop --jugdir &#x27;file:/data/jug data&#x27;"),
        ("redis://me:secret@host/1?project=p", "jug-notebook stop --jugdir URL"),
        ("memory:", ""),
    ],
)
def test_where_presses_wait_the_widget_says_so_and_what_acts_at_once(
    panel_of: Callable[..., Panel], url: str, message: str
) -> None:
    panel = panel_of(picture(), session=Nobody(url), waiting=lambda: True)
    assert "buttons act after the running cell" in panel._mark.value
    assert message in panel._mark.value
    assert "secret" not in panel._mark.value
    assert "buttons" not in panel_of(picture())._mark.value


def test_a_picture_that_follows_no_more_says_so_and_why(panel_of: Callable[..., Panel]) -> None:
    panel = panel_of(picture())
    assert "● live" in panel._mark.value.replace("</span>", "").replace("●", "●")
    panel.lost("the store <b>went</b>")
    assert "not live" in panel._mark.value
    assert "&lt;b&gt;went" in panel._mark.value
    panel.show(picture(done=2))
    assert "live" in panel._mark.value
    assert "not live" not in panel._mark.value


def buttons(panel: Panel) -> list[Any]:
    return [widget for widget in _all(panel.box) if isinstance(widget, ipywidgets.Button)]


def test_once_it_is_over_all_buttons_are_dead_and_nothing_makes_it_live_again(panel_of: Callable[..., Panel]) -> None:
    panel = panel_of(picture("ValueError: a"))
    panel.rest(picture("ValueError: a"))
    panel.lost("the server is away")
    assert not panel._stop_button.disabled
    panel.lost("its kernel has ended", True)
    panel.show(picture(done=2))
    assert len(buttons(panel)) == 9
    assert all(button.disabled for button in buttons(panel))
    assert "its kernel has ended, so the buttons do nothing" in panel._mark.value


def test_a_message_about_workers_goes_with_them(panel_of: Callable[..., Panel]) -> None:
    panel = panel_of(picture(), message="started 1 worker")
    assert "started 1 worker" in panel._message.value
    gone = replace(picture(at=AT + 1), workers=())
    panel.show(gone)
    assert panel._message.value == ""


def test_the_saved_picture_follows_and_is_hidden_by_the_widget_alone(panel_of: Callable[..., Panel]) -> None:
    panel, other = panel_of(picture()), panel_of(picture())
    kept: list[Snapshot] = []
    panel.kept = kept.append
    assert "not live" not in panel.still({"text/plain": "", "text/html": ""}, first=True)["text/html"]
    assert "not live" in panel.still({"text/plain": "", "text/html": ""})["text/html"]
    panel.show(picture(done=2, at=AT + 1))
    panel.show(picture(done=2, at=AT + 2))
    assert [snapshot.at for snapshot in kept] == [AT + 1]
    kept.clear()
    panel.show(picture(done=3, at=AT + 20))
    assert [snapshot.at for snapshot in kept] == [AT + 20]
    panel.show(picture(done=4, at=AT + 21))
    panel.close()
    panel.close()
    assert [snapshot.at for snapshot in kept] == [AT + 20, AT + 21]
    still = panel.still({"text/plain": "so far", "text/html": "<p>so far</p>"})
    assert still["text/plain"] == "so far"
    style, others = panel.box.children[0].value, other.box.children[0].value
    mask = still["text/html"].split('"')[1]
    assert f".{mask}" in style
    assert f".{mask}" not in others
