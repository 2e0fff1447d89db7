"""What the rows of the table have in common: sides that are measured in turn, each in a process of its own.

A *side* is a function of a family's file, ``side(folder, scale)``, that answers one figure. Where there is a function
``side_before``, it runs first, in a process of its own: what it leaves in the folder is there when the clock starts.
Sides take turns, so that a noisy machine is noisy for all, and a ratio is the median of the ratios of such rounds.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE = 180  #: seconds after which a side has failed


@dataclass(frozen=True)
class Row:
    """One line of the table. ``better`` is "more" (rates) or "less" (times). ``goal`` is told, not enforced."""

    what: str
    unit: str
    better: str
    ours: str  #: a function of the family's file
    peers: tuple[tuple[str, str], ...] = ()  #: (name, function)
    goal: str = ""
    store: str = "file"  #: the kind of store that it is about
    quick: bool = True  #: not left out with --quick


@dataclass
class Figures:
    """What was measured of a row."""

    row: Row
    family: str
    rounds: list[dict[str, float]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  #: who has no figure, and why

    def median(self, who: str) -> float | None:
        seen = [measured[who] for measured in self.rounds if who in measured]
        return statistics.median(seen) if seen else None

    def ratio(self, peer: str) -> float | None:
        """How many times better ours is."""
        pairs = [(one["ours"], one[peer]) for one in self.rounds if "ours" in one and one.get(peer)]
        more = self.row.better == "more"
        found = [ours / theirs if more else theirs / ours for ours, theirs in pairs if ours and theirs]
        return statistics.median(found) if found else None

    def plain(self) -> dict[str, Any]:
        sides = ["ours", *(name for name, _ in self.row.peers)]
        return {
            "what": self.row.what,
            "unit": self.row.unit,
            "store": self.row.store,
            "goal": self.row.goal,
            "median": {who: self.median(who) for who in sides},
            "ratio": {name: self.ratio(name) for name, _ in self.row.peers},
            "missing": self.missing,
            "rounds": self.rounds,
        }


class Missing(Exception):
    """A side has no figure here. Says why in a line."""


def measure(family: str, row: Row, rounds: int, scale: float, work: Path, env: dict[str, str]) -> Figures:
    figures = Figures(row, family)
    sides = [("ours", row.ours), *row.peers]
    for _ in range(rounds):
        seen: dict[str, float] = {}
        for who, function in sides:
            if who in figures.missing:
                continue
            try:
                seen[who] = one_figure(family, function, scale, work, env)
            except Missing as why:
                figures.missing[who] = str(why)
        figures.rounds.append(seen)
    return figures


def one_figure(family: str, function: str, scale: float, work: Path, env: dict[str, str]) -> float:
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        _side(family, f"{function}_before", scale, folder, env)
        os.sync()
        return _side(family, function, scale, folder, env)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a supervisor may still be leaving


def _side(family: str, function: str, scale: float, folder: Path, env: dict[str, str]) -> float:
    command = [sys.executable, str(HERE / "harness.py"), family, function, str(folder), str(scale)]
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))  # workers import the tasks too
    settings = {
        **os.environ,
        **env,
        "PYTHONPATH": path,
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JUG_DEVICE_LOCKS": str(folder / "devices"),
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=folder, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Missing(f"not done after {PATIENCE} s") from None
    if done.returncode:
        errors = done.stderr.strip().splitlines() or ["it said nothing"]
        raise Missing(errors[-1][:120])
    return float(json.loads(done.stdout.splitlines()[-1])["figure"])


def _be_a_side(family: str, function: str, folder: str, scale: str) -> None:
    sys.path.insert(0, str(HERE))
    module = importlib.import_module(family)
    side = getattr(module, function, None)
    if side is None and function.endswith("_before"):
        figure: Any = 0.0
    else:
        figure = getattr(module, function)(Path(folder), float(scale))
    print(json.dumps({"figure": figure or 0.0}), flush=True)


# -- what sides have in common -----------------------------------------------------------------------------------------


@contextmanager
def crew_of(session: Any, workers: int = 2) -> Iterator[Any]:
    """Workers of ours that are up, and gone afterwards."""
    import jug_notebook as jn

    crew = jn.execute(workers)
    while crew.alive() < workers:
        session.queries.watch(-1, 0.05)
    try:
        yield crew
    finally:
        crew.stop(now=True)
        crew.wait()
        session.close()


def url(folder: Path) -> str:
    """The store that the row is about."""
    port = os.environ.get("BENCH_REDIS_PORT")
    if os.environ.get("BENCH_STORE") == "redis":
        return f"redis://127.0.0.1:{port}/0?project=p{os.path.basename(folder)}"
    return str(folder / "jugdata")


def redis_port() -> int:
    return int(os.environ["BENCH_REDIS_PORT"])


@contextmanager
def redis_server(folder: Path) -> Iterator[int | None]:
    """A server of the benchmark's own, that keeps nothing; None where there is no redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def figure_text(figure: float | None, unit: str) -> str:
    if figure is None:
        return "–"
    if unit == "s":
        return f"{figure:.3g} s" if figure >= 1 else f"{figure * 1e3:.3g} ms"
    return f"{figure:,.0f} {unit}" if figure >= 100 else f"{figure:.3g} {unit}"


def markdown(figures: Sequence[Figures]) -> str:
    lines = ["| what | ours | best peer | ratio | others | goal |", "|---|---|---|---|---|---|"]
    for one in figures:
        row = one.row
        name = row.what if row.store == "file" else f"{row.what} ({row.store})"
        if "ours" in one.missing:
            lines.append(f"| {name} | skipped: {one.missing['ours']} | | | | {row.goal} |")
            continue
        ratios = {peer: ratio for peer, _ in row.peers if (ratio := one.ratio(peer)) is not None}
        order = sorted(ratios, key=lambda peer: ratios[peer])
        report = [f"{peer} {figure_text(one.median(peer), row.unit)} ({ratios[peer]:.3g} x)" for peer in order]
        report += [f"{peer}: {why}" for peer, why in one.missing.items()]
        best = f"{order[0]} {figure_text(one.median(order[0]), row.unit)}" if order else ""
        ratio = f"**{ratios[order[0]]:.3g} x**" if order else ""
        others = "; ".join(report[1:] if order else report)
        lines.append(
            f"| {name} | {figure_text(one.median('ours'), row.unit)} | {best} | {ratio} | {others} | {row.goal} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    _be_a_side(*sys.argv[1:])
