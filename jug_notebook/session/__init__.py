"""A store as a notebook or a script uses it: connect to one, and submit, watch, fetch and change its tasks."""

from jug_notebook.session.access import resolve_url
from jug_notebook.session.api import connect, current, using
from jug_notebook.session.session import Session
from jug_notebook.session.submission import CellReport

__all__ = ["CellReport", "Session", "connect", "current", "resolve_url", "using"]
