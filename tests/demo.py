"""What `make demo` shows: the tutorial, run for real on a store of its own, twice. The second time nothing is run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "01_tutorial.ipynb"


def announce(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(folder: Path, *words: str) -> str:
    """One `jug-notebook` command, shown as one would type it."""
    print(f"$ jug-notebook {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "jug_notebook", *words]
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False).stdout


def ran(folder: Path) -> float:
    """Seconds that all tasks of the store took together."""
    report = subprocess.run(
        [sys.executable, "-m", "jug_notebook", "status", "--json"], cwd=folder, capture_output=True, check=False
    ).stdout
    functions = msgspec.json.decode(report)["functions"]
    return sum((row["mean"] or 0.0) * row["counts"].get("finished", 0) for row in functions)


def main() -> int:
    folder = Path(sys.argv[1]).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder)

    announce(f"The tutorial, in {folder.name}/, on a fresh file store: two workers run its tasks.")
    print(run(folder, "execute", NOTEBOOK, "--output", "first.ipynb"))
    print(run(folder, "status"))
    first = log_names(folder)

    announce("The same notebook in a new kernel: every task is found by its hash, and nothing is computed.")
    print(run(folder, "execute", NOTEBOOK, "--output", "second.ipynb"))
    new = outcomes_written_since(folder, first)
    announce(
        f"{ran(folder):.1f} s of work are kept in {folder.name}/jugdata; the second run added {new} results to it.\n"
        "Now look for yourself: make lab"
    )
    return 0 if new == 0 else 1


def log_names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "jugdata" / "log").iterdir()}


def outcomes_written_since(folder: Path, before: set[str]) -> int:
    """Results in logs that are new."""
    from jug_notebook.model import Settled
    from jug_notebook.store.atomic import Folder
    from jug_notebook.store.file.journal import Log

    count = 0
    logs = Folder(folder / "jugdata" / "log")
    for name in log_names(folder):
        if name not in before:
            events = [event for event, _ in Log(logs / name, local=True).poll()]
            count += sum(len(event.verdicts) for event in events if isinstance(event, Settled))
    return count


if __name__ == "__main__":
    sys.exit(main())
