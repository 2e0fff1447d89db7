"""The status as a live widget: what `render` draws, in core ipywidgets, each part renewed apart.

A part is sent only when it has changed, and a failure is a part of its own, so one that was opened stays open. The
poller's thread renews the parts; buttons act in whatever thread the front end's message is handled in. Both set values
under the panel's lock alone.
"""

from __future__ import annotations

import functools
import secrets
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import ipywidgets as w

from jug_notebook import render
from jug_notebook.errors import JugError
from jug_notebook.model import OPEN_STATES, FailureKind, Snapshot, State, Target, WorkerView
from jug_notebook.render import plural
from jug_notebook.render.format import elide
from jug_notebook.session import Session

STILL = 5.0  #: seconds between two renewals of the saved picture while things go on
CALM = 3.0  #: seconds since a beat that are no news
AT_ONCE = 2  #: so many failures, or details of failures, are put on the page in one update: each is several messages
KEPT = 40  #: failures that went are kept, to be as they were when they come back

STYLE = (
    "<style>"
    + render.STYLESHEET
    + """
.jug-panel {width: 100%; max-width: 1060px; overflow: visible; container-type: inline-size}
.jug-panel .widget-html, .jug-panel .jupyter-widget-html {margin: 0; height: auto}
.jug-panel .widget-html-content {line-height: 1.5; font-size: 13px; overflow-x: auto; width: 100%}
.jug-panel td.l {overflow: hidden; text-overflow: ellipsis}
@container (max-width: 990px) {.jug-panel td .b {display: none} .jug-panel td.l {max-width: 20em}}
@container (max-width: 860px) {
  .jug-panel td, .jug-panel th {padding-left: 2px !important; padding-right: 4px !important}
  .jug-panel td.l {max-width: 11em}
}
@media (max-width: 760px) {.jug-panel {padding-left: 6px; box-sizing: border-box}}  /* JupyterLab gives none then */
@container (max-width: 640px) {.jug-panel table {font-size: 12px !important} .jug-panel td.l {max-width: 8em}}
.jug-panel .jug-bar {margin-top: 10px; gap: 6px}
.jug-panel .jug-bar button {margin: 0; height: 28px; line-height: 26px; padding: 0 12px; border-radius: 3px}
.jug-panel .jug-bar select {margin: 0}
.jug-panel .jug-style, .MASK, .jp-OutputArea-child:has(> * > .MASK), .jp-OutputArea-child:has(> .MASK) {display: none}
.jug-panel .jug-failure {border-top: 1px solid rgba(128,128,128,.28); margin: 0}
.jug-panel .jug-failure .jupyter-widget-Collapse-header {background: none; border: none; padding: 3px 0; color: inherit;
  font-size: 13px; font-weight: normal; cursor: pointer; white-space: nowrap; overflow: hidden; text-overflow: ellipsis}
.jug-panel .jug-failure .jupyter-widget-Collapse-header i {color: #d55e00; width: 16px; text-align: left}
.jug-panel .jug-failure .jupyter-widget-Collapse-open > .jupyter-widget-Collapse-header {font-weight: bold}
.jug-panel .jug-failure .jupyter-widget-Collapse-contents {background: none; border: none; padding: 0 0 8px 16px}
.jug-panel .jupyter-widgets-disconnected::before {display: none}
.jug-panel.jupyter-widgets-disconnected .jug-mark, .jug-panel.jupyter-widgets-disconnected .jug-bar {display: none}
.jug-panel.jupyter-widgets-disconnected::before {
  content: "Not live: its kernel has ended or was restarted, so the buttons are gone. Run the cell again.";
  font: bold 13px/1.5 var(--jp-ui-font-family, sans-serif); color: #d55e00; padding: 0 0 6px; display: block}
</style>"""
)

BLOCK = '<div style="font-size:13px;line-height:1.5;overflow-x:auto;padding:2px 0">{}</div>'

LIVE = '<span style="color:#009e73">●</span> live'
WAITS = " · buttons act after the running cell"
AT_ONCE_ELSEWHERE = "; in a shell, this stops at once: <code>{}</code>"
#: Above the saved picture. Below it a front end says that there is no widget (or that it loads it, for ever).
SAVED = (
    "<style>.jp-OutputArea-child:has(.MASK) + .jp-OutputArea-child:not(:has(.jug-panel)) {display: none}</style>"
    '<div style="font-size:13px;margin:0 0 4px"><b>Saved picture, not live.</b> '
    "If its kernel has ended, run the cell again to see how things are.</div>"
)
NOBODY = '<div style="margin:12px 0 2px;font-weight:bold">{}</div>'


class Panel:
    """One status widget. ``kept`` is called with a snapshot where the saved picture should be renewed.

    A front end shows a widget, or that its model is gone, whatever else its output holds. So the saved picture is an
    output of its own before it, `still`, which the widget hides as long as it is on the page: once the kernel has ended
    and the page is loaded anew, the last state stands there.
    """

    behind = False

    def __init__(
        self,
        session: Session,
        all: bool,
        snapshot: Snapshot,
        message: str = "",
        *,
        waiting: Callable[[], bool] = lambda: False,
    ) -> None:
        self.session = session
        self.all = all
        self.kept: Callable[[Snapshot], None] = lambda snapshot: None
        self._waiting = waiting  #: do presses of buttons wait for a running cell?
        self._waits = WAITS + _stop_in_a_shell(session.url)
        self._lock = threading.RLock()
        self._closed = False
        self._fresh, self._saved_at = True, snapshot.at  # the saved picture is the current one
        self._last = snapshot
        self._first = True  # the saved picture has no title yet
        self._had_workers = False
        self._when_ended = ""  # the message once there are no workers any more
        self._names: tuple[str, ...] = ()

        self._head, self._functions, self._workers, self._mark, self._message = (_html() for _ in range(5))
        self._mark.add_class("jug-mark")
        self._failures = Failures(self._once_more)
        self._stop_button = self._button("stop after current", "workers end after their current task", self._stop)
        self._stop_now_button = self._button(
            "stop now", "workers end at once; their current tasks are requeued", lambda: self._stop(now=True)
        )
        self._retry_button = self._button("retry failed", "try all failed tasks again", self._retry)
        self._invalidate_button = self._button("invalidate …", "choose results to be recomputed", self._ask_which)
        add = self._button("+ worker", "one more worker on this host", self._add_worker)
        bar = [add, self._stop_button, self._stop_now_button, self._retry_button, self._invalidate_button]
        self._function_menu = w.Dropdown(layout=w.Layout(width="auto", max_width="260px"))
        confirm = self._button(
            "invalidate these results", "they and what depends on them will be recomputed", self._invalidate
        )
        confirm.button_style = "danger"
        keep = self._button("keep them", "change nothing", self._close_question)
        hidden = w.Layout(flex_flow="row wrap", align_items="center", display="none")
        self._question = _row([w.Label("results of"), self._function_menu, confirm, keep], hidden)
        self._mask = f"jug-still-{secrets.token_hex(6)}"
        style = _html(STYLE.replace("MASK", self._mask))
        style.add_class("jug-style")
        self.box = _column(
            [style, self._head, self._functions, self._failures.box, self._workers, _row(bar), self._question,
             self._message, self._mark]
        )  # fmt: skip
        self.box.add_class("jug-panel")
        self._show_message(message)
        self._renew(snapshot, room=0)
        for widget in _all(self.box):
            route_to_asker(widget)

    def still(self, forms: Mapping[str, str], first: bool = False) -> dict[str, str]:
        """The saved picture, as what is hidden while the widget is there. The first is seen until that is drawn."""
        above = "" if first else SAVED.replace("MASK", self._mask)
        return {**forms, "text/html": f'<div class="{self._mask}">{above}{forms["text/html"]}</div>'}

    # -- renewed by the poller -----------------------------------------------------------------------------------------

    def show(self, snapshot: Snapshot) -> None:
        """See `Picture`."""
        with self._lock:
            if self._closed:
                return
            self._renew(snapshot)
            self._fresh, self._last = False, snapshot
            if self._first or snapshot.at - self._saved_at >= STILL:
                self._save(snapshot)

    def rest(self, snapshot: Snapshot) -> None:
        """See `Picture`. Further failures, and the saved picture of a store at rest."""
        with self._lock:
            if self._closed:
                return
            self._failures.renew(snapshot)
            self._show_live()
            at_rest = not any(snapshot.counts[state] for state in OPEN_STATES) or not any(
                v.alive for v in snapshot.workers
            )
            if self._first or (not self._fresh and at_rest):
                self._save(snapshot)

    def lost(self, why: str, over: bool = False) -> None:
        """See `Picture`."""
        with self._lock:
            if self._closed:
                return
            if over:
                why += ", so the buttons do nothing"
                for widget in [*_all(self.box), *self._failures.gone()]:
                    if isinstance(widget, w.Button):
                        widget.disabled = True
            self._closed = over
            note = f"<b>not live</b>: {escape(why)}. Run <code>%jug_status</code> to look again"
            _set(self._mark, _line(note, "#d55e00"))

    def close(self) -> None:
        """See `Picture`. The front end lets go of it."""
        with self._lock:
            if not self._closed and not self._fresh:
                self._save(self._last)
            self._closed = True
            for widget in [*_all(self.box), *self._failures.gone()]:
                widget.close()

    def _save(self, snapshot: Snapshot) -> None:
        self.kept(snapshot)
        self._first, self._fresh, self._saved_at = False, True, snapshot.at

    def _renew(self, snapshot: Snapshot, room: int = AT_ONCE) -> None:
        calm = _calmed(snapshot)
        counts = snapshot.counts
        alive = any(view.alive for view in snapshot.workers) or bool(snapshot.starting)
        if self._had_workers and not alive:  # what the message tells of workers is over
            self._show_message(self._when_ended)
            self._when_ended = ""
        self._had_workers = alive
        self._names = tuple(function.name for function in snapshot.functions)
        _set(self._head, BLOCK.format(render.head_html(calm)))
        _set(self._functions, BLOCK.format(render.functions_html(calm, styles=render.CLASSES)) if self._names else "")
        workers = render.workers_html(calm, styles=render.CLASSES) or NOBODY.format(render.worker_count_text(calm))
        _set(self._workers, BLOCK.format(workers))
        self._failures.renew(snapshot, room)
        for button, useful in (
            (self._stop_button, alive),
            (self._stop_now_button, alive),
            (self._retry_button, bool(counts[State.FAILED])),
            (self._invalidate_button, bool(counts[State.FINISHED] or counts[State.FAILED])),
        ):
            if button.disabled is useful:
                button.disabled = not useful
        self._show_live()

    def _show_live(self) -> None:
        _set(self._mark, _line(LIVE + (self._waits if self._waiting() else ""), ""))

    # -- buttons -------------------------------------------------------------------------------------------------------

    def _button(self, label: str, tip: str, act: Callable[[], str]) -> Any:
        button = _plain_button(label, tip)
        button.on_click(lambda _: self._press(act))
        return button

    def _once_more(self, verb: str, keys: Sequence[str]) -> None:
        """Of failures that are one line."""
        again = self.session.retry if verb == "retry" else self.session.invalidate

        def act() -> str:
            found = again(Target(keys=frozenset(keys)))
            return f"{plural(found)} will be {'tried again' if verb == 'retry' else 'recomputed'}"

        self._press(act)

    def _press(self, act: Callable[[], str]) -> None:
        """Do it, and show its message, or that of its error."""
        try:
            message = act()
        except (JugError, OSError) as error:
            message = str(error)
        with self._lock:
            if not self._closed:
                self._show_message(message)

    def _show_message(self, message: str) -> None:
        _set(self._message, _line(escape(message), "") if message else "")

    def _add_worker(self) -> str:
        return f"starting one more: {plural(self.session.workers.add_workers(), 'worker')} on this host"

    def _stop(self, now: bool = False) -> str:
        stopping = self.session.stop(now=now)
        if not stopping:
            return "no workers to stop"
        workers = plural(stopping, "worker")
        self._when_ended = f"{workers} stopped"
        return f"stopping {workers}" if now else f"{workers} will stop after the current task"

    def _retry(self) -> str:
        found = self.session.retry(all=self.all)
        return f"{plural(found)} will be tried again" if found else "no failed tasks to try again"

    def _ask_which(self) -> str:
        with self._lock:
            if tuple(self._function_menu.options) != self._names:
                self._function_menu.options = self._names
            self._question.layout.display = "flex"
        return ""

    def _invalidate(self) -> str:
        name = self._function_menu.value
        self._close_question()
        if not name:
            return ""
        target = Target(names=frozenset([name]))
        return f"invalidated {plural(self.session.invalidate(target, all=self.all), 'result')} of {name}"

    def _close_question(self) -> str:
        with self._lock:
            self._question.layout.display = "none"
        return ""


class Failures:
    """What failed, by kinds: each a line that opens, as a part of its own."""

    def __init__(self, again: Callable[[str, Sequence[str]], None]) -> None:
        self._rerun = again
        self._title, self._more = _html(), _html()
        self._visible: dict[tuple[str, str], Failure] = {}
        self._kept: dict[tuple[str, str], Failure] = {}
        self.box = _column([self._title, self._more])

    def renew(self, snapshot: Snapshot, room: int = AT_ONCE) -> None:
        """Put what failed on the page. Kinds there keep their place; a few new ones, or details, a time."""
        count = snapshot.counts[State.FAILED]
        kinds = {(kind.newest.name, kind.about): kind for kind in render.kinds(snapshot)} if count else {}
        for about in [about for about in self._visible if about not in kinds]:
            self._keep(about, self._visible.pop(about))
        for about in kinds:
            if about not in self._visible and room and len(self._visible) < render.FAILURES:
                kept = self._kept.pop(about, None)
                room -= kept is None
                self._visible[about] = kept or Failure(self._rerun)
        for about, failure in self._visible.items():
            failure.renew(kinds[about])
        for failure in sorted(self._visible.values(), key=lambda failure: (not failure.open, failure.has_details)):
            if room and failure.write_details():
                room -= 1
        left = count - sum(len(kinds[about].keys) for about in self._visible)
        title = f'<div style="margin-top:8px;font-weight:bold">{plural(count, "failure")}</div>'
        _set(self._title, BLOCK.format(title) if count else "")
        more = _line(f"and {left:,} more: <code>{render.NOTEBOOK.failed}</code>", "")
        _set(self._more, more if left > 0 and self._visible else "")
        children = (self._title, *(failure.box for failure in self._visible.values()), self._more)
        if children != self.box.children:
            self.box.children = children

    def _keep(self, about: tuple[str, str], failure: Failure) -> None:
        self._kept[about] = failure
        while len(self._kept) > KEPT:
            for widget in _all(self._kept.pop(next(iter(self._kept))).box):
                widget.close()

    def gone(self) -> Iterator[Any]:
        """What is not on the page now."""
        for failure in self._kept.values():
            yield from _all(failure.box)


class Failure:
    """Failures of one kind: a line; it opens to the details of the newest, and what can be done.

    One that is open keeps its details as long as that failure is among them: somebody reads it.
    """

    def __init__(self, again: Callable[[str, Sequence[str]], None]) -> None:
        self._kind: FailureKind | None = None
        self._details_of: FailureKind | None = None
        self._details = _html(BLOCK.format("…"))
        retry = _plain_button("retry", "try these again")
        drop = _plain_button("invalidate", "recompute these, and what depends on them")
        retry.on_click(lambda _: again("retry", self._keys))
        drop.on_click(lambda _: again("invalidate", self._keys))
        inside = _column([self._details, _row([retry, drop])])
        self.box = w.Accordion([inside], selected_index=None, layout=_shared().any)
        self.box.add_class("jug-failure")
        for widget in _all(self.box):
            route_to_asker(widget)

    @property
    def _keys(self) -> Sequence[str]:
        return () if self._kind is None else self._kind.keys

    @property
    def has_details(self) -> bool:
        """Were its details written?"""
        return self._details_of is not None

    @property
    def open(self) -> bool:
        """Does somebody read it?"""
        return self.box.selected_index is not None

    def renew(self, kind: FailureKind) -> None:
        """The line: the newest of them, and how many there are."""
        if self._kind == kind:
            return
        self._kind = kind
        newest, count = kind.newest, len(kind.keys)
        more = f" and {count - 1:,} similar" if count > 1 else ""  # before the end, which a narrow page cuts
        title = f"{render.call(newest.name, newest.args_repr, 60)}{more}  ·  {elide(newest.error, 90)}"
        if self.box.titles != (title,):
            self.box.titles = (title,)

    def write_details(self) -> bool:
        """Write the details of the newest, unless they stand there already. Return whether they were written."""
        before, kind = self._details_of, self._kind
        if kind is None or before == kind:
            return False
        if before is not None and self.open and before.newest.key in kind.keys:
            return False
        self._details_of = kind
        details = BLOCK.format(render.story_html(kind.newest, kind.others, len(kind.keys)))
        if self._details.value == details:
            return False
        self._details.value = details
        return True


def route_to_asker(widget: Any) -> None:
    """Let presses be handled where the front end sends them: beside a running cell, if the kernel can.

    ipykernel from 7.4 on would send them to the thread that wrote to the widget last, which for most is the cell's.
    """
    comm: Any = getattr(widget, "comm", None)
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default


def _stop_in_a_shell(url: str) -> str:
    """How to stop workers where the kernel is busy; a password stays where it is."""
    if url.startswith("memory:"):
        return ""
    return AT_ONCE_ELSEWHERE.format(escape(f"jug-notebook stop --jugdir {'URL' if '@' in url else shlex.quote(url)}"))


def _calmed(snapshot: Snapshot) -> Snapshot:
    """Without what changes by itself and means nothing: how long ago the last of regular beats was."""
    from msgspec.structs import replace

    def calmed(view: WorkerView) -> WorkerView:
        return replace(view, beat_age=0.0) if view.alive and view.beat_age < CALM else view

    return replace(snapshot, workers=tuple(map(calmed, snapshot.workers)))


class _Shared(NamedTuple):
    """Layouts and styles that many use: each is a model of its own on the page."""

    any: Any
    wide: Any
    narrow: Any
    row: Any
    html: Any
    button: Any


@functools.cache
def _shared() -> _Shared:
    return _Shared(
        w.Layout(), w.Layout(width="100%"), w.Layout(width="auto"),
        w.Layout(flex_flow="row wrap", align_items="center"), w.HTML().style, w.Button().style,
    )  # fmt: skip


def _html(value: str = "") -> Any:
    return w.HTML(value, layout=_shared().wide, style=_shared().html)


def _plain_button(label: str, tip: str) -> Any:
    return w.Button(description=label, tooltip=tip, layout=_shared().narrow, style=_shared().button)


def run_button(run: Callable[[], object]) -> dict[str, Any]:
    """Return a button that can be pressed once, as it is displayed."""
    button = _plain_button("Run", "let the task of this cell run")

    def pressed(_: Any) -> None:
        button.disabled = True
        run()

    button.on_click(pressed)
    return {**button._repr_mimebundle_(), "text/plain": ""}


def _column(widgets: Sequence[Any]) -> Any:
    return w.VBox(widgets, layout=_shared().any)


def _row(widgets: Sequence[Any], layout: Any = None) -> Any:
    row = w.HBox(widgets, layout=layout or _shared().row)
    row.add_class("jug-bar")
    return row


def _set(part: Any, value: str) -> None:
    """Send a part only when it has changed."""
    if part.value != value:
        part.value = value


def _line(inner: str, colour: str) -> str:
    look = f"color:{colour}" if colour else "opacity:.75"
    return f'<div style="font-size:13px;line-height:1.5;margin-top:6px;{look}">{inner}</div>'


def _all(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _all(child)
