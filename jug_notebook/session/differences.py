"""Describe how two tasks differ: their code part by part, their arguments down to single items. Pure functions."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from jug_notebook.keys import digest as canon
from jug_notebook.keys import modules
from jug_notebook.keys.callables import name_of
from jug_notebook.keys.objects import attributes_of
from jug_notebook.model import Cause, Reason
from jug_notebook.render.format import brief, summarise

WIDTH = 60  #: most characters of a value in a reason
DIFF = 24  #: most lines of a diff
FOUND = 4  #: most differences listed within one argument
LISTED = 6  #: most names in a line
DEPTH = 6

_KINDS = frozenset(
    {
        "function",
        "helper",
        "global",
        "environment",
        "default",
        "closure",
        "attribute",
        "class",
        "method",
        "module",
        "package",
        "decorator",
    }
)
_WRITTEN = _KINDS - {"global", "environment", "class"}  #: may have a source text
_HEX = frozenset("0123456789abcdef")

Arguments = Sequence[tuple[str, Any]]
Difference = tuple[str, str, str]  #: where in it, what was there, what is there now


# -- code --------------------------------------------------------------------------------------------------------------


def code_reasons(
    before: Mapping[str, str],
    now: Mapping[str, str],
    texts_before: Mapping[str, str],
    texts_now: Mapping[str, str],
    values: Callable[[str], tuple[Any, Any] | None] = lambda label: None,
) -> list[Reason]:
    """Return what changed between the parts of two versions of code that differ: at least one reason.

    ``values(label)`` returns the two values of a part that is one, where they can be compared.
    """
    if "version" in before or "version" in now:
        was, becomes = before.get("version", "none"), now.get("version", "none")
        if was != becomes:
            return [Reason(Cause.CODE, "version", f"version: {was} → {becomes}", was, becomes)]
    found: list[Reason] = []
    for label in now:
        if label in before and before[label] != now[label]:
            pair = values(label) if _is_digest(before[label]) and _is_digest(now[label]) else None
            inside = [] if pair is None else value_reasons(Cause.CODE, called(label), *pair, inside=True)
            texts = texts_before.get(label, ""), texts_now.get(label, "")
            found += inside or [_part(label, before[label], now[label], *texts)]
    new = [called(label) for label in now if label not in before]
    gone = [called(label) for label in before if label not in now]
    if new:
        found.append(Reason(Cause.CODE, "what it uses", f"now uses {listed(new)}", "", listed(new)))
    if gone:
        found.append(Reason(Cause.CODE, "what it used", f"no longer uses {listed(gone)}", listed(gone), ""))
    return found or [
        Reason(Cause.CODE, "code", "its code changed in something known by name only: a library function, a metaclass")
    ]


def _part(label: str, before: str, now: str, text_before: str, text_now: str) -> Reason:
    if label.startswith("package "):
        name = label.removeprefix("package ")
        return Reason(Cause.CODE, name, f"{name} {before} → {now}", before, now)
    subject = called(label)
    if label.partition(" ")[0] in _WRITTEN:
        diff = difference(text_before, text_now) if "\n" in text_before + text_now else ""
        if diff:
            return Reason(Cause.CODE, subject, f"{subject} changed", diff=diff)
    was = text_before or ("" if _is_digest(before) else before)
    becomes = text_now or ("" if _is_digest(now) else now)
    was, becomes = window(was, becomes)
    if was and becomes and was != becomes:
        return Reason(Cause.CODE, subject, f"{subject}: {was} → {becomes}", was, becomes)
    return Reason(Cause.CODE, subject, f"{subject} changed", was, becomes)


def values_in(function: Any) -> dict[str, Any]:
    """Return the values that a function uses, by the labels that they have among its parts."""
    found = {f"global {name}": value for name, value in getattr(function, "__globals__", {}).items()}
    with suppress(ValueError, TypeError):
        found |= {f"closure {name}": value for name, value in inspect.getclosurevars(function).nonlocals.items()}
        found |= {f"default {name}": one.default for name, one in inspect.signature(function).parameters.items()}
    return found


def _is_digest(text: str) -> bool:
    return len(text) == 40 and _HEX.issuperset(text)


def called(label: str) -> str:
    """Return a part as people read it: "helper `norm`", "default `n` of `norm`"."""
    kind, _, name = label.partition(" ")
    if kind == "undefined":
        return f"`{name.removeprefix('name ')}`, which isn't defined"
    if kind not in _KINDS:
        return f"`{label}`"
    name, of, owner = name.partition(" of ")
    return f"{kind} `{name}`" + (f" of `{owner}`" if of else "")


def listed(names: Iterable[str]) -> str:
    """Return names in a line: "a, b and 3 more"."""
    every = list(names)
    if len(every) > LISTED:
        return f"{', '.join(every[: LISTED - 1])} and {len(every) - LISTED + 1} more"
    return " and ".join(filter(None, (", ".join(every[:-1]), every[-1])))


def difference(before: str, now: str) -> str:
    """Return a unified diff of two texts without its header, cut to `DIFF` lines."""
    lines: list[str] = []
    for line in difflib.unified_diff(before.splitlines(), now.splitlines(), n=2, lineterm=""):
        if line.startswith(("---", "+++")) and not lines:
            continue
        lines.append("…" if line.startswith("@@") else line)
    lines = lines[1:]
    if len(lines) > DIFF:
        lines = [*lines[: DIFF - 1], f"… and {len(lines) - DIFF + 1} more lines"]
    return "\n".join(lines)


def window(before: str, now: str) -> tuple[str, str]:
    """Return two texts, cut to where they differ."""
    if max(len(before), len(now)) <= WIDTH:
        return before, now
    same = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    start = max(0, same - WIDTH // 3)
    start = 0 if start < 4 else start

    def cut(text: str) -> str:
        end = start + WIDTH
        return ("…" if start else "") + text[start:end] + ("…" if len(text) > end else "")

    return cut(before), cut(now)


# -- arguments ---------------------------------------------------------------------------------------------------------


def bound(signature: Sequence[tuple[str, int, bool]], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, without those left to their defaults."""
    kinds = list(inspect._ParameterKind)
    try:
        parameters = [
            inspect.Parameter(name, kinds[kind], default=None if default else inspect.Parameter.empty)
            for name, kind, default in signature
        ]
        if parameters:
            return dict(inspect.Signature(parameters).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # the call would fail; or a signature of another kind of thing
        pass
    return {**{str(number): value for number, value in enumerate(args, 1)}, **kwargs}


def argument_reasons(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults_before: Mapping[str, str], defaults: Mapping[str, str]
) -> list[Reason]:
    """Return the differences between the arguments of two calls; ``defaults`` are texts for arguments not given."""
    found = []
    for name in {**before, **now}:
        subject = f"argument `{name}`"
        if name in before and name in now:
            found += value_reasons(Cause.ARGUMENT, subject, before[name], now[name])
            continue
        was = brief(before[name], WIDTH) if name in before else defaults_before.get(name, "")
        becomes = brief(now[name], WIDTH) if name in now else defaults.get(name, "")
        if was == becomes:
            continue
        was, becomes = was or "not given", becomes or "not given"
        found.append(Reason(Cause.ARGUMENT, subject, f"{subject}: {was} → {becomes}", was, becomes))
    return found


def value_reasons(cause: Cause, subject: str, before: Any, now: Any, inside: bool = False) -> list[Reason]:
    """Return the differences between two values of ``subject``, with ``inside`` only if some are inside them."""
    differing = list(differences(before, now))
    if inside and not any(path for path, _, _ in differing):
        return []
    found = [
        Reason(cause, subject, f"{subject}{path}: {was} → {becomes}", was, becomes)
        for path, was, becomes in differing[:FOUND]
    ]
    if len(differing) > FOUND:
        return [*found, Reason(cause, subject, f"{subject}: more differences than these")]
    if found and (remedy := _remedy(before, now)):
        last = found[-1]
        found[-1] = msgspec.structs.replace(
            last, line=f"{last.line}; if that doesn't affect the result, ignore it: {remedy}"
        )
    return found


def named(value: Any) -> bytes | None:
    """Return the canonical digest of a value; None where it can't be hashed."""
    try:
        return canon.digest(value)
    except Exception:  # what can't be hashed, and whatever the user's own __reduce__ or __jug_hash__ raises
        return None


def same(before: Any, now: Any) -> bool:
    """Return whether keys treat them as one value."""
    found = named(before)
    return before is now or (found is not None and found == named(now))


def differences(before: Any, now: Any, path: str = "", depth: int = DEPTH) -> Iterator[Difference]:
    """Yield where two values differ, down to items of containers of equal shape; at most ``FOUND + 1`` differences."""
    if same(before, now):
        return
    pairs = _pairs(before, now) if depth else None
    if pairs is None:
        yield (path, *_texts(before, now))
        return
    count = 0
    for step, was, becomes in pairs:
        found: Iterable[Difference] = [(f"{path}{step}", _or_nothing(was), _or_nothing(becomes))]
        if was is not _NOTHING and becomes is not _NOTHING:
            found = differences(was, becomes, f"{path}{step}", depth - 1)
        for one in found:
            yield one
            count += 1
            if count > FOUND:
                return
    if not count and type(before) is dict:  # the items are equal, so their order differs
        yield (f"{path}, order of its keys", *_texts(list(before), list(now)))
    elif not count:
        yield (path, *_texts(before, now))


_NOTHING: Any = object()


def _or_nothing(value: Any) -> str:
    return "nothing" if value is _NOTHING else brief(value, WIDTH)


def _pairs(before: Any, now: Any) -> Iterator[tuple[str, Any, Any]] | None:
    kind = type(before)
    if kind is not type(now):
        return None
    if kind is dict:
        return ((f"[{brief(key, 30)}]", before.get(key, _NOTHING), now.get(key, _NOTHING)) for key in {**before, **now})
    if kind in (list, tuple) and len(before) == len(now):
        return ((f"[{i}]", was, becomes) for i, (was, becomes) in enumerate(zip(before, now, strict=True)))
    held, held_now = _attributes(before), _attributes(now)
    if held is None or held_now is None:
        return None
    return ((f".{name}", held.get(name, _NOTHING), held_now.get(name, _NOTHING)) for name in {**held, **held_now})


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an instance that count; None for what isn't hashed by its attributes."""
    held = attributes_of(value)
    if held is not None:
        inner = held.get("__dict__")  # as in pydantic's models
        return {**inner, **{name: what for name, what in held.items() if name != "__dict__"}} if inner else held
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, _NOTHING) for field in dataclasses.fields(value)}
    return None


def _remedy(before: Any, now: Any, depth: int = DEPTH) -> str:
    """Return how to leave out the attributes in which alone two objects differ, if these may come with use.

    An attribute with the name of one of the constructor's parameters doesn't: it is what the object was made from.
    """
    pairs = (_pairs(before, now) if depth else None) or ()
    differing = [(step, was, becomes) for step, was, becomes in pairs if not same(was, becomes)]
    if len(differing) == 1 and (inner := _remedy(*differing[0][1:], depth - 1)):
        return inner
    kind = type(now)
    names = [step[1:] for step, _, _ in differing]
    if not names or kind in (dict, list, tuple) or len(names) > FOUND:
        return ""
    try:
        given = {name.strip("_") for name in inspect.signature(kind).parameters}
    except (ValueError, TypeError):  # of a class in C
        given = set()
    if not given.isdisjoint(name.strip("_") for name in names):
        return ""
    cls = kind.__qualname__ if kind.__module__ in modules.scripts else name_of(kind)
    return f"jn.ignore_attributes({', '.join([cls, *map(repr, names)])})"


def _texts(before: Any, now: Any) -> tuple[str, str]:
    was, becomes = window(brief(before, 4 * WIDTH), brief(now, 4 * WIDTH))
    one, other = type(before), type(now)
    if one is not other and (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__):
        return was, f"{becomes} of the class as it is now"
    if was == becomes:
        was, becomes = summarise(before), summarise(now)
    if was == becomes:
        becomes = "another of that kind"
    return was, becomes


# -- many --------------------------------------------------------------------------------------------------------------


def once(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Return each reason once, and each diff with the first reason that has it."""
    kept: dict[tuple[str, str, str], Reason] = {}
    diffs: set[str] = set()
    for reason in reasons:
        key = (reason.of, reason.line, reason.diff)
        if key in kept:
            continue
        if reason.diff and reason.diff in diffs:
            reason = Reason(reason.cause, reason.subject, reason.line, of=reason.of, at=reason.at)
        diffs.add(reason.diff)
        kept[key] = reason
    return tuple(kept.values())


def nearest(mine: str, candidates: Iterable[tuple[str, int, Any]]) -> Any:
    """Return the task to compare with, of (code, number of differing arguments, task), latest first; None without any.

    First choice is the same call with other code, as that change alone explains why there is no value. Then the same
    code with the fewest differing arguments; then other code with the fewest.
    """
    ranked = [(bool(count), code != mine, count, place, task) for place, (code, count, task) in enumerate(candidates)]
    return min(ranked, key=lambda entry: entry[:4])[4] if ranked else None
