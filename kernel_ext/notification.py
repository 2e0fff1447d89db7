"""``--notify browser``: the browser's own notification, from the page of an open notebook.

The cell that starts workers displays a script, which asks for permission, and the kernel replaces it by one that
notifies when all has ended. Where no script may run, nothing comes of it: then a supervisor's target is the way.
"""

from __future__ import annotations

import json
import time
from typing import Any

from jug_notebook.session import Session
from jug_notebook.worker.notifier import Onlooker
from kernel_ext.display import show

BROWSER = "browser"
FRESH = 600  #: seconds after which a script does nothing: a saved notebook that is opened again holds it still
DRAWN = 5.0  #: seconds in which a page draws what replaces an output

_SCRIPT = """(() => {{
  if (Date.now() / 1000 - {at} > {fresh}) return;
  if (!("Notification" in window) || Notification.permission === "denied") {{
    element.textContent = "notify: this page may not notify; allow it in the browser's settings for this site";
    return;
  }}
  {act}
}})();"""
_ASK = "if (Notification.permission === 'default') Notification.requestPermission();"
_TELL = "if (Notification.permission === 'granted') new Notification('jug_notebook', {{body: {text}, tag: {tag}}});"


def _script(act: str, at: float) -> dict[str, str]:
    return {"application/javascript": _SCRIPT.format(at=at, fresh=FRESH, act=act), "text/plain": ""}


class BrowserNotice:
    """An errand of `Live`: notifies once what is requested has ended, stands still, or has no workers any more."""

    def __init__(self, session: Session, after: float) -> None:
        access = session.access
        self._session = session
        self._onlooker = Onlooker(
            access.store, access.seal, access.process.python, access.file or access.store.display_url, after
        )
        self._told: float | None = None
        self._over = False
        self._handle: Any = None

    def ask(self) -> None:
        """Ask for permission, under the running cell."""
        self._handle = show(_script(_ASK, time.time()), display_id=True)

    def end(self) -> None:
        """Another one takes its place."""
        self._over = True

    def __call__(self) -> bool:
        """Return whether there is nothing more to do."""
        now = time.monotonic()
        if self._over or self._session.closed:
            return True
        if self._told is not None:
            if over := now - self._told >= DRAWN:
                self._handle.update({"text/plain": ""}, raw=True)
            return over
        starting = any(crew.is_starting for crew in self._session.workers.crews)
        found = self._onlooker.look(now, starting)
        if found is None:
            return False
        act = _TELL.format(text=json.dumps(found.text), tag=json.dumps(found.id)) if found.text else ""
        self._handle.update(_script(act, time.time()), raw=True)
        self._told = now
        return False
