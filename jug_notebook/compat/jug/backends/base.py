"""What may be asked of a store and of a lock."""

from jug_notebook.compat.jugdir import Jugdir as base_store
from jug_notebook.compat.jugdir import Lock as base_lock

__all__ = ["base_lock", "base_store"]
