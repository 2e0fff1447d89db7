"""What a task printed and displayed, as text and HTML.

Text is cleaned and escaped. Displays bring their own HTML, as they do under any cell: the caller has checked that the
store's workers signed it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jug_notebook.model import Run
from jug_notebook.render.format import ago, clean, duration, escape, excerpt, size

Piece: TypeAlias = "tuple[str, Any]"
"""("stdout", text), ("stderr", text) or ("display", forms by MIME type)."""

_PRE = "margin:2px 0;padding:0;overflow:auto;white-space:pre-wrap;font-size:13px;line-height:1.4;background:none"
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")


def origin_text(run: Run, now: float | None = None) -> str:
    """Return where and how long a task ran, in a line; with ``now`` (seconds since the epoch), also when."""
    when = "" if now is None else f", {ago(now - run.started - run.duration)},"
    return f"computed on {clean(run.host)}{when} in {duration(run.duration)}"


def outputs_text(pieces: Sequence[Piece]) -> str:
    """Return all of it as text, in order."""
    parts: list[str] = []
    for kind, piece in pieces:
        text = as_text(piece) if kind == "display" else piece
        if parts and parts[-1] and not parts[-1].endswith("\n") and kind == "display":
            parts.append("\n")
        parts.append(f"{text}\n" if kind == "display" else text)
    return "".join(parts)


def as_text(forms: Mapping[str, Any]) -> str:
    """Return a display as text; a picture by its type and size."""
    for kind in _IMAGES:
        if kind in forms:
            text = str(forms.get("text/plain", ""))
            return f"[{kind}, {size(_weight(forms[kind]))}]" if "<IPython" in text or not text else text
    return str(forms.get("text/plain") or f"[{', '.join(forms)}]")


def outputs_html(pieces: Sequence[Piece]) -> str:
    """Return all of it as HTML, in order."""
    return "".join(
        _display(piece) if kind == "display" else f'<pre style="{_PRE}{_tint(kind)}">{_text(piece)}</pre>'
        for kind, piece in pieces
    )


def _display(forms: Mapping[str, Any]) -> str:
    if "text/html" in forms:
        return f"<div>{_one(forms['text/html'])}</div>"
    for kind in _IMAGES:
        if kind in forms:
            return f'<div><img src="data:{kind};base64,{base64_of(kind, forms[kind])}" style="max-width:100%"></div>'
    return f'<pre style="{_PRE}">{_text(as_text(forms))}</pre>'


def base64_of(kind: str, form: Any) -> str:
    """Return an image as front ends take it."""
    if isinstance(form, str) and not kind.endswith("svg+xml"):
        return "".join(form.split())  # IPython's own images come so
    data = form.encode() if isinstance(form, str) else bytes(form)
    return base64.b64encode(data).decode()


def _weight(form: Any) -> int:
    return len(form) * 3 // 4 if isinstance(form, str) else len(form)


def _one(form: Any) -> str:
    return form if isinstance(form, str) else bytes(form).decode(errors="replace")


def _text(written: str) -> str:
    return escape(excerpt(written, 20_000))


def _tint(stream: str) -> str:
    return ";border-left:3px solid rgba(213,94,0,.55);padding-left:8px" if stream == "stderr" else ""
