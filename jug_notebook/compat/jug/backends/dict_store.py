"""A store in memory; with a name, one that lasts."""

from __future__ import annotations

from jug_notebook.compat.jugdir import Jugdir


def dict_store(backend: str | None = None) -> Jugdir:
    return Jugdir("dict_store" if backend is None else f"dict_store:{backend}")
