"""What a key can't see and a look at the code can guess: said once each, in one line, and never inside a worker."""

from __future__ import annotations

import ast
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jug_notebook.errors import KeyAdvice

Chain = tuple[str, ...]

# -- saying it ---------------------------------------------------------------------------------------------------------

_told: set[object] = set()
_silent: Callable[[], bool] = bool
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OURS = (_HERE + os.sep, os.path.join(os.path.dirname(_HERE), "kernel_ext") + os.sep)


def silent_where(inside: Callable[[], bool]) -> None:
    """Nothing is said where ``inside()`` is true: in a worker nobody could act on it."""
    global _silent
    _silent = inside


def say_once(about: object, category: type[KeyAdvice], text: str) -> None:
    """Warn, unless that was said already. The warning points at the user's own line."""
    if about in _told or _silent():
        return
    _told.add(about)
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


# -- what a function's text does ---------------------------------------------------------------------------------------


class Uses(NamedTuple):
    """What a text reads by dotted names, as far as it concerns chance and look-ups that can't be seen."""

    chains: frozenset[Chain] = frozenset()  #: dotted names that are read, called or not
    bare: frozenset[Chain] = frozenset()  #: those that are called without an argument, or with None
    imported: Mapping[str, str] = types.MappingProxyType({})  #: names that it imports itself -> what they are
    computed: frozenset[str] = frozenset()  #: functions that look a name up, called with one that isn't written out


_LOOK_UP = {"getattr": 1, "import_module": 0}  #: which argument is the name


def look(tree: ast.AST) -> Uses:
    """Read a function's syntax tree."""
    chains, bare, computed = set(), set(), set()
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            chains.add(_chain(node))
        elif isinstance(node, ast.Call):
            chain = _chain(node.func)
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
    return Uses(frozenset(chains - {()}), frozenset(bare - {()}), imported, frozenset(computed))


def _chain(node: ast.AST) -> Chain:
    steps: list[str] = []
    while isinstance(node, ast.Attribute):
        steps.append(node.attr)
        node = node.value
    return (node.id, *reversed(steps)) if isinstance(node, ast.Name) else ()


# -- chance ------------------------------------------------------------------------------------------------------------

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
    """How a function deals with generators of random numbers."""

    draws: tuple[tuple[str, str], ...]  #: (family, how it is written): from a generator that all share
    seeds: frozenset[str]  #: families whose shared generator it seeds
    fresh: tuple[str, ...]  #: generators that it makes without a seed


def chance(uses: Uses, space: Mapping[str, Any]) -> Chance:
    """Look at what a text uses, with its globals; nothing is called."""
    draws, fresh, seeds = [], [], set()
    for chain in sorted(uses.chains):
        family, verb = _drawn(chain, uses, space)
        if not family:
            continue
        shown = ".".join(chain)
        if verb in _SEEDS:
            if verb != "seed" or chain not in uses.bare:
                seeds.add(family)
        elif verb in _MAKERS:
            if chain in uses.bare:
                fresh.append(shown)
        elif verb not in _NOT_DRAWN and not verb.startswith("_"):
            draws.append((family, shown))
    return Chance(tuple(draws), frozenset(seeds), tuple(fresh))


def _drawn(chain: Chain, uses: Uses, space: Mapping[str, Any]) -> tuple[str, str]:
    """The family of generators that a dotted name belongs to, and the verb; empty where it belongs to none."""
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
    """``from random import choice``: a method of the generator that all share."""
    if type(value) not in (types.MethodType, types.BuiltinFunctionType):
        return None
    owner = value.__self__
    for family, home, name in (("random", "random", "_inst"), ("numpy.random", "numpy.random.mtrand", "_rand")):
        module = sys.modules.get(home)
        if module is not None and owner is not None and owner is getattr(module, name, None):
            return f"{family}.{value.__name__}"
    return None


def told_of_chance(found: Iterator[tuple[str, Chance]]) -> Iterator[str]:
    """What there is to say of the functions of one walk: (whose, chance). One that seeds, seeds for all."""
    functions = list(found)
    seeded = frozenset[str]().union(*(chance.seeds for _, chance in functions))
    for whose, each in functions:
        drawn = [f"draws from {shown}()" for family, shown in each.draws if family not in seeded]
        made = [f"makes a generator with {shown}(), without a seed" for shown in each.fresh]
        if drawn or made:
            yield (
                f"{whose} {(drawn or made)[0]}, so each run would give another value, and which one is kept is chance. "
                f"Pass a seed as an argument: numpy.random.default_rng(seed), random.Random(seed)."
            )
