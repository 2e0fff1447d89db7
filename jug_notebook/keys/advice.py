"""Warnings about what a key can't cover: each is given once, in one line, and never inside a worker.

`warn_once` gives a warning. The rest of this file finds random numbers that are drawn without a seed.
"""

from __future__ import annotations

import ast
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from jug_notebook import frames
from jug_notebook.errors import DroppedByPickle, KeyAdvice

Chain = tuple[str, ...]

# -- warning -----------------------------------------------------------------------------------------------------------

_warned: set[object] = set()
_silent: Callable[[], bool] = bool
#: returns whether a warning of that name was given in an earlier process, about the same notebook and store
_given_before: Callable[[str], bool] | None = None
on = True  #: whether warnings are given at all
#: how to silence warnings; a notebook has an option for it
silencing = "warnings.simplefilter('ignore', jn.{})"


#: variables in which a task finds the GPUs that it was given: no result should depend on their numbers
DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def silence_where(inside: Callable[[], bool]) -> None:
    """Give no warnings where ``inside()`` is true: in a worker, where no user sees them."""
    global _silent
    _silent = inside


def remember_by(given_before: Callable[[str], bool] | None) -> None:
    """Have ``given_before(name)`` return whether a warning was given in an earlier process; it remembers the name."""
    global _given_before
    _given_before = given_before


def warn_once(about: object, category: type[KeyAdvice], text: str, code: types.CodeType | None = None) -> None:
    """Warn, unless a warning ``about`` this was given already, here or about the same notebook and store before.

    It points at the user's own line, or where none led here at ``code``, which it is about.
    """
    if not on or about in _warned or _silent():
        return
    _warned.add(about)
    name = repr(about)
    if _given_before is not None and _given_before(f"{category.__name__} {text if ' at 0x' in name else name}"):
        return
    try:
        frames.warn(f"{text} To silence: {silencing.format(category.__name__)}", category, code)
    except category:  # a filter makes it an error, each time
        _warned.discard(about)
        raise


_of_result: ContextVar[dict[str, None] | None] = ContextVar("_of_result", default=None)


@contextmanager
def storing_result() -> Iterator[dict[str, None]]:
    """Within, a task's result is dumped; gives what a user should know of that, as keys of a dict."""
    found: dict[str, None] = {}
    token = _of_result.set(found)
    try:
        yield found
    finally:
        _of_result.reset(token)


def report_dropped(value: Any, names: Iterable[str]) -> None:
    """Warn that pickling drops attributes or properties ``names`` of a value: of an argument, or of a result."""
    lost, kind, of_result = ", ".join(names), type(value), _of_result.get()
    if not lost:
        return
    drops = f"pickling {kind.__module__.partition('.')[0]}.{kind.__qualname__} drops what was added to it ({lost}), so"
    if of_result is not None:
        of_result[f"{drops} the stored result lacks it. Return it as a value of its own."] = None
    else:
        text = f"{drops} no task sees it. Pass it as an argument of its own."
        warn_once(("dropped", kind, lost), DroppedByPickle, text)


# -- what a function's text does ---------------------------------------------------------------------------------------


class Uses(NamedTuple):
    """What a function's source reads by dotted names, as far as it concerns random numbers and computed names."""

    chains: frozenset[Chain] = frozenset()  #: dotted names that it reads, called or not
    bare: frozenset[Chain] = frozenset()  #: those that are called without an argument, or with None
    imported: Mapping[str, str] = types.MappingProxyType({})  #: names that it imports itself -> what they are
    computed: frozenset[str] = frozenset()  #: functions that look up a name, called with a computed one
    looked_up: frozenset[tuple[Chain, str]] = frozenset()  #: what is given a constant text: (environ,), "HOME"
    changed: frozenset[str] = frozenset()  #: names of what it changes if that is a list, dict or set


_LOOK_UP = {"getattr": 1, "import_module": 0}  #: which argument is the name
_CHANGING = frozenset(
    {
        *("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"),
        *("sort", "reverse"),
    }
)


def look(tree: ast.AST) -> Uses:
    """Return what a function's syntax tree uses."""
    chains, bare, computed, looked_up, changed = set(), set(), set(), set(), set()
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            chains.add(dotted(node))
        elif isinstance(node, ast.Subscript):
            if isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Constant):
                looked_up.add((dotted(node.value), str(node.slice.value)))
            elif not isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Name):
                changed.add(node.value.id)
        elif isinstance(node, ast.Call):
            chain = dotted(node.func)
            if len(chain) == 2 and chain[1] in _CHANGING:
                changed.add(chain[0])
            if node.args and isinstance(node.args[0], ast.Constant):
                looked_up.add((chain, str(node.args[0].value)))
            if not node.keywords and all(isinstance(a, ast.Constant) and a.value is None for a in node.args):
                bare.add(chain)
            at = _LOOK_UP.get(chain[-1]) if chain else None
            if at is not None and at < len(node.args) and not isinstance(node.args[at], ast.Constant):
                computed.add(chain[-1])
            if isinstance(node.func, ast.Attribute) and node.func.attr == "__subclasses__":
                computed.add(node.func.attr)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imported[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    given = frozenset(pair for pair in looked_up if pair[0])
    return Uses(
        frozenset(chains - {()}), frozenset(bare - {()}), imported, frozenset(computed), given, frozenset(changed)
    )


def dotted(node: ast.AST) -> Chain:
    """Return the steps of a dotted name; () for other expressions."""
    steps: list[str] = []
    while isinstance(node, ast.Attribute):
        steps.append(node.attr)
        node = node.value
    return (node.id, *reversed(steps)) if isinstance(node, ast.Name) else ()


# -- globals that a function changes -----------------------------------------------------------------------------------


def changed(
    uses: Uses, reads: Iterable[str], writes: Iterable[str], space: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield, for each global that a function writes, or changes if it is a list, dict or set: (name, what is wrong)."""
    found = sorted(name for name in uses.changed.intersection(reads) if type(space.get(name)) in (list, dict, set))
    for verb, names in (("writes", writes), ("changes", found)):
        for name in names:
            lost = "but only in the worker's own copy, which is lost. Return the value instead."
            yield name, f"{verb} the global {name!r}, {lost}"


# -- environment variables ---------------------------------------------------------------------------------------------


def environment(uses: Uses, space: Mapping[str, Any]) -> set[str]:
    """Return the names of environment variables that a function reads, where they are written out."""
    found = set()
    for (head, *rest), name in uses.looked_up:
        value = space.get(head)
        if head in uses.imported:
            place = ".".join((uses.imported[head], *rest))
        elif isinstance(value, types.ModuleType):
            place = ".".join((value.__name__, *rest))
        else:
            place = ".".join(
                ("os.environ" if value is os.environ else "os.getenv" if value is os.getenv else "", *rest)
            )
        if place in ("os.environ", "os.environ.get", "os.getenv"):
            found.add(name)
    return found


# -- random numbers ---------------------------------------------------------------------------------------------------

_NOT_DRAWN = frozenset(
    {
        *("Random", "SystemRandom", "getstate", "get_state", "Generator", "SeedSequence", "BitGenerator", "mtrand"),
        *("RandomState", "default_rng", "PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64", "bit_generator"),
        "get_rng_state",
    }
)
_SEEDS = frozenset({"seed", "setstate", "set_state", "manual_seed", "set_rng_state", "set_bit_generator"})
_MAKERS = frozenset({"Random", "RandomState", "default_rng", *("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")})
_OF_TORCH = frozenset({"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", *_SEEDS})


class Chance(NamedTuple):
    """How a function uses random number generators."""

    draws: tuple[tuple[str, str], ...]  #: (family, source text): from a shared generator
    seeds: frozenset[str]  #: families whose shared generator it seeds
    fresh: tuple[str, ...]  #: source texts of generators that it makes without a seed


def chance(uses: Uses, space: Mapping[str, Any]) -> Chance:
    """Return how a function that uses these names, with its globals, draws random numbers. Nothing is called."""
    draws, fresh, seeds = [], [], set()
    for chain in sorted(uses.chains):
        family, verb = _drawn(chain, uses, space)
        if not family:
            continue
        text = ".".join(chain)
        if verb in _SEEDS:
            if verb != "seed" or chain not in uses.bare:
                seeds.add(family)
        elif verb in _MAKERS:
            if chain in uses.bare:
                fresh.append(text)
        elif verb not in _NOT_DRAWN and not verb.startswith("_"):
            draws.append((family, text))
    return Chance(tuple(draws), frozenset(seeds), tuple(fresh))


def _drawn(chain: Chain, uses: Uses, space: Mapping[str, Any]) -> tuple[str, str]:
    """Return the family of generators that a dotted name belongs to, and the verb; empty if it belongs to none."""
    head, *rest = chain
    if head in uses.imported:
        place = ".".join((uses.imported[head], *rest))
    elif isinstance(value := space.get(head), types.ModuleType):
        place = ".".join((value.__name__, *rest))
    elif rest:
        return "", ""
    else:
        place = _bound_to_shared(value) or ""
        if not place and value is not None and getattr(value, "__module__", None) in ("random", "numpy.random"):
            place = f"{value.__module__}.{getattr(value, '__name__', '')}"
        if not place and getattr(value, "__qualname__", "") == "default_rng":
            place = "numpy.random.default_rng"
    for family in ("random", "numpy.random", "torch"):
        home, _, verb = place.rpartition(".")
        if home == family and verb and (family != "torch" or verb in _OF_TORCH):
            return family, verb
    return "", ""


def _bound_to_shared(value: Any) -> str | None:
    """Return the dotted name of a method of a shared generator, as ``from random import choice`` gives."""
    if type(value) not in (types.MethodType, types.BuiltinFunctionType):
        return None
    owner = value.__self__
    for family, home, name in (("random", "random", "_inst"), ("numpy.random", "numpy.random.mtrand", "_rand")):
        module = sys.modules.get(home)
        if module is not None and owner is not None and owner is getattr(module, name, None):
            return f"{family}.{value.__name__}"
    return None


def seed_warnings(functions: Sequence[tuple[types.CodeType, str, Chance]]) -> Iterator[tuple[types.CodeType, str]]:
    """Yield the warnings about the functions of one walk, with its code. If one of them seeds, it does for all."""
    seeded = frozenset[str]().union(*(chance.seeds for _, _, chance in functions))
    for code, owner, each in functions:
        drawn = [f"draws from {text}()" for family, text in each.draws if family not in seeded]
        made = [f"makes a generator with {text}(), without a seed" for text in each.fresh]
        if drawn or made:
            does = (drawn or made)[0]
            text = (
                f"{owner} {does}, so each run gives a different value, and chance decides which one is kept. "
                f"Pass a seed as an argument: numpy.random.default_rng(seed), random.Random(seed)."
            )
            yield code, text
