"""The remote side of a launch: checks its host, then becomes the supervisor there.

The request comes as one line of input, because arguments are visible in the process list and a request holds the
store's key. Answers are lines that begin with `MARK`, because a login shell's output comes the same way.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import IO, NoReturn

import msgspec
from msgspec import Struct

from jug_notebook import system
from jug_notebook.clock import CLOCK
from jug_notebook.errors import JugError
from jug_notebook.model import Scale, WorkerInfo
from jug_notebook.store import Store, exists, keyring, open_store, split
from jug_notebook.store.atomic import Folder
from jug_notebook.worker import WorkerOptions, notices
from jug_notebook.worker.crew import engage, living
from jug_notebook.worker.execution import mapped
from jug_notebook.worker.notices import Notice
from jug_notebook.worker.supervisor import supervise

MARK = "jn1 "

#: What the other Python runs first. Any Python 3 must understand it: it may be an old one, without this package.
BOOT = """
import json, sys
request = json.loads(sys.stdin.readline())
sys.path[:] = [place for place in sys.path if place]
found = {"python": "%d.%d" % sys.version_info[:2], "path": sys.executable, "package": ""}
if found["python"] == request["python"]:
    try:
        import jug_notebook
        found["package"] = jug_notebook.__version__
    except ImportError as error:
        found["error"] = str(error)
sys.stdout.write("jn1 " + json.dumps(found) + "\\n")
sys.stdout.flush()
if found["package"] == request["version"]:
    from jug_notebook.launch import remote
    remote.serve(request)
"""


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
        width = max((len(check.what) for report in self for check in report.checks), default=0)
        lines = []
        for report in self:
            lines.append(report.place)
            for check in report.checks:
                lines.append(f"  {check.mark} {check.what:<{width}}  {check.message}")
                if check.remedy:
                    lines.append(f"    {'':<{width}}  → {check.remedy}")
        return "\n".join(lines)


class Request(Struct, frozen=True):
    """What a host is asked for. ``check``: start nothing; ``stay``: supervise in the process that was asked."""

    python: str
    version: str
    url: str
    store: str  #: its id
    crew: str = ""
    place: str = ""
    secret: str = ""
    options: WorkerOptions = WorkerOptions()
    packages: dict[str, str] = {}  #: that tasks import, with their versions here
    notices: tuple[Notice, ...] = ()  #: where its supervisors report to
    also: str = ""  #: the URL of the mirror from which blobs come that the store lacks
    check: bool = False
    stay: bool = False
    lasting: bool = True  #: may the key be kept on that host?

    def __repr__(self) -> str:
        return f"<request for {self.options.size} workers at {self.place}>"  # neither key nor password


class Answer(Struct, frozen=True, omit_defaults=True):
    """One line that a host sends back."""

    python: str = ""  #: from `BOOT`, with where that Python is, and which version of this package it has
    path: str = ""
    package: str = ""
    error: str = ""  #: why it can't be imported; of the shell, that there is no Python
    setup: str = ""  #: of the shell: the status with which ``--setup`` failed
    now: float = 0.0  #: the clock there
    checks: tuple[Check, ...] = ()
    host: str = ""  #: at last: that there are workers now,
    supervisor: str = ""
    size: int = 0  #: and how many in all
    before: int = 0  #: and how many of these were there already
    beat: int = 0  #: of a supervisor that was there already: its heartbeat at the order


def serve(request: object) -> None:
    """Do as asked and send answers to the output. Returns where a check fails, or all is done."""
    asked = msgspec.convert(request, Request)
    checks: list[Check] = []
    store = _looked_around(asked, checks)
    _send(Answer(now=CLOCK.now(), checks=tuple(checks)))
    if store is None or asked.check:
        return
    size = asked.options.size or system.cores()
    if found := engage(store, lambda: _running(store, asked.crew), Scale(size, at_least=True)):
        most = max(size, found.size)
        message = Answer(host=system.host(), supervisor=found.id, size=most, before=found.size, beat=found.beat)
        store.close()
        _send(message)
        return
    url = store.url
    store.close()
    home = os.path.expanduser("~")
    os.chdir(home if os.path.isdir(home) else "/")  # where tasks run whose folder isn't on this host
    if asked.stay:
        _supervise(asked, url, size, lambda me: _send(Answer(host=me.host, supervisor=me.id, size=size)), lead=0)
    else:
        _detach(asked, url, size)


def _running(store: Store, crew: str) -> list[WorkerInfo]:
    """Return the supervisors of a crew on this machine."""
    return [info for info in living(store, crew) if system.running(info)]


def supervise_job(asked: Request) -> int:
    """Be the supervisor in this process; return the exit status. Why none can be here is printed as one line."""
    checks = [python_check(system.python(), sys.executable, asked.python)]
    store = None if checks[0].wrong else _looked_around(asked, checks)
    if store is None:
        print(Report(system.host(), tuple(checks)).failure, file=sys.stderr)
        return 1
    url = store.url
    store.close()
    home = os.path.expanduser("~")
    os.chdir(home if os.path.isdir(home) else "/")  # where tasks run whose folder isn't on this host
    return _supervise(asked, url, asked.options.size or 1, lambda _: None)


def _looked_around(asked: Request, checks: list[Check]) -> Store | None:
    """Fill in ``checks``; return the open store where nothing is wrong."""
    store = None
    try:
        store = _opened(asked, checks)
        if store is not None:
            _try_to_write(store, checks)
            if not asked.check:
                keyring.secret(asked.store)
            checks.append(
                Check("key", "is there" if keyring.has_secret(asked.store) else "goes there with the first workers")
            )
            checks += _packages(asked)
            if asked.check:
                running = sum(info.size for info in _running(store, asked.crew))
                more = max(0, (asked.options.size or system.cores()) - running)
                checks.append(Check("workers", f"{running} are there, {more} would be started"))
    except JugError as error:
        checks.append(Check("store", str(error), "see what it says", True))
    return store if store is not None and not any(check.wrong for check in checks) else None


def _opened(asked: Request, checks: list[Check]) -> Store | None:
    scheme, rest = split(asked.url)
    way = "mount that folder there, or say where it is: --remote-dir HERE=THERE"
    if scheme == "file" and not exists(asked.url):
        checks.append(Check("store", f"sees no store at {rest}", way, True))
        return None
    if asked.secret and not asked.check:  # before it is opened, so that what is in it can be verified
        keyring.import_secret(asked.store, bytes.fromhex(asked.secret), asked.lasting)
    if asked.notices and not asked.check:
        notices.add(asked.store, asked.notices, asked.lasting)
    if asked.also:
        keyring.keep_also(asked.store, asked.also, lasting=False)
    store = open_store(asked.url, known=asked.store)
    if store.id != asked.store:
        message = f"another store is at {store.display_url} there ({store.id[:8]}, and not {asked.store[:8]})"
        checks.append(
            Check("store", message, way if scheme == "file" else "give a URL that means the same there", True)
        )
        return None
    checks.append(Check("store", f"sees the same one ({asked.store[:8]}) at {store.display_url}"))
    return store


def _try_to_write(store: Store, checks: list[Check]) -> None:
    scheme, rest = split(store.url)
    if scheme == "file":
        try:
            with Folder(rest) as root:
                output = root / "output"
                output.unlink(output.write_hidden())
        except OSError as error:
            message = f"{system.user()} can't write to {rest} there: {error.strerror}"
            checks.append(
                Check(
                    "writing", message, "mount it writable, or log in as a user who may write: --host USER@HOST", True
                )
            )
            return
        checks.append(Check("writing", f"works, as {system.user()}"))


def _packages(asked: Request) -> list[Check]:
    """Are the packages there that the functions of the notebook import?"""
    missing = [name for name in sorted(asked.packages) if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        remedy = f"tasks that import it will fail; install it there: {sys.executable} -m pip install {names}"
        return [Check("modules", f"no package {names} there", remedy)]
    other = []
    for name, version in sorted(asked.packages.items()):
        theirs = version_of(name)
        if version and theirs and theirs != version:
            other.append(f"{name} {theirs} there, and {version} here")
    if other:
        return [Check("modules", "; ".join(other), "values may differ; install equal versions where that matters")]
    return [Check("modules", ", ".join(sorted(asked.packages)))] if asked.packages else []


def mirror_of(store: Store, folders: Iterable[tuple[str, str]] = (), secret: bool = True) -> str:
    """Return the URL of a store's mirror, as a host with these folders has it; empty where there is none.

    Not ``secret``: where others may read it, so that one with a password in it isn't returned.
    """
    mirror = store.also
    if mirror is None or not (secret or mirror.url == mirror.display_url):
        return ""
    return f"file://{mapped(mirror.url[7:], folders)}" if mirror.url.startswith("file://") else mirror.url


def version_of(name: str) -> str:
    """The version of an installed package; empty where that is unknown."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _detach(asked: Request, url: str, size: int) -> None:
    """Leave a supervisor behind that has nothing to do with this process, and report it once it has registered."""
    reader, writer = os.pipe()
    log = tempfile.TemporaryFile()  # noqa: SIM115  # read should the start fail
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_supervisor(asked, url, size, writer, log)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        line = pipe.read()
    if line:
        _send(msgspec.json.decode(line, type=Answer))
        return
    _, status = os.waitpid(child, 0)
    log.seek(0)
    message = log.read().decode(errors="replace").strip()
    if status == 0:  # another of the same crew was quicker
        _send(Answer(host=system.host(), supervisor="another", size=size))
        return
    last = message.rpartition("\n")[2] or f"it ended with status {os.waitstatus_to_exitcode(status)} without output"
    _send(Answer(checks=(Check("workers", f"the supervisor could not start: {last[:300]}", "see what it says", True),)))


def _be_supervisor(asked: Request, url: str, size: int, pipe: int, log: IO[bytes]) -> NoReturn:
    status = 1
    try:
        os.setsid()
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

        def ready(me: WorkerInfo) -> None:
            os.write(pipe, msgspec.json.encode(Answer(host=me.host, supervisor=me.id, size=size)))
            os.close(pipe)

        status = _supervise(asked, url, size, ready)
    except BaseException as error:  # whatever it is, the parent's code must not run on here
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def _supervise(
    asked: Request, url: str, size: int, ready: Callable[[WorkerInfo], None], lead: int | None = None
) -> int:
    return supervise(
        url,
        msgspec.structs.replace(asked.options, size=size),
        crew=asked.crew,
        detached=True,
        place="" if asked.place == system.host() else asked.place,
        ready=ready,
        lead=lead,
    )


def _send(answer: Answer) -> None:
    try:
        sys.stdout.write(MARK + msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the caller is gone, which workers survive
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def answers(lines: Sequence[bytes]) -> list[Answer]:
    """What a host answered among all that it printed."""
    mark = MARK.encode()
    return [msgspec.json.decode(line[len(mark) :], type=Answer) for line in lines if line.startswith(mark)]


def python_check(theirs: str, path: str, wanted: str) -> Check:
    """Return the check of a Python of version ``theirs``."""
    message = f"Python {theirs} ({path})"
    if theirs == wanted:
        return Check("python", message)
    return Check(
        "python", f"{message} there, and {wanted} here: tasks run only on the same Python version",
        f"give a Python {wanted}: --python PATH, or --setup 'module load …'", True,
    )  # fmt: skip


def look(store: Store) -> Report:
    """Could workers start here?"""
    asked = Request(system.python(), "", store.url, store.id, check=True)
    checks = [python_check(system.python(), sys.executable, system.python())]
    opened = _looked_around(asked, checks)
    if opened is not None:
        opened.close()
    if not any(check.what == "key" and check.message == "is there" for check in checks):
        checks.append(
            Check("key", "the store's key is not in your keyring",
                  "bring it, from where the store was made: jug-notebook key export | jug-notebook key import", True)
        )  # fmt: skip
    return Report("this host", tuple(check for check in checks if check.what != "workers"))
