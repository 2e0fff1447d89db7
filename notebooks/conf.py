"""How Sphinx makes the manual: the notebooks as they are saved, and a reference that is made from the code.

``make docs`` writes it to ``.docs/html``. Comments like ``<!-- magics -->`` in the pages of ``reference`` are replaced
by what the code has, so that these pages are never out of date.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from inspect import cleandoc
from textwrap import dedent
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from IPython.lib.lexers import IPython3Lexer
from pygments.lexer import bygroups, using
from pygments.token import Keyword, Operator, Text
from sphinx.pycode import ModuleAnalyzer

import jug_notebook
from jug_notebook import cli
from jug_notebook.cli import mcp, mcp_tools
from kernel_ext.magics import JugMagics
from kernel_ext.script_magics import ScriptMagics
from kernel_ext.task_magics import TaskMagics
from kernel_ext.worker_magics import WorkerMagics

project = "jug_notebook"
version = release = jug_notebook.__version__
author = copyright = "the authors of jug_notebook"
extensions = ["sphinx.ext.autodoc", "myst_nb"]
exclude_patterns = ["data", "**/.ipynb_checkpoints", "**/jugdata"]
default_role = "code"
smartquotes_action = "qe"  # the two dashes of an option stay
add_module_names = False
myst_enable_extensions = ["deflist"]
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
html_theme_options = {"dark_css_variables": {"mystnb-source-border-color": "#444"}}

#: Methods of public classes that are there for the rest of the package.
INTERNAL = """
begin_cell end_cell made needs url_with_password examine hidden in_chunks pending take_part options function submit_task
take count index
"""
BASES = "Handle, File, object, tuple, list, dict, str, Enum, Executor, Future, Struct"
MEMBERS = f"\n   :members:\n   :inherited-members: {BASES}\n   :exclude-members: {', '.join(INTERNAL.split())}"

#: Kinds of public names, with their titles and the options of their directives.
KINDS = {
    "function": ("Functions", ""),
    "data": ("Others", ""),
    "class": ("Classes", MEMBERS + "\n   :show-inheritance:"),
    "exception": ("Errors and warnings", "\n   :show-inheritance:"),
    "module": ("Modules", "\n   :members:"),
}

#: What can't be found by the annotations of functions: attributes, and what is imported for types alone.
RETURNED = {"launch.Crew", "model.views.Snapshot", "render.display.Rows", "session.rerun.Difference"}

nitpicky = True
nitpick_ignore_regex = [  # other manuals need a network; type variables; what stays within the package
    (
        "py:.*",
        r"(msgspec|collections|concurrent|pathlib|os|typing|types|enum|abc)\..*|Path|Key|PendingTask|.*\.T|dict\[.*",
    ),
    ("py:.*", r"jug_notebook\.(model|clock|worker|store|launch|task\.checkpoints\.Keeper).*"),
]
autodoc_type_aliases = {"Crew": "jug_notebook.launch.Crew"}


class CellLexer(IPython3Lexer):  # type: ignore[misc]
    """Colours the Python below ``%%jugtask`` and ``%%writefile``, too."""

    tokens: ClassVar[dict[str, Any]] = {
        **IPython3Lexer.tokens,
        "root": [
            (
                r"(?s)(\s*)(%%)(jugtask|writefile)([^\n]*\n)(.*)",
                bygroups(Text, Operator, Keyword, Text, using(IPython3Lexer)),
            ),
            *IPython3Lexer.tokens["root"],
        ],
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
        yield f"## {name}\n"
        yield from _text(magic.parser.description)
        yield from _options(magic.parser)


def _commands() -> Iterator[str]:
    for name, command in cli.commands().items():
        parser = cli.Parser(name, command)
        yield f"## jug-notebook {name}\n\n{command.help[0].upper()}{command.help[1:]}.\n"
        declared = [_takes(parser, each) for each in parser._get_positional_actions() if each.dest != "words"]
        yield f"```sh\n{' '.join(filter(None, ['jug-notebook', name, '[OPTIONS]', *declared, command.words]))}\n```\n"
        yield from _options(parser)
        yield from _text(parser.epilog or "")


def _text(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help; those of lines to be typed, which have % in front or are indented, as code."""
    for paragraph in cleandoc(text).split("\n\n"):
        lines = paragraph.splitlines()
        is_code = bool(lines) and all(line.startswith(("%", "    ")) for line in lines)
        yield f"```ipython\n{dedent(paragraph)}\n```\n" if is_code else f"{_escaped(paragraph)}\n"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a list of a parser's arguments, a definition each."""
    for group in parser._action_groups:
        actions = [
            each
            for each in group._group_actions
            if each.help and each.dest != "help" and each.help != argparse.SUPPRESS
        ]
        if group.title not in (None, "options", "positional arguments") and actions:
            yield f"{group.title[0].upper()}{group.title[1:]}:\n"
        for action in actions:
            takes = _takes(parser, action)
            ways = [f"`{option} {takes}`" if action.nargs != 0 else f"`{option}`" for option in action.option_strings]
            yield f"{', '.join(ways) or f'`{takes}`'}\n: {_escaped(action.help % vars(action))}\n"


def _takes(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return what an argument takes, as argparse writes it: "N", "[TARGET ...]"."""
    return parser._get_formatter()._format_args(action, action.dest.upper())


def _escaped(text: str) -> str:
    return re.sub(r"([*_<`$|\[\]])", r"\\\1", text)


def _names() -> Iterator[str]:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in sorted(jug_notebook.__all__, key=str.lower):
        found[_kind(getattr(jug_notebook, name))].append(name)
    for kind, (title, options) in KINDS.items():
        yield f"## {title}\n"
        yield from (_directive(kind, name, options) for name in found[kind])
    yield "## What they return\n"
    yield from (_directive("class", name, MEMBERS) for name in sorted(RETURNED | set(_returned()), key=str.lower))


def _comment(name: str) -> str:
    """Return what is said of a variable beside it, in the module of `jug_notebook.task` that makes it."""
    modules = [
        ModuleAnalyzer.for_module(module) for module in list(sys.modules) if module.startswith("jug_notebook.task.")
    ]
    return next(" ".join(docs) for docs in (one.find_attr_docs().get(("", name)) for one in modules) if docs)


def _returned() -> Iterator[str]:
    """Yield the classes that public functions and methods return and that have no public name."""
    public = [getattr(jug_notebook, name) for name in jug_notebook.__all__]
    methods = [value for kind in public if inspect.isclass(kind) for name, value in vars(kind).items() if _shown(name)]
    for function in filter(inspect.isfunction, [*public, *methods]):
        with suppress(NameError):  # imported for types alone
            hint = get_type_hints(function).get("return")
            for kind in (hint, get_origin(hint), *get_args(hint)):
                if inspect.isclass(kind) and kind.__module__.startswith("jug_notebook.") and kind not in public:
                    yield f"{kind.__module__}.{kind.__qualname__}".removeprefix("jug_notebook.")


def _shown(name: str) -> bool:
    return not name.startswith("_") and name not in INTERNAL.split()


def _directive(kind: str, name: str, options: str) -> str:
    if kind == "data":
        return f"```{{eval-rst}}\n.. py:data:: jug_notebook.{name}\n\n   {_comment(name)}\n```\n"
    return f"```{{eval-rst}}\n.. auto{kind}:: jug_notebook.{name}{options}\n```\n"


def _kind(value: object) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "module" if inspect.ismodule(value) else "function" if inspect.isroutine(value) else "data"


def _traits() -> Iterator[str]:
    yield "| trait | default | what it does |\n|---|---|---|"
    for name, trait in JugMagics.class_traits(config=True).items():
        yield f"| `JugMagics.{name}` | `{trait.default()!r}` | {trait.help} |"


def _tools() -> Iterator[str]:
    for name in [*mcp.TOOLS, "wait"]:
        text = mcp.WAIT if name == "wait" else getattr(mcp_tools.Submitting, name).__doc__
        yield f"`{name}`\n: {' '.join(cleandoc(text).split())}\n"


PARTS = {"magics": _magics, "commands": _commands, "names": _names, "traits": _traits, "tools": _tools}


def fill_in(app: Any, page: str, source: list[str]) -> None:
    """Replace ``<!-- magics -->`` and the like in a page's text by what the code has."""
    source[0] = re.sub(r"<!-- (\w+) -->", lambda found: "\n".join(PARTS[found[1]]()), source[0])


def sign(app: Any, what: str, name: str, value: Any, options: Any, signature: str, returned: Any) -> Any:
    """Leave out how the classes are made that nobody makes."""
    return ("", None) if what == "class" and name.count(".") > 1 else None


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.add_lexer("ipython3", CellLexer)
    app.add_lexer("ipython", CellLexer)
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-signature", sign)
