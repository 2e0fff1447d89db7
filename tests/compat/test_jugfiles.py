"""Jug's own scripts, unmodified: what they come to with us is what they come to with Jug."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compat.jugfiles import CASES, Case

ROOT = Path(__file__).parents[2]
JUG = [sys.executable, "-c", "import sys; sys.path.remove(''); from jug.jug import main; main()"]
OURS = [sys.executable, "-m", "jug_notebook"]

THEIR_VALUES = """
import pickle, sys
sys.path.remove("")
import jug, jug.jug
jug.jug._is_jug_running = True
names, script, jugdir, *arguments = sys.argv[1:]
sys.argv[:] = [script, *arguments]
_, space = jug.init(script, jugdir)
found = {name: jug.value(space[name]) for name in names.split(",") if name}
sys.stdout.flush()
open("values", "wb").write(pickle.dumps(found))
"""
OUR_VALUES = """
import argparse, pickle, sys
from jug_notebook.compat import loading
from jug_notebook.compat.jug.task import value
names, script, jugdir, *arguments = sys.argv[1:]
given = argparse.Namespace(jugfile=script, jugdir=jugdir or None, user_args=arguments)
with loading.loaded(loading.settled("status", given), read_only=True) as space:
    found = {name: value(space[name]) for name in names.split(",") if name}
open("values", "wb").write(pickle.dumps(found))
"""


class Side:
    """A folder with a script, and a program that runs it: Jug, or us."""

    def __init__(self, folder: Path, program: list[str], values: str, jugdir: str = "") -> None:
        folder.mkdir()
        self.folder = folder
        self.jugdir = jugdir
        self._program = program
        self._values = values
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith(("JUG_", "JPY_"))}
        self.environment |= {
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }

    def write(self, case: Case) -> Side:
        (self.folder / "jugfile.py").write_text(case.text)
        for name, text in case.files.items():
            (self.folder / name).write_text(text)
            os.utime(self.folder / name, (1_000_000_000, 1_000_000_000))
        return self

    def run(self, command: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        where = ["--jugdir", self.jugdir] if self.jugdir else []
        return subprocess.run(
            [*self._program, command, *where, *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def values(self, case: Case) -> dict[str, object]:
        jugdir = self.jugdir or "jugfile.jugdata"
        words = [",".join(case.look), "jugfile.py", jugdir, *case.arguments]
        ran = subprocess.run(
            [sys.executable, "-c", self._values, *words],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        found: dict[str, object] = pickle.loads((self.folder / "values").read_bytes())
        return found

    def counts(self, *arguments: str) -> dict[str, tuple[int, ...]]:
        """The rows of the table that ``status`` prints: Failed, Waiting, Ready, Complete, Active."""
        return table(self.run("status", "jugfile.py", *arguments).stdout)


def table(text: str) -> dict[str, tuple[int, ...]]:
    rows = re.findall(r"^((?: +\d+)+)  (\S+) *$", text, re.MULTILINE)
    return {name: tuple(map(int, numbers.split())) for numbers, name in rows}


@pytest.fixture
def theirs(tmp_path: Path) -> Side:
    pytest.importorskip("jug", "2.7")
    return Side(tmp_path / "theirs", JUG, THEIR_VALUES)


@pytest.fixture(params=["file", "redis"])
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    """With a store of each kind that lasts."""
    if request.param == "file":
        yield Side(tmp_path / "ours", OURS, OUR_VALUES)
        return
    if importlib.util.find_spec("jug_notebook.store.redis") is None:
        pytest.skip("there is no redis store")
    url = request.getfixturevalue("redis_server").url()
    yield Side(tmp_path / "ours", OURS, OUR_VALUES, url)


ALL_RIGHT = [name for name in CASES if "." not in name]


@pytest.mark.parametrize("name", ALL_RIGHT)
def test_a_script_comes_to_the_same_as_with_jug(name: str, theirs: Side, ours: Side) -> None:
    case = CASES[name]
    before, expected = ours.write(case).counts(*case.arguments), theirs.write(case).counts(*case.arguments)
    for name in ("Total", *case.at_once) if case.at_once else ():
        del before[name], expected[name]
    assert before == expected
    ran = theirs.run("execute", "--will-cite", "jugfile.py", *case.arguments)
    assert ran.returncode == 0, ran.stderr
    mine = ours.run("execute", "jugfile.py", *case.arguments)
    assert mine.returncode == 0, mine.stderr
    assert table(mine.stdout).keys() == table(ran.stdout).keys()
    assert ours.values(case) == theirs.values(case)
    assert ours.counts(*case.arguments) == theirs.counts(*case.arguments)
    for file in case.written:
        assert (ours.folder / file).read_bytes() == (theirs.folder / file).read_bytes()
    for file in case.described:
        assert described(ours.folder / file) == described(theirs.folder / file)


def described(path: Path) -> Any:
    """What a file says that a value was computed from, without the times."""

    def timeless(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: bool(item["computed"]) if key == "meta" else timeless(item) for key, item in x.items()}
        return list(map(timeless, x)) if isinstance(x, list) else x

    return timeless(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("name", ALL_RIGHT)
def test_workers_come_to_the_same(name: str, ours: Side) -> None:
    case = CASES[name]
    ran = ours.write(case).run("execute", "-n", "2", "jugfile.py", *case.arguments)
    assert ran.returncode == 0, ran.stderr
    assert ours.run("check", "jugfile.py", *case.arguments).returncode == 0
    again = ours.run("execute", "jugfile.py", *case.arguments)
    assert again.returncode == 0
    assert not any(executed for executed, _ in table(again.stdout).values()), "everything was stored"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("failures.")])
def test_failures_end_as_with_jug(name: str, theirs: Side, ours: Side) -> None:
    case = CASES[name]
    ran = theirs.write(case).run("execute", "--will-cite", "--nr-wait-cycles", "0", *case.options, "jugfile.py")
    mine = ours.write(case).run("execute", "--nr-wait-cycles", "0", *case.options, "jugfile.py")
    assert ran.returncode == mine.returncode == 1
    assert "ValueError" in mine.stderr
    status = ours.run("status", "jugfile.py")
    assert status.returncode == theirs.run("status", "jugfile.py").returncode == 1
    if "--keep-failed" in case.options:
        assert table(status.stdout) == theirs.counts()
    assert ours.run("check", "jugfile.py").returncode == theirs.run("check", "jugfile.py").returncode == 1


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("hooks.")])
def test_hooks_stop_as_with_jug_but_never_say_that_all_is_well(name: str, theirs: Side, ours: Side) -> None:
    case = CASES[name]
    ran = theirs.write(case).run("execute", "--will-cite", "jugfile.py")
    mine = ours.write(case).run("execute", "jugfile.py")
    assert mine.returncode == (ran.returncode or 1), mine.stderr
    assert ours.counts() == theirs.counts()


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("scripts.")])
@pytest.mark.parametrize("command", ["execute", "status", "check", "count"])
def test_scripts_that_do_not_load_end_as_with_jug(name: str, command: str, theirs: Side, ours: Side) -> None:
    case = CASES[name]
    ran = theirs.write(case).run(command, "jugfile.py")
    assert ours.write(case).run(command, "jugfile.py").returncode == ran.returncode
