"""What tasks printed and displayed, shown again: under their cell when they finish, or at once from the store."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jug_notebook as jn
from jug_notebook import State, render
from jug_notebook.worker import displays
from kernel_ext.display import show


def play(pieces: Sequence[tuple[str, Any]]) -> None:
    """Print and display what a task did, in order."""
    for kind, piece in pieces:
        if kind == "display":
            sys.stdout.flush()
            show({form: _sendable(form, data) for form, data in piece.items()})
        else:
            stream = sys.stderr if kind == "stderr" else sys.stdout
            print(piece, end="", file=stream, flush=True)


def _sendable(form: str, data: Any) -> Any:
    if form.startswith("image/") and not form.endswith("svg+xml"):
        return render.base64_of(form, data)
    return data.decode(errors="replace") if isinstance(data, bytes) else data


def record(shell: Any) -> Callable[[], None]:
    """From now on, what a task displays that runs in this kernel is kept with it; answers how to take that back.

    What runs in the main thread (``--here``, ``--now``) is shown as well. Workers that are threads (``memory:``) show
    nothing: it would land under whatever cell runs then, and their `clear_output` would clear that.
    """
    publisher = shell.display_pub
    publish, clear = publisher.publish, publisher.clear_output

    def unseen() -> bool:
        return threading.current_thread() is not threading.main_thread()

    def both(data: dict[str, Any], metadata: Any = None, *args: Any, **more: Any) -> None:
        book, name = displays.current(), (more.get("transient") or {}).get("display_id", "")
        if book is not None and more.get("update"):
            book.update(data, metadata, name)
        elif book is not None:
            book.add(data, metadata, name)
        if book is None or not unseen():
            publish(data, metadata, *args, **more)

    def cleared(wait: bool = False) -> None:
        book = displays.current()
        if book is not None:
            book.clear(wait)
        if book is None or not unseen():
            clear(wait)

    publisher.publish, publisher.clear_output = both, cleared

    def remove() -> None:
        del publisher.publish, publisher.clear_output

    return remove


def replay(session: jn.Session, task: Any, steady: bool) -> None:
    """A task that has ended already: where it comes from (not where that must be ``steady``), and all it showed."""
    print("from the store" if steady else f"from the store: {session.origin(task.key)}")
    play(session.outputs(task.key))
    [view] = session.views([task.key])
    if view.error:
        print(f"{view.name} failed: {view.error}")


def promise(session: jn.Session, task: Any) -> Callable[[], bool]:
    """Keep a place under the cell. The errand that is answered fills it once the task has ended."""
    waiting = f"{task.name} has not finished; what it shows will be here"
    handle = show({"text/plain": waiting, "text/html": f'<span style="opacity:.65">{waiting}</span>'}, display_id=True)

    def fulfil() -> bool:
        if session.closed:
            return True
        [state] = session.states([task.key])
        if state is State.WITHDRAWN:
            return True
        if state not in (State.FINISHED, State.FAILED):
            return False
        pieces = session.outputs(task.key)
        [view] = session.views([task.key])
        said = f"{view.name} failed: {view.error}" if view.error else session.origin(task.key, dated=False)
        handle.update(_together(said, pieces), raw=True)
        return True

    return fulfil


def _together(said: str, pieces: Sequence[tuple[str, Any]]) -> dict[str, str]:
    head = render.shown_html([("stdout", said)]) if said else ""
    return {
        "text/plain": "\n".join(filter(None, (said, render.shown_text(pieces).rstrip("\n")))),
        "text/html": f'<div style="opacity:.65">{head}</div>{render.shown_html(pieces)}',
    }
