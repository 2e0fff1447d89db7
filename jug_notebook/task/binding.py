"""How the calls of a function are bound: what its signature depends on, its name, and what can't be a task."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import AsyncIterable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from jug_notebook import codec
from jug_notebook.errors import BadTask
from jug_notebook.keys import digest
from jug_notebook.keys.callables import CACHED
from jug_notebook.keys.modules import scripts
from jug_notebook.render.format import near
from jug_notebook.task import checkpoints
from jug_notebook.task import context as context
from jug_notebook.task.context import SessionProtocol
from jug_notebook.task.values import tasks_in

WORKING_FOLDER = "(working folder)"  #: stands among the arguments where it isn't the notebook's folder
_LAZY = frozenset({types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType})
_SMALL = frozenset({int, float, bool, type(None)})

FOR_JOBLIB = (
    "{0} is a task function, and joblib's Parallel runs plain functions: write {0}.map(xs).result() instead, or keep "
    'Parallel and delayed({0}.run), and run them on workers: with joblib.parallel_config("jug_notebook"): …'
)


class _Sentinel:
    """Stands in a key for a default ``object()``: which object it is counts as part of the code."""

    def __jug_hash__(self) -> str:
        return ""


_SENTINEL = _Sentinel()


def default_value(value: Any) -> Any:
    """Return what stands for a parameter's default in a key."""
    return _SENTINEL if type(value) is object else value


def bound_by(function: Callable[..., Any]) -> list[Any]:
    """Return what a plain function's signature depends on."""
    found = [getattr(function, "__code__", None), *(getattr(function, "__defaults__", None) or ())]
    return [*found, *(getattr(function, "__kwdefaults__", None) or {}).values()]


def is_wrapper(function: Any) -> bool:
    """Does it have the signature of something that it wraps?"""
    if isinstance(function, functools.partial):
        return is_wrapper(function.func)
    if isinstance(function, CACHED):
        return is_wrapper(function.__wrapped__)
    called = [function, type(function).__call__]
    if isinstance(function, type):
        called += [getattr(function, name) for name in ("__init__", "__new__")]
    return any(hasattr(one, "__wrapped__") or hasattr(one, "__signature__") for one in called)


def name_of(function: Callable[..., Any]) -> str:
    """Return the qualified name for tasks of a function; without the module in notebooks and scripts."""
    name: str = getattr(function, "__qualname__", None) or type(function).__qualname__
    name = name.replace(".<locals>.", ".").replace("<lambda>", "lambda")
    module = getattr(function, "__module__", None)
    return name if module in (None, "builtins") or module in scripts else f"{module}.{name}"


def run_to_end(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function; return what an async one comes to, and the list of what a generator yields.

    A generator that a plain function returns stays one: whether it should be read is for the function to say.
    """
    value = function(*args, **kwargs)
    if type(value) not in _LAZY:
        return value
    if inspect.isgenerator(value):
        return _collected(value) if _is(inspect.isgeneratorfunction, function) else value
    if inspect.iscoroutine(value) and _is(inspect.iscoroutinefunction, function):
        return _awaited(value)
    return _awaited(_listed(value)) if _is(inspect.isasyncgenfunction, function) else value


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    """Return whether a function, or one that it wraps, is of a kind."""
    return kind(inspect.unwrap(function)) or kind(getattr(function, "__call__", None))  # noqa: B004


def _collected(values: Iterable[Any]) -> list[Any]:
    """Return what a generator yields; in a task, whoever reads along gets it as it comes."""
    keeper = checkpoints.keeper()
    if keeper is None:
        return list(values)
    with keeper.collector() as found:
        for value in values:
            found.append(value)
        return found.values


async def _listed(values: AsyncIterable[Any]) -> list[Any]:
    keeper = checkpoints.keeper()
    if keeper is None:
        return [value async for value in values]
    with keeper.collector() as found:
        async for value in values:
            found.append(value)
        return found.values


def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine comes to. Where a loop runs already, as in a notebook, it runs in one beside that."""
    import asyncio  # costs as much to import as all the rest
    from concurrent.futures import ThreadPoolExecutor

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(context.owned(asyncio.run), coroutine).result()


def listed_option(option: str, given: Any) -> tuple[Any, ...]:
    """Return the names in an option, one of which may stand alone. Raises BadTask."""
    several = isinstance(given, Iterable) and not isinstance(given, Mapping)
    listed = (given,) if isinstance(given, str) else tuple(given) if several else (None,)
    if all(isinstance(one, str) for one in listed) or (option == "depends" and listed != (None,)):
        return listed
    what = "functions and values" if option == "depends" else "names"
    raise BadTask(f"{option}={given!r:.60}: give a list of {what}")


def in_folder(named: list[tuple[str, Any]], away: str) -> list[tuple[str, Any]]:
    """Return what a key covers of a call that is made in another working folder, where relative paths differ."""
    return [*named, (WORKING_FOLDER, away)] if away else named


def shared_constants(
    ignored: Collection[str], constants: Mapping[str, Any], session: SessionProtocol
) -> dict[str, Any]:
    """Return what stands for each large constant in every call. They are hashed here, and remembered."""
    shared: dict[str, Any] = {}
    for name, value in constants.items():
        if type(value) in _SMALL or tasks_in(value):
            continue
        stand_in = codec.share(value, session.submissions.put)
        if stand_in is value:
            continue
        if name not in ignored:
            digest.digest(value, f"argument {name!r}")
        shared[name] = stand_in
    return shared


class Chunk:
    """Calls a function many times: what a chunk of a ``.map`` runs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, calls: list[tuple[Any, ...]], constants: dict[str, Any]) -> list[Any]:
        results = []
        for number, args in enumerate(calls):
            try:
                results.append(run_to_end(self.function, args, constants))
            except BaseException as error:
                error.add_note(f"in call {number} of a chunk of {len(calls)}, with {args!r:.200}")
                raise
        return results


def misfit(name: str, signature: inspect.Signature, error: TypeError) -> TypeError:
    """Return what `Signature.bind` raised, as Python says it of a call of ``name``, with the name that was meant."""
    text = str(error)
    if found := re.fullmatch(r"got an unexpected keyword argument '(\w+)'", text):
        text += near(found[1], signature.parameters)
    elif text.startswith("too many"):
        text = f"got {text}; it takes ({', '.join(one for one in signature.parameters if one != 'self')})"
    return TypeError(f"{name}() {text}")
