"""The command line, ``jug-notebook`` or ``python -m jug_notebook``. Options end here.

Each sub-command is a `Command` in ``COMMANDS``; other packages add theirs as entry points of the group
``jug_notebook.commands``. Nothing is imported for a command that isn't run, so that starting a worker stays cheap.

Exit status: 0 fine; 1 some task failed or is not done, or a notebook's cell failed; 2 asked wrongly, or can't be done.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from jug_notebook.errors import JugError, StoreError

if TYPE_CHECKING:
    from jug_notebook.model import Key, Snapshot, Target
    from jug_notebook.session.opening import Opener
    from jug_notebook.store import Store

Arguments = argparse.Namespace
FAILURES = 100  #: so many of the latest are read; what shows them groups and cuts them
LOGS = 20  #: so many tasks are shown in one log


class UsageError(JugError):
    """This can't be asked for."""


class Command(NamedTuple):
    """A sub-command: what it does, in a line; what it adds to the parser; what it does, answering the exit status."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], int]


def main(argv: list[str] | None = None) -> int:
    """Run one command; answers the exit status."""
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("jug-notebook: interrupted", file=sys.stderr)
        return 130
    except JugError as error:
        print("jug-notebook:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `jug-notebook status | head`: nobody reads on, and that's fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(argv: list[str]) -> int:
    name, rest = _split(argv)
    if name is None:
        return _without_command(rest)
    command = COMMANDS.get(name) or _others().get(name)
    if command is None:
        raise UsageError(_unknown(name))
    parser = _parser(f"jug-notebook {name}", command.help)
    command.add_arguments(parser)
    return command.run(parser.parse_args(rest))


_URL_OPTIONS = ("--jugdir", "--store")


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """(command, all else): options that every command takes may stand before it."""
    skip = False
    for i, word in enumerate(argv):
        if skip:
            skip = False
        elif word in _URL_OPTIONS:
            skip = True
        elif not word.startswith("-"):
            return word, argv[:i] + argv[i + 1 :]
    return None, argv


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        *_URL_OPTIONS,
        dest="jugdir",
        metavar="URL",
        help="the store: a folder, or its URL (default: $JUG_STORE, else 'jugdata')",
    )
    return parser


def _without_command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="jug-notebook",
        usage="jug-notebook [--jugdir URL] COMMAND …",
        description="Tasks of notebooks, from a shell. Each command explains itself: jug-notebook COMMAND --help",
        epilog="commands:\n" + _table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument(
        *_URL_OPTIONS, dest="jugdir", metavar="URL", help="the store (default: $JUG_STORE, else 'jugdata')"
    )
    if parser.parse_args(argv).version:
        from jug_notebook import __version__

        print("jug-notebook", __version__)
        return 0
    parser.print_help(sys.stderr)
    return 2


def _table() -> str:
    commands = {**COMMANDS, **_others()}
    width = max(map(len, commands))
    return "\n".join(f"  {name:<{width}}  {command.help}" for name, command in commands.items())


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, [*COMMANDS, *_others()], n=1)
    return f"no command {name!r}; " + (f"did you mean {close[0]!r}?" if close else "jug-notebook --help lists them")


def _others() -> Mapping[str, Command]:
    """Commands that other packages add. Asked only where ours are not enough: looking for them takes a while."""
    from importlib.metadata import entry_points

    found = sorted(entry_points(group="jug_notebook.commands"), key=lambda point: point.name)
    return {point.name: point.load() for point in found if point.name not in COMMANDS}


# -- what options mean ------------------------------------------------------------------------------------------------


def _count(written: str) -> int:
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


def _seconds(written: str) -> float:
    units = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
    return _amount(written, units, "a length of time; give seconds, or as in 90s, 10min, 2h")


def _bytes(written: str) -> int:
    units = {"": 1, "b": 1}
    for power, prefix in enumerate("kmgt", 1):
        units |= {prefix: 1000**power, f"{prefix}b": 1000**power, f"{prefix}ib": 1024**power}
    return int(_amount(written, units, "a size; give bytes, or as in 500MB, 2G, 2GiB"))


def _url(arguments: Arguments, named: str | None = None) -> str:
    """The store that is meant: the one named, else --jugdir, else $JUG_STORE, else "jugdata"."""
    return named or arguments.jugdir or os.environ.get("JUG_STORE") or "jugdata"


def _is_there(url: str) -> bool:
    from jug_notebook.store import exists

    return exists(url)


def _existing(url: str) -> str:
    """A store that is there. Looking must not make one: a wrong folder would be an empty store for ever after."""
    if not _is_there(url):
        from jug_notebook.store import masked

        raise StoreError(f"no store at {masked(url)!r}: %jug_store or jug-notebook worker makes one")
    return url


def _store(arguments: Arguments, named: str | None = None) -> Store:
    from jug_notebook.store import open_store

    return open_store(_existing(_url(arguments, named)))


# -- worker, execute --------------------------------------------------------------------------------------------------


def _add_limits(parser: argparse.ArgumentParser, idle: float) -> None:
    parser.add_argument(
        "-n", type=_count, metavar="N", default=os.cpu_count() or 1, help="workers (default: one a core)"
    )
    parser.add_argument(
        "--target", action="append", metavar="T", help="only tasks of this function, this key, or these /regex/"
    )
    parser.add_argument("--max-tasks", type=_count, metavar="N", help="each worker ends after so many tasks")
    parser.add_argument(
        "--max-time", type=_seconds, metavar="TIME", help="start no task after this time: 600, 90s, 10min, 2h"
    )
    parser.add_argument(
        "--memory-limit", type=_bytes, metavar="SIZE", help="end a task that takes more: 500MB, 2G, 2GiB"
    )
    parser.add_argument(
        "--idle-timeout",
        type=_seconds,
        metavar="TIME",
        default=idle,
        help="end after so long with nothing to do and no notebook attached (default: %(default)g s)",
    )


def _add_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store; made if it's new")
    _add_limits(parser, idle=600.0)
    parser.add_argument(
        "--crew", default="", metavar="NAME", help="the crew it belongs to; one supervisor serves one crew"
    )
    parser.add_argument("--detached", action="store_true", help="go on without a terminal, in a session of its own")
    parser.add_argument("--tied-to", default="", metavar="ID", help="end when this process is gone")


def _worker(arguments: Arguments) -> int:
    _make_if_new(_url(arguments, arguments.url))
    return _supervise(arguments, _url(arguments, arguments.url), arguments.crew, arguments.detached, arguments.tied_to)


def _make_if_new(url: str) -> None:
    """A store is made with its key; workers refuse one whose key they don't have."""
    from jug_notebook.store import keyring, open_store

    if not _is_there(url):
        store = open_store(url)
        keyring.secret(store.id, make=True)
        store.close()


def _supervise(arguments: Arguments, url: str, crew: str = "", detached: bool = False, tied_to: str = "") -> int:
    from jug_notebook.supervisor import supervise

    return supervise(
        url,
        arguments.n,
        crew=crew,
        detached=detached,
        tied_to=tied_to,
        idle_timeout=arguments.idle_timeout,
        max_tasks=arguments.max_tasks,
        max_time=arguments.max_time,
        memory_limit=arguments.memory_limit,
        target=_target(arguments.target, url),
    )


def _target(wanted: list[str] | None, url: str) -> Target | None:
    """Functions by name or /regex/, tasks by key. A regex means the functions that the store knows by now."""
    if not wanted:
        return None
    import re

    from jug_notebook.model import Target
    from jug_notebook.store import open_store

    names, keys = set[str](), set[str]()
    for word in wanted:
        if len(word) > 2 and word[0] == word[-1] == "/":
            try:
                pattern = re.compile(word[1:-1])
            except re.error as wrong:
                raise UsageError(f"--target {word}: {wrong}") from wrong
            store = open_store(_existing(url))
            names |= {function.name for function in store.snapshot().functions if pattern.search(function.name)}
            store.close()
        elif re.fullmatch("[0-9a-f]{40}", word):
            keys.add(word)
        else:
            names.add(word)
    if not names and not keys:
        raise UsageError(f"no function of the store matches {' or '.join(wanted)}")
    return Target(frozenset(names), frozenset(keys))


def _add_execute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="FILE|URL", nargs="?", help="a notebook to run without a browser, or a store to work for"
    )
    _add_limits(parser, idle=0.0)
    parser.set_defaults(n=None)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--inplace", action="store_true", help="write the outputs into the notebook")
    where.add_argument("--output", metavar="F", type=Path, help="write the notebook with its outputs to F")


def _execute(arguments: Arguments) -> int:
    what = _url(arguments, arguments.what)
    if what.endswith(".ipynb"):
        return _execute_notebook(Path(what), arguments)
    if arguments.inplace or arguments.output:
        raise UsageError(f"--inplace and --output are about notebooks, and {what!r} is none")
    if Path(what).is_file():
        raise UsageError(
            f"{what!r} is neither a notebook (.ipynb) nor a store; run a script with python, and work for its store"
        )
    _existing(what)
    arguments.n = arguments.n or os.cpu_count() or 1
    status = _supervise(arguments, what)
    if status:
        return status
    from jug_notebook import render

    picture = _picture(what)
    print(render.short(picture))
    return _verdict(picture)


def _execute_notebook(notebook: Path, arguments: Arguments) -> int:
    if not notebook.is_file():
        raise UsageError(f"no notebook at {str(notebook)!r}")
    if arguments.n:
        raise UsageError("-n is about stores; a notebook starts its own workers, with %jug_execute -n N")
    output = notebook if arguments.inplace else arguments.output
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"no folder {str(output.parent)!r} to write {output.name} to")
    from jug_notebook.headless import execute

    if arguments.jugdir:
        os.environ["JUG_STORE"] = _absolute(arguments.jugdir)
    return 0 if execute(notebook, output, say=_say) else 1


def _absolute(url: str) -> str:
    """A relative folder means ours here, and the notebook's there."""
    from jug_notebook.store import absolute

    return absolute(url)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- status, check ----------------------------------------------------------------------------------------------------


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")
    from jug_notebook import render

    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--short", action="store_true", help="one line")
    shape.add_argument("--json", action="store_true", help="for programs; the fields are told below")
    shape.add_argument("--html", metavar="F", help="write a page to F ('-': to the output)")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "--json: " + (render.plain.__doc__ or "").replace("\n    ", "\n")


def _picture(url: str, failures: int = 0) -> Snapshot:
    """The store's picture, with so many of its latest failures: they alone need what opens sealed bytes."""
    from jug_notebook.model import State
    from jug_notebook.store import open_store

    gc.disable()  # what is folded stays to the end, which is near; looking for garbage costs a sixth of the time
    store = open_store(_existing(url))
    picture = store.snapshot()
    if failures and picture.counts[State.FAILED]:
        from msgspec.structs import replace

        try:
            opener = _opener(store)
        except StoreError as unknown:  # the picture is no secret
            picture = replace(picture, notes=(*picture.notes, f"failures are not shown: {unknown}"))
        else:
            latest = store.tasks(state=State.FAILED, limit=failures)
            picture = replace(picture, failures=tuple(opener.failures(latest)))
    store.close()
    return picture


def _opener(store: Store) -> Opener:
    from jug_notebook.codec import Seal
    from jug_notebook.session.opening import Opener
    from jug_notebook.store import keyring

    return Opener(store, Seal(keyring.secret(store.id), store.id))


def _verdict(picture: Snapshot) -> int:
    from jug_notebook.model import State

    return 0 if picture.counts[State.FINISHED] == picture.total else 1


def _status(arguments: Arguments) -> int:
    from jug_notebook import render

    picture = _picture(_url(arguments, arguments.url), failures=0 if arguments.short else FAILURES)
    if arguments.short:
        print(render.short(picture))
    elif arguments.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(render.plain(picture)), indent=2).decode())
    elif arguments.html == "-":
        sys.stdout.write(render.page(picture, render.SHELL))
    elif arguments.html:
        _write(Path(arguments.html), render.page(picture, render.SHELL))
    else:
        print(render.text(picture, render.SHELL))
    return _verdict(picture)


def _write(path: Path, text: str) -> None:
    """Written aside, then there: a browser that reloads it never sees a half."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as refused:
        aside.unlink(missing_ok=True)
        raise UsageError(f"can't write {str(path)!r}: {refused.strerror}") from refused


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")


def _check(arguments: Arguments) -> int:
    from jug_notebook import render

    picture = _picture(_url(arguments, arguments.url))
    print(render.short(picture))
    return _verdict(picture)


# -- invalidate, retry, stop, log -------------------------------------------------------------------------------------


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a function's name, a task's key or its beginning, or /regex/ on function names",
    )


def _add_invalidate(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say which tasks are meant")


def _meant(store: Store, target: str) -> list[Key]:
    """The tasks that are meant, of all notebooks: a shell belongs to none."""
    from jug_notebook.model import Scope
    from jug_notebook.session.targets import keys_of

    return keys_of(target, store, Scope())


def _invalidate(arguments: Arguments) -> int:
    from jug_notebook.model import Target, Why
    from jug_notebook.process import user

    store = _store(arguments)
    keys = _meant(store, arguments.target)
    if arguments.dry_run:
        from jug_notebook import render

        meant = set(keys)
        views = [view for view in store.tasks(target=Target(keys=frozenset(meant))) if view.key in meant]
        print(render.tasks_text(_opener(store).filled(views[: render.TASKS]), len(views)))
    else:
        count = len(store.invalidate(keys, Why.DIRECT, user()))
        them = "it" if count == 1 else "them"
        print(f"{_tasks(count)} lost their outcome; what was made from {them} will be computed again, too")
    store.close()
    return 0


def _add_accept(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    parser.add_argument("--undo", action="store_true", help="take that back: what stood on it is computed after all")
    parser.add_argument("--dry-run", action="store_true", help="only say what would come of it")


def _accept(arguments: Arguments) -> int:
    from jug_notebook.clock import CLOCK
    from jug_notebook.codec import Seal
    from jug_notebook.process import user
    from jug_notebook.session.accepting import Accepting
    from jug_notebook.store import keyring

    store = _store(arguments)
    accepting = Accepting(store, Seal(keyring.secret(store.id), store.id), user())
    act = accepting.undo if arguments.undo else accepting.accept
    print(act(_meant(store, arguments.target), CLOCK.now(), arguments.dry_run))
    store.close()
    return 0


def _retry(arguments: Arguments) -> int:
    from jug_notebook.model import State, Why
    from jug_notebook.process import user

    store = _store(arguments)
    keys = _meant(store, arguments.target)
    culprits = [
        key if state is State.FAILED else blamed
        for key, state, blamed in zip(keys, store.states(keys), store.blame(keys), strict=True)
    ]
    failed = list(dict.fromkeys(key for key in culprits if key is not None))
    count = len(store.invalidate(failed, Why.RETRY, user())) if failed else 0
    print(f"{_tasks(count)} will be tried again" if count else "none of these has failed")
    store.close()
    return 0


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="at once, not after the current task")
    parser.add_argument("--host", metavar="H", help="only the workers of this host")


def _stop(arguments: Arguments) -> int:
    from jug_notebook.launch import tell
    from jug_notebook.model import Stop

    store = _store(arguments)
    living = [info for info, alive, _ in store.processes() if alive and arguments.host in (None, info.host)]
    supervisors = [info for info in living if info.kind == "supervisor"]
    tell(store, supervisors, Stop(now=arguments.now))
    store.close()
    if supervisors:
        workers = sum(info.kind == "worker" for info in living)
        hosts = ", ".join(sorted({info.host for info in supervisors}))
        how = "at once" if arguments.now else "after their current tasks"
        print(f"{workers} worker{'' if workers == 1 else 's'} on {hosts} will stop {how}")
    else:
        print("no worker is alive" + (f" on {arguments.host}" if arguments.host else ""))
    return 0


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="a function's name, a task's key or its beginning, or /regex/ on function names",
    )
    parser.add_argument("--history", action="store_true", help="who ran what when: the latest runs that ended")


def _log(arguments: Arguments) -> int:
    if arguments.history:
        return _history(arguments)
    if arguments.target is None:
        raise UsageError("say which task: jug-notebook log TARGET, or jug-notebook log --history")
    from jug_notebook import render
    from jug_notebook.model import Failed
    from jug_notebook.session.opening import failure

    store = _store(arguments)
    opener = _opener(store)
    keys = _meant(store, arguments.target)
    for key in keys[-LOGS:]:
        [view], [outcome] = opener.views([key]), opener.outcomes([key])
        if isinstance(outcome, Failed):
            print(render.failure_text(failure(outcome, view.name, view.shown)), end="\n\n")
        else:
            said = render.shown_text(opener.pieces(outcome.run)).rstrip("\n") if outcome else ""
            print(f"{view.state.value}: {view.name}({view.shown}) · key {key}", *([said] if said else []), "", sep="\n")
    if len(keys) > LOGS:
        print(f"and {len(keys) - LOGS:,} more before these")
    store.close()
    return 0


def _history(arguments: Arguments) -> int:
    from jug_notebook import render
    from jug_notebook.model import Scope
    from jug_notebook.session.origins import history

    if arguments.target is not None:
        raise UsageError("--history tells of all tasks; leave TARGET out")
    store = _store(arguments)
    print(render.history_text(*history(store, _opener(store), Scope(), render.TASKS)))
    store.close()
    return 0


def _add_graph(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", metavar="URL", help="the store")
    parser.add_argument("--svg", metavar="F", help="draw it into F ('-': to the output)")


def _graph(arguments: Arguments) -> int:
    from jug_notebook import render
    from jug_notebook.model import Graph
    from jug_notebook.store import open_store

    store = open_store(_existing(_url(arguments, arguments.url)))
    picture = store.snapshot()
    graph = Graph(picture.functions, tuple(store.edges()), picture.store, picture.scope)
    store.close()
    if arguments.svg == "-":
        sys.stdout.write(render.svg(graph, alone=True))
    elif arguments.svg:
        _write(Path(arguments.svg), render.svg(graph, alone=True))
    else:
        print(render.graph_text(graph))
    return 0


def _add_why(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)


def _why(arguments: Arguments) -> int:
    from jug_notebook import render
    from jug_notebook.model import Scope
    from jug_notebook.session.inquiry import Inquiry

    store = _store(arguments)
    keys = _meant(store, arguments.target)
    explanations = Inquiry(store, _opener(store), Scope()).explain(keys)
    print(render.why_text(explanations, len(keys)))
    store.close()
    return 0 if all(one.stored for one in explanations) else 1


# -- key --------------------------------------------------------------------------------------------------------------


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("export", "import"), help="export: to the output; import: from the input")


def _key(arguments: Arguments) -> int:
    """The secret goes through pipes only: an argument would stand in the process list and the shell's history."""
    return _export_key(arguments, sys.stdout) if arguments.action == "export" else _import_key(sys.stdin)


def _export_key(arguments: Arguments, to: IO[str]) -> int:
    from jug_notebook.store import keyring

    store = _store(arguments)
    print(store.id, keyring.secret(store.id).hex(), file=to)
    store.close()
    if to.isatty():
        print("jug-notebook: whoever has this line can run code as you; keep it to yourself", file=sys.stderr)
    return 0


def _import_key(source: IO[str]) -> int:
    from jug_notebook.store import keyring

    words = source.readline().split()
    try:
        store_id, secret = words[0], bytes.fromhex(words[1])
    except (IndexError, ValueError):
        secret = b""
    if len(words) != 2 or len(secret) != 32:
        raise UsageError("this is no key; pipe in the line that `jug-notebook key export` prints on the other machine")
    if keyring.put(store_id, secret) != secret:
        raise UsageError(f"there is another key of store {store_id} in {keyring.folder()}; move that file away first")
    print(f"key of store {store_id} kept")
    return 0


COMMANDS: dict[str, Command] = {
    "worker": Command("run workers for a store", _add_worker, _worker),
    "execute": Command(
        "run a notebook without a browser, or work for a store until nothing is left", _add_execute, _execute
    ),
    "status": Command("how far, how long still, what failed, who works", _add_status, _status),
    "check": Command("exit status 0 if all is done, 1 if not; one line says why", _add_check, _check),
    "invalidate": Command(
        "these values are wrong: compute them again, and all made from them", _add_invalidate, _invalidate
    ),
    "accept": Command("code was edited, and its former results stand", _add_accept, _accept),
    "retry": Command("try failed tasks again", _add_target, _retry),
    "stop": Command("stop the workers of a store", _add_stop, _stop),
    "log": Command("what a task printed, and why it failed; --history: who ran what when", _add_log, _log),
    "graph": Command("which functions need which, and how far each is", _add_graph, _graph),
    "why": Command("why a task isn't stored: what changed since the nearest that is", _add_why, _why),
    "key": Command("bring the key of a store to another machine", _add_key, _key),
}


if __name__ == "__main__":
    sys.exit(main())
