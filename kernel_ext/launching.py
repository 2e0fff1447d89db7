"""Workers elsewhere, as a notebook asks for them: what ``%jug_execute --host`` and ``--on`` say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from IPython.core.error import UsageError

from jug_notebook.errors import LaunchError
from jug_notebook.session import Session
from jug_notebook.worker import options_in
from kernel_ext.options import joined

PATIENCE = 4.0  #: seconds for which a cell waits for what hosts say; the status tells the rest


def elsewhere(asked: Any) -> bool:
    """Is this about other hosts, or an executor?"""
    return bool(asked.host or asked.hosts_file or asked.on)


def hosts_of(asked: Any) -> list[str | Path]:
    """Those of ``--host`` and of ``--hosts-file``."""
    words: list[str | Path] = [word for written in asked.host for word in _bare(written).split(",") if word]
    return [*words, Path(_bare(asked.hosts_file))] if asked.hosts_file else words


def _bare(written: str | None) -> str:
    """A word without the quotes that held it together."""
    return joined([written or ""]) or ""


def launch(session: Session, asked: Any, namespace: dict[str, Any]) -> tuple[Any, list[str]]:
    """Start, and wait a moment: (the crew, lines that tell what came of it). Raises LaunchError where nothing did."""
    crew = session.execute(
        asked.workers,
        hosts=hosts_of(asked),
        on=_value(asked.on, namespace),
        **options_in(asked)
        | {"target": joined([asked.target or ""]), "python": _bare(asked.python) or None, "setup": _bare(asked.setup)},
        remote_dir=_bare(asked.remote_dir),
        namespace=namespace,
    )
    told = crew.messages(PATIENCE)
    if len(crew.failures) == len(crew.groups):
        raise LaunchError("\n".join(crew.failures))
    return crew, told


def _value(name: str | None, namespace: dict[str, Any]) -> Any:
    if name is None:
        return None
    if name not in namespace:
        raise UsageError(f"%jug_execute: no variable {name!r}; --on takes one that holds a client or an executor")
    return namespace[name]


def dry_run(session: Session, asked: Any, namespace: dict[str, Any], steady: bool) -> str:
    """What would run, and what is in the way on each host. Steady: the same in every run."""
    if asked.on:
        raise UsageError("%jug_execute: --dry-run looks at hosts; what an executor runs on only it knows")
    return session.workers.foretell(
        asked.workers,
        hosts_of(asked),
        joined([asked.target or ""]),
        _bare(asked.python) or None,
        _bare(asked.setup),
        _bare(asked.remote_dir),
        namespace,
        steady,
    )
