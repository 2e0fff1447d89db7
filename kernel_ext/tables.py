"""A list, tuple or dict of tasks shows as one table with counts, however long it is; all others as they always did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import jug_notebook as jn

FEW = 4  #: so many tasks still show one by one
GLANCE = 20  #: items looked at first: most collections hold no task, and are told by these
KINDS = (list, tuple, dict)


def tasks_only(collection: Any) -> jn.TaskList | None:
    """Its tasks, where it holds some and nothing else."""
    items: Iterable[Any] = collection.values() if isinstance(collection, dict) else collection
    if len(collection) <= FEW or not all(isinstance(item, jn.Handle) for item in islice(items, GLANCE)):
        return None
    return jn.TaskList(items) if all(isinstance(item, jn.Handle) for item in items) else None


def add(shell: Any) -> Callable[[], None]:
    """From now on such collections show as tables; answers how to take that back."""
    formatters = shell.display_formatter.formatters
    plain, html = formatters["text/plain"], formatters["text/html"]
    before = {kind: plain.type_printers.get(kind) for kind in KINDS}
    for kind in KINDS:
        plain.for_type(kind, _printer(kind, before[kind]))
        html.for_type(kind, _page)

    def remove() -> None:
        for kind, printer in before.items():
            html.pop(kind, None)
            if printer is None:
                plain.pop(kind, None)
            else:
                plain.for_type(kind, printer)

    return remove


def _printer(kind: type, before: Any) -> Callable[[Any, Any, bool], None]:
    def show(collection: Any, printer: Any, cycle: bool) -> None:
        tasks = None if cycle else tasks_only(collection)
        if tasks is not None:
            names = f" {', '.join(map(repr, islice(collection, 3)))}, …" if kind is dict else ""
            printer.text(f"{kind.__name__}{names} {tasks!r}")
        elif before is not None:
            before(collection, printer, cycle)
        else:
            printer.text(repr(collection))

    return show


def _page(collection: Any) -> str | None:
    tasks = tasks_only(collection)
    return None if tasks is None else tasks._repr_html_()
