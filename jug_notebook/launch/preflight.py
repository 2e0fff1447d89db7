"""What is looked at before workers start on a host: facts in, a line for people out."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

SKEW = 2.0  #: seconds by which clocks may differ without a word


class Check(Struct, frozen=True):
    """One thing that was looked at. ``wrong``: nothing can start there. A remedy without that is a warning."""

    what: str
    said: str
    remedy: str = ""
    wrong: bool = False

    @property
    def mark(self) -> str:
        return "×" if self.wrong else "!" if self.remedy else "✓"


class Report(Struct, frozen=True):
    """All that was looked at on one host, in order; after the first that is wrong nothing else was."""

    place: str
    checks: tuple[Check, ...] = ()

    @property
    def failure(self) -> str:
        """Why nothing can start there, with the remedy, in a line; empty where something can."""
        return next((self._line(check) for check in self.checks if check.wrong), "")

    @property
    def warnings(self) -> list[str]:
        """What may become trouble, a line each."""
        return [self._line(check) for check in self.checks if check.remedy and not check.wrong]

    def _line(self, check: Check) -> str:
        return f"{self.place}: {check.said}; {check.remedy}"


class Preflight(list[Report]):
    """What was found on some hosts; as text, a table."""

    def __repr__(self) -> str:
        return table(self)


def table(reports: Sequence[Report]) -> str:
    """The same for all hosts, in full."""
    width = max((len(check.what) for report in reports for check in report.checks), default=0)
    lines = []
    for report in reports:
        lines.append(report.place)
        for check in report.checks:
            lines.append(f"  {check.mark} {check.what:<{width}}  {check.said}")
            if check.remedy:
                lines.append(f"    {'':<{width}}  → {check.remedy}")
    return "\n".join(lines)


# -- what is said ------------------------------------------------------------------------------------------------------


def clock(offset: float) -> Check:
    """``offset``: seconds by which the clock there is ahead of ours for certain."""
    if abs(offset) <= SKEW:
        return Check("clock", "agrees with this one")
    said = f"its clock is {_length(abs(offset))} {'ahead' if offset > 0 else 'behind'}"
    return Check("clock", said, "retries come at wrong times; set it there: chronyd, ntpd or timedatectl set-ntp true")


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def offset(told: float, asked: float, answered: float) -> float:
    """By how much a clock that said ``told``, somewhen between ``asked`` and ``answered`` on ours, is off at least."""
    return told - min(max(told, asked), answered)


def refused(place: str, said: str) -> Check:
    """What ssh's own complaint means."""
    text = said.lower()
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "ssh said nothing").strip()
    if "identification has changed" in text:
        return _no("its ssh host key has changed", f"if that is right: ssh-keygen -R {place}, then once: ssh {place}")
    if "host key verification failed" in text:
        return _no("its ssh host key is not known here", f"look at it and accept it once, in a terminal: ssh {place}")
    if "permission denied" in text:
        return _no(
            "it accepts none of your ssh keys", f"put one there: ssh-copy-id {place}; or load the right one: ssh-add"
        )
    if "could not resolve" in text:
        return _no("nobody knows a host of that name", f"correct it, or give it a Host {place} in ~/.ssh/config")
    reasons = ("timed out", "no route to host", "connection refused", "unreachable", "connection closed", "reset by")
    reason = next((reason for reason in reasons if reason in text), "")
    if reason:
        return _no(
            f"can't be reached ({last.rpartition(': ')[2] or reason})", f"is it up? Try in a terminal: ssh {place}"
        )
    return _no(f"ssh failed: {last[:200]}", f"try in a terminal: ssh {place}")


def _no(said: str, remedy: str) -> Check:
    return Check("ssh", said, remedy, True)


def silent(place: str, seconds: float) -> Check:
    return _no(f"no answer within {seconds:.0f} s", f"is it up? Try in a terminal: ssh {place}")


def no_python(tried: Sequence[str], wanted: str) -> Check:
    said = f"no python there (tried {', '.join(tried)})"
    return Check("python", said, f"give one that is {wanted}: --python PATH, or --setup 'module load …'", True)


def python(theirs: str, path: str, wanted: str) -> Check:
    said = f"Python {theirs} ({path})"
    if theirs == wanted:
        return Check("python", said)
    return Check(
        "python", f"{said} there, and {wanted} here: tasks travel between equal ones only",
        f"give a Python {wanted}: --python PATH, or --setup 'module load …'", True,
    )  # fmt: skip


def package(theirs: str, path: str, wanted: str, error: str = "") -> Check:
    if theirs == wanted:
        return Check("package", f"jug_notebook {theirs}")
    if theirs:
        said = f"jug_notebook {theirs} there, and {wanted} here"
    elif "jug_notebook" in error:
        said = f"{path} has no jug_notebook"
    else:
        said = f"{path} can't import jug_notebook ({error})"
    return Check("package", said, f"install it there: {path} -m pip install jug-notebook=={wanted}", True)


def setup_failed(status: str, said: str) -> Check:
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing").strip()
    return Check("setup", f"--setup failed there with status {status}: {last[:200]}", "correct it", True)


def compiled(names: Sequence[str]) -> Check:
    said = f"project module {names[0]} has a compiled part, which can't travel"
    return Check("modules", said, f"install it on every host as a package: pip install ./{names[0]}", True)


__all__ = ["Check", "Preflight", "Report", "table"]
