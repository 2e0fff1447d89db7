"""A store as a notebook or script uses it."""

from jug_notebook.session.session import (
    CellReport,
    Session,
    connect,
    current,
)

__all__ = [
    "CellReport",
    "Session",
    "connect",
    "current",
]
