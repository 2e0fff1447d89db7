"""A store of several people: whose files are whose, who has the key, who made what."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import jug_notebook as jn
from jug_notebook import render, system
from jug_notebook.launch import local
from jug_notebook.session import Session
from jug_notebook.store import keyring, open_store
from jug_notebook.task import context
from tests.crews import working
from tests.workbench import cell, wait_until

ROOT = Path(local.__file__).parents[2]
GROUP = 64_001
PEOPLE = {"ann": 64_011, "ben": 64_012}
PACKAGES = ("msgspec", "blake3", "cloudpickle", "IPython")


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(path.is_dir(), path.stat().st_mode & 0o7777) for path in [folder, *folder.rglob("*")]}


def test_a_private_store_is_for_one_alone(tmp_path: Path) -> None:
    session = Session(tmp_path / "jugdata")
    jn.task(cell("def f(x): return x", "f"))
    session.submissions.put([b"x" * 100_000])
    folders = {mode for is_folder, mode in modes(tmp_path / "jugdata") if is_folder}
    assert not any(mode & 0o077 for mode in folders - {0o755})
    assert (tmp_path / "jugdata").stat().st_mode & 0o077 == 0
    session.close()


def test_a_shared_store_is_open_to_its_group_and_nobody_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = jn.connect(tmp_path / "jugdata", shared="group")
    output = capfd.readouterr().err
    assert "is shared with group" in output
    assert "Its members can run code as you, and you as them" in output
    double = jn.task(cell("def double(x): return [x] * 100_000", "double"))
    with working(session):
        assert len(double(1).result()) == 100_000
    folder = tmp_path / "jugdata"
    session.close()
    assert modes(folder) == {(True, 0o2770), (False, 0o660), (False, 0o640)}
    assert [path.name for path in folder.rglob("*") if path.stat().st_mode & 0o7777 == 0o640] == ["key"]
    assert (folder / "key").read_text().split() == [session.identity, keyring.secret(session.identity).hex()]
    jn.connect(folder, shared="group").close()
    assert capfd.readouterr().err == ""  # it is said once


def test_an_old_store_is_shared_by_its_owner_when_nobody_works_on_it(tmp_path: Path) -> None:
    first = Session(tmp_path / "jugdata")
    double = jn.task(cell("def double(x): return 2 * x", "double"))
    jn.connect(tmp_path / "jugdata")
    with working(jn.current()):
        assert double(1).result() == 2
    with pytest.raises(jn.StoreError, match="is in use; to share it, stop its workers and close its notebooks first"):
        Session(tmp_path / "jugdata", shared="group")
    first.close()
    jn.current().close()
    session = jn.connect(tmp_path / "jugdata", shared="group")
    assert double(1).value() == 2
    session.close()


def test_what_can_not_be_shared_says_so(tmp_path: Path) -> None:
    with pytest.raises(jn.StoreError, match="shared='world' means nothing; give shared='group'"):
        Session(tmp_path / "jugdata", shared="world")
    with pytest.raises(jn.StoreError, match="has no group; share it by its key: jug-notebook key export"):
        Session("memory:x", shared="group")


def test_the_key_of_a_shared_store_is_not_taken_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jn.connect(tmp_path / "jugdata", shared="group").close()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(keyring, "_here", {})
    with pytest.raises(jn.StoreError, match=r"Its members could run code as you.*shared='group'\).*key import <"):
        Session(tmp_path / "jugdata")


def test_two_notebooks_are_one_run_and_it_shows_who_made_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double = jn.task(cell("def double(x): return 2 * x", "double"))
    monkeypatch.setenv("LOGNAME", "ann")
    system.user.cache_clear()
    ann = Session(tmp_path / "jugdata", notebook=tmp_path / "ann.ipynb")
    context.set_current(ann)
    hers = [double(x) for x in (1, 2)]
    ann.submissions.flush()
    monkeypatch.setenv("LOGNAME", "ben")
    system.user.cache_clear()
    ben = Session(tmp_path / "jugdata", notebook=tmp_path / "ben.ipynb")
    context.set_current(ben)
    his = [double(x) for x in (2, 3)]
    ben.submissions.flush()
    assert his[0].key == hers[1].key
    with working(ben):
        assert ben.results.settle([task.key for task in (*hers, *his)])
    assert [task.result() for task in (*hers, *his)] == [2, 4, 4, 6]
    assert ann.status().total == ben.status().total == 2
    assert ann.status(all=True).total == 3
    listed = ben.tasks("double", limit=0).views
    assert [(view.args_repr, view.user) for view in listed] == [("x=2", "ann"), ("x=3", "ben")]
    assert "made by" in render.tasks_text(listed, 2)
    assert "made by" not in render.tasks_text(listed[:1], 1)
    ann.close()
    ben.close()
    system.user.cache_clear()


# -- two people, really ------------------------------------------------------------------------------------------------


def someones_python() -> list[str]:
    """A Python that other users may run too, with our packages; empty where there is none."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return []
    places = [str(ROOT), *site.getsitepackages(), sysconfig.get_paths()["purelib"], *sys.path]
    ours = [place for place in places if place.endswith("-packages") or place == str(ROOT)]
    path = os.pathsep.join(dict.fromkeys(ours))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (os.path.realpath(sys.executable), f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        command = ["env", f"PYTHONPATH={path}", python]
        probe = subprocess.run(
            [*as_user("ann"), *command, "-c", f"import {', '.join(PACKAGES)}, jug_notebook"],
            capture_output=True, check=False, cwd="/",
        )  # fmt: skip
        if probe.returncode == 0:
            return command
    return []


def as_user(name: str, group: int = GROUP) -> list[str]:
    ids = f"--reuid={PEOPLE.get(name, 64_013)} --regid={group} --clear-groups --inh-caps=-all --bounding-set=-all"
    return ["setpriv", *ids.split(), "env", f"LOGNAME={name}"]


class People:
    """Processes of several users, in a folder that is their group's."""

    def __init__(self, folder: Path, python: list[str]) -> None:
        self.folder = folder
        self._python = python
        folder.chmod(0o2770)
        os.chown(folder, PEOPLE["ann"], GROUP)
        for name in ("ann", "ben", "eve"):
            home = folder / name
            home.mkdir()
            os.chown(home, PEOPLE.get(name, 64_013), GROUP)

    def run(self, name: str, code: str, group: int = GROUP) -> subprocess.CompletedProcess[str]:
        home = self.folder / name
        source = f"import os; os.umask(0o077)\nimport jug_notebook as jn\n{code}"
        return subprocess.run(
            [*as_user(name, group), f"XDG_CONFIG_HOME={home}", f"HOME={home}", *self._python, "-c", source],
            capture_output=True, text=True, cwd=home, check=False,
        )  # fmt: skip


@pytest.fixture
def people() -> Iterator[People]:
    python = someones_python()
    if not python:
        pytest.skip("needs root, setpriv, and a Python that other users may run")
    folder = Path(tempfile.mkdtemp(prefix="jug-group-"))  # pytest's own folders are closed to others
    yield People(folder, python)
    shutil.rmtree(folder)


DEFINE = """
session = jn.connect("../jugdata", shared="group", notebook=os.path.abspath("nb.ipynb"))
source = "def double(x):\\n    return [x] * 50_000\\n"
open("tools.py", "w").write(source)
import sys; sys.path.insert(0, os.getcwd())
import tools
double = jn.task(tools.double)
"""


def test_people_of_a_group_work_on_one_store_each_with_workers_of_their_own(people: People) -> None:
    first = people.run("ann", DEFINE + "tasks = double.map(range(4))\nprint(len(tasks))\nsession.close()")
    assert first.stdout == "4\n", first.stderr
    refused = people.run("ben", 'jn.connect("../jugdata")')
    assert "connect(" in refused.stderr
    assert "shared='group'" in refused.stderr
    second = people.run(
        "ben",
        DEFINE + "tasks = double.map(range(6))\ncrew = jn.execute(1)\n"
        "print([len(x) for x in tasks.result()], {t.provenance()['by'] for t in tasks},\n"
        "      {t.provenance()['run']['user'] for t in tasks})\n"
        "print(jn.status(all=True).total)\ncrew.stop(now=True)\n"
        "while crew.supervisors: crew.store.watch(-1, 0.05)\n",
    )
    assert second.stdout.splitlines()[0].startswith("[50000, 50000, 50000, 50000, 50000, 50000] {'"), second.stderr
    assert "{'ben'}" in second.stdout
    packed = people.run("ben", "from jug_notebook.__main__ import main\nmain(['pack', '../jugdata'])")
    assert packed.returncode == 0, packed.stderr
    assert list((people.folder / "jugdata" / "sealed").iterdir())
    third = people.run("ann", DEFINE + "print([len(t.value()) for t in double.map(range(6))])\njn.invalidate('double')")
    assert third.stdout == "[50000, 50000, 50000, 50000, 50000, 50000]\n", third.stderr
    store = open_store(people.folder / "jugdata")
    wait_until(store, lambda: not any(alive for _, alive, _ in store.processes()))
    store.close()
    assert modes(people.folder / "jugdata") == {(True, 0o2770), (False, 0o660), (False, 0o640)}


def test_whoever_is_not_in_the_group_gets_nothing(people: People) -> None:
    assert people.run("ann", DEFINE + "double(1)\nsession.close()").returncode == 0
    people.folder.chmod(0o2777)
    eve = people.run("eve", 'jn.connect("../jugdata", shared="group")', group=64_099)
    assert "StoreError" in eve.stderr
    assert "not yours" in eve.stderr
