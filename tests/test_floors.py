"""The house has floors: imports go downwards only, no two files need each other, and nothing grows out of sight."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jug_notebook", "kernel_ext")

#: A package needs only packages of lower floors, or, without a circle, of its own.
FLOORS = [
    "clock frames errors",
    "model",
    "system",
    "render keys",
    "codec scheduler",
    "task",
    "store",
    "worker",
    "launch",
    "session",
    "futures",
    "__init__",
    "compat",
    "cli",
    "__main__",
    "kernel_ext",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}

#: The only import upwards, and it is lazy: `%load_ext jug_notebook` finds the notebook's side.
UPWARDS = {("jug_notebook/__init__.py", "kernel_ext/__init__.py")}

#: What the notebook's side may know of the engine.
OPEN = {"compat", "errors", "frames", "keys", "model", "render", "session", "task", "worker"}

#: Names that say nothing about what is inside.
DRAWERS = {"utils", "util", "base", "common", "helpers", "misc"}

#: Lines at most: of a file, of a class, of a function.
FILE, CLASS, FUNCTION = 600, 400, 60

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def floor_of(path: Path) -> str:
    """The package of the second level that a file belongs to: its name among `FLOORS`."""
    package, first = path.relative_to(ROOT).with_suffix("").parts[:2]
    return "kernel_ext" if package == "kernel_ext" else first


def file_of(dotted: str) -> Path | None:
    """The file of a module of ours."""
    path = ROOT.joinpath(*dotted.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate in TREES), None)


def needs(path: Path) -> Iterator[Path]:
    """The files that a file imports, wherever in it, those that only type checkers read among them."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found = [file_of(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}: relative imports hide the floor"
            module = node.module or ""
            found = [file_of(f"{module}.{alias.name}") or file_of(module) for alias in node.names]
        else:
            continue
        yield from (need for need in found if need is not None and (short(path), short(need)) not in UPWARDS)


def test_every_package_has_a_floor() -> None:
    assert {floor_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_go_downwards(path: Path) -> None:
    upwards = {short(need) for need in needs(path) if FLOOR[floor_of(need)] > FLOOR[floor_of(path)]}
    assert not upwards, f"{short(path)} needs {upwards}, which are above it"


def test_no_files_need_each_other() -> None:
    graph = {short(path): {short(need) for need in needs(path)} - {short(path)} for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_packages_need_each_other() -> None:
    graph: dict[str, set[str]] = {name: set() for name in FLOOR}
    for path in FILES:
        graph[floor_of(path)] |= {floor_of(need) for need in needs(path)} - {floor_of(path)}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_notebooks_side_knows_a_few_packages_only() -> None:
    for path in (ROOT / "kernel_ext").rglob("*.py"):
        assert {floor_of(need) for need in needs(path)} <= OPEN | {"kernel_ext"}, short(path)


def test_no_file_is_a_drawer() -> None:
    assert not {path.stem for path in FILES if floor_of(path) != "compat"} & DRAWERS  # there they are Jug's names


@pytest.mark.parametrize("path", FILES, ids=short)
def test_files_classes_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (CLASS if isinstance(node, ast.ClassDef) else FUNCTION), f"{node.name}: {lines} lines"


@pytest.mark.parametrize("module", ["jug_notebook", "jug_notebook.worker.execution", "jug_notebook.worker.supervisor"])
def test_the_engine_loads_nothing_heavy(module: str) -> None:
    heavy = ("IPython", "numpy", "redis", "ipywidgets", "pandas", "asyncio")
    script = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("page", [*(ROOT / "notebooks").glob("*.ipynb"), *ROOT.glob("*.md")], ids=short)
def test_tests_that_the_manual_names_exist(page: Path) -> None:
    named = set(re.findall(r"tests/([\w/]+\.py)(?:::(\w+))?", page.read_text()))
    for path, test in named:
        assert f"def {test}(" in (ROOT / "tests" / path).read_text() if test else (ROOT / "tests" / path).exists(), test
    assert len(named) > 20 or "guarantees" not in page.name
