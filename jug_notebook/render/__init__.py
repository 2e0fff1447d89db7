"""What people see: snapshots, lists of tasks, graphs and failures as text, static HTML, SVG and plain data. Pure.

Long lists are cut, and say by how much; what a task wrote is cleaned and, in HTML, escaped.
"""

from jug_notebook.render.format import ago, duration, elide_columns, plural, size
from jug_notebook.render.graph import graph_html, graph_text, svg
from jug_notebook.render.html import (
    CLASSES,
    STYLESHEET,
    advice_html,
    failure_html,
    failures_html,
    functions_html,
    head_html,
    html,
    page,
    story_html,
    workers_html,
)
from jug_notebook.render.outputs import base64_of, origin_text, outputs_html, outputs_text
from jug_notebook.render.summary import (
    FAILURES,
    SHELL,
    TASKS,
    call,
    failure_kinds,
    kinds,
    pattern,
    plain,
)
from jug_notebook.render.tasks import (
    LISTED,
    NEEDS,
    Item,
    history_html,
    history_text,
    list_html,
    list_text,
    preformatted,
    states_text,
    task_html,
    tasks_html,
    tasks_text,
)
from jug_notebook.render.text import failure_text, short, text
from jug_notebook.render.why import why_html, why_text

__all__ = [
    "CLASSES",
    "FAILURES",
    "LISTED",
    "NEEDS",
    "SHELL",
    "STYLESHEET",
    "TASKS",
    "Item",
    "advice_html",
    "ago",
    "base64_of",
    "call",
    "duration",
    "elide_columns",
    "failure_html",
    "failure_kinds",
    "failure_text",
    "failures_html",
    "functions_html",
    "graph_html",
    "graph_text",
    "head_html",
    "history_html",
    "history_text",
    "html",
    "kinds",
    "list_html",
    "list_text",
    "origin_text",
    "outputs_html",
    "outputs_text",
    "page",
    "pattern",
    "plain",
    "plural",
    "preformatted",
    "short",
    "size",
    "states_text",
    "story_html",
    "svg",
    "task_html",
    "tasks_html",
    "tasks_text",
    "text",
    "why_html",
    "why_text",
    "workers_html",
]
