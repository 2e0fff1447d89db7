"""Stores by Jug's names. All of them are stores of ours."""

from jug_notebook.compat.jug.backends.memoize_store import memoize_store
from jug_notebook.compat.jug.backends.select import select

__all__ = ["memoize_store", "select"]
