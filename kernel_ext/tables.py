"""How tasks and crews show: collections of tasks as one table with counts, a crew as the live picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import jug_notebook as jn

FEW = 4  #: so many tasks in a plain list or dict still show one by one
GLANCE = 20  #: items looked at first: most collections hold no task, and are told by these
KINDS = (list, tuple, dict)
CREW = ("jug_notebook.launch", "Crew")


def tasks_only(collection: Any) -> jn.TaskList | None:
    """Its tasks, where it holds some and nothing else."""
    if type(collection) is jn.TaskList:
        return collection
    items: Iterable[Any] = collection.values() if isinstance(collection, dict) else collection
    if len(collection) <= FEW or not all(isinstance(item, jn.Handle) for item in islice(items, GLANCE)):
        return None
    return jn.TaskList(items) if all(isinstance(item, jn.Handle) for item in items) else None


def add(shell: Any, steady: Callable[[], bool], show_crew: Callable[[Any], None]) -> Callable[[], None]:
    """From now on tasks and crews show so; answers how to take that back.

    Where what is shown must be ``steady``, it is text without times.
    """
    formatters = shell.display_formatter.formatters
    plain, html = formatters["text/plain"], formatters["text/html"]
    before = {kind: plain.type_printers.get(kind) for kind in KINDS}

    def page(collection: Any) -> str | None:
        tasks = None if steady() else tasks_only(collection)
        return None if tasks is None else tasks.as_html(_labels(collection))

    for kind in KINDS:
        plain.for_type(kind, _printer(kind, before[kind], steady))
        html.for_type(kind, page)
    plain.for_type(jn.TaskList, _printer(jn.TaskList, None, steady))
    html.for_type(jn.TaskList, page)
    html.for_type(jn.Handle, lambda handle: None if steady() else handle._repr_html_())
    crews = shell.display_formatter.ipython_display_formatter
    crews.for_type_by_name(*CREW, show_crew)

    def remove() -> None:
        for kind, printer in before.items():
            html.pop(kind, None)
            if printer is None:
                plain.pop(kind, None)
            else:
                plain.for_type(kind, printer)
        plain.pop(jn.TaskList, None)
        html.pop(jn.TaskList, None)
        html.pop(jn.Handle, None)
        crews.pop(".".join(CREW), None)

    return remove


def _labels(collection: Any) -> Iterable[Any] | None:
    return collection if isinstance(collection, dict) else None


def _printer(kind: type, before: Any, steady: Callable[[], bool]) -> Callable[[Any, Any, bool], None]:
    def show(collection: Any, printer: Any, cycle: bool) -> None:
        tasks = None if cycle else tasks_only(collection)
        if tasks is not None:
            lines = tasks.as_text(_labels(collection), steady()).splitlines()
            for number, line in enumerate(lines):
                if number:
                    printer.break_()
                printer.text(line)
        elif before is not None:
            before(collection, printer, cycle)
        else:
            printer.text(repr(collection))

    return show
