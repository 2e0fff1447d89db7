"""What people mean by a target: an expression that gives tasks, a function's name, a key's beginning, or /regex/."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jug_notebook.errors import NoSuchTask
from jug_notebook.model import Key, Scope, Target
from jug_notebook.store import Store
from jug_notebook.task import TaskFunction
from jug_notebook.task.values import tasks_in

_KEY = re.compile(r"[0-9a-f]{6,40}")  #: could be the beginning of a key, as tables show it


def keys_of(target: Any, store: Store, scope: Scope, namespace: Mapping[str, Any] | None = None) -> list[Key]:
    """The tasks that are meant, each once. Raises NoSuchTask, which names what comes near.

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
        keys = [view.key for view in store.tasks() if view.key.startswith(text)]
        if keys:
            return keys
    names = names_in(store, scope)
    if len(text) > 2 and text[0] == text[-1] == "/":
        keys = [key for name in _matching(text[1:-1], names) for key in store.keys_named(name, scope)]
        if keys:
            return keys
    raise NoSuchTask(_nothing(text, names, namespace))


def names_in(store: Store, scope: Scope) -> list[str]:
    """The functions that have tasks."""
    return [function.name for function in store.snapshot(scope).functions]


def _of_object(target: Any, store: Store, scope: Scope) -> list[Key]:
    if isinstance(target, Target):
        return [view.key for view in store.tasks(target=target)]
    if isinstance(target, TaskFunction):
        keys = store.keys_named(target.name, scope)
        if not keys:
            raise NoSuchTask(f"{target.name} has no tasks yet; call it to make some")
        return keys
    keys = list(dict.fromkeys(handle.key for handle in tasks_in(_listed(target))))
    if not keys and not (isinstance(target, list | tuple | set | frozenset | dict) and not target):
        raise NoSuchTask(f"{type(target).__name__} {target!r:.60} holds no task")
    return keys


def _listed(target: Any) -> Any:
    return target if isinstance(target, list | tuple | set | frozenset | dict) else [target]


def _evaluated(text: str, namespace: Mapping[str, Any]) -> Any:
    """The expression's value; None where it isn't one, or means nothing here."""
    try:
        code = compile(text, "<target>", "eval")
    except (SyntaxError, ValueError):
        return None
    try:
        found = eval(code, dict(namespace))
    except NameError:
        return None
    if isinstance(found, TaskFunction) or tasks_in(_listed(found)):
        return found
    return [] if isinstance(found, list | tuple | set | frozenset | dict) and not found else None


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise NoSuchTask(f"/{pattern}/ is no regular expression: {error}") from None
    return [name for name in names if wanted.search(name)]


def _nothing(text: str, names: list[str], namespace: Mapping[str, Any] | None) -> str:
    import difflib

    held = [name for name, value in (namespace or {}).items() if not name.startswith("_") and _is_target(value)]
    near = difflib.get_close_matches(text, dict.fromkeys([*names, *held]), n=3, cutoff=0.5)
    if near:
        return f"no task {text!r}; did you mean {' or '.join(near)}?"
    return f"no task {text!r}. " + (f"There are tasks of {', '.join(names[:10])}" if names else "There are none yet")


def _is_target(value: Any) -> bool:
    return isinstance(value, TaskFunction) or bool(tasks_in(_listed(value)))
