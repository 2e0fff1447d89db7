"""The whole table: each thing that has a goal, beside the best peers, in one run; in Markdown and JSON.

    python tests/benchmarks/table.py [--quick] [--store file|redis|both] [--only WORD] [--output DIR]

The families of rows lie beside this file. ``ratio`` says how many times better ours is than the best peer.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Figures, Missing, Row, markdown, measure, redis_server

FAMILIES = (
    "throughput",
    "flow",
    "submitting",
    "reading",
    "large",
    "memory",
    "metering",
    "hashing",
    "starting",
    "drop_in",
    "mirror",
)
PEERS = ["jug-notebook", "jug", "joblib", "dask", "distributed", "huey", "rq", "diskcache", "redun", "redis"]
PEERS += ["executorlib", "loky", "numpy", "pandas", "msgspec", "cloudpickle", "blake3", "xxhash"]

#: these print tables of their own: how they are run, and how with --quick
PROGRAMS = (
    ("growth.py --counts 1000,10000,100000,1000000 --jug-up-to 100000", "growth.py --counts 1000,10000 --rounds 1"),
    ("growth.py --counts 1000,10000,100000,1000000 --jug-up-to 0 --store redis", ""),
    ("swarm.py", ""),
    ("widget.py", ""),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and one round: to see that all of it runs")
    parser.add_argument("--store", choices=("file", "redis", "both"), default="both")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose text or family has this in it")
    parser.add_argument("--rounds", type=int, help="turns of each side (default: 3; with --quick 1)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write table.md and table.json there")
    asked = parser.parse_args()
    rounds = asked.rounds or (1 if asked.quick else 3)
    for package in ("jug_notebook", "kernel_ext"):  # as pip leaves peers, whatever PYTHONDONTWRITEBYTECODE says
        compileall.compile_dir(Path(__file__).parents[2] / package, quiet=2)
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
    found: list[Figures] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, redis_server(Path(folder)) as port:
        for family in FAMILIES:
            rows: tuple[Row, ...] = importlib.import_module(family).ROWS
            for row in rows:
                if asked.only not in row.what and asked.only not in family:
                    continue
                if asked.store not in (row.store, "both") or (asked.quick and not row.quick):
                    continue
                print(f"{row.what} …", file=sys.stderr, flush=True)
                found.append(_measured(family, row, rounds, 0.1 if asked.quick else 1.0, Path(folder), port))
                print(markdown(found[-1:]).splitlines()[-1], flush=True)
    programs = "" if asked.only else _programs(asked.quick, asked.output)
    sizes = "Sizes are a tenth of what the rows say: --quick shows that all of it runs.\n\n" if asked.quick else ""
    text = f"{_about()}\n{sizes}{markdown(found)}\n{programs}"
    print("\n" + text)
    if asked.output:
        (asked.output / "table.md").write_text(text)
        report = {**_machine(), "versions": _versions(), "rows": [one.plain() for one in found]}
        (asked.output / "table.json").write_text(json.dumps(report, indent=1))
    return 0


def _measured(family: str, row: Row, rounds: int, scale: float, folder: Path, port: int | None) -> Figures:
    env = {"BENCH_STORE": row.store}
    if port is not None:
        env["BENCH_REDIS_PORT"] = str(port)
    if row.store == "redis":
        if importlib.util.find_spec("jug_notebook.store.redis") is None:
            return Figures(row, family, missing={"ours": "there is no store on redis"})
        if port is None:
            return Figures(row, family, missing={"ours": "there is no redis-server"})
    try:
        return measure(family, row, rounds, scale, folder, env)
    except Missing as why:
        return Figures(row, family, missing={"ours": str(why)})


def _programs(quick: bool, output: Path | None) -> str:
    """What prints tables of its own is run as it is. What it can draw is drawn beside the table."""
    report = []
    for number, ways in enumerate(PROGRAMS):
        name, *flags = ways[quick].split() or [""]
        if not name:
            continue
        print(f"{ways[quick]} …", file=sys.stderr, flush=True)
        drawn = ["--plot", str(output / f"growth{number}.png")] if output and name == "growth.py" else []
        command = [sys.executable, str(Path(__file__).with_name(name)), *flags, *drawn]
        done = subprocess.run(command, capture_output=True, text=True)
        message = done.stdout if done.returncode == 0 else done.stderr[-2000:]
        report.append(f"## {ways[quick]}\n\n```\n{message.rstrip()}\n```\n")
    return "\n".join(report)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _machine() -> dict[str, object]:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": f"{os.cpu_count()} x {model or platform.machine()}",
        "memory_gib": round(int(memory) / 2**20, 1),
        "load": os.getloadavg()[0],
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _about() -> str:
    machine = _machine()
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    return (
        f"{machine['date']} · {machine['cpu']} · {machine['memory_gib']} GiB · {machine['system']} · "
        f"load {machine['load']:.1f}\n\n{versions}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
