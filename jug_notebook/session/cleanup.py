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
    """What a cleanup removed, or would remove. Its text lists it by function."""

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
    """Forget the tasks that nobody wants, and remove the blobs that nothing mentions any more.

    A task is wanted while a wish for it stands, or while a wanted one needs it or has taken over its run. ``among``:
    only these tasks; ``older_than``: only those made and run before so many seconds, and blobs as old, instead of all
    tasks and blobs of an hour ago; ``keep``: blobs that are needed although nothing stored mentions them.
    """
    began = clock.monotonic()
    views = {view.key: view for view in store.tasks()}
    stays = _wanted(store, views)
    going = [key for key in views if key not in stays and (among is None or key in among)]
    if older_than is not None:
        going = [key for key in going if not _is_young(views[key], now - older_than)]
        made = dict(_made(store, going))
        going = [key for key in going if made.get(key, 0.0) < now - older_than]
    gone = set(going)
    kept = {*keep, *_mentioned(store, [key for key in views if key not in gone])}
    again = gone & _wanted(store, views)  # by somebody, while all that was looked through
    if again:
        going = [key for key in going if key not in again]
        kept |= _mentioned(store, list(again))
    functions: dict[str, Weight] = {}
    for part in batched(going, BATCH):
        for key, bytes_of in zip(part, _weights(store, part), strict=True):
            tasks, size = functions.get(views[key].name, (0, 0))
            functions[views[key].name] = tasks + 1, size + bytes_of
    looked = clock.monotonic() - began  # what was put meanwhile we can't have seen mentioned
    report = store.sweep(going, kept, max(YOUNG if older_than is None else older_than, looked), dry)
    if report.tasks and not dry:
        store.compact()
    return Cleaned(functions, report.blobs, report.size, dry)


def _wanted(store: Store, views: dict[Key, TaskView]) -> set[Key]:
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
    """Unproven: nothing is run or shown of them, and one that is damaged keeps nobody from cleaning up."""
    found: list[Spec | None] = []
    for body in store.specs(keys):
        try:
            found.append(None if body is None else unverified_spec(body))
        except msgspec.MsgspecError:
            found.append(None)
    return found


def _mentioned(store: Store, keys: Sequence[Key]) -> set[Address]:
    """The blobs of what stays: results, displays, arguments, functions, and the modules that came with these."""
    found: set[Address] = set()
    looked: set[bytes] = set()
    for part in batched(keys, BATCH):
        for body, spec in zip(store.specs(part), _specs(store, part), strict=True):
            found |= addresses_in(body or b"")
            if spec is not None and spec.template not in looked:
                looked.add(spec.template)
                found |= _modules(store, spec.template)
        for held in store.outcomes(part):
            if held is not None:
                found |= addresses_in(held.body)
    return found


def _modules(store: Store, data: bytes) -> set[Address]:
    """A function's blob mentions those of the modules that came with it."""
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
