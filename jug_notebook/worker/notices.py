"""Where a notification goes, and sending it: by a shell command, a POST, the desktop, mail or Apprise.

Targets may hold passwords and tokens. So they are kept as the keys of stores are, in files that only their user can
read, and are never written to a store, logged, or passed as arguments of a process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from jug_notebook.errors import LaunchError
from jug_notebook.store import atomic, keyring

TIMEOUT = 15.0  #: seconds that a server may take,
LONGEST = 60.0  #: and a command
HIDDEN = "…"  #: in place of what a target holds
LARGEST = 1 << 20  #: bytes of a file of targets
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_ADDRESS = re.compile(r"mailto:([^\s/:@]+@[\w.-]+)")
_PREFIX = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_WORD = re.compile(r"[\w.+-]+")
_COMMAND = 'jug_command=$JUG_COMMAND; unset JUG_COMMAND; eval "$jug_command"'


class Notice(Struct, frozen=True):
    """One target of one store, and up to where what happened there has been reported to it."""

    target: str
    path: str = ""  #: of the notebook that asked for it
    after: float = 0.0  #: seconds; of work that took less nothing is sent
    seen: str = ""  #: `Rest.id` of what was reported, or was there before,
    ended: float = 0.0  #: and when the last run of that ended

    @property
    def label(self) -> str:
        """What people see of the target: no more than its kind."""
        scheme = _SCHEME.match(self.target)
        if scheme is not None:
            return f"{scheme[1].lower()}://{HIDDEN}"
        return "desktop" if self.target == "desktop" else "mail" if _ADDRESS.match(self.target) else "command"

    def __repr__(self) -> str:
        return f"<notice by {self.label}>"

    __str__ = __repr__


def targets_in(given: Any, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the targets that a word or a list of them names, in which "env:NAME" and "@FILE" stand for what is there.

    Raises LaunchError where one can't be used here, with the way out; what it holds is in no message.
    """
    words = [given] if isinstance(given, str | Path) else given
    if not isinstance(words, Iterable) or isinstance(words, bytes):
        raise LaunchError(
            f"notify: {type(given).__name__} is not a target; give a command, a URL, 'desktop' or 'env:NAME'"
        )
    found: list[str] = []
    for word in words:
        if not isinstance(word, str | Path) or not str(word).strip():
            raise LaunchError("notify: a target is a string: a command, a URL, 'desktop', 'env:NAME' or '@FILE'")
        found += _read(str(word).strip(), environ)
    for target in found:
        _check(target)
    return list(dict.fromkeys(found))


def _read(word: str, environ: Mapping[str, str]) -> list[str]:
    if word in ("env:", "@"):
        raise LaunchError(f"notify: {word!r} names nothing; give env:NAME, a variable, or @FILE, a target in each line")
    if word.startswith("env:"):
        value = environ.get(word[4:], "").strip()
        if not value:
            raise LaunchError(
                f"notify: the environment variable {word[4:]} is not set; set it, or give the target itself"
            )
        return [value]
    if not word.startswith("@"):
        return [word]
    try:
        with open(os.path.expanduser(word[1:]), encoding="utf-8") as file:
            lines = [line.strip() for line in file.read(LARGEST).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise LaunchError(
            f"notify: {word[1:]!r} can't be read: {why}; give a file with a target in each line"
        ) from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise LaunchError(f"notify: there is no target in {word[1:]!r}; write one in each line")
    return found


def _check(target: str) -> None:
    """Raise LaunchError where nothing could be sent to a target from here."""
    if "\0" in target or "\n" in target:
        raise LaunchError("notify: a target is one line")
    if target == "browser":
        raise LaunchError("notify: 'browser' is the page of an open notebook: give it there, to %jug_execute --notify")
    if target == "desktop":
        if _desktop("") is None:
            raise LaunchError("notify: 'desktop' needs notify-send on this host; install libnotify-bin, or give a URL")
    elif _ADDRESS.fullmatch(target):
        if _sendmail() is None:
            raise LaunchError(
                "notify: 'mailto:…' needs sendmail on this host; give a server, 'mailto://USER:PASSWORD@gmail.com', "
                "as env:NAME"
            )
    elif scheme := _SCHEME.match(target):
        if scheme[1].lower() not in ("http", "https"):
            _check_service(target, scheme[1].lower())
        elif not re.fullmatch(r"https?://[^\s/]+\S*", target, re.IGNORECASE):
            raise LaunchError(f"notify: {scheme[0]}… is not a URL; give http://HOST/PATH or https://HOST/PATH")
    else:
        _check_command(target)


def _check_command(target: str) -> None:
    """Raise LaunchError for a slip that the shell would take for a command, and find out hours later."""
    if target.startswith("cmd:"):
        if not target[4:].strip():
            raise LaunchError("notify: there is no command after 'cmd:'")
    elif prefix := _PREFIX.match(target):
        raise LaunchError(
            f"notify: {prefix[0]}… is neither a URL nor an address; give https://HOST/PATH, mailto:NAME@HOST or "
            "env:NAME"
        )
    elif _WORD.fullmatch(target) and shutil.which(target) is None:
        raise LaunchError(
            "notify: there is no such command here; give one, a URL or 'desktop'; for one on other hosts 'cmd:…'"
        )


def _check_service(target: str, scheme: str) -> None:
    if importlib.util.find_spec("apprise") is None:
        raise LaunchError(f"notify: {scheme}://… needs the library apprise: pip install 'jug-notebook[notify]'")
    if _service(target) is None:
        raise LaunchError(f"notify: Apprise can't use this {scheme}://… URL; see its form with: apprise --details")


def _service(target: str) -> Any:
    import logging

    import apprise

    logging.getLogger("apprise").disabled = True  # it logs URLs
    return apprise.Apprise.instantiate(target, suppress_exceptions=True)


# -- kept for the supervisors of a store -------------------------------------------------------------------------------

_here: dict[str, tuple[Notice, ...]] = {}  # of stores whose key may not be kept on this host
_read_before: dict[str, tuple[int, tuple[Notice, ...]]] = {}


def _path(store_id: str) -> Path:
    return keyring.key_folder().parent / "notify" / store_id


def notices(store_id: str) -> tuple[Notice, ...]:
    """Return where what happens in a store is reported to."""
    return _here.get(store_id, ()) + _kept(store_id)


def _kept(store_id: str) -> tuple[Notice, ...]:
    path = _path(store_id)
    try:
        stamp = path.stat().st_mtime_ns
        if _read_before.get(store_id, (0, ()))[0] != stamp:
            _read_before[store_id] = stamp, msgspec.json.decode(path.read_bytes(), type=tuple[Notice, ...])
        return _read_before[store_id][1]
    except (OSError, msgspec.MsgspecError):
        return ()


def add(store_id: str, added: Sequence[Notice], lasting: bool = True) -> None:
    """Report to these targets, too. One that is known keeps what was reported to it. Raises LaunchError."""
    known = {notice.target: notice for notice in (_kept(store_id) if lasting else _here.get(store_id, ()))}
    fresh = {
        one.target: msgspec.structs.replace(one, seen=before.seen, ended=before.ended) if before else one
        for one in added
        for before in [known.get(one.target)]
    }
    _keep(store_id, {**known, **fresh}, lasting)


def reported(store_id: str, seen: Mapping[str, tuple[str, float]]) -> None:
    """Note what was reported, by target: the id of a `Rest`, and when its last run ended."""

    def marked(one: Notice) -> Notice:
        return msgspec.structs.replace(one, seen=seen[one.target][0], ended=seen[one.target][1])

    for lasting, some in ((False, _here.get(store_id, ())), (True, _kept(store_id))):
        if any(one.target in seen for one in some):
            _keep(store_id, {one.target: marked(one) if one.target in seen else one for one in some}, lasting)


def forget(store_id: str) -> None:
    """Report what happens in a store to no one any more."""
    _here.pop(store_id, None)
    with suppress(OSError):
        _path(store_id).unlink()


def _keep(store_id: str, some: Mapping[str, Notice], lasting: bool) -> None:
    if not lasting:
        _here[store_id] = tuple(some.values())
        return
    path = _path(store_id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic.replace(path, msgspec.json.encode(list(some.values())), mode=0o600)
    except OSError as error:
        raise LaunchError(
            f"where to notify can't be kept in {path.parent}: {error.strerror}; set XDG_CONFIG_HOME to a folder you "
            "may write to"
        ) from error


# -- sending -----------------------------------------------------------------------------------------------------------


class NotSent(Exception):
    """Why nothing was sent, without the target."""


def send(notice: Notice, text: str, data: Mapping[str, Any]) -> None:
    """Send a line to a target, once; ``data`` tells programs the same. Raises NotSent."""
    target = notice.target
    if target == "desktop":
        words = _desktop(text)
        if words is None:
            raise NotSent("there is no notify-send on this host")
        _run(words, notice, text)
    elif address := _ADDRESS.fullmatch(target):
        _mail(address[1], notice, text)
    elif (scheme := _SCHEME.match(target)) is None:
        command = target.removeprefix("cmd:")
        _run(["/bin/sh", "-c", _COMMAND], notice, text, command)
    elif scheme[1].lower() in ("http", "https"):
        _post(target, text, data)
    else:
        _serve(target, text)


def send_all(targets: Sequence[str], path: str, text: str) -> list[str]:
    """Send a line to targets, trying twice. Return why it could not be sent, a line for each."""
    wrong = []
    for notice in (Notice(target, path) for target in targets):
        try:
            with suppress(NotSent):
                send(notice, text, {"notebook": path})
                continue
            send(notice, text, {"notebook": path})
        except NotSent as refused:
            wrong.append(f"could not notify ({notice.label}): {refused}")
    return wrong


def _run(words: Sequence[str], notice: Notice, text: str, command: str = "", body: bytes = b"") -> None:
    folder = os.path.dirname(notice.path)
    environment = {**os.environ, "JUG_MESSAGE": text, **({"JUG_COMMAND": command} if command else {})}
    try:
        ran = subprocess.run(
            words, input=body or f"{text}\n".encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=LONGEST, check=False, env=environment, cwd=folder if os.path.isdir(folder) else "/",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotSent(f"it took longer than {LONGEST:.0f} s") from None
    except OSError as error:
        raise NotSent(f"{words[0]}: {error.strerror}") from None
    if ran.returncode:
        raise NotSent(f"status {ran.returncode}")


def _desktop(text: str) -> list[str] | None:
    if sys.platform == "darwin":
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        return ["osascript", "-e", f'display notification "{quoted}" with title "jug_notebook"']
    found = shutil.which("notify-send")
    return None if found is None else [found, "--app-name=jug_notebook", "jug_notebook", text]


def _sendmail() -> str | None:
    return shutil.which("sendmail", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/lib"]))


def _mail(address: str, notice: Notice, text: str) -> None:
    program = _sendmail()
    if program is None:
        raise NotSent("there is no sendmail on this host")
    message = EmailMessage()
    message["To"], message["Subject"] = address, text[:200]
    message.set_content(f"{text}\n")
    _run([program, "-t"], notice, text, body=message.as_bytes())


def _post(url: str, text: str, data: Mapping[str, Any]) -> None:
    """Post JSON in which chat services find the line, too: as "text" or as "content"."""
    body = msgspec.json.encode({"text": text, "content": text, **data})
    headers = {"Content-Type": "application/json", "Idempotency-Key": str(data.get("id", "")), "Title": "jug_notebook"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=body, headers=headers, method="POST"), timeout=TIMEOUT
        ) as reply:
            reply.read(1000)
    except urllib.error.HTTPError as error:
        raise NotSent(f"HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        raise NotSent(reason.strerror if isinstance(reason, OSError) and reason.strerror else "no answer") from None
    except (OSError, ValueError) as error:  # what it says may hold the URL
        raise NotSent(type(error).__name__) from None


def _serve(url: str, text: str) -> None:
    try:
        service = _service(url)
    except ImportError:
        raise NotSent("the library apprise is missing on this host: pip install 'jug-notebook[notify]'") from None
    if service is None or not service.notify(body=text, title="jug_notebook"):
        raise NotSent("the service refused it")
