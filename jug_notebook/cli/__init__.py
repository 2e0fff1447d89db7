"""The sub-commands of the command line, one file for those that belong together. Options end here.

Each file has a table ``COMMANDS``; `ROOMS` says which command is in which file. Other packages add theirs as entry
points of the group ``jug_notebook.commands``. Nothing is imported for a command that isn't run, so that starting a
worker stays cheap.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jug_notebook.errors import JugError, StoreError
from jug_notebook.store import atomic

if TYPE_CHECKING:
    from jug_notebook.model import Key, Snapshot
    from jug_notebook.store import Store
    from jug_notebook.store.signed import SignedReader

Arguments = argparse.Namespace


class UsageError(JugError):
    """This can't be asked for."""


class Command(NamedTuple):
    """A sub-command: what it does, in a line; what it adds to the parser; what it does, answering the exit status."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]
    mixed: bool = False  #: may options stand between its arguments?


#: the file of each command, in the order in which they are listed
ROOMS = {
    "worker": "run",
    "execute": "run",
    "status": "inspect",
    "check": "inspect",
    "invalidate": "modify",
    "accept": "modify",
    "retry": "modify",
    "stop": "modify",
    "log": "inspect",
    "graph": "inspect",
    "why": "inspect",
    "count": "admin",
    "cleanup": "admin",
    "copy": "admin",
    "pack": "admin",
    "key": "admin",
    "doctor": "admin",
    "sleep-until": "jugfiles",
    "import-jugdata": "jugfiles",
    "demo": "jugfiles",
    "test-jug": "jugfiles",
    "install-skills": "jugfiles",
    "webstatus": "webstatus",
    "shell": "shell",
    "completion": "completion",
}


def command(name: str) -> Command | None:
    """The command of that name; None where there is none."""
    room = ROOMS.get(name)
    if room is None:
        return _others().get(name)
    found: Command = importlib.import_module(f"{__name__}.{room}").COMMANDS[name]
    return found


def commands() -> dict[str, Command]:
    """All commands, others' last."""
    ours = {name: found for name in ROOMS if (found := command(name))}
    return {**ours, **_others()}


def _others() -> Mapping[str, Command]:
    """Commands that other packages add. Asked only where ours are not enough: looking for them takes a while."""
    from importlib.metadata import entry_points

    found = sorted(entry_points(group="jug_notebook.commands"), key=lambda point: point.name)
    return {point.name: point.load() for point in found if point.name not in ROOMS}


# -- what options mean ------------------------------------------------------------------------------------------------


def count(written: str) -> int:
    try:
        count = int(written)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{written!r} is not a whole number from 1 on")
    return count


def _amount(written: str, units: Mapping[str, float], wanted: str) -> float:
    number = written.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = written.strip()[len(number) :].lower()
    try:
        amount = float(number) * units[unit]
    except (ValueError, KeyError):
        amount = -1.0
    if not 0 <= amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{written!r} is not {wanted}")
    return amount


def seconds(written: str) -> float:
    units = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
    return _amount(written, units, "a length of time; give seconds, or as in 90s, 10min, 2h")


def size(written: str) -> int:
    units = {"": 1, "b": 1}
    for power, prefix in enumerate("kmgt", 1):
        units |= {prefix: 1000**power, f"{prefix}b": 1000**power, f"{prefix}ib": 1024**power}
    return int(_amount(written, units, "a size; give bytes, or as in 500MB, 2G, 2GiB"))


def url_of(arguments: Arguments, named: str | None = None) -> str:
    """The store that is meant: the one named, else --jugdir, else $JUG_STORE, else "jugdata"."""
    return named or arguments.jugdir or os.environ.get("JUG_STORE") or "jugdata"


def is_there(url: str) -> bool:
    from jug_notebook.store import exists

    return exists(url)


def existing(url: str) -> str:
    """A store that is there. Looking must not make one: a wrong folder would be an empty store for ever after."""
    if not is_there(url):
        from jug_notebook.store import masked

        raise StoreError(f"no store at {masked(url)!r}: %jug_store or jug-notebook worker makes one")
    return url


def store_of(arguments: Arguments, named: str | None = None) -> Store:
    from jug_notebook.store import open_store

    return open_store(existing(url_of(arguments, named)))


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a function's name, a task's key or its beginning, or /regex/ on function names",
    )


def meant(store: Store, target: str) -> list[Key]:
    """The tasks that are meant, of all notebooks: a shell belongs to none."""
    from jug_notebook.model import Scope
    from jug_notebook.session.targets import keys_of

    return keys_of(target, store, Scope())


def opener_of(store: Store) -> SignedReader:
    from jug_notebook.store.signed import SignedReader, seal_of

    return SignedReader(store, seal_of(store))


# -- what several commands do -----------------------------------------------------------------------------------------


def picture_of(url: str, failures: int = 0) -> Snapshot:
    """The store's picture, with so many of its latest failures: they alone need what opens sealed bytes."""
    from jug_notebook.model import Scope, State
    from jug_notebook.store import open_store

    gc.disable()  # what is folded stays to the end, which is near; looking for garbage costs a sixth of the time
    store = open_store(existing(url))
    picture = store.snapshot()
    if failures and picture.counts[State.FAILED]:
        from msgspec.structs import replace

        try:
            signed = opener_of(store)
        except StoreError as unknown:  # the picture is no secret
            picture = replace(picture, notes=(*picture.notes, f"failures are not shown: {unknown}"))
        else:
            from jug_notebook.session.queries import FailureIndex

            failing = FailureIndex(store, signed)
            latest = failing.latest(Scope())
            picture = replace(picture, failures=failing.latest_views(latest, failures), kinds=failing.kinds(latest))
    store.close()
    return picture


def verdict(picture: Snapshot) -> int:
    from jug_notebook.model import State

    return 0 if picture.counts[State.FINISHED] == picture.total else 1


def write(path: Path, text: str) -> None:
    """Write a file as a whole: a browser that reloads it never sees half of it. Raises UsageError."""
    try:
        atomic.replace(path, text.encode(), mode=None)
    except OSError as refused:
        raise UsageError(f"can't write {str(path)!r}: {refused.strerror}") from refused
