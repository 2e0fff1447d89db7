"""From a jugdir to a store."""

from __future__ import annotations

import os
from typing import Any

from jug_notebook.compat.jugdir import Jugdir


def select(jugdir: Any) -> Any:
    """The store at a path or URL; anything else is a store already."""
    return Jugdir(os.fspath(jugdir)) if isinstance(jugdir, str | os.PathLike) else jugdir
