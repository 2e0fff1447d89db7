"""Tasks around files and programs: shell commands, cached lists of files, results written to files."""

from __future__ import annotations

import functools
import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jug_notebook.errors import BadTask, CommandFailed
from jug_notebook.task.context import in_task
from jug_notebook.task.files import File, PathAdvice
from jug_notebook.task.function import Arguments, TaskFunction
from jug_notebook.task.handles import Handle, NoLoad
from jug_notebook.task.patterns import CachedFunction

LAST = 2000  #: characters of a command's stderr that are kept to report why it failed


class _Terse(TaskFunction):
    """A task function whose tables leave out arguments that aren't set."""

    def _look_for_paths(self, arguments: Any) -> None:
        """Words of a command that aren't its outputs were looked at before."""

    def _args_repr(self, arguments: Arguments) -> str:
        return super()._args_repr([(k, v) for k, v in arguments if k not in ("folder", "value") and not _empty(v)])


def _empty(value: Any) -> bool:
    return value is None or value is True or (isinstance(value, str | tuple) and not value)


# -- commands ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """The result of a command: the value of a `shell` task."""

    args: str | tuple[str, ...]
    status: int  #: its exit status; minus the signal's number where one ended it
    stdout: str
    stderr: str
    files: dict[str, bytes] = field(default_factory=dict)  #: the ``outputs``, as it left them

    def save(self, folder: str | os.PathLike[str] = ".") -> list[Path]:
        """Write the files again, below ``folder``; return their paths."""
        paths = [Path(folder, name) for name in self.files]
        for path, data in zip(paths, self.files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(path) as aside:
                aside.write_bytes(data)
        return paths

    def __repr__(self) -> str:
        parts = [f"exit status {self.status}", f"{len(self.stdout):,} characters on stdout"]
        if self.files:
            parts.append(", ".join(self.files))
        command = self.args if isinstance(self.args, str) else " ".join(self.args)
        return f"<Ran {command:.60} · {' · '.join(parts)}>"


def shell(
    command: Any,
    *,
    outputs: Sequence[str] | str = (),
    check: bool = True,
    after: Any = None,
    stdin: Any = None,
    env: dict[str, Any] | None = None,
    name: str = "shell",
    timeout: float | None = None,
    retries: int = 0,
) -> Any:
    """Return a command as a task: its value is a `Ran`, with exit status, ``stdout``, ``stderr`` and ``files``.

    ``command`` is a list, run as it is, or one string, which bash runs (it ends with the first part that fails). Tasks
    in the list stand for their values, and `file` for a path whose content counts: ``jn.shell(["sort",
    jn.file("a.txt"), "-o", "b.txt"], outputs=["b.txt"])``. ``outputs`` are paths that it writes: their content is kept
    in the store. With ``check`` an exit status other than 0 fails the task. ``stdin`` is text, bytes or a task; a task
    of another command stands for its stdout, here and in the list. ``env`` adds variables; ``after`` holds tasks that
    must be done before. It runs in the working folder.

    The key covers the command, not the program that it calls. Raises BadTask.
    """
    if isinstance(command, str):
        if not command.strip():
            raise BadTask("shell: the command is empty")
    elif not isinstance(command, list | tuple) or not command:
        raise BadTask(f"shell takes a command as a string or a list of words, not {type(command).__name__}")
    else:
        command = tuple(_word(word) for word in command)
    if env is not None and not isinstance(env, Mapping):
        raise BadTask(f"env={env!r:.60}: give a dict of variables to add")
    paths = tuple(map(_path, [outputs] if isinstance(outputs, str | os.PathLike) else outputs))
    call = (command, paths, check, after, stdin, env)
    if in_task.on:
        return _run(*call, folder="")
    _PATH_ADVICE.look(
        [("command", word) for word in command if word not in paths] if isinstance(command, tuple) else []
    )
    return _shell(name, timeout, retries)(*call, folder=os.getcwd())


_PATH_ADVICE = PathAdvice("shell")


def _word(word: Any) -> Any:
    if isinstance(word, Handle | File | str) or hasattr(type(word), "__jug_hash__"):
        return word
    if isinstance(word, os.PathLike):
        return os.fspath(word)
    if isinstance(word, bool) or not isinstance(word, int | float):
        raise BadTask(f"a word of a command is text, a number, a path or a task, not {type(word).__name__}")
    return word


def _path(path: Any) -> str:
    found = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(found, str):
        raise BadTask(f"outputs are paths of files that the command writes, not {type(path).__name__} {path!r:.40}")
    return found


@functools.lru_cache(256)
def _shell(name: str, timeout: float | None, retries: int) -> TaskFunction:
    return _Terse(_run, name=name, version="1", timeout=timeout, retries=retries)


def _run(
    command: Any,
    outputs: tuple[str, ...],
    check: bool,
    after: Any,
    stdin: Any,
    env: dict[str, Any] | None,
    folder: str,  # part of the key: relative paths mean something else in another folder
) -> Ran:
    import subprocess  # few need it

    given = stdin.stdout if isinstance(stdin, Ran) else stdin
    if not isinstance(given, str | bytes | None):
        raise CommandFailed(f"stdin is text, bytes or another command, not {type(given).__name__}")
    if isinstance(command, str):
        args: str | tuple[str, ...] = command
        words = ["bash", "-e", "-o", "pipefail", "-c", command]
    else:
        args = tuple(_text(word) for word in command)
        words = list(args)
    try:
        done = subprocess.run(
            words,
            input=given.encode() if isinstance(given, str) else given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            env=None if env is None else {**os.environ, **{name: _text(value) for name, value in env.items()}},
            check=False,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise CommandFailed(f"{words[0]}: {error.strerror or error} on this host") from None
    stdout, stderr = (data.decode(errors="replace") for data in (done.stdout, done.stderr))
    sys.stderr.write(stderr)
    if check and done.returncode:
        ended = f"exit status {done.returncode}" if done.returncode > 0 else f"ended by signal {-done.returncode}"
        raise CommandFailed(f"{_short(args)}: {ended}{_last_line(stderr)}")
    files = {}
    for path in outputs:
        if os.path.isfile(path):
            files[path] = Path(path).read_bytes()
        elif not done.returncode:
            raise CommandFailed(f"{_short(args)}: it should have written the file {path}, but there is none")
    return Ran(args, done.returncode, stdout, stderr, files)


def _last_line(stderr: str) -> str:
    """Return ": " and the last line of what a command wrote to stderr, or nothing."""
    *_, last = ("", *stderr[-LAST:].strip().splitlines())
    return f": {last}" if last else ""


def _short(args: str | tuple[str, ...]) -> str:
    text = " ".join((args if isinstance(args, str) else " ".join(args)).split())
    return text if len(text) <= 80 else text[:79] + "…"


def _text(value: Any) -> str:
    if isinstance(value, Ran):
        return value.stdout.strip()
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CommandFailed(
            f"a word of the command is a {type(value).__name__}; a command takes text, numbers and paths. Write it to "
            "a file in a task before, and pass the path that this task returns"
        )
    return str(value)


def bash(script: str, /, **inputs: Any) -> str:
    """Run a script and return its standard output. It ends with the first command that fails."""
    import subprocess
    import tempfile

    env = {**os.environ, **{name: _variable(name, value) for name, value in inputs.items()}}
    errors = ""
    with (
        tempfile.TemporaryFile() as out,
        subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", script], env=env, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.PIPE, text=True, errors="replace",
        ) as running,
    ):  # fmt: skip
        assert running.stderr is not None
        for line in running.stderr:
            sys.stderr.write(line)
            errors = (errors + line)[-LAST:]
        status = running.wait()
        out.seek(0)
        output = out.read().decode(errors="replace")
    sys.stdout.write(output)
    if status:
        raise CommandFailed(f"exit status {status}{_last_line(errors)}")
    return output


def _variable(name: str, value: Any) -> str:
    if not isinstance(value, str | int | float | os.PathLike):
        raise CommandFailed(
            f"input {name!r} is a {type(value).__name__}; a script takes text, numbers and paths. "
            "Write it to a file in a task before, and pass the path"
        )
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


# -- lists of files ----------------------------------------------------------------------------------------------------


def cached_glob(pattern: str) -> list[str]:
    """Return the paths that match, sorted: looked up once, here and now, and from then on read from the store.

    So the tasks made from them stay the same while files come and go. ``jn.invalidate("cached_glob")`` looks again. A
    relative pattern is looked up in, and remembered for, the folder in which the notebook runs.
    """
    if not isinstance(pattern, str):
        raise BadTask(f"cached_glob takes a pattern such as 'data/*.csv', not {type(pattern).__name__}")
    found: list[str] = CachedFunction(_GLOB, pattern, os.getcwd())
    return found


def _glob(pattern: str, folder: str) -> list[str]:
    import glob

    if os.path.isabs(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    return sorted(glob.glob(pattern, root_dir=folder, recursive=True))


_GLOB = _Terse(_glob, name="cached_glob", version="1")


# -- results to files --------------------------------------------------------------------------------------------------


def write_task_out(
    result: Any,
    oname: str | os.PathLike[str] | None,
    metadata_fname: str | os.PathLike[str] | None = None,
    metadata_format: str | None = None,
) -> Any:
    """Return a task that writes the value of the task ``result`` to the file ``oname``; its own value is that path.

    A numpy array is written as ``numpy.save`` does, anything else is pickled. ``metadata_fname`` gets the value's
    provenance: code, arguments, who ran it, where and when, and the same of what it was made from; as JSON, or YAML
    where the name or ``metadata_format`` says so. Each file appears whole or not at all. The file is written once: to
    have it written again, invalidate the task. Raises BadTask.
    """
    if not isinstance(result, Handle) and not in_task.on:
        raise BadTask(f"write_task_out writes the value of a task, not {type(result).__name__}")
    return written(NoLoad(result), result, oname, metadata_fname, metadata_format)


def written(origin: Any, value: Any, oname: Any, metadata_fname: Any, metadata_format: str | None) -> Any:
    """Return a task that writes a value, and what ``origin.provenance()`` returns. See `write_task_out`."""
    if oname is None and metadata_fname is None:
        raise BadTask("write_task_out needs a file name, for the value or for its metadata")
    form = _format(metadata_fname, metadata_format) if metadata_fname is not None else ""
    names = [None if name is None else os.fspath(name) for name in (oname, metadata_fname)]
    value = None if oname is None else value
    return _WRITE(origin, value, *names, form, "" if in_task.on else os.getcwd())


def _format(path: Any, given: str | None) -> str:
    form = given.lower() if given else "yaml" if os.fspath(path).endswith((".yaml", ".yml")) else "json"
    if form not in ("json", "yaml"):
        raise BadTask(f"metadata_format is 'json' or 'yaml', not {given!r}")
    if form == "yaml" and find_spec("yaml") is None:
        raise BadTask("writing YAML needs the package PyYAML; install it, or let metadata_format be 'json'")
    return form


def _write(
    result: Any, value: Any, oname: str | None, metadata_fname: str | None, form: str, folder: str
) -> str | None:
    if metadata_fname is not None:
        provenance = result.provenance()
        with _replacing(Path(metadata_fname)) as aside, aside.open("w", encoding="utf-8") as file:
            if form == "yaml":
                import yaml

                yaml.safe_dump(provenance, file, sort_keys=False)
            else:
                import json

                json.dump(provenance, file, indent=2, default=str)
    if oname is not None:
        with _replacing(Path(oname)) as aside, aside.open("wb") as data:
            if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
                import numpy

                numpy.save(data, value)
            else:
                pickle.dump(value, data)
    return metadata_fname if oname is None else oname


_WRITE = _Terse(_write, name="write_task_out", version="1")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what is written there replaces ``path``, unless there is an error."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
