"""The notebooks are the documentation: each runs against a store of its own and must print what is saved in it.

With pytest, nbval runs them and compares (cells tagged ``nbval-ignore-output`` show times and hosts; they must only
run). As a program, this runs them and saves what they print.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MANUAL = ROOT / "notebooks"
NOTEBOOKS = sorted(path for path in MANUAL.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def environment(folder: Path) -> dict[str, str]:
    """A store, a keyring and settings that are gone afterwards."""
    return {
        **os.environ,
        "JUG_STORE": str(folder / "jugdata"),
        "JUG_HEADLESS": "1",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


def bring(notebook: Path, folder: Path) -> None:
    """A notebook, what it reads, and the modules that lie beside it."""
    for path in (notebook, MANUAL / "two_hosts.py"):
        shutil.copy(path, folder)
    shutil.copytree(MANUAL / "data", folder / "data")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_prints_what_is_saved_in_it(notebook: Path, tmp_path: Path) -> None:
    bring(notebook, tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    ran = subprocess.run(
        [*command, "--nbval-cell-timeout", "240", notebook.name],
        cwd=tmp_path,
        env={**environment(tmp_path), "JUG_NOTEBOOK_DISPLAY": "text"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:]


def rebuild(notebook: Path) -> None:
    """Run a notebook and save what it prints, pictures included."""
    with tempfile.TemporaryDirectory() as folder:
        bring(notebook, Path(folder))
        subprocess.run(
            [sys.executable, "-m", "jug_notebook", "execute", notebook.name, "--inplace"],
            cwd=folder,
            env=environment(Path(folder)),
            check=True,
        )
        shutil.copy(Path(folder) / notebook.name, notebook)


if __name__ == "__main__":
    for path in [Path(word).absolute() for word in sys.argv[1:]] or NOTEBOOKS:
        rebuild(path)
