"""Checks before workers start on a host: turns what was found there into messages with a remedy."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

SKEW = 2.0  #: seconds by which clocks may differ without a word


class Check(Struct, frozen=True):
    """One check. ``wrong``: nothing can start there. A remedy without that is a warning."""

    what: str
    message: str
    remedy: str = ""
    wrong: bool = False

    @property
    def mark(self) -> str:
        return "×" if self.wrong else "!" if self.remedy else "✓"


class Report(Struct, frozen=True):
    """All checks of one host, in order, up to the first that is wrong."""

    place: str
    checks: tuple[Check, ...] = ()

    @property
    def failure(self) -> str:
        """Why nothing can start there, with the remedy, in a line; empty where workers can."""
        return next((self._line(check) for check in self.checks if check.wrong), "")

    @property
    def warnings(self) -> list[str]:
        """What may become trouble, a line each."""
        return [self._line(check) for check in self.checks if check.remedy and not check.wrong]

    def _line(self, check: Check) -> str:
        return f"{self.place}: {check.message}; {check.remedy}"


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
            lines.append(f"  {check.mark} {check.what:<{width}}  {check.message}")
            if check.remedy:
                lines.append(f"    {'':<{width}}  → {check.remedy}")
    return "\n".join(lines)


# -- the checks -------------------------------------------------------------------------------------------------------


def clock(offset: float) -> Check:
    """``offset``: seconds by which the clock there is ahead of ours for certain."""
    if abs(offset) <= SKEW:
        return Check("clock", "agrees with this one")
    message = f"its clock is {_length(abs(offset))} {'ahead' if offset > 0 else 'behind'}"
    return Check(
        "clock", message, "retries come at wrong times; set it there: chronyd, ntpd or timedatectl set-ntp true"
    )


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def offset(theirs: float, asked: float, answered: float) -> float:
    """Return the least seconds by which a clock is ahead that read ``theirs`` between ``asked`` and ``answered``."""
    return theirs - min(max(theirs, asked), answered)


def refused(place: str, message: str) -> Check:
    """What ssh's own complaint means."""
    text = message.lower()
    last = next((line for line in reversed(message.splitlines()) if line.strip()), "ssh printed no message").strip()
    if "identification has changed" in text:
        return _no("its ssh host key has changed", f"if that is right: ssh-keygen -R {place}, then once: ssh {place}")
    if "host key verification failed" in text:
        return _no("its ssh host key is not known here", f"look at it and accept it once, in a terminal: ssh {place}")
    if "permission denied" in text:
        return _no(
            "it accepts none of your ssh keys", f"put one there: ssh-copy-id {place}; or load the right one: ssh-add"
        )
    if "could not resolve" in text:
        return _no("the host name can't be resolved", f"correct it, or give it a Host {place} in ~/.ssh/config")
    reasons = ("timed out", "no route to host", "connection refused", "unreachable", "connection closed", "reset by")
    reason = next((reason for reason in reasons if reason in text), "")
    if reason:
        return _no(
            f"can't be reached ({last.rpartition(': ')[2] or reason})", f"is it up? Try in a terminal: ssh {place}"
        )
    return _no(f"ssh failed: {last[:200]}", f"try in a terminal: ssh {place}")


def _no(message: str, remedy: str) -> Check:
    return Check("ssh", message, remedy, True)


def silent(place: str, seconds: float) -> Check:
    return _no(f"no answer within {seconds:.0f} s", f"is it up? Try in a terminal: ssh {place}")


def no_python(tried: Sequence[str], wanted: str) -> Check:
    message = f"no python there (tried {', '.join(tried)})"
    return Check("python", message, f"give one that is {wanted}: --python PATH, or --setup 'module load …'", True)


def python(theirs: str, path: str, wanted: str) -> Check:
    message = f"Python {theirs} ({path})"
    if theirs == wanted:
        return Check("python", message)
    return Check(
        "python", f"{message} there, and {wanted} here: tasks run only on the same Python version",
        f"give a Python {wanted}: --python PATH, or --setup 'module load …'", True,
    )  # fmt: skip


def package(theirs: str, path: str, wanted: str, error: str = "") -> Check:
    if theirs == wanted:
        return Check("package", f"jug_notebook {theirs}")
    if theirs:
        message = f"jug_notebook {theirs} there, and {wanted} here"
    elif "jug_notebook" in error:
        message = f"{path} has no jug_notebook"
    else:
        message = f"{path} can't import jug_notebook ({error})"
    return Check("package", message, f"install it there: {path} -m pip install jug-notebook=={wanted}", True)


def setup_failed(status: str, message: str) -> Check:
    last = next((line for line in reversed(message.splitlines()) if line.strip()), "no output").strip()
    return Check("setup", f"--setup failed there with status {status}: {last[:200]}", "correct it", True)


def compiled(names: Sequence[str]) -> Check:
    message = f"project module {names[0]} has a compiled part, which can't travel"
    return Check("modules", message, f"install it on every host as a package: pip install ./{names[0]}", True)


__all__ = ["Check", "Preflight", "Report", "table"]
