"""Workers on other hosts, over the user's own OpenSSH: its configuration, agent, jump hosts and running connections.

One call per host: a shell there reads a script from its input, which checks the host (see `remote`) and leaves a
supervisor behind. That needs neither the connection nor this process: later orders go through the store.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from jug_notebook import system
from jug_notebook.clock import CLOCK, Clock
from jug_notebook.errors import JugError, LaunchError, StoreError
from jug_notebook.launch import WorkerGroup
from jug_notebook.launch.remote import BOOT, Answer, Check, Report, Request, answers, mirror_of, python_check
from jug_notebook.model import Scale, Stop, WorkerInfo
from jug_notebook.render import plural
from jug_notebook.store import Store, split
from jug_notebook.worker import WorkerOptions
from jug_notebook.worker.crew import engage, living
from jug_notebook.worker.execution import mapped
from jug_notebook.worker.notices import notices

TIMEOUT = 30.0  #: seconds for all that is done on a host, besides ``setup``
SETUP = 120.0  #: seconds for that
AT_ONCE = 32  #: hosts that are called at once
PERSIST = 120  #: seconds for which a connection is kept for the next call
SKEW = 2.0  #: seconds by which clocks may differ without a word
COMMAND = "JUG_NOTEBOOK_SSH"  #: environment variable: another command than ``ssh``, options included

_OPTIONS = {"BatchMode": "yes", "ConnectTimeout": "8", "ServerAliveInterval": "3", "ServerAliveCountMax": "3"}

#: Reads the script from its input up to a line "---", and runs it. It must mean the same in everybody's login shell.
_READ = (
    'sh -c \'s=; n=$(printf "\\012."); n=${n%.}; '
    'while IFS= read -r l; do [ "$l" = --- ] && break; s="$s$l$n"; done; eval "$s"\''
)


_HAS_US = 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("jug_notebook", "msgspec"))))'


class Host(NamedTuple):
    """A host as ssh takes it, and how many workers it shall have (0: not given)."""

    login: str
    size: int = 0

    @property
    def place(self) -> str:
        return self.login.rpartition("@")[2]


_HOST = re.compile(r"((?:[^@\s:]+@)?(?:\[[0-9A-Fa-f:.%\w]+\]|[^@\s:\[\]]+))(?::(\d+))?")


def host_of(word: str) -> Host:
    """``host``, ``user@host`` or ``user@host:8``. Raises LaunchError."""
    match = _HOST.fullmatch(word.strip())
    if match is None or match[1].startswith("-") or match[2] == "0":
        raise LaunchError(f"{word!r} is not a host; give HOST, USER@HOST or HOST:8, for 8 workers (IPv6: [::1]:8)")
    return Host(match[1].replace("[", "").replace("]", ""), int(match[2] or 0))


def hosts_in(path: Path) -> list[Host]:
    """Those of a file, one a line: as for `host_of`, or "host 8", or "host slots=8". Raises LaunchError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = error.strerror if isinstance(error, OSError) else "it is not text"
        raise LaunchError(f"the hosts in {str(path)!r} can't be read: {message}") from error
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        counts = [word.removeprefix("slots=") for word in words[1:]]
        if len(words) > 2 or not all(count.isdigit() for count in counts):
            raise LaunchError(f"{path.name}, line {number}: {line.strip()!r} is not a host; give HOST, or HOST:8")
        hosts.append(host_of(":".join([words[0], *counts])))
    if not hosts:
        raise LaunchError(f"no host in {str(path)!r}; give one per line")
    return hosts


class Call:
    """What one launch sends to all of its hosts."""

    def __init__(
        self,
        store: Store,
        options: WorkerOptions,
        secret: bytes,
        version: str,
        packages: Mapping[str, str] | None = None,
        compiled: Sequence[str] = (),
        clock: Clock = CLOCK,
    ) -> None:
        self.store = store
        self.options = options
        self.compiled = compiled
        self.clock = clock
        self._request = Request(
            python=system.python(),
            version=version,
            url=_there(store.url, options.folders),
            store=store.id,
            secret=secret.hex(),
            options=options,
            packages=dict(packages or {}),
            notices=notices(store.id),
            also=mirror_of(store, options.folders),
        )

    def name(self, host: Host) -> str:
        """Of the crew there."""
        return f"ssh-{host.login}-{system.user()}-{system.python()}{self.options.suffix}"

    def request(self, host: Host, check: bool) -> Request:
        return msgspec.structs.replace(
            self._request,
            crew=self.name(host),
            place=host.place,
            options=msgspec.structs.replace(self.options, size=host.size or self.options.size),
            check=check,
            notices=() if check else self._request.notices,
            secret="" if check else self._request.secret,
            also="" if check else self._request.also,
        )

    @property
    def pythons(self) -> list[str]:
        """Which to look for, in order."""
        if self.options.python:
            return [self.options.python]
        if self.options.setup:
            return ["python3", "python", sys.executable]
        return [sys.executable, f"python{system.python()}", "python3"]

    def script(self) -> str:
        """For the shell there: it runs the setup, finds Python, and becomes that."""
        names = " ".join(map(shlex.quote, self.pythons))
        lines = [f'for p in {names}; do q=$(command -v "$p") && break; q=; done']
        if self.options.setup and not self.options.python:  # it may have made another one ours, or not
            lines.append(f"for p in {names}; do \"$p\" -c '{_HAS_US}' 2>/dev/null && {{ q=$p; break; }}; done")
        lines += [
            '[ -n "$q" ] || { echo \'jn1 {"error":"none"}\' >&4; exit 1; }',
            "exec \"$q\" -c 'import sys, json; exec(json.loads(sys.stdin.readline()))' jug-notebook worker"
            " <&3 >&4 3<&- 4>&-",
        ]
        begin = "exec 3<&0 4>&1 </dev/null 1>&2"  # neither a profile nor the setup shall read or print between
        if not self.options.setup:
            return "\n".join([begin, *lines])
        failed = "s=$?; [ $s = 0 ] || { echo 'jn1 {\"setup\":\"'$s'\"}' >&4; exit 1; }"
        inner = shlex.quote("\n".join([self.options.setup, failed, *lines]))
        shell = f"if command -v bash >/dev/null; then exec bash -lc {inner}; else exec sh -lc {inner}; fi"
        return f"{begin}\n{shell}"

    def message(self, host: Host, check: bool) -> bytes:
        """Return all that goes to the shell's input."""
        request = msgspec.json.encode(self.request(host, check)).decode()
        return f"{self.script()}\n---\n{json.dumps(BOOT)}\n{request}\n".encode()


def _there(url: str, folders: Iterable[tuple[str, str]]) -> str:
    scheme, rest = split(url)
    if scheme == "memory":
        raise LaunchError("memory: lives in this process alone, so no other host can see it; use a folder: %jug_store")
    if scheme != "file" or not folders:
        return url
    there = mapped(rest, folders)
    if there == rest and not any(before.rstrip("/") == after.rstrip("/") for before, after in folders):
        before = ", ".join(before for before, _ in folders)
        raise LaunchError(f"the store, {rest}, is not below {before}; give their place there: --remote-dir HERE=THERE")
    return f"file:{there}"


class RemoteGroup(WorkerGroup):
    """The workers on one host, from the call on."""

    def __init__(self, call: Call, host: Host, gate: threading.Semaphore, check: bool = False) -> None:
        super().__init__(call.store, call.name(host), host.place, host.size or call.options.size, call.clock)
        self.report = Report(host.place)
        self.answer: Answer | None = None
        self._call, self._host, self._gate, self._check = call, host, gate, check
        self._stop: Stop | None = None
        self._begin()

    def _begin(self) -> None:
        self.over.clear()
        threading.Thread(target=self._run, name=f"jug-ssh {self.place}", daemon=True).start()

    @property
    def message(self) -> str:  # type: ignore[override]
        if self.answer is None:
            return ""
        before, size = self.answer.before, self.answer.size
        there = f"{plural(before, 'worker')} {'is' if before == 1 else 'are'} there already"
        more = f"started {size - before} more: {size} in all" if before else f"started {plural(size, 'worker')}"
        line = f"{self.place}: {there if before >= size else more}"
        return "\n".join([line, *self.report.warnings])

    def is_starting(self, supervisors: Sequence[WorkerInfo], workers: Sequence[WorkerInfo]) -> bool:
        if not self.over.is_set():
            return True
        if self.failure or self.answer is None:
            return False
        return not workers and not self._late and self._stop is None

    def stop(self, now: bool, supervisors: Sequence[WorkerInfo]) -> None:
        self._stop = Stop(now)
        super().stop(now, supervisors)

    def scale(self, size: int, supervisors: Sequence[WorkerInfo]) -> None:
        self.size = size
        super().scale(size, supervisors)
        if size and not supervisors and self.over.is_set():  # they have ended, or never began: call again
            self._host, self._stop = Host(self._host.login, size), None
            self.report, self.failure, self.answer = Report(self.place), "", None
            self._begin()

    def _run(self) -> None:
        try:
            with self._gate:
                self._reach()
        except JugError as error:
            self._add(Check("ssh", str(error), "see what it says", True))
        except Exception as error:  # a thread's traceback would land in somebody's cell
            self._add(Check("ssh", f"{type(error).__name__}: {error}", "see what it says", True))
        finally:
            self.failure = self.report.failure
            if self.failure and not self._check:
                self._order_through_the_store()
            self._since = self.clock.monotonic()
            self.over.set()

    def _order_through_the_store(self) -> None:
        """Running workers can get orders without ssh."""
        with suppress(StoreError, OSError):
            if one := engage(self.store, lambda: living(self.store, self.name), Scale(self.size, at_least=True)):
                self.engaged = one.id, one.beat
                self.answer = Answer(host=one.host, supervisor=one.id, size=self.size, before=one.size)
                message = self.failure.partition(": ")[2].partition("; ")[0]
                self.report = Report(
                    self.place, (Check("ssh", message, "its workers are running, and got the order through the store"),)
                )
                self.failure = ""

    def _add(self, *checks: Check) -> None:
        self.report = Report(self.place, (*self.report.checks, *checks))

    def _reach(self) -> None:
        call, clock = self._call, self.clock
        asked = clock.now()
        if call.compiled:
            message = f"project module {call.compiled[0]} has a compiled part, which can't travel"
            remedy = f"install it on every host as a package: pip install ./{call.compiled[0]}"
            self._add(Check("modules", message, remedy, True))
            return
        timeout = TIMEOUT + (SETUP if call.options.setup else 0)
        received: list[tuple[Answer, float]] = []
        status, message = run_command(
            [*command(self._host.login), "--", self._host.login, _READ],
            call.message(self._host, self._check),
            lambda line: received.extend((one, clock.now()) for one in answers([line])),
            timeout,
        )
        wanted = self._call.request(self._host, True)
        if not received:
            if status is None:
                self._add(_no(f"no answer within {timeout:.0f} s", f"is it up? Try in a terminal: ssh {self.place}"))
            else:
                self._add(refused(self._host.login, message))
            return
        self._add(Check("ssh", f"answers as {self._host.login}"))
        for answer, answered in received:
            self._on_answer(answer, wanted, asked, answered, message)
        if not self.report.failure and not self._check and self.answer is None:
            lost = "went silent" if status is None else f"ended with status {status}"
            failed = f"ssh {lost} before any worker started: {_last_line(message, 'no output')[:300]}"
            self._add(Check("workers", failed, "see what it says", True))
        if self._stop is not None and self.answer is not None:
            self.store.order([self.answer.supervisor], self._stop)

    def _on_answer(self, answer: Answer, wanted: Request, asked: float, answered: float, message: str) -> None:
        if answer.setup:
            failed = f"--setup failed there with status {answer.setup}: {_last_line(message, 'no output')[:200]}"
            self._add(Check("setup", failed, "correct it", True))
        elif answer.error and not answer.python:
            failed = f"no python there (tried {', '.join(self._call.pythons)})"
            remedy = f"give one that is {wanted.python}: --python PATH, or --setup 'module load …'"
            self._add(Check("python", failed, remedy, True))
        elif answer.python:
            self._add(python_check(answer.python, answer.path, wanted.python))
            if not self.report.failure:
                self._add(_package(answer.package, answer.path, wanted.version, answer.error))
        elif answer.host:
            self.answer, self.size = answer, answer.size
            if answer.beat:
                self.engaged = answer.supervisor, answer.beat
        else:
            self._add(*answer.checks)
            if answer.now:
                self._add(clock_check(clock_offset(answer.now, asked, answered)))


def launch(call: Call, hosts: Sequence[Host], check: bool = False) -> list[RemoteGroup]:
    """Start on all hosts at once, or with ``check`` only look around there; returns before any has answered."""
    gate = threading.BoundedSemaphore(AT_ONCE)
    return [RemoteGroup(call, host, gate, check) for host in dict.fromkeys(hosts)]


def look(call: Call, hosts: Sequence[Host]) -> list[Report]:
    """Look around on all hosts, and start nothing."""
    groups = launch(call, hosts, check=True)
    for group in groups:
        group.over.wait()
    return [group.report for group in groups]


# -- one call ----------------------------------------------------------------------------------------------------------


def command(login: str) -> list[str]:
    """How ssh is called for this host: what the user has configured for it stays."""
    words = shlex.split(os.environ.get(COMMAND, "")) or ["ssh"]
    theirs = _configured(words, login)
    options = {name: value for name, value in _OPTIONS.items() if theirs.get(name.lower(), "none") in _UNSET[name]}
    if theirs.get("controlmaster", "false") in ("false", "no") and theirs.get("controlpath", "none") == "none":
        options |= {"ControlMaster": "auto", "ControlPath": f"{_sockets()}/%C", "ControlPersist": str(PERSIST)}
    return [*words, "-T", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]


#: what ``ssh -G`` says of an option that nobody has set
_UNSET = {
    "BatchMode": ("none", "no", "yes"), "ConnectTimeout": ("none", "0"), "ServerAliveInterval": ("none", "0"),
    "ServerAliveCountMax": ("none", "3"),
}  # fmt: skip


def _configured(words: Sequence[str], login: str) -> dict[str, str]:
    try:
        ran = subprocess.run([*words, "-G", "--", login], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{words[0]!r} is not installed here; install OpenSSH's client") from None
    except subprocess.TimeoutExpired:
        return {}
    return {name: value for name, _, value in (line.partition(" ") for line in ran.stdout.splitlines())}


def _sockets() -> str:
    """A folder of ours for the sockets of connections. Its path must be short."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"jug-ssh-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise LaunchError(f"{folder} is not yours alone, so connections can't be kept there; remove it")
    return str(folder)


def run_command(
    words: Sequence[str], message: bytes, on_line: Callable[[bytes], None], timeout: float
) -> tuple[int | None, str]:
    """Run a command with ``message`` as its input, and call ``on_line`` with each line of output as it comes.

    Return its exit status (None where it took too long and was ended) and its error output. That goes to a file,
    for a connection that is kept for later calls would hold a pipe open.
    """
    until = CLOCK.monotonic() + timeout
    with tempfile.TemporaryFile() as errors:
        ran = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        assert ran.stdin is not None
        assert ran.stdout is not None
        os.set_blocking(ran.stdin.fileno(), False)
        rest, received = memoryview(message), b""
        with selectors.DefaultSelector() as ready:
            ready.register(ran.stdout, selectors.EVENT_READ)
            ready.register(ran.stdin, selectors.EVENT_WRITE)
            while (left := until - CLOCK.monotonic()) > 0:
                which = {key.fileobj for key, _ in ready.select(left)}
                if ran.stdin in which:
                    try:
                        rest = rest[os.write(ran.stdin.fileno(), rest) :]
                    except BrokenPipeError:  # it has ended, and its output says why
                        rest = rest[:0]
                    if not rest:
                        ready.unregister(ran.stdin)
                        ran.stdin.close()
                if ran.stdout in which:
                    data = os.read(ran.stdout.fileno(), 1 << 16)
                    if not data:
                        break
                    *lines, received = (received + data).split(b"\n")
                    for line in lines:
                        on_line(line)
        ran.stdin.close()
        status: int | None
        try:
            status = ran.wait(max(0.0, until - CLOCK.monotonic()))
        except subprocess.TimeoutExpired:
            ran.kill()
            ran.wait()
            status = None
        ran.stdout.close()
        errors.seek(0)
        return status, errors.read().decode(errors="replace")


# -- what was found on a host, as messages with a remedy ---------------------------------------------------------------


def clock_check(ahead: float) -> Check:
    """Return the check of a clock that is ``ahead`` of ours by this many seconds for certain."""
    if abs(ahead) <= SKEW:
        return Check("clock", "agrees with this one")
    message = f"its clock is {_length(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}"
    return Check(
        "clock", message, "retries come at wrong times; set it there: chronyd, ntpd or timedatectl set-ntp true"
    )


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def clock_offset(theirs: float, asked: float, answered: float) -> float:
    """Return the least seconds by which a clock is ahead that read ``theirs`` between ``asked`` and ``answered``."""
    return theirs - min(max(theirs, asked), answered)


_COMPLAINTS = (
    ("identification has changed", "its ssh host key has changed",
     "if that is right: ssh-keygen -R {0}, then once: ssh {0}"),
    ("host key verification failed", "its ssh host key is not known here",
     "look at it and accept it once, in a terminal: ssh {0}"),
    ("permission denied", "it accepts none of your ssh keys",
     "put one there: ssh-copy-id {0}; or load the right one: ssh-add"),
    ("could not resolve", "the host name can't be resolved", "correct it, or give it a Host {0} in ~/.ssh/config"),
)  # fmt: skip


def refused(place: str, message: str) -> Check:
    """Return what ssh's own complaint means."""
    text = message.lower()
    last = _last_line(message, "ssh printed no message")
    for complaint, meaning, remedy in _COMPLAINTS:
        if complaint in text:
            return _no(meaning, remedy.format(place))
    reasons = ("timed out", "no route to host", "connection refused", "unreachable", "connection closed", "reset by")
    for reason in reasons:
        if reason in text:
            seen = last.rpartition(": ")[2] or reason
            return _no(f"can't be reached ({seen})", f"is it up? Try in a terminal: ssh {place}")
    return _no(f"ssh failed: {last[:200]}", f"try in a terminal: ssh {place}")


def _last_line(text: str, otherwise: str) -> str:
    return text.strip().rpartition("\n")[2].strip() or otherwise


def _no(message: str, remedy: str) -> Check:
    return Check("ssh", message, remedy, True)


def _package(theirs: str, path: str, wanted: str, error: str = "") -> Check:
    if theirs == wanted:
        return Check("package", f"jug_notebook {theirs}")
    if theirs:
        message = f"jug_notebook {theirs} there, and {wanted} here"
    elif "jug_notebook" in error:
        message = f"{path} has no jug_notebook"
    else:
        message = f"{path} can't import jug_notebook ({error})"
    return Check("package", message, f"install it there: {path} -m pip install jug-notebook=={wanted}", True)
