"""The graph of a jugfile's functions, for graphviz; without it, as a picture of ours."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from jug_notebook import render
from jug_notebook.compat.jug.task import Tasklet
from jug_notebook.model import FunctionView, Graph, State

_COLORS = {
    State.FAILED: ("F", "#c0392b"),
    State.WAITING: ("W", "#7f8c8d"),
    State.READY: ("R", "#d68910"),
    State.RUNNING: ("A", "#2e6da4"),
    State.FINISHED: ("C", "#2e8b57"),
}


def draw(alltasks: Sequence[Any], states: Sequence[State], options: Any) -> int:
    """Write ``<jugfile>.dot`` and what dot makes of it; where there is no dot, ``<jugfile>.svg``."""
    counts: dict[str, Counter[State]] = {}
    edges: Counter[tuple[str, str]] = Counter()
    for task, state in zip(alltasks, states, strict=True):
        counts.setdefault(task.name, Counter())[state] += 1
        for need in task.dependencies():
            edges[task.name, _name(need)] += 1
    stem = Path(options.jugfile).with_suffix("")
    dot = stem.with_suffix(".dot")
    dot.write_text(_dot(counts, edges, bool(options.graph_no_status)), encoding="utf-8")
    form = options.graph_format
    try:
        subprocess.run(["dot", str(dot), f"-T{form}", "-o", f"{stem}.{form}"], check=True)
    except FileNotFoundError:
        functions = tuple(FunctionView(name, dict(count)) for name, count in counts.items())
        graph = Graph(functions, tuple((name, need, n) for (name, need), n in edges.items()), str(stem), "this jugfile")
        stem.with_suffix(".svg").write_text(render.svg(graph, alone=True), encoding="utf-8")
        print(f"graphviz is not installed; the picture is {stem}.svg, the graph {dot}", file=sys.stderr)
    except subprocess.CalledProcessError as failed:
        print(f"dot ended with exit status {failed.returncode}; the graph is {dot}", file=sys.stderr)
    return 0


def _name(task: Any) -> str:
    while isinstance(task, Tasklet):
        task = task.base
    return str(task.name)


def _dot(counts: dict[str, Counter[State]], edges: Counter[tuple[str, str]], plain: bool) -> str:
    lines = ["digraph {"]
    for name, count in counts.items():
        if plain:
            lines.append(f"  {_quoted(name)}")
            continue
        cells = "".join(
            f"<td><font color='{color}'><b>{count[state]}{letter}</b></font></td>"
            for state, (letter, color) in _COLORS.items()
        )
        table = (
            f"<table cellpadding='0' cellborder='0' border='0'><tr><td colspan='5'>{escape(name)}</td></tr>"
            f"<tr>{cells}</tr></table>"
        )
        lines.append(f"  {_quoted(name)} [label=<{table}>]")
    lines += [f"  {_quoted(need)} -> {_quoted(name)}" for name, need in edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
