"""The numbers that people give, checked alike at every door: numpy's count, strings, NaN and half a worker don't."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

from jug_notebook.errors import BadNumber, JugError


def whole_number(
    name: str,
    given: Any,
    unit: str,
    *,
    least: int = 1,
    most: int = 1 << 62,
    instead: str = "",
    error: type[JugError] = BadNumber,
) -> int:
    """Return a whole number from ``least`` to ``most`` as an int. Raises ``error`` for anything else."""
    number: int | None = None
    if not isinstance(given, bool):
        try:
            number = operator.index(given)
        except TypeError:
            number = None
    if number is None or not least <= number <= most:
        bounds = f"{least:,} or more" if number is None or number < least else f"{most:,} at most"
        what = f"a whole number of {unit}" if unit else "a whole number"
        raise error(f"{name}={given!r:.60}: give {what}, {bounds}{instead}")
    return number


def positive_number(name: str, given: Any, unit: str = "seconds", *, error: type[JugError] = BadNumber) -> float:
    """Return a finite number of more than 0, as an int or a float. Raises ``error`` for anything else."""
    if not (_is_real(given) and given > 0 and math.isfinite(given)):
        raise error(f"{name}={given!r:.60}: give a number of {unit}, more than 0; for no limit leave it out")
    return given if type(given) is int else float(given)


def waiting_time(given: Any, name: str = "timeout") -> float | None:
    """Return seconds to wait, 0 where less is given; None for no limit. Raises BadNumber for what is no number."""
    if given is None:
        return None
    if not _is_real(given) or math.isnan(given):
        raise BadNumber(f"{name}={given!r:.60}: give a number of seconds, or None for no limit")
    return None if given == math.inf else max(0.0, float(given))


def not_negative(name: str, given: Any, unit: str = "seconds") -> float:
    """Return a finite number of 0 or more. Raises BadNumber for anything else."""
    if not (_is_real(given) and given >= 0 and math.isfinite(given)):
        raise BadNumber(f"{name}={given!r:.60}: give a number of {unit}, 0 or more")
    return float(given)


def share(name: str, given: Any) -> float:
    """Return a number of more than 0 and at most 1. Raises BadNumber for anything else."""
    if not (_is_real(given) and 0 < given <= 1):
        raise BadNumber(f"{name}={given!r:.60}: give a number of more than 0 and at most 1, as 0.05")
    return float(given)


def _is_real(given: Any) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool)
