"""Naming values: beside joblib, Dask, redun and Jug, in one run. Prints a table in Markdown.

    python tests/benchmarks/hashing.py [--pairs 5] [--small]

Each figure is the median of some runs; peer and ours take turns, so that a noisy machine is noisy for both, and the
ratio is the median of the ratios of such pairs.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from jug_notebook import digest
from jug_notebook.digest import name_call

GOALS = {
    "array of 100 MB": {"joblib": 6, "jug": 2},
    "frame of 10^6 rows, strings as objects": {"joblib": 10},
    "frame of 10^6 rows, strings of arrow": {"joblib": 10},
    "list of 10^6 ints": {"joblib": 50, "redun": 1},
    "dict of 10^5 str to float": {"joblib": 12, "redun": 1},
}


def peers() -> dict[str, Callable[[Any], Any]]:
    """Those that are installed."""
    found: dict[str, Callable[[Any], Any]] = {}
    for name, module, way in (
        ("joblib", "joblib", lambda m: m.hash),
        ("dask", "dask.base", lambda m: m.tokenize),
        ("redun", "redun.value", lambda m: m.get_type_registry().get_hash),
        ("jug", "jug.hash", lambda m: m.hash_one),
    ):
        try:
            found[name] = way(importlib.import_module(module))
        except ImportError:
            print(f"({name} is not installed)")
    return found


def values(small: bool) -> dict[str, Any]:
    import numpy as np

    scale = 100 if small else 1
    rng = np.random.default_rng(0)
    n = 1_000_000 // scale
    found: dict[str, Any] = {
        "array of 100 MB": rng.random(12_500_000 // scale),
        "list of 10^6 ints": list(range(n)),
        "dict of 10^5 str to float": {f"key{i}": i / 7 for i in range(n // 10)},
        "list of 10^5 strings": [f"word {i}" for i in range(n // 10)],
        "nested dicts and lists": [{"name": f"n{i}", "tags": ["a", "b", i], "at": (i, i / 2)} for i in range(n // 100)],
    }
    try:
        import pandas as pd
    except ImportError:
        return found
    words = [f"row {i % 1000} of {i}" for i in range(n)]
    plain = pd.DataFrame({"a": np.arange(n), "b": rng.random(n), "c": pd.Series(words, dtype=object)})
    found["frame of 10^6 rows, strings as objects"] = plain
    try:
        found["frame of 10^6 rows, strings of arrow"] = plain.astype({"c": "string[pyarrow]"})
    except ImportError:
        print("(pyarrow is not installed)")
    return found


def seconds(act: Callable[[Any], Any], value: Any) -> float:
    start = time.perf_counter()
    act(value)
    return time.perf_counter() - start


def shown(spent: float) -> str:
    return f"{spent * 1e3:.3g} ms" if spent < 1 else f"{spent:.3g} s"


def compare(pairs: int, small: bool) -> None:
    others = peers()
    print(f"| value | ours | {' | '.join(others)} |")
    print("|---" * (2 + len(others)) + "|")
    for name, value in values(small).items():
        digest.digest(value)
        ours, cells = [], []
        for other, act in others.items():
            ratios, theirs = [], []
            try:
                for _ in range(pairs):
                    theirs.append(seconds(act, value))
                    ours.append(seconds(digest.digest, value))
                    ratios.append(theirs[-1] / ours[-1])
                goal = GOALS.get(name, {}).get(other)
                aim = f", goal {goal}" if goal else ""
                cells.append(f"{shown(statistics.median(theirs))} ({statistics.median(ratios):.3g} x{aim})")
            except Exception as error:  # a peer may not know what to do with a value: that is a result too
                cells.append(type(error).__name__)
        print(f"| {name} | {shown(statistics.median(ours)) if ours else '-'} | {' | '.join(cells)} |", flush=True)


def calls(pairs: int) -> None:
    """A small call, from naming it to all of it: bound, named, encoded, shown, handed to the session."""
    import jug_notebook as jn

    def naming(count: int) -> None:
        for n in range(count):
            name_call("c" * 40, "f", [("x", n), ("mode", "a")])

    def f(x: int, mode: str) -> int:
        return x

    session = jn.connect("memory:benchmark")
    made = jn.task(f)
    import numpy as np

    array = np.random.default_rng(0).random(1_250_000)

    def calling(count: int) -> None:
        for n in range(count):
            made(n, "a")

    def sharing(count: int) -> None:
        made.map(range(count), mode=array)

    made(-1, "a")
    print("\n| act | each |\n|---|---|")
    rows = (
        ("naming a call f(3, 'a')", naming, 10_000), ("a call f(3, 'a'), all of it (goal 15 µs)", calling, 10_000),
        ("a task of a map that shares an array of 10 MB", sharing, 1_000),
    )  # fmt: skip
    for name, act, count in rows:
        spent = statistics.median(seconds(act, count) for _ in range(pairs)) / count
        print(f"| {name} | {spent * 1e6:.3g} µs |")
    session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a hundredth of the sizes: to see that it runs")
    asked = parser.parse_args()
    compare(asked.pairs, asked.small)
    calls(asked.pairs)


if __name__ == "__main__":
    main()
