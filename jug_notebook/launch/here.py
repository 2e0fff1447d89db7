"""The look around on this host, by the same eyes as on others."""

from __future__ import annotations

import sys

from jug_notebook import system
from jug_notebook.launch import preflight
from jug_notebook.launch.preflight import Check, Report
from jug_notebook.launch.remote import Request, look_around
from jug_notebook.store import Store


def look(store: Store) -> Report:
    """Could workers start here?"""
    asked = Request(system.python(), "", store.url, store.id, check=True)
    checks = [preflight.python(system.python(), sys.executable, system.python()), *look_around(asked)]
    if not any(check.what == "key" and check.said == "is there" for check in checks):
        checks.append(
            Check("key", "the store's key is not in your keyring",
                  "bring it, from where the store was made: jug-notebook key export | jug-notebook key import", True)
        )  # fmt: skip
    return Report("this host", tuple(check for check in checks if check.what != "workers"))


__all__ = ["look"]
