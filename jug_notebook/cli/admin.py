"""Commands that change what is stored or what runs, and those about a store as a whole."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jug_notebook.cli import (
    DEFAULT_STORE,
    Arguments,
    Parser,
    Store,
    UsageError,
    existing,
    flag,
    on_session,
    register,
    seconds,
    tasks_meant,
)
from jug_notebook.cli.jugfiles import add_selection
from jug_notebook.errors import clean
from jug_notebook.render import plural, size

if TYPE_CHECKING:
    from jug_notebook.session import Session

PATIENCE = 4.0  #: seconds to wait for workers that end at once


def _add_invalidate(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only list the tasks")
    parser.stores_only |= {"dry_run"}
    add_selection(parser, "invalid", "tasks", "--target", "--invalid")


@register(
    "invalidate",
    "discard wrong results: they and what depends on them will be recomputed",
    "[STORE] TARGET",
    _add_invalidate,
    jugfile=True,
)
@on_session
def _invalidate(session: Session, arguments: Arguments) -> int:
    if arguments.dry_run:
        print(session.queries.tasks(tasks_meant(session, arguments)))
    else:
        count = session.invalidate(tasks_meant(session, arguments))
        them = "it and what depends on it" if count == 1 else "they and what depends on them"
        print(f"invalidated {plural(count, 'result')}; {them} will be recomputed")
    return 0


def _add_accept(parser: Parser) -> None:
    parser.add_argument("--undo", action="store_true", help="take that back: what was accepted is computed after all")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be accepted")


@register("accept", "keep the results of a function's previous code", "[STORE] TARGET", _add_accept)
@on_session
def _accept(session: Session, arguments: Arguments) -> int:
    print(session.accept(tasks_meant(session, arguments), undo=arguments.undo, dry_run=arguments.dry_run))
    return 0


@register("retry", "try failed tasks again", "[STORE] TARGET")
@on_session
def _retry(session: Session, arguments: Arguments) -> int:
    count = session.retry(tasks_meant(session, arguments))
    print(f"{plural(count)} will be tried again" if count else "none of these has failed")
    return 0


def _add_stop(parser: Parser) -> None:
    parser.add_argument("--now", action="store_true", help="at once, not after the current tasks")
    parser.add_argument("--host", metavar="H", help="only the workers on this host")


@register("stop", "stop the workers of a store", "[STORE]", _add_stop)
@on_session
def _stop(session: Session, arguments: Arguments) -> int:
    count = session.workers.stop(arguments.now, arguments.host)
    where = f" on {arguments.host}" if arguments.host else ""
    if not arguments.now:
        how = "will stop after their current tasks"
    else:
        how = "stopped" if count and session.workers.ended(PATIENCE, arguments.host) else "will stop at once"
    stopped = session.workers.stopped
    if count or not stopped:
        print(f"{plural(count, 'worker')}{where} {how}" if count else f"no worker is alive{where}")
    print(*stopped, sep="\n", end="\n" if stopped else "")
    return 0


def _add_cleanup(parser: Parser) -> None:
    parser.epilog = f"Only TARGET's tasks, if given. {parser.epilog}"
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")
    parser.add_argument(
        "--older-than",
        type=seconds,
        metavar="TIME",
        help="only tasks made and run longer ago: 90s, 10min, 2h, 30d (default: all, and blobs of an hour ago)",
    )
    parser.stores_only |= {"dry_run", "older_than"}
    locks = parser.for_jugfiles().add_mutually_exclusive_group()
    flag(locks, "--locks-only", "cleanup_locks_only", "only make failed tasks ready; dead workers hold no locks")
    flag(locks, "--failed-only", "cleanup_failed_only", "only make failed tasks ready")
    flag(locks, "--keep-locks", "cleanup_keep_locks", "leave failed tasks as they are")


@register("cleanup", "delete unreferenced tasks and their data", "[STORE] [TARGET]", _add_cleanup, jugfile=True)
@on_session
def _cleanup(session: Session, arguments: Arguments) -> int:
    target = None if arguments.target is None else tasks_meant(session, arguments)
    print(session.cleanup(arguments.older_than, arguments.dry_run, target))
    return 0


def _add_copy(parser: Parser) -> None:
    parser.add_argument("source", metavar="FROM", help="a store: a folder, or its URL; or a mirror")
    parser.add_argument("to", metavar="TO", help="another store; made if it's new; or a mirror: s3://bucket/prefix …")


@register("copy", "copy all of a store into another, of any kind, or its results to a mirror", add=_add_copy)
def _copy(arguments: Arguments) -> int:
    from jug_notebook.session.mirroring import copy
    from jug_notebook.store import accept_new_store, keyring, mirror, split

    def progress(done: int, total: int) -> None:
        print(f"\r{done:,} of {total:,} tasks", end="\n" if done == total else "", file=sys.stderr, flush=True)

    ends = arguments.source, arguments.to
    for url in ends if arguments.accept_new_store else ():
        if mirror.is_mirror(url):
            keyring.unpin(mirror.Mirror(url).pin)
        else:
            accept_new_store(url)
    source = ends[0] if mirror.is_mirror(ends[0]) else existing(ends[0])
    ends_here = split(ends[1])[0] == "memory" and not mirror.is_mirror(ends[1])
    print(copy(source, existing(ends[1]) if ends_here else ends[1], progress if sys.stderr.isatty() else None))
    return 0


def _pack_of_jugfile(arguments: Arguments) -> int:
    from jug_notebook.compat.commands import store_of

    arguments.of = Store(arguments.jugdir or store_of(arguments.jugfile))
    return _pack(arguments)


@register("pack", "compact the store; others may go on working", "[STORE]", jugfile=_pack_of_jugfile)
def _pack(arguments: Arguments) -> int:
    from jug_notebook.session.access import short_url
    from jug_notebook.store import open_store

    store = open_store(existing(arguments.of.url))  # no session: this needs no key
    saved, url = store.compact(), short_url(store, Path.cwd())
    print(f"{url} takes {size(saved)} less" if saved else f"{url} is as small as it gets")
    store.close()
    return 0


def _add_key(parser: Parser) -> None:
    parser.add_argument(
        "action", choices=("export", "import"), help="export: to standard output; import: from standard input"
    )
    parser.add_argument(
        "--read-only",
        action="store_true",
        help="export a key that only reads and verifies: it can't submit or run tasks",
    )


@register("key", "bring the key of a store to another machine", "[STORE]", _add_key)
def _key(arguments: Arguments) -> int:
    """The secret goes through pipes only: an argument would stand in the process list and the shell's history."""
    from jug_notebook.store import keyring, open_store

    if arguments.action == "export":
        store = open_store(existing(arguments.of.url))
        store.close()
        if arguments.read_only:
            print(store.id, "read", keyring.read_secret(store.id).hex())
            return 0
        print(store.id, keyring.secret(store.id).hex())
        if sys.stdout.isatty():
            print("jug-notebook: anyone who has this line can run code as you; keep it secret", file=sys.stderr)
        return 0
    words = sys.stdin.readline().split()
    reads = words[1:2] == ["read"]
    try:
        store_id, secret = words[0], bytes.fromhex(words[-1])
    except (IndexError, ValueError):
        secret = b""
    if len(words) != 2 + reads or len(secret) != keyring.KEY_SIZE:
        raise UsageError(
            "this is not a key; pipe in the line that `jug-notebook key export` prints on the other machine"
        )
    (keyring.import_read_secret if reads else keyring.import_secret)(store_id, secret)
    print(f"{'read-only key' if reads else 'key'} of store {store_id} kept")
    return 0


def _add_doctor(parser: Parser) -> None:
    parser.add_argument("--verify", action="store_true", help="check instead that all that is stored is undamaged")
    parser.add_argument(
        "--repair", action="store_true", help="the same, and move damaged data aside, so that it is made again"
    )
    parser.add_argument("--host", action="append", default=[], metavar="H", help="check this host by ssh; repeatable")
    parser.add_argument("--hosts-file", metavar="F", help="check the hosts in a file, one per line")
    parser.add_argument("--python", metavar="P", help="the Python to run on these hosts")
    parser.add_argument("--setup", metavar="CMD", default="", help="shell commands to run there first")
    parser.add_argument(
        "--remote-dir",
        metavar="HERE=THERE",
        help="where a folder of this host is on the others; THERE: where the store's is",
    )


def _verify(arguments: Arguments) -> int:
    """Return 0 where nothing is damaged, or all of it was repaired, else 1."""
    from jug_notebook.session.verification import verify

    if arguments.host or arguments.hosts_file:
        raise UsageError("--verify and --repair check what is stored, not hosts: leave --host and --hosts-file out")
    shows = sys.stderr.isatty()

    def progress(line: str) -> None:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    found = verify(existing(arguments.of.url), arguments.repair, progress if shows else None)
    if shows:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(clean(str(found)))
    return 0 if found.good else 1


@contextmanager
def _there_or_made(url: str) -> Iterator[str]:
    """Yield the URL of a store; where the default one isn't there yet, that of one made beside its place meanwhile."""
    from jug_notebook.store import exists

    if url != DEFAULT_STORE or exists(url):
        yield existing(url)
        return
    home = os.environ.get("XDG_CONFIG_HOME")
    with tempfile.TemporaryDirectory(prefix=".jug-doctor-", dir=Path.cwd()) as aside:
        os.environ["XDG_CONFIG_HOME"] = aside  # its key is forgotten with it
        try:
            yield os.path.join(aside, "jugdata")
        finally:
            os.environ.pop("XDG_CONFIG_HOME")
            os.environ |= {} if home is None else {"XDG_CONFIG_HOME": home}


@register(
    "doctor",
    "check that workers can start, here and on other hosts, or that a store is undamaged",
    "[STORE]",
    _add_doctor,
)
def _doctor(arguments: Arguments) -> int:
    """Start nothing. Return 0 where workers could start on all hosts, else 1."""
    if arguments.verify or arguments.repair:
        return _verify(arguments)
    with _there_or_made(arguments.of.url) as url:
        return _preflight(arguments, url)


def _preflight(arguments: Arguments, url: str) -> int:
    from msgspec.structs import replace

    from jug_notebook.clock import CLOCK
    from jug_notebook.launch import remote, slurm, start
    from jug_notebook.store import open_store, split
    from jug_notebook.worker import WorkerOptions

    store = open_store(url)
    scheme, rest = split(store.url)
    folder = Path(rest).parent if scheme == "file" else Path.cwd()
    words: list[str | Path] = [word for written in arguments.host for word in written.split(",") if word]
    if arguments.hosts_file:
        words.append(Path(arguments.hosts_file))
    if not words and (arguments.python or arguments.setup or arguments.remote_dir):
        raise UsageError("--python, --setup and --remote-dir are for other hosts: name one with --host")
    reports = [remote.look(store)]
    if url != arguments.of.url:
        new = remote.Check("store", f"there is none at {arguments.of.url!r} yet; one could be made")
        reports[0] = replace(reports[0], checks=tuple(new if one.what == "store" else one for one in reports[0].checks))
    if jobs := slurm.look():
        reports[0] = replace(reports[0], checks=(*reports[0].checks, *jobs))
    if words and not reports[0].failure:
        folders = start.folders_of(arguments.remote_dir, folder)
        options = WorkerOptions(0, python=arguments.python, setup=arguments.setup, folders=folders)
        reports += start.look(store, folder, options, start.read_hosts(words, Path.cwd()), CLOCK)
    store.close()
    print(remote.Preflight(reports))
    return 1 if any(report.failure for report in reports) else 0
