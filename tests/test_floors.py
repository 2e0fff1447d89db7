"""The house has floors: imports go downwards only, and no two rooms need each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ("jug_notebook", "kernel_ext")

#: A package needs only packages of lower floors, or, without a circle, of its own.
FLOORS = [
    "model errors clock system",
    "render keys",
    "codec scheduler",
    "task",
    "store",
    "worker",
    "launch",
    "session __init__",
    "compat",
    "cli __main__",
    "kernel_ext",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}

#: The single import upwards: `%load_ext jug_notebook` finds the notebook's side.
UPWARDS = {("__init__", "kernel_ext")}

#: What the notebook's side may know of the engine, beside its public names.
OPEN_ROOMS = {"__init__", "compat", "keys", "model", "render", "session", "task", "worker", "errors"}

#: Names that say nothing about what is inside.
DRAWERS = {"utils", "util", "base", "common", "helpers", "misc"}


def files() -> Iterator[Path]:
    for package in HOUSE:
        yield from (ROOT / package).rglob("*.py")


def room_of(path: Path) -> str:
    package, first = path.relative_to(ROOT).with_suffix("").parts[:2]
    return "kernel_ext" if package == "kernel_ext" else first


def imports(path: Path) -> Iterator[str]:
    """Dotted names of ours that a file imports, wherever in it, but for those that only type checkers read."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def needs(path: Path) -> set[str]:
    """The rooms that a file needs."""
    found = set()
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "kernel_ext":
            found.add("kernel_ext")
        elif package == "jug_notebook":
            first = rest.partition(".")[0]
            known = (ROOT / "jug_notebook" / first).is_dir() or (ROOT / "jug_notebook" / f"{first}.py").exists()
            found.add(first if first and known else "__init__")
    if room_of(path) not in ("kernel_ext", "__init__"):
        found.discard("__init__")  # "from jug_notebook import codec" names the room in its second part
    return found - {room_of(path)}


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in files()} == set(FLOOR)


@pytest.mark.parametrize("path", sorted(files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    room = room_of(path)
    upwards = {need for need in needs(path) if FLOOR[need] > FLOOR[room] and (room, need) not in UPWARDS}
    assert not upwards, f"{path.relative_to(ROOT)} needs {upwards}, which are above it"


def test_no_two_rooms_need_each_other() -> None:
    graph: dict[str, set[str]] = {room: set() for room in FLOOR}
    for path in files():
        graph[room_of(path)] |= {
            need for need in needs(path) if (room_of(path), need) not in UPWARDS and need != "__init__"
        }
    gone: set[str] = set()
    while free := [room for room in graph if room not in gone and graph[room] <= gone]:
        gone.update(free)
    assert not set(graph) - gone, f"these need each other: {sorted(set(graph) - gone)}"


def test_the_notebooks_side_knows_the_public_names_and_a_few_rooms() -> None:
    for path in (ROOT / "kernel_ext").rglob("*.py"):
        assert needs(path) <= OPEN_ROOMS | {"kernel_ext"}, path.name


def test_no_room_is_a_drawer() -> None:
    assert not {path.stem for path in files() if room_of(path) != "compat"} & DRAWERS  # there they are Jug's names


@pytest.mark.parametrize("module", ["jug_notebook", "jug_notebook.worker.execution", "jug_notebook.worker.supervisor"])
def test_the_engine_loads_nothing_heavy(module: str) -> None:
    heavy = ("IPython", "numpy", "redis", "ipywidgets", "pandas", "asyncio")
    script = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
