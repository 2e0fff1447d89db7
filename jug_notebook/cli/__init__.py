"""The sub-commands of the command line: what a command is, and what it looks at.

A command looks at a store, at a jugfile (a script of Jug's) or at a notebook: `what_is_meant` decides that from its
words, once they are parsed. The files here `register` theirs; `FILES` maps commands to files. Other packages add
commands as entry points of the group ``jug_notebook.commands``. Nothing is imported for a command that isn't run, so
that starting a worker stays cheap.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from jug_notebook.errors import JugError, StoreError
from jug_notebook.render.format import parse_duration, parse_resources, parse_size

if TYPE_CHECKING:
    from jug_notebook.model import Snapshot
    from jug_notebook.session import Session
    from jug_notebook.task.values import TaskList

N = TypeVar("N")
Arguments = argparse.Namespace
URL_OPTIONS = ("--jugdir", "--store")
DEFAULT_JUGFILE = "jugfile.py"
DEFAULT_STORE = "jugdata"
PACE = 0.25  #: seconds between two updates, at least
TICK = 1.0  #: seconds after which ages and estimates are updated though nothing has changed


class UsageError(JugError):
    """The command line can't be understood, or asks for what can't be done."""


class Command(NamedTuple):
    """A sub-command. ``run`` returns the exit status."""

    help: str  #: one line
    add_arguments: Callable[[Any], None]  #: adds options to its `Parser`
    run: Callable[[Arguments], int]  #: what it does for a store or a notebook: ``arguments.of``
    words: str = ""  #: what may stand beside the options, as "[STORE] TARGET"; empty: `add_arguments` declares it
    jugfile: Callable[[Arguments], int] | None = None  #: what it does for a jugfile, if not the same for its store


#: the commands of each file; they are listed in this order
_FILES = {
    "run": "worker execute",
    "inspect": "status check count log graph timeline profile why sleep-until webstatus",
    "admin": "invalidate accept retry stop cleanup copy pack key doctor",
    "jugfiles": "import-jugdata demo test-jug install-skills",
    "shell": "shell",
    "mcp": "mcp",
    "completion": "completion",
}
FILES = {name: file for file, names in _FILES.items() for name in names.split()}
_registered: dict[str, Command] = {}
Run = TypeVar("Run", bound=Callable[[Arguments], int])


def register(
    name: str,
    help: str,
    words: str = "",
    add: Callable[[Any], None] = lambda parser: None,
    jugfile: Callable[[Arguments], int] | bool = False,
) -> Callable[[Run], Run]:
    """Return a decorator of what a command runs: see `Command`. ``jugfile=True``: see `for_jugfile`."""

    def registered(run: Run) -> Run:
        for_jugfiles = for_jugfile(name) if jugfile is True else jugfile or None
        _registered[name] = Command(help, add, run, words, for_jugfiles)
        return run

    return registered


def for_jugfile(name: str) -> Callable[[Arguments], int]:
    """Return what a command runs for a jugfile; it imports what it needs when it is called."""

    def run(arguments: Arguments) -> int:
        from jug_notebook.compat import commands, loading

        options = loading.settled(name, arguments)
        options.update({"jugdir_given": arguments.jugdir is not None})
        return commands.ACTIONS[name](options)

    return run


def command(name: str) -> Command | None:
    """Return the command of that name; None where there is none."""
    if name not in FILES:
        return _plugins().get(name)
    importlib.import_module(f"{__name__}.{FILES[name]}")
    return _registered[name]


def commands() -> dict[str, Command]:
    """Return all commands by name, those of other packages last."""
    return {name: found for name in FILES if (found := command(name))} | _plugins()


def _plugins() -> dict[str, Command]:
    """Commands that other packages add. Looking for them takes a while, so it is done only where ours don't do."""
    from importlib.metadata import entry_points

    found = sorted(entry_points(group="jug_notebook.commands"), key=lambda point: point.name)
    return {point.name: point.load() for point in found if point.name not in FILES}


def split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the command's name and all other words: the options that every command takes may stand before it."""
    value = False
    for i, word in enumerate(argv):
        if value:
            value = False
        elif word in (*URL_OPTIONS, "--print-completion"):
            value = True
        elif not word.startswith("-"):
            return word, [*argv[:i], *argv[i + 1 :]]
    return None, list(argv)


# -- parsing -----------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Parses the words after a command's name."""

    def __init__(self, name: str = "", command: Command | None = None, **more: Any) -> None:
        super().__init__(prog=f"jug-notebook {name}".strip(), allow_abbrev=False, **more)
        self.stores_only: set[str] = set()  #: dests of options that a jugfile doesn't have: they ask for its store
        self.jugfiles_only: set[str] = set()  #: dests of options that a store doesn't have
        self.add_argument(
            *URL_OPTIONS,
            dest="jugdir",
            metavar="URL",
            help="the store: a folder or a URL (default: $JUG_STORE, else 'jugdata'"
            + ("; of a jugfile NAME.py: NAME.jugdata)" if command is not None and command.jugfile else ")"),
        )
        self.add_argument(
            "--accept-new-store", action="store_true", help="use the store even if another one was at its URL before"
        )
        if command is None:
            return
        self.description = command.help
        self.epilog = TARGET if "TARGET" in command.words else None
        command.add_arguments(self)
        if command.words:
            metavar = command.words.replace("[", "").replace("]", "")
            words = WORDS + (WITH_TARGET if "TARGET" in command.words else "")
            self.add_argument("words", nargs="*", metavar=metavar, help=words)
        if command.jugfile:
            self._add_jugfile_options()

    def _add_jugfile_options(self) -> None:
        group = self.for_jugfiles()
        if "--short" not in self._option_string_actions:
            flag(group, "--short", "short", "one line only")
        group.add_argument("--verbose", metavar="LEVEL", help="log messages of this level: info, debug")
        flag(group, "--pdb", "pdb", "start a debugger where an error happens")
        flag(group, "--debug", "debug", "check that tasks do not change their arguments")
        flag(group, "--aggressive-unload", "aggressive_unload", "no effect: values are never kept longer than needed")
        flag(group, "--will-cite", "will_cite", "no effect: there is no request to cite")
        self.jugfiles_only |= {action.dest for action in group._group_actions}

    def for_jugfiles(self) -> Any:
        """Return the group of the options that only jugfiles have."""
        title = "options for jugfiles"
        known = next((group for group in self._action_groups if group.title == title), None)
        return known or self.add_argument_group(title)

    def read(self, words: Sequence[str]) -> Arguments:
        """Parse: options and words in any order, and only words after "--"."""
        if not any(action.dest == "words" for action in self._actions):
            return self.parse_args(words)
        end = list(words).index("--") if "--" in words else len(words)
        arguments = self.parse_intermixed_args(words[:end])
        arguments.words += words[end + 1 :]
        return arguments

    def given(self, arguments: Arguments, dests: set[str]) -> list[str]:
        """Return which of these options were given, as they are spelt."""
        return [
            action.option_strings[-1]
            for action in self._actions
            if action.dest in dests and getattr(arguments, action.dest) not in (None, action.default)
        ]


WORDS = "STORE: a folder or a URL, a jugfile (.py), or a notebook (.ipynb)"
WITH_TARGET = "; TARGET: tasks, see below"
TARGET = "TARGET is a function's name, a task's key or the beginning of one, or /regex/ over function names"


def flag(parser: Any, option: str, dest: str, help: str, const: bool = True) -> None:
    """Add an option that is None unless given, so that jugrc files count."""
    parser.add_argument(option, action="store_const", const=const, dest=dest, help=help)


def positive(text: str) -> int:
    """Parse a number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _option_type(parse: Callable[[str], N]) -> Callable[[str], N]:
    """Return an option's type whose errors say what is wrong."""

    def parsed(text: str) -> N:
        try:
            return parse(text)
        except ValueError as wrong:
            raise argparse.ArgumentTypeError(str(wrong)) from None

    return parsed


seconds, size, resources = _option_type(parse_duration), _option_type(parse_size), _option_type(parse_resources)


# -- what a command looks at -------------------------------------------------------------------------------------------


class Store(NamedTuple):
    """A store; with ``notebook``, what that notebook has in it."""

    url: str
    notebook: str | None = None


class Jugfile(NamedTuple):
    """A script of Jug's, with the arguments that it finds in ``sys.argv``."""

    path: str
    arguments: list[str]


class Notebook(NamedTuple):
    """A notebook, to be run."""

    path: Path


def what_is_meant(found: Command, parser: Parser, arguments: Arguments) -> Store | Jugfile | Notebook:
    """Return what a command looks at; sets ``arguments.target``, what remains of its words.

    A word that ends in .py or .ipynb is a jugfile or a notebook, else the first word is a store. Where nothing is named
    by a word, by --jugdir or by $JUG_STORE, a jugfile.py in this folder is meant by commands that know jugfiles. A
    command or an option that is about stores means the jugfile's or the notebook's store.
    """
    words, target = list(arguments.words), "TARGET" in found.words
    scripts = [word for word in words if word.endswith((".py", ".ipynb"))]
    named = (scripts or words[: len(words) - 1])[:1] if target else words[:1]
    for word in named:
        words.remove(word)
    url = arguments.jugdir or os.environ.get("JUG_STORE")
    if not named and not words and not url and found.jugfile and os.path.isfile(DEFAULT_JUGFILE):
        named = [DEFAULT_JUGFILE]
    name = named[0] if named else ""
    if arguments.accept_new_store:
        _accept_new_store(name, arguments, url)
    if name.endswith(".py"):
        if found.jugfile and not parser.given(arguments, parser.stores_only):
            return Jugfile(name, words)
        from jug_notebook.compat.commands import store_of

        meant = Store(arguments.jugdir or store_of(name))
    elif name.endswith(".ipynb"):
        if found.words.startswith("[STORE|NOTEBOOK"):
            return Notebook(Path(name))
        meant = _store_of_notebook(name, url or DEFAULT_STORE)
    else:
        meant = Store(name or url or DEFAULT_STORE)
    _refuse(found, parser, arguments, words)
    if target:
        arguments.target = words[0] if words else None
    return meant


def _accept_new_store(name: str, arguments: Arguments, url: str | None) -> None:
    from jug_notebook.store import accept_new_store

    if name.endswith(".py"):  # not yet loaded: that would open its store
        from jug_notebook.compat import configuration

        url = str(configuration.settle({"jugfile": name, "jugdir": arguments.jugdir}, {})["jugdir"])
    elif name.endswith(".ipynb"):
        url = _store_of_notebook(name, url or DEFAULT_STORE).url
    else:
        url = name or url or DEFAULT_STORE
    accept_new_store(url)


def _store_of_notebook(path: str, url: str) -> Store:
    from jug_notebook.session import resolve_url

    notebook = os.path.abspath(path)
    if not os.path.isfile(notebook):
        raise UsageError(f"no notebook at {path!r}")
    return Store(resolve_url(url, Path(notebook).parent), notebook)


def _refuse(found: Command, parser: Parser, arguments: Arguments, words: list[str]) -> None:
    """Raise for words and options that a store has no use for."""
    if len(words) > int("TARGET" in found.words):
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    if not words and found.words.endswith(" TARGET"):
        parser.error("the following arguments are required: TARGET")
    if wrong := parser.given(arguments, parser.jugfiles_only - {"short"}):
        parser.error(f"{', '.join(wrong)}: for jugfiles only; name one, as in {parser.prog} {DEFAULT_JUGFILE}")


def existing(url: str) -> str:
    """Return the URL. Raises StoreError if there is no store: reading must not leave an empty one in a wrong folder."""
    from jug_notebook.store import exists, masked

    if not exists(url):
        raise StoreError(f"no store at {masked(url)!r}; name another with --jugdir, or make one: jug-notebook worker")
    return url


def session_of(of: Store) -> Session:
    """Return a read-only session on a store that exists: it submits nothing, and others don't see it."""
    from jug_notebook.session import Session

    return Session(existing(of.url), notebook=of.notebook, folder=Path.cwd(), read_only=True)


def on_session(run: Callable[[Session, Arguments], int]) -> Callable[[Arguments], int]:
    """Return what a command runs: ``run`` with a session on its store, which is closed afterwards."""

    def opened(arguments: Arguments) -> int:
        with contextlib.closing(session_of(arguments.of)) as session:
            return run(session, arguments)

    return opened


def tasks_meant(session: Session, arguments: Arguments) -> TaskList:
    """Return the tasks of TARGET: of all notebooks, or only of the notebook that was named."""
    return session.resolve(arguments.target, all=arguments.of.notebook is None)


class View:
    """The status of a store; without its failures if this account doesn't have the store's key."""

    def __init__(self, of: Store) -> None:
        from jug_notebook.model import Scope
        from jug_notebook.store import open_store

        existing(of.url)
        self._seen = -1
        try:
            session = session_of(of)
        except StoreError as unknown:  # counts can be read without the key
            note = f"failures are not shown: {unknown}"
            store = open_store(of.url)
            scope = Scope(notebook=of.notebook)
            self.watch: Callable[[int, float], int] = store.watch
            self.close = store.close
            self._picture: Callable[[bool], Snapshot] = lambda failures: _noted(store.snapshot(scope), note, failures)
        else:
            whole = of.notebook is None
            self.watch, self.close = session.queries.watch, session.close
            self._picture = lambda failures: (
                session.queries.status(whole).snapshot if failures else session.queries.glance(whole)
            )

    def picture(self, failures: bool = True) -> Snapshot:
        """Return the status now, with the latest ``failures`` or only their number."""
        return self._picture(failures)

    def changed(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for a change since the last call. Return whether there was one."""
        before, self._seen = self._seen, self.watch(self._seen, timeout)
        return self._seen != before


def _noted(picture: Snapshot, note: str, failures: bool) -> Snapshot:
    from msgspec.structs import replace

    from jug_notebook.model import State

    return replace(picture, notes=(*picture.notes, note)) if failures and picture.counts[State.FAILED] else picture
