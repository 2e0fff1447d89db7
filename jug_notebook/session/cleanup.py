"""Cleaning up: delete tasks that no notebook requests, and the blobs that only they had."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import ValueLost
from jug_notebook.model import Address, Key, Spec, State, TaskView
from jug_notebook.render import plural
from jug_notebook.render import size as size_text
from jug_notebook.store import Store, addresses_in
from jug_notebook.store.signed import template, unverified_spec
from jug_notebook.system import batched

BATCH = 1000  #: tasks read at once
YOUNG = 3600.0  #: seconds for which an unreferenced blob stays: a task that needs it may be on its way

Weight: TypeAlias = tuple[int, int]
"""Tasks, and the bytes of what is stored of them, blobs left out."""


class Cleaned(msgspec.Struct, frozen=True):
    """What a cleanup removed, or would remove; ``str`` lists it by function."""

    functions: dict[str, Weight] = {}
    blobs: int = 0
    size: int = 0  #: bytes, of tasks and blobs
    dry: bool = False  #: nothing was removed

    @property
    def tasks(self) -> int:
        return sum(tasks for tasks, _ in self.functions.values())

    def __str__(self) -> str:
        if not self.tasks and not self.blobs:
            return "nothing to clean up: all that is stored is in use"
        lines = []
        width = max(map(len, self.functions), default=0)
        for name, (tasks, size) in sorted(self.functions.items(), key=lambda item: -item[1][1]):
            lines.append(f"{name:<{width}}  {plural(tasks, 'task')}, {size_text(size)}")
        total = f"{'would remove' if self.dry else 'removed'} {plural(self.tasks, 'task')}"
        if self.blobs:
            total += f" and {plural(self.blobs, 'blob')}"
        return "\n".join([*lines, f"{total}, {size_text(self.size)}"])

    __repr__ = __str__


def clean(
    store: Store,
    now: float,
    among: Collection[Key] | None = None,
    older_than: float | None = None,
    keep: Iterable[Address] = (),
    dry: bool = False,
    clock: Clock = CLOCK,
) -> Cleaned:
    """Delete the tasks that are no longer needed, and the blobs that nothing refers to.

    A task is needed while it is requested or runs, and while another needed task depends on it or reuses its result.
    ``among``: consider only these tasks; ``older_than``: only tasks made and run, and blobs written, more than this
    many seconds ago (default: all tasks, and blobs older than an hour); ``keep``: blobs that are needed although
    nothing stored refers to them; ``dry``: delete nothing. Return what was deleted, or would be.
    """
    began = clock.monotonic()
    views = {view.key: view for view in store.tasks()}
    needed = _needed(store, views)
    going = [key for key in views if key not in needed and (among is None or key in among)]
    if older_than is not None:
        going = [key for key in going if not _is_young(views[key], now - older_than)]
        made = dict(_made(store, going))
        going = [key for key in going if made.get(key, 0.0) < now - older_than]
    gone = set(going)
    kept = {*keep, *_addresses(store, [key for key in views if key not in gone])}
    again = gone & _needed(store, views)  # requested meanwhile
    if again:
        going = [key for key in going if key not in again]
        kept |= _addresses(store, list(again))
    functions: dict[str, Weight] = {}
    for part in batched(going, BATCH):
        for key, bytes_of in zip(part, _weights(store, part), strict=True):
            tasks, size = functions.get(views[key].name, (0, 0))
            functions[views[key].name] = tasks + 1, size + bytes_of
    took = clock.monotonic() - began  # a blob stored meanwhile may belong to a task that was not read
    report = store.sweep(going, kept, max(YOUNG if older_than is None else older_than, took), dry)
    if report.tasks and not dry:
        store.compact()
    return Cleaned(functions, report.blobs, report.size, dry)


def _needed(store: Store, views: dict[Key, TaskView]) -> set[Key]:
    found: set[Key] = {key for key, view in views.items() if view.state is State.RUNNING}
    for origin in store.origins():
        found.update(store.requested(origin))
    row = [key for key in found if key in views]
    while row:
        following: dict[Key, None] = {}
        for part in batched(row, BATCH):
            for spec in _specs(store, part):
                following.update(dict.fromkeys(() if spec is None else spec.needs))
        row = [key for key in following if key in views and key not in found]
        found.update(row)
    return found | {views[key].source for key in found if key in views and views[key].source}


def _is_young(view: TaskView, since: float) -> bool:
    return view.started + view.duration >= since


def _made(store: Store, keys: Sequence[Key]) -> Iterator[tuple[Key, float]]:
    for part in batched(keys, BATCH):
        for key, spec in zip(part, _specs(store, part), strict=True):
            if spec is not None:
                yield key, spec.made


def _specs(store: Store, keys: Sequence[Key]) -> list[Spec | None]:
    """Return specs without checking their signatures (nothing of them is run or displayed); None for damaged ones."""
    found: list[Spec | None] = []
    for body in store.specs(keys):
        try:
            found.append(None if body is None else unverified_spec(body))
        except msgspec.MsgspecError:
            found.append(None)
    return found


def _addresses(store: Store, keys: Sequence[Key]) -> set[Address]:
    """Return the blobs of tasks: results, displays, arguments, functions, and the modules that came with these."""
    found: set[Address] = set()
    read: set[bytes] = set()
    for part in batched(keys, BATCH):
        for body, spec in zip(store.specs(part), _specs(store, part), strict=True):
            found |= addresses_in(body or b"")
            if spec is not None and spec.template not in read:
                read.add(spec.template)
                found |= _modules(store, spec.template)
        for held in store.outcomes(part):
            if held is not None:
                found |= addresses_in(held.body)
    return found


def _modules(store: Store, data: bytes) -> set[Address]:
    """Return the blobs of the modules that came with a function."""
    try:
        return addresses_in(store.get_blob(template(data).bundle))
    except (ValueLost, msgspec.MsgspecError):
        return set()


def _weights(store: Store, keys: Sequence[Key]) -> list[int]:
    specs, helds = store.specs(keys), store.outcomes(keys)
    return [
        len(spec or b"") + (len(held.body) if held is not None and held.verdict.key == key else 0)
        for key, spec, held in zip(keys, specs, helds, strict=True)
    ]
