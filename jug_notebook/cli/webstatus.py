"""``webstatus``: serves the status of a store as a web page that updates itself.

The page is only for this machine unless ``--host`` is given, and only for those who know its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import sys
from hmac import compare_digest
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jug_notebook.cli import PACE, TICK, Store, UsageError, View
from jug_notebook.errors import LaunchError, StoreError

if TYPE_CHECKING:
    from jug_notebook.model import Snapshot

_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: an opened failure keeps its element, and so what was scrolled or selected in it
_SCRIPT = """
'use strict';
const keyOf = box => [...box.querySelectorAll('code')].map(c => c.textContent).find(t => /^[0-9a-f]{40}$/.test(t));
const put = (name, html) => {
  const place = document.getElementById(name);
  const open = new Map();
  for (const box of place.querySelectorAll('details[open]')) open.set(keyOf(box), box);
  place.innerHTML = html;
  for (const box of place.querySelectorAll('details')) {
    const old = open.get(keyOf(box));
    if (!old) continue;
    old.querySelector('summary').innerHTML = box.querySelector('summary').innerHTML;
    box.replaceWith(old);
  }
};
const live = document.getElementById('live');
const events = new EventSource('events');
events.onmessage = event => {
  const update = JSON.parse(event.data);
  document.title = update.title;
  for (const name of Object.keys(update.parts)) put(name, update.parts[name]);
  live.textContent = 'live';
};
events.onerror = () => { live.textContent = 'not live: jug-notebook webstatus does not answer; trying again'; };
"""


def parts_of(picture: Snapshot) -> dict[str, str]:
    """Return the HTML of each part of the page, in order."""
    from jug_notebook import render

    return {
        "head": render.head_html(picture),
        "functions": render.functions_html(picture),
        "failures": render.failures_html(picture),
        "workers": render.workers_html(picture),
        "advice": render.advice_html(picture, render.SHELL),
    }


def title_of(picture: Snapshot) -> str:
    """Return the page's title: progress and store."""
    from jug_notebook.model import State

    done, total = picture.counts[State.FINISHED], picture.total
    return f"{done * 100 // total if total else 0} % · {picture.store}"


def _document(picture: Snapshot) -> str:
    inner = "".join(f'<div id="{name}">{part}</div>' for name, part in parts_of(picture).items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title_of(picture))}</title></head>"
        '<body style="margin:24px;font-family:system-ui,sans-serif;font-size:13px;line-height:1.5;max-width:960px">'
        f'{inner}<div id="live" style="opacity:.65;margin-top:12px">not live yet</div>'
        '<script src="live.js"></script></body></html>\n'
    )


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Return whether a request with this Host header is meant for us: one of ``names``, or an address.

    Another site may let its own name resolve to this machine (DNS rebinding), but not an address.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or ipaddress.ip_address(name) is not None
    except ValueError:
        return False


class Hub:
    """Follows a store, and puts what changes into the queues of all ``listeners``."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.listeners: set[asyncio.Queue[str]] = set()
        self.picture = view.picture()

    def event(self, parts: dict[str, str]) -> str:
        """Return the JSON for the browser, with these parts of the page."""
        return json.dumps({"title": title_of(self.picture), "parts": parts})

    async def follow(self) -> None:
        sent = parts_of(self.picture)
        while True:
            await asyncio.sleep(PACE)
            await asyncio.to_thread(self.view.changed, TICK - PACE)
            try:
                self.picture = await asyncio.to_thread(self.view.picture)
            except StoreError:  # it is gone: the last status stays, with its time
                continue
            parts = parts_of(self.picture)
            new = {name: part for name, part in parts.items() if part != sent[name]}
            sent = parts
            for listener in self.listeners if new else ():
                listener.put_nowait(self.event(new))


def _server(hub: Hub, token: str, names: frozenset[str]) -> Any:
    from tornado.iostream import StreamClosedError
    from tornado.web import Application, HTTPError, RequestHandler

    class Ours(RequestHandler):
        def prepare(self) -> None:
            if not is_ours(self.request.headers.get("Host", ""), names):
                raise HTTPError(403, reason="Not by this name")
            if not compare_digest(str(self.path_kwargs.get("token") or ""), token):
                raise HTTPError(404)

        def set_default_headers(self) -> None:
            self.set_header("Content-Security-Policy", _POLICY)
            self.set_header("X-Content-Type-Options", "nosniff")
            self.set_header("Referrer-Policy", "no-referrer")
            self.set_header("Cross-Origin-Resource-Policy", "same-origin")
            self.set_header("Cache-Control", "no-store")
            self.clear_header("Server")

        def write_error(self, status_code: int, **_: Any) -> None:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{status_code}: {self._reason}\n")

    class Page(Ours):
        def get(self, token: str) -> None:
            self.finish(_document(hub.picture))

    class Script(Ours):
        def get(self, token: str) -> None:
            self.set_header("Content-Type", "text/javascript; charset=utf-8")
            self.finish(_SCRIPT)

    class Events(Ours):
        async def get(self, token: str) -> None:
            self.set_header("Content-Type", "text/event-stream")
            self._updates = asyncio.Queue[str]()
            hub.listeners.add(self._updates)
            event = hub.event(parts_of(hub.picture))
            with contextlib.suppress(StreamClosedError, asyncio.CancelledError):
                while True:
                    self.write(f"data: {event}\n\n")
                    await self.flush()
                    event = await self._updates.get()

        def on_connection_close(self) -> None:
            hub.listeners.discard(self._updates)

    way = "(?P<token>[0-9a-f]{32})"
    return Application(
        [(f"/{way}/", Page), (f"/{way}/live.js", Script), (f"/{way}/events", Events)],
        default_handler_class=Ours,
        log_function=lambda handler: None,
    )


def serve(of: Store, bound: str, port: int) -> int:
    """Serve the page until Ctrl-C, at the address ``bound`` and at ``port``, with 0 at any free one."""
    try:
        from tornado.httpserver import HTTPServer
        from tornado.netutil import bind_sockets
    except ImportError:
        raise LaunchError("a live page needs tornado: pip install tornado; or: jug-notebook status --html F") from None
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port {port}: ports go from 1 to 65535")
    view = View(of)
    token = os.urandom(16).hex()
    names = frozenset({"localhost", bound.lower(), socket.gethostname().lower(), socket.getfqdn().lower()})
    try:
        listening = bind_sockets(port, bound)
    except OSError as error:
        view.close()
        raise LaunchError(f"can't listen on {bound}:{port}: {error.strerror}") from None

    async def show() -> None:
        hub = Hub(view)
        server = HTTPServer(_server(hub, token, names))
        server.add_sockets(listening)
        host = "localhost" if bound in ("", "0.0.0.0", "::") else bound
        host = f"[{host}]" if ":" in host else host
        print(f"http://{host}:{listening[0].getsockname()[1]}/{token}/", flush=True)
        print("anyone with this address can see the page; Ctrl-C ends it, the tasks go on", file=sys.stderr, flush=True)
        try:
            await hub.follow()
        finally:
            server.stop()

    with contextlib.closing(view), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(show())
    return 0
