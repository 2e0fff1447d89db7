"""Find the tasks that a target means: an expression that gives tasks, a function name, the start of a key, /regex/."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from jug_notebook import frames
from jug_notebook.errors import NoSuchTask
from jug_notebook.model import FunctionView, Key, Scope, State, Target, TaskView
from jug_notebook.session.access import StoreAccess
from jug_notebook.store import Store
from jug_notebook.store.signed import SignedReader
from jug_notebook.task import TaskFunction
from jug_notebook.task.values import listed, tasks_in

_CONTAINERS = (list, tuple, set, frozenset, dict)
_KEY = re.compile(r"[0-9a-f]{6,40}")  #: could be the beginning of a key, as tables show it


class TargetResolver:
    """Finds the tasks of a session's notebook that targets mean. ``flush`` submits pending tasks."""

    def __init__(self, access: StoreAccess, flush: Callable[[], None]) -> None:
        self._access = access
        self.flush = flush

    def keys(self, target: Any, namespace: Mapping[str, Any] | None = None, all: bool = False) -> list[Key]:
        """Return the keys that a target means: see `keys_of`. With ``all``, names mean tasks of the whole store."""
        self.flush()
        keys = keys_of(target, self._access.store, self._access.scope_of(all), namespace)
        self.flush()  # the expression may have made some
        return keys

    def target(self, target: Any, namespace: Mapping[str, Any] | None = None) -> Target:
        """Return the same as a `Target`, in which a function means its future tasks, too."""
        if isinstance(target, Target):
            return target
        if isinstance(target, TaskFunction):
            return Target(names=frozenset([target.name]))
        if isinstance(target, str) and self._access.store.keys_named(target, self._access.scope):
            return Target(names=frozenset([target]))
        return Target(keys=frozenset(self.keys(target, namespace)))


def keys_of(target: Any, store: Store, scope: Scope, namespace: Mapping[str, Any] | None = None) -> list[Key]:
    """Return the tasks that a target means, each once. Raises NoSuchTask, which suggests similar names.

    Tried in this order: an object (tasks, whatever holds tasks, a task function, a `Target`); a Python expression
    that gives one, in ``namespace``; the name of a function with tasks in ``scope``; the beginning of a key as tables
    show it; /regex/ over names.
    """
    if isinstance(target, Target):
        named = [key for name in sorted(target.names) for key in store.keys_named(name, scope)]
        return list(dict.fromkeys([*sorted(target.keys), *named]))
    if not isinstance(target, str):
        return _of_object(target, store, scope)
    text = target.strip()
    if namespace is not None:
        found = _evaluated(text, namespace)
        if found is not None:
            return _of_object(found, store, scope)
    keys = store.keys_named(text, scope)
    if keys:
        return keys
    if _KEY.fullmatch(text):
        keys = store.keys_starting(text)
        if keys:
            return keys
    names = names_in(store, scope)
    if len(text) > 2 and text[0] == text[-1] == "/":
        keys = [key for name in _matching(text[1:-1], names) for key in store.keys_named(name, scope)]
        if keys:
            return keys
    raise NoSuchTask(_nothing(text, names, namespace))


def names_in(store: Store, scope: Scope) -> list[str]:
    """Return the functions that have tasks."""
    return [function.name for function in store.snapshot(scope).functions]


def with_needs(target: Target, scope: Scope, store: Store, signed: SignedReader) -> list[TaskView]:
    """Return the tasks that a target means, and all that these need and that it doesn't exclude."""
    row: Sequence[Key] = [view.key for view in store.tasks(scope, target)]
    found = dict.fromkeys(row)
    while row:
        needs: Iterable[Key] = (need for spec in signed.specs(row) if spec is not None for need in spec.needs)
        row = [need for need in dict.fromkeys(needs) if need not in found]
        if row and (target.not_names or target.not_keys):
            some = msgspec.structs.replace(target, names=frozenset(), keys=frozenset(row))
            row = [view.key for view in store.tasks(target=some)]
        found.update(dict.fromkeys(row))
    return [view for view in store.tasks(target=Target(keys=frozenset(found))) if view.key in found]


def graph_of(
    target: Target, scope: Scope, store: Store, signed: SignedReader
) -> tuple[tuple[FunctionView, ...], tuple[tuple[str, str, int], ...]]:
    """Return (functions, edges) of the tasks that a target means and all that these need.

    An edge is (function, function that it needs, number of needs).
    """
    known = {view.name: view for view in store.snapshot().functions}
    tasks = with_needs(target, scope, store, signed)
    names = {task.key: task.name for task in tasks}
    rows: dict[str, Counter[State]] = {}
    edges: Counter[tuple[str, str]] = Counter()
    for task, spec in zip(tasks, signed.specs([task.key for task in tasks]), strict=True):
        rows.setdefault(task.name, Counter())[task.state] += 1
        for need in () if spec is None else spec.needs:
            if need in names:
                edges[task.name, names[need]] += 1
    new = FunctionView("", {})
    found = [(known.get(name, new), name, dict(counts)) for name, counts in rows.items()]
    functions = tuple(FunctionView(name, counts, view.mean, limits=view.limits) for view, name, counts in found)
    return functions, tuple((name, need, count) for (name, need), count in edges.items())


def _of_object(target: Any, store: Store, scope: Scope) -> list[Key]:
    if isinstance(target, TaskFunction):
        keys = store.keys_named(target.name, scope)
        if not keys:
            raise NoSuchTask(f"{target.name} has no tasks yet; call it to make some")
        return keys
    target = listed(target)
    keys = list(dict.fromkeys(handle.key for handle in tasks_in(_listed(target))))
    if not keys and not (isinstance(target, _CONTAINERS) and not target):
        raise NoSuchTask(f"{type(target).__name__} {target!r:.60} holds no task")
    return keys


def _listed(target: Any) -> Any:
    return target if isinstance(target, _CONTAINERS) else [target]


def _evaluated(text: str, namespace: Mapping[str, Any]) -> Any:
    """Return the value of an expression; None where it isn't one, or holds no tasks."""
    try:
        code = compile(text, frames.TARGET, "eval")
    except (SyntaxError, ValueError):
        return None
    try:
        found = eval(code, dict(namespace))
    except NameError:
        return None
    if isinstance(found, TaskFunction) or tasks_in(_listed(found)):
        return found
    return [] if isinstance(found, _CONTAINERS) and not found else None


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise NoSuchTask(f"/{pattern}/ is not a regular expression: {error}") from None
    return [name for name in names if wanted.search(name)]


def _nothing(text: str, names: list[str], namespace: Mapping[str, Any] | None) -> str:
    import difflib

    held = [name for name, value in (namespace or {}).items() if name[:1] != "_" and _is_target(value)]
    near = difflib.get_close_matches(text, dict.fromkeys([*names, *held]), n=3, cutoff=0.5)
    if near:
        return f"no task {text!r}; did you mean {' or '.join(near)}?"
    return f"no task {text!r}. " + (f"There are tasks of {', '.join(names[:10])}" if names else "There are none yet")


def _is_target(value: Any) -> bool:
    return isinstance(value, TaskFunction) or bool(tasks_in(_listed(value)))
