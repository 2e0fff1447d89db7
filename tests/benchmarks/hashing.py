"""Naming values and calls: beside joblib, Dask, redun and Jug, each with the value in a process of its own."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Row

TIMES = 5


def array(scale: float) -> Any:
    import numpy as np

    return np.random.default_rng(0).random(int(12_500_000 * scale))


def ints(scale: float) -> Any:
    return list(range(int(1_000_000 * scale)))


def strings(scale: float) -> Any:
    return [f"word {i}" for i in range(int(100_000 * scale))]


def table(scale: float) -> Any:
    return {f"key{i}": i / 7 for i in range(int(100_000 * scale))}


def nested(scale: float) -> Any:
    return [{"name": f"n{i}", "tags": ["a", "b", i], "at": (i, i / 2)} for i in range(int(10_000 * scale))]


def frame(scale: float) -> Any:
    import pandas as pd

    return pd.DataFrame({**_columns(scale), "c": pd.Series(_words(scale), dtype=object)})


def arrow_frame(scale: float) -> Any:
    return frame(scale).astype({"c": "string[pyarrow]"})


def _columns(scale: float) -> dict[str, Any]:
    return {"a": array(scale * 0.08).argsort(), "b": array(scale * 0.08)}


def _words(scale: float) -> list[str]:
    return [f"row {i % 1000} of {i}" for i in range(int(1_000_000 * scale))]


def _ours() -> Callable[[Any], Any]:
    from jug_notebook.keys.digest import digest

    return digest


def _joblib() -> Callable[[Any], Any]:
    import joblib

    return joblib.hash  # type: ignore[no-any-return]


def _dask() -> Callable[[Any], Any]:
    from dask.base import tokenize

    return tokenize  # type: ignore[no-any-return]


def _redun() -> Callable[[Any], Any]:
    from redun.value import get_type_registry

    return get_type_registry().get_hash  # type: ignore[no-any-return]


def _jug() -> Callable[[Any], Any]:
    from jug.hash import hash_one

    return hash_one  # type: ignore[no-any-return]


VALUES = {
    "digest of a 100 MB array": (array, "≥ 6 x joblib, ≥ 2 x Jug"),
    "digest of a list of 10^6 ints": (ints, "ahead of redun, ≥ 50 x joblib"),
    "digest of a list of 10^5 strings": (strings, ""),
    "digest of a dict of 10^5 str to float": (table, "ahead of redun, ≥ 12 x joblib"),
    "digest of 10^4 nested dicts and lists": (nested, ""),
    "digest of a frame of 10^6 rows, strings as objects": (frame, "≥ 10 x joblib"),
    "digest of a frame of 10^6 rows, strings of arrow": (arrow_frame, "≥ 10 x joblib"),
}
WHO = {
    "ours": _ours,
    "joblib": _joblib,
    "redun (as pickled, not canonical)": _redun,
    "jug": _jug,
    "dask (64 bits, not canonical)": _dask,
}


def _digested(
    value: Callable[[float], Any], way: Callable[[], Callable[[Any], Any]], folder: Path, scale: float
) -> float:
    made, act = value(scale), way()
    act(made)
    spent = []
    for _ in range(TIMES):
        start = time.perf_counter()
        act(made)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


for _value, _ in VALUES.values():
    for _way in WHO.values():
        globals()[f"{_value.__name__}{_way.__name__}"] = functools.partial(_digested, _value, _way)


def call(folder: Path, scale: float) -> float:
    """A call f(3, 'a'), all of it: bound, named, encoded, shown, handed to the session."""
    import jug_notebook as jn

    def f(x: int, mode: str) -> int:
        return x

    session, made, count = jn.connect("memory:benchmark"), jn.task(f), int(10_000 * scale)
    made(-1, "a")
    start = time.perf_counter()
    for n in range(count):
        made(n, "a")
    spent = time.perf_counter() - start
    session.close()
    return spent / count


def sharing(folder: Path, scale: float) -> float:
    """A task of a map that shares an array of 10 MB."""
    import jug_notebook as jn

    def f(x: int, mode: Any) -> int:
        return x

    session, made, count, shared = jn.connect("memory:benchmark"), jn.task(f), int(10_000 * scale), array(0.1)
    made(-1, shared)
    start = time.perf_counter()
    made.map(range(count), mode=shared)
    spent = time.perf_counter() - start
    session.close()
    return spent / count


ROWS = (
    *(
        Row(
            what, "s", "less", f"{value.__name__}_ours",
            tuple((who, value.__name__ + way.__name__) for who, way in WHO.items() if who != "ours"), goal,
            quick=value in (array, ints, table),
        )
        for what, (value, goal) in VALUES.items()
    ),
    Row("a call f(3, 'a'), all of it", "s", "less", "call", (), "≤ 15 µs"),
    Row("a task of a .map that shares an array of 10 MB", "s", "less", "sharing", ()),
)  # fmt: skip
