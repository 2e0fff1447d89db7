"""Failures sorted into kinds: those alike but for a number, an address or a quoted word are one thing to read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jug_notebook.model import FailureKind, FailureView, Like, Snapshot

LIKE = 12  #: so many others of a kind are named
LINE = 300  #: characters of an error that count

_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)(?!\w)""")
_VARIES = re.compile(
    r"0x[0-9a-f]+"  # an address
    r"|\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\b[0-9a-f]{8}-[0-9a-f-]{27}\b"  # a digest, a UUID
    r"|[-+]?\d+(?:[.,:_]\d+)*(?:e[-+]?\d+)?",  # a number, a date, a time
    re.IGNORECASE,
)
_ROW = re.compile(r"#(?:(?:, |,| )#)+")


def pattern(error: str) -> str:
    """What an error has in common with others like it: "bad row #, no '…'"."""
    return _ROW.sub("#", _VARIES.sub("#", _QUOTED.sub("'…'", error[:LINE])))


def sorted_out(failures: Sequence[FailureView]) -> list[FailureKind]:
    """Kinds of failures, in the order of their first."""
    groups: dict[tuple[str, str], list[FailureView]] = {}
    for failure in failures:
        groups.setdefault((failure.name, pattern(failure.error)), []).append(failure)
    return [
        FailureKind(
            about,
            group[0],
            tuple(failure.key for failure in group),
            tuple(Like(failure.key, failure.args_repr, failure.error) for failure in group[1 : LIKE + 1]),
        )
        for (_, about), group in groups.items()
    ]


def kinds(snapshot: Snapshot) -> Sequence[FailureKind]:
    """The kinds of failures of a picture, whether or not who made it has sorted them."""
    return snapshot.kinds or sorted_out(snapshot.failures)
