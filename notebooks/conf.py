"""How Sphinx makes the manual: the notebooks as they are saved, and a reference that is read off the code.

``make docs`` writes it to ``.docs/html``. Comments like ``<!-- magics -->`` in the pages of ``reference`` are replaced
by what the code has, so that no page can be out of date.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import jug_notebook
from jug_notebook import cli
from kernel_ext.magics import JugMagics
from kernel_ext.script_magics import ScriptMagics
from kernel_ext.task_magics import TaskMagics
from kernel_ext.worker_magics import WorkerMagics

os.environ["COLUMNS"] = "100"  # the width of argparse's helps

project = "jug_notebook"
version = release = jug_notebook.__version__
author = copyright = "the authors of jug_notebook"
extensions = ["sphinx.ext.autodoc", "myst_nb"]
exclude_patterns = ["data", "conf.py", ".ipynb_checkpoints", "jugdata"]
default_role = "code"
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # our messages in a traceback are no Python

nb_execution_mode = "off"  # `make notebooks` runs them and compares; the site shows what is saved
nb_ipywidgets_js: dict[str, Any] = {}  # widgets need a kernel; each has HTML beside it
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "jug_notebook"
html_copy_source = False
html_show_sphinx = False

#: Kinds of public names, with their titles and the options of their directives.
KINDS = {
    "function": ("Functions", ""),
    "data": ("What a task can ask", ""),
    "class": ("Classes", "\n   :members:\n   :inherited-members: object, tuple, list, str, Enum, Executor"),
    "exception": ("Errors and warnings", ""),
    "module": ("Modules", "\n   :members:"),
}


def magics() -> dict[str, Any]:
    """Return the function of each magic by its name as typed: "%jug_status", "%%jugtask"."""
    found = {}
    for kind in (JugMagics, TaskMagics, WorkerMagics, ScriptMagics):
        for sign, names in (("%", kind.magics["line"]), ("%%", kind.magics["cell"])):
            found |= {sign + name: getattr(kind, method) for name, method in names.items()}
    return found


def _magics() -> Iterator[str]:
    for name, magic in magics().items():
        text = dedent(magic.parser.format_help().removeprefix("::\n").strip("\n"))
        yield f"## {name}\n\n```text\n{text}\n```\n"


def _commands() -> Iterator[str]:
    for name, command in cli.commands().items():
        yield f"## jug-notebook {name}\n\n```text\n{cli.Parser(name, command).format_help()}```\n"


def _names() -> Iterator[str]:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in sorted(jug_notebook.__all__, key=str.lower):
        found[_kind(getattr(jug_notebook, name))].append(name)
    for kind, (title, options) in KINDS.items():
        yield f"## {title}\n"
        yield from (f"```{{eval-rst}}\n.. auto{kind}:: jug_notebook.{name}{options}\n```\n" for name in found[kind])


def _kind(value: object) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "module" if inspect.ismodule(value) else "function" if inspect.isroutine(value) else "data"


def _traits() -> Iterator[str]:
    yield "| trait | default | what it does |\n|---|---|---|"
    for name, trait in JugMagics.class_own_traits(config=True).items():
        yield f"| `JugMagics.{name}` | `{trait.default_value!r}` | {trait.help} |"


PARTS = {"magics": _magics, "commands": _commands, "names": _names, "traits": _traits}


def fill_in(app: Any, page: str, source: list[str]) -> None:
    """Replace ``<!-- magics -->`` and the like in a page's text by what the code has."""
    source[0] = re.sub(r"<!-- (\w+) -->", lambda found: "\n".join(PARTS[found[1]]()), source[0])


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("source-read", fill_in)
