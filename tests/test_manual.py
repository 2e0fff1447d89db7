"""The manual and the README: they build as a site, links lead somewhere, every name has a place, and lines run."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import TransformerManager

import jug_notebook
from jug_notebook import cli
from kernel_ext import options
from kernel_ext.extension import JugMagics, ScriptMagics, TaskMagics, WorkerMagics
from tests.browser import PATIENCE, browser, missing
from tests.kernels import Kernel

ROOT = Path(__file__).resolve().parents[1]
MANUAL = ROOT / "notebooks"
README = ROOT / "README.md"

#: environment variables that concern nobody: they are set and read between programs
BETWEEN_PROGRAMS = {"JPY_PARENT_PID", "JPY_SESSION_NAME", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "JUGFILE"}
BETWEEN_PROGRAMS |= {"JUG_COMMAND", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"}
VARIABLE = re.compile(r"(JUG|XDG|SLURM|PYTHON|MPL|CUDA|HIP|ROCR|ZE|OMP|OPENBLAS|MKL|NUMEXPR|JPY)[A-Z_]+")

MAGICS = {
    sign + name: getattr(kind, method)
    for kind in (JugMagics, ScriptMagics, TaskMagics, WorkerMagics)
    for sign, names in (("%", kind.magics["line"]), ("%%", kind.magics["cell"]))
    for name, method in names.items()
}


# -- the site ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A page of the site: its links, what it loads, the ids that links can lead to, its text, and that of its parts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links, self.loaded, self.ids = set[str](), set[str](), set[str]()
        self._words: list[str] = []
        self.feed(path.read_text())
        parts = [" ".join(part.split()) for part in "".join(self._words).split("\f")]
        self.text = " ".join(parts)
        self.parts = {part.partition("¶")[0]: part for part in parts}  #: by their headings

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
                if tag in ("script", "img", "link", "iframe"):
                    self.loaded.add(value)
            elif name == "id" and value:
                self.ids.add(value)
        if tag == "h2":
            self._words.append("\f")

    def handle_data(self, data: str) -> None:
        self._words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages by their files. Warnings are errors; references to classes that aren't there are among them."""
    pytest.importorskip("furo", reason="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    ways = ["--quiet", "--fail-on-warning", "--keep-going", "-b", "html", "-d", str(folder / "trees")]
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *ways, str(MANUAL), str(folder / "html")],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-5000:]
    return {path: Page(path) for path in sorted((folder / "html").rglob("*.html"))}


def page(site: dict[Path, Page], name: str) -> Page:
    return next(page for path, page in site.items() if path.as_posix().endswith(f"{name}.html"))


def test_every_link_within_the_site_leads_somewhere(site: dict[Path, Page]) -> None:
    lost, elsewhere = [], set()
    for page in site.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                elsewhere.add(link)
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            place = unquote(parts.fragment)
            if not target.is_file() or (place and target in site and place not in site[target].ids):
                lost.append(f"{page.path.name}: {link}")
    print("links elsewhere, which are not followed:", *sorted(elsewhere), sep="\n")
    assert not lost


def test_the_site_needs_no_network_and_finds_what_one_looks_for(site: dict[Path, Page]) -> None:
    assert not {link for page in site.values() for link in page.loaded if urlsplit(link).netloc}
    if reason := missing():
        pytest.skip(reason)
    with browser() as tab:
        tab.goto(f"{page(site, 'search').path.as_uri()}?q=wait_for_workers")
        tab.wait_for_selector("#search-results li a[href^='reference/']", timeout=PATIENCE)


def test_every_public_name_is_on_a_page(site: dict[Path, Page]) -> None:
    ids = page(site, "reference/api").ids
    modules = {name for name in jug_notebook.__all__ if f"module-jug_notebook.{name}" in ids}
    assert {name for name in jug_notebook.__all__ if f"jug_notebook.{name}" not in ids} == modules


def test_every_magic_command_option_and_trait_is_on_a_page(site: dict[Path, Page]) -> None:
    magics, commands = page(site, "reference/magics").parts, page(site, "reference/commands").parts
    for name, magic in MAGICS.items():
        assert not [option for option in options.known(magic) if option not in magics[name]], name
    for name, command in cli.commands().items():
        actions = [action for action in cli.Parser(name, command)._actions if action.help != argparse.SUPPRESS]
        words = {option for action in actions for option in action.option_strings} - {"-h", "--help"}
        assert not [word for word in words if word not in commands[f"jug-notebook {name}"]], name
    configuration = page(site, "reference/configuration").text
    traits = [f"JugMagics.{name}" for name in JugMagics.class_traits(config=True)]
    assert "JugMagics.autostart" in traits
    assert not [trait for trait in traits if f"{trait} " not in configuration]


def test_every_environment_variable_is_on_a_page(site: dict[Path, Page]) -> None:
    files = [path for package in ("jug_notebook", "kernel_ext") for path in (ROOT / package).rglob("*.py")]
    texts = (node.value for path in files for node in ast.walk(ast.parse(path.read_text())) if is_text(node))
    read = {text for text in texts if VARIABLE.fullmatch(text)} - BETWEEN_PROGRAMS
    configuration = page(site, "reference/configuration").text
    assert {"JUG_STORE", "XDG_CONFIG_HOME", "OMP_NUM_THREADS"} <= read
    assert not [name for name in read if name not in configuration]


def is_text(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# -- lines to be typed -------------------------------------------------------------------------------------------------


def texts() -> Iterator[tuple[str, str]]:
    """Yield the Markdown of the README, of CONTRIBUTING, and of each page, with its name."""
    for path in (README, ROOT / "CONTRIBUTING.md", *sorted(MANUAL.rglob("*.md"))):
        yield path.relative_to(ROOT).as_posix(), path.read_text()
    for path in sorted(MANUAL.rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        yield path.relative_to(ROOT).as_posix(), "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


def typed(text: str) -> Iterator[str]:
    """Yield what is to be typed in a Markdown text: lines of its blocks of code, and code in its sentences."""
    for block in re.findall(r"^```(?:\w+)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def lines() -> list[tuple[str, str]]:
    return [(name, line.strip()) for name, text in texts() for line in typed(text)]


def test_every_magic_line_in_the_texts_is_one_that_the_magic_takes() -> None:
    found = [(name, line) for name, line in lines() if re.match(r"%%?jug\w*", line) and not re.search("[…─]", line)]
    assert len(found) > 60
    for name, line in found:
        magic, _, rest = line.partition(" ")
        assert magic.rstrip("?") in MAGICS, f"{name}: {line}"
        try:
            options.read(MAGICS[magic.rstrip("?")], re.sub(r"\[(.*)\]", r"\1", rest))
        except UsageError as error:  # a sentence may name an option without what it takes
            if not re.search("expected one argument|: give ", str(error)):
                pytest.fail(f"{name}: {line}: {error}")


def test_every_command_in_the_texts_is_one_that_the_command_line_takes() -> None:
    found = [(name, line) for name, line in lines() if re.match(r"(\$ |exec )?jug-notebook ", line)]
    assert len(found) > 20
    for name, line in found:
        for part in re.split(r"\s[|<>]|;|#", line):
            at = part.find("jug-notebook ")
            if at < 0 or "…" in part:
                continue
            command, words = cli.split(shlex.split(part[at:])[1:])
            if command in (None, "COMMAND"):
                continue
            known = cli.command(command)
            assert known is not None, f"{name}: {line}"
            try:
                cli.Parser(command, known).read([word for word in words if word != "--help"])
            except SystemExit:
                pytest.fail(f"{name}: {line}")


def test_every_block_of_python_in_the_texts_is_python() -> None:
    blocks = [(name, block) for name, text in texts() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) > 10
    for name, block in blocks:
        code = TransformerManager().transform_cell(block)
        try:
            compile(code, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            pytest.fail(f"{name}: {error}:\n{block}")


def test_every_target_of_make_in_the_texts_is_one() -> None:
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(name, line.split()[1]) for name, line in lines() if re.match(r"make [a-z]", line)}
    assert {"demo", "lab", "bench", "docs"} <= {target for _, target in named}
    assert not [(name, target) for name, target in named if target not in known]


def test_every_extra_that_the_texts_install_is_one() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for _, line in lines() for extra in re.findall(r"'\.\[(\w+)\]'", line)}
    assert {"notebook", "lab"} <= named <= set(known)


def test_every_file_that_the_texts_link_to_is_there() -> None:
    for path in (README, *ROOT.glob("[A-Z]*.md")):
        links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
        assert not [link for link in links if "://" not in link and not (path.parent / link).exists()], path.name


def test_every_name_of_ours_in_the_texts_is_public() -> None:
    named = {(name, found) for name, text in texts() for found in re.findall(r"\bjn\.(\w+)", text)}
    assert not [(name, found) for name, found in named if found not in jug_notebook.__all__]


# what lines about other libraries take for granted
OF_LIBRARIES = """
import functools, joblib, os, scipy.optimize
import jug_notebook as jn
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
def f(x):
    return float((x**2).sum())
bounds, grid = [(-1, 1)], {"C": [1, 10]}
X, y = load_iris(return_X_y=True)
differential_evolution = functools.partial(scipy.optimize.differential_evolution, maxiter=1, popsize=4, polish=False)
os.environ["MY_WEBHOOK"] = "cmd:cat > webhook.txt"
"""

#: blocks that need a cluster, other hosts, or a library each: tests of `launch` and `futures` run these
NEEDS_MORE = re.compile(r"Client\(|emcee|--host|--slurm")


def test_the_python_in_the_readme_and_in_the_pages_runs_as_printed(tmp_path: Path) -> None:
    cells = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    cells = [cell for cell in cells if not NEEDS_MORE.search(cell)]
    pages = [text for name, text in texts() if name.startswith("notebooks/")]
    blocks = [block for text in pages for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    blocks = [block for block in blocks if not NEEDS_MORE.search(block)]
    assert len(blocks) > 3
    last = next(i for i, cell in enumerate(cells) if "total.result()" in cell)
    kernel = Kernel.of_notebook(tmp_path, tmp_path / "settings")
    try:
        replies = [kernel.run(cell) for cell in cells[: last + 1]]
        assert [one.message for one in replies] == [""] * len(replies)
        assert replies[last - 1].out.startswith("started 2 workers")
        assert replies[last].result == "25"
        assert kernel.run(OF_LIBRARIES).message == ""
        later = cells[last + 1 :] + blocks
        assert [kernel.run(cell).message for cell in later] == [""] * len(later)
    finally:
        kernel.run("%jug_stop --now")
        kernel.close()


def test_the_shell_lines_in_the_readme_install_it_in_an_environment_without_a_network(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("make ")]
    assert len(lines) == 2, "those of make are looked for by another test"
    checkout, environment = tmp_path / "checkout", tmp_path / "environment"
    wanted = ["git", "ls-files", "README.md", "LICENSE", "pyproject.toml", "jug_notebook", "kernel_ext"]
    for name in subprocess.check_output(wanted, cwd=ROOT, text=True).splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    there = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "there.pth").write_text("\n".join(there))  # what it depends on, so that nothing is fetched
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PATH": os.pathsep.join((f"{environment}/bin", os.path.dirname(sys.executable), os.environ["PATH"])),
        "PIP_PYTHON": f"{environment}/bin/python", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0",
        "XDG_CONFIG_HOME": str(tmp_path / "settings"),
    }  # fmt: skip
    for line in lines:
        ran = subprocess.run(line, shell=True, cwd=checkout, env=environ, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
    where = [f"{environment}/bin/python", "-c", "import jug_notebook; print(jug_notebook.__file__)"]
    found = subprocess.check_output(where, cwd=tmp_path, env=environ, text=True).strip()
    assert Path(found).is_relative_to(packages)
